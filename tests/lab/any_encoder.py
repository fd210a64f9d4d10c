"""What does the entropy pass cost with other encoders? By hand: `python tests/lab/any_encoder.py`.

Models of `transformers` with random weights, the same sizes for all. The pass is the blank reading of two
candidates per mask, as in `masking.mask_batch`; beside it stands what one would write without masking.py:
entropies of the logits of all tokens; and a step of README's fast loop, whose loss is taken from the logits
of the hidden tokens alone. Times are shares of a usual training step with random masks. Every figure of
memory comes from a process of its own: the highest resident size during the pass, less that before it.
"""

import argparse
import multiprocessing
import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark import clock_for, processor_name, status  # isort: skip (sets how threads wait, before torch)

import torch
import torch.nn.functional as F
import transformers
from encoders import EXTRAS, masked_lm

from masking import (
    as_places,
    blank_entropy,
    candidate_budget,
    corrupt,
    draw_candidates,
    evaluating,
    logits_at,
    mask_batch,
    mask_budget,
    prediction_entropy,
)

RATIO = 0.15
MASK = 4  # ids below 5 are special


def make_parser():
    """Sizes of the models and of a batch."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add(
        "--architectures", nargs="+", default=list(EXTRAS), choices=list(EXTRAS), metavar="NAME", help="which"
    )
    add("--layers", type=int, default=4, help="of each model")
    add("--width", type=int, default=256, help="of each model")
    add("--vocab-size", type=int, default=30522, help="entries of the vocabulary")
    add("--rows", type=int, default=16, help="rows per batch")
    add("--length", type=int, default=128, help="tokens per row")
    add("--repeats", type=int, default=5, help="the median of so many times counts")
    add("--threads", type=int, default=1, help="with 1, processor time is measured")
    return parser


class Words:
    """What mask_batch asks of a tokenizer."""

    mask_token_id = MASK
    all_special_ids = range(5)

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size


class Measurement:
    """A model, a batch, and the things that are measured."""

    def __init__(self, name, o):
        torch.set_num_threads(o.threads)
        torch.manual_seed(0)
        self.model = masked_lm(name, o.vocab_size, o.layers, o.width, length=o.length + 8)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.tokenizer = Words(o.vocab_size)
        self.ids = torch.randint(5, o.vocab_size, (o.rows, o.length))
        self.attention_mask = torch.ones_like(self.ids)
        self.candidates = draw_candidates(self.attention_mask.bool(), RATIO)
        self.width = candidate_budget(o.length, RATIO, 2.0)
        masks = draw_candidates(self.attention_mask.bool(), RATIO, factor=1.0)
        self.masked, self.labels = corrupt(self.ids, masks, MASK, o.vocab_size, range(5))

    def step(self):
        """One usual step of training with random masks."""
        logits = self.model(input_ids=self.masked, attention_mask=self.attention_mask).logits
        self.learn(F.cross_entropy(logits.flatten(0, 1), self.labels.flatten()))

    def learn(self, loss):
        """Gradient and new weights."""
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def fast_step(self, rule):
        """One step of README's loop: masks, logits at the masked places alone, loss."""
        batch = {"input_ids": self.ids, "attention_mask": self.attention_mask}
        batch = mask_batch(self.model, batch, self.tokenizer, rule, RATIO)
        labels = batch.pop("labels")
        places = as_places(labels >= 0, mask_budget(labels.shape[1], RATIO))
        logits = logits_at(self.model, places=places, **batch).flatten(0, 1)
        self.learn(F.cross_entropy(logits, labels.gather(1, places).flatten()))

    def fast_random(self):
        self.fast_step("random")

    def fast_sample(self):
        self.fast_step("sample")

    def entropy_pass(self):
        """The blank reading."""
        blank_entropy(
            self.model, self.ids, self.candidates, MASK, self.width, attention_mask=self.attention_mask
        )

    def full_logits(self):
        """The same entropies, and all others, from the logits of all tokens."""
        blanked = self.ids.masked_fill(self.candidates, MASK)
        with evaluating(self.model):
            prediction_entropy(self.model(input_ids=blanked, attention_mask=self.attention_mask).logits)

    def way(self):
        """Whether masking.py reaches the last layer, or takes all logits."""
        calls = []
        last = self.model.get_output_embeddings()
        with last.register_forward_hook(lambda layer, args, output: calls.append(args[0].shape[1])):
            self.entropy_pass()
        return "hook" if calls and max(calls) == self.width else "fallback"


def times(name, o):
    """(hook or fallback, {what: median seconds})."""
    measurement = Measurement(name, o)
    clock = clock_for(o.threads)
    whats = ("step", "entropy_pass", "full_logits", "fast_random", "fast_sample")
    seconds = {what: [] for what in whats}
    for repeat in range(o.repeats + 1):
        for what in whats:
            start = clock()
            getattr(measurement, what)()
            if repeat > 0:  # the first is not counted
                seconds[what].append(clock() - start)
    return measurement.way(), {what: median(found) for what, found in seconds.items()}


def extra_memory(name, what, o):
    """MiB by which the process grows at most; NaN where the system does not say."""
    measurement = Measurement(name, o)
    with evaluating(measurement.model):  # what a first call sets up once does not count
        measurement.model(
            input_ids=measurement.ids[:1, :8], attention_mask=measurement.attention_mask[:1, :8]
        )
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here
    except OSError:
        return float("nan")
    before = status("VmRSS")
    getattr(measurement, what)()
    return status("VmHWM") - before


def alone(work, *arguments):
    """work(*arguments) in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def row(name, o) -> str:
    """A line of the table."""
    way, seconds = alone(times, name, o)
    step = seconds["step"]
    cells = [name, way, f"{step:.2f} s"]
    for what in ("entropy_pass", "full_logits"):
        cells += [f"+{100 * seconds[what] / step:.0f}%", f"{alone(extra_memory, name, what, o):.0f} MiB"]
    cells += [f"{seconds[what] / step:.2f}" for what in ("fast_random", "fast_sample")]
    return "| " + " | ".join(cells) + " |"


def main():
    o = make_parser().parse_args()
    print(
        f"{o.layers} layers x {o.width}, V = {o.vocab_size:,}, {o.rows} x {o.length} tokens, "
        f"{processor_name(torch.device('cpu'))}, {o.threads} thread(s), "
        f"torch {torch.__version__}, transformers {transformers.__version__}\n"
    )
    columns = ["architecture", "last layer by", "training step", "entropy pass", "memory", "full logits"]
    columns += ["memory", "fast loop, random", "fast loop, sample"]
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for name in o.architectures:
        print(row(name, o), flush=True)


if __name__ == "__main__":
    main()
