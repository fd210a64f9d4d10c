"""The exercises of a course: one table for the handout, its assignment sheet and the points pytest prints.

A new exercise is a row here, the test file it names, and a function in trials.py; `handout.py --check` then
proves all three. Points are given by concept: all tests of a concept pass, or it gives nothing, and where a
concept of the core fails, the exercise gives at most half of its points. The sections of a test file,
`# ---- weights ----`, say which tests belong to which concept.
"""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

COURSE = Path(__file__).resolve().parent
ANSWER_POINTS = 2  # of each question


@dataclass(frozen=True)
class Concept:
    """What is understood or not: a section of the exercise's test file."""

    title: str
    points: int
    core: bool = False  # without it the exercise gives at most half


@dataclass(frozen=True)
class Exercise:
    """Functions of one file that students write."""

    number: int
    title: str
    file: str
    functions: tuple  # "function" or "Class.method"; their bodies are left out of a handout
    hours: float  # with the question
    concepts: tuple
    hint: str
    question: str  # predict, then run
    by_hand: tuple = ()  # names that may not be used; "function: name" is refused in this function alone
    needed_by: tuple = ()  # numbers of other exercises whose tests fail without this one

    @property
    def points(self) -> int:
        """What a whole solution gives."""
        return sum(concept.points for concept in self.concepts)

    @property
    def tests(self) -> str:
        """The test file, as in tests/course/test_exercise_3_layer.py."""
        return f"tests/course/test_exercise_{self.number}_{self.title.split()[-1].lower()}.py"

    @property
    def command(self) -> str:
        """What runs its tests and no others; without the last "_", 1 would be 10 as well."""
        return f"pytest -k exercise_{self.number}_"

    def score(self, understood) -> int:
        """The points of those concepts, given by title; at most half where one of the core is missing."""
        points = sum(concept.points for concept in self.concepts if concept.title in understood)
        core = {concept.title for concept in self.concepts if concept.core}
        return points if core <= set(understood) else min(points, self.points // 2)


EXERCISES = (
    Exercise(
        1,
        "Attention",
        "model.py",
        ("attention", "SelfAttention.forward"),
        1.5,
        (
            Concept("weights", 3, core=True),
            Concept("mask", 2),
            Concept("dropout", 1),
            Concept("heads", 4, core=True),
        ),
        "Give a key that may not be read the score -inf before the softmax. `attention` is written by hand; "
        "`SelfAttention.forward` may call it, or torch's own "
        "`F.scaled_dot_product_attention(q, k, v, attn_mask=..., dropout_p=...)`, which is faster and gives "
        "the same numbers. A module knows by `self.training` whether dropout is on.",
        "Draw ten random keys and a query of D normal numbers each. How large is the largest weight w of the "
        "ten for D = 4 and for D = 256, with and without the division by sqrt(D)? Take the mean over 1,000 "
        "draws, of w and of w (1 - w), by which the gradient of its score is multiplied: which of the four "
        "could hardly learn?",
        by_hand=(
            "attention: scaled_dot_product_attention",
            "attention: SelfAttention",
            "MultiheadAttention",
            "multi_head_attention_forward",
        ),
    ),
    Exercise(
        2,
        "Embeddings",
        "model.py",
        ("BertEmbeddings.forward",),
        0.5,
        (Concept("sum", 2, core=True), Concept("segments", 1), Concept("lengths", 1), Concept("dropout", 1)),
        "A table of embeddings is a matrix: `weight[:length]` are the vectors of the first positions. A "
        "sequence longer than all there are is a ValueError. Segment 0 has a vector like any other.",
        "Swap two words of a sentence. If all position embeddings are 0, what happens to the encoder's "
        "output for the other words? Set `position_embeddings.weight` to 0 in a `BertModel` and look.",
    ),
    Exercise(
        3,
        "The layer",
        "model.py",
        ("AddNorm.forward", "BertLayer.forward"),
        0.5,
        (Concept("add and norm", 2, core=True), Concept("dropout", 1), Concept("layer", 2, core=True)),
        "Both equations stand in the docstrings of the classes. The blocks of a layer are "
        '`self.attention["self"]`, `self.attention["output"]`, `self.intermediate["dense"]` and '
        "`self.output`.",
        "Every vector that leaves a fresh layer of width 128 has nearly the same length. Which, and why "
        "does it not depend on the text?",
        by_hand=("TransformerEncoderLayer",),
    ),
    Exercise(
        4,
        "The tied head",
        "model.py",
        ("MaskedLMHead.__init__", "MaskedLMHead.forward"),
        0.75,
        (Concept("tied", 2, core=True), Concept("logits", 2, core=True), Concept("names", 1)),
        "Checkpoints fix the names: `self.transform`, a ModuleDict of `dense` (Linear, H to H) and "
        "`LayerNorm` (with `eps=config.layer_norm_eps`); `self.decoder` (Linear, H to V, with a bias) and "
        "`self.bias`. To tie is to assign, two names for one parameter: `self.bias` is `self.decoder.bias`, "
        "and the decoder's weight is that of the word embeddings. `ACTIVATIONS[config.hidden_act]` is the "
        "activation.",
        "How many parameters does the tiny model (width 128) with 8,192 word pieces save by tying, and what "
        "share is that of the model without tying? The line `model`, with which `python train.py` begins, "
        "has the size with it.",
    ),
    Exercise(
        5,
        "Entropy",
        "masking.py",
        ("prediction_entropy", "blank_entropy"),
        2,
        (
            Concept("entropy", 4, core=True),
            Concept("numbers", 3),
            Concept("precision", 1),
            Concept("blank reading", 5, core=True),
            Concept("care", 2),
        ),
        "Take the maximum of each row off first, and compute in float32. Where p is 0, p times log p "
        "counts as 0. For `blank_entropy` two helpers are there: `as_places` says where the candidates "
        "are, `entropy_at` reads the model at these places alone, without gradient and dropout; torch's "
        "`scatter` then puts what was found back to its places. Rows with fewer candidates than others are "
        "read at some other places too: these must be 0 in the end. One pass of the model is enough for all "
        "candidates. Nothing here may wait for a GPU: no boolean index, no `.item()`, no `.tolist()`; only "
        "where `width` is None the candidates must be counted.",
        "Model A wavers between two words, half and half. Model B is 99% sure of one word and spreads the "
        "rest evenly over 8,191 others. Which has the higher entropy, and by what factor?",
        by_hand=("distributions", "entr", "cross_entropy", "linear_cross_entropy", "MaskedLoss"),
    ),
    Exercise(
        6,
        "Selection",
        "masking.py",
        ("mask_budget", "rule_high", "rule_low", "rule_mid", "rule_both", "rule_sample"),
        2.25,
        (
            Concept("budget", 2),
            Concept("high and low", 3),
            Concept("mid", 4),
            Concept("both", 5),
            Concept("sample", 6, core=True),
        ),
        "The longest one: 60 to 90 minutes. A rule gives scores [B, T]; `select_positions` takes the k "
        "highest. `rule_random` is there as a model. For `rule_both` rank the pool from above and from "
        "below: `argsort` twice gives ranks (say `argsort(dim=-1, stable=True)`, since without `dim=` it is "
        "a TypeError), and positions outside the pool must not take a rank. For `rule_sample` use -log of "
        "an exponential draw, made with `generator`. No rule may wait for a GPU: no boolean index, no "
        "`.item()`; `masked_fill` and `torch.where` do the same on all positions at once.",
        'Which words of "The cat sat on the mat, for it was tired." will a trained model be least sure of, '
        "and which would `low` hide? Train with `python train.py --out runs/q6`, then let "
        "`python masking.py --model runs/q6 --text 'The cat sat on the mat, for it was tired.'` show it. "
        "Then the question of this project: in a made-up language eight of eleven tokens are easy to guess, "
        "and one follows from two others by a table that must be learned. Who learns the table sooner, "
        "a model with random masks or one with `sample`? `python tests/lab/language.py --small` tells.",
    ),
    Exercise(
        7,
        "Corruption",
        "masking.py",
        ("eligible_positions", "corrupt"),
        1,
        (
            Concept("80-10-10", 4, core=True),
            Concept("labels", 2),
            Concept("uniform", 2),
            Concept("care", 1),
            Concept("eligible", 1),
        ),
        "One uniform number per token decides which of the three happens (`SCHEMES`). To draw among all "
        "words but n special ones, draw among V - n and step over the special ones in increasing order; the "
        "list may name one twice. Work on copies. No boolean index: `torch.where` writes at all places at "
        "once, and waits for no GPU. The ValueError for an unknown scheme says "
        "`f\"corruption {scheme!r} is not one of {', '.join(SCHEMES)}\"`.",
        "The held-out exam puts [MASK] in place of every hidden token. Which does better in it, training "
        "with 80-10-10 or with [MASK] alone? `python train.py --masking random --seq-len 64 --steps 1000 "
        "--out runs/q7-a`, and the same with `--corruption 100-0-0 --out runs/q7-b`. To think about, not to "
        "run: which would fine-tuning prefer, where no [MASK] is ever seen?",
    ),
    Exercise(
        8,
        "Loss",
        "train.py",
        ("mlm_loss",),
        0.5,
        (Concept("loss", 3, core=True), Concept("correct", 1), Concept("numbers", 1)),
        "`gather` looks up the log-probability of each label; a label of -100 is no index. Return a sum, "
        "since the caller knows how many tokens the whole step masks. The held-out exam uses your "
        "function, and in this handout the class `MaskedLoss`, by which a model is trained, calls it too; "
        "the project's own computes the same gradient by hand, faster. No boolean index and no `.item()`: "
        "a step waits for no GPU.",
        "With 8,192 words, what is the loss of a model to which all words are equally likely? That you "
        "compute. And of one that knows word frequencies and nothing else? Guess, then see what `python "
        "train.py` prints as `unigram`. The bias of a fresh head is the logarithm of the word frequencies: "
        "near which of the two is the held-out loss at step 0? After how many steps is it clearly below?",
        by_hand=(
            "cross_entropy",
            "linear_cross_entropy",
            "nll_loss",
            "CrossEntropyLoss",
            "LinearCrossEntropyLoss",
            "NLLLoss",
            "NLLLoss2d",
            "distributions",
            "MaskedLoss",
        ),
    ),
    Exercise(
        9,
        "Schedule",
        "train.py",
        ("learning_rate", "make_optimizer"),
        0.5,
        (Concept("two lines", 2, core=True), Concept("edges", 1), Concept("groups", 2, core=True)),
        "The smaller of two straight lines, of which either may be left without a step: do not divide by 0. "
        "`torch.optim.AdamW` takes groups of parameters with a `weight_decay` each; matrices have two "
        "dimensions, biases and LayerNorm one. A frozen parameter has `requires_grad` False. `fused=True` "
        "updates all parameters in one go, and no step waits for a GPU.",
        "Keep the warm-up, but hold `highest` after it: is the held-out loss better or worse half way, and "
        "at the end? `python train.py --masking random --seq-len 64 --steps 1000 --eval-every 500`, with "
        "`--out runs/q9-a` and your schedule, then with `--out runs/q9-b` and the other. Put the schedule "
        "back after it.",
    ),
    Exercise(
        10,
        "Metrics",
        "glue_eval.py",
        ("accuracy", "f1_score", "matthews_corrcoef", "pearsonr", "spearmanr"),
        1.25,
        (
            Concept("accuracy", 1),
            Concept("F1", 2),
            Concept("Matthews", 3, core=True),
            Concept("correlations", 3, core=True),
            Concept("edges", 1),
        ),
        "`as_pair` checks the input and `ratio` makes 0 / 0 a 0. Equal values share the mean of the "
        "ranks they take up: `np.unique` counts them.",
        "90% of the rows are class 1, and a guess says 1 for a random 90% of them, blindly. What are "
        "accuracy, F1 and Matthews correlation? Predict, then draw 100,000 rows. Which would you report?",
        by_hand=("corrcoef", "cov"),
    ),
    Exercise(
        11,
        "Distillation",
        "distill.py",
        ("kd_loss",),
        0.75,
        (Concept("KL", 5, core=True), Concept("T squared", 2), Concept("numbers", 3)),
        "`log_softmax` of both, each divided by T first; `exp` of the teacher's is p. Sum where there is "
        "a label. `torch.promote_types(dtype, torch.float32)` is float32 at least.",
        "As T grows, what does the loss tend to with the factor T^2, and what without? Draw two rows of "
        "logits and try T = 1, 10, 100.",
        by_hand=("kl_div", "KLDivLoss", "cross_entropy", "distributions"),
    ),
)


LIBRARIES = ("math", "itertools", "functools", "numpy", "torch", "torch.nn", "torch.nn.functional")
AI_POLICY = "*(your lecturer says here what is allowed; for example: explanations, no code; name the tool)*"


def choose(numbers: str) -> tuple:
    """The exercises "1-4,6"; all of them for "". Raises ValueError for others."""
    wanted = set()
    for part in filter(None, numbers.replace(" ", "").split(",")):
        first, dash, last = part.partition("-")
        if not first.isdigit() or not (last if dash else first).isdigit():
            raise ValueError(f"--only {numbers} is no list of exercises like 1-4,6")
        wanted |= set(range(int(first), int(last or first) + 1))
    known = {e.number for e in EXERCISES}
    if wanted - known:
        raise ValueError(f"--only {numbers}: there are exercises {min(known)} to {max(known)}")
    return tuple(e for e in EXERCISES if e.number in wanted or not wanted)


def names(numbers) -> str:
    """1, 2, 3, 5 -> "1 to 3 and 5"."""
    runs = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def assignment(chosen=EXERCISES, student: str = "") -> str:
    """The assignment sheet in Markdown, generated from the table for the exercises that were chosen."""
    total = sum(e.points for e in chosen)
    hours = sum(e.hours for e in chosen)
    answers = ANSWER_POINTS * len(chosen)
    libraries = ", ".join(f"`{name}`" for name in LIBRARIES)
    plural = "s" if len(chosen) > 1 else ""
    if len(chosen) == len(EXERCISES):
        rest = "When all points are there, `pytest tests` tries the whole program, and it is green."
    else:
        rest = "All other functions are there. When all points are yours, `pytest tests` is green."
    start = (
        "The functions below have lost their bodies: each raises NotImplementedError. Their docstrings, or "
        "those of their classes, say what they compute, with equation and shapes; what is refused, and "
        "what becomes of special cases, stands in the tests. Write them. No other code needs a change, and "
        f"no exercise needs another, so the order is yours. Allow {hours:g} hours with the questions. "
        "Before all this: `pip install -r requirements.txt`."
    )
    rules = (
        "`pytest` runs all exercises and ends with your points. What is not written yet prints nothing; a "
        "test that fails says what it expected, what came and what to look at. The way to work is "
        f"`{chosen[0].command} -x`: one exercise, up to its first failure. Read the tests: they say in "
        "figures what the docstrings say in words.",
        "Points are given by concept, the sections of a test file: all its tests pass, or it gives "
        "nothing. Where a concept of the core fails, the exercise gives at most half of its points. You "
        "are graded with other numbers than those of the tests, so a table of answers gives nothing.",
        rest,
        "Only the bodies of these functions are graded, each cut out of its file: helpers and imports belong "
        f"inside a body. Allowed libraries there: {libraries}. Files, processes, `exec`, `getattr` and names "
        "that begin with underscores are refused, and so are functions that would do an exercise for you "
        "(`cross_entropy` in exercise 8).",
        "`python check_submission.py` says what will be graded, and what will be refused and why. Hand in "
        f"the five programs and `answers.md`, in which you answer the questions: {answers} points more.",
        f"Tools that write code: {AI_POLICY}",
    )
    training = [e.number for e in chosen if e.number in (6, 7, 8, 9)]
    questions = (
        "**Hints, and one question each.** Write your prediction into `answers.md` before you run "
        "anything: a wrong prediction that is explained well afterwards is worth as much as a right one. "
    )
    if training:
        needed = [e.number for e in chosen if e.number <= 9]  # the others are of other programs
        questions += (
            f"For question{'s' * (len(training) > 1)} {names(training)} a model is trained, for which "
            f"exercise{'s' * (len(needed) > 1)} {names(needed)} must be there: `python train.py` takes about "
            "three minutes on two cores, and `--out` keeps runs apart. Without `--corpus` the text is the "
            "documentation of Python and its libraries found on your machine, so what a model knows is that. "
            "The others take a few lines."
        )

    lines = [f"## Assignment: {len(chosen)} exercise{plural}, {total} points", ""]
    lines += [f"For: {student}", ""] if student else []
    lines += [wrapped(start), ""]
    lines += ["| | exercise | write | in | test with | hours | points |", "|---|---|---|---|---|---|---|"]
    for e in chosen:
        cells = [e.number, e.title, ", ".join(f"`{name}`" for name in e.functions), f"`{e.file}`"]
        cells += [f"`{e.command}`", f"{e.hours:g}", e.points]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", *(wrapped(rule, "- ") for rule in rules), "", wrapped(questions), ""]
    for e in chosen:
        concepts = ", ".join(f"{c.title} {c.points}{' (core)' * c.core}" for c in e.concepts)
        lines.append(wrapped(f"**{e.number}. {e.title}.** {e.hint}", "- "))
        lines.append(wrapped(f"*Concepts:* {concepts}.", "  "))
        lines.append(wrapped(f"*Predict, then run:* {e.question}", "  "))
    return "\n".join(lines) + "\n\n"


def wrapped(text: str, bullet: str = "") -> str:
    """Lines of at most 110 characters, indented below a bullet; nothing inside of a word is broken."""
    further = " " * len(bullet)
    settings = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(text, 110, initial_indent=bullet, subsequent_indent=further, **settings)


def answer_sheet(chosen=EXERCISES, student: str = "") -> str:
    """answers.md as a student gets it: the questions, and places for three paragraphs each."""
    rule = (
        f"Each question gives {ANSWER_POINTS} points: one for a prediction with its reason, written before "
        "the run, and one for what came, with figures, and why. Two to five sentences are enough."
    )
    lines = ["# Answers", "", f"Student: {student}", "", wrapped(rule)]
    for e in chosen:
        lines += ["", f"## {e.number}. {e.title}", "", wrapped(e.question), ""]
        lines += ["**Prediction, and why:**", "", "**What came (command, figures):**", ""]
        lines += ["**What explains it, or what was wrong in the prediction:**", ""]
    return "\n".join(lines)


# ---- the points that pytest prints ----


def sections(path: Path) -> dict:
    """{name of a test: title of the section `# ---- title ----` in which it stands} of a test file."""
    found = {}
    title = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if header := re.match(r"# ---- (.+) ----$", line):
            title = header[1]
        elif test := re.match(r"def (test_\w+)", line):
            found[test[1]] = title
    return found


def scoreboard(stats: dict) -> list[str]:
    """Lines with the points of the exercises that ran, and their total.

    stats: reports by outcome, as pytest's terminal reporter has them. A test passes if all its cases do; one
    that was skipped, for a library that is not there, does not count. What did not run gives no points. What
    the grader will refuse stands below them, since a test may pass all the same.
    """
    from check_submission import taken  # which imports this file

    outcomes = {}
    for outcome in ("skipped", "passed", "not written", "failed", "error"):  # the worst case comes last
        for report in stats.get(outcome, ()):
            file, _, test = report.nodeid.partition("::")
            outcomes.setdefault(Path(file).name, {})[test.partition("[")[0]] = outcome
    lines, below, total, possible = [], [], 0, 0
    for e in EXERCISES:
        path = COURSE / Path(e.tests).name
        found = outcomes.get(path.name, {})
        if not found:
            continue
        tests = sections(path)
        idle = {title for test, title in tests.items() if test not in found}
        bad = {tests[test] for test, outcome in found.items() if outcome not in ("passed", "skipped")}
        points = e.score([concept.title for concept in e.concepts if concept.title not in bad | idle])
        total, possible = total + points, possible + e.points
        if set(found.values()) == {"not written"}:
            missing = ["not written yet"]
        else:
            missing = []
            for word, titles in (("to do", bad), ("not run", idle - bad)):
                named = [c.title + " (core)" * c.core for c in e.concepts if c.title in titles]
                missing += [f"{word}: {', '.join(named)}"] if named else []
        refused = {
            name: why for name, why in taken(COURSE.parents[1], e)[1].items() if "not written" not in why
        }
        missing += ["refused when graded: see below"] if refused else []
        below += [f"{name} (exercise {e.number}) will not be graded: {why}" for name, why in refused.items()]
        missing = "; ".join(missing) or "all there"
        lines.append(f"exercise {e.number:>2}  {e.title:<14} {points:>3} of {e.points:>3} points, {missing}")
    if not lines:
        return []
    below += ["python check_submission.py says it again, without the tests"] if below else []
    return [*lines, f"{'total':<27} {total:>3} of {possible:>3} points", *below]
