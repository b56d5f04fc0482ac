"""What holds for every container: shards are their spec's, and no byte of them is trusted."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from pipeline.targets import Head, Input, Rows, Spec, Store
from pipeline.targets.codecs import Dense
from pipeline.targets.containers import CONTAINERS, EXTENSIONS
from pipeline.targets.containers.base import check
from pipeline.targets.errors import CorruptShard, SpecMismatch
from pipeline.targets.spec import Container


@pytest.fixture(params=CONTAINERS)
def container(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def written(rows: Rows) -> bytes:
    sink = io.BytesIO()
    writer = CONTAINERS[rows.spec.container].writer(sink, rows.spec)
    writer.write(rows.to_arrow())
    writer.close()
    return sink.getvalue()


def found(data: bytes, spec: Spec) -> Rows:
    return Rows.concatenate([Rows.from_arrow(spec, b) for b in CONTAINERS[spec.container].read(data, spec)])


def test_every_container_that_a_spec_can_name_is_there() -> None:
    assert set(CONTAINERS) == set(get_args(Container))
    assert len(EXTENSIONS) == len(CONTAINERS)


def test_a_spec_of_an_unknown_container_is_refused_with_the_nearest(kit: Any) -> None:
    with pytest.raises(ValueError, match=r"'web-dataset' \(did you mean \"webdataset\""):
        kit.text_spec(container="web-dataset")
    text = kit.text_spec().to_json().replace(f'"{kit.container}"', '"tfrecord"')
    with pytest.raises(SpecMismatch, match="unknown container"):
        Spec.from_json(text)


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc", "", ".", "__x", "ü", "a b", "a\n"])
def test_a_name_that_cannot_stand_in_a_tar_or_a_zip_is_refused(kit: Any, name: str) -> None:
    for part in ({"heads": (Head(name, 4, "single", Dense()),)}, {"inputs": (Input(name, "<u2", ()),)}):
        if kit.container == "parquet":
            kit.text_spec(**{"inputs": (), **part})
        else:
            with pytest.raises(ValueError, match="cannot stand in a"):
                kit.text_spec(**{"inputs": (), **part})


def test_rows_of_many_batches_are_read_in_batches(kit: Any) -> None:
    spec = kit.text_spec(Dense())
    rows = kit.make_rows(spec, 3000)
    data = written(rows)
    batches = list(CONTAINERS[spec.container].read(data, spec))
    assert len(batches) > 1
    assert kit.same(Rows.concatenate([Rows.from_arrow(spec, batch) for batch in batches]), rows)


def test_a_shard_of_another_spec_or_format_version_is_refused(kit: Any) -> None:
    spec = kit.text_spec()
    data = written(kit.make_rows(spec))
    for other in (kit.text_spec(seed=1), kit.text_spec(format_version=1)):
        with pytest.raises(SpecMismatch, match="written for the spec"):
            found(data, other)
    claims = {"decant.spec_fingerprint": spec.fingerprint, "decant.format_version": "1"}
    with pytest.raises(SpecMismatch, match="written for the format version 1, not for 2"):
        check(claims, spec)


def test_a_shard_of_another_container_is_refused(kit: Any, tmp_path: Path) -> None:
    spec = kit.text_spec()
    data = written(kit.make_rows(spec))
    for name in set(CONTAINERS) - {spec.container}:
        with pytest.raises(CorruptShard):
            list(CONTAINERS[name].read(data, spec))
    store = Store.create(str(tmp_path / "store"), spec)
    commit = kit.label(store, "ab" * 16)
    for other in EXTENSIONS - {CONTAINERS[spec.container].extension}:
        stem = commit.shard.partition(".")[0]
        renamed = type(commit)(**{**vars(commit), "shard": f"{stem}.{other}"})
        (tmp_path / "store" / f"{stem}.{other}").write_bytes((tmp_path / "store" / commit.shard).read_bytes())
        with pytest.raises(CorruptShard, match=f"no shard of a {spec.container} store"):
            list(store.read(renamed))


def test_a_flipped_bit_is_refused_or_harmless_without_any_checksum_of_the_file(kit: Any) -> None:
    spec = kit.text_spec()
    rows = kit.make_rows(spec, 3)
    data = written(rows)
    rng = np.random.default_rng(3)
    refused = 0
    for at in rng.integers(0, len(data), 400).tolist():
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        try:
            assert kit.same(found(bytes(damaged), spec), rows)
        except (CorruptShard, SpecMismatch):
            refused += 1
    assert refused > 100


def test_a_truncated_shard_is_refused_wherever_it_ends(kit: Any) -> None:
    spec = kit.text_spec()
    data = written(kit.make_rows(spec, 3))
    ends = {0, 1, len(data) - 1, *range(0, len(data), 512)}
    ends.update(np.random.default_rng(4).integers(0, len(data), 50).tolist())
    for end in ends:
        with pytest.raises(CorruptShard):
            list(CONTAINERS[spec.container].read(data[:end], spec))


def test_bytes_of_nothing_in_particular_are_refused(kit: Any) -> None:
    spec, rng = kit.text_spec(), np.random.default_rng(5)
    for data in (b"", bytes(512), bytes(10240), b"PK\x05\x06" + bytes(18), b"PAR1PAR1", rng.bytes(5000)):
        with pytest.raises((CorruptShard, SpecMismatch)):
            list(CONTAINERS[spec.container].read(data, spec))
