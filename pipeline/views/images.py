"""Image views: crops, flips, colours and mixtures, drawn here and written into a ledger.

It knows what is drawn. How an entry of the ledger becomes pixels is `targets.replay`'s, because students
render by it too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipeline.config import Config
from pipeline.corpus.base import Record
from pipeline.targets.replay import Unrenderable, ledger
from pipeline.targets.replay.images import ImageReplay, decoders
from pipeline.targets.replay.pixels import ONE, TURN, WHOLE
from pipeline.views.base import Rejected, Renderer, View, Views
from pipeline.views.draws import Draws
from pipeline.views.labels import LABEL, described_label, label_of
from pipeline.views.recorded import fingerprint, recorded

CROP_ATTEMPTS = 10
"""Boxes of a drawn area and aspect that are tried before the largest central one is taken."""


class RandomCrop(Config):
    """A box of random area and aspect ratio at a random place (Szegedy et al. 2015)."""

    kind: Literal["random"] = "random"
    """A random box."""

    scale: tuple[PositiveFloat, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area."""

    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    """Smallest and largest width over height."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if not self.scale[0] <= self.scale[1] <= 1 or self.ratio[0] > self.ratio[1]:
            raise ValueError(
                "crop: scale and ratio are of the smaller number and the larger, scale at most 1"
            )
        return self

    def box(self, width: int, height: int, draws: Draws) -> list[int]:
        """Left, top, width and height."""
        for _ in range(CROP_ATTEMPTS):
            area = width * height * draws.between(*self.scale)
            aspect = math.exp(draws.between(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return [draws.below(width - w + 1), draws.below(height - h + 1), w, h]
        aspect = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
        return [(width - w) // 2, (height - h) // 2, w, h]


class CentreCrop(Config):
    """The square in the middle."""

    kind: Literal["centre"] = "centre"
    """The central square."""

    share: float = Field(default=0.875, gt=0, le=1)
    """Its side over the image's shorter side."""

    def box(self, width: int, height: int, draws: Draws) -> list[int]:
        """Left, top, width and height."""
        side = max(1, round(min(width, height) * self.share))
        return [(width - side) // 2, (height - side) // 2, side, side]


class Jitter(Config):
    """Changes of colour by random factors, in random order."""

    brightness: float = Field(default=0.4, ge=0, le=1)
    """A factor from 1 - x to 1 + x."""

    contrast: float = Field(default=0.4, ge=0, le=1)
    """A factor from 1 - x to 1 + x."""

    saturation: float = Field(default=0.4, ge=0, le=1)
    """A factor from 1 - x to 1 + x."""

    hue: float = Field(default=0.1, ge=0, le=0.5)
    """A turn of at most x of the colour circle, either way."""

    probability: float = Field(default=0.8, ge=0, le=1)
    """Share of views that are changed."""

    def operations(self, draws: Draws) -> list[list[Any]]:
        """Ledger entries."""
        if draws.fraction() >= self.probability:
            return []
        made: list[list[Any]] = [
            [name, round(ONE * draws.between(1 - most, 1 + most))]
            for name in ("brightness", "contrast", "saturation")
            if (most := getattr(self, name))
        ]
        if self.hue:
            made.append(["hue", round(TURN * draws.between(-self.hue, self.hue))])
        return draws.shuffled(made)


class RandAugment(Config):
    """Random operations of one strength (Cubuk et al. 2020), with the ranges that torchvision uses.

    An operation that has a direction takes it at random.
    """

    operations: PositiveInt = 2
    """Operations of a view."""

    magnitude: int = Field(default=9, ge=0, le=30)
    """Their strength, of 30."""

    def drawn(self, size: int, draws: Draws) -> list[list[Any]]:
        """Ledger entries, for images of size × size pixels."""
        m = self.magnitude
        factor, shear, distance = (
            round(ONE * 0.03 * m),
            round(ONE * 0.01 * m),
            round(150 / 331 * size * m / 30),
        )
        ranges: dict[str, int | None] = {
            "identity": None,
            "autocontrast": None,
            "brightness": factor,
            "contrast": factor,
            "equalize": None,
            "posterize": 8 - round(m * 4 / 30),
            "rotate": m,
            "saturation": factor,
            "sharpness": factor,
            "shear_x": shear,
            "shear_y": shear,
            "solarize": 255 - 255 * m // 30,
            "translate_x": distance,
            "translate_y": distance,
        }
        made: list[list[Any]] = []
        for _ in range(self.operations):
            name = draws.choose(list(ranges))
            strength = ranges[name]
            if name == "identity":
                continue
            if strength is None:
                made.append([name])
            elif name in ("posterize", "solarize"):
                made.append([name, strength])
            else:
                signed = strength if draws.fraction() < 0.5 else -strength
                made.append([name, ONE + signed if name in FACTORS else signed])
        return made


FACTORS = frozenset({"brightness", "contrast", "saturation", "sharpness"})
"""Operations whose argument is a factor about ONE."""


class Mix(Config):
    """A second image mixed in: one of the records before this one in its unit, in a view of its own.

    So a unit's first record is never mixed, and a corpus that is sorted by class is mixed within classes.
    """

    mixup: float | None = Field(default=0.2, ge=0.05, le=1)
    """α of the distribution Beta(α, α) of the weight, 1 the most mixing; null does not do it."""

    cutmix: float | None = Field(default=1.0, ge=0.05, le=1)
    """α of the share that the first image keeps when a box of the second is put over it; null for never."""

    probability: float = Field(default=1.0, gt=0, le=1)
    """Share of views that are mixed; mixup and cutmix are equally frequent where both are on."""

    reach: int = Field(default=64, ge=1, le=1024)
    """How many records back the partner may be. Labelling and replay hold the files of as many."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.mixup is None and self.cutmix is None:
            raise ValueError("mix: mixup and cutmix are both off: leave mix out")
        return self

    def drawn(self, size: int, draws: Draws) -> dict[str, Any]:
        """How: the weight of the view itself in 65536ths, and for cutmix the box."""
        kinds = [(kind, alpha) for kind in ("mixup", "cutmix") if (alpha := getattr(self, kind)) is not None]
        kind, alpha = draws.choose(kinds)
        share = draws.beta(alpha)
        if kind == "mixup":
            return {"weight": round(share * WHOLE)}
        side = round(size * math.sqrt(1 - share))
        x, y = draws.below(size), draws.below(size)
        left, top = max(0, x - side // 2), max(0, y - side // 2)
        right, bottom = min(size, x - side // 2 + side), min(size, y - side // 2 + side)
        box = [left, top, right - left, bottom - top]
        return {"box": box, "weight": WHOLE - round(WHOLE * box[2] * box[3] / size**2)}


class Images(Views):
    """Views of an image file, each from explicit parameters that the store keeps.

    A view's parameters are drawn from `seed`, the record's key and the view's number; the store has the
    parameters themselves and a digest of the pixels, so that a student sees the same pixels or none.
    """

    kind: Literal["images"] = "images"
    """Crops of images."""

    field: str = "image"
    """The field of a record that holds the image file (JPEG, PNG, WebP, BMP), or its pixels as an array uint8
    [height, width, 3]. EXIF orientation is applied, alpha is dropped, grey becomes RGB."""

    name: str = Field(default="image", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The name of the input, which teachers and students see."""

    size: PositiveInt = Field(le=4096)
    """Pixels of a view's side."""

    views: PositiveInt = 1
    """Views of a record."""

    crop: RandomCrop | CentreCrop = Field(default=CentreCrop(), discriminator="kind")
    """Which part of the image."""

    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    """How the part becomes size × size pixels: a filter of Pillow's, with antialiasing."""

    flip: float = Field(default=0.0, ge=0, le=1)
    """Share of views that are mirrored, left to right."""

    jitter: Jitter | None = None
    """Changes of colour, after the flip."""

    randaugment: RandAugment | None = None
    """RandAugment, after the jitter."""

    mix: Mix | None = None
    """Mixup and cutmix, after everything else."""

    dtype: Literal["uint8", "float32"] = "float32"
    """uint8: pixels as they are; float32: (pixel / 255 - mean) / std. [3, size, size] either way."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of red, green and blue; for float32."""

    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """Of red, green and blue; for float32."""

    max_pixels: PositiveInt = Field(default=64_000_000, le=178_000_000)
    """Larger images are quarantined before they are decoded. Pillow itself goes no further than the bound."""

    seed: int = 0
    """Of every parameter that is drawn."""

    label: str | None = None
    """The field of a record that holds its true class, an integer. The store keeps it as the input "label",
    for students that learn from labels too; the teacher never sees it. A mixed view has its own record's."""

    def load(self) -> ImageRenderer:
        """Raises UserError where Pillow is not installed."""
        return ImageRenderer(self)


class ImageRenderer(Renderer):
    """A loaded Images."""

    vocabulary = None

    def __init__(self, config: Images) -> None:
        self.config = config
        described = {
            **described_label(config.model_dump(mode="json")),
            "reach": config.mix.reach if config.mix else 0,
            "decoder": decoders(),
        }
        self.description = {**described, "fingerprint": fingerprint(described)}
        self._replay = ImageReplay(self.description)
        self.inputs, self.reach = self._replay.inputs, self._replay.reach
        self.recorded = (*((LABEL,) if config.label else ()), *ledger.RECORDED)

    def render(self, record: Record, earlier: Sequence[Record] = ()) -> list[View]:
        try:
            image = self._replay.decode(record.data)
        except Unrenderable as error:
            raise Rejected(error.code, f"{record.key} {error.reason}") from error
        kept = label_of(record, self.config.label) if self.config.label else {}
        views = []
        for number in range(self.config.views):
            draws = Draws(self.config.seed, record.key, number)
            entry, partner = self._parameters(image, draws), None
            if self.config.mix is not None and earlier and draws.fraction() < self.config.mix.probability:
                other = draws.choose(earlier)
                try:
                    partner = self._replay.decode(other.data)
                except Unrenderable:
                    pass  # it is quarantined itself, and this view stays unmixed
                else:
                    entry["mix"] = {
                        **self.config.mix.drawn(self.config.size, draws),
                        "row": other.row,
                        "key": other.key,
                        "view": self._parameters(partner, draws),
                    }
            rendered = self._replay.render(entry, image, partner)
            told = recorded(entry, self._replay.digest(rendered))
            views.append(View({**rendered, **kept, **told}, 1))
        return views

    def _parameters(self, image: Any, draws: Draws) -> dict[str, Any]:
        config = self.config
        entry: dict[str, Any] = {"crop": config.crop.box(image.width, image.height, draws)}
        if draws.fraction() < config.flip:
            entry["flip"] = True
        operations = config.jitter.operations(draws) if config.jitter else []
        operations += config.randaugment.drawn(config.size, draws) if config.randaugment else []
        return {**entry, "ops": operations} if operations else entry
