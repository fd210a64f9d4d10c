"""Exercise 3, a layer: add what a block computed to what it read, normalise. LayerNorm(residual + x W + b)"""

import math
from functools import partial

import pytest
import torch
from torch import nn

from model import AddNorm, BertConfig, BertLayer


def config(dropout=0.0, act="gelu"):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    return BertConfig(**sizes, hidden_act=act, hidden_dropout_prob=dropout)


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def norm(x):
    """LayerNorm with gain 1 and shift 0, as the equation reads."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / ((centred**2).mean(-1, keepdim=True) + 1e-12).sqrt()


def linear(x, layer):
    return x @ layer.weight.T + layer.bias


class Double(nn.Module):
    """Stands for attention: what it returns is easy to know."""

    def forward(self, x, mask=None):
        self.mask = mask
        return 2 * x


def make_layer(act="gelu", add_norm=lambda block, x, residual: norm(residual + linear(x, block.dense))):
    """A layer around stand-ins for attention and AddNorm: what fails then is BertLayer.forward alone."""
    layer = BertLayer(config(act=act)).double()
    layer.attention["self"] = Double()
    for block in (layer.attention["output"], layer.output):
        block.forward = partial(add_norm, block)
    return layer


# ---- add and norm ----


def test_add_norm_normalises_after_the_addition():
    block, x, residual = AddNorm(12, config()).double(), draw(2, 3, 12), draw(2, 3, 8)
    assert torch.allclose(block(x, residual), norm(residual + linear(x, block.dense))), (
        "expected LayerNorm(residual + x W + b): post-LN normalises the sum, residual included"
    )


def test_every_token_leaves_with_mean_0_and_variance_1():
    out = AddNorm(12, config()).double()(draw(2, 3, 12), 100 * draw(2, 3, 8))
    assert out.mean(-1).abs().max() < 1e-9, "each token's H numbers have mean 0 at the start"
    assert torch.allclose(out.var(-1, unbiased=False), torch.ones(2, 3).double()), "and variance 1"


# ---- dropout ----


def test_dropout_spares_the_residual():
    block, residual = AddNorm(12, config(dropout=0.9)).double().train(), draw(2, 3, 8)
    nn.init.zeros_(block.dense.weight)
    nn.init.zeros_(block.dense.bias)
    assert torch.allclose(block(draw(2, 3, 12), residual), norm(residual)), (
        "a block that adds 0 passes on what it read: dropout belongs on x W + b alone"
    )


def test_dropout_comes_after_dense():
    block = AddNorm(12, config(dropout=0.5)).double().train()
    nn.init.zeros_(block.dense.weight)
    block.dense.bias.data.copy_(torch.arange(8) + 1.0)  # x W + b is b for every x
    got = block(draw(20, 12), torch.zeros(20, 8).double())
    assert not torch.allclose(got, norm(block.dense.bias).expand(20, 8)), (
        "with dropout .5 about half of the numbers of x W + b are 0 in training: it comes after dense"
    )


def test_add_norm_dropout_acts_in_training_alone():
    block, x, residual = AddNorm(12, config(dropout=0.5)).double(), draw(2, 3, 12), draw(2, 3, 8)
    assert not torch.equal(block(x, residual), block(x, residual)), "no dropout in training"
    block.eval()
    assert torch.equal(block(x, residual), block(x, residual)), "dropout is on in evaluation"


# ---- layer ----


def test_a_layer_is_attention_then_feed_forward_each_added_and_normalised():
    layer, x = make_layer(), draw(2, 3, 8)
    middle = norm(x + linear(2 * x, layer.attention["output"].dense))
    inner = linear(middle, layer.intermediate["dense"])
    gelu = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2  # x Phi(x)
    expected = norm(middle + linear(gelu, layer.output.dense))
    assert torch.allclose(layer(x), expected), (
        "expected x <- AddNorm(attention(x), x), then x <- AddNorm(GELU(x W1 + b1), x)"
    )


@pytest.mark.parametrize("act", ["relu", "gelu", "gelu_new"])
def test_the_activation_is_the_one_that_was_configured(act):
    layer = make_layer(act, add_norm=lambda block, x, residual: x)  # shows what the last AddNorm is given
    layer.intermediate["dense"].weight.data.zero_()
    layer.intermediate["dense"].bias.data.fill_(-1.0)
    value = {  # of -1, in closed form
        "relu": 0.0,
        "gelu": -(1 + math.erf(-1 / math.sqrt(2))) / 2,
        "gelu_new": -(1 + math.tanh(math.sqrt(2 / math.pi) * (-1 - 0.044715))) / 2,
    }[act]
    got = layer(draw(2, 3, 8))
    assert got.shape == (2, 3, 12), (
        f"the last AddNorm takes the 12 inner numbers of each token as x: {got.shape}"
    )
    assert torch.allclose(got, torch.full_like(got, value)), (
        f"x W1 + b1 is -1 here and {act}(-1) is {value:.4f}, not {got[0, 0, 0]:.4f}: use self.act"
    )


def test_the_padding_mask_reaches_attention():
    layer, mask = make_layer(), torch.ones(2, 1, 1, 3, dtype=torch.bool)
    layer(draw(2, 3, 8), mask)
    assert layer.attention["self"].mask is mask, "without its mask attention reads the padding"
