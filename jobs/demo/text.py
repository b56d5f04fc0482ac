"""The text leg: a small causal LM labels Python sources on Ray, and students learn from what it said.

The main job as anyone would run it: a corpus of files, a transformers directory as the teacher, a store with
the threshold codec, two replicas of which one is killed on the way, verification, and then two students that
differ in one thing only: what they are told about the same tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from jobs.demo import sources, teacher
from jobs.demo.checking import held_out_nll, verified
from jobs.demo.labelling import label
from jobs.demo.results import TeacherResult, TextLeg
from jobs.demo.settings import HEAD, TextSettings, flat
from jobs.demo.sources import Sources
from jobs.demo.stages import Stages, StepView, figures, plural
from jobs.demo.students import students
from jobs.demo.teacher import Trained
from jobs.terminal import count, duration, size
from pipeline.corpus import TextFiles
from pipeline.engine.base import Engine
from pipeline.job import Batching, LabelConfig, LabelJob, Replicas, StoreConfig
from pipeline.targets.codecs import Threshold
from pipeline.teachers import CausalLM
from pipeline.views import TokenWindows
from student.config import SmallLM, StoreLocation, TrainConfig


def run_text(output: Path, stages: Stages, engine: Engine, seeds: int, settings: TextSettings) -> TextLeg:
    """The whole leg in `output`. seeds: pairs of students.

    A kept teacher is used again, and a store that was not finished is. Raises LabellingFailed when a record
    is not in the store exactly once or the store does not verify, and what labelling and training raise.
    """
    began = time.monotonic()
    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    found = _corpus(stages, settings)
    folder, trained, reused = _teacher(output / "cache", found, stages, settings)
    job, config = _job(output, folder, found, settings)
    store, timeline = label(job, stages, engine, settings)
    result, labelling = verified(job, store, timeline, stages)
    val_nll = held_out_nll(store, settings.holdout)
    runs, parameters = students(config, stages, seeds, val_nll)
    return TextLeg(
        settings=flat(settings),
        corpus_files=found.found,
        corpus_bytes=found.size,
        teacher=TeacherResult(
            parameters=trained.parameters,
            train_tokens=trained.tokens,
            train_seconds=trained.seconds,
            reused=reused,
            val_nll=val_nll,
        ),
        labelling=labelling,
        store=result,
        student_parameters=parameters,
        students=runs,
        seconds=time.monotonic() - began,
    )


def _corpus(stages: Stages, settings: TextSettings) -> Sources:
    with stages.stage(
        "Find the corpus",
        "Real text that every machine with Python has: the sources of the interpreter and its packages.",
    ):
        found = sources.find(settings.teacher_bytes, settings.labelled_bytes)
        stages.table(
            figures(
                ("found", f"{plural(found.found, 'Python file')}, {size(found.size)}"),
                (
                    "for the teacher",
                    f"{plural(len(found.teacher.paths), 'file')}, {size(found.teacher.size)}",
                ),
                (
                    "to be labelled",
                    f"{plural(len(found.labelled.paths), 'file')}, {size(found.labelled.size)}",
                ),
                ("not used", "the rest, to stay within the demo's minutes"),
            )
        )
    return found


def _teacher(
    cache: Path, found: Sources, stages: Stages, settings: TextSettings
) -> tuple[Path, Trained, bool]:
    """The teacher's directory, its record, and whether an earlier run had made it."""
    wanted = settings.teacher
    folder = teacher.directory(cache, found.teacher, wanted)
    if (trained := teacher.kept(folder)) is not None:
        with stages.stage("Use the teacher that an earlier run trained"):
            stages.table(figures(*_described(folder, trained)))
        return folder, trained, True
    with stages.stage(
        "Train a teacher",
        "Any transformers directory would do; this one is made here so that nothing is downloaded: a "
        f"byte-level BPE tokenizer of {count(wanted.vocabulary)} tokens, and a Llama of "
        f"{plural(wanted.layers, 'layer')} and width {wanted.width}, its matrices trained by Muon. Both are "
        "kept for the next run.",
    ):
        texts = teacher.read(found.teacher)
        tokenizer = teacher.train_tokenizer(texts, wanted.vocabulary)
        tokens = teacher.tokenize(tokenizer, texts)
        view = StepView("teacher", 1.0)
        with stages.display(view):
            model, trained = teacher.train(tokens, wanted, view.move)
        teacher.keep(folder, model, tokenizer, trained)
        stages.table(figures(*_described(folder, trained)))
    return folder, trained, False


def _described(folder: Path, trained: Trained) -> Iterator[tuple[str, str]]:
    yield "teacher", f"{count(trained.parameters)} parameters, the embedding tied with the head"
    yield (
        "trained",
        f"{count(trained.steps)} steps, {count(trained.tokens)} tokens, {duration(trained.seconds)}, to "
        f"{trained.loss:.2f} nats per token",
    )
    yield (
        "with",
        f"{plural(trained.threads, 'thread')} in {trained.precision}, which was quickest on this machine",
    )
    yield "kept in", str(folder)


def _job(output: Path, folder: Path, found: Sources, settings: TextSettings) -> tuple[LabelJob, TrainConfig]:
    """The job and its students' training, also as a file that `decant label` and `decant train` take."""
    job = LabelJob(
        corpus=TextFiles(urls=[str(path) for path in found.labelled.paths], unit_bytes=settings.unit_bytes),
        views=TokenWindows(tokenizer=str(folder), length=settings.teacher.length),
        teacher=CausalLM(path=str(folder), device="cpu"),
        store=StoreConfig(url=str(output / "store"), heads={HEAD: Threshold(threshold=settings.threshold)}),
        label=LabelConfig(
            engine="ray",
            replicas=Replicas(min=1, max=settings.replicas),
            batching=Batching(budget=2048, window=8),
            max_quarantined=0.05,
        ),
    )
    chosen = settings.student
    every = max(1, chosen.steps // chosen.evaluations)
    config = TrainConfig(
        store=StoreLocation(url=job.store.url),
        output=str(output / "students" / "own"),
        model=SmallLM(width=chosen.width, layers=chosen.layers, heads=chosen.heads),
        steps=chosen.steps,
        batch_rows=chosen.batch_rows,
        learning_rate=chosen.learning_rate,
        warmup_steps=chosen.steps // 10,
        device="cpu",
        holdout=settings.holdout,
        window_shards=64,
        evaluate_every=every,
        log_every=max(1, every // 8),
        checkpoint_every=chosen.steps,
    )
    written = {**job.model_dump(mode="json"), "train": config.model_dump(mode="json", exclude={"store"})}
    text = yaml.safe_dump(written, sort_keys=False, allow_unicode=True)
    (output / "job.yaml").write_text(text, encoding="utf-8")
    return job, config
