"""Exercise 11, distillation: learn a teacher's guesses. sum of T^2 KL(softmax(t / T) || softmax(s / T))"""

import math

import pytest
import torch

from distill import kd_loss


def logits(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def compare_with_a_sum_by_hand(T):
    student, teacher = logits(2, 3, 7, seed=1), logits(2, 3, 7, seed=2)
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
        f"{loss.item():.4f} (T = {T}); without T^2 it is {total / T**2:.4f}, as a mean {total / 4:.4f}"
    )


# ---- KL ----


def test_kl_equals_a_sum_over_the_vocabulary_by_hand():
    compare_with_a_sum_by_hand(1.0)


# ---- T squared ----


@pytest.mark.parametrize("T", [0.5, 2.5])
def test_a_temperature_softens_both_and_t_squared_makes_up_for_it(T):
    compare_with_a_sum_by_hand(T)


# ---- numbers ----


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32, torch.float64])
def test_it_computes_in_float32_at_least(kind):
    student, teacher = logits(2, 50, seed=1).to(kind), logits(2, 50, seed=2).to(kind)
    loss, exact = (
        kd_loss(student.to(dtype), teacher.to(dtype), torch.ones(2, dtype=torch.long), 2.0)
        for dtype in (kind, torch.float64)
    )
    expected = torch.float64 if kind == torch.float64 else torch.float32
    assert loss.dtype == expected, (
        f"{kind} logits: expected a loss in {expected}, not {loss.dtype}; a softmax over a vocabulary needs "
        "float32 at least, and float64 stays: torch.promote_types(dtype, torch.float32)"
    )
    assert loss.item() == pytest.approx(exact.item(), rel=1e-4), (
        f"{kind} logits: {loss.item():.5f}, and the same in float64 {exact.item():.5f}: the sum needs float32"
    )


# ---- T squared ----


def test_the_gradient_is_the_derivative():
    student, teacher = logits(3, 5, seed=3).requires_grad_(), logits(3, 5, seed=4)
    labels = torch.tensor([1, -100, 2])
    kd_loss(student, teacher, labels, 3.0).backward()
    gap = (student / 3).softmax(-1) - (teacher / 3).softmax(-1)
    assert torch.allclose(student.grad[[0, 2]], 3 * gap[[0, 2]].detach(), rtol=1e-4), (
        "the gradient at a student's logit is T (q - p), summed over nothing but its own place"
    )
    assert not student.grad[1].any(), "no gradient where nothing is masked"
    loss = kd_loss(student, teacher, labels, 3.0)
    if loss.dtype == torch.float64:  # what is less is said by the test above, and too coarse for differences
        assert torch.autograd.gradcheck(lambda z: kd_loss(z, teacher, labels, 3.0), student)


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


# ---- KL ----


def test_a_student_that_equals_its_teacher_has_nothing_to_learn():
    student = logits(2, 4, 9).requires_grad_()
    loss = kd_loss(student, student.detach().clone(), torch.ones(2, 4, dtype=torch.long), 2.0)
    loss.backward()
    assert loss.abs() < 1e-6, (
        f"KL(p || p) is 0, not {loss.item():.6f}; is this a cross-entropy, with p's own entropy?"
    )
    assert student.grad.abs().max() < 1e-6, "q is p already, so the gradient T (q - p) is 0"


def test_it_goes_from_teacher_to_student():
    teacher, student = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])  # halves; 3/4 and 1/4
    got = kd_loss(student, teacher, torch.tensor([1]), 1.0).item()
    forward, backward = math.log(2 / 3) / 2 + math.log(2) / 2, 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert got == pytest.approx(forward, rel=1e-4), (
        f"KL(teacher || student) is {forward:.4f}, KL(student || teacher) {backward:.4f}; this is {got:.4f}: "
        "the student must cover all that the teacher believes"
    )


# ---- numbers ----


def test_nothing_masked_is_zero_and_no_nan():
    student = logits(2, 20, seed=0).requires_grad_()
    loss = kd_loss(student, logits(2, 20, seed=1), torch.full((2,), -100), 2.0)
    loss.backward()
    assert loss.item() == 0, (
        f"no place has a label: expected a loss of 0, not {loss.item()} (a mean is 0 / 0, NaN)"
    )
    assert student.grad.isfinite().all(), "the gradient of no loss is 0, not NaN"


def test_an_impossible_word_of_the_teacher_adds_nothing():
    student, teacher = (
        logits(1, 5),
        torch.tensor([[0.0, 0.0, 0.0, 0.0, -2000.0]], dtype=torch.float64),
    )  # p underflows to 0
    loss = kd_loss(student, teacher, torch.tensor([1]), 1.0)
    assert not loss.isnan(), (
        "0 log 0 came out as NaN; it counts as 0 (log_softmax is finite, log(softmax) is not)"
    )
    expected = -math.log(4) - student[0, :4].double().log_softmax(-1).mean().item()
    rest = student[0].double().logsumexp(-1) - student[0, :4].double().logsumexp(-1)
    expected += rest.item()
    assert loss.item() == pytest.approx(expected, rel=1e-4), (
        f"the teacher gives four words 1/4 each and the fifth 0: expected the KL {expected:.4f}, "
        f"a sum over those four, not {loss.item():.4f}"
    )
