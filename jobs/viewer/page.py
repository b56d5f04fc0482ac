"""The page: figures of the store and its quarantine as HTML, rows as data for the script that draws them.

Nothing that a store holds becomes markup. What stands in the HTML is escaped; what the script draws is JSON
without a single "<", set as text. And should both fail, the page's policy runs this one script and no other,
and lets nothing be loaded from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version
from importlib.resources import files
from itertools import islice
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from jobs import inspection
from jobs.report import parts
from jobs.report.words import number, plural
from jobs.terminal import size
from jobs.viewer.data import RARITY, Builder
from pipeline.targets.spec import TOKENS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from pipeline.targets.commit import Commit
    from pipeline.targets.store import Store

QUARANTINED = 500
"""Lines of quarantine that are listed."""

DESCRIBED = 400
"""Characters of a description that are shown."""


def write_page(
    store: Store,
    path: Path,
    *,
    tokenizer: Tokenizer | None = None,
    unit: str | None = None,
    rows: int = 200,
    tokens: int = 512,
    entries: int = 12,
    on_row: Callable[[], None] = lambda: None,
) -> int:
    """Writes one self-contained HTML file; how many rows are on it.

    tokenizer: without one, tokens are numbers. unit: the first digits of the unit whose rows are shown, None
    for the first rows of the corpus. rows: at most; tokens: of each; entries: likeliest classes of each
    target. on_row: called after each row. Raises UserError for a unit that is not there, CorruptShard.
    """
    builder = Builder(store.spec, tokenizer, tokens, entries)
    found = []
    for commit, row in inspection.rows(store, rows, unit):
        found.append(builder.row(commit, row))
        on_row()
    data = {"rarity": RARITY, "heads": builder.heads(), "rows": found}
    progress = inspection.progress(store)
    script = _read("script.js")
    html = Template(_read("page.html")).substitute(
        title=escape(f"Decant: {store.url}"),
        version=escape(version("decant-kd")),
        store=escape(store.url),
        finished=f"{datetime.now(UTC):%d %B %Y, %H:%M} UTC".lstrip("0"),
        style=_file("jobs.report", "style.css") + _read("style.css"),
        headline=parts.plain(_headline(progress)),
        cards=parts.cards(_cards(progress)),
        progress=_progress(store, progress),
        quarantine=_quarantine(store, progress, unit),
        rows_title=f"{plural(len(found), 'row')} of {progress['rows']:,}",
        rows_note=_note(store, tokenizer, unit),
        data=_json(data),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    temporary = path.with_name(f"{path.name}.tmp")
    # A text from a JSON file may hold half of a surrogate pair, which UTF-8 cannot.
    temporary.write_text(html, encoding="utf-8", errors="xmlcharrefreplace")
    temporary.replace(path)
    return len(found)


def _json(data: Any) -> str:
    """JSON that no HTML parser reads anything else into: ASCII without "<" (no end of script, no comment)."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _headline(progress: dict[str, Any]) -> str:
    if not progress["units"]["committed"]:
        return "Nothing is labelled yet."
    each = progress["bytes_per_target"]
    cost = "" if each is None else f", {number(each)} bytes each"
    return f"{progress['targets']:,} {progress['target']}{cost}"


def _cards(progress: dict[str, Any]) -> list[str]:
    units, away, each = progress["units"], progress["quarantined"], progress["bytes_per_target"]
    figure, _, unit = size(progress["shard_bytes"]).partition(" ")
    cost = "" if each is None else f", {number(each)} bytes per {progress['target'].removesuffix('s')}"
    failed = f"{plural(away['failures'], 'failure')} and {away['empty']:,} empty"
    return [
        parts.card(f"{units['committed']:,}", f"of {units['planned']:,}", "units labelled"),
        parts.card(f"{progress['records']:,}", "", f"records, in {plural(progress['rows'], 'row')}"),
        parts.card(figure, unit, f"of shards{cost}"),
        parts.card(f"{away['failures'] + away['empty']:,}", "", f"in quarantine: {failed}"),
    ]


def _progress(store: Store, progress: dict[str, Any]) -> str:
    units = progress["units"]
    share = units["committed"] / units["planned"] if units["planned"] else 0.0
    out = [
        "<h2>Progress</h2>",
        parts.paragraph(
            f"{units['committed']:,} of {plural(units['planned'], 'unit')} committed, {100 * share:.0f} %."
        ),
        f'<div class="share" aria-hidden="true">{parts.bar(share, "")}</div>',
    ]
    for name, counts in sorted(progress["histograms"].items()):
        if name.endswith(".entropy") and sum(counts):
            out.append(_histogram(name.removesuffix(".entropy"), counts, progress))
    spec, statistics = store.spec, progress["statistics"]
    means = {f"mean {name}": value for name, value in sorted(statistics.items())}
    if means:
        out.append(parts.definitions("Means per target", means))
    declared: dict[str, Any] = {"format": f"version {spec.format_version}, {spec.container}"}
    for head in spec.heads:
        codec = json.dumps(head.codec.to_json(), ensure_ascii=False)[:DESCRIBED]  # codebooks are long
        declared[f"head {head.name}"] = f"{head.size:,} classes, {head.positions}: {codec}"
    for item in spec.inputs:
        extents = ("…" if extent is None else str(extent) for extent in item.shape)
        declared[f"input {item.name}"] = f"{item.dtype} [{', '.join(extents)}]"
    declared["teacher"] = json.dumps(dict(spec.teacher), ensure_ascii=False)[:DESCRIBED]
    declared["views"] = json.dumps(dict(spec.views), ensure_ascii=False)[:DESCRIBED]
    declared |= {"seed": spec.seed, "fingerprint": spec.fingerprint}
    out.append(parts.definitions("What the store declares", declared))
    return "".join(out)


def _histogram(head: str, counts: list[int], progress: dict[str, Any]) -> str:
    """Of the teacher's entropies as they were before encoding, from the commit records."""
    bins, top = max(i for i, count in enumerate(counts) if count) + 1, max(counts)
    nats = bins * inspection.ENTROPY_BIN_NATS
    bars = "".join(
        f'<rect x="{i + 0.06:.2f}" width="0.88" y="{100 - 100 * count / top:.2f}" '
        f'height="{100 * count / top:.2f}"><title>{_span(i)}: {count:,}</title></rect>'
        for i, count in enumerate(counts[:bins])
    )
    ticks = "".join(f'<span style="left:{100 * at / nats:.2f}%">{at}</span>' for at in range(int(nats) + 1))
    caption = f"Entropy of the teacher, nats (head {head})"
    if (mean := progress["statistics"].get(f"{head}.entropy")) is not None:
        caption += f": {mean:.2f} on average"
    measured = sum(counts)
    if measured < progress["targets"]:
        caption += f"; measured on {measured:,} of {progress['targets']:,} {progress['target']}"
    return (
        f'<figure class="histogram"><svg viewBox="0 0 {bins} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(caption)}">{bars}</svg><div class="ticks">{ticks}</div>'
        f"<figcaption>{parts.plain(caption)}.</figcaption></figure>"
    )


def _span(index: int) -> str:
    width = inspection.ENTROPY_BIN_NATS
    return f"{index * width:g} to {(index + 1) * width:g} nats"


def _quarantine(store: Store, progress: dict[str, Any], unit: str | None) -> str:
    total = sum(progress["quarantined"].values())
    commits: Iterable[Commit] = store.commits()
    if unit is not None:
        commits = [inspection.find_unit(store, unit)]
        total = commits[0].quarantined
    if not total:
        return "<h2>Quarantine</h2>" + parts.paragraph("Nothing is in quarantine.")
    away = ((commit, item) for commit in commits for item in store.quarantined(commit))
    lines = list(islice(away, QUARANTINED))
    columns = [
        parts.Column("code"),
        parts.Column("record"),
        parts.Column("reason"),
        parts.Column("unit", optional=True),
    ]
    rows = [
        [
            f"<code>{escape(item.code)}</code>",
            f"<bdi>{escape(item.key)}</bdi>" + ("" if item.view is None else f", view {item.view + 1}"),
            f"<bdi>{escape(item.reason)}</bdi>",
            f"<code>{commit.unit[:12]}</code>",
        ]
        for commit, item in lines
    ]
    whose = "" if unit is None else f", of unit {unit}"
    table = parts.table(columns, rows, f"{len(lines):,} of {total:,} lines{whose}.")
    return f'<h2>Quarantine</h2><div class="window" tabindex="0">{table}</div>'


def _note(store: Store, tokenizer: Tokenizer | None, unit: str | None) -> str:
    notes = [f"Of unit {unit}." if unit else "In the order of the corpus."]
    if any(item.name == TOKENS for item in store.spec.inputs):
        notes.append(
            "Point at a token, or walk with the arrow keys, to see what the teacher expects after it."
        )
        if tokenizer is None:
            notes.append("Tokens are numbers here: give the job file or --tokenizer to see text.")
    return parts.paragraph(" ".join(notes), "note")


def _read(name: str) -> str:
    return _file("jobs.viewer", name)


def _file(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text("utf-8")
