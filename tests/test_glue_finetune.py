"""glue_eval.py's fine-tuning, its table, continued runs and submissions, on a made-up GLUE."""

import csv
import json
import os
import random
import shutil
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sync import NoSync
from test_glue_files import columns, official_line

import glue_eval as glue
import model as bert
from train import make_optimizer

WORDS = ["good", "bad", *(a + b for a in ("ba", "co", "du", "fi") for b in ("rn", "st", "lt", "nd"))]
QUICK = "--epochs 1 --seeds 0 --device cpu --dtype float32 --batch-size 8 --max-length 32".split()
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
VOCAB = len(WORDS) + 5


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A masked-LM checkpoint of one layer that knows WORDS."""
    folder = tmp_path_factory.mktemp("checkpoint")
    vocab = folder / "words.txt"
    vocab.write_text("\n".join([*bert.SPECIAL_TOKENS, *WORDS]))
    torch.manual_seed(0)
    model = bert.BertForMaskedLM(bert.BertConfig(VOCAB, max_position_embeddings=48, **SIZES))
    model.save_pretrained(folder, bert.load_tokenizer(vocab))
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Every task in the official layout; the label depends on whether the first sentence says good or bad."""
    folder = tmp_path_factory.mktemp("glue")
    rng = random.Random(0)
    for name, task in glue.TASKS.items():
        for stem in task.files:
            unlabelled = stem.startswith(glue.UNLABELLED)
            head = columns(name, unlabelled)
            lines = ["\t".join(head)] if head else []
            for _ in range(64 if stem == "train" else 24):
                y = rng.randrange(2)
                texts = [
                    " ".join([WORDS[y], *rng.choices(WORDS[2:], k=rng.randrange(1, 9))]) for _ in task.text
                ]
                label = task.labels[y] if task.labels else f"{1 + 3 * y}.000"
                lines.append(official_line(name, texts, None if unlabelled else label))
            path = folder / glue.FOLDERS.get(name, name) / f"{stem}.tsv"
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join(lines) + "\n")
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
    o = glue.make_parser().parse_args(["--batch-size", "8", "--lr", "1e-3", "--epochs", "1"])
    vars(o).update({"device": torch.device("cpu"), "dtype": torch.float32, **changes})
    return o


def build(checkpoint, task="RTE", seed=0, arm="pretrained", **changes):
    """(model, options)"""
    o = options(model=checkpoint, **changes)
    return glue.build_model(task, seed, arm, o, VOCAB), o


def some_rows(checkpoint, count):
    """Encoded rows with one of good and bad in each, and which it is."""
    rng = random.Random(0)
    labels = np.array([rng.randrange(2) for _ in range(count)])
    texts = [(" ".join([*rng.choices(WORDS[2:], k=rng.randrange(1, 6)), WORDS[y]]),) for y in labels]
    return glue.encode(bert.load_tokenizer(checkpoint), texts), labels


def table_row(text, task):
    line = next(line for line in text.splitlines() if line.startswith(f"| {task}"))
    return [cell.strip() for cell in line.split("|")[1:-1]]


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


def test_words_that_a_checkpoint_added_stay_whole_and_special_tokens_in_a_text_are_text(
    evaluate, checkpoint, monkeypatch, tmp_path
):
    """[URL] is one token there, special or not; "[SEP]" written in a sentence ends no segment."""
    transformers = pytest.importorskip("transformers")
    shutil.copytree(checkpoint, tmp_path / "model")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    theirs.add_special_tokens({"additional_special_tokens": ["[URL]"]})
    theirs.add_tokens(["<num>"])
    model = bert.BertForMaskedLM.from_pretrained(checkpoint)
    config = replace(model.config, vocab_size=len(theirs))
    bert.BertForMaskedLM(config).save_pretrained(tmp_path / "model")
    theirs.save_pretrained(tmp_path / "model")

    sentences = ["good [URL] barn <num>", "bad [URL] cost", "good [SEP] barn", "bad [MASK]"]
    folder = tmp_path / "data" / "SST-2"
    folder.mkdir(parents=True)
    for stem in ("train", "dev"):
        rows = "".join(f"{sentence}\t{i % 2}\n" for i, sentence in enumerate(sentences))
        (folder / f"{stem}.tsv").write_text("sentence\tlabel\n" + rows)
    seen = []
    encode = glue.encode
    monkeypatch.setattr(glue, "encode", lambda *given: seen.append(encode(*given)) or seen[-1])
    evaluate("--tasks", "SST-2", model=tmp_path / "model", data_dir=tmp_path / "data")
    ids = [row[0].tolist() for row in seen[0]]
    assert ids[:2] == theirs(sentences[:2])["input_ids"]
    sep, mask = theirs.convert_tokens_to_ids(["[SEP]", "[MASK]"])
    assert [row.count(sep) for row in ids] == [1] * 4 and not any(mask in row for row in ids)


def test_a_prediction_does_not_depend_on_its_batch_or_place(checkpoint):
    rows, _ = some_rows(checkpoint, 300)
    model, o = build(checkpoint, "STS-B")
    model.eval()
    together = glue.predict(model, rows, o)
    alone = [glue.predict(model, [row], o)[0] for row in rows[:20]]
    assert together[:20] == pytest.approx(alone, abs=1e-5), "padding must not change a result"
    assert glue.predict(model, rows[::-1], o) == pytest.approx(together[::-1], abs=1e-5)


def test_a_model_of_a_single_segment_reads_pairs_too(checkpoint):
    rows = glue.encode(bert.load_tokenizer(checkpoint), [("good barn", "bad"), ("bad", "good dust")])
    config = bert.BertConfig(VOCAB, max_position_embeddings=48, type_vocab_size=1, **SIZES)
    model = bert.BertForSequenceClassification(config).eval()
    without = [np.array((ids, np.zeros_like(ids))) for ids, _ in rows]
    assert torch.equal(glue.forward(model, rows, options()), glue.forward(model, without, options()))


# ---- weights ----


def test_what_starts_new_and_what_is_kept(checkpoint):
    saved = bert.read_weights(checkpoint)
    one, same, seed1, scratch, other_task = (
        build(checkpoint, task, seed, arm)[0].state_dict()
        for task, seed, arm in [
            ("RTE", 0, "pretrained"),
            ("RTE", 0, "pretrained"),
            ("RTE", 1, "pretrained"),
            ("RTE", 0, "from scratch"),
            ("CoLA", 0, "from scratch"),
        ]
    )
    query = "bert.encoder.layer.0.attention.self.query.weight"
    for name in ("classifier.weight", "bert.pooler.dense.weight"):
        assert torch.equal(one[name], same[name]) and not torch.equal(one[name], seed1[name]), name
    assert torch.equal(one[query], saved[query]) and torch.equal(seed1[query], saved[query])
    assert not torch.equal(scratch[query], saved[query])
    assert torch.equal(scratch[query], other_task[query]), "one encoder without pretraining a seed"


def test_a_fine_tuned_checkpoint_gets_a_new_classifier_but_keeps_its_pooler(checkpoint, tmp_path):
    tuned = bert.BertForSequenceClassification.from_pretrained(checkpoint)
    tuned.save_pretrained(tmp_path / "tuned", bert.load_tokenizer(checkpoint))
    model, _ = build(tmp_path / "tuned")
    assert torch.equal(model.bert.pooler["dense"].weight, tuned.bert.pooler["dense"].weight)
    assert not torch.equal(model.classifier.weight, tuned.classifier.weight)


@pytest.mark.parametrize("freeze", [True, False])
def test_freeze_trains_the_head_alone(checkpoint, freeze):
    model, o = build(checkpoint, freeze=freeze)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows, labels = some_rows(checkpoint, 16)
    glue.finetune(model, rows, labels, (0, "RTE"), o, "RTE")
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    head = {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert head <= changed
    assert (changed == head) == freeze


# ---- steps ----


def test_fine_tuning_learns_a_word(checkpoint):
    """good -> class 0, bad -> class 1: a rule that a working loop finds."""
    rows, labels = some_rows(checkpoint, 256)
    model, o = build(checkpoint, "SST-2", epochs=8, lr=3e-3)
    glue.finetune(model, rows[:192], labels[:192], (0, "SST-2"), o, "SST-2")
    assert glue.accuracy(labels[192:], glue.predict(model, rows[192:], o)) > 0.95
    scores = np.where(labels, 4.0, 1.0).astype(np.float32)
    model, o = build(checkpoint, "STS-B", epochs=8, lr=3e-3)
    glue.finetune(model, rows[:192], scores[:192], (0, "STS-B"), o, "STS-B")
    assert glue.pearsonr(scores[192:], glue.predict(model, rows[192:], o)) > 0.95


def one_step(model, o, rows, labels, scale=2.0**16):
    """A step of fine-tuning, ready to be taken: (function, scaler)"""
    optimizer = make_optimizer(model.train(), o.lr)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=o.dtype == torch.float16)
    return lambda: glue.update(model, optimizer, scaler, rows, labels, o), scaler


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("task", ["RTE", "STS-B"])
def test_a_step_never_waits_for_the_device(checkpoint, task, dtype):
    rows, labels = some_rows(checkpoint, 8)
    labels = labels.astype(np.float32) if task == "STS-B" else labels
    model, o = build(checkpoint, task, dtype=dtype)
    step, _ = one_step(model, o, rows, labels)
    with NoSync():
        step()
        loss = step()
    assert torch.isfinite(loss)


def test_rows_and_labels_are_sent_without_waiting(checkpoint, monkeypatch):
    """On a device that computes nothing: what goes there from the CPU is sent in the background."""
    rows, labels = some_rows(checkpoint, 8)
    model, o = build(checkpoint)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # does not know this device
    o.device = torch.device("meta")
    model = model.to(o.device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with NoSync():
        loss = glue.update(model, optimizer, scaler, rows, labels, o)
    assert loss.device.type == "meta"


def test_float16_has_the_losses_and_gradients_of_float32(checkpoint, monkeypatch):
    rows, labels = some_rows(checkpoint, 8)
    seen, norms = {}, {torch.float32: [], torch.float16: []}
    clip = torch.nn.utils.clip_grad_norm_
    for dtype in (torch.float32, torch.float16):
        keep = norms[dtype].append
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *a, keep=keep: keep(clip(*a)))
        model, o = build(checkpoint, dtype=dtype)
        step, _ = one_step(model, o, rows, labels)
        torch.manual_seed(0)
        seen[dtype] = torch.tensor([step() for _ in range(8)])
    losses = seen[torch.float32]
    assert losses[-1] < losses[0] - 0.05, "it learns, or nothing is compared"
    torch.testing.assert_close(seen[torch.float16], losses, atol=0.01, rtol=0)
    gradients = [torch.stack(norms[dtype]) for dtype in (torch.float16, torch.float32)]
    torch.testing.assert_close(*gradients, atol=0, rtol=0.05)  # of the loss unscaled


def test_an_overflow_in_float16_skips_the_step_and_halves_the_scale(checkpoint):
    rows, labels = some_rows(checkpoint, 8)
    model, o = build(checkpoint, dtype=torch.float16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step, scaler = one_step(model, o, rows, labels, scale=2.0**30)
    step()
    assert scaler.get_scale() == 2.0**29
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    while scaler.get_scale() > 2.0**10:
        scaler.update(scaler.get_scale() / 2)
    step()
    assert not torch.equal(model.classifier.weight, before["classifier.weight"]), "training continues"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_divergence_stops_with_advice(checkpoint, dtype):
    rows, labels = some_rows(checkpoint, 20)
    model, o = build(checkpoint, dtype=dtype, batch_size=1)
    torch.nn.init.constant_(model.bert.encoder["layer"][0].output.dense.bias, float("nan"))
    with pytest.raises(ValueError, match="RTE: diverged at step 20; try a lower --lr"):
        glue.finetune(model, rows, labels, (0, "RTE"), o, "RTE")
    with pytest.raises(ValueError, match="answers NaN"):
        glue.predict(model, rows, o)


def test_overflows_that_never_end_are_a_divergence(checkpoint, monkeypatch):
    """float16 skips a step that overflows and halves the scale: from 2^16, 17 in a row leave less than 1."""
    rows, labels = some_rows(checkpoint, 17)

    def overflowing(model, optimizer, scaler, rows, labels, o):
        scaler.scale(torch.ones(1))
        scaler.update(scaler.get_scale() / 2)
        return torch.tensor(0.7)

    monkeypatch.setattr(glue, "update", overflowing)
    model, o = build(checkpoint, dtype=torch.float16, batch_size=1)
    glue.finetune(model, rows[:16], labels[:16], (0, "RTE"), o, "RTE")
    with pytest.raises(ValueError, match="RTE: diverged at step 17; try a lower --lr or --dtype float32"):
        glue.finetune(model, rows, labels, (0, "RTE"), o, "RTE")


# ---- a whole run ----


def test_a_run_scores_every_task_and_writes_a_valid_submission(evaluate, tmp_path):
    record, out = evaluate("--predict", "--from-scratch")
    assert set(record["results"]) == {"pretrained", "from scratch"}
    for arm in record["results"].values():
        assert set(arm) == set(glue.TASKS) - {"AX"}, "AX has no labels"
    assert "average of 8" in out and "without WNLI and AX" in out
    for name in set(glue.TASKS) - {"AX"}:
        assert f"- {name} train: 64 of " in out, "rows that are not official must be said below the table"
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
    assert "it lacks nothing" in out


def test_scores_outside_the_scale_are_clipped_in_a_submission(tmp_path):
    glue.write_submission(tmp_path / "STS-B.tsv", (), np.array([-1.0, 2.5, 7.0]))
    assert (tmp_path / "STS-B.tsv").read_text() == "index\tprediction\n0\t0.000\n1\t2.500\n2\t5.000\n"


def test_answers_that_are_missing_are_given_by_a_later_start(evaluate, tmp_path):
    _, out = evaluate("--tasks", "MNLI", "--predict")
    folder = tmp_path / "out" / "submission-seed-0"
    assert not (folder / "AX.tsv").exists(), "nobody asked for it"
    assert "it lacks CoLA, SST-2, MRPC, STS-B, QQP, QNLI, RTE, WNLI, AX\n" in out
    before = (folder / "MNLI-m.tsv").read_bytes()
    evaluate("--tasks", "MNLI", "AX", "--predict")
    assert (folder / "AX.tsv").is_file(), "MNLI is finished, but AX is not"
    assert (folder / "MNLI-m.tsv").read_bytes() == before


def answers_to(folder):
    """Of each file of answers: how many there are."""
    return {path.name: len(path.read_text().splitlines()) - 1 for path in folder.glob("*.tsv")}


def cut(path, rows: int):
    """Keep the names of the columns and so many rows of a file."""
    path.write_text("".join(path.read_text().splitlines(True)[: 1 + rows]))


def test_answers_belong_to_the_test_file_that_they_answer(evaluate, data, tmp_path):
    shutil.copytree(data, tmp_path / "mine")
    command = {"data_dir": tmp_path / "mine"}
    folder = tmp_path / "out/submission-seed-0"
    evaluate("--tasks", "RTE", "MNLI", "AX", "--predict", **command)
    assert answers_to(folder) == dict.fromkeys(("RTE.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"), 24)

    # other files under the same names, of another length or of as many other rows
    cut(tmp_path / "mine/RTE/test.tsv", 9)
    cut(tmp_path / "mine/diagnostic/diagnostic.tsv", 5)
    shutil.copy(tmp_path / "mine/MNLI/test_mismatched.tsv", tmp_path / "mine/MNLI/test_matched.tsv")
    evaluate("--tasks", "RTE", "MNLI", "AX", "--predict", **command)
    assert answers_to(folder) == {"RTE.tsv": 9, "AX.tsv": 5, "MNLI-m.tsv": 24, "MNLI-mm.tsv": 24}
    assert (folder / "MNLI-m.tsv").read_bytes() == (folder / "MNLI-mm.tsv").read_bytes()


def test_answers_that_somebody_removed_are_given_again(evaluate, tmp_path):
    evaluate("--tasks", "RTE", "--predict")
    file = tmp_path / "out/submission-seed-0/RTE.tsv"
    before = file.read_bytes()
    file.unlink()
    evaluate("--tasks", "RTE", "--predict")
    assert file.read_bytes() == before


def test_the_zip_holds_answers_of_this_program_to_glue_alone(evaluate, data, monkeypatch, tmp_path):
    monkeypatch.setitem(glue.TASKS, "Mine", glue.Task("", glue.ACC, glue.BINARY, ("sentence",)))
    shutil.copytree(data / "SST-2", tmp_path / "mine/Mine")
    shutil.copytree(data / "RTE", tmp_path / "mine/RTE")
    _, out = evaluate("--tasks", "Mine", "--predict", data_dir=tmp_path / "mine")
    assert "not comparable" not in out and "lacks" not in out, "it is no task of GLUE"
    assert not list((tmp_path / "out").glob("*.zip")), "and there is nothing to hand in"
    folder = tmp_path / "out/submission-seed-0"
    assert answers_to(folder) == {"Mine.tsv": 24}
    (folder / "CoLA.tsv").write_text("index\tprediction\n0\t1\n")  # from somewhere else
    evaluate("--tasks", "Mine", "RTE", "--predict", data_dir=tmp_path / "mine")
    with zipfile.ZipFile(folder.with_suffix(".zip")) as archive:
        assert archive.namelist() == ["RTE.tsv"]
    (folder / "RTE.tsv").unlink()
    folder.with_suffix(".zip").unlink()
    evaluate("--tasks", "Mine", "--predict", data_dir=tmp_path / "mine")
    assert not list((tmp_path / "out").glob("*.zip")), "RTE's answers are gone"


def test_a_task_without_a_file_to_answer_makes_no_zip(evaluate, data, tmp_path):
    shutil.copytree(data / "RTE", tmp_path / "mine/RTE")
    (tmp_path / "mine/RTE/test.tsv").unlink()
    _, out = evaluate("--tasks", "RTE", "--predict", data_dir=tmp_path / "mine")
    assert not list((tmp_path / "out").glob("*.zip"))
    assert "RTE test: no " in out


def test_the_majority_floor_is_that_of_the_dev_labels(evaluate, tmp_path):
    (tmp_path / "mrpc" / "MRPC").mkdir(parents=True)
    head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    for stem, labels in {"train": "10", "dev": "1110"}.items():
        text = head + "".join(f"{label}\t1\t2\tgood\tbad\n" for label in labels)
        (tmp_path / "mrpc" / "MRPC" / f"{stem}.tsv").write_text(text)
    record, out = evaluate("--tasks", "MRPC", data_dir=tmp_path / "mrpc")
    assert record["majority"]["MRPC"] == {"accuracy": 0.75, "f1_score": pytest.approx(6 / 7)}
    assert record["results"]["pretrained"]["MRPC"]["0"]["one_answer"], "all rows are the same text here"
    run = next(line for line in out.splitlines() if line.startswith("MRPC, pretrained, seed 0: accuracy"))
    assert run.endswith(" s) !"), "a collapsed run is flagged"
    assert "- !: a run gave one answer for every row" in out, "and the sign explained below the table"
    assert table_row(out, "MRPC")[2].endswith("!"), "in its row"


def test_a_task_with_fewer_seeds_than_the_caption_says_so(evaluate):
    evaluate("--tasks", "RTE", "--seeds", 0, 1)
    record, out = evaluate("--tasks", "MRPC", "--seeds", 0)
    assert "over seeds 0 1, last epoch" in out
    assert "- MRPC, pretrained: only seeds 0" in out and "RTE, pretrained: only" not in out
    scores = {
        task: list(runs["0"]["scores"].values()) for task, runs in record["results"]["pretrained"].items()
    }
    average = 100 * np.mean([np.mean(scores["RTE"]), np.mean(scores["MRPC"])])
    row = next(line for line in out.splitlines() if "average of 2" in line)
    assert f"{average:.1f}" in row, "of seed 0, which both tasks have"


def test_max_train_draws_rows_and_is_in_the_caption(evaluate):
    record, out = evaluate("--tasks", "RTE", "--max-train", 10)
    assert record["results"]["pretrained"]["RTE"]["0"]["train_rows"] == 10
    assert "RTE: 10 training rows" in out and "max_train 10" in out


def test_rows_are_cut_to_the_positions_of_the_checkpoint(evaluate):
    record, out = evaluate("--tasks", "RTE", "--max-length", 512)
    assert record["settings"]["max_length"] == 48
    assert "max_length 48" in out


@pytest.mark.parametrize("known, said", [(16, True), (32, False), (48, False), (None, False)])
def test_places_that_were_never_trained_are_told(evaluate, checkpoint, tmp_path, known, said):
    shutil.copytree(checkpoint, tmp_path / "model")
    config = json.loads((checkpoint / "config.json").read_text())
    config.pop("trained_length", None)
    config |= {"trained_length": known} if known else {}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    _, out = evaluate("--tasks", "RTE", model=tmp_path / "model")  # --max-length 32
    assert ("was trained on rows of 16 tokens" in out) == said
    assert ("--max-length 16 cuts there" in out) == said


def test_rows_that_are_cut_are_counted(evaluate, data):
    """A pair takes its words, [CLS] and two [SEP]."""
    lines = (data / "RTE/train.tsv").read_text().splitlines()[1:]
    lengths = [3 + sum(len(text.split()) for text in line.split("\t")[1:3]) for line in lines]
    share = np.mean(np.array(lengths) > 14)
    assert 0.1 < share < 0.9
    _, out = evaluate("--tasks", "RTE", "--max-length", 14)
    assert f"{share:.1%} cut at 14 tokens" in out


def test_missing_tasks_are_skipped_aloud(evaluate, data, tmp_path):
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "RTE").symlink_to(data / "RTE")
    record, out = evaluate(data_dir=tmp_path / "some")
    assert list(record["results"]["pretrained"]) == ["RTE"]
    skipped = [name for name in glue.TASKS if name not in ("RTE", "AX")]
    assert out.count(f"TASK: {', '.join(skipped)}\n") == 1, "in one line"
    assert "average of 1 " in out


# ---- continuing, and refusing to ----


def test_two_models_never_share_a_file(checkpoint, data, tmp_path):
    model = bert.BertForMaskedLM.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path / "model", bert.load_tokenizer(checkpoint))
    argv = ["--model", tmp_path / "model", "--data-dir", data, "--tasks", "RTE", *QUICK]
    glue.main(list(map(str, argv)))
    assert "RTE" in json.loads((tmp_path / "model/glue/glue.json").read_text())["results"]["pretrained"]


def test_nothing_is_computed_twice_and_more_can_be_asked_for(evaluate, monkeypatch):
    calls = []
    finetune = glue.finetune
    monkeypatch.setattr(glue, "finetune", lambda *args: calls.append(args[-1]) or finetune(*args))
    evaluate("--tasks", "RTE")
    evaluate("--tasks", "RTE", "WNLI", "--seeds", 0, 1)
    evaluate("--tasks", "RTE", "WNLI", "--seeds", 0, 1)
    runs = [("RTE", 0), ("RTE", 1), ("WNLI", 0), ("WNLI", 1)]
    assert calls == [f"{task}, pretrained, seed {seed}" for task, seed in runs]
    evaluate("--tasks", "RTE", "--predict")
    assert calls[4:] == ["RTE, pretrained, seed 0"], "its weights are gone, its test answers were never asked"


@pytest.mark.parametrize("stage", ["finetune", "predict", "write_submission", "score"])
def test_an_interrupted_run_continues_to_the_same_results(evaluate, monkeypatch, stage):
    """Ctrl-C in the second run, at any stage of it: the same command ends where an unbroken run ends."""
    command = ["--tasks", "RTE", "STS-B", "--seeds", 0, 1, "--predict"]
    original = getattr(glue, stage)
    calls = []

    def interrupted(*args):
        calls.append(stage)
        if len(calls) == {"predict": 4, "score": 3}.get(stage, 2):  # two files; one floor and one run
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(glue, stage, interrupted)
    with pytest.raises(SystemExit, match="the same command continues after the last finished run"):
        evaluate(*command, out="broken")
    monkeypatch.setattr(glue, stage, original)

    (whole, _), (continued, _) = evaluate(*command, out="whole"), evaluate(*command, out="broken")
    for record in (whole, continued):
        for seeds in record["results"]["pretrained"].values():
            assert all(run.pop("seconds") >= 0 for run in seeds.values())
    assert continued == whole


@pytest.mark.parametrize(
    "change, reason",
    [
        (["--lr", "0.1"], "lr 0.0001, not 0.1"),
        (["--freeze"], "lr 0.0001, not 0.001"),
        (["--max-train", "9"], "max_train 0, not 9"),
    ],
)
def test_another_setting_is_refused_and_nothing_is_lost(evaluate, tmp_path, change, reason):
    evaluate("--tasks", "RTE")
    before = (tmp_path / "out" / "glue.json").read_bytes()
    with pytest.raises(SystemExit, match=f"was made with {reason}; choose another --out"):
        evaluate("--tasks", "RTE", *change)
    assert (tmp_path / "out" / "glue.json").read_bytes() == before


def test_a_retrained_checkpoint_or_other_data_are_refused(evaluate, checkpoint, data, tmp_path):
    evaluate("--tasks", "RTE")
    model = bert.BertForMaskedLM.from_pretrained(checkpoint)
    model.bert.embeddings.word_embeddings.weight.data[7] += 1
    model.save_pretrained(tmp_path / "other", bert.load_tokenizer(checkpoint))
    with pytest.raises(SystemExit, match="was made with checkpoint"):
        evaluate("--tasks", "RTE", model=tmp_path / "other")
    (tmp_path / "data" / "RTE").mkdir(parents=True)
    for stem in ("train", "dev"):
        text = (data / "RTE" / f"{stem}.tsv").read_text()
        (tmp_path / "data" / "RTE" / f"{stem}.tsv").write_text(text.replace("good", "bad"))
    with pytest.raises(SystemExit, match="the rows of RTE are not those"):
        evaluate("--tasks", "RTE", data_dir=tmp_path / "data")


def test_a_task_that_is_read_otherwise_is_another(evaluate, monkeypatch):
    evaluate("--tasks", "RTE")
    monkeypatch.setitem(glue.TASKS, "RTE", replace(glue.TASKS["RTE"], labels=glue.TWO_WAY[::-1]))
    with pytest.raises(SystemExit, match="the rows of RTE are not those"):
        evaluate("--tasks", "RTE")


def test_a_task_that_is_scored_otherwise_is_refused_with_its_name(evaluate, monkeypatch):
    evaluate("--tasks", "RTE")
    for metrics in (glue.ACC_F1, (glue.matthews_corrcoef,)):
        monkeypatch.setitem(glue.TASKS, "RTE", replace(glue.TASKS["RTE"], metrics=metrics))
        with pytest.raises(SystemExit, match="the metrics of RTE are not those .* choose another --out"):
            evaluate("--tasks", "RTE")
        evaluate("--tasks", "RTE", out=f"out-{len(metrics)}")


def test_another_tokenizer_is_another_checkpoint(evaluate, checkpoint, tmp_path):
    """Added words may lie in files of their own, which transformers 4 wrote."""
    shutil.copytree(checkpoint, tmp_path / "model")
    evaluate("--tasks", "RTE", model=tmp_path / "model")
    (tmp_path / "model/added_tokens.json").write_text("{}")
    with pytest.raises(SystemExit, match="was made with checkpoint"):
        evaluate("--tasks", "RTE", model=tmp_path / "model")


def test_a_refusal_leaves_no_empty_folder(evaluate, tmp_path):
    with pytest.raises(SystemExit, match="no task asked for"):
        evaluate("--predict", data_dir=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "argv, reason",
    [
        (["--model", "x", "--lr", "inf"], "--lr and others at 0"),
        (["--model", "x", "--lr", "-1"], "--lr and others at 0"),
        ([], "nothing to do: give --model FOLDER"),
        (["--model", "no/such/folder"], "no/such/folder: no such file or folder"),
        (["--model", "bert-base-uncased"], "hub is fetched first: hf download NAME --local-dir FOLDER"),
        (["--model", "x", "--epochs", "0"], "--epochs and --batch-size start at 1"),
        (["--model", "x", "--lr", "nan"], "--lr and others at 0"),
        (["--model", "x", "--device", "cuda:99"], "--device cuda:99 cannot be used"),
    ],
)
def test_bad_input_is_one_sentence_and_a_failure(argv, reason):
    with pytest.raises(SystemExit) as error:
        glue.main(argv)
    assert reason in str(error.value) and str(error.value).startswith("glue_eval.py: ")
    assert "\n" not in str(error.value) and "Errno" not in str(error.value)


@pytest.mark.parametrize(
    "argv, reason",
    [
        (["--max-lenght", "64"], "did you mean --max-length?"),
        (["--tasks", "rtee"], "'rtee' is none of CoLA, SST-2"),
        (["--seeds", "0,1"], "argument --seeds: invalid int value: '0,1'"),
    ],
)
def test_a_mistyped_option_is_two_lines(argv, reason, capsys):
    with pytest.raises(SystemExit):
        glue.main(["--model", "x", *argv])
    text = capsys.readouterr().err
    assert reason in text and len(text.splitlines()) == 2


def test_a_place_that_cannot_be_written_is_one_sentence(evaluate, tmp_path):
    (tmp_path / "out").write_text("a file, no folder")
    with pytest.raises(SystemExit) as error:
        evaluate("--tasks", "RTE")
    assert str(tmp_path / "out") in str(error.value) and "Errno" not in str(error.value)


@pytest.mark.parametrize("options", [["AX", "--predict"], ["RTE", "AX", "--predict"], ["MNLI", "AX"]])
def test_the_diagnostic_set_that_nothing_answers_is_refused(evaluate, options):
    with pytest.raises(SystemExit, match="AX is answered by the model of MNLI: --tasks MNLI AX --predict"):
        evaluate("--tasks", *options)


def test_data_that_are_not_there_are_one_sentence(evaluate, tmp_path):
    with pytest.raises(SystemExit, match="no task asked for has its train.tsv and dev.tsv in .*--download"):
        evaluate(data_dir=tmp_path / "nowhere")


def test_a_model_that_is_no_bert_is_named_before_its_tokenizer_is_blamed(evaluate, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "roberta", "vocab_size": 50265}')
    with pytest.raises(SystemExit, match="config.json: .*roberta"):
        evaluate(model=tmp_path)


# ---- transformers ----


def test_logits_are_those_of_transformers(tmp_path, data):
    transformers = pytest.importorskip("transformers")
    folder = Path(os.environ.get("GLUE_DIR", data))
    texts = {name: glue.load_task(name, folder)[0] for name in glue.TASKS}
    characters = sorted({c for c in Path(glue.__file__).read_text().lower() if c.strip()})
    vocab = [*bert.SPECIAL_TOKENS, *WORDS, *characters, *(f"##{c}" for c in characters)]
    (tmp_path / "vocab.txt").write_text("\n".join(dict.fromkeys(vocab)) + "\n")
    theirs_tokenizer = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"), do_lower_case=True)
    torch.manual_seed(0)
    sizes = {**SIZES, "vocab_size": len(theirs_tokenizer), "max_position_embeddings": 64, "num_labels": 3}
    config = transformers.BertConfig(**sizes, initializer_range=0.3)
    theirs = transformers.BertForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    theirs_tokenizer.save_pretrained(tmp_path / "theirs")
    ours = bert.BertForSequenceClassification.from_pretrained(tmp_path / "theirs")
    assert not ours.newly_initialised
    tokenizer = bert.load_tokenizer(tmp_path / "theirs")
    tokenizer.enable_truncation(64)
    for name, splits in texts.items():
        rows = next(split for stem, split in splits.items() if stem.startswith(("dev", "diag")))[0][:100]
        columns = [list(column) for column in zip(*rows, strict=True)]
        inputs = theirs_tokenizer(*columns, padding=True, truncation=True, max_length=64, return_tensors="pt")
        with torch.inference_mode():
            expected = theirs(**inputs).logits
            got = glue.forward(ours, glue.encode(tokenizer, rows), options())
        torch.testing.assert_close(
            got, expected, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize(
    "kind, dtype, spare",
    [
        ("BertModel", "float32", 0),
        ("BertForMaskedLM", "float32", 0),
        ("BertForMaskedLM", "float16", 0),
        ("BertForSequenceClassification", "bfloat16", 0),
        ("BertForPreTraining", "float32", 41),  # a vocabulary padded to a multiple of 64
    ],
)
def test_folders_of_transformers_are_fine_tuned(evaluate, checkpoint, tmp_path, kind, dtype, spare):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(vocab_size=VOCAB + spare, max_position_embeddings=48, **SIZES)
    theirs = getattr(transformers, kind)(config).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "theirs")
    bert.save_tokenizer(bert.load_tokenizer(checkpoint), tmp_path / "theirs")
    record, out = evaluate("--tasks", "RTE", "--from-scratch", model=tmp_path / "theirs")
    assert list(record["results"]) == ["pretrained", "from scratch"]

    model, _ = build(tmp_path / "theirs")
    name = "encoder.layer.0.output.dense.weight"
    expected = {**theirs.state_dict(), **getattr(theirs, "bert", theirs).state_dict()}[name].float()
    assert torch.equal(model.bert.state_dict()[name], expected), "it starts from their weights"
    assert model.config.vocab_size == VOCAB, "spare rows of the vocabulary are gone"
    model.save_pretrained(tmp_path / "ours")
    back = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
    ids = torch.randint(5, VOCAB, (4, 9))
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(ids), back(ids).logits, atol=1e-5, rtol=1e-4)


def test_rows_have_cls_and_sep_also_without_a_post_processor(evaluate, checkpoint, tmp_path):
    """transformers adds them whatever tokenizer.json says; without them a word would be pooled."""
    bert.BertForMaskedLM.from_pretrained(checkpoint).save_pretrained(tmp_path / "model")
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(tokenizer))
    for file in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / "model" / file).write_bytes((checkpoint / file).read_bytes())
    theirs, _ = evaluate("--tasks", "RTE", out="with")
    ours, _ = evaluate("--tasks", "RTE", out="without", model=tmp_path / "model")
    scores = [record["results"]["pretrained"]["RTE"]["0"]["scores"] for record in (theirs, ours)]
    assert scores[0] == scores[1]
    (row,) = glue.encode(bert.load_tokenizer(tmp_path / "model"), [("good",)])
    assert len(row[0]) == 3


def test_words_that_the_vocabulary_lacks_are_said_with_the_remedy(evaluate, data, tmp_path):
    _, out = evaluate("--tasks", "RTE")
    assert "RTE: 64 training rows, 0.0% cut at 32 tokens\n" in out and "[UNK]" not in out
    (tmp_path / "foreign" / "RTE").mkdir(parents=True)
    for stem in ("train", "dev"):  # "gut" and "schlecht" are unknown: 11 of 15 letters
        text = "index\tsentence1\tsentence2\tlabel\n" + "0\tgut\tschlecht barn\tentailment\n" * 8
        (tmp_path / "foreign" / "RTE" / f"{stem}.tsv").write_text(text)
    _, out = evaluate("--tasks", "RTE", out="foreign-out", data_dir=tmp_path / "foreign")
    note = "- RTE: [UNK] stands for 73.3% of the characters; use a checkpoint whose vocabulary fits"
    assert note in out, "also below the table, where it is copied along"


def test_tasks_are_known_in_any_spelling(evaluate):
    record, _ = evaluate("--tasks", "rte", "sst2", "Sts-B")
    assert set(record["results"]["pretrained"]) == {"SST-2", "RTE", "STS-B"}
