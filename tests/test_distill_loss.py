"""Distillation: what a student takes from its teacher at the start."""

import pytest
import torch

from distill import init_student, kd_loss
from model import BertConfig, BertForMaskedLM, init_normal


def masked_lm(layers, width=32, **changes):
    config = BertConfig(
        vocab_size=50, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, **changes
    )
    model = BertForMaskedLM(config)
    init_normal(model, 0.5, torch.Generator().manual_seed(layers))
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.normal_(generator=torch.Generator().manual_seed(layers))
    return model


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    "student, teacher, taken", [(2, 4, [0, 2]), (3, 3, [0, 1, 2]), (2, 5, [0, 2]), (4, 2, [0, 1])]
)
def test_layers_are_taken_evenly_spaced(student, teacher, taken):
    pupil, master = masked_lm(student), masked_lm(teacher)
    fresh = masked_lm(student)
    init_student(pupil, master, "layers")
    assert same(pupil.bert.embeddings, master.bert.embeddings) and same(pupil.cls, master.cls)
    layers = pupil.bert.encoder["layer"]
    for i, source in enumerate(taken):
        assert same(layers[i], master.bert.encoder["layer"][source]), (
            f"layer {i} should be the teacher's {source}"
        )
    for i in range(len(taken), student):
        assert same(layers[i], fresh.bert.encoder["layer"][i]), "layers beyond the teacher's keep their start"


def test_embeddings_alone_leave_layers_and_positions_as_they_were():
    small = {"intermediate_size": 64}
    pupil, master, fresh = masked_lm(2, **small), masked_lm(4), masked_lm(2, **small)
    init_student(pupil, master, "embeddings")
    mine, theirs, own = (model.bert.embeddings for model in (pupil, master, fresh))
    for name in ("word_embeddings", "token_type_embeddings", "LayerNorm"):
        assert same(getattr(mine, name), getattr(theirs, name)), f"{name} should be the teacher's"
    assert same(pupil.cls, master.cls) and same(pupil.bert.encoder, fresh.bert.encoder)
    assert same(mine.position_embeddings, own.position_embeddings), "the first heads are built on them"


def test_spare_positions_are_left_out_and_missing_ones_keep_their_start():
    long, short = masked_lm(1, max_position_embeddings=40), masked_lm(2, max_position_embeddings=24)
    before = long.bert.embeddings.position_embeddings.weight[24:].clone()
    init_student(long, short, "layers")
    after = long.bert.embeddings.position_embeddings.weight
    assert torch.equal(after[:24], short.bert.embeddings.position_embeddings.weight)
    assert torch.equal(after[24:], before)


def test_words_that_cannot_be_add_nothing_to_the_divergence():
    """A logit of -inf in the teacher, or in both, is p = 0: it adds 0, in loss and gradient."""
    student, teacher = torch.randn(2, 1, 3, 7, generator=torch.Generator().manual_seed(0)).unbind(0)
    labels = torch.tensor([[1, -100, 4]])
    teacher[..., :2] = -torch.inf
    both = student.clone()
    both[..., 0] = -torch.inf
    for start in (student, both):
        logits = start.clone().requires_grad_()
        loss = kd_loss(logits, teacher, labels, 2.0)
        loss.backward()
        p, q = ((z.detach()[:, ::2].double() / 2).softmax(-1) for z in (teacher, logits))
        kept = p > 0
        expected = 4 * (p[kept] * (p[kept] / q[kept]).log()).sum()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        assert torch.allclose(logits.grad[:, ::2].double(), 2 * (q - p), atol=1e-5), "T (q - p)"
    assert kd_loss(both, student, labels, 2.0) == torch.inf, "the student excludes what the teacher expects"


@pytest.mark.parametrize("how", ["layers", "embeddings"])
def test_widths_that_do_not_fit_are_refused_with_the_sizes(how):
    with pytest.raises(ValueError, match="hidden_size 32, the teacher 64"):
        init_student(masked_lm(2), masked_lm(2, width=64), how)
    if how == "layers":
        with pytest.raises(ValueError, match="intermediate_size"):
            init_student(masked_lm(2), masked_lm(2, intermediate_size=99), how)
