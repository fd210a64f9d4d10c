"""The readings of entropy: against its definition in float64, without gradient, dropout or [B, T, V]."""

import math

import pytest
import torch

import masking
from masking import EntropyMemory, blank_entropy, visible_entropy
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
    got = visible_entropy(model, ids, mask)
    expected = by_definition(model.eval()(ids, mask))
    assert expected.std() > 0.1, "predictions that are all alike would test nothing"
    assert torch.allclose(got.double(), expected, atol=1e-4)


def test_blank_reading_hides_all_candidates_at_once(model):
    ids = torch.randint(5, 50, (3, 12))
    candidates = torch.rand(3, 12) < 0.4
    candidates[:, 0] = True
    got = blank_entropy(model, ids, candidates, mask_token_id=4)
    expected = by_definition(model.eval()(ids.masked_fill(candidates, 4)))
    assert torch.allclose(got.double()[candidates], expected[candidates], atol=1e-4)
    assert (got[~candidates] == 0).all(), "places that are no candidates have entropy 0"


@pytest.mark.parametrize("width", [5, 9, 100])
def test_a_width_given_beforehand_changes_nothing(model, width):
    ids = torch.randint(5, 50, (3, 12))
    candidates = torch.zeros(3, 12, dtype=torch.bool)
    candidates[0, 2:7] = candidates[1, 4] = candidates[2, ::6] = True
    counted = blank_entropy(model, ids, candidates, 4)
    assert torch.allclose(blank_entropy(model, ids, candidates, 4, width), counted, atol=1e-5)
    assert (counted > 0).equal(candidates), "every candidate has an entropy, and nothing else has"


def test_segments_and_padding_reach_the_model(model):
    ids = torch.randint(5, 50, (3, 12))
    inputs = {"attention_mask": (torch.arange(12) < 9).long().expand(3, 12)}
    inputs |= {"token_type_ids": (torch.arange(12) > 4).long().expand(3, 12)}
    got = visible_entropy(model, ids, **inputs)
    plain = visible_entropy(model, ids)
    expected = by_definition(model.eval()(ids, **inputs))
    assert torch.allclose(got.double(), expected, atol=1e-4)
    assert not torch.allclose(got, plain, atol=1e-2), "segments and padding must change the predictions"


def test_no_candidates_no_entropy(model):
    ids = torch.randint(5, 50, (2, 6))
    assert blank_entropy(model, ids, torch.zeros(2, 6, dtype=torch.bool), 4).sum() == 0


@pytest.mark.parametrize("reading", ["visible", "blank"])
def test_reading_leaves_no_gradient_and_every_module_in_its_mode(model, reading):
    model.bert.embeddings.eval()  # a user may freeze a part
    before = [module.training for module in model.modules()]
    ids = torch.randint(5, 50, (2, 6))
    entropy = visible_entropy(model, ids) if reading == "visible" else blank_entropy(model, ids, ids > 20, 4)
    assert not entropy.requires_grad
    assert [module.training for module in model.modules()] == before, "train/eval mode must be what it was"


def test_reading_has_no_dropout(model):
    ids = torch.randint(5, 50, (2, 6))
    assert torch.equal(visible_entropy(model, ids), visible_entropy(model, ids)), "dropout must be off"


def test_entropies_in_slices_equal_those_in_one_piece(model, monkeypatch):
    ids = torch.randint(5, 50, (40, 64))  # more tokens than one slice of rows holds
    whole = by_definition(model.eval()(ids))
    monkeypatch.setattr(
        masking, "logits_per_slice", lambda device: 7 * 50
    )  # and entropies of 7 tokens at a time
    assert torch.allclose(visible_entropy(model, ids).double(), whole, atol=1e-4)


@pytest.mark.parametrize("reading", ["visible", "blank"])
def test_logits_exist_of_few_tokens_at_once(model, reading):
    sizes = []
    head = model.cls["predictions"].decoder
    head.register_forward_hook(lambda layer, args, logits: sizes.append(logits.shape[:-1].numel()))
    ids = torch.randint(5, 50, (60, 64))
    if reading == "visible":
        visible_entropy(model, ids)
        wanted = ids.numel()
    else:
        candidates = torch.arange(64).expand(60, 64) < 40
        blank_entropy(model, ids, candidates, 4)
        wanted = int(candidates.sum())
    assert sum(sizes) == wanted, f"the last layer worked on {sum(sizes)} tokens, {wanted} were asked for"
    assert max(sizes) <= 1024, f"the last layer ran on {sizes} tokens at a time, expected at most 1024"


def test_memory_returns_what_was_last_written_and_the_running_mean_elsewhere():
    generator = torch.Generator().manual_seed(0)
    memory = EntropyMemory(6, 8, "cpu")
    remembered = {}
    mean = 0.0
    for step in range(5):
        index = torch.randperm(6, generator=generator)[:3]
        places = torch.rand(3, 8, generator=generator).argsort(-1)[:, :4]
        entropy = torch.rand(3, 4, generator=generator) * 9
        blank = torch.rand(3, 4, generator=generator) < 0.7
        memory.write(index, places, entropy, blank)

        written = entropy[blank].mean().item()
        mean = written if step == 0 else 0.99 * mean + 0.01 * written
        for row in range(3):
            for j in range(4):
                if blank[row, j]:
                    remembered[index[row].item(), places[row, j].item()] = entropy[row, j].item()

    rows = torch.tensor([4, 0, 5, 1])
    values = memory.read(rows)
    for i, row in enumerate(rows.tolist()):
        for place in range(8):
            expected = remembered.get((row, place), mean)
            assert math.isclose(values[i, place], expected, abs_tol=0.01), "float16 of at most 9 nats"
    known = sum((row, place) in remembered for row in rows.tolist() for place in range(8))
    assert 5 < known < 27, "remembered tokens and others must both have been read"


def test_an_empty_memory_finds_all_tokens_alike():
    values = EntropyMemory(4, 8, "cpu").read(torch.tensor([2, 3]))
    assert (values == values[0, 0]).all() and values.isfinite().all(), "so that the first masks are random"


def test_an_entropy_that_overflowed_is_not_remembered():
    memory = EntropyMemory(2, 4, "cpu")
    places, blank = torch.tensor([[1, 2]]), torch.tensor([[True, True]])
    memory.write(torch.tensor([0]), places, torch.tensor([[2.0, torch.nan]]), blank)
    assert memory.read(torch.tensor([0])).tolist() == [[2.0] * 4], "the one that is known, and their mean"
    memory.write(torch.tensor([0]), places, torch.tensor([[torch.nan, torch.nan]]), blank)
    assert memory.read(torch.tensor([0, 1])).tolist() == [[2.0] * 4] * 2, "nothing new is known"


@pytest.fixture
def double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_entropies_are_float32_whatever_the_default(double_by_default):
    ids = torch.tensor([[2, 7, 8, 3]])
    candidates = torch.tensor([[False, True, True, False]])
    bert = BertForMaskedLM(BertConfig.preset("tiny", vocab_size=60))
    entropy = blank_entropy(bert, ids, candidates, mask_token_id=4)
    assert entropy.dtype == torch.float32 and (entropy[candidates] > 0).all()
    memory = EntropyMemory(1, 4, "cpu")
    memory.write(torch.tensor([0]), torch.tensor([[1, 2]]), entropy[:, 1:3], candidates[:, 1:3])
    remembered = memory.read(torch.tensor([0]))
    assert torch.allclose(remembered[candidates], entropy[candidates], atol=0.01), (
        "float16 of what was written"
    )
    assert torch.allclose(remembered[~candidates], entropy[candidates].mean()), "their mean elsewhere"


def test_the_memory_keeps_no_graph():
    memory = EntropyMemory(2, 4, "cpu")
    entropy = torch.rand(2, 2, requires_grad=True) * 2
    memory.write(torch.arange(2), torch.tensor([[0, 1], [2, 3]]), entropy, torch.ones(2, 2, dtype=torch.bool))
    assert not memory.values.requires_grad and not memory.mean.requires_grad


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_row_that_is_there_twice_loses_nothing_that_was_read(order):
    memory = EntropyMemory(2, 4, "cpu")
    index = torch.tensor([1, 1])
    places = torch.tensor([[0, 1], [0, 1]])[order]
    entropy = torch.tensor([[3.0, 9.0], [9.0, 5.0]])[order]
    blank = torch.tensor([[True, False], [False, True]])[order]  # each copy read what the other did not
    memory.write(index, places, entropy, blank)
    assert memory.values[1, :2].tolist() == [3, 5] and memory.values[1, 2:].isnan().all()
    assert memory.values[0].isnan().all(), "another row was written to"


def test_a_step_without_blanks_leaves_the_memory_as_it_is():
    memory = EntropyMemory(2, 4, "cpu")
    index = torch.arange(2)
    places = torch.tensor([[0, 1], [2, 3]])
    memory.write(index, places, torch.full((2, 2), 4.0), torch.ones(2, 2, dtype=torch.bool))
    values = memory.values.clone()
    for _ in range(200):
        memory.write(index, places, torch.full((2, 2), torch.nan), torch.zeros(2, 2, dtype=torch.bool))
    assert memory.mean == 4, "the mean of all blanks so far"
    assert torch.allclose(memory.values, values, equal_nan=True)
    assert torch.equal(memory.read(index).isnan(), torch.zeros(2, 4, dtype=torch.bool))
