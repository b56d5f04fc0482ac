"""Interchange: other systems' stored targets become stores, and stores become plain columns.

One file a format. `FORMATS` is the list that a new importer is added to.
"""

from __future__ import annotations

from pipeline.interchange.arrays import NumpyArrays
from pipeline.interchange.base import Importer
from pipeline.interchange.distillkit import DistillKit
from pipeline.interchange.source import Source
from pipeline.interchange.tinyvit import TinyViT
from pipeline.interchange.topk_columns import TopKColumns
from pipeline.interchange.zarr_arrays import ZarrArrays

FORMATS: dict[str, type[Importer]] = {
    "distillkit": DistillKit,
    "topk-columns": TopKColumns,
    "tinyvit": TinyViT,
    "arrays": NumpyArrays,
    "zarr": ZarrArrays,
}

__all__ = ["FORMATS", "Importer", "Source"]
