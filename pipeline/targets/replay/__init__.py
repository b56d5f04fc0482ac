"""Views made again on the student's side: a record and its entry in the ledger become what the teacher saw.

One file a kind of view. A new one needs a Replay, and its kind in REPLAYS.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.targets.errors import SpecMismatch
from pipeline.targets.replay.audio import AudioReplay
from pipeline.targets.replay.base import Partner, Replay, Unrenderable, declared
from pipeline.targets.replay.images import ImageReplay
from pipeline.targets.replay.ledger import DIGEST, LEDGER, RECORDED, keeps_ledger
from pipeline.targets.spec import LABEL, Spec


def _image_of(views: Mapping[str, Any]) -> Replay:
    """Of views with a text, which is stored."""
    return ImageReplay(declared(views, "image", dict))


REPLAYS: Mapping[str, Callable[[Mapping[str, Any]], Replay]] = {
    "audio": AudioReplay,
    "image_text": _image_of,
    "images": ImageReplay,
}


def replay_of(spec: Spec) -> Replay:
    """What renders the store's views again. Raises SpecMismatch where they cannot be."""
    kind = spec.views.get("kind")
    make = REPLAYS.get(str(kind))
    if make is None or not keeps_ledger(spec):
        raise SpecMismatch(
            f"the store's views ({kind}) have no ledger by which they can be rendered again: label with "
            "store.inputs: embed"
        )
    return make(spec.views)


def needs_replay(spec: Spec) -> bool:
    """Whether the store has a ledger instead of its inputs."""
    return keeps_ledger(spec) and not set(replay_of(spec).inputs) <= set(spec.inputs)


def replayed(spec: Spec) -> Spec:
    """The same with the inputs that replay gives, in the order in which a store that kept them has them."""
    if not needs_replay(spec):
        return spec
    kept = [item for item in spec.inputs if item not in RECORDED]
    labels = [item for item in kept if item.name == LABEL]
    seen = [item for item in kept if item.name != LABEL]
    return dataclasses.replace(spec, inputs=(*seen, *replay_of(spec).inputs, *labels, *RECORDED))


__all__ = [
    "DIGEST",
    "LEDGER",
    "RECORDED",
    "Partner",
    "Replay",
    "Unrenderable",
    "keeps_ledger",
    "needs_replay",
    "replay_of",
    "replayed",
]
