"""The control that costs nothing: random masks, and a loss that looks away from what is known already.

    python tests/lab/focal.py --masking random --gamma 1    with all other options of train.py

Masks by entropy spend more of the masks on what the model does not know. A *focal loss* (Lin et al. 2017,
arXiv 1708.02002) leaves the masks where they are, and weighs each masked token by what is not known of it:

    loss = - 1/k * sum over the k masked tokens i of  w_i log p_i      p_i: probability of the true token
    w_i  = (1 - p_i)^gamma / mean over the step of (1 - p)^gamma       a constant: no gradient goes through it

Lin et al. let the gradient go through the weight, and do not scale it. Here weights are 1 on average, so that
the length of a step stays what it is, and only its direction changes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import train  # isort: skip (first: it sets how threads wait, before torch is imported)

import torch

import masking
from masking import IGNORE


def focal_loss(logits, labels, gamma: float):
    """(focal loss, cross-entropy, how many are correct, entropy) of logits [..., V] under labels [...].

    Sums over the masked tokens, those whose label is not -100; the entropy [...] is in nats.
    """
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    masked = labels != IGNORE
    log_p_true = log_p.gather(-1, labels.clamp_min(0)[..., None])[..., 0]  # [...]

    with torch.no_grad():
        weight = (1 - log_p_true.exp()).clamp_min(0) ** gamma * masked
        weight *= masked.sum() / weight.sum().clamp_min(1e-30)  # 1 on average
        correct = ((logits.argmax(-1) == labels) & masked).sum().float()
        entropy = torch.special.entr(log_p.exp()).sum(-1)

    cross_entropy = -log_p_true.masked_fill(~masked, 0).sum()
    return -(weight * log_p_true).sum(), cross_entropy, correct, entropy


class FocalPretraining(train.Pretraining):
    """A run of train.py with the focal loss. Raises ValueError where a step is computed in parts."""

    def __init__(self, o):
        if o.gamma < 0:
            raise ValueError("--gamma starts at 0, which is the usual loss")
        if o.accumulate > 1:
            raise ValueError("weights are 1 on average over a step: leave --accumulate out")
        super().__init__(o)
        if self.world > 1:
            raise ValueError("weights are 1 on average over a step: use one process")

    def loss(self, corrupted, places, labels):
        """As in train.py: the objective, what is logged, entropies. The logged loss is cross-entropy."""
        if self.o.gamma == 0:
            return super().loss(corrupted, places, labels)
        with self.autocast():
            logits = masking.logits_at(self.model, corrupted, places)
        loss, cross_entropy, correct, entropy = focal_loss(logits, labels, self.o.gamma)
        return loss, {"loss": cross_entropy.detach(), "accuracy": correct}, entropy


def make_parser():
    """train.py's options, and the exponent."""
    parser = train.make_parser(__doc__.splitlines()[0])
    parser.set_defaults(out="runs/focal")
    parser.add_argument("--gamma", type=float, default=1.0, help="exponent of 1 - p; 0: the usual loss")
    return parser


if __name__ == "__main__":
    train.main(make_parser(), FocalPretraining)
