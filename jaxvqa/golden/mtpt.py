"""The golden cases of CMSA's pre-training: three files, both tasks, the metric (docs/originals/cmsa.md, sections 10 and 14)."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvqa import models
from jaxvqa.convert import files, mtpt
from jaxvqa.golden import options, weights
from jaxvqa.golden.cases import COUNTED, Case, Row
from jaxvqa.golden.parts import compare_all
from jaxvqa.metrics.segmentation import mean_iou

PARTS = {"backbone": "backbone", "decoder": "decoder", "cmsa": "compatibility"}
"""What a manifest calls a tensor's file -> network."""

OUTPUTS = {
    **{f"feat{i}": f"map_{i}" for i in range(5)},
    "q_emb": "question",
    "cmsa": "block",
    "pooled": "pooled",
    "features": "fused",
}
"""Name in a case's results -> the model's intermediate."""

TIED_PIXELS = 8
"""So many pixels of an image may have another class, where two logits differ by rounding only."""


TIED_LIMIT = 1e-3
"""Largest relative difference of what such pixels move: the mean overlap."""


def run(case: Case) -> Iterator[Row]:
    """Runs one case in float32."""
    tensors = {
        part: weights.checkpoint([t for t in case.manifest["tensors"] if t["file"] == file])
        for file, part in PARTS.items()
    }
    config = options.mtpt(case.manifest["options"])
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = ({part: Path(folder) / f"{name}_{part}.pth" for part in tensors} for name in ("their", "our"))
        for part, path in theirs.items():
            files.write(path, files.TorchFile(tensors[part]))
        loaded = mtpt.ORIGINAL.load(theirs, config)
        mtpt.ORIGINAL.save(ours, loaded)
        for part, path in ours.items():
            yield case.back_again(tensors[part], files.read(path).tensors, f"({part} and back)")
    counted = {f"batches of {part}": batches for part, batches in loaded.entries["batches"].items()}
    yield case.sizes_read_off(mtpt.infer_sizes(tensors) | counted, config | dict.fromkeys(counted, COUNTED))

    model = models.build(loaded.config)
    image = jnp.asarray(np.moveaxis(case.inputs["image"], 1, -1))
    question = jnp.asarray(case.inputs["question"].astype(np.int32))
    with jax.default_matmul_precision("highest"):
        (image_logits, fit_logits), out = jax.jit(model.apply)(
            jax.tree.map(jnp.asarray, loaded.variables), image=image, question=question
        )
    results: dict[str, Any] = {name: np.asarray(out[inside]) for name, inside in OUTPUTS.items() if inside in out}
    # Theirs have the channels second.
    results = {name: np.moveaxis(x, -1, 1) if x.ndim > 3 else x for name, x in results.items()}
    results |= {"q_last": results["q_emb"][:, -1], "compatibility_logits": fit_logits}
    segment = model.task == "segment"
    results["segmentation" if segment else "class_logits"] = np.moveaxis(np.asarray(image_logits), -1, 1)
    labels = {
        "task": case.inputs.get("segmentation_label" if segment else "class_label"),
        "compatibility": case.inputs.get("question_label"),
    }
    for name, logits in (("task", image_logits), ("compatibility", fit_logits)):
        if labels[name] is not None:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels[name], jnp.int32))
            results[f"loss_{name}"] = np.mean(np.asarray(losses, np.float64)).reshape(1)
    if segment:
        maps = np.asarray(image_logits, np.float64)
        results["segmentation_moments"] = np.stack([maps.mean(axis=(1, 2)), maps.std(axis=(1, 2))], axis=-1)
        yield from _segmentation(case, maps, labels["task"])
    yield from compare_all(case, results)


def _segmentation(case: Case, maps: np.ndarray, labels: np.ndarray | None) -> Iterator[Row]:
    """Compares what depends on the class of each pixel, up to a few tied ones."""
    predictions = np.argmax(maps, axis=-1)
    if "segmentation_argmax_counts" in case.expected:
        expected = case.expected["segmentation_argmax_counts"]
        counts = np.stack([np.bincount(p.ravel(), minlength=expected.shape[1]) for p in predictions])
        moved = int(np.abs(counts - expected).sum(axis=1).max() // 2)
        yield Row(case.name, "segmentation_argmax_counts", moved <= TIED_PIXELS, note=f"{moved} pixels moved")
    if "miou_sum" in case.expected and labels is not None:
        ours = np.sum(mean_iou(predictions, labels, maps.shape[-1]), keepdims=True)
        yield case.compare("miou_sum", ours, TIED_LIMIT)
