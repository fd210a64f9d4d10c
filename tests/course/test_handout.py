"""The course kit: what a handout leaves out and what it keeps, the points it prints, and the bugs."""

import ast
import re
import shutil
import subprocess
import sys

import bugs
import exercises
import handout
import pytest

EXERCISES = exercises.EXERCISES


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A handout."""
    folder = tmp_path_factory.mktemp("handout") / "new"
    handout.main(["--out", str(folder)])
    return folder


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


def test_bodies_go_with_their_comments_and_every_other_byte_stays():
    messages = {"one": "Exercise 1", "Some.two": "Exercise 2"}
    assert handout.without_bodies(BEFORE, messages) == AFTER


def test_a_function_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="no function four"):
        handout.without_bodies(BEFORE, {"four": ""})
    with pytest.raises(ValueError, match="Some.three has no body on lines of its own"):
        handout.without_bodies(BEFORE, {"Some.three": ""})


def functions(path):
    """{"function" or "Class.method": its syntax tree}"""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + f.name: f for f in inside if isinstance(f, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("file", sorted({e.file for e in EXERCISES}))
def test_a_handout_lacks_the_exercises_and_nothing_else(copy, file):
    solved, given = functions(handout.PROJECT / file), functions(copy / file)
    asked = {name: e for e in EXERCISES if e.file == file for name in e.functions}
    assert given.keys() == solved.keys()
    for name, node in given.items():
        if name in asked:
            *documentation, last = node.body
            assert isinstance(last, ast.Raise) and len(documentation) == bool(ast.get_docstring(node)), name
            assert f"Exercise {asked[name].number}:" in ast.unparse(last)
            assert ast.get_docstring(node) == ast.get_docstring(solved[name]), f"{name} lost its docstring"
            assert ast.dump(node.args) == ast.dump(solved[name].args), f"{name} lost its signature"
        else:
            assert ast.dump(node) == ast.dump(solved[name]), f"{name} is no exercise and was changed"


def test_a_handout_has_what_students_need_and_no_answers(copy):
    course = {path.relative_to(copy).as_posix() for path in (copy / "tests/course").iterdir()}
    assert course == {"tests/course/exercises.py", *(e.tests for e in EXERCISES)}, "more or fewer than needed"
    for file in ("requirements.txt", "tests/conftest.py", "tests/test_model_encoder.py"):
        assert (copy / file).is_file(), f"a handout lacks {file}"
    sheet = (copy / "README.md").read_text(encoding="utf-8")
    for e in EXERCISES:
        for text in (e.title, e.command, e.hint, e.question, *e.functions):
            assert text in sheet, f"the assignment sheet lacks {text!r}"
    assert "handout.py" not in sheet, "a command of a file that a handout does not have"


def test_the_command_of_the_sheet_selects_one_exercise():
    paths = (handout.PROJECT / "tests").rglob("test_*.py")
    files = {path.relative_to(handout.PROJECT).as_posix() for path in paths}
    for e in EXERCISES:
        chosen = [file for file in files if e.command.split()[-1] in file]
        assert chosen == [e.tests], f"{e.command} runs {chosen}"
    assert {file for file in files if "exercise_" in file} == {e.tests for e in EXERCISES}, (
        "a test file of an exercise without a row in the table"
    )


def test_points_are_the_share_of_tests_that_pass(copy, tmp_path):
    shutil.copytree(copy, tmp_path / "student")
    some = {"rule_sample": "Exercise 6: Selection"}  # three of the 13 tests of exercise 6 need it
    masking = handout.without_bodies(handout.read("masking.py"), some)
    (tmp_path / "student/masking.py").write_text(masking, encoding="utf-8")
    chosen = "exercise_5_ or exercise_6_ or exercise_8_"
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", "-k", chosen]
    printed = subprocess.run(command, cwd=tmp_path / "student", capture_output=True, text=True).stdout
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "exercise 5 Entropy 15 of 15 points, 15 of 15 tests pass" in lines, printed
    assert "exercise 6 Selection 15 of 20 points, 10 of 13 tests pass" in lines, printed
    assert "exercise 8 Loss 0 of 5 points, 0 of 10 tests pass" in lines, printed
    assert "total 30 of 40 points" in lines, printed


class Report:
    def __init__(self, test):
        self.nodeid = f"tests/course/test_exercise_5_entropy.py::{test}"


def test_a_test_with_one_failing_case_and_a_test_that_did_not_run_give_no_points():
    stats = {"passed": [Report("test_a[1]"), Report("test_b")], "failed": [Report("test_a[2]")]}
    assert "1 of  15 points, 1 of 15 tests" in exercises.scoreboard(stats)[0]
    stats = {"passed": [Report("test_a")], "skipped": [Report("test_b")]}
    assert "1 of  15 points, 1 of 14 tests" in exercises.scoreboard(stats)[0], "a skipped test does not count"
    assert exercises.scoreboard({"passed": []}) == []


def test_all_exercises_make_100_points():
    assert sum(e.points for e in EXERCISES) == 100


def test_the_page_for_teachers_agrees_with_the_tables():
    page = handout.read("tests/course/README.md")
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \| [^|]+ \| [\d.]+ \| (\d+) \|$", page, re.M)
    assert rows == [(str(e.number), e.title, str(e.points)) for e in EXERCISES]
    assert f"{sum(len(e.functions) for e in EXERCISES)} functions have lost their bodies" in page
    assert f"one real bug of {len(bugs.BUGS)}\n" in page


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("work of a week")
    with pytest.raises(SystemExit, match=r"handout.py: .* is not an empty folder, .* choose another --out$"):
        handout.main(["--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# ---- find the bug ----


@pytest.mark.parametrize("bug", bugs.BUGS, ids=lambda bug: bug.title)
def test_the_right_text_of_a_bug_occurs_exactly_once(bug):
    source = handout.read(bug.file)
    assert source.count(bug.old) == 1, f"the table of bugs is out of date: {bug.old!r} in {bug.file}"
    ast.parse(bug.apply(source))  # a bug that does not even load is no exercise
    with pytest.raises(ValueError, match="0 times, not once"):
        bug.apply("nothing here")


def test_a_copy_with_a_bug_differs_in_one_place_and_says_not_where(tmp_path, capsys):
    handout.main(["--bug", "3", "--out", str(tmp_path / "bug")])
    wrong = {}
    for path in (tmp_path / "bug").rglob("*.*"):
        name = path.relative_to(tmp_path / "bug")
        if path.is_file() and path.read_bytes() != (handout.PROJECT / name).read_bytes():
            wrong[name.as_posix()] = path.read_text(encoding="utf-8")
    bug = bugs.BUGS[2]
    assert wrong.keys() == {bug.file, "README.md"}
    assert wrong[bug.file] == bug.new.join(handout.read(bug.file).split(bug.old))
    assert "## Find the bug" in wrong["README.md"] and bug.title not in wrong["README.md"]
    assert not {"bugs.py", "handout.py"} & {path.name for path in tmp_path.rglob("*")}
    assert bug.title not in capsys.readouterr().out


def test_the_answer_is_a_diff(capsys):
    handout.main(["--bug", "11", "--show"])
    printed = capsys.readouterr().out
    assert "Schedule off by one" in printed and "test_exercise_9_schedule.py" in printed
    assert (
        "-    return highest * min((step + 1) /" in printed and "+    return highest * min(step /" in printed
    )
