"""The README's tables of results are what the raw figures in tests/results say."""

import csv

import experiment
import pytest
from conftest import PROJECT

README = (PROJECT / "README.md").read_text(encoding="utf-8")


TABLES = [experiment.pretraining_table, experiment.glue_table, experiment.curve_table]
TABLES += [experiment.memory_table, experiment.clock_table]


@pytest.mark.parametrize("table", TABLES)
def test_the_tables_in_the_readme_are_those_of_the_raw_figures(table):
    for line in table().splitlines():
        assert line in README, f"README.md lacks this line of `python tests/experiment.py`:\n{line}"


def test_every_run_has_the_command_that_made_it():
    for row in experiment.read("runs"):
        program = row["command"].removeprefix("python ").partition(" ")[0]
        assert program in ("train.py", "distill.py", "tests/memory_variants.py"), row["run"]
        assert f"--out runs/{row['run']}" in row["command"] and len(row["commit"]) == 7


def write(folder, name, rows):
    with open(folder / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_means_deviations_and_tests_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "FILES", tmp_path)
    losses = {"random": (5.0, 5.1, 5.2), "blank-high": (4.0, 4.1, 4.2), "memory": (5.0, 5.12, 5.2)}
    same = {"held_out_accuracy": 0.25, "mflop_a_token": 3.7, "left_plateau_step": 250}
    runs = [(arm, seed, loss) for arm, values in losses.items() for seed, loss in enumerate(values)]
    write(tmp_path, "runs", [{"run": f"{arm}-{n}", "held_out_loss": loss, **same} for arm, n, loss in runs])
    head, _, random, high, memory = experiment.pretraining_table().splitlines()
    assert "5.100 (0.100)" in random, "mean and sample standard deviation of 5.0, 5.1, 5.2"
    # Equal variances s^2 = .01, n = 3: t = 1 / sqrt(.02 / 3) = 12.25 with 4 degrees of freedom, p = .00026
    assert "-1.000 (0.000), p < 0.001 " in high and "no difference" not in high
    # Differences by seed 0, .02, 0: mean .0067, deviation .0115
    assert "+0.007 (0.012), p = 0.9" in memory and "no difference found" in memory

    scores = {"random": (0.5, 0.6), "from scratch": (0.4, 0.5)}
    rows = []
    for start, values in scores.items():
        for n, score in enumerate(values):
            for task, metrics in (("MRPC", (score, score + 0.2)), ("QNLI", (score,))):
                for i, value in enumerate(metrics):
                    facts = {"run": f"random-{n}", "start": start.replace("random", "pretrained")}
                    rows.append({**facts, "task": task, "metric": i, "seed": 0, "score": value})
    write(tmp_path, "glue", rows)
    head, _, scratch, random = experiment.glue_table().splitlines()
    # MRPC: the mean of two metrics, 60 and 70; QNLI 50 and 60; the average of tasks 55 and 65
    assert [cell.strip() for cell in random.split("|")[3:6]] == ["65.0 (7.1)", "55.0 (7.1)", "60.0 (7.1)"]
    assert "50.0 (7.1)" in scratch and "-10.0 (0.0), p = " in scratch
