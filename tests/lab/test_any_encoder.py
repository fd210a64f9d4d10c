"""The table of other encoders: what it measures is the pass and nothing else."""

import math
import sys

import pytest
import torch

pytest.importorskip("transformers")

import any_encoder  # noqa: E402 (needs transformers)

SMALL = "--layers 1 --width 32 --vocab-size 4000 --rows 8 --length 32 --repeats 1".split()


@pytest.mark.parametrize("name, way", [("Roberta", "hook"), ("MobileBert", "fallback")])
def test_a_pass_through_the_hook_is_told_from_one_over_all_logits(name, way):
    o = any_encoder.make_parser().parse_args(SMALL)
    found, seconds = any_encoder.times(name, o)
    assert found == way
    assert len(seconds) == 5 and all(s > 0 for s in seconds.values()), seconds


def test_the_table_has_a_row_per_architecture(monkeypatch, capsys):
    monkeypatch.setattr(any_encoder, "alone", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(sys, "argv", ["any_encoder.py", "--architectures", "DistilBert", *SMALL])
    any_encoder.main()
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].strip("|").split("|")]
    assert cells[:2] == ["DistilBert", "hook"]
    assert len(cells) == 9
    memory = [float(cells[i].removesuffix(" MiB")) for i in (4, 6)]
    assert all(m >= 0 or math.isnan(m) for m in memory), "Linux states the peak, other systems do not"


def test_the_fast_step_learns_as_the_usual_one_does(monkeypatch):
    o = any_encoder.make_parser().parse_args(SMALL)
    usual, fast = (any_encoder.Measurement("DistilBert", o) for _ in range(2))
    for measurement in (usual, fast):
        measurement.model.eval()  # without dropout
    masked = {"input_ids": fast.masked, "labels": fast.labels, "attention_mask": fast.attention_mask}
    monkeypatch.setattr(any_encoder, "mask_batch", lambda *given: dict(masked))
    before = [p.detach().clone() for p in usual.model.parameters()]
    for _ in range(3):
        usual.step()
        fast.fast_random()
    for old, one, other in zip(before, usual.model.parameters(), fast.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
        assert not torch.equal(old, one)
