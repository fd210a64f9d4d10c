"""blimp.py: the pseudo-log-likelihood against a loop over tokens, and what counts as a preference."""

import json

import blimp
import pytest
import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer

import model as bert

WORDS = "the cat cats sees see dog dogs a big".split()


@pytest.fixture(scope="module")
def tokenizer():
    vocab = {piece: i for i, piece in enumerate([*bert.SPECIAL_TOKENS, *WORDS, "##s"])}
    return Tokenizer.from_str(BertWordPieceTokenizer(vocab).to_str())


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = bert.BertConfig.preset("tiny", vocab_size=tokenizer.get_vocab_size(), initializer_range=0.2)
    return bert.BertForMaskedLM(config)


def by_hand(model, tokenizer, sentence):
    """A token at a time, float64."""
    ids = tokenizer.encode(sentence).ids
    model = model.double().eval()
    total = 0.0
    for place in range(1, len(ids) - 1):
        hidden = list(ids)
        hidden[place] = tokenizer.token_to_id("[MASK]")
        logits = model(torch.tensor([hidden]))[0, place]
        total += logits.log_softmax(-1)[ids[place]].item()
    model.float()
    return total


def test_the_score_is_the_sum_over_tokens_with_each_hidden_alone(model, tokenizer):
    sentences = ["the cat sees a dog", "the cats see", "a big big dog sees the cats", "the cats see"]
    scores = blimp.pseudo_log_likelihoods(model, tokenizer, sentences)
    wanted = [by_hand(model, tokenizer, sentence) for sentence in sentences]
    assert scores.tolist() == pytest.approx(wanted, abs=1e-3), "sum of log p(token | the others)"


def test_the_score_does_not_depend_on_what_is_read_with_it(model, tokenizer, monkeypatch):
    sentences = ["the cat sees a dog", "the cats see a dog"]
    together = blimp.pseudo_log_likelihoods(model, tokenizer, sentences)
    monkeypatch.setattr(blimp, "ROWS", 3)
    alone = [blimp.pseudo_log_likelihoods(model, tokenizer, [sentence]).item() for sentence in sentences]
    assert together.tolist() == pytest.approx(alone, abs=1e-3)


def test_a_paradigm_is_the_share_of_pairs_in_which_the_good_sentence_wins():
    pairs = [{"UID": "a"}, {"UID": "a"}, {"UID": "b"}, {"UID": "b"}]
    found = blimp.accuracies(
        pairs, torch.tensor([-1.0, -5.0, -2.0, -3.0]), torch.tensor([-2.0, -4.0, -2.0, -9.0])
    )
    assert found == {"a": 0.5, "b": 0.75}, "a tie is half a point"


def test_the_program_writes_a_table_and_a_file(model, tokenizer, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model", tokenizer)
    data = tmp_path / "blimp"
    data.mkdir()
    for uid, field in (("agreement", "morphology"), ("order", "syntax")):
        pair = {"sentence_good": "the cat sees", "sentence_bad": "the cat see", "UID": uid, "field": field}
        (data / f"{uid}.jsonl").write_text(3 * (json.dumps(pair) + "\n"))
    blimp.main(["--model", str(tmp_path / "model"), "--data", str(data), "--pairs", "2", "--device", "cpu"])
    shown = capsys.readouterr().out
    assert "| morphology | 1 |" in shown and "| **all** | 2 |" in shown
    record = json.loads((tmp_path / "model/blimp.json").read_text())
    assert set(record["paradigms"]) == {"agreement", "order"} and record["mean"] in (0.0, 1.0)


def test_a_folder_without_blimp_ends_in_one_sentence(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model", tokenizer)
    with pytest.raises(SystemExit, match="get BLiMP's data folder"):
        blimp.main(["--model", str(tmp_path / "model"), "--data", str(tmp_path), "--device", "cpu"])
