"""Models of transformers as students: causal ones, cut in two only where the halves are the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.targets.errors import ConfigError
from student.causal_lm import HalvedCausalLM, halved, load
from student.config import Transformers
from student.losses import LinearLogits

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = {"model_type": "bert", **SHAPE}


def made(**config: Any) -> Any:
    torch.manual_seed(0)
    return load(Transformers(config=config), 23)


GROUPED = {"num_key_value_heads": 2, **SHAPE}


@pytest.mark.parametrize(
    ("config", "cut"),
    [
        ({"model_type": "qwen3", "head_dim": 8, **GROUPED}, True),
        ({"model_type": "gemma2", "head_dim": 8, "final_logit_softcapping": 5.0, **GROUPED}, True),
        ({"model_type": "granite", "logits_scaling": 4.0, **GROUPED}, True),
        ({"model_type": "cohere", "logit_scale": 0.25, **GROUPED}, True),
        ({**BERT, "is_decoder": True}, False),
        ({"model_type": "electra", "is_decoder": True, "embedding_size": 16, **SHAPE}, False),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_a_model_is_cut_in_two_where_its_halves_are_the_whole(config: dict[str, Any], cut: bool) -> None:
    """With logits as large as those of trained weights, which a cap bends."""
    model = made(**config)
    assert isinstance(model, HalvedCausalLM) is cut
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(vocab_size=23, **config))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert model.training
    tokens = torch.tensor([[1, 2, 3]])
    assert model(tokens).shape == (1, 3, 23)
    if isinstance(model, HalvedCausalLM):
        model.eval()
        with torch.no_grad():
            model.head.weight.mul_(40)
            made_of = LinearLogits.of(
                model.features(tokens)[0], model.head, model.logit_scale, model.logit_softcap
            )
            torch.testing.assert_close(made_of.make(), model(tokens)[0], rtol=1e-4, atol=1e-5)


def test_a_model_that_does_more_with_its_logits_than_it_says_is_not_cut() -> None:
    model = made(model_type="gemma2", head_dim=8, **GROUPED).model
    model.config.final_logit_softcapping = None
    assert halved(model) is not None
    forward = model.forward
    model.forward = lambda *given, **named: _capped(forward(*given, **named))
    assert halved(model) is None


def _capped(outputs: Any) -> Any:
    outputs.logits = 30 * torch.tanh(outputs.logits / 30)
    return outputs


def test_a_model_that_sees_what_it_is_to_predict_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a bert .* sees the tokens that it is to predict"):
        made(**BERT)


def test_what_the_library_refuses_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="transformers cannot make it: Padding_idx"):
        made(model_type="llama", pad_token_id=90, **SHAPE)
