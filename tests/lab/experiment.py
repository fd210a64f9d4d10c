"""Tables and figures of the lab report: `python tests/lab/experiment.py` (by hand; no test).

`--collect runs` first reads finished runs: folders named ARM-SEED as the training programs leave them, and
what glue_eval.py wrote to ARM-SEED-glue. Their results replace the small CSV files in tests/lab/results (in
runs.csv with the command that made each run). Tables and figures are made from these files alone.
"""

import argparse
import csv
import json
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import flops
from chart import line_chart
from compare import paired, welch, welch_interval

from glue_eval import markdown
from model import BertConfig

FILES = Path(__file__).resolve().parent / "results"
CURVE = ["step", "seconds", "held_out_loss", "held_out_accuracy", "on_plateau", "distinct_ids"]
CURVE += ["commonest_share", "remembered_share"]
ARMS = {
    "random": "random",
    "blank-high": "self, high",
    "blank-sample": "self, sample (default)",
    "memory": "self, sample, from memory",
    "by-teacher": "teacher's entropy, sample",
    "by-reducible": "reducible entropy, sample",
    "kd-random": "distillation, random",
    "kd-teacher": "distillation, teacher's entropy",
    "kd-reducible": "distillation, reducible entropy",
    "frequency": "frequency-matched to high",
    "blank-low": "self, low",
    "blank-mid": "self, mid",
    "blank-both": "self, both",
    "kd-self": "distillation, self, sample",
    "random-40": "random, 40%",
    "blank-sample-40": "self, sample, 40%",
    "focal-1": "random, focal loss, gamma 1",
    "focal-2": "random, focal loss, gamma 2",
}
MORE = (
    "blank-low",
    "blank-mid",
    "blank-both",
    "random-40",
    "blank-sample-40",
    "focal-1",
    "focal-2",
    "kd-random",
    "kd-self",
)
BASES = {  # what an arm is compared with; the others: random
    "kd-self": "kd-random",
    "blank-sample-40": "random-40",
}
CODE = {  # Python source
    "code-random": "random",
    "code-sample": "self, sample (default)",
    "code-high": "self, high",
    "code-memory": "self, sample, from memory",
}
FEW = {  # twelve epochs of half a million tokens, to explore --reading memory
    "few-random": "random",
    "few-random-long": "random, 4,100 steps",
    "few-blank": "self, blank, sample (default)",
    "few-memory": "self, memory, sample",
    "few-mixed": "memory, `--random-share 0.5`",
    "few-refresh": "memory, `--entropy-every 4`",
    "few-forget": "memory, `--forget 0.5`",
    "few-smooth": "memory, `--smooth 0.5`",
    "few-seen": "memory, `--read-seen`",
    "few-high": "memory, `--select high`",
    "few-high-mixed": "memory, `--select high --random-share 0.5`",
    "few-high-forget": "memory, `--select high --forget 0.5`",
}
COLLAPSE = {  # single runs
    "random-0": "random",
    "blank-high-0": "blank, high",
    "visible-high-0": "visible, high, 80-10-10",
    "visible-high-all-mask-0": "visible, high, all [MASK]",
}
COLOURS = {  # an arm has the same in every figure
    "random": "blue",
    "blank-high": "red",
    "blank-sample": "green",
    "memory": "violet",
    "by-teacher": "orange",
    "by-reducible": "teal",
    "kd-random": "teal",
    "kd-teacher": "pink",
    "kd-reducible": "olive",
    "visible-high": "pink",
    "visible-high-all-mask": "orange",
}

UNTAUGHT = ("blank-high", "blank-sample", "memory", "by-teacher", "by-reducible")
TAUGHT = ("kd-random", "kd-teacher", "kd-reducible")

# ---- from the folders of runs to the small files ----


def collect(runs: Path):
    """Write runs.csv, curves.csv (of stopped runs too) and glue.csv from the folders in `runs`.

    What the files say of other runs stays.
    """
    summary = []
    curves = []
    glue = []
    for folder in sorted(path.parent for path in runs.glob("*/log.csv")):
        record = json.loads((folder / "args.json").read_text())
        with open(folder / "log.csv", newline="") as file:
            log = list(csv.DictReader(file))
        for row in log:
            curves.append({"run": folder.name} | {name: row.get(name, "")[:7] for name in CURVE})
        if int(log[-1]["step"]) < record["options"]["steps"]:
            print(f"{folder} was stopped at step {log[-1]['step']}: a curve, no row in the tables")
            continue
        summary.append(summary_of(folder, record, log))
        glue += glue_scores(folder)
    FILES.mkdir(exist_ok=True)
    for name, rows in (("runs", summary), ("curves", curves), ("glue", glue)):
        new = {row["run"] for row in rows}
        kept = [row for row in read(name) if row["run"] not in new]
        write(name, sorted(rows + kept, key=lambda row: row["run"]))


def summary_of(folder: Path, record: dict, log: list) -> dict:
    """The row of runs.csv for a finished run: what its end, its log and its options say."""
    options = record["options"]
    last = log[-1]
    left = next((row["step"] for row in log if row["on_plateau"] == "0"), "never")
    teacher = BertConfig.from_folder(options["teacher"]) if options.get("teacher") else None
    operations = flops.flops_per_token(options, BertConfig.from_folder(folder), teacher)
    return {
        "run": folder.name,
        "floor": f"{record['unigram_floor']:.4f}",
        "held_out_loss": f"{float(last['held_out_loss']):.4f}",
        "held_out_accuracy": f"{float(last['held_out_accuracy']):.4f}",
        "blimp": blimp_score(folder),
        "left_plateau_step": left,
        "seconds": last["seconds"],
        "mflop_a_token": f"{operations / 1e6:.2f}",
        "remembered_share": remembered_share(log, options),
        "commit": record["git_commit"][:7],
        "command": f"python {record['command']}",
    }


def remembered_share(log: list, options: dict) -> str:
    """Of the masks after the random steps, the share at remembered places; "" without memory."""
    total = 0.0
    before = 0
    for row in log:
        step = int(row["step"])
        total += (step - before) * float(row.get("remembered_share") or 0)  # a mean since the last evaluation
        before = step
    steps_by_entropy = flops.share_by_entropy(options) * options["steps"]
    return f"{total / steps_by_entropy:.3f}" if total else ""


def blimp_score(folder: Path) -> str:
    """Percent, as tests/lab/blimp.py left it beside the model; "" where it was not measured."""
    path = folder / "blimp.json"
    return f"{100 * json.loads(path.read_text())['mean']:.2f}" if path.exists() else ""


def glue_scores(folder: Path) -> list:
    """Rows of glue.csv: every score in the glue.json files beside a run."""
    rows = []
    for path in sorted(folder.parent.glob(f"{folder.name}-*/glue.json")):
        for start, tasks in json.loads(path.read_text())["results"].items():
            if path.parent.name.endswith("-frozen"):
                start = f"{start}, frozen"
            for task, seeds in tasks.items():
                for seed, result in seeds.items():
                    for metric, score in result["scores"].items():
                        row = {"run": folder.name, "start": start, "task": task, "metric": metric}
                        row |= {"seed": seed, "score": f"{score:.4f}", "train_rows": result["train_rows"]}
                        rows.append(row)
    return rows


def write(name: str, rows: list):
    """Write a file in tests/lab/results; a column that a row lacks is empty."""
    if not rows:
        return
    columns = max(rows, key=len)
    with open(FILES / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def read(name: str) -> list:
    """The rows of a file in tests/lab/results; none if there is no such file."""
    if not (FILES / f"{name}.csv").exists():
        return []
    with open(FILES / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


# ---- tables ----


def arm_of(run: str) -> str:
    """The name of a run without its seed: "blank-high" of "blank-high-0"."""
    return run.rpartition("-")[0]


def seed_of(run: str) -> str:
    """The seed at the end of a run's name."""
    return run.rpartition("-")[2]


def by_arm(rows, known) -> dict:
    """{arm: its rows}, of the arms that are known, in their order."""
    arms = {}
    for row in rows:
        arms.setdefault(arm_of(row["run"]), []).append(row)
    return {arm: arms[arm] for arm in known if arm in arms}


def by_seed(rows, column: str) -> dict:
    """{seed: value} of one arm."""
    return {seed_of(row["run"]): float(row[column]) for row in rows}


def spread(values, digits: int) -> str:
    """Mean and, from two values on, the standard deviation of the sample."""
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    return f"{mean} ({np.std(values, ddof=1):.{digits}f})"


def p_text(test) -> str:
    """The p of a test, three digits; empty where the spread is not known."""
    if test is None:
        return ""
    p = test[2]
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


HEAD = ["against random (95% interval)", "verdict (Welch)"]  # of the two cells of `against`
LOWER_IS_BETTER = ("better", "worse")  # words for a difference below 0 and one above 0
HIGHER_IS_BETTER = ("worse", "better")
SOONER_IS_BETTER = ("sooner", "later")


def against(base: dict, arm: dict, digits: int, words=LOWER_IS_BETTER) -> list:
    """Two cells: the mean difference of two arms {seed: value} with Welch's 95% interval, and the verdict.

    The verdict follows Welch's test at 5%, which was chosen beforehand; its p stands beside it.
    """
    a = list(base.values())
    b = list(arm.values())
    difference = float(np.mean(b) - np.mean(a))
    cell = f"{difference:+.{digits}f}"
    test = welch(a, b)
    if test is None:
        return [cell, ""]
    low, high = welch_interval(a, b)
    word = "no difference found"
    if test[2] < 0.05:
        word = words[difference > 0]
    p = p_text(test)
    return [f"{cell} ({low:+.{digits}f} to {high:+.{digits}f})", f"{word}, p {p if '<' in p else f'= {p}'}"]


def versus(values: dict, base: str, arm: str, digits: int, words=LOWER_IS_BETTER) -> list:
    """The cells of `against` for two arms of {arm: {seed: value}}; empty for the base, or without it."""
    if arm == base or base not in values:
        return ["", ""]
    return against(values[base], values[arm], digits, words)


def pair_cells(base: dict, arm: dict, digits: int) -> list:
    """Of two {seed: value}: how many pairs, mean difference (deviation), both p. Without two pairs []."""
    shared = [seed for seed in arm if seed in base]
    gaps = [arm[seed] - base[seed] for seed in shared]
    if len(gaps) < 2 or not np.isfinite(gaps).all():
        return []
    by_pairs = paired([base[seed] for seed in shared], [arm[seed] for seed in shared])
    by_welch = welch(list(base.values()), list(arm.values()))
    mean = f"{np.mean(gaps):+.{digits}f} ({np.std(gaps, ddof=1):.{digits}f})"
    return [str(len(gaps)), mean, p_text(by_pairs), p_text(by_welch)]


def paired_table(values: dict, base: str, titles: dict, digits: int, what: str) -> str:
    """{arm: {seed: value}} against the arm `base`, seed by seed. For the end of a page."""
    table = [[what, "seeds", "difference seed by seed", "p (paired)", "p (Welch)"]]
    order = [arm for arm in titles if arm in values] + [arm for arm in values if arm not in titles]
    for arm in [arm for arm in order if arm != base and base in values]:
        if cells := pair_cells(values[base], values[arm], digits):
            table.append([titles.get(arm, arm), *cells])
    return markdown(table)


def losses(known: dict) -> dict:
    """{arm: {seed: held-out loss}} of the arms that are known."""
    return {arm: by_seed(rows, "held_out_loss") for arm, rows in by_arm(read("runs"), known).items()}


def pretraining_table(known=ARMS) -> str:
    """Held-out loss and cost of every arm, against random masks."""
    head = ["masks", "seeds", "held-out loss", *HEAD, "accuracy"]
    table = [[*head, "MFLOP per token"]]
    arms = by_arm(read("runs"), known)
    loss = losses(known)
    for arm, rows in arms.items():
        accuracy = by_seed(rows, "held_out_accuracy")
        operations = np.mean([float(row["mflop_a_token"]) for row in rows])
        comparison = versus(loss, "random", arm, 3)
        cells = [ARMS[arm], str(len(rows))]
        cells += [spread(list(loss[arm].values()), 3), *comparison, spread(list(accuracy.values()), 3)]
        table.append([*cells, f"{operations:.1f}"])
    return markdown(table)


def frequency_table() -> str:
    """The control of the earlier series; nothing newer replaces it."""
    known = {arm: ARMS[arm] for arm in ("random", "blank-high", "frequency")}
    return pretraining_table(known) if "frequency" in losses(ARMS) else ""


def more_arms(kind="runs") -> dict:
    """{arm: rows} of the finished runs in more-arms, and of the random masks of the nine arms: the same text.

    kind: "runs", "curves" or "glue". Distillation with random masks is that of more-arms: same teacher as
    `kd-self`.
    """
    arms = {}
    for folder, known in (("nine-arms", ("random",)), ("more-arms", MORE)):
        finished = {row["run"] for row in read(f"{folder}/runs")}
        rows = [row for row in read(f"{folder}/{kind}") if row["run"] in finished]
        arms |= by_arm(rows, known)
    return arms


def more_losses() -> dict:
    """{arm: {seed: held-out loss}} of `more_arms`."""
    return {arm: by_seed(rows, "held_out_loss") for arm, rows in more_arms().items()}


def more_judged() -> dict:
    """{"GLUE" or "BLiMP": {arm: {seed: percent}}} of `more_arms`, as far as they were judged."""
    rows = [row for found in more_arms("glue").values() for row in found if row["start"] == "pretrained"]
    measured = {arm: [row for row in found if row.get("blimp")] for arm, found in more_arms().items()}
    blimp = {arm: by_seed(found, "blimp") for arm, found in measured.items() if found}
    return {"GLUE": glue_averages(task_scores(rows)), "BLiMP": blimp}


def more_judged_table() -> str:
    """GLUE's average and BLiMP of the arms in more-arms, percent; compared as in `more_table`."""
    table = [["masks", "yardstick", "runs", "percent", *HEAD]]
    judged = more_judged()
    for arm in ("random", *MORE):
        for name, scores in judged.items():
            if arm in scores:
                values = list(scores[arm].values())
                comparison = versus(scores, BASES.get(arm, "random"), arm, 1, HIGHER_IS_BETTER)
                table.append([more_title(arm), name, str(len(values)), spread(values, 1), *comparison])
    return markdown(table) if len(table) > 3 else ""


def more_title(arm: str) -> str:
    """The name of an arm in more-arms, and what it is compared with, if not with random masks."""
    return f"{ARMS[arm]} (against {ARMS[BASES[arm]]})" if arm in BASES else ARMS[arm]


def more_seed_table(values: dict, digits: int, what: str) -> str:
    """The comparisons of `more_table`, or of `more_judged_table`, once more, seed by seed."""
    table = [[what, "seeds", "difference seed by seed", "p (paired)", "p (Welch)"]]
    for arm in MORE:
        base = values.get(BASES.get(arm, "random"), {})
        if cells := pair_cells(base, values.get(arm, {}), digits):
            table.append([more_title(arm), *cells])
    return markdown(table)


def more_table() -> str:
    """The arms in more-arms, against random masks, or those of `BASES`."""
    if not (FILES / "more-arms").exists():
        return ""
    loss = more_losses()
    table = [["masks", "seeds", "held-out loss", *HEAD, "accuracy", "MFLOP per token"]]
    for arm, rows in more_arms().items():
        comparison = versus(loss, BASES.get(arm, "random"), arm, 3)
        cells = [more_title(arm), str(len(rows)), spread(list(loss[arm].values()), 3), *comparison]
        cells.append(spread(list(by_seed(rows, "held_out_accuracy").values()), 3))
        table.append([*cells, f"{np.mean([float(row['mflop_a_token']) for row in rows]):.1f}"])
    return markdown(table) if len(table) > 2 else ""


def seed_table(what: str) -> str:
    """What Welch's tests say of one yardstick, beside the paired ones. For the end of a page."""
    if what == "loss":
        return paired_table(losses(ARMS), "random", ARMS, 3, "held-out loss, against random")
    if what == "BLiMP":
        return paired_table(blimp_scores(), "random", ARMS, 1, "BLiMP, against random")
    if what == "GLUE":
        return paired_table(glue_averages(task_scores()), "random", ARMS, 1, "GLUE, against random")
    if what == "more":
        return more_seed_table(more_losses(), 3, "held-out loss, against random")
    if what.startswith("more "):
        yardstick = what.removeprefix("more ")
        return more_seed_table(more_judged()[yardstick], 1, f"{yardstick}, against random")
    if what == "code":
        return paired_table(code_losses(), "code-random", CODE, 3, "Python source, against random")
    return paired_table(losses(FEW), what, FEW, 3, f"little text, against {what.removeprefix('few-')}")


SEED_TABLES = ("loss", "BLiMP", "GLUE", "more", "more GLUE", "more BLiMP", "code", "few-random", "few-memory")


def blimp_scores() -> dict:
    """{arm: {seed: percent}} of the runs that were measured."""
    rows = [row for row in read("runs") if row.get("blimp")]
    return {arm: by_seed(rows, "blimp") for arm, rows in by_arm(rows, ARMS).items()}


def blimp_table() -> str:
    """BLiMP, percent: a line per arm, against random masks."""
    scores = blimp_scores()
    table = [["masks", "seeds", "BLiMP", *HEAD]]
    for arm, values in scores.items():
        comparison = versus(scores, "random", arm, 1, HIGHER_IS_BETTER)
        table.append([ARMS[arm], str(len(values)), spread(list(values.values()), 1), *comparison])
    return markdown(table)


def task_scores(rows=None) -> dict:
    """{arm: {seed: {task: percent}}}, averaged over metrics and fine-tuning seeds; rows: those of glue.csv.

    Other starts are arms too: "from scratch" and, for example, "random, frozen".
    """
    scores = {}
    for row in read("glue") if rows is None else rows:
        arm = arm_of(row["run"])
        if arm not in ARMS:
            continue
        if row["start"] == "from scratch":
            arm = "from scratch"
        elif row["start"].endswith("frozen"):
            arm = f"{arm}, frozen"
        tasks = scores.setdefault(arm, {}).setdefault(seed_of(row["run"]), {})
        tasks.setdefault(row["task"], []).append(100 * float(row["score"]))
    return {
        arm: {seed: {task: np.mean(values) for task, values in tasks.items()} for seed, tasks in runs.items()}
        for arm, runs in scores.items()
    }


def glue_averages(scores: dict) -> dict:
    """{arm: {seed: percent}}: the mean of the tasks that all runs have."""
    names = shared_tasks(scores)
    return {
        arm: {seed: np.mean([tasks[name] for name in names]) for seed, tasks in runs.items()}
        for arm, runs in scores.items()
    }


def shared_tasks(scores: dict) -> list:
    """The tasks that all runs have."""
    every_run = [set(tasks) for arm in scores.values() for tasks in arm.values()]
    return sorted(set.intersection(*every_run)) if every_run else []


def glue_table() -> str:
    """Fine-tuning scores in percent, a column per task; frozen encoders are compared with frozen ones."""
    scores = task_scores()
    names = shared_tasks(scores)
    averages = glue_averages(scores)
    table = [["start", "runs", *names, "average", *HEAD]]
    order = ["from scratch", *ARMS, *(f"{arm}, frozen" for arm in ARMS)]
    for arm in [arm for arm in order if arm in scores]:
        runs = scores[arm].values()
        base = "random, frozen" if arm.endswith(", frozen") else "random"
        title = ARMS.get(arm.removesuffix(", frozen"), arm) + (", frozen" if arm.endswith(", frozen") else "")
        cells = [title, str(len(runs))]
        cells += [spread([tasks[name] for tasks in runs], 1) for name in names]
        cells.append(spread(list(averages[arm].values()), 1))
        table.append([*cells, *versus(averages, base, arm, 1, HIGHER_IS_BETTER)])
    return markdown(table)


def distillation_table() -> str:
    """What the masks add to distillation: three yardsticks, against distillation with random masks."""
    runs = by_arm(read("runs"), ARMS)
    yardsticks = {
        "held-out loss": (
            {arm: by_seed(rows, "held_out_loss") for arm, rows in runs.items()},
            3,
            LOWER_IS_BETTER,
        ),
        "BLiMP": (blimp_scores(), 1, HIGHER_IS_BETTER),
        "GLUE": (glue_averages(task_scores()), 1, HIGHER_IS_BETTER),
    }
    head = ["distillation with", "yardstick", "random masks", "these masks"]
    table = [[*head, "difference (95% interval)", "verdict (Welch)"]]
    for arm in ("kd-self", "kd-teacher", "kd-reducible"):
        for name, (values, digits, words) in yardsticks.items():
            if arm in values and "kd-random" in values:
                both = [spread(list(values[one].values()), digits) for one in ("kd-random", arm)]
                comparison = against(values["kd-random"], values[arm], digits, words)
                table.append([ARMS[arm].removeprefix("distillation, "), name, *both, *comparison])
    return markdown(table)


def code_losses() -> dict:
    """{arm: {seed: held-out loss}} of Python source."""
    rows = read("runs") + read("more-arms/runs")
    return {arm: by_seed(found, "held_out_loss") for arm, found in by_arm(rows, CODE).items()}


def code_table() -> str:
    """Python source: held-out loss against random masks."""
    table = [["masks", "seeds", "held-out loss", *HEAD, "accuracy"]]
    arms = by_arm(read("runs") + read("more-arms/runs"), CODE)
    loss = code_losses()
    for arm, rows in arms.items():
        cells = [CODE[arm], str(len(rows)), spread(list(loss[arm].values()), 3)]
        accuracy = spread(list(by_seed(rows, "held_out_accuracy").values()), 3)
        table.append([*cells, *versus(loss, "code-random", arm, 3), accuracy])
    return markdown(table)


def mean_curve(rows) -> tuple[list, list]:
    """Steps, and at each the held-out loss, averaged over the runs of an arm."""
    losses = {}
    for row in rows:
        losses.setdefault(int(row["step"]), []).append(float(row["held_out_loss"]))
    steps = sorted(losses)
    return steps, [np.mean(losses[step]) for step in steps]


def main_curves() -> dict:
    """{arm: rows of curves.csv} of the finished runs of the main series."""
    finished = {row["run"] for row in read("runs")}
    return by_arm([row for row in read("curves") if row["run"] in finished], ARMS)


def without_entropies(arm: str) -> str:
    """The arm with random masks whose steps cost what those of `arm` do before entropies choose."""
    if arm.startswith("kd"):
        return "kd-random"
    return "random-40" if arm.endswith("-40") else "random"


def curve_table(more=False, milestones=(1000, 2000, 3000, 4000), random_share=0.3) -> str:
    """Held-out loss on the way, at equal steps and at equal operations: of as many random steps.

    more: of `more_arms`. random_share: the part of a run whose masks are random in every arm. Between two
    evaluations on a straight line.
    """
    runs = more_arms() if more else by_arm(read("runs"), ARMS)
    curves = more_arms("curves") if more else main_curves()
    operations = {arm: float(rows[0]["mflop_a_token"]) for arm, rows in runs.items()}
    cheapest = min(operations.values(), default=0.0)
    table = [["masks", "equal", *(f"{step:,} steps" for step in milestones)]]
    for arm, rows in curves.items():
        steps, losses = mean_curve(rows)
        cells = [f"{np.interp(step, steps, losses):.3f}" for step in milestones]
        table.append([ARMS[arm], "steps", *cells])

        price = operations[arm] / cheapest  # of a step, in random ones, on average
        if price > 1.01:
            first = random_share * steps[-1]
            before = operations.get(without_entropies(arm), operations[arm]) / cheapest
            after = (price - random_share * before) / (1 - random_share)
            cells = []
            for budget in milestones:
                reached = min(first, budget / before) + max(0, budget - first * before) / after
                cells.append(f"{np.interp(reached, steps, losses):.3f}")
            table.append([ARMS[arm], "operations", *cells])
    return markdown(table)


def memory_table() -> str:
    """Variants of --reading memory: held-out loss, against random masks and against plain memory."""
    head = ["masks", "held-out loss", *HEAD, "against memory (95% interval)", "verdict (Welch)"]
    table = [[*head, "from memory", "MFLOP per token"]]
    arms = by_arm(read("runs"), FEW)
    loss = {arm: by_seed(rows, "held_out_loss") for arm, rows in arms.items()}
    for arm, rows in arms.items():
        cells = [FEW[arm], spread(list(loss[arm].values()), 3)]
        for base in ("few-random", "few-memory"):
            cells += versus(loss, base, arm, 3)
        shares = [float(row["remembered_share"]) for row in rows if row["remembered_share"]]
        operations = np.mean([float(row["mflop_a_token"]) for row in rows])
        table.append([*cells, f"{np.mean(shares):.0%}" if shares else "", f"{operations:.1f}"])
    return markdown(table)


def clock_table(steps=(1000, 1500, 2000, 2500, 3000), seconds=(60, 90, 120, 150, 180)) -> str:
    """Held-out loss at equal steps and at equal time, on straight lines between evaluations."""
    table = [["masks", *(f"{n:,} steps" for n in steps), *(f"{n} s" for n in seconds), "end"]]
    runs = {}
    for row in read("curves"):
        runs.setdefault(row["run"], []).append(row)
    for arm in list(FEW)[:4]:
        losses = []
        ends = []
        for name, rows in runs.items():
            if arm_of(name) != arm:
                continue
            loss = [float(row["held_out_loss"]) for row in rows]
            at_step = [float(row["step"]) for row in rows]
            at_second = [float(row["seconds"] or 0) for row in rows]
            line = [np.interp(n, at_step, loss, np.nan, np.nan) for n in steps]
            line += [np.interp(n, at_second, loss, np.nan, np.nan) for n in seconds]
            losses.append(line)
            ends.append(at_second[-1])
        if losses:
            means = np.mean(losses, 0)
            cells = ["" if np.isnan(mean) else f"{mean:.3f}" for mean in means]
            table.append([FEW[arm], *cells, f"{np.mean(ends):.0f} s"])
    return markdown(table)


# ---- figures: lines {name: (colour, xs, ys)} ----


def collapse_lines(column: str) -> dict:
    """A column of curves.csv for the runs in COLLAPSE, to step 2,000, where two of them were stopped."""
    lines = {}
    if not any(row["run"].startswith("visible") for row in read("curves")):
        return lines  # these are what it is about
    for run, name in COLLAPSE.items():
        rows = [row for row in read("curves") if row["run"] == run and 0 < int(row["step"]) <= 2000]
        if rows:
            steps = [int(row["step"]) for row in rows]
            lines[name] = (COLOURS[arm_of(run)], steps, [float(row[column]) for row in rows])
    return lines


def loss_lines(arms: tuple) -> dict:
    """Mean held-out loss of these arms of the main series, as far as they were run."""
    lines = {}
    for arm, rows in main_curves().items():
        if arm in arms:
            steps, losses = mean_curve([row for row in rows if int(row["step"]) > 0])
            lines[ARMS[arm]] = (COLOURS[arm], steps, losses)
    return lines


def difference_lines() -> dict:
    """Mean held-out loss less that of random masks; without distillation, which is far off."""
    losses = loss_lines(("random", *UNTAUGHT))
    if ARMS["random"] not in losses:
        return {}
    _, _, base = losses.pop(ARMS["random"])
    return {name: (colour, steps, list(np.subtract(y, base))) for name, (colour, steps, y) in losses.items()}


def figures() -> dict:
    """{name of the file: SVG}; a figure of runs that are not there is left out."""
    nats = "nats per token"
    later = "step (entropies choose the masks from step 1,200 on)"
    shown = ("random", "blank-high", "blank-sample", "memory", *TAUGHT)
    difference = "Held-out loss less that of random masks, mean of three seeds (below 0 is better)"
    ids = "Distinct token ids that a step masks, one seed"
    charts = {
        "arms-loss.svg": ("Held-out loss, mean of three seeds", loss_lines(shown), "step", nats),
        "arms-difference.svg": (difference, difference_lines(), later, nats, 0),
        "collapse-loss.svg": ("Held-out loss, one seed", collapse_lines("held_out_loss"), later, nats),
        "collapse-ids.svg": (ids, collapse_lines("distinct_ids"), later, "ids"),
    }
    return {name: line_chart(*chart) for name, chart in charts.items() if chart[1]}


def main():
    """The program."""
    global FILES
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collect", metavar="FOLDER", type=Path, help="first read the finished runs in it")
    parser.add_argument("--results", metavar="FOLDER", type=Path, default=FILES, help="where the files are")
    options = parser.parse_args()
    FILES = options.results
    if options.collect:
        collect(options.collect)
    for name, svg in figures().items():
        (FILES / name).write_text(svg, encoding="utf-8")
        print(f"written to {FILES / name}", file=sys.stderr)
    tables = [pretraining_table(), distillation_table(), blimp_table(), glue_table(), curve_table()]
    tables += [
        frequency_table(),
        more_table(),
        more_judged_table(),
        code_table(),
        memory_table(),
        clock_table(),
    ]
    tables += [seed_table(what) for what in SEED_TABLES]
    text = "\n\n".join(table for table in tables if table.count("\n") > 1)  # some are not run yet
    print(text)
    comparisons = len(re.findall(r"p [=<] \d", text))  # a verdict each
    print(
        f"\n{comparisons} comparisons at 5%: about {0.05 * comparisons:.1f} would find a difference by luck"
    )


if __name__ == "__main__":
    main()
