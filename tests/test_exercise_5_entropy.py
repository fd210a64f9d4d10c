"""Exercise 5, entropy: how unsure is a prediction, whatever the size of its logits? H = -sum_v p_v log p_v"""

import math

import pytest
import torch

from masking import prediction_entropy


def by_definition(logits):
    """-sum p log p in float64."""
    p = logits.double().softmax(-1)
    return -torch.where(p > 0, p * p.log(), 0.0).sum(-1)


@pytest.mark.parametrize("size", [2, 7, 30522])
def test_uniform_prediction_has_entropy_log_v(size):
    got = prediction_entropy(torch.full((3, size), 5.0)).tolist()
    assert got == pytest.approx([math.log(size)] * 3, rel=1e-6), (
        f"{size} equally likely words: expected log {size} = {math.log(size):.3f} nats (not bits, not logits)"
    )


def test_certain_prediction_has_entropy_zero():
    got = prediction_entropy(torch.tensor([[1000.0, 0.0, 0.0]])).item()
    assert got == 0.0, f"expected 0 and not {got}: exp(1000) overflows unless the maximum is taken off first"


@pytest.mark.parametrize("p", [0.5, 0.9, 0.01])
def test_coin(p):
    expected = -p * math.log(p) - (1 - p) * math.log(1 - p)
    got = prediction_entropy(torch.tensor([math.log(p), math.log(1 - p)])).item()
    assert got == pytest.approx(expected, rel=1e-5), f"heads with p = {p}: -p log p - (1 - p) log(1 - p)"


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 1e4])
def test_equals_the_definition_in_float64(scale):
    logits = torch.randn(4, 5, 100, generator=torch.Generator().manual_seed(0)) * scale
    got = prediction_entropy(logits)
    assert got.shape == (4, 5) and got.dtype == torch.float32
    assert torch.allclose(got.double(), by_definition(logits), atol=1e-5), "expected -sum p log p"


@pytest.mark.parametrize("shift", [1e4, -1e4, 3e38])
def test_a_constant_added_to_all_logits_changes_nothing(shift):
    logits = torch.tensor([0.0, 0.0, 0.0, 0.0]) + shift
    assert prediction_entropy(logits).item() == pytest.approx(math.log(4), rel=1e-5), (
        "overflow: subtract the maximum first"
    )


def test_impossible_words_add_nothing():
    logits = torch.tensor([0.0, 0.0, -math.inf])
    assert prediction_entropy(logits).item() == pytest.approx(math.log(2)), (
        "0 * -inf must count as 0, not NaN"
    )


def test_bfloat16_logits_are_computed_in_float32():
    logits = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.allclose(prediction_entropy(logits).double(), by_definition(logits), atol=1e-4), (
        "bfloat16 keeps three digits: a sum over 1,000 words needs float32"
    )
