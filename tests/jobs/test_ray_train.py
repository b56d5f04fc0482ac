"""Training by Ray Train: it outlives its workers, and says what only a person can mend."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import pytest
import torch

import jobs.ray_train
from jobs.ray_train import train_on_ray
from pipeline.targets.errors import ConfigError
from student.events import Finished, Started, Step
from student.train import train
from tests.student.runs import configured, weights

pytest.importorskip("ray.train.torch")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_workers_that_die_are_started_again_and_training_goes_on(token_store: Any, tmp_path: Path) -> None:
    """One of two is killed: both are started again, from the last checkpoint, and end as one alone does."""
    config = configured(
        token_store(),
        tmp_path / "ray",
        model={
            "kind": "torch",
            "factory": "tests.student.dying:Dying",
            "arguments": {"classes": 23, "calls": 8, "mark": str(tmp_path / "killed")},
        },
        batch_rows=12,
        holdout=0,
        steps=8,
        checkpoint_every=2,
        log_every=1,
    )
    with pytest.raises(ConfigError, match="Ray has 4 CPUs, and each worker needs one"):
        list(train_on_ray(config, 5))
    events = list(train_on_ray(config, 2))
    assert (tmp_path / "killed").exists()
    assert [(event.step, event.ranks) for event in events if isinstance(event, Started)] == [(0, 2), (6, 2)]
    assert [event.step for event in events if isinstance(event, Step)] == [*range(1, 7), 7, 8]
    assert isinstance(events[-1], Finished)
    alone = config.model_copy(update={"output": str(tmp_path / "alone")})
    list(train(alone))
    one, two = weights(tmp_path / "alone"), weights(tmp_path / "ray")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)


def test_what_only_a_person_can_mend_is_said_and_not_tried_again(
    token_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For Ray a worker that has said it has done its work."""
    news: queue.Queue[Any] = queue.Queue()
    config = configured(token_store(), tmp_path / "run", accumulation=4)
    settings = {"config": config.model_dump(mode="json"), "folder": str(tmp_path), "news": news}
    monkeypatch.chdir(tmp_path)
    jobs.ray_train._worker(settings)
    said = news.get_nowait()
    assert isinstance(said, ConfigError)
    assert "no multiple of accumulation 4 times 1 ranks" in str(said)


def test_relative_paths_begin_where_the_driver_is(
    token_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray starts a worker in a folder of its own."""
    news: queue.Queue[Any] = queue.Queue()
    config = configured(token_store(), Path("run"), reading={"cache": "tables"}, steps=1, warmup_steps=0)
    (tmp_path / "rays").mkdir()
    monkeypatch.chdir(tmp_path / "rays")
    settings = {"config": config.model_dump(mode="json"), "folder": str(tmp_path), "news": news}
    jobs.ray_train._worker(settings)
    assert weights(tmp_path / "run")
    assert list((tmp_path / "tables" / "tables").iterdir())
    assert not list((tmp_path / "rays").iterdir())
