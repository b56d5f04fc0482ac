"""A job's YAML file as plain data: strict, and with overrides from the command line.

It knows YAML and dotted paths, and nothing of what the keys mean. Read as YAML 1.2 reads: `1e-4` is a number,
`no` and `on` are words, a date is text. Environment variables are never put in; a value that begins with `~/`
becomes a path in the home directory. Duplicate keys are refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.targets.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, over PyYAML's safe loader: no Python objects, no surprise of YAML 1.1."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            where = key_node.start_mark
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is not a word", where)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f'the key "{key}" stands twice', where)
            seen.add(key)
        return super().construct_mapping(node, deep=True)

    def integer(self, node: yaml.ScalarNode) -> int:
        text = node.value.replace("_", "")
        base = {"0x": 16, "0o": 8}.get(text.lstrip("+-")[:2], 10)
        return int(text, base)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.integer)
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
):
    _firsts = [character if character != "\0" else "" for character in _first]
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _firsts)


def parse(text: str, name: str) -> Any:
    """The data of one YAML document. name: what a message calls it. Raises ConfigError with the line."""
    try:
        loader = _Loader(text)
        loader.deep_construct = True  # an alias inside its own anchor is refused instead of looping
        data = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem = (error.problem or "not YAML").replace("could not determine a constructor for", "refused:")
        raise ConfigError(f"{name}{line}: {problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not YAML: {' '.join(str(error).split())}") from error
    return _expand(data, name, ())


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The file's mapping with the overrides put in. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"there is no job file {path}: `decant config example text` prints one") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}), so not a job file") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    data = parse(text, str(path))
    if not isinstance(data, dict):
        what = "is empty" if data is None else f"holds {describe(data)}"
        raise ConfigError(f"{path}: {what} where a mapping of keys belongs: see `decant config example text`")
    for override in overrides:
        assign(data, override)
    return data


def split(override: str) -> tuple[list[str], str]:
    """'a.b.0=text' as (['a', 'b', '0'], 'text'). Raises ConfigError."""
    name, equals, value = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f'"{override}" is no override: write key.sub=value, for example label.attempts=5')
    return keys, value


def assign(data: dict[str, Any], override: str) -> None:
    """Puts 'key.sub=value' into the data, in place; the value is YAML, a list takes an index, or its length.

    Raises ConfigError.
    """
    keys, text = split(override)
    value = parse(text, f'"{override}"')
    at: Any = data
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        name = ".".join(keys[:depth])
        if isinstance(at, list):
            if not key.isdecimal() or int(key) > len(at):
                raise ConfigError(
                    f'"{override}": {name} is a list of {len(at)}, so give an index from 0 to {len(at)} '
                    f'instead of "{key}" ({len(at)} appends)'
                )
            index = int(key)
            if index == len(at):
                at.append(None)
            if last:
                at[index] = value
            elif at[index] is None:
                at[index] = {}
            at = at[index]
        elif isinstance(at, dict):
            if last:
                at[key] = value
            elif at.get(key) is None:
                at[key] = {}
            at = at[key]
        else:
            raise ConfigError(f'"{override}": {name} is {describe(at)}, so it has no key "{key}"')


def describe(value: object) -> str:
    """What kind of thing a value is, for a message."""
    kinds: tuple[tuple[type, str], ...] = (
        (bool, "true or false"),
        (int, "a whole number"),
        (float, "a number"),
        (str, "a text"),
        (list, "a list"),
        (dict, "a mapping"),
    )
    for kind, words in kinds:
        if isinstance(value, kind):
            return words
    return "nothing (null)" if value is None else f"a {type(value).__name__}"


def _expand(value: Any, name: str, path: Iterable[str]) -> Any:
    """`~/` at the beginning of any text, and a refusal of ${…}, which would become a strange path."""
    if isinstance(value, dict):
        return {key: _expand(item, name, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, name, (*path, str(index))) for index, item in enumerate(value)]
    if isinstance(value, str):
        if value.startswith("~/"):
            return os.path.expanduser(value)
        if re.search(r"\$\{[A-Za-z_]", value):
            where = ".".join(path)
            raise ConfigError(
                f"{name}: {where or 'the value'} is {value!r}, but environment variables are not put in: "
                f"let the shell do it, with {where or 'key.sub'}=… on the command line"
            )
    return value
