"""The teacher on batches, and what becomes of those that it fails on.

It knows a loaded teacher, memory that runs out, and views that no teacher can take. What is done with the
logits, it does not know.
"""

from __future__ import annotations

import gc
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.batching import Part
from pipeline.targets.errors import DecantError, TeacherError
from pipeline.targets.memory import keep_freed_memory
from pipeline.targets.spec import Head
from pipeline.targets.unit import Quarantined
from pipeline.teachers.base import Batch, Teacher
from pipeline.teachers.logits import Logits, as_logits

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What the teacher says of a part.

    logits: by head, as the teacher gave them (see `of`): [views, V], or [views, L, V] with padding in it.
    began: when it was asked, of `time.time`. seconds: how long the teacher took; on an accelerator, known
    once the logits are.
    """

    part: Part
    logits: Mapping[str, Logits]
    began: float
    seconds: Callable[[], float]

    def of(self, head: Head) -> Logits:
        """The logits of a store's head: of its classes, which may be fewer than the teacher's. A language
        model's logits are often wider than its tokenizer, and what is there means nothing.
        """
        return self.logits[head.name].first(head.size)


class Inference:
    """A teacher that several threads may call; one batch is computed at a time, in a thread of its own.

    The teacher is loaded in that thread too. torch gives every thread that computes a team of helpers. Two
    teams on the same cores take them from each other, and helpers that outnumber the cores are put to sleep
    after each operation and woken for the next, which costs more than a small model's operations.
    """

    def __init__(self, load: Callable[[], Teacher]) -> None:
        """Raises what `load` raises."""
        keep_freed_memory()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decant-teacher")
        self.teacher = self._thread.submit(load).result()
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

    def close(self) -> None:
        """End the thread, once it has done what it is doing."""
        self._thread.shutdown()

    def after(self, answer: Answer, work: Callable[[Answer], T]) -> T:
        """`work(answer)`. On a CPU in turn with the teacher, with all its threads: side by side the two would
        take each other's cores. Elsewhere at once, while the teacher computes its next batch.
        """
        if any(logits.device.type == "cpu" for logits in answer.logits.values()):
            return self._thread.submit(work, answer).result()
        return work(answer)

    def _forward(self, part: Part) -> Answer:
        return self._thread.submit(self._answer, part).result()

    def _answer(self, part: Part) -> Answer:
        began, start = time.time(), _Moment()
        answer = self._compute(part.batch)
        end = _Moment()
        logits = {name: as_logits(answer[name]) for name in self.teacher.outputs if name in answer}
        _check(logits, self.teacher, part.batch)
        return Answer(part, logits, began, lambda: end.since(start))

    def _compute(self, batch: Batch) -> Mapping[str, torch.Tensor | Logits]:
        import torch

        with torch.inference_mode():
            return self.teacher(batch)

    def _make_room(self, part: Part) -> None:
        import torch

        torch.cuda.empty_cache()
        if len(part) > 1:
            with self._lock:
                self._limit = min(part.size // 2, self._limit or part.size)

    def _probe(self, failure: str) -> None:
        """A teacher that has stopped working fails on what it took before too; a bad view fails alone."""
        if self._known_good is None:
            return
        try:
            self._thread.submit(self._compute, self._known_good).result()
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


def free_memory() -> None:
    """Give back what a teacher that was let go took of an accelerator: the next one may need all of it."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # does nothing in a process that has not used CUDA


def device_name(device: torch.device) -> str:
    """For a commit record: "cuda: NVIDIA H100", "cpu: AMD EPYC 7763, 2 threads"."""
    import torch

    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        return str(device.type)
    return f"cpu: {_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return value.strip()
    return platform.processor() or platform.machine()


def _check(logits: Mapping[str, Logits], teacher: Teacher, batch: Batch) -> None:
    for name, output in teacher.outputs.items():
        if name not in logits:
            raise TeacherError(f"the teacher declares the head {name!r} and did not return it")
        expected: tuple[int, ...] = (len(batch), output.size)
        if output.positions == "next_token":
            expected = (len(batch), int(batch.lengths.max()), output.size)
        if logits[name].shape != expected:
            raise TeacherError(
                f"the teacher returned the head {name!r} with shape {logits[name].shape}, "
                f"for this batch it must be {expected}"
            )


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def _sentence(error: BaseException) -> str:
    """An exception of a model, on one line of bounded length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
