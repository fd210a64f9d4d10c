"""Exercise 6, selection: which k positions of a row are masked? Rules against a plain sort, or all draws."""

from itertools import permutations

import numpy as np
import pytest
import torch

from masking import draw_candidates, mask_budget, select_positions


def rows(seed=0, shape=(40, 30), share=0.8):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=rng) < share, torch.rand(shape, generator=rng) * 9


@pytest.mark.parametrize(
    "n, ratio, k", [(10, 0.15, 2), (10, 0.25, 2), (10, 0.35, 4), (1, 0.15, 1), (0, 0.15, 0)]
)
def test_budget_rounds_half_to_even_and_is_at_least_one(n, ratio, k):
    got = mask_budget(n, ratio)
    assert got == k, (
        f"{ratio} of {n} positions: expected min(|E|, max(1, round({ratio * n:.2f}))) = {k}, not {got}"
    )


@pytest.mark.parametrize("ratio", [0, -0.1, 1.5, float("nan")])
def test_a_mask_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match="mask ratio"):
        mask_budget(10, ratio)


def brute_force(rule, values, k):
    """The indices a rule must pick from a list of distinct entropies."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    if rule == "low":
        return set(order[:k])
    if rule == "high":
        return set(order[len(order) - k :])
    if rule == "both":
        return set(order[: k // 2]) | set(order[len(order) - (k - k // 2) :])
    median = float(np.median(values))
    return set(sorted(range(len(values)), key=lambda i: abs(values[i] - median))[:k])


@pytest.mark.parametrize("rule", ["high", "low", "mid", "both"])
@pytest.mark.parametrize("ratio", [0.15, 0.5, 1.0])
@pytest.mark.parametrize("with_candidates", [False, True])
def test_rules_equal_brute_force(rule, ratio, with_candidates):
    eligible, entropy = rows(seed=1)
    candidates = draw_candidates(eligible, ratio, 1.5) if with_candidates else eligible
    selected = select_positions(rule, eligible, ratio, entropy, candidates if with_candidates else None)
    for row in range(len(eligible)):
        pool = candidates[row].nonzero()[:, 0].tolist()
        k = mask_budget(int(eligible[row].sum()), ratio)
        expected = {pool[i] for i in brute_force(rule, [entropy[row, p].item() for p in pool], k)}
        assert set(selected[row].nonzero()[:, 0].tolist()) == expected, f"row {row}: rule {rule} with k = {k}"


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sample_draws_without_replacement_in_proportion(temperature):
    entropy = torch.tensor([0.5, 1.0, 2.0, 4.0])
    weight = entropy ** (1 / temperature)
    expected = torch.zeros(4)  # probability that each is among the two drawn, one draw after the other
    for first, second in permutations(range(4), 2):
        p = weight[first] / weight.sum() * weight[second] / (weight.sum() - weight[first])
        expected[first] += p
        expected[second] += p
    n, generator = 40000, torch.Generator().manual_seed(0)
    selected = select_positions(
        "sample", torch.ones(n, 4, dtype=torch.bool), 0.5, entropy.expand(n, 4), None, temperature, generator
    )
    rates = selected.float().mean(0)
    assert torch.allclose(rates, expected, atol=0.012), (
        f"entropies .5 1 2 4 at tau {temperature}: expected rates {expected.tolist()}, not {rates.tolist()}; "
        "two draws in proportion to H^(1/tau), the second among those that are left"
    )


def test_sample_takes_certain_tokens_last():
    entropy = torch.tensor([0.0, 0.0, 0.1, 0.1]).expand(100, 4)
    assert select_positions("sample", torch.ones(100, 4, dtype=torch.bool), 0.5, entropy)[:, 2:].all(), (
        "an entropy of 0 has weight 0: it is drawn only when nothing else is left"
    )
