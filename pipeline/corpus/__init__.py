"""Sources: one file each, the kinds in `kinds`, several of them as one in `mix`."""

from typing import Annotated

from pydantic import Field

from pipeline.corpus.arrays import ArrayFiles
from pipeline.corpus.arrow import ArrowFiles
from pipeline.corpus.base import Filtered, Record, Source
from pipeline.corpus.jsonl import JsonLines
from pipeline.corpus.kinds import AnyFiles
from pipeline.corpus.media import AudioFiles, ImageFiles
from pipeline.corpus.mix import Mix
from pipeline.corpus.parquet import ParquetFiles
from pipeline.corpus.text import SourceTree, TextFiles
from pipeline.corpus.webdataset import WebDatasetTars
from pipeline.corpus.zarr_arrays import ZarrArrays

AnySource = Annotated[AnyFiles | Mix, Field(discriminator="kind")]

__all__ = [
    "AnySource",
    "ArrayFiles",
    "ArrowFiles",
    "AudioFiles",
    "Filtered",
    "ImageFiles",
    "JsonLines",
    "Mix",
    "ParquetFiles",
    "Record",
    "Source",
    "SourceTree",
    "TextFiles",
    "WebDatasetTars",
    "ZarrArrays",
]
