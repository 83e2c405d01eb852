"""How an image, a question and its answer become one text: the templates of MLMI's data sets.

docs/originals/flamingo.md, section 12.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxvqa.data.data_set import DataSet
from jaxvqa.data.rad_text import normalise_rad_answer
from jaxvqa.data.tokenizers import GPT2_END, Tokenizer, pieces_of
from jaxvqa.data.transforms import Example
from jaxvqa.errors import ConfigError, DataError

IMAGE, END, QUESTION_END = "<image>", "<EOC>", "<EOQ>"
"""Where an image belongs; the end of a text; the end of its question (docs/originals/flamingo.md, sections 1 and 12)."""

PADDING = "[PAD]"
ADDED = (PADDING, IMAGE, END, QUESTION_END)
"""The special tokens that templates place or fill up with, and that a tokenizer may lack, in the original's order: GPT-2's
50,257 tokens become 50,261, BERT's get the last three."""

SPECIAL = (GPT2_END, *ADDED)
"""All special tokens of GPT-2's texts."""

_BERT = ("[CLS]", "[SEP]")


class PromptTokenizer(Tokenizer):
    """A tokenizer with the special tokens of templates.

    Attributes:
      padding: id of the token that fills a text.
      begin: id of the token that a text begins with.
      end: id of the token that ends a text.
      image: id of the token that stands for an image.
      question_end: id of the token that ends a question; None in a vocabulary without it, such as MIMIC-CXR's.
    """

    def __init__(self, asset: Mapping[str, Any]):
        """Args: see `Tokenizer`.

        Raises:
          DataError: it lacks special tokens; names them.
        """
        super().__init__(asset, (*SPECIAL, *_BERT))
        begin = _BERT[0] if self.token_id(GPT2_END) is None else GPT2_END
        ids = {name: self.token_id(name) for name in (PADDING, begin, END, IMAGE)}
        if missing := [name for name, number in ids.items() if number is None]:
            raise DataError(
                f"The tokenizer has no token {', '.join(missing)}, which texts with images are written with."
            )
        self.padding, self.begin, self.end, self.image = (int(number) for number in ids.values() if number is not None)
        self.question_end = self.token_id(QUESTION_END)


@dataclass(frozen=True)
class Template:
    """What a text looks like. `{question}` and `{answer}` stand for those of an example.

    Attributes:
      text: the whole text; training reads it.
      prompt: what a generated text goes on from.
    """

    text: str
    prompt: str

    @property
    def opening(self) -> str:
        """What the prompt begins with, before its image."""
        return self.prompt.partition(IMAGE)[0]

    @property
    def asked(self) -> str:
        """The prompt from its image on."""
        return self.prompt.removeprefix(self.opening)

    @property
    def example(self) -> str:
        """The text from its image on, as it stands before a prompt."""
        return IMAGE + self.text.partition(IMAGE)[2] + " "


ANSWER = f" {{answer}} {END}"
"""What every prompt is to be continued by."""

_BEGIN = "<|endoftext|> "
_VQA = "<image> question: {question} <EOQ> answer:"

TEMPLATES: Mapping[str, Template] = {
    "vqa": Template(f"{_BEGIN}{_VQA}{ANSWER}", f"{_BEGIN}{_VQA}"),
    "caption": Template(f"{_BEGIN}<image> Output:{ANSWER}", f"{_BEGIN}<image> Output:"),
    # The prompt of the original's notebooks has a blank at its end, which no text of the training has there as a token.
    "report": Template(f"{_BEGIN}<image> Output:{ANSWER}", f"{_BEGIN}<image> Output: "),
    "bert": Template(
        "[CLS] <image> question: {question} <EOQ> [SEP]", "[CLS] <image> question: {question} <EOQ> [SEP]"
    ),
    # As the code of July 2022 has it, with the mark before the question, and asked in its notebooks without.
    "vqa_rad_2022": Template(
        f"{_BEGIN}<image> Question: <EOQ>{{question}} Answer:{ANSWER}",
        f"{_BEGIN}<image> question: {{question}} answer:",
    ),
    "mixed_rad": Template(
        f"{_BEGIN}<image> Question: {{question}} Answer:{ANSWER}",
        f"{_BEGIN}<image> Question: {{question}} Answer:",
    ),
    "mixed_clef": Template(
        f"{_BEGIN}<image> question: {{question}} answer:{ANSWER}",
        f"{_BEGIN}<image> question: {{question}} answer:",
    ),
    # The current code begins with a text that GPT-2's vocabulary has not, and which becomes four tokens (Q10).
    "imageclef_bos": Template(f"<BOS> {_VQA}{ANSWER}", f"{_BEGIN}{_VQA}"),
}
"""`config.data.template` -> the template. `vqa` and `caption` are the sound ones; the others are for published checkpoints."""


_RAD_ENDINGS = re.compile(r"\? -yes/no|\? -open|\? - open")


def rad_question(question: str) -> str:
    """MEVF's form of a VQA-RAD question: lower case, without marks, "x-ray" for "x ray".

    docs/originals/flamingo.md, section 12, q'.
    """
    question = _RAD_ENDINGS.sub("", question.lower())
    for old, new in ((",", ""), ("?", ""), (".", ""), ("'s", " 's"), ("x ray", "x-ray")):
        question = question.replace(old, new)
    return question


FORMS: Mapping[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "raw": (str, str),
    "rad": (rad_question, normalise_rad_answer),
}
"""`config.data.text_form` -> what becomes of a question, and of an answer."""


def asked_and_true(record: Mapping[str, Any]) -> tuple[str, str]:
    """The question of a record and its annotated answer; a record without a question is a caption, the answer to none.

    An image may have a caption too, which is not what its questions ask for.
    """
    return (record["question"], record["multiple_choice_answer"]) if "question" in record else ("", record["caption"])


def training_texts(data: DataSet) -> Iterator[str]:
    """The texts that a tokenizer is trained on: the templates of questions and captions without their special tokens."""
    config = data.config
    question_form, answer_form = FORMS[config.text_form]
    # Of named parts all, so that every run has the same tokens.
    others = {"images": ""} | ({"question_types": ()} if config.vocabulary_parts else {})
    for part in config.vocabulary_parts or (config.examples,):
        own = data.changed(examples=part, **others)
        for split in config.vocabulary_splits.split("+"):
            for record in own.split(split).all_records():
                question, answer = asked_and_true(record)
                template = TEMPLATES["vqa" if question else "caption"].text
                parts = {"question": question_form(question), "answer": answer_form(answer)}
                yield from (piece.format(**parts) for piece in pieces_of(template)[::2])


@dataclass(frozen=True)
class WriteText:
    """A question with its answer, or a caption -> token ids, int32, filled up with padding.

    Adds `text` [T] and `text_mask` bool[T], the whole text, cut at its end; `question_end` int32, the place of its end token,
    or without a question of the last token; `answer_start` int32, the place of the first token behind the prompt,
    which is behind the text where that is cut before; `prompt` [P] and `prompt_mask` bool[P], in which a question that is too
    long is cut at its end. Records `shots` stand before it as examples, whose longest questions, or captions, are cut first
    until all of it fits.

    Attributes:
      tokenizer: the tokenizer.
      template: see `TEMPLATES`.
      max_tokens: T, the longest text.
      max_prompt: P, the longest prompt.
      form: see `FORMS`.
    """

    tokenizer: PromptTokenizer = field(repr=False)
    template: Template
    max_tokens: int
    max_prompt: int
    form: str = "raw"

    def __call__(self, example: Example) -> Example:
        """Adds the text and the prompt."""
        question_form, answer_form = FORMS[self.form]
        question, answer = asked_and_true(example)
        parts = {"question": question_form(question), "answer": answer_form(answer)}
        tokens = self.tokenizer.fill(self.template.text, parts)[: self.max_tokens]
        prompt = self.tokenizer.fill(self.template.prompt, parts)
        mark = self.tokenizer.question_end
        text, text_mask = _filled(tokens, self.max_tokens, self.tokenizer.padding)
        fitting = self._with_shots(example, parts) if example.get("shots") else self._fitting(prompt)
        asked, prompt_mask = _filled(fitting, self.max_prompt, self.tokenizer.padding)
        return example | {
            "text": text,
            "text_mask": text_mask,
            "question_end": np.int32(tokens.index(mark) if mark in tokens else len(tokens) - 1),
            "answer_start": np.int32(_alike(tokens, prompt)),
            "prompt": asked,
            "prompt_mask": prompt_mask,
        }

    def _fitting(self, prompt: list[int]) -> list[int]:
        """The prompt, less tokens at the question's end, so that what asks for the answer stays."""
        if len(prompt) <= self.max_prompt:
            return prompt
        tail = self.tokenizer.fill(self.template.prompt.partition("{question}")[2], {})
        return prompt[: self.max_prompt - len(tail)] + tail

    def least(self, shots: int) -> int:
        """How many tokens a prompt with this many examples takes at least: without questions and answers."""
        nothing = {"question": "", "answer": ""}
        if not shots:
            part = self._part(self.template.prompt, nothing)
            return part.head + part.tail
        parts = [self._part(self.template.example, nothing)] * shots + [self._part(self.template.asked, nothing)]
        return len(self.tokenizer.fill(self.template.opening, {})) + sum(part.head + part.tail for part in parts)

    def _with_shots(self, example: Example, asked: Mapping[str, str]) -> list[int]:
        question_form, answer_form = FORMS[self.form]
        pairs = [asked_and_true(shot) for shot in example["shots"]]
        shots = [{"question": question_form(question), "answer": answer_form(answer)} for question, answer in pairs]
        parts = [*(self._part(self.template.example, shot) for shot in shots), self._part(self.template.asked, asked)]
        opening = self.tokenizer.fill(self.template.opening, {})
        while (length := len(opening) + sum(len(part.tokens) for part in parts)) > self.max_prompt:
            longest = max(parts[:-1], key=lambda part: part.spare)
            longest = longest if longest.spare > 0 else parts[-1]
            if longest.spare <= 0:
                raise ConfigError(
                    f"Question {example['question_id']} with {len(shots)} examples takes {length} tokens, with nothing left to "
                    f"cut; config.data.max_prompt is {self.max_prompt}. Raise it, or lower config.data.shots."
                )
            longest.cut()
        return [*opening, *(token for part in parts for token in part.tokens)]

    def _part(self, form: str, parts: Mapping[str, str]) -> "_Part":
        tokens = self.tokenizer.fill(form, parts)
        head, mark, tail = form.partition("{question}" if "{question}" in form else "{answer}")
        if not mark:
            return _Part(tokens, len(tokens), 0)
        # A blank before a word is part of it.
        before, behind = self.tokenizer.fill(head.rstrip(), parts), self.tokenizer.fill(tail, parts)
        return _Part(tokens, len(before), len(behind))


@dataclass
class _Part:
    """The tokens of an example or a prompt, of which those between `head` and `tail` may be cut."""

    tokens: list[int]
    head: int
    tail: int

    @property
    def spare(self) -> int:
        return len(self.tokens) - self.head - self.tail

    def cut(self) -> None:
        del self.tokens[len(self.tokens) - self.tail - 1]


def _filled(tokens: Sequence[int], length: int, padding: int) -> tuple[np.ndarray, np.ndarray]:
    text, mask = np.full(length, padding, np.int32), np.zeros(length, np.bool_)
    text[: len(tokens)], mask[: len(tokens)] = tokens, True
    return text, mask


def _alike(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts share at their start."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
