"""Whether a labelled store is whole, and what it weighs: every record looked for, every shard read again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rich.table import Table

from jobs.demo.labelling import Timeline
from jobs.demo.results import Bytes, Labelling, StoreResult
from jobs.demo.settings import HEAD
from jobs.demo.stages import Stages
from jobs.terminal import count
from jobs.totals import Totals
from pipeline.job import LabelJob
from pipeline.targets.codecs import Dense
from pipeline.targets.errors import LabellingFailed
from pipeline.targets.shards import shards_of
from pipeline.targets.store import Store
from pipeline.targets.verify import Verification
from student.order import blocks_of

TOPK = (8, 16, 64, 128)
"""Values of k that the store's size is compared with."""


@dataclass
class Account:
    """Records of the plan against records of the store."""

    planned: int = 0
    labelled: int = 0
    quarantined: int = 0
    lost: int = 0
    doubled: int = 0


def account(job: LabelJob, store: Store) -> Account:
    """Counts every record by reading the corpus again and every shard.

    A record is complete when all its windows are there as rows, or it is in quarantine as a whole; it is
    doubled when anything of it is there twice.
    """
    wanted = Counter(item.key for unit in store.planned() for item in job.corpus.read(unit))
    windows: Counter[tuple[str, int]] = Counter()
    expected: dict[str, int] = {}
    whole: Counter[str] = Counter()
    for commit in store.commits():
        for rows in store.read(commit):
            for key, view, views in zip(rows.keys, rows.view.tolist(), rows.views.tolist(), strict=True):
                windows[key, view] += 1
                expected[key] = views
        for item in store.quarantined(commit):
            if item.view is None:
                whole[item.key] += 1
            else:
                windows[item.key, item.view] += 1
    have = Counter(key for key, _ in windows)
    doubled = {key for (key, _), times in windows.items() if times > 1}
    doubled |= {key for key, times in whole.items() if times > 1 or key in have}
    complete = {key for key, views in expected.items() if have[key] == views} | set(whole)
    return Account(
        planned=len(wanted),
        labelled=len(expected),
        quarantined=len(whole),
        lost=len(set(wanted) - complete),
        doubled=len(doubled),
    )


def verified(
    job: LabelJob, store: Store, timeline: Timeline, stages: Stages
) -> tuple[StoreResult, Labelling]:
    """The store's figures and the labelling's. Raises LabellingFailed when anything is missing or wrong."""
    with stages.stage(
        "Was anything lost or doubled?",
        "Every shard is read again and its checksum compared; every record of the corpus is looked for.",
    ):
        verification = store.verify()
        found = account(job, store)
        garbage = store.gc(grace_seconds=0.0)
        result = store_result(store, HEAD, verification)
        grid = Table.grid(padding=(0, 2))
        for _ in range(2):
            grid.add_column()
        for name, value, good in (
            ("records planned", count(found.planned), True),
            ("  labelled", count(found.labelled), True),
            ("  in quarantine, with a reason (empty files)", count(found.quarantined), True),
            ("  lost", count(found.lost), found.lost == 0),
            ("  doubled", count(found.doubled), found.doubled == 0),
            ("shards verified", count(verification.shards), True),
            ("  with problems", count(len(verification.problems)), not verification.problems),
            ("units without a commit", count(verification.missing_units), not verification.missing_units),
            ("files that the killed replica left, removed", count(len(garbage)), True),
        ):
            grid.add_row(f"[dim]{name}[/]", value if good else f"[bold red]{value}[/]")
        stages.table(grid)
        if timeline.kill is not None:
            recovered = timeline.kill.recovered
            stages.say(
                f"replica {timeline.kill.replica} was killed after {timeline.kill.at:.1f} s and "
                f"{timeline.kill.committed} commits; "
                + (
                    f"the one in its place had its first unit in {recovered - timeline.kill.at:.1f} s later"
                    if recovered is not None
                    else "the others did the rest before another one was up"
                )
            )
        stages.table(_sizes(result))
    if found.lost or found.doubled or verification.problems or verification.missing_units:
        raise LabellingFailed(
            f"{found.lost} records are lost, {found.doubled} doubled, {verification.missing_units} units "
            f"missing, and {len(verification.problems)} problems found in {store.url}"
        )
    return result, Labelling(
        seconds=timeline.seconds,
        units=timeline.units,
        kill=timeline.kill,
        records_planned=found.planned,
        records_labelled=found.labelled,
        records_quarantined=found.quarantined,
        records_lost=found.lost,
        records_doubled=found.doubled,
    )


def store_result(store: Store, head_name: str, verification: Verification) -> StoreResult:
    """A store's figures; of a head that is stored dense, none of what only sparse ones have."""
    totals, head = Totals.of(store.commits()), store.spec.head(head_name)
    statistics, sparse = totals.statistics, not isinstance(head.codec, Dense)
    stored = sum(entry.size for entry in store.storage.list(""))
    id_bytes = 2 if head.size <= 1 << 16 else 4
    return StoreResult(
        url=store.url,
        codec=head.codec.to_json(),
        vocabulary=head.size,
        units=totals.units,
        records=totals.records,
        rows=totals.rows,
        targets=totals.targets,
        bytes=stored,
        shard_bytes=totals.shard_bytes,
        bytes_per_target=Bytes(
            shards=totals.shard_bytes / totals.targets,
            store=stored / totals.targets,
            dense_float32=4.0 * head.size,
            dense_float16=2.0 * head.size,
            topk={k: k * (id_bytes + 2.0) + 4 for k in TOPK} if sparse else {},
        ),
        entries_per_target=statistics[f"{head_name}.entries"] if sparse else None,
        captured_mass=statistics[f"{head_name}.captured_mass"] if sparse else None,
        entropy_mean=statistics[f"{head_name}.entropy"],
        entropy_histogram=totals.histograms[f"{head_name}.entropy"],
        verified_shards=verification.shards,
        problems=len(verification.problems),
    )


def _sizes(result: StoreResult) -> Table:
    """The store's size beside what other ways would take."""
    table = Table(box=None, padding=(0, 2), title="bytes per token", title_justify="left", title_style="bold")
    table.add_column("what is kept of the teacher's distribution", style="dim")
    table.add_column("bytes", justify="right")
    cost, codec = result.bytes_per_target, result.codec
    entries, mass = result.entries_per_target, result.captured_mass
    table.add_row(f"all {count(result.vocabulary)} probabilities, float16", f"{cost.dense_float16:,.0f}")
    for k, value in sorted(cost.topk.items(), reverse=True):
        table.add_row(
            f"top {k}: ids, float16 values, the tail's mass (biased by what it drops)", f"{value:,.0f}"
        )
    table.add_row(
        f"threshold {codec['threshold']}: {entries:.1f} entries, {mass:.0%} of the mass kept, the rest "
        "sampled: unbiased",
        f"[bold green]{cost.shards:.1f}[/]",
    )
    table.add_row("  the same with commit records, plan, manifest, quarantine", f"{cost.store:.1f}")
    return table


def held_out_nll(store: Store, holdout: float) -> float:
    """The teacher's loss on the labels of the held-out shards, nats per token, from their commit records."""
    units = {block.shard.unit for block in blocks_of(shards_of(store), "holdout", holdout)}
    held = [commit for commit in store.commits() if commit.unit in units]
    total = sum(commit.statistics[f"{HEAD}.label_nll"] * commit.targets for commit in held)
    return total / sum(commit.targets for commit in held)
