"""The encoder: attention two ways, padding, the vocabulary head where asked, and the start of the weights."""

import pytest
import torch
import torch.nn.functional as F

from model import (
    SIZES,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    attention,
    init_normal,
    init_offset_heads,
)

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def make(kind=BertForMaskedLM, **changes):
    torch.manual_seed(0)
    model = kind(BertConfig(**{**SMALL, **changes}))
    init_normal(model, 0.3)
    return model.eval()


def padded_batch():
    ids = torch.randint(5, 60, (3, 10), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    mask[2] = 0  # a row of padding alone
    return ids.masked_fill(mask == 0, 0), mask


def by_hand(monkeypatch):
    """From here on the equation by hand stands in for torch's fused function."""

    def plain(query, key, value, attn_mask=None, dropout_p=0.0):
        return attention(query, key, value, attn_mask, dropout_p)

    monkeypatch.setattr(F, "scaled_dot_product_attention", plain)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("padding", [False, True])
def test_fused_attention_equals_attention_by_hand(dtype, tolerance, padding, monkeypatch):
    ids, mask = padded_batch()
    outputs, gradients = [], []
    for fused in (True, False):
        if not fused:
            by_hand(monkeypatch)
        model = make(BertModel).to(dtype)
        out = model(ids, mask if padding else None)[0][:2, :6]
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
        (out.float() * weights).sum().backward()
        outputs.append(out)
        gradients.append(model.encoder["layer"][0].attention["self"].query.weight.grad)
    for one, other in (outputs, gradients):
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_bfloat16_on_a_cpu_goes_by_hand(dtype, monkeypatch):
    def refuse(*given, **named):
        raise AssertionError("the fused function was called")

    monkeypatch.setattr(F, "scaled_dot_product_attention", refuse)
    model, ids = make(BertModel).to(dtype), padded_batch()[0]
    if dtype == torch.bfloat16:
        assert model(ids)[0].isfinite().all(), "there the equation by hand is faster"
    else:
        with pytest.raises(AssertionError, match="fused function"):
            model(ids)


def test_attention_by_hand_in_bfloat16_equals_torchs_own():
    """On a CPU it takes the place of torch's, which is slower there."""
    mask, results = padded_batch()[1].bool()[:2, None, None], []
    for function in (attention, torch.nn.functional.scaled_dot_product_attention):
        rng = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(2, 2, mask.shape[-1], 8, generator=rng).bfloat16() for _ in range(3))
        q, k, v = (tensor.requires_grad_() for tensor in (q, k, v))
        out = function(q, k, v, mask)
        out.float().square().sum().backward()
        results.append((out, q.grad, k.grad, v.grad))
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max() <= 0.03 * other.abs().max()


@pytest.mark.parametrize("fused", [True, False])
def test_padding_never_changes_a_real_token(fused, monkeypatch):
    if not fused:
        by_hand(monkeypatch)
    model, (ids, mask) = make(BertModel), padded_batch()
    hidden, pooled = model(ids, mask)
    alone, alone_pooled = model(ids[:1, :6])
    assert torch.allclose(hidden[0, :6], alone[0], atol=1e-5), (
        "padding was read: is the attention mask inverted?"
    )
    assert torch.allclose(pooled[0], alone_pooled[0], atol=1e-5)
    ids[0, 6:] = 33
    assert torch.allclose(model(ids, mask)[0][0, :6], alone[0], atol=1e-5), (
        "what stands in the padding must not matter"
    )


@pytest.mark.parametrize("fused", [True, False])
def test_a_row_of_padding_alone_gives_no_nan(fused, monkeypatch):
    if not fused:
        by_hand(monkeypatch)
    model, (ids, mask) = make(BertForMaskedLM), padded_batch()
    logits = model(ids, mask)
    logits[:2].sum().backward()
    assert logits.isfinite().all(), "softmax over no key is NaN"
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None), (
        "NaN spread into the gradient"
    )


def test_shapes():
    ids = torch.randint(5, 60, (3, 7))
    hidden, pooled = make(BertModel)(ids)
    assert hidden.shape == (3, 7, 32) and pooled.shape == (3, 32)
    assert make(BertForMaskedLM)(ids).shape == (3, 7, 60)
    assert make(BertForSequenceClassification, num_labels=3)(ids).shape == (3, 3)


def test_head_on_some_positions_equals_head_everywhere():
    model, (ids, mask) = make(), padded_batch()
    everywhere = model(ids, mask)
    places = torch.tensor([[4, 0, 9], [1, 1, 2], [0, 3, 8]])
    expected = torch.stack([row[place] for row, place in zip(everywhere, places, strict=True)])
    assert torch.allclose(model(ids, mask, places=places), expected, atol=1e-5)


def test_dropout_acts_in_training_alone():
    model, (ids, _) = make(BertModel), padded_batch()
    assert torch.equal(model(ids)[0], model(ids)[0])
    model.train()
    assert not torch.equal(model(ids)[0], model(ids)[0])


@pytest.mark.parametrize(
    "size, million", [("tiny", 4.4), ("mini", 11.3), ("small", 29.1), ("medium", 41.7), ("base", 110.1)]
)
def test_presets_have_the_published_number_of_parameters(size, million):
    with torch.device("meta"):  # Turc et al. 2019, table 1: with pooler and segment head left aside
        model = BertForMaskedLM(BertConfig.preset(size))
    total = sum(p.numel() for p in model.parameters())
    assert total / 1e6 == pytest.approx(million, rel=0.015)


def test_what_cannot_be_built_is_refused_with_its_cause():
    assert set(SIZES) == {"tiny", "mini", "small", "medium", "base"}
    with pytest.raises(ValueError, match="hidden_size 100 cannot be divided among 3 heads"):
        BertConfig(hidden_size=100, num_attention_heads=3)
    with pytest.raises(ValueError, match="hidden_act 'mish' is not one of gelu, "):
        BertConfig(hidden_act="mish")


def test_heads_of_odd_width_work_and_only_the_offset_start_refuses_them():
    ids = torch.randint(5, 60, (2, 7))
    model = make(BertModel, hidden_size=36, num_attention_heads=4)
    assert model(ids)[0].shape == (2, 7, 36), "heads of width 9 are BERT's like any other"
    with pytest.raises(ValueError, match="heads of odd width 9 "):
        init_offset_heads(model)


def test_normal_start():
    model = BertForMaskedLM(BertConfig.preset("tiny"))
    assert model.bert.embeddings.word_embeddings.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.bert.encoder["layer"][1].output.dense.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not model.cls["predictions"].bias.any() and (model.bert.embeddings.LayerNorm.weight == 1).all()


def test_offset_heads_look_at_the_neighbours_from_the_start():
    model = BertModel(BertConfig.preset("mini")).eval()
    init_offset_heads(model, torch.Generator().manual_seed(0))
    x = model.embeddings(torch.randint(5, 30000, (16, 64), generator=torch.Generator().manual_seed(0)))
    attn = model.encoder["layer"][0].attention["self"]
    query, key = (f(x).view(16, 64, 4, 64).transpose(1, 2) for f in (attn.query, attn.key))
    weights = (query @ key.transpose(-2, -1) / 8).softmax(-1)
    inner = torch.arange(4, 60)
    for head, offset in enumerate((-1, 1, -2, 2)):
        share = weights[:, head, inner, inner + offset].mean().item()
        assert share > 0.5, (
            f"head {head} gives {share:.2f} of its attention to offset {offset:+d}, expected over half"
        )
