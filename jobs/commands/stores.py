"""`decant verify`, `decant compact` and `decant gc`: the upkeep of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from jobs.commands.arguments import Options, StoreUrl, open_store
from jobs.progress import Display, Work
from jobs.terminal import count, err, out

if TYPE_CHECKING:
    from pipeline.targets.store import Store
    from pipeline.targets.verify import Verification

MOST = 20
"""Problems and names that are printed one by one."""


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(verify)
    app.command()(compact)
    app.command()(gc)


def verify(
    store: StoreUrl,
    discard: Annotated[
        bool,
        typer.Option("--discard", help="Take damaged units out, so that decant label does them again."),
    ] = False,
    option: Options = None,
) -> None:
    """Read a whole store, and say whether all is well.

    Checksums, schema, counts, and that each record is there exactly once. Leaves with code 1 if anything is
    wrong, and names each shard. Units that are planned but not labelled yet are counted, and are no fault.

    \b
      decant verify runs/store
      decant verify runs/store --discard && decant label job.yaml

    Next: decant train job.yaml
    """
    opened, _ = open_store(store, option)
    result = verified(opened)
    if not result.problems:
        return
    damaged = {problem.unit for problem in result.problems if problem.unit}
    console = out()
    if discard and damaged:
        opened.discard(damaged)
        console.print(f"took {count(len(damaged))} units out: decant label does them again")
    else:
        console.print(
            f"{count(len(result.problems))} problems. To label the damaged units again: "
            "decant verify STORE --discard, then decant label job.yaml"
        )
    raise typer.Exit(1)


def verification(store: Store) -> Verification:
    """Reads all of a store while a person watches."""
    work = Work("verified", len(store.committed()), "units")
    with Display(work, err()):
        return store.verify(lambda commit: work.add())


def verified(store: Store) -> Verification:
    """Reads all of a store while a person watches, and prints what was found."""
    result = verification(store)
    console = out()
    for problem in result.problems[:MOST]:
        console.print(f"{problem.shard or problem.unit}: {problem.reason}", soft_wrap=True, markup=False)
    if len(result.problems) > MOST:
        console.print(f"and {len(result.problems) - MOST} more")
    console.print(
        f"{count(result.shards)} shards, {count(result.rows)} rows, {count(result.targets)} targets, "
        f"{count(result.quarantined)} quarantined; {count(result.missing_units)} planned units are not "
        "labelled yet"
    )
    if not result.problems:
        console.print("all of it is whole")
    return result


def compact(store: StoreUrl, option: Options = None) -> None:
    """Fold commit records into the manifest.

    The store opens faster then. decant label does it at its end. It is safe at any time, also while a job is
    labelling into the store.
    """
    opened, _ = open_store(store, option)
    out().print(
        f"{count(opened.compact())} units in the manifest of {opened.url}", soft_wrap=True, markup=False
    )


def gc(
    store: StoreUrl,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that a file must be old. Longer than any unit takes.")
    ] = 3600.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Name what would go, and remove nothing.")
    ] = False,
    option: Options = None,
) -> None:
    """Remove files that nothing in a store refers to.

    That is what killed or beaten attempts left behind.

    \b
      decant gc runs/store --dry-run
    """
    opened, _ = open_store(store, option)
    names = opened.gc(grace, delete=not dry_run)
    console = out()
    for name in names[:MOST]:
        console.print(name, soft_wrap=True, markup=False)
    if len(names) > MOST:
        console.print(f"and {len(names) - MOST} more")
    console.print(f"{count(len(names))} files {'would go' if dry_run else 'removed'}")
