"""`decant convert`: a store's targets in another container."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.commands.arguments import Options, StoreUrl, fsspec_options, open_store
from jobs.commands.stores import verified
from jobs.progress import Display, Work
from jobs.terminal import err, out, size
from jobs.totals import Totals


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(convert)


def convert(
    store: StoreUrl,
    destination: Annotated[
        str,
        typer.Argument(
            metavar="DEST", help="Directory or URL of the new store, or of one begun.", show_default=False
        ),
    ],
    container: Annotated[
        str, typer.Option(help="parquet, webdataset (tar) or zarr (v3, zipped).", show_default=False)
    ],
    option: Options = None,
    dest_option: Annotated[
        list[str] | None,
        typer.Option(
            "--dest-option",
            metavar="KEY.SUB=VALUE",
            help="An fsspec option of DEST's URL.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a store again in another container.

    Plan, rows, quarantine and statistics are the same; codecs are not touched. Each unit is read back and
    compared, and the new store is verified at the end. The source is only read. Run the same command again
    to go on after an interruption, or after the source has grown.

    \b
      decant convert runs/store runs/store-zarr --container zarr

    Next: decant verify DEST, decant train
    """
    from pipeline.targets import convert as conversion

    source, _ = open_store(store, option)
    target = conversion.destination(source, destination, container, fsspec_options(dest_option))
    work = Work("converted", len(source.committed()), "units", len(target.committed()))
    with Display(work, err()):
        conversion.convert(source, target, lambda commit: work.add())
    if verified(target).problems:
        raise typer.Exit(1)
    before, after = (Totals.of(s.commits()).shard_bytes for s in (source, target))
    out().print(
        f"{size(before)} of {source.spec.container} are {size(after)} of {container} in {target.url}",
        soft_wrap=True,
        markup=False,
    )
