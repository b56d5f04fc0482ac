"""The ways in which the shallow net learns: what it is shown, and what it minimises."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from jobs.demo.digits.images import Digits, few, jittered
from jobs.demo.digits.settings import HEAD, INPUT, DigitsSettings
from jobs.demo.digits.training import Examples, Loss, shuffled
from pipeline.targets.store import Store
from student.data import TargetReader
from student.losses import hard_cross_entropy, logit_l2, tempered_kl


class Way(NamedTuple):
    """One way to train the student. examples, seed -> its batches."""

    name: str
    kind: Literal["few", "store", "all"]
    teaches: str
    labels: int
    examples: int
    batches: Callable[[int], Examples]
    loss: Loss


def ways_to_learn(digits: Digits, store: Store, settings: DigitsSettings) -> list[Way]:
    """The lines of the table that are students."""
    images, labels = digits.train_images, digits.train_labels
    count, jitters = len(few(labels, settings.label_share, 0)), settings.transfer_digits

    def few_plain(seed: int) -> Examples:
        chosen = few(labels, settings.label_share, seed)
        return shuffled(
            torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen]), settings.batch_rows, seed
        )

    def jitter_of(chosen: np.ndarray[Any, np.dtype[np.int64]], seed: int) -> Examples:
        moved, sources = jittered(images[chosen], jitters, settings.jitter, seed)
        return shuffled(
            torch.from_numpy(moved), torch.from_numpy(labels[chosen][sources]), settings.batch_rows, seed
        )

    def few_jittered(seed: int) -> Examples:
        return jitter_of(few(labels, settings.label_share, seed), seed)

    def all_jittered(seed: int) -> Examples:
        return jitter_of(np.arange(len(labels)), seed)

    def stored(seed: int) -> Examples:
        reader = TargetReader(store.url, batch_rows=settings.batch_rows, seed=seed, split="all")
        return ((batch.inputs[INPUT], batch.targets[HEAD]) for batch in reader)

    some, every = f"{count} labels ({100 * settings.label_share:g} %)", f"all {len(labels):,} labels"
    tempered = partial(tempered_kl, temperature=settings.temperature)
    t = f"{settings.temperature:g}"
    return [
        Way("cross-entropy", "few", some, count, count, few_plain, hard_cross_entropy),
        Way("cross-entropy, jittered", "few", some, count, jitters, few_jittered, hard_cross_entropy),
        Way("L2 on logits", "store", "the store", 0, jitters, stored, logit_l2),
        Way(f"tempered KL, T = {t}", "store", "the store", 0, jitters, stored, tempered),
        Way("cross-entropy, jittered", "all", every, len(labels), jitters, all_jittered, hard_cross_entropy),
    ]
