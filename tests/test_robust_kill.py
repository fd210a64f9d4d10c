"""kill -9 at any moment, a full disk, a read-only folder: nothing that was saved is lost.

LONG=1 pytest tests/test_robust_kill.py -s      kills every program 20 times and prints what was found
"""

import json
import os
import random
import re
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import NO_VOCAB, SMALL, killed_in_step, log, same

import glue_eval
import model
import train as program

LONG = bool(os.environ.get("LONG"))
KILLS = 10 if LONG else 1  # at random times, and as many in the middle of writing
QUICK = "--tasks RTE STS-B --predict --epochs 1 --seeds 0 1 --batch-size 8 --max-length 16".split()
QUICK += "--dtype float32 --device cpu".split()
PROGRAMS = ("train.py", "distill.py", "glue_eval.py")


@pytest.fixture(scope="module")
def glue_data(tmp_path_factory):
    """RTE and STS-B in the official layout, with few made-up rows."""
    folder = tmp_path_factory.mktemp("glue")
    rng = random.Random(0)
    for name in ("RTE", "STS-B"):
        task = glue_eval.TASKS[name]
        (folder / name).mkdir()
        for stem in task.files:
            lines = ["sentence1\tsentence2\tlabel"]
            for _ in range(48 if stem == "train" else 16):
                pair = [" ".join(rng.choices(("barn", "cost", "dump", "fist"), k=3)) for _ in range(2)]
                y = rng.randrange(2)
                lines.append("\t".join([*pair, task.labels[y] if task.labels else f"{1 + 3 * y}.000"]))
            (folder / name / f"{stem}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def commands(corpus, teacher, glue_data):
    """commands(program, folder) -> (the command of a new run there, the one that continues it)."""

    def make(name, folder):
        here = ["--out", folder / "out"]
        if name == "glue_eval.py":
            start = ["--model", teacher, "--data-dir", glue_data, *QUICK, *here]
            return start, start
        here += ["--cache", folder / "cache"]
        start = ["--corpus", corpus, *here, "--entropy-warmup", 2]
        if name == "train.py":
            return [*start, *SMALL], ["--resume", *here]
        table = ["--teacher", teacher, "--masking", "teacher", "--max-tokens", 240, "--steps", 12]
        return [*start, *NO_VOCAB, *table], ["--resume", *here]

    return make


@pytest.fixture(scope="module")
def unbroken(nursery, commands, tmp_path_factory):
    """unbroken(program) -> (the folder of an unbroken run, its seconds, its number of events)."""
    known = {}

    def make(name):
        if name not in known:
            folder = tmp_path_factory.mktemp("unbroken")
            start = time.time()
            events = re.search(r"EVENTS (\d+)", nursery.complete(name, commands(name, folder)[0]))
            known[name] = folder, time.time() - start, int(events[1])
        return known[name]

    return make


def content(name, folder) -> dict:
    """What a run leaves, without its times: {part: bytes}."""
    out = folder / "out"
    if name == "glue_eval.py":
        parts = {path.name: path.read_bytes() for path in (out / "submission-seed-0").glob("*.tsv")}
        return parts | {"glue.json": re.sub(rb'"seconds": [\d.]+', b"", (out / "glue.json").read_bytes())}
    names = ("model.safetensors", "config.json", "tokenizer.json", "vocab.txt")
    return {part: (out / part).read_bytes() for part in names} | {"log.csv": json.dumps(log(out)).encode()}


def assert_nothing_lost(name, one, other, how=""):
    """Whether a run left byte for byte what an unbroken one leaves."""
    left = content(name, other)
    expected = content(name, one)
    differ = [part for part in expected | left if left.get(part) != expected.get(part)]
    assert not differ, f"{name} {how}: {', '.join(differ)} differ from those of an unbroken run"


def continue_run(nursery, name, commands, folder):
    """What a user does after a crash: the same command where nothing was saved yet, else --resume."""
    start, resume = commands(name, folder)
    saved = any((folder / "out").glob("checkpoint.pt"))
    nursery.complete(name, resume if saved else start)


# ---- kill -9 ----


@pytest.mark.parametrize("how", ["at a random time", "in the middle of writing"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_killed_run_continues_to_the_same_bits(name, how, nursery, commands, unbroken, tmp_path):
    whole, seconds, events = unbroken(name)
    assert events > 10, f"an unbroken run of {name} should change files, and only {events} events were seen"
    rng = random.Random(f"{name} {how}")
    killed = 0
    for i in range(KILLS):
        folder = tmp_path / str(i)
        folder.mkdir()
        start = commands(name, folder)[0]
        moment = rng.randrange(1, events + 1)
        if how == "in the middle of writing":
            status, text = nursery.run(name, start, die_at=moment)
            assert status == -9, f"{name} should have been killed: {text[-1500:]}"
        else:
            child = nursery.start(name, start)
            time.sleep(rng.random() * seconds)
            os.kill(child, signal.SIGKILL)
            status, text = nursery.end(child)
            assert status in (-9, 0), f"{name} should have been killed or have ended: {text[-1500:]}"
        killed += status == -9
        continue_run(nursery, name, commands, folder)
        assert_nothing_lost(name, whole, folder, f"kill {i} {how} ({moment})")
    print(f"\n{name}: killed {killed} of {KILLS} times {how}, nothing lost", flush=True)
    assert killed >= KILLS / 2 or not LONG, f"only {killed} of {KILLS} runs were killed before their end"


# ---- a full disk, a read-only folder ----


@contextmanager
def mounted(folder, megabytes):
    """A small disk at `folder`; skipped, with the reason, where this user cannot make one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no small disk can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk, room):
    """Leave only so many bytes of a disk free."""
    free = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(max(0, free.f_bavail * free.f_bsize - room)))


def newest_step(out) -> int:
    return program.read_checkpoint(Path(out))["step"]


def sentence(text) -> str:
    """The one sentence with which a run ended."""
    found = re.findall(r"SENTENCE (.*)\nEVENTS", text)
    assert len(found) == 1 and "Traceback" not in text, f"one sentence was expected: {text[-1500:]}"
    return found[0]


def stop_after(nursery, name, argv, path):
    """Start a run, and kill it as soon as a file is there."""
    child = nursery.start(name, argv)
    end = time.time() + 120
    while not path.exists():
        assert time.time() < end, f"{path} should have been written"
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    nursery.end(child)


@pytest.mark.parametrize("name", ["train.py", "distill.py"] if LONG else ["train.py"])
def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_continues(
    name, nursery, commands, unbroken, tmp_path
):
    with mounted(tmp_path / "out", 64) as disk:
        start, resume = commands(name, tmp_path)
        stop_after(nursery, name, start, disk / "log.csv")
        for room in (0, 10_000, 3_000_000):
            step = newest_step(disk)
            fill(disk, room)
            status, text = nursery.run(name, resume)
            said = sentence(text)
            full = status == 1 and "cannot write" in said and re.search("No space left|disk full", said)
            assert full, f"{room} bytes left: {said}"
            assert newest_step(disk) >= step, "no checkpoint may be lost"
            (disk / "ballast").unlink()
        continue_run(nursery, name, commands, tmp_path)
        assert_nothing_lost(name, unbroken(name)[0], tmp_path)


def test_a_full_disk_does_not_cost_glue_its_results(nursery, commands, unbroken, tmp_path):
    with mounted(tmp_path / "out", 64) as disk:
        start, _ = commands("glue_eval.py", tmp_path)
        stop_after(nursery, "glue_eval.py", start, disk / "glue.json")
        before = (disk / "glue.json").read_text()
        fill(disk, 0)
        status, text = nursery.run("glue_eval.py", start)
        assert status == 1 and re.search("cannot write|No space left", sentence(text)), text
        assert (disk / "glue.json").read_text() == before
        (disk / "ballast").unlink()
        continue_run(nursery, "glue_eval.py", commands, tmp_path)
        assert_nothing_lost("glue_eval.py", unbroken("glue_eval.py")[0], tmp_path)


def test_a_full_cache_is_one_sentence_and_the_same_command_works_later(nursery, commands, unbroken, tmp_path):
    with mounted(tmp_path / "cache", 1) as disk:
        start, _ = commands("distill.py", tmp_path)
        for room in (0, 20_000):
            fill(disk, room)
            status, text = nursery.run("distill.py", start)
            assert status == 1 and re.search("No space left|disk full", sentence(text)), sentence(text)
            assert not any((tmp_path / "out").glob("checkpoint.pt"))
            (disk / "ballast").unlink()
        continue_run(nursery, "distill.py", commands, tmp_path)
        assert_nothing_lost("distill.py", unbroken("distill.py")[0], tmp_path)


@pytest.mark.parametrize("limit", [1000, 300_000, 2_000_000] if LONG else [2_000_000])
def test_a_limit_on_the_size_of_files_is_one_sentence(limit, nursery, commands, unbroken, tmp_path):
    pytest.importorskip("resource")
    status, text = nursery.run("train.py", commands("train.py", tmp_path)[0], limit=limit)
    assert status == 1 and re.search("File too large|cannot write .*disk full", sentence(text)), sentence(
        text
    )
    continue_run(nursery, "train.py", commands, tmp_path)
    assert_nothing_lost("train.py", unbroken("train.py")[0], tmp_path)


@pytest.mark.parametrize("name", PROGRAMS if LONG else ["train.py"])
def test_a_read_only_folder_is_one_sentence_and_nothing_is_lost(name, nursery, commands, unbroken, tmp_path):
    with mounted(tmp_path / "out", 64) as disk:
        nursery.complete(name, commands(name, tmp_path)[0])
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        status, text = nursery.run(name, commands(name, tmp_path)[1])
        assert status == 1 and str(disk) in sentence(text) and "Read-only" in sentence(text), sentence(text)
        assert_nothing_lost(name, unbroken(name)[0], tmp_path)


# ---- between two files ----


def test_a_run_that_died_between_its_last_checkpoint_and_its_model_is_completed(train, tmp_path, monkeypatch):
    train(out="whole")
    save = model.Pretrained.save_pretrained

    def die_at_the_end(self, folder, tokenizer=None):
        if newest_step(folder) == 8:
            raise SystemExit("died")
        save(self, folder, tokenizer)

    with monkeypatch.context() as patch:
        patch.setattr(model.Pretrained, "save_pretrained", die_at_the_end)
        with pytest.raises(SystemExit, match="died"):
            train(out="broken")
    assert log(tmp_path / "broken")[-1]["step"] == "4", "the files must still be those of step 4 here"
    train("--resume", out="broken")
    assert same(tmp_path / "whole", tmp_path / "broken"), "resuming a finished run writes its model and log"


def test_a_half_written_checkpoint_never_takes_the_place_of_the_good_one(train, tmp_path, monkeypatch):
    train(out="whole")
    with killed_in_step(7):
        train(out="broken")  # it has step 4
    (tmp_path / "broken" / "checkpoint.pt.1.tmp").write_bytes(b"half of it")

    def fill_the_disk(state, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fill_the_disk)
        with pytest.raises(SystemExit, match="cannot write"):
            train("--resume", out="broken")
    train("--resume", out="broken")
    assert same(tmp_path / "whole", tmp_path / "broken")
