"""A small corpus of every kind, built by the libraries that people build them with."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from pipeline.corpus import AnySource, Source

ROWS = 6
"""Records of a file that holds several."""


@dataclass(frozen=True)
class Corpus:
    """A kind of corpus in some form. settings: of the source, without its URLs; the units are small.

    write: file `number` into a folder, ROWS records in it or one. spoil: the second record of a file, or its
    only one, made undecodable; None where any bytes are a record.
    """

    name: str
    settings: Mapping[str, Any]
    write: Callable[[Path, int], None]
    rows: int
    spoil: Callable[[Path, int], None] | None

    def source(self, folder: Path | str, **more: Any) -> Source:
        """folder: of this machine, or a URL."""
        if self.settings["kind"] == "mix":
            settings = {**self.settings["one"], **more}
            sources = {name: {**settings, "urls": [f"{folder}/{name}"]} for name in ("a", "b")}
            return parsed({"kind": "mix", "sources": sources})
        return parsed({**self.settings, "urls": [str(folder)], **more})


def parsed(settings: Mapping[str, Any]) -> Source:
    """The source of a job's section."""
    adapter: TypeAdapter[Any] = TypeAdapter(AnySource)
    source: Source = adapter.validate_python(settings)
    return source


def text_of(number: int, row: int) -> str:
    return f"w{number} w{row} of file {number}"


def texts(number: int) -> list[str]:
    return [text_of(number, row) for row in range(ROWS)]


# Text


def write_text(folder: Path, number: int) -> None:
    (folder / f"{number:02}.txt").write_text(text_of(number, 0))


def spoil_text(folder: Path, number: int) -> None:
    (folder / f"{number:02}.txt").write_bytes(b"caf\xe9")


def jsonl(values: list[str | bytes]) -> bytes:
    """Lines; bytes stand as they are."""
    return b"".join(
        (v if isinstance(v, bytes) else json.dumps({"text": v, "n": i % 2}).encode()) + b"\n"
        for i, v in enumerate(values)
    )


def with_second(number: int, second: str | bytes) -> list[str | bytes]:
    first, _, *others = texts(number)
    return [first, second, *others]


def jsonl_files(press: Callable[[bytes], bytes], suffix: str) -> tuple[Any, Any]:
    def write(folder: Path, number: int) -> None:
        (folder / f"{number:02}.jsonl{suffix}").write_bytes(press(jsonl(list(texts(number)))))

    def spoil(folder: Path, number: int) -> None:
        (folder / f"{number:02}.jsonl{suffix}").write_bytes(press(jsonl(with_second(number, b"{"))))

    return write, spoil


# Tables


def table(values: list[str | bytes]) -> pa.Table:
    """Strings, of which Arrow takes any bytes for."""
    binary = pa.array([v if isinstance(v, bytes) else v.encode() for v in values], pa.binary())
    strings = pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())
    return pa.table({"text": strings, "n": [i % 2 for i in range(len(values))]})


def tables(save: Callable[[pa.Table, Path, int], None]) -> tuple[Any, Any]:
    def write(folder: Path, number: int) -> None:
        save(table(list(texts(number))), folder, number)

    def spoil(folder: Path, number: int) -> None:
        save(table(with_second(number, b"\xff")), folder, number)

    return write, spoil


def save_parquet(content: pa.Table, folder: Path, number: int) -> None:
    pq.write_table(content, folder / f"{number:02}.parquet", row_group_size=4)


def save_stream(content: pa.Table, folder: Path, number: int) -> None:
    with pa.ipc.new_stream(str(folder / f"{number:02}.arrow"), content.schema) as writer:
        writer.write_table(content, max_chunksize=2)


def save_file(content: pa.Table, folder: Path, number: int) -> None:
    with pa.ipc.new_file(str(folder / f"{number:02}.arrow"), content.schema) as writer:
        writer.write_table(content, max_chunksize=2)


def save_dataset(content: pa.Table, folder: Path, number: int) -> None:
    """As `datasets.Dataset.save_to_disk` lays it out, two files each and a cache beside them."""
    saved = folder / f"{number:02}"
    saved.mkdir(exist_ok=True)
    names = [f"data-{i:05}-of-00002.arrow" for i in range(2)]
    for name, part in zip(names, (content.slice(0, 4), content.slice(4)), strict=True):
        with pa.ipc.new_stream(str(saved / name), content.schema) as writer:
            writer.write_table(part, max_chunksize=2)
    (saved / "cache-1234.arrow").write_bytes((saved / names[0]).read_bytes())
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
    (saved / "state.json").write_text(json.dumps(state))
    (saved / "dataset_info.json").write_text("{}")


# Tars


def save_tar(path: Path, values: list[str | bytes]) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for i, value in enumerate(values):
            content = value if isinstance(value, bytes) else value.encode()
            for name, data in ((f"{i:03}.txt", content), (f"{i:03}.jpg", b"j" * 99)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    content = sink.getvalue()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def tars(suffix: str) -> tuple[Any, Any]:
    def write(folder: Path, number: int) -> None:
        save_tar(folder / f"{number:02}.tar{suffix}", list(texts(number)))

    def spoil(folder: Path, number: int) -> None:
        save_tar(folder / f"{number:02}.tar{suffix}", with_second(number, b"\xff"))

    return write, spoil


# Bytes and arrays


def write_image(folder: Path, number: int) -> None:
    from PIL import Image

    Image.new("RGB", (4 + number, 5), (number, 0, 0)).save(folder / f"{number:02}.png")


def write_sound(folder: Path, number: int) -> None:
    import wave

    with wave.open(str(folder / f"{number:02}.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(200 + 2 * number))


def numbers(number: int) -> np.ndarray[Any, Any]:
    return np.arange(ROWS * 6, dtype=np.float32).reshape(ROWS, 2, 3) + 100 * number


def write_npy(folder: Path, number: int) -> None:
    np.save(folder / f"{number:02}.npy", numbers(number))


def write_npz(folder: Path, number: int) -> None:
    np.savez(folder / f"{number:02}.npz", x=numbers(number))


def zarrs(version: int) -> Callable[[Path, int], None]:
    def write(folder: Path, number: int) -> None:
        import zarr

        zarr.create_array(
            str(folder / f"{number:02}.zarr"),
            data=numbers(number),
            chunks=(4, 2, 3),
            zarr_format=version,  # type: ignore[arg-type]
            overwrite=True,
        )

    return write


def in_turn(one: Callable[[Path, int], None]) -> Callable[[Path, int], None]:
    """Into the folders of the two sources of a mix."""

    def write(folder: Path, number: int) -> None:
        for name in ("a", "b"):
            (folder / name).mkdir(exist_ok=True)
        one(folder / ("a" if number % 2 else "b"), number)

    return write


def corpora() -> list[Corpus]:
    """One of every kind and form."""
    plain, gz = jsonl_files(bytes, ""), jsonl_files(gzip.compress, ".gz")
    return [
        Corpus("text", {"kind": "text", "unit_bytes": 40}, write_text, 1, spoil_text),
        Corpus("source_tree", {"kind": "source_tree", "unit_bytes": 40}, write_text, 1, spoil_text),
        Corpus("jsonl", {"kind": "jsonl", "unit_bytes": 100}, plain[0], ROWS, plain[1]),
        Corpus("jsonl.gz", {"kind": "jsonl", "unit_bytes": 100}, gz[0], ROWS, gz[1]),
        Corpus("parquet", {"kind": "parquet", "unit_rows": 4}, *_of(tables(save_parquet))),
        Corpus("arrow stream", {"kind": "arrow", "unit_bytes": 600}, *_of(tables(save_stream))),
        Corpus("arrow file", {"kind": "arrow", "unit_bytes": 600}, *_of(tables(save_file))),
        Corpus("saved dataset", {"kind": "arrow", "unit_bytes": 600}, *_of(tables(save_dataset))),
        Corpus("tar", {"kind": "webdataset", "unit_bytes": 5000}, *_of(tars(""))),
        Corpus("tar.gz", {"kind": "webdataset", "unit_bytes": 500}, *_of(tars(".gz"))),
        Corpus("images", {"kind": "images", "unit_bytes": 200}, write_image, 1, None),
        Corpus("audio", {"kind": "audio", "unit_bytes": 500}, write_sound, 1, None),
        Corpus("npy", {"kind": "arrays", "unit_rows": 4}, write_npy, ROWS, None),
        Corpus("npz", {"kind": "arrays", "unit_rows": 4}, write_npz, ROWS, None),
        Corpus("zarr 3", {"kind": "zarr", "unit_rows": 4}, zarrs(3), ROWS, None),
        Corpus("zarr 2", {"kind": "zarr", "unit_rows": 4}, zarrs(2), ROWS, None),
        Corpus(
            "mix",
            {"kind": "mix", "one": {"kind": "jsonl", "unit_bytes": 100}},
            in_turn(plain[0]),
            ROWS,
            in_turn(plain[1]),
        ),
    ]


def _of(pair: tuple[Any, Any]) -> tuple[Any, int, Any]:
    return pair[0], ROWS, pair[1]


def read(source: Source) -> list[Any]:
    """What a source gives, unit after unit, with rows counted from 0 in each."""
    items: list[Any] = []
    for unit in source.units():
        found = list(source.read(unit))
        assert [item.row for item in found] == list(range(len(found)))
        items += found
    return items
