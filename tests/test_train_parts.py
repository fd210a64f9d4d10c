"""The parts of pretraining: options, rows, random streams, the loss, warm-ups, hardware."""

import argparse
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import PROJECT

import train
from model import BertConfig, BertForMaskedLM, explain

# ---- rows and random numbers ----


def test_rows_are_packed_without_padding():
    ids = np.arange(100, 120, dtype=np.int32)
    rows = train.take_rows(ids, np.array([2, 0]), seq_len=6, cls=1, sep=2)
    assert rows.tolist() == [[1, 108, 109, 110, 111, 2], [1, 100, 101, 102, 103, 2]]


def stream_with_ends(length: int, shortest: int, longest: int):
    """Documents of random words 5 to 49, each with a [SEP] (3) behind it."""
    rng = np.random.default_rng(longest)
    parts = []
    while sum(map(len, parts)) < length:
        parts.append(np.append(rng.integers(5, 50, rng.integers(shortest, longest + 1)), 3))
    return np.concatenate(parts)[:length].astype(np.int32)


@pytest.mark.parametrize("longest", [1, 3, 20, 500])
def test_the_exam_asks_for_15_percent_of_the_words_of_each_row_and_never_for_sep(longest):
    """However many [SEP] stand in a row; places that are left over ask for nothing."""
    ids = stream_with_ends(9000, 1, longest)
    corrupted, places, labels = train.draw_exam(ids, 32, 2, 3, 4)
    index = np.linspace(0, 299, 300).astype(int)
    rows = train.take_rows(ids, index, 32, 2, 3)
    assert (rows[:, 1:-1] == 3).any()
    for row, seen, where, label in zip(rows, corrupted, places, labels, strict=True):
        asked = where[label != -100]
        words = ((row != 2) & (row != 3)).sum().item()
        assert len(set(asked.tolist())) == len(asked) == max(1, round(0.15 * words))
        assert torch.equal(row[asked], label[label != -100]) and not (label == 3).any()
        assert (seen != row).nonzero().flatten().tolist() == sorted(asked.tolist())
        assert (seen[asked] == 4).all()


def test_examine_is_the_mean_over_what_is_asked():
    exam = train.draw_exam(stream_with_ends(9000, 1, 3), 32, 2, 3, 4)
    model = BertForMaskedLM(BertConfig.preset("tiny", vocab_size=50)).eval()
    corrupted, places, labels = exam
    sums = [0.0, 0, 0]
    with torch.no_grad():
        for ids, where, label in zip(corrupted, places, labels, strict=True):
            log_p = model(ids[None])[0].double().log_softmax(-1)
            for place, word in zip(where.tolist(), label.tolist(), strict=True):
                if word != -100:
                    sums[0] -= log_p[place, word].item()
                    sums[1] += log_p[place].argmax().item() == word
                    sums[2] += 1
    assert sums[2] < labels.numel(), "some places are left over"
    assert train.examine(model, exam) == pytest.approx((sums[0] / sums[2], sums[1] / sums[2]), rel=1e-4)


@pytest.mark.parametrize("rows", [7, 64, 100])
def test_every_epoch_visits_every_row_once(rows):
    o = argparse.Namespace(seed=0, batch_size=8)
    visits = np.concatenate([train.rows_of_step(o, step, rows) for step in range(100)])
    for epoch in range(len(visits) // rows):
        seen = sorted(visits[epoch * rows : (epoch + 1) * rows])
        assert seen == list(range(rows)), "data skipped or replayed"
    assert not np.array_equal(visits[:rows], visits[rows : 2 * rows]), "epochs have their own order"


def test_seeds_of_different_purposes_and_steps_differ():
    purposes = ("weights", "order", "masks", "dropout")
    seeds = {train.seed_for(seed, p, step) for seed in (0, 1) for p in purposes for step in (0, 1)}
    assert len(seeds) == 16
    assert train.seed_for(0, "masks", 5) == train.seed_for(0, "masks", 5)


# ---- the loss ----


def test_the_loss_is_minus_the_sum_of_log_p_at_the_masked_places():
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[4, -100, 0], [-100, -100, 6]])
    p = logits.double().softmax(-1)
    masked = [(0, 0, 4), (0, 2, 0), (1, 2, 6)]
    loss, right = train.mlm_loss(logits, labels)
    assert loss.item() == pytest.approx(-sum(p[place].log().item() for place in masked))
    assert right == sum(p[b, t].argmax() == word for b, t, word in masked)


@pytest.mark.parametrize("shape", [(3, 4, 50), (700, 900)], ids=["one slice", "several slices"])
def test_the_fast_loss_equals_the_plain_one_and_knows_the_entropy(shape):
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(shape, generator=rng)
    labels = torch.randint(0, shape[-1], shape[:-1], generator=rng)
    labels[..., 1] = -100
    one, other = (logits.clone().requires_grad_() for _ in range(2))
    loss, right = train.mlm_loss(one, labels)
    fast, also_right, entropy = train.MaskedLoss.apply(other, labels)
    (loss * 0.3).backward()
    (fast * 0.3).backward()
    assert fast.item() == pytest.approx(loss.item(), rel=1e-5) and also_right == right
    assert torch.allclose(one.grad, other.grad, atol=1e-6)
    p = logits.double().softmax(-1)
    assert torch.allclose(entropy.double(), -(p * p.log()).sum(-1), atol=1e-4), "in nats, where unmasked too"


def test_the_fast_loss_gives_a_word_that_cannot_be_no_share_in_loss_entropy_and_gradient():
    """A logit of -inf is p = 0: everything is as if the word did not exist, also where no loss is counted."""
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([4, -100, 5])
    fewer = logits[:, 1:].clone().requires_grad_()
    logits[:, 0] = -torch.inf  # the word that the label -100 would stand for, too
    logits.requires_grad_()
    loss, _, entropy = train.MaskedLoss.apply(logits, labels)
    expected = torch.nn.functional.cross_entropy(fewer, labels - 1 + labels.eq(-100), reduction="sum")
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item())
    assert torch.allclose(logits.grad[:, 1:], fewer.grad, atol=1e-6) and not logits.grad[:, 0].any()
    truth = torch.distributions.Categorical(logits=fewer.detach()).entropy()
    assert torch.allclose(entropy, truth, atol=1e-5), "0 x -inf is NaN, and x log x tends to 0"
    assert train.mlm_loss(logits, labels)[0].item() == pytest.approx(expected.item())
    impossible = train.MaskedLoss.apply(logits.detach(), torch.tensor([0, -100, 5]))[0]
    assert impossible == torch.inf == train.mlm_loss(logits, torch.tensor([0, -100, 5]))[0]


@pytest.mark.parametrize("masks", [64, 5000])
def test_the_fast_loss_in_float16_keeps_the_small_gradients_that_the_scale_saves(masks):
    """Of words that are nearly impossible: in float16 alone, a fifth of them would be 0."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(30000, (64,), generator=rng)
    logits = torch.randn(64, 30000, generator=rng)
    logits[torch.arange(64), labels] += 16
    others = torch.ones(64, 30000, dtype=torch.bool).scatter_(1, labels[:, None], False)

    def plain(z):
        return torch.nn.functional.cross_entropy(z, labels, reduction="sum")

    exact = logits.half().double().requires_grad_()
    plain(exact).backward()
    found = []
    for loss in (lambda z: train.MaskedLoss.apply(z, labels)[0], lambda z: plain(z.float())):
        half = logits.half().requires_grad_()
        (loss(half) / masks * 2**16).backward()
        found.append(half.grad.double() / 2**16 * masks)
    zeros = [(gradient[others] == 0).double().mean() for gradient in found]
    errors = [(gradient - exact.grad)[others].norm() / exact.grad[others].norm() for gradient in found]
    assert zeros[0] < 1.05 * zeros[1] + 1e-4
    assert errors[0] < 1.1 * errors[1] + 1e-5, f"off by {errors[0]:.2%}, plain autograd by {errors[1]:.2%}"
    assert torch.allclose(found[0][~others], exact.grad[~others], rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_fast_loss_compiled_equals_itself(dtype):
    """By torch.compile as far as it needs no compiler: traced in one piece, then run as it is."""
    rng = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(700, 900, generator=rng)).to(dtype)
    labels = torch.randint(900, (700,), generator=rng)
    labels[5] = -100
    compiled = torch.compile(train.loss_of_rows, backend="eager", fullgraph=True)
    found = []
    for how in (None, compiled):
        leaf = logits.clone().requires_grad_()
        loss, correct, entropy = train.MaskedLoss.apply(leaf, labels, how)
        (loss / 699).backward()
        found.append((loss, correct, entropy, leaf.grad))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def test_the_fast_loss_has_the_gradient_of_its_loss():
    logits = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, -100, 5], [0, 2, -100]])
    assert torch.autograd.gradcheck(lambda z: train.MaskedLoss.apply(z, labels)[0], logits)


# ---- the schedule ----


@pytest.mark.parametrize("value, steps", [(0, 0), (0.1, 100), (0.25, 250), (1, 1), (400, 400)])
def test_warm_ups_are_a_share_below_one_and_a_number_from_one(value, steps):
    assert train.as_steps(value, 1000) == steps


def options(*argv):
    """The options of a run, defaults filled in."""
    parser = train.make_parser("test")
    o = parser.parse_args(list(map(str, argv)))
    train.check(o, parser, 1)
    return o


def test_larger_models_have_a_lower_default_learning_rate():
    rates = {size: options("--size", size).lr for size in ("tiny", "mini", "small", "medium", "base")}
    assert rates == {"tiny": 1e-3, "mini": 1e-3, "small": 5e-4, "medium": 5e-4, "base": 5e-4}
    assert options("--size", "base", "--lr", 1e-3).lr == 1e-3, "a rate that is given counts"


def test_a_checkpoint_to_continue_gets_the_rate_of_fine_tuning(teacher):
    assert options("--from", teacher).lr == 5e-5, "1e-3 would undo what was learned"
    assert options("--from", teacher, "--lr", 1e-4).lr == 1e-4


def test_a_temperature_is_refused_only_by_rules_that_are_known_to_have_none(monkeypatch):
    for rule in ("high", "low", "mid", "both"):
        with pytest.raises(ValueError, match="--select-temperature has no effect here"):
            options("--select", rule, "--select-temperature", 2)
    monkeypatch.setitem(train.masking.RULES, "mine", train.masking.rule_sample)
    assert options("--select", "mine", "--select-temperature", 2).select_temperature == 2.0


# ---- hardware ----


class Card:
    """Stands in for CUDA with one card; bfloat16 can be multiplied, imitated, or not at all."""

    def __init__(self, monkeypatch, bfloat16: str):
        def supported(including_emulation=True):
            return bfloat16 == "multiplied" or (bfloat16 == "imitated" and including_emulation)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(torch, "ones", self.ones)
        monkeypatch.setattr(torch, "set_float32_matmul_precision", self.set_precision)
        self.precision = "highest"
        self.error = None

    def ones(self, *size, device):
        """A matrix that says it is on the card, and whose product fails there if the card does."""
        product = torch.zeros(size)

        class Matrix:
            def __matmul__(this, other):
                if this.device.type == "cuda" and self.error:
                    raise self.error
                return product

        matrix = Matrix()
        matrix.device = torch.device(device)
        return matrix

    def set_precision(self, precision):
        self.precision = precision


RULES = [("multiplied", torch.bfloat16), ("imitated", torch.float16), ("unknown", torch.float16)]


@pytest.mark.parametrize("bfloat16, best", RULES, ids=["H100", "T4", "V100"])
def test_auto_is_bfloat16_where_a_card_multiplies_it_and_else_float16(bfloat16, best, monkeypatch):
    card = Card(monkeypatch, bfloat16)
    assert train.pick_hardware("auto", "auto") == (torch.device("cuda:0"), best)
    assert card.precision == "high", "products that stay float32 use TF32 on a card"
    assert train.pick_hardware("cuda", "float32") == (torch.device("cuda:0"), torch.float32)
    assert train.pick_hardware("cpu", "auto")[1] != torch.float16, "a processor imitates it, slowly"


def test_every_process_of_torchrun_gets_its_own_card(monkeypatch):
    Card(monkeypatch, "multiplied")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert train.pick_hardware("auto", "auto")[0] == torch.device("cuda:3")


# What torch raises at a card's first operation.
NO_KERNEL = RuntimeError(
    "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors"
)
BUSY = RuntimeError(
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCUDA kernel errors might be"
)


def test_a_card_without_kernels_is_left_aside_by_auto_and_refused_where_it_was_asked_for(monkeypatch):
    Card(monkeypatch, "unknown").error = NO_KERNEL
    assert train.pick_hardware("auto", "auto")[0] == torch.device("cpu")
    with pytest.raises(
        ValueError, match="--device cuda:0 cannot be used: CUDA error: no kernel image"
    ) as caught:
        train.pick_hardware("cuda", "auto")
    assert "README, Install" in explain(caught.value)


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_a_card_that_is_busy_is_refused_and_not_replaced(asked, monkeypatch):
    Card(monkeypatch, "multiplied").error = BUSY
    with pytest.raises(ValueError, match="busy or unavailable") as caught:
        train.pick_hardware(asked, "auto")
    assert "another program" in explain(caught.value)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """machine(smi=..., cuda=..., ...): one as nvidia-smi and torch would describe it; returns the lines."""

    def describe(smi="", code=0, cuda=None, sees=False, mps=False, asked="auto"):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\nprintf '{smi}'\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path) if smi or code else str(tmp_path / "none"))
        monkeypatch.setattr(torch, "__version__", "2.13.0")
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: sees)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "compute_120"])
        return train.unused_hardware(asked, torch.device("cpu"))

    return describe


T4 = "Tesla T4, 550.54.15\\n"
GTX = "NVIDIA GeForce GTX 1080, 580.65.06\\n"
UNUSED = {
    "nothing there": ({}, ""),
    "no card": ({"smi": "No devices were found", "code": 6}, ""),
    "a CPU build": (
        {"smi": T4},
        "^Tesla T4, driver 550.54.15, is not used: torch 2.13.0 is a build for CPUs; README, Install",
    ),
    "an old driver": ({"smi": T4, "cuda": "13.0"}, "T4, driver 550.54.15, .* not start CUDA 13.0 with it"),
    "two cards": ({"smi": T4 + GTX}, "^Tesla T4, driver 550.54.15, is not used: torch 2.13.0 is a build"),
    "no kernels": (
        {"smi": GTX, "sees": True, "cuda": "13.0"},
        "GTX 1080, .* is not used: .*has kernels for sm_75 .* alone; README",
    ),
    "Apple": ({"mps": True}, "Apple's GPU is not used: --device mps .*untested"),
    "the CPU was asked for": ({"smi": T4, "asked": "cpu"}, ""),
}


@pytest.mark.skipif(os.name == "nt", reason="the stub is a shell script")
@pytest.mark.parametrize("situation", UNUSED)
def test_hardware_that_is_not_used_is_named_with_the_remedy(situation, machine):
    settings, expected = UNUSED[situation]
    lines = machine(**settings)
    assert len(lines) == bool(expected)
    assert not expected or re.search(expected, lines[0]), lines


def test_a_card_that_the_user_hides_is_not_missed(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine(smi=T4) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert len(machine(smi=T4)) == 1


def test_a_card_in_use_is_no_unused_hardware():
    assert train.unused_hardware("auto", torch.device("cuda:0")) == []


@pytest.mark.parametrize("multiplied, best", [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_on_a_processor_is_bfloat16_only_where_it_is_multiplied(multiplied, best, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: multiplied)
    assert train.pick_hardware("cpu", "auto") == (torch.device("cpu"), best)
    assert torch.get_float32_matmul_precision() == "highest", "TF32 is for CUDA alone"


def test_a_device_that_cannot_be_used_is_refused():
    with pytest.raises(ValueError, match="--device warp cannot be used"):
        train.pick_hardware("warp", "auto")


# A program that stops where torch is about to be imported, and says what is set by then.
STOP_AT_TORCH = """
import importlib.abc, os, runpy, sys
class Stop(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.exit(os.environ["GOMP_SPINCOUNT"] + " " + os.environ["KMP_BLOCKTIME"])
sys.meta_path.insert(0, Stop())
sys.path.insert(0, sys.argv[1])
runpy.run_module(sys.argv[2])
"""


@pytest.mark.parametrize("program", ["train", "distill", "glue_eval"])
def test_threads_are_told_not_to_wait_busily_before_torch_is_imported(program):
    command = [sys.executable, "-c", STOP_AT_TORCH, str(PROJECT), program]
    ours = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    }
    for given, expected in (({}, "4000 0"), ({"GOMP_SPINCOUNT": "7"}, "7 0")):
        done = subprocess.run(command, capture_output=True, text=True, env=ours | given)
        assert done.stderr.strip() == expected, "what the user has set counts"
