"""A sentence as a picture: how unsure a model is of each word, and the words that each rule would hide.

    python tests/lab/sentence.py --model runs/train --text "The default is None." --svg sentence.svg

It shows what `python masking.py` prints, with each token hidden alone. README begins with such a picture.
"""

import argparse
import sys
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch
from chart import FONT, GREY

from masking import RULES, Sentence, read_sentence
from model import BertForMaskedLM, explain, load_tokenizer

WORD = 16  # height of a word's letters; of fixed width, 0.6 of the height
BOX = 26  # height of the box around a word
LEFT, TOP, EDGE = 84, 40, 16  # margins: left of the words, above them, at the right
LINE = 34  # from one row of words to the next


def colour(level: float) -> str:
    """White at 0 to red at 1, as on the viewer's page: a share of the highest entropy."""
    other = round(255 * (1 - 0.8 * level))
    return f"#ff{other:02x}{other:02x}"


def draw(sentence: Sentence, rules: list[str]) -> str:
    """An SVG picture: the words, coloured by entropy, and below them a row for each rule.

    Its background is transparent and its greys are middle tones, for light and for dark pages.
    """
    widths = [0.6 * WORD * len(token) + 10 for token in sentence.tokens]
    starts = [LEFT + sum(widths[:i]) + 4 * i for i in range(len(widths))]
    masked = sum(sentence.picks[rules[0]])
    captions = [
        "Each word was hidden alone: the redder, the less sure of it is the model (entropy in nats).",
        f"Each rule hides {masked} of the {len(widths)} (grey bars), and the model learns to fill these in.",
    ]
    width = max(starts[-1] + widths[-1], LEFT + 0.52 * FONT * max(map(len, captions))) + EDGE
    rows = TOP + LINE + 22
    height = rows + LINE * len(rules) + 18 * len(captions) + 10
    highest = max(1e-9, *sentence.entropies)

    def text(x, y, content, more):
        return f'<text x="{x:.0f}" y="{y:.0f}" {more}>{escape(content)}</text>'

    label = f'text-anchor="end" fill="{GREY}"'
    word = f'text-anchor="middle" font-family="monospace" font-size="{WORD}"'
    title = "How unsure a small BERT is of each word, and which words each rule hides"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" role="img" '
        f'viewBox="0 0 {width:.0f} {height}" font-family="Helvetica, Arial, sans-serif" font-size="{FONT}">',
        f"<title>{title}</title>",
        text(LEFT, 22, title, f'fill="{GREY}" font-weight="bold"'),
        text(LEFT - 8, TOP + 18, "the text", label),
        text(LEFT - 8, TOP + 43, "entropy", label),
    ]
    for token, nats, x, wide in zip(sentence.tokens, sentence.entropies, starts, widths, strict=True):
        box = f'<rect x="{x:.1f}" y="{TOP}" width="{wide:.1f}" height="{BOX}" rx="3"'
        parts.append(f'{box} fill="{colour(nats / highest)}" stroke="{GREY}" stroke-width="0.5"/>')
        parts.append(text(x + wide / 2, TOP + 18, token, f'{word} fill="#000000"'))
        parts.append(text(x + wide / 2, TOP + 43, f"{nats:.1f}", f'text-anchor="middle" fill="{GREY}"'))

    for row, rule in enumerate(rules):
        y = rows + LINE * row
        parts.append(text(LEFT - 8, y + 18, rule, label))
        for token, hidden, x, wide in zip(sentence.tokens, sentence.picks[rule], starts, widths, strict=True):
            if hidden:
                bar = f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{BOX}" rx="3"'
                parts.append(f'{bar} fill="{GREY}"/>')
            else:
                parts.append(text(x + wide / 2, y + 18, token, f'{word} fill="{GREY}"'))
    for row, caption in enumerate(captions):
        parts.append(text(LEFT, rows + LINE * len(rules) + 14 + 18 * row, caption, f'fill="{GREY}"'))
    return "\n".join([*parts, "</svg>\n"])


def main(argv=None):
    """The program."""
    help_format = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=help_format)
    add = parser.add_argument
    add("--model", required=True, metavar="FOLDER", help="checkpoint folder")
    add("--text", required=True, help="a short sentence: it stands on one line")
    add("--rules", nargs="+", default=["random", "high", "sample"], choices=list(RULES), help="rows")
    add("--mask-ratio", default=0.15, type=float, help="share of the tokens each rule masks")
    add("--seed", default=0, type=int, help="of the rules that draw")
    add("--svg", default="sentence.svg", metavar="FILE", help="file for the picture")
    o = parser.parse_args(argv)
    try:
        tokenizer = load_tokenizer(o.model)
        model = BertForMaskedLM.from_pretrained(o.model, vocab_size=tokenizer.get_vocab_size())
        rng = torch.Generator().manual_seed(o.seed)
        sentence = read_sentence(model, tokenizer, o.text, "blank", o.mask_ratio, rng)
        Path(o.svg).write_text(draw(sentence, o.rules), encoding="utf-8")
        print(f"picture: {o.svg}")
    except Exception as error:
        sys.exit(f"sentence.py: {explain(error)}")


if __name__ == "__main__":
    main()
