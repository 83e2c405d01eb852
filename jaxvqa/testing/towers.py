"""Golden cases of the language and image towers: GPT-2, BERT and CLIP (Flamingo spec, section 22)."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvqa.convert import towers
from jaxvqa.testing.golden import Case, Row, through_file

LIMIT = 1e-4
"""Largest relative difference of an output."""

KINDS = {
    "GPT2LMHeadModel": "gpt2",
    "BertModel": "bert",
    "CLIPVisionModelWithProjection": "clip_vision",
    "VisionTransformer (CLIP, original key names)": "clip_vision",
}
"""A manifest's `model` -> the tower."""

OPENAI_OPTIONS = {
    "patch_size": "patch",
    "width": "width",
    "layers": "depth",
    "heads": "heads",
    "output_dim": "features",
}
"""OpenAI's option -> field of the vision tower; the size of its images follows from the positions."""


def run(case: Case) -> list[Row]:
    """Runs one case in float32."""
    tensors, options = case.checkpoint(), case.manifest["options"]
    kind = KINDS[case.manifest["model"]]
    if "input_resolution" in options:
        fields = {field: options[name] for name, field in OPENAI_OPTIONS.items()}
    else:
        fields = towers.module_fields(kind, options)
    # What no file tells: the recipe draws two tables for GPT-2's tied one, of which the original takes the last.
    fields = {"gpt2": {"lm_head": "output"}, "clip_vision": {"activation": "quick_gelu"}}.get(kind, {}) | fields
    found = through_file(tensors, None, lambda path: towers.load(kind, path, **fields))
    rows = [back_again(case, tensors, found.layout.write(found.params, prefixed=found.prefixed))]
    module = towers.TOWERS[kind].module(**found.fields)
    params = jax.tree.map(jnp.asarray, found.params)

    @jax.jit
    def call(*inputs: Any) -> Any:
        return module.apply({"params": params}, *inputs)

    with jax.default_matmul_precision("highest"):
        ours = OUTPUTS[kind](case, call, module.depth)
    return rows + list(compare_all(case, ours))


def back_again(case: Case, tensors: Mapping[str, np.ndarray], back: Mapping[str, np.ndarray]) -> Row:
    """Whether writing gives the checkpoint that was read: keys, order, bits; of several names of one, the last one's value."""
    last = {key: tensors[group[-1]] for group in case.manifest.get("tied", ()) for key in group}
    wrong = [
        key for key, value in (dict(tensors) | last).items() if key not in back or not np.array_equal(back[key], value)
    ]
    note = f"{len(tensors)} tensors" + "".join(f", not {key}" for key in wrong[:1])
    return Row(case.name, "(checkpoint and back)", list(back) == list(tensors) and not wrong, note=note)


def compare_all(case: Case, ours: Mapping[str, Any]) -> Iterator[Row]:
    """Compares each result that ours have, whole or in part: `…_slice` its leading entries, `…_summary` four numbers of it."""
    for name, expected in case.expected.items():
        whole, _, part = name.rpartition("_")
        if name in ours:
            yield case.compare(name, ours[name], LIMIT)
        elif part == "slice" and whole in ours:
            leading = tuple(slice(size) for size in expected.shape)
            yield case.compare(name, np.asarray(ours[whole])[leading], LIMIT)
        elif part in ("summary", "summaries") and (whole in ours or f"{whole}_0" in ours):
            several = [np.asarray(v) for n, v in ours.items() if n.removeprefix(f"{whole}_").isdigit()]
            value = np.stack([summary(v) for v in several]) if part == "summaries" else summary(ours[whole])
            yield case.compare(name, value, LIMIT)


def summary(x: Any) -> np.ndarray:
    """Mean, standard deviation, largest magnitude and root mean square."""
    x = np.asarray(x, np.float64)
    return np.asarray([x.mean(), x.std(), np.abs(x).max(), np.sqrt(np.square(x).mean())])


def _hidden(out: Mapping[str, Any], depth: int) -> dict[str, Any]:
    states = [out["embedded"], *(out[f"block_{i}"] for i in range(depth))]
    return {f"hidden_{i}": state for i, state in enumerate(states)}


def _gpt2(case: Case, call: Any, depth: int) -> dict[str, Any]:
    ids = jnp.asarray(case.inputs["ids"], jnp.int32)
    logits, out = call(ids)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:])
    # The last hidden state is the normalised one.
    ours = {"logits": logits, "loss": losses.mean()} | _hidden(out | {f"block_{depth - 1}": out["normed"]}, depth)
    ours |= {"last_logits": logits[:, -1], "last_argmax": jnp.argmax(logits, -1), "hidden": out["normed"]}
    if "mask" in case.inputs:
        mask = jnp.asarray(case.inputs["mask"], jnp.bool_)
        masked, _ = call(ids, mask)
        ours["masked_logits"] = np.where(mask[..., None], masked, case.expected["masked_logits"])
    return ours


def _bert(case: Case, call: Any, depth: int) -> dict[str, Any]:
    ids, types = (jnp.asarray(case.inputs[name], jnp.int32) for name in ("ids", "token_type_ids"))
    last, out = call(ids, jnp.asarray(case.inputs["mask"], jnp.bool_), types)
    unmasked, _ = call(ids)
    return {"pooled": out["pooled"], "last": last, "unmasked_last": unmasked} | _hidden(out, depth)


def _clip_vision(case: Case, call: Any, depth: int) -> dict[str, Any]:
    result, out = call(jnp.asarray(np.moveaxis(case.inputs["images"], 1, -1)))
    maps = jnp.stack([out[f"attention_{i}"].mean(1) for i in range(depth)], axis=1)
    ours = {"out": result, "tokens": out["tokens"], "attn": maps, "attn_cls": maps[:, :, 0]}
    ours |= {"image_embeds": result, "pooled": out["pooled"], "last": out["tokens"]}
    return ours | _hidden(out, depth)


OUTPUTS = {"gpt2": _gpt2, "bert": _bert, "clip_vision": _clip_vision}
