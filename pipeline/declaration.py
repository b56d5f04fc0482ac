"""What a job's store declares, told by its views and its loaded teacher.

It knows how corpus, views, teacher and store must fit together. Codebooks it takes as they are given: where
they come from, `codebooks` knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from pipeline.targets.codecs import Codebooks, Codec
from pipeline.targets.codecs.ranking import RankingCodec
from pipeline.targets.errors import ConfigError, SpecMismatch
from pipeline.targets.spec import TOKENS, Head, Spec, Vocabulary
from pipeline.targets.strict import nearest
from pipeline.teachers.base import Output, Teacher
from pipeline.views.base import Renderer

if TYPE_CHECKING:
    from pipeline.job import LabelJob, LearnedCodebooks

NO_BOOKS: Mapping[str, Codebooks] = MappingProxyType({})


def specify(
    job: LabelJob, renderer: Renderer, teacher: Teacher, books: Mapping[str, Codebooks] = NO_BOOKS
) -> Spec:
    """The spec of the job's store. books: by head, of those that the job says to learn.

    Raises ConfigError when the heads are not the teacher's or cannot be stored so, SpecMismatch when views
    and teacher do not belong together, or the books are not those that the job wants.
    """
    heads = []
    for name, wanted in sorted(job.store.heads.items()):
        output = teacher.outputs.get(name)
        if output is None:
            raise ConfigError(
                f'store.heads: the teacher has no head "{name}"{nearest(name, teacher.outputs)}'
            )
        codec = wanted if isinstance(wanted, Codec) else _learned(name, wanted, books)
        heads.append(_head(name, output, codec, renderer.vocabulary))
        if output.likeliest is not None:
            _check_told(heads[-1], output.likeliest)
        if output.vector and codec.of == "logits":
            raise ConfigError(
                f"store.heads.{name}: the teacher gives a vector, and the codec {codec.kind} is of "
                "distributions: use embedding or codebooks"
            )
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
    inputs = [item for item in renderer.inputs if job.store.inputs == "embed" or item.name == TOKENS]
    try:
        return Spec(
            inputs=(*inputs, *renderer.recorded),
            heads=tuple(heads),
            teacher=dict(teacher.description),
            views=dict(renderer.description),
            seed=job.store.seed,
            container=job.store.container,
            vocabulary=_vocabulary(renderer.vocabulary, heads, teacher.outputs),
        )
    except ValueError as error:
        raise ConfigError(f"store: {error}") from error


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


def _check_told(head: Head, told: int) -> None:
    """Raises ConfigError for a codec that needs more than the likeliest classes of a distribution."""
    codec = head.codec
    if not isinstance(codec, RankingCodec):
        wrong = f"the codec {codec.kind} is made of all"
    elif min(codec.k, head.size) > told:
        wrong = f"k is {codec.k}"
    elif codec.betas != (1.0,) or codec.slopes:
        wrong = "the tail at other betas than 1 is not known"
    else:
        return
    raise ConfigError(
        f"store.heads.{head.name}: the teacher tells only the {told} likeliest of its classes, and {wrong}: "
        f"use topk or topp with k of at most {told} and betas [1.0]"
    )


def _learned(name: str, wanted: LearnedCodebooks, books: Mapping[str, Codebooks]) -> Codebooks:
    found = books.get(name)
    if found is None or found.count != wanted.bytes:
        has = "has none" if found is None else f"has some of {found.count}"
        raise SpecMismatch(
            f"store.heads.{name}: the job wants codebooks of {wanted.bytes} bytes, and the store {has}: give "
            "another store url, or go back to the settings of the store"
        )
    return found


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
