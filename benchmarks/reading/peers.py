"""The same samples in the formats of others, written and read as their documentation shows.

Each `write` puts samples into a folder; each `read` gives one epoch of batches of `batch_rows` samples as
tensors, from a folder or from S3. What is not measured (a warm index, a copy made once) is made in `write`.
Libraries are imported where they are used: an environment needs only those it measures.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.reading.samples import DTYPES, WIDENED, Sample, collate

Batches = Iterable[Any]

CHUNK = "64MB"
SHUFFLED_ROWS = 8000
"""Rows that a shuffle by a buffer holds: about what Decant's window of eight shards does."""


@dataclass(frozen=True)
class Access:
    """How an epoch is read. url: of what `write` wrote. folder: an empty one for copies."""

    url: str
    folder: Path
    batch_rows: int
    shuffle: bool
    workers: int
    options: dict[str, Any]

    @property
    def remote(self) -> bool:
        """Whether it is on S3."""
        return self.url.startswith("s3://")


class Peer(ABC):
    """Somebody else's format and reader. remote: whether it reads from S3 by itself; workers: whether in
    worker processes."""

    name: str
    remote = True
    workers = True

    @abstractmethod
    def write(self, samples: Iterable[Sample], folder: Path) -> None: ...

    @abstractmethod
    def read(self, access: Access) -> Batches: ...


class Streaming(Peer):
    """MosaicML Streaming: MDS shards, uncompressed, arrays with their dtype declared."""

    name = "MosaicML Streaming"

    def write(self, samples: Iterable[Sample], folder: Path) -> None:
        from streaming import MDSWriter

        names = {"<u2": "uint16", "|u1": "uint8", "<f4": "float32", "<f2": "float16"}
        iterator = iter(samples)
        first = next(iterator)
        columns = {name: f"ndarray:{names[DTYPES[name]]}" for name in first}
        with MDSWriter(out=str(folder), columns=columns, size_limit=CHUNK.lower()) as out:
            out.write(first)
            for sample in iterator:
                out.write(sample)

    def read(self, access: Access) -> Batches:
        from streaming import StreamingDataset

        where = (
            {"remote": access.url, "local": str(access.folder)} if access.remote else {"local": access.url}
        )
        dataset = StreamingDataset(**where, shuffle=access.shuffle, batch_size=access.batch_rows)
        return _loader(dataset, access)


class LitData(Peer):
    """Lightning's LitData: chunks of raw arrays."""

    name = "LitData"

    def write(self, samples: Iterable[Sample], folder: Path) -> None:
        from litdata.streaming.writer import BinaryWriter

        writer = BinaryWriter(str(folder), chunk_bytes=CHUNK)
        for number, sample in enumerate(samples):
            writer.add_item(number, sample)
        writer.done()
        writer.merge()

    def read(self, access: Access) -> Batches:
        from litdata import StreamingDataLoader, StreamingDataset

        settings: dict[str, Any] = {}
        if access.remote:
            settings = {
                "cache_dir": str(access.folder),
                "storage_options": {
                    "endpoint_url": access.options["endpoint_url"],
                    "aws_access_key_id": access.options["key"],
                    "aws_secret_access_key": access.options["secret"],
                    "region_name": "us-east-1",
                },
            }
        dataset = StreamingDataset(access.url, shuffle=access.shuffle, **settings)
        return StreamingDataLoader(
            dataset, batch_size=access.batch_rows, num_workers=access.workers, collate_fn=collate
        )


class WebDataset(Peer):
    """webdataset: tar files, a member for each array."""

    name = "webdataset"

    def write(self, samples: Iterable[Sample], folder: Path) -> None:
        from webdataset import ShardWriter

        with ShardWriter(f"{folder}/%05d.tar", maxsize=64e6, verbose=0, compress=False) as out:
            for number, sample in enumerate(samples):
                members = {f"{name}.bin": array.tobytes() for name, array in sample.items()}
                out.write({"__key__": f"{number:08d}", **members})

    def read(self, access: Access) -> Batches:
        import webdataset

        urls = _files(access, ".tar")
        if access.remote:
            webdataset.gopen_schemes["s3"] = partial(_opened, access.options)
        shuffled = {"shardshuffle": len(urls), "seed": 0} if access.shuffle else {"shardshuffle": False}
        dataset = webdataset.WebDataset(urls, workersplitter=webdataset.split_by_worker, **shuffled)
        if access.shuffle:
            dataset = dataset.shuffle(SHUFFLED_ROWS)
        dataset = dataset.map(_arrays).batched(access.batch_rows, collation_fn=collate)
        return DataLoader(dataset, batch_size=None, num_workers=access.workers)  # type: ignore[arg-type]


class HuggingFace(Peer):
    """Hugging Face datasets, map style: Arrow files in memory, a batch of rows at a time, as NumPy arrays.

    Remote Parquet is streamed instead, with a buffer to shuffle.
    """

    name = "Hugging Face datasets"

    def write(self, samples: Iterable[Sample], folder: Path) -> None:
        import datasets
        import pyarrow as pa
        import pyarrow.parquet as pq

        iterator = list(samples)
        types = {name: pa.list_(pa.from_numpy_dtype(np.dtype(DTYPES[name]))) for name in iterator[0]}
        table = pa.table(
            {name: pa.array([sample[name] for sample in iterator], kind) for name, kind in types.items()}
        )
        datasets.Dataset(table).save_to_disk(str(folder / "arrow"))
        for number, start in enumerate(range(0, len(table), 4000)):
            pq.write_table(table.slice(start, 4000), folder / f"{number:05d}.parquet")

    def read(self, access: Access) -> Batches:
        import datasets

        if access.remote:
            storage = {"storage_options": access.options}
            stream = datasets.load_dataset(
                "parquet", data_files=_files(access, ".parquet"), split="train", streaming=True, **storage
            )
            if access.shuffle:
                stream = stream.shuffle(seed=0, buffer_size=SHUFFLED_ROWS)
            return DataLoader(
                stream.with_format("numpy"),  # type: ignore[arg-type]
                batch_size=access.batch_rows,
                num_workers=access.workers,
                collate_fn=collate,
            )
        dataset = datasets.load_from_disk(f"{access.url}/arrow").with_format("arrow")
        order = torch.arange(len(dataset))
        if access.shuffle:
            order = torch.randperm(len(dataset))
        batches = [part.tolist() for part in order.split(access.batch_rows)]
        return DataLoader(_ByBatch(dataset, batches), batch_size=None, num_workers=access.workers)


class _ByBatch(Dataset[Any]):
    def __init__(self, dataset: Any, batches: list[list[int]]) -> None:
        self._dataset, self._batches = dataset, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        table = self._dataset[self._batches[at]]
        samples: list[Sample] = [{} for _ in range(len(table))]
        for name in table.column_names:
            column = table.column(name).combine_chunks()
            values, bounds = column.values.to_numpy(), column.offsets.to_numpy()
            for sample, start, stop in zip(samples, bounds[:-1], bounds[1:], strict=True):
                sample[name] = values[start:stop]
        return collate(samples)


class Bare(Peer):
    """No reader: each array of all samples in one raw file, memory-mapped; batches are cut out by
    `np.frombuffer` in order, or gathered by row. It has no checksum, no prefetching, no keys; it is a bound.
    """

    name = "np.frombuffer"
    remote = workers = False

    def write(self, samples: Iterable[Sample], folder: Path) -> None:
        counts: dict[str, list[int]] = {}
        with contextlib.ExitStack() as stack:
            files: dict[str, Any] = {}
            for sample in samples:
                for name, array in sample.items():
                    if name not in files:
                        files[name] = stack.enter_context(open(folder / name, "wb"))
                        counts[name] = [0]
                    files[name].write(array.tobytes())
                    counts[name].append(len(array))
        for name, numbers in counts.items():
            np.save(folder / f"{name}.npy", np.cumsum(numbers))

    def samples(self, folder: Path) -> Iterator[Sample]:
        """What was written."""
        bounds = {path.stem: np.load(path) for path in folder.glob("*.npy")}
        arrays = {name: np.memmap(folder / name, DTYPES[name], "r") for name in bounds}
        for row in range(len(next(iter(bounds.values()))) - 1):
            yield {name: np.array(arrays[name][b[row] : b[row + 1]]) for name, b in bounds.items()}

    def read(self, access: Access) -> Batches:
        return _Again(self, access)

    def epoch(self, access: Access) -> Iterator[Any]:
        """One."""
        folder = Path(access.url)
        bounds = {path.stem: np.load(path) for path in folder.glob("*.npy")}
        data = {name: np.memmap(folder / name, np.uint8, "r") for name in bounds}
        rows = len(next(iter(bounds.values()))) - 1
        order = np.random.default_rng(0).permutation(rows) if access.shuffle else np.arange(rows)

        def tensor(name: str, chosen: Any) -> torch.Tensor:
            dtype, (starts, stops) = np.dtype(DTYPES[name]), (bounds[name][chosen], bounds[name][chosen + 1])
            alike = bool((stops - starts == stops[0] - starts[0]).all())
            pieces = zip(starts.tolist(), stops.tolist(), strict=True)
            if not access.shuffle and (alike or name != "tokens"):
                pieces = iter([(int(starts[0]), int(stops[-1]))])
            arrays = [np.frombuffer(data[name], dtype, b - a, a * dtype.itemsize) for a, b in pieces]
            if name == "tokens" and not alike:
                return collate([{name: array} for array in arrays])[name]
            both = WIDENED[name](torch.from_numpy(np.concatenate(arrays)))
            return both.view(len(chosen), -1) if name == "tokens" else both

        for first in range(0, rows, access.batch_rows):
            chosen = order[first : first + access.batch_rows]
            yield {name: tensor(name, chosen) for name in bounds}


class _Again:
    def __init__(self, bare: Bare, access: Access) -> None:
        self._bare, self._access = bare, access

    def __iter__(self) -> Iterator[Any]:
        return self._bare.epoch(self._access)


BARE = Bare()
PEERS: tuple[Peer, ...] = (BARE, Streaming(), LitData(), WebDataset(), HuggingFace())


def _loader(dataset: Any, access: Access) -> Batches:
    return DataLoader(dataset, batch_size=access.batch_rows, num_workers=access.workers, collate_fn=collate)


def _files(access: Access, extension: str) -> list[str]:
    if not access.remote:
        return sorted(str(path) for path in Path(access.url).glob(f"*{extension}"))
    import fsspec

    found = fsspec.filesystem("s3", **access.options).ls(access.url)
    return sorted(f"s3://{name}" for name in found if name.endswith(extension))


def _opened(options: dict[str, Any], url: str, *_: object, **__: object) -> Any:
    import fsspec

    return fsspec.open(url, "rb", **options).open()


def _arrays(sample: dict[str, Any]) -> dict[str, Any]:
    arrays = {
        name.removesuffix(".bin"): np.frombuffer(data, DTYPES[name.removesuffix(".bin")])
        for name, data in sample.items()
        if name.endswith(".bin")
    }
    return {"__key__": sample["__key__"], **arrays}
