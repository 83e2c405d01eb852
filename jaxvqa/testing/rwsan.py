"""RWSAN's golden cases: the model, its training step, and its text, answer and metric rules (spec section 10)."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from jaxvqa import models, optim
from jaxvqa.convert import adam, rwsan, to_torch
from jaxvqa.data.answers import AnswerList, normalise_answer
from jaxvqa.data.text import Vocabulary, tokenise
from jaxvqa.data.transforms import PadRegions
from jaxvqa.metrics import vqa
from jaxvqa.models.layers.norm import StdNorm
from jaxvqa.testing.golden import Case, Row, Sections, through_file

LIMIT = 1e-5
"""Largest relative difference of an output; the original in float64 differs from its float32 outputs by less than 1e-6."""

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

SLICES = {
    "lstm_slice": ("lstm", np.s_[:, :, :8]),
    "encoder_slice": ("encoder", np.s_[:, :, :8]),
    "decoder_slice": ("decoder", np.s_[:, ::10, :8]),
}
"""Outputs of which large cases store a part."""

TRAIN_LIMITS = {
    "loss": 1e-6,
    "grad_norm": 1.2e-4,
    "grad_first8": 1.2e-4,
    "param_norm_before": 1e-6,
    "param_norm_after_step1": 1e-6,
    "delta_norm_step1": 5e-3,
    "loss_after_step1": 1e-6,
    "traj_lr": 1e-6,
    "traj_loss": 5e-6,
    "traj_loss_end": 5e-6,
    "traj_param_norm": 1.1e-5,
}
"""Ten times what float64 differs from the original's float32 results."""


def run(case: Case) -> list[Row]:
    """Runs one case in float32."""
    tensors = case.checkpoint()
    config = rwsan.model_config(case.manifest["options"])
    extra = {"optimizer": adam.fresh_state(len(tensors), {}), "lr_base": 1e-4}
    loaded = through_file(tensors, extra, lambda path: rwsan.load(path, config))
    back = to_torch(loaded.params, rwsan.KEYS)
    same = list(back) == list(tensors) and all(np.array_equal(back[k], v) for k, v in tensors.items())
    rows = [Row(case.name, "(checkpoint and back)", same, note=f"{len(loaded.report.used)} tensors")]
    model = models.build(config)
    params = jax.tree.map(jnp.asarray, loaded.params)
    with jax.default_matmul_precision("highest"):
        ours = _evaluate(model, params, case) | (_train(model, params, case) if "train" in case.manifest else {})
    for name in case.expected:
        if name not in ours:
            continue
        if name in TRAIN_LIMITS:
            # The rows are parameters of very different scale; those of other outputs are examples.
            by_row = case.expected[name].shape[:1] == (len(tensors),)
            only = _has_gradient(case) if by_row else None
            rows.append(case.compare(name, ours[name], TRAIN_LIMITS[name], entrywise=by_row, only=only))
        else:
            rows.append(case.compare(name, ours[name], LIMIT))
    return rows


def _evaluate(model: Any, params: Any, case: Case) -> dict[str, Any]:
    regions, question = jnp.asarray(case.inputs["img_feat"]), jnp.asarray(case.inputs["ques_ix"], jnp.int32)
    logits, out = jax.jit(model.apply)({"params": params}, regions, question)
    ours = {"logits": logits} | {name: out[ours_name] for name, ours_name in OUTPUTS.items()}
    ours |= {name: np.asarray(out[whole])[part] for name, (whole, part) in SLICES.items()}
    if "norm_x" in case.inputs:
        norm = jax.jit(StdNorm().apply)
        ours["norm_y"] = norm({"params": params["fused_norm"]}, jnp.asarray(case.inputs["norm_x"]))
    return ours


def _train(model: Any, params: Any, case: Case) -> dict[str, Any]:
    regions, question = jnp.asarray(case.inputs["img_feat"]), jnp.asarray(case.inputs["ques_ix"], jnp.int32)
    target = jnp.asarray(case.inputs["target"])
    settings, run_settings = case.manifest["train"]["optimizer"], case.manifest["train"]["trajectory"]

    def loss(params: Any) -> jax.Array:
        logits, _ = model.copy(dropout=0.0).apply({"params": params}, regions, question, train=True)
        return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, target))

    def optim_config(lr: float, decay_epochs: Iterable[int], decay_rate: float) -> ml_collections.ConfigDict:
        config = {"name": "adam", "b1": settings["betas"][0], "b2": settings["betas"][1], "eps": settings["eps"]}
        schedule = {"name": "staircase", "warmup_epochs": 3, "decay_epochs": tuple(decay_epochs)}
        config |= {"lr": lr, "schedule": schedule | {"decay_rate": decay_rate}, "clip_norm": 0.0}
        return ml_collections.ConfigDict(config | {"decay": (), "lr_scale": (), "freeze": ()})

    optimizer = optim.make_optimizer(optim_config(0.0, (), 1.0), params)

    @jax.jit
    def train_step(params: Any, state: Any, rate: Any) -> tuple[Any, ...]:
        value, grads = jax.value_and_grad(loss)(params)
        direction, state = optimizer.update(grads, state, params)
        return value, grads, jax.tree.map(lambda p, d: p - rate * d, params, direction), state

    def trajectory(
        config: ml_collections.ConfigDict, part: dict[str, Any], steps: int
    ) -> tuple[list[Any], list[Any], Any]:
        """Returns the rates, the losses before each step and after the last, and the parameters at the end."""
        rate = optim.make_schedule(
            config, data_size=part["data_size"], batch_size=part["batch_size"], total_steps=steps
        )
        rates = [rate(step) for step in range(steps)]
        losses, now, state = [], params, optimizer.init(params)
        for lr in rates:
            value, _, now, state = train_step(now, state, lr)
            losses.append(value)
        return rates, [*losses, train_step(now, state, 0.0)[0]], now

    keys = case.arrays["keys"].tolist()

    def by_key(tree: Any) -> list[np.ndarray]:
        tensors = to_torch(tree, rwsan.KEYS)
        return [np.asarray(tensors[key], np.float64) for key in keys]

    def norms(arrays: list[np.ndarray]) -> np.ndarray:
        return np.asarray([np.linalg.norm(array) for array in arrays])

    before, grads, _, _ = train_step(params, optimizer.init(params), 0.0)
    gradients, start = by_key(grads), by_key(params)
    first8 = np.zeros((len(keys), 8))
    for row, gradient in zip(first8, gradients, strict=True):
        row[: gradient.size] = gradient.ravel()[:8]

    _, (_, loss_after), stepped = trajectory(optim_config(settings["lr_base"], (), 1.0), settings, 1)
    steps = run_settings["epochs"] * (run_settings["data_size"] // run_settings["batch_size"])
    config = optim_config(run_settings["lr_base"], run_settings["lr_decay_list"], run_settings["lr_decay_r"])
    rates, losses, end = trajectory(config, run_settings, steps)
    return {
        "loss": before,
        "grad_norm": norms(gradients),
        "grad_first8": first8,
        "param_norm_before": norms(start),
        "param_norm_after_step1": norms(by_key(stepped)),
        "delta_norm_step1": norms([a - b for a, b in zip(by_key(stepped), start, strict=True)]),
        "loss_after_step1": loss_after,
        "traj_lr": np.asarray(rates),
        "traj_loss": np.asarray(losses[:-1]),
        "traj_loss_end": losses[-1],
        "traj_param_norm": norms(by_key(end)),
    }


def _has_gradient(case: Case) -> list[bool]:
    """Which parameters have a gradient that is more than rounding (spec section 9, quirk 27)."""
    skipped = case.manifest.get("rounding_only_gradients", ())
    return [key not in skipped for key in case.arrays["keys"].tolist()]


# --- text cases --------------------------------------------------------------------------------------------------------

Results = Iterator[tuple[str, Any, Any]]  # (label, ours, expected)


def _tokenise(cases: list[dict[str, Any]]) -> Results:
    for case in cases:
        yield case["question"], tokenise(case["question"]), case["tokens"]


def _vocabulary(cases: list[dict[str, Any]]) -> Results:
    for case in cases:
        vocabulary = Vocabulary.build(case["questions"])
        yield "token_to_ix", list(vocabulary.index.items()), list(case["token_to_ix"].items())
        for encoded in case["encode"]:
            ids = vocabulary.encode(encoded["question"], encoded["max_token"])
            yield encoded["question"], ids.tolist(), encoded["ids"]


def _answers(cases: list[dict[str, Any]]) -> Results:
    rules = {
        "training": normalise_answer,
        "prediction": vqa.normalise_prediction,
        "human": vqa.normalise_human,
    }
    for case, (name, rule) in itertools.product(cases, rules.items()):
        yield f"{case['raw']!r} ({name})", rule(case["raw"]), case[name]


def _answer_dictionary(cases: list[dict[str, Any]]) -> Results:
    for case in cases:
        runs = (itertools.repeat(answer, count) for answer, count in case["runs"])
        answers = AnswerList.build(itertools.chain.from_iterable(runs), min_count=9)
        yield "ans_to_ix", answers.index, case["ans_to_ix"]
        yield "ix_to_ans", {str(i): answer for i, answer in enumerate(answers.answers)}, case["ix_to_ans"]


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
        yield from ((f"question {n}", per_question.get(n), value) for n, value in case["per_question"].items())
        yield "overall", summary.overall, case["overall"]
        yield "per_answer_type", summary.by_answer_type, case["per_answer_type"]
        yield "per_question_type", summary.by_question_type, case["per_question_type"]


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
    """The length to which the original cuts a batch before the model (spec section 5), or "error" where it stops.

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
        for case in cases[part]:
            yield f"{part} {case[key]}", trimmed_length(np.asarray(case[key])), case["length"]


def _image_files(cases: list[dict[str, Any]]) -> Results:
    from tfds_builders.vqa_v2.region_files import image_id_of  # only here: it brings the builders' dependencies along

    for case in cases:
        yield case["path"], str(image_id_of(case["path"])), case["image_id"]


SECTIONS: Sections = {
    "tokenise": (_tokenise,),
    "vocabulary": (_vocabulary,),
    "answers": (_answers,),
    "answer_dictionary": (_answer_dictionary,),
    "soft_scores": (_soft_scores,),
    "vqa_accuracy": (_vqa_accuracy,),
    "schedule": (_schedule,),
    "image_files": (_image_files,),
    "image_features": (_image_features,),
    "trim": (_trim,),
}
