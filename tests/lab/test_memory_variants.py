"""Variants of self-masking from memory: what is remembered after a step, by hand."""

from types import SimpleNamespace

import memory_variants
import pytest
import torch

import train

NAN = float("nan")


def memory_after_a_step(monkeypatch, **settings):
    """Row 0 of the memory, 5, never, 1, never, after a step that read 3 nats at places 0 and 1."""
    run = object.__new__(memory_variants.Variant)
    run.o = memory_variants.Options(batch_size=1, **settings)
    run.step, run.row_count, run.device = 0, 1, torch.device("cpu")
    run.memory = torch.tensor([[5, NAN, 1, NAN]], dtype=torch.float16)
    run.mean_entropy = torch.tensor(2.0)

    def update(self):
        self.memory[0, :2] = 3
        places, masked = torch.tensor([[0, 1, 2]]), torch.tensor([[1.0, 1.0, 0.0]])
        self.last = (torch.zeros(1, 4, dtype=torch.long), places, masked)

    monkeypatch.setattr(train.Pretraining, "update", update)
    run.update()
    return run.memory[0].tolist()


def test_without_a_variant_memory_keeps_what_was_read_last(monkeypatch):
    assert memory_after_a_step(monkeypatch) == pytest.approx([3, 3, 1, NAN], nan_ok=True)


def test_what_is_remembered_goes_back_to_the_mean_before_the_step(monkeypatch):
    # 1 goes a quarter of its way to 2; what was read in this step is new; what was never read stays so
    assert memory_after_a_step(monkeypatch, forget=0.25) == pytest.approx([3, 3, 1.25, NAN], nan_ok=True)


def test_smoothing_is_the_mean_of_old_and_new_and_a_first_reading_counts_in_full(monkeypatch):
    assert memory_after_a_step(monkeypatch, smooth=0.25) == pytest.approx([3.5, 3, 1, NAN], nan_ok=True)


def test_seen_tokens_are_remembered_and_hidden_ones_keep_the_entropy_of_their_blank(monkeypatch):
    monkeypatch.setattr(memory_variants.Variant, "autocast", torch.no_grad, raising=False)
    monkeypatch.setattr(memory_variants.Variant, "model", None, raising=False)
    seen = torch.tensor([[9.0, 9.0, 0.5, 0.25]])
    monkeypatch.setattr(memory_variants.masking, "sequence_entropy", lambda model, ids: seen)
    assert memory_after_a_step(monkeypatch, read_seen=True) == [3, 3, 0.5, 0.25]


def test_operations_of_the_head_at_seen_tokens():
    config = SimpleNamespace(num_hidden_layers=7, hidden_size=4, intermediate_size=9, vocab_size=10)
    # a token costs 2 (4 x 4 + 4 x 10) = 112, and three quarters of them are seen
    assert memory_variants.seen_flops(config, 0.25) == 84
