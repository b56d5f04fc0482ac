"""A job file is read as YAML 1.2 reads, strictly, and any key can be overridden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.document import assign, parse, read
from pipeline.targets.errors import ConfigError

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text("abc ~no:1e-#é\n", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abno1", min_size=1), inner, max_size=3)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.5E3", 1500.0),
        (".5", 0.5),
        ("1_000", 1000),
        ("010", 10),
        ("0x1F", 31),
        ("-3", -3),
        ("no", "no"),
        ("on", "on"),
        ("2026-01-02", "2026-01-02"),
        ("12:30", "12:30"),
        ("~", None),
        ("", None),
        ("[1, a, true]", [1, "a", True]),
    ],
)
def test_values_are_what_yaml_1_2_says(text: str, value: Any) -> None:
    assert parse(text, "x") == value
    assert type(parse(text, "x")) is type(value)


@settings(max_examples=150)
@given(PLAIN)
def test_what_the_plain_dumper_writes_comes_back(value: Any) -> None:
    text = yaml.safe_dump(value, allow_unicode=True, default_style='"')
    tagged = yaml.safe_load(text)  # the dumper tags what is no text
    assert parse(text, "x") == tagged == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", 'line 3: the key "a" stands twice'),
        ("a:\n  b: 1\n  b: 2\n", 'line 3: the key "b" stands twice'),
        ("a: [1\n", "line 2"),
        ("1: x\n", "the key 1 is not a word"),
        ("a: !!python/object/apply:os.system [echo]\n", "line 1: refused"),
        ("a: &x {b: *x}\n", "recursive"),
        ("- a\n", "holds a list"),
        ("", "is empty"),
        (
            "store: {url: '${BUCKET}/x'}\n",
            "store.url is '${BUCKET}/x', but environment variables are not put in",
        ),
    ],
)
def test_a_file_that_is_no_plain_mapping_is_refused_with_its_place(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_missing_a_folder_or_no_text_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff")
    for name, said in (
        ("none.yaml", "there is no job file"),
        ("", "directory"),
        ("binary.yaml", "not UTF-8"),
    ):
        with pytest.raises(ConfigError, match=said):
            read(tmp_path / name)


def test_merge_keys_and_anchors_share_settings() -> None:
    assert parse("a: &x {k: 1, l: 2}\nb: {<<: *x, l: 3}\n", "x")["b"] == {"k": 1, "l": 3}


def test_a_path_in_the_home_directory_is_expanded_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert parse("[~/a, {b: ~/c}, a~/b, '~']", "x") == ["/home/ada/a", {"b": "/home/ada/c"}, "a~/b", "~"]


@pytest.mark.parametrize(
    ("override", "result"),
    [
        ("a.b=2", {"a": {"b": 2}, "l": [1, {"m": 2}]}),
        ("a.c.d=x", {"a": {"b": 1, "c": {"d": "x"}}, "l": [1, {"m": 2}]}),
        ("l.0=[1, 2]", {"a": {"b": 1}, "l": [[1, 2], {"m": 2}]}),
        ("l.1.m=3", {"a": {"b": 1}, "l": [1, {"m": 3}]}),
        ("l.2=new", {"a": {"b": 1}, "l": [1, {"m": 2}, "new"]}),
        ("a={x: 1e-3}", {"a": {"x": 1e-3}, "l": [1, {"m": 2}]}),
        ("a.b=", {"a": {"b": None}, "l": [1, {"m": 2}]}),
        ("a.b=x=y", {"a": {"b": "x=y"}, "l": [1, {"m": 2}]}),
    ],
)
def test_an_override_sets_exactly_its_key(override: str, result: dict[str, Any]) -> None:
    data: dict[str, Any] = {"a": {"b": 1}, "l": [1, {"m": 2}]}
    assign(data, override)
    assert data == result


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("a.b", "is no override"),
        ("=3", "is no override"),
        ("a..b=3", "is no override"),
        ("a.b.c=3", "a.b is a whole number"),
        ("l.x=3", "index from 0 to 2"),
        ("l.-1=3", "index from 0 to 2"),
        ("l.3=3", "index from 0 to 2"),
        ("a.b=[1", "a.b=[1"),
    ],
)
def test_an_override_that_fits_nowhere_is_refused_in_words(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        assign({"a": {"b": 1}, "l": [1, 2]}, override)
    assert said in str(caught.value)
