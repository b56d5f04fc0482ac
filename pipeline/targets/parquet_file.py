"""Parquet files are opened in one place, so that Arrow's threads never hold what is Python's.

By default Arrow reads ahead in a thread of its own, which then lets go of the file and of the bytes it read:
both are Python's. Where the process leaves just then, that thread asks a closing interpreter for its lock and
C++ ends the process with "terminate called without an active exception", after all of its work was done. The
same may happen to columns that Arrow's threads decode, hence `use_threads=False` wherever a file is read.
"""

from __future__ import annotations

from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq


def parquet_file(file: BinaryIO | pa.BufferReader) -> pq.ParquetFile:
    """The file's reader, on the caller's thread alone. Pages with checksums are checked.

    Raises what Arrow raises for what is no Parquet file: ArrowException, OSError, ValueError.
    """
    return pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)
