"""Rows of several stores, already paired, become one row: side by side, or averaged.

The average of sparse estimates. Let p̂_m be store m's estimate of p_m, E p̂_m = p_m. Their mean p̂, with all
entries of all stores, has E p̂ = mean p_m, but a codec's columns cannot hold it: draws of different stores are
worth different amounts. So p̂ is encoded again as any distribution is, with random numbers of its own: of the
result, E[· | p̂] = p̂, and hence E = mean p_m. It is unbiased, and varies more than a label of the ensemble
itself would: by the variance of p̂, about the M-th part of a single store's. Random numbers that the stores
used already would break the first equality; those of the destination follow from a seed of its own.

The average of top-k targets is refused: a class that one store has and another has not is known only to lie
below the other's least, so neither the mean's k likeliest nor their probabilities can be told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from pipeline.targets.codecs import Codec
from pipeline.targets.codecs.base import Array, Encoded, NonFiniteLogits, concatenate, offsets_of, uniforms
from pipeline.targets.decoded import DenseTargets, SparseTargets, Targets
from pipeline.targets.rows import Rows
from pipeline.targets.spec import Spec

Average = Literal["logits", "probabilities"]

ELEMENTS = 2**22
"""Probabilities that are averaged at a time, as a dense matrix."""

Combine = Callable[[Sequence[Rows]], tuple[dict[str, Encoded], dict[int, str]]]
"""Rows of each store, in one order, to encoded targets by head; and rows without any, with a sentence."""


class Join:
    """Heads side by side, as they are stored."""

    def __init__(self, stores: Sequence[str]) -> None:
        """stores: their names, in the order of the rows' parts."""
        self._names = list(stores)

    def __call__(self, parts: Sequence[Rows]) -> tuple[dict[str, Encoded], dict[int, str]]:
        return {
            f"{name}_{head}": encoded
            for name, rows in zip(self._names, parts, strict=True)
            for head, encoded in rows.heads.items()
        }, {}


class Mean:
    """Each head averaged and encoded by the first store's codec. average: of dense heads."""

    def __init__(self, spec: Spec, average: Average) -> None:
        self._spec, self._average = spec, average

    def __call__(self, parts: Sequence[Rows]) -> tuple[dict[str, Encoded], dict[int, str]]:
        """Encoded targets by head, and the rows whose mean is no distribution, each with a sentence."""
        heads: dict[str, Encoded] = {}
        bad: dict[int, str] = {}
        for head in self._spec.heads:
            counts = parts[0].counts(head)
            decoded = [rows.decode(head.name) for rows in parts]
            draws = np.concatenate(
                [
                    uniforms(self._spec.seed, head.name, key, view, count, head.codec.draws)
                    for key, view, count in zip(
                        parts[0].keys, parts[0].view.tolist(), counts.tolist(), strict=True
                    )
                ]
            )
            total, step = int(counts.sum()), max(1, ELEMENTS // head.size)
            encoded = []
            for start in range(0, total, step):
                chunk = slice(start, min(start + step, total))
                try:
                    encoded.append(_encode(head.codec, self._mean(decoded, chunk, head.size), draws[chunk]))
                except NonFiniteLogits as error:
                    rows = (
                        np.searchsorted(offsets_of(counts), start + np.flatnonzero(error.rows), "right") - 1
                    )
                    bad |= dict.fromkeys(rows.tolist(), f"the mean of the {head.name} is not finite")
            heads[head.name] = concatenate(encoded, head.codec.layout(head.size))
        return heads, bad

    def _mean(self, decoded: Sequence[Targets], chunk: slice, size: int) -> Array:
        """Logits of the mean, [n, V], float32."""
        total = np.zeros((chunk.stop - chunk.start, size))
        probabilities = self._average == "probabilities" or isinstance(decoded[0], SparseTargets)
        for targets in decoded:
            match targets:
                case DenseTargets(logits):
                    z = logits[chunk].astype(np.float64)
                    if probabilities:
                        z = np.exp(z - z.max(axis=1, keepdims=True))
                        z /= z.sum(axis=1, keepdims=True)
                    total += z
                case SparseTargets(ids, weights, offsets):
                    bounds = offsets[chunk.start : chunk.stop + 1]
                    entries = slice(bounds[0], bounds[-1])
                    owner = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
                    np.add.at(total, (owner, ids[entries]), weights[entries])
                case _:
                    raise TypeError(f"{type(targets).__name__} cannot be averaged")
        total /= len(decoded)
        if probabilities:
            with np.errstate(divide="ignore"):
                total = np.log(total)
        return total.astype(np.float32)


def _encode(codec: Codec, logits: Array, draws: Array) -> Encoded:
    import torch

    return codec.encode_torch(torch.from_numpy(logits), draws)
