"""Which records of a source are labelled: conditions, and a sample that a hash of the key draws.

It knows keys and values; files and units it does not know. What is chosen is a function of the record and of
the configuration alone, never of an order, a file or a random state.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, NonNegativeInt, model_validator

from pipeline.config import Config

SPAN = 1 << 64


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from error
    return pattern


Expression = Annotated[str, AfterValidator(_compiles)]


class Bounds(Config):
    """Lengths that are taken, both ends included: of text in characters, of anything encoded in bytes."""

    min: NonNegativeInt = 0
    """Shortest."""

    max: NonNegativeInt | None = None
    """Longest; by default any."""

    @model_validator(mode="after")
    def _ordered(self) -> Bounds:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"min ({self.min}) is larger than max ({self.max})")
        return self


class Where(Config):
    """Conditions that a record has to meet, all of them. Others are counted, not labelled."""

    key: Expression | None = None
    """A regular expression that is found in the record's key."""

    key_not: Expression | None = None
    """A regular expression that is not found in the record's key."""

    length: dict[str, Bounds] = Field(default={})
    """By field, for example {text: {min: 200, max: 100000}}: characters of a text, bytes of an image or a
    sound. A record without the field is left out."""

    def admits_key(self, key: str) -> bool:
        """Whether the key meets its conditions."""
        if self.key is not None and re.search(self.key, key) is None:
            return False
        return self.key_not is None or re.search(self.key_not, key) is None

    def admits(self, data: Mapping[str, Any]) -> bool:
        """Whether the values meet their conditions."""
        for field, bounds in self.length.items():
            value = data.get(field)
            if not isinstance(value, str | bytes) or len(value) < bounds.min:
                return False
            if bounds.max is not None and len(value) > bounds.max:
                return False
        return True


class ColumnsWhere(Where):
    """Conditions on keys, lengths and columns."""

    equals: dict[str, str | int | float | bool | None] = Field(default={})
    """By column of the file, for example {language: en}: the value it must have; null: none. It need not be a
    column that is labelled."""

    def admits_columns(self, values: Mapping[str, Any]) -> bool:
        """Whether the columns have the wanted values, and the wanted types: 1 is not true and not "1"."""
        return all(_same(values.get(column), wanted) for column, wanted in self.equals.items())


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(value, bool) is not isinstance(wanted, bool):
        return False
    return bool(value == wanted)


def drawn(key: str, share: float, seed: int) -> bool:
    """Whether a record is in the sample: a hash of its key, as a number from 0 to 1, is below the share.

    So a sample has the smaller ones of the same seed inside it, and a record that is added changes no other's
    lot.
    """
    if share >= 1:
        return True
    digest = hashlib.blake2b(
        key.encode("utf-8", "surrogatepass"), digest_size=8, key=seed.to_bytes(8, "little", signed=True)
    )
    return int.from_bytes(digest.digest(), "little") < share * SPAN
