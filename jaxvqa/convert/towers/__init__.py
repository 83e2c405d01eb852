"""Checkpoints of the language and image towers: GPT-2, BERT and CLIP as Hugging Face writes them, and CLIP as OpenAI does.

A checkpoint is a folder with `config.json` beside `model.safetensors` or `pytorch_model.bin` (or their parts and an index), as
`save_pretrained` writes it and a hub hands it out, or a single file of tensors. Of a single file without a `config.json` the
tensors tell the sizes; heads are 64 wide, as in every published network; which GELU a CLIP has only OpenAI's own archives tell.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvqa.convert import files
from jaxvqa.convert.layout import Layout
from jaxvqa.convert.table import Report
from jaxvqa.convert.towers.bert import BERT_LAYOUT
from jaxvqa.convert.towers.clip import CLIP_TEXT_LAYOUTS, CLIP_VISION_LAYOUTS
from jaxvqa.convert.towers.gpt2 import GPT2_LAYOUT, GPT2_UNTIED
from jaxvqa.errors import CheckpointError, DataError, first_line, nearest
from jaxvqa.inputs import read_json
from jaxvqa.models.towers.bert import BERT
from jaxvqa.models.towers.clip import TextTransformer, VisionTransformer
from jaxvqa.models.towers.gpt2 import GPT2

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""In the order in which they are preferred; each may be in parts, told by a file of this name and `.index.json`."""

_HUB_FILES = ("model*.safetensors", "pytorch_model*.bin")


@dataclasses.dataclass(frozen=True)
class Tower:
    """How a tower is read and written.

    Attributes:
      module: its class.
      layouts: the ways in which files hold it; the first is OpenAI's where there are two.
      options: entry of `config.json` -> field of the module.
      fixed: entry -> the values that it may have here; the first is that of a file without the entry.
      inputs: shapes and types that it is called with, by its positional arguments.
      section: entry of `config.json` that holds the tower's own, in a file of several towers.
    """

    module: Any
    layouts: tuple[Layout, ...]
    options: Mapping[str, str]
    fixed: Mapping[str, tuple[Any, ...]]
    inputs: tuple[Any, ...]
    section: str = ""


_TEXT = jax.ShapeDtypeStruct((1, 1), jnp.int32)
_CLIP_OPTIONS = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "intermediate_size": "hidden",
    "projection_dim": "features",
    "hidden_act": "activation",
}
CLIP_ACTIVATIONS = ("quick_gelu", "gelu")
_CLIP_FIXED = {"hidden_act": CLIP_ACTIVATIONS, "layer_norm_eps": (1e-5,), "num_channels": (3,)}
TOWERS: Mapping[str, Tower] = {
    "gpt2": Tower(
        GPT2,
        (GPT2_LAYOUT,),
        {
            "vocab_size": "vocab_size",
            "n_positions": "positions",
            "n_embd": "width",
            "n_layer": "depth",
            "n_head": "heads",
            "tie_word_embeddings": "tied",
        },
        {
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of one function
            "layer_norm_epsilon": (1e-5,),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
        },
        (_TEXT,),
    ),
    "bert": Tower(
        BERT,
        (BERT_LAYOUT,),
        {
            "vocab_size": "vocab_size",
            "hidden_size": "width",
            "num_hidden_layers": "depth",
            "num_attention_heads": "heads",
            "intermediate_size": "hidden",
            "max_position_embeddings": "positions",
            "type_vocab_size": "types",
        },
        {"hidden_act": ("gelu",), "layer_norm_eps": (1e-12,), "position_embedding_type": ("absolute",)},
        (_TEXT,),
    ),
    "clip_vision": Tower(
        VisionTransformer,
        CLIP_VISION_LAYOUTS,
        _CLIP_OPTIONS | {"patch_size": "patch"},
        _CLIP_FIXED,
        (),
        "vision_config",
    ),
    "clip_text": Tower(
        TextTransformer,
        CLIP_TEXT_LAYOUTS,
        _CLIP_OPTIONS | {"vocab_size": "vocab_size", "max_position_embeddings": "positions"},
        _CLIP_FIXED,
        (_TEXT,),
        "text_config",
    ),
}
"""Name -> tower."""


@dataclasses.dataclass
class Converted:
    """A tower's checkpoint in our terms.

    Attributes:
      params: the parameters, a nested dict of float32 arrays.
      fields: fields of the module that the checkpoint or its `config.json` tells.
      layout: how it was written.
      prefixed: whether with the layout's prefix.
      report: what was used.
      notes: what a user should know of how it was read.
    """

    params: dict[str, Any]
    fields: dict[str, Any]
    layout: Layout
    prefixed: bool
    report: Report
    notes: tuple[str, ...] = ()


@dataclasses.dataclass
class Source:
    """What a checkpoint consists of.

    Attributes:
      config: the content of its `config.json`; empty without one.
      file: its tensors.
    """

    config: dict[str, Any]
    file: files.TorchFile


def read(path: str | Path, *, weights: str = "", prefix: str = "") -> Source:
    """Reads a folder's `config.json` and tensors, or a file and the `config.json` beside it; no code in it is run.

    Args:
      path: the folder or file.
      weights: name of the entry to take, where a file has several; see `files.read`.
      prefix: what to take off each key.

    Raises:
      CheckpointError: a file is missing or cannot be read.
    """
    path = Path(path)
    found = path
    if path.is_dir():
        names = [f"{name}{end}" for name in WEIGHT_FILES for end in (files.INDEX, "")]
        there = [path / name for name in names if (path / name).is_file()]
        if not (path / "config.json").is_file():
            raise CheckpointError(
                f"{path} has no config.json. A checkpoint's folder has one, as `save_pretrained` writes it."
            )
        if not there:
            raise CheckpointError(f"{path} has none of {', '.join(WEIGHT_FILES)}, and no index of their parts.")
        found = there[0]
    file = files.read(found, weights=weights, prefix=prefix)
    beside = found.parent / "config.json"
    if not beside.is_file() or not (path.is_dir() or found.name.removesuffix(files.INDEX) in WEIGHT_FILES):
        return Source({}, file)
    try:
        return Source(read_json(beside, "a checkpoint's config.json", dict), file)
    except DataError as error:
        raise CheckpointError(str(error)) from error


def from_hub(name: str) -> Path:
    """Fetches the files of a checkpoint by its name, where a hub can be reached, and returns their folder.

    Raises:
      CheckpointError: there is no such name, or no network.
    """
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(name, allow_patterns=["config.json", "*.index.json", *_HUB_FILES])
        )
    except Exception as error:  # no network, no such name, no right to it: the library has a type for each
        raise CheckpointError(
            f"There is no folder {name}, and no hub gives a checkpoint of that name ({first_line(error)})."
        ) from error


def module_fields(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Translates a `config.json` into fields of the tower's class.

    Raises:
      CheckpointError: lists what is not offered here.
    """
    tower = TOWERS[kind]
    section = config.get(tower.section)
    own = {k: v for k, v in config.items() if k in tower.options} | dict(
        section if isinstance(section, dict) else config
    )
    faults = [
        f"{k} = {own[k]!r}, not {' or '.join(map(repr, values))}"
        for k, values in tower.fixed.items()
        if k in own and own[k] not in values
    ]
    if own.get("n_inner") is not None and own["n_inner"] != 4 * own.get("n_embd", GPT2.width):
        faults.append(f"n_inner = {own['n_inner']!r}, not None or 4 * n_embd")
    if faults:
        raise CheckpointError(f"This {kind} is not offered here: its config.json has {'; '.join(faults)}.")
    return {field: own[name] for name, field in tower.options.items() if name in own}


def load(kind: str, source: str | Path | Source, **fields: Any) -> Converted:
    """Reads a tower.

    Args:
      kind: a name of `TOWERS`.
      source: a folder, a file of tensors, or what `read` made of them.
      **fields: fields of the tower's class, which win over those of `config.json` and those that the tensors tell.

    Raises:
      CheckpointError: the files cannot be read, are of another kind, or do not fit; lists all faults. Or they do not tell
        something that the numbers depend on: CLIP's activation, or which of two tables is the output's.
    """
    if kind not in TOWERS:
        raise CheckpointError(f"There is no tower {kind!r}; there is {', '.join(TOWERS)}.{nearest(kind, TOWERS)}")
    source = source if isinstance(source, Source) else read(source)
    tensors, told = source.file.tensors, module_fields(kind, source.config)
    if not source.config:
        told = infer_sizes(kind, tensors)
    if kind.startswith("clip") and (source.config or source.file.scripted):
        told.setdefault("activation", "quick_gelu")  # of OpenAI's own archive, and transformers' default
    if kind.startswith("clip") and "activation" not in fields and "activation" not in told:
        raise CheckpointError(
            f"{source.file.path} does not tell which activation this CLIP was trained with, and every number depends on it: "
            "give --activation=quick_gelu (OpenAI's networks) or --activation=gelu (most of OpenCLIP's), or the folder with "
            "its config.json."
        )
    found = from_tensors(kind, tensors, told | fields)
    return dataclasses.replace(found, notes=(*source.file.notes, *found.notes))


def infer_sizes(kind: str, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Fields of a tower's class by the shapes of its tensors; a size whose tensor is missing is left out."""
    layout = find_layout(kind, tensors)
    tensors = layout.current(tensors)
    shapes: dict[str, tuple[int, ...]] = {}  # our path -> the original's shape
    blocks: set[int] = set()
    before = "" if layout.prefixed(tensors) else layout.prefix
    for key, value in tensors.items():
        for rule, numbers in layout.table.taking(before + key):
            blocks |= set(numbers.values())
            shapes.setdefault(rule.path.replace("{i}", "0"), value.shape)
    where = {  # field -> (our path, the original's axis)
        "vocab_size": ("embed/embedding", 0),
        "positions": ("position/embedding" if kind in ("gpt2", "bert") else "position", 0),
        "types": ("type/embedding", 0),
        "width": ("embed/embedding" if kind != "clip_vision" else "class_token", -1),
        "patch": ("patches/kernel", -1),
        "hidden": ("block_0/feed_forward/up/kernel", 0),
    }
    known = {field.name for field in dataclasses.fields(TOWERS[kind].module)}
    sizes: dict[str, Any] = {
        field: shapes[path][axis] for field, (path, axis) in where.items() if field in known and shapes.get(path)
    }
    if "projection/kernel" in shapes:  # a linear map's matrix, or OpenAI's, which is stored (in, out)
        sizes["features"] = shapes["projection/kernel"][-1 if layout is TOWERS[kind].layouts[0] else 0]
    if blocks:
        sizes["depth"] = 1 + max(blocks)
    if "width" in sizes:
        sizes["heads"] = max(sizes["width"] // HEAD_WIDTH, 1)
    return sizes


HEAD_WIDTH = 64
"""Of every published GPT-2, BERT and CLIP; no tensor's shape tells it."""


def is_padded(rows: int, words: int) -> bool:
    """Whether a vocabulary's table has rows up to a round number behind its words, as training on GPUs likes it."""
    return rows > words and any(rows == -(-words // step) * step for step in (8, 64, 128, 256, 512))


def from_tensors(kind: str, tensors: Mapping[str, np.ndarray], fields: Mapping[str, Any]) -> Converted:
    """The same from tensors that were read already. What a file lacks of pooler and projection, the module lacks too."""
    layout = find_layout(kind, tensors)
    tensors, fields, notes = layout.current(tensors), dict(fields), []
    given = {path for key in tensors for path in _paths(layout, key)}
    if kind == "bert":
        fields.setdefault("pooler", "pool/kernel" in given)
    elif kind.startswith("clip") and "projection/kernel" not in given:
        fields["features"] = 0
    if kind == "gpt2":
        layout, tensors = _with_output(layout, tensors, fields)
        if not fields["tied"]:
            notes.append("the output has a table of its own: config.model.language_sizes.tied=false takes it")
    words = fields.get("vocab_size")
    tables = [key for key in tensors if {"embed/embedding", "readout/table"} & set(_paths(layout, key))]
    if words and any(is_padded(len(tensors[key]), words) for key in tables):
        rows = max(len(tensors[key]) for key in tables)
        notes.append(f"the vocabulary's table is padded to {rows} rows, of which the first {words} were taken")
        tensors = tensors | {key: tensors[key][:words] for key in tables}
    inputs = TOWERS[kind].inputs
    if kind == "clip_vision":
        side = _image_side(layout, tensors, fields)
        inputs = (jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32),)
    target = jax.eval_shape(TOWERS[kind].module(**fields).init, jax.random.key(0), *inputs)["params"]
    params, report = layout.read(tensors, target)
    return Converted(params, fields, layout, layout.prefixed(tensors), report, tuple(notes))


def _with_output(
    layout: Layout, tensors: dict[str, np.ndarray], fields: dict[str, Any]
) -> tuple[Layout, dict[str, np.ndarray]]:
    """GPT-2's layout and tensors with the output's table that `fields` ask for; the file decides where both agree."""
    words, output = (
        next((key for key in tensors if key.endswith(end)), None) for end in ("wte.weight", "lm_head.weight")
    )
    differ = words is not None and output is not None and not np.array_equal(tensors[words], tensors[output])
    if differ and "lm_head" not in fields and fields.get("tied", True):
        raise CheckpointError(
            f"{output} differs from {words}, so that the checkpoint has two tables of words: give --lm_head=embedding or "
            "--lm_head=output (one table for both, the one or the other), or --lm_head=own (each its own, which a Flamingo "
            "takes with config.model.language_sizes.tied=false)."
        )
    choice = fields.pop("lm_head", "output" if fields.get("tied", True) else "own")
    fields["tied"] = choice != "own"
    if not fields["tied"]:
        return GPT2_UNTIED, tensors
    last = words if choice == "embedding" else output  # of two names of one parameter, the last one's value counts
    return layout, {key: value for key, value in tensors.items() if key != last} | (
        {last: tensors[last]} if last else {}
    )


LM_HEADS = ("embedding", "output", "own")
"""Choices for GPT-2's output where its table is not the embedding's: one for both, or each its own."""


def find_layout(kind: str, tensors: Mapping[str, np.ndarray]) -> Layout:
    """Tells by the keys in which layout a tower is written."""
    for layout in TOWERS[kind].layouts:
        if any(re.fullmatch(layout.sign, key) for key in tensors):
            return layout
    some = ", ".join(list(tensors)[:3])
    signs = " or ".join(layout.sign for layout in TOWERS[kind].layouts)
    raise CheckpointError(f"The checkpoint holds no {kind}: no key is {signs}; its first keys are {some}.")


def _paths(layout: Layout, key: str) -> list[str]:
    """Our paths without numbers that a key is taken for, with and without the prefix that it may lack."""
    return [r.path for r in layout.table.rules if r.key in (key, layout.prefix + key)]


def _image_side(layout: Layout, tensors: Mapping[str, np.ndarray], fields: Mapping[str, Any]) -> int:
    """Height of the images whose patches the positions are for; one patch where there are none."""
    patch = fields.get("patch", VisionTransformer.patch)
    found = [len(value) for key, value in tensors.items() if "position" in _paths(layout, key) and value.ndim == 2]
    return patch * max(round(max(found[0] - 1, 1) ** 0.5), 1) if found else patch
