"""Grade submissions: `python tests/course/grade.py FOLDER...`, each named after its student.

From each submission only those functions are taken that the exercises ask for (check_submission.py). They are
put into a fresh copy of the handout, one exercise at a time, and asked (trials.py) in a process of its own,
with limits of time and memory, in a folder that holds no solution. The numbers that come back are compared
here with those of the reference, for inputs drawn from the student's name and a secret key.

Written below --out for each submission: feedback.md and Gradescope's results.json; and grades.csv for all.
"""

import argparse
import csv
import hashlib
import json
import os
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

COURSE = Path(__file__).resolve().parent
PROJECT = COURSE.parents[1]
sys.path[:0] = [str(COURSE), str(PROJECT / "tests"), str(PROJECT)]

import check_submission  # noqa: E402
import handout  # noqa: E402
from exercises import ANSWER_POINTS, EXERCISES, choose  # noqa: E402

SECONDS = 60  # of an exercise; the reference needs three
MEGABYTES = 2000  # beyond what Python and torch take
VARIANTS = 2  # sets of inputs for each student and exercise


@dataclass
class Grade:
    """What one exercise of one submission is worth, and why."""

    exercise: object
    points: int = 0
    understood: list = field(default_factory=list)  # titles of concepts
    wrong: dict = field(default_factory=dict)  # {title of a concept: messages}
    unusable: dict = field(default_factory=dict)  # {name of a function: why it cannot be graded}
    stopped: str = ""  # why the process did not come to its end


# ---- the process that is asked ----


@lru_cache(maxsize=1)
def programs() -> dict:
    """{file: text} of the five programs of a handout with all exercises."""
    changed = handout.removed(EXERCISES)
    return {file: changed.get(file) or handout.read(file) for file in handout.PROGRAMS}


def assemble(e, functions: dict) -> dict:
    """{file: text} of the programs of a handout with these functions of one exercise in place."""
    files = dict(programs())
    files[e.file] = handout.with_functions(files[e.file], functions)
    return files


class Workers:
    """Processes that have loaded torch and nothing else, and start one process for each exercise."""

    def __init__(self, count: int | None = None):
        self.tools = tempfile.TemporaryDirectory(prefix="grading-")
        for name in ("trials.py", "waiting.py"):
            shutil.copyfile(COURSE / name, Path(self.tools.name) / name)
        self.count = count or os.cpu_count() or 1
        self.free = queue.Queue()
        for _ in range(self.count):
            self.free.put(self.start())

    def start(self) -> subprocess.Popen:
        """A new process that waits for jobs."""
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        program = "import sys; sys.path.insert(0, sys.argv[1]); import trials; trials.serve()"
        return subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", program, self.tools.name],
            cwd=self.tools.name,
            env=kept | {"OMP_NUM_THREADS": "1", "HOME": self.tools.name, "TMPDIR": self.tools.name},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, job: dict) -> str:
        """Let one process answer. Returns why it stopped early, or ""."""
        worker = self.free.get()
        reply = ""
        try:
            worker.stdin.write(json.dumps(job) + "\n")
            worker.stdin.flush()
            reply = worker.stdout.readline()
        except OSError:
            pass  # it has died: another takes its place
        finally:
            self.free.put(worker if reply else self.start())
        if not reply:
            end(worker)
            return "the process that starts submissions died with it"
        code = json.loads(reply)
        if code is None or code in (-signal.SIGXCPU, -signal.SIGKILL):
            return f"stopped after {job['seconds']} seconds, or for its memory: a loop that does not end?"
        return f"its process ended with code {code}" if code else ""

    def close(self):
        """End the processes, none of which has a job any more."""
        for _ in range(self.count):
            end(self.free.get())
        self.tools.cleanup()


def end(worker: subprocess.Popen):
    """Close the pipe to a process, which may be dead, and wait for its end."""
    with suppress(OSError):
        worker.stdin.close()
    worker.wait()


def observe(workers, e, functions: dict, seeds, seconds=SECONDS) -> tuple[list, str]:
    """(what a student's functions answered, a dict for each question; why they stopped early, or "")."""
    with tempfile.TemporaryDirectory(prefix="graded-") as work:
        folder = Path(work).resolve()
        for file, text in assemble(e, functions).items():
            (folder / file).write_text(text, encoding="utf-8")
        job = {"folder": str(folder), "number": e.number, "seeds": seeds, "seconds": seconds}
        stopped = workers.run(job | {"megabytes": MEGABYTES})
        lines = []
        with suppress(OSError, ValueError, RecursionError):
            for line in (folder / "observed.jsonl").read_text(encoding="utf-8").splitlines():
                lines.append(json.loads(line))
        if stopped and not lines and (folder / "errors.txt").exists():
            said = (folder / "errors.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            stopped += f" ({said[-1][:300]})" if said else ""
    return lines, stopped


@lru_cache(maxsize=64)
def expected(number: int, seeds: tuple) -> list:
    """What the reference answers, in this process."""
    import torch
    import trials

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    lines = []
    trials.ask(number, seeds, lines.append)
    torch.set_num_threads(threads)
    return lines


# ---- the judge ----


def shown(line: dict) -> str:
    """An answer in a few words: on one line and without tags, since a student may have chosen them."""
    if "error" in line or "word" in line:
        said = f"{line['error']}: {line.get('message', '')}" if "error" in line else str(line["word"])
        return " ".join(said.replace("<", "(")[:400].split())
    values = ", ".join(f"{value:.5g}" for value in line["values"][:4])
    more = ", ..." if len(line["values"]) > 4 else ""
    return f"[{values}{more}] of shape {line['shape']}"


def compared(got: dict, wanted: dict) -> str:
    """What was expected and what came: of two arrays the first value that differs, with its place."""
    if "values" not in got or "values" not in wanted or got["shape"] != wanted["shape"]:
        return f"expected {shown(wanted)}, got {shown(got)}"
    values, right = np.array(got["values"], dtype=np.float64), np.array(wanted["values"], dtype=np.float64)
    close = wanted["close"]
    wrong = np.flatnonzero(~np.isclose(values, right, rtol=close, atol=close, equal_nan=True))
    first = wrong[0]
    digits = next((d for d in (5, 9) if f"{values[first]:.{d}g}" != f"{right[first]:.{d}g}"), 17)
    place = f" at {[int(i) for i in np.unravel_index(first, wanted['shape'])]}" if wanted["shape"] else ""
    more = f"; {len(wrong)} of {len(right)} values differ" if len(right) > 1 else ""
    return f"expected {right[first]:.{digits}g}{place}, got {values[first]:.{digits}g}{more}"


def agrees(got: dict, wanted: dict) -> bool:
    """Whether an answer is that of the reference. Raises where it is no answer at all."""
    if "error" in wanted or "error" in got:
        return wanted.get("error") == got.get("error")
    if "word" in wanted or "word" in got:
        return wanted.get("word") == got.get("word")
    if got["shape"] != wanted["shape"]:
        return False
    values = np.array(got["values"], dtype=np.float64)
    right = np.array(wanted["values"], dtype=np.float64)
    close = wanted["close"]
    return values.shape == right.shape and np.allclose(values, right, rtol=close, atol=close, equal_nan=True)


def judge(e, answers: list, reference: list) -> dict:
    """{title of a concept: what was wrong in it}, empty lists where all is as it should be."""
    wrong = {concept.title: [] for concept in e.concepts}
    for i, wanted in enumerate(reference):
        got = answers[i] if i < len(answers) else {}
        name = wanted["name"]
        try:
            if not got:
                wrong[wanted["concept"]].append(f"{name}: no answer")
            elif got["name"] != name:
                wrong[wanted["concept"]].append(f"{name}: the answer to another question")
            elif not agrees(got, wanted):
                wrong[wanted["concept"]].append(f"{name}: {compared(got, wanted)}")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            wrong[wanted["concept"]].append(f"{name}: an answer that cannot be read")
    return wrong


def seeds_of(student: str, key: str, number: int) -> tuple:
    """The seeds of a student's variants of an exercise."""
    digest = [hashlib.sha256(f"{key}\n{student}\n{number}\n{i}".encode()).digest() for i in range(VARIANTS)]
    return tuple(int.from_bytes(part[:4], "big") for part in digest)


def grade_exercise(workers, e, functions: dict, unusable: dict, seeds: tuple, seconds=SECONDS) -> Grade:
    """Ask the functions of one exercise and judge the answers."""
    grade = Grade(e, unusable=unusable)
    answers = []
    if functions:
        answers, grade.stopped = observe(workers, e, functions, seeds, seconds)
    reference = expected(e.number, seeds)
    wrong = judge(e, answers, reference)
    grade.wrong = {title: messages for title, messages in wrong.items() if messages}
    grade.understood = [title for title in wrong if title not in grade.wrong]
    grade.points = e.score(grade.understood)
    return grade


def grade_submission(workers, folder: Path, student: str, key: str, chosen=EXERCISES) -> list[Grade]:
    """The grades of all exercises of a submission, each in a process of its own."""

    def one(e):
        functions, unusable = check_submission.taken(folder, e)
        return grade_exercise(workers, e, functions, unusable, seeds_of(student, key, e.number))

    for e in chosen:
        expected(e.number, seeds_of(student, key, e.number))  # in this thread: it sets torch's own
    with ThreadPoolExecutor(workers.count) as pool:
        return list(pool.map(one, chosen))


# ---- what is written ----


def remarks(grade: Grade) -> list[str]:
    """What a student should know of the grade of an exercise."""
    e = grade.exercise
    lines = [f"{name} was not graded: {why}." for name, why in grade.unusable.items()]
    lines += [f"{grade.stopped}."] if grade.stopped else []
    for concept in e.concepts:
        messages = grade.wrong.get(concept.title, [])
        if messages and len(grade.unusable) < len(e.functions):
            core = ", of the core: at most half of the points" if concept.core else ""
            lines.append(
                f"{concept.title} ({concept.points} point{'s' * (concept.points > 1)}{core}): {messages[0]}"
            )
            if len(messages) > 1:
                lines.append(f"    and {len(messages) - 1} more of this concept")
    return lines


def feedback(student: str, grades: list[Grade]) -> str:
    """The page for a student, in Markdown."""
    points = sum(grade.points for grade in grades)
    possible = sum(grade.exercise.points for grade in grades)
    lines = [f"# {student}: {points} of {possible} points", ""]
    lines += ["| | exercise | points | understood | missing |", "|---|---|---|---|---|"]
    for grade in grades:
        e = grade.exercise
        missing = ", ".join(grade.wrong) or "-"
        understood = ", ".join(grade.understood) or "-"
        lines.append(f"| {e.number} | {e.title} | {grade.points} of {e.points} | {understood} | {missing} |")
    lines += [
        "",
        f"The questions in `answers.md`, {ANSWER_POINTS * len(grades)} points, are read by a person.",
        "",
    ]
    for grade in grades:
        if found := remarks(grade):
            e = grade.exercise
            lines += [f"## {e.number}. {e.title}", ""]
            lines += [f"- {line.strip()}" for line in found]
            lines += [""]
            if grade.unusable:
                lines += [
                    "`python check_submission.py` says what is refused, also where `pytest` is green.",
                    "",
                ]
            if len(grade.unusable) < len(e.functions) and grade.wrong:
                lines += [f"Look at the section of that name in `{e.tests}`, and run `{e.command}`.", ""]
    return "\n".join(lines)


def gradescope(grades: list[Grade]) -> dict:
    """results.json as Gradescope's autograder documentation describes it."""
    tests = []
    for grade in grades:
        e = grade.exercise
        output = "\n".join(remarks(grade)) or "All there."
        tests.append(
            {
                "name": f"{e.number}. {e.title}",
                "number": str(e.number),
                "score": grade.points,
                "max_score": e.points,
                "status": "passed" if grade.points == e.points else "failed",
                "output": output,
                "visibility": "after_due_date",
            }
        )
    score = sum(grade.points for grade in grades)
    return {"score": score, "output": "Graded by concept.", "visibility": "visible", "tests": tests}


def write(out: Path, all_grades: dict, chosen):
    """The pages of all submissions and one CSV."""
    rows = []
    for student, grades in all_grades.items():
        folder = out / student
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "feedback.md").write_text(feedback(student, grades), encoding="utf-8")
        results = json.dumps(gradescope(grades), indent=1)
        (folder / "results.json").write_text(results + "\n", encoding="utf-8")
        unusable = "; ".join(f"{name}: {why}" for grade in grades for name, why in grade.unusable.items())
        rows.append(
            [
                student,
                *(grade.points for grade in grades),
                sum(grade.points for grade in grades),
                "",
                unusable,
            ]
        )
    names = [
        "student",
        *(f"{e.number} {e.title} ({e.points})" for e in chosen),
        "total",
        "answers",
        "not graded",
    ]
    with open(out / "grades.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows])


def main(argv=None):
    """Grade folders and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="a submission, named after its student")
    parser.add_argument("--out", default="grades", metavar="FOLDER", help="where to write (grades)")
    parser.add_argument("--only", default="", metavar="1-4,6", help="grade these exercises alone")
    parser.add_argument("--student", default="", metavar="ID", help="instead of the name of a single folder")
    parser.add_argument(
        "--key", default="", help="secret that inputs depend on; else a file in --out keeps one"
    )
    o = parser.parse_args(argv)
    try:
        chosen = choose(o.only)
        folders = {o.student or Path(name).resolve().name: Path(name) for name in o.folders}
        if len(folders) < len(o.folders):
            raise ValueError("two folders have one name: every student needs another")
        if missing := [str(path) for path in folders.values() if not path.is_dir()]:
            raise ValueError(f"{missing[0]} is no folder")
        out = Path(o.out)
        out.mkdir(parents=True, exist_ok=True)
        if not o.key and not (out / "key.txt").exists():
            (out / "key.txt").write_text(secrets.token_hex(16))
        key = o.key or (out / "key.txt").read_text()
        grades = {}
        workers = Workers()
        for student, folder in folders.items():
            grades[student] = grade_submission(workers, folder, student, key, chosen)
            points = sum(grade.points for grade in grades[student])
            print(f"{student}: {points} of {sum(e.points for e in chosen)} points", flush=True)
        workers.close()
        write(out, grades, chosen)
        print(f"written to {out}: grades.csv, and feedback.md and results.json for each")
    except (OSError, ValueError) as error:
        sys.exit(f"grade.py: {error}")


if __name__ == "__main__":
    main()
