"""Image views: what is drawn is in bounds, stands in the ledger, and gives the same pixels when replayed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.corpus import Record
from pipeline.targets.replay import ledger
from pipeline.targets.replay.images import ImageReplay
from pipeline.targets.replay.pixels import WHOLE
from pipeline.views import Images, Rejected, View
from pipeline.views.draws import Draws
from pipeline.views.images import ImageRenderer, RandomCrop
from tests.pipeline.views.pictures import encoded, picture

EVERYTHING: dict[str, Any] = {
    "size": 16,
    "views": 5,
    "crop": {"kind": "random"},
    "flip": 0.5,
    "jitter": {},
    "randaugment": {},
    "mix": {"probability": 0.7, "reach": 3},
    "dtype": "uint8",
}


def renderer(**changes: Any) -> ImageRenderer:
    return Images.model_validate({**EVERYTHING, **changes}).load()


def records(count: int) -> list[Record]:
    return [Record(f"{i}.png", i, {"image": encoded(picture(i))}) for i in range(count)]


def rendered(loaded: ImageRenderer, corpus: list[Record]) -> list[list[View]]:
    """As labelling does: each record with those before it."""
    return [loaded.render(r, corpus[max(0, i - loaded.reach) : i]) for i, r in enumerate(corpus)]


def entry(view: View) -> dict[str, Any]:
    return ledger.read(view.inputs["ledger"])


def test_a_replayed_view_is_the_view_to_the_bit() -> None:
    loaded, corpus = renderer(), records(6)
    replay = ImageReplay(loaded.description)
    mixed = 0
    for record, views in zip(corpus, rendered(loaded, corpus), strict=True):
        assert len(views) == 5
        for view in views:
            partner = replay.partner(entry(view))
            other = None
            if partner is not None:
                mixed += 1
                assert 1 <= record.row - partner.row <= 3
                assert corpus[partner.row].key == partner.key
                other = replay.decode(corpus[partner.row].data)
            again = replay.render(entry(view), replay.decode(record.data), other)
            np.testing.assert_array_equal(again["image"], view.inputs["image"])
            np.testing.assert_array_equal(ledger.digest(again), view.inputs["digest"])
    assert 10 <= mixed <= 24


def test_views_differ_and_a_second_labelling_draws_the_same() -> None:
    corpus = records(4)
    once, again = rendered(renderer(), corpus), rendered(renderer(), corpus)
    seen = [view.inputs["digest"].tobytes() for views in once for view in views]
    assert len(set(seen)) == len(seen)
    assert seen == [view.inputs["digest"].tobytes() for views in again for view in views]
    other = rendered(renderer(seed=1), corpus)
    assert not set(seen) & {view.inputs["digest"].tobytes() for views in other for view in views}


def test_without_mixing_a_view_hangs_on_its_record_alone() -> None:
    loaded, (first, second) = renderer(mix=None), records(2)
    assert loaded.reach == 0
    alone, after = loaded.render(second), loaded.render(second, [first])
    assert [v.inputs["digest"].tobytes() for v in alone] == [v.inputs["digest"].tobytes() for v in after]


def test_the_first_record_and_one_after_broken_files_stay_unmixed() -> None:
    loaded, (first, second) = renderer(mix={}), records(2)
    broken = Record("broken", 0, {"image": b"none"})
    assert all("mix" not in entry(view) for view in loaded.render(first))
    assert all("mix" not in entry(view) for view in loaded.render(second, [broken]))
    assert all("mix" in entry(view) for view in loaded.render(second, [first]))


def test_the_weight_says_how_much_of_the_view_is_its_own() -> None:
    loaded, corpus = renderer(mix={"mixup": None, "cutmix": 1.0}, views=40), records(2)
    for view in loaded.render(corpus[1], corpus[:1]):
        mix = entry(view)["mix"]
        left, top, width, height = mix["box"]
        assert 0 <= left <= left + width <= 16
        assert 0 <= top <= top + height <= 16
        assert mix["weight"] == WHOLE - round(WHOLE * width * height / 256)
    loaded = renderer(mix={"cutmix": None}, views=40)
    weights = [entry(view)["mix"]["weight"] for view in loaded.render(corpus[1], corpus[:1])]
    assert 0 <= min(weights) < WHOLE // 4
    assert 3 * WHOLE // 4 < max(weights) <= WHOLE


@given(st.integers(1, 500), st.integers(1, 500), st.integers())
def test_every_crop_lies_in_its_image(width: int, height: int, seed: int) -> None:
    left, top, w, h = RandomCrop().box(width, height, Draws(seed))
    assert 0 <= left < left + w <= width
    assert 0 <= top < top + h <= height


def test_crops_have_the_areas_and_shapes_that_are_asked_for() -> None:
    crop = RandomCrop(scale=(0.2, 0.5), ratio=(0.5, 2.0))
    boxes = [crop.box(1000, 800, Draws(i)) for i in range(500)]
    areas = np.array([w * h / 800_000 for _, _, w, h in boxes])
    shapes = np.log([w / h for _, _, w, h in boxes])
    assert areas.min() > 0.199
    assert areas.max() < 0.501
    assert abs(areas.mean() - 0.35) < 0.02
    assert abs(shapes).max() < math.log(2) + 0.01
    assert abs(shapes.mean()) < 0.1


def test_the_centre_crop_is_the_square_in_the_middle() -> None:
    loaded = Images(size=16, dtype="uint8").load()
    (view,) = loaded.render(records(1)[0])
    assert entry(view) == {"crop": [6, 2, 28, 28]}  # of 40 × 32 pixels, 0.875 of the shorter side


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_randaugment_at_any_strength_stays_in_bounds(magnitude: int) -> None:
    loaded = renderer(randaugment={"magnitude": magnitude, "operations": 30}, jitter=None)
    names = {op[0] for view in loaded.render(records(1)[0]) for op in entry(view)["ops"]}
    assert len(names) == 13  # all but identity, which needs no line


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0])
def test_beta_has_its_mean_and_variance(alpha: float) -> None:
    draws = Draws("beta", int(100 * alpha))
    values = np.array([draws.beta(alpha) for _ in range(4000)])
    assert values.min() >= 0
    assert values.max() <= 1
    assert abs(values.mean() - 0.5) < 0.03
    assert abs(values.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


def test_numbers_hang_on_the_name_alone() -> None:
    # What a release changes here makes a unit that is labelled again differ from the first time.
    draws = Draws(0, "a.png", 1)
    assert [draws.below(1000) for _ in range(4)] == [459, 194, 573, 10]
    assert Draws(0, "a.png", 11).fraction() != Draws(0, "a.png1", 1).fraction()


def test_a_broken_file_is_rejected_by_its_key() -> None:
    with pytest.raises(Rejected, match=r"^b\.png is no image of the formats") as caught:
        renderer().render(Record("b.png", 0, {"image": b"\x00" * 50}))
    assert caught.value.code == "undecodable"


def test_the_description_names_the_libraries_and_every_setting() -> None:
    one = renderer().description
    assert one == renderer().description
    assert str(one["decoder"]).startswith("pillow ")
    assert one["fingerprint"] != renderer(resample="bilinear").description["fingerprint"]


@pytest.mark.parametrize(
    "change",
    [
        {"crop": {"kind": "random", "scale": [0.5, 0.2]}},
        {"crop": {"kind": "random", "scale": [0.5, 1.2]}},
        {"mix": {"mixup": None, "cutmix": None}},
        {"mix": {"mixup": 2.0}},
        {"size": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        renderer(**change)


SETTINGS = st.fixed_dictionaries(
    {
        "size": st.integers(1, 24),
        "resample": st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
        "dtype": st.sampled_from(["uint8", "float32"]),
        "flip": st.sampled_from([0.0, 0.5, 1.0]),
        "seed": st.integers(0, 9),
        "randaugment": st.none()
        | st.fixed_dictionaries({"operations": st.integers(1, 4), "magnitude": st.integers(0, 30)}),
        "mix": st.none() | st.just({"reach": 1}),
    }
)


@given(SETTINGS, st.integers(1, 40), st.integers(1, 40))
def test_any_settings_on_any_image_replay_to_the_bit(
    settings: dict[str, Any], width: int, height: int
) -> None:
    loaded = renderer(**settings, views=2)
    first, second = (Record(f"{i}", i, {"image": picture(i, width, height)}) for i in range(2))
    replay = ImageReplay(loaded.description)
    for view in loaded.render(second, [first] if loaded.reach else []):
        other = replay.decode(first.data) if replay.partner(entry(view)) else None
        again = replay.render(entry(view), replay.decode(second.data), other)
        assert again["image"].tobytes() == view.inputs["image"].tobytes()
        assert view.inputs["image"].shape == (3, settings["size"], settings["size"])
