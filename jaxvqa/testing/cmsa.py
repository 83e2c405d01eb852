"""CMSA's golden cases: the model and its training (spec section 14)."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from jaxvqa import models, optim
from jaxvqa.convert import cmsa, files, to_torch
from jaxvqa.testing.golden import Case, Row, through_file

LIMIT = 1e-4
"""Largest relative difference of an output (spec section 14)."""

NORM_LIMIT = 1e-3
"""Largest relative difference of the norm of a parameter or of its gradient."""

TRAIN_OPTIONS = ("dropout", "batchnorm", "modal_alpha", "clip_norm", "optimizer", "learning_rates")
"""Options of a manifest that say how to train."""

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


def run(case: Case) -> list[Row]:
    """Runs one case in float32."""
    tensors = case.checkpoint()
    options = {name: value for name, value in case.manifest["options"].items() if name not in TRAIN_OPTIONS}
    config = cmsa.model_config(options)
    model = models.build(config)
    inputs = {name: jnp.asarray(value) for name, value in _inputs(case).items()}

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
    rows = [
        Row(case.name, "(checkpoint and back)", same, note=f"{len(tensors)} tensors"),
        Row(case.name, "(sizes read off)", bool(sizes) and not misses, note=", ".join(misses or sizes)),
    ]
    variables = jax.tree.map(jnp.asarray, variables)
    with jax.default_matmul_precision("highest"):
        if "target" in case.inputs:
            return rows + _train(case, model, variables, inputs)
        return rows + _evaluate(case, model, variables, inputs)


def _inputs(case: Case) -> dict[str, np.ndarray]:
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


def _evaluate(case: Case, model: Any, variables: Any, inputs: Mapping[str, Any]) -> list[Row]:
    logits, out = jax.jit(lambda v, x: model.apply(v, **_called(x)))(variables, inputs)
    out = out | {"update_0": out["block_0"] - out["map"]}
    ours = {name: np.asarray(out[inside]) for name, inside in OUTPUTS.items() if inside in out}
    # Theirs have the channels second.
    ours = {name: np.moveaxis(value, -1, 1) if value.ndim > 3 else value for name, value in ours.items()}
    if model.spatial:
        ours["spatial"] = ours["cmsa_in"][0, -8:, 0]
    ours |= {f"{name}_slice": ours[name][part] for name, part in SLICES.items() if name in ours}
    ours |= {f"{name}_stats": _statistics(ours[name]) for name in SLICES if name in ours}
    ours |= {"logits": logits, "logits_float64": logits}
    return [case.compare(name, ours[name], LIMIT) for name in case.expected if name in ours]


def _statistics(values: np.ndarray) -> np.ndarray:
    """Mean, standard deviation, minimum, maximum, and the first 12 values."""
    moments = [values.mean(dtype=np.float64), values.std(dtype=np.float64), values.min(), values.max()]
    return np.asarray([*moments, *values.ravel()[:12]])


# --- training ----------------------------------------------------------------------------------------------------------


def _train(case: Case, model: Any, variables: Any, inputs: Mapping[str, Any]) -> list[Row]:
    """Makes the steps that the manifest asks for, or takes one gradient.

    A case that holds the original's results in float64 has these rows once more, computed in float64: they tell a wrong
    formula from rounding, which differs between processors.
    """
    rows = _train_once(case, model, variables, inputs)
    if "loss_float64" in case.expected:
        with jax.enable_x64(True):
            wide = jax.tree.map(_float64, (dict(variables), dict(inputs)))
            again = _train_once(case, model.copy(dtype=jnp.float64), *wide)
        rows += [replace(row, output=f"{row.output}, ours too") for row in again if row.output.endswith("_float64")]
    return rows


def _train_once(case: Case, model: Any, variables: Any, inputs: Mapping[str, Any]) -> list[Row]:
    options = case.manifest["options"]
    rates = options.get("learning_rates", ())
    batch_statistics = options["batchnorm"].startswith("training")
    model = model.copy(dropout=options["dropout"], attention_dropout=options["dropout"])
    target, organ = jnp.asarray(case.inputs["target"]), jnp.asarray(case.inputs["organ"])
    kept = {"name": "adamax", "b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip_norm": options.get("clip_norm", 0.0)}
    kept |= {"decay": (), "lr_scale": cmsa.LR_SCALE if model.self_attention else (), "freeze": ()}
    optimizer = optim.make_optimizer(ml_collections.ConfigDict(kept), variables["params"])

    def loss(params: Any, given: Any, statistics: Any) -> tuple[jax.Array, dict[str, Any]]:
        x = dict(inputs) | given
        (logits, out), changed = model.apply(
            {"params": params, "batch_stats": statistics}, train=batch_statistics, mutable="batch_stats", **_called(x)
        )
        bce = jnp.sum(optax.sigmoid_binary_cross_entropy(logits, target))
        ce = jnp.sum(optax.softmax_cross_entropy_with_integer_labels(out["organ_logits"], organ))
        total = (bce + options["modal_alpha"] * ce) / len(logits)
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
    for rate in rates or (0.0,):
        now, state, out = step(reached[-1], state, rate)
        reached.append(now)
        outs.append(out)
    return list(_compare_training(case, reached, outs))


def _float64(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    return x.astype(jnp.float64) if x.dtype == jnp.float32 else x


def _compare_training(case: Case, reached: list[Any], outs: list[Any]) -> Iterator[Row]:
    """Compares each result by its name: `grad_step0/KEY`, `param_final_norms`, `losses` and so on."""
    keys = case.manifest["parameters"]
    real = np.asarray([key not in case.manifest["zero_gradient"] for key in keys])
    gradients = [to_torch({"params": out["grads"]}, cmsa.KEYS) for out in outs]
    tensors = [to_torch(variables, cmsa.KEYS) for variables in reached]

    def norms(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray([np.linalg.norm(np.asarray(arrays[key], np.float64)) for key in keys])

    def each(name: str) -> np.ndarray:
        return np.asarray([out[name] for out in outs])

    plain = {
        **{"losses": each("loss"), "bce_sums": each("bce"), "ce_sums": each("ce"), "norms_before_clip": each("norm")},
        **{"loss": each("loss")[:1], "bce_sum": each("bce")[:1], "ce_sum": each("ce")[:1]},
        **{"loss_float64": each("loss")[:1], "total_norm": each("norm")[:1]},
    }
    for name in case.expected:
        if name in plain:
            yield case.compare(name, plain[name], LIMIT)
        elif name in ("grad_norms", "grad_norms_float64"):
            yield case.compare(name, norms(gradients[0]), NORM_LIMIT, entrywise=True, only=real)
        elif found := re.fullmatch(r"logits_step(\d+)", name):
            yield case.compare(name, outs[int(found[1])]["logits"], LIMIT)
        elif found := re.fullmatch(r"grad_norms_step(\d+)", name):
            yield case.compare(name, norms(gradients[int(found[1])]), NORM_LIMIT, entrywise=True, only=real)
        elif found := re.fullmatch(r"grad_modal_logits_step(\d+)", name):
            yield case.compare(name, outs[int(found[1])]["to_given"]["organ_logits"], LIMIT)
        elif found := re.fullmatch(r"grad_step(\d+)/(.+)", name):
            yield case.compare(name, gradients[int(found[1])][found[2]], LIMIT)
        elif found := re.fullmatch(r"(?:param|buffer)_(?:step(\d+)|final)(?:_norms|/(.+))", name):
            at = tensors[-1 if found[1] is None else int(found[1])]
            if found[2] is None:
                yield case.compare(name, norms(at), NORM_LIMIT, entrywise=True, only=real)
            else:
                yield case.compare(name, at[found[2]], LIMIT)
