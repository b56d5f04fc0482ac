"""Token windows: every token but a record's first is predicted exactly once."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from pipeline.corpus import Record
from pipeline.targets.errors import UserError
from pipeline.views import Rejected, TokenWindows
from pipeline.views.token_windows import WindowRenderer, pieces


def save_tokenizer(folder: Path, extra: int = 0) -> Path:
    """A byte-level tokenizer that would truncate, pad and add special tokens if it were let."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate(alphabet)}
    vocabulary |= {f"<extra{i}>": len(alphabet) + i for i in range(extra)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>"])
    start = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def record(text: str) -> Record:
    return Record("r", 0, {"text": text})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@given(text=st.text(max_size=60), length=st.integers(2, 9), min_length=st.integers(2, 9))
def test_every_token_but_the_first_is_predicted_once(
    folder: Path, text: str, length: int, min_length: int
) -> None:
    min_length = min(min_length, length)
    renderer = TokenWindows(tokenizer=str(folder), length=length, min_length=min_length).load()
    count = len(text.encode())
    if count < min_length:
        with pytest.raises(Rejected) as caught:
            renderer.render(record(text))
        assert caught.value.code == "empty"
        return
    views = renderer.render(record(text))
    windows = [view.inputs["tokens"] for view in views]
    joined = [int(windows[0][0])] + [int(token) for window in windows for token in window[1:]]
    assert all(a[-1] == b[0] for a, b in pairwise(windows))
    assert all(len(window) == length for window in windows[:-1])
    assert min_length <= len(windows[-1]) <= length
    assert [view.size for view in views] == [len(window) for window in windows]
    assert count - len(joined) in range(max(min_length - 2, 0) + 1)
    whole = renderer.tokenizer.encode(text)
    assert joined == whole[: len(joined)]


def test_the_tokenizers_own_truncation_padding_and_special_tokens_are_off(folder: Path) -> None:
    (view,) = TokenWindows(tokenizer=str(folder), length=256).load().render(record("a" * 100))
    assert view.size == 100
    (short,) = TokenWindows(tokenizer=str(folder), length=256).load().render(record("ab"))
    assert short.size == 2


def test_the_type_of_tokens_follows_the_vocabulary(tmp_path: Path, folder: Path) -> None:
    small = TokenWindows(tokenizer=str(folder)).load()
    large = TokenWindows(tokenizer=str(save_tokenizer(tmp_path / "large", extra=1 << 16))).load()
    for renderer, dtype, size in ((small, "<u2", 257), (large, "<u4", 257 + (1 << 16))):
        assert renderer.inputs[0].dtype == dtype
        assert renderer.vocabulary is not None
        assert renderer.vocabulary.size == size
        assert renderer.render(record("ab"))[0].inputs["tokens"].dtype == np.dtype(dtype)


def test_the_size_of_a_vocabulary_with_gaps_is_its_largest_id_and_one(tmp_path: Path) -> None:
    vocabulary = {"a": 0, "b": 3, "c": 40, "[UNK]": 7}
    Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    found = TokenWindows(tokenizer=str(tmp_path)).load().vocabulary
    assert found is not None
    assert (found.size, found.padded_size) == (41, 41)


def test_the_fingerprint_is_of_the_tokenizers_bytes_not_of_its_place(tmp_path: Path, folder: Path) -> None:
    def load(path: Path) -> WindowRenderer:
        return TokenWindows(tokenizer=str(path)).load()

    same, other = save_tokenizer(tmp_path / "same"), save_tokenizer(tmp_path / "other", extra=1)
    assert load(same).description == load(folder).description == load(folder / "tokenizer.json").description
    assert load(other).description["fingerprint"] != load(folder).description["fingerprint"]
    assert str(tmp_path) not in json.dumps(load(same).description)


def test_a_document_of_millions_of_characters_without_a_space_works(folder: Path) -> None:
    views = TokenWindows(tokenizer=str(folder), length=1024).load().render(record("x" * 2_000_000))
    assert sum(view.size - 1 for view in views) == 2_000_000 - 1


@given(st.text(alphabet="ab \n", max_size=80), st.integers(1, 20))
def test_pieces_are_the_text_and_end_with_a_line_where_they_can(text: str, size: int) -> None:
    found = list(pieces(text, size))
    assert "".join(found) == text
    assert all(0 < len(piece) <= size for piece in found[:-1])
    assert len(found[-1]) <= size
    assert all(piece.endswith("\n") for piece in found[:-1] if "\n" in piece)


def test_what_has_no_text_is_rejected_with_its_key(folder: Path) -> None:
    renderer = TokenWindows(tokenizer=str(folder)).load()
    cases = {"empty": record(""), "undecodable": Record("r", 0, {"body": "x"})}
    for code, item in cases.items():
        with pytest.raises(Rejected, match=r"^r has") as caught:
            renderer.render(item)
        assert caught.value.code == code
    with pytest.raises(Rejected, match="no valid Unicode") as caught:
        renderer.render(record("a\ud800"))
    assert caught.value.code == "undecodable"


def test_no_tokenizer_or_a_broken_one_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    for path, reason in ((tmp_path, "is no tokenizer"), (tmp_path / "none", "no tokenizer at")):
        with pytest.raises(UserError, match=reason) as caught:
            TokenWindows(tokenizer=str(path)).load()
        assert str(path) in str(caught.value)
    with pytest.raises(UserError, match="min_length"):
        TokenWindows(tokenizer=str(save_tokenizer(tmp_path)), length=4, min_length=5).load()
