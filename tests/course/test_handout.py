"""The course kit: what a handout leaves out and what it keeps, the points it prints, and the bug hunt."""

import ast
import re
import shutil
import subprocess
import sys

import bugs
import exercises
import handout
import pytest
import wrong

EXERCISES = exercises.EXERCISES


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A handout."""
    folder = tmp_path_factory.mktemp("handout") / "new"
    handout.main(["--out", str(folder)])
    return folder


def pytest_in(folder, *options) -> list[str]:
    """The lines that pytest prints in a handout, each without needless spaces."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    printed = subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout
    return [" ".join(line.split()) for line in printed.splitlines()]


BEFORE = '''\
import math  # kept

@decorated
def one(a,
        b=2):
    """Doc.

    More."""
    # how it is done
    x = """a
    string"""
    return x  # end

# a comment
class Some(Base):
    """Class."""
    y = 1

    def two(self):  # two
        # thoughts
        def inner():
            return 1
        return (inner(),
                2)
    def three(self): return 3
'''
AFTER = '''\
import math  # kept

@decorated
def one(a,
        b=2):
    """Doc.

    More."""
    raise NotImplementedError("Exercise 1")

# a comment
class Some(Base):
    """Class."""
    y = 1

    def two(self):  # two
        raise NotImplementedError("Exercise 2")
    def three(self): return 3
'''


# ---- what is left out ----


def test_bodies_go_with_their_comments_and_every_other_byte_stays():
    messages = {"one": "Exercise 1", "Some.two": "Exercise 2"}
    assert handout.without_bodies(BEFORE, messages) == AFTER


def test_a_function_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="no function four"):
        handout.without_bodies(BEFORE, {"four": ""})
    with pytest.raises(ValueError, match="Some.three has no body on lines of its own"):
        handout.without_bodies(BEFORE, {"Some.three": ""})


def test_functions_are_put_in_the_place_of_others_and_the_rest_stays():
    new = handout.with_functions(
        AFTER, {"Some.two": "def two(self):\n    return 4", "one": "def one():\n    pass"}
    )
    assert "@decorated\ndef one():\n    pass\n\n# a comment" in new
    assert "    def two(self):\n        return 4\n    def three(self): return 3" in new


def functions(path):
    """{"function" or "Class.method": its syntax tree}"""
    found = handout.functions_of(path.read_text(encoding="utf-8"))
    return {name: node for name, node in found.items() if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("file", sorted({e.file for e in EXERCISES}))
def test_a_handout_lacks_the_exercises_and_nothing_else(copy, file):
    solved, given = functions(handout.PROJECT / file), functions(copy / file)
    asked = {name: e for e in EXERCISES if e.file == file for name in e.functions}
    hidden = [*handout.PLAIN_LOSS, *(f"{name}.{method}" for name in handout.PLAIN_LOSS for method in METHODS)]
    assert given.keys() - set(hidden) == solved.keys() - set(hidden)
    for name, node in given.items():
        if name in asked:
            *documentation, last = node.body
            assert isinstance(last, ast.Raise) and len(documentation) == bool(ast.get_docstring(node)), name
            assert f"Exercise {asked[name].number}:" in ast.unparse(last)
            assert ast.get_docstring(node) == ast.get_docstring(solved[name]), f"{name} lost its docstring"
            assert ast.dump(node.args) == ast.dump(solved[name].args), f"{name} lost its signature"
        elif name not in hidden:
            assert ast.dump(node) == ast.dump(solved[name]), f"{name} is no exercise and was changed"


METHODS = ("apply", "forward", "backward")


def test_the_projects_own_loss_is_not_in_a_handout_and_gives_the_same(copy):
    """It computes by hand what exercises 5 and 8 ask for."""
    given = (copy / "train.py").read_text(encoding="utf-8")
    assert "log_sum" not in given and "ctx.save_for_backward" not in given
    for file, words in handout.LEFT_OUT.items():
        tests = {name: ast.unparse(node) for name, node in functions(copy / file).items()}
        left = [
            name for name, text in tests.items() if name.startswith("test_") and any(w in text for w in words)
        ]
        assert not left, f"{file} tests what a handout does not have: {left}"
        assert len(tests) < len(functions(handout.PROJECT / file)), f"nothing to leave out of {file} any more"

    import torch

    import train

    space = {"torch": torch, "masking": train.masking, "mlm_loss": train.mlm_loss}
    exec(handout.PLAIN_LOSS["MaskedLoss"], space)
    logits = torch.randn(3, 4, 30, requires_grad=True)
    labels = torch.randint(0, 30, (3, 4)).masked_fill(torch.rand(3, 4) < 0.4, -100)
    results = []
    for loss in (space["MaskedLoss"], train.MaskedLoss):
        value, correct, entropy = loss.apply(logits, labels)
        results.append([value, correct, entropy, *torch.autograd.grad(value, logits)])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one.detach().float(), other.detach().float(), atol=1e-4)


def test_a_handout_has_what_students_need_and_no_answers(copy):
    course = {path.relative_to(copy).as_posix() for path in (copy / "tests/course").iterdir()}
    given = {"tests/course/exercises.py", "tests/course/waiting.py", *(e.tests for e in EXERCISES)}
    assert course == given, "more or fewer than needed"
    needed = (
        "requirements.txt",
        "tests/conftest.py",
        "tests/lab/curves.py",
        "check_submission.py",
        "answers.md",
    )
    for file in needed:
        assert (copy / file).is_file(), f"a handout lacks {file}"
    sheet = (copy / "README.md").read_text(encoding="utf-8")
    flat = " ".join(sheet.split())
    for e in EXERCISES:
        for text in (e.title, e.command, e.hint, e.question, *e.functions):
            assert text in flat, f"the assignment sheet lacks {text!r}"
        assert e.question in " ".join((copy / "answers.md").read_text(encoding="utf-8").split())
    assert "handout.py" not in sheet, "a command of a file that a handout does not have"
    assert "## The idea" in sheet and sheet.startswith("# "), "README's idea is kept"
    for path in copy.rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        for number in ("4.921", "6.129", "6.161", "9.01", "1,048,576"):
            assert number not in text, f"{path} answers a question: {number}"
    assert not list(copy.glob("tests/lab/**/*.csv")), "results of the lab answer question 6"


def test_a_teachers_own_files_beside_the_programs_are_not_handed_out(tmp_path, monkeypatch):
    own = tmp_path / "project"
    own.mkdir()
    for name in ("requirements.txt", ".gitignore", ".ruff.toml", *handout.PROGRAMS, "solutions.py"):
        (own / name).write_text("")
    monkeypatch.setattr(handout, "PROJECT", own)
    handout.write(tmp_path / "copy", {})
    given = {path.name for path in (tmp_path / "copy").rglob("*.py")}
    assert given == set(handout.PROGRAMS), "the five programs, and nothing else that lies in the folder"


def test_the_sheet_follows_the_selection(tmp_path):
    handout.main(["--only", "1-2,9", "--student", "s123", "--out", str(tmp_path / "some")])
    sheet = (tmp_path / "some/README.md").read_text(encoding="utf-8")
    assert "## Assignment: 3 exercises, 20 points" in sheet and "For: s123" in sheet
    assert "Allow 2.5 hours" in " ".join(sheet.split()) and "question 9 a model" in sheet
    tests = {path.name for path in (tmp_path / "some/tests/course").glob("test_exercise_*.py")}
    assert tests == {EXERCISES[i].tests.split("/")[-1] for i in (0, 1, 8)}
    assert (tmp_path / "some/masking.py").read_text(encoding="utf-8") == handout.read("masking.py")
    answers = (tmp_path / "some/answers.md").read_text(encoding="utf-8")
    assert "Student: s123" in answers and "## 9. Schedule" in answers and "## 3." not in answers


@pytest.mark.parametrize("numbers", ["0", "12", "1-", "a", "4-40"])
def test_a_selection_that_is_none_is_refused(numbers, tmp_path):
    with pytest.raises(SystemExit, match="handout.py: --only"):
        handout.main(["--only", numbers, "--out", str(tmp_path / "new")])


def test_the_command_of_the_sheet_selects_one_exercise():
    paths = (handout.PROJECT / "tests").rglob("test_*.py")
    files = {path.relative_to(handout.PROJECT).as_posix() for path in paths}
    for e in EXERCISES:
        chosen = [file for file in files if e.command.split()[-1] in file]
        assert chosen == [e.tests], f"{e.command} runs {chosen}"
    assert {file for file in files if "exercise_" in file} == {e.tests for e in EXERCISES}, (
        "a test file of an exercise without a row in the table"
    )


# ---- points ----


@pytest.mark.parametrize("e", EXERCISES, ids=lambda e: e.title)
def test_every_test_belongs_to_a_concept_and_every_concept_has_tests(e):
    found = exercises.sections(handout.PROJECT / e.tests)
    assert set(found.values()) == {concept.title for concept in e.concepts}
    core = [concept for concept in e.concepts if concept.core]
    assert core and sum(concept.points for concept in e.concepts if not concept.core) <= 0.7 * e.points


def test_points_are_those_of_the_concepts_and_half_at_most_without_the_core():
    e = EXERCISES[4]
    everything = [concept.title for concept in e.concepts]
    assert e.score(everything) == e.points == 15
    assert e.score(["numbers", "care"]) == 5
    assert e.score([title for title in everything if title != "precision"]) == 14
    assert e.score([title for title in everything if title != "entropy"]) == 7, "11 points, and half is 7"


def test_the_first_run_of_a_handout_is_a_line_for_each_exercise(copy):
    lines = pytest_in(copy)
    start = next(i for i, line in enumerate(lines) if "points ===" in line)
    assert lines[start + 1] == "exercise 1 Attention 0 of 10 points, not written yet"
    assert lines[start + 12] == "total 0 of 100 points"
    assert len(lines) < 25, "a page of tracebacks is no welcome:\n" + "\n".join(lines)


def test_points_of_a_handout_in_which_some_is_solved(copy, tmp_path):
    shutil.copytree(copy, tmp_path / "student")
    some = {"rule_sample": "Exercise 6: Selection", "rule_mid": "Exercise 6: Selection"}
    masking = handout.without_bodies(handout.read("masking.py"), some)
    (tmp_path / "student/masking.py").write_text(masking, encoding="utf-8")
    lines = pytest_in(tmp_path / "student", "-k", "exercise_5_ or exercise_6_ or exercise_8_")
    assert "exercise 5 Entropy 15 of 15 points, all there" in lines, lines
    assert "exercise 6 Selection 10 of 20 points, to do: mid, sample (core)" in lines, lines
    assert "exercise 8 Loss 0 of 5 points, not written yet" in lines, lines
    assert "total 25 of 40 points" in lines, lines


NOT_BY_HAND = """\
def mlm_loss(logits, labels):
    log_p = logits.float().flatten(0, -2).log_softmax(-1)
    correct = (logits.argmax(-1) == labels).sum().float()
    return torch.nn.functional.nll_loss(log_p, labels.flatten(), reduction="sum"), correct"""


def test_points_say_what_did_not_run_and_what_the_grader_refuses(copy, tmp_path):
    shutil.copytree(copy, tmp_path / "student")
    masking = handout.read("masking.py").replace("    return entropy\n", "    return _mine(entropy)\n", 1)
    masking += "\n\ndef _mine(x):\n    return x\n"
    (tmp_path / "student/masking.py").write_text(masking, encoding="utf-8")
    train = handout.with_functions(handout.read("train.py"), {"mlm_loss": NOT_BY_HAND})
    (tmp_path / "student/train.py").write_text(train, encoding="utf-8")

    lines = pytest_in(tmp_path / "student", "-k", "exercise_6_ and sample")
    line = next(line for line in lines if line.startswith("exercise 6"))
    assert "to do" not in line and "not run: budget" in line, line
    assert any(line.startswith("rule_high (exercise 6)") and "uses _mine" in line for line in lines), lines

    lines = pytest_in(tmp_path / "student", "-k", "exercise_8_")
    assert "exercise 8 Loss 5 of 5 points, refused when graded: see below" in lines, lines
    assert any("by hand, without nll_loss" in line for line in lines), lines

    command = [sys.executable, "check_submission.py"]
    done = subprocess.run(command, cwd=tmp_path / "student", capture_output=True, text=True)
    assert "it uses _mine, which is not in the handout: put it inside" in done.stdout and done.returncode == 1
    good = [e for e in EXERCISES if e.file in ("masking.py", "train.py")]
    assert done.stdout.count("will be graded") == sum(len(e.functions) for e in good) - 2


def test_all_exercises_make_100_points():
    assert sum(e.points for e in EXERCISES) == 100


def test_the_page_for_teachers_agrees_with_the_tables():
    page = handout.read("tests/course/README.md")
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \| [^|]+ \| ([\d.]+) \| (\d+) \|$", page, re.M)
    assert rows == [(str(e.number), e.title, f"{e.hours:g}", str(e.points)) for e in EXERCISES]
    flat = " ".join(page.split())
    assert f"{sum(len(e.functions) for e in EXERCISES)} functions have lost their bodies" in flat
    assert f"{sum(e.hours for e in EXERCISES):g} hours" in flat
    assert f"of {len(bugs.BUGS)} real bugs" in flat
    assert f"{len(wrong.WRONG)} wrong implementations" in flat


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("work of a week")
    with pytest.raises(SystemExit, match=r"handout.py: .* is not an empty folder, .* choose another --out$"):
        handout.main(["--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# ---- the bug hunt ----


@pytest.mark.parametrize("bug", bugs.BUGS, ids=lambda bug: bug.title)
def test_the_right_text_of_a_bug_occurs_exactly_once(bug):
    source = handout.read(bug.file)
    assert source.count(bug.old) == 1, f"the table of bugs is out of date: {bug.old!r} in {bug.file}"
    ast.parse(bug.apply(source))  # a bug that does not even load is no exercise
    with pytest.raises(ValueError, match="0 times, not once"):
        bug.apply("nothing here")


def test_a_students_two_bugs_are_always_the_same_and_in_two_files():
    pairs = [bugs.drawn(f"student {i}") for i in range(200)]
    assert all(one.file != other.file for one, other in pairs)
    assert pairs == [bugs.drawn(f"student {i}") for i in range(200)]
    assert {bug.title for pair in pairs for bug in pair} == {bug.title for bug in bugs.BUGS}
    assert len({tuple(bug.title for bug in pair) for pair in pairs}) > 60, "neighbours have different bugs"


def test_a_hunt_has_no_tests_no_formulas_and_says_not_where(tmp_path, capsys):
    handout.main(["--hunt", "--student", "anna", "--out", str(tmp_path / "hunt")])
    found = bugs.drawn("anna")
    files = {path.relative_to(tmp_path / "hunt").as_posix() for path in (tmp_path / "hunt").rglob("*.*")}
    programs = {"model.py", "masking.py", "train.py", *(bug.file for bug in found)}
    assert files == programs | {"README.md", "requirements.txt"}
    text = (tmp_path / "hunt/README.md").read_text(encoding="utf-8") + capsys.readouterr().out
    for bug in found:
        assert bug.symptom in " ".join(text.split())
        assert bug.title not in text and bug.tests not in text
    for file in programs:
        for node in functions(tmp_path / "hunt" / file).values():
            assert ast.get_docstring(node) is None


def test_two_copies_differ_nearly_everywhere():
    one, other = (bugs.disguised(handout.read("masking.py"), student).splitlines() for student in ("a", "b"))
    bodies = [line for line in one if line.startswith("    ")]
    assert len(one) == len(other)
    assert sum(line not in other for line in bodies) > 0.3 * len(bodies)


def test_a_disguised_program_computes_the_same():
    files = {file: bugs.disguised(handout.read(file), "carl") for file in handout.PROGRAMS}
    found = handout.outcomes({e.tests for e in EXERCISES}, files)
    assert {outcome for outcomes in found.values() for outcome in outcomes} == {"PASSED"}


def test_the_answer_is_a_diff_for_each_bug(capsys):
    handout.main(["--hunt", "--student", "anna", "--show"])
    printed = capsys.readouterr().out
    for bug in bugs.drawn("anna"):
        assert bug.title in printed and bug.tests in printed
    assert printed.count("+++ ") == 2
