"""Inputs that are pictures are drawn pixel by pixel, others are not."""

from __future__ import annotations

import io

import numpy as np
import pytest

from jobs.viewer import pictures


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (3, 5, 7), (5, 7, 1), (5, 7, 3)])
@pytest.mark.parametrize("dtype", ["|u1", "<f4"])
def test_a_picture_has_the_pixels_of_its_array(shape: tuple[int, ...], dtype: str) -> None:
    from PIL import Image

    array = np.random.default_rng(0).integers(0, 256, shape).astype("|u1")
    expected = array.squeeze() if 1 in shape else array
    expected = np.moveaxis(expected, 0, 2) if shape[0] == 3 else expected
    values = array if dtype == "|u1" else (array / 255).astype(dtype)
    assert pictures.is_picture(values.shape, values.dtype)
    picture = pictures.draw(values)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(picture.png))), expected)
    assert picture.note == ""


def test_a_picture_of_any_size_and_range_becomes_a_small_one_that_says_so() -> None:
    from PIL import Image

    ramp = np.linspace(-2, 2, 1000 * 3, dtype=np.float32).reshape(3, 1000)
    picture = pictures.draw(np.repeat(ramp, 200, axis=0))
    pixels = np.asarray(Image.open(io.BytesIO(picture.png)))
    assert max(pixels.shape) <= pictures.LARGEST
    assert (np.diff(pixels.astype(int), axis=1) >= 0).all()
    assert picture.note == "black is -2, white 2, shrunk from 1000 × 600"
    flat = pictures.draw(np.array([[np.nan, np.inf], [7, 7]], dtype=np.float32))
    assert Image.open(io.BytesIO(flat.png)).size == (2, 2)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((64,), "|u1"), ((1, 64), "<f4"), ((2, 8, 8), "|u1"), ((8, 8), "<i8"), ((), "<f4")]
)
def test_what_is_no_picture_is_not_drawn(shape: tuple[int, ...], dtype: str) -> None:
    assert not pictures.is_picture(shape, np.dtype(dtype))
