"""Variants of `--reading memory`, a few lines each: `python tests/lab/memory_variants.py --help`.

Options, text and everything else are train.py's. What the variants bring is in README.md in this folder.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import train  # isort: skip (first: it sets how threads wait, before torch is imported)

import torch

import masking


def make_parser():
    """train.py's options, and the variants."""
    parser = train.make_parser(__doc__.splitlines()[0])
    parser.set_defaults(reading="memory", out="runs/memory")
    add = parser.add_argument
    add("--entropy-every", type=int, default=0, help="read real blanks in every n-th epoch; 0: never")
    add(
        "--forget", type=float, default=0.0, help="how far entropies move to the mean before each use, 0 to 1"
    )
    add("--smooth", type=float, default=0.0, help="weight of the old reading in what is remembered, 0 to 1")
    add("--random-share", type=float, default=0.0, help="part of the masks that is drawn at random instead")
    add("--read-seen", action="store_true", help="also remember how unsure the model is of tokens it sees")
    return parser


class Variant(train.Pretraining):
    """A pretraining run whose memory changes in other ways."""

    def __init__(self, o):
        if o.reading != "memory":
            raise ValueError("this program is about --reading memory alone: leave --reading out")
        if o.entropy_every < 0 or not (0 <= o.forget <= 1 and 0 <= o.smooth <= 1):
            raise ValueError("--entropy-every must be 0 or more, --forget and --smooth from 0 to 1")
        if not 0 <= o.random_share < 1:
            raise ValueError("--random-share is from 0 to 1, and below 1: else take --masking random")
        super().__init__(o)

    def choose(self, ids, index, rng) -> torch.Tensor:
        """As in train.py, but in every n-th epoch by the entropies of real blanks; a share is random."""
        o = self.o
        if self.step < self.random_steps:
            return super().choose(ids, index, rng)

        epoch = self.step * o.batch_size // self.row_count
        if o.entropy_every > 0 and epoch % o.entropy_every == 0:
            return self.choose_by_blanks(ids, rng)
        if o.random_share > 0:
            selected = self.choose_in_part(ids, index, rng)
        else:
            selected = super().choose(ids, index, rng)
        known = ~self.memory.values[self.send(index)].isnan()
        train.add(self.seen, {"remembered": (selected & known).sum()})
        return selected

    def choose_in_part(self, ids, index, rng) -> torch.Tensor:
        """From memory, but --random-share of the masks are drawn from the positions that are left."""
        o = self.o
        eligible = self.maskable(ids)
        settings = {"generator": rng, "word_start": self.word_starts(ids)}
        entropy = self.memory.read(self.send(index))
        ratio = (1 - o.random_share) * o.mask_ratio
        first = masking.select_positions(
            o.select, eligible, ratio, entropy, temperature=o.select_temperature, **settings
        )
        # All of the first, and a row with too few candidates is filled up at random.
        return masking.select_positions("random", eligible, o.mask_ratio, candidates=first, **settings)

    def choose_by_blanks(self, ids, rng) -> torch.Tensor:
        """What train.py does with --reading blank."""
        o = self.o
        words = self.word_starts(ids)
        read = partial(self.read_entropies, self.model, ids)
        settings = (o.mask_ratio, o.candidates, o.select_temperature, rng, words)
        return masking.choose_masks(read, self.maskable(ids), o.select, *settings)[0]

    def update(self):
        """One step; before and after it, what is remembered [rows, T] (nats) of its rows changes."""
        o = self.o
        index = self.send(train.rows_of_step(o, self.step, self.row_count))
        memory = self.memory

        # --forget; NaN, never read, stays NaN
        old = memory.values[index].lerp(memory.mean.half(), o.forget)
        memory.values[index] = old
        super().update()
        new = memory.values[index]

        # --smooth: old and new are alike where nothing new was read
        new = torch.where(old.isnan(), new, new.lerp(old, o.smooth))

        if o.read_seen:
            # A forward pass of its own, to keep this short: the step has made the same one.
            with self.autocast():
                seen = masking.visible_entropy(self.model, self.last["ids"])
            new = torch.where(self.last["selected"], new, seen.half())
        memory.values[index] = new

    def mask_figures(self, ids, selected) -> dict:
        """As in train.py, and the share of the masks at places with a remembered entropy."""
        remembered = self.seen.get("remembered", 0) / self.seen["ids"].sum()
        return super().mask_figures(ids, selected) | {"remembered_share": float(remembered)}


if __name__ == "__main__":
    train.main(make_parser(), Variant)
