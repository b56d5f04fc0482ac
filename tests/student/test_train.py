"""The loop: students of every kind learn, and what it tells of that is true."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.targets.errors import DecantError
from student.data import TargetReader
from student.events import Checked, Evaluated, Event, Finished, Started, Step
from student.optimizer import learning_rate
from student.student import restore
from student.trackers import MAKERS
from student.train import train
from tests.student.runs import configured, lines, same, weights

TO_THE_END: dict[str, Any] = {"steps": 80, "evaluate_every": 80, "checkpoint_every": 80}
"""Of a run that is judged by where it ends."""


def test_a_run_tells_what_it_does(token_store: Any, tmp_path: Path) -> None:
    events = list(train(configured(token_store(), tmp_path / "run")))
    assert [(type(e), e.step) for e in events] == [
        (Started, 0),
        (Checked, 0),
        (Step, 3),
        (Evaluated, 5),
        (Step, 6),
        (Step, 9),
        (Evaluated, 10),
        (Step, 12),
        (Evaluated, 12),
        (Finished, 12),
    ]
    started, finished = events[0], events[-1]
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    assert started.rows + started.held_out == 26
    assert (finished.checkpoint / "model.safetensors").exists()
    told = lines(tmp_path / "run")
    assert [line["event"] for line in told] == [type(e).__name__.lower() for e in events]
    assert told[2]["loss"] == events[2].loss  # type: ignore[union-attr]


@pytest.mark.parametrize("codec", ["dense", "topk", "topp", "threshold", "sampled"])
def test_a_student_of_tokens_comes_near_its_teacher(token_store: Any, tmp_path: Path, codec: str) -> None:
    url = token_store([40] * 4, codec=codec, vocabulary=12)
    config = configured(url, tmp_path / "run", batch_rows=24, holdout=0.2, learning_rate=5e-2, **TO_THE_END)
    first, *_, last = [e for e in train(config) if isinstance(e, Step)]
    floor = teachers_entropy(url) if codec in ("threshold", "sampled") else 0.0
    assert last.loss - floor < 0.25 * (first.loss - floor)


def teachers_entropy(url: str) -> float:
    """The least sparse cross-entropy of a student that sees one token: H of the mean p̂ by token."""
    (batch,) = TargetReader(url, batch_rows=160, split="all").epoch(0)
    targets: Any = batch.targets["logits"]
    seen = batch.pick(batch.inputs["tokens"][..., None], "logits")[:, 0]
    p = torch.zeros(12, 12).index_put((seen[targets.rows], targets.ids), targets.weights, accumulate=True)
    share = p.sum(1) / p.sum()
    p = p / p.sum(1, keepdim=True)
    return float((share * -torch.special.xlogy(p, p).sum(1)).sum())


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        ({"kind": "mlp", "hidden": [32]}, {"kind": "tempered_kl", "temperature": 2, "hard_weight": 0.5}),
        ({"kind": "shallow_mimic", "hidden": 64, "bottleneck": 16}, {"kind": "logit_l2"}),
        ({"kind": "small_cnn", "channels": [8], "hidden": 32}, {"kind": "hard"}),
    ],
)
def test_a_student_of_images_learns(image_store: Any, tmp_path: Path, model: Any, loss: Any) -> None:
    config = configured(
        image_store([60] * 3),
        tmp_path / "run",
        model=model,
        loss=loss,
        batch_rows=30,
        holdout=0.1,
        **TO_THE_END,
    )
    first, *_, last = [e for e in train(config) if isinstance(e, Step)]
    assert last.loss < 0.6 * first.loss


@pytest.mark.parametrize("loss", ["auto", "feature_mse"])
def test_a_student_of_embeddings_learns_them_and_no_labels(
    image_store: Any, tmp_path: Path, loss: Any
) -> None:
    config = configured(
        image_store([60] * 3, codec="embedding"),
        tmp_path / "run",
        model={"kind": "mlp", "hidden": [32]},
        loss={"kind": loss},
        batch_rows=30,
        holdout=0.1,
        **TO_THE_END,
    )
    events = list(train(config))
    first, *_, last = [e for e in events if isinstance(e, Step)]
    assert last.loss < 0.3 * first.loss
    scores = [e.score for e in events if isinstance(e, Evaluated)]
    assert scores
    assert all(score.accuracy is None and score.hard_loss is None for score in scores)


def test_any_torch_module_can_be_the_student(token_store: Any, tmp_path: Path) -> None:
    bigram: Any = {
        "kind": "torch",
        "factory": "torch.nn:Embedding",
        "arguments": {"num_embeddings": 23, "embedding_dim": 23},
    }
    config = configured(token_store(), tmp_path / "run", model=bigram, **TO_THE_END)
    first, *_, last = [e for e in train(config) if isinstance(e, Step)]
    assert last.loss < first.loss


@pytest.mark.parametrize("average", [None, 0.9])
def test_an_evaluation_is_the_mean_over_all_held_out_targets(
    token_store: Any, tmp_path: Path, average: float | None
) -> None:
    url = token_store()
    config = configured(url, tmp_path / "run", average_decay=average)
    *_, finished = train(config)
    assert isinstance(finished, Finished)
    reader = TargetReader(url, split="holdout", holdout=0.3, batch_rows=100)
    (batch,) = reader.epoch(0)
    student = restore(tmp_path / "run" / "checkpoints" / "last", reader.spec)
    log_q = student(batch).double().log_softmax(-1)
    labels, targets = batch.labels("logits"), batch.targets["logits"]
    assert labels is not None
    assert finished.score is not None
    hard = -log_q.gather(-1, labels[:, None]).mean()
    entries: Any = targets
    soft = -(log_q[entries.rows, entries.ids] * entries.weights).sum() / len(targets)
    assert finished.score.targets == len(targets)
    assert finished.score.hard_loss == pytest.approx(hard.item(), rel=1e-5)
    assert finished.score.loss == pytest.approx(soft.item(), rel=1e-5)
    assert finished.score.accuracy == pytest.approx(float((log_q.argmax(-1) == labels).double().mean()))


def test_best_is_the_checkpoint_of_the_best_evaluation(token_store: Any, tmp_path: Path) -> None:
    config = configured(token_store(), tmp_path / "run", learning_rate=0.05, steps=30, evaluate_every=3)
    evaluated = [e for e in train(config) if isinstance(e, Evaluated)]
    best = min(evaluated, key=lambda e: e.score.value)
    assert [e.best for e in evaluated] == [
        e.score.value < min([math.inf, *(x.score.value for x in evaluated[:i])])
        for i, e in enumerate(evaluated)
    ]
    folder = tmp_path / "run" / "checkpoints"
    assert (folder / "best").resolve().name == f"step-{best.step:08d}"
    assert (folder / "last").resolve().name == "step-00000030"
    assert {p.name for p in folder.iterdir()} == {"best", "last", (folder / "best").resolve().name} | {
        "step-00000030"
    }


def test_without_a_holdout_nothing_is_evaluated(token_store: Any, tmp_path: Path) -> None:
    events: list[Event] = list(train(configured(token_store(), tmp_path / "run", holdout=0)))
    assert not any(isinstance(e, Evaluated) for e in events)
    assert not (tmp_path / "run/checkpoints/best").exists()


def test_accumulation_changes_memory_and_not_the_result(token_store: Any, tmp_path: Path) -> None:
    url = token_store()
    for parts in (1, 3):
        list(train(configured(url, tmp_path / str(parts), accumulation=parts)))
    a, b = weights(tmp_path / "1"), weights(tmp_path / "3")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


def test_bfloat16_runs_and_keeps_float32_weights(token_store: Any, tmp_path: Path) -> None:
    list(train(configured(token_store(), tmp_path / "run", precision="bfloat16")))
    assert {w.dtype for w in weights(tmp_path / "run").values()} == {torch.float32}


def test_the_learning_rate_warms_up_and_falls_to_its_end() -> None:
    config = configured(
        "x", Path("y"), steps=100, warmup_steps=10, learning_rate=2.0, final_learning_rate=0.1
    )
    rates = [learning_rate(config, step) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.2 * i for i in range(1, 11)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.2)
    assert rates[54] == pytest.approx(1.1)
    constant = config.model_copy(update={"schedule": "constant"})
    assert {learning_rate(constant, step) for step in range(10, 101)} == {2.0}
    stable = config.model_copy(update={"schedule": "wsd", "decay_share": 0.25})
    rates = [learning_rate(stable, step) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.2 * i for i in range(1, 11)])
    assert set(rates[10:75]) == {2.0}
    assert rates[75:] == sorted(rates[75:], reverse=True)
    assert rates[75] == pytest.approx(0.2 + 1.8 * (1 - math.sqrt(1 / 25)))
    assert rates[-1] == pytest.approx(0.2)


def test_an_average_of_the_weights_is_kept_beside_them_and_changes_nothing(
    token_store: Any, tmp_path: Path
) -> None:
    url = token_store()
    list(train(configured(url, tmp_path / "plain")))
    list(train(configured(url, tmp_path / "averaged", average_decay=0.9)))
    plain, averaged = weights(tmp_path / "plain"), weights(tmp_path / "averaged")
    (file,) = (tmp_path / "averaged/checkpoints/last/training").glob("*.safetensors")
    trained = {
        name.removeprefix("model."): w for name, w in load_file(file).items() if name.startswith("model.")
    }
    assert same(plain, trained)
    assert not same(plain, averaged)


def test_operations_are_counted_and_compared_with_what_the_device_can_do(
    image_store: Any, tmp_path: Path
) -> None:
    """Of a linear student: a multiplication and an addition for each weight, three times."""
    model: Any = {"kind": "shallow_mimic", "hidden": 16, "bottleneck": 8}
    config = configured(image_store(), tmp_path / "run", model=model)
    for step in [event for event in train(config) if isinstance(event, Step)]:
        expected = 3 * 2 * (64 * 8 + 8 * 16 + 16 * 4)
        assert step.flops_per_second / step.targets_per_second == pytest.approx(expected)
        assert 0 < step.utilisation < 2


def test_tensorboard_gets_the_curves(token_store: Any, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    list(train(configured(token_store(), tmp_path / "run", trackers=["tensorboard"])))
    board = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [point.step for point in board.Scalars("step/loss")] == [3, 6, 9, 12]
    assert [point.step for point in board.Scalars("evaluated/hard_loss")] == [5, 10, 12]


@pytest.mark.parametrize(("ending", "failed"), [("finished", False), ("stopped", True), ("diverged", True)])
def test_trackers_are_told_how_a_run_ended(
    token_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, failed: bool
) -> None:
    told: list[bool] = []

    class Recorder:
        def tell(self, numbers: Any, step: int) -> None:
            pass

        def close(self, failed: bool) -> None:
            told.append(failed)

    monkeypatch.setitem(MAKERS, "tensorboard", lambda *_: Recorder())
    diverging = {"learning_rate": 1e30, "clip_norm": None, "warmup_steps": 0} if ending == "diverged" else {}
    config = configured(token_store(), tmp_path / "run", trackers=["tensorboard"], **diverging)
    with contextlib.suppress(DecantError), contextlib.closing(train(config)) as events:  # type: ignore[type-var]
        for event in events:
            if ending == "stopped" and isinstance(event, Step):
                break
    assert told == [failed]
