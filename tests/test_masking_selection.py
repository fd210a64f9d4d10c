"""Selection: exactly k per row under every rule, candidates, ties, whole words."""

import pytest
import torch

from masking import RULES, as_places, candidate_budget, draw_candidates, mask_budget, select_positions


def rows(seed=0, shape=(40, 30), share=0.8):
    rng = torch.Generator().manual_seed(seed)
    eligible = torch.rand(shape, generator=rng) < share
    entropy = torch.rand(shape, generator=rng) * 9
    return eligible, entropy


def test_candidates_are_c_times_k_and_never_more_than_eligible():
    assert candidate_budget(126, 0.15, 2.0) == 38
    assert candidate_budget(10, 0.9, 2.0) == 10
    eligible, _ = rows()
    expected = [candidate_budget(n, 0.15, 2.0) for n in eligible.sum(1).tolist()]
    drawn = draw_candidates(eligible, 0.15, 2.0)
    assert drawn.sum(1).tolist() == expected
    assert not (drawn & ~eligible).any(), "a position that may not be masked became a candidate"
    with pytest.raises(ValueError, match="candidates"):
        candidate_budget(10, 0.15, 0.5)


@pytest.mark.parametrize("ratio", [0.15, 0.25, 0.35, 0.5, 1.0, 1e-6, 1 / 3])
def test_rows_of_every_length_get_the_budget_that_python_computes(ratio):
    lengths = torch.arange(301)
    eligible = torch.arange(300) < lengths[:, None]
    selected = select_positions("random", eligible, ratio)
    expected = [min(n, max(1, round(ratio * n))) for n in range(301)]  # halves to even
    assert selected.sum(1).tolist() == expected
    for factor in (1.25, 2.5, 3):
        drawn = draw_candidates(eligible, ratio, factor).sum(1).tolist()
        assert drawn == [min(n, round(factor * k)) for n, k in enumerate(expected)], f"{factor} times"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("with_candidates", [False, True])
def test_every_rule_masks_exactly_k_eligible_positions(rule, with_candidates):
    eligible, entropy = rows()
    eligible[0] = False
    eligible[1] = torch.arange(30) == 3
    candidates = draw_candidates(eligible, 0.15, 2.0) if with_candidates else None
    selected = select_positions(rule, eligible, 0.15, entropy, candidates)
    expected = [mask_budget(n, 0.15) for n in eligible.sum(1).tolist()]
    assert selected.sum(1).tolist() == expected, "positions drawn with replacement, or a wrong budget?"
    assert not (selected & ~eligible).any(), "a position that may not be masked was masked"
    if with_candidates:
        assert not (selected & ~candidates).any(), "the choice is among the candidates"


def scores_of(rule, entropy):
    """The order of the rules without chance, over a list of entropies: the first is chosen first."""
    order = sorted(range(len(entropy)), key=lambda i: -entropy[i])
    if rule == "low":
        order = order[::-1]
    if rule == "mid":
        ordered = sorted(entropy)
        n = len(ordered)
        median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
        order = sorted(range(n), key=lambda i: abs(entropy[i] - median))
    if rule == "both":
        turns = []
        while order:
            turns.append(order.pop(0))
            order = order[::-1]
        order = turns
    return order


@pytest.mark.parametrize("rule", ["high", "low", "mid", "both"])
@pytest.mark.parametrize("with_candidates", [False, True])
def test_rules_choose_what_sorting_a_list_chooses(rule, with_candidates):
    eligible, entropy = rows(seed=7)
    candidates = draw_candidates(eligible, 0.3, 1.7) if with_candidates else eligible
    selected = select_positions(rule, eligible, 0.3, entropy, candidates if with_candidates else None)
    for row in range(len(eligible)):
        places = candidates[row].nonzero()[:, 0].tolist()
        k = mask_budget(int(eligible[row].sum()), 0.3)
        order = scores_of(rule, [entropy[row, place].item() for place in places])
        expected = sorted(places[i] for i in order[:k])
        assert selected[row].nonzero()[:, 0].tolist() == expected, f"row {row}"


def test_too_few_candidates_are_filled_up_so_that_k_holds():
    eligible = torch.ones(5, 20, dtype=torch.bool)
    candidates = torch.zeros_like(eligible)
    candidates[:, :2] = True
    selected = select_positions("high", eligible, 0.25, torch.rand(5, 20), candidates)
    assert (selected.sum(1) == 5).all() and selected[:, :2].all()


@pytest.mark.parametrize("rule", ["random", "high", "low", "mid", "both", "sample"])
def test_ties_are_broken_at_random(rule):
    n = 20000
    generator = torch.Generator().manual_seed(0)
    eligible = torch.ones(n, 10, dtype=torch.bool)
    rate = select_positions(rule, eligible, 0.3, torch.ones(n, 10), generator=generator).float().mean(0)
    assert ((rate - 0.3).abs() < 0.015).all(), (
        f"equal entropies, so each place 30% of the time, not {rate.tolist()}"
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sample_draws_in_proportion_to_entropy_to_the_1_over_temperature(temperature):
    entropy = torch.tensor([0.5, 1.0, 2.0, 4.0])
    rows = entropy.expand(40000, 4)
    eligible = torch.ones(rows.shape, dtype=torch.bool)
    settings = {"temperature": temperature, "generator": torch.Generator().manual_seed(0)}
    rate = select_positions("sample", eligible, 0.25, rows, **settings).float().mean(0)
    weight = entropy ** (1 / temperature)
    assert torch.allclose(rate, weight / weight.sum(), atol=0.01), f"one of four drawn: {rate.tolist()}"


def test_same_generator_same_masks_another_seed_others():
    eligible, _ = rows()
    one, two, three = (
        select_positions("random", eligible, 0.15, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, two) and not torch.equal(one, three)


# ---- whole words ----


def random_words(seed, length=40):
    """(eligible, word_start, entropy) of one row [1, T]: words short and long, some pieces not eligible."""
    rng = torch.Generator().manual_seed(seed)
    start = torch.rand(1, length, generator=rng) < 0.02 + 0.6 * torch.rand(1, generator=rng)
    eligible = torch.rand(1, length, generator=rng) < 0.95
    entropy = torch.rand(1, length, generator=rng) * 9
    start[0, 0] = True
    return eligible, start, entropy


def words_of(start):
    """The pieces of each word of a row: a list of lists of places."""
    words = []
    for place, begins in enumerate(start[0].tolist()):
        if begins:
            words.append([])
        words[-1].append(place)
    return words


def one_by_one(words, k):
    """Take word after word where it still fits into k."""
    taken = []
    for word in words:
        if len(taken) + len(word) <= k:
            taken += word
    return taken


@pytest.mark.parametrize("rule", ["high", "low"])
def test_whole_words_are_what_a_loop_over_the_words_takes(rule):
    passed_over = 0
    split = 0
    for trial in range(300):
        eligible, start, entropy = random_words(trial)
        ratio = (0.05, 0.15, 0.4)[trial % 3]
        k = mask_budget(int(eligible.sum()), ratio)
        words = [word for word in words_of(start) if eligible[0, word].all()]
        if all(len(word) > k for word in words):
            words = [[place] for place in eligible[0].nonzero()[:, 0].tolist()]
            split += 1
        words.sort(key=lambda word: entropy[0, word].mean().item(), reverse=rule == "high")
        expected = one_by_one(words, k)
        passed_over += expected != sum(words, [])[: len(expected)]
        selected = select_positions(rule, eligible, ratio, entropy, word_start=start)
        assert selected[0].nonzero()[:, 0].tolist() == sorted(expected), f"trial {trial}, k = {k}"
    assert passed_over > 50 and split > 5, "the trials must hold words that no longer fit, and too long ones"


@pytest.mark.parametrize("longest", range(1, 14))
def test_words_that_leave_little_each_time_are_taken_like_one_by_one(longest):
    sizes = []  # 1, 9, 1, 8, 1, 7, ...: with 9 to take, 9 small words are taken and 9 others passed over
    for size in range(longest, 0, -1):
        sizes += [1, size]
    starts = torch.tensor(sizes).cumsum(0) - torch.tensor(sizes)
    length = sum(sizes)
    start = torch.zeros(1, length, dtype=torch.bool)
    start[0, starts] = True
    entropy = -torch.arange(float(length))[None]  # the order is that of the row
    eligible = torch.ones(1, length, dtype=torch.bool)
    for k in range(1, longest + 2):
        if k > length:
            continue
        expected = one_by_one(words_of(start), k)
        selected = select_positions("high", eligible, k / length, entropy, word_start=start)
        assert selected[0].nonzero()[:, 0].tolist() == expected, f"k = {k} of words of {sizes}"


@pytest.mark.parametrize("rule", RULES)
def test_candidates_come_first_and_then_whatever_word_fits(rule):
    for trial in range(50):
        eligible, start, entropy = random_words(trial)
        k = mask_budget(int(eligible.sum()), 0.3)
        words = [word for word in words_of(start) if eligible[0, word].all()]
        if all(len(word) > k for word in words):
            continue
        candidates = draw_candidates(eligible, 0.3, 1.5, word_start=start)
        selected = select_positions(rule, eligible, 0.3, entropy, candidates, word_start=start)
        assert selected.sum() <= k, "no row masks more than k"
        left = k - int(selected.sum())
        for word in words:
            assert selected[0, word].all() or not selected[0, word].any(), "a word is masked whole or not"
            assert selected[0, word].any() or len(word) > left, f"trial {trial}: {word} would still have fit"
        others = selected & ~candidates
        for word in words:
            still_fits = len(word) <= left + int(others.sum())
            assert not (candidates[0, word].all() and still_fits and not selected[0, word].any()), (
                f"trial {trial}: the candidate {word} was passed over for words that are none"
            )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("with_candidates", [False, True])
def test_whole_words_are_masked_whole_within_the_budget(rule, with_candidates):
    rng = torch.Generator().manual_seed(3)
    eligible = torch.ones(50, 40, dtype=torch.bool)
    eligible[:, 0] = eligible[:, -1] = False
    entropy = torch.rand(50, 40, generator=rng)
    start = torch.rand(50, 40, generator=rng) < 0.6
    start[:, :2] = start[:, -1] = True
    candidates = draw_candidates(eligible, 0.15, 2.0, word_start=start) if with_candidates else None
    selected = select_positions(rule, eligible, 0.15, entropy, candidates, word_start=start)
    continues = ~start[:, 1:]
    assert (selected[:, 1:] == selected[:, :-1])[continues].all(), "a piece must share the fate of its word"
    k = mask_budget(38, 0.15)
    assert (selected.sum(1) <= k).all(), "no row masks more than k"
    assert selected.sum(1).float().mean() > k - 0.7, "rows with short words are filled up to k"
    assert not (selected & ~eligible).any()


def test_whole_words_are_ranked_by_their_mean_entropy():
    start = torch.tensor([[True, False, True, False, True, True]])
    entropy = torch.tensor([[9.0, 0.0, 5.0, 5.0, 4.9, 0.0]])  # word means 4.5, 5.0, 4.9, 0
    selected = select_positions("high", torch.ones(1, 6, dtype=torch.bool), 0.5, entropy, word_start=start)
    assert selected.tolist() == [[False, False, True, True, True, False]]


def test_a_row_of_one_long_word_masks_exactly_k_single_pieces():
    start = torch.zeros(3, 20, dtype=torch.bool)
    start[:, 0] = True
    start[2] = True  # a row of short words beside it keeps them
    eligible = torch.ones(3, 20, dtype=torch.bool)
    entropy = torch.arange(20.0).expand(3, 20)
    candidates = draw_candidates(eligible, 0.2, 2.0, word_start=start)
    assert candidates.sum(1).tolist() == [8, 8, 8]
    selected = select_positions("high", eligible, 0.2, entropy, word_start=start)
    assert (selected == (torch.arange(20) >= 16)).all(), "the four most uncertain pieces of each row"


def test_words_that_fit_among_the_candidates_alone_mask_exactly_k_of_their_pieces():
    start = (torch.arange(24) % 6 == 0).expand(5, 24)  # words of 6 pieces; k = 5 and 10 candidates
    eligible = torch.ones(5, 24, dtype=torch.bool)
    entropy = torch.rand(5, 24, generator=torch.Generator().manual_seed(0))
    candidates = draw_candidates(eligible, 0.2, 2.0, word_start=start)
    assert candidates.view(5, 4, 6).all(-1).sum(1).tolist() == [1] * 5, "one word and no more fits into 10"
    selected = select_positions("high", eligible, 0.2, entropy, candidates, word_start=start)
    for row in range(5):
        best = entropy[row].masked_fill(~candidates[row], -1).topk(5).indices
        assert selected[row].nonzero()[:, 0].tolist() == sorted(best.tolist())


def test_bad_arguments_are_named():
    eligible, entropy = rows()
    with pytest.raises(ValueError, match="'highest' is not one of random, high"):
        select_positions("highest", eligible, 0.15, entropy)
    with pytest.raises(ValueError, match="no entropy"):
        select_positions("high", eligible, 0.15)
    with pytest.raises(ValueError, match="temperature"):
        select_positions("sample", eligible, 0.15, entropy, temperature=0.0)
    with pytest.raises(ValueError, match="mask ratio 0"):
        select_positions("random", eligible, 0)


def test_places_list_the_selected_positions_in_order():
    selected = torch.tensor([[False, True, False, True], [True, True, False, False]])
    assert as_places(selected, 2).tolist() == [[1, 3], [0, 1]]


def test_places_of_a_row_with_fewer_are_filled_up_with_others():
    selected = torch.tensor([[False, True, False, True], [False, False, True, False]])
    places = as_places(selected, 3)
    assert places[0, :2].tolist() == [1, 3] and places[1, 0] == 2
    assert all(len(set(row)) == 3 for row in places.tolist()), "no place twice, or scatter would be ambiguous"
