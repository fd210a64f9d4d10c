"""Exercise 6, selection: which k positions of a row are masked? Rules against a plain sort, or all draws."""

from itertools import permutations

import numpy as np
import pytest
import torch
from waiting import without_waiting

from masking import RULES, draw_candidates, mask_budget, select_positions

# ---- budget ----


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
    try:
        got = mask_budget(10, ratio)
    except ValueError as error:
        assert "mask ratio" in str(error), f'the message should say "mask ratio", not {str(error)!r}'
    else:
        pytest.fail(f"mask ratio {ratio} gave {got}; a ValueError is due unless it is above 0 and at most 1")


ROW = [7.0, 1.5, 9.0, 2.0, 8.0, 4.0]  # entropies


def picks(rule, entropy, k, pool=None):
    """The k entropies that a rule gives the highest scores, sorted."""
    entropy = torch.tensor([entropy])
    pool = torch.ones_like(entropy, dtype=torch.bool) if pool is None else torch.tensor([pool])
    score = RULES[rule](entropy, pool, 1.0, torch.Generator().manual_seed(0))
    assert score.shape == entropy.shape, f"a rule gives every position a score, {tuple(entropy.shape)}"
    what = "which positions to take" if score.dtype == torch.bool else "indices, or ranks in whole numbers"
    assert score.is_floating_point(), (
        f"expected scores in floating point, and `{rule}` returned {score.dtype}: {what}? A rule only says "
        "how much each position is wanted; select_positions takes the k highest scores"
    )
    best = score.masked_fill(~pool, -float("inf")).topk(k).indices
    return sorted(entropy[0, best[0]].tolist())


# ---- high and low ----


def test_high_takes_the_largest():
    got = picks("high", ROW, 3)
    assert got == [7, 8, 9], f"entropies {ROW}, k = 3: `high` takes 7, 8 and 9, not {got}"


def test_low_takes_the_smallest():
    got = picks("low", ROW, 3)
    assert got == [1.5, 2, 4], f"entropies {ROW}, k = 3: `low` takes 1.5, 2 and 4, not {got}"


# ---- mid ----


def test_mid_takes_those_nearest_the_median():
    got = picks("mid", ROW, 3)
    assert got == [4, 7, 8], (
        f"entropies {ROW}, k = 3: the median is 5.5, the mean of the two in the middle, 4 and 7; `mid` takes "
        f"4, 7 and 8, not {got}. (torch.median says 4, the lower of the two: then 1.5, 2 and 4 are nearest)"
    )


# ---- both ----


@pytest.mark.parametrize("k, expected", [(1, [9]), (2, [1.5, 9]), (3, [1.5, 8, 9]), (4, [1.5, 2, 8, 9])])
def test_both_takes_from_the_top_and_the_bottom_in_turns(k, expected):
    got = picks("both", ROW, k)
    assert got == expected, (
        f"entropies {ROW}, k = {k}: `both` takes {expected}, not {got}; first the highest, then the lowest, "
        "then the second highest and so on"
    )


OUTSIDE = pytest.mark.parametrize("outside", [0.5, 99.0])


def compare_with_more_outside(rule, expected, outside):
    entropy, pool = [outside, *ROW, outside + 0.1], [False, *[True] * 6, False]
    got = picks(rule, entropy, 3, pool)
    assert got == expected, (
        f"entropies {entropy}, the first and the last not in the pool, k = 3: `{rule}` takes {expected}, not "
        f"{got}; a position outside the pool neither moves the median nor takes up a rank"
    )


RATIOS = pytest.mark.parametrize("ratio", [0.15, 0.5, 1.0])
POOLS = pytest.mark.parametrize("with_candidates", [False, True])


def brute_force(rule, values, k):
    """What a rule must pick from a list of distinct entropies, sorted."""
    ordered = sorted(values)
    if rule == "low":
        return ordered[:k]
    if rule == "high":
        return ordered[len(ordered) - k :]
    if rule == "both":
        return ordered[: k // 2] + ordered[len(ordered) - (k - k // 2) :]
    median = float(np.median(values))
    return sorted(sorted(values, key=lambda value: abs(value - median))[:k])


def compare_with_brute_force(rule, ratio, with_candidates):
    rng = torch.Generator().manual_seed(1)
    eligible, entropy = torch.rand(40, 30, generator=rng) < 0.8, torch.rand(40, 30, generator=rng) * 9
    candidates = draw_candidates(eligible, ratio, 1.5) if with_candidates else eligible
    selected = select_positions(rule, eligible, ratio, entropy, candidates if with_candidates else None)
    for row in range(len(eligible)):
        pool, k = sorted(entropy[row, candidates[row]].tolist()), mask_budget(int(eligible[row].sum()), ratio)
        got, expected = sorted(entropy[row, selected[row]].tolist()), brute_force(rule, pool, k)
        pool_text, got_text, expected_text = (
            " ".join(f"{value:.3f}" for value in values) for values in (pool, got, expected)
        )
        assert got == expected, (
            f"row {row}, `{rule}`, k = {k} of a pool of {len(pool)}:\n"
            f"  entropies of the pool  {pool_text}\n  expected  {expected_text}\n  taken     {got_text}"
        )


def wait_for_nobody(rule):
    """A rule is part of every step of training: on a GPU nothing in it may wait."""
    entropy, pool = torch.rand(3, 8), torch.arange(8).expand(3, 8) < 6
    without_waiting(lambda: RULES[rule](entropy, pool, 1.0, torch.Generator()))


# ---- high and low ----


@pytest.mark.parametrize("rule, expected", [("high", [40.0, 40.001]), ("low", [0.001, 0.002])])
def test_close_entropies_have_different_scores(rule, expected):
    got = picks(rule, [40.0, 0.001, 20.0, 40.001, 0.003, 0.002], 2)
    assert got == pytest.approx(expected), (
        f"`{rule}` takes {expected}, not {got}: a score that is squeezed into 0 to 1, such as a softmax, has "
        "no digits left for small differences"
    )


@pytest.mark.parametrize("rule", ["high", "low"])
def test_high_and_low_wait_for_nobody(rule):
    wait_for_nobody(rule)


@RATIOS
@POOLS
@pytest.mark.parametrize("rule", ["high", "low"])
def test_high_and_low_equal_brute_force(rule, ratio, with_candidates):
    compare_with_brute_force(rule, ratio, with_candidates)


# ---- mid ----


@OUTSIDE
def test_what_is_outside_the_pool_does_not_move_the_median(outside):
    compare_with_more_outside("mid", [4, 7, 8], outside)


def test_mid_waits_for_nobody():
    wait_for_nobody("mid")


@RATIOS
@POOLS
def test_mid_equals_brute_force(ratio, with_candidates):
    compare_with_brute_force("mid", ratio, with_candidates)


# ---- both ----


@OUTSIDE
def test_what_is_outside_the_pool_takes_up_no_rank(outside):
    compare_with_more_outside("both", [1.5, 8, 9], outside)


def test_both_waits_for_nobody():
    wait_for_nobody("both")


@RATIOS
@POOLS
def test_both_equals_brute_force(ratio, with_candidates):
    compare_with_brute_force("both", ratio, with_candidates)


def rates_of_two_draws(weight):
    """How often each is among two that are drawn one after the other, in proportion to weight."""
    rates = torch.zeros(len(weight))
    for first, second in permutations(range(len(weight)), 2):
        p = weight[first] / weight.sum() * weight[second] / (weight.sum() - weight[first])
        rates[first] += p
        rates[second] += p
    return rates


# ---- sample ----


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sample_draws_without_replacement_in_proportion(temperature):
    n, entropy, generator = 40000, torch.tensor([0.5, 1.0, 2.0, 4.0]), torch.Generator().manual_seed(0)
    score = RULES["sample"](entropy.expand(n, 4), torch.ones(n, 4, dtype=torch.bool), temperature, generator)
    rates = torch.zeros(n, 4).scatter(1, score.topk(2).indices, 1.0).mean(0)
    weight = entropy ** (1 / temperature)
    expected = rates_of_two_draws(weight)
    uniform = torch.rand(n, 4, dtype=torch.float64, generator=generator)
    mirrored = (weight * -uniform.log()).topk(2).indices  # log(H) / tau + log of an exponential draw
    mistakes = {
        "of a draw by H^tau: divide by tau, do not multiply": rates_of_two_draws(entropy**temperature),
        "of a draw by H: where is tau?": rates_of_two_draws(entropy),
        "of a draw by e^(H / tau): take the log of H": rates_of_two_draws((entropy / temperature).exp()),
        "of a draw by H^(-1/tau): the sign of log(H) is wrong": rates_of_two_draws(1 / weight),
        "of noise with the wrong sign: Gumbel noise is MINUS the log of an exponential draw": torch.zeros(
            n, 4
        )
        .scatter(1, mirrored, 1.0)
        .mean(0),
        "of a draw that does not look at H": torch.full((4,), 0.5),
        "of no draw at all: the two highest": torch.tensor([0.0, 0.0, 1.0, 1.0]),
    }
    like = [name for name, others in mistakes.items() if torch.allclose(rates, others, atol=0.012)]
    assert torch.allclose(rates, expected, atol=0.012), (
        f"entropies .5 1 2 4, two drawn at tau {temperature}: expected each at the rates "
        f"{[round(r, 3) for r in expected.tolist()]}, those of draws in proportion to H^(1/tau), not "
        f"{[round(r, 3) for r in rates.tolist()]}" + "".join(f"; these are the rates {name}" for name in like)
    )


def test_sample_takes_certain_tokens_last():
    entropy = torch.tensor([0.0, 0.0, 0.1, 0.1]).expand(100, 4)
    score = RULES["sample"](entropy, torch.ones(100, 4, dtype=torch.bool), 1.0, torch.Generator())
    assert score.isfinite().all(), (
        "log(0) is -inf, the score of positions outside the pool: inside, a score is finite, however low"
    )
    assert (score.topk(2).indices >= 2).all(), (
        "an entropy of 0 has weight 0: it is drawn only when nothing else is left"
    )


def test_sample_draws_with_its_generator():
    entropy, pool = torch.ones(20, 30), torch.ones(20, 30, dtype=torch.bool)
    one, again, other = (
        RULES["sample"](entropy, pool, 1.0, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(one, again), (
        "the same seed gave two draws: pass generator=generator, or a run that is resumed masks other words"
    )
    assert not torch.equal(one, other), "two seeds gave the same draw"


def test_sample_waits_for_nobody():
    wait_for_nobody("sample")
