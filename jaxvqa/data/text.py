"""Questions to words to ids, and word vectors, by the rules of RWSAN's public code.

docs/originals/rwsan.md, sections 4.1 to 4.3.
"""

import codecs
import functools
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
from jaxtyping import Float, Int

from jaxvqa.errors import DataError, UserError
from jaxvqa.logs import log

PAD = 0
"""Id that fills a question up to its full length."""

UNK = 1
"""Id of every word that the vocabulary lacks."""

SPECIAL_TOKENS = ("PAD", "UNK")
"""Names of ids 0 and 1. Words are lower-case, so a question's own "pad" or "unk" is an ordinary word."""

# Deleted characters let their neighbours join ("what's" -> "whats"); dashes and slashes part them.
_TOKEN_TABLE = str.maketrans("-/", "  ", ".,'!?\"()*#:;")


def tokenise(question: str) -> list[str]:
    """Splits a question into lower-case words (docs/originals/rwsan.md, section 4.1).

    Deletes `. , ' ! ? " ( ) * # : ;`, turns `-` and `/` into spaces and splits on Unicode white space. Everything else
    (`&`, `$`, `%`, typographic quotes, ...) stays part of its word. The result is not cut to a length.
    """
    return question.lower().translate(_TOKEN_TABLE).split()


@dataclass(frozen=True)
class Vocabulary:
    """The known words, in the order of their ids: `tokens[0]` is "PAD", `tokens[1]` is "UNK".

    Raises:
        DataError: the special names are not in front, there is no token, or a word occurs twice.
    """

    tokens: tuple[str, ...]
    special: ClassVar[tuple[str, ...]] = SPECIAL_TOKENS

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        if not self.tokens or self.tokens[: len(self.special)] != self.special:
            begin = " and ".join(map(repr, self.special)) or "a word, which stands for all unknown ones"
            raise DataError(f"A vocabulary starts with {begin}; this one starts with {list(self.tokens[:2])}.")
        if len(self.index) != len(self.tokens):
            twice = sorted({token for i, token in enumerate(self.tokens) if self.index[token] != i})
            raise DataError(f"The vocabulary holds {len(twice)} word(s) more than once: {twice[:20]}.")

    @staticmethod
    def split(question: str) -> list[str]:
        """The words of a question."""
        return tokenise(question)

    @classmethod
    def build(cls, questions: Iterable[str]) -> "Vocabulary":
        """Collects the words of all questions in order of first appearance, without a threshold.

        docs/originals/rwsan.md, section 4.2.

        RWSAN passes the questions of train, val, test and Visual Genome in this order, whatever it trains on.
        """
        words = (word for question in questions for word in cls.split(question))
        return cls(tuple(dict.fromkeys((*cls.special, *words))))

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Token to id."""
        return {token: i for i, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def pad(self) -> int:
        """Id that fills a question up to its full length."""
        return PAD

    @property
    def unknown(self) -> int:
        """Id of every word that the vocabulary lacks."""
        return UNK

    def encode(self, question: str, max_tokens: int) -> Int[np.ndarray, " T"]:
        """Returns the ids of the first `max_tokens` words, int32[T], filled up with `pad`.

        docs/originals/rwsan.md, section 4.3.
        """
        ids = np.full(max_tokens, self.pad, np.int32)
        for i, word in enumerate(self.split(question)[:max_tokens]):
            ids[i] = self.index.get(word, self.unknown)
        return ids


def load_glove(path: str | Path, vocabulary: Vocabulary, *, width: int | None = None) -> Float[np.ndarray, "V E"]:
    """Reads the vectors of a vocabulary's words from a local GloVe text file (docs/originals/rwsan.md, section 4.2).

    The file has one word a line, followed by its numbers, all separated by single blanks, as `glove.840B.300d.txt`. It
    may begin with a line of two counts, of words and of values, as word2vec's and fastText's text files (`.vec`) do. It
    may be packed as `.gz`, or as `.zip` with one text file inside. It is read as a stream: memory is needed for the
    result only. Some words of the published files contain blanks; no question's word does, so those lines are passed
    over. A word that the file lacks gets a zero vector. Rows 0 and 1 are the vectors of the words "PAD" and "UNK"
    themselves, so row 0 is in general not zero. How many words were found is logged.

    Args:
        path: the file.
        vocabulary: the V words to look up.
        width: the number of values a word is to have, E; taken from the file's first line when not given.

    Returns:
        float32[V, E].

    Raises:
        DataError: the file is missing, of another width, cut off, or holds something that is not a finite number.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"No GloVe file at {path}. Download glove.840B.300d.zip from https://nlp.stanford.edu/projects/glove/ and "
            "give the path of the zip or of the text file inside it."
        )
    wanted = {token.encode(): i for token, i in vocabulary.index.items()}
    table: np.ndarray | None = None
    found = np.zeros(len(vocabulary), bool)
    line_number = 0
    counts: list[int] = []  # of words and values, where the file begins with them
    try:
        with _open_binary(path) as file:
            for line_number, raw in enumerate(file, start=1):
                line = (raw.removeprefix(codecs.BOM_UTF8) if line_number == 1 else raw).rstrip(b" \r\n")
                blanks = line.count(b" ")
                if line_number == 1 and re.fullmatch(rb"[0-9]+ [0-9]+", line):
                    counts = [int(count) for count in line.split()]
                    continue
                if table is None:
                    values_of_a_word = counts[1] if counts else blanks
                    _check_width(path, values_of_a_word, width)
                    table = np.zeros((len(vocabulary), values_of_a_word), np.float32)
                if blanks < table.shape[1]:
                    raise DataError(
                        f"{path}, line {line_number}: {blanks} values instead of {table.shape[1]}. The file is cut off "
                        "or damaged; download it again."
                    )
                if blanks > table.shape[1]:
                    continue  # a word with blanks inside
                word, _, values = line.partition(b" ")
                row = wanted.get(word)
                if row is not None and not found[row]:
                    table[row] = _parse_values(path, line_number, values)
                    found[row] = True
    except (EOFError, zlib.error, zipfile.BadZipFile, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is cut off or damaged after line {line_number} ({error}); download it again."
        ) from error
    if counts and line_number - 1 < counts[0]:
        raise DataError(
            f"{path} begins with a count of {counts[0]} words, and has {line_number - 1}. It is cut off; download it again."
        )
    if table is None:
        raise DataError(f"{path} is empty; expected one word and its values a line.")
    missing = [vocabulary.tokens[i] for i in np.flatnonzero(~found)[:10]]
    log.info(
        "%s: vectors for %d of %d words (%.1f %%)%s",
        path.name,
        found.sum(),
        len(vocabulary),
        100 * found.mean(),
        f"; zero vectors for the rest, such as {', '.join(missing)}" if missing else "",
    )
    return table


@contextmanager
def _open_binary(path: Path) -> Iterator[BinaryIO]:
    """Opens a plain, gzip or zip file for reading bytes line by line."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith((".txt", ".vec"))]
            if len(members) != 1:
                names = [info.filename for info in members]
                raise UserError(f"{path} holds {len(members)} text files {names}; unpack it and give the path of one.")
            with archive.open(members[0]) as member:
                yield io.BufferedReader(member, 1 << 20)  # type: ignore[type-var]  # ZipExtFile is a BufferedIOBase
    elif path.suffix == ".gz":
        with gzip.open(path) as file:
            yield file  # type: ignore[misc]  # GzipFile reads like any binary file
    else:
        with path.open("rb", buffering=1 << 20) as file:
            yield file


def _check_width(path: Path, found: int, wanted: int | None) -> None:
    """Raises when the first line of a vector file does not hold the number of values that is wanted."""
    if found < 2 or (wanted is not None and found != wanted):
        expected = "a word and its values" if wanted is None else f"a word and {wanted} values"
        raise DataError(f"{path}, line 1: expected {expected} separated by blanks, found {found} values.")


def _parse_values(path: Path, line_number: int, values: bytes) -> np.ndarray:
    """Turns the numbers of one line into float32[E]; raises when one is not a finite number."""
    try:
        vector = np.array(values.split(b" "), np.float64).astype(np.float32)
    except ValueError as error:
        raise DataError(f"{path}, line {line_number}: not a number ({error}); download the file again.") from error
    if not np.isfinite(vector).all():
        raise DataError(f"{path}, line {line_number}: a value is not finite; download the file again.")
    return vector
