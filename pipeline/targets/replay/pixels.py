"""Operations on pixels, in integers alone: the same bits on every machine and with every library.

Images are uint8 [height, width, 3], red, green and blue. Factors are in 1024ths: 1024 changes nothing.
Formulas follow Pillow's ImageEnhance and ImageOps (blends with a degenerate image, look-up tables); their
floating-point numbers are replaced by integers, rounded half up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int32]

ONE = 1024
"""A factor that changes nothing."""

TURN = 1536
"""Hues are counted in 256ths of a sixth of the colour circle."""

WHOLE = 1 << 16
"""Weights of a mixture, and matrices, are in 65536ths."""

FILL = 128
"""The grey that stands where a moved image has no pixel."""


def brightness(pixels: Pixels, factor: int) -> Pixels:
    """A blend with black."""
    return _blend(pixels, np.int32(0), factor)


def contrast(pixels: Pixels, factor: int) -> Pixels:
    """A blend with the image's mean luma, rounded."""
    grey = luma(pixels)
    mean = (2 * int(grey.sum(dtype=np.int64)) + grey.size) // (2 * grey.size)
    return _blend(pixels, np.int32(mean), factor)


def saturation(pixels: Pixels, factor: int) -> Pixels:
    """A blend with each pixel's luma."""
    return _blend(pixels, luma(pixels)[..., None], factor)


def sharpness(pixels: Pixels, factor: int) -> Pixels:
    """A blend with the image smoothed by a kernel of ones, 5 at its centre, over 13; the border stays."""
    wide = pixels.astype(np.int32)
    smooth = wide.copy()
    height, width = pixels.shape[:2]
    if height > 2 and width > 2:
        total = 4 * wide[1:-1, 1:-1]
        for y in range(3):
            for x in range(3):
                total = total + wide[y : y + height - 2, x : x + width - 2]
        smooth[1:-1, 1:-1] = (2 * total + 13) // 26
    return _blend(pixels, smooth, factor)


def hue(pixels: Pixels, shift: int) -> Pixels:
    """Hues turned by shift / TURN of the circle; value and chroma of the hexcone model (Smith 1978) stay."""
    red, green, blue = (pixels[..., c].astype(np.int32) for c in range(3))
    high = np.maximum(np.maximum(red, green), blue)
    low = np.minimum(np.minimum(red, green), blue)
    chroma = high - low
    by_red, by_green = high == red, high == green
    numerator = np.where(by_red, green - blue, np.where(by_green, blue - red, red - green))
    first = np.where(by_red, 0, np.where(by_green, TURN // 3, 2 * TURN // 3))
    angle = first + _rounded(256 * numerator, np.maximum(chroma, 1)) + shift
    out = np.empty_like(pixels)
    for channel, offset in enumerate((5, 3, 1)):
        place = (256 * offset + angle) % TURN
        below = np.minimum(place, 1024 - place).clip(0, 256)  # how far the channel is below the highest
        out[..., channel] = high - ((chroma * below + 128) >> 8)
    return out


def autocontrast(pixels: Pixels) -> Pixels:
    """Each channel stretched so that its darkest value is 0 and its brightest 255."""
    out = pixels.copy()
    for channel in range(3):
        low, high = int(pixels[..., channel].min()), int(pixels[..., channel].max())
        if low < high:
            table = _rounded((np.arange(256) - low) * 255, high - low).clip(0, 255).astype(np.uint8)
            out[..., channel] = table[pixels[..., channel]]
    return out


def equalize(pixels: Pixels) -> Pixels:
    """Each channel by the look-up table of Pillow's ImageOps.equalize, which is of integers."""
    out = pixels.copy()
    for channel in range(3):
        counts = np.bincount(pixels[..., channel].ravel(), minlength=256)
        step = (int(counts.sum()) - int(counts[np.flatnonzero(counts)[-1]])) // 255
        if step and np.count_nonzero(counts) > 1:
            before = np.cumsum(counts) - counts
            table = ((step // 2 + before) // step).clip(0, 255).astype(np.uint8)
            out[..., channel] = table[pixels[..., channel]]
    return out


def posterize(pixels: Pixels, bits: int) -> Pixels:
    """The highest bits of each value."""
    return pixels & np.uint8(256 - (1 << (8 - bits)))


def solarize(pixels: Pixels, threshold: int) -> Pixels:
    """Values from the threshold on, inverted."""
    return np.where(pixels >= threshold, 255 - pixels, pixels)


def rotate(pixels: Pixels, degrees: int) -> Pixels:
    """About the centre, counter-clockwise."""
    cosine = round(math.cos(math.radians(degrees)) * WHOLE)
    sine = round(math.sin(math.radians(degrees)) * WHOLE)
    return _moved(pixels, (cosine, -sine, sine, cosine), (0, 0))


def shear_x(pixels: Pixels, factor: int) -> Pixels:
    """Each row moved left by factor / 1024 of its distance below the centre."""
    return _moved(pixels, (WHOLE, factor * WHOLE // ONE, 0, WHOLE), (0, 0))


def shear_y(pixels: Pixels, factor: int) -> Pixels:
    """Each column moved up by factor / 1024 of its distance right of the centre."""
    return _moved(pixels, (WHOLE, 0, factor * WHOLE // ONE, WHOLE), (0, 0))


def translate_x(pixels: Pixels, distance: int) -> Pixels:
    """Moved right by pixels."""
    return _moved(pixels, (WHOLE, 0, 0, WHOLE), (-distance, 0))


def translate_y(pixels: Pixels, distance: int) -> Pixels:
    """Moved down by pixels."""
    return _moved(pixels, (WHOLE, 0, 0, WHOLE), (0, -distance))


def mixup(pixels: Pixels, other: Pixels, weight: int) -> Pixels:
    """weight / 65536 of the first and the rest of the second (Zhang et al. 2018)."""
    first, second = pixels.astype(np.uint32), other.astype(np.uint32)
    mixed = first * np.uint32(weight) + second * np.uint32(WHOLE - weight) + np.uint32(WHOLE // 2)
    return (mixed >> 16).astype(np.uint8)


def cutmix(pixels: Pixels, other: Pixels, box: tuple[int, int, int, int]) -> Pixels:
    """The second where the box (left, top, width, height) is, the first elsewhere (Yun et al. 2019)."""
    left, top, width, height = box
    area = slice(top, top + height), slice(left, left + width)
    out = pixels.copy()
    out[area] = other[area]
    return out


def luma(pixels: Pixels) -> Ints:
    """ITU-R 601-2, as Pillow's mode L: int32 [height, width] of 0 to 255."""
    red, green, blue = (pixels[..., c].astype(np.int32) for c in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


@dataclass(frozen=True)
class Operation:
    """What a ledger may ask for. low, high: bounds of its argument; None if it has none."""

    apply: Callable[..., Pixels]
    low: int | None = None
    high: int | None = None


OPERATIONS = {
    "autocontrast": Operation(autocontrast),
    "brightness": Operation(brightness, 0, 16 * ONE),
    "contrast": Operation(contrast, 0, 16 * ONE),
    "equalize": Operation(equalize),
    "hue": Operation(hue, -TURN, TURN),
    "posterize": Operation(posterize, 1, 8),
    "rotate": Operation(rotate, -360, 360),
    "saturation": Operation(saturation, 0, 16 * ONE),
    "sharpness": Operation(sharpness, 0, 16 * ONE),
    "shear_x": Operation(shear_x, -ONE, ONE),
    "shear_y": Operation(shear_y, -ONE, ONE),
    "solarize": Operation(solarize, 0, 256),
    "translate_x": Operation(translate_x, -(1 << 14), 1 << 14),
    "translate_y": Operation(translate_y, -(1 << 14), 1 << 14),
}


def _blend(pixels: Pixels, other: Ints | np.int32, factor: int) -> Pixels:
    """other + factor (pixels - other), clipped."""
    mixed = pixels.astype(np.int32) * factor + other * (ONE - factor) + ONE // 2
    return (mixed >> 10).clip(0, 255).astype(np.uint8)


def _rounded(numerator: npt.NDArray[Any], denominator: npt.NDArray[Any] | int) -> npt.NDArray[Any]:
    """The nearest integer, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)


def _moved(pixels: Pixels, matrix: tuple[int, int, int, int], shift: tuple[int, int]) -> Pixels:
    """The nearest pixel at matrix · (x, y) + shift, both from the centre of the image, for every pixel."""
    a, b, c, d = matrix
    height, width = pixels.shape[:2]
    # Twice the distance of pixel centres from the image's centre is an integer.
    x = 2 * np.arange(width, dtype=np.int64) + 1 - width
    y = (2 * np.arange(height, dtype=np.int64) + 1 - height)[:, None]
    column = (a * x + b * y + (2 * shift[0] + width) * WHOLE) // (2 * WHOLE)
    row = (c * x + d * y + (2 * shift[1] + height) * WHOLE) // (2 * WHOLE)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    found = pixels[row.clip(0, height - 1), column.clip(0, width - 1)]
    return np.where(inside[..., None], found, np.uint8(FILL))
