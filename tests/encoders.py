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
