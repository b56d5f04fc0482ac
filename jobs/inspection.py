"""What a store says, read back for a person: its spec, its progress, and decoded rows.

It knows targets and tokenizers; how the result is drawn is the command's affair. Everything is returned as
plain data that `json.dumps` takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from jobs.distributions import Distribution, distributions
from jobs.totals import Extent, Totals, targets_are
from pipeline.targets.decoded import EmbeddingTargets, Targets
from pipeline.targets.errors import SpecMismatch, UserError
from pipeline.targets.ragged import Ragged
from pipeline.targets.replay import DIGEST, LEDGER, keeps_ledger
from pipeline.targets.rows import Rows
from pipeline.targets.tokenizer import TokenizerFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from pipeline.targets.commit import Commit
    from pipeline.targets.spec import Spec
    from pipeline.targets.store import Store

ENTROPY_BIN_NATS = 0.25
"""Width of a bin of a commit record's entropy histograms."""

LONGEST = 64
"""Values of an input array that are shown."""


def progress(store: Store) -> dict[str, Any]:
    """Planned, committed and quarantined; bytes, means and throughput. Streams plan and commits once each."""
    extent, totals = Extent.of(store), Totals.of(store.commits())
    seconds = totals.forward_seconds
    return {
        "units": {"planned": extent.planned, "committed": totals.units, "pending": extent.pending},
        "corpus_bytes": {"planned": extent.planned_bytes, "committed": extent.committed_bytes},
        "records": totals.records,
        "filtered": totals.filtered,
        "rows": totals.rows,
        "target": targets_are(store.spec),
        "targets": totals.targets,
        "quarantined": {"failures": totals.failures, "empty": totals.quarantined - totals.failures},
        "shard_bytes": totals.shard_bytes,
        "bytes_per_target": totals.bytes_per_target,
        "statistics": totals.statistics,
        "histograms": totals.histograms,
        "forward_seconds": seconds,
        "targets_per_forward_second": totals.targets / seconds if seconds else None,
        "devices": dict(totals.devices),
        "started": totals.started,
        "finished": totals.finished,
    }


def find_unit(store: Store, prefix: str) -> Commit:
    """The committed unit whose id begins so. Raises UserError when there is none, or more than one."""
    found = [commit for commit in store.commits() if commit.unit.startswith(prefix)]
    if len(found) != 1:
        what = f"{len(found)} committed units begin" if found else "no committed unit begins"
        raise UserError(f'{what} with "{prefix}" in {store.url}: give more digits of one that is there')
    return found[0]


def rows(store: Store, wanted: int, unit: str | None = None) -> Iterator[tuple[Commit, Rows]]:
    """The first `wanted` rows of the corpus that are in the store, or of a unit, one at a time."""
    commits = iter([find_unit(store, unit)]) if unit else _in_plan_order(store)
    left = wanted
    for commit in commits:
        if left <= 0:
            return
        if commit.shard is None:
            continue
        for part in store.read(commit):
            for row in range(min(len(part), left)):
                yield commit, part.take(np.array([row]))
                left -= 1
            if left <= 0:
                return


def _in_plan_order(store: Store) -> Iterator[Commit]:
    done = store.committed()
    for unit in store.planned():
        if unit.id in done and (commit := store.find(unit.id)) is not None:
            yield commit


def load_tokenizer(path: str, spec: Spec) -> Tokenizer:
    """The tokenizer of a directory with a tokenizer.json.

    Raises UserError when it cannot be read, SpecMismatch when it is not the one that the store was made with.
    """
    file = TokenizerFile.load(path)
    if spec.vocabulary is not None and spec.vocabulary.fingerprint != file.fingerprint:
        raise SpecMismatch(
            f"{file.path} is not the tokenizer that the store's token ids come from: give the same one"
        )
    return file.tokenizer


def describe_row(
    commit: Commit, row: Rows, tokenizer: Tokenizer | None, positions: int, entries: int
) -> dict[str, Any]:
    """One row as plain data.

    positions: of a "next_token" head, how many are shown, evenly spread; entries: likeliest classes of each,
    or first values of an embedding.
    """
    spec = row.spec
    out: dict[str, Any] = {
        "unit": commit.unit,
        "key": row.keys[0],
        "row": int(row.row[0]),
        "view": int(row.view[0]),
        "views": int(row.views[0]),
        "inputs": {
            name: recorded(name, spec, value[0]) or _plain(value) for name, value in row.inputs.items()
        },
        "heads": {},
    }
    tokens = _tokens(row)
    if tokenizer is not None and tokens is not None:
        out["text"] = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
    for head in spec.heads:
        total = int(row.counts(head)[0])
        shown = np.unique(np.linspace(0, total - 1, min(positions, total)).round().astype(np.int64))
        following = tokens if head.positions == "next_token" else None
        words = tokenizer if head.positions == "next_token" else None
        decoded = row.decode(head.name)
        out["heads"][head.name] = [
            _target(decoded, int(at), following, words, _names(spec, head.size), entries) for at in shown
        ]
    return out


def _target(
    decoded: Targets,
    at: int,
    tokens: npt.NDArray[Any] | None,
    tokenizer: Tokenizer | None,
    names: Sequence[str] | None,
    entries: int,
) -> dict[str, Any]:
    if isinstance(decoded, EmbeddingTargets):
        vector = decoded.vectors[at]
        return {"position": at, "norm": float(np.linalg.norm(vector)), "values": vector[:entries].tolist()}
    ids, probabilities = distribution(decoded, at)
    order = np.argsort(-probabilities, kind="stable")[:entries]
    out: dict[str, Any] = {"position": at}
    if tokens is not None:
        actual = int(tokens[at + 1])
        out["context"] = _word(tokenizer, tokens[max(0, at - 5) : at + 1].tolist())
        out["next"] = {"id": actual, "text": _word(tokenizer, [actual])}
        out["next"]["probability"] = float(probabilities[ids == actual].sum())
    out["entries"] = len(ids)
    out["likeliest"] = [
        {
            "id": int(ids[i]),
            "text": names[int(ids[i])] if names else _word(tokenizer, [int(ids[i])]),
            "probability": float(probabilities[i]),
        }
        for i in order
    ]
    return out


def distribution(decoded: Distribution, at: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """One target's stored classes, ids [n] without repetition, and their probabilities [n]."""
    one = distributions(decoded, at, at + 1)
    return one.ids, one.probabilities


def bars(histogram: Sequence[int]) -> str:
    """An entropy histogram as a line of bars, from 0 nats to the last bin that has anything."""
    if not sum(histogram):
        return ""
    last = max(i for i, value in enumerate(histogram) if value) + 1
    steps, top = " ▁▂▃▄▅▆▇█", max(histogram)
    line = "".join(steps[-(-value * 8 // top)] for value in histogram[:last])
    return f"0 {line} {last * ENTROPY_BIN_NATS:g} nats"


def _tokens(row: Rows) -> npt.NDArray[Any] | None:
    value = row.inputs.get("tokens")
    return value[0] if isinstance(value, Ragged) else None


def _word(tokenizer: Tokenizer | None, ids: list[int]) -> str | None:
    return None if tokenizer is None else str(tokenizer.decode(ids, skip_special_tokens=False))


def _names(spec: Spec, size: int) -> Sequence[str] | None:
    """Names of the classes, where the teacher's description has them."""
    names = spec.teacher.get("labels")
    return names if isinstance(names, list) and len(names) == size else None


def recorded(name: str, spec: Spec, stored: npt.NDArray[Any]) -> str | None:
    """What is recorded of a view in words: its ledger entry, the digest's digits; None for other inputs."""
    if not keeps_ledger(spec):
        return None
    if name == LEDGER.name:
        return stored.tobytes().decode(errors="replace")
    return stored.tobytes().hex() if name == DIGEST.name else None


def _plain(value: npt.NDArray[Any] | Ragged) -> Any:
    """An input as a list, a long one as its shape, type and range."""
    array = value[0]
    if isinstance(value, Ragged) or array.size <= LONGEST:
        return array.tolist()
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "min": float(array.min()),
        "max": float(array.max()),
    }


def spec_data(spec: Spec) -> dict[str, Any]:
    """The spec's JSON as data."""
    data: dict[str, Any] = json.loads(spec.to_json())
    return data
