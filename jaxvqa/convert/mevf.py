"""Checkpoints of BAN and SAN as CMSA-MTPT has them (github.com/haifangong/CMSA-MTPT-4-MedicalVQA), and MEVF's two files.

The models' files are laid out as CMSA's (`jaxvqa/convert/cmsa.py`), most of whose rules they share. MEVF
(github.com/aioz-ai/MICCAI19-MedVQA) published what its image branches start from: `pretrained_maml.weights` and
`pretrained_ae.pth`. CMSA spec, sections 5 and 11.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvqa.convert import adam, cmsa, files, numpy_pickle
from jaxvqa.convert.cmsa import CLASSIFIER, EMBED_WIDTHS, EMBEDDING, ORGAN, POSITIONS, QUESTION, Converted
from jaxvqa.convert.layers import (
    BATCH_NORM,
    CONV,
    CONV_TRANSPOSE,
    COUNTER,
    LINEAR,
    LINEAR_NO_BIAS,
    WEIGHT_NORM_LINEAR,
    in_collections,
)
from jaxvqa.convert.table import Report, Rule, Table, nested, to_jax
from jaxvqa.convert.towers.resnet import RESNET
from jaxvqa.errors import CheckpointError, nearest
from jaxvqa.models import build
from jaxvqa.models.mevf import AutoEncoder, MAMLBranch

MAML = [*nested("conv{i}", "conv_{i}", CONV), *nested("conv{i}_bn", "norm_{i}", BATCH_NORM)]
AUTOENCODER = [
    *nested("conv1", "conv_1", CONV),
    *nested("conv2", "conv_2", CONV),
    *nested("conv3", "conv_3", CONV),
    *nested("tran_conv1", "up_1", CONV_TRANSPOSE),
    *nested("conv4", "conv_4", CONV),
    *nested("tran_conv2", "up_2", CONV_TRANSPOSE),
    *nested("conv5", "conv_5", CONV),
]
IMAGE = [
    *nested("modal_classifier", "organ", ORGAN),
    *nested("abd_v_emb", "abdomen", RESNET),
    *nested("abd_convert.linear", "abdomen_vector", LINEAR),
    *nested("brain_v_emb", "head", RESNET),
    *nested("brain_convert.linear", "head_vector", LINEAR),
    *nested("chest_v_emb", "chest", RESNET),
    *nested("chest_convert.linear", "chest_vector", LINEAR),
    *nested("maml_v_emb", "maml", MAML),
    *nested("ae_v_emb", "autoencoder", AUTOENCODER),
    *nested("convert", "autoencoder_vector", LINEAR),
]
BILINEAR = [
    Rule("v_att.logits.h_bias", "attention/bias", "1 g 1 1 -> g"),
    Rule("v_att.logits.h_mat_g", "attention/g"),
    Rule("v_att.logits.h_mat_v", "attention/v", "1 g 1 d -> g d"),
    *nested("v_att.logits.v_net.main.1", "attention/image", WEIGHT_NORM_LINEAR),
    *nested("v_att.logits.q_net.main.1", "attention/question", WEIGHT_NORM_LINEAR),
    *nested("b_net.{g}.v_net.main.1", "image_{g}", WEIGHT_NORM_LINEAR),
    *nested("b_net.{g}.q_net.main.1", "question_{g}", WEIGHT_NORM_LINEAR),
    *nested("q_prj.{k}.main.1", "merge_{k}", WEIGHT_NORM_LINEAR),
]
MAX_STACKS = 16
"""The tables know the layers of so many stacks; the published model has two."""


def _stack(stack: int, question: str, image: str, score: str) -> list[Rule]:
    return [
        *nested(question, f"question_{stack}", LINEAR),
        *nested(image, f"image_{stack}", LINEAR_NO_BIAS),
        *nested(score, f"score_{stack}", LINEAR),
    ]


STACKED = [
    # The layers of all stacks but the first stand in one list, three for each.
    *(
        rule
        for k in range(1, MAX_STACKS)
        for rule in _stack(k, *(f"v_att.layers.{3 * (k - 1) + part}" for part in range(3)))
    ),
    *_stack(0, "v_att.fc11", "v_att.fc12", "v_att.fc13"),
]


def _table(fusion: list[Rule]) -> Table:
    rules = [
        *nested("w_emb", "embed", EMBEDDING),
        *nested("q_emb", "question", QUESTION),
        *(Rule(r.key, f"fusion/{r.path}", r.change) for r in fusion),
        *nested("classifier", "classifier", CLASSIFIER),
        *(Rule(r.key, f"image/{r.path}", r.change) for r in IMAGE),
    ]
    return Table(rules=in_collections(rules), excused=(COUNTER, POSITIONS.replace(".", r"\.")))


KEYS = {"ban": _table(BILINEAR), "san": _table(STACKED)}
"""Model -> its table."""

OPTIONS = {
    "n_words": "vocab_size",
    "n_answers": "num_answers",
    "emb_dim": "embed_width",
    "num_hid": "width",
    "self_att": "self_attention",
    "dm_feat_dim": "image_width",
}
"""The original's option -> field of the models that takes its value."""

FUSION_OPTIONS = {"ban": {"gamma": "glimpses"}, "san": {"num_stacks": "stacks"}}
"""Model -> the same, of its fusion; the original has all options for both."""

OTHER_OPTIONS = ("model", "op", "rnn", "emb_init", "feat_dim", "maml", "autoencoder", "distmodal", "multitask", "v_dim")
"""Options of the original that take some translation."""

INPUT_OPTIONS = ("question_len", "image_size", "eps_cnn", "use_counter", "gamma", "num_stacks")
"""Options of the original that say what goes into the model, that never change, or that only the other model uses."""

SIZES = (
    "vocab_size",
    "num_answers",
    "image_branches",
    "embed_width",
    "tables",
    "width",
    "rnn",
    "self_attention",
    "maml_width",
    "autoencoder_width",
    "code_width",
    "depth",
    "branch_width",
    "image_width",
    "pool",
    "organ_width",
    "organ_hidden",
    "glimpses",
    "attention_rank",
    "stacks",
)
"""Fields of the models that a checkpoint tells; see `infer_sizes`."""


def model_config(options: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the original's options into the `model` part of a config.

    Raises:
      CheckpointError: lists each option that is not known, and combinations that the original cannot build.
    """
    name = str(options.get("model", "BAN")).lower()
    known = (*OPTIONS, *OTHER_OPTIONS, *INPUT_OPTIONS)
    faults = [f"unknown option {option}.{nearest(option, known)}" for option in options if option not in known]
    if name not in KEYS:
        faults.append(f"model is {options['model']}, neither BAN nor SAN.")
    chosen = tuple(option for option in ("maml", "autoencoder", "distmodal", "multitask") if options.get(option))
    branches = {
        ("maml", "autoencoder"): "mevf",
        ("maml",): "maml",
        ("autoencoder",): "autoencoder",
        ("distmodal",): "distmodal",
        ("multitask",): "resnet50",
    }
    if chosen not in branches:
        faults.append(f"no image branches are chosen by {' and '.join(chosen) or 'none of the options'}.")
    if faults:
        raise CheckpointError("The options are none of BAN and SAN: " + " ".join(faults))
    config: dict[str, Any] = {"name": name, "image_branches": branches[chosen]}
    if options.get("emb_init") in EMBED_WIDTHS:
        config["embed_width"] = EMBED_WIDTHS[options["emb_init"]]
    fields = OPTIONS | FUSION_OPTIONS[name]
    config |= {fields[option]: value for option, value in options.items() if option in fields}
    if "op" in options:
        config["tables"] = 2 if "c" in options["op"] else 1
    if "rnn" in options:
        config["rnn"] = options["rnn"].lower()
    if "feat_dim" in options:
        config |= {"maml_width": options["feat_dim"], "code_width": options["feat_dim"]}
    if chosen == ("multitask",) and "v_dim" in options:
        config["image_width"] = options["v_dim"]
    return config


def infer_sizes(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Reads the model's `name`, sizes and options from the tensors' names and shapes.

    Nothing tells the rates of dropout. A size whose tensor is missing is left out.
    """
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    name = "san" if "v_att.fc11.weight" in shapes else "ban"
    of_cmsa = cmsa.infer_sizes(tensors)
    sizes: dict[str, Any] = {"name": name} | {field: value for field, value in of_cmsa.items() if field in SIZES}
    where = {  # field -> (key, axis)
        "maml_width": ("maml_v_emb.conv1.weight", 0),
        "autoencoder_width": ("ae_v_emb.conv1.weight", 0),
        "code_width": ("convert.weight", 0),
        "image_width": ("abd_convert.linear.weight", 0),
    }
    # With self-attention the question does not tell the fusion's width.
    where |= {"width": ("v_att.fc11.weight", 0) if name == "san" else ("b_net.0.v_net.main.1.bias", 0)}
    if name == "ban":
        where |= {"glimpses": ("v_att.logits.h_bias", 1), "attention_rank": ("v_att.logits.h_mat_v", 3)}
    else:
        layers = [key for key in shapes if key.startswith("v_att.layers.") and key.endswith(".weight")]
        sizes["stacks"] = 1 + math.ceil(len(layers) / 3)
    sizes |= {field: shapes[key][axis] for field, (key, axis) in where.items() if len(shapes.get(key, ())) > axis}
    if "attention_rank" in sizes:
        sizes["attention_rank"] //= max(sizes.get("width", 1), 1)
    maml, autoencoder = ("maml_v_emb.conv1.weight" in shapes, "ae_v_emb.conv1.weight" in shapes)
    if "abd_v_emb.conv1.weight" in shapes:
        sizes |= {"image_branches": "distmodal", "pool": "abd_convert.linear.weight" not in shapes}
    elif maml or autoencoder:
        sizes["image_branches"] = ("mevf" if maml else "autoencoder") if autoencoder else "maml"
    return sizes


def target(config: Mapping[str, Any], image_128: tuple[int, int], image: tuple[int, int]) -> dict[str, Any]:
    """The shapes and dtypes of the variables of a model of this config, for images of these heights and widths."""
    model = build(config)
    batch: dict[str, Any] = {
        "image_84": jnp.zeros((1, 16, 16, 1)),  # of any size
        "image_128": jnp.zeros((1, *image_128, 1)),
        "image": jnp.zeros((1, *image, 3)),
        "question": jnp.zeros((1, 1), jnp.int32),
    }
    batch = {name: value for name, value in batch.items() if name in model.inputs}
    return jax.eval_shape(lambda key: model.init(key, **batch), jax.random.key(0))


def image_sizes(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[int, int]]:
    """The square images that fit the auto-encoder's vector (`image_128`) and the organ classifier (`image`)."""
    side, organ_width = 0, 64
    if "convert.weight" in tensors and "ae_v_emb.conv3.weight" in tensors:
        side = math.isqrt(tensors["convert.weight"].shape[-1] // max(len(tensors["ae_v_emb.conv3.weight"]), 1))
    if "modal_classifier.conv.0.weight" in tensors:
        organ_width = len(tensors["modal_classifier.conv.0.weight"])
    return {"image_128": (4 * max(side, 1),) * 2, "image": cmsa.image_size_of(tensors, organ_width)}


def load(
    path: files.Source, config: Mapping[str, Any], images: Mapping[str, tuple[int, int]] | None = None
) -> Converted:
    """Reads a checkpoint of the original.

    Args:
      path: a `.pth` file in the original's layout or with the tensors alone, or `.safetensors`.
      config: the `model` part of a config. Sizes that it leaves out are read from the file, and so is its `name`; those
        that it has must agree with it.
      images: `image_128` and `image` -> height and width, where they are not square.

    Returns:
      What the file holds; `sizes` has the fields `SIZES` that it tells, and the images' sizes.

    Raises:
      CheckpointError: the file cannot be read, or does not fit; lists all faults.
    """
    file = files.read(path, "model_state")
    # 1 stands for a size that neither tells: its tensor is missing, and shall be reported with all the other faults.
    found = {"vocab_size": 1, "num_answers": 1} | infer_sizes(file.tensors)
    whole = found | dict(config.items())
    if whole["name"] not in KEYS:
        raise CheckpointError(f"model.name is {whole['name']!r}, neither 'ban' nor 'san'.")
    if whole.get("image_branches") == "resnet50":
        raise CheckpointError("Checkpoints with one ResNet-50 (the original's --multitask) cannot be converted.")
    if whole["name"] != found["name"]:  # its fusion's fields are none of the config's model
        whole = {field: value for field, value in whole.items() if field in config or field not in _FUSION_SIZES}
    images = image_sizes(file.tensors) | dict(images or {})
    table, shapes = KEYS[whole["name"]], target(whole, **images)
    variables, report = cmsa.from_original(file.tensors, shapes, table)
    sizes = {field: value for field, value in whole.items() if field in SIZES} | images
    return cmsa.converted(file, variables, shapes, sizes, report, table)


_FUSION_SIZES = ("glimpses", "attention_rank", "stacks")


def save(
    path: str | Path,
    variables: Mapping[str, Any],
    name: str,
    state: adam.AdamState | None = None,
    epoch: int = 0,
    batches: int = 0,
) -> None:
    """Writes a checkpoint that the original reads, as `cmsa.save` does; `name` is the model, `ban` or `san`."""
    cmsa.save(path, variables, state, epoch, batches, KEYS[name])


# --- what MEVF published for its two image branches ----------------------------------------------------------------------

MAML_FILE = Table(in_collections([Rule("conv{i}", "conv_{i}/kernel"), Rule("b{i}", "conv_{i}/bias")]))
"""Kernels are stored as ours: height, width, input, output."""

AUTOENCODER_FILE = Table(in_collections(AUTOENCODER))


def load_maml(path: str | Path) -> tuple[dict[str, Any], Report]:
    """Reads `pretrained_maml.weights`, a pickle of NumPy arrays, without unpickling it.

    Returns:
      The variables of `MAMLBranch`, whose batch norms are as they start, since the file has none of them; and a report.
    """
    tensors = numpy_pickle.read(path)
    width = tensors["conv1"].shape[-1] if "conv1" in tensors and tensors["conv1"].ndim else 1
    branch = MAMLBranch(width)
    variables = jax.tree.map(np.asarray, branch.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)), train=False))
    stored = {name: layer for name, layer in variables["params"].items() if name.startswith("conv_")}
    loaded, report = to_jax(tensors, MAML_FILE, {"params": stored})
    return variables | {"params": variables["params"] | loaded["params"]}, report


def load_autoencoder(path: files.Source) -> tuple[dict[str, Any], Report]:
    """Reads `pretrained_ae.pth`: the variables of `AutoEncoder`, and a report."""
    tensors = files.read(path).tensors
    width = len(tensors["conv1.weight"]) if "conv1.weight" in tensors and tensors["conv1.weight"].ndim else 4
    image = jnp.zeros((1, 4, 4, 1))
    return to_jax(tensors, AUTOENCODER_FILE, jax.eval_shape(AutoEncoder(width).init, jax.random.key(0), image))
