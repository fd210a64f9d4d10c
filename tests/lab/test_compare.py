"""compare.py: tests of significance against worked examples and SciPy, and what it says of sets of runs."""

import json
import math

import compare
import numpy as np
import pytest

# ---- the two tests ----


def test_welch_of_a_worked_example():
    # variances 1 and 4, v = 1/3 and 4/3: t = (4 - 2) / sqrt(5/3), nu = (5/3)^2 / (1/18 + 16/18) = 50/17
    t, nu, _ = compare.welch([1, 2, 3], [2, 4, 6])
    assert t == pytest.approx(2 / math.sqrt(5 / 3))
    assert nu == pytest.approx(50 / 17)


def test_paired_of_a_worked_example():
    # differences 1, 2, 3: mean 2, deviation 1, t = 2 sqrt(3), and p = 1 - t / sqrt(t^2 + 2) for nu = 2
    t, nu, p = compare.paired([1, 2, 3], [2, 4, 6])
    assert (t, nu) == (pytest.approx(2 * math.sqrt(3)), 2)
    assert p == pytest.approx(1 - math.sqrt(12 / 14))


def test_p_is_the_textbook_value():
    """Student's two-sided 5% points are 12.706, 2.776 and 2.228 for 1, 4 and 10 degrees of freedom."""
    for nu, t in ((1, 12.7062), (4, 2.776445), (10, 2.228139)):
        assert compare.two_sided_p(t, nu) == pytest.approx(0.05, abs=1e-6), nu


def test_the_interval_is_the_textbook_s():
    # With 3 and 3 runs of equal deviation 1, nu = 4 and t = 2.776: 2 -+ 2.776 sqrt(2/3)
    low, high = compare.welch_interval([1, 2, 3], [3, 4, 5])
    half = pytest.approx(2.776445 * math.sqrt(2 / 3), rel=1e-5)
    assert 2 - low == half and high - 2 == half
    assert compare.welch_interval([1, 2, 3], [1, 2, 3])[1] == half, "no difference, with an interval"
    assert compare.welch_interval([1], [1, 2]) is None
    stats = pytest.importorskip("scipy.stats")
    a, b = [1.0, 2.0, 4.0, 4.5], [3.0, 3.1, 3.3]
    expected = stats.ttest_ind(b, a, equal_var=False).confidence_interval()
    assert compare.welch_interval(a, b) == (
        pytest.approx(expected.low, rel=1e-3),
        pytest.approx(expected.high, rel=1e-3),
    )


def test_both_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for n_a, n_b, shift in ((2, 2, 0), (2, 3, 1), (3, 5, 0.1), (3, 3, 30), (10, 4, 2), (200, 300, 0.1)):
        a, b = rng.normal(0, 1, n_a), rng.normal(shift, 2, n_b)
        expected = stats.ttest_ind(b, a, equal_var=False)
        t, nu, p = compare.welch(a, b)
        assert (t, nu) == (pytest.approx(expected.statistic), pytest.approx(expected.df))
        assert p == pytest.approx(expected.pvalue, rel=1e-4), (n_a, n_b, shift)
        if n_a == n_b:
            expected = stats.ttest_rel(b, a)
            t, nu, p = compare.paired(a, b)
            assert (t, nu) == (pytest.approx(expected.statistic), expected.df)
            assert p == pytest.approx(expected.pvalue, rel=1e-4), (n_a, shift)


def test_both_are_silent_where_nothing_varies():
    assert compare.welch([0.5], [0.6, 0.7]) is None, "one value has no variance"
    assert compare.paired([0.5], [0.6]) is None
    collapsed = [0.684] * 3, [0.7] * 3
    assert compare.welch(*collapsed) is None, "collapsed runs have no spread: p would be 0 for nothing"
    assert compare.paired(*collapsed) is None


# ---- sets of runs ----


@pytest.fixture
def finished(tmp_path):
    """finished("a", {"RTE": [.5, .6]}) -> a model folder with the glue.json of such fine-tuning seeds."""

    def write(name, tasks, checkpoint=None, files=1, **settings):
        results = {
            task: {str(seed): {"scores": {"accuracy": score}} for seed, score in enumerate(scores)}
            for task, scores in tasks.items()
        }
        settings = {"lr": 1e-4, "checkpoint": checkpoint or name, **settings}
        data = dict.fromkeys(set(tasks) - {"AX"}, files)  # MNLI's stand for AX
        record = {"settings": settings, "data": data, "results": {"pretrained": results}}
        folder = tmp_path / name / "glue"
        folder.mkdir(parents=True)
        (folder / "glue.json").write_text(json.dumps(record))
        return tmp_path / name

    return write


def report(**arms):
    """What is printed for arms of folders."""
    specs = [f"{arm}={','.join(map(str, folders))}" for arm, folders in arms.items()]
    return compare.compare(compare.read_runs(specs))


def row(text, task):
    line = next(line for line in text.splitlines() if line.startswith(f"| {task}"))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_runs_are_compared_and_not_their_fine_tuning_seeds(finished):
    """Three seeds that agree within a run are one number: the spread is that between pretraining runs."""
    a = [finished(f"a{i}", {"RTE": [x - 0.1, x, x + 0.1]}) for i, x in enumerate((0.50, 0.60))]
    b = [finished(f"b{i}", {"RTE": [x - 0.1, x, x + 0.1]}) for i, x in enumerate((0.54, 0.66))]
    # Differences by pair .04 and .06: t = .05 / (.01414 / sqrt(2)) = 5 with 1 degree of freedom, where
    # p = 1 - 2 atan(t) / pi.
    expected = ["RTE", "55.0 (7.1)", "60.0 (8.5)", "+5.0"]
    cells = row(report(A=a, B=b), "RTE")
    assert cells[:4] == expected
    assert cells[5] == f"{1 - 2 * math.atan(5) / math.pi:.3f}"
    assert float(cells[4]) > 0.3, "without pairs the difference is within the spread of the runs"
    assert cells[6] == "no difference found"


def test_a_clear_difference_is_found_and_its_winner_named(finished):
    a = [finished(f"a{i}", {"RTE": [x], "QNLI": [x]}) for i, x in enumerate((0.50, 0.51, 0.52))]
    b = [finished(f"b{i}", {"RTE": [x], "QNLI": [1.1 - x]}) for i, x in enumerate((0.80, 0.81, 0.82))]
    text = report(A=a, B=b)
    assert row(text, "RTE")[3:] == ["+30.0", "0.000", "", "B is higher"], "equal differences have no spread"
    assert row(text, "QNLI")[6] == "A is higher"
    assert row(text, "average of 2")
    assert "3 tests at 5%: about 0.15 of them would find a difference by luck" in text


def test_arms_of_unequal_size_have_no_pairs(finished):
    a = [finished(f"a{i}", {"RTE": [x]}) for i, x in enumerate((0.50, 0.51, 0.52))]
    b = [finished(f"b{i}", {"RTE": [x]}) for i, x in enumerate((0.80, 0.82))]
    assert row(report(A=a, B=b), "RTE")[5:] == ["", "B is higher"]


def test_one_run_each_is_no_experiment(finished):
    a, b = (finished(name, {"RTE": x, "AX": x}) for name, x in {"a": [0.5, 0.51], "b": [0.6, 0.61]}.items())
    text = report(A=[a], B=[b])
    assert row(text, "RTE")[3:] == ["+10.0", "", "", "no test: the spread is not known"]
    assert "average of" not in text, "AX is not in GLUE's average"


def test_unequal_conditions_are_said(finished):
    a = finished("a", {"RTE": [0.5, 0.6], "SST-2": [0.8, 0.9]})
    b = finished("b", {"RTE": [0.5, 0.6]}, lr=1.0, files=2)
    text = report(A=[a], B=[b])
    assert "unequal conditions: lr differs between runs (0.0001, 1.0)" in text
    assert "unequal conditions: the files of RTE differ" in text
    assert "SST-2: not in every run, left out" in text


def test_a_folder_that_was_out_is_read_too(finished):
    a, b = finished("a", {"RTE": [0.5]}), finished("b", {"RTE": [0.6]})
    assert row(report(A=[a / "glue"], B=[b]), "RTE")[3] == "+10.0"


@pytest.mark.parametrize(
    "argv, reason",
    [
        (["A=x", "B=y"], "x/glue.json: No such file"),
        (["A"], "write NAME=RUN"),
        (["A={a},{a}", "B={a}"], "the same checkpoint twice is not two pretraining runs"),
        (["A={a}", "A={a}"], "each name once"),
        (["A={a}"], "two names are needed"),
    ],
)
def test_bad_input_is_one_sentence(finished, argv, reason):
    a = finished("a", {"RTE": [0.5]})
    with pytest.raises(SystemExit) as error:
        compare.main([spec.format(a=a) for spec in argv])
    assert reason in str(error.value) and str(error.value).startswith("compare.py: ")
    assert "\n" not in str(error.value)
