"""What a checkpoint of an original is, said once for reading and writing: its keys, and what else its file holds.

`Original` is a value: each system's file has one (or several), and the life cycle below serves all of them.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxvqa.convert import files
from jaxvqa.convert.adam import AdamState, Optimizer
from jaxvqa.convert.layers import counted_batches
from jaxvqa.convert.layout import Layout
from jaxvqa.convert.table import Report, Tensors
from jaxvqa.errors import CheckpointError
from jaxvqa.models import build

Config = Mapping[str, Any]
"""The `model` part of a config."""

Shapes = dict[str, Any]
"""What a model is called with: name -> ShapeDtypeStruct, or several of them."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of an original in our terms: what `Original.load` gives, and `save` takes.

    Attributes:
      variables: `params` and the other collections, nested dicts of float32 arrays.
      config: the `model` part of a config.
      entries: what else the file says, by the names of its entries, such as `epoch`; and `batches`, how many batches the
        statistics of batch normalisation have seen.
      adam: the optimiser's state; None without one.
      unused: the tensors that nothing reads, by their key; None when it is not known what the file held.
      layout: how the tensors were written; by default as the config says.
      inputs: name -> shape and dtype of what the model was called with.
      report: what was used.
      notes: what a user should know of how it was read.
    """

    variables: Mapping[str, Any]
    config: dict[str, Any]
    entries: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    adam: AdamState | None = None
    unused: Tensors | None = None
    layout: Layout | None = None
    inputs: Shapes = dataclasses.field(default_factory=dict)
    report: Report | None = None
    notes: tuple[str, ...] = ()

    @property
    def params(self) -> Any:
        """The parameters."""
        return self.variables["params"]


Prepared = tuple[Tensors, dict[str, Any], tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Original:
    """How an original's checkpoints are read and written.

    Attributes:
      layouts: (the `model` part of a config) -> the layouts in which files may hold such a model; the first is written.
      infer: (file, what is given of the `model` part of a config) -> the fields that the file determines.
      inputs: (tensors, config) -> name -> shape and dtype of what the model is called with, which its sizes may follow from.
      module: makes the module from the config.
      call: what the module is called with besides its inputs.
      start: fields of a model of which neither the file nor what is given says anything: its name, and 1 for a size whose
        tensor is missing, to be reported with all the other faults.
      decides: whether the file wins where both have a field; otherwise they must agree.
      entry: name of the file's entry with the tensors.
      entries: the other entries, in their order: the number that stands there where nothing says another, None for one that
        may be left out, or an `Optimizer`.
      wrapped: whether `module.` stands before every key that is written.
      read: reads the file.
      prepare: (layout, tensors, config) -> the same, changed, and notes on it: what only the tensors decide.
      fresh: regular expression of our paths that no file holds, which stay as the model begins.
      check: (tensors) -> what is wrong with tensors that nothing reads; empty when all is well.
      name: what messages call it.
      variants: (what to add to `--system=NAME`, config) of the models by which files are recognised.
    """

    layouts: Callable[[Config], Sequence[Layout]]
    infer: Callable[[Any, Config], dict[str, Any]]
    inputs: Callable[[Tensors, Config], Shapes]
    module: Callable[[Config], Any] = build
    call: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    start: Config = dataclasses.field(default_factory=dict)
    decides: bool = False
    entry: str = "state_dict"
    entries: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    wrapped: bool = False
    read: Callable[..., files.TorchFile] = files.read
    prepare: Callable[[Layout, Tensors, dict[str, Any]], Prepared] | None = None
    fresh: str = "(?!)"
    check: Callable[[Tensors], str] | None = None
    variants: tuple[tuple[str, Config], ...] = (("", {}),)
    name: str = "checkpoint of this system"

    def open(self, source: Any, weights: str = "", prefix: str = "") -> Any:
        """Reads the file; see `files.read`. One that has been read is returned as it is."""
        return self.read(source, self.entry, weights=weights, prefix=prefix)

    def load(self, source: files.Source, config: Config | None = None, inputs: Shapes | None = None) -> Checkpoint:
        """Reads a checkpoint.

        Args:
          source: the file, in the original's outer layout or with the tensors alone; `.safetensors` too.
          config: the `model` part of a config. What it leaves out is read from the file; what it has must agree with it.
          inputs: what the model is called with, where it is not what the file suggests: images that are not square.

        Raises:
          CheckpointError: the file cannot be read, or does not fit; lists all faults.
        """
        file = self.open(source)
        notes: tuple[str, ...] = ()
        whole = self.fields(file, config or {})
        layout = self.layout(whole, file.tensors)
        bare = layout.bare(file.tensors)
        tensors: Tensors = layout.current(file.tensors)
        if self.prepare:
            tensors, whole, notes = self.prepare(layout, tensors, whole)
            layout = self.layout(whole, tensors)
        given = inputs or self.inputs(tensors, whole)
        variables, report = self._variables(layout, tensors, whole, given)
        if self.check and (fault := self.check(tensors)):
            raise CheckpointError(fault)
        entries, adam = self._entries(file, layout, tensors, variables)
        if "batch_stats" in variables:
            entries["batches"] = counted_batches(file.tensors)
        if bare:
            layout = layout.as_bare()
        if report.differing:
            which = files.several([f"{key} differs from {winner}" for key, winner in report.differing])
            notes += (
                f"names of one parameter hold different values, of which the last counts, as in the original: {which}",
            )
        unused = {key: tensors[key] for key in report.excused if not key.endswith("num_batches_tracked")}
        return Checkpoint(variables, whole, entries, adam, unused, layout, given, report, (*file.notes, *notes))

    def save(self, path: str | Path, checkpoint: Checkpoint) -> list[Path]:
        """Writes a checkpoint that the original reads: same keys, order, shapes, dtypes and outer layout.

        An optimiser without a state is written as one that has not made a step. A `.safetensors` file holds the tensors alone.

        Returns:
          The files that were written.
        """
        layout, own = self._layout_of(checkpoint), checkpoint.entries
        entries = {name: default if own.get(name) is None else own[name] for name, default in self.entries.items()}
        extra: dict[str, Any] = {}
        for name, value in entries.items():
            if isinstance(value, Optimizer):
                extra[name] = value.write(checkpoint.adam, checkpoint.variables, layout, entries.get(value.rate))
            elif value is not None:
                extra[name] = value
        tensors = self.to_original(checkpoint)
        files.write(path, files.TorchFile(tensors, self.wrapped, extra or None, self.entry))
        return [Path(path)]

    def to_original(self, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
        """The original's tensors, with what it writes besides: counters and constants."""
        batches = checkpoint.entries.get("batches") or 0
        leaves = traverse_util.flatten_dict(dict(checkpoint.variables), sep="/")
        held = {path: leaf for path, leaf in leaves.items() if not re.fullmatch(self.fresh, path)}
        written = traverse_util.unflatten_dict(held, sep="/")
        return self._layout_of(checkpoint).write(written, batches, checkpoint.unused)

    def fields(self, file: Any, given: Config) -> dict[str, Any]:
        """The `model` part of a config: what is given, completed by what the file determines."""
        inferred = self.infer(file, given)
        return {**self.start, **given, **inferred} if self.decides else {**self.start, **inferred, **given}

    def layout(self, config: Config, tensors: Mapping[str, Any]) -> Layout:
        """The layout that tensors are written in.

        Raises:
          CheckpointError: they have the sign of none.
        """
        layouts = self.layouts(config)
        for layout in layouts:
            if not layout.sign or any(re.fullmatch(layout.sign, key) for key in tensors):
                return layout
        signs, some = " or ".join(layout.sign for layout in layouts), ", ".join(list(tensors)[:3])
        raise CheckpointError(f"The checkpoint holds no {self.name}: no key is {signs}; its first keys are {some}.")

    def shapes(self, config: Config, inputs: Shapes | None = None) -> Any:
        """The shapes and dtypes of the variables of a model of this config, called with these inputs."""
        module, given = self.module(config), inputs or self.inputs({}, config)
        return jax.eval_shape(lambda key, given: module.init(key, **given, **self.call), jax.random.key(0), given)

    def _layout_of(self, checkpoint: Checkpoint) -> Layout:
        return checkpoint.layout or self.layouts(checkpoint.config)[0]

    def _variables(
        self, layout: Layout, tensors: Tensors, config: Config, inputs: Shapes
    ) -> tuple[dict[str, Any], Report]:
        """The variables of a model of this config, filled from the tensors; what no file holds is as the model begins."""
        shapes = traverse_util.flatten_dict(self.shapes(config, inputs), sep="/")
        held = {path: leaf for path, leaf in shapes.items() if not re.fullmatch(self.fresh, path)}
        variables, report = layout.read(tensors, traverse_util.unflatten_dict(held, sep="/"))
        if held != shapes:
            given = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in inputs.items()}
            start = jax.tree.map(np.asarray, self.module(config).init(jax.random.key(0), **given, **self.call))
            both = traverse_util.flatten_dict(start, sep="/") | traverse_util.flatten_dict(variables, sep="/")
            variables = traverse_util.unflatten_dict(both, sep="/")
        return variables, report

    def _entries(
        self, file: files.TorchFile, layout: Layout, tensors: Tensors, variables: Mapping[str, Any]
    ) -> tuple[dict[str, Any], AdamState | None]:
        """What the file says besides its tensors, and its optimiser's state."""
        entries: dict[str, Any] = {}
        adam = None
        for name, default in self.entries.items():
            value = (file.extra or {}).get(name)
            if isinstance(default, Optimizer):
                adam = default.read(value, tensors, layout, variables["params"]) if value else None
            elif default is None:
                entries[name] = _plain(value)
            else:
                found = files.number(file, name)
                entries[name] = None if found is None else type(default)(found)
        return entries, adam


def _plain(value: Any) -> Any:
    """What JSON can hold of a value: numbers, texts, and tables of these by names; None for everything else."""
    if isinstance(value, Mapping):
        inner = {key: _plain(content) for key, content in value.items() if isinstance(key, str)}
        return {key: content for key, content in inner.items() if content is not None or value[key] is None}
    return value if isinstance(value, str | int | float | bool) else None


def sizes_of(tensors: Tensors, where: Mapping[str, tuple[str, int]]) -> dict[str, int]:
    """Reads sizes off the tensors' shapes: field -> (key, axis). A size whose tensor is missing is left out."""
    shapes = {field: np.shape(tensors[key]) for field, (key, _) in where.items() if key in tensors}
    return {
        field: shape[where[field][1]] for field, shape in shapes.items() if -len(shape) <= where[field][1] < len(shape)
    }


def image(height: int, width: int, channels: int = 3) -> jax.ShapeDtypeStruct:
    """One image, as an input."""
    return jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)


TOKEN = jax.ShapeDtypeStruct((1, 1), jnp.int32)
"""A text of one token, as an input."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """A second form of a system's checkpoints: folders as `save_pretrained` of Hugging Face's library writes them.

    Attributes:
      original: how they are read.
      sign: regular expression of keys that only this form has.
      save: (folder, contents of a work directory) -> the files that were written.
    """

    original: Original
    sign: str
    save: Callable[[Path, Any], list[Path]]

    def holds(self, tensors: Tensors) -> bool:
        """Whether tensors have the names of this form."""
        return any(re.fullmatch(self.sign, key) for key in tensors)


@dataclasses.dataclass(frozen=True)
class System:
    """What the command knows of an original: how to make a work directory of its checkpoints, and back.

    Attributes:
      original: how they are read and written.
      config: the config of its published checkpoints.
      model: `config.model.name` of its folders; the system's own name without.
      written: what the form of writing depends on besides the `model` part of a folder's config.
      collections: those that stand in a file beside the parameters.
      vocabulary: the class of its vocabulary, None for one that reads no questions.
      answers: the class of its answer list; None for one without.
      counts: entry of the assets -> field of the model with its length, which is in the data and not in the config.
      part: for a part of a model: the path at which `config.init_from` looks for it; None for a whole model.
      options: those of the command's options `activation`, `lm_head`, `tokenizer`, `answers` and `masks` that it has a use for
        besides `uses`.
      assets: makes the assets from (arguments, config, checkpoint) where the fields above do not say enough.
      settings: what a checkpoint says of a config, by its sections `model`, `data`, `optim` and `loss`, and of the `assets`;
        `most` holds the largest values that fields of `data` may have with it.
      folder: the form that its checkpoints have as folders; None without one.
      of_run: (contents of a work directory, what is noted there) -> entries of the file that differ from what is noted.
    """

    original: Original
    config: str
    vocabulary: Any = None
    answers: Any = None
    counts: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {"vocabulary": "vocab_size", "answers": "num_answers"}
    )
    part: str | None = None
    options: tuple[str, ...] = ()
    assets: Callable[..., Any] | None = None
    settings: Callable[[Checkpoint], dict[str, Mapping[str, Any]]] = lambda checkpoint: {"model": checkpoint.config}
    of_run: Callable[[Any, Mapping[str, Any]], dict[str, Any]] = lambda contents, noted: {}
    model: str = ""
    written: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    collections: tuple[str, ...] = ("batch_stats",)
    folder: Folder | None = None

    @property
    def uses(self) -> tuple[str, ...]:
        """The command's options that it has a use for; `config`, `weights` and `prefix` are for all."""
        of_questions = ("vocabulary", "questions") if self.vocabulary else ()
        return (*self.options, *of_questions, *(("answers",) if self.answers else ()))

    @property
    def originals(self) -> tuple[Original, ...]:
        """How its checkpoints are read, in each of their forms."""
        return (self.original, *([self.folder.original] if self.folder else []))
