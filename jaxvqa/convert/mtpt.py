"""Checkpoints of CMSA's pre-training (github.com/haifangong/CMSA-MTPT-4-MedicalVQA): three files, one for each network.

Of an epoch the original writes `backbone_epoch-99.pth`, `a_decoder_epoch-99.pth` (b for brain, c for chest) and
`cmsa_epoch-99.pth`, the compatibility network. Each holds one network's tensors alone; CMSA itself starts from the backbone's.
CMSA spec, sections 10 and 11.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvqa.convert import cmsa, files
from jaxvqa.convert.cmsa import CLASSIFIER, EMBED_WIDTHS, EMBEDDING, NON_LOCAL, POSITIONS, QUESTION
from jaxvqa.convert.layers import (
    BATCH_NORM,
    CONV,
    CONV_TRANSPOSE,
    COUNTER,
    LINEAR,
    counted_batches,
    in_collections,
)
from jaxvqa.convert.table import Report, Rule, Table, nested, to_jax
from jaxvqa.convert.towers.resnet import RESNET
from jaxvqa.errors import CheckpointError, nearest
from jaxvqa.models import build
from jaxvqa.models.towers.resnet import ResNet

UP_BLOCK = [
    *nested("conv1", "reduce", CONV),
    *nested("norm1", "reduce_norm", BATCH_NORM),
    *nested("deconv2", "double", CONV_TRANSPOSE),
    *nested("norm2", "double_norm", BATCH_NORM),
    *nested("conv3", "expand", CONV),
    *nested("norm3", "expand_norm", BATCH_NORM),
]
SEGMENTATION = [
    *(rule for i in (4, 3, 2, 1) for rule in nested(f"decoder{i}", f"up_{i}", UP_BLOCK)),
    *nested("final_deconv1", "final_up", CONV_TRANSPOSE),
    *nested("final_conv2", "final_conv", CONV),
    *nested("final_conv3", "pixel_logits", CONV),
]
CLASSIFICATION = [
    *nested("fc.0", "hidden_0", LINEAR),
    *nested("fc.1", "norm_0", BATCH_NORM),
    *nested("fc.4", "hidden_1", LINEAR),
    *nested("fc.5", "norm_1", BATCH_NORM),
    *nested("fc.8", "logits", LINEAR),
]
COMPATIBILITY = [
    *nested("w_emb", "embed", EMBEDDING),
    *nested("q_emb", "question", QUESTION),
    *nested("cmsa", "block", NON_LOCAL),
    *nested("fc", "projection", LINEAR),
    *nested("classifier", "classifier", CLASSIFIER),
]


def _table(part: str, rules: list[Rule], *excused: str) -> Table:
    return Table(in_collections(Rule(r.key, f"{part}/{r.path}", r.change) for r in rules), (COUNTER, *excused))


KEYS = {
    "backbone": _table("backbone", RESNET, r"fc\..*"),  # ImageNet's classifier in torchvision's own file
    "decoder": _table("decoder", [*SEGMENTATION, *CLASSIFICATION]),
    "compatibility": _table("compatibility", COMPATIBILITY, POSITIONS.replace(".", r"\.")),
}
"""Network, which is also the first part of our paths -> the table of its file."""

OPTIONS = {
    "n_words": "vocab_size",
    "n_classes": "classes",
    "task": "task",
    "emb_dim": "embed_width",
    "num_hid": "width",
    "self_att": "self_attention",
    "use_spatial": "spatial",
}
"""The original's option -> field of the model that takes its value."""

OTHER_OPTIONS = ("op", "rnn", "emb_init", "backbone")
"""Options of the original that take some translation."""

INPUT_OPTIONS = ("question_len", "image_size", "v_dim")
"""Options of the original that say what goes into the model, or that follow from others."""

SIZES = (
    "vocab_size",
    "classes",
    "task",
    "embed_width",
    "tables",
    "width",
    "rnn",
    "self_attention",
    "depth",
    "branch_width",
    "spatial",
)
"""Fields of the model that the files tell; see `infer_sizes`."""


def model_config(options: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the original's options into the `model` part of a config.

    Raises:
      CheckpointError: lists each option that is not known.
    """
    known = (*OPTIONS, *OTHER_OPTIONS, *INPUT_OPTIONS)
    faults = [f"unknown option {option}.{nearest(option, known)}" for option in options if option not in known]
    backbone = str(options.get("backbone", "resnet34")).lower()
    if not backbone.removeprefix("resnet").isdecimal():
        faults.append(f"backbone is {backbone}, no resnet34 or the like.")
    if faults:
        raise CheckpointError("The options are none of the pre-training: " + " ".join(faults))
    config: dict[str, Any] = {"name": "mtpt"}
    if options.get("emb_init") in EMBED_WIDTHS:
        config["embed_width"] = EMBED_WIDTHS[options["emb_init"]]
    config |= {OPTIONS[option]: value for option, value in options.items() if option in OPTIONS}
    if "op" in options:
        config["tables"] = 2 if "c" in options["op"] else 1
    if "rnn" in options:
        config["rnn"] = options["rnn"].lower()
    if "backbone" in options:
        config["depth"] = int(backbone.removeprefix("resnet"))
    return config


def infer_sizes(tensors: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Reads the model's sizes and options from the tensors' names and shapes.

    Nothing tells the rates of dropout. A size whose tensor is missing is left out.

    Args:
      tensors: network -> its file's tensors.
    """
    backbone, decoder, compatibility = (tensors.get(part, {}) for part in KEYS)
    # With the prefixes of a CMSA checkpoint, which has the same parts.
    as_cmsa = {f"abd_v_emb.{key}": value for key, value in backbone.items()} | dict(compatibility)
    sizes = {field: value for field, value in cmsa.infer_sizes(as_cmsa).items() if field in SIZES}
    for task, key in (("segment", "final_conv3.weight"), ("classify", "fc.8.weight")):
        if key in decoder and decoder[key].ndim:
            sizes |= {"task": task, "classes": len(decoder[key])}
    return sizes


DECODERS = {"abdomen": "a_decoder", "brain": "b_decoder", "chest": "c_decoder"}
"""Organ -> how the name of its decoder's file begins."""


def files_of(backbone: str | Path, organ: str = "") -> dict[str, Path]:
    """The files of the epoch of a backbone's file, which lie beside it under the original's names.

    Args:
      backbone: the backbone's file, `backbone_epoch-99.pth` or another name that begins so.
      organ: whose decoder's name to take; by default that of the file that is there.

    Returns:
      Network -> its file.

    Raises:
      CheckpointError: names the files that are missing; with `organ`, none has to be there.
    """
    backbone = Path(backbone)
    epoch = backbone.name.removeprefix("backbone")
    if epoch == backbone.name:
        raise CheckpointError(
            f"{backbone}: a pre-training is three files, and is named by that of its backbone, as in backbone_epoch-99.pth."
        )
    decoders = [DECODERS[organ]] if organ else list(DECODERS.values())
    choices = {"backbone": ["backbone"], "decoder": decoders, "compatibility": ["cmsa"]}
    paths = {part: [backbone.with_name(name + epoch) for name in names] for part, names in choices.items()}
    if not organ:
        there = {part: [path for path in files if path.is_file()] for part, files in paths.items()}
        faults = [
            f"{part}: there is {'no' if not there[part] else 'more than one of'} {' or '.join(p.name for p in files)}"
            for part, files in paths.items()
            if len(there[part]) != 1
        ]
        if faults:
            raise CheckpointError(
                f"A pre-training is three files beside each other. In {backbone.parent}:\n  "
                + "\n  ".join(faults)
                + "\nA backbone alone, which is what CMSA starts from, converts with --system=backbone."
            )
        paths = there
    return {part: files[0] for part, files in paths.items()}


@dataclasses.dataclass
class Converted:
    """The three networks in our terms.

    Attributes:
      variables: `params` and `batch_stats`, nested dicts of float32 arrays.
      batches: network -> how many batches its statistics have seen.
      sizes: the fields `SIZES` of the model.
      reports: network -> what was used of its file.
    """

    variables: dict[str, Any]
    batches: dict[str, int]
    sizes: dict[str, Any]
    reports: dict[str, Report]


def load(paths: Mapping[str, files.Source], config: Mapping[str, Any]) -> Converted:
    """Reads the files of a pre-training.

    Args:
      paths: network -> its file; of `KEYS`, all three.
      config: the `model` part of a config. Sizes that it leaves out are read from the files; those that it has must agree
        with them.

    Raises:
      CheckpointError: a file is missing, cannot be read, or does not fit; lists all its faults.
    """
    if paths.keys() != KEYS.keys():
        given = ", ".join(paths) or "none"
        raise CheckpointError(f"A pre-training is the files of {', '.join(KEYS)}; given are those of {given}.")
    read = {part: files.read(paths[part]) for part in KEYS}
    tensors = {part: file.tensors for part, file in read.items()}
    # 1 stands for a size that neither tells: its tensor is missing, and shall be reported with all the other faults.
    found = {"name": "mtpt", "vocab_size": 1, "classes": 1, "task": "segment"} | infer_sizes(tensors)
    whole = found | dict(config.items())
    image, question = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(lambda key: build(whole).init(key, image=image, question=question), jax.random.key(0))
    variables: dict[str, dict[str, Any]] = {"params": {}, "batch_stats": {}}
    reports: dict[str, Report] = {}
    for part, table in KEYS.items():
        own = {collection: {part: leaves[part]} for collection, leaves in shapes.items() if part in leaves}
        try:
            loaded, reports[part] = cmsa.from_original(tensors[part], own, table)
        except CheckpointError as error:
            raise CheckpointError(f"{read[part].path}: {error}") from None
        for collection, leaves in loaded.items():
            variables[collection] |= leaves
    sizes = {field: value for field, value in whole.items() if field in SIZES}
    return Converted(variables, {part: counted_batches(t) for part, t in tensors.items()}, sizes, reports)


def save(
    paths: Mapping[str, str | Path], variables: Mapping[str, Any], batches: Mapping[str, int] | None = None
) -> None:
    """Writes the files that the original reads: same keys, order, shapes and dtypes.

    Args:
      paths: network -> the file to write, of any of `KEYS`; `.pth`, `.pt` or `.safetensors`.
      variables: our `params` and `batch_stats`.
      batches: network -> how many batches its statistics have seen.
    """
    tensors = {part: to_original(part, variables, (batches or {}).get(part, 0)) for part in paths}
    for part, path in paths.items():
        files.write(path, files.TorchFile(tensors[part]))


BACKBONE_FILE = Table(in_collections(RESNET), KEYS["backbone"].excused)


def load_backbone(path: files.Source) -> tuple[dict[str, Any], Report]:
    """Reads a backbone's file alone, or torchvision's file of a residual network: what CMSA's branches start from.

    Returns:
      The variables of `ResNet`, of the depth and width that the file has; and a report.

    Raises:
      CheckpointError: the file cannot be read, or is of no residual network; lists all faults.
    """
    tensors = files.read(path).tensors
    sizes = infer_sizes({"backbone": tensors})
    tower = ResNet(sizes.get("depth", 34), sizes.get("branch_width", 64))
    shapes = jax.eval_shape(lambda key: tower.init(key, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
    return to_jax(tensors, BACKBONE_FILE, shapes)


def to_original(part: str, variables: Mapping[str, Any], batches: int) -> dict[str, np.ndarray]:
    """Turns our variables of one network into the tensors of its file."""
    own = {collection: {part: leaves[part]} for collection, leaves in variables.items() if part in leaves}
    return cmsa.to_original(own, batches, KEYS[part])
