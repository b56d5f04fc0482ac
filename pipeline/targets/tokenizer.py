"""A tokenizer's file: which tokens it has, how they are spelled, and how it cuts text.

It knows tokenizer.json, read by the tokenizers library: no remote code. It knows no store and no model. The
library is imported when a file is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.targets.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class TokenizerFile:
    """A loaded tokenizer.json. path: the file; fingerprint: SHA-256 of its bytes, 64 hexadecimal digits."""

    path: str
    fingerprint: str
    tokenizer: Tokenizer

    @classmethod
    def load(cls, path: str) -> TokenizerFile:
        """The tokenizer of a directory with a tokenizer.json, or of that file.

        Truncation and padding are off, whatever the file says: both would change a text's tokens.
        Raises UserError when there is none or it cannot be read.
        """
        file = os.path.abspath(os.path.expanduser(path))
        if os.path.isdir(file):
            file = os.path.join(file, "tokenizer.json")
        try:
            with open(file, "rb") as opened:
                data = opened.read()
        except OSError as error:
            raise UserError(f"no tokenizer at {path}: give a directory with a tokenizer.json") from error
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise UserError(
                "reading a tokenizer needs its package: pip install 'decant-kd[student]'"
            ) from error
        try:
            tokenizer = Tokenizer.from_buffer(data)
        except Exception as error:
            raise UserError(f"{file} is no tokenizer that the tokenizers library reads: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(file, hashlib.sha256(data).hexdigest(), tokenizer)

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """The id of each token, by how it is spelled; added tokens among them."""
        found: dict[str, int] = self.tokenizer.get_vocab(with_added_tokens=True)
        return found

    @property
    def size(self) -> int:
        """The largest id plus one: not the number of tokens, for there may be gaps."""
        return 1 + max(self.ids.values(), default=-1)

    @cached_property
    def added(self) -> frozenset[int]:
        """Ids of the tokens that are looked for in a text first, and are spelled as they stand there."""
        return frozenset(self.tokenizer.get_added_tokens_decoder())

    @cached_property
    def spelling(self) -> tuple[object, ...]:
        """How tokens are written: equal for two tokenizers if a word of one means the same text in the other.

        That is: whether bytes are written in GPT-2's letters, what stands for a space, what marks that a
        token continues or ends a word, and whether <0x41> is a byte.
        """
        state = json.loads(self.tokenizer.to_str())
        parts = [part for name in ("normalizer", "pre_tokenizer", "decoder") for part in _parts(state[name])]
        spaces = {part["replacement"] for part in parts if part.get("type") == "Metaspace"}
        spaces |= {
            part["pattern"].get("String")
            for part in parts
            if part.get("type") == "Replace" and part["content"] == " "
        }
        model = state["model"]
        return (
            any(part.get("type") == "ByteLevel" for part in parts),
            frozenset(spaces),
            model.get("continuing_subword_prefix") or "",
            model.get("end_of_word_suffix") or "",
            bool(model.get("byte_fallback")),
        )

    def encode(self, text: str) -> list[int]:
        """The text's ids, without special tokens at its ends. Raises TypeError for a lone surrogate."""
        # The fast one gives the same ids, and no offsets, in three quarters of the time.
        (encoding,) = self.tokenizer.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Their text, with special tokens. What is no UTF-8 at a cut becomes U+FFFD."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False)
        return text


def _parts(state: Any) -> Iterator[Mapping[str, Any]]:
    """A component of a tokenizer's state, and those that it consists of."""
    if isinstance(state, Mapping):
        yield state
        for name in ("normalizers", "pretokenizers", "decoders"):
            for part in state.get(name, ()):
                yield from _parts(part)
