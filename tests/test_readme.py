"""The README's "Change something": what it says to paste is pasted into a copy of the project, and works."""

import ast
import json
import os
import random
import re
import shlex
import shutil

import pytest
from conftest import PROJECT

import train
from model import load_tokenizer

TEXT = (PROJECT / "README.md").read_text(encoding="utf-8")


def block(below: str, text=TEXT) -> str:
    """The Python that the README, or another page, shows below these words."""
    return re.search(re.escape(below) + r".*?```python\n(.*?)```", text, re.S)[1]


def paste(path, table: str, text: str):
    """Put text right below the table of a source file."""
    source = path.read_text(encoding="utf-8")
    tables = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    line = next(node.end_lineno for node in tables if getattr(node.targets[0], "id", "") == table)
    lines = source.split("\n")
    path.write_text("\n".join([*lines[:line], "", "", text, *lines[line:]]), encoding="utf-8")


@pytest.mark.parametrize("what", ["**A masking rule**", "**A task**", "**A public corpus:**"])
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
    json_lines = re.search(r"For articles in JSON lines, loop over `(.*?)` instead", TEXT)[1]
    convert = re.sub(r"load_dataset\(.*\)", lambda _: json_lines, block("**A public corpus:**"))
    convert = convert.replace("from datasets import load_dataset", "import json")
    (tmp_path / "convert.py").write_text(convert)
    assert run(tmp_path / "convert.py", cwd=tmp_path).returncode == 0
    written = (tmp_path / "wiki.txt").read_text().split("\n\n")
    assert written[:-1] == ["\n".join(sentences[i : i + 4]) for i in range(0, 600, 4)], (
        "one paragraph a line, an empty line between documents"
    )

    paste(tmp_path / "masking.py", "RULES", block("**A masking rule**"))
    small = "--vocab-size 300 --seq-len 32 --batch-size 8 --steps 4 --entropy-warmup 0 --device cpu".split()
    done = run(tmp_path / "train.py", "--corpus", "wiki.txt", "--select", "above", *small, cwd=tmp_path)
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


# ---- Fine-tune on GLUE ----

COMMANDS = re.findall(r"^python glue_eval\.py (.*)$", TEXT, re.M)


def test_the_commands_for_glue_are_understood():
    import glue_eval

    assert COMMANDS
    for command in COMMANDS:
        o = glue_eval.make_parser().parse_args(shlex.split(command))
        assert o.model or o.download, f"glue_eval.py {command} does nothing"


# A library of this name, with a to_csv that writes as pandas does: csv's quotes, no index.
DATASETS = """
import csv


class Rows(list):
    def to_csv(self, path, sep=","):
        with open(path, "w", newline="") as file:
            csv.writer(file, delimiter=sep, lineterminator="\\n").writerows(self)


def load_dataset(collection, name):
    assert collection == "nyu-mll/glue"
    text = {"sst2": ["sentence"], "qqp": ["question1", "question2"]}.get(name, ["sentence1", "sentence2"])
    head = [*text, "label", "idx"]
    row = ['He said "it".'] * len(text)
    rows = lambda *labels: Rows([head, *([*row, label, i] for i, label in enumerate(labels))])
    return {"train": rows(0, 1), "validation": rows(1), "test": rows(-1, -1, -1)}
"""

EXPORT = """
from pathlib import Path

from datasets import load_dataset

for name, folder in {"rte": "RTE", "sst2": "SST-2", "qqp": "QQP"}.items():
    Path("data/glue", folder).mkdir(parents=True, exist_ok=True)
    for split, rows in load_dataset("nyu-mll/glue", name).items():
        rows.to_csv(f"data/glue/{folder}/{split}.tsv", sep="\\t")
"""


def test_what_the_datasets_library_writes_is_read(run, tmp_path):
    import glue_eval

    (tmp_path / "datasets.py").write_text(DATASETS)
    (tmp_path / "export.py").write_text(EXPORT)
    done = run(tmp_path / "export.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folders = sorted(path.name for path in (tmp_path / "data/glue").iterdir())
    assert folders and set(folders) <= set(glue_eval.TASKS)
    for name in folders:
        splits, _ = glue_eval.load_task(name, tmp_path / "data/glue")
        assert {stem: len(texts) for stem, (texts, _) in splits.items()} == {"train": 2, "dev": 1, "test": 3}
        assert {text for texts, _ in splits.values() for row in texts for text in row} == {'He said "it".'}
        assert splits["train"][1].tolist() == [0, 1]


# ---- "Texts that are not prose" ----

SECTION = re.search(r"\n## Texts that are not prose\n(.*?)\n## ", TEXT, re.S)[1]
ROWS = re.findall(r"^\| ([^|`]+) \| `([^`]+)`[^|]* \| `([^`]+)` \|$", SECTION, re.M)
PAGE = (PROJECT / "tests/lab/texts.md").read_text(encoding="utf-8")
CODES = block("## Records of codes", PAGE)
WIKIPEDIA = block("**A public corpus:**")
WIKITEXT = block("## WikiText-103", PAGE)


def texts_like(line: str) -> list:
    """400 different texts of the pieces of a line: its words or, if it is one word, its characters."""
    rng = random.Random(line)
    gap = " " if " " in line else ""
    pieces = line.split() if gap else list(line)
    return [gap.join(rng.choices(pieces, k=30)) for _ in range(400)]


@pytest.mark.parametrize("text, line, options", ROWS, ids=[row[0] for row in ROWS])
def test_each_kind_of_text_is_read_as_the_readme_says(text, line, options, run, tmp_path):
    made = texts_like(line)
    (tmp_path / "records.txt").write_text("\n\n".join(made))
    if "--vocab codes" in options:
        (tmp_path / "convert.py").write_text(CODES)
        done = run(tmp_path / "convert.py", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(PROJECT)})
        assert done.returncode == 0, done.stderr
    small = "--seq-len 32 --batch-size 8 --steps 2 --entropy-warmup 0 --device cpu".split()
    done = run("train.py", "--corpus", "records.txt", *options.split(), *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^text +400 lines, 400 documents, .* 0.0% of them \[UNK\]$", done.stdout, re.M), (
        done.stdout
    )

    tokenizer = load_tokenizer(tmp_path / "runs/train")
    tokens = [tokenizer.encode(one, add_special_tokens=False).tokens for one in made]
    assert sum(map(len, tokens)) > 400 * 5, "some pieces to learn from"
    if "--cased" in options or text == "records":
        whole = ["".join(t.removeprefix("##") for t in one) for one in tokens]
        assert whole == ["".join(one.split()) for one in made], "capitals are kept"
    if text in ("records", "proteins"):
        assert tokens == [one.split() for one in made], "each code and each letter is a piece"


def test_all_rows_of_that_section_are_tested():
    table = [line for line in SECTION.splitlines() if line.startswith("| ")][1:]
    assert len(ROWS) == len(table) >= 6


def test_wikipedia_becomes_a_corpus(run, tmp_path):
    """With a stand-in for the library: articles whose paragraphs stand between empty lines."""
    articles = [{"text": f"First {i}.\n\nSecond {i}.\n \n\nThird\u2028{i}."} for i in range(5)]
    fake = f"def load_dataset(*names, split, streaming):\n    return iter({articles!r})\n"
    (tmp_path / "datasets.py").write_text(fake)
    (tmp_path / "convert.py").write_text(WIKIPEDIA)
    assert run(tmp_path / "convert.py", cwd=tmp_path).returncode == 0
    read = list(train.read_documents([tmp_path / "wiki.txt"]))
    assert read == [([f"First {i}.", f"Second {i}.", f"Third\u2028{i}."], True) for i in range(5)]


def test_wikitext_becomes_a_corpus(run, tmp_path):
    """Its raw files have empty lines between all paragraphs, and headings of several depths."""
    lines = " \n = Robert <unk> = \n \n He is an actor . \n \n = = Career = = \n \n In 2000 , x = 5 . \n"
    lines += " \n = = = Films = = = \n \n 2 @.@ 5 \n \n = Title of two = \n \n A text . \n \n"
    (tmp_path / "wiki.train.raw").write_text(lines)
    (tmp_path / "convert.py").write_text(WIKITEXT)
    assert run(tmp_path / "convert.py", cwd=tmp_path).returncode == 0
    first = [
        "= Robert <unk> =",
        "He is an actor .",
        "= = Career = =",
        "In 2000 , x = 5 .",
        "= = = Films = = =",
        "2 @.@ 5",
    ]
    read = list(train.read_documents([tmp_path / "wikitext.txt"]))
    assert read == [(first, True), (["= Title of two =", "A text ."], True)]
