"""A record's true class is kept beside its views, for students alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.corpus import Record
from pipeline.views import Arrays, Images, Rejected
from pipeline.views.base import Views

VIEWS = [
    Arrays(field="pixels", name="image", dtype="uint8", shape=[8, 8, 3], label="digit"),
    Images(field="pixels", size=4, views=3, label="digit"),
]


def record(digit: Any) -> Record:
    return Record("r", 0, {"pixels": np.zeros((8, 8, 3), np.uint8), "digit": digit})


@pytest.mark.parametrize("views", VIEWS, ids=lambda views: views.kind)
def test_every_view_has_the_class_and_the_teacher_is_not_shown_it(views: Views) -> None:
    loaded = views.load()
    assert "label" not in {item.name for item in loaded.inputs}
    (kept,) = (item for item in loaded.recorded if item.name == "label")
    for view in loaded.render(record(7)):
        label = view.inputs["label"]
        assert (label.dtype.str, label.shape, int(label)) == (kept.dtype, kept.shape, 7)


@pytest.mark.parametrize("digit", [None, "7", 7.0, -1, 1 << 31])
@pytest.mark.parametrize("views", VIEWS, ids=lambda views: views.kind)
def test_what_is_no_class_is_rejected(views: Views, digit: Any) -> None:
    with pytest.raises(Rejected, match=r"r has .* in its field 'digit', which is no class"):
        views.load().render(record(digit))


@pytest.mark.parametrize("views", VIEWS, ids=lambda views: views.kind)
def test_views_without_labels_are_named_as_before_there_were_any(views: Views) -> None:
    plain = views.model_copy(update={"label": None}).load()
    assert "label" not in plain.description
    assert plain.description["fingerprint"] != views.load().description["fingerprint"]
