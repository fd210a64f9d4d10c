"""masking.py in two processes: what is read, learned and hidden there, against one process alone."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import PROJECT

pytest.importorskip("transformers")

HEAD = f"""
import json, os, sys

sys.path[:0] = [{str(PROJECT)!r}, {str(PROJECT / "tests")!r}]
import copy

import torch
import torch.distributed as dist

rank = int(os.environ["RANK"])


def finish(**found):
    with open(f"found-{{rank}}.json", "w") as file:
        json.dump(found, file)
    if dist.is_initialized():
        dist.barrier()
    os._exit(0)  # older versions of torch may hang when the group is torn down
"""

WRAPPERS = """
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from encoders import masked_lm, sharpen
from masking import as_places, blank_entropy, logits_at, visible_entropy
from model import BertConfig, BertForMaskedLM, init_normal

dist.init_process_group("gloo")

# One process has a few short rows, the other many long ones: alone, they would take 1 and 9 passes.
rows = []
for count, length in ((60, 12), (200, 46)):
    rng = torch.Generator().manual_seed(count)
    ids = torch.randint(5, 40, (count, length), generator=rng)
    hidden = torch.rand(count, length, generator=rng) < 0.5
    hidden[:, 3] = True
    rows.append((ids, hidden))
ids, hidden = rows[rank]


def build(name):
    torch.manual_seed(0)
    if name == "Roberta":
        return sharpen(masked_lm("Roberta", 40), 8.0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForMaskedLM(BertConfig(vocab_size=40, **sizes))
    init_normal(model, 0.3)
    return model


def wrap(model, kind):
    if kind == "DistributedDataParallel":
        return torch.nn.parallel.DistributedDataParallel(model)
    if kind == "FullyShardedDataParallel":
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
    encoder = model.bert if isinstance(model, BertForMaskedLM) else model.base_model
    layers = encoder.encoder["layer"] if isinstance(model, BertForMaskedLM) else encoder.encoder.layer
    for layer in layers:
        fully_shard(layer)
    return fully_shard(model)


def gradients_of(model, kind):
    if kind == "FullyShardedDataParallel":
        with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
            return [p.grad.clone() for p in model.parameters()]
    return [p.grad.full_tensor() if kind == "fully_shard" else p.grad for p in model.parameters()]


def loss_of(model, ids, hidden):
    picked = logits_at(model, ids, as_places(hidden, 3))
    return picked.float().logsumexp(-1).sum()


found = {}
for kind in ("DistributedDataParallel", "FullyShardedDataParallel", "fully_shard"):
    for name in ("Roberta", "this project"):
        plain = build(name).eval()
        model = wrap(build(name), kind).eval()
        visible = visible_entropy(model, ids) - visible_entropy(plain, ids)
        blank = blank_entropy(model, ids, hidden, 4) - blank_entropy(plain, ids, hidden, 4)

        # The gradient of the loss of all rows, from this process's rows, against that of one process.
        for _ in range(2):  # two slices of a step
            (2 * loss_of(model, ids, hidden)).backward()  # the mean of two processes is taken
        for _ in range(2):
            sum(loss_of(plain, *row) for row in rows).backward()
        worst = 0.0
        for one, parameter in zip(gradients_of(model, kind), plain.parameters(), strict=True):
            truth = parameter.grad
            worst = max(worst, ((one - truth).abs().max() / (truth.abs().max() + 1e-6)).item())
        readings = [blank.abs().max().item(), visible.abs().max().item()]
        found[f"{kind}, {name}"] = [*readings, worst]
finish(**found)
"""


def two_processes(folder, program, *arguments):
    """What the two processes of a program found."""
    (folder / "program.py").write_text(HEAD + program)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command += ["program.py", *arguments]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_with_unequal_rows_read_and_learn_what_one_does(tmp_path):
    for found in two_processes(tmp_path, WRAPPERS):
        assert len(found) == 6, "three wrappers of two models"
        for name, (blank, visible, gradient) in found.items():
            assert blank < 1e-4 and visible < 1e-4, f"{name}: entropies differ by {blank}, {visible}"
            assert gradient < 1e-3, f"{name}: gradients differ by {gradient} of the largest"


TRAINER = """
import test_masking_recipes as recipes
from encoders import word_tokenizer

import masking

drawn = []
mask_batch = masking.mask_batch


def watched(*given, **settings):
    drawn.append(mask_batch(*given, **settings))
    return drawn[-1]


tokenizer = word_tokenizer(recipes.WORDS)
rows = recipes.made_up_rows(tokenizer)
masking.mask_batch = recipes.fixed_masks
_, logs = recipes.run_trainer(recipes.no_dropout("Roberta"), tokenizer, rows, ".", 8, 2)
masking.mask_batch = watched
recipes.run_trainer(recipes.no_dropout("Roberta"), tokenizer, rows, ".", 8, 2, steps=2)
hidden = [(batch["labels"] != -100).int().tolist() for batch in drawn]
ids = [torch.where(b["labels"] == -100, b["input_ids"], b["labels"]).tolist() for b in drawn]
finish(loss=logs[0]["loss"], norm=logs[0]["grad_norm"], hidden=hidden, ids=ids)
"""


def test_the_trainer_in_two_processes(tmp_path):
    pytest.importorskip("accelerate")
    from encoders import word_tokenizer
    from test_masking_recipes import WORDS, by_hand, made_up_rows, no_dropout

    first, second = two_processes(tmp_path, TRAINER)

    # With fixed masks: 2 processes x 2 slices x 8 rows learn from the mean over all hidden tokens.
    tokenizer = word_tokenizer(WORDS)
    loss, norm = by_hand(no_dropout("Roberta"), tokenizer, made_up_rows(tokenizer))
    assert first["loss"] == pytest.approx(loss, rel=1e-3)
    assert first["norm"] == pytest.approx(norm, rel=1e-3)

    # With masks that are drawn: each process hides other places of its rows.
    assert len(first["hidden"]) == len(second["hidden"]) == 4, "two steps of two batches"
    assert first["ids"] != second["ids"], "each process has rows of its own"
    common = 0
    hidden = 0
    for one, other in zip(first["hidden"], second["hidden"], strict=True):
        width = min(len(one[0]), len(other[0]))
        one, other = (torch.tensor(masks)[:, :width] for masks in (one, other))
        common += (one & other).sum().item()
        hidden += one.sum().item()
    assert 0 < hidden and common < 0.5 * hidden, f"{common} of {hidden} places are the same in both"
