"""curves.py: the table against logs written by hand, the picture read as SVG, and folders that are no run."""

import itertools
import json
import re
import shlex
import xml.etree.ElementTree as ElementTree

import chart
import curves
import pytest
from conftest import PROJECT, SMALL, killed_in_step, launch, launch_distillation

SVG = "{http://www.w3.org/2000/svg}"
FLOOR = 6.25
OPTIONS = {"steps": 200, "batch_size": 16, "seq_len": 128, "lr": 0.001, "warmup": 0.05, "max_tokens": 0}
OPTIONS |= {"masking": "random", "select": "sample", "reading": "blank", "mask_ratio": 0.15}
HEAD = "step,tokens,loss,held_out_loss,held_out_accuracy,on_plateau,seconds,tokens_per_second\n"
FIRST = [(0, 0, 6.5, 0.03, 0), (100, 204800, 5.0, 0.2, 11.4), (200, 409600, 4.5, 0.2519, 22.6)]
SECOND = [(0, 0, 6.5, 0.03, 0), (100, 204800, 5.1, 0.2, 13), (200, 409600, 4.466, 0.26, 26)]


@pytest.fixture
def write_run(tmp_path, monkeypatch):
    """write_run("name", lines, seed=1) -> tmp_path/name, the folder of a run; tests run beside it."""
    monkeypatch.chdir(tmp_path)

    def write(name, lines=FIRST, text="text", floor=FLOOR, vocabulary="a\nb\n", **options):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        record = {"options": OPTIONS | options, "text": text, "unigram_floor": floor}
        (folder / "args.json").write_text(json.dumps(record))
        (folder / "vocab.txt").write_text(vocabulary)
        rows = [f"{s},{t},,{loss},{accuracy},0,{sec},900\n" for s, t, loss, accuracy, sec in lines]
        (folder / "log.csv").write_text(HEAD + "".join(rows))
        return folder

    return write


def show(*argv):
    """The picture that these arguments give."""
    curves.main([*map(str, argv), "--out", "out.svg"])
    return ElementTree.parse("out.svg").getroot()


def polylines(svg):
    """[[(x, y), ...]] of the picture, in pixels."""
    lines = svg.iter(f"{SVG}polyline")
    return [[tuple(map(float, p.split(","))) for p in line.get("points").split()] for line in lines]


def table_of(printed):
    """{run: {column: cell}} of the printed table; its cells are two spaces or more apart."""
    lines = printed.split("\n\n")[0].splitlines()
    names = lines[0].split()
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[1:]]
    return {row[0]: dict(itertools.zip_longest(names, row, fillvalue="")) for row in rows}


# ---- the table ----


def test_the_table_is_what_stands_in_the_logs(write_run, capsys):
    show(write_run("random"), write_run("high", SECOND, masking="self", select="high", mask_ratio=0.4))
    table = table_of(capsys.readouterr().out)
    assert table["random"] == {
        "run": "random",
        "masks": "random, 15%",
        "steps": "200",
        "tokens": "409,600",
        "seconds": "23",
        "best": "4.500",
        "last": "4.500",
        "accuracy": "0.252",
        "difference": "",
    }
    high = table["high"]
    assert high["masks"] == "high of blank entropy, 40%"
    assert high["difference"] == "-0.034", "4.466 - 4.5"


def test_the_best_loss_is_not_always_the_last(write_run, capsys):
    show(write_run("up", [*FIRST[:2], (150, 307200, 4.4, 0.2, 17), (200, 409600, 4.9, 0.2, 22)]))
    row = table_of(capsys.readouterr().out)["up"]
    assert (row["best"], row["last"]) == ("4.400", "4.900")


@pytest.mark.parametrize(
    "by, end, expected",
    [("step", "100", "+0.100"), ("tokens", "204,800", "+0.100"), ("seconds", "13", "+0.171")],
)
def test_runs_are_compared_where_the_shorter_one_ends(write_run, capsys, by, end, expected):
    # At 13 seconds the first run was 1.6 of 11.2 seconds after 5.0, on its way down to 4.5: at 4.9286.
    show(write_run("done"), write_run("running", SECOND[:2]), "--by", by)
    printed = capsys.readouterr().out
    row = table_of(printed)["running"]
    assert row["steps"] == "100 of 200"
    assert row["difference"] == f"{expected} at {end}"
    assert "running is not at its end" in printed and "done is not" not in printed


@pytest.mark.parametrize(
    "options, words",
    [
        ({"masking": "self"}, "sample of blank entropy, 15%"),
        ({"masking": "self", "reading": "memory", "whole_word": True}, "memory entropy, 15%, whole words"),
        ({"masking": "teacher", "select": "high"}, "high of teacher's blank entropy, 15%"),
        ({"masking": "reducible", "reading": "visible"}, "sample of reducible visible entropy, 15%"),
    ],
)
def test_masks_are_named_in_words(options, words):
    assert curves.masks_of(OPTIONS | options).endswith(words)


def test_runs_of_one_name_are_told_apart_by_their_folders(write_run, capsys):
    svg = show(write_run("a/same/run"), write_run("b/same/run", SECOND), write_run("other"))
    assert list(table_of(capsys.readouterr().out)) == ["a/same/run", "b/same/run", "other"]
    assert len(polylines(svg)) == 3


# ---- warnings ----


@pytest.mark.parametrize(
    "changes, warning",
    [
        ({"text": "other", "floor": 7.0}, "another text"),
        ({"text": "other", "floor": 7.0, "vocabulary": "b\na\n"}, "another vocabulary"),
        ({"seq_len": 64, "floor": 6.3}, "another exam: its rows have another --seq-len"),
        ({"floor": 6.3}, "another exam: its unigram loss differs"),
        ({"max_tokens": 1000, "floor": 6.3}, "another --max-tokens"),
        ({"steps": 400, "lr": 0.002}, r"another schedule: --steps 400, --lr 0.002 \(there 200, 0.001\)"),
        ({"warmup": 0.1}, "another schedule: --warmup 0.1"),
        ({"batch_size": 32}, "another schedule: --batch-size 32"),
    ],
)
def test_runs_that_cannot_be_compared_get_one_warning(write_run, capsys, changes, warning):
    show(write_run("one"), write_run("two", **changes))
    warnings = re.findall("^WARNING: .*", capsys.readouterr().out, re.M)
    assert len(warnings) == 1, warnings
    assert re.search(f"two cannot be compared with one: {warning}", warnings[0])


def test_what_the_experiment_is_about_is_said_and_is_no_warning(write_run, capsys):
    changes = {"masking": "self", "select": "high", "from_": "runs/a", "seed": 1, "cache": "c", "out": "o"}
    show(write_run("one"), write_run("two", **changes), write_run("again", text="the same, under --vocab"))
    printed = capsys.readouterr().out
    assert "WARNING" not in printed
    assert "    two: --masking self --select high --from runs/a --seed 1\n    again: none\n" in printed


@pytest.mark.parametrize(
    "first, second, words",
    [
        ({}, {"whole_word": True}, "--whole-word"),
        ({"whole_word": True}, {"whole_word": False}, "(no --whole-word)"),
        ({"corpus": []}, {"corpus": ["a.txt", "b.txt"]}, "--corpus a.txt b.txt"),
        ({"corpus": ["a.txt"], "from_": "x"}, {"corpus": [], "from_": ""}, "(no --corpus) (no --from)"),
        ({"kd_alpha": 0.5}, {}, "(no --kd-alpha)"),
        ({}, {"kd_alpha": 0.0}, "--kd-alpha 0.0"),
    ],
)
def test_options_that_differ_are_written_as_one_types_them(write_run, capsys, first, second, words):
    show(write_run("one", **first), write_run("two", **second))
    assert f"    two: {words}\n" in capsys.readouterr().out


# ---- the picture ----


@pytest.mark.parametrize("by, column", [("step", 0), ("tokens", 1), ("seconds", 4)])
def test_the_lines_are_the_losses_and_the_dashed_line_is_the_unigram_loss(write_run, by, column):
    svg = show(write_run("random"), write_run("high", SECOND), "--by", by)
    drawn = polylines(svg)
    assert len(drawn) == 2

    # Two points of the first line give the scale of both axes; every other point must stand on it.
    (left, top), *_, (right, bottom) = drawn[0]
    last = max(FIRST[-1][column], SECOND[-1][column])
    if last == FIRST[-1][column]:
        across = (right - left) / last
    else:
        across = (drawn[1][-1][0] - left) / last
    down = (bottom - top) / (FIRST[-1][2] - FIRST[0][2])
    for line, log in zip(drawn, (FIRST, SECOND), strict=True):
        for (x, y), row in zip(line, log, strict=True):
            assert x == pytest.approx(left + across * row[column], abs=0.2)
            assert y == pytest.approx(top + down * (row[2] - FIRST[0][2]), abs=0.2)

    paths = [path for path in svg.iter(f"{SVG}path") if path.get("stroke-dasharray") == "6 4"]
    height = float(re.search(r" (\S+)H", paths[0].get("d"))[1])
    assert len(paths) == 1 and height == pytest.approx(top + down * (FLOOR - FIRST[0][2]), abs=0.2)
    names = {text.text for text in svg.iter(f"{SVG}text")}
    assert {"random", "high", "unigram loss", "nats per token", curves.X_LABELS[by]} <= names


def boxes(svg):
    """(left, top, right, bottom) of every text that is not rotated, with letters as wide as they come."""
    found = []
    for text in svg.iter(f"{SVG}text"):
        if text.get("transform"):
            continue
        x, y = float(text.get("x")), float(text.get("y"))
        width = 0.55 * chart.FONT * len(text.text)
        left = {"start": x, "middle": x - width / 2, "end": x - width}[text.get("text-anchor")]
        found.append((left, y - 0.75 * chart.FONT, left + width, y + 0.2 * chart.FONT, text.text))
    return found


def test_eight_runs_with_long_names_and_equal_losses_do_not_overlap(write_run):
    long = "a-name-that-is-longer-than-any-name-ought-to-be-but-that-somebody-gives-to-a-run"
    runs = [write_run(f"{long}-{i}", FIRST[: 2 + i % 2], floor=FLOOR + i) for i in range(6)]
    svg = show(*runs, write_run("x"), write_run("y", [(*row[:2], 9.0, *row[3:]) for row in FIRST]))
    height = float(svg.get("height"))
    shown = boxes(svg)
    assert sum(text[4].startswith("a-name") for text in shown) == 6
    for left, top, right, bottom, text in shown:
        assert left >= 0 and right <= chart.WIDTH + 16 and top >= 0 and bottom <= height, text
    for one, two in itertools.combinations(shown, 2):
        apart = one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]
        assert apart, f"{one[4]} covers {two[4]}"
    assert len({line.get("stroke") for line in svg.iter(f"{SVG}polyline")}) == 8, "a colour for each"


def test_long_numbers_below_the_axis_do_not_overlap(write_run):
    scale = 1_000_000
    svg = show(write_run("long", [(s * scale, t * scale, *more) for s, t, *more in FIRST]), "--by", "tokens")
    ticks = [box for box in boxes(svg) if re.fullmatch(r"[\d,]+", box[4]) and len(box[4]) > 6]
    assert len(ticks) >= 2
    for one, two in itertools.combinations(ticks, 2):
        assert one[2] <= two[0] or two[2] <= one[0]


def test_one_evaluation_is_a_point(write_run, capsys):
    svg = show(write_run("begun", FIRST[:1]))
    assert len(list(svg.iter(f"{SVG}circle"))) == 1
    assert table_of(capsys.readouterr().out)["begun"]["steps"] == "0 of 200"


def test_what_is_not_a_number_is_left_out_and_said(write_run, capsys):
    lines = [FIRST[0], (50, 102400, "nan", 0.1, 5), FIRST[1], (150, 307200, "inf", 0.1, 15), FIRST[2]]
    svg = show(write_run("holes", lines), write_run("whole"))
    assert [len(line) for line in polylines(svg)] == [3, 3]
    printed = capsys.readouterr().out
    assert "WARNING: holes: 2 evaluations are not numbers" in printed
    assert table_of(printed)["whole"]["difference"] == "+0.000"


def test_a_hundred_thousand_evaluations_make_a_small_picture_with_every_spike(write_run):
    lines = [(s, s * 2048, 6.5 - 2 * s / 1e5, 0.1, s / 10) for s in range(100_000)]
    lines[54_321] = (*lines[54_321][:2], 8.0, *lines[54_321][3:])
    (line,) = polylines(show(write_run("long", lines, steps=99_999)))
    assert len(line) <= 1200
    assert line == sorted(line, key=lambda point: point[0]), "from left to right"
    highest = min(line, key=lambda point: point[1])  # y grows downwards
    assert highest[0] == pytest.approx(line[0][0] + 0.54321 * (line[-1][0] - line[0][0]), abs=0.2)
    assert highest[1] < line[0][1], "the spike is above the start"


# ---- real runs, and folders that are none ----


def test_runs_of_both_programs_are_read_as_they_are_and_also_interrupted(
    corpus, cache, teacher, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    text = ["--corpus", corpus, "--cache", cache]
    launch(*text, *SMALL, "--masking", "random", "--out", "runs/random")
    with killed_in_step(6):
        launch(*text, *SMALL, "--entropy-warmup", 0, "--out", "runs/killed")
    distilled = [option for option in SMALL if option not in ("--vocab-size", "300")]
    launch_distillation(*text, *distilled, "--teacher", teacher, "--masking", "random", "--out", "runs/kd")
    capsys.readouterr()

    svg = show("runs/random", "runs/killed", "runs/kd")
    printed = capsys.readouterr().out
    table = table_of(printed)
    assert [row["steps"] for row in table.values()] == ["8", "4 of 8", "8"]
    assert table["killed"]["masks"] == "sample of blank entropy, 15%"
    assert [len(line) for line in polylines(svg)] == [3, 2, 3]
    assert "WARNING" not in printed, "all three read the same text under the same vocabulary"


def test_the_line_that_a_second_run_prints_shows_both(corpus, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = ["--corpus", corpus, "--cache", cache, *SMALL, "--masking", "random"]
    launch(*text, "--out", "runs/first run")
    assert "curves.py" not in capsys.readouterr().out, "nothing to compare yet"
    launch(*text, "--seed", 1, "--out", "runs/second")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "curves.py" in line]
    command = shlex.split(line)
    assert command[:2] == ["python", "tests/lab/curves.py"]
    assert (PROJECT / command[1]).is_file()

    curves.main(command[2:])
    printed = capsys.readouterr().out
    assert list(table_of(printed)) == ["first run", "second"], "the difference is the new run's"
    assert "    second: --seed 1\n" in printed and "WARNING" not in printed
    assert len(polylines(ElementTree.parse("curves.svg").getroot())) == 2


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda folder: (folder / "log.csv").unlink(), "holds no log.csv"),
        (lambda folder: (folder / "args.json").unlink(), "holds no log.csv and args.json"),
        (lambda folder: (folder / "args.json").write_text("[]"), "args.json is not one of train.py"),
        (lambda folder: (folder / "args.json").write_text("{"), "args.json is not one of train.py"),
        (lambda folder: (folder / "log.csv").write_text(""), "log.csv has no column"),
        (lambda folder: (folder / "log.csv").write_text("step,loss\n0,7\n"), "no column held_out_accuracy"),
        (lambda folder: (folder / "log.csv").write_text(HEAD), "holds no evaluation"),
        (lambda folder: (folder / "log.csv").write_text(HEAD + "0,0,,six,0,0,0,0\n"), "line 2: not a line"),
        (lambda folder: (folder / "log.csv").write_text(HEAD + "0,0,,6\n"), "line 2: not a line"),
    ],
)
def test_a_folder_that_is_no_run_ends_in_one_sentence(write_run, damage, sentence):
    folder = write_run("run")
    damage(folder)
    with pytest.raises(SystemExit) as end:
        show(write_run("good"), folder)
    assert sentence in str(end.value) and "\n" not in str(end.value)


def test_other_wrong_arguments_end_in_one_sentence(write_run):
    folder = write_run("run")
    with pytest.raises(SystemExit, match="nowhere is no folder"):
        show("nowhere")
    with pytest.raises(SystemExit, match="named twice"):
        show(folder, "run")
    with pytest.raises(SystemExit, match="No such file or directory: 'no/such/curves.svg'"):
        curves.main([str(folder), "--out", "no/such/curves.svg"])
