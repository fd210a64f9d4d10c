"""glue_eval.py's metrics, averages and significance test, against worked examples, scikit-learn and SciPy."""

import math
import warnings

import numpy as np
import pytest

import glue_eval as glue

LABELS = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
GUESSES = [1, 1, 1, 0, 1, 0, 0, 0, 0, 0]  # TP 3, FN 1, FP 1, TN 5


def test_accuracy_is_the_share_of_right_answers():
    assert glue.accuracy(LABELS, GUESSES) == pytest.approx(8 / 10)


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
    assert glue.matthews_corrcoef(LABELS, GUESSES) == pytest.approx(expected)
    assert glue.matthews_corrcoef(LABELS, [1 - y for y in LABELS]) == pytest.approx(-1)


def test_spearman_gives_ties_their_average_rank():
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5
    assert glue.spearmanr([1, 2, 2, 3], [10, 20, 30, 40]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_spearman_sees_order_and_pearson_sees_distance():
    x = [1, 2, 3, 4, 5]
    assert glue.spearmanr(x, [v**5 for v in x]) == pytest.approx(1)
    assert glue.pearsonr(x, [v**5 for v in x]) < 0.95


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


# ---- Welch's t-test ----


def test_welch_of_a_worked_example():
    # variances 1 and 4, v = 1/3 and 4/3: t = (4 - 2) / sqrt(5/3), nu = (5/3)^2 / (1/18 + 16/18) = 50/17
    t, nu, _ = glue.welch([1, 2, 3], [2, 4, 6])
    assert t == pytest.approx(2 / math.sqrt(5 / 3))
    assert nu == pytest.approx(50 / 17)


def test_p_is_the_textbook_value():
    """Student's two-sided 5% point with 4 degrees of freedom is 2.776; equal variances and sizes give 4."""
    gap = 2.776445 * math.sqrt(2 / 3)
    t, nu, p = glue.welch([-1, 0, 1], [gap - 1, gap, gap + 1])
    assert (t, nu) == (pytest.approx(2.776445), pytest.approx(4))
    assert p == pytest.approx(0.05, abs=1e-6)


def test_welch_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for n_a, n_b, shift in ((2, 2, 0), (2, 3, 1), (3, 5, 0.1), (3, 3, 30), (10, 4, 2), (200, 300, 0.1)):
        a, b = rng.normal(0, 1, n_a), rng.normal(shift, 2, n_b)
        expected = stats.ttest_ind(b, a, equal_var=False)
        t, nu, p = glue.welch(a, b)
        assert t == pytest.approx(expected.statistic)
        assert nu == pytest.approx(expected.df)
        assert p == pytest.approx(expected.pvalue, rel=1e-4), (n_a, n_b, shift)


def test_welch_is_silent_where_no_variance_is_known():
    assert glue.welch([0.5], [0.6, 0.7]) is None, "one value has no variance"
    assert glue.welch([0.684] * 3, [0.7] * 3) is None, (
        "collapsed runs have no spread: p would be 0 for nothing"
    )


# ---- averages ----


def test_the_average_is_a_mean_over_tasks_of_the_mean_of_their_metrics():
    arm = {
        "MRPC": {"0": {"scores": {"accuracy": 0.8, "f1_score": 0.6}}},
        "RTE": {"0": {"scores": {"accuracy": 0.5}}, "1": {"scores": {"accuracy": 0.9}}},
    }
    assert glue.seed_means(arm, ["MRPC", "RTE"]) == {"0": pytest.approx((0.7 + 0.5) / 2)}, (
        "not (.8 + .6 + .5) / 3"
    )
    assert list(glue.seed_means(arm, ["RTE"])) == ["0", "1"]


def test_spread_is_the_standard_deviation_of_a_sample():
    assert glue.spread([0.5, 0.7]) == "60.0 (14.1)", "divide by n - 1"
    assert glue.spread([0.5]) == "50.0", "one value has no spread, not a spread of 0"
