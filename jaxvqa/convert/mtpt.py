"""Checkpoints of CMSA's pre-training (github.com/haifangong/CMSA-MTPT-4-MedicalVQA): three files, one for each network.

Of an epoch the original writes `backbone_epoch-99.pth`, `a_decoder_epoch-99.pth` (b for brain, c for chest) and
`cmsa_epoch-99.pth`, the compatibility network. Each holds one network's tensors alone; CMSA itself starts from the backbone's.
docs/originals/cmsa.md, sections 10 and 11.
"""

import functools
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxvqa.convert import cmsa, files, layers, original
from jaxvqa.convert.layout import Layout
from jaxvqa.convert.table import Report, Rule, Table, Tensors, nested
from jaxvqa.convert.towers.resnet import RESNET
from jaxvqa.data.rad_text import RadVocabulary
from jaxvqa.errors import CheckpointError
from jaxvqa.models.mtpt import MTPT
from jaxvqa.models.towers.resnet import ResNet

UP_BLOCK = [
    *nested("conv1", "reduce", layers.CONV),
    *nested("norm1", "reduce_norm", layers.BATCH_NORM),
    *nested("deconv2", "double", layers.CONV_TRANSPOSE),
    *nested("norm2", "double_norm", layers.BATCH_NORM),
    *nested("conv3", "expand", layers.CONV),
    *nested("norm3", "expand_norm", layers.BATCH_NORM),
]
SEGMENTATION = [
    *(rule for i in (4, 3, 2, 1) for rule in nested(f"decoder{i}", f"up_{i}", UP_BLOCK)),
    *nested("final_deconv1", "final_up", layers.CONV_TRANSPOSE),
    *nested("final_conv2", "final_conv", layers.CONV),
    *nested("final_conv3", "pixel_logits", layers.CONV),
]
CLASSIFICATION = [
    *nested("fc.0", "hidden_0", layers.LINEAR),
    *nested("fc.1", "norm_0", layers.BATCH_NORM),
    *nested("fc.4", "hidden_1", layers.LINEAR),
    *nested("fc.5", "norm_1", layers.BATCH_NORM),
    *nested("fc.8", "logits", layers.LINEAR),
]
COMPATIBILITY = [
    *nested("w_emb", "embed", cmsa.EMBEDDING),
    *nested("q_emb", "question", cmsa.QUESTION),
    *nested("cmsa", "block", cmsa.NON_LOCAL),
    *nested("fc", "projection", layers.LINEAR),
    *nested("classifier", "classifier", cmsa.CLASSIFIER),
]


def _table(part: str, rules: list[Rule], *excused: str) -> Table:
    return Table(layers.in_collections(layers.under(part, rules)), (layers.COUNTER, *excused))


KEYS = {
    "backbone": _table("backbone", RESNET, r"fc\..*"),  # ImageNet's classifier in torchvision's own file
    "decoder": _table("decoder", [*SEGMENTATION, *CLASSIFICATION]),
    "compatibility": _table("compatibility", COMPATIBILITY, cmsa.POSITIONS.replace(".", r"\.")),
}
"""Network, which is also the first part of our paths -> the table of its file."""


def infer_sizes(tensors: Mapping[str, Tensors]) -> dict[str, Any]:
    """Reads the model's sizes and options from the tensors' names and shapes.

    No tensor shows the rates of dropout. A size whose tensor is missing is left out.

    Args:
      tensors: network -> its file's tensors.
    """
    backbone, decoder, compatibility = (tensors.get(part, {}) for part in KEYS)
    # With the prefixes of a CMSA checkpoint, which has the same parts.
    as_cmsa = {f"abd_v_emb.{key}": value for key, value in backbone.items()} | dict(compatibility)
    sizes = {field: value for field, value in cmsa.infer_sizes(as_cmsa).items() if field in MTPT.__dataclass_fields__}
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


class _ThreeFiles(original.Original):
    """The life cycle over three files: `source` and `path` are a table network -> file."""

    def open(self, source: Any, weights: str = "", prefix: str = "") -> Any:
        """Reads the files, of which a backbone's path stands for all three; see `files_of`."""
        paths = source if isinstance(source, Mapping) else files_of(source)
        return {part: files.read(path, weights=weights, prefix=prefix) for part, path in paths.items()}

    def load(self, source: Any, config: original.Config | None = None, inputs: Any = None) -> original.Checkpoint:
        """Reads the files of a pre-training; see `Original.load`.

        Raises:
          CheckpointError: a file is missing, cannot be read, or does not fit; lists all its faults.
        """
        if isinstance(source, Mapping) and source.keys() != KEYS.keys():
            given = ", ".join(source) or "none"
            raise CheckpointError(f"A pre-training is the files of {', '.join(KEYS)}; given are those of {given}.")
        read = self.open(source)
        tensors = {part: read[part].tensors for part in KEYS}
        found, whole = self.infer(read, {}), self.fields(read, config or {})
        if whole["task"] != found.get("task", "segment"):
            organ = {14: "abdomen", 3: "brain", 2: "chest"}.get(found.get("classes", 0), "ORGAN")
            raise CheckpointError(
                f"{read['decoder'].path} is a decoder with model.task = {found.get('task')!r} and {found.get('classes')} "
                f"classes, the config has {whole['task']!r}: give --config=configs/mtpt.py:{organ},real."
            )
        shapes = self.shapes(whole)
        variables: dict[str, dict[str, Any]] = {"params": {}, "batch_stats": {}}
        reports: list[Report] = []
        for (part, held), layout in zip(tensors.items(), self.layouts(whole), strict=True):
            own = {collection: {part: leaves[part]} for collection, leaves in shapes.items() if part in leaves}
            try:
                loaded, report = layout.read(held, own)
                if fault := cmsa.check_positions(held):
                    raise CheckpointError(fault)
            except CheckpointError as error:
                raise CheckpointError(f"{read[part].path}: {error}") from None
            reports.append(report)
            for collection, leaves in loaded.items():
                variables[collection] |= leaves
        batches = {part: layers.counted_batches(held) for part, held in tensors.items()}
        notes = tuple(f"{part}: {note}" for part, file in read.items() for note in file.notes)
        report = functools.reduce(operator.add, reports)
        return original.Checkpoint(variables, whole, {"batches": batches}, report=report, notes=notes)

    def save(self, path: Any, checkpoint: original.Checkpoint) -> list[Path]:
        """Writes the files that the original reads: same keys, order, shapes and dtypes.

        Args:
          path: network -> file, of any of the networks; or the backbone's file, for all of them beside it.
          checkpoint: what to write; its entry `organ` names the decoder's file.
        """
        paths = path if isinstance(path, Mapping) else files_of(path, checkpoint.entries.get("organ", "abdomen"))
        for part, file in paths.items():
            files.write(file, files.TorchFile(self.part(part, checkpoint)))
        return [Path(file) for file in paths.values()]

    def part(self, part: str, checkpoint: original.Checkpoint) -> dict[str, Any]:
        """The tensors of one network's file."""
        own = {name: {part: leaves[part]} for name, leaves in checkpoint.variables.items() if part in leaves}
        layout = dict(zip(KEYS, self.layouts(checkpoint.config), strict=True))[part]
        return layout.write(own, (checkpoint.entries.get("batches") or {}).get(part, 0))


ORIGINAL = _ThreeFiles(
    layouts=lambda config: [Layout(table, constants=cmsa.CONSTANTS) for table in KEYS.values()],
    infer=lambda read, given: infer_sizes({part: file.tensors for part, file in read.items()}),
    inputs=lambda tensors, config: {"image": original.image(32, 32), "question": original.TOKEN},
    start={"name": "mtpt", "vocab_size": 1, "classes": 1, "task": "segment"},
)

BACKBONE = original.Original(
    layouts=lambda config: [Layout(Table(layers.in_collections(RESNET), KEYS["backbone"].excused))],
    infer=lambda file, given: _backbone_fields(infer_sizes({"backbone": file.tensors})),
    inputs=lambda tensors, config: {"image": original.image(32, 32)},
    module=lambda config: ResNet(**config),
    call={"train": False},
)
"""A backbone's file alone, or torchvision's file of a residual network: what CMSA's branches start from."""


def _backbone_fields(sizes: Mapping[str, Any]) -> dict[str, Any]:
    return {"depth": int(sizes.get("branch", "resnet34").removeprefix("resnet"))} | sizes.get("branch_sizes", {})


def _of_run(contents: Any, noted: Mapping[str, Any]) -> dict[str, Any]:
    steps, seen = contents.adam.step if contents.adam else 0, noted.get("batches") or {}
    by_task = "abdomen" if contents.config.model.task == "segment" else "brain"
    organ = next((organ for organ in DECODERS if organ in contents.config.data.examples), by_task)
    return {"organ": organ, "batches": {part: max(seen.get(part, 0), steps) for part in KEYS}}


SYSTEMS = {
    "mtpt": original.System(
        ORIGINAL,
        "configs/mtpt.py:abdomen,real",
        RadVocabulary,
        counts={"vocabulary": "vocab_size", "class_names": "classes"},
        of_run=_of_run,
    ),
    "backbone": original.System(BACKBONE, "configs/mtpt.py:abdomen,real", part="backbone"),
}
