"""Views: one file each. A new one needs a `kind`, `load` and a Renderer, and its name in the union here."""

from typing import Annotated

from pydantic import Field

from pipeline.views.arrays import Arrays
from pipeline.views.audio import Audio
from pipeline.views.base import Rejected, Renderer, View, Views
from pipeline.views.image_text import ImageText
from pipeline.views.images import Images
from pipeline.views.token_windows import TokenWindows

AnyViews = Annotated[TokenWindows | Arrays | Audio | Images | ImageText, Field(discriminator="kind")]

__all__ = [
    "AnyViews",
    "Arrays",
    "Audio",
    "ImageText",
    "Images",
    "Rejected",
    "Renderer",
    "TokenWindows",
    "View",
    "Views",
]
