"""Arrays as they are: one view a record, of a fixed shape and dtype.

It knows no images: no crop, no flip. What a number means is between the corpus and the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt

from pipeline.corpus.base import Record
from pipeline.targets.spec import Input
from pipeline.views.base import Rejected, Renderer, View, Views
from pipeline.views.labels import LABEL, described_label, label_of
from pipeline.views.recorded import fingerprint


class Arrays(Views):
    """A record's array, unchanged but for its dtype."""

    kind: Literal["arrays"] = "arrays"
    """Arrays of one shape."""

    field: str = "array"
    """The field of a record that holds its array."""

    name: str = Field(default="image", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The name of the input, which teachers and students see."""

    dtype: Literal["uint8", "float32"] = "float32"
    """Type of the input. Values are never scaled; what does not fit the type is refused."""

    shape: list[PositiveInt]
    """Shape of one record's array."""

    label: str | None = None
    """The field of a record that holds its true class, an integer. The store keeps it as the input "label",
    for students that learn from labels too; the teacher never sees it."""

    def load(self) -> ArrayRenderer:
        return ArrayRenderer(self)


class ArrayRenderer(Renderer):
    """A loaded Arrays."""

    vocabulary = None

    def __init__(self, config: Arrays) -> None:
        self.config = config
        self.dtype = np.dtype(config.dtype).newbyteorder("<")
        self.inputs = (Input(config.name, self.dtype.str, tuple(config.shape)),)
        self.recorded = (LABEL,) if config.label else ()
        described = described_label(config.model_dump())
        self.description = {**described, "fingerprint": fingerprint(described)}

    def render(self, record: Record, earlier: Sequence[Record] = ()) -> list[View]:
        array = record.data.get(self.config.field)
        if not isinstance(array, np.ndarray):
            raise Rejected("undecodable", f"{record.key} has no array in its field {self.config.field!r}")
        if array.shape != tuple(self.config.shape):
            raise Rejected(
                "undecodable", f"{record.key} has shape {array.shape}, not {tuple(self.config.shape)}"
            )
        if not np.can_cast(array.dtype, self.dtype, "same_kind"):
            raise Rejected(
                "undecodable", f"{record.key} is {array.dtype}, which {self.config.dtype} cannot hold"
            )
        with np.errstate(over="ignore"):  # what overflows is infinite, and rejected below
            values = np.ascontiguousarray(array, dtype=self.dtype)
        if self.dtype.kind == "f" and not np.isfinite(values).all():
            raise Rejected("non_finite", f"{record.key} has an infinite or undefined value")
        kept = label_of(record, self.config.label) if self.config.label else {}
        return [View({self.config.name: values, **kept}, 1)]
