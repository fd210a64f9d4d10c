"""Exercise 2, embeddings: what a token is, where, in which sentence. LayerNorm(word + position + segment)"""

import pytest
import torch

from model import BertConfig, BertEmbeddings


def make(**changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_attention_heads": 2, "max_position_embeddings": 16}
    embeddings = BertEmbeddings(BertConfig(**{**sizes, **changes})).eval()
    torch.nn.init.normal_(embeddings.LayerNorm.weight)
    torch.nn.init.normal_(embeddings.LayerNorm.bias)
    return embeddings


IDS = torch.tensor([[2, 7, 7, 9, 3], [2, 19, 0, 5, 3]])
SEGMENTS = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 0, 1, 0]])


def by_hand(e, row, place, segment_id):
    """LayerNorm(word + position + segment) of one token of IDS, as the equation reads."""
    tables = (e.word_embeddings, e.position_embeddings, e.token_type_embeddings)
    word, position, segment = (table.weight.detach().double() for table in tables)
    x = word[IDS[row, place]] + position[place] + segment[segment_id]
    centred = x - x.mean()
    gain, shift = e.LayerNorm.weight.detach().double(), e.LayerNorm.bias.detach().double()
    return gain * centred / (centred**2).mean().sqrt() + shift


# ---- sum ----


def test_word_position_and_segment_are_added_and_normalised():
    e = make()
    got = e(IDS, SEGMENTS)
    assert got.shape == (2, 5, 8), "ids [B, T] -> [B, T, H]"
    for row in range(2):
        for place in range(5):
            expected = by_hand(e, row, place, SEGMENTS[row, place])
            assert torch.allclose(got[row, place].double(), expected, atol=1e-4), (
                f"row {row}, place {place}: expected LayerNorm(word + position + segment)"
            )


def test_the_same_word_at_two_places_has_two_vectors():
    out = make()(IDS[:1])
    assert not torch.allclose(out[0, 1], out[0, 2], atol=1e-3), (
        "without positions a sentence is a bag of words: attention does not see order by itself"
    )


# ---- segments ----


def test_segments_default_to_the_first():
    e = make()
    assert torch.equal(e(IDS), e(IDS, torch.zeros_like(IDS))), "no token_type_ids: all are segment 0"
    assert not torch.allclose(e(IDS), e(IDS, torch.ones_like(IDS)), atol=1e-3), "segment 1 has its own vector"
    for place in range(5):
        assert torch.allclose(e(IDS)[0, place].double(), by_hand(e, 0, place, 0), atol=1e-4), (
            f"place {place}: segment 0 has a vector like any other; it is added where nothing is given, too"
        )


# ---- lengths ----


def test_a_sequence_longer_than_the_positions_is_refused():
    with pytest.raises(ValueError, match="20 tokens is longer than the model's 16 positions"):
        make()(torch.zeros(1, 20, dtype=torch.long))


def test_a_sequence_as_long_as_the_positions_is_read():
    try:
        shape = make()(torch.zeros(1, 16, dtype=torch.long)).shape
    except ValueError as error:
        pytest.fail(f"16 positions are enough for 16 tokens; only a longer sequence is refused, not: {error}")
    assert shape == (1, 16, 8)


# ---- dropout ----


def test_embedding_dropout_acts_in_training_alone():
    e = make(hidden_dropout_prob=0.5)
    assert torch.equal(e(IDS), e(IDS)), "dropout is on in evaluation"
    zeros = (e.train()(IDS) == 0).float().mean().item()
    assert 0.2 < zeros < 0.8, (
        f"{zeros:.0%} of the numbers are 0 in training, expected about half: dropout comes last"
    )


# ---- sum ----


def test_embeddings_equal_those_of_transformers():
    theirs = pytest.importorskip("transformers.models.bert.modeling_bert")
    from transformers import BertConfig as TheirConfig

    ours = make()
    config = TheirConfig(vocab_size=20, hidden_size=8, num_attention_heads=2, max_position_embeddings=16)
    other = theirs.BertEmbeddings(config).eval()
    other.load_state_dict(ours.state_dict(), strict=False)
    assert torch.allclose(ours(IDS, SEGMENTS), other(IDS, token_type_ids=SEGMENTS), atol=1e-5)
