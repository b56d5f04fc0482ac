"""`decant merge`: several teachers' stores of one corpus as one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jobs.commands.arguments import Options, fsspec_options, open_store
from jobs.progress import Display, Work
from jobs.terminal import count, err, out
from pipeline.targets.errors import UserError

if TYPE_CHECKING:
    from pipeline.targets.store import Store


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(merge)


def merge(
    destination: Annotated[
        str,
        typer.Argument(metavar="DEST", help="The merged store, made if it is not there.", show_default=False),
    ],
    stores: Annotated[
        list[str],
        typer.Argument(
            metavar="STORE…",
            help="Two or more stores, or job files. Units are the first one's.",
            show_default=False,
        ),
    ],
    mode: Annotated[
        Literal["join", "average"],
        typer.Option(help='"join": all heads side by side. "average": one mean distribution for each head.'),
    ] = "join",
    average: Annotated[
        Literal["logits", "probabilities"],
        typer.Option(help='Of dense heads, the mean of their "logits" or of their "probabilities".'),
    ] = "logits",
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="Names of the stores, in order, that begin the heads' names; by default of their urls."
        ),
    ] = None,
    container: Annotated[
        Literal["parquet", "webdataset", "zarr"] | None,
        typer.Option(help="Of the new store; by default the first store's.", show_default=False),
    ] = None,
    option: Options = None,
) -> None:
    """Merge several teachers' stores of one corpus.

    Rows meet by their key and view, and only if their inputs are equal; a row without a partner goes to
    quarantine. A join keeps every byte of every target. An average is of dense heads, or of sampled ones
    (threshold), which are encoded again without bias; top-k targets cannot be averaged. Stopped at any
    moment, the same command goes on.

    \b
      decant merge runs/both runs/a runs/b --name small --name large
      decant merge runs/mean runs/a runs/b --mode average

    Next: decant inspect DEST, decant verify DEST
    """
    from pipeline import merge as merging

    if len(stores) < 2:
        raise UserError("a merge is of two stores or more: decant merge DEST STORE STORE")
    opened = [open_store(where, option)[0] for where in stores]
    named = _named(opened, name)
    work = Work("merged", opened[0].planned_count(), "units")
    with Display(work, err()):
        found = merging.merge(
            destination, named, mode, average, fsspec_options(option), container, lambda commit: work.add()
        )
    console = out()
    console.print(
        f"merged {count(found.units)} units, {count(found.rows)} rows, into {found.store.url}",
        soft_wrap=True,
        markup=False,
    )
    if found.refused:
        console.print(
            f"{count(found.refused)} rows went to quarantine (decant inspect {found.store.url} --quarantine)",
            soft_wrap=True,
            markup=False,
        )
    if found.waiting:
        console.print(
            f"{count(found.waiting)} units of the first store are not labelled yet: run it again then"
        )
        raise typer.Exit(1)


def _named(stores: list[Store], given: list[str] | None) -> dict[str, Store]:
    """The stores by name. Raises UserError for names that are not as many, not different, or no words."""
    names = given or [
        re.sub(r"\W+", "_", store.url.rstrip("/").rpartition("/")[2]).strip("_") for store in stores
    ]
    if len(names) != len(stores) or len(set(names)) != len(names):
        raise UserError(
            f"{len(stores)} stores need as many different names, these are {', '.join(names)}: give each "
            "a --name"
        )
    for name in names:
        if not re.fullmatch(r"\w+", name):
            raise UserError(
                f"the name {name!r} of a store begins the names of its heads: use letters and digits"
            )
    return dict(zip(names, stores, strict=True))
