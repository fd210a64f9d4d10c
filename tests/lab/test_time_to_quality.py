"""Both programs get the same rows, exam, schedule and seconds. (Which one is better is no test.)"""

import csv
from argparse import Namespace

import pytest
import torch
from conftest import PROJECT

pytest.importorskip("transformers")

import time_to_quality as lab  # noqa: E402 (needs transformers)

KINDS = {lab.SELF: lab.Ours, lab.RANDOM: lab.Ours, lab.THEIRS: lab.Theirs}


class Clock:
    """Shows what it is told to."""

    now = 50.0

    def __call__(self):
        return self.now


@pytest.fixture
def begin(corpus, cache):
    """begin(program) -> a run of 40 seconds by a clock that stands still."""

    def make(program, limit=40.0):
        o = Namespace(corpus=[str(corpus)], cache=str(cache), device="cpu")
        return KINDS[program](lab.options_of(program, 1e-3, 0, o), limit, Clock())

    return make


# ---- the schedule ----


def test_the_rate_rises_for_a_twentieth_of_the_time_and_ends_at_zero():
    # T = 120, W = 6, peak 2: 2 t / 6 up to 6 s, then 2 (120 - t) / 114
    expected = {0: 0, 1.5: 0.5, 3: 1, 6: 2, 63: 1, 91.5: 0.5, 120: 0, 121: 0}
    for seconds, rate in expected.items():
        assert lab.rate_at(seconds, 120, 6, 2) == pytest.approx(rate), f"at {seconds} s"


@pytest.mark.parametrize("program", KINDS)
def test_a_step_takes_the_rate_of_its_second(begin, program):
    run = begin(program)
    for seconds in (1, 2, 21, 39.5):
        run.clock.now = 50 + seconds
        run.update()
        expected = 1e-3 * min(seconds / 2, (40 - seconds) / 38)
        assert [group["lr"] for group in run.optimizer.param_groups] == pytest.approx([expected] * 2)


@pytest.mark.parametrize("program", KINDS)
def test_a_step_that_is_late_changes_nothing(begin, program):
    run = begin(program)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.clock.now = 90.5
    run.update()
    assert all(torch.equal(p, before[name]) for name, p in run.model.named_parameters())


def test_entropies_choose_after_three_tenths_of_the_seconds(begin, monkeypatch):
    asked = []
    entropies = lab.train.Pretraining.entropies
    monkeypatch.setattr(
        lab.train.Pretraining, "entropies", lambda self, *more: asked.append(1) or entropies(self, *more)
    )
    run = begin(lab.SELF)
    for seconds, times in ((1, 0), (11.9, 0), (12.1, 1), (30, 2)):
        run.clock.now = 50 + seconds
        run.update()
        assert len(asked) == times, f"at {seconds} of 40 s"


# ---- the recipe ----


def test_their_model_is_of_our_size_with_its_own_start_and_dropout(begin):
    ours = begin(lab.RANDOM).model
    model = begin(lab.THEIRS).model
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert shapes == {name: p.shape for name, p in ours.named_parameters()}
    assert model.training
    rates = {part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)}
    assert rates == {0.1} == {model.config.attention_probs_dropout_prob, model.config.hidden_dropout_prob}
    for name, p in model.named_parameters():
        if p.dim() == 2:
            n = p.numel()  # the standard error of a standard deviation is sigma / sqrt(2 n)
            assert p.std().item() == pytest.approx(0.02, abs=0.02 * (5 / (2 * n) ** 0.5 + 0.01)), name
            assert abs(p.mean().item()) < 5 * 0.02 / n**0.5, name
        else:
            assert (p == float("LayerNorm.weight" in name)).all(), name


def test_their_optimiser_decays_what_their_trainer_decays(begin):
    from transformers import Trainer

    run = begin(lab.THEIRS)
    names = set(Trainer.get_decay_parameter_names(None, run.model))
    names -= {"cls.predictions.decoder.weight"}  # the word embeddings under another name
    decayed = {p for group in run.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert {name for name, p in run.model.named_parameters() if p in decayed} == names
    assert {group["weight_decay"] for group in run.optimizer.param_groups} == {0.01, 0.0}


def test_their_masks_are_fifteen_percent_of_all_but_the_ends_of_rows(begin, monkeypatch):
    seen = []
    run = begin(lab.THEIRS)
    collate = run.collate
    run.collate = lambda rows: seen.append((rows, collate(rows))) or seen[-1][1]
    for _ in range(8):
        run.update()
    ids = torch.cat([torch.tensor([row["input_ids"] for row in rows]) for rows, _ in seen])
    labels = torch.cat([batch["labels"] for _, batch in seen])
    inputs = torch.cat([batch["input_ids"] for _, batch in seen])
    hidden = labels != -100
    assert (labels == ids)[hidden].all() and (inputs == ids)[~hidden].all()
    assert not hidden[:, [0, -1]].any()
    n = hidden.numel() * 126 / 128
    assert abs(hidden.sum() / n - 0.15) < 5 * (0.15 * 0.85 / n) ** 0.5
    k = hidden.sum()
    assert abs((inputs == run.mask_id)[hidden].sum() / k - 0.8) < 5 * (0.8 * 0.2 / k) ** 0.5 + 0.01
    assert {tuple(batch["attention_mask"].unique().tolist()) for _, batch in seen} == {(1,)}


# ---- what both share ----


def test_all_programs_see_the_same_rows_and_sit_the_same_exam(begin, monkeypatch):
    rows = []
    take = lab.train.take_rows
    runs = {program: begin(program) for program in KINDS}
    monkeypatch.setattr(lab.train, "take_rows", lambda *given: rows.append(take(*given)) or rows[-1])
    seen = {}
    for program, run in runs.items():
        rows.clear()
        for _ in range(3):
            run.update()
        seen[program] = torch.stack(rows)
    for program, run in runs.items():
        assert seen[program].shape == (3, 16, 128)
        assert torch.equal(seen[program], seen[lab.SELF]), program
        assert all(map(torch.equal, run.exam, runs[lab.SELF].exam)), program
        assert run.dtype == runs[lab.SELF].dtype


@pytest.mark.parametrize("program", (lab.SELF, lab.THEIRS))
def test_evaluations_do_not_count_as_training(begin, program, monkeypatch):
    run = begin(program, limit=10.0)
    rates = []

    def examine(model, exam):
        run.clock.now += 1000
        return 5.0, 0.1

    update = type(run).update

    def one_second(self):
        self.clock.now += 1
        update(self)
        rates.append(self.optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(lab.train, "examine", examine)
    monkeypatch.setattr(type(run), "update", one_second)
    curve = lab.train_by_the_clock(run, every=4.0)
    assert [seconds for seconds, _, _ in curve] == pytest.approx([0, 4, 8, 10])
    assert run.step == 10
    assert rates == pytest.approx([lab.rate_at(t, 10, 0.5, 1e-3) for t in range(1, 11)])


# ---- the program ----


def read(folder) -> list:
    with open(folder / "time-to-quality.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def program(corpus, cache, tmp_path):
    """program("--seeds", "1") runs it on the small corpus, half a second a run."""

    def run_program(*options):
        given = f"--corpus {corpus} --cache {cache} --device cpu --results {tmp_path} --seconds 0.5 --lr 1e-3"
        lab.main([*given.split(), *options])

    return run_program


def test_a_small_comparison_from_text_to_figure(program, tmp_path, capsys):
    program("--eval-every", "0.25")
    rows = read(tmp_path)
    assert [row["program"] for row in rows] == [lab.SELF, lab.RANDOM, lab.THEIRS]
    for row in rows:
        seconds, losses = lab.curve_of(row)
        assert seconds[0] == 0 and seconds == sorted(seconds)
        assert losses[-1] == float(row["held_out_loss"])
        assert int(row["steps"]) > 0
    assert len({row["floor"] for row in rows}) == 1
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tra")]
    assert len(table) == 3, "a line a program"
    figure = (tmp_path / "time-to-quality.svg").read_text()
    assert figure.count("<polyline") == 4, "and in the figure the floor"


def test_a_series_continues_and_leaves_finished_rows_alone(program, tmp_path, monkeypatch):
    made = []

    def stand_in(work, name, lr, seed, o):
        made.append((name, lr, seed))
        line = {
            "program": name,
            "lr": f"{lr:g}",
            "seed": str(seed),
            "seconds": f"{o.seconds:g}",
            "steps": "9",
        }
        line |= {"tokens_per_second": "99", "floor": "3.9", "held_out_loss": "4", "accuracy": "0.1"}
        return line | {"curve": "0.00:5 0.50:4"}

    monkeypatch.setattr(lab, "alone", stand_in)
    program()
    assert made == [(lab.SELF, 1e-3, 0), (lab.RANDOM, 1e-3, 0), (lab.THEIRS, 1e-3, 0)]
    path = tmp_path / "time-to-quality.csv"
    first = path.read_bytes()

    made.clear()
    program("--lr", "1e-3", "2e-3", "--seeds", "0", "1")
    assert made[0] == (lab.THEIRS, 2e-3, 0), "the rest of seed 0 is there"
    assert [seed for _, _, seed in made] == [0, 1, 1, 1, 1]
    assert path.read_bytes().startswith(first)

    made.clear()
    program("--seeds")
    assert not made, "without seeds results are shown, nothing is run"
    program("--keep-freed-ram")
    assert made == [(lab.KEPT, 1e-3, 0)]

    path.write_text(path.read_text().replace(" threads", "0 threads"))
    with pytest.raises(SystemExit, match="another text or machine"):
        program()


def test_without_transformers_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(lab.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install transformers"):
        lab.main(["--results", str(tmp_path)])


def test_the_table_and_the_mean_line_by_hand():
    def row(seed, curve, loss):
        fixed = {"program": lab.SELF, "lr": "0.001", "seconds": "8", "floor": "6.0", "accuracy": "0.25"}
        measured = {"steps": "100", "tokens_per_second": "25600", "hardware": "a stone, 1 threads"}
        return fixed | measured | {"seed": seed, "curve": curve, "held_out_loss": loss}

    rows = [row("0", "0:7 4:5 8:3", "3"), row("1", "0:9 4:5 8:5", "5")]
    cells = [cell.strip() for cell in lab.table(rows).splitlines()[2].strip("|").split("|")]
    # at 1, 2 and 4 s: (6.5 + 8) / 2, (6 + 7) / 2 and 5; deviations of two values: half their gap times sqrt 2
    assert cells[:5] == [lab.SELF, "0.001", "2", "100", "25,600"]
    assert cells[5:8] == ["7.250 (1.061)", "6.500 (0.707)", "5.000 (0.000)"]
    assert cells[8:] == ["4.000 (1.414)", "6.000 (0.000)", "0.250 (0.000)"]
    assert lab.figure(rows).count("<polyline") == 2, "the programs' line and the floor"


def test_the_table_in_the_report_is_that_of_the_raw_results():
    report = (PROJECT / "tests/lab/speed.md").read_text(encoding="utf-8")
    results = lab.read_results(lab.RESULTS / "time-to-quality.csv")
    for line in lab.table(results).splitlines():
        assert line in report, f"the report lacks this line of tests/lab/time_to_quality.py:\n{line}"
    stored = (lab.RESULTS / "time-to-quality.svg").read_text(encoding="utf-8")
    assert stored == lab.figure(results), "the figure is older than its CSV"
