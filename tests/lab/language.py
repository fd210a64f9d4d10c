"""When does entropy masking help? A made-up language, of which we know what can be learned and what cannot.

    python tests/lab/language.py --small            two arms, one seed, in under two minutes
    python tests/lab/language.py --seeds 0 1 2      every arm; runs that are in the results are left out
    python tests/lab/language.py                    tables and figures of the results, no run

A row is as many records as fit into 66 tokens. Each token of a record is of one kind:

    easy       --easy words that are one of eight phrases: any of them gives the others away
    keys       two words, drawn at random; where one is hidden, the others narrow it down
    learnable  a function of the two keys: a table that the model has to learn by heart
    noise      drawn at random; with --noise n it takes the place of n of the easy words

The runs are train.py's, with its options. Measured: held-out loss of each kind under the same random masks,
the step at which the learnable tokens fall below 1 nat, and which kinds an arm masks before that. Tables are
Markdown; a figure is an SVG file.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import train  # isort: skip (first: it sets how threads wait, before torch is imported)

import argparse
import csv
import math
import subprocess
import tempfile

import flops
import numpy as np
import torch
from chart import line_chart
from easy_tokens import EASY
from experiment import LOWER_IS_BETTER, SOONER_IS_BETTER, against, paired_table, spread
from focal import FocalPretraining, make_parser

import masking
from glue_eval import markdown
from model import SPECIAL_TOKENS, BertConfig, explain

BODY = 66  # tokens of a row at most, without [CLS] and [SEP]
EASY_WORDS = 8  # in a record, unless --easy says otherwise
NOISE_FIRST = (0, 3, 6, 10)  # places of a record of eleven that noise takes first; else from left to right
PHRASES = 8
VALUES = 32  # of the function
NOISE_WORDS = 32
KINDS = ("easy", "keys", "learnable", "noise")
ROWS = 4096  # of the training text, which is read again and again

RANDOM_STEPS = 120  # before entropies choose
EARLY = (200, 450)  # evaluations in this range: entropies choose already, and no arm knows the table yet
RANDOM = "random"
LONGER = "random, longer"  # as many steps as make up for the extra pass of `sample`
ARMS = {  # name: (options of train.py and focal.py, colour in the figure)
    RANDOM: ("--masking random", "blue"),
    LONGER: ("--masking random", "olive"),
    "low": ("--select low", "orange"),
    "high": ("--select high", "red"),
    "sample": ("--select sample", "green"),
    "sample, memory": ("--reading memory", "violet"),
    "sample, visible": ("--reading visible", "pink"),
    "sample, reducible": ("--select sample", "teal"),  # by max(0, H of the model - H of the language)
    "focal, 1": ("--masking random --gamma 1", "teal"),  # a loss that weighs tokens, see focal.py
    "focal, 2": ("--masking random --gamma 2", "pink"),
}
AS_RANDOM = (RANDOM, LONGER, "focal, 1", "focal, 2")  # no entropy chooses their masks
FIGURE = (RANDOM, "low", "high", "sample", "sample, memory")  # more lines would hide each other
RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = ["noise", "keys", "steps", "arm", "seed", "steps_made", "gflop", "below_1_nat", "floor"]
COLUMNS += [*(f"{kind}_loss" for kind in KINDS), "curve", "masked", "easy_share", "easy_words"]
# At the end, under the exam's masks: accuracy, and entropy less loss in nats, of all and of learnable tokens;
# the step from which half of the guesses of learnable tokens are correct; whose code made the run.
COLUMNS += [
    "accuracy",
    "calibration",
    "learnable_accuracy",
    "learnable_calibration",
    "half_correct",
    "commit",
]


class Language:
    """Words, a table and random rows.

    noise: how many words of a record; keys: how many values a key has; easy: how many easy words a record
    has without noise.
    """

    def __init__(self, seed: int, noise: int, keys: int, easy: int = EASY_WORDS):
        self.rng = np.random.default_rng(seed)
        self.keys = keys
        self.length = easy + 3  # tokens of a record
        self.records = BODY // self.length  # in a row
        # Two keys and their function lie at the same shares of a record: at 1, 4 and 8 of eleven places.
        self.key_places = (1, 1 + 3 * self.length // 11)
        self.function_place = 8 * self.length // 11
        taken = (*self.key_places, self.function_place)
        others = [place for place in range(self.length) if place not in taken]
        others.sort(key=lambda place: place not in NOISE_FIRST)  # the order is kept otherwise
        self.noise_places = others[:noise]
        self.easy_places = others[noise:]
        # Values are shared out evenly among the pairs of keys: 64 pairs have two of each of the 32.
        self.table = torch.from_numpy(self.rng.permutation(keys * keys) % VALUES)
        # The words in the order of their ids, and the id at which each group begins.
        self.words = list(SPECIAL_TOKENS)
        self.first = {}
        sizes = {
            "phrase": PHRASES * self.length,
            "key": keys,
            "other": keys,
            "value": VALUES,
            "noise": NOISE_WORDS,
        }
        for group, size in sizes.items():
            self.first[group] = len(self.words)
            self.words += [f"{group}{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(size)]

    def rows(self, count: int) -> np.ndarray:
        """Random rows of ids: [count, records x length]."""
        shape = (count, self.records)
        ids = np.zeros((*shape, self.length), np.int32)
        phrase = self.rng.integers(PHRASES, size=shape)
        for place in self.easy_places:
            ids[..., place] = self.first["phrase"] + phrase * self.length + place
        for place in self.noise_places:
            ids[..., place] = self.first["noise"] + self.rng.integers(NOISE_WORDS, size=shape)
        key = self.rng.integers(self.keys, size=shape)
        other = self.rng.integers(self.keys, size=shape)
        ids[..., self.key_places[0]] = self.first["key"] + key
        ids[..., self.key_places[1]] = self.first["other"] + other
        ids[..., self.function_place] = self.first["value"] + self.table.numpy()[key * self.keys + other]
        return ids.reshape(count, self.records * self.length)

    def kind_of_place(self) -> torch.Tensor:
        """The number in KINDS of every place of a row, [CLS] and [SEP] included (-1): [T]."""
        kinds = np.zeros(self.length, np.int64)
        kinds[list(self.key_places)] = 1
        kinds[self.function_place] = 2
        kinds[self.noise_places] = 3
        return torch.from_numpy(np.pad(np.tile(kinds, self.records), 1, constant_values=-1))

    def kind_of_word(self) -> torch.Tensor:
        """The number in KINDS of every word: [V]; special tokens, which are never masked, count as easy."""
        kinds = torch.zeros(len(self.words), dtype=torch.long)
        for group, kind in (("key", "keys"), ("value", "learnable"), ("noise", "noise")):
            kinds[self.first[group] :] = KINDS.index(kind)  # up to the next group
        return kinds

    def true_entropy(self, ids, hidden) -> torch.Tensor:
        """Entropy of each hidden token given all visible ones: [B, T], nats; 0 where nothing is hidden.

        ids, hidden: long and bool [B, T]. By enumeration of all pairs of keys. This is the loss of
        somebody who knows the language; on average no model can do better.
        """
        records = ids[:, 1:-1].reshape(-1, self.length)
        hidden = hidden[:, 1:-1].reshape(-1, self.length)
        entropy = torch.zeros(records.shape)
        entropy[:, self.noise_places] = math.log(NOISE_WORDS)
        all_hidden = hidden[:, self.easy_places].all(1, keepdim=True)  # else the phrase is known
        entropy[:, self.easy_places] = all_hidden * math.log(PHRASES)

        # All pairs of keys that agree with what is visible are equally likely.
        pairs = torch.cartesian_prod(torch.arange(self.keys), torch.arange(self.keys))
        answers = {
            self.key_places[0]: pairs[:, 0] + self.first["key"],
            self.key_places[1]: pairs[:, 1] + self.first["other"],
            self.function_place: self.table + self.first["value"],
        }
        possible = torch.ones(len(records), len(pairs), dtype=torch.bool)
        for place, answer in answers.items():
            possible &= hidden[:, [place]] | (records[:, [place]] == answer)
        for place, answer in answers.items():
            counts = possible.float() @ torch.nn.functional.one_hot(answer).float()
            p = counts / counts.sum(1, keepdim=True)
            entropy[:, place] = -torch.special.xlogy(p, p).sum(1)
        return torch.nn.functional.pad((entropy * hidden).view(len(ids), -1), (1, 1))

    def write(self, folder: Path):
        """text.txt, of which the first ROWS rows are used, and vocab.txt."""
        rows = self.rows(ROWS + ROWS // 10)  # train.py holds some documents out
        lines = (" ".join(self.words[i] for i in row) for row in rows)
        (folder / "text.txt").write_text("\n".join(lines))  # one document: a [SEP] would shift the rows
        (folder / "vocab.txt").write_text("\n".join(self.words))


class Experiment(FocalPretraining):
    """A run of train.py that measures the held-out loss of each kind of token, and saves nothing."""

    def __init__(self, o, language: Language, reducible: bool):
        super().__init__(o)
        self.language = language
        self.reducible = reducible
        held_out = language.rows(train.EXAM_ROWS).flatten()
        self.exam = train.draw_exam(held_out, o.seq_len, self.cls_id, self.sep_id, self.mask_id)
        self.kind = language.kind_of_place()[self.exam[1]]  # of each token that the exam masks

    def entropies(self, ids, index, candidates) -> torch.Tensor:
        """As in train.py; reducible: max(0, H - H of somebody who knows the language)."""
        entropy = super().entropies(ids, index, candidates)
        if self.reducible:
            entropy = (entropy - self.language.true_entropy(ids, candidates)).clamp_min(0)
        return entropy

    def evaluate_and_save(self, speed: float = 0.0):
        """Held-out loss, nats per token, of all tokens and of each kind; a kind that is not there has NaN.

        Also accuracy and calibration (mean entropy less loss, nats) of all tokens and of the learnable ones,
        and the share of each kind in the masks of the steps since the last evaluation.
        """
        parts = []
        with self.autocast(), masking.evaluating(self.model):
            for ids, places, labels in zip(*(part.split(64) for part in self.exam), strict=True):
                log_p = masking.logits_at(self.model, ids, places).float().log_softmax(-1)
                loss = -log_p.gather(-1, labels[..., None])[..., 0]
                entropy = torch.special.entr(log_p.exp()).sum(-1)
                parts.append(torch.stack((loss, log_p.argmax(-1) == labels, entropy - loss)))
        measured = torch.cat(parts, dim=1)  # [3, rows, k]
        loss, correct, gap = measured
        learnable = self.kind == KINDS.index("learnable")
        line = {"step": self.step, "held_out_loss": loss.mean().item()}
        line |= {name: loss[self.kind == number].mean().item() for number, name in enumerate(KINDS)}
        line |= {"accuracy": correct.mean().item(), "calibration": gap.mean().item()}
        line |= {"learnable_accuracy": correct[learnable].mean().item()}
        line |= {"learnable_calibration": gap[learnable].mean().item()}
        if self.seen:
            masks = torch.zeros(len(KINDS)).index_add_(0, self.language.kind_of_word(), self.seen["ids"])
            line["masked"] = (masks / masks.sum()).tolist()
        self.log.append(line)
        self.sums.clear()
        self.seen.clear()

    def lowest_loss(self) -> float:
        """The loss at the exam's learnable tokens of somebody who knows the language."""
        ids, places, labels = self.exam
        hidden = torch.zeros(ids.shape, dtype=torch.bool).scatter(1, places, True)
        truth = self.language.true_entropy(ids.scatter(1, places, labels), hidden).gather(1, places)
        return truth[self.kind == KINDS.index("learnable")].mean().item()

    def easy_share(self) -> float:
        """The share of the exam's tokens that are easy to the model: see easy_tokens.py."""
        ids, places, _ = self.exam
        return (masking.entropy_at(self.model, ids, places) < EASY).float().mean().item()


# ---- runs ----


def options_of(arm: str, seed: int, folder, language: Language, o) -> argparse.Namespace:
    """The options of train.py and focal.py for an arm."""
    body = language.records * language.length
    options = (
        f"--corpus {folder}/text.txt --vocab {folder}/vocab.txt --cache {folder} --device cpu --dtype float32"
    )
    options += f" --gamma 0 --seq-len {body + 2} --max-tokens {ROWS * body} --batch-size 32"
    options += f" --lr 1e-3 --seed {seed} --steps {o.steps} --eval-every {o.eval_every} {ARMS[arm][0]}"
    if arm not in AS_RANDOM:
        options += f" --entropy-warmup {min(RANDOM_STEPS, o.steps)}"
    parser = make_parser()
    settings = parser.parse_args(options.split())
    train.check(settings, parser, 1)
    return settings


def make_run(arm: str, seed: int, o) -> dict:
    """Train one arm: its line of the results. Runs of one seed share language, text and initial weights."""
    language = Language(seed, o.noise, o.keys, o.easy)
    with tempfile.TemporaryDirectory() as folder:
        language.write(Path(folder))
        settings = options_of(arm, seed, folder, language, o)
        config = BertConfig.preset(settings.size, vocab_size=len(language.words))
        per_token = flops.flops_per_token(vars(settings), config)
        if arm == LONGER:
            sample = options_of("sample", seed, folder, language, o)
            settings.steps = round(o.steps * flops.flops_per_token(vars(sample), config) / per_token)
        run = Experiment(settings, language, reducible=arm == "sample, reducible")
        train.train(run)

    operations = per_token * settings.steps * settings.batch_size * settings.seq_len
    below = [line["step"] for line in run.log if line["learnable"] < 1]
    half = [line["step"] for line in run.log if line["learnable_accuracy"] >= 0.5]
    result = {"noise": o.noise, "keys": o.keys, "steps": o.steps, "arm": arm, "seed": seed}
    result |= {"steps_made": settings.steps, "gflop": round(operations / 1e9)}
    result |= {"below_1_nat": below[0] if below else "never", "floor": f"{run.lowest_loss():.3f}"}
    result |= {f"{kind}_loss": f"{run.log[-1][kind]:.3f}" for kind in KINDS}
    result["easy_share"] = f"{run.easy_share():.3f}"
    result["curve"] = " ".join(f"{line['step']}:{line['learnable']:.2f}" for line in run.log)
    early = [line["masked"] for line in run.log if EARLY[0] <= line["step"] <= EARLY[1]]
    result["masked"] = "/".join(f"{share:.3f}" for share in np.mean(early, axis=0)) if early else ""
    result["easy_words"] = o.easy
    for name in ("accuracy", "calibration", "learnable_accuracy", "learnable_calibration"):
        result[name] = f"{run.log[-1][name]:.3f}"
    result["half_correct"] = half[0] if half else "never"
    result["commit"] = commit()
    return result


def commit() -> str:
    """Of this project's code; empty without git."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=7", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def read_results(path: Path) -> list:
    """The lines of a file of results; none if there is no such file yet."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def add_result(path: Path, result: dict):
    """Append a line. Other processes may do so too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(result)


# ---- tables and figures ----


def setting_of(result: dict) -> tuple[int, int, int, int]:
    """(easy words, noise, keys, steps): results are compared within a setting."""
    return tuple(int(result[name]) for name in ("easy_words", "noise", "keys", "steps"))


def by_arm(results: list) -> dict:
    """{arm: its results}, in the order of ARMS."""
    arms = {arm: [result for result in results if result["arm"] == arm] for arm in ARMS}
    return {arm: rows for arm, rows in arms.items() if rows}


def compared(values: dict, base: str, arm: str, digits: int, words=LOWER_IS_BETTER) -> list:
    """Difference and verdict of an arm {seed: value} against a base; empty where there is none to make."""
    complete = [name in values and max(values[name].values()) < math.inf for name in (base, arm)]
    if not all(complete) or arm in (RANDOM, LONGER):
        return ["", ""]
    return against(values[base], values[arm], digits, words)


def loss_table(results: list) -> str:
    """The learnable loss at the end, against random masks at equal steps and at equal operations."""
    arms = by_arm(results)
    loss = {arm: {row["seed"]: float(row["learnable_loss"]) for row in rows} for arm, rows in arms.items()}
    cost = {arm: np.mean([float(row["gflop"]) for row in rows]) / 1000 for arm, rows in arms.items()}
    head = ["masks", "runs", "steps", "TFLOP", "easy", "keys", "learnable"]
    for base in ("equal steps", "equal operations"):
        head += [f"against random, {base} (95% interval)", "verdict (Welch)"]
    lines = [head]
    for arm, rows in arms.items():
        cells = [arm, str(len(rows)), f"{int(rows[0]['steps_made']):,}", f"{cost[arm]:.1f}"]
        cells += [f"{np.mean([float(row[f'{kind}_loss']) for row in rows]):.2f}" for kind in ("easy", "keys")]
        cells.append(spread(list(loss[arm].values()), 2))
        cells += compared(loss, RANDOM, arm, 2)
        as_dear = cost[arm] > 1.01 * cost.get(RANDOM, math.inf)
        cells += compared(loss, LONGER, arm, 2) if as_dear else ["", ""]
        lines.append(cells)
    return markdown(lines)


def steps_below(row: dict, price: float) -> float:
    """The step at which the learnable loss falls below 1 nat, in steps that cost as much as random ones.

    price: of a step that reads entropies, in random steps; 1: plain steps. Infinite where it never falls.
    """
    if row["below_1_nat"] == "never":
        return math.inf
    step = int(row["below_1_nat"])
    free = min(step, RANDOM_STEPS)
    return free + price * (step - free)


def when(steps) -> str:
    """Median and range of some steps, and how many of the runs never got there."""
    reached = [step for step in steps if step < math.inf]
    missing = len(steps) - len(reached)
    if not reached:
        return "never"
    median = f"{np.median(steps):,.0f}" if np.median(steps) < math.inf else "never"
    text = f"{median} ({min(reached):,.0f} to {max(reached):,.0f})"
    return f"{text}, {missing} of {len(steps)} never" if missing else text


def price_of(run: dict, random: dict) -> float:
    """What a step that reads entropies costs, in steps of a run with random masks."""
    steps = int(run["steps_made"])
    if steps <= RANDOM_STEPS:
        return 1.0
    random_step = float(random["gflop"]) / int(random["steps_made"])
    worth = float(run["gflop"]) / random_step  # the whole run, in random steps
    return (worth - RANDOM_STEPS) / (steps - RANDOM_STEPS)


def transition_table(results: list) -> str:
    """When the learnable loss falls below 1 nat: in steps, against random; in operations, against LONGER.

    The learning rate of LONGER comes down over the same operations.
    """
    arms = by_arm(results)
    head = ["masks", "below 1 nat at step", f"against {RANDOM} (95% interval)", "verdict (Welch)"]
    head += [
        "in steps that cost as much as random ones",
        f"against {LONGER} (95% interval)",
        "verdict (Welch)",
    ]
    lines = [head]
    plain = {}
    equal = {}
    for arm, rows in arms.items():
        price = price_of(rows[0], arms[RANDOM][0])
        plain[arm] = {row["seed"]: steps_below(row, 1.0) for row in rows}
        equal[arm] = {row["seed"]: steps_below(row, price) for row in rows}
        cells = [arm, when(list(plain[arm].values())), *compared(plain, RANDOM, arm, 0, SOONER_IS_BETTER)]
        cells += [when(list(equal[arm].values()))]
        cells += compared(equal, LONGER, arm, 0, SOONER_IS_BETTER) if price > 1.01 else ["", ""]
        lines.append(cells)
    return markdown(lines)


def seed_table(results: list, what: str) -> str:
    """Comparisons with random masks seed by seed, of the learnable "loss" or of "steps", for a page's end."""
    arms = by_arm(results)
    if what == "loss":
        values = {arm: {row["seed"]: float(row["learnable_loss"]) for row in arms[arm]} for arm in arms}
        return paired_table(values, RANDOM, {}, 2, "learnable loss, against random")
    values = {arm: {row["seed"]: steps_below(row, 1.0) for row in rows} for arm, rows in arms.items()}
    return paired_table(values, RANDOM, {}, 0, "step below 1 nat, against random")


CALIBRATION = ["masks", "runs", "learnable loss", "accuracy", "half correct at step", "entropy less loss"]


def calibration_lines(results: list) -> list:
    """Accuracy and calibration of the learnable tokens at the end, a line of cells per arm that has them."""
    lines = []
    for arm, rows in by_arm([row for row in results if row["learnable_accuracy"]]).items():
        half = [math.inf if row["half_correct"] == "never" else int(row["half_correct"]) for row in rows]
        cells = [arm, str(len(rows))]
        for name in ("learnable_loss", "learnable_accuracy"):
            cells.append(spread([float(row[name]) for row in rows], 2))
        cells.append(when(half))
        cells.append(spread([float(row["learnable_calibration"]) for row in rows], 2))
        lines.append(cells)
    return lines


def mask_table(results: list) -> str:
    """Which kinds an arm masks before any arm knows the table; of the runs that say so."""
    lines = [["masks", "runs", *KINDS]]
    for arm, rows in by_arm([row for row in results if row["masked"]]).items():
        shares = np.mean([list(map(float, row["masked"].split("/"))) for row in rows], axis=0)
        lines.append([arm, str(len(rows)), *(f"{share:.1%}" for share in shares)])
    return markdown(lines)


def median_curves(results: list) -> dict:
    """{arm: (colour, steps, learnable loss: the median over seeds)} of the arms that the figure shows."""
    lines = {}
    shown = [result for result in results if result["arm"] in FIGURE]
    for arm, rows in by_arm(shown).items():
        curves = [[point.split(":") for point in row["curve"].split()] for row in rows]
        steps = [int(step) for step, _ in curves[0]]
        losses = [[float(loss) for _, loss in curve] for curve in curves]
        lines[arm] = (ARMS[arm][1], steps, np.median(losses, axis=0).tolist())
    return lines


def show(results: list, out: Path):
    """Print a table per setting and write its figure."""
    for easy, noise, keys, steps in sorted({setting_of(result) for result in results}):
        rows = [result for result in results if setting_of(result) == (easy, noise, keys, steps)]
        kinds = f"{easy - noise} easy, 2 keys, 1 learnable, {noise} noise"
        floor = np.mean([float(row["floor"]) for row in rows])
        print(f"\nOf {easy + 3} tokens {kinds}. A table of {keys * keys} entries, {steps:,} steps.")
        print(f"The best possible loss of the learnable tokens is {floor:.2f} nats.\n")
        if shares := [float(row["easy_share"]) for row in rows if row["arm"] == RANDOM and row["easy_share"]]:
            print(f"Its models find {np.mean(shares):.1%} of the tokens easy (random masks, at the end).\n")
        print(loss_table(rows))
        if RANDOM in by_arm(rows):  # the others are compared with it
            print(f"\n{transition_table(rows)}")
        if lines := calibration_lines(rows):
            print(f"\n{markdown([CALIBRATION, *lines])}")
        print(f"\n{seed_table(rows, 'loss')}\n\n{seed_table(rows, 'steps')}")
        if any(row["masked"] for row in rows):
            print(f"\nWhat is masked, on average at the evaluations from step {EARLY[0]} to {EARLY[1]}:\n")
            print(mask_table(rows))
        many = "" if easy == EASY_WORDS else f"{easy}-"
        path = out / f"language-{many}{noise}-{keys}-{steps}.svg"
        if lines := median_curves(rows):
            title = f"Held-out loss of the learnable tokens ({kinds})"
            svg = line_chart(title, lines, "step", "nats per learnable token", mark=1)
            path.write_text(svg, encoding="utf-8")
            print(f"\nwritten to {path}")


def main(argv=None):
    """The program."""
    help_format = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=help_format)
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[], help="of language, text and weights; none: only show")
    add("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM", help="which masks")
    add("--easy", type=int, default=EASY_WORDS, help="easy words in a record, without noise")
    add("--noise", type=int, default=0, help="how many of them are noise instead")
    add("--keys", type=int, default=8, help="values of a key; the table has KEYS x KEYS entries")
    add("--steps", type=int, default=1500, help="updates of the weights")
    add("--eval-every", type=int, default=50, help="steps between evaluations")
    add("--results", type=Path, default=RESULTS, help="folder of language.csv and the figures")
    add("--small", action="store_true", help="random and sample, seed 0, a table of 36, 800 steps, into runs")
    o = parser.parse_args(argv)
    if o.small:
        parser.set_defaults(
            seeds=[0], arms=[RANDOM, "sample"], keys=6, steps=800, results=Path("runs/language")
        )
        o = parser.parse_args(argv)
    if not 0 <= o.noise <= o.easy or not 1 <= o.easy <= BODY - 3:
        sys.exit(f"language.py: --easy is from 1 to {BODY - 3}, --noise from 0 to --easy")
    train.keep_freed_ram()
    path = o.results / "language.csv"
    try:
        for seed in o.seeds:
            for arm in o.arms:
                done = {(*setting_of(row), row["arm"], int(row["seed"])) for row in read_results(path)}
                if (o.easy, o.noise, o.keys, o.steps, arm, seed) not in done:
                    print(f"seed {seed}, {arm}", flush=True)
                    add_result(path, make_run(arm, seed, o))
        results = read_results(path)
        if not results:
            raise ValueError(f"{path} holds no results yet: name --seeds, or try --small")
        show(results, o.results)
    except Exception as error:
        sys.exit(f"language.py: {explain(error)}")


if __name__ == "__main__":
    main()
