"""Small groups of ascending ids as few bits: gaps, each a code byte and some plain bits.

A gap g below 8 is its own code. Another one, of e + 1 binary digits, has the code 8 (e - 2) + the three
digits after the first; the e - 3 that are left are written as they are. Gaps of one size are about equally
frequent, so the plain bits would not compress; the codes do, and the general compressor behind (the Huffman
stage of zstd) takes from them what their frequencies allow. It knows numbers and rows, and no targets.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.targets.ragged import Ragged, offsets_of

Codes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

LARGEST = 2**32 - 1
"""Gap that can be written."""

_CODES = 8 * 30
_NUMBERS = np.arange(_CODES)
_BITS = np.maximum(_NUMBERS // 8 - 1, 0)
"""Plain bits behind a code."""
_MASKS = ((1 << _BITS) - 1).astype(np.uint32)
_BASES = np.where(_NUMBERS < 8, _NUMBERS, (8 + _NUMBERS % 8) << _BITS).astype(np.uint32)
_WINDOWS = {"<u4": 8 * 26, "<u8": _CODES}
"""Words that hold the plain bits of all codes below, wherever in the first byte these begin."""


def encode(gaps: Ints, bounds: Ints) -> tuple[Codes, Ragged]:
    """Codes [E], and the plain bits of each row, lowest first, filled up to bytes.

    gaps: [E], 0 to LARGEST; bounds: [rows + 1], row r has the gaps bounds[r]:bounds[r + 1].
    """
    left = np.maximum(np.frexp(gaps.astype(np.float64))[1].astype(np.int64) - 4, 0)
    codes = np.where(gaps < 8, gaps, 8 * (left + 1) + ((gaps >> left) & 7)).astype(np.uint8)
    starts, offsets = _places(_BITS[codes], bounds)
    size = int(offsets[-1])
    filled = np.zeros(size + 8)
    shifted = (gaps & ((1 << left) - 1)) << (starts & 7)
    first = starts >> 3
    for byte in range(int((left.max(initial=0) + 14) // 8)):
        # The bits of two gaps never meet in a byte, so that adding is putting together.
        part = (shifted >> (8 * byte)) & 255
        filled += np.bincount(first + byte, weights=part, minlength=size + 8)[: size + 8]
    return codes, Ragged(filled[:size].astype(np.uint8), offsets)


def decode(codes: Codes, bits: Ragged, bounds: Ints) -> npt.NDArray[np.uint32]:
    """The gaps again, [E].

    Raises ValueError when the bits are not as many as the codes ask for.
    """
    largest = int(codes.max()) if len(codes) else 0
    if largest >= _CODES:
        raise ValueError("a code is none")
    index = codes.astype(np.intp)  # by bytes, NumPy would gather at a third of the speed
    starts, offsets = _places(_BITS[index], bounds)
    if not np.array_equal(offsets, bits.offsets):
        raise ValueError("the bits are not as many as the codes ask for")
    word = next(word for word, below in _WINDOWS.items() if largest < below)
    padded = np.concatenate([bits.values, np.zeros(8, np.uint8)])
    # Of every byte on, the word from there: an overlapping view, copied, for a gather from it is slow.
    words = np.ascontiguousarray(np.ndarray((len(bits.values) + 1,), word, padded, strides=(1,)))
    found: npt.NDArray[np.unsignedinteger] = words[starts >> 3]
    found >>= (starts & 7).astype(word)
    plain = found.astype(np.uint32, copy=False)
    plain &= _MASKS[index]
    plain += _BASES[index]
    return plain


def _places(left: Ints, bounds: Ints) -> tuple[Ints, Ints]:
    """Where the plain bits of each gap start, and each row's bytes, when every row begins with a byte.

    left: plain bits of each gap, [E].
    """
    ends = np.cumsum(left)
    at = np.concatenate([np.zeros(1, np.int64), ends])[bounds]
    offsets = offsets_of((np.diff(at) + 7) // 8)
    ends -= left
    ends += np.repeat(8 * offsets[:-1] - at[:-1], np.diff(bounds))
    return ends, offsets
