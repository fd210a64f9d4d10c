"""Bugs that this field has had, for "find the bug": `python tests/handout.py --bug N --out FOLDER`.

Each is a change of one place, made when a copy is written. Proved by `python tests/handout.py --check`: the
right text occurs exactly once, and with the wrong one at least one test of the file named here fails.
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
        return "\n".join([f"{self.title}\n{self.why}\nCaught by tests/{self.tests}", "", *diff])


BUGS = (
    Bug(
        "Mean over the vocabulary",
        "train.py",
        "return -target.masked_fill(~counted, 0).sum(), right",
        "return -target.masked_fill(~counted, 0).sum() / logits.shape[-1], right",
        "test_exercise_8_loss.py",
        "Losses look wonderful (9 / 8,192), and AdamW hardly feels a constant factor: only the numbers lie.",
    ),
    Bug(
        "Softmax over the wrong axis",
        "model.py",
        "scores.softmax(-1), dropout",
        "scores.softmax(-2), dropout",
        "test_exercise_1_attention.py",
        "Shapes fit, since scores are square; the weights of a query no longer sum to 1.",
    ),
    Bug(
        "No division by sqrt(D)",
        "model.py",
        "key.transpose(-2, -1) / math.sqrt(query.shape[-1])",
        "key.transpose(-2, -1)",
        "test_exercise_1_attention.py",
        "Scores grow with the width of a head, the softmax saturates and its gradient vanishes.",
    ),
    Bug(
        "Padding mask inverted",
        "model.py",
        "mask = attention_mask.bool()",
        "mask = attention_mask == 0",
        "test_model_encoder.py",
        "Tokens read the padding and nothing else; rows without padding hide the bug.",
    ),
    Bug(
        "Special tokens as random replacements",
        "masking.py",
        "    special = sorted(set(special_ids))\n"
        "    u = torch.rand(input_ids.shape, generator=generator, device=input_ids.device)\n"
        "    other = torch.randint(vocab_size - len(special), u.shape, "
        "generator=generator, device=u.device)\n"
        "    for token_id in special:  # step over each special id: uniform over the others\n"
        "        other += other >= token_id\n",
        "    u = torch.rand(input_ids.shape, generator=generator, device=input_ids.device)\n"
        "    other = torch.randint(vocab_size, u.shape, generator=generator, device=u.device)\n",
        "test_exercise_7_corruption.py",
        "Now and then [SEP] or [PAD] stands where a random word should. No run shows it; a count does.",
    ),
    Bug(
        "Two draws for 80/10/10",
        "masking.py",
        "    corrupted = torch.where(u < masked_below, mask_token_id, torch.where(u < random_below, ",
        "    random = torch.rand_like(u) < random_below - masked_below\n"
        "    corrupted = torch.where(u < masked_below, mask_token_id, torch.where(random, ",
        "test_exercise_7_corruption.py",
        "The second draw acts on the 20% that the first left: 80% [MASK], 2% random, 18% unchanged.",
    ),
    Bug(
        "Labels at places that were not masked",
        "masking.py",
        "input_ids.masked_fill(~selected, IGNORE)",
        "input_ids.clone()",
        "test_exercise_7_corruption.py",
        "Where all places are scored, 85% of the task is to copy what is seen: the loss falls at once.",
    ),
    Bug(
        "Weight decay on LayerNorm and biases",
        "train.py",
        '"weight_decay": 0.0}',
        '"weight_decay": weight_decay}',
        "test_exercise_9_schedule.py",
        "The gains of LayerNorm, which start at 1, are pulled towards 0: too slowly for a short run to show.",
    ),
    Bug(
        "Dropout left on in evaluation",
        "masking.py",
        "    model.eval()\n    try:",
        "    try:",
        "test_masking_entropy.py",
        "Two readings of one text differ. The default --dropout 0 hides it.",
    ),
    Bug(
        "Ranks without averaging ties",
        "glue_eval.py",
        "(count.cumsum() - (count - 1) / 2)[place]",
        "count.cumsum()[place]",
        "test_exercise_10_metrics.py",
        "Equal scores get the highest of the ranks they share. STS-B's labels have many ties.",
    ),
    Bug(
        "Schedule off by one",
        "train.py",
        "min((step + 1) / max(1, warmup)",
        "min(step / max(1, warmup)",
        "test_exercise_9_schedule.py",
        "The first step has rate 0: it is computed and changes nothing. Every other rate is one step late.",
    ),
    Bug(
        "Decoder copied, not tied",
        "model.py",
        "self.decoder.weight = word_embeddings.weight  #",
        "self.decoder.weight.data.copy_(word_embeddings.weight)  #",
        "test_exercise_4_head.py",
        "Equal at the start, different after one update; a folder that is saved and read loses one of them.",
    ),
    Bug(
        "T^2 missing in distillation",
        "distill.py",
        "return temperature**2 * kl.masked_fill(",
        "return kl.masked_fill(",
        "test_exercise_11_distillation.py",
        "The gradient of the teacher's part shrinks as 1 / T^2: at T = 4 a sixteenth is left of it.",
    ),
)
