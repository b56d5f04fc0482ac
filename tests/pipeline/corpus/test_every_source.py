"""What every source promises: every record once, the same units, growth, and an honest no."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.corpus import Filtered, Record, Source
from pipeline.corpus.base import Read
from pipeline.job import LabelJob
from pipeline.label import Labeller, prepare
from pipeline.targets.errors import CorpusChanged, CorpusMissing, SpecMismatch
from pipeline.targets.unit import Quarantined, Unit
from tests.pipeline.corpus.corpora import Corpus, corpora, parsed

FIRST = (0, 2, 4, 5, 7)


def of(chosen: Callable[[Corpus], bool]) -> pytest.MarkDecorator:
    """The test holds for each of these kinds."""
    kinds = [pytest.param(corpus, id=corpus.name) for corpus in corpora() if chosen(corpus)]
    return pytest.mark.parametrize("corpus", kinds)


every_kind = of(lambda corpus: True)


@pytest.fixture
def folder(tmp_path: Path, corpus: Corpus) -> Path:
    """Five files of the corpus."""
    if "zarr" in corpus.name:
        pytest.importorskip("zarr")
    folder = tmp_path / "files"
    folder.mkdir()
    for number in FIRST:
        corpus.write(folder, number)
    return folder


def read(source: Source, units: list[Unit]) -> list[Read]:
    items: list[Read] = []
    for unit in units:
        found = list(source.read(unit))
        assert [item.row for item in found] == list(range(len(found)))
        items += found
    return items


def planned(units: list[Unit]) -> dict[str, str]:
    return {part.url: part.fingerprint for unit in units for part in unit.slices}


def plain(item: Read) -> Any:
    """For comparisons."""
    if not isinstance(item, Record):
        return item
    return (
        item.key,
        item.row,
        {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in item.data.items()},
    )


def urls_of(units: list[Unit]) -> Iterator[str]:
    return (part.url for unit in units for part in unit.slices)


@every_kind
def test_every_record_is_there_once_under_a_key_of_its_own_in_a_stable_order(
    corpus: Corpus, folder: Path
) -> None:
    source = corpus.source(folder)
    units = list(source.units())
    items = read(source, units)
    assert all(isinstance(item, Record) for item in items)
    assert len({item.key for item in items}) == len(items) == corpus.rows * len(FIRST)
    assert all(unit.size_bytes > 0 for unit in units)
    assert len({unit.id for unit in units}) == len(units) > 1
    if corpus.name != "mix":  # whose sources take turns
        assert list(urls_of(units)) == sorted(urls_of(units))


@every_kind
def test_the_same_files_give_the_same_units_to_every_process_and_each_is_read_by_itself(
    corpus: Corpus, folder: Path
) -> None:
    """A replica gets the source as JSON and any unit, in any order: that is what resuming is."""
    source = corpus.source(folder)
    units = list(source.units())
    expected = [list(map(plain, source.read(unit))) for unit in units]
    replica = parsed(json.loads(source.model_dump_json()))
    assert list(replica.units()) == units
    for unit, items in reversed(list(zip(units, expected, strict=True))):
        assert list(map(plain, replica.read(unit))) == items


@every_kind
def test_a_grown_corpus_plans_the_new_part_alone_and_changes_nothing(corpus: Corpus, folder: Path) -> None:
    source = corpus.source(folder)
    before = list(source.units())
    keys = [item.key for item in read(source, before)]
    for number in (1, 8):
        corpus.write(folder, number)
    added = list(source.units(planned(before)))
    assert not set(urls_of(added)) & set(urls_of(before))
    new = read(source, added)
    assert len(new) == 2 * corpus.rows
    assert not {item.key for item in new} & set(keys)
    assert [item.key for item in read(source, before)] == keys
    assert list(source.units(planned(before + added))) == []


def refusals(error: type[Exception], source: Source, units: list[Unit], unit: Unit) -> list[str]:
    """What is said when these units are planned again, and when one of them is read: both raise the error."""
    said = []
    for act in (lambda: list(source.units(planned(units))), lambda: list(source.read(unit))):
        with pytest.raises(error) as caught:
            act()
        said.append(str(caught.value))
    return said


def touched(path: Path) -> None:
    """Another file now, of the same length."""
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        os.utime(file, ns=(1, 1))


@every_kind
def test_a_changed_file_is_reported_when_planning_and_when_reading_never_labelled_again(
    corpus: Corpus, folder: Path
) -> None:
    source = corpus.source(folder)
    units = list(source.units())
    part = units[-1].slices[-1]
    touched(Path(part.url))
    for said in refusals(CorpusChanged, source, units, units[-1]):
        assert part.url in said
        assert "restore it" in said


@every_kind
def test_a_vanished_file_is_named(corpus: Corpus, folder: Path) -> None:
    source = corpus.source(folder)
    *_, last = source.units()
    path = Path(last.slices[-1].url)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(CorpusChanged, match="vanished: restore it") as caught:
        list(source.read(last))
    assert str(path) in str(caught.value)


@every_kind
def test_nothing_that_matches_is_a_mistake_that_names_the_place(
    corpus: Corpus, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CorpusMissing) as caught:
        list(corpus.source(tmp_path / "none").units())
    assert str(tmp_path / "none") in str(caught.value)
    assert caught.value.exit_code == 2


@of(lambda corpus: corpus.spoil is not None)
def test_a_record_that_does_not_decode_is_quarantined_by_key_and_the_others_are_read(
    corpus: Corpus, folder: Path
) -> None:
    """Images and sounds are any bytes: what they are not, the views say."""
    assert corpus.spoil is not None
    source = corpus.source(folder)
    keys = [item.key for item in read(source, list(source.units()))]
    corpus.spoil(folder, 4)
    items = read(source, list(source.units()))
    (bad,) = [item for item in items if isinstance(item, Quarantined)]
    assert len(items) == len(keys)
    assert bad.code == "undecodable"
    assert "04" in bad.key
    assert bad.key.rpartition("/")[2].partition("@")[0] in bad.reason


@every_kind
def test_filters_and_samples_leave_the_rest_counted_at_its_place(corpus: Corpus, folder: Path) -> None:
    every = [item.key for item in read(corpus.source(folder), list(corpus.source(folder).units()))]

    def chosen(**settings: Any) -> list[str]:
        source = corpus.source(folder, **settings)
        items = read(source, list(source.units()))
        assert [item.key for item in items] == every
        assert all(isinstance(item, Record | Filtered) for item in items)
        return [item.key for item in items if isinstance(item, Record)]

    assert chosen(where={"key": "0[24]"}) == [key for key in every if "02" in key or "04" in key]
    assert chosen(where={"key_not": "0[24]"}) == [key for key in every if "02" not in key and "04" not in key]
    half, fewer = chosen(sample=0.5), chosen(sample=0.3)
    assert half == chosen(sample=0.5)
    assert any(chosen(sample=0.5, sample_seed=seed) != half for seed in (1, 2, 3))
    assert set(fewer) <= set(half) < set(every)
    both = chosen(sample=0.5, where={"key": "0[24]"})
    assert both == [key for key in half if "02" in key or "04" in key]


@every_kind
def test_another_filter_over_planned_files_is_reported_never_applied_to_the_rest(
    corpus: Corpus, folder: Path
) -> None:
    source = corpus.source(folder, sample=0.5)
    units = list(source.units())
    assert list(source.units(planned(units))) == []
    for other in (
        {},
        {"sample": 0.4},
        {"sample": 0.5, "sample_seed": 3},
        {"sample": 0.5, "where": {"key": "x"}},
    ):
        changed = corpus.source(folder, **other)
        for said in refusals(SpecMismatch, changed, units, units[0]):
            assert re.search("planned with other settings .*root, sample, sample_seed, .*where", said)


@of(lambda corpus: corpus.name != "mix")
def test_every_setting_binds_the_plan_or_only_says_where_files_are_and_how_they_are_cut(
    corpus: Corpus, folder: Path
) -> None:
    source = corpus.source(folder)
    free = {"kind", "urls", "options", "pattern", "exclude", "unit_bytes", "unit_rows", "foreign"}
    limits = {"max_file_bytes", "max_record_bytes"}  # beyond them is quarantine, which says so
    assert set(type(source).model_fields) <= source.decides | free | limits  # type: ignore[attr-defined]


@of(lambda corpus: corpus.name in ("saved dataset", "tar", "mix"))
def test_a_job_resumes_in_the_middle_and_labels_only_what_was_added(
    corpus: Corpus, folder: Path, make_job: Callable[..., LabelJob]
) -> None:
    """With text, which the fake teacher reads; other records go the same way."""
    source = corpus.source(folder)
    job = make_job().model_copy(update={"corpus": source})
    store = prepare(job)
    labeller = Labeller(job)
    for unit in list(store.pending())[::2]:
        labeller.label(unit)
    labeller.close()
    halfway = {commit.unit: commit for commit in store.commits()}
    corpus.write(folder, 8)
    store = prepare(job)
    labeller = Labeller(job)
    for unit in store.pending():
        labeller.label(unit)
    labeller.close()
    commits = {commit.unit: commit for commit in store.commits()}
    assert {unit: commits[unit] for unit in halfway} == halfway
    keys = [key for commit in commits.values() for rows in store.read(commit) for key in rows.keys]
    expected = {item.key for unit in store.planned() for item in source.read(unit)}
    assert sorted(keys) == sorted(expected)
    assert len(keys) == (len(FIRST) + 1) * corpus.rows
