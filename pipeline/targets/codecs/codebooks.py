"""Codebooks: a vector as one byte for each of its parts, by product quantisation.

A vector of D features is cut into C parts of D/C. Each part has a book of 256 words, learned by k-means on a
pilot sample (`train`), and is stored as the number of the nearest word: C bytes a vector (Jégou, Douze &
Schmid, "Product Quantization for Nearest Neighbor Search", PAMI 2011). Knows nothing of where a pilot is
from.

The words are part of the configuration, for without them the bytes mean nothing. All C books together have
256 D numbers, whatever C is: as float16 in base64, 683 D bytes in the spec's JSON (524 kB at D = 768), and
1600 D bytes in the metadata of every Parquet shard, which Arrow repeats (1.2 MB). So a shard should have a
hundred thousand vectors. That is also why each book is of one part: residual books, of whole vectors, would
take C times that.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from pipeline.targets.codecs.base import Array, Codec, Encoded, Field, NonFiniteLogits, Of
from pipeline.targets.decoded import EmbeddingTargets

if TYPE_CHECKING:
    import torch

WORDS = 256
"""Words of a book, so that the number of one is a byte."""

DISTANCES = 2**22
"""In memory at a time."""


@dataclass(frozen=True)
class Codebooks(Codec):
    """The nearest word of each part's book."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}
    of: ClassVar[Of] = "embeddings"

    kind: Literal["codebooks"] = field(default="codebooks", kw_only=True)
    """A byte for each part of a vector."""

    size: int
    """Features of a vector, D."""

    count: int
    """Books C, and so bytes a vector; D is a multiple of it."""

    words: str = field(repr=False)
    """The words of all books, [C, 256, D/C] little-endian float16, in base64: what `train` learned."""

    def __post_init__(self) -> None:
        for name in ("size", "count"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: must be a whole number of at least 1, got {value!r}")
        if self.size % self.count:
            raise ValueError(f"count: {self.size} features are no multiple of {self.count} books")
        try:
            data = base64.b64decode(self.words, validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise ValueError(f"words: not base64: {error}") from error
        if len(data) != 2 * WORDS * self.size:
            raise ValueError(
                f"words: {len(data)} bytes, of {self.size} features it is {2 * WORDS * self.size}"
            )
        if not np.isfinite(np.frombuffer(data, "<f2")).all():
            raise ValueError("words: a number is not finite")

    @cached_property
    def books(self) -> npt.NDArray[np.float32]:
        """The words, float32 [C, 256, D/C]."""
        flat = np.frombuffer(base64.b64decode(self.words), "<f2").astype(np.float32)
        return flat.reshape(self.count, WORDS, self.size // self.count)

    def layout(self, size: int) -> tuple[Field, ...]:
        """codes: [N, C]. Raises ValueError for a head of another size than the books are for."""
        if size != self.size:
            raise ValueError(
                f"the codebooks are for {self.size} features, the head has {size}: train them on it"
            )
        return (Field("codes", "|u1", (self.count,)),)

    def encode(self, logits: Array, uniforms: Array) -> Encoded:
        """logits: the vectors, [N, D]. Raises NonFiniteLogits for any NaN or infinity."""
        bad = ~np.isfinite(np.abs(logits).max(axis=1))
        if bad.any():
            raise NonFiniteLogits(bad)
        codes = np.empty((len(logits), self.count), dtype="|u1")
        step = DISTANCES // WORDS
        for start in range(0, len(logits), step):
            chunk = slice(start, start + step)
            parts = logits[chunk].reshape(-1, *self.books.shape[::2]).astype(np.float64)
            for number, book in enumerate(self.books.astype(np.float64)):
                codes[chunk, number] = _nearest(parts[:, number], book)
        return {"codes": codes}

    def encode_torch(self, logits: torch.Tensor, uniforms: Array) -> Encoded:
        """The same on the tensor's device, in float64 too: the same codes, unless two words are equally near
        to about 12 digits.
        """
        import torch

        logits = logits.detach()
        bad = ~torch.isfinite(logits).all(dim=1)
        if bool(bad.any()):
            raise NonFiniteLogits(bad.cpu().numpy())
        books = torch.from_numpy(self.books).to(logits.device).double()
        squares = books.square().sum(dim=2)[:, None]
        codes = torch.empty(len(logits), self.count, dtype=torch.uint8, device=logits.device)
        step = max(1, DISTANCES // (WORDS * self.count))
        for start in range(0, len(logits), step):
            chunk = slice(start, start + step)
            parts = logits[chunk].double().reshape(-1, self.count, books.shape[2]).transpose(0, 1)
            distances = torch.baddbmm(squares, parts, books.transpose(1, 2), alpha=-2)
            codes[chunk] = distances.argmin(dim=2).T.to(torch.uint8)
        return {"codes": codes.cpu().numpy()}

    def decode(self, encoded: Encoded, size: int) -> EmbeddingTargets:
        """The words side by side, float32 [N, D]."""
        codes = encoded["codes"]
        return EmbeddingTargets(self.books[np.arange(self.count), codes].reshape(len(codes), self.size))

    def statistics(self, encoded: Encoded, size: int) -> dict[str, float]:
        """entries and payload_bytes: C, per target, before compression."""
        each = float(self.count) if len(encoded["codes"]) else 0.0
        return {"entries": each, "payload_bytes": each}


def train(
    pilot: Array,
    count: int,
    *,
    seed: int = 0,
    iterations: int = 25,
    progress: Callable[[int], None] | None = None,
) -> Codebooks:
    """`count` books for vectors like those of a pilot, [M, D], by Lloyd's k-means; M of 10,000 is plenty.

    The same arguments give the same books on one machine; on another, matrix products may round otherwise.
    It takes about 512 M D operations an iteration. progress: told how many books are learned.
    Raises ValueError for a pilot of fewer than 256 vectors, or with a feature that float16 does not hold, and
    for a D that is no multiple of count.
    """
    pilot = np.asarray(pilot, dtype=np.float64)
    if pilot.ndim != 2 or len(pilot) < WORDS:
        raise ValueError(f"the pilot has shape {pilot.shape}: give at least {WORDS} vectors")
    size = pilot.shape[1]
    if count < 1 or size % count:
        raise ValueError(f"count: {size} features are no multiple of {count} books")
    if not bool((np.abs(pilot) <= np.finfo(np.float16).max).all()):
        raise ValueError("the pilot has a feature that is not finite, or beyond 65504: scale the vectors")
    rng = np.random.default_rng(seed)
    parts = pilot.reshape(len(pilot), count, size // count)
    books = np.empty((count, WORDS, size // count))
    for number in range(count):
        if progress is not None:
            progress(number)
        books[number] = _k_means(parts[:, number], rng, iterations)
    words = base64.b64encode(books.astype("<f2").tobytes()).decode()
    return Codebooks(size=size, count=count, words=words)


def _k_means(points: Array, rng: np.random.Generator, iterations: int) -> Array:
    """256 words for points [M, w], float64 [256, w]. They begin as points of the pilot, drawn at random."""
    words = points[rng.permutation(len(points))[:WORDS]]
    for _ in range(iterations):
        codes = _nearest(points, words)
        order = np.argsort(codes, kind="stable")
        used, starts, members = np.unique(codes[order], return_index=True, return_counts=True)
        words[used] = np.add.reduceat(points[order], starts) / members[:, None]
        unused = np.setdiff1d(np.arange(WORDS), used)
        if len(unused):
            # A word that is nearest to nothing goes to one of the points that are served worst.
            distance = np.square(points - words[codes]).sum(axis=1)
            words[unused] = points[np.argsort(-distance, kind="stable")[: len(unused)]]
    return words


def _nearest(points: Array, words: Array) -> npt.NDArray[np.int64]:
    """The number of each point's nearest word, of equally near ones the lowest. [M, w], [256, w] to [M]."""
    distances = np.square(words).sum(axis=1) - 2 * (points @ words.T)
    return np.asarray(distances.argmin(axis=1))
