"""The options of the originals' classes, which golden cases name, as the `model` part of a config."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxvqa.errors import CheckpointError, nearest

Translation = Mapping[str, str | Callable[[Any], dict[str, Any]] | None]
"""An option -> the field that takes its value, or what makes fields of it, or None: it changes no field."""

_RWSAN: Translation = {
    "HIDDEN_SIZE": "width",
    "MULTI_HEAD": "heads",
    "SRWSA_LAYER": "encoder_passes",
    "SGRWSA_LAYER": "decoder_passes",
    "WORD_EMBED_SIZE": "embed_width",
    "FLAT_MLP_SIZE": "flatten_width",
    "FLAT_OUT_SIZE": "fused_width",
    "SRWSA_MIDSIZE": "question_rank",
    "SGRWSA_SA_MIDSIZE": "region_rank",
    "SGRWSA_GA_MIDSIZE": "guided_rank",
    "DROPOUT_R": "dropout",
    "token_size": "vocab_size",
    "answer_size": "num_answers",
    # what goes into the model; ours takes inputs of any length
    **dict.fromkeys(("IMG_FEAT_SIZE", "IMG_FEAT_PAD_SIZE", "MAX_TOKEN", "FF_SIZE")),
}

EMBED_WIDTHS = {"biowordvec": 200, "glove": 300, "biosentvec": 700}
"""CMSA's option `emb_init` -> size of a word vector."""

_QUESTION: Translation = {
    "n_words": "vocab_size",
    "emb_dim": "embed_width",
    "num_hid": "width",
    "self_att": "self_attention",
    "op": lambda value: {"tables": 2 if "c" in value else 1},
    "rnn": lambda value: {"rnn": value.lower()},
    "emb_init": lambda value: {"embed_width": EMBED_WIDTHS[value]} if value in EMBED_WIDTHS else {},
    **dict.fromkeys(("question_len", "image_size")),  # what goes into the model
}
"""Of the question encoder that CMSA, BAN, SAN and the pre-training share."""


def _is_model(*names: str) -> Callable[[str], dict[str, Any]]:
    """Takes the option `model` if it has one of these values."""

    def take(value: str) -> dict[str, Any]:
        if value.upper() not in names:
            raise ValueError(f"model is {value}, not {' or '.join(names)}.")
        return {}

    return take


_CMSA: Translation = {
    **_QUESTION,
    "n_answers": "num_answers",
    "use_cma": "cross_attention",
    "use_spatial": "spatial",
    "model": _is_model("CMSA"),
    # the last of four stages, each twice as wide as the one before
    "v_dim": lambda value: {"branch_sizes": {"width": value // 8}},
    **dict.fromkeys(("distmodal", "feature_map")),
}

BRANCHES = {
    ("maml", "autoencoder"): "mevf",
    ("maml",): "maml",
    ("autoencoder",): "autoencoder",
    ("distmodal",): "distmodal",
    ("multitask",): "resnet50",
}
"""Those of the switches of BAN and SAN that are on -> the field `image_branches`."""

_MEVF: Translation = {
    **_QUESTION,
    "n_answers": "num_answers",
    "dm_feat_dim": "image_width",
    "model": _is_model("BAN", "SAN"),
    "feat_dim": lambda value: {"maml_width": value, "code_width": value},
    **dict.fromkeys(("maml", "autoencoder", "distmodal", "multitask", "v_dim", "eps_cnn", "use_counter")),
    **dict.fromkeys(("gamma", "num_stacks")),  # of one fusion each
}
_FUSIONS: Mapping[str, Translation] = {"ban": {"gamma": "glimpses"}, "san": {"num_stacks": "stacks"}}
"""The same, of one fusion each; the original has all options for both."""


def _depth(backbone: str) -> dict[str, Any]:
    depth = backbone.lower().removeprefix("resnet")
    if not depth.isdecimal():
        raise ValueError(f"backbone is {backbone}, not resnet34 or the like.")
    return {"branch": f"resnet{int(depth)}"}


_MTPT: Translation = {
    **_QUESTION,
    "n_classes": "classes",
    "task": "task",
    "use_spatial": "spatial",
    "backbone": _depth,
    "v_dim": None,
}

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
"""SYSU-HCP's class -> a backbone of that class; its option -> the tower's field; options that have one value here."""


def _translate(name: str, options: Mapping[str, Any], known: Translation, faults: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of options; plain fields win over those that are made, which may raise ValueError.

    Raises:
      CheckpointError: lists `faults`, and each option that is not known, or that has a value which is not offered.
    """
    wrong = [f"unknown option {option}.{nearest(option, known)}" for option in options if option not in known]
    made: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for option, value in options.items():
        rule = known.get(option)
        try:
            if isinstance(rule, str):
                plain[rule] = value
            elif rule:
                made |= rule(value)
        except ValueError as error:
            wrong.append(str(error))
    if wrong or faults:
        raise CheckpointError(f"These options do not fit {name}: " + " ".join([*wrong, *faults]))
    return made | plain


def rwsan(options: Mapping[str, Any]) -> dict[str, Any]:
    """RWSAN's options as the `model` part of a config; see `_translate`, as for the other systems."""
    always, given = 4 * options.get("HIDDEN_SIZE", 512), options.get("FF_SIZE")
    faults = [] if given in (None, always) else [f"FF_SIZE is {given}; it is always four times HIDDEN_SIZE."]
    return {"name": "rwsan"} | _translate("RWSAN", options, _RWSAN, faults)


def cmsa(options: Mapping[str, Any]) -> dict[str, Any]:
    """CMSA's."""
    return {"name": "cmsa"} | _translate("CMSA", options, _CMSA)


def mevf(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of BAN and SAN."""
    name = str(options.get("model", "BAN")).lower()
    chosen = tuple(option for option in ("maml", "autoencoder", "distmodal", "multitask") if options.get(option))
    faults = []
    if chosen not in BRANCHES:
        faults.append(f"no image branches are chosen by {' and '.join(chosen) or 'none of the options'}.")
    known = {**_MEVF, **_FUSIONS.get(name, {})} | ({"v_dim": "image_width"} if chosen == ("multitask",) else {})
    return {"name": name} | _translate("BAN and SAN", options, known, faults) | {"image_branches": BRANCHES[chosen]}


def mtpt(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of CMSA's pre-training."""
    return {"name": "mtpt"} | _translate("the pre-training", options, _MTPT)


def sysu_hcp(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of SYSU-HCP's networks.

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
    if rest:
        raise CheckpointError(f"{model} is not offered with {', '.join(f'{k} = {v!r}' for k, v in rest.items())}.")
    return config
