"""What the report says of the digits leg: some digits, and the table of test errors."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from jobs.demo.results import DigitSample, DigitsLeg, DigitsRow
from jobs.report.parts import Column, Group, Row, bar, card, definitions, paragraph, plain, table
from jobs.report.words import over_seeds, spread
from jobs.terminal import count, duration, size


def headline(leg: DigitsLeg) -> str:
    """The page's first line, when there is no text leg."""
    return f"A shallow net learned digits from what an ensemble said: {_percent(_best(leg, 'store'))} errors."


def cards(leg: DigitsLeg) -> list[str]:
    """Headline figures."""
    few = _best(leg, "few")
    return [
        card(
            _percent(_best(leg, "store")),
            "test errors",
            f"of a shallow net that learned handwritten digits from the store. The same net has "
            f"{_percent(few)} from {few.teaches}, and its teacher {_percent(_best(leg, 'teacher'))}.",
        )
    ]


def section(leg: DigitsLeg) -> str:
    """Samples and the table."""
    store = leg.store
    sure, unsure = leg.samples[: len(leg.samples) // 2], leg.samples[len(leg.samples) // 2 :]
    return "".join(
        [
            "<h2>Digits: a shallow net that mimics an ensemble</h2>",
            paragraph(
                "Ba and Caruana's experiment, small. An ensemble learns scikit-learn's handwritten digits, "
                f"then gives its logits for {count(store.records)} jittered digits that have no label "
                f"({duration(leg.labelling_seconds)}; {size(store.shard_bytes)} with the images). A net with "
                "one hidden layer behind a linear bottleneck learns from that store and, to compare, from "
                "labels."
            ),
            table(_COLUMNS, _rows(leg), _caption(leg)),
            paragraph(
                "The net that learns from the store is given no label, but its teacher has seen them all. So "
                "the last line, for comparison, gives them all to the net itself.",
                "note",
            ),
            "<h3>What the store says</h3>",
            paragraph("Some unlabelled digits, with the classes that the teacher holds likeliest:"),
            _gallery(sure),
            paragraph("And those of their shard that it is least sure of, which no hard label could tell:"),
            _gallery(unsure),
        ]
    )


_COLUMNS = (
    Column("learns from"),
    Column("how"),
    Column("test errors", number=True, optional=True),
    Column("in %", number=True),
    Column("", kind="bar", optional=True),
)


def _rows(leg: DigitsLeg) -> list[Row]:
    largest = max(mean(row.test_errors) for row in leg.table)
    teachers = [row for row in leg.table if row.kind in ("teacher", "member")]
    students = [row for row in leg.table if row.kind not in ("teacher", "member")]
    rows: list[Row] = []
    for title, group in (("The teacher", teachers), ("The shallow net", students)):
        if not group:
            continue
        rows.append(Group(f"{title}, {_weights(group)}"))
        rows += [_row(row, leg.test_examples, largest) for row in group]
    return rows


def _row(row: DigitsRow, examples: int, largest: float) -> list[str]:
    kind = {"teacher": "teacher", "member": "teacher", "few": "few", "store": "store", "all": "all"}[row.kind]
    strong = ("<b>", "</b>") if row.kind == "store" else ("", "")
    share = mean(row.test_errors)
    return [
        plain(row.teaches),
        plain(row.name),
        f"{examples * share:.1f}",
        spread([100 * error for error in row.test_errors], 1).join(strong),
        bar(share / largest if largest else 0, kind),
    ]


def _weights(rows: Sequence[DigitsRow]) -> str:
    return f"{max(row.parameters for row in rows):,} weights"


def _caption(leg: DigitsLeg) -> str:
    runs = max(len(row.test_errors) for row in leg.table if row.kind == "store")
    return (
        f"Errors among {leg.test_examples} test digits of one split. Students: {over_seeds(runs)} of the "
        "weights, the order and the choice of the few labels; all take the same steps with the same "
        "optimiser. The ensemble's networks: over the networks."
    )


def _gallery(samples: Sequence[DigitSample]) -> str:
    return f'<div class="digits">{"".join(map(_digit, samples))}</div>'


def _digit(sample: DigitSample) -> str:
    """One digit, and below it the likeliest classes with the teacher's probabilities."""
    levels: dict[int, list[str]] = {}
    for i, pixel in enumerate(sample.pixels):
        level = round(pixel / 255 * 16)
        if level:
            levels.setdefault(level, []).append(f"M{i % 8} {i // 8}h1v1h-1z")
    ink = "".join(
        f'<path d="{"".join(cells)}" opacity="{level / 16:.2g}"/>' for level, cells in sorted(levels.items())
    )
    order = sorted(range(len(sample.probabilities)), key=lambda i: -sample.probabilities[i])
    likely = [i for i in order[:3] if i == order[0] or sample.probabilities[i] >= 0.01]
    said = "<br>".join(f"{i}: {100 * sample.probabilities[i]:.0f} %" for i in likely)
    return (
        f'<figure class="digit"><svg viewBox="0 0 8 8" shape-rendering="crispEdges" role="img" '
        f'aria-label="a jittered digit">{ink}</svg><figcaption>{said}</figcaption></figure>'
    )


def _best(leg: DigitsLeg, kind: str) -> DigitsRow:
    return min((row for row in leg.table if row.kind == kind), key=lambda row: mean(row.test_errors))


def _percent(row: DigitsRow) -> str:
    return f"{100 * mean(row.test_errors):.1f} %"


def settings(leg: DigitsLeg) -> str:
    """What was set, folded away."""
    store = {
        "store": leg.store.url,
        "codec": ", ".join(f"{name} {value}" for name, value in leg.store.codec.items()),
        "units": leg.store.units,
        "seconds_of_the_leg": round(leg.seconds, 1),
    }
    return definitions("Settings of the digits leg", {**leg.settings, **store})
