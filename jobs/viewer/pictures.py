"""Arrays as PNG files: grey or RGB, and small enough for hundreds of them on one page.

It knows shapes and value ranges, and nothing of what is in a picture.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

LARGEST = 160
"""Pixels along a side. A larger picture is shrunk by whole pixels, each the mean of a square."""

Array = npt.NDArray[Any]


class Picture(NamedTuple):
    """png: the file. note: what was done to the values or to the size, empty if nothing."""

    png: bytes
    note: str


def is_picture(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Whether an array can be drawn: [H, W], [C, H, W] or [H, W, C], C being 1 or 3, of bytes or floats."""
    if dtype != np.uint8 and dtype.kind != "f":
        return False
    if len(shape) == 2:
        return min(shape) > 1
    return len(shape) == 3 and (shape[0] in (1, 3) or shape[2] in (1, 3))


def draw(array: Array) -> Picture:
    """An array for which `is_picture` holds.

    Bytes are drawn as they are. Floats from 0 to 1 are drawn as such, others are stretched from their own
    least to their own largest value; what is not finite is drawn as the least.
    """
    pixels, notes = _channels_last(array), []
    if pixels.dtype != np.uint8:
        pixels, note = _stretched(pixels.astype(np.float64))
        notes += [note] if note else []
    height, width = pixels.shape[:2]
    step = -(-max(height, width) // LARGEST)
    if step > 1:
        notes.append(f"shrunk from {width} × {height}")
        pixels = _shrunk(pixels, step)
    return Picture(_png(pixels), ", ".join(notes))


def _channels_last(array: Array) -> Array:
    if array.ndim == 2:
        return array[:, :, None]
    return np.moveaxis(array, 0, 2) if array.shape[0] in (1, 3) else array


def _stretched(values: npt.NDArray[np.float64]) -> tuple[Array, str]:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    note = ""
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    else:
        note = f"black is {low:.3g}, white {high:.3g}"
    scaled = (np.nan_to_num(values, nan=low, posinf=low, neginf=low) - low) / max(high - low, 1e-300)
    return (scaled * 255).round().astype(np.uint8), note


def _shrunk(pixels: Array, step: int) -> Array:
    height, width, channels = pixels.shape
    padded = np.pad(pixels, ((0, -height % step), (0, -width % step), (0, 0)), mode="edge")
    squares = padded.reshape(-(-height // step), step, -(-width // step), step, channels)
    return np.asarray(squares.mean(axis=(1, 3)).round(), dtype=np.uint8)


def _png(pixels: Array) -> bytes:
    """[H, W, 1 or 3] of bytes. The format: https://www.w3.org/TR/png/."""
    height, width, channels = pixels.shape
    lines = np.zeros((height, 1 + width * channels), dtype=np.uint8)  # each begins with its filter, 0: none
    lines[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    body = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)
