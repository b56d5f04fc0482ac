"""Python's files and bytes stay with Python's threads, whoever reads Parquet."""

import io
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus import ParquetFiles
from pipeline.targets import plan
from pipeline.targets.parquet_file import parquet_file
from pipeline.targets.unit import Slice, Unit

CODE = Path(__file__).parents[3]
ROWS, GROUPS = 4000, 4


class Noting(io.BytesIO):
    """A file that notes who reads it."""

    readers: set[int]

    def read(self, size: int | None = -1) -> bytes:
        self.__dict__.setdefault("readers", set()).add(threading.get_ident())
        return super().read(size)


def table() -> bytes:
    """Four row groups of three columns, the texts too many for one page."""
    with io.BytesIO() as sink:
        numbers = list(range(ROWS))
        columns = {"n": numbers, "text": [f"{n} ducks" * 50 for n in numbers], "m": numbers}
        pq.write_table(pa.table(columns), sink, row_group_size=ROWS // GROUPS)
        return sink.getvalue()


def test_a_parquet_file_is_read_by_the_thread_that_asks() -> None:
    file = Noting(table())
    opened = parquet_file(file)
    for group in range(opened.num_row_groups):
        opened.read_row_group(group, use_threads=False)
    for _ in opened.iter_batches(100, columns=["n", "text"], use_threads=False):
        pass
    assert file.readers == {threading.get_ident()}


def test_a_plan_is_read_by_the_thread_that_asks() -> None:
    units = [(f"{n:08x}", Unit((Slice(f"file-{n}", 0, 9, 9, "mark"),), 9)) for n in range(100)]
    data, _ = plan.encode(units, {})
    file = Noting(data)
    assert list(plan.PlanFile(file, "plan/000001.parquet").units()) == units
    assert file.readers == {threading.get_ident()}


def test_a_corpus_is_read_by_the_thread_that_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").pipe("/decant-noting/a.parquet", table())
    opened: list[Noting] = []

    @contextmanager
    def noting(*_: Any, **__: Any) -> Any:
        opened.append(Noting(table()))
        yield opened[-1]

    monkeypatch.setattr("pipeline.corpus.files.open_file", noting)
    source = ParquetFiles(urls=["memory://decant-noting/a.parquet"], unit_rows=ROWS)
    (unit,) = source.units()
    assert sum(1 for _ in source.records(unit)) == ROWS
    assert set().union(*(file.readers for file in opened)) == {threading.get_ident()}
    fsspec.filesystem("memory").rm("/decant-noting", recursive=True)


def test_nothing_opens_parquet_but_through_it() -> None:
    rooms = ("pipeline", "student", "jobs")
    opening = {
        str(path.relative_to(CODE))
        for room in rooms
        for path in (CODE / room).rglob("*.py")
        if "ParquetFile(" in path.read_text() or "read_table(" in path.read_text()
    }
    assert opening == {"pipeline/targets/parquet_file.py"}
