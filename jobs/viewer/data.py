"""What the page's script draws rows from: plain data that `json.dumps` takes, numbers packed in base64.

It knows stores and tokenizers; nothing in it is HTML. Numbers of many targets lie in one text each,
little-endian: a row of 256 tokens is some kilobytes, and the script unpacks it only when it comes into view.

A probability p is written as a rarity: -2048 ln p, rounded, in 16 bits, three digits down to 1e-14.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from jobs.distributions import Distribution, Distributions, distributions
from jobs.inspection import recorded
from jobs.viewer.pictures import draw, is_picture
from pipeline.targets.decoded import (
    DenseTargets,
    EmbeddingTargets,
    SparseTargets,
    Targets,
    TopKTargets,
    TopPTargets,
)
from pipeline.targets.errors import CorruptShard
from pipeline.targets.rows import Rows
from pipeline.targets.spec import TOKENS, Head, Spec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from pipeline.targets.commit import Commit

RARITY = 2048
"""Steps of a rarity in a factor of e."""

NEVER = 2**16 - 1
"""The rarity of probability 0, and of all below exp(-NEVER / RARITY)."""

NOTHING = 1e-6
"""A mass below it is the rounding of float32 sums."""

SHORT = 12
"""Values of an input that are written out."""

CHUNK = 32
"""Targets that are looked at together: bounds the scratch of a dense head with a large vocabulary."""

LONGEST_CHARACTER = 8
"""Tokens that may share one character before what they have is taken as text."""

ENTROPY_IS: dict[type[Targets] | None, str] = {
    DenseTargets: "which is the teacher's own, over all classes",
    TopKTargets: "with all classes that are not stored counted as one: at most the teacher's own",
    TopPTargets: "with all classes that are not stored counted as one: at most the teacher's own",
    SparseTargets: "of the stored estimate, whose tail is drawn: on average below the teacher's own",
}
"""What the entropy of a stored target says of the teacher's."""

Ints = npt.NDArray[np.int64]


@dataclass
class Builder:
    """Rows of one store as data, and what they have in common.

    tokenizer: None leaves ids as they are. tokens: of a row, how many are shown; entries: of a target, how
    many classes.
    """

    spec: Spec
    tokenizer: Tokenizer | None
    tokens: int
    entries: int
    _entropies: dict[str, list[npt.NDArray[np.float64]]] = field(default_factory=dict)
    _named: dict[str, set[int]] = field(default_factory=dict)
    _shapes: dict[str, type[Targets]] = field(default_factory=dict)

    def row(self, commit: Commit, row: Rows) -> dict[str, Any]:
        """One row, its heads in the order of `heads`. Raises CorruptShard for what is no distribution."""
        out: dict[str, Any] = {
            "key": row.keys[0],
            "unit": commit.unit,
            "view": int(row.view[0]),
            "views": int(row.views[0]),
            "pictures": [],
            "inputs": [],
            "heads": [],
        }
        ids = None
        for item in self.spec.inputs:
            array = row.inputs[item.name][0]
            if item.name == TOKENS and array.ndim == 1:
                ids = array.astype(np.int64)
            elif is_picture(array.shape, array.dtype):
                picture = draw(array)
                png = base64.b64encode(picture.png).decode()
                out["pictures"].append({"name": item.name, "png": png, "note": picture.note})
            else:
                said = recorded(item.name, self.spec, array) or _described(array)
                out["inputs"].append(f"{item.name}: {said}")
        if ids is not None:
            shown = ids[: self.tokens].tolist()
            texts = pieces(self.tokenizer, shown) if self.tokenizer else [f"{number} " for number in shown]
            out["text"] = "".join(texts)
            # In UTF-16 units, as a script counts.
            out["lengths"] = _packed([len(text.encode("utf-16-le", "surrogatepass")) // 2 for text in texts])
            out["length"] = len(ids)
        for head in self.spec.heads:
            decoded = row.decode(head.name)
            if isinstance(decoded, EmbeddingTargets):
                out["heads"].append({"targets": 0})
                out["inputs"].append(f"{head.name}: {_described(decoded.vectors)}")
                continue
            try:
                out["heads"].append(self._head(head, decoded, row, ids))
            except CorruptShard as error:
                where = f"head {head.name} of {row.keys[0]}, shard {commit.shard}"
                raise CorruptShard(f"{where}: {error}; discard its unit and label again") from error
        return out

    def heads(self) -> list[dict[str, Any]]:
        """The heads and the words for all classes that the rows so far name."""
        return [
            {
                "name": head.name,
                "next": head.positions == "next_token",
                "size": head.size,
                "meaning": ENTROPY_IS.get(self._shapes.get(head.name), ""),
                "partial": self._shapes.get(head.name) in (TopKTargets, TopPTargets),
                "top": self._top(head.name),
                "words": (words := self._words(head)),
                "named": bool(words),
            }
            for head in self.spec.heads
        ]

    def _head(self, head: Head, decoded: Distribution, row: Rows, ids: Ints | None) -> dict[str, Any]:
        count = min(int(row.counts(head)[0]), self.tokens)
        came = ids[1 : count + 1] if ids is not None and head.positions == "next_token" else None
        self._shapes[head.name] = type(decoded)
        named = self._named.setdefault(head.name, set())
        columns: dict[str, list[npt.NDArray[Any]]] = {}
        for start in range(0, count, CHUNK):
            part = distributions(decoded, start, min(start + CHUNK, count))
            following = None if came is None else came[start : start + CHUNK]
            for name, values in _columns(part, self.entries, following).items():
                columns.setdefault(name, []).append(values)
        whole = {name: np.concatenate(parts) for name, parts in columns.items()}
        if not whole:
            return {"targets": 0}
        self._entropies.setdefault(head.name, []).append(whole["entropy"])
        named.update(np.unique(whole["ids"]).tolist())
        out: dict[str, Any] = {"targets": count}
        if came is not None:
            named.update(np.unique(came).tolist())
            out["came"] = _packed(came, wide=head.size > 2**16)
            out["cameRarity"] = _packed(_rarity(whole["came"]))
        return {
            **out,
            "stored": _packed(whole["stored"], wide=True),
            "shown": _packed(whole["shown"]),
            "head": _packed(whole["head"]),
            "ids": _packed(whole["ids"], wide=head.size > 2**16),
            "rarity": _packed(_rarity(whole["probabilities"])),
            "rest": _packed(_rarity(whole["rest"])),
            "entropy": _packed((whole["entropy"] * 1000).round()),
        }

    def _top(self, head: str) -> float:
        """Where the scale of colours ends, nats: all but the highest few of a hundred are below."""
        parts = self._entropies.get(head)
        high = float(np.quantile(np.concatenate(parts), 0.97)) if parts else 0.0
        return max(float(np.ceil(high * 2)) / 2, 0.5)

    def _words(self, head: Head) -> dict[str, str]:
        named = sorted(self._named.get(head.name, ()))
        labels = self.spec.teacher.get("labels")
        if head.positions == "single":
            if not isinstance(labels, list) or len(labels) != head.size:
                return {}
            return {str(number): str(labels[number]) for number in named}
        if self.tokenizer is None:
            return {}
        decode = self.tokenizer.decode
        return {str(number): decode([number], skip_special_tokens=False) for number in named}


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text that each token adds to the text of those before it; joined, the text of all.

    A token that ends inside a character adds nothing, and the last token of that character adds all of it.
    """
    out: list[str] = []
    context = done = 0  # tokens context:done are said again, for a token's text depends on the one before it
    before = ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[context:end], skip_special_tokens=False)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and end - done < LONGEST_CHARACTER and end < len(ids):
            out.append("")
            continue
        out.append(text[len(before) :])
        context, done = done, end
        before = tokenizer.decode(ids[context:done], skip_special_tokens=False)
    return out


def _columns(part: Distributions, most: int, came: Ints | None) -> dict[str, npt.NDArray[Any]]:
    """One value a target, and one an entry: of each target the likeliest `most`, its head before its tail."""
    targets = part.targets
    order = np.lexsort((-part.probabilities, targets))
    rank = np.arange(len(order)) - part.offsets[:-1][targets]
    chosen = order[rank < most]
    chosen = chosen[np.lexsort((-part.probabilities[chosen], ~part.is_head[chosen], targets[chosen]))]
    of = targets[chosen]
    rest = 1 - np.bincount(of, weights=part.probabilities[chosen], minlength=len(part))
    columns = {
        "entropy": part.entropy(),
        "stored": part.counts,
        "shown": np.bincount(of, minlength=len(part)),
        "head": np.bincount(of[part.is_head[chosen]], minlength=len(part)),
        "ids": part.ids[chosen],
        "probabilities": part.probabilities[chosen],
        "rest": np.where(rest < NOTHING, 0, rest),
    }
    if came is not None:
        columns["came"] = part.probability(came)
    return columns


def _rarity(probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.minimum(np.round(-RARITY * np.log(np.minimum(probabilities, 1))), NEVER)


def _packed(values: npt.NDArray[Any] | Sequence[int], wide: bool = False) -> str:
    """Whole numbers from 0 as base64 of 16 bits each, or 32; larger ones become the largest."""
    dtype = np.dtype("<u4" if wide else "<u2")
    return base64.b64encode(np.minimum(values, np.iinfo(dtype).max).astype(dtype).tobytes()).decode()


def _described(array: npt.NDArray[Any]) -> str:
    shape = " × ".join(map(str, array.shape))
    if array.size <= SHORT:
        return f"{array.tolist()}"
    return f"{shape} {array.dtype.name}, from {array.min():.4g} to {array.max():.4g}"
