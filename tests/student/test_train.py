"""The loop: it learns, repeats itself to the bit, goes on where it was killed, and refuses what cannot be."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.targets.errors import ConfigError, CorruptShard, DecantError, SpecMismatch, UserError
from student.config import TrainConfig
from student.data import TargetReader
from student.events import Checked, Evaluated, Event, Finished, Started, Step
from student.optimizer import learning_rate
from student.student import restore
from student.train import train

LM = {"kind": "small_lm", "layers": 1, "width": 16, "heads": 2}


def configured(url: str, output: Path, **changes: Any) -> TrainConfig:
    settings = {
        "store": {"url": url},
        "output": str(output),
        "model": LM,
        "steps": 12,
        "batch_rows": 6,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "window_shards": 2,
        "holdout": 0.3,
        "evaluate_every": 5,
        "checkpoint_every": 4,
        "log_every": 3,
        "device": "cpu",
        **changes,
    }
    return TrainConfig.model_validate(settings)


def weights(output: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(output / "checkpoints" / name / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


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
    config = configured(
        url, tmp_path / "run", steps=80, batch_rows=24, evaluate_every=80, holdout=0.2, learning_rate=5e-2
    )
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
        image_store([60] * 3), tmp_path / "run", model=model, loss=loss, steps=80, batch_rows=30, holdout=0.1
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
        steps=80,
        batch_rows=30,
        holdout=0.1,
    )
    events = list(train(config))
    first, *_, last = [e for e in events if isinstance(e, Step)]
    assert last.loss < 0.3 * first.loss
    scores = [e.score for e in events if isinstance(e, Evaluated)]
    assert scores
    assert all(score.accuracy is None and score.hard_loss is None for score in scores)


def test_hard_labels_are_no_use_to_a_head_of_embeddings(image_store: Any, tmp_path: Path) -> None:
    url = image_store([20] * 3, codec="embedding")
    config = configured(
        url, tmp_path / "run", model={"kind": "mlp", "hidden": [8]}, loss={"hard_weight": 0.5}
    )
    with pytest.raises(ConfigError, match="a head of logits"):
        list(train(config))


def test_an_evaluation_is_the_mean_over_all_held_out_targets(token_store: Any, tmp_path: Path) -> None:
    url = token_store()
    config = configured(url, tmp_path / "run")
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


def test_a_run_repeats_itself_to_the_bit(token_store: Any, tmp_path: Path) -> None:
    url = token_store()
    for name in ("a", "b"):
        torch.manual_seed(hash(name))  # what the process did before does not matter
        list(train(configured(url, tmp_path / name)))
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    list(train(configured(url, tmp_path / "c", seed=1)))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


@pytest.mark.parametrize("events", [2, 4, 6])
def test_interrupted_and_resumed_it_ends_with_the_same_weights(
    image_store: Any, tmp_path: Path, events: int
) -> None:
    """With dropout, so that random draws are resumed too."""
    url = image_store()
    settings: Any = {"model": {"kind": "mlp", "hidden": [16], "dropout": 0.5}, "steps": 15, "batch_rows": 7}
    whole = list(train(configured(url, tmp_path / "whole", **settings)))
    config = configured(url, tmp_path / "cut", **settings)
    for _ in range(3):
        run = train(config)
        list(itertools.islice(run, events))
        run.close()  # type: ignore[attr-defined]
    rest = list(train(config))
    assert rest[0].step < 15 or events == 6
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert same(weights(tmp_path / "whole", "best"), weights(tmp_path / "cut", "best"))
    told = {
        name: [(x["event"], x["step"], x.get("loss"), x.get("score")) for x in lines(tmp_path / name)]
        for name in ("whole", "cut")
    }
    assert [x for x in told["cut"] if x[0] in ("step", "evaluated")] == [
        x for x in told["whole"] if x[0] in ("step", "evaluated")
    ], "nothing is told twice"
    assert isinstance(whole[-1], Finished)
    assert isinstance(rest[-1], Finished)
    assert rest[-1].score == whole[-1].score


def test_a_finished_run_has_nothing_left_to_do(token_store: Any, tmp_path: Path) -> None:
    config = configured(token_store(), tmp_path / "run")
    first = list(train(config))
    again = list(train(config))
    assert [type(e) for e in again] == [Started, Finished]
    assert again[-1] == first[-1]


def test_accumulation_changes_memory_and_not_the_result(token_store: Any, tmp_path: Path) -> None:
    url = token_store()
    for parts in (1, 3):
        list(train(configured(url, tmp_path / str(parts), accumulation=parts)))
    a, b = weights(tmp_path / "1"), weights(tmp_path / "3")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_other_settings_is_not_continued(token_store: Any, tmp_path: Path) -> None:
    url = token_store()
    list(train(configured(url, tmp_path / "run")))
    for changes, word in (({"learning_rate": 0.5}, "learning_rate 0.01"), ({"steps": 20}, "steps 12")):
        with pytest.raises(ConfigError, match=f"{word}.*set it back, or choose another output"):
            list(train(configured(url, tmp_path / "run", **changes)))
    list(train(configured(url, tmp_path / "run", log_every=1, checkpoint_every=1)))
    other = token_store([9, 12, 6], name="other")
    with pytest.raises(ConfigError, match="labelled further"):
        list(train(configured(other, tmp_path / "run")))


def test_a_store_that_moved_is_the_same_store(token_store: Any, tmp_path: Path) -> None:
    url = token_store()
    run = train(configured(url, tmp_path / "run"))
    list(itertools.islice(run, 5))
    run.close()  # type: ignore[attr-defined]
    moved = Path(url).rename(tmp_path / "moved")
    list(train(configured(str(moved), tmp_path / "run")))
    list(train(configured(str(moved), tmp_path / "whole")))
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_a_broken_checkpoint_is_named(token_store: Any, tmp_path: Path) -> None:
    config = configured(token_store(), tmp_path / "run")
    list(train(config))
    state = tmp_path / "run" / "checkpoints" / "step-00000012" / "state.pt"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(DecantError, match=r"step-00000012 cannot be read.*remove it"):
        list(train(config))


def test_a_checkpoint_is_not_unpickled(token_store: Any, tmp_path: Path) -> None:
    config = configured(token_store(), tmp_path / "run")
    list(train(config))
    mark = tmp_path / "executed"
    torch.save({"version": 1, "step": Touch(mark)}, tmp_path / "run/checkpoints/step-00000012/state.pt")
    with pytest.raises(DecantError, match="cannot be read"):
        list(train(config))
    assert not mark.exists()


class Touch:
    """Unpickled, it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_what_a_killed_save_left_is_swept_away(token_store: Any, tmp_path: Path) -> None:
    config = configured(token_store(), tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    (folder / ".step-00000004.123").mkdir(parents=True)
    (folder / ".last").symlink_to("nowhere")
    (folder / "step-00000004").mkdir()  # renamed, but not linked yet
    list(train(config))
    assert not list(folder.glob(".*"))
    assert not (folder / "step-00000004").exists()
    list(train(configured(config.store.url, tmp_path / "clean")))  # type: ignore[union-attr]
    assert same(weights(tmp_path / "run"), weights(tmp_path / "clean"))


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


def test_any_torch_module_can_be_the_student(token_store: Any, tmp_path: Path) -> None:
    bigram: Any = {
        "kind": "torch",
        "factory": "torch.nn:Embedding",
        "arguments": {"num_embeddings": 23, "embedding_dim": 23},
    }
    first, *_, last = [
        e
        for e in train(configured(token_store(), tmp_path / "run", model=bigram, steps=60))
        if isinstance(e, Step)
    ]
    assert last.loss < first.loss


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
        ({"loss": {"kind": "topk_kl"}}, ConfigError, "use sparse_cross_entropy"),
        ({"learning_rate": 1e30, "clip_norm": None, "warmup_steps": 0}, DecantError, "not finite at step"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_words(
    token_store: Any, tmp_path: Path, changes: Any, error: Any, words: str
) -> None:
    with pytest.raises(error, match=words):
        list(train(configured(token_store(), tmp_path / "run", **changes)))


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValueError, match="learnin_rate"):
        TrainConfig.model_validate({"output": "x", "model": LM, "steps": 1, "learnin_rate": 1})


def test_every_key_is_documented() -> None:
    schema = TrainConfig.model_json_schema()
    for name, definition in {"TrainConfig": schema, **schema["$defs"]}.items():
        for key, field in definition["properties"].items():
            assert field.get("description") or key == "kind", f"{name}.{key}"


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


def test_without_a_holdout_nothing_is_evaluated(token_store: Any, tmp_path: Path) -> None:
    events: list[Event] = list(train(configured(token_store(), tmp_path / "run", holdout=0)))
    assert not any(isinstance(e, Evaluated) for e in events)
    assert not (tmp_path / "run/checkpoints/best").exists()


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


def test_tensorboard_gets_the_curves_or_says_what_it_needs(
    token_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(token_store(), tmp_path / "run", tensorboard=True)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(ConfigError, match=r"decant-kd\[tensorboard\]"):
            list(train(config))
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    list(train(config))
    board = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [point.step for point in board.Scalars("step/loss")] == [3, 6, 9, 12]
    assert [point.step for point in board.Scalars("evaluated/hard_loss")] == [5, 10, 12]
