"""Exercise 11, distillation: learn a teacher's guesses. sum of T^2 KL(softmax(t / T) || softmax(s / T))"""

import math

import pytest
import torch

from distill import kd_loss


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
    assert loss.item() == pytest.approx(total, rel=1e-6), (
        f"expected {total:.4f}, T^2 sum_v p_v log(p_v / q_v) summed over the 4 places with a label, not "
        f"{loss.item():.4f}; without T^2 it is {total / T**2:.4f}, as a mean {total / 4:.4f}"
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


def test_it_goes_from_teacher_to_student():
    teacher, student = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])  # halves; 3/4 and 1/4
    got = kd_loss(student, teacher, torch.tensor([1]), 1.0).item()
    forward, backward = math.log(2 / 3) / 2 + math.log(2) / 2, 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert got == pytest.approx(forward, rel=1e-4), (
        f"KL(teacher || student) is {forward:.4f}, KL(student || teacher) {backward:.4f}; this is {got:.4f}: "
        "the student must cover all that the teacher believes"
    )


def test_nothing_masked_is_zero_and_no_nan():
    student = logits(2, 20, seed=0).requires_grad_()
    loss = kd_loss(student, logits(2, 20, seed=1), torch.full((2,), -100), 2.0)
    loss.backward()
    assert loss.item() == 0 and student.grad.isfinite().all()


def test_an_impossible_word_of_the_teacher_adds_nothing():
    student, teacher = (
        logits(1, 5),
        torch.tensor([[0.0, 0.0, 0.0, 0.0, -2000.0]], dtype=torch.float64),
    )  # p underflows to 0
    loss = kd_loss(student, teacher, torch.tensor([1]), 1.0)
    expected = -math.log(4) - student[0, :4].double().log_softmax(-1).mean().item()
    rest = student[0].double().logsumexp(-1) - student[0, :4].double().logsumexp(-1)
    assert loss.item() == pytest.approx(expected + rest.item(), rel=1e-4), "0 log 0 counts as 0, not NaN"
