"""What a codec's bytes buy on real teachers: squared error, angle and bias of the student's gradient.

    python -m benchmarks.targets --data ../shared/data --distillkit ../DistillKit

Teachers: the demo's (Python sources, 2,048 tokens); one of English novels with GPT-2's vocabulary of 50,257,
with --data; and one at 151,936 classes whose targets are power laws with the entropies of the largest real
one. Each is asked about a few thousand tokens that it has not seen. Codecs: threshold over lambda, top-k,
Random Sampling KD, and, with a checkout of DistillKit, its own compressor. The figures are of the head's
columns alone; RS-KD is counted at the 3 bytes a unique token of its paper, DistillKit by its arrays.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from benchmarks.record import RESULTS, record
from benchmarks.teachers import Material, code, novels, power_laws
from pipeline.fidelity import Fidelity
from pipeline.job import LabelJob
from pipeline.pilot import Pilot
from pipeline.statistics import distribution
from pipeline.targets.codecs import Codec, Dense, Sampled, Threshold, TopK
from pipeline.targets.decoded import DenseTargets, TopKTargets
from pipeline.targets.errors import UserError
from pipeline.targets.store import Store
from student.targets import to_torch

THRESHOLDS = (0.3, 0.15, 0.08, 0.04, 0.02, 0.01, 0.005, 0.002)
KS = (1, 3, 8, 16, 32, 64, 128)
DRAWS = (22, 50, 100)
RSKD_BYTES = 3
"""Of one unique token: 17 bits of id, 7 of count."""

RECOMMENDED = {"k": 128, "exact_k": 16, "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"]}
DISTILLKIT: dict[str, dict[str, Any]] = {
    "recommended": RECOMMENDED,
    "recommended, normalize_t": {**RECOMMENDED, "normalize_t": True},
    "budget": {"k": 50, "exact_k": 1, "polynomial_terms": [0, 1, "sqrt"]},
}
"""As its README gives them."""


def pilot_of(material: Material, targets: int) -> Pilot:
    """The teacher's answers to texts it has not seen."""
    return Pilot(
        LabelJob.model_validate(
            {
                "corpus": {
                    "kind": "text",
                    "urls": [str(path) for path in material.unseen],
                    "unit_bytes": 2**16,
                },
                "views": {"kind": "token_windows", "tokenizer": str(material.tokenizer), "length": 256},
                "teacher": material.teacher,
                "store": {"url": "/nowhere", "heads": {"logits": {"kind": "threshold"}}},
            }
        ),
        targets,
    )


def curve(pilot: Pilot, codecs: list[Codec]) -> Iterator[dict[str, float]]:
    """Points of our codecs."""
    for codec in codecs:
        point = pilot.measure(codec)
        size = RSKD_BYTES * point.entries if isinstance(codec, Sampled) else point.head_bytes
        if isinstance(codec, Sampled):
            yield {"draws": codec.draws, **_figures(size, point.fidelity), "entries": point.entries}
        else:
            (parameter,) = [value for name, value in codec.to_json().items() if name in ("threshold", "k")]
            yield {"parameter": parameter, **_figures(size, point.fidelity), "entries": point.entries}


def _figures(size: float, fidelity: Fidelity) -> dict[str, float]:
    return {"bytes": size, **{name: value for name, value in asdict(fidelity).items() if name != "targets"}}


def distillkit(pilot: Pilot, settings: dict[str, Any]) -> dict[str, float]:
    """Its own compressor, there and back."""
    from distillkit.compression import (  # type: ignore[import-not-found]
        DistributionQuantizationConfig,
        LogprobCompressor,
    )

    fixed = {"exact_dtype": "bfloat16", "term_dtype": "float32", "residual_bins": [], "delta_encoding": False}
    config = DistributionQuantizationConfig(d=pilot.head.size, **fixed, **settings)
    compressor = LogprobCompressor(config)
    sizes = []

    def there_and_back(logits: torch.Tensor) -> TopKTargets:
        stored = compressor.compress(torch.log_softmax(logits, dim=-1))
        sizes.append(sum(array.nbytes for array in stored.values()) / len(logits))
        ids, log_probs = compressor.decompress_to_sparse(stored)
        log_probs = log_probs.double().clamp(max=0)
        left = (1 - log_probs.exp().sum(dim=-1, keepdim=True)).clamp(min=0)
        return TopKTargets(
            ids.long().numpy(), log_probs.float().numpy(), (1.0,), left.log().float().numpy(), pilot.head.size
        )

    return _figures(0.0, pilot.compare(there_and_back)) | {"bytes": float(np.mean(sizes))}


def entropies(pilot: Pilot) -> npt.NDArray[np.float64]:
    """Of the teacher's distributions, nats [targets]."""
    dense = pilot.rows(Dense("float32")).decode(pilot.head.name)
    assert isinstance(dense, DenseTargets)
    found, _ = distribution(torch.from_numpy(dense.logits), None)
    return found


def bytes_at(pilot: Pilot, error: float) -> float:
    """Bytes of the head with the largest threshold of at most that error; as float16 if there is none."""
    try:
        return pilot.measure(pilot.threshold_of_error(error)).head_bytes
    except UserError:
        return 2.0 * pilot.head.size


def encode_speed(size: int) -> float:
    """Speed of encoding over that of torch.topk(64) and log_softmax, on the same logits."""
    generator = torch.Generator().manual_seed(0)
    logits = -1.3 * torch.arange(1, size + 1).log() + torch.randn(2**24 // size, size, generator=generator)
    logits = logits[:, torch.randperm(size, generator=generator)].contiguous()
    drawn, codec = np.random.default_rng(0).random((len(logits), 2)), Threshold()

    def theirs() -> object:
        return torch.topk(logits, 64, dim=-1), torch.log_softmax(logits, dim=-1)

    def ours() -> object:
        return codec.encode_torch(logits, drawn)

    pairs = [(_seconds(theirs), _seconds(ours)) for _ in range(7)][2:]
    return median(them / us for them, us in pairs)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def decode_speed(pilot: Pilot, codec: Threshold) -> float:
    """Targets a second and core, from a shard's file to torch tensors; tokens and keys are read too."""
    rows = pilot.rows(codec)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(f"{folder}/store", rows.spec)
        with store.writer("00" * 16) as writer:
            for _ in range(max(1, 500_000 // pilot.targets)):
                writer.write(rows)
            commit = writer.commit(
                records=1, statistics={}, histograms={}, started=0.0, forward_seconds=0.0, device=""
            )
        best = 0.0
        for _ in range(5):
            begun = time.perf_counter()
            for part in store.read(commit):
                to_torch(part.decode("logits"))
            best = max(best, commit.targets / (time.perf_counter() - begun))
        return best


def draw(name: str, curves: dict[str, list[dict[str, float]]]) -> None:
    """Error, angle and misplaced probability over bytes."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    figure.suptitle(name)
    axes = figure.subplots(1, 3)
    for label, points in curves.items():
        for axis, key in zip(axes, ("error", "angle", "calibration"), strict=True):
            axis.plot([p["bytes"] for p in points], [p[key] for p in points], marker="o", label=label)
    titles = (
        "squared error of the gradient",
        "angle to the dense gradient, degrees",
        "misplaced probability",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xscale="log", yscale="log", xlabel="bytes per target", title=title)
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=8)
    figure.savefig(RESULTS / f"targets-{name}.svg")


def main() -> None:
    """Measure, draw, print, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--targets", type=int, default=4096, help="of each teacher")
    parser.add_argument("--data", type=Path, help="folder with novels/ and tokenizers/gpt2/")
    parser.add_argument("--cache", type=Path, default=Path("demo-output/benchmarks"), help="keeps teachers")
    parser.add_argument("--seconds", type=float, default=75.0, help="of training the demo's teacher")
    parser.add_argument("--novels-seconds", type=float, default=1800.0, help="of training that of novels")
    parser.add_argument("--distillkit", type=Path, help="a checkout of DistillKit, to measure against")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.distillkit is not None:
        sys.path.append(str(arguments.distillkit))
    materials = [code(arguments.cache, arguments.seconds)]
    if arguments.data is not None:
        materials.append(novels(arguments.data, arguments.cache, arguments.novels_seconds))
    found: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    real = pilot_of(materials[-1], arguments.targets)
    materials.append(power_laws(arguments.cache, materials[-1], entropies(real)))
    for material in materials:
        pilot = pilot_of(material, arguments.targets)
        curves: dict[str, list[dict[str, float]]] = {
            "threshold": list(curve(pilot, [Threshold(threshold) for threshold in THRESHOLDS])),
            "top-k": list(curve(pilot, [TopK(k) for k in KS])),
            "RS-KD": list(curve(pilot, [Sampled(draws) for draws in DRAWS])),
        }
        rskd = curves["RS-KD"][DRAWS.index(50)]
        figures[f"{material.name}.bytes_vs_rskd50"] = bytes_at(pilot, rskd["error"]) / rskd["bytes"]
        if arguments.distillkit is not None:
            for name, settings in DISTILLKIT.items():
                theirs = distillkit(pilot, settings)
                curves[f"DistillKit {name}"] = [theirs]
                figures[f"{material.name}.bytes_vs_distillkit {name}"] = (
                    bytes_at(pilot, theirs["error"]) / theirs["bytes"]
                )
        draw(material.name, curves)
        found[material.name] = curves
        figures[f"{material.name}.decode_tokens_per_second"] = round(decode_speed(pilot, Threshold(0.1)))
        print(
            material.name,
            json.dumps({k: v for k, v in figures.items() if k.startswith(material.name)}),
            flush=True,
        )
    (RESULTS / "targets-curves.json").write_text(json.dumps(found, indent=1) + "\n")
    encode = {f"encode_over_topk64.{size}": encode_speed(size) for size in (2048, 50257, 151936)}

    def all_of(key: str) -> list[float]:
        return [value for name, value in figures.items() if name.endswith(key)]

    record(
        "targets",
        {
            "bytes_vs_rskd50_at_equal_error": max(all_of("bytes_vs_rskd50")),
            "bytes_vs_distillkit_at_equal_error": max(
                all_of("bytes_vs_distillkit recommended"), default=None
            ),
            "encode_over_topk64": min(encode.values()),
            "decode_tokens_per_second": min(all_of("decode_tokens_per_second")),
            **figures,
            **encode,
            "targets": arguments.targets,
            "threads": arguments.threads,
        },
    )


if __name__ == "__main__":
    main()
