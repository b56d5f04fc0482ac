"""The arguments that several commands share, and how a STORE argument becomes an open store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.targets.store import Store

JobFile = Annotated[
    Path, typer.Argument(metavar="JOB.yaml", help="The job file.", show_default=False, dir_okay=False)
]

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY.SUB=VALUE",
        help="Keys of the job that stand above the file; the value is YAML, a list takes an index.",
        show_default=False,
    ),
]

StoreUrl = Annotated[
    str,
    typer.Argument(
        metavar="STORE",
        help="The store's directory or URL, or a job file, whose store is meant (with its options).",
        show_default=False,
    ),
]

Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-o",
        metavar="KEY.SUB=VALUE",
        help="An fsspec option of the store's URL, for example client_kwargs.endpoint_url=http://…",
        show_default=False,
    ),
]


def fsspec_options(given: list[str] | None) -> dict[str, Any]:
    """What `Options` on a command line say. Raises ConfigError."""
    from jobs.document import assign

    options: dict[str, Any] = {}
    for option in given or ():
        assign(options, option)
    return options


def is_job(where: str) -> bool:
    """Whether an argument names a job file, and no store."""
    return Path(where).suffix in (".yaml", ".yml") and "://" not in where


def open_store(where: str, options: list[str] | None) -> tuple[Store, str | None]:
    """The store of a URL or of a job file, and the directory of the job's tokenizer, if it names one.

    Raises UserError when there is no store.
    """
    from jobs.config import load_job, load_train, sections
    from pipeline.targets.store import Store

    given = fsspec_options(options)
    if not is_job(where):
        return Store.open(where, given), None
    path = Path(where)
    if sections(path) == {"train"}:
        location = load_train(path).store
        assert location is not None  # load_train refuses a file without one
        return Store.open(location.url, {**location.options, **given}), None
    job = load_job(path)
    store = Store.open(job.store.url, {**job.store.options, **given})
    of_text = getattr(job.views, "text", job.views)  # image_text has them inside
    return store, getattr(of_text, "tokenizer", None)
