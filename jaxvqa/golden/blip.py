"""BLIP's golden cases: the towers, pre-training and retrieval, the matching head, the feature extractor.

docs/originals/blip.md, section 1.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jaxtyping import Array

from jaxvqa import models, optim, paths
from jaxvqa.convert import blip
from jaxvqa.convert.layout import Layout
from jaxvqa.convert.original import Checkpoint, Original
from jaxvqa.convert.table import Rule, Table, nested
from jaxvqa.convert.towers.med import DECODER, ENCODER, POSITION_IDS
from jaxvqa.convert.towers.vit import VIT, VIT_STACKED
from jaxvqa.data.images import CLIP_MEAN, CLIP_STD
from jaxvqa.explain import gradcam
from jaxvqa.golden.cases import Case, Results, Row
from jaxvqa.golden.parts import compare_all
from jaxvqa.golden.training import Named, Precision, Run, Step, Training, config_of, pixels, train
from jaxvqa.losses import text_loss
from jaxvqa.metrics import retrieval
from jaxvqa.models.towers.med import MED
from jaxvqa.models.towers.vit import ViT
from jaxvqa.tasks.attention_gradient import attention_and_gradient, matching, token_maps
from jaxvqa.tasks.image_text import ImageText, Parts

VIT_OPTIONS = {
    "patch_size": "patch",
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "heads",
    "layer_norm_eps": "epsilon",
}
MED_OPTIONS = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "intermediate_size": "hidden",
    "max_position_embeddings": "positions",
    "layer_norm_eps": "epsilon",
}
"""The original's option -> field of the tower."""

BOUNDS = (0.001, 0.5)
"""Between which the original clamps the temperature."""


def run(case: Case) -> Iterator[Row]:
    """Runs one case in float32, and a training case in float64 too."""
    with jax.default_matmul_precision("highest"):
        model = case.manifest["model"]
        yield from MODELS.get(model, MODELS[kind_of(model)])(case)


def kind_of(model: str) -> str:
    """A manifest's `model` without what it says of processes and of what is looked at."""
    return re.split(r" (?:on \d|with |\+ |\()", model)[0]


# --- parts -----------------------------------------------------------------------------------------------------------------


def vision_sizes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the image encoder."""
    sizes = {field: options[name] for name, field in VIT_OPTIONS.items() if name in options}
    return sizes | {"hidden": round(options.get("mlp_ratio", 4) * options["embed_dim"])}


def text_sizes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the text model, without dropout, as in all cases."""
    return {field: options[name] for name, field in MED_OPTIONS.items() if name in options} | {"dropout": 0.0}


def _part(tensors: Mapping[str, np.ndarray], name: str, rules: list[Rule], target: Any) -> tuple[dict[str, Any], Any]:
    """A part's tensors through its rules: what is written again, and its parameters."""
    table = Table(tuple(nested(name, "params", rules)), (r".*\.position_ids",))
    layout = Layout(table, stacked=(VIT_STACKED,), constants=(POSITION_IDS,))
    mine = {key: value for key, value in tensors.items() if key.startswith(f"{name}.")}
    made = {path: leaf for path, leaf in paths.flatten(target).items() if table.making(f"params/{path}")}
    variables, _ = layout.read(mine, {"params": paths.nest(made)})
    return layout.write(variables), jax.tree.map(jnp.asarray, variables)


def _vision(case: Case) -> Iterator[Row]:
    tower = ViT(**vision_sizes(case.manifest["options"]))
    image = jnp.asarray(np.moveaxis(case.inputs["image"], 1, -1))
    target = jax.eval_shape(tower.init, jax.random.key(0), image)["params"]
    tensors = case.checkpoint()
    written, variables = _part(tensors, "visual_encoder", VIT, target)
    yield case.back_again(tensors, written)
    _, out = jax.jit(tower.apply)(variables, image)
    names = {"patch_embed": "patches", "embed": "embedded", "last_hidden": "tokens"}
    ours = {name: out[inside] for name, inside in names.items()}
    yield from compare_all(case, ours | {f"block{i}": out[f"block_{i}"] for i in range(tower.depth)})


def _text(case: Case) -> Iterator[Row]:
    options, given = case.manifest["options"], case.inputs
    tower: Any = MED(vocab_size=options["vocab_size"], **text_sizes(options))
    text, mask = jnp.asarray(given["input_ids"], jnp.int32), jnp.asarray(given["attention_mask"], bool)
    states = jnp.asarray(given["encoder_hidden_states"])
    seen_mask = jnp.asarray(given.get("encoder_attention_mask", np.ones(states.shape[:2])), bool)

    # The two special tokens that were added last begin what is written and what is read beside an image.
    begun = {name: text.at[:, 0].set(options["vocab_size"] - place) for name, place in (("enc", 1), ("dec", 2))}

    def all_modes(tower: Any, text: Any, mask: Any, states: Any) -> Any:
        memory = tower.remember(states)
        alone, out = tower.encode(text, mask)
        beside, _ = tower.encode(text, mask, memory, seen_mask)
        logits, inside = tower.write(text, mask, memory, seen_mask)
        lonely, _ = tower.write(text, mask)
        return alone, out, beside, logits, inside["hidden"], lonely

    inputs = (text, mask, states)
    target = jax.eval_shape(functools.partial(tower.init, method=all_modes), jax.random.key(0), *inputs)["params"]
    tensors = case.checkpoint()
    # Encoder and decoder are two networks here.
    written, read = _part(tensors, "text_encoder", ENCODER, target)
    more, write = _part(tensors, "text_decoder", DECODER, target)
    yield case.back_again(tensors, written | more)
    call = jax.jit(lambda variables, method, *inputs: tower.apply(variables, *inputs, method=method), static_argnums=1)
    memory = call(read, "remember", states)
    alone, out = call(read, "encode", text, mask)
    memory_of_decoder = call(write, "remember", states)
    logits, inside = call(write, "write", begun["dec"], mask, memory_of_decoder, seen_mask)
    losses = text_loss(logits[:, :-1], text[:, 1:], mask[:, 1:], smoothing=0.1)
    ours = {"embeddings": out["embedded"], "text": alone, "decoder_logits": logits, "decoder_hidden": inside["hidden"]}
    ours |= {f"text_layer{i}": out[f"block_{i}"] for i in range(tower.depth)}
    ours["multimodal"], _ = call(read, "encode", begun["enc"], mask, memory, seen_mask)
    ours["decoder_textmode_logits"], _ = call(write, "write", begun["dec"], mask)
    ours |= {"decoder_loss": losses.sum() / mask[:, 1:].sum(), "decoder_loss_per_row": losses}
    for name in case.expected:
        if match := re.fullmatch(r"decoder_cached_logits_row(\d+)", name):
            ours[name] = _window(np.asarray(logits[int(match[1])]), case.expected[name])
    yield from compare_all(case, ours)


def _window(logits: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The run of positions that were decoded with a cache; behind how long a prompt they begin, no manifest says."""
    starts = range(len(logits) - len(expected) + 1)
    windows = [logits[start : start + len(expected)] for start in starts]
    return min(windows, key=lambda window: float(np.abs(window - expected).max()))


# --- the whole model -------------------------------------------------------------------------------------------------------


def load(case: Case, original: Original | None = None) -> tuple[Row, Checkpoint]:
    """Sends a checkpoint through a file, and back."""
    options, tensors = case.manifest["options"], case.checkpoint()
    med = options.get("med", options.get("med_encoder"))
    given: dict[str, Any] = {"vision_sizes": vision_sizes(options["vit"]), "text_sizes": text_sizes(med)}
    queue = {"queue_ptr": "pair", "ptr_queue": "image"}
    original = original or blip.ORIGINALS[next((name for key, name in queue.items() if key in tensors), "")]
    read = functools.partial(original.load, config=given)
    found = case.through_file(tensors, {"epoch": 3}, read, "model")
    return case.back_again(tensors, original.to_original(found)), found


def found_model(found: Checkpoint) -> Any:
    """The network of a checkpoint."""
    return models.build({key: value for key, value in found.config.items() if key not in ("queue", "positives")})


def tokenizer_with(special: Mapping[str, int], size: int) -> dict[str, Any]:
    """A tokenizer of that many tokens whose special ones have the case's ids, by their use."""
    named = {f"[{use.upper()}]": number for use, number in special.items()}
    words = {f"word{i}": i for i in range(size) if i not in named.values()} | named
    return json.loads(tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]")).to_str())


def _tensors(found: Checkpoint) -> Callable[[Mapping[str, Any]], Mapping[str, np.ndarray]]:
    return lambda variables: blip.layout(found.config).write(
        {name: tree for name, tree in variables.items() if name != "queue"}
    )


def _training(case: Case, found: Checkpoint) -> Training:
    """Pre-training, or retrieval, in the program's terms."""
    options, given = case.manifest["options"], case.inputs
    step, model = options.get("train_step", {}), dict(found.config)
    queue, positives = model.pop("queue"), model.pop("positives")
    retrieval = positives == "image"
    size, alpha = len(given["input_ids"]), float(given.get("alpha", options.get("alpha", 0.4)))
    config = config_of(
        "blip_retrieval" if retrieval else "blip_pretrain",
        model | {"name": "blip"},
        {**step, "name": step.get("optimizer", "AdamW")},
        optim__bounds=((r"temperature", BOUNDS), (r".*", None)),
        batch_size=size,
        data__max_tokens=given["input_ids"].shape[1],
        data__image_size=given["image"].shape[-1],
        loss__queue=queue,
        loss__groups=options.get("world_size", 1),
        loss__momentum=options["momentum"],
        loss__alpha=alpha,
        loss__alpha_epochs=0.0,
        loss__negatives__choice="hardest",
        loss__negatives__among="batch" if options.get("negative_all_rank") else "group",
    )
    config.compile.vocab_size = model["vocab_size"]
    batch = {
        "image": pixels(given["image"], CLIP_MEAN, CLIP_STD),
        "text": given["input_ids"],
        "text_mask": given["attention_mask"].astype(bool),
        "image_id": given.get("idx", np.arange(size)),
    }
    assets = {"tokenizer": tokenizer_with(options["special_ids"], model["vocab_size"])}
    tensors = _tensors(found)
    names = case.manifest.get("names_of_out_grad_norms", ())
    # A softmax does not feel what is added to all of its scores.
    zero = [name for name in names if name.endswith("self.key.bias")]
    return Training(config, batch, found.variables, tensors, names, zero, assets=assets, recorder=Silent)


class Silent:
    """A task's model, of whose many calls none is what it gave."""

    output = None

    def __init__(self, model: Any):
        """Args: the model."""
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _seen_by_loss(run: Run, state: Any) -> tuple[Any, Parts]:
    """The state that the loss sees, and what the loss is made of."""
    task: Any = run.task

    @jax.jit
    def parts(state: Any, batch: Any) -> Any:
        state = dataclasses.replace(state, params=optim.bounded(state.params, run.training.config.optim.bounds))
        state = task.before(state)
        return state, ImageText.parts(task, state.params, state.collections, batch, {}, train=False)

    state, found = jax.device_get(parts(state, run.batch))
    return state, found


def _whole(case: Case) -> Iterator[Row]:
    """Pre-training and retrieval: the losses and what they are made of, their gradients, steps, and the evaluation."""
    row, found = load(case)
    yield row
    # Sizes at which two precisions and a gradient are too much are decided by the forward pass.
    stepped = [name for name in case.expected if "grad_norms" in name or name.startswith("step")]
    run = Run(_training(case, found), Precision(case, np.float32))
    state, parts = _seen_by_loss(run, run.start)
    ours = _forward(case, run, found, state, parts)
    if "eval_image" in case.inputs:
        yield from _evaluated(case, run)
    yield from compare_all(dataclasses.replace(case, expected=_without(case.expected, stepped)), ours)
    if stepped:
        yield from train(case, lambda: _training(case, found), functools.partial(_steps, case))


def _evaluated(case: Case, run: Run) -> Iterator[Row]:
    """The features of other images and texts, and what is found by them, with the state as it was loaded."""
    task: Any = run.task
    given, params, count = case.inputs, run.start.params, case.manifest["options"]["k_test"]
    image = {"image": jnp.asarray(pixels(given["eval_image"], CLIP_MEAN, CLIP_STD), jnp.float32)}
    tokens, mask = jnp.asarray(given["eval_input_ids"], jnp.int32), jnp.asarray(given["eval_attention_mask"], bool)
    predict = {name: functools.partial(p.jitted, params, {}) for name, p in task.predictions.items()}
    seen = predict["image_features"](image)
    texts = predict["text_features"]({"text": tokens, "text_mask": mask})["text_feature"]
    sims = np.asarray(seen["image_feature"] @ texts.T)
    beside = {name: jnp.repeat(x[None], len(sims), 0) for name, x in (("text", tokens), ("text_mask", mask))}
    logits = np.asarray(predict["match"](dict(seen) | beside)["match_logits"])[..., 1]
    ours: dict[str, Any] = {"eval_image_feat": seen["image_feature"], "eval_text_feat": texts, "eval_sims": sims}
    own = np.zeros(sims.shape, bool)
    for i, places in case.manifest["inputs"]["eval_img2txt"].items():
        own[int(i), places] = True
    scores = np.where(retrieval.candidates(sims, count), logits + sims, retrieval.FILL)
    back = np.where(retrieval.candidates(sims.T, count), (logits + sims).T, retrieval.FILL)
    ours["eval_recall"] = np.asarray(list(retrieval.summarise(scores, own, back).recalls().values()))
    ours["eval_recall_itc_only"] = np.asarray(list(retrieval.summarise(sims, own).recalls().values()))
    yield from compare_all(case, ours)
    for name, matrix in (("eval_score_i2t", scores), ("eval_score_t2i", back)):
        if name in case.expected:
            # What was not looked at is filled with numbers that would set the scale; it has to be the same pairs.
            looked_at = case.expected[name] > retrieval.FILL / 2
            alike = np.array_equal(looked_at, matrix > retrieval.FILL / 2)
            part = dataclasses.replace(case, expected={name: case.expected[name][looked_at]})
            yield part.compare(name, matrix[looked_at] if alike else np.full(looked_at.sum(), np.nan))


def _without(expected: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    return {name: value for name, value in expected.items() if name not in names}


def _steps(case: Case, run: Run) -> Named:
    """The first step's gradients, what it makes of the parameters, and the losses after it."""
    rate = case.manifest["options"].get("train_step", {}).get("lr", 0.0)
    steps = run.follow([rate, 0.0])
    named: Named = {"grad_norms": ("gradients", run.norms(steps[0].gradients))}
    named["step1_param_norms"] = ("moved", run.norms(steps[0].after))
    named["step1_temp"] = ("values", steps[0].after["temp"])
    if any(name.startswith("step2") for name in case.expected):
        _, parts = _seen_by_loss(run, steps[1].state)
        image, text = (_by_process(case, run, n.row) for n in parts.negatives)
        named |= {"step2_neg_image_idx": ("values", image), "step2_neg_text_idx": ("values", text)}
        named["step2_queue_ptr"] = ("values", np.reshape(parts.queue.place, 1))
        named["step2_losses"] = ("loss", _losses(steps[1]))
    return named


def _losses(step: Step) -> np.ndarray:
    names = [name for name in ("contrast", "matching", "writing") if name in step.metrics]
    return np.asarray([step.metrics[name][0] / step.metrics[name][1] for name in names])


def _by_process(case: Case, run: Run, index: Any) -> np.ndarray:
    """Chosen rows as each process counts them: all processes' in order, or its own alone."""
    loss = run.training.config.loss
    index = np.asarray(index).reshape(loss.groups, -1)
    index = index % index.shape[1] if loss.negatives.among == "group" else index
    return index if "world_size" in case.manifest["options"] else index[0]


def _forward(case: Case, run: Run, found: Checkpoint, state: Any, parts: Parts) -> dict[str, Any]:
    """All results but those of steps, by their names."""
    groups = run.training.config.loss.groups
    several = "world_size" in case.manifest["options"]

    def of_process(x: Any) -> np.ndarray:
        x = np.asarray(x).reshape(groups, -1, *np.shape(x)[1:])
        return x if several else x[0]

    features, matching = parts.features, np.asarray(parts.match_logits)
    logits = np.moveaxis(matching.reshape(3, groups, -1, 2), 1, 0).reshape(groups, -1, 2)
    right = np.arange(logits.shape[1]) < logits.shape[1] // 3
    nll = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), right[None, :, None].astype(int), -1)[..., 0]
    losses = {"ita": np.reshape(parts.contrast, (groups, -1)).mean(1), "itm": nll.mean(1)}
    ours = {f"loss_{name}": value if several else value[0] for name, value in losses.items()}
    ours |= {"image_embeds": features.image_states, "image_feat": features.image}
    ours |= {"text_hidden": features.text_states, "text_feat": features.text}
    ours |= {"itm_logits": logits if several else logits[0], "sims": features.image @ features.text.T}
    texts, pictures = (np.exp(scores) for scores in parts.scores)
    ours |= {"weights_i2t": texts if several else texts[0], "weights_t2i": pictures if several else pictures[0]}
    image, text = (_by_process(case, run, n.row) for n in parts.negatives)
    ours |= {"neg_image_idx": image, "neg_text_idx": text}
    if parts.logits is not None:
        ours |= {"lm_logits": parts.logits, "loss_lm": parts.losses["writing"]}
    for when, queue in (("before", state.collections["queue"]), ("after", parts.queue._asdict())):
        ours |= {f"{side}_queue_{when}": np.asarray(queue[side]).T for side in ("image", "text")}
        ours[f"idx_queue_{when}"] = np.asarray(queue["id"])[None]
        ours |= {f"{name}_{when}": np.reshape(queue["place"], 1) for name in ("queue_ptr", "ptr_queue")}
    ours["temp_after"] = np.asarray(state.params["temperature"])
    tensors, names = _tensors(found), case.manifest.get("names_of_out_momentum_norms", ())
    for name, collections in (("momentum_norms_before", found.variables), ("momentum_norms", state.collections)):
        written = tensors({"momentum": collections["momentum"]})
        ours[name] = np.asarray([np.linalg.norm(np.asarray(written[key], np.float64)) for key in names])
    if any(name.startswith(("multimodal_positive", "itm_logits_image_text")) for name in case.expected):
        ours |= _all_pairs(run, state)
    return ours | summaries(case, ours)


def _all_pairs(run: Run, state: Any) -> dict[str, Any]:
    """Each image with its own text, and with all texts."""
    task: Any = run.task
    model, batch, params = task.model, run.batch, state.params
    text = jnp.asarray(batch["text"]).at[:, 0].set(task.tokenizer.encode_begin)
    mask, count = batch["text_mask"], len(text)
    call = functools.partial(model.apply, {"params": params})
    tokens, _, _ = call(image=task.pixels(batch["image"]), method="see")
    seen = call(tokens, method="remember")
    _, own = call(text, mask, seen, method="match")
    tiled = [jnp.tile(x, (count, 1)) for x in (text, mask)]
    pairs, _ = call(*tiled, seen, method="match")
    return {"multimodal_positive_hidden": own["states"], "itm_logits_image_text": pairs.reshape(count, count, 2)}


def summaries(case: Case, ours: Mapping[str, Any]) -> dict[str, Any]:
    """What full-size cases store of a tensor: shape, moments, the first of its first row and the last of its last one."""
    found: dict[str, Any] = {}
    for name in case.expected:
        whole, _, part = re.sub(r"_mean_std$", "_moments", name).rpartition("_")
        if whole not in ours:
            continue
        x = np.asarray(ours[whole])
        size = case.expected[name].size
        if part == "shape":
            found[name] = np.asarray(x.shape)
        elif part == "moments":
            found[name] = np.asarray([x.mean(dtype=np.float64), x.std(dtype=np.float64, ddof=1)])
        elif part in ("first", "last"):
            rows = x.reshape(-1, x.shape[-1])
            found[name] = rows[0][:size] if part == "first" else rows[-1][-size:]
        elif match := re.fullmatch(r"first(\d+)", part):
            found[name] = x[..., : int(match[1])]
    return found


# --- heads -----------------------------------------------------------------------------------------------------------------


def _heads(case: Case) -> Iterator[Row]:
    """The matching head, whose texts begin as those that are read alone do, and the feature extractor."""
    row, found = load(case)
    yield row
    config = {name: value for name, value in found.config.items() if name not in ("queue", "positives")}
    model: Any = models.build(config)
    call = functools.partial(model.apply, {"params": jax.tree.map(jnp.asarray, found.params)})
    image = jnp.asarray(np.moveaxis(case.inputs["image"], 1, -1))
    text = jnp.asarray(case.inputs["input_ids"], jnp.int32)
    mask = jnp.asarray(case.inputs.get("attention_mask", np.ones(text.shape)), bool)
    text = text.at[:, 0].set(case.manifest["options"]["special_ids"]["cls"])
    tokens, _, seen_out = call(image, method="see")
    seen = call(tokens, method="remember")
    states, read_out = call(text, mask, method="read")
    ours: dict[str, Any] = {"image": tokens, "text": states}
    if model.features:
        ours["itc_similarity"] = seen_out["feature"] @ read_out["feature"].T
    if model.matches:
        logits, _ = call(text, mask, seen, method="match")
        ours |= {"itm_logits": logits, "itm_probability": jax.nn.softmax(logits)[:, 1]}
    beside = text.at[:, 0].set(case.manifest["options"]["special_ids"]["enc"])
    _, out = call(beside, mask, seen, method="match")
    yield from compare_all(case, ours | {"multimodal": out["states"]})


def _maps(case: Case) -> Iterator[Row]:
    """Attention maps of the matching head, by token."""
    options, given = dict(case.manifest["options"]), case.inputs
    row, found = load(case)
    yield row
    text, mask = jnp.asarray(given["input_ids"], jnp.int32), given["attention_mask"].astype(bool)
    image = jnp.asarray(np.moveaxis(given["image"], 1, -1))
    model, layer = found_model(found), options["cross_attention_layer"]

    @jax.jit
    def read(params: Any, image: Array, text: Array, mask: Array) -> Any:
        logits, attention, gradient = attention_and_gradient(
            matching(model, {"params": params}, image, text, mask), layer=layer
        )
        return logits, attention, -gradient  # the loss's

    params = jax.tree.map(jnp.asarray, found.params)
    logits, attention, gradient = read(params, image, text, jnp.asarray(mask))
    ours: dict[str, Any] = {"itm_logits": logits, "attention": attention, "attention_gradient": gradient}
    ours["loss"] = -jax.nn.log_softmax(logits)[:, 1].sum()
    maps = np.asarray(token_maps(attention, gradient, jnp.asarray(mask)))[0]
    side = round(maps.shape[1] ** 0.5)
    maps = maps.reshape(-1, side, side)
    ours["gradcam"] = maps
    ours["tokens_with_empty_map"] = np.flatnonzero((maps == 0).all((1, 2)))
    for place, token in enumerate(given.get("overlay_tokens", ())):
        rgb = given["rgb"]
        large = gradcam.resized(gradcam.stretched(maps[token]), *rgb.shape[:2])
        soft = gradcam.blurred(large)
        ours |= {f"map_resized_{place}": large, f"map_blurred_{place}": soft}
        ours[f"overlay_{place}"] = gradcam.overlaid(rgb, soft)
    yield from compare_all(case, ours)


# --- what fine-tuning takes of a pre-training -------------------------------------------------------------------------------

_NONE = {"reads": True, "writes": False, "matches": False, "features": 0, "temperature": 0.0}
TARGETS: Mapping[str, tuple[Original, Mapping[str, Any]]] = {
    "BLIP_Decoder": (blip.ORIGINALS[""], _NONE | {"reads": False, "writes": True}),
    "BLIP_Base": (blip.ORIGINALS[""], _NONE),
    "BLIP_ITM": (blip.ORIGINALS[""], _NONE | {"matches": True, "features": "embed_dim"}),
    "BLIP_Retrieval": (
        blip.ORIGINALS["image"],
        _NONE | {"matches": True, "features": "embed_dim", "temperature": 0.07, "queue": "queue_size"},
    ),
    "BLIP_VQA": (blip.VQA, {}),
    "BLIP_NLVR": (blip.NLVR, {}),
}
"""The original's class -> how its checkpoints are written, and its config, where a text names one of the case's sizes."""


def _is_loading(content: Mapping[str, Any]) -> bool:
    cases = content.get("cases")
    return isinstance(cases, list) and bool(cases) and all("missing_keys" in one and "target" in one for one in cases)


def _loading(case: Case) -> Iterator[Row]:
    """For each target: what it takes of the source's file."""
    source = case.beside_by_content(
        "the manifest of a pre-training", lambda content: content.get("model") == "BLIP_Pretrain"
    )
    source = next((p for p in case.folder.glob(f"{case.manifest['source'].split()[0]}.manifest.json")), source)
    of_source = Case.read(source)
    options, tensors = of_source.manifest["options"], dict(of_source.checkpoint())
    for group in of_source.manifest.get("tied", ()):
        tensors |= dict.fromkeys(group, tensors[group[-1]])
    for one in case.manifest["cases"]:
        yield case.counted(one["target"], _loaded(one, options, tensors))


def _loaded(one: Mapping[str, Any], options: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Results:
    name, _, changes = one["target"].partition(" with ")
    sizes = {size: options[size] for size in ("embed_dim", "queue_size")}
    sizes |= {size: int(value) for size, value in re.findall(r"(\w+) (\d+)", changes)}
    original, fields = TARGETS[name]
    config = {field: sizes.get(value, value) if isinstance(value, str) else value for field, value in fields.items()}
    config |= {"name": original.start["name"], "vocab_size": options["med"]["vocab_size"]}
    config |= {"vision_sizes": vision_sizes(options["vit"]), "text_sizes": text_sizes(options["med"])}
    if original is blip.ORIGINALS["image"]:
        config["positives"] = "image"
    inputs = {key: jax.ShapeDtypeStruct((1, 1), jnp.int32) for key in ("text", "question")[: 1 + (name == "BLIP_VQA")]}
    side = one["image_size"]
    shape = (1, *((2,) if name == "BLIP_NLVR" else ()), side, side, 3)
    shapes = original.shapes(config, {"image": jax.ShapeDtypeStruct(shape, jnp.float32), **inputs})
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    target = {key: value.shape for key, value in original.to_original(Checkpoint(zeros, config)).items()}
    found = blip.adapted(tensors, target)
    ours = {
        "missing_keys": sorted(found.missing),
        "unexpected_keys": sorted(found.unexpected),
        "dropped_for_shape": sorted(found.dropped),
        "position_embeddings_interpolated": sorted(found.interpolated),
        "keys_in_target": len(target),
    }
    for key, value in one.items():
        if key not in ("target", "image_size"):
            yield (
                key,
                ours.get(key, "the runner does not know this"),
                sorted(value) if isinstance(value, list) else value,
            )


RUNNERS = ((_is_loading, _loading),)
"""What recognises a file of cases by its content -> what runs it."""

MODELS: Mapping[str, Callable[[Case], Iterator[Row]]] = {
    "VisionTransformer": _vision,
    "BertModel": _text,
    "BLIP_Pretrain": _whole,
    "BLIP_Retrieval": _whole,
    "BLIP_ITM": _heads,
    "BLIP_ITM with Grad-CAM": _maps,
    "BLIP_Base": _heads,
}
