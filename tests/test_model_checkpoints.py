"""Weights that others wrote: every form in which transformers and its users save a BERT, or a refusal."""

import json

import pytest
import torch

from model import (
    ACTIVATIONS,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    init_normal,
    read_weights,
)

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

SMALL = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 32, "max_position_embeddings": 20}
IDS = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0))
TABLE = "bert.embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"
NORM = "bert.encoder.layer.0.output.LayerNorm"


@pytest.fixture
def theirs():
    torch.manual_seed(0)
    config = transformers.BertConfig(**SMALL, initializer_range=0.3)
    return transformers.BertForMaskedLM(config).eval()


def rewrite(folder, change):
    """Replace the weights of a folder by change(weights), where every tied tensor has all its names."""
    weights = safetensors.load_file(folder / "model.safetensors")
    weights[DECODER] = weights[TABLE]
    weights["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"]
    (folder / "model.safetensors").unlink()
    torch.save(
        change({name: tensor.clone() for name, tensor in weights.items()}), folder / "pytorch_model.bin"
    )


def split(folder, kind):
    """Write the weights of a folder as two files and an index."""
    weights = safetensors.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, end = ("pytorch_model", ".bin") if kind == "bin" else ("model", ".safetensors")
    names = [f"{stem}-0000{i}-of-00002{end}" for i in (1, 2)]
    index = {name: names[i % 2] for i, name in enumerate(weights)}
    for file in names:
        part = {name: tensor for name, tensor in weights.items() if index[name] == file}
        (torch.save if kind == "bin" else safetensors.save_file)(part, folder / file)
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
    (folder / f"{stem}{end}.index.json").write_text(text)
    return names


def old_names(weights):
    """As in 2018, without the decoder's second names."""
    new = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    weights = {name: tensor for name, tensor in weights.items() if "decoder" not in name}
    for now, then in new.items():
        weights = {name.replace(now, then): tensor for name, tensor in weights.items()}
    return weights


def with_prefix(prefix):
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


def decoder_alone(weights):
    """The tied matrix and the bias under the decoder's names, and a buffer of integers, as once was usual."""
    del weights[TABLE], weights["cls.predictions.bias"]
    return {**weights, "bert.embeddings.position_ids": torch.arange(20)[None]}


CHANGES = {
    "every name": dict,
    "2018": old_names,
    "module.": with_prefix("module."),
    "_orig_mod.": with_prefix("_orig_mod."),
    "model.": with_prefix("model."),
    "module._orig_mod.": with_prefix("module._orig_mod."),
    "decoder alone": decoder_alone,
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_pytorch_model_under_other_names_is_read(kind, theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    rewrite(tmp_path, CHANGES[kind])
    assert torch.allclose(BertForMaskedLM.from_pretrained(tmp_path)(IDS), theirs(IDS).logits, atol=1e-5)


@pytest.mark.parametrize("kind", ["one file", "by transformers", "safetensors", "bin"])
def test_a_model_in_several_files_is_read(kind, theirs, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size="8KB" if kind == "by transformers" else "1GB")
    if kind in ("safetensors", "bin"):
        split(tmp_path, kind)
    assert len(list(tmp_path.glob("*.index.json"))) == (kind != "one file"), "the case is not what it says"
    assert torch.allclose(BertForMaskedLM.from_pretrained(tmp_path)(IDS), theirs(IDS).logits, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_other_precisions_become_float32(dtype, kind, theirs, tmp_path):
    theirs.to(dtype).save_pretrained(tmp_path)
    if kind == "bin":
        rewrite(tmp_path, dict)
    ours = BertForMaskedLM.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    assert torch.allclose(ours(IDS), theirs.float()(IDS).logits, atol=1e-5)


def test_other_models_of_theirs_are_read(tmp_path):
    config = transformers.BertConfig(**SMALL, initializer_range=0.3, num_labels=3)
    models = {
        BertForMaskedLM: transformers.BertForPreTraining(config),
        BertModel: transformers.BertModel(config),
    }
    models[BertForSequenceClassification] = transformers.BertForSequenceClassification(config)
    for ours, theirs in models.items():
        theirs.eval().save_pretrained(tmp_path / ours.__name__)
        model = ours.from_pretrained(tmp_path / ours.__name__)
        outputs = model(IDS)[0] if ours is BertModel else model(IDS)
        assert torch.allclose(outputs, theirs(IDS)[0], atol=1e-5), ours.__name__
        assert not model.newly_initialised
    encoder = BertForSequenceClassification.from_pretrained(tmp_path / "BertModel")
    assert encoder.newly_initialised == ["classifier.weight", "classifier.bias"], "a bare encoder has no head"
    with pytest.raises(ValueError, match="no complete BertForMaskedLM: cls.* is missing"):
        BertForMaskedLM.from_pretrained(tmp_path / "BertModel")


def test_spare_rows_of_a_padded_vocabulary_are_cut(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    ours = BertForMaskedLM.from_pretrained(tmp_path, vocab_size=60)
    assert ours.config.vocab_size == 60 and ours(IDS).shape == (3, 9, 60)
    assert torch.allclose(ours(IDS), theirs(IDS).logits[..., :60], atol=1e-5), "real pieces keep their logits"
    encoder = BertModel.from_pretrained(tmp_path, vocab_size=60)
    assert torch.equal(encoder.embeddings.word_embeddings.weight, ours.bert.embeddings.word_embeddings.weight)
    ours.save_pretrained(tmp_path / "cut")
    assert torch.equal(BertForMaskedLM.from_pretrained(tmp_path / "cut")(IDS), ours(IDS))
    with pytest.raises(ValueError, match="the model has 64 rows of embeddings, the tokenizer 70 entries"):
        BertForMaskedLM.from_pretrained(tmp_path, vocab_size=70)


def both_names_of_a_norm(weights):
    return {**weights, f"{NORM}.gamma": weights[f"{NORM}.weight"] + 1}


def another_decoder(weights):
    return {**weights, DECODER: weights[DECODER] + 1}


def another_bias(weights):
    return {**weights, "cls.predictions.decoder.bias": weights["cls.predictions.bias"] + 1}


def a_longer_decoder(weights):
    return {**weights, DECODER: torch.zeros(70, 16)}


@pytest.mark.parametrize(
    "change, name",
    [
        (both_names_of_a_norm, f"{NORM}.weight"),
        (another_decoder, TABLE),
        (a_longer_decoder, TABLE),
        (another_bias, "cls.predictions.bias"),
    ],
)
def test_two_tensors_for_one_name_are_refused(change, name, theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=f"pytorch_model.bin holds two tensors for {name} that differ"):
        BertForMaskedLM.from_pretrained(tmp_path)


def a_third_layer(weights):
    """As where config.json was changed to fewer layers."""
    third = {name.replace("layer.1.", "layer.2."): w for name, w in weights.items() if "layer.1." in name}
    return weights | third


def an_adapter(weights):
    return {**weights, "bert.encoder.layer.0.output.adapters.mine.down.weight": torch.zeros(4, 16)}


def distances(weights):
    """Of relative positions, in a folder whose config.json does not say so."""
    return {**weights, "bert.encoder.layer.0.attention.self.distance_embedding.weight": torch.zeros(39, 8)}


def factors(weights):
    """As in ALBERT: one more matrix before the first layer."""
    return {**weights, "bert.encoder.embedding_hidden_mapping_in.weight": torch.eye(16)}


@pytest.mark.parametrize("change", [a_third_layer, an_adapter, distances, factors])
def test_a_folder_with_parts_of_another_encoder_is_refused(change, theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(
        ValueError, match=r"another encoder: .* no place for \d+ stored tensors, such as bert.enc"
    ):
        BertForMaskedLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another encoder"):
        BertForSequenceClassification.from_pretrained(tmp_path)


def test_a_head_that_is_left_unread_is_named_unless_it_is_berts_own(theirs, tmp_path, capsys):
    theirs.save_pretrained(tmp_path)
    own = {"cls.seq_relationship.weight": (2, 16), "classifier.bias": (3,), "bert.pooler.dense.bias": (16,)}
    rewrite(tmp_path, lambda weights: weights | {name: torch.zeros(size) for name, size in own.items()})
    capsys.readouterr()  # theirs shows a progress bar
    BertForMaskedLM.from_pretrained(tmp_path)
    assert not capsys.readouterr().err
    torch.save(
        {**torch.load(tmp_path / "pytorch_model.bin"), "qa_outputs.weight": torch.zeros(2, 16)},
        tmp_path / "pytorch_model.bin",
    )
    ours = BertForMaskedLM.from_pretrained(tmp_path)
    assert "no place for 1 stored tensors, such as qa_outputs.weight" in capsys.readouterr().err
    assert torch.allclose(ours(IDS), theirs(IDS).logits, atol=1e-5), "the rest is what it was"


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_nan_in_a_weight_is_called_nan(kind, theirs, tmp_path):
    theirs.bert.encoder.layer[1].output.dense.bias.data[3] = torch.nan
    theirs.save_pretrained(tmp_path)
    if kind == "bin":
        rewrite(tmp_path, dict)
    with pytest.raises(ValueError, match="bert.encoder.layer.1.output.dense.bias holds NaN"):
        BertForMaskedLM.from_pretrained(tmp_path)


def test_words_that_cannot_be_are_read(theirs, tmp_path):
    """A bias of -inf is how some switch words off."""
    theirs.cls.predictions.bias.data[:5] = -torch.inf
    theirs.save_pretrained(tmp_path)
    p = BertForMaskedLM.from_pretrained(tmp_path)(IDS).softmax(-1)
    assert torch.allclose(p, theirs(IDS).logits.softmax(-1), atol=1e-5) and not p[..., :5].any()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_transformers(name, tmp_path):
    x = torch.linspace(-6, 6, 1001)
    assert torch.allclose(ACTIVATIONS[name](x), transformers.activations.ACT2FN[name](x), atol=1e-6)
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL, hidden_act=name)).eval()
    theirs.save_pretrained(tmp_path)
    assert torch.allclose(BertForMaskedLM.from_pretrained(tmp_path)(IDS), theirs(IDS).logits, atol=1e-5)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_missing_part_is_named(kind, theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    part = split(tmp_path, kind)[1]
    (tmp_path / part).rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{part} is missing, damaged"):
        BertForMaskedLM.from_pretrained(tmp_path)


def test_an_index_leads_to_no_file_outside_of_its_folder(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "model")
    names = split(tmp_path / "model", "safetensors")
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(names[1], f"../{names[1]}"))
    (tmp_path / "model" / names[1]).rename(tmp_path / names[1])
    with pytest.raises(ValueError, match=f"model/{names[1]} is missing"):
        BertForMaskedLM.from_pretrained(tmp_path / "model")


def test_safetensors_are_read_before_an_older_file(theirs, tmp_path):
    """As transformers does: a folder that was saved twice holds both."""
    theirs.save_pretrained(tmp_path)
    torch.save({"left": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert torch.equal(read_weights(tmp_path)[TABLE], theirs.state_dict()[TABLE])


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForSequenceClassification, BertModel])
def test_they_read_what_we_save(kind, tmp_path):
    ours = kind(BertConfig(**SMALL, num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    init_normal(ours, 0.3)
    ours.save_pretrained(tmp_path)
    autos = {BertForMaskedLM: "AutoModelForMaskedLM", BertModel: "AutoModel"}
    auto = getattr(transformers, autos.get(kind, "AutoModelForSequenceClassification"))
    theirs, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    outputs = ours.eval()(IDS)[0] if kind is BertModel else ours.eval()(IDS)
    assert torch.allclose(outputs, theirs.eval()(IDS)[0], atol=1e-5)
    config = theirs.config
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.1, "BERT's own dropout"


def test_safetensors_holds_each_tensor_once(tmp_path):
    ours = BertForMaskedLM(BertConfig(**SMALL))
    ours.save_pretrained(tmp_path)
    parameters = dict(ours.named_parameters())
    read = safetensors.load_file(tmp_path / "model.safetensors")
    assert read.keys() == parameters.keys() and DECODER not in read
    assert all(torch.equal(read[name], parameters[name]) for name in read)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}, "without it transformers refuses the file"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_model_in_bfloat16_is_saved_as_float32(tmp_path):
    ours = BertForMaskedLM(BertConfig(**SMALL)).bfloat16()
    ours.save_pretrained(tmp_path)
    table = safetensors.load_file(tmp_path / "model.safetensors")[TABLE]
    assert torch.equal(table, ours.bert.embeddings.word_embeddings.weight.float())
