"""The checkpoint folder: Hugging Face reads ours, we read theirs, and damage is named in one sentence."""

import json
import pickle
import re
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
    explain,
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
POOLER = ["bert.pooler.dense.weight", "bert.pooler.dense.bias"]
CLASSIFIER = ["classifier.weight", "classifier.bias"]


@pytest.fixture
def folder(tmp_path):
    """A saved masked-LM with a tokenizer, and its logits."""
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    model = BertForMaskedLM(BertConfig(**SMALL))
    init_normal(model, 0.3)
    model.save_pretrained(tmp_path / "m", load_tokenizer(tmp_path / "v"))
    return tmp_path / "m", model.eval()(IDS, MASK, TYPES)


def their_config(transformers, **changes):
    return transformers.BertConfig(**{**SMALL, "initializer_range": 0.3, **changes})


def test_save_and_load_give_the_same_logits(folder):
    path, logits = folder
    assert torch.equal(BertForMaskedLM.from_pretrained(path)(IDS, MASK, TYPES), logits)
    assert not BertForMaskedLM.from_pretrained(path).training, "a loaded model is in evaluation mode"


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


def test_heads_a_folder_lacks_start_fresh_and_are_named(folder):
    model = BertForSequenceClassification.from_pretrained(folder[0], num_labels=3)
    assert model.newly_initialised == [*POOLER, *CLASSIFIER]
    model.save_pretrained(folder[0].parent / "c")
    again = BertForSequenceClassification.from_pretrained(folder[0].parent / "c", num_labels=2)
    assert again.newly_initialised == CLASSIFIER and again(IDS).shape == (3, 2)
    with pytest.raises(ValueError, match="no complete BertForMaskedLM: cls"):
        BertForMaskedLM.from_pretrained(folder[0].parent / "c")


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("hostile-code-ran"),))


def as_pytorch_model(folder):
    """Replace model.safetensors by what this project wrote before, and return the path."""
    torch.save(read_weights(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"


@pytest.mark.parametrize(
    "damage", ["truncated", "flipped", "empty", "garbage", "pickle", "no tensors", "missing"]
)
def test_damaged_weights_are_named(folder, damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = as_pytorch_model(folder[0])
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    new = {"truncated": content[:5000], "flipped": bytes(flipped), "empty": b"", "garbage": b"\0" * 100}
    new |= {"pickle": pickle.dumps(Hostile(), protocol=2)}
    if damage == "no tensors":
        torch.save({"epoch": 3}, file)
    elif damage == "missing":
        file.unlink()
    else:
        file.write_bytes(new[damage])
    with pytest.raises(ValueError, match=r"(pytorch_model.bin|model.safetensors) is missing, damaged"):
        BertForMaskedLM.from_pretrained(folder[0])
    assert not Path("hostile-code-ran").exists(), "code from a weights file was run"


@pytest.mark.parametrize("cut", [0, 4, 100, -10])
def test_truncated_safetensors_are_named(cut, folder):
    file = folder[0] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"model.safetensors is missing, damaged"):
        BertForMaskedLM.from_pretrained(folder[0])


@pytest.mark.parametrize("shape", [None, (3, 3)])
def test_a_tensor_that_is_missing_or_of_another_shape_is_named(folder, shape):
    file = as_pytorch_model(folder[0])
    weights = torch.load(file)
    name = "bert.encoder.layer.0.output.dense.weight"
    del weights[name]
    if shape:
        weights[name] = torch.zeros(shape)
    torch.save(weights, file)
    with pytest.raises(ValueError, match=rf"{name} is missing or not of the shape \(32, 64\)"):
        BertForMaskedLM.from_pretrained(folder[0])


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"model_type": "gpt2"}, "config.json: model_type is 'gpt2'; only 'bert'"),
        (
            {"position_embedding_type": "relative_key"},
            "config.json: position_embedding_type is 'relative_key'",
        ),
        ({"tie_word_embeddings": False}, "config.json: tie_word_embeddings is False; only True"),
        ({"is_decoder": True}, "config.json: is_decoder is True; only False"),
        ({"hidden_size": 30}, "hidden_size 30 cannot be divided among 4 heads"),
        ({"hidden_act": "mish"}, "hidden_act 'mish' is not one of gelu"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused_with_the_reason(folder, change, reason):
    config = json.loads((folder[0] / "config.json").read_text())
    (folder[0] / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=reason):
        BertConfig.from_folder(folder[0])


def test_the_length_of_the_rows_in_training_is_kept_where_it_is_known(folder, tmp_path):
    config = json.loads((folder[0] / "config.json").read_text())
    assert config["trained_length"] is None, "nobody said so"
    del config["trained_length"]  # as in a folder of somebody else
    (folder[0] / "config.json").write_text(json.dumps(config))
    assert BertForMaskedLM.from_pretrained(folder[0]).config.trained_length is None
    BertForMaskedLM.from_pretrained(folder[0], trained_length=24).save_pretrained(tmp_path / "known")
    again = BertForSequenceClassification.from_pretrained(tmp_path / "known", num_labels=3)
    assert again.config.trained_length == 24
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertForMaskedLM.from_pretrained(tmp_path / "known").eval()
    assert torch.allclose(theirs(IDS, MASK, TYPES).logits, folder[1], atol=1e-5), "a key it does not know"


READERS = (BertForMaskedLM.from_pretrained, BertConfig.from_folder, load_tokenizer)


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__qualname__)
@pytest.mark.parametrize("name", ["bert-base-uncased", "google/bert_uncased_L-2_H-128_A-2", "runs/trian"])
def test_a_name_that_is_no_folder_is_told_how_to_get_one(read, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^{name}: no such file or folder; .*hub.*hf download NAME"):
        read(name)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null"])
def test_a_damaged_config_is_named(folder, content):
    (folder[0] / "config.json").write_text(content)
    with pytest.raises(ValueError, match="config.json is not a JSON object"):
        BertForMaskedLM.from_pretrained(folder[0])


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file):
        file.write(b"half of the new")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device.*untouched"):
        atomic_write(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path], "the temporary file must be gone"


def test_too_little_memory_while_writing_is_not_called_a_full_disk(tmp_path):
    def compute(file):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(RuntimeError, match="out of memory"):
        atomic_write(tmp_path / "table.npy", compute)
    assert not list(tmp_path.iterdir()), "the temporary file must be gone"


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted(file):
        file.write(b"half of the new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, interrupted)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path], "the temporary file must be gone"


def test_two_programs_that_write_a_file_at_once_do_not_disturb_each_other(tmp_path, monkeypatch):
    path = tmp_path / "file"

    def overtaken(file):
        file.write(b"the first, ")
        monkeypatch.setattr("os.getpid", lambda: 1)
        atomic_write(path, lambda other: other.write(b"the second"))
        monkeypatch.undo()
        assert path.read_bytes() == b"the second", "whole as soon as its program is done"
        file.write(b"later")

    atomic_write(path, overtaken)
    assert path.read_bytes() == b"the first, later"
    assert list(tmp_path.iterdir()) == [path], "one file, and nothing unfinished"


def test_a_folder_that_this_project_wrote_before_is_read_and_written_over(folder):
    path, logits = folder
    as_pytorch_model(path)
    old = BertForMaskedLM.from_pretrained(path)
    assert torch.equal(old(IDS, MASK, TYPES), logits)
    init_normal(old, 0.3)
    old.save_pretrained(path)
    assert torch.equal(BertForMaskedLM.from_pretrained(path)(IDS, MASK, TYPES), old(IDS, MASK, TYPES))


def test_what_a_user_reads_names_the_file_and_the_reason(tmp_path):
    (tmp_path / "file").touch()
    for action, reason in {
        tmp_path.read_bytes: f"{tmp_path}: Is a directory",
        (tmp_path / "file").mkdir: f"{tmp_path / 'file'}: File exists",
        (tmp_path / "none").read_bytes: f"{tmp_path / 'none'}: No such file or directory",
    }.items():
        with pytest.raises(OSError) as caught:
            action()
        assert explain(caught.value) == reason
    assert explain(OSError(28, "No space left on device")) == "No space left on device"
    assert explain(ValueError("the file x is damaged")) == "the file x is damaged"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes"),
    ],
)
def test_out_of_memory_is_a_sentence_with_the_remedy(error):
    assert explain(error).startswith("out of memory; choose a smaller --batch-size")


CUDA = "CUDA error: {} when calling `cublasCreate(handle)`"
ON_A_CARD = {
    CUDA.format("CUBLAS_STATUS_ALLOC_FAILED"): "the card is full.*smaller --batch-size",
    CUDA.format("CUBLAS_STATUS_NOT_INITIALIZED"): "the card is full",
    CUDA.format("CUBLAS_STATUS_NOT_SUPPORTED"): "choose --dtype float32",
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCUDA": "another program has the card",
    "CUDA error: no kernel image is available for execution on the device": "README, Install",
}


@pytest.mark.parametrize("said", ON_A_CARD)
def test_what_a_card_refuses_is_a_sentence_with_the_remedy(said):
    sentence = explain(RuntimeError(said))
    assert re.search(ON_A_CARD[said], sentence) and "\n" not in sentence


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyError("x"), AssertionError()])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        explain(error)
