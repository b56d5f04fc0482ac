"""What an importer is: it knows one foreign format, and gives its contents as units and rows of a store.

An importer is its own configuration, like a corpus source. It reads with pyarrow, NumPy and Zarr, unpickles
nothing, and knows nothing of who commits its rows (`importing`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from pipeline.config import Config
from pipeline.interchange.source import Source
from pipeline.targets.errors import SpecMismatch
from pipeline.targets.rows import Rows
from pipeline.targets.spec import Spec, Vocabulary
from pipeline.targets.unit import Quarantined, Unit

HEAD = "logits"
"""Name of the head that an imported store has."""

UNIT_BYTES = 32 << 20
"""Bytes of a source that make a unit, about: a shard is read whole by a student."""


class Importer(Config, ABC):
    """A foreign format, and what of it the data themselves do not say."""

    patterns: ClassVar[tuple[str, ...]]
    """Globs of the names of its files."""

    @abstractmethod
    def spec(self, source: Source) -> Spec:
        """What the store will declare.

        Raises ConfigError or CorpusUnreadable, naming the file, when the source is not of this format.
        """

    def check(self, source: Source, unit: Unit) -> None:
        """Look at a unit before anything is imported.

        Raises ConfigError when it shows that what was said of the format is wrong.
        """

    @abstractmethod
    def units(self, source: Source) -> Iterator[Unit]:
        """The source in units, in a stable order: the same files give the same units.

        Raises CorpusUnreadable for a file that is broken or half-written.
        """

    @abstractmethod
    def read(self, source: Source, unit: Unit, spec: Spec) -> Iterator[Rows | Quarantined]:
        """A unit's records in order, some at a time; one that is broken comes as Quarantined.

        Raises CorpusChanged, or CorpusUnreadable when the file is broken as a whole.
        """


def vocabulary(tokenizer: str | None, size: int) -> Vocabulary | None:
    """The vocabulary of the tokenizer.json in a directory, for a head of `size` classes; None without one.

    Raises UserError when it cannot be read, SpecMismatch when it has more tokens than the head classes.
    """
    if tokenizer is None:
        return None
    from pipeline.views.token_windows import TokenWindows

    found = TokenWindows(tokenizer=tokenizer).load().vocabulary
    if found is None or found.size > size:
        raise SpecMismatch(
            f"the tokenizer {tokenizer} has {found.size if found else 0} tokens and the head has {size}: "
            "give the teacher's tokenizer, or the right size"
        )
    return Vocabulary(found.size, size, found.fingerprint)


def described(kind: str, source: Source, **facts: Any) -> dict[str, Any]:
    """The description of an imported teacher: what it was read from, and what is known of it."""
    return {"kind": "imported", "format": kind, "fingerprint": source.fingerprint(), **facts}
