"""The teacher's answers become rows: valid positions, encoded targets, and what was not finite.

It knows codecs and logits. Where the answers come from and where rows go, it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.batching import Item
from pipeline.inference import Answer, device_name
from pipeline.statistics import Means, distribution
from pipeline.targets.codecs.base import (
    Array,
    Encoded,
    NonFiniteLogits,
    concatenate,
    offsets_of,
    uniforms,
)
from pipeline.targets.rows import Ragged, Rows
from pipeline.targets.spec import TOKENS, Head, Spec
from pipeline.targets.unit import Quarantined

if TYPE_CHECKING:
    import torch

CPU_ELEMENTS = 2**20
"""Logits encoded at a time on a CPU: they stay in its cache, and views longer than that need no copy."""

ACCELERATOR_ELEMENTS = 2**28
"""The same elsewhere: many, so that few kernels are launched, but bounded, for they are copied."""


@dataclass(frozen=True)
class Labelled:
    """Some rows of a window. positions: their places in it; seconds: in the teacher; device: where it is."""

    rows: Rows
    positions: npt.NDArray[np.int64]
    means: Means
    seconds: float
    device: str


def encode(answer: Answer, spec: Spec) -> Iterator[Labelled | Quarantined]:
    """The rows of an answer. A view with a logit that is not finite is quarantined whole, in all heads."""
    part, means = answer.part, Means()
    good: list[int] = []
    encoded: dict[str, list[Encoded]] = {head.name: [] for head in spec.heads}
    for group in _groups(answer, spec):
        views = list(group)
        while views:
            try:
                for name, arrays in _encode_views(answer, spec, views, means).items():
                    encoded[name].append(arrays)
            except _NotFinite as error:
                for i in error.views:
                    yield part.items[i].quarantined("non_finite", str(error))
                views = [i for i in views if i not in error.views]
            else:
                good += views
                break
    if good:
        items, lengths = [part.items[i] for i in good], part.batch.lengths[good]
        device = device_name(next(iter(answer.logits.values())))
        rows = _rows(spec, items, lengths, encoded)
        yield Labelled(rows, part.positions[good], means, answer.seconds(), device)


class _NotFinite(Exception):
    """Some views have logits that are not finite. views: which of the answer's."""

    def __init__(self, head: str, views: list[int]) -> None:
        self.views = views
        super().__init__(f"the teacher's {head} are not finite")


def _groups(answer: Answer, spec: Spec) -> Iterator[list[int]]:
    """The views of an answer, as many consecutive ones together as are encoded at a time."""
    lengths = answer.part.batch.lengths
    on_cpu = next(iter(answer.logits.values())).device.type == "cpu"
    limit = CPU_ELEMENTS if on_cpu else ACCELERATOR_ELEMENTS
    elements = np.max([_counts(head, lengths) * head.size for head in spec.heads], axis=0)
    group: list[int] = []
    total = 0
    for i, size in enumerate(elements.tolist()):
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(i)
        total += size
    yield group


def _encode_views(answer: Answer, spec: Spec, views: list[int], means: Means) -> dict[str, Encoded]:
    """The targets of some views, by head; their statistics go into `means`. Raises _NotFinite."""
    import torch

    batch = answer.part.batch
    lengths = batch.lengths[views]
    logits = {head.name: _targets(answer.logits[head.name], head, views, lengths) for head in spec.heads}
    encoded: dict[str, Encoded] = {}
    for head in spec.heads:
        counts = _counts(head, lengths)
        randoms = _uniforms(spec.seed, head, [answer.part.items[i] for i in views], counts)
        try:
            with torch.inference_mode():
                encoded[head.name] = _encode(head, logits[head.name], randoms)
        except NonFiniteLogits as error:
            bad = np.unique(np.repeat(np.arange(len(views)), counts)[error.rows])
            raise _NotFinite(head.name, [views[i] for i in bad]) from None
    for head in spec.heads:
        means.add(
            head.name, head.codec.statistics(encoded[head.name], head.size), int(_counts(head, lengths).sum())
        )
        labels = None
        if head.positions == "next_token":
            labels = np.concatenate([batch.inputs[TOKENS][i, 1 : batch.lengths[i]] for i in views])
        means.add_distribution(head.name, *distribution(logits[head.name], labels))
    return encoded


def _targets(
    logits: torch.Tensor, head: Head, views: list[int], lengths: npt.NDArray[np.int64]
) -> torch.Tensor:
    """The logits of all targets of some views, [N, V]. No copy of one view, or of a whole batch."""
    import torch

    if head.positions == "single":
        return logits if len(views) == len(logits) else logits[views]
    parts = [logits[i, : length - 1] for i, length in zip(views, lengths.tolist(), strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _uniforms(seed: int, head: Head, items: Sequence[Item], counts: npt.NDArray[np.int64]) -> Array:
    """The random numbers of some rows, float64 [N, draws]."""
    draws = head.codec.draws
    if not draws:
        return np.zeros((int(counts.sum()), 0))
    return np.concatenate(
        [
            uniforms(seed, head.name, item.key, item.view, count, draws)
            for item, count in zip(items, counts.tolist(), strict=True)
        ]
    )


def _encode(head: Head, logits: torch.Tensor, randoms: Array) -> Encoded:
    """`encode_torch`, in halves where memory runs out."""
    import torch

    try:
        return head.codec.encode_torch(logits, randoms)
    except torch.OutOfMemoryError:
        if len(logits) < 2:
            raise
    torch.cuda.empty_cache()
    parts: list[Encoded] = []
    bad = np.zeros(len(logits), dtype=np.bool_)
    half = len(logits) // 2
    for chosen in (slice(0, half), slice(half, None)):
        try:
            parts.append(_encode(head, logits[chosen], randoms[chosen]))
        except NonFiniteLogits as error:
            bad[chosen] = error.rows
    if bad.any():
        raise NonFiniteLogits(bad)
    return concatenate(parts, head.codec.layout(head.size))


def _counts(head: Head, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Targets of each view: L tokens have L - 1 next-token targets."""
    return lengths - 1 if head.positions == "next_token" else np.ones_like(lengths)


def _rows(
    spec: Spec,
    items: Sequence[Item],
    lengths: npt.NDArray[np.int64],
    encoded: Mapping[str, Sequence[Encoded]],
) -> Rows:
    inputs: dict[str, Array | Ragged] = {}
    for declared in spec.inputs:
        arrays = [item.content.inputs[declared.name] for item in items]
        if declared.varies:
            extents = np.array([len(array) for array in arrays])
            inputs[declared.name] = Ragged(np.concatenate(arrays), offsets_of(extents))
        else:
            inputs[declared.name] = np.stack(arrays)
    sequences = any(head.positions == "next_token" for head in spec.heads)
    return Rows(
        spec=spec,
        keys=[item.key for item in items],
        row=np.array([item.row for item in items], dtype=np.int64),
        view=np.array([item.view for item in items], dtype=np.int32),
        views=np.array([item.views for item in items], dtype=np.int32),
        targets=(lengths - 1 if sequences else np.zeros_like(lengths)).astype(np.int32),
        inputs=inputs,
        heads={h.name: concatenate(encoded[h.name], h.codec.layout(h.size)) for h in spec.heads},
    )
