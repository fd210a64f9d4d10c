"""Kinds of masked tokens and overlap of rules, on a text small enough to count by hand."""

import numpy as np
import pytest
import torch
import what_is_masked

from masking import RULES


@pytest.mark.parametrize(
    "piece, kind",
    [
        ("##s", "piece of a word (##)"),
        ("##1", "piece of a word (##)"),
        (",", "punctuation"),
        ("1990s", "number"),
        ("paris", "other words"),
        ("é", "other words"),
    ],
)
def test_the_kind_of_a_word_piece(piece, kind):
    assert what_is_masked.kind_of(piece, common=False) == kind


def test_the_hundred_commonest_words_are_words_alone():
    pieces = [",", "##s", "7", *(f"w{'x' * n}" for n in range(150))]
    frequency = np.array([10**6, 10**5, 10**4, *range(150, 0, -1)])
    kinds = what_is_masked.kinds_of_vocabulary(pieces, frequency)
    common = what_is_masked.KINDS.index("the 100 commonest words")
    assert (kinds == common).sum() == 100
    assert (kinds[3:103] == common).all(), "neither the comma nor ##s takes a place of theirs"


def cells(table: str) -> list:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_shares_of_kinds_and_overlaps_by_hand():
    rows = torch.tensor([[0, 1, 2, 2]])
    kinds = torch.tensor([0, 1, 4])
    choices = {
        ("text", ""): torch.tensor([[True, True, True, True]]),
        ("", "random"): torch.tensor([[True, True, False, False]]),
        ("blank", "high"): torch.tensor([[False, True, True, True]]),
    }
    table = cells(what_is_masked.kinds_table(choices, rows, kinds))
    assert table[2] == ["text", "", "25.0", "25.0", "0.0", "0.0", "50.0", ""]
    assert table[4] == ["blank", "high", "0.0", "33.3", "0.0", "0.0", "66.7", "2"]
    overlaps = cells(what_is_masked.overlap_table(choices))
    assert overlaps[2] == ["random", "100.0", "25.0"], "one of four places"


def test_a_checkpoint_is_described_from_start_to_end(corpus, tmp_path, capsys):
    from model import BertConfig, BertForMaskedLM
    from train import learn_vocabulary

    tokenizer = learn_vocabulary([corpus], 300)
    config = BertConfig.preset("tiny", vocab_size=tokenizer.get_vocab_size())
    BertForMaskedLM(config).save_pretrained(tmp_path, tokenizer)
    what_is_masked.describe(str(tmp_path), [corpus], 20, 0)
    out = capsys.readouterr().out
    kinds, overlaps = (cells(part) for part in out.split("\n\n") if part.startswith("|"))
    assert len(kinds) == 2 + 1 + len(RULES) + len(RULES) - 1, "text, six rules by blank, five by visible"
    for row in kinds[2:]:
        assert sum(map(float, row[2:-1])) == pytest.approx(100, abs=0.3), (
            f"shares of {row} must add up to 100"
        )
    for i, row in enumerate(overlaps[2:]):
        assert row[1 + i] == "100.0", "a rule agrees with itself"
    assert "Spearman correlation of entropy with log frequency: blank" in out
