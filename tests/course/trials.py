"""What a student's functions are asked when they are graded: one function for each exercise.

A trial holds inputs, drawn from a seed, and no answers. grade.py runs the same trials with the reference, in
another process, and compares. This side reports plain numbers, a line of JSON for each question, and cannot
say whether they are right. Before the student's functions are asked this process gives up what no exercise
needs: files outside of its folder and of Python's own, other processes, sockets, more memory.
"""

import json
import math
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from waiting import without_waiting

MASK = 1


class Look:
    """look(concept, name, function) calls the function and notes what it returns, as plain numbers.

    patience: seconds for a question, 0 for no limit. A concept in which one took longer is asked no further,
    so that a loop without end costs its own concepts; the process has a limit besides.
    """

    def __init__(self, note, patience=0.0):
        self.note = note  # called with a dict for each question
        self.patience = patience
        self.given_up = set()  # concepts

    def __call__(self, concept, name, function, close=1e-4):
        line = {"concept": concept, "name": name, "close": close}
        try:
            if concept in self.given_up:
                raise TimeoutError("not asked any more")
            line |= plain(self.in_time(function))
        except (Exception, SystemExit) as error:
            line |= {"error": type(error).__name__, "message": str(error)[:300]}
            self.given_up |= {concept} if isinstance(error, TimeoutError) else set()
        self.note(line)

    def in_time(self, function):
        """What the function returns. Raises TimeoutError where it takes longer than `patience`."""
        if not self.patience:
            return function()

        def ring(number, frame):
            raise TimeoutError(f"no answer after {self.patience:g} seconds: a loop that does not end?")

        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, self.patience)
        try:
            return function()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def plain(value) -> dict:
    """A tensor, array, number or word as {"shape": [...], "values": [...]} or {"word": ...}."""
    if isinstance(value, str):
        return {"word": value}
    if isinstance(value, torch.Tensor):
        value = value.detach().double().numpy()
    array = np.asarray(value, dtype=np.float64)
    return {"shape": list(array.shape), "values": array.ravel().tolist()}


def generator(rng) -> torch.Generator:
    """A generator with a seed of its own."""
    return torch.Generator().manual_seed(int(rng.integers(2**31)))


def normal(rng, *shape, dtype=torch.float64):
    """Normal numbers."""
    return torch.from_numpy(rng.standard_normal(shape)).to(dtype)


def subset(rng, *shape, share=0.6):
    """bool, in every row at least one True and, where there is room, one False."""
    chosen = rng.random(shape) < share
    chosen[..., 0] = True
    chosen[..., -1] = shape[-1] == 1
    return torch.from_numpy(rng.permuted(chosen, axis=-1))


def spread(runs):
    """Mean and standard deviation over the first dimension: what dropout does, whatever it draws."""
    return torch.stack((runs.mean(0), runs.std(0)))


# ---- model.py ----


def exercise_1(look, rng):
    from model import BertConfig, SelfAttention, attention

    for width in rng.choice([4, 8, 16, 32], 2, replace=False):
        query, key, value = normal(rng, 3, 2, 2, 5, width).unbind(0)
        look("weights", f"D = {width}", partial(attention, query, key, value))
        look("weights", f"D = {width}, large scores", partial(attention, 5 * query, key, value))
        fewer = (normal(rng, 2, 2, 3, width), key, value)
        look("weights", f"D = {width}, fewer queries than keys", partial(attention, *fewer))
        for name, shape in (("keys", (2, 1, 1, 5)), ("each query", (2, 1, 5, 5)), ("one row", (5,))):
            mask = subset(rng, *shape)
            look("mask", f"D = {width}, a mask of {name}", partial(attention, query, key, value, mask))
            far = partial(attention, 1e4 * query, key, value, mask)
            look("mask", f"D = {width}, a mask of {name}, scores far below 0", far)

    query, key, value = normal(rng, 3, 1, 2, 4, 8).unbind(0)
    many = [tensor.expand(3000, 2, 4, 8) for tensor in (query, key, value)]
    torch.manual_seed(int(rng.integers(2**31)))
    look("dropout", "mean and spread", lambda: spread(attention(*many, dropout=0.3)), 0.15)

    config = BertConfig(hidden_size=24, num_attention_heads=int(rng.choice([2, 3, 4])))
    torch.manual_seed(int(rng.integers(2**31)))
    layer = SelfAttention(config).double().eval()
    x = normal(rng, 2, 6, 24)
    real = subset(rng, 2, 1, 1, 6)
    look("heads", f"{config.num_attention_heads} heads", partial(layer, x))
    look("heads", f"{config.num_attention_heads} heads with padding", partial(layer, x, real))
    layer.train()
    layer.dropout = 0.4
    look("dropout", "heads in training", lambda: spread(layer(x[:1].expand(4000, 6, 24), real[:1])), 0.1)


def exercise_2(look, rng):
    from model import BertConfig, BertEmbeddings

    longest = int(rng.integers(9, 20))
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_attention_heads": 2}
    config = BertConfig(**sizes, max_position_embeddings=longest, hidden_dropout_prob=0.4)
    torch.manual_seed(int(rng.integers(2**31)))
    embeddings = BertEmbeddings(config).double().eval()
    for parameter in embeddings.parameters():
        nn.init.normal_(parameter)
    ids = torch.from_numpy(rng.integers(0, 20, (3, 7)))
    segments = torch.from_numpy(rng.integers(0, 2, (3, 7)))
    look("sum", "words, positions, segments", partial(embeddings, ids, segments))
    look("sum", "a shorter row", partial(embeddings, ids[:, :4], segments[:, :4]))
    look("segments", "none given", partial(embeddings, ids))
    look("segments", "all in the second", partial(embeddings, ids, torch.ones_like(ids)))
    row = torch.from_numpy(rng.integers(0, 20, (1, longest + 1)))
    look(
        "lengths",
        "as long as there are positions",
        partial(embeddings, row[:, :longest], row[:, :longest] % 2),
    )
    look("lengths", "longer than there are positions", partial(embeddings, row, row % 2))
    embeddings.train()
    many = partial(embeddings, ids[:1].expand(4000, 7), segments[:1].expand(4000, 7))
    look("dropout", "mean and spread", lambda: spread(many()), 0.2)


class Twice(nn.Module):
    """Stands for attention; what it returns depends on the mask that it is given."""

    def forward(self, x, mask=None):
        return 2 * x if mask is None else x * mask[:, 0, 0, :, None]


def exercise_3(look, rng):
    from model import AddNorm, BertConfig, BertLayer

    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    torch.manual_seed(int(rng.integers(2**31)))
    block = AddNorm(12, BertConfig(**sizes, hidden_dropout_prob=0.5)).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x = normal(rng, 2, 3, 12)
    residual = 3 * normal(rng, 2, 3, 8)
    look("add and norm", "a sum", lambda: block.eval()(x, residual))
    look("add and norm", "a large residual", lambda: block.eval()(x, 100 * residual))
    many = (x[:1].expand(8000, 3, 12), residual[:1].expand(8000, 3, 8))
    look("dropout", "mean and spread", lambda: spread(block.train()(*many)), 0.15)

    for act in ("relu", "gelu", "gelu_new"):
        torch.manual_seed(int(rng.integers(2**31)))
        layer = BertLayer(BertConfig(**sizes, hidden_act=act)).double().eval()
        layer.attention["self"] = Twice()
        for part in (layer.attention["output"], layer.output):
            gain = normal(rng, 8)
            part.forward = lambda x, residual, part=part, gain=gain: residual * gain + part.dense(x)
        mask = subset(rng, 2, 1, 1, 3).double()
        look("layer", f"two blocks, {act}", partial(layer, normal(rng, 2, 3, 8)))
        look("layer", f"two blocks with a mask, {act}", partial(layer, normal(rng, 2, 3, 8), mask))


def exercise_4(look, rng):
    from model import BertConfig, MaskedLMHead

    sizes = {"vocab_size": 20, "hidden_size": 8, "num_attention_heads": 2}
    words = nn.Embedding(20, 8).double()
    nn.init.normal_(words.weight, generator=generator(rng))
    seed = int(rng.integers(2**31))

    def make(**changes):
        head = MaskedLMHead(BertConfig(**sizes, **changes), words).double()
        for name, parameter in head.named_parameters():
            drawn = torch.Generator().manual_seed(seed + len(name))
            if parameter is not words.weight:
                nn.init.normal_(parameter, generator=drawn)
        return head

    x = normal(rng, 2, 3, 8)
    for act in ("gelu", "relu", "gelu_new"):
        look("logits", act, lambda act=act: make(hidden_act=act)(x))
    look("logits", "one token", lambda: make()(x[0, 0]))
    look("tied", "one matrix", lambda: make().decoder.weight is words.weight)
    look("tied", "one bias", lambda: bool((head := make()).bias is head.decoder.bias))
    look("tied", "gradient of the embeddings", lambda: slope(make(hidden_act="relu"), x, words))
    look(
        "names", "of the checkpoint", lambda: str({n: tuple(p.shape) for n, p in make().state_dict().items()})
    )
    eps = float(rng.choice([1e-12, 1e-3, 1e-2]))
    look("names", "eps", lambda: make(layer_norm_eps=eps).transform["LayerNorm"].eps, 1e-15)


def slope(head, x, words):
    """The gradient that the word embeddings get from a head."""
    words.weight.grad = None
    head(x).logsumexp(-1).sum().backward()
    return words.weight.grad


# ---- masking.py ----


class Model(nn.Module):
    """Stands for a masked LM: logits depend on all tokens that are read, and on where each stands."""

    def __init__(self, rng, length=8, dropout=0.0):
        super().__init__()
        self.words = nn.Parameter(normal(rng, 30, 30, dtype=torch.float32))
        self.at = nn.Parameter(normal(rng, length, 30, dtype=torch.float32))
        self.drop = nn.Sequential(nn.Dropout(dropout))
        self.passes = 0
        self.asked = 0

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, places=None):
        self.passes += 1
        read = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.words[input_ids]
        x = x + 2 * (x * read[..., None]).sum(1, keepdim=True) / read.sum(1)[:, None, None] + self.at
        if token_type_ids is not None:
            x = x + token_type_ids[..., None] * self.at[0]
        if places is not None:
            self.asked = places.shape[1]
            x = x.take_along_dim(places[..., None], 1)
        return self.drop(x)


class Plain(Model):
    """The same without `places`: a model of somebody else."""

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        return super().forward(input_ids, attention_mask, token_type_ids)


def exercise_5(look, rng):
    from masking import blank_entropy, prediction_entropy

    width = int(rng.integers(20, 200))
    for scale in (0.3, 3.0, 40.0):
        logits = scale * normal(rng, 3, 4, width, dtype=torch.float32)
        concept = "entropy" if scale < 10 else "numbers"
        look(concept, f"{width} logits of size {scale:g}", partial(prediction_entropy, logits))
        raised = logits + 100 * scale
        look("numbers", f"{width} logits around {100 * scale:g}", partial(prediction_entropy, raised))
    look("entropy", "one row", partial(prediction_entropy, logits[0, 0] / 40))
    for shift in (2e4, -2e4, 3e38):
        level = torch.full((2, int(rng.integers(3, 9))), shift)
        look("numbers", f"equal logits of {shift:g}", partial(prediction_entropy, level))
    certain = torch.full((5,), -90.0)
    certain[int(rng.integers(5))] = 90.0
    look(
        "numbers",
        "a certain word, and a coin",
        lambda: prediction_entropy(torch.stack((certain, certain.abs()))),
    )
    impossible = torch.tensor([*rng.standard_normal(4), -math.inf, -math.inf], dtype=torch.float32)
    look("numbers", "words that cannot be", partial(prediction_entropy, impossible))
    steep = torch.stack((logits[0, 0] - 300, logits[0, 1] + 300))
    look("numbers", "rows far from each other", partial(prediction_entropy, steep))
    for dtype in (torch.bfloat16, torch.float64):
        rough = (2 * normal(rng, 3, 1500)).to(dtype)
        look("precision", f"{dtype}", partial(prediction_entropy, rough))
        look("precision", f"{dtype}, its dtype", lambda rough=rough: str(prediction_entropy(rough).dtype))

    rows = torch.from_numpy(rng.integers(2, 30, (4, 8)))
    candidates = torch.from_numpy(rng.permuted(np.arange(8) < np.array([[4], [2], [1], [0]]), axis=1))
    for kind in (Model, Plain):
        model = kind(rng).eval()
        for wide in (None, 4, 6):
            ask = partial(blank_entropy, model, rows, candidates, MASK, wide)
            look("blank reading", f"{kind.__name__}, width {wide}", ask)
        model.passes = 0
        look(
            "blank reading",
            f"{kind.__name__}, passes",
            lambda ask=ask, model=model: [ask()[0, 0], model.passes],
        )
    model = Model(rng).eval()
    ask = partial(blank_entropy, model, rows, candidates, MASK, 6)
    look("care", "places that are asked for", lambda: [ask().sum(), model.asked])
    look("care", "waits for no device", lambda: without_waiting(ask))
    nowhere = torch.zeros_like(candidates)
    look("care", "no candidate at all", partial(blank_entropy, model, rows, nowhere, MASK))
    real = torch.from_numpy((np.arange(8) < rng.integers(3, 9, (4, 1))).astype(np.int64))
    segments = torch.from_numpy(rng.integers(0, 2, (4, 8)))
    look("care", "padding", lambda: ask(attention_mask=real))
    look("care", "segments", lambda: ask(token_type_ids=segments))
    training = Model(rng, dropout=0.5).train()
    ask = partial(blank_entropy, training, rows, candidates, MASK)
    look("care", "a model in training", ask)
    look("care", "and afterwards", lambda: [ask().requires_grad, *(m.training for m in training.modules())])
    look("care", "what was given", lambda: torch.stack((rows, candidates)))


def exercise_6(look, rng):
    from masking import RULES, mask_budget

    ratios = [0.15, 0.25, 0.5, 1.0, *np.round(rng.uniform(0.02, 0.98, 6), 3).tolist()]
    table = [(n, ratio) for n in (0, 1, 2, 5, 10, 30, 126) for ratio in ratios]
    look("budget", "a table", lambda: [mask_budget(n, ratio) for n, ratio in table])
    for bad in (0.0, -float(rng.random()), 1.0 + float(rng.random()), math.nan):
        look("budget", f"a ratio of {bad:.2f}", lambda bad=bad: mask_budget(10, bad))

    for trial in range(3):
        size = int(rng.integers(9, 24))
        levels = rng.choice(10_000, (6, size + 6), replace=False) / 1000  # distinct
        levels = torch.from_numpy(levels * (1, 1, 8)[trial] + (0, 60, 0)[trial]).float()
        inside = torch.from_numpy(rng.permuted(np.arange(size + 6) < size, axis=0)).expand(6, size + 6)
        for rule, concept in (
            ("high", "high and low"),
            ("low", "high and low"),
            ("mid", "mid"),
            ("both", "both"),
        ):
            for k in (2, 3 + size % 2, size // 2 * 2 - 2):
                k += rule == "mid" and (size - k) % 2  # of an even pool the two in the middle are a tie
                ask = partial(RULES[rule], levels, inside, 1.0, None)
                name = f"`{rule}`: {k} of {size}, with more outside of the pool"
                look(concept, name, lambda ask=ask, k=k, inside=inside: taken(ask(), inside, k))
            look(
                concept,
                f"`{rule}` waits for no device",
                lambda a=ask, i=inside: taken(without_waiting(a), i, 2),
            )

    for temperature in (0.5, 1.0, float(rng.uniform(1.5, 3))):
        weights = torch.from_numpy(rng.uniform(0.2, 5, 5)).float()
        many = weights.expand(30000, 5)
        draw = partial(
            RULES["sample"], many, torch.ones(30000, 5, dtype=torch.bool), temperature, generator(rng)
        )
        name = f"entropies {[round(w, 2) for w in weights.tolist()]}, tau {temperature:.1f}: how often drawn"
        look("sample", name, lambda draw=draw: taken(draw(), None, 2).mean(0), 0.025)
    few = torch.zeros(200, 4).index_fill(1, torch.tensor(2), 0.3)
    everywhere = torch.ones(200, 4, dtype=torch.bool)
    draw = partial(RULES["sample"], few, everywhere, 1.0, generator(rng))
    look("sample", "entropies of 0 come last", lambda: taken(draw(), None, 1).mean(0))
    look("sample", "and are finite", lambda: draw().isfinite().all())
    look("sample", "waits for no device", lambda: taken(without_waiting(draw), None, 1).mean(0))
    seed = int(rng.integers(1000))
    entropy = torch.from_numpy(rng.uniform(0.5, 2, (200, 4))).float()
    look(
        "sample",
        "same seed, same draw; another seed, another",
        lambda: repeated(RULES, entropy, everywhere, seed),
    )


def taken(score, pool, k):
    """Which k positions of each row have the highest scores: 0 or 1, [B, T]."""
    if pool is not None:
        score = score.masked_fill(~pool, -math.inf)
    return torch.zeros(score.shape).scatter(-1, score.topk(k).indices, 1.0)


def repeated(rules, entropy, pool, seed):
    """Whether two draws with one seed are alike, and two with different seeds."""
    seeds = (seed, seed, seed + 1)
    one, again, other = (rules["sample"](entropy, pool, 1.0, torch.Generator().manual_seed(s)) for s in seeds)
    return [torch.equal(one, again), torch.equal(one, other)]


def exercise_7(look, rng):
    from masking import corrupt, eligible_positions

    size = int(rng.integers(900, 1100))
    special = [0, 3, 1, int(rng.integers(4, 50)), 3]  # in no order, one of them twice
    words = [i for i in range(size) if i not in special]
    rows = torch.from_numpy(rng.choice(words, (500, 600)))
    chosen = torch.from_numpy(rng.random((500, 600)) < 0.7)
    for scheme in ("80-10-10", "100-0-0"):
        ask_corruption(look, scheme, int(rng.integers(2**31)), (rows, chosen, 3, size, special, scheme))
    look("care", "another scheme", lambda: corrupt(rows, chosen, 3, size, special, "90-5-5"))

    small = int(rng.integers(12, 20))
    never = [small - 2, 2, int(rng.integers(3, 8)), 0, 2]
    same = torch.full((300, 1000), 9)
    everywhere = torch.ones_like(same, dtype=torch.bool)
    draw = partial(corrupt, same, everywhere, 2, small, never, "80-10-10", generator(rng))
    look("uniform", f"of {small} words without {sorted(set(never))}", lambda: counts(draw()[0], small), 0.006)

    ids = torch.from_numpy(rng.integers(0, 12, (6, 20)))
    for ids_never in ([int(rng.integers(12))], rng.choice(12, 4, replace=False).tolist(), []):
        look("eligible", f"never {ids_never}", partial(eligible_positions, ids, ids_never))
        ask_no_wait = partial(without_waiting, partial(eligible_positions, ids, ids_never))
        look("eligible", f"never {ids_never}, waits for no device", ask_no_wait)


def ask_corruption(look, scheme, seed, given):
    """The questions about one scheme."""
    from masking import corrupt

    rows, chosen = given[0].clone(), given[1].clone()

    @cache
    def new(seed):
        return corrupt(*given, torch.Generator().manual_seed(seed))

    def without_wait():
        return without_waiting(partial(corrupt, *given, torch.Generator().manual_seed(seed)))

    look("80-10-10", f"{scheme}: shares", lambda: shares(rows, chosen, new(seed)[0]), 0.006)
    look("80-10-10", f"{scheme}: elsewhere", lambda: (new(seed)[0] == rows)[~chosen].all())
    look("labels", f"{scheme}: labels", lambda: new(seed)[1][:40])
    look("labels", f"{scheme}: shape", lambda: new(seed)[1].shape)
    look("care", f"{scheme}: waits for no device", lambda: shares(rows, chosen, without_wait()[0]), 0.006)
    look("care", f"{scheme}: the same seed", lambda: (without_wait()[0] == new(seed)[0]).all())
    look("care", f"{scheme}: another seed", lambda: (new(seed + 1)[0] == new(seed)[0]).all())
    look("care", f"{scheme}: what was given", lambda: [(given[0] == rows).all(), (given[1] == chosen).all()])


def shares(rows, chosen, new):
    """Of what was chosen: the share of [MASK], of other words and of unchanged ones."""
    before, after = rows[chosen], new[chosen]
    parts = (after == 3, (after != 3) & (after != before), after == before)
    return torch.stack([part.double().mean() for part in parts])


def counts(new, size):
    """How often each word stands there, [MASK] (2) and the word that was there (9) left out; as shares."""
    found = torch.bincount(new.flatten(), minlength=size).double()
    found[[2, 9]] = 0
    return found / found.sum()


# ---- train.py ----


def exercise_8(look, rng):
    from train import mlm_loss

    for size in (int(rng.integers(5, 20)), int(rng.integers(40, 90))):
        logits = 4 * normal(rng, 4, 6, size, dtype=torch.float32)
        labels = torch.from_numpy(rng.integers(0, size, (4, 6)))
        labels[:2, :3] = logits[:2, :3].argmax(-1)  # some are correct
        labels[0, 0] = 0
        labels[torch.from_numpy(rng.random((4, 6)) < 0.4)] = -100
        logits.requires_grad_()
        look("loss", f"{size} words", lambda z=logits, y=labels: mlm_loss(z, y)[0])
        look(
            "loss",
            f"{size} words, gradient",
            lambda z=logits, y=labels: torch.autograd.grad(mlm_loss(z, y)[0], z)[0],
        )
        look("loss", f"{size} words, one row", lambda z=logits, y=labels: mlm_loss(z[2], y[2])[0])
        look("correct", f"{size} words", lambda z=logits, y=labels: mlm_loss(z, y)[1])
        look(
            "loss",
            f"{size} words, waits for no device",
            lambda z=logits, y=labels: without_waiting(lambda: mlm_loss(z, y)[0]),
        )
    ties = torch.zeros(9, 9).bfloat16()
    look("correct", "all logits alike", lambda: mlm_loss(ties, torch.arange(9))[1])
    none = torch.full((4, 6), -100)
    look("numbers", "nothing asked", lambda: torch.stack(mlm_loss(logits, none)))
    look(
        "numbers",
        "nothing asked, gradient",
        lambda: torch.autograd.grad(mlm_loss(logits, none)[0], logits)[0],
    )
    steep = torch.tensor([[float(rng.integers(500, 2000)), 0.0]], requires_grad=True)
    for label in (0, 1):
        target = torch.tensor([label])
        look("numbers", f"a steep choice, word {label}", lambda y=target: mlm_loss(steep, y)[0])
        look(
            "numbers",
            f"its gradient, word {label}",
            lambda y=target: torch.autograd.grad(mlm_loss(steep, y)[0], steep)[0],
        )
    rough = logits.detach().bfloat16()
    look("numbers", "bfloat16", lambda: mlm_loss(rough, labels)[0], 1e-5)
    look("numbers", "dtypes", lambda: str([v.dtype for v in mlm_loss(rough, labels)]))
    look("numbers", "shapes", lambda: str([tuple(v.shape) for v in mlm_loss(rough, labels)]))


class Small(nn.Module):
    """The kinds of parameters BERT has: embeddings, a tied decoder with a bias, LayerNorm."""

    def __init__(self):
        super().__init__()
        self.words, self.LayerNorm, self.decoder = nn.Embedding(20, 8), nn.LayerNorm(8), nn.Linear(8, 20)
        self.decoder.weight = self.words.weight


def exercise_9(look, rng):
    from train import learning_rate, make_optimizer

    for _ in range(3):
        steps = int(rng.integers(20, 200))
        warmup = int(rng.integers(2, steps - 2))
        rates = partial(map, lambda s, n=steps, w=warmup: learning_rate(s, n, w, 0.7), range(steps))
        look("two lines", f"{steps} steps, warm-up {warmup}", lambda rates=rates: list(rates()), 1e-7)
        for name, w in (("none", 0), ("one step", 1), ("all steps", steps)):
            edge = partial(map, lambda s, n=steps, w=w: learning_rate(s, n, w, 0.7), range(steps))
            look("edges", f"{steps} steps, warm-up {name}", lambda edge=edge: list(edge()), 1e-7)

    torch.manual_seed(int(rng.integers(2**31)))
    lr, decay = rng.uniform(0.01, 0.2, 2).tolist()
    for frozen in ("", "words.weight", "LayerNorm.bias"):
        model = Small()
        if frozen:
            model.get_parameter(frozen).requires_grad_(False)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape) if parameter.requires_grad else None
        ask = partial(make_optimizer, model, lr, decay)
        look("groups", f"who decays, frozen: {frozen or 'none'}", lambda m=model, a=ask: str(groups(m, a())))
        look(
            "groups",
            f"three updates, frozen: {frozen or 'none'}",
            lambda m=model, a=ask: updated(m, a()),
            1e-5,
        )
    look("groups", "settings", lambda: settings(make_optimizer(Small(), lr, decay)))


def groups(model, optimizer):
    """{name of a parameter: weight decay and rate}; a parameter that is there twice counts twice."""
    known = {id(p): name for name, p in model.named_parameters()}
    pairs = [(known[id(p)], g) for g in optimizer.param_groups for p in g["params"]]
    return sorted((name, round(g["weight_decay"], 9), round(g["lr"], 9)) for name, g in pairs)


def updated(model, optimizer):
    """The weights after three updates by the same gradient."""
    for _ in range(3):
        optimizer.step()
    return torch.cat([p.flatten() for p in model.parameters()])


def settings(optimizer):
    """What AdamW was told."""
    group = optimizer.param_groups[0]
    names = ("betas", "eps", "amsgrad", "maximize", "fused")
    return str([isinstance(optimizer, torch.optim.AdamW), *(group[name] for name in names)])


# ---- glue_eval.py and distill.py ----


def exercise_10(look, rng):
    import glue_eval as glue

    for classes in (2, 2, 3, int(rng.integers(4, 7))):
        size = int(rng.integers(20, 300))
        y, p = rng.integers(0, classes, (2, size))
        p = np.where(rng.random(size) < 0.4, y, p)
        look("Matthews", f"{classes} classes, {size} rows", partial(glue.matthews_corrcoef, y, p))
        look("accuracy", f"{classes} classes, {size} rows", partial(glue.accuracy, y, p))
        near = p + rng.choice([0, 0, 0.05, -0.3], size)
        look("accuracy", f"{size} guesses that are no whole numbers", partial(glue.accuracy, y, near))
        if classes == 2:
            look("F1", f"{size} rows", partial(glue.f1_score, y, p))
            look("F1", f"{size} rows, classes swapped", partial(glue.f1_score, 1 - y, 1 - p))
            look("F1", f"{size} rows, always 1", partial(glue.f1_score, y, np.ones(size)))
    only = int(rng.integers(5, 9))
    look(
        "Matthews",
        "a class that only guesses have",
        partial(glue.matthews_corrcoef, [0, 0, 1, 1], [0, only, 1, 1]),
    )
    look("Matthews", "always wrong", partial(glue.matthews_corrcoef, [0, 1, 1, 0], [1, 0, 0, 1]))

    for size in (5, int(rng.integers(20, 60)), 400):
        x = rng.standard_normal(size)
        for sign in (1, -1):
            other = sign * x**3 + rng.standard_normal(size)
            look("correlations", f"Pearson, {size} rows", partial(glue.pearsonr, x, other))
            ties = np.round(sign * x * 2 + rng.standard_normal(size))
            look(
                "correlations",
                f"Spearman, {size} rows with ties",
                partial(glue.spearmanr, np.round(2 * x), ties),
            )
            look("correlations", f"Spearman, {size} rows", partial(glue.spearmanr, x, other))

    constant = [float(rng.choice([2.7, 0.1, 1.1, 3.3]))] * 3
    for name in ("pearsonr", "spearmanr"):
        metric = getattr(glue, name)
        look("edges", f"{name} of a constant", partial(metric, [1.0, 2.0, 4.0], constant), 1e-12)
        look("edges", f"{name} of another constant", partial(metric, constant, [1.0, 2.0, 4.0]), 1e-12)
    look("edges", "Matthews of one answer", partial(glue.matthews_corrcoef, [0, 1, 1, 0], [1, 1, 1, 1]))
    look("edges", "F1 of nothing", partial(glue.f1_score, [0, 0, 0], [0, 0, 0]))
    for name in ("accuracy", "f1_score", "matthews_corrcoef", "pearsonr", "spearmanr"):
        metric = getattr(glue, name)
        right = rng.permutation([0, 1, 1, 0, 1, 0, 0]), rng.permutation([0, 1, 1, 0, 1, 1, 0])
        look("edges", f"{name} of numbers", partial(metric, *right))
        for bad in (([], []), ([1, 0], [1]), ([1, 0], [1, math.nan])):
            look("edges", f"{name} refuses {bad}", partial(metric, *bad))


def exercise_11(look, rng):
    from distill import kd_loss

    size = int(rng.integers(5, 30))
    student, teacher = 2 * normal(rng, 2, 3, 4, size).unbind(0)[0], 2 * normal(rng, 3, 4, size)
    student = student.requires_grad_()
    labels = torch.from_numpy(rng.integers(0, size, (3, 4)))
    labels[torch.from_numpy(rng.random((3, 4)) < 0.3)] = -100
    labels[0, 0], labels[0, 1] = -100, 0

    for temperature in (1.0, float(rng.uniform(1.5, 3)), float(rng.uniform(4, 9))):
        concept = "KL" if temperature == 1 else "T squared"
        ask = partial(kd_loss, student, teacher, labels, temperature)
        look(concept, f"T = {temperature:.2f}", ask)
        look(
            concept,
            f"T = {temperature:.2f}, gradient",
            lambda ask=ask: torch.autograd.grad(ask(), student)[0],
        )
    once = partial(kd_loss, student, teacher, labels, 1.0)
    look("KL", "a teacher that is sure", partial(kd_loss, student, 8 * teacher, labels, 1.0))
    look("KL", "a student that is its teacher", partial(kd_loss, teacher, teacher, labels, 1.0))

    none = torch.full((3, 4), -100)
    look("numbers", "nothing asked", partial(kd_loss, student, teacher, none, 2.0))
    impossible = teacher.clone()
    impossible[..., 0] = -2000.0
    look("numbers", "a word the teacher rules out", partial(kd_loss, student, impossible, labels, 1.0))
    for dtype in (torch.bfloat16, torch.float32):
        rough = (student.detach().to(dtype), teacher.to(dtype), labels, 1.0)
        look("numbers", f"{dtype}", partial(kd_loss, *rough), 1e-3)
        look("numbers", f"{dtype}, its dtype", lambda rough=rough: str(kd_loss(*rough).dtype))
    look("numbers", "float64, its dtype", lambda: str(once().dtype))


# ---- the processes that are graded ----


def ask(number: int, seeds, note, patience=0.0):
    """All questions of an exercise, with inputs drawn from each of the seeds."""
    look = Look(note, patience)
    for seed in seeds:
        globals()[f"exercise_{number}"](look, np.random.default_rng(seed))


def lock(folder: Path, seconds: int, megabytes: int):
    """From here on: no file outside of this folder and Python's own, no process, no socket, so much memory.

    It holds for what Python sees; code in C may pass it by. Who grades strangers uses a container as well.
    """
    import resource  # no part of Windows

    size = 0
    with suppress(OSError, ValueError):
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = {resource.RLIMIT_CPU: seconds, resource.RLIMIT_FSIZE: 2**24, resource.RLIMIT_CORE: 0}
    limits |= {resource.RLIMIT_AS: size + megabytes * 2**20} if size else {}
    for kind, limit in limits.items():
        with suppress(OSError, ValueError):
            resource.setrlimit(kind, (limit, limit))

    own = (folder, sys.prefix, sys.base_prefix, "/proc/self", "/proc/cpuinfo", "/sys", "/dev")
    readable = tuple(os.path.realpath(path) for path in own)
    closed = ("subprocess", "os", "socket", "ctypes", "shutil", "pty", "signal", "gc", "fcntl", "mmap")
    harmless = ("os.listdir", "os.scandir", "os.putenv", "os.unsetenv")

    def watch(event, arguments):
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(mode, str) and set(mode) & set("wax+") or (flags or 0) & 3
            if isinstance(path, int) or writes or not os.path.realpath(path).startswith(readable):
                raise PermissionError(f"a function of an exercise opens {path}")
        elif event.partition(".")[0] in closed and event not in harmless:
            raise PermissionError(f"a function of an exercise uses {event}")

    sys.addaudithook(watch)


def answer(folder: Path, number: int, seconds: int, megabytes: int, seeds):
    """In a process of its own: ask the programs of this folder, and write what comes to observed.jsonl."""
    sys.path.insert(0, str(folder))
    with open(folder / "observed.jsonl", "w", encoding="utf-8") as file:

        def note(line):
            file.write(json.dumps(line) + "\n")
            file.flush()

        lock(folder, seconds, megabytes)
        ask(number, seeds, note, seconds / 4)


def start(job: dict) -> int:
    """A process that answers; its number."""
    if process := os.fork():
        return process
    code = 1
    try:
        os.setsid()
        folder = Path(job.pop("folder"))
        os.chdir(folder)
        nothing = os.open(os.devnull, os.O_RDWR)
        errors = os.open(folder / "errors.txt", os.O_WRONLY | os.O_CREAT)
        for number, target in ((0, nothing), (1, nothing), (2, errors)):
            os.dup2(target, number)
        answer(folder, **job)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def serve():
    """For each line of JSON on stdin a new process; its exit code is printed, "null" if it had to be stopped.

    Python and torch are loaded once. Nothing of a submission, and no solution, is ever in this process.
    """
    torch.set_num_threads(1)
    torch.optim.AdamW([nn.Parameter(torch.zeros(1))], fused=True).step()  # what torch loads late
    for line in sys.stdin:
        job = json.loads(line)
        process = start(dict(job))
        end = time.monotonic() + job["seconds"]
        done = 0
        while not done and time.monotonic() < end:
            done, status = os.waitpid(process, os.WNOHANG)
            time.sleep(0.01)
        with suppress(OSError):
            os.killpg(process, signal.SIGKILL)
        if not done:
            os.waitpid(process, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status) if done else None), flush=True)


if __name__ == "__main__":
    serve()
