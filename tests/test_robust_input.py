"""Every file that the programs read, damaged in many ways: one sentence, or a result that stays the same.

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
import sys
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from test_train_run import log, weights

import distill
import glue_eval
import masking
import train as program

DISTIL = (distill.Options, distill.Distillation)
LONG = bool(os.environ.get("LONG"))
ROUNDS = 2 if LONG else 1  # random truncations, flips and replacements of each file
NO_VOCAB = SMALL[2:]
QUICK = "--tasks RTE --epochs 1 --seeds 0 --batch-size 8 --max-length 16 --dtype float32 --device cpu".split()
COUNTS = {"inputs tried": 0, "refused in one sentence": 0, "harmless or mended": 0}


class Hostile:
    """A pickle that runs a command when it is loaded."""

    def __reduce__(self):
        return (os.system, ("echo hostile > hostile-code-ran",))


# ---- a watch over what a program touches ----

WATCHED = {"on": False, "allowed": (), "seen": []}


def watch(event, args):
    """Notes every program started, and every file changed outside the folders that a run may change."""
    if not WATCHED["on"]:
        return
    if event in ("os.system", "os.exec", "os.posix_spawn", "os.spawn"):
        WATCHED["seen"].append((event, args))
    if event == "subprocess.Popen" and args[0] != "git" and list(args[1])[:1] != ["git"]:
        WATCHED["seen"].append((event, args))
    changed = []
    if event == "open" and isinstance(args[0], (str, bytes)):
        writes = isinstance(args[1], str) and set(args[1]) & set("wax+")
        writes = writes or (args[1] is None and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        changed = [args[0]] if writes else []
    elif event in ("os.remove", "os.rmdir", "os.mkdir") and args[-1] in (-1, None):  # else within a rmtree
        changed = [args[0]]
    elif event == "os.rename":
        changed = list(args[:2])
    elif event == "shutil.rmtree":
        changed = [args[0]]
    for path in changed:
        path = os.path.realpath(os.fsdecode(path))
        if path != os.devnull and not path.startswith(WATCHED["allowed"]):
            WATCHED["seen"].append((event, path))


sys.addaudithook(watch)


def attempt(call, allowed) -> str | None:
    """None if the program went well, else its sentence; anything else is a failure of the test."""
    WATCHED.update(on=True, allowed=tuple(os.path.realpath(path) for path in allowed), seen=[])
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            call()
        sentence = None
    except SystemExit as stop:
        sentence = str(stop.code)
        assert stop.code and "\n" not in sentence.strip(), f"one sentence was expected, not {sentence!r}"
    finally:
        WATCHED["on"] = False
    assert not WATCHED["seen"], f"touched or started what it must not: {WATCHED['seen']}"
    assert not Path("hostile-code-ran").exists(), "code from a file was run"
    return sentence


# ---- damage ----


def damages(path: Path, rng: random.Random, rounds: int):
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
        yield (
            f"random from {start}",
            content[:start] + rng.randbytes(min(64, len(content) - start)) + content[start + 64 :],
        )


def json_damages(content: dict, rng: random.Random, rounds: int):
    """(name, text) of valid JSON that is not what was written; numbers grow huge, types change, keys go."""
    for text in ("null", "[]", "{}", "3", '"text"', "[[1, 2]]", "[" * 100_000, "1" * 5000, '{"a": NaN}'):
        yield text[:20], text
    values = [
        None,
        -1,
        0,
        10**30,
        1e300,
        float("nan"),
        "text",
        [],
        {},
        True,
        "../../../etc/passwd",
        2**24 - 1,
    ]

    def places(value, path=()):
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            yield (*path, key)
            yield from places(value[key], (*path, key))

    every = list(places(content))
    for _ in range(3 * rounds):
        path, new = rng.choice(every), rng.choice(values)
        copy = json.loads(json.dumps(content))
        parent = copy
        for key in path[:-1]:
            parent = parent[key]
        if rng.random() < 0.25:
            del parent[path[-1]]
            yield f"without {path}", json.dumps(copy)
        else:
            parent[path[-1]] = new
            yield f"{path} = {new!r}", json.dumps(copy)


def place(path: Path, content):
    """Put damaged content in a file's place."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def judge(path, name, call, allowed, named, unchanged=None):
    """One damaged file: a sentence that names the file or its folder; or success, and then `unchanged`()."""
    what = f"{path.name}, {name}"
    try:
        sentence = attempt(call, allowed)
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from None
    except BaseException as error:
        raise AssertionError(f"{what}: {type(error).__name__} reaches the user: {error}") from error
    COUNTS["inputs tried"] += 1
    if sentence is None:
        COUNTS["harmless or mended"] += 1
        if unchanged:
            assert unchanged(), f"{what}: was read as if nothing had happened, and the result is another"
    else:
        COUNTS["refused in one sentence"] += 1
        assert any(str(word) in sentence for word in named), f"{what}: {sentence!r} names none of {named}"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture(scope="module", autouse=True)
def figures():
    yield
    print("\n" + ", ".join(f"{name}: {count}" for name, count in COUNTS.items()))


def launch(argv, kind=program.Options, run=program.Pretraining):
    return program.launch(kind, run, "test", list(map(str, argv)))


def result(folder):
    """What a training run ended with."""
    return {name: tensor.numpy().tobytes() for name, tensor in weights(folder).items()}, log(folder)


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """A folder with two finished runs of 8 steps, `run` and `distilled`, and their cache."""
    folder = tmp_path_factory.mktemp("finished")
    here = ["--corpus", corpus, "--cache", folder / "cache"]
    launch([*here, "--out", folder / "run", *SMALL])
    table = ["--teacher", folder / "run", "--masking", "teacher", *NO_VOCAB]
    launch([*here, "--out", folder / "distilled", *table], *DISTIL)
    return folder


@pytest.fixture(scope="module")
def glue_data(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("glue"), random.Random(0)
    (folder / "RTE").mkdir()
    for stem, rows in {"train": 32, "dev": 16}.items():
        lines = ["index\tsentence1\tsentence2\tlabel"]
        for i in range(rows):
            text = "\t".join(" ".join(rng.choices(("barn", "cost", "dump", "fist"), k=3)) for _ in range(2))
            lines.append(f"{i}\t{text}\t{rng.choice(glue_eval.TWO_WAY)}")
        (folder / "RTE" / f"{stem}.tsv").write_text("\n".join(lines) + "\n")
    return folder


# ---- text and vocabulary ----


@pytest.mark.parametrize("suffix", [".txt", ".gz", ".xz"])
def test_a_damaged_corpus(suffix, corpus, tmp_path):
    rng, path = random.Random(suffix), tmp_path / f"corpus{suffix}"
    pack = {".txt": bytes, ".gz": lambda data: gzip.compress(data, mtime=0), ".xz": lzma.compress}[suffix]
    text = corpus.read_bytes()[:20_000]
    path.write_bytes(pack(text))
    argv = ["--cache", tmp_path / "cache", *SMALL, "--steps", 1, "--corpus"]
    launch([*argv, path, "--out", tmp_path / "whole"])
    for i, (name, content) in enumerate(list(damages(path, rng, 2 * ROUNDS))):
        place(path, content)
        out, altered = tmp_path / f"out{i}", suffix == ".txt"  # altered text is a text too
        judge(path, name, lambda out=out: launch([*argv, path, "--out", out]), [tmp_path], [path.name],
              lambda out=out, free=altered: free or result(out) == result(tmp_path / "whole"))  # fmt: skip


def test_a_damaged_vocabulary_file(finished, corpus, tmp_path):
    rng, path = random.Random(1), tmp_path / "words.txt"
    shutil.copy(finished / "run" / "vocab.txt", path)
    content = path.read_text()
    forms = list(damages(path, rng, 3 * ROUNDS))
    forms += [
        ("a piece twice", content + "a\n"),
        ("no [MASK]", content.replace("[MASK]", "[MA]")),
        ("NUL", content + "\0\n"),
    ]
    for i, (name, form) in enumerate(forms):
        place(path, form)
        argv = ["--corpus", corpus, "--vocab", path, *NO_VOCAB, "--steps", 1, "--cache", tmp_path / "cache"]
        judge(path, name, lambda a=[*argv, "--out", tmp_path / f"out{i}"]: launch(a), [tmp_path], [path.name])


# ---- a model folder: config, tokenizer, weights ----


def safetensors(header, data=b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def as_safetensors(tensors) -> tuple[dict, bytes]:
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.numpy().tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    return header, data


def hostile_archive(content: bytes) -> bytes:
    """A file of torch.save whose pickle runs a command."""
    source, target = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            archive.writestr(
                name, pickle.dumps(Hostile(), 2) if name.endswith("data.pkl") else source.read(name)
            )
    return target.getvalue()


def saved(value) -> bytes:
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def weight_forms(path: Path):
    """Weights that are whole files, and wrong."""
    tensors, content = torch.load(path, weights_only=True), path.read_bytes()
    first = next(iter(tensors))

    yield "hostile pickle", pickle.dumps(Hostile())
    yield "hostile archive", hostile_archive(content)
    yield "a list", saved([1, 2, 3])
    yield "names that are numbers", saved({1: torch.zeros(2)})
    yield "values that are text", saved({first: "text"})
    yield "nothing", saved({})
    yield "one tensor missing", saved({k: v for k, v in tensors.items() if k != first})
    yield "another shape", saved({**tensors, first: torch.zeros(3)})
    yield "NaN", saved({**tensors, first: tensors[first] * float("nan")})
    yield "a huge shape that holds nothing", saved({**tensors, first: torch.zeros(1).expand(2**40)})
    yield "a number for a classifier", saved({**tensors, "classifier.bias": torch.tensor(1.0)})


def tensor_forms(path: Path):
    """model.safetensors with wrong headers."""
    header, data = as_safetensors(torch.load(path, weights_only=True))
    name = next(iter(header))
    good = header[name]
    changes = {
        "offsets beyond the end": {"data_offsets": [len(data), 2 * len(data)]},
        "offsets below zero": {"data_offsets": [-8, 0]},
        "offsets reversed": {"data_offsets": good["data_offsets"][::-1]},
        "offsets that are huge": {"data_offsets": [0, 2**62]},
        "offsets that are text": {"data_offsets": ["a", "b"]},
        "a huge shape": {"shape": [2**40, 2**40]},
        "a negative shape": {"shape": [-5]},
        "an unknown type": {"dtype": "F7"},
    }
    for what, change in changes.items():
        yield what, safetensors({**header, name: {**good, **change}}, data)
    yield "a header of 2^63 bytes", struct.pack("<Q", 2**63 - 1) + b"{}"
    yield "a deep header", safetensors(b"[" * 100_000)
    yield "a header that is a list", safetensors([1, 2])
    yield "entries that are numbers", safetensors({name: 3})


def model_forms(folder: Path, file: str, rng):
    path = folder / file
    if file == "model.safetensors":
        path.write_bytes(
            safetensors(*as_safetensors(torch.load(folder / "pytorch_model.bin", weights_only=True)))
        )
        yield from tensor_forms(folder / "pytorch_model.bin")
    yield from damages(path, rng, 2 * ROUNDS)
    if file.endswith(".json"):
        yield from json_damages(json.loads(path.read_text()), rng, 6 * ROUNDS)
    if file == "pytorch_model.bin":
        yield from weight_forms(path)


MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "pytorch_model.bin")


@pytest.mark.parametrize("file", [*MODEL_FILES, "model.safetensors"])
def test_a_damaged_model_folder(file, finished, corpus, glue_data, tmp_path):
    """Read as a checkpoint to go on from, as a teacher, for GLUE, and for the picture of a sentence."""
    rng, folder = random.Random(file), tmp_path / "model"
    shutil.copytree(finished / "run", folder)
    if file == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    forms = list(model_forms(folder, file, rng))
    here = ["--corpus", corpus, "--cache", tmp_path / "cache", *NO_VOCAB, "--steps", 1]

    def uses(out):
        teacher = [*here, "--teacher", folder, "--out", out]
        return [
            lambda: launch([*here, "--from", folder, "--out", out]),
            lambda: launch(teacher, *DISTIL),
            lambda: glue_eval.main(
                ["--model", str(folder), "--data-dir", str(glue_data), *QUICK, "--out", str(out)]
            ),
            lambda: masking.main(["--model", str(folder), "--text", "barn cost dump"]),
        ]

    for i, (name, form) in enumerate(forms):
        place(folder / file, form)
        use = uses(tmp_path / f"out{i}")[i % 4 if not LONG else rng.randrange(4)]
        judge(
            folder / file, name, use, [tmp_path / f"out{i}", tmp_path / "cache"], [folder, file, "diverged"]
        )


def test_a_tokenizer_larger_than_its_model_is_named(finished, corpus, glue_data, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(finished / "run", folder)
    (folder / "tokenizer.json").unlink()
    with open(folder / "vocab.txt", "a") as file:
        file.write("barn cost\nzebra\nquagga\n")
    here = ["--corpus", corpus, "--cache", tmp_path / "cache", *NO_VOCAB, "--out", tmp_path / "out"]
    glue = ["--model", str(folder), "--data-dir", str(glue_data), *QUICK, "--out", str(tmp_path / "glue")]
    for use in (
        lambda: launch([*here, "--from", folder]),
        lambda: launch([*here, "--teacher", folder], *DISTIL),
        lambda: glue_eval.main(glue),
        lambda: masking.main(["--model", str(folder), "--text", "zebra"]),
    ):
        sentence = attempt(use, [tmp_path])
        assert sentence and str(folder) in sentence, f"{sentence!r} should name the folder"


# ---- checkpoints ----


def checkpoint_forms(path: Path):
    """Checkpoints that are whole files, and wrong."""
    content, state = path.read_bytes(), torch.load(path, weights_only=True)

    yield "hostile pickle", pickle.dumps(Hostile())
    yield "hostile archive", hostile_archive(content)
    yield "a list", saved([1, 2])
    for key in state:
        yield f"without {key}", saved({k: v for k, v in state.items() if k != key})
        yield f"{key} is text", saved({**state, key: "text"})
        yield f"{key} is nothing", saved({**state, key: None})
    for name in state["options"]:
        yield (
            f"option {name} of another type",
            saved({**state, "options": {**state["options"], name: {"a": 1}}}),
        )
    for name, value in {"size": "huge", "masking": "magic", "corpus": [3], "steps": -1, "lr": float("nan"),
                        "device": "warp", "corpus ": []}.items():  # fmt: skip
        yield f"option {name} = {value}", saved({**state, "options": {**state["options"], name: value}})
    weights_, optimizer = state["weights"], state["optimizer"]
    first, moments = next(iter(weights_)), optimizer["state"]
    yield "weights of another shape", saved({**state, "weights": {**weights_, first: torch.zeros(2)}})
    yield "no moments", saved({**state, "optimizer": {**optimizer, "state": {}}})
    wrong = {**moments[0], "exp_avg": torch.zeros(3)}
    yield (
        "moments of another shape",
        saved({**state, "optimizer": {**optimizer, "state": {**moments, 0: wrong}}}),
    )
    yield "a log without its columns", saved({**state, "log": [{"step": 4}]})
    yield "a log of text", saved({**state, "log": ["text"]})
    yield "counts of another length", saved({**state, "counts": torch.zeros(3)})
    yield "a step that is far beyond the end", saved({**state, "step": 10**9})
    yield "a step below zero", saved({**state, "step": -5})


def test_damaged_checkpoints(finished, corpus, tmp_path):
    rng, whole = random.Random(2), result(finished / "run")
    shutil.copytree(finished / "run", tmp_path / "base")
    path = tmp_path / "base" / "checkpoint.pt"
    forms = [*damages(path, rng, 3 * ROUNDS), *checkpoint_forms(path)]
    if not LONG:
        forms = forms[:9] + rng.sample(forms[9:], 25)
    for i, (name, form) in enumerate(forms):
        out = tmp_path / f"out{i}"
        shutil.copytree(tmp_path / "base", out)
        place(out / "checkpoint.pt", form)
        resume = ["--resume", "--out", out, "--cache", finished / "cache"]
        judge(out / "checkpoint.pt", name, lambda a=resume: launch(a), [out, finished / "cache"], [out, "--"],
              lambda out=out: result(out) == whole)  # fmt: skip
        shutil.rmtree(out)


def test_a_checkpoint_cannot_send_a_run_to_another_folder(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "out")
    state = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)
    state["options"]["out"] = str(tmp_path / "victim")
    torch.save(state, tmp_path / "out" / "checkpoint.pt")
    argv = ["--resume", "--out", tmp_path / "out", "--cache", finished / "cache"]
    attempt(lambda: launch(argv), [tmp_path / "out", finished / "cache"])
    assert not (tmp_path / "victim").exists()


def test_files_planted_as_links_are_not_written_through(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "out")
    (tmp_path / "victim").write_text("precious")
    for name in ("checkpoint.new.tmp", "pytorch_model.bin.tmp", "config.json", "log.csv", "args.json.tmp"):
        (tmp_path / "out" / name).unlink(missing_ok=True)
        (tmp_path / "out" / name).symlink_to(tmp_path / "victim")
    launch(["--resume", "--out", tmp_path / "out", "--cache", finished / "cache"])
    assert (tmp_path / "victim").read_text() == "precious"


# ---- caches ----


def test_a_damaged_cache_of_tokenised_text_is_made_again(finished, corpus, tmp_path):
    rng, whole = random.Random(3), result(finished / "run")
    shutil.copytree(finished / "cache", tmp_path / "cache")
    folder = tmp_path / "cache" / torch.load(finished / "run" / "checkpoint.pt", weights_only=True)["key"]
    for file in sorted(folder.iterdir()):
        forms = list(damages(file, rng, ROUNDS))
        if file.suffix == ".ids":
            ids = np.fromfile(file, np.int32)
            forms += [("odd length", file.read_bytes() + b"x"), ("ids out of range", (ids + 10**6).tobytes())]
            forms += [("negative ids", (-ids).tobytes()), ("twice", file.read_bytes() * 2)]
        if file.name == "facts.json":
            forms += list(json_damages(json.loads(file.read_text()), rng, 2 * ROUNDS))
        content = file.read_bytes()
        for i, (name, form) in enumerate(forms if LONG else rng.sample(forms, 2)):
            place(file, form)
            out = tmp_path / f"{file.name}-{i}"
            argv = ["--corpus", corpus, "--cache", tmp_path / "cache", "--out", out, *SMALL]
            judge(
                file,
                name,
                lambda a=argv: launch(a),
                [tmp_path],
                [folder],
                lambda out=out: result(out) == whole,
            )
            shutil.rmtree(out)
            place(file, content)


def test_a_damaged_table_of_entropies_is_made_again(finished, corpus, tmp_path):
    rng, whole = random.Random(4), result(finished / "distilled")
    shutil.copytree(finished / "cache", tmp_path / "cache")
    (table,) = (tmp_path / "cache").glob("entropy-*.f16")
    content = table.read_bytes()
    forms = [*damages(table, rng, 4 * ROUNDS), ("twice", content * 2), ("all zero", bytes(len(content)))]
    forms += [("NaN", content[:100] + b"\xff" * (len(content) - 100)), ("one byte more", content + b"x")]
    for i, (name, form) in enumerate(forms if LONG else rng.sample(forms, 5)):
        place(table, form)
        out = tmp_path / f"out{i}"
        argv = ["--corpus", corpus, "--cache", tmp_path / "cache", "--out", out, *NO_VOCAB]
        argv += ["--teacher", finished / "run", "--masking", "teacher"]
        judge(table, name, lambda a=argv: launch(a, *DISTIL), [tmp_path], [table.name],
              lambda out=out: result(out) == whole)  # fmt: skip
        shutil.rmtree(out)


# ---- GLUE ----


def glue_record(folder):
    return re.sub(r'"seconds": [^,}]*', "", json.dumps(json.loads((folder / "glue.json").read_text())))


def test_damaged_files_of_a_glue_task(finished, glue_data, tmp_path):
    rng = random.Random(5)
    for file in ("train.tsv", "dev.tsv"):
        shutil.copytree(glue_data, tmp_path / file)
        path = tmp_path / file / "RTE" / file
        text = path.read_text()
        forms = [*damages(path, rng, 3 * ROUNDS), ("no header", text.partition("\n")[2])]
        forms += [
            ("only a header", text.partition("\n")[0]),
            ("one column", "a\nb\nc\n"),
            ("NUL", "\0" * 5000),
        ]
        forms += [("a long line", "x" * 10**6), ("label ../..", text.replace("not_entailment", "../../x", 1))]
        for i, (name, form) in enumerate(forms):
            place(path, form)
            out = tmp_path / f"out-{file}-{i}"
            argv = ["--model", finished / "run", "--data-dir", tmp_path / file, *QUICK, "--out", out]
            judge(
                path,
                name,
                lambda a=argv: glue_eval.main(list(map(str, a))),
                [out],
                [path.name, path.parent.parent],
            )


def test_a_damaged_glue_json(finished, glue_data, tmp_path):
    rng, out = random.Random(6), tmp_path / "out"
    argv = ["--model", finished / "run", "--data-dir", glue_data, *QUICK, "--out", out]
    attempt(lambda: glue_eval.main(list(map(str, argv))), [out])
    shutil.copytree(out, tmp_path / "other")
    path, whole = out / "glue.json", glue_record(out)
    content = path.read_bytes()
    forms = [*damages(path, rng, 5 * ROUNDS), *json_damages(json.loads(content), rng, 10 * ROUNDS)]
    seconds = re.compile(
        rb'"seconds": [0-9.]+'
    )  # a time may change from run to run, but not into something else
    forms += [
        (f"seconds {x}", seconds.sub(b'"seconds": ' + x, content)) for x in (b'"x"', b"null", b"NaN", b"[]")
    ]
    for name, form in forms:
        place(path, form)
        judge(path, name, lambda: glue_eval.main(list(map(str, argv))), [out], [path],
              lambda: glue_record(out) == whole)  # fmt: skip
        place(path, form)
        compare = ["--compare", f"A={out}", f"B={tmp_path / 'other'}"]
        judge(
            path,
            f"{name}, compared",
            lambda c=compare: glue_eval.main(c),
            [],
            [path, "the same checkpoint", "A="],
        )


def test_damaged_downloads(tmp_path, monkeypatch):
    """An archive or a table that arrives damaged is named; no file appears outside of the task's folder."""
    rng, files = random.Random(7), io.BytesIO()
    head = "index\tsentence1\tsentence2"
    with zipfile.ZipFile(files, "w", zipfile.ZIP_DEFLATED) as archive:
        for stem in ("train", "dev"):
            archive.writestr(f"RTE/{stem}.tsv", f"{head}\tlabel\n0\tA\tB\tentailment\n" * 1)
        archive.writestr("RTE/test.tsv", f"{head}\n0\tA\tB\n")
    (tmp_path / "RTE.zip").write_bytes(files.getvalue())
    forms = list(damages(tmp_path / "RTE.zip", rng, 5 * ROUNDS))
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for stem in ("train", "dev", "test"):
            archive.writestr(f"RTE/{stem}.tsv", f"{head}\n0\tA\tB\n")
            archive.getinfo(f"RTE/{stem}.tsv").file_size = 2**31  # what it says of itself
    forms += [("a bomb", bomb.getvalue()), ("hostile pickle", pickle.dumps(Hostile()))]
    for name, form in forms:
        monkeypatch.setattr(glue_eval, "fetch", lambda url, form=form: form or b"")
        data = tmp_path / "data"
        argv = ["--download", "--data-dir", str(data), "--tasks", "RTE"]
        judge(tmp_path / "RTE.zip", name, lambda a=argv: glue_eval.main(a), [data], ["RTE"])
        assert not list(tmp_path.rglob("*.tmp")), "no half-written file"
        shutil.rmtree(data, ignore_errors=True)


# ---- hostile names ----


@pytest.mark.parametrize(
    "name", ["a b", "-rf", "ü 漢字 🙂", "$(touch hostile-code-ran)", "a'\"b", "x" * 200, "tab\there"]
)
def test_hostile_names_of_folders_and_files(name, corpus, tmp_path):
    (tmp_path / name).mkdir()
    text = tmp_path / name / f"{name}.txt"
    text.write_bytes(corpus.read_bytes())
    out = tmp_path / name / "out"
    argv = [f"--corpus={text}", f"--cache={tmp_path / name / 'cache'}", f"--out={out}", *SMALL, "--steps", 1]
    assert attempt(lambda: launch(argv), [tmp_path / name]) is None
    assert json.loads((out / "args.json").read_text())["options"]["corpus"] == [str(text)]
