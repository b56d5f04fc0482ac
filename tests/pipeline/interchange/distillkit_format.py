"""DistillKit's captures, written by an encoder from the format's description, in plain Python.

The importer's code has no part in the bytes.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.interchange.distillkit_forms import Polynomial

CODES = {"float16": "<e", "float32": "<f", "float64": "<d"}


SMALL = {
    "d": 1000,
    "k": 6,
    "exact_k": 2,
    "exact_dtype": "float32",
    "polynomial_terms": [0, 1, "sqrt"],
    "term_dtype": "float32",
    "residual_bins": [],
    "delta_encoding": False,
}
"""Four of six log-probabilities from a polynomial."""


COEFFICIENTS = [-4.0, -0.25, -0.5]
"""Of the terms of SMALL."""


def number(dtype: str, value: float) -> bytes:
    if dtype == "bfloat16":
        return struct.pack("<f", value)[2:]
    return struct.pack(CODES[dtype], value)


def rounded(dtype: str, value: float) -> float:
    if dtype == "bfloat16":
        return float(struct.unpack("<f", b"\0\0" + number(dtype, value))[0])
    return float(struct.unpack(CODES[dtype], number(dtype, value))[0])


def packed(values: list[int], bits: int) -> bytes:
    """Most significant bit first, zeros at the end."""
    text = "".join(format(value, f"0{bits}b") for value in values)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


def words(values: list[int], bits: int) -> list[int]:
    """In 64-bit words from the least significant bit, none across two words."""
    each = 64 // bits
    groups = [values[i : i + each] for i in range(0, len(values), each)]
    return [sum(value << (bits * i) for i, value in enumerate(group)) for group in groups]


def term(name: int | str, t: float) -> float:
    return {"sqrt": math.sqrt, "exp": math.exp}[name](t) if isinstance(name, str) else t**name


def position(
    config: dict[str, Any],
    exact: list[float],
    coefficients: list[float],
    bins: list[tuple[float, list[int]]] = (),  # type: ignore[assignment]
) -> tuple[bytes, list[float]]:
    """A position's bytes, and the log-probabilities that they stand for."""
    data = b"".join(number(config["exact_dtype"], value) for value in exact)
    values = [rounded(config["exact_dtype"], value) for value in exact]
    terms = config.get("polynomial_terms") or []
    data += b"".join(number(config["term_dtype"], value) for value in coefficients)
    count = config["k"] - config["exact_k"]
    last = max(count - 1, 1)
    ranks = [i / last if config.get("normalize_t") else float(i) for i in range(count)]
    stored = [rounded(config["term_dtype"], value) for value in coefficients]
    rest = [math.fsum(c * term(name, t) for c, name in zip(stored, terms, strict=True)) for t in ranks]
    at = 0
    for shape, (scale, steps) in zip(config["residual_bins"], bins, strict=True):
        data += number(shape["scale_dtype"], scale) + packed(steps, shape["element_bits"])
        bits = shape["element_bits"]
        for step in steps:
            signed = 2 * step - 1 if bits == 1 else step - 2 ** (bits - 1)
            rest[at] += signed * rounded(shape["scale_dtype"], scale)
            at += 1
    values += rest
    if config.get("delta_encoding", True):
        values = [math.fsum(values[: i + 1]) for i in range(len(values))]
    return data, values


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """As DistillKit's own schema says."""
    schema = pa.schema(
        [
            ("input_ids", pa.list_(pa.uint64())),
            ("compressed_logprobs", pa.list_(pa.list_(pa.uint8()))),
            ("bytepacked_indices", pa.list_(pa.list_(pa.uint8()))),
        ]
    )
    if rows and "attention_mask" in rows[0]:
        schema = schema.append(pa.field("attention_mask", pa.list_(pa.int64())))
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


def small_row(tokens: list[int], targets: int, first: int = 0, **more: Any) -> dict[str, Any]:
    """A row of SMALL whose target i keeps the classes 6 (first + i) to 6 (first + i) + 5."""
    data, _ = position(SMALL, [-0.5, -1.5], COEFFICIENTS)
    ids = [[6 * (first + i) + j for j in range(6)] for i in range(targets)]
    return {
        "input_ids": tokens,
        "compressed_logprobs": [list(data)] * targets,
        "bytepacked_indices": [list(packed(item, 10)) for item in ids],
        **more,
    }


def small_probabilities(target: int) -> dict[int, float]:
    values = position(SMALL, [-0.5, -1.5], COEFFICIENTS)[1]
    return {6 * target + j: math.exp(value) for j, value in enumerate(values)}


def configuration(**changes: Any) -> Polynomial:
    return Polynomial.model_validate({**SMALL, **changes})
