"""CIFAR-10's files, and the corpus that is made of them: PNG files in Parquet. Knows no nets."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jobs.recipes.corpus import Labels, Pixels, write_parquet
from pipeline.targets.errors import CorpusMissing, CorpusUnreadable

SIDE, CLASSES = 32, 10


class Pictures(NamedTuple):
    """images: uint8 [N, 32, 32, 3]; labels: int64 [N]."""

    images: Pixels
    labels: Labels


def read(data: Path, part: str) -> Pictures:
    """The "train" or the "test" part of `data`/cifar10, which has strips of pictures, one below the other, as
    lossless WebP files, and the labels as bytes. Raises CorpusMissing or CorpusUnreadable.
    """
    from PIL import Image

    folder = data / "cifar10"
    strips, labels_file = sorted(folder.glob(f"{part}-*.webp")), folder / f"{part}-labels.u8"
    if not strips or not labels_file.exists():
        raise CorpusMissing(
            f"{folder} has no {part}-*.webp and {part}-labels.u8: --data names the folder above"
        )
    images = []
    for strip in strips:
        try:
            with Image.open(strip, formats=["WEBP"]) as image:
                images.append(np.asarray(image.convert("RGB")).reshape(-1, SIDE, SIDE, 3))
        except (OSError, ValueError) as error:
            raise CorpusUnreadable(f"{strip} is no strip of pictures ({error}): copy it again") from error
    labels = np.fromfile(labels_file, np.uint8).astype(np.int64)
    found = Pictures(np.concatenate(images), labels)
    if len(found.images) != len(labels):
        raise CorpusUnreadable(
            f"{folder} has {len(found.images)} {part} pictures and {len(labels)} labels: copy it again"
        )
    return found


def write_corpus(path: Path, pictures: Pictures) -> None:
    """A Parquet file with the columns "image" (PNG) and "label"."""
    if not path.exists():
        write_parquet(path, [_png(image) for image in pictures.images], pictures.labels)


def _png(pixels: Pixels) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
