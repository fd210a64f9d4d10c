"""The two readings of entropy: against its definition in float64, without gradient, dropout or [B, T, V]."""

import pytest
import torch

import masking
from masking import blank_entropy, sequence_entropy
from model import BertConfig, BertForMaskedLM, init_normal


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model = BertForMaskedLM(config)
    init_normal(model, 0.5)  # large weights: predictions that differ from place to place
    return model.train()


def by_definition(logits):
    """-sum p log p in float64."""
    p = logits.double().softmax(-1)
    return -torch.where(p > 0, p * p.log(), 0.0).sum(-1)


def test_visible_reading_is_the_entropy_of_the_models_output(model):
    ids = torch.randint(5, 50, (3, 12))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    got = sequence_entropy(model, ids, mask, chunk=5)
    expected = by_definition(model.eval()(ids, mask))
    assert torch.allclose(got.double(), expected, atol=1e-4)


def test_blank_reading_hides_all_candidates_at_once(model):
    ids, candidates = torch.randint(5, 50, (3, 12)), torch.rand(3, 12) < 0.4
    candidates[:, 0] = True
    got = blank_entropy(model, ids, candidates, mask_token_id=4, chunk=3)
    expected = by_definition(model.eval()(ids.masked_fill(candidates, 4)))
    assert torch.allclose(got.double()[candidates], expected[candidates], atol=1e-4)
    assert (got[~candidates] == 0).all(), "places that are no candidates have entropy 0"


def test_blank_reading_takes_candidates_as_bool_or_as_places(model):
    ids, places = torch.randint(5, 50, (3, 12)), torch.tensor([[0, 5, 7], [1, 2, 11], [3, 4, 9]])
    as_bool = torch.zeros(3, 12, dtype=torch.bool).scatter(1, places, True)
    one, other = blank_entropy(model, ids, as_bool, 4), blank_entropy(model, ids, places, 4)
    assert torch.allclose(one, other, atol=1e-5)


def test_no_candidates_no_entropy(model):
    ids = torch.randint(5, 50, (2, 6))
    assert blank_entropy(model, ids, torch.zeros(2, 6, dtype=torch.bool), 4).sum() == 0


@pytest.mark.parametrize("reading", ["visible", "blank"])
def test_reading_leaves_no_gradient_and_every_module_in_its_mode(model, reading):
    model.bert.embeddings.eval()  # a user may freeze a part
    before = [module.training for module in model.modules()]
    ids = torch.randint(5, 50, (2, 6))
    entropy = sequence_entropy(model, ids) if reading == "visible" else blank_entropy(model, ids, ids > 20, 4)
    assert not entropy.requires_grad
    assert [module.training for module in model.modules()] == before, "train/eval mode must be what it was"


def test_reading_has_no_dropout(model):
    ids = torch.randint(5, 50, (2, 6))
    assert torch.equal(sequence_entropy(model, ids), sequence_entropy(model, ids)), "dropout must be off"


def test_entropies_in_slices_of_slices_equal_those_in_one_piece(model, monkeypatch):
    ids = torch.randint(5, 50, (4, 20))
    whole = sequence_entropy(model, ids, chunk=1000)
    monkeypatch.setattr(masking, "slice_size", lambda _: 3 * 50)  # entropies of 3 rows, logits of 12
    assert torch.allclose(sequence_entropy(model, ids, chunk=12), whole, atol=1e-5)


@pytest.mark.parametrize("reading", ["visible", "blank"])
def test_no_more_than_a_chunk_of_logits_exists(model, reading):
    sizes = []
    model.cls["predictions"].register_forward_hook(
        lambda _, __, logits: sizes.append(logits.shape[:-1].numel())
    )
    ids = torch.randint(5, 50, (4, 20))
    if reading == "visible":
        sequence_entropy(model, ids, chunk=16)
    else:
        blank_entropy(model, ids, ids > 10, 4, chunk=16)
    assert max(sizes) <= 16 < sum(sizes), f"heads ran on {sizes} positions at a time, expected at most 16"
