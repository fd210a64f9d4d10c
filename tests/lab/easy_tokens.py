"""How many tokens of a text are easy? A mask on one of them teaches little, and random masks do not know it.

    python tests/lab/easy_tokens.py text --out data/python.txt    Python source on this machine as a corpus
    python tests/lab/easy_tokens.py share --runs runs/random-0    the share of easy tokens, to a finished run

A token is easy if the model's entropy there is below half a nat, under the random masks of the held-out exam.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import train  # isort: skip (first: it sets how threads wait, before torch is imported)

import argparse
import json
import os
import random

import torch
from tqdm import tqdm

import masking
from glue_eval import markdown
from model import BertForMaskedLM, atomic_write, explain

EASY = 0.5  # nats


def python_source(roots) -> str:
    """All .py files below some folders, in random order: a document per file, a line per block.

    A block ends at an empty line. The order is random so that the first tokens are like all others.
    """
    documents = []
    for root in roots:
        for path in tqdm(sorted(Path(root).rglob("*.py")), str(root), leave=False, disable=None):
            if "site-packages" in path.relative_to(root).parts:
                continue
            source = path.read_text(encoding="utf-8", errors="ignore").replace("\0", "")
            lines = [" ".join(line.split()) for line in source.splitlines()]
            blocks = "\n".join(lines).split("\n\n")
            document = [" ".join(block.split()) for block in blocks if block.strip()]
            documents.append("\n".join(document))
    random.Random(0).shuffle(documents)
    return "\n\n".join(filter(None, documents)) + "\n"


@torch.no_grad()
def exam_entropies(folder) -> tuple[torch.Tensor, float]:
    """(the model's entropy at every masked token of its run's held-out exam, its loss there), nats."""
    record = json.loads((Path(folder) / "args.json").read_text())
    o = argparse.Namespace(**record["options"])
    tokenizer, _, held_out_ids, _ = train.prepare_text(o)
    model = BertForMaskedLM.from_pretrained(folder, vocab_size=tokenizer.get_vocab_size())
    special = [tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[MASK]")]
    exam = train.draw_exam(held_out_ids, o.seq_len, *special)
    ids, places, labels = exam
    loss, _ = train.examine(model, exam)
    return masking.entropy_at(model, ids, places)[labels != masking.IGNORE], loss


def table(runs) -> str:
    """Markdown: a line per run. A model that is as sure as it should be has a mean entropy like its loss."""
    lines = [["run", f"tokens below {EASY} nats", "median entropy", "mean entropy", "less loss"]]
    for folder in runs:
        entropy, loss = exam_entropies(folder)
        mean = entropy.mean().item()
        share = (entropy < EASY).float().mean().item()
        cells = [Path(folder).name, f"{share:.1%}", f"{entropy.median():.2f}", f"{mean:.2f}"]
        lines.append([*cells, f"{mean - loss:+.2f}"])
    return markdown(lines)


def main(argv=None):
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    programs = parser.add_subparsers(dest="program", required=True)
    text = programs.add_parser("text", help="write Python source on this machine as a corpus")
    text.add_argument("--out", type=Path, default=Path("data/python.txt"), help="file to write")
    share = programs.add_parser("share", help="print the share of easy tokens")
    share.add_argument("--runs", nargs="+", required=True, help="folders of train.py, with their args.json")
    o = parser.parse_args(argv)
    try:
        if o.program == "share":
            print(table(o.runs))
            return
        source = python_source([Path(os.__file__).parent, Path(torch.__file__).parent])
        o.out.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(o.out, lambda file: file.write(source.encode()))
        print(f"{len(source):,} characters written to {o.out}")
    except Exception as error:
        sys.exit(f"easy_tokens.py: {explain(error)}")


if __name__ == "__main__":
    main()
