"""Whole runs of distill.py: what equals train.py, what a teacher does in a step, its table of entropies."""

import json
import shutil
from string import ascii_lowercase

import numpy as np
import pytest
import torch
from conftest import NO_VOCAB, killed_in_step, launch_distillation, log, same

import distill
import masking
import train as pretraining
from model import SPECIAL_TOKENS, BertConfig, BertForMaskedLM, load_tokenizer

FEW = ("--max-tokens", 1500)  # 50 rows; 8 steps of 8 rows read them 1.3 times: a table of blanks does not pay
TABLE = ("--max-tokens", 240, "--steps", 12)  # 8 rows, read 12 times, and a table costs 7 passes at most

# ---- runs ----

GRID = [("random", "scratch", 0.5), ("self", "layers", 1.0), ("teacher", "embeddings", 0.5)]
GRID += [("reducible", "scratch", 0.5), ("teacher", "scratch", 0.0)]


@pytest.mark.parametrize("mask, init, alpha", GRID)
@pytest.mark.parametrize("text", [FEW, TABLE], ids=["read in steps", "a table"])
def test_every_combination_runs_and_resumes_to_the_same_bits(distil, tmp_path, mask, init, alpha, text):
    if text == TABLE and mask in ("random", "self"):
        pytest.skip("no entropy of the teacher is asked for")
    options = ["--masking", mask, "--student-init", init, "--kd-alpha", alpha, *text]
    options += [] if mask == "random" else ["--entropy-warmup", 2]
    run = distil(*options, out="whole")
    with killed_in_step(7):
        distil(*options, out="broken")
    distil("--resume", out="broken")
    assert same(tmp_path / "whole", tmp_path / "broken"), "6 steps, a kill, and the rest must equal it"
    tables = (run.table is not None) == (text == TABLE)
    assert tables or mask in ("random", "self")
    columns = set(log(tmp_path / "whole")[0])
    assert {"teacher_loss", "teacher_accuracy", "held_out_loss"} <= columns
    assert ({"cross_entropy", "kl", "agreement"} <= columns) == (alpha > 0)


@pytest.mark.parametrize("mask", ["random", "self"])
def test_alpha_0_is_train_py_step_for_step(distil, train, teacher, tmp_path, mask):
    warmup = [] if mask == "random" else ["--entropy-warmup", 2]
    options = ["--masking", mask, "--eval-every", 1, *warmup, "--max-tokens", 4000]
    distil("--kd-alpha", 0, *options, out="distill")
    train("--vocab", teacher, *options, small=NO_VOCAB, out="train")
    ours = log(tmp_path / "distill")
    theirs = log(tmp_path / "train")
    assert len(ours) == 9
    for column in ("loss", "accuracy", "held_out_loss", "masked_entropy"):
        assert [line[column] for line in ours] == [line[column] for line in theirs], f"{column} is train.py's"
    one, other = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("distill", "train")]
    assert one == other


@pytest.mark.parametrize("acts", [(), ("--kd-alpha", 0.5), ("--student-init", "layers")])
def test_a_teacher_that_is_read_for_nothing_is_said(distil, capsys, acts):
    distil("--masking", "random", "--kd-alpha", 0, *acts, "--steps", 1, *FEW)
    assert ("WARNING: neither loss, masks nor start" in capsys.readouterr().out) == (not acts)


@pytest.mark.parametrize("text", [FEW, TABLE], ids=["read in steps", "a table"])
def test_two_processes_do_what_one_does(nursery, free_port, teacher, corpus, cache, tmp_path, text):
    given = ["--corpus", corpus, "--cache", cache, "--teacher", teacher, *NO_VOCAB]
    given += ["--masking", "teacher", "--entropy-warmup", 0, *text]
    nursery.complete("distill.py", [*given, "--out", tmp_path / "one"])
    nursery.together("distill.py", [*given, "--cache", tmp_path, "--out", tmp_path / "two"], 2, free_port)
    for column in ("loss", "kl", "cross_entropy"):
        one, two = [float(log(tmp_path / name)[-1][column]) for name in ("one", "two")]
        assert one == pytest.approx(two, rel=1e-4), column


def test_a_run_is_resumed_by_the_program_that_began_it(distil, train):
    train()
    with pytest.raises(SystemExit, match="out was begun by another program.*kd_alpha"):
        distil("--resume")


# ---- the loss in a run ----


def test_a_student_that_is_its_teacher_agrees_with_it(distil, teacher):
    run = distil("--from", teacher, "--kd-alpha", 1, "--lr", 1e-12, "--masking", "random")
    last = run.log[-1]
    assert last["kl"] < 1e-6 and last["agreement"] > 0.999 and last["loss"] < 1e-5
    assert last["held_out_loss"] == pytest.approx(last["teacher_loss"], rel=1e-5)


def test_the_logged_loss_is_the_weighted_sum_of_its_parts(distil):
    last = distil("--kd-alpha", 0.3, "--kd-temperature", 3, "--masking", "random").log[-1]
    parts = 0.7 * last["cross_entropy"] + 0.3 * 3**2 * last["kl"]
    assert last["loss"] == pytest.approx(parts, rel=1e-5)


def test_a_high_temperature_is_no_divergence(distil, tmp_path, teacher):
    # T^2 KL of a teacher that is sure of itself is many nats, though the student is as it should be.
    tokenizer = load_tokenizer(teacher)
    sure = BertForMaskedLM(BertConfig.preset("tiny", vocab_size=tokenizer.get_vocab_size()))
    sure.cls["predictions"].bias.data[tokenizer.token_to_id(".")] = 100.0
    sure.save_pretrained(tmp_path / "sure", tokenizer)
    options = (
        "--teacher",
        tmp_path / "sure",
        "--kd-alpha",
        0.1,
        "--kd-temperature",
        8,
        "--masking",
        "random",
    )
    run = distil(*options, "--lr", 1e-4)
    assert run.log[-1]["loss"] > 3 * np.log(len(run.vocab)), "or this shows nothing"
    assert run.log[-1]["held_out_loss"] < 4


def test_spare_pieces_of_a_teacher_are_seen_by_nobody(distil, teacher, tmp_path):
    # Vocabularies are padded to a multiple of 64, and nothing says that the spare rows are unlikely.
    real = BertForMaskedLM.from_pretrained(teacher)
    config = BertConfig.from_folder(teacher, vocab_size=real.config.vocab_size + 44)
    padded = BertForMaskedLM(config)
    state = padded.state_dict()
    for name, tensor in real.state_dict().items():
        state[name][: len(tensor)] = tensor
    state["cls.predictions.bias"][real.config.vocab_size :] = 20.0
    padded.load_state_dict(state)
    padded.save_pretrained(tmp_path / "padded", load_tokenizer(teacher))
    options = ("--masking", "teacher", "--entropy-warmup", 0, *FEW)
    one = distil(*options, out="one")
    other = distil(*options, "--teacher", tmp_path / "padded", out="other")
    for name in ("teacher_loss", "teacher_accuracy", "kl", "agreement", "held_out_loss"):
        assert one.log[-1][name] == pytest.approx(other.log[-1][name], rel=1e-5), name


def asked(distil, monkeypatch, *options):
    """What each step of a run asks its teacher, which it leaves alone; and the run."""
    calls = []
    original = distill.Distillation.update

    def counted(self):
        teacher = self.teacher
        seen = {"encoder": 0, "head": []}
        before = [tensor.clone() for tensor in teacher.state_dict().values()]
        head = lambda _, x, y: seen["head"].append(tuple(y.shape))  # noqa: E731
        encoder = lambda *_: seen.update(encoder=seen["encoder"] + 1)  # noqa: E731
        hooks = [teacher.bert.register_forward_hook(encoder)]
        hooks += [teacher.cls["predictions"].register_forward_hook(head)]
        original(self)
        for hook in hooks:
            hook.remove()
        after = list(teacher.state_dict().values())
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "a teacher does not learn"
        assert not teacher.training and all(p.grad is None for p in teacher.parameters())
        calls.append(seen)

    monkeypatch.setattr(distill.Distillation, "update", counted)
    run = distil(*options)
    return calls, run


@pytest.mark.parametrize("mask", ["random", "teacher"])
def test_a_step_asks_the_teacher_once_at_the_masked_places(distil, mask, monkeypatch):
    options = ["--masking", mask, *TABLE, *([] if mask == "random" else ["--entropy-warmup", 0])]
    calls, run = asked(distil, monkeypatch, *options)
    shape = (8, run.masks_per_row, len(run.vocab))
    assert calls == [{"encoder": 1, "head": [shape]}] * 12, "one forward pass, its head on masked places only"


def test_without_a_table_a_step_asks_the_teacher_for_the_candidates_alone(distil, monkeypatch):
    options = ["--masking", "teacher", "--kd-alpha", 0, "--entropy-warmup", 2, "--candidates", 1.5, *FEW]
    calls, run = asked(distil, monkeypatch, *options)
    shape = (8, 6, len(run.vocab))  # 1.5 times 4 candidates per row
    assert calls == 2 * [{"encoder": 0, "head": []}] + 6 * [{"encoder": 1, "head": [shape]}]


def test_a_table_is_made_where_the_text_is_read_more_often_than_it_costs_and_the_summary_says_so(
    distil, capsys
):
    # 8 rows, 8 per step: a step is an epoch. Blanks everywhere cost ceil(1 / .15) = 7 passes, visible text 1.
    given = ["--masking", "teacher", "--max-tokens", 240, "--entropy-warmup", 1]
    cases = [("blank", 8, False), ("blank", 9, True), ("visible", 2, False), ("visible", 3, True)]
    for reading, steps, pays in cases:
        run = distil(*given, "--reading", reading, "--steps", steps, out=f"{reading} {steps}")
        assert (run.table is not None) == pays, f"{steps} steps, of which the first masks at random"
        said = "entropy the teacher's come from a table" if pays else "the teacher's are read in every step"
        assert said in capsys.readouterr().out
    low = ["--masking", "reducible", "--reading", "memory", "--steps", 2, "--max-tokens", 240]
    run = distil(*low, "--entropy-warmup", 1, out="memory")
    assert run.table is not None, "memory knows every token, so the teacher must be asked for every token"


def test_masks_by_a_teacher_that_is_not_learned_from(distil, monkeypatch):
    # The candidate with the highest entropy by hand is what `high` picks, from the teacher, in the step.
    steps = []
    choose = pretraining.Pretraining.choose
    read = distill.Distillation.read_entropies

    def noted(self, model, ids, candidates):
        assert model is self.teacher
        steps.append(candidates)
        return read(self, model, ids, candidates)

    def checked(self, ids, index, rng):
        selected = choose(self, ids, index, rng)
        wanted = entropies_by_hand(self.teacher, ids, steps[-1], self.mask_id).masked_fill(~steps[-1], -1)
        least = wanted.topk(self.masks_per_row).values[:, -1:]
        assert (wanted[selected].view(len(ids), -1) >= least - 1e-4).all()
        return selected

    monkeypatch.setattr(distill.Distillation, "read_entropies", noted)
    monkeypatch.setattr(pretraining.Pretraining, "choose", checked)
    distil("--masking", "teacher", "--kd-alpha", 0, "--select", "high", "--entropy-warmup", 0, *FEW)
    assert len(steps) == 8


# ---- the table of entropies ----


def entropies_by_hand(model, ids, hidden, mask_token_id):
    """In float64, with some places hidden: [B, T]"""
    with torch.no_grad():
        log_p = model(ids.masked_fill(hidden, mask_token_id)).double().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def test_the_blank_entropy_of_every_position_hides_each_once(teacher, monkeypatch):
    model = BertForMaskedLM.from_pretrained(teacher)
    tokenizer = load_tokenizer(teacher)
    cls, sep, mask = [tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[MASK]")]
    ids = torch.randint(5, tokenizer.get_vocab_size(), (3, 32), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = cls
    ids[:, -1] = sep
    eligible = masking.eligible_positions(ids, [cls, sep])
    groups = []
    original = masking.blank_entropy

    def noted(*given):
        groups.append(given[2])
        return original(*given)

    monkeypatch.setattr(masking, "blank_entropy", noted)
    rng = torch.Generator().manual_seed(1)
    entropy = distill.blank_entropy_everywhere(model, ids, eligible, 0.15, mask, rng)
    assert len(groups) == 7, "ceil(1 / 0.15) passes"
    assert torch.equal(sum(group.int() for group in groups), eligible.int()), "every position is hidden once"
    sizes = torch.stack([group.sum(-1) for group in groups])
    assert (sizes.amax(0) - sizes.amin(0) <= 1).all(), f"groups of about equal size: {sizes.tolist()}"
    for group in groups:
        true = entropies_by_hand(model, ids, group, mask)
        assert (entropy - true)[group].abs().max() < 1e-4, "the entropy with this group hidden"


@pytest.mark.parametrize("reading", ["visible", "blank"])
def test_the_table_holds_what_the_teacher_says(distil, reading, monkeypatch):
    monkeypatch.setattr(distill.Distillation, "epochs_with_entropy", lambda self: 8.0)  # often enough
    run = distil("--masking", "teacher", "--reading", reading, "--entropy-warmup", 0, "--steps", 1, *FEW)
    assert run.table.dtype == np.float16 and run.table.shape == (run.row_count, 32)
    ids = pretraining.take_rows(run.train_ids, np.arange(run.row_count), 32, run.cls_id, run.sep_id)
    if reading == "visible":
        fresh = entropies_by_hand(run.teacher, ids, torch.zeros_like(ids, dtype=torch.bool), run.mask_id)
    else:
        rng = torch.Generator().manual_seed(0)
        fresh = distill.blank_entropy_everywhere(run.teacher, ids, run.maskable(ids), 0.15, run.mask_id, rng)
    error = (torch.from_numpy(np.array(run.table)) - fresh).abs().max()
    assert error <= 2**-11 * fresh.max() + 1e-4, "float16 keeps 11 bits"


@pytest.mark.parametrize("mask", ["teacher", "reducible"])
def test_masks_are_where_the_teacher_or_the_difference_says(distil, mask, monkeypatch):
    steps = []
    choose = pretraining.Pretraining.choose
    select = masking.select_positions

    def seen(rule, eligible, ratio, entropy=None, candidates=None, *others, **settings):
        selected = select(rule, eligible, ratio, entropy, candidates, *others, **settings)
        steps.append((entropy, candidates))
        return selected

    def checked(self, ids, index, rng):
        selected = choose(self, ids, index, rng)
        entropy, candidates = steps[-1]
        known = torch.from_numpy(self.table[index]).float()
        wanted = known
        if mask == "reducible":
            student = entropies_by_hand(self.model, ids, candidates, self.mask_id).float()
            wanted = (student - known).clamp_min(0)
        assert (entropy - wanted)[candidates].abs().max() < 1e-3, "max(0, H student - H teacher), in nats"
        best = wanted.masked_fill(~candidates, -1).topk(self.masks_per_row).values[:, -1:]
        assert (wanted[selected].view(len(ids), -1) >= best - 1e-3).all(), "the candidates with the highest"
        return selected

    monkeypatch.setattr(masking, "select_positions", seen)
    monkeypatch.setattr(pretraining.Pretraining, "choose", checked)
    distil("--masking", mask, "--select", "high", "--entropy-warmup", 0, *TABLE)
    assert len(steps) >= 12


def test_a_table_is_computed_once_and_an_interrupted_one_not_at_all(distil, tmp_path, monkeypatch):
    monkeypatch.setattr(
        distill.Distillation, "epochs_with_entropy", lambda self: 8.0
    )  # often enough for a table
    options = ["--masking", "teacher", "--entropy-warmup", 0, "--cache", tmp_path / "cache", "--steps", 1]
    original = distill.blank_entropy_everywhere
    calls = []

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(distill, "blank_entropy_everywhere", interrupted)
    with pytest.raises(SystemExit, match="stopped"):
        distil(*options, out="one")
    assert not list((tmp_path / "cache").glob("*.npy")), "half a table is none"
    run = distil(*options, out="one")
    assert len(calls) == 2 + -(-run.row_count // 64), "64 rows at a time, from the beginning"
    distil(*options, "--kd-alpha", 0, "--seed", 5, out="two")
    assert len(calls) == 2 + -(-run.row_count // 64), "another run with this teacher and text reads the table"


@pytest.fixture
def one_thread():
    """As in the nursery's processes: the number of threads decides in which order numbers are added."""
    torch.set_num_threads(1)


def test_two_runs_that_make_a_table_at_once_do_not_disturb_each_other(
    distil, tmp_path, monkeypatch, nursery, teacher, corpus, one_thread
):
    options = ["--masking", "teacher", "--entropy-warmup", 0, *TABLE]
    given = [*options, "--cache", tmp_path / "cache"]
    whole = distil(*options, "--cache", tmp_path / "other cache", out="whole")
    original = distill.blank_entropy_everywhere

    def overtaken(*pieces):
        monkeypatch.setattr(distill, "blank_entropy_everywhere", original)
        result = original(*pieces)
        argv = ["--corpus", corpus, "--teacher", teacher, *NO_VOCAB, *given, "--out", tmp_path / "second"]
        nursery.complete("distill.py", argv)  # while the first is at work
        return result

    monkeypatch.setattr(distill, "blank_entropy_everywhere", overtaken)
    distil(*given, out="first")
    for name in ("first", "second"):
        assert same(tmp_path / "whole", tmp_path / name), f"the {name} run should have read a whole table"
    assert np.isfinite(whole.table).all()


def change_config(folder, **changes):
    """Another config.json beside the same weights."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "change", [{"num_attention_heads": 4}, {"hidden_act": "relu"}, {"layer_norm_eps": 0.1}]
)
def test_a_teacher_with_another_config_has_another_table(distil, teacher, tmp_path, change):
    shutil.copytree(teacher, tmp_path / "teacher")
    options = ["--teacher", tmp_path / "teacher", "--masking", "teacher", "--entropy-warmup", 0, *TABLE]
    one = distil(*options, out="one")
    change_config(tmp_path / "teacher", **change)
    other = distil(*options, out="other")
    assert np.abs(np.array(one.table) - np.array(other.table)).max() > 0.01, "the old table is not used"
    ids = pretraining.take_rows(other.train_ids, np.arange(other.row_count), 32, other.cls_id, other.sep_id)
    rng = torch.Generator().manual_seed(0)
    fresh = distill.blank_entropy_everywhere(
        other.teacher, ids, other.maskable(ids), 0.15, other.mask_id, rng
    )
    assert np.abs(other.table - fresh.numpy()).max() < 0.01


# ---- resume ----


def sharpened(teacher, folder):
    """The same teacher, but for its weights."""
    model = BertForMaskedLM.from_pretrained(teacher)
    for parameter in model.parameters():
        parameter.data *= 1.5
    model.save_pretrained(folder, load_tokenizer(teacher))


@pytest.mark.parametrize("what", ["weights", "config"])
def test_a_resumed_run_takes_no_other_teacher(distil, teacher, tmp_path, what):
    shutil.copytree(teacher, tmp_path / "teacher")
    with killed_in_step(7):
        distil("--teacher", tmp_path / "teacher", "--masking", "random", *FEW)
    before = log(tmp_path / "out")
    if what == "weights":
        sharpened(teacher, tmp_path / "teacher")
    else:
        change_config(tmp_path / "teacher", hidden_act="relu")
    with pytest.raises(SystemExit, match="out began with another teacher: put it back"):
        distil("--resume")
    assert log(tmp_path / "out") == before


def test_a_teacher_that_was_moved_is_the_same_teacher(distil, teacher, tmp_path):
    shutil.copytree(teacher, tmp_path / "teacher")
    options = ["--teacher", tmp_path / "teacher", "--masking", "teacher", "--entropy-warmup", 0, *TABLE]
    distil(*options, out="whole")
    with killed_in_step(7):
        distil(*options, out="broken")
    (tmp_path / "teacher").rename(tmp_path / "elsewhere")
    distil("--resume", "--teacher", tmp_path / "elsewhere", out="broken")
    assert same(tmp_path / "whole", tmp_path / "broken")


# ---- bad input ----

CONFIGS = {
    "relu": {"hidden_act": "relu"},
    "norm": {"layer_norm_eps": 0.1},
    "heads": {"num_attention_heads": 4},
}
BAD = {
    "no teacher": (["--teacher", ""], "needs --teacher FOLDER"),
    "teacher missing": (["--teacher", "nowhere"], "nowhere"),
    "another vocabulary": (["--vocab", "other.txt"], "splits text into other pieces"),
    "another casing": (["--cased"], "--cased has no effect.*teacher brings its own: leave it out"),
    "a vocabulary to learn": (["--vocab-size", "400"], "--vocab-size has no effect.*teacher brings its own"),
    "alpha above 1": (["--kd-alpha", "2"], "--kd-alpha 2.0 must be from 0 to 1"),
    "temperature 0": (["--kd-temperature", "0"], "--kd-temperature 0.0 must be finite and at least"),
    "temperature nan": (["--kd-temperature", "nan"], "--kd-temperature nan must be finite and at least"),
    "temperature of nothing": (["--kd-alpha", "0", "--kd-temperature", "3"], "needs --kd-alpha above 0"),
    "widths": (["--size", "mini", "--student-init", "layers"], "hidden_size 256, the teacher 128"),
    "activations": (["--teacher", "relu", "--student-init", "layers"], "hidden_act gelu, the teacher relu"),
    "norms": (["--teacher", "norm", "--student-init", "embeddings"], "layer_norm_eps 1e-12, the teacher 0.1"),
    "heads": (["--teacher", "heads", "--student-init", "layers"], "num_attention_heads 2, the teacher 4"),
    "no start of its own": (["--init", "normal", "--student-init", "layers"], "--init has no effect"),
    "two starts": (["--from", "TEACHER", "--student-init", "layers"], "--student-init has no effect"),
    "rows too long": (["--seq-len", "600"], "rows of at most 512 tokens"),
    "memory of a teacher": (["--masking", "teacher", "--reading", "memory"], "no --reading memory"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_sentence(case, distil, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.txt").write_text(
        "\n".join([*SPECIAL_TOKENS, ".", *(x + c for x in ("", "##") for c in ascii_lowercase)])
    )
    for name, change in CONFIGS.items():
        shutil.copytree(teacher, tmp_path / name)
        change_config(tmp_path / name, **change)
    options, sentence = BAD[case]
    with pytest.raises(SystemExit, match=sentence) as stop:
        distil(*(option.replace("TEACHER", str(teacher)) for option in options))
    assert "\n" not in stop.value.code.strip(), "one sentence"


def test_a_vocabulary_that_only_from_can_change_is_not_blamed_on_vocab(distil, train, tmp_path):
    train("--cased", "--steps", 1, out="mine", small=NO_VOCAB)
    with pytest.raises(SystemExit, match="splits text into other pieces.*another --teacher") as stop:
        distil("--from", tmp_path / "mine")
    assert "--vocab" not in stop.value.code, "it has no effect beside --from"


@pytest.mark.parametrize("known, said", [(16, True), (32, False), (None, False)])
def test_rows_longer_than_the_teachers_are_said(distil, teacher, tmp_path, capsys, known, said):
    shutil.copytree(teacher, tmp_path / "short")
    change_config(tmp_path / "short", trained_length=known)
    distil("--teacher", tmp_path / "short", "--masking", "random", "--seq-len", 32, *FEW)
    assert (
        "short has read rows of 16 tokens: places beyond are untrained" in capsys.readouterr().out
    ) == said


def test_a_teacher_that_answers_nan_is_refused(distil, teacher, tmp_path, corpus, cache):
    broken = BertForMaskedLM.from_pretrained(teacher)
    broken.cls["predictions"].bias.data[7] = float("inf")  # inf - inf is NaN
    broken.save_pretrained(tmp_path / "nan", load_tokenizer(teacher))
    given = ["--corpus", corpus, "--cache", cache, "--out", tmp_path / "out", *NO_VOCAB, *FEW]
    with pytest.raises(SystemExit, match="nan gives predictions that are not finite"):
        launch_distillation(*given, "--teacher", tmp_path / "nan", "--masking", "teacher")
