"""What a disk and an object store give alike: every kind of corpus, and compressed files of many records."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.corpus import JsonLines, Source, TextFiles
from pipeline.targets.errors import CorpusUnreadable
from tests.pipeline.corpus.corpora import Corpus, corpora, read

Place = tuple[str, dict[str, Any]]


def upload(folder: Path, place: Place) -> None:
    """All files below the folder."""
    s3fs = pytest.importorskip("s3fs")
    url, options = place
    s3fs.S3FileSystem(**options).put(f"{folder}/", f"{url}/", recursive=True)


def contents(source: Source) -> list[tuple[str, str]]:
    return [(item.key, str(item.data)) for item in read(source)]


@pytest.mark.parametrize("corpus", [pytest.param(corpus, id=corpus.name) for corpus in corpora()])
def test_every_source_reads_an_object_store_as_it_reads_a_disk(
    corpus: Corpus, tmp_path: Path, s3_bucket_url: Place
) -> None:
    if "zarr" in corpus.name:
        pytest.importorskip("zarr")
    for number in (0, 1, 2):
        corpus.write(tmp_path, number)
    upload(tmp_path, s3_bucket_url)
    url, options = s3_bucket_url
    remote = corpus.source(url, options=options)
    assert len(list(remote.units())) > 1
    assert contents(remote) == contents(corpus.source(tmp_path))
    assert len(contents(remote)) == 3 * corpus.rows


def test_compressed_lines_are_read_from_where_a_unit_begins(tmp_path: Path, s3_bucket_url: Place) -> None:
    texts = [f"text {i} " * 20 for i in range(300)]
    lines = "\n".join(json.dumps({"text": text}) for text in texts).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "c.jsonl.zst").write_bytes(pa.compress(lines, "zstd", asbytes=True))
    upload(tmp_path, s3_bucket_url)
    url, options = s3_bucket_url
    remote = contents(JsonLines(urls=[url], options=options, unit_bytes=9000))
    assert remote == contents(JsonLines(urls=[str(tmp_path)], unit_bytes=9000))
    assert len(remote) == 900


def test_a_wrong_endpoint_or_credential_is_one_sentence(s3_bucket_url: Place) -> None:
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
