"""Fine-tune a checkpoint on GLUE and print one table a reader can trust: `python glue_eval.py --help`.

GLUE: Wang et al. 2019 (arXiv 1804.07461). Fine-tuning: Devlin et al. 2019 (arXiv 1810.04805), appendix A.3.
In reading order: metrics, tasks and files, download, fine-tuning, the run, the table, options. Every random
number is a function of (seed, task, purpose): an interrupted run continues as if it had never stopped.
"""

import os

# Threads of two programs on one machine would wait for each other busily, 5 to 30 times slower than one.
os.environ.setdefault("GOMP_SPINCOUNT", "4000")  # GNU's OpenMP
os.environ.setdefault("KMP_BLOCKTIME", "0")  # Intel's and LLVM's

import argparse
import csv
import hashlib
import io
import math
import re
import sys
import time
import urllib.request
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from model import (
    BertConfig,
    BertForSequenceClassification,
    atomic_write,
    explain,
    init_normal,
    init_offset_heads,
    load_tokenizer,
    read_json,
    text_tokenizer,
    write_json,
)
from train import Parser, keep_freed_ram, learning_rate, make_optimizer, pick_hardware, unused_hardware

GLUE_URL = "https://dl.fbaipublicfiles.com/glue/data/"
MSR_URL = "https://dl.fbaipublicfiles.com/senteval/senteval_data/msr_paraphrase_"
FOLDERS = {"AX": "diagnostic"}  # else the task's name
ARMS = ("pretrained", "from scratch")
UNLABELLED = ("test", "diagnostic")  # the names of files without labels begin so
ANSWERS = {"test_matched": "MNLI-m", "test_mismatched": "MNLI-mm", "diagnostic": "AX"}  # else the task
SUBMISSION = ("CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI", "AX")
NO_AVERAGE = ("WNLI", "AX")  # WNLI's dev set contradicts its training set; AX is scored by gluebenchmark.com

# ---- metrics: functions of (labels, predictions), both [N] ----


def as_pair(labels, predictions):
    """Both as float64 [N]. Raises ValueError unless they are finite, not empty and of one length."""
    y, p = (np.asarray(x, np.float64) for x in (labels, predictions))
    if y.shape != p.shape or y.ndim != 1 or not y.size or not np.isfinite((y, p)).all():
        raise ValueError(f"a metric needs two lists of finite numbers, equally long: {y.shape}, {p.shape}")
    return y, p


def ratio(over: float, under: float) -> float:
    """over / under, where 0 / 0 counts as 0: who always gives the same answer has shown no skill."""
    return float(over / under) if under else 0.0


def accuracy(labels, predictions) -> float:
    """mean(y = p), from 0 to 1."""
    y, p = as_pair(labels, predictions)
    return float((y == p).mean())


def f1_score(labels, predictions) -> float:
    """2 TP / (2 TP + FP + FN) of class 1: the harmonic mean of precision and recall, from 0 to 1."""
    y, p = as_pair(labels, predictions)
    hits = 2 * ((y == 1) & (p == 1)).sum()
    return ratio(hits, hits + ((y == 1) != (p == 1)).sum())


def matthews_corrcoef(labels, predictions) -> float:
    """Correlation of two classifications, from -1 to 1, for any number of classes (Gorodkin 2004).

    (c N - sum_k y_k p_k) / sqrt((N^2 - sum_k p_k^2) (N^2 - sum_k y_k^2)): c hits among N rows, y_k rows of
    class k, p_k predictions of it. With two classes (TP TN - FP FN) / sqrt((TP+FP) (TP+FN) (TN+FP) (TN+FN)).
    """
    y, p = as_pair(labels, predictions)
    n = float(len(y))
    classes = np.union1d(y, p)
    y_k = (y[:, None] == classes).sum(0)
    p_k = (p[:, None] == classes).sum(0)
    under = math.sqrt((n**2 - (p_k**2).sum()) * (n**2 - (y_k**2).sum()))
    return ratio((y == p).sum() * n - (y_k * p_k).sum(), under)


def pearsonr(labels, predictions) -> float:
    """sum (y - mean y) (p - mean p) / sqrt(sum (y - mean y)^2 sum (p - mean p)^2), from -1 to 1."""
    y, p = (x - x[0] for x in as_pair(labels, predictions))  # a constant becomes 0 in spite of rounding
    y, p = (x - x.mean() for x in (y, p))
    return ratio((y * p).sum(), math.sqrt((y**2).sum() * (p**2).sum()))


def spearmanr(labels, predictions) -> float:
    """Pearson's correlation of the ranks; equal values share the average of their ranks."""

    def ranks(x):
        _, place, count = np.unique(x, return_inverse=True, return_counts=True)
        return (count.cumsum() - (count - 1) / 2)[place]

    return pearsonr(*map(ranks, as_pair(labels, predictions)))


# ---- tasks, their files, download ----


@dataclass(frozen=True)
class Task:
    """How a task's files look and how it is scored."""

    archive: str  # name at GLUE_URL; none: a task of your own
    metrics: tuple  # functions above
    labels: tuple  # as the files write them, in the order of the classes; none: a score from 0 to 5
    text: tuple  # names of the columns of the sentence, or of both
    rows: tuple = ()  # official number of rows of each file
    files: tuple = ("train", "dev", "test")  # .tsv
    headless: tuple = ()  # names of the columns, where train and dev begin with a row instead of names


ACC = (accuracy,)
ACC_F1 = (accuracy, f1_score)
BINARY = ("0", "1")
TWO_WAY = ("entailment", "not_entailment")
THREE_WAY = ("entailment", "neutral", "contradiction")
SCORE_PATTERN = re.compile(r"[0-4](\.\d+)?|5(\.0+)?")
PAIR = ("sentence1", "sentence2")
COLA = ("source", "label", "star", "sentence")
MNLI_FILES = ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched")
MNLI_ROWS = (392702, 9815, 9832, 9796, 9847)
TASKS = {
    "CoLA": Task("CoLA.zip", (matthews_corrcoef,), BINARY, ("sentence",), (8551, 1043, 1063), headless=COLA),
    "SST-2": Task("SST-2.zip", ACC, BINARY, ("sentence",), (67349, 872, 1821)),
    "MRPC": Task("mrpc_dev_ids.tsv", ACC_F1, BINARY, PAIR, (3668, 408, 1725)),
    "STS-B": Task("STS-B.zip", (pearsonr, spearmanr), (), PAIR, (5749, 1500, 1379)),
    "QQP": Task("QQP-clean.zip", ACC_F1, BINARY, ("question1", "question2"), (363846, 40430, 390965)),
    "MNLI": Task("MNLI.zip", ACC, THREE_WAY, PAIR, MNLI_ROWS, MNLI_FILES),
    "QNLI": Task("QNLIv2.zip", ACC, TWO_WAY, ("question", "sentence"), (104743, 5463, 5463)),
    "RTE": Task("RTE.zip", ACC, TWO_WAY, PAIR, (2490, 277, 3000)),
    "WNLI": Task("WNLI.zip", ACC, BINARY, PAIR, (635, 71, 146)),
    # answered by MNLI's model; it has neither a training set nor labels
    "AX": Task("AX.tsv", (matthews_corrcoef,), THREE_WAY, PAIR, (1104,), ("diagnostic",)),
}
# What a column is called in MRPC, STS-B, QQP, MultiNLI and by `datasets`, where that is not its name here.
COLUMNS = {"#1 String": "sentence1", "#2 String": "sentence2", "premise": "sentence1"}
COLUMNS |= {"hypothesis": "sentence2", "Quality": "label", "score": "label"}
COLUMNS |= {"is_duplicate": "label", "gold_label": "label"}


def read_cells(path: Path, own: bool) -> list:
    """The cells of every line of a TSV file; own: of a task that is not GLUE's.

    Quotes are text: GLUE's sentences hold single ones. But in files of `datasets`, which have a column "idx",
    they are a CSV writer's, which doubles those in a cell and puts others around it; and in an own task where
    a CSV writer, such as that of pandas, makes exactly this text of the cells.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if "idx" in text.partition("\n")[0].split():
            return unquoted(text)
    except (UnicodeDecodeError, csv.Error) as error:
        remedy = "get the file again, or write it in UTF-8 with a CSV writer"
        raise ValueError(f"{path} is no table in UTF-8: {error}; {remedy}") from None
    if own:
        with suppress(csv.Error):
            rows = unquoted(text)
            again = io.StringIO()
            csv.writer(again, delimiter="\t", lineterminator="\n").writerows(rows)
            if again.getvalue().strip() == text.replace("\r\n", "\n").strip():
                return rows
    return [line.rstrip("\r").split("\t") for line in text.split("\n")]  # sentences hold other line breaks


def unquoted(text: str) -> list:
    """The cells of a table as a CSV writer made it, with tabs. Raises csv.Error where none did."""
    return list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True))


def read_split(path: Path, task: Task):
    """(N tuples of sentences, their labels [N]: classes int64, scores float32, or None) of a TSV file.

    The names in its first line say which column is which. Rows that have more or fewer columns, or "-" for a
    label, are left out, but every row of an UNLABELLED file needs an answer. ValueError names file and line.
    """
    rows = read_cells(path, own=not task.archive)
    unlabelled = path.stem.startswith(UNLABELLED)
    names = [name if COLUMNS.get(name) in rows[0] else COLUMNS.get(name, name) for name in rows[0]]
    start = 1
    if "label" not in names and len(names) == len(task.headless) and not unlabelled:
        names = task.headless
        start = 0
    wanted = task.text if unlabelled else (*task.text, "label")
    if not set(wanted) <= set(names):
        begins = "\t".join(rows[0])[:60]
        needs = f"name the columns {', '.join(wanted)} between tabs, as in files of GLUE and of `datasets`"
        raise ValueError(f"{path}: its first line must {needs}, but begins {begins!r}")

    columns = [names.index(name) for name in wanted]
    classes = {label: i for i, label in enumerate(task.labels)}
    if "idx" in names:  # `datasets` writes the number of a class
        classes = {str(i): i for i in classes.values()} | classes
    texts, labels, skipped = [], [], 0
    for number, cells in enumerate(rows[start:], start + 1):
        if not any(cells):
            continue
        if unlabelled:
            cells = cells + [""] * len(names)  # what is missing counts as empty
        elif len(cells) != len(names) or (cells[columns[-1]] == "-" and "-" not in classes):
            skipped += 1  # MultiNLI: the annotators disagreed
            continue
        texts.append(tuple(cells[i] for i in columns[: len(task.text)]))
        if not unlabelled:
            label = cells[columns[-1]]
            if label in classes:
                labels.append(classes[label])
            elif not task.labels and SCORE_PATTERN.fullmatch(label):
                labels.append(float(label))
            else:
                expected = " or ".join(task.labels) or "a number from 0 to 5"
                raise ValueError(f"{path}, line {number}: label {label!r} is not {expected}")
    if skipped:
        print(f"{path}: {skipped:,} rows with too many or too few columns, or without a label, are skipped")
    if not texts:
        raise ValueError(f"{path} holds no rows; get the file again")
    return texts, None if unlabelled else np.array(labels, np.int64 if task.labels else np.float32)


def load_task(name: str, data_dir, with_test: bool = True):
    """({"train": (texts, labels), "dev": ...} of the files that are there, sentences on what is odd)."""
    task = TASKS[name]
    splits, notes = {}, []
    official = dict(zip(task.files, task.rows, strict=False))  # your own tasks have no numbers
    for stem in task.files:
        if stem.startswith("test") and not with_test:
            continue
        file = Path(data_dir, FOLDERS.get(name, name), f"{stem}.tsv")
        theirs = file.with_stem(stem.replace("dev", "validation"))  # as `datasets` calls it
        path = file if file.is_file() else theirs
        if not path.is_file():
            notes.append(f"{name} {stem}: no {file}")
            continue
        splits[stem] = read_split(path, task)
        n = len(splits[stem][0])
        if n != official.get(stem, n):
            missing = f"{n:,} of {official[stem]:,} rows"
            notes.append(f"{name} {stem}: {missing}: not comparable with published scores")
    return splits, notes


def download(names, data_dir):
    """Fetch the tasks that are not complete in data_dir. Raises OSError at the end if some failed."""
    failed = []
    for name in [name for name in names if TASKS[name].archive]:
        with suppress(ValueError):  # a damaged file is fetched again
            if not load_task(name, data_dir)[1]:
                print(f"{name}: complete, kept")
                continue
        try:
            url = GLUE_URL + TASKS[name].archive
            if name == "MRPC":
                files = split_mrpc(fetch(url), fetch(MSR_URL + "train.txt"), fetch(MSR_URL + "test.txt"))
            elif name == "AX":
                files = {"diagnostic": fetch(url)}
            else:
                archive = zipfile.ZipFile(io.BytesIO(fetch(url)))
                files = {stem: archive.read(f"{name}/{stem}.tsv") for stem in TASKS[name].files}
            folder = Path(data_dir, FOLDERS.get(name, name))
            folder.mkdir(parents=True, exist_ok=True)
            for stem, data in files.items():
                atomic_write(folder / f"{stem}.tsv", lambda file, data=data: file.write(data))
            print("\n".join(load_task(name, data_dir)[1]) or f"{name}: complete")
        except Exception as error:  # of network, archive or disk: the other tasks go on
            failed.append(name)
            print(f"{name}: failed: {error}")
    if failed:
        raise OSError(f"{', '.join(failed)} not downloaded: start again, or see gluebenchmark.com/tasks")


def fetch(url: str) -> bytes:
    """Download a file. Raises OSError or HTTPException."""
    print(f"fetching {url}")
    with urllib.request.urlopen(url, timeout=60) as reply:
        return reply.read()


def split_mrpc(ids: bytes, train: bytes, test: bytes) -> dict:
    """{"train": bytes, ...} as GLUE has it, of the ids of its dev set and the paraphrase corpus."""
    ids, train, test = ([line.split(b"\t") for line in part.splitlines()] for part in (ids, train, test))
    files = {"train": train[:1], "dev": train[:1], "test": [[b"index", *test[0][1:]]]}
    for row in train[1:]:
        files["dev" if row[1:3] in ids else "train"].append(row)
    for i, row in enumerate(test[1:]):
        files["test"].append([b"%d" % i, *row[1:]])
    return {stem: b"".join(b"\t".join(row) + b"\n" for row in rows) for stem, rows in files.items()}


# ---- fine-tuning ----


def stream_seed(*key) -> int:
    """The seed of one random stream, a function of its key: (seed, task, purpose, ...)."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")


def encode(tokenizer, texts) -> list:
    """N rows int32 [2, T]: the id of every token, and its segment."""
    encodings = (tokenizer.encode(*text) for text in tqdm(texts, "tokenising", leave=False, disable=None))
    return [np.array((e.ids, e.type_ids), np.int32) for e in encodings]


def length_batches(lengths: np.ndarray, batch_size: int, seed: int) -> list:
    """Every row once, in batches of similar length: shuffle, sort pools of 64 batches, shuffle batches."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    pool = np.arange(len(lengths)) // (64 * batch_size)
    order = order[np.lexsort((lengths[order], pool))]  # by pool, then by length
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """To the device; from pinned memory, so that nobody waits for a GPU that is still at work."""
    tensor = tensor.pin_memory() if device.type == "cuda" else tensor
    return tensor.to(device, non_blocking=True)


def forward(model, rows, o) -> torch.Tensor:
    """Logits [B, C], float32, of B rows int32 [2, T]. A model of a single segment sees all tokens in that."""
    tensors = [torch.from_numpy(row.T) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=-1)  # [B, T, 2]
    ids, segments = to_device(padded, o.device).unbind(-1)
    with torch.autocast(o.device.type, o.dtype, enabled=o.dtype != torch.float32):
        _, pooled = model.bert(ids.clamp(0), ids >= 0, segments.clamp(0, model.config.type_vocab_size - 1))
    return model.classifier(model.dropout(pooled.float()))  # in bfloat16 many scores would be ties


def build_model(name: str, seed: int, arm: str, o, vocab_size: int) -> BertForSequenceClassification:
    """The checkpoint, or its shape with train.py's start; a new classifier, and a pooler if it has none."""
    changes = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}  # whatever pretraining had
    changes |= {"num_labels": len(TASKS[name].labels) or 1, "vocab_size": vocab_size}
    config = BertConfig.from_folder(o.model, **changes)
    std = config.initializer_range
    if arm == "from scratch":
        model = BertForSequenceClassification(config)
        generator = torch.Generator().manual_seed(stream_seed(seed, "weights"))
        init_normal(model, std, generator)
        init_offset_heads(model.bert, generator)
    else:
        model = BertForSequenceClassification.from_pretrained(o.model, **changes)
        generator = torch.Generator().manual_seed(stream_seed(seed, name, "head"))
        init_normal(model.classifier, std, generator)
        if "bert.pooler.dense.weight" in model.newly_initialised:
            init_normal(model.bert.pooler, std, generator)
    return model.to(o.device)


def update(model, optimizer, scaler, rows, labels, o):
    """One step on B rows and labels [B]. Returns the loss; nothing here waits for a GPU."""
    logits = forward(model, rows, o)
    y = to_device(torch.from_numpy(labels), o.device)
    loss = F.mse_loss(logits[:, 0], y) if y.is_floating_point() else F.cross_entropy(logits, y)

    # float16 rounds small gradients to 0, so the loss is scaled up; overflows are skipped (arXiv 1710.03740)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return loss.detach()


def finetune(model, rows, labels, key, o, title: str):
    """Train in place on rows and labels [N]; key: (seed, task). Raises ValueError where that diverges."""
    torch.manual_seed(stream_seed(*key, "dropout"))
    model.train()
    if o.freeze:  # the head is pooler and classifier: a masked-LM checkpoint has neither
        for part in (model.bert.embeddings, model.bert.encoder):
            part.eval().requires_grad_(False)
    if model.config.num_labels == 1:  # start at the mean score: the bias would be slow to get there
        torch.nn.init.constant_(model.classifier.bias, torch.from_numpy(labels).mean().item())
    optimizer = make_optimizer(model, o.lr)
    scaler = torch.amp.GradScaler(o.device.type, enabled=o.dtype == torch.float16)

    lengths = np.array([row.shape[1] for row in rows])
    batches = []
    for epoch in range(o.epochs):
        batches += length_batches(lengths, o.batch_size, stream_seed(*key, "order", epoch))
    bar = tqdm(batches, title, unit="step", leave=False, disable=None)
    for step, index in enumerate(bar):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, len(batches), round(0.1 * len(batches)), o.lr)
        loss = update(model, optimizer, scaler, [rows[i] for i in index], labels[index], o)
        if step % 50 == 49 or step == len(batches) - 1:  # to read a number is to wait for the GPU
            # the scale began at 2^16, and each overflow of float16 halved it
            if not loss.isfinite() or scaler.get_scale() < 1:
                raise ValueError(f"{title}: diverged at step {step + 1}; try a lower --lr or --dtype float32")
            bar.set_postfix_str(f"loss {loss.item():.3f}")
    model.eval()


@torch.no_grad()
def predict(model, rows, o) -> np.ndarray:
    """Predictions [N] in the order of the rows: the likeliest class, or the score. ValueError if NaN."""
    order = sorted(range(len(rows)), key=lambda i: rows[i].shape[1])
    logits = torch.empty(len(rows), model.config.num_labels)
    for start in tqdm(range(0, len(rows), 256), "evaluating", leave=False, disable=None):
        index = order[start : start + 256]
        logits[index] = forward(model, [rows[i] for i in index], o).cpu()
    if not logits.isfinite().all():
        raise ValueError("the fine-tuned model answers NaN: try a lower --lr or --dtype float32")
    return (logits[:, 0] if logits.shape[1] == 1 else logits.argmax(1)).numpy()


def score(metrics, labels: dict, guesses: dict) -> dict:
    """{metric: value} of all dev sets; labels, guesses: {split: [N]}. MNLI's two get a name each."""
    scores = {}
    for stem, y in labels.items():
        part = stem.removeprefix("dev").replace("_", "")
        scores |= {f"{part} {metric.__name__}".strip(): metric(y, guesses[stem]) for metric in metrics}
    return scores


def write_submission(path: Path, labels, guess: np.ndarray):
    """One file as gluebenchmark.com takes it: index<TAB>prediction, labels as GLUE's files write them."""
    words = [labels[int(x)] if labels else f"{min(5.0, max(0.0, float(x))):.3f}" for x in guess]
    text = "index\tprediction\n" + "".join(f"{i}\t{word}\n" for i, word in enumerate(words))
    atomic_write(path, lambda file: file.write(text.encode()))


# ---- the run ----


def fingerprint(*parts) -> str:
    """What tells the content of some values from any other: 16 hexadecimal digits."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def open_record(o) -> dict:
    """What --out's glue.json holds, or an empty record. Raises ValueError if it has other settings."""
    files = []  # of the checkpoint: another one may get the same name
    for pattern in ("config.json", "*token*.json", "vocab.txt", "*.safetensors*", "*.bin*"):
        files += sorted(Path(o.model).glob(pattern))
    content = [(path.name, hashlib.sha256(path.read_bytes()).digest()) for path in files]
    names = ("epochs", "lr", "batch_size", "max_length", "max_train", "freeze")
    settings = {name: getattr(o, name) for name in names} | {"dtype": str(o.dtype).removeprefix("torch.")}
    settings["checkpoint"] = fingerprint(content)
    record = {"model": o.model, "device": str(o.device), "torch": torch.__version__, "settings": settings}
    record |= {"notes": {}, "data": {}, "majority": {}, "results": {}, "answers": {}}

    path = o.out / "glue.json"
    if path.exists():
        record = read_json(path)
        for name, value in settings.items():
            there = record.get("settings", {}).get(name)
            if there != value:
                raise ValueError(f"{path} was made with {name} {there}, not {value}; choose another --out")
    return record


def evaluate(o):
    """Fine-tune and score every chosen task and seed that --out lacks, then print the table."""
    # what cannot be done is said before anything is written
    answered = "MNLI" in o.tasks and (o.predict or o.tasks == list(TASKS))
    if "AX" in o.tasks and not answered:
        raise ValueError("AX is answered by the model of MNLI: --tasks MNLI AX --predict")
    asked = o.device
    o.device, o.dtype = pick_hardware(asked, o.dtype)
    config = BertConfig.from_folder(o.model)
    tokenizer = text_tokenizer(load_tokenizer(o.model))  # "[SEP]" inside a sentence is text
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise ValueError(f"{o.model}: the tokenizer has more entries than the model's vocabulary")
    o.max_length = min(o.max_length, config.max_position_embeddings)
    tokenizer.enable_truncation(o.max_length)  # the longer sentence of a pair loses tokens first
    size = f"{config.num_hidden_layers} layers x {config.hidden_size}"
    print(f"{o.model}: {size}, {o.device}, {o.dtype}", *unused_hardware(asked, o.device), sep="\n")
    if config.trained_length and config.trained_length < o.max_length:
        trained = f"was trained on rows of {config.trained_length} tokens: the places beyond are new to it"
        print(f"{o.model} {trained}; --max-length {config.trained_length} cuts there")

    record = open_record(o)
    skipped = []
    for name in [name for name in TASKS if name in o.tasks and name != "AX"]:  # AX is answered with MNLI
        splits = prepare(name, o, tokenizer, record)
        if splits:
            evaluate_task(name, splits, o, tokenizer, record)
        else:
            skipped.append(name)
    files = f"train.tsv and dev.tsv in {o.data_dir}/TASK"
    if not record["results"]:
        raise ValueError(f"no task asked for has its {files}; --download fetches those of GLUE")
    if skipped:
        print(f"skipped, without {files}: {', '.join(skipped)}")
    print(f"\n{results_table(record)}\n\nwritten: {o.out / 'glue.json'}")
    if o.predict:
        pack_submission(o, record)


def pack_submission(o, record: dict):
    """One zip of this program's answers to GLUE's test files, of which gluebenchmark.com wants all."""
    names = [name for name in SUBMISSION if (o.answers / f"{name}.tsv").is_file()]
    names = [name for name in names if f"{o.answers.name}/{name}.tsv" in record["answers"]]
    if names:
        with zipfile.ZipFile(f"{o.answers}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.write(o.answers / f"{name}.tsv", f"{name}.tsv")
        lacks = ", ".join(name for name in SUBMISSION if name not in names)
        print(f"written: {o.answers}.zip; for gluebenchmark.com it lacks {lacks or 'nothing'}")


def prepare(name: str, o, tokenizer, record: dict) -> dict:
    """The splits of a task, or nothing if it must be skipped; the record gets its notes and its floor."""
    splits, notes = load_task(name, o.data_dir, o.predict)
    if name == "MNLI" and "AX" in o.tasks and o.predict:
        diagnostic, more = load_task("AX", o.data_dir)
        splits |= diagnostic
        notes += more
    labels = {stem: y for stem, (_, y) in splits.items() if y is not None}
    if "train" not in labels or len(labels) < 2:
        return {}

    # scores on other rows must not be mixed into one table
    content = {stem: fingerprint(splits[stem][0], y.tolist()) for stem, y in labels.items()}
    if record["data"].setdefault(name, content) != content:
        raise ValueError(f"the rows of {name} are not those {o.out} was made with; choose another --out")

    # --max-train draws, since files may be sorted; every seed gets the same rows
    texts, y = splits["train"]
    if 0 < o.max_train < len(texts):
        kept = np.random.default_rng(stream_seed(name, "subset")).permutation(len(texts))[: o.max_train]
        texts = [texts[i] for i in kept]
        splits["train"] = (texts, y[kept])

    some = [tokenizer.encode(*text) for text in texts[:: 1 + len(texts) // 1000]]
    cut = np.mean([bool(encoding.overflowing) for encoding in some])
    print(f"{name}: {len(texts):,} training rows, {cut:.1%} cut at {o.max_length} tokens")
    is_unknown = np.hstack([encoding.ids for encoding in some]) == tokenizer.token_to_id("[UNK]")
    characters = np.diff(np.vstack([encoding.offsets for encoding in some]))[:, 0]  # of each token
    unknown = characters[is_unknown].sum() / characters.sum()
    if unknown > 0.02:
        stands = f"[UNK] stands for {unknown:.1%} of the characters"
        notes.append(f"{name}: {stands}; use a checkpoint whose vocabulary fits")
        print(notes[-1])
    record["notes"][name] = notes

    # the floor: the commonest answer for every row
    del labels["train"]
    constant = {stem: np.full(len(y), np.bincount(y.astype(int)).argmax()) for stem, y in labels.items()}
    floor = score(TASKS[name].metrics, labels, constant)
    if record["majority"].setdefault(name, floor).keys() != floor.keys():
        raise ValueError(f"the metrics of {name} are not those {o.out} was made with; choose another --out")
    return splits


def evaluate_task(name: str, splits: dict, o, tokenizer, record: dict):
    """Every seed of one task that glue.json lacks; each is in there as soon as it is finished."""
    (o.answers if o.predict else o.out).mkdir(parents=True, exist_ok=True)
    dev = {stem: y for stem, (_, y) in splits.items() if stem.startswith("dev")}
    due = {}  # {split: its file of answers} where there is none, or one to other rows
    for stem in [stem for stem, (_, y) in splits.items() if y is None]:
        file = f"{o.answers.name}/{ANSWERS.get(stem, name)}.tsv"
        is_current = record["answers"].get(file) == fingerprint(splits[stem][0])
        if not (is_current and (o.out / file).is_file()):
            due[stem] = file

    rows = {}  # tokenised only where something is left to do
    arms = ARMS if o.from_scratch else ARMS[:1]
    for seed, arm in [(seed, arm) for seed in o.seeds for arm in arms]:
        wanted = due if (seed, arm) == (o.seeds[0], ARMS[0]) else {}
        results = record["results"].setdefault(arm, {}).setdefault(name, {})
        if str(seed) in results and not wanted:
            continue

        # fine-tune and predict
        rows = rows or {stem: encode(tokenizer, texts) for stem, (texts, _) in splits.items()}
        title = f"{name}, {arm}, seed {seed}"
        start = time.perf_counter()
        model = build_model(name, seed, arm, o, tokenizer.get_vocab_size())
        finetune(model, rows["train"], splits["train"][1], (seed, name), o, title)
        guesses = {stem: predict(model, rows[stem], o) for stem in [*dev, *wanted]}
        seconds = round(time.perf_counter() - start, 1)

        # keep: answers before scores, since what is killed in between is not finished
        for stem, file in wanted.items():
            write_submission(o.out / file, TASKS[name].labels, guesses[stem])
            record["answers"][file] = fingerprint(splits[stem][0])
        scores = score(TASKS[name].metrics, dev, guesses)
        one_answer = any(len(set(guesses[stem])) == 1 for stem in dev)
        facts = {"one_answer": one_answer, "train_rows": len(rows["train"]), "seconds": seconds}
        results[str(seed)] = {"scores": scores} | facts
        write_json(o.out / "glue.json", record)
        values = ", ".join(f"{metric} {100 * x:.1f}" for metric, x in scores.items())
        print(f"{title}: {values} ({seconds} s)", "!" if one_answer else "")


# ---- the table, the command line ----


def markdown(rows) -> str:
    """A Markdown table with aligned columns; the first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows)


def spread(values) -> str:
    """Mean and, from two values on, standard deviation of the sample (n - 1), in percent."""
    deviation = f" ({100 * np.std(values, ddof=1):.1f})" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{deviation}" if len(values) else ""


def seed_means(arm: dict, tasks) -> list:
    """GLUE's average of every seed that all tasks have: the mean over tasks of the mean of their metrics."""
    seeds = set.intersection(*(set(arm.get(task, {})) for task in tasks))
    scores = [[list(arm[task][seed]["scores"].values()) for task in tasks] for seed in sorted(seeds)]
    return [float(np.mean([np.mean(metrics) for metrics in of_seed])) for of_seed in scores]


def results_table(record) -> str:
    """The results in Markdown, followed by what has to be known to read them."""
    results = record["results"]
    arms = [arm for arm in ARMS if arm in results]
    names = [name for name in TASKS if name in results[ARMS[0]]]
    table = [["task", "metric", *arms, "majority"]]
    for name in names:
        for metric, floor in record["majority"][name].items():
            cells = []
            for arm in arms:
                runs = results[arm].get(name, {}).values()
                flag = " !" if any(run["one_answer"] for run in runs) else ""
                cells.append(spread([run["scores"][metric] for run in runs]) + flag)
            table.append([name, metric, *cells, spread([floor])])

    averaged = [name for name in names if name not in NO_AVERAGE]
    if averaged:
        cells = [spread(seed_means(results[arm], averaged)) for arm in arms]
        floor = np.mean([np.mean(list(record["majority"][name].values())) for name in averaged])
        table.append([f"average of {len(averaged)}", "", *cells, spread([floor])])

    seeds = sorted({seed for arm in arms for runs in results[arm].values() for seed in runs}, key=int)
    caption = f"GLUE dev sets, percent, mean (standard deviation) over seeds {' '.join(seeds)}, last epoch"
    for name, value in record["settings"].items():
        if value and name != "checkpoint":
            caption += f", {name} {value}"
    legend = "!: a run gave one answer for every row, so it learnt nothing"
    average = f"the average is without {' and '.join(NO_AVERAGE)}, over the seeds that all of its tasks have"
    notes = [average, legend, *sum(record["notes"].values(), [])]
    for arm in arms:
        for name, runs in results[arm].items():
            if len(runs) < len(seeds):
                notes.append(f"{name}, {arm}: only seeds {' '.join(sorted(runs, key=int))}")
    return "\n".join([markdown(table), "", caption, *(f"- {note}" for note in notes)])


def task_name(text: str) -> str:
    """The task of this name, however its letters and hyphens are written: sst2 is SST-2."""
    names = {re.sub(r"\W", "", name.lower()): name for name in TASKS}
    plain = re.sub(r"\W", "", text.lower())
    if plain not in names:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(TASKS)}")
    return names[plain]


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    # what is judged, and on what
    add("--model", help="checkpoint folder: ours, or one saved by Hugging Face transformers")
    names = ", ".join(TASKS) + " (default: all that are found)"
    add("--tasks", nargs="+", type=task_name, default=list(TASKS), metavar="TASK", help=names)
    add("--data-dir", default="data/glue", help="GLUE in the official layout (default: %(default)s)")
    add("--download", action="store_true", help="first fetch the official files that --data-dir lacks")
    # fine-tuning
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="a run per task and seed (default: 0 1 2)")
    add("--epochs", type=int, default=3, help="passes over the training set (default: %(default)s)")
    add("--lr", type=float, default=0.0, help="highest learning rate (default: 1e-4, with --freeze 1e-3)")
    add("--batch-size", type=int, default=32, help="rows per step (default: %(default)s)")
    add("--max-length", type=int, default=128, help="tokens per row, or it is cut (default: %(default)s)")
    add("--max-train", type=int, default=0, help="train on so many random rows, as a trial (default: all)")
    add("--freeze", action="store_true", help="train the head (pooler and classifier) only")
    add("--from-scratch", action="store_true", help="also fine-tune an untrained encoder: the floor")
    # what is written, and where it runs
    add("--predict", action="store_true", help="write the first seed's answers for gluebenchmark.com")
    add("--out", help="folder of glue.json; a stopped run continues from there (default: MODEL/glue)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: cuda if there is one)")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="auto: fastest")
    return parser


def main(argv=None):
    """The program."""
    o = make_parser().parse_args(argv)
    keep_freed_ram()
    try:
        if min(o.epochs, o.batch_size) < 1 or o.max_length < 8 or o.max_train < 0 or not 0 <= o.lr < math.inf:
            raise ValueError("--epochs and --batch-size start at 1, --max-length at 8, --lr and others at 0")
        if not (o.model or o.download):
            raise ValueError("nothing to do: give --model FOLDER or --download")
        o.lr = o.lr or (1e-3 if o.freeze else 1e-4)
        if o.download:
            download(o.tasks, o.data_dir)
        if o.model:
            o.out = Path(o.out or f"{o.model}/glue")
            o.answers = o.out / f"submission-seed-{o.seeds[0]}"
            evaluate(o)
    except Exception as error:
        sys.exit(f"glue_eval.py: {explain(error)}")
    except KeyboardInterrupt:
        sys.exit("glue_eval.py: interrupted; the same command continues after the last finished run")


if __name__ == "__main__":
    main()
