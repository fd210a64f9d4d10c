"""The course kit: the students' version of this repository, made from the solution, which carries no markers.

python tests/course/handout.py --out FOLDER                      the exercises of exercises.py
python tests/course/handout.py --only 1-4 --student ID --out F   some of them, with a name on the sheet
python tests/course/handout.py --hunt --student ID --out FOLDER  a bug hunt: two bugs of bugs.py
python tests/course/handout.py --hunt --student ID --show        its answer, for the teacher
python tests/course/handout.py --check                           proof that all of it is what the tables say
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from bugs import BUGS, disguised, drawn
from check_submission import edge_names
from exercises import EXERCISES, answer_sheet, assignment, choose, wrapped

PROJECT = Path(__file__).resolve().parents[2]
PROGRAMS = ("model.py", "masking.py", "train.py", "distill.py", "glue_eval.py")
# No student gets these, nor this folder's README; check_submission.py stands at the top of a handout instead.
TEACHERS = ("handout.py", "grade.py", "trials.py", "wrong.py", "bugs.py", "check_submission.py")
TEACHERS += ("test_handout.py", "test_grade.py")
KEPT_SECTIONS = ("## The idea", "## Read the code")  # of README; others show what a question asks for
TESTS_OF_README = ("tests/test_readme.py", "tests/test_masking_recipes.py")
PYTEST_INI = """\
[pytest]
# `pytest` runs the exercises; `pytest tests` the whole program too, when they are solved.
testpaths = tests/course
addopts = --tb=short -q --no-header
"""
# In place of the project's own loss in a handout: it would give exercises 5 and 8 away.
PLAIN_LOSS = {
    "MaskedLoss": '''\
class MaskedLoss:
    """(loss, correct, entropy [...]) = MaskedLoss.apply(logits [..., V], labels [...]), by exercises 5 and 8.

    The project's own class of this name computes the three and the gradient in one go, by hand, and faster.
    """

    @staticmethod
    def apply(logits, labels, compiled=None):
        loss, correct = mlm_loss(logits, labels)
        with torch.no_grad():
            entropy = masking.prediction_entropy(logits)
        return loss, correct, entropy''',
    "loss_of_rows": '''\
def loss_of_rows(*given):
    """A part of the project's own MaskedLoss, which is not in this handout."""
    raise NotImplementedError("MaskedLoss is not compiled here")''',
}
# Tests of how the project computes it, {file: words that occur in them}; students may do it another way.
LEFT_OUT = {
    "tests/test_train_parts.py": ("MaskedLoss", "loss_of_rows"),
    "tests/test_model_encoder.py": ("goes_by_hand",),
    "tests/test_masking_processes.py": ("test_masking_recipes",),
    "tests/test_train_gpu.py": ("the head and the loss",),
}


# ---- what is changed in a copy ----


def functions_of(source: str) -> dict:
    """{"function" or "Class.method": its syntax tree}"""
    found = {}
    for node in ast.parse(source).body:
        methods = node.body if isinstance(node, ast.ClassDef) else []
        found |= {f"{node.name}.{m.name}": m for m in methods if isinstance(m, ast.FunctionDef)}
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
    return found


def without_bodies(source: str, messages: dict) -> str:
    """Replace the bodies of functions by `raise NotImplementedError(message)`; docstrings stay.

    messages: {"function" or "Class.method": message}. All other lines stay byte for byte. Raises ValueError
    where a function is not there.
    """
    lines, found = source.split("\n"), functions_of(source)
    if missing := set(messages) - set(found):
        raise ValueError(f"no function {', '.join(sorted(missing))} in this source")
    for name in sorted(messages, key=lambda name: -found[name].lineno):  # from below: line numbers stay right
        node = found[name]
        documented = ast.get_docstring(node) is not None
        if documented and len(node.body) == 1 or node.body[0].lineno == node.lineno:
            raise ValueError(f"{name} has no body on lines of its own")
        start = node.body[0].end_lineno if documented else node.body[0].lineno - 1
        while not documented and lines[start - 1].lstrip().startswith("#"):
            start -= 1  # a comment above the first statement belongs to the body
        indent = " " * node.body[0].col_offset
        lines[start : node.end_lineno] = [f'{indent}raise NotImplementedError("{messages[name]}")']
    return "\n".join(lines)


def with_functions(source: str, functions: dict) -> str:
    """Put other functions, {name: source}, in the place of those of these names."""
    lines, found = source.split("\n"), functions_of(source)
    for name in sorted(
        functions, key=lambda name: -found[name].lineno
    ):  # from below: line numbers stay right
        node = found[name]
        new = textwrap.indent(functions[name], " " * node.col_offset)
        lines[node.lineno - 1 : node.end_lineno] = new.split("\n")
    return "\n".join(lines)


def removed(exercises) -> dict:
    """{file: its text without the bodies that these exercises ask for, and without what gives them away}"""
    messages = {}
    for e in exercises:
        for name in e.functions:
            messages.setdefault(e.file, {})[name] = f"Exercise {e.number}: {e.title}"
    changed = {file: without_bodies(read(file), names) for file, names in messages.items()}
    if {5, 8} & {e.number for e in exercises}:  # the project's own loss computes both by hand
        source = changed.get("train.py", read("train.py"))
        known = functions_of(source)
        plain = {name: text for name, text in PLAIN_LOSS.items() if name in known}
        changed["train.py"] = with_functions(source, plain)
    for file, words in LEFT_OUT.items():
        changed[file] = without_tests(read(file), words)
    return changed


def without_tests(source: str, words) -> str:
    """A test file without the tests in which one of these words occurs."""
    lines = source.split("\n")
    for node in sorted(ast.parse(source).body, key=lambda node: -node.lineno):
        text = ast.unparse(node)
        if isinstance(node, ast.FunctionDef) and any(word in text for word in words):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            lines[first - 1 : node.end_lineno] = ["# A test of the project's own solution is left out here."]
    return "\n".join(lines)


def read(file: str) -> str:
    """A file of the project, its line ends as they are."""
    return (PROJECT / file).read_bytes().decode()


def readme(sheet: str) -> str:
    """The sheet, and of README what answers no question: its title, the idea, the order of reading."""
    title, *parts = re.split(r"^(?=## )", read("README.md"), flags=re.M)
    kept = [part for part in parts if part.startswith(KEPT_SECTIONS)]
    text = re.sub(r"\[([^]]+)\]\((?!https?:)[^)]*\)", r"\1", "".join(kept))  # what links lead to is not here
    return title.splitlines()[0] + "\n\n" + sheet + text


def files_of(exercises, student: str = "") -> dict:
    """{file: text} where a handout of these exercises differs from the project; None for no such file."""
    changed = removed(exercises)
    changed["README.md"] = readme(assignment(exercises, student))
    changed["answers.md"] = answer_sheet(exercises, student)
    changed["pytest.ini"] = PYTEST_INI
    changed["check_submission.py"] = submission_checker()
    changed |= {f"tests/course/{name}": None for name in TEACHERS}
    changed |= {name: None for name in TESTS_OF_README}
    changed |= {e.tests: None for e in EXERCISES if e not in exercises}
    return changed


def submission_checker() -> str:
    """check_submission.py, which knows what the programs hold beside what a student writes."""
    given = {file: wrapped(" ".join(sorted(edge_names(read(file))))) for file in PROGRAMS}
    lines = [f'    "{file}": """\n{names}\n""".split(),\n' for file, names in given.items()]
    text = read("tests/course/check_submission.py")
    return text.replace("GIVEN = {}", "GIVEN = {\n" + "".join(lines) + "}", 1)


def write(folder: Path, changed: dict):
    """Copy the project into an empty folder, with {file: text} in place of what those files hold."""
    files = [PROJECT / name for name in ("requirements.txt", ".gitignore", ".ruff.toml", *PROGRAMS)]
    files += [*PROJECT.glob("tests/*.py"), *PROJECT.glob("tests/course/*.py")]
    # The lab's programs answer questions when they are run; its pages and results would before.
    files += [path for path in PROJECT.glob("tests/lab/*.py") if not path.name.startswith("test_")]
    for path in files:
        name = path.relative_to(PROJECT).as_posix()
        if name not in changed:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    write_files(folder, {file: text for file, text in changed.items() if text is not None})


def write_files(folder: Path, files: dict):
    """Write {file: text} below a folder."""
    for file, text in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(text.encode())


# ---- the bug hunt ----


def hunt(student: str) -> dict:
    """{file: text} of a copy for the bug hunt: two bugs of this student's, and as little else as runs."""
    found = drawn(student)
    files = {"model.py", "masking.py", "train.py", *(bug.file for bug in found)}
    changed = {}
    for file in sorted(files):
        source = read(file)
        for bug in found:
            source = bug.apply(source) if bug.file == file else source
        changed[file] = disguised(source, student)
    symptoms = "\n".join(wrapped(bug.symptom, f"{n}. ") for n, bug in enumerate(found, 1))
    changed["README.md"] = HUNT.format(student=student, symptoms=symptoms)
    changed["requirements.txt"] = read("requirements.txt")
    return changed


HUNT = """\
# Find two bugs

For: {student}

In two of these programs one place is wrong: bugs that projects of this field really had. The programs run,
without comments, and no test comes with them. What somebody saw:

{symptoms}

Hand in `report.md` and the mended programs. Ten points, five for each bug:

1. **Symptom**: reproduce it with a few lines of your own, or say with figures what would show it.
2. **Place**: the line.
3. **Cause**: what it computes, what it should compute (the equation, with its source), and how that makes the
   symptom.
4. **Mend**: the line as it should be; the symptom is gone.
5. **Test**: a function of `assert`s with values worked out by hand; it fails before and passes after.

This copy has names of variables of its own, and many lines stand in other words than in anybody else's
or in the original: to compare files shows hundreds of differences, of which two are bugs.
"""


# ---- proof ----


def outcomes(tests, changed: dict, *options) -> dict:
    """Run test files in a copy with these changes: {file: [outcome of each test: PASSED, FAILED or ERROR]}"""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-rpfE", "-p", "no:cacheprovider"]
    with tempfile.TemporaryDirectory() as work:
        write(Path(work) / "copy", changed)
        printed = subprocess.run(
            [*command, *options, *sorted(tests)],
            cwd=Path(work) / "copy",
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": "", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        ).stdout
    found = {name: [] for name in tests}
    for outcome, name in re.findall(r"^(PASSED|FAILED|ERROR) (tests/[\w/]+\.py)", printed, re.M):
        found[name].append(outcome)
    return found


def check_solution() -> str:
    """Nothing is changed: every test passes."""
    result = outcomes({e.tests for e in EXERCISES} | {bug.tests for bug in BUGS}, {})
    bad = sorted(file for file, found in result.items() if set(found) != {"PASSED"})
    return f"does not pass {', '.join(bad)}" if bad else ""


def check_handout() -> str:
    """All is left out: every single test fails, so that no point comes for nothing."""
    result = outcomes({e.tests for e in EXERCISES}, removed(EXERCISES))
    bad = sorted(file for file, found in result.items() if set(found) != {"FAILED"})
    return f"passes tests of {', '.join(bad)}, or does not reach them" if bad else ""


def check_exercise(e) -> str:
    """One exercise is left out: its own tests fail, and those of the exercises in `needed_by`.

    Without the comparisons with other libraries, whose imports would take half of the time.
    """
    own = ("-k", "not (transformers or scikit or scipy)")
    result = outcomes({e.tests for e in EXERCISES}, removed([e]), *own)
    failing = {other.number for other in EXERCISES if set(result[other.tests]) != {"PASSED"}}
    expected = {e.number, *e.needed_by}
    return (
        f"fails exercises {sorted(failing)}; its row says {sorted(expected)}" if failing != expected else ""
    )


def check_bug(bug) -> str:
    """The bug is there: a test of the file that it names fails."""
    found = outcomes([bug.tests], {bug.file: bug.apply(read(bug.file))})[bug.tests]
    return "" if "FAILED" in found else f"is not caught by {bug.tests}"


def submitted(workers, e, changed: dict, seconds: int = 60):
    """The grade of one exercise for a submission that holds these files, {file: text}."""
    import check_submission
    import grade

    with tempfile.TemporaryDirectory() as work:
        for file, text in changed.items():
            (Path(work) / file).write_text(text, encoding="utf-8")
        functions, unusable = check_submission.taken(work, e)
    return grade.grade_exercise(
        workers, e, functions, unusable, grade.seeds_of("check", "", e.number), seconds
    )


def check_grader(workers) -> list[str]:
    """Who gets too many points, or too few: the solution, what is wrong, forged or broken."""
    import grade
    import wrong

    by_number = {e.number: e for e in EXERCISES}
    handed_out = removed(EXERCISES)
    cases = []  # (name, exercise, files, fewest points, most points, seconds)
    for e in EXERCISES:
        cases.append(
            (f"the solution of exercise {e.number}", e, {e.file: read(e.file)}, e.points, e.points, 60)
        )
        cases.append((f"an empty exercise {e.number}", e, {e.file: handed_out[e.file]}, 0, 0, 60))
    for row in wrong.WRONG:
        e = by_number[row.number]
        files = {e.file: with_functions(read(e.file), row.functions)}
        cases.append((f"exercise {e.number}, {row.title},", e, files, 0, row.most, 60))
    for name, added in wrong.FORGED_FILES.items():
        files = {file: handed_out.get(file, "") + text for file, text in added.items()}
        for e in EXERCISES:
            if e.number in (5, 8, 11):
                whole = {e.file: handed_out[e.file]} | files
                cases.append((f"exercise {e.number}, forged by {name},", e, whole, 0, 0, 60))
    for name, functions in wrong.FORGED_BODIES.items():
        files = {"masking.py": with_functions(handed_out["masking.py"], functions)}
        cases.append((f"a body that {name}", by_number[5], files, 0, 0, 60))
    for name, file, text, number, fewest, most in wrong.broken(read, with_functions):
        cases.append((name, by_number[number], {file: text}, fewest, most, 5))

    for e in EXERCISES:
        grade.expected(e.number, grade.seeds_of("check", "", e.number))
    with ThreadPoolExecutor(workers.count) as pool:
        grades = list(pool.map(lambda case: submitted(workers, case[1], case[2], case[5]), cases))
    faults = []
    for (name, e, _, fewest, most, _), found in zip(cases, grades, strict=True):
        if not fewest <= found.points <= most:
            faults.append(f"{name} gets {found.points} of {e.points} points, not {fewest} to {most}")
    return faults


def check():
    """Run all proofs, as many at a time as there are processors. Exits with the list of what is not so."""
    from grade import Workers

    start = time.time()
    proofs = {"the solution": check_solution, "the handout": check_handout}
    proofs |= {f"without exercise {e.number} ({e.title})": partial(check_exercise, e) for e in EXERCISES}
    proofs |= {f"bug {n} ({bug.title})": partial(check_bug, bug) for n, bug in enumerate(BUGS, 1)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        wrong = dict(zip(proofs, pool.map(lambda proof: proof(), proofs.values()), strict=True))
    faults = [f"{name} {fault}" for name, fault in wrong.items() if fault]
    middle = time.time()
    workers = Workers()
    faults += check_grader(workers)
    workers.close()
    if faults:
        sys.exit("\n".join(f"handout.py: {fault}" for fault in faults))
    from wrong import FORGED_BODIES, FORGED_FILES, WRONG

    exercises = f"{len(EXERCISES)} exercises need their own functions and those of no other"
    print(f"{exercises}; {len(BUGS)} bugs are caught ({middle - start:.0f} s)")
    forged = len(FORGED_FILES) + len(FORGED_BODIES)
    print(
        f"the grader: solution {sum(e.points for e in EXERCISES)} of 100 points, {len(WRONG)} wrong "
        f"implementations within what they may get, {forged} forgeries 0 ({time.time() - middle:.0f} s)"
    )


# ---- the program ----


def main(argv=None):
    """Write a handout or a copy for the bug hunt, show its bugs, or prove that all is well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", metavar="FOLDER", help="new or empty folder to write to")
    parser.add_argument("--only", default="", metavar="1-4,6", help="these exercises; the rest stays solved")
    parser.add_argument(
        "--student", default="", metavar="ID", help="for whom: on the sheet, and draws the bugs"
    )
    parser.add_argument("--hunt", action="store_true", help="a bug hunt instead of exercises")
    parser.add_argument("--show", action="store_true", help="print the bugs of a student's hunt")
    parser.add_argument("--check", action="store_true", help="run the proofs")
    o = parser.parse_args(argv)
    if o.hunt and not o.student or o.show and not o.hunt:
        parser.error("a hunt needs --hunt and --student ID, which draws its two bugs")
    if not (o.check or o.out or o.show):
        parser.error("nothing to do: give --out FOLDER, --hunt with --student ID and --show, or --check")
    if o.check:
        check()
    if o.show:
        print("\n\n".join(bug.answer(read(bug.file)) for bug in drawn(o.student)))
    if not o.out:
        return
    try:
        folder = Path(o.out)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        if folder.exists():
            raise OSError(
                f"{folder} is not an empty folder, and nothing is overwritten; choose another --out"
            )
        if o.hunt:
            write_files(folder, hunt(o.student))
            print(f"written to {folder}; start with its README.md")
        else:
            write(folder, files_of(choose(o.only), o.student))
            print(
                f"written to {folder}; start with its README.md, then run pytest there: it prints the points"
            )
    except (OSError, ValueError) as error:
        sys.exit(f"handout.py: {error}")


if __name__ == "__main__":
    main()
