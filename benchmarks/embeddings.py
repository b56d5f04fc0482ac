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
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.record import record
from jobs.recipes import cifar10
from jobs.recipes.resnet import ResNet, load, weights_file
from pipeline.targets.codecs import Codec, Embedding
from pipeline.targets.codecs.codebooks import train
from pipeline.targets.decoded import EmbeddingTargets
from pipeline.targets.errors import DecantError

Vectors = np.ndarray[Any, np.dtype[np.float32]]


def images(data: Path, part: str, count: int) -> Tensor:
    """uint8 [count, 3, 32, 32]."""
    return torch.from_numpy(cifar10.read(data, part).images[:count]).movedim(-1, 1)


@torch.inference_mode()
def vectors(model: ResNet, pictures: Tensor) -> dict[str, Vectors]:
    """Of each head, float32 [N, D]."""
    maps = torch.cat([model.features(part) for part in pictures.split(100)])
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
    try:
        model = load(weights_file(arguments.data, 20), 20)
        pilot = vectors(model, images(arguments.data, "train", arguments.pilot))
        unseen = vectors(model, images(arguments.data, "test", 1000))
    except DecantError as error:
        sys.exit(str(error))
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
