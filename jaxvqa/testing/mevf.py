"""The golden cases of BAN and SAN with each kind of image branches, and of MEVF's published files (spec section 14)."""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvqa import models
from jaxvqa.convert import files, mevf
from jaxvqa.models.mevf import AutoEncoder, MAMLBranch
from jaxvqa.testing.golden import Case, Row, through_file

LIMIT = 1e-4
"""Largest relative difference of an output (spec section 14)."""

FLOAT64_LIMIT = 1e-5
"""The same for `logits_float64`, which the original computed in float64: our float32 differs from it by 1e-6."""

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
"""Where MEVF's files lie, below the folder that the environment variable JAXVQA_DATA names."""


def run(case: Case) -> list[Row]:
    """Runs one case in float32."""
    if case.manifest["model"] == "mevf_published":
        return _run_published(case)
    tensors = case.checkpoint()
    config = mevf.model_config(case.manifest["options"])
    batch = {INPUTS[name]: np.moveaxis(value, 1, -1) for name, value in case.inputs.items() if name in INPUTS}
    sizes = {name: (value.shape[1], value.shape[2]) for name, value in batch.items() if name != "image_84"}
    loaded = through_file(tensors, {"epoch": 0}, lambda path: mevf.load(path, config, sizes), "model_state")
    config |= {name: value for name, value in mevf.infer_sizes(tensors).items() if name not in config}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "written.pth"
        mevf.save(path, loaded.variables, config["name"], batches=COUNTED)
        written = files.read(path, "model_state").tensors
        rows = [same_tensors(case.name, "(checkpoint and back)", written, tensors)]
    misses = {name: value for name, value in mevf.infer_sizes(tensors).items() if value != config[name]}
    rows.append(Row(case.name, "(sizes read off)", not misses, note=", ".join(map(str, misses))))

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
    limits = {"logits_float64": FLOAT64_LIMIT}
    results = with_parts(case, ours)
    return rows + [case.compare(name, value, limits.get(name, LIMIT)) for name, value in results.items()]


def same_tensors(case: str, output: str, ours: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> Row:
    """Whether two checkpoints have the same keys in the same order, and the same values bit for bit."""
    wrong = [key for key, value in expected.items() if key not in ours or ours[key].tobytes() != value.tobytes()]
    wrong += [key for key, value in ours.items() if key in expected and value.dtype != expected[key].dtype]
    same = list(ours) == list(expected) and not wrong
    return Row(case, output, same, note=f"{len(expected)} tensors" + "".join(f", not {key}" for key in wrong[:1]))


def with_parts(case: Case, ours: dict[str, Any]) -> dict[str, np.ndarray]:
    """Picks the outputs that a case has, and makes those that are named after a part of one.

    `NAME_slice` is the part that the manifest's `slices` tells; `NAME_stats` are mean, population standard deviation,
    minimum, maximum and the first 12 values.
    """
    result: dict[str, np.ndarray] = {}
    for name in case.expected:
        whole, _, part = name.rpartition("_")
        if name in ours:
            result[name] = np.asarray(ours[name])
        elif whole in ours and part == "slice":
            result[name] = np.asarray(ours[whole])[_slices(case.manifest["slices"][f"out_{name}"])]
        elif whole in ours and part == "stats":
            values = np.asarray(ours[whole], np.float64)
            result[name] = np.concatenate(
                [[values.mean(), values.std(), values.min(), values.max()], values.ravel()[:12]]
            )
    return result


def _slices(text: str) -> tuple[slice, ...]:
    """Reads the first brackets of a text such as "[:, ::4] of (B,16)"."""
    match = re.search(r"\[([^\]]*)\]", text)
    if match is None:
        raise ValueError(f"no slice in {text!r}")
    return tuple(slice(*(int(x) if x.strip() else None for x in part.split(":"))) for part in match[1].split(","))


def _run_published(case: Case) -> list[Row]:
    """Runs MEVF's own weights on two real images; skipped where the files are not at hand."""
    folder = Path(os.environ.get("JAXVQA_DATA", "")) / PUBLISHED
    names = ("pretrained_maml.weights", "pretrained_ae.pth")
    if "JAXVQA_DATA" not in os.environ or not all((folder / name).is_file() for name in names):
        note = f"needs {' and '.join(names)} in {PUBLISHED} under the folder that JAXVQA_DATA names"
        return [Row(case.name, name, None, note=note) for name in case.expected]
    small, large = (
        jnp.asarray(case.inputs[f"image{side}_uint8"].astype(np.float32) / np.float32(255))[..., None]
        for side in (84, 128)
    )
    maml, _ = mevf.load_maml(folder / names[0])
    autoencoder, _ = mevf.load_autoencoder(folder / names[1])
    with jax.default_matmul_precision("highest"):
        autoencoder, maml = jax.tree.map(jnp.asarray, (autoencoder, maml))
        code, decoded = (np.asarray(x) for x in jax.jit(AutoEncoder().apply)(autoencoder, large))
        vector = jax.jit(lambda *x: MAMLBranch().apply(*x, train=False))(maml, small)
    ours = {"maml": vector, "encoder": np.moveaxis(code, -1, 1), "decoder": np.moveaxis(decoded, -1, 1)}
    ours["reconstruction_mse"] = np.mean(np.square(decoded - np.asarray(large, np.float64)), axis=(1, 2, 3))
    return [case.compare(name, value, LIMIT) for name, value in with_parts(case, ours).items()]
