"""How DistillKit lays out the bytes of a position, in both of its forms, and what numbers they stand for.

Knows the layout (github.com/arcee-ai/DistillKit: sample_common.py and compression/), and no files. Decodes in
float64, where DistillKit itself rounds to the dtype of the exact values. The parameters are not in the data,
so they are given, and checked against the length of the data in each position.

A position, in the newer form: `exact_k` log-probabilities; one coefficient for each polynomial term; for each
residual bin a scale and packed integers. Ids: k numbers of ceil(log2 d) bits, packed, most significant first.
In the legacy form the ids are packed into 64-bit words from the least significant bit, none across two words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.interchange.columns import BadCell, matrix
from pipeline.targets.codecs.base import Array

Dtype = Literal["float16", "bfloat16", "float32", "float64"]


class Bin(Config):
    """Residuals of the polynomial, quantised with one scale."""

    scale_dtype: Dtype
    """Of the scale."""

    element_bits: int = Field(ge=1, le=32)
    """Of each residual."""

    num_elements: int = Field(ge=1)
    """Residuals in it."""


class Polynomial(Config):
    """DistillKit's `logprob_compressor`, with its names and its defaults."""

    d: int = Field(ge=1, le=2**32)
    """Vocabulary size."""

    k: int = Field(ge=1)
    """Classes of each position."""

    exact_k: int = Field(ge=0)
    """Of them, those stored as they are."""

    exact_dtype: Dtype = "float32"
    """Of the exact ones."""

    polynomial_terms: list[int | Literal["sqrt", "exp"]] | None = None
    """Powers, and two functions, of the rank."""

    term_dtype: Dtype = "float32"
    """Of the coefficients."""

    residual_bins: list[Bin]
    """Residuals that are stored."""

    delta_encoding: bool = True
    """Whether the values are differences from the one before."""

    error_diffusion: bool = False
    """Changes the numbers, not their meaning."""

    normalize_t: bool = False
    """Whether ranks run from 0 to 1, or from 0 to k - exact_k - 1."""

    @model_validator(mode="after")
    def _fits(self) -> Polynomial:
        if self.exact_k > self.k:
            raise ValueError(f"exact_k {self.exact_k} is more than k {self.k}")
        if sum(item.num_elements for item in self.residual_bins) > self.k - self.exact_k:
            raise ValueError("residual_bins have more elements than k - exact_k")
        return self

    @property
    def size(self) -> int:
        """Vocabulary size."""
        return self.d

    def decode(self, row: Mapping[str, Any]) -> tuple[npt.NDArray[np.int64], Array]:
        """Ids int64 [n, k] and values float64 [n, k] of a row. Raises BadCell."""
        data = _bytes(row, "compressed_logprobs", self._value_bytes())
        packed = _bytes(row, "bytepacked_indices", (self.k * _id_bits(self.d) + 7) // 8)
        if len(data) != len(packed):
            raise BadCell(f"it has {len(data)} positions of values and {len(packed)} of ids")
        return _unpacked(packed, _id_bits(self.d), self.k).astype(np.int64), self._values(data)

    def _value_bytes(self) -> int:
        bins = sum(
            _width(item.scale_dtype) + (item.element_bits * item.num_elements + 7) // 8
            for item in self.residual_bins
        )
        terms = len(self.polynomial_terms or ()) * _width(self.term_dtype)
        return self.exact_k * _width(self.exact_dtype) + terms + bins

    def _values(self, data: npt.NDArray[np.uint8]) -> Array:
        cursor = _Cursor(data)
        exact = cursor.floats(self.exact_dtype, self.exact_k)
        rest = np.zeros((len(data), self.k - self.exact_k))
        if self.polynomial_terms:
            coefficients = cursor.floats(self.term_dtype, len(self.polynomial_terms))
            with np.errstate(over="ignore", invalid="ignore"):
                rest += coefficients @ self._basis().T
        start = 0
        for item in self.residual_bins:
            scale = cursor.floats(item.scale_dtype, 1)
            packed = cursor.take((item.element_bits * item.num_elements + 7) // 8)
            steps = _unpacked(packed, item.element_bits, item.num_elements).astype(np.float64)
            steps = 2 * steps - 1 if item.element_bits == 1 else steps - 2.0 ** (item.element_bits - 1)
            rest[:, start : start + item.num_elements] += steps * scale
            start += item.num_elements
        values = np.concatenate([exact, rest], axis=1)
        return values.cumsum(axis=1) if self.delta_encoding else values

    def _basis(self) -> Array:
        """The terms at each rank, [k - exact_k, terms]."""
        ranks = self.k - self.exact_k
        t = np.linspace(0, 1, ranks) if self.normalize_t else np.arange(ranks, dtype=np.float64)
        functions = {"sqrt": np.sqrt, "exp": np.exp}
        with np.errstate(over="ignore", divide="ignore"):
            columns = [
                functions[term](t) if isinstance(term, str) else t ** float(term)
                for term in self.polynomial_terms or ()
            ]
        return np.stack(columns, axis=1)


class Legacy(Config):
    """DistillKit's `legacy_logit_compression`, with its names and its defaults."""

    vocab_size: int = Field(ge=1, le=2**32)
    """Vocabulary size."""

    k: int = Field(ge=1)
    """Classes of each position."""

    exact_k: int = Field(ge=0)
    """Of them, those stored as they are."""

    polynomial_degree: int = Field(ge=0)
    """Highest power of the rank, or of its inverse."""

    invert_polynomial: bool = True
    """Whether the powers are of 1/rank."""

    with_sqrt_term: bool = False
    """Whether the rank's square root is a term too."""

    term_dtype: Dtype = "float32"
    """Of the coefficients, before they were widened."""

    @model_validator(mode="after")
    def _fits(self) -> Legacy:
        if self.exact_k > self.k:
            raise ValueError(f"exact_k {self.exact_k} is more than k {self.k}")
        return self

    @property
    def size(self) -> int:
        """Vocabulary size."""
        return self.vocab_size

    def decode(self, row: Mapping[str, Any]) -> tuple[npt.NDArray[np.int64], Array]:
        """Ids int64 [n, k] and values float64 [n, k] of a row. Raises BadCell."""
        bits = _id_bits(self.size)
        per_word = 64 // bits if bits else self.k
        words = _columns(matrix(row, "packed_indices", 0), "packed_indices", -(-self.k // per_word))
        if words.dtype.kind not in "iu":
            raise BadCell("packed_indices holds something else than whole numbers")
        exact = _columns(matrix(row, "exact_values", 0.0), "exact_values", self.exact_k)
        ranks = np.arange(1, self.k - self.exact_k + 1, dtype=np.float64)
        powers = np.arange(self.polynomial_degree + 1) * (-1.0 if self.invert_polynomial else 1.0)
        basis = ranks[:, None] ** powers
        if self.with_sqrt_term:
            basis = np.concatenate([basis, np.sqrt(ranks)[:, None]], axis=1)
        terms = basis.shape[1] if len(ranks) else 0
        coefficients = _columns(matrix(row, "coeffs", 0.0), "coeffs", terms)
        if not len(words) == len(exact) == len(coefficients):
            raise BadCell(
                f"it has {len(words)} positions of ids, {len(exact)} of values, {len(coefficients)} of coeffs"
            )
        shifts = (bits * np.arange(per_word)).astype(np.uint64)
        # Signed where the writer could not write unsigned ones: the 64 bits are the same.
        ids = (words.astype(np.uint64)[:, :, None] >> shifts) & np.uint64((1 << bits) - 1)
        with np.errstate(over="ignore", invalid="ignore"):
            rest = coefficients.astype(np.float64) @ basis[:, :terms].T
        values = np.concatenate([exact.astype(np.float64), rest], axis=1)
        return ids.reshape(len(words), -1)[:, : self.k].astype(np.int64), values


class _Cursor:
    """Reads the bytes of all positions at once, from left to right. data: uint8 [n, bytes]."""

    def __init__(self, data: npt.NDArray[np.uint8]) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> npt.NDArray[np.uint8]:
        """The next bytes, [n, count]."""
        self._at += count
        return self._data[:, self._at - count : self._at]

    def floats(self, dtype: Dtype, count: int) -> Array:
        """The next numbers, float64 [n, count]."""
        raw = np.ascontiguousarray(self.take(count * _width(dtype)))
        if dtype == "bfloat16":
            bits = raw.reshape(-1).view("<u2").astype(np.uint32) << np.uint32(16)
            numbers = bits.view(np.float32)
        else:
            numbers = raw.reshape(-1).view({"float16": "<f2", "float32": "<f4", "float64": "<f8"}[dtype])
        return numbers.reshape(len(raw), count).astype(np.float64)


def _width(dtype: Dtype) -> int:
    """Bytes of a number."""
    return {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[dtype]


def _id_bits(size: int) -> int:
    """Bits of an id. In float32, as DistillKit counts them: of 2^21 + 1 classes the last one wraps there."""
    return int(np.ceil(np.log2(np.float32(size))))


def _unpacked(packed: npt.NDArray[np.uint8], bits: int, count: int) -> npt.NDArray[np.uint64]:
    """Integers of a number of bits, most significant first, uint64 [n, count]. packed: uint8 [n, bytes]."""
    flat = np.unpackbits(packed, axis=1, count=bits * count).reshape(len(packed), count, bits)
    out = np.zeros((len(packed), count), dtype=np.uint64)
    for bit in range(bits):
        out = (out << np.uint64(1)) | flat[:, :, bit]
    return out


def _bytes(row: Mapping[str, Any], name: str, wanted: int) -> npt.NDArray[np.uint8]:
    """A column of bytes, [n, wanted]. Raises BadCell when the positions have another number of them."""
    values = _columns(matrix(row, name, 0), name, wanted)
    if values.size and (values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255):
        raise BadCell(f"{name} holds something else than bytes")
    return np.ascontiguousarray(values.astype(np.uint8))


def _columns(values: Array, name: str, wanted: int) -> Array:
    if len(values) and values.shape[1] != wanted:
        raise BadCell(f"{name} has {values.shape[1]} items a position and the config asks for {wanted}")
    return values.reshape(len(values), wanted)
