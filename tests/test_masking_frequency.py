"""The control for "uncertain or just rare?": each word masked as often as in a run, places left to chance."""

import csv
import os
import signal

import pytest
import torch
from test_train_run import same

import train as program
from masking import mask_budget, select_positions, weights_for_rates


def test_words_are_masked_at_the_wanted_rates_and_every_row_keeps_its_k():
    rng, words = torch.Generator().manual_seed(0), 1000
    likely = 1 / torch.arange(1.0, words + 1)  # Zipf's law
    ids = torch.multinomial(likely, 1000 * 62, replacement=True, generator=rng).view(1000, 62)
    eligible = torch.ones_like(ids, dtype=torch.bool)
    eligible[:, 0] = eligible[:, -1] = False
    seen = torch.bincount(ids[eligible], minlength=words)
    wanted = 0.02 + 0.28 * torch.rand(words, generator=rng).double()  # from 2% to 30%, as different as can be
    wanted *= mask_budget(60, 0.15) / 60 / ((seen * wanted).sum() / seen.sum())
    weights = weights_for_rates(ids, eligible, 0.15, wanted)
    draws, masked, places = 300, torch.zeros(words), torch.zeros(62)
    for _ in range(draws):
        selected = select_positions("sample", eligible, 0.15, weights[ids], generator=rng)
        assert (selected.sum(1) == mask_budget(60, 0.15)).all(), "the same k in every row"
        masked += torch.bincount(ids[selected], minlength=words)
        places += selected.sum(0)
    commonest = seen.argsort(descending=True)[:200]
    error = (masked / (draws * seen) / wanted - 1)[commonest].abs().max().item()
    assert error < 0.1, f"the rate of one of the 200 commonest words is {error:.0%} off; the aim is 10%"
    rate = places[1:-1] / (draws * 1000)
    assert ((rate - 0.15).abs() < 0.02).all(), "the word decides, not the place in the row"


def counts(folder):
    with open(folder / "masked.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return torch.tensor([[int(row["seen"]), int(row["masked"])] for row in rows]).T


def test_a_run_counts_its_masks_and_another_one_imitates_them(train, tmp_path, monkeypatch):
    tallies, corrupt = [torch.zeros(300), torch.zeros(300)], program.masking.corrupt

    def tally(ids, selected, *others):
        if len(steps) >= 2:  # --entropy-warmup
            inner = ids[:, 1:-1]
            tallies[0] += torch.bincount(inner.flatten(), minlength=300)
            tallies[1] += torch.bincount(ids[selected], minlength=300)
        steps.append(1)
        return corrupt(ids, selected, *others)

    steps = []
    monkeypatch.setattr(program.masking, "corrupt", tally)
    long = ("--steps", 60, "--eval-every", 30, "--entropy-warmup", 2)
    train(*long, "--select", "high", out="high")
    monkeypatch.undo()
    seen, masked = high = counts(tmp_path / "high")
    size = len(seen)
    assert torch.equal(high.float(), torch.stack(tallies)[:, :size]), "counted by hand: seen and masked ids"
    assert masked.sum() == 58 * 8 * mask_budget(30, 0.15), "the steps whose masks were chosen by entropy"

    # Rates written by hand: every second word four times as often as the others, 4 of 30 on average.
    with open(tmp_path / "high/masked.csv", newline="", encoding="utf-8") as file:
        words = [row["token"] for row in csv.DictReader(file)]
    lines = [f'"{word}",3000,{640 if i % 2 else 160}' for i, word in enumerate(words)]
    (tmp_path / "high/masked.csv").write_text("\n".join(["token,seen,masked", *lines]).replace('"""', '""""'))
    train(*long, "--masking", "frequency", "--like", tmp_path / "high", out="like")
    seen_again, masked_again = counts(tmp_path / "like")
    assert torch.equal(seen, seen_again), "both runs see the same rows"
    often, rarely = (masked_again[i::2].sum() / seen[i::2].sum() for i in (1, 0))
    assert 0.19 < often < 0.24 and 0.04 < rarely < 0.065, f"wanted .213 and .053, got {often} and {rarely}"


def test_an_imitation_resumes_to_the_same_bits(train, tmp_path, monkeypatch):
    train("--entropy-warmup", 1, "--select", "high", out="high")
    choice = ("--masking", "frequency", "--like", tmp_path / "high", "--entropy-warmup", 2)
    train(*choice, out="whole")
    update = program.Pretraining.update

    def stop_after_step_6(self):
        update(self)
        if self.step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(program.Pretraining, "update", stop_after_step_6)
        with pytest.raises(SystemExit, match="--resume"):
            train(*choice, out="broken")
    train("--resume", out="broken")
    assert same(tmp_path / "whole", tmp_path / "broken"), "8 steps must equal 6 steps, a stop, and 2 steps"
    assert (tmp_path / "whole/masked.csv").read_bytes() == (tmp_path / "broken/masked.csv").read_bytes()


def spoil(folder, how):
    path = folder / "masked.csv"
    lines = path.read_text().splitlines(keepends=True)
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_text("".join(lines)[:-9].rsplit(",", 1)[0] + "\n")
    elif how == "other words":
        path.write_text("".join([*lines[:-1], "another,1,0\n"]))
    else:
        path.write_text("".join([lines[0], *(line.rsplit(",", 2)[0] + ",3,0\n" for line in lines[1:])]))


SENTENCES = {
    "missing": "masked.csv",
    "cut": "damaged",
    "other words": "other word pieces",
    "empty": "no masks yet",
}


@pytest.mark.parametrize("how", SENTENCES)
def test_a_run_that_cannot_be_imitated_is_named(train, tmp_path, how):
    train(out="high")
    spoil(tmp_path / "high", how)
    with pytest.raises(SystemExit, match=SENTENCES[how]):
        train("--masking", "frequency", "--like", tmp_path / "high", out="like")


def test_what_has_no_effect_is_refused(train):
    with pytest.raises(SystemExit, match="needs --like"):
        train("--masking", "frequency")
    with pytest.raises(SystemExit, match="--select has no effect with --masking frequency"):
        train("--masking", "frequency", "--like", "x", "--select", "high")
    with pytest.raises(SystemExit, match="--like has no effect with --masking self"):
        train("--like", "x")
