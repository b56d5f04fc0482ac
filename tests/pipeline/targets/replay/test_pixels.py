"""Operations in integers: what Pillow computes in floating-point numbers, and the same bits everywhere."""

from __future__ import annotations

import colorsys
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageEnhance, ImageOps

from pipeline.targets.replay import pixels
from pipeline.targets.replay.pixels import FILL, ONE, OPERATIONS, TURN, WHOLE, Pixels
from tests.pipeline.views.pictures import picture

IMAGES = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))


def difference(ours: Pixels, theirs: object) -> int:
    return int(np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).max())


@pytest.mark.parametrize(
    ("name", "enhancer"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
@pytest.mark.parametrize("factor", [0, 300, 1024, 1700, 2048])
def test_blends_are_pillows_rounded_instead_of_cut(name: str, enhancer: type, factor: int) -> None:
    image = picture(1)
    ours = OPERATIONS[name].apply(image, factor)
    assert difference(ours, enhancer(Image.fromarray(image)).enhance(factor / ONE)) <= 1


def test_look_up_tables_are_pillows() -> None:
    image = picture(2) // 2 + 10
    file = Image.fromarray(image)
    assert difference(pixels.equalize(image), ImageOps.equalize(file)) == 0
    assert difference(pixels.posterize(image, 3), ImageOps.posterize(file, 3)) == 0
    assert difference(pixels.solarize(image, 90), ImageOps.solarize(file, 90)) == 0
    assert difference(pixels.autocontrast(image), ImageOps.autocontrast(file)) <= 1


@pytest.mark.parametrize("amount", [-29, -4, 0, 7, 30])
def test_movements_are_pillows_with_the_nearest_pixel(amount: int) -> None:
    image = picture(3)
    file, (height, width), grey = Image.fromarray(image), image.shape[:2], (FILL,) * 3

    def moved(*matrix: float) -> Image.Image:
        return file.transform(file.size, Image.Transform.AFFINE, matrix, fillcolor=grey)

    shear = 10 * amount
    # Where two pixels are equally near, integers and floating-point numbers may choose differently.
    differ = pixels.rotate(image, amount) != np.asarray(file.rotate(amount, fillcolor=grey))
    assert differ.any(-1).mean() < 0.01
    expected = moved(1, shear / ONE, -shear / ONE * height / 2, 0, 1, 0)
    assert difference(pixels.shear_x(image, shear), expected) == 0
    expected = moved(1, 0, 0, shear / ONE, 1, -shear / ONE * width / 2)
    assert difference(pixels.shear_y(image, shear), expected) == 0
    assert difference(pixels.translate_x(image, amount), moved(1, 0, -amount, 0, 1, 0)) == 0
    assert difference(pixels.translate_y(image, amount), moved(1, 0, 0, 0, 1, -amount)) == 0


@pytest.mark.parametrize("shift", [-700, -1, 0, 200, TURN])
def test_a_turned_hue_is_that_of_the_hexcone_model(shift: int) -> None:
    image = picture(4, 12, 9)
    expected = np.empty(image.shape)
    for place in np.ndindex(image.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*(image[place] / 255))
        expected[place] = colorsys.hsv_to_rgb((h + shift / TURN) % 1, s, v)
    assert difference(pixels.hue(image, shift), np.rint(255 * expected)) <= 1


@given(IMAGES, st.sampled_from(sorted(OPERATIONS)), st.data())
def test_any_operation_on_any_image_gives_an_image_of_its_shape(
    image: Pixels, name: str, data: st.DataObject
) -> None:
    operation = OPERATIONS[name]
    arguments = [] if operation.low is None else [data.draw(st.integers(operation.low, operation.high))]
    before = image.copy()
    out = operation.apply(image, *arguments)
    assert out.dtype == np.uint8
    assert out.shape == image.shape
    np.testing.assert_array_equal(image, before)


@given(IMAGES)
def test_what_changes_nothing_changes_nothing(image: Pixels) -> None:
    for name in ("brightness", "contrast", "saturation", "sharpness"):
        np.testing.assert_array_equal(OPERATIONS[name].apply(image, ONE), image)
    for name in ("hue", "rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
        np.testing.assert_array_equal(OPERATIONS[name].apply(image, 0), image)
    np.testing.assert_array_equal(pixels.mixup(image, 255 - image, WHOLE), image)
    np.testing.assert_array_equal(pixels.cutmix(image, 255 - image, (0, 0, 0, 0)), image)


def test_a_mixture_is_the_rounded_mean_of_both() -> None:
    one, other = picture(5), picture(6)
    mixed = pixels.mixup(one, other, WHOLE // 4)
    assert difference(mixed, np.floor(one * 0.25 + other * 0.75 + 0.5)) == 0
    cut = pixels.cutmix(one, other, (3, 4, 10, 5))
    outside = np.ones(one.shape[:2], dtype=bool)
    outside[4:9, 3:13] = False
    np.testing.assert_array_equal(cut[~outside], other[~outside])
    np.testing.assert_array_equal(cut[outside], one[outside])


def test_the_bits_are_those_of_every_machine() -> None:
    # Of numbers that no library had a hand in. A change of it makes every ledger unreadable.
    image = (np.arange(24 * 20 * 3, dtype=np.int64) ** 2 // 7 % 256).astype(np.uint8).reshape(24, 20, 3)
    state = hashlib.sha256()
    for name, operation in sorted(OPERATIONS.items()):
        arguments = [] if operation.low is None else [{"posterize": 3, "solarize": 99}.get(name, 17)]
        state.update(operation.apply(image, *arguments).tobytes())
    assert state.hexdigest()[:16] == "b5714ba03f75426b"
