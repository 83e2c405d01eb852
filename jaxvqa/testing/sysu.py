"""SYSU-HCP's golden cases: every backbone, RepVGG's folded form, and the training of a small ResNeSt (spec section 14)."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvqa import models
from jaxvqa.convert import sysu, to_torch
from jaxvqa.models.layers.pooling import average_pool
from jaxvqa.models.towers.repvgg import fold
from jaxvqa.testing.golden import Case, Row, through_file

LIMIT = 1e-4
"""Largest relative difference of an output (spec section 14)."""

SECOND_STEP_LIMIT = 1e-3
"""The same of what the second training step gives: in between, a rectifier's input may cross zero."""

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


def run(case: Case) -> list[Row]:
    """Runs one case in float32."""
    tensors = case.checkpoint()
    config = sysu.model_config(case.manifest["model"], case.manifest["options"])
    model = models.build(config)
    loaded = through_file(tensors, {"epoch": 29, "run_id": 3}, lambda path: sysu.load(path, config))

    back = sysu.to_original(loaded.variables, config["backbone"], loaded.batches, loaded.unused)
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
    rows = [Row(case.name, "(checkpoint and back)", same, note=note)]

    variables = jax.tree.map(jnp.asarray, loaded.variables)
    with jax.default_matmul_precision("highest"):
        if case.manifest.get("mode") == "train":
            return rows + list(_train(case, model, config["backbone"], variables))
        return rows + list(_evaluate(case, model, config["backbone"], variables))


def _evaluate(case: Case, model: Any, backbone: str, variables: Any) -> Iterator[Row]:
    ours: dict[str, Any] = {}
    images = {name: jnp.asarray(np.moveaxis(value, 1, -1)) for name, value in case.inputs.items()}
    for name, image in images.items():
        suffix = name.removeprefix("image")
        ours |= {f"{stage}{suffix}": value for stage, value in _stages(case, model, variables, image).items()}
    if "logits_deploy" in case.expected:
        sizes = {**model.sizes, "folded": True}
        folded = jax.jit(fold)(variables)
        ours["logits_deploy"], _ = jax.jit(model.copy(sizes=sizes).apply)(folded, images["image"])
        ours |= _folded(to_torch(folded, sysu.KEYS[backbone]))
    if "train_logits_1" in case.expected:
        _, out = jax.jit(lambda v, x: model.apply(v, x, train=True))(variables, images["image"])
        ours |= {f"train_{name}": value for name, value in out.items() if name.startswith("logits_")}
    for name in case.expected:
        whole, _, part = name.rpartition("_")
        if name in ours:
            yield case.compare(name, ours[name], LIMIT)
        elif whole in ours and part in PARTS:
            yield case.compare(name, PARTS[part](ours[whole]), LIMIT)


PARTS: Mapping[str, Any] = {
    "stats": lambda x: np.asarray([x.mean(dtype=np.float64), x.std(dtype=np.float64), x.min(), x.max()]),
    "tl": lambda x: x[:, :4, :3, :3],
    "br": lambda x: x[:, -4:, -3:, -3:],
    "first": lambda x: x.reshape(len(x), -1)[:, :16],
}
"""Last part of a result's name -> what of a stage's output it holds."""


def _stages(case: Case, model: Any, variables: Any, image: Any) -> dict[str, np.ndarray]:
    """Logits and stages by their names in the results, channels second."""
    inside = case.manifest["model"] == "resnest"
    extra: dict[str, Any] = {"capture_intermediates": True, "mutable": "intermediates"} if inside else {}
    result = jax.jit(lambda v, x: model.apply(v, x, **extra))(variables, image)
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


def _train(case: Case, model: Any, backbone: str, variables: Any) -> Iterator[Row]:
    """Makes the steps that the manifest asks for, and compares what they give by its name: `grad_norm_1` and so on."""
    image = jnp.asarray(np.moveaxis(case.inputs["image"], 1, -1))
    target = jnp.asarray(case.inputs["target"].astype(np.int32))
    options = case.manifest["optimizer"]
    optimizer = optax.chain(
        optax.add_decayed_weights(options["weight_decay"]),
        optax.sgd(options["lr"], options["momentum"], options["nesterov"]),
    )

    def loss(params: Any, statistics: Any) -> tuple[jax.Array, Any]:
        (logits, _), changed = model.apply(
            {"params": params, "batch_stats": statistics}, image, train=True, mutable="batch_stats"
        )
        value = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, target))
        return value, (logits, changed["batch_stats"])

    @jax.jit
    def step(variables: Any, state: Any) -> Any:
        params = variables["params"]
        (value, (logits, statistics)), gradient = jax.value_and_grad(loss, has_aux=True)(
            params, variables["batch_stats"]
        )
        updates, state = optimizer.update(gradient, state, params)
        return (
            {"params": optax.apply_updates(params, updates), "batch_stats": statistics},
            state,
            gradient,
            value,
            logits,
        )

    keys = case.manifest["parameters"]
    zero = np.asarray([key in case.manifest["zero_gradient"] for key in keys])
    table = sysu.KEYS[backbone]

    def norms(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray([np.linalg.norm(np.asarray(arrays[key], np.float64)) for key in keys])

    state, before = optimizer.init(variables["params"]), to_torch(variables, table)
    for k in range(1, options["steps"] + 1):
        variables, state, gradient, value, logits = step(variables, state)
        gradients, after = to_torch({"params": gradient}, table), to_torch(variables, table)
        limit = LIMIT if k == 1 else SECOND_STEP_LIMIT
        yield case.compare(f"loss_{k}", value.reshape(1), limit)
        yield case.compare(f"logits_{k}", logits, limit)
        found = norms(gradients)
        noise = float(found[zero].max() / found.max())
        yield Row(
            case.name,
            f"(grad_norm_{k} of zero)",
            noise <= ZERO_LIMIT,
            noise,
            ZERO_LIMIT,
            f"{zero.sum()} of {len(zero)}",
        )
        change = {key: after[key] - before[key] for key in keys}
        for name, value in (("grad", found), ("param", norms(after)), ("delta", norms(change))):
            # In the first step each parameter's norm by itself; in the second the smallest ones differ by more.
            yield case.compare(f"{name}_norm_{k}", value, limit, entrywise=k == 1, only=~zero)
        if k == 1:
            for kind in ("mean", "var"):
                names = [name.removesuffix("mean") + kind for name in case.manifest["running_mean_order"]]
                yield case.compare(f"running_{kind}", np.concatenate([after[name] for name in names]), limit)
            counters = sysu.to_original(variables, backbone, COUNTED + 1)
            counted = [value for name, value in counters.items() if name.endswith("num_batches_tracked")]
            yield case.compare("batches_tracked", np.stack(counted), 0.0)
        # The results' parameters are those after the last step, as their norms show, though the spec says the first.
        for prefix, source, at in (("grad_", gradients, 1), ("param_", after, options["steps"])):
            for name in case.expected:
                if k == at and (key := name.removeprefix(prefix)) in source and key != name:
                    yield case.compare(name, source[key].ravel()[:64], limit)
        before = after
    logits, _ = jax.jit(model.apply)(variables, image)
    yield case.compare("logits_eval_after", logits, SECOND_STEP_LIMIT)
