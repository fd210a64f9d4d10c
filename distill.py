"""Distil a BERT: pretrain a small student that also learns from a larger teacher: `python distill.py --help`.

The teacher says what to learn, its distribution over the vocabulary (Hinton et al. 2015, "Distilling the
knowledge in a neural network", arXiv 1503.02531, section 2), and, with --masking teacher, where: its entropy.
With --masking reducible it is the student's entropy less the teacher's: what the student has still to learn,
without what nobody can know (compare Mindermann et al. 2022, arXiv 2206.07137).

Everything else is train.py's. In reading order: options, the loss, the student's start, the teacher's
entropies, the run.
"""

import train  # isort: skip (first: it sets how threads wait, before torch is imported)

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import masking
from masking import IGNORE
from model import BertForMaskedLM, atomic_write


def make_parser() -> train.Parser:
    """train.py's options, and what a teacher adds."""
    sources = ("random", "self", "teacher", "reducible")
    parser = train.make_parser(__doc__.splitlines()[0], sources)
    parser.set_defaults(out="runs/distill")
    add = parser.add_argument_group("teacher").add_argument
    add("--teacher", default="", help="checkpoint folder of the model to learn from, and to choose masks by")
    add("--kd-alpha", type=float, default=0.5, help="weight of the teacher in the loss; 0: train.py's loss")
    add("--kd-temperature", type=float, default=2.0, help="softens both distributions; 1: as they are")
    add("--student-init", default="scratch", choices=["scratch", "layers", "embeddings"], help="what to copy")
    return parser


def check(o, parser, world: int):
    """As in train.py, and what a teacher adds; --vocab is the teacher's unless given. Raises ValueError."""
    train.check(o, parser, world)
    if not o.teacher:
        raise ValueError("distillation needs --teacher FOLDER")
    train.check_row_length(o.teacher, o.seq_len)
    train.refuse_out_of_bounds(o, {"kd_alpha": (0, 1), "kd_temperature": (1e-6, math.inf)})
    needs = {
        "kd_temperature": (o.kd_alpha > 0, "--kd-alpha above 0"),
        "student_init": (not o.from_, "fresh weights, without --from"),
        "init": (o.student_init != "layers", "a start of its own, without --student-init layers"),
        "vocab_size": (False, "a learned vocabulary, and the teacher brings its own"),
        "cased": (bool(o.vocab), "a --vocab, and the teacher brings its own"),
    }
    train.refuse_idle(o, parser, needs)
    if o.masking == "teacher" and o.reading == "memory":
        raise ValueError("--masking teacher has no --reading memory: a frozen model need not be remembered")
    if not o.from_ and not o.vocab:
        o.vocab = o.teacher


# ---- the loss ----


def kd_loss(student_logits, teacher_logits, labels, temperature: float) -> torch.Tensor:
    """T^2 KL(p || q) = T^2 sum_v p_v (log p_v - log q_v), p = softmax(teacher / T), q = softmax(student / T).

    logits [..., V], labels [...] with -100 where there is no loss; T the temperature. A sum over the other
    positions, in float32 at least (float64 stays float64). A word to which the teacher gives p = 0 adds 0.
    The gradient at a student's logit is T (q_v - p_v), and q - p shrinks as 1 / T: T^2 keeps the size of the
    gradient about the same whatever T is (Hinton et al. 2015, section 2).
    """
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    log_q = (student_logits.to(dtype) / temperature).log_softmax(-1)
    log_p = (teacher_logits.to(dtype) / temperature).log_softmax(-1)
    p = log_p.exp()
    kl = (p * (log_p - log_q)).masked_fill(p == 0, 0).sum(-1)  # 0 x -inf would be NaN
    return temperature**2 * kl.masked_fill(labels == IGNORE, 0).sum()


# ---- the student's start ----


@torch.no_grad()
def init_student(student: BertForMaskedLM, teacher: BertForMaskedLM, how: str):
    """Copy weights of the teacher into the student, in place. Raises ValueError where configs differ.

    "embeddings": the embeddings of words and segments and the masked-LM head; not those of positions, on
    which the first heads of a student's own start are built. "layers": all embeddings, the head, and as many
    layers as both have, evenly spaced over the teacher's (every second one if it is twice as deep, as
    DistilBERT has it: Sanh et al. 2019, arXiv 1910.01108); layers beyond the teacher's keep their own start.
    """
    # What must be alike for copied weights to compute what they did.
    alike = ["hidden_size", "hidden_act", "layer_norm_eps"]
    tables = ["word_embeddings", "token_type_embeddings", "LayerNorm"]
    if how == "layers":
        alike += ["intermediate_size", "num_attention_heads"]
        tables += ["position_embeddings"]
    for name in alike:
        mine = getattr(student.config, name)
        theirs = getattr(teacher.config, name)
        if mine != theirs:
            both = f"the student has {name} {mine}, the teacher {theirs}"
            raise ValueError(f"--student-init {how} cannot copy: {both}; choose another --size or scratch")

    pairs = [
        (getattr(student.bert.embeddings, name), getattr(teacher.bert.embeddings, name)) for name in tables
    ]
    pairs.append((student.cls, teacher.cls))
    if how == "layers":
        layers = student.bert.encoder["layer"]
        given = teacher.bert.encoder["layer"]
        both = range(min(len(layers), len(given)))
        pairs += [(layers[i], given[max(i, i * len(given) // len(layers))]) for i in both]
    for target, source in pairs:
        for parameter, value in zip(target.parameters(), source.parameters(), strict=True):
            # one of them may have spare positions
            shared = tuple(slice(min(sizes)) for sizes in zip(parameter.shape, value.shape, strict=True))
            parameter[shared] = value[shared].to(parameter.device)


# ---- the run, and the teacher's entropies ----


def blank_entropy_everywhere(model, ids, eligible, hidden_share, mask_token_id, generator) -> torch.Tensor:
    """The `blank` entropy of every eligible position, not only of candidates: [B, T] -> [B, T], nats.

    Each row's positions are dealt at random into ceil(1 / hidden_share) groups of about equal size, and one
    group at a time is hidden: as many forward passes as there are groups.
    """
    groups = math.ceil(1 / hidden_share)
    width = math.ceil(ids.shape[1] / groups)
    noise = torch.rand(ids.shape, generator=generator).to(ids.device)
    dealt = noise.masked_fill(~eligible, 2).argsort(-1).argsort(-1)  # 0, 1, ... in random order, per row
    entropy = torch.zeros(ids.shape, device=ids.device)
    for group in range(groups):
        hidden = eligible & (dealt % groups == group)
        entropy += masking.blank_entropy(model, ids, hidden, mask_token_id, width)
    return entropy


def content_of(model: BertForMaskedLM) -> str:
    """A name for all that decides what a model computes: its config and its weights."""
    key = hashlib.sha256(repr(model.config).encode())
    for tensor in model.state_dict().values():
        key.update(tensor.cpu().numpy())
    return key.hexdigest()


class Distillation(train.Pretraining):
    """A pretraining run with a teacher: another start, another loss and, if asked, another entropy."""

    check = staticmethod(check)

    def __init__(self, o):
        super().__init__(o)  # hardware, text, and a student with train.py's own start

        # The teacher is frozen, and the student may start from it: in place, so that the optimiser sees it.
        self.teacher = self.read_model(o.teacher).requires_grad_(False).eval().to(self.device)
        self.content["teacher"] = content_of(self.teacher)
        if o.student_init != "scratch":
            init_student(self.model, self.teacher, o.student_init)

        # What it scores in the exam stands beside the student's in the log.
        with self.autocast():
            loss, accuracy = train.examine(self.teacher, self.exam)
        if not math.isfinite(loss):
            raise ValueError(f"{o.teacher} gives predictions that are not finite: try --dtype float32")
        self.columns = {"teacher_loss": loss, "teacher_accuracy": accuracy}

        # Its entropies, where masks are chosen by them: from a table, or read in every step.
        self.table = self.load_or_make_table()
        if o.compile:
            train.compile_parts(self.teacher)  # for the shapes of a step

    def summary(self) -> list[str]:
        """train.py's, and what the teacher does."""
        o = self.o
        size = sum(p.numel() for p in self.teacher.parameters())
        loss, accuracy = self.columns.values()
        exam = f"held-out loss {loss:.3f}, accuracy {accuracy:.3f}"
        lines = [*super().summary(), f"teacher {o.teacher}: {size:,} parameters, {exam}"]
        kl = f"{o.kd_alpha:g} x {o.kd_temperature:g}^2 KL(teacher || student)"
        lines.append(f"loss    {1 - o.kd_alpha:g} CE + {kl}; student starts from {o.from_ or o.student_init}")
        if o.masking in ("teacher", "reducible"):
            how = "are read in every step" if self.table is None else "come from a table"
            epochs = self.epochs_with_entropy()
            costs = f"masks are chosen in {epochs:.1f} epochs, a table costs {self.passes()} passes"
            lines.append(f"entropy the teacher's {how}: {costs}")
        elif o.kd_alpha == 0 and o.student_init == "scratch":
            lines.append("WARNING: neither loss, masks nor start follow the teacher: this is train.py's run")
        return lines

    # -- the teacher's entropies --

    def hidden_share(self) -> float:
        """How much of a row is hidden at a time, at most, where the teacher reads blanks everywhere."""
        o = self.o
        if o.masking == "reducible" and o.reading == "blank":
            return o.mask_ratio * o.candidates  # as when the student is read
        return o.mask_ratio

    def passes(self) -> int:
        """What a table costs: the teacher's forward passes over the text."""
        return 1 if self.o.reading == "visible" else math.ceil(1 / self.hidden_share())

    def epochs_with_entropy(self) -> float:
        """How often the text is read by steps that choose masks by entropy, which costs a pass each time."""
        return (self.o.steps - self.random_steps) * self.o.batch_size / self.row_count

    def load_or_make_table(self) -> np.ndarray | None:
        """The teacher's entropy at every token of the training text: float16 [rows, seq_len], nats, on disk.

        The teacher is frozen: one computation serves every epoch, and every run with this teacher and text.
        None where nobody asks, or the steps' own readings cost less; memory needs every token's entropy. With
        --masking teacher a table hides k tokens of a row at a time and a step its 2k candidates: their
        entropies differ a little.
        """
        o = self.o
        if o.masking not in ("teacher", "reducible"):
            return None
        if o.reading != "memory" and self.epochs_with_entropy() <= self.passes():
            return None
        facts = [self.row_count, o.seq_len, o.reading, self.passes(), self.dtype]
        key = hashlib.sha256(f"{facts} {self.content}".encode())
        for source in ("distill.py", "masking.py", "model.py"):  # the rules by which it is computed
            key.update(Path(__file__).with_name(source).read_bytes())
        path = Path(o.cache) / f"entropy-{key.hexdigest()[:16]}.npy"
        if self.rank == 0 and not path.exists():
            cost = f"{self.passes()} passes over the text"
            print(f"entropies of the teacher: {cost}, kept in {path}", flush=True)
            table = self.read_everywhere()
            atomic_write(path, lambda file: np.save(file, table))
        self.wait_for_others()
        return np.load(path, mmap_mode="r")

    def read_everywhere(self) -> np.ndarray:
        """The table, computed 64 rows at a time."""
        o = self.o
        table = np.empty((self.row_count, o.seq_len), np.float16)
        starts = range(0, self.row_count, 64)
        for first in tqdm(starts, "teacher's entropies", unit=" x 64 rows", leave=False, disable=None):
            index = np.arange(first, min(first + 64, self.row_count))
            ids = train.take_rows(self.train_ids, index, o.seq_len, self.cls_id, self.sep_id).to(self.device)
            rng = torch.Generator().manual_seed(first)
            with self.autocast():
                if o.reading == "visible":
                    entropy = masking.visible_entropy(self.teacher, ids)
                else:
                    share = self.hidden_share()
                    where = self.maskable(ids)
                    entropy = blank_entropy_everywhere(self.teacher, ids, where, share, self.mask_id, rng)
            table[index] = entropy.half().cpu().numpy()
        return table

    # -- a step --

    def entropies(self, ids, index, candidates) -> torch.Tensor:
        """As in train.py, or the teacher's, or of both: reducible, max(0, H_student - H_teacher)."""
        o = self.o
        if o.masking == "self":
            return super().entropies(ids, index, candidates)
        if self.table is None:
            known = self.read_entropies(self.teacher, ids, candidates)
        else:
            known = self.send(self.table[index]).float()
        if o.masking == "teacher":
            return known
        return (super().entropies(ids, index, candidates) - known).clamp_min(0)

    def loss(self, corrupted, places, labels):
        """(1 - a) CE + a T^2 KL(teacher || student), both reading the same corrupted rows."""
        alpha = self.o.kd_alpha
        temperature = self.o.kd_temperature
        if alpha == 0:
            return super().loss(corrupted, places, labels)
        with self.autocast():
            with torch.no_grad():
                wanted = self.teacher(corrupted, places=places)
            logits = self.model(corrupted, places=places)
        cross_entropy, correct, entropy = train.MaskedLoss.apply(logits, labels, self.compiled_loss)
        kl = kd_loss(logits, wanted, labels, temperature)
        loss = (1 - alpha) * cross_entropy + alpha * kl
        agreed = (logits.argmax(-1) == wanted.argmax(-1)) & (labels != IGNORE)
        sums = {"loss": loss.detach(), "accuracy": correct, "cross_entropy": cross_entropy.detach()}
        sums |= {"kl": kl.detach() / temperature**2, "agreement": agreed.sum()}
        return loss, sums, entropy


if __name__ == "__main__":
    train.main(make_parser(), Distillation)
