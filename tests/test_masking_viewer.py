"""python masking.py: the picture in a terminal, in a pipe, and as a page."""

import re

import pytest

from masking import RULES, as_text, main
from model import SPECIAL_TOKENS, BertConfig, BertForMaskedLM, load_tokenizer

WORDS = [*SPECIAL_TOKENS, "the", "cat", "sat", "##s", "<", ">", "b", "."]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    config = BertConfig(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.max_position_embeddings = 12
    BertForMaskedLM(config).save_pretrained(tmp_path / "model", load_tokenizer(tmp_path))
    return tmp_path / "model"


@pytest.mark.parametrize("reading", ["blank", "visible"])
def test_tokens_figures_and_a_line_for_every_rule(folder, capsys, reading):
    main(["--model", str(folder), "--text", "The cats sat.", "--reading", reading, "--mask-ratio", "0.4"])
    printed = capsys.readouterr().out
    assert re.search(r"the\s+cat\s+##s\s+sat\s+\.", printed)
    assert len(re.findall(r"\b[0-2]\.\d\b", printed)) >= 5, "an entropy below log 13 = 2.6 under every token"
    for rule in RULES:
        line = re.search(rf"^\s*{rule}: (.*)$", printed, re.M)
        assert line and len(re.findall(r"_+", line[1])) == 2, f"{rule} masks 2 of 5 tokens"
    assert "\033" not in printed, "no colour codes outside a terminal"


def test_colour_is_for_terminals(folder):
    shown = as_text(["the", "cat"], [0.5, 2.0], {"high": [False, True]}, 2.0, colour=True)
    assert shown.count("\033[30;48;5;") == 2 and "high: the ___" in shown


def test_the_page_is_one_file_and_escapes_the_text(folder, tmp_path, capsys):
    main(["--model", str(folder), "--text", "<b> the cat", "--html", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;" in page and "<b></b>" not in page
    assert "http" not in page and "<script" not in page, "self-contained, nothing to load"


def test_a_long_text_is_cut_and_said(folder, capsys):
    main(["--model", str(folder), "--text", "the cat sat " * 20])
    assert "cut to the model's 12 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--model", "nowhere"], "nowhere"),
        (["--text", ""], "no token"),
        (["--mask-ratio", "2"], "mask ratio 2"),
    ],
)
def test_bad_input_gets_one_sentence(folder, options, sentence):
    with pytest.raises(SystemExit, match=sentence):
        main(["--model", str(folder), "--text", "the cat", *options])
