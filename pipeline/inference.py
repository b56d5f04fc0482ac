"""The teacher on batches, and what becomes of those that it fails on.

It knows a loaded teacher, memory that runs out, and views that no teacher can take. What is done with the
logits, it does not know.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.batching import Part
from pipeline.targets.errors import DecantError, TeacherError
from pipeline.targets.unit import Quarantined
from pipeline.teachers.base import Batch, Teacher

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Answer:
    """What the teacher says of a part.

    logits: by head, [views, V], or [views, L, V] with padding still in it.
    seconds: how long it took; on an accelerator, known once the logits are.
    """

    part: Part
    logits: Mapping[str, torch.Tensor]
    seconds: Callable[[], float]


class Inference:
    """A teacher that several threads may call; one batch is computed at a time."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._lock = threading.Lock()
        self._limit: int | None = None
        self._known_good: Batch | None = None

    def __call__(self, part: Part, again: bool = False) -> Iterator[Answer | Quarantined]:
        """The answers for a part, in pieces where it had to be cut, and the views that have none.

        Where memory runs out, the part is cut in half, and later ones are cut to that size before; a single
        view is tried again. After any other failure the part is cut down to the views that fail alone; those
        are quarantined ("teacher_failed").
        Raises TeacherError when the teacher does not work any more: a view fails that it took before, or what
        it returns is not what it declares.
        """
        if self._limit is not None and part.size > self._limit and len(part) > 1:
            yield from self._halves(part)
            return
        try:
            answer = self._forward(part)
        except DecantError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model raises
            failure, out_of_memory = _sentence(error), _is_out_of_memory(error)
        else:
            if self._known_good is None:
                self._known_good = part.take(slice(0, 1)).batch
            yield answer
            return
        # Outside of the except block: the error's traceback holds the tensors of the failed attempt.
        if out_of_memory:
            self._make_room(part)
        if len(part) > 1:
            yield from self._halves(part)
        elif out_of_memory and not again:
            yield from self(part, again=True)
        else:
            self._probe(failure)
            yield part.items[0].quarantined("teacher_failed", failure)

    def _halves(self, part: Part) -> Iterator[Answer | Quarantined]:
        middle = len(part) // 2
        yield from self(part.take(slice(0, middle)))
        yield from self(part.take(slice(middle, None)))

    def _forward(self, part: Part) -> Answer:
        import torch

        with self._lock, torch.inference_mode():
            start = _Moment()
            logits = self._teacher(part.batch)
            _check(logits, self._teacher, part.batch)
            end = _Moment()
        return Answer(part, logits, lambda: end.since(start))

    def _make_room(self, part: Part) -> None:
        import torch

        torch.cuda.empty_cache()
        if len(part) > 1:
            with self._lock:
                self._limit = min(part.size // 2, self._limit or part.size)

    def _probe(self, failure: str) -> None:
        """A teacher that has stopped working fails on what it took before too; a bad view fails alone."""
        import torch

        if self._known_good is None:
            return
        try:
            with self._lock, torch.inference_mode():
                self._teacher(self._known_good)
        except Exception as error:
            raise TeacherError(f"the teacher stopped working: {failure}") from error


class _Moment:
    """Now, and on CUDA the place in the stream of kernels, which are computed later."""

    def __init__(self) -> None:
        import torch

        self._clock = time.perf_counter()
        self._event: Any = None
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record()

    def since(self, start: _Moment) -> float:
        """Seconds. On CUDA it waits until the kernels between the two are done."""
        if self._event is None or start._event is None:
            return self._clock - start._clock
        self._event.synchronize()
        return float(start._event.elapsed_time(self._event)) / 1000


def device_name(tensor: torch.Tensor) -> str:
    """Where a tensor lives, for a commit record: "cuda: NVIDIA H100", "cpu: AMD EPYC 7763, 2 threads"."""
    import torch

    if tensor.is_cuda:
        return f"cuda: {torch.cuda.get_device_name(tensor.device)}"
    if tensor.device.type != "cpu":
        return str(tensor.device.type)
    return f"cpu: {_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return value.strip()
    return platform.processor() or platform.machine()


def _check(logits: Mapping[str, torch.Tensor], teacher: Teacher, batch: Batch) -> None:
    for name, output in teacher.outputs.items():
        if name not in logits:
            raise TeacherError(f"the teacher declares the head {name!r} and did not return it")
        expected: tuple[int, ...] = (len(batch), output.size)
        if output.positions == "next_token":
            expected = (len(batch), int(batch.lengths.max()), output.size)
        if tuple(logits[name].shape) != expected:
            raise TeacherError(
                f"the teacher returned the head {name!r} with shape {tuple(logits[name].shape)}, "
                f"for this batch it must be {expected}"
            )


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def _sentence(error: BaseException) -> str:
    """An exception of a model, on one line of bounded length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
