"""Text to token ids, and back: byte pairs as GPT-2 has them, BERT's word pieces, or what else the library `tokenizers` reads.

A tokenizer comes from files (what `save_pretrained` writes, or GPT-2's `vocab.json` and `merges.txt`, or BERT's `vocab.txt`),
from a hub by its name, or is trained on the texts of a data set. What a checkpoint holds of it is the JSON of `tokenizers`.
Which special tokens there have to be, a system says: Flamingo's are in `jaxvqa.data.prompts`.
"""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from jaxvqa.errors import DataError, UserError
from jaxvqa.inputs import read_json, read_text
from jaxvqa.logs import log

GPT2_END = "<|endoftext|>"
"""GPT-2's one special token, which its files have as an ordinary one."""

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""BERT's special tokens, which its vocabularies have."""

_SPELT = re.compile(r"<[^<> ]+>|\[[A-Z]+\]")
"""What a template spells its special tokens like."""


def pieces_of(template: str) -> list[str]:
    """A template in pieces, text and special tokens in turn, text first; data is never looked through for special tokens."""
    found = _SPELT.findall(template)
    return [piece for pair in zip(_SPELT.split(template), [*found, ""], strict=True) for piece in pair][:-1]


_Tokenizer = TypeVar("_Tokenizer", bound="Tokenizer")


class Tokenizer:
    """A tokenizer.

    Attributes:
      asset: what makes it again, a JSON value.
    """

    def __init__(self, asset: Mapping[str, Any], special: Sequence[str] = ()):
        """Reads what `tokenizers` saves.

        Args:
          asset: that JSON value.
          special: those of its tokens that are special whatever the file says, and that `decode` leaves out.

        Raises:
          DataError: it is nothing that `tokenizers` reads.
        """
        self.asset = dict(asset)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(self.asset))
        except Exception as error:  # the library raises nothing more special
            raise DataError(f"The tokenizer of this checkpoint cannot be read: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # as the text that they are: see `encode`
        # Some files have them as ordinary added tokens, which would be found in the data.
        self._tokenizer.add_special_tokens([token for token in special if self.token_id(token) is not None])
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {i: token.content for i, token in added.items() if token.special or token.content in special}
        self._left_out = {self.token_id(token) for token in special}

    def __len__(self) -> int:
        """Number of tokens V, special ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def cut(self: _Tokenizer, size: int) -> _Tokenizer:
        """The same without the added tokens that a vocabulary of `size` has no room for, the last ones; itself if it has."""
        added = self.asset.get("added_tokens", [])
        if size >= len(self) or not added:
            return self
        return type(self)(self.asset | {"added_tokens": [token for token in added if token["id"] < size]})

    def token_id(self, token: str) -> int | None:
        """The id of a token; None where there is none."""
        return self._tokenizer.token_to_id(token)

    def token(self, number: int) -> str:
        """The token of an id, as it is written in the vocabulary; empty for none."""
        return self._special.get(number) or self._tokenizer.id_to_token(number) or ""

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
            number = self.token_id(piece)
            if number in self._special and self._special[number] == piece:
                ids += [*self.encode(text.format(**parts)), number]
                text = ""
            else:
                text += piece
        return ids + self.encode(text.format(**parts))

    def decode(self, ids: Sequence[int] | Int[np.ndarray, " W"]) -> str:
        """The text of token ids, without the special tokens that were named, stripped."""
        return self._tokenizer.decode([int(i) for i in ids if int(i) not in self._left_out]).strip()

    def pieces(self, text: str) -> list[str]:
        """The tokens of a text as they are spelt in it."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return [text[start:end].strip() for start, end in encoding.offsets]


def with_special(tokenizer: tokenizers.Tokenizer, special: Sequence[str]) -> dict[str, Any]:
    """The asset of a tokenizer, to whose tokens those of `special` are added that it lacks, in this order.

    Blanks beside one of them stay.
    """
    missing = [token for token in special if tokenizer.token_to_id(token) is None]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in missing])
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return json.loads(tokenizer.to_str())


def load(source: str | Path, special: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a tokenizer's files, and adds the special tokens that it lacks; returns the asset.

    Args:
      source: a folder with `tokenizer.json`, with `vocab.json` and `merges.txt` (GPT-2's), or with `vocab.txt` (BERT's), where
        `added_tokens.json`, `special_tokens_map.json` and `tokenizer_config.json` count too; a `tokenizer.json`; a list of
        BERT's word pieces, one a line, in a file `.txt`; or a name for a hub, where one can be reached.
      special: the tokens to add.

    Raises:
      DataError: there is no such file or name, or it cannot be read; or the files disagree about a token's id.
    """
    return with_special(_read(source), special)


def size(source: str | Path) -> int:
    """Number of tokens of a tokenizer's files, without those that `load` adds; raises as `load` does."""
    return _read(source).get_vocab_size(with_added_tokens=True)


def _read(source: str | Path) -> tokenizers.Tokenizer:
    path = Path(source)
    try:
        if path.is_file():
            return _word_pieces(path) if path.suffix.lower() == ".txt" else _saved(path)
        found = None
        if (path / "tokenizer.json").is_file():
            found = _saved(path / "tokenizer.json")
        elif (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
            found = _byte_pairs(models.BPE(*_vocabulary_and_merges(path)))
        elif (path / "vocab.txt").is_file():
            found = _word_pieces(path / "vocab.txt")
    except UserError:
        raise
    except Exception as error:  # the library raises nothing more special
        raise DataError(f"The tokenizer in {source} cannot be read: {error}") from error
    if found is not None:
        _add_tokens(found, path)
        return found
    if path.exists():
        raise DataError(
            f"{source} holds no tokenizer: expected tokenizer.json, or vocab.json and merges.txt, or vocab.txt; there is "
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
    settings = {"added_tokens_decoder?": ({str: {"content": str}}, type(None))}
    decoder = beside("tokenizer_config.json", "a tokenizer's settings", settings).get("added_tokens_decoder") or {}
    known = {row["content"]: row for row in decoder.values()}
    numbered |= {row["content"]: int(number) for number, row in decoder.items() if number.isdecimal()}
    faults = [f"{number!r} of added_tokens_decoder is not an id" for number in decoder if not number.isdecimal()]
    named = _contents(beside("special_tokens_map.json", "a map from each special token's use to its text", dict))
    special = {*named, *(token for token, row in known.items() if row.get("special"))}
    for token, _ in sorted(numbered.items(), key=lambda item: item[1]):
        if tokenizer.token_to_id(token) is None:
            how = {
                name: known[token][name] for name in ("lstrip", "rstrip", "single_word") if name in known.get(token, {})
            }
            added = AddedToken(token, normalized=False, special=token in special, **how)
            (tokenizer.add_special_tokens if token in special else tokenizer.add_tokens)([added])
    faults += [
        f"{token!r} is {tokenizer.token_to_id(token)} in the vocabulary, {number} in added_tokens.json or tokenizer_config.json"
        for token, number in numbered.items()
        if tokenizer.token_to_id(token) != number
    ]
    faults += [
        f"{token!r} of special_tokens_map.json has no id" for token in named if tokenizer.token_to_id(token) is None
    ]
    if faults:
        raise DataError(f"The tokenizer's files in {folder} do not agree: " + "; ".join(faults[:10]) + ".")


def _contents(named: Mapping[str, Any]) -> list[str]:
    """The texts of special tokens by their use: each a text, an object with its `content`, or a list of these."""
    rows = [row for value in named.values() for row in (value if isinstance(value, list) else [value])]
    return [text for row in rows if isinstance(text := row.get("content") if isinstance(row, dict) else row, str)]


def train(texts: Iterable[str], vocab_size: int, special: Sequence[str] = ()) -> dict[str, Any]:
    """Makes a tokenizer of byte pairs, as GPT-2's, from the texts of a data set; returns the asset.

    Args:
      texts: the texts, without special tokens.
      vocab_size: the most tokens, special ones included; never fewer than the 256 bytes and these.
      special: the special tokens, which come first.
    """
    tokenizer = _byte_pairs(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return with_special(tokenizer, special)


def train_word_pieces(texts: Iterable[str], vocab_size: int, special: Sequence[str] = ()) -> dict[str, Any]:
    """Makes a tokenizer of word pieces in lower case, as BERT's, from the texts of a data set; returns the asset.

    Args:
      texts: the texts, without special tokens.
      vocab_size: the most tokens, special ones included; never fewer than these and the characters that there are.
      special: special tokens that come last; those that BERT has (`BERT_SPECIAL`) come first.
    """
    made = tokenizers.BertWordPieceTokenizer(lowercase=True)
    texts = [made.normalizer.normalize_str(text) for text in texts]
    words = (word for text in texts for word, _ in made.pre_tokenizer.pre_tokenize_str(text))
    # The library numbers letters inside words in a random order, on which the merges depend, unless they are there before.
    letters = [f"##{letter}" for letter in sorted({letter for word in words for letter in word[1:]})]
    first = [*BERT_SPECIAL, *letters]
    made.train_from_iterator(
        texts, vocab_size=vocab_size - len(special), min_frequency=1, special_tokens=first, show_progress=False
    )
    return with_special(tokenizers.BertWordPieceTokenizer(made.get_vocab(), lowercase=True)._tokenizer, special)


def stand_in(vocab_size: int, special: Sequence[str] = ()) -> dict[str, Any]:
    """The asset of a tokenizer of that many tokens, for tracing without any data; the special ones come last."""
    words = {f"word{i}": i for i in range(vocab_size - len(special))}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(words, unk_token="word0"))
    tokenizer.add_special_tokens(list(special))
    return json.loads(tokenizer.to_str())


def _byte_pairs(pairs: models.BPE) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(pairs)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if tokenizer.token_to_id(GPT2_END) is not None:
        tokenizer.add_special_tokens([GPT2_END])
    return tokenizer


# Files are read here, since the library takes a byte order mark for a part of the first token.


def _saved(file: Path) -> tokenizers.Tokenizer:
    """What `tokenizers` saved."""
    return tokenizers.Tokenizer.from_str(read_text(file, "a tokenizer.json"))


def _vocabulary_and_merges(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """GPT-2's two files.

    Raises:
      DataError: one of them is of another form.
    """
    file, expected = folder / "merges.txt", "GPT-2's merges, two pieces a line with a blank between"
    lines = [line for line in read_text(file, expected).split("\n") if line and not line.startswith("#version")]
    merges = [tuple(line.split(" ")) for line in lines]
    if wrong := next((line for line, pair in zip(lines, merges, strict=True) if len(pair) != 2), None):
        raise DataError(f"{file}: {wrong[:60]!r} is not a merge. Expected {expected}.")
    vocabulary = read_json(folder / "vocab.json", "GPT-2's vocabulary, a map from token to id", {str: int})
    return vocabulary, [(left, right) for left, right in merges]


def _word_pieces(file: Path) -> tokenizers.Tokenizer:
    """BERT's, in lower case unless the `tokenizer_config.json` beside it says otherwise."""
    settings = file.with_name("tokenizer_config.json")
    known = read_json(settings, "a tokenizer's settings", {"do_lower_case?": bool}) if settings.is_file() else {}
    pieces = read_text(file, "BERT's word pieces, one a line").removesuffix("\n").split("\n")
    numbers = {piece.rstrip(): i for i, piece in enumerate(pieces)}
    return tokenizers.BertWordPieceTokenizer(numbers, lowercase=known.get("do_lower_case", True))._tokenizer


def _from_hub(name: str) -> tokenizers.Tokenizer:
    log.info("fetching the tokenizer %s from a hub …", name)
    import transformers  # seconds to import, and only here of use

    try:
        return transformers.AutoTokenizer.from_pretrained(name).backend_tokenizer
    except Exception as error:  # no network, no such name, no fast tokenizer: the library has a type for each
        raise DataError(
            f"There is no folder {name}, and no hub gives a tokenizer of that name ({str(error).splitlines()[0]}). Give the "
            "folder of one with --config.data.tokenizer=DIR, or an empty text to train one on the data."
        ) from error
