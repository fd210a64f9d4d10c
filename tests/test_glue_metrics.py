"""glue_eval.py's averages and significance test, against worked examples and SciPy."""

import math

import numpy as np
import pytest

import glue_eval as glue

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
