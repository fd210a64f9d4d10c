"""How fast are the programs, and what is each optimisation worth? By hand: `python tests/benchmark.py`.

Every variant is a process of its own, so that its memory can be measured and none changes another's. The
processes take turns: a few steps of one (the first is not counted), a few of the next, round after round;
medians of the rounds are compared, so that a machine that is slower for a minute is so for all. Text and
words are made up. On a CPU that is busy with other work use --threads 1: then processor time is measured,
not the time that passes. `--scaling FILES` measures instead what a larger text costs, on the first megabytes
of those files.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import itertools
import multiprocessing
import platform
import string
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import distill
import glue_eval
import masking
import model as bert
import train

TURN = 3  # steps of one variant, then comes the next
RUNS = {  # train.py and distill.py: what is added to the options of random masking
    "random masks": {"masking": "random"},
    "self, visible": {"reading": "visible"},
    "self, blank": {"reading": "blank"},
    "self, memory": {"reading": "memory"},
    "teacher, table": {"masking": "teacher", "kd_alpha": 0.0},
    "random masks, --compile": {"masking": "random", "compile": True},
}
THEIRS = ("transformers", "transformers, freed memory kept")
LADDER = (  # each has all above it
    "plain: float32, all logits, autograd",
    "head at masked positions only",
    "scaled_dot_product_attention",
    "bfloat16 (CPU: attention by hand again)",
    "loss and its gradient by slices",
    "fused AdamW",
    "freed memory kept (glibc)",
)
GLUE = ("glue_eval.py", "transformers, batch's longest", "transformers, padded to 128")
SCALE = (10, 50, 100, 200)  # megabytes of text

# ---- what is timed: each returns step(n), which makes n steps, and what else is known ----


def pretraining(name, o, folder):
    """The program's own step, as a user runs it."""
    kind = distill if "teacher" in name else train
    files = {"corpus": [f"{folder}/corpus.txt"], "vocab": f"{folder}/vocab.txt", "cache": f"{folder}/cache"}
    sizes = {
        "size": o.size,
        "seq_len": o.seq_len,
        "batch_size": o.batch,
        "steps": 10**6,
        "entropy_warmup": 0.0,
    }
    chosen = {"device": o.device, "dtype": o.dtype, "teacher": f"{folder}/{o.size}" * (kind is distill)}
    train.keep_memory()
    o = kind.Options(**files, **sizes, **chosen, **RUNS[name])
    run = (distill.Distillation if kind is distill else train.Pretraining)(o)
    if o.compile and run.model.bert._compiled_call_impl is None:
        raise RuntimeError("--compile does not work here, see above")
    return lambda n: [run.update() for _ in range(n)], run.work()


def rung(name, o, folder):
    """The step from scratch, with the optimisations of the ladder up to `name`."""
    has, (device, dtype) = LADDER.index(name), train.pick_hardware(o.device, o.dtype)
    if has >= 6:
        train.keep_memory()
    config = bert.BertConfig.preset(o.size, vocab_size=o.vocab_size, fast_attention=has >= 2)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    model = bert.BertForMaskedLM(config).to(device)
    optimizer = train.make_optimizer(model, 1e-3)
    if has < 5:
        optimizer = torch.optim.AdamW(optimizer.param_groups, lr=1e-3, foreach=False)
        for group in optimizer.param_groups:
            group["fused"] = False
    ids = torch.randint(5, o.vocab_size, (o.batch, o.seq_len), device=device)
    count = masking.mask_budget(o.seq_len, 0.15)

    def step():
        selected = masking.select_positions("random", ids > 0, 0.15)
        corrupted, labels = masking.corrupt(ids, selected, 4, o.vocab_size, range(5))
        places = masking.as_places(selected, count) if has >= 1 else None
        with torch.autocast(device.type, dtype, enabled=has >= 3 and dtype != torch.float32):
            logits = model(corrupted, positions=places)
        labels = labels if places is None else labels.gather(1, places)
        loss = (train.MaskedLoss.apply if has >= 4 else train.mlm_loss)(logits, labels)[0]
        (loss / selected.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return lambda n: [step() for _ in range(n)], 0


def their_config(o, dropout, **more):
    """transformers' configuration of one of our sizes."""
    from transformers import BertConfig

    ours = bert.BertConfig.preset(o.size, vocab_size=o.vocab_size)
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertConfig(**{name: getattr(ours, name) for name in names}, **rates, **more)


def their_step(model, dtype, batches):
    """step(n) as users of transformers write it; batches(i) is the i-th batch."""
    optimizer, device = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01), model.device

    def steps(n):
        for i in range(n):
            batch = {name: tensor.to(device) for name, tensor in batches(i).items()}
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return steps


def their_pretraining(name, o, folder):
    """BertForMaskedLM with its own masks and loss, without dropout, as train.py trains."""
    import transformers

    if name == THEIRS[1]:
        train.keep_memory()
    device, dtype = train.pick_hardware(o.device, o.dtype)
    model = transformers.BertForMaskedLM(their_config(o, 0.0)).to(device).train()
    collate = transformers.DataCollatorForLanguageModeling(
        transformers.AutoTokenizer.from_pretrained(f"{folder}/{o.size}")
    )
    rows = [{"input_ids": row} for row in torch.randint(5, o.vocab_size, (o.batch, o.seq_len)).tolist()]
    return their_step(model, dtype, lambda _: collate(rows)), 0


def glue(name, o, folder):
    """Fine-tuning on two classes, dropout 0.1; rows as long as those of MNLI."""
    (device, dtype), rng = train.pick_hardware(o.device, o.dtype), np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(36), 0.5, 32 * TURN), 8, 128).astype(int)
    rows = [
        np.stack((rng.integers(5, o.vocab_size, n), np.arange(n) > n // 2)).astype(np.int32) for n in lengths
    ]
    labels = rng.integers(0, 2, len(rows))
    if name == GLUE[0]:
        train.keep_memory()
        model = bert.BertForSequenceClassification(bert.BertConfig.preset(o.size, vocab_size=o.vocab_size))
        settings = SimpleNamespace(lr=1e-4, epochs=1, batch_size=32, freeze=False, device=device, dtype=dtype)
        model = model.to(device)
        return lambda n: glue_eval.finetune(
            model, rows[: 32 * n], labels, (0, "RTE"), settings, ""
        ), lengths.mean()
    from transformers import BertForSequenceClassification

    def batch(i):
        some = [torch.from_numpy(row.T).long() for row in rows[32 * i : 32 * i + 32]]
        if name == GLUE[2]:
            some[0] = torch.nn.functional.pad(some[0], (0, 0, 0, 128 - len(some[0])), value=-1)
        ids, segments = torch.nn.utils.rnn.pad_sequence(some, True, -1).unbind(-1)
        names = ("input_ids", "attention_mask", "token_type_ids", "labels")
        values = (ids.clamp_min(0), (ids >= 0).long(), segments.clamp_min(0))
        return dict(zip(names, (*values, torch.from_numpy(labels[32 * i : 32 * i + 32])), strict=True))

    model = BertForSequenceClassification(their_config(o, 0.1, num_labels=2)).to(device).train()
    return their_step(model, dtype, batch), lengths.mean()


def entropy_pass(name, o, folder):
    """The visible reading of 32,768 tokens at once: how much memory?"""
    device, dtype = train.pick_hardware(o.device, o.dtype)
    model = bert.BertForMaskedLM(bert.BertConfig.preset(o.size, vocab_size=o.vocab_size)).to(device)
    ids = torch.randint(5, o.vocab_size, (256, 128), device=device)

    def steps(n):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            masking.sequence_entropy(model, ids)

    return steps, 0


# ---- processes that take turns ----


def memory(o, peak=True) -> float:
    """MiB of this process: the highest so far, or of now; NaN where the system does not say."""
    if train.pick_hardware(o.device, o.dtype)[0].type == "cuda":
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    return status("VmHWM" if peak else "VmRSS")


def status(name) -> float:
    """MiB that Linux states of this process, VmHWM, VmRSS or RssFile; NaN elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith(name))
    except (OSError, StopIteration):
        return float("nan")


def serve(pipe, build, name, o, folder):
    """A process: builds its variant, makes as many steps as it is told to, says how long they took."""
    if o.threads:
        torch.set_num_threads(o.threads)
    before, wait = memory(o, False), torch.cuda.synchronize if torch.cuda.is_available() else int
    clock = time.process_time if o.threads == 1 else time.perf_counter
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what the programs print is no table
            steps, fact = build(name, o, folder)
        steps(2)
        pipe.send((fact, ""))
        while n := pipe.recv():
            steps(1)  # caches hold the last variant's numbers, and its threads wait for more work for a while
            start = clock()
            steps(n)
            wait()
            pipe.send(clock() - start)
        pipe.send(memory(o) - before)
    except EOFError:
        pass  # the program was stopped
    except Exception as error:
        pipe.send((None, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"))


def measure(variants, o, folder) -> dict:
    """{name: median seconds a step, MiB it took at most, fact} of those variants {name: build} that work."""
    spawn, pipes, result = multiprocessing.get_context("spawn"), {}, {}
    for name, build in variants.items():
        pipes[name], other = spawn.Pipe()
        spawn.Process(target=serve, args=(other, build, name, o, folder), daemon=True).start()
        fact, reason = pipes[name].recv()
        if reason:
            print(f"left out: {o.size}, {name}: {reason}", flush=True)
            del pipes[name]
        else:
            result[name] = SimpleNamespace(times=[], fact=fact)
    for _, name in itertools.product(range(o.rounds), pipes):
        pipes[name].send(TURN)
        result[name].times.append(pipes[name].recv() / TURN)
    for name, pipe in pipes.items():
        pipe.send(0)
        result[name].memory, result[name].seconds = pipe.recv(), median(result[name].times)
        print(f"{o.size}, {name}: {result[name].seconds:.3f} s a step", file=sys.stderr, flush=True)
    return result


# ---- what a larger text costs ----


def learn(o):
    """The vocabulary, which reads the text twice."""
    bert.save_tokenizer(train.learn_vocabulary(o.corpus, o.vocab_size), o.vocab)


def begin(o):
    """All that happens before the first step, and a checkpoint: both hold the table of --reading memory."""
    run = train.Pretraining(o)
    run.save()
    return run


def pack(o):
    """Every row of an epoch, in order of training."""
    ids = np.memmap(next(Path(o.cache).glob("*/train.ids")), np.int32, "r")
    rows = len(ids) // (o.seq_len - 2)
    for step in range(rows // o.batch_size):
        train.take_rows(ids, train.rows_of_step(o, step, rows), o.seq_len, 2, 3)
    return ids


STAGES = {"vocabulary": learn, "tokenise": train.prepare_text, "start and save": begin, "rows": pack}


def stage(name, threads, o):
    """In a process of its own: seconds, MiB at most, and MiB of it that are pages of files, not its own."""
    torch.set_num_threads(threads or torch.get_num_threads())
    clock = time.process_time if threads == 1 else time.perf_counter
    before, files, start = status("VmRSS"), status("RssFile"), clock()
    with contextlib.redirect_stdout(sys.stderr):
        kept = STAGES[name](o)  # noqa: F841, its pages count while it lives
    return clock() - start, status("VmHWM") - before, status("RssFile") - files


def scaling(o, folder) -> list:
    """Rows of a table: what each stage of reading a text of so many megabytes takes."""
    table = [["text", "stage", "seconds", "s / 100 MB", "MiB", "of it pages of files"]]
    for size in SCALE:
        home, paragraphs = Path(folder, str(size)), 0
        (home / "vocab").mkdir(parents=True)
        with open(home / "text.txt", "w", encoding="utf-8") as file:
            for document in train.read_documents(o.scaling):
                file.write("\n".join(document) + "\n\n")
                paragraphs += len(document)
                if file.tell() > size * 10**6:
                    break
        paths = {"vocab": f"{home}/vocab", "cache": f"{home}/cache", "out": f"{home}"}
        settings = {"vocab_size": o.vocab_size, "corpus": [f"{home}/text.txt"], "reading": "memory"}
        options = train.Options(**paths, **settings, device="cpu", seq_len=o.seq_len, batch_size=o.batch)
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
            for name in STAGES:
                seconds, *mib = fresh.apply(stage, (name, o.threads, options))
                numbers = (f"{seconds:.1f}", f"{seconds * 100 / size:.1f}", *(f"{x:,.0f}" for x in mib))
                table.append([f"{size} MB, {paragraphs:,} paragraphs", name, *numbers])
                print(*table[-1], sep="; ", file=sys.stderr, flush=True)
    return table


# ---- tables ----


def make_text(o, folder):
    """vocab.txt of made-up words, a corpus of them (the n-th as frequent as 1 / n), and a model a size."""
    letters = (itertools.product(string.ascii_lowercase, repeat=n) for n in itertools.count(1))
    words = [
        "".join(word) for word in itertools.islice(itertools.chain.from_iterable(letters), o.vocab_size - 5)
    ]
    Path(folder, "vocab.txt").write_text("\n".join((*bert.SPECIAL_TOKENS, *words)) + "\n")
    rng, share = np.random.default_rng(0), 1 / np.arange(1, len(words) + 1)
    documents = rng.choice(words, (30, 10 * o.seq_len), p=share / share.sum())
    Path(folder, "corpus.txt").write_text("\n\n".join(map(" ".join, documents)))
    for size in o.sizes:
        model = bert.BertForMaskedLM(bert.BertConfig.preset(size, vocab_size=o.vocab_size))
        model.save_pretrained(f"{folder}/{size}", bert.load_tokenizer(f"{folder}/vocab.txt"))


def speed_rows(o, result, base, tokens, peak) -> list:
    """Rows of a table: tokens/s, how many times as fast as `base`, MiB, on a known GPU its MFU."""
    rows = []
    for name, r in result.items():
        ratio = f"{result[base].seconds / r.seconds:.2f}" if base in result else ""
        mfu = [f"{r.fact * tokens / r.seconds / peak:.1%}" if r.fact else ""] if peak else []
        rows.append([o.size, name, f"{tokens / r.seconds:,.0f}", ratio, f"{r.memory:,.0f}", *mfu])
    return rows


def extra_rows(o, result) -> list:
    """What each reading costs beside random masks: measured, counted in operations, and their quotient."""
    rows, random = [], result["random masks"]
    for name in list(RUNS)[1:5]:
        if name in result:
            extra, counted = result[name].seconds / random.seconds - 1, result[name].fact / random.fact - 1
            quotient = f"{extra / counted:.2f}" if counted else ""
            more = result[name].memory - random.memory
            rows.append([o.size, name, f"{extra:+.0%}", f"{counted:+.0%}", quotient, f"{more:+,.0f} MiB"])
    return rows


def main():
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "mini"], choices=list(bert.SIZES))
    for name, default in {
        "rounds": 7,
        "threads": 0,
        "batch": 16,
        "seq-len": 128,
        "vocab-size": 30522,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--compile", action="store_true", help="also train.py --compile: takes minutes more")
    parser.add_argument("--scaling", nargs="+", metavar="FILE", help="what a larger text costs, nothing else")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    o, start = parser.parse_args(), time.time()
    device, dtype = train.pick_hardware(o.device, o.dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    if device.type == "cpu" and Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.split(": ")[1] for x in lines if x.startswith("model name")), name)
    peak = next(
        (flops for card, flops in train.PEAK_FLOPS.items() if device.type == "cuda" and card in name), 0
    )
    theirs = THEIRS if importlib.util.find_spec("transformers") else ()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    if theirs:
        versions += f", transformers {importlib.metadata.version('transformers')}"
    print(
        f"    python {' '.join(sys.argv)}\n\n{name}, {o.threads or torch.get_num_threads()} threads, {dtype}"
    )
    print(f"{versions}; {o.batch} x {o.seq_len} tokens a step, {o.vocab_size:,} word pieces\n", flush=True)
    if o.scaling:
        with tempfile.TemporaryDirectory() as folder:
            print(glue_eval.markdown(scaling(o, folder)))
        return
    end = ["MiB", *["MFU"] * bool(peak)]
    tables = {
        "pretraining": [["size", "pretraining", "tokens/s", "x transformers", *end]],
        "extra": [["size", "masks", "time beside random masks", "counted", "quotient", "memory"]],
        "ladder": [["size", "optimisations, each with those above", "tokens/s", "x plain", *end]],
        "glue": [["size", "fine-tuning", "tokens/s (no padding)", "x padded to 128", *end]],
    }
    tokens = o.batch * o.seq_len
    with tempfile.TemporaryDirectory() as folder:
        make_text(o, folder)
        for size in o.sizes:
            o.size = size
            runs = [name for name in RUNS if o.compile or "--compile" not in name]
            variants = dict.fromkeys(runs, pretraining) | dict.fromkeys(theirs, their_pretraining)
            result = measure(variants, o, folder)
            tables["pretraining"] += speed_rows(o, result, THEIRS[0], tokens, peak)
            tables["extra"] += extra_rows(o, result)
            result = measure(dict.fromkeys(LADDER, rung), o, folder)
            tables["ladder"] += speed_rows(o, result, LADDER[0], tokens, peak)
            result = measure(dict.fromkeys(GLUE if theirs else GLUE[:1], glue), o, folder)
            real = 32 * next(iter(result.values())).fact
            for r in result.values():
                r.fact = 0
            tables["glue"] += speed_rows(o, result, GLUE[2], real, peak)
        o.size, o.rounds = o.sizes[0], 1
        need = measure({"entropy pass": entropy_pass}, o, folder)["entropy pass"].memory
    for table in tables.values():
        print(glue_eval.markdown(table), end="\n\n")
    whole = 2**15 * o.vocab_size * 4 / 2**20
    print(f"Entropies of 32,768 tokens, {o.size}: {need:,.0f} MiB; all logits in float32: {whole:,.0f} MiB")
    print(f"{time.time() - start:.0f} s in all")


if __name__ == "__main__":
    main()
