"""Data sets in the form of the recipes', small and made here."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from sklearn.datasets import load_digits

from jobs.recipes.resnet import ResNet


def write_mnist(data: Path, train: int = 400, test: int = 100) -> None:
    """Scikit-learn's digits, enlarged to 28 × 28, in MNIST's files."""
    found = load_digits()
    images = np.kron(found.images * (255 / 16), np.ones((3, 3))).astype(np.uint8)
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    folder = data / "mnist"
    folder.mkdir(parents=True)
    for name, part in (("train", slice(0, train)), ("t10k", slice(train, train + test))):
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", images[part])
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", found.target[part].astype(np.uint8))


def write_idx(path: Path, array: npt.NDArray[np.uint8]) -> None:
    """LeCun's format."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes(), 1))


def write_cifar10(data: Path, train: int = 60, test: int = 20) -> None:
    """Coloured noise in strips of 20 pictures, and a ResNet-20 of random weights."""
    folder, random = data / "cifar10", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part, count in (("train", train), ("test", test)):
        pictures = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        for number, strip in enumerate(pictures.reshape(-1, 20 * 32, 32, 3)):
            Image.fromarray(strip).save(folder / f"{part}-{number:03d}.webp", lossless=True)
        (random.integers(0, 10, count, dtype=np.uint8)).tofile(folder / f"{part}-labels.u8")
    weights = data / "weights" / "resnet_cifar"
    weights.mkdir(parents=True)
    torch.manual_seed(0)
    state: dict[str, Any] = {f"module.{name}": value for name, value in ResNet(20).state_dict().items()}
    torch.save({"state_dict": state}, weights / "resnet20-00000000.th")
