"""mask_batch and the readings in other people's hands: packed rows, protected tokens, tables, wrong use."""

import pytest
import torch
from torch import nn

from masking import (
    IGNORE,
    blank_entropy,
    draw_candidates,
    entropy_at,
    mask_batch,
    mask_budget,
    select_positions,
    visible_entropy,
)
from model import BertConfig, BertForMaskedLM, init_normal

V = 60
MASK = 4


class Words:
    """A tokenizer like those of transformers; ids below 5 are special."""

    mask_token_id = MASK
    all_special_ids = (0, 1, 2, 3, 4)

    def __len__(self):
        return V


class Attention(nn.Module):
    """Somebody's encoder: one attention, and whatever is between two boundaries is alone with itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.word = nn.Embedding(V, 16)
        self.place = nn.Embedding(64, 16)
        self.out = nn.Linear(16, V)
        self.given = []

    def forward(self, input_ids, attention_mask=None, position_ids=None, cu_seqlens=None, longest=None):
        self.given.append({"position_ids": position_ids, "cu_seqlens": cu_seqlens, "longest": longest})
        count, length = input_ids.shape
        alone = torch.ones(count, length, length, dtype=torch.bool)
        if cu_seqlens is not None:
            number = torch.bucketize(torch.arange(length), cu_seqlens, right=True)
            alone = (number[:, None] == number[None, :]).expand_as(alone)
        if attention_mask is not None:
            alone = alone & (attention_mask if attention_mask.dim() == 3 else attention_mask[:, None]).bool()
        if position_ids is None:
            position_ids = torch.arange(length)[None]
        x = self.word(input_ids) + self.place(position_ids)
        scores = (x @ x.transpose(1, 2)).masked_fill(~alone, -1e9)
        return 4 * self.out(scores.softmax(-1) @ x)


@pytest.fixture
def model():
    return Attention()


def rows_of(count, length, seed=0):
    ids = torch.randint(5, V, (count, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 2
    ids[:, -1] = 3
    return ids


def hidden_in(batch):
    return batch["labels"] != IGNORE


# ---- in a training step ----


@pytest.mark.parametrize("rule", ["random", "sample"])
def test_reading_entropy_takes_no_gradient_from_the_callers_step(rule):
    """Autocast keeps half-precision copies of the weights, and those made for a reading have no gradient.

    Torch 2.13 makes them again by itself: only with older torch (2.6, 2.10) can this test fail.
    """
    bert = BertForMaskedLM(BertConfig.preset("tiny", vocab_size=V))
    batch = {"input_ids": rows_of(4, 16)}
    with torch.autocast("cpu", torch.bfloat16):
        masked = mask_batch(bert, batch, Words(), rule=rule)
        labels = masked.pop("labels")
        logits = bert(**masked)
        nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten()).backward()
    unused = [name for name, p in bert.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [name for name in unused if "pooler" not in name], "each weight learns from the masked tokens"


# ---- what is not one row per row ----


@pytest.mark.parametrize("lengths", [[9, 14, 6], [50, 40, 64, 30] * 20])
def test_a_packed_batch_has_the_entropies_of_the_unpacked_one(model, lengths):
    sequences = [rows_of(1, n, seed=i) for i, n in enumerate(lengths)]
    ends = torch.tensor([0, *lengths]).cumsum(0)
    packed = torch.cat(sequences, 1)
    inputs = {
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "cu_seqlens": ends,
        "longest": max(lengths),
    }
    hidden = (torch.arange(packed.shape[1]) % 4 == 1)[None]
    found = blank_entropy(model, packed, hidden, MASK, **inputs)[0]
    seen = visible_entropy(model, packed, **inputs)[0]
    assert all(torch.equal(given["cu_seqlens"], ends) for given in model.given), "boundaries were cut"
    for i, ids in enumerate(sequences):
        part = slice(ends[i], ends[i + 1])
        expected = blank_entropy(model, ids, hidden[:, part], MASK)[0]
        assert torch.allclose(found[part], expected, atol=1e-4)
        assert torch.allclose(seen[part], visible_entropy(model, ids)[0], atol=1e-4)
    alone = visible_entropy(model, packed, position_ids=inputs["position_ids"])[0]
    assert not torch.allclose(seen, alone, atol=0.01), "the boundaries must matter, or this tests nothing"

    masked = mask_batch(model, {"input_ids": packed, **inputs}, Words())
    assert hidden_in(masked).sum() == mask_budget(sum(lengths) - 2 * len(lengths), 0.15)
    assert masked["longest"] == max(lengths) and masked["cu_seqlens"] is ends


def test_packed_rows_by_a_mask_of_three_dimensions(model):
    ids = torch.cat([rows_of(2, 9), rows_of(2, 12, seed=1)], 1)
    number = (torch.arange(21) >= 9).long()
    inputs = {
        "attention_mask": (number[:, None] == number[None, :]).expand(2, 21, 21),
        "position_ids": torch.cat([torch.arange(9), torch.arange(12)])[None],  # [1, T] for both rows
    }
    found = visible_entropy(model, ids, **inputs)
    expected = torch.cat([visible_entropy(model, ids[:, :9]), visible_entropy(model, ids[:, 9:])], 1)
    assert torch.allclose(found, expected, atol=1e-4)
    with pytest.raises(
        ValueError, match=r"attention_mask \(2, 21, 21\) does not name the padding: .*eligible"
    ):
        mask_batch(model, {"input_ids": ids, **inputs}, Words())
    eligible = torch.ones_like(ids, dtype=torch.bool)
    masked = mask_batch(model, {"input_ids": ids, **inputs}, Words(), eligible=eligible)
    assert hidden_in(masked).sum(-1).tolist() == [mask_budget(17, 0.15)] * 2


@pytest.mark.parametrize("count", [4, 80])
def test_inputs_for_all_rows_reach_each_slice_whole(model, count):
    ids = rows_of(count, 30)
    positions = torch.arange(30).flip(0)[None]
    found = visible_entropy(model, ids, position_ids=positions, longest=30)
    assert all(given["longest"] == 30 for given in model.given)
    logits = model(ids, position_ids=positions.expand(count, 30))
    p = logits.double().softmax(-1)
    assert torch.allclose(found.double(), -(p * p.log()).sum(-1), atol=1e-4)


def test_inputs_with_a_row_each_are_cut_with_the_rows(model):
    ids = rows_of(80, 40)
    lengths = torch.arange(80) % 30 + 10
    mask = torch.arange(40) < lengths[:, None]
    positions = torch.stack([torch.arange(40).roll(i) for i in range(80)])
    found = visible_entropy(model, ids, mask, position_ids=positions)
    assert len(model.given) > 1, "this test wants several slices"
    p = model(ids, mask, position_ids=positions).double().softmax(-1)
    assert torch.allclose(found.double(), -(p * p.log()).sum(-1), atol=1e-4)


def test_an_input_that_is_of_no_row_reaches_the_model_with_all_rows(model):
    """Boundaries in the flattened batch, say: a part of the rows would not fit to them."""
    passes = []

    def forward(input_ids, boundaries):
        passes.append((len(input_ids), len(boundaries)))
        return Attention.forward(model, input_ids)

    model.forward = forward
    ids = rows_of(80, 40)
    visible_entropy(model, ids, boundaries=torch.tensor([0, 1000, 2000, 3200]))
    assert passes == [(80, 4)]
    visible_entropy(model, ids, boundaries=torch.tensor([3200]))
    assert len(passes) > 2, "one for all rows is no reason to read them at once"


@pytest.mark.parametrize("form", ["tuple", "dict", "prediction_logits", "logits"])
def test_outputs_of_many_forms_are_read(model, form):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, input_ids, attention_mask=None):
            logits = self.inner(input_ids, attention_mask)
            if form == "tuple":
                return logits, logits[:, 0, :2]
            if form == "dict":
                return {"loss": None, "logits": logits}
            output = type("Output", (), {})()
            setattr(output, form, logits)
            return output

    ids = rows_of(3, 12)
    assert torch.equal(visible_entropy(Wrapped(), ids), visible_entropy(model, ids))


# ---- what may be masked ----


def test_protected_tokens_are_never_masked(model):
    ids = rows_of(40, 30)
    protected = torch.zeros_like(ids)
    protected[:, :15] = 1  # a prompt
    for rule in ("sample", "high", "random"):
        masked = mask_batch(model, {"input_ids": ids, "special_tokens_mask": protected}, Words(), rule, 0.4)
        assert not (hidden_in(masked) & protected.bool()).any(), "a protected token was masked"
        assert hidden_in(masked).sum(-1).tolist() == [mask_budget(14, 0.4)] * 40
        assert "special_tokens_mask" not in masked, "no model takes it"


def test_a_table_over_the_vocabulary_says_what_may_be_masked(model):
    ids = rows_of(20, 40)
    table = torch.arange(V) % 3 == 0
    batch = mask_batch(model, {"input_ids": ids}, Words(), "random", 0.5)  # as a collator would
    masked = mask_batch(model, batch, Words(), eligible=table, mask_ratio=0.5)
    may = table[ids] & (ids >= 5)
    assert torch.equal(torch.where(hidden_in(masked), masked["labels"], masked["input_ids"]), ids)
    assert not (hidden_in(masked) & ~may).any(), "looked up in what the collator left, or not at all"
    assert hidden_in(masked).sum(-1).tolist() == [mask_budget(n, 0.5) for n in may.sum(-1).tolist()]


@pytest.mark.parametrize("style", ["##", "Ġ"])
def test_a_table_over_the_vocabulary_says_where_words_begin(model, style):
    ids = rows_of(60, 40)
    continues = ids % 2 == 1  # odd ids are pieces that go on
    continues[:, 1] = False  # the first word of the row has its first piece ...
    ids[:, 1] -= ids[:, 1] % 2
    ids[:, 1].clamp_(min=6)
    table = torch.arange(V) % 2 == 0
    if style == "##":
        table[:5] = True  # special tokens do not look like parts of words
    else:
        table[:5] = False  # ... but in this style, words begin with a space, which those lack
        ids[:, 1] += 1  # and so may the first word of a text
    masked = hidden_in(mask_batch(model, {"input_ids": ids}, Words(), word_start=table, mask_ratio=0.5))
    special = ids < 5
    together = continues & ~special & ~special.roll(1, 1)
    assert torch.equal(masked[:, 1:][together[:, 1:]], masked[:, :-1][together[:, 1:]]), "a word was cut"
    budget = mask_budget(38, 0.5)
    assert (masked.sum(-1) <= budget).all() and masked.sum(-1).float().mean() > budget - 2
    assert masked[:, 1].any() and masked[:, -2].any(), "the first and the last word of a row can be masked"


def test_labels_that_are_none_count_as_absent(model):
    ids = rows_of(4, 20)
    masked = mask_batch(model, {"input_ids": ids, "labels": None}, Words())
    assert torch.equal(torch.where(hidden_in(masked), masked["labels"], masked["input_ids"]), ids)


def test_ids_of_32_bits_give_labels_for_cross_entropy(model):
    ids = rows_of(3, 12)
    given = mask_batch(model, {"input_ids": ids.int()}, Words(), generator=torch.Generator().manual_seed(0))
    wanted = mask_batch(model, {"input_ids": ids}, Words(), generator=torch.Generator().manual_seed(0))
    for name in ("input_ids", "labels"):
        assert given[name].dtype == torch.int64 and given[name].equal(wanted[name]), name


def test_labels_of_another_task_are_refused(model):
    ids = rows_of(2, 40)
    tags = torch.randint(0, 9, ids.shape)
    with pytest.raises(ValueError, match="another task, leave them out"):
        mask_batch(model, {"input_ids": ids, "labels": tags}, Words())
    copies = ids.masked_fill(torch.rand(ids.shape) < 0.2, IGNORE)  # a collator without masks makes these
    masked = mask_batch(model, {"input_ids": ids, "labels": copies}, Words())
    assert torch.equal(torch.where(hidden_in(masked), masked["labels"], masked["input_ids"]), ids)


@pytest.mark.parametrize("scheme", ["80-10-10", "100-0-0"])
def test_masks_of_a_collator_are_never_taken_for_another_task(model, scheme):
    ids = rows_of(8, 30)
    for seed in range(200):
        torch.manual_seed(seed)
        batch = mask_batch(model, {"input_ids": ids}, Words(), "random", scheme=scheme)
        masked = mask_batch(model, batch, Words(), "random")
        assert torch.equal(torch.where(hidden_in(masked), masked["labels"], masked["input_ids"]), ids)


# ---- what is passed on ----


def test_all_random_numbers_come_from_the_generator(model):
    ids = rows_of(8, 30)
    found = []
    for rule in ("random", "sample", "random", "sample"):
        torch.manual_seed(len(found))
        before = torch.get_rng_state()
        generator = torch.Generator().manual_seed(5)
        found.append(mask_batch(model, {"input_ids": ids}, Words(), rule, generator=generator))
        assert torch.equal(torch.get_rng_state(), before), "the stream of dropout must not depend on the rule"
    for one, other in ((found[0], found[2]), (found[1], found[3])):
        assert all(torch.equal(one[name], other[name]) for name in one)
    generator.manual_seed(6)
    other = mask_batch(model, {"input_ids": ids}, Words(), generator=generator)
    assert not torch.equal(other["labels"], found[3]["labels"])


@pytest.mark.parametrize("factor", [1.5, 3.0, None])
def test_what_the_rule_saw_is_given_back(model, factor):
    ids = rows_of(6, 42)
    settings = {"factor": factor, "generator": torch.Generator().manual_seed(1)}
    masked, entropy = mask_batch(model, {"input_ids": ids}, Words(), "high", return_entropy=True, **settings)
    eligible = ids >= 5
    if factor is None:
        drawn = None
        expected = visible_entropy(model, ids)
    else:
        drawn = draw_candidates(eligible, 0.15, factor, torch.Generator().manual_seed(1))
        expected = blank_entropy(model, ids, drawn, MASK)
    assert torch.allclose(entropy, expected, atol=1e-5)
    pool = eligible if drawn is None else drawn
    for row in range(6):
        k = mask_budget(40, 0.15)
        least = expected[row, pool[row]].sort(descending=True).values[k - 1]
        assert (expected[row, hidden_in(masked)[row]] >= least - 1e-5).all(), "the k highest of what was read"
    _, nothing = mask_batch(model, {"input_ids": ids}, Words(), "random", return_entropy=True)
    assert nothing is None, "random masks read nothing"


def test_the_temperature_reaches_the_rule(model):
    ids = rows_of(1, 30).expand(3000, 30)
    settings = {"factor": None, "return_entropy": True}
    rates = []
    for temperature in (0.2, 1.0):
        masked, entropy = mask_batch(
            model, {"input_ids": ids}, Words(), mask_ratio=0.03, temperature=temperature, **settings
        )
        rates.append(hidden_in(masked).float().mean(0))
        weight = entropy[0].double() ** (1 / temperature) * (ids[0] >= 5)  # one of the row is drawn
        assert torch.allclose(rates[-1].double(), weight / weight.sum(), atol=0.04)
    assert not torch.allclose(rates[0], rates[1], atol=0.05)


def test_a_teacher_may_choose(model):
    teacher = Attention()
    teacher.out.weight.data.mul_(-2).add_(torch.randn(V, 16, generator=torch.Generator().manual_seed(3)))
    ids = rows_of(6, 42)
    found = []
    for who in (model, teacher):
        settings = {"factor": None, "return_entropy": True}
        found.append(mask_batch(who, {"input_ids": ids}, Words(), "high", **settings)[1])
        assert torch.allclose(found[-1], visible_entropy(who, ids), atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=0.1)


# ---- wrong use ----


def ours(vocab_size):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForMaskedLM(BertConfig(vocab_size=vocab_size, **sizes))
    init_normal(model, 0.3)
    return model


def test_a_teacher_with_a_smaller_vocabulary_is_named():
    with pytest.raises(ValueError, match="the model knows 50 ids, the tokenizer has 60: one vocabulary"):
        mask_batch(ours(50), {"input_ids": rows_of(2, 20)}, Words())
    mask_batch(ours(64), {"input_ids": rows_of(2, 20)}, Words())  # padded, as many are


def test_a_teacher_that_takes_less_is_named(model):
    ids = rows_of(2, 20)
    with pytest.raises((TypeError, ValueError), match="token_type_ids"):
        mask_batch(model, {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)}, Words())


def test_a_tokenizer_of_another_kind_is_named(model):
    with pytest.raises(ValueError, match="object is no tokenizer of transformers or tokenizers"):
        mask_batch(model, {"input_ids": rows_of(2, 20)}, object())


@pytest.mark.parametrize("mask", ["[MASK]", "<mask>"])
def test_a_tokenizer_must_say_which_of_its_tokens_are_special(model, mask):
    from tokenizers import Tokenizer, models

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", mask]
    pieces = {piece: i for i, piece in enumerate([*special, *(f"w{i}" for i in range(V - 5))])}
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token="[UNK]"))
    batch = {"input_ids": rows_of(20, 30)}
    with pytest.raises(
        ValueError, match="does not say which tokens are special: tokenizer.add_special_tokens"
    ):
        mask_batch(model, batch, tokenizer)
    tokenizer.add_special_tokens(special)
    masked = mask_batch(model, batch, tokenizer, scheme="100-0-0")
    assert (batch["input_ids"][hidden_in(masked)] >= 5).all(), "[CLS] or [SEP] was masked"
    assert (masked["input_ids"][hidden_in(masked)] == MASK).all()


def test_entropies_of_no_rows_at_all_are_no_rows(model):
    ids = rows_of(1, 12)
    places = torch.tensor([[3, 7]])
    assert entropy_at(model, ids, places).shape == (1, 2)
    eligible = torch.zeros_like(ids, dtype=torch.bool)
    assert select_positions("random", eligible, 0.15).sum() == 0
