"""What replay is: a record's data and a ledger entry become the input that the teacher saw.

Teachers' and students' sides render by the same code, which is a pure function. It knows no corpus and draws
no random number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.targets.errors import SpecMismatch
from pipeline.targets.ragged import Array
from pipeline.targets.replay.ledger import digest
from pipeline.targets.spec import Input


class Unrenderable(Exception):
    """A record that cannot be decoded, or an entry that does not fit it: a code as in `Quarantined`, and what
    is said of the record ("is …", "has …").
    """

    def __init__(self, code: str, reason: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(reason)


@dataclass(frozen=True)
class Partner:
    """The other record that a view is mixed with. row: its ordinal in the unit."""

    row: int
    key: str


class Replay(ABC):
    """Renders the views of one store."""

    inputs: tuple[Input, ...]
    """What it renders; all of a fixed shape."""

    reach: int = 0
    """How many records before its own a view's partner may be."""

    decoder: str = ""
    """The libraries that the teacher's side rendered with."""

    @abstractmethod
    def decode(self, data: Mapping[str, Any]) -> Any:
        """A record's data, ready to be rendered any number of times. Raises Unrenderable."""

    def partner(self, entry: Mapping[str, Any]) -> Partner | None:
        """Whom the view is mixed with. Raises Unrenderable."""
        return None

    @abstractmethod
    def render(self, entry: Mapping[str, Any], record: Any, partner: Any = None) -> dict[str, Array]:
        """The inputs of one view. record, partner: decoded. Raises Unrenderable."""

    def digest(self, rendered: Mapping[str, Array]) -> Array:
        """What says whether two renderings are the same, uint8 [8]."""
        return digest(rendered)


def field_of(data: Mapping[str, Any], field: str) -> Any:
    """A record's field. Raises Unrenderable."""
    if field not in data:
        raise Unrenderable("undecodable", f"has no field {field!r}, it has {sorted(data)}")
    return data[field]


def encoded(value: Any, what: str) -> bytes:
    """The bytes of a file, which a corpus may also hold as an array uint8 [bytes]. Raises Unrenderable."""
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 1:
        return value.tobytes()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise Unrenderable("undecodable", f"has {type(value).__name__} where the bytes of {what} should be")


def integers(value: Any, count: int, what: str) -> list[int]:
    """A list of that many integers below 2^31. Raises Unrenderable for anything else in its place."""
    if (
        isinstance(value, list)
        and len(value) == count
        and all(type(number) is int and abs(number) < 1 << 31 for number in value)
    ):
        return value
    raise Unrenderable("undecodable", f"has no {what} of {count} integers in its ledger entry")


def declared(views: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """A key of a store's description of its views. Raises SpecMismatch where it is not what it must be."""
    value = views.get(name)
    if type(value) not in kinds:
        raise SpecMismatch(f"the store's views declare {name} {value!r}: this Decant cannot render them")
    return value
