"""Tokenizers: trained ones, GPT-2's and BERT's files with the marks, as the original's tokenizers number them, and faults."""

import json

import pytest
import tokenizers as library
from tokenizers import models, pre_tokenizers, trainers

from jaxvqa.data import tokenizers
from jaxvqa.data.prompts import ADDED, SPECIAL, PromptTokenizer
from jaxvqa.data.tokenizers import BERT_SPECIAL, GPT2_END, Tokenizer
from jaxvqa.errors import DataError

TEXTS = (
    "question: what is seen in the left lung?",
    "answer: a small mass",
    "question: is this a chest x-ray?",
    "answer: yes",
)
MARKED = "<|endoftext|> <image> question: is this a mass? <EOQ> answer: yes <EOC>"
PIECES = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "question",
    "answer",
    ":",
    "is",
    "this",
    "a",
    "mass",
    "?",
    "yes",
    "##es",
)


@pytest.fixture(scope="module")
def trained():
    return PromptTokenizer(tokenizers.train(TEXTS, 300, SPECIAL))


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory):
    """GPT-2's two files with a few words, the last of which begins and ends a text, as there."""
    folder = tmp_path_factory.mktemp("gpt2")
    small = library.Tokenizer(models.BPE())
    small.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    small.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    )
    small.model.save(str(folder))
    words = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(words | {GPT2_END: len(words)}))
    return folder


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return folder


def test_a_trained_one_gives_back_every_text(trained):
    assert len(trained) <= 300
    assert (trained.padding, trained.begin, trained.image, trained.end, trained.question_end) == (1, 0, 2, 3, 4)
    for text in (*TEXTS, "Ünseen: 12 × 3 cm,\n✓ {braces}"):
        assert trained.decode(trained.encode(text)) == text
        assert "".join(trained.pieces("left lung")) == "leftlung"
    assert len(trained.encode(TEXTS[0])) < len(TEXTS[0])
    assert (
        len(PromptTokenizer(tokenizers.train(TEXTS, 10, SPECIAL))) == 256 + 5
    )  # no fewer than the bytes and the marks


def test_training_gives_the_same_each_time_and_a_checkpoint_keeps_it(trained):
    assert tokenizers.train(TEXTS, 300, SPECIAL) == trained.asset
    again = PromptTokenizer(json.loads(json.dumps(trained.asset)))
    assert again.fill(MARKED, {}) == trained.fill(MARKED, {})


def test_marks_are_words_of_their_own_and_no_part_of_what_is_read(trained):
    words = trained.fill(MARKED, {})
    assert [words.count(mark) for mark in (trained.begin, trained.image, trained.question_end, trained.end)] == [1] * 4
    # Blanks beside a mark stay.
    assert trained.decode(words) == "question: is this a mass?  answer: yes"
    assert trained.decode([*trained.encode("yes"), trained.end, trained.padding, trained.padding]) == "yes"


def test_gpt2s_files_with_marks_are_the_originals_tokenizer(gpt2_folder):
    transformers = pytest.importorskip("transformers")
    ours = PromptTokenizer(tokenizers.load(gpt2_folder, ADDED))
    size = len(json.loads((gpt2_folder / "vocab.json").read_text()))
    marks = ("[PAD]", "<image>", "<EOC>", "<EOQ>")  # the original's order
    assert [ours.token_id(mark) for mark in marks] == list(range(size, size + 4))
    assert (ours.begin, len(ours)) == (size - 1, size + 4)
    theirs = transformers.GPT2TokenizerFast.from_pretrained(str(gpt2_folder))
    theirs.add_special_tokens({"pad_token": "[PAD]"})
    theirs.add_tokens(list(marks[1:]), special_tokens=True)
    texts = [MARKED, MARKED.replace("<|endoftext|>", "<BOS>"), "<image> Output: a mass. <EOC>", "answer:  two  blanks "]
    for text in texts:
        assert ours.fill(text, {}) == theirs.encode(text, add_special_tokens=False), text
    blank = ours.token_id("Ġ")
    assert ours.fill(MARKED, {})[:3] == [ours.begin, blank, ours.image]  # docs/originals/flamingo.md, section 12
    assert ours.fill(MARKED, {})[-2:] == [blank, ours.end]
    # What transformers saves is read too, with the marks that are there already.
    theirs.save_pretrained(str(gpt2_folder / "saved"))
    again = PromptTokenizer(tokenizers.load(gpt2_folder / "saved", ADDED))
    assert (len(again), again.fill(MARKED, {})) == (len(ours), ours.fill(MARKED, {}))


def test_berts_files_with_marks_are_the_originals_tokenizer(bert_folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = PromptTokenizer(tokenizers.load(bert_folder, ADDED))
    assert (ours.padding, ours.begin) == (0, 2)
    assert [ours.token_id(mark) for mark in ("<image>", "<EOC>", "<EOQ>")] == [15, 16, 17]
    theirs = transformers.BertTokenizerFast.from_pretrained(str(bert_folder))
    theirs.add_tokens(["<image>", "<EOC>", "<EOQ>"], special_tokens=True)
    text = "<image> Question: is THIS a mass? yes <EOQ>"
    assert ours.fill(f"[CLS] {text} [SEP]", {}) == theirs.encode(text)
    assert ours.decode(ours.fill(text, {})) == "question : is this a mass? yes"
    (tmp_path / "vocab.txt").write_text((bert_folder / "vocab.txt").read_text())
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = PromptTokenizer(tokenizers.load(tmp_path, ADDED))
    assert cased.encode("THIS yes") == [1, 13]


SPELT = (
    "<image>",
    "<EOC>",
    "<EOQ>",
    "<|endoftext|>",
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[UNK]",
    "[PAD][PAD]",
    "<EOC<EOC>",
)


@pytest.fixture(scope="module")
def kinds(trained, gpt2_folder, bert_folder):
    """A tokenizer of each kind: trained here, of files, with marks that are no special tokens, and one of whole pieces."""
    saved = tokenizers.load(gpt2_folder, ADDED)
    ordinary = [token | {"special": False} for token in saved["added_tokens"]]
    pieces = [("<unk>", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), *((c, -5.0) for c in "▁yesnoa<>[]|CLSEPMADUNKimgOQdfxt")]
    whole = library.Tokenizer(models.Unigram([*dict(pieces).items()], unk_id=0))
    whole.pre_tokenizer = pre_tokenizers.Metaspace()
    whole.add_special_tokens(["[CLS]", "[SEP]"])
    return {
        "trained": trained,
        "gpt2": PromptTokenizer(saved),
        "bert": PromptTokenizer(tokenizers.load(bert_folder, ADDED)),
        "ordinary": PromptTokenizer(saved | {"added_tokens": ordinary}),
        "sentencepiece": PromptTokenizer(tokenizers.with_special(whole, ADDED)),
    }


@pytest.mark.parametrize("spelt", SPELT)
@pytest.mark.parametrize("kind", ["trained", "gpt2", "bert", "ordinary", "sentencepiece"])
def test_data_is_text_and_never_a_special_token(kinds, kind, spelt):
    tokenizer = kinds[kind]
    special = {tokenizer.token_id(name) for name in (*SPECIAL, "[CLS]", "[SEP]")} - {None}
    for text in (spelt, f"yes {spelt} no", f"yes{spelt}no", f"{spelt} {spelt}"):
        ids = tokenizer.encode(text)
        assert special.isdisjoint(ids), text
        if kind in ("trained", "gpt2", "ordinary"):  # bytes, which lose nothing
            assert tokenizer.decode(ids) == text
    filled = tokenizer.fill("<image> {question} <EOQ> {answer} <EOC>", {"question": spelt, "answer": f"yes {spelt}"})
    assert [i for i in filled if i in special] == [tokenizer.image, tokenizer.question_end, tokenizer.end]


def test_a_file_and_its_folder_are_the_same(gpt2_folder, tmp_path):
    asset = tokenizers.load(gpt2_folder, ADDED)
    (tmp_path / "tokenizer.json").write_text(json.dumps(asset))
    assert tokenizers.load(tmp_path) == tokenizers.load(tmp_path / "tokenizer.json", ADDED) == asset


def test_a_smaller_vocabulary_lacks_the_last_marks(gpt2_folder):
    whole = PromptTokenizer(tokenizers.load(gpt2_folder, ADDED))
    cut = whole.cut(len(whole) - 1)  # MIMIC-CXR's ends before <EOQ>
    assert (len(cut), cut.question_end, cut.image) == (len(whole) - 1, None, whole.image)
    assert cut.fill("<image> yes <EOC>", {}) == whole.fill("<image> yes <EOC>", {})
    assert whole.question_end not in cut.fill(MARKED, {})
    assert cut.decode(cut.fill("a <EOQ> b <EOC>", {})) == "a <EOQ> b"
    assert whole.cut(len(whole)) is whole


def test_byte_order_marks_and_line_ends_of_files_are_no_part_of_a_token(gpt2_folder, bert_folder, tmp_path):
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "tokenizer.json").write_text(json.dumps(tokenizers.load(gpt2_folder, ADDED)))
    cased = tmp_path / "cased"
    cased.mkdir()
    (cased / "vocab.txt").write_text((bert_folder / "vocab.txt").read_text())
    (cased / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    for source in (gpt2_folder, bert_folder, saved, cased):
        folder = tmp_path / f"{source.name} of Windows"
        folder.mkdir()
        for file in (path for path in source.iterdir() if path.is_file()):
            (folder / file.name).write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
        assert tokenizers.load(folder, ADDED) == tokenizers.load(source, ADDED)
    (tmp_path / "PIECES.TXT").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(PIECES).encode())
    assert tokenizers.load(tmp_path / "PIECES.TXT") == tokenizers.load(bert_folder)


def test_files_of_gpt2_that_do_not_fit_each_other_are_named(gpt2_folder, tmp_path):
    vocabulary, merges = ((gpt2_folder / name).read_text() for name in ("vocab.json", "merges.txt"))
    for words, pairs, message in (
        (vocabulary, merges + "one two three\n", r"merges\.txt: 'one two three' is not a merge"),
        ("[1]", merges, r"vocab\.json.*GPT-2's vocabulary"),
        ('{"a": 0}', merges, "cannot be read"),
    ):
        (tmp_path / "vocab.json").write_text(words)
        (tmp_path / "merges.txt").write_text(pairs)
        with pytest.raises(DataError, match=message):
            tokenizers.load(tmp_path)


def test_what_is_no_tokenizer_is_reported(tmp_path, gpt2_folder):
    with pytest.raises(DataError, match=r"no folder .*nowhere, and no hub.*--config.data.tokenizer=DIR"):
        tokenizers.load(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"holds no tokenizer: expected tokenizer.json.*there is notes.txt"):
        tokenizers.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    for source in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(DataError, match="cannot be read"):
            tokenizers.load(source)
    with pytest.raises(DataError, match="of this checkpoint cannot be read"):
        Tokenizer({"model": {"type": "none"}})
    without = tokenizers.load(gpt2_folder, ADDED) | {"added_tokens": []}
    with pytest.raises(DataError, match=r"no token \[PAD\], <EOC>, <image>"):
        PromptTokenizer(without)


# --- tokens that stand in files beside the vocabulary ---------------------------------------------------------------------


def letters_folder(path, **beside):
    letters = [*(chr(i) for i in range(33, 127)), "Ġ", "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(letters)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    for name, content in beside.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


PAD = {"content": "[PAD]", "special": True, "lstrip": False, "rstrip": False, "single_word": False}


@pytest.mark.parametrize(
    "beside",
    [
        {"added_tokens": {"<image>": 98, "[PAD]": 97, "heart": 96}, "special_tokens_map": {"pad_token": "[PAD]"}},
        {
            "tokenizer_config": {
                "added_tokens_decoder": {"97": PAD, "96": {"content": "heart"}, "98": {"content": "<image>"}}
            }
        },
    ],
    ids=["added_tokens.json", "tokenizer_config.json"],
)
def test_tokens_that_files_add_have_the_ids_that_these_give_them(beside, tmp_path):
    tokenizer = PromptTokenizer(tokenizers.load(letters_folder(tmp_path, **beside), ADDED))
    assert [tokenizer.token_id(word) for word in ("heart", "[PAD]", "<image>", "<EOC>")] == [96, 97, 98, 99]
    assert tokenizer.encode("a heart") == [64, 94, 96]
    assert tokenizers.size(tmp_path) == 99


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({"added_tokens": {"<new>": 120}}, "'<new>' is 96 in the vocabulary, 120 in added_tokens.json"),
        ({"added_tokens": {"a": 3}}, "'a' is 64 in the vocabulary, 3"),
        ({"special_tokens_map": {"pad_token": {"content": "<pad>"}}}, "'<pad>' of special_tokens_map.json has no id"),
        ({"special_tokens_map": {"additional_special_tokens": ["<x>"]}}, "'<x>' of special_tokens_map.json has no id"),
        ({"added_tokens": ["<new>"]}, "added_tokens.json"),
        ({"tokenizer_config": {"added_tokens_decoder": ["<new>"]}}, "added_tokens_decoder: expected an object or null"),
        ({"tokenizer_config": {"added_tokens_decoder": {"96": {}}}}, "content: missing"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": PAD}}}, "'x' of added_tokens_decoder is not an id"),
    ],
)
def test_tokens_that_files_disagree_about_are_named(beside, words, tmp_path):
    with pytest.raises(DataError, match=words):
        tokenizers.load(letters_folder(tmp_path, **beside))


def test_trained_word_pieces_are_the_same_each_time():
    found = [tokenizers.train_word_pieces((*TEXTS, "Émile's CAFÉ"), 70, ("[DEC]", "[ENC]")) for _ in range(3)]
    assert found[0] == found[1] == found[2]
    made = Tokenizer(found[0], (*BERT_SPECIAL, "[DEC]", "[ENC]"))
    assert [made.token_id(token) for token in BERT_SPECIAL] == [0, 1, 2, 3, 4]
    assert [made.token_id(token) for token in ("[DEC]", "[ENC]")] == [len(made) - 2, len(made) - 1]
    assert len(made) <= 70
    assert made.decode(made.encode("Emile: yes?")) == "emile : yes?"
    few = Tokenizer(tokenizers.train_word_pieces(TEXTS, 10))
    assert few.decode(few.encode("a small mass")) == "a small mass"
