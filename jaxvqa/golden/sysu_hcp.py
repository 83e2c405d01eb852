"""SYSU-HCP's golden cases: every backbone, RepVGG's folded form, and the training of a small ResNeSt (spec section 14)."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvqa import losses, models, optim
from jaxvqa.convert import sysu_hcp, to_torch
from jaxvqa.golden.parts import compare_all
from jaxvqa.golden.runner import COMMENTS, Case, Row, through_file
from jaxvqa.golden.training import Precision, in_both, optim_config
from jaxvqa.models.layers.pooling import average_pool
from jaxvqa.models.towers.repvgg import fold

ZERO_LIMIT = 1e-6
"""Largest norm of a gradient that is zero but for rounding, relative to the largest gradient's."""

COUNTED = 1
"""What the recipe gives for each counter of batch normalisation."""

_BLOCK = "tower/stage_1/block_0"
INSIDE = {
    "splat_conv": f"{_BLOCK}/split/conv/__call__",
    "splat_bn0": f"{_BLOCK}/split/conv_norm/__call__",
    "splat_fc1": f"{_BLOCK}/split/reduce/__call__",
    "splat_bn1": f"{_BLOCK}/split/reduce_norm/__call__",
    "splat_fc2": f"{_BLOCK}/split/expand/__call__",
    "splat_attention": f"{_BLOCK}/split/attention",
    "splat": f"{_BLOCK}/split/__call__",
    "block": f"{_BLOCK}/__call__",
    "downsample": "tower/stage_2/block_0/shortcut/__call__",
    "avd": "tower/stage_2/block_0/split/__call__",
}
"""Name in the small ResNeSt's results -> where its collection `intermediates` has it; `avd` before its pool."""


def run(case: Case) -> Iterator[Row]:
    """Runs one case in float32, and a training case in float64 too."""
    tensors = case.checkpoint()
    config = sysu_hcp.model_config(case.manifest["model"], case.manifest["options"])
    model = models.build(config)
    loaded = through_file(tensors, {"epoch": 29, "run_id": 3}, lambda path: sysu_hcp.load(path, config))

    back = sysu_hcp.to_original(loaded.variables, config["backbone"], loaded.batches, loaded.unused)
    doubled = {t["alias_of"]: tensors[t["key"]] for t in case.manifest["tensors"] if "alias_of" in t}
    wrong = [
        key
        for key, value in (tensors | doubled).items()
        if key not in back or back[key].dtype != value.dtype or back[key].tobytes() != value.tobytes()
    ]
    counted = COUNTED if any(key.endswith("num_batches_tracked") for key in tensors) else 0
    told = (loaded.epoch, loaded.run_id, loaded.batches) == (29, 3, counted)
    same = list(back) == list(tensors) and not wrong and told
    note = f"{len(tensors)} tensors" + "".join(f", not {key}" for key in wrong[:1])
    yield Row(case.name, "(checkpoint and back)", same, note=note)

    with jax.default_matmul_precision("highest"):
        if case.manifest.get("mode") == "train" or "optimizer" in case.manifest:
            yield from _unknown(case)
            yield from in_both(case, lambda precision: _train(model, config["backbone"], loaded.variables, precision))
        else:
            variables = jax.tree.map(jnp.asarray, loaded.variables)
            yield from compare_all(case, _evaluate(case, model, config["backbone"], variables))


def _evaluate(case: Case, model: Any, backbone: str, variables: Any) -> dict[str, Any]:
    ours: dict[str, Any] = {}
    images = {name: jnp.asarray(np.moveaxis(x, 1, -1)) for name, x in case.inputs.items() if name.startswith("image")}
    for name, image in images.items():
        suffix = name.removeprefix("image")
        ours |= {f"{stage}{suffix}": value for stage, value in _stages(case, model, variables, image).items()}
    if "logits_deploy" in case.expected:
        sizes = {**model.sizes, "folded": True}
        folded = jax.jit(fold)(variables)
        ours["logits_deploy"], _ = jax.jit(model.copy(sizes=sizes).apply)(folded, image=images["image"])
        ours |= _folded(to_torch(folded, sysu_hcp.KEYS[backbone]))
    if any(name.startswith("train_logits_") for name in case.expected):
        _, out = jax.jit(lambda v, x: model.apply(v, image=x, train=True))(variables, images["image"])
        ours |= {f"train_{name}": value for name, value in out.items() if name.startswith("logits_")}
    return ours


def _stages(case: Case, model: Any, variables: Any, image: Any) -> dict[str, np.ndarray]:
    """Logits and stages by their names in the results, channels second."""
    inside = case.manifest["model"] == "resnest"
    extra: dict[str, Any] = {"capture_intermediates": True, "mutable": "intermediates"} if inside else {}
    result = jax.jit(lambda v, x: model.apply(v, image=x, **extra))(variables, image)
    (logits, out), seen = result if inside else (result, {})
    out = dict(out) | {"logits": logits}
    if inside:
        out |= {"stem_conv": out["stem"], "stem": out["pool"]}
        for name, path in INSIDE.items():
            value: Any = seen["intermediates"]
            for part in path.split("/"):
                value = value[part]
            out[name] = value[0]
        out["avd"] = jax.jit(average_pool, static_argnums=(1, 2, 3))(out["avd"], 3, 2, 1)
    return {name: np.moveaxis(np.asarray(x), -1, 1) if x.ndim == 4 else np.asarray(x) for name, x in out.items()}


def _folded(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the results hold of the folded blocks' weights and biases."""
    by_kind = {
        kind: [np.asarray(value) for key, value in tensors.items() if key.endswith(f"rbr_reparam.{kind}")]
        for kind in ("weight", "bias")
    }
    result = {
        f"deploy_{kind}_stats": np.asarray(
            [[x.mean(dtype=np.float64), x.std(dtype=np.float64), np.linalg.norm(x), x.flat[0]] for x in values]
        )
        for kind, values in by_kind.items()
    }
    first, last = by_kind["weight"][0], by_kind["weight"][-1]
    return result | {"deploy_weight_first": first.ravel()[:54], "deploy_weight_last": last[0, :6].ravel()}


# --- training ----------------------------------------------------------------------------------------------------------

KNOWN = frozenset(
    {
        *("model", "options", "tensors", "inputs", "manifest", "base", "mode", "loss", "optimizer"),
        *("parameters", "zero_gradient", "running_mean_order", "float32_error", "size", "label_smoothing", *COMMENTS),
    }
)
"""What a manifest of training may hold."""

LOSSES: Mapping[str, losses.ExampleLoss] = {
    "cross entropy": losses.cross_entropy,
    "label smoothing": losses.label_smoothing,
    "superloss": losses.superloss_of_nll,
    "label smoothing superloss": losses.label_smoothing_superloss,
}
"""How a manifest's loss begins, before its comma and `mean` or `sum` -> the loss of each example."""


def _loss(manifest: Mapping[str, Any]) -> Callable[[Any, Any], Any]:
    """The loss that a manifest states, such as "cross entropy, mean"."""
    name, _, reduction = manifest.get("loss", "cross entropy, mean").partition(", ")
    each, reduce = LOSSES[name], {"mean": jnp.mean, "sum": jnp.sum}[reduction or "mean"]
    amount = (manifest["label_smoothing"],) if "label_smoothing" in manifest else ()
    if amount and name == "cross entropy":
        each = losses.label_smoothing
    return lambda logits, target: reduce(each(logits, target, *amount))


def _unknown(case: Case) -> Iterator[Row]:
    yield from case.unknown_options(case.manifest, KNOWN, "manifest")
    options = case.manifest["optimizer"]
    yield from case.unknown_options(
        options, optim_config(options)[1] | {"lr", "steps", "same_batch_each_step"}, "optimizer"
    )
    if not options.get("same_batch_each_step", True):
        yield from case.unknown_options({"same_batch_each_step": False}, (), "optimizer")


def _train(model: Any, backbone: str, variables: Any, precision: Precision) -> Iterator[Row]:
    """Makes the steps that the manifest asks for, and compares what they give by its name: `grad_norm_1` and so on."""
    case = precision.case
    image, variables = precision.cast((np.moveaxis(case.inputs["image"], 1, -1), variables))
    target = jnp.asarray(case.inputs["target"].astype(np.int32))
    options, total = case.manifest["optimizer"], _loss(case.manifest)
    model = model.copy(dtype=precision.dtype)
    optimizer = optim.make_optimizer(optim_config(options)[0], variables["params"])

    def loss(params: Any, statistics: Any) -> tuple[jax.Array, Any]:
        (logits, _), changed = model.apply(
            {"params": params, "batch_stats": statistics}, image=image, train=True, mutable="batch_stats"
        )
        return total(logits, target), (logits, changed.get("batch_stats", statistics))

    @jax.jit
    def step(variables: Any, state: Any) -> Any:
        params = variables["params"]
        (value, (logits, statistics)), gradient = jax.value_and_grad(loss, has_aux=True)(
            params, variables.get("batch_stats", {})
        )
        updates, state = optimizer.update(gradient, state, params)
        params = jax.tree.map(lambda p, u: p - options["lr"] * u, params, updates)
        return {"params": params, "batch_stats": statistics}, state, gradient, value, logits

    keys = case.manifest["parameters"]
    zero: Any = np.asarray([key in case.manifest.get("zero_gradient", ()) for key in keys])
    table = sysu_hcp.KEYS[backbone]

    def norms(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray([np.linalg.norm(np.asarray(arrays[key], np.float64)) for key in keys])

    def as_stored(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
        # The original's parameters are float32, which rounds a small change of a large one.
        return {key: np.asarray(tensors[key], np.float32).astype(np.float64) for key in keys}

    expected, last = case.expected.keys(), options.get("steps", 1)
    state, before = optimizer.init(variables["params"]), as_stored(to_torch(variables, table))
    for k in range(1, last + 1):
        variables, state, gradient, value, logits = step(variables, state)
        gradients, after = to_torch({"params": gradient}, table), to_torch(variables, table)
        stored, found = as_stored(after), norms(gradients)
        if f"loss_{k}" in expected:
            yield precision.loss(f"loss_{k}", value.reshape(1))
        if f"logits_{k}" in expected:
            yield precision.values(f"logits_{k}", logits)
        if zero.any() and f"grad_norm_{k}" in expected:
            noise, note = float(found[zero].max() / found.max()), f"{zero.sum()} of {len(zero)}"
            name = f"(grad_norm_{k} of zero)"
            yield Row(case.name, name, noise <= ZERO_LIMIT, noise, ZERO_LIMIT, note, precision.name)
        change = {key: stored[key] - before[key] for key in keys}
        for name, each in (("grad", found), ("param", norms(after)), ("delta", norms(change))):
            if f"{name}_norm_{k}" in expected:
                yield from precision.norms(f"{name}_norm_{k}", each, ~zero, moved=k > 1 or name != "grad")
        if k == 1:
            yield from _statistics(precision, variables, after, backbone)
        # The results' parameters are those after the last step, as their norms show, though the spec says the first.
        for prefix, source, at in (("grad_", gradients, 1), ("param_", after, last)):
            for name in expected:
                if k == at and (key := name.removeprefix(prefix)) in source and key != name:
                    yield precision.values(name, source[key].ravel()[:64])
        before = stored
    if "logits_eval_after" in expected:
        logits, _ = jax.jit(model.apply)(variables, image=image)
        yield precision.values("logits_eval_after", logits)


def _statistics(precision: Precision, variables: Any, tensors: Mapping[str, Any], backbone: str) -> Iterator[Row]:
    """The running statistics after the first step, and how many batches they have seen."""
    case = precision.case
    for kind in ("mean", "var"):
        if f"running_{kind}" in case.expected:
            names = [name.removesuffix("mean") + kind for name in case.manifest["running_mean_order"]]
            yield precision.values(f"running_{kind}", np.concatenate([tensors[name] for name in names]))
    if "batches_tracked" in case.expected:
        counters = sysu_hcp.to_original(variables, backbone, COUNTED + 1)
        counted = [value for name, value in counters.items() if name.endswith("num_batches_tracked")]
        yield case.compare("batches_tracked", np.stack(counted), 0.0)
