"""CMSA's checkpoints (github.com/haifangong/CMSA-MTPT-4-MedicalVQA): keys, sizes, options and the layout of the file.

A file is `model_epoch<k>.pth`, an outer dict of `epoch`, `model_state` and `optimizer_state` (torch.optim.Adamax), or the
tensors alone. CMSA spec, section 11.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvqa.convert import adam, files
from jaxvqa.convert.layers import (
    BATCH_NORM,
    CONV,
    COUNTER,
    LAYER_NORM,
    LINEAR,
    LINEAR_NO_BIAS,
    POINTWISE_3D,
    RNN,
    WEIGHT_NORM_LINEAR,
    counted_batches,
    in_collections,
    with_counters,
)
from jaxvqa.convert.table import Report, Rule, Table, nested, to_jax, to_torch
from jaxvqa.convert.towers.resnet import RESNET
from jaxvqa.errors import CheckpointError, nearest
from jaxvqa.models import build
from jaxvqa.models.layers.query_norm import sinusoids

EMBEDDING = [Rule("emb.weight", "table_0"), Rule("emb_.weight", "table_1")]
ATTENTION = [
    *nested("w_qs", "attention/query", LINEAR_NO_BIAS),
    *nested("w_ks", "attention/key", LINEAR_NO_BIAS),
    *nested("w_vs", "attention/value", LINEAR_NO_BIAS),
    *nested("fc", "attention/output", LINEAR_NO_BIAS),
    *nested("layer_norm", "norm", LAYER_NORM),
]
QUESTION = [
    *nested("rnn", "rnn", RNN),
    *nested("layer_stack.{i}.slf_attn", "encoder/layer_{i}_attention", ATTENTION),
    *nested("layer_stack.{i}.pos_ffn.w_1", "encoder/layer_{i}_feed_forward/up", LINEAR),
    *nested("layer_stack.{i}.pos_ffn.w_2", "encoder/layer_{i}_feed_forward/down", LINEAR),
    *nested("layer_stack.{i}.pos_ffn.layer_norm", "encoder/layer_{i}_norm", LAYER_NORM),
    *nested("layer_norm", "encoder/norm", LAYER_NORM),
]
"""The question encoder: an LSTM, a GRU, or self-attention."""

NON_LOCAL = [
    *nested("g", "value", POINTWISE_3D),
    *nested("W.0", "project", POINTWISE_3D),
    *nested("W.1", "norm", BATCH_NORM),
    *nested("theta", "theta", POINTWISE_3D),
    *nested("phi", "phi", POINTWISE_3D),
]
CLASSIFIER = [*nested("main.0", "up", WEIGHT_NORM_LINEAR), *nested("main.3", "down", WEIGHT_NORM_LINEAR)]
ORGAN = [
    *nested("conv.0", "conv_0", CONV),
    *nested("conv.1", "norm_0", BATCH_NORM),
    *nested("conv.4", "conv_1", CONV),
    *nested("conv.5", "norm_1", BATCH_NORM),
    *nested("conv.8", "conv_2", CONV),
    *nested("conv.9", "norm_2", BATCH_NORM),
    *nested("fc.0", "hidden", LINEAR),
    *nested("fc.1", "hidden_norm", BATCH_NORM),
    *nested("fc.4", "output", LINEAR),
]
"""The organ classifier, also in a file of its own."""

POSITIONS = "q_emb.position_enc.pos_table"
"""The self-attention's table of positions: a constant, which the original writes into its checkpoints."""

KEYS = Table(
    rules=in_collections(
        [
            *nested("w_emb", "embed", EMBEDDING),
            *nested("q_emb", "question", QUESTION),
            *nested("cmsa0", "block_0", NON_LOCAL),
            *nested("cmsa1", "block_1", NON_LOCAL),
            *nested("fc", "projection", LINEAR),
            *nested("classifier", "classifier", CLASSIFIER),
            *nested("cma", "word_attention", ATTENTION),
            *nested("modal_classifier", "organ", ORGAN),
            *nested("abd_v_emb", "abdomen", RESNET),
            *nested("brain_v_emb", "head", RESNET),
            *nested("chest_v_emb", "chest", RESNET),
        ]
    ),
    excused=(COUNTER, POSITIONS.replace(".", r"\.")),
)

EMBED_WIDTHS = {"biowordvec": 200, "glove": 300, "biosentvec": 700}
"""The original's `emb_init` -> size of a word vector."""

OPTIONS = {
    "n_words": "vocab_size",
    "n_answers": "num_answers",
    "emb_dim": "embed_width",
    "num_hid": "width",
    "self_att": "self_attention",
    "use_cma": "cross_attention",
    "use_spatial": "spatial",
}
"""The original's option -> field of the model that takes its value."""

OTHER_OPTIONS = ("model", "op", "rnn", "v_dim", "emb_init")
"""Options of the original that take some translation."""

INPUT_OPTIONS = ("distmodal", "question_len", "image_size", "feature_map")
"""Options of the original that say what goes into the model, or that CMSA always has."""

LR_SCALE = ((r"(embed|question)/.*", 0.2), (r".*", 1.0))
"""With self-attention words and question learn more slowly (spec, section 8): `config.optim.lr_scale`."""

SIZES = (
    "vocab_size",
    "num_answers",
    "embed_width",
    "tables",
    "width",
    "rnn",
    "self_attention",
    "depth",
    "branch_width",
    "organ_width",
    "organ_hidden",
    "spatial",
    "cross_attention",
)
"""Fields of the model that a checkpoint tells; see `infer_sizes`."""


def model_config(options: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the original's options into the `model` part of a config.

    Raises:
      CheckpointError: lists each option that is not known.
    """
    known = (*OPTIONS, *OTHER_OPTIONS, *INPUT_OPTIONS)
    faults = [f"unknown option {name}.{nearest(name, known)}" for name in options if name not in known]
    if str(options.get("model", "CMSA")).upper() != "CMSA":
        faults.append(f"model is {options['model']}, not CMSA.")
    if faults:
        raise CheckpointError("The options are none of CMSA: " + " ".join(faults))
    config: dict[str, Any] = {"name": "cmsa"}
    if "emb_init" in options and options["emb_init"] in EMBED_WIDTHS:
        config["embed_width"] = EMBED_WIDTHS[options["emb_init"]]
    config |= {OPTIONS[name]: value for name, value in options.items() if name in OPTIONS}
    if "op" in options:
        config["tables"] = 2 if "c" in options["op"] else 1
    if "rnn" in options:
        config["rnn"] = options["rnn"].lower()
    if "v_dim" in options:
        config["branch_width"] = options["v_dim"] // 8  # the last of four stages, each twice as wide as the one before
    return config


def infer_sizes(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Reads the model's sizes and options from the tensors' names and shapes.

    Nothing tells `dropout`. A size whose tensor is missing is left out.
    """
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    where = {  # field -> (key, axis)
        "num_answers": ("classifier.main.3.bias", 0),
        "embed_width": ("w_emb.emb.weight", -1),
        "width": ("q_emb.rnn.weight_hh_l0", -1),
        "branch_width": ("abd_v_emb.conv1.weight", 0),
        "organ_width": ("modal_classifier.conv.0.weight", 0),
        "organ_hidden": ("modal_classifier.fc.0.weight", 0),
    }
    sizes: dict[str, Any] = {
        field: shapes[key][axis] for field, (key, axis) in where.items() if len(shapes.get(key, ())) > 0
    }
    if len(shapes.get("w_emb.emb.weight", ())) == 2:
        sizes["vocab_size"] = shapes["w_emb.emb.weight"][0] - 1  # the last row is padding
        sizes["tables"] = 1 + ("w_emb.emb_.weight" in shapes)
    sizes["self_attention"] = any(key.startswith("q_emb.layer_stack.") for key in shapes)
    sizes["cross_attention"] = any(key.startswith("cma.") for key in shapes)
    if sizes.get("width") and "q_emb.rnn.weight_ih_l0" in shapes:
        sizes["rnn"] = {3: "gru"}.get(shapes["q_emb.rnn.weight_ih_l0"][0] // sizes["width"], "lstm")
    last = [key for key in shapes if key.startswith("abd_v_emb.layer4.") and ".conv" in key]
    if last:
        third = sum(key.startswith("abd_v_emb.layer3.") and key.endswith(".conv1.weight") for key in shapes)
        bottleneck = any(key.endswith(".conv3.weight") for key in last)
        sizes["depth"] = (101 if third > 6 else 50) if bottleneck else {1: 10, 2: 18}.get(third, 34)
        image = shapes[max(last)][0]  # of the last convolution of the last block
        if len(shapes.get("fc.weight", ())) == 2:
            states, channels = shapes["fc.weight"]
            sizes["spatial"] = channels > states + image
    return sizes


@dataclasses.dataclass
class Converted:
    """A checkpoint of the original in our terms.

    Attributes:
      variables: `params` and `batch_stats`, nested dicts of float32 arrays.
      adamax: the optimiser's state, with the largest gradients in `nu`; None when the file has none.
      epoch: number of the epoch after which the file was written, or None.
      batches: how many batches the statistics have seen.
      sizes: the fields `SIZES` of the model, and `image_size`.
      report: what was used.
    """

    variables: dict[str, Any]
    adamax: adam.AdamState | None
    epoch: int | None
    batches: int
    sizes: dict[str, Any]
    report: Report


def target(config: Mapping[str, Any], image_size: tuple[int, int]) -> dict[str, Any]:
    """The shapes and dtypes of the variables of a model of this config, for images of this height and width."""
    image = jnp.zeros((1, *image_size, 3))
    question = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(lambda key: build(config).init(key, image=image, question=question), jax.random.key(0))


def image_size_of(tensors: Mapping[str, np.ndarray], organ_width: int) -> tuple[int, int]:
    """The smallest square images that fit the organ classifier, whose five halvings round up; 224 for the published one."""
    inputs = tensors["modal_classifier.fc.0.weight"].shape[-1] if "modal_classifier.fc.0.weight" in tensors else 0
    side = 32 * max(math.isqrt(inputs // max(organ_width, 1)), 1)
    return side, side


def load(path: files.Source, config: Mapping[str, Any], image_size: tuple[int, int] | None = None) -> Converted:
    """Reads a checkpoint of the original.

    Args:
      path: a `.pth` file in the original's layout or with the tensors alone, or `.safetensors`.
      config: the `model` part of a config. Sizes that it leaves out are read from the file; those that it has must
        agree with it.
      image_size: height and width of the images, where they are not square.

    Raises:
      CheckpointError: the file cannot be read, or does not fit; lists all faults.
    """
    file = files.read(path, "model_state")
    # 1 stands for a size that neither tells: its tensor is missing, and shall be reported with all the other faults.
    sizes = {"vocab_size": 1, "num_answers": 1} | infer_sizes(file.tensors)
    sizes |= {name: value for name, value in config.items() if name in SIZES}
    image_size = image_size or image_size_of(file.tensors, sizes.get("organ_width", 64))
    shapes = target(dict(config.items()) | sizes, image_size)
    variables, report = from_original(file.tensors, shapes)
    return converted(file, variables, shapes, sizes | {"image_size": image_size}, report)


def converted(
    file: files.TorchFile,
    variables: dict[str, Any],
    shapes: Mapping[str, Any],
    sizes: dict[str, Any],
    report: Report,
    table: Table = KEYS,
) -> Converted:
    """Adds to converted variables what the file holds beside them: the optimiser's state, epoch and counters.

    Raises:
      CheckpointError: the optimiser is none of one Adamax over these parameters, grouped as the original does.
    """
    extra = file.extra or {}
    state = (
        _read_adamax(extra["optimizer_state"], file.tensors, shapes, table) if extra.get("optimizer_state") else None
    )
    epoch = files.number(file, "epoch")
    return Converted(
        variables, state, None if epoch is None else int(epoch), counted_batches(file.tensors), sizes, report
    )


def save(
    path: str | Path,
    variables: Mapping[str, Any],
    state: adam.AdamState | None = None,
    epoch: int = 0,
    batches: int = 0,
    table: Table = KEYS,
) -> None:
    """Writes a checkpoint that the original reads: same keys, order, shapes, dtypes and outer layout.

    Without `state` the file holds an Adamax that has not made a step. A `.safetensors` file holds the tensors alone.

    Args:
      path: the file to write; `.pth`, `.pt` or `.safetensors`.
      variables: our `params` and `batch_stats`.
      state: the optimiser's state.
      epoch: number of the epoch after which this is written.
      batches: how many batches the statistics have seen.
      table: the rules of the model.
    """
    extra: dict[str, Any] | None = None
    if Path(path).suffix != ".safetensors":
        extra = {"optimizer_state": _write_adamax(state, to_torch({"params": variables["params"]}, table), table)}
    tensors = to_original(variables, batches, table)
    files.write(path, files.TorchFile(tensors, extra=extra and {"epoch": epoch} | extra, weights_entry="model_state"))


def from_original(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Any], table: Table = KEYS
) -> tuple[dict[str, Any], Report]:
    """Turns the original's tensors into our variables; `shapes` are those of `params` and `batch_stats`.

    Raises:
      CheckpointError: lists all faults; or the table of positions is not the original's.
    """
    variables, report = to_jax(tensors, table, shapes)
    if POSITIONS in tensors:
        given = tensors[POSITIONS]
        if given.ndim != 3 or not np.allclose(given[0], sinusoids(*given.shape[1:]), atol=1e-5):
            raise CheckpointError(f"{POSITIONS} {list(given.shape)} is not the usual table of sines and cosines.")
    return variables, report


def to_original(variables: Mapping[str, Any], batches: int, table: Table = KEYS) -> dict[str, np.ndarray]:
    """Turns our variables into the original's tensors, with what it writes besides: counters and the table of positions."""
    result: dict[str, np.ndarray] = {}
    for key, value in with_counters(to_torch(variables, table), batches).items():
        if key == "q_emb.layer_stack.0.slf_attn.w_qs.weight":
            result[POSITIONS] = sinusoids(200, value.shape[1])[None]
        result[key] = value
    return result


def _groups(keys: Sequence[str]) -> list[list[str]]:
    """The parameters' keys as the original's optimiser groups and orders them: with self-attention, what is slower last."""
    slower = [key for key in keys if key.startswith(("w_emb.", "q_emb."))]
    if not any(key.startswith("q_emb.layer_stack.") for key in slower):
        return [list(keys)]
    return [[key for key in keys if key not in slower], slower]


def _read_adamax(
    optimizer: Any, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Any], table: Table
) -> adam.AdamState | None:
    """Reads what `torch.optim.Adamax.state_dict()` wrote; it names the second moment otherwise than Adam."""
    state = optimizer.get("state") if isinstance(optimizer, Mapping) else None
    if isinstance(state, Mapping) and all(isinstance(entry, Mapping) for entry in state.values()):
        renamed = {i: {_ADAM_NAMES.get(k, k): v for k, v in entry.items()} for i, entry in state.items()}
        optimizer = {**optimizer, "state": renamed}
    buffers = ("running_mean", "running_var", "num_batches_tracked", "pos_table")
    groups = _groups([key for key in tensors if key.rpartition(".")[2] not in buffers])
    target = {"params": shapes["params"]}
    keys = [key for group in groups for key in group]
    found = adam.from_torch(optimizer, keys, table, target, [len(group) for group in groups])
    return found and dataclasses.replace(found, mu=found.mu["params"], nu=found.nu["params"])


def _write_adamax(state: adam.AdamState | None, parameters: Mapping[str, np.ndarray], table: Table) -> dict[str, Any]:
    """Writes what `torch.optim.Adamax.load_state_dict` takes; settings that `state` lacks are the published ones."""
    first = dict(ADAMAX)
    later: list[dict[str, Any]] = []
    entries: dict[int, Any] = {}
    groups = _groups(list(parameters))
    if state is not None:
        first, later = first | state.settings, state.later_settings
        nested_state = dataclasses.replace(state, mu={"params": state.mu}, nu={"params": state.nu})
        order = {key: str(parameters[key].dtype) for keys in groups for key in keys}
        written = adam.to_torch_state(nested_state, table, order)["state"]
        entries = {i: {_ADAMAX_NAMES.get(k, k): v for k, v in entry.items()} for i, entry in written.items()}
    if len(groups) > 1 and not later:
        later = [first | {"lr": first["lr"] * LR_SCALE[0][1]}]
    numbers = iter(range(len(parameters)))
    param_groups = [
        settings | {"params": list(itertools.islice(numbers, len(keys)))}
        for settings, keys in zip((first, *later), groups, strict=True)
    ]
    return {"state": entries, "param_groups": param_groups}


ADAMAX: Mapping[str, Any] = {
    **{name: value for name, value in adam.ADAM.items() if name not in ("amsgrad", "fused", "decoupled_weight_decay")},
    "lr": 0.005,
}
"""The parameter group that PyTorch's Adamax writes at the published rate, without `params`."""

_ADAM_NAMES = {"exp_inf": "exp_avg_sq"}
_ADAMAX_NAMES = {ours: theirs for theirs, ours in _ADAM_NAMES.items()}
