"""The digits leg: an honest comparison, through the real pipeline."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from jobs.demo.digits.images import Jitter, few, jittered, load
from jobs.demo.digits.leg import run_digits
from jobs.demo.digits.networks import Member, member
from jobs.demo.digits.settings import INPUT, DigitsSettings
from jobs.demo.digits.table import digits_table
from jobs.demo.digits.training import fit, shuffled
from jobs.demo.results import DigitsLeg
from pipeline.targets.store import Store
from student.losses import hard_cross_entropy

SMALL = DigitsSettings(
    members=["cnn", "mlp"],
    member_steps=40,
    transfer_digits=1500,
    student_steps=40,
    hidden=64,
    seeds=2,
)
STILL = Jitter(shift_pixels=0, rotation_degrees=0, scale=0, noise=0)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DigitsLeg]:
    """A miniature of the leg, and its folder."""
    folder = tmp_path_factory.mktemp("digits")
    return folder, run_digits(folder, SMALL)


def test_the_split_keeps_every_digit_once_and_the_mix_of_classes() -> None:
    digits = load(0.3, seed=0)
    assert len(digits.train_images) + len(digits.test_images) == 1797
    assert digits.train_images.dtype == np.uint8
    assert digits.train_images.max() == 255
    shares = [np.bincount(labels) / len(labels) for labels in (digits.train_labels, digits.test_labels)]
    np.testing.assert_allclose(*shares, atol=0.003)


@settings(max_examples=25)
@given(share=st.floats(0.001, 1), seed=st.integers(0, 1000))
def test_few_labels_are_as_few_as_stated_and_leave_no_class_out(share: float, seed: int) -> None:
    labels = load(0.3, seed=0).train_labels
    chosen = few(labels, share, seed)
    assert len(chosen) == len(set(chosen.tolist())) == max(10, round(share * len(labels)))
    assert set(labels[chosen].tolist()) == set(range(10))


def test_jittering_by_nothing_gives_the_training_images_and_never_a_test_image() -> None:
    digits = load(0.3, seed=0)
    images, sources = jittered(digits.train_images, 2 * len(digits.train_images), STILL, seed=0)
    # Sampling at the very centre of a pixel still rounds.
    difference = images.astype(int) - digits.train_images[sources]
    assert np.abs(difference).max() <= 1
    assert np.bincount(sources).tolist() == [2] * len(digits.train_images)


def test_a_shift_of_a_pixel_moves_a_dot_by_no_more_than_a_pixel() -> None:
    dot = np.zeros((1, 8, 8), dtype=np.uint8)
    dot[0, 4, 3] = 255
    moved, _ = jittered(dot, 400, Jitter(shift_pixels=1, rotation_degrees=0, scale=0, noise=0), seed=1)
    reached = {(int(row), int(column)) for _, row, column in np.argwhere(moved)}
    assert reached == {(row, column) for row in (3, 4, 5) for column in (2, 3, 4)}


def test_jitter_is_repeated_by_its_seed() -> None:
    images = load(0.3, seed=0).train_images
    one, other, another = (jittered(images, 50, Jitter(), seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(one, other)
    assert not np.array_equal(one, another)


def test_a_network_trained_again_from_its_seed_has_the_same_weights() -> None:
    digits = load(0.3, seed=0)
    images, labels = torch.from_numpy(digits.train_images), torch.from_numpy(digits.train_labels)
    state = torch.get_rng_state()

    def weights(seed: int) -> torch.Tensor:
        examples = shuffled(images, labels, 64, seed)
        network = fit(lambda: Member("mlp"), examples, hard_cross_entropy, 5, 1e-3, seed)
        return torch.nn.utils.parameters_to_vector(network.parameters())

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers were touched"


def test_every_transfer_digit_is_in_the_store_once_with_its_image(ran: tuple[Path, DigitsLeg]) -> None:
    folder, leg = ran
    store = Store.open(str(folder / "store"))
    corpus = np.load(folder / "corpus" / "digits.npy")
    seen = {}
    for commit in store.commits():
        for rows in store.read(commit):
            for key, image in zip(rows.keys, rows.inputs[INPUT], strict=True):
                assert key not in seen
                seen[key] = image
    assert len(seen) == len(corpus) == SMALL.transfer_digits == leg.store.rows
    for key, image in seen.items():
        assert np.array_equal(image, corpus[int(key.rpartition("#")[2])])
    assert leg.store.verified_shards == leg.store.units > 1
    assert leg.store.problems == 0
    assert sum(leg.store.entropy_histogram) == SMALL.transfer_digits


def test_what_the_store_says_is_the_mean_of_the_saved_networks_logits(ran: tuple[Path, DigitsLeg]) -> None:
    folder, _ = ran
    networks = [
        member(architecture, str(folder / "teacher" / f"{number}-{architecture}.safetensors")).eval()
        for number, architecture in enumerate(SMALL.members)
    ]
    store = Store.open(str(folder / "store"))
    rows = next(store.read(next(store.commits())))
    with torch.inference_mode():
        images = torch.from_numpy(np.array(rows.inputs[INPUT]))
        expected = torch.stack([network(images) for network in networks]).mean(0)
    # Stored as float16: 11 bits of mantissa.
    np.testing.assert_allclose(rows.decode("logits").logits, expected, rtol=2**-10, atol=2e-4)


def test_the_table_has_the_teacher_and_every_way_with_all_seeds(ran: tuple[Path, DigitsLeg]) -> None:
    _, leg = ran
    assert [row.kind for row in leg.table] == ["teacher", "member", "few", "few", "store", "store", "all"]
    assert [len(row.test_errors) for row in leg.table] == [1, 2, 2, 2, 2, 2, 2]
    assert [row.labels for row in leg.table] == [1257, 1257, 38, 38, 0, 0, 1257]
    students = [row for row in leg.table if row.kind not in ("teacher", "member")]
    assert len({row.parameters for row in students}) == 1
    for row in leg.table:
        counts = np.array(row.test_errors) * leg.test_examples
        np.testing.assert_allclose(counts, counts.round(), atol=1e-3)
    assert DigitsLeg.model_validate_json(json.dumps(leg.model_dump())) == leg


def test_the_table_prints_counts_and_percent(ran: tuple[Path, DigitsLeg]) -> None:
    _, leg = ran
    console = Console(width=110)
    with console.capture() as printed:
        console.print(digits_table(leg))
    text = printed.get()
    assert "errors among 540 test digits, 2 seeds" in text
    for row in leg.table:
        assert f"{100 * mean(row.test_errors):.2f}" in text
        assert row.name in text


def test_samples_are_digits_with_distributions_the_unsure_ones_last(ran: tuple[Path, DigitsLeg]) -> None:
    _, leg = ran
    assert len(leg.samples) == 12
    for sample in leg.samples:
        assert len(sample.pixels) == 64
        assert sum(sample.probabilities) == pytest.approx(1, abs=1e-5)
    entropies = [-sum(p * math.log(p) for p in sample.probabilities if p > 0) for sample in leg.samples]
    assert entropies[6:] == sorted(entropies[6:], reverse=True)
    assert sum(entropies[6:]) > sum(entropies[:6])


def test_running_again_starts_anew_and_all_that_labels_teach_is_the_same(ran: tuple[Path, DigitsLeg]) -> None:
    folder, leg = ran
    again = run_digits(folder, SMALL)
    assert again.store.rows == leg.store.rows
    for before, after in zip(leg.table, again.table, strict=True):
        # The order in which the store is read follows from its units, whose ids hold the corpus file's age.
        assert before.kind == "store" or before == after


@pytest.mark.slow
def test_the_mimic_is_far_better_than_the_same_net_on_few_labels(tmp_path: Path) -> None:
    leg = run_digits(tmp_path, DigitsSettings(seeds=2))
    few_labels = [error for row in leg.table if row.kind == "few" for error in row.test_errors]
    store = [error for row in leg.table if row.kind == "store" for error in row.test_errors]
    (teacher,) = (row.test_errors[0] for row in leg.table if row.kind == "teacher")
    assert max(store) < min(few_labels) / 3
    assert mean(store) < teacher + 0.02
