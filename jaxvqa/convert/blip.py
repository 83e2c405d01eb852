"""BLIP's checkpoints (github.com/salesforce/BLIP): keys, sizes, and what fine-tuning takes of a pre-training's file.

A file is a dict of `model`, `optimizer`, `config` and `epoch`. A tensor that encoder and decoder share stands in it once under
each of its names. docs/originals/blip.md, section 12.
"""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvqa import models
from jaxvqa.convert.adam import ADAMW, Optimizer
from jaxvqa.convert.files import TorchFile
from jaxvqa.convert.layers import LINEAR
from jaxvqa.convert.layout import Layout
from jaxvqa.convert.original import TOKEN, Checkpoint, Config, Original, Shapes, System, image, sizes_of
from jaxvqa.convert.table import Rule, Table, Tensors, nested
from jaxvqa.convert.towers.med import DECODER, ENCODER, POSITION_IDS, TWIN_ENCODER
from jaxvqa.convert.towers.vit import VIT, VIT_STACKED
from jaxvqa.data import tokenizers
from jaxvqa.data.answers import AnswerList
from jaxvqa.data.blip_text import ADDED, CaptionTokenizer
from jaxvqa.errors import CheckpointError
from jaxvqa.models.towers.vit import resized_positions
from jaxvqa.tasks.image_text import with_memory

_FEATURE_QUEUE = [
    Rule("image_queue", "queue/image", "e q -> q e"),
    Rule("text_queue", "queue/text", "e q -> q e"),
]
QUEUES = {
    "pair": [*_FEATURE_QUEUE, Rule("queue_ptr", "queue/place", "1 ->", "int64")],
    "image": [
        *_FEATURE_QUEUE,
        Rule("idx_queue", "queue/id", "1 q -> q", "int64"),
        Rule("ptr_queue", "queue/place", "1 ->", "int64"),
    ],
}
"""What the queue holds, by what belongs together: of pre-training, and of retrieval."""


def layout(config: Config) -> Layout:
    """How a model of this config is written; `positives` says whether there is a queue, and of what."""
    return Layout(
        Table(tuple(RULES[config.get("name", "blip")](config)), (r".*\.position_ids",)),
        stacked=(VIT_STACKED,),
        constants=(POSITION_IDS,),
    )


def _rules(config: Config) -> list[Rule]:
    queue = config.get("positives", "")

    def part(key: str, path: str, rules: list[Rule], there: bool = True) -> list[Rule]:
        return nested(key, path, rules) if there else []

    features = bool(config.get("features"))
    of_encoder = [
        *part("vision_proj", "params/image_projection", LINEAR, features),
        *part("text_proj", "params/text_projection", LINEAR, features),
        *part("itm_head", "params/match_head", LINEAR, config.get("matches", True)),
    ]
    copies = [
        *nested("visual_encoder_m", "momentum/vision_tower", VIT),
        *nested("vision_proj_m", "momentum/image_projection", LINEAR),
        *nested("text_encoder_m", "momentum/text_tower", ENCODER),
        *nested("text_proj_m", "momentum/text_projection", LINEAR),
    ]
    return [
        *([Rule("temp", "params/temperature")] if config.get("temperature") else []),
        *(QUEUES[queue] if queue else []),
        *nested("visual_encoder", "params/vision_tower", VIT),
        *part("text_encoder", "params/text_tower", ENCODER, config.get("reads", True)),
        *of_encoder,
        *(copies if queue else []),
        *part("text_decoder", "params/text_tower", DECODER, config.get("writes", True)),
    ]


def _vqa_rules(config: Config) -> list[Rule]:
    return [
        *nested("visual_encoder", "params/vision_tower", VIT),
        *nested("text_encoder", "params/question_tower", ENCODER),
        *nested("text_decoder", "params/answer_tower", DECODER),
    ]


def _nlvr_rules(config: Config) -> list[Rule]:
    return [
        *nested("visual_encoder", "params/vision_tower", VIT),
        *nested("text_encoder", "params/text_tower", TWIN_ENCODER),
        *nested("cls_head.0", "params/head_0", LINEAR),
        *nested("cls_head.2", "params/head_1", LINEAR),
    ]


RULES = {"blip": _rules, "blip_vqa": _vqa_rules, "blip_nlvr": _nlvr_rules}
"""A model's name -> the rules of its keys."""


VISION_SIZES = {"width": ("visual_encoder.cls_token", -1), "patch": ("visual_encoder.patch_embed.proj.weight", -1)}
HEAD_WIDTH = 64
"""Of each attention in the published sizes; no tensor says it."""


def text_sizes(tensors: Tensors, prefix: str) -> dict[str, int]:
    """The sizes of a text model whose keys begin so."""
    first = f"{prefix}embeddings."
    found = sizes_of(
        tensors,
        {
            "width": (f"{first}word_embeddings.weight", 1),
            "positions": (f"{first}position_embeddings.weight", 0),
            "hidden": (f"{prefix}encoder.layer.0.intermediate.dense.weight", 0),
        },
    )
    return found | {"depth": _count(tensors, rf"{re.escape(prefix)}encoder\.layer\.(\d+)\..*")} | _heads(found)


def vision_sizes(tensors: Tensors) -> dict[str, int]:
    """The sizes of the image encoder."""
    found = sizes_of(tensors, VISION_SIZES)
    hidden = sizes_of(tensors, {"hidden": ("visual_encoder.blocks.0.mlp.fc1.weight", 0)})
    if hidden.get("hidden") == 4 * found.get("width", 0):
        hidden = {}  # as it is by default
    return found | hidden | {"depth": _count(tensors, r"visual_encoder\.blocks\.(\d+)\..*")} | _heads(found)


def _heads(sizes: Mapping[str, int]) -> dict[str, int]:
    width = sizes.get("width", HEAD_WIDTH)
    return {"heads": width // HEAD_WIDTH} if width % HEAD_WIDTH == 0 else {}


def _count(tensors: Tensors, pattern: str) -> int:
    return 1 + max((int(m[1]) for key in tensors if (m := re.fullmatch(pattern, key))), default=-1)


def _infer(file: TorchFile, given: Config, *, positives: str) -> dict[str, Any]:
    """What the tensors decide, and of the towers' sizes what is not given."""
    tensors = file.tensors
    reads, writes = (
        ("text_encoder.embeddings.word_embeddings.weight" in tensors),
        any(key.startswith("text_decoder.") for key in tensors),
    )
    prefix = "text_encoder." if reads else "text_decoder.bert."
    found: dict[str, Any] = sizes_of(
        tensors,
        {"vocab_size": (f"{prefix}embeddings.word_embeddings.weight", 0), "features": ("vision_proj.weight", 0)},
    )
    sizes = _towers(tensors, prefix, given)
    return {
        "features": 0,
        **found,
        **{"reads": reads, "writes": writes, "matches": "itm_head.weight" in tensors},
        "temperature": 0.07 if "temp" in tensors else 0.0,
        "positives": positives,
        "queue": np.shape(tensors["image_queue"])[-1] if positives and "image_queue" in tensors else 0,
        **sizes,
    }


def _towers(tensors: Tensors, prefix: str, given: Config) -> dict[str, Any]:
    """Both towers; of their sizes those that are given count."""
    vision, text = vision_sizes(tensors), text_sizes(tensors, prefix)
    return {
        "vision": "vit-large" if vision.get("width") == 1024 else "vit-base",
        "vision_sizes": {**vision, **given.get("vision_sizes", {})},
        "text_sizes": {**text, **given.get("text_sizes", {})},
    }


def _infer_answers(file: TorchFile, given: Config) -> dict[str, Any]:
    """Sizes of the model that answers, or judges two images."""
    tensors = file.tensors
    found: dict[str, Any] = sizes_of(tensors, {"vocab_size": ("text_encoder.embeddings.word_embeddings.weight", 0)})
    found |= _towers(tensors, "text_encoder.", given)
    if given.get("name") == "blip_nlvr":
        merged = [int(m[1]) for key in tensors if (m := re.fullmatch(r".*layer\.(\d+)\..*merge_layer\.weight", key))]
        found["merge_from"] = min(merged, default=found["text_sizes"]["depth"])
    return found


def image_inputs(tensors: Tensors, config: Config) -> Shapes:
    """One image of the size that the position embeddings are of."""
    patch = config.get("vision_sizes", {}).get("patch", 16)
    tokens = np.shape(tensors["visual_encoder.pos_embed"])[1] if "visual_encoder.pos_embed" in tensors else 2
    side = patch * max(round((tokens - 1) ** 0.5), 1)
    return {"image": image(side, side)}


BESIDE = ("queue", "positives", "image_size", "special", "normalise")
"""What the `config` of a checkpoint has besides the model's fields."""


@dataclass(frozen=True)
class Whole:
    """A model with what its training keeps besides parameters: what a checkpoint's variables are.

    Attributes:
      config: the `model` part of a config, and of `BESIDE` the rows of the `queue` and its `positives`.
    """

    config: Mapping[str, Any]

    def init(self, key: jax.Array, **inputs: Any) -> dict[str, Any]:
        """Fresh variables; the momentum copies are as if they had moved already, since a file's have."""
        own = {name: value for name, value in self.config.items() if name not in BESIDE}
        model: Any = models.build(own)
        variables = model.init(key, **inputs)
        if not self.config.get("positives"):
            return dict(variables)
        found = with_memory(variables, key, self.config["queue"], model.features)
        return {**found, "queue": {**found["queue"], "batches": jnp.ones((), jnp.int32)}}


ENTRIES: Mapping[str, Any] = {
    "optimizer": Optimizer({**ADAMW, "lr": 3e-4, "weight_decay": 0.05}, held=("params", "momentum")),
    "config": None,
    "epoch": None,
}
"""What a file holds besides its tensors. The optimiser was given all of `model.parameters()`, momentum copies among them."""


def _original(fresh: str, *others: Config, **config: Any) -> Original:
    """`others`: models of other parts, by whose keys files are recognised besides."""
    return Original(
        layouts=lambda config: [layout(config)],
        infer=functools.partial(_infer, positives=config["positives"]),
        inputs=lambda tensors, config: {**image_inputs(tensors, config), "text": TOKEN},
        module=Whole,
        start={"name": "blip", "vocab_size": 1},
        decides=True,
        entry="model",
        entries=ENTRIES,
        fresh=fresh,
        name="checkpoint of BLIP",
        variants=tuple(("", one) for one in (config, *others)),
    )


def _two_images(tensors: Tensors, config: Config) -> Shapes:
    one = image_inputs(tensors, config)["image"]
    return {"image": jax.ShapeDtypeStruct((1, 2, *one.shape[1:]), one.dtype), "text": TOKEN}


def _original_of(name: str, inputs: Callable[[Tensors, Config], Shapes]) -> Original:
    return Original(
        layouts=lambda config: [layout({"name": name, **config})],
        infer=lambda file, given: _infer_answers(file, {"name": name, **given}),
        inputs=inputs,
        module=Whole,
        start={"name": name, "vocab_size": 1},
        decides=True,
        entry="model",
        entries=ENTRIES,
        name=f"checkpoint of BLIP ({name})",
        variants=(("", {"name": name}),),
    )


_TRAINED = {"features": 1, "temperature": 0.07, "matches": True, "reads": True}
_CAPTIONER = {"positives": "", "reads": False, "writes": True, "features": 0, "matches": False}
ORIGINALS = {
    "pair": _original("queue/(id|batches)", positives="pair", writes=True, **_TRAINED),
    "image": _original("queue/batches", positives="image", writes=False, **_TRAINED),
    "": _original("(?!)", _CAPTIONER, positives="", reads=True, writes=False, features=1, matches=True),
}
"""By what its queue holds: of pre-training, of retrieval; and of what needs none: matching, features, captions."""

VQA = _original_of(
    "blip_vqa", lambda tensors, config: {**image_inputs(tensors, config), "question": TOKEN, "text": TOKEN}
)
NLVR = _original_of("blip_nlvr", _two_images)


# --- fine-tuning from a pre-training --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adapted:
    """What a model takes of another one's file.

    Attributes:
      tensors: those that it takes, by its own keys.
      missing: its keys that the file does not give.
      unexpected: the file's keys that it has no use for.
      dropped: keys whose tensors have another shape.
      interpolated: position embeddings that were resized.
    """

    tensors: dict[str, np.ndarray]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    dropped: tuple[str, ...]
    interpolated: tuple[str, ...]


POSITIONS = ("visual_encoder.pos_embed", "visual_encoder_m.pos_embed")


def adapted(tensors: Tensors, target: Mapping[str, tuple[int, ...]]) -> Adapted:
    """What a model of other keys and sizes takes of a file, as the original loads it (docs/originals/blip.md, section 12).

    Args:
      tensors: the file's.
      target: the shapes of the model's own tensors by key, in its order.
    """
    found, interpolated = dict(tensors), []
    if any(".crossattention.self0." in key for key in target):
        found |= _doubled(tensors)
    for key in POSITIONS:
        if key in found and key in target and found[key].shape != target[key]:
            found[key] = np.asarray(resized_positions(found[key][0], target[key][1]))[None]
            interpolated.append(key)
    dropped = [key for key, shape in target.items() if key in found and found[key].shape != tuple(shape)]
    taken = {key: found[key] for key in target if key in found and key not in dropped}
    return Adapted(
        taken,
        missing=tuple(key for key in target if key not in taken),
        unexpected=tuple(key for key in found if key not in target),
        dropped=tuple(dropped),
        interpolated=tuple(interpolated),
    )


def _doubled(tensors: Tensors) -> dict[str, np.ndarray]:
    """Each cross-attention's tensors under the names of the first image's, and of the second's."""
    found: dict[str, np.ndarray] = {}
    for key, value in tensors.items():
        for one in (".crossattention.self.", ".crossattention.output.dense."):
            if one in key:
                found |= {key.replace(one, f"{one[:-1]}{i}."): value for i in (0, 1)}
    return found


def _assets(arguments: Any, config: Any, checkpoint: Checkpoint) -> dict[str, Any]:
    """The tokenizer, checked against the checkpoint's vocabulary; and the answer list of a model that answers."""
    special, folder = checkpoint.config.get("special"), arguments.source
    own = (folder if folder.is_dir() else folder.parent) if special is not None else config.data.tokenizer
    source = arguments.tokenizer or own
    asset = tokenizers.load(source, ADDED)
    tokenizer = CaptionTokenizer(asset)
    found = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.decode_begin}
    found |= {"sep_token_id": tokenizer.end, "pad_token_id": tokenizer.padding}
    if found["vocab_size"] != checkpoint.config["vocab_size"]:
        raise CheckpointError(
            f"The checkpoint has {checkpoint.config['vocab_size']} tokens, the tokenizer {source} with {' and '.join(ADDED)} "
            f"has {found['vocab_size']}: give the checkpoint's own with --tokenizer=DIR."
        )
    if wrong := [
        f"{name} is {n}, in {source} {found[name]}" for name, n in (special or {}).items() if n != found[name]
    ]:
        raise CheckpointError(
            f"The tokenizer's special tokens are not those of config.json: {'; '.join(wrong)}. Give the checkpoint's own "
            "with --tokenizer=DIR."
        )
    if checkpoint.config["name"] != "blip_vqa":
        return {"tokenizer": asset}
    if not arguments.answers:
        raise CheckpointError("A model that answers ranks a list of answers: give it with --answers=FILE.")
    return {"tokenizer": asset, "answers": list(AnswerList.from_file(arguments.answers).answers)}


def _settings(checkpoint: Checkpoint) -> dict[str, Mapping[str, Any]]:
    own = checkpoint.config
    config = {name: value for name, value in own.items() if name not in (*BESIDE, "vocab_size")}
    data = {"image_size": checkpoint.inputs["image"].shape[-2], **own.get("normalise", {})}
    loss = {name: own[name] for name in ("queue", "positives")} if own.get("positives") else {}
    positions = own.get("text_sizes", {}).get("positions")
    most = {} if positions is None else dict.fromkeys(("max_tokens", "max_answer_tokens"), positions)
    return {"model": config, "data": data, "most": most, "optim": _optim(checkpoint), "loss": loss}


def _optim(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings of the optimiser whose state comes along; its rate is the schedule's."""
    if checkpoint.adam is None:
        return {}
    settings = {**ADAMW, **checkpoint.adam.settings}
    b1, b2 = settings["betas"]
    return {"b1": b1, "b2": b2, "eps": settings["eps"], "decay": ((r".*", settings["weight_decay"]),)}


def _epoch(contents: Any, noted: Mapping[str, Any]) -> dict[str, Any]:
    """The number of the last epoch that is done, from 0 on; -1 before the first: the original goes on with the next."""
    size, step = contents.meta["data"]["size"], contents.meta["data"]["step"]
    if noted.get("epoch") is not None or not size:
        return {}
    return {"epoch": step // max(size // contents.config.batch_size, 1) - 1}


SYSTEMS = {
    name: System(
        original,
        config,
        counts={},
        options=("tokenizer", "answers") if original is VQA else ("tokenizer",),
        assets=_assets,
        settings=_settings,
        model="" if original in (VQA, NLVR) else "blip",
        written=written,
        collections=("momentum", "queue") if written else (),
        of_run=_epoch,
    )
    for name, original, config, written in (
        ("blip_pretrain", ORIGINALS["pair"], "configs/blip_pretrain.py:published", {"positives": "pair"}),
        ("blip_retrieval", ORIGINALS["image"], "configs/blip_retrieval.py:coco", {"positives": "image"}),
        ("blip_caption", ORIGINALS[""], "configs/blip_caption.py:coco", {}),
        ("blip_vqa", VQA, "configs/blip_vqa.py:vqa_v2", {}),
        ("blip_nlvr", NLVR, "configs/blip_nlvr.py:nlvr2", {}),
    )
}
