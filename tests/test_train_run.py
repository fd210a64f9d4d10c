"""Whole runs of train.py: files, exact resume, accumulation, processes, what is learned, what is refused."""

import json
import math
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from string import ascii_lowercase

import pytest
import torch
from conftest import NO_VOCAB, PROJECT, SMALL, killed_in_step, launch, log, same, weights

import train as program
from masking import RULES, blank_entropy
from model import SPECIAL_TOKENS, BertForMaskedLM, load_tokenizer

# ---- what a run writes and says ----


def test_a_run_writes_a_folder_that_transformers_opens(train, tmp_path, capsys):
    out = tmp_path / "my runs" / "one's"
    train("--steps", 4, out=out)
    names = {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "tokenizer_config.json"}
    assert names | {"checkpoint.pt", "log.csv", "args.json"} <= {path.name for path in out.iterdir()}
    record = json.loads((out / "args.json").read_text())
    assert record["options"]["steps"] == 4 and record["versions"]["torch"] == torch.__version__
    config = json.loads((out / "config.json").read_text())
    assert config["hidden_dropout_prob"] == 0.1, "who fine-tunes it elsewhere wants BERT's own dropout"

    printed = capsys.readouterr().out
    lines = ("model ", "text ", "words ", "masks ", "unigram ", "held-out loss", "best ", "guess", "next ")
    for word in lines:
        assert word in printed, f"the reader should see {word!r}"
    (command,) = re.findall("next +(.*)", printed)
    assert str(out) in shlex.split(command), "the command can be pasted, whatever the folder's name"

    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertForMaskedLM.from_pretrained(out).eval()
    ours = BertForMaskedLM.from_pretrained(out)
    ids = torch.tensor([load_tokenizer(out).encode("barn cost dump").ids])
    assert (ours(ids) - theirs(ids).logits).abs().max() <= 1e-5 * ours(ids).abs().max()


def held_out_loss(run) -> float:
    """The exam by its definition: a guess for each hidden token, in float64."""
    corrupted, places, labels = run.exam
    with torch.no_grad():
        log_p = run.model.eval()(corrupted).double().log_softmax(-1)
    of_places = log_p[torch.arange(len(places))[:, None], places]
    asked = labels != -100  # a row with a [SEP] inside has fewer masks than places
    return -of_places[asked].gather(-1, labels[asked][:, None]).mean().item()


def test_the_log_begins_with_what_was_there_before_the_first_step(train, tmp_path):
    run = train("--lr", 1e-12)  # nothing changes
    first, *_, last = log(tmp_path / "out")
    assert first["step"] == "0" and first["loss"] == first["masked_per_row"] == "", "nothing was trained yet"
    assert float(first["held_out_loss"]) == pytest.approx(held_out_loss(run), rel=1e-4)
    assert first["held_out_loss"][:6] == last["held_out_loss"][:6]
    corrupted, places, labels = run.exam
    counts = torch.bincount(torch.from_numpy(run.train_ids.astype("int64")), minlength=len(run.vocab)) + 1.0
    counts[run.sep_id] = 1  # it is no word, and nobody asks for it
    floor = -(counts / counts.sum()).log()[labels[labels != -100]].mean().item()
    assert run.unigram_loss == pytest.approx(floor, rel=1e-5), "of one that knows word frequencies only"
    assert run.unigram[run.sep_id] == run.unigram.min(), "the bias at the start leaves [SEP] out as well"
    hidden = corrupted.gather(1, places) == run.mask_id
    assert torch.equal(hidden, labels != -100), "the exam hides every token it asks for, and no other"


def test_nobody_guesses_where_a_document_ends(tmp_path, capsys, cache):
    """Two words a document: a third of the stream is [SEP]."""
    rng = random.Random(0)
    words = ["barn", "cost", "dump", "fist", "gasp"]
    text = "\n\n".join(f"{rng.choice(words)} {rng.choice(words)} {i}" for i in range(3000))
    (tmp_path / "text.txt").write_text(text)
    launch(
        "--corpus", tmp_path / "text.txt", *SMALL, "--cache", cache, "--out", tmp_path / "out", "--steps", 1
    )
    guesses = [line for line in capsys.readouterr().out.splitlines() if line.startswith("guess")]
    assert len(guesses) == 3 and all("[SEP]" in line and "[[SEP]?" not in line for line in guesses)


# ---- exact resume ----

CHOICES = [("--masking", "random"), ("--masking", "random", "--whole-word"), ("--reading", "visible")]
CHOICES += [("--select", rule) for rule in RULES if rule not in ("random", "sample")]
CHOICES += [
    ("--reading", "memory", "--select", "high", "--max-tokens", 600),
    ("--whole-word",),
    ("--accumulate", 2),
]
CHOICES += [("--corruption", "100-0-0", "--mask-ratio", 0.4, "--candidates", 1.5)]
CHOICES += [("--select-temperature", 0.5, "--init", "normal", "--dropout", 0.1)]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: " ".join(map(str, choice)))
def test_every_choice_runs_and_resumes_to_the_same_bits(train, tmp_path, choice):
    if choice[:2] != ("--masking", "random"):
        choice = (*choice, "--entropy-warmup", 2)
    train(*choice, out="whole")
    with killed_in_step(7):
        train(*choice, out="broken")
    assert log(tmp_path / "broken")[-1]["step"] == "4", "what is saved is the last evaluation"
    train("--resume", out="broken")
    assert same(tmp_path / "whole", tmp_path / "broken"), "8 steps must equal 6 steps, a kill, and 4 more"


def test_ctrl_c_before_anything_was_saved_promises_no_resume(train, tmp_path, monkeypatch):
    def stop(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "prepare_text", stop)
    with pytest.raises(SystemExit, match="nothing was saved yet, so start again") as stopped:
        train()
    assert "--resume" not in stopped.value.code and not (tmp_path / "out").exists()


def test_ctrl_c_says_how_to_continue(train, monkeypatch):
    update = program.Pretraining.update

    def stop_in_step_7(self):
        if self.step == 6:
            raise KeyboardInterrupt
        update(self)

    monkeypatch.setattr(program.Pretraining, "update", stop_in_step_7)
    with pytest.raises(SystemExit, match="the same command with --resume continues from the last evaluation"):
        train(out="broken run")
    monkeypatch.setattr(program.Pretraining, "update", update)
    assert [line["step"] for line in train("--resume", out="broken run").log] == [0, 4, 8]


def test_a_damaged_checkpoint_is_named_with_the_model_that_is_left(train, tmp_path):
    run = train(out="broken")
    damaged = tmp_path / "broken" / "checkpoint.pt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 255  # one flipped byte
    for form in (bytes(content), b""):
        damaged.write_bytes(form)
        with pytest.raises(SystemExit) as stop:
            train("--resume", out="broken")
        assert f"{damaged} cannot be read" in stop.value.code
        assert f"--from {tmp_path / 'broken'} " in stop.value.code, "what is left, and how to go on with it"
    damaged.unlink()  # large, so not copied with the rest
    with pytest.raises(SystemExit, match=f"no checkpoint to resume from.*--from {tmp_path / 'broken'} "):
        train("--resume", out="broken")
    more = train("--from", tmp_path / "broken", out="more", small=NO_VOCAB)
    assert more.log[0]["held_out_loss"] == pytest.approx(run.log[-1]["held_out_loss"], rel=1e-6)


def test_other_options_or_another_text_are_refused_on_resume(train, tmp_path, corpus, monkeypatch):
    text = tmp_path / "text.txt"
    shutil.copy(corpus, text)
    train(text=text)
    before = weights(tmp_path / "out")
    with pytest.raises(SystemExit, match="add --resume, or choose another --out"):
        train(text=text)
    with pytest.raises(SystemExit, match="out began with another .*lr"):
        train("--resume", "--lr", 0.5)
    text.write_text(corpus.read_text() + "barn cost dump .\n")
    with pytest.raises(SystemExit, match="out began with another text or vocabulary"):
        train("--resume")
    text.write_text(corpus.read_text())
    monkeypatch.setattr(program, "TEXT_RULES", "another")
    with pytest.raises(SystemExit, match="out was made with older rules for text: start anew --from it"):
        train("--resume")
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(tmp_path / "out").items())


def test_a_run_from_before_the_rules_for_text_had_a_name_says_that_these_are_older(train, tmp_path):
    train()
    path = tmp_path / "out" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    state["text"] = "0123456789abcdef"
    torch.save(state, path)
    with pytest.raises(SystemExit, match="out was made with older rules for text"):
        train("--resume")


def test_a_run_moved_to_another_folder_continues_there(train, tmp_path):
    with killed_in_step(7):
        train(out="first")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "first").iterdir()}
    shutil.copytree(tmp_path / "first", tmp_path / "elsewhere")
    train("--resume", out="elsewhere")
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "first").iterdir()}
    assert before == after, "a copy of a run must not write to the folder it was copied from"
    assert log(tmp_path / "elsewhere")[-1]["step"] == "8"


def test_a_resumed_run_needs_neither_the_folder_of_from_nor_of_vocab(train, tmp_path, teacher):
    for name in ("--from", "--vocab"):
        shutil.copytree(teacher, tmp_path / "given")
        options = (name, tmp_path / "given", "--masking", "random")
        train(*options, out=f"whole{name}", small=NO_VOCAB)
        with killed_in_step(7):
            train(*options, out=f"broken{name}", small=NO_VOCAB)
        shutil.rmtree(tmp_path / "given")
        train("--resume", out=f"broken{name}")
        assert same(tmp_path / f"whole{name}", tmp_path / f"broken{name}")


@pytest.mark.parametrize("other", ["heads", "vocabulary"])
def test_a_resumed_run_keeps_its_model_whatever_lies_at_from_now(train, tmp_path, teacher, other):
    shutil.copytree(teacher, tmp_path / "given")
    options = ("--from", tmp_path / "given", "--masking", "random")
    train(*options, out="whole", small=NO_VOCAB)
    with killed_in_step(7):
        train(*options, out="broken", small=NO_VOCAB)
    if other == "heads":
        config = tmp_path / "given" / "config.json"
        config.write_text(config.read_text().replace('"num_attention_heads": 2', '"num_attention_heads": 4'))
    else:
        shutil.rmtree(tmp_path / "given")
        train("--cased", "--steps", 1, out="given", small=NO_VOCAB)
    train("--resume", out="broken")
    assert same(tmp_path / "whole", tmp_path / "broken")


def test_a_text_that_was_moved_is_the_same_text(train, tmp_path, corpus):
    train(out="whole")
    with killed_in_step(7):
        train(out="broken")
    shutil.copy(corpus, tmp_path / "moved.txt")
    train("--resume", "--corpus", tmp_path / "moved.txt", out="broken")
    assert same(tmp_path / "whole", tmp_path / "broken")


def test_args_json_keeps_the_first_command_and_lists_the_later_ones(train, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--corpus", "my text.txt"])
    with killed_in_step(3):
        train("--eval-every", 2, "--seed", 3)
    for name in ("--second", "--third"):
        monkeypatch.setattr(sys, "argv", ["train.py", name])
        with killed_in_step(7 if name == "--second" else 8):
            train("--resume")
    record = json.loads((tmp_path / "out" / "args.json").read_text())
    assert record["command"] == "train.py --corpus 'my text.txt'", "as a shell reads it"
    assert record["options"]["seed"] == 3 and record["options"]["resume"] is False
    assert [(later["command"], later["step"]) for later in record["resumed"]] == [
        ("train.py --second", 2),
        ("train.py --third", 6),
    ]


# ---- a step ----


def test_the_gradients_of_all_processes_are_added_in_one_call(train, monkeypatch):
    calls = []

    def doubled(self, tensor):  # as if another process had the same
        calls.append(tensor.numel())
        return tensor.mul_(2)

    run = train("--steps", 1)
    for parameter in run.model.parameters():
        parameter.grad = torch.rand_like(parameter)
    before = [parameter.grad.clone() for parameter in run.model.parameters()]
    monkeypatch.setattr(program.Pretraining, "sum_over_processes", doubled)
    run.world = 2
    run.sum_gradients()
    assert calls == [sum(parameter.numel() for parameter in run.model.parameters())]
    for parameter, gradient in zip(run.model.parameters(), before, strict=True):
        assert torch.equal(parameter.grad, 2 * gradient) and parameter.grad.shape == parameter.shape


def test_gradients_of_pieces_add_up_to_the_mean_over_the_steps_masked_tokens(train, tmp_path, monkeypatch):
    # Whole words give the pieces unequal numbers of masks: a mean of means would weigh them wrongly.
    gradients = []
    masks = []
    rng = random.Random(0)
    words = ("".join(rng.choices("abcdefgh", k=rng.randint(2, 4))) for _ in range(6000))
    (tmp_path / "words.txt").write_text(" ".join(words))
    (tmp_path / "vocab.txt").write_text(
        "\n".join([*SPECIAL_TOKENS, *"abcdefgh", *(f"##{c}" for c in "abcdefgh")])
    )

    def step(optimizer):
        gradients.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])

    original = program.Pretraining.loss

    def loss(self, ids, places, labels):
        masks.append(int((labels != -100).sum()))
        return original(self, ids, places, labels)

    monkeypatch.setattr(program.Pretraining, "loss", loss)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    options = ("--masking", "random", "--whole-word", "--vocab", tmp_path / "vocab.txt", "--steps", 1)
    for pieces in (1, 4):
        train(*options, "--accumulate", pieces, out=f"p{pieces}", text=tmp_path / "words.txt", small=NO_VOCAB)
    assert masks[0] == sum(masks[1:]) and len(set(masks[1:])) > 1, f"the pieces should be unequal: {masks}"
    for whole, in_pieces in zip(*gradients, strict=True):
        assert (whole - in_pieces).abs().max() <= 1e-4 * whole.abs().max() + 1e-8


PROCESSES = {
    "random": ["--masking", "random"],
    "blank": ["--accumulate", "2", "--entropy-warmup", "2"],
    "memory": ["--reading", "memory", "--entropy-warmup", "2", "--max-tokens", "600"],
}


@pytest.mark.parametrize("reading", PROCESSES)
def test_two_processes_do_what_one_does(train, tmp_path, corpus, cache, nursery, free_port, reading):
    given = ["--corpus", corpus, "--cache", cache, *SMALL, *PROCESSES[reading]]
    nursery.complete("train.py", [*given, "--out", tmp_path / "one"])
    nursery.together("train.py", [*given, "--out", tmp_path / "two"], 2, free_port)
    one = weights(tmp_path / "one")
    two = weights(tmp_path / "two")
    # Sums in another order round differently, and Adam makes a step of either sign of a gradient near 0:
    # so single weights may differ, but not many, and the losses agree.
    gap = sum((one[name] - two[name]).abs().sum().item() for name in one)
    size = sum(tensor.numel() for tensor in one.values())
    assert gap / size < 2e-6, f"weights differ by {gap / size:.1e} on average after 8 steps of up to 1e-3"
    losses = [float(log(tmp_path / name)[-1]["loss"]) for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_run_in_two_processes_resumes_to_the_same_bits(tmp_path, corpus, cache, nursery, free_port):
    given = ["--corpus", corpus, "--cache", cache, *SMALL, "--dropout", 0.1]
    given += ["--reading", "memory", "--select", "high", "--entropy-warmup", 2, "--max-tokens", 600]
    nursery.together("train.py", [*given, "--out", tmp_path / "whole"], 2, free_port)
    nursery.together("train.py", [*given, "--out", tmp_path / "broken"], 2, free_port, stop_in=7)
    assert log(tmp_path / "broken")[-1]["step"] == "4"
    nursery.together("train.py", ["--resume", "--out", tmp_path / "broken"], 2, free_port)
    assert same(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.skipif(not os.environ.get("LONG"), reason="imports torch three times; set LONG=1")
def test_torchrun_starts_a_run_and_ends_it(tmp_path, corpus, cache):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command += [PROJECT / "train.py", "--corpus", corpus, "--cache", cache, "--out", tmp_path / "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *SMALL, "--steps", "2"], capture_output=True, text=True, timeout=200, env=environment
    )
    assert done.returncode == 0 and done.stdout.count("best  ") == 1, done.stderr[-2000:]
    assert json.loads((tmp_path / "out" / "args.json").read_text())["processes"] == 2


def test_memory_keeps_the_entropy_of_every_blank_and_chooses_by_it(train, monkeypatch):
    # The table by hand: a dictionary from (row, place) to the entropy of the last time [MASK] stood there.
    table = {}
    chosen = []
    level = [0.0]  # the running mean
    loss = program.Pretraining.loss
    select = program.masking.select_positions

    def rows(self):
        return program.rows_of_step(self.o, self.step, self.row_count).tolist()

    def recorded(self, ids, places, labels):
        result = loss(self, ids, places, labels)
        with torch.no_grad():
            p = self.model(ids, places=places).double().softmax(-1)
        entropies = -(p * p.log()).sum(-1)
        seen = []
        for b, row in enumerate(rows(self)):
            for place, entropy in zip(places[b].tolist(), entropies[b].tolist(), strict=True):
                if ids[b, place] == self.mask_id:
                    table[row, place] = entropy
                    seen.append(entropy)
        mean = sum(seen) / len(seen)
        level[0] = 0.99 * level[0] + 0.01 * mean if level[0] else mean
        return result

    def checked(rule, eligible, ratio, entropy=None, *others, **settings):
        if entropy is not None:
            chosen.append(entropy)
        return select(rule, eligible, ratio, entropy, *others, **settings)

    def choose(self, ids, index, rng, original=program.Pretraining.choose):
        width = ids.shape[1]
        expected = [[table.get((row, place), level[0]) for place in range(width)] for row in rows(self)]
        count = len(chosen)
        selected = original(self, ids, index, rng)
        for entropy in chosen[count:]:
            gap = (entropy - torch.tensor(expected)).abs().max().item()
            assert gap < 0.01, f"{gap} nats: never a blank counts as the running mean; float16 keeps 3 digits"
        return selected

    monkeypatch.setattr(program.Pretraining, "loss", recorded)
    monkeypatch.setattr(program.Pretraining, "choose", choose)
    monkeypatch.setattr(program.masking, "select_positions", checked)
    train("--reading", "memory", "--entropy-warmup", 4, "--max-tokens", 720, "--steps", 12)
    assert len(chosen) == 8, "random masks for 4 steps, then remembered ones"
    assert len(table) > 100


def test_masking_rules_see_the_same_rows_in_the_same_order(train, monkeypatch):
    original = program.take_rows
    runs = []
    rules = [("--masking", "random"), ("--entropy-warmup", 0), ("--reading", "visible", "--select", "low")]
    for options in rules:
        seen = []

        def take(ids, index, *given, seen=seen):
            seen.append(index.tolist())
            return original(ids, index, *given)

        monkeypatch.setattr(program, "take_rows", take)
        train(*options, out="-".join(map(str, options)))
        runs.append(seen)
    assert runs[0] == runs[1] == runs[2], "runs that differ in their masks alone must see the same rows"


# ---- whole words ----

LETTERS = [*SPECIAL_TOKENS, *"abcdefgh", *(f"##{c}" for c in "abcdefgh")]  # a word has a piece per letter


@pytest.fixture
def selections(monkeypatch):
    """What every step selected: (ids [B, T], selected [B, T]) each."""
    seen = []
    corrupt = program.masking.corrupt

    def spy(ids, selected, *others):
        seen.append((ids, selected))
        return corrupt(ids, selected, *others)

    monkeypatch.setattr(program.masking, "corrupt", spy)
    return seen


def words_of(length, count=1500):
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.choice(length))) for _ in range(count)]
    return "\n".join(" ".join(words[i : i + 20]) for i in range(0, count, 20))  # no [SEP] shifts the rows


@pytest.mark.parametrize("masking", ["random", "self"])
@pytest.mark.parametrize("length", [(6,), (1, 2, 3, 6)], ids=["no word fits", "some words fit"])
def test_whole_words_are_masked_and_a_row_in_which_none_fits_masks_k_pieces(
    train, tmp_path, selections, masking, length
):
    (tmp_path / "vocab.txt").write_text("\n".join(LETTERS))
    (tmp_path / "text.txt").write_text(words_of(length))
    options = ["--vocab", tmp_path / "vocab.txt", "--whole-word", "--masking", masking]
    options += [] if masking == "random" else ["--entropy-warmup", 2]
    run = train(*options, text=tmp_path / "text.txt", small=NO_VOCAB)
    k = run.masks_per_row
    assert k == 4, "15% of 30, 4.5, halves to even"
    counts = torch.cat([selected.sum(1) for _, selected in selections])
    if length == (6,):  # rows of 30 hold five words each
        assert (counts == k).all(), f"a word of 6 pieces does not fit into {k}: exactly {k} single pieces"
    assert counts.min() >= 1 and counts.max() <= k, "a row masks something, and never more than k"
    if length != (6,):
        for ids, selected in selections:
            continues = ids >= LETTERS.index("##a")
            together = selected[:, 2:] == selected[:, 1:-1]  # what follows [CLS] begins a word, or its rest
            assert together[continues[:, 2:]].all(), "the pieces of a word are masked together, or none"
        first = torch.cat([selected[:, 1][ids[:, 1] >= LETTERS.index("##a")] for ids, selected in selections])
        assert first.any(), "a row that begins inside a word can mask the rest of it"
    logged = float(log(tmp_path / "out")[-1]["masked_per_row"])
    assert logged == pytest.approx(counts[-32:].float().mean().item()), "the mean since the last evaluation"


def test_a_vocabulary_without_pieces_of_words_refuses_whole_words(train, tmp_path, corpus):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *set(corpus.read_text().split())]))
    with pytest.raises(SystemExit, match="--whole-word needs a vocabulary with ## pieces"):
        train("--whole-word", "--vocab", tmp_path / "vocab.txt", small=NO_VOCAB)


# ---- what is learned ----


@pytest.fixture(scope="module")
def language(cache, tmp_path_factory):
    """A model of a known language, and its text: six words in a circle; after "four" one of 16 colours, after
    "six" one of two tastes."""
    folder = tmp_path_factory.mktemp("language")
    rng = random.Random(0)
    colours = [a + b for a in ("re", "bl", "gr", "wh") for b in ("do", "ka", "mi", "zu")]
    tastes = ("sweet", "sour")
    parts = (f"one two three four {rng.choice(colours)} five six {rng.choice(tastes)}" for _ in range(3000))
    text = "".join(part + ("\n" if i % 50 == 49 else " ") for i, part in enumerate(parts))
    (folder / "text.txt").write_text(text)
    options = ["--steps", 200, "--eval-every", 100, "--entropy-warmup", 0.5, "--lr", 3e-3]
    given = ["--corpus", folder / "text.txt", *SMALL, "--cache", cache, "--out", folder / "model"]
    launch(*given, *options)
    return folder


def test_self_masking_finds_the_uncertain_words_of_a_known_language(language):
    model = BertForMaskedLM.from_pretrained(language / "model")
    tokenizer = load_tokenizer(language / "model")
    encoding = tokenizer.encode("one two three four redo five six sweet " * 3)
    ids = torch.tensor([encoding.ids])
    entropy = {}
    for i, token in enumerate(encoding.tokens[8:-10], start=8):
        hidden = torch.zeros_like(ids, dtype=torch.bool)
        hidden[0, i] = True
        entropy[token] = blank_entropy(model, ids, hidden, tokenizer.token_to_id("[MASK]"))[0, i].item()
    assert entropy["three"] < 0.3 and entropy["two"] < 0.3, f"these words are certain, entropy 0: {entropy}"
    assert entropy["sweet"] == pytest.approx(math.log(2), abs=0.15), "one of two: log 2"
    assert entropy["redo"] == pytest.approx(math.log(16), abs=0.3), "one of sixteen: log 16"
    last = log(language / "model")[-1]
    assert float(last["masked_entropy"]) > math.log(2), "masks drawn by entropy are mostly colours, log 16"


def test_a_trained_model_is_not_ruined_by_default_settings(language, cache, tmp_path, capsys):
    given = ["--corpus", language / "text.txt", *NO_VOCAB, "--cache", cache, "--out", tmp_path / "more"]
    run = launch(*given, "--from", language / "model", "--steps", 20, "--eval-every", 10)
    before = float(log(language / "model")[-1]["held_out_loss"])
    losses = [line["held_out_loss"] for line in run.log]
    assert losses[0] == pytest.approx(before, rel=1e-4), "step 0 is the model that was given"
    assert max(losses) < before + 0.02, f"a default learning rate must not undo what was learned: {losses}"
    printed = capsys.readouterr().out
    assert "learning rate 5e-05" in printed and "on the plateau" not in printed, "it was never there"
    assert "WARNING: held-out" not in printed and not any(line["on_plateau"] for line in run.log)


def test_a_checkpoint_is_where_from_begins(train, teacher):
    given = BertForMaskedLM.from_pretrained(teacher).state_dict()
    options = ("--from", teacher, "--steps", 1, "--lr", 1e-9, "--masking", "random")
    more = train(*options, out="more", small=NO_VOCAB)
    for name, tensor in more.model.state_dict().items():
        assert torch.allclose(tensor, given[name], atol=1e-6), f"--from must start from the folder: {name}"


@pytest.mark.parametrize(
    "known, length, kept, said", [(32, 48, 48, True), (64, 32, 64, False), (None, 48, None, False)]
)
def test_the_row_length_of_training_is_kept_and_rows_beyond_it_are_said(
    train, teacher, tmp_path, capsys, known, length, kept, said
):
    run = train("--seq-len", 40, "--steps", 1, out="fresh")
    assert run.model.config.trained_length == 40
    assert json.loads((tmp_path / "fresh" / "config.json").read_text())["trained_length"] == 40

    shutil.copytree(teacher, tmp_path / "parent")
    config = json.loads((tmp_path / "parent" / "config.json").read_text())
    (tmp_path / "parent" / "config.json").write_text(json.dumps(config | {"trained_length": known}))
    capsys.readouterr()
    options = ("--from", tmp_path / "parent", "--seq-len", length, "--steps", 1)
    run = train(*options, out="more", small=NO_VOCAB)
    assert run.model.config.trained_length == kept
    assert (f"parent has read rows of {known} tokens" in capsys.readouterr().out) == said


# ---- what is said when it goes wrong ----


READS = "entropy is known before step"


@pytest.mark.parametrize("tokens, steps, warned", [(2400, 10, True), (2400, 11, False), (0, 8, True)])
def test_a_memory_that_never_sees_a_row_again_is_said(train, tmp_path, capsys, tokens, steps, warned):
    # 2,400 tokens are 80 rows, an epoch of 10 steps: only the 11th step sees rows again.
    options = ("--max-tokens", tokens, "--steps", steps, "--eval-every", steps)
    train("--reading", "memory", "--select", "high", "--entropy-warmup", 0, *options, out="memory")
    printed = capsys.readouterr().out
    assert (READS in printed) == warned
    assert f" tokens, {steps / 10:.1f} epochs; " in printed or not tokens
    train("--masking", "random", *options, out="random")
    bits = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("memory", "random")]
    assert (bits[0] == bits[1]) == warned, "without a second epoch it is --masking random, bit for bit"


def test_random_masks_to_the_end_are_said(train, capsys):
    train("--entropy-warmup", 8)
    assert f"WARNING: no {READS} 8" in capsys.readouterr().out


def test_the_end_names_what_compares_runs_once_there_are_two(train, tmp_path, capsys):
    train("--steps", 1, out="a run")
    assert "curves.py" not in capsys.readouterr().out
    train("--steps", 1, out="b")
    (command,) = re.findall("(python tests/lab/curves.py .*)", capsys.readouterr().out)
    assert shlex.split(command)[2:4] == [str(tmp_path / "a run"), str(tmp_path / "b")]
    done = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]], cwd=PROJECT, capture_output=True, text=True
    )
    (PROJECT / "curves.svg").unlink()
    assert done.returncode == 0 and "a run" in done.stdout, done.stderr


def collapsed(self, ids, index, rng):
    stops = (ids == self.vocab["."]).float()
    return program.masking.select_positions("high", self.maskable(ids), 0.15, stops, generator=rng)


@pytest.mark.parametrize("steps, warned", [(2, False), (36, True)])
def test_masks_that_collapse_are_warned_of_from_a_thousand_on(train, capsys, monkeypatch, steps, warned):
    monkeypatch.setattr(program.Pretraining, "choose", collapsed)  # 32 masks per step, most of them stops
    train("--masking", "random", "--steps", steps, "--eval-every", steps)
    assert ("WARNING: held-out" in capsys.readouterr().out) == warned, f"after {32 * steps} masks"


def test_masks_that_do_not_collapse_are_not_warned_of(train, capsys):
    train("--steps", 36, "--eval-every", 36)
    assert "WARNING: held-out" not in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_saved(train, tmp_path, monkeypatch):
    original = program.Pretraining.loss

    def diverge(self, *batch):
        loss, sums, entropy = original(self, *batch)
        if self.step > 5:
            loss = loss * float("nan")
            sums = sums | {"loss": loss.detach()}
        return loss, sums, entropy

    monkeypatch.setattr(program.Pretraining, "loss", diverge)
    with pytest.raises(SystemExit, match=r"diverged at step .*keeps step 4.*lower --lr"):
        train("--masking", "random")
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "out").values())


def test_a_gradient_that_is_not_finite_is_never_saved(train, tmp_path, monkeypatch):
    clip = torch.nn.utils.clip_grad_norm_
    calls = []

    def explode(parameters, most):
        parameters = list(parameters)
        calls.append(1)
        if len(calls) == 8:  # the loss of step 8 is still a number, the weights after it are not
            parameters[0].grad[0] = float("inf")
        return clip(parameters, most)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", explode)
    with pytest.raises(SystemExit, match=r"diverged at step 8.*keeps step 4.*lower --lr"):
        train("--masking", "random")
    assert torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["step"] == 4
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "out").values())


CHANCE = 13.3  # 3 log V, with 84 pieces
LOSSES = [
    ("far above a blind guess", 2.0, CHANCE + 0.1, True),
    ("bad, and no worse than a blind guess", 2.0, CHANCE - 0.1, False),
    ("a good model of other text", CHANCE + 1, CHANCE + 3.9, False),
    ("and made much worse", CHANCE + 1, CHANCE + 4.1, True),
]


@pytest.mark.parametrize("what, first, last, stopped", LOSSES, ids=[case[0] for case in LOSSES])
def test_a_run_has_diverged_where_it_is_worse_than_a_guess_and_than_its_start(
    train, tmp_path, monkeypatch, what, first, last, stopped
):
    losses = iter((first, first, last))
    monkeypatch.setattr(program, "examine", lambda model, exam: (next(losses), 0.0))
    if stopped:
        with pytest.raises(SystemExit, match=r"diverged at step 8.*keeps step 4.*lower --lr"):
            train("--masking", "random")
        assert torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["step"] == 4
    else:
        run = train("--masking", "random")
        assert 3 * math.log(len(run.vocab)) == pytest.approx(CHANCE, abs=0.05)


def test_running_out_of_memory_is_one_sentence_with_the_remedy_and_a_bug_stays_a_bug(train, monkeypatch):
    monkeypatch.setattr(program.Pretraining, "loss", lambda self, *batch: torch.empty(2**50))
    with pytest.raises(SystemExit, match=r"out of memory; .*--batch-size.*--accumulate"):
        train(out="a")
    cuda = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    for out, error, kind in (
        ("b", cuda, SystemExit),
        ("c", RuntimeError("an illegal memory access"), RuntimeError),
    ):

        def fail(self, *batch, error=error):
            raise error

        monkeypatch.setattr(program.Pretraining, "loss", fail)
        with pytest.raises(kind, match="memory"):
            train(out=out)


BAD = {
    "missing corpus": (["--corpus", "nowhere.txt"], "nowhere.txt: No such file or directory$"),
    "a folder as corpus": (["--corpus", "."], r"\. is no file: name the files of a folder"),
    "empty corpus": (["--corpus", "empty.txt"], "empty.txt: 0 tokens .*too few"),
    "vocabulary without [MASK]": (["--vocab", "words.txt"], r"words.txt lacks .*\[MASK\]"),
    "mask ratio 0": (["--mask-ratio", "0"], "mask ratio 0"),
    "mask ratio 1.5": (["--mask-ratio", "1.5"], "mask ratio 1.5"),
    "few candidates": (["--candidates", "0.5"], "--candidates 0.5 must be finite and at least 1"),
    "no choice": (["--candidates", "1"], "2 candidates for 2 masks .* leave no choice"),
    "nothing to read": (["--candidates", "9"], "14 candidates for 2 masks in rows of 14 .* nothing to read"),
    "rows longer than its positions": (["--from", "TEACHER", "--seq-len", "600"], "rows of at most 512"),
    "uneven pieces": (["--accumulate", "3"], "--batch-size 16 must be a multiple of 3"),
    "no steps": (["--steps", "0"], "steps"),
    "warm-up longer than the run": (["--warmup", "3"], "--warmup 3.0 must be from 0 to 2"),
    "random masks longer than the run": (
        ["--entropy-warmup", "3"],
        "--entropy-warmup 3.0 must be from 0 to 2",
    ),
    "no such device": (["--device", "warp"], "--device warp cannot be used"),
    "unwritable": (["--out", "empty.txt/run"], "empty.txt"),
    "a file as --out": (["--out", "empty.txt"], "empty.txt: File exists|empty.txt: Not a directory"),
    "--from nowhere": (["--from", "nowhere"], "nowhere"),
    "--from a folder that is no BERT": (["--from", "gpt"], "gpt.*model_type is 'gpt2'; only 'bert'"),
    "nothing to resume": (["--resume"], "holds no checkpoint to resume from"),
}


for value, *names in (
    (
        "-1",
        "--seed",
        "--max-tokens",
        "--lr",
        "--warmup",
        "--dropout",
        "--steps",
        "--batch-size",
        "--eval-every",
    ),
    ("nan", "--lr", "--warmup", "--entropy-warmup", "--dropout", "--select-temperature", "--candidates"),
    ("inf", "--lr", "--select-temperature", "--candidates"),
    ("0", "--accumulate", "--seq-len", "--vocab-size", "--select-temperature"),
):
    for name in names:
        BAD[f"{name} {value}"] = ([name, value], rf"{name} {value}(\.0)? must be (finite|from)")

IDLE = {  # what has no effect, where it is said
    "--masking random": ["--select high", "--reading memory", "--entropy-warmup .1", "--candidates 3"],
    "--reading memory": ["--candidates 3"],
    "--reading visible": ["--candidates 3"],
    "--select high": ["--select-temperature 2"],
    "--masking random --corruption 100-0-0": ["--select-temperature 2"],
    "--vocab words.txt": ["--vocab-size 400"],
    "--from TEACHER": ["--vocab-size 400", "--vocab words.txt", "--size base", "--init normal", "--cased"],
}
for given, idle in IDLE.items():
    for options in idle:
        name = options.split()[0]
        BAD[f"{given}, {options}"] = (
            f"{given} {options}".split(),
            f"{name} has no effect here.*leave it out",
        )


def test_an_option_that_has_its_default_counts_as_not_given(train):
    train("--masking", "random", "--select", "sample", "--candidates", 2, "--reading", "blank", "--steps", 1)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_sentence(case, corpus, cache, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "words.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n")
    (tmp_path / "letters.txt").write_text(
        "\n".join([*SPECIAL_TOKENS, ".", *(x + c for x in ("", "##") for c in ascii_lowercase)])
    )
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text('{"model_type": "gpt2"}')
    options, sentence = BAD[case]
    options = [option.replace("TEACHER", str(teacher)) for option in options]
    with pytest.raises(SystemExit) as stop:
        launch("--corpus", corpus, "--cache", cache, "--steps", 2, "--seq-len", 16, *options)
    assert not any((tmp_path / "runs").glob("*")), "no empty folder is left"
    assert isinstance(stop.value.code, str) and "\n" not in stop.value.code.strip(), "one sentence"
    assert "Errno" not in stop.value.code
    assert re.search(sentence, stop.value.code), f"{stop.value.code!r} does not say {sentence!r}"


@pytest.mark.parametrize(
    "typed, meant",
    [
        ("--maskng random", "did you mean --masking[?]"),
        ("--seqlen 32", "did you mean --seq-len[?]"),
        ("--nothing-like-it", "unrecognized arguments: --nothing-like-it$"),
        ("--masking teacher", "a teacher is an option of distill.py"),
        ("--teacher runs/mini", "a teacher is an option of distill.py"),
        ("--steps many", "--steps: invalid int value: 'many'$"),
    ],
)
def test_a_mistyped_option_gets_two_lines(typed, meant, capsys):
    with pytest.raises(SystemExit, match="2"):
        launch(*typed.split())
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 2 and re.search(meant, lines[0]) and "--help" in lines[1], lines


@pytest.mark.parametrize("rule", ["highest", "random"])  # random masks are --masking random, without a pass
def test_unknown_values_are_refused_with_the_valid_ones_named(rule, capsys):
    with pytest.raises(SystemExit, match="2"):
        launch("--select", rule)
    said = capsys.readouterr().err
    assert f"invalid choice: '{rule}'" in said and "sample" in said
    assert "default: 0.15" in program.make_parser("test").format_help()
