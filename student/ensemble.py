"""Several teachers of one corpus, averaged as their stores are read: an ensemble is a reading choice.

Rows are joined within a unit, by key and view: the stores were labelled from the same corpus, cut alike. Of
dense targets the mean of the probabilities is taken, and given as its logarithm; of sparse ones all entries,
each with its share of the weight, so that the mean of unbiased estimates is one too. Knows tables, nothing of
reading them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.targets.codecs import Dense
from pipeline.targets.decoded import DenseTargets, Ints, SparseTargets, Targets
from pipeline.targets.errors import ConfigError, SpecMismatch
from pipeline.targets.ragged import offsets_of, ranges
from pipeline.targets.spec import TOKENS, Head, Spec
from student.table import Column, Table, decode, is_sparse, sparse_columns

Floats = npt.NDArray[np.float32]


def averaged_spec(specs: Sequence[Spec], heads: Sequence[str]) -> Spec:
    """What the mean of stores of these specs is: the first one's inputs, these heads, dense ones as float32.

    Raises ConfigError for heads that have no mean.
    """
    first, found = specs[0], []
    for name in heads:
        head, others = first.head(name), [spec.head(name) for spec in specs[1:]]
        if any((other.size, other.positions) != (head.size, head.positions) for other in others):
            raise ConfigError(f"the teachers' heads {name!r} are of different classes or positions: no mean")
        if all(map(is_sparse, (head, *others))):
            found.append(head)
        elif all(each.codec.kind == "dense" for each in (head, *others)):
            found.append(dataclasses.replace(head, codec=Dense(dtype="float32")))
        else:
            kinds = ", ".join(each.codec.kind for each in (head, *others))
            raise ConfigError(
                f"the head {name!r} is stored as {kinds}: a mean is taken of dense targets, or of threshold "
                "and sampled ones"
            )
    return dataclasses.replace(first, heads=tuple(found))


def averaged(spec: Spec, tables: Sequence[Table], where: str) -> Table:
    """The first table's rows, each with the mean of the teachers that have it; the first has all.

    spec: of `averaged_spec`. where: for messages. Raises SpecMismatch naming a record whose tokens differ.
    """
    first = tables[0]
    places = [_places(first, other, where) for other in tables]
    having = np.sum([place >= 0 for place in places], axis=0)
    names = [name for name in first.columns if name.startswith("in.") or "." not in name]
    columns = {name: first.columns[name] for name in names}
    for head in spec.heads:
        counts = np.ones(len(first), np.int64)
        if head.positions == "next_token":
            counts = first.columns["targets"].values.astype(np.int64)
        parts = [_targets(table, head.name) for table in tables]
        targets = [_of_rows(table, head, place) for table, place in zip(tables, places, strict=True)]
        share = np.repeat(1 / having, counts)
        columns |= _mean(head, parts, targets, share, offsets_of(counts))
    return Table(spec, first.keys, columns)


def _places(first: Table, other: Table, where: str) -> Ints:
    """Where in the other table each row of the first is, -1 where it is not: int64 [rows]."""
    names = zip(other.keys, other.columns["view"].values.tolist(), strict=True)
    at = {name: row for row, name in enumerate(names)}
    mine = zip(first.keys, first.columns["view"].values.tolist(), strict=True)
    places = np.array([at.get(name, -1) for name in mine], dtype=np.int64)
    if f"in.{TOKENS}" in first.columns:
        ours, theirs = (table.columns[f"in.{TOKENS}"].ragged() for table in (first, other))
        for row in np.flatnonzero(places >= 0).tolist():
            if not np.array_equal(ours[row], theirs[int(places[row])]):
                raise SpecMismatch(
                    f"{where}: the teachers saw other tokens of {first.keys[row]!r}: label the corpus with "
                    "one tokenizer and one window"
                )
    return places


def _targets(table: Table, head: str) -> Targets:
    found = {
        name.rpartition(".")[2]: column.items()
        for name, column in table.columns.items()
        if name.rpartition(".")[0] == head
    }
    return decode(table.spec.head(head), found)


def _of_rows(table: Table, head: Head, places: Ints) -> tuple[Ints, Ints]:
    """Of the first table's rows: the numbers of the targets that this one has, and of which of the
    first's."""
    counts = np.ones(len(table), np.int64)
    if head.positions == "next_token":
        counts = table.columns["targets"].values.astype(np.int64)
    there = places >= 0
    mine = np.zeros(len(places), np.int64)
    mine[there] = counts[places[there]]
    return ranges(offsets_of(counts)[places[there]], counts[places[there]]), mine


def _mean(
    head: Head, parts: Sequence[Targets], targets: Sequence[tuple[Ints, Ints]], share: Floats, bounds: Ints
) -> dict[str, Column]:
    total = int(bounds[-1])
    own = [ranges(bounds[:-1][mine > 0], mine[mine > 0]) for _, mine in targets]
    if not is_sparse(head):
        means = np.zeros((total, head.size))
        for part, (chosen, _), at in zip(parts, targets, own, strict=True):
            assert isinstance(part, DenseTargets)
            logits = part.logits[chosen].astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            np.exp(logits, out=logits)
            means[at] += logits * (share[at] / logits.sum(axis=1))[:, None]
        with np.errstate(divide="ignore"):
            return {f"{head.name}.logits": Column.of(np.log(means).astype(np.float32), bounds)}
    numbers, ids, weights = [], [], []
    for part, (chosen, _), at in zip(parts, targets, own, strict=True):
        assert isinstance(part, SparseTargets)
        counts = np.diff(part.offsets)[chosen]
        entries = ranges(part.offsets[:-1][chosen], counts)
        numbers.append(np.repeat(at, counts))
        ids.append(part.ids[entries])
        weights.append(part.weights[entries] * np.repeat(share[at], counts))
    number = np.concatenate(numbers)
    order = np.argsort(number, kind="stable")
    offsets = offsets_of(np.bincount(number, minlength=total))
    # No entry is a class's own probability any more: another teacher may have drawn it too.
    together = SparseTargets(
        np.concatenate(ids)[order],
        np.concatenate(weights)[order].astype(np.float32),
        offsets,
        np.zeros(total, np.int64),
        head.size,
    )
    fields = {
        name: Column.of(array, bounds if name in ("count", "head_count") else offsets[bounds])
        for name, array in sparse_columns(together).items()
    }
    return {f"{head.name}.{name}": column for name, column in fields.items()}
