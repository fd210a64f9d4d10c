"""The made-up language: what can be known of a hidden token, by brute force; runs and tables by hand."""

import argparse
import math
from collections import Counter
from itertools import product

import language
import numpy as np
import pytest
import torch
from language import KINDS, LONGER, NOISE_WORDS, PHRASES, Language

import train


def options(**more):
    return argparse.Namespace(**{"easy": 8, "noise": 0, "keys": 8, "steps": 1500, "eval_every": 50, **more})


@pytest.fixture
def small(monkeypatch):
    """Runs of a second: little text, and entropies choose from the third step on."""
    monkeypatch.setattr(language, "ROWS", 64)
    monkeypatch.setattr(language, "RANDOM_STEPS", 2)
    monkeypatch.setattr(train, "EXAM_ROWS", 64)
    return options(steps=4, eval_every=2, keys=3)


# ---- the language ----


@pytest.mark.parametrize("easy, noise", [(8, 0), (8, 4), (8, 8), (2, 0), (2, 1), (5, 2), (17, 0), (17, 9)])
def test_a_record_is_a_phrase_two_keys_and_their_function(easy, noise):
    tongue = Language(seed=1, noise=noise, keys=8, easy=easy)
    length = easy + 3
    kinds = tongue.kind_of_place()[1:-1].view(-1, length)
    counts = [easy - noise, 2, 1, noise]
    assert (kinds == kinds[0]).all() and kinds[0].bincount(minlength=4).tolist() == counts
    rows = tongue.rows(400)
    assert rows.shape[1] == 66 // length * length, "as many records as fit into 66 tokens"
    functions = {}
    for record in rows.reshape(-1, length):
        words = [tongue.words[i] for i in record]
        phrases = {(record[p] - tongue.first["phrase"]) // length for p in tongue.easy_places}
        assert len(phrases) <= 1 and phrases <= set(range(PHRASES)), "all easy words are of one phrase"
        assert all(words[p].startswith("phrase") for p in tongue.easy_places)
        assert all(words[p].startswith("noise") for p in tongue.noise_places)
        keys = tuple(words[p] for p in tongue.key_places)
        value = words[tongue.function_place]
        assert value.startswith("value") and functions.setdefault(keys, value) == value, (
            "same keys, same value"
        )
    assert len(functions) == 64 and set(Counter(functions.values()).values()) == {2}, "32 values, two each"


def test_with_eight_easy_words_the_language_is_that_of_the_older_results():
    tongue = Language(seed=1, noise=3, keys=8)
    assert (tongue.key_places, tongue.function_place, tongue.records) == ((1, 4), 8, 6)
    assert tongue.noise_places + tongue.easy_places == [0, 3, 6, 10, 2, 5, 7, 9]


def test_words_survive_the_tokenizer_and_fill_the_vocabulary(small, tmp_path):
    tongue = Language(seed=0, noise=4, keys=3)
    tongue.write(tmp_path)
    settings = language.options_of("random", 0, tmp_path, tongue, small)
    tokenizer, ids, _, _ = train.prepare_text(settings)
    assert tokenizer.get_vocab_size() == len(tongue.words) == len(set(tongue.words))
    rows = torch.from_numpy(np.array(ids)).view(-1, 66)
    expected = {tuple(row) for row in Language(seed=0, noise=4, keys=3).rows(64 + 6).tolist()}
    assert len(rows) <= 64 and all(tuple(row) in expected for row in rows.tolist())


def entropy_by_counting(tongue, record, hidden, place) -> float:
    """Of the hidden token: go through all records of the language, and count those that agree."""
    counts = Counter()
    for phrase, key, other in product(range(PHRASES), range(tongue.keys), range(tongue.keys)):
        world = list(record)
        for easy in tongue.easy_places:
            world[easy] = tongue.first["phrase"] + phrase * tongue.length + easy
        world[tongue.key_places[0]] = tongue.first["key"] + key
        world[tongue.key_places[1]] = tongue.first["other"] + other
        world[tongue.function_place] = tongue.first["value"] + int(tongue.table[key * tongue.keys + other])
        if all(world[p] == record[p] for p in range(tongue.length) if not hidden[p]):
            counts[world[place]] += 1
    total = counts.total()
    entropy = -sum(n / total * math.log(n / total) for n in counts.values())
    return math.log(NOISE_WORDS) if place in tongue.noise_places else entropy


@pytest.mark.parametrize(
    "easy, noise, share", [(8, 0, 0.3), (8, 4, 0.3), (8, 4, 0.8), (8, 8, 0.5), (2, 0, 0.6), (17, 2, 0.4)]
)
def test_the_true_entropy_is_that_of_all_records_that_agree_with_what_is_visible(easy, noise, share):
    tongue = Language(seed=2, noise=noise, keys=6, easy=easy)
    ids = torch.from_numpy(np.pad(tongue.rows(5).astype(np.int64), ((0, 0), (1, 1))))
    hidden = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < share
    hidden[:, 0] = False
    hidden[:, -1] = False
    found = tongue.true_entropy(ids, hidden)[:, 1:-1].reshape(-1, tongue.length)
    records = ids[:, 1:-1].reshape(-1, tongue.length).tolist()
    masks = hidden[:, 1:-1].reshape(-1, tongue.length).tolist()
    for row, (record, mask) in enumerate(zip(records, masks, strict=True)):
        for place in range(tongue.length):
            expected = entropy_by_counting(tongue, record, mask, place) if mask[place] else 0.0
            assert found[row, place].item() == pytest.approx(expected, abs=1e-5), (record, mask, place)


# ---- runs ----


def test_the_loss_of_the_kinds_is_the_exam_s_loss_in_parts(small, tmp_path):
    tongue = Language(seed=0, noise=4, keys=3)
    tongue.write(tmp_path)
    small.noise = 4
    run = language.Experiment(language.options_of("random", 0, tmp_path, tongue, small), tongue, False)
    run.evaluate_and_save()
    expected, _ = train.examine(run.model, run.exam)
    counts = [(run.kind == number).sum().item() for number in range(len(KINDS))]
    weighted = sum(n * run.log[0][kind] for n, kind in zip(counts, KINDS, strict=True)) / sum(counts)
    assert weighted == pytest.approx(expected, rel=1e-4) == run.log[0]["held_out_loss"]
    assert 0 < run.lowest_loss() < math.log(9), "at most all nine pairs of keys are possible"


def test_accuracy_and_calibration_are_those_of_the_model_s_predictions(small, tmp_path):
    tongue = Language(seed=0, noise=0, keys=3)
    tongue.write(tmp_path)
    run = language.Experiment(language.options_of("random", 0, tmp_path, tongue, small), tongue, False)
    run.evaluate_and_save()
    ids, places, labels = run.exam
    with torch.no_grad():
        log_p = run.model.eval()(ids).double().log_softmax(-1)
    log_p = log_p.take_along_dim(places[..., None], 1)  # of all tokens, those that the exam masks
    gap = -(log_p.exp() * log_p).sum(-1) + log_p.gather(-1, labels[..., None])[..., 0]
    correct = (log_p.argmax(-1) == labels).double()
    learnable = tongue.kind_of_place()[places] == KINDS.index("learnable")
    assert run.log[0]["calibration"] == pytest.approx(gap.mean().item(), abs=1e-4)
    assert run.log[0]["learnable_calibration"] == pytest.approx(gap[learnable].mean().item(), abs=1e-4)
    assert run.log[0]["accuracy"] == pytest.approx(correct.mean().item(), abs=1e-6)
    assert run.log[0]["learnable_accuracy"] == pytest.approx(correct[learnable].mean().item(), abs=1e-6)


def test_easy_is_what_the_model_is_sure_of(small, tmp_path, monkeypatch):
    tongue = Language(seed=0, noise=0, keys=3)
    tongue.write(tmp_path)
    run = language.Experiment(language.options_of("random", 0, tmp_path, tongue, small), tongue, False)
    ids, places, _ = run.exam
    with torch.no_grad():
        p = run.model.eval()(ids, places=places).double().softmax(-1)
    entropy = torch.special.entr(p).sum(-1)
    monkeypatch.setattr(language, "EASY", entropy.quantile(0.25).item() + 1e-5)
    assert run.easy_share() == pytest.approx(0.25, abs=0.01)


def test_reducible_is_what_the_model_does_not_know_less_what_nobody_knows(small, tmp_path, monkeypatch):
    tongue = Language(seed=0, noise=4, keys=3)
    tongue.write(tmp_path)
    small.noise = 4
    settings = language.options_of("sample, reducible", 0, tmp_path, tongue, small)
    run = language.Experiment(settings, tongue, reducible=True)
    ids = train.take_rows(run.train_ids, np.arange(8), 68, run.cls_id, run.sep_id)
    hidden = torch.zeros(ids.shape, dtype=torch.bool)
    hidden[:, 1:34] = True
    constant = torch.full(ids.shape, 1.5)
    monkeypatch.setattr(train.Pretraining, "entropies", lambda *_: constant)
    reducible = run.entropies(ids, None, hidden)
    noise = run.language.kind_of_place() == KINDS.index("noise")
    assert (reducible[:, noise & hidden[0]] == 0).all(), "log 32 nats of noise are more than 1.5"
    truth = tongue.true_entropy(ids, hidden)
    assert torch.allclose(reducible, (constant - truth).clamp_min(0)) and (reducible > 1).any()


def test_the_longer_random_run_has_the_operations_of_sample(tmp_path, monkeypatch):
    made = {}

    class NoTraining(language.Experiment):
        def __init__(self, o, *_, **__):
            made["steps"] = o.steps
            names = ("accuracy", "calibration", "learnable_accuracy", "learnable_calibration")
            self.log = [{"step": o.steps, **dict.fromkeys((*KINDS, *names), 0.5)}]
            self.lowest_loss = lambda: 0.0
            self.easy_share = lambda: 0.0

    monkeypatch.setattr(language, "Experiment", NoTraining)
    monkeypatch.setattr(train, "train", lambda run: None)
    cost = {arm: language.make_run(arm, 0, options())["gflop"] for arm in ("random", "sample", LONGER)}
    assert cost[LONGER] == pytest.approx(cost["sample"], rel=1e-3) and cost["random"] < cost["sample"]
    # A pass for entropies costs about a third of a step, and 1,380 of 1,500 steps have one.
    assert made["steps"] == pytest.approx(1500 + 1380 / 3, rel=0.01)


def test_every_arm_runs_and_finished_runs_are_left_out(small, tmp_path, capsys, monkeypatch):
    argv = ["--steps", "4", "--eval-every", "2", "--keys", "3", "--results", str(tmp_path)]
    language.main([*argv, "--seeds", "0"])
    first = capsys.readouterr().out
    results = language.read_results(tmp_path / "language.csv")
    assert [row["arm"] for row in results] == list(language.ARMS)
    assert all(f"| {arm} " in first for arm in language.ARMS)
    steps = [point.split(":")[0] for point in results[0]["curve"].split()]
    assert steps == ["0", "2", "4"] and results[0]["below_1_nat"] == "never"

    language.main([*argv, "--seeds", "0", "1", "--arms", "random"])
    assert "seed 0" not in capsys.readouterr().out
    assert len(language.read_results(tmp_path / "language.csv")) == len(results) + 1
    assert len({row["commit"] for row in results}) == 1
    svg = (tmp_path / "language-0-3-4.svg").read_text()
    assert svg.count("<polyline") == len(language.FIGURE)


def test_the_kinds_that_are_masked_are_those_of_the_masked_places(small, tmp_path, monkeypatch):
    tongue = Language(seed=0, noise=4, keys=3)
    tongue.write(tmp_path)
    small.noise = 4
    run = language.Experiment(language.options_of("random", 0, tmp_path, tongue, small), tongue, False)
    places = []
    original = run.choose

    def choose(*given):
        selected = original(*given)
        places.append(tongue.kind_of_place().expand(selected.shape)[selected])
        return selected

    monkeypatch.setattr(run, "choose", choose)
    train.train(run)
    assert "masked" not in run.log[0], "before the first step nothing was masked"
    for line, kinds in zip(run.log[1:], (places[:2], places[2:]), strict=True):
        counts = torch.cat(kinds).bincount(minlength=len(KINDS))
        assert line["masked"] == pytest.approx((counts / counts.sum()).tolist())


def test_arms_without_random_masks_are_compared_with_nothing(small, tmp_path, capsys):
    argv = ["--steps", "4", "--keys", "3", "--seeds", "0", "--results", str(tmp_path)]
    language.main([*argv, "--arms", "sample, visible"])
    assert "| sample, visible " in capsys.readouterr().out


def test_without_results_there_is_nothing_to_show(tmp_path):
    with pytest.raises(SystemExit, match="holds no results yet: name --seeds, or try --small"):
        language.main(["--results", str(tmp_path)])


# ---- tables ----


@pytest.mark.parametrize(
    "steps, text",
    [
        ([500, 700, 650], "650 (500 to 700)"),
        ([500, math.inf, 650], "650 (500 to 650), 1 of 3 never"),
        ([math.inf, math.inf, 650], "never (650 to 650), 2 of 3 never"),
        ([math.inf, math.inf], "never"),
    ],
)
def test_when_the_loss_falls_below_a_nat(steps, text):
    assert language.when(steps) == text


def result(arm, seed, below, loss, steps=1500, gflop=3000):
    row = {"arm": arm, "seed": str(seed), "below_1_nat": str(below), "learnable_loss": str(loss)}
    row |= {"steps_made": str(steps), "gflop": str(gflop), "easy_loss": "0.01", "keys_loss": "0.5"}
    return row


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_arms_are_compared_at_equal_steps_and_at_equal_operations():
    # 120 of the 1,500 steps of sample are random; the others cost a third more: 1,380 / 3 = 460 steps.
    results = [result("random", seed, 1000 + 100 * seed, 0.8) for seed in range(2)]
    results += [result(LONGER, seed, 900, 0.7, 1960, 3920) for seed in range(2)]
    results += [result("sample", seed, 720 + 60 * seed, 0.6, gflop=3920) for seed in range(2)]
    results += [result("low", seed, "never", 4.0, gflop=3920) for seed in range(2)]
    results += [result("sample, memory", seed, 900, 0.7) for seed in range(2)]

    head, _, random, longer, low, sample, memory = map(cells, language.loss_table(results).splitlines())
    assert sample[:7] == ["sample", "2", "1,500", "3.9", "0.01", "0.50", "0.60 (0.00)"]
    assert sample[7] == "-0.20" and sample[9] == "-0.10", "nothing varies: no interval"
    assert memory[7] == "-0.10" and memory[9] == "", "it has the operations of random masks"
    assert random[7] == longer[7] == "", "nothing to compare with"

    _, _, random, longer, low, sample, memory = map(cells, language.transition_table(results).splitlines())
    assert random[1] == random[4] == "1,050 (1,000 to 1,100)"
    assert sample[1] == "750 (720 to 780)"
    # Deviations 70.7 and 42.4: sqrt(2500 + 900) = 58.3 with 1.64 degrees of freedom, t = 5.36
    assert sample[2:4] == ["-300 (-612 to +12)", "no difference found, p = 0.053"]
    # 120 + 600 x 4/3 = 920 and 120 + 660 x 4/3 = 1,000; of 900 both times: 60 -+ 12.706 x 40
    assert sample[4:6] == ["960 (920 to 1,000)", "+60 (-448 to +568)"], "against 900, in as many operations"
    assert low[1] == low[4] == "never" and low[2] == low[5] == "", "a run that never gets there has no mean"


def test_the_table_of_kinds_is_the_mean_of_the_runs_that_know_it():
    rows = [{"arm": "random", "masked": masked} for masked in (".5/.3/.2/0", ".7/.1/.2/0", "")]
    table = language.mask_table([*rows, {"arm": "low", "masked": ""}]).splitlines()
    assert cells(table[0]) == ["masks", "runs", *KINDS]
    assert [cells(line) for line in table[2:]] == [["random", "2", "60.0%", "20.0%", "20.0%", "0.0%"]]


def test_the_figure_shows_the_median_of_the_seeds():
    ends = ("1.00", "3.00", "9.00")
    rows = [
        {"arm": "random", "curve": f"0:4.00 10:{end}", "seed": str(seed)} for seed, end in enumerate(ends)
    ]
    rows.append(rows[0] | {"arm": "sample, visible"})  # not shown
    assert language.median_curves(rows) == {"random": ("blue", [0, 10], [4.0, 3.0])}
