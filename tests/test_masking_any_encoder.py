"""masking.py with any encoder: what it reads is what the model says, and the model is left as it was."""

import copy
import shutil
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import PROJECT
from sync import NoSync
from torch import nn

from masking import IGNORE, as_places, blank_entropy, logits_at, mask_batch, mask_budget, visible_entropy
from model import SPECIAL_TOKENS, BertConfig, BertForMaskedLM, init_normal, load_tokenizer

hf = pytest.importorskip("transformers")

from encoders import EXTRAS, masked_lm, sharpen, small_masked_lm, word_tokenizer  # noqa: E402 (needs it)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES  # noqa: E402

WORDS = [*(a + b for a in "bcdfg" for b in "aeiou"), "##la", "##mo", "##nu"]
VOCAB = 5 + len(WORDS)
PADDED = 40  # the models' vocabulary, larger than the tokenizer's, as in many checkpoints
PAD, UNK, CLS, SEP, MASK = range(5)
ALL = [*EXTRAS, "this project"]
NO_HOOK = ["MobileBert"]  # its last layer is multiplied by hand, so the full logits are taken


def build(name, vocab_size=PADDED):
    torch.manual_seed(1)
    if name == "this project":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        model = BertForMaskedLM(BertConfig(vocab_size=vocab_size, **sizes))
        init_normal(model, 0.3)
        return model.train()
    return sharpen(masked_lm(name, vocab_size))


def batch_of_rows(lengths, width=None, seed=0):
    """Rows of [CLS] words [SEP] and padding: input_ids and attention_mask [B, T]."""
    rng = torch.Generator().manual_seed(seed)
    shape = (len(lengths), width or max(lengths))
    ids = torch.randint(5, VOCAB, shape, generator=rng)
    place = torch.arange(shape[1])
    end = torch.tensor(lengths)[:, None] - 1
    ids[:, 0] = CLS
    ids = ids.masked_fill(place == end, SEP).masked_fill(place > end, PAD)
    return {"input_ids": ids, "attention_mask": (place <= end).long()}


def last_layer(model):
    """The layer that makes the logits."""
    ours = isinstance(model, BertForMaskedLM)
    return model.cls["predictions"].decoder if ours else model.get_output_embeddings()


def logits_of(model, batch):
    output = model(batch["input_ids"], attention_mask=batch["attention_mask"])
    return getattr(output, "logits", output)


@torch.no_grad()
def reference(model, batch):
    """-sum p log p of the model's full logits, all of it in float64. [B, T]"""
    p = logits_of(copy.deepcopy(model).double().eval(), batch).softmax(-1)
    return -torch.where(p > 0, p * p.log(), 0.0).sum(-1)


def hooks_of(model):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@pytest.mark.parametrize("name", ALL)
def test_entropies_are_those_of_the_full_logits(name):
    model = build(name)
    batch = batch_of_rows([14, 9, 12])
    real = batch["attention_mask"].bool()
    expected = reference(model, batch)
    assert expected[real].std() > 0.1, "predictions that are all alike would test nothing"
    visible = visible_entropy(model, **batch)
    assert torch.allclose(visible[real].double(), expected[real], atol=1e-4)

    hidden = real & (torch.arange(14) % 3 == 1)
    blanked = {**batch, "input_ids": batch["input_ids"].masked_fill(hidden, MASK)}
    blank = blank_entropy(model, batch["input_ids"], hidden, MASK, attention_mask=batch["attention_mask"])
    assert torch.allclose(blank[hidden].double(), reference(model, blanked)[hidden], atol=1e-4)
    assert (blank[~hidden] == 0).all(), "places that are no candidates have entropy 0"


@pytest.mark.parametrize("name", ["Roberta", "MobileBert", "this project"])
def test_a_large_batch_is_read_in_slices_of_rows_with_their_own_padding(name):
    model = build(name)
    batch = batch_of_rows([10 + i % 30 for i in range(60)])
    real = batch["attention_mask"].bool()
    passes = []
    model.register_forward_hook(lambda *call: passes.append(call))
    visible = visible_entropy(model, **batch)
    assert len(passes) > 1, "2,340 tokens in one piece: this test wants several"
    expected = reference(model, batch)
    assert torch.allclose(visible[real].double(), expected[real], atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_the_last_layer_works_on_the_places_alone(name):
    model = build(name)
    batch = batch_of_rows([14] * 6)
    hidden = torch.zeros(6, 14, dtype=torch.bool)
    hidden[:, 3:7] = True
    seen = []
    last_layer(model).register_forward_hook(
        lambda layer, args, output: seen.append(args[0].shape[:2].numel())
    )
    blank_entropy(model, batch["input_ids"], hidden, MASK, attention_mask=batch["attention_mask"])
    assert seen == ([] if name in NO_HOOK else [6 * 4]), "tokens that reached the layer that makes logits"


@pytest.mark.parametrize("name", ALL)
def test_the_model_is_afterwards_what_it_was(name):
    model = build(name)
    batch = batch_of_rows([14, 9])
    next(model.children()).eval()  # a user may freeze a part
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    logits_of(model, batch).float().logsumexp(-1).sum().backward()
    gradients = [None if p.grad is None else p.grad.clone() for p in parameters]
    modes = [module.training for module in model.modules()]
    hooks = hooks_of(model)
    random_state = torch.random.get_rng_state()
    with torch.no_grad():
        before = logits_of(model.eval(), batch)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode

    entropy = visible_entropy(model, **batch)
    assert not entropy.requires_grad
    assert [module.training for module in model.modules()] == modes, "train/eval mode of every module"
    assert torch.equal(torch.random.get_rng_state(), random_state), "no dropout, so no random number is used"
    assert hooks_of(model) == hooks, "a hook was left in the model"
    assert [p.requires_grad for p in parameters] == [False] + [True] * (len(parameters) - 1)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is gradient is None or torch.equal(parameter.grad, gradient)
    with torch.no_grad():
        after = logits_of(model.eval(), batch)
    assert torch.equal(before, after), "full logits, the same as before the reading"


@pytest.mark.parametrize("name", ["Roberta", "DistilBert", "ModernBert", "DebertaV2", "this project"])
@pytest.mark.parametrize("where", ["in the encoder", "in the last layer"])
def test_an_error_in_the_model_leaves_no_hook_and_no_mode(name, where, monkeypatch):
    model = build(name)
    batch = batch_of_rows([14, 9])
    hooks = hooks_of(model)
    broken = next(model.children()) if where == "in the encoder" else last_layer(model)

    def fail(*args, **inputs):
        raise RuntimeError("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(broken, "forward", fail)
        with pytest.raises(RuntimeError, match="out of order"):
            visible_entropy(model, **batch)
    assert hooks_of(model) == hooks
    assert all(module.training for module in model.modules()) and torch.is_grad_enabled()


class Plain(nn.Module):
    """Somebody's own model: it returns logits [B, T, V], and names no last layer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(PADDED, 16)
        self.mix = nn.GRU(16, 16, batch_first=True, bidirectional=True)
        self.out = nn.Linear(32, PADDED)

    def forward(self, input_ids, attention_mask=None):
        return 5 * self.out(self.mix(self.embedding(input_ids))[0])


def test_a_model_that_returns_bare_logits_is_read_too():
    torch.manual_seed(0)
    model = Plain()
    batch = batch_of_rows([14, 14])
    assert torch.allclose(visible_entropy(model, **batch).double(), reference(model, batch), atol=1e-4)


# ---- every architecture that AutoModelForMaskedLM lists ----

EVERY = sorted(MODEL_FOR_MASKED_LM_MAPPING_NAMES)
SKIPPED = {}  # model type: why it cannot be built small (transformers 5.24: none)
STIRRED = ["funnel", "neomme"]  # sharpened, their predictions are all alike: noise in all weights instead
NO_GRADIENT = ["reformer"]  # without dropout it refuses to compute one


@pytest.mark.parametrize("model_type", EVERY)
def test_every_architecture_is_read_at_the_places_alone(model_type):
    if model_type in SKIPPED:
        pytest.skip(SKIPPED[model_type])
    torch.manual_seed(1)
    model = small_masked_lm(model_type, PADDED)
    if model_type in STIRRED:
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    else:
        sharpen(model)
    batch = batch_of_rows([16, 11, 13])
    hidden = (batch["input_ids"] >= 5) & (torch.arange(16) % 3 == 1)
    modes = [module.training for module in model.modules()]
    found = blank_entropy(model, batch["input_ids"], hidden, MASK, attention_mask=batch["attention_mask"])
    assert [module.training for module in model.modules()] == modes, "train/eval mode of every module"
    assert hooks_of(model) == 0, "a hook was left in the model"

    # The truth: all logits of the blanked rows, and their gradients. (Not all run in float64.)
    model.eval()
    blanked = batch["input_ids"].masked_fill(hidden, MASK)
    logits = model(input_ids=blanked, attention_mask=batch["attention_mask"]).logits
    p = logits.detach().double().softmax(-1)
    expected = -torch.where(p > 0, p * p.log(), 0.0).sum(-1)
    assert expected[hidden].std() > 0.01, "predictions that are all alike would test nothing"
    assert torch.allclose(found[hidden].double(), expected[hidden], atol=1e-4)

    if model_type in NO_GRADIENT:
        return
    weights = [p for p in model.parameters() if p.requires_grad and p.numel() > 0]
    label = batch["input_ids"][hidden]
    loss = F.cross_entropy(logits[hidden].float(), label)
    truth = torch.autograd.grad(loss, weights, allow_unused=True)
    places = as_places(hidden, 5)  # rows 2 and 3 have fewer
    labels = batch["input_ids"].masked_fill(~hidden, IGNORE).gather(1, places)
    picked = logits_at(model, blanked, places, attention_mask=batch["attention_mask"])
    assert picked.shape == (3, 5, logits.shape[-1])
    loss = F.cross_entropy(picked.flatten(0, 1).float(), labels.flatten())
    for parameter, one, other in zip(
        weights, truth, torch.autograd.grad(loss, weights, allow_unused=True), strict=True
    ):
        assert (one is None) == (other is None)
        if one is not None:
            scale = one.abs().max() + 1e-6
            assert torch.allclose(one / scale, other / scale, atol=1e-3), tuple(parameter.shape)


# ---- wrappers ----


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["Roberta", "this project"])
@pytest.mark.parametrize("wrapper", [nn.parallel.DistributedDataParallel, nn.DataParallel])
def test_wrappers_of_torch_are_looked_through(name, wrapper, one_process, monkeypatch):
    model = build(name)
    batch = batch_of_rows([14, 9])
    wrapped = wrapper(model)
    places = as_places(batch["input_ids"] >= 5, 3)

    # For a loss, their forward is needed: it is what makes the gradients of all processes one.
    called = []
    forward = wrapper.forward
    monkeypatch.setattr(wrapper, "forward", lambda *call, **more: called.append(1) or forward(*call, **more))
    wrapped.eval()
    picked = logits_at(wrapped, places=places, **batch)
    assert torch.allclose(picked, logits_at(model, places=places, **batch)) and called == [1]

    def refuse(*args, **inputs):
        raise AssertionError("the wrapper's forward was called, which starts communication")

    monkeypatch.setattr(wrapper, "forward", refuse)
    wrapped.train()
    assert torch.equal(visible_entropy(wrapped, **batch), visible_entropy(model, **batch))
    assert "labels" in mask_batch(wrapped, batch, word_tokenizer(WORDS))


def test_a_submodule_of_the_name_module_is_no_wrapper():
    torch.manual_seed(0)

    class Residual(nn.Module):
        """Somebody's own model, one part of which happens to be called `module`."""

        def __init__(self):
            super().__init__()
            self.module = Plain()

        def forward(self, input_ids, attention_mask=None):
            return self.module(input_ids) + 3 * nn.functional.one_hot(input_ids, PADDED)

    model = Residual()
    batch = batch_of_rows([14, 14])
    assert torch.allclose(visible_entropy(model, **batch).double(), reference(model, batch), atol=1e-4)


@pytest.fixture
def many_graphs():
    """torch.compile gives up after eight graphs of a function, and a count would then stand still."""
    torch._dynamo.reset()
    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    with config.patch({limit: 64}):
        yield


@pytest.mark.parametrize(
    "name, how",
    [
        ("Roberta", "all of it"),
        ("Roberta", "its encoder"),
        ("this project", "all of it"),
        ("this project", "all of it in place"),
    ],
)
def test_a_compiled_model_is_not_compiled_for_every_length(name, how, many_graphs):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = build(name).eval()
    plain = copy.deepcopy(model)
    if how == "all of it":
        model = torch.compile(model, backend=backend)
    elif how == "all of it in place":
        model.compile(backend=backend)
    else:
        encoder = model.bert if name == "this project" else model.base_model
        encoder.compile(backend=backend)
    compiled = []
    for length in range(12, 20):
        batch = batch_of_rows([length, length - 2, length - 3])
        hidden = (batch["input_ids"] >= 5) & (torch.arange(length) % 3 == 1)
        places = as_places(hidden, length // 3)
        assert torch.allclose(
            logits_at(model, places=places, **batch), logits_at(plain, places=places, **batch), atol=1e-4
        )
        got = blank_entropy(model, batch["input_ids"], hidden, MASK, attention_mask=batch["attention_mask"])
        blanked = batch | {"input_ids": batch["input_ids"].masked_fill(hidden, MASK)}
        expected = reference(plain, blanked)
        assert torch.allclose(got[hidden].double(), expected[hidden], atol=1e-4)
        assert logits_of(model, batch).shape == (3, length, PADDED), "a hook was compiled into the model"
        compiled.append(len(graphs))
    assert 0 < compiled[3] == compiled[-1], f"graphs after each length: {compiled}"


# ---- mask_batch ----


@pytest.fixture(params=["transformers'", "this project's"])
def tokenizer(request, tmp_path):
    if request.param == "transformers'":
        return word_tokenizer(WORDS)
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *WORDS]))
    return load_tokenizer(tmp_path)


def originals(masked):
    return torch.where(masked["labels"] == IGNORE, masked["input_ids"], masked["labels"])


@pytest.mark.parametrize("rule", ["sample", "high", "random"])
def test_exactly_k_per_row_and_never_padding_or_special_tokens(tokenizer, rule):
    model = build("Roberta")
    lengths = [40, 17, 3, 2, 28, 40]  # the fourth holds no word at all
    batch = batch_of_rows(lengths, width=44)
    batch["input_ids"][0, 5] = UNK
    before = {name: value.clone() for name, value in batch.items()}
    masked = mask_batch(model, batch, tokenizer, rule)
    hidden = masked["labels"] != IGNORE
    words = [n - 2 for n in lengths]
    words[0] -= 1
    assert hidden.sum(-1).tolist() == [mask_budget(n, 0.15) for n in words]
    assert (before["input_ids"][hidden] >= 5).all(), "padding or a special token was masked"
    assert torch.equal(originals(masked), before["input_ids"]), "labels are the original ids"
    assert torch.equal(masked["attention_mask"], before["attention_mask"])
    assert all(torch.equal(batch[name], before[name]) for name in before), "the batch given stays as it is"


def test_replacements_are_words_of_the_tokenizer(tokenizer):
    model = build("Roberta")
    batch = batch_of_rows([40] * 30)
    drawn = torch.zeros(PADDED, dtype=torch.long)
    kinds = torch.zeros(3)
    for seed in range(4):
        torch.manual_seed(seed)
        masked = mask_batch(model, batch, tokenizer, "random", mask_ratio=0.9)
        hidden = masked["labels"] != IGNORE
        shown = masked["input_ids"][hidden]
        kept = shown == masked["labels"][hidden]
        replaced = (shown != MASK) & ~kept
        kinds += torch.stack([(shown == MASK).sum(), replaced.sum(), kept.sum()])
        drawn += shown[replaced].bincount(minlength=PADDED)
    assert (drawn[:5] == 0).all(), f"special tokens were drawn: {drawn.tolist()}"
    assert (drawn[VOCAB:] == 0).all(), "ids beyond the tokenizer's were drawn: the vocabulary is padded"
    assert (drawn[5:VOCAB] > 0).all(), f"every word can be drawn: {drawn.tolist()}"
    expected = torch.tensor([0.8, 0.1 * (1 - 1 / len(WORDS)), 0.1 + 0.1 / len(WORDS)])
    assert torch.allclose(kinds / kinds.sum(), expected, atol=0.02), "80% [MASK], 10% another word, 10% as is"


@pytest.mark.parametrize("name", ALL)
def test_rule_high_hides_the_words_that_the_full_logits_call_most_uncertain(name):
    model = build(name)
    batch = batch_of_rows([40, 31, 40])
    eligible = batch["input_ids"] % 3 == 0  # every second word or so, so that others stay to be seen
    eligible[2, 20:] = False
    ratio = 0.51  # with two candidates per mask, all that may be hidden is read
    masked = mask_batch(model, batch, word_tokenizer(WORDS), "high", ratio, "100-0-0", eligible)
    hidden = masked["labels"] != IGNORE

    blanks = eligible & (batch["input_ids"] >= 5)
    blanked = {**batch, "input_ids": batch["input_ids"].masked_fill(blanks, MASK)}
    entropy = reference(model, blanked)
    for row in range(3):
        k = mask_budget(int(blanks[row].sum()), ratio)
        assert hidden[row].sum() == k
        assert not (hidden[row] & ~blanks[row]).any(), "only eligible words"
        least = entropy[row, blanks[row]].sort(descending=True).values[k - 1]
        assert (entropy[row, hidden[row]] > least - 1e-4).all(), f"row {row}: not the {k} most uncertain"


def test_masks_of_a_collator_are_undone():
    tokenizer = word_tokenizer(WORDS)
    texts = [" ".join(WORDS[(3 * i + j) % 25] for j in range(8 + i)) for i in range(6)]
    rows = [tokenizer(text, return_special_tokens_mask=True) for text in texts]
    plain = tokenizer.pad([tokenizer(text) for text in texts], return_tensors="pt")
    torch.manual_seed(0)
    collated = hf.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5)(rows)
    assert not torch.equal(collated["input_ids"], plain["input_ids"]), "the collator must have masked"

    masked = mask_batch(build("Bert"), collated, tokenizer)
    assert torch.equal(originals(masked), plain["input_ids"]), "what the collator hid is not what is learned"
    hidden = (masked["labels"] != IGNORE).sum(-1).tolist()
    assert hidden == [mask_budget(8 + i, 0.15) for i in range(6)], "a batch masked once, not twice"

    rows = [tokenizer(text, return_special_tokens_mask=True) for text in texts]
    padded = tokenizer.pad(rows, return_tensors="pt")
    assert "special_tokens_mask" in padded
    assert "special_tokens_mask" not in mask_batch(build("Bert"), padded, tokenizer), "no model takes it"


def test_only_certain_words_are_masked():
    tokenizer = word_tokenizer(WORDS)
    batch = batch_of_rows([40, 31])
    table = torch.zeros(len(tokenizer), dtype=torch.bool)
    table[tokenizer.convert_tokens_to_ids(["ba", "ce", "di", "[SEP]"])] = True
    eligible = table[batch["input_ids"]]
    masked = mask_batch(build("Roberta"), batch, tokenizer, mask_ratio=0.5, eligible=eligible)
    hidden = masked["labels"] != IGNORE
    allowed = eligible & (batch["input_ids"] != SEP)
    assert allowed.any(-1).all()
    assert hidden.sum(-1).tolist() == [mask_budget(n, 0.5) for n in allowed.sum(-1).tolist()]
    assert not (hidden & ~allowed).any(), "other words, or a special token, were masked"


@pytest.mark.parametrize("rule", ["sample", "high", "random"])
def test_word_start_from_word_ids_masks_whole_words(rule):
    tokenizer = word_tokenizer(WORDS)
    texts = ["bala cemo di fonunu ga " * 4, "ba ce dilamonu fo gala bu "]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    rows = [encoded.word_ids(i) for i in range(2)]
    starts = [[j == 0 or row[j] != row[j - 1] for j in range(len(row))] for row in rows]
    word_start = torch.tensor(starts)
    pieces = tokenizer.convert_ids_to_tokens(encoded["input_ids"][0])
    assert [not piece.startswith("##") for piece in pieces] == starts[0], "the words of this test"

    model = build("Roberta")
    read = []
    model.register_forward_pre_hook(lambda *call: read.append(call[2]["input_ids"] == MASK), with_kwargs=True)
    masked = mask_batch(model, encoded, tokenizer, rule, mask_ratio=0.4, word_start=word_start)
    assert len(read) == (rule != "random"), "one pass of the model, and none for random masks"
    hidden = masked["labels"] != IGNORE
    continues = ~word_start[:, 1:] & (encoded["attention_mask"][:, 1:] == 1)
    for places in [hidden, *read]:
        assert (places[:, 1:] == places[:, :-1])[continues].all(), "a piece must share the fate of its word"
    words = (encoded["input_ids"] >= 5).sum(-1).tolist()
    for row in range(2):
        k = mask_budget(words[row], 0.4)
        assert k - 2 < hidden[row].sum() <= k, "at most k, and words of one piece fill the row up"


def test_the_same_seed_gives_the_same_batch():
    model = build("Roberta")
    tokenizer = word_tokenizer(WORDS)
    batch = batch_of_rows([40, 31])
    masked = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masked.append(mask_batch(model, batch, tokenizer))
    one, same, other = masked
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["labels"], other["labels"])


@pytest.mark.parametrize("whole_words", [False, True])
def test_nothing_waits_for_a_gpu(whole_words):
    model = build("this project")
    tokenizer = word_tokenizer(WORDS)
    batch = batch_of_rows([40, 31, 5])
    word_start = batch["input_ids"] % 4 > 0 if whole_words else None
    tables = {"eligible": torch.arange(PADDED) % 5 > 0}
    if whole_words:
        tables["word_start"] = torch.arange(PADDED) % 4 > 0
    with NoSync():
        mask_batch(model, batch, tokenizer, word_start=word_start)
        mask_batch(model, batch, tokenizer, "mid", generator=torch.Generator(), return_entropy=True, **tables)


# ---- wrong use gets one sentence ----


def test_a_model_without_logits_is_named():
    batch = batch_of_rows([14, 9])
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": PADDED}
    for model in (
        hf.BertModel(hf.BertConfig(**sizes)),
        hf.BertForSequenceClassification(hf.BertConfig(**sizes)),
        hf.ElectraForPreTraining(hf.ElectraConfig(**sizes)),
    ):
        with pytest.raises(
            ValueError, match=f"{type(model).__name__} gives no logits.*masked language model"
        ):
            visible_entropy(model, **batch)
        assert model.training or not any(module.training for module in model.modules())


def test_a_tokenizer_without_a_mask_token_is_refused(tmp_path):
    batch = batch_of_rows([14, 9])
    unnamed = hf.PreTrainedTokenizerFast(tokenizer_object=word_tokenizer(WORDS).backend_tokenizer)
    for tokenizer in (word_tokenizer(WORDS, mask_token=None), unnamed):
        with pytest.raises(ValueError, match="tokenizer has no mask token") as refusal:
            mask_batch(build("Roberta"), batch, tokenizer)
        remedy = str(refusal.value).partition(": ")[2]
        eval(remedy, {"tokenizer": tokenizer})
        assert len(tokenizer) == VOCAB, "the names are given to pieces that are there"
        labels = mask_batch(build("Roberta"), batch, tokenizer)["labels"]
        assert not set(labels.unique().tolist()) & {PAD, CLS, SEP, MASK}, "special tokens are never hidden"


@pytest.mark.parametrize(
    "changes, settings, sentence",
    [
        ({}, {"rule": "highest"}, "selection rule 'highest' is not one of random, high"),
        ({}, {"scheme": "90-5-5"}, "corruption '90-5-5' is not one of 80-10-10, 100-0-0"),
        ({}, {"mask_ratio": 1.5}, "mask ratio 1.5"),
        ({"labels": torch.tensor([0, 1])}, {}, r"labels \(2,\) are not those of a masked LM"),
    ],
)
def test_wrong_use_of_mask_batch_is_one_sentence(changes, settings, sentence):
    batch = batch_of_rows([14, 9]) | changes
    with pytest.raises(ValueError, match=sentence) as caught:
        mask_batch(build("Roberta"), batch, word_tokenizer(WORDS), **settings)
    assert "\n" not in str(caught.value)


ALONE = """
import sys

import masking
import torch

assert "model" not in sys.modules, "there may be another model.py"


class Tokenizer:
    mask_token_id = 4
    all_special_ids = [0, 1, 2, 3, 4]

    def __len__(self):
        return 20


ids = torch.randint(5, 20, (3, 30))
encoder = torch.nn.Sequential(torch.nn.Embedding(20, 8), torch.nn.Linear(8, 20))
encoder.forward = lambda input_ids, attention_mask=None: encoder[1](encoder[0](input_ids))
batch = masking.mask_batch(encoder, {"input_ids": ids}, Tokenizer())
assert (batch["labels"] != -100).sum(-1).tolist() == [4, 4, 4]
print("works", sorted({"transformers", "tokenizers"} & set(sys.modules)))
"""


def test_the_file_works_alone_beside_a_foreign_model_py(tmp_path):
    shutil.copy(PROJECT / "masking.py", tmp_path)
    (tmp_path / "model.py").write_text("raise SystemExit('somebody else's model.py was imported')\n")
    (tmp_path / "use.py").write_text(ALONE)
    done = subprocess.run([sys.executable, "use.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "works []\n", f"nothing but PyTorch is needed\n{done.stdout}{done.stderr}"
