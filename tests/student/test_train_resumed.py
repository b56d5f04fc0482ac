"""A run repeats itself to the bit and goes on where it was stopped, from no checkpoint but its own."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.targets.errors import ConfigError, DecantError
from student.events import Finished, Started
from student.train import train
from tests.student.runs import LM, configured, lines, same, weights


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
    """With dropout, so that random draws are resumed too, and with an average of the weights."""
    url = image_store()
    settings: Any = {
        "model": {"kind": "mlp", "hidden": [16], "dropout": 0.5},
        "steps": 15,
        "batch_rows": 7,
        "average_decay": 0.9,
    }
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


def test_a_store_that_moved_is_the_same_store(token_store: Any, tmp_path: Path) -> None:
    url = token_store()
    run = train(configured(url, tmp_path / "run"))
    list(itertools.islice(run, 5))
    run.close()  # type: ignore[attr-defined]
    moved = Path(url).rename(tmp_path / "moved")
    list(train(configured(str(moved), tmp_path / "run")))
    list(train(configured(str(moved), tmp_path / "whole")))
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


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


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("state.json", "step-00000012 cannot be read.*remove it"),
        ("training/*.safetensors", "safetensors is damaged.*remove its checkpoint"),
    ],
)
def test_a_broken_checkpoint_is_named(token_store: Any, tmp_path: Path, name: str, words: str) -> None:
    config = configured(token_store(), tmp_path / "run")
    list(train(config))
    (file,) = (tmp_path / "run" / "checkpoints" / "step-00000012").glob(name)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(DecantError, match=words):
        list(train(config))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_weight_that_no_gradient_reaches_does_not_keep_a_run_from_going_on(
    token_store: Any, tmp_path: Path, optimizer: str
) -> None:
    """torch's optimisers know nothing of such a one; its moments have to be in the checkpoint too."""
    model: Any = {"kind": "torch", "factory": f"{__name__}:Spare", "arguments": {"classes": 23}}
    settings: Any = {"model": model, "optimizer": optimizer, "holdout": 0}
    url = token_store()
    list(train(configured(url, tmp_path / "whole", **settings)))
    cut = train(configured(url, tmp_path / "cut", **settings))
    list(itertools.islice(cut, 5))
    cut.close()  # type: ignore[attr-defined]
    assert next(iter(train(configured(url, tmp_path / "cut", **settings)))).step == 8
    list(train(configured(url, tmp_path / "cut", **settings)))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


class Spare(nn.Embedding):
    """Of one token the next, with a layer that is not used."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes, classes)
        self.spare = nn.Linear(3, 3)


def test_weights_of_another_model_are_not_continued(token_store: Any, tmp_path: Path) -> None:
    config = configured(token_store(), tmp_path / "run")
    list(train(config))
    kept = tmp_path / "run/checkpoints/step-00000012/train.json"
    kept.write_text(kept.read_text().replace('"width": 16', '"width": 24'))
    wider = configured(config.store.url, tmp_path / "run", model={**LM, "width": 24})  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"step-00000012 do not fit the configured model: .*[Ss]ize"):
        list(train(wider))


def test_a_checkpoint_is_not_unpickled(token_store: Any, tmp_path: Path) -> None:
    """It has no file that would be, and one that is put where torch would look for it is not."""
    config = configured(token_store(), tmp_path / "run", steps=8)
    list(itertools.islice(train(config), 6))
    checkpoint = (tmp_path / "run/checkpoints/last").resolve()
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    mark = tmp_path / "executed"
    (checkpoint / "training" / ".metadata").write_bytes(pickle.dumps(Touch(mark)))
    assert checkpoint.name == f"step-{next(iter(train(config))).step:08d}"
    assert not mark.exists()


class Touch:
    """Unpickled, it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)
