"""Distil a BERT: pretrain a small student that also learns from a larger teacher: `python distill.py --help`.

The teacher says what to learn, its distribution over the vocabulary (Hinton et al. 2015, "Distilling the
knowledge in a neural network", arXiv 1503.02531, section 2), and, with --masking teacher, where: its entropy.
Everything else is train.py's. In reading order: options, the loss, the student's start, the teacher's
entropies, the run.
"""

import hashlib
import math
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

import masking
import model as bert
import train
from masking import IGNORE
from train import option

CHUNK = 64  # rows whose entropies are computed, and saved, at once


@dataclass
class Options(train.Options):
    """train.py's options, and what a teacher adds."""

    teacher: str = option("", "checkpoint folder, ours or Hugging Face's; its vocabulary is the student's")
    kd_alpha: float = option(0.5, "weight of the teacher in the loss; 0: train.py's loss", (0, 1))
    kd_temperature: float = option(2.0, "softens both distributions; 1: as they are", (1e-2, 1e3))
    student_init: str = option(
        "scratch", "what the student takes from the teacher", choices=["scratch", "layers", "embeddings"]
    )
    out: str = option("runs/distill", "folder for the model, its checkpoints, log.csv and args.json")

    def __post_init__(self):
        super().__post_init__()
        self.vocab = self.vocab or ("" if self.from_ else self.teacher)

    def without_effect(self):
        """As in train.py, but --teacher always has an effect, and the vocabulary is not the student's own."""
        return [
            *(row for row in super().without_effect() if row[2] not in ("teacher", "vocab_size")),
            (True, "--teacher, whose vocabulary is the student's", "vocab_size"),
            (self.from_, "--from", "student_init"),
            (self.kd_alpha == 0, "--kd-alpha 0", "kd_temperature"),
        ]

    def check(self, given, world: int = 1):
        """As in train.py. Raises ValueError."""
        if not self.teacher:
            raise ValueError("distillation needs --teacher FOLDER")
        super().check(given, world)


# ---- the loss ----


def kd_loss(student_logits, teacher_logits, labels, temperature: float) -> torch.Tensor:
    """T^2 KL(p || q) = T^2 sum_v p_v (log p_v - log q_v), p = softmax(teacher / T), q = softmax(student / T).

    logits [..., V], labels [...] with -100 where there is no loss; summed over the other positions, in
    float32 at least (float64 stays float64). A word to which the teacher gives p = 0 adds 0.
    The gradient at a student's logit is T (q_v - p_v), and q - p shrinks as 1 / T: T^2 keeps the size of the
    gradient about the same whatever T is (Hinton et al. 2015, section 2).
    """
    kind = torch.promote_types(student_logits.dtype, torch.float32)
    log_q = (student_logits.to(kind) / temperature).log_softmax(-1)
    log_p = (teacher_logits.to(kind) / temperature).log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    return temperature**2 * kl.masked_fill(labels == IGNORE, 0).sum()


# ---- the student's start ----


@torch.no_grad()
def init_student(student: bert.BertForMaskedLM, teacher: bert.BertForMaskedLM, how: str):
    """Copy weights of the teacher into the student, in place. Raises ValueError where widths differ.

    "embeddings": the embeddings of words and segments and the masked-LM head; not those of positions, on
    which the first heads of a student's own start are built. "layers": all embeddings, the head, and as many
    layers as both have, evenly spaced over the teacher's (every second one if it is twice as deep, as
    DistilBERT has it: Sanh et al. 2019, arXiv 1910.01108); layers beyond the teacher's keep their own start.
    """
    mine, theirs = student.config, teacher.config
    widths = ("hidden_size", "intermediate_size", "num_attention_heads")
    for name in widths[:1] if how == "embeddings" else widths:
        if getattr(mine, name) != getattr(theirs, name):
            sizes = f"the student has {name} {getattr(mine, name)}, the teacher {getattr(theirs, name)}"
            raise ValueError(f"--student-init {how} cannot copy: {sizes}; choose another --size or scratch")
    names = ("word_embeddings", "token_type_embeddings", "LayerNorm", "position_embeddings")
    names = names[:3] if how == "embeddings" else names
    tables, givens = student.bert.embeddings, teacher.bert.embeddings
    pairs = [(getattr(tables, name), getattr(givens, name)) for name in names]
    pairs.append((student.cls, teacher.cls))
    if how == "layers":
        layers, given = student.bert.encoder["layer"], teacher.bert.encoder["layer"]
        both = range(min(len(layers), len(given)))
        pairs += [(layers[i], given[max(i, i * len(given) // len(layers))]) for i in both]
    for target, source in pairs:
        for parameter, value in zip(target.parameters(), source.parameters(), strict=True):
            # one of them may have spare positions or word pieces
            shared = tuple(slice(min(sizes)) for sizes in zip(parameter.shape, value.shape, strict=True))
            parameter[shared] = value[shared].to(parameter.device)


# ---- the teacher's entropies ----


def blank_entropy_everywhere(model, ids, eligible, mask_ratio, mask_token_id, generator) -> torch.Tensor:
    """The `blank` entropy of every eligible position, not only of candidates: [B, T] -> [B, T], nats.

    Each row's positions are dealt at random into ceil(1 / mask_ratio) groups of about equal size, and one
    group at a time is hidden: as many forward passes as there are groups.
    """
    noise = torch.rand(ids.shape, generator=generator).to(ids.device)
    dealt = noise.masked_fill(~eligible, 2).argsort(-1).argsort(-1)  # 0, 1, ... in random order, a row
    entropy, groups = torch.zeros(ids.shape, device=ids.device), math.ceil(1 / mask_ratio)
    for group in range(groups):
        entropy += masking.blank_entropy(model, ids, eligible & (dealt % groups == group), mask_token_id)
    return entropy


class Distillation(train.Pretraining):
    """A pretraining run with a teacher."""

    def __init__(self, o: Options):
        if o.kd_alpha > 0:
            self.columns = ("loss", "accuracy", "cross_entropy", "kl", "agreement")
        super().__init__(o)
        self.table = self.teacher_entropies() if o.masking == "teacher" else None
        loss, accuracy = self.examine(self.teacher)
        self.extra_columns = {"teacher_loss": loss, "teacher_accuracy": accuracy}
        if self.rank == 0:
            size = sum(p.numel() for p in self.teacher.parameters())
            kl = f"{o.kd_alpha:g} x {o.kd_temperature:g}^2 KL(teacher || student)"
            print(
                f"teacher {o.teacher}: {size:,} parameters, held-out loss {loss:.3f}, accuracy {accuracy:.3f}"
            )
            print(f"loss    {1 - o.kd_alpha:g} CE + {kl}; student starts from {o.from_ or o.student_init}")

    def make_model(self) -> bert.BertForMaskedLM:
        """The student at the start."""
        student = super().make_model()
        if self.o.student_init != "scratch":
            init_student(student, self.teacher, self.o.student_init)
        return student

    def teacher_entropies(self) -> np.ndarray:
        """The teacher's entropy at every token of the training text: float16 [rows, seq_len], nats, on disk.

        The teacher is frozen: one computation serves every epoch and every run with this teacher and text.
        The file begins with a checksum of every CHUNK rows. Where it is wrong, the rows are not computed yet
        or damaged, and they are computed: an interrupted computation goes on where it stopped.
        """
        o, rows = self.o, self.row_count
        passes = math.ceil(1 / o.mask_ratio) if o.reading == "blank" else 1
        facts = f"{self.facts['key']} {rows} {o.seq_len} {o.reading} {passes} {self.dtype}"
        key, chunks = hashlib.sha256(facts.encode()), range(0, rows, CHUNK)
        for tensor in self.teacher.state_dict().values():
            key.update(tensor.cpu().numpy())
        path = Path(o.cache) / f"entropy-{key.hexdigest()[:16]}.f16"
        layout = {"offset": 4 * len(chunks), "shape": (rows, o.seq_len)}
        size = 4 * len(chunks) + 2 * rows * o.seq_len
        if self.rank == 0:
            with bert.lock(path.with_suffix(".lock"), wait=True):
                if not (path.is_file() and path.stat().st_size == size):
                    bert.atomic_write(path, lambda file: file.write(bytes(size)))
                table, start = np.memmap(path, np.float16, "r+", **layout), time.perf_counter()
                checks, unit = np.memmap(path, np.uint32, "r+", shape=len(chunks)), f" x {CHUNK} rows"
                todo = [i for i in chunks if zlib.crc32(table[i : i + CHUNK]) != checks[i // CHUNK]]
                for i in tqdm(todo, "teacher's entropies", unit=unit, leave=False, disable=None):
                    table[i : i + CHUNK] = self.entropies_of_rows(i, min(i + CHUNK, rows))
                    checks[i // CHUNK] = zlib.crc32(table[i : i + CHUNK])
                table.flush()
            cost = f"{passes} forward passes a row, {time.perf_counter() - start:.0f} s" if todo else "known"
            print(f"entropy of the teacher: {cost}; {path} saves a pass a row in every epoch and run")
        if dist.is_initialized():
            dist.barrier()
        return np.memmap(path, np.float16, "r", **layout)

    def entropies_of_rows(self, first: int, end: int) -> np.ndarray:
        """The teacher's entropies in a stretch of rows: [end - first, seq_len]. Raises ValueError for NaN."""
        o, rng = self.o, torch.Generator().manual_seed(first)
        ids = train.take_rows(self.train_ids, np.arange(first, end), o.seq_len, self.cls, self.sep)
        ids = ids.to(self.device)
        with self.autocast():
            if o.reading == "visible":
                entropy = masking.sequence_entropy(self.teacher, ids)
            else:
                settings = (o.mask_ratio, self.mask, rng)
                entropy = blank_entropy_everywhere(self.teacher, ids, self.eligible(ids), *settings)
        if not entropy.isfinite().all():
            raise ValueError(f"{o.teacher} gives predictions that are not finite: try --dtype float32")
        return entropy.cpu().numpy()

    def entropies(self, ids, index, candidates) -> torch.Tensor:
        """As in train.py; the teacher's come from its table, for which k tokens were hidden at a time."""
        if self.table is None:
            return super().entropies(ids, index, candidates)
        return torch.from_numpy(self.table[index].astype(np.float32)).to(self.device)

    def loss(self, ids, places, labels):
        """(1 - a) CE + a T^2 KL(teacher || student), both reading the same corrupted rows."""
        alpha, temperature = self.o.kd_alpha, self.o.kd_temperature
        if alpha == 0:
            return super().loss(ids, places, labels)
        with self.autocast():
            with torch.no_grad():
                wanted = self.teacher(ids, positions=places)[..., : len(self.vocab)]
            logits = self.model(ids, positions=places)
        cross_entropy, correct, entropy = train.MaskedLoss.apply(logits, labels)
        kl = kd_loss(logits[..., : len(self.vocab)], wanted, labels, temperature)
        loss = (1 - alpha) * cross_entropy + alpha * kl
        agreed = ((logits.argmax(-1) == wanted.argmax(-1)) & (labels != IGNORE)).sum()
        sums = (loss, correct, cross_entropy, kl / temperature**2, agreed)
        return loss, torch.stack([value.detach().float() for value in sums]), entropy

    def work(self) -> float:
        """As in train.py, with the teacher's forward pass; a table of entropies costs nothing."""
        o, ratio = self.o, self.o.mask_ratio
        student = 3 * train.forward_flops(self.model.config, o.seq_len, ratio)
        student = super().work() if self.table is None else student
        return student + (o.kd_alpha > 0) * train.forward_flops(self.teacher.config, o.seq_len, ratio)


if __name__ == "__main__":
    train.launch(Options, Distillation, __doc__.splitlines()[0])
