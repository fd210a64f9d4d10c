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
import time
import zipfile
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import BertWordPieceTokenizer, Tokenizer
from torch import nn

if os.name == "nt":
    import msvcrt
else:
    import fcntl

SIZES = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "medium": (8, 512), "base": (12, 768)}
# The exact gelu is x Phi(x) (Hendrycks & Gimpel 2016, arXiv 1606.08415).
ACTIVATIONS = {"gelu": F.gelu, "gelu_new": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


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
    pad_token_id: int = 0
    num_labels: int = 2  # outputs of the classifier
    fast_attention: bool = True  # F.scaled_dot_product_attention where it is faster, or the equation by hand

    def __post_init__(self):
        for f in fields(self):
            value, kind = getattr(self, f.name), type(f.default)
            fits = isinstance(value, (int, float) if kind is float else kind)
            most = 1000 if f.name == "num_hidden_layers" else 2**24
            if not fits or kind is not str and not 0 <= value < most:
                raise ValueError(f"{f.name} cannot be {value!r:.99}")
        width, heads = self.hidden_size, self.num_attention_heads
        if heads == 0 or width % (2 * heads) or self.hidden_act not in ACTIVATIONS:
            what = f"hidden_size {width} with {heads} heads and hidden_act {self.hidden_act!r}"
            raise ValueError(f"{what} cannot be built; known are {', '.join(ACTIVATIONS)}")

    @classmethod
    def preset(cls, size: str, **changes) -> "BertConfig":
        """One of the sizes of Turc et al. 2019 (arXiv 1908.08962): tiny, mini, small, medium, base."""
        if size not in SIZES:
            raise ValueError(f"size {size!r} is not one of {', '.join(SIZES)}")
        layers, width = SIZES[size]
        sizes = {"hidden_size": width, "num_hidden_layers": layers}
        sizes |= {"num_attention_heads": width // 64, "intermediate_size": 4 * width}
        return cls(**(sizes | changes))

    @classmethod
    def from_folder(cls, folder, **changes) -> "BertConfig":
        """Read config.json as `transformers` writes it. ValueError where it is no BERT we can build."""
        path = Path(folder) / "config.json"
        raw = read_json(path)
        only = {"model_type": "bert", "position_embedding_type": "absolute", "tie_word_embeddings": True}
        for name, value in {**only, "is_decoder": False}.items():
            if raw.get(name, value) != value:
                raise ValueError(f"{path}: {name} is {raw[name]!r}; only {value!r} is built here")
        if isinstance(raw.get("id2label"), dict):  # Hugging Face writes the number of labels as this table
            raw["num_labels"] = len(raw["id2label"])
        known = {f.name: raw[f.name] for f in fields(cls) if f.name in raw}
        try:
            return cls(**(known | changes))
        except ValueError as error:
            raise ValueError(f"{path} describes no model: {error}") from None


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
        size, self.heads, self.fast = config.hidden_size, config.num_attention_heads, config.fast_attention
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.dropout = config.attention_probs_dropout_prob

    def forward(self, x, mask=None):
        split = (*x.shape[:2], self.heads, x.shape[2] // self.heads)  # B, T, A, D
        q, k, v = (linear(x).view(split).transpose(1, 2) for linear in (self.query, self.key, self.value))
        dropout = self.dropout if self.training else 0.0
        slow = q.device.type == "cpu" and q.dtype == torch.bfloat16  # there the equation by hand is faster
        if self.fast and not slow:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        else:
            out = attention(q, k, v, mask, dropout)
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
        if (folder / "model.safetensors").exists():
            raise OSError(f"{folder} holds a model.safetensors, which is read first; use another folder")
        labels = {i: f"LABEL_{i}" for i in range(self.config.num_labels)}
        config = {"model_type": "bert", "architectures": [type(self).__name__], **asdict(self.config)}
        config |= {"id2label": labels, "label2id": {name: i for i, name in labels.items()}}
        del config["fast_attention"], config["num_labels"]
        weights = {name: tensor.detach().cpu() for name, tensor in self.state_dict().items()}
        atomic_write(folder / "pytorch_model.bin", lambda file: torch.save(weights, file))
        write_json(folder / "config.json", config)
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder, self.config.max_position_embeddings)

    @classmethod
    def from_pretrained(cls, folder, **changes):
        """Load a folder written here or by `transformers`, in evaluation mode; `changes` override its config.

        Heads the folder lacks (pooler, classifier, or one of another num_labels) start at random and are
        listed in `model.newly_initialised`; heads this class lacks are left out. Raises ValueError where
        config or weights are damaged or do not fit, or where a masked-LM head is wanted and missing.
        """
        config, weights = BertConfig.from_folder(folder, **changes), {}
        with torch.device("meta"):  # shapes without numbers: nothing is allocated for a config gone wrong
            wanted = dict(cls(config).named_parameters())  # what is tied counts once
        fresh = ("classifier.",) if "num_labels" in changes else ()  # where it has another number of labels
        for name, tensor in read_weights(folder).items():
            name = name.removeprefix("bert.") if cls is BertModel else name
            fits = name in wanted and tensor.shape == wanted[name].shape
            if name not in wanted or name.startswith(fresh) and not fits:
                continue
            if not fits or not (tensor.abs() < 1e6).all():  # not a number is not below either
                sizes = f"{tuple(tensor.shape)} for {tuple(wanted[name].shape)}"
                raise ValueError(f"{folder}: {name} is damaged or not of the shape in config.json ({sizes})")
            weights[name] = tensor
        newly_initialised = sorted(wanted.keys() - weights)
        for name in newly_initialised:
            if not name.startswith(("bert.pooler.", "pooler.", "classifier.")):
                raise ValueError(f"{folder} holds no complete {cls.__name__}: {name} is missing")
        model = cls(config)
        model.newly_initialised = newly_initialised
        model.load_state_dict(weights, strict=False)
        return model.eval()


class BertModel(Pretrained):
    """Token ids in, one vector a token out."""

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

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, positions=None):
        """Logits over the vocabulary: [B, T, V], or only where asked, which saves most of the work.

        positions: bool [B, T] gives [N, V], row by row, for its N True; long [B, k] gives [B, k, V].
        The long form has a static shape and needs no synchronisation with the GPU.
        """
        hidden, _ = self.bert(input_ids, attention_mask, token_type_ids)
        if positions is not None and positions.dtype == torch.bool:
            hidden = hidden[positions]
        elif positions is not None:
            hidden = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))
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
    """BERT's own start: weights and embeddings N(0, std), biases 0, LayerNorm 1 and 0. In place."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=std, generator=generator)
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
        if isinstance(part, (nn.Linear, nn.LayerNorm)) and part.bias is not None:
            nn.init.zeros_(part.bias)


@torch.no_grad()
def init_offset_heads(bert: BertModel, generator: torch.Generator | None = None, sharpness: float = 2.0):
    """A start whose first layer looks at the neighbours: it leaves the unigram plateau soon. In place.

    Position p starts as (sin w_i p, cos w_i p), sinusoids as large as the words, with w_i drawn from (0, pi):
    the similarity of two positions is a spike at distance 0 (random features, Rahimi & Recht 2007). "d places
    on" is a rotation R_d of every pair, so that a head with key = pairs and query = R_d pairs scores
    sum_i cos(w_i (p + d - p')), largest at p' = p + d. The heads look at d = -1, +1, -2, +2, ... Values are
    an orthogonal map and the output its transpose: the neighbour's vector arrives as it is. Only numbers
    differ from BERT's start, neither architecture nor checkpoint format.
    """
    config, attn = bert.config, bert.encoder["layer"][0].attention
    width, size = config.hidden_size, config.hidden_size // config.num_attention_heads
    frequency = math.pi * torch.rand(width // 2, generator=generator)  # w_i, radians a position
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


def atomic_write(path: Path, write):
    """Call write(file) on a file beside `path`, then rename it: never half-written. Raises OSError."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # left by a process that was killed
        with open(temporary, "xb") as file:  # never through a link that somebody put there
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        reason = getattr(error, "strerror", None) or "is the disk full?"
        raise OSError(f"cannot write {path} ({reason}); what was saved before is untouched") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def lock(path: Path, wait: bool = False):
    """An open file that no other process can lock until it is closed, or its process ends, however it ends.

    Raises BlockingIOError where another process has it, unless told to wait; OSError where `path` cannot be
    written. A file system without locks gives none.
    """
    try:
        file = open(path, "ab")
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror}); what was saved before is untouched") from None
    for attempt in count():
        try:
            if os.name == "nt":
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except (BlockingIOError, PermissionError):
            if not wait:
                text = f"another run is writing to {path.parent}: wait for its end, or choose another --out"
                raise BlockingIOError(text) from None
            if attempt == 0:
                print(f"waiting for another run, which holds {path}", flush=True)
            time.sleep(0.2)
        except OSError:
            return file


def explain(error: Exception) -> str:
    """What to tell the user of a program that ends with this error; raises it again where that is a bug."""
    if isinstance(error, (OSError, ValueError)):
        return str(error)
    if isinstance(error, MemoryError) or re.search("out of memory|allocate memory|enough memory", str(error)):
        return "out of memory; choose a smaller --batch-size, shorter rows or, in pretraining, --accumulate 4"
    raise error


def write_json(path: Path, value):
    """Write `value` as indented JSON, whole or not at all."""
    atomic_write(path, lambda file: file.write((json.dumps(value, indent=2) + "\n").encode()))


def read_json(path) -> dict:
    """Read a JSON object. Raises FileNotFoundError or ValueError, naming the file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist: is this the right folder?")
    with suppress(ValueError, RecursionError):
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
    raise ValueError(f"{path} is not a JSON object: it is damaged, get or write it again")


def read_safetensors(path) -> dict[str, torch.Tensor]:
    """The format: 8 bytes length, a JSON header {name: {dtype, shape, data_offsets}}, then the raw bytes."""
    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    kinds |= {"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}
    data = bytearray(Path(path).read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end <= len(data) - start:
                raise ValueError(f"{name} lies outside of the file")
            raw = data[start + begin : start + end]  # one of another length is refused by view
            tensors[name] = torch.frombuffer(raw, dtype=kinds[entry["dtype"]]).view(entry["shape"])
    return tensors


def read_torch(path):
    """What torch.save wrote, on the CPU. Raises one of many exceptions where it is damaged."""
    if zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip():  # torch.load compares no checksums
        raise ValueError("wrong checksum")
    return torch.load(path, map_location="cpu", weights_only=True)  # plain values: no code of a stranger runs


def read_weights(folder) -> dict[str, torch.Tensor]:
    """The tensors of a folder, float32, under today's names; those of the encoder start with "bert."."""
    path = Path(folder) / "model.safetensors"
    read = read_safetensors if path.is_file() else read_torch
    path = path if path.is_file() else path.with_name("pytorch_model.bin")
    weights = {}
    try:
        for name, tensor in read(path).items():
            name = name.replace(".gamma", ".weight").replace(".beta", ".bias")  # LayerNorm's, in 2018
            name = name.replace("predictions.decoder.bias", "predictions.bias")  # one vector, two names
            bare = name.startswith(("embeddings.", "encoder.", "pooler."))  # an encoder without a head
            weights["bert." + name if bare else name] = tensor.float()
    except Exception as error:
        raise ValueError(f"{path} is missing, damaged or holds no weights: get it again") from error
    return weights


def load_tokenizer(path) -> Tokenizer:
    """The tokenizer of a folder (tokenizer.json, else vocab.txt), or of a vocabulary file, one piece a line.

    A vocabulary is uncased unless a tokenizer_config.json beside it says otherwise. Raises ValueError.
    """
    path = Path(path)
    if path.is_dir():
        path /= "tokenizer.json" if (path / "tokenizer.json").is_file() else "vocab.txt"
    try:
        if path.suffix == ".json":
            tokenizer = Tokenizer.from_file(str(path))
            tokenizer.no_padding()
            tokenizer.no_truncation()
        else:
            pieces, settings = path.read_text(encoding="utf-8"), path.parent / "tokenizer_config.json"
            vocab = {piece.rstrip("\r"): i for i, piece in enumerate(pieces.rstrip("\n").split("\n"))}
            lowercase = read_json(settings).get("do_lower_case", True) if settings.is_file() else True
            tokenizer = Tokenizer.from_str(BertWordPieceTokenizer(vocab, lowercase=bool(lowercase)).to_str())
        complete = set(SPECIAL_TOKENS) <= set(tokenizer.get_vocab())
    except Exception:  # the tokenizers library raises bare Exceptions
        complete = False
    if not complete:
        raise ValueError(f"{path} is missing, damaged or no vocabulary with {' '.join(SPECIAL_TOKENS)}")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder, longest: int = 512):
    """Write tokenizer.json, vocab.txt and tokenizer_config.json, as `transformers` reads them."""
    folder, vocab, text = Path(folder), tokenizer.get_vocab(), tokenizer.to_str(pretty=True)
    lowercase = (json.loads(text)["normalizer"] or {}).get("lowercase", True)
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase, "model_max_length": longest}
    pieces = "".join(piece + "\n" for piece in sorted(vocab, key=vocab.get))
    atomic_write(folder / "vocab.txt", lambda file: file.write(pieces.encode()))
    atomic_write(folder / "tokenizer.json", lambda file: file.write(text.encode()))
    write_json(folder / "tokenizer_config.json", settings)
