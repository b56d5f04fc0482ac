"""What cannot be trained is refused in words, before the first step."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.targets.errors import ConfigError, CorruptShard, DecantError, SpecMismatch, UserError
from student.config import TrainConfig
from student.events import Checked, Step
from student.train import train
from tests.student.runs import LM, configured


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"store": None}, ConfigError, "name the store"),
        ({"store": {"url": "/no/such/store"}}, UserError, "no store"),
        ({"head": "logit"}, SpecMismatch, "no head 'logit'"),
        ({"input": "token"}, ConfigError, 'did you mean "tokens"'),
        ({"accumulation": 4}, ConfigError, "no multiple of accumulation 4"),
        ({"device": "nonsense"}, ConfigError, "device 'nonsense' cannot be used"),
        ({"model": {"kind": "mlp"}}, ConfigError, "fixed shape"),
        (
            {"model": {"kind": "torch", "factory": "torch.nn:Linear", "arguments": {"in": 3}}},
            ConfigError,
            "model.arguments do not fit torch.nn:Linear: ",
        ),
        ({"loss": {"kind": "topk_kl"}}, ConfigError, "use sparse_cross_entropy"),
        ({"loss": {"final_temperature": 3}}, ConfigError, "loss.final_temperature must be 1 .*, not 3"),
        ({"learning_rate": 1e30, "clip_norm": None, "warmup_steps": 0}, DecantError, "not finite at step"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_words(
    token_store: Any, tmp_path: Path, changes: Any, error: Any, words: str
) -> None:
    with pytest.raises(error, match=words):
        list(train(configured(token_store(), tmp_path / "run", **changes)))


def test_hard_labels_are_no_use_to_a_head_of_embeddings(image_store: Any, tmp_path: Path) -> None:
    url = image_store([20] * 3, codec="embedding")
    config = configured(
        url, tmp_path / "run", model={"kind": "mlp", "hidden": [8]}, loss={"hard_weight": 0.5}
    )
    with pytest.raises(ConfigError, match="a head of logits"):
        list(train(config))


def test_another_vocabulary_or_tokenizer_is_refused(token_store: Any, tmp_path: Path) -> None:
    url = token_store()
    wrong: Any = {
        "kind": "torch",
        "factory": "torch.nn:Embedding",
        "arguments": {"num_embeddings": 23, "embedding_dim": 22},
    }
    with pytest.raises(SpecMismatch, match=r"shape \[\d+, 22\].*logits has 23 classes"):
        list(train(configured(url, tmp_path / "a", model=wrong)))
    with pytest.raises(SpecMismatch, match=r"tokenizer_fingerprint is tokenizer-b.*tokenizer-a"):
        list(train(configured(url, tmp_path / "b", tokenizer_fingerprint="tokenizer-b")))
    list(train(configured(url, tmp_path / "c", tokenizer_fingerprint="tokenizer-a")))


def test_a_store_whose_targets_stand_one_token_off_is_refused_before_the_first_step(
    tmp_path: Path, shifted_store: Any
) -> None:
    for shift, refused in ((0, None), (1, "before"), (-1, "after")):
        url = shifted_store(shift)
        config = configured(url, tmp_path / f"run{shift}", steps=1, warmup_steps=0)
        if refused is None:
            (checked,) = [event for event in train(config) if isinstance(event, Checked)]
            assert checked.own is not None
            assert checked.before is not None
            assert checked.own > checked.before + 1
        else:
            with pytest.raises(CorruptShard, match=f"one position off: the tokens {refused} the ones"):
                list(train(config))
            assert not (tmp_path / f"run{shift}" / "checkpoints" / "last").exists()
            unchecked = config.model_copy(update={"check_rows": 0})
            assert not any(isinstance(event, Checked) for event in train(unchecked))


def test_a_damaged_shard_is_refused_before_the_first_step(token_store: Any, tmp_path: Path) -> None:
    url = token_store((9, 12))
    for path in Path(url).rglob("*.parquet"):
        if "shards" in path.parts:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
    with pytest.raises(CorruptShard, match="not the bytes that were committed"):
        next(e for e in train(configured(url, tmp_path / "run")) if isinstance(e, Checked | Step))


@pytest.mark.parametrize(
    "wrong", [{"learnin_rate": 1}, {"betas": [0.9, 1.0]}], ids=lambda wrong: next(iter(wrong))
)
def test_a_key_that_is_unknown_or_out_of_its_range_is_refused_by_its_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainConfig.model_validate({"output": "x", "model": LM, "steps": 1, **wrong})


def test_every_key_is_documented() -> None:
    schema = TrainConfig.model_json_schema()
    for name, definition in {"TrainConfig": schema, **schema["$defs"]}.items():
        for key, field in definition["properties"].items():
            assert field.get("description") or key == "kind", f"{name}.{key}"


def test_labels_that_are_no_classes_are_refused_before_the_first_step(
    image_store: Any, tmp_path: Path
) -> None:
    """As of a corpus that counts its classes from 1."""
    config = configured(
        image_store(first_label=1), tmp_path / "run", model={"kind": "mlp"}, loss={"kind": "tempered_kl"}
    )
    with pytest.raises(CorruptShard, match=r"has the label 4, and the head logits has the classes 0 to 3"):
        next(e for e in train(config) if isinstance(e, Checked | Step))


def test_two_runs_do_not_train_into_one_directory(
    token_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("student.checkpoint.LEAVING_SECONDS", 0.2)
    config = configured(token_store(), tmp_path / "run")
    with contextlib.closing(train(config)) as events:  # type: ignore[type-var]
        next(events)
        with pytest.raises(ConfigError, match=rf"another run .*run \(process {os.getpid()} on .+\)"):
            next(train(config))
    assert len(list(train(config))) > 3
