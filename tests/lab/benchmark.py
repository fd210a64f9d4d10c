"""How fast are the programs, and what is each optimisation worth? By hand: `python tests/lab/benchmark.py`.

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
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import train  # isort: skip (first: it sets how threads wait, before torch is imported)

import flops
import numpy as np
import torch

import distill
import glue_eval
import masking
import model as bert

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

# ---- what is timed: each returns step(n), which makes n steps, and what else is known of it ----


def run_options(parser, **changes):
    """The options of a run: a program's defaults, changed."""
    options = parser.parse_args([])
    for name, value in changes.items():
        setattr(options, name, value)
    options.lr = options.lr or 1e-3
    return options


def pretraining(name, o, folder):
    """The program's own step, as a user runs it; and its operations per token."""
    uses_teacher = "teacher" in name
    parser = distill.make_parser() if uses_teacher else train.make_parser("")
    changes = {"corpus": [f"{folder}/corpus.txt"], "vocab": f"{folder}/vocab.txt", "cache": f"{folder}/cache"}
    changes |= {"size": o.size, "seq_len": o.seq_len, "batch_size": o.batch, "steps": 10**6}
    changes |= {"entropy_warmup": 0.0, "device": o.device, "dtype": o.dtype, "out": f"{folder}/out"}
    if uses_teacher:
        changes["teacher"] = f"{folder}/{o.size}"
    options = run_options(parser, **changes | RUNS[name])

    train.keep_freed_ram()
    kind = distill.Distillation if uses_teacher else train.Pretraining
    run = kind(options)
    teacher = run.teacher.config if uses_teacher else None
    operations = flops.flops_per_token(vars(options), run.model.config, teacher)

    def steps(n):
        for _ in range(n):
            run.update()

    return steps, operations


def attention_by_hand():
    """A context in which the equation by hand stands in for torch's fused function."""

    def plain(query, key, value, attn_mask=None, dropout_p=0.0):
        return bert.attention(query, key, value, attn_mask, dropout_p)

    return mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", plain)


def rung(name, o, folder):
    """The step from scratch, with the optimisations of the ladder up to `name`."""
    has = LADDER.index(name)
    device, dtype = train.pick_hardware(o.device, o.dtype)
    if has >= 6:
        train.keep_freed_ram()
    config = bert.BertConfig.preset(o.size, vocab_size=o.vocab_size)
    config.hidden_dropout_prob = 0.0
    config.attention_probs_dropout_prob = 0.0
    model = bert.BertForMaskedLM(config).to(device)
    optimizer = train.make_optimizer(model, 1e-3)
    if has < 5:
        optimizer = torch.optim.AdamW(optimizer.param_groups, lr=1e-3, foreach=False)
        for group in optimizer.param_groups:
            group["fused"] = False
    ids = torch.randint(5, o.vocab_size, (o.batch, o.seq_len), device=device)
    count = masking.mask_budget(o.seq_len, 0.15)
    loss_of = train.MaskedLoss.apply if has >= 4 else train.mlm_loss
    mixed = has >= 3 and dtype != torch.float32
    attention = contextlib.nullcontext() if has >= 2 else attention_by_hand()

    def step():
        selected = masking.select_positions("random", ids > 0, 0.15)
        corrupted, labels = masking.corrupt(ids, selected, 4, o.vocab_size, range(5))
        places = None
        if has >= 1:
            places = masking.as_places(selected, count)
            labels = labels.gather(1, places)
        with torch.autocast(device.type, dtype, enabled=mixed), attention:
            logits = model(corrupted, places=places)
        loss = loss_of(logits, labels)[0]
        (loss / selected.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def steps(n):
        for _ in range(n):
            step()

    return steps, 0


def their_config(o, dropout, **more):
    """transformers' configuration of one of our sizes."""
    from transformers import BertConfig

    ours = bert.BertConfig.preset(o.size, vocab_size=o.vocab_size)
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    sizes = {name: getattr(ours, name) for name in names}
    return BertConfig(**sizes, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **more)


def their_step(model, dtype, batches):
    """step(n) as users of transformers write it; batches(i) is the i-th batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    device = model.device

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
        train.keep_freed_ram()
    device, dtype = train.pick_hardware(o.device, o.dtype)
    model = transformers.BertForMaskedLM(their_config(o, 0.0)).to(device).train()
    tokenizer = transformers.AutoTokenizer.from_pretrained(f"{folder}/{o.size}")
    collate = transformers.DataCollatorForLanguageModeling(tokenizer)
    rows = [{"input_ids": row} for row in torch.randint(5, o.vocab_size, (o.batch, o.seq_len)).tolist()]
    return their_step(model, dtype, lambda _: collate(rows)), 0


def glue(name, o, folder):
    """Fine-tuning on two classes, dropout 0.1, rows as long as those of MNLI; and their mean length."""
    device, dtype = train.pick_hardware(o.device, o.dtype)
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(36), 0.5, 32 * TURN), 8, 128).astype(int)
    rows = []
    for n in lengths:
        ids = rng.integers(5, o.vocab_size, n)
        segments = np.arange(n) > n // 2
        rows.append(np.stack((ids, segments)).astype(np.int32))
    labels = rng.integers(0, 2, len(rows))
    if name == GLUE[0]:
        return our_glue(o, rows, labels, device, dtype), lengths.mean()
    return their_glue(o, rows, labels, device, dtype, padded=name == GLUE[2]), lengths.mean()


def our_glue(o, rows, labels, device, dtype):
    """step(n) of glue_eval.py."""
    train.keep_freed_ram()
    config = bert.BertConfig.preset(o.size, vocab_size=o.vocab_size)
    model = bert.BertForSequenceClassification(config).to(device)
    settings = SimpleNamespace(lr=1e-4, epochs=1, batch_size=32, freeze=False, device=device, dtype=dtype)

    def steps(n):
        glue_eval.finetune(model, rows[: 32 * n], labels[: 32 * n], (0, "RTE"), settings, "")

    return steps


def their_glue(o, rows, labels, device, dtype, padded: bool):
    """step(n) of transformers, each batch padded to its longest row, or to 128."""
    from transformers import BertForSequenceClassification

    def batch(i):
        some = [torch.from_numpy(row.T).long() for row in rows[32 * i : 32 * i + 32]]
        if padded:
            some[0] = torch.nn.functional.pad(some[0], (0, 0, 0, 128 - len(some[0])), value=-1)
        ids, segments = torch.nn.utils.rnn.pad_sequence(some, True, -1).unbind(-1)
        return {
            "input_ids": ids.clamp_min(0),
            "attention_mask": (ids >= 0).long(),
            "token_type_ids": segments.clamp_min(0),
            "labels": torch.from_numpy(labels[32 * i : 32 * i + 32]),
        }

    model = BertForSequenceClassification(their_config(o, 0.1, num_labels=2)).to(device).train()
    return their_step(model, dtype, batch)


def entropy_pass(name, o, folder):
    """The visible reading of 32,768 tokens at once: how much memory?"""
    device, dtype = train.pick_hardware(o.device, o.dtype)
    model = bert.BertForMaskedLM(bert.BertConfig.preset(o.size, vocab_size=o.vocab_size)).to(device)
    ids = torch.randint(5, o.vocab_size, (256, 128), device=device)

    def steps(n):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            masking.visible_entropy(model, ids)

    return steps, 0


# ---- processes that take turns ----


def memory(o, peak=True) -> float:
    """MiB of this process: the highest so far, or of now; NaN where the system does not say."""
    device, _ = train.pick_hardware(o.device, o.dtype)
    if device.type == "cuda":
        allocated = torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
        return allocated / 2**20
    return status("VmHWM" if peak else "VmRSS")


def status(name) -> float:
    """MiB that Linux states of this process, VmHWM, VmRSS or RssFile; NaN elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith(name))
    except (OSError, StopIteration):
        return float("nan")


def clock_for(threads: int):
    """Processor time of one thread on a busy machine, else the time that passes."""
    return time.process_time if threads == 1 else time.perf_counter


def serve(pipe, build, name, o, folder):
    """A process: builds its variant, makes as many steps as it is told to, says how long they took."""
    if o.threads:
        torch.set_num_threads(o.threads)
    before = memory(o, peak=False)
    clock = clock_for(o.threads)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what the programs print is no table
            steps, fact = build(name, o, folder)
        steps(2)
        pipe.send((fact, ""))
        while n := pipe.recv():
            steps(1)  # caches hold the last variant's numbers, and its threads wait for more work for a while
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = clock()
            steps(n)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            pipe.send(clock() - start)
        pipe.send(memory(o) - before)
    except EOFError:
        pass  # the program was stopped
    except Exception as error:
        pipe.send((None, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"))


def measure(variants, o, folder) -> dict:
    """{name: median seconds per step, MiB it took at most, fact} of the variants {name: build} that work."""
    spawn = multiprocessing.get_context("spawn")
    pipes = {}
    result = {}
    for name, build in variants.items():
        ours, theirs = spawn.Pipe()
        spawn.Process(target=serve, args=(theirs, build, name, o, folder), daemon=True).start()
        fact, reason = ours.recv()
        if reason:
            print(f"left out: {o.size}, {name}: {reason}", flush=True)
        else:
            pipes[name] = ours
            result[name] = SimpleNamespace(times=[], fact=fact)

    for _, name in itertools.product(range(o.rounds), pipes):
        pipes[name].send(TURN)
        result[name].times.append(pipes[name].recv() / TURN)

    for name, pipe in pipes.items():
        pipe.send(0)
        result[name].memory = pipe.recv()
        result[name].seconds = median(result[name].times)
        print(f"{o.size}, {name}: {result[name].seconds:.3f} s per step", file=sys.stderr, flush=True)
    return result


# ---- what a larger text costs ----


def learn(o):
    """The vocabulary, which reads the text twice."""
    bert.save_tokenizer(train.learn_vocabulary(o.corpus, o.vocab_size), o.vocab)


def begin(o):
    """All that happens before the first step: an evaluation and a checkpoint, with the table of memory."""
    run = train.Pretraining(o)
    run.evaluate_and_save()
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
    if threads:
        torch.set_num_threads(threads)
    clock = clock_for(threads)
    before = status("VmRSS")
    files = status("RssFile")
    start = clock()
    with contextlib.redirect_stdout(sys.stderr):
        kept = STAGES[name](o)  # noqa: F841, its pages count while it lives
    return clock() - start, status("VmHWM") - before, status("RssFile") - files


def write_beginning(sources, path: Path, size: int) -> int:
    """Copy the first documents, until there are `size` bytes; returns the number of paragraphs."""
    paragraphs = 0
    with open(path, "w", encoding="utf-8") as file:
        for document, ends in train.read_documents(sources):
            file.write("\n".join(document) + ("\n\n" if ends else "\n"))
            paragraphs += len(document)
            if file.tell() > size:
                break
    return paragraphs


def scaling(o, folder) -> list:
    """Rows of a table: what each stage of reading a text of so many megabytes takes."""
    table = [["text", "stage", "seconds", "s / 100 MB", "MiB", "of it pages of files"]]
    for size in SCALE:
        home = Path(folder, str(size))
        (home / "vocab").mkdir(parents=True)
        paragraphs = write_beginning(o.scaling, home / "text.txt", size * 10**6)
        changes = {"vocab": f"{home}/vocab", "cache": f"{home}/cache", "out": str(home)}
        changes |= {"vocab_size": o.vocab_size, "corpus": [f"{home}/text.txt"], "reading": "memory"}
        changes |= {"device": "cpu", "seq_len": o.seq_len, "batch_size": o.batch}
        options = run_options(train.make_parser(""), **changes)
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
            for name in STAGES:
                seconds, most, pages = fresh.apply(stage, (name, o.threads, options))
                row = [f"{size} MB, {paragraphs:,} paragraphs", name, f"{seconds:.1f}"]
                row += [f"{seconds * 100 / size:.1f}", f"{most:,.0f}", f"{pages:,.0f}"]
                table.append(row)
                print(*row, sep="; ", file=sys.stderr, flush=True)
    return table


# ---- tables ----


def make_text(o, folder):
    """vocab.txt of made-up words, a corpus of them (the n-th as frequent as 1 / n), and a model per size."""
    letters = (itertools.product(string.ascii_lowercase, repeat=n) for n in itertools.count(1))
    endless = ("".join(word) for word in itertools.chain.from_iterable(letters))
    words = list(itertools.islice(endless, o.vocab_size - len(bert.SPECIAL_TOKENS)))
    Path(folder, "vocab.txt").write_text("\n".join((*bert.SPECIAL_TOKENS, *words)) + "\n")

    share = 1 / np.arange(1, len(words) + 1)
    documents = np.random.default_rng(0).choice(words, (30, 10 * o.seq_len), p=share / share.sum())
    Path(folder, "corpus.txt").write_text("\n\n".join(map(" ".join, documents)))

    for size in o.sizes:
        model = bert.BertForMaskedLM(bert.BertConfig.preset(size, vocab_size=o.vocab_size))
        model.save_pretrained(Path(folder, size), bert.load_tokenizer(f"{folder}/vocab.txt"))


def speed_rows(o, result, base, tokens, peak) -> list:
    """Rows of a table: tokens/s, how many times as fast as `base`, MiB, on a known GPU its MFU."""
    rows = []
    for name, r in result.items():
        speed = tokens / r.seconds
        times = f"{result[base].seconds / r.seconds:.2f}" if base in result else ""
        row = [o.size, name, f"{speed:,.0f}", times, f"{r.memory:,.0f}"]
        if peak:
            row.append(f"{r.fact * speed / peak:.1%}" if r.fact else "")
        rows.append(row)
    return rows


def extra_rows(o, result) -> list:
    """What each reading costs beside random masks: measured, counted in operations, and their quotient."""
    rows = []
    random = result["random masks"]
    for name in list(RUNS)[1:5]:
        if name not in result:
            continue
        extra = result[name].seconds / random.seconds - 1
        counted = result[name].fact / random.fact - 1
        quotient = f"{extra / counted:.2f}" if counted else ""
        more = result[name].memory - random.memory
        rows.append([o.size, name, f"{extra:+.0%}", f"{counted:+.0%}", quotient, f"{more:+,.0f} MiB"])
    return rows


def processor_name(device: torch.device) -> str:
    """The name of the GPU, or of the processor where the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if Path("/proc/cpuinfo").is_file():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(": ")[1]
    return platform.processor()


def make_parser():
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--sizes", nargs="+", default=["tiny", "mini"], choices=list(bert.SIZES))
    add("--rounds", type=int, default=7, help="turns of each variant; their median counts")
    add("--threads", type=int, default=0, help="of each variant; 0: PyTorch's choice")
    add("--batch", type=int, default=16, help="rows per step")
    add("--seq-len", type=int, default=128, help="tokens per row")
    add("--vocab-size", type=int, default=30522)
    add("--compile", action="store_true", help="also train.py --compile: takes minutes more")
    add("--scaling", nargs="+", metavar="FILE", help="what a larger text costs, nothing else")
    add("--device", default="auto")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    return parser


def describe(o, device, dtype, theirs):
    """Print what is measured where."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    if theirs:
        versions += f", transformers {importlib.metadata.version('transformers')}"
    threads = o.threads or torch.get_num_threads()
    print(f"    python {' '.join(sys.argv)}\n\n{processor_name(device)}, {threads} threads, {dtype}")
    print(f"{versions}; {o.batch} x {o.seq_len} tokens per step, {o.vocab_size:,} word pieces\n", flush=True)


def measure_size(o, folder, theirs, peak, tables):
    """Measure all variants of one model size and add their rows to the tables."""
    tokens = o.batch * o.seq_len
    runs = [name for name in RUNS if o.compile or "--compile" not in name]
    variants = dict.fromkeys(runs, pretraining) | dict.fromkeys(theirs, their_pretraining)
    result = measure(variants, o, folder)
    tables["pretraining"] += speed_rows(o, result, THEIRS[0], tokens, peak)
    tables["extra"] += extra_rows(o, result)

    result = measure(dict.fromkeys(LADDER, rung), o, folder)
    tables["ladder"] += speed_rows(o, result, LADDER[0], tokens, peak)

    result = measure(dict.fromkeys(GLUE if theirs else GLUE[:1], glue), o, folder)
    tokens = 32 * next(iter(result.values())).fact  # without padding
    for r in result.values():
        r.fact = 0
    tables["glue"] += speed_rows(o, result, GLUE[2], tokens, peak)


def main():
    """The program."""
    o = make_parser().parse_args()
    start = time.time()
    device, dtype = train.pick_hardware(o.device, o.dtype)
    theirs = THEIRS if importlib.util.find_spec("transformers") else ()
    describe(o, device, dtype, theirs)
    if o.scaling:
        with tempfile.TemporaryDirectory() as folder:
            print(glue_eval.markdown(scaling(o, folder)))
        return

    peak = flops.peak_flops(processor_name(device)) if device.type == "cuda" else None
    end = ["MiB", "MFU"] if peak else ["MiB"]
    tables = {
        "pretraining": [["size", "pretraining", "tokens/s", "x transformers", *end]],
        "extra": [["size", "masks", "time beside random masks", "counted", "quotient", "memory"]],
        "ladder": [["size", "optimisations, each with those above", "tokens/s", "x plain", *end]],
        "glue": [["size", "fine-tuning", "tokens/s (no padding)", "x padded to 128", *end]],
    }
    with tempfile.TemporaryDirectory() as folder:
        make_text(o, folder)
        for size in o.sizes:
            o.size = size
            measure_size(o, folder, theirs, peak, tables)
        o.size = o.sizes[0]
        o.rounds = 1
        need = measure({"entropy pass": entropy_pass}, o, folder)["entropy pass"].memory

    for table in tables.values():
        print(glue_eval.markdown(table), end="\n\n")
    whole = 2**15 * o.vocab_size * 4 / 2**20
    print(f"Entropies of 32,768 tokens, {o.size}: {need:,.0f} MiB; all logits in float32: {whole:,.0f} MiB")
    print(f"{time.time() - start:.0f} s in all")


if __name__ == "__main__":
    main()
