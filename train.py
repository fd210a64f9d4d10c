"""Pretrain a BERT with random or entropy-aware masking: `python train.py --help`.

In reading order: options, text, rows, loss and schedule, the run (masks, update, evaluation, checkpoint),
start. Every random number is a function of (seed, purpose, step): runs that differ in their masking rule
alone start from the same weights and see the same data in the same order, and a resumed run needs no saved
random state.
"""

import argparse
import ast
import csv
import ctypes
import gzip
import hashlib
import io
import json
import lzma
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from functools import lru_cache, partial
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tokenizers import BertWordPieceTokenizer, Tokenizer
from tqdm import tqdm

import masking
import model as bert
from masking import IGNORE, RULES, SCHEMES

# Dense bf16 peaks in FLOP/s (vendors' data sheets), for MFU; a card that is not listed gets none.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "4090": 165e12, "3090": 71e12}
HELD_OUT = 0.02  # share of the documents
EXAM_ROWS, EXAM_RATIO = 512, 0.15  # the shared held-out exam, whatever ratio a run trains with
RATE_ROWS = 4096  # rows of the text on which --masking frequency is set up
PLATEAU = 0.3  # nats below the unigram floor at which a run has left the plateau
SENTENCES = ("The capital of France [MASK] Paris.", "The function [MASK] a list.", "It is one of the [MASK].")
# What a checkpoint keeps beside weights and optimiser: first plain values, then tensors.
STATE = ("step", "seconds", "log", "sums", "counts", "distinct", "remembered", "memory", "mean_entropy")
STATE += ("seen", "masked", "word_weights")

# ---- options ----


def option(default, text, between=(0, 2**62), **settings):
    """A field of Options: its default, its line in --help, bounds of a number, what else argparse knows."""
    metadata = {"between": between, "argparse": {"help": text, **settings}}
    return field(default_factory=lambda: default, metadata=metadata)


def flag(name: str) -> str:
    """The option of a field: batch_size is --batch-size, and from_ is --from."""
    return "--" + name.strip("_").replace("_", "-")


@dataclass
class Options:
    """What a run is. Every field is a command-line option of the same name."""

    corpus: list = option([], ".txt, .gz or .xz files (default: documentation on this machine)", nargs="+")
    vocab: str = option("", "vocab.txt, one word piece a line (default: learned from the corpus)")
    vocab_size: int = option(8192, "word pieces of a vocabulary learned from the corpus", (100, 2**31))
    max_tokens: int = option(0, "training tokens of the corpus that are used, 0 for all")
    cache: str = option(".cache", "folder for tokenised text")
    size: str = option("tiny", "model size", choices=list(bert.SIZES))
    from_: str = option("", "continue pretraining this checkpoint folder, ours or Hugging Face's")
    init: str = option(
        "offset-heads", "first heads look at the neighbours, or N(0, .02)", choices=["offset-heads", "normal"]
    )
    dropout: float = option(0.0, "dropout of the pretraining", (0, 0.9))
    seq_len: int = option(128, "tokens a row, [CLS] and [SEP] included", (8, 2**20))
    batch_size: int = option(16, "rows a step, over all processes", (1, 2**62))
    accumulate: int = option(1, "pieces in which a process computes its rows, to save memory", (1, 2**62))
    steps: int = option(2000, "updates of the weights", (1, 2**62))
    lr: float = option(0.0, "highest learning rate; 0: 1e-3, from small on 5e-4", (1e-12, 1e3))
    warmup: float = option(0.05, "steps until it is reached (below 1: share of --steps); then linear to 0")
    masking: str = option(
        "self",
        "whose entropy chooses the masks; frequency: nobody's, but each word as often as --like did",
        choices=["random", "self", "teacher", "frequency"],
    )
    like: str = option("", "folder of the run whose masks --masking frequency imitates, word by word")
    reading: str = option(
        "blank",
        "entropy of tokens as seen, as hidden, or as remembered from when they were last masked (self only)",
        choices=["visible", "blank", "memory"],
    )
    entropy_every: int = option(0, "--reading memory: read blanks afresh in every n-th epoch; 0: never")
    candidates: float = option(2.0, "blanks tried per mask in the blank reading", (1, 1e3))
    select: str = option("sample", "rule that picks the masks by entropy", choices=list(RULES))
    select_temperature: float = option(1.0, "tau of --select sample", (1e-3, 1e6))
    mask_ratio: float = option(0.15, "share of the tokens that is masked")
    random_share: float = option(0.0, "part of the masks drawn at random instead", (0, 1))
    entropy_warmup: float = option(0.3, "steps with random masks first (below 1: share of --steps)")
    whole_word: bool = option(False, "mask all pieces of a word together")
    corruption: str = option("80-10-10", "[MASK]-random-unchanged", choices=list(SCHEMES))
    teacher: str = option("", "checkpoint folder of the model for --masking teacher")
    seed: int = option(0, "seed of weights, order, masks and dropout")
    out: str = option("runs/train", "folder for the model, its checkpoints, log.csv and args.json")
    resume: bool = option(False, "go on with the run in --out, under its options")
    eval_every: int = option(250, "steps between evaluations, log lines and checkpoints", (1, 2**62))
    compile: bool = option(False, "use torch.compile, if it works")
    dtype: str = option("auto", "auto: bfloat16 if fast here", choices=["auto", "float32", "bfloat16"])
    device: str = option("auto", "cpu, cuda, mps; auto: cuda if there is one")

    def __post_init__(self):
        self.lr = self.lr or (1e-3 if self.size in ("tiny", "mini") else 5e-4)

    def without_effect(self) -> list:
        """(whether it applies, a choice, the options that have no effect with it)."""
        masks, reading = f"--masking {self.masking}", f"--reading {self.reading}"
        reads_blanks = self.reading == "blank" or (self.reading == "memory" and self.entropy_every)
        by_entropy = "reading select select_temperature random_share candidates entropy_every"
        return [
            (self.from_, "--from", "vocab vocab_size size init"),
            (self.vocab, "--vocab", "vocab_size"),
            (self.masking == "random", masks, by_entropy + " entropy_warmup"),
            (self.masking == "frequency", masks, by_entropy + " whole_word"),
            (self.masking != "frequency", masks, "like"),
            (self.masking != "teacher", masks, "teacher"),
            (not reads_blanks, reading, "candidates"),
            (self.reading != "memory", reading, "entropy_every"),
            (self.select != "sample", f"--select {self.select}", "select_temperature"),
        ]

    def check(self, given, world: int = 1):
        """Refuse values that cannot be and options given that would have no effect. Raises ValueError."""
        for applies, choice, names in self.without_effect():
            for name in names.split():
                if applies and name in given:
                    raise ValueError(f"{flag(name)} has no effect with {choice}: leave one of them out")
        if self.masking != "random" and self.select == "random":
            raise ValueError("--select random reads entropies for nothing: say --masking random")
        for choice, name in (("teacher", "teacher"), ("frequency", "like")):
            if self.masking == choice and not getattr(self, name):
                raise ValueError(f"--masking {choice} needs {flag(name)} FOLDER")
        if self.reading == "memory" and self.masking != "self":
            raise ValueError("--reading memory remembers a model's own entropies: it needs --masking self")
        for f in fields(self):
            value, (least, most) = getattr(self, f.name), f.metadata["between"]
            choices = f.metadata["argparse"].get("choices", [value])
            if type(value) is not type(f.default_factory()) or value not in choices:
                raise ValueError(f"{flag(f.name)} cannot be {value!r}")
            if isinstance(value, (int, float)) and not least <= value <= most:
                raise ValueError(f"{flag(f.name)} {value} is not between {least} and {most}")
        list(map(Path, self.corpus))  # raises for what is no path
        masking.mask_budget(self.seq_len - 2, self.mask_ratio)  # raises for a bad ratio
        if self.batch_size % (self.accumulate * world):
            raise ValueError(
                f"--batch-size {self.batch_size} is no multiple of {self.accumulate * world} pieces"
            )


def parse_options(kind, description, argv=None) -> dict:
    """The options of dataclass `kind` that the command line gives, by field name; --help explains all."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows "?"
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    for f in fields(kind):
        default, settings = f.default_factory(), dict(f.metadata["argparse"])
        settings["help"] += "" if default is False or default in ("", []) else f" (default: {default})"
        if isinstance(default, bool):
            settings["action"] = "store_true"
        elif isinstance(default, (int, float)):
            settings["type"] = type(default)
        parser.add_argument(flag(f.name), dest=f.name, default=argparse.SUPPRESS, **settings)
    return vars(parser.parse_args(argv))


# ---- text ----


def builtin_corpus(cache) -> Path:
    """English documentation on this machine as a text file in the cache, one document per source file.

    Strings of the sources of Python, torch and numpy, read through `ast`: nothing is imported or run. Native
    functions get their docstrings as an argument of a call, so every long string is looked at; kept are
    paragraphs that are mostly words and no code.
    """
    roots = [Path(module.__file__).parent for module in (os, torch, np)]
    path = Path(cache) / f"documentation-{platform.python_version()}-{torch.__version__}-{np.__version__}.txt"
    if path.is_file():
        return path
    word = re.compile(r"(?<!\S)[(\"'`]*[A-Za-z][a-z'-]*[.,;:?!)\"'`]*(?!\S)")
    sources, documents = [(root, source) for root in roots for source in sorted(root.rglob("*.py"))], []
    for root, source in tqdm(sources, "reading documentation", leave=False, disable=None):
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(source.relative_to(root).parts):
            continue
        # a template, or a test of the parser, is no documentation either
        with suppress(SyntaxError, ValueError, RecursionError, OSError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source.read_text(encoding="utf-8", errors="replace"))
            constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
            strings = [text for text in constants if isinstance(text, str) and len(text) > 40]
            blocks = [block.split() for text in strings for block in re.split(r"\n\s*\n", text)]
            prose = [" ".join(block) for block in blocks if len(block) >= 6 and ">>>" not in block]
            prose = [text for text in prose if len(word.findall(text)) >= 0.7 * len(text.split())]
            documents.append("\n".join(prose) + "\n\n")
    bert.atomic_write(path, lambda file: file.write("".join(documents).encode("utf-8", "replace")))
    return path


def read_documents(paths):
    """The documents of .txt, .gz or .xz files, each a list of paragraphs; one of over 1,000 is cut."""
    for path in paths:
        opener = {".gz": gzip.open, ".xz": lzma.open}.get(Path(path).suffix, open)
        try:
            with opener(path, "rt", encoding="utf-8") as file:
                for has_text, paragraphs in groupby(map(str.strip, file), bool):
                    while has_text and (document := list(islice(paragraphs, 1000))):
                        yield document
        except (EOFError, UnicodeDecodeError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
            raise ValueError(f"{path} is damaged, truncated or not UTF-8 text ({error})") from None


def tokenise(documents, tokenizer: Tokenizer, folder: Path) -> dict:
    """Write two streams of token ids (int32), train.ids and held_out.ids; returns what was counted.

    A document's side follows from a hash of its text. Paragraphs that differ only in case, spaces or digits
    count as the same, and the first one wins on both sides together: none is in both. A literal "[MASK]" in a
    text stays text. Memory grows with the number of paragraphs (a hash of each), not with their length.
    """
    counted, seen = np.zeros(4, np.int64), set()
    tokenizer.encode_special_tokens = True
    with open(folder / "train.ids", "wb") as train, open(folder / "held_out.ids", "wb") as held_out:
        for document in tqdm(documents, "tokenising", unit=" documents", leave=False, disable=None):
            new = []
            for paragraph in document:
                plain = re.sub(r"\d+", "0", " ".join(paragraph.lower().split()))
                key = hashlib.blake2b(plain.encode("utf-8", "replace"), digest_size=8).digest()
                if key not in seen:
                    seen.add(key)
                    new.append(paragraph)
            draw = zlib.crc32("\n".join(new).encode("utf-8", "replace")) / 2**32
            for encoding in tokenizer.encode_batch_fast(new, add_special_tokens=False):
                (held_out if draw < HELD_OUT else train).write(np.array(encoding.ids, np.int32).tobytes())
            counted += (1, len(document), len(document) - len(new), sum(map(len, new)))
    names = ("documents", "paragraphs", "duplicates", "characters")
    return dict(zip(names, counted.tolist(), strict=True))


def digest_of(text: str, paths) -> str:
    """16 hexadecimal digits that follow from a text and the content of files."""
    digest = hashlib.sha256(text.encode())
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()[:16]


def learn_vocabulary(paths, size: int) -> Tokenizer:
    """A WordPiece tokenizer learned from files: the same pieces under the same ids every time.

    The learner would number single characters, and break ties, at random: here they come as special tokens.
    """
    learner, counts = BertWordPieceTokenizer(), Counter()
    for document in read_documents(paths):
        counts.update(learner.normalize(" ".join(document)))
    frequent = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    alphabet = sorted(frequent[: min(1000, size // 4)])
    within = ["##" + c for c in alphabet if len(learner.pre_tokenizer.pre_tokenize_str("a" + c)) == 1]
    first = [*bert.SPECIAL_TOKENS, *alphabet, *within]
    settings = {"initial_alphabet": alphabet, "limit_alphabet": len(alphabet), "special_tokens": first}
    paragraphs = (paragraph for document in read_documents(paths) for paragraph in document)
    learner.train_from_iterator(paragraphs, size, show_progress=False, **settings)
    return Tokenizer.from_str(BertWordPieceTokenizer(learner.get_vocab()).to_str())


def tokenise_once(folder: Path, paths, tokenizer: Tokenizer | None, vocab_size: int) -> dict:
    """Tokenise a corpus into a folder, unless it is there; learn the vocabulary if there is none.

    Returns what was counted. This is written last, with a digest: without it a folder is not whole.
    """
    sealed = [folder / name for name in ("train.ids", "held_out.ids", "tokenizer.json")]
    with suppress(OSError, ValueError, KeyError):
        facts = bert.read_json(folder / "facts.json")
        if facts.pop("digest") == digest_of(json.dumps(facts), sealed):
            return facts
    if folder.exists():
        print(f"{folder} is not complete or damaged: made again", flush=True)
        shutil.rmtree(folder)
    try:
        folder.mkdir()
        if not tokenizer:
            print(f"learning a vocabulary of {vocab_size:,} word pieces", flush=True)
            tokenizer = learn_vocabulary(paths, vocab_size)
        facts = tokenise(read_documents(paths), tokenizer, folder)
        bert.save_tokenizer(tokenizer, folder)
        bert.write_json(folder / "facts.json", facts | {"digest": digest_of(json.dumps(facts), sealed)})
        return facts
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno and not error.filename:  # it does not say where
            raise OSError(f"cannot write {folder} ({error.strerror})") from None
        raise


def prepare_text(o: Options):
    """(tokenizer, training ids, held-out ids, facts); ids are memory-mapped, one stream a side.

    Tokenised once, into a cache folder named after the corpus and vocabulary: of several processes one does
    it, and the others wait. Raises OSError or ValueError where these are missing, damaged or too short.
    """
    cache, body = Path(o.cache), o.seq_len - 2
    cache.mkdir(parents=True, exist_ok=True)
    tokenizer = bert.load_tokenizer(o.from_ or o.vocab) if o.from_ or o.vocab else None
    with bert.lock(cache / "text.lock", wait=True):
        paths = [Path(path) for path in o.corpus] or [builtin_corpus(cache)]
        folder = cache / digest_of(tokenizer.to_str() if tokenizer else f"learn {o.vocab_size} pieces", paths)
        facts = tokenise_once(folder, paths, tokenizer, o.vocab_size)
    files = [folder / "train.ids", folder / "held_out.ids"]
    sides = [np.memmap(f, np.int32, "r") if f.stat().st_size else np.empty(0, np.int32) for f in files]
    train, held_out = sides
    if min(len(train), len(held_out)) < body:  # few documents: the end of the text is held out instead
        everything = np.concatenate(sides)
        cut = max(0, len(everything) - max(body, int(HELD_OUT * len(everything))))
        train, held_out = everything[:cut], everything[cut:]
    train = train[: o.max_tokens or None]
    if len(train) < body:
        raise ValueError(f"{paths[0]}: {len(train)} tokens are too few to train on rows of {o.seq_len}")
    return bert.load_tokenizer(folder), train, held_out, facts | {"key": folder.name}


# ---- rows ----


def stream(seed: int, purpose: str, step: int = 0) -> int:
    """The seed of one purpose at one step; see the head of this file."""
    purposes = ("weights", "order", "masks", "dropout", "exam")
    return int(np.random.SeedSequence([seed, purposes.index(purpose), step]).generate_state(1)[0])


@lru_cache(maxsize=2)
def row_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    """The order in which an epoch visits the rows."""
    return np.random.default_rng(stream(seed, "order", epoch)).permutation(rows)


def rows_of_step(o: Options, step: int, rows: int) -> np.ndarray:
    """Numbers of the rows that a step trains on: epoch after epoch, every row once in each."""
    visits = range(step * o.batch_size, (step + 1) * o.batch_size)
    return np.array([row_order(o.seed, visit // rows, rows)[visit % rows] for visit in visits])


def take_rows(ids: np.ndarray, index: np.ndarray, seq_len: int, cls: int, sep: int) -> torch.Tensor:
    """Rows number `index` [n] of a stream, packed without padding: [CLS] + (seq_len - 2) tokens + [SEP]."""
    body = ids[index[:, None] * (seq_len - 2) + np.arange(seq_len - 2)].astype(np.int64)
    return torch.from_numpy(np.pad(body, ((0, 0), (1, 1)), constant_values=((0, 0), (cls, sep))))


# ---- loss and schedule ----


def mlm_loss(logits: torch.Tensor, labels: torch.Tensor):
    """-sum over the masked tokens of log p(token), p = softmax(logits), and how many of them are its argmax.

    logits [..., V], labels [...] with -100 where there is no loss. Returns two float32 scalars. The caller
    divides by the masked tokens of the whole step: a mean of means would weigh pieces of unequal size alike.
    """
    log_p, counted = logits.float().log_softmax(-1), labels != IGNORE
    target = log_p.gather(-1, labels.clamp_min(0)[..., None])[..., 0]
    right = logits.argmax(-1) == labels
    return -target.masked_fill(~counted, 0).sum(), right.sum().float()


class MaskedLoss(torch.autograd.Function):
    """(loss, right, entropy [...]) = MaskedLoss.apply(logits [..., V], labels [...]): mlm_loss, faster.

    The gradient of -log p(y) is p - onehot(y), so that one p, made a slice of rows at a time while it is in
    the processor's cache, gives the loss, the gradient and the entropy of each blank in nats (for --reading
    memory). Autograd would make several tensors of the logits' size and read each from memory again.
    """

    @staticmethod
    def forward(ctx, logits, labels):
        rows = max(1, masking.slice_size(logits.device) // logits.shape[-1])
        gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        parts = (tensor.flatten(0, -2).split(rows) for tensor in (logits, gradient, labels[..., None]))
        results = []  # of every slice: loss, right and entropy, [rows, 3]
        for z, slope, label in zip(*parts, strict=True):
            counted, word = label != IGNORE, label.clamp_min(0)  # [rows, 1]
            z = z.to(torch.promote_types(z.dtype, torch.float32))  # at least: float64 stays
            highest, guess = z.max(-1, keepdim=True)
            z = z - highest
            e = z.exp()
            total = e.sum(-1, keepdim=True)  # p = e / total
            log_sum = total.log()  # log p = z - log_sum
            loss, right = (log_sum - z.gather(-1, word)) * counted, guess == label
            entropy = log_sum - torch.linalg.vecdot(e, z)[:, None] / total
            results.append(torch.cat((loss, right, entropy), -1))
            slope.copy_(e.mul_(counted / total).scatter_add_(-1, word, -counted.to(e.dtype)))
        loss, right, entropy = torch.cat(results).T
        loss, right, entropy = loss.sum(), right.sum(), entropy.reshape(labels.shape)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(right, entropy)
        return loss, right, entropy

    @staticmethod
    def backward(ctx, scale, *_):
        return ctx.saved_tensors[0] * scale, None


def as_steps(value: float, steps: int) -> int:
    """A number of steps, given as such or, below 1, as a share of all."""
    return round(value * steps) if value < 1 else round(value)


def learning_rate(step: int, steps: int, warmup: int, highest: float) -> float:
    """highest min((s + 1) / warmup, (steps - s) / (steps - warmup)) at step s = 0, 1, ... (BERT, A.2).

    Up, then down: the first step already learns, and 0 would be reached at step `steps`. Without a warm-up
    it starts at the top; where all is warm-up it only rises.
    """
    return highest * min((step + 1) / max(1, warmup), (steps - step) / max(1, steps - warmup))


def make_optimizer(model, lr: float, weight_decay: float = 0.01) -> torch.optim.AdamW:
    """AdamW; matrices and embeddings decay, biases and LayerNorm do not; frozen parameters are left out."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay}
    others = {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}
    return torch.optim.AdamW([decayed, others], lr=lr, betas=(0.9, 0.999), fused=True)


def forward_flops(c: bert.BertConfig, seq_len: int, decoded: float) -> float:
    """Multiplications and additions a token of one forward pass, with the head at a share of the tokens."""
    layer = 8 * c.hidden_size**2 + 4 * c.hidden_size * c.intermediate_size + 4 * seq_len * c.hidden_size
    return c.num_hidden_layers * layer + decoded * 2 * c.hidden_size * (c.hidden_size + c.vocab_size)


def pick_hardware(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Resolve "auto": a GPU if there is one; bfloat16 where the hardware multiplies it, else float32."""
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    device = "cpu" if device == "auto" else device
    try:
        device = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from None
    # A CPU without instructions for bfloat16 imitates it, slower than float32; not every version can say.
    fast = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return device, getattr(torch, dtype if dtype != "auto" else "bfloat16" if fast else "float32")


def keep_memory():
    """On Linux: the C library keeps freed memory. Else large tensors are new, and cleared, in every step."""
    with suppress(AttributeError, OSError, TypeError):  # other systems have no mallopt
        for parameter, value in ((-4, 0), (-1, 2**31 - 1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(parameter, value)


def write_table(path: Path, rows: list):
    """Write rows {column: value} as CSV, whole or not at all."""
    table = io.StringIO()
    csv.writer(table).writerows([rows[0], *(row.values() for row in rows)])  # the keys, then all values
    bert.atomic_write(path, lambda file: file.write(table.getvalue().encode()))


# ---- the run ----


class Pretraining:
    """One run: text, model, optimiser and what was measured so far. distill.py has a subclass."""

    columns = ("loss", "accuracy")  # what `loss` measures, summed over the masked tokens
    extra_columns: dict = {}  # figures that stand beside the held-out score in every line of the log

    def __init__(self, o: Options):
        self.o, self.step, self.seconds, self.log = o, 0, 0.0, []
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device, self.dtype = pick_hardware(o.device, o.dtype)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world > 1:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(days=1))  # the others wait while one tokenises
        # Matrix products in the chosen dtype; weights, softmax, LayerNorm and loss stay float32.
        mixed = self.dtype != torch.float32
        self.autocast = partial(torch.autocast, self.device.type, self.dtype, enabled=mixed)
        # The rows of a step that this process computes, in --accumulate slices.
        size, first = o.batch_size // (self.world * o.accumulate), self.rank * o.accumulate
        self.shares = [slice(i * size, (i + 1) * size) for i in range(first, first + o.accumulate)]
        self.tokenizer, self.train_ids, self.held_out_ids, self.facts = prepare_text(o)
        self.row_count = len(self.train_ids) // (o.seq_len - 2)
        self.vocab = self.tokenizer.get_vocab()
        self.pieces = sorted(self.vocab, key=self.vocab.get)
        if max(self.vocab.values()) >= len(self.pieces):
            raise ValueError(f"{o.from_ or o.vocab}: the vocabulary repeats or leaves out an entry")
        self.special = [self.vocab[token] for token in bert.SPECIAL_TOKENS]
        self.cls, self.sep, self.mask = self.special[2:]
        self.eligible = partial(masking.eligible_positions, never=[self.cls, self.sep])  # bool [B, T] of ids
        self.continues = torch.tensor([piece.startswith("##") for piece in self.pieces], device=self.device)
        self.masks_per_row = masking.mask_budget(o.seq_len - 2, o.mask_ratio)  # k, the same in every row
        self.random_steps = as_steps(o.entropy_warmup, o.steps)
        parts = np.array_split(self.train_ids, 1 + len(self.train_ids) // 2**22)  # bincount makes a copy
        counts = torch.from_numpy(sum(np.bincount(part, minlength=len(self.pieces)) for part in parts))
        self.unigram = (counts + 1.0) / (counts + 1.0).sum()  # word frequencies, add-one smoothing
        self.exam = self.draw_exam()
        self.floor = -self.unigram.log()[self.exam[2]].mean().item()  # nats
        self.teacher = self.read_model(o.teacher).requires_grad_(False).to(self.device) if o.teacher else None
        self.model = self.make_model().train().to(self.device)
        self.optimizer = make_optimizer(self.model, o.lr)
        with self.device:
            # Since the last evaluation: sums of the columns and of masked tokens; how often each id was
            # masked; ids masked in a step, summed over the steps; masks at places with a remembered entropy.
            self.sums, self.counts = torch.zeros(len(self.columns) + 1), torch.zeros(len(self.pieces))
            self.distinct, self.remembered = torch.zeros(2)
            # For --reading memory: the entropy of every token of the text when it was last a blank, NaN:
            # never; and the running mean of the blanks' entropies. Nats.
            size = (self.row_count, o.seq_len) if o.reading == "memory" else (0,)
            self.memory, self.mean_entropy = torch.full(size, torch.nan, dtype=torch.float16), torch.zeros(())
            # After --entropy-warmup: how often each id was seen, and how often it was masked.
            self.seen, self.masked = torch.zeros(2, len(self.pieces), dtype=torch.long)
            self.word_weights = torch.zeros(0)
        if o.masking == "frequency":
            self.word_weights = self.imitate(o.like)
        if o.compile:
            self.compile()

    def make_model(self) -> bert.BertForMaskedLM:
        """The model at the start: fresh weights, or those of --from."""
        o = self.o
        changes = {"hidden_dropout_prob": o.dropout, "attention_probs_dropout_prob": o.dropout}
        if o.from_:
            return self.read_model(o.from_, **changes)
        changes |= {"vocab_size": len(self.vocab), "max_position_embeddings": max(512, o.seq_len)}
        model = bert.BertForMaskedLM(bert.BertConfig.preset(o.size, **changes))
        rng = torch.Generator().manual_seed(stream(o.seed, "weights"))
        bert.init_normal(model, model.config.initializer_range, rng)
        if o.init == "offset-heads":
            bert.init_offset_heads(model.bert, rng)
            # Word frequencies are the first thing an MLM learns; they may as well be given.
            model.cls["predictions"].bias.data.copy_(self.unigram.log())
        return model

    def read_model(self, folder, **changes) -> bert.BertForMaskedLM:
        """The model of a folder. Raises ValueError if its vocabulary is another or its size too small."""
        if bert.load_tokenizer(folder).get_vocab() != self.vocab:
            raise ValueError(f"{folder} has another vocabulary than this run; try --vocab {folder}")
        model = bert.BertForMaskedLM.from_pretrained(folder, **changes)
        if model.config.max_position_embeddings < self.o.seq_len or model.config.vocab_size < len(self.vocab):
            raise ValueError(f"{folder}: its model has too few positions for --seq-len, or word pieces")
        return model

    def imitate(self, folder) -> torch.Tensor:
        """Weights [V] of token ids with which `sample` masks each as often as the run in a folder did."""
        path = Path(folder) / "masked.csv"
        try:
            with open(path, encoding="utf-8", newline="") as file:
                rows = {row["token"]: (int(row["seen"]), int(row["masked"])) for row in csv.DictReader(file)}
            if list(rows) != self.pieces:
                raise ValueError
        except (KeyError, TypeError, ValueError, csv.Error):
            cure = f"end that run with --resume, or try --vocab {folder}"
            raise ValueError(f"{path} is damaged or counts other word pieces: {cure}") from None
        seen, masked = torch.tensor(list(rows.values())).T
        if not masked.any():
            raise ValueError(f"{path} counts no masks yet: that run has not passed its --entropy-warmup")
        rates = (masked + self.o.mask_ratio) / (seen + 1)  # what was never seen is masked like the average
        index = np.linspace(0, self.row_count - 1, min(self.row_count, RATE_ROWS)).astype(int)
        ids = take_rows(self.train_ids, index, self.o.seq_len, self.cls, self.sep)
        return masking.weights_for_rates(ids, self.eligible(ids), self.o.mask_ratio, rates).to(self.device)

    def compile(self):
        """torch.compile for encoder and head in place, tried on one piece; falls back and says why."""
        parts = [part for m in (self.model, self.teacher) if m for part in (m.bert, m.cls["predictions"])]
        ids = torch.zeros(self.shares[0].stop, self.o.seq_len, dtype=torch.long, device=self.device)
        try:
            for part in parts:
                part.compile()
            self.loss(ids, ids[:, : self.masks_per_row], ids[:, : self.masks_per_row])[0].backward()
        except Exception as error:
            print(f"going on without --compile: {type(error).__name__}: {str(error).splitlines()[0]}")
            for part in parts:
                part._compiled_call_impl = None
        self.optimizer.zero_grad()

    def send(self, array) -> torch.Tensor:
        """To the device; from pinned memory, so that nobody waits for a GPU that is still at work."""
        tensor = torch.as_tensor(array)
        tensor = tensor.pin_memory() if self.device.type == "cuda" else tensor
        return tensor.to(self.device, non_blocking=True)

    def draw_exam(self):
        """Fixed held-out rows under fixed random masks, all [MASK]: (corrupted ids, places, labels)."""
        rows = len(self.held_out_ids) // (self.o.seq_len - 2)
        index = np.linspace(0, rows - 1, min(rows, EXAM_ROWS)).astype(int)
        ids = take_rows(self.held_out_ids, index, self.o.seq_len, self.cls, self.sep)
        rng = torch.Generator().manual_seed(stream(0, "exam"))
        selected = masking.select_positions("random", self.eligible(ids), EXAM_RATIO, generator=rng)
        places = masking.as_places(selected, masking.mask_budget(self.o.seq_len - 2, EXAM_RATIO))
        return ids.masked_fill(selected, self.mask), places, ids.gather(1, places)

    def examine(self, model) -> tuple[float, float]:
        """Held-out loss (nats a token) and accuracy of a model: the yardstick all masking rules share."""
        sums = torch.zeros(2, device=self.device)
        with masking.evaluating(model), self.autocast():
            for batch in zip(*(part.split(64) for part in self.exam), strict=True):
                ids, places, labels = (part.to(self.device) for part in batch)
                sums += torch.stack(mlm_loss(model(ids, positions=places), labels))
        return tuple((sums / self.exam[2].numel()).tolist())

    def choose(self, ids, index, rng: torch.Generator) -> torch.Tensor:
        """The positions to mask in the rows ids [B, T] of this step, numbers index [B]: bool [B, T]."""
        o, eligible, rule = self.o, self.eligible(ids), self.o.select
        words = ~self.continues[ids] if o.whole_word else None
        entropy = candidates = known = None
        epoch = self.step * o.batch_size // self.row_count
        if o.masking == "random" or self.step < self.random_steps:
            rule = "random"
        elif o.masking == "frequency":
            rule, entropy = "sample", self.word_weights[ids]
        elif o.reading == "memory" and not (o.entropy_every and epoch % o.entropy_every == 0):
            entropy = self.memory[self.send(index)].float()
            known = ~entropy.isnan()
            entropy = torch.where(known, entropy, self.mean_entropy)
        else:
            if o.reading != "visible":
                candidates = masking.draw_candidates(eligible, o.mask_ratio, o.candidates, rng, words)
            entropy = self.entropies(ids, index, candidates)
        share = 0.0 if rule == "random" else o.random_share
        settings = (entropy, candidates, o.select_temperature, rng, share, words)
        selected = masking.select_positions(rule, eligible, o.mask_ratio, *settings)
        if known is not None:
            self.remembered += (selected & known).sum()
        return selected

    def entropies(self, ids, index, candidates) -> torch.Tensor:
        """How unsure the model that --masking names is of the rows, read now: [B, T], nats.

        At the candidates alone, hidden together; without candidates at every token as it is seen. Every
        process sees all rows and draws the same random numbers; it reads the entropy of its own rows.
        """
        o, entropy = self.o, torch.zeros(ids.shape, device=self.device)
        source, places = self.teacher if o.masking == "teacher" else self.model, candidates
        if candidates is not None and not o.whole_word:
            count = masking.candidate_budget(o.seq_len - 2, o.mask_ratio, o.candidates)
            places = masking.as_places(candidates, count)
        for share in self.shares:
            with self.autocast():
                if places is None:
                    entropy[share] = masking.sequence_entropy(source, ids[share])
                else:
                    entropy[share] = masking.blank_entropy(source, ids[share], places[share], self.mask)
        if self.world > 1:
            dist.all_reduce(entropy)  # rows of other processes are 0 so far
        return entropy

    def loss(self, ids, places, labels):
        """The objective, summed over the masked tokens; the sums behind `columns`; entropies [B, k], nats."""
        with self.autocast():
            logits = self.model(ids, positions=places)
        loss, correct, entropy = MaskedLoss.apply(logits, labels)
        return loss, torch.stack((loss.detach(), correct)), entropy

    def update(self):
        """One step: rows, masks, gradient, new weights. Waits for no GPU (but for --whole-word)."""
        o, rng = self.o, torch.Generator(self.device).manual_seed(stream(self.o.seed, "masks", self.step))
        torch.manual_seed(stream(o.seed, "dropout", self.step) + self.rank)
        index = rows_of_step(o, self.step, self.row_count)
        ids = self.send(take_rows(self.train_ids, index, o.seq_len, self.cls, self.sep))
        selected = self.choose(ids, index, rng)
        settings = (self.mask, len(self.vocab), self.special, o.corruption, rng)
        corrupted, labels = masking.corrupt(ids, selected, *settings)
        places = masking.as_places(selected, self.masks_per_row)
        labels = labels.gather(1, places)
        masked = (labels != IGNORE).float()
        read = torch.zeros(places.shape, device=self.device)  # entropies, nats
        for share in self.shares:
            loss, sums, read[share] = self.loss(corrupted[share], places[share], labels[share])
            (loss / masked.sum().clamp_min(1)).backward()  # of the whole step, all processes together
            self.sums += torch.cat((sums, masked[share].sum()[None]))
        if self.world > 1:
            for parameter in self.model.parameters():  # the gradient of a sum is the sum of gradients
                dist.all_reduce(parameter.grad)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.sums += 0 * norm  # is seen there where it is not finite
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr()
        self.optimizer.step()
        self.optimizer.zero_grad()
        counts = torch.zeros_like(self.counts).index_add_(0, labels.clamp_min(0).flatten(), masked.flatten())
        self.counts += counts
        self.distinct += (counts > 0).sum()
        if self.step >= self.random_steps:
            self.seen.index_add_(0, ids.flatten(), self.eligible(ids).flatten().long())
            self.masked += counts.long()
        if o.reading == "memory":
            if self.world > 1:
                dist.all_reduce(read)  # rows of other processes are 0 so far
            blank = masked * (corrupted.gather(1, places) == self.mask)  # 1 where [MASK] was read
            mean = (read * blank).sum() / blank.sum().clamp_min(1)
            self.mean_entropy = torch.where(self.mean_entropy > 0, self.mean_entropy.lerp(mean, 0.01), mean)
            where = self.send(index)[:, None], places
            self.memory[where] = torch.where(blank > 0, read.half(), self.memory[where])
        self.last, self.step = (corrupted, places, masked), self.step + 1

    def work(self) -> float:
        """Operations a trained token, on average over the run; a backward pass costs two forward passes."""
        o, training = self.o, 3 * forward_flops(self.model.config, self.o.seq_len, self.o.mask_ratio)
        if o.masking in ("random", "frequency") or (o.reading == "memory" and not o.entropy_every):
            return training
        source = self.teacher if o.masking == "teacher" else self.model
        decoded = 1.0 if o.reading == "visible" else min(1.0, o.candidates * o.mask_ratio)
        late = max(0.0, 1 - self.random_steps / o.steps) / (o.entropy_every or 1)  # share of steps that read
        return training + late * forward_flops(source.config, o.seq_len, decoded)

    def lr(self) -> float:
        """The learning rate of the coming step."""
        return learning_rate(self.step, self.o.steps, as_steps(self.o.warmup, self.o.steps), self.o.lr)

    def means(self, held_out: float = 0.0) -> dict:
        """The mean of each column since the last evaluation. Raises ValueError where the run has diverged."""
        sums = self.sums.clone()
        if self.world > 1:
            dist.all_reduce(sums)
        *values, count = sums.tolist()
        if not (np.isfinite(values).all() and held_out < 3 * np.log(len(self.vocab))):  # thrice a blind guess
            kept = f"{self.o.out} keeps step {self.log[-1]['step']}" if self.log else "nothing was saved yet"
            text = f"loss diverged or not finite at step {self.step} ({kept})"
            raise ValueError(f"{text}; start anew with a lower --lr or --dtype float32")
        return {name: value / max(1, count) for name, value in zip(self.columns, values, strict=True)}

    def report(self, speed: float):
        """Evaluate, add a line to the log, warn if the masks collapse, save."""
        o, (loss, accuracy) = self.o, self.examine(self.model)
        means, past = self.means(loss), self.log[-1] if self.log else {"step": 0, "on_plateau": 1}
        ids, places, masked = (part[self.shares[0]] for part in self.last)
        with self.autocast():
            blank = masking.blank_entropy(self.model, ids, places, self.mask).gather(1, places)
        entropy = ((blank * masked).sum() / masked.sum().clamp_min(1)).item()
        common = (self.counts.max() / self.counts.sum()).item()
        distinct = self.distinct.item() / (self.step - past["step"])
        plateau = past["on_plateau"] and loss > self.floor - PLATEAU
        line = {"step": self.step, "tokens": self.step * o.batch_size * o.seq_len, **means}
        line |= {"held_out_loss": loss, "held_out_accuracy": accuracy, "masked_entropy": entropy}
        line |= {"on_plateau": int(plateau), "distinct_ids": distinct}
        if o.reading == "memory":
            line["remembered_share"] = (self.remembered / self.counts.sum()).item()
        line |= {"commonest_share": common, "lr": self.lr(), "seconds": round(self.seconds, 2)}
        self.log.append({**line, **self.extra_columns, "tokens_per_second": round(speed)})
        for tensor in (self.sums, self.counts, self.distinct, self.remembered):
            tensor.zero_()
        if self.rank:
            return
        where = "on the plateau" if plateau else f"{loss - self.floor:+.2f} from the floor"
        extra = "".join(f", {name.replace('_', ' ')} {x:.3f}" for name, x in self.extra_columns.items())
        score = f"held-out loss {loss:.3f} ({where}), accuracy {accuracy:.3f}{extra}"
        masks = f"masked entropy {entropy:.2f}, {distinct:.0f} ids a step, commonest {common:.1%}"
        tqdm.write(f"step {self.step:,}: {score}; {masks}")
        above = loss - min(line["held_out_loss"] for line in self.log)
        if above > 0.3 or common > 2.5 * self.unigram.max().item():
            cause = "" if o.masking == "random" else "; see README, When masks collapse"
            masks = f"commonest id {common:.1%} of the masks{cause}"
            tqdm.write(f"WARNING: held-out loss {above:.2f} above its best, {masks}")
        self.save()

    def save(self):
        """Write checkpoint.pt (the old one becomes checkpoint.previous.pt), model folder, log, counts."""
        out, state = Path(self.o.out), {name: getattr(self, name) for name in STATE}
        state |= {"options": asdict(self.o), "key": self.facts["key"]}
        state |= {"weights": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        bert.atomic_write(out / "checkpoint.new", lambda file: torch.save(state, file))
        if (out / "checkpoint.pt").exists():
            os.replace(out / "checkpoint.pt", out / "checkpoint.previous.pt")
        os.replace(out / "checkpoint.new", out / "checkpoint.pt")
        self.model.save_pretrained(out, self.tokenizer)
        write_table(out / "log.csv", self.log or [{"step": self.step}])
        counts = zip(self.pieces, self.seen.tolist(), self.masked.tolist(), strict=True)
        write_table(out / "masked.csv", [{"token": t, "seen": n, "masked": m} for t, n, m in counts])

    def load(self, state: dict):
        """Take up the run where a checkpoint left it."""
        if state["key"] != self.facts["key"]:
            raise ValueError(f"{self.o.out} began with another text: put it back, or start anew")
        try:
            self.model.load_state_dict(state["weights"])
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
            self.step, self.seconds, self.log = (state[name] for name in STATE[:3])
            for name in STATE[3:]:
                getattr(self, name).copy_(state[name])
            moments = [(self.optimizer.state[p], p.shape) for p in self.model.parameters()]
            fits = all(m["exp_avg"].shape == m["exp_avg_sq"].shape == shape for m, shape in moments)
            names = ("step", "seconds", "held_out_loss", "held_out_accuracy", "on_plateau")
            least = min((line[name] for line in self.log for name in names), default=0)
            if not (fits and least >= 0 and 0 <= self.step <= self.o.steps):
                raise ValueError
        except Exception as error:  # it is whole, but not of this program
            text = f"{self.o.out}: its checkpoint does not fit this program ({type(error).__name__})"
            raise ValueError(f"{text}; start anew with another --out") from None

    def run(self):
        """Train to --steps. Ctrl-C finishes the step and saves (under torchrun evaluations alone save)."""
        o, first, stop = self.o, self.step, []
        signals = (signal.SIGINT, signal.SIGTERM) if self.world == 1 else ()
        handlers = {name: signal.signal(name, lambda *_: stop.append(True)) for name in signals}
        card = hardware_name(self.device).replace("-", " ").split()
        peak = next((PEAK_FLOPS[name] for name in card if name in PEAK_FLOPS), None)
        bar = tqdm(total=o.steps, initial=first, disable=True if self.rank else None, unit=" steps")
        mark, marked = time.perf_counter(), first
        try:
            while self.step < o.steps and not stop:
                self.update()
                bar.update()
                evaluates = self.step % o.eval_every == 0 or self.step == o.steps
                if evaluates or stop or (self.step - first) % 20 == 0:
                    means = self.means()  # waits for the device
                    seconds = time.perf_counter() - mark
                    speed = (self.step - marked) * o.batch_size * o.seq_len / seconds
                    shown = {name: f"{value:.3f}" for name, value in means.items()}
                    shown |= {"lr": f"{self.lr():.1e}", "tokens/s": f"{speed:,.0f}"}
                    if peak and self.dtype == torch.bfloat16:
                        shown["mfu"] = f"{self.work() * speed / peak / self.world:.0%}"
                    bar.set_postfix(shown)
                    if evaluates or stop or self.step == first + 20:  # the first steps are no measure
                        self.seconds += seconds
                        if evaluates:
                            self.report(speed)
                        mark, marked = time.perf_counter(), self.step
        finally:
            bar.close()
            for name, handler in handlers.items():
                signal.signal(name, handler)
        if (stop or first == o.steps) and self.rank == 0:  # a run killed at its end may lack files
            self.save()
        if stop:
            raise KeyboardInterrupt


# ---- start and end ----


def hardware_name(device: torch.device) -> str:
    """The name of the GPU or of the kind of processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def describe(run: Pretraining):
    """Print what a run is before it starts, and write it to args.json."""
    o, facts, model, git = run.o, run.facts, run.model, ""
    with suppress(OSError):  # git is not installed
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        git = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    hardware = {"device": str(run.device), "name": hardware_name(run.device)}
    hardware |= {"cpus": os.cpu_count(), "processes": run.world}
    record = {"command": " ".join(sys.argv), "options": asdict(o), "versions": versions, "hardware": hardware}
    record |= {"git_commit": git, "text": facts, "unigram_floor": run.floor}
    bert.write_json(Path(o.out) / "args.json", record)
    parts = (model, model.bert.embeddings, model.bert.encoder)
    sizes = [sum(p.numel() for p in part.parameters()) for part in parts]
    source = ", ".join(o.corpus) or "documentation on this machine"
    epochs = o.steps * o.batch_size / run.row_count
    chosen = f"like {o.like}" if o.masking == "frequency" else f"{o.select} of {o.reading} entropy"
    chosen = "" if o.masking == "random" else f", {chosen} after {run.random_steps:,} random steps"
    print(f"""\
model   {o.from_ or o.size}: {sizes[0]:,} parameters ({sizes[1]:,} embeddings, {sizes[2]:,} encoder)
text    {source}, {facts["characters"] / 1e6:.1f} million characters
        ({facts["duplicates"]:,} of {facts["paragraphs"]:,} paragraphs are duplicates, left out)
tokens  {len(run.train_ids):,} to learn, {len(run.held_out_ids):,} held out; {len(run.vocab):,} word pieces
steps   {o.steps:,} of {o.batch_size} x {o.seq_len} tokens, {epochs:.1f} epochs, learning rate {o.lr:g}
masks   {o.masking}, {run.masks_per_row} of {o.seq_len - 2} tokens a row, {o.corruption}{chosen}
device  {hardware_name(run.device)}, {str(run.dtype)[6:]}, {run.work() / 1e6:.1f} MFLOP a token
floor   {run.floor:.3f} nats a token for knowing word frequencies alone, held out; the unigram plateau
        ends {PLATEAU} below it""")


def conclude(run: Pretraining):
    """Print what a run found, and what to type next."""
    best = min(run.log, key=lambda line: line["held_out_loss"])
    left = next((line for line in run.log if not line["on_plateau"]), None)
    plateau = f"left by step {left['step']:,}, {left['seconds']:.0f} s" if left else "never left"
    below = f"{run.floor - best['held_out_loss']:.2f} nats below the unigram floor"
    accuracy = f"accuracy {best['held_out_accuracy']:.3f} at step {best['step']:,}"
    print(f"best    held-out loss {best['held_out_loss']:.3f}, {below}, {accuracy}\nplateau {plateau}")
    for i, sentence in enumerate(SENTENCES):  # with the model's three best words for the blank
        ids = torch.tensor([run.tokenizer.encode(sentence).ids], device=run.device)
        with masking.evaluating(run.model):
            logits = run.model(ids, positions=ids == run.mask)[0, : len(run.pieces)]
        words = " | ".join(run.pieces[word] for word in logits.topk(3).indices)
        print("       " if i else "guesses", sentence.replace("[MASK]", f"[{words}]"))
    print(f"files   in {run.o.out}: model, tokenizer, log.csv, args.json, checkpoint.pt")
    print(f'next    python masking.py --model {run.o.out} --text "The cat sat on the mat, for it was tired."')


def read_checkpoint(out: Path, kind) -> dict:
    """The newest checkpoint that fits the options `kind`; others are named. Raises ValueError without one."""
    for path in (out / "checkpoint.new", out / "checkpoint.pt", out / "checkpoint.previous.pt"):
        if path.exists():
            try:
                state = bert.read_torch(path)
                if set(state["options"]) != {f.name for f in fields(kind)}:
                    raise ValueError
                kind(**state["options"]).check({})
                return {name: state[name] for name in ("options", "key", *STATE, "weights", "optimizer")}
            except Exception as error:
                print(f"{path} is damaged or of another program ({type(error).__name__})", file=sys.stderr)
    raise ValueError(f"{out} holds no checkpoint of this program to resume from; start without --resume")


def launch(kind, run_kind, description, argv=None):
    """A whole program: options, a new or a resumed run, its end, errors in one sentence."""
    given, program = parse_options(kind, description, argv), Path(sys.argv[0]).name
    out, state, held = Path(given.get("out", kind().out)), None, None
    keep_memory()
    try:
        if not given.get("resume"):
            out.mkdir(parents=True, exist_ok=True)
        if out.is_dir() and os.environ.get("RANK", "0") == "0":
            held = bert.lock(out / ".lock")
        if given.get("resume"):
            state = read_checkpoint(out, kind)
            options = state["options"]
            for name in sorted(set(given) - {"out", "resume", "cache", "device"}):
                if given[name] != options[name]:
                    was = f"{flag(name)} {options[name]}"
                    raise ValueError(f"{out} was made with {was}, not {given[name]}; leave it out to resume")
        elif any(out.glob("checkpoint*.pt")) or (out / "model.safetensors").exists():
            raise ValueError(f"{out} holds a run or a model already: add --resume, or choose another --out")
        o = kind(**{**(state["options"] if state else {}), **given, "out": str(out)})
        o.check({} if state else given, int(os.environ.get("WORLD_SIZE", 1)))
        run = run_kind(o)
        if state:
            run.load(state)
        if run.rank == 0:
            describe(run)
        run.run()
        if run.rank == 0:
            conclude(run)
        if run.world > 1:
            dist.barrier()  # nobody leaves while another one still writes
        return run
    except Exception as error:
        sys.exit(f"{program}: {bert.explain(error)}")
    except KeyboardInterrupt:
        saved = (out / "checkpoint.pt").exists()
        kept = f"python {sys.argv[0]} --resume --out {out} goes on" if saved else "nothing was saved yet"
        sys.exit(f"{program}: interrupted; {kept}")
    finally:
        if held:
            held.close()
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    launch(Options, Pretraining, __doc__.splitlines()[0])
