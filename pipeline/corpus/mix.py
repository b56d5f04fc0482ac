"""Several sources as one corpus, each with a weight.

It knows sources and names. A unit is of one source and stays as that source cuts it, so a source that grows,
or is added, changes no other's units.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from pipeline.corpus.base import NOTHING_PLANNED, Read, Source
from pipeline.corpus.files import FileSource
from pipeline.corpus.kinds import AnyFiles
from pipeline.targets.errors import ConfigError, SpecMismatch
from pipeline.targets.unit import Unit

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]+$")]


class Mix(Source):
    """Several sources; a record's key is `<source>/<its key there>`.

    A weight is the share of a source's records that are labelled, drawn as `sample` draws them, and both
    multiply. It is at most 1: a record labelled twice has the same target twice, so to repeat a source is the
    reader's affair, where stores are mixed by weights that may be larger.
    """

    kind: Literal["mix"] = "mix"
    """Several sources."""

    hidden: ClassVar[Any] = {"sources": {"__all__": FileSource.hidden}}

    sources: dict[Name, Annotated[AnyFiles, Field(discriminator="kind")]] = Field(min_length=1)
    """By name (small letters, digits, - and _), each as it would be alone. No file may be in two of them."""

    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default={})
    """By source, the share of its records to take; 1 where nothing is said."""

    @field_validator("weights")
    @classmethod
    def _shares(cls, weights: dict[str, float]) -> dict[str, float]:
        for name, weight in weights.items():
            if weight > 1:
                raise ValueError(
                    f"{name}: {weight} is more than all of it; a record is labelled once, so give the other "
                    "sources less, or repeat this one where the store is read"
                )
        return weights

    @model_validator(mode="after")
    def _known(self) -> Mix:
        for name in self.weights:
            if name not in self.sources:
                raise ValueError(
                    f"weights: there is no source {name} (known: {', '.join(sorted(self.sources))})"
                )
        return self

    def units(self, planned: Mapping[str, str] = NOTHING_PLANNED) -> Iterator[Unit]:
        """One of each source in turn, so that what is labelled first is a mix too."""
        owners: dict[str, str] = {}
        waiting = {name: self._weighted(name).units(unnamed(name, planned)) for name in sorted(self.sources)}
        while waiting:
            for name in list(waiting):
                unit = next(waiting[name], None)
                if unit is None:
                    del waiting[name]
                    continue
                for part in unit.slices:
                    if (owner := owners.setdefault(part.url, name)) != name:
                        raise ConfigError(
                            f"corpus.sources: {part.url} is in {owner} and in {name}: exclude it from one of "
                            "them"
                        )
                yield under(name, unit)

    def read(self, unit: Unit) -> Generator[Read, None, None]:
        name = unit.slices[0].fingerprint.rpartition("@")[2]
        if name not in self.sources:
            raise SpecMismatch(
                f"the corpus file {unit.slices[0].url} was planned in none of the job's corpus.sources: go "
                "back to those of the plan, or label into a new store"
            )
        with closing(self._weighted(name).read(alone(name, unit))) as items:
            for item in items:
                yield replace(item, key=f"{name}/{item.key}")

    def _weighted(self, name: str) -> FileSource:
        """A source, whose sample is its share."""
        source = self.sources[name]
        return source.model_copy(update={"sample": source.sample * self.weights.get(name, 1.0)})


def unnamed(name: str, planned: Mapping[str, str]) -> Mapping[str, str]:
    """A plan's fingerprints as the source alone knows them; those of other sources stay strange to it."""
    return {url: fingerprint.removesuffix(f"@{name}") for url, fingerprint in planned.items()}


def under(name: str, unit: Unit) -> Unit:
    """A source's unit in a mix: the name is a part of its fingerprints, because keys have it."""
    slices = (replace(part, fingerprint=f"{part.fingerprint}@{name}") for part in unit.slices)
    return Unit(tuple(slices), unit.size_bytes)


def alone(name: str, unit: Unit) -> Unit:
    """A mix's unit as its source knows it."""
    slices = (replace(part, fingerprint=part.fingerprint.removesuffix(f"@{name}")) for part in unit.slices)
    return Unit(tuple(slices), unit.size_bytes)
