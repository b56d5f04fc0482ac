"""The training loop: one device, or many under torchrun. Killed anywhere, it goes on from its checkpoint.

Every step is a function of the configuration, the store and the step before: the order of rows follows from
the seed, the learning rate from the step, and random draws (dropout) from (seed, step, rank). So a run that
was interrupted ends with the weights it would have had.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.targets.errors import ConfigError, DecantError
from pipeline.targets.plausibility import check
from student import optimizer
from student.cache import Cache
from student.checkpoint import Checkpoint, Checkpoints
from student.config import FREE_ON_RESUME, TrainConfig
from student.data import Batch, TargetReader
from student.distributed import World, joined
from student.evaluate import evaluate
from student.events import Checked, Evaluated, Event, Finished, Score, Started, Step
from student.losses import distillation_loss
from student.metrics import Metrics
from student.replay import Records
from student.student import Student


def train(config: TrainConfig, records: Records | None = None) -> Iterator[Event]:
    """Train, or go on training, yielding what happens; it trains while it is iterated, so exhaust it.

    Checkpoints are in `output`/checkpoints (`last`, `best`), every event in `output`/metrics.jsonl. Under
    torchrun every rank iterates; only rank 0 gets events and writes. records: how to read the corpus, for a
    store that keeps a ledger of views instead of inputs.
    Raises UserError and its kin for what cannot be trained so, CorruptShard, and DecantError for a loss that
    diverges.
    """
    with joined(config.device) as world, _determinism(config.deterministic):
        run = _Run(config, world, records)
        if world.rank > 0:
            for _ in run.events():
                pass
            return
        with contextlib.closing(Metrics(Path(config.output), run.step, config.tensorboard)) as metrics:
            for event in run.events():
                metrics.write(event)
                yield event


class _Run:
    """One run: what it needs, made and checked, and what changes from step to step."""

    def __init__(self, config: TrainConfig, world: World, records: Records | None) -> None:
        self.config, self.world, self.records = config, world, records
        if config.batch_rows % (config.accumulation * world.size):
            raise ConfigError(
                f"batch_rows {config.batch_rows} is no multiple of accumulation {config.accumulation} times "
                f"{world.size} ranks"
            )
        self.reader = self._reader("train")
        mapped = self.reader.id_map
        if config.loss.kind == "logit_l2" and mapped is not None and mapped.size > len(mapped.ids):
            raise ConfigError(
                "loss.kind logit_l2 compares every logit, and the teacher has none for "
                f"{mapped.size - len(mapped.ids)} of the student's tokens: use tempered_kl"
            )
        self.holdout = self._reader("holdout") if config.holdout else None
        torch.manual_seed(_seed(config.seed, 0, 0))
        self.student = Student(config, self.reader.spec).to(world.device).train()
        self.optimizer = optimizer.build(config, self.student.model)
        self.step, self.best = 0, math.inf
        self.score: Score | None = None
        self.checkpoints = Checkpoints(Path(config.output) / "checkpoints")
        self._resume(self.checkpoints.read("last"))

    def events(self) -> Iterator[Event]:
        """Train to the end. All ranks go through the same events."""
        config, world = self.config, self.world
        yield Started(
            step=self.step,
            steps=config.steps,
            parameters=sum(p.numel() for p in self.student.parameters()),
            rows=self.reader.rows,
            held_out=self.holdout.rows if self.holdout else 0,
            ranks=world.size,
            device=str(world.device),
        )
        if config.check_rows and self.step < config.steps and config.loss.kind != "hard":
            yield self._check()
        model = DistributedDataParallel(self.student) if world.size > 1 else self.student
        stream = iter(self.reader)
        clock = _Clock(world.device)
        with contextlib.closing(stream):  # type: ignore[type-var]
            while self.step < config.steps:
                self.step += 1
                torch.manual_seed(_seed(config.seed, self.step, world.rank))
                batches = [next(stream).to(world.device, True) for _ in range(config.accumulation)]
                loss, targets = self._gradients(model, batches)
                norm = self._update()
                clock.count(config.batch_rows, targets)

                last = self.step == config.steps
                report = last or self.step % config.log_every == 0
                save = last or self.step % config.checkpoint_every == 0
                best = False
                if report or save:
                    self._check_finite(norm)
                if report:
                    rows_rate, targets_rate = clock.rates()
                    yield Step(
                        step=self.step,
                        loss=float(world.sum(loss) / targets),
                        learning_rate=optimizer.learning_rate(config, self.step),
                        gradient_norm=float(norm),
                        epoch=self.step * config.batch_rows / self.reader.rows,
                        rows_per_second=rows_rate,
                        targets_per_second=targets_rate,
                    )
                with clock.stopped():
                    if self.holdout and (last or self.step % config.evaluate_every == 0):
                        score = evaluate(
                            self.student,
                            self.holdout,
                            config.loss,
                            world,
                            config.evaluate_rows,
                            config.precision,
                        )
                        best = score.value < self.best
                        self.score, self.best = score, min(score.value, self.best)
                        yield Evaluated(self.step, score, best)
                    if save or best:
                        self._save(best)
        yield Finished(self.step, self.checkpoints.directory / "last", self.score)

    def _check(self) -> Checked:
        """A few rows of the store: every rank looks at the same ones, and refuses for the same reason.

        Raises CorruptShard.
        """
        shards = self.reader.blocks.shards
        found = check(self.reader.store, shards, self.config.head, self.config.check_rows, self.config.seed)
        shift = found.shift if found.shift is not None and found.shift.groups else None
        return Checked(
            step=self.step,
            shards=found.shards,
            rows=found.rows,
            targets=found.targets,
            own=shift.own if shift else None,
            before=shift.before if shift else None,
            after=shift.after if shift else None,
        )

    def _gradients(self, model: nn.Module, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        """Gradients of the mean loss over all targets of a global batch, of which the batches are our part.

        Returns the summed loss here, and the number of targets everywhere, both float64 scalars.
        """
        config, world = self.config, self.world
        count = sum(self.student.count(batch) for batch in batches)
        targets = world.sum(torch.tensor(float(count), dtype=torch.float64, device=world.device))
        total = torch.zeros((), dtype=torch.float64, device=world.device)
        for number, batch in enumerate(batches, start=1):
            # DDP exchanges gradients once, with the last part, and divides them by the number of ranks.
            quiet = isinstance(model, DistributedDataParallel) and number < len(batches)
            with model.no_sync() if quiet else contextlib.nullcontext():  # type: ignore[operator]
                with torch.autocast(
                    world.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"
                ):
                    logits = model(batch)
                loss = distillation_loss(
                    config.loss,
                    logits,
                    batch.targets.get(config.head),
                    batch.labels(config.head),
                    reduction="sum",
                )
                (loss * (world.size / targets).to(loss.dtype)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total, targets

    def _update(self) -> Tensor:
        """Clip, step, forget the gradients; their norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), self.config.clip_norm or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = optimizer.learning_rate(self.config, self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def _check_finite(self, norm: Tensor) -> None:
        if not bool(norm.isfinite()):
            raise DecantError(
                f"the gradient is not finite at step {self.step}: lower learning_rate, lengthen warmup_steps "
                "or set clip_norm; the last checkpoint is from before"
            )

    def _reader(self, split: Literal["train", "holdout"]) -> TargetReader:
        config, world = self.config, self.world
        if config.store is None:
            raise ConfigError("store: name the store to learn from")
        return TargetReader(
            config.store.url,
            batch_rows=config.batch_rows // config.accumulation,
            seed=config.seed,
            split=split,
            holdout=config.holdout,
            rank=world.rank,
            world_size=world.size,
            heads=[] if config.loss.kind == "hard" else [config.head],
            window_shards=config.window_shards,
            shuffle=split == "train",
            options=config.store.options,
            vocabulary=config.vocabulary,
            records=self.records,
            cache=Cache.of(config.reading),
            bucket_rows=config.reading.bucket_rows if split == "train" else 0,
        )

    def _save(self, best: bool) -> None:
        if self.world.rank > 0:
            return
        state = {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "reader": self.reader.state_dict(),
            "best": self.best,
            "score": dataclasses.asdict(self.score) if self.score else None,
        }
        # Without the store's options: they may hold credentials.
        config = self.config.model_dump(mode="json", exclude={"store": {"options"}})
        self.checkpoints.save(self.step, self.student.model, state, config, best)

    def _resume(self, found: Checkpoint | None) -> None:
        if not self.world.agrees(found.state["step"] if found else 0):
            raise ConfigError(
                f"the ranks see different checkpoints: output {self.config.output} must be on a shared disk"
            )
        if found is None:
            return
        ours = self.config.model_dump(mode="json")
        for name in ours.keys() - FREE_ON_RESUME:
            if found.config.get(name) != ours[name]:
                theirs = json.dumps(found.config.get(name))
                raise ConfigError(
                    f"{found.path} was trained with {name} {theirs}, the configuration says "
                    f"{json.dumps(ours[name])}: set it back, or choose another output"
                )
        found.load(self.student.model)
        self.optimizer.load_state_dict(found.state["optimizer"])
        self.reader.load_state_dict(found.state["reader"])
        self.step, self.best = found.state["step"], found.state["best"]
        self.score = Score(**found.state["score"]) if found.state["score"] else None


class _Clock:
    """Rates of training since the last report, what else the process does apart."""

    def __init__(self, device: torch.device) -> None:
        self._targets = torch.zeros((), dtype=torch.float64, device=device)
        self._begun, self._rows = time.perf_counter(), 0

    def count(self, rows: int, targets: Tensor) -> None:
        """A step. targets stays on its device until the rates are asked for."""
        self._rows += rows
        self._targets += targets

    def rates(self) -> tuple[float, float]:
        """Rows and targets per second, and begin anew."""
        seconds = time.perf_counter() - self._begun
        rates = self._rows / seconds, float(self._targets) / seconds
        self._begun, self._rows = time.perf_counter(), 0
        self._targets.zero_()
        return rates

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Time that does not count."""
        paused = time.perf_counter()
        yield
        self._begun += time.perf_counter() - paused


@contextlib.contextmanager
def _determinism(wanted: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _seed(seed: int, step: int, rank: int) -> int:
    """A seed of its own for each step of each rank, so that no generator's state has to be kept."""
    digest = hashlib.blake2b(json.dumps([seed, step, rank]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
