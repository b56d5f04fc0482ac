"""Images and their labels as Parquet files, which a labelling job reads. Knows no data set."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

ROW_GROUP = 2048


def write_parquet(path: Path, images: Pixels | list[bytes], labels: Labels) -> None:
    """The columns "image" and "label". images: uint8 [N, pixels], or N encoded files.

    A file that is there already stays as it is: a corpus must not change under a store's plan.
    """
    if path.exists():
        return
    column: pa.Array
    if isinstance(images, list):
        column = pa.array(images, pa.binary())
    else:
        flat = pa.array(np.ascontiguousarray(images).reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, images.shape[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under another name first: a run that is killed here leaves no half of a corpus.
    unfinished = path.with_suffix(".unfinished")
    table = pa.table({"image": column, "label": pa.array(labels, pa.int32())})
    pq.write_table(table, unfinished, row_group_size=ROW_GROUP, compression="zstd")
    os.replace(unfinished, path)
