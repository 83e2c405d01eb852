"""Flamingo's golden cases: resampler, gated cross-attention, the whole model of each year, training (spec, section 22)."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvqa import generate, losses, models, optim
from jaxvqa.convert import flamingo, to_jax, to_torch
from jaxvqa.convert.table import Rule, Table
from jaxvqa.models.flamingo import FREEZE
from jaxvqa.models.layers.perceiver import GatedCrossAttention, PerceiverResampler, visible_media
from jaxvqa.testing.golden import Case, Row, through_file
from jaxvqa.testing.towers import LIMIT, back_again, compare_all, summary

ZERO_LIMIT = 1e-6
"""Largest gradient of what has none, relative to the largest of all."""

SMOOTHING = 0.1
"""Of words and of classes, in the case of training."""


def run(case: Case) -> list[Row]:
    """Runs one case in float32."""
    runners = {"PerceiverResampler": _resampler, "GatedCrossAttentionBlock": _gated, "FlamingoPaLM": _palm}
    with jax.default_matmul_precision("highest"):
        return list(runners.get(case.manifest["model"], _module)(case))


# --- parts -----------------------------------------------------------------------------------------------------------------


def _part(case: Case, rules: list[Rule], module: Any, *inputs: Any) -> tuple[Row, Any]:
    """A part's checkpoint through its rules: whether it comes back, and its parameters."""
    tensors, (stacked, *_) = case.checkpoint(), flamingo.STACKED
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    params, _ = to_jax(stacked.split(tensors), Table(tuple(rules)), shapes)
    row = back_again(case, tensors, stacked.join(to_torch(params, Table(tuple(rules)))))
    return row, {"params": jax.tree.map(jnp.asarray, params)}


def _resampler(case: Case) -> Iterator[Row]:
    options = case.manifest["options"]
    module = PerceiverResampler(
        options["num_latents"], options["depth"], options["heads"], options["dim_head"], options["num_time_embeds"]
    )
    media, tokens = jnp.asarray(case.inputs["media"]), jnp.asarray(case.inputs["tokens"])[:, None]
    row, variables = _part(case, flamingo.RESAMPLER, module, media)
    yield row
    ours: dict[str, Any] = {}
    for name, given in (("media", media), ("tokens", tokens)):
        latents, out = jax.jit(module.apply)(variables, given)
        ours |= {name: latents, f"{name}_layer0_attn": out["read_0"]}
        ours[f"{name}_latent_norms"] = jnp.linalg.norm(latents, axis=-1)
    yield from compare_all(case, ours)


def _gated(case: Case) -> Iterator[Row]:
    options = case.manifest["options"]
    module = GatedCrossAttention(options["heads"], options["dim_head"], options["dim"])
    text, media = jnp.asarray(case.inputs["text"]), jnp.asarray(case.inputs["media"])
    count = jnp.cumsum(jnp.asarray(case.inputs["media_locations"]), axis=-1, dtype=jnp.int32)

    def both(module: Any, sees: Any, reads: Any) -> Any:
        return module(text, module.project(media), sees, reads)

    def start(key: Any) -> Any:
        return module.init(key, None, None, method=both)

    def apply(variables: Any, sees: Any, reads: Any) -> Any:
        return module.apply(variables, sees, reads, method=both)

    shapes = jax.eval_shape(start, jax.random.key(0))["params"]
    tensors, (stacked, *_), table = case.checkpoint(), flamingo.STACKED, Table(tuple(flamingo.CROSS_ATTENTION))
    params, _ = to_jax(stacked.split(tensors), table, shapes)
    yield back_again(case, tensors, stacked.join(to_torch(params, table)))
    # What each output's year does where nothing is seen (spec, section 4).
    forms: Mapping[str, dict[str, bool]] = {
        "out": {"uniform_beyond": True},
        "2022": {"uniform_beyond": True, "uniform_before": True},
        "all_previous": {"immediate": False, "uniform_before": True},
    }
    compiled, ours = jax.jit(apply), {}
    variables = {"params": jax.tree.map(jnp.asarray, params)}
    for name, form in forms.items():
        ours[name], inside = compiled(variables, *visible_media(count, media.shape[1], **form))
        if name == "out":
            ours["attn"] = inside["read"]
    ours["no_locations"], _ = compiled(variables, None, None)
    yield from compare_all(case, ours)


# --- the whole model -------------------------------------------------------------------------------------------------------


def _load(case: Case, config: dict[str, Any]) -> tuple[Row, flamingo.Converted]:
    """Sends a checkpoint through a Lightning file, and back."""
    tensors = case.checkpoint()
    extra = None if config["language"] == "palm" else {"epoch": 3, "global_step": 40}
    found = through_file(tensors, extra, lambda path: flamingo.load(path, config))
    back = flamingo.to_original(found.params, found.config, found.unused)
    return back_again(_with_groups(case), tensors, back), found


def _with_groups(case: Case) -> Case:
    """BERT's checkpoints do not list which of their names are of one tensor; the spec does (section 6)."""
    keys = [t["key"] for t in case.manifest["tensors"]]
    first = "flamingo_palm.bert_decoder.bert."
    groups = list(case.manifest.get("tied", ()))
    for key in keys:
        if key.startswith(f"{first}embeddings.") and "position_ids" not in key:
            groups.append([key, key.replace(f"{first}embeddings.", "flamingo_palm.bert_embedding.")])
        if key.startswith(f"{first}encoder.layer."):
            i, _, rest = key.removeprefix(f"{first}encoder.layer.").partition(".")
            groups.append([key, f"flamingo_palm.layers.{i}.0.fn.{rest}"])
    return Case(case.name, case.manifest | {"tied": groups}, case.inputs, case.expected, case.arrays)


def _caller(model: Any, params: Any) -> Any:
    """Calls a model with the original's inputs, NCHW images among them, all rows at once."""

    @jax.jit
    def call(inputs: Any) -> Any:
        return model.apply({"params": params}, **inputs)

    def with_images_last(**inputs: Any) -> Any:
        given = {name: jnp.asarray(x, jnp.int32 if x.dtype == np.int64 else x.dtype) for name, x in inputs.items()}
        if "image" in given:
            given["image"] = jnp.moveaxis(given["image"], -3, -1)
        return call(given)

    return with_images_last


def _palm(case: Case) -> Iterator[Row]:
    row, found = _load(case, flamingo.model_config(case.manifest["options"]))
    yield row
    call = _caller(models.build(found.config), jax.tree.map(jnp.asarray, found.params))
    text = case.inputs["ids"]
    logits, _ = call(text=text, media=case.inputs["embeds"])
    text_only, _ = call(text=text)
    yield from compare_all(case, {"logits": logits, "text_only_logits": text_only})


def _module(case: Case) -> Iterator[Row]:
    options = case.manifest["options"]
    row, found = _load(case, flamingo.model_config(options))
    yield row
    params = jax.tree.map(jnp.asarray, found.params)
    config = found.config
    if "runs" in case.manifest:
        yield from _train(case, config, params)
        return
    model = models.build(config)
    if "prompt_0" in case.inputs:
        yield from (_beams if "beam" in options else _greedy)(case, model, params)
        return
    call = _caller(model, params)
    inputs = {"text": case.inputs["ids"], "image": case.inputs["images"]}
    inputs |= {"question_end": case.inputs["index_eoq"]}
    if config["language"] == "bert":
        inputs["text_mask"] = case.inputs["mask"].astype(bool)
    # Samples do not depend on one another, so that all rows at once give what each gives alone.
    logits, out = call(**inputs)
    ours = _named(logits, out, len(logits[0]), case)
    first = {f"first_{name}": value[:1] for name, value in _inside(out, found.config).items()}
    text_only, _ = call(
        text=case.inputs["ids"][:1], **({"text_mask": inputs["text_mask"][:1]} if "text_mask" in inputs else {})
    )
    ours |= first | {"first_text_only_logits": text_only}
    if "embeds" in case.inputs:
        ours["embeds_logits"], _ = call(text=case.inputs["embeds_ids"], media=case.inputs["embeds"])
        ours["multi_logits"], _ = call(text=case.inputs["multi_ids"], image=case.inputs["multi_images"])
    if "class_logits_token_average" in case.expected:
        _, averaged = _caller(models.build(config | {"mean_head": True}), params)(**inputs)
        ours["class_logits_token_average"] = averaged["class_logits"]
    for name, compat in (("batch", f"{config['compat']},first_sample"), ("2022", "2022")):
        if any(key.startswith(f"{name}_") for key in case.expected):
            logits, out = _caller(models.build(config | {"compat": compat}), params)(**inputs)
            ours |= {f"{name}_{key}": value for key, value in _named(logits, out, len(logits[0]), case).items()}
    yield from compare_all(case, ours)


def _named(logits: Any, out: Mapping[str, Any], length: int, case: Case) -> dict[str, Any]:
    """Outputs of whole texts by their names in the results."""
    ours = {"logits": logits, "hidden": out["hidden"]}
    if "class_logits" in out:
        ours |= {"class_logits": out["class_logits"], "class_probs": jax.nn.softmax(out["class_logits"], axis=-1)}
    ends, rows = case.inputs["mask"].sum(1) - 1, np.arange(len(logits))
    ours |= {"last_logits": logits[rows, ends], "argmax": jnp.argmax(logits, axis=-1)}
    ours["hidden_eoq"] = out["hidden"][rows, case.inputs["index_eoq"]]
    ours["hidden_norms"] = jnp.linalg.norm(out["hidden"], axis=-1)
    ours["last_top10"] = jnp.argsort(-ours["last_logits"], axis=-1)[:, :10]
    if case.name.endswith("full"):
        # Their summaries are of each row alone.
        ours |= {
            f"{name}_summary": np.stack([summary(row) for row in ours[name]]) for name in ("logits", "last_logits")
        }
        ours |= {"image_embeds": out["image_vector"][:, 0], "image_proj": out["projected"][:, 0]}
        ours["resampled"] = out["latents"][:, 0]
    return ours


def _inside(out: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Intermediates by their names in the results."""
    depth = config["language_sizes"]["depth"]
    ours = {
        "image_embeds": out["image_vector"][:, 0],
        "image_proj": out["projected"][:, 0],
        "resampled": out["latents"],
    }
    ours |= {f"block_{i}": out[f"block_{i}"] for i in range(depth)}
    ours |= {f"xattn_{i}": out[f"cross_{i}"] for i in range(0, depth, config["every"])}
    maps = [out[f"vision_attention_{i}"][:, 0].mean(1) for i in range(config["vision_sizes"].get("depth", 12))]
    return ours | {"attn": jnp.stack(maps, axis=1)}


# --- training --------------------------------------------------------------------------------------------------------------


def _train(case: Case, config: dict[str, Any], params: Any) -> Iterator[Row]:
    """Compares losses, and each parameter's gradient: its norm, that frozen ones have none, and some in full."""
    config |= {"head_dropout": 0.0, "language_sizes": {**config["language_sizes"], "dropout": 0.0}}
    image = jnp.moveaxis(jnp.asarray(case.inputs["images"]), 1, -1)
    text, end = (jnp.asarray(case.inputs[name], jnp.int32) for name in ("ids", "index_eoq"))
    batch = {"text": text, "image": image, "question_end": end}
    mask = jnp.asarray(case.inputs["mask"], jnp.bool_)
    targets, labels = (jnp.asarray(case.inputs[name], jnp.int32) for name in ("targets", "labels"))

    def loss(params: Any, model: Any, rows: int, freeze: Any) -> Any:
        params = optim.without_frozen_gradients(params, freeze)
        given = {name: x[:rows] for name, x in batch.items()}
        logits, out = model.apply({"params": params}, **given, train=True)
        text = losses.text_loss(logits, targets[:rows], mask[:rows], smoothing=SMOOTHING, shared_mask=True)
        generation = jnp.sum(text) / jnp.sum(mask[:rows])
        classes = jnp.mean(losses.label_smoothing(out["class_logits"], labels[:rows], SMOOTHING))
        accuracy = jnp.mean(jnp.argmax(out["class_logits"], axis=-1) == labels[:rows])
        return generation + classes, {
            "generation_loss": generation,
            "classification_loss": classes,
            "accuracy": accuracy,
        }

    for name, expected in case.manifest["runs"].items():
        quirk = ",first_sample" if name.endswith("first_sample") else ""
        model = models.build(config | {"compat": config["compat"] + quirk})
        rows = 1 if name.startswith("one") else len(mask)
        freeze = FREEZE["flamingo_mode" if name.endswith("flamingo") else "vision"]
        step = jax.jit(jax.value_and_grad(lambda p, m=model, n=rows, f=freeze: loss(p, m, n, f), has_aux=True))
        (value, parts), gradient = step(params)
        for part, number in (parts | {"loss": value}).items():
            error = abs(float(number) - expected[part]) / max(abs(expected[part]), 1)
            yield Row(case.name, f"{name} {part}", error <= LIMIT, error, LIMIT)
        gradients = flamingo.to_original(gradient, config)
        yield _norms(case, name, gradients)
        for key in case.expected:
            if key.startswith(f"{name}_grad:"):
                yield case.compare(key, gradients[key.partition(":")[2]], LIMIT)


def _norms(case: Case, run: str, gradients: Mapping[str, np.ndarray]) -> Row:
    """Each gradient's norm beside the original's, relative to its own; those that it has not are 0."""
    worst, where, count = 0.0, "", 0
    found = {key: float(np.linalg.norm(np.asarray(value, np.float64))) for key, value in gradients.items()}
    largest = max(found.values())
    for key, runs in case.manifest["gradients"].items():
        _, expected = runs[run]
        error = found[key] / largest / ZERO_LIMIT * LIMIT if expected is None else abs(found[key] - expected) / expected
        count += expected is not None
        if error > worst:
            worst, where = error, key
    note = f"{count} of {len(case.manifest['gradients'])} have one; worst {where}"
    return Row(case.name, f"{run} gradient norms", worst <= LIMIT, worst, LIMIT, note)


# --- generation ------------------------------------------------------------------------------------------------------------


def _prompts(case: Case) -> tuple[list[list[int]], Any]:
    count = sum(name.startswith("prompt_") for name in case.inputs)
    images = np.concatenate([case.inputs[f"image_{i}"] for i in range(count)])
    return [case.inputs[f"prompt_{i}"].tolist() for i in range(count)], jnp.asarray(np.moveaxis(images, 1, -1))


def _greedy(case: Case, model: Any, params: Any) -> Iterator[Row]:
    """Writes to all prompts at once, and compares the words; and the scores on the way, from the cache."""
    prompts, images = _prompts(case)
    expected = [case.expected[f"ids_{i}"][len(prompt) :] for i, prompt in enumerate(prompts)]
    generator = generate.Generator(model, generate.Settings(words=len(expected[0])))
    variables = {"params": params}
    ours = generator(variables, prompts, image=images)
    for i, prompt in enumerate(prompts):
        yield case.compare(f"ids_{i}", np.concatenate([prompt, ours.words[i]]), 0.0)

    text, mask = generate.pad(prompts, 0)
    slots = text.shape[1] + len(expected[0])
    logits, cache = generator.prefill(variables, text, mask, {"image": images}, slots=slots)

    @jax.jit
    def follow(logits: Any, cache: Any, words: Any) -> Any:
        def step(carry: Any, word: Any) -> Any:
            logits, cache = carry
            return model.apply(variables, word, cache, method="decode"), logits

        return jax.lax.scan(step, (logits, cache), words)[1]

    steps = np.asarray(follow(logits, cache, jnp.asarray(np.stack(expected, axis=1), jnp.int32)))
    best = np.sort(steps, axis=-1)
    for i in range(len(prompts)):
        yield case.compare(f"step_logits_{i}", steps[:, i], LIMIT)
        yield case.compare(f"margin_{i}", best[:, i, -1] - best[:, i, -2], LIMIT)


def _beams(case: Case, model: Any, params: Any) -> Iterator[Row]:
    """The original's search: texts, scores, and by how little it decided."""
    prompts, images = _prompts(case)
    stop, length = case.manifest["options"]["eoc_token_id"], max(len(x) for x in case.expected.values() if x.ndim) + 8

    @jax.jit
    def scores(text: Any, image: Any, last: Any) -> Any:
        logits, _ = model.apply({"params": params}, text=text, image=image)
        return logits[0, last]

    for i, (prompt, setting) in enumerate(zip(prompts, case.manifest["options"]["beam"], strict=True)):
        image = images[i : i + 1]

        def next_scores(text: list[int], image: Any = image) -> np.ndarray:
            padded = np.zeros((1, max(length, len(text))), np.int32)
            padded[0, : len(text)] = text
            return np.asarray(scores(padded, image, len(text) - 1))

        found = generate.best_first(next_scores, prompt, stop=stop, width=setting["beam_width"], count=setting["top_k"])
        for k, (_, text) in enumerate(found):
            yield case.compare(f"seq_{i}_{k}", np.asarray(text), 0.0)
        ours, expected = np.asarray([score for score, _ in found]), case.expected[f"scores_{i}"]
        yield case.compare(f"scores_{i}", ours, LIMIT)
        # By more than this, the scores would have to differ for other texts to come out.
        gap, error = float(case.expected[f"min_gap_{i}"]), float(np.max(np.abs(ours - expected)))
        yield Row(case.name, f"min_gap_{i}", error < gap, error, gap)
