"""Pretrain a BERT with random or entropy-aware masking: `python train.py --help`.

Start reading at `train` near the end, the loop, and at `Pretraining.update`, one step. Above them stand
options, text, rows, loss, schedule and hardware. Every random number of a run is a function of (seed,
purpose, step): runs that differ in their masking rule alone start from the same weights and see the same
rows in the same order, and a resumed run needs no saved random state. The exam is the same for every seed.
"""

import argparse
import ast
import ctypes
import difflib
import gzip
import hashlib
import inspect
import lzma
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
import unicodedata
import warnings
import zlib
from array import array
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path

# Threads that wait busily make two programs on one machine 5 to 30 times slower than one. Before torch:
os.environ.setdefault("GOMP_SPINCOUNT", "4000")  # GNU's OpenMP
os.environ.setdefault("KMP_BLOCKTIME", "0")  # Intel's and LLVM's

import numpy as np
import tokenizers
import torch
import torch.distributed as dist
from tokenizers import BertWordPieceTokenizer, Tokenizer
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from tqdm import tqdm

import masking
from masking import IGNORE
from model import (
    SIZES,
    SPECIAL_TOKENS,
    BertConfig,
    BertForMaskedLM,
    atomic_write,
    explain,
    init_normal,
    init_offset_heads,
    load_tokenizer,
    read_json,
    read_torch,
    save_tokenizer,
    text_tokenizer,
    write_json,
)

HELD_OUT = 0.02  # share of the text, from half of that to 2.5 times as much
KNOWN_FROM = 50  # characters of a paragraph that no exam asks for if the training text has it too
EXAM_ROWS = 512
EXAM_RATIO = 0.15  # of the held-out exam, whatever ratio a run trains with
COLD = ("high", "low", "mid", "both")  # rules that have no temperature; others may
PLATEAU = 0.3  # nats below the unigram loss at which a run has left the plateau

# ---- options ----


class Parser(argparse.ArgumentParser):
    """argparse, but an option that is mistyped gets two lines instead of the list of all."""

    def error(self, message):
        known = re.findall(r"--[a-z][a-z-]+", self.format_help())
        typed = set(re.findall(r"--[\w-]+", message)) - set(known)
        meant = [near for word in typed for near in difflib.get_close_matches(word, known, 1)]
        hint = f"; did you mean {' '.join(meant)}?" if meant else ""
        if "teacher" in message and "--teacher" not in known:
            hint = "; a teacher is an option of distill.py, where --kd-alpha 0 takes its masks alone"
        self.exit(2, f"{self.prog}: {message}{hint}\nall options: python {self.prog} --help\n")


def make_parser(description: str, sources=("random", "self")) -> Parser:
    """Every option of a run; distill.py adds its own. The most used come first in each group."""
    help_format = argparse.ArgumentDefaultsHelpFormatter
    parser = Parser(description=description, formatter_class=help_format, allow_abbrev=False)
    add = parser.add_argument_group("text").add_argument
    add("--corpus", nargs="+", default=[], help="text files, also .gz or .xz; none: documentation found here")
    add("--vocab", default="", help="vocab.txt or checkpoint folder; none: learned from the corpus")
    add("--vocab-size", type=int, default=8192, help="word pieces of a learned vocabulary")
    add("--cased", action="store_true", help="keep capitals and accents: German, SMILES, code")
    add("--max-tokens", type=int, default=0, help="use only so many training tokens; 0: all")
    add = parser.add_argument_group("model").add_argument
    add("--size", default="tiny", choices=list(SIZES), help="model size")
    add("--from", dest="from_", metavar="FOLDER", default="", help="checkpoint to continue pretraining")
    add("--init", default="offset-heads", choices=["offset-heads", "normal"], help="initial weights")
    add = parser.add_argument_group("optimisation").add_argument
    add("--steps", type=int, default=2000, help="updates of the weights")
    add("--batch-size", type=int, default=16, help="rows per step, over all processes")
    add("--seq-len", type=int, default=128, help="tokens per row, [CLS] and [SEP] included")
    add("--lr", type=float, default=0.0, help="peak learning rate; 0: 1e-3, from small on 5e-4, --from 5e-5")
    add("--accumulate", type=int, default=1, help="compute a step in so many slices, to save memory")
    add = parser.add_argument_group("masks").add_argument
    add("--masking", default="self", choices=sources, help="whose entropy chooses the masks")
    add(
        "--reading",
        default="blank",
        choices=["visible", "blank", "memory"],
        help="of tokens as they are seen, hidden, or as last hidden",
    )
    rules = [rule for rule in masking.RULES if rule != "random"]  # that is --masking random
    add("--select", default="sample", choices=rules, help="rule that picks masks by entropy")
    add("--mask-ratio", type=float, default=0.15, help="share of the tokens that is masked")
    add("--corruption", default="80-10-10", choices=list(masking.SCHEMES), help="[MASK]-random-unchanged")
    add = parser.add_argument_group("run").add_argument
    add("--out", default="runs/train", help="folder for model, checkpoint, log.csv and args.json")
    add("--resume", action="store_true", help="continue the run in --out, with its options")
    add("--seed", type=int, default=0, help="of weights, order of rows, masks and dropout")
    add("--eval-every", type=int, default=250, help="steps between evaluations, each with a checkpoint")
    add("--compile", action="store_true", help="use torch.compile")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="of products")
    add = parser.add_argument_group("advanced").add_argument
    add("--cache", default=".cache", help="folder for tokenised text")
    add("--dropout", type=float, default=0.0, help="dropout during pretraining")
    add("--warmup", type=float, default=0.05, help="steps until the peak (below 1: share of --steps)")
    add("--candidates", type=float, default=2.0, help="blanks tried per mask, for --reading blank")
    add("--select-temperature", type=float, default=1.0, help="tau of --select sample")
    add("--entropy-warmup", type=float, default=0.3, help="steps (below 1: share) with random masks first")
    add("--whole-word", action="store_true", help="mask all pieces of a word together")
    add("--device", default="auto", help="cpu, cuda, mps; auto: cuda if there is one")
    return parser


def option(name: str) -> str:
    """What to type for an option: from_ is --from."""
    return "--" + name.strip("_").replace("_", "-")


def refuse_out_of_bounds(o, bounds: dict):
    """bounds: {option: (lowest, highest)}. Raises ValueError for a value outside, infinite or NaN."""
    for name, (low, high) in bounds.items():
        value = getattr(o, name)
        if not low <= value <= high or value == math.inf:
            limits = f"finite and at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise ValueError(f"{option(name)} {value} must be {limits} here")


def refuse_idle(o, parser, needs: dict):
    """needs: {option: (is it met?, what the option needs)}. Raises ValueError for an option without effect.

    One that is given with its default counts as not given.
    """
    for name, (met, need) in needs.items():
        if not met and getattr(o, name) != parser.get_default(name):
            raise ValueError(f"{option(name)} has no effect here, it needs {need}: leave it out")


def check(o, parser, world: int):
    """Fill in the default learning rate; raise ValueError for options that cannot work together."""
    bounds = dict.fromkeys(["steps", "eval_every", "batch_size", "accumulate", "candidates"], (1, math.inf))
    bounds |= dict.fromkeys(["seed", "max_tokens", "lr"], (0, math.inf))
    bounds |= {"seq_len": (8, math.inf), "vocab_size": (100, math.inf), "dropout": (0, 0.9)}
    bounds |= {"select_temperature": (1e-6, math.inf)}
    bounds |= dict.fromkeys(["warmup", "entropy_warmup"], (0, o.steps))
    refuse_out_of_bounds(o, bounds)
    if o.batch_size % (o.accumulate * world):
        raise ValueError(f"--batch-size {o.batch_size} must be a multiple of {o.accumulate * world} slices")

    fresh = not o.from_
    by_entropy = o.masking != "random"
    needs = {
        "vocab": (fresh, "a vocabulary of its own, and --from brings one"),
        "cased": (fresh, "a vocabulary of its own, and --from brings one"),
        "size": (fresh, "fresh weights, without --from"),
        "init": (fresh, "fresh weights, without --from"),
        "vocab_size": (fresh and not o.vocab, "a learned vocabulary, without --vocab and --from"),
        "reading": (by_entropy, "masks by entropy, without --masking random"),
        "select": (by_entropy, "masks by entropy, without --masking random"),
        "entropy_warmup": (by_entropy, "masks by entropy, without --masking random"),
        "candidates": (by_entropy and o.reading == "blank", "masks by entropy and --reading blank"),
        "select_temperature": (by_entropy and o.select not in COLD, "masks by entropy and --select sample"),
    }
    refuse_idle(o, parser, needs)

    body = o.seq_len - 2
    masks = masking.mask_budget(body, o.mask_ratio)  # raises for a bad ratio
    pool = masking.candidate_budget(body, o.mask_ratio, o.candidates)
    if by_entropy and o.reading == "blank" and not masks < pool < body:
        counts = f"{pool} candidates for {masks} masks in rows of {body} tokens"
        raise ValueError(f"{counts} leave no choice, or nothing to read: other --candidates are needed")
    if o.from_ and not o.resume:
        check_row_length(o.from_, o.seq_len)
    if o.lr == 0 and o.from_:
        o.lr = 5e-5  # a higher rate would undo what was learned
    elif o.lr == 0:
        o.lr = 1e-3 if o.size in ("tiny", "mini") else 5e-4


def check_row_length(folder, seq_len: int):
    """Raise ValueError where the model of a folder cannot read rows of seq_len tokens, or is no BERT.

    Where it can but never did, that is said.
    """
    config = BertConfig.from_folder(folder)
    longest = config.max_position_embeddings
    if longest < seq_len:
        raise ValueError(f"{folder} reads rows of at most {longest} tokens: choose a shorter --seq-len")
    known = config.trained_length
    if known and known < seq_len and os.environ.get("RANK", "0") == "0":  # one of several processes says it
        print(f"note    {folder} has read rows of {known} tokens: places beyond are untrained")


# ---- text ----


def builtin_corpus(cache) -> Path:
    """English documentation on this machine as a text file in the cache, one document per source file.

    Paragraphs of words, not of code, from the long strings of Python's, torch's and numpy's source: native
    functions get their docstrings as an argument. Nothing is run.
    """
    versions = f"{platform.python_version()}-{torch.__version__}-{np.__version__}-{TEXT_RULES}"
    path = Path(cache) / f"documentation-{versions}.txt"
    if path.is_file():
        return path
    word = re.compile(r"(?<!\S)[(\"'`]*[A-Za-z][a-z'-]*[.,;:?!)\"'`]*(?!\S)")
    documents = []
    roots = [Path(module.__file__).parent for module in (os, torch, np)]
    sources = [(source, source.relative_to(root)) for root in roots for source in sorted(root.rglob("*.py"))]
    for source, name in tqdm(sources, "reading documentation", leave=False, disable=None):
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(name.parts):
            continue
        with suppress(SyntaxError, ValueError, RecursionError, OSError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source.read_text(encoding="utf-8", errors="replace"))
            constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
            strings = [text for text in constants if isinstance(text, str) and len(text) > 40]
            blocks = [block.split() for text in strings for block in re.split(r"\n\s*\n", text)]
            prose = [" ".join(block) for block in blocks if len(block) >= 6 and ">>>" not in block]
            prose = [text for text in prose if len(word.findall(text)) >= 0.7 * len(text.split())]
            documents.append("\n".join(prose) + "\n\n")
    atomic_write(path, lambda file: file.write("".join(documents).encode("utf-8", "replace")))
    return path


def open_text(path):
    """A text file, unpacked where it is packed. Raises ValueError for JSON and markup, with the remedy."""
    with open(path, "rb") as file:
        unpack = {b"\x1f\x8b": gzip.open, b"\xfd7": lzma.open}.get(file.read(2), open)
    with unpack(path, "rb") as file:
        head = file.read(1000).removeprefix(b"\xef\xbb\xbf")  # a mark that some editors write
    head = head.lstrip().lower()
    if re.match(rb'[\[{][\[{\s]*"', head):
        raise ValueError(
            f"{path} is no plain text but JSON: write its texts to a file, as in README, A public corpus"
        )
    if head.startswith((b"<doc", b"<?xml", b"<!doctype", b"<html", b"<mediawiki", b"{\\rtf")):
        remedy = f"remove it (WikiExtractor's: sed -E 's#^</?doc.*##' {path} > NEW)"
        raise ValueError(f"{path} is no plain text but markup, which would be learned: {remedy}")
    return unpack(path, "rb")


def read_documents(paths):
    """The paragraphs of files, up to 1,000 at a time, and whether their document ends there: (list, bool).

    A document ends at an empty line and at the end of a file. Raises ValueError for what is no plain text.
    """
    for path in paths:
        paragraphs = []
        number = 0
        try:
            with open_text(path) as file:
                for line in file:
                    number += 1
                    text = line.decode("utf-8").strip()
                    if "\0" in text:
                        raise UnicodeError("a text has no such byte")
                    if paragraphs and (not text or len(paragraphs) == 1000):
                        yield paragraphs, not text
                        paragraphs = []
                    if text:
                        paragraphs.append(text)
        except UnicodeError:
            latin = f"iconv -f LATIN1 -t UTF-8 {path} > NEW (or -f UTF-16)"
            what = f"no UTF-8 text: unpack archives, export documents, convert older text with {latin}"
            raise ValueError(f"{path}, line {number}: {what}") from None
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
            raise ValueError(f"{path} is damaged or truncated after line {number} ({error})") from None
        if paragraphs:
            yield paragraphs, True


def learn_vocabulary(paths, size: int, cased: bool = False) -> Tokenizer:
    """A WordPiece tokenizer learned from files: the same pieces under the same ids every time.

    Left alone, the learner numbers characters, and breaks ties, at random: here they come as special tokens.
    """
    learner = BertWordPieceTokenizer(lowercase=not cased)
    counts = Counter()  # of characters
    for paragraphs, _ in read_documents(paths):
        counts.update(learner.normalizer.normalize_str(" ".join(paragraphs)))
    frequent = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    covered = np.cumsum([0, *(counts[c] for c in frequent)])  # of the text, by so many characters
    enough = int(np.searchsorted(covered, 0.995 * covered[-1]))  # thousands in Chinese, for example
    limit = max(min(1000, size // 4), min(enough, size // 2 - 5))
    alphabet = sorted(frequent[:limit])

    # Letters stand inside words too; signs and Chinese characters are words of their own.
    within = ["##" + c for c in alphabet if len(learner.pre_tokenizer.pre_tokenize_str("a" + c)) == 1]
    first = [*SPECIAL_TOKENS, *alphabet, *within]
    settings = {"initial_alphabet": alphabet, "limit_alphabet": len(alphabet), "special_tokens": first}
    texts = (paragraphs for paragraphs, _ in read_documents(paths))
    learner.train_from_iterator(texts, size, show_progress=False, **settings)
    return Tokenizer.from_str(BertWordPieceTokenizer(learner.get_vocab(), lowercase=not cased).to_str())


def encode_text(paths, tokenizer: Tokenizer, stream):
    """Write the token ids of each paragraph, and [SEP] where a document ends, to a file: (table, facts).

    A row of the table [n, 3] is a paragraph or a [SEP]: its tokens, its hash (0 below KNOWN_FROM characters),
    and whether its document's hash holds it out: equal documents are on the same side.
    """
    reader = text_tokenizer(tokenizer)
    unknown, sep = (tokenizer.token_to_id(token) for token in ("[UNK]", "[SEP]"))
    facts = Counter(unknown=0, too_long=0)
    table = array("q")
    documents = tqdm(read_documents(paths), "tokenising", unit=" docs", leave=False, disable=None)
    begins = True
    for paragraphs, ends in documents:
        if begins:  # a long document comes in parts: the first decides for all
            held_out = zlib.crc32("\n".join(paragraphs).encode()) < HELD_OUT * 2**32
        begins = ends
        strange = []  # paragraphs with [UNK]
        encodings = reader.encode_batch_fast(paragraphs, add_special_tokens=False)
        for text, encoding in zip(paragraphs, encodings, strict=True):
            ids = array("i", encoding.ids)
            stream.write(ids)
            # Python's hash is another in every process; these are compared within one.
            table.extend((len(ids), hash(text) if len(text) >= KNOWN_FROM else 0, held_out))
            if unknown in ids:
                strange.append(text)
        if ends:
            stream.write(array("i", [sep]))
            table.extend((1, 0, held_out))

        words = " ".join(paragraphs).split()
        facts.update(lines=len(paragraphs), documents=ends, characters=sum(map(len, words)))
        for encoding in reader.encode_batch(strange, add_special_tokens=False):
            pieces = zip(encoding.ids, encoding.offsets, strict=True)
            spans = [stop - start for number, (start, stop) in pieces if number == unknown]
            facts.update(unknown=sum(spans), too_long=sum(span for span in spans if span > 100))
        if facts["words"] < 50_000:  # the beginning tells what lower-casing would take away
            facts.update(words=len(words), changed=sum(map(has_capitals_or_marks, words)))
    return np.frombuffer(table, np.int64).reshape(-1, 3), facts


def has_capitals_or_marks(word: str) -> bool:
    """Whether BERT's lower-casing, which takes accents and other marks away too, would change a word."""
    letters = unicodedata.normalize("NFD", word)
    return any(letter.isupper() or unicodedata.category(letter) == "Mn" for letter in letters)


def tokenise(paths, tokenizer: Tokenizer, folder: Path):
    """Write two streams of token ids (int32), train.ids and held_out.ids, and facts.json about the text.

    Nothing is left out of the training text. Of the held-out text each paragraph of KNOWN_FROM characters or
    more is left out that the training text has too, so that no exam asks for it.
    """
    everything = folder / "text.ids"
    with open(everything, "wb") as stream:
        table, facts = encode_text(paths, tokenizer, stream)
    if not len(table):
        raise ValueError(f"{paths[0]}: 0 tokens are too few to learn from")

    # The sides are settled last, when it is known how much there is.
    tokens, held_out, known = split(*table.T)
    sep = np.int32(tokenizer.token_to_id("[SEP]")).tobytes()
    before = sep
    with (
        open(everything, "rb") as stream,
        open(folder / "train.ids", "wb") as train,
        open(folder / "held_out.ids", "wb") as exam,
    ):
        for count, is_held_out, is_known in zip(tokens, held_out, known, strict=True):
            ids = stream.read(4 * count)
            if not is_held_out:
                train.write(ids)
            elif not is_known and not (ids == before == sep):  # a document left out whole leaves no [SEP]
                exam.write(ids)
                before = ids
    everything.unlink()
    facts["left_out"] = int(known.sum())
    write_json(folder / "facts.json", facts)


def split(tokens, keys, by_hash):
    """Deal paragraphs: (tokens [n], which are held out, which of these are left out as known: bool [n]).

    tokens, keys, by_hash [n]: see encode_text. Held out are whole documents by their hash, if that gives
    half of HELD_OUT to 2.5 times as much, else the end of the text, cut inside a paragraph if it must be.
    """
    total = tokens.sum()
    least, most = HELD_OUT / 2 * total, 2.5 * HELD_OUT * total
    left = total - tokens.cumsum() + tokens  # from the start of each paragraph to the end of the text
    if not ((least <= left) & (left <= most)).any():
        long = np.flatnonzero(left > most)[-1]  # this paragraph becomes two
        before = left[long] - round(HELD_OUT * total)
        tokens = np.insert(tokens, long, before)
        tokens[long + 1] -= before
        keys, by_hash = np.insert(keys, long, 0), np.insert(by_hash, long, by_hash[long])
        left = total - tokens.cumsum() + tokens

    for held_out in (by_hash > 0, left <= HELD_OUT * total, left <= most):
        known = held_out & (keys != 0) & np.isin(keys, keys[~held_out])
        if least <= tokens[held_out & ~known].sum() <= most:
            break
    return tokens, held_out, known


# Text that was prepared by other rules is not used again: of these functions, constants, this tokenizers.
TEXT_FUNCTIONS = (builtin_corpus, open_text, read_documents, learn_vocabulary, text_tokenizer)
TEXT_FUNCTIONS += (encode_text, has_capitals_or_marks, tokenise, split)
TEXT_SETTINGS = (HELD_OUT, KNOWN_FROM, tokenizers.__version__)
text_sources = [inspect.getsource(function) for function in TEXT_FUNCTIONS]
TEXT_RULES = hashlib.sha256(f"{text_sources} {TEXT_SETTINGS}".encode()).hexdigest()[:8]


def prepare_text(o):
    """(tokenizer, training ids, held-out ids, name of the text); ids are memory-mapped, a stream per side.

    Tokenised once, into a cache folder that is named after the content of corpus and vocabulary and after
    the rules, when it is complete. Raises OSError or ValueError for text that cannot be used.
    """
    cache = Path(o.cache)
    cache.mkdir(parents=True, exist_ok=True)
    paths = o.corpus or [builtin_corpus(cache)]
    tokenizer = None
    if o.from_ or o.vocab:
        tokenizer = load_tokenizer(o.from_ or o.vocab, lowercase=False if o.cased else None)
    name = hashlib.sha256((tokenizer.to_str() if tokenizer else f"learn {o.vocab_size} {o.cased}").encode())
    for path in paths:
        if Path(path).exists() and not Path(path).is_file():
            raise ValueError(f"{path} is no file: name the files of a folder, write a pipe's text to a file")
        with open(path, "rb") as file:
            while block := file.read(2**20):
                name.update(block)
        name.update(b"\0")  # a file ends here: (ab, c) is not (a, bc)

    folder = cache / f"{name.hexdigest()[:16]}-{TEXT_RULES}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=cache, prefix="unfinished-") as work:
            if tokenizer is None:
                print(f"learning a vocabulary of {o.vocab_size:,} word pieces", flush=True)
                tokenizer = learn_vocabulary(paths, o.vocab_size, o.cased)
            unfinished = Path(work) / "text"
            unfinished.mkdir()
            tokenise(paths, tokenizer, unfinished)
            save_tokenizer(tokenizer, unfinished)
            with suppress(OSError):  # another run was faster
                unfinished.rename(folder)

    facts = read_json(folder / "facts.json")
    if facts["unknown"] > facts["characters"] / 2:
        raise ValueError(f"{paths[0]}: {why_unknown(o, facts)}")
    files = [folder / "train.ids", folder / "held_out.ids"]
    train, held_out = [
        np.memmap(f, np.int32, "c") if f.stat().st_size else np.empty(0, np.int32) for f in files
    ]
    train = train[: o.max_tokens or None]
    if min(len(train), len(held_out)) < o.seq_len - 2:
        few = f"{len(train):,} tokens and {len(held_out):,} held out that are not among them"
        raise ValueError(f"{paths[0]}: {few} are too few for rows of {o.seq_len}")
    return load_tokenizer(folder), train, held_out, folder.name


def why_unknown(o, facts: dict) -> str:
    """How much [UNK] stands for, why, and what to do."""
    if facts["too_long"] > facts["unknown"] / 2:
        why = "words of over 100 characters; see README, Texts that are not prose"
    elif o.from_ or o.vocab:
        why = f"letters that the vocabulary of {o.from_ or o.vocab} lacks: use one made for such text"
    else:
        why = "letters that are too rare for the learned vocabulary: a larger --vocab-size has more"
    return f"[UNK] stands for {facts['unknown'] / facts['characters']:.1%} of the characters: {why}"


def describe_text(run) -> str:
    """What a run read, and what is wrong with it, for its summary."""
    facts = read_json(Path(run.o.cache) / run.text_key / "facts.json")
    unknown = facts["unknown"] / facts["characters"]
    changed = facts["changed"] / facts["words"]
    masks = (run.exam[2] != IGNORE).sum().item()
    size = f"{facts['lines']:,} lines, {facts['documents']:,} documents, {facts['characters']:,} characters"
    cafe = run.tokenizer.normalizer.normalize_str("Café")
    lines = [
        f"text    {size}, {unknown:.1%} of them [UNK]",
        f"text    {len(run.train_ids):,} tokens, {len(run.held_out_ids):,} held out",
        f'words   {len(run.vocab):,} pieces; "Café" is read as "{cafe}"',
    ]
    if facts["left_out"]:
        left_out = f"{facts['left_out']:,} held-out paragraphs"
        lines.append(f"note    {left_out} are in the training text: not examined")
    if unknown > 0.02:
        lines.append(f"WARNING: {why_unknown(run.o, facts)}")
    if changed > 0.25 and run.tokenizer.normalizer.lowercase:
        lines.append(f'WARNING: {changed:.0%} of the words lose capitals or accents like "Café": try --cased')
    if masks < 1000:
        lines.append(f"WARNING: the exam has {masks} masked tokens, too few for an exact held-out loss")
    return "\n".join(lines)


# ---- rows ----


def seed_for(seed: int, purpose: str, step: int = 0) -> int:
    """The seed of one purpose at one step; see the head of this file."""
    purposes = ("weights", "order", "masks", "dropout", "exam")
    return int(np.random.SeedSequence([seed, purposes.index(purpose), step]).generate_state(1)[0])


@lru_cache(maxsize=2)
def row_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    """The order in which an epoch visits the rows."""
    return np.random.default_rng(seed_for(seed, "order", epoch)).permutation(rows)


def rows_of_step(o, step: int, rows: int) -> np.ndarray:
    """Numbers of the rows that a step trains on: epoch after epoch, every row once in each."""
    visits = range(step * o.batch_size, (step + 1) * o.batch_size)
    return np.array([row_order(o.seed, visit // rows, rows)[visit % rows] for visit in visits])


def take_rows(ids: np.ndarray, index: np.ndarray, seq_len: int, cls: int, sep: int) -> torch.Tensor:
    """Rows number `index` [n] of a stream, packed without padding: [CLS] + (seq_len - 2) tokens + [SEP]."""
    body = ids[index[:, None] * (seq_len - 2) + np.arange(seq_len - 2)].astype(np.int64)
    return torch.from_numpy(np.pad(body, ((0, 0), (1, 1)), constant_values=((0, 0), (cls, sep))))


def draw_exam(held_out_ids: np.ndarray, seq_len: int, cls: int, sep: int, mask: int):
    """Fixed held-out rows under fixed random masks, all [MASK]: (corrupted ids, places, labels)."""
    rows = len(held_out_ids) // (seq_len - 2)
    index = np.linspace(0, rows - 1, min(rows, EXAM_ROWS)).astype(int)
    ids = take_rows(held_out_ids, index, seq_len, cls, sep)
    eligible = masking.eligible_positions(ids, [cls, sep])
    rng = torch.Generator().manual_seed(seed_for(0, "exam"))
    selected = masking.select_positions("random", eligible, EXAM_RATIO, generator=rng)
    places = masking.as_places(selected, masking.mask_budget(seq_len - 2, EXAM_RATIO))
    hidden = selected.gather(1, places)  # rows with a [SEP] inside have fewer masks than places
    return ids.masked_fill(selected, mask), places, ids.gather(1, places).masked_fill(~hidden, IGNORE)


def examine(model, exam) -> tuple[float, float]:
    """Held-out loss (nats per token) and accuracy of any masked LM: the yardstick of all masking rules."""
    device = next(model.parameters()).device
    sums = torch.zeros(2, device=device)
    with masking.evaluating(model):
        for batch in zip(*(part.split(64) for part in exam), strict=True):
            ids, places, labels = [part.to(device) for part in batch]
            sums += torch.stack(mlm_loss(masking.logits_at(model, ids, places), labels))
    return tuple((sums / (exam[2] != IGNORE).sum()).tolist())


# ---- loss, schedule, hardware ----


def mlm_loss(logits: torch.Tensor, labels: torch.Tensor):
    """-sum over the masked tokens of log p(token), p = softmax(logits), and how many of them are its argmax.

    logits [..., V], labels [...] with -100 where there is no loss. Returns two float32 scalars; waits for no
    device: no boolean indices, no .item(). A sum and no mean: means of pieces of unequal size would weigh
    them alike, so whoever adds up several pieces divides once, by all of their masked tokens.
    """
    counted = labels != IGNORE
    log_p = logits.float().log_softmax(-1)
    target = log_p.gather(-1, labels.clamp_min(0)[..., None])[..., 0]
    correct = logits.argmax(-1) == labels
    return -target.masked_fill(~counted, 0).sum(), correct.sum().float()


class MaskedLoss(torch.autograd.Function):
    """(loss, correct, entropy [...]) = MaskedLoss.apply(logits [..., V], labels [...]): mlm_loss, faster.

    The gradient of -log p(y) is p - onehot(y), so one p, made for a few rows at a time, which stay in the
    processor's cache, gives loss, gradient and entropy (nats, for --reading memory). Autograd would write
    several tensors of the logits' size to memory and read each again. compiled: torch.compile(loss_of_rows)
    or None; what it makes needs no slices.
    """

    @staticmethod
    def forward(ctx, logits, labels, compiled=None):
        # float16 has no numbers below 6e-8, and GradScaler's factor comes only later: until then, another.
        ctx.unit = 4096.0 if logits.dtype == torch.float16 else 1.0
        gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        rows = max(1, masking.logits_per_slice(logits.device) // logits.shape[-1])
        if compiled:
            rows = labels.numel()
        parts = [tensor.flatten(0, -2).split(rows) for tensor in (logits, gradient, labels[..., None])]
        work = compiled or loss_of_rows
        results = [work(*part, ctx.unit) for part in zip(*parts, strict=True)]
        loss, correct, entropy, own = torch.cat(results).T

        word = labels.clamp_min(0)[..., None]
        gradient.scatter_(-1, word, own.to(gradient.dtype).view(word.shape))
        correct = correct.sum()
        entropy = entropy.reshape(labels.shape)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(correct, entropy)
        return loss.sum(), correct, entropy

    @staticmethod
    def backward(ctx, scale, *_):
        return ctx.saved_tensors[0] * (scale / ctx.unit), None, None


def loss_of_rows(logits, gradient, label, unit: float):
    """A slice of MaskedLoss, logits [rows, V] and label [rows, 1]: fills gradient [rows, V] with unit p.

    Returns [rows, 4]: loss, correct, entropy, and unit (p - 1), the gradient at the word itself.
    """
    counted = label != IGNORE  # [rows, 1]
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))  # at least: float64 stays
    highest, guess = z.max(-1, keepdim=True)
    z = z - highest
    word = z.gather(-1, label.clamp_min(0))
    z = z.clamp_min_(torch.finfo(z.dtype).min)  # the logit of a word that cannot be is -inf, and 0 x -inf NaN
    e = z.exp()
    total = e.sum(-1, keepdim=True)  # p = e / total
    log_sum = total.log()  # log p = z - log_sum
    loss = (log_sum - word).masked_fill(~counted, 0)
    entropy = log_sum - torch.linalg.vecdot(e, z)[:, None] / total
    weight = counted * unit / total
    gradient.copy_(e.mul_(weight))
    return torch.cat((loss, guess == label, entropy, word.exp() * weight - counted * unit), -1)


def as_steps(value: float, steps: int) -> int:
    """A number of steps, given as such or, below 1, as a share of all."""
    return round(value * steps) if value < 1 else round(value)


def learning_rate(step: int, steps: int, warmup: int, highest: float) -> float:
    """highest min((s + 1) / warmup, (steps - s) / (steps - warmup)) at step s = 0, 1, ... (BERT, A.2).

    Up, then down: the first step already learns, and 0 would be reached at step `steps`.
    """
    return highest * min((step + 1) / max(1, warmup), (steps - step) / max(1, steps - warmup))


def make_optimizer(model, lr: float, weight_decay: float = 0.01) -> torch.optim.AdamW:
    """AdamW, betas .9 and .999; matrices and embeddings decay, biases and LayerNorm do not; not the frozen.

    fused: one kernel for all parameters, in which no step waits for the device.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay}
    others = {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}
    return torch.optim.AdamW([decayed, others], lr=lr, betas=(0.9, 0.999), fused=True)


def pick_hardware(asked: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Resolve "auto": a GPU if there is one that works; bfloat16 where it is fast, or float16 on a GPU.

    On a GPU products that stay float32 use TF32. Raises ValueError for a device that cannot be used.
    """
    name = "cpu" if asked == "auto" else asked
    if asked in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        small = torch.ones(2, 2, device=name)
        (small @ small).tolist()  # the first product is where a card says what is wrong with it
    except (RuntimeError, AssertionError) as error:
        if asked == "auto" and "no kernel image" in str(error):
            return pick_hardware("cpu", dtype)  # unused_hardware says so
        raise ValueError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    device = small.device
    best = "float32"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
        best = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    elif device.type == "cpu" and torch.cpu._is_amx_tile_supported():
        best = "bfloat16"  # without AMX it is slower than float32, even where AVX-512 multiplies it
    return device, getattr(torch, best if dtype == "auto" else dtype)


def unused_hardware(asked: str, device: torch.device) -> list[str]:
    """A sentence on a card that is in this machine and not used by `--device auto`, with the remedy."""
    if asked != "auto" or device.type != "cpu" or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return []
    if torch.backends.mps.is_available():
        return ["Apple's GPU is not used: --device mps tries it (untested)"]
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []  # no driver, or no card
    card = found.partition("\n")[0].replace(", ", ", driver ")
    why = f"does not start CUDA {torch.version.cuda} with it"
    if torch.version.cuda is None:
        why = "is a build for CPUs"
    elif torch.cuda.is_available():
        why = f"has kernels for {' '.join(torch.cuda.get_arch_list())} alone"
    return [f"{card}, is not used: torch {torch.__version__} {why}; README, Install, says which torch fits"]


def keep_freed_ram():
    """Linux: let the C library keep freed memory; else the kernel clears large tensors anew in every step."""
    with suppress(AttributeError, OSError, TypeError):  # other systems have no mallopt
        for parameter, value in ((-4, 0), (-1, 2**31 - 1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(parameter, value)


# ---- one run ----


def add(sums: dict, values: dict):
    """Add values to running sums, in place."""
    for name, value in values.items():
        sums[name] = sums.get(name, 0) + value


def compile_parts(model):
    """Compile the encoder and the head, which have fixed shapes; what calls them stays as it is."""
    model.bert.compile()
    model.cls["predictions"].compile()


class Pretraining:
    """Hardware, text, model, optimiser, and what was measured so far. distill.py overrides the hooks."""

    def __init__(self, o):
        self.o = o
        self.step = 0
        self.seconds = 0.0  # of training, without evaluations
        self.log = []  # a dict per evaluation
        self.columns = {}  # what each of them says besides
        # Since the last evaluation, as running sums:
        self.sums = {}  # what `loss` measures, over the masked tokens
        self.seen = {}  # steps; ids [V], how often each word piece was masked; distinct, of them per step
        self.last = {}  # the last step's rows as the model read them, and where they were masked

        self.find_hardware()
        self.read_text()
        self.plan_masks()
        self.model = self.make_model().train().to(self.device)
        self.optimizer = make_optimizer(self.model, o.lr)
        self.compiled_loss = None
        if o.compile:
            compile_parts(self.model)
            self.compiled_loss = torch.compile(loss_of_rows)

    def find_hardware(self):
        """Device, dtype, and this process's share of the rows."""
        o = self.o
        self.rank = int(os.environ.get("RANK", 0))
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        self.device, self.dtype = pick_hardware(o.device, o.dtype)
        self.hardware = platform.machine()
        if self.device.type == "cuda":
            self.hardware = torch.cuda.get_device_name(self.device)
        # Matrix products in the chosen dtype; weights, softmax, LayerNorm and loss stay float32.
        mixed = self.dtype != torch.float32
        self.autocast = partial(torch.autocast, self.device.type, self.dtype, enabled=mixed)
        # float16 has no small numbers: gradients are scaled up, and a step in which they overflow is skipped.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        # The rows of a step that this process computes, in --accumulate slices.
        size = o.batch_size // (self.world * o.accumulate)
        first = self.rank * o.accumulate
        self.slices = [slice(i * size, (i + 1) * size) for i in range(first, first + o.accumulate)]

    def read_text(self):
        """Rows to train on, the vocabulary, how often each word occurs, and the held-out exam."""
        o = self.o
        wanted = o
        if self.continued() and (o.from_ or not Path(o.vocab).exists()):
            # The folder is gone, or may hold another model now; the run's own has the same vocabulary.
            wanted = argparse.Namespace(**vars(o) | {"from_": "", "vocab": o.out, "cased": False})
        if self.world > 1:
            if self.rank == 0:
                prepare_text(wanted)  # the others wait, and find it done
            dist.init_process_group(timeout=timedelta(days=1))  # texts and tables may take long
        self.tokenizer, self.train_ids, self.held_out_ids, self.text_key = prepare_text(wanted)
        self.content = {"text": self.text_key}  # what a resumed run must find as it was
        self.row_count = len(self.train_ids) // (o.seq_len - 2)
        self.vocab = self.tokenizer.get_vocab()
        self.pieces = sorted(self.vocab, key=self.vocab.get)
        self.special_ids = [self.vocab[token] for token in SPECIAL_TOKENS]
        self.cls_id, self.sep_id, self.mask_id = self.special_ids[2:]

        counts = torch.bincount(torch.from_numpy(self.train_ids), minlength=len(self.pieces))
        counts[self.sep_id] = 0  # it is never asked for
        self.unigram = (counts + 1.0) / (counts + 1.0).sum()  # word frequencies, add-one smoothing
        self.exam = draw_exam(self.held_out_ids, o.seq_len, self.cls_id, self.sep_id, self.mask_id)
        asked = self.exam[2][self.exam[2] != IGNORE]
        self.unigram_loss = -self.unigram.log()[asked].mean().item()  # nats: frequencies, nothing else

    def plan_masks(self):
        """How many masks a row gets, and what choosing them needs."""
        o = self.o
        # At most: [SEP] inside a row is not eligible, and whole words may not fit.
        self.masks_per_row = masking.mask_budget(o.seq_len - 2, o.mask_ratio)
        self.random_steps = as_steps(o.entropy_warmup, o.steps)
        self.continues = torch.tensor([piece.startswith("##") for piece in self.pieces], device=self.device)
        if o.whole_word and not self.continues.any():
            raise ValueError("--whole-word needs a vocabulary with ## pieces: here every piece is a word")
        self.memory = None
        if o.reading == "memory":
            self.memory = masking.EntropyMemory(self.row_count, o.seq_len, self.device)

    def continued(self) -> bool:
        """Whether this is a resumed run whose folder holds all of its model; that is written last."""
        return self.o.resume and Path(self.o.out, "tokenizer_config.json").exists()

    def read_model(self, folder, **changes) -> BertForMaskedLM:
        """The model of a folder. Raises ValueError if its tokenizer is another."""
        if load_tokenizer(folder).to_str() != self.tokenizer.to_str():
            remedy = f"try --vocab {folder}"
            if self.o.from_:  # it brings the vocabulary
                remedy = f"choose another --teacher, or --from {folder}"
            raise ValueError(f"{folder} splits text into other pieces than this run; {remedy}")
        return BertForMaskedLM.from_pretrained(folder, vocab_size=len(self.vocab), **changes)

    def make_model(self) -> BertForMaskedLM:
        """The model at the start: fresh weights, or those of --from."""
        o = self.o
        changes = {"hidden_dropout_prob": o.dropout, "attention_probs_dropout_prob": o.dropout}
        if o.from_:
            model = self.read_model(o.out if self.continued() else o.from_, **changes)
            known = model.config.trained_length  # of the longest rows so far; None: nobody knows
            model.config.trained_length = known and max(known, o.seq_len)
            return model
        changes |= {"vocab_size": len(self.vocab), "max_position_embeddings": max(512, o.seq_len)}
        changes["trained_length"] = o.seq_len
        model = BertForMaskedLM(BertConfig.preset(o.size, **changes))
        rng = torch.Generator().manual_seed(seed_for(o.seed, "weights"))
        init_normal(model, model.config.initializer_range, rng)
        if o.init == "offset-heads":
            init_offset_heads(model.bert, rng)
            # Word frequencies are the first thing an MLM learns; they may as well be given.
            model.cls["predictions"].bias.data.copy_(self.unigram.log())
        return model

    # -- one step --

    def update(self):
        """One step: rows, masks, loss, gradient, new weights. Nothing here waits for a GPU."""
        o = self.o
        size = len(self.vocab)
        torch.manual_seed(seed_for(o.seed, "dropout", self.step) + self.rank)

        # Rows, ids [B, T]: a function of (seed, step), the same for all rules.
        index = rows_of_step(o, self.step, self.row_count)
        ids = self.send(take_rows(self.train_ids, index, o.seq_len, self.cls_id, self.sep_id))

        # Masks: which they are is all in which rules differ. The head runs at these places [B, k] alone.
        rng = torch.Generator(self.device).manual_seed(seed_for(o.seed, "masks", self.step))
        selected = self.choose(ids, index, rng)
        corrupted, labels = masking.corrupt(
            ids, selected, self.mask_id, size, self.special_ids, o.corruption, rng
        )
        places = masking.as_places(selected, self.masks_per_row)
        labels = labels.gather(1, places)
        masked = labels != IGNORE  # a row may have fewer masks than places

        # The gradient of the mean over all masked tokens of the step, a slice of rows at a time.
        count = masked.sum().clamp_min(1)
        entropy = torch.zeros(places.shape, device=self.device)
        for rows in self.slices:
            loss, sums, entropy[rows] = self.loss(corrupted[rows], places[rows], labels[rows])
            self.scaler.scale(loss / count).backward()
            add(self.sums, sums)
        self.sum_gradients()

        # New weights, from a gradient of length 1 at most: a rare large one would undo much.
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, o.steps, as_steps(o.warmup, o.steps), o.lr)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

        # What the log and the memory keep of this step.
        counts = torch.zeros(size, device=self.device)  # [V], how often each word piece was masked
        counts.index_add_(0, labels.clamp_min(0).flatten(), masked.float().flatten())
        add(self.seen, {"steps": 1, "ids": counts, "distinct": (counts > 0).sum()})
        self.last = {"ids": corrupted, "selected": selected}
        if self.memory:
            blank = masked & (corrupted.gather(1, places) == self.mask_id)  # it was read as [MASK]
            self.memory.write(self.send(index), places, self.sum_over_processes(entropy), blank)
        self.step += 1

    def choose(self, ids, index, rng) -> torch.Tensor:
        """The positions to mask in the rows ids [B, T] of this step, number `index` [B]: bool [B, T]."""
        o = self.o
        rule = o.select
        if o.masking == "random" or self.step < self.random_steps:
            rule = "random"
        entropy_of = partial(self.entropies, ids, index)
        eligible = self.maskable(ids)
        factor = o.candidates if o.reading == "blank" else None  # the other readings know all positions
        tau = o.select_temperature
        words = self.word_starts(ids)
        return masking.choose_masks(entropy_of, eligible, rule, o.mask_ratio, factor, tau, rng, words)[0]

    # -- what distill.py overrides --

    check = staticmethod(check)

    def entropies(self, ids, index, candidates) -> torch.Tensor:
        """What the rule goes by, in the rows ids [B, T], number `index` [B]: entropies [B, T], nats."""
        if self.memory:
            return self.memory.read(self.send(index))
        return self.read_entropies(self.model, ids, candidates)

    def loss(self, corrupted, places, labels):
        """Rows [b, T] with labels at places [b, k] -> objective, what to log, entropies [b, k] in nats.

        The first two are sums over the masked tokens, and divided by their number later.
        """
        with self.autocast():
            logits = self.model(corrupted, places=places)
        loss, correct, entropy = MaskedLoss.apply(logits, labels, self.compiled_loss)
        return loss, {"loss": loss.detach(), "accuracy": correct}, entropy

    def summary(self) -> list[str]:
        """What is printed of a run before it starts."""
        o = self.o
        size = sum(p.numel() for p in self.model.parameters())
        masks = f"{o.masking}, {self.masks_per_row} of {o.seq_len - 2} tokens per row"
        if o.masking != "random":
            masks += f", {o.select} of {o.reading} entropy after {self.random_steps:,} random steps"
        epochs = f"{o.steps * o.batch_size / self.row_count:.1f} epochs"
        lines = [
            f"model   {o.from_ or o.size}: {size:,} parameters; {self.hardware}, {str(self.dtype)[6:]}",
            describe_text(self),
            f"steps   {o.steps:,} of {o.batch_size} x {o.seq_len} tokens, {epochs}; learning rate {o.lr:g}",
            f"masks   {masks}",
            f"unigram {self.unigram_loss:.3f} nats per token: the held-out loss of word frequencies alone",
        ]
        begins = self.random_steps
        if o.masking == "self" and o.reading == "memory":
            begins = max(begins, self.row_count // o.batch_size)  # the first row that comes again
        if o.masking != "random" and begins >= o.steps:
            known = f"no entropy is known before step {begins:,}"
            lines.append(f"WARNING: {known}: to its end this run is --masking random")
        lines += [f"note    {unused}" for unused in unused_hardware(o.device, self.device)]
        if self.device.type == "cuda" and o.batch_size * o.seq_len < 2**14:
            lines.append("note    so few tokens per step leave a GPU idle: try --batch-size 256 --compile")
        return lines

    # -- what a step is made of --

    def read_entropies(self, model, ids, candidates) -> torch.Tensor:
        """The blank reading of the candidates or, where these are None, the visible reading: [B, T], nats.

        Every process draws the same masks for all rows, so each reads its own rows and the results are added.
        """
        o = self.o
        width = masking.candidate_budget(o.seq_len - 2, o.mask_ratio, o.candidates)
        entropy = torch.zeros(ids.shape, device=self.device)
        for rows in self.slices:
            with self.autocast():
                if candidates is None:
                    entropy[rows] = masking.visible_entropy(model, ids[rows])
                else:
                    hidden = candidates[rows]
                    entropy[rows] = masking.blank_entropy(model, ids[rows], hidden, self.mask_id, width)
        return self.sum_over_processes(entropy)

    def maskable(self, ids) -> torch.Tensor:
        """Which tokens may be masked: bool [B, T]."""
        return masking.eligible_positions(ids, [self.cls_id, self.sep_id])

    def word_starts(self, ids) -> torch.Tensor | None:
        """Where words begin, bool [B, T]; None where each token is masked by itself."""
        if not self.o.whole_word:
            return None
        return masking.starts_of_words(~self.continues[ids], self.maskable(ids))

    def send(self, array) -> torch.Tensor:
        """To the device; from pinned memory, so that nobody waits for a GPU that is still at work."""
        tensor = torch.as_tensor(array)
        tensor = tensor.pin_memory() if self.device.type == "cuda" else tensor
        return tensor.to(self.device, non_blocking=True)

    def sum_over_processes(self, tensor) -> torch.Tensor:
        """In place; under torchrun alone."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def wait_for_others(self):
        """Until every process has come this far."""
        self.sum_over_processes(torch.zeros(1, device=self.device)).item()

    def sum_gradients(self):
        """The gradient of a sum is the sum of gradients: one call for all of them, under torchrun alone."""
        if self.world > 1:
            gradients = [parameter.grad for parameter in self.model.parameters()]
            vector_to_parameters(self.sum_over_processes(parameters_to_vector(gradients)), gradients)

    # -- evaluation and checkpoints --

    def means(self) -> dict:
        """What `loss` measures, per masked token since the last evaluation. This waits for the device."""
        sums = self.sum_over_processes(torch.stack([value.float() for value in self.sums.values()])).tolist()
        masks = self.seen["ids"].sum().item()
        return {name: value / masks for name, value in zip(self.sums, sums, strict=True)}

    def refuse_divergence(self, loss: float, worst: float = math.inf):
        """Raise ValueError where a loss is not finite or not below `worst`, or float16 loses gradients."""
        scale = self.scaler.get_scale()
        if not loss < worst or scale < 1:  # NaN is not below anything
            kept = f"{self.o.out} keeps step {self.log[-1]['step']}" if self.log else "nothing was saved yet"
            what = f"diverged at step {self.step}: loss {loss:.3g}, gradients scaled by {scale:g}"
            raise ValueError(f"{what} ({kept}); start anew with a lower --lr or --dtype float32")

    def mask_figures(self, ids, selected) -> dict:
        """What was masked since the last evaluation; entropy (nats) in the first slice of the rows `ids`."""
        first = self.slices[0]
        entropy = masking.blank_entropy(self.model, ids[first], selected[first], self.mask_id)
        steps = self.seen["steps"]
        masks = self.seen["ids"].sum()
        return {
            "masked_entropy": float(entropy.sum() / selected[first].sum()),
            "masked_per_row": float(masks / (steps * self.o.batch_size)),
            "distinct_ids": float(self.seen["distinct"] / steps),
            "commonest_share": float(self.seen["ids"].max() / masks),
        }

    def evaluate_and_save(self, speed: float = 0.0):
        """Evaluate, add a line to the log, save. speed: tokens per second since the last evaluation."""
        line = {"step": self.step, "tokens": self.step * self.o.batch_size * self.o.seq_len}
        with self.autocast(), torch.compiler.set_stance("force_eager"):  # other shapes: do not compile anew
            loss, accuracy = examine(self.model, self.exam)
            if self.sums:  # before the first step there are none
                line |= self.means() | self.mask_figures(**self.last)
                line["lr"] = self.optimizer.param_groups[0]["lr"]
        start = self.log[0]["held_out_loss"] if self.log else loss
        worst = max(3 * math.log(len(self.vocab)), start + 3)  # thrice a blind guess, or far above the start
        self.refuse_divergence(loss, worst)

        above_unigram = loss - self.unigram_loss
        plateau = above_unigram > -PLATEAU and all(past["on_plateau"] for past in self.log)
        line |= {"held_out_loss": loss, "held_out_accuracy": accuracy, "on_plateau": int(plateau)}
        line |= {"seconds": round(self.seconds, 2), "tokens_per_second": round(speed)} | self.columns
        self.log.append(line)
        if self.rank == 0:
            where = "on the plateau" if plateau else f"{above_unigram:+.2f} from the unigram loss"
            tqdm.write(f"step {self.step:,}: held-out loss {loss:.3f} ({where}), accuracy {accuracy:.3f}")
            self.warn_of_collapse()
            self.save()
        self.sums = {}
        self.seen = {}

    def warn_of_collapse(self):
        """Say it where the held-out loss rises far, or rises while one word takes over the masks."""
        above = self.log[-1]["held_out_loss"] - min(past["held_out_loss"] for past in self.log)
        common = self.log[-1].get("commonest_share", 0.0)
        too_common = common > 2.5 * self.unigram.max() and self.seen["ids"].sum() >= 1000
        if above > 0.3 or (above > 0.02 and too_common):
            what = f"held-out loss {above:.2f} above its best, the commonest mask {common:.1%} of all"
            tqdm.write(f"WARNING: {what}; see README, When masks collapse")

    def save(self):
        """Write checkpoint.pt, the model folder and the log; each file whole, or as it was."""
        out = Path(self.o.out)
        state = {"options": vars(self.o), "step": self.step, "seconds": self.seconds} | self.content
        state |= {"log": self.log, "memory": vars(self.memory) if self.memory else {}}
        state |= {"weights": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state["scaler"] = self.scaler.state_dict()
        atomic_write(out / "checkpoint.pt", lambda file: torch.save(state, file))
        self.model.save_pretrained(out, self.tokenizer)
        names = list(self.log[-1])  # the line of step 0 lacks some
        table = [names, *([line.get(name, "") for name in names] for line in self.log)]
        text = "".join(",".join(map(str, row)) + "\n" for row in table)
        atomic_write(out / "log.csv", lambda file: file.write(text.encode()))

    def load(self, state: dict):
        """Continue where a checkpoint stopped. Raises ValueError where it is of another text (or teacher)."""
        for name, key in self.content.items():
            began = str(state.get(name))
            if began == key:
                continue
            content, _, rules = began.partition("-")  # of a text; long ago its rules had no name
            if name == "text" and (not rules or key.startswith(content)):
                raise ValueError(f"{self.o.out} was made with older rules for text: start anew --from it")
            what = "text or vocabulary" if name == "text" else name
            raise ValueError(f"{self.o.out} began with another {what}: put it back, or start anew --from it")
        for name in ("step", "seconds", "log"):
            setattr(self, name, state[name])
        self.model.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # it is empty where the run began without float16
            self.scaler.load_state_dict(state["scaler"])
        for name, value in state["memory"].items():
            setattr(self.memory, name, value.to(self.device))


# ---- the program ----


def train(run: Pretraining):
    """The loop: a step, now and then an evaluation with a checkpoint."""
    o = run.o
    if not run.log:
        run.evaluate_and_save()  # what is there before the first step
    if run.step == o.steps and run.rank == 0:
        run.save()  # it was killed at its very end: files may be missing
    mark = time.perf_counter()
    with tqdm(total=o.steps, initial=run.step, disable=True if run.rank else None, unit=" steps") as bar:
        while run.step < o.steps:
            run.update()
            bar.update()
            evaluate = run.step % o.eval_every == 0 or run.step == o.steps
            if evaluate or run.step % 20 == 0:  # not every step: reading a number waits for the GPU
                means = run.means()
                run.refuse_divergence(means["loss"])
                seconds = time.perf_counter() - mark
                speed = (run.step - run.log[-1]["step"]) * o.batch_size * o.seq_len / seconds
                shown = {name: f"{value:.3f}" for name, value in means.items()}
                bar.set_postfix(shown | {"tokens/s": f"{speed:,.0f}"})
            if evaluate:
                run.seconds += seconds
                run.evaluate_and_save(speed)
                mark = time.perf_counter()


def record(run: Pretraining):
    """Write args.json: what a run is and how it began; a resumed run adds its command to the list there."""
    commit = ""
    with suppress(OSError):  # git is not installed
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    now = {"command": shlex.join(sys.argv), "git_commit": commit, "versions": versions}
    now |= {"device": run.hardware, "processes": run.world, "cpus": os.cpu_count()}
    facts = now | {"options": vars(run.o), "text": run.text_key, "unigram_floor": run.unigram_loss}
    path = Path(run.o.out, "args.json")
    if run.o.resume:
        with suppress(OSError, ValueError):  # it is missing or damaged: begin another
            facts = read_json(path)
            facts["resumed"] = [*facts.get("resumed", []), now | {"step": run.step}]
    write_json(path, facts)


def conclude(run: Pretraining):
    """Print what a run found, what it guesses in held-out text, and what to type next."""
    losses = [line["held_out_loss"] for line in run.log]
    lowest = min(losses)
    height = max(losses) - lowest or 1
    bars = "".join("▁▂▃▄▅▆▇█"[round(7 * (loss - lowest) / height)] for loss in losses)
    print(f"best    held-out loss {lowest:.3f} ({lowest - run.unigram_loss:+.2f} from the unigram loss)")
    print(f"curve   {losses[0]:.2f} {bars} {losses[-1]:.2f}")
    left = [line["step"] for line in run.log if not line["on_plateau"]]
    print(f"plateau left by step {left[0]:,}" if left else "plateau never left: see README, My loss is stuck")

    size = min(run.o.seq_len, 16)  # three short rows, each with the token in its middle hidden
    index = np.linspace(0, len(run.held_out_ids) // (size - 2) - 1, 30).astype(int)
    rows = take_rows(run.held_out_ids, index, size, run.cls_id, run.sep_id).to(run.device)
    rows = rows[rows[:, size // 2] != run.sep_id]
    rows = rows[:: max(1, len(rows) // 3)][:3]
    middle = torch.full((len(rows), 1), size // 2, device=run.device)
    with masking.evaluating(run.model), torch.compiler.set_stance("force_eager"):
        guesses = run.model(rows.scatter(1, middle, run.mask_id), places=middle)[:, 0].topk(3).indices
    for row, best in zip(rows.tolist(), guesses.tolist(), strict=True):
        pieces = [run.pieces[i] for i in row]
        pieces[size // 2] = f"[{pieces[size // 2]}? {' | '.join(run.pieces[i] for i in best)}]"
        print("guess   " + " ".join(pieces[1:-1]).replace(" ##", ""))

    out = Path(run.o.out)
    print(f"files   in {out}: model, tokenizer, log.csv, args.json, checkpoint.pt")
    print(f'next    python masking.py --model {shlex.quote(str(out))} --text "The cat sat on the mat."')
    others = [log.parent for log in sorted(out.parent.glob("*/log.csv")) if log.parent.name != out.name]
    if others:  # a picture holds eight
        runs = shlex.join(map(str, [*others[:7], out]))
        print(f"        python tests/lab/curves.py {runs} --out curves.svg")


def read_checkpoint(out: Path) -> dict:
    """The checkpoint of a folder. Raises ValueError where there is none, or it cannot be read."""
    path = out / "checkpoint.pt"
    left = f"a new run can start from the model beside it, if there is one: --from {out} --out ANOTHER"
    if not path.exists():
        raise ValueError(f"{out} holds no checkpoint to resume from: start without --resume; {left}")
    try:
        return read_torch(path)
    except Exception as error:  # torch.load raises many kinds
        raise ValueError(f"{path} cannot be read ({type(error).__name__}); {left}") from None


def resumed_options(parser, argv, began: dict):
    """The options a run began with, and what is typed now; ValueError where that is something else."""
    o = parser.parse_args(argv, argparse.Namespace(**began))
    if strange := ", ".join(sorted(began.keys() ^ vars(parser.parse_args([])).keys())):
        raise ValueError(f"{o.out} was begun by another program or version, with other options: {strange}")
    free = {"resume", "cache", "device", "compile"}
    free |= {"corpus", "vocab", "teacher"}  # these may have been moved: their content is compared
    if changed := ", ".join(option(n) for n in sorted(began) if n not in free and getattr(o, n) != began[n]):
        raise ValueError(f"{o.out} began with another {changed}: leave that out, or start anew --from it")
    return o


def main(parser, kind=Pretraining, argv=None):
    """A whole program: options, a new or a resumed run; what can be foreseen ends in one sentence."""
    with suppress(AttributeError):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character shows "?"
    o = parser.parse_args(argv)
    out = Path(o.out)
    keep_freed_ram()
    try:
        if o.resume:
            state = read_checkpoint(out)
            began = state["options"] | {"out": o.out}  # the folder may have been moved
            o = resumed_options(parser, argv, began)
        elif (out / "checkpoint.pt").exists() or (out / "model.safetensors").exists():
            raise ValueError(f"{out} holds a run or a model already: add --resume, or choose another --out")
        kind.check(o, parser, int(os.environ.get("WORLD_SIZE", 1)))
        out.mkdir(parents=True, exist_ok=True)
        run = kind(o)
        if o.resume:
            run.load(state)
        if run.rank == 0:
            record(run)
            print(*run.summary(), sep="\n")
        train(run)
        if run.rank == 0:
            conclude(run)
        run.wait_for_others()  # they may still write
        if run.world > 1 and argv is None:  # under torchrun all is done and saved
            sys.stdout.flush()
            os._exit(0)  # else torch's own threads, which may outlive it, now and then abort the process
        return run
    except KeyboardInterrupt:
        how = "nothing was saved yet, so start again with the same command"
        if (out / "checkpoint.pt").exists():
            how = "the same command with --resume continues from the last evaluation"
        sys.exit(f"{parser.prog}: stopped; {how}")
    except Exception as error:
        if o.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = " ".join(str(error).partition("\n\n")[0].split())
            sys.exit(f"{parser.prog}: --compile fails here ({reason}): leave it out")
        sys.exit(f"{parser.prog}: {explain(error)}")
    finally:
        with suppress(OSError):
            out.rmdir()  # where nothing was written, no empty folder is left
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main(make_parser(__doc__.splitlines()[0]))
