"""A student that gets its images from the corpus by the ledger sees what the teacher saw, or nothing."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from jobs.cli import app
from jobs.replay import CorpusRecords
from pipeline.corpus import ParquetFiles
from pipeline.job import LabelJob
from pipeline.targets.errors import ConfigError, CorpusChanged, CorruptShard, SpecMismatch
from pipeline.targets.ragged import Ragged
from pipeline.targets.replay import ledger
from pipeline.targets.replay.images import ImageReplay
from pipeline.targets.rows import Rows
from pipeline.targets.store import Store
from student.config import TrainConfig
from student.data import Batch, TargetReader
from student.replay import Records, Replayer
from student.student import Student, restore
from student.train import train
from tests.pipeline.views.pictures import encoded, picture
from tests.pipeline.views.stores import RECORDS, captioned, done, labelled, seeing_teacher, tiny_teacher
from tests.student.runs import same, weights

MakeStore = Callable[..., tuple[LabelJob, Store]]


@pytest.fixture(scope="module")
def label(tmp_path_factory: pytest.TempPathFactory) -> MakeStore:
    """label(inputs="omit", …) -> `labelled` of a folder that the tests share."""
    folder = tmp_path_factory.mktemp("images")

    @cache
    def job(*settings: str) -> LabelJob:
        return labelled(folder, *settings)[0]

    def make(*settings: str) -> tuple[LabelJob, Store]:
        return job(*settings), Store.open(job(*settings).store.url)

    return make


def reader(store: Store, records: Records | None = None, **changes: Any) -> TargetReader:
    settings = {"batch_rows": 10, "split": "all", "window_shards": 2, "seed": 5, **changes}
    return TargetReader(store.url, records=records, **settings)


def assert_same(ours: Batch, theirs: Batch) -> None:
    assert list(ours.keys) == list(theirs.keys)
    assert ours.inputs.keys() == theirs.inputs.keys()
    for name in ours.inputs:
        assert ours.inputs[name].dtype == theirs.inputs[name].dtype
        assert torch.equal(ours.inputs[name], theirs.inputs[name])
    ours_targets, theirs_targets = ours.targets["logits"], theirs.targets["logits"]
    assert torch.equal(ours_targets.logits, theirs_targets.logits)  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("container", "kind", "name"),
    [
        ("parquet", "images", "image"),
        ("webdataset", "images", "image"),
        ("zarr", "images", "image"),
        ("parquet", "audio", "log_mel"),
    ],
)
def test_batches_from_the_corpus_are_those_of_stored_inputs_to_the_bit(
    label: MakeStore, container: str, kind: str, name: str
) -> None:
    job, omitted = label("omit", container, kind)
    assert omitted.verify().problems == ()
    _, embedded = label("embed", container, kind)
    replayed, stored = reader(omitted, CorpusRecords(omitted, job.corpus)), reader(embedded)
    assert replayed.rows == stored.rows > RECORDS
    assert replayed.spec.inputs == stored.spec.inputs
    assert [item.name for item in omitted.spec.inputs] == ["ledger", "digest"]
    count = 0
    for ours, theirs in zip(replayed.epoch(0), stored.epoch(0), strict=True):
        assert_same(ours, theirs)
        assert set(ours.inputs) == {name}
        count += len(ours)
    assert count == replayed.rows


@pytest.mark.slow
def test_labels_are_stored_whether_images_are_or_not(tmp_path: Path) -> None:
    corpus = tmp_path / "images.parquet"
    images, labels = [encoded(picture(i, 12, 11)) for i in range(RECORDS)], [i % 4 for i in range(RECORDS)]
    pq.write_table(pa.table({"image": images, "digit": labels}), corpus)
    job, _ = labelled(tmp_path)
    columns = ParquetFiles(urls=[str(corpus)], columns={"image": "image", "digit": "digit"}, unit_rows=16)
    views = job.views.model_copy(update={"field": "image", "label": "digit"})

    def told(inputs: str) -> tuple[LabelJob, Store]:
        store = job.store.model_copy(update={"url": str(tmp_path / inputs), "inputs": inputs})
        return done(job.model_copy(update={"corpus": columns, "views": views, "store": store}))

    (omitting, omitted), (_, embedded) = told("omit"), told("embed")
    assert [item.name for item in omitted.spec.inputs] == ["label", "ledger", "digest"]
    replayed, stored = reader(omitted, CorpusRecords(omitted, omitting.corpus)), reader(embedded)
    assert replayed.spec.inputs == stored.spec.inputs
    for ours, theirs in zip(replayed.epoch(0), stored.epoch(0), strict=True):
        assert_same(ours, theirs)
        found = ours.labels("logits")
        assert found is not None
        assert found.tolist() == [int(key.partition("#")[2]) % 4 for key in ours.keys]


@pytest.mark.slow
def test_of_images_with_texts_tokens_are_stored_and_pixels_replayed(tmp_path: Path) -> None:
    job, omitted = captioned(tmp_path, "omit")
    _, embedded = captioned(tmp_path, "embed")
    assert [item.name for item in omitted.spec.inputs] == ["tokens", "ledger", "digest"]
    replayed, stored = reader(omitted, CorpusRecords(omitted, job.corpus)), reader(embedded)
    assert replayed.spec.inputs == stored.spec.inputs
    teacher = seeing_teacher()
    for ours, theirs in zip(replayed.epoch(0), stored.epoch(0), strict=True):
        assert_same(ours, theirs)
        said = ours.pick(teacher(ours.inputs["tokens"], ours.inputs["image"]), "logits")
        torch.testing.assert_close(said, ours.targets["logits"].logits)  # type: ignore[union-attr]


def test_the_teacher_says_of_a_replayed_view_what_is_stored(label: MakeStore) -> None:
    job, store = label()
    teacher = tiny_teacher()
    for batch in reader(store, CorpusRecords(store, job.corpus)).epoch(0):
        logits = batch.targets["logits"].logits  # type: ignore[union-attr]
        torch.testing.assert_close(teacher(image=batch.inputs["image"]), logits)


@pytest.mark.slow
def test_a_student_learns_from_the_corpus_what_it_learns_from_stored_inputs(
    label: MakeStore, tmp_path: Path
) -> None:
    job, omitted = label("omit", "parquet")
    _, embedded = label("embed", "parquet")
    runs = {}
    for store, records in ((omitted, CorpusRecords(omitted, job.corpus)), (embedded, None)):
        config = training(store, tmp_path / f"run-{Path(store.url).name}")
        for _ in train(config, records):
            pass
        runs[store.url] = Path(config.output)
    ours, theirs = runs.values()
    assert same(weights(ours), weights(theirs))
    student = restore(ours / "checkpoints" / "last", omitted.spec)
    assert same(dict(student.model.state_dict()), weights(theirs))


def training(store: Store, output: Path) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "store": {"url": store.url},
            "output": str(output),
            "model": {"kind": "small_cnn", "channels": [4], "hidden": 8},
            "steps": 12,
            "batch_rows": 16,
            "window_shards": 2,
            "holdout": 0.3,
            "evaluate_every": 6,
            "device": "cpu",
        }
    )


def test_decant_train_opens_the_jobs_corpus(label: MakeStore, tmp_path: Path) -> None:
    job, store = label()
    train_section = training(store, tmp_path / "run").model_dump(mode="json", exclude={"store"})
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump({**job.model_dump(mode="json"), "train": train_section}))
    result = CliRunner().invoke(app, ["train", str(file)])
    assert result.exit_code == 0, result.output
    assert "trained 12 steps" in result.output


def test_a_student_without_the_corpus_is_told_what_is_missing(label: MakeStore, tmp_path: Path) -> None:
    _, store = label()
    with pytest.raises(ConfigError, match="the store keeps no inputs: train with the job file"):
        Student(training(store, tmp_path), store.spec)
    assert set(next(reader(store).epoch(0)).inputs) == set()


def changing(records: Records, change: Callable[[int, str, dict[str, Any]], Any]) -> Records:
    """The same records, one of them changed on the way; None leaves it out."""

    def changed(unit: str) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
        for row, key, data in records(unit):
            if (found := change(row, key, dict(data))) is not None:
                yield found

    return changed


KEY = "images.npy#21"
"""The record that the tests below change: row 5 of its unit."""


def mirrored(row: int, key: str, data: dict[str, Any]) -> Any:
    if key == KEY:
        with Image.open(io.BytesIO(data["array"].tobytes())) as image:
            data["array"] = encoded(np.asarray(image)[:, ::-1])
    return row, key, data


def one_level_darker(row: int, key: str, data: dict[str, Any]) -> Any:
    if key == KEY:
        with Image.open(io.BytesIO(data["array"].tobytes())) as image:
            pixels = np.asarray(image).copy()
        data["array"] = encoded(np.where(pixels > 0, pixels - 1, pixels))
    return row, key, data


def spoiled(row: int, key: str, data: dict[str, Any]) -> Any:
    return row, key, {"array": b"spoiled"} if key == KEY else data


def renamed(row: int, key: str, data: dict[str, Any]) -> Any:
    return row, "another.png" if key == KEY else key, data


def lost(row: int, key: str, data: dict[str, Any]) -> Any:
    return None if key == KEY else (row, key, data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (mirrored, "the corpus renders to something else than the teacher saw"),
        (one_level_darker, "the corpus renders to something else than the teacher saw"),
        (spoiled, "the corpus' record (is mixed with images.npy#21, which )?is no image"),
        (renamed, "the corpus has 'another.png' in its place"),
        (lost, "the corpus has no such record in its place"),
    ],
)
def test_another_corpus_is_refused_by_store_shard_and_key(
    label: MakeStore, change: Callable[[int, str, dict[str, Any]], Any], said: str
) -> None:
    job, store = label()
    records = changing(CorpusRecords(store, job.corpus), change)
    with pytest.raises(SpecMismatch, match=said) as caught:
        list(reader(store, records).epoch(0))
    for part in (store.url, "shards/", KEY):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lost, "the corpus has no 'images.npy#21' among the 4 records before it"),
        (renamed, "the corpus has no 'images.npy#21' among the 4 records before it"),
        (mirrored, "the corpus renders to something else than the teacher saw"),
        (spoiled, "the corpus' record is mixed with images.npy#21, which is no image"),
    ],
)
def test_another_partner_is_refused(
    label: MakeStore, change: Callable[[int, str, dict[str, Any]], Any], said: str
) -> None:
    job, store = label()
    replayer = Replayer(store, changing(CorpusRecords(store, job.corpus), change))
    for commit in store.commits():
        rows = Rows.concatenate(list(store.read(commit)))
        if KEY in rows.keys:
            behind = rows.take(np.flatnonzero(rows.row > rows.row[rows.keys.index(KEY)]))
            with pytest.raises(SpecMismatch, match=said):
                replayer.render(behind, replayer.origins(behind, commit))


@pytest.mark.parametrize(
    "change", [{"resample": "bilinear"}, {"dtype": "float32"}, {"field": "other"}, {"reach": 1}]
)
def test_rendering_by_other_settings_is_refused(label: MakeStore, change: dict[str, Any]) -> None:
    job, store = label()
    records = CorpusRecords(store, job.corpus)
    (commit, *_) = store.commits()
    rows = Rows.concatenate(list(store.read(commit)))
    # As if whoever reads rendered otherwise than whoever labelled.
    store.spec = dataclasses.replace(store.spec, views={**store.spec.views, **change})
    replayer = Replayer(store, records)
    with pytest.raises(SpecMismatch, match="cannot be replayed"):
        replayer.render(rows, replayer.origins(rows, commit))


def test_a_changed_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    job, store = labelled(tmp_path)
    table = np.load(tmp_path / "images.npy")
    np.save(tmp_path / "images.npy", table[:, :-1])
    with pytest.raises(CorpusChanged, match=r"images\.npy is no longer the one"):
        list(reader(store, CorpusRecords(store, job.corpus)).epoch(0))


def test_a_unit_of_no_plan_is_refused(label: MakeStore) -> None:
    job, store = label()
    with pytest.raises(SpecMismatch, match="in no plan"):
        next(CorpusRecords(store, job.corpus)("0" * 32))


def test_each_rank_renders_its_own_rows_and_a_record_of_several_once(
    label: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, store = label()
    decoded: list[str] = []
    decode = ImageReplay.decode

    def counted(self: ImageReplay, data: Mapping[str, Any]) -> Any:
        decoded.append("one")
        return decode(self, data)

    monkeypatch.setattr(ImageReplay, "decode", counted)
    records = CorpusRecords(store, job.corpus)
    (whole,) = reader(store, records, batch_rows=120, window_shards=3).epoch(0)
    mixed = sum("mix" in entry for entry in entries(store))
    assert len(decoded) == len(set(whole.keys)) + mixed
    halves = [
        next(reader(store, records, batch_rows=120, window_shards=3, rank=rank, world_size=2).epoch(0))
        for rank in (0, 1)
    ]
    assert torch.equal(torch.cat([half.inputs["image"] for half in halves]), whole.inputs["image"])


def entries(store: Store) -> list[dict[str, Any]]:
    """Of all views."""
    shards = [rows for commit in store.commits() for rows in store.read(commit)]
    return [ledger.read(rows.inputs["ledger"][i]) for rows in shards for i in range(len(rows))]


def test_a_run_goes_on_with_the_same_images(label: MakeStore) -> None:
    job, store = label()
    records = CorpusRecords(store, job.corpus)
    with closing(iter(reader(store, records))) as stream:  # type: ignore[type-var]
        first, second = next(stream), next(stream)
    resumed = reader(store, records)
    with closing(iter(resumed)) as stream:  # type: ignore[type-var]
        assert_same(next(stream), first)
    with closing(iter(resumed)) as stream:  # type: ignore[type-var]
        assert_same(next(stream), second)


def test_a_broken_ledger_is_named_by_key_and_shard(label: MakeStore) -> None:
    job, store = label()
    replayer = Replayer(store, CorpusRecords(store, job.corpus))
    (commit, *_) = store.commits()
    rows = Rows.concatenate(list(store.read(commit)))
    stored = rows.inputs["ledger"]
    assert isinstance(stored, Ragged)
    broken = Ragged(np.zeros_like(stored.values), stored.offsets)
    rows = dataclasses.replace(rows, inputs={**rows.inputs, "ledger": broken})
    with pytest.raises(CorruptShard, match=r"images\.npy#\d+ in shards/.*: a ledger entry is no JSON"):
        replayer.origins(rows, commit)
