"""SYSU-HCP's golden cases: every backbone, RepVGG's folded form, and the training of a small ResNeSt.

docs/originals/sysu_hcp.md, section 14.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvqa import models
from jaxvqa.convert import sysu_hcp, to_torch
from jaxvqa.data import images
from jaxvqa.golden import options
from jaxvqa.golden.cases import COUNTED, Case, Row
from jaxvqa.golden.parts import compare_all
from jaxvqa.golden.training import Named, Run, Training, config_of, pixels, train
from jaxvqa.models.layers.pooling import average_pool
from jaxvqa.models.towers.repvgg import fold

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
    config = options.sysu_hcp(case.manifest["model"], case.manifest["options"])
    model = models.build(config)
    loaded = case.through_file(tensors, {"epoch": 29, "run_id": 3}, lambda path: sysu_hcp.ORIGINAL.load(path, config))

    counted = {"batches": COUNTED} if any(key.endswith("num_batches_tracked") for key in tensors) else {}
    row = case.back_again(tensors, sysu_hcp.ORIGINAL.to_original(loaded))
    read = loaded.entries == {"epoch": 29, "run_id": 3} | counted
    yield row if read else dataclasses.replace(row, passed=False, note="epoch, run or counters are others")

    with jax.default_matmul_precision("highest"):
        if case.manifest.get("mode") == "train" or "optimizer" in case.manifest:
            make = partial(_training, case, config, loaded.variables)
            yield from train(case, make, partial(_named, case, config["backbone"]))
            if not case.manifest.get("optimizer", {}).get("same_batch_each_step", True):
                yield from case.unknown({"same_batch_each_step": False}, (), "optimizer")
            yield from case.unread("manifest", "optimizer")
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

LOSSES: Mapping[str, tuple[bool, bool]] = {
    "cross entropy": (False, False),
    "label smoothing": (True, False),
    "superloss": (False, True),
    "label smoothing superloss": (True, True),
}
"""How a manifest's loss begins, before its comma and `mean` or `sum` -> (label_smooth, superloss) of `config.loss`."""


def _training(case: Case, model: Mapping[str, Any], variables: Any) -> Training:
    name, _, reduction = case.manifest.get("loss", "cross entropy, mean").partition(", ")
    smooth, superloss = LOSSES[name]
    loss = {"mixup": False, "label_smooth": smooth, "superloss": superloss, "flags": "each"}
    if "label_smoothing" in case.manifest:  # its amount; of a loss that has none else, too
        loss |= {"label_smooth": True, "smoothing": case.manifest["label_smoothing"]}
    optimizer = case.manifest.get("optimizer", {})
    config = config_of("sysu_hcp", model, optimizer, "SGD", optim__loss=reduction or "mean")
    config.loss.update(loss)
    image = pixels(case.inputs["image"], images.IMAGENET_MEAN, images.IMAGENET_STD)
    return Training(
        config,
        {"image": image, "answer_class": case.inputs["target"].astype(np.int32)},
        variables,
        lambda variables: to_torch(variables, sysu_hcp.KEYS[model["backbone"]]),
        case.manifest.get("parameters", ()),
        case.manifest.get("zero_gradient", ()),
    )


def _named(case: Case, backbone: str, run: Run) -> Named:
    options = case.manifest.get("optimizer", {})
    steps = run.follow([options.get("lr", 0.0)] * options.get("steps", 1))
    first, last = steps[0], steps[-1]
    named: Named = {}
    for k, step in enumerate(steps, start=1):
        named |= {
            f"loss_{k}": ("loss", step.loss),
            f"logits_{k}": ("values", step.output),
            f"grad_norm_{k}": ("gradients" if k == 1 else "moved gradients", partial(run.norms, step.gradients)),
            f"param_norm_{k}": ("moved", partial(run.norms, step.after)),
            f"delta_norm_{k}": ("moved", partial(run.change, step)),
        }
    # The results' parameters are those after the last step, as their norms show.
    named |= {f"grad_{key}": ("values", x.ravel()[:64]) for key, x in first.gradients.items()}
    named |= {f"param_{key}": ("values", x.ravel()[:64]) for key, x in last.after.items()}
    for kind in ("mean", "var"):
        names = [name.removesuffix("mean") + kind for name in case.manifest.get("running_mean_order", ())]
        named[f"running_{kind}"] = ("values", partial(_joined, first.after, names))
    named["batches_tracked"] = ("loss", lambda: _counters(run.variables_of(run.end), backbone))
    named["logits_eval_after"] = ("values", partial(_logits_after, run))
    return named


def _joined(tensors: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    return np.concatenate([tensors[name] for name in names])


def _counters(variables: Any, backbone: str) -> np.ndarray:
    """How many batches the running statistics have seen after one step."""
    tensors = sysu_hcp.layout({"backbone": backbone}).write(variables, COUNTED + 1)
    return np.stack([value for name, value in tensors.items() if name.endswith("num_batches_tracked")])


def _logits_after(run: Run) -> Any:
    """The logits of evaluation with the parameters at the end."""
    return jax.jit(run.task.predictions["logits"].function)(run.end.params, run.end.collections, run.batch)["logits"]
