"""Masked LMs of `transformers` with random weights, and tokenizers of made-up words: no downloads."""

import torch
import transformers as hf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0 to 4

# What an architecture needs besides the sizes.
EXTRAS = {
    "Bert": {},
    "Roberta": {},
    "DistilBert": {},
    "Electra": {},
    "Albert": {},
    "ModernBert": {
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "local_attention": 8,
    },
    "DebertaV2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0},
    "Esm": {"mask_token_id": 4, "position_embedding_type": "rotary", "token_dropout": True},
    "MobileBert": {},
}


def masked_lm(architecture, vocab_size, layers=2, width=32, length=48, **changes):
    """A masked LM of random weights in training mode, its sizes alike in all architectures."""
    heads = max(2, width // 64)
    sizes = {"vocab_size": vocab_size, "max_position_embeddings": length, "pad_token_id": 0}
    if architecture == "DistilBert":
        sizes |= {"dim": width, "n_layers": layers, "n_heads": heads, "hidden_dim": 4 * width}
    else:
        sizes |= {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
        sizes |= {"intermediate_size": 4 * width}
    if architecture in ("Electra", "Albert"):
        sizes |= {"embedding_size": width // 2}
    if architecture == "MobileBert":
        sizes |= {"embedding_size": width // 2, "intra_bottleneck_size": width, "true_hidden_size": width}
    config = getattr(hf, f"{architecture}Config")(**sizes, **EXTRAS[architecture], **changes)
    return getattr(hf, f"{architecture}ForMaskedLM")(config).train()


# Small sizes, under all the names that configurations of `transformers` have for them.
WIDTHS = "hidden_size d_model dim emb_dim embedding_size input_embedding_size output_embedding_size"
WIDTHS += " true_hidden_size intra_bottleneck_size pooler_hidden_size d_latents entity_emb_size"
WIDTHS += " prediction_head_size embedding_rank"
PAIRS = "num_hidden_layers n_layers encoder_layers decoder_layers num_attention_heads n_heads n_head"
PAIRS += " encoder_attention_heads decoder_attention_heads num_key_value_heads num_self_attention_heads"
PAIRS += " num_cross_attention_heads num_self_attends_per_block"
INNER = "intermediate_size hidden_dim d_inner encoder_ffn_dim decoder_ffn_dim feed_forward_size"
SIZES = dict.fromkeys(WIDTHS.split(), 32) | dict.fromkeys(PAIRS.split(), 2) | dict.fromkeys(INNER.split(), 64)
SIZES |= {"head_dim": 16, "d_head": 16, "attention_head_size": 16, "max_position_embeddings": 64}
SIZES |= {"pad_token_id": 0, "mask_token_id": 4, "image_size": 32, "patch_size": 16, "num_latents": 8}
SIZES |= dict.fromkeys(["bos_token_id", "cls_token_id"], 2)
SIZES |= dict.fromkeys(["eos_token_id", "sep_token_id", "decoder_start_token_id", "forced_eos_token_id"], 3)
SIZES |= {"entity_vocab_size": 10, "shape_vocab_size": 40, "pronunciation_vocab_size": 40}

# And what some need besides.
BESIDES = {
    "big_bird": {"attention_type": "original_full"},
    "esm": {"position_embedding_type": "rotary"},
    "funnel": {"block_sizes": [1, 1]},
    "longformer": {"attention_window": 8},
    "nystromformer": {"num_landmarks": 8, "segment_means_seq_len": 8},
    "perceiver": {"max_position_embeddings": 16},  # it makes as many logits, whatever it reads
    "reformer": {"is_decoder": False, "axial_pos_embds": False, "attn_layers": ["local", "local"]},
    "xmod": {"default_language": "en_XX"},
}
BESIDES["reformer"] |= {"local_attn_chunk_length": 4, "local_num_chunks_after": 1}


def small_masked_lm(model_type, vocab_size):
    """The masked LM that AutoModelForMaskedLM makes for this type, small and with random weights."""
    sizes = SIZES | {"vocab_size": vocab_size}

    def small(known):
        return {name: value for name, value in sizes.items() if name in known}

    known = hf.AutoConfig.for_model(model_type).to_dict()
    changes = small(known) | BESIDES.get(model_type, {})
    for part in ("text_config", "vision_config"):  # a model with a tower for images
        if part in known:
            changes[part] = small(known[part]) | {"model_type": known[part]["model_type"]}
    return hf.AutoModelForMaskedLM.from_config(hf.AutoConfig.for_model(model_type, **changes)).train()


def sharpen(model, factor=20.0):
    """Larger weights, so that predictions differ from place to place. In place; returns the model."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(factor)
    return model


def word_tokenizer(words, mask_token="[MASK]"):
    """transformers' tokenizer over SPECIAL and `words`, by WordPiece: ## continues a word."""
    pieces = {piece: i for i, piece in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token=mask_token, **names)
