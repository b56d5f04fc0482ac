"""Image files become pixels: oriented, bounded, or refused in words; and no entry of a ledger does harm."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.targets.errors import SpecMismatch
from pipeline.targets.replay import Partner, Unrenderable
from pipeline.targets.replay.images import ImageReplay
from pipeline.targets.replay.pixels import OPERATIONS, Pixels
from tests.pipeline.views.pictures import encoded, picture

VIEWS = {
    "kind": "images",
    "field": "bytes",
    "name": "image",
    "size": 16,
    "max_pixels": 10_000,
    "reach": 0,
    "decoder": "pillow",
    "resample": "bicubic",
    "dtype": "uint8",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
}


def replay(**changes: Any) -> ImageReplay:
    return ImageReplay({**VIEWS, **changes})


def decoded(content: object, **changes: Any) -> Pixels:
    return np.asarray(replay(**changes).decode({"bytes": content}))


def refused(content: object) -> Unrenderable:
    with pytest.raises(Unrenderable) as caught:
        replay().decode({"bytes": content})
    return caught.value


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP"])
def test_lossless_files_give_their_pixels(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    np.testing.assert_array_equal(decoded(encoded(picture(1), form, **options)), picture(1))


def test_a_file_may_stand_in_an_array_and_be_followed_by_zeros() -> None:
    content = encoded(picture(1)) + bytes(100)
    np.testing.assert_array_equal(decoded(np.frombuffer(content, dtype=np.uint8)), picture(1))
    np.testing.assert_array_equal(decoded(picture(1)), picture(1))  # pixels themselves


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    stored = picture(2)
    across = stored.transpose(1, 0, 2)
    seen = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: across,
        6: across[:, ::-1],
        7: across[::-1, ::-1],
        8: across[::-1],
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(stored).save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(decoded(file.getvalue()), seen[orientation])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_other_pixels_of_eight_bits_become_rgb(mode: str) -> None:
    image = Image.fromarray(picture(3)).convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG")
    np.testing.assert_array_equal(decoded(file.getvalue()), np.asarray(image.convert("RGB")))


def test_sixteen_bits_a_channel_are_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(file, "PNG")
    assert "of mode I;16, not of 8 bits" in refused(file.getvalue()).reason


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    for side, said in ((200, "200 × 200 pixels, more than max_pixels"), (30_000, "too large an image")):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        found = refused(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
        assert found.code == "too_large"
        assert said in found.reason


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_truncated_files_are_refused(form: str) -> None:
    content = encoded(picture(4), form)
    for size in (0, 1, 20, len(content) // 2, len(content) - 40):
        assert refused(content[:size]).code == "undecodable"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"GIF89a" + bytes(100), "no image of the formats JPEG, PNG"),
        ("text", "has str where the bytes of an image file should be"),
        (np.zeros((4, 4, 3)), r"has an array float64 [4, 4, 3], no pixels uint8"),
        (np.zeros((4, 4, 1), dtype=np.uint8), "no pixels uint8"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "no pixels uint8"),
        (np.zeros((101, 100, 3), dtype=np.uint8), "more than max_pixels"),
    ],
)
def test_what_is_no_image_is_refused(content: object, said: str) -> None:
    assert said in refused(content).reason


def test_a_missing_field_is_named() -> None:
    with pytest.raises(Unrenderable, match=r"has no field 'bytes', it has \['array'\]"):
        replay().decode({"array": b""})


@given(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP"]), st.data())
def test_a_spoiled_file_is_an_image_or_refused_and_nothing_else(form: str, data: st.DataObject) -> None:
    content = bytearray(encoded(picture(5), form))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(Unrenderable):
        assert decoded(bytes(content)).shape[2] == 3


def test_a_crop_is_a_box_of_the_image_resized_by_pillow_and_perhaps_mirrored() -> None:
    image = Image.fromarray(picture(6))
    entry = {"crop": [5, 3, 20, 24]}
    expected = np.asarray(image.crop((5, 3, 25, 27)).resize((16, 16), Image.Resampling.BICUBIC))
    out = replay().render(entry, image)["image"]
    np.testing.assert_array_equal(out, expected.transpose(2, 0, 1))
    mirrored = replay().render({**entry, "flip": True}, image)["image"]
    np.testing.assert_array_equal(mirrored, out[:, :, ::-1])


def test_normalisation_is_exact_to_the_last_bit() -> None:
    image = Image.fromarray(picture(6))
    entry = {"crop": [0, 0, 40, 32]}
    plain = replay().render(entry, image)["image"]
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    out = replay(dtype="float32", mean=mean, std=std).render(entry, image)["image"]
    exact = (plain / 255 - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    assert out.dtype == np.dtype("<f4")
    np.testing.assert_array_equal(out, exact.astype(np.float32))


HOSTILE: list[dict[str, Any]] = [
    {},
    {"crop": [0, 0, 41, 32]},
    {"crop": [-1, 0, 4, 4]},
    {"crop": [0, 0, 0, 4]},
    {"crop": [0, 0, 4]},
    {"crop": [0, 0, 4, 4.0]},
    {"crop": [0, 0, 4, True]},
    {"crop": [0, 0, 1 << 40, 4]},
    {"crop": [0, 0, 4, 4], "ops": {"hue": 1}},
    {"crop": [0, 0, 4, 4], "ops": ["hue"]},
    {"crop": [0, 0, 4, 4], "ops": [[]]},
    {"crop": [0, 0, 4, 4], "ops": [[["hue"], 1]]},
    {"crop": [0, 0, 4, 4], "ops": [["__class__"]]},
    {"crop": [0, 0, 4, 4], "ops": [["hue"]]},
    {"crop": [0, 0, 4, 4], "ops": [["posterize", 9]]},
    {"crop": [0, 0, 4, 4], "mix": {"row": 0, "key": "a", "view": {"crop": [0, 0, 4, 4]}}},
    {"crop": [0, 0, 4, 4], "mix": {"weight": 70000, "view": {"crop": [0, 0, 4, 4]}}},
    {"crop": [0, 0, 4, 4], "mix": {"box": [10, 10, 10, 10], "view": {"crop": [0, 0, 4, 4]}}},
    {"crop": [0, 0, 4, 4], "mix": {"box": [0, 0, 4, 4]}},
    {"crop": [0, 0, 4, 4], "mix": [1]},
    {"crop": [0, 0, 4, 4], "mix": {"weight": 1, "view": 7}},
]


@pytest.mark.parametrize("entry", HOSTILE, ids=str)
def test_an_entry_that_cannot_be_is_refused(entry: dict[str, Any]) -> None:
    image = Image.fromarray(picture(7))
    with pytest.raises(Unrenderable, match=r"crop|ops|operation|argument|beyond|weight|box|mix|view"):
        replay().render(entry, image, image)


def test_the_partner_is_named_by_row_and_key() -> None:
    assert replay().partner({"crop": [0, 0, 4, 4]}) is None
    assert replay().partner({"mix": {"row": 3, "key": "a"}}) == Partner(3, "a")
    for mix in ({"row": 3}, {"row": "3", "key": "a"}, [3, "a"]):
        with pytest.raises(Unrenderable, match=r"partner|mix"):
            replay().partner({"mix": mix})


@pytest.mark.parametrize(
    "change", [{"size": "16"}, {"dtype": "O"}, {"std": [0, 1, 1], "dtype": "float32"}, {"resample": "magic"}]
)
def test_views_that_it_does_not_know_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SpecMismatch, match="views"):
        replay(**change)


NUMBERS = st.integers(-5, 50) | st.integers() | st.floats() | st.booleans() | st.none() | st.text(max_size=2)
CROPS = st.lists(st.integers(0, 20), min_size=4, max_size=4) | st.lists(NUMBERS, max_size=5) | NUMBERS
STEPS = st.lists(
    st.tuples(st.sampled_from([*OPERATIONS, "none"]), NUMBERS).map(list) | st.lists(NUMBERS, max_size=2),
    max_size=3,
)
PARTS = {"crop": CROPS, "flip": NUMBERS, "ops": STEPS | NUMBERS}
MIXES = st.fixed_dictionaries(
    {}, optional={"view": st.fixed_dictionaries({}, optional=PARTS), "box": CROPS, "weight": NUMBERS}
)


@given(st.fixed_dictionaries({}, optional={**PARTS, "mix": MIXES | NUMBERS}))
def test_any_entry_gives_pixels_or_is_refused_and_nothing_else(entry: dict[str, Any]) -> None:
    image = Image.fromarray(picture(7))
    with suppress(Unrenderable):
        assert replay().render(entry, image, image)["image"].shape == (3, 16, 16)
