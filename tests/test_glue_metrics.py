"""glue_eval.py's averages, worked by hand; its metrics are compared with other libraries in tests/course."""

import warnings

import pytest

import glue_eval as glue


def test_what_always_answers_the_same_has_no_skill_and_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert glue.matthews_corrcoef([0, 1, 1, 0], [1, 1, 1, 1]) == 0
        assert glue.f1_score([0, 0, 0], [0, 0, 0]) == 0, "no row of class 1, and none was claimed"
        assert glue.pearsonr([0.1, 0.2, 0.4], [0.7, 0.7, 0.7]) == 0, "the mean of three 0.7 is rounded"
        assert glue.spearmanr([1.0, 2.0, 3.0], [2.7, 2.7, 2.7]) == 0


def test_the_average_is_a_mean_over_tasks_of_the_mean_of_their_metrics():
    arm = {
        "MRPC": {"0": {"scores": {"accuracy": 0.8, "f1_score": 0.6}}},
        "RTE": {"0": {"scores": {"accuracy": 0.5}}, "1": {"scores": {"accuracy": 0.9}}},
    }
    assert glue.seed_means(arm, ["MRPC", "RTE"]) == [pytest.approx((0.7 + 0.5) / 2)], "not (.8 + .6 + .5) / 3"
    assert glue.seed_means(arm, ["RTE"]) == [0.5, 0.9]


def test_spread_is_the_standard_deviation_of_a_sample():
    assert glue.spread([0.5, 0.7]) == "60.0 (14.1)", "divide by n - 1"
    assert glue.spread([0.5]) == "50.0", "one value has no spread, not a spread of 0"
