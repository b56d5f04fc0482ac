"""Before labelling: what the store declares, and which units there are.

It knows how corpus, views, teacher and store must fit together. It labels nothing.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.targets.codecs import Codec
from pipeline.targets.errors import ConfigError, PlannedMeanwhile, SpecMismatch
from pipeline.targets.spec import Head, Spec, Vocabulary
from pipeline.targets.store import Store
from pipeline.targets.strict import nearest
from pipeline.teachers.base import Output, Teacher
from pipeline.views.base import Renderer

if TYPE_CHECKING:
    from pipeline.job import LabelJob


def prepare(job: LabelJob) -> Store:
    """Make or open the job's store, and plan what of the corpus is not planned yet.

    Raises ConfigError, SpecMismatch, CorpusMissing, CorpusChanged, StorageError, TeacherError: whatever is
    wrong with a job shows here, before anything is labelled.
    """
    spec = declared(job)
    store = Store.create(job.store.url, spec, job.store.options)
    # Without the options: they may hold credentials.
    corpus = job.corpus.model_dump(mode="json", exclude={"options"})
    while True:
        latest = store.generation()
        planned = {part.url: part.fingerprint for unit in store.planned() for part in unit.slices}
        with contextlib.suppress(PlannedMeanwhile):
            store.write_plan(job.corpus.units(planned), corpus, latest)
            return store


def declared(job: LabelJob) -> Spec:
    """The spec of the job's store. Tokenizer and teacher are opened, and let go. Raises as `specify`."""
    # A thread that ends takes torch's helpers with it: see `pipeline.inference.Inference`.
    with ThreadPoolExecutor(1) as apart:
        spec = apart.submit(lambda: specify(job, job.views.load(), job.teacher.load())).result()
    _free_memory()
    return spec


def specify(job: LabelJob, renderer: Renderer, teacher: Teacher) -> Spec:
    """The spec of the job's store.

    Raises ConfigError when the heads are not the teacher's or cannot be stored so, SpecMismatch when views
    and teacher do not belong together.
    """
    heads = []
    for name, codec in sorted(job.store.heads.items()):
        output = teacher.outputs.get(name)
        if output is None:
            raise ConfigError(
                f'store.heads: the teacher has no head "{name}"{nearest(name, teacher.outputs)}'
            )
        heads.append(_head(name, output, codec, renderer.vocabulary))
        if codec.of == "embeddings" and teacher.description.get("average") == "probabilities":
            raise ConfigError(
                f'teacher.average: the head "{name}" is stored as an embedding and has no probabilities: '
                'use "logits", the mean of what the members say'
            )
        if codec.of == "embeddings" and output.padded:
            raise ConfigError(
                f'teacher.members: their heads "{name}" have different sizes, and embeddings are averaged '
                "feature by feature: give members of one size"
            )
    sequences = [head for head in heads if head.positions == "next_token"]
    if sequences and renderer.vocabulary is None:
        raise ConfigError(
            f'views.kind "{job.views.kind}" gives no tokens, and the head "{sequences[0].name}" is of next '
            "tokens: use token_windows"
        )
    keep = job.store.inputs == "embed" or renderer.vocabulary is not None
    try:
        return Spec(
            inputs=renderer.inputs if keep else (),
            heads=tuple(heads),
            teacher=dict(teacher.description),
            views=dict(renderer.description),
            seed=job.store.seed,
            container=job.store.container,
            vocabulary=_vocabulary(renderer.vocabulary, heads, teacher.outputs),
        )
    except ValueError as error:
        raise ConfigError(f"store: {error}") from error


def _free_memory() -> None:
    """What the teacher took of an accelerator is given back: the replica that labels may need all of it."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # does nothing in a process that has not used CUDA


def _head(name: str, output: Output, codec: Codec, vocabulary: Vocabulary | None) -> Head:
    size = output.size
    if vocabulary is not None and _of_tokens(output, codec):
        if vocabulary.size > size:
            raise SpecMismatch(
                f"views.tokenizer has {vocabulary.size} tokens and the teacher's head has {size}: "
                "give the tokenizer that the teacher was trained with"
            )
        size = vocabulary.size
    try:
        codec.layout(size)
    except ValueError as error:
        raise ConfigError(f"store.heads.{name}: {error}") from error
    return Head(name, size, output.positions, codec)


def _of_tokens(output: Output, codec: Codec) -> bool:
    """Whether the head's classes are the tokenizer's ids."""
    return output.positions == "next_token" and codec.of == "logits"


def _vocabulary(
    vocabulary: Vocabulary | None, heads: list[Head], outputs: Mapping[str, Output]
) -> Vocabulary | None:
    """The views' vocabulary, with the width of the teacher's logits of next tokens, if there are any."""
    of_tokens = (outputs[head.name] for head in heads if _of_tokens(outputs[head.name], head.codec))
    width = min((output.size for output in of_tokens), default=None)
    if vocabulary is None or width is None:
        return vocabulary
    return replace(vocabulary, padded_size=width)
