"""The README's tables of the experiment: `python tests/experiment.py` (by hand; no test).

`--collect runs` first reads finished runs: folders named ARM-SEED as train.py and distill.py leave them, and
what glue_eval.py wrote to ARM-SEED-glue. Their figures replace the small files in tests/results (in runs.csv
with the command that made each run); the tables are computed from these files alone.
"""

import argparse
import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import memory_variants  # noqa: E402

import train  # noqa: E402
from glue_eval import markdown, welch  # noqa: E402
from model import BertConfig  # noqa: E402

FILES = PROJECT / "tests/results"
CURVE = ("step", "seconds", "held_out_loss", "held_out_accuracy", "on_plateau", "distinct_ids")
CURVE += ("commonest_share", "remembered_share")
ARMS = {
    "random": "random",
    "frequency": "frequency-matched to blank-high",
    "blank-high": "self, blank, high",
    "blank-sample": "self, blank, sample (default)",
    "memory": "self, memory, sample",
    "kd-random": "random, with distillation",
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
LINES = {  # of the figures: colour and name
    "random-0": ("blue", "random"),
    "blank-high-0": ("green", "blank, high"),
    "visible-high-0": ("red", "visible, high, 80-10-10"),
    "visible-high-all-mask-0": ("orange", "visible, high, all [MASK]"),
}


def operations(folder: Path, options: dict, distilled: bool) -> float:
    """Operations a token of a finished run, on average over its steps; a teacher, if any, only distils."""
    names = {f.name for f in train.fields(train.Options)}
    config = SimpleNamespace(config=BertConfig.from_folder(folder))
    o = train.Options(**{name: value for name, value in options.items() if name in names})
    run = SimpleNamespace(o=o, model=config, teacher=config)
    run.random_steps = train.as_steps(o.entropy_warmup, o.steps)
    work = train.Pretraining.work(run)
    if options.get("read_seen"):
        work += memory_variants.seen_flops(config.config, o.mask_ratio)
    if distilled:
        work += train.forward_flops(BertConfig.from_folder(options["teacher"]), o.seq_len, o.mask_ratio)
    return work


def collect(runs: Path):
    """Write runs.csv, curves.csv (of stopped runs too) and glue.csv from the folders in `runs`."""
    summary, curves, glue = [], [], []
    for folder in sorted(path.parent for path in runs.glob("*/log.csv")):
        record = json.loads((folder / "args.json").read_text())
        with open(folder / "log.csv", newline="") as file:
            log = list(csv.DictReader(file))
        for row in log:
            curves.append({"run": folder.name, **{name: row.get(name, "")[:7] for name in CURVE}})
        steps = record["options"]["steps"]
        if steps != int(log[-1]["step"]):
            print(f"{folder} was stopped at step {log[-1]['step']}: a curve, no row in the tables")
            continue
        left = next((line for line in log if line["on_plateau"] == "0"), {})
        line = {"run": folder.name, "floor": f"{record['unigram_floor']:.4f}"}
        line |= {"held_out_loss": f"{float(log[-1]['held_out_loss']):.4f}"}
        line |= {"held_out_accuracy": f"{float(log[-1]['held_out_accuracy']):.4f}"}
        line |= {"left_plateau_step": left.get("step", "never"), "seconds": log[-1]["seconds"]}
        distilled = "kd_alpha" in record["options"]
        line["mflop_a_token"] = f"{operations(folder, record['options'], distilled) / 1e6:.2f}"
        late = steps - train.as_steps(record["options"]["entropy_warmup"], steps)  # those that use entropies
        ends = [0, *(int(row["step"]) for row in log)]
        shares = [float(row.get("remembered_share") or 0) for row in log]
        line["remembered_share"] = f"{np.dot(np.diff(ends), shares) / late:.3f}" if any(shares) else ""
        summary.append(line | {"commit": record["git_commit"][:7], "command": f"python {record['command']}"})
        for path in sorted(runs.glob(f"{folder.name}-glue*/glue.json")):
            for arm, tasks in json.loads(path.read_text())["results"].items():
                for task, seeds in tasks.items():
                    for seed, result in seeds.items():
                        for metric, score in result["scores"].items():
                            facts = {"run": folder.name, "start": arm, "task": task, "metric": metric}
                            facts |= {"seed": seed, "score": f"{score:.4f}"}
                            glue.append(facts | {"train_rows": result["train_rows"]})
    FILES.mkdir(exist_ok=True)
    for name, rows in (("runs", summary), ("curves", curves), ("glue", glue)):
        if rows:
            train.write_table(FILES / f"{name}.csv", rows)


def read(name: str) -> list:
    """The rows of a file in tests/results."""
    with open(FILES / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def seed_of(row: dict) -> str:
    """The seed at the end of a run's name."""
    return row["run"].rpartition("-")[2]


def by_arm(rows, known=tuple(ARMS)) -> dict:
    """{arm: rows}, of the arms that are known, in their order."""
    arms = {}
    for row in rows:
        arms.setdefault(row["run"].rpartition("-")[0], []).append(row)
    return {arm: arms[arm] for arm in known if arm in arms}


def spread(values, digits: int) -> str:
    """Mean and, from two values on, the sample's standard deviation."""
    deviation = f" ({np.std(values, ddof=1):.{digits}f})" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def against(base: dict, arm: dict, digits: int) -> str:
    """Difference of two arms {seed: value}: mean (deviation over shared seeds), and Welch's t-test at 5%."""
    gaps = [arm[seed] - base[seed] for seed in arm if seed in base]
    deviation = f" ({np.std(gaps, ddof=1):.{digits}f})" if len(gaps) > 1 else ""
    test = welch(list(base.values()), list(arm.values()))
    verdict = ""
    if test:
        p = f"p = {test[2]:.3f}" if test[2] >= 0.001 else "p < 0.001"
        verdict = f", {p}" + ": no difference found" * (test[2] >= 0.05)
    return f"{np.mean(gaps):+.{digits}f}{deviation}{verdict}"


def pretraining_table() -> str:
    """Held-out loss and cost of every arm, against random masks."""
    table = [
        ["masks", "seeds", "held-out loss", "accuracy", "against random", "MFLOP a token", "plateau left by"]
    ]
    arms = by_arm(read("runs"))
    loss = {arm: {seed_of(row): float(row["held_out_loss"]) for row in rows} for arm, rows in arms.items()}
    for arm, rows in arms.items():
        accuracy = [float(row["held_out_accuracy"]) for row in rows]
        left = sorted({row["left_plateau_step"] for row in rows}, key=lambda step: (len(step), step))
        cells = [ARMS[arm], str(len(rows)), spread(list(loss[arm].values()), 3), spread(accuracy, 3)]
        cells.append(against(loss["random"], loss[arm], 3) if arm != "random" else "")
        table.append(
            [*cells, f"{np.mean([float(r['mflop_a_token']) for r in rows]):.1f}", f"step {left[-1]}"]
        )
    return markdown(table)


def glue_table() -> str:
    """Fine-tuning scores in percent: a column a task, metrics and fine-tuning seeds averaged within a run."""
    runs = {}
    for row in read("glue"):
        arm = "from scratch" if row["start"] == "from scratch" else row["run"].rpartition("-")[0]
        tasks = runs.setdefault(arm, {}).setdefault(seed_of(row), {})
        tasks.setdefault(row["task"], []).append(100 * float(row["score"]))
    names = sorted(set.intersection(*(set(tasks) for arm in runs.values() for tasks in arm.values())))
    table = [["start", "runs", *names, "average", "average against random"]]
    averages = {}
    for arm in ("from scratch", *ARMS):
        if arm not in runs:
            continue
        scores = [[np.mean(tasks[name]) for name in names] for tasks in runs[arm].values()]
        averages[arm] = dict(zip(runs[arm], [np.mean(row) for row in scores], strict=True))
        cells = [spread(column, 1) for column in [*zip(*scores, strict=True), list(averages[arm].values())]]
        table.append([ARMS.get(arm, arm), str(len(scores)), *cells, ""])
        if arm not in ("from scratch", "random"):
            table[-1][-1] = against(averages["random"], averages[arm], 1)
    table[1][-1] = against(averages["random"], averages["from scratch"], 1)
    return markdown(table)


def curve_table(milestones=(1000, 2000, 3000, 4000)) -> str:
    """Held-out loss on the way, at equal steps and at equal operations: of as many random steps.

    Between two evaluations on a straight line.
    """
    runs = {row["run"]: row for row in read("runs")}
    arms = by_arm(row for row in read("curves") if row["run"] in runs)
    cheapest = min(float(row["mflop_a_token"]) for row in runs.values())
    table = [["masks", "equal", *(f"{step:,} steps" for step in milestones)]]
    for arm, rows in arms.items():
        losses = {}
        for row in rows:
            losses.setdefault(int(row["step"]), []).append(float(row["held_out_loss"]))
        steps, means = sorted(losses), [np.mean(losses[step]) for step in sorted(losses)]
        table.append([ARMS[arm], "steps", *(f"{np.interp(step, steps, means):.3f}" for step in milestones)])
        extra = float(runs[rows[0]["run"]]["mflop_a_token"]) / cheapest - 1
        if extra > 0.01:
            first = 0.0 if arm.startswith("kd") else 0.3 * steps[-1]  # steps that cost what random ones do
            rate = 1 + extra * steps[-1] / (steps[-1] - first)
            reached = [min(step, first) + max(0, step - first) / rate for step in milestones]
            cells = (f"{np.interp(step, steps, means):.3f}" for step in reached)
            table.append([ARMS[arm], "operations", *cells])
    return markdown(table)


def memory_table() -> str:
    """Variants of --reading memory: held-out loss, against random masks and against plain memory."""
    table = [["masks", "held-out loss", "against random", "against memory", "from memory", "MFLOP a token"]]
    arms = by_arm(read("runs"), FEW)
    loss = {arm: {seed_of(row): float(row["held_out_loss"]) for row in rows} for arm, rows in arms.items()}
    for arm, rows in arms.items():
        cells = [FEW[arm], spread(list(loss[arm].values()), 3)]
        bases = ("few-random", "few-memory")
        cells += [against(loss[b], loss[arm], 3) if b in loss and b != arm else "" for b in bases]
        shares = [float(row["remembered_share"]) for row in rows if row["remembered_share"]]
        cells.append(f"{np.mean(shares):.0%}" if shares else "")
        table.append([*cells, f"{np.mean([float(row['mflop_a_token']) for row in rows]):.1f}"])
    return markdown(table)


def clock_table(steps=(1000, 1500, 2000, 2500, 3000), seconds=(60, 90, 120, 150, 180)) -> str:
    """Held-out loss at equal steps and at equal time, on straight lines between evaluations."""
    head = [*(f"{n:,} steps" for n in steps), *(f"{n} s" for n in seconds), "end"]
    table = [["masks", *head]]
    runs = {}
    for row in read("curves"):
        runs.setdefault(row["run"], []).append(row)
    for arm in list(FEW)[:4]:
        lines = []
        for name, rows in runs.items():
            if name.rpartition("-")[0] == arm:
                loss = [float(row["held_out_loss"]) for row in rows]
                x = {column: [float(row[column]) for row in rows] for column in ("step", "seconds")}
                line = [np.interp(n, x["step"], loss, np.nan, np.nan) for n in steps]
                line += [np.interp(n, x["seconds"], loss, np.nan, np.nan) for n in seconds]
                lines.append([*line, x["seconds"][-1]])
        if lines:
            *means, last = np.mean(lines, 0)
            table.append([FEW[arm], *("" if np.isnan(m) else f"{m:.3f}" for m in means), f"{last:.0f} s"])
    return markdown(table)


def chart(title: str, column: str, unit: str, bounds: str, last: int = 2000) -> str:
    """A figure as GitHub draws it: one column of curves.csv for the runs in LINES, up to a step."""
    colours = ", ".join(colour for colour, _ in LINES.values())
    names = "; ".join(f"{colour}: {name}" for colour, name in LINES.values())
    rows = [row for row in read("curves") if int(row["step"]) <= last]
    curves = {run: [row for row in rows if row["run"] == run] for run in LINES}
    steps = [row["step"] for row in curves["random-0"]]
    settings = {"themeVariables": {"xyChart": {"plotColorPalette": colours}}}
    lines = [f"```mermaid\n%%{{init: {json.dumps(settings)}}}%%\nxychart-beta", f'    title "{title}"']
    lines += [f'    x-axis "step" [{", ".join(steps)}]', f'    y-axis "{unit}" {bounds}']
    for run in LINES:
        lines.append(f"    line [{', '.join(f'{float(row[column]):.4g}' for row in curves[run])}]")
    return "\n".join([*lines, "```", "", f"({names})"])


def figures() -> str:
    """The two figures of stability."""
    return f"""\
{chart("Held-out loss", "held_out_loss", "nats", "4.5 --> 6.5")}

{chart("Distinct token ids masked in a step", "distinct_ids", "ids", "350 --> 550")}"""


def main():
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collect", metavar="FOLDER", type=Path, help="first read the finished runs in it")
    options = parser.parse_args()
    if options.collect:
        collect(options.collect)
    main_tables = (pretraining_table(), glue_table(), curve_table(), figures())
    print("\n\n".join((*main_tables, memory_table(), clock_table())))


if __name__ == "__main__":
    main()
