"""CMSA's golden cases: the model and its training (docs/originals/cmsa.md, section 14)."""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvqa import models
from jaxvqa.convert import cmsa, to_torch
from jaxvqa.data import images
from jaxvqa.golden import options
from jaxvqa.golden.cases import Case, Read, Row
from jaxvqa.golden.parts import compare_all
from jaxvqa.golden.training import Named, Recorder, Run, Training, config_of, pixels, train

TRAIN_OPTIONS = ("dropout", "batchnorm", "modal_alpha", "clip_norm", "optimizer", "learning_rates")
"""Options of a manifest that say how to train."""

STATISTICS = ("training mode", "evaluation mode")
"""How the manifest's option `batchnorm` begins: whether the batch's statistics are taken, or the running ones."""

OUTPUTS = {
    "abd": "abdomen",
    "brain": "head",
    "chest": "chest",
    "modal_logits": "organ_logits",
    "v_emb": "image_map",
    "q_emb": "question",
    "cmsa_in": "map",
    "theta0": "theta_0",
    "phi0": "phi_0",
    "g0": "value_0",
    "W0": "update_0",
    "cmsa0": "block_0",
    "cmsa1_in": "map_1",
    "cmsa1": "block_1",
    "pooled": "pooled",
    "fc": "read",
    "features": "fused",
}
"""Name in a case's results -> the model's intermediate."""

SLICES = {
    **dict.fromkeys(("abd", "brain", "chest"), np.s_[:, ::32, ::3, ::3]),
    **dict.fromkeys(("cmsa0", "cmsa1"), np.s_[:, ::48, ::3, ::3, ::3]),
}
"""Outputs of which large cases store a part, and statistics."""


def run(case: Case) -> Iterator[Row]:
    """Runs one case in float32, and a training case in float64 too."""
    tensors = case.checkpoint()
    stated = {name: value for name, value in case.manifest["options"].items() if name not in TRAIN_OPTIONS}
    config = options.cmsa(stated)
    model = models.build(config)
    inputs = _inputs(case)
    called, method = _called(inputs)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), called)
    how = dataclasses.replace(cmsa.ORIGINAL, call=method)
    loaded = case.through_file(tensors, {"epoch": 0}, lambda path: how.load(path, config, shapes), "model_state")
    variables = loaded.variables
    yield case.back_again(tensors, how.to_original(loaded))
    yield case.sizes_read_off(cmsa.infer_sizes(tensors), config)
    with jax.default_matmul_precision("highest"):
        if "target" in case.inputs:
            optimizer = _optimizer_options(case.manifest["options"])
            make = partial(_training, case, config, variables, inputs, optimizer)
            yield from train(case, make, partial(_named, case))
            yield from case.unknown(optimizer, optimizer.asked, "options.optimizer")
            yield from case.unknown(_not_repeated(case.manifest["options"]), (), "options")
        else:
            variables, inputs = jax.tree.map(jnp.asarray, (dict(variables), inputs))
            yield from compare_all(case, _evaluate(model, variables, inputs), SLICES)


def _inputs(case: Case) -> dict[str, Any]:
    """The model's inputs: an image, or the maps and logits that the image's side would have given; and the question."""
    given = {"question": case.inputs["question"].astype(np.int32)}
    if "image" in case.inputs:
        return given | {"image": np.moveaxis(case.inputs["image"], 1, -1)}
    given |= {name: np.moveaxis(case.inputs[name], 1, -1) for name in ("abd", "brain", "chest")}
    return given | {"organ_logits": case.inputs["modal_logits"]}


def _called(inputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of the model's method that takes these inputs, and which method that is."""
    if "image" in inputs:
        return dict(inputs), {}
    rest = {name: inputs[name] for name in ("question", "organ_logits")}
    return rest | {"maps": tuple(inputs[name] for name in ("abd", "brain", "chest"))}, {"method": "from_maps"}


def _evaluate(model: Any, variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    called, method = _called(inputs)
    logits, out = jax.jit(lambda v, x: model.apply(v, **x, **method))(variables, called)
    out = out | {"update_0": out["block_0"] - out["map"]}
    ours = {name: np.asarray(out[inside]) for name, inside in OUTPUTS.items() if inside in out}
    # Theirs have the channels second.
    ours = {name: np.moveaxis(value, -1, 1) if value.ndim > 3 else value for name, value in ours.items()}
    if model.spatial:
        ours["spatial"] = ours["cmsa_in"][0, -8:, 0]
    return ours | {"logits": logits, "logits_float64": logits}


# --- training ----------------------------------------------------------------------------------------------------------


class EvaluatedRecorder(Recorder):
    """A model whose batch normalisation is that of evaluation, as in some cases, though the task trains."""

    train = False


class FromMaps(Recorder):
    """A model without its images' side, whose maps and logits are the case's: a collection `given` of the variables.

    So the task, which has no such input, passes them through, and their gradient can be taken.
    """

    def apply(self, variables: Any, **options: Any) -> Any:
        """What the model gives without the image."""
        given = variables["given"] | {"question": options.pop("question")}
        del options["image"]
        called, method = _called(given)
        options |= called | method
        return super().apply({k: v for k, v in variables.items() if k != "given"}, **options)


def _optimizer_options(options: Mapping[str, Any]) -> Read:
    """Reads a text such as "Adamax betas 0.9/0.999 eps 1e-8 weight_decay 0", and the clipping beside it."""
    name, *words = options.get("optimizer", "Adamax").split()
    values = [tuple(float(x) for x in word.split("/")) for word in words[1::2]]
    given = {key: value if len(value) > 1 else value[0] for key, value in zip(words[::2], values, strict=True)}
    return Read({"name": name, "clip_norm": options.get("clip_norm"), **given})


def _not_repeated(options: Mapping[str, Any]) -> dict[str, Any]:
    """What cannot be computed again: the draws of dropout, and unknown forms of batch normalisation."""
    mode = options.get("batchnorm", STATISTICS[0])
    return {name: options[name] for name in ("dropout",) if options.get(name)} | (
        {} if mode.startswith(STATISTICS) else {"batchnorm": mode}
    )


def _training(
    case: Case, model: Mapping[str, Any], variables: Mapping[str, Any], inputs: Mapping[str, Any], optimizer: Read
) -> Training:
    options = case.manifest["options"]
    evaluated = options.get("batchnorm", "").startswith(STATISTICS[1])
    config = config_of("cmsa", dict(model) | {"dropout": 0.0, "attention_dropout": 0.0}, optimizer)
    config.loss.organ = options.get("modal_alpha", 0.5)
    if model["self_attention"]:
        config.optim.lr_scale = cmsa.LR_SCALE
    batch = {"answer_scores": case.inputs["target"], "organ": case.inputs["organ"].astype(np.int32)}
    batch["question"] = inputs["question"]
    if "image" in inputs:
        batch["image"] = pixels(case.inputs["image"], images.IMAGENET_MEAN, images.IMAGENET_STD)
    else:
        batch["image"] = np.zeros((len(batch["question"]), 1, 1, 3), np.uint8)  # the task reads one
        variables = dict(variables) | {"given": {name: value for name, value in inputs.items() if name != "question"}}
    return Training(
        config,
        batch,
        variables,
        lambda variables: to_torch({k: v for k, v in variables.items() if k != "given"}, cmsa.KEYS),
        case.manifest.get("parameters", ()),
        skipped=case.manifest.get("zero_gradient", ()),
        recorder=(EvaluatedRecorder if evaluated else Recorder) if "image" in inputs else FromMaps,
    )


def _named(case: Case, run: Run) -> Named:
    steps = run.follow(case.manifest["options"].get("learning_rates") or (0.0,))
    numbers = {
        "bce_sum": np.asarray([step.metrics["answer_loss"][0] for step in steps]),
        "ce_sum": np.asarray([step.metrics["organ_loss"][0] for step in steps]),
        "loss": np.asarray([step.loss for step in steps]),
    }
    norms = np.asarray([step.metrics["gradient_norm"][0] for step in steps])
    named: Named = {name: ("loss", value[:1]) for name, value in numbers.items()}
    named |= {"losses" if name == "loss" else f"{name}s": ("loss", value) for name, value in numbers.items()}
    named |= {"norms_before_clip": ("values", norms), "total_norm": ("values", norms[:1])}
    named["grad_norms"] = ("gradients", partial(run.norms, steps[0].gradients))
    for k, step in enumerate(steps):
        named[f"logits_step{k}"] = ("values", step.output)
        named[f"grad_norms_step{k}"] = ("moved gradients" if k else "gradients", partial(run.norms, step.gradients))
        named[f"grad_modal_logits_step{k}"] = ("values", partial(_to_given, run, step.state))
        named |= {f"grad_step{k}/{key}": ("values", value) for key, value in step.gradients.items()}
    reached = {f"step{k}": step.before for k, step in enumerate(steps)}
    for name, tensors in (reached | {f"step{len(steps)}": steps[-1].after, "final": steps[-1].after}).items():
        named[f"param_{name}_norms"] = ("moved", partial(run.norms, tensors))
        named |= {f"{kind}_{name}/{key}": ("values", x) for kind in ("param", "buffer") for key, x in tensors.items()}
    return named


def _to_given(run: Run, state: Any) -> Any:
    """The gradient of the batch's mean loss with respect to the organs' logits that the case gives."""

    @jax.jit
    def gradient(collections: Any) -> Any:
        def loss(logits: Any) -> Any:
            given = collections | {"given": collections["given"] | {"organ_logits": logits}}
            return run.task.loss(state.params, given, run.batch, {}, train=True)[0] / len(logits)

        return jax.grad(loss)(collections["given"]["organ_logits"])

    return gradient(state.collections)
