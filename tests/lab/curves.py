"""Set runs side by side, as a picture of their held-out losses and as a table:

    python tests/lab/curves.py runs/random runs/train --out curves.svg

A run is any folder of train.py or distill.py: finished, interrupted or still running. The first one named is
the one that the others are compared with. What makes two runs no fair comparison is said below the table.
"""

import argparse
import csv
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from chart import COLOURS, line_chart, shortened

X_LABELS = {"step": "step", "tokens": "tokens read", "seconds": "seconds of training"}
COLUMNS = ("step", "tokens", "seconds", "held_out_loss", "held_out_accuracy")
SCHEDULE = ("steps", "batch_size", "lr", "warmup")
BOOKKEEPING = ("out", "cache", "resume", "device", "compile", "eval_every", "accumulate")  # change no result


@dataclass
class Run:
    """What a folder says of a run: an entry per evaluation in the columns, nats per token, real seconds."""

    name: str  # short, and another for each of the runs that are shown
    folder: Path
    options: dict
    unigram_loss: float  # of the exam, nats per token
    text: str  # key of the tokenised text, which follows from corpus and vocabulary
    columns: dict  # of COLUMNS: lists of equal length, all numbers finite
    left_out: int  # evaluations with something that is no finite number


# ---- from folders to runs ----


def read_run(folder: Path) -> Run:
    """Raises ValueError or OSError, in one sentence, where the folder holds no run."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    if not (folder / "log.csv").is_file() or not (folder / "args.json").is_file():
        what = "holds no log.csv and args.json: a run writes both by its first evaluation"
        raise ValueError(f"{folder} {what}")
    try:
        record = json.loads((folder / "args.json").read_text(encoding="utf-8"))
        options = dict(record["options"])
        unigram_loss = float(record["unigram_floor"])
        text = str(record["text"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder}/args.json is not one of train.py or distill.py ({error!r})") from None

    columns = {name: [] for name in COLUMNS}
    left_out = 0
    with open(folder / "log.csv", newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        missing = set(COLUMNS) - set(rows.fieldnames or [])
        if missing:
            raise ValueError(f"{folder}/log.csv has no column {', '.join(sorted(missing))}")
        for row in rows:
            try:
                numbers = [float(row[name]) for name in COLUMNS]
            except (TypeError, ValueError):
                raise ValueError(f"{folder}/log.csv, line {rows.line_num}: not a line of numbers") from None
            if not all(map(math.isfinite, numbers)):
                left_out += 1
                continue
            for name, number in zip(COLUMNS, numbers, strict=True):
                columns[name].append(number)
    if not columns["step"]:
        raise ValueError(f"{folder}/log.csv holds no evaluation with a finite held-out loss")
    return Run("", folder, options, unigram_loss, text, columns, left_out)  # give_names needs all runs


def give_names(runs: list[Run]):
    """A run is called as its folder, with as many parents before it as tell the runs apart."""
    parts = [run.folder.resolve().parts for run in runs]
    for run, own in zip(runs, parts, strict=True):
        same = [other for other in parts if other != own]
        depth = next(n for n in range(1, len(own) + 1) if all(own[-n:] != other[-n:] for other in same))
        run.name = "/".join(own[-depth:])
    if len({shortened(run.name) for run in runs}) == len(runs):  # else long names, which are at least clear
        for run in runs:
            run.name = shortened(run.name)


def masks_of(options: dict) -> str:
    """How a run chooses its masks, in a few words: "sample of blank entropy, 15%"."""
    masks = options.get("masking", "?")
    if masks != "random":
        whose = {"self": "", "teacher": "teacher's ", "reducible": "reducible "}.get(masks, f"{masks} ")
        masks = f"{options.get('select')} of {whose}{options.get('reading')} entropy"
    masks += f", {options.get('mask_ratio', 0.15):.0%}"
    if options.get("whole_word"):
        masks += ", whole words"
    return masks


# ---- can they be compared? ----


def warnings_of(first: Run, run: Run) -> list[str]:
    """Why the losses of two runs are no fair comparison; empty where they are one.

    The unigram loss is measured on the exam: where it is the same to a thousandth, exam and text are too.
    Text keys alone say less: a vocabulary that was learned and one that was given make two keys of one text.
    """
    found = []
    other_exam = abs(first.unigram_loss - run.unigram_loss) > 1e-3
    other_rows = first.options.get("seq_len") != run.options.get("seq_len")
    if vocabulary(first) != vocabulary(run):
        found.append("another vocabulary: a nat per token is of other tokens")
    elif other_exam and first.text != run.text and not other_rows:
        found.append("another text")
    if first.options.get("max_tokens") != run.options.get("max_tokens"):
        found.append("another --max-tokens: one has more text to learn from")
    if other_rows:
        found.append("another exam: its rows have another --seq-len")
    if other_exam and not found:
        found.append("another exam: its unigram loss differs, so another version of train.py made it")

    other = [name for name in SCHEDULE if first.options.get(name) != run.options.get(name)]
    if other:
        changes = ", ".join(typed(name, run.options.get(name)) for name in other)
        before = ", ".join(str(first.options.get(name)) for name in other)
        found.append(f"another schedule: {changes} (there {before})")
    return found


def vocabulary(run: Run) -> bytes:
    """The word pieces of a run's model folder, as bytes; empty where there are none yet."""
    path = run.folder / "vocab.txt"
    return path.read_bytes() if path.is_file() else b""


def differences(first: Run, run: Run) -> str:
    """The options in which two runs differ and that may change a result, as one would type them."""
    names = [*first.options, *(name for name in run.options if name not in first.options)]
    other = [name for name in names if first.options.get(name) != run.options.get(name)]
    changed = [name for name in other if name not in (*BOOKKEEPING, *SCHEDULE)]
    return " ".join(typed(name, run.options.get(name)) for name in changed)


def typed(name: str, value) -> str:
    """An option as one types it: "from_", "runs/a" -> "--from runs/a"; "(no --from)" for an empty one."""
    option = "--" + name.strip("_").replace("_", "-")
    if value is None or value is False or value in ("", []):  # 0 is a value
        return f"(no {option})"
    if value is True:
        return option
    words = value if isinstance(value, list) else [value]
    return " ".join([option, *map(str, words)])


# ---- what is shown ----


def loss_at(run: Run, by: str, x: float) -> float:
    """The held-out loss at x, on the straight line between the evaluations before and after it."""
    xs = run.columns[by]
    losses = run.columns["held_out_loss"]
    after = next(i for i, known in enumerate(xs) if known >= x)
    if xs[after] == x or after == 0:
        return losses[after]
    share = (x - xs[after - 1]) / (xs[after] - xs[after - 1])
    return losses[after - 1] + share * (losses[after] - losses[after - 1])


def difference(first: Run, run: Run, by: str) -> str:
    """Loss less that of the first run, where the shorter of the two ends: "-0.034", "+0.012 at 750"."""
    ends = (first.columns[by][-1], run.columns[by][-1])
    x = min(ends)
    text = f"{loss_at(run, by, x) - loss_at(first, by, x):+.3f}"
    return text if ends[0] == ends[1] else f"{text} at {x:,.0f}"


def table(runs: list[Run], by: str) -> str:
    """A line per run, in aligned columns."""
    lines = [["run", "masks", "steps", "tokens", "seconds", "best", "last", "accuracy", "difference"]]
    for run in runs:
        last = {name: column[-1] for name, column in run.columns.items()}
        steps = f"{last['step']:,.0f}"
        wanted = run.options.get("steps", 0)
        if last["step"] < wanted:
            steps += f" of {wanted:,}"
        cells = [run.name, masks_of(run.options), steps]
        cells += [f"{last['tokens']:,.0f}", f"{last['seconds']:,.0f}"]
        cells += [f"{min(run.columns['held_out_loss']):.3f}", f"{last['held_out_loss']:.3f}"]
        cells += [f"{last['held_out_accuracy']:.3f}", "" if run is runs[0] else difference(runs[0], run, by)]
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = []
    for cells in lines:
        words = [cell.ljust(width) for cell, width in zip(cells[:2], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
        shown.append("  ".join([*words, *numbers]).rstrip())
    return "\n".join(shown)


def notes(runs: list[Run], by: str) -> list[str]:
    """What to know before believing a difference, as lines to print."""
    first = runs[0]
    lines = []
    if len(runs) > 1:
        where = {"step": "step", "tokens": "token", "seconds": "second"}[by]
        what = f"held-out loss less that of {first.name} at the last {where} that both reached"
        lines += [f"difference: {what}; negative is better", "", f"Other options than those of {first.name}:"]
    for run in runs[1:]:
        lines.append(f"    {run.name}: {differences(first, run) or 'none'}")
    for run in runs[1:]:
        comparison = f"WARNING: {run.name} cannot be compared with {first.name}"
        lines += [f"{comparison}: {why}" for why in warnings_of(first, run)]

    for run in runs:
        if run.left_out:
            lines.append(
                f"WARNING: {run.name}: {run.left_out:,} evaluations are not numbers and were left out"
            )
        if run.columns["step"][-1] < run.options.get("steps", 0):
            lines.append(f"{run.name} is not at its end: losses fall most while the learning rate goes down")
    if by == "seconds" and len(runs) > 1:
        lines.append("Seconds are those of one machine, and of what else it did meanwhile.")
    if len(runs) > 1:
        lines.append(
            "One run each is one draw: repeat them with --seed 1 and 2 before you believe a difference."
        )
    return lines


def picture(runs: list[Run], by: str) -> str:
    """The held-out losses as an SVG picture, with a dashed line for each unigram loss."""
    colours = list(COLOURS)
    lines = {}
    levels = {}
    for i, run in enumerate(runs):
        lines[run.name] = (colours[i % len(colours)], run.columns[by], run.columns["held_out_loss"])
        if all(abs(run.unigram_loss - known) > 1e-3 for known in levels.values()):
            levels[f"unigram loss of {run.name}"] = run.unigram_loss
    if len(levels) == 1:
        levels = {"unigram loss": runs[0].unigram_loss}
    return line_chart("Held-out loss", lines, X_LABELS[by], "nats per token", dashed=levels)


def main(argv=None):
    """The program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, help="folders of train.py or distill.py")
    add("--by", default="step", choices=list(X_LABELS), help="what to draw the losses by (default: step)")
    add("--out", default="curves.svg", help="file for the picture (default: curves.svg)")
    o = parser.parse_args(argv)
    try:
        resolved = [folder.resolve() for folder in o.runs]
        if len(set(resolved)) < len(resolved):
            raise ValueError("the same folder is named twice")
        runs = [read_run(folder) for folder in o.runs]
        give_names(runs)
        print(table(runs, o.by))
        print()
        print("\n".join(notes(runs, o.by)))
        Path(o.out).write_text(picture(runs, o.by), encoding="utf-8")
        print(f"picture: {o.out}")
    except (OSError, ValueError) as error:
        sys.exit(f"curves.py: {error}")


if __name__ == "__main__":
    main()
