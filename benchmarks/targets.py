"""What a codec's bytes buy on real teachers: error and bias of targets, gradients of a step, and students.

    python -m benchmarks.targets --data ../shared/data --distillkit ../DistillKit

Teachers: the demo's (Python sources, 2,048 tokens); one of English novels with GPT-2's vocabulary of 50,257,
with --data; and one at 151,936 classes whose targets are power laws with the entropies of the largest real
one. Each is asked about a few thousand tokens that it has not seen. Codecs: threshold over lambda, top-k,
Random Sampling KD, and, with a checkout of DistillKit, its own compressor. The figures are of the head's
columns alone; RS-KD is counted at the 3 bytes a unique token of its paper, DistillKit by its arrays.
Gradients are those of a small student of a real teacher (`benchmarks.gradients`), students those of the
demo's teacher (`benchmarks.students`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import drawing
from benchmarks.gradients import Turns
from benchmarks.peers import DISTILLKIT, DistillKit, rskd_bytes
from benchmarks.record import RESULTS, record
from benchmarks.students import HARD, compare
from benchmarks.teachers import Material, code, label, novels, power_laws
from pipeline.fidelity import Fidelity
from pipeline.pilot import Pilot
from pipeline.statistics import distribution
from pipeline.targets.codecs import Codec, Dense, Sampled, Threshold, TopK
from pipeline.targets.decoded import DenseTargets
from pipeline.targets.errors import UserError
from student.targets import to_torch

Curves = dict[str, list[dict[str, float]]]

THRESHOLDS = (0.3, 0.15, 0.08, 0.04, 0.02, 0.01, 0.005, 0.002)
KS = (1, 3, 8, 16, 32, 64, 128)
DRAWS = (22, 50, 100)


def curves_of(material: Material, pilot: Pilot, peers: bool) -> Curves:
    """Points of all codecs, each with its bytes and what it keeps. peers: whether DistillKit is at hand."""
    turns = Turns(material, pilot) if material.real else None

    def ours(codec: Codec) -> dict[str, float]:
        point = pilot.measure(codec)
        size = rskd_bytes(point) if isinstance(codec, Sampled) else point.head_bytes
        turn = turns.of(codec) if turns else {}
        return {"bytes": size, "entries": point.entries, **_kept(point.fidelity), **turn}

    curves = {
        "threshold": [{"parameter": value, **ours(Threshold(value))} for value in THRESHOLDS],
        "top-k": [{"parameter": k, **ours(TopK(k))} for k in KS],
        "RS-KD": [{"parameter": draws, **ours(Sampled(draws))} for draws in DRAWS],
    }
    for name, settings in DISTILLKIT.items() if peers else ():
        theirs = DistillKit(pilot.head.size, settings)
        kept = _kept(pilot.compare(theirs))
        turn = turns.of_function(theirs) if turns else {}
        curves[f"DistillKit {name}"] = [{"bytes": theirs.bytes, **kept, **turn}]
    if turns:
        curves[HARD] = [{"bytes": 0.0, **turns.of_labels()}]
    return curves


def _kept(fidelity: Fidelity) -> dict[str, float]:
    return {name: value for name, value in asdict(fidelity).items() if name != "targets"}


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


def bytes_at_step_error(points: list[dict[str, float]], error: float) -> float:
    """Bytes at which threshold turns a step's gradient so far: between points straight on log axes."""
    rising = sorted(points, key=lambda point: point["step_error"])
    known = np.log([[point["step_error"], point["bytes"]] for point in rising])
    return float(np.exp(np.interp(np.log(error), known[:, 0], known[:, 1])))


def compared(material: Material, pilot: Pilot, curves: Curves) -> dict[str, float]:
    """Threshold's bytes over the peers', at equal error of single targets, and of a step's gradient."""
    peers = {"rskd50": curves["RS-KD"][DRAWS.index(50)]}
    peers |= {
        f"distillkit {name}": curves[f"DistillKit {name}"][0]
        for name in DISTILLKIT
        if f"DistillKit {name}" in curves
    }
    found = {}
    for name, peer in peers.items():
        found[f"{material.name}.bytes_vs_{name}"] = bytes_at(pilot, peer["error"]) / peer["bytes"]
        if material.real:
            size = bytes_at_step_error(curves["threshold"], peer["step_error"])
            found[f"{material.name}.bytes_at_step_vs_{name}"] = size / peer["bytes"]
    return found


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


def decode_speed(material: Material) -> float:
    """Targets a second and core, from a shard on disk to torch tensors; tokens and keys are read too."""
    with tempfile.TemporaryDirectory() as folder:
        store = label(material.job(Path(folder) / "store", Threshold(0.1), 2**24, at_least=500_000))
        commits = list(store.commits())
        best = 0.0
        for _ in range(7):
            begun = time.perf_counter()
            for commit in commits:
                for part in store.read(commit):
                    to_torch(part.decode("logits"))
            best = max(best, sum(commit.targets for commit in commits) / (time.perf_counter() - begun))
        return best


def parsed() -> argparse.Namespace:
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
    parser.add_argument("--seeds", type=int, default=3, help="of each codec's students; 0 trains none")
    parser.add_argument("--steps", type=int, default=800, help="of a student")
    return parser.parse_args()


def main() -> None:
    """Measure, draw, print, record."""
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    if arguments.distillkit is not None:
        sys.path.append(str(arguments.distillkit))
    materials = [code(arguments.cache, arguments.seconds)]
    if arguments.data is not None:
        materials.append(novels(arguments.data, arguments.cache, arguments.novels_seconds))
    found: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    seen = np.zeros(0)
    for material in materials:
        pilot = material.pilot(arguments.targets)
        found[material.name] = curves_of(material, pilot, peers=arguments.distillkit is not None)
        new = compared(material, pilot, found[material.name])
        if material.real:
            seen = entropies(pilot)
            new[f"{material.name}.decode_tokens_per_second"] = round(decode_speed(material))
        if material is materials[0] and arguments.seeds:
            with tempfile.TemporaryDirectory() as folder:
                told = compare(
                    material, pilot, Path(folder), arguments.seeds, arguments.steps, arguments.threads
                )
            found["students"] = told
            drawing.students(told)
        drawing.curves(material.name, found[material.name])
        figures |= new
        print(json.dumps(new), flush=True)
        if material is materials[-1] and material.real:
            materials.append(power_laws(arguments.cache, material, seen))
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
            "bytes_vs_rskd50_at_equal_step_error": max(all_of("bytes_at_step_vs_rskd50")),
            "bytes_vs_distillkit_at_equal_step_error": max(
                all_of("bytes_at_step_vs_distillkit recommended"), default=None
            ),
            "encode_over_topk64": min(encode.values()),
            "decode_tokens_per_second": min(all_of("decode_tokens_per_second")),
            **figures,
            **encode,
            "students": {
                name: [told["mean"], told["deviation"]] for name, told in found.get("students", {}).items()
            },
            "targets": arguments.targets,
            "threads": arguments.threads,
        },
    )


if __name__ == "__main__":
    main()
