"""The control for "uncertain, or only rare?": mask each word as often as another run did, at random places.

    python tests/lab/frequency.py count --select high --out runs/high
    python tests/lab/frequency.py imitate --like runs/high --out runs/high-words

The first command trains as train.py does and counts how often each word was seen and masked once entropies
choose. The second one masks each word as often, at random places, with the same number of masks per row: what
remains between the two runs is what the place adds to the word. All other options are train.py's.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import train  # isort: skip (first: it sets how threads wait, before torch is imported)

import numpy as np
import torch

import masking
import model as bert

ROWS = 4096  # of the text, from which the weights are computed
TOLERANCE = 0.1  # by which rates may be off, as a share of all masks
COMMONEST = 200  # words for which the rates are reported


@torch.no_grad()
def weights_for_rates(ids, eligible, mask_ratio: float, rates, rounds: int = 50) -> torch.Tensor:
    """Weights w [V] with which `sample` masks token v as often as rates [V] say, at places left to chance.

    ids, eligible: long and bool [B, T], rows of the text. Gumbel top-k is a race: i arrives after a time
    ~ Exp(w_i), and the first k are masked. Up to a time t that is about P(i) = 1 - exp(-w_i t), with t such
    that the row's P add up to k; the rate of v is the mean of P over its places. Each round solves for every
    row's t, then scales every w_v by what its rate lacks. A race knows no unit of time, so the weights are
    scaled to t = 1 on average: a token that the rows do not hold then gets its rate from -log(1 - rate).
    Raises ValueError where the rates cannot be met, for instance because they do not add up to k per row.
    """
    rates = rates.double()
    hazard = -torch.log1p(-rates.clamp(1e-6, 1 - 1e-6))  # of a race that ends at t = 1
    weights = hazard.clone()
    places = ids[eligible]
    seen = torch.bincount(places, minlength=len(weights))
    budget = [masking.mask_budget(n, mask_ratio) for n in eligible.sum(-1).tolist()]
    k = torch.tensor(budget, device=ids.device)[:, None]

    for _ in range(rounds):
        w = weights[ids] * eligible  # [B, T]
        t = torch.zeros(len(ids), 1, device=ids.device, dtype=w.dtype)
        for _ in range(12):  # Newton, from below: the sum of P is concave in t
            rest = torch.exp(-w * t)
            t = t + (k - (1 - rest).sum(-1, keepdim=True)) / (w * rest).sum(-1, keepdim=True)
        chance = -torch.expm1(-w * t)[eligible]
        reached = torch.bincount(places, chance, len(weights)) / seen.clamp_min(1)
        lacks = hazard / -torch.log1p(-reached.clamp(1e-6, 1 - 1e-6))
        weights = torch.where(seen > 0, weights * lacks * t.mean(), hazard)

    off = (seen * (reached - rates).abs()).sum() / (seen * rates).sum()
    if not off < TOLERANCE:  # NaN is not
        raise ValueError(f"the rates cannot be met: they would be off by {off:.0%}")
    return weights.float()


class Counting(train.Pretraining):
    """A run of train.py that counts, after its random steps, how often each word is seen and masked."""

    def __init__(self, o):
        super().__init__(o)
        # [2, V]: row 0 counts how often an id was seen, row 1 how often it was masked.
        self.tally = torch.zeros(2, len(self.pieces), dtype=torch.long, device=self.device)
        self.saved = {}  # step: tally, for the checkpoints

    def choose(self, ids, index, rng) -> torch.Tensor:
        """As in train.py, and counted."""
        selected = super().choose(ids, index, rng)
        self.count(ids, selected)
        return selected

    def count(self, ids, selected):
        """Add the rows of a step to the tally."""
        if self.step >= self.random_steps:
            self.tally[0].index_add_(0, ids.flatten(), self.maskable(ids).flatten().long())
            self.tally[1].index_add_(0, ids.flatten(), selected.flatten().long())

    def save(self):
        """The tally goes first, under its step, so that the checkpoint before finds its own."""
        self.saved[self.step] = self.tally.clone()
        newest = sorted(self.saved)[-2:]
        self.saved = {step: self.saved[step] for step in newest}
        facts = {"mask_ratio": self.o.mask_ratio, "random_steps": self.random_steps, "pieces": self.pieces}
        state = facts | {"tally": self.saved}
        bert.atomic_write(Path(self.o.out) / "tally.pt", lambda file: torch.save(state, file))
        super().save()

    def load(self, state):
        """Continue where a checkpoint stopped."""
        super().load(state)
        self.saved = read_tally(self.o.out)["tally"]
        if self.step not in self.saved:
            raise ValueError(
                f"{self.o.out}/tally.pt does not count the masks up to step {self.step}: start anew"
            )
        self.tally = self.saved[self.step].to(self.device)


class Imitating(Counting):
    """A run that masks each word as often as the run in --like did, and leaves the places to chance."""

    def __init__(self, o):
        if not o.like:
            raise ValueError("imitate needs --like FOLDER, a run that was made by `frequency.py count`")
        if o.masking != "random" or o.whole_word:
            raise ValueError("imitate chooses single tokens by itself: leave --masking and --whole-word out")
        model_run = read_tally(o.like)
        if model_run["mask_ratio"] != o.mask_ratio:
            ratio = model_run["mask_ratio"]
            raise ValueError(f"{o.like} was made with --mask-ratio {ratio}, not {o.mask_ratio}: use the same")
        super().__init__(o)
        self.random_steps = model_run["random_steps"]
        self.rates = self.rates_of(model_run)
        self.weights = self.weights_for(self.rates)
        if self.rank == 0:
            print(f"masks   each word as often as in {o.like}, after {self.random_steps:,} random steps")

    def rates_of(self, model_run: dict) -> torch.Tensor:
        """How often the model run masked each id that it saw: [V]. Raises ValueError where it cannot say."""
        like = self.o.like
        if model_run["pieces"] != self.pieces:
            raise ValueError(f"{like} counts other word pieces: use its corpus, or --vocab {like}")
        seen, masked = model_run["tally"][max(model_run["tally"])]
        if not masked.any():
            raise ValueError(f"{like} counts no masks yet: it has not passed its --entropy-warmup")
        return (masked + self.o.mask_ratio) / (seen + 1)  # what was never seen is masked like the average

    def weights_for(self, rates) -> torch.Tensor:
        """weights_for_rates on evenly spaced rows of the text."""
        o = self.o
        index = np.linspace(0, self.row_count - 1, min(self.row_count, ROWS)).astype(int)
        ids = train.take_rows(self.train_ids, index, o.seq_len, self.cls_id, self.sep_id)
        return weights_for_rates(ids, self.maskable(ids), o.mask_ratio, rates).to(self.device)

    def choose(self, ids, index, rng) -> torch.Tensor:
        """Random masks at first; then a draw in which the word alone decides."""
        eligible = self.maskable(ids)
        if self.step < self.random_steps:
            return masking.select_positions("random", eligible, self.o.mask_ratio, generator=rng)
        weights = self.weights[ids]
        selected = masking.select_positions("sample", eligible, self.o.mask_ratio, weights, generator=rng)
        self.count(ids, selected)
        return selected

    def deviations(self) -> torch.Tensor:
        """How far the rates of the commonest words are from those of the model run, as shares of these."""
        seen, masked = self.tally.cpu()
        commonest = seen.argsort(descending=True)[:COMMONEST]
        commonest = commonest[seen[commonest] > 0]
        return (masked[commonest] / seen[commonest] / self.rates[commonest] - 1).abs()


KINDS = {"count": Counting, "imitate": Imitating}


def read_tally(folder) -> dict:
    """What a run counted. Raises ValueError where there is nothing, or it is damaged."""
    path = Path(folder) / "tally.pt"
    if not path.is_file():
        raise ValueError(f"{folder} holds no tally.pt: make that run with `frequency.py count`")
    try:
        return bert.read_torch(path)
    except Exception as error:  # torch.load raises many kinds
        raise ValueError(f"{path} is damaged ({type(error).__name__}): make that run again") from None


def make_parser(kind: str):
    """train.py's options, and --like."""
    parser = train.make_parser(KINDS[kind].__doc__)
    parser.prog = f"frequency.py {kind}"
    parser.set_defaults(out=f"runs/{kind}")
    if kind == "imitate":
        parser.set_defaults(masking="random")
        parser.add_argument("--like", default="", help="folder of the run that is imitated")
    return parser


def main(argv):
    """The program; returns the finished run."""
    if not argv or argv[0] not in KINDS:
        sys.exit(
            "frequency.py: say `count` or `imitate` first; `frequency.py count --help` shows the options"
        )
    run = train.main(make_parser(argv[0]), KINDS[argv[0]], argv[1:])
    if argv[0] == "imitate" and run.rank == 0:
        off = run.deviations()
        print(f"rates   of the {len(off)} commonest words: off by {off.mean():.1%}, at worst {off.max():.1%}")
    return run


if __name__ == "__main__":
    main(sys.argv[1:])
