"""`decant retry-quarantine`, by the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.targets import Store
from tests.jobs.small_jobs import TEXTS, SmallJob

Decant = Callable[..., Any]


def test_the_quarantine_is_retried_and_only_it(
    small_job: SmallJob, decant: Decant, tokenizer_directory: Path
) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_directory / "tokenizer.json"))
    ids = {name: set(tokenizer.encode(text).ids) for name, text in TEXTS.items()}
    small_job.settings["views"]["length"] = 1024  # a view a record
    bad = min(ids["geese.txt"] - ids["ducks.txt"] - ids["swans.txt"])
    job, folder = str(small_job.file), small_job.folder
    failing = [f"teacher.raise_on={bad}", "label.max_quarantined=1"]

    labelled = decant(folder, "label", job, *failing)
    assert labelled.exit_code == 0, labelled.stderr
    store = Store.open(str(small_job.store))
    before = {commit.unit: commit for commit in store.commits()}
    due = sum(commit.failures for commit in before.values())
    assert due

    again = decant(folder, "retry-quarantine", job, *failing)
    assert again.exit_code == 0, again.stderr
    assert f"0 of {due} labelled, {due} stay in quarantine" in again.stdout
    assert {commit.unit: commit for commit in store.commits()} == before

    retried = decant(folder, "retry-quarantine", job)
    assert retried.exit_code == 0, retried.stderr
    assert f"{due} of {due} labelled, 0 stay in quarantine" in retried.stdout
    after = {commit.unit: commit for commit in store.commits()}
    assert sum(commit.failures for commit in after.values()) == 0
    assert {unit for unit in after if after[unit] != before[unit]} == {
        unit for unit, commit in before.items() if commit.failures
    }
    assert store.verify().problems == ()

    nothing = decant(folder, "retry-quarantine", job)
    assert nothing.exit_code == 0
    assert "nothing to retry" in nothing.stdout
