"""Which tokens each rule hides, as trained checkpoints see it: `python tests/what_is_masked.py --help`.

Rows of a text are read as in training: for `blank`, 2k random candidates of a row are hidden together; for
`visible`, the row is read as it is. Prints, in Markdown: the kinds of token that each rule masks, how entropy
goes with word frequency, and how much the choices of two rules overlap (Jaccard: both / either).
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import masking  # noqa: E402
import train  # noqa: E402
from glue_eval import markdown, spearmanr  # noqa: E402
from model import BertForMaskedLM, load_tokenizer  # noqa: E402

KINDS = ("punctuation", "number", "piece of a word (##)", "the 100 commonest words", "other words")
READINGS = ("blank", "visible")


def kind_of(piece: str, common: bool) -> int:
    """The number of a token's kind in KINDS."""
    if piece.startswith("##"):
        return 2
    if not any(c.isalnum() for c in piece):
        return 0
    return 1 if any(c.isdigit() for c in piece) else 3 if common else 4


def percent(share: float) -> str:
    """A share of 1, in percent."""
    return f"{100 * share:.1f}"


def describe(folder: str, corpus: list, count: int, seed: int):
    """Print what the rules do with `count` rows of a text, read by the checkpoint in `folder`."""
    model, tokenizer = BertForMaskedLM.from_pretrained(folder), load_tokenizer(folder)
    tokenizer.encode_special_tokens = True
    body, ids = 126, []
    for document in train.read_documents(corpus):
        ids += [i for e in tokenizer.encode_batch_fast(document, add_special_tokens=False) for i in e.ids]
        if len(ids) >= 8 * count * body:  # the more, the better is known which words are common
            break
    vocab, stream = tokenizer.get_vocab(), np.array(ids)
    frequency = np.bincount(stream, minlength=len(vocab))
    pieces = sorted(vocab, key=vocab.get)
    words = [i for i in np.argsort(-frequency) if kind_of(pieces[i], True) == 3][:100]
    kinds = torch.tensor([kind_of(piece, i in set(words)) for i, piece in enumerate(pieces)])
    index = np.arange(min(count, len(stream) // body))
    rows = train.take_rows(stream, index, body + 2, vocab["[CLS]"], vocab["[SEP]"])
    eligible = masking.eligible_positions(rows, [vocab["[CLS]"], vocab["[SEP]"]])
    rng = torch.Generator().manual_seed(seed)
    candidates = masking.draw_candidates(eligible, 0.15, 2.0, rng)

    choices = {("text", ""): eligible}
    correlations = []
    for reading in READINGS:
        if reading == "blank":
            pool, read = candidates, [rows.split(32), candidates.split(32)]
            parts = [masking.blank_entropy(model, *some, vocab["[MASK]"]) for some in zip(*read, strict=True)]
        else:
            pool, parts = eligible, [masking.sequence_entropy(model, some) for some in rows.split(32)]
        entropy = torch.cat(parts)
        for rule in masking.RULES:
            if rule != "random" or reading == "blank":
                among = candidates if reading == "blank" else None
                picked = masking.select_positions(rule, eligible, 0.15, entropy, among, generator=rng)
                choices[reading if rule != "random" else "", rule] = picked
        log_frequency = np.log(frequency[rows[pool].numpy()])
        correlations.append(f"{reading} {spearmanr(log_frequency, entropy[pool].numpy()):+.2f}")

    print(f"\n### {folder}\n")
    table = [["reading", "rule", *KINDS, "distinct ids"]]
    for (reading, rule), picked in choices.items():
        chosen = rows[picked]
        shares = torch.bincount(kinds[chosen], minlength=len(KINDS)) / len(chosen)
        distinct = f"{len(chosen.unique()):,}" if rule else ""
        table.append([reading, rule, *map(percent, shares.tolist()), distinct])
    print(markdown(table))
    print(f"\nSpearman correlation of entropy with log frequency: {', '.join(correlations)}")
    names = [key for key in choices if key[1] in ("random", "high", "low", "sample")]
    table = [["masked by both / by either, %", *(" ".join(name).strip() for name in names)]]
    for one in names:
        a = choices[one]
        cells = [percent(((a & choices[b]).sum() / (a | choices[b]).sum()).item()) for b in names]
        table.append([" ".join(one).strip(), *cells])
    print(f"\n{markdown(table)}")


def main():
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", required=True, nargs="+", metavar="FOLDER", help="checkpoint folders")
    parser.add_argument("--corpus", required=True, nargs="+", metavar="FILE", help=".txt, .gz or .xz")
    parser.add_argument("--rows", default=1000, type=int, help="rows of 126 tokens (default: 1000)")
    parser.add_argument("--seed", default=0, type=int, help="of candidates and draws (default: 0)")
    o = parser.parse_args()
    for folder in o.models:
        describe(folder, o.corpus, o.rows, o.seed)


if __name__ == "__main__":
    main()
