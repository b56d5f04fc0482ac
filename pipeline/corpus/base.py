"""What a corpus source is: it lists files, cuts them into units, and reads a unit's records.

A source is its own configuration: a pydantic model with a `kind`. It knows nothing of models or targets, and
decodes no image and no sound: that belongs to views, which know what the teacher wants of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from pipeline.config import Config
from pipeline.targets.unit import Quarantined, Unit

NOTHING_PLANNED: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Record:
    """One corpus item. key: unique in the corpus and stable; row: its ordinal in the unit.

    data: values by field. A source that is not told otherwise names the field by what it is:

    "text": str
    "image", "audio": bytes, an encoded file as it is stored (JPEG, PNG, WAV, FLAC …)
    "array": ndarray, of the shape and dtype that are stored
    "json": what a JSON document holds
    """

    key: str
    row: int
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Filtered:
    """A record that the source's filters leave out: counted, neither labelled nor quarantined.

    row: its ordinal in the unit, which it keeps, so that what is labelled has the same place with any filter.
    """

    key: str
    row: int


Read = Record | Quarantined | Filtered
"""What reading gives: each record of a unit, in one of three forms."""


class Source(Config, ABC):
    """A corpus: any number of files of one form, anywhere fsspec reaches."""

    hidden: ClassVar[Any] = {"options"}
    """Fields that no plan may show, because they may hold credentials; as pydantic's `exclude`."""

    def described(self) -> dict[str, Any]:
        """The configuration as JSON, for a plan."""
        return self.model_dump(mode="json", exclude=self.hidden)

    @abstractmethod
    def units(self, planned: Mapping[str, str] = NOTHING_PLANNED) -> Iterator[Unit]:
        """The units of the files that are not planned yet, in a stable order, as a stream.

        The same files give the same units. planned: the fingerprint of each file in the store's plan, by
        `Slice.url`. Such a file is never planned a second time, so a grown corpus adds units and changes
        none, whatever shares a unit with the new files and whatever the unit size is now.
        Raises CorpusMissing when nothing matches, CorpusChanged when a planned file is another one now,
        SpecMismatch when it was planned with settings that make other records of it.
        """

    @abstractmethod
    def read(self, unit: Unit) -> Generator[Read, None, None]:
        """The records of a unit in order; one that cannot be read comes as Quarantined, with its reason.

        Raises CorpusChanged when a file vanished or is no longer the planned one, CorpusUnreadable when
        a file is broken as a whole, SpecMismatch when the unit was planned with other settings.
        """
