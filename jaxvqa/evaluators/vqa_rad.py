"""VQA-RAD by the protocols of its literature, side by side, with what no model has to earn beside them."""

from collections.abc import Iterator, Sequence

from jaxvqa.data.rad_text import normalise_rad_answer
from jaxvqa.evaluators.answers import AnswersEvaluator, Question, Scoring, answer_rule, mean
from jaxvqa.evaluators.context import Context, Row
from jaxvqa.evaluators.vqa import train_questions
from jaxvqa.metrics import vqa_rad
from jaxvqa.metrics.question_only import question_only_answers
from jaxvqa.metrics.score import Score, Scores, share
from jaxvqa.report.tables import Table, Values, cell
from jaxvqa.tasks.predictions import Prediction
from jaxvqa.types import Config

GROUPS = ("answer_type", "question_type", "phrase_type", "organ")

PROTOCOL_WORDS = {
    "original_308": "free-form questions; CMSA's own script (its 68.8)",
    "strict_308": "free-form questions; an answer outside the list is wrong",
    "original_451": "free-form and paraphrased; CMSA's own script (its 73.2)",
    "strict_451": "free-form and paraphrased; an answer outside the list is wrong",
}

STANDARD_SPLIT = "vqa_rad/questions"
"""The questions that the protocols are named after: 308 of them free-form, 451 in all."""

CONTROLS = {
    "majority": ((),),
    "majority_of_type": vqa_rad.TYPE,
    "same_question": (("question",), *vqa_rad.TYPE),
    "same_image_and_type": vqa_rad.IMAGE_AND_TYPE,
}
"""Name -> fields of `jaxvqa.metrics.vqa_rad.majority_answers`: answers by counting train answers, with no model at all."""


def evaluator(context: Context) -> AnswersEvaluator:
    """Accuracy on all questions under the strict rule, then every protocol of `jaxvqa.metrics.vqa_rad.PROTOCOLS`.

    A protocol's scores are `NAME/PROTOCOL`, with an interval, its `closed` and `open`, `question_type/…` and `organ/…`.
    `NAME/controls/…` are `CONTROLS`, what counting reaches under the strict rule on all questions, and those of
    `jaxvqa.evaluators.vqa`; the row of `config.evals` has a `train_split` here, always.
    """
    answer_rule(context)
    choices = context.predict.choices
    questions = {int(question["question_id"]): question for question in context.source.all_records()}

    def fields(question: Question, prediction: Prediction, row: Row) -> Row:
        truth = normalise_rad_answer(question["multiple_choice_answer"])
        found = {"accuracy": float(row["answer"] == truth), "answerable": truth in choices}
        if "organ_right" in prediction.outputs:
            found["organ_right"] = float(prediction.outputs["organ_right"])
        return found

    def scores(rows: Sequence[Row]) -> Scores:
        yield mean("accuracy", rows)
        answered = vqa_rad.with_answers((questions[row["id"]] for row in rows), (row["answer"] for row in rows))
        for protocol, summary in vqa_rad.report(answered, choices).items():
            yield from of_protocol(protocol, summary)
        if "organ_right" in rows[0]:
            yield "organ_accuracy", Score(share([row["organ_right"] for row in rows]), n=len(rows))

    def of_protocol(name: str, summary: vqa_rad.Summary) -> Scores:
        right = summary.per_question
        kinds = {i: questions[i]["answer_type"].strip() for i in right}
        parts = {name: list(right)} | {
            f"{name}/{kind.lower()}": [i for i in right if kinds[i] == kind] for kind in vqa_rad.ANSWER_TYPES
        }
        for part, ids in parts.items():
            if ids:
                yield part, Score.mean([right[i] for i in ids], [int(questions[i]["image_id"]) for i in ids])
        for group, counts in (("question_type", summary.by_question_type), ("organ", summary.by_organ)):
            for member, each in counts.items():
                yield f"{name}/{group}/{member}", Score(each.accuracy, n=each.count)

    def controls(rows: Sequence[Row]) -> Iterator[tuple[str, float]]:
        train, asked = train_questions(context), [questions[row["id"]] for row in rows]
        texts = [question["question"] for question in train]
        truths = [normalise_rad_answer(question["multiple_choice_answer"]) for question in train]
        answers = {name: vqa_rad.majority_answers(train, asked, keys) for name, keys in CONTROLS.items()}
        answers["question_only"] = question_only_answers(texts, truths, [question["question"] for question in asked])
        for name, given in answers.items():
            summary = vqa_rad.summarise(vqa_rad.with_answers(asked, given), choices, "strict_451")
            yield name, summary.overall.accuracy
        yield "ceiling", summary.overall.ceiling

    return AnswersEvaluator(context, Scoring(fields, scores, controls, kept=GROUPS))


def tables(name: str, config: Config, values: Values) -> Iterator[Table]:
    """Accuracy by every protocol of VQA-RAD that the evaluation gives: all, closed and open questions with intervals."""
    rows = [
        (
            protocol,
            PROTOCOL_WORDS[protocol],
            *(cell(values, f"{name}/{protocol}{part}") for part in ("", "/closed", "/open")),
        )
        for protocol in vqa_rad.PROTOCOLS
        if f"{name}/{protocol}" in values
    ]
    title = "Accuracy by protocol"
    if config["data"]["examples"] != STANDARD_SPLIT or config["data"]["limit"]:
        title += ": not the 308 and 451 questions of the literature, whose numbers do not compare"
    if rows:
        yield Table(title, ("protocol", "what counts", "all", "closed", "open"), rows)
