"""Exercise 5, entropy: how unsure is a prediction, and a model of the tokens it cannot see? -sum p log p"""

import math

import pytest
import torch
from torch import nn
from waiting import without_waiting

from masking import blank_entropy, prediction_entropy


def by_definition(logits):
    """-sum p log p in float64."""
    p = logits.double().softmax(-1)
    return -torch.where(p > 0, p * p.log(), 0.0).sum(-1)


def check(logits, expected, rtol=1e-5, atol=1e-6, reason=""):
    """Assert that logits [..., V] have these entropies [...]; a message names the mistake that it knows."""
    got = prediction_entropy(logits)
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert got.shape == expected.shape, (
        f"logits {list(logits.shape)} have entropies {list(expected.shape)}, not {list(got.shape)}"
    )
    if torch.allclose(got.double(), expected, rtol, atol):
        return

    difference = (got.double() - expected).abs()
    worst = int(difference.nan_to_num(math.inf, math.inf).argmax())
    said = f"expected {expected.flatten()[worst]:.7g} nats and not {got.flatten()[worst]:.7g}"
    rows = logits.reshape(-1, logits.shape[-1])
    alone = torch.cat([prediction_entropy(row[None]) for row in rows]).view(expected.shape)
    if torch.allclose(alone.double(), expected, rtol, atol):
        said += "; each row alone is right: the maximum that is taken off must be the row's own, amax(-1)"
    elif not got.isfinite().all() or logits.max() > 88 and got.flatten()[worst] == 0:  # a NaN made 0
        said += (
            "; NaN or inf: exp overflows unless the row's maximum is taken off first, and where p is 0, "
            "0 log 0 must count as 0 and not as 0 times -inf (each has a test of its own)"
        )
    elif difference.max() > 0.01 and torch.allclose(got.double() * math.log(2), expected, 1e-4, 1e-5):
        said += "; these are bits: take the natural logarithm"
    elif (difference <= 0.05 * expected + 1e-3).all():
        said += "; " + (reason or "a number added inside the log shifts rare words: mask p = 0 instead")
    pytest.fail(said)


# ---- precision ----


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32, torch.float64])
def test_the_result_is_one_float32_number_a_row(kind):
    got = prediction_entropy(torch.zeros(4, 5, 3, dtype=kind))
    assert got.shape == (4, 5), f"logits [4, 5, 3] have entropies [4, 5], not {list(got.shape)}"
    assert got.dtype == torch.float32, f"{kind} logits: expected float32 entropies, not {got.dtype}"


# ---- entropy ----


@pytest.mark.parametrize("size", [2, 7, 30522])
def test_uniform_prediction_has_entropy_log_v(size):
    check(torch.full((3, size), 5.0), [math.log(size)] * 3, 1e-6)


# ---- numbers ----


def test_certain_prediction_has_entropy_zero():
    # exp(80) does not overflow, and exp(-160) is 0 in float32: a NaN can only be 0 log 0
    got = prediction_entropy(torch.tensor([[80.0, -80.0, -80.0]])).item()
    assert not math.isnan(got), (
        "p is 1, 0, 0 here, and 0 log 0 came out as NaN (0 times -inf); it must count as 0"
    )
    assert got == pytest.approx(0, abs=1e-6), f"one word has probability 1: expected 0 and not {got}"


def test_large_logits_do_not_overflow():
    p = [1 / (2 + math.exp(-1))] * 2 + [math.exp(-1) / (2 + math.exp(-1))]
    check(torch.tensor([[1000.0, 1000.0, 999.0]]), [-sum(x * math.log(x) for x in p)])


def test_each_row_has_its_own_maximum():
    # Both rows are a fair coin. 80, the maximum of the whole batch, would leave exp(-160) = 0 in the first.
    check(torch.tensor([[-80.0, -80.0], [80.0, 80.0]]), [math.log(2)] * 2)


# ---- entropy ----


@pytest.mark.parametrize("p", [0.5, 0.9, 0.01])
def test_coin(p):
    """Heads with probability p: -p log p - (1 - p) log(1 - p)"""
    expected = -p * math.log(p) - (1 - p) * math.log(1 - p)
    check(torch.tensor([math.log(p), math.log(1 - p)]), expected)


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_equals_the_definition_in_float64(scale):
    logits = torch.randn(4, 5, 100, generator=torch.Generator().manual_seed(0)) * scale
    check(logits, by_definition(logits), atol=1e-5)


# ---- numbers ----


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_large_and_sure_predictions_equal_the_definition(scale):
    logits = torch.randn(4, 5, 100, generator=torch.Generator().manual_seed(0)) * scale
    check(logits, by_definition(logits), atol=1e-5)


@pytest.mark.parametrize("shift", [1e4, -1e4, 3e38])
def test_a_constant_added_to_all_logits_changes_nothing(shift):
    check(torch.tensor([0.0, 0.0, 0.0, 0.0]) + shift, math.log(4))


def test_impossible_words_add_nothing():
    check(torch.tensor([0.0, 0.0, -math.inf]), math.log(2))


# ---- precision ----


def test_bfloat16_logits_are_computed_in_float32():
    logits = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    reason = "bfloat16 keeps three digits: a sum over 1,000 words needs float32"
    check(logits, by_definition(logits), atol=1e-4, reason=reason)


# ---- the blank reading: hide tokens, and ask the model how unsure it is of each ----

MASK = 1


class Model(nn.Module):
    """Stands for a masked LM: each token's logits depend on all tokens that are read, and on where it is."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(20, 20)
        self.places = nn.Embedding(6, 20)
        self.block = nn.Sequential(nn.Linear(20, 20), nn.Dropout(dropout))

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        read = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.words(input_ids)
        mean = (x * read[..., None]).sum(1, keepdim=True) / read.sum(1)[:, None, None]
        x = x + 2 * mean + self.places.weight
        if token_type_ids is not None:
            x = x + token_type_ids[..., None] * self.places.weight[0]
        return self.block(x)


def rows():
    """Token ids [3, 6] and candidates: three in the first row, one in the second, none in the third."""
    ids = torch.tensor([[2, 7, 8, 9, 10, 3], [2, 11, 12, 13, 14, 3], [2, 15, 16, 17, 18, 3]])
    candidates = torch.tensor([[0, 1, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    return ids, candidates.bool()


def blank(*given, **named):
    """blank_entropy, with a word on the two mistakes that torch reports in its own language."""
    try:
        return blank_entropy(*given, **named)
    except RuntimeError as error:
        if "dtype" not in str(error):
            raise
        pytest.fail(
            f"torch refuses to mix dtypes: {error}. Entropies are float32 throughout: is that what your "
            "prediction_entropy returns, and what you scatter into?"
        )


# ---- blank reading ----


@pytest.mark.parametrize("width", [None, 3, 5])
def test_all_candidates_of_a_row_are_hidden_together(width):
    model, (ids, candidates) = Model().eval(), rows()
    got = blank(model, ids.clone(), candidates.clone(), MASK, width)
    assert got.shape == ids.shape, f"rows [B, T] have entropies [B, T], not {list(got.shape)}"
    expected = by_definition(model(ids.masked_fill(candidates, MASK)))
    alone = [by_definition(model(ids.index_fill(1, torch.tensor(i), MASK)))[:, i] for i in range(6)]
    mistakes = {
        "of tokens that are seen: replace the candidates by mask_token_id first": by_definition(model(ids)),
        "of candidates hidden one by one: hide them all in one forward pass": torch.stack(alone, 1),
    }
    like = [name for name, value in mistakes.items() if (got - value)[candidates].abs().max() < 1e-4]
    for row, place in candidates.nonzero().tolist():
        assert got[row, place].item() == pytest.approx(expected[row, place].item(), abs=1e-4), (
            f"row {row}, place {place}, width {width}: expected {expected[row, place]:.4f} nats, not "
            f"{got[row, place]:.4f}" + "".join(f"; these are the entropies {name}" for name in like)
        )


@pytest.mark.parametrize("width", [None, 3, 5])
def test_what_is_no_candidate_has_entropy_zero(width):
    ids, candidates = rows()
    elsewhere = blank(Model(), ids, candidates, MASK, width)[~rows()[1]]
    assert (elsewhere == 0).all(), (
        f"width {width}: expected 0 at the {len(elsewhere)} places that are no candidates, and "
        f"{int((elsewhere != 0).sum())} of them have an entropy. Row 1 has one candidate and row 2 none, so "
        "`as_places` gives them other places too"
    )


# ---- care ----


@pytest.mark.parametrize("width", [None, 1])
def test_no_candidate_at_all_has_entropy_zero_everywhere(width):
    ids = rows()[0]
    try:
        got = blank(Model(), ids, torch.zeros_like(ids, dtype=torch.bool), MASK, width)
    except NotImplementedError:
        raise
    except (ZeroDivisionError, RuntimeError, IndexError, ValueError) as error:
        pytest.fail(
            f"no row has a candidate, and {type(error).__name__} came of it: {error}. Where you count the "
            "candidates, since width is None, the width must be at least 1"
        )
    assert got.shape == ids.shape and (got == 0).all(), "without any candidate every entropy is 0"


def test_rows_and_candidates_stay_as_they_were():
    ids, candidates = rows()
    blank_entropy(Model(), ids, candidates, MASK)
    assert torch.equal(ids, rows()[0]), (
        "input_ids were changed in place: the model is still to be trained on what is hidden here"
    )
    assert torch.equal(candidates, rows()[1]), "candidates were changed in place"


def test_padding_and_segments_reach_the_model():
    model, (ids, candidates) = Model().eval(), rows()
    blanked = ids.masked_fill(candidates, MASK)
    real = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]])
    got = blank(model, ids.clone(), candidates, MASK, attention_mask=real)
    expected = by_definition(model(blanked, real))
    assert torch.allclose(got[candidates].double(), expected[candidates], atol=1e-4), (
        "the model read the padding: give it attention_mask=attention_mask"
    )
    segments = torch.tensor([0, 0, 0, 1, 1, 1]).expand(3, 6)
    got = blank(model, ids.clone(), candidates, MASK, token_type_ids=segments)
    expected = by_definition(model(blanked, token_type_ids=segments))
    assert torch.allclose(got[candidates].double(), expected[candidates], atol=1e-4), (
        "the model did not see token_type_ids: pass on **inputs"
    )


def test_reading_is_no_training():
    model = Model(dropout=0.5).train()
    got = blank(model, *rows(), MASK)
    assert not got.requires_grad, "entropies only choose the masks: no gradient flows through them"
    assert torch.equal(got, blank_entropy(model, *rows(), MASK)), (
        "two readings of the same rows differ: dropout was on"
    )
    assert all(module.training for module in model.modules()), (
        "afterwards the model must be in training mode again"
    )


class Counting(Model):
    """Counts its passes and the places that it is asked for; like the project's models it takes `places`."""

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, places=None):
        self.passes = getattr(self, "passes", 0) + 1
        assert places is not None, "the model was asked for all places: read it through entropy_at"
        self.width = places.shape[1]
        return super().forward(input_ids, attention_mask, token_type_ids).take_along_dim(places[..., None], 1)


# ---- blank reading ----


def test_one_pass_is_enough():
    model = Counting().eval()
    blank(model, *rows(), MASK, 4)
    assert model.passes == 1, (
        f"{model.passes} passes of the model for three rows: expected 1, in which all candidates are hidden; "
        "a pass for each place makes training several times slower"
    )


# ---- care ----


def test_as_many_places_are_asked_for_as_width_says():
    model = Counting().eval()
    blank(model, *rows(), MASK, 4)
    assert model.width == 4, (
        f"width is 4 and the model was asked for {model.width} places of a row: give `as_places` the width "
        "that came, and count the candidates only where it is None"
    )


def test_nothing_waits_for_a_gpu_where_width_is_given():
    model, (ids, candidates) = Model().eval(), rows()
    without_waiting(lambda: blank(model, ids, candidates, MASK, 3))
