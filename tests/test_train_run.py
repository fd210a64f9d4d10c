"""Whole runs of train.py: files, exact resume, accumulation, processes, what is learned, bad input."""

import csv
import json
import lzma
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import PROJECT, SMALL

import train as program
from masking import RULES, blank_entropy
from model import BertForMaskedLM, load_tokenizer


def weights(folder):
    return torch.load(folder / "pytorch_model.bin", weights_only=True)


def log(folder, without=("seconds", "tokens_per_second")):
    with open(folder / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


def same(one, other):
    """Whether two runs ended with the same bits and logged the same figures."""
    a, b = weights(one), weights(other)
    return all(torch.equal(a[name], b[name]) for name in a) and log(one) == log(other)


def test_a_run_writes_a_folder_that_transformers_opens(train, tmp_path, capsys):
    train("--steps", 4)
    out = tmp_path / "out"
    names = {"config.json", "pytorch_model.bin", "tokenizer.json", "vocab.txt", "tokenizer_config.json"}
    assert names | {"checkpoint.pt", "log.csv", "args.json"} <= {path.name for path in out.iterdir()}
    record = json.loads((out / "args.json").read_text())
    assert record["options"]["steps"] == 4 and record["versions"]["torch"] == torch.__version__
    assert float(log(out)[-1]["held_out_loss"]) > 0
    printed = capsys.readouterr().out
    for word in ("model ", "tokens ", "floor ", "held-out loss", "best ", "guesses", "next "):
        assert word in printed, f"the reader should see {word!r}"
    transformers = pytest.importorskip("transformers")
    theirs, ours = (
        transformers.BertForMaskedLM.from_pretrained(out).eval(),
        BertForMaskedLM.from_pretrained(out),
    )
    ids = torch.tensor([load_tokenizer(out).encode("barn cost dump").ids])
    assert (ours(ids) - theirs(ids).logits).abs().max() <= 1e-5 * ours(ids).abs().max()


CHOICES = [("--masking", "random"), ("--masking", "random", "--whole-word"), ("--reading", "visible")]
CHOICES += [("--select", rule) for rule in RULES if rule != "random"]
CHOICES += [("--reading", "memory"), ("--reading", "memory", "--entropy-every", 2, "--select", "high")]
CHOICES += [("--random-share", 0.5), ("--whole-word",), ("--corruption", "100-0-0"), ("--mask-ratio", 0.4)]
CHOICES += [
    ("--select", "sample", "--select-temperature", 0.5),
    ("--candidates", 3),
    ("--init", "normal"),
    ("--dropout", 0.1),
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: " ".join(map(str, choice)))
def test_every_choice_runs_and_resumes_to_the_same_bits(train, tmp_path, choice):
    choice = (*choice, "--entropy-warmup", 2) if choice[:2] != ("--masking", "random") else choice
    train(*choice, out="whole")
    stopped = program.Pretraining.update

    def stop_after_step_6(self):
        stopped(self)
        if self.step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        program.Pretraining.update = stop_after_step_6
        with pytest.raises(SystemExit, match="--resume --out .* goes on"):
            train(*choice, out="broken")
    finally:
        program.Pretraining.update = stopped
    train("--resume", out="broken")
    assert same(tmp_path / "whole", tmp_path / "broken"), "8 steps must equal 6 steps, a stop, and 2 steps"


def test_kill_9_and_resume_equals_an_unbroken_run(train, tmp_path, corpus, cache):
    train("--steps", 40, "--eval-every", 5, out="whole")
    command = [
        sys.executable,
        PROJECT / "train.py",
        "--corpus",
        corpus,
        "--cache",
        cache,
        "--out",
        tmp_path / "broken",
    ]
    command += [*SMALL, "--steps", "40", "--eval-every", "5"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "broken" / "checkpoint.previous.pt").exists():
        time.sleep(0.01)
        assert process.poll() in (None, 0)
    process.kill()
    process.wait()
    train("--resume", out="broken")
    assert same(tmp_path / "whole", tmp_path / "broken")


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(train, tmp_path, capsys):
    train(out="whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    damaged = tmp_path / "broken" / "checkpoint.pt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 255  # one flipped byte
    damaged.write_bytes(content)
    train("--resume", out="broken")
    assert "checkpoint.pt is damaged" in capsys.readouterr().err
    assert same(tmp_path / "whole", tmp_path / "broken")
    for path in (damaged, tmp_path / "broken" / "checkpoint.previous.pt"):
        path.write_bytes(b"")
    with pytest.raises(SystemExit, match="no checkpoint of this program to resume from"):
        train("--resume", out="broken")


def test_gradients_of_pieces_add_up_to_the_mean_over_the_steps_masked_tokens(train, tmp_path, monkeypatch):
    # Whole words give the pieces unequal numbers of masks: a mean of means would weigh them wrongly.
    gradients, masks, rng = [], [], random.Random(0)
    words = ("".join(rng.choices("abcdefgh", k=rng.randint(8, 12))) for _ in range(6000))
    (tmp_path / "words.txt").write_text(" ".join(words))

    def step(optimizer):
        gradients.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])

    original = program.Pretraining.loss

    def loss(self, ids, places, labels):
        masks.append(int((labels != -100).sum()))
        return original(self, ids, places, labels)

    monkeypatch.setattr(program.Pretraining, "loss", loss)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    for pieces in (1, 4):
        train(
            "--masking",
            "random",
            "--whole-word",
            "--accumulate",
            pieces,
            "--steps",
            1,
            out=f"p{pieces}",
            text=tmp_path / "words.txt",
        )
    assert masks[0] == sum(masks[1:]) and len(set(masks[1:])) > 1, f"the pieces should be unequal: {masks}"
    for whole, in_pieces in zip(*gradients, strict=True):
        assert (whole - in_pieces).abs().max() <= 1e-4 * whole.abs().max() + 1e-8


@pytest.mark.parametrize("reading", ["random", "blank", "memory"])
def test_two_processes_do_what_one_does(train, tmp_path, corpus, cache, reading):
    options = ["--masking", "random"]
    if reading != "random":
        options = ["--reading", reading, "--entropy-warmup", "2", "--max-tokens", "600"]
    train(*options, out="one")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--standalone",
        PROJECT / "train.py",
    ]
    command += ["--corpus", corpus, "--cache", cache, "--out", tmp_path / "two", *SMALL, *options]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    # Sums in another order round differently, and Adam makes a step of either sign of a gradient near 0:
    # so single weights may differ, but not many, and the losses agree.
    gap = sum((one[name] - two[name]).abs().sum().item() for name in one)
    size = sum(tensor.numel() for tensor in one.values())
    assert gap / size < 2e-6, f"weights differ by {gap / size:.1e} on average after 8 steps of up to 1e-3"
    assert float(log(tmp_path / "one")[-1]["loss"]) == pytest.approx(
        float(log(tmp_path / "two")[-1]["loss"]), rel=1e-4
    )


def test_memory_keeps_the_entropy_of_every_blank_and_chooses_by_it(train, monkeypatch):
    # The table by hand: a dictionary from (row, place) to the entropy of the last time [MASK] stood there.
    table, chosen, level = {}, [], [0.0]
    loss, select = program.Pretraining.loss, program.masking.select_positions

    def recorded(self, ids, places, labels):
        result = loss(self, ids, places, labels)
        with torch.no_grad():
            p = self.model(ids, positions=places).double().softmax(-1)
        seen = []
        for row, some, values in zip(rows(self), places.tolist(), -(p * p.log()).sum(-1), strict=True):
            for place, entropy in zip(some, values.tolist(), strict=True):
                if ids[rows(self).index(row), place] == self.mask:
                    table[row, place] = entropy
                    seen.append(entropy)
        mean = sum(seen) / len(seen)
        level[0] = 0.99 * level[0] + 0.01 * mean if level[0] else mean
        return result

    def rows(self):
        return program.rows_of_step(self.o, self.step, self.row_count).tolist()

    def picked(rule, eligible, ratio, entropy=None, *others, **settings):
        if entropy is not None:
            chosen.append(entropy)
        return select(rule, eligible, ratio, entropy, *others, **settings)

    def checked(self, ids, index, rng, choose=program.Pretraining.choose):
        expected = [
            [table.get((row, place), level[0]) for place in range(ids.shape[1])] for row in rows(self)
        ]
        count, selected = len(chosen), choose(self, ids, index, rng)
        for entropy in chosen[count:]:
            gap = (entropy - torch.tensor(expected)).abs().max().item()
            assert gap < 0.01, f"{gap} nats: never a blank counts as the running mean; float16 keeps 3 digits"
        return selected

    monkeypatch.setattr(program.Pretraining, "loss", recorded)
    monkeypatch.setattr(program.Pretraining, "choose", checked)
    monkeypatch.setattr(program.masking, "select_positions", picked)
    run = train("--reading", "memory", "--entropy-warmup", 4, "--max-tokens", 720, "--steps", 12)
    assert len(chosen) == 8, "random masks for 4 steps, then remembered ones"
    assert 0 < run.log[-1]["remembered_share"] <= 1


def test_masking_rules_see_the_same_rows_in_the_same_order(train):
    runs = []
    original = program.take_rows
    for options in (
        ("--masking", "random"),
        ("--entropy-warmup", 0),
        ("--reading", "visible", "--select", "low"),
    ):
        seen = []
        program.take_rows = lambda ids, index, *a, seen=seen: (
            seen.append(index.tolist()),
            original(ids, index, *a),
        )[1]
        train(*options, out="-".join(map(str, options)))
        runs.append(seen)
    program.take_rows = original
    assert runs[0] == runs[1] == runs[2], (
        "runs that differ in their masking rule alone must see the same rows"
    )


def test_teacher_masking_and_continued_pretraining(train, tmp_path):
    train(out="teacher")
    teacher = BertForMaskedLM.from_pretrained(tmp_path / "teacher")
    student = train(
        "--masking", "teacher", "--teacher", tmp_path / "teacher", "--entropy-warmup", 0, out="student"
    )
    read = student.teacher.state_dict()
    assert all(torch.equal(tensor, read[name]) for name, tensor in teacher.state_dict().items()), (
        "a teacher is frozen"
    )
    assert not student.teacher.training and not any(p.requires_grad for p in student.teacher.parameters())
    more = train(
        "--from",
        tmp_path / "teacher",
        "--steps",
        1,
        "--lr",
        1e-9,
        "--masking",
        "random",
        out="more",
        small=False,
    )
    for name, tensor in more.model.state_dict().items():
        assert torch.allclose(tensor, read[name], atol=1e-6), (
            f"--from must start from the weights of the folder: {name}"
        )


def test_compile_falls_back_and_prints_the_reason(train, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no compiler found")

    train(out="plain")
    monkeypatch.setattr(torch.nn.Module, "compile", fail)
    train("--compile", out="compiled")
    assert "going on without --compile: RuntimeError: no compiler found" in capsys.readouterr().out
    assert same(tmp_path / "plain", tmp_path / "compiled")


@pytest.mark.skipif(not os.environ.get("SLOW"), reason="compiles for a minute; set SLOW=1 to run it")
def test_compiled_training_equals_plain_training(train, tmp_path):
    one, other = (
        train("--entropy-warmup", 0, out="plain"),
        train("--compile", "--entropy-warmup", 0, out="compiled"),
    )
    assert float(one.log[-1]["loss"]) == pytest.approx(other.log[-1]["loss"], rel=1e-3)


def a_language(path, lines=3000):
    """Six words in a circle; after "four" one of 16 colours, after "six" one of two tastes."""
    rng = random.Random(0)
    colours = [a + b for a in ("re", "bl", "gr", "wh") for b in ("do", "ka", "mi", "zu")]
    parts = (
        f"one two three four {rng.choice(colours)} five six {rng.choice(('sweet', 'sour'))}"
        for _ in range(lines)
    )
    path.write_text("".join(part + ("\n" if i % 50 == 49 else " ") for i, part in enumerate(parts)))


def test_self_masking_finds_the_uncertain_words_of_a_known_language(train, tmp_path):
    a_language(tmp_path / "language.txt")
    settings = [
        "--batch-size",
        16,
        "--steps",
        300,
        "--eval-every",
        100,
        "--entropy-warmup",
        0.5,
        "--lr",
        2e-3,
    ]
    train(*settings, text=tmp_path / "language.txt")
    model, tokenizer = BertForMaskedLM.from_pretrained(tmp_path / "out"), load_tokenizer(tmp_path / "out")
    line = "one two three four redo five six sweet " * 3
    encoding = tokenizer.encode(line)
    ids = torch.tensor([encoding.ids])
    entropy = {}
    for i, token in enumerate(encoding.tokens[8:-10], start=8):
        hidden = torch.zeros_like(ids, dtype=torch.bool)
        hidden[0, i] = True
        entropy[token] = blank_entropy(model, ids, hidden, tokenizer.token_to_id("[MASK]"))[0, i].item()
    assert entropy["three"] < 0.3 and entropy["two"] < 0.3, f"these words are certain, entropy 0: {entropy}"
    assert entropy["sweet"] == pytest.approx(math.log(2), abs=0.15), "one of two: log 2"
    assert entropy["redo"] == pytest.approx(math.log(16), abs=0.3), "one of sixteen: log 16"
    last = log(tmp_path / "out")[-1]
    assert float(last["masked_entropy"]) > math.log(2), "masks drawn by entropy are mostly colours, log 16"


BAD = {
    "missing corpus": (["--corpus", "nowhere.txt"], "nowhere.txt"),
    "empty corpus": (["--corpus", "empty.txt"], "empty.txt"),
    "binary corpus": (["--corpus", "binary.txt"], "binary.txt is damaged, truncated or not UTF-8 text"),
    "truncated xz": (["--corpus", "cut.txt.xz"], "cut.txt.xz is damaged, truncated or"),
    "not gzip": (["--corpus", "plain.gz"], "plain.gz is damaged, truncated or"),
    "vocabulary without [MASK]": (["--vocab", "words.txt"], r"words.txt is .*no vocabulary with .*\[MASK\]"),
    "teacher missing": (["--masking", "teacher", "--teacher", "nowhere"], "nowhere"),
    "teacher not given": (["--masking", "teacher"], "needs --teacher"),
    "mask ratio 0": (["--mask-ratio", "0"], "mask ratio 0"),
    "mask ratio 1.5": (["--mask-ratio", "1.5"], "mask ratio 1.5"),
    "few candidates": (["--candidates", "0.5"], "--candidates 0.5"),
    "too many candidates": (["--candidates", "inf"], "--candidates inf"),
    "no effect": (
        ["--masking", "random", "--select", "high"],
        "--select has no effect with --masking random",
    ),
    "uneven pieces": (["--accumulate", "3"], "no multiple of 3 pieces"),
    "memory of a teacher": (
        ["--masking", "teacher", "--teacher", "x", "--reading", "memory"],
        "needs --masking self",
    ),
    "entropies for nothing": (["--select", "random"], "say --masking random"),
    "refresh without memory": (
        ["--entropy-every", "2"],
        "--entropy-every has no effect with --reading blank",
    ),
    "no steps": (["--steps", "0"], "--steps 0"),
    "no such device": (["--device", "warp"], "--device warp cannot be used"),
    "unwritable": (["--out", "empty.txt/run"], "empty.txt"),
    "--from nowhere": (["--from", "nowhere"], "nowhere"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_sentence(case, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("")
    Path("binary.txt").write_bytes(bytes(range(128, 256)) * 20)
    Path("cut.txt.xz").write_bytes(lzma.compress(corpus.read_bytes())[:-200])
    Path("plain.gz").write_text("plain text")
    Path("words.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n")
    options, sentence = BAD[case]
    argv = ["--corpus", str(corpus), "--cache", "cache", "--steps", "2", "--seq-len", "16", *options]
    with pytest.raises(SystemExit) as stop:
        program.launch(program.Options, program.Pretraining, "test", argv)
    assert isinstance(stop.value.code, str) and "\n" not in stop.value.code.strip(), "one sentence"
    assert re.search(sentence, stop.value.code), f"{stop.value.code!r} does not say {sentence!r}"


def test_unknown_values_are_refused_with_the_valid_ones_named(run):
    done = run("train.py", "--select", "highest")
    assert done.returncode == 2 and "'random'" in done.stderr and "'high'" in done.stderr
    assert "default: 0.15" in run("train.py", "--help").stdout


def test_teacher_with_another_vocabulary_is_refused(train, tmp_path, corpus):
    train(out="teacher")
    other = tmp_path / "other.txt"
    other.write_text(corpus.read_text().replace("a", "y"))
    with pytest.raises(SystemExit, match="another vocabulary"):
        train("--masking", "teacher", "--teacher", tmp_path / "teacher", out="student", text=other)


def test_an_output_folder_is_never_overwritten_and_resume_keeps_its_options(train, tmp_path):
    train()
    before = weights(tmp_path / "out")
    with pytest.raises(SystemExit, match="holds a run or a model already: add --resume"):
        train()
    with pytest.raises(SystemExit, match="was made with --lr 0.001, not 0.5"):
        train("--resume", "--lr", 0.5)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(tmp_path / "out").items())


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_saved(train, tmp_path, monkeypatch):
    original = program.Pretraining.loss

    def diverge(self, *batch):
        loss, sums, entropy = original(self, *batch)
        return (loss * float("nan"), sums * float("nan"), entropy) if self.step > 5 else (loss, sums, entropy)

    monkeypatch.setattr(program.Pretraining, "loss", diverge)
    with pytest.raises(SystemExit, match=r"not finite at step .*keeps step 4.*lower --lr"):
        train("--masking", "random")
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "out").values())


def test_running_out_of_memory_is_one_sentence_with_the_remedy_and_a_bug_stays_a_bug(train, monkeypatch):
    monkeypatch.setattr(program.Pretraining, "loss", lambda self, *batch: torch.empty(2**50))
    with pytest.raises(SystemExit, match=r"out of memory; .*--batch-size.*--accumulate"):
        train()
    cuda = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    for error, kind in ((cuda, SystemExit), (RuntimeError("an illegal memory access"), RuntimeError)):

        def fail(self, *batch, error=error):
            raise error

        monkeypatch.setattr(program.Pretraining, "loss", fail)
        with pytest.raises(kind, match="memory"):
            train()


def test_a_full_disk_keeps_the_last_checkpoint(train, tmp_path, monkeypatch):
    import model

    original, written = model.atomic_write, []

    def full(path, write):
        written.append(path)
        if len(written) < 12:
            return original(path, write)

        def nothing_fits(file):
            raise OSError(28, "No space left on device")

        return original(path, nothing_fits)

    monkeypatch.setattr(model, "atomic_write", full)
    with pytest.raises(SystemExit, match="No space left on device"):
        train("--steps", 20, "--eval-every", 2)
    monkeypatch.setattr(model, "atomic_write", original)
    train("--resume")
    assert log(tmp_path / "out")[-1]["step"] == "20"


def test_collapsing_masks_are_warned_of(train, capsys, monkeypatch):
    def choose(self, ids, index, random):
        stops = (ids == self.vocab["."]).float()
        return program.masking.select_positions("high", self.eligible(ids), 0.15, stops, generator=random)

    train("--masking", "random", out="random")
    assert "WARNING" not in capsys.readouterr().out
    monkeypatch.setattr(program.Pretraining, "choose", choose)
    train("--masking", "random", out="collapsed")
    assert "WARNING" in capsys.readouterr().out
