"""Wrong implementations and forgeries, and how many points each may get: `handout.py --check` tries them all.

A row says which exercise, what is wrong, the most points that it may get, and the functions in which a whole
solution was changed. A forgery may get nothing. When the grader gives one of them more, the grader is wrong.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wrong:
    """A solution of one exercise in which these functions, {name: source}, were written wrongly."""

    number: int
    title: str
    most: int  # points
    functions: dict


def attention(body: str) -> dict:
    """The function `attention` with another body."""
    return {"attention": f"def attention(query, key, value, mask=None, dropout=0.0):\n{body}"}


SCORES = "    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])\n"
MASKED = '    scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))\n'
WEIGHTS = "    return F.dropout(scores.softmax(-1), dropout) @ value\n"


def heads(body: str) -> dict:
    """SelfAttention.forward with another body; what comes before is right."""
    begin = "    split = (*x.shape[:2], self.heads, x.shape[2] // self.heads)\n"
    begin += "    q, k, v = (f(x).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))\n"
    begin += "    dropout = self.dropout if self.training else 0.0\n"
    return {"SelfAttention.forward": f"def forward(self, x, mask=None):\n{begin}{body}"}


BACK = "    return out.transpose(1, 2).reshape(x.shape)\n"

ATTENTION = (
    Wrong(1, "all keys alike", 4, attention("    return value.mean(-2, keepdim=True).expand_as(query)\n")),
    Wrong(
        1, "no division", 4, attention(SCORES.replace(" / math.sqrt(query.shape[-1])", "") + MASKED + WEIGHTS)
    ),
    Wrong(
        1,
        "divided by D",
        4,
        attention(SCORES.replace("math.sqrt(query.shape[-1])", "query.shape[-1]") + MASKED + WEIGHTS),
    ),
    Wrong(
        1,
        "softmax over queries",
        4,
        attention(SCORES + MASKED + WEIGHTS.replace("softmax(-1)", "softmax(-2)")),
    ),
    Wrong(
        1,
        "mask after the softmax",
        8,
        attention(
            SCORES + "    weights = F.dropout(scores.softmax(-1), dropout)\n"
            "    weights = weights if mask is None else weights * mask\n"
            "    return weights @ value\n"
        ),
    ),
    Wrong(
        1, "-10,000 instead of -inf", 8, attention(SCORES + MASKED.replace('float("-inf")', "-1e4") + WEIGHTS)
    ),
    Wrong(1, "mask inverted", 8, attention(SCORES + MASKED.replace("~mask", "mask") + WEIGHTS)),
    Wrong(1, "no mask", 8, attention(SCORES + WEIGHTS)),
    Wrong(
        1,
        "dropout on the output",
        9,
        attention(SCORES + MASKED + "    return F.dropout(scores.softmax(-1) @ value, dropout)\n"),
    ),
    Wrong(1, "no dropout", 9, attention(SCORES + MASKED + "    return scores.softmax(-1) @ value\n")),
    Wrong(
        1,
        "not by hand",
        4,
        attention("    return F.scaled_dot_product_attention(query, key, value, mask, dropout)\n"),
    ),
    Wrong(
        1,
        "not by hand, by a detour through the class",
        4,
        attention("    return SelfAttention.forward((query, key, value, mask, dropout), None)\n")
        | {
            "SelfAttention.forward": "def forward(self, x, mask=None):\n"
            "    if isinstance(self, tuple):\n"
            "        return F.scaled_dot_product_attention(*self)\n"
            + heads("    out = F.scaled_dot_product_attention(q, k, v, mask, dropout)\n" + BACK)[
                "SelfAttention.forward"
            ].partition("\n")[2]
        },
    ),
    Wrong(
        1,
        "queries read as keys",
        5,
        heads("    out = F.scaled_dot_product_attention(k, q, v, mask, dropout)\n" + BACK),
    ),
    Wrong(
        1,
        "heads do not read the mask",
        5,
        heads("    out = F.scaled_dot_product_attention(q, k, v, None, dropout)\n" + BACK),
    ),
    Wrong(
        1,
        "heads not swapped back",
        5,
        heads(
            "    out = F.scaled_dot_product_attention(q, k, v, mask, dropout)\n"
            "    return out.reshape(x.shape)\n"
        ),
    ),
    Wrong(
        1,
        "dropout in evaluation",
        5,
        heads("    out = F.scaled_dot_product_attention(q, k, v, mask, self.dropout)\n" + BACK),
    ),
    Wrong(
        1,
        "heads without dropout",
        9,
        heads("    out = F.scaled_dot_product_attention(q, k, v, mask, 0.0)\n" + BACK),
    ),
)


def embeddings(
    words="self.word_embeddings(input_ids)",
    places="self.position_embeddings.weight[:length]",
    segment="self.token_type_embeddings.weight[0]",
    refused="length > longest",
    end="self.dropout(self.LayerNorm(x))",
) -> dict:
    """BertEmbeddings.forward with one part changed."""
    return {
        "BertEmbeddings.forward": "def forward(self, input_ids, token_type_ids=None):\n"
        "    length, longest = input_ids.shape[1], self.position_embeddings.num_embeddings\n"
        f"    if {refused}:\n        raise ValueError\n"
        "    table = self.token_type_embeddings\n"
        f"    segment = {segment} if token_type_ids is None else table(token_type_ids)\n"
        f"    x = {words} + {places} + segment\n"
        f"    return {end}\n"
    }


def add_norm(result: str) -> dict:
    """AddNorm.forward with another result."""
    return {"AddNorm.forward": f"def forward(self, x, residual):\n    return {result}\n"}


def layer(first: str, second: str) -> dict:
    """BertLayer.forward with other lines."""
    return {"BertLayer.forward": f"def forward(self, x, mask=None):\n    y = {first}\n    return {second}\n"}


READ = 'self.attention["output"](self.attention["self"](x, mask), x)'
THINK = 'self.output(self.act(self.intermediate["dense"](y)), y)'


def head(
    tie="self.decoder.weight = word_embeddings.weight",
    eps="config.layer_norm_eps",
    bias="self.decoder.bias",
    act="ACTIVATIONS[config.hidden_act]",
) -> dict:
    """MaskedLMHead.__init__ with one part changed."""
    return {
        "MaskedLMHead.__init__": "def __init__(self, config, word_embeddings):\n"
        "    super().__init__()\n    size = config.hidden_size\n"
        f"    norm = nn.LayerNorm(size, eps={eps})\n"
        '    self.transform = nn.ModuleDict({"dense": nn.Linear(size, size), "LayerNorm": norm})\n'
        "    self.decoder = nn.Linear(size, config.vocab_size)\n"
        f"    {tie}\n    self.bias = {bias}\n    self.act = {act}\n"
    }


MODEL = (
    Wrong(2, "no positions", 0, embeddings(places="0")),
    Wrong(2, "no words", 0, embeddings(words="0")),
    Wrong(2, "no segment where none is given", 4, embeddings(segment="0")),
    Wrong(2, "no LayerNorm", 0, embeddings(end="self.dropout(x)")),
    Wrong(2, "dropout before LayerNorm", 4, embeddings(end="self.LayerNorm(self.dropout(x))")),
    Wrong(2, "no dropout", 4, embeddings(end="self.LayerNorm(x)")),
    Wrong(2, "too long is not refused", 4, embeddings(refused="False")),
    Wrong(2, "just long enough is refused", 4, embeddings(refused="length >= longest")),
    Wrong(
        3,
        "LayerNorm before the addition",
        2,
        add_norm("residual + self.LayerNorm(self.dropout(self.dense(x)))"),
    ),
    Wrong(3, "no residual", 2, add_norm("self.LayerNorm(self.dropout(self.dense(x)))")),
    Wrong(3, "dropout on the sum", 4, add_norm("self.LayerNorm(self.dropout(residual + self.dense(x)))")),
    Wrong(3, "dropout before dense", 4, add_norm("self.LayerNorm(residual + self.dense(self.dropout(x)))")),
    Wrong(3, "no dropout", 4, add_norm("self.LayerNorm(residual + self.dense(x))")),
    Wrong(3, "gelu, whatever was configured", 2, layer(READ, THINK.replace("self.act", "F.gelu"))),
    Wrong(3, "mask not passed on", 2, layer(READ.replace("(x, mask)", "(x)"), THINK)),
    Wrong(3, "second residual from the input", 2, layer(READ, THINK.replace(", y)", ", x)"))),
    Wrong(3, "no feed-forward block", 2, layer(READ, "y")),
    Wrong(4, "copied, not tied", 1, head(tie="self.decoder.weight.data.copy_(word_embeddings.weight.data)")),
    Wrong(
        4,
        "a vector of its own as the second bias",
        1,
        head(bias="nn.Parameter(self.decoder.bias.data.clone())"),
    ),
    Wrong(4, "torch's eps", 4, head(eps="1e-5")),
    Wrong(4, "gelu, whatever was configured", 1, head(act="F.gelu")),
    Wrong(
        4,
        "no activation",
        1,
        {
            "MaskedLMHead.forward": "def forward(self, x):\n"
            '    return self.decoder(self.transform["LayerNorm"](self.transform["dense"](x)))\n'
        },
    ),
)


def entropy(body: str) -> dict:
    """prediction_entropy with another body."""
    return {"prediction_entropy": f"def prediction_entropy(logits):\n{body}"}


def blank(body: str) -> dict:
    """blank_entropy with another body."""
    given = "model, input_ids, candidates, mask_token_id, width=None, attention_mask=None, **inputs"
    return {"blank_entropy": f"def blank_entropy({given}):\n{body}"}


WIDTH = "    if width is None:\n        width = max(1, int(candidates.sum(-1).max()))\n"
HIDE = "    blanked = input_ids.masked_fill(candidates, mask_token_id)\n"
ASK = "    places = as_places(candidates, width)\n"
ASK += "    found = entropy_at(model, blanked, places, attention_mask=attention_mask, **inputs)\n"
PUT = "    entropy = torch.zeros(input_ids.shape, device=input_ids.device).scatter(1, places, found)\n"
PUT += "    return entropy.masked_fill(~candidates, 0)\n"
NATS = "    p = logits.float().softmax(-1)\n"
NATS += "    return -(p * logits.float().log_softmax(-1).clamp_min(-1e30)).sum(-1)\n"

ENTROPY = (
    Wrong(5, "always 0", 0, entropy("    return torch.zeros(logits.shape[:-1])\n")),
    Wrong(
        5,
        "always log V",
        0,
        entropy("    return torch.full(logits.shape[:-1], math.log(logits.shape[-1]))\n"),
    ),
    Wrong(5, "bits", 0, entropy(NATS.replace(".sum(-1)", ".sum(-1) / math.log(2)"))),
    Wrong(5, "a mean over the words", 0, entropy(NATS.replace(".sum(-1)", ".mean(-1)"))),
    Wrong(
        5,
        "no maximum taken off",
        12,
        entropy(
            "    e = logits.float().exp()\n"
            "    p = e / e.sum(-1, keepdim=True)\n"
            "    return -(p * p.log().clamp_min(-1e30)).sum(-1)\n"
        ),
    ),
    Wrong(
        5,
        "the maximum of the whole batch",
        12,
        entropy(
            "    z = logits.float() - logits.float().max()\n"
            "    e = z.exp()\n"
            "    p = e / e.sum(-1, keepdim=True)\n"
            "    return -(p * p.log().clamp_min(-1e30)).sum(-1)\n"
        ),
    ),
    Wrong(
        5,
        "0 log 0 is NaN",
        12,
        entropy("    p = logits.float().softmax(-1)\n    return -(p * p.log()).sum(-1)\n"),
    ),
    Wrong(5, "no float32", 14, entropy(NATS.replace("logits.float()", "logits"))),
    Wrong(
        5,
        "a distribution of torch's",
        0,
        entropy("    return torch.distributions.Categorical(logits=logits.float()).entropy()\n"),
    ),
    Wrong(
        5,
        "another distribution of torch's",
        0,
        entropy("    return torch.distributions.OneHotCategorical(logits=logits.float()).entropy()\n"),
    ),
    Wrong(
        5,
        "torch's -p log p",
        0,
        entropy("    return torch.special.entr(logits.float().softmax(-1)).sum(-1)\n"),
    ),
    Wrong(
        5,
        "nothing is hidden",
        7,
        blank(
            WIDTH + HIDE.replace("input_ids.masked_fill(candidates, mask_token_id)", "input_ids") + ASK + PUT
        ),
    ),
    Wrong(
        5,
        "one pass for each candidate",
        7,
        blank(
            "    entropy = torch.zeros(input_ids.shape)\n"
            + HIDE
            + "    for place in range(input_ids.shape[1]):\n"
            "        places = torch.full((len(input_ids), 1), place)\n"
            "        found = entropy_at(model, blanked, places, attention_mask=attention_mask, **inputs)\n"
            "        entropy[:, place] = found[:, 0]\n"
            "    return entropy.masked_fill(~candidates, 0)\n"
        ),
    ),
    Wrong(
        5,
        "hidden one by one",
        7,
        blank(
            "    entropy = torch.zeros(input_ids.shape)\n"
            "    for place in range(input_ids.shape[1]):\n"
            "        places = torch.full((len(input_ids), 1), place)\n"
            "        blanked = input_ids.clone()\n"
            "        blanked[:, place] = mask_token_id\n"
            "        found = entropy_at(model, blanked, places, attention_mask=attention_mask, **inputs)\n"
            "        entropy[:, place] = found[:, 0]\n"
            "    return entropy.masked_fill(~candidates, 0)\n"
        ),
    ),
    Wrong(
        5,
        "width ignored",
        13,
        blank("    width = max(1, int(candidates.sum(-1).max()))\n" + HIDE + ASK + PUT),
    ),
    Wrong(5, "all places asked for", 13, blank("    width = input_ids.shape[1]\n" + HIDE + ASK + PUT)),
    Wrong(
        5,
        "an entropy elsewhere too",
        7,
        blank(WIDTH + HIDE + ASK + PUT.replace(".masked_fill(~candidates, 0)", "")),
    ),
    Wrong(
        5,
        "hidden in place",
        13,
        blank(WIDTH + "    blanked = input_ids.masked_fill_(candidates, mask_token_id)\n" + ASK + PUT),
    ),
    Wrong(
        5,
        "padding is read",
        13,
        blank(WIDTH + HIDE + ASK.replace("attention_mask=attention_mask, ", "") + PUT),
    ),
    Wrong(5, "segments are dropped", 13, blank(WIDTH + HIDE + ASK.replace(", **inputs", "") + PUT)),
    Wrong(
        5,
        "a boolean index",
        13,
        blank(
            WIDTH
            + HIDE
            + ASK
            + PUT.replace(
                "    return entropy.masked_fill(~candidates, 0)",
                "    entropy[~candidates] = 0\n    return entropy",
            )
        ),
    ),
)


def rule(name: str, body: str) -> dict:
    """A rule with another body."""
    return {f"rule_{name}": f"def rule_{name}(entropy, pool, temperature, generator):\n{body}"}


def budget(body: str) -> dict:
    """mask_budget with another body."""
    return {"mask_budget": f"def mask_budget(eligible, mask_ratio):\n{body}"}


REFUSE = '    if not 0 < mask_ratio <= 1:\n        raise ValueError("mask ratio")\n'
GUMBEL = "    gumbel = -torch.empty_like(entropy).exponential_(generator=generator).log()\n"
DRAW = "    return entropy.clamp_min(1e-30).log() / temperature + gumbel\n"

SELECTION = (
    Wrong(
        6,
        "budget rounded down",
        18,
        budget(REFUSE + "    return min(eligible, max(1, int(mask_ratio * eligible)))\n"),
    ),
    Wrong(
        6,
        "budget rounds halves up",
        18,
        budget(REFUSE + "    return min(eligible, max(1, int(mask_ratio * eligible + 0.5)))\n"),
    ),
    Wrong(6, "budget of 0 allowed", 18, budget(REFUSE + "    return round(mask_ratio * eligible)\n")),
    Wrong(
        6, "no ratio refused", 18, budget("    return min(eligible, max(1, round(mask_ratio * eligible)))\n")
    ),
    Wrong(
        6,
        "a table of the tests' budgets",
        18,
        budget(
            "    table = {(10, 0.15): 2, (10, 0.25): 2, (10, 0.35): 4, (1, 0.15): 1, (0, 0.15): 0}\n"
            "    return table[eligible, mask_ratio]\n"
        ),
    ),
    Wrong(
        6,
        "all rules give 0",
        2,
        {
            k: v
            for n in ("high", "low", "mid", "both", "sample")
            for k, v in rule(n, "    return torch.zeros_like(entropy)\n").items()
        },
    ),
    Wrong(
        6,
        "high and low swapped",
        17,
        rule("high", "    return -entropy\n") | rule("low", "    return entropy\n"),
    ),
    Wrong(6, "low by 1 - softmax, which has ties", 17, rule("low", "    return 1 - entropy.softmax(-1)\n")),
    Wrong(6, "rules return indices", 17, rule("high", "    return entropy.argsort(descending=True)\n")),
    Wrong(
        6,
        "the lower median",
        16,
        rule(
            "mid",
            "    m = entropy.masked_fill(~pool, torch.nan).nanmedian(-1, keepdim=True).values\n"
            "    return -(entropy - m).abs()\n",
        ),
    ),
    Wrong(
        6,
        "the mean instead of the median",
        16,
        rule(
            "mid",
            "    m = entropy.masked_fill(~pool, torch.nan).nanmean(-1, keepdim=True)\n"
            "    return -(entropy - m).abs()\n",
        ),
    ),
    Wrong(
        6,
        "the median of the whole row",
        16,
        rule("mid", "    return -(entropy - entropy.quantile(0.5, dim=-1, keepdim=True)).abs()\n"),
    ),
    Wrong(
        6,
        "both by the distance from the median",
        15,
        rule(
            "both",
            "    m = entropy.masked_fill(~pool, torch.nan).nanquantile(0.5, dim=-1, keepdim=True)\n"
            "    return (entropy - m).abs()\n",
        ),
    ),
    Wrong(
        6,
        "both ranks what is outside of the pool",
        15,
        rule(
            "both",
            "    top = entropy.argsort(dim=-1, descending=True, stable=True).argsort(-1)\n"
            "    bottom = entropy.shape[-1] - 1 - top\n"
            "    return -torch.minimum(2 * top, 2 * bottom + 1).float()\n",
        ),
    ),
    Wrong(
        6,
        "both begins at the bottom",
        15,
        rule(
            "both",
            "    inside = entropy.masked_fill(~pool, -math.inf)\n"
            "    top = inside.argsort(dim=-1, descending=True, stable=True).argsort(-1)\n"
            "    bottom = pool.sum(-1, keepdim=True) - 1 - top\n"
            "    return -torch.minimum(2 * top + 1, 2 * bottom).float()\n",
        ),
    ),
    Wrong(
        6,
        "a row at a time",
        15,
        rule(
            "both",
            "    out = torch.full_like(entropy, -1e9)\n"
            "    for row in range(len(entropy)):\n"
            "        inside = pool[row].nonzero()[:, 0].tolist()\n"
            "        order = sorted(inside, key=lambda i: -float(entropy[row, i]))\n"
            "        for rank, i in enumerate(order):\n"
            "            out[row, i] = -min(2 * rank, 2 * (len(order) - 1 - rank) + 1)\n"
            "    return out\n",
        ),
    ),
    Wrong(6, "sample is high", 10, rule("sample", "    return entropy\n")),
    Wrong(6, "sample is random", 10, rule("sample", GUMBEL + "    return gumbel\n")),
    Wrong(6, "tau multiplies", 10, rule("sample", GUMBEL + DRAW.replace("/ temperature", "* temperature"))),
    Wrong(6, "no tau", 10, rule("sample", GUMBEL + DRAW.replace("/ temperature ", ""))),
    Wrong(6, "e to the H", 10, rule("sample", GUMBEL + "    return entropy / temperature + gumbel\n")),
    Wrong(6, "noise with the wrong sign", 10, rule("sample", GUMBEL + DRAW.replace("+ gumbel", "- gumbel"))),
    Wrong(
        6,
        "normal noise",
        10,
        rule(
            "sample",
            "    noise = torch.empty_like(entropy).normal_(generator=generator)\n"
            "    return entropy.clamp_min(1e-30).log() / temperature + noise\n",
        ),
    ),
    Wrong(6, "not its generator", 10, rule("sample", GUMBEL.replace("generator=generator", "") + DRAW)),
    Wrong(6, "log of 0", 10, rule("sample", GUMBEL + DRAW.replace(".clamp_min(1e-30)", ""))),
)


def corrupt(
    u="torch.rand(input_ids.shape, generator=generator)",
    other="torch.randint(vocab_size - len(special), u.shape, generator=generator)",
    special="sorted(set(special_ids))",
    step="other += other >= token_id",
    cut="torch.where(u < low, mask_token_id, torch.where(u < high, other, input_ids))",
    labels="input_ids.masked_fill(~selected, -100)",
    refused="scheme not in SCHEMES",
    ids="torch.where(selected, new, input_ids)",
) -> dict:
    """corrupt with one part changed."""
    return {
        "corrupt": "def corrupt(input_ids, selected, mask_token_id, vocab_size, special_ids, "
        'scheme="80-10-10", generator=None):\n'
        f"    if {refused}:\n        raise ValueError\n"
        "    low, high = SCHEMES.get(scheme, (0.8, 0.9))\n"
        f"    special = {special}\n    u = {u}\n    other = {other}\n"
        f"    for token_id in special:\n        {step}\n"
        f"    new = {cut}\n    labels = {labels}\n    return {ids}, labels\n"
    }


CORRUPTION = (
    Wrong(7, "no random words", 3, corrupt(cut="torch.where(u < high, mask_token_id, input_ids)")),
    Wrong(7, "always [MASK]", 3, corrupt(cut="torch.full_like(input_ids, mask_token_id)")),
    Wrong(
        7,
        "two draws",
        3,
        corrupt(
            u="torch.rand(input_ids.shape, generator=generator)\n"
            "    again = torch.rand(input_ids.shape, generator=generator) < high - low",
            cut="torch.where(u < low, mask_token_id, torch.where(again, other, input_ids))",
        ),
    ),
    Wrong(
        7,
        "81-9-10",
        5,
        corrupt(
            u="torch.rand(input_ids.shape, generator=generator)",
            cut="torch.where(u < (0.81 if low < 1 else 1), mask_token_id, "
            "torch.where(u < high, other, input_ids))",
        ),
    ),
    Wrong(7, "others change too", 5, corrupt(ids="new")),
    Wrong(7, "special ids one too low", 8, corrupt(step="other += other > token_id")),
    Wrong(7, "special ids not sorted", 8, corrupt(special="list(dict.fromkeys(special_ids))")),
    Wrong(7, "an id named twice counts twice", 8, corrupt(special="sorted(special_ids)")),
    Wrong(
        7,
        "special words are drawn",
        8,
        corrupt(step="pass", other="torch.randint(vocab_size, u.shape, generator=generator)"),
    ),
    Wrong(7, "labels everywhere", 8, corrupt(labels="input_ids.clone()")),
    Wrong(7, "label 0 elsewhere", 8, corrupt(labels="input_ids.masked_fill(~selected, 0)")),
    Wrong(7, "labels of the corrupted row", 8, corrupt(labels="new.masked_fill(~selected, -100)")),
    Wrong(
        7,
        "in place",
        9,
        corrupt(
            ids="input_ids.copy_(torch.where(selected, new, input_ids))",
            labels="input_ids.masked_fill(~selected, -100).clone()",
        ),
    ),
    Wrong(7, "not its generator", 9, corrupt(u="torch.rand(input_ids.shape)")),
    Wrong(7, "any scheme", 9, corrupt(refused="False")),
    Wrong(7, "a boolean index", 9, corrupt(ids="input_ids.clone().index_put((selected,), new[selected])")),
    Wrong(
        7,
        "all are eligible",
        9,
        {
            "eligible_positions": "def eligible_positions(input_ids, never):\n"
            "    return torch.ones_like(input_ids, dtype=torch.bool)\n"
        },
    ),
    Wrong(
        7,
        "[CLS], [SEP] and [PAD] by number",
        9,
        {"eligible_positions": "def eligible_positions(input_ids, never):\n    return input_ids > 3\n"},
    ),
)


def loss(body: str) -> dict:
    """mlm_loss with another body."""
    return {"mlm_loss": f"def mlm_loss(logits, labels):\n{body}"}


COUNTED = "    counted = labels != -100\n"
LOG_P = "    log_p = logits.float().log_softmax(-1)\n"
LOOK_UP = "    target = log_p.gather(-1, labels.clamp_min(0)[..., None])[..., 0]\n"
CORRECT = "    right = logits.argmax(-1) == labels\n"
SUM = "    return -target.masked_fill(~counted, 0).sum(), right.sum().float()\n"

LOSS = (
    Wrong(8, "always 0", 0, loss("    return logits.float().sum() * 0, torch.zeros(())\n")),
    Wrong(
        8,
        "a mean",
        1,
        loss(
            COUNTED
            + LOG_P
            + LOOK_UP
            + CORRECT
            + SUM.replace(".sum(), ", ".sum() / counted.sum().clamp_min(1), ")
        ),
    ),
    Wrong(
        8,
        "not by hand",
        0,
        loss(
            COUNTED
            + "    z = logits.flatten(0, -2).float()\n"
            + '    total = F.cross_entropy(z, labels.flatten(), reduction="sum")\n'
            + CORRECT
            + "    return total, right.sum().float()\n"
        ),
    ),
    Wrong(
        8,
        "not by hand, with another import",
        0,
        loss(
            "    from torch.nn.functional import cross_entropy as f\n"
            + '    total = f(logits.flatten(0, -2).float(), labels.flatten(), reduction="sum")\n'
            + CORRECT
            + "    return total, right.sum().float()\n"
        ),
    ),
    Wrong(
        8,
        "not by hand, by an older name",
        0,
        loss(
            "    flat, log_p = labels.flatten(), logits.float().flatten(0, -2).log_softmax(-1)\n"
            + '    sum_of = torch.nn.NLLLoss2d(reduction="sum")\n'
            + "    total = sum_of(log_p[..., None, None], flat[:, None, None])\n"
            + CORRECT
            + "    return total, right.sum().float()\n"
        ),
    ),
    Wrong(
        8,
        "the project's MaskedLoss",
        0,
        loss(
            "    total, right, _ = MaskedLoss.apply(logits, labels)\n"
            "    return total.float(), right.float()\n"
        ),
    ),
    Wrong(
        8,
        "label -100 counts as word 0",
        1,
        loss(LOG_P + LOOK_UP + CORRECT + "    return -target.sum(), right.sum().float()\n"),
    ),
    Wrong(8, "word 0 is no word", 1, loss("    counted = labels > 0\n" + LOG_P + LOOK_UP + CORRECT + SUM)),
    Wrong(
        8,
        "softmax, then log",
        4,
        loss(COUNTED + "    log_p = logits.float().softmax(-1).log()\n" + LOOK_UP + CORRECT + SUM),
    ),
    Wrong(
        8,
        "in bfloat16",
        4,
        loss(
            COUNTED
            + LOG_P.replace(".float()", "")
            + LOOK_UP
            + CORRECT
            + SUM.replace(".sum(), ", ".sum().float(), ")
        ),
    ),
    Wrong(
        8,
        "-100 put to 0, then compared",
        4,
        loss(COUNTED + LOG_P + LOOK_UP + "    right = logits.argmax(-1) == labels.clamp_min(0)\n" + SUM),
    ),
    Wrong(
        8,
        "to share the maximum is a hit",
        4,
        loss(
            COUNTED
            + LOG_P
            + LOOK_UP
            + "    top = logits.gather(-1, labels.clamp_min(0)[..., None])[..., 0] == logits.amax(-1)\n"
            "    right = top & counted\n" + SUM
        ),
    ),
    Wrong(
        8,
        "a boolean index",
        2,
        loss(
            COUNTED + LOG_P + CORRECT + "    target = log_p[counted].gather(-1, labels[counted][:, None])\n"
            "    return -target.sum(), right.sum().float()\n"
        ),
    ),
)


def rate(formula: str) -> dict:
    """learning_rate with another formula."""
    return {"learning_rate": f"def learning_rate(step, steps, warmup, highest):\n    return {formula}\n"}


def optimizer(
    decayed="p.dim() >= 2", chosen="p.requires_grad", kind="AdamW", more="fused=True", other="0.0"
) -> dict:
    """make_optimizer with one part changed."""
    return {
        "make_optimizer": "def make_optimizer(model, lr, weight_decay=0.01):\n"
        f"    parameters = [p for p in model.parameters() if {chosen}]\n"
        f'    decayed = {{"params": [p for p in parameters if {decayed}], "weight_decay": weight_decay}}\n'
        f'    others = {{"params": [p for p in parameters if not ({decayed})], "weight_decay": {other}}}\n'
        f"    return torch.optim.{kind}([decayed, others], lr=lr, {more})\n"
    }


SCHEDULE = (
    Wrong(9, "always the highest", 2, rate("highest")),
    Wrong(
        9,
        "the first step has rate 0",
        2,
        rate("highest * min(step / max(1, warmup), (steps - step) / max(1, steps - warmup))"),
    ),
    Wrong(9, "no fall", 2, rate("highest * min(1, (step + 1) / max(1, warmup))")),
    Wrong(
        9,
        "a cosine",
        2,
        rate("highest * min((step + 1) / max(1, warmup), (1 + math.cos(math.pi * step / steps)) / 2)"),
    ),
    Wrong(
        9, "divides by 0", 4, rate("highest * min((step + 1) / warmup, (steps - step) / (steps - warmup))")
    ),
    Wrong(9, "all decay", 2, optimizer(other="weight_decay")),
    Wrong(9, "none decays", 2, optimizer(decayed="False")),
    Wrong(9, "Adam", 2, optimizer(kind="Adam")),
    Wrong(9, "frozen parameters too", 2, optimizer(chosen="True")),
    Wrong(9, "uphill", 2, optimizer(more="fused=True, maximize=True")),
    Wrong(9, "other betas", 2, optimizer(more="fused=True, betas=(0.9, 0.98)")),
    Wrong(9, "not fused", 2, optimizer(more="")),
)


def metric(name: str, body: str) -> dict:
    """A metric with another body; y and p are given."""
    return {name: f"def {name}(labels, predictions):\n    y, p = as_pair(labels, predictions)\n{body}"}


RANKS = "    y, p = (x.argsort().argsort().astype(float) for x in (y, p))\n    return pearsonr(y, p)\n"
MEANS = "    y, p = y - y[0], p - p[0]\n    y, p = y - y.mean(), p - p.mean()\n"

METRICS = (
    Wrong(10, "accuracy within .1", 9, metric("accuracy", "    return float((abs(y - p) < 0.1).mean())\n")),
    Wrong(10, "accuracy rounds first", 9, metric("accuracy", "    return float((y == p.round()).mean())\n")),
    Wrong(
        10,
        "F1 is precision",
        7,
        metric("f1_score", "    return ratio(((y == 1) & (p == 1)).sum(), (p == 1).sum())\n"),
    ),
    Wrong(
        10,
        "F1 of class 0",
        7,
        metric(
            "f1_score",
            "    hits = 2 * ((y == 0) & (p == 0)).sum()\n    return ratio(hits, hits + (y != p).sum())\n",
        ),
    ),
    Wrong(
        10,
        "Matthews knows two classes",
        5,
        metric("matthews_corrcoef", "    return pearsonr((y == 1).astype(float), (p == 1).astype(float))\n"),
    ),
    Wrong(
        10,
        "the size of r alone",
        5,
        metric(
            "pearsonr",
            MEANS + "    return abs(ratio((y * p).sum(), math.sqrt((y**2).sum() * (p**2).sum())))\n",
        ),
    ),
    Wrong(10, "numpy's correlation", 5, metric("pearsonr", "    return float(np.corrcoef(y, p)[0, 1])\n")),
    Wrong(
        10,
        "SciPy's correlation",
        5,
        metric("pearsonr", "    from scipy.stats import pearsonr as r\n    return float(r(y, p)[0])\n"),
    ),
    Wrong(10, "ties in order", 5, metric("spearmanr", RANKS)),
    Wrong(10, "Spearman without ranks", 5, metric("spearmanr", "    return pearsonr(y, p)\n")),
    Wrong(
        10,
        "a constant divides by 0",
        9,
        metric(
            "pearsonr",
            "    y, p = y - y.mean(), p - p.mean()\n"
            "    return float((y * p).sum() / np.sqrt((y**2).sum() * (p**2).sum()))\n",
        ),
    ),
    Wrong(
        10,
        "nothing refused",
        9,
        {
            "accuracy": "def accuracy(labels, predictions):\n"
            "    return float((np.asarray(labels) == np.asarray(predictions)).mean())\n"
        },
    ),
    Wrong(
        10,
        "a table of the tests' answers",
        0,
        {
            name: f"def {name}(labels, predictions):\n"
            "    table = {(1, 1): 0.8, (1, 0): 0.75, (0, 0): 0.0}\n"
            "    return table.get((int(labels[0]), int(predictions[0])), 0.583)\n"
            for name in ("accuracy", "f1_score", "matthews_corrcoef", "pearsonr", "spearmanr")
        },
    ),
)


def kd(
    log_q="(student_logits.to(kind) / temperature).log_softmax(-1)",
    log_p="(teacher_logits.to(kind) / temperature).log_softmax(-1)",
    kind="torch.promote_types(student_logits.dtype, torch.float32)",
    kl="(log_p.exp() * (log_p - log_q)).sum(-1)",
    end="temperature**2 * kl.masked_fill(labels == -100, 0).sum()",
) -> dict:
    """kd_loss with one part changed."""
    return {
        "kd_loss": "def kd_loss(student_logits, teacher_logits, labels, temperature):\n"
        f"    kind = {kind}\n    log_q = {log_q}\n    log_p = {log_p}\n    kl = {kl}\n    return {end}\n"
    }


DISTILLATION = (
    Wrong(11, "always 0", 0, kd(end="student_logits.sum() * 0")),
    Wrong(11, "no T squared", 8, kd(end="kl.masked_fill(labels == -100, 0).sum()")),
    Wrong(11, "T instead of T squared", 8, kd(end="temperature * kl.masked_fill(labels == -100, 0).sum()")),
    Wrong(
        11,
        "no temperature",
        8,
        kd(log_q="student_logits.to(kind).log_softmax(-1)", log_p="teacher_logits.to(kind).log_softmax(-1)"),
    ),
    Wrong(11, "from student to teacher", 0, kd(kl="(log_q.exp() * (log_q - log_p)).sum(-1)")),
    Wrong(11, "a cross-entropy", 0, kd(kl="-(log_p.exp() * log_q).sum(-1)")),
    Wrong(11, "a mean", 0, kd(end="temperature**2 * kl.masked_fill(labels == -100, 0).mean()")),
    Wrong(11, "a mean over the words", 0, kd(kl="(log_p.exp() * (log_p - log_q)).mean(-1)")),
    Wrong(11, "all places", 0, kd(end="temperature**2 * kl.sum()")),
    Wrong(11, "0 log 0 is NaN", 7, kd(log_p="(teacher_logits.to(kind) / temperature).softmax(-1).log()")),
    Wrong(11, "no float32", 7, kd(kind="student_logits.dtype")),
    Wrong(11, "not by hand", 0, kd(kl='F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)')),
)

WRONG = (*ATTENTION, *MODEL, *ENTROPY, *SELECTION, *CORRUPTION, *LOSS, *SCHEDULE, *METRICS, *DISTILLATION)


# ---- forgeries: nothing is implemented, and points are wanted all the same ----


def body(line: str) -> dict:
    """A function of which this is the body, and which says 0."""
    lines = "\n".join(f"    {part}" for part in line.split("\n"))
    return {
        "prediction_entropy": f"def prediction_entropy(logits):\n"
        f"{lines}\n"
        f"    return logits[..., 0].float() * 0\n"
    }


PLUGIN = """\
import pytest
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    outcome.get_result().outcome = "passed"
"""
# {name: {file: text that is added to it}}: files of the submission
FORGED_FILES = {
    "a conftest.py": {"conftest.py": PLUGIN},
    "a plugin in pytest.ini": {"pytest.ini": "[pytest]\naddopts = -p forged\n", "forged.py": PLUGIN},
    "a line in masking.py": {
        "masking.py": "\nimport torch; torch.equal = torch.allclose = lambda *a, **k: True\n"
    },
    "results written by a program": {
        "model.py": '\nimport json; json.dump({"score": 100, "tests": []}, open("results.json", "w"))\n'
    },
    "observations written beforehand": {
        "observed.jsonl": '{"concept": "KL", "name": "all", "values": [1]}\n'
    },
    "a program that ends": {"train.py": "\nraise SystemExit(0)\n"},
}
# What would be right where `eval` or the names of a module can be had after all.
BY_TORCH = "__import__('torch').distributions.Categorical(logits=logits.float()).entropy()"
EVALUATED = f'return names["__builtins__"]["eval"]("{BY_TORCH}", {{"logits": logits}})'
# {name: functions that pass for exercise 5}: its concepts on numbers
FORGED_BODIES = {
    "ends the process": body("import os\nos._exit(0)"),
    "ends the program": body("raise SystemExit(0)"),
    "opens the reference": body('exec(open("/proc/self/environ").read())'),
    "reads a file with numpy": body('np = __import__("numpy")\nnp.fromfile("../masking.py")'),
    "finds the reference among the modules": body(
        "import sys\nreturn sys.modules['masking'].prediction_entropy(logits)"
    ),
    "looks into the frame above": body("import inspect\nreturn inspect.currentframe().f_back.f_locals"),
    "climbs up the classes": body("().__class__.__base__.__subclasses__()"),
    "uses an attribute by another name": body('return getattr(torch, "d" + "istributions")'),
    "asks the garbage collector": body("import gc\ngc.get_objects()"),
    "changes what compares": body("import numpy\nnumpy.allclose = lambda *a, **k: True"),
    "changes what is written": body('import json\njson.dumps = lambda line: ""'),
    "walks up the frames of a generator": body("g = (x for x in [1])\ng.gi_frame.f_back"),
    "changes how numbers are noted": body("torch.Tensor.detach = lambda self: self * 0"),
    "a number that is equal to all": body("torch.Tensor.double = lambda self: self"),
    "has a variable called eval, elsewhere": body(f'[0 for eval in ()]\nreturn eval("{BY_TORCH}")'),
    "has an argument called eval, elsewhere": body(f'f = lambda eval: 0\nreturn eval("{BY_TORCH}")'),
    "evaluates in a default": body('def f(z, made=eval("torch")):\n    eval = made\n    return z'),
    "matches an attribute": body(
        f"match blank_entropy:\n    case object(__globals__=names):\n        {EVALUATED}"
    ),
    "matches an attribute by its place": body(
        'kind = type("Kind", (type,), {"__instancecheck__": lambda *given: True})\n'
        'every = kind("Every", (), {"__match_args__": ("__globals__",)})\n'
        f"match blank_entropy:\n    case every(names):\n        {EVALUATED}"
    ),
    "lets functools read an attribute": body(
        "import functools\nfound = []\n"
        'keep = type("Keep", (), {"__setattr__": lambda self, name, value: found.append(value)})()\n'
        'functools.update_wrapper(keep, blank_entropy, assigned=("__globals__",), updated=())\n'
        f"names = found[0]\n{EVALUATED}"
    ),
    "rewrites the code of a generator": body(
        'code = (x.name for x in [1]).gi_code.replace(co_names=("__globals__",))\n'
        f"names = next(type(lambda: 0)(code, {{}})(iter([blank_entropy])))\n{EVALUATED}"
    ),
    "goes through what another module imported": body(
        f'return torch.serialization.re.enum.bltns.eval("{BY_TORCH}", {{"logits": logits}})'
    ),
}


def broken(read, with_functions):
    """Files and functions that are broken: (name, file, text, exercise, fewest and most points)."""
    masking, train = read("masking.py"), read("train.py")
    bracket = with_functions(
        masking, {"rule_low": "def rule_low(entropy, pool, temperature, generator):\n    return (-entropy"}
    )
    yield "a bracket left open in rule_low", "masking.py", bracket, 6, 17, 17
    yield "a bracket left open in another exercise's function", "masking.py", bracket, 7, 10, 10
    yield "a bracket left open at the top of a file", "masking.py", "x = (1,\n" + masking, 5, 15, 15
    yield "text that is no Python at the end of a file", "train.py", train + "\nhere I stopped ((", 9, 5, 5
    yield (
        "a file that is cut in the middle",
        "masking.py",
        masking[: masking.index("def corrupt(")],
        5,
        15,
        15,
    )
    yield "no file at all", "model.py", "", 1, 0, 0
    forever = with_functions(
        train, {"mlm_loss": "def mlm_loss(logits, labels):\n    while True:\n        pass"}
    )
    yield "a loop that does not end", "train.py", forever, 8, 0, 0
    yield "a loop that does not end in another exercise", "train.py", forever, 9, 5, 5
    memory = with_functions(train, {"mlm_loss": "def mlm_loss(logits, labels):\n    return [0] * 10**11"})
    yield "all the memory there is", "train.py", memory, 8, 0, 0
