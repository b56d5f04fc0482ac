"""`decant inspect`: a store's spec, its progress, and what the teacher said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.commands.arguments import Options, StoreUrl, open_store
from jobs.progress import Display, Work
from jobs.terminal import count, duration, err, out, size
from pipeline.targets.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from pipeline.targets.store import Store

TEXT = 400
"""Characters of a row's text that are shown."""

LONGEST = 500
"""Characters of what a store's teacher or views are made of that are shown."""

ROWS, POSITIONS, ENTRIES = (3, 200), (12, 512), (5, 12)
"""What is shown if nothing else is asked for: on the terminal, and on a page."""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(inspect)


def inspect(
    store: StoreUrl,
    rows: Annotated[
        int | None, typer.Option(min=0, help="Rows to show (default 3, on a page 200).", show_default=False)
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="Take the rows of this unit (the first digits of its id).")
    ] = None,
    positions: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Positions of a text row to show (default 12, evenly spread; on a page the first 512).",
            show_default=False,
        ),
    ] = None,
    entries: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Likeliest tokens or classes to show of each (default 5, on a page 12).",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The tokenizer's directory, to show text instead of ids."),
    ] = None,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="List what could not be labelled, and why, instead of rows.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one JSON object.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write one self-contained HTML page with rows, progress and quarantine.",
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    option: Options = None,
) -> None:
    """Show a store's spec, its progress, and decoded rows.

    For text, each row shows some positions: the words before, the token that came next and its probability,
    and the teacher's likeliest next tokens. That needs the tokenizer: give the job file instead of the store,
    or --tokenizer. For classes, the likeliest classes and their probabilities.

    \b
      decant inspect job.yaml
      decant inspect runs/store --tokenizer models/teacher --rows 1 --positions 40
      decant inspect s3://bucket/store --quarantine
      decant inspect job.yaml --html store.html

    Next: decant verify STORE, decant train job.yaml
    """
    from jobs import inspection

    if html is not None and (as_json or quarantine):
        other = "--json" if as_json else "--quarantine"
        raise UserError(f"--html and {other}: give one of them (a page has rows and quarantine)")
    rows, positions, entries = (
        default[html is not None] if given is None else given
        for given, default in ((rows, ROWS), (positions, POSITIONS), (entries, ENTRIES))
    )
    opened, named = open_store(store, option)
    words = None
    if (tokenizer or named) and opened.spec.vocabulary is not None:
        words = inspection.load_tokenizer(str(tokenizer or named), opened.spec)
    if html is not None:
        _page(opened, html, words, unit, rows, positions, entries)
        return
    report: dict[str, Any] = {
        "store": opened.url,
        "spec": inspection.spec_data(opened.spec),
        "progress": inspection.progress(opened),
    }
    if quarantine:
        commits = [inspection.find_unit(opened, unit)] if unit else opened.commits()
        report["quarantine"] = [
            {
                "unit": commit.unit,
                "key": item.key,
                "view": item.view,
                "code": item.code,
                "reason": item.reason,
            }
            for commit in commits
            for item in opened.quarantined(commit)
        ]
    else:
        report["rows"] = [
            inspection.describe_row(commit, row, words, positions, entries)
            for commit, row in inspection.rows(opened, rows, unit)
        ]
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
        return
    console = out()
    console.print(_overview(opened, report["progress"]))
    for item in report.get("rows", ()):
        _row(console, item)
    for item in report.get("quarantine", ()):
        view = "" if item["view"] is None else f" (view {item['view']})"
        console.print(f"{item['code']}  {item['key']}{view}: {item['reason']}", soft_wrap=True, markup=False)
    if report.get("rows") and opened.spec.vocabulary is not None and words is None:
        console.print("To see text instead of ids: --tokenizer DIR", markup=False)


def _page(
    store: Store,
    path: Path,
    words: Tokenizer | None,
    unit: str | None,
    rows: int,
    positions: int,
    entries: int,
) -> None:
    from jobs.viewer.page import write_page

    work = Work("read", rows, "rows")
    with Display(work, err()):
        shown = write_page(
            store,
            path,
            tokenizer=words,
            unit=unit,
            rows=rows,
            tokens=positions,
            entries=entries,
            on_row=work.add,
        )
    out().print(f"{path}: {count(shown)} rows, {size(path.stat().st_size)}", soft_wrap=True, markup=False)
    if store.spec.vocabulary is not None and words is None:
        out().print("To see text instead of ids: --tokenizer DIR", markup=False)


def _overview(store: Store, progress: dict[str, Any]) -> Table:
    from jobs.inspection import bars

    spec, target, units = store.spec, progress["target"], progress["units"]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")

    def line(name: str, value: str) -> None:
        table.add_row(escape(name), escape(value))

    line(
        "store", f"{store.url} (format {spec.format_version}, {spec.container}, spec {spec.fingerprint[:12]})"
    )
    line("teacher", _described(spec.teacher))
    line("views", _described(spec.views))
    for head in spec.heads:
        settings = ", ".join(
            f"{key} {_shortened(value)}" for key, value in head.codec.to_json().items() if key != "kind"
        )
        line(f"head {head.name}", f"{count(head.size)} {head.positions}, {head.codec.kind} ({settings})")
    inputs = ", ".join(f"{item.name} {item.dtype} {list(item.shape)}" for item in spec.inputs)
    line("inputs", inputs.replace("None", "…") or "none: the reader needs the corpus")
    line("units", f"{count(units['committed'])} of {count(units['planned'])} labelled")
    line("records", f"{count(progress['records'])}, in {count(progress['rows'])} rows")
    if progress["filtered"]:
        line("filtered", f"{count(progress['filtered'])} records that the corpus's filters leave out")
    line(target, count(progress["targets"]))
    line("quarantined", "{failures} failures, {empty} empty records".format(**progress["quarantined"]))
    if progress["bytes_per_target"] is not None:
        each = target.removesuffix("s")
        line(
            "shards", f"{size(progress['shard_bytes'])}, {progress['bytes_per_target']:.2f} bytes per {each}"
        )
    for name, value in sorted(progress["statistics"].items()):
        unit = " nats" if name.endswith((".entropy", ".label_nll")) else ""
        line(f"mean {name}", f"{value:.4g}{unit}")
    for name, histogram in sorted(progress["histograms"].items()):
        line(name, bars(histogram))
    if progress["targets_per_forward_second"]:
        devices = ", ".join(sorted(progress["devices"]))
        line(
            "throughput",
            f"{count(progress['targets_per_forward_second'])} {target} per second of forward pass, "
            f"{duration(progress['forward_seconds'])} in all ({devices})",
        )
    return table


def _shortened(value: Any) -> str:
    """A codec's setting; a codebook is long."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:20]}… ({count(len(text))} characters)"


def _described(description: Mapping[str, Any]) -> str:
    """A teacher or views, without settings that are off."""
    rest = ", ".join(
        f"{key} {_flow(value)}"
        for key, value in description.items()
        if key not in ("kind", "fingerprint", "labels") and value is not None
    )
    text = f"{description.get('kind')} {str(description.get('fingerprint', ''))[:12]}"
    if not rest:
        return text
    return f"{text} ({rest if len(rest) <= LONGEST else rest[:LONGEST] + ' …'})"


def _flow(value: Any) -> str:
    """A setting as a job file has it, in one line."""
    if isinstance(value, Mapping):
        items = (f"{key}: {_flow(item)}" for key, item in value.items() if item is not None)
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _row(console: Console, item: dict[str, Any]) -> None:
    console.print()
    console.print(
        f"{item['key']}  (view {item['view'] + 1} of {item['views']}, unit {item['unit'][:12]})",
        style="bold",
        soft_wrap=True,
        markup=False,
    )
    for name, value in item["inputs"].items():
        if name == "tokens":
            console.print(f"{len(value)} tokens", style="dim")
            if "text" in item:
                console.print(_visible(item["text"][:TEXT]), markup=False)
        else:
            console.print(f"{name}: {value}", style="dim", markup=False)
    for head, targets in item["heads"].items():
        if any("norm" in target for target in targets):
            console.print(_vectors(head, targets))
            continue
        table = Table(box=None, padding=(0, 2, 0, 0), title=None, header_style="dim")
        text_row = any("next" in target for target in targets)
        if text_row:
            table.add_column("at", justify="right", no_wrap=True)
            table.add_column("after", no_wrap=True, overflow="ellipsis", max_width=28, justify="right")
            table.add_column("came", no_wrap=True)
            table.add_column("p", justify="right", no_wrap=True)
        table.add_column("kept", justify="right", no_wrap=True)
        table.add_column(f"{head}: the teacher's likeliest", overflow="fold")
        for target in targets:
            likeliest = "  ".join(
                f"[bold]{escape(_name(entry))}[/] {entry['probability']:.3f}" for entry in target["likeliest"]
            )
            cells = [str(target["entries"]), likeliest]
            if text_row:
                came = target["next"]
                context = "" if target["context"] is None else _visible(target["context"])
                first = [str(target["position"]), escape(context), escape(_name(came))]
                cells = [*first, f"{came['probability']:.3f}", *cells]
            table.add_row(*cells)
        console.print(table)


def _vectors(head: str, targets: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("at", justify="right", no_wrap=True)
    table.add_column("norm", justify="right", no_wrap=True)
    table.add_column(f"{head}: the first values", overflow="fold")
    for target in targets:
        values = "  ".join(f"{value:.4g}" for value in target["values"])
        table.add_row(str(target["position"]), f"{target['norm']:.4g}", f"{values}  …")
    return table


def _name(entry: dict[str, Any]) -> str:
    """A token or class: its text, or its number if it has none or is but a part of a character."""
    text = entry["text"]
    return f"#{entry['id']}" if not text or "\ufffd" in text else _visible(text)


def _visible(text: str) -> str:
    """Blanks and line ends made visible, control characters escaped: nothing can move the cursor."""
    shown = text.replace(" ", "·").replace("\n", "⏎").replace("\t", "→")
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in shown)
