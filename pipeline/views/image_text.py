"""A text and an image together: what a teacher of both sees of a record.

It joins the views of each, and knows of them what they give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import field_validator

from pipeline.corpus.base import Record
from pipeline.views.base import Renderer, View, Views
from pipeline.views.images import ImageRenderer, Images
from pipeline.views.recorded import fingerprint
from pipeline.views.token_windows import TokenWindows, WindowRenderer


class ImageText(Views):
    """The views of a record's image, each with the first window of its text: the inputs "tokens" and "image".

    Token ids are always stored; of the image, the ledger and, with store.inputs: embed, the pixels.
    """

    kind: Literal["image_text"] = "image_text"
    """An image and its text."""

    image: Images
    """How the image is cut, as of views.kind images; without mix, for a mixture is of two texts."""

    text: TokenWindows
    """How the text is cut, as of views.kind token_windows; what is beyond `length` tokens is left out."""

    @field_validator("image")
    @classmethod
    def _unmixed(cls, image: Images) -> Images:
        if image.mix is not None:
            raise ValueError("mix: a mixture of two images has no text: leave mix out")
        return image

    def load(self) -> ImageTextRenderer:
        """Raises UserError as the views of both do."""
        return ImageTextRenderer(self, self.image.load(), self.text.load())


class ImageTextRenderer(Renderer):
    """A loaded ImageText."""

    def __init__(self, config: ImageText, image: ImageRenderer, text: WindowRenderer) -> None:
        self._image, self._text = image, text
        self.inputs, self.recorded = (*text.inputs, *image.inputs), image.recorded
        self.vocabulary = text.vocabulary
        described = {
            "kind": config.kind,
            "image": dict(image.description),
            "text": dict(text.description),
        }
        self.description = {**described, "fingerprint": fingerprint(described)}

    def render(self, record: Record, earlier: Sequence[Record] = ()) -> list[View]:
        """A view's size is that of its text."""
        window, *_ = self._text.render(record)
        return [
            View({**view.inputs, **window.inputs}, window.size)
            for view in self._image.render(record, earlier)
        ]
