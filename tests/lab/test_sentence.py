"""sentence.py: what the picture shows is what the model says, and nothing in it overlaps."""

import itertools
import xml.etree.ElementTree as ElementTree

import chart
import pytest
import sentence

import masking
from masking import RULES, Sentence

SVG = "{http://www.w3.org/2000/svg}"
TOKENS = ["the", "cat", "##s", "<b>", "internationalisation", "."]
PICKS = {rule: [i in (n, n + 1) for i in range(6)] for n, rule in enumerate(["random", "high", "sample"])}
GIVEN = Sentence(TOKENS, [1.0, 4.0, 0.0, 2.0, 3.0, 1.5], [f"{t} 9%" for t in TOKENS], PICKS, 0)


def drawn(given=GIVEN):
    return ElementTree.fromstring(sentence.draw(given, ["random", "high", "sample"]))


def rows_of(svg):
    """{y: [(x, text or None for a bar)]} of what is right of the labels, from left to right."""
    rows = {}
    for text in svg.iter(f"{SVG}text"):
        if text.get("font-family") == "monospace":
            rows.setdefault(float(text.get("y")) - 18, []).append((float(text.get("x")), text.text))
    for bar in svg.iter(f"{SVG}rect"):
        if bar.get("fill") == chart.GREY:
            x = float(bar.get("x")) + float(bar.get("width")) / 2
            rows.setdefault(float(bar.get("y")), []).append((x, None))
    return {y: sorted(row, key=lambda cell: cell[0]) for y, row in sorted(rows.items())}


def test_a_row_shows_the_text_and_each_rules_row_hides_what_the_rule_picks():
    text, *rules = [[word for _, word in row] for row in rows_of(drawn()).values()]
    assert text == TOKENS
    for row, picks in zip(rules, PICKS.values(), strict=True):
        assert row == [None if hidden else token for token, hidden in zip(TOKENS, picks, strict=True)]


def test_a_word_is_as_red_as_its_entropy_is_high():
    boxes = [rect for rect in drawn().iter(f"{SVG}rect") if rect.get("fill") != chart.GREY]
    boxes.sort(key=lambda rect: float(rect.get("x")))
    white = [int(box.get("fill")[3:5], 16) / 255 for box in boxes]
    for share, nats in zip(white, GIVEN.entropies, strict=True):
        assert share == pytest.approx(1 - 0.8 * nats / 4, abs=0.003), "white at 0, a fifth of it at the most"
    assert all(box.get("fill").startswith("#ff") for box in boxes)


def test_the_numbers_are_the_entropies_and_the_labels_name_the_rows():
    texts = [text.text for text in drawn().iter(f"{SVG}text")]
    for nats in GIVEN.entropies:
        assert f"{nats:.1f}" in texts
    assert {"random", "high", "sample"} <= set(texts)
    assert any("hides 2 of the 6" in text for text in texts)


def test_nothing_overlaps_and_nothing_leaves_the_picture():
    svg = drawn()
    width, height = float(svg.get("width")), float(svg.get("height"))
    for y, row in rows_of(svg).items():
        edges = []
        for x, word in row:
            token = word or TOKENS[row.index((x, word))]
            half = 0.6 * sentence.WORD * len(token) / 2
            edges.append((x - half, x + half))
        assert 0 <= y and y + sentence.BOX <= height
        assert edges[0][0] >= sentence.LEFT and edges[-1][1] <= width
        assert all(one[1] < two[0] for one, two in itertools.pairwise(edges))
    for text in svg.iter(f"{SVG}text"):
        if text.get("font-family") is None and text.get("text-anchor") is None:
            assert float(text.get("x")) + 0.52 * chart.FONT * len(text.text) <= width, text.text
            assert float(text.get("y")) < height


@pytest.mark.parametrize("page", ["#ffffff", "#0d1117"])
def test_what_is_not_on_a_box_can_be_read_on_light_and_dark_pages(page):
    from test_chart import luminance

    used = {text.get("fill") for text in drawn().iter(f"{SVG}text")} - {"#000000"}  # black is on boxes alone
    for colour in used:
        dark, light = sorted((luminance(colour), luminance(page)))
        assert (light + 0.05) / (dark + 0.05) >= 3.7


def test_the_program_draws_what_the_viewer_prints(teacher, tmp_path, capsys):
    text = ["--model", str(teacher), "--text", "barn cost dust film galp"]
    masking.main([*text, "--seed", "5", "--mask-ratio", "0.4"])
    printed = [line.split() for line in capsys.readouterr().out.partition("\n\ntoken ")[2].splitlines()[1:]]
    out = tmp_path / "s.svg"
    sentence.main([*text, "--seed", "5", "--mask-ratio", "0.4", "--svg", str(out), "--rules", "high", "low"])
    rows = list(rows_of(ElementTree.parse(out).getroot()).values())
    assert [word for _, word in rows[0]] == [words[0] for words in printed]
    for row, rule in zip(rows[1:], ("high", "low"), strict=True):
        column = list(RULES).index(rule) - len(RULES)  # from the end: the rules stand last
        assert [word is None for _, word in row] == [words[column] == "■" for words in printed]


def test_a_wrong_folder_ends_in_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match="sentence.py: .*nowhere"):
        sentence.main(["--model", str(tmp_path / "nowhere"), "--text", "the cat"])
