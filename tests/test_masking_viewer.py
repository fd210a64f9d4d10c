"""python masking.py: the picture in a terminal, in a pipe, and as a page."""

import re

import pytest
import torch

import masking
from masking import RULES, main, mask_budget, prediction_entropy
from model import SPECIAL_TOKENS, BertConfig, BertForMaskedLM, init_normal, load_tokenizer

WORDS = [*SPECIAL_TOKENS, "the", "cat", "sat", "##s", "<", ">", "b", "."]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.max_position_embeddings = 12
    model = BertForMaskedLM(config)
    init_normal(model, 0.5)  # entropies that differ
    model.save_pretrained(tmp_path / "model", load_tokenizer(tmp_path))
    return tmp_path / "model"


def read_table(printed):
    """[(token, nats, {rule: whether masked})] of the printed picture."""
    lines = printed.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("token "))
    rules = lines[head].split()[2:]
    table = []
    for line in lines[head + 1 :]:
        found = re.match(r"(\S+) +(\d+\.\d+) [█ ]{8} ([■· ]+)$", line)
        if found:
            picks = dict(zip(rules, found[3].split(), strict=True))
            table.append((found[1], float(found[2]), {rule: mark == "■" for rule, mark in picks.items()}))
    return table


@pytest.mark.parametrize("reading", ["blank", "visible"])
def test_a_line_per_token_with_its_entropy_and_what_each_rule_hides(folder, capsys, reading):
    main(["--model", str(folder), "--text", "The cats sat.", "--reading", reading, "--mask-ratio", "0.4"])
    printed = capsys.readouterr().out
    table = read_table(printed)
    assert [token for token, _, _ in table] == ["the", "cat", "##s", "sat", "."]

    model = BertForMaskedLM.from_pretrained(folder)
    ids = [2, 5, 6, 8, 7, 12, 3]
    for place, (token, nats, _) in enumerate(table, start=1):
        row = torch.tensor([ids])
        if reading == "blank":
            row[0, place] = WORDS.index("[MASK]")  # each token hidden alone
        with torch.no_grad():
            expected = prediction_entropy(model(row)[0, place]).item()
        assert nats == pytest.approx(expected, abs=0.051), f"entropy of {token}, rounded"

    k = mask_budget(5, 0.4)
    for rule in RULES:
        hidden = [nats for _, nats, picks in table if picks[rule]]
        shown = [nats for _, nats, picks in table if not picks[rule]]
        assert len(hidden) == k, f"{rule} masks {k} of 5 tokens"
        if rule == "high":
            assert min(hidden) >= max(shown)
        if rule == "low":
            assert max(hidden) <= min(shown)
    assert "\033" not in printed, "no colour codes outside a terminal"


def test_colour_is_for_terminals(folder, monkeypatch, capsys):
    monkeypatch.setattr(masking.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    main(["--model", str(folder), "--text", "the cat"])
    assert capsys.readouterr().out.count("\033[30;48;5;") == 2, "in a terminal, a colour for each token"
    monkeypatch.setenv("NO_COLOR", "1")
    main(["--model", str(folder), "--text", "the cat"])
    assert "\033[" not in capsys.readouterr().out, "unless the user wants none"


def test_the_page_is_one_file_and_escapes_the_text(folder, tmp_path, capsys):
    main(["--model", str(folder), "--text", "<b> the cat", "--html", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;" in page and "&gt;" in page and "<b></b>" not in page
    assert page.count("hsl(") == 5, "a colour for each of < b > the cat"
    assert "http" not in page and "<script" not in page, "self-contained, nothing to load"


def test_a_long_text_is_cut_to_the_models_longest_row(folder, capsys):
    main(["--model", str(folder), "--text", "the cat sat " * 20])
    assert len(read_table(capsys.readouterr().out)) == 10, "12 positions with [CLS] and [SEP]"


def test_pieces_that_the_vocabulary_lacks_are_said(folder, capsys):
    main(["--model", str(folder), "--text", "the zebra sat"])
    assert re.search(r"WARNING.*\[UNK\].*vocabulary lacks", capsys.readouterr().out)
    main(["--model", str(folder), "--text", "the cat sat"])
    assert "WARNING" not in capsys.readouterr().out, "nothing is missing here"


def test_an_empty_text_gives_an_empty_table(folder, capsys):
    main(["--model", str(folder), "--text", ""])
    assert capsys.readouterr().out.splitlines()[1].startswith("token "), "nothing below the heading"


@pytest.mark.parametrize(
    "options, sentence", [(["--model", "nowhere"], "nowhere"), (["--mask-ratio", "2"], "mask ratio 2")]
)
def test_bad_input_gets_one_sentence(folder, options, sentence):
    with pytest.raises(SystemExit, match=sentence):
        main(["--model", str(folder), "--text", "the cat", *options])
