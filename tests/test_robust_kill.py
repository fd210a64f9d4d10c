"""kill -9 at any moment, a full disk, a read-only folder, two runs in one folder: nothing saved is lost.

LONG=1 pytest tests/test_robust_kill.py -s      kills every program 20 times and prints what was found
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import PROJECT, SMALL
from test_train_run import log, same, weights

import glue_eval
import model
import train as program

if not hasattr(os, "fork"):
    pytest.skip("these tests fork and kill processes, which this system cannot", allow_module_level=True)

KILLS = 10 if os.environ.get("LONG") else 2  # at random times, and as many in the middle of writing
NO_VOCAB = SMALL[2:]
QUICK = (
    "--tasks RTE STS-B --mnli-init --predict --epochs 1 --seeds 0 1 --batch-size 8 --max-length 16".split()
)
QUICK += "--dtype float32 --device cpu".split()

# One process imports torch; it forks for every run, so that a run costs no import and dies a real death.
NURSERY = r"""
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
import numpy, torch
import distill, glue_eval, model, train

torch.set_num_threads(1)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def watch(last):  # die at event number `last`; an event is a moment at which files are changed
    count = [0]
    def event(harm=None):
        count[0] += 1
        if count[0] == last:
            if harm:
                harm()
            die()
    def half(descriptor):
        size = os.fstat(descriptor).st_size
        os.ftruncate(descriptor, size // 2)
    fsync, replace, rename = os.fsync, os.replace, os.rename
    tokenise, table = train.tokenise, distill.Distillation.entropies_of_rows
    def tokenise_then(documents, tokenizer, folder):
        facts = tokenise(documents, tokenizer, folder)
        event(lambda: os.truncate(folder / "train.ids", (folder / "train.ids").stat().st_size // 2 + 1))
        return facts
    def table_then(self, first, end):
        event()
        return table(self, first, end)
    def around(call):
        def changed(*args, **settings):
            event()
            call(*args, **settings)
            event()
        return changed
    def synced(descriptor):
        event(lambda: half(descriptor))
        fsync(descriptor)
    os.fsync, os.replace, os.rename = synced, around(replace), around(rename)
    train.tokenise, distill.Distillation.entropies_of_rows = tokenise_then, table_then
    return count

while line := sys.stdin.readline():
    job = json.loads(line)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        descriptor = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, 1), os.dup2(descriptor, 2)
        status, count = 0, watch(job["die_at"])
        if job["limit"]:
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
        sys.argv[0] = job["program"]
        try:
            if job["program"] == "glue_eval.py":
                glue_eval.main(job["argv"])
            else:
                kinds = {"train.py": (train.Options, train.Pretraining),
                         "distill.py": (distill.Options, distill.Distillation)}
                train.launch(*kinds[job["program"]], "", job["argv"])
        except SystemExit as stop:
            print("SENTENCE", stop.code, flush=True)
            status = 1
        except BaseException:
            import traceback
            traceback.print_exc()
            status = 2
        print("EVENTS", count[0], flush=True)
        os._exit(status)
    print(child, flush=True)
    sys.stdin.readline()  # until it is asked for, a run that ended keeps its number
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Nursery:
    """Runs of the programs in processes of their own, which may be killed."""

    def __init__(self, folder):
        command, self.folder = [sys.executable, "-c", NURSERY, str(PROJECT)], folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        self.process, self.running = subprocess.Popen(command, **pipes), 0

    def start(self, name, argv, die_at=0, limit=0) -> int:
        if self.running:  # of a test that failed
            os.kill(self.running, signal.SIGKILL)
            self.end()
        job = {"program": name, "argv": list(map(str, argv)), "die_at": die_at, "limit": limit}
        self.process.stdin.write(json.dumps(job | {"output": str(self.folder / "output")}) + "\n")
        self.process.stdin.flush()
        self.running = int(self.process.stdout.readline())
        return self.running

    def end(self):
        """(exit status, what was printed) of the run that was started last; the status is -9 if killed."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        status, self.running = os.waitstatus_to_exitcode(int(self.process.stdout.readline())), 0
        return status, (self.folder / "output").read_text(errors="replace")

    def run(self, name, argv, **settings):
        self.start(name, argv, **settings)
        return self.end()

    def complete(self, name, argv):
        """Run to the end, which must be a good one; returns what was printed."""
        status, text = self.run(name, argv)
        assert status == 0, f"{name} {' '.join(map(str, argv))} ended with {status}: {text[-1500:]}"
        return text


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    if nursery.running:
        os.kill(nursery.running, signal.SIGKILL)
    nursery.process.stdin.close()
    nursery.process.wait()


@pytest.fixture(scope="module")
def glue_data(tmp_path_factory):
    """RTE, STS-B and MNLI in the official layout, with few made-up rows."""
    folder, rng = tmp_path_factory.mktemp("glue"), random.Random(0)
    for name in ("RTE", "STS-B", "MNLI"):
        task = glue_eval.TASKS[name]
        (folder / name).mkdir()
        for stem in task.files:
            hidden, rows = stem.startswith("test"), 48 if stem == "train" else 16
            columns = task.test_text if hidden else task.text
            width = 12 if name == "MNLI" else max(*columns, 0 if hidden else task.label) + 1
            lines = ["\t".join(["x"] * width)]
            for _ in range(rows):
                cells, kind = ["n/a"] * width, rng.randrange(2)
                for column in columns:
                    cells[column] = " ".join(rng.choices(("barn", "cost", "dump", "fist"), k=3))
                if not hidden:
                    cells[task.label] = task.labels[kind] if task.labels else f"{1 + 3 * kind}.000"
                lines.append("\t".join(cells))
            (folder / name / f"{stem}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def trained(nursery, corpus, tmp_path_factory):
    """The folder of a short pretraining run: a teacher, and a checkpoint for GLUE."""
    folder = tmp_path_factory.mktemp("trained")
    given = ["--corpus", corpus, "--cache", folder / "cache", "--out", folder / "run"]
    nursery.complete("train.py", [*given, *SMALL])
    return folder / "run"


@pytest.fixture(scope="module")
def commands(corpus, trained, glue_data):
    """commands(program, folder) -> (the command of a new run in that folder, the command that goes on)."""

    def make(name, folder):
        here = ["--out", folder / "out"]
        if name == "glue_eval.py":
            start = ["--model", trained, "--data-dir", glue_data, *QUICK, *here]
            return start, start
        here += ["--cache", folder / "cache"]
        start = ["--corpus", corpus, *here, "--entropy-warmup", 2]
        if name == "train.py":
            return [*start, *SMALL], ["--resume", *here]
        return [*start, *NO_VOCAB, "--teacher", trained, "--masking", "teacher"], ["--resume", *here]

    return make


PROGRAMS = ("train.py", "distill.py", "glue_eval.py")


@pytest.fixture(scope="module")
def unbroken(nursery, commands, tmp_path_factory):
    """unbroken(program) -> (the folder of an unbroken run, its seconds, its number of events)."""
    known = {}

    def make(name):
        if name not in known:
            folder, start = tmp_path_factory.mktemp("unbroken"), time.time()
            events = re.search(r"EVENTS (\d+)", nursery.complete(name, commands(name, folder)[0]))
            known[name] = folder, time.time() - start, int(events[1])
        return known[name]

    return make


def content(name, folder) -> dict:
    """What a run leaves, without its times: {part: bytes or text}."""
    if name == "glue_eval.py":
        record = re.sub(r'"seconds": [\d.]+', "", (folder / "out/glue.json").read_text())
        answers = (folder / "out/submission-seed-0").iterdir()
        return {"glue.json": record} | {path.name: path.read_text() for path in answers}
    parts = {part: tensor.numpy().tobytes() for part, tensor in weights(folder / "out").items()}
    return parts | {
        "log.csv": json.dumps(log(folder / "out")),
        "guesses": (folder / "out/vocab.txt").read_text(),
    }


def bytes_lost(name, one, other) -> int:
    """In how many bytes two runs differ."""
    a, b = content(name, one), content(name, other)
    assert set(a) == set(b), f"{name}: other files than those of an unbroken run: {set(a) ^ set(b)}"
    pairs = ((x.encode() if isinstance(x, str) else x, y.encode() if isinstance(y, str) else y)
             for x, y in ((a[part], b[part]) for part in a))  # fmt: skip
    return sum(
        sum(p != q for p, q in zip(x, y, strict=False)) + abs(len(x) - len(y)) for x, y in pairs if x != y
    )


def wait_for(path):
    """Until a file is there."""
    end = time.time() + 120
    while not path.exists():
        assert time.time() < end, f"{path} should have been written"
        time.sleep(0.002)


def go_on(nursery, name, commands, folder) -> str:
    """What a user does after a crash: the same command where nothing was saved yet, else --resume."""
    start, resume = commands(name, folder)
    saved = any((folder / "out").glob("checkpoint*.pt"))
    text = nursery.complete(name, resume if saved else start)
    left = [path for path in folder.rglob("*.tmp") if path.is_file() or path.is_dir()]
    assert not left, f"{name} left {left} behind"
    return text


@pytest.mark.parametrize("how", ["at a random time", "in the middle of writing"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_killed_run_goes_on_to_the_same_bits(name, how, nursery, commands, unbroken, tmp_path):
    whole, seconds, events = unbroken(name)
    assert events > 20, f"an unbroken run of {name} should change files, and only {events} events were seen"
    rng, lost, killed = random.Random(f"{name} {how}"), 0, 0
    moments = [rng.randrange(1, events + 1) for _ in range(KILLS)]
    for i in range(KILLS):
        folder = tmp_path / str(i)
        folder.mkdir()
        start = commands(name, folder)[0]
        if how == "in the middle of writing":
            status, text = nursery.run(name, start, die_at=moments[i])
        else:
            child = nursery.start(name, start)
            time.sleep(rng.random() * seconds)
            os.kill(child, signal.SIGKILL)
            status, text = nursery.end()
        assert status in (-9, 0), f"{name} should have been killed or have ended: {text[-1500:]}"
        killed += status == -9
        go_on(nursery, name, commands, folder)
        different = bytes_lost(name, whole, folder)
        assert not different, f"kill {i} {how} ({moments[i]}): {different} bytes differ from an unbroken run"
        lost += different
    print(
        f"\n{name}: killed {killed} of {KILLS} times {how}, {killed} survived, bytes lost: {lost}", flush=True
    )
    assert killed >= KILLS / 2, f"only {killed} of {KILLS} runs were killed before their end"


def test_the_same_command_in_two_processes_gives_the_same_bits(nursery, commands, unbroken, tmp_path):
    for name in PROGRAMS:
        (tmp_path / name).mkdir()
        nursery.complete(name, commands(name, tmp_path / name)[0])
        assert bytes_lost(name, unbroken(name)[0], tmp_path / name) == 0, (
            f"{name}: same seed, same machine, same bits"
        )


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_second_run_in_the_same_folder_refuses_and_a_killed_one_leaves_no_lock(
    name, nursery, commands, unbroken, tmp_path
):
    start, resume = commands(name, tmp_path)
    child = nursery.start(name, start)
    wait_for(tmp_path / ("out/glue.json" if name == "glue_eval.py" else "cache"))  # written under the lock
    os.kill(child, signal.SIGSTOP)  # it lives, and holds its folder
    arguments = [sys.executable, PROJECT / name, *start]
    second = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, timeout=120)
    assert second.returncode == 1 and "another run is writing to" in second.stderr, second.stderr
    assert second.stderr.count("\n") == 1 and "Traceback" not in second.stderr, "one sentence"
    os.kill(child, signal.SIGKILL)
    assert nursery.end()[0] == -9
    go_on(nursery, name, commands, tmp_path)
    assert bytes_lost(name, unbroken(name)[0], tmp_path) == 0, (
        "the lock of a killed run must not stop the next"
    )


def test_two_runs_that_prepare_the_same_text_wait_for_each_other(nursery, commands, unbroken, tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    with model.lock(tmp_path / "a" / "held.lock"):
        with pytest.raises(BlockingIOError, match="another run is writing"):
            model.lock(tmp_path / "a" / "held.lock")
    start = commands("distill.py", tmp_path / "a")[0]
    other = [
        str(x).replace(str(tmp_path / "a/out"), str(tmp_path / "b/out")) for x in start
    ]  # the same cache
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "distill.py"), *other],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while not (tmp_path / "b/out").exists():
        time.sleep(0.01)
        assert process.poll() is None, process.stdout.read()
    nursery.complete("distill.py", start)
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 0, text
    for folder in ("a", "b"):
        assert bytes_lost("distill.py", unbroken("distill.py")[0], tmp_path / folder) == 0


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


def checkpoint_step(out) -> int:
    return torch.load(out / "checkpoint.pt", weights_only=True)["step"]


def sentence(text) -> str:
    """The one sentence with which a run ended."""
    found = re.findall(r"SENTENCE (.*)\nEVENTS", text)
    assert len(found) == 1 and "Traceback" not in text, f"one sentence was expected: {text[-1500:]}"
    return found[0]


@pytest.mark.parametrize("name", ["train.py", "distill.py"])
def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_goes_on(
    name, nursery, commands, unbroken, tmp_path
):
    with mounted(tmp_path / "out", 64) as disk:
        start, resume = commands(name, tmp_path)
        child = nursery.start(name, start)
        wait_for(disk / "log.csv")
        os.kill(child, signal.SIGKILL)
        nursery.end()
        for room in (0, 10_000, 3_000_000):
            free = os.statvfs(disk)
            (disk / "ballast").write_bytes(bytes(max(0, free.f_bavail * free.f_bsize - room)))
            step = checkpoint_step(disk)
            status, text = nursery.run(name, resume)
            said = sentence(text)
            assert status == 1 and "cannot write" in said and re.search("No space left|disk full", said), (
                f"{room} bytes left: {said}"
            )
            assert checkpoint_step(disk) == step, "the last checkpoint must stay as it was"
            (disk / "ballast").unlink()
        go_on(nursery, name, commands, tmp_path)
        assert bytes_lost(name, unbroken(name)[0], tmp_path) == 0


def test_a_full_disk_does_not_cost_glue_its_results(nursery, commands, unbroken, tmp_path):
    with mounted(tmp_path / "out", 64) as disk:
        start, _ = commands("glue_eval.py", tmp_path)
        child = nursery.start("glue_eval.py", start)
        wait_for(disk / "glue.json")
        os.kill(child, signal.SIGKILL)
        nursery.end()
        before = (disk / "glue.json").read_text()
        free = os.statvfs(disk)
        (disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_bsize))
        status, text = nursery.run("glue_eval.py", start)
        assert status == 1 and "cannot write" in sentence(text), text
        assert (disk / "glue.json").read_text() == before
        (disk / "ballast").unlink()
        go_on(nursery, "glue_eval.py", commands, tmp_path)
        assert bytes_lost("glue_eval.py", unbroken("glue_eval.py")[0], tmp_path) == 0


def test_a_full_cache_is_one_sentence_and_the_same_command_goes_on(nursery, commands, unbroken, tmp_path):
    with mounted(tmp_path / "cache", 1) as disk:
        start, _ = commands("distill.py", tmp_path)
        for room in (0, 20_000, 100_000):
            free = os.statvfs(disk)
            (disk / "ballast").write_bytes(bytes(max(0, free.f_bavail * free.f_bsize - room)))
            status, text = nursery.run("distill.py", start)
            assert status == 1 and str(disk) in sentence(text), (
                f"the sentence should name {disk}: {sentence(text)}"
            )
            (disk / "ballast").unlink()
        go_on(nursery, "distill.py", commands, tmp_path)
        assert bytes_lost("distill.py", unbroken("distill.py")[0], tmp_path) == 0


@pytest.mark.parametrize("limit", [1000, 300_000, 2_000_000])
def test_a_limit_on_the_size_of_files_is_one_sentence(limit, nursery, commands, unbroken, tmp_path):
    pytest.importorskip("resource")
    start, resume = commands("train.py", tmp_path)
    status, text = nursery.run("train.py", start, limit=limit)
    assert status == 1 and str(tmp_path) in sentence(text), (
        f"the sentence should name the file: {sentence(text)}"
    )
    go_on(nursery, "train.py", commands, tmp_path)
    assert bytes_lost("train.py", unbroken("train.py")[0], tmp_path) == 0


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_read_only_folder_is_one_sentence_and_nothing_is_lost(name, nursery, commands, unbroken, tmp_path):
    with mounted(tmp_path / "out", 64) as disk:
        nursery.complete(name, commands(name, tmp_path)[0])
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        status, text = nursery.run(name, commands(name, tmp_path)[1])
        assert status == 1 and str(disk) in sentence(text) and "Read-only" in sentence(text), sentence(text)
        assert bytes_lost(name, unbroken(name)[0], tmp_path) == 0


# ---- smaller promises ----


def test_a_run_that_died_between_its_last_checkpoint_and_its_model_is_completed(train, tmp_path, monkeypatch):
    train(out="whole")
    save = model.Pretrained.save_pretrained

    def die_at_the_end(self, folder, tokenizer=None):
        if checkpoint_step(Path(folder)) == 8:
            raise SystemExit("died")
        save(self, folder, tokenizer)

    monkeypatch.setattr(model.Pretrained, "save_pretrained", die_at_the_end)
    with pytest.raises(SystemExit, match="died"):
        train(out="broken")
    monkeypatch.setattr(model.Pretrained, "save_pretrained", save)
    assert log(tmp_path / "broken")[-1]["step"] == "4", "the files must still be those of step 4 here"
    train("--resume", out="broken")
    assert same(tmp_path / "whole", tmp_path / "broken"), (
        "resuming a finished run must write its model and log"
    )


def test_a_run_moved_to_another_folder_goes_on_there(train, tmp_path):
    train(out="first")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "first").iterdir()}
    (tmp_path / "elsewhere").mkdir()
    for path in (tmp_path / "first").iterdir():
        (tmp_path / "elsewhere" / path.name).write_bytes(path.read_bytes())
    train("--resume", out="elsewhere")
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "first").iterdir()}
    assert before == after, "a copy of a run must not write to the folder it was copied from"


def test_a_resume_never_falls_back_on_nothing_while_checkpoints_change_places(train, tmp_path, monkeypatch):
    train(out="whole")
    train("--steps", 8, out="broken")
    out = tmp_path / "broken"
    (out / "checkpoint.pt").rename(out / "checkpoint.new")  # killed before the new one got its place
    (out / "checkpoint.previous.pt").write_bytes(b"damaged")
    train("--resume", out="broken")
    assert same(tmp_path / "whole", out)


def test_a_gradient_that_is_not_finite_is_never_saved(train, tmp_path, monkeypatch):
    clip, calls = torch.nn.utils.clip_grad_norm_, []

    def explode(parameters, most):
        parameters = list(parameters)
        calls.append(1)
        if len(calls) == 8:  # the loss of step 8 is still a number, the weights after it are not
            parameters[0].grad[0] = float("inf")
        return clip(parameters, most)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", explode)
    with pytest.raises(SystemExit, match=r"not finite at step 8 .*keeps step 4.*lower --lr"):
        train("--masking", "random")
    assert checkpoint_step(tmp_path / "out") == 4
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "out").values())


def test_a_held_out_loss_far_above_chance_stops_the_run(train, tmp_path, monkeypatch):
    examine = program.Pretraining.examine
    monkeypatch.setattr(
        program.Pretraining, "examine", lambda self, m: (99.0, 0.0) if self.step == 8 else examine(self, m)
    )
    with pytest.raises(SystemExit, match=r"diverged .*at step 8 .*keeps step 4.*lower --lr"):
        train("--masking", "random")
    assert checkpoint_step(tmp_path / "out") == 4


def test_a_loss_that_is_not_finite_stops_a_distillation(nursery, commands, tmp_path):
    start, _ = commands("distill.py", tmp_path)
    status, text = nursery.run("distill.py", [*start, "--lr", "1000", "--steps", "400", "--eval-every", "20"])
    assert status == 1 and re.search(r"diverged or not finite at step .*lower --lr", sentence(text)), (
        sentence(text)
    )
