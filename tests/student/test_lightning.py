"""Readers in Lightning's Trainer: which rows it trains on, and from where it goes on."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.targets.errors import ConfigError
from student.batch import Batch
from student.data import Epoch, TargetReader
from student.losses import sparse_cross_entropy
from student.mixing import MixedReader
from student.stream import Stream

pytest.importorskip("lightning")

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from student.lightning import ReaderState

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]


class Bigram(LightningModule):
    """Logits by the token before; remembers which rows it has seen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(23, 23)
        self.seen: list[str] = []
        self.validated: list[str] = []

    def loss(self, batch: Batch) -> torch.Tensor:
        logits = self.table(batch.inputs["tokens"].long())
        return sparse_cross_entropy(batch.pick(logits, "logits"), batch.targets["logits"])  # type: ignore[arg-type]

    def training_step(self, batch: Batch) -> torch.Tensor:
        self.seen += batch.keys
        return self.loss(batch)

    def validation_step(self, batch: Batch) -> None:
        self.validated += batch.keys
        self.log("loss", self.loss(batch), batch_size=len(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def keys_of(batches: Iterable[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def fit(
    stream: Stream,
    directory: Path,
    workers: int = 0,
    resume: Path | None = None,
    *,
    persistent: bool = False,
    **settings: Any,
) -> Bigram:
    """Trained, with a checkpoint after every fifth batch."""
    module = Bigram()
    Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=directory,
        callbacks=[
            ModelCheckpoint(directory, "{step}", every_n_train_steps=5, save_top_k=-1),
            ReaderState(stream),
        ],
        **settings,
    ).fit(
        module,
        DataLoader(stream, batch_size=None, num_workers=workers, persistent_workers=persistent),
        ckpt_path=resume,
        weights_only=True,
    )
    return module


def reader(url: str, **changes: Any) -> TargetReader:
    return TargetReader(url, **{"batch_rows": 4, "split": "all", "window_shards": 2, **changes})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_from_a_checkpoint_trains_on_the_exact_next_rows(
    token_store: Any, tmp_path: Path, workers: int
) -> None:
    """The Trainer has read one batch ahead by then, and workers more."""
    url = token_store()
    whole = fit(reader(url), tmp_path / "whole", max_steps=12)
    assert whole.seen == keys_of(itertools.islice(reader(url), 12))
    fit(reader(url), tmp_path / "cut", workers, max_steps=7)
    checkpoint = tmp_path / "cut" / "step=5.ckpt"
    resumed = fit(reader(url), tmp_path / "cut", workers, checkpoint, max_steps=12)
    assert resumed.seen == whole.seen[20:]
    assert torch.equal(resumed.table.weight, whole.table.weight)
    other = fit(reader(url, batch_rows=2), tmp_path / "other", workers, checkpoint, max_steps=10)
    assert other.seen == whole.seen[20:30]
    with pytest.raises(ConfigError, match="seed"):
        fit(reader(url, seed=1), tmp_path / "refused", workers, checkpoint, max_steps=12)


def test_epochs_of_lightning_go_on_where_the_one_before_ended(token_store: Any, tmp_path: Path) -> None:
    """Each of them iterates the loader anew; here of a mixture."""
    urls = [token_store([5, 6], name="a"), token_store([7, 4], name="b")]

    def mixture() -> MixedReader:
        return MixedReader([reader(url) for url in urls], [1, 2])

    wanted = keys_of(itertools.islice(mixture(), 12))
    settings = {"limit_train_batches": 3, "max_epochs": 4}
    assert fit(mixture(), tmp_path, 2, **settings).seen == wanted
    resumed = fit(mixture(), tmp_path, 2, tmp_path / "step=5.ckpt", **settings)
    assert resumed.seen == wanted[20:]


def test_workers_that_would_keep_what_they_read_ahead_are_refused(token_store: Any, tmp_path: Path) -> None:
    url = token_store()
    with pytest.raises(ConfigError, match="persistent_workers"):
        fit(reader(url), tmp_path, 2, persistent=True, limit_train_batches=3, max_epochs=2)
    assert fit(reader(url), tmp_path, 2, persistent=True, max_steps=2).seen == keys_of(
        itertools.islice(reader(url), 2)
    )


def test_an_epoch_of_held_out_rows_is_validated_once_whatever_the_workers(
    token_store: Any, tmp_path: Path
) -> None:
    url = token_store()
    held: Any = {"split": "holdout", "holdout": 0.3, "shuffle": False}
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    for workers in (0, 2):
        module = Bigram()
        loader: Any = DataLoader(Epoch(reader(url, **held)), batch_size=None, num_workers=workers)
        trainer.validate(module, loader, verbose=False)
        assert module.validated == keys_of(reader(url, **held).epoch(0))


def test_without_lightning_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.delitem(sys.modules, "student.lightning")
    with pytest.raises(ConfigError, match=r'pip install "decant-kd\[lightning\]"'):
        importlib.import_module("student.lightning")
