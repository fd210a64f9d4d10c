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
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from bugs import BUGS
from exercises import EXERCISES, assignment

PROJECT = Path(__file__).resolve().parents[2]
TEACHERS = ("handout.py", "bugs.py", "test_handout.py")  # no student gets these, nor this folder's README
FIND_THE_BUG = """\
## Find the bug

One thing is wrong in one of the five programs (`*.py`): a bug that projects really had.

1. `pip install -r requirements.txt`, then `pytest`: all tests, a few minutes (`pytest -x` stops at
   the first that fails). Read what a failing test expected.
2. Find the line. Say what it computes, what it should compute, and which test told you.
3. What would a training run with this bug look like? Would you have noticed without the test?
4. Fix it: all tests pass.

"""


# ---- what is changed in a copy ----


def without_bodies(source: str, messages: dict) -> str:
    """Replace the bodies of functions by `raise NotImplementedError(message)`; docstrings stay.

    messages: {"function" or "Class.method": message}. All other lines stay byte for byte. Raises ValueError
    where a function is not there.
    """
    lines, found = source.split("\n"), {}
    for node in ast.parse(source).body:
        methods = node.body if isinstance(node, ast.ClassDef) else []
        found |= {f"{node.name}.{m.name}": m for m in methods if isinstance(m, ast.FunctionDef)}
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
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


def removed(exercises) -> dict:
    """{file: its text without the bodies that these exercises ask for}"""
    messages = {}
    for e in exercises:
        for name in e.functions:
            messages.setdefault(e.file, {})[name] = f"Exercise {e.number}: {e.title}"
    return {file: without_bodies(read(file), names) for file, names in messages.items()}


def read(file: str) -> str:
    """A file of the project, its line ends as they are."""
    return (PROJECT / file).read_bytes().decode()


def readme(sheet: str) -> str:
    """README with the sheet above its first section, and without the section that is for teachers."""
    text = re.sub(r"^## For courses\n.*?(?=^## |\Z)", "", read("README.md"), flags=re.M | re.S)
    return re.sub(r"^(?=## )", lambda _: sheet, text, count=1, flags=re.M)


def write(folder: Path, changed: dict, left_out=TEACHERS):
    """Copy the project into an empty folder, with {file: text} in place of what those files hold."""
    names = ("README.md", "requirements.txt", ".gitignore", ".ruff.toml", "tests/README.md")
    files = [PROJECT / name for name in names]
    files += [*PROJECT.glob("*.py"), *PROJECT.glob("tests/*.py")]
    files += [path for path in PROJECT.glob("tests/lab/**/*.*") if path.is_file() and path.suffix != ".pyc"]
    files += [path for path in PROJECT.glob("tests/course/*.py") if path.name not in left_out]
    for path in files:
        target = folder / path.relative_to(PROJECT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for file, text in changed.items():
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
