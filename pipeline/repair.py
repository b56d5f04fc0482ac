"""Repair: units whose shards fail verification are taken out of the store, to be labelled again.

It knows which units are to be labelled again, and keeps that in the store, so that whoever is killed between
taking a unit out and labelling it is continued by the next run: under `repair/` lies an empty file for each.
Such a unit would otherwise look like one that was never labelled. Who labels them it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pipeline.codebooks import books_of
from pipeline.prepare import declared
from pipeline.targets.errors import CorpusChanged, CorpusUnreadable, SpecMismatch
from pipeline.targets.spec import differences
from pipeline.targets.store import Store
from pipeline.targets.unit import Unit
from pipeline.targets.verify import Problem, problems

if TYPE_CHECKING:
    from pipeline.job import LabelJob

FOLDER = "repair/"
_NAME = re.compile(r"repair/([0-9a-f]{32})")


def begun(store: Store) -> set[str]:
    """Ids of the units that a repair has taken up and not finished."""
    names = (_NAME.fullmatch(entry.name) for entry in store.storage.list(FOLDER))
    return {found[1] for found in names if found}


def prepare(job: LabelJob, store: Store, damaged: Iterable[str]) -> tuple[list[Unit], list[str]]:
    """Take damaged units out. All units that are to be labelled now, and a sentence for each that cannot be.

    The units of a repair that was killed come too. One whose part of the corpus is not there any more stays
    in the store as it is. Raises SpecMismatch, before anything is touched, when the job would label otherwise
    than the store was, and whatever keeps the teacher from loading.
    """
    spec = declared(job, books_of(store.spec)).as_wide_as(store.spec)
    if spec.fingerprint != store.spec.fingerprint:
        what = "; ".join(differences(spec, store.spec))
        raise SpecMismatch(
            f"the job would label otherwise than {store.url} was labelled (job against store: {what}): "
            "repair with the job that made it"
        )
    damaged, committed = set(damaged), store.committed()
    wanted = damaged | (begun(store) - committed)
    units, lost = [], []
    for unit in store.planned():
        if (name := unit.id) not in wanted:
            continue
        wanted.discard(name)
        try:
            for _ in job.corpus.read(unit):
                pass
        except (CorpusChanged, CorpusUnreadable) as error:
            lost.append(f"unit {name[:12]} cannot be labelled again: {error}")
        else:
            units.append(unit)
    lost += [f"unit {name[:12]} is in no plan of the store: it cannot be labelled again" for name in wanted]
    for unit in units:
        store.storage.put_if_absent(f"{FOLDER}{unit.id}", b"")
    store.discard({unit.id for unit in units} & damaged)
    return units, lost


def finish(store: Store) -> list[Problem]:
    """Verify the units that were taken up and are labelled. What is wrong with them; the others are done."""
    found: list[Problem] = []
    for name in sorted(begun(store)):
        commit = store.find(name)
        if commit is None:
            continue
        wrong = problems(store, commit)
        found += wrong
        if not wrong:
            store.storage.delete([f"{FOLDER}{name}"])
    return found
