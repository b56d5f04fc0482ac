"""What the teacher is to see of a stored row: made again from the corpus, or the inputs that the store has.

It knows plans, corpora, views and rows, and says where a row is not of the record that it names. What the
teacher says of it, it does not know.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline.audit.findings import Finding, Findings
from pipeline.audit.sample import Sample
from pipeline.batching import Item
from pipeline.corpus.base import Filtered, Read, Record
from pipeline.targets.errors import CorpusChanged, CorpusUnreadable, UserError
from pipeline.targets.plausibility import TARGET_MASK
from pipeline.targets.rows import Rows
from pipeline.targets.spec import TOKENS, Input
from pipeline.targets.store import Store
from pipeline.targets.unit import Unit
from pipeline.views.base import Rejected, Renderer, View

if TYPE_CHECKING:
    from pipeline.corpus import AnySource


class Inputs(Protocol):
    """Where a sample's inputs come from."""

    @property
    def declared(self) -> Sequence[Input]:
        """What the teacher is given of each view."""
        ...

    def plan(self, samples: Sequence[Sample]) -> None:
        """Takes all samples, before the first one's inputs are asked for."""
        ...

    def of(self, sample: Sample, stored: Rows, wanted: Sequence[int]) -> Iterator[tuple[int, Item]]:
        """The views of the wanted rows, each with its row's place among the stored ones, where they are what
        is stored; where not, that is found.
        """
        ...

    def conclude(self) -> None:
        """Find what only all samples together show."""
        ...


class StoredInputs:
    """The store's own, of a store that was imported: nothing to compare them with."""

    def __init__(self, store: Store) -> None:
        """Raises UserError when the store has none."""
        # The mask is the importer's, and no input of a teacher.
        self.declared = tuple(item for item in store.spec.inputs if item.name != TARGET_MASK)
        if not self.declared:
            raise UserError(
                f"{store.url} was imported without inputs, so the teacher has nothing to label: "
                "import it again with its token ids"
            )

    def plan(self, samples: Sequence[Sample]) -> None:
        """Nothing to do."""

    def of(self, sample: Sample, stored: Rows, wanted: Sequence[int]) -> Iterator[tuple[int, Item]]:
        """See `Inputs`: all that are wanted."""
        for i in wanted:
            inputs = {item.name: np.asarray(stored.inputs[item.name][i]) for item in self.declared}
            size = max((len(inputs[item.name]) for item in self.declared if item.varies), default=1)
            place = stored.keys[i], int(stored.row[i]), int(stored.view[i]), int(stored.views[i])
            yield i, Item(*place, View(inputs, size))

    def conclude(self) -> None:
        """Nothing to find."""


class CorpusInputs:
    """Those of the corpus, rendered again and compared with what is stored."""

    def __init__(self, store: Store, corpus: AnySource, renderer: Renderer, findings: Findings) -> None:
        self.declared = renderer.inputs
        self._store, self._corpus, self._renderer, self._findings = store, corpus, renderer, findings
        self._units: dict[str, Unit] = {}
        self._owners: dict[str, str] = {}
        self._strangers: list[tuple[str, str, str]] = []
        self._token_pairs: set[tuple[int, int]] = set()

    def plan(self, samples: Sequence[Sample]) -> None:
        """Find the samples' units in the store's plan."""
        wanted = {sample.commit.unit for sample in samples}
        self._units = {name: unit for unit in self._store.planned() if (name := unit.id) in wanted}

    def of(self, sample: Sample, stored: Rows, wanted: Sequence[int]) -> Iterator[tuple[int, Item]]:
        """See `Inputs`. All stored rows are compared, whether they are wanted or not."""
        name = sample.commit.unit
        unit = self._units.get(name)
        if unit is None:
            self._findings.add(Finding("inputs", "is committed and is in no plan of the store", unit=name))
            return
        found = []
        try:
            found = list(self._rendered(sample, unit, stored))
        except (CorpusChanged, CorpusUnreadable) as error:
            self._findings.add(Finding("inputs", str(error), unit=name))
        good = set(wanted)
        yield from ((i, item) for i, item in found if i in good)

    def conclude(self) -> None:
        """Rows that are not of their unit, with the unit that they are of if the samples have it; and ids
        that stand for each other everywhere, which are another tokenizer's.
        """
        for unit, key, reason in sorted(self._strangers, key=lambda found: found[1] not in self._owners):
            if (owner := self._owners.get(key)) is not None:
                reason += f"; it is a record of unit {owner[:12]}: the shards of the two are exchanged"
            self._findings.add(Finding("inputs", reason, unit=unit, key=key))
        if self._token_pairs:
            self._findings.add(Finding("inputs", _another_tokenizer(self._token_pairs)))

    def _rendered(self, sample: Sample, unit: Unit, stored: Rows) -> Iterator[tuple[int, Item]]:
        rows: dict[int, list[int]] = {}
        for i in range(len(stored)):
            rows.setdefault(int(stored.row[i]), []).append(i)
        last, records = max(rows), self._corpus.read(unit)
        earlier: deque[Record] = deque(maxlen=self._renderer.reach)
        with closing(records):
            for record in records:
                self._owners[record.key] = unit.id
                for i in rows.pop(record.row, ()):
                    self._findings.checked["inputs"] += 1
                    if (item := self._same(sample, stored, i, record, tuple(earlier))) is not None:
                        yield i, item
                if isinstance(record, Record):
                    earlier.append(record)
                if record.row >= last:
                    break
        for i in (i for left in rows.values() for i in left):
            reason = f"the unit has no record {int(stored.row[i])}"
            self._strangers.append((unit.id, stored.keys[i], reason))

    def _same(
        self,
        sample: Sample,
        stored: Rows,
        i: int,
        record: Read,
        earlier: Sequence[Record],
    ) -> Item | None:
        """The view of a record that a stored row is of; None, with a finding, if it is not."""
        key, number, views = stored.keys[i], int(stored.view[i]), int(stored.views[i])
        if record.key != key:
            reason = f"the corpus has the record {record.key!r} in its place"
            self._strangers.append((sample.commit.unit, key, reason))
            return None
        view = self._view(record, earlier, number, views)
        fault = view if isinstance(view, str) else self._unlike(stored, i, view)
        if isinstance(view, str) or fault is not None:
            self._findings.at("inputs", sample.commit, stored.take(np.array([i])), None, None, str(fault))
            return None
        return Item(key, int(stored.row[i]), number, views, view)

    def _view(self, record: Read, earlier: Sequence[Record], number: int, views: int) -> View | str:
        """One of a record's views; the reason where it has not as many."""
        if isinstance(record, Filtered):
            return "the corpus's filters leave the record out"
        if not isinstance(record, Record):
            return f"the corpus gives no such record any more: {record.reason}"
        try:
            rendered = self._renderer.render(record, earlier)
        except Rejected as error:
            return f"the record has no view any more: {error.reason}"
        if len(rendered) != views:
            return f"the record has {len(rendered)} views, and {views} are stored of it"
        return rendered[number]

    def _unlike(self, stored: Rows, i: int, view: View) -> str | None:
        """What of the stored inputs is not what the view has."""
        for name, array in stored.inputs.items():
            ours, theirs = np.asarray(array[i]), view.inputs.get(name)
            if theirs is None:
                return f"its view has no input {name!r}"
            if ours.shape != theirs.shape:
                return f"its {name} have shape {ours.shape}, and the corpus gives {theirs.shape}"
            different = ours != theirs
            if (wrong := np.argwhere(different)).size:
                if name == TOKENS:
                    pairs = zip(ours[different].tolist(), theirs[different].tolist(), strict=True)
                    self._token_pairs.update(pairs)
                place = tuple(int(x) for x in wrong[0])
                at = place[0] if len(place) == 1 else place
                return f"its {name} hold {ours[place]} at {at}, and the corpus gives {theirs[place]}"
        return None


def _another_tokenizer(pairs: set[tuple[int, int]]) -> str:
    """What the pairs of (stored id, the corpus's id) that differ say."""
    if len(pairs) == 2 and len({frozenset(pair) for pair in pairs}) == 1:
        a, b = sorted(next(iter(pairs)))
        return f"ids {a} and {b} are exchanged in the stored tokens: they come from another tokenizer"
    if len(pairs) == 1:
        ((a, b),) = pairs
        return f"id {a} stands where the corpus gives {b}: the stored tokens come from another tokenizer"
    return f"{len(pairs)} token ids differ: the stored tokens come from another tokenizer or text"
