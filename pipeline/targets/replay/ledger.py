"""The ledger: what was done to a record to make a view of it, stored with the view's targets.

An entry is JSON of explicit parameters, never a seed: what it says does not hang on any generator of random
numbers. With it stands a digest of what the teacher saw. What an entry's keys mean, each kind of view knows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.targets.errors import CorruptShard
from pipeline.targets.ragged import Array
from pipeline.targets.spec import Input, Spec

LEDGER = Input("ledger", "|u1", (None,))
"""A view's entry: UTF-8 JSON without spaces, its keys sorted."""

DIGEST = Input("digest", "|u1", (8,))
"""Of what was rendered by it, see `digest`."""

RECORDED = (LEDGER, DIGEST)
"""Inputs of a store that speak of a view. Neither teachers nor students are given them."""


def write(entry: Mapping[str, Any]) -> Array:
    """An entry as it is stored, uint8 [bytes]."""
    text = json.dumps(entry, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return np.frombuffer(text.encode(), dtype=np.uint8)


def read(stored: Array) -> dict[str, Any]:
    """A stored entry. Raises CorruptShard when it is no JSON object."""
    try:
        entry = json.loads(stored.tobytes())
    except (ValueError, RecursionError) as error:
        raise CorruptShard(
            f"a ledger entry is no JSON ({error}): discard its unit and label again"
        ) from error
    if not isinstance(entry, dict):
        raise CorruptShard("a ledger entry is no JSON object: discard its unit and label again")
    return entry


def digest(rendered: Mapping[str, Array]) -> Array:
    """BLAKE2b of 8 bytes, uint8 [8], of the inputs in the order of their names.

    Of each: the JSON list of its name, dtype and shape, a line feed, and its values, row-major and
    little-endian.
    """
    state = hashlib.blake2b(digest_size=8)
    for name, array in sorted(rendered.items()):
        state.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode() + b"\n")
        state.update(np.ascontiguousarray(array).data)
    return np.frombuffer(state.digest(), dtype=np.uint8)


def keeps_ledger(spec: Spec) -> bool:
    """Whether the store's views can be made again from the corpus."""
    return set(RECORDED) <= set(spec.inputs)
