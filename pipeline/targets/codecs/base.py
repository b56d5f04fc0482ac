"""What a codec is, and the flat arrays it stores.

A codec turns N teacher outputs of one head, [N, V], into a few small arrays and back. It knows nothing of
rows, files or models: containers lay its arrays out, readers hand them back. A codec is a frozen dataclass
whose fields are its whole configuration, so `dataclasses.asdict` is its JSON and the JSON rebuilds it. A
field that a released codec gets later stays out of its JSON at its default, or every store's fingerprint
would change.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from pipeline.targets.ragged import Array as Array
from pipeline.targets.ragged import Ragged
from pipeline.targets.ragged import offsets_of as offsets_of
from pipeline.targets.ragged import ranges as ranges

if TYPE_CHECKING:
    import torch

    from pipeline.targets.decoded import Targets


@dataclasses.dataclass(frozen=True)
class Field:
    """One array of a codec, in memory.

    Without `counted_by` it has one item of `shape` per target, array [N, *shape]. With it, it is ragged: the
    field of that name says how many items each target has, array [sum(counts), *shape].
    `dtype` is a little-endian NumPy name, for example "<u2".
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    counted_by: str | None = None


@dataclasses.dataclass(frozen=True)
class Column:
    """What a shard stores of a head: for each row some items of `shape`, of a little-endian NumPy dtype.

    per_target: whether that is exactly one item a target, so that nobody has to store how many.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    per_target: bool = False


Encoded = dict[str, Array]
"""Field name -> flat array, as `Field` describes it, for N targets in order."""


class NonFiniteLogits(ValueError):
    """Some rows of the logits have no distribution: a NaN, a +inf, or nothing but -inf.

    `rows` is a boolean array [N], true where the row is bad.
    """

    def __init__(self, rows: npt.NDArray[np.bool_]) -> None:
        self.rows = rows
        super().__init__(f"{int(rows.sum())} of {rows.size} targets have logits that are not finite")


Of = Literal["logits", "embeddings"]
"""What a head's numbers are: logits of classes, or features of a vector."""


class Codec(ABC):
    """How targets are made smaller, and exactly how a reader gets a distribution back."""

    kind: str
    """The codec's name in JSON: in each subclass a dataclass field, `kind: Literal["x"] = "x"`."""

    of: ClassVar[Of] = "logits"
    """What it encodes. Where a codec of embeddings takes or names logits, they are features, [N, D]."""

    @property
    def draws(self) -> int:
        """Uniform random numbers that encoding one target takes (see `uniforms`)."""
        return 0

    @abstractmethod
    def layout(self, size: int) -> tuple[Field, ...]:
        """The arrays that hold targets of a head of `size` classes."""

    def columns(self, size: int) -> tuple[Column, ...]:
        """The columns of a shard that `pack` makes of them: by default each array as it is."""
        return tuple(
            Column(field.name, field.dtype, field.shape, per_target=field.counted_by is None)
            for field in self.layout(size)
        )

    def pack(self, encoded: Encoded, counts: npt.NDArray[np.int64], size: int) -> dict[str, Ragged]:
        """By column, what each row stores. counts: targets of each row, int64 [rows]."""
        bounds = offsets_of(counts)
        return {
            field.name: Ragged(
                encoded[field.name],
                bounds if field.counted_by is None else offsets_of(encoded[field.counted_by])[bounds],
            )
            for field in self.layout(size)
        }

    def unpack(self, stored: Mapping[str, Ragged], counts: npt.NDArray[np.int64], size: int) -> Encoded:
        """The arrays again. What is stored may come from anywhere.

        Raises ValueError, naming the column, where it contradicts the counts or itself.
        """
        bounds, encoded = offsets_of(counts), Encoded()
        for field in self.layout(size):
            found, expected = stored[field.name], bounds
            if field.counted_by is not None:
                expected = offsets_of(encoded[field.counted_by])[bounds]
            if not np.array_equal(found.offsets, expected):
                raise ValueError(f"{field.name} disagrees with the counts of its row")
            encoded[field.name] = found.values
        return encoded

    @abstractmethod
    def encode(self, logits: Array, uniforms: Array) -> Encoded:
        """The reference: NumPy, float64 inside.

        logits: [N, V] any float dtype; -inf is a class the teacher excludes.
        uniforms: [N, draws] float64 in [0, 1); encoding is a pure function of both.
        Raises NonFiniteLogits.
        """

    @abstractmethod
    def encode_torch(self, logits: torch.Tensor, uniforms: Array) -> Encoded:
        """The same on the tensor's device; agreement with `encode` is stated by each codec.

        Only the small result travels to the host. Raises NonFiniteLogits.
        """

    @abstractmethod
    def decode(self, encoded: Encoded, size: int) -> Targets:
        """The targets that the arrays stand for."""

    @abstractmethod
    def statistics(self, encoded: Encoded, size: int) -> dict[str, float]:
        """Means per target that a commit record keeps: "entries" stored, "payload_bytes" before compression,
        and of logits "captured_mass", the probability stored with a value of its own; 0 for no target.
        """

    def to_json(self) -> dict[str, Any]:
        """The configuration that `codec_from_json` rebuilds the codec from."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]


def uniforms(seed: int, head: str, key: str, view: int, targets: int, draws: int) -> Array:
    """The random numbers of one row, float64 [targets, draws] in [0, 1).

    A function of the store's seed and the row's identity alone, so a unit labelled again, elsewhere or in
    other batches, draws the same numbers.
    """
    name = json.dumps([seed, head, key, view], ensure_ascii=True, separators=(",", ":"))
    digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
    philox = np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64))
    return np.random.Generator(philox).random((targets, draws))


def take(encoded: Encoded, layout: Sequence[Field], targets: npt.NDArray[np.int64]) -> Encoded:
    """The chosen targets, in the order given."""
    out: Encoded = {}
    for field in layout:
        array = encoded[field.name]
        if field.counted_by is None:
            out[field.name] = array[targets]
        else:
            counts = encoded[field.counted_by]
            starts = offsets_of(counts)[:-1]
            out[field.name] = array[ranges(starts[targets], counts[targets])]
    return out


def concatenate(parts: Sequence[Encoded], layout: Sequence[Field]) -> Encoded:
    """Targets of all the parts, one after the other. No part: no target."""
    return {
        field.name: np.concatenate([part[field.name] for part in parts])
        if parts
        else np.zeros((0, *field.shape), dtype=field.dtype)
        for field in layout
    }


def id_dtype(size: int) -> str:
    """The smallest stored integer that holds every id of a vocabulary of `size` (up to 2**32)."""
    if size <= 2**16:
        return "<u2"
    if size <= 2**32:
        return "<u4"
    raise ValueError(f"a head of {size} classes is more than 2**32")


def count_dtype(most: int) -> str:
    """The smallest stored integer that holds counts up to `most`."""
    return "|u1" if most <= 255 else "<u2" if most <= 65535 else "<u4"


def chunks(logits: torch.Tensor) -> range:
    """Starts of row chunks whose scratch stays in a CPU's cache, or is small for an accelerator."""
    elements = 2**20 if logits.device.type == "cpu" else 2**25
    return range(0, len(logits), max(1, elements // logits.shape[1]))


def as_mapping(codec: Codec) -> Mapping[str, Any]:
    """For messages: the configuration without its kind."""
    return {name: value for name, value in codec.to_json().items() if name != "kind"}
