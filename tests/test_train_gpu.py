"""What makes a run fast on a GPU, tested without one: no step waits, float16, --compile."""

import sys

import pytest
import torch
import torch._dynamo
from conftest import NO_VOCAB, PROJECT, killed_in_step, log, same
from sync import NoSync

import distill
import train as program
from masking import RULES

# ---- no step waits for the device ----


@pytest.fixture
def prepared(corpus, cache, tmp_path, teacher):
    """prepared("train.py", "--steps", 5) -> a run before its first step."""

    def prepare(name, *options):
        parser = program.make_parser("test")
        kind = program.Pretraining
        vocabulary = ["--vocab-size", 300]
        if name == "distill.py":
            parser = distill.make_parser()
            kind = distill.Distillation
            vocabulary = ["--teacher", teacher]
        given = ["--corpus", corpus, "--cache", cache, "--out", tmp_path / "out", *vocabulary, *NO_VOCAB]
        given += ["--max-tokens", 2000]
        options = [teacher if option == "TEACHER" else option for option in options]
        o = parser.parse_args(list(map(str, [*given, *options])))
        kind.check(o, parser, 1)
        return kind(o)

    return prepare


@pytest.fixture
def no_waiting(monkeypatch):
    """A context in which whatever would wait for a GPU is an error, and so is sending but by `send`."""
    sending = []
    send = program.Pretraining.send
    to = torch.Tensor.to

    def send_noted(self, array):
        sending.append(1)
        try:
            return send(self, array)
        finally:
            sending.pop()

    def refuse(*given, **settings):
        raise AssertionError("the host reads numbers from the device")

    def move(self, *given, **settings):
        caller = sys._getframe(1).f_code.co_filename
        ours = caller.startswith(str(PROJECT)) and "site-packages" not in caller  # PyTorch does so, in vain
        moves = any(isinstance(place, (torch.device, str)) for place in (*given, *settings.values()))
        assert sending or not (ours and moves), "something is sent to a device, and not by send"
        return to(self, *given, **settings)

    def enter():
        monkeypatch.setattr(program.Pretraining, "send", send_noted)
        monkeypatch.setattr(torch.Tensor, "to", move)
        for name in ("tolist", "numpy", "cpu", "__array__"):  # unseen where the tensor is on the CPU
            monkeypatch.setattr(torch.Tensor, name, refuse)
        return NoSync()

    return enter


SELF = ("train.py", "--entropy-warmup", 0)
KD = ("distill.py", "--masking", "teacher", "--entropy-warmup", 0)
TABLE = ("--max-tokens", 240, "--steps", 20)  # 8 rows, read in every step: a table pays
STEPS = [("train.py", "--masking", "random"), (*SELF, "--reading", "visible"), (*SELF, "--reading", "memory")]
STEPS += [(*SELF, "--select", rule) for rule in RULES if rule != "random"]
STEPS += [("train.py", "--masking", "random", "--whole-word"), (*SELF, "--whole-word")]
STEPS += [(*SELF, "--reading", "memory", "--whole-word", "--accumulate", 2)]
STEPS += [(*SELF, "--reading", "visible", "--whole-word", "--select", "mid", "--corruption", "100-0-0")]
STEPS += [(*SELF, "--accumulate", 4, "--dropout", 0.1), (*SELF, "--dtype", "bfloat16")]
STEPS += [(*SELF, "--dtype", "float16"), (*SELF, "--mask-ratio", 0.4)]
STEPS += [KD, (*KD, "--reading", "visible")]
STEPS += [(*KD, *TABLE), (*KD, *TABLE, "--reading", "visible", "--whole-word")]
STEPS += [(*KD, "--accumulate", 2, "--kd-alpha", 1), (*KD, "--dtype", "float16"), (*KD, "--kd-alpha", 0)]
STEPS += [("distill.py", "--masking", "random", "--kd-alpha", 0)]
STEPS += [("distill.py", "--entropy-warmup", 0, "--student-init", "layers"), (*KD, "--masking", "reducible")]


@pytest.mark.parametrize("options", STEPS, ids=lambda options: " ".join(map(str, options)))
def test_no_step_waits_for_the_device(prepared, no_waiting, options):
    run = prepared(*options)
    with no_waiting():
        for _ in range(3):
            run.update()
    assert run.step == 3


WAITS = {
    "item": lambda selected: selected.sum().item(),
    "branch": lambda selected: 1 if selected.any() else 0,
    "boolean index": lambda selected: selected[selected],
    "nonzero": lambda selected: selected.nonzero(),
    "list": lambda selected: selected.tolist(),
    "copy": lambda selected: selected.to("cpu"),
}


@pytest.mark.parametrize("what", WAITS)
def test_a_wait_in_a_step_is_noticed(prepared, no_waiting, monkeypatch, what):
    choose = program.Pretraining.choose

    def waiting(self, *given):
        selected = choose(self, *given)
        WAITS[what](selected)
        return selected

    run = prepared(*SELF)
    monkeypatch.setattr(program.Pretraining, "choose", waiting)
    with pytest.raises(AssertionError, match="wait|reads numbers|not by send"), no_waiting():
        run.update()


# ---- float16 ----


@pytest.mark.parametrize("masking", ["random", "self"])
def test_float16_trains_like_float32(train, masking):
    options = ("--masking", masking, "--steps", 12, "--eval-every", 4)
    half = train(*options, "--dtype", "float16", out="half")
    full = train(*options, "--dtype", "float32", out="full")
    assert half.dtype == torch.float16 and half.scaler.get_scale() == 2**16, "no step was skipped"
    for one, other in zip(half.log, full.log, strict=True):
        names = ("held_out_loss",) if masking == "self" else ("held_out_loss", "loss")  # masks may differ
        for name in names if one["step"] else ("held_out_loss",):
            assert one[name] == pytest.approx(other[name], abs=0.01), name


def test_a_step_that_overflows_is_skipped_and_a_resumed_run_has_the_same_bits(train, tmp_path, monkeypatch):
    scaler = torch.amp.GradScaler
    high = {"init_scale": 2.0**24}  # so high that the first steps overflow
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda device, enabled: scaler(device, **high, enabled=enabled)
    )
    options = ("--masking", "random", "--dtype", "float16", "--eval-every", 1, "--steps", 10)
    run = train(*options, out="whole")
    taken = int(next(iter(run.optimizer.state.values()))["step"])
    assert 3 <= 10 - taken < 10, f"{taken} of 10 steps were taken; the first few should overflow"
    assert run.scaler.get_scale() == 2.0 ** (24 - (10 - taken)), "each overflow halves the scale"
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())

    with killed_in_step(3):
        train(*options, out="broken")
    train("--resume", out="broken")
    assert same(tmp_path / "whole", tmp_path / "broken"), "steps are skipped before and after the stop"


def test_a_run_that_began_without_float16_continues_with_it_on_an_older_card(train, monkeypatch):
    def card_with(dtype):
        monkeypatch.setattr(program, "pick_hardware", lambda *_: (torch.device("cpu"), dtype))

    card_with(torch.float32)
    with killed_in_step(5):
        train("--masking", "random", "--dtype", "auto", "--device", "auto")
    card_with(torch.float16)
    run = train("--resume")
    assert run.step == 8 and run.scaler.get_scale() == 2**16, "the scale starts where every scale starts"


def test_a_scale_that_falls_below_one_is_a_divergence_and_says_so(train, tmp_path, monkeypatch):
    loss = program.Pretraining.loss

    def too_steep(self, *batch):
        value, sums, entropy = loss(self, *batch)
        return value * 1e30, sums, entropy  # the loss that is logged stays an ordinary number

    monkeypatch.setattr(program.Pretraining, "loss", too_steep)
    options = ("--masking", "random", "--dtype", "float16", "--steps", 20, "--eval-every", 10)
    with pytest.raises(SystemExit, match=r"diverged at step 20.*scale.*keeps step 10.*--dtype float32"):
        train(*options)
    assert log(tmp_path / "out")[-1]["step"] == "10", "ten overflows from 2^16 on are no divergence yet"


# ---- torch.compile ----


@pytest.fixture
def traced(monkeypatch):
    """torch.compile that only traces, without breaks: no compiler is needed. Counts the graphs."""
    compile_ = torch.compile  # Module.compile calls it, too
    counts = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counts.clear()
    monkeypatch.setattr(torch, "compile", lambda part: compile_(part, backend="eager", fullgraph=True))
    yield lambda: counts["stats"]["unique_graphs"]
    torch._dynamo.reset()


COMPILED = [("train.py", "--entropy-warmup", 2, "--whole-word", "--accumulate", 2)]
COMPILED += [("distill.py", "--masking", "teacher", "--entropy-warmup", 0)]


@pytest.mark.parametrize("options", COMPILED, ids=lambda options: " ".join(map(str, options)))
def test_a_compiled_run_resumes_and_has_the_bits_of_a_plain_one(train, distil, tmp_path, traced, options):
    name, *options = options
    start = train if name == "train.py" else distil
    start(*options, out="plain")
    assert traced() == 0
    start(*options, "--compile", out="compiled")
    assert traced() > 0, "encoder and head should have been traced"
    assert same(tmp_path / "plain", tmp_path / "compiled")
    with killed_in_step(7):
        start(*options, "--compile", out="broken")
    start("--resume", out="broken")
    assert same(tmp_path / "plain", tmp_path / "broken")


def test_an_evaluation_compiles_nothing_anew(train, traced):
    graphs = []
    evaluate_and_save = program.Pretraining.evaluate_and_save

    def counted(self, speed=0.0):
        before = traced()
        evaluate_and_save(self, speed)
        graphs.append(traced() - before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program.Pretraining, "evaluate_and_save", counted)
        train("--compile", "--masking", "random")
    assert graphs == [0, 0, 0], "evaluations have other shapes, and run as they are"
    assert traced() == 3, "the encoder, the head and the loss, once each"


def test_where_compiling_fails_the_run_says_why_and_what_to_leave_out(train, monkeypatch):
    compile_ = torch.nn.Module.compile

    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_(module, backend=broken))
    with pytest.raises(SystemExit, match="--compile fails here .*no C.. compiler found.*leave it out"):
        train("--compile", "--masking", "random")
    torch._dynamo.reset()


# ---- what the start says ----


@pytest.mark.parametrize("rows, said", [(8, True), (512, False)])
def test_steps_too_small_for_a_card_are_noted_with_what_to_type(prepared, rows, said):
    run = prepared("train.py", "--masking", "random")
    run.o.batch_size = rows
    run.device = torch.device("cuda")
    assert ("--batch-size 256 --compile" in "\n".join(run.summary())) == said
