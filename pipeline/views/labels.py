"""The true class of a record, kept beside its views for students that learn from labels too.

It knows which integers are classes. No teacher is shown one.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from pipeline.corpus.base import Record
from pipeline.targets import spec
from pipeline.targets.ragged import Array
from pipeline.targets.spec import Input
from pipeline.views.base import Rejected

LABEL = Input(spec.LABEL, "<i4", ())
"""What the store keeps, and where students look for the labels of a "single" head."""


def label_of(record: Record, field: str) -> dict[str, Array]:
    """A record's class as the input "label". Raises Rejected where it is no integer from 0 to 2^31 - 1."""
    value = record.data.get(field)
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not 0 <= number < 1 << 31:
        raise Rejected("undecodable", f"{record.key} has {value!r} in its field {field!r}, which is no class")
    return {LABEL.name: np.array(number, dtype=LABEL.dtype)}


def described_label(config: dict[str, Any]) -> dict[str, Any]:
    """A description without the field where it is off: stores of views without labels keep their name."""
    return config if config["label"] is not None else {k: v for k, v in config.items() if k != "label"}
