"""Ids of one tokenizer in the words of another: exact where both say the same, refused by name elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pipeline.targets.codecs import Codec, Dense, Embedding, Threshold, TopK
from pipeline.targets.codecs.base import offsets_of
from pipeline.targets.decoded import DenseTargets, EmbeddingTargets, SparseTargets, TopKTargets
from pipeline.targets.errors import CorruptShard, SpecMismatch, UserError
from pipeline.targets.id_map import IdMap
from pipeline.targets.ragged import Ragged
from pipeline.targets.rows import Rows
from pipeline.targets.spec import Head, Input, Spec, Vocabulary
from pipeline.targets.tokenizer import TokenizerFile

SOURCE = Path(__file__).read_text()


def spec_of(tokenizer: str, size: int | None = None, codec: Codec | None = None, **changes: Any) -> Spec:
    """Of a store that was labelled with that tokenizer. size: of its head, if it is not the tokenizer's."""
    file = TokenizerFile.load(tokenizer)
    width = size or file.size
    fields: dict[str, Any] = {
        "inputs": (Input("tokens", "<u2", (None,)),),
        "heads": (Head("logits", width, "next_token", codec or Threshold()),),
        "teacher": {"kind": "x", "fingerprint": "t"},
        "views": {"kind": "y", "fingerprint": "v"},
        "vocabulary": Vocabulary(file.size, width, file.fingerprint),
    }
    return Spec(**{**fields, **changes})


def rows_of(spec: Spec, tokens: list[list[int]]) -> Rows:
    counts = np.array([len(row) - 1 for row in tokens])
    head = spec.heads[0]
    logits = np.zeros((int(counts.sum()), head.size), dtype=np.float32)
    n = len(tokens)
    return Rows(
        spec=spec,
        keys=[f"file{i}" for i in range(n)],
        row=np.arange(n),
        view=np.zeros(n, np.int32),
        views=np.ones(n, np.int32),
        targets=counts.astype(np.int32),
        inputs={"tokens": Ragged(np.concatenate(tokens).astype("<u2"), offsets_of(counts + 1))},
        heads={head.name: head.codec.encode(logits, np.full((len(logits), head.codec.draws), 0.5))},
    )


def words(path: str) -> dict[int, str]:
    return {id_: word for word, id_ in TokenizerFile.load(path).ids.items()}


def mapped(spec: Spec, tokenizer: str, store_tokenizer: str) -> IdMap:
    found = IdMap.of(spec, tokenizer, store_tokenizer)
    assert found is not None
    return found


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), extra=st.integers(0, 40), gaps=st.integers(0, 40))
def test_each_id_becomes_that_of_the_same_token(
    bpe: Any, tmp_path: Path, seed: int, extra: int, gaps: int
) -> None:
    rng = np.random.default_rng(seed)
    wide = bpe.size + extra
    numbers = np.sort(rng.choice(bpe.size + gaps, bpe.size, replace=False)).tolist()
    store = bpe.save(tmp_path / "store", bpe.renumbered(numbers))
    shuffled = rng.permutation(wide).tolist()
    student = bpe.save(tmp_path / "student", bpe.extended(extra), bpe.renumbered(shuffled))
    spec = spec_of(store)
    found = mapped(spec, student, store)
    ours, theirs = words(store), words(student)
    assert all(theirs[int(found.ids[id_])] == word for id_, word in ours.items())
    assert len(np.unique(found.ids)) == len(found.ids) == spec.head("logits").size
    assert found.size == max(wide, int(found.ids.max()) + 1)
    nameless = [i for i in range(len(found.ids)) if i not in ours]
    assert not set(found.ids[nameless].tolist()) & theirs.keys()
    encoded = TokenizerFile.load(store).encode(SOURCE)
    assert found.tokens(np.array(encoded)).tolist() == TokenizerFile.load(student).encode(SOURCE)  # type: ignore[union-attr]
    found.check(rows_of(spec, [encoded[i : i + 70] for i in range(0, 700, 69)]), "shard")


def test_a_student_that_is_merely_wider_keeps_all_ids(bpe: Any, tmp_path: Path) -> None:
    store, student = bpe.save(tmp_path / "a"), bpe.save(tmp_path / "b", bpe.extended(9))
    found = mapped(spec_of(store), student, store)
    assert (found.ids.tolist(), found.size) == (list(range(bpe.size)), bpe.size + 9)
    # An old store's padding, too: its classes are behind the student's tokens, or in their way.
    padded = mapped(spec_of(store, bpe.size + 30), student, store)
    assert padded.ids[: bpe.size].tolist() == list(range(bpe.size))
    assert padded.ids[bpe.size + 9 :].tolist() == list(range(bpe.size + 9, bpe.size + 30))
    assert padded.ids[bpe.size : bpe.size + 9].tolist() == list(range(bpe.size + 30, bpe.size + 39))
    assert padded.size == bpe.size + 39


def test_the_same_tokenizer_needs_no_map_and_another_is_refused_unless_declared(
    bpe: Any, tmp_path: Path
) -> None:
    a, b = 40, 77
    swapped = list(range(bpe.size))
    swapped[a], swapped[b] = b, a
    store, other = bpe.save(tmp_path / "a"), bpe.save(tmp_path / "b", bpe.renumbered(swapped))
    spec = spec_of(store)
    assert IdMap.of(spec, store) is None
    assert IdMap.of(spec, bpe.save(tmp_path / "copy"), store) is None
    with pytest.raises(SpecMismatch, match=r"b/tokenizer\.json is not the tokenizer .* labelled with"):
        IdMap.of(spec, other)
    with pytest.raises(SpecMismatch, match="named as store_tokenizer, is not the tokenizer"):
        IdMap.of(spec, other, other)
    found = mapped(spec, other, store)
    assert found.ids.tolist() == swapped
    said = found.spec(spec)
    assert said.vocabulary == Vocabulary(bpe.size, bpe.size, TokenizerFile.load(other).fingerprint)
    assert said.fingerprint != spec.fingerprint


def test_what_cannot_be_compared_is_refused(bpe: Any, tmp_path: Path) -> None:
    store = bpe.save(tmp_path / "a")
    with pytest.raises(SpecMismatch, match="does not say which tokenizer"):
        IdMap.of(spec_of(store, vocabulary=None), store)
    with pytest.raises(SpecMismatch, match="keeps no token ids"):
        IdMap.of(spec_of(store, inputs=()), store)
    with pytest.raises(UserError, match="no tokenizer at"):
        IdMap.of(spec_of(store), str(tmp_path / "none"))


def test_a_missing_token_is_refused_by_name(bpe: Any, tmp_path: Path) -> None:
    def lacking(state: dict[str, Any]) -> None:
        last = state["model"]["merges"].pop()
        del state["model"]["vocab"]["".join(last)]

    store, student = bpe.save(tmp_path / "a"), bpe.save(tmp_path / "b", lacking)
    word = "".join(bpe.state["model"]["merges"][-1])
    with pytest.raises(SpecMismatch) as caught:
        IdMap.of(spec_of(store), student, store)
    id_ = bpe.state["model"]["vocab"][word]
    assert f"{student}/tokenizer.json has no token {word!r}, which is {id_} in {store}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", ["store", "student"])
def test_an_id_of_two_tokens_is_refused(bpe: Any, tmp_path: Path, side: str) -> None:
    def ambiguous(state: dict[str, Any]) -> None:
        state["model"]["vocab"]["!"] = state["model"]["vocab"]["#"]

    store = bpe.save(tmp_path / "store", *[ambiguous] * (side == "store"))
    student = bpe.save(tmp_path / "student", bpe.extended(1), *[ambiguous] * (side == "student"))
    with pytest.raises(
        SpecMismatch, match=rf"{side}/tokenizer\.json has two tokens with the id \d+, '[!#]' and"
    ):
        IdMap.of(spec_of(store), student, store)


def test_tokens_that_are_spelled_otherwise_are_no_common_ones(bpe: Any, tmp_path: Path) -> None:
    """In GPT-2's letters "é" is a byte, elsewhere the letter; an added token is never in these letters."""

    def letters(state: dict[str, Any]) -> None:
        state["pre_tokenizer"] = {"type": "Whitespace"}
        state["decoder"] = None

    def added(state: dict[str, Any]) -> None:
        token = {**state["added_tokens"][0], "content": "é", "id": state["model"]["vocab"]["é"]}
        state["added_tokens"].append(token)

    store = bpe.save(tmp_path / "a")
    with pytest.raises(SpecMismatch, match="spell their tokens in different ways"):
        IdMap.of(spec_of(store), bpe.save(tmp_path / "b", letters), store)
    with pytest.raises(SpecMismatch, match="has no token 'é'"):
        IdMap.of(spec_of(store), bpe.save(tmp_path / "c", added), store)


@pytest.fixture
def checked(bpe: Any, tmp_path: Path) -> Callable[..., None]:
    """checked(change, …) -> the check of a store's rows with a student's tokenizer that was changed so."""

    def check(*changes: Any, store: Any = (), text: str = SOURCE) -> None:
        theirs = bpe.save(tmp_path / "store", *store)
        student = bpe.save(tmp_path / "student", *changes, bpe.extended(1))
        spec = spec_of(theirs)
        encoded = TokenizerFile.load(theirs).encode(text)
        rows = rows_of(spec, [encoded[i : i + 50] for i in range(0, 1000, 49)])
        mapped(spec, student, theirs).check(rows, "the shard")

    return check


def test_the_same_tokens_with_other_merges_are_refused_at_the_first_row_that_differs(checked: Any) -> None:
    def other_merges(state: dict[str, Any]) -> None:
        state["model"]["merges"].reverse()

    checked()
    with pytest.raises(SpecMismatch) as caught:
        checked(other_merges)
    assert str(caught.value).startswith("file0: the two tokenizers cut its text differently, token ")
    assert "store/tokenizer.json" in str(caught.value)


def test_a_student_that_cuts_words_otherwise_is_refused(checked: Any) -> None:
    def digits(state: dict[str, Any]) -> None:
        parts = [{"type": "Digits", "individual_digits": True}, state["pre_tokenizer"]]
        state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}

    def lower(state: dict[str, Any]) -> None:
        state["normalizer"] = {"type": "Lowercase"}

    for change in (digits, lower):
        with pytest.raises(SpecMismatch, match=r"^file\d+: the two tokenizers cut its text differently"):
            checked(change, text="Raises TypeError after 0 of 1000 rows. " * 100)


def test_an_added_token_that_is_in_the_text_is_found(checked: Any) -> None:
    def named(state: dict[str, Any]) -> None:
        number = len(state["model"]["vocab"])
        state["model"]["vocab"]["import"] = number
        state["added_tokens"].append({**state["added_tokens"][0], "content": "import", "id": number})

    with pytest.raises(SpecMismatch, match=r"token \d+ is 'Ġi' for .* and 'Ġ' for "):
        checked(named, text="from json import loads\n" * 200)


def test_a_tokenizer_that_gives_no_text_back_shows_nothing(checked: Any) -> None:
    def mute(state: dict[str, Any]) -> None:
        state["decoder"] = None

    with pytest.raises(SpecMismatch, match="does not give the ids of the shard back"):
        checked(mute, store=(mute,))
    with pytest.raises(SpecMismatch, match="does not give the ids of the shard back"):
        checked(mute, store=(mute,), text="a b c = d(e, f)\n" * 200)


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    alphabet = sorted(set(SOURCE))
    special = trainers.UnigramTrainer(
        show_progress=False,
        vocab_size=400,
        initial_alphabet=alphabet,
        unk_token="<unk>",
        special_tokens=["<unk>", "</s>"],
    )
    tokenizer.train([__file__], special)
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    tokenizer.train(
        [__file__],
        trainers.WordPieceTrainer(vocab_size=400, show_progress=False, special_tokens=["[UNK]", "[CLS]"]),
    )
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As llama's: spaces as ▁, and bytes as <0x41> for what is no token."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fallback = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer.decoder = decoders.Sequence(fallback)
    special = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=600, show_progress=False, limit_alphabet=60, special_tokens=special
    )
    tokenizer.train([__file__], trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:2]
    return Tokenizer.from_str(json.dumps(state))


@pytest.mark.parametrize("made", [unigram, word_piece, byte_fallback])
def test_tokenizers_of_every_kind_are_mapped_to_themselves_and_more(made: Any, tmp_path: Path) -> None:
    tokenizer = made()
    folders = []
    for name, more in (("a", []), ("b", ["<|im_start|>", "<|im_end|>"])):
        tokenizer.add_special_tokens(more)
        (tmp_path / name).mkdir()
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
        folders.append(str(tmp_path / name))
    store, student = folders
    spec, file = spec_of(store), TokenizerFile.load(store)
    found = mapped(spec, student, store)
    assert found.ids.tolist() == list(range(file.size))
    assert found.size == file.size + 2
    encoded = file.encode(SOURCE + "naïve — 語彙の契約 " * 30)
    found.check(rows_of(spec, [encoded[i : i + 90] for i in range(0, len(encoded) - 90, 89)]), "shard")
    with pytest.raises(SpecMismatch, match=r"has no token '<\|im_start\|>'"):
        IdMap.of(spec_of(student), store, student)


def test_windows_that_cut_words_and_letters_in_two_are_no_reason_to_refuse(bpe: Any, tmp_path: Path) -> None:
    store = bpe.save(tmp_path / "a")
    spec, file = spec_of(store), TokenizerFile.load(store)
    found = mapped(spec, bpe.save(tmp_path / "b", bpe.renumbered(list(range(bpe.size))[::-1])), store)
    encoded = file.encode("naïve    \n   piñata — 語彙の契約 " * 9)
    for length in range(2, 20):
        found.check(rows_of(spec, [encoded[i : i + length] for i in range(0, 120, length - 1)]), "shard")


def test_a_token_beyond_the_classes_is_a_corrupt_shard(bpe: Any, tmp_path: Path) -> None:
    store, student = bpe.save(tmp_path / "a"), bpe.save(tmp_path / "b", bpe.extended(1))
    spec = spec_of(store)
    with pytest.raises(CorruptShard, match=rf"the shard has the token {bpe.size}, beyond"):
        mapped(spec, student, store).check(rows_of(spec, [[1, bpe.size, 2]]), "the shard")


def test_targets_of_every_form_are_over_the_students_classes(bpe: Any, tmp_path: Path) -> None:
    numbers = list(range(bpe.size))[::-1]
    store, student = (
        bpe.save(tmp_path / "a"),
        bpe.save(tmp_path / "b", bpe.renumbered(numbers), bpe.extended(5)),
    )
    head = Head("logits", bpe.size, "next_token", Dense("float32"))
    found = mapped(spec_of(store), student, store)
    logits = np.random.default_rng(0).normal(size=(3, bpe.size)).astype(np.float32)
    dense = found.targets(DenseTargets(logits), head)
    assert isinstance(dense, DenseTargets)
    np.testing.assert_array_equal(dense.logits[:, : bpe.size], logits[:, ::-1])
    assert (dense.logits[:, bpe.size :] == -np.inf).all()
    topk = TopK(k=4, betas=(1.0,))
    encoded = topk.encode(logits, np.zeros((3, 0)))
    plain = topk.decode(encoded, bpe.size)
    other = found.targets(plain, head)
    assert isinstance(plain, TopKTargets)
    assert isinstance(other, TopKTargets)
    np.testing.assert_array_equal(other.ids, bpe.size - 1 - plain.ids)
    assert other.size == bpe.size + 5
    assert other.tail_log_mass is plain.tail_log_mass
    sparse = Threshold().decode(Threshold().encode(logits, np.full((3, 2), 0.5)), bpe.size)
    moved = found.targets(sparse, head)
    assert isinstance(sparse, SparseTargets)
    assert isinstance(moved, SparseTargets)
    np.testing.assert_array_equal(moved.ids, bpe.size - 1 - sparse.ids)
    vectors = EmbeddingTargets(logits)
    for untouched in (Head("logits", 4, "single", Dense()), Head("features", 4, "next_token", Embedding())):
        assert found.targets(vectors, untouched) is vectors
