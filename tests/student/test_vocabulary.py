"""A student with another tokenizer learns from a store exactly what it would learn with the store's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.job import LabelJob
from pipeline.label import Labeller
from pipeline.prepare import prepare
from pipeline.targets.errors import ConfigError, SpecMismatch
from pipeline.targets.store import Store
from student.config import LossConfig, TrainConfig, VocabularyConfig
from student.data import Batch, TargetReader
from student.events import Finished, Step
from student.losses import distillation_loss
from student.student import Student, restore
from student.train import train

HEADS: dict[str, dict[str, Any]] = {
    "dense": {"kind": "dense", "dtype": "float32"},
    "topk": {"kind": "topk", "k": 7, "betas": [1.0]},
    "topp": {"kind": "topp", "p": 0.8, "k": 9, "betas": [1.0]},
    "threshold": {"kind": "threshold", "threshold": 0.05},
    "sampled": {"kind": "sampled", "draws": 20},
}
WIDTH = 8

Label = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vocabulary")


@pytest.fixture(scope="module")
def store_tokenizer(bpe: Any, folder: Path) -> str:
    return str(bpe.save(folder / "teacher"))


@pytest.fixture(scope="module")
def label(folder: Path, store_tokenizer: str) -> Label:
    """label(head) -> URL of a store of Python's own json package, by a teacher with padded logits."""

    def make(head: str = "threshold") -> str:
        job = LabelJob.model_validate(
            {
                "corpus": {
                    "kind": "text",
                    "urls": [str(Path(json.__file__).parent)],
                    "pattern": "*.py",
                    "unit_bytes": 9000,
                },
                "views": {"kind": "token_windows", "tokenizer": store_tokenizer, "length": 64},
                "teacher": {"kind": "fake", "size": 640},
                "store": {"url": str(folder / head), "heads": {"logits": HEADS[head]}},
            }
        )
        store = prepare(job)
        labeller = Labeller(job)
        for unit in store.pending():  # none, if an earlier test has made the store
            labeller.label(unit)
        labeller.close()
        return store.url

    return make


@pytest.fixture(scope="module")
def students(bpe: Any, folder: Path) -> dict[str, str]:
    """Tokenizers that have all of the store's tokens and cut text as it does, by what else they are."""
    rng = np.random.default_rng(0)
    permuted = bpe.renumbered(rng.permutation(bpe.size).tolist())
    scattered = bpe.renumbered(rng.permutation(bpe.size + 50).tolist())
    return {
        "permuted": bpe.save(folder / "permuted", permuted),
        "wider": bpe.save(folder / "wider", bpe.extended(30)),
        "permuted superset": bpe.save(folder / "superset", bpe.extended(50), scattered),
    }


class Bigram(nn.Module):
    """Logits of the next token by the present one."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, WIDTH, dtype=torch.float64)
        self.head = nn.Linear(WIDTH, size, dtype=torch.float64)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.embedding(tokens)))
        return logits


def gradients(model: Bigram, batch: Batch) -> float:
    """The loss, hard labels mixed in; its gradients are left in the model."""
    loss = distillation_loss(
        LossConfig(hard_weight=0.3),
        batch.pick(model(batch.inputs["tokens"]), "logits"),
        batch.targets["logits"],
        batch.labels("logits"),
    )
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["permuted", "wider", "permuted superset"])
@pytest.mark.parametrize("head", HEADS)
def test_loss_and_gradient_are_those_of_the_stores_tokenizer_with_the_weights_in_another_order(
    label: Label, students: dict[str, str], store_tokenizer: str, head: str, kind: str
) -> None:
    url = label(head)
    vocabulary = VocabularyConfig(tokenizer=students[kind], store_tokenizer=store_tokenizer)
    plain = TargetReader(url, batch_rows=16, seed=3)
    mapped = TargetReader(url, batch_rows=16, seed=3, vocabulary=vocabulary)
    assert mapped.id_map is not None
    ids = torch.from_numpy(mapped.id_map.ids)
    size = mapped.spec.head("logits").size
    assert mapped.spec.vocabulary is not None
    assert size == mapped.spec.vocabulary.size == len(ids) + {"permuted": 0, "wider": 30}.get(kind, 50)
    torch.manual_seed(0)
    ours, theirs = Bigram(size), Bigram(len(ids))
    with torch.no_grad():
        ours.head.bias.fill_(-1e9)  # tokens that the store's tokenizer lacks: here the student knows it too
        ours.embedding.weight[ids] = theirs.embedding.weight
        ours.head.weight[ids], ours.head.bias[ids] = theirs.head.weight, theirs.head.bias
    seen = 0
    for a, b in zip(mapped.epoch(0), plain.epoch(0), strict=True):
        assert a.keys == b.keys
        inside = torch.arange(a.inputs["tokens"].shape[1]) < a.lengths[:, None]
        assert torch.equal(a.inputs["tokens"][inside], ids[b.inputs["tokens"][inside]])
        assert not a.inputs["tokens"][~inside].any()
        for model in (ours, theirs):
            model.zero_grad()
        assert gradients(ours, a) == pytest.approx(gradients(theirs, b), rel=1e-12)
        for name, parameter in theirs.named_parameters():
            moved = ours.get_parameter(name).grad
            assert moved is not None
            torch.testing.assert_close(moved[ids], parameter.grad, rtol=1e-9, atol=1e-12)
            rest = torch.ones(size, dtype=torch.bool).index_fill(0, ids, False)
            assert not moved[rest].any()
        seen += len(a)
    assert seen == plain.rows > 50


def configured(url: str, output: Path, **changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "store": {"url": url},
            "output": str(output),
            "model": {"kind": "small_lm", "layers": 1, "width": 16, "heads": 2},
            "steps": 12,
            "batch_rows": 8,
            "log_every": 1,
            "learning_rate": 1e-2,
            "holdout": 0.2,
            **changes,
        }
    )


@pytest.mark.slow
def test_a_student_is_trained_through_the_map_and_restored(
    label: Label, students: dict[str, str], store_tokenizer: str, tmp_path: Path
) -> None:
    url = label()
    vocabulary = {"tokenizer": students["permuted superset"], "store_tokenizer": store_tokenizer}
    config = configured(url, tmp_path / "run", vocabulary=vocabulary)
    events = list(train(config))
    steps = [event for event in events if isinstance(event, Step)]
    assert steps[-1].loss < steps[0].loss - 0.3
    assert isinstance(events[-1], Finished)
    student = restore(tmp_path / "run" / "checkpoints" / "last", Store.open(url).spec)
    assert isinstance(student, Student)
    assert student.head.size == 651
    reader = TargetReader(url, split="all", vocabulary=config.vocabulary)
    (batch, *_) = reader.epoch(0)
    assert student(batch).shape == (len(batch.row_index), 651)


def test_a_run_goes_on_with_the_same_tokenizer_alone(
    label: Label, students: dict[str, str], store_tokenizer: str, bpe: Any, tmp_path: Path
) -> None:
    url = label()
    vocabulary = {"tokenizer": students["permuted"], "store_tokenizer": store_tokenizer}
    list(train(configured(url, tmp_path / "run", vocabulary=vocabulary)))
    again = {**vocabulary, "tokenizer": str(shutil.copytree(students["permuted"], tmp_path / "copy"))}
    list(train(configured(url, tmp_path / "run", vocabulary=again)))
    other = bpe.save(tmp_path / "other", bpe.renumbered(list(range(bpe.size))[::-1]))
    with pytest.raises(ConfigError, match=r"read with tokenizer '\w+', this one with '\w+'"):
        list(train(configured(url, tmp_path / "run", vocabulary={**vocabulary, "tokenizer": other})))


def test_without_a_declaration_nothing_changes_and_another_tokenizer_is_refused(
    label: Label, students: dict[str, str], store_tokenizer: str, tmp_path: Path
) -> None:
    url = label()
    plain, same = TargetReader(url), TargetReader(url, vocabulary=VocabularyConfig(tokenizer=store_tokenizer))
    assert plain.spec == same.spec == Store.open(url).spec
    assert plain.state_dict() == same.state_dict()
    with pytest.raises(SpecMismatch, match="is not the tokenizer that the store was labelled with"):
        list(train(configured(url, tmp_path / "run", vocabulary={"tokenizer": students["permuted"]})))


def test_other_merges_are_refused_before_the_first_batch_by_the_row(
    label: Label, bpe: Any, store_tokenizer: str, tmp_path: Path
) -> None:
    def other_merges(state: dict[str, Any]) -> None:
        state["model"]["merges"].reverse()

    vocabulary = VocabularyConfig(
        tokenizer=bpe.save(tmp_path / "other", other_merges), store_tokenizer=store_tokenizer
    )
    reader = TargetReader(label(), vocabulary=vocabulary)
    with pytest.raises(
        SpecMismatch, match=r"^\w+\.py: the two tokenizers cut its text differently, token \d+"
    ):
        next(iter(reader))


def test_every_shard_is_compared_once(
    label: Label, students: dict[str, str], store_tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = VocabularyConfig(tokenizer=students["permuted"], store_tokenizer=store_tokenizer)
    reader = TargetReader(label(), split="all", vocabulary=vocabulary)
    found = reader.id_map
    assert found is not None
    compared = []
    check = type(found).check

    def counted(self: Any, rows: Any, shard: str) -> None:
        compared.append(shard)
        check(self, rows, shard)

    monkeypatch.setattr(type(found), "check", counted)
    for epoch in range(2):
        assert sum(map(len, reader.epoch(epoch))) == reader.rows
    assert sorted(compared) == sorted(block.shard.shard for block in reader.blocks)
    assert len(compared) > 2


@pytest.mark.slow
def test_a_loss_of_every_logit_is_refused_for_tokens_that_the_teacher_has_none_of(
    label: Label, students: dict[str, str], store_tokenizer: str, tmp_path: Path
) -> None:
    url = label("dense")
    loss = {"kind": "logit_l2"}
    wider = {"tokenizer": students["wider"], "store_tokenizer": store_tokenizer}
    for squared in ("logit_l2", "annealed_logit_l2"):
        config = configured(url, tmp_path / "a", vocabulary=wider, loss={"kind": squared})
        with pytest.raises(ConfigError, match=f"{squared} .* has none for 30 of the student's tokens"):
            list(train(config))
    permuted = {**wider, "tokenizer": students["permuted"]}
    list(train(configured(url, tmp_path / "b", vocabulary=permuted, loss=loss, learning_rate=1e-4)))


@pytest.mark.slow
def test_a_student_whose_logits_are_padded_is_trained_on_the_others_if_its_tokenizer_is_known(
    label: Label, students: dict[str, str], store_tokenizer: str, tmp_path: Path
) -> None:
    url = label("dense")

    def bigram(size: int) -> dict[str, Any]:
        arguments = {"num_embeddings": 700, "embedding_dim": size}
        return {"kind": "torch", "factory": "torch.nn:Embedding", "arguments": arguments}

    with pytest.raises(
        SpecMismatch, match=r"shape \[\d+, 640\].*has 601 classes.*name that in train\.vocabulary"
    ):
        list(train(configured(url, tmp_path / "a", model=bigram(640))))
    same = {"tokenizer": store_tokenizer}
    *_, last = train(configured(url, tmp_path / "b", model=bigram(640), vocabulary=same))
    plain = [e for e in train(configured(url, tmp_path / "c", model=bigram(601))) if isinstance(e, Finished)]
    assert isinstance(last, Finished)
    assert last.score is not None
    assert plain[0].score is not None
    assert last.score.targets == plain[0].score.targets
    wider = {"tokenizer": students["wider"], "store_tokenizer": store_tokenizer}
    list(train(configured(url, tmp_path / "d", model=bigram(640), vocabulary=wider)))
    with pytest.raises(SpecMismatch, match=r"shape \[\d+, 630\].*has 631 classes"):
        list(train(configured(url, tmp_path / "e", model=bigram(630), vocabulary=wider)))


def test_padding_of_a_students_logits_changes_neither_loss_nor_gradient(
    label: Label, store_tokenizer: str, tmp_path: Path
) -> None:
    url = label("threshold")
    same = {"tokenizer": store_tokenizer}
    arguments = {"num_embeddings": 601, "embedding_dim": 601}
    config = configured(
        url,
        tmp_path,
        vocabulary=same,
        model={"kind": "torch", "factory": "torch.nn:Embedding", "arguments": arguments},
    )
    reader = TargetReader(url, vocabulary=config.vocabulary)
    student, padded = Student(config, reader.spec), Student(config, reader.spec)
    table = torch.randn(601, 640)
    student.model = nn.Embedding.from_pretrained(table[:, :601].clone(), freeze=False)
    padded.model = nn.Embedding.from_pretrained(table.clone(), freeze=False)
    batch = next(iter(reader))
    for one in (student, padded):
        loss = distillation_loss(
            config.loss, one(batch), batch.targets["logits"], batch.labels("logits"), reduction="sum"
        )
        loss.backward()  # type: ignore[no-untyped-call]
    a, b = student.model.weight.grad, padded.model.weight.grad
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    torch.testing.assert_close(b[:, :601], a)
    assert not b[:, 601:].any()


def test_a_fingerprint_and_a_tokenizer_are_not_both_given(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tokenizer_fingerprint and vocabulary"):
        configured("x", tmp_path, tokenizer_fingerprint="f", vocabulary={"tokenizer": "t"})
