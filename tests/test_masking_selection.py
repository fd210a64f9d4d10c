"""Selection: exactly k of a row under every rule, candidates, ties, random shares, whole words."""

import pytest
import torch

from masking import RULES, as_places, candidate_budget, draw_candidates, mask_budget, select_positions


def rows(seed=0, shape=(40, 30), share=0.8):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=rng) < share, torch.rand(shape, generator=rng) * 9


def test_candidates_are_c_times_k_and_never_more_than_eligible():
    assert candidate_budget(126, 0.15, 2.0) == 38
    assert candidate_budget(10, 0.9, 2.0) == 10
    eligible, _ = rows()
    expected = [candidate_budget(n, 0.15, 2.0) for n in eligible.sum(1).tolist()]
    drawn = draw_candidates(eligible, 0.15, 2.0)
    assert drawn.sum(1).tolist() == expected and not (drawn & ~eligible).any()
    with pytest.raises(ValueError, match="candidates"):
        candidate_budget(10, 0.15, 0.5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("random_share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("with_candidates", [False, True])
def test_every_rule_masks_exactly_k_eligible_positions(rule, random_share, with_candidates):
    eligible, entropy = rows()
    eligible[0] = False
    eligible[1], eligible[1, 3] = False, True
    candidates = draw_candidates(eligible, 0.15, 2.0) if with_candidates else None
    selected = select_positions(rule, eligible, 0.15, entropy, candidates, random_share=random_share)
    expected = [mask_budget(n, 0.15) for n in eligible.sum(1).tolist()]
    assert selected.sum(1).tolist() == expected, "positions drawn with replacement, or a wrong budget?"
    assert not (selected & ~eligible).any(), "a position that may not be masked was masked"
    if with_candidates and random_share == 0:
        assert not (selected & ~candidates).any(), "the choice is among the candidates"


def test_too_few_candidates_are_filled_up_so_that_k_holds():
    eligible, entropy = torch.ones(5, 20, dtype=torch.bool), torch.rand(5, 20)
    candidates = torch.zeros_like(eligible)
    candidates[:, :2] = True
    selected = select_positions("high", eligible, 0.25, entropy, candidates)
    assert (selected.sum(1) == 5).all() and selected[:, :2].all()


@pytest.mark.parametrize("rule", ["random", "high", "low", "mid", "both", "sample"])
def test_ties_are_broken_at_random(rule):
    n, generator = 20000, torch.Generator().manual_seed(0)
    eligible = torch.ones(n, 10, dtype=torch.bool)
    rate = select_positions(rule, eligible, 0.3, torch.ones(n, 10), generator=generator).float().mean(0)
    assert ((rate - 0.3).abs() < 0.015).all(), (
        f"equal entropies, so each place 30% of the time, not {rate.tolist()}"
    )


def test_same_generator_same_masks_another_seed_others():
    eligible, _ = rows()
    one, two, three = (
        select_positions("random", eligible, 0.15, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, two) and not torch.equal(one, three)


def test_random_share_mixes_in_that_many_random_positions():
    n = 5000
    entropy = torch.arange(100.0).expand(n, 100)
    eligible = torch.ones(n, 100, dtype=torch.bool)
    selected = select_positions("high", eligible, 0.2, entropy, random_share=0.5)
    assert (selected[:, 90:].sum(1) == 10).all(), "half of the 20 are the ten highest"
    assert selected[:, :90].float().mean().item() == pytest.approx(10 / 90, abs=0.005), "the rest is uniform"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("with_candidates", [False, True])
def test_whole_words_are_masked_whole_within_the_budget(rule, with_candidates):
    rng = torch.Generator().manual_seed(3)
    eligible, entropy = torch.ones(50, 40, dtype=torch.bool), torch.rand(50, 40, generator=rng)
    eligible[:, 0] = eligible[:, -1] = False
    start = torch.rand(50, 40, generator=rng) < 0.6
    start[:, :2] = start[:, -1] = True
    candidates = draw_candidates(eligible, 0.15, 2.0, word_start=start) if with_candidates else None
    selected = select_positions(rule, eligible, 0.15, entropy, candidates, word_start=start)
    follows = ~start[:, 1:]
    assert (selected[:, 1:] == selected[:, :-1])[follows].all(), "a ## piece must share the fate of its word"
    k = mask_budget(38, 0.15)
    assert (selected.sum(1) <= k).all() and selected.sum(1).float().mean() > k - 0.7
    assert not (selected & ~eligible).any()


def test_whole_words_are_ranked_by_their_mean_entropy():
    start = torch.tensor([[True, False, True, False, True, True]])
    entropy = torch.tensor([[9.0, 0.0, 5.0, 5.0, 4.9, 0.0]])  # word means 4.5, 5.0, 4.9, 0
    selected = select_positions("high", torch.ones(1, 6, dtype=torch.bool), 0.5, entropy, word_start=start)
    assert selected.tolist() == [[False, False, True, True, True, False]]


def test_bad_arguments_are_named():
    eligible, entropy = rows()
    with pytest.raises(ValueError, match="'highest' is not one of random, high"):
        select_positions("highest", eligible, 0.15, entropy)
    with pytest.raises(ValueError, match="no entropy"):
        select_positions("high", eligible, 0.15)
    with pytest.raises(ValueError, match="temperature"):
        select_positions("sample", eligible, 0.15, entropy, temperature=0.0)


def test_places_list_the_selected_positions_in_order():
    selected = torch.tensor([[False, True, False, True], [True, True, False, False]])
    assert as_places(selected, 2).tolist() == [[1, 3], [0, 1]]
