"""Questions and answers of VQA-RAD to ids, and word vectors, by the rules of CMSA and MEVF.

docs/originals/cmsa.md, sections 2 and 7.

They differ from those of `jaxvqa.data.text` and `jaxvqa.data.answers` in what counts as a word, in padding and unknown
words, and in one answer.
"""

import mmap
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from jaxvqa.data.answers import AnswerList, normalise_answer
from jaxvqa.data.text import Vocabulary, load_glove
from jaxvqa.errors import DataError
from jaxvqa.logs import log

MAX_TOKENS = 12
"""Words of a question that the published models read."""

_REMARKS = ("? -yes/no", "? -open", "? - open")  # annotators' notes at the end of some questions


def tokenise(question: str) -> list[str]:
    """Splits a question into lower-case words (docs/originals/cmsa.md, section 7.2); the result is not cut to a length.

    Annotators' remarks, commas, question marks and full stops are deleted, so that their neighbours join ("1.5" -> "15");
    "'s" becomes a word of its own.
    """
    question = question.lower()
    for remark in _REMARKS:
        question = question.replace(remark, "")
    question = question.replace(",", "").replace("?", "").replace("'s", " 's").replace("...", "")
    return question.replace("x ray", "x-ray").replace(".", "").split()


class RadVocabulary(Vocabulary):
    """The V known words in the order of their ids: 1177 where CMSA makes it of the train split, frames included.

    The padding's id is V itself, so that embedding tables have V + 1 rows. There is no id for unknown words: they become the
    last known one (docs/originals/cmsa.md, section 7.2).
    """

    special: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def split(question: str) -> list[str]:
        """The words of a question."""
        return tokenise(question)

    @property
    def pad(self) -> int:
        """V."""
        return len(self)

    @property
    def unknown(self) -> int:
        """The last word."""
        return len(self) - 1


# Answers.


def normalise_rad_answer(raw: str | int) -> str:
    """Brings an answer into the form that the answer list uses: "X-ray" -> "xray", 4 -> "4".

    docs/originals/cmsa.md, section 7.3.
    """
    return normalise_answer(str(raw)).replace("x ray", "xray")


@dataclass(frozen=True)
class RadAnswerList(AnswerList):
    """The A answers that a model chooses from, under VQA-RAD's normalisation. A question has one answer.

    docs/originals/cmsa.md, section 7.3.

    CMSA makes it of the raw answers of the train split, frames included, which gives 458.
    """

    form = staticmethod(normalise_rad_answer)


# Word vectors.


def tfidf(questions: Iterable[str], vocabulary: Vocabulary) -> Float[np.ndarray, "V V"]:
    """Returns the matrix M that mixes the words' vectors for the second embedding table (docs/originals/cmsa.md, section 2.2).

    M is called "tf-idf"; in effect row a holds the shares of the words that occur in a question together with word a. It
    is made from a list with one entry for each ordered pair of positions of each question. A slip of the original is
    kept, since it decides where training starts: where it means to divide entry k by the frequency of the entry's word,
    it divides the list's element number c, c being that word's id. So only the first V entries are ever divided, again
    and again.

    Args:
        questions: the training questions; they are read at their full length.
        vocabulary: the V words; it has to hold all words of the questions.

    Returns:
        float32[V, V], each row's sum is 1, or 0 for a word that no question has beside another one.

    Raises:
        DataError: the vocabulary lacks a word.
    """
    size = len(vocabulary)
    frequency = np.zeros(size)
    pairs: list[np.ndarray] = []
    for question in questions:
        try:
            ids = np.array([vocabulary.index[token] for token in tokenise(question)], np.int64)
        except KeyError as error:
            raise DataError(f"The vocabulary lacks {error} of the question {question!r}.") from None
        np.add.at(frequency, ids, 1)
        first, second = np.triu_indices(len(ids), 1)
        # (a, b) and (b, a) of each pair of positions, one after the other.
        pairs.append(np.stack([ids[first], ids[second], ids[second], ids[first]], 1).reshape(-1, 2))
    rows, columns = np.concatenate([np.zeros((0, 2), np.int64), *pairs]).T
    entries = np.ones(len(rows))
    uses = np.bincount(columns, minlength=size)[: len(entries)]
    with np.errstate(under="ignore"):
        entries[:size] = np.maximum(frequency, 1)[: len(uses)] ** -uses.astype(np.float64)
    sums = np.bincount(rows, entries, minlength=size)
    matrix = np.bincount(rows * size + columns, entries / sums[rows], minlength=size * size)
    return matrix.reshape(size, size).astype(np.float32)


def second_embedding(matrix: Float[np.ndarray, "V V"], vectors: Float[np.ndarray, "V E"]) -> Float[np.ndarray, "V+1 E"]:
    """Returns the second embedding table's start: M x vectors, and a row of zeros for the padding.

    docs/originals/cmsa.md, section 2.1.

    Args:
        matrix: M of `tfidf`.
        vectors: the words' own vectors, which start the first table.
    """
    return np.concatenate([matrix @ vectors, np.zeros((1, vectors.shape[1]), np.float32)])


def load_vectors(path: str | Path, vocabulary: RadVocabulary, *, width: int | None = None) -> Float[np.ndarray, "V E"]:
    """Reads the words' vectors from a fastText model (`.bin`) or a GloVe text file (any other name), float32[V, E]."""
    load = load_fasttext if Path(path).suffix == ".bin" else load_glove
    return load(path, vocabulary, width=width)


_FASTTEXT_MAGIC = 793_712_314
_FASTTEXT_VERSIONS = (11, 12)
_SUPERVISED = 3


def load_fasttext(path: str | Path, vocabulary: RadVocabulary, *, width: int | None = None) -> Float[np.ndarray, "V E"]:
    """Computes the words' vectors by a fastText model, such as BioWordVec_PubMed_MIMICIII_d200.bin (26 GB).

    A word's vector is the mean of the vectors of its character n-grams, which are kept in buckets by their hash, and of
    its own vector if the model knows the word. So a word that the model does not know has a vector too. The file is
    mapped into memory: only its list of words and the rows that are needed are read.

    Args:
        path: the binary model, not the `.vec` text file, which has no n-grams.
        vocabulary: the V words.
        width: the number of values a word is to have, E; any when not given.

    Returns:
        float32[V, E].

    Raises:
        DataError: the file is missing, is not such a model, is quantised, cut off, or of another width.
    """
    path = Path(path)
    if not path.is_file() or not path.stat().st_size:
        raise DataError(
            f"No fastText model at {path}. BioWordVec: https://github.com/ncbi-nlp/BioSentVec (the file "
            "BioWordVec_PubMed_MIMICIII_d200.bin, 26 GB), or use a GloVe text file."
        )
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            model = _FastText.read(path, content, {token.encode() for token in vocabulary.tokens})
        except (struct.error, IndexError, ValueError) as error:
            raise DataError(f"{path} is cut off or damaged ({error}); download it again.") from error
    if width is not None and model.rows.shape[1] != width:
        raise DataError(f"{path} has vectors of {model.rows.shape[1]} values, expected {width}.")
    table = np.zeros((len(vocabulary), model.rows.shape[1]), np.float32)
    for i, token in enumerate(vocabulary.tokens):
        where = model.rows_of(token.encode())
        if where:
            table[i] = model.rows[where].mean(axis=0)
    if not np.isfinite(table).all():
        raise DataError(f"{path}: a value is not finite; download the file again.")
    log.info("%s: knows %d of %d words; n-grams make up the others", path.name, len(model.known), len(vocabulary))
    return table


@dataclass(frozen=True)
class _FastText:
    """What is needed of a fastText model to make a word's vector.

    Attributes:
        rows: float32[words + buckets, E], in the file.
        known: those of the wanted words that have a row of their own, with its number.
        words: number of rows that belong to words.
        buckets: number of rows that belong to n-grams.
        lengths: shortest and longest n-gram in characters; (…, 0) for none.
        kept: bucket -> its row, counted from `words`; None where all buckets are kept.
    """

    rows: np.ndarray
    known: dict[bytes, int]
    words: int
    buckets: int
    lengths: tuple[int, int]
    kept: dict[int, int] | None

    @classmethod
    def read(cls, path: Path, content: mmap.mmap, wanted: set[bytes]) -> "_FastText":
        """Reads the header, notes where the wanted words are, and maps the rows."""
        magic, version = struct.unpack_from("<ii", content, 0)
        if magic != _FASTTEXT_MAGIC or version not in _FASTTEXT_VERSIONS:
            raise DataError(
                f"{path} is not a fastText model (it starts with {magic}, {version}; expected {_FASTTEXT_MAGIC} and 11 or 12)."
                " Files of the word2vec format, such as *.vec.bin, have no n-grams; take the model's own .bin file."
            )
        # dim, ws, epoch, minCount, neg, wordNgrams, loss, model, bucket, minn, maxn, lrUpdateRate, t
        numbers = struct.unpack_from("<12id", content, 8)
        width, kind, buckets, shortest, longest = (numbers[i] for i in (0, 7, 8, 9, 10))
        if version == 11 and kind == _SUPERVISED:
            longest = 0  # such old models state a length that they did not use
        # All entries of the dictionary, those that are words, labels; all words of the text; n-grams that were kept.
        entries, words, _, _, pruned = struct.unpack_from("<iiiqq", content, 64)
        place, known = 92, {}
        for i in range(entries):
            end = content.find(b"\0", place)
            if end < 0:
                raise ValueError("the list of words does not end")
            word = content[place:end]
            if word in wanted and i < words:
                known[word] = i
            place = end + 10  # after the word: its count, int64, and its kind, int8
        kept = None
        if pruned >= 0:
            pairs = np.frombuffer(content, "<i4", 2 * pruned, place).reshape(-1, 2).tolist()
            kept, place = dict(pairs), place + 8 * pruned
        if content[place]:
            raise DataError(f"{path} is a quantised model (.ftz), which is not supported; take the full .bin file.")
        height, columns = struct.unpack_from("<qq", content, place + 1)
        if columns != width or height < words:
            raise ValueError(f"{height} rows of {columns} values for {words} words of {width}")
        place += 17
        if len(content) < place + 4 * height * width:
            raise ValueError(f"{len(content):,} bytes, expected at least {place + 4 * height * width:,}")
        rows = np.memmap(path, "<f4", "r", place, (height, width))
        return cls(rows, known, words, buckets, (shortest, longest), kept)

    def rows_of(self, word: bytes) -> list[int]:
        """Returns the rows whose mean is a word's vector."""
        rows = [self.known[word]] if word in self.known else []
        for ngram in character_ngrams(word, *self.lengths):
            bucket = fasttext_hash(ngram) % self.buckets
            if self.kept is None:
                rows.append(self.words + bucket)
            elif bucket in self.kept:
                rows.append(self.words + self.kept[bucket])
        return rows


def character_ngrams(word: bytes, shortest: int, longest: int) -> Iterator[bytes]:
    """Yields the n-grams of "<word>" by their start, then length; the marks < and > alone are none.

    Args:
        word: UTF-8; lengths count its characters, not its bytes.
        shortest: least number of characters.
        longest: largest number of characters; 0 gives no n-grams.
    """
    marked = f"<{word.decode()}>"
    for start in range(len(marked)):
        for end in range(start + max(shortest, 1), min(start + longest, len(marked)) + 1):
            if end - start > 1 or 0 < start < len(marked) - 1:
                yield marked[start:end].encode()


def fasttext_hash(ngram: bytes) -> int:
    """Returns fastText's 32-bit FNV-1a hash, whose bytes are signed: those from 128 on flip the upper 24 bits as well."""
    value = 2_166_136_261
    for byte in ngram:
        value ^= byte if byte < 128 else byte | 0xFFFFFF00
        value = value * 16_777_619 & 0xFFFFFFFF
    return value
