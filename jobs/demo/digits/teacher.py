"""The digits teacher: its networks, the job that labels with their mean, and the store, checked."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_model

from jobs.demo.checking import store_result
from jobs.demo.digits.images import Digits, jittered
from jobs.demo.digits.networks import CLASSES, SHAPE, Architecture, Member
from jobs.demo.digits.settings import HEAD, INPUT, MEMBER_SEED, DigitsSettings
from jobs.demo.digits.training import fit, shuffled
from jobs.demo.results import DigitSample, StoreResult
from pipeline.corpus import ArrayFiles
from pipeline.engine.local import Local
from pipeline.job import Batching, LabelConfig, LabelJob, StoreConfig
from pipeline.prepare import prepare
from pipeline.targets.codecs import Dense
from pipeline.targets.decoded import DenseTargets
from pipeline.targets.errors import LabellingFailed
from pipeline.targets.store import Store
from pipeline.teachers import AnyTeacher, Ensemble, TorchCallable
from pipeline.views import Arrays
from student.losses import hard_cross_entropy


def train_members(folder: Path, digits: Digits, settings: DigitsSettings) -> list[tuple[Architecture, Path]]:
    """Each network on its own jitter of all the training digits; its weights as safetensors."""
    folder.mkdir(parents=True)
    saved = []
    for number, architecture in enumerate(settings.members):
        seed = MEMBER_SEED + number
        images, sources = jittered(digits.train_images, settings.transfer_digits, settings.jitter, seed)
        examples = shuffled(
            torch.from_numpy(images),
            torch.from_numpy(digits.train_labels[sources]),
            settings.batch_rows,
            seed,
        )
        network = fit(
            partial(Member, architecture),
            examples,
            hard_cross_entropy,
            settings.member_steps,
            settings.member_learning_rate,
            seed,
        )
        path = folder / f"{number}-{architecture}.safetensors"
        save_model(network, str(path))
        saved.append((architecture, path))
    return saved


def labelling_job(
    corpus: Path, weights: list[tuple[Architecture, Path]], settings: DigitsSettings, store: str
) -> LabelJob:
    """The job, as a person's YAML file would state it."""
    members: list[AnyTeacher] = [
        TorchCallable(
            factory="jobs.demo.digits.networks:member",
            arguments={"architecture": architecture, "weights": str(path)},
            heads={HEAD: CLASSES},
            device="cpu",
        )
        for architecture, path in weights
    ]
    return LabelJob(
        corpus=ArrayFiles(urls=[str(corpus)], unit_rows=max(1, settings.transfer_digits // 12)),
        views=Arrays(name=INPUT, dtype="uint8", shape=list(SHAPE)),
        teacher=Ensemble(members=members, average="logits"),
        store=StoreConfig(url=store, heads={HEAD: Dense(dtype="float16")}, inputs="embed"),
        label=LabelConfig(engine="local", batching=Batching(budget=512)),
    )


def label(job: LabelJob) -> tuple[Store, float]:
    """The labelled store, and the seconds it took. Raises what preparing and labelling raise."""
    begun = time.monotonic()
    store = prepare(job)
    for _ in Local().run(job, store.pending(), threading.Event()):
        pass  # the engine itself raises when a unit is given up
    return store, time.monotonic() - begun


def checked(store: Store, digits: int) -> StoreResult:
    """The store's figures, after every shard was read and every digit found once. Raises LabellingFailed."""
    verification = store.verify()
    if verification.problems or verification.missing_units:
        raise LabellingFailed(f"the digits' store does not verify: {verification.problems}")
    keys = [key for commit in store.commits() for rows in store.read(commit) for key in rows.keys]
    if len(keys) != digits or len(set(keys)) != digits:
        raise LabellingFailed(f"{len(set(keys))} different digits in {len(keys)} rows instead of {digits}")
    return store_result(store, HEAD, verification)


def samples(store: Store, count: int = 6) -> list[DigitSample]:
    """From one shard: its first digits, and those with the highest entropy."""
    rows = next(store.read(min(store.commits(), key=lambda commit: commit.unit)))
    targets = rows.decode(HEAD)
    if not isinstance(targets, DenseTargets):
        raise TypeError(f"the digits' store holds {type(targets).__name__}")
    probabilities = torch.from_numpy(targets.logits).softmax(-1)
    entropies = torch.special.entr(probabilities).sum(-1)
    unsure = entropies[count:].topk(min(count, len(rows) - count)).indices + count
    images = rows.inputs[INPUT]
    if not isinstance(images, np.ndarray):
        raise TypeError("the digits' images vary in shape")
    return [
        DigitSample(pixels=images[i].ravel().tolist(), probabilities=probabilities[i].tolist())
        for i in [*range(count), *unsure.tolist()]
    ]
