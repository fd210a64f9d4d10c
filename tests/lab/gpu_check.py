"""Do the programs work on this GPU, and how fast are they? By hand: `python tests/lab/gpu_check.py`.

One line per check, then a table of speeds, in at most ten minutes; the exit status is 1 if a check failed.
Nothing is downloaded: the text is made up. On a machine without a GPU it makes, in a small form, the checks
that a CPU can make: that tests this page and the programs' logic, and says nothing about a GPU.
"""

import argparse
import contextlib
import gc
import importlib.util
import io
import itertools
import os
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import train  # isort: skip (first: it sets how threads wait, before torch is imported)

import benchmark
import flops
import numpy as np
import torch
from sync import NoSync

import distill
import glue_eval
import masking
import model as bert

LATEST = 450  # seconds after which no other speed is measured: one may take two minutes to compile
NEAR = {"float32": 0.01, "bfloat16": 0.05, "float16": 0.02}  # nats from float32 on the CPU; float32 is TF32


# What others published, one card each, in masked-LM pretraining; the share of the peak is our count. Nothing
# is known for a T4, nor for models as small as tiny and mini.
PUBLIC = [["model", "card", "tokens/s", "MFU", "source"]]
PUBLIC += [["BERT-base, transformers", "A100", "111,000", "24%", "mosaicml/examples, from 11.5 h on 8 cards"]]
PUBLIC += [["BERT-large", "A100", "74,000", "45%", "NVIDIA DeepLearningExamples"]]
PUBLIC += [["BERT-large", "V100", "29,000", "43%", "NVIDIA DeepLearningExamples"]]
PUBLIC += [["133M, 33 tokens", "H100", "276,000", "22%", "Synthyra/SpeedrunningPLMs"]]
PUBLIC += [["Ettin 17M", "H100", "985,000", "7%", "arXiv 2507.11412: hours for 2T tokens on 4 cards"]]
PUBLIC += [["Ettin 32M", "H100", "655,000", "10%", "same"], ["Ettin 68M", "H100", "463,000", "20%", "same"]]
PUBLIC += [["Ettin 150M", "H100", "296,000", "28%", "same"]]

# ---- text and runs ----


def make_lab(device: str, folder: Path, batch_size: int):
    """What the checks share: a text, a vocabulary, a teacher, and the options of their runs."""
    lab = SimpleNamespace(folder=folder, start=time.perf_counter())
    lab.device, lab.dtype = train.pick_hardware(device, "auto")
    lab.cuda = lab.device.type == "cuda"
    lab.sizes = list(bert.SIZES) if lab.cuda else ["tiny"]
    lab.seq_len = 128 if lab.cuda else 32
    lab.batch_size = batch_size if lab.cuda else 8  # of the speeds
    lab.table = [["size", "program", "tokens/s", "MFU", "GiB"]]
    lab.float16_steps = 300 if lab.cuda else 10
    lab.seconds = 3.0 if lab.cuda else 0.1  # so long is a speed measured

    write_text(folder, stems=15258 if lab.cuda else 150, documents=500 if lab.cuda else 20)
    lab.options = ["--corpus", folder / "text.txt", "--vocab", folder / "vocab.txt"]
    lab.options += ["--cache", folder / "cache", "--device", device, "--seq-len", lab.seq_len]
    lab.options += ["--batch-size", 8, "--steps", 12, "--eval-every", 4]
    tokenizer = bert.load_tokenizer(folder / "vocab.txt")
    lab.vocab_size = tokenizer.get_vocab_size()
    config = bert.BertConfig.preset("tiny", vocab_size=lab.vocab_size, initializer_range=0.1)
    bert.BertForMaskedLM(config).save_pretrained(folder / "teacher", tokenizer)
    return lab


def write_text(folder: Path, stems: int, documents: int):
    """vocab.txt and text.txt: words of one or two pieces, the n-th as frequent as 1 / n."""
    letters = itertools.product(string.ascii_lowercase, repeat=3)
    pieces = ["".join(three) for three in itertools.islice(letters, stems)]
    vocabulary = [*bert.SPECIAL_TOKENS, *pieces, *(f"##{piece}" for piece in pieces)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    words = [piece if i % 2 else piece + piece for i, piece in enumerate(pieces)]
    share = 1 / np.arange(1, stems + 1)
    drawn = np.random.default_rng(0).choice(words, (documents, 800), p=share / share.sum())
    (folder / "text.txt").write_text("\n\n".join(map(" ".join, drawn)) + "\n")


class SameMasks(train.Pretraining):
    """Masks drawn on the CPU, the same for every device: a GPU's own random numbers are others."""

    options = ["--masking", "random", "--corruption", "100-0-0", "--dtype", "float32"]

    def choose(self, ids, index, rng):
        rng = torch.Generator().manual_seed(self.step)
        eligible = self.maskable(ids.cpu())
        selected = masking.select_positions("random", eligible, self.o.mask_ratio, generator=rng)
        return selected.to(self.device)


class Killed(SameMasks):
    """Dies in the middle of step 6."""

    def choose(self, ids, index, rng):
        if self.step == 5:
            os.kill(os.getpid(), 9)
        return super().choose(ids, index, rng)


class Stopped(SameMasks):
    """Is stopped by hand in the middle of step 10."""

    def choose(self, ids, index, rng):
        if self.step == 9:
            raise KeyboardInterrupt
        return super().choose(ids, index, rng)


def prepare(lab, program, *options, kind=train.Pretraining):
    """A run of train.py or distill.py before its first step."""
    parser = train.make_parser("")
    if program == "distill.py":
        parser = distill.make_parser()
        kind = distill.Distillation
    options = [lab.folder / "teacher" if option == "TEACHER" else option for option in options]
    o = parser.parse_args(list(map(str, [*lab.options, *options])))
    kind.check(o, parser, 1)
    with contextlib.redirect_stdout(io.StringIO()):
        return kind(o)


def launch(kind, *options):
    """train.py from start to end -> the run, silently. Raises SystemExit where it ends with a sentence."""
    with contextlib.redirect_stdout(io.StringIO()):
        return train.main(train.make_parser(""), kind, list(map(str, options)))


def fine_tuning(lab, size: str):
    """One step of glue_eval.py on 32 made-up rows, as a function; and its tokens, without padding."""
    config = bert.BertConfig.preset(size, vocab_size=lab.vocab_size)
    model = bert.BertForSequenceClassification(config).to(lab.device).train()
    optimizer = train.make_optimizer(model, 1e-4)
    scaler = torch.amp.GradScaler(lab.device.type, enabled=lab.dtype == torch.float16)
    rng = np.random.default_rng(0)
    lengths = rng.integers(lab.seq_len // 4, lab.seq_len + 1, 32)
    ids = [rng.integers(5, lab.vocab_size, length) for length in lengths]
    rows = [np.stack((row, row % 2)).astype(np.int32) for row in ids]  # any segments do
    labels = rng.integers(0, 2, 32)
    return lambda: glue_eval.update(model, optimizer, scaler, rows, labels, lab), int(lengths.sum())


# ---- no step waits for the GPU ----


@contextlib.contextmanager
def no_waiting(lab):
    """An error where the host waits for the GPU; on a CPU, where it would wait for one."""
    if not lab.cuda:
        with NoSync():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def variants(lab) -> list[str]:
    """Every masking with every reading, and what can be added to them."""
    by_entropy = "--max-tokens 2000 --entropy-warmup 0 --reading"
    own = f"train.py --masking self {by_entropy}"
    reducible = f"distill.py --masking reducible --teacher TEACHER {by_entropy}"
    table = f"distill.py --masking teacher --teacher TEACHER --steps 100 {by_entropy}"  # many epochs
    in_step = table.replace("--max-tokens 2000", "--max-tokens 0").replace("--steps 100", "--steps 3")
    lines = ["train.py --masking random", "train.py --masking random --whole-word --corruption 100-0-0"]
    for reading in ("blank", "visible", "memory"):
        lines += [f"{own} {reading}", f"{reducible} {reading}"]
    for reading in ("blank", "visible"):
        lines += [f"{in_step} {reading}"]
        lines += [f"{table} {reading}"]
    lines += [f"{own} blank --whole-word"]
    lines += [f"{own} memory --accumulate 2 --dropout 0.1", f"{table} blank --accumulate 2 --kd-alpha 1"]
    lines += [f"{own} blank --dtype {dtype}" for dtype in ("float32", "float16")]
    if lab.cuda:
        lines += [f"{own} blank --compile"]
    return lines


def check_waits(lab) -> str:
    """The host prepares a step while the GPU computes the last one: an operation that waits ends that."""
    count = 0
    for line in variants(lab):
        run = prepare(lab, *line.split())
        run.update()  # what is made once, in the first step, may wait
        by_entropy = [rule for rule in masking.RULES if rule != "random"]
        for rule in ["random"] if run.o.masking == "random" else by_entropy:
            run.o.select = rule
            try:
                with no_waiting(lab):
                    run.update()
            except (AssertionError, RuntimeError) as error:
                raise AssertionError(f"{line} --select {rule}: {error}") from error
            count += 1

    fine_tune, _ = fine_tuning(lab, "tiny")
    fine_tune()
    with no_waiting(lab):
        fine_tune()
    return f"ok: {count} steps of {len(variants(lab))} kinds of runs, by every rule, and one of fine-tuning"


# ---- the same numbers on every device ----


def losses(lab, device: str, dtype: str, kind=SameMasks, steps: int = 30) -> list[float]:
    """The training losses of so many steps, from a start that has everything to learn."""
    options = [*SameMasks.options, "--init", "normal", "--steps", steps]
    run = prepare(lab, "train.py", *options, "--device", device, "--dtype", dtype, kind=kind)
    found = []
    for _ in range(steps):
        run.update()
        found.append(run.means()["loss"])
        run.sums.clear()
        run.seen.clear()
    return found


def check_losses(lab) -> str:
    """TF32, bfloat16 and float16 round: the losses must stay near those of float32 on the CPU."""
    reference = losses(lab, "cpu", "float32")
    fall = reference[0] - reference[-1]
    assert fall > 0.2, f"in 30 steps on the CPU the loss fell by only {fall:.2f} nats"
    dtypes = ["float32", "bfloat16", "float16"] if lab.cuda else ["bfloat16", "float16"]
    if lab.cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        dtypes.remove("bfloat16")

    farthest = {}
    for dtype in dtypes:
        pairs = zip(losses(lab, str(lab.device), dtype), reference, strict=True)
        farthest[dtype] = max(abs(loss - other) for loss, other in pairs)
    note = ", ".join(f"{dtype} {distance:.4f}" for dtype, distance in farthest.items())
    wrong = [dtype for dtype in dtypes if not farthest[dtype] < NEAR[dtype]]  # NaN is not below anything
    assert not wrong, f"too far from float32 on the CPU: {', '.join(wrong)}; nats at most: {note}"
    return f"ok: fell by {fall:.2f} nats; farthest from float32 on the CPU: {note}"


class PlainLoss(SameMasks):
    """Leaves the loss in float16 to autograd."""

    def loss(self, ids, places, labels):
        with self.autocast():
            logits = self.model(ids, places=places)
        loss, correct = train.mlm_loss(logits, labels)
        return (
            loss,
            {"loss": loss.detach(), "accuracy": correct},
            torch.zeros(places.shape, device=self.device),
        )


def check_float16(lab) -> str:
    """MaskedLoss in float16 must learn what cross entropy of float32 logits does: small gradients count."""
    steps = lab.float16_steps
    curves = [losses(lab, str(lab.device), "float16", kind, steps) for kind in (SameMasks, PlainLoss)]
    farthest = max(abs(one - other) for one, other in zip(*curves, strict=True))
    what = f"over {steps} steps the losses differ by {farthest:.4f} nats at most"
    assert farthest < 0.01, what
    return f"ok: {what}; they fell by {curves[0][0] - curves[0][-1]:.2f}"


# ---- runs that end early ----


def check_resume(lab) -> str:
    """Killed on the GPU, resumed and stopped on the CPU, resumed on the GPU: like a run without a stop."""
    start = [*lab.options, *SameMasks.options]
    whole = launch(SameMasks, *start, "--out", lab.folder / "whole")
    out = lab.folder / "moved"
    code = "import sys, gpu_check as page; page.launch(page.Killed, *sys.argv[1:])"
    command = [sys.executable, "-c", code, *start, "--out", out]
    killed = subprocess.run(
        list(map(str, command)), cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert killed.returncode and (out / "checkpoint.pt").exists(), f"nothing was left: {killed.stderr[-300:]}"
    try:
        launch(Stopped, "--resume", "--out", out, "--device", "cpu")
    except SystemExit as stop:
        assert "--resume" in str(stop), stop
    run = launch(SameMasks, "--resume", "--out", out, "--device", lab.device)

    pairs = zip(run.log, whole.log, strict=True)
    distance = max(abs(one["held_out_loss"] - other["held_out_loss"]) for one, other in pairs)
    what = f"held-out losses differ by {distance:.2g} nats from those of a run without a stop"
    assert distance <= (NEAR["float32"] if lab.cuda else 0.0), what  # a GPU adds up in no fixed order
    return f"ok: {what}"


def check_out_of_memory(lab) -> str:
    """A step that is too large ends in one sentence that says what to do."""
    if not lab.cuda:
        return "left out: it needs a GPU"
    options = [*lab.options, "--masking", "random", "--size", "base", "--batch-size", 256]
    sentence = "nothing, for a step of base fitted into 2% of the memory"
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        launch(train.Pretraining, *options, "--out", lab.folder / "large")
    except SystemExit as stop:
        sentence = str(stop)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory; choose" in sentence and "\n" not in sentence, f"it said {sentence}"
    return f"ok: it said {sentence}"


# ---- speed: each returns a step as a function, its tokens, and operations per token ----


def pretraining(lab, size, *options):
    """train.py."""
    rows = ["--size", size, "--batch-size", lab.batch_size, "--steps", 10**6]
    run = prepare(lab, "train.py", *rows, *options)
    return run.update, lab.batch_size * lab.seq_len, flops.flops_per_token(vars(run.o), run.model.config)


def theirs(lab, size):
    """BertForMaskedLM of transformers; its rows are masked beforehand."""
    import transformers

    settings = SimpleNamespace(size=size, vocab_size=lab.vocab_size)
    model = transformers.BertForMaskedLM(benchmark.their_config(settings, 0.0)).to(lab.device).train()
    ids = torch.randint(5, lab.vocab_size, (lab.batch_size, lab.seq_len))
    selected = masking.select_positions("random", ids > 4, 0.15)
    corrupted, labels = masking.corrupt(ids, selected, 4, lab.vocab_size, range(5))
    batch = {"input_ids": corrupted, "labels": labels}
    steps = benchmark.their_step(model, lab.dtype, lambda i: batch)
    return lambda: steps(1), ids.numel(), 0


def programs(lab) -> dict:
    """{name in the table: a function of (lab, size)}"""
    random = ("--masking", "random")
    found = {"train.py, random masks": lambda lab, size: pretraining(lab, size, *random)}
    found["train.py, self, blank"] = lambda lab, size: pretraining(lab, size, "--entropy-warmup", 0)
    if lab.cuda:
        found["train.py, random, --compile"] = lambda lab, size: pretraining(lab, size, *random, "--compile")
    if lab.cuda and importlib.util.find_spec("transformers"):
        found["transformers, random masks"] = theirs
    found["glue_eval.py, 32 rows"] = lambda lab, size: (*fine_tuning(lab, size), 0)
    return found


def measure(lab, build, size) -> list[str]:
    """Tokens/s, share of the card's peak (MFU) where that is known, and GiB of its memory at most."""
    wait = torch.cuda.synchronize if lab.cuda else torch.cpu.synchronize
    step, tokens, operations = build(lab, size)
    for _ in range(5):  # the first steps compile, and fill caches
        step()
    wait()
    if lab.cuda:
        torch.cuda.reset_peak_memory_stats()

    steps = 0
    start = time.perf_counter()
    while time.perf_counter() - start < lab.seconds:
        for _ in range(5):
            step()
        wait()
        steps += 5
    speed = tokens * steps / (time.perf_counter() - start)
    peak = flops.peak_flops(benchmark.processor_name(lab.device))
    share = f"{operations * speed / peak:.1%}" if peak and operations else ""
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if lab.cuda else ""
    return [f"{speed:,.0f}", share, memory]


def check_speed(lab) -> str:
    """Makes the table. A step that does not fit into the card's memory is no failure."""
    failed = []
    for size, (name, build) in itertools.product(lab.sizes, programs(lab).items()):
        figures = ["left out: no time", "", ""]
        try:
            if time.perf_counter() - lab.start < LATEST:
                figures = measure(lab, build, size)
        except torch.OutOfMemoryError:
            figures = ["out of memory", "", ""]
        except Exception as error:
            figures = ["failed", "", ""]
            failed.append(f"{size}, {name}: {begin(error)}")
        lab.table.append([size, name, *figures])
        clean_up(lab)
    assert not failed, "; ".join(failed)
    return "ok: see the table"


# ---- the program ----

CHECKS = {
    "no step waits": check_waits,
    "losses of 30 steps": check_losses,
    "float16": check_float16,
    "kill and resume": check_resume,
    "out of memory": check_out_of_memory,
    "speed": check_speed,
}


def begin(error: BaseException) -> str:
    """The kind of an error, and the first line of its message."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def clean_up(lab):
    """Give back the memory of what is no longer used, and forget what was compiled."""
    torch.compiler.reset()
    gc.collect()
    if lab.cuda:
        torch.cuda.empty_cache()


def main(argv=None) -> int:
    """All checks; returns 1 if one failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--device", default="auto", help="cpu, or cuda (default: cuda if there is one)")
    parser.add_argument("--batch-size", type=int, default=256, help="rows per step of the table, on a GPU")
    o = parser.parse_args(argv)

    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        lab = make_lab(o.device, Path(folder), o.batch_size)
        where = (
            f"CUDA {torch.version.cuda}" if lab.cuda else "NO GPU: only what a CPU can check, in a small form"
        )
        name = benchmark.processor_name(lab.device)
        print(f"{name}, {str(lab.dtype)[6:]}, torch {torch.__version__}; {where}\n", flush=True)
        for name, check in CHECKS.items():
            try:
                print(f"{name}: {check(lab)}", flush=True)
            except (Exception, SystemExit) as error:
                failed += 1
                print(f"{name}: FAILED: {begin(error)}", flush=True)
            clean_up(lab)

    print(f"\n{lab.batch_size} x {lab.seq_len} tokens per step, {lab.vocab_size:,} word pieces:\n")
    print(f"{glue_eval.markdown(lab.table)}\n")
    print(f"For comparison, as published:\n\n{glue_eval.markdown(PUBLIC)}\n")
    print(f"{failed} checks failed; {time.perf_counter() - lab.start:.0f} s in all")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
