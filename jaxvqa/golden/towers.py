"""Golden cases of the language and image towers: GPT-2, BERT and CLIP (docs/originals/flamingo.md, section 22)."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvqa.convert import towers
from jaxvqa.golden.cases import Case, Row
from jaxvqa.golden.parts import compare_all

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


def run(case: Case) -> Iterator[Row]:
    """Runs one case in float32."""
    tensors, options = case.checkpoint(), case.manifest["options"]
    kind = KINDS[case.manifest["model"]]
    if "input_resolution" in options:
        fields = {field: options[name] for name, field in OPENAI_OPTIONS.items()}
    else:
        fields = towers.TOWERS[kind].from_json(options)
    # What no file says: the recipe draws two tables for GPT-2's tied one, of which the original takes the last.
    fields = {"gpt2": {"lm_head": "output"}, "clip_vision": {"activation": "quick_gelu"}}.get(kind, {}) | fields
    found = case.through_file(tensors, None, lambda path: towers.TOWERS[kind].load(path, **fields))
    yield case.back_again(tensors, towers.TOWERS[kind].original.to_original(found))
    module = towers.TOWERS[kind].module(**found.config)
    params = jax.tree.map(jnp.asarray, found.params)

    @jax.jit
    def call(*inputs: Any) -> Any:
        return module.apply({"params": params}, *inputs)

    with jax.default_matmul_precision("highest"):
        ours = OUTPUTS[kind](case, call, module.depth)
    yield from compare_all(case, ours)


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
    if "masked_logits" in case.expected:
        mask = jnp.asarray(case.inputs["mask"], jnp.bool_)
        masked, _ = call(ids, mask)
        ours["masked_logits"] = np.where(mask[..., None], masked, case.expected["masked_logits"])
    return ours


def _bert(case: Case, call: Any, depth: int) -> dict[str, Any]:
    ids = jnp.asarray(case.inputs["ids"], jnp.int32)
    types = jnp.asarray(case.inputs.get("token_type_ids", np.zeros_like(ids)), jnp.int32)
    last, out = call(ids, jnp.asarray(case.inputs.get("mask", np.ones_like(ids)), jnp.bool_), types)
    unmasked, _ = call(ids)
    ours = {"last": last, "unmasked_last": unmasked} | _hidden(out, depth)
    return ours | ({"pooled": out["pooled"]} if "pooled" in out else {})


def _clip_vision(case: Case, call: Any, depth: int) -> dict[str, Any]:
    result, out = call(jnp.asarray(np.moveaxis(case.inputs["images"], 1, -1)))
    maps = jnp.stack([out[f"attention_{i}"].mean(1) for i in range(depth)], axis=1)
    ours = {"out": result, "tokens": out["tokens"], "attn": maps, "attn_cls": maps[:, :, 0]}
    ours |= {"image_embeds": result, "last": out["tokens"]}
    ours |= {"pooled": out["pooled"]} if "pooled" in out else {}
    return ours | _hidden(out, depth)


OUTPUTS = {"gpt2": _gpt2, "bert": _bert, "clip_vision": _clip_vision}
