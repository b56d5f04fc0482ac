"""The training loop: one device or many, one student or several from one pass over the data.

Killed anywhere, it goes on from its checkpoints and ends with the weights it would have had: the order of
rows follows from the seed, and a step of a student from the batch and the step before (`student.learner`). So
too is a student trained beside others, to the bit, the one that is trained alone.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pipeline.targets.errors import ConfigError, DecantError
from pipeline.targets.plausibility import check
from student import flops, optimizer
from student.cache import Cache
from student.checkpoint import alone
from student.config import OWN, TrainConfig
from student.data import Batch, TargetReader
from student.distributed import World, joined
from student.events import Checked, Evaluated, Event, Failed, Finished, Started, Step
from student.learner import Learner
from student.metrics import Metrics
from student.replay import Records


def train(config: TrainConfig, records: Records | None = None) -> Iterator[Event]:
    """Train, or go on training, yielding what happens; it trains while it is iterated, so exhaust it.

    Checkpoints are in `output`/checkpoints (`last`, `best`), every event in `output`/metrics.jsonl. Under
    torchrun every rank iterates; only rank 0 gets events and writes. records: how to read the corpus, for a
    store that keeps a ledger of views instead of inputs.
    Raises UserError and its kin for what cannot be trained so, or while another run trains into `output`;
    CorruptShard; and DecantError for a loss that diverges.
    """
    with contextlib.closing(train_together([config], records)) as events:  # type: ignore[type-var]
        for _, event in events:
            yield event


def train_together(
    configs: Sequence[TrainConfig], records: Records | None = None
) -> Iterator[tuple[int, Event]]:
    """Train several students from one pass over one store: each batch is read once and learned by all.

    Yields each event with the number of its student. Students may differ in what `student.config.OWN` names;
    each has an `output` of its own, goes on from its own checkpoint (the others wait for one that is behind),
    and ends as `train` would have ended; one that diverges has Failed, and the others go on. Raises as
    `train`, and ConfigError for students that cannot share.
    """
    first, *others = configs
    for name in sorted(TrainConfig.model_fields.keys() - OWN):
        if any(getattr(other, name) != getattr(first, name) for other in others):
            raise ConfigError(f"students that are trained together must have the same {name}")
    with joined(first.device) as world, _determinism(first.deterministic):
        if world.rank > 0:
            for _ in _Run(configs, world, records).events():
                pass
            return
        with contextlib.ExitStack() as stack:
            for config in configs:
                stack.enter_context(alone(Path(config.output)))
            run = _Run(configs, world, records)
            metrics = [stack.enter_context(Metrics(learner.config, learner.step)) for learner in run.learners]
            for number, event in run.events():
                metrics[number].write(event)
                yield number, event


class _Run:
    """The students, made and checked, and the reader that they share."""

    def __init__(self, configs: Sequence[TrainConfig], world: World, records: Records | None) -> None:
        self.config, self.world, self.records = configs[0], world, records
        config = self.config
        if config.batch_rows % (config.accumulation * world.size):
            raise ConfigError(
                f"batch_rows {config.batch_rows} is no multiple of accumulation {config.accumulation} times "
                f"{world.size} ranks"
            )
        # Of students with hard labels alone no targets are read.
        self.heads = sorted({each.head for each in configs if each.loss.kind != "hard"})
        self.reader = self._reader("train")
        mapped = self.reader.id_map
        squared = [each.loss.kind for each in configs if each.loss.kind in ("logit_l2", "annealed_logit_l2")]
        if squared and mapped is not None and mapped.size > len(mapped.ids):
            raise ConfigError(
                f"loss.kind {squared[0]} compares every logit, and the teacher has none for "
                f"{mapped.size - len(mapped.ids)} of the student's tokens: use tempered_kl"
            )
        self.holdout = self._reader("holdout") if config.holdout else None
        self.learners = [Learner(each, self.reader.spec, world) for each in configs]
        self.step = min(learner.step for learner in self.learners)
        """Of the student that is behind; those that are ahead pass over the batches that they know."""
        beginning = self.reader.state_dict()
        for learner in sorted(self.learners, key=lambda learner: -learner.step):
            self.reader.load_state_dict(learner.reader_state or beginning)

    def events(self) -> Iterator[tuple[int, Event]]:
        """Train to the end. All ranks go through the same events."""
        unchecked = set(self.heads) if self.config.check_rows else set()
        for number, learner in enumerate(self.learners):
            yield number, self._started(learner)
            head, told = learner.config.head, learner.config.loss.kind != "hard"
            if head in unchecked and told and not learner.finished:
                unchecked.remove(head)
                yield number, self._check(learner)
        watch = _Watch()
        rates = [_Rates(learner, watch) for learner in self.learners]
        stream = iter(self.reader)
        with contextlib.closing(stream):  # type: ignore[type-var]
            while not all(learner.finished for learner in self.learners):
                self.step += 1
                batches = [next(stream).to(self.world.device, True) for _ in range(self.config.accumulation)]
                for number, learner in enumerate(self.learners):
                    if learner.step < self.step and not learner.finished:
                        for event in self._step(learner, batches, rates[number], watch):
                            yield number, event
        for number, learner in enumerate(self.learners):
            if not learner.failed:
                last = learner.checkpoints.directory / "last"
                yield number, Finished(learner.step, last, learner.score)

    def _step(
        self, learner: Learner, batches: Sequence[Batch], rates: _Rates, watch: _Watch
    ) -> Iterator[Event]:
        """One step of one student, and what is due after it."""
        config = learner.config
        loss, norm, targets = learner.learn(batches)
        rates.count(config.batch_rows, targets)
        last, step = learner.finished, learner.step
        report = last or step % config.log_every == 0
        save = last or step % config.checkpoint_every == 0
        if report or save:
            try:
                learner.check_finite(norm)
            except DecantError as error:
                if len(self.learners) == 1:
                    raise
                yield Failed(step, str(error))
                return
        if report:
            rows_rate, targets_rate = rates.since()
            done = targets_rate * learner.flops_per_target
            with watch.stopped():
                peak = flops.peak(self.world.device, getattr(torch, config.precision))
            yield Step(
                step=step,
                loss=float(self.world.sum(loss)),
                learning_rate=optimizer.learning_rate(config, step),
                gradient_norm=float(norm),
                epoch=step * config.batch_rows / self.reader.rows,
                rows_per_second=rows_rate,
                targets_per_second=targets_rate,
                flops_per_second=done,
                utilisation=done / (peak * self.world.size),
            )
        with watch.stopped():
            best = False
            if self.holdout and (last or step % config.evaluate_every == 0):
                best = learner.evaluate(self.holdout)
                assert learner.score is not None
                yield Evaluated(step, learner.score, best)
            if save or best:
                learner.save(self.reader.state_dict(), best)

    def _started(self, learner: Learner) -> Started:
        return Started(
            step=learner.step,
            steps=learner.config.steps,
            parameters=learner.parameters,
            rows=self.reader.rows,
            held_out=self.holdout.rows if self.holdout else 0,
            ranks=self.world.size,
            device=str(self.world.device),
        )

    def _check(self, learner: Learner) -> Checked:
        """A few rows of the store: every rank looks at the same ones, and refuses for the same reason.

        Raises CorruptShard.
        """
        shards = self.reader.blocks.shards
        config = learner.config
        found = check(self.reader.store, shards, config.head, config.check_rows, config.seed)
        shift = found.shift if found.shift is not None and found.shift.groups else None
        return Checked(
            step=learner.step,
            shards=found.shards,
            rows=found.rows,
            targets=found.targets,
            own=shift.own if shift else None,
            before=shift.before if shift else None,
            after=shift.after if shift else None,
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
            heads=self.heads,
            window_shards=config.window_shards,
            shuffle=split == "train",
            options=config.store.options,
            vocabulary=config.vocabulary,
            records=self.records,
            cache=Cache.of(config.reading),
            bucket_rows=config.reading.bucket_rows if split == "train" else 0,
        )


class _Watch:
    """Seconds of training, what else the process does apart."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()

    def seconds(self) -> float:
        """So far."""
        return time.perf_counter() - self._begun

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Time that does not count."""
        paused = time.perf_counter()
        yield
        self._begun += time.perf_counter() - paused


class _Rates:
    """How fast one student has learned since its last report."""

    def __init__(self, learner: Learner, watch: _Watch) -> None:
        self._watch, self._begun, self._rows = watch, watch.seconds(), 0
        self._targets = torch.zeros((), dtype=torch.float64, device=learner.world.device)

    def count(self, rows: int, targets: Tensor) -> None:
        """A step. targets stays on its device until the rates are asked for."""
        self._rows += rows
        self._targets += targets

    def since(self) -> tuple[float, float]:
        """Rows and targets per second, and begin anew."""
        now = self._watch.seconds()
        rates = self._rows / (now - self._begun), float(self._targets) / (now - self._begun)
        self._begun, self._rows = now, 0
        self._targets.zero_()
        return rates


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
