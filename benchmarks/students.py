"""What a student learns from each codec: the same net, initial weights, batches and steps, other targets.

The demo's teacher labels texts that it has not seen, once for each codec, into stores on disk. Students
learn from these, some seeds of each, and are judged by the tokens that really came next in shards that none
of them has seen. Bytes are of whole files, keys and token ids included; RS-KD's are those of its paper.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.peers import rskd_bytes
from benchmarks.teachers import Material, label
from jobs.demo.settings import StudentSettings
from pipeline.pilot import Pilot
from pipeline.targets.codecs import Codec, Dense, Sampled, TopK
from student.config import LossConfig, SmallLM, StoreLocation, TrainConfig
from student.events import Evaluated

HARD = "hard labels"
BUDGETS = (8.0, 12.0, 20.0)
"""Bytes a token that threshold is given; top-k and RS-KD are given the second one too, and RS-KD's 36."""
PUBLISHED = 36.0
"""Bytes a token of RS-KD as published, N = 50."""
UNIT_BYTES = 32_000
"""Of text in a shard: a tenth of the shards is held out."""


@dataclass(frozen=True)
class Arm:
    """What some students are told. codec: None for the tokens alone."""

    name: str
    codec: Codec | None


def arms(pilot: Pilot) -> list[Arm]:
    """The codecs, sized on the pilot."""
    middle = BUDGETS[1]
    return [
        Arm(HARD, None),
        Arm("dense", Dense("float16")),
        *(Arm(f"threshold, {budget:g} B", pilot.threshold_of_bytes(budget)) for budget in BUDGETS),
        *(Arm(f"top-k, {budget:g} B", _topk(pilot, budget)) for budget in (middle, PUBLISHED)),
        Arm("RS-KD, N = 50", Sampled(50)),
        Arm(f"RS-KD, {middle:g} B", _sampled(pilot, middle)),
    ]


def _topk(pilot: Pilot, most: float) -> TopK:
    """The largest k of at most so many bytes a token."""
    k = 1
    while pilot.bytes_per_target(TopK(k + 1)) <= most:
        k += 1
    return TopK(k)


def _sampled(pilot: Pilot, most: float) -> Sampled:
    """The most draws of at most so many bytes a token, as its paper counts them."""
    draws = 1
    while rskd_bytes(pilot.measure(Sampled(draws + 1))) <= most:
        draws += 1
    return Sampled(draws)


def compare(
    material: Material, pilot: Pilot, folder: Path, seeds: int, steps: int, processes: int
) -> dict[str, dict[str, Any]]:
    """By arm: bytes a target, validation losses of all seeds in nats a token, their mean and deviation."""
    found: dict[str, dict[str, Any]] = {}
    stores: dict[str, Path] = {}
    for number, arm in enumerate(arms(pilot)):
        if arm.codec is None:
            continue
        stores[arm.name] = folder / f"store-{number}"
        commits = list(label(material.job(stores[arm.name], arm.codec, UNIT_BYTES)).commits())
        size = sum(commit.shard_bytes for commit in commits) / sum(commit.targets for commit in commits)
        if isinstance(arm.codec, Sampled):
            size = rskd_bytes(pilot.measure(arm.codec))
        found[arm.name] = {"bytes": size, "codec": arm.codec.to_json()}
    # The tokens are the same in all of them; the smallest is read fastest.
    stores[HARD] = stores[min(found, key=lambda name: float(found[name]["bytes"]))]
    found[HARD] = {"bytes": 0.0, "codec": None}
    for name, losses in _trained(stores, folder, seeds, steps, processes).items():
        deviation = stdev(losses) if len(losses) > 1 else 0.0
        found[name] |= {"losses": losses, "mean": fmean(losses), "deviation": deviation}
    return found


def _trained(
    stores: Mapping[str, Path], folder: Path, seeds: int, steps: int, processes: int
) -> dict[str, list[float]]:
    """Final validation losses of each store's students, in the order of seeds."""
    losses: dict[str, dict[int, float]] = {name: {} for name in stores}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {
            pool.submit(
                _train, _configured(store, folder / "students" / f"{number}-{seed}", name, seed, steps)
            ): (name, seed)
            for seed in range(seeds)
            for number, (name, store) in enumerate(stores.items())
        }
        for done, future in enumerate(as_completed(futures), 1):
            name, seed = futures[future]
            losses[name][seed] = future.result()
            print(
                f"student {done} of {len(futures)}: {name}, seed {seed}: {future.result():.4f}",
                file=sys.stderr,
                flush=True,
            )
    return {name: [found[seed] for seed in sorted(found)] for name, found in losses.items()}


def _configured(store: Path, output: Path, name: str, seed: int, steps: int) -> TrainConfig:
    settings = StudentSettings()
    return TrainConfig(
        store=StoreLocation(url=str(store)),
        output=str(output),
        model=SmallLM(layers=settings.layers, width=settings.width, heads=settings.heads),
        loss=LossConfig(kind="hard" if name == HARD else "auto"),
        steps=steps,
        batch_rows=settings.batch_rows,
        learning_rate=settings.learning_rate,
        warmup_steps=steps // 20,
        holdout=0.1,
        seed=seed,
        device="cpu",
        evaluate_every=steps,
        checkpoint_every=steps,
        log_every=steps,
    )


def _train(config: TrainConfig) -> float:
    """One student's final validation loss, nats a token, in a process with one thread."""
    import torch

    from student.train import train

    torch.set_num_threads(1)
    final = float("nan")
    for event in train(config):
        if isinstance(event, Evaluated) and event.score.hard_loss is not None:
            final = event.score.hard_loss
    shutil.rmtree(config.output)
    return final
