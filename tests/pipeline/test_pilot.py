"""A pilot finds the codec of a budget on the job's own targets, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.job import LabelJob
from pipeline.label import Labeller
from pipeline.pilot import Pilot
from pipeline.prepare import prepare
from pipeline.targets.codecs import Threshold, TopK
from pipeline.targets.errors import ConfigError, UserError

MakeJob = Callable[..., LabelJob]


@pytest.fixture
def pilot(make_job: MakeJob) -> Pilot:
    return Pilot(make_job(), 600)


def test_it_has_about_as_many_targets_as_asked_from_all_over_the_corpus(
    pilot: Pilot, make_job: MakeJob, tmp_path: Path
) -> None:
    assert 600 <= pilot.targets < 900
    assert 100 <= Pilot(make_job(), 100).targets < 140
    assert pilot.seconds_per_target() > 0
    assert not (tmp_path / "store").exists()


def test_a_budget_is_kept_to_and_used_up(pilot: Pilot) -> None:
    codec = pilot.threshold_of_bytes(12.0)
    assert pilot.bytes_per_target(codec) <= 12.0
    assert pilot.bytes_per_target(Threshold(codec.threshold * 0.9)) > 12.0


@pytest.mark.slow
def test_an_error_is_kept_to_with_as_few_bytes_as_it_takes(pilot: Pilot) -> None:
    codec = pilot.threshold_of_error(0.02)
    assert pilot.measure(codec).fidelity.error <= 0.02
    assert pilot.measure(Threshold(codec.threshold * 1.2)).fidelity.error > 0.02


@pytest.mark.slow
def test_the_bytes_it_predicts_are_those_that_labelling_writes(make_job: MakeJob) -> None:
    texts = {f"{i}.txt": " ".join(f"w{(i * 7 + j * 5) % 90}" for j in range(4000)) for i in range(4)}
    job = make_job(texts, unit_bytes=10**6)
    predicted = Pilot(job, 16_000).measure(Threshold())
    store = prepare(job)
    (unit,) = store.pending()
    commit = Labeller(job).label(unit)
    assert predicted.bytes_per_target == pytest.approx(commit.shard_bytes / commit.targets, rel=0.1)
    assert predicted.entries == pytest.approx(commit.statistics["logits.entries"], rel=0.02)
    assert Pilot(job, 100).targets_per_byte() * unit.size_bytes == pytest.approx(commit.targets, rel=0.01)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({}, UserError, "3 bytes a target cannot be had: the largest threshold takes"),
        ({"heads": {"logits": {"kind": "threshold"}}, "head": "logit"}, ConfigError, "keeps logits"),
    ],
)
def test_what_cannot_be_had_is_said(
    make_job: MakeJob, change: dict[str, Any], error: type, said: str
) -> None:
    with pytest.raises(error, match=said):
        Pilot(make_job(), 200, change.get("head")).threshold_of_bytes(3.0)


def test_top_k_is_measured_beside_it(pilot: Pilot) -> None:
    few, many = pilot.measure(TopK(2)), pilot.measure(TopK(60))
    assert many.bytes_per_target > few.bytes_per_target
    assert many.fidelity.error < few.fidelity.error
    assert many.captured_mass > few.captured_mass
