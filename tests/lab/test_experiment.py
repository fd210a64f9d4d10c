"""What experiment.py makes of runs: small files, tables with their statistics, by hand."""

import csv
import json
import re

import experiment
import pytest
from conftest import PROJECT

from model import BertConfig, BertForMaskedLM

LAB = PROJECT / "tests/lab"
PROGRAMS = ("train.py", "distill.py", "memory_variants.py", "frequency.py", "focal.py")
SERIES = ["results", "results/nine-arms", "results/more-arms"]


@pytest.mark.parametrize("folder", SERIES)
def test_every_run_has_the_command_that_made_it(folder, monkeypatch):
    monkeypatch.setattr(experiment, "FILES", LAB / folder)
    for row in experiment.read("runs"):
        program = row["command"].removeprefix("python ").partition(" ")[0]
        assert program.rpartition("/")[2] in PROGRAMS, row["run"]
        assert f"--out runs/{row['run']}" in row["command"] and len(row["commit"]) == 7


def write(folder, name, rows):
    with open(folder / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def cells(line: str) -> list:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_means_deviations_and_tests_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "FILES", tmp_path)
    losses = {"random": (5.0, 5.1, 5.2), "blank-high": (4.0, 4.1, 4.3), "memory": (5.0, 5.12, 5.2)}
    same = {"held_out_accuracy": 0.25, "mflop_a_token": 3.7, "left_plateau_step": 250}
    runs = [(arm, seed, loss) for arm, values in losses.items() for seed, loss in enumerate(values)]
    write(tmp_path, "runs", [{"run": f"{arm}-{n}", "held_out_loss": loss, **same} for arm, n, loss in runs])

    head, _, random, high, memory = map(cells, experiment.pretraining_table().splitlines())
    assert random[2] == "5.100 (0.100)", "mean and sample standard deviation of 5.0, 5.1, 5.2"
    # Differences by seed -1, -1, -.9: mean -.967, deviation .0577. Variances .01 and .0233, so Welch's
    # t = .967 / sqrt(.0333 / 3) = 9.17 with .0333^2 / (.01^2 / 2 + .0233^2 / 2) = 3.45 degrees of freedom,
    # where SciPy has p = .0015 and the interval -.967 -+ .312.
    assert high[3:5] == ["-0.967 (-1.279 to -0.655)", "better, p = 0.002"]
    # Means 5.1 and 5.107, variances .01 and .0101: t = .082, and SciPy's p is .939.
    assert memory[3].startswith("+0.007 (-0.2") and memory[4] == "no difference found, p = 0.939"

    lines = {line[0]: line for line in map(cells, experiment.seed_table("loss").splitlines())}
    # The paired t = .967 / (.0577 / sqrt(3)) = 29.0 with 2, where p = 1 - t / sqrt(t^2 + 2) = .0012.
    assert lines["self, high"][2:4] == ["-0.967 (0.058)", "0.001"]
    # Differences 0, .02, 0: mean .0067, deviation .0115; paired t = 1 with 2 degrees of freedom.
    assert lines["self, sample, from memory"][2:4] == ["+0.007 (0.012)", f"{1 - 1 / 3**0.5:.3f}"]


def test_glue_scores_are_averaged_over_metrics_then_tasks(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "FILES", tmp_path)
    scores = {"random": (0.5, 0.6), "from scratch": (0.4, 0.5)}
    rows = []
    for start, values in scores.items():
        for n, score in enumerate(values):
            for task, metrics in (("MRPC", (score, score + 0.2)), ("QNLI", (score,))):
                for i, value in enumerate(metrics):
                    facts = {"run": f"random-{n}", "start": start.replace("random", "pretrained")}
                    rows.append({**facts, "task": task, "metric": i, "seed": 0, "score": value})
    write(tmp_path, "glue", rows)
    rows += [row | {"start": "pretrained, frozen"} for row in rows if row["start"] == "pretrained"]
    write(tmp_path, "glue", rows)
    head, _, scratch, random, frozen = map(cells, experiment.glue_table().splitlines())
    # MRPC: the mean of two metrics, 60 and 70; QNLI 50 and 60; the average of tasks 55 and 65
    assert random[2:5] == ["65.0 (7.1)", "55.0 (7.1)", "60.0 (7.1)"]
    # 10 points lower; sqrt(50 / 2 + 50 / 2) = 7.07 with 2 degrees of freedom, t(.975) = 4.303
    assert scratch[3] == "45.0 (7.1)" and scratch[5] == "-10.0 (-40.4 to +20.4)"
    assert frozen[0] == "random, frozen" and frozen[2:5] == random[2:5]
    assert frozen[5] == "", "frozen encoders are compared with the frozen one of random masks, which it is"


def test_distilled_arms_are_compared_with_distillation_with_random_masks(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "FILES", tmp_path)
    losses = {"random": (5.0, 5.0), "kd-random": (4.0, 4.1), "kd-teacher": (3.9, 3.8)}
    runs = [(arm, seed, loss) for arm, values in losses.items() for seed, loss in enumerate(values)]
    write(
        tmp_path,
        "runs",
        [{"run": f"{arm}-{n}", "held_out_loss": loss, "blimp": 10 * loss} for arm, n, loss in runs],
    )
    monkeypatch.setattr(experiment, "glue_averages", lambda scores: {})
    _, _, loss, blimp = map(cells, experiment.distillation_table().splitlines())
    assert loss[:5] == [
        "teacher's entropy",
        "held-out loss",
        "4.050 (0.071)",
        "3.850 (0.071)",
        "-0.200 (-0.504 to +0.104)",  # 4.3027 x .0707, the t of 2 degrees of freedom
    ]
    assert blimp[1:5] == ["BLiMP", "40.5 (0.7)", "38.5 (0.7)", "-2.0 (-5.0 to +1.0)"]
    assert loss[5] == blimp[5] == "no difference found, p = 0.106", "SciPy: t = 2.828 with 2"
    _, _, random, *_ = map(cells, experiment.blimp_table().splitlines())
    assert random[:4] == ["random", "2", "50.0 (0.0)", ""]


LOG = """\
step,tokens,loss,held_out_loss,held_out_accuracy,on_plateau,distinct_ids,remembered_share,commonest_share,seconds
0,0,,7.1,0.05,1,,,,0.0
10,640,6.5,6.9,0.06,1,40.0,0.0,0.05,1.5
20,1280,6.0,6.2,0.10,0,41.5,0.5,0.06,3.0
"""


def finished_run(folder, log: str, steps: int):
    config = BertConfig.preset("tiny", vocab_size=100)
    BertForMaskedLM(config).save_pretrained(folder)
    options = {"steps": steps, "entropy_warmup": 0.5, "masking": "self", "reading": "memory"}
    options |= {"mask_ratio": 0.15, "seq_len": 64, "candidates": 2.0}
    record = {"options": options, "unigram_floor": 7.0, "git_commit": "0123456789", "command": "train.py"}
    (folder / "args.json").write_text(json.dumps(record))
    (folder / "log.csv").write_text(log)


def test_finished_and_stopped_runs_are_collected(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "FILES", tmp_path / "results")
    (tmp_path / "results").mkdir()
    write(
        tmp_path / "results", "runs", [{"run": "random-0", "floor": 7.0}, {"run": "memory-0", "floor": 8.0}]
    )
    finished_run(tmp_path / "memory-0", LOG, 20)
    finished_run(tmp_path / "memory-1", LOG, 40)
    result = {"scores": {"accuracy": 0.75, "f1_score": 0.5}, "train_rows": 300}
    glue = {"results": {"pretrained": {"MRPC": {"0": result}}}}
    (tmp_path / "memory-0-glue").mkdir()
    (tmp_path / "memory-0-glue/glue.json").write_text(json.dumps(glue))
    (tmp_path / "memory-0-frozen").mkdir()
    (tmp_path / "memory-0-frozen/glue.json").write_text(json.dumps(glue))
    (tmp_path / "memory-0/blimp.json").write_text(json.dumps({"mean": 0.61234}))

    experiment.collect(tmp_path)
    assert "memory-1 was stopped at step 20" in capsys.readouterr().out
    row, other = experiment.read("runs")
    assert other["run"] == "random-0" and other["floor"] == "7.0", "what is known of other runs stays"
    assert row["run"] == "memory-0" and row["floor"] == "7.0000", "what was known of this run is replaced"
    assert row["blimp"] == "61.23" and row["left_plateau_step"] == "20"
    assert row["held_out_loss"] == "6.2000" and row["commit"] == "0123456"
    assert row["remembered_share"] == "0.500", "10 steps at random, then half of the masks for 10 steps"
    curves = experiment.read("curves")
    assert [row["step"] for row in curves if row["run"] == "memory-1"] == ["0", "10", "20"]
    assert curves[0]["held_out_loss"] == "7.1" and curves[0]["distinct_ids"] == "", "nothing was masked yet"
    scores = [(row["start"], row["metric"], row["score"]) for row in experiment.read("glue")]
    frozen, plain = scores[:2], scores[2:]
    assert plain == [("pretrained", "accuracy", "0.7500"), ("pretrained", "f1_score", "0.5000")]
    assert [start for start, _, _ in frozen] == 2 * ["pretrained, frozen"]


def test_curves_that_begin_at_step_0_give_tables_and_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "FILES", tmp_path)
    rows = []
    taught = ["kd-random-0", "kd-reducible-0"]
    collapsed = ["visible-high-0", "visible-high-all-mask-0"]
    for run in ("random-0", "blank-high-0", *collapsed, "few-random-0", *taught):
        for step in (0, 250, 1000, 2000, 4000):
            facts = {"run": run, "step": step, "seconds": step / 20 or "", "held_out_loss": 7 - step / 1000}
            rows.append(facts | {"distinct_ids": 300 + step / 100 if step else ""})
    write(tmp_path, "curves", rows)
    price = {"random-0": 3.6, "blank-high-0": 4.0, "kd-random-0": 3 * 3.6, "kd-reducible-0": 3.7 * 3.6}
    write(tmp_path, "runs", [{"run": run, "mflop_a_token": value} for run, value in price.items()])

    clock = cells(experiment.clock_table(steps=(500,), seconds=(100,)).splitlines()[2])
    assert clock == ["random", "6.500", "5.000", "200 s"], "2,000 steps take 100 s"
    table = [cells(line) for line in experiment.curve_table(milestones=(1000, 4000)).splitlines()]
    assert table[2][1:] == ["steps", "6.000", "3.000"]
    # blank costs a ninth more on average: after 1,200 free steps, each of the others costs 1 + 1 / 9 / .7
    late = 1200 + 2800 / (1 + 1 / 9 / 0.7)
    assert table[4] == ["self, high", "operations", "6.000", f"{7 - late / 1000:.3f}"]
    # with a teacher every step costs three; after 1,200 of them, which cost 3,600, the student is read too
    kd = [cells(line) for line in experiment.curve_table(milestones=(3000, 4000)).splitlines()][-2:]
    assert kd[0] == ["distillation, reducible entropy", "steps", "4.000", "3.000"]
    late = 1200 + 400 / (3 + 0.7 / 0.7)
    assert kd[1] == ["distillation, reducible entropy", "operations", "6.000", f"{7 - late / 1000:.3f}"]
    for name, svg in experiment.figures().items():
        assert len(re.findall("<polyline", svg)) == {"arms-loss.svg": 4, "arms-difference.svg": 1}.get(
            name, 4
        )


def test_more_arms_are_compared_with_the_random_masks_of_the_nine_arms(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "FILES", tmp_path)
    # {run: (loss at the end, MFLOP per token)}; the nine arms had another teacher than kd-self
    nine = {"random": (5.0, 3.6), "blank-high": (5.3, 4.0), "kd-random": (4.0, 10.8)}
    more = {
        "blank-low": (5.2, 4.0),
        "kd-self": (3.5, 13.32),
        "kd-random": (3.0, 10.8),
        "random-40": (4.9, 5.4),
        "blank-sample-40": (5.0, 7.2),
    }
    for folder, arms in (("nine-arms", nine), ("more-arms", more)):
        (tmp_path / folder).mkdir()
        runs = []
        curves = []
        for arm, (loss, price) in arms.items():
            for seed, gap in enumerate((0.0, 0.1)):
                facts = {"run": f"{arm}-{seed}", "held_out_loss": loss + gap, "held_out_accuracy": 0.25}
                runs.append(facts | {"mflop_a_token": price})
                curves += [
                    {"run": f"{arm}-{seed}", "step": n, "held_out_loss": 7 - n / 1000} for n in (0, 4000)
                ]
        curves += [{"run": "random-3", "step": 4000, "held_out_loss": 99.0}]  # a run that was stopped
        write(tmp_path / folder, "runs", runs)
        write(tmp_path / folder, "curves", curves)

    table = {line[0]: line for line in map(cells, experiment.more_table().splitlines()[2:])}
    assert list(table)[0] == "random" and "self, high" not in table
    # deviations .0707 each: an interval of 4.3027 x .0707
    assert table["self, low"][3] == "+0.200 (-0.104 to +0.504)"
    assert table["distillation, random"][2:4] == ["3.050 (0.071)", "-2.000 (-2.304 to -1.696)"], (
        "its own teacher"
    )
    kd = table["distillation, self, sample (against distillation, random)"]
    assert kd[3] == "+0.500 (+0.196 to +0.804)"
    more_masks = table["self, sample, 40% (against random, 40%)"]
    assert more_masks[3] == "+0.100 (-0.204 to +0.404)", "the number of masks is the same"
    pairs = {line[0]: line for line in map(cells, experiment.seed_table("more").splitlines()[2:])}
    assert pairs["distillation, random"][2] == "-2.000 (0.000)"
    assert pairs["distillation, self, sample (against distillation, random)"][1:3] == ["2", "+0.500 (0.000)"]
    assert pairs["self, sample, 40% (against random, 40%)"][2] == "+0.100 (0.000)"

    curve = experiment.curve_table(more=True, milestones=(1000, 4000)).splitlines()[2:]
    table = {tuple(line[:2]): line[2:] for line in map(cells, curve)}
    assert table["random", "steps"] == ["6.000", "3.000"], "the stopped run does not count"
    # `low` costs what random masks cost up to step 1,200, and 1 + 1 / 9 / .7 of it from there on
    late = 1200 + 2800 / (1 + 1 / 9 / 0.7)
    assert table["self, low", "operations"] == ["6.000", f"{7 - late / 1000:.3f}"]
    # 40% masks cost 1.5 times as much from the first step on
    assert table["random, 40%", "operations"] == [f"{7 - 1 / 1.5:.3f}", f"{7 - 4 / 1.5:.3f}"]
    # distillation three times; after 1,200 of its steps, which cost 3,600, the student is read too
    late = 1200 + 400 / (3 + 0.7 / 0.7)
    assert table["distillation, self, sample", "operations"] == [f"{7 - 1 / 3:.3f}", f"{7 - late / 1000:.3f}"]


def test_more_arms_are_judged_against_the_same_masks_as_in_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "FILES", tmp_path)
    # {run: percent of both yardsticks}; the nine arms had another teacher than kd-self
    nine = {"random": 50.0, "kd-random": 90.0}
    more = {"blank-both": 52.0, "kd-random": 54.0, "kd-self": 55.0}
    for folder, arms in (("nine-arms", nine), ("more-arms", more)):
        (tmp_path / folder).mkdir()
        runs = []
        glue = []
        for arm, percent in arms.items():
            for seed, gap in enumerate((0.0, 1.0)):
                name = f"{arm}-{seed}"
                runs.append({"run": name, "held_out_loss": 4.0, "blimp": percent + gap})
                for task, up in (("MRPC", 0.1), ("RTE", -0.1)):
                    facts = {"run": name, "start": "pretrained", "task": task, "metric": "accuracy"}
                    glue.append(facts | {"seed": seed, "score": (percent + gap) / 100 + up})
        glue.append(glue[0] | {"start": "from scratch", "score": 0.0})
        write(tmp_path / folder, "runs", runs + [{"run": "focal-2-0", "held_out_loss": 4.0, "blimp": ""}])
        write(tmp_path / folder, "glue", glue)

    table = [cells(line) for line in experiment.more_judged_table().splitlines()[2:]]
    assert [line[1] for line in table] == ["GLUE", "BLiMP"] * 4, "an arm that was not judged has no line"
    random, _, both, _, kd_random, _, kd_self, _ = table
    assert random == ["random", "GLUE", "2", "50.5 (0.7)", "", ""]
    assert both[0] == "self, both" and both[3] == "52.5 (0.7)", "the mean of the tasks, then of the runs"
    # deviations .707 each: an interval of 4.3027 x .707
    assert both[4] == "+2.0 (-1.0 to +5.0)"
    assert kd_random[3:5] == ["54.5 (0.7)", "+4.0 (+1.0 to +7.0)"] and kd_random[5].startswith("better")
    assert kd_self[4] == "+1.0 (-2.0 to +4.0)", "against distillation with random masks, the same teacher"
    for yardstick in ("GLUE", "BLiMP"):
        pairs = {
            line[0]: line for line in map(cells, experiment.seed_table(f"more {yardstick}").splitlines())
        }
        assert pairs["self, both"][1:3] == ["2", "+2.0 (0.0)"]
        assert pairs["distillation, self, sample (against distillation, random)"][2] == "+1.0 (0.0)"


@pytest.mark.parametrize("runs", [[], ["few-random-0"], ["random-0"], ["kd-random-0"], ["visible-high-0"]])
def test_a_part_of_the_series_gives_its_tables_and_no_error(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "FILES", tmp_path / "results")
    for name in runs:
        finished_run(tmp_path / name, LOG, 20)
    argv = ["experiment.py", "--collect", str(tmp_path), "--results", str(tmp_path / "results")]
    monkeypatch.setattr("sys.argv", argv)
    experiment.main()
    printed = capsys.readouterr()
    assert ("| random" in printed.out) == (runs in (["few-random-0"], ["random-0"]))
    assert ("collapse-loss.svg" in printed.err) == (runs == ["visible-high-0"])
