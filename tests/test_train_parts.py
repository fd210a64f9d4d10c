"""The parts of pretraining: text and its split, rows, loss, schedule, weight decay, options."""

import gzip
import lzma
import math

import numpy as np
import pytest
import torch

import train
from model import BertConfig, BertForMaskedLM


def text_of(ids, tokenizer):
    return tokenizer.decode(ids.tolist(), skip_special_tokens=False)


def prepare(tmp_path, text, **options):
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    o = train.Options(
        corpus=[str(tmp_path / "text.txt")],
        cache=str(tmp_path / "cache"),
        vocab_size=200,
        seq_len=8,
        **options,
    )
    return train.prepare_text(o)


PAIRS = [(a, b) for a in ("ann", "bob", "cyd", "dan", "eva") for b in "abcdefghijklmnopqrst"]
DOCUMENTS = [
    [f"{a} {b} {a} {verb} number {i}{a}" for verb in ("sings", "sleeps", "walks")]
    for i, (a, b) in enumerate(PAIRS)
]
TEXT = "\n\n".join("\n".join(document) for document in DOCUMENTS)


def test_no_paragraph_is_on_both_sides_of_the_split(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "HELD_OUT", 0.3)
    shared = "this paragraph stands in every document ."
    repeated = "\n\n".join(
        "\n".join([*document, shared, f"See also chapter {i}."]) for i, document in enumerate(DOCUMENTS)
    )
    tokenizer, learn, held, facts = prepare(tmp_path, repeated)
    one, other = text_of(learn, tokenizer), text_of(held, tokenizer)
    assert (one + other).count("paragraph stands") == 1, (
        "a duplicate paragraph must be kept once, on one side"
    )
    assert (one + other).count("see also") == 1, "paragraphs that differ in digits alone are duplicates"
    assert facts["duplicates"] == 2 * (len(DOCUMENTS) - 1) and facts["paragraphs"] == 5 * len(DOCUMENTS)
    for document in DOCUMENTS:
        sides = {side for side, text in (("train", one), ("held out", other)) for p in document if p in text}
        assert len(sides) == 1, f"a document is on {sides}: the split is by document"
    assert 0.1 < len(held) / (len(held) + len(learn)) < 0.5


def test_mask_written_in_a_text_stays_text(tmp_path):
    tokenizer, learn, held, _ = prepare(tmp_path, TEXT + "\n\n[MASK] and [SEP] are words here")
    for token in ("[MASK]", "[SEP]", "[CLS]", "[PAD]"):
        assert tokenizer.token_to_id(token) not in np.concatenate((learn, held)), (
            f"{token} in a corpus is no special token"
        )


def test_a_corpus_of_one_document_holds_out_its_end(tmp_path):
    _, learn, held, _ = prepare(tmp_path, TEXT.replace("\n\n", "\n"))
    assert len(held) >= 6 and len(learn) > 10 * len(held)


@pytest.mark.parametrize("pack", [gzip.open, lzma.open])
def test_compressed_text_is_read_like_plain_text(tmp_path, pack):
    (tmp_path / "a.txt").write_text(TEXT)
    packed = tmp_path / ("a.txt.gz" if pack is gzip.open else "a.txt.xz")
    with pack(packed, "wt") as file:
        file.write(TEXT)
    assert (
        list(train.read_documents([packed])) == list(train.read_documents([tmp_path / "a.txt"])) == DOCUMENTS
    )


def test_the_cache_is_used_again_and_depends_on_content(tmp_path, monkeypatch):
    first = prepare(tmp_path, TEXT)
    calls = []
    monkeypatch.setattr(train, "tokenise", lambda *a: calls.append(a))
    again = prepare(tmp_path, TEXT)
    assert not calls and np.array_equal(first[1], again[1]), (
        "the same text and vocabulary must not be tokenised twice"
    )
    with pytest.raises((TypeError, OSError)):
        prepare(tmp_path, TEXT + " more")
    assert calls, "another text must not be served from the cache of the first"


def test_an_interrupted_tokenisation_leaves_no_cache(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "tokenise", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, TEXT)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


def test_rows_are_packed_without_padding():
    ids = np.arange(100, 120, dtype=np.int32)
    rows = train.take_rows(ids, np.array([2, 0]), seq_len=6, cls=1, sep=2)
    assert rows.tolist() == [[1, 108, 109, 110, 111, 2], [1, 100, 101, 102, 103, 2]]


@pytest.mark.parametrize("rows", [7, 64, 100])
def test_every_epoch_visits_every_row_once(rows):
    o = train.Options(batch_size=8)
    visits = np.concatenate([train.rows_of_step(o, step, rows) for step in range(100)])
    for epoch in range(len(visits) // rows):
        assert sorted(visits[epoch * rows : (epoch + 1) * rows]) == list(range(rows)), (
            "data skipped or replayed"
        )
    assert not np.array_equal(visits[:rows], visits[rows : 2 * rows]), "epochs have their own order"


def test_streams_are_independent_of_each_other():
    seeds = {
        train.stream(seed, purpose, step)
        for seed in (0, 1)
        for purpose in ("order", "masks")
        for step in (0, 1)
    }
    assert len(seeds) == 8
    assert train.stream(0, "masks", 5) == train.stream(0, "masks", 5)


def test_loss_is_the_negative_log_probability_of_the_hidden_tokens():
    logits = torch.randn(4, 6, 50, generator=torch.Generator().manual_seed(0)) * 5
    labels = torch.randint(0, 50, (4, 6), generator=torch.Generator().manual_seed(1))
    labels[0, 2:] = -100
    labels[3] = -100
    p = logits.double().softmax(-1)
    expected, right = 0.0, 0
    for i, j in np.argwhere(labels.numpy() != -100):
        expected -= math.log(p[i, j, labels[i, j]])
        right += int(p[i, j].argmax() == labels[i, j])
    loss, correct = train.mlm_loss(logits, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-5) and correct.item() == right


def test_loss_ignores_minus_100_and_nothing_else():
    logits = torch.zeros(3, 10, requires_grad=True)
    loss, _ = train.mlm_loss(logits, torch.tensor([0, -100, 9]))
    loss.backward()
    assert loss.item() == pytest.approx(2 * math.log(10)), "id 0 is a word like any other"
    assert not logits.grad[1].any() and logits.grad[0].any()


def test_a_step_without_masks_has_loss_zero_and_no_nan():
    logits = torch.randn(2, 10, requires_grad=True)
    loss, _ = train.mlm_loss(logits, torch.full((2,), -100))
    loss.backward()
    assert loss.item() == 0 and logits.grad.isfinite().all()


def test_learning_rate_rises_and_falls_in_straight_lines():
    rates = [train.learning_rate(step, 100, 10, 2.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == rates[10] == 2.0 and max(rates) == 2.0
    assert rates[55] == pytest.approx(1.0) and rates[99] == pytest.approx(2.0 / 90)
    assert train.learning_rate(0, 5, 0, 1.0) == 1.0, "no warm-up starts at the top"


def test_weight_decay_spares_biases_and_layer_norm():
    model = BertForMaskedLM(
        BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    decayed, others = train.make_optimizer(model, 1e-3).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] > 0 and others["weight_decay"] == 0
    assert all(
        names[id(p)].endswith(".weight") and "LayerNorm" not in names[id(p)] for p in decayed["params"]
    )
    assert all(names[id(p)].endswith("bias") or "LayerNorm" in names[id(p)] for p in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(names), (
        "every parameter once, the tied one too"
    )


@pytest.mark.parametrize("value, steps", [(0, 0), (0.1, 100), (0.25, 250), (1, 1), (400, 400)])
def test_warm_ups_are_a_share_below_one_and_a_number_from_one(value, steps):
    assert train.as_steps(value, 1000) == steps


def test_flops_equal_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    config = BertConfig.preset("tiny", vocab_size=1000, fast_attention=False)
    model = BertForMaskedLM(config)
    with FlopCounterMode(display=False) as counter:
        model(
            torch.zeros(4, 64, dtype=torch.long), positions=torch.zeros(4, 16, dtype=torch.long)
        ).sum().backward()
    assert 3 * train.forward_flops(config, 64, 0.25) * 4 * 64 == pytest.approx(
        counter.get_total_flops(), rel=0.02
    )


def test_builtin_corpus_is_prose(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__file__", np.__file__)  # the standard library and numpy are enough here
    path = train.builtin_corpus(tmp_path)
    text = path.read_text(encoding="utf-8")
    assert 2e6 < len(text) < 2e7
    assert "\n>>>" not in text, "code examples are dropped"
    assert text.count(" the ") > 20_000
    assert train.builtin_corpus(tmp_path) == path
