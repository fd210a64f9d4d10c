"""From text to token ids: files, documents and their split, vocabularies, the cache, what is no text."""

import gzip
import io
import lzma
import random
import tarfile

import numpy as np
import pytest
import torch
from conftest import launch

import train
from model import SPECIAL_TOKENS, load_tokenizer

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


def text_of(ids, tokenizer):
    return tokenizer.decode(ids.tolist(), skip_special_tokens=False)


# ---- the split ----


def test_no_paragraph_is_on_both_sides_of_the_split(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "HELD_OUT", 0.3)
    shared = "this paragraph stands in every document ."
    repeated = "\n\n".join(
        "\n".join([*document, shared, f"See also chapter {i}."]) for i, document in enumerate(DOCUMENTS)
    )
    tokenizer, learn, held, _ = prepare(tmp_path, repeated)
    one, other = text_of(learn, tokenizer), text_of(held, tokenizer)
    both = one + other
    assert both.count("paragraph stands") == 1, "a duplicate paragraph must be kept once, on one side"
    assert both.count("see also") == 1, "paragraphs that differ in digits alone are duplicates"
    for document in DOCUMENTS:
        sides = {side for side, text in (("train", one), ("held out", other)) for p in document if p in text}
        assert len(sides) == 1, f"a document is on {sides}: the split is by document"
    assert 0.1 < len(held) / (len(held) + len(learn)) < 0.5


def test_mask_written_in_a_text_stays_text(tmp_path):
    tokenizer, learn, held, _ = prepare(tmp_path, TEXT + "\n\n[MASK] and [SEP] are words here")
    for token in ("[MASK]", "[SEP]", "[CLS]", "[PAD]"):
        found = tokenizer.token_to_id(token) in np.concatenate((learn, held))
        assert not found, f"{token} in a corpus is no special token"


def test_a_corpus_of_one_document_holds_out_its_end(tmp_path):
    _, learn, held, _ = prepare(tmp_path, TEXT.replace("\n\n", "\n"))
    assert len(held) >= 6 and len(learn) > 10 * len(held)


def test_a_limit_on_tokens_leaves_what_is_held_out_as_it_is(tmp_path):
    _, learn, held, _ = prepare(tmp_path, TEXT)
    _, fewer, same, _ = prepare(tmp_path, TEXT, "--max-tokens", 100)
    assert fewer.tolist() == learn[:100].tolist() and same.tolist() == held.tolist()


# ---- files ----


@pytest.mark.parametrize("suffix, pack", [(".gz", gzip.open), (".xz", lzma.open)])
def test_compressed_text_is_read_like_plain_text(tmp_path, suffix, pack):
    (tmp_path / "a.txt").write_text(TEXT)
    packed = tmp_path / f"a.txt{suffix}"
    with pack(packed, "wt") as file:
        file.write(TEXT)
    for path in (packed, tmp_path / "a.txt"):
        assert list(train.read_documents([path])) == DOCUMENTS


def test_a_document_without_end_is_cut_and_nothing_is_lost(tmp_path):
    lines = [f"line {i}" for i in range(2500)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    read = list(train.read_documents([tmp_path / "a.txt"]))
    assert len(read) > 1 and sum(read, []) == lines


def tar(text: bytes) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        entry = tarfile.TarInfo("a.txt")
        entry.size = len(text)
        file.addfile(entry, io.BytesIO(text))
    return archive.getvalue()


PLAIN = TEXT.encode()
NO_TEXT = {
    "a tar in .xz": ("a.xz", lzma.compress(tar(PLAIN)), "a.xz is no plain text"),
    "a tar in .gz": ("a.gz", gzip.compress(tar(PLAIN)), "a.gz is no plain text"),
    "JSON lines": ("a.txt", b'{"text": "a cat"}\n{"text": "a dog"}\n', "a.txt is no plain text .*JSON"),
    "UTF-16": ("a.txt", "a cat\n".encode("utf-16-le") * 9, "a.txt is no plain text"),
    "Latin-1 in line 3": ("a.txt", "a\ncat\ncafé\n".encode("latin-1"), "a.txt, line 3: no UTF-8"),
    "Latin-1 in line 1": ("a.txt", "café\n".encode("latin-1"), "a.txt, line 1: no UTF-8"),
    "a truncated .gz": ("a.gz", gzip.compress(PLAIN)[:-20], "a.gz is damaged or truncated"),
    "a truncated .xz": ("a.xz", lzma.compress(PLAIN)[:-20], "a.xz is damaged or truncated"),
    "plain text called .gz": ("a.gz", PLAIN, "a.gz is damaged"),
    "damaged inside": ("a.gz", gzip.compress(PLAIN)[:30] + b"\xff" * 40, "a.gz is damaged"),
}


@pytest.mark.parametrize("what", NO_TEXT)
def test_what_is_no_text_is_refused_with_its_file(what, tmp_path):
    name, content, sentence = NO_TEXT[what]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        list(train.read_documents([tmp_path / name]))


def test_too_few_tokens_says_that_repeated_paragraphs_count_once(tmp_path):
    with pytest.raises(ValueError, match=r"text.txt: \d tokens .*repeated .*too few for rows of 8"):
        prepare(tmp_path, "a cat sat here\n\n" * 500)


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
    assert list(train.read_documents([path])) == expected, "no code, no short strings, no tests"
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


def test_a_text_that_the_vocabulary_lacks_is_warned_of(one_step, letters):
    chinese = random_text([chr(0x4E00 + i) for i in range(50)], None)
    printed = one_step(chinese, "--vocab", letters)
    assert "100.0% [UNK]" in printed and "WARNING: [UNK]" in printed and "--vocab" in printed


@pytest.mark.parametrize("foreign, warned", [(1, False), (3, True)])
def test_the_warning_begins_at_two_percent(one_step, letters, foreign, warned):
    lines = [["ann sat"] * 50 for _ in range(40)]  # words of 3 letters, 6 pieces per line
    for line in lines:
        line[0] = "ann " + "漢 " * (3 * foreign)  # of about 300 pieces
    text = "\n\n".join(
        f"{i:040b} ".translate({48: "p ", 49: "q "}) + " ".join(x) for i, x in enumerate(lines)
    )
    assert ("WARNING: [UNK]" in one_step(text, "--vocab", letters)) == warned


def test_a_vocabulary_file_alone_is_lower_cased_unless_cased_is_said(one_step, letters, tmp_path):
    text = TEXT.title()
    assert '"Café" is read as "cafe"' in one_step(text, "--vocab", letters)
    assert not load_tokenizer(tmp_path / "out").encode("Ann").tokens.count("[UNK]")
    printed = one_step(text, "--vocab", letters, "--cased", "--out", tmp_path / "cased")
    assert '"Café" is read as "Café"' in printed and "WARNING: [UNK]" in printed, "it has no capital letters"
    assert load_tokenizer(tmp_path / "cased").encode("Ann").tokens[1] == "[UNK]", "the saved folder knows"


def test_fewer_pieces_than_asked_for_is_said(one_step):
    printed = one_step(TEXT, "--vocab-size", 5000)
    assert "5,000 word pieces" in printed and " pieces" in printed.partition("words ")[2].splitlines()[0]
