"""The parts of pretraining: text and its split, rows, random streams, warm-ups, FLOPs."""

import gzip
import lzma

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


@pytest.mark.parametrize("shape", [(3, 4, 50), (700, 900)], ids=["one slice", "two slices"])
def test_the_fast_loss_equals_the_plain_one_and_knows_the_entropy(shape):
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(shape, generator=rng)
    labels = torch.randint(0, shape[-1], shape[:-1], generator=rng)
    labels[..., 1] = -100
    one, other = (logits.clone().requires_grad_() for _ in range(2))
    loss, right = train.mlm_loss(one, labels)
    fast, also_right, entropy = train.MaskedLoss.apply(other, labels)
    (loss * 0.3).backward()
    (fast * 0.3).backward()
    assert fast.item() == pytest.approx(loss.item(), rel=1e-5) and also_right == right
    assert torch.allclose(one.grad, other.grad, atol=1e-6)
    p = logits.double().softmax(-1)
    assert torch.allclose(entropy.double(), -(p * p.log()).sum(-1), atol=1e-4), "in nats, where unmasked too"


def test_the_fast_loss_has_the_gradient_of_its_loss():
    logits = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, -100, 5], [0, 2, -100]])
    assert torch.autograd.gradcheck(lambda z: train.MaskedLoss.apply(z, labels)[0], logits)


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


def test_larger_models_have_a_lower_default_learning_rate():
    assert [train.Options(size=size).lr for size in ("tiny", "mini")] == [1e-3, 1e-3]
    assert [train.Options(size=size).lr for size in ("small", "medium", "base")] == [5e-4, 5e-4, 5e-4]
    assert train.Options(size="base", lr=1e-3).lr == 1e-3, "a rate that is given counts"
