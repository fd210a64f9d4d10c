"""What the tests share: the project on the path, a small corpus, and train.py called as a user would."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

HANDOUT = (PROJECT / "tests/exercises.py").exists() and not (PROJECT / "tests/handout.py").exists()

SMALL = "--vocab-size 300 --seq-len 32 --batch-size 8 --steps 8 --eval-every 4".split()
SMALL += "--dtype float32 --device cpu".split()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """200 documents of five made-up sentences each."""
    rng, path = random.Random(0), tmp_path_factory.mktemp("corpus") / "text.txt"
    words = [a + b for a in ("ba", "co", "du", "fi", "ga", "lo") for b in ("rn", "st", "m", "lt", "p", "nd")]
    sentences = (" ".join(rng.choices(words, k=12)) + " ." for _ in range(1000))
    path.write_text("".join(s + ("\n\n" if i % 5 == 4 else "\n") for i, s in enumerate(sentences)))
    return path


@pytest.fixture
def run(tmp_path_factory):
    """run("train.py", "--steps", "5") -> the finished process, with stdout and stderr as text."""

    def run_program(*command, **settings):
        command = [sys.executable, str(PROJECT / command[0]), *map(str, command[1:])]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **settings)

    return run_program


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def train(corpus, cache, tmp_path):
    """train("--steps", "5", out="a") -> the finished Pretraining of a small run, made in this process."""
    import train as program

    def run_training(*options, out="out", text=corpus, small=True):
        argv = ["--cache", cache, "--out", tmp_path / out, *options]
        if "--resume" not in options:
            argv = ["--corpus", text, *(SMALL if small else ["--seq-len", 32, "--batch-size", 8]), *argv]
        return program.launch(program.Options, program.Pretraining, "test", list(map(str, argv)))

    return run_training


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """In a student's copy of the project, the last thing pytest prints: the points so far."""
    yield
    if HANDOUT:
        from exercises import scoreboard

        if lines := scoreboard(terminalreporter.stats):
            terminalreporter.section("points")
            terminalreporter.write_line("\n".join(lines))
