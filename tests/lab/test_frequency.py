"""The control for "uncertain, or only rare?": words masked as often as in another run, at random places."""

import frequency
import pytest
import torch
from conftest import SMALL

from masking import mask_budget, select_positions

LONG = ("--steps", 60, "--eval-every", 30, "--entropy-warmup", 2)


@pytest.fixture
def make(corpus, cache, tmp_path):
    """make("count", "--steps", 5, out="a") -> the finished run, made in this process."""

    def make_run(kind, *options, out="out"):
        argv = [kind, "--cache", cache, "--out", tmp_path / out, *options]
        if "--resume" not in options:
            argv = [kind, "--corpus", corpus, *SMALL, *argv[1:]]
        return frequency.main(list(map(str, argv)))

    return make_run


# ---- weights ----


def zipf_rows(words: int):
    """1,000 rows of 62 tokens in which word n is as frequent as 1 / n, and the places that may be masked."""
    rng = torch.Generator().manual_seed(0)
    likely = 1 / torch.arange(1.0, words + 1)
    ids = torch.multinomial(likely, 1000 * 62, replacement=True, generator=rng).view(1000, 62)
    eligible = torch.ones_like(ids, dtype=torch.bool)
    eligible[:, 0] = False
    eligible[:, -1] = False
    return ids, eligible


def uneven_rates(ids, eligible, words: int):
    """Rates as different as can be, most of them from .02 to .30, that add up to k per row."""
    seen = torch.bincount(ids[eligible], minlength=words)
    rates = 0.02 + 0.28 * torch.rand(words, generator=torch.Generator().manual_seed(1)).double()
    return rates * mask_budget(60, 0.15) / 60 / ((seen * rates).sum() / seen.sum())


def rates_of_draws(weights, ids, eligible, draws: int):
    """How often each word, and each place, is masked when `sample` draws by the weights."""
    rng = torch.Generator().manual_seed(2)
    masked = torch.zeros(len(weights))
    places = torch.zeros(ids.shape[1])
    for _ in range(draws):
        selected = select_positions("sample", eligible, 0.15, weights[ids], generator=rng)
        assert (selected.sum(1) == mask_budget(60, 0.15)).all(), "the same k in every row"
        masked += torch.bincount(ids[selected], minlength=len(weights))
        places += selected.sum(0)
    seen = torch.bincount(ids[eligible], minlength=len(weights))
    return masked / (draws * seen.clamp_min(1)), places / (draws * len(ids))


def test_words_are_masked_at_the_wanted_rates_and_every_row_keeps_its_k():
    ids, eligible = zipf_rows(1000)
    wanted = uneven_rates(ids, eligible, 1000)
    weights = frequency.weights_for_rates(ids, eligible, 0.15, wanted)
    rates, places = rates_of_draws(weights, ids, eligible, draws=1000)
    error = (rates[:200] / wanted[:200] - 1).abs().max().item()
    assert error < 0.1, f"the rate of one of the 200 commonest words is {error:.0%} off; the aim is 10%"
    assert ((places[1:-1] - 0.15).abs() < 0.02).all(), "the word decides, not the place in the row"


def test_a_word_that_the_rows_do_not_hold_gets_its_own_rate():
    ids, eligible = zipf_rows(300)
    wanted = uneven_rates(ids, eligible, 300)
    wanted = torch.cat((wanted, torch.tensor([0.4]).double()))  # word 300 is not in the rows
    weights = frequency.weights_for_rates(ids, eligible, 0.15, wanted)
    ids[::4, 30] = 300
    rates, _ = rates_of_draws(weights, ids, eligible, draws=100)
    assert rates[300].item() == pytest.approx(0.4, abs=0.04)


def test_rates_that_do_not_add_up_to_the_budget_are_refused_and_never_become_random_masks():
    ids, eligible = zipf_rows(1000)
    wanted = uneven_rates(ids, eligible, 1000)
    slightly_too_many = frequency.weights_for_rates(ids, eligible, 0.15, 1.05 * wanted)
    assert slightly_too_many.isfinite().all()
    exactly = frequency.weights_for_rates(ids, eligible, 0.15, wanted)
    together = torch.stack((slightly_too_many, exactly)).log()[:, :200]
    assert torch.corrcoef(together)[0, 1] > 0.99, "the order of the words is that of the rates"
    with pytest.raises(
        ValueError, match="the rates cannot be met: they would be off by 89%"
    ):  # 1 mask, not 9
        frequency.weights_for_rates(ids, eligible, 0.015, wanted)


def test_a_word_that_fills_whole_rows_cannot_always_be_masked():
    ids = torch.zeros(8, 20, dtype=torch.long)
    ids[4:] = 1
    rates = torch.tensor([0.25, 0.05])  # 3 of 20 on average, but each row masks exactly 3
    with pytest.raises(ValueError, match="the rates cannot be met"):
        frequency.weights_for_rates(ids, ids >= 0, 0.15, rates)


# ---- runs ----


def test_a_run_counts_what_it_sees_and_masks_once_entropies_choose(make, monkeypatch):
    by_hand = torch.zeros(2, 300, dtype=torch.long)
    corrupt = frequency.masking.corrupt
    steps = []

    def tally(ids, selected, *others):
        if len(steps) >= 2:  # --entropy-warmup
            inside = ids[:, 1:-1]
            by_hand[0] += torch.bincount(inside[inside != 3], minlength=300)  # 3: [SEP] between documents
            by_hand[1] += torch.bincount(ids[selected], minlength=300)
        steps.append(1)
        return corrupt(ids, selected, *others)

    monkeypatch.setattr(frequency.masking, "corrupt", tally)
    run = make("count", *LONG, "--select", "high")
    seen, masked = run.tally
    assert torch.equal(run.tally, by_hand[:, : len(seen)])
    assert masked.sum() == 58 * 8 * mask_budget(30, 0.15), "58 of the 60 steps choose by entropy"
    stored = frequency.read_tally(run.o.out)["tally"]
    assert max(stored) == 60 and torch.equal(stored[60], run.tally), "what a later run reads"


def test_another_run_imitates_it_word_by_word(make, tmp_path):
    high = make("count", *LONG, "--select", "high", out="high")
    seen = high.tally[0]
    # Rates written by hand: every second word four times as often as the others, 4 of 30 on average.
    state = frequency.read_tally(tmp_path / "high")
    masked = torch.full_like(seen, 160)
    masked[1::2] = 640
    state["tally"] = {60: torch.stack((torch.full_like(seen, 3000), masked))}
    torch.save(state, tmp_path / "high/tally.pt")

    like = make("imitate", "--steps", 60, "--eval-every", 30, "--like", tmp_path / "high", out="like")
    seen_again, masked_again = like.tally
    assert torch.equal(seen, seen_again), "both runs see the same rows, and choose from the same step on"
    often, rarely = (masked_again[i::2].sum() / seen[i::2].sum() for i in (1, 0))
    assert 0.19 < often < 0.24 and 0.04 < rarely < 0.065, f"wanted .213 and .053, got {often} and {rarely}"
    assert like.deviations().shape == (min(200, (seen > 0).sum()),)


@pytest.mark.parametrize("kind", ["count", "imitate"])
def test_a_run_that_was_stopped_continues_to_the_same_bits(make, tmp_path, monkeypatch, kind):
    like = ()
    if kind == "imitate":
        make("count", "--entropy-warmup", 1, "--select", "high", out="high")
        like = ("--like", tmp_path / "high")
    whole = make(kind, *like, out="whole")
    update = frequency.train.Pretraining.update

    def stop_in_step_7(self):
        if self.step == 6:
            raise KeyboardInterrupt
        update(self)

    with monkeypatch.context() as patch:
        patch.setattr(frequency.train.Pretraining, "update", stop_in_step_7)
        with pytest.raises(SystemExit, match="--resume"):
            make(kind, *like, out="broken")
    broken = make(kind, "--resume", out="broken")
    assert whole.tally[1].sum() > 0, "there is something to count"
    assert torch.equal(whole.tally, broken.tally), "8 steps must count as 4 steps, a stop, and 4 steps"
    for one, other in zip(whole.model.parameters(), broken.model.parameters(), strict=True):
        assert torch.equal(one, other), "and end with the same weights"


def test_a_run_that_died_between_its_count_and_its_checkpoint_finds_the_count_before(
    make, tmp_path, monkeypatch
):
    whole = make("count", "--entropy-warmup", 1, out="whole")
    save = frequency.train.Pretraining.save

    def die_at_the_end(self):
        if self.step == 8:
            raise SystemExit("died")
        save(self)

    with monkeypatch.context() as patch:
        patch.setattr(frequency.train.Pretraining, "save", die_at_the_end)
        with pytest.raises(SystemExit, match="died"):
            make("count", "--entropy-warmup", 1, out="broken")
    again = make("count", "--resume", out="broken")  # from step 4
    assert torch.equal(whole.tally, again.tally)


def spoil(path, how):
    state = torch.load(path, weights_only=True)
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "other words":
        torch.save(state | {"pieces": [*state["pieces"][:-1], "another"]}, path)
    else:
        torch.save(state | {"tally": {8: torch.zeros_like(state["tally"][8])}}, path)


SENTENCES = {
    "missing": "holds no tally.pt: make that run with `frequency.py count`",
    "cut": "tally.pt is damaged",
    "other words": "counts other word pieces",
    "empty": "counts no masks yet",
}


@pytest.mark.parametrize("how", SENTENCES)
def test_a_run_that_cannot_be_imitated_is_named(make, tmp_path, how):
    make("count", out="high")
    spoil(tmp_path / "high/tally.pt", how)
    with pytest.raises(SystemExit, match=SENTENCES[how]):
        make("imitate", "--like", tmp_path / "high", out="like")


def test_another_mask_ratio_is_refused(make, tmp_path):
    make("count", "--mask-ratio", 0.4, out="half")
    with pytest.raises(SystemExit, match="made with --mask-ratio 0.4, not 0.15"):
        make("imitate", "--like", tmp_path / "half", out="like")


def test_what_imitation_cannot_do_is_refused(make, tmp_path):
    with pytest.raises(SystemExit, match="needs --like"):
        make("imitate")
    with pytest.raises(SystemExit, match="leave --masking and --whole-word out"):
        make("imitate", "--like", tmp_path, "--masking", "self")
    with pytest.raises(SystemExit, match="--select has no effect here"):
        make("imitate", "--like", tmp_path, "--select", "high")
    with pytest.raises(SystemExit, match="say `count` or `imitate`"):
        frequency.main(["--steps", "5"])
