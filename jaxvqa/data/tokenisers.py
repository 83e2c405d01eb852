"""Text to numbers of words, and back: byte pairs as GPT-2 has them, or BERT's word pieces, with marks for images and ends.

A tokeniser comes from files (what `save_pretrained` writes, or GPT-2's `vocab.json` and `merges.txt`, or BERT's `vocab.txt`),
from a hub by its name, or is trained on the texts of a data set. What a checkpoint holds of it is the JSON of `tokenizers`.
"""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from jaxvqa.errors import DataError
from jaxvqa.inputs import read_json

IMAGE, END, QUESTION_END = "<image>", "<EOC>", "<EOQ>"
"""Where an image belongs; the end of a text; the end of its question (docs/originals/flamingo.md, sections 1 and 12)."""

GPT2_BEGIN, GPT2_PADDING = "<|endoftext|>", "[PAD]"
BERT_MARKS = ("[PAD]", "[CLS]", "[SEP]")
MARKS = (GPT2_BEGIN, *BERT_MARKS, IMAGE, END, QUESTION_END)
"""The special tokens that templates place."""

_SPELT = re.compile(r"<[^<> ]+>|\[[A-Z]+\]")
"""What a template spells its special tokens like."""


def pieces_of(template: str) -> list[str]:
    """A template in pieces, text and special tokens in turn, text first; data is never looked through for special tokens."""
    found = _SPELT.findall(template)
    return [piece for pair in zip(_SPELT.split(template), [*found, ""], strict=True) for piece in pair][:-1]


class Tokeniser:
    """A tokeniser with the marks.

    Attributes:
      asset: what makes it again, a JSON value.
      padding: number of the word that fills a text.
      begin: number of the word that a text begins with.
      end: number of the word that ends a text.
      image: number of the word that marks an image.
      question_end: number of the word that ends a question; None in a vocabulary without it, such as MIMIC-CXR's.
    """

    def __init__(self, asset: Mapping[str, Any]):
        """Args: what `tokenizers` saves.

        Raises:
          DataError: it is nothing that `tokenizers` reads, or has not the marks; names those that it lacks.
        """
        self.asset = dict(asset)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(self.asset))
        except Exception as error:  # the library raises nothing more special
            raise DataError(f"The tokeniser of this checkpoint cannot be read: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # as the text that they are: see `encode`
        # Some files have the marks as ordinary added tokens, which would be found in the data.
        self._tokenizer.add_special_tokens([mark for mark in MARKS if self.number(mark) is not None])
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {i: token.content for i, token in added.items() if token.special or token.content in MARKS}
        begin = GPT2_BEGIN if self.number(GPT2_BEGIN) is not None else BERT_MARKS[1]
        marks = {name: self.number(name) for name in (GPT2_PADDING, begin, END, IMAGE)}
        missing = [name for name, number in marks.items() if number is None]
        if missing:
            raise DataError(
                f"The tokeniser has no word {', '.join(missing)}, which texts with images are written with."
            )
        self.padding, self.begin, self.end, self.image = (
            int(number) for number in marks.values() if number is not None
        )
        self.question_end = self.number(QUESTION_END)

    def __len__(self) -> int:
        """Number of words V, marks included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def is_bert(self) -> bool:
        """Whether it is one of word pieces, whose texts stand between [CLS] and [SEP]."""
        return self.number(GPT2_BEGIN) is None

    def cut(self, size: int) -> "Tokeniser":
        """The same without the marks that a vocabulary of `size` words has no room for, the last ones; itself if it has."""
        marks = self.asset.get("added_tokens", [])
        if size >= len(self) or not marks:
            return self
        return Tokeniser(self.asset | {"added_tokens": [mark for mark in marks if mark["id"] < size]})

    def number(self, word: str) -> int | None:
        """The number of a word; None where there is none."""
        return self._tokenizer.token_to_id(word)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text of the data: a special token that is spelt in it is text as any other; nothing is added."""
        ids = self._ids(text)
        if self._special.keys().isdisjoint(ids):
            return ids
        # Some models have special tokens among their pieces (SentencePiece's), and find them without being asked to: those
        # that are spelt out are broken behind their first character. What is left is the unknown token of unknown characters.
        spelt = "|".join(re.escape(name[0]) + f"(?={re.escape(name[1:])})" for name in self._special.values())
        cuts = [0, *(match.end() for match in re.finditer(spelt, text)), len(text)]
        return [i for start, end in itertools.pairwise(cuts) for i in self._ids(text[start:end])]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def fill(self, template: str, parts: Mapping[str, str]) -> list[int]:
        """Token ids of a template (`jaxvqa.data.prompts.TEMPLATES`) filled with texts of the data.

        Args:
          template: its special tokens become theirs, where the vocabulary has them, and are text otherwise.
          parts: what `{question}` and `{answer}` stand for.
        """
        ids: list[int] = []
        text = ""
        for piece in pieces_of(template):
            number = self.number(piece)
            if number in self._special and self._special[number] == piece:
                ids += [*self.encode(text.format(**parts)), number]
                text = ""
            else:
                text += piece
        return ids + self.encode(text.format(**parts))

    def decode(self, words: Sequence[int] | Int[np.ndarray, " W"]) -> str:
        """The text of numbers, without marks and padding, stripped."""
        marks = {self.padding, self.begin, self.end, self.image, self.question_end}
        return self._tokenizer.decode([int(word) for word in words if int(word) not in marks]).strip()

    def pieces(self, text: str) -> list[str]:
        """The words of a text as they are spelt in it."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return [text[start:end].strip() for start, end in encoding.offsets]


def with_marks(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    """The asset of a tokenizer, to whose words the missing marks are added in the original's order.

    docs/originals/flamingo.md, section 1.

    To GPT-2's 50,257 words come `[PAD]`, `<image>`, `<EOC>` and `<EOQ>`, to BERT's the last three. Blanks beside a mark stay.
    """
    marks = [mark for mark in (GPT2_PADDING, IMAGE, END, QUESTION_END) if tokenizer.token_to_id(mark) is None]
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks])
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return json.loads(tokenizer.to_str())


def load(source: str | Path) -> dict[str, Any]:
    """Reads a tokeniser's files, and adds the marks.

    Args:
      source: a folder with `tokenizer.json`, with `vocab.json` and `merges.txt` (GPT-2's), or with `vocab.txt` (BERT's), where
        `added_tokens.json`, `special_tokens_map.json` and `tokenizer_config.json` count too; a `tokenizer.json`; or a name for
        a hub, where one can be reached.

    Raises:
      DataError: there is no such file or name, or it cannot be read; or the files disagree about a token's id.
    """
    return with_marks(_read(source))


def size(source: str | Path) -> int:
    """Number of words of a tokeniser's files, without the marks that `load` adds; raises as `load` does."""
    return _read(source).get_vocab_size(with_added_tokens=True)


def _read(source: str | Path) -> tokenizers.Tokenizer:
    path = Path(source)
    try:
        if path.is_file():
            return tokenizers.Tokenizer.from_file(str(path))
        found = None
        if (path / "tokenizer.json").is_file():
            found = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        elif (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
            found = _byte_pairs(models.BPE.from_file(str(path / "vocab.json"), str(path / "merges.txt")))
        elif (path / "vocab.txt").is_file():
            found = _word_pieces(path)
    except Exception as error:  # the library raises nothing more special
        raise DataError(f"The tokeniser in {source} cannot be read: {error}") from error
    if found is not None:
        _add_tokens(found, path)
        return found
    if path.exists():
        raise DataError(
            f"{source} holds no tokeniser: expected tokenizer.json, or vocab.json and merges.txt, or vocab.txt; there is "
            f"{', '.join(sorted(p.name for p in path.iterdir())[:8]) or 'nothing'}."
        )
    return _from_hub(str(source))


def _add_tokens(tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    """Adds the tokens that the files beside a vocabulary number, and sees that these files agree with it.

    Raises:
      DataError: lists the tokens whose id is another one, or that no file numbers.
    """

    def beside(name: str, expected: str, form: Any) -> Any:
        return read_json(folder / name, expected, form) if (folder / name).is_file() else {}

    numbered = beside("added_tokens.json", "a map from each added token to its id", {str: int})
    decoder = beside("tokenizer_config.json", "a tokeniser's settings", dict).get("added_tokens_decoder") or {}
    known = {row["content"]: row for row in decoder.values()} if isinstance(decoder, dict) else {}
    numbered |= {row["content"]: int(number) for number, row in decoder.items()}
    named = _contents(beside("special_tokens_map.json", "a map from each special token's use to its text", dict))
    special = {*named, *(token for token, row in known.items() if row.get("special"))}
    for token, _ in sorted(numbered.items(), key=lambda item: item[1]):
        if tokenizer.token_to_id(token) is None:
            how = {
                name: known[token][name] for name in ("lstrip", "rstrip", "single_word") if name in known.get(token, {})
            }
            added = AddedToken(token, normalized=False, special=token in special, **how)
            (tokenizer.add_special_tokens if token in special else tokenizer.add_tokens)([added])
    faults = [
        f"{token!r} is {tokenizer.token_to_id(token)} in the vocabulary, {number} in added_tokens.json or tokenizer_config.json"
        for token, number in numbered.items()
        if tokenizer.token_to_id(token) != number
    ]
    faults += [
        f"{token!r} of special_tokens_map.json has no id" for token in named if tokenizer.token_to_id(token) is None
    ]
    if faults:
        raise DataError(f"The tokeniser's files in {folder} do not agree: " + "; ".join(faults[:10]) + ".")


def _contents(named: Mapping[str, Any]) -> list[str]:
    """The texts of special tokens by their use: each a text, an object with its `content`, or a list of these."""
    rows = [row for value in named.values() for row in (value if isinstance(value, list) else [value])]
    return [text for row in rows if isinstance(text := row.get("content") if isinstance(row, dict) else row, str)]


def train(texts: Iterable[str], vocab_size: int) -> dict[str, Any]:
    """Makes a tokeniser of byte pairs, as GPT-2's, from the texts of a data set.

    Args:
      texts: the texts, without marks.
      vocab_size: the most words, marks included; never fewer than the 256 bytes and the marks.
    """
    tokenizer = _byte_pairs(models.BPE())
    marks = [GPT2_BEGIN, GPT2_PADDING, IMAGE, END, QUESTION_END]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=marks,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return with_marks(tokenizer)


def stand_in(vocab_size: int) -> dict[str, Any]:
    """A tokeniser of that many words, for tracing without any data."""
    marks = [GPT2_BEGIN, GPT2_PADDING, IMAGE, END, QUESTION_END]
    words = {f"word{i}": i for i in range(vocab_size - len(marks))}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(words, unk_token="word0"))
    tokenizer.add_special_tokens(marks)
    return json.loads(tokenizer.to_str())


def _byte_pairs(pairs: models.BPE) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(pairs)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if tokenizer.token_to_id(GPT2_BEGIN) is not None:
        tokenizer.add_special_tokens([GPT2_BEGIN])
    return tokenizer


def _word_pieces(folder: Path) -> tokenizers.Tokenizer:
    """BERT's, in lower case unless its `tokenizer_config.json` says otherwise."""
    settings = folder / "tokenizer_config.json"
    lower = json.loads(settings.read_text()).get("do_lower_case", True) if settings.is_file() else True
    tokenizer = tokenizers.BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=lower)
    return tokenizer._tokenizer


def _from_hub(name: str) -> tokenizers.Tokenizer:
    import transformers  # seconds to import, and only here of use

    try:
        return transformers.AutoTokenizer.from_pretrained(name).backend_tokenizer
    except Exception as error:  # no network, no such name, no fast tokeniser: the library has a type for each
        raise DataError(
            f"There is no folder {name}, and no hub gives a tokeniser of that name ({str(error).splitlines()[0]}). Give the "
            "folder of one with --config.data.tokeniser=DIR, or an empty text to train one on the data."
        ) from error
