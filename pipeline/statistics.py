"""What a commit record says about its targets: means and histograms, summed while a unit streams by.

It knows logits, embeddings and codec statistics. Entropy, label_nll and fidelity cost a pass over what the
teacher said, so the labeller takes them from every eighth target of a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.targets.commit import HISTOGRAM_BINS

if TYPE_CHECKING:
    import torch

STRIDE = 8
"""Of a sequence's targets, one in so many is measured."""

BIN_NATS = 0.25
"""Width of a bin of the entropy's histogram; the last one is open."""

Floats = npt.NDArray[np.float64]


class Means:
    """Weighted means by "<head>.<name>", and histograms of entropies."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._histograms: dict[str, npt.NDArray[np.int64]] = {}

    def add(self, head: str, means: Mapping[str, float], weight: float) -> None:
        """Means over `weight` targets of a head."""
        for name, mean in means.items():
            full = f"{head}.{name}"
            self._sums[full] = self._sums.get(full, 0.0) + mean * weight
            self._weights[full] = self._weights.get(full, 0.0) + weight

    def add_distribution(self, head: str, entropy: Floats, label_nll: Floats | None) -> None:
        """What `distribution` measured. An infinite label_nll (a class the teacher excludes) is left out."""
        self.add(head, {"entropy": float(entropy.mean())}, len(entropy))
        bins = np.minimum(entropy / BIN_NATS, HISTOGRAM_BINS - 1).astype(np.int64)
        counts = np.bincount(bins, minlength=HISTOGRAM_BINS)
        name = f"{head}.entropy"
        self._histograms[name] = self._histograms.get(name, np.zeros(HISTOGRAM_BINS, dtype=np.int64)) + counts
        if label_nll is not None and len(finite := label_nll[np.isfinite(label_nll)]):
            self.add(head, {"label_nll": float(finite.mean())}, len(finite))

    def merge(self, other: Means) -> None:
        """Put another's sums in."""
        for name, value in other._sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._weights[name] = self._weights.get(name, 0.0) + other._weights[name]
        for name, counts in other._histograms.items():
            self._histograms[name] = counts + self._histograms.get(name, 0)

    def values(self) -> dict[str, float]:
        """The means."""
        return {name: self._sums[name] / weight for name, weight in self._weights.items() if weight}

    def values_with(self, others: Mapping[str, float], targets: int) -> dict[str, float]:
        """The means together with those that somebody else has of so many targets."""
        together = Means()
        for name, mean in others.items():
            share = 1 / STRIDE if name.endswith((".entropy", ".label_nll")) else 1.0
            together._sums[name], together._weights[name] = mean * targets * share, targets * share
        together.merge(self)
        return together.values()

    def histograms_with(self, others: Mapping[str, list[int]]) -> dict[str, list[int]]:
        """The histograms together with somebody else's."""
        together = Means()
        together._histograms = {name: np.array(counts, dtype=np.int64) for name, counts in others.items()}
        together.merge(self)
        return together.histograms()

    def histograms(self) -> dict[str, list[int]]:
        """Targets a bin."""
        return {name: counts.tolist() for name, counts in self._histograms.items()}


def distribution(
    logits: torch.Tensor, labels: npt.NDArray[np.integer[Any]] | None
) -> tuple[Floats, Floats | None]:
    """Entropy, and -log p(label), of targets, nats, float64 [N].

    logits: [N, V]; labels: integers [N], the tokens that came next.
    """
    import torch

    with torch.inference_mode():
        z = logits.float()
        p = torch.softmax(z, dim=-1)
        # H = lse - sum p z, and lse = z - log p of the likeliest class: no pass of logarithms.
        lse = z.amax(dim=-1) - p.amax(dim=-1).log()
        entropy = lse - torch.linalg.vecdot(p, z)
        if not bool(entropy.isfinite().all()):  # a class that the teacher excludes: 0 * -inf
            entropy = lse - (p * z).nansum(dim=-1)
        numbers = [entropy]
        if labels is not None:
            at = torch.from_numpy(labels.astype(np.int64)).to(logits.device)[:, None]
            numbers.append(lse - z.gather(1, at)[:, 0])
        measured = torch.stack(numbers).double().cpu().numpy()
    return measured[0].clip(min=0.0), measured[1] if labels is not None else None


def fidelity(vectors: torch.Tensor, stored: npt.NDArray[np.float32]) -> dict[str, float]:
    """Means over embeddings: "norm", the teacher's, and "cosine" between the teacher's and what a reader
    gets. vectors, stored: [N, D].
    """
    ours = vectors.double().cpu().numpy()
    norm = np.linalg.norm(ours, axis=1)
    return {"norm": float(norm.mean()), "cosine": float(cosines(ours, stored).mean())}


def cosines(ours: npt.NDArray[np.floating[Any]], theirs: npt.NDArray[np.floating[Any]]) -> Floats:
    """Between vectors, [N, D] both; float64 [N]. Two zeros are alike, a cosine of 1; of one zero it is 0."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    lengths = np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1)
    product = lengths[0] * lengths[1]
    both = (lengths[0] == 0) & (lengths[1] == 0)
    return np.where(both, 1.0, (ours * theirs).sum(axis=1) / np.where(product > 0, product, 1.0))
