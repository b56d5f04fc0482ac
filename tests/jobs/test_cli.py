"""The command teaches, starts fast, and leaves with the promised code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.commands.config import Example
from jobs.config import Job
from pipeline.targets.errors import TooManyQuarantined

COMMANDS = [
    *("plan", "label", "inspect", "stats", "verify", "audit", "repair", "merge", "compact", "gc", "train"),
    *("demo", "recipe", "import", "export", "config"),
]


def test_help_names_every_command_and_loads_no_model_library() -> None:
    code = (
        "import sys; sys.argv = ['decant', '--help']\n"
        "from jobs.cli import main\n"
        "try: main()\n"
        "finally: print('LOADED', *{name.partition('.')[0] for name in sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0
    text, _, loaded = run.stdout.partition("LOADED")
    assert all(f"\n  {name} " in text for name in COMMANDS)
    assert not set(loaded.split()) & {"torch", "ray", "transformers", "tokenizers", "matplotlib", "sklearn"}


@pytest.mark.parametrize("name", COMMANDS[:-1])
def test_each_command_explains_itself_with_an_example(
    decant: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    result = decant(tmp_path, name, "--help")
    assert result.exit_code == 0
    assert f"decant {name}" in result.output or name in ("compact",)
    assert len(result.output.splitlines()) > 8


def test_the_version_is_the_packages(decant: Callable[..., Any], tmp_path: Path) -> None:
    from importlib.metadata import version

    assert decant(tmp_path, "--version").output == f"decant {version('decant-kd')}\n"


@pytest.mark.parametrize(
    "words", [["labell"], ["label"], ["label", "job.yaml", "--what"], ["inspect", "x", "--rows", "-1"]]
)
def test_a_mistake_on_the_command_line_leaves_with_2(
    decant: Callable[..., Any], tmp_path: Path, words: list[str]
) -> None:
    result = decant(tmp_path, *words)
    assert result.exit_code == 2
    assert "Error" in result.stderr


def test_the_schema_and_the_examples_are_printed(decant: Callable[..., Any], tmp_path: Path) -> None:
    assert json.loads(decant(tmp_path, "config", "schema").stdout) == Job.model_json_schema()
    for name in Example:
        text = decant(tmp_path, "config", "example", name).stdout
        (tmp_path / "job.yaml").write_text(text)
        assert decant(tmp_path, "config", "check", "job.yaml").exit_code == 0
        shown = decant(tmp_path, "config", "show", "job.yaml", "train.steps=7").stdout
        assert yaml.safe_load(shown)["train"]["steps"] == 7


def test_a_train_section_alone_is_checked_and_shown(decant: Callable[..., Any], tmp_path: Path) -> None:
    section = {"output": "o", "model": {"kind": "mlp"}, "steps": 3, "store": {"url": "s"}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"train": section}))
    assert "decant train" in decant(tmp_path, "config", "check", "job.yaml").stdout
    assert yaml.safe_load(decant(tmp_path, "config", "show", "job.yaml").stdout)["train"]["steps"] == 3


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (TooManyQuarantined("3 of 4 records failed"), 1, "decant: 3 of 4 records failed\n"),
        (OSError(28, "No space left on device", "/x/y"), 1, "/x/y: no space left on device"),
        (PermissionError(13, "Permission denied", "/x/y"), 1, "/x/y: permission denied"),
        (KeyboardInterrupt(), 130, "aborted"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "unexpected ZeroDivisionError: division by zero (see where",
        ),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_the_promised_code(
    decant: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    said: str,
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("jobs.config.sections", fails)
    result = decant(tmp_path, "config", "check", "job.yaml")
    assert result.exit_code == code
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    debugged = decant(tmp_path, "--debug", "config", "check", "job.yaml")
    assert debugged.exit_code == code
    assert ("Traceback" in debugged.stderr) == (code != 130)
