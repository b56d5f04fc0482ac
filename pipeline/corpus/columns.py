"""Columns become fields: what tables, in whatever file, share as a corpus.

It knows Arrow's types and which of them are a text, bytes, a number or an array; files it does not know.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from pipeline.corpus.base import Filtered, Read, Record
from pipeline.corpus.files import FileSource
from pipeline.corpus.selection import ColumnsWhere
from pipeline.targets.errors import ConfigError
from pipeline.targets.unit import Quarantined

Form = Literal["text", "bytes", "number", "array"]


class ColumnFiles(FileSource, ABC):
    """Files of rows with named columns."""

    decides: ClassVar[frozenset[str]] = FileSource.decides | {"text_column", "key_column", "columns"}

    text_column: str = "text"
    """The column of strings (or UTF-8 bytes) that holds the text."""

    columns: dict[str, str] = Field(default={})
    """In place of text_column: the column of each field of a record, for example {image: image, text:
    caption}. Strings become text, binary becomes bytes, lists of numbers become arrays; "a.b" is the field b
    of a struct a. A struct with a field "bytes", as Hugging Face stores images and sounds, gives those."""

    key_column: str | None = None
    """A column of strings or integers, unique in the corpus, to be the record's key."""

    where: ColumnsWhere = ColumnsWhere()
    """Conditions that a record has to meet to be labelled."""

    @model_validator(mode="after")
    def _one_way(self) -> ColumnFiles:
        if self.columns and self.text_column != type(self).model_fields["text_column"].default:
            raise ValueError("text_column and columns exclude each other: name the text among the columns")
        return self

    @property
    def fields(self) -> Mapping[str, str]:
        """The column of each field."""
        return self.columns or {"text": self.text_column}

    @property
    def needed(self) -> list[str]:
        """The columns without which a row is no record, once each."""
        return list(dict.fromkeys([*self.fields.values(), *([self.key_column] if self.key_column else [])]))

    @property
    def wanted(self) -> list[str]:
        """All columns that are read, once each."""
        return list(dict.fromkeys([*self.needed, *self.where.equals]))

    def check_columns(self, url: str, schema: pa.Schema) -> None:
        """Raises ConfigError, naming the file, for a column that it lacks or whose type is of no use."""
        for column in self.fields.values():
            self._check(url, schema, column, "no value for a record", "text", "bytes", "number", "array")
        if not self.columns:
            self._check(url, schema, self.text_column, "no text", "text", "bytes")
        if self.key_column is not None:
            kind = self._check(url, schema, self.key_column, "no key", "text", "number")
            if pa.types.is_floating(kind) or pa.types.is_boolean(kind):
                raise ConfigError(f"column {self.key_column!r} of {url} is of type {kind}, which is no key")
        for column in self.where.equals:
            self._check(url, schema, column, "nothing to compare with", "text", "number")

    def _check(self, url: str, schema: pa.Schema, column: str, what: str, *forms: Form) -> pa.DataType:
        if path_of(schema, column) is None:
            raise ConfigError(f"{url} has no column {column!r}, it has {schema.names}")
        kind = type_of(schema, column)
        if form(kind) not in forms:
            raise ConfigError(f"column {column!r} of {url} is of type {kind}, which is {what}")
        return kind

    def texts(self, schema: pa.Schema) -> frozenset[str]:
        """The wanted columns whose bytes are texts. The schema has been checked."""
        found = {column for column in self.wanted if form(type_of(schema, column)) == "text"}
        return frozenset(found if self.columns else {*found, self.text_column})

    def rows(
        self, batch: pa.RecordBatch, span: range, row: int, prefix: str, number: int, texts: frozenset[str]
    ) -> Iterator[Read]:
        """Some rows of a batch as records.

        span: which ones; row: ordinal of the first of them in the unit. A row's place is the prefix and its
        number, that of the batch's first row being `number`. texts: of the file's schema.
        """
        cells = {column: (cells_of(batch, column), column in texts) for column in self.needed}
        compared = {column: cells_of(batch, column) for column in self.where.equals}
        fields, key_column = list(self.fields.items()), self.key_column
        for ordinal, i in enumerate(span, row):
            position = f"{prefix}{number + i}"
            if compared and not self.where.admits_columns(
                {c: _plain(cell(i)) for c, cell in compared.items()}
            ):
                yield Filtered(position, ordinal)
                continue
            values: dict[str, Any] = {}
            reason = None
            for column, (cell, is_text) in cells.items():
                value = cell(i)
                if value is None:
                    reason = f"{position}: no value in {column!r}"
                    break
                if is_text and isinstance(value, bytes):
                    try:
                        value = value.decode()
                    except UnicodeDecodeError as error:
                        reason = f"{position}: no UTF-8 at byte {error.start} of {column!r}"
                        break
                values[column] = value
            if reason is not None:
                yield Quarantined(position, ordinal, None, "undecodable", reason)
                continue
            key = str(values[key_column]) if key_column else position
            yield Record(key, ordinal, {name: values[column] for name, column in fields})


def _plain(value: Any) -> Any:
    """A cell as it is compared: what is no UTF-8 is equal to nothing."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def path_of(schema: pa.Schema, column: str) -> list[str] | None:
    """The names that lead to a column, through structs where it has dots; None if there is none."""
    if column in schema.names:
        return [column]
    first, *rest = column.split(".")
    if first not in schema.names:
        return None
    kind = schema.field(first).type
    for name in rest:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return [first, *rest]


def type_of(schema: pa.Schema, column: str) -> pa.DataType:
    """The type of a column that is there."""
    path = path_of(schema, column)
    assert path is not None
    kind = schema.field(path[0]).type
    for name in path[1:]:
        kind = kind.field(name).type
    return kind


def form(kind: pa.DataType) -> Form | None:
    """What a value of the type is to a record; None if it is nothing that Decant reads."""
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_null(kind) or types.is_string(kind) or types.is_large_string(kind):
        return "text"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return "bytes"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return "number"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        numeric = types.is_integer(kind.value_type) or types.is_floating(kind.value_type)
        return "array" if numeric else None
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return "bytes" if form(kind.field("bytes").type) == "bytes" else None
    return None


def cells_of(batch: pa.RecordBatch, column: str) -> Callable[[int], Any]:
    """What gives the value of a row: bytes (of texts too, so that what is no UTF-8 spoils its own record
    alone), a number, an array, or None.
    """
    path = path_of(batch.schema, column)
    assert path is not None  # `check_columns` has seen to it
    array = batch.column(path[0])
    if len(path) > 1:
        array = pc.struct_field(array, path[1:])
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = form(array.type)
    if pa.types.is_struct(array.type):
        array = pc.struct_field(array, ["bytes"])
    if kind == "array":
        return lambda i: None if (cell := array[i]).values is None else cell.values.to_numpy(False)
    if kind == "text":
        array = array.cast(pa.large_binary())
    return lambda i: array[i].as_py()
