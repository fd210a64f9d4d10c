"""Exercise 9, the schedule: a learning rate that rises, then falls; which weights decay."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from train import learning_rate, make_optimizer

# ---- two lines ----


def test_the_first_step_already_learns():
    got = learning_rate(0, 100, 10, 2.0)
    assert got == pytest.approx(0.2), (
        f"step 0 is the first of 10: a tenth of the top, 0.2, not {got}; a rate of 0 wastes it"
    )


def test_learning_rate_rises_and_falls_in_straight_lines():
    rates = [learning_rate(step, 100, 10, 2.0) for step in range(100)]
    assert [rates[9], rates[10], max(rates)] == pytest.approx([2.0] * 3), (
        f"the top is 2.0, at the end of the warm-up: {rates[8:12]}"
    )
    assert rates[99] == pytest.approx(2.0 / 90), "the last step still learns; 0 would be reached at step 100"
    corners = ([-1, 9, 10, 100], [0.0, 2.0, 2.0, 0.0])  # steps, and the rates between which lines are drawn
    for step, rate in enumerate(rates):
        expected = float(np.interp(step, *corners))
        assert rate == pytest.approx(expected), (
            f"step {step} of 100, warm-up 10, highest 2: expected {expected}"
        )


# ---- edges ----


def test_no_warm_up_starts_at_the_top():
    try:
        got = [learning_rate(step, 5, 0, 1.0) for step in range(5)]
    except ZeroDivisionError:
        pytest.fail("without a warm-up `warmup` is 0, and was divided by")
    assert got == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2]), f"5 steps, warm-up 0: 1, 0.8, ..., 0.2, not {got}"


def test_a_run_that_is_all_warm_up_rises_to_the_top():
    try:
        got = [learning_rate(step, 4, 4, 1.0) for step in range(4)]
    except ZeroDivisionError:
        pytest.fail("warm-up 4 of 4 steps leaves no step to fall: steps - warmup is 0, and was divided by")
    assert got == pytest.approx([0.25, 0.5, 0.75, 1.0]), f"4 steps, warm-up 4: a quarter more each, not {got}"


class Small(nn.Module):
    """The kinds of parameters BERT has: embeddings, a tied decoder with a bias, LayerNorm."""

    def __init__(self):
        super().__init__()
        self.words, self.LayerNorm, self.decoder = nn.Embedding(20, 8), nn.LayerNorm(8), nn.Linear(8, 20)
        self.decoder.weight = self.words.weight


def made(model, *given):
    """make_optimizer, with a word on the matrix that has two names."""
    twice = (
        "words.weight and decoder.weight are one matrix under two names, and AdamW was given it twice, to "
        "update it twice a step. model.parameters() lists it once; a loop over modules lists it twice"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch only warns where both stand in one group
        try:
            optimizer = make_optimizer(model, *given)
        except ValueError as error:
            pytest.fail(f"{twice} ({error})")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(parameters) == len({id(p) for p in parameters}), twice
    return optimizer


def names(model, optimizer):
    """Names of the parameters that an optimiser was given, sorted."""
    known = {id(p): name for name, p in model.named_parameters()}
    return sorted(known[id(p)] for group in optimizer.param_groups for p in group["params"])


# ---- groups ----


def test_weight_decay_spares_biases_and_layer_norm():
    model = Small()
    decays = {
        id(p): group["weight_decay"] for group in made(model, 1e-3, 0.3).param_groups for p in group["params"]
    }
    got = decays.get(id(model.words.weight))
    assert got == 0.3, f"weight_decay is 0.3, for matrices and embeddings; words.weight has {got}"
    for name in ("LayerNorm.weight", "LayerNorm.bias", "decoder.bias"):
        assert decays.get(id(model.get_parameter(name))) == 0, (
            f"{name} decays: LayerNorm's gains belong near 1, and biases are too few to overfit"
        )


def test_the_learning_rate_is_the_one_asked_for():
    rates = [group["lr"] for group in made(Small(), 0.123).param_groups]
    assert set(rates) == {0.123}, f"lr is 0.123; the groups of parameters have {rates}"


def test_weights_decay_apart_from_the_gradient():
    model = Small()
    optimizer, before = made(model, 0.1, 0.5), model.words.weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    lr, decay = optimizer.param_groups[0]["lr"], max(g["weight_decay"] for g in optimizer.param_groups)
    assert torch.allclose(model.words.weight, before * (1 - lr * decay)), (
        f"where the gradient is 0, AdamW only shrinks a matrix, to 1 - lr decay = {1 - lr * decay:g} of it; "
        "Adam adds the decay to the gradient instead, and then scales it away"
    )


def test_every_parameter_is_optimised_once():
    model = Small()
    got, expected = names(model, make_optimizer(model, 1e-3)), sorted(dict(model.named_parameters()))
    assert got == expected, f"expected each parameter once, the tied matrix too: {expected}, not {got}"


def test_frozen_parameters_are_left_out():
    model = Small()
    model.words.requires_grad_(False)
    got, expected = (
        names(model, make_optimizer(model, 1e-3)),
        ["LayerNorm.bias", "LayerNorm.weight", "decoder.bias"],
    )
    assert got == expected, (
        f"words.weight is frozen, requires_grad is False: the optimiser gets {expected}, not {got}"
    )


def test_adamw_is_the_usual_one_and_fused():
    group = made(Small(), 1e-3).param_groups[0]
    got = {name: group[name] for name in ("betas", "maximize", "amsgrad")}
    assert got == {"betas": (0.9, 0.999), "maximize": False, "amsgrad": False}, f"not torch's own: {got}"
    assert group["fused"], (
        "expected fused=True: all parameters are updated in one go. Without it AdamW reads its step "
        "counter on the host, so that every step waits for the device"
    )
