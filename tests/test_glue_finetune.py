"""glue_eval.py's fine-tuning, its table, resuming, submission files and comparison, on a made-up GLUE."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROJECT

import glue_eval as glue
import model as bert

WORDS = ["good", "bad", *(a + b for a in ("ba", "co", "du", "fi") for b in ("rn", "st", "lt", "nd"))]
QUICK = "--epochs 1 --seeds 0 --device cpu --dtype float32 --batch-size 8 --max-length 32".split()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A masked-LM checkpoint of one layer that knows WORDS."""
    folder = tmp_path_factory.mktemp("checkpoint")
    vocab = folder / "words.txt"
    vocab.write_text("\n".join([*bert.SPECIAL_TOKENS, *WORDS]))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = bert.BertConfig(len(WORDS) + 5, max_position_embeddings=48, **sizes)
    bert.BertForMaskedLM(config).save_pretrained(folder, bert.load_tokenizer(vocab))
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Every task in the official layout; the label depends on whether the first sentence says good or bad."""
    folder, rng = tmp_path_factory.mktemp("glue"), random.Random(0)
    for name, task in glue.TASKS.items():
        glue.task_folder(name, folder).mkdir(exist_ok=True)
        for stem in task.files:
            hidden = stem.startswith(("test", "diagnostic"))
            columns = task.test_text if hidden else task.text
            width = {"MNLI": 12, "AX": 3}.get(name, max(*columns, 0 if hidden else task.label) + 1)
            lines = ["\t".join(["x"] * width)] if hidden or task.header else []
            for _ in range(64 if stem == "train" else 24):
                cells, kind = ["n/a"] * width, rng.randrange(2)
                for column in columns:
                    cells[column] = " ".join([WORDS[kind], *rng.choices(WORDS[2:], k=rng.randrange(1, 9))])
                if not hidden:
                    cells[task.label] = task.labels[kind] if task.labels else f"{1 + 3 * kind}.000"
                lines.append("\t".join(cells))
            (glue.task_folder(name, folder) / f"{stem}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def evaluate(checkpoint, data, tmp_path, capsys):
    """evaluate("--tasks", "RTE", out="a") -> (glue.json, what was printed)"""

    def run(*options, out="out", model=checkpoint, data_dir=data):
        given = ["--model", model, "--data-dir", data_dir, "--out", tmp_path / out]
        glue.main([*map(str, given), *QUICK, *map(str, options)])
        return json.loads((tmp_path / out / "glue.json").read_text()), capsys.readouterr().out

    return run


def options(**changes):
    o = glue.Options(**{"seeds": [0], "lr": 1e-3, "batch_size": 8, **changes})
    o.device, o.dtype = torch.device("cpu"), torch.float32
    return o


def without_times(record):
    for arm in record["results"].values():
        for entry in (entry for seeds in arm.values() for entry in seeds.values()):
            assert entry.pop("seconds") >= 0
    return record


# ---- batches ----


def test_an_epoch_visits_every_row_once_in_batches_of_similar_length():
    lengths = np.random.default_rng(0).integers(5, 128, 1003)
    batches = glue.length_batches(lengths, 32, seed=1)
    assert sorted(np.concatenate(batches)) == list(range(1003))
    padding = sum(lengths[batch].max() * len(batch) for batch in batches) / lengths.sum()
    assert padding < 1.05, "random batches of these lengths would be half padding"
    means = [lengths[batch].mean() for batch in batches]
    assert means != sorted(means), "the batches must come in random order, not from short to long"
    again, other = glue.length_batches(lengths, 32, 1), glue.length_batches(lengths, 32, 2)
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))
    assert any(a.tolist() != b.tolist() for a, b in zip(batches, other, strict=True))


def test_a_pair_is_cut_at_its_longer_sentence_and_marked_by_segment(checkpoint):
    tokenizer = bert.load_tokenizer(checkpoint)
    tokenizer.enable_truncation(12)
    ((ids, segments),) = glue.encode(tokenizer, [("good " * 50, "bad barn")])
    good, bad, barn = (tokenizer.token_to_id(word) for word in ("good", "bad", "barn"))
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    assert ids.tolist() == [cls, *[good] * 7, sep, bad, barn, sep], "the second sentence stays whole"
    assert segments.tolist() == [0] * 9 + [1] * 3, "[CLS], the first sentence and its [SEP] are segment 0"


def test_a_prediction_does_not_depend_on_its_batch_or_place(checkpoint):
    rng = random.Random(0)
    texts = [(" ".join(rng.choices(WORDS, k=rng.randrange(1, 20))),) for _ in range(300)]
    rows = glue.encode(bert.load_tokenizer(checkpoint), texts)
    o = options(model=checkpoint)
    model = glue.build_model("STS-B", 0, "pretrained", o).eval()
    together = glue.predict(model, rows, o)
    alone = [glue.predict(model, [row], o)[0] for row in rows[:20]]
    assert together[:20] == pytest.approx(alone, abs=1e-5), "padding must not change a result"
    assert glue.predict(model, rows[::-1], o) == pytest.approx(together[::-1], abs=1e-5)


# ---- weights ----


def test_what_starts_new_and_what_is_kept(checkpoint):
    o = options(model=checkpoint)
    saved = bert.read_weights(checkpoint)
    one, same, seed1, scratch = (
        dict(glue.build_model(task, seed, arm, o).state_dict())
        for task, seed, arm in [("RTE", 0, glue.ARMS[0])] * 2
        + [("RTE", 1, glue.ARMS[0]), ("RTE", 0, glue.ARMS[1])]
    )
    query = "bert.encoder.layer.0.attention.self.query.weight"
    for name in ("classifier.weight", "bert.pooler.dense.weight"):
        assert torch.equal(one[name], same[name]) and not torch.equal(one[name], seed1[name]), name
    assert torch.equal(one[query], saved[query]) and torch.equal(seed1[query], saved[query])
    assert not torch.equal(scratch[query], saved[query])
    other_task = glue.build_model("CoLA", 0, glue.ARMS[1], o).state_dict()
    assert torch.equal(scratch[query], other_task[query]), "one encoder without pretraining a seed"


def test_a_fine_tuned_checkpoint_gets_a_new_classifier_but_keeps_its_pooler(checkpoint, tmp_path):
    tuned = bert.BertForSequenceClassification.from_pretrained(checkpoint)
    tuned.save_pretrained(tmp_path / "tuned", bert.load_tokenizer(checkpoint))
    model = glue.build_model("RTE", 0, "pretrained", options(model=tmp_path / "tuned"))
    assert torch.equal(model.bert.pooler["dense"].weight, tuned.bert.pooler["dense"].weight)
    assert not torch.equal(model.classifier.weight, tuned.classifier.weight)


@pytest.mark.parametrize("freeze", [True, False])
def test_freeze_trains_the_head_alone(checkpoint, freeze):
    o = options(model=checkpoint, freeze=freeze, epochs=1)
    model = glue.build_model("RTE", 0, "pretrained", o)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = glue.encode(bert.load_tokenizer(checkpoint), [("good barn", "bad"), ("cost", "fist")] * 8)
    glue.finetune(model, rows, np.array([0, 1] * 8), (0, "RTE"), o, "RTE")
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    head = {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert head <= changed
    assert (changed == head) == freeze


def test_fine_tuning_learns_a_word(checkpoint):
    """good -> class 0, bad -> class 1: a rule that a working loop finds."""
    rng, o = random.Random(0), options(model=checkpoint, epochs=8, lr=3e-3)
    labels = np.array([rng.randrange(2) for _ in range(256)])
    texts = [(" ".join([*rng.choices(WORDS[2:], k=3), WORDS[y]]),) for y in labels]
    rows = glue.encode(bert.load_tokenizer(checkpoint), texts)
    model = glue.build_model("SST-2", 0, "pretrained", o)
    glue.finetune(model, rows[:192], labels[:192], (0, "SST-2"), o, "SST-2")
    assert glue.accuracy(labels[192:], glue.predict(model, rows[192:], o)) > 0.95
    scores = np.where(labels, 4.0, 1.0).astype(np.float32)
    model = glue.build_model("STS-B", 0, "pretrained", o)
    glue.finetune(model, rows[:192], scores[:192], (0, "STS-B"), o, "STS-B")
    assert glue.pearsonr(scores[192:], glue.predict(model, rows[192:], o)) > 0.95


def test_a_loss_that_is_no_number_stops_with_advice(checkpoint):
    o = options(model=checkpoint, epochs=1)
    model = glue.build_model("RTE", 0, "pretrained", o)
    torch.nn.init.constant_(model.bert.encoder["layer"][0].output.dense.bias, float("nan"))
    rows = glue.encode(bert.load_tokenizer(checkpoint), [("good",), ("bad",)])
    with pytest.raises(ValueError, match="RTE: the loss is nan at step 1; try a lower --lr"):
        glue.finetune(model, rows, np.array([0, 1]), (0, "RTE"), o, "RTE")


# ---- a whole run ----


def test_a_run_scores_every_task_and_writes_a_valid_submission(evaluate, tmp_path):
    record, out = evaluate("--predict", "--from-scratch")
    assert set(record["results"]) == {"pretrained", "from scratch"}
    for arm in record["results"].values():
        assert set(arm) == set(glue.TASKS) - {"AX"}, "AX has no labels here"
    assert "average of 8" in out and "without WNLI and AX" in out
    for name in set(glue.TASKS) - {"AX"}:
        assert f"{name} train: 64 of " in out, "rows that are not official must be said"
    folder = tmp_path / "out" / "submission-seed-0"
    text = {"MNLI-m": glue.THREE_WAY, "MNLI-mm": glue.THREE_WAY, "AX": glue.THREE_WAY}
    text |= {"QNLI": glue.TWO_WAY, "RTE": glue.TWO_WAY}
    names = ("CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI", "AX")
    for name in names:
        with open(folder / f"{name}.tsv", newline="") as file:
            head, *rows = csv.reader(file, delimiter="\t")
        assert head == ["index", "prediction"]
        assert [row[0] for row in rows] == [str(i) for i in range(24)], name
        if name == "STS-B":
            assert all(0 <= float(row[1]) <= 5 for row in rows)
        else:
            assert {row[1] for row in rows} <= set(text.get(name, ("0", "1"))), name
    with zipfile.ZipFile(folder.with_suffix(".zip")) as archive:
        assert sorted(archive.namelist()) == sorted(f"{name}.tsv" for name in names), "all at the zip's top"
    assert "incomplete" not in out


def test_scores_outside_the_scale_are_clipped_in_a_submission(tmp_path):
    glue.write_submission("STS-B", "test", np.array([-1.0, 2.5, 7.0]), tmp_path)
    assert (tmp_path / "STS-B.tsv").read_text() == "index\tprediction\n0\t0.000\n1\t2.500\n2\t5.000\n"


def test_ax_is_scored_where_its_labels_are_there(evaluate, data, tmp_path):
    for path in (data / "MNLI").iterdir():
        (tmp_path / "ax" / "MNLI").mkdir(parents=True, exist_ok=True)
        (tmp_path / "ax" / "MNLI" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "ax" / "diagnostic").mkdir()
    rows = "".join(f"{i}\tgood barn\tcost\t{label}\n" for i, label in enumerate(glue.THREE_WAY * 3))
    (tmp_path / "ax/diagnostic/diagnostic.tsv").write_text("index\tsentence1\tsentence2\tlabel\n" + rows)
    evaluate("--tasks", "MNLI", data_dir=tmp_path / "ax")
    record, _ = evaluate("--tasks", "AX", data_dir=tmp_path / "ax")  # MNLI is finished, AX is not
    assert set(record["results"]["pretrained"]) == {"MNLI", "AX"}, "AX is answered by MNLI's model"
    assert record["results"]["pretrained"]["AX"]["0"]["scores"] == {"matthews_corrcoef": 0.0}


def test_answers_that_are_missing_are_given_by_a_later_start(evaluate, tmp_path):
    evaluate("--tasks", "MNLI", "--predict")
    folder = tmp_path / "out" / "submission-seed-0"
    assert not (folder / "AX.tsv").exists(), "nobody asked for it"
    before = (folder / "MNLI-m.tsv").read_bytes()
    evaluate("--tasks", "MNLI", "AX", "--predict")
    assert (folder / "AX.tsv").is_file(), "MNLI is finished, but AX is not"
    assert (folder / "MNLI-m.tsv").read_bytes() == before


def test_the_majority_floor_is_that_of_the_dev_labels(evaluate, tmp_path):
    (tmp_path / "mrpc" / "MRPC").mkdir(parents=True)
    head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    for stem, labels in {"train": "10", "dev": "1110"}.items():
        text = head + "".join(f"{label}\t1\t2\tgood\tbad\n" for label in labels)
        (tmp_path / "mrpc" / "MRPC" / f"{stem}.tsv").write_text(text)
    record, out = evaluate("--tasks", "MRPC", data_dir=tmp_path / "mrpc")
    assert record["majority"]["MRPC"] == {"accuracy": 0.75, "f1_score": pytest.approx(6 / 7)}
    assert record["results"]["pretrained"]["MRPC"]["0"]["one_answer"], "all rows are the same text here"
    assert "! MRPC, pretrained, seed 0: one answer for every row" in out, "a collapsed run is flagged"
    for line in ("MRPC", "average of 1"):
        assert row(out, line)[2].endswith("!"), "in its row and in the average"


def test_mnli_init_starts_from_the_weights_fine_tuned_on_mnli(evaluate, checkpoint, tmp_path):
    record, out = evaluate("--tasks", "RTE", "SST-2", "--mnli-init")
    assert set(record["results"]["pretrained"]) == {"MNLI", "RTE", "SST-2"}, (
        "MNLI is run because RTE needs it"
    )
    assert "RTE *" in out and "* starts from the weights fine-tuned on MNLI" in out and "SST-2 *" not in out
    o = options(model=checkpoint, mnli_init=True, out=str(tmp_path / "out"))
    tuned = bert.read_weights(glue.mnli_folder(o, "pretrained", 0))
    for task, expected in {"RTE": tuned, "SST-2": bert.read_weights(checkpoint)}.items():
        weights = glue.build_model(task, 0, "pretrained", o).state_dict()
        name = "bert.encoder.layer.0.output.dense.weight"
        assert torch.equal(weights[name], expected[name]), task


def test_max_train_draws_rows_and_marks_the_table(evaluate):
    record, out = evaluate("--tasks", "RTE", "--max-train", 10)
    assert record["results"]["pretrained"]["RTE"]["0"]["train_rows"] == 10
    assert "quick run: at most 10 training rows" in out


def test_max_length_is_cut_to_the_positions_of_the_checkpoint(evaluate):
    record, out = evaluate("--tasks", "RTE", "--max-length", 512)
    assert record["settings"]["max_length"] == 48
    assert "--max-length is cut to the checkpoint's 48 positions" in out


def test_missing_tasks_are_skipped_aloud(evaluate, data, tmp_path):
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "RTE").symlink_to(data / "RTE")
    record, out = evaluate(data_dir=tmp_path / "some")
    assert list(record["results"]["pretrained"]) == ["RTE"]
    assert "QNLI: skipped, it needs a train and a dev file" in out
    assert "average of 1 " in out


# ---- going on, and refusing to ----


def test_nothing_is_computed_twice_and_more_can_be_asked_for(evaluate, monkeypatch):
    calls, finetune = [], glue.finetune
    monkeypatch.setattr(glue, "finetune", lambda *args: calls.append(args[-1]) or finetune(*args))
    evaluate("--tasks", "RTE")
    evaluate("--tasks", "RTE", "WNLI", "--seeds", 0, 1)
    evaluate("--tasks", "RTE", "WNLI", "--seeds", 0, 1)
    assert calls == [
        f"{task}, pretrained, seed {seed}"
        for task, seed in (("RTE", 0), ("RTE", 1), ("WNLI", 0), ("WNLI", 1))
    ]
    evaluate("--tasks", "RTE", "--predict")
    assert calls[4:] == ["RTE, pretrained, seed 0"], "its weights are gone, its test answers were never asked"


def test_a_killed_run_goes_on_to_the_same_glue_json(checkpoint, data, tmp_path):
    def command(out):
        given = [
            "--model",
            checkpoint,
            "--data-dir",
            data,
            "--out",
            tmp_path / out,
            "--tasks",
            "MRPC",
            "RTE",
            "STS-B",
        ]
        return [
            sys.executable,
            PROJECT / "glue_eval.py",
            *map(str, given),
            *QUICK,
            "--seeds",
            "0",
            "1",
            "--mnli-init",
        ]

    subprocess.run(command("whole"), check=True, capture_output=True)
    process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path, end = tmp_path / "killed" / "glue.json", time.time() + 60
    while not (path.is_file() and "RTE" in path.read_text()) and process.poll() is None and time.time() < end:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = json.loads(path.read_text())
    subprocess.run(command("killed"), check=True, capture_output=True)
    whole, killed = (json.loads((tmp_path / out / "glue.json").read_text()) for out in ("whole", "killed"))
    kept = before["results"]["pretrained"]["MNLI"]["0"]
    assert killed["results"]["pretrained"]["MNLI"]["0"] == kept, "what was finished is not computed again"
    assert json.dumps(without_times(killed)) == json.dumps(without_times(whole))


@pytest.mark.parametrize(
    "change, reason", [(["--lr", "0.1"], "lr 0.0001, not 0.1"), (["--freeze"], "lr 0.0001, not 0.001"),
                       (["--max-train", "9"], "max_train 0, not 9")]
)  # fmt: skip
def test_another_setting_is_refused_and_nothing_is_lost(evaluate, tmp_path, change, reason):
    evaluate("--tasks", "RTE")
    before = (tmp_path / "out" / "glue.json").read_bytes()
    with pytest.raises(SystemExit, match=f"was made with {reason}; choose another --out"):
        evaluate("--tasks", "RTE", *change)
    assert (tmp_path / "out" / "glue.json").read_bytes() == before


def test_another_checkpoint_or_other_data_are_refused(evaluate, checkpoint, data, tmp_path):
    evaluate("--tasks", "RTE")
    model = bert.BertForMaskedLM.from_pretrained(checkpoint)
    torch.nn.init.zeros_(model.bert.encoder["layer"][0].output.dense.bias[:1])
    model.bert.embeddings.word_embeddings.weight.data[7] += 1
    model.save_pretrained(tmp_path / "other", bert.load_tokenizer(checkpoint))
    with pytest.raises(SystemExit, match="was made with checkpoint"):
        evaluate("--tasks", "RTE", model=tmp_path / "other")
    (tmp_path / "data" / "RTE").mkdir(parents=True)
    for stem in ("train", "dev"):
        text = (data / "RTE" / f"{stem}.tsv").read_text()
        (tmp_path / "data" / "RTE" / f"{stem}.tsv").write_text(text.replace("good", "bad"))
    with pytest.raises(SystemExit, match="the files of RTE are not those"):
        evaluate("--tasks", "RTE", data_dir=tmp_path / "data")


@pytest.mark.parametrize(
    "argv, reason",
    [
        ([], "nothing to do: give --model FOLDER"),
        (["--model", "no/such/folder"], "no/such/folder/config.json does not exist"),
        (["--model", "x", "--epochs", "0"], "--epochs 0 must be 1 or more"),
        (["--model", "x", "--lr", "nan"], "--lr nan must be 0 or more"),
        (["--model", "x", "--seeds", "1", "1"], "the same seed twice is the same run"),
        (["--compare", "A=x"], "x/glue.json does not exist"),
        (["--compare", "A"], "write NAME=RUN"),
    ],
)
def test_bad_input_is_one_sentence_and_a_failure(argv, reason):
    with pytest.raises(SystemExit) as error:
        glue.main(argv)
    assert reason in str(error.value) and str(error.value).startswith("glue_eval.py: ")
    assert "\n" not in str(error.value)


def test_data_that_are_not_there_are_one_sentence(evaluate, tmp_path):
    with pytest.raises(SystemExit, match="has train and dev files of no task asked for; try --download"):
        evaluate(data_dir=tmp_path / "nowhere")


def test_mnli_init_without_mnli_is_one_sentence(evaluate, data, tmp_path):
    (tmp_path / "some").mkdir()
    for name in ("RTE", "SST-2"):
        (tmp_path / "some" / name).symlink_to(data / name)
    evaluate("--tasks", "SST-2", "--mnli-init", data_dir=tmp_path / "some")  # needs no MNLI, and has results
    with pytest.raises(SystemExit, match="--mnli-init needs MNLI, and .* lacks its train or dev file"):
        evaluate("--tasks", "RTE", "--mnli-init", data_dir=tmp_path / "some")


# ---- comparison ----


@pytest.fixture
def finished(tmp_path):
    """finished("a", {"RTE": [.5, .6]}) -> a folder with the glue.json of such a run."""

    def write(name, tasks, checkpoint=None, files=1, **settings):
        results = {
            task: {str(i): {"scores": {"accuracy": score}} for i, score in enumerate(scores)}
            for task, scores in tasks.items()
        }
        settings = {"lr": 1e-4, "checkpoint": checkpoint or name, **settings}
        record = {
            "settings": settings,
            "data": dict.fromkeys(set(tasks) - {"AX"}, files),  # MNLI's stand for AX
            "results": {"pretrained": results},
        }
        (tmp_path / name).mkdir()
        (tmp_path / name / "glue.json").write_text(json.dumps(record))
        return tmp_path / name

    return write


def row(text, task):
    return next(
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if f"| {task}" in line
    )


def test_runs_are_compared_and_not_their_fine_tuning_seeds(finished):
    """Three seeds that agree within a run are one number: the spread is that between pretraining runs."""
    a = [finished(f"a{i}", {"RTE": [x - 0.1, x, x + 0.1]}) for i, x in enumerate((0.50, 0.60))]
    b = [finished(f"b{i}", {"RTE": [x - 0.1, x, x + 0.1]}) for i, x in enumerate((0.54, 0.64))]
    text = glue.compare([f"A={a[0]},{a[1]}", f"B={b[0]},{b[1]}"])
    t, nu, p = glue.welch([0.5, 0.6], [0.54, 0.64])
    assert row(text, "RTE") == ["RTE", "55.0 (7.1)", "59.0 (7.1)", "+4.0", f"{p:.3f}", "no difference found"]
    assert "over pretraining runs" in text


def test_a_clear_difference_is_found_and_its_winner_named(finished):
    a = [finished(f"a{i}", {"RTE": [x], "QNLI": [x]}) for i, x in enumerate((0.50, 0.51, 0.52))]
    b = [finished(f"b{i}", {"RTE": [x], "QNLI": [1.1 - x]}) for i, x in enumerate((0.80, 0.81, 0.82))]
    text = glue.compare([f"A={','.join(map(str, a))}", f"B={','.join(map(str, b))}"])
    assert row(text, "RTE")[3:] == ["+30.0", "0.000", "B is higher"]
    assert row(text, "QNLI")[5] == "A is higher"
    assert row(text, "average of 2")
    assert "3 tests at 5%: about 0.15 of them would find a difference by luck" in text


def test_one_run_an_arm_only_knows_the_noise_of_fine_tuning(finished):
    a, b = (finished(name, {"RTE": x, "AX": x}) for name, x in {"a": [0.5, 0.51], "b": [0.6, 0.61]}.items())
    text = glue.compare([f"A={a}", f"B={b}"])
    assert row(text, "RTE")[5] == row(text, "AX")[5] == "B is higher"
    assert "average of" not in text, "AX is not in GLUE's average"
    assert "only the noise of fine-tuning is known" in text


def test_without_a_spread_there_is_no_verdict(finished):
    """The majority class three times: .684 (.0) against .700 (.0) would have p = 0."""
    a, b = finished("a", {"MRPC": [0.684] * 3}), finished("b", {"MRPC": [0.7] * 3})
    assert row(glue.compare([f"A={a}", f"B={b}"]), "MRPC")[4:] == ["", "no test: the spread is not known"]


def test_unequal_conditions_are_said(finished):
    a = finished("a", {"RTE": [0.5, 0.6], "SST-2": [0.8, 0.9]})
    b = finished("b", {"RTE": [0.5, 0.6]}, lr=1.0, files=2)
    text = glue.compare([f"A={a}", f"B={b}"])
    assert "unequal conditions: lr differs" in text
    assert "unequal conditions: the files of RTE differ" in text
    assert "SST-2: not in every run, left out" in text


def test_one_checkpoint_is_not_two_pretraining_runs(finished):
    a, b = finished("a", {"RTE": [0.5]}), finished("b", {"RTE": [0.6]}, checkpoint="a")
    with pytest.raises(ValueError, match="the same checkpoint twice"):
        glue.compare([f"A={a},{b}", f"B={a}"])


# ---- transformers ----


def test_logits_are_those_of_transformers(tmp_path, data):
    transformers = pytest.importorskip("transformers")
    folder = Path(os.environ.get("GLUE_DIR", data))
    texts = {name: glue.load_task(name, folder)[0] for name in glue.TASKS}
    pieces = sorted(
        {piece for line in Path(glue.__file__).read_text() for piece in line.lower() if piece.strip()}
    )
    vocab = [*bert.SPECIAL_TOKENS, *WORDS, *pieces, *(f"##{piece}" for piece in pieces)]
    (tmp_path / "vocab.txt").write_text("\n".join(dict.fromkeys(vocab)) + "\n")
    theirs_tokenizer = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"), do_lower_case=True)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"vocab_size": len(theirs_tokenizer), "max_position_embeddings": 64, "num_labels": 3}
    config = transformers.BertConfig(**sizes, initializer_range=0.3)
    theirs = transformers.BertForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    theirs_tokenizer.save_pretrained(tmp_path / "theirs")
    ours = bert.BertForSequenceClassification.from_pretrained(tmp_path / "theirs")
    assert not ours.newly_initialised
    tokenizer = bert.load_tokenizer(tmp_path / "theirs")
    tokenizer.enable_truncation(64)
    o = options()
    for name, splits in texts.items():
        rows = next(split for stem, split in splits.items() if stem.startswith(("dev", "diag"))).texts[:200]
        columns = [list(column) for column in zip(*rows, strict=True)]
        inputs = theirs_tokenizer(*columns, padding=True, truncation=True, max_length=64, return_tensors="pt")
        with torch.inference_mode():
            expected = theirs(**inputs).logits
            got = glue.forward(ours, glue.encode(tokenizer, rows), range(len(rows)), o)
        torch.testing.assert_close(
            got, expected, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_a_masked_lm_of_transformers_can_be_fine_tuned_and_read_back(tmp_path, checkpoint):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=len(WORDS) + 5, **sizes)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "theirs")
    model = glue.build_model("MNLI", 0, "pretrained", options(model=tmp_path / "theirs")).eval()
    model.save_pretrained(tmp_path / "ours")
    theirs = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
    ids = torch.randint(5, len(WORDS) + 5, (4, 9))
    with torch.inference_mode():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-5, rtol=1e-4)
