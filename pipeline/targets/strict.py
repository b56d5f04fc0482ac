"""JSON into frozen dataclasses, refusing what is unknown or missing with the nearest name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean "x"?)', or ' (known: …)' when nothing is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f' (did you mean "{close[0]}"?)' if close else f" (known: {', '.join(names)})"


def build(cls: type[T], data: Mapping[str, Any]) -> T:
    """`cls(**data)` for a dataclass, raising ValueError that names an unknown or missing key."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in data:
        if name not in fields:
            raise ValueError(f'unknown key "{name}" for {cls.__name__}{nearest(name, fields)}')
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise ValueError(f'missing key "{name}" for {cls.__name__}')
    return cls(**data)
