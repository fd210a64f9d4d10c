"""BERT by hand: embeddings, post-LN encoder, masked-LM head, classifier, and the folder a model is saved in.

Source: Devlin et al. 2019, "BERT" (arXiv 1810.04805), section 3 and appendix A; the encoder layer is that of
Vaswani et al. 2017, "Attention is all you need" (arXiv 1706.03762), section 3. Parameter names are Hugging
Face's, so a folder written here opens in `transformers` and the other way round.

Shapes in the comments: B sequences, T tokens each, H hidden_size, A heads of D = H / A, V vocab_size.
"""

import json
import math
import os
import re
import sys
import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, BertWordPieceTokenizer, Tokenizer
from tokenizers.models import WordPiece
from torch import nn

SIZES = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "medium": (8, 512), "base": (12, 768)}
# The exact gelu is x Phi(x) (Hendrycks & Gimpel 2016, arXiv 1606.08415); Google's code had another with tanh.
ACTIVATIONS = {"gelu": F.gelu, "gelu_new": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}
ACTIVATIONS |= {"gelu_python": ACTIVATIONS["gelu"], "gelu_pytorch_tanh": ACTIVATIONS["gelu_new"]}
HEADS = ("cls.", "classifier.", "bert.pooler.")  # BERT's own; no class here has them all
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# What other programs call a tensor, as a pattern, and its name here, which is that of `transformers` today.
OTHER_NAMES = {
    r"^((module|_orig_mod|model)\.)+": "",  # wrappers: DistributedDataParallel, torch.compile, Lightning
    r"\.gamma$": ".weight",  # LayerNorm's, in 2018
    r"\.beta$": ".bias",
    r"predictions\.decoder\.bias$": "predictions.bias",
    r"^cls\.predictions\.decoder\.weight$": "bert.embeddings.word_embeddings.weight",  # tied
    r"^(embeddings|encoder|pooler)\.": r"bert.\1.",  # an encoder without a head
}


@dataclass
class BertConfig:
    """Sizes of a model, under Hugging Face's field names; the defaults are BERT-base uncased."""

    vocab_size: int = 30522  # word pieces
    hidden_size: int = 768  # H, width of every layer
    num_hidden_layers: int = 12
    num_attention_heads: int = 12  # A, must divide hidden_size
    intermediate_size: int = 3072  # width inside the feed-forward block
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1  # after embeddings and after every sub-layer
    attention_probs_dropout_prob: float = 0.1  # on the attention weights
    max_position_embeddings: int = 512  # longest sequence
    type_vocab_size: int = 2  # segments: sentence A and sentence B
    initializer_range: float = 0.02  # standard deviation of the normal initialisation
    layer_norm_eps: float = 1e-12
    num_labels: int = 2  # outputs of the classifier
    trained_length: int | None = None  # our own: tokens of the longest rows in training; None: unknown

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            heads = self.num_attention_heads
            raise ValueError(f"hidden_size {self.hidden_size} cannot be divided among {heads} heads")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act {self.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}")

    @classmethod
    def preset(cls, size: str, **changes) -> "BertConfig":
        """One of the sizes of Turc et al. 2019 (arXiv 1908.08962): tiny, mini, small, medium, base."""
        layers, width = SIZES[size]
        sizes = {"hidden_size": width, "num_hidden_layers": layers}
        sizes |= {"num_attention_heads": width // 64, "intermediate_size": 4 * width}
        return cls(**(sizes | changes))

    @classmethod
    def from_folder(cls, folder, **changes) -> "BertConfig":
        """Read config.json as `transformers` writes it. ValueError where it is no BERT we can build."""
        path = existing(folder) / "config.json"
        raw = read_json(path)
        only = {"model_type": "bert", "position_embedding_type": "absolute"}
        only |= {"tie_word_embeddings": True, "is_decoder": False}
        for name, value in only.items():
            if raw.get(name, value) != value:
                raise ValueError(f"{path}: {name} is {raw[name]!r}; only {value!r} is built here")
        if "id2label" in raw:  # Hugging Face writes the number of labels as this table
            raw["num_labels"] = len(raw["id2label"])
        return cls(**({f.name: raw[f.name] for f in fields(cls) if f.name in raw} | changes))


# ---- encoder ----


def attention(query, key, value, mask=None, dropout=0.0):
    """softmax(Q K^T / sqrt(D)) V, as in Vaswani et al. 2017, equation 1.

    query, key, value: [B, A, T, D]. mask: bool, broadcastable to [B, A, T, T], True where a key may be read;
    every row needs at least one. dropout: probability of dropping an attention weight. Returns [B, A, T, D].
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # [B, A, T, T]
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = F.dropout(scores.softmax(-1), dropout)
    return weights @ value


class SelfAttention(nn.Module):
    """Every token reads every token: A heads side by side. [B, T, H] -> [B, T, H]"""

    def __init__(self, config: BertConfig):
        super().__init__()
        size, self.heads = config.hidden_size, config.num_attention_heads
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.dropout = config.attention_probs_dropout_prob

    def forward(self, x, mask=None):
        split = (*x.shape[:2], self.heads, x.shape[2] // self.heads)  # B, T, A, D
        q, k, v = (linear(x).view(split).transpose(1, 2) for linear in (self.query, self.key, self.value))
        dropout = self.dropout if self.training else 0.0
        # The same numbers: torch's fused function is attention() in one pass, slower in bfloat16 on a CPU.
        if q.device.type == "cpu" and q.dtype == torch.bfloat16:
            out = attention(q, k, v, mask, dropout)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return out.transpose(1, 2).reshape(x.shape)


class AddNorm(nn.Module):
    """LayerNorm(residual + Dropout(x W + b)): "post-LN", the normalisation comes after the addition."""

    def __init__(self, inputs: int, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x, residual):
        return self.LayerNorm(residual + self.dropout(self.dense(x)))


class BertLayer(nn.Module):
    """x <- AddNorm(attention(x), x);  x <- AddNorm(GELU(x W1 + b1), x). [B, T, H] -> [B, T, H]"""

    def __init__(self, config: BertConfig):
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.attention = nn.ModuleDict({"self": SelfAttention(config), "output": AddNorm(size, config)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(size, inner)})
        self.output = AddNorm(inner, config)
        self.act = ACTIVATIONS[config.hidden_act]

    def forward(self, x, mask=None):
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(self.act(self.intermediate["dense"](x)), x)


class BertEmbeddings(nn.Module):
    """LayerNorm(word + position + segment), then dropout. ids [B, T] -> [B, T, H]; no segments: all 0."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids, token_type_ids=None):
        length, longest = input_ids.shape[1], self.position_embeddings.num_embeddings
        if length > longest:
            raise ValueError(f"a sequence of {length} tokens is longer than the model's {longest} positions")
        segments = self.token_type_embeddings
        segment = segments.weight[0] if token_type_ids is None else segments(token_type_ids)
        x = self.word_embeddings(input_ids) + self.position_embeddings.weight[:length] + segment
        return self.dropout(self.LayerNorm(x))


class Pretrained(nn.Module):
    """Reading and writing a checkpoint folder: config.json, the weights, and the tokenizer's files."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config

    def save_pretrained(self, folder, tokenizer: Tokenizer | None = None):
        """Write the model, and the tokenizer if given, as `transformers` reads them. Raises OSError."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"model_type": "bert", "architectures": [type(self).__name__], **asdict(self.config)}
        # Who fine-tunes this folder elsewhere wants BERT's own dropout, even if pretraining did without.
        config |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
        write_json(folder / "config.json", config)
        weights = dict(self.named_parameters())  # what is tied counts once
        atomic_write(folder / "model.safetensors", lambda file: write_safetensors(file, weights))
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder, self.config.max_position_embeddings)

    @classmethod
    def from_pretrained(cls, folder, **changes):
        """Load a folder written here or by `transformers`, in evaluation mode; `changes` override its config.

        Heads that the folder lacks, or has for another num_labels, start at random; `newly_initialised` lists
        them. A vocab_size below the stored one cuts the spare rows of a padded vocabulary. What else is left
        unread is named, but for BERT's own heads. Raises ValueError, also for parts of another encoder.
        """
        model = cls(BertConfig.from_folder(folder, **changes))
        model.newly_initialised = []
        weights = read_weights(folder)
        for name, parameter in model.named_parameters():  # what is tied counts once
            tensor = weights.pop("bert." + name if cls is BertModel else name, torch.empty(0))
            if "vocab_size" in changes and name.endswith(("word_embeddings.weight", "predictions.bias")):
                if 0 < len(tensor) < changes["vocab_size"]:
                    sizes = f"{len(tensor)} rows of embeddings, the tokenizer {changes['vocab_size']} entries"
                    raise ValueError(f"{folder}: the model has {sizes}: one vocabulary for both")
                tensor = tensor[: changes["vocab_size"]]
            if tensor.shape == parameter.shape:
                parameter.data.copy_(tensor)
            elif name.startswith(("bert.pooler.", "pooler.", "classifier.")):
                model.newly_initialised.append(name)
            else:
                what = f"{name} is missing or not of the shape {tuple(parameter.shape)}"
                raise ValueError(f"{folder} holds no complete {cls.__name__}: {what}")
        if unread := [name for name in weights if not name.startswith(HEADS)]:
            what = f"its config.json has no place for {len(unread)} stored tensors, such as {unread[0]}"
            if any("encoder." in name or "embeddings." in name for name in unread):
                raise ValueError(f"{folder} holds another encoder: {what}")
            print(f"{folder}: {what}: left unread", file=sys.stderr)
        return model.eval()


class BertModel(Pretrained):
    """Token ids in, one vector per token out."""

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        layers = [BertLayer(config) for _ in range(config.num_hidden_layers)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        size = config.hidden_size
        self.pooler = nn.ModuleDict({"dense": nn.Linear(size, size)}) if add_pooling_layer else None
        init_normal(self, config.initializer_range)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        """input_ids [B, T]; attention_mask [B, T], 1 real, 0 padding; token_type_ids [B, T], 0 or 1.

        Returns hidden [B, T, H] and pooled [B, H] = tanh(hidden[:, 0] W + b), or None without a pooler.
        """
        mask = None
        if attention_mask is not None:
            mask = attention_mask.bool()
            # A row of padding alone would be a softmax over nothing, NaN. It reads itself; nobody reads it.
            mask = (mask | ~mask.any(-1, keepdim=True))[:, None, None, :]  # [B, 1, 1, T]
        x = self.embeddings(input_ids, token_type_ids)
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
        pooled = None if self.pooler is None else torch.tanh(self.pooler["dense"](x[:, 0]))
        return x, pooled


class MaskedLMHead(nn.Module):
    """logits = LayerNorm(GELU(x W + b)) E^T + c, with E the word embeddings. [..., H] -> [..., V]"""

    def __init__(self, config: BertConfig, word_embeddings: nn.Embedding):
        super().__init__()
        size = config.hidden_size
        norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.transform = nn.ModuleDict({"dense": nn.Linear(size, size), "LayerNorm": norm})
        self.decoder = nn.Linear(size, config.vocab_size)
        self.decoder.weight = word_embeddings.weight  # tied: one matrix reads and writes words
        self.bias = self.decoder.bias  # Hugging Face knows c under both names
        self.act = ACTIVATIONS[config.hidden_act]

    def forward(self, x):
        return self.decoder(self.transform["LayerNorm"](self.act(self.transform["dense"](x))))


class BertForMaskedLM(Pretrained):
    """The encoder with the head that guesses hidden words: what pretraining trains."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.cls = nn.ModuleDict({"predictions": MaskedLMHead(config, self.bert.embeddings.word_embeddings)})
        init_normal(self.cls, config.initializer_range)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, places=None):
        """Logits over the vocabulary: [B, T, V], or [B, k, V] at the places [B, k], indices, alone."""
        hidden, _ = self.bert(input_ids, attention_mask, token_type_ids)
        if places is not None:  # the head is most of the work of a small model; few tokens need it
            index = places[..., None].expand(-1, -1, hidden.shape[-1])  # gather compiles for any length
            hidden = hidden.gather(1, index)
        return self.cls["predictions"](hidden)


class BertForSequenceClassification(Pretrained):
    """The encoder with a linear layer on the pooled [CLS] vector: what fine-tuning trains."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.bert = BertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        init_normal(self.classifier, config.initializer_range)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        """Same inputs as BertModel. Returns [B, C]: logits of labels, or with C = 1 a regression value."""
        return self.classifier(self.dropout(self.bert(input_ids, attention_mask, token_type_ids)[1]))


# ---- initial weights ----


def init_normal(module: nn.Module, std: float, generator: torch.Generator | None = None):
    """BERT's start as in Hugging Face: matrices N(0, std), biases 0 (LayerNorm has 1 and 0). In place."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=std, generator=generator)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)


@torch.no_grad()
def init_offset_heads(bert: BertModel, generator: torch.Generator | None = None, sharpness: float = 2.0):
    """A start whose first layer looks at the neighbouring tokens, which leaves the unigram plateau early.

    Position p starts as sinusoids (sin w_i p, cos w_i p) of random frequencies w_i: two positions are similar
    only if they are the same (random features, Rahimi & Recht 2007). "d places further" is a rotation R_d of
    every pair, so a head with key = pairs and query = R_d pairs looks at p + d; the heads get d = -1, +1, -2,
    +2, ... Values are an orthogonal map, the output its transpose: the neighbour's vector arrives as it is.
    Raises ValueError for heads of odd width, which are not all pairs.
    """
    config, attn = bert.config, bert.encoder["layer"][0].attention
    width, size = config.hidden_size, config.hidden_size // config.num_attention_heads
    if size % 2:
        raise ValueError(f"heads of odd width {size} are no pairs to turn: start from normal weights instead")
    frequency = math.pi * torch.rand(width // 2, generator=generator)  # w_i, radians per position
    angle = torch.arange(config.max_position_embeddings)[:, None] * frequency  # [positions, H / 2]
    waves = torch.stack((angle.sin(), angle.cos()), -1).flatten(1)  # [positions, H]
    bert.embeddings.position_embeddings.weight.copy_(config.initializer_range * math.sqrt(2) * waves)
    for head in range(config.num_attention_heads):
        offset = (head // 2 + 1) * (-1 if head % 2 == 0 else 1)
        turn = offset * frequency[: size // 2]
        turns = torch.stack((turn.cos(), turn.sin(), -turn.sin(), turn.cos()), -1).view(-1, 2, 2)
        rows = slice(head * size, (head + 1) * size)  # the head's share of the [H, H] matrices
        attn["self"].query.weight[rows] = F.pad(sharpness * torch.block_diag(*turns), (0, width - size))
        attn["self"].key.weight[rows] = F.pad(sharpness * torch.eye(size), (0, width - size))
    nn.init.orthogonal_(attn["self"].value.weight, generator=generator)
    attn["output"].dense.weight.copy_(attn["self"].value.weight.T)


# ---- the checkpoint folder ----


def existing(path) -> Path:
    """The path of a file or folder that is there. Raises ValueError where nothing is."""
    if not Path(path).exists():
        hub = "a model on the Hugging Face hub is fetched first: hf download NAME --local-dir FOLDER"
        raise ValueError(f"{path}: no such file or folder; {hub}")
    return Path(path)


def atomic_write(path: Path, write):
    """Call write(file) on a file beside `path`, then rename it: never half-written. Raises OSError."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two runs at once may write the same
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        if isinstance(error, RuntimeError) and "memory" in str(error):
            raise  # it is not the disk that is full
        reason = getattr(error, "strerror", None) or "is the disk full?"
        raise OSError(f"cannot write {path} ({reason}); what was saved before is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value):
    """Write `value` as indented JSON, whole or not at all."""
    atomic_write(path, lambda file: file.write((json.dumps(value, indent=2) + "\n").encode()))


def read_json(path, optional: bool = False) -> dict:
    """Read a JSON object; {} for an optional one that is not there. Raises OSError or ValueError."""
    if optional and not Path(path).is_file():
        return {}
    try:
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (TypeError, ValueError):
        raise ValueError(f"{path} is not a JSON object: it is damaged, get or write it again") from None


# What torch says of memory and cards, as a pattern, and what to do about it.
SMALLER = "choose a smaller --batch-size, shorter rows or, in pretraining, --accumulate 4"
REMEDIES = {
    "MemoryError|out of memory|allocate memory|enough memory": f"out of memory; {SMALLER}",
    "CUBLAS_STATUS_(ALLOC_FAILED|NOT_INIT)": f"the card is full, by another program? Else {SMALLER}",
    "CUBLAS_STATUS_NOT_SUPPORTED": "the card does not multiply numbers of this dtype: choose --dtype float32",
    "busy or unavailable": "another program has the card (see nvidia-smi): wait, or choose --device cpu",
    "UnicodeDecodeError": "a text file is not UTF-8: convert it with iconv -f LATIN1 -t UTF-8 FILE > NEW",
    "no kernel image": "this torch has no kernels for the card: README, Install, says which torch fits",
}


def explain(error: Exception) -> str:
    """What to tell the user of a program that ends with this error; raises it again where that is a bug."""
    if isinstance(error, OSError) and error.strerror:  # str(error) would begin with "[Errno 21]"
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    for pattern, remedy in REMEDIES.items():
        if re.search(pattern, f"{type(error).__name__}: {error}"):
            return remedy
    if isinstance(error, (OSError, ValueError)):
        return str(error)
    raise error


def write_safetensors(file, tensors: dict[str, torch.Tensor]):
    """The format: 8 bytes length, a JSON header {name: {dtype, shape, data_offsets}}, then the raw bytes."""
    header = {"__metadata__": {"format": "pt"}}
    numbers = bytearray()
    for name, tensor in tensors.items():
        begin = len(numbers)
        numbers += tensor.detach().float().cpu().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, len(numbers)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers start at a multiple of 8
    file.writelines((len(text).to_bytes(8, "little"), text, numbers))


def read_safetensors(path) -> dict[str, torch.Tensor]:
    """The tensors of a file in the format above. Raises one of many exceptions if it is damaged."""
    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    data = bytearray(Path(path).read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if entry.get("dtype") in kinds:  # neither __metadata__ nor a buffer of integers
            begin, end = entry["data_offsets"]
            raw = data[start + begin : start + end]
            tensors[name] = torch.frombuffer(raw, dtype=kinds[entry["dtype"]]).view(entry["shape"])
    return tensors


def read_torch(path):
    """What torch.save wrote, on the CPU. Raises one of many exceptions if it is damaged."""
    if zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip():  # torch.load compares no checksums
        raise ValueError("wrong checksum")
    return torch.load(path, map_location="cpu", weights_only=True)  # plain values: no code of a stranger runs


def read_weights(folder) -> dict[str, torch.Tensor]:
    """The tensors of a folder, float32, under today's names; those of the encoder start with "bert.".

    Raises ValueError where a file is missing or damaged, holds NaN, or two tensors that are one here differ.
    """
    names = ["model.safetensors", "model.safetensors.index.json"]
    names += ["pytorch_model.bin", "pytorch_model.bin.index.json"]
    files = [name for name in names if Path(folder, name).is_file()][:1] or names[:1]
    if files[0].endswith(".json"):  # a large model is split; the index says which tensor is in which file
        files = sorted(set(read_json(Path(folder, files[0]))["weight_map"].values()))

    weights = {}
    for file in files:
        path = Path(folder, Path(file).name)
        read = read_safetensors if path.suffix == ".safetensors" else read_torch
        try:
            read_in = read(path).items()
            tensors = {name: tensor.float() for name, tensor in read_in if tensor.is_floating_point()}
        except Exception as error:
            raise ValueError(f"{path} is missing, damaged or holds no weights: get it again") from error
        for name, tensor in tensors.items():
            for pattern, new in OTHER_NAMES.items():
                name = re.sub(pattern, new, name)
            if tensor.isnan().any():
                raise ValueError(f"{path}: {name} holds NaN, so the run that saved it had diverged")
            if not torch.equal(weights.setdefault(name, tensor), tensor):
                raise ValueError(f"{path} holds two tensors for {name} that differ: which one counts?")
    return weights


def load_tokenizer(path, lowercase: bool | None = None) -> Tokenizer:
    """The tokenizer of a folder (tokenizer.json, else vocab.txt), or of a vocabulary file, a piece per line.

    Its ids, 0 to get_vocab_size() - 1, are those of AutoTokenizer in `transformers` 5: text is treated as
    tokenizer_config.json says, by default as in BERT uncased; `lowercase` overrides both. Raises ValueError
    for what is damaged, or would be read differently there.
    """
    # Pieces are in tokenizer.json or vocab.txt; how to use them is in up to four files beside it.
    path = existing(path)
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        path /= "tokenizer.json" if (path / "tokenizer.json").is_file() else "vocab.txt"
    whole = read_json(path) if path.suffix == ".json" else {}
    config = read_json(folder / "config.json", optional=True)
    settings = read_json(folder / "tokenizer_config.json", optional=True)

    # Another kind of tokenizer would be read without an error, and cut text into other pieces.
    kind = settings.get("tokenizer_class") or config.get("tokenizer_class") or "BertTokenizer"
    model = whole.get("model", {}).get("type", "WordPiece")
    if kind not in ("BertTokenizer", "BertTokenizerFast") or model != "WordPiece":
        raise ValueError(f"{folder}: {kind} with {model}; only BertTokenizer with WordPiece is read here")

    # Only these three settings change how text is treated; what tokenizer.json says of it does not count.
    rules = {"lowercase": settings.get("do_lower_case", True) if lowercase is None else lowercase}
    rules |= {"strip_accents": settings.get("strip_accents")}
    rules |= {"handle_chinese_chars": settings.get("tokenize_chinese_chars", True)}
    added = added_words(folder, settings, whole.get("added_tokens", []))
    try:
        pieces = whole["model"]["vocab"] if whole else WordPiece.read_file(str(path))
        tokenizer = BertWordPieceTokenizer(pieces, **rules)
        tokenizer.add_tokens([AddedToken(**word) for word in added])
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise ValueError(f"{path} is missing, damaged or no vocabulary: {error}") from None

    # An id is a row of the embeddings: each has one piece, and the special ones are there.
    ids = tokenizer.get_vocab()
    if missing := [word for word in SPECIAL_TOKENS if word not in ids]:
        raise ValueError(f"{path} lacks {' '.join(missing)}: is it BERT's vocabulary?")
    if "" in ids or sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(f"{path}: pieces are blank, repeated, or not numbered from 0 without gaps")
    return Tokenizer.from_str(tokenizer.to_str())


def added_words(folder, settings: dict, words: list[dict]) -> list[dict]:
    """The words that are found before text is split, in the order of their ids.

    settings: tokenizer_config.json, whose added_tokens_decoder defines them; else `words` of tokenizer.json.
    Raises ValueError where another setting names a word that neither list defines: it would be missing here.
    """
    found = {word["id"]: {name: word[name] for name in word if name != "id"} for word in words}
    if "added_tokens_decoder" in settings:
        found = settings["added_tokens_decoder"]
        named = settings
    else:  # until 2023 they stood in two more files
        older = read_json(folder / "special_tokens_map.json", optional=True)
        numbers = read_json(folder / "added_tokens.json", optional=True)
        named = {**settings, **older, "added_tokens": list(numbers)}

    known = [*SPECIAL_TOKENS, *(word["content"] for word in found.values()), False]  # False: a switch
    for key, value in named.items():
        values = value if isinstance(value, list) else [value]
        if key.endswith(("_token", "_tokens")) and not all(value in known for value in values):
            where = "added_tokens_decoder, where transformers 5 saves it"
            raise ValueError(f"{folder}: {key} is {value!r}, which is not in {where}")
    return [found[number] for number in sorted(found, key=int)]


def text_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that reads text: "[MASK]", written in a text, is text there, and added words stay whole.

    (The library knows one switch for all special words, and a checkpoint may call [URL] special.)
    """
    whole = json.loads(tokenizer.to_str())
    for word in whole["added_tokens"]:
        word["special"] = word["content"] in SPECIAL_TOKENS
    copy = Tokenizer.from_str(json.dumps(whole))
    copy.encode_special_tokens = True
    return copy


def save_tokenizer(tokenizer: Tokenizer, folder, longest: int = 512):
    """Write tokenizer.json, vocab.txt and tokenizer_config.json, as `transformers` reads them."""
    folder, vocab, rules = Path(folder), tokenizer.get_vocab(), tokenizer.normalizer
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": longest}
    settings |= {"do_lower_case": rules.lowercase, "strip_accents": rules.strip_accents}
    settings |= {"tokenize_chinese_chars": rules.handle_chinese_chars}
    pieces = "".join(piece + "\n" for piece in sorted(vocab, key=vocab.get))
    atomic_write(folder / "vocab.txt", lambda file: file.write(pieces.encode()))
    atomic_write(folder / "tokenizer.json", lambda file: file.write(tokenizer.to_str(pretty=True).encode()))
    write_json(folder / "tokenizer_config.json", settings)
