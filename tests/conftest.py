"""What the tests share: the project on the path, a small corpus, runs and what they leave."""

import csv
import os
import random
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
COURSE = PROJECT / "tests" / "course"
for folder in (PROJECT / "tests" / "lab", COURSE, PROJECT / "tests", PROJECT):
    sys.path.insert(0, str(folder))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A student's copy has the table of exercises, and not the program that makes such copies.
HANDOUT = (COURSE / "exercises.py").exists() and not (COURSE / "handout.py").exists()

NO_VOCAB = "--seq-len 32 --batch-size 8 --steps 8 --eval-every 4 --dtype float32 --device cpu".split()
SMALL = ["--vocab-size", "300", *NO_VOCAB]


@pytest.fixture(autouse=True)
def as_many_threads_as_before():
    """The number of threads decides in which order numbers are added: no test keeps another one."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# ---- texts and models ----


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """200 documents of five made-up sentences each."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    words = [a + b for a in ("ba", "co", "du", "fi", "ga", "lo") for b in ("rn", "st", "m", "lt", "p", "nd")]
    sentences = (" ".join(rng.choices(words, k=12)) + " ." for _ in range(1000))
    path.write_text("".join(s + ("\n\n" if i % 5 == 4 else "\n") for i, s in enumerate(sentences)))
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def teacher(corpus, cache, tmp_path_factory):
    """A folder with four untrained layers of sharp opinions, under a vocabulary of the corpus."""
    import torch

    import train
    from model import BertConfig, BertForMaskedLM

    argv = ["--corpus", str(corpus), "--cache", str(cache), *SMALL]
    tokenizer = train.prepare_text(train.make_parser("test").parse_args(argv))[0]
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 4, "initializer_range": 0.1, "vocab_size": tokenizer.get_vocab_size()}
    folder = tmp_path_factory.mktemp("teacher")
    BertForMaskedLM(BertConfig.preset("tiny", **sizes)).save_pretrained(folder, tokenizer)
    return folder


# ---- runs ----


@pytest.fixture
def run():
    """run("train.py", "--steps", "5") -> the finished process, with stdout and stderr as text."""

    def run_program(*command, **settings):
        command = [sys.executable, str(PROJECT / command[0]), *map(str, command[1:])]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **settings)

    return run_program


def launch(*argv):
    """train.py with these options, in this process -> the finished Pretraining."""
    import train

    return train.main(train.make_parser("test"), argv=list(map(str, argv)))


def launch_distillation(*argv):
    """distill.py with these options, in this process -> the finished Distillation."""
    import distill
    import train

    return train.main(distill.make_parser(), distill.Distillation, list(map(str, argv)))


@contextmanager
def killed_in_step(number: int):
    """Inside, a run dies in this step: nothing is saved any more, and nobody is told."""
    from train import Pretraining

    update = Pretraining.update

    def die(self):
        if self.step == number - 1:
            raise SystemExit("killed")
        update(self)

    Pretraining.update = die
    try:
        with pytest.raises(SystemExit, match="killed"):
            yield
    finally:
        Pretraining.update = update


@pytest.fixture
def train(corpus, cache, tmp_path):
    """train("--steps", "5", out="a") -> the finished Pretraining of a small run, made in this process."""

    def run_training(*options, out="out", text=corpus, small=SMALL):
        given = [] if "--resume" in options else ["--corpus", text, *small]
        return launch(*given, "--cache", cache, "--out", tmp_path / out, *options)

    return run_training


@pytest.fixture
def distil(corpus, cache, tmp_path, teacher):
    """distil("--steps", "5", out="a") -> the finished Distillation of a small run, made in this process."""

    def run_distillation(*options, out="out"):
        given = ["--corpus", corpus, "--teacher", teacher, *NO_VOCAB, "--max-tokens", "4000"]
        given = [] if "--resume" in options else given
        return launch_distillation(*given, "--cache", cache, "--out", tmp_path / out, *options)

    return run_distillation


@pytest.fixture(scope="session")
def nursery(tmp_path_factory):
    """Runs in processes of their own, which may be killed: see nursery.py."""
    if not hasattr(os, "fork"):
        pytest.skip("these tests fork and kill processes, which this system cannot")
    from nursery import Nursery

    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


@pytest.fixture
def free_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


# ---- what a run leaves ----


def weights(folder) -> dict:
    """The tensors of a folder."""
    from model import read_weights

    return read_weights(folder)


def log(folder, without=("seconds", "tokens_per_second")) -> list:
    """The lines of log.csv as dicts of text, without what differs from run to run."""
    with open(folder / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


def same(one, other) -> bool:
    """Whether two runs ended with the same bits and logged the same figures."""
    bits = [(folder / "model.safetensors").read_bytes() for folder in (one, other)]
    return bits[0] == bits[1] and log(one) == log(other)


def pytest_report_teststatus(report):
    """In a student's copy, a test of what is not written yet is no failure with a page of traceback."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if HANDOUT and report.failed and crash and crash.message.startswith("NotImplementedError: Exercise"):
        return "not written", "-", "NOT WRITTEN"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """In a student's copy of the project, the last thing pytest prints: the points so far."""
    yield
    if HANDOUT:
        from exercises import scoreboard

        if lines := scoreboard(terminalreporter.stats):
            terminalreporter.section("points")
            terminalreporter.write_line("\n".join(lines))
