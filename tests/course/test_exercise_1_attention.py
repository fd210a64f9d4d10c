"""Exercise 1, attention: each token reads a weighted mean of all tokens. softmax(Q K^T / sqrt(D)) V"""

import copy
import math

import pytest
import torch
from torch import nn

from model import BertConfig, SelfAttention, attention


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


# ---- weights ----


def test_each_query_gets_a_weighted_mean_of_the_values():
    query, key, value = draw(3, 1, 1, 4, 8).unbind(0)
    mask = torch.tensor([True, True, False, True])
    out = attention(query, key, value, mask)
    for i in range(4):
        scores = [
            math.exp(sum((query[0, 0, i] * key[0, 0, j]).tolist()) / math.sqrt(8)) * bool(mask[j])
            for j in range(4)
        ]
        expected = sum(s * value[0, 0, j] for j, s in enumerate(scores)) / sum(scores)
        unscaled = [s ** math.sqrt(8) for s in scores]  # e^(8 z / 8) from e^(z / sqrt(8)) with D = 8
        like = sum(s * value[0, 0, j] for j, s in enumerate(unscaled)) / sum(unscaled)
        hint = "; these are the numbers without the division by sqrt(D)" * torch.allclose(out[0, 0, i], like)
        assert torch.allclose(out[0, 0, i], expected), (
            f"query {i}: expected softmax(QK^T/sqrt(D)) V over the keys that the mask allows, "
            f"{expected[:3].tolist()}..., not {out[0, 0, i, :3].tolist()}...{hint}"
        )


def test_the_weights_of_a_query_sum_to_one():
    out = attention(draw(1, 2, 3, 8), draw(1, 2, 5, 8), torch.ones(1, 2, 5, 8, dtype=torch.float64))
    assert torch.allclose(out, torch.ones_like(out)), (
        "where all values are 1 their weighted mean is 1: does the softmax run over the keys, the last axis?"
    )


def test_scores_are_divided_by_the_root_of_the_head_size():
    query = torch.ones(1, 1, 1, 64, dtype=torch.float64)
    key = torch.stack((torch.full((64,), 0.25), torch.zeros(64)))[None, None].double()  # Q K^T = 16 and 0
    got = attention(query, key, torch.tensor([[[[1.0], [0.0]]]]).double()).item()
    assert got == pytest.approx(1 / (1 + math.exp(-16 / 8))), (
        f"scores 16 and 0 with D = 64 give the first key softmax(16 / 8, 0) = 0.881, not {got:.6f}: "
        "without 1/sqrt(D) wide heads attend to one key alone and stop learning"
    )


# ---- mask ----


def test_what_stands_in_the_padding_does_not_matter():
    query, key, value = draw(3, 2, 2, 5, 4).unbind(0)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()[:, None, None, :]
    before = attention(query, key, value, mask)
    key[0, :, 3:], value[0, :, 3:] = 33.0, -77.0
    after = attention(query, key, value, mask)
    assert after.isfinite().all(), (
        "NaN is a softmax over -inf alone: is the mask inverted (True is a key to be read), or does the "
        "softmax not run over the keys, the last axis?"
    )
    assert torch.allclose(before, after), (
        "padding was read: is the mask used, and before the softmax? After it, the rest does not sum to 1"
    )


def test_a_key_that_may_not_be_read_loses_to_every_other():
    query, key = torch.ones(1, 1, 1, 1), torch.tensor([[[[-1e5], [-1e5], [0.0]]]])  # scores -1e5, -1e5, 0
    got = attention(query, key, torch.tensor([[[[1.0], [3.0], [99.0]]]]), torch.tensor([True, True, False]))
    assert got.item() == pytest.approx(2), (
        f"values 1 and 3 may be read, 99 may not: expected their mean 2, not {got.item():.6g}. Scores can be "
        "as low as any number: only -inf is below them all"
    )


# ---- dropout ----


def test_dropout_drops_weights_and_keeps_their_sum_on_average():
    torch.manual_seed(0)
    query, key, ones = draw(1, 1, 200, 4).float(), draw(1, 1, 200, 4).float(), torch.ones(1, 1, 200, 4)
    assert attention(query, key, ones).std() < 1e-5, "without dropout the weights of each query sum to 1"
    out = attention(query, key, ones, dropout=0.5)
    assert out.std() > 0.01, "with dropout some weights are 0, so the sum of the others varies"
    assert out.mean().item() == pytest.approx(1, abs=0.05), "what is kept is scaled by 1 / (1 - dropout)"
    assert torch.allclose(out, out[..., :1].expand_as(out)), (
        "the four numbers of a value are alike, so those of the mean are: a weight is dropped for all four. "
        "Dropout belongs on the weights, not on the output"
    )


def heads(dtype, dropout=0.0, count=3):
    torch.manual_seed(0)
    config = BertConfig(hidden_size=24, num_attention_heads=count, attention_probs_dropout_prob=dropout)
    return SelfAttention(config).to(dtype).eval()


def near(got, expected):
    """Equal, but for the rounding of `got`, whose numbers may have 8 binary digits."""
    return torch.allclose(got.double(), expected.double(), atol=1e-8 if got.dtype == torch.float64 else 0.03)


BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])


def torchs_own(ours, x, real=None):
    """What torch's multi-head attention with the same weights makes of x; real: bool [B, T], no padding."""
    ours, x = copy.deepcopy(ours).double(), x.double()
    torchs = nn.MultiheadAttention(24, ours.heads, batch_first=True).double().eval()
    projections = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        torchs.in_proj_weight.copy_(torch.cat([linear.weight for linear in projections]))
        torchs.in_proj_bias.copy_(torch.cat([linear.bias for linear in projections]))
        torchs.out_proj.weight.copy_(torch.eye(24))
        torchs.out_proj.bias.zero_()
    return torchs(x, x, x, key_padding_mask=None if real is None else ~real, need_weights=False)[0]


# ---- heads ----


@BOTH
def test_one_head_is_attention_of_three_projections(dtype):
    ours, x = heads(dtype, count=1), draw(2, 6, 24).to(dtype)
    got = ours(x)
    assert got.shape == x.shape, "[B, T, H] in, [B, T, H] out"
    assert near(got, torchs_own(ours, x)), (
        f"one head, {dtype}: expected attention(query(x), key(x), value(x)), in this order"
    )


@BOTH
def test_heads_side_by_side_equal_torchs_own(dtype):
    ours, x = heads(dtype), draw(2, 6, 24).to(dtype)
    assert near(ours(x), torchs_own(ours, x)), (
        f"three heads, {dtype} (does one head pass its test?): head a owns the numbers a D to (a + 1) D "
        "of each vector: view [B, T, A, D], then swap T and A; at the end swap back"
    )


@BOTH
def test_the_heads_do_not_read_padding(dtype):
    ours, x, real = heads(dtype), draw(2, 6, 24).to(dtype), torch.ones(2, 6, dtype=torch.bool)
    real[1, 4:] = False
    got, expected = ours(x, real[:, None, None, :]), torchs_own(ours, x, real)
    assert near(got[0], expected[0]), (
        f"{dtype}: a mask that allows all keys of row 0 changes nothing (is it right without any?)"
    )
    assert near(got[1], expected[1]), f"{dtype}: tokens 4 and 5 of row 1 are padding and were read: " + (
        "attn_mask=mask" if dtype == torch.float64 else "give the mask to `attention`"
    )


# ---- dropout ----


@BOTH
def test_attention_dropout_acts_in_training_alone(dtype):
    layer, x = heads(dtype, dropout=0.5), draw(1, 6, 24).to(dtype)
    assert torch.equal(layer(x), layer(x)), "dropout is on in evaluation: the same input gave two outputs"
    layer.train()
    assert not torch.equal(layer(x), layer(x)), "there is no dropout in training"
