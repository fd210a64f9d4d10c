"""The tables of the lab report, written into its pages, and the figure of the border:

    python tests/lab/report.py    from the CSV files in results, after every collection; no run

A table stands below a line such as `<!-- table: nine-arms pretraining -->`; the names are in TABLES.

The border: made-up languages that differ in how much of them is easy, and in noise. For each point those
steps are compared at which the learnable tokens first have a loss below 1 nat (language.py). A run that never
gets there counts as one that does so at its last step: the table says how many these are.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import train  # isort: skip (first: it sets how threads wait, before torch is imported)  # noqa: F401

import argparse
import csv
import re
from functools import partial

import experiment
import language
import numpy as np
from chart import line_chart
from compare import welch, welch_interval

from glue_eval import markdown

PAGES = Path(__file__).resolve().parent
RESULTS = PAGES / "results"
MEMORY = "sample, memory"
FOCAL = ("focal, 1", "focal, 2")
COMPARED = {  # arm: what it is compared with at equal operations
    "high": language.LONGER,
    "sample": language.LONGER,
    MEMORY: language.RANDOM,
    "focal, 1": language.RANDOM,
    "focal, 2": language.RANDOM,
}
BETTER, WORSE, NOTHING = "**+**", "**-**", "o"


def read(path: str) -> list:
    """The rows of a CSV file in results; none if there is no such file."""
    if not (RESULTS / path).exists():
        return []
    with open(RESULTS / path, newline="") as file:
        return list(csv.DictReader(file))


# ---- one comparison ----


def steps_needed(rows: list, price: float = 1.0) -> dict:
    """{seed: step below 1 nat, in steps that cost as much as random ones}; never: the run's last step."""
    steps = {}
    for row in rows:
        reached = row["below_1_nat"]
        if reached == "never":
            reached = row["steps_made"]
        steps[row["seed"]] = language.steps_below(row | {"below_1_nat": reached}, price)
    return steps


def compared_steps(arms: dict, arm: str, base: str, equal: str) -> tuple | None:
    """({seed: steps} of an arm, those of the base), at equal "steps" or "operations".

    None if one of the two has fewer runs than random masks, or not two.
    """
    complete = max(2, len(arms.get(language.RANDOM, [])))
    if min(len(arms.get(arm, [])), len(arms.get(base, []))) < complete:
        return None
    price = 1.0
    if equal == "operations":
        price = language.price_of(arms[arm][0], arms[language.RANDOM][0])
    return steps_needed(arms[arm], price), steps_needed(arms[base])


def saved(arms: dict, arm: str, base: str, equal: str):
    """Steps that an arm saves, in percent of those that the base needs: (mean, low, high, p), or None.

    arms: {arm: rows}; equal: "steps" or "operations". The interval is Welch's, in percent of the base's mean.
    """
    both = compared_steps(arms, arm, base, equal)
    if both is None:
        return None
    needed, plain = (list(steps.values()) for steps in both)
    test = welch(needed, plain)
    if test is None:
        return None
    percent = 100 / np.mean(plain)
    low, high = welch_interval(needed, plain)
    return float(np.mean(plain) - np.mean(needed)) * percent, low * percent, high * percent, test[2]


def verdict_mark(low: float, high: float, higher_is_better: bool) -> str:
    """A sign for a 95% interval: better, worse, or no difference found."""
    if low <= 0 <= high:
        return NOTHING
    return BETTER if (low > 0) == higher_is_better else WORSE


# ---- the border ----


def points() -> dict:
    """{(easy words, noise): {arm: rows}} of the made-up languages with a table of 64, easiest first."""
    rows = [row for row in read("language.csv") + read("border/language.csv") if row["keys"] == "8"]
    found = {}
    for row in rows:
        found.setdefault((int(row["easy_words"]), int(row["noise"])), []).append(row)
    order = sorted(found, key=lambda point: (point[1], -point[0]))
    return {point: language.by_arm(found[point]) for point in order}


def easy_share(arms: dict) -> float:
    """The share of tokens that models with random masks find easy at the end, on average over seeds."""
    return float(np.mean([float(row["easy_share"]) for row in arms[language.RANDOM] if row["easy_share"]]))


def percent(value: tuple) -> str:
    """Mean and interval of `saved`, in whole percent."""
    mean, low, high = (round(number, 6) for number in value[:3])  # 7.5 is no 7.4999999
    return f"{mean:+.0f}% ({low:+.0f} to {high:+.0f})"


def border_table() -> str:
    """A row per language and arm: steps saved at equal steps and at equal operations."""
    head = ["easy words", "noise", "easy tokens", "masks", "runs", "below 1 nat at step"]
    head += ["steps saved, equal steps (95% interval)", "steps saved, equal operations (95% interval)"]
    lines = [[*head, "verdict (Welch)"]]
    for (easy, noise), arms in points().items():
        if language.RANDOM not in arms:
            continue
        start = [str(easy - noise), str(noise), f"{easy_share(arms):.0%}"]
        for arm in (language.RANDOM, language.LONGER, *COMPARED):
            rows = arms.get(arm, [])
            if not rows:
                continue
            cells = [*start, arm, str(len(rows))]
            start = ["", "", ""]
            cells.append(language.when([language.steps_below(row, 1.0) for row in rows]))
            cells += border_cells(arms, arm)
            lines.append(cells)
    return markdown(lines)


def border_cells(arms: dict, arm: str) -> list:
    """Steps saved at equal steps, at equal operations, and the verdict on the latter.

    Or which of the two has runs missing: this arm, or the one that it is compared with.
    """
    if arm not in COMPARED:
        return ["", "", ""]
    at_steps = saved(arms, arm, language.RANDOM, "steps")
    at_operations = saved(arms, arm, COMPARED[arm], "operations")
    cells = [percent(at_steps) if at_steps else "", percent(at_operations) if at_operations else ""]
    if not at_operations:
        return [*cells, f"{COMPARED[arm] if at_steps else arm}: not complete"]
    mean, _, _, p = at_operations
    word = "no difference found" if p >= 0.05 else experiment.SOONER_IS_BETTER[int(mean < 0)]
    return [*cells, f"{word}, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"]


def calibration_table() -> str:
    """Is a focal loss only less sure? Accuracy and calibration of the learnable tokens."""
    lines = [["easy words", "noise", *language.CALIBRATION]]
    for (easy, noise), arms in points().items():
        start = [str(easy - noise), str(noise)]
        for cells in language.calibration_lines(sum(arms.values(), [])):
            lines.append([*start, *cells])
            start = ["", ""]
    return markdown(lines)


def half_correct_table() -> str:
    """Steps saved until half of the guesses of learnable tokens are correct, where all runs recorded that."""
    lines = [
        ["easy words", "noise", "masks", "steps saved, equal steps (95% interval)", "p (paired)", "p (Welch)"]
    ]
    for (easy, noise), arms in points().items():
        start = [str(easy - noise), str(noise)]
        half = {
            arm: [row | {"below_1_nat": row["half_correct"]} for row in rows if row.get("half_correct")]
            for arm, rows in arms.items()
        }
        for arm in ("sample", MEMORY, *FOCAL):
            if value := saved(half, arm, language.RANDOM, "steps"):
                needed, plain = compared_steps(half, arm, language.RANDOM, "steps")
                lines.append([*start, arm, percent(value), *experiment.pair_cells(plain, needed, 0)[2:]])
                start = ["", ""]
    return markdown(lines)


def border_seed_table() -> str:
    """The comparisons at equal operations once more, seed by seed."""
    lines = [["easy words", "noise", "masks", "seeds", "steps, seed by seed", "p (paired)", "p (Welch)"]]
    for (easy, noise), arms in points().items():
        start = [str(easy - noise), str(noise)]
        for arm, base in COMPARED.items():
            both = compared_steps(arms, arm, base, "operations")
            if both is None:
                continue
            needed, plain = both
            lines.append([*start, arm, *experiment.pair_cells(plain, needed, 0)])
            start = ["", ""]
    return markdown(lines)


def border_lines(arm: str, noise: bool) -> tuple:
    """(shares of easy tokens, percent saved at equal operations, intervals) of a line of the figure."""
    values = []
    for (_, words), arms in points().items():
        value = saved(arms, arm, COMPARED[arm], "operations")
        if (words > 0) == noise and value:
            values.append((100 * easy_share(arms), value))
    values.sort()
    shares = [share for share, _ in values]
    return shares, [value[0] for _, value in values], [value[1:3] for _, value in values]


def border_figure() -> str:
    """Share of easy tokens across, steps saved upwards: memory, sample; with noise as points of their own."""
    lines = {}
    bars = {}
    shown = (
        (MEMORY, "memory", "violet", "pink"),
        ("sample", "sample", "green", "teal"),
        ("focal, 1", "focal loss", "orange", "olive"),
    )
    for number, (arm, name, *colours) in enumerate(shown):
        for noise, colour in zip((False, True), colours, strict=True):
            shares, means, intervals = border_lines(arm, noise)
            if shares:
                title = f"{name}, noise" if noise else name
                beside = [share + 0.5 * (number - 1) for share in shares]  # bars must not hide each other
                lines[title] = (colour, beside, means)
                bars[title] = intervals
    if not lines:
        return ""
    title = "Steps saved by the time the hard token is learned, at equal operations (%)"
    return line_chart(
        title, lines, "tokens that are easy in the end, percent", "steps saved, percent", 0, bars=bars
    )


# ---- the one table ----

TEXTS = {  # row: (measure, where)
    "made-up language": (8, 0),
    "the same with noise": (8, 4),
}
COLUMNS = {  # column: (arm of language.py, arm of the runs on text)
    "high": ("high", "high"),
    "sample": ("sample", "sample"),
    "memory": (MEMORY, "memory"),
    "a teacher's entropy": (None, "by-teacher"),
    "distillation": (None, "kd-random"),
    "focal loss": ("focal, 1", "focal-1"),
}


def language_cells(point: tuple) -> list:
    """Steps saved at equal operations, a cell per column."""
    arms = points().get(point, {})
    cells = []
    for arm, _ in COLUMNS.values():
        if 0 < len(arms.get(arm, [])) < len(arms[language.RANDOM]):
            cells.append("not complete")
            continue
        value = saved(arms, arm, COMPARED[arm], "operations") if arm else None
        cells.append(f"{percent(value)} {verdict_mark(value[1], value[2], True)}" if value else "not run")
    return cells


def text_cells(rows: list, names: dict) -> list:
    """Held-out loss against random masks, a cell per column. names: what runs.csv calls an arm."""
    loss = {}
    for row in rows:
        loss.setdefault(experiment.arm_of(row["run"]), []).append(float(row["held_out_loss"]))
    base = loss.get(names["random"], [])
    cells = []
    for _, arm in COLUMNS.values():
        interval = welch_interval(base, loss.get(names.get(arm, arm), []))
        if interval is None:
            cells.append("not run")
            continue
        difference = np.mean(loss[names.get(arm, arm)]) - np.mean(base)
        low, high = interval
        mark = verdict_mark(low, high, False)
        cells.append(f"{difference:+.3f} ({low:+.3f} to {high:+.3f}) {mark}")
    return cells


def overview_table() -> str:
    """The table of the first page."""
    lines = [["text", "measured", *COLUMNS]]
    for text, point in TEXTS.items():
        lines.append([text, "steps saved, equal operations", *language_cells(point)])
    code = {"random": "code-random", "high": "code-high", "sample": "code-sample", "memory": "code-memory"}
    python = [row for row in read("runs.csv") + read("more-arms/runs.csv") if row["run"].startswith("code-")]
    lines.append(["Python source", "held-out loss, equal steps", *text_cells(python, code)])
    english = {"random": "random", "high": "blank-high", "sample": "blank-sample"}
    rows = read("nine-arms/runs.csv")  # distillation too: in more-arms it has another teacher
    rows += [row for row in read("more-arms/runs.csv") if row["run"].startswith("focal-")]
    lines.append(["English", "held-out loss, equal steps", *text_cells(rows, english)])
    return markdown(lines)


# ---- the tables of all pages ----


def of_series(folder: str, function, *arguments) -> str:
    """A table of experiment.py from the CSV files of a series."""
    before = experiment.FILES
    experiment.FILES = RESULTS / folder
    try:
        return function(*arguments)
    finally:
        experiment.FILES = before


def of_language(path: str, noise: int, function, *arguments) -> str:
    """A table of language.py: eight easy words, some of them noise."""
    return function([row for row in read(path) if row["noise"] == str(noise)], *arguments)


TABLES = {
    "overview": overview_table,
    "border": border_table,
    "border, seed by seed": border_seed_table,
    "calibration": calibration_table,
    "half correct": half_correct_table,
}
for series, kinds in {
    "nine-arms": ("pretraining", "distillation", "blimp", "glue", "curve"),
    ".": ("frequency", "more", "more_judged", "code", "memory", "clock"),
}.items():
    for kind in kinds:
        name = kind.replace("_", " ") if series == "." else f"{series} {kind}"
        TABLES[name] = partial(of_series, series, getattr(experiment, f"{kind}_table"))
TABLES["more-arms curve"] = partial(of_series, ".", experiment.curve_table, True)
for series, whats in {
    "nine-arms": ("loss", "BLiMP", "GLUE"),
    ".": ("more", "more GLUE", "more BLiMP", "code", "few-random", "few-memory"),
}.items():
    for what in whats:
        TABLES[f"{what}, seed by seed"] = partial(of_series, series, experiment.seed_table, what)
for name, path, noise in (
    ("language", "language.csv", 0),
    ("new seeds", "new-seeds/language.csv", 0),
    ("noise", "language.csv", 4),
):
    for kind in ("loss", "transition", "mask"):
        TABLES[f"{name} {kind}"] = partial(of_language, path, noise, getattr(language, f"{kind}_table"))
    for what in ("loss", "steps"):
        TABLES[f"{name} {what}, seed by seed"] = partial(of_language, path, noise, language.seed_table, what)

EMPTY = "(Not run yet.)"


def filled(page: str) -> str:
    """A page with its tables made anew. Raises KeyError for a table that nobody makes."""

    def fill(match) -> str:
        table = TABLES[match[1]]()
        if table.count("\n") < 2:  # a head, and no line
            table = EMPTY
        return f"<!-- table: {match[1]} -->\n\n{table.strip()}\n\n"

    # A name, its table, and the empty lines that follow. A page may end with a name that has no table yet.
    below = rf"<!-- table: (.+) -->\n+((?:\|.*\n)+|{re.escape(EMPTY)}\n)?\n*"
    return re.sub(below, fill, page).rstrip("\n") + "\n"


def main(argv=None):
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args(argv)
    for path in sorted(PAGES.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        path.write_text(filled(page), encoding="utf-8")
        print(f"{path}: {page.count('<!-- table: ')} tables")
    if svg := border_figure():
        path = RESULTS / "border.svg"
        path.write_text(svg, encoding="utf-8")
        print(f"written to {path}")


if __name__ == "__main__":
    main()
