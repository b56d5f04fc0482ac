"""Bytes and cosine of each codec of embeddings, on what a real ResNet-20 says of CIFAR-10.

    python -m benchmarks.embeddings --data ../shared/data

Two heads: 64 features after its last pooling, and 1024 of its last map (64 channels, 4 x 4). Codebooks are
trained on images of the training set, every figure is of others, of the test set. "cosine" is the mean
between the network's vector and the decoded one, "cosine_p1" the first percentile; "centred" is the mean
after the pilot's mean is taken off both, for vectors after a ReLU are alike to begin with.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.record import record
from pipeline.targets.codecs import Codec, Embedding
from pipeline.targets.codecs.codebooks import train
from pipeline.targets.decoded import EmbeddingTargets

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Vectors = np.ndarray[Any, np.dtype[np.float32]]


class Block(nn.Module):
    """Two 3x3 convolutions; where the width grows, the shortcut is subsampled and padded with zeros."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.stride, self.padding = stride, (outside - inside) // 2
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + short)


class ResNet(nn.Module):
    """He et al.'s network for CIFAR-10 with 6n + 2 layers, up to its last map, [B, 64, 8, 8]."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for number, (inside, outside) in enumerate([(16, 16), (16, 32), (32, 64)], start=1):
            first = Block(inside, outside, 1 if number == 1 else 2)
            blocks = nn.Sequential(first, *(Block(outside, outside, 1) for _ in range(n - 1)))
            self.add_module(f"layer{number}", blocks)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for number in (1, 2, 3):
            x = self.get_submodule(f"layer{number}")(x)
        return x


def images(folder: Path, split: str, count: int) -> Iterator[Tensor]:
    """Normalised images, float32 [500, 3, 32, 32] at a time."""
    from PIL import Image

    for strip in sorted(folder.glob(f"{split}-*.webp"))[: -(-count // 500)]:
        pixels = torch.from_numpy(np.asarray(Image.open(strip)).reshape(-1, 32, 32, 3).copy())
        yield (pixels.float() / 255 - torch.tensor(MEAN)).div(torch.tensor(STD)).movedim(-1, 1)


@torch.inference_mode()
def vectors(model: ResNet, batches: Iterator[Tensor]) -> dict[str, Vectors]:
    """Of each head, float32 [N, D]."""
    maps = torch.cat([model(part) for batch in batches for part in batch.split(100)])
    return {
        "pooled": maps.mean(dim=(2, 3)).numpy(),
        "map": F.avg_pool2d(maps, 2).flatten(1).numpy(),
    }


def cosines(a: Vectors, b: Vectors) -> Any:
    return (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)


def measure(codec: Codec, unseen: Vectors, mean: Vectors) -> dict[str, float]:
    """A codec's figures on vectors [N, D]."""
    encoded = codec.encode_torch(torch.from_numpy(unseen), np.zeros((len(unseen), 0)))
    decoded = codec.decode(encoded, unseen.shape[1])
    assert isinstance(decoded, EmbeddingTargets)
    found = cosines(unseen, decoded.vectors)
    return {
        "bytes": codec.statistics(encoded, unseen.shape[1])["payload_bytes"],
        "cosine": float(found.mean()),
        "cosine_p1": float(np.quantile(found, 0.01)),
        "centred": float(cosines(unseen - mean, decoded.vectors - mean).mean()),
    }


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(os.environ.get("DECANT_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="with cifar10/ and weights/resnet_cifar/")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--pilot", type=int, default=4000, help="images that codebooks are trained on")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = ResNet(3).eval()
    weights = next((arguments.data / "weights/resnet_cifar").glob("resnet20-*.th"), None)
    if weights is None:
        sys.exit(f"no weights/resnet_cifar/resnet20-*.th in {arguments.data}: name the data with --data")
    state = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    pilot = vectors(model, images(arguments.data / "cifar10", "train", arguments.pilot))
    unseen = vectors(model, images(arguments.data / "cifar10", "test", 1000))
    results: dict[str, float] = {"pilot": arguments.pilot, "threads": arguments.threads}
    for head, learned in pilot.items():
        codecs: dict[str, Codec] = {name: Embedding(name) for name in ("float16", "bfloat16", "int8")}
        for count in (8, 16, 32, 64):
            codecs[f"codebooks_{count}"] = train(learned, count)
        for name, codec in codecs.items():
            figures = measure(codec, unseen[head], learned.mean(axis=0))
            results |= {f"{head}.{name}.{key}": round(value, 6) for key, value in figures.items()}
            print(f"{head:8}{name:14}", "  ".join(f"{k} {v:.5g}" for k, v in figures.items()), flush=True)
    record("embeddings", results)


if __name__ == "__main__":
    main()
