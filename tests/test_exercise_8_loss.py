"""Exercise 8, the loss: how surprising are the hidden words? -sum over masked i of log p_i(word i)"""

import math

import numpy as np
import pytest
import torch

from train import mlm_loss


def test_loss_is_the_negative_log_probability_of_the_hidden_tokens():
    logits = torch.randn(4, 6, 50, generator=torch.Generator().manual_seed(0)) * 5
    labels = torch.randint(0, 50, (4, 6), generator=torch.Generator().manual_seed(1))
    labels[0, 2:] = -100
    labels[3] = -100
    p = logits.double().softmax(-1)
    expected, right = 0.0, 0
    for i, j in np.argwhere(labels.numpy() != -100):
        expected -= math.log(p[i, j, labels[i, j]])
        right += int(p[i, j].argmax() == labels[i, j])
    loss, correct = mlm_loss(logits, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-5), (
        f"expected {expected:.2f}, the sum over the places with a label, not {loss.item():.2f}; "
        f"a mean over all 24 places is {expected / 24:.2f}, one over the 50 words {expected / 50:.2f}"
    )
    assert correct.item() == right, "right: the label's logit is the largest, and there is a label"


def test_loss_ignores_minus_100_and_nothing_else():
    logits = torch.zeros(3, 10, requires_grad=True)
    loss, _ = mlm_loss(logits, torch.tensor([0, -100, 9]))
    loss.backward()
    assert loss.item() == pytest.approx(2 * math.log(10)), (
        "two labelled places, log 10 each: id 0 is a word like any other, -100 is none"
    )
    assert not logits.grad[1].any(), "label -100: no loss, so no gradient"
    assert logits.grad[0].any()


def test_a_step_without_masks_has_loss_zero_and_no_nan():
    logits = torch.randn(2, 10, requires_grad=True)
    loss, _ = mlm_loss(logits, torch.full((2,), -100))
    loss.backward()
    assert loss.item() == 0, "nothing was asked, so nothing is lost (0 / 0 is NaN)"
    assert logits.grad.isfinite().all()
