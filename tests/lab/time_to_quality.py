"""The same text and the same seconds of training: how far do train.py and the usual recipe get?

    python tests/lab/time_to_quality.py                  on an idle machine: about ten minutes
    python tests/lab/time_to_quality.py --seeds 0 1 2    runs that are in the results are left out
    python tests/lab/time_to_quality.py --seeds          table and figure of the results, no run

The usual recipe is transformers' BertForMaskedLM of the same size, with its own start N(0, .02), dropout .1,
DataCollatorForLanguageModeling (each token masked with probability .15, then 80-10-10), and the optimiser of
its Trainer: fused AdamW, weight decay .01 on matrices alone, gradients of length 1 at most. train.py is taken
as it is, with its start, without dropout: whole programs are compared, not one idea.

Both have the same text, vocabulary, rows in the same order, rows per step, dtype of products, held-out exam
and schedule. That is one of time, so that it ends when the time does: up for 5% of the seconds, then down to
0. A step takes the rate of the moment at which its gradient is there; one that is late changes nothing.
train.py's first 30% of random masks are 30% of the seconds. Building a model and evaluations do not count. A
loss on the way is that of a run whose rate is still high, not the best that can be done in so many seconds.

Every run is a process of its own: train.py makes the C library keep freed memory, which the usual recipe does
not; --keep-freed-ram adds the recipe with this one line. How threads wait is as train.py sets it, for all.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import train  # isort: skip (first: it sets how threads wait, before torch is imported)

import argparse
import csv
import importlib.util
import itertools
import math
import multiprocessing
import time
from types import SimpleNamespace

import numpy as np
import torch
from benchmark import processor_name, their_config
from chart import line_chart
from experiment import spread
from language import RESULTS, read_results

import model as bert
from glue_eval import markdown

SELF = "train.py"
RANDOM = "train.py --masking random"
THEIRS = "transformers"
KEPT = "transformers, freed memory kept"
COLOURS = ("green", "blue", "red", "orange", "pink", "violet", "olive")  # in the order of the runs

# ---- the two programs ----


def rate_at(seconds: float, limit: float, warmup: float, highest: float) -> float:
    """highest min(t / W, (T - t) / (T - W)) at t seconds of T = limit, with W = warmup seconds; 0 after T."""
    return highest * max(0.0, min(seconds / warmup, (limit - seconds) / (limit - warmup)))


class Ours(train.Pretraining):
    """A run of train.py for so many seconds (limit); saves nothing. seconds: of training, up to `mark`."""

    def __init__(self, o, limit: float, clock=time.perf_counter):
        super().__init__(o)
        self.limit = limit
        self.clock = clock
        self.mark = clock()
        self.optimizer.register_step_pre_hook(self.set_rate)  # the last word, after train.py's own schedule

    def elapsed(self) -> float:
        """Seconds of training, without evaluations."""
        return self.seconds + self.clock() - self.mark

    def set_rate(self, optimizer, *_):
        """Called before every step of the optimiser."""
        for group in optimizer.param_groups:
            group["lr"] = rate_at(self.elapsed(), self.limit, self.o.warmup * self.limit, self.o.lr)

    def update(self):
        """One step of train.py."""
        self.random_steps = math.inf if self.elapsed() < self.o.entropy_warmup * self.limit else 0
        super().update()


class Theirs(Ours):
    """The usual recipe, on the rows, the clock and the exam of train.py."""

    def make_model(self):
        """transformers' model at its own start, and the collator that draws the masks."""
        from transformers import BertForMaskedLM, DataCollatorForLanguageModeling, PreTrainedTokenizerFast

        names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        words = dict(zip(names, bert.SPECIAL_TOKENS, strict=True))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=self.tokenizer, **words)
        self.collate = DataCollatorForLanguageModeling(tokenizer)
        self.never = [1] + [0] * (self.o.seq_len - 2) + [1]  # [CLS] and [SEP] are not masked
        torch.manual_seed(train.seed_for(self.o.seed, "weights"))  # of masks and dropout, too
        size = SimpleNamespace(size=self.o.size, vocab_size=len(self.vocab))
        return BertForMaskedLM(their_config(size, dropout=0.1))

    def update(self):
        """One step as users of transformers write it."""
        index = train.rows_of_step(self.o, self.step, self.row_count)
        rows = train.take_rows(self.train_ids, index, self.o.seq_len, self.cls_id, self.sep_id)
        batch = self.collate([{"input_ids": row, "special_tokens_mask": self.never} for row in rows.tolist()])
        batch = {name: self.send(tensor) for name, tensor in batch.items()}

        with self.autocast():
            loss = self.model(**batch).loss
        self.scaler.scale(loss).backward()

        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.step += 1


def train_by_the_clock(run: Ours, every: float) -> list:
    """Train for run.limit seconds: [(seconds, held-out loss, accuracy)] before, every so many, and after."""
    curve = []
    now = 0.0
    while True:
        if now >= min(run.limit, len(curve) * every):
            with run.autocast():
                curve.append((now, *train.examine(run.model, run.exam)))
            run.seconds = now
            run.mark = run.clock()
        if now >= run.limit:
            return curve
        run.update()
        if run.device.type == "cuda":
            torch.cuda.synchronize()  # the clock must not run ahead of the GPU
        now = run.elapsed()


# ---- runs ----


def options_of(program: str, lr: float, seed: int, o) -> argparse.Namespace:
    """train.py's options: its defaults, but for the masks and the rate."""
    parser = train.make_parser("")
    settings = parser.parse_args([] if program == SELF else ["--masking", "random"])
    changes = {"lr": lr, "seed": seed, "corpus": o.corpus, "cache": o.cache, "device": o.device}
    vars(settings).update(changes)
    train.check(settings, parser, 1)
    return settings


def make_run(program: str, lr: float, seed: int, o) -> dict:
    """Train: a line of the results."""
    if program != THEIRS:
        train.keep_freed_ram()
    settings = options_of(program, lr, seed, o)
    kind = Theirs if program in (THEIRS, KEPT) else Ours
    run = kind(settings, o.seconds)
    curve = train_by_the_clock(run, o.eval_every)

    seconds, loss, accuracy = curve[-1]
    speed = run.step * settings.batch_size * settings.seq_len / seconds
    result = {"program": program, "lr": f"{lr:g}", "seed": str(seed), "seconds": f"{o.seconds:g}"}
    result |= {"steps": run.step, "tokens_per_second": round(speed), "floor": f"{run.unigram_loss:.4f}"}
    result |= {"held_out_loss": f"{loss:.4f}", "accuracy": f"{accuracy:.4f}"}
    result["curve"] = " ".join(f"{seconds:.2f}:{loss:.4f}" for seconds, loss, _ in curve)
    return result


def alone(work, *arguments):
    """What work(*arguments) returns, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as fresh:
        return fresh.apply(work, arguments)


def make_missing_runs(o, path: Path):
    """Every run that is not in the file yet. ValueError where that is of another text or machine."""
    if importlib.util.find_spec("transformers") is None:
        raise ValueError("the recipe to compare with needs transformers: pip install transformers")
    ours = options_of(SELF, 0.0, 0, o)  # rate 0: train.py fills in its default
    device, dtype = train.pick_hardware(o.device, "auto")
    hardware = f"{processor_name(device)}, {torch.get_num_threads()} threads, {str(dtype)[6:]}"
    here = {"text": train.prepare_text(ours)[3], "hardware": hardware}  # tokenised before any clock runs
    path.parent.mkdir(parents=True, exist_ok=True)

    recipes = (THEIRS, KEPT) if o.keep_freed_ram else (THEIRS,)
    programs = [(SELF, ours.lr), (RANDOM, ours.lr), *((name, lr) for name in recipes for lr in o.lr)]
    for seed, (program, lr) in itertools.product(o.seeds, programs):
        finished = read_results(path)
        if any(row["text"] != here["text"] or row["hardware"] != hardware for row in finished):
            raise ValueError(f"{path} is of another text or machine than {hardware}: choose other --results")
        key = [program, f"{lr:g}", str(seed), f"{o.seconds:g}"]
        if key in ([row[name] for name in ("program", "lr", "seed", "seconds")] for row in finished):
            continue

        print(f"seed {seed}, {program}, learning rate {lr:g}", file=sys.stderr, flush=True)
        result = here | alone(make_run, program, lr, seed, o)
        with open(path, "a", newline="") as file:
            writer = csv.DictWriter(file, list(result), lineterminator="\n")
            if not finished:
                writer.writeheader()
            writer.writerow(result)


# ---- table and figure ----


def by_program(results: list) -> dict:
    """{(program, lr): its results, one a seed}."""
    programs = {}
    for row in results:
        programs.setdefault((row["program"], row["lr"]), []).append(row)
    return programs


def curve_of(row: dict) -> tuple[list, list]:
    """Seconds, and the held-out loss at each."""
    points = [point.split(":") for point in row["curve"].split()]
    return [float(seconds) for seconds, _ in points], [float(loss) for _, loss in points]


def table(results: list) -> str:
    """A line a program: held-out loss on the way and at the end, means (standard deviations) over the seeds.

    Between two evaluations on a straight line.
    """
    limit = float(results[0]["seconds"])
    moments = [limit / 8, limit / 4, limit / 2]
    head = ["program", "learning rate", "seeds", "steps", "tokens/s"]
    head += [f"at {t:g} s" for t in moments]
    lines = [[*head, f"at {limit:g} s, the end", "unigram loss", "accuracy"]]
    for (program, lr), rows in by_program(results).items():
        cells = [program, lr, str(len(rows))]
        for name in ("steps", "tokens_per_second"):
            cells.append(f"{np.mean([float(row[name]) for row in rows]):,.0f}")
        for t in moments:
            cells.append(spread([np.interp(t, *curve_of(row)) for row in rows], 3))
        for name in ("held_out_loss", "floor", "accuracy"):
            cells.append(spread([float(row[name]) for row in rows], 3))
        lines.append(cells)
    return markdown(lines)


def figure(results: list) -> str:
    """Held-out loss by seconds of training, the mean over the seeds, and the floor: an SVG picture."""
    limit = float(results[0]["seconds"])
    floor = float(results[0]["floor"])
    lines = {"word frequencies alone": ("teal", [0, limit], [floor, floor])}
    programs = by_program(results).items()
    for colour, ((program, lr), rows) in zip(itertools.cycle(COLOURS), programs, strict=False):
        times = np.linspace(0, limit, len(rows[0]["curve"].split()))
        losses = np.mean([np.interp(times, *curve_of(row)) for row in rows], axis=0)
        lines[f"{program}, {lr}"] = (colour, list(times), list(losses))
    title = f"Held-out loss on {results[0]['hardware']}"
    return line_chart(title, lines, "seconds of training", "nats per token")


def main(argv=None):
    """The program."""
    help_format = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=help_format)
    add = parser.add_argument
    add("--seconds", type=float, default=120, help="of training, for each run")
    add("--eval-every", type=float, default=5, help="seconds of training between evaluations")
    add("--seeds", type=int, nargs="*", default=[0], help="of weights, rows and masks; none: only show")
    add("--lr", type=float, nargs="+", default=[5e-4, 1e-3], help="of the usual recipe: a run for each")
    add("--keep-freed-ram", action="store_true", help="the usual recipe also with freed memory kept")
    add("--corpus", nargs="+", default=[], help=".txt, .gz or .xz files; none: documentation on this machine")
    add("--cache", default=".cache", help="folder for tokenised text")
    add("--device", default="auto", help="cpu, cuda; auto: cuda if there is one")
    add("--results", type=Path, default=RESULTS, help="folder of time-to-quality.csv and .svg")
    o = parser.parse_args(argv)
    path = o.results / "time-to-quality.csv"
    try:
        if min(o.seconds, o.eval_every, *o.lr) <= 0:
            raise ValueError("--seconds, --eval-every and --lr are above 0")
        if o.seeds:
            make_missing_runs(o, path)
        results = [row for row in read_results(path) if row["seconds"] == f"{o.seconds:g}"]
        if not results:
            raise ValueError(f"{path} holds no runs of {o.seconds:g} s yet: name --seeds")
        print(f"{results[0]['hardware']}; text {results[0]['text']}. Held-out loss, nats per token:\n")
        print(table(results))
        path.with_suffix(".svg").write_text(figure(results), encoding="utf-8")
        print(f"\nfigure: {path.with_suffix('.svg')}")
    except Exception as error:
        sys.exit(f"time_to_quality.py: {bert.explain(error)}")


if __name__ == "__main__":
    main()
