"""Set the GLUE scores of pretraining runs side by side, with tests of significance:

    python tests/lab/compare.py random=runs/random-0,runs/random-1 self=runs/self-0,runs/self-1

Every run is a model folder with its glue/glue.json, or a folder that was glue_eval.py's --out. The unit is a
pretraining run: fine-tuning seeds are averaged within a run, then runs are compared, since seeds of
fine-tuning say nothing about a second pretraining.
"""

import argparse
import math
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from glue_eval import ARMS, NO_AVERAGE, TASKS, markdown, seed_means, spread  # noqa: E402
from model import explain, read_json  # noqa: E402

# ---- two tests: (t, degrees of freedom, two-sided p), or None where nothing varies ----


def welch(a, b):
    """Welch's test of two samples, of any two sizes from 2 on (Welch 1947).

    t = (mean b - mean a) / sqrt(v_a + v_b) with v = s^2 / n;
    nu = (v_a + v_b)^2 / (v_a^2 / (n_a - 1) + v_b^2 / (n_b - 1)).
    """
    if min(len(a), len(b)) < 2 or max(np.var(a), np.var(b)) < 1e-20:
        return None
    v_a = np.var(a, ddof=1) / len(a)
    v_b = np.var(b, ddof=1) / len(b)
    t = (np.mean(b) - np.mean(a)) / math.sqrt(v_a + v_b)
    nu = (v_a + v_b) ** 2 / (v_a**2 / (len(a) - 1) + v_b**2 / (len(b) - 1))
    return float(t), float(nu), two_sided_p(t, nu)


def paired(a, b):
    """Student's test of the differences b - a of pairs, here runs with the same initial weights and data.

    t = mean d / (s_d / sqrt(n)), nu = n - 1. What the two of a pair share does not blur the difference.
    """
    d = np.subtract(b, a)
    if len(d) < 2 or np.var(d) < 1e-20:
        return None
    t = d.mean() / math.sqrt(np.var(d, ddof=1) / len(d))
    return float(t), float(len(d) - 1), two_sided_p(t, len(d) - 1)


def welch_interval(a, b):
    """The 95% interval of mean b - mean a that belongs to Welch's test: (low, high), or None.

    Difference -+ t sqrt(v_a + v_b) with the t beyond which lies 5% of Student's distribution.
    """
    test = welch(a, b)
    if test is None:
        return None
    difference = float(np.mean(b) - np.mean(a))
    half = critical_t(test[1]) * math.sqrt(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b))
    return difference - half, difference + half


@lru_cache
def critical_t(nu: float, level: float = 0.05) -> float:
    """The t > 0 with a two-sided p of `level`, by halving an interval."""
    low, high = 0.0, 1000.0
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        if two_sided_p(middle, nu) > level:
            low = middle
        else:
            high = middle
    return high


def two_sided_p(t: float, nu: float) -> float:
    """The share of Student's distribution with nu degrees of freedom that lies beyond -|t| and |t|.

    With T = sqrt(nu) tan(x) its density is a constant times cos(x)^(nu - 1): the share of the area between 0
    and pi / 2 that lies beyond atan(|t| / sqrt(nu)), by the midpoint rule.
    """

    def area_beyond(x):
        middles = x + (math.pi / 2 - x) * (np.arange(100_000) + 0.5) / 100_000
        return (math.pi / 2 - x) * (np.cos(middles) ** (nu - 1)).mean()

    return float(area_beyond(math.atan(abs(t) / math.sqrt(nu))) / area_beyond(0))


# ---- runs ----


def read_runs(specs) -> dict:
    """{"A": [record, record], ...} of ["A=run1,run2", ...]. Raises ValueError, OSError."""
    arms = {}
    for spec in specs:
        arm, _, folders = spec.partition("=")
        records = []
        for folder in filter(None, folders.split(",")):
            inside = Path(folder) / "glue" / "glue.json"
            records.append(read_json(inside if inside.exists() else Path(folder) / "glue.json"))
        if not records or arm in arms:
            raise ValueError(f"{spec}: write NAME=RUN or NAME=RUN,RUN, each name once")
        if len({record["settings"]["checkpoint"] for record in records}) < len(records):
            raise ValueError(f"{spec}: the same checkpoint twice is not two pretraining runs")
        arms[arm] = records
    if len(arms) < 2:
        raise ValueError("two names are needed, as in random=runs/a,runs/b self=runs/c,runs/d")
    return arms


def run_scores(records, tasks) -> list:
    """One score per run: the mean over its fine-tuning seeds of the mean over tasks."""
    return [np.mean(seed_means(record["results"][ARMS[0]], tasks)) for record in records]


def unequal_conditions(records) -> list:
    """Sentences on what differs between the runs besides their checkpoints."""
    notes = []
    for name in TASKS:
        has_task = [name in record["results"][ARMS[0]] for record in records]
        if any(has_task) and not all(has_task):
            notes.append(f"{name}: not in every run, left out")
        elif len({str(record["data"].get(name)) for record in records}) > 1:
            notes.append(f"unequal conditions: the files of {name} differ between runs")
    for key in records[0]["settings"]:
        values = {str(record["settings"].get(key)) for record in records}
        if key != "checkpoint" and len(values) > 1:
            notes.append(f"unequal conditions: {key} differs between runs ({', '.join(sorted(values))})")
    return notes


def compare(arms: dict) -> str:
    """Markdown: every other arm against the first. The verdict follows Welch's test at 5%."""
    records = sum(arms.values(), [])
    tasks = [name for name in TASKS if all(name in record["results"][ARMS[0]] for record in records)]
    averaged = [name for name in tasks if name not in NO_AVERAGE]
    lines = {name: [name] for name in tasks}
    if len(averaged) > 1:
        lines[f"average of {len(averaged)}"] = averaged

    first, *others = arms
    text = []
    tests = 0
    for other in others:
        table = [["task", first, other, "difference", "p (Welch)", "p (paired)", "verdict"]]
        for label, names in lines.items():
            a = run_scores(arms[first], names)
            b = run_scores(arms[other], names)
            by_welch = welch(a, b)
            by_pairs = paired(a, b) if len(a) == len(b) else None
            verdict = "no test: the spread is not known"
            if by_welch:
                tests += 1
                verdict = "no difference found"
                if by_welch[2] < 0.05:
                    verdict = f"{other if by_welch[0] > 0 else first} is higher"
            p = [f"{test[2]:.3f}" if test else "" for test in (by_welch, by_pairs)]
            difference = f"{100 * (np.mean(b) - np.mean(a)):+.1f}"
            table.append([label, spread(a), spread(b), difference, *p, verdict])
        text += [markdown(table), ""]

    sizes = ", ".join(f"{arm} {len(runs)}" for arm, runs in arms.items())
    text.append("GLUE dev sets, percent, metrics averaged: mean (standard deviation) over pretraining runs.")
    notes = [
        f"pretraining runs: {sizes}",
        f"{tests} tests at 5%: about {0.05 * tests:.2g} of them would find a difference by luck",
        "p (paired) holds where the runs of two arms pair up in the order given: same weights, same data",
        *unequal_conditions(records),
    ]
    return "\n".join([*text, *(f"- {note}" for note in notes)])


def main(argv=None):
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("arms", nargs="+", metavar="NAME=RUN,RUN", help="runs that differ in seeds alone")
    try:
        print(compare(read_runs(parser.parse_args(argv).arms)))
    except Exception as error:
        sys.exit(f"compare.py: {explain(error)}")


if __name__ == "__main__":
    main()
