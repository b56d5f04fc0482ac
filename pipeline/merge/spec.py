"""What a merged store declares, and which stores cannot be merged.

It knows the stores' specs and none of their rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping

from pipeline.merge.combination import Average
from pipeline.targets.codecs import Dense
from pipeline.targets.errors import SpecMismatch, UserError
from pipeline.targets.spec import Container, Head, Spec
from pipeline.targets.store import Store


def joined(stores: Mapping[str, Store], container: Container) -> Spec:
    """All stores' heads, named "<store>_<head>". Raises as `averaged`."""
    heads = tuple(
        dataclasses.replace(head, name=f"{name}_{head.name}")
        for name, store in stores.items()
        for head in store.spec.heads
    )
    return _declare(stores, heads, {"mode": "join"}, next(iter(stores.values())).spec.seed, container)


def averaged(stores: Mapping[str, Store], container: Container, average: Average) -> Spec:
    """The first store's heads. Raises SpecMismatch for stores that cannot be merged so, UserError for names
    that the container cannot hold.
    """
    (first_name, first), *others = stores.items()
    for head in first.spec.heads:
        for name, store in [(first_name, first), *others]:
            theirs = store.spec.head(head.name)
            if (theirs.size, theirs.positions) != (head.size, head.positions):
                raise SpecMismatch(
                    f"head {head.name} has {theirs.size} classes, {theirs.positions}, in {name} and "
                    f"{head.size}, {head.positions}, in {first_name}: only like heads can be averaged"
                )
            if not (isinstance(theirs.codec, Dense) or theirs.codec.draws):
                raise SpecMismatch(
                    f"head {head.name} of {name} is {theirs.codec.kind}, whose average cannot be told: what "
                    "one store keeps and another does not has no known probability there; join them, or "
                    "label with an ensemble teacher"
                )
            if isinstance(theirs.codec, Dense) != isinstance(head.codec, Dense):
                raise SpecMismatch(
                    f"head {head.name} is {theirs.codec.kind} in {name} and {head.codec.kind} in "
                    f"{first_name}: only targets of one form can be averaged"
                )
    fingerprints = json.dumps([store.spec.fingerprint for store in stores.values()])
    seed = int.from_bytes(hashlib.blake2b(fingerprints.encode(), digest_size=7).digest(), "little")
    return _declare(stores, first.spec.heads, {"mode": "average", "average": average}, seed, container)


def _declare(
    stores: Mapping[str, Store],
    heads: tuple[Head, ...],
    how: Mapping[str, str],
    seed: int,
    container: Container,
) -> Spec:
    (first_name, first), *others = stores.items()
    ours = first.spec
    for name, store in others:
        theirs = store.spec
        if theirs.inputs != ours.inputs:
            raise SpecMismatch(f"{name} and {first_name} do not store the same inputs: they cannot be merged")
        if not ours.inputs and theirs.views != ours.views:
            raise SpecMismatch(
                f"{name} and {first_name} store no inputs, and their views differ: nothing says that their "
                "rows are of the same"
            )
        if (ours.vocabulary and ours.vocabulary.fingerprint) != (
            theirs.vocabulary and theirs.vocabulary.fingerprint
        ):
            raise SpecMismatch(f"{name} and {first_name} have different tokenizers: they cannot be merged")
    described = {
        "kind": "merged",
        **how,
        "members": {name: dict(store.spec.teacher) for name, store in stores.items()},
    }
    text = json.dumps(described, sort_keys=True)
    described["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()
    vocabulary = ours.vocabulary
    if vocabulary is not None:
        widths = [s.spec.vocabulary.padded_size for s in stores.values() if s.spec.vocabulary is not None]
        vocabulary = dataclasses.replace(vocabulary, padded_size=min(widths))
    try:
        return Spec(
            inputs=ours.inputs,
            heads=heads,
            teacher=described,
            views=ours.views,
            seed=seed,
            container=container,
            vocabulary=vocabulary,
        )
    except ValueError as error:
        raise UserError(f"the merged store cannot be declared: {error}; give other names") from error
