"""Exercise 8, the loss: how surprising are the hidden words? -sum over masked i of log p_i(word i)"""

import math

import numpy as np
import pytest
import torch
from waiting import without_waiting

from train import mlm_loss


def example():
    """Logits [4, 6, 50], and labels of which 10 of 24 are words."""
    logits = torch.randn(4, 6, 50, generator=torch.Generator().manual_seed(0)) * 5
    labels = torch.randint(0, 50, (4, 6), generator=torch.Generator().manual_seed(1))
    labels[0, 2:] = -100
    labels[2, :4] = -100
    labels[3] = -100
    return logits, labels


def asked(logits, labels):
    """mlm_loss, with a word on the two mistakes that torch reports in its own language."""
    try:
        return mlm_loss(logits, labels)
    except (RuntimeError, IndexError) as error:
        if "out of bounds" in str(error) or "-100" in str(error):
            pytest.fail(
                f"{error}: a label of -100 is no index; look up another word there, and do not count it"
            )
        if "must match" in str(error) or "broadcast" in str(error):
            pytest.fail(f"{error}: `gather` leaves a last dimension of 1; take it off with [..., 0]")
        raise


# ---- loss ----


def test_loss_is_the_negative_log_probability_of_the_hidden_tokens():
    logits, labels = example()
    p = logits.double().softmax(-1)
    expected = -sum(math.log(p[i, j, labels[i, j]]) for i, j in np.argwhere(labels.numpy() != -100))
    loss = asked(logits, labels)[0].item()
    assert loss == pytest.approx(expected, rel=1e-5), (
        f"expected {expected:.2f}, the sum over the 10 places with a label, not {loss:.2f}; a mean over them "
        f"is {expected / 10:.2f}, one over all 24 places {expected / 24:.2f}, one over the 50 words "
        f"{expected / 50:.2f}"
    )


# ---- correct ----


def test_right_is_a_label_with_the_largest_logit():
    logits, labels = example()
    labels[0, 0], labels[1, 3] = logits[0, 0].argmax(), logits[1, 3].argmax()
    labels[1, 4] = logits[1, 4].argmin()
    expected = sum(int(logits[i, j].argmax() == labels[i, j]) for i, j in np.argwhere(labels.numpy() != -100))
    got = asked(logits, labels)[1].item()
    assert got == expected, f"the label's logit is the largest at {expected} places with a label, not {got:g}"


def test_a_place_without_a_label_is_neither_right_nor_wrong():
    logits = torch.tensor([[9.0, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    got = asked(logits, torch.tensor([-100, -100, 2]))[1].item()
    assert got == 1, (
        f"one place has a label, and it was guessed: expected 1 right, not {got:g}; where -100 is put to 0 "
        "to look it up, a guess of word 0 is no hit"
    )


def test_all_logits_equal_and_not_every_word_is_right():
    got = asked(torch.zeros(10, 10).bfloat16(), torch.arange(10))[1].item()
    assert got == 1, (
        "ten words are alike at ten places, and each is the label once: argmax makes one guess a place and "
        f"is right once, not {got:g} times (bfloat16 has many ties; to share the maximum is no hit)"
    )


# ---- loss ----


def test_a_label_of_minus_100_asks_nothing():
    logits, labels = example()
    logits.requires_grad_()
    loss = asked(logits, labels)[0]
    loss.backward()
    assert not logits.grad[labels == -100].any(), "label -100: no loss, so no gradient"
    changed = logits.detach().clone()
    changed[labels == -100] = 33 * torch.randn(14, 50, generator=torch.Generator().manual_seed(2))
    assert asked(changed, labels)[0].item() == pytest.approx(loss.item()), (
        "the loss changed with logits at places of label -100, where there is no loss"
    )


def test_nothing_waits_for_a_gpu():
    logits, labels = example()
    without_waiting(lambda: asked(logits, labels))


def test_word_0_is_a_word_like_any_other():
    logits = torch.zeros(2, 10, requires_grad=True)
    loss = asked(logits, torch.tensor([0, -100]))[0]
    loss.backward()
    assert loss.item() == pytest.approx(math.log(10)), (
        f"ten equally likely words, label 0 at one place: log 10 = 2.303, not {loss.item():.3f}"
    )
    assert logits.grad[0].any(), "label 0 has a loss, so its logits have a gradient"


# ---- numbers ----


def test_a_step_without_masks_has_loss_zero_and_no_nan():
    logits = torch.randn(2, 10, requires_grad=True)
    loss = asked(logits, torch.full((2,), -100))[0]
    loss.backward()
    assert loss.item() == 0, f"nothing was asked, so nothing is lost: 0, not {loss.item()} (0 / 0 is NaN)"
    assert logits.grad.isfinite().all(), "the gradient of no loss is 0, not NaN"


def test_an_improbable_word_costs_much_and_not_infinity():
    logits = torch.tensor([[1000.0, 0.0]], requires_grad=True)
    loss = asked(logits, torch.tensor([1]))[0]
    loss.backward()
    assert loss.item() == pytest.approx(1000), (
        f"logits 1000 and 0, the second is the label: -log p = 1000, not {loss.item():g}. softmax, then log, "
        "loses what is below 1e-45: log_softmax does not"
    )
    assert logits.grad.isfinite().all(), "the gradient is p - onehot(label), from -1 to 1, not NaN"


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_both_results_are_float32_scalars(kind):
    logits, labels = example()
    loss, right = asked(logits.to(kind), labels)
    for name, value in (("loss", loss), ("right", right)):
        assert value.shape == (), f"{name} is one number, not {tuple(value.shape)}"
        assert value.dtype == torch.float32, f"{kind} logits: {name} is float32, not {value.dtype}"


def test_bfloat16_logits_are_computed_in_float32():
    logits, labels = example()
    logits = logits.bfloat16()
    got, expected = (asked(given, labels)[0].item() for given in (logits, logits.float()))
    assert got == pytest.approx(expected, rel=1e-5), (
        f"the same logits cost {expected:.4f} in float32 and {got:.4f} in bfloat16, which keeps three "
        "digits: go to float32 first"
    )
