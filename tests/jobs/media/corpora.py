"""Corpora of real images and recordings as a person has them, in files, and what these are of."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
from PIL import Image

from tests.real_data import real_data

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
STRIP = 500  # images of a file of CIFAR-10

Ints = npt.NDArray[np.int64]


def cifar(part: str, count: int) -> tuple[npt.NDArray[np.uint8], Ints, list[str]]:
    """The first images of CIFAR-10, uint8 [count, 32, 32, 3], their classes and their names."""
    folder = real_data("cifar10")
    strips = [np.asarray(Image.open(folder / f"{part}-{i:03}.webp")) for i in range(-(-count // STRIP))]
    labels = np.fromfile(folder / f"{part}-labels.u8", dtype=np.uint8)
    with gzip.open(folder / f"{part}-names.txt.gz", "rt") as file:
        names = [Path(file.readline().strip()).stem for _ in range(count)]
    return np.concatenate(strips).reshape(-1, 32, 32, 3)[:count], labels[:count].astype(np.int64), names


def photos(folder: Path, count: int) -> None:
    """A folder of PNG files."""
    images, _, names = cifar("train", count)
    folder.mkdir()
    for image, name in zip(images, names, strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")


def captions(path: Path, count: int) -> None:
    """A tar of WebDataset's form: PNG images, each with a sentence on what it shows."""
    images, labels, names = cifar("train", count)
    with tarfile.open(path, "w") as tar:
        for image, label, name in zip(images, labels, names, strict=True):
            picture = io.BytesIO()
            Image.fromarray(image).save(picture, "png")
            text = f"a small photo of a {CLASSES[label]}"
            for ending, data in (("png", picture.getvalue()), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def spoken(takes: range, most: int = 3000) -> dict[str, bytes]:
    """Takes of all ten digits by all six speakers of the Free Spoken Digit Dataset: wav files by their names,
    `{digit}_{speaker}_{take}`. most: how many, the first in the archive.
    """
    found = {}
    with tarfile.open(real_data("fsdd/fsdd.tar.xz")) as tar:
        for member in tar:
            name = Path(member.name)
            file = tar.extractfile(member) if name.suffix == ".wav" else None
            if file is not None and int(name.stem.rpartition("_")[2]) in takes:
                found[name.stem] = file.read()
            if len(found) == most:
                break
    return dict(sorted(found.items()))


def recordings(folder: Path, files: Mapping[str, bytes]) -> None:
    """A folder of recordings, every third as FLAC."""
    folder.mkdir()
    for number, (name, content) in enumerate(files.items()):
        if number % 3:
            (folder / f"{name}.wav").write_bytes(content)
        else:
            samples, rate = soundfile.read(io.BytesIO(content), dtype="int16")
            soundfile.write(folder / f"{name}.flac", samples, rate)


def digits(files: Iterable[str]) -> Ints:
    """What is spoken."""
    return np.array([int(name.partition("_")[0]) for name in files])
