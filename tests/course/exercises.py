"""The exercises of a course: one table for the handout, its assignment sheet and the points pytest prints.

A new exercise is a row here and the test file it names; `handout.py --check` then proves both.
"""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Exercise:
    """Functions of one file that students write."""

    number: int
    title: str
    file: str
    functions: tuple  # "function" or "Class.method"; their bodies are left out of a handout
    points: int
    hint: str
    question: str  # predict, then run
    needed_by: tuple = ()  # numbers of other exercises whose tests fail without this one

    @property
    def tests(self) -> str:
        """The test file, as in tests/course/test_exercise_3_layer.py."""
        return f"tests/course/test_exercise_{self.number}_{self.title.split()[-1].lower()}.py"

    @property
    def command(self) -> str:
        """What runs its tests and no others; without the last "_", 1 would be 10 as well."""
        return f"pytest -k exercise_{self.number}_"


EXERCISES = (
    Exercise(
        1,
        "Attention",
        "model.py",
        ("attention", "SelfAttention.forward"),
        10,
        "Give a key that may not be read the score -inf before the softmax. The module calls "
        "`F.scaled_dot_product_attention(q, k, v, attn_mask=..., dropout_p=...)`, or your `attention` "
        "in bfloat16 on a CPU, where that is faster; it knows by `self.training` whether dropout is on.",
        "Draw ten random keys and a query of D normal numbers each. How large is the largest weight w of the "
        "ten for D = 4 and for D = 256, with and without the division by sqrt(D)? Take the mean over 1,000 "
        "draws, of w and of w (1 - w), by which the gradient of its score is multiplied: which of the four "
        "could hardly learn?",
    ),
    Exercise(
        2,
        "Embeddings",
        "model.py",
        ("BertEmbeddings.forward",),
        5,
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
        5,
        "Both equations stand in the docstrings of the classes. The blocks of a layer are "
        '`self.attention["self"]`, `self.attention["output"]`, `self.intermediate["dense"]` and '
        "`self.output`.",
        "Every vector that leaves a fresh layer of width 128 has nearly the same length. Which, and why "
        "does it not depend on the text?",
    ),
    Exercise(
        4,
        "The tied head",
        "model.py",
        ("MaskedLMHead.__init__", "MaskedLMHead.forward"),
        5,
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
        15,
        "Take the maximum of each row off first, and compute in float32. Where p is 0, p times log p "
        "counts as 0. For `blank_entropy` two helpers are there: `as_places` says where the candidates "
        "are, `entropy_at` reads the model at these places alone, without gradient and dropout; torch's "
        "`scatter` then puts what was found back to its places. Rows with fewer candidates than others are "
        "read at some other places too: these must be 0 in the end.",
        "Model A wavers between two words, half and half. Model B is 99% sure of one word and spreads the "
        "rest evenly over 8,191 others. Which has the higher entropy, and by what factor?",
    ),
    Exercise(
        6,
        "Selection",
        "masking.py",
        ("mask_budget", "rule_high", "rule_low", "rule_mid", "rule_both", "rule_sample"),
        20,
        "The longest one: 60 to 90 minutes. A rule gives scores [B, T]; `select_positions` takes the k "
        "highest. `rule_random` is there as a model. For `rule_both` rank the pool from above and from "
        "below: `argsort` twice gives ranks (say `argsort(dim=-1, stable=True)`, since without `dim=` it is "
        "a TypeError), and positions outside the pool must not take a rank. For `rule_sample` use -log of "
        "an exponential draw, made with `generator`.",
        'Which words of "The cat sat on the mat, for it was tired." will a trained model be least sure of, '
        "and which would `low` hide? Train with `python train.py`, then let `python masking.py` show it. "
        "Then the question of this project: in a made-up language eight of eleven tokens are easy to guess, "
        "and one follows from two others by a table that must be learned. Who learns the table sooner, "
        "a model with random masks or one with `sample`? `python tests/lab/language.py --small` tells.",
    ),
    Exercise(
        7,
        "Corruption",
        "masking.py",
        ("eligible_positions", "corrupt"),
        10,
        "One uniform number per token decides which of the three happens (`SCHEMES`). To draw among all "
        "words but n special ones, draw among V - n and step over the special ones in increasing order. "
        "Work on copies.",
        "The held-out exam puts [MASK] in place of every hidden token. Which does better in it after 1,000 "
        "steps, `--corruption 80-10-10` or `100-0-0`? To think about, not to run: which would fine-tuning "
        "prefer, where no [MASK] is ever seen?",
    ),
    Exercise(
        8,
        "Loss",
        "train.py",
        ("mlm_loss",),
        5,
        "`gather` looks up the log-probability of each label; a label of -100 is no index. Return a sum, "
        "since the caller knows how many tokens the whole step masks. The held-out exam uses your function; "
        "training uses `MaskedLoss` below it, the same loss with a gradient by hand, so look there "
        "afterwards.",
        "With 8,192 words, what is the loss of a model to which all words are equally likely? That you "
        "compute. And of one that knows word frequencies and nothing else? Guess, then see the line `floor` "
        "of `python train.py`. After how many steps is the held-out loss below it?",
    ),
    Exercise(
        9,
        "Schedule",
        "train.py",
        ("learning_rate", "make_optimizer"),
        5,
        "The smaller of two straight lines, of which either may be left without a step: do not divide by 0. "
        "`torch.optim.AdamW` takes groups of parameters with a `weight_decay` each; matrices have two "
        "dimensions, biases and LayerNorm one. A frozen parameter has `requires_grad` False.",
        "Keep the warm-up, but hold `highest` after it: is the held-out loss of `python train.py` better or "
        "worse half way, and at the end? Write both guesses down before the run, and put the schedule back "
        "after it.",
    ),
    Exercise(
        10,
        "Metrics",
        "glue_eval.py",
        ("accuracy", "f1_score", "matthews_corrcoef", "pearsonr", "spearmanr"),
        10,
        "`as_pair` checks the input and `ratio` makes 0 / 0 a 0. Equal values share the mean of the "
        "ranks they take up: `np.unique` counts them.",
        "90% of the rows are class 1, and a guess says 1 for a random 90% of them, blindly. What are "
        "accuracy, F1 and Matthews correlation? Predict, then draw 100,000 rows. Which would you report?",
    ),
    Exercise(
        11,
        "Distillation",
        "distill.py",
        ("kd_loss",),
        10,
        "`log_softmax` of both, each divided by T first; `exp` of the teacher's is p. Sum where there is "
        "a label. `torch.promote_types(dtype, torch.float32)` is float32 at least.",
        "As T grows, what does the loss tend to with the factor T^2, and what without? Draw two rows of "
        "logits and try T = 1, 10, 100.",
    ),
)


def assignment() -> str:
    """The assignment sheet in Markdown, generated from the table."""
    total = sum(e.points for e in EXERCISES)
    lines = [
        f"## Assignment: {len(EXERCISES)} exercises, {total} points",
        "",
        "The functions below have lost their bodies: each raises NotImplementedError. Their docstrings, or",
        "those of their classes, say what they compute, with equation and shapes; what is refused, and what",
        "becomes of special cases, stands in the tests. Write them. No other code needs a change, and no",
        "exercise needs another, so the order is yours. A test that fails says what it expected, and pytest",
        "ends with your points: the share of an exercise's tests that pass. When all do, `pytest` tries the",
        "whole program, `python train.py` trains your BERT. Allow six to eight hours with the questions.",
        "Before all this: `pip install -r requirements.txt`.",
        "",
        "| | exercise | write | in | test with | points |",
        "|---|---|---|---|---|---|",
    ]
    for e in EXERCISES:
        functions = ", ".join(f"`{name}`" for name in e.functions)
        lines.append(f"| {e.number} | {e.title} | {functions} | `{e.file}` | `{e.command}` | {e.points} |")
    lines += [
        "",
        "All of them: `pytest tests/course`. Read the tests: they say in figures what the docstrings say in",
        f"words. To name the file, `pytest {EXERCISES[0].tests}`, is quicker: `-k` looks",
        "through all files first. With `-x` pytest stops at the first test that fails.",
        "",
        "**Hints, and one question each: write your prediction down, then run.** Questions 6 to 9 train a",
        "model, for which exercises 1 to 9 must be solved: `python train.py` takes about three minutes on",
        "two cores, and 7 and 9 compare two runs (`--out` keeps them apart). The others take a few lines.",
        "",
    ]
    for e in EXERCISES:
        lines += [f"- **{e.number}. {e.title}.** {e.hint}", f"  *Predict, then run:* {e.question}"]
    return "\n".join(lines) + "\n\n"


def scoreboard(stats: dict) -> list[str]:
    """Lines with the points of the exercises that ran, and their total.

    stats: reports by outcome, as pytest's terminal reporter has them. A test function passes if all its cases
    do; one that was skipped, for a library that is not there, does not count; one that did not run failed.
    """
    outcomes = {}
    for outcome in ("skipped", "passed", "failed", "error"):  # the worst of its cases comes last
        for report in stats.get(outcome, ()):
            file, _, test = report.nodeid.partition("::")
            outcomes.setdefault(Path(file).name, {})[test.partition("[")[0]] = outcome
    lines, total, possible = [], 0, 0
    for e in EXERCISES:
        path = Path(__file__).with_name(Path(e.tests).name)
        found = list(outcomes.get(path.name, {}).values())
        if found:
            text = path.read_text(encoding="utf-8")
            count = len(re.findall(r"^def test_", text, re.M)) - found.count("skipped")
            passed = found.count("passed")
            points = e.points * passed // max(1, count)
            total, possible = total + points, possible + e.points
            score = f"{points:>3} of {e.points:>3} points, {passed} of {count} tests pass"
            lines.append(f"exercise {e.number:>2}  {e.title:<14} {score}")
    return [*lines, f"{'total':<27} {total:>3} of {possible:>3} points"] if lines else []
