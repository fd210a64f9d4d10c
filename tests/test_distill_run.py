"""Whole runs of distill.py: what equals train.py, what a teacher does in a step, its table of entropies."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import PROJECT, SMALL
from test_train_run import log, same, weights

import distill
import masking
import train as pretraining
from model import BertConfig, BertForMaskedLM, load_tokenizer

NO_VOCAB = [*SMALL[2:], "--max-tokens", "4000"]  # the vocabulary is the teacher's


@pytest.fixture(scope="session")
def teacher(corpus, cache, tmp_path_factory):
    """A folder with four layers of width 128 and sharp opinions, under a vocabulary of the corpus."""
    folder = tmp_path_factory.mktemp("teacher")
    argv = ["--corpus", corpus, "--cache", cache, "--out", folder / "vocabulary", *SMALL, "--steps", "1"]
    pretraining.launch(pretraining.Options, pretraining.Pretraining, "", list(map(str, argv)))
    tokenizer = load_tokenizer(folder / "vocabulary")
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 4, "initializer_range": 0.1, "vocab_size": tokenizer.get_vocab_size()}
    BertForMaskedLM(BertConfig.preset("tiny", **sizes)).save_pretrained(folder / "teacher", tokenizer)
    return folder / "teacher"


@pytest.fixture
def distil(corpus, cache, tmp_path, teacher):
    """distil("--steps", "5", out="a") -> the finished Distillation of a small run, made in this process."""

    def run_distillation(*options, out="out"):
        argv = ["--cache", cache, "--out", tmp_path / out, *options]
        if "--resume" not in options:
            argv = ["--corpus", corpus, "--teacher", teacher, *NO_VOCAB, *argv]
        return pretraining.launch(distill.Options, distill.Distillation, "", list(map(str, argv)))

    return run_distillation


GRID = [
    (mask, init, alpha)
    for mask in ("random", "self", "teacher")
    for init, alpha in (("scratch", 0.5), ("layers", 1.0), ("embeddings", 0.0))
]


@pytest.mark.parametrize("mask, init, alpha", GRID)
def test_every_combination_runs_and_resumes_to_the_same_bits(
    distil, tmp_path, mask, init, alpha, monkeypatch
):
    options = ["--masking", mask, "--student-init", init, "--kd-alpha", alpha]
    options += [] if mask == "random" else ["--entropy-warmup", 2]
    distil(*options, out="whole")
    original = distill.Distillation.update

    def stop_after_step_6(self):
        original(self)
        if self.step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(distill.Distillation, "update", stop_after_step_6)
    with pytest.raises(SystemExit, match="--resume --out .* goes on"):
        distil(*options, out="broken")
    monkeypatch.setattr(distill.Distillation, "update", original)
    distil("--resume", out="broken")
    assert same(tmp_path / "whole", tmp_path / "broken"), "8 steps must equal 6 steps, a stop, and 2 steps"
    columns = set(log(tmp_path / "whole")[0])
    assert {"teacher_loss", "teacher_accuracy", "held_out_loss"} <= columns
    assert ({"cross_entropy", "kl", "agreement"} <= columns) == (alpha > 0)


@pytest.mark.parametrize("mask", ["random", "self"])
def test_alpha_0_is_train_py_step_for_step(distil, train, teacher, tmp_path, mask):
    warmup = [] if mask == "random" else ["--entropy-warmup", 2]
    distil("--masking", mask, "--kd-alpha", 0, "--eval-every", 1, *warmup, out="distill")
    options = ["--vocab", teacher, "--masking", mask, *NO_VOCAB, "--eval-every", 1, *warmup]
    train(*options, small=False, out="train")
    ours, theirs = log(tmp_path / "distill"), log(tmp_path / "train")
    assert len(ours) == 8
    for column in ("loss", "accuracy", "held_out_loss", "masked_entropy"):
        assert [row[column] for row in ours] == [row[column] for row in theirs], (
            f"{column} must be train.py's"
        )
    one, other = weights(tmp_path / "distill"), weights(tmp_path / "train")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("mask", ["random", "teacher"])
def test_a_step_asks_the_teacher_once_at_the_masked_places_and_leaves_it_alone(distil, mask, monkeypatch):
    calls, original = [], distill.Distillation.update

    def counted(self):
        teacher, seen = self.teacher, {"encoder": 0, "head": []}
        before = [tensor.clone() for tensor in teacher.state_dict().values()]
        hooks = [
            teacher.bert.register_forward_hook(lambda *_: seen.update(encoder=seen["encoder"] + 1)),
            teacher.cls["predictions"].register_forward_hook(
                lambda _, x, y: seen["head"].append(tuple(y.shape))
            ),
        ]
        original(self)
        for hook in hooks:
            hook.remove()
        after = list(teacher.state_dict().values())
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "a teacher does not learn"
        assert not teacher.training and all(p.grad is None for p in teacher.parameters())
        calls.append(seen)

    monkeypatch.setattr(distill.Distillation, "update", counted)
    run = distil("--masking", mask, *([] if mask == "random" else ["--entropy-warmup", 0]))
    shape = (8, run.masks_per_row, len(run.vocab))
    assert calls == [{"encoder": 1, "head": [shape]}] * 8, (
        "one forward pass, and its head on masked places only"
    )


def test_a_student_that_is_its_teacher_agrees_with_it(distil, teacher):
    run = distil("--from", teacher, "--kd-alpha", 1, "--lr", 1e-12, "--masking", "random")
    last = run.log[-1]
    assert last["kl"] < 1e-6 and last["agreement"] > 0.999 and last["loss"] < 1e-5
    assert last["held_out_loss"] == pytest.approx(last["teacher_loss"], rel=1e-5)


def test_the_blank_entropy_of_every_position_hides_each_once(teacher, monkeypatch):
    model, tokenizer = BertForMaskedLM.from_pretrained(teacher), load_tokenizer(teacher)
    ids = torch.randint(5, tokenizer.get_vocab_size(), (3, 32), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, -1] = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    eligible, mask = (
        masking.eligible_positions(ids, [int(ids[0, 0]), int(ids[0, -1])]),
        tokenizer.token_to_id("[MASK]"),
    )
    groups, original = [], masking.blank_entropy
    monkeypatch.setattr(masking, "blank_entropy", lambda *a: (groups.append(a[2]), original(*a))[1])
    rng = torch.Generator().manual_seed(1)
    entropy = distill.blank_entropy_everywhere(model, ids, eligible, 0.15, mask, rng)
    assert len(groups) == 7, "ceil(1 / 0.15) passes"
    assert torch.equal(sum(group.int() for group in groups), eligible.int()), "every position is hidden once"
    sizes = torch.stack([group.sum(-1) for group in groups])
    assert (sizes.amax(0) - sizes.amin(0) <= 1).all(), f"groups of about equal size: {sizes.tolist()}"
    for group in groups:
        alone = model(ids.masked_fill(group, mask)).double().log_softmax(-1)
        true = -(alone.exp() * alone).sum(-1)
        assert (entropy - true)[group].abs().max() < 1e-4, "the entropy with this group hidden"


@pytest.mark.parametrize("reading", ["visible", "blank"])
def test_the_table_holds_what_the_teacher_says_and_picks_by_it(distil, reading, tmp_path):
    run = distil("--masking", "teacher", "--reading", reading, "--select", "high", "--entropy-warmup", 0)
    assert run.table.dtype == np.float16 and run.table.shape == (run.row_count, 32)
    index = np.arange(min(40, run.row_count))
    ids = pretraining.take_rows(run.train_ids, index, 32, run.cls, run.sep)
    if reading == "visible":
        fresh = masking.sequence_entropy(run.teacher, ids)
    else:
        rng = torch.Generator().manual_seed(0)
        fresh = distill.blank_entropy_everywhere(run.teacher, ids, run.eligible(ids), 0.15, run.mask, rng)
        ids = pretraining.take_rows(run.train_ids, np.arange(64), 32, run.cls, run.sep)
        rng = torch.Generator().manual_seed(0)  # rows are computed 64 at a time
        fresh = distill.blank_entropy_everywhere(run.teacher, ids, run.eligible(ids), 0.15, run.mask, rng)[
            :40
        ]
    cached = run.entropies(None, index, None)
    assert (cached - fresh).abs().max() <= 2**-11 * fresh.max() + 1e-4, "float16 keeps 11 bits"


def test_an_interrupted_table_goes_on_to_the_same_bytes_and_is_computed_once(distil, cache, monkeypatch):
    options = ["--masking", "teacher", "--mask-ratio", 0.3, "--entropy-warmup", 0]
    original, calls = distill.blank_entropy_everywhere, []

    def counted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(distill, "blank_entropy_everywhere", counted)
    with pytest.raises(SystemExit):
        distil(*options, out="one")
    done = len(calls) - 1
    run = distil(*options, out="one")
    chunks = -(-run.row_count // distill.CHUNK)
    assert len(calls) == done + 1 + chunks - done, "what was computed is not computed again"
    assert np.isfinite(run.table).all()
    broken = bytes(run.table)
    os.unlink(run.table.filename)
    assert bytes(distil(*options, out="two").table) == broken
    calls.clear()
    calls += [1] * 10
    distil(*options, "--kd-alpha", 0, "--seed", 5, out="three")
    assert len(calls) == 10, "another run with this teacher and text reads the table"


def test_two_processes_do_what_one_does(distil, teacher, corpus, cache, tmp_path):
    options = ["--masking", "teacher", "--entropy-warmup", "0"]
    distil(*options, out="one")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command += [PROJECT / "distill.py", "--teacher", teacher, "--corpus", corpus, "--cache", cache]
    command += ["--out", tmp_path / "two", *NO_VOCAB, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    for column in ("loss", "kl", "cross_entropy"):
        one, two = (float(log(tmp_path / name)[-1][column]) for name in ("one", "two"))
        assert one == pytest.approx(two, rel=1e-4), column


BAD = {
    "no teacher": (["--teacher", ""], "needs --teacher FOLDER"),
    "teacher missing": (["--teacher", "nowhere"], "nowhere"),
    "another vocabulary": (["--vocab", "other.txt"], "another vocabulary"),
    "vocabulary size": (["--vocab-size", "500"], "--vocab-size has no effect"),
    "alpha above 1": (["--kd-alpha", "2"], "--kd-alpha 2.0 is not between 0 and 1"),
    "temperature 0": (["--kd-temperature", "0"], "--kd-temperature 0.0"),
    "temperature of nothing": (
        ["--kd-alpha", "0", "--kd-temperature", "3"],
        "--kd-temperature has no effect",
    ),
    "widths": (["--size", "mini", "--student-init", "layers"], "hidden_size 256, the teacher 128"),
    "rows too long": (["--seq-len", "600"], "too few positions"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_sentence(case, distil, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz."]
    (tmp_path / "other.txt").write_text("\n".join(pieces))
    options, sentence = BAD[case]
    with pytest.raises(SystemExit, match=sentence) as stop:
        distil(*options)
    assert "\n" not in stop.value.code.strip(), "one sentence"


def test_a_run_is_resumed_by_the_program_that_began_it(distil, train):
    train()
    with pytest.raises(SystemExit, match="no checkpoint of this program"):
        distil("--resume")
