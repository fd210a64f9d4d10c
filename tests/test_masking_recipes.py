"""The README's "Your own training loop": its blocks are run as they stand; accumulation changes nothing."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import PROJECT

import masking
from masking import IGNORE, mask_budget

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import transformers as hf  # noqa: E402 (after the check that it is there)
from encoders import masked_lm, word_tokenizer  # noqa: E402

WORDS = [a + b for a in "bcdfghjk" for b in "aeiou"]
V = 5 + len(WORDS)
# Roberta's own loss ignores what Trainer tells it about accumulation, ModernBert's does not.
ARCHITECTURES = ["Roberta", "ModernBert", "DistilBert"]


def section():
    """What README says about other people's loops."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    return re.search(r"^## Your own training loop\n.*?(?=^## )", text, re.M | re.S)[0]


def blocks():
    """The plain loop of the README, and the one with Trainer of the page on encoders."""
    page = (PROJECT / "tests/lab/encoders.md").read_text(encoding="utf-8")
    trainer = re.search(r"^## Masks by entropy in `Trainer`\n.*?```python\n(.*?)```", page, re.M | re.S)[1]
    (plain,) = re.findall(r"```python\n(.*?)```", section(), re.S)
    return {"Trainer": trainer, "loop": plain}


@pytest.fixture
def tokenizer():
    return word_tokenizer(WORDS)


def made_up_rows(tokenizer):
    """32 rows of 6 to 37 words, so that a mean of means is not the mean over all tokens."""
    texts = [" ".join(WORDS[(7 * i + j * j) % len(WORDS)] for j in range(6 + i)) for i in range(32)]
    return [dict(tokenizer(text)) for text in texts]


@pytest.fixture
def rows(tokenizer):
    return made_up_rows(tokenizer)


def no_dropout(architecture):
    """A small model without dropout: then a step is a function of the masks alone."""
    torch.manual_seed(0)
    model = masked_lm(architecture, V, layers=1)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return model


def run_trainer(model, tokenizer, rows, folder, batch_size, accumulate, steps=1, **settings):
    """Run the README's block. Returns (its names, [what was logged at each step])."""
    args = hf.TrainingArguments(
        str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulate,
        max_steps=steps,
        logging_steps=1,
        max_grad_norm=1e9,  # reported, never clipped
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )
    names = {"model": model, "tokenizer": tokenizer, "args": args, "train_rows": rows, "test_rows": rows[:16]}
    exec(blocks()["Trainer"], names)
    logs = names["trainer"].state.log_history
    return names, [entry for entry in logs if "grad_norm" in entry]


def run_loop(model, tokenizer, rows, batch_size, accumulate, monkeypatch):
    """Run the README's block for one step. Returns what a Trainer would log: its loss and gradient norm."""
    batches = [
        dict(tokenizer.pad(rows[start : start + batch_size], return_tensors="pt"))
        for start in range(0, batch_size * accumulate, batch_size)
    ]
    losses = []
    backward = torch.Tensor.backward

    def record(loss):
        losses.append(loss.item())
        backward(loss)

    gradients = {}
    for parameter in model.parameters():  # before the block sets them to None
        parameter.register_post_accumulate_grad_hook(lambda p: gradients.update({p: p.grad.clone()}))
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", record)
        exec(blocks()["loop"], {"model": model, "tokenizer": tokenizer, "steps": [batches]})
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
    return {"loss": sum(losses), "grad_norm": norm}


def fixed_masks(model, batch, tokenizer, **settings):
    """In place of mask_batch: masks by a fixed pattern, at most k per row, many in some and few in others."""
    batch = dict(batch)
    labels = batch.pop("labels", torch.full_like(batch["input_ids"], IGNORE))
    ids = torch.where(labels == IGNORE, batch["input_ids"], labels)
    hidden = (ids % 4 == 1) & (ids >= 5)
    budgets = [mask_budget(words, 0.15) for words in (ids >= 5).sum(-1).tolist()]
    hidden &= hidden.cumsum(-1) <= torch.tensor(budgets)[:, None]
    corrupted = ids.masked_fill(hidden, tokenizer.mask_token_id)
    return {**batch, "input_ids": corrupted, "labels": ids.masked_fill(~hidden, IGNORE)}


def by_hand(model, tokenizer, rows):
    """Mean loss over all hidden tokens of the rows, row by row without padding, and its gradient's norm."""
    total = 0.0
    count = 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        batch = fixed_masks(model, {"input_ids": ids}, tokenizer)
        labels = batch.pop("labels")
        places = labels[0] != IGNORE
        log_p = model(**batch).logits[0, places].log_softmax(-1)
        total = total - log_p.gather(1, labels[0, places, None]).sum()
        count += int(places.sum())
    mean = total / count
    gradients = torch.autograd.grad(
        mean, [p for p in model.parameters() if p.requires_grad], allow_unused=True
    )
    norm = torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm()
    return mean.item(), norm.item()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("batch_size, accumulate", [(32, 1), (8, 4)])
@pytest.mark.parametrize("recipe", ["Trainer", "loop"])
def test_a_step_is_the_mean_over_all_its_hidden_tokens(
    architecture, batch_size, accumulate, recipe, tokenizer, rows, tmp_path, monkeypatch
):
    model = no_dropout(architecture)
    loss, norm = by_hand(model, tokenizer, rows)
    monkeypatch.setattr(masking, "mask_batch", fixed_masks)
    if recipe == "Trainer":
        _, logs = run_trainer(model, tokenizer, rows, tmp_path, batch_size, accumulate)
        step = logs[0]
    else:
        step = run_loop(model, tokenizer, rows, batch_size, accumulate, monkeypatch)
    assert step["loss"] == pytest.approx(loss, rel=1e-3), f"{accumulate} x {batch_size} rows"
    assert step["grad_norm"] == pytest.approx(norm, rel=1e-3), f"{accumulate} x {batch_size} rows"


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_trainer_masks_by_entropy_and_evaluates_by_random_masks(
    accumulate, tokenizer, rows, tmp_path, monkeypatch
):
    masked = []
    mask_batch = masking.mask_batch

    def watched(model, batch, *settings, **more):
        assert "labels" in batch, "the collator's masks, which are undone"
        masked.append(mask_batch(model, batch, *settings, **more))
        return masked[-1]

    monkeypatch.setattr(masking, "mask_batch", watched)
    model = no_dropout("Roberta")
    names, logs = run_trainer(model, tokenizer, rows, tmp_path, 8, accumulate, steps=2, learning_rate=1e-3)
    assert len(masked) == 2 * accumulate
    for batch in masked:
        words = batch["attention_mask"].sum(-1) - 2
        expected = [mask_budget(n, 0.15) for n in words.tolist()]
        assert (batch["labels"] != IGNORE).sum(-1).tolist() == expected, "exactly k per row"
    assert logs[0]["loss"] == pytest.approx(math.log(V), rel=0.1), "an untrained model knows nothing"

    # The evaluation: batches as the collator makes them, and their mean loss.
    evaluated = []
    forward = model.forward

    def watch(**inputs):
        output = forward(**inputs)
        evaluated.append((inputs["input_ids"], output.logits))
        return output

    model.forward = watch
    torch.manual_seed(3)
    reported = names["trainer"].evaluate()["eval_loss"]
    assert len(masked) == 2 * accumulate, "evaluation must not mask by entropy"
    ids = torch.cat([F.pad(ids, (0, 64 - ids.shape[1])) for ids, _ in evaluated])
    share = (ids == tokenizer.mask_token_id).sum(-1) / ((ids > 0).sum(-1) - 2)
    assert 0.03 < share.mean() < 0.25, "about 12% of the words are [MASK]"
    assert share.std() > 0.02, "each word by chance, so not the same share in every row"
    assert reported == pytest.approx(math.log(V), rel=0.15)


def test_the_plain_loop_masks_by_entropy(tokenizer, rows, monkeypatch):
    model = no_dropout("ModernBert")
    before = [p.detach().clone() for p in model.parameters()]
    step = run_loop(model, tokenizer, rows, 8, 4, monkeypatch)
    assert step["loss"] == pytest.approx(math.log(V), rel=0.1), "an untrained model knows nothing"
    changed = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert all(changed), "the step must reach every weight"
    assert all(p.grad is None for p in model.parameters()), "the next step starts from no gradient"


def test_the_plain_loop_draws_masks_that_do_not_depend_on_dropout(tokenizer, rows, monkeypatch):
    found = []
    mask_batch = masking.mask_batch

    def watched(model, batch, *settings, **more):
        before = torch.get_rng_state()
        found.append(mask_batch(model, batch, *settings, **more)["labels"])
        assert torch.equal(torch.get_rng_state(), before), "the stream of dropout must stay where it was"
        return mask_batch(model, batch, *settings, **more)

    monkeypatch.setattr(masking, "mask_batch", watched)
    for seed in (1, 2):
        model = no_dropout("Roberta")
        torch.manual_seed(seed)
        run_loop(model, tokenizer, rows, 8, 4, monkeypatch)
    assert len(found) == 8
    for first, second in zip(found[:4], found[4:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("architecture", ["Roberta", "DistilBert"])
def test_masks_of_the_trainer_are_a_function_of_seed_and_step(
    architecture, tokenizer, rows, tmp_path, monkeypatch
):
    """So that a run that is resumed hides what it would have hidden, whatever dropout has drawn."""
    found = []
    mask_batch = masking.mask_batch

    def watched(*given, **settings):
        found.append(mask_batch(*given, **settings))
        return found[-1]

    monkeypatch.setattr(masking, "mask_batch", watched)
    ids = []
    for run, seed in (("a", 3), ("b", 3), ("c", 4)):
        found.clear()
        settings = {"data_seed": 1, "seed": seed, "learning_rate": 0.0, "warmup_steps": 0}
        model = no_dropout(architecture)
        collator_noise = {"a": 0, "b": 9, "c": 0}[run]
        torch.manual_seed(collator_noise)
        run_trainer(model, tokenizer, rows, tmp_path / run, 8, 2, steps=2, **settings)
        originals = [torch.where(b["labels"] == IGNORE, b["input_ids"], b["labels"]) for b in found]
        ids.append([(o, b["labels"] != IGNORE) for o, b in zip(originals, found, strict=True)])
    for (one, hidden), (other, also) in zip(ids[0], ids[1], strict=True):
        assert torch.equal(one, other) and torch.equal(hidden, also)
    first_step, second_step = [hidden for _, hidden in ids[0]][0], [hidden for _, hidden in ids[0]][2]
    width = min(first_step.shape[1], second_step.shape[1])
    assert not torch.equal(first_step[:, :width], second_step[:, :width]), "another step, other places"


def test_the_section_is_short():
    assert len(section().strip().splitlines()) <= 60
    for recipe, block in blocks().items():
        lines = [line for line in block.splitlines() if line.strip()]
        assert len(lines) <= 24, f"{recipe}: {len(lines)} lines of code"


# ---- the loop that masks from memory, of the lab's page on encoders ----


def memory_loop():
    text = (PROJECT / "tests" / "lab" / "encoders.md").read_text(encoding="utf-8")
    return re.search(r"^## A loop that masks from memory\n.*?```python\n(.*?)```", text, re.M | re.S)[1]


def run_memory_loop(tokenizer, rows, epochs, dropout=0.1):
    torch.manual_seed(0)
    model = masked_lm("Roberta", V, layers=1, hidden_dropout_prob=dropout)
    padded = tokenizer.pad(rows, return_tensors="pt", padding="max_length", max_length=40)["input_ids"]
    names = {"model": model, "tokenizer": tokenizer, "rows": padded, "pad": 0, "epochs": epochs}
    exec(memory_loop(), names)
    return names


def test_the_memory_loop_resumes_to_the_same_bits(tokenizer, rows, tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    whole = run_memory_loop(tokenizer, rows, 4)
    (tmp_path / "halves").mkdir()
    monkeypatch.chdir(tmp_path / "halves")
    run_memory_loop(tokenizer, rows, 2)
    torch.rand(3)  # whatever else a new process draws
    resumed = run_memory_loop(tokenizer, rows, 4)
    for one, other in zip(whole["model"].parameters(), resumed["model"].parameters(), strict=True):
        assert torch.equal(one, other)
    for name, value in vars(whole["memory"]).items():
        assert torch.equal(value.nan_to_num(-1), vars(resumed["memory"])[name].nan_to_num(-1)), name


def test_the_memory_loop_remembers_the_entropies_of_blanks(tokenizer, rows, tmp_path, monkeypatch):
    """Each value is the last one written where its token was a blank, and nothing else was touched."""
    monkeypatch.chdir(tmp_path)
    written = []
    write = masking.EntropyMemory.write

    def watched(self, index, places, entropy, blank):
        write(self, index, places, entropy, blank)
        written.append((index, places, entropy, blank))

    monkeypatch.setattr(masking.EntropyMemory, "write", watched)
    names = run_memory_loop(tokenizer, rows, 6)
    values = names["memory"].values
    known = ~values.isnan()
    ids = names["rows"]
    assert (ids[known] >= 5).all(), "padding or a special token was a blank"
    assert 0.3 < known.sum() / (ids >= 5).sum() < 0.9, "six epochs of 12% each"
    expected = torch.full(values.shape, torch.nan)
    for index, places, entropy, blank in written:  # the last one counts
        for row, row_places, row_entropy, row_blank in zip(index, places, entropy, blank, strict=True):
            expected[row, row_places[row_blank]] = row_entropy[row_blank]
    assert torch.allclose(values[known].float(), expected[known], atol=0.01)
    assert torch.equal(expected.isnan(), ~known)
    assert (values[known] <= math.log(V) + 0.01).all()


def test_an_evaluation_that_does_not_count_its_labels_gets_their_mean(tokenizer, rows, tmp_path):
    names, _ = run_trainer(no_dropout("Roberta"), tokenizer, rows, tmp_path, batch_size=4, accumulate=1)
    logits = torch.randn(3, 5, V)
    labels = torch.full((3, 5), IGNORE)
    labels[:, 1:3] = 7
    outputs = hf.modeling_outputs.MaskedLMOutput(logits=logits)
    wanted = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert torch.allclose(names["mean_of_step"](outputs, labels, None), wanted)
