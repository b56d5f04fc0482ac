"""What pydantic found wrong with a configuration, as sentences for a person.

Pydantic names a problem by a path that also holds the tags of unions; here the path is the one that stands in
the file, and an unknown key or kind comes with the nearest name that there is.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from jobs.document import describe
from pipeline.targets.strict import nearest

MOST = 8
"""Problems that one message names."""

UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")

WORDS = {
    "a valid dictionary": "a mapping",
    "an object": "a mapping of keys",
    "a valid array": "a list",
    "a valid list": "a list",
    "a valid string": "a text",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
}
"""pydantic's names of types, and those of a YAML file."""

SECRET = re.compile(r"key|secret|token|passw|credential|connection_string|sas", re.IGNORECASE)
"""Names of fsspec options whose values are never shown."""


def sentences(error: ValidationError, model: type, prefix: Sequence[str] = ()) -> list[str]:
    """One sentence per problem, each beginning with the dotted path; prefix stands before the model's own.

    Unknown keys come first: a misspelt key is also a missing one.
    """
    problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] not in UNKNOWN)
    return [_sentence(dict(problem), model, tuple(prefix)) for problem in problems]


def is_secret(path: Sequence[str | int]) -> bool:
    """Whether the value at this path of a job may be a credential: a webhook, a telling name in `options`."""
    names = [str(item) for item in path]
    if names[:2] == ["notify", "webhook"]:
        return True
    if "options" not in names:
        return False
    return any(SECRET.search(name) for name in names[names.index("options") + 1 :])


def _sentence(problem: dict[str, Any], model: type, prefix: tuple[str, ...]) -> str:
    path, owner, annotation = _locate(model, problem["loc"])
    full = (*prefix, *path)
    name = ".".join(str(item) for item in full)
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in UNKNOWN:
        where = f"{name}: " if name else ""
        return f"{where}unknown key{nearest(str(path[-1]), _names(owner))}"
    if kind in ("missing", "missing_argument"):
        return f"{name}: missing{_meaning(owner, str(path[-1]))}"
    if kind == "union_tag_invalid":
        known = _kinds(annotation)
        return f'{name}.kind: unknown "{context["tag"]}"{nearest(str(context["tag"]), known)}'
    if kind == "union_tag_not_found":
        known = _kinds(annotation)
        if isinstance(problem["input"], Mapping):
            return f"{name}.kind: missing (one of {', '.join(sorted(known))})"
        return f'{name}: should be a mapping with the key "kind" (one of {", ".join(sorted(known))})'
    if kind in ("model_type", "model_attributes_type", "dataclass_type", "dataclass_exact_type"):
        return f"{name or 'the job'}: should be a mapping of keys{_got(problem['input'], full)}"
    message = re.sub(r"^(Value error|Assertion failed), ", "", problem["msg"])
    message = re.sub(r", unable to parse .*$", "", message.replace("Input should be", "should be"))
    for theirs, ours in WORDS.items():
        message = message.replace(theirs, ours)
    if kind == "value_error":
        return f"{name}: {message}" if name else message
    return f"{name}: {message[:1].lower()}{message[1:]}{_got(problem['input'], full)}"


def _got(value: object, path: Sequence[str | int]) -> str:
    if "options" in path or is_secret(path):
        return ""  # below options, anything may be a credential
    if value is None or isinstance(value, dict | list):
        return f", got {describe(value)}"
    text = json.dumps(value, ensure_ascii=False)
    return f", got {text if len(text) <= 80 else text[:77] + '...'}"


def _locate(model: type, loc: Sequence[str | int]) -> tuple[list[str | int], type | None, Any]:
    """The path as it stands in the file, the class that has the last name, and the annotation it leads to."""
    path: list[str | int] = []
    owner: type | None = None
    annotation: Any = model
    for item in loc:
        choices = _choices(annotation)
        tagged = [choice for choice in choices if _kind(choice) == item]
        if len(choices) > 1 and tagged:
            annotation = tagged[0]
            continue
        path.append(item)
        inner = choices[0] if len(choices) == 1 else None
        fields = _fields(inner)
        if fields is not None:
            owner, annotation = inner, fields.get(str(item))
        else:
            owner, annotation = None, _element(inner)
    return path, owner, annotation


def _choices(annotation: Any) -> list[Any]:
    """The members of a union without None; of anything else, itself."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _choices(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        return [choice for member in members for choice in _choices(member)]
    return [annotation]


def _fields(annotation: Any) -> dict[str, Any] | None:
    """Field name to annotation of a configuration class; None for anything else."""
    if not isinstance(annotation, type):
        return None
    if issubclass(annotation, BaseModel):
        return {name: field.annotation for name, field in annotation.model_fields.items()}
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        return {field.name: hints[field.name] for field in dataclasses.fields(annotation)}
    return None


def _element(annotation: Any) -> Any:
    """What a list or a mapping holds."""
    arguments = [item for item in typing.get_args(annotation) if item is not Ellipsis]
    return arguments[-1] if arguments else None


def _kind(annotation: Any) -> str | None:
    """The tag of a member of a union."""
    kind = (_fields(annotation) or {}).get("kind")
    values = typing.get_args(kind)
    return str(values[0]) if values else None


def _kinds(annotation: Any) -> list[str]:
    return [kind for choice in _choices(annotation) if (kind := _kind(choice)) is not None]


def _names(owner: type | None) -> list[str]:
    return list(_fields(owner) or {})


def _meaning(owner: type | None, name: str) -> str:
    """The first sentence of the key's documentation, in brackets."""
    if owner is None or not issubclass(owner, BaseModel) or name not in owner.model_fields:
        return ""
    text = " ".join((owner.model_fields[name].description or "").split())
    first = re.split(r"(?<=\.)\s", text)[0].rstrip(".")
    return f" ({first})" if first else ""
