"""The grader: what it takes of a submission, what it refuses, and the files that it writes.

`handout.py --check` tries whole tables of wrong implementations and forgeries; here is each rule once.
"""

import csv
import json
import os

import check_submission
import exercises
import grade
import handout
import numpy
import pytest
import torch
import waiting

E5, E6 = exercises.EXERCISES[4:6]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="submissions are graded in forked processes")


@pytest.fixture(scope="module")
def workers():
    made = grade.Workers(1)
    yield made
    made.close()


# ---- what is taken ----

TEXT = '''\
import os
x = (1,

def before(a):
    return a

def wanted(a, b=2):
    """Doc."""
    text = """
left edge
"""
    # thought
    return (a +
b)
# a comment at the left edge

    # more
class Some:
    def wanted(self):
        return 1

    def other(self): return [1

    def last(self):
        return 3
'''


def test_a_function_is_cut_out_of_a_file_that_is_no_python():
    block = check_submission.cut(TEXT, "wanted")
    assert block.startswith("def wanted(a, b=2):") and "left edge" in block and block.count("return") == 1
    assert check_submission.cut(TEXT, "Some.wanted").splitlines()[0] == "def wanted(self):"
    assert "return 3" in check_submission.cut(TEXT, "Some.last")
    with pytest.raises(check_submission.Unusable, match="it is no Python"):
        check_submission.cut(TEXT, "Some.other")
    with pytest.raises(check_submission.Unusable, match="there is no `def nothing`"):
        check_submission.cut(TEXT, "nothing")


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "from os import path",
        "import torch.utils.cpp_extension",
        "from torch import load",
        "open('x')",
        "torch.load('x')",
        "torch._C",
        "x = ().__class__",
        "global RULES",
        "getattr(torch, 'x')",
        "from scipy.stats import rankdata",
        "torch.distributions.Categorical(logits=logits)",
        "torch.special.entr(logits)",
        "(x for x in [1]).gi_frame",
        "[0 for eval in ()]; eval('x')",
        "f = lambda open: 0; open('x')",
        "html.unescape('x')",
        "torch.serialization.re",
    ],
)
def test_ways_out_of_a_function_are_refused(line):
    text = f"def prediction_entropy(logits):\n    {line}\n    return logits.sum(-1)\n"
    with pytest.raises(check_submission.Unusable, match="refused|by hand"):
        check_submission.take(text, "prediction_entropy", E5)


def test_a_text_that_is_read_in_two_ways_stops_nobody():
    """What fails only after it was parsed costs one function, like a bracket left open."""
    start = "def prediction_entropy(logits):\n"
    deep = "    return 1" + " + 1" * 900
    for body in ("    return 1\n \x0cimport os\n", deep, "    nonlocal x\n    return x"):
        with pytest.raises(check_submission.Unusable, match="it is no Python"):
            check_submission.take(start + body, "prediction_entropy", E5)
    endless = start + '    """' + "\nx" * 10**5  # each line could be the end
    with pytest.raises(check_submission.Unusable, match="it is no Python"):
        check_submission.take(endless, "prediction_entropy", E5)


def test_a_refusal_is_as_short_as_the_text_is_not(tmp_path):
    start = "def prediction_entropy(logits):\n"
    with pytest.raises(check_submission.Unusable, match="characters"):
        check_submission.take(start + "    x = [" + "1, " * 10**5 + "\nx" * 400, "prediction_entropy", E5)
    (tmp_path / "masking.py").write_text(start + f"    import {'x' * 9999}\n    return logits\n")
    assert len(check_submission.taken(tmp_path, E5)[1]["prediction_entropy"]) <= 300


def test_a_link_to_the_solution_is_no_submission(tmp_path):
    (tmp_path / "masking.py").symlink_to(handout.PROJECT / "masking.py")
    good, bad = check_submission.taken(tmp_path, E5)
    assert not good and "masking.py is no file of its own" in bad["prediction_entropy"]


def test_a_variable_may_have_any_name():
    text = (
        "def rule_mid(entropy, pool, temperature, generator):\n    dist = entropy.abs()\n    return -dist\n"
    )
    assert check_submission.take(text, "rule_mid", E6)


def test_the_reference_is_refused_nowhere():
    for e in exercises.EXERCISES:
        good, bad = check_submission.taken(handout.PROJECT, e)
        assert not bad and set(good) == set(e.functions)


# ---- the judge ----


def test_what_is_near_agrees_and_what_is_not_does_not():
    def line(values, **more):
        return {"concept": "c", "name": "n", "close": 1e-3, "shape": [2], "values": values} | more

    wanted = line([1.0, float("nan")])
    assert grade.agrees(line([1.0005, float("nan")]), wanted)
    assert not grade.agrees(line([1.01, float("nan")]), wanted)
    assert not grade.agrees(line([1.0, 2.0]), wanted)
    assert not grade.agrees(line([1.0, float("nan")], shape=[1, 2]), wanted)
    assert not grade.agrees({"name": "n", "error": "ValueError"}, wanted)
    assert not grade.agrees(line([1.0], shape=[2]), wanted), "fewer numbers than the shape says"


def test_the_first_value_that_differs_is_shown_with_its_place():
    def line(values, shape):
        return {"concept": "c", "name": "n", "close": 1e-6, "shape": shape, "values": values}

    right = line([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3])
    got = line([1.0, 2.0, 3.0, 4.0, 5.00002, 7.0], [2, 3])
    assert grade.compared(got, right) == "expected 5 at [1, 1], got 5.00002; 2 of 6 values differ"
    close = grade.compared(line([5.00001], []), line([5.0], []))
    assert close.replace("5.00001", "") == "expected 5, got ", "five digits of both would look equal"
    assert (
        grade.compared(line([1.0], [1]), line([1.0], [])) == "expected [1] of shape [], got [1] of shape [1]"
    )


def test_what_a_student_says_stays_on_its_line():
    """An exception, its class and a word are the student's own: they write no page of feedback."""
    said = "# 100 of 100\n\n<b>" * 9999
    for line in ({"error": "E\n# x", "message": said}, {"error": said}, {"word": said}):
        got = grade.shown(line)
        assert len(got) <= 400 and "\n" not in got and "<" not in got


def test_answers_that_are_none_cost_points_and_do_not_stop_the_grader():
    reference = grade.expected(8, (1,))
    e = exercises.EXERCISES[7]
    for answers in ([], [{}] * 99, [{"name": line["name"], "shape": 3, "values": "x"} for line in reference]):
        wrong = grade.judge(e, answers, reference)
        assert e.score([title for title, messages in wrong.items() if not messages]) == 0
    assert not any(grade.judge(e, reference, reference).values())


def test_inputs_depend_on_student_exercise_and_key():
    seeds = {grade.seeds_of(*given) for given in (("a", "k", 1), ("b", "k", 1), ("a", "l", 1), ("a", "k", 2))}
    assert len(seeds) == 4 and grade.seeds_of("a", "k", 1) in seeds
    one, other = (grade.expected(10, grade.seeds_of(student, "k", 10)) for student in ("a", "b"))
    assert sum(a.get("values") == b.get("values") for a, b in zip(one, other, strict=True)) < 0.6 * len(one)


def test_the_process_that_answers_reads_no_solution_and_writes_nothing(workers, tmp_path):
    """The names are refused before anything runs; this is the second fence, in the process itself."""
    secret = tmp_path / "secret.txt"
    secret.write_text("x")
    around = f"open('../' * 9 + {str(secret)[1:]!r}).read()"
    for line in (
        f"open({str(secret)!r}).read()",
        around,
        "__import__('os').system('true')",
        "open('new.txt', 'w')",
    ):
        source = f"def prediction_entropy(logits):\n    {line}\n    return logits.sum(-1)\n"
        answers, _ = grade.observe(workers, E5, {"prediction_entropy": source}, (1,))
        assert answers[0]["error"] == "PermissionError", (line, answers[0])


def test_a_worker_that_dies_is_replaced(workers):
    worker = workers.free.get()
    worker.kill()
    worker.wait()
    workers.free.put(worker)
    good, bad = check_submission.taken(handout.PROJECT, E5)
    assert "died" in grade.grade_exercise(workers, E5, good, bad, (1,)).stopped
    assert grade.grade_exercise(workers, E5, good, bad, (1,)).points == 15


def test_an_endless_loop_ends_and_another_exercise_is_graded_as_before(workers):
    start = "def rule_high(entropy, pool, temperature, generator):\n    while True:\n        "
    body = "try:\n            for _ in iter(int, 1): len(str(pool))\n        except Exception: pass"
    stubborn = {"rule_high": start + body}
    found = grade.grade_exercise(workers, E6, stubborn, {}, (1,), seconds=2)
    assert "stopped after 2 seconds" in found.stopped and found.points == 0

    functions, bad = check_submission.taken(handout.PROJECT, E6)
    functions["rule_high"] = start + "pass"
    found = grade.grade_exercise(workers, E6, functions, bad, (1, 2), seconds=20)
    assert not found.stopped and found.points == 17, "the loop costs its own concept, high and low"
    assert "got TimeoutError: no answer after 5 seconds" in found.wrong["high and low"][0]
    good, bad = check_submission.taken(handout.PROJECT, E5)
    assert grade.grade_exercise(workers, E5, good, bad, (1,)).points == 15


@pytest.mark.parametrize(
    "line",
    [
        "x.sum().item()",
        "x[x > 0]",
        "numpy.from_dlpack(x)",
        "x.untyped_storage()",
        "str(x)",
        "torch.arange(x[2])",
        "torch.zeros(2).fill_(x[2].item())",
        "x[: x[1]]",
    ],
)
def test_what_brings_a_number_to_the_host_is_noticed(line):
    given = {"torch": torch, "numpy": numpy, "x": torch.arange(3)}
    with pytest.raises(AssertionError, match="host"):
        waiting.without_waiting(lambda: eval(line, given))
    waiting.without_waiting(lambda: torch.where(given["x"] > 0, given["x"].masked_fill(given["x"] > 1, 0), 7))


# ---- what is written ----


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """grades/ of two submissions, one whole, one with a bracket left open and a wrong rule."""
    work = tmp_path_factory.mktemp("grading")
    wrong = {"rule_both": "def rule_both(entropy, pool, temperature, generator):\n    return entropy"}
    for name in ("anna", "ben"):
        (work / name).mkdir()
        for file in handout.PROGRAMS:
            (work / name / file).write_text(handout.read(file), encoding="utf-8")
    masking = handout.with_functions(handout.read("masking.py"), wrong)
    masking = masking.replace("def prediction_entropy(logits: torch.Tensor)", "def prediction_entropy(logits")
    (work / "ben/masking.py").write_text(masking, encoding="utf-8")
    grade.main([str(work / "anna"), str(work / "ben"), "--only", "5-6", "--out", str(work / "grades")])
    return work / "grades"


def test_one_table_for_all(written):
    with open(written / "grades.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["student"] for row in rows] == ["anna", "ben"]
    assert [row["total"] for row in rows] == ["35", "15"]
    assert rows[1]["5 Entropy (15)"] == "0" and rows[1]["6 Selection (20)"] == "15"
    assert "prediction_entropy: it is no Python" in rows[1]["not graded"]


def test_the_page_for_a_student_says_what_and_why(written):
    page = (written / "ben/feedback.md").read_text(encoding="utf-8")
    assert page.startswith("# ben: 15 of 35 points")
    assert "prediction_entropy was not graded: it is no Python" in page
    assert "python check_submission.py" in page, "what is refused is not seen by a green pytest"
    assert "both (5 points): " in page and "expected" in page and "pytest -k exercise_6_" in page


def test_gradescopes_file_has_its_documented_fields(written):
    """https://gradescope-autograders.readthedocs.io/en/latest/specs/"""
    results = json.loads((written / "ben/results.json").read_text(encoding="utf-8"))
    top = {"score", "execution_time", "output", "output_format", "test_output_format", "test_name_format"}
    top |= {"visibility", "stdout_visibility", "extra_data", "tests", "leaderboard"}
    of_a_test = {"score", "max_score", "status", "name", "name_format", "number", "output", "output_format"}
    of_a_test |= {"tags", "visibility", "extra_data"}
    visibilities = {"hidden", "after_due_date", "after_published", "visible"}
    assert set(results) <= top and results["visibility"] in visibilities
    assert results["score"] == sum(test["score"] for test in results["tests"]) == 15
    for test in results["tests"]:
        assert set(test) <= of_a_test and test["visibility"] in visibilities
        assert test["status"] in ("passed", "failed") and 0 <= test["score"] <= test["max_score"]
        assert isinstance(test["output"], str) and isinstance(test["number"], str)


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match=r"^grade.py: .* is no folder$"):
        grade.main([str(tmp_path / "nobody"), "--out", str(tmp_path / "grades")])


def test_students_are_told_beforehand(tmp_path, capsys, monkeypatch):
    (tmp_path / "masking.py").write_text("def rule_low(e, p, t, g):\n    import os\n    return -e\n")
    monkeypatch.setattr("sys.argv", ["check_submission.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="functions will be refused"):
        check_submission.main()
    printed = capsys.readouterr().out
    assert "rule_low" in printed and "refused in an exercise: import os" in printed
    assert "answers.md is missing" in printed
