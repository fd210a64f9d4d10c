"""Exercise 5, entropy: how unsure is a prediction, whatever the size of its logits? H = -sum_v p_v log p_v"""

import math

import pytest
import torch

from masking import prediction_entropy


def by_definition(logits):
    """-sum p log p in float64."""
    p = logits.double().softmax(-1)
    return -torch.where(p > 0, p * p.log(), 0.0).sum(-1)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32, torch.float64])
def test_the_result_is_one_float32_number_a_row(kind):
    got = prediction_entropy(torch.zeros(4, 5, 3, dtype=kind))
    assert got.shape == (4, 5), f"logits [4, 5, 3] have entropies [4, 5], not {list(got.shape)}"
    assert got.dtype == torch.float32, f"{kind} logits: expected float32 entropies, not {got.dtype}"


@pytest.mark.parametrize("size", [2, 7, 30522])
def test_uniform_prediction_has_entropy_log_v(size):
    got = prediction_entropy(torch.full((3, size), 5.0)).tolist()
    assert got == pytest.approx([math.log(size)] * 3, rel=1e-6), (
        f"{size} equally likely words: expected log {size} = {math.log(size):.3f} nats (not bits, not logits)"
    )


def test_certain_prediction_has_entropy_zero():
    # exp(80) does not overflow, and exp(-160) is 0 in float32: a NaN can only be 0 log 0
    got = prediction_entropy(torch.tensor([[80.0, -80.0, -80.0]])).item()
    assert not math.isnan(got), (
        "p is 1, 0, 0 here, and 0 log 0 came out as NaN (0 times -inf); it must count as 0"
    )
    assert got == pytest.approx(0, abs=1e-6), f"one word has probability 1: expected 0 and not {got}"


def test_large_logits_do_not_overflow():
    got = prediction_entropy(torch.tensor([[1000.0, 1000.0, 999.0]])).item()
    p = [1 / (2 + math.exp(-1))] * 2 + [math.exp(-1) / (2 + math.exp(-1))]
    expected = -sum(x * math.log(x) for x in p)
    assert got == pytest.approx(expected, rel=1e-5), (
        f"logits 1000, 1000, 999: expected {expected:.4f} and not {got:.4f}; exp(1000) overflows unless the "
        "maximum is taken off first"
    )


def test_each_row_has_its_own_maximum():
    got = prediction_entropy(torch.tensor([[-80.0, -80.0], [80.0, 80.0]])).tolist()
    assert got == pytest.approx([math.log(2)] * 2), (
        f"both rows are a fair coin, log 2 = 0.6931, not {got}: the maximum of the whole batch, 80, "
        "taken off the other row leaves exp(-160) = 0 there"
    )


@pytest.mark.parametrize("p", [0.5, 0.9, 0.01])
def test_coin(p):
    expected = -p * math.log(p) - (1 - p) * math.log(1 - p)
    got = prediction_entropy(torch.tensor([math.log(p), math.log(1 - p)])).item()
    assert got == pytest.approx(expected, rel=1e-5), f"heads with p = {p}: -p log p - (1 - p) log(1 - p)"


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 1e4])
def test_equals_the_definition_in_float64(scale):
    logits = torch.randn(4, 5, 100, generator=torch.Generator().manual_seed(0)) * scale
    got = prediction_entropy(logits)
    assert got.isfinite().all(), (
        f"logits of size {scale:g} gave NaN or inf: a p of 0 makes 0 log 0, and exp overflows unless the "
        "maximum is taken off first (each has a test of its own, which says which it is)"
    )
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
