"""The codecs, one a file. `CODECS` is the list that a new codec is added to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.targets.codecs.base import Codec, Encoded, Field, NonFiniteLogits
from pipeline.targets.codecs.codebooks import Codebooks
from pipeline.targets.codecs.dense import Dense
from pipeline.targets.codecs.embedding import Embedding
from pipeline.targets.codecs.sampled import Sampled
from pipeline.targets.codecs.threshold import Threshold
from pipeline.targets.codecs.threshold_v1 import ThresholdV1
from pipeline.targets.codecs.topk import TopK
from pipeline.targets.codecs.topp import TopP
from pipeline.targets.strict import build, nearest

CODECS: dict[str, type[Codec]] = {
    codec.kind: codec for codec in (Dense, TopK, TopP, Threshold, Sampled, Embedding, Codebooks)
}

FORMER: dict[int, dict[str, type[Codec]]] = {1: {"threshold": ThresholdV1}}
"""By format version, what its kinds meant where that has changed since."""

__all__ = [
    "CODECS",
    "Codebooks",
    "Codec",
    "Dense",
    "Embedding",
    "Encoded",
    "Field",
    "NonFiniteLogits",
    "Sampled",
    "Threshold",
    "TopK",
    "TopP",
    "codec_from_json",
]


def codec_from_json(data: Mapping[str, Any], format_version: int = 2) -> Codec:
    """Rebuild a codec from its JSON in a spec of that version.

    Raises ValueError that names the unknown kind, key or bad value.
    """
    kind, known = data.get("kind"), CODECS | FORMER.get(format_version, {})
    if kind not in known:
        raise ValueError(f"unknown codec kind {kind!r}{nearest(str(kind), known)}")
    return build(known[kind], data)
