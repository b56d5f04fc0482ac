"""What a preprocessing actor does with its streams, without Ray around it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import chain

import pytest

from pipeline.batching import Rendered
from pipeline.engine import preprocessor
from pipeline.engine.preprocessor import Preprocessor
from pipeline.job import LabelJob
from pipeline.prepare import prepare
from pipeline.rendering import records_of, rendered
from pipeline.targets.errors import CorpusChanged, SpecMismatch
from pipeline.targets.unit import Unit

MakeJob = Callable[..., LabelJob]
MANY: dict[str, str | bytes] = {f"{i:03}.txt": f"w{i % 90} w1 w2 w3" for i in range(100)} | {
    "007x.txt": b"\xff"
}


@pytest.fixture
def job(make_job: MakeJob) -> LabelJob:
    """One unit of 101 records."""
    return make_job(MANY, unit_bytes=10**6, label={"profile": True})


@pytest.fixture
def unit(job: LabelJob) -> Unit:
    (unit,) = prepare(job).planned()
    return unit


@pytest.fixture
def actor(job: LabelJob, unit: Unit) -> Preprocessor:
    actor = Preprocessor(job.model_dump_json(), 2)
    actor.start()
    return actor


def alike(found: list[Rendered]) -> list[object]:
    """Rendered records in a form that can be compared."""
    return [
        [(i.key, i.row, i.view, i.views, i.content.size, i.content.inputs["tokens"].tolist()) for i in record]
        if isinstance(record, list)
        else record
        for record in found
    ]


def threads() -> int:
    return sum(thread.name.startswith("decant") for thread in threading.enumerate())


def test_the_chunks_of_a_unit_are_its_records_in_order(
    actor: Preprocessor, job: LabelJob, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(chain.from_iterable(rendered(records_of(job.corpus, unit), job.views.load(), 1, 2)))
    monkeypatch.setattr(preprocessor, "CHUNK_BYTES", 50)
    found: list[Rendered] = []
    last = False
    while not last:
        chunk = actor.take((0, 0), unit)
        assert chunk.before == len(found)
        assert chunk.profile is not None
        found += chunk.rendered
        last = chunk.last
    assert len(expected) == 101
    assert alike(found) == alike(expected)
    assert threads() == 0


def test_two_replicas_take_the_same_unit_side_by_side(actor: Preprocessor, unit: Unit) -> None:
    one, two = actor.take((0, 0), unit), actor.take((1, 1), unit)
    assert (one.before, two.before) == (0, 0)
    assert alike(list(one.rendered)) == alike(list(two.rendered))
    assert actor.take((0, 0), unit).before == len(one.rendered)
    actor.forget(0)
    actor.forget(1)
    assert threads() == 0


def test_a_replica_that_was_given_up_gets_no_end_that_looks_like_the_units(
    actor: Preprocessor, unit: Unit
) -> None:
    assert not actor.take((3, 0), unit).last
    actor.forget(3)
    for name in ((3, 0), (3, 1)):
        with pytest.raises(RuntimeError, match="replica 3 was given up"):
            actor.take(name, unit)
    assert threads() == 0


def test_what_reading_raises_is_raised_as_itself_and_ends_the_stream(
    actor: Preprocessor, job: LabelJob, unit: Unit
) -> None:
    from pipeline.corpus import TextFiles

    assert isinstance(job.corpus, TextFiles)
    actor.take((0, 0), unit)
    (folder,) = job.corpus.urls
    with open(f"{folder}/099.txt", "w") as changed:
        changed.write("changed since")
    with pytest.raises(CorpusChanged, match=r"099\.txt"):
        list(iter(lambda: actor.take((0, 0), unit), None))
    assert threads() == 0


def test_other_views_than_the_stores_are_refused_at_the_start(job: LabelJob, unit: Unit) -> None:
    other = job.model_copy(update={"views": job.views.model_copy(update={"length": 16})})
    with pytest.raises(SpecMismatch, match="views"):
        Preprocessor(other.model_dump_json(), 1).start()


def test_it_loads_no_model_library(job: LabelJob, unit: Unit) -> None:
    code = (
        "import sys; from pipeline.engine.preprocessor import Preprocessor\n"
        "Preprocessor(sys.stdin.read(), 1).start(); print(*sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], input=job.model_dump_json(), capture_output=True, text=True, check=True
    )
    assert not set(ended.stdout.split()) & {"torch", "transformers", "ray"}
