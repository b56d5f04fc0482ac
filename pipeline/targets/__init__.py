"""The contract: what a store of targets is. NumPy, pyarrow and fsspec only; no Ray, no torch at import.

The names below load their modules when they are first used, so that importing one small module is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.targets.commit import Commit
    from pipeline.targets.decoded import (
        DenseTargets,
        EmbeddingTargets,
        SparseTargets,
        Targets,
        TopKTargets,
        TopPTargets,
    )
    from pipeline.targets.errors import DecantError
    from pipeline.targets.ragged import Ragged
    from pipeline.targets.rows import Rows
    from pipeline.targets.spec import Head, Input, Spec, Vocabulary
    from pipeline.targets.storage import Storage
    from pipeline.targets.store import Store
    from pipeline.targets.unit import Quarantined, Slice, Unit
    from pipeline.targets.verify import Problem, Verification

__all__ = [
    "Commit",
    "DecantError",
    "DenseTargets",
    "EmbeddingTargets",
    "Head",
    "Input",
    "Problem",
    "Quarantined",
    "Ragged",
    "Rows",
    "Slice",
    "SparseTargets",
    "Spec",
    "Storage",
    "Store",
    "Targets",
    "TopKTargets",
    "TopPTargets",
    "Unit",
    "Verification",
    "Vocabulary",
]

_HOMES = {
    "commit": ("Commit",),
    "decoded": ("DenseTargets", "EmbeddingTargets", "SparseTargets", "Targets", "TopKTargets", "TopPTargets"),
    "errors": ("DecantError",),
    "ragged": ("Ragged",),
    "rows": ("Rows",),
    "spec": ("Head", "Input", "Spec", "Vocabulary"),
    "storage": ("Storage",),
    "store": ("Store",),
    "unit": ("Quarantined", "Slice", "Unit"),
    "verify": ("Problem", "Verification"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"pipeline.targets.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
