"""Every source of files. A new one needs a `kind`, `units` and `records`, and its name in the union here."""

from pipeline.corpus.arrays import ArrayFiles
from pipeline.corpus.arrow import ArrowFiles
from pipeline.corpus.jsonl import JsonLines
from pipeline.corpus.media import AudioFiles, ImageFiles
from pipeline.corpus.parquet import ParquetFiles
from pipeline.corpus.text import SourceTree, TextFiles
from pipeline.corpus.webdataset import WebDatasetTars
from pipeline.corpus.zarr_arrays import ZarrArrays

AnyFiles = (
    TextFiles
    | SourceTree
    | JsonLines
    | ParquetFiles
    | ArrowFiles
    | WebDatasetTars
    | ImageFiles
    | AudioFiles
    | ArrayFiles
    | ZarrArrays
)
