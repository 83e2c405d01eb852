"""The golden cases of BAN and SAN with each kind of image branches, and of MEVF's published files (spec section 14)."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxvqa import models
from jaxvqa.convert import files, mevf
from jaxvqa.golden.parts import compare_all
from jaxvqa.golden.runner import Case, Row, beside, through_file
from jaxvqa.models.mevf import AutoEncoder, MAMLBranch

COUNTED = 1
"""What the recipe gives for each counter of batch normalisation."""

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
    config = mevf.model_config(case.manifest["options"])
    batch = {INPUTS[name]: np.moveaxis(value, 1, -1) for name, value in case.inputs.items() if name in INPUTS}
    sizes = {name: (value.shape[1], value.shape[2]) for name, value in batch.items() if name != "image_84"}
    loaded = through_file(tensors, {"epoch": 0}, lambda path: mevf.load(path, config, sizes), "model_state")
    config |= {name: value for name, value in mevf.infer_sizes(tensors).items() if name not in config}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "written.pth"
        mevf.save(path, loaded.variables, config["name"], batches=COUNTED)
        yield same_tensors(case.name, "(checkpoint and back)", files.read(path, "model_state").tensors, tensors)
    misses = {name: value for name, value in mevf.infer_sizes(tensors).items() if value != config[name]}
    yield Row(case.name, "(sizes read off)", not misses, note=", ".join(map(str, misses)))

    model = models.build(config)
    batch["question"] = case.inputs["question"].astype(np.int32)
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


def same_tensors(case: str, output: str, ours: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> Row:
    """Whether two checkpoints have the same keys in the same order, and the same values bit for bit."""
    wrong = [key for key, value in expected.items() if key not in ours or ours[key].tobytes() != value.tobytes()]
    wrong += [key for key, value in ours.items() if key in expected and value.dtype != expected[key].dtype]
    same = list(ours) == list(expected) and not wrong
    return Row(case, output, same, note=f"{len(expected)} tensors" + "".join(f", not {key}" for key in wrong[:1]))


def _run_published(case: Case) -> Iterator[Row]:
    """Runs MEVF's own weights on two real images; skipped where the files are not at hand."""
    names = ("pretrained_maml.weights", "pretrained_ae.pth")
    weights, code_weights = (beside(case.folder, PUBLISHED, name) for name in names)
    if weights is None or code_weights is None:
        note = f"needs {' and '.join(names)} beside the case, or in {PUBLISHED} below JAXVQA_DATA"
        for name in case.expected:
            yield Row(case.name, name, None, note=note)
        return
    small, large = (
        jnp.asarray(case.inputs[f"image{side}_uint8"].astype(np.float32) / np.float32(255))[..., None]
        for side in (84, 128)
    )
    maml, _ = mevf.load_maml(weights)
    autoencoder, _ = mevf.load_autoencoder(code_weights)
    with jax.default_matmul_precision("highest"):
        autoencoder, maml = jax.tree.map(jnp.asarray, (autoencoder, maml))
        code, decoded = (np.asarray(x) for x in jax.jit(AutoEncoder().apply)(autoencoder, large))
        vector = jax.jit(lambda *x: MAMLBranch().apply(*x, train=False))(maml, small)
    ours = {"maml": vector, "encoder": np.moveaxis(code, -1, 1), "decoder": np.moveaxis(decoded, -1, 1)}
    ours["reconstruction_mse"] = np.mean(np.square(decoded - np.asarray(large, np.float64)), axis=(1, 2, 3))
    yield from compare_all(case, ours)
