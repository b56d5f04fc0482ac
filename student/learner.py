"""One student while it is trained: its weights, its optimiser, the average of its weights, its progress.

Every step is a function of the configuration, the batches and the step before: the learning rate follows
from the step, and random draws (dropout) from (seed, step, rank). Knows no store, no files but its
checkpoints, and nothing of whoever else is trained.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.targets.errors import ConfigError, DecantError
from pipeline.targets.spec import Spec
from student import flops, optimizer
from student.average import Average
from student.checkpoint import Checkpoint, Checkpoints, training_tensors, weights
from student.config import FREE_ON_RESUME, TrainConfig
from student.data import Batch, TargetReader
from student.distributed import World, exchanging, forget_whole, spread, whole
from student.evaluate import evaluate
from student.events import Score
from student.losses import distillation_loss
from student.student import Student


class Learner:
    """The configured student, as it was initialised or as its last checkpoint has it.

    Raises ConfigError or SpecMismatch for a configuration that fits neither the store's spec nor what is in
    `output`. Every rank makes one and calls the same methods in the same order.
    """

    def __init__(self, config: TrainConfig, spec: Spec, world: World) -> None:
        self.config, self.world = config, world
        torch.manual_seed(_seed(config.seed, 0, 0))
        self.student = Student(config, spec).to(world.device).train()
        self.parameters = sum(p.numel() for p in self.student.parameters())
        self._spread = spread(self.student, config.parallel, world)
        self.optimizer = optimizer.build(config, self.student.model)
        decay = config.average_decay
        self.average = Average(self.student.model, decay) if decay is not None else None
        self.step, self.best = 0, math.inf
        self.failed = False
        """Whether its gradient is no longer finite, so that it learns nothing more."""
        self.score: Score | None = None
        self.flops_per_target = math.nan
        """What forward and backward pass do, by the first batch that this process has learned."""
        self.reader_state: Mapping[str, Any] | None = None
        """Where the checkpoint's run was in the data; None for a new one."""
        self.checkpoints = Checkpoints(Path(config.output) / "checkpoints", world)
        self._resume(self.checkpoints.read("last"))

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or no more can be."""
        return self.failed or self.step >= self.config.steps

    def learn(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor, Tensor]:
        """One step on the accumulated parts of this rank's share of a global batch.

        Returns this rank's part of the mean loss over all targets of the global batch before the update, the
        gradient's norm before clipping, and the number of targets: scalars on the device, the first and last
        float64.
        """
        if math.isnan(self.flops_per_target):
            self.flops_per_target = self._count_flops(batches[0])
        self.step += 1
        torch.manual_seed(_seed(self.config.seed, self.step, self.world.rank))
        loss, targets = self._gradients(batches)
        return loss, self._update(), targets

    def _gradients(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """Gradients of the mean loss over all targets of a global batch, of which the batches are our part.

        Returns our part of that mean, and the number of targets everywhere, both float64 scalars.
        """
        world = self.world
        count = sum(self.student.count(batch) for batch in batches)
        targets = world.sum(torch.tensor(float(count), dtype=torch.float64, device=world.device))
        # Rows of one token have no target: a global batch of such has a loss of zero, and no gradient.
        divisor = targets.clamp(min=1)
        total = torch.zeros((), dtype=torch.float64, device=world.device)
        for number, batch in enumerate(batches, start=1):
            with exchanging(self._spread, number == len(batches)):
                loss = self._loss(self._spread, batch)
                # The ranks' gradients are averaged, and we want their sum over the number of targets.
                (loss * (world.size / divisor).to(loss.dtype)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total / divisor, targets

    def _loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Summed over the batch's targets. module: the student, or what spreads it over the ranks."""
        config = self.config
        device = self.world.device.type
        with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bfloat16"):
            logits = module(batch)
        return distillation_loss(
            config.loss.at(self.step / config.steps),
            logits,
            batch.targets.get(config.head),
            batch.labels(config.head),
            reduction="sum",
        )

    @torch.no_grad()
    def _count_flops(self, batch: Batch) -> float:
        """Of a target of the batch, forward and backward, which is twice a forward pass.

        In a pass of its own: counting can take other kernels, and so change a step's last bits. The loss is
        part of it, because logits that are never whole are made there.
        """
        self.student.model.eval()  # not the student, which would make its logits whole
        with flops.counter() as counted:
            self._loss(self.student, batch)
        self.student.model.train()
        return 3.0 * int(counted.get_total_flops()) / max(1, self.student.count(batch))

    def _update(self) -> Tensor:
        """Clip, step, forget the gradients; their norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), self.config.clip_norm or math.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = optimizer.learning_rate(self.config, self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.step)
        return whole(norm)

    def check_finite(self, norm: Tensor) -> None:
        """Raises DecantError for a gradient's norm that is not, and has `failed`."""
        self.failed = not bool(norm.isfinite())
        if self.failed:
            raise DecantError(
                f"the gradient is not finite at step {self.step}: lower learning_rate, lengthen warmup_steps "
                "or set clip_norm; the last checkpoint is from before"
            )

    def evaluate(self, holdout: TargetReader) -> bool:
        """Scores the student (the average of its weights, if there is one); whether it is the best so far."""
        config = self.config
        with self._averaged():
            self.score = evaluate(
                self.student, holdout, config.loss, self.world, config.evaluate_rows, config.precision
            )
            forget_whole(self.student)
        best = self.score.value < self.best
        if best:  # a score that is no number is not, and does not stay in the way of later ones
            self.best = self.score.value
        return best

    def save(self, reader_state: Mapping[str, Any], best: bool) -> None:
        """A checkpoint of this step, durable when it returns."""
        state = {
            "step": self.step,
            "reader": reader_state,
            "best": self.best if math.isfinite(self.best) else None,
            "score": dataclasses.asdict(self.score) if self.score else None,
        }
        with self._averaged():
            model = weights(self.student.plain)
        # Without the store's options: they may hold credentials.
        config = self.config.model_dump(mode="json", exclude={"store": {"options"}})
        self.checkpoints.save(
            self.step, model, self._tensors(), state, config, best, self.student.write_beside
        )

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        return self.average.in_place() if self.average is not None else contextlib.nullcontext()

    def _tensors(self) -> dict[str, Tensor]:
        """All that the next step depends on, by name, themselves and not copies."""
        tensors = training_tensors(self.student.model, self.optimizer)
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.weights.items()}
        return tensors

    def _resume(self, found: Checkpoint | None) -> None:
        if not self.world.agrees(found.state["step"] if found else 0):
            raise ConfigError(
                f"the ranks see different checkpoints: output {self.config.output} must be on a shared disk"
            )
        if found is None:
            return
        ours = self.config.model_dump(mode="json")
        for name in sorted(ours.keys() - FREE_ON_RESUME):
            if found.config.get(name) != ours[name]:
                theirs = json.dumps(found.config.get(name))
                raise ConfigError(
                    f"{found.path} was trained with {name} {theirs}, the configuration says "
                    f"{json.dumps(ours[name])}: set it back, or choose another output"
                )
        found.resume(self._tensors(), self.world)
        state = found.state
        self.step, self.reader_state = state["step"], state["reader"]
        self.best = math.inf if state["best"] is None else state["best"]
        self.score = Score(**state["score"]) if state["score"] else None


def _seed(seed: int, step: int, rank: int) -> int:
    """A seed of its own for each step of each rank, so that no generator's state has to be kept."""
    digest = hashlib.blake2b(json.dumps([seed, step, rank]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
