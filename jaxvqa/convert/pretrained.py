"""Language and image towers as they are published: a folder as `save_pretrained` writes it, one file, or a hub's name.

A folder has `config.json` beside `model.safetensors` or `pytorch_model.bin` (or their parts and an index). Of a single file
without a `config.json` the tensors tell the sizes; heads are 64 wide, as in every published network.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import einops
import numpy as np

from jaxvqa.convert import files
from jaxvqa.convert.layout import Layout
from jaxvqa.convert.original import TOKEN, Checkpoint, Config, Original, Prepared, Shapes, image
from jaxvqa.convert.table import Tensors
from jaxvqa.errors import CheckpointError, DataError, first_line
from jaxvqa.inputs import read_json
from jaxvqa.logs import log

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""In the order in which they are preferred; each may be in parts, listed by a file of this name and `.index.json`."""

_HUB_FILES = ("model*.safetensors", "pytorch_model*.bin")

HEAD_WIDTH = 64
"""Of every published GPT-2, BERT and CLIP; no tensor's shape shows it."""


def read(source: Any, entry: str = "state_dict", *, weights: str = "", prefix: str = "") -> files.TorchFile:
    """Reads a folder's `config.json` and tensors, or a file and the `config.json` beside it; no code in it is run.

    Args:
      source: the folder or file, or a hub's name; a file that has been read is returned as it is.
      entry: usual name of the entry that holds the tensors.
      weights: name of the entry to take, where a file has several; see `files.read`.
      prefix: what to take off each key.

    Raises:
      CheckpointError: a file is missing or cannot be read.
    """
    if isinstance(source, files.TorchFile):
        return source
    path = Path(source)
    path = found = path if path.exists() else from_hub(str(path))
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
    file = files.read(found, entry, weights=weights, prefix=prefix)
    beside = found.parent / "config.json"
    if not beside.is_file() or not (path.is_dir() or found.name.removesuffix(files.INDEX) in WEIGHT_FILES):
        return file
    try:
        return dataclasses.replace(file, config=read_json(beside, "a checkpoint's config.json", dict))
    except DataError as error:
        raise CheckpointError(str(error)) from error


def from_hub(name: str) -> Path:
    """Fetches the files of a checkpoint by its name, where a hub can be reached, and returns their folder.

    Raises:
      CheckpointError: there is no such name, or no network.
    """
    log.info("fetching %s from a hub …", name)
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(name, allow_patterns=["config.json", "*.index.json", *_HUB_FILES])
        )
    except Exception as error:  # no network, no such name, no right to it: the library has a type for each
        raise CheckpointError(
            f"There is no folder {name}, and no hub gives a checkpoint of that name ({first_line(error)})."
        ) from error


def is_padded(rows: int, words: int) -> bool:
    """Whether a vocabulary's table has rows up to a round number behind its words, as training on GPUs likes it."""
    return rows > words and any(rows == -(-words // step) * step for step in (8, 64, 128, 256, 512))


Completed = tuple[dict[str, np.ndarray], tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Tower:
    """A published tower: its module, and how its files say their sizes.

    Attributes:
      kind: its name.
      module: its class.
      layouts: (fields of the module) -> the ways in which files hold it.
      options: entry of `config.json` -> field of the module.
      fixed: entry -> the values that it may have here, or what makes them of all entries; the first is that of a file
        without the entry.
      sizes: field of the module -> (our path, the axis of our array that shows it), for files without a `config.json`.
      section: entry of `config.json` that holds the tower's own, in a file of several towers.
      images: whether it reads images, not text.
      settle: (file, fields) -> fields that follow from the file as a whole.
      complete: (tensors, fields, our paths that the file holds) -> the tensors, and notes: changes the fields to what
        the tensors decide.
    """

    kind: str
    module: Any
    layouts: Callable[[Config], tuple[Layout, ...]]
    options: Mapping[str, str]
    fixed: Mapping[str, Any]
    sizes: Mapping[str, tuple[str, int]]
    section: str = ""
    images: bool = False
    settle: Callable[[files.TorchFile, Config], dict[str, Any]] = lambda file, fields: {}
    complete: Callable[[Tensors, dict[str, Any], set[str]], Completed] = lambda tensors, fields, held: (
        dict(tensors),
        (),
    )

    @property
    def original(self) -> Original:
        """How its checkpoints are read and written."""
        return Original(
            layouts=self.layouts,
            infer=self._tell,
            inputs=self._inputs,
            module=lambda fields: self.module(**fields),
            read=read,
            prepare=self._prepare,
            name=self.kind,
        )

    def load(self, source: str | Path | files.TorchFile, **fields: Any) -> Checkpoint:
        """Reads a tower.

        Args:
          source: a folder, a file of tensors, or what `read` made of them.
          **fields: fields of the tower's class, which win over those of `config.json` and those that the tensors tell.

        Returns:
          What it holds; `config` has the fields of the class.

        Raises:
          CheckpointError: the files cannot be read, are of another kind, or do not fit; lists all faults. Or they do not tell
            something that the numbers depend on: CLIP's activation, or which of two tables is the output's.
        """
        return self.original.load(source, fields)

    def from_json(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Translates a `config.json` into fields of the tower's class.

        Raises:
          CheckpointError: lists what is not offered here.
        """
        section = config.get(self.section)
        own = {k: v for k, v in config.items() if k in self.options}
        own |= dict(section if isinstance(section, dict) else config)
        allowed = {k: values(own) if callable(values) else values for k, values in self.fixed.items()}
        faults = [
            f"{k} = {own[k]!r}, not {' or '.join(map(repr, values))}"
            for k, values in allowed.items()
            if k in own and own[k] not in values
        ]
        if faults:
            raise CheckpointError(f"This {self.kind} is not offered here: its config.json has {'; '.join(faults)}.")
        return {field: own[name] for name, field in self.options.items() if name in own}

    def _tell(self, file: files.TorchFile, given: Config) -> dict[str, Any]:
        inferred = self.from_json(file.config) if file.config else self._infer(file.tensors)
        return inferred | self.settle(file, {**inferred, **given})

    def _infer(self, tensors: Tensors) -> dict[str, Any]:
        """Fields by the shapes of the tensors; a size whose tensor is missing is left out."""
        layout = self.original.layout({}, tensors)
        shapes: dict[str, tuple[int, ...]] = {}  # our path without its collection -> our shape
        blocks: set[int] = set()
        for key, value in layout.current(tensors).items():
            for rule, numbers in layout.table.taking(key):
                blocks |= set(numbers.values())
                path = rule.path.replace("{i}", "0").removeprefix("params/")
                empty = np.broadcast_to(np.float32(0), value.shape)
                shapes.setdefault(path, einops.rearrange(empty, rule.change).shape if rule.change else empty.shape)
        found = {field: shapes[path][axis] for field, (path, axis) in self.sizes.items() if shapes.get(path)}
        if blocks:
            found["depth"] = 1 + max(blocks)
        if "width" in found:
            found["heads"] = max(found["width"] // HEAD_WIDTH, 1)
        return found

    def _prepare(self, layout: Layout, tensors: Tensors, fields: dict[str, Any]) -> Prepared:
        """What a file lacks of pooler and projection the module lacks too, and a padded vocabulary is cut."""
        paths = {key: {rule.path.removeprefix("params/") for rule, _ in layout.table.taking(key)} for key in tensors}
        held, notes = self.complete(tensors, fields, {path for own in paths.values() for path in own})
        words = fields.get("vocab_size")
        tables = [key for key in held if {"embed/embedding", "readout/table"} & paths[key]]
        if words and any(is_padded(len(held[key]), words) for key in tables):
            rows = max(len(held[key]) for key in tables)
            notes += (f"the vocabulary's table is padded to {rows} rows, of which the first {words} were taken",)
            held |= {key: held[key][:words] for key in tables}
        return held, fields, notes

    def _inputs(self, tensors: Tensors, fields: Config) -> Shapes:
        """One token, or the image whose patches the positions are for: one patch where there are none."""
        if not self.images:
            return {"text": TOKEN}
        rows = [
            len(value)
            for layout in self.layouts(fields)
            for key, value in tensors.items()
            if value.ndim == 2 and any(rule.path == "params/position" for rule, _ in layout.table.taking(key))
        ]
        side = fields.get("patch", self.module.patch) * max(round(max((rows or [2])[0] - 1, 1) ** 0.5), 1)
        return {"image": image(side, side)}
