"""What several tasks make from a data set: the answers that a model chooses from, and the words of its questions."""

from typing import TypeVar

from jaxvqa.data.answers import ANSWER_RULES, AnswerList
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.text import Vocabulary
from jaxvqa.errors import ConfigError, DataError, choose
from jaxvqa.types import Config

_Answers = TypeVar("_Answers", bound=AnswerList)


def answer_rule(config: Config) -> str:
    """The rule of a config by which answers are scored.

    Raises:
      ConfigError: it is not one of `ANSWER_RULES`.
    """
    rule = config.data.answers.rule
    if rule not in ANSWER_RULES:
        raise ConfigError(f"config.data.answers.rule is {rule!r}{choose(rule, ANSWER_RULES)}")
    return rule


def answers_of(kind: type[_Answers], data: DataSet) -> list[str]:
    """The answers of the file `config.data.answers.file`, or of the questions of `answers.splits`.

    Of questions, those `multiple_choice_answer` that occur `answers.min_count` times, in order of first appearance.

    Raises:
      DataError: the file cannot be read, or no answer occurs that often.
    """
    config = data.config.answers
    if config.file:
        made = kind.from_file(config.file)
    else:
        splits = config.splits.split("+")
        made = kind.build(
            (q["multiple_choice_answer"] for split in splits for q in data.split(split).all_records()), config.min_count
        )
    if not made.answers:
        raise DataError(
            f"No answer of {data.config.examples} ({config.splits}) that can be a class occurs {config.min_count} times: "
            "lower config.data.answers.min_count."
        )
    return list(made.answers)


def words_of(kind: type[Vocabulary], data: DataSet) -> list[str]:
    """The words of all questions of `config.data.vocabulary_splits`, in the order of the splits and their questions."""
    splits = data.config.vocabulary_splits.split("+")
    return list(kind.build(q["question"] for split in splits for q in data.split(split).all_records()).tokens)
