"""Which tokens to hide: how unsure a model is of each, rules that pick by it, and what goes in their place.

The claim under test: Srinivasagan, Hartung, Georges 2026, "Entropy-aware Masking for Masked Language
Modeling" (arXiv 2605.28526). Readings of the entropy and rules are this project's own definitions.

One step of self-masking with the `blank` reading, for rows `ids` [B, T]:

    candidates = draw_candidates(eligible, 0.15, 2.0)                 # 2k random places
    entropy = blank_entropy(model, ids, candidates, mask_token_id)    # how unsure is the model of each?
    selected = select_positions("high", eligible, 0.15, entropy, candidates)    # the k it is least sure of
    corrupted, labels = corrupt(ids, selected, mask_token_id, vocab_size, special_ids)

Shapes in the comments: B sequences, T tokens each, V words in the vocabulary, k masked tokens a row.
"""

import html
import math
import os
import shutil
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch

from model import BertForMaskedLM, atomic_write, explain, load_tokenizer

IGNORE = -100  # label of a position that has no loss
SCHEMES = {"80-10-10": (0.8, 0.9), "100-0-0": (1.0, 1.0)}  # a uniform draw, cut: [MASK] | random | as is

# ---- how unsure is the model? ----


def prediction_entropy(logits: torch.Tensor) -> torch.Tensor:
    """H = -sum_v p_v log p_v = log S - sum_v e^(z_v) z_v / S, with S = sum_v e^(z_v). [..., V] -> [...]

    In nats, 0 <= H <= log V, float32. The row's maximum is taken off first: softmax does not see it, and
    large logits then neither overflow nor cancel. A logit of -inf is a word that cannot be: it adds 0.
    """
    z = logits.float()
    z = (z - z.amax(-1, keepdim=True)).clamp_min_(torch.finfo(z.dtype).min)  # 0 * -inf would be NaN
    e = z.exp()
    total = e.sum(-1)  # p = e / total
    return (total.log() - z.mul_(e).sum(-1) / total).clamp_min(0)


@contextmanager
def evaluating(model):
    """No gradient and no dropout inside; afterwards every module is in the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def slice_size(device: torch.device) -> int:
    """How many logits are worked on at once: what the caches of a CPU's cores hold; a GPU wants more work."""
    return 2**17 * torch.get_num_threads() if device.type == "cpu" else 2**25


def _entropy_of(model, hidden, chunk):
    """Entropy at vectors [N, H] -> [N], `chunk` at a time: no more than [chunk, V] logits ever exist."""
    rows = max(1, slice_size(hidden.device) // model.config.vocab_size)
    chunks = hidden.split(chunk or max(512, rows))  # the product wants more rows at once than a cache holds
    logits = (piece for part in chunks for piece in model.cls["predictions"](part).split(rows))
    return torch.cat([prediction_entropy(piece) for piece in logits])


def sequence_entropy(model, input_ids, attention_mask=None, chunk=None) -> torch.Tensor:
    """The `visible` reading: how unsure is the model of a token that it sees? [B, T] -> [B, T], nats.

    One forward pass of the unmasked rows. Mind that an MLM is trained on what it cannot see: under the
    100-0-0 scheme nothing ever trains its output at visible tokens.
    """
    with evaluating(model):
        hidden, _ = model.bert(input_ids, attention_mask)
        return _entropy_of(model, hidden.flatten(0, 1), chunk).view(input_ids.shape)


def blank_entropy(model, input_ids, candidates, mask_token_id, attention_mask=None, chunk=None):
    """The `blank` reading: hide the candidates; how unsure is the model of each? [B, T] -> [B, T], nats.

    candidates: bool [B, T], or their places as long [B, c] (static shapes: no synchronisation with a GPU).
    One forward pass with all candidates replaced by [MASK]. Places that are no candidates get 0.
    """
    entropy = torch.zeros(input_ids.shape, device=input_ids.device)
    with evaluating(model):
        if candidates.dtype == torch.bool:
            hidden, _ = model.bert(input_ids.masked_fill(candidates, mask_token_id), attention_mask)
            entropy[candidates] = _entropy_of(model, hidden[candidates], chunk)
            return entropy
        hidden, _ = model.bert(input_ids.scatter(1, candidates, mask_token_id), attention_mask)
        hidden = hidden.gather(1, candidates[..., None].expand(-1, -1, hidden.shape[-1]))
        found = _entropy_of(model, hidden.flatten(0, 1), chunk)
        return entropy.scatter(1, candidates, found.view_as(candidates))


# ---- which positions? ----


def mask_budget(eligible: int, mask_ratio: float) -> int:
    """k = min(|E|, max(1, round(mask_ratio |E|))), halves to even: how many of |E| positions a row masks.

    Raises ValueError, with the words "mask ratio", unless 0 < mask_ratio <= 1 (NaN is not).
    """
    if not 0 < mask_ratio <= 1:
        raise ValueError(f"mask ratio {mask_ratio} is not above 0 and at most 1")
    return min(eligible, max(1, round(mask_ratio * eligible)))


def candidate_budget(eligible: int, mask_ratio: float, factor: float) -> int:
    """min(|E|, round(c k)) positions are blanked so that a rule can pick k of them; c = factor >= 1."""
    if factor < 1:
        raise ValueError(f"{factor} times as many candidates as masks are too few; at least 1 is needed")
    return min(eligible, round(factor * mask_budget(eligible, mask_ratio)))


def eligible_positions(input_ids, never: list[int]) -> torch.Tensor:
    """bool [B, T], True where a token may be masked; never: the ids of [CLS], [SEP] and [PAD]."""
    eligible = torch.ones_like(input_ids, dtype=torch.bool)
    for token_id in never:
        eligible &= input_ids != token_id
    return eligible


@lru_cache(maxsize=64)
def _budgets(budget, length, device, *settings):
    """budget(n, *settings) for n = 0..length as a tensor, so that looking it up waits for nobody."""
    return torch.tensor([budget(n, *settings) for n in range(length + 1)], device=device)


# A rule turns entropies [B, T] into scores [B, T]; the k positions of the pool (bool [B, T]) with the highest
# score are masked, equal scores in random order. A new rule is one function here and one entry in RULES.


def rule_random(entropy, pool, temperature, generator):
    """All alike: the baseline, BERT's own rule."""
    return torch.zeros_like(entropy)


def rule_high(entropy, pool, temperature, generator):
    """The most uncertain positions."""
    return entropy


def rule_low(entropy, pool, temperature, generator):
    """The most certain positions."""
    return -entropy


def rule_mid(entropy, pool, temperature, generator):
    """-|H - median of the row's pool|; the median of an even number is the mean of the two in the middle."""
    ordered, count = entropy.masked_fill(~pool, float("inf")).sort(-1).values, pool.sum(-1, keepdim=True)
    low, high = ordered.gather(-1, ((count - 1) // 2).clamp_min(0)), ordered.gather(-1, count // 2)
    return -(entropy - (low + high) / 2).abs()


def rule_both(entropy, pool, temperature, generator):
    """The pool's most and least uncertain in turns: highest, lowest, second highest, second lowest, ..."""
    order = entropy.masked_fill(~pool, float("-inf")).sort(dim=-1, descending=True, stable=True).indices
    from_top = order.argsort(-1)  # 0 is the highest of the row's pool
    from_bottom = pool.sum(-1, keepdim=True) - 1 - from_top
    return -torch.minimum(2 * from_top, 2 * from_bottom + 1).float()


def rule_sample(entropy, pool, temperature, generator):
    """Draws without replacement with probability proportional to H^(1/tau), tau = temperature.

    Gumbel top-k (Kool et al. 2019, arXiv 1903.06059): the k largest of log(H) / tau + Gumbel noise are such a
    draw; -log of an exponential variate is Gumbel noise, made with `generator`. H = 0 has a finite score too:
    -inf is for positions outside the pool.
    """
    gumbel = -torch.empty_like(entropy).exponential_(generator=generator).log()
    return entropy.clamp_min(1e-30).log() / temperature + gumbel


RULES = {"random": rule_random, "high": rule_high, "low": rule_low}
RULES |= {"mid": rule_mid, "both": rule_both, "sample": rule_sample}


def select_positions(
    rule: str,
    eligible: torch.Tensor,
    mask_ratio: float,
    entropy: torch.Tensor | None = None,
    candidates: torch.Tensor | None = None,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    random_share: float = 0.0,
    word_start: torch.Tensor | None = None,
) -> torch.Tensor:
    """Pick exactly k = mask_budget(|E|, mask_ratio) positions of every row. Returns bool [B, T].

    rule: a name in RULES. eligible: bool [B, T]; E, the positions that may be masked. entropy: [B, T], nats,
    for every rule but random. candidates: bool [B, T]; the choice is made among these (should a row have
    fewer than k, random eligible positions fill it up). temperature: tau of `sample`. random_share: this part
    of the k is drawn at random from the rest of E instead. word_start: bool [B, T], False where a piece
    continues a word; if given, words are masked whole, scored by their mean entropy, and a row masks at most
    k (a word too long is passed over). Raises ValueError for an unknown rule, no entropy, bad numbers.
    """
    if rule not in RULES:
        raise ValueError(f"selection rule {rule!r} is not one of {', '.join(RULES)}")
    if entropy is None and rule != "random":
        raise ValueError(f"rule {rule!r} chooses by entropy, and no entropy was given")
    if temperature <= 0 or not 0 <= random_share <= 1:
        raise ValueError(f"temperature {temperature} must be above 0, random share {random_share} in [0, 1]")
    entropy = torch.zeros(eligible.shape, device=eligible.device) if entropy is None else entropy.float()
    pool = eligible if candidates is None else eligible & candidates
    k = _budgets(mask_budget, eligible.shape[1], eligible.device, mask_ratio)[eligible.sum(-1)]
    by_rule = k - (random_share * k).round().long()
    how = (temperature, generator, word_start)
    selected = _take(rule, entropy, pool, eligible, by_rule, *how)
    if random_share > 0:
        rest = eligible & ~selected
        selected |= _take("random", entropy, rest, rest, k - selected.sum(-1), *how)
    return selected


def draw_candidates(eligible, mask_ratio, factor=2.0, generator=None, word_start=None) -> torch.Tensor:
    """min(|E|, round(c k)) random positions a row for `blank_entropy`; c = factor. Returns bool [B, T]."""
    counts = _budgets(candidate_budget, eligible.shape[1], eligible.device, mask_ratio, factor)
    equal = torch.zeros(eligible.shape, device=eligible.device)
    return _take("random", equal, eligible, eligible, counts[eligible.sum(-1)], 1.0, generator, word_start)


def _take(rule, entropy, pool, eligible, k, temperature, generator, word_start):
    """The first k [B] of each row: best of the pool by the rule, then other eligible ones at random."""
    if word_start is not None:  # a word stands for its first piece
        word = word_start.long().cumsum(-1)  # [B, T], number of the word a piece belongs to
        size = _word_sum(torch.ones_like(word), word)
        entropy = _word_sum(entropy, word) / size
        eligible = word_start & (_word_sum((~eligible).long(), word) == 0)
        pool = eligible & (_word_sum((~pool).long(), word) == 0)
    noise = torch.rand(eligible.shape, generator=generator, device=eligible.device)
    shuffle = noise.masked_fill(~eligible, 2).argsort(-1)  # the sort below is stable: ties in random order
    entropy, pool = entropy.gather(-1, shuffle), pool.gather(-1, shuffle)
    score = RULES[rule](entropy, pool, temperature, generator).masked_fill(~pool, float("-inf"))
    order = shuffle.gather(-1, score.sort(dim=-1, descending=True, stable=True).indices)  # positions [B, T]
    if word_start is None:
        first = torch.arange(order.shape[1], device=order.device) < k[:, None]
        return torch.zeros_like(eligible).scatter(-1, order, first) & eligible
    left, taken = k[:, None], torch.zeros_like(eligible)
    for place in order.split(1, -1):  # [B, 1], the best word first: it is taken if it still fits
        fits = eligible.gather(1, place) & (size.gather(1, place) <= left)
        taken.scatter_(1, place, fits)
        left = left - size.gather(1, place) * fits
    return _word_sum(taken.long(), word) > 0


def _word_sum(values, word):
    """Sum over the pieces of each word, given back to every piece. [B, T], [B, T] -> [B, T]"""
    width = word.shape[1] + 1
    return values.new_zeros(len(word), width).scatter_add_(1, word, values).gather(1, word)


@torch.no_grad()
def weights_for_rates(ids, eligible, mask_ratio: float, rates, rounds: int = 50) -> torch.Tensor:
    """Weights w [V] with which `sample` masks token v as often as rates [V] say, at places left to chance.

    The control that tells "uncertain" from "rare": an entropy rule's rates, without its places. Gumbel top-k
    is a race: i arrives after a time ~ Exp(w_i), and the first k are masked. Up to a time t that is about
    P(i) = 1 - exp(-w_i t), with t such that the row's P add up to k; the rate of v is the mean of P over its
    places in the rows ids [B, T]. Each round solves for every row's t, then scales every w_v by what its rate
    lacks. What the rows do not hold keeps the weight of its own rate.
    """
    hazard = -torch.log1p(-rates.double().clamp(1e-6, 1 - 1e-6))  # of a race that ends at t = 1
    weights, flat = hazard.clone(), ids[eligible]
    seen = torch.bincount(flat, minlength=len(weights))
    k = _budgets(mask_budget, ids.shape[1], ids.device, mask_ratio)[eligible.sum(-1), None]
    for _ in range(rounds):
        w = weights[ids] * eligible  # [B, T]
        t = torch.zeros(len(ids), 1, device=ids.device, dtype=w.dtype)
        for _ in range(12):  # Newton, from below: the sum of P is concave in t
            rest = torch.exp(-w * t)
            t = t + (k - (1 - rest).sum(-1, keepdim=True)) / (w * rest).sum(-1, keepdim=True)
        chance = -torch.expm1(-w * t)[eligible]
        rate = torch.bincount(flat, chance, len(weights)) / seen.clamp_min(1)
        reached = -torch.log1p(-rate.clamp(1e-6, 1 - 1e-6))
        weights = torch.where(seen > 0, weights * hazard / reached, weights)
    return weights.float()


def as_places(selected, width: int) -> torch.Tensor:
    """bool [B, T] -> long [B, width]: where True, in order; rows with fewer get other places too."""
    return selected.byte().sort(dim=-1, descending=True, stable=True).indices[:, :width]


# ---- what stands in their place? ----


def corrupt(input_ids, selected, mask_token_id, vocab_size, special_ids, scheme="80-10-10", generator=None):
    """BERT's corruption (Devlin et al. 2019, section 3.1 and appendix C.2) of the selected positions.

    input_ids long [B, T], selected bool [B, T]. Of the selected, 80% become [MASK], 10% a random token that
    is not in special_ids, 10% stay: one uniform draw each, cut at .8 and .9. "100-0-0": all become [MASK].
    Returns (corrupted ids [B, T], labels [B, T]); labels hold the original id where selected, -100 elsewhere.
    input_ids stay as they are; special_ids come in any order; all randomness is `generator`'s. Raises
    ValueError with the schemes to choose from, "corruption 'x' is not one of 80-10-10, 100-0-0".
    """
    if scheme not in SCHEMES:
        raise ValueError(f"corruption {scheme!r} is not one of {', '.join(SCHEMES)}")
    masked_below, random_below = SCHEMES[scheme]
    special = sorted(set(special_ids))
    u = torch.rand(input_ids.shape, generator=generator, device=input_ids.device)
    other = torch.randint(vocab_size - len(special), u.shape, generator=generator, device=u.device)
    for token_id in special:  # step over each special id: uniform over the others
        other += other >= token_id
    corrupted = torch.where(u < masked_below, mask_token_id, torch.where(u < random_below, other, input_ids))
    return torch.where(selected, corrupted, input_ids), input_ids.masked_fill(~selected, IGNORE)


# ---- what it looks like: python masking.py --model FOLDER --text "..." ----

SHADES = (231, 230, 229, 228, 222, 216, 210, 203, 196)  # of the 256 terminal colours, white to red
BARS = " ▁▂▃▄▅▆▇█"


def read_sentence(model, tokenizer, text, reading, mask_ratio, generator):
    """Tokens of a text, their entropies (nats; `blank`: each hidden alone), and what each rule chooses.

    Returns (list of n tokens without [CLS] and [SEP], list of n entropies, {rule: list of n bools}).
    """
    encoding, longest = tokenizer.encode(text), model.config.max_position_embeddings
    if len(encoding) > longest:
        print(f"the text is cut to the model's {longest} tokens", file=sys.stderr)
        tokenizer.enable_truncation(longest)
        encoding = tokenizer.encode(text)
    ids = torch.tensor([encoding.ids])
    eligible = eligible_positions(ids, [tokenizer.token_to_id(t) for t in ("[CLS]", "[SEP]", "[PAD]")])
    if not eligible.any():
        raise ValueError("the text holds no token to mask")
    if reading == "visible":
        entropy = sequence_entropy(model, ids)
    else:
        alone = torch.eye(ids.shape[1], dtype=torch.bool).split(64)  # row i hides token i
        mask = tokenizer.token_to_id("[MASK]")
        parts = [blank_entropy(model, ids.expand_as(hidden), hidden, mask) for hidden in alone]
        entropy = torch.cat(parts).diagonal()[None]
    picks = {r: select_positions(r, eligible, mask_ratio, entropy, generator=generator) for r in RULES}
    tokens = [token for token, kept in zip(encoding.tokens, eligible[0].tolist(), strict=True) if kept]
    return tokens, entropy[eligible].tolist(), {rule: pick[eligible].tolist() for rule, pick in picks.items()}


def as_text(tokens, entropies, picks, highest, colour: bool) -> str:
    """The picture for a terminal: tokens, nats and bars beneath each other, then a line a rule."""
    width, used, blocks = max(40, shutil.get_terminal_size().columns - 1), math.inf, []
    for token, nats in zip(tokens, entropies, strict=True):
        cell, shade = max(len(token), 4), round(nats / highest * (len(SHADES) - 1))
        used += cell + 1
        if used > width:
            used = cell + 1
            blocks.append(([], [], []))
        shown = f"\033[30;48;5;{SHADES[shade]}m{token:<{cell}}\033[0m" if colour else f"{token:<{cell}}"
        for row, part in zip(blocks[-1], (shown, f"{nats:<{cell}.1f}", BARS[shade] * cell), strict=True):
            row.append(part)
    lines = [" ".join(row) for block in blocks for row in block[: 2 if colour else 3]]
    for rule, pick in picks.items():
        hidden = (("_" * len(t) if chosen else t) for t, chosen in zip(tokens, pick, strict=True))
        lines.append(f"{rule:>7}: {' '.join(hidden)}")
    return "\n".join(lines)


def as_html(tokens, entropies, picks, highest, title: str) -> str:
    """The same as one self-contained page."""
    spans, rows, tokens = "", "", [html.escape(token) for token in tokens]
    for token, nats in zip(tokens, entropies, strict=True):
        colour = f"hsl({60 - 60 * nats / highest:.0f} 100% {97 - 37 * nats / highest:.0f}%)"
        spans += f'<span style="background:{colour}">{token}<small>{nats:.1f}</small></span>'
    for rule, pick in picks.items():
        words = (f"<b>{t}</b>" if chosen else t for t, chosen in zip(tokens, pick, strict=True))
        rows += f"<tr><th>{rule}</th><td>{' '.join(words)}</td></tr>"
    style = """body{font:20px/1.9 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}
span{display:inline-block;padding:0 .3em;margin:.1em;border-radius:.3em;text-align:center}
small{display:block;font-size:.6em;line-height:1;color:#444;padding-bottom:.3em}
th{text-align:right;padding-right:1em;vertical-align:top}b{background:#222;color:#fff;padding:0 .2em}"""
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Entropy</title>
<style>{style}</style>
<p>{html.escape(title)}</p><p>{spans}</p>
<p>What each rule masks:</p><table>{rows}</table></html>
"""


def main(argv=None):
    """Show how unsure a checkpoint is of each token of a text, and what each rule would mask."""
    parser = ArgumentParser(description=main.__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, metavar="FOLDER", help="checkpoint folder, ours or Hugging Face's")
    add("--text", required=True, help="what to read")
    add("--reading", default="blank", choices=["blank", "visible"], help="tokens hidden, or seen")
    add("--mask-ratio", default=0.15, type=float, help="share of the tokens each rule masks")
    add("--seed", default=0, type=int, help="of the rules that draw")
    add("--html", default="", metavar="FILE", help="write a page as well")
    options = parser.parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without these characters shows "?"
    try:
        model, tokenizer = BertForMaskedLM.from_pretrained(options.model), load_tokenizer(options.model)
        if tokenizer.get_vocab_size() > model.config.vocab_size:
            raise ValueError(f"{options.model}: the tokenizer has more entries than the model's vocabulary")
        random = torch.Generator().manual_seed(options.seed)
        picture = read_sentence(model, tokenizer, options.text, options.reading, options.mask_ratio, random)
        highest, limit = max(picture[1]), math.log(model.config.vocab_size)  # highest: the darkest shade
        title = f"Entropy of each token ({options.reading} reading) in nats; log V = {limit:.1f}"
        print(title)
        print(as_text(*picture, highest, sys.stdout.isatty() and not os.environ.get("NO_COLOR")))
        if options.html:
            page = as_html(*picture, highest, title)
            atomic_write(Path(options.html), lambda file: file.write(page.encode()))
            print(f"written to {options.html}")
    except Exception as error:
        sys.exit(f"masking.py: {explain(error)}")


if __name__ == "__main__":
    main()
