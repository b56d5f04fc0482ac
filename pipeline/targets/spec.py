"""What a store declares about itself: enough for a reader that has only the URL.

The spec is written once, as JSON, and its fingerprint stands in every shard and commit record.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from pipeline.targets.codecs import Codec, codec_from_json
from pipeline.targets.errors import SpecMismatch
from pipeline.targets.strict import build, nearest

FORMAT_VERSION = 2
"""What is written. Versions from 1 on are read."""

TOKENS = "tokens"
"""Name of the input that "next_token" targets are counted by."""

LABEL = "label"
"""Name of the input that is a row's true class, where the corpus knows it."""

Positions = Literal["single", "next_token"]

Container = Literal["parquet", "webdataset", "zarr"]

_PLAIN_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]*")
"""What can be part of a name in a tar, a zip and a Zarr hierarchy alike."""


@dataclass(frozen=True)
class Input:
    """A model input kept beside the targets, for example the token ids.

    dtype: a little-endian NumPy name ("<u2", "|u1", "<f4"). shape: of one row's array; at most the first
    dimension may be None, which means that it varies from row to row.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if any(extent is None for extent in self.shape[1:]):
            raise ValueError(f"input {self.name}: only the first dimension may vary, got {self.shape}")
        if any(type(extent) is not int or extent < 1 for extent in self.item_shape):
            raise ValueError(f"input {self.name}: a shape is of positive integers, got {self.shape}")
        if np.dtype(self.dtype).str != self.dtype or self.dtype[0] == ">" or np.dtype(self.dtype).hasobject:
            raise ValueError(f"input {self.name}: {self.dtype!r} is no little-endian NumPy name like '<u2'")

    @property
    def varies(self) -> bool:
        """Whether the first dimension differs from row to row."""
        return bool(self.shape) and self.shape[0] is None

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Of what a row has a varying number of, or of the one item of a row."""
        return tuple(extent for extent in self.shape if extent is not None)


@dataclass(frozen=True)
class Head:
    """One named output of the teacher and how it is stored.

    size: classes V (or features of an embedding); of next tokens, the ids that the tokenizer can produce.
    positions: "single", one target a row; "next_token", a row of L tokens has L - 1 targets, target i being
    the distribution of token i + 1.
    """

    name: str
    size: int
    positions: Positions
    codec: Codec


@dataclass(frozen=True)
class Vocabulary:
    """What the ids mean. size: ids the tokenizer can produce, its largest plus one; padded_size: width of the
    teacher's logits, which may have more classes than there are ids. fingerprint: of the tokenizer's file, so
    that no student pairs the targets with another tokenizer unless an id map is asked for.
    """

    size: int
    padded_size: int
    fingerprint: str


@dataclass(frozen=True)
class Spec:
    """A store's whole meaning.

    teacher, views: descriptions as JSON, each with at least "kind" and "fingerprint"; never a credential.
    seed: of the store; every random draw of an encoding follows from it and the row's identity.
    """

    inputs: tuple[Input, ...]
    heads: tuple[Head, ...]
    teacher: Mapping[str, Any]
    views: Mapping[str, Any]
    seed: int = 0
    container: Container = "parquet"
    vocabulary: Vocabulary | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        names = self.schema().names
        if len(set(names)) != len(names):
            raise ValueError(f"heads and inputs must have names that differ, the columns would be {names}")
        known = get_args(Container)
        if self.container not in known:
            raise ValueError(f"unknown container {self.container!r}{nearest(str(self.container), known)}")
        if self.container != "parquet":
            for name in [item.name for item in self.inputs] + [head.name for head in self.heads]:
                if not _PLAIN_NAME.fullmatch(name):
                    raise ValueError(
                        f"the name {name!r} cannot stand in a {self.container} shard: use letters, digits "
                        "and ._- after a first letter or digit, or the container parquet"
                    )

    def head(self, name: str) -> Head:
        """The head of that name. Raises SpecMismatch."""
        for head in self.heads:
            if head.name == name:
                return head
        raise SpecMismatch(f"the store has no head {name!r}, it has {[head.name for head in self.heads]}")

    def as_wide_as(self, stored: Spec) -> Spec:
        """The same for a store that was begun when logits were not yet cut to the tokenizer's ids: such a
        store's heads are as wide as the teacher's logits, and stay so.
        """
        if self.vocabulary is None:
            return self
        whole = {head.name for head in stored.heads if head.size == self.vocabulary.padded_size}
        heads = tuple(
            dataclasses.replace(head, size=self.vocabulary.padded_size)
            if head.name in whole and head.positions == "next_token" and head.codec.of == "logits"
            else head
            for head in self.heads
        )
        return dataclasses.replace(self, heads=heads)

    @cached_property
    def fingerprint(self) -> str:
        """BLAKE2b-128 of the canonical JSON, 32 hexadecimal digits. Each commit record is held to it."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()

    def to_json(self, indent: int | None = None) -> str:
        """Canonical JSON: sorted keys."""
        data = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        data["inputs"] = [dataclasses.asdict(item) for item in self.inputs]
        data["heads"] = [
            {"name": h.name, "size": h.size, "positions": h.positions, "codec": h.codec.to_json()}
            for h in self.heads
        ]
        data["vocabulary"] = dataclasses.asdict(self.vocabulary) if self.vocabulary else None
        return json.dumps(data, sort_keys=True, indent=indent, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Spec:
        """Raises SpecMismatch with the reason when the text is no spec of a version this reader knows."""
        try:
            data = json.loads(text)
            version = data["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise SpecMismatch(f"not a store's spec: {error}") from error
        if version not in range(1, FORMAT_VERSION + 1):
            raise SpecMismatch(
                f"the store has format version {version!r}, this Decant reads 1 to {FORMAT_VERSION}: "
                "install the release that wrote it, or label again"
            )
        try:
            data["inputs"] = tuple(build(Input, item) for item in data["inputs"])
            data["heads"] = tuple(
                build(Head, {**item, "codec": codec_from_json(item["codec"], version)})
                for item in data["heads"]
            )
            if data.get("vocabulary") is not None:
                data["vocabulary"] = build(Vocabulary, data["vocabulary"])
            return build(cls, data)
        except (ValueError, KeyError, TypeError) as error:
            raise SpecMismatch(f"the store's spec is broken: {error}") from error

    def schema(self) -> pa.Schema:
        """The Arrow schema of a shard's rows.

        key: the record; row: its ordinal in the unit; view, views: which of how many views of the record;
        targets: how many targets each head with "next_token" positions has in this row (heads with "single"
        have one); `in.<input>` and `<head>.<column>`: raw little-endian bytes, in row order.
        The metadata says again what the spec says, so that a shard alone can be read and checked.
        """
        columns = [
            pa.field("key", pa.string(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
            pa.field("view", pa.int32(), nullable=False),
            pa.field("views", pa.int32(), nullable=False),
            pa.field("targets", pa.int32(), nullable=False),
        ]
        columns += [pa.field(f"in.{item.name}", pa.binary(), nullable=False) for item in self.inputs]
        columns += [
            pa.field(f"{head.name}.{column.name}", pa.binary(), nullable=False)
            for head in self.heads
            for column in head.codec.columns(head.size)
        ]
        metadata = {
            "decant.format_version": str(self.format_version),
            "decant.spec": self.to_json(),
            "decant.spec_fingerprint": self.fingerprint,
        }
        return pa.schema(columns, metadata=metadata)


def differences(ours: Spec, theirs: Spec) -> list[str]:
    """What two specs disagree about, each as 'part: ours, theirs', for a refusal that a person can act on."""
    mine, other = json.loads(ours.to_json()), json.loads(theirs.to_json())
    return [
        f"{name}: {_short(mine[name])} against {_short(other[name])}"
        for name in mine
        if mine[name] != other[name]
    ]


def _short(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 200 else text[:197] + "..."


__all__ = ["FORMAT_VERSION", "Container", "Head", "Input", "Positions", "Spec", "Vocabulary", "differences"]
