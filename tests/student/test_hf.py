"""Students of the transformers library, and its Trainer: the same targets, the same results."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.targets.errors import ConfigError
from student.config import TrainConfig, Transformers
from student.data import Batch, TargetReader
from student.losses import LinearLogits, sparse_cross_entropy
from student.mixing import MixedReader
from student.models import build
from student.student import restore
from student.train import train
from tests.student.runs import LM, configured, same, weights

pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from student.causal_lm import CausalLM
from student.hf import Collator, DistillationTrainer, ReaderState, export

SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
QWEN = {
    "kind": "transformers",
    "config": {"model_type": "qwen3", "num_key_value_heads": 1, "head_dim": 8} | SHAPE,
}
STEPS = 12


def arguments(output: Path, **changes: Any) -> TrainingArguments:
    """What `tests.student.runs.configured` says, in the words of transformers."""
    settings = {
        "output_dir": str(output),
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "save_steps": 4,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
        **changes,
    }
    return TrainingArguments(**settings)


def reader(url: str, **changes: Any) -> TargetReader:
    return TargetReader(url, **{"batch_rows": 6, "holdout": 0.3, "window_shards": 2, **changes})


def ours(url: str, output: Path, **changes: Any) -> TrainConfig:
    return configured(
        url, output, **{"model": QWEN, "steps": STEPS, "schedule": "constant", "warmup_steps": 0, **changes}
    )


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_transformers_trainer_ends_where_ours_does(
    token_store: Any, tmp_path: Path, accumulation: int
) -> None:
    """From the same weights, with the same batches; accumulated, the parts have other numbers of targets."""
    url = token_store()
    torch.manual_seed(0)
    start = build(Transformers.model_validate(QWEN), [None], 23)
    assert isinstance(start, CausalLM)
    start.model.save_pretrained(tmp_path / "start")  # type: ignore[operator]
    model = {"kind": "transformers", "path": str(tmp_path / "start"), "pretrained": True}
    events = list(train(ours(url, tmp_path / "ours", model=model, accumulation=accumulation)))
    trainer = DistillationTrainer(
        AutoModelForCausalLM.from_pretrained(tmp_path / "start"),
        arguments(tmp_path / "theirs", gradient_accumulation_steps=accumulation),
        train_dataset=reader(url, batch_rows=6 // accumulation),
        eval_dataset=reader(url, split="holdout", shuffle=False, batch_rows=100),
    )
    trainer.train()
    expected = weights(tmp_path / "ours")
    assert len(expected) > 5
    for name, theirs in trainer.model.state_dict().items():
        if name in expected:
            torch.testing.assert_close(theirs, expected[name], rtol=1e-3, atol=1e-4)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(events[-1].score.loss, rel=1e-4)  # type: ignore[union-attr]


def test_no_logits_are_made_whole_in_a_step_of_transformers_trainer(
    token_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an evaluation the library has them from the model, as it expects."""
    monkeypatch.setattr(LinearLogits, "make", lambda logits: pytest.fail("logits were made whole"))
    url, model, made = token_store(), small(), []
    model.lm_head.register_forward_hook(lambda _, __, output: made.append((model.training, output.ndim)))
    trainer = DistillationTrainer(
        model,
        arguments(tmp_path, max_steps=3),
        train_dataset=reader(url),
        eval_dataset=reader(url, split="holdout", shuffle=False, batch_rows=100),
    )
    made.clear()  # what was tried of the model
    trainer.train()
    trainer.evaluate()
    assert made == [(True, 0)] * 3 + [(False, 3)]


RANK = """
import os, sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
from student.hf import DistillationTrainer
from tests.student.test_hf import arguments, reader

torch.set_num_threads(1)
start, output, url = sys.argv[1:]
ranks = {"ddp_backend": "gloo"} if "RANK" in os.environ else {}
settings = arguments(Path(output), save_steps=100, **ranks)
train = reader(url, rank=settings.process_index, world_size=settings.world_size)
trainer = DistillationTrainer(AutoModelForCausalLM.from_pretrained(start), settings, train_dataset=train)
trainer.train()
if settings.process_index == 0:
    trainer.accelerator.unwrap_model(trainer.model_wrapped).save_pretrained(output)
"""


@pytest.mark.slow
def test_on_two_ranks_transformers_trainer_ends_where_one_does(token_store: Any, tmp_path: Path) -> None:
    """Each has a part of every global batch. DDP sees the head's weight used, though its layer is not."""
    url = token_store()
    small().save_pretrained(tmp_path / "start")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for size in (1, 2):
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, str(tmp_path / "start"), str(tmp_path / str(size)), url],
                env={
                    **os.environ,
                    **({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"} if size == 2 else {}),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": str(Path(__file__).parents[2]),
                },
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]
        for process in ranks:
            said = process.communicate(timeout=120)[1]
            assert process.returncode == 0, said
    alone, together = (load_file(tmp_path / str(size) / "model.safetensors") for size in (1, 2))
    start = load_file(tmp_path / "start" / "model.safetensors")
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-3, atol=1e-4)
    assert not torch.equal(start["lm_head.weight"], alone["lm_head.weight"])


def small() -> Any:
    torch.manual_seed(0)
    model = build(Transformers.model_validate(QWEN), [None], 23)
    assert isinstance(model, CausalLM)
    return model.model


def keys_of(batches: Iterable[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_transformers_run_goes_on_at_the_same_row(
    token_store: Any, tmp_path: Path, workers: int
) -> None:
    """Of a mixture, with two batches a step; what workers have read ahead is not lost."""
    urls = [token_store(), token_store([8, 5], name="other")]

    def trainer(name: str, **changes: Any) -> DistillationTrainer:
        stream = MixedReader([reader(url, batch_rows=4) for url in urls], [2, 1])
        more = {"gradient_accumulation_steps": 2, "dataloader_num_workers": workers, **changes}
        return DistillationTrainer(small(), arguments(tmp_path / name, **more), train_dataset=stream)

    whole, cut = trainer("whole", dataloader_num_workers=0), trainer("cut", max_steps=8)
    whole.train()
    cut.train()
    resumed = trainer("cut")
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-8"))
    assert same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    (tmp_path / "cut" / "checkpoint-8" / "reader.json").unlink()
    with pytest.raises(ConfigError, match=r"there is no .*checkpoint-8/reader\.json"):
        trainer("cut").train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-8"))


class PlainTrainer(Trainer):  # type: ignore[misc]
    """The library's own, with a loss of sparse targets; remembers which rows it has seen."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        batch = inputs.pop("batch")
        self.seen = [*getattr(self, "seen", []), *batch.keys]
        logits = batch.pick(model(**inputs).logits, "logits")
        return sparse_cross_entropy(logits, batch.targets["logits"])


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "skips"), [(0, True), (2, False)])
def test_the_librarys_own_trainer_reads_every_row_in_its_order_and_resumes_at_the_next(
    token_store: Any, tmp_path: Path, workers: int, skips: bool
) -> None:
    """By reading again what came before, as it does by itself, or by the reader's state."""
    url = token_store()

    def trained(resume: str | None, **changes: Any) -> list[str]:
        r = reader(url)
        settings = {"per_device_train_batch_size": 1, "dataloader_num_workers": workers, **changes}
        trainer = PlainTrainer(
            small(),
            arguments(tmp_path, ignore_data_skip=not skips, **settings),
            train_dataset=r,
            data_collator=Collator(),
            callbacks=[] if skips else [ReaderState(r)],
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer.seen

    wanted = keys_of(itertools.islice(reader(url), STEPS))
    assert trained(None, max_steps=8) == wanted[: 8 * 6]
    assert trained(str(tmp_path / "checkpoint-4")) == wanted[4 * 6 :]
    if not skips:
        with pytest.raises(ConfigError, match="per_device_train_batch_size must be 1"):
            trained(None, per_device_train_batch_size=2, dataloader_num_workers=0)


def test_a_transformers_student_is_a_directory_of_transformers(token_store: Any, tmp_path: Path) -> None:
    url = token_store()
    list(train(ours(url, tmp_path / "run")))
    checkpoint = tmp_path / "run" / "checkpoints" / "best"
    export(checkpoint, tmp_path / "exported")
    (batch,) = reader(url, split="holdout", batch_rows=100).epoch(0)
    student = restore(checkpoint, batch.spec)
    with torch.no_grad():
        expected = student(batch)
        for directory in (checkpoint, tmp_path / "exported"):
            model = AutoModelForCausalLM.from_pretrained(directory)
            assert type(model).__name__ == "Qwen3ForCausalLM"
            logits = batch.pick(model(input_ids=batch.inputs["tokens"]).logits, "logits")
            torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("tied", [True, False])
def test_a_small_language_model_is_exported_as_the_llama_that_it_is(
    token_store: Any, tmp_path: Path, tied: bool
) -> None:
    url = token_store()
    model = {**LM, "layers": 2, "tie_embeddings": tied, "rope_theta": 500.0}
    list(train(ours(url, tmp_path / "run", model=model)))
    export(tmp_path / "run" / "checkpoints" / "last", tmp_path / "exported")
    (batch,) = reader(url, split="holdout", batch_rows=100).epoch(0)
    student = restore(tmp_path / "run" / "checkpoints" / "last", batch.spec)
    llama = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    with torch.no_grad():
        logits = batch.pick(llama(input_ids=batch.inputs["tokens"]).logits, "logits")
        torch.testing.assert_close(logits, student(batch), rtol=1e-4, atol=1e-5)
    model["mlp"] = "gelu"
    list(train(ours(url, tmp_path / "gelu", model=model)))
    with pytest.raises(ConfigError, match="no counterpart"):
        export(tmp_path / "gelu" / "checkpoints" / "last", tmp_path / "refused")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"path": "/no/such/model"}, "no directory with a config.json"),
        ({"config": {"model_type": "no_such_type"}}, "transformers cannot make it: .*no_such_type"),
    ],
)
def test_what_transformers_cannot_make_is_refused_in_words(model: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(Transformers(**model), [None], 23)


def test_a_model_needs_one_origin() -> None:
    for model in (
        {},
        {"config": {"hidden_size": 8}},
        {"config": {"model_type": "llama"}, "pretrained": True},
    ):
        with pytest.raises(ValueError, match="give path"):
            Transformers(**model)
