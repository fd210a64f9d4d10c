"""Operations that a run costs, counted from its options, and what a GPU can do per second at most."""

import re

# Dense bfloat16 peaks in FLOP/s (T4, V100: float16), from the vendors' data sheets. A card has all words
# of its line in its name; the first such line counts, so that a slower variant stands above the plain name.
PEAKS = (
    (("H100", "PCIE"), 756e12),
    (("H100", "NVL"), 835e12),
    (("H100",), 989e12),
    (("H200", "NVL"), 835e12),
    (("H200",), 989e12),
    (("A100",), 312e12),
    (("L40S",), 362e12),
    (("L4",), 121e12),
    (("T4",), 65e12),
    (("V100",), 125e12),
    (("4090",), 165e12),
    (("3090",), 71e12),
)


def peak_flops(card: str) -> float | None:
    """The peak of a card such as "NVIDIA H100 80GB HBM3"; None for one that is not listed."""
    words = set(re.findall("[A-Z0-9]+", card.upper()))
    for names, peak in PEAKS:
        if words.issuperset(names):
            return peak
    return None


def forward_flops(config, seq_len: int, decoded: float) -> float:
    """Multiplications and additions per token of a forward pass with the head at a share `decoded` of them.

    A product with an m x n matrix is 2 m n operations. Per layer: query, key, value and output, 4 times
    H x H; the feed-forward network, twice H x I; scores and weighted sum over T tokens, twice T x H. Head:
    H x H, then H x V.
    """
    width = config.hidden_size
    layer = 8 * width**2 + 4 * width * config.intermediate_size + 4 * seq_len * width
    head = 2 * width * (width + config.vocab_size)
    return config.num_hidden_layers * layer + decoded * head


def flops_per_token(options: dict, student, teacher=None) -> float:
    """Operations per trained token, on average over the steps of a run.

    options: those in the run's args.json; student, teacher: the configurations. A backward pass costs two
    forward passes. A table of a teacher's entropies is free: it is computed once, for every epoch and run.
    """
    seq_len = options["seq_len"]
    ratio = options["mask_ratio"]
    total = 3 * forward_flops(student, seq_len, ratio)

    if options.get("kd_alpha", 0) > 0:
        total += forward_flops(teacher, seq_len, ratio)
    if options.get("read_seen"):
        total += seen_flops(student, ratio)

    source = extra_pass_reads(options, student, teacher)
    if source:
        decoded = 1.0
        if options["reading"] != "visible":
            decoded = min(1.0, options["candidates"] * ratio)
        share = share_by_entropy(options) / (options.get("entropy_every") or 1)  # every n-th epoch
        total += share * forward_flops(source, seq_len, decoded)
    return total


def extra_pass_reads(options: dict, student, teacher):
    """Whose configuration counts for the extra forward pass that reads entropies; None: there is none."""
    if options["masking"] == "random":
        return None
    if options["masking"] == "teacher":
        has_table = "kd_alpha" in options  # distill.py
        return None if has_table else teacher
    if options["reading"] == "memory" and not options.get("entropy_every"):
        return None
    return student


def share_by_entropy(options: dict) -> float:
    """The share of the steps whose masks follow entropies: all after --entropy-warmup."""
    steps = options["steps"]
    random_steps = options["entropy_warmup"]
    if random_steps < 1:
        random_steps = round(random_steps * steps)
    return max(0.0, 1 - random_steps / steps)


def seen_flops(config, mask_ratio: float) -> float:
    """Operations per token of the vocabulary head at every token that is not masked."""
    return forward_flops(config, 0, 1 - mask_ratio) - forward_flops(config, 0, 0)
