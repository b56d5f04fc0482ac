"""`decant sweep`: a grid of students from one store, each the one that would have been trained alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.sweep import candidates, figure, passes
from pipeline.targets.errors import ConfigError
from student.config import TrainConfig
from student.train import train
from tests.student.runs import LM, configured, same, weights

GRID = {"model.width": [8, 16], "loss": [{"kind": "hard"}, {"kind": "auto"}]}


def files(tmp_path: Path, url: str, grid: Any, **changes: Any) -> tuple[Path, Path]:
    """A job file with a train section alone, and a grid."""
    job, table = tmp_path / "job.yaml", tmp_path / "grid.yaml"
    settings = configured(url, tmp_path / "run", **changes).model_dump(mode="json")
    job.write_text(yaml.safe_dump({"train": settings}))
    table.write_text(yaml.safe_dump(grid, sort_keys=False))
    return job, table


@pytest.mark.slow
def test_every_student_is_the_one_that_would_be_trained_alone(
    token_store: Any, decant: Any, tmp_path: Path
) -> None:
    """To the bit. One of them is dead when the sweep begins, another has been trained for some steps."""
    url = token_store()
    job, grid = files(tmp_path, url, GRID, steps=8, evaluate_every=8)
    students = candidates(job, grid)
    assert [s.name for s in students] == [f"width={w},loss={k}" for w in (8, 16) for k in ("hard", "auto")]
    ahead = train(students[1].config)
    while next(ahead).step < 6:
        pass
    ahead.close()  # type: ignore[attr-defined]
    shown = decant(tmp_path, "sweep", str(job), str(grid))
    assert shown.exit_code == 0, shown.output
    results = json.loads((tmp_path / "run" / "sweep.json").read_text())
    assert [r["name"] for r in results] == [s.name for s in students]
    assert "width=8,loss=auto" in shown.output
    assert "<svg" in (tmp_path / "run" / "sweep.svg").read_text()
    for student, result in zip(students, results, strict=True):
        alone = student.config.model_copy(update={"output": str(tmp_path / "alone" / student.name)})
        *_, finished = train(alone)
        assert same(weights(Path(alone.output)), weights(Path(student.config.output)))
        assert result["hard_loss"] == finished.score.hard_loss  # type: ignore[union-attr]
        assert result["loss"] == finished.score.loss  # type: ignore[union-attr]
        assert result["settings"] == student.settings
    before = written(tmp_path / "run")
    grid.write_text(yaml.safe_dump({**GRID, "model.width": [8, 16, 24]}, sort_keys=False))
    assert decant(tmp_path, "sweep", str(job), str(grid)).exit_code == 0
    assert before.items() <= written(tmp_path / "run").items()
    assert len(json.loads((tmp_path / "run" / "sweep.json").read_text())) == 6


def written(output: Path) -> dict[Path, int]:
    """When each file of weights was written."""
    return {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}


def test_students_that_read_the_store_differently_have_passes_of_their_own(tmp_path: Path) -> None:
    job, grid = files(tmp_path, "store", {"seed": [0, 1], "model.width": [8, 16, 24], "steps": [5, 7]})
    groups = passes(candidates(job, grid), None)
    assert [len(group) for group in groups] == [6, 6]
    assert [{s.config.seed for s in group} for group in groups] == [{0}, {1}]
    assert [len(group) for group in passes(candidates(job, grid), 4)] == [4, 2, 4, 2]


def test_a_plot_has_a_line_for_each_way_to_train_a_model_of_any_size(tmp_path: Path) -> None:
    from jobs.sweep import Result

    results = [
        Result(f"{w}{k}", {"model.width": w, "loss": {"kind": k}}, w * w, 1.0 / w, 2.0 / w, 0.5)
        for w in (16, 8)
        for k in ("hard", "auto")
    ]
    (axis,) = figure(results).axes
    assert [line.get_label() for line in axis.lines] == ["loss=hard", "loss=auto"]
    assert [list(line.get_xdata()) for line in axis.lines] == [[64, 256]] * 2
    assert [list(line.get_ydata()) for line in axis.lines] == [[0.25, 0.125]] * 2


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ([1], "must map keys of train to lists"),
        ({"model.width": 8}, r"grid.yaml: model.width: must be a list"),
        ({"output": ["a"]}, "`output` holds them"),
        ({"model.wdith": [8]}, r"grid.yaml, student wdith=8: .*model.*wdith"),
        ({"model.width": [8, 8]}, "two students would be called width=8"),
        ({"seed": list(range(40)), "steps": list(range(1, 41))}, "makes 1,600 students"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_in_words(tmp_path: Path, grid: Any, words: str) -> None:
    job, table = files(tmp_path, "store", grid, model=LM)
    with pytest.raises(ConfigError, match=words):
        candidates(job, table)


def test_a_student_that_diverges_does_not_keep_the_others_from_their_end(
    token_store: Any, decant: Any, tmp_path: Path
) -> None:
    grid = {"learning_rate": [1e-2, 1e30]}
    job, table = files(tmp_path, token_store(), grid, clip_norm=None, warmup_steps=0)
    shown = decant(tmp_path, "sweep", str(job), str(table))
    assert shown.exit_code == 0, shown.output
    assert "learning_rate=1e+30 was given up: the gradient is not finite at step" in shown.stdout
    good, bad = json.loads((tmp_path / "run" / "sweep.json").read_text())
    assert good["failed"] is None
    assert good["hard_loss"] > 0
    assert "not finite at step" in bad["failed"]
    assert bad["hard_loss"] is None


def test_students_of_one_pass_share_how_the_store_is_read() -> None:
    from student.train import train_together

    configs: list[TrainConfig] = [configured("store", Path("x"), seed=seed) for seed in (0, 1)]
    with pytest.raises(ConfigError, match="must have the same seed"):
        list(train_together(configs))
