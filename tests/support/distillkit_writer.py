"""DistillKit's Parquet files, encoded by the format's description alone, in plain Python.

Nothing of the importer is in it.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

CODES = {"float16": "<e", "float32": "<f", "float64": "<d"}


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


def captured(config: dict[str, Any], log_probs: npt.NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """A position's two lists of bytes, as a capture makes them of all its log-probabilities [d].

    The k likeliest classes, the first exact_k as they are and a least-squares polynomial through the others.
    """
    ids = np.argsort(-log_probs, kind="stable")[: config["k"]]
    values, exact = log_probs[ids], config["exact_k"]
    last = max(config["k"] - exact - 1, 1)
    ranks = [i / last if config.get("normalize_t") else float(i) for i in range(config["k"] - exact)]
    basis = np.array([[term(name, t) for name in config["polynomial_terms"]] for t in ranks])
    coefficients = np.linalg.lstsq(basis, values[exact:], rcond=None)[0]
    data, _ = position(config, values[:exact].tolist(), coefficients.tolist())
    return list(data), list(packed(ids.tolist(), math.ceil(math.log2(config["d"]))))
