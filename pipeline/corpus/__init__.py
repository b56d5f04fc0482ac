"""Sources: one file each. A new one needs a `kind`, `units` and `read`, and its name in the union here."""

from typing import Annotated

from pydantic import Field

from pipeline.corpus.arrays import ArrayFiles
from pipeline.corpus.arrow import ArrowFiles
from pipeline.corpus.base import Filtered, Record, Source
from pipeline.corpus.jsonl import JsonLines
from pipeline.corpus.media import AudioFiles, ImageFiles
from pipeline.corpus.parquet import ParquetFiles
from pipeline.corpus.text import SourceTree, TextFiles
from pipeline.corpus.webdataset import WebDatasetTars
from pipeline.corpus.zarr_arrays import ZarrArrays

AnySource = Annotated[
    TextFiles
    | SourceTree
    | JsonLines
    | ParquetFiles
    | ArrowFiles
    | WebDatasetTars
    | ImageFiles
    | AudioFiles
    | ArrayFiles
    | ZarrArrays,
    Field(discriminator="kind"),
]

__all__ = [
    "AnySource",
    "ArrayFiles",
    "ArrowFiles",
    "AudioFiles",
    "Filtered",
    "ImageFiles",
    "JsonLines",
    "ParquetFiles",
    "Record",
    "Source",
    "SourceTree",
    "TextFiles",
    "WebDatasetTars",
    "ZarrArrays",
]
