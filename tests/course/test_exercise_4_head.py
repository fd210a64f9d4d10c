"""Exercise 4, the tied head: one matrix reads words and writes them. LayerNorm(GELU(x W + b)) E^T + c"""

import math

import pytest
import torch
from torch import nn

from model import BertConfig, MaskedLMHead


def make(**changes):
    torch.manual_seed(0)
    words = nn.Embedding(20, 8)
    head = MaskedLMHead(BertConfig(vocab_size=20, hidden_size=8, num_attention_heads=2, **changes), words)
    nn.init.normal_(head.bias)
    return words.double(), head.double()


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def norm(x, head):
    """LayerNorm with gain 1 and shift 0; its eps has a test of its own."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / ((centred**2).mean(-1, keepdim=True) + head.transform["LayerNorm"].eps).sqrt()


# ---- tied ----


def test_word_embeddings_and_decoder_are_one_matrix():
    words, head = make()
    assert head.decoder.weight is words.weight, (
        "expected one matrix with two names; a copy is equal today and different after the first update"
    )


# ---- logits ----


def test_logits_are_products_with_the_word_vectors():
    words, head = make()
    x = draw(3, 8)
    inner = x @ head.transform["dense"].weight.T + head.transform["dense"].bias
    gelu = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
    h = norm(gelu, head)
    for v in range(20):
        expected = (h * words.weight[v]).sum(-1) + head.bias[v]
        assert torch.allclose(head(x)[:, v], expected), (
            f"word {v}: expected LayerNorm(GELU(x W + b)) . E[{v}] + c[{v}]"
        )


@pytest.mark.parametrize("act", ["relu", "gelu", "gelu_new"])
def test_the_activation_is_the_one_that_was_configured(act):
    words, head = make(hidden_act=act)
    inner = [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0]  # x W + b for every x
    head.transform["dense"].weight.data.zero_()
    head.transform["dense"].bias.data.copy_(torch.tensor(inner))
    function = {  # in closed form
        "relu": lambda z: max(z, 0.0),
        "gelu": lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2,
        "gelu_new": lambda z: z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2,
    }[act]
    h = norm(torch.tensor([function(z) for z in inner], dtype=torch.float64), head)
    assert torch.allclose(head(draw(8)), words.weight @ h + head.bias), (
        f"hidden_act is {act!r}: expected LayerNorm({act}(x W + b)) E^T + c, from ACTIVATIONS[hidden_act]"
    )


# ---- names ----


def test_layer_norm_has_the_eps_of_the_configuration():
    for eps in (1e-12, 1e-3):
        got = make(layer_norm_eps=eps)[1].transform["LayerNorm"].eps
        assert got == eps, (
            f"LayerNorm divides by sqrt(variance + eps): config.layer_norm_eps {eps}, not {got}"
        )


# ---- logits ----


def test_the_head_takes_any_leading_shape():
    _, head = make()
    assert head(draw(8)).shape == (20,) and head(draw(2, 5, 8)).shape == (2, 5, 20), "[..., H] -> [..., V]"


# ---- tied ----


def test_the_output_trains_the_vectors_that_the_input_reads():
    words, head = make()
    head(draw(3, 8)).logsumexp(-1).sum().backward()
    assert words.weight.grad is not None and words.weight.grad.abs().sum(-1).min() > 0, (
        "every word is a possible answer, so every row of the embeddings gets a gradient from the head"
    )


# ---- names ----


def test_names_and_shapes_are_those_of_checkpoints_in_the_wild():
    shapes = {name: tuple(weight.shape) for name, weight in make()[1].state_dict().items()}
    assert shapes == {  # Hugging Face's "cls.predictions.*"
        "bias": (20,),
        "transform.dense.weight": (8, 8),
        "transform.dense.bias": (8,),
        "transform.LayerNorm.weight": (8,),
        "transform.LayerNorm.bias": (8,),
        "decoder.weight": (20, 8),
        "decoder.bias": (20,),
    }, "expected the names and shapes of other people's checkpoints: the hint has the names"


# ---- tied ----


def test_the_bias_is_one_vector_with_two_names():
    _, head = make()
    assert head.bias is head.decoder.bias, "Hugging Face knows c as bias and as decoder.bias"
