"""`decant import` and `decant export`: other systems' stored targets in, plain columns out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.commands.arguments import Options, StoreUrl, open_store
from jobs.progress import Display, Work
from jobs.terminal import count, err, out, size

if TYPE_CHECKING:
    from pipeline.interchange import Importer
    from pipeline.targets.commit import Commit

CONFIG = "compression_config.yaml"
"""What DistillKit writes beside the logits that it captures."""


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("import")(import_)
    app.command()(export)


def import_(
    format: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT", help="distillkit, topk-columns, tinyvit, arrays or zarr.", show_default=False
        ),
    ],
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A file or folder, or its URL.", show_default=False)
    ],
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="The store's directory or URL.", show_default=False)
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="distillkit: the compression's config (YAML or JSON), or a run's config that holds it. "
            f"By default SOURCE/{CONFIG}.",
            dir_okay=False,
        ),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Classes of the head: the vocabulary's size V.")] = None,
    k: Annotated[int | None, typer.Option(help="topk-columns, tinyvit: classes kept of each target.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="DIR", help="The teacher's tokenizer, to be held to from now on.")
    ] = None,
    alignment: Annotated[
        str | None,
        typer.Option(help='"next": a target at its token\'s place tells the next token; "self": that token.'),
    ] = None,
    values: Annotated[
        str | None, typer.Option(help='"log_probs", or "logits" whose normaliser is lost.')
    ] = None,
    member: Annotated[str | None, typer.Option(help="arrays, zarr: which of several arrays.")] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            metavar="KIND:KEY=VALUE,…",
            help="arrays, zarr: how the store keeps the logits, for example threshold:threshold=0.02.",
        ),
    ] = None,
    source_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY.SUB=VALUE", help="An fsspec option of SOURCE.", show_default=False),
    ] = None,
    option: Options = None,
) -> None:
    """Make a store of targets that another system has stored.

    The source is read once to know its content by, then a unit at a time into the store; run the same command
    again to resume. A row that is broken goes to quarantine with its reason, a file that is broken or
    half-written is refused. What each format keeps and loses: docs/interchange.md.

    \b
      decant import distillkit captured/ runs/store --config compression_config.yaml
      decant import topk-columns kd.parquet runs/store --size 151936 --k 64 --tokenizer models/teacher
      decant import tinyvit teacher_logits/ runs/store --size 21841
      decant import arrays logits/ runs/store --codec threshold:threshold=0.02

    Next: decant verify STORE, decant inspect STORE
    """
    from jobs.document import assign
    from pipeline.interchange import FORMATS, Source, importing
    from pipeline.targets.errors import ConfigError
    from pipeline.targets.strict import nearest

    if format not in FORMATS:
        raise ConfigError(f'unknown format "{format}"{nearest(format, FORMATS)}')
    given = {
        "size": size,
        "k": k,
        "tokenizer": tokenizer,
        "alignment": alignment,
        "values": values,
        "member": member,
        "codec": None if codec is None else _codec(codec),
        "compression": _compression(config, source) if format == "distillkit" or config else None,
    }
    importer = _importer(format, {name: value for name, value in given.items() if value is not None})
    source_options: dict[str, Any] = {}
    for item in source_option or ():
        assign(source_options, item)
    store_options: dict[str, Any] = {}
    for item in option or ():
        assign(store_options, item)
    files = Source(source, importer.patterns, source_options)
    checked = Work("checksums:", files.size, "bytes")
    with Display(checked, err()):
        files.fingerprint(checked.add)
    opened = importing.prepare(importer, files, store, store_options)
    planned, before = opened.planned_count(), len(opened.committed())
    work = Work("imported", planned, "units", before)
    if before < planned:
        with Display(work, err()):
            for _ in importing.run(importer, files, opened):
                work.add()
    opened.compact()
    _summary(list(opened.commits()), opened.url)


def export(
    store: StoreUrl,
    destination: Annotated[
        str, typer.Argument(metavar="DEST", help="The folder or URL for the files.", show_default=False)
    ],
    format: Annotated[str, typer.Option(help='"topk-columns": what axolotl-style trainers read.')] = (
        "topk-columns"
    ),
    head: Annotated[str | None, typer.Option(help="Which of several heads.")] = None,
    k: Annotated[int, typer.Option(min=1, help="Classes of a target, at most, the likeliest.")] = 128,
    alignment: Annotated[
        str, typer.Option(help='"next", as the trainer compares today, or "self", one place later.')
    ] = "next",
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Scale what is kept of a target to sum to one.")
    ] = False,
    option: Options = None,
) -> None:
    """Write a store's targets as plain top-k columns in Parquet files, one a unit.

    Run the same command again to resume. A "threshold" head gives its sampled weights; see
    docs/interchange.md for what that means.

    \b
      decant export runs/store exported/ --k 64
    """
    from pipeline.interchange import exporting
    from pipeline.targets.errors import ConfigError
    from pipeline.targets.storage import Storage

    if format != "topk-columns":
        raise ConfigError(f'unknown format "{format}" (known: topk-columns)')
    if alignment not in ("next", "self"):
        raise ConfigError(f'alignment: "next" or "self", not "{alignment}"')
    opened, _ = open_store(store, option)
    names = [item.name for item in opened.spec.heads]
    if head is None and len(names) > 1:
        raise ConfigError(f"{opened.url} has several heads ({', '.join(names)}): name one with --head")
    settings = exporting.TopKExport(head or names[0], k, "next" if alignment == "next" else "self", normalize)
    place = Storage(destination)
    commits = exporting.prepare(opened, place, settings)
    work, rows = Work("exported", len(commits), "units"), 0
    with Display(work, err()):
        for commit in exporting.run(opened, place, settings, commits):
            work.add()
            rows += commit.rows
    out().print(
        f"exported: {count(rows)} rows in {count(work.done)} files to {place.url}",
        soft_wrap=True,
        markup=False,
    )


def _importer(format: str, given: dict[str, Any]) -> Importer:
    """Raises ConfigError that names the option which the format has not, or lacks."""
    from pydantic import ValidationError

    from jobs.problems import sentences
    from pipeline.interchange import FORMATS
    from pipeline.targets.errors import ConfigError

    model = FORMATS[format]
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise ConfigError(f"{format}: {'; '.join(sentences(error, model))}") from error


def _codec(text: str) -> dict[str, Any]:
    """ "threshold:threshold=0.02" as the codec's JSON. Raises ConfigError."""
    import yaml

    from pipeline.targets.errors import ConfigError

    kind, _, rest = text.partition(":")
    try:
        found = yaml.safe_load("{" + rest.replace("=", ": ") + "}")
    except yaml.YAMLError as error:
        raise ConfigError(f'codec: "{text}" is not KIND:KEY=VALUE,…') from error
    return {"kind": kind, **found}


def _compression(config: Path | None, source: str) -> Any:
    from pipeline.interchange.distillkit import compression_of
    from pipeline.targets.errors import UserError

    path = config or Path(source) / CONFIG
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read: give the config that the logits were captured with as --config"
        ) from error
    return compression_of(text, str(path))


def _summary(commits: list[Commit], url: str) -> None:
    from jobs.totals import Totals

    totals = Totals.of(commits)
    out().print(
        f"imported: {count(totals.records)} records in {count(totals.units)} units, {count(totals.targets)} "
        f"targets, {size(totals.shard_bytes)}, {count(totals.failures)} failures in quarantine",
        soft_wrap=True,
        markup=False,
    )
    out().print(f"Next: decant verify {url}", soft_wrap=True, markup=False)
