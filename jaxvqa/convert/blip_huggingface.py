"""BLIP as Hugging Face's library keeps it: a folder with `config.json`, tensors under its own names, and a tokenizer's files.

The classes `BlipForConditionalGeneration`, `BlipForQuestionAnswering` and `BlipForImageTextRetrieval`: Salesforce's folders
`blip-image-captioning-base`, `blip-vqa-base` and `blip-itm-base-coco`. Text models have the names of the original, the image
encoder has others. What no tensor says, such as the heads and the epsilon of the normalisations, `config.json` does.
"""

import dataclasses
import functools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvqa.convert import blip, files, pretrained
from jaxvqa.convert.layers import LINEAR
from jaxvqa.convert.layout import Layout
from jaxvqa.convert.original import Checkpoint, Config, Folder, Original, Shapes, System, image
from jaxvqa.convert.table import Rule, Table, Tensors, nested
from jaxvqa.convert.towers.med import DECODER, ENCODER
from jaxvqa.convert.towers.vit import HUGGING_FACE_STACKED, HUGGING_FACE_VIT
from jaxvqa.convert.workdir import Contents
from jaxvqa.data.blip_text import CaptionTokenizer
from jaxvqa.errors import CheckpointError, DataError
from jaxvqa.fields import COUNT, COUNT_OR_0, Range
from jaxvqa.inputs import read_json
from jaxvqa.models import towers
from jaxvqa.models.towers.vit import ViT
from jaxvqa.tasks.image_text import with_memory

KINDS = {
    "blip_caption": "BlipForConditionalGeneration",
    "blip_vqa": "BlipForQuestionAnswering",
    "blip_retrieval": "BlipForImageTextRetrieval",
}
"""System -> the class that its folders are of."""

QUEUE, TEMPERATURE = 57600, 0.07
"""Rows of the queue, and the temperature, that training begins with, as published; these folders hold neither."""

PREPROCESSOR = "preprocessor_config.json"
PREPROCESSORS = {"processor_config.json": "image_processor", PREPROCESSOR: ""}
"""Files beside `config.json` that say how images are normalised, first one first -> the entry that does, "" for all of it."""

Entries = Mapping[str, tuple[str, Any, Range]]
"""Entry of `config.json` -> field of the tower, what a folder without the entry has, and what it may be."""

_ABOVE_0 = Range(0, above=True)
_TOWER: Entries = {
    "hidden_size": ("width", 768, COUNT),
    "intermediate_size": ("hidden", 3072, COUNT),
    "num_hidden_layers": ("depth", 12, COUNT),
}
SECTIONS: Mapping[str, Entries] = {
    "vision_config": {
        **_TOWER,
        "num_attention_heads": ("heads", 12, COUNT),
        "image_size": ("image_size", 384, COUNT),
        "patch_size": ("patch", 16, COUNT),
        "layer_norm_eps": ("epsilon", 1e-5, _ABOVE_0),
    },
    "text_config": {
        **_TOWER,
        "num_attention_heads": ("heads", 8, COUNT),
        "vocab_size": ("vocab_size", 30524, COUNT),
        "max_position_embeddings": ("positions", 512, COUNT),
        "layer_norm_eps": ("epsilon", 1e-12, _ABOVE_0),
    },
}
SPECIAL: Entries = {
    "bos_token_id": ("bos_token_id", 30522, COUNT_OR_0),
    "sep_token_id": ("sep_token_id", 102, COUNT_OR_0),
    "pad_token_id": ("pad_token_id", 0, COUNT_OR_0),
}
"""Ids of `text_config` that texts are written with."""

FIXED: Mapping[str, dict[str, Any]] = {
    "vision_config": {"hidden_act": "gelu"},
    "text_config": {"hidden_act": "gelu", "is_decoder": True, "tie_word_embeddings": True},
}
"""Entries that have one value here, which is also that of a folder without them."""

_TIED = r"text_decoder\.cls\.predictions\.decoder\.(weight|bias)"
"""Second names of the tokens' table and of the bias, which older folders have."""

_WRITER = [rule for rule in DECODER if not re.fullmatch(_TIED, f"text_decoder.{rule.key}")]


# --- tensors -------------------------------------------------------------------------------------------------------------


def layout(config: Config) -> Layout:
    """How a model of this config is written."""

    def part(key: str, path: str, rules: list[Rule], there: bool = True) -> list[Rule]:
        return nested(key, f"params/{path}", rules) if there else []

    features = bool(config.get("features"))
    if config.get("name") == "blip_vqa":
        rest = [*part("text_encoder", "question_tower", ENCODER), *part("text_decoder", "answer_tower", _WRITER)]
    else:
        rest = [
            *part("text_encoder", "text_tower", ENCODER, config.get("reads", True)),
            *part("vision_proj", "image_projection", LINEAR, features),
            *part("text_proj", "text_projection", LINEAR, features),
            *part("itm_head", "match_head", LINEAR, config.get("matches", True)),
            *part("text_decoder", "text_tower", _WRITER, config.get("writes", True)),
        ]
    rules = (*part("vision_model", "vision_tower", HUGGING_FACE_VIT), *rest)
    return Layout(Table(rules, (r".*\.position_ids", _TIED)), stacked=(HUGGING_FACE_STACKED,))


def _one_table(tensors: Tensors) -> str:
    """What is wrong where the second name of a parameter has other numbers than the first; empty when all is well."""
    second = "text_decoder.cls.predictions.decoder."
    firsts = {
        "weight": "text_decoder.bert.embeddings.word_embeddings.weight",
        "bias": "text_decoder.cls.predictions.bias",
    }
    differ = [
        f"{second}{end} is not equal to {first}; expected one tensor under both names"
        for end, first in firsts.items()
        if second + end in tensors and not np.array_equal(tensors[second + end], tensors[first])
    ]
    return "The checkpoint cannot be used: " + "; ".join(differ) + "." if differ else ""


# --- config.json ---------------------------------------------------------------------------------------------------------


def read(source: Any, entry: str = "model", *, weights: str = "", prefix: str = "") -> files.TorchFile:
    """Reads a folder as `pretrained.read`; `preprocessor` of its config says how images are normalised."""
    file = pretrained.read(source, entry, weights=weights, prefix=prefix)
    for name, inside in PREPROCESSORS.items():
        beside = file.path.with_name(name) if file.path and file.config else None
        if beside is not None and beside.is_file():
            try:
                content = read_json(beside, f"a {name}, as `save_pretrained` writes it", dict)
            except DataError as error:
                raise CheckpointError(str(error)) from error
            if own := content.get(inside) if inside else content:
                return dataclasses.replace(file, config={**file.config, "preprocessor": own})
    return file


def _infer(file: files.TorchFile, given: Config, *, system: str) -> dict[str, Any]:
    """The model's fields, and what else of `blip.BESIDE` the folder says.

    Raises:
      CheckpointError: there is no `config.json`, it is of another class, or asks for what is not offered here; lists all.
    """
    if not file.config:
        raise CheckpointError(
            f"{file.path} has the keys of Hugging Face's BLIP, whose config.json says the number of heads and the epsilon; "
            "there is none beside it. Give the folder as `save_pretrained` writes it."
        )
    faults = _faults_of_class(file.config, system)
    vision, text = (_tower(file.config, name, faults) for name in SECTIONS)
    special = _entries(file.config.get("text_config"), "text_config", SPECIAL, faults)
    width = _entries(file.config, "", {"image_text_hidden_size": ("features", 256, COUNT)}, faults)["features"]
    normalise = _normalisation(file.config.get("preprocessor", {}), faults)
    if faults:
        start = f"{file.path}: its config.json does not fit --system={system}:"
        raise CheckpointError("\n  ".join([start, *faults]))
    compares = system == "blip_retrieval"
    found = {
        "name": "blip_vqa" if system == "blip_vqa" else "blip",
        "vocab_size": text.pop("vocab_size"),
        "image_size": vision.pop("image_size"),
        "normalise": normalise,
        "special": {} if compares else special,
        "vision": "vit-large" if vision["width"] == 1024 else "vit-base",
        "vision_sizes": {**given.get("vision_sizes", {}), **vision},
        "text_sizes": {**given.get("text_sizes", {}), **text},
    }
    if system != "blip_vqa":
        found |= {"reads": compares, "matches": compares, "writes": not compares}
        found |= {"features": width if compares else 0, "temperature": 0.0}
    return found


def _faults_of_class(config: Mapping[str, Any], system: str) -> list[str]:
    kind, model_type = KINDS[system], config.get("model_type", "blip")
    named = config.get("architectures") or [kind]
    faults = [] if model_type == "blip" else [f"model_type is {model_type!r}, not 'blip'"]
    if kind not in named:
        ways = [f"use --system={other}" for other, name in KINDS.items() if name in named]
        faults.append("; ".join([f"architectures is {named}, not {[kind]}", *ways]))
    return faults


def _tower(config: Mapping[str, Any], section: str, faults: list[str]) -> dict[str, Any]:
    """A tower's fields; adds what is wrong with its section."""
    own = config.get(section)
    found = _entries(own, section, SECTIONS[section], faults)
    for entry, value in FIXED[section].items():
        if isinstance(own, Mapping) and own.get(entry, value) != value:
            faults.append(f"{section}.{entry} is {own[entry]!r}, not {value!r}")
    if found["width"] % found["heads"]:
        faults.append(f"{section}: {found['heads']} heads do not divide a hidden_size of {found['width']}")
    return found


def _entries(own: Any, section: str, entries: Entries, faults: list[str]) -> dict[str, Any]:
    """The fields that a section says; adds what is wrong with it."""
    own = own if isinstance(own, Mapping) else {}
    found = {}
    for entry, (field, default, allowed) in entries.items():
        value = own.get(entry, default)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:  # a height and a width
            value = value[0]
        if not allowed.allows(value):
            faults.append(f"{section}{'.' * bool(section)}{entry} is {value!r}; expected {allowed}")
            value = default
        found[field] = type(default)(value)
    return found


def _normalisation(preprocessor: Any, faults: list[str]) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of the colours, as `config.data` has them."""
    found = {}
    for entry, field in (("image_mean", "mean"), ("image_std", "std")):
        allowed = Range(0, above=field == "std", many=True, count=3)
        value = preprocessor.get(entry) if isinstance(preprocessor, Mapping) else None
        if value is not None and allowed.allows(value):
            found[field] = tuple(map(float, value))
        elif value is not None:
            faults.append(f"{entry} of the image processor is {value!r}; expected {allowed}")
    return found


# --- reading and writing -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Original(Original):
    """How the folders of a system are read: as other checkpoints; what training needs besides is fresh."""

    def load(self, source: files.Source, config: Config | None = None, inputs: Shapes | None = None) -> Checkpoint:
        """Reads a checkpoint; see `Original.load`."""
        found = super().load(source, config, inputs)
        if not found.config.get("features"):
            return found
        params = {**found.params, "temperature": np.float32(TEMPERATURE)}
        memory = with_memory({"params": params}, jax.random.key(0), QUEUE, found.config["features"])
        whole = {**found.config, "temperature": TEMPERATURE, "queue": QUEUE, "positives": "image"}
        return dataclasses.replace(found, variables=jax.tree.map(np.asarray, memory), config=whole)


def _inputs(tensors: Tensors, config: Config) -> Shapes:
    side = config["image_size"]
    texts = ("question", "text") if config["name"] == "blip_vqa" else ("text",)
    return {"image": image(side, side), **dict.fromkeys(texts, blip.TOKEN)}


def _original(system: str) -> _Original:
    parts = {"blip_caption": {"reads": False, "matches": False}, "blip_vqa": {}, "blip_retrieval": {"writes": False}}
    config = {"name": "blip_vqa" if system == "blip_vqa" else "blip", **parts[system]}
    return _Original(
        layouts=lambda config: [layout(config)],
        infer=functools.partial(_infer, system=system),
        inputs=_inputs,
        module=blip.Whole,
        decides=True,
        read=read,
        entry="model",
        fresh="params/temperature",
        check=_one_table,
        name=KINDS[system],
        variants=(("", {**config, "features": int(system == "blip_retrieval")}),),
    )


def _save(folder: Path, contents: Contents, *, system: str) -> list[Path]:
    """Writes a work directory's newest checkpoint as a folder that `from_pretrained` reads.

    Raises:
      CheckpointError: the folder is there already, or the class has no place for a part of the model.
    """
    if folder.exists():
        raise CheckpointError(f"{folder} is there already. Give --to= a folder that is not, or a file ending in .pth.")
    model, data = contents.config.model.to_dict(), contents.config.data
    where = ("config.model.vision", "config.model.vision_sizes")
    vision: Any = towers.make("image encoder", model["vision"], model.get("vision_sizes", {}), *where)
    if not isinstance(vision, ViT):
        raise CheckpointError(f"{KINDS[system]} reads pixels; {model['vision']!r} of this model does not.")
    tokenizer = CaptionTokenizer(contents.assets["tokenizer"])
    text: Any = towers.make("text about images", model["text"], model["text_sizes"], "config.model.text", "text_sizes")
    if system == "blip_vqa" and vision.width != text.width:
        raise CheckpointError(
            f"{KINDS[system]} has one width for what encoder and decoder read; this model's image encoder has "
            f"{vision.width}, its text models {text.width}."
        )
    sizes = {"image_size": data.image_size, "vocab_size": len(tokenizer)}
    special = {
        "bos_token_id": tokenizer.decode_begin,
        "sep_token_id": tokenizer.end,
        "eos_token_id": tokenizer.end,
        "pad_token_id": tokenizer.padding,
    }
    checkpoint = Checkpoint({"params": contents.params}, {**model, "positives": ""})
    tensors = FOLDERS[system].original.to_original(checkpoint)
    of_tower = {"vision_config": vision, "text_config": text}
    config: dict[str, Any] = {
        "architectures": [KINDS[system]],
        "model_type": "blip",
        "dtype": "float32",
        "image_text_hidden_size": model.get("features") or 256,
        **{
            section: {entry: _field(of_tower[section], field, sizes) for entry, (field, _, _) in entries.items()}
            | FIXED[section]
            for section, entries in SECTIONS.items()
        },
    }
    config["text_config"] |= special
    described = {
        "config.json": config,
        PREPROCESSOR: {
            "image_processor_type": "BlipImageProcessor",
            "processor_class": "BlipProcessor",
            "size": {"height": data.image_size, "width": data.image_size},
            "image_mean": list(data.mean),
            "image_std": list(data.std),
        },
        "tokenizer.json": tokenizer.asset,
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "processor_class": "BlipProcessor"}
        | {f"{use}_token": f"[{use.upper()}]" for use in ("pad", "unk", "cls", "sep", "mask")}
        | {"model_input_names": ["input_ids", "attention_mask"]},
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for name, content in described.items():
            (beside / name).write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
        files.write(beside / "model.safetensors", files.TorchFile(tensors))
        beside.chmod(0o755)  # mkdtemp made it private
        os.rename(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return [folder / name for name in (*described, "model.safetensors")]


def _field(tower: Any, field: str, sizes: Mapping[str, int]) -> Any:
    if field in sizes:
        return sizes[field]
    value = getattr(tower, field)
    return 4 * tower.width if field == "hidden" and value is None else value


FOLDERS = {
    system: Folder(_original(system), r"vision_model\..*", functools.partial(_save, system=system)) for system in KINDS
}
"""How the folders of each system are read and written."""

SYSTEMS: dict[str, System] = {
    name: dataclasses.replace(system, folder=FOLDERS.get(name)) for name, system in blip.SYSTEMS.items()
}
"""BLIP's systems, whose checkpoints are files of the original or such folders."""
