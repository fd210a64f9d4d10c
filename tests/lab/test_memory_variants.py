"""Variants of self-masking from memory: what is remembered after a step, by hand."""

from types import SimpleNamespace

import memory_variants
import pytest
import torch
from conftest import SMALL

import masking
import train as program

NAN = float("nan")


def memory_after_a_step(monkeypatch, **settings):
    """Row 0 of the memory, 5, never, 1, never, after a step that read 3 nats at places 0 and 1."""
    run = object.__new__(memory_variants.Variant)
    run.o = SimpleNamespace(**{"seed": 0, "batch_size": 1, "forget": 0.0, "smooth": 0.0, "read_seen": False})
    vars(run.o).update(settings)
    run.step = 0
    run.row_count = 1
    run.device = torch.device("cpu")
    run.memory = masking.EntropyMemory(1, 4, run.device)
    run.memory.values = torch.tensor([[5, NAN, 1, NAN]], dtype=torch.float16)
    run.memory.mean = torch.tensor(2.0)

    def update(self):
        self.memory.values[0, :2] = 3
        selected = torch.tensor([[True, True, False, False]])
        self.last = {"ids": torch.zeros(1, 4, dtype=torch.long), "selected": selected}

    monkeypatch.setattr(program.Pretraining, "update", update)
    run.update()
    return run.memory.values[0].tolist()


def test_without_a_variant_memory_keeps_what_was_read_last(monkeypatch):
    assert memory_after_a_step(monkeypatch) == pytest.approx([3, 3, 1, NAN], nan_ok=True)


def test_what_is_remembered_moves_to_the_mean_before_the_step(monkeypatch):
    # 1 goes a quarter of its way to 2; what was read in this step is new; what was never read stays so
    assert memory_after_a_step(monkeypatch, forget=0.25) == pytest.approx([3, 3, 1.25, NAN], nan_ok=True)


def test_smoothing_is_the_mean_of_old_and_new_and_a_first_reading_counts_in_full(monkeypatch):
    assert memory_after_a_step(monkeypatch, smooth=0.25) == pytest.approx([3.5, 3, 1, NAN], nan_ok=True)


def test_seen_tokens_are_remembered_and_hidden_ones_keep_the_entropy_of_their_blank(monkeypatch):
    monkeypatch.setattr(memory_variants.Variant, "autocast", torch.no_grad, raising=False)
    monkeypatch.setattr(memory_variants.Variant, "model", None, raising=False)
    seen = torch.tensor([[9.0, 9.0, 0.5, 0.25]])
    monkeypatch.setattr(memory_variants.masking, "visible_entropy", lambda model, ids: seen)
    assert memory_after_a_step(monkeypatch, read_seen=True) == [3, 3, 0.5, 0.25]


@pytest.fixture
def make(corpus, cache, tmp_path):
    """make(program, parser, "--steps", 5, out="a") -> the finished run, made in this process."""

    def make_run(kind, parser, *options, out="out"):
        argv = ["--corpus", corpus, *SMALL, "--cache", cache, "--out", tmp_path / out, *options]
        return program.main(parser, kind, list(map(str, argv)))

    return make_run


def test_a_run_without_a_variant_is_that_of_train_py(make):
    options = ("--entropy-warmup", 2)
    ours = make(memory_variants.Variant, memory_variants.make_parser(), *options, out="ours")
    parser = program.make_parser("test")
    theirs = make(program.Pretraining, parser, *options, "--reading", "memory", out="theirs")
    for one, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_blanks_are_read_in_every_nth_epoch_after_the_random_steps(make, monkeypatch):
    steps = []
    choose_by_blanks = memory_variants.Variant.choose_by_blanks

    def spy(self, *given):
        steps.append(self.step)
        return choose_by_blanks(self, *given)

    monkeypatch.setattr(memory_variants.Variant, "choose_by_blanks", spy)
    options = ("--max-tokens", 480, "--steps", 16, "--entropy-warmup", 1, "--entropy-every", 3)
    run = make(memory_variants.Variant, memory_variants.make_parser(), *options)
    assert run.row_count == 16, "an epoch is two steps of 8 rows"
    assert steps == [1, 6, 7, 12, 13], "epochs 0, 3 and 6; step 0 is random"


def test_blanks_are_read_as_train_py_reads_them(make):
    options = ("--max-tokens", 480, "--entropy-warmup", 0)
    every_epoch = (memory_variants.Variant, memory_variants.make_parser(), *options, "--entropy-every", 1)
    ours = make(*every_epoch, out="ours")
    theirs = make(program.Pretraining, program.make_parser("test"), *options, out="theirs")
    for one, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_share_of_remembered_masks_is_logged(make):
    options = ("--max-tokens", 240, "--steps", 12, "--entropy-warmup", 4, "--corruption", "100-0-0")
    run = make(memory_variants.Variant, memory_variants.make_parser(), *options)
    shares = [line.get("remembered_share") for line in run.log]
    assert run.row_count == 8, "every step reads the whole text"
    assert shares[:2] == [None, 0], "nothing is trained before step 0, and masks are random up to step 4"
    assert 0.3 < shares[2] < shares[3] < 1, "the longer a run, the more places were a blank before"


@pytest.mark.parametrize("words", [False, True])
def test_a_share_of_the_masks_is_drawn_from_the_rest_of_the_row(words):
    rows = 4000
    run = object.__new__(memory_variants.Variant)
    settings = {"mask_ratio": 0.2, "random_share": 0.5, "select": "high", "select_temperature": 1.0}
    run.o = SimpleNamespace(whole_word=words, **settings)
    run.device = torch.device("cpu")
    run.memory = masking.EntropyMemory(rows, 100, run.device)
    run.memory.values = torch.arange(100.0).expand(rows, 100).half()
    run.maskable = lambda ids: torch.ones_like(ids, dtype=torch.bool)
    run.continues = torch.arange(100) % 2 == 1  # two pieces a word
    ids = torch.arange(100).expand(rows, 100)
    selected = run.choose_in_part(ids, torch.arange(rows), torch.Generator().manual_seed(0))
    assert (selected.sum(1) == 20).all(), "k per row, whatever the share"
    assert selected[:, 90:].all(), "half of the 20 are the ten highest"
    rate = selected[:, :90].float().mean(0)
    assert torch.allclose(rate, torch.tensor(10 / 90), atol=0.03), "the rest is uniform"


def test_what_cannot_work_is_refused(make):
    refused = (("--reading", "blank"), ("--forget", 2), ("--entropy-every", -1), ("--random-share", 1))
    for options in refused:
        with pytest.raises(SystemExit, match="leave --reading out|from 0 to 1"):
            make(memory_variants.Variant, memory_variants.make_parser(), *options)


def test_a_share_of_the_masks_is_random_and_the_rest_is_the_rules(make, monkeypatch):
    # At places with an entropy of 9 the rule masks first; half of the masks is left to chance.
    chosen = []
    choose = memory_variants.Variant.choose

    def noted(self, ids, index, rng):
        self.memory.values[:] = 1
        self.memory.values[:, 1:6] = 9
        chosen.append(choose(self, ids, index, rng))
        return chosen[-1]

    monkeypatch.setattr(memory_variants.Variant, "choose", noted)
    options = ("--select", "high", "--entropy-warmup", 0, "--random-share", 0.5)
    make(memory_variants.Variant, memory_variants.make_parser(), *options)
    selected = torch.cat(chosen)
    assert (selected.sum(-1) == 4).all(), "k = 4 masks in each row: two by the rule, two at random"
    assert (selected[:, 1:6].sum(-1) >= 2).all(), "the rule's two are where the entropy is high"
    assert selected[:, 6:].float().sum(-1).mean() > 1, "most of the other places are elsewhere"
