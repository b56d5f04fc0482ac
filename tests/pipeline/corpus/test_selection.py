"""Filters and samples choose by the record alone, and a mix is several such choices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.corpus import Filtered, JsonLines, Mix, ParquetFiles, Record, Source, TextFiles
from pipeline.corpus.selection import Where, drawn
from pipeline.targets.errors import ConfigError, SpecMismatch
from pipeline.targets.unit import Quarantined, Unit
from tests.pipeline.corpus.corpora import parsed

KEYS = [f"folder/{i}.txt" for i in range(20_000)]


def read(source: Source) -> list[Any]:
    return [item for unit in source.units() for item in source.read(unit)]


def records(source: Source) -> list[str]:
    return [item.key for item in read(source) if isinstance(item, Record)]


def planned(units: list[Unit]) -> dict[str, str]:
    return {part.url: part.fingerprint for unit in units for part in unit.slices}


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_a_sample_has_its_share_and_samples_of_two_seeds_are_independent(share: float) -> None:
    first = [drawn(key, share, 0) for key in KEYS]
    second = [drawn(key, share, 1) for key in KEYS]
    both = [a and b for a, b in zip(first, second, strict=True)]
    for found, expected in ((first, share), (second, share), (both, share * share)):
        spread = (expected * (1 - expected) * len(KEYS)) ** 0.5
        assert abs(sum(found) - expected * len(KEYS)) < 5 * spread


@given(st.text(), st.floats(0, 1, exclude_min=True), st.floats(0, 1), st.integers(-(2**63), 2**63 - 1))
def test_a_smaller_sample_is_inside_a_larger_one(key: str, share: float, part: float, seed: int) -> None:
    assert drawn(key, 1.0, seed)
    assert not drawn(key, share * part, seed) or drawn(key, share, seed)


def test_draws_are_those_of_every_machine_and_version() -> None:
    """A store that is half labelled is to be finished by any of them."""
    assert [i for i, key in enumerate(KEYS[:40]) if drawn(key, 0.2, 0)] == [
        4,
        7,
        8,
        9,
        19,
        21,
        22,
        25,
        26,
        32,
    ]
    assert [i for i, key in enumerate(KEYS[:40]) if drawn(key, 0.2, -5)] == [8, 9, 11, 12, 31, 32, 38]


def test_lengths_are_characters_of_a_text_and_bytes_of_anything_encoded() -> None:
    where = Where.model_validate({"length": {"text": {"min": 2, "max": 3}, "image": {"max": 4}}})
    assert where.admits({"text": "éé", "image": b"1234"})
    assert not where.admits({"text": "é", "image": b"1234"})
    assert not where.admits({"text": "éééé", "image": b""})
    assert not where.admits({"text": "éé", "image": b"12345"})
    assert not where.admits({"text": "éé"})


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"where": {"key": "("}}, "no regular expression"),
        ({"where": {"length": {"text": {"min": 3, "max": 2}}}}, "min .3. is larger than max"),
        ({"where": {"equals": {"a": 1}}}, "equals"),
        ({"sample": 0}, "greater than 0"),
        ({"sample": 1.5}, "less than or equal to 1"),
    ],
)
def test_a_filter_that_means_nothing_is_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        parsed({"kind": "text", "urls": ["x"], **settings})


ROWS: list[dict[str, Any]] = [
    {"text": "a", "language": "en", "stars": 1, "ok": True},
    {"text": "b", "language": "de", "stars": 1, "ok": True},
    {"text": "c", "language": "en", "stars": 2, "ok": False},
    {"text": "d", "language": None, "stars": None, "ok": None},
]


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    ("equals", "expected"),
    [
        ({"language": "en"}, "ac"),
        ({"language": "en", "stars": 1}, "a"),
        ({"ok": True}, "ab"),
        ({"stars": None}, "d"),
        ({"language": "fr"}, ""),
    ],
)
def test_rows_are_filtered_by_columns_that_are_no_fields(
    tmp_path: Path, form: str, equals: dict[str, Any], expected: str
) -> None:
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    else:
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    items = read(parsed({"kind": form, "urls": [str(tmp_path)], "where": {"equals": equals}}))
    assert len(items) == len(ROWS)
    assert "".join(item.data["text"] for item in items if isinstance(item, Record)) == expected
    assert all(isinstance(item, Record | Filtered) for item in items)


def test_a_value_is_compared_with_its_type(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a", "x": 1}\n{"text": "b", "x": true}\n{"text": "c", "x": "1"}\n'
    )
    for wanted, expected in ((1, "a"), (True, "b"), ("1", "c")):
        source = JsonLines.model_validate({"urls": [str(tmp_path)], "where": {"equals": {"x": wanted}}})
        (found,) = [item for item in read(source) if isinstance(item, Record)]
        assert found.data["text"] == expected


def test_a_filter_on_a_column_that_is_not_there_is_refused_when_planning(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    source = ParquetFiles.model_validate({"urls": [str(tmp_path)], "where": {"equals": {"lang": "en"}}})
    with pytest.raises(ConfigError, match=r"a\.parquet has no column 'lang', it has \['text'\]"):
        list(source.units())


def test_a_broken_record_that_is_not_chosen_is_filtered_and_one_that_is_stays_quarantined(
    tmp_path: Path,
) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(b"\xff")
    a, b = read(TextFiles.model_validate({"urls": [str(tmp_path)], "where": {"key": "^a"}}))
    assert isinstance(a, Quarantined)
    assert b == Filtered("b.txt", 1)


def test_a_file_that_is_not_chosen_is_not_opened(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("x")
    source = TextFiles.model_validate({"urls": [str(tmp_path)], "where": {"key": "^a"}})
    (unit,) = source.units()
    (tmp_path / "b.txt").unlink()
    a, b = source.read(unit)
    assert (type(a), type(b)) == (Record, Filtered)


# Mixes


def mix(folder: Path, **settings: Any) -> Mix:
    sources = {
        name: {"kind": "text", "urls": [str(folder / name)], "unit_bytes": 40} for name in ("web", "code")
    }
    source = parsed({"kind": "mix", "sources": sources, **settings})
    assert isinstance(source, Mix)
    return source


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("web", "code"):
        (tmp_path / name).mkdir()
        for i in range(200):
            (tmp_path / name / f"{i:03}.txt").write_text(f"{name} {i:03}")
    return tmp_path


def test_a_weight_is_the_share_of_a_source_and_multiplies_with_its_sample(folders: Path) -> None:
    everything, weighted = mix(folders), mix(folders, weights={"web": 0.25})
    assert len(records(everything)) == 400
    found = records(weighted)
    assert len([key for key in found if key.startswith("code/")]) == 200
    web = [key.removeprefix("web/") for key in found if key.startswith("web/")]
    alone = TextFiles(urls=[str(folders / "web")], sample=0.25)
    assert web == records(alone)
    assert 30 < len(web) < 70
    halved = weighted.sources["web"].model_copy(update={"sample": 0.5})
    half = weighted.model_copy(
        update={"sources": {**weighted.sources, "web": halved}, "weights": {"web": 0.5}}
    )
    assert records(half) == found


def test_the_units_of_one_source_are_the_same_whatever_the_others_are(folders: Path) -> None:
    before = list(mix(folders).units())
    (folders / "code" / "new.txt").write_text("new")
    added = list(mix(folders).units(planned(before)))
    assert [part.url for unit in added for part in unit.slices] == [str(folders / "code" / "new.txt")]
    alone = list(TextFiles(urls=[str(folders / "web")], unit_bytes=40).units())
    web = [unit for unit in before if "/web/" in unit.slices[0].url]
    assert [[(p.url, p.start, p.stop) for p in u.slices] for u in web] == [
        [(p.url, p.start, p.stop) for p in u.slices] for u in alone
    ]
    names = ["web" if "/web/" in unit.slices[0].url else "code" for unit in before]
    assert names == ["code", "web"] * (len(before) // 2)


def test_another_weight_name_or_source_over_planned_files_is_reported(folders: Path) -> None:
    source = mix(folders, weights={"web": 0.5})
    units = list(source.units())
    web = next(unit for unit in units if "/web/" in unit.slices[0].url)
    renamed = source.model_copy(update={"sources": {"crawl": source.sources["web"]}, "weights": {}})
    for changed in (mix(folders), mix(folders, weights={"web": 0.4}), renamed, source.sources["web"]):
        with pytest.raises(SpecMismatch, match="its name or weight in a mix"):
            list(changed.units(planned(units)))
        with pytest.raises(SpecMismatch):
            list(changed.read(web))


def test_a_file_in_two_sources_is_refused_and_so_is_a_weight_above_one_or_of_no_source(folders: Path) -> None:
    twice = {name: {"kind": "text", "urls": [str(folders / "web")]} for name in ("a", "b")}
    with pytest.raises(ConfigError, match=r"web/000\.txt is in a and in b: exclude it from one of them"):
        list(parsed({"kind": "mix", "sources": twice}).units())
    with pytest.raises(ValidationError, match=r"web: 1\.5 is more than all of it"):
        mix(folders, weights={"web": 1.5})
    with pytest.raises(ValidationError, match=r"there is no source wbe \(known: code, web\)"):
        mix(folders, weights={"wbe": 0.5})


def test_what_a_plan_keeps_of_a_mix_has_no_options(folders: Path) -> None:
    source = mix(folders)
    secret = source.sources["web"].model_copy(update={"options": {"key": "hunter2"}})
    described = source.model_copy(update={"sources": {"web": secret}}).described()
    assert "hunter2" not in json.dumps(described)
    assert described["sources"]["web"]["kind"] == "text"
