"""Arrays as views: the declared shape and type, or a rejection that says why."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.corpus import Record
from pipeline.views import Arrays, Rejected


def render(
    array: Any, dtype: Literal["uint8", "float32"] = "float32", shape: tuple[int, ...] = (2, 3)
) -> npt.NDArray[Any]:
    (view,) = Arrays(shape=list(shape), dtype=dtype).load().render(Record("r", 0, {"array": array}))
    assert view.size == 1
    return view.inputs["image"]


@pytest.mark.parametrize("given", ["uint8", "float16", "float64", ">f4", "int32"])
def test_what_fits_is_passed_on_unscaled(given: str) -> None:
    values = render(np.arange(6).reshape(2, 3).astype(given))
    assert values.dtype == np.dtype("<f4")
    np.testing.assert_array_equal(values, np.arange(6).reshape(2, 3))
    assert values.flags.c_contiguous


def test_bytes_stay_bytes() -> None:
    array = np.full((2, 3), 255, dtype=np.uint8)
    assert render(array, "uint8").dtype == np.uint8


@pytest.mark.parametrize(
    ("array", "dtype", "code", "reason"),
    [
        (np.zeros((3, 2)), "float32", "undecodable", r"r has shape \(3, 2\), not \(2, 3\)"),
        (np.zeros((2, 3)), "uint8", "undecodable", "r is float64, which uint8 cannot hold"),
        (np.zeros((2, 3), "complex64"), "float32", "undecodable", "r is complex64"),
        (np.full((2, 3), np.nan), "float32", "non_finite", "r has an infinite or undefined value"),
        (np.full((2, 3), 1e300), "float32", "non_finite", "r has an infinite"),
        ("text", "float32", "undecodable", "r has no array in its field 'array'"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_does_not_fit_is_rejected(
    array: Any, dtype: Literal["uint8", "float32"], code: str, reason: str
) -> None:
    with pytest.raises(Rejected, match=reason) as caught:
        render(array, dtype)
    assert caught.value.code == code


def test_the_description_tells_one_configuration_from_another() -> None:
    one = Arrays(shape=[2, 3]).load()
    assert one.description == Arrays(shape=[2, 3]).load().description
    assert one.description["fingerprint"] != Arrays(shape=[3, 2]).load().description["fingerprint"]
    assert one.inputs[0].shape == (2, 3)
    assert one.vocabulary is None
