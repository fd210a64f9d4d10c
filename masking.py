"""Which tokens to hide: how unsure a model is of each, rules that pick by it, and what goes in their place.

The idea under test, masks where a model is unsure: Srinivasagan, Hartung, Georges 2026, "Entropy-aware
Masking for Masked Language Modeling" (arXiv 2605.28526). Rules, and readings (blank, visible, memory: three
ways to ask the model), are this project's own.

One step with the `blank` reading, for rows `ids` [B, T]; `mask_batch` is the same for your own training loop:

    candidates = draw_candidates(eligible, 0.15, 2.0)                 # 2k at random
    entropy = blank_entropy(model, ids, candidates, mask_token_id)    # how unsure is the model of each?
    selected = select_positions("high", eligible, 0.15, entropy, candidates)    # of these, the k least sure
    corrupted, labels = corrupt(ids, selected, mask_token_id, vocab_size, special_ids)

Shapes: B sequences, T tokens each, V words in the vocabulary, k masked tokens per row; positions are bool
[B, T], places the same as indices [B, k]. This file needs nothing but PyTorch.
"""

import html
import math
import os
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections import namedtuple
from contextlib import contextmanager
from inspect import signature
from pathlib import Path

import torch

IGNORE = -100  # label of a position that has no loss
WRAPPERS = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)
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
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        torch.clear_autocast_cache()  # where older torch keeps, for the caller, weights without a gradient
        for module in training:
            module.training = True


def logits_per_slice(device: torch.device) -> int:
    """How many logits are worked on at once: what the caches of a CPU's cores hold; a GPU wants more work."""
    return 2**17 * torch.get_num_threads() if device.type == "cpu" else 2**25


def logits_at(model, input_ids, places, **inputs) -> torch.Tensor:
    """One forward pass of input_ids [B, T]; the logits at places [B, c] alone: [B, c, V].

    Most of the work of a small model is its last layer, so only these places reach it, and the gradients are
    those of the full logits. Raises ValueError where a model returns none.
    """
    inner = model
    while isinstance(inner, WRAPPERS) or hasattr(inner, "_orig_mod"):  # of several devices, of torch.compile
        inner = inner.module if isinstance(inner, WRAPPERS) else inner._orig_mod
    if "places" in signature(inner.forward).parameters:  # this project's models
        return model(input_ids, places=places, **inputs)
    return others_logits_at(model, inner, input_ids, places, **inputs)


def others_logits_at(model, inner, input_ids, places, **inputs) -> torch.Tensor:
    """logits_at for a model that is not told places; inner: the model without its wrappers.

    Where it names its last layer, as those of `transformers` do, a hook picks what goes in. Else all logits
    are made, as within torch.compile, which would compile anew for every hook.
    """

    def pick(layer, args):
        if args and args[0].shape[:2] == input_ids.shape != places.shape:
            return (args[0].take_along_dim(places[..., None], 1), *args[1:])

    last = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    compiled = [m for m in model.modules() if hasattr(m, "_orig_mod") or m._compiled_call_impl is not None]
    if last is None or any(last in module.modules() for module in compiled):
        last = torch.nn.Identity()  # of no model, so its hook is never called
    with last.register_forward_pre_hook(pick):
        output = model(input_ids=input_ids, **inputs)

    logits = output[0] if isinstance(output, tuple) else output
    for name in ("logits", "prediction_logits"):
        logits = output.get(name, logits) if isinstance(output, dict) else getattr(output, name, logits)
    if getattr(logits, "shape", ())[:-1] not in (input_ids.shape, places.shape):
        raise ValueError(f"{type(inner).__name__} gives no logits [B, T, V]: is it a masked language model?")
    if logits.shape[:2] == input_ids.shape:  # all T came out: no hook, or every place is asked for
        return logits.take_along_dim(places[..., None], 1)
    return logits


def entropy_at(model, input_ids, places, **inputs) -> torch.Tensor:
    """The entropy of the model's predictions at places [B, c] of input_ids [B, T]: [B, c], nats.

    A few rows at a time, with their part of the inputs that have B rows; but all at once where an input has
    neither B rows nor one, and where processes compute a pass together and would wait for each other.
    """
    if isinstance(model, WRAPPERS):
        model = model.module  # its forward would communicate
    inputs = {name: value for name, value in inputs.items() if value is not None}
    heights = {name: len(value) for name, value in inputs.items() if torch.is_tensor(value) and value.dim()}
    classes = [base for module in model.modules() for base in type(module).__mro__]
    together = any(base.__module__.startswith(("torch.distributed", "torch.nn.parallel")) for base in classes)

    # Memory goes into the logits, of 1,024 tokens on a CPU (125 MB with 30,522 words); if few are asked for,
    # into the encoder, where 16 tokens need as much as one token's logits.
    count, length = input_ids.shape
    tokens = 1024 if input_ids.device.type == "cpu" else 16384
    rows = max(1, tokens // max(places.shape[1], length // 16))
    if together or not set(heights.values()) <= {1, count}:
        rows = count

    entropy = []
    with evaluating(model):
        for start in range(0, count, rows):
            part = slice(start, start + rows)
            cut = {name: inputs[name][part] for name, height in heights.items() if height == count}
            logits = logits_at(model, input_ids[part], places[part], **(inputs | cut))
            pieces = logits.flatten(0, 1).split(max(1, logits_per_slice(logits.device) // logits.shape[-1]))
            entropy += [prediction_entropy(piece) for piece in pieces]
    return torch.cat(entropy).view(places.shape)


def visible_entropy(model, input_ids, attention_mask=None, **inputs) -> torch.Tensor:
    """The `visible` reading: how unsure is the model of a token that it sees? [B, T] -> [B, T], nats.

    model: any masked LM; `inputs` [B, ...], such as token_type_ids, go to it. Mind that an MLM is trained on
    what it cannot see: under the 100-0-0 scheme nothing ever trains its output at visible tokens.
    """
    places = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    return entropy_at(model, input_ids, places, attention_mask=attention_mask, **inputs)


def blank_entropy(model, input_ids, candidates, mask_token_id, width=None, attention_mask=None, **inputs):
    """The `blank` reading: hide the candidates; how unsure is the model of each? [B, T] -> [B, T], nats.

    candidates: bool [B, T], all hidden in one forward pass; elsewhere the result is 0. width: at least 1 and
    no less than the candidates of any row; None counts them, which waits for a GPU. model, inputs: as above.
    """
    if width is None:
        width = max(1, int(candidates.sum(-1).max()))
    blanked = input_ids.masked_fill(candidates, mask_token_id)
    places = as_places(candidates, width)
    found = entropy_at(model, blanked, places, attention_mask=attention_mask, **inputs)
    entropy = found.new_zeros(input_ids.shape).scatter(1, places, found)
    return entropy.masked_fill(~candidates, 0)  # rows with fewer candidates were read at other places too


class EntropyMemory:
    """The `memory` reading: each token's entropy when it was last a blank, which training computes anyway.

    values: float16 [rows, T], nats, NaN for tokens that never were a blank; these count as the running mean.
    """

    def __init__(self, rows: int, length: int, device):
        self.values = torch.full((rows, length), torch.nan, dtype=torch.float16, device=device)
        self.mean = torch.zeros((), dtype=torch.float32, device=device)  # mostly of the last hundred steps

    def read(self, index) -> torch.Tensor:
        """The entropies of the rows number `index` [B]: [B, T]."""
        entropy = self.values[index].float()
        return torch.where(entropy.isnan(), self.mean, entropy)

    def write(self, index, places, entropy, blank):
        """Remember the entropies [B, k] at places [B, k] of rows `index` [B], where blank, bool [B, k]."""
        entropy = entropy.detach()
        blank = blank & entropy.isfinite()  # logits that overflowed say nothing
        # m <- .99 m + .01 (mean of this step's blanks); the first step sets it.
        count = blank.sum()
        mean = torch.where(blank, entropy, 0).sum() / count.clamp_min(1)
        moved = torch.where(self.mean > 0, self.mean.lerp(mean, 0.01), mean)
        self.mean = torch.where(count > 0, moved, self.mean)

        # A row may be there twice, and a place that is no blank must not write its old value over a new one.
        # So it repeats what some blank writes; without any blank, old values are written again.
        rows = index[:, None].expand_as(places)
        values = torch.where(blank, entropy.half(), self.values[rows, places]).flatten()
        blank = blank.flatten()
        source = torch.where(blank, torch.arange(len(blank), device=blank.device), blank.byte().argmax())
        self.values[rows.flatten()[source], places.flatten()[source]] = values[source]


# ---- which positions? ----


def mask_budget(count: int, mask_ratio: float) -> int:
    """k = min(n, max(1, round(mask_ratio n))), halves to even: how many of a row's n = count a mask hides.

    Raises ValueError, with the words "mask ratio", unless 0 < mask_ratio <= 1 (NaN is not).
    """
    if not 0 < mask_ratio <= 1:
        raise ValueError(f"mask ratio {mask_ratio} is not above 0 and at most 1")
    return min(count, max(1, round(mask_ratio * count)))


def candidate_budget(count: int, mask_ratio: float, factor: float) -> int:
    """min(n, round(c k)) of n = count positions are blanked so that a rule can pick k; c = factor >= 1."""
    if factor < 1:
        raise ValueError(f"{factor} times as many candidates as masks are too few; at least 1 is needed")
    return min(count, round(factor * mask_budget(count, mask_ratio)))


def _budgets(eligible, mask_ratio, factor=1.0) -> torch.Tensor:
    """candidate_budget of every row of eligible [B, T]: long [B]. A formula, since it waits for no GPU."""
    candidate_budget(0, mask_ratio, factor)  # refuses what it refuses
    count = eligible.sum(-1)
    if count.device.type == "mps":
        count = count.cpu()  # Apple's GPUs have no float64, in which Python rounds
    n = count.double()
    k = (mask_ratio * n).round().clamp_min(1).minimum(n)
    budget = (factor * k).round().minimum(n).long()
    return budget.to("mps") if eligible.device.type == "mps" else budget


def eligible_positions(input_ids, never: list[int]) -> torch.Tensor:
    """bool [B, T], True where a token may be masked; never: ids that may not, such as [CLS] and [SEP]."""
    eligible = torch.ones_like(input_ids, dtype=torch.bool)
    for token_id in never:
        eligible &= input_ids != token_id
    return eligible


def starts_of_words(word_start, ordinary) -> torch.Tensor:
    """Where words begin, bool [B, T]: at word_start, at what is not ordinary, and at the token behind that.

    So a special token is a word of its own, and a row may begin in the middle of a word.
    """
    after_special = torch.nn.functional.pad(~ordinary, (1, -1), value=True)
    return word_start | ~ordinary | after_special


# A rule turns entropies [B, T] into scores [B, T]; the k positions of the pool (bool [B, T]) with the highest
# score are masked, and outside of the pool entropies mean nothing. The columns come in random order, so that
# equal scores are chosen at random: a score may depend on entropies and pool, not on the place. With whole
# words a column is a word, its entropy the mean over its pieces. Scores are finite; who draws uses generator.
# Like all of a step, a rule waits for no GPU: no boolean indices, no .item(). A new rule is one function here
# and one entry in RULES.


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
    ordered = entropy.masked_fill(~pool, torch.inf).sort(-1).values  # a quantile would wait for a GPU
    count = pool.sum(-1, keepdim=True)
    lower = ordered.gather(-1, (count - 1).clamp_min(0) // 2)
    upper = ordered.gather(-1, count // 2)
    return -(entropy - lower.lerp(upper, 0.5)).abs()


def rule_both(entropy, pool, temperature, generator):
    """The pool's most and least uncertain in turns: highest, lowest, second highest, second lowest, ..."""
    order = entropy.masked_fill(~pool, float("-inf")).sort(dim=-1, descending=True, stable=True).indices
    from_top = order.argsort(-1)  # 0 is the highest of the row's pool
    from_bottom = pool.sum(-1, keepdim=True) - 1 - from_top
    return -torch.minimum(2 * from_top, 2 * from_bottom + 1).float()


def rule_sample(entropy, pool, temperature, generator):
    """Draws without replacement with probability proportional to H^(1/tau), tau = temperature.

    Gumbel top-k (Kool et al. 2019, arXiv 1903.06059): the k largest of log(H) / tau + Gumbel noise are such a
    draw, and -log of an exponential variate is Gumbel noise. H = 0 stays above -inf, the score off the pool.
    """
    gumbel = -torch.empty_like(entropy).exponential_(generator=generator).log()
    return entropy.clamp_min(1e-30).log() / temperature + gumbel


RULES = {"random": rule_random, "high": rule_high, "low": rule_low}
RULES |= {"mid": rule_mid, "both": rule_both, "sample": rule_sample}


def select_positions(
    rule,  # a name in RULES
    eligible,  # bool [B, T]: E, the positions that may be masked
    mask_ratio,
    entropy=None,  # [B, T], nats, for every rule but random
    candidates=None,  # bool [B, T]: choose among these; a row with fewer than k is filled up at random
    temperature=1.0,  # tau of `sample`
    generator=None,
    word_start=None,  # bool [B, T], False where a piece continues a word: mask whole words
) -> torch.Tensor:
    """Pick k = mask_budget(|E|, mask_ratio) positions of every row: bool [B, T].

    Whole words are chosen by their mean entropy, at most k pieces, and single pieces where no word fits.
    Raises ValueError for an unknown rule, a missing entropy or a bad temperature.
    """
    if rule not in RULES:
        raise ValueError(f"selection rule {rule!r} is not one of {', '.join(RULES)}")
    if entropy is None and rule != "random":
        raise ValueError(f"rule {rule!r} chooses by entropy, and no entropy was given")
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} must be above 0")
    entropy = torch.zeros(eligible.shape, device=eligible.device) if entropy is None else entropy.float()
    pool = eligible if candidates is None else eligible & candidates
    k = _budgets(eligible, mask_ratio)
    return _take(k, rule, entropy, pool, eligible, temperature, generator, word_start)


def draw_candidates(eligible, mask_ratio, factor=2.0, generator=None, word_start=None) -> torch.Tensor:
    """min(|E|, round(c k)) random positions per row for `blank_entropy`; c = factor. Returns bool [B, T]."""
    count = _budgets(eligible, mask_ratio, factor)
    equal = torch.zeros(eligible.shape, device=eligible.device)
    return _take(count, "random", equal, eligible, eligible, 1.0, generator, word_start)


def choose_masks(
    entropy_of, eligible, rule, mask_ratio, factor=2.0, temperature=1.0, generator=None, word_start=None
):
    """The method: draw candidates, read how unsure the model is of each, select k by the rule.

    factor: candidates drawn per mask, or None where a reading knows all positions. entropy_of: candidates,
    bool [B, T] or None -> entropies [B, T], nats. Returns (selected, bool [B, T]; entropy, None for random).
    """
    drawn = entropy = None
    if rule != "random":
        if factor is not None:
            drawn = draw_candidates(eligible, mask_ratio, factor, generator, word_start)
        entropy = entropy_of(drawn)
    settings = {"temperature": temperature, "generator": generator, "word_start": word_start}
    return select_positions(rule, eligible, mask_ratio, entropy, drawn, **settings), entropy


def _order(rule, entropy, pool, eligible, temperature, generator):
    """Positions [B, T], first choice first: the pool by the rule, then other eligible ones at random."""
    # The sort by score is stable, so that shuffling first leaves equal scores in random order.
    noise = torch.rand(eligible.shape, generator=generator, device=eligible.device)
    shuffle = noise.masked_fill(~eligible, 2).argsort(-1)
    pool = pool.gather(-1, shuffle)
    score = RULES[rule](entropy.gather(-1, shuffle), pool, temperature, generator)
    best = score.masked_fill(~pool, float("-inf")).sort(dim=-1, descending=True, stable=True).indices
    return shuffle.gather(-1, best)


def _take(count, rule, entropy, pool, eligible, temperature, generator, word_start):
    """The first count [B] of each row in the order of the rule: bool [B, T].

    A word that no longer fits into what is left of count is passed over. In a row in which every word is
    longer than count, each piece is a word.
    """
    if word_start is None:
        order = _order(rule, entropy, pool, eligible, temperature, generator)
        first = torch.arange(order.shape[1], device=order.device) < count[:, None]
        return torch.zeros_like(eligible).scatter(-1, order, first) & eligible

    word = word_start.cumsum(-1)  # the number of each piece's word, and its size
    size = _word_sum(torch.ones_like(word), word)
    whole = word_start & (_word_sum((~eligible).long(), word) == 0)  # a word stands for its first piece
    split = ~(whole & (size <= count[:, None])).any(-1, keepdim=True)
    word = torch.where(split, torch.ones_like(word).cumsum(-1), word)
    size = size.masked_fill(split, 1)
    whole = torch.where(split, eligible, whole)
    order = _order(rule, _word_sum(entropy, word) / size, whole & pool, whole, temperature, generator)

    # Round by round: a word larger than what is left will never fit; of the others, take the first ones that
    # fit together. A round ends at a word that then fits no more, and what is left shrinks in each: r rounds
    # need 2 + ... + r pieces that were passed over and r that were taken, so r^2 < 2 T.
    size = size.gather(-1, order)
    waiting = whole.gather(-1, order)
    taken = torch.zeros_like(waiting)
    left = count[:, None]
    for _ in range(math.isqrt(2 * order.shape[1])):
        waiting &= size <= left
        fits = waiting & ((size * waiting).cumsum(-1) <= left)
        left = left - (size * fits).sum(-1, keepdim=True)
        taken |= fits
        waiting &= ~fits
    return _word_sum(torch.zeros_like(word).scatter(-1, order, taken.long()), word) > 0


def _word_sum(values, word):
    """Sum over the pieces of each word, given back to every piece. [B, T], [B, T] -> [B, T]"""
    width = word.shape[1] + 1
    return values.new_zeros(len(word), width).scatter_add_(1, word, values).gather(1, word)


def as_places(selected, width: int) -> torch.Tensor:
    """bool [B, T] -> long [B, width]: where True, in order; rows with fewer get other places too."""
    return selected.byte().sort(dim=-1, descending=True, stable=True).indices[:, :width]


# ---- what stands in their place? ----


def corrupt(input_ids, selected, mask_token_id, vocab_size, special_ids, scheme="80-10-10", generator=None):
    """BERT's corruption (Devlin et al. 2019, section 3.1 and appendix C.2) of the selected positions.

    input_ids long [B, T], selected bool [B, T]. Of the selected, 80% become [MASK], 10% a random token that
    is not in special_ids, 10% stay: one uniform draw each, cut at .8 and .9. "100-0-0": all become [MASK].
    Returns (corrupted ids [B, T], labels [B, T]); labels hold the original id where selected, -100 elsewhere.
    input_ids stay as they are; all randomness is `generator`'s. Raises ValueError for an unknown scheme.
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


# ---- a batch of your own training loop ----


def vocabulary_of(tokenizer):
    """(id of the mask token, number of entries, special ids) of transformers' or tokenizers' tokenizer.

    Raises ValueError for another tokenizer, and where no mask token is among the special ones.
    """
    names = '["[PAD]", "[CLS]", "[SEP]", "[MASK]"]'
    if hasattr(tokenizer, "all_special_ids"):
        names = '{"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}'
        mask_token_id, size, special = tokenizer.mask_token_id, len(tokenizer), tokenizer.all_special_ids
    elif not hasattr(tokenizer, "get_added_tokens_decoder"):
        kind = type(tokenizer).__name__
        raise ValueError(f"{kind} is no tokenizer of transformers or tokenizers")
    else:
        added = tokenizer.get_added_tokens_decoder()
        named = {token.content: number for number, token in added.items() if token.special}
        mask_token_id = named.get("[MASK]", named.get("<mask>"))
        size, special = tokenizer.get_vocab_size(), list(named.values())
    if mask_token_id is None:
        what = "the tokenizer has no mask token, or does not say which tokens are special"
        raise ValueError(f"{what}: tokenizer.add_special_tokens({names})")
    return mask_token_id, size, special


def unmasked(input_ids, labels, mask_token_id) -> torch.Tensor:
    """The ids before a collator's masks. Raises ValueError for labels of another task, where seen."""
    if labels.shape != input_ids.shape:
        raise ValueError(f"labels {tuple(labels.shape)} are not those of a masked LM: leave them out")
    changed = (labels != IGNORE) & (labels != input_ids)
    if input_ids.device.type == "cpu" and changed.sum() >= 16:  # a GPU would be waited for
        if (input_ids[changed] != mask_token_id).all():  # by chance: once in 9^16
            raise ValueError("no label stands at a mask token: those are of another task, leave them out")
    return torch.where(labels == IGNORE, input_ids, labels)


def mask_batch(
    model,  # who is unsure: any masked LM (see visible_entropy), the one in training or a teacher
    batch,  # input_ids [B, T] and what the model takes; labels of a collator's masks, which are undone
    tokenizer,  # of transformers or tokenizers
    rule="sample",
    mask_ratio=0.15,
    scheme="80-10-10",
    eligible=None,  # bool [B, T] or, a table over the vocabulary, [V]: what else may not be masked is False
    word_start=None,  # bool [B, T] or [V], False where a piece continues a word: mask whole words
    factor=2.0,  # candidates per mask, all of them hidden when the model reads; None: the visible reading
    temperature=1.0,
    generator=None,  # of the masks; else torch's own, which dropout uses as well
    return_entropy=False,
):
    """Mask a batch by a model's entropy, as a data collator does at random.

    Never masked: special tokens, padding (attention_mask 0) and where special_tokens_mask is 1. Returns the
    batch with new input_ids and labels [B, T]; with return_entropy also the entropies [B, T] that the rule
    saw, nats (rule random: None). Raises ValueError where model, batch and tokenizer do not fit.
    """
    mask_token_id, vocab_size, special = vocabulary_of(tokenizer)
    known = getattr(getattr(model, "config", None), "vocab_size", vocab_size)
    if known < vocab_size:
        sizes = f"the model knows {known} ids, the tokenizer has {vocab_size}"
        raise ValueError(f"{sizes}: one vocabulary for both")
    batch = {name: value for name, value in batch.items() if value is not None}
    input_ids = batch.pop("input_ids").long()
    if "labels" in batch:
        input_ids = unmasked(input_ids, batch.pop("labels"), mask_token_id)
    protected = batch.pop("special_tokens_mask", torch.zeros_like(input_ids))
    real = batch.get("attention_mask", torch.ones_like(input_ids))

    ordinary = eligible_positions(input_ids, special)
    allowed = ordinary & ~protected.bool()
    if eligible is not None:
        allowed &= eligible[input_ids] if eligible.dim() == 1 else eligible
    if real.shape == input_ids.shape:
        allowed &= real.bool()
    elif eligible is None:
        what = f"attention_mask {tuple(real.shape)} does not name the padding"
        raise ValueError(f"{what}: say eligible=, bool [B, T]")
    if word_start is not None and word_start.dim() == 1:
        word_start = starts_of_words(word_start[input_ids], ordinary)

    def entropy_of(blanks):
        if blanks is None:
            return visible_entropy(model, input_ids, **batch)
        width = candidate_budget(input_ids.shape[1], mask_ratio, factor)
        return blank_entropy(model, input_ids, blanks, mask_token_id, width, **batch)

    settings = {"temperature": temperature, "generator": generator, "word_start": word_start}
    selected, entropy = choose_masks(entropy_of, allowed, rule, mask_ratio, factor, **settings)
    corrupted, labels = corrupt(input_ids, selected, mask_token_id, vocab_size, special, scheme, generator)
    masked = {**batch, "input_ids": corrupted, "labels": labels}
    return (masked, entropy) if return_entropy else masked


# ---- what it looks like: python masking.py --model FOLDER --text "..." ----

COLOUR = "\033[30;48;5;{shade}m{text}\033[0m"  # of a terminal, from yellow to red
HTML = '<mark style="background:hsl(0 100% {light:.0f}%)">{text}</mark>'  # from white to red
PAGE = """\
<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>How unsure is {model}?</title><style>:root {{ color-scheme: light dark }}
pre {{ font-size: min(14px, 2.4vw) }}</style><pre>{text}</pre>
"""
Sentence = namedtuple("Sentence", "tokens entropies guesses picks left_out")


def read_sentence(model, tokenizer, text, reading, mask_ratio, generator) -> Sentence:
    """What a model thinks of a text: its n tokens, n entropies (nats), n best guesses, {rule: n bools}.

    `blank` hides each token alone. The text is cut, and left_out tokens are not read, at the longest row of
    the model's training where that is known: later positions never learned. Raises ValueError for no tokens.
    """
    longest = model.config.max_position_embeddings
    tokenizer.enable_truncation(min(longest, model.config.trained_length or longest))
    encoding = tokenizer.encode(text)
    left_out = sum(part.special_tokens_mask.count(0) for part in encoding.overflowing)
    ids = torch.tensor([encoding.ids])
    special = [tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[PAD]")]
    places = eligible_positions(ids, special)[0].nonzero()  # [n, 1]
    if len(places) == 0:
        raise ValueError(f"the text {text!r} has no tokens: there is nothing to show")

    entropies = []
    guesses = []
    for place in places:  # [1]
        row = ids.clone()
        if reading == "blank":
            row[0, place] = tokenizer.token_to_id("[MASK]")
        with evaluating(model):
            logits = logits_at(model, row, place[None])[0, 0]  # [V]
        entropies.append(prediction_entropy(logits).item())
        probability, best = logits.softmax(-1).max(-1)
        guesses.append(f"{tokenizer.id_to_token(best.item())} {probability:.0%}")
    if not all(map(math.isfinite, entropies)):
        raise ValueError("the model's predictions are not finite, so its weights are damaged")

    picks = {}
    entropy = torch.tensor([entropies])
    eligible = torch.ones_like(entropy, dtype=torch.bool)
    for rule in RULES:
        picks[rule] = select_positions(rule, eligible, mask_ratio, entropy, generator=generator)[0].tolist()
    tokens = [encoding.tokens[place] for place in places]
    return Sentence(tokens, entropies, guesses, picks, left_out)


def picture(sentences: list[Sentence], legend: str, style: str) -> str:
    """A line per token: entropy in nats and as a bar, guess, a square under each rule that hides it."""
    escape = html.escape if style == HTML else str
    highest = max(1e-9, *(nats for sentence in sentences for nats in sentence.entropies))
    lines = [escape(legend)]
    for tokens, entropies, guesses, picks, left_out in sentences:
        width = max(map(len, ["token", *tokens]))
        wide = max(map(len, ["guess", *guesses]))
        lines += ["", f"{'token':<{width}}  nats {'':8} {'guess':<{wide}} {' '.join(picks)}"]
        for i, token in enumerate(tokens):
            level = entropies[i] / highest
            padded = escape(f"{token:<{width}}")
            shown = style.format(text=padded, shade=228 - 6 * round(5 * level), light=100 - 40 * level)
            guess = escape(f"{guesses[i]:<{wide}}")
            marks = " ".join(("■" if pick[i] else "·").center(len(rule)) for rule, pick in picks.items())
            lines.append(f"{shown} {entropies[i]:5.2f} {'█' * round(8 * level):<8} {guess} {marks}".rstrip())
        if left_out:
            lines.append(f"{left_out:,} more tokens are not read: they stand beyond the model's longest row")
        if "[UNK]" in tokens:
            lines.append("WARNING: [UNK] stands for pieces that the vocabulary lacks")
    return "\n".join(lines)


def main(argv=None):
    """Show how unsure a checkpoint is of each token of a text, its guess, and what each rule would mask."""
    from model import BertForMaskedLM, explain, load_tokenizer  # the rest of this file needs no model.py

    parser = ArgumentParser(description=main.__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, metavar="FOLDER", help="checkpoint folder, ours or Hugging Face's")
    add("--text", action="append", default=[], help="what to read; may be given several times")
    add("--file", default="", help="text file to read line by line")
    add("--reading", default="blank", choices=["blank", "visible"], help="each token hidden alone, or seen")
    add("--mask-ratio", default=0.15, type=float, help="share of the tokens each rule masks")
    add("--seed", default=0, type=int, help="of the rules that draw")
    add("--html", default="", metavar="FILE", help="write a page as well")
    o = parser.parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without these characters shows "?"
    try:
        lines = Path(o.file).read_text(encoding="utf-8").splitlines() if o.file else []
        texts = o.text + [line for line in lines if line.strip()]
        if not texts:
            raise ValueError("there is nothing to read: give --text, or a --file with lines")
        tokenizer = load_tokenizer(o.model)
        size = tokenizer.get_vocab_size()
        model = BertForMaskedLM.from_pretrained(o.model, vocab_size=size)
        rng = torch.Generator().manual_seed(o.seed)
        sentences = [read_sentence(model, tokenizer, t, o.reading, o.mask_ratio, rng) for t in texts]

        hidden = "each token hidden alone" if o.reading == "blank" else "no token hidden"
        legend = f"""\
{o.model}, {o.reading} reading: {hidden}
token   the redder, the less sure of it is the model
nats    how unsure: entropy, from 0 to {math.log(size):.2f}
guess   its best word here, with its probability
■       a rule would mask this token ({o.mask_ratio:.0%} of all)"""
        coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        print(picture(sentences, legend, COLOUR if coloured else "{text}"))
        if o.html:
            page = PAGE.format(model=html.escape(o.model), text=picture(sentences, legend, HTML))
            Path(o.html).write_text(page, encoding="utf-8")
            print(f"written to {o.html}")
    except Exception as error:
        sys.exit(f"masking.py: {explain(error)}")


if __name__ == "__main__":
    main()
