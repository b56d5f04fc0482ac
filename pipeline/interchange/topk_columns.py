"""Plain top-k columns, as axolotl's trainer for distillation reads them: Parquet or JSON Lines, in and out.

It knows the columns (github.com/axolotl-ai-cloud/axolotl: integrations/kd/): `input_ids` [L], and for each
position `target_token_ids`, `target_logprobs` and `target_mask` [L, k]. At position t that trainer compares
with the student's output at t, which is alignment "next". Its releases before June 2025 compared with the
output at t - 1, and its chat_template loader still lays targets out so: alignment "self".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.interchange import topk
from pipeline.interchange.columns import (
    BadCell,
    json_rows,
    json_units,
    matrix,
    parquet_columns,
    parquet_rows,
    parquet_units,
    whole_matrix,
    whole_numbers,
)
from pipeline.interchange.sequences import MASK, Sequence, SequenceImporter, same_shape
from pipeline.interchange.source import Source
from pipeline.targets import Ragged
from pipeline.targets.codecs.base import Array, offsets_of
from pipeline.targets.decoded import DenseTargets, SparseTargets, Targets, TopKTargets, TopPTargets
from pipeline.targets.errors import ConfigError, UserError
from pipeline.targets.rows import Rows
from pipeline.targets.spec import TOKENS, Spec
from pipeline.targets.unit import Slice, Unit

REQUIRED = {"input_ids": 1, "target_token_ids": 2, "target_logprobs": 2}
OPTIONAL = {"target_mask": 2, "attention_mask": 1}
"""Columns, and how deep their lists are."""

Alignment = Literal["next", "self"]


class TopKColumns(SequenceImporter):
    """Parquet or JSON Lines with a list of classes and one of log-probabilities for each token."""

    patterns: ClassVar[tuple[str, ...]] = ("*.parquet", "*.jsonl", "*.jsonl.gz", "*.jsonl.zst")

    k: int
    """Classes to keep of each position: the likeliest, where a position has more."""

    @property
    def width(self) -> int:
        return self.k

    @property
    def masked(self) -> bool:
        return True

    def spec(self, source: Source) -> Spec:
        for name in source.files:
            if name.endswith(".parquet"):
                found = parquet_columns(source, name, {**REQUIRED, **OPTIONAL})
                if missing := [column for column in REQUIRED if column not in found]:
                    raise ConfigError(
                        f"{source.where(name)} has no column {missing[0]!r}, "
                        f"it has {', '.join(sorted(found))}"
                    )
        return self.specified("topk-columns", source)

    def units(self, source: Source) -> Iterator[Unit]:
        for name in source.files:
            yield from (parquet_units if name.endswith(".parquet") else json_units)(source, name)

    def sequences(self, source: Source, unit: Unit) -> Iterator[tuple[str, Sequence | str]]:
        for part in unit.slices:
            for key, cells in _cells(source, part):
                try:
                    yield key, cells if isinstance(cells, str) else _sequence(cells)
                except BadCell as error:
                    yield key, str(error)


def _cells(source: Source, part: Slice) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    if part.url.endswith(".parquet"):
        found = parquet_columns(source, part.url, {})
        columns = [name for name in (*REQUIRED, *OPTIONAL) if name in found]
        for number, row in parquet_rows(source, part, columns):
            yield f"{part.url}#{number}", row
    else:
        mark = "@" if part.url.endswith(".jsonl") else "#"
        for number, line in json_rows(source, part):
            yield f"{part.url}{mark}{number}", line


def _sequence(cells: Mapping[str, Any]) -> Sequence:
    """A row as it stands in the file. Raises BadCell."""
    tokens = whole_numbers(cells, "input_ids")
    ids = whole_matrix(cells, "target_token_ids", -1)
    log_probs = matrix(cells, "target_logprobs", -np.inf).astype(np.float64)
    same_shape(ids, log_probs, "target_token_ids and target_logprobs")
    mask = np.asarray((log_probs > topk.NOTHING).any(axis=1), dtype=bool)
    if cells.get("target_mask") is not None:
        given: npt.NDArray[np.bool_] = whole_matrix(cells, "target_mask", 0).astype(bool)
        same_shape(ids, given, "target_token_ids and target_mask")
        wanted = np.asarray(given.any(axis=1), dtype=bool)
        # Within a position that counts, a masked entry is padding. A position that does not count as a whole
        # (a prompt's) keeps what the teacher said of it.
        log_probs[wanted[:, None] & ~given] = -np.inf
        mask &= wanted
    documents = None
    if cells.get("attention_mask") is not None:
        documents = whole_numbers(cells, "attention_mask")
    return Sequence(tokens, ids, log_probs, mask, documents)


# Out of a store


def columns(rows: Rows, head: str, k: int, alignment: Alignment, normalize: bool) -> pa.RecordBatch:
    """Rows of a store as such columns, with their `key`.

    A "next_token" head of L tokens gives L positions, of which the one that no target belongs to is masked.
    A "single" head gives one position and no input_ids. k: entries of a position, at most, the likeliest.
    normalize: scale what is kept of a position to sum to one, as axolotl expects of its teachers; otherwise
    the log-probabilities are the teacher's own. Of a `threshold` head the entries are the store's sampled
    weights: their expectation is the teacher's probability, and without a cut by k they sum to one.
    """
    declared = rows.spec.head(head)
    counts = rows.counts(declared)
    ids, log_probs, offsets = entries(rows.decode(head), k)
    if normalize:
        log_probs = _normalized(log_probs, offsets)
    lengths = np.diff(offsets)
    mask = np.repeat(_mask(rows, counts), lengths)
    found: dict[str, pa.Array] = {"key": pa.array(rows.keys, pa.string())}
    tokens = rows.inputs.get(TOKENS)
    if declared.positions == "next_token" and isinstance(tokens, Ragged):
        # One position more in each row, without entries: at its end, or at its beginning.
        bounds = offsets_of(counts)
        at = bounds[1:] if alignment == "next" else bounds[:-1]
        lengths = np.insert(lengths, at, 0)
        counts = counts + 1
        listed = pa.array(tokens.values.astype(np.int64))
        found["input_ids"] = _lists(tokens.offsets, listed)
        found["attention_mask"] = _lists(tokens.offsets, pa.array(np.ones(len(listed), dtype=np.int64)))
        found["labels"] = found["input_ids"]
    # A position without entries is one masked entry, so that no list is empty.
    empty = np.flatnonzero(lengths == 0)
    places = offsets_of(lengths)[empty]
    values = {
        "target_token_ids": pa.array(np.insert(ids, places, 0)),
        "target_logprobs": pa.array(np.insert(log_probs, places, -1e9).astype(np.float32)),
        "target_mask": pa.array(np.insert(mask.astype(np.int64), places, 0)),
    }
    inner, outer = offsets_of(np.maximum(lengths, 1)), offsets_of(counts)
    for name, flat in values.items():
        found[name] = _lists(outer, _lists(inner, flat))
    return pa.RecordBatch.from_pydict(found)


def entries(targets: Targets, k: int) -> tuple[npt.NDArray[np.int64], Array, npt.NDArray[np.int64]]:
    """Ids [E], log-probabilities float64 [E] and offsets [N + 1] of the at most k likeliest classes of each
    target, likeliest first; classes of probability 0 are left out. Raises UserError for another kind.
    """
    if isinstance(targets, SparseTargets):
        places, weights = targets.classes()
        target, ids = places // targets.size, places % targets.size
        count = len(targets.offsets) - 1
        with np.errstate(divide="ignore"):
            log_probs = np.log(weights)
    elif isinstance(targets, TopPTargets):
        count = len(targets.offsets) - 1
        target = np.repeat(np.arange(count), np.diff(targets.offsets))
        ids, log_probs = targets.ids, targets.log_probs.astype(np.float64)
    else:
        if isinstance(targets, TopKTargets):
            table, values = targets.ids, targets.log_probs.astype(np.float64)
        elif isinstance(targets, DenseTargets):
            table, values = _likeliest(targets.logits.astype(np.float64), k)
        else:
            kind = type(targets).__name__.removesuffix("Targets")
            raise UserError(
                f"targets of the kind {kind} are not exported: only those that are distributions are"
            )
        count = len(table)
        target, ids, log_probs = np.repeat(np.arange(count), table.shape[1]), table.ravel(), values.ravel()
    order = np.lexsort((ids, -log_probs, target))
    order = order[log_probs[order] > -np.inf]
    starts = offsets_of(np.bincount(target[order], minlength=count))
    kept = np.arange(len(order)) - starts[target[order]] < k
    order = order[kept]
    offsets = offsets_of(np.bincount(target[order], minlength=count))
    return ids[order].astype(np.int64), log_probs[order], offsets


def _likeliest(logits: Array, k: int) -> tuple[Array, Array]:
    """Ids and log-probabilities of the k largest of each row, in no certain order; ties by ascending id."""
    top = logits.max(axis=1, keepdims=True)
    log_probs = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    ids = np.argsort(-log_probs, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(log_probs, ids, 1)


def _normalized(log_probs: Array, offsets: npt.NDArray[np.int64]) -> Array:
    target = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    total = np.bincount(target, np.exp(log_probs), len(offsets) - 1)
    return log_probs - np.log(np.maximum(total, 1e-300))[target]


def _mask(rows: Rows, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Of each target, whether it is to be learned: all are, unless an import kept a mask."""
    stored = rows.inputs.get(MASK)
    if not isinstance(stored, Ragged) or not np.array_equal(stored.lengths, counts + 1):
        return np.ones(int(counts.sum()), dtype=bool)
    mask: npt.NDArray[np.bool_] = np.delete(stored.values, stored.offsets[1:] - 1).astype(bool)
    return mask


def _lists(offsets: npt.NDArray[np.int64], values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)
