"""BLiMP: does a masked LM prefer the grammatical sentence of a minimal pair? No fine-tuning is needed.

    python tests/lab/blimp.py --model runs/train --data data/blimp

BLiMP (Warstadt et al. 2020, arXiv 1912.00582) has 67 paradigms of 1,000 pairs, a .jsonl file each; get it
from github.com/alexwarstadt/blimp. A masked LM scores a sentence by its pseudo-log-likelihood (Salazar et al.
2020, arXiv 1910.14659): the sum over its tokens of log p(token | the others, this one hidden). Prints a
Markdown table and writes blimp.json into the folder of the model.
"""

import argparse
import json
import math
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from tqdm import tqdm

import masking
import train
from model import BertForMaskedLM, explain, load_tokenizer, write_json

ROWS = 512  # sentences, each with one token hidden, that are read at once


def read_pairs(folder, limit: int) -> list[dict]:
    """The first `limit` pairs of every paradigm, as BLiMP's files write them. ValueError without any."""
    pairs = []
    for path in sorted(Path(folder).glob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        pairs += [json.loads(line) for line in lines[:limit]]
    if not pairs:
        raise ValueError(f"{folder} holds no .jsonl files: get BLiMP's data folder")
    return pairs


@torch.no_grad()
def pseudo_log_likelihoods(model, tokenizer, sentences: list[str], device="cpu") -> torch.Tensor:
    """sum_i log p(x_i | x without x_i) of each sentence: [n], nats. [CLS] and [SEP] are seen, not scored."""
    mask = tokenizer.token_to_id("[MASK]")
    by_length = defaultdict(list)  # rows of one length need no padding
    for i, encoding in enumerate(tokenizer.encode_batch(sentences)):
        by_length[len(encoding)].append((i, encoding.ids))

    scores = torch.zeros(len(sentences), dtype=torch.float64)
    with masking.evaluating(model):
        for length, group in tqdm(sorted(by_length.items()), "lengths", leave=False, disable=None):
            numbers = torch.tensor([i for i, _ in group])
            ids = torch.tensor([ids for _, ids in group])
            inner = length - 2
            rows = ids.repeat_interleave(inner, 0)  # a row per hidden token
            places = torch.arange(1, length - 1).repeat(len(ids))[:, None]
            owners = numbers.repeat_interleave(inner)
            parts = zip(rows.split(ROWS), places.split(ROWS), owners.split(ROWS), strict=True)
            for row, place, owner in parts:
                hidden = row.scatter(1, place, mask)
                logits = masking.logits_at(model, hidden.to(device), place.to(device))[:, 0]
                log_p = logits.float().log_softmax(-1).cpu()
                scores.index_add_(0, owner, log_p.gather(1, row.gather(1, place))[:, 0].double())
    return scores


def accuracies(pairs: list[dict], good: torch.Tensor, bad: torch.Tensor) -> dict:
    """{paradigm: share of pairs in which the good sentence scores higher}; a tie is no preference: 0.5."""
    right = defaultdict(list)
    for pair, one, other in zip(pairs, good.tolist(), bad.tolist(), strict=True):
        right[pair["UID"]].append(0.5 if one == other else float(one > other))
    return {paradigm: float(np.mean(values)) for paradigm, values in right.items()}


def table(pairs: list[dict], by_paradigm: dict) -> str:
    """Markdown: a line per field of linguistics, then the mean over paradigms with its standard error."""
    fields = defaultdict(dict)
    for pair in pairs:
        field = pair["field"].replace(
            "_", "/"
        )  # one file writes syntax/semantics, the others syntax_semantics
        fields[field][pair["UID"]] = by_paradigm[pair["UID"]]
    lines = ["| field | paradigms | accuracy |", "|---|---|---|"]
    for field, paradigms in sorted(fields.items()):
        lines.append(f"| {field} | {len(paradigms)} | {100 * np.mean(list(paradigms.values())):.1f} |")
    values = list(by_paradigm.values())
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    lines.append(f"| **all** | {len(values)} | **{100 * np.mean(values):.1f}** ({100 * error:.1f}) |")
    return "\n".join(lines)


def main(argv=None):
    """The program."""
    help_format = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=help_format)
    parser.add_argument("--model", required=True, help="checkpoint folder, ours or Hugging Face's")
    parser.add_argument("--data", default="data/blimp", help="folder of BLiMP's .jsonl files")
    parser.add_argument("--pairs", type=int, default=200, help="pairs per paradigm, of 1,000")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps; auto: cuda if there is one")
    o = parser.parse_args(argv)
    train.keep_freed_ram()
    try:
        device, _ = train.pick_hardware(o.device, "float32")
        tokenizer = load_tokenizer(o.model)
        model = BertForMaskedLM.from_pretrained(o.model, vocab_size=tokenizer.get_vocab_size()).to(device)
        pairs = read_pairs(o.data, o.pairs)
        sentences = [pair["sentence_good"] for pair in pairs] + [pair["sentence_bad"] for pair in pairs]
        good, bad = pseudo_log_likelihoods(model, tokenizer, sentences, device).chunk(2)
        by_paradigm = accuracies(pairs, good, bad)
    except Exception as error:
        sys.exit(f"blimp.py: {explain(error)}")
    print(table(pairs, by_paradigm))
    print(f"\n{o.pairs} pairs per paradigm, percent (standard error over paradigms); chance is 50")
    result = {"pairs": o.pairs, "mean": float(np.mean(list(by_paradigm.values()))), "paradigms": by_paradigm}
    write_json(Path(o.model) / "blimp.json", result)


if __name__ == "__main__":
    main()
