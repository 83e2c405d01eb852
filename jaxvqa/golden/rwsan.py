"""RWSAN's golden cases: the model, its training step, and its text, answer and metric rules.

docs/originals/rwsan.md, section 10.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jaxvqa import models, optim
from jaxvqa.convert import rwsan, to_torch
from jaxvqa.data.answers import AnswerList, normalise_answer
from jaxvqa.data.text import Vocabulary, tokenise
from jaxvqa.data.transforms import PadRegions
from jaxvqa.golden import options
from jaxvqa.golden.cases import Case, Results, Row
from jaxvqa.golden.parts import compare_all
from jaxvqa.golden.runner import Check, Sections
from jaxvqa.golden.training import Named, Run, Training, config_of, train
from jaxvqa.metrics import vqa
from jaxvqa.models.layers.norm import StdNorm

OUTPUTS = {
    "lstm": "lstm",
    "img_linear": "region_input",
    "sa_first": "encoder_unit_first",
    "srwsa_first": "encoder_pass_first",
    "encoder": "encoder",
    "sga_first": "decoder_unit_first",
    "sgrwsa_first": "decoder_pass_first",
    "decoder": "decoder",
    "attflat_lang": "question_flat",
    "attflat_img": "region_flat",
    "proj_norm": "fused",
}
"""Name in a case's results -> the model's intermediate."""

SLICES = {"lstm": np.s_[:, :, :8], "encoder": np.s_[:, :, :8], "decoder": np.s_[:, ::10, :8]}
"""Outputs of which large cases store a part."""

MODES = frozenset({"train", "every dropout rate 0", "float32", "no loss scaling"})
"""What a manifest may say of the mode of training, with commas between."""

LOSSES = {
    "BCE with logits, summed over batch and answers": ("sum", False),
    "BCE with logits, mean over batch and answers": ("mean", True),
}
"""A manifest's loss -> `config.optim.loss`, and whether it is a mean over the answers too, which our task has the sum of."""


def run(case: Case) -> Iterator[Row]:
    """Runs one case in float32, and its training in float64 too."""
    tensors = case.checkpoint()
    config = options.rwsan(case.manifest["options"])
    extra = {"optimizer": {"state": {}, "param_groups": []}, "lr_base": 1e-4}
    loaded = case.through_file(tensors, extra, lambda path: rwsan.ORIGINAL.load(path, config))
    yield case.back_again(tensors, rwsan.ORIGINAL.to_original(loaded))
    model = models.build(config)
    with jax.default_matmul_precision("highest"):
        ours = _evaluate(model, jax.tree.map(jnp.asarray, loaded.params), case)
        if "train" in case.manifest:
            yield from train(case, lambda: _training(case, loaded.params), lambda run: _named(case, run))
            modes = dict.fromkeys(case.manifest["train"].get("mode", "train").split(", "), True)
            yield from case.unknown(modes, MODES, "train.mode")
            yield from case.unread("train", "train.optimizer", "train.trajectory")
            del ours["logits"]  # compared there
        yield from compare_all(case, ours, SLICES)


def _evaluate(model: Any, params: Any, case: Case) -> dict[str, Any]:
    regions, question = jnp.asarray(case.inputs["img_feat"]), jnp.asarray(case.inputs["ques_ix"], jnp.int32)
    logits, out = jax.jit(model.apply)({"params": params}, regions=regions, question=question)
    ours = {"logits": logits} | {name: out[ours_name] for name, ours_name in OUTPUTS.items()}
    if "norm_x" in case.inputs:
        norm = jax.jit(StdNorm().apply)
        ours["norm_y"] = norm({"params": params["fused_norm"]}, jnp.asarray(case.inputs["norm_x"]))
    return ours


# --- training ----------------------------------------------------------------------------------------------------------


def _training(case: Case, params: Any) -> Training:
    train, model = case.manifest["train"], options.rwsan(case.manifest["options"]) | {"dropout": 0.0}
    reduction, of_both = LOSSES[train.get("loss", next(iter(LOSSES)))]
    batch = {"regions": case.inputs["img_feat"], "question": case.inputs["ques_ix"].astype(np.int32)}
    return Training(
        config_of("rwsan", model, train.get("optimizer", {}), optim__loss=reduction),
        batch | {"answer_scores": case.inputs["target"]},
        {"params": params},
        lambda variables: to_torch(variables, rwsan.KEYS),
        case.arrays["keys"].tolist(),
        skipped=case.manifest.get("rounding_only_gradients", ()),  # docs/originals/rwsan.md, section 9, quirk 27
        scale=1 / model["num_answers"] if of_both else 1.0,
    )


def _named(case: Case, run: Run) -> Named:
    settings, later = (case.manifest["train"].get(part, {}) for part in ("optimizer", "trajectory"))
    first, second = run.follow([*(_rates(settings, 1) if settings else [0.0]), 0.0])

    def first8() -> np.ndarray:
        found = [np.asarray(first.gradients[key]).ravel()[:8] for key in run.training.keys]
        return np.stack([np.pad(values, (0, 8 - len(values))) for values in found])

    named: Named = {
        "loss": ("loss", first.loss),
        "loss_after_step1": ("loss", second.loss),
        "logits": ("values", first.output),
        "grad_norm": ("gradients", lambda: run.norms(first.gradients)),
        "grad_first8": ("gradients", first8),
        "param_norm_before": ("norms", lambda: run.norms(first.before)),
        "param_norm_after_step1": ("moved", lambda: run.norms(first.after)),
        "delta_norm_step1": ("moved", lambda: run.change(first)),
    }
    if later:
        rates = _rates(later, later["epochs"] * later.get("steps_per_epoch", later["data_size"] // later["batch_size"]))
        *steps, end = run.follow([*rates, 0.0])
        named |= {
            "traj_lr": ("loss", np.asarray(rates)),
            "traj_loss": ("loss", np.asarray([step.loss for step in steps])),
            "traj_loss_end": ("loss", end.loss),
            "traj_param_norm": ("moved", lambda: run.norms(end.before)),
        }
    return named


def _rates(part: dict[str, Any], steps: int) -> list[float]:
    """The learning rates of a manifest's steps, by our schedule."""
    decay = {"decay_epochs": tuple(part.get("lr_decay_list", ())), "decay_rate": part.get("lr_decay_r", 1.0)}
    schedule = {"name": "staircase", "warmup_epochs": 3} | decay
    config = ml_collections.ConfigDict({"lr": part["lr_base"], "schedule": schedule})
    rate = optim.make_schedule(config, data_size=part["data_size"], batch_size=part["batch_size"], total_steps=steps)
    return [float(rate(step)) for step in range(steps)]


# --- text cases --------------------------------------------------------------------------------------------------------


def _tokenise(cases: list[dict[str, Any]]) -> Results:
    for case in cases:
        yield case["question"], tokenise(case["question"]), case["tokens"]


def _vocabulary(cases: list[dict[str, Any]]) -> Results:
    for case in cases:
        vocabulary = Vocabulary.build(case["questions"])
        if "token_to_ix" in case:
            yield "token_to_ix", list(vocabulary.index.items()), list(case["token_to_ix"].items())
        for encoded in case.get("encode", ()):
            ids = vocabulary.encode(encoded["question"], encoded["max_token"])
            yield encoded["question"], ids.tolist(), encoded["ids"]


def _answers(cases: list[dict[str, Any]]) -> Results:
    rules = {
        "training": normalise_answer,
        "prediction": vqa.normalise_prediction,
        "human": vqa.normalise_human,
    }
    for case, (name, rule) in itertools.product(cases, rules.items()):
        if name in case:
            yield f"{case['raw']!r} ({name})", rule(case["raw"]), case[name]


def _answer_dictionary(cases: list[dict[str, Any]]) -> Results:
    for case in cases:
        runs = (itertools.repeat(answer, count) for answer, count in case["runs"])
        answers = AnswerList.build(itertools.chain.from_iterable(runs), min_count=9)
        ours = {"ans_to_ix": answers.index, "ix_to_ans": {str(i): answer for i, answer in enumerate(answers.answers)}}
        yield from ((name, value, case[name]) for name, value in ours.items() if name in case)


def _soft_scores(cases: list[dict[str, Any]]) -> Results:
    for case in cases:
        answers = AnswerList(tuple(case["dictionary"]))
        scores = zip(answers.answers, answers.soft_scores(case["human_answers"]).tolist(), strict=True)
        ours = {answer: round(score, 6) for answer, score in scores if score}
        yield str(case["human_answers"]), ours, {answer: round(score, 6) for answer, score in case["scores"].items()}


def _vqa_accuracy(cases: list[dict[str, Any]]) -> Results:
    for case in cases:
        predictions = {p["question_id"]: p["answer"] for p in case["predictions"]}
        summary = vqa.summarise(predictions, case["annotations"]).rounded()
        per_question = {str(name): value for name, value in summary.per_question.items()}
        for number, value in case.get("per_question", {}).items():
            yield f"question {number}", per_question.get(number), value
        ours = {
            "overall": summary.overall,
            "per_answer_type": summary.by_answer_type,
            "per_question_type": summary.by_question_type,
        }
        yield from ((name, value, case[name]) for name, value in ours.items() if name in case)


def _schedule(cases: list[dict[str, Any]]) -> Results:
    for case in cases:
        schedule = {"name": "staircase", "warmup_epochs": 3, "decay_epochs": (), "decay_rate": 1.0}
        config = ml_collections.ConfigDict({"lr": case["lr_base"], "schedule": schedule})
        rate = optim.make_schedule(config, data_size=case["data_size"], batch_size=case["batch_size"], total_steps=1)
        for step, expected in case["step_to_rate"]:
            # The original counts steps from 1, and keeps rates in float64.
            yield f"step {step}", np.float32(rate(step - 1)), np.float32(expected)


def _image_features(cases: list[dict[str, Any]]) -> Results:
    for case in cases:
        features = np.asarray(case["x"], np.float32).T  # stored as [F, n]
        example = {"features": features, "boxes": np.zeros((len(features), 4), np.float32)}
        yield str(case["x"]), PadRegions(case["pad_size"])(example)["regions"].tolist(), case["result"]


def trimmed_length(values: np.ndarray) -> int | str:
    """The length to which the original cuts a batch before the model, or "error" where it stops.

    docs/originals/rwsan.md, section 5.

    The last position from 1 on whose sum over batch (and features) is not 0 stays the last one; position 0 is not looked
    at. We keep fixed lengths: except where the original stops, what it cuts off changes no result.

    Args:
      values: [B, L] or [B, L, F].
    """
    sums = np.sum(np.moveaxis(values, 1, 0).reshape(values.shape[1], -1), axis=1)
    kept = np.flatnonzero(sums[1:])
    return int(kept[-1]) + 2 if len(kept) else "error"


def _trim(cases: dict[str, Any]) -> Results:
    for part, key in (("questions", "ques_ix"), ("images", "img_feat")):
        for case in cases.get(part, ()):
            yield f"{part} {case[key]}", trimmed_length(np.asarray(case[key])), case["length"]


def _image_files(cases: list[dict[str, Any]]) -> Results:
    from tfds_builders.vqa_v2.region_files import image_id_of  # only here: it brings the builders' dependencies along

    for case in cases:
        yield case["path"], str(image_id_of(case["path"])), case["image_id"]


SECTIONS: Sections = {
    "tokenise": (Check.of(_tokenise, "question", "tokens"),),
    "vocabulary": (Check.of(_vocabulary, "questions", "token_to_ix", "encode"),),
    "answers": (Check.of(_answers, "raw", "training", "prediction", "human"),),
    "answer_dictionary": (Check.of(_answer_dictionary, "runs", "ans_to_ix", "ix_to_ans"),),
    "soft_scores": (Check.of(_soft_scores, "human_answers", "dictionary", "scores"),),
    "vqa_accuracy": (
        Check.of(
            _vqa_accuracy,
            *("predictions", "annotations", "per_question", "overall", "per_answer_type", "per_question_type"),
        ),
    ),
    "schedule": (Check.of(_schedule, "lr_base", "data_size", "batch_size", "step_to_rate"),),
    "image_files": (Check.of(_image_files, "path", "image_id"),),
    "image_features": (Check.of(_image_features, "x", "pad_size", "result"),),
    "trim": (Check.of(_trim, "questions", "images"),),
}
