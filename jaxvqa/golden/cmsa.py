"""CMSA's golden cases: the model and its training (spec section 14)."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvqa import models, optim
from jaxvqa.convert import cmsa, files, to_torch
from jaxvqa.golden.parts import compare_all
from jaxvqa.golden.runner import Case, Row, through_file
from jaxvqa.golden.training import Precision, in_both, optim_config

TRAIN_OPTIONS = ("dropout", "batchnorm", "modal_alpha", "clip_norm", "optimizer", "learning_rates")
"""Options of a manifest that say how to train."""

STATISTICS = {"training mode": True, "evaluation mode": False}
"""How the manifest's option `batchnorm` begins -> whether the batch's statistics are taken."""

COUNTED = 1
"""What the recipe gives for each counter of batch normalisation."""

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
    options = {name: value for name, value in case.manifest["options"].items() if name not in TRAIN_OPTIONS}
    config = cmsa.model_config(options)
    model = models.build(config)
    inputs = _inputs(case)

    def read(path: Any) -> Any:
        if "image" in inputs:
            _, height, width, _ = inputs["image"].shape
            return cmsa.load(path, config, (height, width)).variables
        shapes = jax.eval_shape(lambda key, x: model.init(key, **_called(x)), jax.random.key(0), inputs)
        return cmsa.from_original(files.read(path, "model_state").tensors, shapes)[0]

    variables = through_file(tensors, {"epoch": 0}, read, "model_state")
    back = cmsa.to_original(variables, COUNTED)
    same = list(back) == list(tensors)
    same = same and all(back[k].dtype == v.dtype and np.array_equal(back[k], v) for k, v in tensors.items())
    sizes = {name: value for name, value in cmsa.infer_sizes(tensors).items() if name in config}
    misses = [f"{name} {value}, not {config[name]}" for name, value in sizes.items() if value != config[name]]
    yield Row(case.name, "(checkpoint and back)", same, note=f"{len(tensors)} tensors")
    yield Row(case.name, "(sizes read off)", bool(sizes) and not misses, note=", ".join(misses or sizes))
    with jax.default_matmul_precision("highest"):
        if "target" in case.inputs:
            yield from in_both(case, lambda precision: _train(model, variables, inputs, precision))
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


def _called(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the model's method that takes these inputs."""
    if "image" in inputs:
        return dict(inputs)
    rest = {name: inputs[name] for name in ("question", "organ_logits")}
    return rest | {"maps": tuple(inputs[name] for name in ("abd", "brain", "chest")), "method": "from_maps"}


def _evaluate(model: Any, variables: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    logits, out = jax.jit(lambda v, x: model.apply(v, **_called(x)))(variables, inputs)
    out = out | {"update_0": out["block_0"] - out["map"]}
    ours = {name: np.asarray(out[inside]) for name, inside in OUTPUTS.items() if inside in out}
    # Theirs have the channels second.
    ours = {name: np.moveaxis(value, -1, 1) if value.ndim > 3 else value for name, value in ours.items()}
    if model.spatial:
        ours["spatial"] = ours["cmsa_in"][0, -8:, 0]
    return ours | {"logits": logits, "logits_float64": logits}


# --- training ----------------------------------------------------------------------------------------------------------


def _optimizer_options(text: str) -> dict[str, Any]:
    """Reads a text such as "Adamax betas 0.9/0.999 eps 1e-8 weight_decay 0"."""
    name, *words = text.split()
    values = [tuple(float(x) for x in word.split("/")) for word in words[1::2]]
    return {"name": name} | {
        key: value if len(value) > 1 else value[0] for key, value in zip(words[::2], values, strict=True)
    }


def _train(model: Any, variables: Any, inputs: Mapping[str, Any], precision: Precision) -> Iterator[Row]:
    """Makes the steps that the manifest asks for, or takes one gradient."""
    case, options = precision.case, precision.case.manifest["options"]
    given = _optimizer_options(options.get("optimizer", "Adamax")) | {"clip_norm": options.get("clip_norm")}
    config, read = optim_config(given)
    if model.self_attention:
        config.lr_scale = cmsa.LR_SCALE
    yield from case.unknown_options(given, read, "options.optimizer")
    if options.get("dropout"):  # its draws cannot be repeated
        yield from case.unknown_options({"dropout": options["dropout"]}, ())
    mode = options.get("batchnorm", "training mode")
    batch_statistics = next((value for start, value in STATISTICS.items() if mode.startswith(start)), None)
    if batch_statistics is None:
        yield from case.unknown_options({"batchnorm": mode}, ())
        return
    alpha = options.get("modal_alpha", 0.5)
    model = model.copy(dropout=0.0, attention_dropout=0.0, dtype=precision.dtype)
    variables, inputs = precision.cast((dict(variables), dict(inputs)))
    target = precision.cast(case.inputs["target"])
    organ = jnp.asarray(case.inputs["organ"], jnp.int32)
    optimizer = optim.make_optimizer(config, variables["params"])

    def loss(params: Any, given: Any, statistics: Any) -> tuple[jax.Array, dict[str, Any]]:
        x = dict(inputs) | given
        (logits, out), changed = model.apply(
            {"params": params, "batch_stats": statistics}, train=batch_statistics, mutable="batch_stats", **_called(x)
        )
        bce = jnp.sum(optax.sigmoid_binary_cross_entropy(logits, target))
        ce = jnp.sum(optax.softmax_cross_entropy_with_integer_labels(out["organ_logits"], organ))
        total = (bce + alpha * ce) / len(logits)
        return total, {"loss": total, "bce": bce, "ce": ce, "logits": logits, **changed}

    @jax.jit
    def step(variables: Any, state: Any, rate: Any) -> tuple[Any, Any, Any]:
        given = {name: inputs[name] for name in ("organ_logits",) if name in inputs}
        params, statistics = variables["params"], variables["batch_stats"]
        (_, out), (grads, to_given) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, given, statistics)
        direction, state = optimizer.update(grads, state, params)
        params = jax.tree.map(lambda p, d: p - rate * d, params, direction)
        out |= {"grads": grads, "to_given": to_given, "norm": optax.tree.norm(grads)}
        return {"params": params, "batch_stats": out["batch_stats"]}, state, out

    state, reached, outs = optimizer.init(variables["params"]), [variables], []
    for rate in options.get("learning_rates") or (0.0,):
        now, state, out = step(reached[-1], state, jnp.asarray(rate, precision.dtype))
        reached.append(now)
        outs.append(out)
    yield from _compare_training(precision, reached, outs)


def _compare_training(precision: Precision, reached: list[Any], outs: list[Any]) -> Iterator[Row]:
    """Compares each result by its name: `grad_step0/KEY`, `param_final_norms`, `losses` and so on."""
    case = precision.case
    keys = case.manifest["parameters"]
    real = np.asarray([key not in case.manifest.get("zero_gradient", ()) for key in keys])
    gradients = [to_torch({"params": out["grads"]}, cmsa.KEYS) for out in outs]
    tensors = [to_torch(variables, cmsa.KEYS) for variables in reached]

    def norms(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray([np.linalg.norm(np.asarray(arrays[key], np.float64)) for key in keys])

    def each(name: str) -> np.ndarray:
        return np.asarray([out[name] for out in outs])

    losses = {
        **{"losses": each("loss"), "bce_sums": each("bce"), "ce_sums": each("ce")},
        **{"loss": each("loss")[:1], "bce_sum": each("bce")[:1], "ce_sum": each("ce")[:1]},
    }
    values = {"norms_before_clip": each("norm"), "total_norm": each("norm")[:1]}
    for name in case.expected:
        plain = name.removesuffix("_float64")
        if plain in losses:
            yield precision.loss(name, losses[plain])
        elif plain in values:
            yield precision.values(name, values[plain])
        elif plain == "grad_norms":
            yield from precision.norms(name, norms(gradients[0]), real)
        elif found := re.fullmatch(r"logits_step(\d+)", plain):
            yield precision.values(name, outs[int(found[1])]["logits"])
        elif found := re.fullmatch(r"grad_norms_step(\d+)", plain):
            step = int(found[1])
            yield from precision.norms(name, norms(gradients[step]), real, moved=step > 0)
        elif found := re.fullmatch(r"grad_modal_logits_step(\d+)", plain):
            yield precision.values(name, outs[int(found[1])]["to_given"]["organ_logits"])
        elif found := re.fullmatch(r"grad_step(\d+)/(.+)", plain):
            yield precision.values(name, gradients[int(found[1])][found[2]])
        elif found := re.fullmatch(r"(?:param|buffer)_(?:step(\d+)|final)(?:_norms|/(.+))", plain):
            at = tensors[-1 if found[1] is None else int(found[1])]
            if found[2] is None:
                yield from precision.norms(name, norms(at), real, moved=True)
            else:
                yield precision.values(name, at[found[2]])
