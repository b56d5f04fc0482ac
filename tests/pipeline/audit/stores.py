"""Stores that are labelled with a real model, copies of them that lie, and what an audit says of each."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.audit import Audit, Finding
from pipeline.job import LabelJob
from pipeline.label import Labeller
from pipeline.prepare import prepare
from pipeline.targets.codecs.base import take
from pipeline.targets.rows import Rows
from pipeline.targets.spec import Spec
from pipeline.targets.store import Store

CODECS: dict[str, dict[str, Any]] = {
    "threshold": {"kind": "threshold", "threshold": 0.05},
    "topk": {"kind": "topk", "k": 8, "betas": [0.5, 1.0]},
    "dense": {"kind": "dense"},
    "topp": {"kind": "topp", "p": 0.9, "k": 20},
    "sampled": {"kind": "sampled", "draws": 50},
}


def label(job: LabelJob) -> Store:
    store = prepare(job)
    labeller = Labeller(job)
    for unit in store.pending():
        labeller.label(unit)
    labeller.close()
    return store


def copy_of(store: Store, url: str, spec: Spec, change: Callable[[Rows], Rows] = lambda rows: rows) -> Store:
    """A store with another's plan and rows, these changed, that declares `spec`: a lie told consistently."""
    made = Store.create(url, spec)
    made.write_plan(store.planned(), {}, made.generation())
    for commit in store.commits():
        with made.writer(commit.unit) as writer:
            for rows in store.read(commit):
                writer.write(dataclasses.replace(change(rows), spec=spec))
            writer.commit(
                records=commit.records,
                statistics=commit.statistics,
                histograms=commit.histograms,
                started=0.0,
                forward_seconds=0.0,
                device="cpu",
            )
    return made


def checks(result: Audit) -> set[str]:
    return {finding.check for finding in result.findings}


def said(result: Audit) -> str:
    return "\n".join(map(str, result.findings))


def first(result: Audit, check: str) -> Finding:
    return next(finding for finding in result.findings if finding.check == check)


def shifted(rows: Rows, by: int) -> Rows:
    """The targets of each row moved by so many tokens, the last ones coming in again at the other end."""
    head = rows.spec.heads[0]
    starts = np.concatenate([[0], np.cumsum(rows.counts(head))])
    order = np.concatenate([np.roll(np.arange(low, high), by) for low, high in itertools.pairwise(starts)])
    moved = take(rows.heads[head.name], head.codec.layout(head.size), order)
    return dataclasses.replace(rows, heads={head.name: moved})


def flip(data: bytes) -> bytes:
    """With one bit in the middle the other way."""
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    return bytes(flipped)
