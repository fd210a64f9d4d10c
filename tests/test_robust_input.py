"""Files that the programs read, damaged in the ways that files are: one sentence, or the same result.

LONG=1 pytest tests/test_robust_input.py -s      tries several hundred and prints what was found
"""

import gzip
import io
import json
import lzma
import os
import pickle
import random
import re
import shutil
import struct
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NO_VOCAB, SMALL, killed_in_step, launch, launch_distillation, log, weights

import glue_eval
import masking
import train as program

LONG = bool(os.environ.get("LONG"))
ROUNDS = 4 if LONG else 1  # random truncations, flips and replacements of each file
QUICK = "--tasks RTE --epochs 1 --seeds 0 --batch-size 8 --max-length 16 --dtype float32 --device cpu".split()
COUNTS = {"inputs tried": 0, "refused in one sentence": 0, "harmless": 0}


class Hostile:
    """A pickle that runs a command when it is loaded."""

    def __reduce__(self):
        return (os.system, ("echo hostile > hostile-code-ran",))


def damages(path: Path, rng: random.Random, rounds: int = ROUNDS):
    """(name, bytes, or None for a folder in its place) of a file's damaged forms."""
    content = path.read_bytes()
    yield "empty", b""
    yield "a folder", None
    yield "random bytes", rng.randbytes(300)
    for _ in range(rounds):
        cut = rng.randrange(len(content))
        yield f"cut at {cut} of {len(content)}", content[:cut]
        place = rng.randrange(len(content))
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        yield f"bit flipped at {place}", bytes(changed)
        start = rng.randrange(len(content))
        noise = rng.randbytes(min(64, len(content) - start))
        yield f"random from {start}", content[:start] + noise + content[start + 64 :]


def place(path: Path, content):
    """Put damaged content in a file's place."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)


def judge(path, name, call, named, unchanged=None):
    """One damaged file: a sentence that names the file or its folder; or success, and then `unchanged`()."""
    what = f"{path.name}, {name}"
    COUNTS["inputs tried"] += 1
    try:
        with redirect_stdout(io.TextIOWrapper(io.BytesIO())), redirect_stderr(io.StringIO()):
            call()
    except SystemExit as stop:
        COUNTS["refused in one sentence"] += 1
        sentence = str(stop.code)
        assert stop.code and "\n" not in sentence.strip(), f"{what}: one sentence was expected: {sentence!r}"
        assert any(str(word) in sentence for word in named), f"{what}: {sentence!r} names none of {named}"
    except BaseException as error:
        raise AssertionError(f"{what}: {type(error).__name__} reaches the user: {error}") from error
    else:
        COUNTS["harmless"] += 1
        assert unchanged is None or unchanged(), f"{what}: was read as if it were whole, with another result"
    assert not Path("hostile-code-ran").exists(), f"{what}: code from a file was run"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture(scope="module", autouse=True)
def figures():
    yield
    print("\n" + ", ".join(f"{name}: {count}" for name, count in COUNTS.items()))


@pytest.fixture(scope="module")
def finished(corpus, cache, tmp_path_factory):
    """The folder of a finished run of 8 steps."""
    out = tmp_path_factory.mktemp("finished") / "run"
    launch("--corpus", corpus, "--cache", cache, "--out", out, *SMALL)
    return out


@pytest.fixture(scope="module")
def glue_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glue")
    rng = random.Random(0)
    (folder / "RTE").mkdir()
    for stem, rows in {"train": 32, "dev": 16}.items():
        lines = ["index\tsentence1\tsentence2\tlabel"]
        for i in range(rows):
            text = "\t".join(" ".join(rng.choices(("barn", "cost", "dump", "fist"), k=3)) for _ in range(2))
            lines.append(f"{i}\t{text}\t{rng.choice(glue_eval.TWO_WAY)}")
        (folder / "RTE" / f"{stem}.tsv").write_text("\n".join(lines) + "\n")
    return folder


# ---- text and vocabulary ----


def prepare(*argv):
    """prepare_text, and what it raises as the program says it."""
    o = program.make_parser("test").parse_args(list(map(str, argv)))
    try:
        return program.prepare_text(o)
    except Exception as error:
        raise SystemExit(program.explain(error)) from error


@pytest.mark.parametrize("suffix", [".txt", ".gz", ".xz"])
def test_a_damaged_corpus(suffix, corpus, tmp_path):
    rng = random.Random(suffix)
    path = tmp_path / f"corpus{suffix}"
    pack = {".txt": bytes, ".gz": lambda data: gzip.compress(data, mtime=0), ".xz": lzma.compress}[suffix]
    path.write_bytes(pack(corpus.read_bytes()[:20_000]))
    argv = ["--cache", tmp_path / "cache", *SMALL, "--corpus", path]
    whole = prepare(*argv)

    def unchanged():  # altered text is a text too
        return suffix == ".txt" or np.array_equal(prepare(*argv)[1], whole[1])

    for name, content in list(damages(path, rng, 4 * ROUNDS)):
        place(path, content)
        judge(path, name, lambda: prepare(*argv), [path.name], unchanged)


def test_a_damaged_vocabulary_file(finished, corpus, tmp_path):
    path = tmp_path / "words.txt"
    shutil.copy(finished / "vocab.txt", path)
    content = path.read_bytes()
    forms = list(damages(path, random.Random(1), 2 * ROUNDS))
    forms += [("a piece twice", content + b"a\n"), ("no [MASK]", content.replace(b"[MASK]", b"[MA]"))]
    forms += [("a blank line", content + b"\n\nzebra\n"), ("Latin-1", content + "é".encode("latin-1"))]
    for name, form in forms:
        place(path, form)
        argv = ["--corpus", corpus, "--vocab", path, *NO_VOCAB, "--cache", tmp_path / "cache"]
        judge(path, name, lambda argv=argv: prepare(*argv), [path.name])


# ---- a model folder: config, tokenizer, weights ----


def hostile_archive(content: bytes) -> bytes:
    """A file of torch.save whose pickle runs a command."""
    source = zipfile.ZipFile(io.BytesIO(content))
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            hostile = name.endswith("data.pkl")
            archive.writestr(name, pickle.dumps(Hostile(), 2) if hostile else source.read(name))
    return target.getvalue()


def saved(value) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def model_forms(path: Path, rng):
    """Damaged forms of one file of a model folder."""
    yield from damages(path, rng)
    content = path.read_bytes()
    if path.suffix == ".json":
        for text in ("null", "[]", "3", '"text"', "{}", '{"a": NaN}'):
            yield text, text.encode()
        whole = json.loads(content)
        for key in whole if LONG else list(whole)[::3]:
            without = {name: value for name, value in whole.items() if name != key}
            yield f"without {key}", json.dumps(without).encode()
    if path.name == "pytorch_model.bin":
        tensors = torch.load(path, weights_only=True)
        first = next(iter(tensors))
        yield "hostile pickle", pickle.dumps(Hostile())
        yield "hostile archive", hostile_archive(content)
        yield "a list", saved([1, 2, 3])
        yield "nothing", saved({})
        yield "one tensor missing", saved({name: tensors[name] for name in tensors if name != first})
        yield "another shape", saved({**tensors, first: torch.zeros(3)})
    if path.name == "model.safetensors":
        length = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:length])
        name = next(name for name in header if name != "__metadata__")
        size = len(content) - length
        wrong = [{"data_offsets": [size, 2 * size]}, {"shape": [7, 7]}, {"dtype": "F7"}, {"dtype": "I64"}]
        for change in wrong:
            text = json.dumps({**header, name: header[name] | change}).encode()
            yield str(change), struct.pack("<Q", len(text)) + text + content[length:]
        yield "a header of 2^63 bytes", struct.pack("<Q", 2**63 - 1) + b"{}"


MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("file", [*MODEL_FILES, "model.safetensors", "pytorch_model.bin"])
def test_a_damaged_model_folder(file, finished, corpus, cache, glue_data, tmp_path):
    """Read as a checkpoint to continue, as a teacher, for GLUE, and for the picture of a sentence."""
    rng = random.Random(file)
    folder = tmp_path / "model"
    shutil.copytree(finished, folder)
    if file == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    if file == "pytorch_model.bin":
        torch.save(weights(folder), folder / file)
        (folder / "model.safetensors").unlink()
    here = ["--corpus", corpus, "--cache", cache, *NO_VOCAB, "--steps", 1]

    def uses(out):
        glue = ["--model", folder, "--data-dir", glue_data, *QUICK, "--out", out]
        return [
            lambda: launch(*here, "--from", folder, "--out", out),
            lambda: launch_distillation(*here, "--teacher", folder, "--out", out),
            lambda: glue_eval.main(list(map(str, glue))),
            lambda: masking.main(["--model", str(folder), "--text", "barn cost dump"]),
        ]

    for i, (name, form) in enumerate(list(model_forms(folder / file, rng))):
        place(folder / file, form)
        use = uses(tmp_path / f"out{i}")[rng.randrange(4)]
        judge(
            folder / file, name, use, [folder, file, "hidden_size", "diverged", "NaN", "not finite"]
        )  # no checksums


def test_a_tokenizer_larger_than_its_model_is_named(finished, corpus, cache, glue_data, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(finished, folder)
    (folder / "tokenizer.json").unlink()
    with open(folder / "vocab.txt", "a") as file:
        file.write("zebra\nquagga\n")
    here = ["--corpus", corpus, "--cache", cache, *NO_VOCAB, "--out", tmp_path / "out"]
    glue = ["--model", str(folder), "--data-dir", str(glue_data), *QUICK, "--out", str(tmp_path / "glue")]
    for use in (
        lambda: launch(*here, "--from", folder),
        lambda: launch_distillation(*here, "--teacher", folder),
        lambda: glue_eval.main(glue),
        lambda: masking.main(["--model", str(folder), "--text", "zebra"]),
    ):
        with pytest.raises(SystemExit, match=re.escape(str(folder))):
            use()


# ---- checkpoints ----


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_checkpoints(finished, corpus, cache, tmp_path):
    def result(folder):
        return (folder / "model.safetensors").read_bytes(), log(folder)

    base = tmp_path / "base"
    with killed_in_step(7):  # it has checkpoints of steps 0 and 4
        launch("--corpus", corpus, "--cache", cache, "--out", base, *SMALL)
    path = base / "checkpoint.pt"
    forms = list(damages(path, random.Random(2)))
    forms += [("hostile pickle", pickle.dumps(Hostile()))]
    forms += [("hostile archive", hostile_archive(path.read_bytes()))]
    for i, (name, form) in enumerate(forms):
        out = tmp_path / f"out{i}"
        shutil.copytree(base, out)
        place(out / "checkpoint.pt", form)
        resume = ["--resume", "--out", out, "--cache", cache]
        judge(path, name, lambda: launch(*resume), [out], lambda: result(out) == result(finished))  # noqa: B023


def test_a_checkpoint_cannot_send_a_run_to_another_folder(finished, cache, tmp_path, monkeypatch):
    shutil.copytree(finished, "runs/train")  # where a run without --out is
    before = {path.name: path.stat().st_mtime_ns for path in finished.iterdir()}
    launch("--resume", "--cache", cache)
    after = {path.name: path.stat().st_mtime_ns for path in finished.iterdir()}
    assert before == after, "a copy of a run must not write to the folder it was copied from"


# ---- GLUE ----


def test_damaged_files_of_a_glue_task(finished, glue_data, tmp_path):
    rng = random.Random(5)
    for file in ("train.tsv", "dev.tsv"):
        shutil.copytree(glue_data, tmp_path / file)
        path = tmp_path / file / "RTE" / file
        content = path.read_bytes()
        forms = [*damages(path, rng, 2 * ROUNDS), ("no header", content.partition(b"\n")[2])]
        forms += [("only a header", content.partition(b"\n")[0]), ("one column", b"a\nb\nc\n")]
        forms += [("HTML", b"<!DOCTYPE html>\n<html>\n<body>Not found"), ("NUL", bytes(5000))]
        forms += [("Latin-1", content + "9\té\té\tentailment\n".encode("latin-1"))]
        forms += [("a label ../..", content.replace(b"not_entailment", b"../../x", 1))]
        for i, (name, form) in enumerate(forms):
            place(path, form)
            argv = ["--model", finished, "--data-dir", tmp_path / file, *QUICK]
            argv = list(map(str, [*argv, "--out", tmp_path / f"out-{file}-{i}"]))
            judge(path, name, lambda argv=argv: glue_eval.main(argv), [path.name, path.parent.parent])


def test_a_damaged_glue_json(finished, glue_data, tmp_path):
    out = tmp_path / "out"
    argv = ["--model", finished, "--data-dir", glue_data, *QUICK, "--out", out]
    argv = list(map(str, argv))
    glue_eval.main(argv)
    path = out / "glue.json"
    for name, form in [
        *damages(path, random.Random(6), 0),
        ("cut", path.read_bytes()[:-20]),
        ("null", b"null"),
    ]:
        place(path, form)
        judge(path, name, lambda: glue_eval.main(argv), [path], lambda: False)


def test_damaged_downloads(tmp_path, monkeypatch):
    files = io.BytesIO()
    head = "index\tsentence1\tsentence2"
    with zipfile.ZipFile(files, "w", zipfile.ZIP_DEFLATED) as archive:
        for stem in ("train", "dev"):
            archive.writestr(f"RTE/{stem}.tsv", f"{head}\tlabel\n0\tA\tB\tentailment\n")
        archive.writestr("RTE/test.tsv", f"{head}\n0\tA\tB\n")
    (tmp_path / "RTE.zip").write_bytes(files.getvalue())
    forms = list(damages(tmp_path / "RTE.zip", random.Random(7), 3 * ROUNDS))
    forms += [("HTML", b"<!DOCTYPE html>\n<html>"), ("hostile pickle", pickle.dumps(Hostile()))]
    for name, form in forms:
        monkeypatch.setattr(glue_eval, "fetch", lambda url, form=form: form or b"")
        argv = ["--download", "--data-dir", str(tmp_path / "data"), "--tasks", "RTE"]
        judge(tmp_path / "RTE.zip", name, lambda argv=argv: glue_eval.main(argv), ["RTE"])
        shutil.rmtree(tmp_path / "data", ignore_errors=True)


# ---- hostile names ----


NAMES = ["-rf", "ü 漢字 🙂", "$(touch hostile-code-ran)", "a'\"b", "x" * 200, "tab\there"]


@pytest.mark.parametrize("name", NAMES if LONG else NAMES[1:4])
def test_hostile_names_of_folders_and_files(name, corpus, tmp_path):
    (tmp_path / name).mkdir()
    text = tmp_path / name / f"{name}.txt"
    text.write_bytes(corpus.read_bytes())
    out = tmp_path / name / "out"
    launch(f"--corpus={text}", f"--cache={tmp_path / name / 'cache'}", f"--out={out}", *SMALL, "--steps", 1)
    assert json.loads((out / "args.json").read_text())["options"]["corpus"] == [str(text)]
    assert not Path("hostile-code-ran").exists()
