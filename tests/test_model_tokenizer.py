"""The tokenizer of a folder: the ids of AutoTokenizer of transformers on the same folder, or a refusal."""

import itertools
import json

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece

from model import SPECIAL_TOKENS, load_tokenizer, save_tokenizer

WORDS = "the The cat ##s ##S é e É ##é ##e ##É cafe café Café i ı İ ##i ##̇ ß ss ẞ ! , . - don ' t".split()
WORDS += "中 文 中文 ##文 😀 ##😀 [ ] mask MASK a ##a ##b A 3 ##3 ３ ﬁ fi 한국 हि ##न ##् x new".split()
WORDS = [*SPECIAL_TOKENS, *WORDS, "##word"]
VOCAB = {word: i for i, word in enumerate(WORDS)}
NEW = len(WORDS)  # the id of the first added word

TRICKY = [
    *("", "   ", "The cats", "CATS the-cat.s", "don't!", "tab\tnew\nline\r\nthe", "a" * 101),
    *("é É e", "e\u0301 E\u0301 a\u0301", "Café CAFÉ cafe", "naïve Ångström", "İ i ı I", "i\u0307"),
    *("ß ẞ SS", "ﬁ fi", "３3 3３", "中文 中文字", "the中文cat", "한국 हिन्दी", "😀 a😀 😀😀", "👩\u200d🦰"),
    *("a\u0000b\u200bb \ufffd", "\u00a0a\u3000b\u2028the", "\u202ea \ufeffb", "x \ue000"),
    *("[MASK] x [mask] a[MASK]b", "[CLS] [SEP] [PAD] [UNK]", "##s s## ##", "newword NEWWORD a newwords"),
    *("[E1] e1 [e1]", "Newword,newword!", "<mask> <s>"),
]


def written(lowercase=True, post_processor=True, added=(), **rules):
    """A tokenizer.json as other programs make it."""
    tokenizer = Tokenizer(WordPiece(VOCAB, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, **rules)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if post_processor:
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_tokens(list(added))
    return tokenizer


def make(folder, tokenizer=None, **files):
    """A folder of a BERT with a tokenizer.json, or else a vocab.txt, and with JSON files."""
    folder.mkdir(parents=True)
    for name, value in {"config": {"model_type": "bert"}, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    if tokenizer is None:
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    else:
        tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def check(folder, tmp_path):
    """Our ids are theirs, as the folder stands, as we save it, and as they save it."""
    transformers = pytest.importorskip("transformers")
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    copies = {"read by them": theirs}
    for name, save in {"ours": lambda f: save_tokenizer(ours, f), "theirs": theirs.save_pretrained}.items():
        saved = make(tmp_path / f"{folder.name} saved by {name}")
        (saved / "vocab.txt").unlink()
        save(saved)
        copies[f"{name}, saved, read by us"] = load_tokenizer(saved)
        copies[f"{name}, saved, read by them"] = transformers.AutoTokenizer.from_pretrained(saved)

    for name, copy in copies.items():
        encode = copy.encode if isinstance(copy, Tokenizer) else copy
        assert copy.get_vocab() == ours.get_vocab(), name
        for text in TRICKY:
            tokens = encode(text).tokens
            tokens = tokens if isinstance(tokens, list) else tokens()
            assert tokens == ours.encode(text).tokens, f"{text!r} with {folder.name}: {name}"
    pair, expected = ours.encode("the cat", "a"), theirs("the cat", "a")
    assert pair.ids == expected["input_ids"] and pair.type_ids == expected["token_type_ids"]


FOLDERS = {
    "vocab.txt": None,
    "cased": written(False),
    "uncased, accents kept": written(True, strip_accents=False),
    "without post-processor": written(post_processor=False),
    "without Chinese": written(handle_chinese_chars=False),
    "with added words": written(added=[AddedToken("newword"), AddedToken("[E1]", special=True)]),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_setting_gives_the_ids_of_transformers(kind, tmp_path):
    """What tokenizer_config.json leaves out is as in BERT uncased, whatever tokenizer.json says."""
    choices = itertools.product(("", True, False), ("", None, True, False), ("", False))
    for number, values in enumerate(choices):
        names = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
        settings = {name: value for name, value in zip(names, values, strict=True) if value != ""}
        files = {"tokenizer_config": settings} if settings else {}
        check(make(tmp_path / f"{number} {settings}".replace('"', ""), FOLDERS[kind], **files), tmp_path)


NEWWORD = {"content": "newword", "lstrip": False, "rstrip": False, "single_word": False, "special": False}
ADDED = {
    "of this project before": {"tokenizer_class": "BertTokenizer", "model_max_length": 128},
    "fast": {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False, "never_split": ["a"]},
    "no added words": {"added_tokens_decoder": {}},
    "a word": {"added_tokens_decoder": {str(NEW): {**NEWWORD, "normalized": True}}},
    "a cased word": {"added_tokens_decoder": {str(NEW): {**NEWWORD, "normalized": False}}},
    "a whole word": {"added_tokens_decoder": {str(NEW): {**NEWWORD, "single_word": True}}},
    "another number": {"added_tokens_decoder": {str(NEW + 40): NEWWORD, str(NEW + 9): {"content": "[E1]"}}},
    "a piece": {"added_tokens_decoder": {"6": {"content": "The", "normalized": False}}},
    "[MASK] in any case": {
        "added_tokens_decoder": {"4": {**NEWWORD, "content": "[MASK]", "normalized": True}}
    },
    "named twice": {
        "additional_special_tokens": ["[E1]"],
        "added_tokens_decoder": {str(NEW): {"content": "[E1]"}},
    },
    "padding": {"padding_side": "left", "model_max_length": 3, "mask_token": "[MASK]", "bos_token": "[CLS]"},
}


@pytest.mark.parametrize("case", ADDED)
@pytest.mark.parametrize("kind", ["vocab.txt", "with added words"])
def test_added_words_are_those_of_transformers(kind, case, tmp_path):
    check(make(tmp_path / "folder", FOLDERS[kind], tokenizer_config=ADDED[case]), tmp_path)


@pytest.mark.parametrize("kind", ["vocab.txt", "with added words"])
def test_older_folders_are_read_or_refused(kind, tmp_path):
    """Until 2023 the added words stood in added_tokens.json: read where tokenizer.json has them as well."""
    files = {"special_tokens_map": {"mask_token": "[MASK]", "cls_token": "[CLS]"}}
    check(make(tmp_path / "names", FOLDERS[kind], **files), tmp_path)
    folder = make(tmp_path / "words", FOLDERS[kind], **files, added_tokens={"newword": NEW, "[E1]": NEW + 1})
    if kind == "with added words":
        check(folder, tmp_path)
    else:
        with pytest.raises(ValueError, match=r"added_tokens is \['newword', '\[E1\]'\], which is not in"):
            load_tokenizer(folder)
    settings = ADDED["named twice"]
    files = {"added_tokens": {"x": NEW}, "special_tokens_map": {"mask_token": {"content": "[MASK]"}}}
    folder = make(tmp_path / "both", FOLDERS[kind], **files, tokenizer_config=settings)
    check(folder, tmp_path)


def test_padding_and_truncation_of_a_file_do_not_count(tmp_path):
    tokenizer = written()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    check(make(tmp_path / "folder", tokenizer), tmp_path)


@pytest.mark.parametrize(
    "reason, settings",
    [
        ("PreTrainedTokenizerFast", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ("BertJapaneseTokenizer", {"tokenizer_class": "BertJapaneseTokenizer"}),
        ("mask_token is '<mask>'", {"mask_token": "<mask>"}),
        ("mask_token is None", {"mask_token": None}),
        ("mask_token is {", {"mask_token": {"content": "[MASK]", "normalized": True}}),
        ("cls_token is '<s>'", {"added_tokens_decoder": {}, "cls_token": "<s>"}),
        ("bos_token is '<s>'", {"bos_token": "<s>"}),
        ("additional_special_tokens is .*E1", {"additional_special_tokens": ["[E1]"]}),
        ("extra_special_tokens is", {"extra_special_tokens": {"entity": "[E1]"}}),
        ("split_special_tokens is True", {"split_special_tokens": True}),
        ("'str' object", {"do_lower_case": "false"}),
    ],
)
def test_settings_that_are_not_honoured_are_refused(reason, settings, tmp_path):
    with pytest.raises(ValueError, match=reason):
        load_tokenizer(make(tmp_path / "folder", tokenizer_config=settings))


def test_a_tokenizer_of_another_kind_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="BPE"):
        load_tokenizer(make(tmp_path / "folder", Tokenizer(BPE())))
    japanese = {"model_type": "bert", "tokenizer_class": "BertJapaneseTokenizer"}
    with pytest.raises(ValueError, match="BertJapaneseTokenizer"):
        load_tokenizer(make(tmp_path / "japanese", config=japanese))


@pytest.mark.parametrize(
    "reason, text",
    [
        ("blank, repeated", "\n".join([*WORDS, "the"])),
        ("blank, repeated", "\n".join([*WORDS[:9], "", *WORDS[9:]])),
        ("blank, repeated", "\n".join(WORDS) + "\n\n"),
        (r"lacks \[MASK\]: is it BERT's", "\n".join(word for word in WORDS if word != "[MASK]")),
        (r"lacks \[PAD\]: is it BERT's", "\ufeff" + "\n".join(WORDS)),
        ("is missing, damaged", "\n".join(WORDS[:4])[:-1]),
        ("is missing, damaged", ""),
        ("is missing, damaged", "[PAD]\n\udcff\n"),
    ],
)
def test_a_vocabulary_that_does_not_number_its_pieces_is_refused(reason, text, tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=f"vocab.txt.*{reason}"):
        load_tokenizer(path)


def test_pieces_of_tokenizer_json_are_numbered_without_gaps_too(tmp_path):
    folder = make(tmp_path / "folder", written())
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    whole["model"]["vocab"]["##word"] += 5
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(ValueError, match="tokenizer.json.*without gaps"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"])
def test_a_broken_file_is_named_as_itself(name, tmp_path):
    folder = make(tmp_path / "folder")
    (folder / name).write_text('{"do_lower_case": fal')
    with pytest.raises(ValueError, match=f"{name} is not a JSON object"):
        load_tokenizer(folder)


@pytest.mark.parametrize("path", ["", "vocab.txt"])
def test_a_tokenizer_that_is_not_there_is_named(tmp_path, path):
    with pytest.raises(ValueError, match="vocab.txt is missing|no such file or folder"):
        load_tokenizer(tmp_path / path)


def test_a_vocabulary_alone_is_uncased_unless_told_otherwise(tmp_path):
    folder = make(tmp_path / "folder")
    assert load_tokenizer(folder / "vocab.txt").encode("The É", add_special_tokens=False).tokens == [
        "the",
        "e",
    ]
    cased = load_tokenizer(folder / "vocab.txt", lowercase=False)
    assert cased.encode("The É", add_special_tokens=False).tokens == ["The", "É"]
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(folder / "vocab.txt").encode("The").tokens == ["[CLS]", "The", "[SEP]"]
    assert load_tokenizer(folder, lowercase=True).encode("The").tokens == ["[CLS]", "the", "[SEP]"]


def test_tokenizers_are_the_same_only_if_they_treat_text_alike(tmp_path):
    """train.py compares a teacher's tokenizer with its own so."""
    uncased = load_tokenizer(make(tmp_path / "vocabulary")).to_str()
    assert load_tokenizer(make(tmp_path / "json", written())).to_str() == uncased, "the same pieces and rules"
    for settings in ({"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}):
        folder = make(tmp_path / str(settings).replace("'", ""), tokenizer_config=settings)
        assert load_tokenizer(folder).to_str() != uncased, settings
    more = make(tmp_path / "more", tokenizer_config=ADDED["a word"])
    assert load_tokenizer(more).to_str() != uncased, "one more word"
