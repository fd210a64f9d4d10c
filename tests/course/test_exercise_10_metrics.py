"""Exercise 10, metrics by hand, against worked examples, scikit-learn and SciPy."""

import math

import numpy as np
import pytest

import glue_eval as glue

LABELS = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
GUESSES = [1, 1, 1, 0, 1, 0, 0, 0, 0, 0]  # TP 3, FN 1, FP 1, TN 5


# ---- accuracy ----


def test_accuracy_is_the_share_of_right_answers():
    assert glue.accuracy(LABELS, GUESSES) == pytest.approx(8 / 10), "8 of 10 answers are right"
    assert glue.accuracy([1, 0, 2, 1], [1.2, 0, 2, 1]) == pytest.approx(3 / 4), (
        "1.2 is not 1: nothing is rounded before it is compared"
    )


@pytest.mark.parametrize("gap", [0.05, -0.3])
def test_nearly_is_not_right(gap):
    got = glue.accuracy(LABELS, [guess + gap * (i == 0) for i, guess in enumerate(GUESSES)])
    assert got == pytest.approx(7 / 10), f"the first guess is {gap:+} beside its label: 7 of 10 are right"


# ---- F1 ----


def test_f1_is_not_precision():
    got = glue.f1_score(LABELS, GUESSES)
    assert got == pytest.approx(2 * 3 / (2 * 3 + 1 + 1)), (
        f"TP 3, FN 1, FP 1: expected 2 TP / (2 TP + FP + FN) = 0.75, not {got:.4f}"
    )
    # all ones: precision .4, recall 1, harmonic mean 2 * .4 / 1.4
    assert glue.f1_score(LABELS, [1] * 10) == pytest.approx(0.8 / 1.4), (
        "F1 that equals precision is a known bug"
    )


def test_f1_counts_class_1_and_not_class_0():
    assert glue.f1_score([0, 0, 0, 1], [0, 0, 0, 0]) == 0, "all right on class 0 is worth nothing"


# ---- Matthews ----


def test_matthews_of_a_worked_example():
    expected = (3 * 5 - 1 * 1) / math.sqrt((3 + 1) * (3 + 1) * (5 + 1) * (5 + 1))
    got = glue.matthews_corrcoef(LABELS, GUESSES)
    assert got == pytest.approx(expected), (
        "TP 3, FN 1, FP 1, TN 5: (TP TN - FP FN) / sqrt of the four margins"
    )
    assert glue.matthews_corrcoef(LABELS, [1 - y for y in LABELS]) == pytest.approx(-1), (
        "always wrong is -1, not 0"
    )


def test_matthews_of_three_classes():
    # c 4 hits of N 6; labels y_k 2 2 2, guesses p_k 3 1 2: (4 6 - 12) / sqrt((36 - 14) (36 - 12))
    got = glue.matthews_corrcoef([0, 0, 1, 1, 2, 2], [0, 0, 1, 2, 2, 0])
    assert got == pytest.approx(12 / math.sqrt(22 * 24)), (
        f"three classes, 4 hits of 6: expected 12 / sqrt(22 24) = 0.522, not {got:.3f}; the form with TP and "
        "TN knows two classes alone"
    )


def test_matthews_counts_a_class_that_only_guesses_have():
    # c 3 of N 4; y_k 2 2 0, p_k 1 2 1: (3 4 - 6) / sqrt((16 - 6) (16 - 8))
    got = glue.matthews_corrcoef([0, 0, 1, 1], [0, 2, 1, 1])
    assert got == pytest.approx(6 / math.sqrt(10 * 8)), (
        f"class 2 is guessed once and is no label: expected 6 / sqrt(10 8) = 0.671, not {got:.3f}; the "
        "classes are those of labels and guesses together"
    )


# ---- correlations ----


def test_spearman_gives_ties_their_average_rank():
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5
    got = glue.spearmanr([1, 2, 2, 3], [10, 20, 30, 40])
    assert got == pytest.approx(4.5 / math.sqrt(4.5 * 5)), (
        "the two 2s share rank 2.5, the mean of ranks 2 and 3"
    )
    # ranks 2, 2, 2, 4, 5 against 1, 2, 3, 4, 5: covariance 8, variances 8 and 10
    got = glue.spearmanr([1, 1, 1, 2, 3], [10, 20, 30, 40, 50])
    assert got == pytest.approx(8 / math.sqrt(8 * 10)), (
        f"three 1s share rank 2, and what follows has ranks 4 and 5: 0.8944, not {got:.4f} (ranks 1 1 1 2 3 "
        "or 3 3 3 4 5 give 0.8839, 1 1 1 4 5 give 0.8922, 1 2 3 4 5 give 1)"
    )


def test_spearman_sees_order_and_pearson_sees_distance():
    x = [1, 2, 3, 4, 5]
    assert glue.spearmanr(x, [v**5 for v in x]) == pytest.approx(1), "the same order is a perfect score"
    assert glue.pearsonr(x, [v**5 for v in x]) < 0.95, "a curve is no straight line"


def test_pearson_of_a_worked_example():
    # means 2 and 4, differences -1 0 1 and -1 -2 3: covariance 4, variances 2 and 14
    got = glue.pearsonr([1, 2, 3], [3, 2, 7])
    assert got == pytest.approx(4 / math.sqrt(2 * 14)), f"expected 4 / sqrt(2 14) = 0.756, not {got:.3f}"


@pytest.mark.parametrize("metric", [glue.pearsonr, glue.spearmanr])
def test_a_falling_line_has_correlation_minus_one(metric):
    got = metric([1, 2, 3, 4], [8.5, 6.5, 4.5, 2.5])
    assert got == pytest.approx(-1), f"what falls as the other rises has r = -1, not {got}"


# ---- edges ----


@pytest.mark.parametrize(
    "metric, labels, guesses",
    [
        (glue.matthews_corrcoef, [0, 1, 1, 0], [1, 1, 1, 1]),
        (glue.f1_score, [0, 0, 0], [0, 0, 0]),
        (glue.pearsonr, [1.0, 2.0, 3.0], [2.5, 2.5, 2.5]),
        (glue.spearmanr, [1.0, 2.0, 3.0], [2.7, 2.7, 2.7]),
    ],
)
def test_nothing_over_nothing_is_zero(metric, labels, guesses):
    try:
        got = metric(labels, guesses)
    except ZeroDivisionError:
        pytest.fail(f"{metric.__name__} is 0 / 0 here and was divided: `ratio` makes it 0")
    assert got == 0, f"{metric.__name__} is 0 / 0 here: expected 0, not {got}"


def test_a_constant_is_constant_in_spite_of_rounding():
    constant = [2.7, 2.7, 2.7]
    assert np.mean(constant) != 2.7, "this test needs a mean that is rounded"
    for lists in (([1, 2, 4], constant), (constant, [1, 2, 4])):
        got = glue.pearsonr(*lists)
        assert got == 0, (
            f"one list is 2.7 throughout: expected 0 and not {got}. Its mean is rounded, so 2.7 - mean is "
            "not 0: test for a constant, or subtract the first element first"
        )


@pytest.mark.parametrize(
    "metric", [glue.accuracy, glue.f1_score, glue.matthews_corrcoef, glue.pearsonr, glue.spearmanr]
)
@pytest.mark.parametrize("labels, guesses", [([], []), ([1, 0], [1]), ([1, 0], [1, float("nan")])])
def test_metrics_refuse_what_they_cannot_measure(metric, labels, guesses):
    with pytest.raises(ValueError, match="finite"):
        metric(labels, guesses)


# ---- Matthews ----


@pytest.mark.parametrize("classes", [2, 3])
def test_metrics_agree_with_scikit_learn(classes):
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(classes)
    for size in (2, 5, 50, 1000):
        y, p = rng.integers(0, classes, (2, size))
        assert glue.accuracy(y, p) == pytest.approx(sklearn.accuracy_score(y, p))
        assert glue.matthews_corrcoef(y, p) == pytest.approx(sklearn.matthews_corrcoef(y, p), abs=1e-12)
        if classes == 2:
            assert glue.f1_score(y, p) == pytest.approx(sklearn.f1_score(y, p, zero_division=0))


# ---- correlations ----


def test_correlations_agree_with_scipy_with_many_ties():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for size in (3, 20, 1500):
        y, p = (
            np.round(rng.random(size) * 5, 1) + np.arange(size) % 2,
            rng.integers(0, 4, size) + np.arange(size) % 3,
        )
        assert glue.pearsonr(y, p) == pytest.approx(stats.pearsonr(y, p)[0])
        assert glue.spearmanr(y, p) == pytest.approx(stats.spearmanr(y, p)[0])
