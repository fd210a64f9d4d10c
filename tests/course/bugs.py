"""Bugs that this field has had, for "find the bug": `python tests/course/handout.py --bug N --out FOLDER`.

Each is a change of one place, made when a copy is written. `handout.py --check` proves them: the right text
occurs exactly once, and with the wrong one at least one test of the file named here fails.
"""

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """`new` in place of `old` in `file`."""

    title: str
    file: str
    old: str
    new: str
    tests: str  # the test file that catches it
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


BUGS = (
    Bug(
        "Mean over the vocabulary",
        "train.py",
        ".masked_fill(~counted, 0).sum(),",
        ".masked_fill(~counted, 0).sum() / logits.shape[-1],",
        "tests/course/test_exercise_8_loss.py",
        "Losses look wonderful (9 / 8,192), and AdamW hardly feels a constant factor: only the numbers lie.",
    ),
    Bug(
        "Softmax over the wrong axis",
        "model.py",
        "scores.softmax(-1)",
        "scores.softmax(-2)",
        "tests/course/test_exercise_1_attention.py",
        "Shapes fit, since scores are square; the weights of a query no longer sum to 1.",
    ),
    Bug(
        "No division by sqrt(D)",
        "model.py",
        " / math.sqrt(query.shape[-1])",
        "",
        "tests/course/test_exercise_1_attention.py",
        "Scores grow with the width of a head, the softmax saturates and its gradient vanishes.",
    ),
    Bug(
        "Padding mask inverted",
        "model.py",
        "mask = attention_mask.bool()",
        "mask = attention_mask == 0",
        "tests/test_model_encoder.py",
        "Tokens read the padding and nothing else; rows without padding hide the bug.",
    ),
    Bug(
        "Special tokens as random replacements",
        "masking.py",
        "other >= token_id",
        "other > token_id",
        "tests/course/test_exercise_7_corruption.py",
        "Now and then [PAD] stands where a random word should. No run shows it; a count does.",
    ),
    Bug(
        "Two draws for 80/10/10",
        "masking.py",
        "torch.where(u < random_below,",
        "torch.where(torch.rand_like(u) < random_below - masked_below,",
        "tests/course/test_exercise_7_corruption.py",
        "The second draw acts on the 20% that the first left: 80% [MASK], 2% random, 18% unchanged.",
    ),
    Bug(
        "Labels at places that were not masked",
        "masking.py",
        "input_ids.masked_fill(~selected, IGNORE)",
        "input_ids.clone()",
        "tests/course/test_exercise_7_corruption.py",
        "A loop that scores every label trains on 85% copying: the loss falls at once. train.py scores the "
        "masked places alone, which hides the bug.",
    ),
    Bug(
        "Weight decay on LayerNorm and biases",
        "train.py",
        '"weight_decay": 0.0}',
        '"weight_decay": weight_decay}',
        "tests/course/test_exercise_9_schedule.py",
        "The gains of LayerNorm, which start at 1, are pulled towards 0: too slowly for a short run to show.",
    ),
    Bug(
        "Dropout left on in evaluation",
        "masking.py",
        "in model.modules() if module.training",
        "in model.children() if module.training",
        "tests/course/test_exercise_5_entropy.py",
        "Only the outermost modules are told, so two readings of one text differ. The default --dropout 0 "
        "hides it.",
    ),
    Bug(
        "Ranks without averaging ties",
        "glue_eval.py",
        "(count.cumsum() - (count - 1) / 2)[place]",
        "count.cumsum()[place]",
        "tests/course/test_exercise_10_metrics.py",
        "Equal scores get the highest of the ranks they share. STS-B's labels have many ties.",
    ),
    Bug(
        "Schedule off by one",
        "train.py",
        "min((step + 1) / max(1, warmup)",
        "min(step / max(1, warmup)",
        "tests/course/test_exercise_9_schedule.py",
        "The first step has rate 0: it is computed and changes nothing. Every other rate is one step late.",
    ),
    Bug(
        "Decoder copied, not tied",
        "model.py",
        "self.decoder.weight = word_embeddings.weight",
        "self.decoder.weight.data.copy_(word_embeddings.weight)",
        "tests/course/test_exercise_4_head.py",
        "Equal at the start, different after one update; a folder that is saved and read loses one of them.",
    ),
    Bug(
        "T^2 missing in distillation",
        "distill.py",
        "return temperature**2 * kl.",
        "return kl.",
        "tests/course/test_exercise_11_distillation.py",
        "The gradient of the teacher's part shrinks as 1 / T^2: at T = 4 a sixteenth is left of it.",
    ),
    Bug(
        "Blanks that are not hidden",
        "masking.py",
        "entropy_at(model, places, blanked,",
        "entropy_at(model, places, input_ids,",
        "tests/course/test_exercise_5_entropy.py",
        "The model sees the words it is asked about: the `blank` reading has become the `visible` one, and a "
        "run looks normal.",
    ),
)
