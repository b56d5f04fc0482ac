"""The demo's text leg in miniature: what it says of a store is true, and it goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import io
import os
import platform
import threading
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from jobs.demo import sources, teacher
from jobs.demo.checking import account
from jobs.demo.labelling import Timeline, label
from jobs.demo.results import TextLeg
from jobs.demo.settings import StudentSettings, TextSettings, miniature
from jobs.demo.stages import Stages
from jobs.demo.teacher import TeacherSettings
from jobs.demo.text import run_text
from pipeline.corpus import TextFiles
from pipeline.engine.base import Committed, Started
from pipeline.engine.local import Local
from pipeline.job import LabelJob, StoreConfig
from pipeline.prepare import prepare
from pipeline.targets.codecs import Threshold
from pipeline.targets.errors import CorpusMissing
from pipeline.targets.store import Store
from pipeline.teachers import CausalLM, Fake
from pipeline.views import TokenWindows


def quiet() -> Stages:
    return Stages(Console(file=io.StringIO(), width=110))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = ["def add(a, b):\n    return a + b\n" * 20, "class Ä:\n    pass\n"]
    teacher.train_tokenizer(texts, 300).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def job(tmp_path: Path, tokenizer: Path) -> LabelJob:
    """Eight files and an empty one, a unit each or two."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "empty.py").write_text("")
    for number in range(8):
        (corpus / f"file{number}.py").write_text(f"x{number} = {number}\n" * (5 + 10 * number))
    return LabelJob(
        corpus=TextFiles(urls=[str(corpus)], unit_bytes=300),
        views=TokenWindows(tokenizer=str(tokenizer), length=16),
        teacher=Fake(size=300),
        store=StoreConfig(url=str(tmp_path / "store"), heads={"logits": Threshold(threshold=0.1)}),
    )


def labelled(job: LabelJob, units: int | None = None) -> Store:
    store = prepare(job)
    with closing(Local().run(job, store.pending(), threading.Event())) as events:
        for _ in islice((e for e in events if isinstance(e, Committed)), units):
            pass
    return store


@pytest.fixture(scope="module")
def found() -> sources.Sources:
    """All Python sources of this machine: looking for them takes seconds."""
    return sources.find(60_000, 40_000)


def test_the_two_parts_share_neither_path_nor_content(found: sources.Sources) -> None:
    teaches, corpus = found.teacher.paths, found.labelled.paths
    assert found.teacher.size >= 60_000
    assert found.labelled.size >= 40_000
    assert found.labelled.size == sum(path.stat().st_size for path in corpus)
    assert not set(teaches) & set(corpus)
    contents = [path.read_bytes() for path in (*teaches, *corpus) if path.stat().st_size]
    assert len(contents) == len(set(contents))


def test_found_again_the_parts_are_the_same_and_the_labelled_one_does_not_depend_on_the_teachers(
    found: sources.Sources,
) -> None:
    again = sources.find(20_000, 40_000)
    assert again.labelled == found.labelled
    assert again.teacher.paths == found.teacher.paths[: len(again.teacher.paths)]
    assert len(again.teacher.paths) < len(found.teacher.paths)


def test_too_few_sources_are_refused_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(Path(dataclasses.__file__).with_name("json")))
    with pytest.raises(CorpusMissing, match=r"end after \d+\.\d of 100000\.0 MB"):
        sources.find(10**11, 1000)


def test_a_kept_teacher_is_a_real_model_directory_and_knows_its_training(tmp_path: Path) -> None:
    settings = TeacherSettings(vocabulary=300, width=16, layers=1, heads=2, hidden=32, length=32, steps=4)
    texts = ["for i in range(10):\n    print('naïve', i)\n" * 30]
    tokenizer = teacher.train_tokenizer(texts, settings.vocabulary)
    assert tokenizer.decode(tokenizer.encode(texts[0]).ids) == texts[0]
    told: list[float] = []
    model, trained = teacher.train(
        teacher.tokenize(tokenizer, texts), settings, lambda done, fact: told.append(done)
    )
    folder = tmp_path / "teacher"
    assert teacher.kept(folder) is None
    teacher.keep(folder, model, tokenizer, trained)
    assert teacher.kept(folder) == trained
    assert trained.steps == 4
    assert told[-1] == 1.0
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert not list(tmp_path.glob("*.tmp"))
    loaded = CausalLM(path=str(folder), device="cpu").load()
    assert loaded.outputs["logits"].size == settings.vocabulary
    assert TokenWindows(tokenizer=str(folder), length=8).load().vocabulary is not None


def test_a_teacher_is_kept_by_its_settings_and_its_sources(tmp_path: Path, found: sources.Sources) -> None:
    part = found.teacher
    base = teacher.directory(tmp_path, part, TeacherSettings())
    assert base == teacher.directory(tmp_path, part, TeacherSettings())
    assert base != teacher.directory(tmp_path, part, TeacherSettings(width=64))
    fewer = dataclasses.replace(part, paths=part.paths[:-1])
    assert base != teacher.directory(tmp_path, fewer, TeacherSettings())


def test_a_slow_machine_stops_the_teacher_by_the_clock() -> None:
    settings = TeacherSettings(
        vocabulary=300, width=16, layers=1, heads=2, hidden=32, length=32, steps=10**6, seconds=0.3
    )
    tokens = np.arange(2000) % 300
    _, trained = teacher.train(tokens, settings, lambda done, fact: None)
    assert 1 <= trained.steps < 10**5
    assert trained.tokens == trained.steps * settings.batch_rows * settings.length


def test_a_whole_store_loses_and_doubles_nothing(job: LabelJob) -> None:
    found = account(job, labelled(job))
    assert (found.planned, found.labelled, found.quarantined) == (9, 8, 1)
    assert (found.lost, found.doubled) == (0, 0)


def test_records_without_a_commit_are_counted_as_lost(job: LabelJob) -> None:
    store = labelled(job, units=2)
    committed = sum(commit.records for commit in store.commits())
    found = account(job, store)
    assert found.lost == 9 - committed > 0
    assert found.doubled == 0


def test_records_that_are_there_twice_are_counted_as_doubled(job: LabelJob) -> None:
    store = labelled(job)
    # The same files, cut into other units: what a plan never does.
    other = job.model_copy(update={"corpus": TextFiles(urls=job.corpus.urls, unit_bytes=10**6)})
    store.write_plan(other.corpus.units(), {}, store.generation())
    for _ in Local().run(other, store.pending(), threading.Event()):
        pass
    assert account(job, store).doubled == 9


def test_an_interrupted_store_is_gone_on_with_and_a_finished_one_makes_room(job: LabelJob) -> None:
    settings = TextSettings(kill=False)
    before = {commit.attempt for commit in labelled(job, units=2).commits()}
    store, timeline = label(job, quiet(), Local(), settings)
    after = {commit.attempt for commit in store.commits()}
    assert before < after
    assert len(timeline.units) == len(after) - len(before)
    store, timeline = label(job, quiet(), Local(), settings)
    assert len(timeline.units) == store.planned_count()
    assert not after & {commit.attempt for commit in store.commits()}


def test_it_never_kills_itself(job: LabelJob) -> None:
    """The local engine's replica is this process."""
    timeline = Timeline(100, TextSettings(replicas=1))

    assert timeline.on(Started(0, os.getpid(), platform.node())) is None
    commit = next(iter(labelled(job).commits()))
    assert [timeline.on(Committed(commit, 0, 0.1)) for _ in range(60)] == [None] * 60
    assert timeline.kill is None


@pytest.mark.slow
def test_the_text_leg_survives_its_kill_and_the_next_run_keeps_the_teacher(
    tmp_path: Path, ray_session: None
) -> None:
    from pipeline.engine.ray import RayEngine

    settings = miniature()
    output = tmp_path / "demo"
    first = run_text(output, quiet(), RayEngine(), 2, settings)
    assert first.labelling.kill is not None
    assert (first.labelling.records_lost, first.labelling.records_doubled, first.store.problems) == (0, 0, 0)
    assert first.labelling.records_planned == (
        first.labelling.records_labelled + first.labelling.records_quarantined
    )
    assert len(first.labelling.units) == first.store.units == first.store.verified_shards
    assert not first.teacher.reused
    assert TextLeg.model_validate_json(first.model_dump_json()) == first
    _pairs_differ_only_in_what_they_are_told(first, settings.student)

    second = run_text(output, quiet(), RayEngine(), 1, settings.model_copy(update={"kill": False}))
    assert second.teacher.reused
    assert second.store.targets == first.store.targets
    assert second.labelling.kill is None
    assert second.teacher.val_nll == pytest.approx(first.teacher.val_nll, rel=1e-4)
    # Same store, same seed: the same student to the last digit.
    assert second.finals("tokens")[0] == first.finals("tokens")[0]


def _pairs_differ_only_in_what_they_are_told(leg: TextLeg, student: StudentSettings) -> None:
    assert sorted((run.name, run.seed) for run in leg.students) == [
        ("store", 0), ("store", 1), ("tokens", 0), ("tokens", 1)
    ]  # fmt: skip
    for run in leg.students:
        assert [point.step for point in run.curve][-1] == student.steps
        assert len(run.curve) >= 2
    assert leg.finals("store") != leg.finals("tokens")
