"""Which tokens each rule hides, as trained checkpoints see it: `python tests/lab/what_is_masked.py --help`.

Rows of a text are read as in training: for `blank`, 2k random candidates of a row are hidden together; for
`visible`, the row is read as it is. Prints, in Markdown: the kinds of token that each rule masks, how entropy
goes with word frequency, and how much the choices of two rules overlap (Jaccard: both / either).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import train  # isort: skip (first: it sets how threads wait, before torch is imported)

import numpy as np
import torch

import masking
from glue_eval import markdown, spearmanr
from model import BertForMaskedLM, load_tokenizer, text_tokenizer

KINDS = ("punctuation", "number", "piece of a word (##)", "the 100 commonest words", "other words")
RATIO = 0.15  # of the tokens that is masked
BODY = 126  # tokens per row, without [CLS] and [SEP]
AT_ONCE = 32  # rows per forward pass


def kind_of(piece: str, common: bool) -> str:
    """The kind of a word piece, one of KINDS."""
    if piece.startswith("##"):
        return "piece of a word (##)"
    if not any(c.isalnum() for c in piece):
        return "punctuation"
    if any(c.isdigit() for c in piece):
        return "number"
    return "the 100 commonest words" if common else "other words"


def kinds_of_vocabulary(pieces: list, frequency: np.ndarray) -> torch.Tensor:
    """The number in KINDS of each id [V]; frequency: how often the text holds each id."""
    words = [i for i in np.argsort(-frequency) if kind_of(pieces[i], True) == "the 100 commonest words"]
    commonest = set(words[:100])
    return torch.tensor([KINDS.index(kind_of(piece, i in commonest)) for i, piece in enumerate(pieces)])


def read_text(corpus: list, tokenizer, least: int) -> np.ndarray:
    """At least so many token ids from the beginning of a text, if it holds them."""
    reader = text_tokenizer(tokenizer)
    ids = []
    for paragraphs, ends in train.read_documents(corpus):
        for encoding in reader.encode_batch_fast(paragraphs, add_special_tokens=False):
            ids += encoding.ids
        if ends:
            ids.append(tokenizer.token_to_id("[SEP]"))
        if len(ids) >= least:
            break
    return np.array(ids)


def read_entropies(model, reading: str, rows, candidates, mask_token_id: int) -> torch.Tensor:
    """How unsure the model is of rows [N, T]: [N, T], nats; of the candidates alone with `blank`."""
    width = masking.candidate_budget(BODY, RATIO, 2.0)
    parts = []
    for part in torch.arange(len(rows)).split(AT_ONCE):
        if reading == "visible":
            parts.append(masking.visible_entropy(model, rows[part]))
        else:
            found = masking.blank_entropy(model, rows[part], candidates[part], mask_token_id, width)
            parts.append(found)
    return torch.cat(parts)


def choose(rows, model, vocab: dict, frequency: np.ndarray, rng):
    """{(reading, rule): what it masks, bool [N, T]}, {reading: correlation of entropy with log frequency}."""
    eligible = masking.eligible_positions(rows, [vocab["[CLS]"], vocab["[SEP]"]])
    candidates = masking.draw_candidates(eligible, RATIO, 2.0, rng)
    choices = {("text", ""): eligible}
    correlations = {}
    for reading in ("blank", "visible"):
        among = candidates if reading == "blank" else None
        entropy = read_entropies(model, reading, rows, candidates, vocab["[MASK]"])
        for rule in masking.RULES:
            if rule == "random" and reading == "visible":
                continue  # random masks need no reading: among the candidates they stand for both
            picked = masking.select_positions(rule, eligible, RATIO, entropy, among, generator=rng)
            choices["" if rule == "random" else reading, rule] = picked
        pool = candidates if reading == "blank" else eligible
        log_frequency = np.log(frequency[rows[pool].numpy()])
        correlations[reading] = spearmanr(log_frequency, entropy[pool].numpy())
    return choices, correlations


def kinds_table(choices: dict, rows, kinds) -> str:
    """Per rule, the share of each kind of token among what it masks, in percent."""
    table = [["reading", "rule", *KINDS, "distinct ids"]]
    for (reading, rule), picked in choices.items():
        chosen = rows[picked]
        counts = torch.bincount(kinds[chosen], minlength=len(KINDS))
        shares = [f"{100 * count / len(chosen):.1f}" for count in counts.tolist()]
        distinct = f"{len(chosen.unique()):,}" if rule else ""
        table.append([reading, rule, *shares, distinct])
    return markdown(table)


def overlap_table(choices: dict) -> str:
    """Per pair of rules, what both mask as a share of what either masks, in percent."""
    names = [key for key in choices if key[1] in ("random", "high", "low", "sample")]
    table = [["masked by both / by either, %", *(" ".join(name).strip() for name in names)]]
    for one in names:
        cells = []
        for other in names:
            both = (choices[one] & choices[other]).sum()
            either = (choices[one] | choices[other]).sum()
            cells.append(f"{100 * (both / either).item():.1f}")
        table.append([" ".join(one).strip(), *cells])
    return markdown(table)


def describe(folder: str, corpus: list, count: int, seed: int):
    """Print what the rules do with `count` rows of a text, read by the checkpoint in `folder`."""
    model = BertForMaskedLM.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    vocab = tokenizer.get_vocab()
    stream = read_text(corpus, tokenizer, 8 * count * BODY)  # more rows say better which words are common
    frequency = np.bincount(stream, minlength=len(vocab))
    kinds = kinds_of_vocabulary(sorted(vocab, key=vocab.get), frequency)
    index = np.arange(min(count, len(stream) // BODY))
    rows = train.take_rows(stream, index, BODY + 2, vocab["[CLS]"], vocab["[SEP]"])

    rng = torch.Generator().manual_seed(seed)
    choices, correlations = choose(rows, model, vocab, frequency, rng)
    print(f"\n### {folder}\n")
    print(kinds_table(choices, rows, kinds))
    found = ", ".join(f"{reading} {value:+.2f}" for reading, value in correlations.items())
    print(f"\nSpearman correlation of entropy with log frequency: {found}\n")
    print(overlap_table(choices))


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
