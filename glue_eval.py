"""Fine-tune a checkpoint on GLUE and print one table a reader can trust: `python glue_eval.py --help`.

GLUE: Wang et al. 2019 (arXiv 1804.07461). Fine-tuning: Devlin et al. 2019 (arXiv 1810.04805), appendix A.3.
In reading order: metrics, tasks and their files, fine-tuning, the run, tables, options.
Every random number is a function of (seed, task, purpose): an interrupted run goes on as if it never stopped.
"""

import hashlib
import io
import math
import re
import shutil
import sys
import time
import urllib.request
import warnings
import zipfile
import zlib
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import model as bert
import train
from train import option

GLUE_URL = "https://dl.fbaipublicfiles.com/glue/data/"
MSR_URL = "https://dl.fbaipublicfiles.com/senteval/senteval_data/"
ARMS = ("pretrained", "from scratch")
FROM_MNLI = ("RTE", "MRPC", "STS-B")  # small and close to MNLI: what --mnli-init is for
ANSWERS = {"test_matched": "MNLI-m", "test_mismatched": "MNLI-mm", "diagnostic": "AX"}  # else the task
HIDDEN = ("test", "diagnostic")  # files without labels begin so
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


# One file: N tuples of sentences, labels [N] (int64 classes, float32 scores; None: hidden), how many rows are
# ragged (more or fewer columns than the file has), and a checksum
Split = namedtuple("Split", "texts labels ragged checksum")


def read_split(path: Path, task: Task) -> Split:
    """Read a TSV file; quotes are text, since sentences hold single ones. Raises ValueError with its line."""
    texts, labels, ragged, text, width = [], [], 0, task.text, max(task.text) + 1
    data, hidden = path.read_bytes(), path.stem.startswith(HIDDEN)
    lines = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", "replace", newline="\n")  # sentences may hold \r
    for number, line in enumerate(lines, 1):
        cells = line.rstrip("\r\n").split("\t")
        if number == 1 and (hidden or task.header):
            hidden = hidden and cells[-1].lower() != "label"
            text, width = task.test_text if hidden else task.text, len(cells)
            if not all(-width <= column < width for column in (*text, 0 if hidden else task.label)):
                break
            continue
        ragged += len(cells) != width and any(cells)
        if len(cells) != width and not (hidden and any(cells)):  # without labels, every row needs an answer
            continue
        texts.append(tuple((cells + [""] * (width - len(cells)))[column] for column in text))
        if not hidden:
            label = cells[task.label]
            if not (label in task.labels if task.labels else SCORE.fullmatch(label)):
                wanted = " or ".join(task.labels) or "a number from 0 to 5"
                raise ValueError(f"{path}, line {number}: label {label!r} is not {wanted}; mend the file")
            labels.append(task.labels.index(label) if task.labels else float(label))
    if not texts:
        raise ValueError(f"{path} holds no rows in GLUE's layout; get the file again")
    labels = None if hidden else np.array(labels, np.int64 if task.labels else np.float32)
    return Split(texts, labels, ragged, zlib.crc32(data))


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
        texts, _, ragged, _ = splits[stem] = read_split(path, TASKS[name])
        if ragged or len(texts) != official:
            rows = f"{len(texts):,} of {official:,} rows" + f" ({ragged:,} ragged)" * (ragged > 0)
            notes.append(f"{name} {stem}: {rows}: not comparable with published scores")
    return splits, notes


def download(names, data_dir):
    """Fetch the tasks that are not complete in data_dir. Raises OSError at the end if some failed."""
    failed = []
    for name in names:
        try:
            notes = load_task(name, data_dir)[1]
        except ValueError as error:  # a damaged file
            notes = [str(error)]
        try:
            if notes:
                fetch_task(name, task_folder(name, data_dir))
                notes = load_task(name, data_dir)[1]
            print("\n".join(notes) or f"{name}: complete")
        except Exception as error:  # of network, archive or disk: the other tasks go on
            failed.append(name)
            print(f"{name}: failed: {error}")
    if failed:
        other = "gluebenchmark.com/tasks; for MRPC, the two msr_paraphrase files and dev_ids.tsv will do"
        raise OSError(f"{', '.join(failed)} not downloaded: start again, or take another copy ({other})")


def fetch(url: str) -> bytes:
    """Download a file. Raises OSError, or HTTPException where the connection breaks off."""
    with urllib.request.urlopen(url, timeout=60) as reply:
        print(f"fetching {url}, {int(reply.headers.get('Content-Length') or 0):,} bytes", flush=True)
        return reply.read()


def fetch_task(name: str, folder: Path):
    """Write one task's files and nothing else. Raises whatever network, archive and disk have in store."""
    url = GLUE_URL + TASKS[name].archive
    if name == "AX":
        files = {"diagnostic": fetch(url)}
    elif name == "MRPC":
        tables = []
        for file in ("dev_ids.tsv", "msr_paraphrase_train.txt", "msr_paraphrase_test.txt"):
            source, own = url if file == "dev_ids.tsv" else MSR_URL + file, folder / file
            text = (own.read_bytes() if own.is_file() else fetch(source)).decode()  # may be there by hand
            tables.append([line.rstrip("\r").split("\t") for line in text.rstrip("\n").split("\n")])
        ids, train, test = tables
        parts = {"train": [row for row in train if row[1:3] not in ids]}
        parts["dev"] = train[:1] + [row for row in train if row[1:3] in ids]
        parts["test"] = [["index", *test[0][1:]], *([str(i), *row[1:]] for i, row in enumerate(test[1:]))]
        files = {part: "".join("\t".join(row) + "\n" for row in parts[part]).encode() for part in parts}
    else:
        with zipfile.ZipFile(io.BytesIO(fetch(url))) as archive:  # read by name: no path in it is followed
            members = {stem: archive.getinfo(f"{name}/{stem}.tsv") for stem in TASKS[name].files}
            if max(member.file_size for member in members.values()) > 2**30:
                raise ValueError(f"{url} unpacks to more than GLUE holds: do not trust it")
            files = {stem: archive.read(member) for stem, member in members.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for stem, data in files.items():
        bert.atomic_write(folder / f"{stem}.tsv", lambda file, data=data: file.write(data))


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


def build_model(folder, name: str, seed: int, fresh: bool) -> bert.BertForSequenceClassification:
    """The checkpoint, or its shape with train.py's start; a new classifier, and a pooler if it has none."""
    changes = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}  # however it was pretrained
    changes["num_labels"] = len(TASKS[name].labels) or 1
    if fresh:
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
    return model


def finetune(model, rows, labels, key, o, title: str):
    """Train in place on cross-entropy, or a score's squared error. key: (seed, task)."""
    torch.manual_seed(stream(*key, "dropout"))
    model.train()
    if o.freeze:  # the head is pooler and classifier: a masked-LM checkpoint has neither
        for part in (model.bert.embeddings, model.bert.encoder):
            part.eval().requires_grad_(False)
    optimizer = train.make_optimizer(model, o.lr)
    lengths, labels = np.array([row.shape[1] for row in rows]), torch.from_numpy(labels).to(o.device)
    if model.config.num_labels == 1:  # start at the mean score: the bias would be slow to get there
        torch.nn.init.constant_(model.classifier.bias, labels.mean().item())
    seeds = [stream(*key, "order", epoch) for epoch in range(o.epochs)]
    batches = [index for seed in seeds for index in length_batches(lengths, o.batch_size, seed)]
    bar, steps = tqdm(batches, title, unit="step", leave=False, disable=None), len(batches)
    for step, index in enumerate(bar):
        for group in optimizer.param_groups:
            group["lr"] = train.learning_rate(step, steps, round(0.1 * steps), o.lr)
        logits, y = forward(model, rows, index, o), labels[index]
        loss = F.mse_loss(logits[:, 0], y) if y.is_floating_point() else F.cross_entropy(logits, y)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step + 1 == steps:  # reading the loss makes a GPU wait
            value = (loss + 0 * norm).item()
            bar.set_postfix_str(f"loss {value:.3f}")
            if not math.isfinite(value):
                advice = f"try a lower --lr in another --out ({o.out} keeps what was finished)"
                raise ValueError(f"{title}: the loss is {value} at step {step + 1}; {advice}")
    model.eval()


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
    """{task: {"scores": {metric: value}, "one_answer": all guesses the same?}}; arguments: {split: [N]}."""
    tasks = {}
    for stem, y in labels.items():
        task, part = ("AX", "") if stem == "diagnostic" else (name, stem.removeprefix("dev").strip("_"))
        result = tasks.setdefault(task, {"scores": {}, "one_answer": False})
        result["one_answer"] |= bool(np.ptp(guesses[stem]) == 0)
        for metric in TASKS[task].metrics:
            result["scores"][f"{part} {metric.__name__}".strip()] = metric(y, guesses[stem])
    return tasks


def write_submission(path: Path, labels: tuple, guesses: np.ndarray):
    """A file as gluebenchmark.com takes it: index<TAB>prediction, labels as GLUE's files write them."""
    words = [labels[int(x)] if labels else f"{min(5.0, max(0.0, float(x))):.3f}" for x in guesses]
    text = "index\tprediction\n" + "".join(f"{i}\t{word}\n" for i, word in enumerate(words))
    bert.atomic_write(path, lambda file: file.write(text.encode()))


# ---- the run ----


def read_record(path: Path) -> dict:
    """A run's glue.json. Raises FileNotFoundError, or ValueError where it is damaged or was changed."""
    record = bert.read_json(path)
    checksum = record.pop("checksum", None)  # older files have none
    if checksum not in (None, zlib.crc32(repr(record).encode())) or "results" not in record:
        raise ValueError(f"{path} is damaged or was changed: get it back, or choose another --out")
    return record


def evaluate(o):
    """Fine-tune and score every chosen task and seed that --out lacks, then print the table."""
    o.device, o.dtype = train.pick_hardware(o.device, o.dtype)
    config, tokenizer = bert.BertConfig.from_folder(o.model), bert.load_tokenizer(o.model)
    if tokenizer.get_vocab_size() > config.vocab_size or config.type_vocab_size < 2:
        raise ValueError(f"{o.model} lacks embeddings for all entries of its tokenizer, or for two segments")
    o.max_length = min(o.max_length, config.max_position_embeddings)
    tokenizer.encode_special_tokens = True  # "[SEP]" inside a sentence is text
    tokenizer.enable_truncation(o.max_length)  # the longer sentence of a pair loses tokens first
    path, answers = Path(o.out) / "glue.json", Path(o.out) / f"submission-seed-{o.seeds[0]}"
    names = ("config.json", "vocab.txt", "tokenizer.json", "model.safetensors", "pytorch_model.bin")
    files = [Path(o.model) / name for name in names if (Path(o.model) / name).is_file()]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    names = ("epochs", "lr", "batch_size", "max_length", "max_train", "freeze", "mnli_init")
    settings = {name: getattr(o, name) for name in names}
    settings |= {"dtype": str(o.dtype).removeprefix("torch."), "checkpoint": digest}
    made_with = {"python": sys.version.split()[0], "torch": torch.__version__}
    made_with["hardware"] = train.hardware_name(o.device)
    record = {"model": o.model, "settings": settings, "made_with": made_with}
    record |= {"notes": {}, "data": {}, "majority": {}, "results": {}}
    if path.exists():
        record = read_record(path)
        for name, value in settings.items():
            if (there := record["settings"].get(name)) != value:
                raise ValueError(f"{path} was made with {name} {there}, not {value}; choose another --out")
    print(f"{o.model}: {o.device}, {o.dtype}, at most {o.max_length} tokens a row")
    if o.predict:
        answers.mkdir(exist_ok=True)
    for name in sorted(set(o.tasks) - {"AX"}, key=["MNLI", *TASKS].index):
        evaluate_task(name, o, tokenizer, record, answers)
        if o.mnli_init and "MNLI" in o.tasks and "MNLI" not in record["data"]:
            raise ValueError(f"--mnli-init needs MNLI, and {o.data_dir} lacks its train or dev file")
    if not record["results"]:
        raise ValueError(f"{o.data_dir} has train and dev files of no task asked for; try --download")
    print(f"\n{results_table(record)}\n\nwritten: {path}")
    if o.predict:
        Path(shutil.make_archive(f"{answers}.new", "zip", answers)).replace(f"{answers}.zip")
        count = len(list(answers.glob("*.tsv")))
        print(f"written: {answers}.zip, {count} of the {len(TASKS) + 1} files of a submission")


def evaluate_task(name: str, o, tokenizer, record: dict, answers: Path):
    """All seeds of one task; each is in glue.json as soon as it is finished, its answers in their folder."""
    splits, notes = load_task(name, o.data_dir, o.predict)
    if name == "MNLI" and "AX" in o.tasks:
        diagnostic, more = load_task("AX", o.data_dir)
        splits, notes = splits | diagnostic, notes + more
    record["notes"][name] = notes
    print("".join(f"{note}\n" for note in notes), end="")
    files = {stem: split.checksum for stem, split in splits.items() if not stem.startswith(HIDDEN)}
    if "train" not in files or len(files) < 2:
        return  # the notes say what is not there
    if record["data"].setdefault(name, files) != files:
        raise ValueError(f"the files of {name} are not those {o.out} was made with; choose another --out")
    texts, y, *_ = splits.pop("train")
    if 0 < o.max_train < len(y):  # drawn, since files may be sorted; the same rows for every seed
        drawn = np.random.default_rng(stream(name, "subset")).permutation(len(y))[: o.max_train]
        texts, y = [texts[i] for i in drawn], y[drawn]
    labels = {stem: split.labels for stem, split in splits.items() if split.labels is not None}
    constant = {stem: np.full(len(y), np.bincount(y.astype(int)).argmax()) for stem, y in labels.items()}
    floors = {task: result["scores"] for task, result in score(name, labels, constant).items()}
    record["majority"] |= floors
    rows, results = {}, record["results"]
    for seed, arm in [(seed, arm) for seed in o.seeds for arm in ARMS[: 1 + o.from_scratch]]:
        answering = o.predict and (arm, seed) == (ARMS[0], o.seeds[0])
        asked = [stem for stem in splits if answering and stem.startswith(HIDDEN)]
        paths = {stem: answers / f"{ANSWERS.get(stem, name)}.tsv" for stem in asked}
        scored = all(str(seed) in results.get(arm, {}).get(task, {}) for task in floors)
        if scored and all(path.is_file() for path in paths.values()):
            continue
        if not rows:
            rows = {stem: encode(tokenizer, split.texts) for stem, split in splits.items()}
            rows["train"] = encode(tokenizer, texts)
        title, start = f"{name}, {arm}, seed {seed}", time.perf_counter()
        tuned = Path(o.out) / f"mnli {arm} {seed}".replace(" ", "-")  # MNLI's weights, for --mnli-init
        folder = tuned if o.mnli_init and name in FROM_MNLI else o.model
        model = build_model(folder, name, seed, arm == ARMS[1] and folder == o.model).to(o.device)
        finetune(model, rows["train"], y, (seed, name), o, title)
        if o.mnli_init and name == "MNLI":
            model.save_pretrained(tuned)
        guesses = {stem: predict(model, rows[stem], o) for stem in {*labels, *asked}}
        for stem, path in paths.items():
            write_submission(path, TASKS[name].labels, guesses[stem])
        facts = {"train_rows": len(y), "seconds": round(time.perf_counter() - start, 1)}
        for task, result in score(name, labels, guesses).items():
            results.setdefault(arm, {}).setdefault(task, {})[str(seed)] = result | facts
            values = ", ".join(f"{metric} {100 * x:.1f}" for metric, x in result["scores"].items())
            print(f"{title}: {values} ({facts['seconds']} s)")
        checksum = {"checksum": zlib.crc32(repr(record).encode())}
        bert.write_json(Path(o.out) / "glue.json", record | checksum)


# ---- tables and comparison ----


def markdown(rows) -> str:
    """A Markdown table with aligned columns; the first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows)


def spread(values) -> str:
    """Mean and, from two values on, standard deviation of the sample (n - 1), in percent."""
    values = 100 * np.array([*values])
    deviation = f" ({values.std(ddof=1):.1f})" if len(values) > 1 else ""
    return f"{values.mean():.1f}{deviation}" if len(values) else ""


def seed_means(arm: dict, tasks, metric=None) -> dict:
    """{seed: score} of {task: {seed: result}} for seeds that all tasks have: the mean over tasks of a metric,
    or of the mean of a task's metrics, which is GLUE's average (Wang et al. 2019, section 5)."""
    means = {}
    for seed in sorted(set.intersection(*(set(arm.get(task, {})) for task in tasks)), key=int):
        scores = [arm[task][seed]["scores"] for task in tasks]
        means[seed] = float(np.mean([s[metric] if metric else np.mean(list(s.values())) for s in scores]))
    return means


def results_table(record) -> str:
    """The results in Markdown, followed by what has to be known to read them."""
    results, settings, floors = record["results"], record["settings"], record["majority"]
    columns = {**results, "majority": {name: {"0": {"scores": floors[name]}} for name in floors}}
    tasks = [name for name in TASKS if name in results[ARMS[0]]]
    average = [name for name in tasks if name not in NO_AVERAGE]
    lines = [(name, [name], metric) for name in tasks for metric in floors[name]]
    table = [["task", "metric", *columns, "train rows", "s/run"]]
    for label, names, metric in lines + [(f"average of {len(average)}", average, "")] * bool(average):
        cells = [label + " *" * (settings["mnli_init"] and label in FROM_MNLI), metric]
        for arm in columns.values():
            stuck = any(run.get("one_answer") for name in names for run in arm.get(name, {}).values())
            cells.append(spread(seed_means(arm, names, metric).values()) + " !" * stuck)
        runs = [run for name in names for run in results[ARMS[0]][name].values()]
        table.append(cells + [f"{np.mean([run[x] for run in runs]):,.0f}" for x in ("train_rows", "seconds")])
    seeds = sorted({seed for arm in results.values() for task in arm.values() for seed in task}, key=int)
    return f"""\
{markdown(table)}

GLUE dev sets, percent, mean (standard deviation) over seeds {" ".join(seeds)} after the last epoch
- {", ".join(f"{name} {value}" for name, value in settings.items())}
- the average is without {" and ".join(NO_AVERAGE)}
- marks: ! a seed gives one answer for every row, it learnt nothing; * from the weights fine-tuned on MNLI
""" + "\n".join(f"- {note}" for notes in record["notes"].values() for note in notes)


def welch(a, b):
    """Welch's t-test of two samples: (t, degrees of freedom nu, two-sided p); nan if no variance is known.

    t = (mean b - mean a) / sqrt(v_a + v_b) with v = s^2 / n (Welch 1947);
    nu = (v_a + v_b)^2 / (v_a^2 / (n_a - 1) + v_b^2 / (n_b - 1)). With T = sqrt(nu) tan(x), Student's density
    is a constant times cos(x)^(nu - 1): p is the share of its area that lies beyond atan(|t| / sqrt(nu)).
    """
    if min(len(a), len(b)) < 2 or max(np.var(a), np.var(b)) < 1e-20:
        return math.nan, math.nan, math.nan
    v_a, v_b = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    t = (np.mean(b) - np.mean(a)) / math.sqrt(v_a + v_b)
    nu = (v_a + v_b) ** 2 / (v_a**2 / (len(a) - 1) + v_b**2 / (len(b) - 1))
    x = (np.arange(1_000_000) + 0.5) / 1_000_000 * math.pi / 2
    density = np.cos(x) ** (nu - 1)
    p = density[x > math.atan(abs(t) / math.sqrt(nu))].sum() / density.sum()
    return float(t), float(nu), float(p)


def compare(specs) -> str:
    """Markdown that sets arms ["A=run1,run2", ...] side by side and tests every other one against the first.

    Fine-tuning seeds are averaged within a pretraining run, then runs are compared. Where an arm has one run,
    seeds are compared instead, which says nothing about a second pretraining run. Raises ValueError, OSError.
    """
    arms = {}
    for spec in specs:
        arm, _, folders = spec.partition("=")
        arms[arm] = [read_record(Path(folder) / "glue.json") for folder in folders.split(",") if folder]
        if not 0 < len(arms[arm]) == len({run["settings"]["checkpoint"] for run in arms[arm]}):
            raise ValueError(f"--compare {spec}: write NAME=RUN,RUN; the same checkpoint twice is one run")
    if not 1 < len(arms) == len(specs):
        raise ValueError("--compare needs two different names, as in A=runs/a B=runs/b")
    every, many = sum(arms.values(), []), min(map(len, arms.values())) > 1
    tasks = [name for name in TASKS if all(name in run["results"][ARMS[0]] for run in every)]
    average = [name for name in tasks if name not in NO_AVERAGE]

    def sample(arm, names):
        scores = [list(seed_means(run["results"][ARMS[0]], names).values()) for run in arms[arm]]
        return [np.mean(seeds) for seeds in scores if seeds] if many else sum(scores, [])

    text, (first, *others) = "", arms
    for other in others:
        table = [["task", first, other, "difference", "p", "verdict"]]
        for names in [[name] for name in tasks] + [average] * (len(average) > 1):
            a, b = sample(first, names), sample(other, names)
            t, _, p = welch(a, b)
            verdict = "no difference found" if p >= 0.05 else "no test: the spread is not known"
            if p < 0.05:
                verdict = f"{other if t > 0 else first} is higher"
            label = names[0] if len(names) == 1 else f"average of {len(names)}"
            gap = f"{100 * (np.mean(b) - np.mean(a)):+.1f}" if a and b else ""
            table.append([label, spread(a), spread(b), gap, f"{p:.3f}", verdict])
        text += markdown(table) + "\n\n"
    unit = "pretraining runs" if many else "fine-tuning seeds: only their noise is known of a single run"
    conditions = [run["settings"] | run["data"] for run in every]
    keys = sorted(set().union(*conditions) - {"checkpoint"})
    unequal = [key for key in keys if any(c.get(key) != conditions[0].get(key) for c in conditions)]
    return f"""\
{text}GLUE dev sets, percent: metrics averaged, then mean (standard deviation) over {unit}
- pretraining runs: {", ".join(f"{arm} {len(runs)}" for arm, runs in arms.items())}
- p of Welch's t-test: at 5%, one test in 20 finds a difference by luck
- unequal conditions (of a task: its files; left out if a run lacks it): {", ".join(unequal) or "none"}"""


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
    o = Options(**train.parse_options(Options, __doc__.splitlines()[0], argv))
    o.lr = o.lr or (1e-3 if o.freeze else 1e-4)
    train.keep_memory()
    warnings.filterwarnings("ignore", ".* counts as 0")  # the table marks such runs
    try:
        for name, least in {"epochs": 1, "batch_size": 1, "max_length": 8, "max_train": 0, "lr": 0}.items():
            if not getattr(o, name) >= least:
                raise ValueError(f"{train.flag(name)} {getattr(o, name)} must be {least} or more")
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
    except (OSError, ValueError, KeyboardInterrupt) as error:
        sys.exit(f"glue_eval.py: {str(error) or 'interrupted; the same command goes on where this one was'}")


if __name__ == "__main__":
    main()
