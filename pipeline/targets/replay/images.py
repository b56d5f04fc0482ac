"""Image views: the bytes of an image file and a ledger entry become pixels, to the bit.

A crop by an explicit box, resized by Pillow (which computes in integers), a flip, operations of `pixels`, a
mixture, and a table that normalises. It needs Pillow, inside functions; it draws nothing.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.targets.errors import SpecMismatch, UserError
from pipeline.targets.ragged import Array
from pipeline.targets.replay.base import (
    Partner,
    Replay,
    Unrenderable,
    declared,
    encoded,
    field_of,
    integers,
)
from pipeline.targets.replay.pixels import OPERATIONS, WHOLE, Pixels, cutmix, mixup
from pipeline.targets.spec import Input
from pipeline.targets.strict import nearest

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""What is decoded; Pillow has decoders for many others that few have looked at."""

FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")
"""Pillow's, by name."""

MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
"""Pixels of 8 bits a channel or fewer, which become RGB. Alpha is dropped."""


class ImageReplay(Replay):
    """Renders one input of pixels, uint8 or float32 [3, size, size]."""

    def __init__(self, views: Mapping[str, Any]) -> None:
        """views: the store's description. Raises SpecMismatch where it is none of images."""
        self.field, self.name = declared(views, "field", str), declared(views, "name", str)
        self.size, self.max_pixels = declared(views, "size", int), declared(views, "max_pixels", int)
        self.reach, self.decoder = declared(views, "reach", int), declared(views, "decoder", str)
        self._resample = declared(views, "resample", str)
        if self._resample not in FILTERS:
            raise SpecMismatch(
                f"the store's views declare resample {self._resample!r}{nearest(self._resample, FILTERS)}"
            )
        dtype = declared(views, "dtype", str)
        try:
            self.inputs = (Input(self.name, np.dtype(dtype).str, (3, self.size, self.size)),)
            self._table = None if dtype == "uint8" else normalised(views["mean"], views["std"])
        except (KeyError, TypeError, ValueError) as error:
            raise SpecMismatch(
                f"the store's views are no images that this Decant renders: {error}"
            ) from error

    def decode(self, data: Mapping[str, Any]) -> Image:
        """The record's image in RGB, turned as its EXIF orientation says.

        The field holds the bytes of a file of FORMATS, or pixels as an array uint8 [height, width, 3].
        """
        images, operations = pillow()
        value = field_of(data, self.field)
        if isinstance(value, np.ndarray) and value.ndim == 3:
            if value.dtype != np.uint8 or value.shape[2] != 3 or not value.size:
                raise Unrenderable(
                    "undecodable",
                    f"has an array {value.dtype} {list(value.shape)}, no pixels uint8 [height, width, 3]",
                )
            self._bound(value.shape[1], value.shape[0])
            pixels: Image = images.fromarray(np.ascontiguousarray(value))
            return pixels
        file = io.BytesIO(encoded(value, "an image file"))
        try:
            with images.open(file, formats=FORMATS) as image:
                self._bound(*image.size)
                if image.mode not in MODES:
                    raise Unrenderable(
                        "undecodable", f"has pixels of mode {image.mode}, not of 8 bits a channel"
                    )
                image.load()
                turned: Image = operations.exif_transpose(image).convert("RGB")
                return turned
        except Unrenderable:
            raise
        except images.UnidentifiedImageError as error:
            raise Unrenderable("undecodable", f"is no image of the formats {', '.join(FORMATS)}") from error
        except images.DecompressionBombError as error:
            raise Unrenderable("too_large", f"is too large an image: {error}") from error
        except MemoryError:
            raise
        except Exception as error:  # hostile bytes make decoders raise anything
            raise Unrenderable("undecodable", f"is a broken image: {error}") from error

    def _bound(self, width: int, height: int) -> None:
        """Before any pixel is decoded: a file of a kilobyte can declare a billion of them."""
        if width * height > self.max_pixels:
            raise Unrenderable(
                "too_large",
                f"is an image of {width} × {height} pixels, more than max_pixels ({self.max_pixels})",
            )

    def partner(self, entry: Mapping[str, Any]) -> Partner | None:
        if (mix := entry.get("mix")) is None:
            return None
        row, key = _mapping(mix, "mix").get("row"), mix.get("key")
        if type(row) is not int or not isinstance(key, str):
            raise Unrenderable("undecodable", "has no row and key of a partner in its ledger entry")
        return Partner(row, key)

    def render(
        self, entry: Mapping[str, Any], record: Image, partner: Image | None = None
    ) -> dict[str, Array]:
        pixels = self._view(entry, record)
        if (mix := entry.get("mix")) is not None:
            other = _mapping(_mapping(mix, "mix").get("view"), "view of a partner")
            if partner is None:
                raise Unrenderable("undecodable", "is mixed with a record that is not there")
            pixels = self._mixed(pixels, mix, self._view(other, partner))
        channels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        if self._table is None:
            return {self.name: channels}
        return {self.name: np.stack([self._table[c][channels[c]] for c in range(3)])}

    def _view(self, entry: Mapping[str, Any], image: Image) -> Pixels:
        """Crop, resize, flip, operations: uint8 [size, size, 3]."""
        left, top, width, height = integers(entry.get("crop"), 4, "crop")
        if left < 0 or top < 0 or width < 1 or height < 1:
            raise Unrenderable("undecodable", f"has the impossible crop {entry['crop']} in its ledger entry")
        if left + width > image.width or top + height > image.height:
            raise Unrenderable(
                "undecodable",
                f"has {image.width} × {image.height} pixels, which the crop {entry['crop']} does not fit",
            )
        images, _ = pillow()
        resample = images.Resampling[self._resample.upper()]
        part = image.crop((left, top, left + width, top + height))
        pixels: Pixels = np.asarray(part.resize((self.size, self.size), resample))
        if entry.get("flip"):
            pixels = pixels[:, ::-1]
        operations = entry.get("ops", [])
        if not isinstance(operations, list):
            raise Unrenderable("undecodable", "has no list of ops in its ledger entry")
        for operation in operations:
            pixels = _operated(pixels, operation)
        return pixels

    def _mixed(self, pixels: Pixels, mix: Mapping[str, Any], other: Pixels) -> Pixels:
        if "box" in mix:
            left, top, width, height = integers(mix["box"], 4, "box")
            if min(left, top, width, height) < 0 or max(left + width, top + height) > self.size:
                raise Unrenderable("undecodable", f"has the impossible box {mix['box']} in its ledger entry")
            return cutmix(pixels, other, (left, top, width, height))
        (weight,) = integers([mix.get("weight")], 1, "weight")
        if not 0 <= weight <= WHOLE:
            raise Unrenderable("undecodable", f"has the impossible weight {weight} in its ledger entry")
        return mixup(pixels, other, weight)


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Unrenderable("undecodable", f"has no {what} in its ledger entry")
    return value


def _operated(pixels: Pixels, operation: Any) -> Pixels:
    known = isinstance(operation, list) and operation and isinstance(operation[0], str)
    found = OPERATIONS.get(operation[0]) if known else None
    if found is None:
        raise Unrenderable("undecodable", f"has the unknown operation {operation!r} in its ledger entry")
    arguments = integers(operation[1:], 0 if found.low is None else 1, f"argument of {operation[0]}")
    if found.low is not None and found.high is not None and not found.low <= arguments[0] <= found.high:
        raise Unrenderable(
            "undecodable", f"has {operation} beyond {found.low} to {found.high} in its ledger entry"
        )
    return found.apply(pixels, *arguments)


def normalised(mean: Any, std: Any) -> Array:
    """(value / 255 - mean) / std of all 256 values, float32 [3, 256]: computed in double, rounded once."""
    means, deviations = np.array(mean, dtype=np.float64), np.array(std, dtype=np.float64)
    if means.shape != (3,) or deviations.shape != (3,) or not (deviations > 0).all():
        raise ValueError("mean and std are of three numbers, those of std positive")
    return ((np.arange(256) / 255 - means[:, None]) / deviations[:, None]).astype("<f4")


def pillow() -> tuple[Any, Any]:
    """Pillow's modules Image and ImageOps. Raises UserError where it is not installed."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise UserError("images need Pillow: pip install 'decant-kd[images]'") from error
    return Image, ImageOps


def decoders() -> str:
    """The libraries whose release decides about a decoded pixel, and which release this is."""
    pillow()
    from PIL import features

    names = {"pillow": "pil", "libjpeg-turbo": "libjpeg_turbo", "libjpeg": "jpg", "webp": "webp"}
    found = {name: features.version(feature) for name, feature in names.items()}
    return ", ".join(f"{name} {version}" for name, version in found.items() if version)
