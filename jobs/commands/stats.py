"""`decant stats`: a store in numbers."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from jobs.commands.arguments import Options, StoreUrl, open_store
from jobs.progress import Display, Work
from jobs.terminal import count, duration, err, out, size


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(stats)


def stats(
    store: StoreUrl,
    shards: Annotated[
        int, typer.Option(min=0, help="Shards to read for percentiles and the bytes of each column.")
    ] = 8,
    deep: Annotated[bool, typer.Option("--deep", help="Read all shards for that.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one JSON object.")] = False,
    option: Options = None,
) -> None:
    """Show what a store is made of: entries, bytes by column, likelihoods, throughput.

    Means are of the whole store, from its commit records; percentiles and bytes by column are of a sample of
    its shards.

    \b
      decant stats runs/store
      decant stats job.yaml --deep --json

    Next: decant inspect STORE
    """
    from jobs.statistics import statistics

    opened, _ = open_store(store, option)
    work = Work("read", 0, "shards", first="reading the commit records")
    with Display(work, err()):
        found = statistics(opened, None if deep else shards, work.at)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    console = out()
    console.print(_overview(found))
    for name, head in found["heads"].items():
        console.print()
        console.print(_head(name, head, found))
    if found["columns"]:
        console.print()
        console.print(_columns(found))


def _grid() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _overview(found: dict[str, Any]) -> Table:
    table, target = _grid(), found["target"]
    units, bad = found["units"], found["quarantined"]
    table.add_row("store", escape(found["store"]))
    table.add_row("units", f"{count(units['committed'])} of {count(units['planned'])} labelled")
    table.add_row("records", f"{count(found['records'])}, in {count(found['rows'])} rows")
    table.add_row(target, count(found["targets"]))
    table.add_row("quarantined", f"{count(bad['failures'])} failures, {count(bad['empty'])} empty records")
    each = found["bytes_per_target"]
    per = "" if each is None else f", {each:.2f} bytes per {target.removesuffix('s')}"
    table.add_row("shards", size(found["shard_bytes"]) + per)
    for name, device in found["devices"].items():
        rate = device["targets_per_forward_second"]
        speed = "" if rate is None else f", {count(rate)} {target} per second of forward pass"
        table.add_row(
            "labelled on",
            escape(
                f"{name or 'an unknown device'}: {count(device['units'])} units, {count(device['targets'])} "
                f"{target} in {duration(device['forward_seconds'])}{speed}"
            ),
        )
    return table


def _head(name: str, head: dict[str, Any], found: dict[str, Any]) -> Table:
    from jobs.inspection import bars

    table = _grid()
    codec = dict(head["codec"])
    settings = ", ".join(f"{key} {value}" for key, value in codec.items() if key != "kind")
    table.add_row(
        f"head {escape(name)}", escape(f"{count(head['size'])} classes, {codec['kind']} ({settings})")
    )
    entries = head["entries"]
    if entries["mean"] is not None:
        spread = ""
        if entries["percentiles"] is not None:
            listed = ", ".join(
                f"{'most' if percent == '100' else percent + ' %'} {value}"
                for percent, value in entries["percentiles"].items()
            )
            sampled = found["sampled"]
            spread = f" ({listed}; of {count(sampled['shards'])} shards)"
        table.add_row("entries", f"{entries['mean']:.2f} a target{spread}")
    if head["captured_mass"] is not None:
        table.add_row("captured mass", f"{head['captured_mass']:.4f}")
    if head["entropy"] is not None:
        table.add_row("entropy", f"{head['entropy']:.3f} nats  {bars(head['entropy_histogram'] or [])}")
    if head["label_nll"] is not None:
        table.add_row(
            "the text", f"{head['label_nll']:.3f} nats a token, perplexity {head['perplexity']:.2f}"
        )
    return table


def _columns(found: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    sampled = found["sampled"]
    table.add_column(f"column (of {count(sampled['shards'])} of {count(sampled['of'])} shards)", no_wrap=True)
    for name in ("bytes", f"per {found['target'].removesuffix('s')}", "share", "before compression"):
        table.add_column(name, justify="right", no_wrap=True)
    total = sum(item["bytes"] for item in found["columns"])
    for item in found["columns"]:
        each = item["bytes_per_target"]
        table.add_row(
            escape(item["name"]),
            size(item["bytes"]),
            "" if each is None else f"{each:.3f}",
            f"{item['bytes'] / total:.1%}" if total else "",
            size(item["uncompressed_bytes"]),
        )
    return table
