"""Operations of a run, counted by torch's own counter and by hand; peaks of cards by their whole names."""

from types import SimpleNamespace

import flops
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model import BertConfig, BertForMaskedLM, attention

CARDS = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L40": None,
    "NVIDIA GeForce RTX 3090 Ti": 71e12,
    "Tesla T4": 65e12,
    "Tesla V100-SXM2-16GB": 125e12,
    "NVIDIA T400 4GB": None,
    "x86_64": None,
}


@pytest.mark.parametrize("card", CARDS)
def test_a_card_is_known_by_whole_words_of_its_name(card):
    assert flops.peak_flops(card) == CARDS[card], f"{card}: another card's peak gives a wrong utilisation"


def test_a_forward_pass_counts_what_torch_counts(monkeypatch):
    def plain(
        query, key, value, attn_mask=None, dropout_p=0.0
    ):  # the counter knows products, not all kernels
        return attention(query, key, value, attn_mask, dropout_p)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", plain)
    config = BertConfig.preset("tiny", vocab_size=500)
    model = BertForMaskedLM(config).eval()
    ids = torch.randint(5, 500, (4, 32))
    places = torch.arange(8).expand(4, 8)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(ids, places=places)
    tokens = ids.numel()
    ours = flops.forward_flops(config, 32, 8 / 32) * tokens
    assert ours == pytest.approx(counter.get_total_flops()), "matrix products alone, 2 m n each"


CONFIG = SimpleNamespace(num_hidden_layers=1, hidden_size=1, intermediate_size=1, vocab_size=9)
# A layer is 8 + 4 + 4 x 10 = 52 operations per token, the head 2 (1 + 9) = 20 per decoded token.
TRAINING = 3 * (52 + 0.2 * 20)
BLANK = 52 + 0.4 * 20
RUNS = {
    "random": ({"masking": "random"}, TRAINING),
    "blank, half of the steps": ({}, TRAINING + BLANK / 2),
    "visible": ({"reading": "visible"}, TRAINING + (52 + 20) / 2),
    "memory": ({"reading": "memory"}, TRAINING),
    "memory, blanks in every fourth epoch": ({"reading": "memory", "entropy_every": 4}, TRAINING + BLANK / 8),
    "memory, seen tokens too": ({"reading": "memory", "read_seen": True}, TRAINING + 0.8 * 20),
    "warm-up as a number of steps": ({"entropy_warmup": 25}, TRAINING + BLANK * 0.75),
    "a teacher's entropies, asked in every step": ({"masking": "teacher"}, TRAINING + BLANK / 2),
    "a teacher's entropies, from a table": ({"masking": "teacher", "kd_alpha": 0.0}, TRAINING),
    "reducible: the student's blanks, the teacher's table": (
        {"masking": "reducible", "kd_alpha": 0.0},
        TRAINING + BLANK / 2,
    ),
    "reducible, from memory": ({"masking": "reducible", "reading": "memory", "kd_alpha": 0.0}, TRAINING),
    "distillation": ({"masking": "random", "kd_alpha": 0.5}, TRAINING + 52 + 0.2 * 20),
}


@pytest.mark.parametrize("name", RUNS)
def test_operations_of_a_run_by_hand(name):
    changes, wanted = RUNS[name]
    options = {"masking": "self", "reading": "blank", "candidates": 2.0, "mask_ratio": 0.2, "seq_len": 10}
    options |= {"steps": 100, "entropy_warmup": 0.5}
    assert flops.flops_per_token(options | changes, CONFIG, CONFIG) == pytest.approx(wanted)
