"""The README's "Change something": what it says to paste is pasted into a copy of the project, and works."""

import ast
import json
import random
import re
import shutil

import pytest
from conftest import PROJECT

TEXT = (PROJECT / "README.md").read_text(encoding="utf-8")


def block(below: str) -> str:
    """The Python that the README shows below these words."""
    return re.search(re.escape(below) + r".*?```python\n(.*?)```", TEXT, re.S)[1]


def paste(path, table: str, text: str):
    """Put text right below the table of a source file."""
    source = path.read_text(encoding="utf-8")
    tables = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    line = next(node.end_lineno for node in tables if getattr(node.targets[0], "id", "") == table)
    lines = source.split("\n")
    path.write_text("\n".join([*lines[:line], "", "", text, *lines[line:]]), encoding="utf-8")


@pytest.mark.parametrize("what", ["**A masking rule**", "**A task**", "**A corpus**"])
def test_a_change_takes_less_than_ten_lines(what):
    assert len(block(what).splitlines()) < 10


def test_a_new_rule_a_new_corpus_and_a_new_task_work(run, tmp_path):
    for path in PROJECT.glob("*.py"):
        shutil.copy(path, tmp_path)
    rng = random.Random(0)
    words = [a + b for a in ("ba", "co", "du", "fi", "ga", "lo") for b in ("rn", "st", "m", "lt", "p", "nd")]
    sentences = [" ".join(rng.choices(words, k=12)) for _ in range(600)]
    articles = [{"text": "\n\n".join(sentences[i : i + 4])} for i in range(0, 600, 4)]
    (tmp_path / "articles.jsonl").write_text("\n".join(map(json.dumps, articles)))
    (tmp_path / "convert.py").write_text(block("**A corpus**"))
    assert run(tmp_path / "convert.py", cwd=tmp_path).returncode == 0
    written = (tmp_path / "corpus.txt").read_text().split("\n\n")
    assert written[:-1] == ["\n".join(sentences[i : i + 4]) for i in range(0, 600, 4)], (
        "one paragraph a line, an empty line between documents"
    )

    paste(tmp_path / "masking.py", "RULES", block("**A masking rule**"))
    small = "--vocab-size 300 --seq-len 32 --batch-size 8 --steps 4 --entropy-warmup 0 --device cpu".split()
    done = run(tmp_path / "train.py", "--corpus", "corpus.txt", "--select", "above", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "above of blank entropy" in done.stdout, "the run names its rule"

    paste(tmp_path / "glue_eval.py", "TASKS", block("**A task**"))
    folder = tmp_path / "data/glue/Movies"
    folder.mkdir(parents=True)
    for name in ("train", "dev"):
        rows = "".join(f"{sentences[i]}\t{i % 2}\n" for i in range(40))
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + rows)
    options = "--model runs/train --tasks Movies --seeds 0 --epochs 1 --device cpu".split()
    done = run(tmp_path / "glue_eval.py", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| Movies +\| accuracy +\| \d", done.stdout), f"no row for the task in\n{done.stdout}"


def test_a_new_rule_masks_what_it_says():
    import torch

    import masking

    names = dict(vars(masking), RULES={})
    exec(block("**A masking rule**"), names)
    entropy = torch.tensor([[9.0, 1.0, 2.0, 8.0, 100.0], [1.0, 1.0, 7.0, 1.0, 1.0]])
    pool = torch.tensor([[True, True, True, True, False], [True] * 5])
    scores = names["RULES"]["above"](entropy, pool, 1.0, None).masked_fill(~pool, -1)
    assert scores.tolist() == [[1, 0, 0, 1, -1], [0, 0, 1, 0, 0]], "above the mean of the pool: 5, and 2.2"
