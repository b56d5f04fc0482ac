"""Scikit-learn's handwritten digits, and jittered ones made of them. Knows no labels beyond the split.

Images are uint8 [N, 8, 8], 0 the paper and 255 the ink.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from pipeline.config import Config

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


class Jitter(Config):
    """How far a jittered digit may be from its original; each amount is drawn evenly in both directions."""

    shift_pixels: NonNegativeFloat = 1.0
    """Largest shift along either axis, in pixels."""

    rotation_degrees: NonNegativeFloat = 12.0
    """Largest rotation."""

    scale: NonNegativeFloat = 0.12
    """Largest change of size, as a share."""

    noise: NonNegativeFloat = 0.04
    """Standard deviation of the noise on every pixel, the ink being 1."""


class Digits(NamedTuple):
    """The split. Images uint8 [N, 8, 8], labels int64 [N]."""

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels


def load(test_share: float, seed: int) -> Digits:
    """The 1,797 digits in two parts with the same mix of classes."""
    found = load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)
    labels = found.target.astype(np.int64)
    parts = train_test_split(images, labels, test_size=test_share, stratify=labels, random_state=seed)
    return Digits(parts[0], parts[2], parts[1], parts[3])


def few(labels: Labels, share: float, seed: int) -> npt.NDArray[np.int64]:
    """Indices of a share of the labels, at least one of every class, with the mix of classes of the whole."""
    classes = np.unique(labels)
    count = max(len(classes), round(share * len(labels)))
    order = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for one in classes:
        members = order[labels[order] == one]
        place[members] = np.arange(len(members)) / len(members)
    # By their place within their class: the first of every class, then evenly from all.
    return np.sort(order[np.argsort(place[order], kind="stable")[:count]])


def jittered(images: Images, count: int, jitter: Jitter, seed: int) -> tuple[Images, npt.NDArray[np.int64]]:
    """`count` jittered digits, and of which image each was made. Images are used equally often, or once more.

    Bilinear sampling of the original at shifted, rotated and scaled positions; beyond its border is paper.
    """
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-count // len(images))
    sources = torch.cat([torch.randperm(len(images), generator=generator) for _ in range(rounds)])[:count]

    def draw(largest: float) -> torch.Tensor:
        return (2 * torch.rand(count, generator=generator) - 1) * largest

    angle, size = torch.deg2rad(draw(jitter.rotation_degrees)), 1 + draw(jitter.scale)
    # affine_grid measures an image from -1 to 1, so a pixel is 2 / 8 of it.
    across, down = (draw(jitter.shift_pixels * 2 / extent) for extent in images.shape[:0:-1])
    cos, sin = angle.cos() * size, angle.sin() * size
    matrices = torch.stack([torch.stack([cos, -sin, across], 1), torch.stack([sin, cos, down], 1)], 1)
    originals = torch.from_numpy(images)[sources, None].float() / 255
    grid = F.affine_grid(matrices, list(originals.shape), align_corners=False)
    moved = F.grid_sample(originals, grid, align_corners=False)[:, 0]
    moved += jitter.noise * torch.randn(moved.shape, generator=generator)
    return (moved.clamp(0, 1) * 255).round().to(torch.uint8).numpy(), sources.numpy()
