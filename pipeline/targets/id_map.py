"""A store's token ids in the words of another tokenizer, where that can be done without a loss.

It knows two tokenizers and a store's spec. A student whose tokenizer has every token of the store's can learn
from the store if both also cut its text alike: then each of the store's ids is one of the student's, and that
is all the difference. Tokens are compared here, texts by `IdMap.check`; whatever differs is refused.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.targets.codecs.base import id_dtype
from pipeline.targets.decoded import (
    DenseTargets,
    EmbeddingTargets,
    Ints,
    SparseTargets,
    Targets,
    TopKTargets,
    TopPTargets,
)
from pipeline.targets.errors import CorruptShard, SpecMismatch
from pipeline.targets.ragged import Ragged
from pipeline.targets.rows import Rows
from pipeline.targets.spec import TOKENS, Head, Spec, Vocabulary
from pipeline.targets.tokenizer import TokenizerFile

CHECKED = 8
"""Rows of each shard whose text `check` cuts with both tokenizers."""

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""In the text of a row that begins or ends within a letter."""


@dataclass(frozen=True)
class IdMap:
    """The student's id of each of a store's classes.

    ids: int64 [V], no two alike, V being the widest head of next tokens. size: W, classes that the student
    needs. A class without a token (a gap in the tokenizer's numbers, padding of an old store) keeps its id
    where the student's tokenizer has no token with it, and gets one beyond all others elsewhere.
    """

    ids: Ints
    size: int
    store: TokenizerFile
    student: TokenizerFile

    @classmethod
    def of(cls, spec: Spec, tokenizer: str, store_tokenizer: str | None = None) -> IdMap | None:
        """The map for a student with that tokenizer; None if it is the one that the store was labelled with.

        tokenizer, store_tokenizer: directories with a tokenizer.json. Without store_tokenizer no other than
        the store's own is taken. Raises UserError for files that are no tokenizers, SpecMismatch naming the
        token when the student's lacks one or has it twice.
        """
        if spec.vocabulary is None:
            raise SpecMismatch(
                "the store does not say which tokenizer its ids are of, so nobody knows whether they are "
                f"those of {tokenizer}: leave vocabulary out, or import the store with its tokenizer"
            )
        if TOKENS not in {item.name for item in spec.inputs}:
            raise SpecMismatch("the store keeps no token ids to compare tokenizers by: leave vocabulary out")
        student = TokenizerFile.load(tokenizer)
        if student.fingerprint == spec.vocabulary.fingerprint:
            return None
        if store_tokenizer is None:
            raise SpecMismatch(
                f"{student.path} is not the tokenizer that the store was labelled with, so the store's ids "
                "mean something else to this student: give that one, or name it as store_tokenizer to map ids"
            )
        store = TokenizerFile.load(store_tokenizer)
        if store.fingerprint != spec.vocabulary.fingerprint:
            raise SpecMismatch(
                f"{store.path}, named as store_tokenizer, is not the tokenizer that the store was labelled "
                "with: give the same file"
            )
        width = max([head.size for head in spec.heads if _maps(head)], default=store.size)
        ids = _matched(store, student, max(width, store.size))
        return cls(ids, max(student.size, int(ids.max(initial=-1)) + 1), store, student)

    def spec(self, spec: Spec) -> Spec:
        """The store's spec in the student's words: of what `tokens` and `targets` return."""
        return dataclasses.replace(
            spec,
            inputs=tuple(
                dataclasses.replace(item, dtype=id_dtype(self.size)) if item.name == TOKENS else item
                for item in spec.inputs
            ),
            heads=tuple(
                dataclasses.replace(head, size=self.size) if _maps(head) else head for head in spec.heads
            ),
            vocabulary=Vocabulary(self.student.size, self.size, self.student.fingerprint),
        )

    def tokens(self, tokens: Ragged | npt.NDArray[np.integer[Any]]) -> Ragged | Ints:
        """The student's ids, int64, of the store's, in their shape."""
        if isinstance(tokens, Ragged):
            return Ragged(self.ids[tokens.values], tokens.offsets)
        mapped: Ints = self.ids[tokens]
        return mapped

    def targets(self, targets: Targets, head: Head) -> Targets:
        """A head's targets over the student's classes. One that the store has no class for has a logit of
        -inf in dense ones, and is part of the tail in those that have one.
        """
        if not _maps(head):
            return targets
        match targets:
            case DenseTargets(logits):
                wide = np.full((len(logits), self.size), -np.inf, dtype=logits.dtype)
                wide[:, self.ids[: logits.shape[1]]] = logits
                return DenseTargets(wide)
            case TopKTargets() | TopPTargets() | SparseTargets():
                return dataclasses.replace(targets, ids=self.ids[targets.ids], size=self.size)
            case EmbeddingTargets():
                raise TypeError("embeddings have no classes")

    def check(self, rows: Rows, shard: str) -> None:
        """Whether both tokenizers cut the text of some rows, evenly spread, alike.

        The text is what the store's tokenizer makes of a row's ids. It is cut by both, rather than by the
        student's alone: at a window's ends even the store's own may cut otherwise than in the whole text.
        Raises SpecMismatch naming the row and the first token that differs; CorruptShard for a token beyond
        the store's classes.
        """
        stored = rows.inputs[TOKENS]
        largest = int((stored.values if isinstance(stored, Ragged) else stored).max(initial=0))
        if largest >= len(self.ids):
            raise CorruptShard(
                f"{shard} has the token {largest}, beyond the store's {len(self.ids)}: repair the store"
            )
        again = total = 0
        for row in np.unique(np.linspace(0, len(rows) - 1, CHECKED).astype(int)).tolist():
            ids = stored[row].tolist()
            text = self.store.decode(ids)
            theirs, ours = self.store.encode(text), self.student.encode(text)
            self._compare(rows.keys[row], theirs, ours)
            if BROKEN not in text:
                again += sum((Counter(theirs) & Counter(ids)).values())
                total += max(len(theirs), len(ids))
        if 2 * again < total:
            raise SpecMismatch(
                f"{self.store.path} does not give the ids of {shard} back for their text, so nothing shows "
                "whether the student's tokenizer cuts text alike: give the student the store's tokenizer"
            )

    def _compare(self, key: str, theirs: Sequence[int], ours: Sequence[int]) -> None:
        mapped = self.ids[np.array(theirs, dtype=np.int64)].tolist()
        if mapped == list(ours):
            return
        at = next(
            (i for i, (a, b) in enumerate(zip(mapped, ours, strict=False)) if a != b),
            min(len(mapped), len(ours)),
        )
        raise SpecMismatch(
            f"{key}: the two tokenizers cut its text differently, token {at} is "
            f"{_word(self.store, theirs, at)} for {self.store.path} and {_word(self.student, ours, at)} for "
            f"{self.student.path}: label with the student's tokenizer, or give the student the store's"
        )


def _maps(head: Head) -> bool:
    """Whether the head's classes are token ids."""
    return head.positions == "next_token" and head.codec.of == "logits"


def _matched(store: TokenizerFile, student: TokenizerFile, width: int) -> Ints:
    """The student's id of each of the store's classes, int64 [width]."""
    if store.spelling != student.spelling:
        raise SpecMismatch(
            f"{store.path} and {student.path} spell their tokens in different ways, so that none of one is "
            "one of the other: give the student the store's tokenizer"
        )
    ids = np.full(width, -1, dtype=np.int64)
    owners: dict[int, str] = {}
    for word, id_ in sorted(store.ids.items(), key=lambda item: item[1]):
        found = student.ids.get(word)
        if found is None or not _same(word, id_ in store.added, found in student.added):
            raise SpecMismatch(
                f"{student.path} has no token {word!r}, which is {id_} in {store.path}: give the student a "
                "tokenizer with all of the store's tokens"
            )
        if ids[id_] >= 0 or found in owners:
            path, number, other = (
                (store.path, id_, next(w for w, i in store.ids.items() if i == id_ and w != word))
                if ids[id_] >= 0
                else (student.path, found, owners[found])
            )
            raise SpecMismatch(
                f"{path} has two tokens with the id {number}, {other!r} and {word!r}: it does not say which "
                "one a target means"
            )
        ids[id_], owners[found] = found, word
    taken = set(student.ids.values())
    nameless = np.flatnonzero(ids < 0)
    kept = [id_ for id_ in nameless.tolist() if id_ not in taken]
    ids[kept] = kept
    beyond = max(student.size, max(kept, default=-1) + 1)
    lost = np.flatnonzero(ids < 0)
    ids[lost] = np.arange(beyond, beyond + len(lost))
    return ids


def _same(word: str, added: bool, found_added: bool) -> bool:
    """Whether a token spelled alike is of the same bytes. An added one is spelled as it stands in a text,
    others in the tokenizer's letters, which are the same for ASCII alone.
    """
    return added == found_added or word.isascii()


def _word(tokenizer: TokenizerFile, ids: Sequence[int], at: int) -> str:
    return repr(tokenizer.tokenizer.id_to_token(ids[at])) if at < len(ids) else "nothing"
