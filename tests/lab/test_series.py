"""series.sh makes every reported run, once, and continues where it stopped. (A stand-in makes the runs.)"""

import csv
import os
import shutil
import stat
import subprocess

import pytest
from conftest import PROJECT

SERIES = PROJECT / "tests/lab/series.sh"
pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="the series is a bash file")

# Stands in for python: notes the command, leaves a checkpoint and a log, and fails or sleeps if told to.
STAND_IN = """\
#!/usr/bin/env bash
echo "$*" >> "$NOTES"
while [ "$1" != --out ]; do
    shift || exit 0
    if [ $# = 0 ]; then exit 0; fi
done
mkdir -p "$2"
touch "$2/checkpoint.pt"
printf 'step,loss\\n0,7\\n250,6\\n375,6\\n500,5\\n2000,4\\n' > "$2/log.csv"
case "$2" in
    *"${FAILS:-nothing}") echo "no memory"; exit 1 ;;
    *"${SLEEPS:-nothing}") exec sleep 60 ;;
esac
"""


@pytest.fixture
def series(tmp_path):
    """series("main", FAILS="random-0") -> (the finished process, the commands that it gave to python)."""
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    notes = tmp_path / "notes.txt"

    def run_series(*parts, **settings):
        notes.write_text("")
        where = {"PYTHON": str(python), "NOTES": str(notes), "RUNS": str(tmp_path / "runs")}
        done = subprocess.run(
            ["bash", SERIES, *parts],
            env={**os.environ, **where, **settings},
            capture_output=True,
            text=True,
            timeout=50,
        )
        return done, notes.read_text().splitlines()

    return run_series


def runs_among(commands) -> dict:
    """{name of a run: its command} of training runs."""
    return {line.rpartition("/")[2]: line for line in commands if "--out" in line and "glue_eval" not in line}


def meaning(command: str) -> set:
    """The options of a training run, without what says where it is and which of our programs made it."""
    words = command.partition("--out")[0].split() + command.partition("--out")[2].split()[1:]
    words = [
        word for word in words if not word.endswith(".py") and word not in ("python", "count", "imitate")
    ]
    options = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word
            options[name] = ""
        else:
            options[name] = word.rpartition("/")[2]
    if "--like" in options:
        options["--masking"] = "frequency"
    if options.get("--seed") == "0":
        options.pop("--seed")  # the default
    options.pop("--dtype", "")  # some runs were made before it was fixed; see Protocol in the report
    options.pop("--resume", "")  # a run that was interrupted
    if "memory_variants.py" in command:
        options["--reading"] = "memory"
    return set(options.items())


def test_every_run_of_the_results_is_made_with_the_options_that_made_it(series):
    done, commands = series()
    assert done.returncode == 0, done.stderr
    made = runs_among(commands)
    for path in sorted((PROJECT / "tests/lab/results").rglob("runs.csv")):
        with open(path, newline="") as file:
            reported = {row["run"]: row["command"] for row in csv.DictReader(file)}
        for name, command in reported.items():
            assert meaning(made[name]) == meaning(command), f"{path}, {name}: {made[name]}"
    with open(PROJECT / "tests/lab/results/glue.csv", newline="") as file:
        judged = {f"{row['run']}-glue" for row in csv.DictReader(file)}
    judges = [line for line in commands if "glue_eval.py" in line]
    assert judged <= {line.rpartition("/")[2] for line in judges}
    trainings = [line for line in commands if "--out" in line and line not in judges]
    assert len(trainings) == len(made), "each run once"


def test_every_made_up_language_of_the_results_is_made(series):
    done, commands = series("language", "border")
    assert done.returncode == 0, done.stderr
    made = set()
    for line in (line for line in commands if "language.py" in line):
        words = line.split()

        def option(name, default, words=words):
            return words[words.index(name) + 1] if name in words else default

        seeds = line.partition("--seeds ")[2].partition(" --")[0].split()
        folder = option("--results", "").rpartition("lab/results")[2].strip("/")
        setting = (option("--easy", "8"), option("--noise", "0"), option("--steps", "1500"))
        made |= {(folder, *setting, seed) for seed in seeds}
    for path in sorted((PROJECT / "tests/lab/results").rglob("language.csv")):
        folder = path.parent.name if path.parent.name != "results" else ""
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                run = (folder, row["easy_words"], row["noise"], row["steps"], row["seed"])
                assert run in made, f"{path}: no line of the series makes {run}"


def test_finished_runs_are_left_alone_and_others_continue(series, tmp_path):
    series("collapse")
    (tmp_path / "runs/visible-high-0/finished").unlink()  # as if it had been killed at step 250
    (tmp_path / "runs/visible-high-0/log.csv").write_text("step,loss\n0,7\n250,6\n")
    done, commands = series("collapse")
    assert list(runs_among(commands)) == ["visible-high-0"]
    assert "--resume" in runs_among(commands)["visible-high-0"]


def test_a_run_is_stopped_after_its_last_evaluation(series, tmp_path):
    done, commands = series("collapse", SLEEPS="visible-high-0")  # would sleep for a minute
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/visible-high-0/finished").exists()


def test_a_failed_run_is_named_and_nothing_is_built_on_it(series, tmp_path):
    done, commands = series("distillation", FAILS="teacher-3000")
    assert done.returncode != 0 and "teacher-3000 failed" in done.stderr
    assert "no memory" in (tmp_path / "runs/teacher-3000.txt").read_text()
    assert list(runs_among(commands)) == ["teacher-3000"], "its students are not trained"
    done, commands = series("distillation")
    assert done.returncode == 0 and len(runs_among(commands)) == 1 + 7


def test_a_short_series_cuts_every_run_and_leaves_the_results_alone(series):
    done, commands = series("few", "glue", SHORT="20")
    for name, command in runs_among(commands).items():
        assert command.split("--steps")[-1].split()[0] == "20", f"{name}: the last --steps counts"
    judging = next(line for line in commands if "glue_eval" in line)
    assert "--max-train 64 --epochs 1" in judging
    (tables,) = (line for line in commands if "experiment.py" in line)
    assert tables.endswith("runs --results " + tables.split("--collect ")[1].split()[0] + "/results")


def test_an_unknown_part_is_refused(series):
    done, commands = series("everything")
    assert done.returncode == 1 and "everything is not a part of the series: main" in done.stderr
    assert not commands
