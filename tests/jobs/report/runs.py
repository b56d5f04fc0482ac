"""Results of demos that never ran."""

from __future__ import annotations

import math
import random

from jobs.demo.results import (
    Bytes,
    CommittedUnit,
    CurvePoint,
    DemoResults,
    DigitSample,
    DigitsLeg,
    DigitsRow,
    Kill,
    Labelling,
    Machine,
    StoreResult,
    StudentRun,
    TeacherResult,
    TextLeg,
)


def timeline(kill: float = 41.3) -> list[CommittedUnit]:
    """Two replicas with two units each in flight; one is killed, and another takes its place 11 s later."""
    chance = random.Random(0)
    units = []
    for first in ("0", "1"):
        for start in (0.0, 2.4):
            now, replica = start, first
            while now < 92:
                end = now + chance.uniform(4.2, 6.5)
                if replica == "1" and now < kill < end:
                    now, replica = kill + 11 + start, "2"
                    continue
                units.append((now, end, replica))
                now = end
    ordered = sorted(units, key=lambda unit: unit[1])
    return [
        CommittedUnit(
            unit=f"{number:032x}",
            replica=replica,
            started=started,
            finished=finished,
            records=chance.randint(30, 60),
            targets=chance.randint(70_000, 90_000),
            shard_bytes=1_400_000,
        )
        for number, (started, finished, replica) in enumerate(ordered)
    ]


def curve(final: float, seed: int) -> list[CurvePoint]:
    shaken = random.Random(seed)
    return [
        CurvePoint(step=step, val_nll=final + 3.2 * math.exp(-step / 90) + shaken.gauss(0, 0.004))
        for step in range(25, 601, 25)
    ]


def store(**changed: object) -> StoreResult:
    histogram = [int(400_000 * math.exp(-((i * 0.25) ** 1.1))) for i in range(40)]
    values: dict[str, object] = {
        "url": "/home/ada/demo-output/text/store",
        "codec": {"kind": "threshold", "threshold": 0.02},
        "vocabulary": 4096,
        "units": 61,
        "records": 2381,
        "rows": 19_112,
        "targets": 4_870_211,
        "bytes": 95_100_000,
        "shard_bytes": 93_800_000,
        "bytes_per_target": Bytes(
            shards=19.26,
            store=19.53,
            dense_float32=16_384,
            dense_float16=8192,
            topk={16: 68, 64: 260, 256: 1028},
        ),
        "entries_per_target": 7.43,
        "captured_mass": 0.8312,
        "entropy_mean": 1.62,
        "entropy_histogram": histogram,
        "verified_shards": 61,
        "problems": 0,
    }
    return StoreResult.model_validate({**values, **changed})


def text_leg(**changed: object) -> TextLeg:
    units = timeline()
    values: dict[str, object] = {
        "settings": {"corpus_bytes": 24_000_000, "vocabulary": 4096, "learning_rate": 0.003, "steps": 600},
        "corpus_files": 2394,
        "corpus_bytes": 24_113_201,
        "teacher": TeacherResult(
            parameters=3_211_264, train_tokens=9_830_400, train_seconds=71.2, reused=False, val_nll=2.107
        ),
        "labelling": Labelling(
            seconds=units[-1].finished,
            units=units,
            kill=Kill(at=41.3, replica="1", committed=28, recovered=57.2),
            records_planned=2394,
            records_labelled=2381,
            records_quarantined=13,
            records_lost=0,
            records_doubled=0,
        ),
        "store": store(),
        "student_parameters": 811_264,
        "students": [
            StudentRun(name=name, seed=seed, curve=curve(final, seed), seconds=18.3)
            for seed in range(3)
            for name, final in (("tokens", 2.71), ("store", 2.58))
        ],
        "seconds": 251.7,
    }
    return TextLeg.model_validate({**values, **changed})


def digits_leg() -> DigitsLeg:
    def row(kind: str, name: str, teaches: str, labels: int, errors: list[int]) -> DigitsRow:
        return DigitsRow.model_validate(
            {
                "kind": kind,
                "name": name,
                "teaches": teaches,
                "labels": labels,
                "parameters": 156_600 if kind == "teacher" else 36_458,
                "examples": 30_000,
                "test_errors": [error / 540 for error in errors],
            }
        )

    def sample(index: int) -> DigitSample:
        ring = [[abs(math.hypot(x - 3.5, (y - 3.5) * 0.8) - 2.2) < 0.8 for x in range(8)] for y in range(8)]
        rest = 0.4 * (index >= 6)
        return DigitSample(
            pixels=[255 * ink for line in ring for ink in line],
            probabilities=[1 - rest, 0, 0, rest, *[0] * 6],
        )

    return DigitsLeg(
        settings={"members": "cnn, cnn, cnn, mlp", "temperature": 4.0},
        store=store(
            codec={"kind": "dense", "dtype": "float16"},
            vocabulary=10,
            records=30_000,
            targets=30_000,
            shard_bytes=2_400_000,
            bytes_per_target=Bytes(shards=80, store=80.5, dense_float32=40, dense_float16=20, topk={}),
            entries_per_target=None,
            captured_mass=None,
        ),
        labelling_seconds=2.7,
        test_examples=540,
        table=[
            row("teacher", "mean of 4 networks", "all 1,257 labels", 1257, [6]),
            row("member", "each of them alone", "all 1,257 labels", 1257, [8, 10, 7, 10]),
            row("few", "cross-entropy", "38 labels (3 %)", 38, [120, 149, 96]),
            row("few", "cross-entropy, jittered", "38 labels (3 %)", 38, [93, 86, 84]),
            row("store", "L2 on logits", "the store", 0, [8, 8, 8]),
            row("store", "tempered KL, T = 4", "the store", 0, [7, 6, 8]),
            row("all", "cross-entropy, jittered", "all 1,257 labels", 1257, [6, 7, 8]),
        ],
        samples=[sample(i) for i in range(12)],
        seconds=29.3,
    )


def results(text: TextLeg | None, digits: DigitsLeg | None) -> DemoResults:
    return DemoResults(
        version="0.1.0",
        finished_at="2026-11-23T22:41:07+00:00",
        machine=Machine(cpus=2, python="3.11.9", torch="2.13.0", ray="2.60.0", platform="Linux x86_64"),
        seconds=312.4,
        text=text,
        digits=digits,
    )


def crowded() -> TextLeg:
    """Lines that end beside each other, a kill at the end, many replicas, long names and large numbers."""
    units = [
        unit.model_copy(update={"replica": str(100 + number % 9), "targets": unit.targets * 900})
        for number, unit in enumerate(timeline())
    ]
    last = max(unit.finished for unit in units)
    labelling = text_leg().labelling.model_copy(
        update={"units": units, "kill": Kill(at=last - 1, replica="108", committed=60, recovered=None)}
    )
    runs = [
        StudentRun(name=name, seed=seed, curve=curve(final, seed), seconds=1)
        for seed in range(3)
        for name, final in (("tokens", 2.114), ("store", 2.112))
    ]
    return text_leg(labelling=labelling, students=runs, store=store(entropy_histogram=[9, *[0] * 38, 9]))
