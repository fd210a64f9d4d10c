"""Variants of `--reading memory`, a few lines each: `python tests/memory_variants.py --help`.

Options, text and everything else are train.py's. What the variants bring is in the README.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import masking  # noqa: E402
import train  # noqa: E402
from train import option  # noqa: E402


@dataclass
class Options(train.Options):
    """train.py's options, and the variants."""

    reading: str = option("memory", "this program is about memory alone", choices=["memory"])
    forget: float = option(0.0, "how far entropies go back to the mean before each use", (0, 1))
    smooth: float = option(0.0, "weight of what was remembered in what is remembered next", (0, 1))
    read_seen: bool = option(False, "also remember how unsure the model is of tokens that it sees")
    out: str = option("runs/memory", "folder for the model, its checkpoints, log.csv and args.json")


class Variant(train.Pretraining):
    """A pretraining run whose memory changes in other ways."""

    def update(self):
        """One step; before and after it, the rows that it reads change in the memory [rows, T], nats."""
        o, index = self.o, self.send(train.rows_of_step(self.o, self.step, self.row_count))
        old = self.memory[index].lerp(self.mean_entropy.half(), o.forget)  # [B, T]; NaN, never read, stays
        self.memory[index] = old
        super().update()
        new = self.memory[index]
        new = torch.where(old.isnan(), new, new.lerp(old, o.smooth))  # alike where nothing new was read
        if o.read_seen:
            ids, places, masked = self.last  # as corrupted in this step
            with self.autocast():  # a pass of its own, to keep this short; the step has made one
                seen = masking.sequence_entropy(self.model, ids)
            hidden = torch.zeros_like(ids).scatter(1, places, masked.long()) > 0
            new = torch.where(hidden, new, seen.half())
        self.memory[index] = new

    def work(self) -> float:
        """As in train.py, and the head at the tokens that are seen; not the pass that `update` adds."""
        return super().work() + self.o.read_seen * seen_flops(self.model.config, self.o.mask_ratio)


def seen_flops(config, mask_ratio: float) -> float:
    """Operations a token of the vocabulary head at every token that is not masked."""
    return train.forward_flops(config, 0, 1 - mask_ratio) - train.forward_flops(config, 0, 0)


if __name__ == "__main__":
    train.launch(Options, Variant, __doc__.splitlines()[0])
