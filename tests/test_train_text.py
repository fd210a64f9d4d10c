"""From text to token ids: files, documents and their split, vocabularies, the cache, what is no text."""

import bz2
import gzip
import importlib.util
import io
import itertools
import json
import lzma
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import PROJECT, launch, launch_distillation

import train
from model import SPECIAL_TOKENS, load_tokenizer, save_tokenizer

PAIRS = [(a, b) for a in ("ann", "bob", "cyd", "dan", "eva") for b in "abcdefghijklmnopqrst"]
DOCUMENTS = [
    [f"{a} {b} {a} {verb} number {i}{a}" for verb in ("sings", "sleeps", "walks")]
    for i, (a, b) in enumerate(PAIRS)
]
TEXT = "\n\n".join("\n".join(document) for document in DOCUMENTS)


def prepare(tmp_path, text, *options):
    """prepare_text of a text -> (tokenizer, training ids, held-out ids, name)"""
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    argv = ["--corpus", path, "--cache", tmp_path / "cache", "--vocab-size", 200, "--seq-len", 8, *options]
    return train.prepare_text(train.make_parser("test").parse_args(list(map(str, argv))))


def import_file(path):
    """A source file as a module of its own."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def text_of(ids, tokenizer):
    return tokenizer.decode(ids.tolist(), skip_special_tokens=False)


def as_written(paths, tokenizer):
    """The ids of every paragraph in order, and [SEP] where a document ends, by the plainest reading."""
    ids = []
    for path in paths:
        for document in path.read_text(encoding="utf-8").split("\n\n"):
            for paragraph in filter(None, map(str.strip, document.split("\n"))):
                ids += tokenizer.encode(paragraph, add_special_tokens=False).ids
            ids.append(tokenizer.token_to_id("[SEP]"))
    return ids


# ---- nothing is lost ----

RNG = random.Random(0)
REPETITIVE = {
    "sums": [
        f"{(a := RNG.randint(0, 99))} plus {(b := RNG.randint(0, 99))} is {a + b} ." for _ in range(600)
    ],
    "a log": [f"12:{RNG.randint(0, 59):02} worker {RNG.randint(1, 9)} took 5 ms" for _ in range(600)],
    "molecules": RNG.choices(["C1CCCCC1", "c1ccccc1", "C2CCCCC2", "CC(=O)O"], k=600),
    "code": RNG.choices(["else:", "return None", "}", "x = 1", "    x = 1", "for i in range(9):"], k=600),
    "one line": ["the same line, which is longer than fifty characters, again and again"] * 600,
}


@pytest.mark.parametrize("every", [7, 10_000])
@pytest.mark.parametrize("what", REPETITIVE)
def test_the_training_text_stays_as_it_is(what, every, tmp_path):
    """Neither repeats nor lines that differ in digits, case or spaces are lost: both streams are the text."""
    lines = [line + "\n" * (i % every == every - 1) for i, line in enumerate(REPETITIVE[what])]
    try:
        tokenizer, learn, held, _ = prepare(tmp_path, "\n".join(lines))
    except ValueError as error:
        assert what == "one line" and "0 held out that are not among them" in str(error)
        return
    whole = Counter(as_written([tmp_path / "text.txt"], tokenizer))
    streams = Counter(learn.tolist()) + Counter(held.tolist())
    assert streams == whole, "no token is missing, none is there twice"
    assert len(learn) > 0.94 * whole.total()


def test_the_training_stream_is_in_the_order_of_the_text(tmp_path):
    tokenizer, learn, held, _ = prepare(tmp_path, TEXT.replace("\n\n", "\n"))
    whole = as_written([tmp_path / "text.txt"], tokenizer)
    assert [*learn, *held] == whole, "one document: its end is held out, and nothing moves"


def test_sep_stands_where_a_document_ends_and_nowhere_else(tmp_path):
    """An empty line, or several, and the end of a file end one; a thousand paragraphs do not."""
    long = "\n".join(f"line number {i}" for i in range(2500))
    texts = [f"\n\n{long}\n \n\t\n\n{long}\n\n\nthe last", "a new file\nof two lines\n", f"{long}\n\n"]
    paths = []
    for i, text in enumerate(texts):
        paths.append(tmp_path / f"{i}.txt")
        paths[-1].write_text(text)
    exact = tmp_path / "exact.txt"
    exact.write_text("\n".join(["in line"] * 1000) + "\n\nfile\n")  # it ends where a part of it does
    tokenizer = train.learn_vocabulary(paths, 200)
    train.tokenise([*paths, exact], tokenizer, tmp_path)
    learn, held = (np.fromfile(tmp_path / f"{name}.ids", np.int32) for name in ("train", "held_out"))
    text = text_of(np.concatenate((learn, held)), tokenizer)
    ends = [part.strip().split()[-2:] for part in text.split("[SEP]")[:-1]]
    last = ["number", "2499"]
    assert len(ends) == 7 and sorted(map(str, ends)) == sorted(
        map(str, [last, last, ["the", "last"], ["two", "lines"], last, ["in", "line"], ["file"]])
    )


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_a_special_token_written_in_a_text_stays_text(tmp_path, token):
    tokenizer, learn, held, _ = prepare(
        tmp_path, TEXT + f"\n\n{token} and {token.lower()} are words here {token}"
    )
    found = (np.concatenate((learn, held)) == tokenizer.token_to_id(token)).sum()
    assert found == (101 if token == "[SEP]" else 0), "101 documents end"


# ---- the split ----


def test_no_exam_asks_for_what_was_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "HELD_OUT", 0.3)
    shared = "this paragraph, which is longer than fifty characters, stands in every document ."
    texts = []
    for i, document in enumerate(DOCUMENTS):
        other = shared.replace("fifty", f"fifty{i}")
        texts.append("\n".join([*document, shared, other, other.upper(), "else:"]))
    tokenizer, learn, held, _ = prepare(tmp_path, "\n\n".join(texts))
    one, other = text_of(learn, tokenizer), text_of(held, tokenizer)
    apart = [text.split("[SEP]") for text in (one, other)]
    assert one.count("than fifty characters") == len(apart[0]) - 1, "the training text keeps every repeat"
    assert other.count("than fifty characters") == 0, "known to the training side"
    assert other.count("else:") + other.count("else :") == len(apart[1]) - 1, "a short paragraph stays"
    numbered = len(re.findall(r"than fifty ?[ #\d]+ ?characters", other))
    assert numbered == 2 * (len(apart[1]) - 1), "what differs in a digit or in case is no repeat"
    for document in DOCUMENTS:
        sides = {side for side, text in (("train", one), ("held out", other)) for p in document if p in text}
        assert len(sides) == 1, f"a document is on {sides}: the split is by document"
    assert 0.15 < len(held) / (len(held) + len(learn)) < 0.75


def test_a_document_that_is_known_as_a_whole_leaves_no_boundary(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "HELD_OUT", 0.3)
    known = [
        f"paragraph {i} of fifty characters or more, which stands in several documents" for i in range(5)
    ]
    repeats = [list(order) for order in itertools.permutations(known, 3)]  # 60 documents, all different
    texts = ["\n".join(document) for document in DOCUMENTS + repeats]
    tokenizer, learn, held, _ = prepare(tmp_path, "\n\n".join(texts))
    text = text_of(held, tokenizer)
    assert text.count("[SEP]") == sum(" ".join(document) in text for document in DOCUMENTS)
    assert not text.startswith("[SEP]") and "[SEP] [SEP]" not in text and "paragraph" not in text
    assert text_of(learn, tokenizer).count("[SEP]") == 160 - sum(
        train.zlib.crc32(t.encode()) < 0.3 * 2**32 for t in texts
    )


def test_equal_documents_are_on_the_same_side(tmp_path):
    """An exam of a repeated document would ask for what was trained on, however short its paragraphs are."""
    short = [f"{a} {b} {a}" for a, b in PAIRS]
    tokenizer, learn, held, _ = prepare(tmp_path, "\n\n".join(short * 20))
    sides = [set(text_of(ids, tokenizer).split("[SEP]")) for ids in (learn, held)]
    assert (
        len(held)
        and len({text.strip() for text in sides[0]} & {text.strip() for text in sides[1]} - {""}) == 0
    )


def documents(*lengths):
    """Documents of so many different paragraphs."""
    rng = random.Random(str(lengths))
    return [["".join(rng.choices("abcdefgh ", k=70)) for _ in range(length)] for length in lengths]


SHAPES = {
    "hundreds of documents": documents(*[5] * 400),
    "one document": documents(2000),
    "few documents": documents(*[300] * 7),
    "one large, many small": documents(1500, *[2] * 100),
    "one paragraph, as in text8": [[" ".join(sum(documents(1000), []))]],
    "a long paragraph at the end": [*documents(*[3] * 100), [" ".join(sum(documents(300), []))]],
    "a long paragraph in the middle": [*documents(1), [" ".join(sum(documents(900), []))], *documents(1, 1)],
    "a log of one file": [[f"{i} took {i} ms" for i in range(4000)]],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_one_to_five_percent_are_held_out_whatever_the_documents(shape, seed, tmp_path):
    made = [[*document, f"number {seed}"] for document in SHAPES[shape]]
    text = "\n\n".join("\n".join(document) for document in made)
    tokenizer, learn, held, _ = prepare(tmp_path, text)
    assert 0.01 <= len(held) / (len(learn) + len(held)) <= 0.05
    longer = prepare(tmp_path, text, "--seq-len", 32)
    assert np.array_equal(longer[1], learn) and np.array_equal(longer[2], held), "whatever the rows' length"
    if "paragraph" not in shape:
        words = tokenizer.decode(held.tolist())
        paragraphs = {
            tokenizer.decode(tokenizer.encode(p, add_special_tokens=False).ids) for d in made for p in d
        }
        assert any(words.startswith(p) for p in paragraphs), "it is cut at a paragraph"


def test_a_long_text_is_written_in_parts(tmp_path):
    """More paragraphs than are dealt at once: nothing is lost where two parts meet."""
    lines = [f"{i} {i % 7} and {i % 11}" + "\n" * (i % 5 == 0) for i in range(7000)]
    tokenizer, learn, held, _ = prepare(tmp_path, "\n".join(lines))
    whole = as_written([tmp_path / "text.txt"], tokenizer)
    assert Counter(learn.tolist()) + Counter(held.tolist()) == Counter(whole)
    position = iter(whole)
    assert all(number in position for number in learn), "and the order stays"


@pytest.mark.parametrize("seed", range(20))
def test_split_is_that_of_brute_force(seed):
    """Random paragraphs: sizes, repeats and documents."""
    rng = np.random.default_rng(seed)
    n = rng.integers(200, 2000)
    tokens = rng.integers(1, rng.integers(2, 60), n)
    keys = rng.integers(0, rng.integers(2, 5 * n), n)
    by_hash = np.repeat(rng.random(n // 5 + 1) < rng.choice([0.0, 0.02, 0.2]), 5)[:n]
    sizes, held_out, known = train.split(tokens, keys, by_hash)
    assert np.array_equal(sizes, tokens)
    trained = {key for key, held in zip(keys, held_out, strict=True) if not held}
    expected = [bool(h and key and key in trained) for h, key in zip(held_out, keys, strict=True)]
    assert known.tolist() == expected
    left = tokens[held_out & ~known].sum() / tokens.sum()
    by_documents = np.array_equal(held_out, by_hash)
    at_the_end = not (np.diff(held_out.astype(int)) < 0).any()
    assert by_documents or at_the_end
    assert left <= 0.05
    first = by_hash & ~np.isin(keys, [k for k, h in zip(keys, by_hash, strict=True) if k and not h])
    assert by_documents == (0.01 <= tokens[first].sum() / tokens.sum() <= 0.05), "documents wherever they do"


def test_a_limit_on_tokens_leaves_what_is_held_out_as_it_is(tmp_path):
    _, learn, held, _ = prepare(tmp_path, TEXT)
    _, fewer, same, _ = prepare(tmp_path, TEXT, "--max-tokens", 100)
    assert fewer.tolist() == learn[:100].tolist() and same.tolist() == held.tolist()


# ---- files ----


def paragraphs_of(path):
    return [paragraphs for paragraphs, _ in train.read_documents([path])]


@pytest.mark.parametrize("name", ["a.gz", "a.GZ", "a.txt", "a"])
@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bytes, lambda b: b"\xef\xbb\xbf" + b])
def test_text_is_read_by_its_content_however_it_is_packed_and_called(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(TEXT.encode()))
    read = paragraphs_of(tmp_path / name)
    assert [[p.lstrip("\ufeff") for p in document] for document in read] == DOCUMENTS


def test_a_document_without_end_comes_in_parts_and_nothing_is_lost(tmp_path):
    lines = [f"line {i}" for i in range(2500)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    read = list(train.read_documents([tmp_path / "a.txt"]))
    assert sum((paragraphs for paragraphs, _ in read), []) == lines
    assert [ends for _, ends in read] == [False, False, True]


def tar(text: bytes) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        entry = tarfile.TarInfo("a.txt")
        entry.size = len(text)
        file.addfile(entry, io.BytesIO(text))
    return archive.getvalue()


def docx(text: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("word/document.xml", text)
    return archive.getvalue()


PLAIN = TEXT.encode()
RECORDS = [{"id": i, "text": "\n".join(document)} for i, document in enumerate(DOCUMENTS)]
LINES = "\n".join(map(json.dumps, RECORDS))
WIKI = "\n".join(f'<doc id="{i}" url="a" title="b">\n{TEXT[:50]}\n</doc>' for i in range(9))
NO_TEXT = {
    "a tar in .xz": ("a.xz", lzma.compress(tar(PLAIN)), "a.xz, line 1: no UTF-8 text: .*archives"),
    "a tar in .gz": ("a.gz", gzip.compress(tar(PLAIN)), "a.gz, line 1: no UTF-8 text: .*archives"),
    "a zip": ("a.txt", docx(PLAIN), "a.txt, line 1: no UTF-8 text: .*archives"),
    "Word": ("a.docx", docx(PLAIN), "a.docx, line 1: no UTF-8 text: .* documents"),
    "a PDF": ("a.pdf", b"%PDF-1.7\n%\xb5\xed\n" + PLAIN, "a.pdf, line 2: no UTF-8 text: .* documents"),
    "bzip2": ("a.bz2", bz2.compress(PLAIN), "a.bz2, line 1: no UTF-8 text: .*unpack"),
    "zstandard": ("a.zst", b"\x28\xb5\x2f\xfd" + PLAIN, "a.zst, line 1: no UTF-8 .*unpack"),
    "JSON lines": ("a.txt", LINES, "a.txt is no plain text but JSON.* README"),
    "JSON lines with a BOM": ("a.txt", "\ufeff" + LINES, "is no plain text but JSON"),
    "JSON lines, packed": ("a.gz", gzip.compress(LINES.encode()), "is no plain text but JSON"),
    "JSON lines after an empty line": ("a.txt", "\n  \n" + LINES, "is no plain text but JSON"),
    "JSON with blanks": ("a.txt", '{ "text" : "a cat" }\n', "is no plain text but JSON"),
    "a JSON array": ("a.txt", json.dumps(RECORDS), "is no plain text but JSON"),
    "indented JSON": ("a.txt", json.dumps(RECORDS, indent=1), "is no plain text but JSON"),
    "a JSON array of strings": ("a.txt", json.dumps(['a "cat"', "a dog"]), "is no plain text but JSON"),
    "one long JSON string": ("a.txt", json.dumps([TEXT]), "is no plain text but JSON"),
    "WikiExtractor": ("a.txt", WIKI, "is no plain text but markup.*sed"),
    "WikiExtractor, packed": ("a.gz", gzip.compress(WIKI.encode()), "is no plain text but markup.*sed"),
    "TREC": ("a.txt", "<DOC>\n<DOCNO>1</DOCNO>\n" + TEXT, "is no plain text but markup"),
    "a dump": ("a.xml", '<mediawiki xmlns="http://a/">\n' + TEXT, "is no plain text but markup"),
    "XML": ("a.xml", '<?xml version="1.0"?>\n' + TEXT, "is no plain text but markup"),
    "RTF": ("a.rtf", "{\\rtf1\\ansi\n" + TEXT, "is no plain text but markup"),
    "HTML": ("a.html", "\n<!DOCTYPE html>\n" + TEXT, "is no plain text but markup"),
    "UTF-16 with a mark": ("a.txt", TEXT.encode("utf-16"), "a.txt, line 1: no UTF-8 .*-f UTF-16"),
    "UTF-16": ("a.txt", "a cat\n".encode("utf-16-le") * 9, "a.txt, line 1: no UTF-8 .*-f UTF-16"),
    "Latin-1 in line 3": ("a.txt", "a\ncat\ncafé\n".encode("latin-1"), "a.txt, line 3: no UTF-8 .*iconv -f"),
    "Latin-1 in line 1": ("a.txt", "café\n".encode("latin-1"), "a.txt, line 1: no UTF-8 .*iconv -f"),
    "a truncated .gz": ("a.gz", gzip.compress(PLAIN)[:-20], "a.gz is damaged or truncated"),
    "a truncated .xz": ("a.xz", lzma.compress(PLAIN)[:-20], "a.xz is damaged or truncated"),
    "damaged inside": ("a.gz", gzip.compress(PLAIN)[:30] + b"\xff" * 40, "a.gz is damaged"),
}


@pytest.mark.parametrize("what", NO_TEXT)
def test_what_is_no_text_is_refused_with_its_file(what, tmp_path):
    name, content, sentence = NO_TEXT[what]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=sentence) as refused:
        list(train.read_documents([tmp_path / name]))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        'id,text\n1,"a cat"\n',  # a table is text
        "[Thu Jun 09 06:07:04 2005] [notice] a log of Apache",
        "[1, 2] is an interval",
        "{a, b} is a set",
        '"A cat," he said',
        "[[File:a.jpg]] a page of a wiki",
        "{{Infobox}} a page of a wiki",
        "<s> a marked sentence </s>",
        "< 5 is small",
        "<num> cats",
        "<3 is a heart",
        "PKs and PDFs",
        "= Title =",
        "def f(x):\n    return {x: 1}",
    ],
)
def test_what_only_looks_alike_is_text(text, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    assert paragraphs_of(tmp_path / "a.txt") == [[line.strip() for line in text.strip().split("\n")]]


def test_the_remedies_give_plain_text(tmp_path):
    """What a refusal of markup or of Latin-1 says to type is typed."""
    cases = {
        "wiki.txt": WIKI.encode(),
        "latin.txt": "a\ncafé\n".encode("latin-1"),
        "two.txt": TEXT.encode("utf-16"),
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError) as refused:
            paragraphs_of(tmp_path / name)
        command = re.search(r"(sed|iconv) .* > NEW", str(refused.value))[0]
        if name == "two.txt" and "(or -f UTF-16)" in str(refused.value):
            command = command.replace("LATIN1", "UTF-16")
        if not shutil.which(command.split()[0]):
            continue
        subprocess.run(
            ["sh", "-c", command.replace("NEW", str(tmp_path / "new.txt"))], check=True, cwd=tmp_path
        )
        read = paragraphs_of(tmp_path / "new.txt")
        expected = {
            "wiki.txt": [TEXT[:50].split("\n")] * 9,
            "latin.txt": [["a", "café"]],
            "two.txt": DOCUMENTS,
        }
        assert [[p.lstrip("\ufeff") for p in d] for d in read] == expected[name]


def test_a_pipe_is_refused_since_it_can_be_read_once(tmp_path):
    read, write = os.pipe()
    os.write(write, PLAIN[:1000])
    os.close(write)
    for path in (f"/dev/fd/{read}", tmp_path):
        argv = ["--corpus", str(path), "--cache", str(tmp_path / "cache")]
        with pytest.raises(
            ValueError, match="is no file: name the files of a folder, write a pipe's text to a file"
        ):
            train.prepare_text(train.make_parser("test").parse_args(argv))
    os.close(read)


def test_too_few_tokens_are_refused_with_their_number(tmp_path):
    for text, numbers in {"a cat sat here": "5 tokens|[0-9]+ tokens", "a cat " * 40: "held out"}.items():
        with pytest.raises(ValueError, match=rf"text.txt: .*({numbers}).* too few"):
            prepare(tmp_path, text)
    with pytest.raises(ValueError, match=r"text.txt: 0 tokens are too few"):
        prepare(tmp_path, " \n\n")


SOURCE = '''
"""The first sentence of a module stands here, and it is long enough.

>>> this is an example of the code that nobody reads as English

Short.

x = 1; y = [2, 3]; z = {x: y} # and other code in a long string
"""
add_docstring(function, "What a native function does is an argument of some call, and counts as well.")
'''


def test_builtin_corpus_is_the_prose_of_documentation(tmp_path, monkeypatch):
    sources = {"a.py": SOURCE, "test/b.py": SOURCE.replace("first", "tested"), "broken.py": "def :" * 30}
    for i, module in enumerate((train.os, torch, np)):
        for name, text in sources.items():
            path = tmp_path / str(i) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("first", f"first{'abc'[i]}"))
        monkeypatch.setattr(module, "__file__", str(tmp_path / str(i) / "__init__.py"))
    path = train.builtin_corpus(tmp_path)
    native = "What a native function does is an argument of some call, and counts as well."
    expected = [
        [f"The first{letter} sentence of a module stands here, and it is long enough.", native]
        for letter in "abc"
    ]
    assert paragraphs_of(path) == expected, "no code, no short strings, no tests"
    assert train.builtin_corpus(tmp_path) == path


@pytest.mark.skipif(not train.os.environ.get("LONG"), reason="reads thousands of files; set LONG=1")
def test_builtin_corpus_of_this_machine(tmp_path):
    text = train.builtin_corpus(tmp_path).read_text(encoding="utf-8")
    assert 5e6 < len(text) < 5e7 and text.count(" the ") > 50_000 and "\n>>>" not in text


# ---- the cache ----


def test_the_cache_is_used_again_and_depends_on_content(tmp_path, monkeypatch):
    first = prepare(tmp_path, TEXT)
    calls = []
    monkeypatch.setattr(train, "tokenise", lambda *given: calls.append(given))
    again = prepare(tmp_path, TEXT)
    assert not calls and np.array_equal(first[1], again[1]), "the same text is not tokenised twice"
    with pytest.raises((TypeError, OSError)):
        prepare(tmp_path, TEXT + " more")
    assert calls, "another text must not be served from the cache of the first"


def test_an_interrupted_tokenisation_leaves_no_cache(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "tokenise", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, TEXT)
    assert not list((tmp_path / "cache").iterdir())


def test_two_runs_that_prepare_the_same_text_at_once_do_not_disturb_each_other(tmp_path, monkeypatch):
    tokenise = train.tokenise
    other = []

    def overtaken(*given):
        monkeypatch.setattr(train, "tokenise", tokenise)
        other.append(prepare(tmp_path, TEXT))  # a whole second run, while the first is at work
        tokenise(*given)

    monkeypatch.setattr(train, "tokenise", overtaken)
    mine = prepare(tmp_path, TEXT)
    assert np.array_equal(mine[1], other[0][1]) and mine[3] == other[0][3]
    assert len(list((tmp_path / "cache").iterdir())) == 1, "one result, and nothing unfinished"


def test_the_key_of_the_cache_knows_the_rules(tmp_path):
    """Every function and constant that a stream of ids follows from, and nothing else."""
    changes = {
        "HELD_OUT = 0.02": "HELD_OUT = 0.2",
        "KNOWN_FROM = 50": "KNOWN_FROM = 60",
        "len(document) > 40": "len(document) > 41",
        "size // 4": "size // 5",
        'zlib.crc32("\\n"': 'zlib.crc32(" "',
        "left <= most": "left < most",
        ".strip()\n": ".rstrip()\n",
        "[A-Za-z][a-z'-]*": "[A-Za-z]+",
        'b"<mediawiki"': 'b"<other"',
        "EXAM_ROWS = 512": "EXAM_ROWS = 256",
        "weight_decay: float = 0.01": "weight_decay: float = 0.1",
    }
    source = (PROJECT / "train.py").read_text(encoding="utf-8")
    keys = {"": train.TEXT_RULES}
    for old, new in changes.items():
        if old in source:
            name = f"changed_{len(keys)}"
            (tmp_path / f"{name}.py").write_text(source.replace(old, new, 1), encoding="utf-8")
            keys[old] = import_file(tmp_path / f"{name}.py").TEXT_RULES
    same = {old for old, key in keys.items() if key == train.TEXT_RULES}
    assert same == {"", "EXAM_ROWS = 512", "weight_decay: float = 0.01"} and len(keys) >= 9


def test_a_changed_rule_makes_the_text_anew(tmp_path, monkeypatch):
    first = prepare(tmp_path, TEXT)
    monkeypatch.setattr(train, "TEXT_RULES", "other")
    monkeypatch.setattr(train, "HELD_OUT", 0.1)
    again = prepare(tmp_path, TEXT)
    assert len(again[2]) > 2 * len(first[2])
    monkeypatch.undo()
    assert np.array_equal(prepare(tmp_path, TEXT)[2], first[2]), "both are there"


def test_where_a_file_ends_belongs_to_the_key(tmp_path):
    """The same bytes in one file and in two are different documents."""
    halves = TEXT[:3000], TEXT[3000:]
    names = []
    for files in ([TEXT], halves):
        paths = [tmp_path / f"{len(files)}-{i}.txt" for i in range(len(files))]
        for path, text in zip(paths, files, strict=True):
            path.write_text(text)
        names.append(prepare(tmp_path, TEXT, "--corpus", *paths)[3])
    assert names[0] != names[1]


# ---- words that a checkpoint added ----


def test_added_words_of_a_checkpoint_stay_whole(tmp_path):
    """Special or not, as transformers reads them; and the folder that is saved knows which are special."""
    lines = [f"{a} [URL] sat <num> times .[USER]{b}" for a, b in PAIRS * 5]
    plain = learned(tmp_path, "\n".join(lines), 150)
    plain.add_special_tokens(["[URL]", "[USER]"])
    plain.add_tokens(["<num>"])
    save_tokenizer(plain, tmp_path)
    (tmp_path / "added.json").write_text("{}")
    added = {
        plain.token_to_id(word): {"content": word, "special": word != "<num>", "normalized": False}
        for word in ("[URL]", "[USER]", "<num>")
    }
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"added_tokens_decoder": {str(number): word for number, word in added.items()}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer, learn, held, _ = prepare(tmp_path, "\n".join([*lines, "a [MASK] [SEP]"]), "--vocab", tmp_path)
    ids = np.concatenate((learn, held))
    for number, word in added.items():
        assert (ids == number).sum() == 500, word["content"]
    assert (ids == tokenizer.token_to_id("[MASK]")).sum() == 0, "the five special tokens stay text"
    assert (ids == tokenizer.token_to_id("[SEP]")).sum() == 1, "one document ends"
    save_tokenizer(tokenizer, tmp_path)
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
    number = next(iter(added))
    assert theirs("a [URL] b", add_special_tokens=False)["input_ids"].count(number) == 1
    assert "[URL]" not in theirs.decode([number], skip_special_tokens=True), "it is special there too"


# ---- vocabularies ----


def learned(tmp_path, text, size, cased=False):
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    return train.learn_vocabulary([tmp_path / "text.txt"], size, cased)


def unknown_share(tokenizer, text):
    ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids)
    return (ids == tokenizer.token_to_id("[UNK]")).mean()


def test_a_learned_vocabulary_is_the_same_every_time(tmp_path):
    one, other = (learned(tmp_path, TEXT, 150).get_vocab() for _ in range(2))
    assert one == other, "the learner's own order of characters and ties is random"
    pieces = sorted(one, key=one.get)
    letters = sorted(set(TEXT) - set(" \n"))
    assert tuple(pieces[:5]) == SPECIAL_TOKENS, "[PAD] is 0, and so on"
    assert pieces[5 : 5 + len(letters)] == letters, "then the characters, sorted"
    assert [p for p in pieces if p.startswith("##")][: len(letters)] == [f"##{c}" for c in letters]


def random_text(characters, weights, words=6000, longest=6):
    rng = random.Random(0)
    lengths = (rng.randint(1, longest) for _ in range(words))
    made = ("".join(rng.choices(characters, weights, k=length)) for length in lengths)
    return "".join(word + ("\n\n" if i % 50 == 49 else " ") for i, word in enumerate(made))


def test_characters_that_are_rare_in_an_alphabetic_text_get_no_piece(tmp_path):
    # English has a few letters that are nearly all of the text: a quarter of the pieces covers 99.5%.
    letters = "etaoinshrdlucmfwygpbvkxqjz"
    signs = [chr(code) for code in range(0x2500, 0x2540)]  # 64 lines of boxes, 0.3% of the text
    text = random_text([*letters, *signs], [1.0] * 26 + [0.003 * 26 / 64] * 64)
    vocab = learned(tmp_path, text, 160).get_vocab()
    counts = {c: text.count(c) for c in {*letters, *signs}}
    commonest = sorted((c for c in counts if counts[c]), key=lambda c: (-counts[c], c))[: 160 // 4]
    assert {piece for piece in vocab if len(piece) == 1} == set(commonest)


def test_a_chinese_text_gets_as_many_characters_as_cover_it(tmp_path):
    characters = [chr(0x4E00 + i) for i in range(1250)]
    text = random_text(characters, None, words=20_000, longest=1)
    tokenizer = learned(tmp_path, text, 4096)
    assert unknown_share(tokenizer, text) <= 0.005, "the commonest 1,000 characters are 80% of this text"
    few = learned(tmp_path, text, 400)
    alphabet = [piece for piece in few.get_vocab() if len(piece) == 1]
    assert len(alphabet) <= 200, "at most half of the pieces are single characters"
    assert few.get_vocab_size() <= 400


def test_a_text_of_32_letters_fits_into_100_pieces(tmp_path):
    text = random_text("abcdefghijklmnopqrstuvwxyz234567", None, longest=16)
    assert unknown_share(learned(tmp_path, text, 100), text) == 0


# ---- what a run says of its text ----


LETTERS = [*SPECIAL_TOKENS, *"abcdefghijklmnopqrstuvwxyz.", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
ONE_STEP = "--seq-len 16 --batch-size 4 --steps 1 --masking random --dtype float32 --device cpu".split()


@pytest.fixture
def one_step(tmp_path, capsys):
    """one_step(text, "--vocab", "a.txt") -> what a run of one step prints."""

    def make(text, *options):
        (tmp_path / "text.txt").write_text(text, encoding="utf-8")
        given = ["--corpus", tmp_path / "text.txt", "--cache", tmp_path / "cache", "--out", tmp_path / "out"]
        launch(*given, *ONE_STEP, *options)
        return capsys.readouterr().out

    return make


@pytest.fixture
def letters(tmp_path):
    """A vocabulary file of single letters."""
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(LETTERS) + "\n", encoding="utf-8")
    return path


def share_of(printed):
    """The share of [UNK] in the summary, per cent."""
    return float(re.search(r"([\d.]+)% of them \[UNK\]", printed)[1])


@pytest.mark.parametrize("share", [0, 1, 3, 30, 49, 51, 100])
def test_unknown_letters_are_counted_in_characters_warned_of_and_refused(one_step, letters, share):
    """Of 100 characters of a line `share` are Chinese, of which each is one [UNK]; words are six pieces."""
    rng = random.Random(share)
    lines = []
    for _ in range(200):
        known = "".join(rng.choices("abcdefgh", k=100 - share))
        words = [known[i : i + 10] for i in range(0, len(known), 10)] + ["漢"] * share
        lines.append("  ".join(rng.sample(words, len(words))))
    text = "\n\n".join(lines)
    if share > 50:
        with pytest.raises(
            SystemExit,
            match=rf"text.txt: \[UNK\] .* {share}.0% .*letters .* the vocabulary of .*vocab.txt lacks",
        ):
            one_step(text, "--vocab", letters)
        return
    printed = one_step(text, "--vocab", letters)
    assert share_of(printed) == share
    assert ("WARNING: [UNK]" in printed) == (share > 2)
    assert share <= 2 or re.search(
        rf"{share}.0% of the characters: letters .*vocabulary of {re.escape(str(letters))} lacks", printed
    )


@pytest.mark.parametrize("share, length", [(1, 300), (10, 101), (40, 5000), (80, 900), (80, 100)])
def test_words_of_over_a_hundred_characters_are_said_to_be_the_cause(one_step, share, length):
    """DNA among prose: one [UNK] per sequence, whatever its length."""
    rng = random.Random(length)
    prose = random_text("abcdefgh", None, words=6000).split("\n\n")
    total = sum(len(text.replace(" ", "")) for text in prose)
    count = max(1, round(total * share / (100 - share) / length))
    dna = ["".join(rng.choices("acgt", k=length)) for _ in range(count)]
    texts = prose + dna
    rng.shuffle(texts)
    expected = 100 * count * length / (total + count * length)
    text = "\n\n".join(texts)
    if length == 100:
        assert share_of(one_step(text)) == 0
    elif share > 50:
        with pytest.raises(
            SystemExit, match=r"\[UNK\] .*words of over 100 characters; see README, Texts that"
        ):
            one_step(text)
    else:
        printed = one_step(text)
        assert share_of(printed) == pytest.approx(expected, abs=0.06)
        assert ("words of over 100 characters" in printed) == (share > 2)


@pytest.mark.parametrize("option", ["--from", "--teacher"])
def test_the_vocabulary_that_lacks_the_letters_is_named(option, tmp_path, teacher, capsys):
    """A model of another language: nobody gave --vocab, so nobody is told to leave it out."""
    (tmp_path / "text.txt").write_text(
        random_text([chr(0x4E00 + i) for i in range(50)], None), encoding="utf-8"
    )
    run = launch if option == "--from" else launch_distillation
    with pytest.raises(
        SystemExit, match=rf"100.0% of the characters: letters .* of {re.escape(str(teacher))} lacks"
    ):
        run(
            option,
            teacher,
            "--corpus",
            tmp_path / "text.txt",
            "--cache",
            tmp_path / "cache",
            "--out",
            tmp_path / "o",
            *ONE_STEP,
        )


def test_rare_letters_of_a_learned_vocabulary_are_its_size(one_step):
    text = random_text([chr(0x4E00 + i) for i in range(250)], None, words=6000, longest=1)
    warning = "WARNING: .UNK.* too rare for the learned vocabulary: a larger --vocab-size"
    assert re.search(warning, one_step(text, "--vocab-size", 400))  # of these at most 195 are letters


def test_what_was_read_is_said_again_when_it_comes_from_the_cache(one_step, letters, tmp_path):
    text = TEXT + "\n\n" + "漢 " * 300
    said = [one_step(text, "--vocab", letters, "--out", tmp_path / name) for name in ("one", "two")]
    said = [
        "\n".join(line for line in s.splitlines() if line.startswith(("text", "words", "WARN"))) for s in said
    ]
    assert said[0] == said[1] and "WARNING: [UNK]" in said[0]
    assert f"301 lines, 101 documents, {len(''.join(text.split())):,} characters" in said[0]


def test_an_exam_of_few_masks_is_warned_of_with_their_number(one_step, tmp_path):
    printed = one_step(TEXT)
    run_masks = int(re.search(r"WARNING: the exam has (\d+) masked tokens", printed)[1])
    assert 1 <= run_masks < 100
    assert "the exam" not in one_step(random_text("abcdefgh", None, 400_000, 1), "--out", tmp_path / "o")


# ---- capitals and accents ----


WORDS = {
    "english": ("The cat sat on the mat, and Anna saw it there with her own eyes.", False),
    "german": ("Der Hund und die Katze sahen den Ball im Garten hinter dem Haus.", True),
    "french": ("Le garçon a été à la forêt où la rivière coulait très près.", True),
    "hindi": ("यह एक किताब है और वह मेज़ पर है", True),
    "korean": ("그는 책을 읽고 나서 집으로 갔다", False),
    "chinese": ("他在桌子上看到了一本书", False),
    "smiles": ("CC(=O)Oc1ccccc1C(=O)O", True),
    "invisible characters": ("\ufeffthe cat\u200bsat on\u200bthe so\u00adfa", False),
}


@pytest.mark.parametrize("text", WORDS)
def test_a_text_whose_words_change_by_lower_casing_is_warned_of(text, one_step, tmp_path):
    sentence, warned = WORDS[text]
    lines = "\n\n".join(f"{sentence} {i}" for i in range(1000))
    assert ("try --cased" in one_step(lines, "--out", tmp_path / "a")) == warned
    assert "try --cased" not in one_step(lines, "--cased", "--out", tmp_path / "b")


def test_a_vocabulary_file_alone_is_lower_cased_unless_cased_is_said(one_step, letters, tmp_path):
    text = TEXT.replace("ann", "Ann")
    assert '"Café" is read as "cafe"' in one_step(text, "--vocab", letters)
    assert not load_tokenizer(tmp_path / "out").encode("Ann").tokens.count("[UNK]")
    printed = one_step(text, "--vocab", letters, "--cased", "--out", tmp_path / "cased")
    assert '"Café" is read as "Café"' in printed and "WARNING: [UNK]" in printed, "it has no capital letters"
    assert load_tokenizer(tmp_path / "cased").encode("Ann").tokens[1] == "[UNK]", "the saved folder knows"


def test_cased_with_a_folder_keeps_capitals_and_says_which_letters_it_lacks(one_step, tmp_path):
    one_step(TEXT, "--out", tmp_path / "lower")
    one_step(TEXT, "--cased", "--out", tmp_path / "upper")
    assert '"Café" is read as "Café"' in one_step(
        TEXT, "--vocab", tmp_path / "upper", "--cased", "--out", tmp_path / "o"
    )
    capitals = TEXT.replace("ann", "Ann").replace("bob", "Bob")
    printed = one_step(capitals, "--vocab", tmp_path / "lower", "--cased", "--out", tmp_path / "p")
    assert re.search("WARNING: .UNK.* letters that the vocabulary of .*lower lacks", printed)


def test_fewer_pieces_than_asked_for_is_said(one_step):
    printed = one_step(TEXT, "--vocab-size", 5000)
    assert "5,000 word pieces" in printed and " pieces" in printed.partition("words ")[2].splitlines()[0]
