"""A corpus grows by URLs, and what is planned keeps its keys without a word about a root."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import JsonLines, TextFiles
from pipeline.corpus.base import Source
from pipeline.job import LabelJob
from pipeline.label import Labeller
from pipeline.prepare import prepare
from pipeline.targets.errors import SpecMismatch
from pipeline.targets.unit import Unit
from tests.pipeline.corpus.corpora import parsed

FILES = ("a/x/1.txt", "a/x/2.txt", "a/y/1.txt", "b/x/1.txt", "b/2.txt", "x/1.txt", "1.txt")
PLACES = ("a/x/1.txt", "a/x", "a/[xy]/*", "a", "b/2.txt", "b", "x/1.txt", "x", "[0-9].txt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("growth")
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def texts(folder: Path, *names: str) -> TextFiles:
    return TextFiles(urls=[f"{folder}/{name}" for name in names])


def planned(units: list[Unit]) -> dict[str, str]:
    return {part.url: part.fingerprint for unit in units for part in unit.slices}


def keys(source: Source, units: list[Unit]) -> dict[str, str]:
    """The key of each file, as a replica reads it that has the source as JSON."""
    replica = parsed(source.model_dump(mode="json"))
    return {
        part.url: item.key
        for unit in units
        for part, item in zip(unit.slices, replica.read(unit), strict=True)
    }


@settings(max_examples=25)
@given(st.lists(st.sampled_from(PLACES), min_size=1, max_size=6))
def test_whatever_urls_are_added_planned_files_keep_their_keys_and_all_keys_differ(
    folder: Path, places: list[str]
) -> None:
    units: list[Unit] = []
    known: dict[str, str] = {}
    for count in range(1, len(places) + 1):
        source = texts(folder, *places[:count])
        added = list(source.units(planned(units)))
        assert not planned(added).keys() & planned(units).keys()
        units += added
        now = keys(source, units)
        assert {url: now[url] for url in known} == known
        assert len(set(now.values())) == len(now)
        known = now
        assert list(source.units(planned(units))) == []


@pytest.mark.parametrize("then", [("a/x/1.txt", "a/x/2.txt"), ("a/x",), ("a/x/*.txt", "a/x/1.txt")])
def test_beside_a_single_file_its_neighbours_get_plain_names(folder: Path, then: tuple[str, ...]) -> None:
    first = list(texts(folder, "a/x/1.txt").units())
    grown = texts(folder, *then)
    units = first + list(grown.units(planned(first)))
    assert sorted(keys(grown, units).values()) == ["1.txt", "2.txt"]


def test_files_beside_a_planned_folder_have_their_whole_url_so_that_no_key_is_there_twice(
    folder: Path,
) -> None:
    first = list(texts(folder, "a/x").units())
    grown = texts(folder, "a/x", "b")
    units = first + list(grown.units(planned(first)))
    assert sorted(keys(grown, units).values()) == [
        *sorted((f"{folder}/b/2.txt", f"{folder}/b/x/1.txt")),
        "1.txt",
        "2.txt",
    ]


def test_a_stated_root_gives_short_keys_to_whatever_comes_later_below_it(folder: Path) -> None:
    first = list(TextFiles(urls=[f"{folder}/a/x"], root=str(folder)).units())
    grown = TextFiles(urls=[f"{folder}/a/x", f"{folder}/b"], root=str(folder))
    units = first + list(grown.units(planned(first)))
    assert sorted(keys(grown, units).values()) == ["a/x/1.txt", "a/x/2.txt", "b/2.txt", "b/x/1.txt"]


def test_new_urls_without_the_old_ones_are_refused_by_one_sentence_that_gives_the_root(folder: Path) -> None:
    """A replica that knows the job alone could not tell what their keys are relative to."""
    first = list(texts(folder, "a/x").units())
    other = texts(folder, "b")
    with pytest.raises(SpecMismatch) as caught:
        list(other.units(planned(first)))
    said = str(caught.value)
    assert f"set corpus.root: {folder}/a/x, or leave the planned URLs among the new ones" in said
    assert "\n" not in said
    stated = TextFiles(urls=other.urls, root=f"{folder}/a/x")
    units = first + list(stated.units(planned(first)))
    assert len(set(keys(stated, units).values())) == 4
    assert list(texts(folder, "a/x/2.txt").units(planned(first))) == []  # nothing is new: nothing to ask


def test_a_plan_of_one_file_that_was_its_own_root_goes_on(folder: Path) -> None:
    """So did an earlier Decant plan, and its stores are still there."""
    path = f"{folder}/a/x/1.txt"
    first = list(TextFiles(urls=[path], root=path).units())
    grown = texts(folder, "a/x/1.txt", "a/x/2.txt")
    units = first + list(grown.units(planned(first)))
    assert keys(grown, units) == {path: "1.txt", f"{folder}/a/x/2.txt": f"{folder}/a/x/2.txt"}


def test_a_second_file_url_is_labelled_alone(tmp_path: Path, make_job: Callable[..., LabelJob]) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    for path in (one, two):
        path.write_text("".join(f'{{"text": "line {i} of {path.name}"}}\n' for i in range(3)))

    def labelled(*paths: Path) -> tuple[set[str], dict[str, str]]:
        """Units that were pending, and the store's attempts by unit."""
        job = make_job().model_copy(update={"corpus": JsonLines(urls=[str(path) for path in paths])})
        store = prepare(job)
        labeller, pending = Labeller(job), list(store.pending())
        for unit in pending:
            labeller.label(unit)
        labeller.close()
        found = {key for commit in store.commits() for rows in store.read(commit) for key in rows.keys}
        assert {key.partition("@")[0] for key in found} == {path.name for path in paths}
        return {unit.id for unit in pending}, {commit.unit: commit.attempt for commit in store.commits()}

    first, before = labelled(one)
    second, after = labelled(one, two)
    assert len(first) == len(second) == 1
    assert not first & second
    assert {unit: after[unit] for unit in before} == before
