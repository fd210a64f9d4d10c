"""The checkpoint folder: Hugging Face reads ours, we read theirs, and damage is named in one sentence."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from model import (
    SPECIAL_TOKENS,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    atomic_write,
    init_normal,
    load_tokenizer,
    read_weights,
)

WORDS = [*SPECIAL_TOKENS, "the", "cat", "##s", "sat", "a", "##b", "[", "]", "mask", "é", "e"]
SMALL = {"vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"intermediate_size": 64, "max_position_embeddings": 40}
IDS = torch.randint(5, len(WORDS), (3, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, 8:] = 0
TYPES = (torch.arange(12) > 5).long().expand_as(IDS)


@pytest.fixture
def folder(tmp_path):
    """A saved masked-LM with a tokenizer, and its logits."""
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    model = BertForMaskedLM(BertConfig(**SMALL))
    init_normal(model, 0.3)
    model.save_pretrained(tmp_path / "m", load_tokenizer(tmp_path / "v"))
    return tmp_path / "m", model.eval()(IDS, MASK, TYPES)


def close(one, other):
    """Within 1e-5 of the largest absolute logit."""
    return (one - other).abs().max() <= 1e-5 * other.abs().max()


def their_config(transformers, **changes):
    return transformers.BertConfig(**{**SMALL, "initializer_range": 0.3, **changes})


def test_save_and_load_give_the_same_logits(folder):
    path, logits = folder
    assert torch.equal(BertForMaskedLM.from_pretrained(path)(IDS, MASK, TYPES), logits)
    assert not BertForMaskedLM.from_pretrained(path).training, "a loaded model is in evaluation mode"


def test_transformers_reads_our_masked_lm(folder):
    transformers = pytest.importorskip("transformers")
    path, logits = folder
    theirs, report = transformers.BertForMaskedLM.from_pretrained(path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert close(logits, theirs.eval()(IDS, MASK, TYPES).logits)


def test_transformers_reads_our_classifier(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = BertForSequenceClassification(BertConfig(**SMALL, num_labels=3))
    init_normal(model, 0.3)
    model.save_pretrained(tmp_path)
    theirs = transformers.BertForSequenceClassification.from_pretrained(tmp_path).eval()
    assert close(model.eval()(IDS, MASK, TYPES), theirs(IDS, MASK, TYPES).logits)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "2018"])
def test_we_read_their_masked_lm(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertForPreTraining(their_config(transformers)).eval()  # has a head too many
    theirs.save_pretrained(tmp_path)
    if kind != "safetensors":
        weights = theirs.state_dict()
        if kind == "2018":
            old = {
                n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                    "LayerNorm.bias", "LayerNorm.beta"
                )
                for n in weights
            }
            weights = {old[name]: tensor for name, tensor in weights.items() if "decoder.bias" not in name}
        torch.save(weights, tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    ours = BertForMaskedLM.from_pretrained(tmp_path)
    assert close(ours(IDS, MASK, TYPES), theirs(IDS, MASK, TYPES).prediction_logits)


def test_we_read_their_classifier_and_bare_encoder(tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertForSequenceClassification(their_config(transformers, num_labels=3)).eval()
    theirs.save_pretrained(tmp_path / "c")
    ours = BertForSequenceClassification.from_pretrained(tmp_path / "c")
    assert ours.config.num_labels == 3 and close(ours(IDS, MASK, TYPES), theirs(IDS, MASK, TYPES).logits)
    theirs.bert.save_pretrained(tmp_path / "b")  # names without "bert."
    assert close(
        BertModel.from_pretrained(tmp_path / "b")(IDS, MASK)[1], theirs.bert(IDS, MASK).pooler_output
    )


def test_parameter_names_are_hugging_faces(tmp_path):
    transformers = pytest.importorskip("transformers")
    for ours, theirs in (
        (BertForMaskedLM, transformers.BertForMaskedLM),
        (BertForSequenceClassification, transformers.BertForSequenceClassification),
        (BertModel, transformers.BertModel),
    ):
        assert set(ours(BertConfig(**SMALL)).state_dict()) == set(
            theirs(their_config(transformers)).state_dict()
        )


def test_transformers_tokenizer_agrees(folder):
    transformers = pytest.importorskip("transformers")
    ours, theirs = load_tokenizer(folder[0]), transformers.AutoTokenizer.from_pretrained(folder[0])
    for text in ("The cats sat", "ab É [MASK] unknown", ""):
        assert ours.encode(text).ids == theirs(text)["input_ids"]
    assert ours.encode("the cat", "a").type_ids == theirs("the cat", "a")["token_type_ids"]


def test_vocabulary_alone_is_uncased_unless_it_says_otherwise(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, "The"]), encoding="utf-8")
    assert load_tokenizer(tmp_path).encode("The É", add_special_tokens=False).tokens == ["the", "e"]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(tmp_path).encode("The é", add_special_tokens=False).tokens == ["The", "é"]


def test_heads_a_folder_lacks_start_fresh_and_are_named(folder):
    model = BertForSequenceClassification.from_pretrained(folder[0], num_labels=3)
    assert [n for n in model.newly_initialised if "classifier" in n] == [
        "classifier.bias",
        "classifier.weight",
    ]
    model.save_pretrained(folder[0].parent / "c")
    again = BertForSequenceClassification.from_pretrained(folder[0].parent / "c", num_labels=2)
    assert again.newly_initialised == ["classifier.bias", "classifier.weight"] and again(IDS).shape == (3, 2)
    with pytest.raises(ValueError, match="no complete BertForMaskedLM: cls"):
        BertForMaskedLM.from_pretrained(folder[0].parent / "c")


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("hostile-code-ran"),))


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "garbage", "pickle", "wrong shape", "no encoder", "missing"]
)
def test_damaged_weights_are_named(folder, damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = folder[0] / "pytorch_model.bin"
    content = file.read_bytes()
    weights = read_weights(folder[0])
    if damage == "wrong shape":
        torch.save({**weights, "bert.encoder.layer.0.output.dense.weight": torch.zeros(3, 3)}, file)
    elif damage == "no encoder":
        torch.save({n: t for n, t in weights.items() if "layer.1" not in n}, file)
    elif damage == "missing":
        file.unlink()
    else:
        new = {
            "truncated": content[:5000],
            "empty": b"",
            "garbage": b"\0" * 100,
            "pickle": pickle.dumps(Hostile()),
        }
        file.write_bytes(new[damage])
    with pytest.raises((ValueError, FileNotFoundError), match=str(folder[0].name)):
        BertForMaskedLM.from_pretrained(folder[0])
    assert not Path("hostile-code-ran").exists(), "code from a weights file was run"


@pytest.mark.parametrize("cut", [0, 4, 100, -10])
def test_truncated_safetensors_are_named(cut, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    BertForMaskedLM(BertConfig(**SMALL)).save_pretrained(tmp_path)
    weights = {name: tensor.clone() for name, tensor in read_weights(tmp_path).items()}
    safetensors.save_file(weights, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:cut])
    with pytest.raises(ValueError, match=r"model.safetensors is missing, damaged"):
        BertForMaskedLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gpt2"},
        {"hidden_size": "wide"},
        {"hidden_size": 30},
        {"hidden_act": "mish"},
        {"vocab_size": -1},
    ]
    + [{"num_attention_heads": 0}, {"position_embedding_type": "relative_key"}, {"num_hidden_layers": None}],
)
def test_a_config_that_cannot_be_built_is_named(folder, change):
    config = json.loads((folder[0] / "config.json").read_text())
    (folder[0] / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError):
        BertForMaskedLM.from_pretrained(folder[0])


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null"])
def test_a_damaged_config_is_named(folder, content):
    (folder[0] / "config.json").write_text(content)
    with pytest.raises(ValueError, match="config.json is not a JSON object"):
        BertForMaskedLM.from_pretrained(folder[0])


@pytest.mark.parametrize("content", ["the\ncat\n", "", "\0\udcff", "[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n"])
def test_a_vocabulary_without_special_tokens_is_refused(tmp_path, content):
    (tmp_path / "vocab.txt").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"vocab.txt is .*no vocabulary with \[PAD\] .*\[MASK\]"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("path", ["", "vocab.txt"])
def test_a_tokenizer_that_is_not_there_is_named(tmp_path, path):
    with pytest.raises(ValueError, match=r"vocab.txt is missing"):
        load_tokenizer(tmp_path / path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file):
        file.write(b"half of the new")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device.*untouched"):
        atomic_write(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path], "the temporary file must be gone"


def test_a_foreign_model_safetensors_is_never_shadowed(folder):
    (folder[0] / "model.safetensors").write_bytes(b"")
    with pytest.raises(OSError, match="use another folder"):
        BertForMaskedLM(BertConfig(**SMALL)).save_pretrained(folder[0])
