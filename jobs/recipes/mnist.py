"""MNIST's files, and the corpus that is made of them: one Parquet file a digit. Knows no nets."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from jobs.recipes.corpus import Labels, Pixels, write_parquet
from pipeline.targets.errors import CorpusMissing, CorpusUnreadable

SIDE, CLASSES = 28, 10
PIXELS = SIDE * SIDE
PARTS = {"train": "train", "test": "t10k"}


class Digits(NamedTuple):
    """images: uint8 [N, 784], 0 the paper and 255 the ink; labels: int64 [N]."""

    images: Pixels
    labels: Labels


def read(data: Path, part: str) -> Digits:
    """The "train" or the "test" part of `data`/mnist. Raises CorpusMissing or CorpusUnreadable."""
    prefix = data / "mnist" / PARTS[part]
    images = _idx(Path(f"{prefix}-images-idx3-ubyte.gz"), 3)
    labels = _idx(Path(f"{prefix}-labels-idx1-ubyte.gz"), 1)
    if len(images) != len(labels) or images.shape[1:] != (SIDE, SIDE):
        raise CorpusUnreadable(f"{prefix}-*: {images.shape} images and {len(labels)} labels: copy them again")
    return Digits(images.reshape(-1, PIXELS), labels.astype(np.int64))


def _idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """An array of bytes in LeCun's idx format: two zeros, 8 for bytes, the dimensions, their big-endian
    extents, the values.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise CorpusMissing(f"{path} is not there: --data names the folder that has mnist/ in it") from error
    except (OSError, EOFError) as error:
        raise CorpusUnreadable(f"{path} is no gzip file ({error}): copy it again") from error
    header = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:header], ">u4").astype(int)
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) != header + shape.prod():
        raise CorpusUnreadable(f"{path} is no idx file of {dimensions} dimensions: copy it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def digit_file(folder: Path, digit: int) -> Path:
    """Where `write_corpus` puts a digit."""
    return folder / f"digit-{digit}.parquet"


def write_corpus(folder: Path, digits: Digits) -> None:
    """A Parquet file of each digit, with the columns "image" and "label", so that a transfer set is a choice
    of files.
    """
    for digit in range(CLASSES):
        chosen = digits.labels == digit
        write_parquet(digit_file(folder, digit), digits.images[chosen], digits.labels[chosen])
