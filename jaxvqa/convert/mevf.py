"""Checkpoints of BAN and SAN as CMSA-MTPT has them (github.com/haifangong/CMSA-MTPT-4-MedicalVQA), and MEVF's two files.

The models' files are laid out as CMSA's (`jaxvqa/convert/cmsa.py`), most of whose rules they share. MEVF
(github.com/aioz-ai/MICCAI19-MedVQA) published what its image branches start from: `pretrained_maml.weights` and
`pretrained_ae.pth`. docs/originals/cmsa.md, sections 5 and 11.
"""

import math
from collections.abc import Mapping
from typing import Any

from jaxvqa.convert import cmsa, layers, original
from jaxvqa.convert.files import TorchFile
from jaxvqa.convert.layout import Layout
from jaxvqa.convert.table import Rule, Table, Tensors, nested
from jaxvqa.convert.towers.resnet import RESNET
from jaxvqa.errors import CheckpointError
from jaxvqa.models import MODELS, build
from jaxvqa.models.mevf import AutoEncoder, MAMLBranch

MAML = [*nested("conv{i}", "conv_{i}", layers.CONV), *nested("conv{i}_bn", "norm_{i}", layers.BATCH_NORM)]
AUTOENCODER = [
    *nested("conv1", "conv_1", layers.CONV),
    *nested("conv2", "conv_2", layers.CONV),
    *nested("conv3", "conv_3", layers.CONV),
    *nested("tran_conv1", "up_1", layers.CONV_TRANSPOSE),
    *nested("conv4", "conv_4", layers.CONV),
    *nested("tran_conv2", "up_2", layers.CONV_TRANSPOSE),
    *nested("conv5", "conv_5", layers.CONV),
]
IMAGE = [
    *nested("modal_classifier", "organ", cmsa.ORGAN),
    *nested("abd_v_emb", "abdomen", RESNET),
    *nested("abd_convert.linear", "abdomen_vector", layers.LINEAR),
    *nested("brain_v_emb", "head", RESNET),
    *nested("brain_convert.linear", "head_vector", layers.LINEAR),
    *nested("chest_v_emb", "chest", RESNET),
    *nested("chest_convert.linear", "chest_vector", layers.LINEAR),
    *nested("maml_v_emb", "maml", MAML),
    *nested("ae_v_emb", "autoencoder", AUTOENCODER),
    *nested("convert", "autoencoder_vector", layers.LINEAR),
]
BILINEAR = [
    Rule("v_att.logits.h_bias", "attention/bias", "1 g 1 1 -> g"),
    Rule("v_att.logits.h_mat_g", "attention/g"),
    Rule("v_att.logits.h_mat_v", "attention/v", "1 g 1 d -> g d"),
    *nested("v_att.logits.v_net.main.1", "attention/image", layers.WEIGHT_NORM_LINEAR),
    *nested("v_att.logits.q_net.main.1", "attention/question", layers.WEIGHT_NORM_LINEAR),
    *nested("b_net.{g}.v_net.main.1", "image_{g}", layers.WEIGHT_NORM_LINEAR),
    *nested("b_net.{g}.q_net.main.1", "question_{g}", layers.WEIGHT_NORM_LINEAR),
    *nested("q_prj.{k}.main.1", "merge_{k}", layers.WEIGHT_NORM_LINEAR),
]
MAX_STACKS = 16
"""The tables know the layers of this many stacks; the published model has two."""


def _stack(stack: int, question: str, image: str, score: str) -> list[Rule]:
    return [
        *nested(question, f"question_{stack}", layers.LINEAR),
        *nested(image, f"image_{stack}", layers.LINEAR_NO_BIAS),
        *nested(score, f"score_{stack}", layers.LINEAR),
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
        *nested("w_emb", "embed", cmsa.EMBEDDING),
        *nested("q_emb", "question", cmsa.QUESTION),
        *layers.under("fusion", fusion),
        *nested("classifier", "classifier", cmsa.CLASSIFIER),
        *layers.under("image", IMAGE),
    ]
    return Table(rules=layers.in_collections(rules), excused=(layers.COUNTER, cmsa.POSITIONS.replace(".", r"\.")))


KEYS = {"ban": _table(BILINEAR), "san": _table(STACKED)}
"""Model -> its table."""


def infer_sizes(tensors: Tensors) -> dict[str, Any]:
    """Reads the model's `name`, sizes and options from the tensors' names and shapes.

    No tensor shows the rates of dropout. A size whose tensor is missing is left out.
    """
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    name = "san" if "v_att.fc11.weight" in shapes else "ban"
    sizes: dict[str, Any] = {"name": name}
    known = MODELS[name].__dataclass_fields__
    sizes |= {field: value for field, value in cmsa.infer_sizes(tensors).items() if field in known}
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
    sizes |= original.sizes_of(tensors, where)
    if "attention_rank" in sizes:
        sizes["attention_rank"] //= max(sizes.get("width", 1), 1)
    maml, autoencoder = ("maml_v_emb.conv1.weight" in shapes, "ae_v_emb.conv1.weight" in shapes)
    if "abd_v_emb.conv1.weight" in shapes:
        sizes |= {"image_branches": "distmodal", "pool": "abd_convert.linear.weight" not in shapes}
    elif maml or autoencoder:
        sizes["image_branches"] = ("mevf" if maml else "autoencoder") if autoencoder else "maml"
    return sizes


def _infer(file: TorchFile, given: original.Config) -> dict[str, Any]:
    found = infer_sizes(file.tensors)
    if given.get("name", "ban") not in KEYS:
        raise CheckpointError(f"model.name is {given['name']!r}, neither 'ban' nor 'san'.")
    if given.get("image_branches") == "resnet50":
        raise CheckpointError("Checkpoints with one ResNet-50 (the original's --multitask) cannot be converted.")
    # A file says nothing of the other model's fusion.
    known = MODELS[given.get("name", found["name"])].__dataclass_fields__
    return {field: value for field, value in found.items() if field in known}


def _inputs(tensors: Tensors, config: original.Config) -> original.Shapes:
    """Square images that fit the auto-encoder's vector (`image_128`) and the organ classifier (`image`)."""
    found = original.sizes_of(tensors, {"code": ("convert.weight", -1), "channels": ("ae_v_emb.conv3.weight", 0)})
    side = 4 * max(math.isqrt(found.get("code", 0) // max(found.get("channels", 1), 1)), 1)
    every = {
        "image_84": original.image(16, 16, 1),  # of any size
        "image_128": original.image(side, side, 1),
        "image": original.image(*cmsa.image_size_of(tensors)),
    }
    return {name: every[name] for name in build(config).inputs if name in every} | {"question": original.TOKEN}


def _original(name: str) -> original.Original:
    return original.Original(
        layouts=lambda config: [Layout(KEYS[config.get("name", name)], constants=cmsa.CONSTANTS)],
        infer=_infer,
        inputs=_inputs,
        start=cmsa.UNKNOWN,
        entry="model_state",
        entries=cmsa.ENTRIES,
        check=cmsa.check_positions,
        variants=(("", {"name": name}),),
    )


ORIGINAL = _original("ban")
"""Of both models: a checkpoint's config names its own."""

# --- what MEVF published for its two image branches ----------------------------------------------------------------------

MAML_FILE = Table(layers.in_collections([Rule("conv{i}", "conv_{i}/kernel"), Rule("b{i}", "conv_{i}/bias")]))
"""Kernels are stored as ours: height, width, input, output."""

AUTOENCODER_FILE = Table(layers.in_collections(AUTOENCODER))

MAML_ORIGINAL = original.Original(
    layouts=lambda config: [Layout(MAML_FILE)],
    infer=lambda file, given: {"width": 1} | original.sizes_of(file.tensors, {"width": ("conv1", -1)}),
    inputs=lambda tensors, config: {"image": original.image(16, 16, 1)},
    module=lambda config: MAMLBranch(**config),
    call={"train": False},
    fresh=r"(params|batch_stats)/norm_.*",
)
"""`pretrained_maml.weights`, a pickle of NumPy arrays that holds no batch norms."""

AUTOENCODER_ORIGINAL = original.Original(
    layouts=lambda config: [Layout(AUTOENCODER_FILE)],
    infer=lambda file, given: {"width": 4} | original.sizes_of(file.tensors, {"width": ("conv1.weight", 0)}),
    inputs=lambda tensors, config: {"image": original.image(4, 4, 1)},
    module=lambda config: AutoEncoder(**config),
)
"""`pretrained_ae.pth`."""


def _settings(checkpoint: original.Checkpoint) -> dict[str, Mapping[str, Any]]:
    model = dict(checkpoint.config)
    if model.get("image_width") == 1024:
        del model["image_width"]  # the model's own, which configs leave out
    return cmsa.settings(checkpoint) | {"model": model}


_RAD = {**cmsa.RAD, "settings": _settings}
_PART = "configs/cmsa.py:vqa_rad,ban"
SYSTEMS = {
    **{name: original.System(_original(name), f"configs/cmsa.py:vqa_rad,{name}", **_RAD) for name in KEYS},
    "maml": original.System(MAML_ORIGINAL, _PART, part="image/maml"),
    "autoencoder": original.System(AUTOENCODER_ORIGINAL, _PART, part="image/autoencoder"),
}
