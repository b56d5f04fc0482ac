"""The teacher's answers become rows: valid positions, encoded targets, and what was not finite.

It knows codecs and logits. Where the answers come from and where rows go, it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.batching import Item
from pipeline.inference import Answer, device_name
from pipeline.statistics import STRIDE, Means, distribution, fidelity
from pipeline.targets.codecs.base import (
    Array,
    Encoded,
    NonFiniteLogits,
    concatenate,
    offsets_of,
    ranges,
    take,
    uniforms,
)
from pipeline.targets.codecs.ranking import RankingCodec
from pipeline.targets.decoded import EmbeddingTargets
from pipeline.targets.ragged import Ragged
from pipeline.targets.rows import Rows
from pipeline.targets.spec import TOKENS, Head, Spec
from pipeline.targets.unit import Quarantined
from pipeline.teachers.likeliest import Likeliest

CPU_ELEMENTS = 2**21
"""Logits computed and encoded at a time on a CPU: they stay in its cache."""

ACCELERATOR_ELEMENTS = 2**28
"""The same elsewhere: many, so that few kernels are launched, but bounded, for they are all there is."""


@dataclass(frozen=True)
class Labelled:
    """Some rows of a window. positions: their places in it; began, seconds: when the teacher was asked, and
    how long it took; device: where it is.
    """

    rows: Rows
    positions: npt.NDArray[np.int64]
    means: Means
    began: float
    seconds: float
    device: str


def encode(answer: Answer, spec: Spec) -> Iterator[Labelled | Quarantined]:
    """The rows of an answer. A view with a logit that is not finite is quarantined whole, in all heads."""
    part = answer.part
    views = np.arange(len(part))
    while len(views):
        means = Means()
        encoded: dict[str, Encoded] = {}
        bad: dict[int, str] = {}
        for head in spec.heads:
            encoded[head.name], lost = _encode_head(answer, head, spec.seed, views, means)
            bad |= dict.fromkeys(lost, f"the teacher's {head.name} are not finite")
        if not bad:
            items, lengths = [part.items[i] for i in views.tolist()], part.batch.lengths[views]
            device = device_name(answer.logits[spec.heads[0].name].device)
            rows = _rows(spec, items, lengths, encoded)
            yield Labelled(rows, part.positions[views], means, answer.began, answer.seconds(), device)
            return
        for i in sorted(bad):
            yield part.items[i].quarantined("non_finite", bad[i])
        views = np.array([i for i in views if i not in bad], dtype=np.int64)


def _encode_head(
    answer: Answer, head: Head, seed: int, views: npt.NDArray[np.int64], means: Means
) -> tuple[Encoded, set[int]]:
    """One head's targets of some views, a chunk of logits at a time; which of the views are not finite.

    The targets are of no use if any view is not. Their statistics go into `means`.
    """
    import torch

    batch, logits = answer.part.batch, answer.of(head)
    counts = _counts(head, batch.lengths[views])
    view, position = np.repeat(views, counts), ranges(np.zeros_like(counts), counts)
    length = logits.shape[1] if head.positions == "next_token" else 1
    if isinstance(logits, Likeliest):
        return _encode_told(logits, head, view * length + position, view, means)
    places = torch.from_numpy(view * length + position).to(logits.device)
    randoms = _uniforms(seed, head, [answer.part.items[i] for i in views.tolist()], counts)
    labels = batch.inputs[TOKENS][view, position + 1] if head.positions == "next_token" else None
    limit = CPU_ELEMENTS if logits.device.type == "cpu" else ACCELERATOR_ELEMENTS
    step = max(1, limit // head.size)
    parts: list[Encoded] = []
    lost: set[int] = set()
    start = 0
    while start < len(places):
        chunk = slice(start, start + step)
        values = encoded = None
        try:
            with torch.inference_mode():
                values = logits.rows(places[chunk])
                encoded = head.codec.encode_torch(values, randoms[chunk])
        except NonFiniteLogits as error:
            lost.update(view[chunk][error.rows].tolist())
        except torch.OutOfMemoryError:
            if step == 1:
                raise
            step = max(1, min(step, len(places) - start) // 2)
            chunk = slice(start, start)
        if encoded is None or values is None:
            torch.cuda.empty_cache()  # does nothing where CUDA was not used
        else:
            parts.append(encoded)
            means.add(head.name, head.codec.statistics(encoded, head.size), len(values))
            measured = np.flatnonzero(position[chunk] % STRIDE == 0)
            if len(measured):
                some = values[torch.from_numpy(measured)]
                if head.codec.of == "logits":
                    seen = None if labels is None else labels[chunk][measured]
                    means.add_distribution(head.name, *distribution(some, seen))
                else:
                    kept = take(encoded, head.codec.layout(head.size), measured)
                    decoded = head.codec.decode(kept, head.size)
                    assert isinstance(decoded, EmbeddingTargets)
                    means.add(head.name, fidelity(some, decoded.vectors), len(measured))
        start = chunk.stop
    return concatenate(parts, head.codec.layout(head.size)), lost


def _encode_told(
    logits: Likeliest,
    head: Head,
    places: npt.NDArray[np.int64],
    view: npt.NDArray[np.int64],
    means: Means,
) -> tuple[Encoded, set[int]]:
    """The same where the teacher tells only the likeliest classes: the entropy is not known then."""
    codec = head.codec
    assert isinstance(codec, RankingCodec)  # no store is declared with another
    try:
        encoded = codec.encode_ranked(logits.ranked(places, min(codec.k, head.size)), head.size)
    except NonFiniteLogits as error:
        return concatenate([], codec.layout(head.size)), set(view[error.rows].tolist())
    means.add(head.name, codec.statistics(encoded, head.size), len(places))
    nll = -logits.own.reshape(-1)[places]
    if len(finite := nll[np.isfinite(nll)]):
        means.add(head.name, {"label_nll": float(finite.mean())}, len(finite))
    return encoded, set()


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


def _counts(head: Head, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Targets of each view: L tokens have L - 1 next-token targets."""
    return lengths - 1 if head.positions == "next_token" else np.ones_like(lengths)


def _rows(
    spec: Spec,
    items: Sequence[Item],
    lengths: npt.NDArray[np.int64],
    encoded: Mapping[str, Encoded],
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
        heads=encoded,
    )
