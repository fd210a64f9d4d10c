"""Knowledge distillation: the KL term, its gradient, why T^2, and what a student takes from its teacher."""

import math

import pytest
import torch

from distill import init_student, kd_loss
from model import BertConfig, BertForMaskedLM, init_normal


def logits(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kl_equals_a_sum_over_the_vocabulary_by_hand():
    student, teacher, T = logits(2, 3, 7, seed=1), logits(2, 3, 7, seed=2), 2.5
    labels = torch.tensor([[4, -100, 0], [-100, 6, 1]])
    total = 0.0
    for row, place in ((0, 0), (0, 2), (1, 1), (1, 2)):
        p = [math.exp(z / T) for z in teacher[row, place].tolist()]
        q = [math.exp(z / T) for z in student[row, place].tolist()]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        total += T**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    loss = kd_loss(student, teacher, labels, T)
    assert loss.item() == pytest.approx(total, rel=1e-12), (
        "T^2 sum_v p_v log(p_v / q_v), summed over masked positions (labels other than -100) and nothing else"
    )
    low = kd_loss(student.bfloat16(), teacher.bfloat16(), labels, T)
    assert low.dtype == torch.float32, "a softmax over a vocabulary needs float32, whatever the model runs in"
    assert low.item() == pytest.approx(total, rel=0.05)


def test_the_gradient_is_the_derivative():
    student, teacher = logits(3, 5, seed=3).requires_grad_(), logits(3, 5, seed=4)
    labels = torch.tensor([1, -100, 2])
    assert torch.autograd.gradcheck(lambda z: kd_loss(z, teacher, labels, 3.0), student)
    kd_loss(student, teacher, labels, 3.0).backward()
    gap = (student / 3).softmax(-1) - (teacher / 3).softmax(-1)
    assert torch.allclose(student.grad[[0, 2]], 3 * gap[[0, 2]].detach()), "the gradient is T (q - p)"
    assert not student.grad[1].any(), "no gradient where nothing is masked"


def test_t_squared_keeps_the_size_of_the_gradient():
    teacher, labels, sizes = logits(4, 11, seed=5), torch.zeros(4, dtype=torch.long), {}
    for T in (30.0, 100.0, 300.0):
        student = logits(4, 11, seed=6).requires_grad_()
        kd_loss(student, teacher, labels, T).backward()
        sizes[T] = student.grad.norm().item()
    # Hinton et al. 2015, section 2.1: for large T the gradient is ((z - mean z) - (v - mean v)) / V.
    z, v = logits(4, 11, seed=6), teacher
    limit = ((z - z.mean(-1, keepdim=True) - v + v.mean(-1, keepdim=True)) / 11).norm().item()
    for T, size in sizes.items():
        assert size == pytest.approx(limit, rel=5 / T), f"T {T}: without the T^2 it would shrink as 1 / T^2"


def test_a_student_that_equals_its_teacher_has_nothing_to_learn():
    student = logits(2, 4, 9).requires_grad_()
    loss = kd_loss(student, student.detach().clone(), torch.ones(2, 4, dtype=torch.long), 2.0)
    loss.backward()
    assert loss.abs() < 1e-12 and student.grad.abs().max() < 1e-12


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


def test_embeddings_alone_leave_the_layers_as_they_were():
    pupil, master, fresh = (
        masked_lm(2, intermediate_size=64),
        masked_lm(4),
        masked_lm(2, intermediate_size=64),
    )
    init_student(pupil, master, "embeddings")
    assert same(pupil.bert.embeddings, master.bert.embeddings) and same(pupil.cls, master.cls)
    assert same(pupil.bert.encoder, fresh.bert.encoder)


def test_spare_positions_are_left_out_and_missing_ones_keep_their_start():
    long, short = masked_lm(1, max_position_embeddings=40), masked_lm(2, max_position_embeddings=24)
    before = long.bert.embeddings.position_embeddings.weight[24:].clone()
    init_student(long, short, "embeddings")
    after = long.bert.embeddings.position_embeddings.weight
    assert torch.equal(after[:24], short.bert.embeddings.position_embeddings.weight)
    assert torch.equal(after[24:], before)


@pytest.mark.parametrize("how", ["layers", "embeddings"])
def test_widths_that_do_not_fit_are_refused_with_the_sizes(how):
    with pytest.raises(ValueError, match="hidden_size 32, the teacher 64"):
        init_student(masked_lm(2), masked_lm(2, width=64), how)
    if how == "layers":
        with pytest.raises(ValueError, match="intermediate_size"):
            init_student(masked_lm(2), masked_lm(2, intermediate_size=99), how)
