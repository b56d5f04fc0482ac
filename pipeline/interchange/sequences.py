"""Token sequences with a top-k target at each position, whichever format they come from.

It knows the rule of a store, that L tokens have L - 1 targets and target i is the distribution of token
i + 1, and how foreign rows are brought under it: which way their targets are aligned, where packed documents
begin, which positions the teacher did not speak of. How a format encodes a row it does not know.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pipeline.interchange import topk
from pipeline.interchange.base import HEAD, Importer, described, vocabulary
from pipeline.interchange.columns import BadCell
from pipeline.interchange.source import Source
from pipeline.targets import Ragged
from pipeline.targets.codecs.base import Array, id_dtype, offsets_of
from pipeline.targets.errors import ConfigError
from pipeline.targets.rows import Rows
from pipeline.targets.spec import TOKENS, Head, Input, Spec
from pipeline.targets.unit import Quarantined, Unit

MASK = "target_mask"
"""The input, if a store has it, that is 0 where a position's target is not the teacher's or not to be
learned: uint8, one for each token, the last one 0."""

SAMPLE = 4096
"""Targets of a source's beginning that are looked at to see which way they are aligned."""

BROKEN = 16
"""Rows at a source's beginning of which none can be read, so that it must be of another format."""


@dataclass(frozen=True)
class Sequence:
    """A source row. tokens: int64 [L]; ids: int64 [n, w]; log_probs: [n, w]; mask: bool [n], False for
    targets that are not to be learned; documents: int64 [L], equal for the tokens of one packed document, 0
    for padding; None where a row is one document.
    """

    tokens: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    log_probs: Array
    mask: npt.NDArray[np.bool_]
    documents: npt.NDArray[np.int64] | None = None


class SequenceImporter(Importer):
    """Rows of tokens with top-k targets."""

    size: int = Field(ge=1, le=2**32)
    """Classes of the teacher's head: the vocabulary, padding included."""

    alignment: Literal["next", "self"] = "next"
    """Whether the target at a token's place is the distribution of the next token, or of that token."""

    values: Literal["log_probs", "logits"] = "log_probs"
    """What was kept of each class. Of logits the normaliser is lost: the kept classes share all mass."""

    tokenizer: str | None = None
    """The directory with the teacher's tokenizer.json, so that no student pairs the store with another."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Classes that the store keeps of each target."""

    @property
    def masked(self) -> bool:
        """Whether the store keeps the mask of its targets."""
        return False

    @abstractmethod
    def sequences(self, source: Source, unit: Unit) -> Iterator[tuple[str, Sequence | str]]:
        """The rows of a unit with their keys; the reason in place of one that is broken."""

    def specified(self, kind: str, source: Source, **facts: object) -> Spec:
        """The spec of a store of such rows. Raises SpecMismatch for a tokenizer larger than the head."""
        tail = topk.TAIL if self.values == "log_probs" else "none"
        inputs = [Input(TOKENS, id_dtype(self.size), (None,))]
        if self.masked:
            inputs.append(Input(MASK, "|u1", (None,)))
        description = described(kind, source, tail=tail, alignment=self.alignment, **facts)
        return Spec(
            inputs=tuple(inputs),
            heads=(Head(HEAD, self.size, "next_token", topk.codec(self.width)),),
            teacher=description,
            views={"kind": "imported", "fingerprint": description["fingerprint"]},
            vocabulary=vocabulary(self.tokenizer, self.size),
        )

    def check(self, source: Source, unit: Unit) -> None:
        """Raises ConfigError when the beginning of the unit shows that what was said of the format is wrong.

        That is when no row can be read; and when the token at a target's own place is often among the kept
        classes and the one that `alignment` expects there is not.
        """
        right = wrong = seen = 0
        broken: list[str] = []
        for key, row in self.sequences(source, unit):
            fault = row if isinstance(row, str) else self._fault(row)
            if isinstance(row, str) or fault is not None:
                broken.append(f"{key}: {fault}")
                if not seen and len(broken) >= BROKEN:
                    break
                continue
            there, other = (1, 0) if self.alignment == "next" else (0, 1)
            right += _hits(row, there)
            wrong += _hits(row, other)
            seen += max(len(row.ids), 1)
            if seen >= SAMPLE:
                break
        if broken and not seen:
            raise ConfigError(
                f"no row at the beginning of {source.url} can be read so; {broken[0]}: "
                "give the settings that it was written with"
            )
        if wrong > 32 and wrong > 4 * right:
            other_name = "self" if self.alignment == "next" else "next"
            raise ConfigError(
                f"of the first {seen} targets {wrong} name the token that alignment {other_name!r} expects "
                f"there, and {right} the one that {self.alignment!r} does: import with {other_name!r}"
            )

    def read(self, source: Source, unit: Unit, spec: Spec) -> Iterator[Rows | Quarantined]:
        row = 0
        for key, found in self.sequences(source, unit):
            aligned = found if isinstance(found, str) else self._aligned(found)
            if isinstance(aligned, str):
                yield Quarantined(key, row, None, "undecodable", f"{key}: {aligned}")
                row += 1
                continue
            documents = list(_documents(key, aligned))
            if not documents:
                yield Quarantined(key, row, None, "empty", f"{key}: it has no tokens")
                row += 1
            for name, document in documents:
                yield self._rows(name, document, row, spec)
                row += 1

    def _aligned(self, row: Sequence) -> Sequence | str:
        """The row with its L - 1 targets, or what is wrong with its lengths."""
        length, given = len(row.tokens), len(row.ids)
        if row.documents is not None and len(row.documents) != length:
            return f"it has {length} tokens and {len(row.documents)} entries of attention_mask"
        if length and given not in ((length,) if self.alignment == "self" else (length, length - 1)):
            return f"it has {length} tokens and {given} targets"
        kept = slice(1, None) if self.alignment == "self" else slice(0, max(length - 1, 0))
        return Sequence(row.tokens, row.ids[kept], row.log_probs[kept], row.mask[kept], row.documents)

    def _log_probs(self, row: Sequence) -> Array:
        return row.log_probs if self.values == "log_probs" else topk.normalized(row.log_probs)

    def _fault(self, row: Sequence) -> str | None:
        """What is wrong with a row's targets, if anything is."""
        aligned = self._aligned(row)
        if isinstance(aligned, str):
            return aligned
        found = topk.faults(aligned.ids, self._log_probs(aligned), self.size)
        return next((reason for _, reason in found.values()), None)

    def _rows(self, key: str, part: Sequence, row: int, spec: Spec) -> Rows | Quarantined:
        def refuse(reason: str, code: str = "undecodable") -> Quarantined:
            return Quarantined(key, row, None, code, f"{key}: {reason}")

        tokens = part.tokens
        if bool(((tokens < 0) | (tokens >= self.size)).any()):
            wrong = tokens[(tokens < 0) | (tokens >= self.size)][0]
            return refuse(f"token {wrong} is not one of {self.size}")
        try:
            encoded = topk.encode(part.ids, self._log_probs(part), self.width, self.size)
        except topk.NoDistribution as error:
            return refuse(str(error), error.code)
        bounds = offsets_of(np.array([len(tokens)]))
        inputs: dict[str, Array | Ragged] = {TOKENS: Ragged(tokens.astype(id_dtype(self.size)), bounds)}
        if self.masked:
            inputs[MASK] = Ragged(np.append(part.mask, False).astype(np.uint8), bounds)
        return Rows(
            spec=spec,
            keys=[key],
            row=np.array([row], dtype=np.int64),
            view=np.zeros(1, dtype=np.int32),
            views=np.ones(1, dtype=np.int32),
            targets=np.array([len(tokens) - 1], dtype=np.int32),
            inputs=inputs,
            heads={HEAD: encoded},
        )


def _documents(key: str, row: Sequence) -> Iterator[tuple[str, Sequence]]:
    """The documents of an aligned row, each with a key of its own if there are several."""
    documents = np.ones(len(row.tokens), dtype=np.int64) if row.documents is None else row.documents
    bounds = np.flatnonzero(np.diff(documents, prepend=0, append=0)).tolist()
    runs = [(start, stop) for start, stop in pairwise(bounds) if documents[start] != 0]
    for number, (start, stop) in enumerate(runs):
        targets = slice(start, stop - 1)
        yield (
            f"{key}.{number}" if len(runs) > 1 else key,
            Sequence(row.tokens[start:stop], row.ids[targets], row.log_probs[targets], row.mask[targets]),
        )


def same_shape(ids: Array, log_probs: Array, names: str) -> None:
    """Raises BadCell unless each target has as many ids as log-probabilities."""
    if ids.shape != log_probs.shape:
        raise BadCell(f"{names} are of shapes {ids.shape} and {log_probs.shape}")


def _hits(row: Sequence, ahead: int) -> int:
    """How many targets have the token `ahead` of their place among their classes."""
    tokens = row.tokens[ahead:]
    count = min(len(tokens), len(row.ids))
    spoken = row.mask[:count, None] & (row.log_probs[:count] > topk.NOTHING)
    return int(((row.ids[:count] == tokens[:count, None]) & spoken).any(axis=1).sum())
