"""Small image files, made here."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from pipeline.targets.replay.pixels import Pixels


def picture(seed: int, width: int = 40, height: int = 32) -> Pixels:
    """Smooth colours, uint8 [height, width, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: Pixels, form: str = "PNG", **options: Any) -> bytes:
    """A file of those pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()
