"""The moving average of a model's weights."""

from __future__ import annotations

import torch

from student.average import Average


def test_it_is_the_exponential_average_of_the_weights_after_each_step() -> None:
    model = torch.nn.Linear(3, 2)
    average = Average(model, 0.5)
    expected = model.weight.detach().double()
    for step in range(1, 13):
        torch.nn.init.normal_(model.weight)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
    torch.testing.assert_close(average.weights["weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_the_model_has_it_for_a_while_and_then_its_own_weights_to_the_bit() -> None:
    model = torch.nn.Linear(3, 2)
    average = Average(model, 0.5)
    torch.nn.init.normal_(model.weight)
    own, averaged = model.weight.detach().clone(), average.weights["weight"].clone()
    with average.in_place():
        assert torch.equal(model.weight, averaged)
    assert torch.equal(model.weight, own)
    assert torch.equal(average.weights["weight"], averaged)
