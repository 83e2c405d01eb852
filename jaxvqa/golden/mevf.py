"""The golden cases of BAN and SAN with each kind of image branches, and of MEVF's published files.

docs/originals/cmsa.md, section 14.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxvqa import models
from jaxvqa.convert import mevf
from jaxvqa.golden import options
from jaxvqa.golden.cases import Case, Row
from jaxvqa.golden.parts import compare_all
from jaxvqa.models.mevf import AutoEncoder, MAMLBranch

INPUTS = {"image84": "image_84", "image128": "image_128", "image": "image"}
"""Name of a case's image -> key of the batch."""

OUTPUTS = {
    "maml": "maml",
    "ae_convert": "autoencoder",
    "encoder": "code",
    "decoder": "reconstruction",
    "modal_logits": "organ_logits",
    "abd": "abdomen",
    "brain": "head",
    "chest": "chest",
    "q_emb": "question",
    "attention": "attention",
    "attention_logits": "attention_logits",
    "features": "fused",
}
"""Name in a case's results -> the model's intermediate."""

PUBLISHED = "reference/cmsa"
"""Below the folder that the environment variable JAXVQA_DATA names: where MEVF's files are if not beside the case."""


def run(case: Case) -> Iterator[Row]:
    """Runs one case in float32."""
    if case.manifest["model"] == "mevf_published":
        yield from _run_published(case)
        return
    tensors = case.checkpoint()
    config = options.mevf(case.manifest["options"])
    batch = {INPUTS[name]: np.moveaxis(value, 1, -1) for name, value in case.inputs.items() if name in INPUTS}
    batch["question"] = case.inputs["question"].astype(np.int32)
    config |= {name: value for name, value in mevf.infer_sizes(tensors).items() if name not in config}
    model = models.build(config)
    shapes = {name: jax.ShapeDtypeStruct(batch[name].shape, batch[name].dtype) for name in model.inputs}
    loaded = case.through_file(
        tensors, {"epoch": 0}, lambda path: mevf.ORIGINAL.load(path, config, shapes), "model_state"
    )
    yield case.back_again(tensors, mevf.ORIGINAL.to_original(loaded))
    yield case.sizes_read_off(mevf.infer_sizes(tensors), config)

    with jax.default_matmul_precision("highest"):
        logits, out = jax.jit(lambda v, x: model.apply(v, **x))(
            jax.tree.map(jnp.asarray, loaded.variables), {name: jnp.asarray(batch[name]) for name in model.inputs}
        )
    ours = {name: np.asarray(out[inside]) for name, inside in OUTPUTS.items() if inside in out}
    if config["name"] == "san":
        del ours["attention"]  # always 1; the original does not return it
    ours |= {name: np.moveaxis(ours[name], -1, 1) for name in ("encoder", "decoder") if name in ours}
    ours |= {"q_last": ours["q_emb"][:, -1], "logits": logits, "logits_float64": logits}
    yield from compare_all(case, ours)


def _run_published(case: Case) -> Iterator[Row]:
    """Runs MEVF's own weights on two real images; skipped where the files are not at hand."""
    weights, code_weights = case.beside(PUBLISHED, "pretrained_maml.weights", "pretrained_ae.pth")
    small, large = (
        jnp.asarray(case.inputs[f"image{side}_uint8"].astype(np.float32) / np.float32(255))[..., None]
        for side in (84, 128)
    )
    maml = mevf.MAML_ORIGINAL.load(weights).variables
    autoencoder = mevf.AUTOENCODER_ORIGINAL.load(code_weights).variables
    with jax.default_matmul_precision("highest"):
        autoencoder, maml = jax.tree.map(jnp.asarray, (autoencoder, maml))
        code, decoded = (np.asarray(x) for x in jax.jit(AutoEncoder().apply)(autoencoder, large))
        vector = jax.jit(lambda *x: MAMLBranch().apply(*x, train=False))(maml, small)
    ours = {"maml": vector, "encoder": np.moveaxis(code, -1, 1), "decoder": np.moveaxis(decoded, -1, 1)}
    ours["reconstruction_mse"] = np.mean(np.square(decoded - np.asarray(large, np.float64)), axis=(1, 2, 3))
    yield from compare_all(case, ours)
