"""Models of transformers as students: causal ones, cut in two only where the halves are the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.targets.errors import ConfigError
from student.causal_lm import HalvedCausalLM, load
from student.config import Transformers

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = {"model_type": "bert", **SHAPE}


def made(**config: Any) -> Any:
    torch.manual_seed(0)
    return load(Transformers(config=config), 23)


@pytest.mark.parametrize(
    ("config", "halved"),
    [
        ({"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8, **SHAPE}, True),
        ({"model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 8, **SHAPE}, False),
        ({"model_type": "granite", "num_key_value_heads": 2, "logits_scaling": 4.0, **SHAPE}, False),
        ({**BERT, "is_decoder": True}, False),
        ({"model_type": "electra", "is_decoder": True, "embedding_size": 16, **SHAPE}, False),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_a_model_is_cut_in_two_where_nothing_stands_between_states_and_logits(
    config: dict[str, Any], halved: bool
) -> None:
    """New weights give logits near 0, where Gemma's cap of 30 hardly bends them; trained ones do not."""
    model = made(**config)
    assert isinstance(model, HalvedCausalLM) is halved
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(vocab_size=23, **config))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert model.training
    assert model(torch.tensor([[1, 2, 3]])).shape == (1, 3, 23)


def test_a_model_that_sees_what_it_is_to_predict_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a bert .* sees the tokens that it is to predict"):
        made(**BERT)


def test_what_the_library_refuses_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="transformers cannot make it: Padding_idx"):
        made(model_type="llama", pad_token_id=90, **SHAPE)
