"""Exercise 7, corruption: what stands in place of a masked token? 80% [MASK], 10% a random one, 10% itself"""

import pytest
import torch
from waiting import without_waiting

from masking import corrupt, eligible_positions

SPECIAL, MASK, SIZE = [0, 1, 2, 3, 4], 4, 1000


def corrupted(scheme="80-10-10", shape=(500, 200)):
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(5, SIZE, shape, generator=rng)
    selected = torch.rand(shape, generator=rng) < 0.5
    return ids, selected, *corrupt(ids.clone(), selected.clone(), MASK, SIZE, SPECIAL, scheme, rng)


# ---- 80-10-10 ----


def test_80_10_10():
    ids, selected, new, _ = corrupted()
    ids, new = ids[selected], new[selected]
    shares = [
        (new == MASK).float().mean(),
        ((new != MASK) & (new != ids)).float().mean(),
        (new == ids).float().mean(),
    ]
    for name, share, expected in zip(("[MASK]", "random", "unchanged"), shares, (0.8, 0.1, 0.1), strict=True):
        assert abs(share - expected) < 0.005, (
            f"{share:.1%} became {name}, expected {expected:.0%}: one draw a token, cut at .8 and .9? "
            "(18% unchanged, or 81% [MASK], come of two draws)"
        )


def test_100_0_0_hides_every_selected_token():
    _, selected, new, _ = corrupted("100-0-0")
    assert (new[selected] == MASK).all(), "100-0-0: nothing random, nothing unchanged"


# ---- care ----


def test_the_input_stays_as_it_was():
    ids, selected = torch.randint(5, SIZE, (20, 30)), torch.rand(20, 30) < 0.5
    before = ids.clone(), selected.clone()
    corrupt(ids, selected, MASK, SIZE, SPECIAL)
    assert torch.equal(ids, before[0]), (
        "input_ids themselves were changed: labels, and the caller, still need them; write into a copy"
    )
    assert torch.equal(selected, before[1]), "selected itself was changed"


def test_the_random_numbers_come_from_the_generator():
    ids, selected = torch.full((20, 30), 7), torch.ones(20, 30, dtype=torch.bool)
    one, again, other = (
        corrupt(ids.clone(), selected, MASK, SIZE, SPECIAL, generator=torch.Generator().manual_seed(seed))[0]
        for seed in (0, 0, 1)
    )
    assert torch.equal(one == MASK, again == MASK), (
        "the same seed put [MASK] at other places: give torch.rand generator=generator, or a run that "
        "is resumed goes another way"
    )
    assert torch.equal(one, again), (
        "the same seed gave other random tokens: torch.randint needs the generator too"
    )
    assert not torch.equal(one, other), "two seeds gave the same corruption"


# ---- 80-10-10 ----


def test_nothing_but_the_selected_positions_changes():
    ids, selected, new, _ = corrupted()
    assert torch.equal(new[~selected], ids[~selected]), (
        "a position that was never selected was replaced, or input_ids themselves were written into"
    )


# ---- labels ----


def test_labels_hold_the_original_where_selected_and_minus_100_elsewhere():
    ids, selected, _, labels = corrupted()
    assert torch.equal(labels[selected], ids[selected]), "the label is the token that was hidden"
    assert (labels[~selected] == -100).all(), "a label elsewhere makes the model learn to copy what it sees"


# ---- uniform ----


def test_random_tokens_are_uniform_over_all_but_special_tokens():
    ids = torch.full((400, 500), 7)
    selected = torch.ones_like(ids, dtype=torch.bool)
    special = [9, 3, 19, 0, 3]  # in any order, and one of them twice
    new, _ = corrupt(ids, selected, 3, 20, special, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(new[(new != 3) & (new != 7)], minlength=20)
    assert counts[special].sum() == 0, (
        "a random token was a special one: step over special ids in increasing order; is an id named twice?"
    )
    others = [i for i in range(20) if i not in (*special, 7)]
    rates = counts[others] / counts.sum()
    assert (rates - 1 / len(others)).abs().max() < 0.01, (
        f"all others are equally likely, not {[round(rate, 3) for rate in rates.tolist()]}: draw among V - n "
        "and step over the n special ids; is an id named twice?"
    )


# ---- care ----


def test_nothing_waits_for_a_gpu():
    ids, selected = torch.randint(5, SIZE, (20, 30)), torch.rand(20, 30) < 0.5
    without_waiting(lambda: corrupt(ids, selected, MASK, SIZE, SPECIAL))


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ValueError):
        corrupted("90-5-5")


# ---- eligible ----


def test_special_tokens_are_not_eligible():
    ids = torch.tensor([[2, 10, 1, 3, 0, 0]])
    expected = [[False, True, True, False, False, False]]
    assert eligible_positions(ids, [2, 3, 0]).tolist() == expected, "[CLS], [SEP] and [PAD] are never masked"
    without_waiting(lambda: eligible_positions(ids, [2, 3, 0]))
