"""Fine-tune a checkpoint on GLUE and print one table a reader can trust: `python glue_eval.py --help`.

GLUE: Wang et al. 2019 (arXiv 1804.07461). Fine-tuning: Devlin et al. 2019 (arXiv 1810.04805), appendix A.3.
In reading order: metrics, tasks and files, download, fine-tuning, the run, tables, options.
Every random number is a function of (seed, task, purpose): an interrupted run goes on as if it never stopped.
"""

import hashlib
import io
import json
import math
import platform
import re
import shutil
import sys
import time
import urllib.request
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import model as bert
from train import (
    flag,
    hardware_name,
    keep_memory,
    learning_rate,
    make_optimizer,
    option,
    parse_options,
    pick_hardware,
)

GLUE_URL = "https://dl.fbaipublicfiles.com/glue/data/"
MSR_URL = "https://dl.fbaipublicfiles.com/senteval/senteval_data/"
ARMS = ("pretrained", "from scratch")
FROM_MNLI = ("RTE", "MRPC", "STS-B")  # small and close to MNLI: what --mnli-init is for
ANSWERS = {"test_matched": "MNLI-m", "test_mismatched": "MNLI-mm", "diagnostic": "AX"}  # else the task
HIDDEN = ("test", "diagnostic")  # files without labels begin so
MSR_FILES = ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt")
NO_AVERAGE = ("WNLI", "AX")  # WNLI's dev set contradicts its training set; AX has no training set

# ---- metrics: functions of (labels, predictions), both [N] ----


def as_pair(labels, predictions):
    """Both as float64 [N]. Raises ValueError unless they are finite, not empty and of one length."""
    y, p = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
    if y.shape != p.shape or y.ndim != 1 or not y.size or not np.isfinite((y, p)).all():
        raise ValueError(f"a metric needs two lists of finite numbers, equally long: {y.shape}, {p.shape}")
    return y, p


def ratio(over: float, under: float, name: str) -> float:
    """over / under; 0 / 0 counts as 0, and a warning says so."""
    if under == 0:
        warnings.warn(f"{name} is 0 / 0 here and counts as 0", stacklevel=3)
    return float(over / under) if under else 0.0


def accuracy(labels, predictions) -> float:
    """mean(y = p), from 0 to 1."""
    y, p = as_pair(labels, predictions)
    return float((y == p).mean())


def f1_score(labels, predictions) -> float:
    """2 TP / (2 TP + FP + FN) of class 1: the harmonic mean of precision and recall, from 0 to 1."""
    y, p = as_pair(labels, predictions)
    hits = 2 * ((y == 1) & (p == 1)).sum()
    return ratio(hits, hits + ((y == 1) != (p == 1)).sum(), "F1")


def matthews_corrcoef(labels, predictions) -> float:
    """Correlation of two classifications, from -1 to 1, for any number of classes (Gorodkin 2004).

    (c N - sum_k y_k p_k) / sqrt((N^2 - sum_k p_k^2) (N^2 - sum_k y_k^2)): c hits among N rows, y_k rows of
    class k, p_k predictions of it. With two classes (TP TN - FP FN) / sqrt((TP+FP) (TP+FN) (TN+FP) (TN+FN)).
    """
    y, p = as_pair(labels, predictions)
    classes, n = np.union1d(y, p), float(len(y))
    y_k, p_k = (y[:, None] == classes).sum(0), (p[:, None] == classes).sum(0)
    under = math.sqrt((n**2 - (p_k**2).sum()) * (n**2 - (y_k**2).sum()))
    return ratio((y == p).sum() * n - (y_k * p_k).sum(), under, "Matthews correlation")


def pearsonr(labels, predictions) -> float:
    """sum (y - mean y) (p - mean p) / sqrt(sum (y - mean y)^2 sum (p - mean p)^2), from -1 to 1.

    A constant list gives 0 and a warning, even if its mean is rounded: test for it, or subtract y[0] first.
    """
    y, p = (x - x[0] for x in as_pair(labels, predictions))  # makes a constant exactly 0 in spite of rounding
    y, p = y - y.mean(), p - p.mean()
    return ratio((y * p).sum(), math.sqrt((y**2).sum() * (p**2).sum()), "correlation")


def spearmanr(labels, predictions) -> float:
    """Pearson's correlation of the ranks; equal values share the average of their ranks."""

    def ranks(x):
        _, place, count = np.unique(x, return_inverse=True, return_counts=True)
        return (count.cumsum() - (count - 1) / 2)[place]

    return pearsonr(*map(ranks, as_pair(labels, predictions)))


# ---- tasks and their files ----


@dataclass(frozen=True)
class Task:
    """How a task's files look and how it is scored. Columns count from 0, and -1 is the last."""

    archive: str  # name at GLUE_URL
    metrics: tuple  # functions above
    labels: tuple  # as the files write them, in the order of the classes; none: a score from 0 to 5
    text: tuple  # columns of the sentence or of both
    label: int  # its column
    test_text: tuple  # columns of the sentences in files without labels
    rows: tuple  # official number of rows of each file
    files: tuple = ("train", "dev", "test")  # .tsv
    header: bool = True  # train and dev begin with column names; files without labels always do


ACC, ACC_F1, MATTHEWS = (accuracy,), (accuracy, f1_score), (matthews_corrcoef,)
BINARY, TWO_WAY = ("0", "1"), ("entailment", "not_entailment")
SCORE = re.compile(r"[0-4](\.\d+)?|5(\.0+)?")
THREE_WAY = ("entailment", "neutral", "contradiction")
MNLI_FILES = ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched")
MNLI_ROWS = (392702, 9815, 9832, 9796, 9847)
TASKS = {
    "CoLA": Task("CoLA.zip", MATTHEWS, BINARY, (3,), 1, (1,), (8551, 1043, 1063), header=False),
    "SST-2": Task("SST-2.zip", ACC, BINARY, (0,), 1, (1,), (67349, 872, 1821)),
    "MRPC": Task("mrpc_dev_ids.tsv", ACC_F1, BINARY, (3, 4), 0, (3, 4), (3668, 408, 1725)),
    "STS-B": Task("STS-B.zip", (pearsonr, spearmanr), (), (7, 8), 9, (7, 8), (5749, 1500, 1379)),
    "QQP": Task("QQP-clean.zip", ACC_F1, BINARY, (3, 4), 5, (1, 2), (363846, 40430, 390965)),
    "MNLI": Task("MNLI.zip", ACC, THREE_WAY, (8, 9), -1, (8, 9), MNLI_ROWS, MNLI_FILES),
    "QNLI": Task("QNLIv2.zip", ACC, TWO_WAY, (1, 2), 3, (1, 2), (104743, 5463, 5463)),
    "RTE": Task("RTE.zip", ACC, TWO_WAY, (1, 2), 3, (1, 2), (2490, 277, 3000)),
    "WNLI": Task("WNLI.zip", ACC, BINARY, (1, 2), 3, (1, 2), (635, 71, 146)),
    # AX is answered by MNLI's model. Its official copy hides the labels; with them, they are the last column.
    "AX": Task("AX.tsv", MATTHEWS, THREE_WAY, (-3, -2), -1, (1, 2), (1104,), ("diagnostic",)),
}


@dataclass
class Split:
    """One file: N tuples of sentences and their labels [N] (classes int64, scores float32; None: hidden)."""

    texts: list
    labels: np.ndarray | None
    ragged: int = 0  # rows with more or fewer columns than the file has


def read_split(path: Path, task: Task) -> Split:
    """Read a TSV file; quotes are text, for sentences hold single ones. Raises ValueError with file and line.

    A ragged row is left out and counted, unless labels are hidden: there every row needs an answer.
    """
    texts, labels, ragged, text, width = [], [], 0, task.text, max(task.text) + 1
    hidden = path.stem.startswith(HIDDEN)
    with open(path, encoding="utf-8-sig", errors="replace", newline="\n") as file:  # sentences may hold \r
        for number, line in enumerate(file, 1):
            cells = line.rstrip("\r\n").split("\t")
            if number == 1 and (hidden or task.header):
                hidden = hidden and cells[-1].lower() != "label"
                text, width = task.test_text if hidden else task.text, len(cells)
                if not all(-width <= column < width for column in (*text, 0 if hidden else task.label)):
                    raise ValueError(f"{path} has too few columns for GLUE's layout; get the file again")
                continue
            if len(cells) != width:
                ragged += any(cells)
                if not hidden or not any(cells):
                    continue
                cells += [""] * width
            texts.append(tuple(cells[column] for column in text))
            if hidden:
                continue
            label = cells[task.label]
            if not (label in task.labels if task.labels else SCORE.fullmatch(label)):
                wanted = " or ".join(task.labels) or "a number from 0 to 5"
                raise ValueError(f"{path}, line {number}: label {label!r} is not {wanted}; mend the file")
            labels.append(task.labels.index(label) if task.labels else float(label))
    if not texts:
        raise ValueError(f"{path} holds no rows in GLUE's layout; get the file again")
    return Split(texts, None if hidden else np.array(labels, np.int64 if task.labels else np.float32), ragged)


def task_folder(name: str, data_dir) -> Path:
    """Where the official layout has a task's files."""
    return Path(data_dir) / ("diagnostic" if name == "AX" else name)


def load_task(name: str, data_dir, with_test: bool = True):
    """The files that are there, {"train": Split, "dev": Split, ...}, and sentences on what is odd."""
    splits, notes = {}, []
    for stem, official in zip(TASKS[name].files, TASKS[name].rows, strict=True):
        path = task_folder(name, data_dir) / f"{stem}.tsv"
        if stem.startswith("test") and not with_test:
            continue
        if not path.is_file():
            notes.append(f"{name} {stem}: no {path.name} in {path.parent}, skipped")
            continue
        split = splits[stem] = read_split(path, TASKS[name])
        if split.ragged:
            kept = "kept" if split.labels is None else "skipped"
            notes.append(f"{name} {stem}: {split.ragged:,} ragged rows {kept}")
        if len(split.texts) != official:
            rows = f"{len(split.texts):,} of {official:,} rows"
            notes.append(f"{name} {stem}: {rows}: not comparable with published scores")
    return splits, notes


# ---- download ----


def download(names, data_dir):
    """Fetch the tasks that are not complete in data_dir. Raises OSError at the end if some failed."""
    failed = []
    for name in names:
        try:
            if not load_task(name, data_dir)[1]:
                print(f"{name}: complete, kept")
                continue
        except ValueError as error:
            print(error)  # a damaged file: fetched again
        try:
            fetch_task(name, task_folder(name, data_dir))
            print("\n".join(load_task(name, data_dir)[1]) or f"{name}: complete")
        except Exception as error:  # of network, archive or disk: the other tasks go on
            failed.append(name)
            print(f"{name}: failed: {error}")
    if failed:
        raise OSError(
            f"{', '.join(failed)} not downloaded: start again, or take the folder from another copy of GLUE "
            "(gluebenchmark.com/tasks; for MRPC, the two msr_paraphrase files and dev_ids.tsv will do)"
        )


def fetch_task(name: str, folder: Path):
    """Write one task's files and nothing else. Raises OSError, or ValueError for what cannot be GLUE's."""
    folder.mkdir(parents=True, exist_ok=True)
    url = GLUE_URL + TASKS[name].archive
    if name == "MRPC":
        sources = {file: MSR_URL + file for file in MSR_FILES} | {"dev_ids.tsv": url}
        for file, source in sources.items():
            if not (folder / file).is_file():  # its owner may have put it there by hand
                write_bytes(folder / file, fetch(source))
        split_mrpc(folder)
    elif name == "AX":
        write_bytes(folder / "diagnostic.tsv", fetch(url))
    else:
        with zipfile.ZipFile(io.BytesIO(fetch(url))) as archive:
            members = archive.namelist()
            if any(member.startswith(("/", "\\")) or ".." in member for member in members):
                raise ValueError(f"{url} holds a path that leads out of its folder: do not trust it")
            for stem in TASKS[name].files:
                if f"{name}/{stem}.tsv" not in members:
                    raise ValueError(f"{url} holds no {name}/{stem}.tsv")
                if archive.getinfo(f"{name}/{stem}.tsv").file_size > 2**30:
                    raise ValueError(f"{url} unpacks to more than GLUE holds: do not trust it")
                write_bytes(folder / f"{stem}.tsv", archive.read(f"{name}/{stem}.tsv"))


def write_bytes(path: Path, data: bytes):
    """Write a file, whole or not at all."""
    bert.atomic_write(path, lambda file: file.write(data))


def fetch(url: str) -> bytes:
    """Download a file. Raises OSError, also where the connection breaks off."""
    data = io.BytesIO()
    with urllib.request.urlopen(url, timeout=60) as reply:
        total = int(reply.headers.get("Content-Length") or 0)
        with tqdm.wrapattr(reply, "read", total or None, desc=Path(url).name, disable=None) as source:
            shutil.copyfileobj(source, data)
    if total and data.tell() != total:
        raise OSError(f"{url} broke off after {data.tell():,} of {total:,} bytes")
    return data.getvalue()


def split_mrpc(folder: Path):
    """Write train, dev and test as GLUE has them: dev are the pairs in dev_ids.tsv. Raises ValueError."""
    ids, train, test = (
        [line.rstrip("\r").split("\t") for line in (folder / file).read_bytes().decode().split("\n") if line]
        for file in ("dev_ids.tsv", *MSR_FILES)
    )
    if not (train and test) or any(len(row) != 5 for row in train + test):
        raise ValueError(f"the msr_paraphrase files in {folder} are damaged; delete them and start again")
    parts = {"train": train[:1], "dev": train[:1], "test": [["index", *test[0][1:]]]}
    parts["train"] += [row for row in train[1:] if row[1:3] not in ids]
    parts["dev"] += [row for row in train[1:] if row[1:3] in ids]
    parts["test"] += [[str(i), *row[1:]] for i, row in enumerate(test[1:])]
    for part, rows in parts.items():
        write_bytes(folder / f"{part}.tsv", "".join("\t".join(row) + "\n" for row in rows).encode())


# ---- fine-tuning ----


def stream(*key) -> int:
    """The seed of one random stream, a function of its key: (seed, task, purpose, ...)."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")


def encode(tokenizer, texts) -> list:
    """N rows int32 [2, T]: the id of every token, and its segment."""
    encodings = (tokenizer.encode(*text) for text in tqdm(texts, "tokenising", leave=False, disable=None))
    return [np.array((e.ids, e.type_ids), np.int32) for e in encodings]


def length_batches(lengths: np.ndarray, batch_size: int, seed: int) -> list:
    """Every row once, in batches of similar length: shuffle, sort pools of 64 batches, shuffle batches."""
    rng = np.random.default_rng(seed)
    order, pool = rng.permutation(len(lengths)), np.arange(len(lengths)) // (64 * batch_size)
    order = order[np.lexsort((lengths[order], pool))]  # by pool, then by length
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def forward(model, rows, index, o) -> torch.Tensor:
    """Logits [B, C], float32, of the rows `index`, padded to the longest of them."""
    tensors = [torch.from_numpy(rows[i].T) for i in index]
    padded = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=-1)  # [B, T, 2]
    ids, segments = padded.to(o.device).unbind(-1)
    with torch.autocast(o.device.type, o.dtype, enabled=o.dtype != torch.float32):
        pooled = model.bert(ids.clamp_min(0), ids >= 0, segments.clamp_min(0))[1]
    return model.classifier(model.dropout(pooled.float()))  # in bfloat16 many scores would be ties


def build_model(name: str, seed: int, arm: str, o) -> bert.BertForSequenceClassification:
    """The checkpoint, or its shape with train.py's start; a new classifier, and a pooler if it has none.

    Dropout is BERT's 0.1, whatever the checkpoint was pretrained with.
    """
    changes = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    changes["num_labels"] = len(TASKS[name].labels) or 1
    folder = mnli_folder(o, arm, seed) if o.mnli_init and name in FROM_MNLI else o.model
    if arm == "from scratch" and folder == o.model:
        model = bert.BertForSequenceClassification(bert.BertConfig.from_folder(folder, **changes))
        weights = torch.Generator().manual_seed(stream(seed, "weights"))
        bert.init_normal(model, model.config.initializer_range, weights)
        bert.init_offset_heads(model.bert, weights)
    else:
        model = bert.BertForSequenceClassification.from_pretrained(folder, **changes)
        head = torch.Generator().manual_seed(stream(seed, name, "head"))
        bert.init_normal(model.classifier, model.config.initializer_range, head)
        if "bert.pooler.dense.weight" in model.newly_initialised:
            bert.init_normal(model.bert.pooler, model.config.initializer_range, head)
    return model.to(o.device)


def mnli_folder(o, arm: str, seed: int) -> Path:
    """Where --mnli-init keeps the weights fine-tuned on MNLI."""
    return Path(o.out) / f"mnli {arm} {seed}".replace(" ", "-")


def finetune(model, rows, labels, key, o, title: str) -> float:
    """Train in place on cross-entropy, or a score's squared error. Returns tokens/s, padding not counted.

    key: (seed, task). Raises ValueError if the loss is no longer a number.
    """
    torch.manual_seed(stream(*key, "dropout"))
    model.train()
    if o.freeze:  # the head is pooler and classifier: a masked-LM checkpoint has neither
        for part in (model.bert.embeddings, model.bert.encoder):
            part.eval().requires_grad_(False)
    optimizer = make_optimizer(model, o.lr)
    lengths, labels = np.array([row.shape[1] for row in rows]), torch.from_numpy(labels).to(o.device)
    if model.config.num_labels == 1:  # start at the mean score: the bias would be slow to get there
        torch.nn.init.constant_(model.classifier.bias, labels.mean().item())
    steps, step, tokens, start = o.epochs * math.ceil(len(rows) / o.batch_size), 0, 0, time.perf_counter()
    with tqdm(total=steps, desc=title, unit="step", leave=False, disable=None) as bar:
        for epoch in range(o.epochs):
            for index in length_batches(lengths, o.batch_size, stream(*key, "order", epoch)):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, steps, round(0.1 * steps), o.lr)
                logits, y = forward(model, rows, index, o), labels[index]
                loss = F.mse_loss(logits[:, 0], y) if y.is_floating_point() else F.cross_entropy(logits, y)
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                step, tokens = step + 1, tokens + int(lengths[index].sum())
                bar.update()
                if step % 50 == 0 or step == steps:  # reading the loss makes a GPU wait
                    value, speed = (loss + 0 * norm).item(), tokens / (time.perf_counter() - start)
                    if not math.isfinite(value):
                        advice = f"try a lower --lr in another --out ({o.out} keeps what was finished)"
                        raise ValueError(f"{title}: the loss is {value} at step {step}; {advice}")
                    bar.set_postfix_str(f"loss {value:.3f}, {speed:,.0f} tokens/s")
    model.eval()
    return speed


@torch.inference_mode()
def predict(model, rows, o) -> np.ndarray:
    """Predictions [N] in the order of the rows: the likeliest class, or the score."""
    order = sorted(range(len(rows)), key=lambda i: rows[i].shape[1])
    logits = torch.empty(len(rows), model.config.num_labels)
    for start in tqdm(range(0, len(rows), 256), "evaluating", leave=False, disable=None):
        index = order[start : start + 256]
        logits[index] = forward(model, rows, index, o).cpu()
    return (logits[:, 0] if logits.shape[1] == 1 else logits.argmax(1)).numpy()


def score(name: str, labels: dict, guesses: dict) -> dict:
    """{task: {"scores": {metric: value}, "one_answer": were all its predictions the same?}}.

    labels, guesses: {split: [N]}. AX, which MNLI's model answers, is a task of its own.
    """
    tasks = {}
    for stem, y in labels.items():
        task, part = ("AX", "") if stem == "diagnostic" else (name, stem.removeprefix("dev").strip("_"))
        result = tasks.setdefault(task, {"scores": {}, "one_answer": False})
        result["one_answer"] |= bool(np.ptp(guesses[stem]) == 0)
        with warnings.catch_warnings():  # 0 / 0 comes of one answer, which the table remarks on
            warnings.simplefilter("ignore")
            for metric in TASKS[task].metrics:
                result["scores"][f"{part} {metric.__name__}".strip()] = metric(y, guesses[stem])
    return tasks


def write_submission(name: str, stem: str, guess: np.ndarray, folder: Path):
    """One file as gluebenchmark.com takes it: index<TAB>prediction, labels as GLUE's files write them."""
    labels = TASKS[name].labels
    words = [labels[int(x)] if labels else f"{min(5.0, max(0.0, float(x))):.3f}" for x in guess]
    text = "index\tprediction\n" + "".join(f"{i}\t{word}\n" for i, word in enumerate(words))
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / f"{ANSWERS.get(stem, name)}.tsv", text.encode())


# ---- the run ----


def digest_of(record: dict) -> str:
    """16 hexadecimal digits that follow from the content of a record, but for its times."""
    text = re.sub(r'"seconds": [^,}]*', "", json.dumps(record))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_record(path: Path) -> dict:
    """A run's glue.json. Raises FileNotFoundError, or ValueError where it is damaged or was changed."""
    record = bert.read_json(path)
    try:
        good = record.pop("digest", None) in (None, digest_of(record))  # older files have none
        good &= isinstance(record["settings"]["checkpoint"], str) and isinstance(record["data"], dict)
        runs = [
            (seed, run)
            for arm in record["results"].values()
            for task in arm.values()
            for seed, run in task.items()
        ]
        good &= all(seed.isdecimal() and 0 <= run.get("seconds", 0) < 1e9 for seed, run in runs)
        good &= all(-1 <= value <= 1 for _, run in runs for value in run["scores"].values())
    except (KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise ValueError(f"{path} is damaged or was changed: get it back, or choose another --out")
    return record


def open_record(o) -> dict:
    """What --out's glue.json holds, or an empty record. Raises ValueError if it has other settings."""
    path, digest = Path(o.out) / "glue.json", hashlib.sha256()
    for name in ("config.json", "vocab.txt", "tokenizer.json", "model.safetensors", "pytorch_model.bin"):
        file = Path(o.model) / name
        digest.update(file.read_bytes() if file.is_file() else b"")
    names = ("epochs", "lr", "batch_size", "max_length", "max_train", "freeze", "mnli_init")
    settings = {name: getattr(o, name) for name in names}
    settings |= {"dtype": str(o.dtype).removeprefix("torch."), "checkpoint": digest.hexdigest()[:16]}
    if path.exists():
        record = read_record(path)
        for name, value in settings.items():
            there = record.get("settings", {}).get(name)
            if there != value:
                raise ValueError(f"{path} was made with {name} {there}, not {value}; choose another --out")
        return record
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    made_with = versions | {"hardware": hardware_name(o.device)}
    record = {"model": o.model, "settings": settings, "made_with": made_with}
    return record | {"notes": {}, "data": {}, "majority": {}, "results": {}}


def evaluate(o):
    """Fine-tune and score every chosen task and seed that --out lacks, then print the table."""
    o.device, o.dtype = pick_hardware(o.device, o.dtype)
    config, tokenizer = bert.BertConfig.from_folder(o.model), bert.load_tokenizer(o.model)
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise ValueError(f"{o.model}: the tokenizer has more entries than the model's vocabulary")
    if config.type_vocab_size < 2:
        raise ValueError(f"{o.model} knows no segments, which pairs of sentences need")
    if o.max_length > config.max_position_embeddings:
        o.max_length = config.max_position_embeddings
        print(f"--max-length is cut to the checkpoint's {o.max_length} positions")
    tokenizer.encode_special_tokens = True  # "[SEP]" inside a sentence is text
    tokenizer.enable_truncation(o.max_length)  # the longer sentence of a pair loses tokens first
    record, answers = open_record(o), Path(o.out) / f"submission-seed-{o.seeds[0]}"
    print(f"{o.model}: {config.num_hidden_layers} layers x {config.hidden_size}, {o.device}, {o.dtype}")
    for name in sorted(set(o.tasks) - {"AX"}, key=["MNLI", *TASKS].index):
        evaluate_task(name, o, tokenizer, record, answers)
        if o.mnli_init and "MNLI" in o.tasks and "MNLI" not in record["data"]:
            raise ValueError(f"--mnli-init needs MNLI, and {o.data_dir} lacks its train or dev file")
    if not record["results"]:
        raise ValueError(f"{o.data_dir} has train and dev files of no task asked for; try --download")
    print(f"\n{results_table(record)}\n\nwritten: {Path(o.out) / 'glue.json'}")
    if o.predict:
        wanted = [f"{name}.tsv" for name in (*TASKS, "MNLI-m", "MNLI-mm") if name != "MNLI"]
        lacks = ", ".join(name for name in wanted if not (answers / name).is_file())
        path, files = answers.with_suffix(".zip"), io.BytesIO()
        with zipfile.ZipFile(files, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in filter(lambda name: (answers / name).is_file(), wanted):
                archive.write(answers / name, name)
        write_bytes(path, files.getvalue())
        print(f"written: {path}" + f" (incomplete, without {lacks})" * bool(lacks))


def evaluate_task(name: str, o, tokenizer, record: dict, answers: Path):
    """All seeds of one task; each is in glue.json as soon as it is finished, its answers in their folder."""
    splits, notes = load_task(name, o.data_dir, o.predict)
    if name == "MNLI" and "AX" in o.tasks:
        diagnostic, more = load_task("AX", o.data_dir)
        splits, notes = splits | diagnostic, notes + more
    folder = task_folder(name, o.data_dir)
    paths = {stem: folder / f"{stem}.tsv" for stem in splits if not stem.startswith(HIDDEN)}
    runnable = "train" in paths and len(paths) > 1
    record["notes"][name] = notes + [f"{name}: skipped, it needs a train and a dev file"] * (not runnable)
    for note in record["notes"][name]:
        print(note)
    if not runnable:
        return
    files = {stem: zlib.crc32(path.read_bytes()) for stem, path in paths.items()}
    if record["data"].setdefault(name, files) != files:
        raise ValueError(f"the files of {name} are not those {o.out} was made with; choose another --out")
    train, rows, results = splits.pop("train"), {}, record["results"]
    if 0 < o.max_train < len(train.texts):  # drawn, since files may be sorted; the same rows for every seed
        kept = np.random.default_rng(stream(name, "subset")).permutation(len(train.texts))[: o.max_train]
        train = Split([train.texts[i] for i in kept], train.labels[kept])
    labels = {stem: split.labels for stem, split in splits.items() if split.labels is not None}
    constant = {stem: np.full(len(y), np.bincount(y.astype(int)).argmax()) for stem, y in labels.items()}
    floors = {task: result["scores"] for task, result in score(name, labels, constant).items()}
    record["majority"] |= floors
    for seed in o.seeds:
        for arm in ARMS[: 1 + o.from_scratch]:
            answering = o.predict and (arm, seed) == (ARMS[0], o.seeds[0])
            asked = [stem for stem in splits if answering and stem.startswith(HIDDEN)]
            leaves = [answers / f"{ANSWERS.get(stem, name)}.tsv" for stem in asked]
            leaves += [mnli_folder(o, arm, seed)] * (o.mnli_init and name == "MNLI")
            scored = all(str(seed) in results.get(arm, {}).get(task, {}) for task in floors)
            if scored and all(path.exists() for path in leaves):
                continue
            if not rows:
                every = {**splits, "train": train}.items()
                rows = {stem: encode(tokenizer, split.texts) for stem, split in every}
            title, start = f"{name}, {arm}, seed {seed}", time.perf_counter()
            model = build_model(name, seed, arm, o)
            speed = finetune(model, rows["train"], train.labels, (seed, name), o, title)
            if o.mnli_init and name == "MNLI":
                model.save_pretrained(mnli_folder(o, arm, seed))
            guesses = {stem: predict(model, rows[stem], o) for stem in {*labels, *asked}}
            for stem in asked:
                write_submission(name, stem, guesses[stem], answers)
            facts = {"train_rows": len(train.texts), "seconds": round(time.perf_counter() - start, 1)}
            for task, result in score(name, labels, guesses).items():
                results.setdefault(arm, {}).setdefault(task, {})[str(seed)] = result | facts
                values = ", ".join(f"{metric} {100 * x:.1f}" for metric, x in result["scores"].items())
                print(f"{title}: {values} ({facts['seconds']} s, {speed:,.0f} tokens/s)")
            bert.write_json(Path(o.out) / "glue.json", record | {"digest": digest_of(record)})


# ---- tables and comparison ----


def markdown(rows) -> str:
    """A Markdown table with aligned columns; the first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows)


def spread(values) -> str:
    """Mean and, from two values on, standard deviation of the sample (n - 1), in percent."""
    deviation = f" ({100 * np.std(values, ddof=1):.1f})" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{deviation}" if len(values) else ""


def seed_means(arm: dict, tasks) -> dict:
    """{seed: score} for seeds that all tasks have: the mean over tasks of the mean of a task's metrics.

    That is GLUE's average (Wang et al. 2019, section 5). arm: {task: {seed: result}}
    """
    seeds = set.intersection(*(set(arm.get(task, {})) for task in tasks))
    return {
        seed: float(np.mean([np.mean(list(arm[task][seed]["scores"].values())) for task in tasks]))
        for seed in sorted(seeds, key=int)
    }


def results_table(record) -> str:
    """The results in Markdown, followed by what has to be known to read them."""
    results, settings, majority = record["results"], record["settings"], record["majority"]
    arms = [arm for arm in ARMS if arm in results]
    names = [name for name in TASKS if name in results[ARMS[0]]]
    tasks = [name for name in names if name not in NO_AVERAGE]
    runs = {(name, arm): results[arm].get(name, {}) for name in names for arm in arms}
    stuck = {key: " ".join(seed for seed in runs[key] if runs[key][seed]["one_answer"]) for key in runs}
    table = [["task", "metric", *arms, "majority", "train rows", "s/run"]]
    for name in names:
        mark = " *" * (settings["mnli_init"] and name in FROM_MNLI)
        first = list(runs[name, ARMS[0]].values())
        end = [f"{first[0]['train_rows']:,}", f"{np.mean([run['seconds'] for run in first]):.0f}"]
        for metric, floor in majority[name].items():
            values = {arm: [run["scores"][metric] for run in runs[name, arm].values()] for arm in arms}
            cells = [spread(values[arm]) + " !" * bool(stuck[name, arm]) for arm in arms]
            table.append([name + mark, metric, *cells, spread([floor]), *end])
    if tasks:
        means = {arm: list(seed_means(results[arm], tasks).values()) for arm in arms}
        cells = [spread(means[arm]) + " !" * any(stuck[name, arm] for name in tasks) for arm in arms]
        floor = np.mean([np.mean(list(majority[name].values())) for name in tasks])
        table.append([f"average of {len(tasks)}", "", *cells, spread([floor]), "", ""])
    seeds = " ".join(sorted({seed for key in runs for seed in runs[key]}, key=int))
    caption = f"GLUE dev sets, percent, mean (standard deviation) over seeds {seeds} after the last epoch; "
    caption += ", ".join(f"{name} {settings[name]}" for name in ("epochs", "lr", "batch_size", "dtype"))
    caption += ", head only" * settings["freeze"] + f". The average is without {' and '.join(NO_AVERAGE)}."
    notes = ["* starts from the weights fine-tuned on MNLI"] * settings["mnli_init"]
    if settings["max_train"]:
        notes.append(f"quick run: at most {settings['max_train']:,} training rows a task")
    notes += sum(record["notes"].values(), [])
    for (name, arm), seeds in stuck.items():
        if seeds:
            notes.append(f"! {name}, {arm}, seed {seeds}: one answer for every row, nothing was learnt")
    return "\n".join([markdown(table), "", caption, *(f"- {note}" for note in notes)])


def welch(a, b):
    """Welch's t-test of two samples: (t, degrees of freedom nu, two-sided p); None if no variance is known.

    t = (mean b - mean a) / sqrt(v_a + v_b) with v = s^2 / n (Welch 1947);
    nu = (v_a + v_b)^2 / (v_a^2 / (n_a - 1) + v_b^2 / (n_b - 1)). With T = sqrt(nu) tan(x), Student's density
    is a constant times cos(x)^(nu - 1): p is the share of its area that lies beyond atan(|t| / sqrt(nu)).
    """
    if min(len(a), len(b)) < 2 or max(np.var(a), np.var(b)) < 1e-20:
        return None
    v_a, v_b = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    t = (np.mean(b) - np.mean(a)) / math.sqrt(v_a + v_b)
    nu = (v_a + v_b) ** 2 / (v_a**2 / (len(a) - 1) + v_b**2 / (len(b) - 1))

    def area_beyond(x):  # up to pi / 2, by the midpoint rule
        middles = x + (math.pi / 2 - x) * (np.arange(100_000) + 0.5) / 100_000
        return (math.pi / 2 - x) * (np.cos(middles) ** (nu - 1)).mean()

    p = area_beyond(math.atan(abs(t) / math.sqrt(nu))) / area_beyond(0)
    return float(t), float(nu), float(p)


def compare(specs) -> str:
    """Markdown that sets arms ["A=run1,run2", ...] side by side and tests every other one against the first.

    Fine-tuning seeds are averaged within a pretraining run, then runs are compared. Where an arm has one run,
    seeds are compared instead, which says nothing about a second pretraining run. Raises ValueError, OSError.
    """
    arms = {}
    for spec in specs:
        arm, _, folders = spec.partition("=")
        runs = [read_record(Path(folder) / "glue.json") for folder in folders.split(",") if folder]
        if not runs or arm in arms:
            raise ValueError(f"--compare {spec}: write NAME=RUN or NAME=RUN,RUN, each name once")
        if len({run["settings"]["checkpoint"] for run in runs}) < len(runs):
            raise ValueError(f"--compare {spec}: the same checkpoint twice is not two pretraining runs")
        arms[arm] = runs
    if len(arms) < 2:
        raise ValueError("--compare needs two names, as in A=runs/a B=runs/b")
    every, many = sum(arms.values(), []), min(map(len, arms.values())) > 1
    tasks = [name for name in TASKS if all(name in run["results"][ARMS[0]] for run in every)]
    average = [name for name in tasks if name not in NO_AVERAGE]

    def sample(arm, names):
        scores = [seed_means(run["results"][ARMS[0]], names) for run in arms[arm]]
        if many:
            return [np.mean(list(seeds.values())) for seeds in scores if seeds]
        common = set.intersection(*map(set, scores))
        return [np.mean([seeds[seed] for seeds in scores]) for seed in sorted(common)]

    text, tests, (first, *others) = [], 0, arms
    for other in others:
        table = [["task", first, other, "difference", "p", "verdict"]]
        for names in [[name] for name in tasks] + [average] * (len(average) > 1):
            a, b = sample(first, names), sample(other, names)
            test, p, verdict = welch(a, b), "", "no test: the spread is not known"
            if test:
                p, tests, verdict = f"{test[2]:.3f}", tests + 1, "no difference found"
                if test[2] < 0.05:
                    verdict = f"{other if test[0] > 0 else first} is higher"
            label = names[0] if len(names) == 1 else f"average of {len(names)}"
            gap = f"{100 * (np.mean(b) - np.mean(a)):+.1f}" if a and b else ""
            table.append([label, spread(a), spread(b), gap, p, verdict])
        text += [markdown(table), ""]
    unit = "pretraining runs" if many else "fine-tuning seeds"
    text += [f"GLUE dev sets, percent: metrics averaged, then mean (std) over {unit}; p of Welch's t-test."]
    text += [f"- {tests} tests at 5%: about {0.05 * tests:.2g} of them would find a difference by luck"]
    text += [f"- {arm}: pretraining runs {len(runs)}" for arm, runs in arms.items()]
    if not many:
        text += ["- an arm has one pretraining run: only the noise of fine-tuning is known here"]
    for name in TASKS:
        if any(name in run["results"][ARMS[0]] for run in every) and name not in tasks:
            text += [f"- {name}: not in every run, left out"]
        if name in tasks and any(run["data"].get(name) != every[0]["data"].get(name) for run in every):
            text += [f"- unequal conditions: the files of {name} differ between runs"]
    for key, value in every[0]["settings"].items():
        if key != "checkpoint" and any(run["settings"].get(key) != value for run in every):
            text += [f"- unequal conditions: {key} differs between runs"]
    return "\n".join(text)


# ---- options ----


@dataclass
class Options:
    """What a run is. Every field is a command-line option."""

    model: str = option("", "checkpoint folder to judge: ours, or one saved by Hugging Face transformers")
    data_dir: str = option("data/glue", "GLUE in the official layout, as in data/glue/SST-2/train.tsv")
    tasks: list = option([], "tasks to run; default: all that are found", nargs="+", choices=list(TASKS))
    seeds: list = option([0, 1, 2], "fine-tuning runs per task", nargs="+", type=int)
    epochs: int = option(3, "passes over the training set; the score is that after the last one")
    lr: float = option(0.0, "highest learning rate, then linear decay; 0: 1e-4, with --freeze 1e-3")
    batch_size: int = option(32, "rows a step")
    max_length: int = option(128, "tokens a row; longer pairs are cut, the longer sentence first")
    max_train: int = option(0, "train on this many random rows only, for a quick look; 0: all")
    freeze: bool = option(False, "train the head (pooler and classifier) only")
    from_scratch: bool = option(False, "also fine-tune the same encoder without pretraining: the floor")
    mnli_init: bool = option(False, "start RTE, MRPC and STS-B from the weights fine-tuned on MNLI")
    predict: bool = option(False, "write test predictions of the first seed for gluebenchmark.com")
    compare: list = option([], "compare runs by their --out folders", nargs="+", metavar="NAME=RUN,RUN")
    download: bool = option(False, "first fetch the official files that --data-dir lacks")
    out: str = option("runs/glue", "folder for glue.json; a run that stopped goes on from there")
    device: str = option("auto", "cpu, cuda, cuda:1, mps; auto: cuda if there is one")
    dtype: str = option("auto", "auto: bfloat16 if fast here", choices=["auto", "float32", "bfloat16"])


def main(argv=None):
    """The program."""
    o = Options(**parse_options(Options, __doc__.splitlines()[0], argv))
    o.lr = o.lr or (1e-3 if o.freeze else 1e-4)
    keep_memory()
    try:
        for name, least in {"epochs": 1, "batch_size": 1, "max_length": 8, "max_train": 0, "lr": 0}.items():
            if not getattr(o, name) >= least:
                raise ValueError(f"{flag(name)} {getattr(o, name)} must be {least} or more")
        if len(set(o.seeds)) < len(o.seeds) or min(o.seeds) < 0:
            raise ValueError("--seeds must differ and not be negative: the same seed twice is the same run")
        if not (o.model or o.compare or o.download):
            raise ValueError("nothing to do: give --model FOLDER, --compare A=RUN B=RUN, or --download")
        if o.compare:
            print(compare(o.compare))
        o.tasks = o.tasks or list(TASKS)
        if "AX" in o.tasks or o.mnli_init and set(o.tasks) & set(FROM_MNLI):
            o.tasks.append("MNLI")
        if o.download:
            download(dict.fromkeys(o.tasks), o.data_dir)
        if o.model:
            Path(o.out).mkdir(parents=True, exist_ok=True)
            with bert.lock(Path(o.out) / ".lock"):
                evaluate(o)
    except Exception as error:
        sys.exit(f"glue_eval.py: {bert.explain(error)}")
    except KeyboardInterrupt:
        sys.exit("glue_eval.py: interrupted; the same command goes on after the last finished run")


if __name__ == "__main__":
    main()
