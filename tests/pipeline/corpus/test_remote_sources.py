"""Every source reads an object store as it reads a disk."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus import (
    ArrayFiles,
    ArrowFiles,
    ImageFiles,
    JsonLines,
    ParquetFiles,
    Record,
    TextFiles,
    WebDatasetTars,
    ZarrArrays,
)
from pipeline.corpus.files import FileSource
from pipeline.targets.errors import CorpusUnreadable
from tests.pipeline.corpus.corpora import ROWS, save_dataset, save_tar, table, zarrs

write_zarr = zarrs(3)

TEXTS = [f"text {i} " * 20 for i in range(300)]
LINES = "\n".join(json.dumps({"text": text}) for text in TEXTS).encode()


def make(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(LINES)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(LINES))
    (folder / "c.jsonl.zst").write_bytes(pa.compress(LINES, "zstd", asbytes=True))
    (folder / "d.txt").write_text("plain")
    pq.write_table(pa.table({"text": TEXTS}), folder / "e.parquet", row_group_size=100)
    np.save(folder / "f.npy", np.arange(600).reshape(300, 2))
    np.savez_compressed(folder / "g.npz", x=np.arange(600).reshape(300, 2))
    save_dataset(table(list(TEXTS)), folder, 7)
    save_tar(folder / "h.tar", list(TEXTS))
    save_tar(folder / "h.tar.gz", list(TEXTS))
    for number in range(20):
        (folder / f"{number:02}.png").write_bytes(b"png" * number)
    write_zarr(folder, 8)


def contents(source: FileSource) -> list[tuple[str, int, str]]:
    units = list(source.units())
    items = [item for unit in units for item in source.read(unit)]
    assert all(isinstance(item, Record) for item in items)
    return [(i.key, i.row, str(i.data)) for i in items if isinstance(i, Record)]


def everything(url: str, options: dict[str, Any]) -> list[list[tuple[str, int, str]]]:
    return [
        contents(JsonLines(urls=[url], options=options, unit_bytes=9000)),
        contents(ParquetFiles(urls=[url], options=options, unit_rows=70)),
        contents(ArrayFiles(urls=[url], options=options, unit_rows=70)),
        contents(TextFiles(urls=[url], options=options, pattern="*.txt")),
        contents(ArrowFiles(urls=[url], options=options, unit_bytes=9000)),
        contents(WebDatasetTars(urls=[url], options=options, unit_bytes=90_000)),
        contents(ImageFiles(urls=[url], options=options, unit_bytes=100)),
        contents(ZarrArrays(urls=[url], options=options, unit_rows=4)),
    ]


def test_an_object_store_and_a_disk_give_the_same_records(
    tmp_path: Path, s3_bucket_url: tuple[str, dict[str, Any]]
) -> None:
    s3fs = pytest.importorskip("s3fs")
    pytest.importorskip("zarr")
    url, options = s3_bucket_url
    make(tmp_path)
    fs = s3fs.S3FileSystem(**options)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            fs.put(str(path), f"{url}/{path.relative_to(tmp_path)}")
    local, remote = everything(str(tmp_path), {}), everything(url, options)
    assert [len(items) for items in local] == [900, 300, 600, 1, 300, 600, 20, ROWS]
    assert remote == local


def test_a_wrong_endpoint_or_credential_is_one_sentence(s3_bucket_url: tuple[str, dict[str, Any]]) -> None:
    pytest.importorskip("s3fs")
    url, options = s3_bucket_url
    wrong = {
        **options,
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    with pytest.raises(CorpusUnreadable) as caught:
        list(TextFiles(urls=[url], options=wrong).units())
    assert url in str(caught.value)
    assert options["secret"] not in str(caught.value)
