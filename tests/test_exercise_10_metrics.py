"""Exercise 10, metrics by hand, against worked examples, scikit-learn and SciPy."""

import math
import warnings

import numpy as np
import pytest

import glue_eval as glue

LABELS = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
GUESSES = [1, 1, 1, 0, 1, 0, 0, 0, 0, 0]  # TP 3, FN 1, FP 1, TN 5


def test_accuracy_is_the_share_of_right_answers():
    assert glue.accuracy(LABELS, GUESSES) == pytest.approx(8 / 10), "8 of 10 answers are right"


def test_f1_is_not_precision():
    assert glue.f1_score(LABELS, GUESSES) == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    # all ones: precision .4, recall 1, harmonic mean 2 * .4 / 1.4
    assert glue.f1_score(LABELS, [1] * 10) == pytest.approx(0.8 / 1.4), (
        "F1 that equals precision is a known bug"
    )


def test_f1_counts_class_1_and_not_class_0():
    assert glue.f1_score([0, 0, 0, 1], [0, 0, 0, 0]) == 0, "all right on class 0 is worth nothing"


def test_matthews_of_a_worked_example():
    expected = (3 * 5 - 1 * 1) / math.sqrt((3 + 1) * (3 + 1) * (5 + 1) * (5 + 1))
    got = glue.matthews_corrcoef(LABELS, GUESSES)
    assert got == pytest.approx(expected), (
        "TP 3, FN 1, FP 1, TN 5: (TP TN - FP FN) / sqrt of the four margins"
    )
    assert glue.matthews_corrcoef(LABELS, [1 - y for y in LABELS]) == pytest.approx(-1), (
        "always wrong is -1, not 0"
    )


def test_spearman_gives_ties_their_average_rank():
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5
    got = glue.spearmanr([1, 2, 2, 3], [10, 20, 30, 40])
    assert got == pytest.approx(4.5 / math.sqrt(4.5 * 5)), (
        "the two 2s share rank 2.5, the mean of ranks 2 and 3"
    )


def test_spearman_sees_order_and_pearson_sees_distance():
    x = [1, 2, 3, 4, 5]
    assert glue.spearmanr(x, [v**5 for v in x]) == pytest.approx(1), "the same order is a perfect score"
    assert glue.pearsonr(x, [v**5 for v in x]) < 0.95, "a curve is no straight line"


@pytest.mark.parametrize(
    "metric, labels, guesses",
    [
        (glue.matthews_corrcoef, [0, 1, 1, 0], [1, 1, 1, 1]),
        (glue.f1_score, [0, 0, 0], [0, 0, 0]),
        (glue.pearsonr, [1.0, 2.0, 3.0], [2.7, 2.7, 2.7]),
        (glue.spearmanr, [1.0, 2.0, 3.0], [2.7, 2.7, 2.7]),
    ],
)
def test_a_degenerate_case_is_zero_and_said_aloud(metric, labels, guesses):
    with pytest.warns(UserWarning, match="counts as 0"):
        assert metric(labels, guesses) == 0


def test_a_constant_is_constant_in_spite_of_rounding():
    constant = np.full(1999, np.float32(0.1))  # its mean is not exactly 0.1
    with pytest.warns(UserWarning):
        assert glue.pearsonr(np.random.default_rng(0).random(1999), constant) == 0


@pytest.mark.parametrize("metric", [glue.accuracy, glue.f1_score, glue.matthews_corrcoef, glue.pearsonr])
@pytest.mark.parametrize("labels, guesses", [([], []), ([1, 0], [1]), ([1, 0], [1, float("nan")])])
def test_metrics_refuse_what_they_cannot_measure(metric, labels, guesses):
    with pytest.raises(ValueError, match="finite"):
        metric(labels, guesses)


@pytest.mark.parametrize("classes", [2, 3])
def test_metrics_agree_with_scikit_learn(classes):
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(classes)
    for size in (2, 5, 50, 1000):
        y, p = rng.integers(0, classes, (2, size))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert glue.accuracy(y, p) == pytest.approx(sklearn.accuracy_score(y, p))
            assert glue.matthews_corrcoef(y, p) == pytest.approx(sklearn.matthews_corrcoef(y, p), abs=1e-12)
            if classes == 2:
                assert glue.f1_score(y, p) == pytest.approx(sklearn.f1_score(y, p, zero_division=0))


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
