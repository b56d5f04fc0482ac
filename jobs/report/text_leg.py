"""What the report says of the text leg: labelling, the store, and the two students."""

from __future__ import annotations

from math import log
from statistics import mean

from jobs.demo.results import Labelling, StoreResult, TextLeg
from jobs.report import figures
from jobs.report.parts import Column, card, checks, definitions, figure, paragraph, table
from jobs.report.timeline import timeline
from jobs.report.words import number, over_seeds, plural, spread
from jobs.terminal import count, duration, size


def headline(leg: TextLeg) -> str:
    """The page's first line."""
    bytes_each = number(leg.store.bytes_per_target.shards)
    return f"What a teacher said about {count(leg.store.targets)} tokens, kept in {bytes_each} bytes each."


def cards(leg: TextLeg) -> list[str]:
    """Headline figures."""
    cost = leg.store.bytes_per_target
    tokens, store = mean(leg.finals("tokens")), mean(leg.finals("store"))
    lower = "lower" if store < tokens else "higher"
    labelling = leg.labelling
    return [
        card(
            number(cost.shards),
            "bytes per token",
            f"for targets, token ids and keys. All {leg.store.vocabulary:,} logits in float16 would take "
            f"{number(cost.dense_float16)}, {number(cost.dense_float16 / cost.shards)} times as much.",
        ),
        card(
            f"{abs(tokens - store):.3f}",
            f"nats per token {lower}",
            f"is the validation loss of the student from the store ({store:.3f}) than of the same student "
            f"from the tokens alone ({tokens:.3f}), after the same steps.",
        ),
        card(
            f"{labelling.records_lost} lost, {labelling.records_doubled} doubled",
            "",
            f"of {plural(labelling.records_planned, 'record')}"
            + (
                f", although a replica was killed {labelling.kill.at:.0f} seconds into the labelling."
                if labelling.kill
                else ": the store was complete from an earlier run."
            ),
        ),
    ]


def sections(leg: TextLeg) -> list[str]:
    """The leg from labelling to students."""
    return [_labelling(leg), _cost(leg), _students(leg)]


def _labelling(leg: TextLeg) -> str:
    labelling, store = leg.labelling, leg.store
    replaced = labelling.kill is not None and labelling.kill.recovered is not None
    replicas = len({unit.replica for unit in labelling.units}) - replaced
    rate = sum(unit.targets for unit in labelling.units) / labelling.seconds if labelling.seconds else 0
    parts = [
        "<h2>Labelling, and a replica killed on the way</h2>",
        paragraph(
            f"The corpus is what this machine has anyway: {plural(leg.corpus_files, 'Python file')}, "
            f"{size(leg.corpus_bytes)}. A part of it trained the teacher, a causal language model of "
            f"{count(leg.teacher.parameters)} weights. Of the others it labelled, on Ray with "
            f"{plural(replicas, 'replica')}, {count(store.targets)} tokens in {duration(labelling.seconds)}, "
            f"{count(rate)} a second."
        ),
    ]
    if labelling.units:
        parts.append(figure(timeline(labelling)))
        parts.append(
            paragraph(
                "Each bar is a unit of work, from its start to its commit; a unit becomes part of the store "
                "in one atomic step at its end. Two bars of a replica overlap where it opened a unit while "
                "it was still writing another.",
                "note",
            )
        )
    return "".join([*parts, _kill(labelling), _verified(labelling, store)])


def _kill(labelling: Labelling) -> str:
    kill = labelling.kill
    if kill is None:
        return paragraph("Nothing was killed: the store was complete from an earlier run.")
    text = (
        f"At {kill.at:.1f} s the demo killed replica {kill.replica} by signal 9, which nothing can catch. "
        f"{plural(kill.committed, 'unit')} had been committed by then. What it had begun went to others"
    )
    if kill.recovered is not None:
        text += (
            f", and a new replica committed its first unit {kill.recovered - kill.at:.1f} s after the kill"
        )
    return paragraph(f"{text}.")


def _verified(labelling: Labelling, store: StoreResult) -> str:
    found = labelling.records_labelled + labelling.records_quarantined
    return checks(
        [
            (
                found == labelling.records_planned,
                f"{labelling.records_planned:,} records planned = {labelling.records_labelled:,} labelled "
                f"+ {labelling.records_quarantined:,} in quarantine, each with its reason",
            ),
            (
                not labelling.records_lost and not labelling.records_doubled,
                f"{labelling.records_lost:,} lost, {labelling.records_doubled:,} doubled",
            ),
            (
                not store.problems,
                f"{plural(store.verified_shards, 'shard')} read again, checksums and contents: "
                f"{plural(store.problems, 'problem')}",
            ),
        ]
    )


def _cost(leg: TextLeg) -> str:
    store, cost = leg.store, leg.store.bytes_per_target
    codec = " ".join(str(value) for name, value in store.codec.items() if name in ("kind", "threshold", "k"))
    text = (
        f"The teacher gives a probability to each of {store.vocabulary:,} possible next tokens. The store "
        f"takes {size(store.shard_bytes)} for {count(store.targets)} of these distributions: "
        f"{number(cost.shards)} bytes each, with token ids and keys, and {number(cost.store)} with the plan, "
        "commit records and quarantine too."
    )
    if store.entries_per_target is not None:
        text += f" A distribution has {store.entries_per_target:.1f} entries on average."
    if store.captured_mass is not None:
        text += (
            f" Those that are kept hold {100 * store.captured_mass:.1f} % of its probability; "
            "the rest is drawn, so that no token's expectation is off."
        )
    return "".join(
        [
            "<h2>What a token costs</h2>",
            paragraph(text),
            figure(figures.bytes_per_token(cost, codec)),
            "<h3>How sure the teacher is</h3>",
            paragraph(
                "Where the teacher is certain, one entry says it all; where it is not, more are kept. "
                f"An even guess would have {log(store.vocabulary):.1f} nats.",
            ),
            figure(figures.entropies(store.entropy_histogram, store.entropy_mean, "tokens", "entropy-text")),
        ]
    )


def _students(leg: TextLeg) -> str:
    tokens, store, teacher = leg.finals("tokens"), leg.finals("store"), leg.teacher.val_nll
    seeds = sorted({run.seed for run in leg.students})
    steps = leg.students[0].curve[-1].step
    better = sum(a < b for a, b in zip(store, tokens, strict=True))
    text = (
        f"Students of {count(leg.student_parameters)} weights, {steps:,} steps each, over the same rows in "
        "the same order: one learns from the tokens that came next, the other from what the teacher expected "
        f"to come next. The one from the store ended lower in {better} of {plural(len(seeds), 'seed')}."
    )
    gap = mean(tokens) - teacher
    if mean(store) < mean(tokens) and gap > 0:
        share = (mean(tokens) - mean(store)) / gap
        text += f" It closed {100 * share:.0f} % of the distance to the teacher."
    differences = [a - b for a, b in zip(store, tokens, strict=True)]
    seconds = {
        name: mean([r.seconds for r in leg.students if r.name == name]) for name in ("tokens", "store")
    }
    caption = (
        f"Nats per token on held-out shards; {over_seeds(len(seeds))} of the initial weights and the order."
    )
    rows = [
        ["student from the tokens", f"{spread(tokens, 3)}", "", duration(seconds["tokens"])],
        [
            '<span class="store-text">student from the store</span>',
            f"<b>{spread(store, 3)}</b>",
            f"{'+' if mean(differences) > 0 else '−'}{spread([abs(d) for d in differences], 3)}"
            if _one_sign(differences)
            else spread(differences, 3).replace("-", "−"),
            duration(seconds["store"]),
        ],
        ['<span class="teacher-text">the teacher</span>', f"{teacher:.3f}", "", ""],
    ]
    columns = [
        Column(""),
        Column("validation loss", number=True),
        Column("difference, seed by seed", number=True),
        Column("training", number=True, optional=True),
    ]
    return "".join(
        [
            "<h2>Two students, the same steps</h2>",
            paragraph(text),
            figure(figures.learning_curves(leg.students, teacher)),
            table(columns, rows, caption),
        ]
    )


def _one_sign(values: list[float]) -> bool:
    return all(value > 0 for value in values) or all(value < 0 for value in values)


def settings(leg: TextLeg) -> str:
    """What was set, folded away."""
    teacher = {
        "teacher_weights": leg.teacher.parameters,
        "teacher_training_tokens": leg.teacher.train_tokens,
        "teacher_training_seconds": round(leg.teacher.train_seconds, 1),
        "teacher_kept_from_an_earlier_run": leg.teacher.reused,
        "store": leg.store.url,
        "codec": ", ".join(f"{name} {value}" for name, value in leg.store.codec.items()),
        "units": leg.store.units,
        "seconds_of_the_leg": round(leg.seconds, 1),
    }
    return definitions("Settings of the text leg", {**leg.settings, **teacher})
