"""Sources: one file each. A new one needs a `kind`, `units` and `read`, and its name in the union here."""

from typing import Annotated

from pydantic import Field

from pipeline.corpus.arrays import ArrayFiles
from pipeline.corpus.base import Record, Source
from pipeline.corpus.jsonl import JsonLines
from pipeline.corpus.parquet import ParquetFiles
from pipeline.corpus.text import TextFiles

AnySource = Annotated[TextFiles | JsonLines | ParquetFiles | ArrayFiles, Field(discriminator="kind")]

__all__ = ["AnySource", "ArrayFiles", "JsonLines", "ParquetFiles", "Record", "Source", "TextFiles"]
