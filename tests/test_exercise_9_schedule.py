"""Exercise 9, the schedule: a learning rate that rises, then falls; which weights decay."""

import pytest
from torch import nn

from train import learning_rate, make_optimizer


def test_learning_rate_rises_and_falls_in_straight_lines():
    rates = [learning_rate(step, 100, 10, 2.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.2), (
        "step 0 is the first of 10: a tenth of the top, since a rate of 0 wastes it"
    )
    assert [rates[9], rates[10], max(rates)] == pytest.approx([2.0] * 3), (
        f"the top is 2.0, at the end of the warm-up: {rates[8:12]}"
    )
    assert rates[55] == pytest.approx(1.0), "half of the way down, half of the rate"
    assert rates[99] == pytest.approx(2.0 / 90), "the last step still learns; 0 would be reached at step 100"
    assert learning_rate(0, 5, 0, 1.0) == pytest.approx(1.0), "no warm-up starts at the top"


class Small(nn.Module):
    """The kinds of parameters BERT has: embeddings, a tied decoder with a bias, LayerNorm."""

    def __init__(self):
        super().__init__()
        self.words, self.LayerNorm, self.decoder = nn.Embedding(20, 8), nn.LayerNorm(8), nn.Linear(8, 20)
        self.decoder.weight = self.words.weight


def test_weight_decay_spares_biases_and_layer_norm():
    model = Small()
    decays = {
        id(p): group["weight_decay"]
        for group in make_optimizer(model, 1e-3).param_groups
        for p in group["params"]
    }
    assert decays[id(model.words.weight)] > 0, "matrices and embeddings decay"
    for name in ("LayerNorm.weight", "LayerNorm.bias", "decoder.bias"):
        assert decays[id(model.get_parameter(name))] == 0, (
            f"{name} decays: LayerNorm's gains belong near 1, and biases are too few to overfit"
        )


def test_every_parameter_is_optimised_once():
    model = Small()
    given = [id(p) for group in make_optimizer(model, 1e-3).param_groups for p in group["params"]]
    assert sorted(given) == sorted(id(p) for p in model.parameters()), "once each, the tied matrix too"


def test_frozen_parameters_are_left_out():
    model = Small()
    model.words.requires_grad_(False)
    given = [id(p) for group in make_optimizer(model, 1e-3).param_groups for p in group["params"]]
    assert id(model.words.weight) not in given and len(given) == 3
