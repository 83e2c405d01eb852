"""SYSU-HCP's checkpoints (github.com/Rodger-Huang/SYSU-HCP-at-ImageCLEF-VQA-Med-2021): keys and the layout of the file.

A file is `backbone_epoch-E_ACC_ACCPP.pth`, an outer dict of `epoch`, `run_id` and `state_dict`, whose keys begin with
`module.`, or the tensors alone, with or without that prefix. Only its name tells the backbone. SYSU spec, section 11.

The networks with HAGAP list every tensor of their tower twice: as part of the ImageNet network that they were made from, and
under its own name. The latter is the one that counts, as in the original's own loading, and both are written. That ImageNet
network's classifier is in the file too, and nothing uses it.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvqa.convert import files
from jaxvqa.convert.layers import (
    BATCH_NORM,
    CONV,
    CONV_NO_BIAS,
    COUNTER,
    LINEAR,
    RESNET,
    counted_batches,
    in_collections,
    with_counters,
)
from jaxvqa.convert.table import Report, Rule, Table, nested, to_jax, to_torch
from jaxvqa.errors import CheckpointError, nearest
from jaxvqa.models import build
from jaxvqa.models.sysu_hcp import BACKBONES
from jaxvqa.models.towers import inception_resnet, inception_v4, polynet
from jaxvqa.models.towers.inception import Row
from jaxvqa.models.towers.vgg import BLOCKS

IMAGENET_CLASSES = 1000
"""Of the classifier that the networks with HAGAP hold and do not use."""


def _conv_norm(conv: str, norm: str, path: str) -> list[Rule]:
    return [*nested(conv, f"{path}/conv", CONV_NO_BIAS), *nested(norm, f"{path}/norm", BATCH_NORM)]


def _under(path: str, rules: Iterable[Rule]) -> list[Rule]:
    """Puts `path` before every rule's path, and leaves the keys."""
    return [Rule(r.key, f"{path}/{r.path}", r.change) for r in rules]


# --- towers ------------------------------------------------------------------------------------------------------------

_RESNEST_BLOCK = [
    *_conv_norm("conv1", "bn1", "first"),
    *nested("conv2.conv", "split/conv", CONV_NO_BIAS),
    *nested("conv2.bn0", "split/conv_norm", BATCH_NORM),
    *nested("conv2.fc1", "split/reduce", CONV),
    *nested("conv2.bn1", "split/reduce_norm", BATCH_NORM),
    *nested("conv2.fc2", "split/expand", CONV),
    *_conv_norm("conv3", "bn3", "third"),
    *_conv_norm("downsample.1", "downsample.2", "shortcut"),
]
RESNEST = [
    *_conv_norm("conv1.0", "conv1.1", "stem_0"),
    *_conv_norm("conv1.3", "conv1.4", "stem_1"),
    *_conv_norm("conv1.6", "bn1", "stem_2"),
    *nested("layer{s}.{i}", "stage_{s}/block_{i}", _RESNEST_BLOCK),
]
_DENSE_LAYER = [
    *nested("norm1", "norm_1", BATCH_NORM),
    *nested("conv1", "conv_1", CONV_NO_BIAS),
    *nested("norm2", "norm_2", BATCH_NORM),
    *nested("conv2", "conv_2", CONV_NO_BIAS),
]
DENSENET = [
    *nested("conv0", "stem_conv", CONV_NO_BIAS),
    *nested("norm0", "stem_norm", BATCH_NORM),
    *(
        Rule(f"denseblock{{b}}.denselayer{{i}}.{r.key}", f"block_{{b}}_layer_{{i}}_{r.path}", r.change)
        for r in _DENSE_LAYER
    ),
    *nested("transition{b}.norm", "transition_{b}_norm", BATCH_NORM),
    *nested("transition{b}.conv", "transition_{b}_conv", CONV_NO_BIAS),
    *nested("norm5", "norm", BATCH_NORM),
]
_REPVGG_BLOCK = [
    *nested("rbr_identity", "identity", BATCH_NORM),
    *_conv_norm("rbr_dense.conv", "rbr_dense.bn", "dense"),
    *_conv_norm("rbr_1x1.conv", "rbr_1x1.bn", "point"),
    *nested("rbr_reparam", "folded", CONV),
]
REPVGG = [
    *nested("stage0", "stem", _REPVGG_BLOCK),
    *nested("stage{s}.{i}", "stage_{s}_block_{i}", _REPVGG_BLOCK),
]
"""Both forms: a block has its branches or the one convolution that they are worth."""


def _vgg(depth: int, norm: bool, key: str) -> list[Rule]:
    """VGG's rules.

    Args:
      depth: 16 or 19.
      norm: whether with batch normalisation.
      key: how a layer is called, with `{n}` for its number among all layers, ReLUs and pools included, and `{part}` and `{m}`
        for the number of the part that it is in and its own number there. A part begins with a pool, but for the first.
    """
    rules, n = [], 0
    for part, count in enumerate(BLOCKS[depth], 1):
        start = n - 1 if n else 0
        for i in range(count):
            rules += nested(key.format(n=n, part=part, m=n - start), f"block_{part}_conv_{i}", CONV)
            if norm:
                name = key.format(n=n + 1, part=part, m=n + 1 - start)
                rules += nested(name, f"block_{part}_norm_{i}", BATCH_NORM)
            n += 3 if norm else 2
        n += 1
    return rules


_RESIZER = [
    *nested("conv1", "conv_1", CONV),
    *nested("conv2", "conv_2", CONV),
    *nested("bn2", "norm_2", BATCH_NORM),
    *_conv_norm("residual_blocks.res1.conv1", "residual_blocks.res1.bn1", "block_first"),
    *_conv_norm("residual_blocks.res1.conv2", "residual_blocks.res1.bn2", "block_second"),
    *nested("conv3", "conv_3", CONV),
    *nested("bn3", "norm_3", BATCH_NORM),
    *nested("conv4", "conv_4", CONV),
]

# --- towers that the published ensemble does not use ---------------------------------------------------------------------

_SE_BLOCK = [
    *_conv_norm("conv1", "bn1", "first"),
    *_conv_norm("conv2", "bn2", "second"),
    *_conv_norm("conv3", "bn3", "third"),
    *nested("se_module.fc1", "squeeze", CONV),
    *nested("se_module.fc2", "excite", CONV),
    *_conv_norm("downsample.0", "downsample.1", "shortcut"),
]
SE_RESNET = [
    *_conv_norm("layer0.conv1", "layer0.bn1", "stem"),
    *nested("layer{s}.{i}", "stage_{s}_block_{i}", _SE_BLOCK),
]
_SEPARABLE = [Rule("conv1.weight", "depthwise", "c 1 h w -> h w c"), *nested("pointwise", "pointwise", CONV_NO_BIAS)]


def _xception() -> list[Rule]:
    rules = [*_conv_norm("conv1", "bn1", "stem_0"), *_conv_norm("conv2", "bn2", "stem_1")]
    for b in range(1, 13):
        key, path, first = f"block{b}", f"block_{b}", int(b > 1)  # the first block begins without a ReLU
        rules += _conv_norm(f"{key}.skip", f"{key}.skipbn", f"{path}/shortcut")
        for i in range(3):
            rules += nested(f"{key}.rep.{first + 3 * i}", f"{path}/separable_{i}", _SEPARABLE)
            rules += nested(f"{key}.rep.{first + 3 * i + 1}", f"{path}/norm_{i}", BATCH_NORM)
    for i in (3, 4):
        rules += nested(f"conv{i}", f"separable_{i}", _SEPARABLE)
        rules += nested(f"bn{i}", f"norm_{i}", BATCH_NORM)
    return rules


def _unit(key: str, path: str) -> list[Rule]:
    return _conv_norm(f"{key}.conv", f"{key}.bn", path)


def _rows(key: str, path: str, rows: tuple[Row, ...]) -> list[Rule]:
    """Rows of units, which count the pools before them; one unit alone has no number."""
    rules: list[Rule] = []
    for r, row in enumerate(rows):
        places = [i for i, spec in enumerate(row) if not callable(spec)]
        for n, place in enumerate(places):
            rules += _unit(f"{key}{r}.{place}" if len(row) > 1 else f"{key}{r}", f"{path}row_{r}_unit_{n}")
    return rules


_BLOCK_C = {
    "branch0": "row_0_unit_0",
    "branch1_0": "row_1_unit_0",
    "branch1_1a": "row_1_wide",
    "branch1_1b": "row_1_high",
    "branch2_0": "row_2_unit_0",
    "branch2_1": "row_2_unit_1",
    "branch2_2": "row_2_unit_2",
    "branch2_3a": "row_2_wide",
    "branch2_3b": "row_2_high",
    "branch3.1": "row_3_unit_0",
}


def _inception_v4() -> list[Rule]:
    alone = {0: "", 1: "", 2: "", 3: ".conv", 5: ".conv"}
    rules: list[Rule] = []
    for i, rows in enumerate(inception_v4.LAYERS):
        key, path = f"features.{i}", f"layer_{i}"
        if rows is None:
            rules += [r for name, ours in _BLOCK_C.items() for r in _unit(f"{key}.{name}", f"{path}/{ours}")]
        elif i in alone:
            place = next(r for r, row in enumerate(rows) if not callable(row[0]))
            rules += _unit(key + alone[i], f"{path}/row_{place}_unit_0")
        else:
            rules += _rows(f"{key}.branch", f"{path}/", rows)
    return rules


def _residual(key: str, path: str, rows: tuple[Row, ...]) -> list[Rule]:
    return [*_rows(f"{key}.branch", f"{path}/rows/", rows), *nested(f"{key}.conv2d", f"{path}/project", CONV)]


INCEPTION_RESNET_V2 = [
    *_unit("conv2d_1a", "conv_1a"),
    *_unit("conv2d_2a", "conv_2a"),
    *_unit("conv2d_2b", "conv_2b"),
    *_unit("conv2d_3b", "conv_3b"),
    *_unit("conv2d_4a", "conv_4a"),
    *_rows("mixed_5b.branch", "mixed_5b/", inception_resnet.MIXED_5B),
    *_residual("repeat.{i}", "block_a_{i}", inception_resnet.A),
    *_rows("mixed_6a.branch", "mixed_6a/", inception_resnet.MIXED_6A),
    *_residual("repeat_1.{i}", "block_b_{i}", inception_resnet.B),
    *_rows("mixed_7a.branch", "mixed_7a/", inception_resnet.MIXED_7A),
    *_residual("repeat_2.{i}", "block_c_{i}", inception_resnet.C),
    *_residual("block8", "last_block", inception_resnet.C),
    *_unit("conv2d_7b", "conv_7b"),
]


def _poly_stage(stage: str, rows: tuple[Row, ...]) -> list[Rule]:
    """Both kinds of modules; where one has been built there are no keys of the other."""
    key, path = f"stage_{stage}.{{i}}", f"{stage}_{{i}}"
    rules: list[Rule] = []
    for r, row in enumerate(rows):
        for n, spec in enumerate(row):
            assert not callable(spec)
            name = f"path{r}_{spec[1]}x{spec[2]}" if len(row) > 1 else f"path{r}"
            rules += nested(f"{key}.{name}.conv", f"{path}/row_{r}_unit_{n}", CONV_NO_BIAS)
            rules += nested(f"{key}.{name}.bn_blocks.{{o}}", f"{path}/row_{r}_unit_{n}_norm_{{o}}", BATCH_NORM)
    rules += _unit(f"{key}.conv2d_blocks.{{p}}", f"{path}/project_{{p}}")
    rules += _rows(f"{key}.blocks.{{w}}.path", f"{path}/way_{{w}}/", rows)
    return [*rules, *_unit(f"{key}.blocks.{{w}}.conv2d", f"{path}/way_{{w}}_project")]


POLYNET = [
    *_unit("stem.conv1.0", "stem_0"),
    *_unit("stem.conv1.1", "stem_1"),
    *_unit("stem.conv1.2", "stem_2"),
    *_unit("stem.conv1_branch", "stem_3/row_1_unit_0"),
    *_unit("stem.conv2_short.{i}", "stem_4/row_0_unit_{i}"),
    *_unit("stem.conv2_long.{j}", "stem_4/row_1_unit_{j}"),
    *_unit("stem.conv2_branch", "stem_5/row_1_unit_0"),
    *_poly_stage("a", polynet.A),
    *_rows("reduction_a.path", "reduction_a/", polynet.REDUCTION_A),
    *_poly_stage("b", polynet.B),
    *_rows("reduction_b.path", "reduction_b/", polynet.REDUCTION_B),
    *_poly_stage("c", polynet.C),
]

# --- whole networks ----------------------------------------------------------------------------------------------------


def _table(*rules: Iterable[Rule], excused: str = "") -> Table:
    return Table(in_collections(rule for part in rules for rule in part), (COUNTER, *filter(None, [excused])))


def _plain(tower: list[Rule], classifier: str) -> Table:
    return _table(_under("tower", tower), nested(classifier, "head/classifier", LINEAR))


def _twice(attribute: str, tower: list[Rule]) -> Table:
    """A tower under an attribute, with its unused classifier, and under its own names."""
    last = nested("classifier", "head/classifier", LINEAR)
    return _table(nested(attribute, "tower", tower), _under("tower", tower), last, excused=rf"{attribute}\.fc\..*")


def _plain_vgg(depth: int, norm: bool) -> Table:
    head = [
        *nested("classifier.0", "head/hidden_1", LINEAR),
        *nested("classifier.3", "head/hidden_2", LINEAR),
        *nested("classifier.6", "head/classifier", LINEAR),
    ]
    return _table(_under("tower", _vgg(depth, norm, "features.{n}")), head)


def _twice_vgg(depth: int, norm: bool = False, *, resizer: bool = False, scales: int = 0) -> Table:
    tower = [*_vgg(depth, norm, "vgg.{n}"), *_vgg(depth, norm, "conv{part}.{m}")]
    head = nested("classifier", "head/classifier", LINEAR)
    if scales:
        head = [r for i in range(1, scales + 1) for r in nested(f"fc{i}", f"head/classifier_{i}", LINEAR)]
    return _table(nested("resizer", "resizer", _RESIZER) if resizer else [], _under("tower", tower), head)


KEYS: Mapping[str, Table] = {
    **{f"resnet{depth}": _plain(RESNET, "fc") for depth in (18, 34, 50, 101)},
    "resnet50HGap": _twice("resnet50", RESNET),
    **{f"resnest{depth}": _plain(RESNEST, "fc") for depth in (50, 101)},
    "resnest50HGap": _twice("resnest50", RESNEST),
    "vgg16": _plain_vgg(16, False),
    "vgg16_bn": _plain_vgg(16, True),
    "vgg19": _plain_vgg(19, False),
    "vgg19_bn": _plain_vgg(19, True),
    "vgg16HGap": _twice_vgg(16),
    "vgg16HGap_bn": _twice_vgg(16, True),
    "vgg16HGap_resizer": _twice_vgg(16, resizer=True),
    "vgg19HGap": _twice_vgg(19),
    "vgg16_add": _twice_vgg(16, scales=4),
    "vgg16_multi_scales": _twice_vgg(16, scales=4),
    **{
        f"densenet{depth}": _table(
            _under("tower", [Rule(f"features.{r.key}", r.path, r.change) for r in DENSENET]),
            nested("classifier", "head/classifier", LINEAR),
        )
        for depth in (121, 169, 201)
    },
    **{f"RepVGG-{size}": _plain(REPVGG, "linear") for size in ("B0", "B1", "B2")},
    "se_resnet50": _plain(SE_RESNET, "last_linear"),
    "xception": _plain(_xception(), "last_linear"),
    "inceptionv4": _plain(_inception_v4(), "last_linear"),
    "inceptionresnetv2": _plain(INCEPTION_RESNET_V2, "last_linear"),
    "polynet": _plain(POLYNET, "last_linear"),
}
"""Backbone -> its table."""

UNUSED = {"resnet50HGap": "resnet50.fc", "resnest50HGap": "resnest50.fc"}
"""Backbone -> key of the classifier that nothing uses."""

SIZED: Mapping[str, tuple[str, Mapping[str, str], Mapping[str, Any]]] = {
    "resnest": (
        "resnest50",
        {"layers": "blocks", "stem_width": "stem_width", "bottleneck_width": "bottleneck_width", "radix": "radix"},
        {"groups": 1, "deep_stem": True, "avg_down": True, "avd": True, "avd_first": False},
    ),
    "RepVGG": ("RepVGG-B0", {"num_blocks": "blocks", "width_multiplier": "widths"}, {}),
    "densenet": (
        "densenet121",
        {"block_config": "blocks", "growth_rate": "growth", "num_init_features": "width", "bn_size": "bottleneck"},
        {},
    ),
}
"""The original's class -> a backbone of that class; its option -> the tower's field; options that have one value here."""

SIZES = ("num_answers",)
"""Fields of the model that a checkpoint tells. The backbone's name has to be given, as do sizes other than the published."""


def infer_sizes(tensors: Mapping[str, np.ndarray], backbone: str) -> dict[str, Any]:
    """Reads off the number of classes; nothing where its tensor is missing."""
    names = [
        r.key for r in KEYS[backbone].rules if r.path.startswith("params/head/classifier") and r.path.endswith("bias")
    ]
    found = [len(tensors[name]) for name in names if name in tensors and tensors[name].ndim]
    return {"num_answers": found[-1]} if found else {}


def model_config(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Translates a name and options of the original's classes into the `model` part of a config.

    Args:
      model: a backbone's name, or `resnest`, `RepVGG` or `densenet` for one of other sizes.
      options: the arguments of its class.

    Raises:
      CheckpointError: lists each option that is not known, or not offered here.
    """
    rest = dict(options)
    config: dict[str, Any] = {"name": "sysu_hcp", "backbone": model, "num_answers": rest.pop("num_classes")}
    if model in SIZED:
        config["backbone"], names, fixed = SIZED[model]
        config["sizes"] = {names[name]: rest.pop(name) for name in names if name in rest}
        rest = {name: value for name, value in rest.items() if name not in fixed or value != fixed[name]}
    if model == "RepVGG":
        factors = config["sizes"].pop("widths")
        widths = [round(64 * factors[0]), *(round(n * f) for n, f in zip((64, 128, 256, 512), factors, strict=True))]
        config["sizes"]["widths"] = (min(64, widths[0]), *widths[1:])
    _known(config["backbone"])
    if rest:
        raise CheckpointError(f"{model} is not offered with {', '.join(f'{k} = {v!r}' for k, v in rest.items())}.")
    return config


@dataclasses.dataclass
class Converted:
    """A checkpoint of the original in our terms.

    Attributes:
      variables: `params` and `batch_stats`, nested dicts of float32 arrays.
      epoch: number of the epoch after which the file was written, from 0; None when it does not say.
      run_id: the original's number of the run, or None.
      batches: how many batches the statistics have seen.
      sizes: the fields `SIZES` of the model.
      unused: the tensors that nothing uses, by their key, for `save`.
      report: what was used.
    """

    variables: dict[str, Any]
    epoch: int | None
    run_id: int | None
    batches: int
    sizes: dict[str, Any]
    unused: dict[str, np.ndarray]
    report: Report


def load(path: files.Source, config: Mapping[str, Any]) -> Converted:
    """Reads a checkpoint of the original.

    Args:
      path: a `.pth` file in the original's layout or with the tensors alone, or `.safetensors`.
      config: the `model` part of a config, with the `backbone`. The number of classes is read from the file; where the config
        has one it must agree.

    Raises:
      CheckpointError: the file cannot be read, or does not fit; lists all faults.
    """
    backbone = _known(config.get("backbone"))
    file = files.read(path)
    # 1 stands for a size that neither tells: its tensor is missing, and shall be reported with all the other faults.
    sizes = {"num_answers": 1} | infer_sizes(file.tensors, backbone)
    sizes |= {name: value for name, value in config.items() if name in SIZES}
    shapes = target({"name": "sysu_hcp"} | dict(config.items()) | sizes)
    variables, report = to_jax(file.tensors, KEYS[backbone], shapes)
    unused = {key: file.tensors[key] for key in report.excused if not key.endswith("num_batches_tracked")}
    numbers = (files.number(file, name) for name in ("epoch", "run_id"))
    epoch, run_id = (None if value is None else int(value) for value in numbers)
    return Converted(variables, epoch, run_id, counted_batches(file.tensors), sizes, unused, report)


def save(
    path: str | Path,
    variables: Mapping[str, Any],
    backbone: str,
    *,
    epoch: int = 0,
    run_id: int = 0,
    batches: int = 0,
    unused: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes a checkpoint that the original reads: same keys, order, shapes, dtypes and outer layout.

    A `.safetensors` file holds the tensors alone.

    Args:
      path: the file to write; `.pth`, `.pt` or `.safetensors`.
      variables: our `params` and `batch_stats`.
      backbone: the network's name.
      epoch: number of the epoch after which this is written, from 0.
      run_id: the original's number of the run.
      batches: how many batches the statistics have seen.
      unused: the tensors that nothing uses, as `load` gave them. Zeros where they are not given: the original asks for them,
        and no output depends on them.
    """
    tensors = to_original(variables, backbone, batches, unused)
    files.write(path, files.TorchFile(tensors, prefixed=True, extra={"epoch": epoch, "run_id": run_id}))


def target(config: Mapping[str, Any]) -> dict[str, Any]:
    """The shapes and dtypes of the variables of a model of this config."""
    side = BACKBONES[config["backbone"]].image_size
    return jax.eval_shape(lambda key: build(config).init(key, jnp.zeros((1, side, side, 3))), jax.random.key(0))


def to_original(
    variables: Mapping[str, Any], backbone: str, batches: int, unused: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Turns our variables into the original's tensors, with what it writes besides: counters and the unused classifier."""
    tensors = with_counters(to_torch(variables, KEYS[_known(backbone)]), batches)
    if backbone not in UNUSED:
        return tensors
    classifier = UNUSED[backbone]
    network = classifier.removesuffix("fc")
    own = {key: value for key, value in tensors.items() if key.startswith(network)}
    width = len(next(value for key, value in reversed(own.items()) if key.endswith("running_var")))
    shapes = {f"{classifier}.weight": (IMAGENET_CLASSES, width), f"{classifier}.bias": (IMAGENET_CLASSES,)}
    rest = {key: (unused or {}).get(key, np.zeros(shape, np.float32)) for key, shape in shapes.items()}
    return own | rest | {key: value for key, value in tensors.items() if key not in own}


def _known(backbone: str | None) -> str:
    if backbone is None or backbone not in KEYS:
        hint = nearest(str(backbone), KEYS)
        raise CheckpointError(f"The model's backbone is {backbone!r}; there are keys of {', '.join(KEYS)}.{hint}")
    return backbone
