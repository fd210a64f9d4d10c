"""The focal loss: values and gradients in float64, its weights by hand, and runs with it."""

import math

import focal
import numpy as np
import pytest
import torch
from conftest import SMALL

import train as program

IGNORE = -100


def batch(seed: int, dtype):
    """Logits [3, 5, 11] with sure and unsure tokens; two of the labels are -100."""
    rng = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(3, 5, 11, generator=rng, dtype=torch.float64)
    labels = torch.randint(11, (3, 5), generator=rng)
    labels[0, 1] = labels[2, 4] = IGNORE
    return logits.to(dtype).requires_grad_(), labels


def by_hand(logits, labels, gamma):
    """The definition, a token at a time, in numpy: (loss, gradient [3, 5, 11])."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    places = [place for place in np.ndindex(labels.shape) if labels[place] != IGNORE]
    weights = {place: (1 - p[place][labels[place]]) ** gamma for place in places}
    mean = sum(weights.values()) / len(places)
    loss = 0.0
    gradient = np.zeros_like(p)
    for place in places:
        weight = weights[place] / mean
        loss -= weight * math.log(p[place][labels[place]])
        gradient[place] = weight * p[place]
        gradient[place][labels[place]] -= weight
    return loss, gradient


@pytest.mark.parametrize("gamma", [0.5, 1, 2, 5])
def test_loss_and_gradient_are_those_of_the_definition(gamma):
    logits, labels = batch(0, torch.float64)
    loss, _, _, _ = focal.focal_loss(logits, labels, gamma)
    loss.backward()
    expected, gradient = by_hand(logits.detach().numpy(), labels.numpy(), gamma)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert np.allclose(logits.grad.numpy(), gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gamma", [1, 2])
def test_no_gradient_goes_through_the_weights(gamma):
    logits, labels = batch(1, torch.float64)
    loss, _, _, _ = focal.focal_loss(logits, labels, gamma)
    loss.backward()
    # float64 autograd of a weighted sum whose weights are numbers
    free = logits.detach().clone().requires_grad_()
    nll = torch.nn.functional.cross_entropy(free.flatten(0, 1), labels.flatten(), reduction="none")
    masked = labels.flatten() != IGNORE
    weight = ((1 - (-nll).exp()) ** gamma).detach()
    (nll * weight / weight[masked].mean()).sum().backward()
    assert torch.allclose(logits.grad, free.grad, rtol=0, atol=1e-12)


def test_without_an_exponent_it_is_the_usual_loss():
    logits, labels = batch(2, torch.float32)
    loss, cross_entropy, correct, entropy = focal.focal_loss(logits, labels, 0)
    expected, guessed = program.mlm_loss(logits, labels)
    assert loss.item() == pytest.approx(cross_entropy.item()) == pytest.approx(expected.item())
    assert correct == guessed
    p = logits.double().softmax(-1)
    assert torch.allclose(entropy.double(), -(p * p.log()).sum(-1), atol=1e-5)


def test_a_step_in_which_all_is_known_has_a_finite_loss():
    labels = torch.tensor([[0, 1]])
    logits = torch.tensor([[[900.0, 0.0], [0.0, 900.0]]], requires_grad=True)
    loss, _, _, _ = focal.focal_loss(logits, labels, 2)
    loss.backward()
    assert loss == 0 and logits.grad.isfinite().all()


@pytest.fixture
def run(corpus, cache, tmp_path):
    """run("--gamma", 1, out="a") -> the finished run, made in this process."""

    def make_run(*options, kind=focal.FocalPretraining, parser=None, out="out"):
        argv = ["--corpus", corpus, *SMALL, "--cache", cache, "--masking", "random", "--out", tmp_path / out]
        return program.main(parser or focal.make_parser(), kind, list(map(str, [*argv, *options])))

    return make_run


def test_gamma_0_is_train_py_and_gamma_1_another_run_with_the_same_masks(run):
    plain = run(kind=program.Pretraining, parser=program.make_parser(""), out="plain")
    zero = run("--gamma", 0, out="zero")
    one = run("--gamma", 1, out="one")
    losses = [[line["held_out_loss"] for line in each.log] for each in (plain, zero, one)]
    assert losses[0] == losses[1] != losses[2]
    assert one.log[-1]["distinct_ids"] == plain.log[-1]["distinct_ids"], "the masks are the same"
    # what is logged is cross-entropy: at the start of training both have learned little
    assert one.log[-1]["loss"] == pytest.approx(plain.log[-1]["loss"], rel=0.05)


@pytest.mark.parametrize("options", [("--gamma", -1), ("--accumulate", 2)])
def test_what_would_be_another_loss_is_refused(run, options):
    with pytest.raises(SystemExit, match="gamma starts at 0|1 on average over a step"):
        run(*options)
