"""The course kit: the students' version of this repository, made from the solution, which carries no markers.

python tests/course/handout.py --out FOLDER            the exercises of exercises.py
python tests/course/handout.py --bug 3 --out FOLDER    "find the bug": all works except for bug 3 of bugs.py
python tests/course/handout.py --bug 3 --show          the answer, for the teacher
python tests/course/handout.py --check                 proof that exercises and bugs are what the tables say
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

from bugs import BUGS
from exercises import EXERCISES, answer_sheet, assignment

PROJECT = Path(__file__).resolve().parents[2]
PROGRAMS = ("model.py", "masking.py", "train.py", "distill.py", "glue_eval.py")
# No student gets these, nor this folder's README; check_submission.py stands at the top of a handout instead.
TEACHERS = ("handout.py", "grade.py", "trials.py", "wrong.py", "bugs.py", "check_submission.py")
TEACHERS += ("test_handout.py", "test_grade.py")
PYTEST_INI = """\
[pytest]
# `pytest` runs the exercises; `pytest tests` the whole program too, when they are solved.
testpaths = tests/course
addopts = --tb=short -q --no-header
"""
PLAIN_LOSS = '''\
class MaskedLoss:
    """(loss, correct, entropy [...]) = MaskedLoss.apply(logits [..., V], labels [...]), by exercises 5 and 8.

    The project's own class of this name computes the three and the gradient in one go, by hand, and faster.
    """

    @staticmethod
    def apply(logits, labels):
        loss, correct = mlm_loss(logits, labels)
        with torch.no_grad():
            entropy = masking.prediction_entropy(logits)
        return loss, correct, entropy
'''.rstrip()


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
    if {5, 8} & {e.number for e in exercises}:  # MaskedLoss computes a loss and an entropy by hand
        changed["train.py"] = with_functions(
            changed.get("train.py", read("train.py")), {"MaskedLoss": PLAIN_LOSS}
        )
        tests = read("tests/test_train_parts.py")
        nodes = functions_of(tests)
        about = [node for node in nodes.values() if "MaskedLoss" in ast.unparse(node)]
        lines = tests.split("\n")
        for node in sorted(about, key=lambda node: -node.lineno):
            lines[node.lineno - 1 : node.end_lineno] = [
                "# The tests of the project's own MaskedLoss are left out here."
            ]
        changed["tests/test_train_parts.py"] = "\n".join(lines)
    return changed


def read(file: str) -> str:
    """A file of the project, its line ends as they are."""
    return (PROJECT / file).read_bytes().decode()


def readme(sheet: str) -> str:
    """README with the sheet above its first section, and without the section that is for teachers."""
    text = re.sub(r"^## For courses\n.*?(?=^## |\Z)", "", read("README.md"), flags=re.M | re.S)
    return re.sub(r"^(?=## )", lambda _: sheet, text, count=1, flags=re.M)


def files_of(exercises, student: str = "") -> dict:
    """{file: text} where a handout of these exercises differs from the project; None for no such file."""
    changed = removed(exercises)
    changed["README.md"] = readme(assignment(exercises, student))
    changed["answers.md"] = answer_sheet(exercises, student)
    changed["pytest.ini"] = PYTEST_INI
    changed["check_submission.py"] = read("tests/course/check_submission.py")
    changed |= {f"tests/course/{name}": None for name in TEACHERS}
    changed |= {e.tests: None for e in EXERCISES if e not in exercises}
    return changed


def write(folder: Path, changed: dict):
    """Copy the project into an empty folder, with {file: text} in place of what those files hold."""
    names = ("README.md", "requirements.txt", ".gitignore", ".ruff.toml", "tests/README.md")
    files = [PROJECT / name for name in names]
    files += [*PROJECT.glob("*.py"), *PROJECT.glob("tests/*.py"), *PROJECT.glob("tests/course/*.py")]
    files += [path for path in PROJECT.glob("tests/lab/**/*.*") if path.is_file() and path.suffix != ".pyc"]
    for path in files:
        name = path.relative_to(PROJECT).as_posix()
        if name not in changed:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for file, text in changed.items():
        if text is not None:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(text.encode())


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


def check():
    """Run all proofs, as many at a time as there are processors. Exits with the list of what is not so."""
    start = time.time()
    proofs = {"the solution": check_solution, "the handout": check_handout}
    proofs |= {f"without exercise {e.number} ({e.title})": partial(check_exercise, e) for e in EXERCISES}
    proofs |= {f"bug {n} ({bug.title})": partial(check_bug, bug) for n, bug in enumerate(BUGS, 1)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        wrong = dict(zip(proofs, pool.map(lambda proof: proof(), proofs.values()), strict=True))
    if any(wrong.values()):
        sys.exit("\n".join(f"handout.py: {name} {fault}" for name, fault in wrong.items() if fault))
    exercises = f"{len(EXERCISES)} exercises need their own functions and those of no other"
    print(f"{exercises}; {len(BUGS)} bugs are caught ({time.time() - start:.0f} s)")


# ---- the program ----


def main(argv=None):
    """Write a handout or a repository with a bug, show a bug, or prove that all is well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", metavar="FOLDER", help="new or empty folder to write to")
    parser.add_argument("--bug", metavar="N", type=int, choices=range(1, len(BUGS) + 1), help="which bug")
    parser.add_argument("--show", action="store_true", help="print the bug instead of writing it")
    parser.add_argument("--check", action="store_true", help="run the proofs")
    o = parser.parse_args(argv)
    bug = BUGS[o.bug - 1] if o.bug else None
    if o.check:
        check()
    if o.show and bug:
        print(bug.answer(read(bug.file)))
    if not (o.check or o.out or o.show and bug):
        parser.error("nothing to do: give --out FOLDER, --bug N with --out FOLDER or --show, or --check")
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
        if bug:
            changed = {bug.file: bug.apply(read(bug.file)), "README.md": readme(FIND_THE_BUG)}
            write(folder, changed, (*TEACHERS, "exercises.py"))
        else:
            write(folder, removed(EXERCISES) | {"README.md": readme(assignment())})
        print(f"written to {folder}; start with its README.md, then run pytest there")
    except OSError as error:
        sys.exit(f"handout.py: {error}")


if __name__ == "__main__":
    main()
