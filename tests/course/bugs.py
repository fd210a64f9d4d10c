"""Bugs that this field has had, for the bug hunt: `handout.py --hunt --student ID --out FOLDER`.

Each is a change of one place, made when a copy is written. `handout.py --check` proves them: the right text
occurs exactly once, and with the wrong one at least one test of the file named here fails. The symptoms were
measured with the bug in place; the student sees them and neither the tests nor the formulas.
"""

import ast
import difflib
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """`new` in place of `old` in `file`."""

    title: str
    file: str
    old: str
    new: str
    tests: str  # the test file that catches it
    symptom: str  # what somebody saw; all that a student is told
    why: str  # for the teacher: what it does to a run

    def apply(self, source: str) -> str:
        """The source with the bug. Raises ValueError unless the right text occurs exactly once."""
        count = source.count(self.old)
        if count != 1:
            raise ValueError(f"{self.title}: {self.file} holds {self.old!r} {count} times, not once")
        return source.replace(self.old, self.new)

    def answer(self, source: str) -> str:
        """The bug as a diff from the right text to the wrong one, and what it does."""
        lines = (source.splitlines(), self.apply(source).splitlines())
        diff = difflib.unified_diff(*lines, f"{self.file}, right", f"{self.file}, wrong", n=2, lineterm="")
        return "\n".join([f"{self.title}\n{self.why}\nCaught by {self.tests}", "", *diff])


def drawn(student: str) -> list:
    """The two bugs of a student's copy: in different files, always the same two for one id."""
    rng = random.Random(f"bugs of {student}")
    first = rng.choice(BUGS)
    return [first, rng.choice([bug for bug in BUGS if bug.file != first.file])]


class Disguise(ast.NodeTransformer):
    """Other names for local variables, comparisons the other way round, no docstrings: it computes the same.

    Drawn for each student, so that two copies, or a copy and the original, differ nearly everywhere, and a
    comparison of files does not point at the bugs.
    """

    FLIPPED = {ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.GtE, ast.GtE: ast.LtE, ast.Eq: ast.Eq}
    ENDINGS = ("", "_", "_now", "_here", "_part", "s_")

    def __init__(self, student: str):
        self.rng = random.Random(f"names of {student}")
        self.renamed = [{}]

    def visit_FunctionDef(self, node):
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        outermost = len(self.renamed) == 1
        if outermost:
            self.renamed.append(self.other_names(node))
        self.generic_visit(node)
        if outermost:
            self.renamed.pop()
        return node

    def other_names(self, function) -> dict:
        """{local variable: another name}; not of parameters, nor of what a nested scope could mistake."""
        nodes = list(ast.walk(function))
        stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        taken = {n.id for n in nodes if isinstance(n, ast.Name)} | {
            n.arg for n in nodes if isinstance(n, ast.arg)
        }
        fixed = {n.arg for n in nodes if isinstance(n, ast.arg)}
        fixed |= {name for n in nodes if isinstance(n, (ast.Global, ast.Nonlocal)) for name in n.names}
        fixed |= {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ExceptHandler))}
        names = {}
        for name in sorted(stored - fixed):
            other = name + self.rng.choice(self.ENDINGS)
            if other not in taken and other not in names.values():
                names[name] = other
        return names

    def visit_Name(self, node):
        node.id = self.renamed[-1].get(node.id, node.id)
        return node

    def visit_Compare(self, node):
        self.generic_visit(node)
        left, right = node.left, node.comparators[0]
        calls = sum(isinstance(n, ast.Call) for side in (left, right) for n in ast.walk(side))
        flipped = self.FLIPPED.get(type(node.ops[0]))
        if len(node.ops) == 1 and flipped and calls < 2 and self.rng.random() < 0.5:
            return ast.Compare(left=right, ops=[flipped()], comparators=[left])
        return node


def disguised(source: str, student: str) -> str:
    """A program without comments and docstrings of functions, in other words; its own docstring stays."""
    tree = Disguise(student).visit(ast.parse(source))
    return ast.unparse(ast.fix_missing_locations(tree)).replace("\ndef ", "\n\ndef ") + "\n"


BUGS = (
    Bug(
        "Mean over the vocabulary",
        "train.py",
        ".masked_fill(~counted, 0).sum(),",
        ".masked_fill(~counted, 0).sum() / logits.shape[-1],",
        "tests/course/test_exercise_8_loss.py",
        "Before its first step `train.py` prints a held-out loss of 0.001 nats. Guessing blindly among 8,192 "
        "words costs 9.01.",
        "The held-out loss looks wonderful (9 / 8,192), and training goes on as before: mlm_loss is the "
        "exam's alone, MaskedLoss trains the model. Only the numbers lie, and the plateau is never "
        "reported.",
    ),
    Bug(
        "Softmax over the wrong axis",
        "model.py",
        "scores.softmax(-1)",
        "scores.softmax(-2)",
        "tests/course/test_exercise_1_attention.py",
        "On a CPU, the same rows and weights in float32 and in bfloat16 give logits that differ by .037 on "
        "average; rounding explains .0014.",
        "Shapes fit, since scores are square; the weights of a query no longer sum to 1. The equation by "
        "hand runs in bfloat16 on a CPU alone: everywhere else torch's function hides the bug.",
    ),
    Bug(
        "No division by sqrt(D)",
        "model.py",
        " / math.sqrt(query.shape[-1])",
        "",
        "tests/course/test_exercise_1_attention.py",
        "On a CPU, the same rows and weights in float32 and in bfloat16 give logits that differ by .017 on "
        "average; rounding explains .0014.",
        "Scores grow with the width of a head, the softmax saturates and its gradient vanishes; seen in "
        "bfloat16 on a CPU alone, where the equation by hand is used.",
    ),
    Bug(
        "Padding mask inverted",
        "model.py",
        "mask = attention_mask.bool()",
        "mask = attention_mask == 0",
        "tests/test_model_encoder.py",
        "A sentence of 20 tokens, alone and with 12 places of padding behind it: the logits of its own "
        "tokens differ by up to .71 (standard deviation .23). Without padding nothing is wrong.",
        "Tokens read the padding and nothing else. train.py packs rows without padding, which hides the bug: "
        "fine-tuning and mask_batch show it.",
    ),
    Bug(
        "Special tokens as random replacements",
        "masking.py",
        "other >= token_id",
        "other > token_id",
        "tests/course/test_exercise_7_corruption.py",
        "Of ten million hidden tokens, 111 were replaced by [PAD], [UNK], [CLS] or [SEP].",
        "Now and then [PAD] stands where a random word should. No run shows it; a count does.",
    ),
    Bug(
        "Two draws for 80/10/10",
        "masking.py",
        "torch.where(u < random_below,",
        "torch.where(torch.rand_like(u) < random_below - masked_below,",
        "tests/course/test_exercise_7_corruption.py",
        "Of a million hidden tokens 80.1% became [MASK], and 18.0% stayed what they were.",
        "The second draw acts on the 20% that the first left: 80% [MASK], 2% random, 18% unchanged.",
    ),
    Bug(
        "Labels at places that were not masked",
        "masking.py",
        "input_ids.masked_fill(~selected, IGNORE)",
        "input_ids.clone()",
        "tests/course/test_exercise_7_corruption.py",
        "A training loop of somebody else, with `mask_batch`, ends at a loss near 0. Of its labels 100% "
        "count, and 15% of the tokens were masked.",
        "A loop that scores every label trains on 85% copying: the loss falls at once. train.py takes "
        "labels at the masked places alone, which hides the bug.",
    ),
    Bug(
        "Weight decay on LayerNorm and biases",
        "train.py",
        '"weight_decay": 0.0}',
        '"weight_decay": weight_decay}',
        "tests/course/test_exercise_9_schedule.py",
        "A parameter whose gradient is always 0 started at 1 and is at .980 after 2,000 steps of rate "
        ".001. It is no matrix.",
        "The gains of LayerNorm, which start at 1, are pulled towards 0: too slowly for a short run to show.",
    ),
    Bug(
        "Dropout left on in evaluation",
        "masking.py",
        "in model.modules() if module.training",
        "in model.children() if module.training",
        "tests/course/test_exercise_5_entropy.py",
        "With `--dropout 0.1` two evaluations of one checkpoint on the same exam differ in the fourth digit. "
        "Without dropout they agree to the last bit.",
        "Only the outermost modules are told, so two readings of one text differ. The default --dropout 0 "
        "hides it.",
    ),
    Bug(
        "Ranks without averaging ties",
        "glue_eval.py",
        "(count.cumsum() - (count - 1) / 2)[place]",
        "count.cumsum()[place]",
        "tests/course/test_exercise_10_metrics.py",
        "Labels 5 5 4 4 4 2 1 1 0 0, predictions 4.8 4.1 4.4 3.1 2.9 3.3 1.5 .2 .9 .4: the table of "
        "results says .8304 for one of STS-B's figures, another program .8485. For 4.1 and the like, "
        "without equal labels, they agree.",
        "Equal scores get the highest of the ranks they share. STS-B's labels have many ties.",
    ),
    Bug(
        "Schedule off by one",
        "train.py",
        "min((step + 1) / max(1, warmup)",
        "min(step / max(1, warmup)",
        "tests/course/test_exercise_9_schedule.py",
        "After the first step every weight is what it was before, to the last bit. After the second they "
        "moved.",
        "The first step has rate 0: it is computed and changes nothing. Every other rate is one step late.",
    ),
    Bug(
        "Decoder copied, not tied",
        "model.py",
        "self.decoder.weight = word_embeddings.weight",
        "self.decoder.weight.data.copy_(word_embeddings.weight)",
        "tests/course/test_exercise_4_head.py",
        "The tiny model with 8,192 words is reported with 2,584,704 parameters; 1,536,128 were expected. A "
        "run that is saved and opened elsewhere predicts other words than it did.",
        "Equal at the start, different after one update; a folder that is saved and read loses one of them.",
    ),
    Bug(
        "T^2 missing in distillation",
        "distill.py",
        "return temperature**2 * kl.",
        "return kl.",
        "tests/course/test_exercise_11_distillation.py",
        "The gradient of a student with random logits has length 2.47 at temperature 1, .53 at 2, .13 at 4 "
        "and .03 at 8, so that at high temperatures the teacher hardly counts.",
        "The gradient of the teacher's part shrinks as 1 / T^2: at T = 4 a sixteenth is left of it.",
    ),
    Bug(
        "Blanks that are not hidden",
        "masking.py",
        "entropy_at(model, blanked, places,",
        "entropy_at(model, input_ids, places,",
        "tests/course/test_exercise_5_entropy.py",
        "`--reading blank` and `--reading visible` give the same entropies, to the last digit, at every "
        "candidate.",
        "The model sees the words it is asked about: the `blank` reading has become the `visible` one, and a "
        "run looks normal.",
    ),
)
