"""Token windows: a text becomes windows of at most `length` tokens.

It knows how text is cut; the tokenizer's file is `targets.tokenizer`'s. It knows no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from pipeline.corpus.base import Record
from pipeline.targets.errors import UserError
from pipeline.targets.spec import Input, Vocabulary
from pipeline.targets.tokenizer import TokenizerFile
from pipeline.views.base import Rejected, Renderer, View, Views

PIECE = 1 << 20


class TokenWindows(Views):
    """Windows of token ids, as the input "tokens".

    A window begins with the last token of the one before, so that every token of a record but its first is
    predicted exactly once. No special tokens are added. A text of more than 2^20 characters is tokenized in
    pieces that end with a line, because a tokenizer takes some 150 bytes of memory a character; the windows
    run over the pieces' tokens as if they were one.
    """

    kind: Literal["token_windows"] = "token_windows"
    """Windows of tokens."""

    tokenizer: str
    """A directory with a tokenizer.json, or that file."""

    length: int = Field(default=256, ge=2)
    """Tokens of a window, at most."""

    field: str = "text"
    """The field of a record that holds its text."""

    min_length: int = Field(default=2, ge=2)
    """A last window with fewer tokens is dropped."""

    def load(self) -> WindowRenderer:
        """Raises UserError when there is no tokenizer.json or it cannot be read."""
        return WindowRenderer(self, TokenizerFile.load(self.tokenizer))


class WindowRenderer(Renderer):
    """A loaded TokenWindows.

    vocabulary.padded_size is its size here: only the teacher knows how wide its logits are, and whoever
    builds the spec puts that in its place.
    """

    def __init__(self, config: TokenWindows, tokenizer: TokenizerFile) -> None:
        if config.min_length > config.length:
            raise UserError(f"views.min_length ({config.min_length}) is larger than length ({config.length})")
        self.config, self.tokenizer = config, tokenizer
        size = tokenizer.size
        self.dtype = "<u2" if size <= 1 << 16 else "<u4"
        self.inputs = (Input("tokens", self.dtype, (None,)),)
        self.vocabulary = Vocabulary(size, size, tokenizer.fingerprint)
        self.description = {
            "kind": config.kind,
            "fingerprint": tokenizer.fingerprint,
            "length": config.length,
            "min_length": config.min_length,
            "field": config.field,
            "piece": PIECE,
        }

    def render(self, record: Record, earlier: Sequence[Record] = ()) -> list[View]:
        text = record.data.get(self.config.field)
        if not isinstance(text, str):
            raise Rejected("undecodable", f"{record.key} has no text in its field {self.config.field!r}")
        try:
            ids = [np.array(self.tokenizer.encode(piece), dtype=self.dtype) for piece in pieces(text, PIECE)]
        except TypeError as error:  # what the library says of a str with a lone surrogate
            raise Rejected("undecodable", f"{record.key} is no valid Unicode text") from error
        tokens = np.concatenate(ids)
        step = self.config.length - 1
        windows = [tokens[i : i + self.config.length] for i in range(0, max(len(tokens) - 1, 0), step)]
        if windows and len(windows[-1]) < self.config.min_length:
            del windows[-1]
        if not windows:
            raise Rejected("empty", f"{record.key} has {len(tokens)} tokens, too few for a window")
        return [View({"tokens": window}, len(window)) for window in windows]


def pieces(text: str, size: int) -> Iterator[str]:
    """The text in pieces of at most `size` characters, cut after a line, before a space, or anywhere."""
    start = 0
    while len(text) - start > size:
        line, space = text.rfind("\n", start, start + size), text.rfind(" ", start + 1, start + size)
        stop = line + 1 if line >= 0 else space if space >= 0 else start + size
        yield text[start:stop]
        start = stop
    yield text[start:]
