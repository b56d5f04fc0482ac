"""`decant convert`: a store's targets in another container."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderResult

from jobs.commands.arguments import Options, StoreUrl, fsspec_options, open_store
from jobs.commands.stores import verified
from jobs.progress import Display
from jobs.terminal import bar, count, duration, err, out, size
from jobs.totals import Totals

if TYPE_CHECKING:
    from pipeline.targets.commit import Commit


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(convert)


class ConvertView:
    """Units converted so far. units: of the source; done: those that an earlier run has converted."""

    note = ""

    def __init__(self, units: int, done: int) -> None:
        self.units, self.before, self.now, self.bytes = units, done, 0, 0
        self.began = time.monotonic()
        self.messages: list[str] = []

    def on(self, commit: Commit) -> None:
        """Takes one converted unit."""
        self.now += 1
        self.bytes += commit.shard_bytes

    def line(self) -> str:
        """All of it in one plain line."""
        seconds, done = time.monotonic() - self.began, self.before + self.now
        left = seconds / self.now * (self.units - done) if self.now else None
        return (
            f"converted {count(done)} of {count(self.units)} units, {size(self.bytes)}, "
            f"{size(self.bytes / max(seconds, 1e-9))}/s, left {duration(left)}"
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield bar(self.before + self.now, self.units, options.max_width)
        yield self.line()


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
    view = ConvertView(len(source.committed()), len(target.committed()))
    with Display(view, err()):
        conversion.convert(source, target, view.on)
    if verified(target).problems:
        raise typer.Exit(1)
    before, after = (Totals.of(s.commits()).shard_bytes for s in (source, target))
    out().print(
        f"{size(before)} of {source.spec.container} are {size(after)} of {container} in {target.url}",
        soft_wrap=True,
        markup=False,
    )
