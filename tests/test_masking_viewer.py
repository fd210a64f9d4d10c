"""python masking.py: the picture in a terminal, in a pipe, and as a page."""

import html
import json
import math
import re

import pytest
import torch

import masking
from masking import RULES, main, mask_budget
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
    """[(token, nats, guess, percent, {rule: whether masked})] of all printed pictures."""
    table = []
    rules = []
    for line in printed.splitlines():
        if re.match("token +nats +guess ", line):
            rules = line.split()[3:]
        found = re.match(r"(\S+) +(\d+\.\d\d) [█ ]{8} (\S+) (\d+)% +([■· ]+)$", line)
        if found:
            picks = dict(zip(rules, found[5].split(), strict=True))
            marks = {rule: mark == "■" for rule, mark in picks.items()}
            table.append((found[1], float(found[2]), found[3], int(found[4]), marks))
    return table


@pytest.mark.parametrize("reading", ["blank", "visible"])
def test_a_line_per_token_with_its_entropy_a_guess_and_what_each_rule_hides(folder, capsys, reading):
    main(["--model", str(folder), "--text", "The cats sat.", "--reading", reading, "--mask-ratio", "0.4"])
    printed = capsys.readouterr().out
    table = read_table(printed)
    assert [row[0] for row in table] == ["the", "cat", "##s", "sat", "."]

    model = BertForMaskedLM.from_pretrained(folder)
    ids = [2, 5, 6, 8, 7, 12, 3]
    for place, (token, nats, guess, percent, _) in enumerate(table, start=1):
        row = torch.tensor([ids])
        if reading == "blank":
            row[0, place] = WORDS.index("[MASK]")  # each token hidden alone
        with torch.no_grad():
            p = model(row)[0, place].double().softmax(-1)
        assert nats == pytest.approx(-(p * p.log()).sum().item(), abs=0.0051), f"entropy of {token}"
        assert guess == WORDS[p.argmax()], f"guess in the place of {token}"
        assert percent == pytest.approx(100 * p.max().item(), abs=0.51)

    k = mask_budget(5, 0.4)
    for rule in RULES:
        hidden = [nats for _, nats, _, _, picks in table if picks[rule]]
        shown = [nats for _, nats, _, _, picks in table if not picks[rule]]
        assert len(hidden) == k, f"{rule} masks {k} of 5 tokens"
        if rule == "high":
            assert min(hidden) >= max(shown)
        if rule == "low":
            assert max(hidden) <= min(shown)
    assert "\033" not in printed, "no colour codes outside a terminal"


@pytest.mark.parametrize(
    "reading, words", [("blank", "blank reading: each token hidden alone"), ("visible", "visible reading")]
)
def test_the_legend_says_what_is_shown(folder, capsys, reading, words):
    main(["--model", str(folder), "--text", "the cat", "--reading", reading, "--mask-ratio", "0.5"])
    legend = capsys.readouterr().out.partition("\n\n")[0]
    assert legend.startswith(f"{folder}, {words}")
    assert f"from 0 to {math.log(len(WORDS)):.2f}" in legend, "nobody is less sure than log V"
    assert "redder" in legend and "■" in legend and "50%" in legend


def test_several_texts_and_a_file_are_read_line_by_line_in_one_scale(folder, tmp_path, capsys):
    (tmp_path / "lines.txt").write_text("sat the\n\n  \ncat\n", encoding="utf-8")
    main(["--model", str(folder), "--text", "the cat", "--text", "b", "--file", str(tmp_path / "lines.txt")])
    printed = capsys.readouterr().out
    table = read_table(printed)
    assert [row[0] for row in table] == ["the", "cat", "b", "sat", "the", "cat"]
    assert printed.count("\n\ntoken ") == 4, "a heading for each"
    bars = {row[1]: len(re.search("█*", line)[0]) for row, line in zip(table, lines_of(printed), strict=True)}
    highest = max(bars)
    for nats, bar in bars.items():
        assert bar == pytest.approx(8 * nats / highest, abs=0.51), "a bar of one length means one entropy"


def lines_of(printed):
    """The bars of a printed picture and what stands behind them, a line per token."""
    return [line for line in re.findall(r"\d\.\d\d ([█ ]{8}) ", printed)]


def test_colour_is_for_terminals(folder, monkeypatch, capsys):
    monkeypatch.setattr(masking.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    main(["--model", str(folder), "--text", "the cat"])
    assert capsys.readouterr().out.count("\033[30;48;5;") == 2, "in a terminal, a colour for each token"
    monkeypatch.setenv("NO_COLOR", "1")
    main(["--model", str(folder), "--text", "the cat"])
    assert "\033[" not in capsys.readouterr().out, "unless the user wants none"


def test_the_page_is_one_file_says_the_same_and_escapes_the_text(folder, tmp_path, capsys):
    main(
        ["--model", str(folder), "--text", "<b> the cat", "--text", "sat", "--html", str(tmp_path / "p.html")]
    )
    printed = capsys.readouterr().out
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "&lt;" in page and "&gt;" in page and "<b>" not in page
    assert page.count("hsl(") == 6, "a colour for each of < b > the cat, and for sat"
    assert "http" not in page and "<script" not in page, "self-contained, nothing to load"
    assert f"<title>How unsure is {folder}?</title>" in page
    assert "color-scheme: light dark" in page, "the browser's own dark colours"
    text = html.unescape(re.sub("<[^>]*>", "", re.search("<pre>(.*)</pre>", page, re.S)[1]))
    assert text == printed.partition("\nwritten to")[0], "legend, headings and tables as in the terminal"


def test_a_colour_is_as_red_as_the_entropy_is_high(folder, tmp_path, capsys):
    main(["--model", str(folder), "--text", "the cat sat", "--html", str(tmp_path / "page.html")])
    nats = [row[1] for row in read_table(capsys.readouterr().out)]
    lightness = re.findall(r"hsl\(0 100% (\d+)%\)", (tmp_path / "page.html").read_text(encoding="utf-8"))
    for value, light in zip(nats, map(int, lightness), strict=True):
        assert light == pytest.approx(100 - 40 * value / max(nats), abs=0.7), "white is 0, the reddest is 60"


def test_a_long_text_is_cut_to_the_models_longest_row(folder, capsys):
    main(["--model", str(folder), "--text", "the cat sat " * 20])
    printed = capsys.readouterr().out
    assert len(read_table(printed)) == 10, "12 positions with [CLS] and [SEP]"
    assert "50 more tokens" in printed, "60 were given"
    main(["--model", str(folder), "--text", "the cat sat"])
    assert "more tokens" not in capsys.readouterr().out


@pytest.mark.parametrize("trained, shown", [(None, 10), (7, 5), (12, 10), (500, 10)])
def test_the_viewer_stops_at_the_longest_row_in_training_where_it_is_known(folder, capsys, trained, shown):
    config = json.loads((folder / "config.json").read_text())
    config.pop("trained_length", None)  # unknown
    if trained:
        config["trained_length"] = trained
    (folder / "config.json").write_text(json.dumps(config))
    main(["--model", str(folder), "--text", "the cat sat " * 20])
    printed = capsys.readouterr().out
    assert len(read_table(printed)) == shown
    assert f"{60 - shown} more tokens" in printed


def test_pieces_that_the_vocabulary_lacks_are_said(folder, capsys):
    main(["--model", str(folder), "--text", "the zebra sat"])
    assert re.search(r"WARNING.*\[UNK\].*vocabulary lacks", capsys.readouterr().out)
    main(["--model", str(folder), "--text", "the cat sat"])
    assert "WARNING" not in capsys.readouterr().out, "nothing is missing here"


def test_a_mask_in_the_text_asks_for_the_models_word(folder, capsys):
    main(["--model", str(folder), "--text", "the [MASK] sat", "--reading", "visible"])
    model = BertForMaskedLM.from_pretrained(folder)
    with torch.no_grad():
        best = model(torch.tensor([[2, 5, 4, 7, 3]]))[0, 2].argmax()
    assert read_table(capsys.readouterr().out)[1][2] == WORDS[best]


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--model", "nowhere"], "nowhere"),
        (["--mask-ratio", "2"], "mask ratio 2"),
        (["--text", ""], "the text '' has no tokens"),
        (["--text", " \t"], "has no tokens"),
        (["--file", "no-such-file.txt"], "no-such-file.txt: No such file"),
        (["--file", "latin.txt"], "a text file is not UTF-8: .*iconv -f LATIN1"),
    ],
)
def test_bad_input_gets_one_sentence(folder, options, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(SystemExit, match=sentence):
        main(["--model", str(folder), "--text", "the cat", *options])


def test_nothing_to_read_is_refused(folder, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    for options in ([], ["--file", str(tmp_path / "empty.txt")]):
        with pytest.raises(SystemExit, match="nothing to read"):
            main(["--model", str(folder), *options])


def test_damaged_weights_are_said(folder):
    model = BertForMaskedLM.from_pretrained(folder)
    model.cls["predictions"].bias.data[3] = float("inf")
    model.save_pretrained(folder, load_tokenizer(folder))
    with pytest.raises(SystemExit, match="not finite"):
        main(["--model", str(folder), "--text", "the cat"])
