"""What the reference students promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pipeline.targets.errors import ConfigError
from student import config
from student.models import build


def lm(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    settings = {"layers": 2, "width": 32, "heads": 2, **changes}
    return build(config.SmallLM(**settings), (None,), 50).eval()


@pytest.mark.parametrize("changes", [{}, {"mlp": "gelu", "tie_embeddings": False}, {"hidden": 24}])
def test_a_language_model_sees_no_later_token_and_no_padding(changes: dict[str, Any]) -> None:
    model = lm(**changes)
    tokens = torch.randint(0, 50, (3, 12))
    logits = model(tokens)
    assert logits.shape == (3, 12, 50)
    other = tokens.clone()
    other[:, 7:] = 0
    torch.testing.assert_close(model(other)[:, :7], logits[:, :7])
    torch.testing.assert_close(model(tokens[:, :7]), logits[:, :7])
    assert not torch.allclose(model(other)[:, 7:], logits[:, 7:])


def test_a_language_model_sees_positions() -> None:
    """With rotary angles, the order of the earlier tokens matters."""
    model = lm()
    a = model(torch.tensor([[1, 2, 3, 4]]))[0, -1]
    b = model(torch.tensor([[2, 1, 3, 4]]))[0, -1]
    assert (a - b).abs().max().item() > 1e-4


def test_a_tied_language_model_has_one_matrix_for_both_ends() -> None:
    tied, untied = (sum(p.numel() for p in lm(tie_embeddings=t).parameters()) for t in (True, False))
    assert untied - tied == 50 * 32


def test_a_fresh_language_model_is_nearly_uniform() -> None:
    probabilities = lm()(torch.randint(0, 50, (4, 9))).softmax(-1)
    assert float((probabilities * 50).log().abs().max()) < 1


def test_the_two_halves_of_a_language_model_are_the_whole() -> None:
    model: Any = lm()
    tokens = torch.randint(0, 50, (2, 5))
    torch.testing.assert_close(model.head(model.features(tokens)), model(tokens))


def test_the_bottleneck_has_rank_k_weights() -> None:
    model = build(config.ShallowMimic(hidden=300, bottleneck=7), (1, 8, 8), 10)
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    assert weights == 7 * (300 + 64) + 300 * 10
    assert model(torch.rand(4, 1, 8, 8)).shape == (4, 10)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7), (8, 8)])
@pytest.mark.parametrize("model", [config.MLP(hidden=[5]), config.SmallCNN(channels=[4, 6], hidden=8)])
def test_images_of_bytes_are_images_of_fractions(model: Any, shape: tuple[int, ...]) -> None:
    student = build(model, shape, 3).eval()
    images = torch.randint(0, 256, (5, *shape), dtype=torch.uint8)
    assert student(images).shape == (5, 3)
    torch.testing.assert_close(student(images), student(images.float() / 255))


def test_any_module_is_built_by_its_name() -> None:
    named = config.TorchModule(factory="torch.nn:Linear", arguments={"in_features": 4, "out_features": 2})
    assert build(named, (4,), 2)(torch.zeros(1, 4)).shape == (1, 2)


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (config.SmallLM(), (8,), "token ids"),
        (config.MLP(), (None,), "fixed shape"),
        (config.SmallLM(width=36, heads=4), (None,), "multiple of twice"),
        (config.SmallCNN(), (64,), r"\[C, H, W\]"),
        (config.SmallCNN(channels=[1, 1, 1, 1]), (8, 8), "too often"),
        (config.TorchModule(factory="no_such_package:f"), (8,), "cannot be imported"),
        (config.TorchModule(factory="torch.nn:NoSuch"), (8,), "cannot be imported"),
        (config.TorchModule(factory="torch:zeros", arguments={"size": [1]}), (8,), "not a torch.nn.Module"),
        (config.TorchModule(factory="torch:float32"), (8,), "not a function"),
    ],
)
def test_a_model_that_cannot_be_is_refused_in_words(model: Any, shape: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(model, shape, 4)
