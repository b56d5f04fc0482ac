"""An image and its text in one view: the views of each, joined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers

from pipeline.corpus import Record
from pipeline.targets.spec import Vocabulary
from pipeline.views import Images, ImageText, Rejected, TokenWindows
from tests.pipeline.views.pictures import encoded, picture


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(9)} | {"?": 9}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return {
        "image": {"size": 8, "views": 3, "crop": {"kind": "random"}},
        "text": {"tokenizer": str(tmp_path), "length": 4},
    }


def record(**changes: object) -> Record:
    return Record("r", 0, {"image": encoded(picture(1)), "text": "w1 w2 w3", **changes})


def test_each_view_of_the_image_has_the_text(settings: dict[str, Any]) -> None:
    loaded = ImageText.model_validate(settings).load()
    images = Images.model_validate(settings["image"]).load().render(record())
    views = loaded.render(record())
    assert [item.name for item in loaded.inputs] == ["tokens", "image"]
    assert isinstance(loaded.vocabulary, Vocabulary)
    assert loaded.vocabulary.size == 10
    for view, image in zip(views, images, strict=True):
        assert view.inputs["tokens"].tolist() == [1, 2, 3]
        assert view.size == 3
        for name in ("image", "ledger", "digest"):
            np.testing.assert_array_equal(view.inputs[name], image.inputs[name])


def test_a_long_text_is_cut(settings: dict[str, Any]) -> None:
    loaded = ImageText.model_validate(settings).load()
    (view, *_) = loaded.render(record(text="w1 w2 w3 w4 w5 w6"))
    assert view.inputs["tokens"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("broken", "said"), [({"text": 7}, "no text"), ({"text": "w1"}, "too few"), ({"image": b""}, "no image")]
)
def test_a_record_without_either_is_rejected(
    settings: dict[str, Any], broken: dict[str, Any], said: str
) -> None:
    with pytest.raises(Rejected, match=said):
        ImageText.model_validate(settings).load().render(record(**broken))


def test_mixtures_are_refused_and_both_parts_are_described(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="a mixture of two images has no text"):
        ImageText.model_validate({**settings, "image": {"size": 8, "mix": {}}})
    described = ImageText.model_validate(settings).load().description
    assert described["text"] == TokenWindows.model_validate(settings["text"]).load().description
    other = ImageText.model_validate({**settings, "image": {"size": 9}}).load().description
    assert other["fingerprint"] != described["fingerprint"]
