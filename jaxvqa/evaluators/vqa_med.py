"""ImageCLEF VQA-Med by the rules of its official evaluator: accuracy and BLEU, each the best over a question's answers."""

from collections.abc import Sequence
from dataclasses import replace

from jaxvqa.data.med_text import repaired
from jaxvqa.evaluators import vqa
from jaxvqa.evaluators.answers import GROUPS, AnswersEvaluator, Question, mean
from jaxvqa.evaluators.context import Context, Row
from jaxvqa.metrics import vqa_med
from jaxvqa.metrics.score import Scores
from jaxvqa.tasks.predictions import Prediction


def evaluator(context: Context) -> AnswersEvaluator:
    """Yields what `jaxvqa.evaluators.vqa` gives, by the official rule, and `bleu` in percent with its interval.

    With `repair_names` in the row of `config.evals`, answers are written without SYSU-HCP's garbling. Beside the predictions
    is `NAME_STEP_imageclef.txt`, lines `image|answer`, where the challenge would take them: each image is asked about once,
    and every question is answered.
    """
    predict = context.predict
    if context.config.get("repair_names", False):
        predict = replace(predict, choices=[repaired(answer) for answer in predict.choices])
    accuracy = vqa.scoring(context, predict.choices, vqa_med.accuracy)

    def fields(question: Question, prediction: Prediction, row: Row) -> Row:
        bleu = 0.0 if prediction.unanswered else vqa_med.bleu(row["answer"], row["annotators"])
        return accuracy.fields(question, prediction, row) | {"bleu": bleu}

    def scores(rows: Sequence[Row]) -> Scores:
        yield from accuracy.scores(rows)
        yield mean("bleu", rows)

    scoring = replace(accuracy, fields=fields, scores=scores, submission=_imageclef, kept=(*GROUPS, "image_name"))
    return AnswersEvaluator(context, scoring, predict)


def _imageclef(rows: Sequence[Row]) -> dict[str, str]:
    answers = {row.get("image_name", str(row["image_id"])): row["answer"] for row in rows}
    if len(answers) < len(rows) or any(row.get("unanswered") for row in rows):
        return {}
    return {"imageclef.txt": "\n".join(vqa_med.submission_lines(answers)) + "\n"}
