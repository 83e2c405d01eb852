"""Golden cases of the metrics: what the official evaluators gave."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxvqa.data.answers import AnswerList
from jaxvqa.data.rad_text import RadAnswerList, normalise_rad_answer
from jaxvqa.errors import DataError
from jaxvqa.golden.cases import LIMIT, Case, Results, below_data
from jaxvqa.golden.runner import Check, Sections
from jaxvqa.metrics import retrieval, text, vqa, vqa_med, vqa_rad

QUESTIONS = "data/vqa_v2_mini"
"""Below the folder that the environment variable JAXVQA_DATA names."""

RAD_SPLITS = "data/vqa_rad/splits.json"
"""Below the folder that the environment variable JAXVQA_DATA names."""


def _predictions(annotations: list[dict[str, Any]]) -> dict[str, dict[int, str]]:
    """The submissions that the cases make by rule."""
    rules: dict[str, Callable[[dict[str, Any]], str]] = {
        "human_k": lambda a: a["answers"][a["question_id"] % 10]["answer"],
        "most_common": lambda a: a["multiple_choice_answer"],
        "all_yes": lambda a: "yes",
        "all_2": lambda a: "two",
        "most_common_shouted": lambda a: f"The {a['multiple_choice_answer'].upper()}.",
    }
    return {name: {a["question_id"]: rule(a) for a in annotations} for name, rule in rules.items()}


def _vqa_v2(content: dict[str, Any]) -> Results:
    for case in content.get("cases", ()):
        name = f"question {case['question_id']}"
        ours = round(100 * vqa.question_accuracy(case["prediction"], case["answers"]), 2)
        yield name, ours, round(case["accuracy"], 2)
        if "rwsan_target" not in case:
            continue
        # The answer list of the original is not part of the case: of its answers, those with a score are checked.
        answers = AnswerList(tuple(case["rwsan_target"]))
        scores = dict(zip(answers.answers, answers.soft_scores(case["answers"]).tolist(), strict=True))
        yield f"{name}, target", scores, case["rwsan_target"]


def _vqa_v2_files(content: dict[str, Any]) -> Results:
    folder = below_data(QUESTIONS)
    ids = set(json.loads((folder / "splits.json").read_text())["minival"])
    annotated = json.loads((folder / "v2_mscoco_train2014_annotations.json").read_text())["annotations"]
    annotations = [a for a in annotated if a["question_id"] in ids]
    submissions = _predictions(annotations)
    for name, expected in content["files"].items():
        summary = vqa.summarise(submissions[name], annotations).rounded()
        yield name, {"overall": summary.overall, "perAnswerType": summary.by_answer_type}, expected


def rad_splits() -> dict[str, list[dict[str, Any]]]:
    """Returns VQA-RAD's entries by split as question records; raises Skipped where they cannot be had."""
    splits = json.loads(below_data(RAD_SPLITS).read_text(encoding="utf-8"))
    return {
        split: [
            row | {"question_id": row["qid"], "multiple_choice_answer": row["answer"], "organ": row["image_organ"]}
            for row in rows
        ]
        for split, rows in splits.items()
    }


def _rad_normalisation(content: dict[str, Any]) -> Results:
    for raw, expected in content["answer_normalisation"]:
        yield repr(raw), normalise_rad_answer(raw), expected


_RAD_PROTOCOLS = {
    "mevf_451": "strict_451",
    "mevf_freeform_308": "strict_308",
    "cmsa_freeform_308": "original_308",
    "cmsa_451": "original_451",
}


def _rad_files(content: dict[str, Any]) -> Results:
    splits = rad_splits()
    train, test = splits["train"], splits["test"]
    answers = RadAnswerList.build(row["multiple_choice_answer"] for row in train)
    targets = [{"qid": row["question_id"], "label": answers.label(row["multiple_choice_answer"])} for row in test]
    lists = {"labels": list(answers.answers), "test_targets": targets}
    yield from ((name, ours, content[name]) for name, ours in lists.items() if name in content)
    for name, case in content.get("predictions", {}).items():
        rows = vqa_rad.with_answers(test, case["predictions"])
        for theirs, ours in _RAD_PROTOCOLS.items():
            if theirs not in case["expected"]:
                continue
            summary = vqa_rad.summarise(rows, answers.answers, ours)
            scores = {**summary.by_answer_type, "ALL": summary.overall}
            counts = {k: (score.right, score.count) for k, score in scores.items()}
            expected = case["expected"][theirs]
            yield f"{name}, {theirs}", counts, {k: (v["right"], v["count"]) for k, v in expected.items()}


MED_REFERENCES = "reference/metrics"
"""Below the folder that the environment variable JAXVQA_DATA names: where the file of the 2021 test set's references lies."""


def _med_pairs(content: dict[str, Any]) -> Results:
    pairs = content.get("pairs", ())
    for case in pairs:
        name, references = repr(case["prediction"]), case["references"]
        yield f"{name}, accuracy", vqa_med.accuracy(case["prediction"], references), case["accuracy"]
        bleu = round(vqa_med.bleu(case["prediction"], references), vqa_med.DECIMALS)
        yield f"{name}, BLEU", bleu, case["bleu"]
        normalised = {
            "normalized_prediction": [vqa_med.normalise_prediction(case["prediction"])],
            "normalized_references": [vqa_med.normalise_reference(text) for text in references],
        }
        texts = {k: case[k] if isinstance(case[k], list) else [case[k]] for k in normalised if k in case}
        yield f"{name}, normalised", {k: normalised[k] for k in texts}, texts
    if not pairs or "all_pairs_as_one_file" not in content:
        return
    numbered = {str(i): case for i, case in enumerate(pairs)}
    ours = vqa_med.summarise(
        {i: case["prediction"] for i, case in numbered.items()}, {i: case["references"] for i, case in numbered.items()}
    ).rounded()
    expected = content["all_pairs_as_one_file"]
    yield "all as one file", ours, (expected["accuracy"], expected["bleu"])


def _med_submissions(content: dict[str, Any]) -> Results:
    references = content["file_validation"]["references"]
    for name, case in content["file_validation"].get("files", {}).items():
        expected = tuple(case["result"].values()) if "result" in case else "refused"
        try:
            ours: Any = vqa_med.summarise(_submission(case["lines"]), references).rounded()
        except DataError:
            ours = "refused"
        yield name, ours, expected


def _submission(lines: list[str]) -> dict[str, str]:
    """The lines `image|answer` of a submission: the evaluator refuses others, and an image that it has had."""
    rows = [line.rstrip("\n").split("|") for line in lines]
    if any(len(row) != 2 for row in rows) or len({row[0] for row in rows}) < len(rows):
        raise DataError("not lines of image|answer, each of another image")
    return {row[0]: row[1] for row in rows}


def _med_files(content: dict[str, Any], case: Case) -> Results:
    (path,) = case.beside(MED_REFERENCES, content["real_references"]["file"])
    rows = json.loads(path.read_text(encoding="utf-8"))
    references = {row["image_id"]: row["answers"] for row in rows}
    others = {row["image_id"]: row["answers_for_accuracy"] for row in rows if "answers_for_accuracy" in row}
    first = [row["answers"][0] for row in rows]
    rules: dict[str, Callable[[int], str]] = {
        "perfect_first": lambda i: first[i],
        "wrong": lambda i: "qqq zzz",
        "half": lambda i: "normal study" if i % 2 else first[i],
        "first_word": lambda i: first[i].split()[0],
        "constant": lambda i: "pulmonary embolism",
        "punctuated": lambda i: f"The {first[i]}.",
    }
    for scored in content["real_references"]["scores"]:
        predictions = {image: rules[scored["name"]](i) for i, image in enumerate(references)}
        ours = vqa_med.summarise(predictions, references, others).rounded()
        yield scored["name"], ours, (scored["accuracy"], scored["bleu"])


ROUNDING = 1e-6
"""By how much floats of the metrics' cases may differ."""

TRANSPOSED = "the transpose of scores_i2t"


def _retrieval(content: list[dict[str, Any]]) -> Results:
    for number, case in enumerate(content):
        scores, back = np.asarray(case["scores_i2t"], np.float64), case.get("scores_t2i", TRANSPOSED)
        if isinstance(back, str) and back != TRANSPOSED:
            raise DataError(f"scores_t2i of case {number} is {back!r}; expected a matrix, or {TRANSPOSED!r}.")
        pairs = [(image, text) for image, texts in enumerate(case["image_to_captions"]) for text in texts]
        own = retrieval.relation(scores.shape, np.asarray(pairs))
        summary = retrieval.summarise(scores, own, None if isinstance(back, str) else np.asarray(back, np.float64))
        ours = summary.recalls()
        for name, expected in case["expected"].items():
            value = ours.get(name)
            close = value is not None and abs(value - expected) <= ROUNDING
            yield f"case {number}, {name}", expected if close else value, expected


def _captions(content: dict[str, Any]) -> Results:
    """BLEU, ROUGE-L and CIDEr of texts as the original's tokenizer left them."""
    items = content.get("items", [])
    answers = [item["tokenized_candidate"] for item in items]
    references = [item["tokenized_references"] for item in items]

    def alike(ours: float, expected: float) -> float:
        return expected if abs(ours - expected) <= LIMIT * max(abs(expected), 1e-6) else ours

    ciders = text.cider(answers, references) if items else []
    for item, answer, texts, cider in zip(items, answers, references, ciders, strict=True):
        rouge = text.rouge_l(answer, texts)
        for order, (ours, expected) in enumerate(
            zip(text.corpus_bleu([answer], [texts]), item["bleu"], strict=True), 1
        ):
            yield f"{item['id']} BLEU-{order}", alike(ours, expected), expected
        for name, ours in (("rouge_l", rouge), ("cider", cider)):
            yield f"{item['id']} {name}", alike(ours, item[name]), item[name]
    if corpus := content.get("corpus"):
        bleus = text.corpus_bleu(answers, references)
        ours_of = {f"Bleu_{order}": value for order, value in enumerate(bleus, 1)}
        ours_of |= {"CIDEr": float(np.mean(ciders))}
        ours_of["ROUGE_L"] = float(np.mean([text.rouge_l(a, r) for a, r in zip(answers, references, strict=True)]))
        for name, expected in corpus.items():
            yield name, alike(ours_of.get(name, np.nan), expected), expected


SECTIONS: Sections = {
    "vqa_med_2021": (
        Check.of(_med_pairs, "pairs", "all_pairs_as_one_file"),
        Check.of(_med_submissions, "file_validation"),
        Check.of(_med_files, "real_references", of_case=True),
    ),
    "retrieval": (Check.of(_retrieval, "image_to_captions", "scores_i2t", "scores_t2i", "expected"),),
    "vqa_rad": (
        Check.of(_rad_normalisation, "answer_normalisation"),
        Check.of(_rad_files, "labels", "test_targets", "predictions"),
    ),
    "captions": (Check.of(_captions, "items", "corpus"),),
    "vqa_v2": (Check.of(_vqa_v2, "cases", "questions"), Check.of(_vqa_v2_files, "files")),
}
