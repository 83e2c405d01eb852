"""Flamingo's golden cases: resampler, gated cross-attention, the whole model of each year, training.

docs/originals/flamingo.md, section 22.
"""

import dataclasses
import functools
import heapq
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from jaxvqa import models
from jaxvqa.convert import flamingo, to_jax, to_torch
from jaxvqa.convert.original import Checkpoint
from jaxvqa.convert.table import Rule, Table
from jaxvqa.data import prompts
from jaxvqa.decoding.loop import Generator, pad, search_of
from jaxvqa.golden.cases import Case, Row
from jaxvqa.golden.parts import compare_all
from jaxvqa.golden.training import Named, Run, Training, config_of, pixels, train
from jaxvqa.models.flamingo_quirks import FREEZE
from jaxvqa.models.layers.perceiver import GatedCrossAttention, PerceiverResampler, visible_media
from jaxvqa.tasks.text_generation import next_tokens

TRAINING = {
    "label_smoothing": 0.1,
    "token_label_smoothing": 0.1,
    "use_generation_loss": True,
    "token_average_classification": False,
    "train_embedding_layer": True,
    "flamingo_mode": False,
    "classifier_dropout": 0.0,
}
"""Options of training, stated in `options`, in a section `training` or `train`, or beside these; and what holds without."""


def run(case: Case) -> Iterator[Row]:
    """Runs one case in float32, and a training case in float64 too."""
    runners = {"PerceiverResampler": _resampler, "GatedCrossAttentionBlock": _gated, "FlamingoPaLM": _palm}
    with jax.default_matmul_precision("highest"):
        yield from runners.get(case.manifest["model"], _module)(case)


# --- parts -----------------------------------------------------------------------------------------------------------------


def _part(case: Case, rules: list[Rule], init: Callable[..., Any], *inputs: Any) -> tuple[Row, Any]:
    """A part's checkpoint through its rules: whether it comes back, and its parameters."""
    tensors, (stacked, *_) = case.checkpoint(), flamingo.STACKED
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs)["params"]
    params, _ = to_jax(stacked.split(tensors), Table(tuple(rules)), shapes)
    row = case.back_again(tensors, stacked.join(to_torch(params, Table(tuple(rules)))))
    return row, {"params": jax.tree.map(jnp.asarray, params)}


def _resampler(case: Case) -> Iterator[Row]:
    options = case.manifest["options"]
    module = PerceiverResampler(
        options["num_latents"], options["depth"], options["heads"], options["dim_head"], options["num_time_embeds"]
    )
    given = {name: jnp.asarray(value) for name, value in case.inputs.items() if name in ("media", "tokens")}
    given = {name: value if value.ndim == 4 else value[:, None] for name, value in given.items()}
    row, variables = _part(case, flamingo.RESAMPLER, module.init, next(iter(given.values())))
    yield row
    ours: dict[str, Any] = {}
    for name, value in given.items():
        latents, out = jax.jit(module.apply)(variables, value)
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

    row, variables = _part(case, flamingo.CROSS_ATTENTION, partial(module.init, method=both), None, None)
    yield row
    # What each output's year does where nothing is seen (docs/originals/flamingo.md, section 4).
    forms: Mapping[str, dict[str, bool]] = {
        "out": {"uniform_beyond": True},
        "2022": {"uniform_beyond": True, "uniform_before": True},
        "all_previous": {"immediate": False, "uniform_before": True},
    }
    compiled, ours = jax.jit(partial(module.apply, method=both)), {}
    for name, form in forms.items():
        ours[name], inside = compiled(variables, *visible_media(count, media.shape[1], **form))
        if name == "out":
            ours["attn"] = inside["read"]
    ours["no_locations"], _ = compiled(variables, None, None)
    yield from compare_all(case, ours)


# --- the whole model -------------------------------------------------------------------------------------------------------


def _load(case: Case, config: dict[str, Any]) -> tuple[Row, Checkpoint]:
    """Sends a checkpoint through a Lightning file, and back."""
    tensors = case.checkpoint()
    extra = None if config["language"] == "palm" else {"epoch": 3, "global_step": 40}
    found = case.through_file(tensors, extra, lambda path: flamingo.ORIGINAL.load(path, config))
    return _with_groups(case).back_again(tensors, flamingo.ORIGINAL.to_original(found)), found


def _with_groups(case: Case) -> Case:
    """BERT's checkpoints do not list which of their names are of one tensor; docs/originals/flamingo.md, section 6, does."""
    keys = [t["key"] for t in case.manifest["tensors"]]
    first = "flamingo_palm.bert_decoder.bert."
    groups = list(case.manifest.get("tied", ()))
    for key in keys:
        if key.startswith(f"{first}embeddings.") and "position_ids" not in key:
            groups.append([key, key.replace(f"{first}embeddings.", "flamingo_palm.bert_embedding.")])
        if key.startswith(f"{first}encoder.layer."):
            i, _, rest = key.removeprefix(f"{first}encoder.layer.").partition(".")
            groups.append([key, f"flamingo_palm.layers.{i}.0.fn.{rest}"])
    return dataclasses.replace(case, manifest=case.manifest | {"tied": groups})


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
    ours: dict[str, Any] = {}
    if "embeds" in case.inputs:
        ours["logits"], _ = call(text=text, media=case.inputs["embeds"])
    ours["text_only_logits"], _ = call(text=text)
    yield from compare_all(case, ours)


def _module(case: Case) -> Iterator[Row]:
    options = case.manifest["options"]
    row, found = _load(case, flamingo.model_config(options))
    yield row
    config = found.config
    if "runs" in case.manifest:
        with_numbers, text = _with_numbers(case), _stated(case)["use_generation_loss"]
        for name, numbers in case.manifest["runs"].items():
            yield from case.unknown(numbers, PARTS, f"runs.{name}")
            make = partial(_training, with_numbers, name, config, found.params)
            yield from train(with_numbers, partial(make, text=text), partial(_named_of_run, case, name))
            if not text and "generation_loss" in numbers:  # reported, though it is not part of what is descended
                part = f"{name} generation_loss"
                read = dataclasses.replace(with_numbers, expected={part: with_numbers.expected[part]})
                yield from train(read, partial(make, text=True), partial(_named_of_run, case, name))
        yield from case.unread("manifest", "options", "train", "training")
        if dropout := _stated(case)["classifier_dropout"]:  # its draws cannot be repeated
            yield from case.unknown({"classifier_dropout": dropout}, (), "options")
        return
    params = jax.tree.map(jnp.asarray, found.params)
    model = models.build(config)
    if "prompt_0" in case.inputs:
        yield from (_beams if "beam" in options else _greedy)(case, model, params)
        return
    yield from compare_all(case, _forward(case, config, params))


def _forward(case: Case, config: dict[str, Any], params: Any) -> dict[str, Any]:
    """All outputs of whole texts by their names in the results."""
    call = _caller(models.build(config), params)
    names = {"text": "ids", "image": "images", "question_end": "index_eoq"}
    inputs = {name: case.inputs[given] for name, given in names.items() if given in case.inputs}
    if config["language"] == "bert" and "mask" in case.inputs:
        inputs["text_mask"] = case.inputs["mask"].astype(bool)
    ours: dict[str, Any] = {}
    if "text" in inputs:
        # Samples do not depend on one another, so that all rows at once give what each gives alone.
        logits, out = call(**inputs)
        ours = _named(logits, out, case)
        ours |= {f"first_{name}": value[:1] for name, value in _inside(out, config).items()}
        alone = {name: value[:1] for name, value in inputs.items() if name in ("text", "text_mask")}
        ours["first_text_only_logits"], _ = call(**alone)
    if "embeds" in case.inputs:
        ours["embeds_logits"], _ = call(text=case.inputs["embeds_ids"], media=case.inputs["embeds"])
    if "multi_images" in case.inputs:
        ours["multi_logits"], _ = call(text=case.inputs["multi_ids"], image=case.inputs["multi_images"])
    if "class_logits_token_average" in case.expected:
        _, averaged = _caller(models.build(config | {"mean_head": True}), params)(**inputs)
        ours["class_logits_token_average"] = averaged["class_logits"]
    for name, compat in (("batch", f"{config['compat']},first_sample"), ("2022", "2022")):
        if any(key.startswith(f"{name}_") for key in case.expected):
            logits, out = _caller(models.build(config | {"compat": compat}), params)(**inputs)
            ours |= {f"{name}_{key}": value for key, value in _named(logits, out, case).items()}
    return ours


def _named(logits: Any, out: Mapping[str, Any], case: Case) -> dict[str, Any]:
    """Outputs of whole texts by their names in the results."""
    rows = np.arange(len(logits))
    mask = case.inputs.get("mask", np.ones(logits.shape[:2], np.int64))
    last = logits[rows, mask.sum(1) - 1]
    ours = {"logits": logits, "hidden": out["hidden"], "last_logits": last, "argmax": jnp.argmax(logits, axis=-1)}
    ours |= {"hidden_norms": jnp.linalg.norm(out["hidden"], axis=-1)}
    ours["last_top10"] = jnp.argsort(-last, axis=-1)[:, :10]
    if "index_eoq" in case.inputs:
        ours["hidden_eoq"] = out["hidden"][rows, case.inputs["index_eoq"]]
    if "class_logits" in out:
        ours |= {"class_logits": out["class_logits"], "class_probs": jax.nn.softmax(out["class_logits"], axis=-1)}
    if "image_vector" in out:
        ours |= {"image_embeds": out["image_vector"][:, 0], "image_proj": out["projected"][:, 0]}
        ours["resampled"] = out["latents"][:, 0]
    return ours


def _inside(out: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Intermediates by their names in the results."""
    depth = config["language_sizes"]["depth"]
    ours = {f"block_{i}": out[f"block_{i}"] for i in range(depth)}
    if "image_vector" not in out:
        return ours
    ours |= {"image_embeds": out["image_vector"][:, 0], "image_proj": out["projected"][:, 0]}
    ours["resampled"] = out["latents"]
    ours |= {f"xattn_{i}": out[f"cross_{i}"] for i in range(0, depth, config["every"])}
    maps = [out[f"vision_attention_{i}"][:, 0].mean(1) for i in range(config["vision_sizes"].get("depth", 12))]
    return ours | {"attn": jnp.stack(maps, axis=1)}


# --- training --------------------------------------------------------------------------------------------------------------


def _stated(case: Case) -> dict[str, Any]:
    """What a manifest states of training, wherever it does."""
    manifest = case.manifest
    sections = (manifest, manifest["options"], manifest.get("train", {}), manifest.get("training", {}))
    return TRAINING | {name: section[name] for section in sections for name in TRAINING if name in section}


def _tokenizer(options: Mapping[str, Any], size: int) -> dict[str, Any]:
    """A tokenizer of that many tokens whose special tokens have the ids of the case."""
    spelt = {"bos_token_id": prompts.GPT2_END, "pad_token_id": prompts.PADDING}
    spelt |= {
        "media_token_id": prompts.IMAGE,
        "eoc_token_id": prompts.END,
        "eoq_token_id": prompts.QUESTION_END,
    }
    numbers = {name: options.get(option, size - 1 - i) for i, (option, name) in enumerate(spelt.items())}
    words = {f"word{i}": i for i in range(size) if i not in numbers.values()} | numbers
    return json.loads(tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=next(iter(words)))).to_str())


def _with_numbers(case: Case) -> Case:
    """The case whose results are also the manifest's numbers, those of each of its runs."""
    expected = dict(case.expected)
    for name, numbers in case.manifest["runs"].items():
        expected |= {f"{name} {part}": np.asarray(number) for part, number in numbers.items()}
        listed = {key: runs[name][1] for key, runs in case.manifest.get("gradients", {}).items() if name in runs}
        if listed:  # a parameter without a gradient has None
            expected[f"{name} gradient norms"] = np.asarray([norm or 0.0 for norm in listed.values()])
    return dataclasses.replace(case, expected=expected)


def _training(case: Case, name: str, config: dict[str, Any], params: Any, *, text: bool) -> Training:
    """One of the manifest's runs, whose name says what it trains on and what is fixed; with or without the loss of the text."""
    stated, inputs = _stated(case), case.inputs
    labels = inputs.get("labels")
    quirk = ",first_sample" if name.endswith("first_sample") else ""
    model = config | {"head_dropout": 0.0, "mean_head": stated["token_average_classification"]}
    model |= {"language_sizes": {**config["language_sizes"], "dropout": 0.0}, "compat": config["compat"] + quirk}
    flamingo_mode = name.endswith("flamingo") or (stated["flamingo_mode"] and "finetune" not in name)
    freeze = FREEZE["flamingo_mode" if flamingo_mode else "vision"]
    if flamingo_mode and not stated["train_embedding_layer"]:
        freeze = ((r"language/embed/table", True), *freeze)
    whole = config_of("flamingo", model, {"name": "SGD"}, optim__freeze=freeze, loss__prompt=True, loss__text=text)
    whole.loss.update(text_smoothing=stated["token_label_smoothing"], class_smoothing=stated["label_smoothing"])
    whole.data.update(classify=labels is not None and model["num_answers"] > 0, examples_per_image=1)
    count, rows = len(inputs["ids"]), slice(1 if name.startswith("one") else None)
    batch = {
        "image": pixels(inputs["images"], whole.data.mean, whole.data.std),
        "text": inputs["ids"].astype(np.int32),
        "text_mask": inputs["mask"].astype(bool),
        "question_end": inputs.get("index_eoq", np.zeros(count)).astype(np.int32),
        "answer_start": np.zeros(count, np.int32),
        "answer_class": (np.full(count, -1) if labels is None else labels).astype(np.int32),
    }
    gradients = {key: runs[name][1] for key, runs in case.manifest.get("gradients", {}).items() if name in runs}
    return Training(
        whole,
        {key: value[rows] for key, value in batch.items()},
        {"params": params},
        lambda variables: flamingo.layout(config).write(variables),
        tuple(gradients),
        [key for key, norm in gradients.items() if norm is None],
        assets={
            "tokenizer": _tokenizer(case.manifest["options"], model["vocab_size"]),
            "answers": [f"answer{i}" for i in range(model["num_answers"])] if whole.data.classify else [],
        },
    )


PARTS = {"generation_loss": "text_loss", "classification_loss": "class_loss", "accuracy": "accuracy", "loss": "loss"}
"""A number of a run -> the task's metric."""


def _named_of_run(case: Case, name: str, run: Run) -> Named:
    (step,) = run.follow([0.0])
    expected = next_tokens(run.batch, run.task.tokenizer.padding)
    if not np.array_equal(expected, case.inputs["targets"][: len(expected)]):
        raise ValueError("the targets are not the next tokens, with padding behind the last")
    named: Named = {
        f"{name} {part}": ("loss", np.divide(*step.metrics[metric]))
        for part, metric in PARTS.items()
        if metric in step.metrics
    }
    named[f"{name} gradient norms"] = ("gradients", lambda: run.norms(step.gradients))
    return named | {f"{name}_grad:{key}": ("values", value) for key, value in step.gradients.items()}


# --- generation ------------------------------------------------------------------------------------------------------------


def _prompts(case: Case) -> tuple[list[list[int]], Any]:
    count = sum(name.startswith("prompt_") for name in case.inputs)
    images = np.concatenate([case.inputs[f"image_{i}"] for i in range(count)])
    return [case.inputs[f"prompt_{i}"].tolist() for i in range(count)], jnp.asarray(np.moveaxis(images, 1, -1))


def _greedy(case: Case, model: Any, params: Any) -> Iterator[Row]:
    """Writes to all prompts at once, and compares the tokens; and the scores on the way, from the cache."""
    prompts, images = _prompts(case)
    expected = [case.expected[f"ids_{i}"][len(prompt) :] for i, prompt in enumerate(prompts)]
    count = max(len(tokens) for tokens in expected)
    generator = Generator(model, search_of({"max_new_tokens": count}))
    variables = {"params": params}
    ours = generator(variables, prompts, image=images)
    for i, prompt in enumerate(prompts):
        tokens = np.concatenate([prompt, ours.tokens[i][: len(expected[i])]])
        yield case.attempt(f"ids_{i}", functools.partial(case.compare, f"ids_{i}", tokens, 0.0))

    read = generator.prefill(variables, *pad(prompts, 0), {"image": images})

    @jax.jit
    def follow(logits: Any, cache: Any, tokens: Any) -> Any:
        def step(carry: Any, token: Any) -> Any:
            logits, cache = carry
            return model.apply(variables, token, cache, method="decode"), logits

        return jax.lax.scan(step, (logits, cache), tokens)[1]

    padded = [np.pad(tokens, (0, count - len(tokens))) for tokens in expected]
    steps = np.asarray(follow(read.logits, read.cache, jnp.asarray(np.stack(padded, axis=1), jnp.int32)))
    best = np.sort(steps, axis=-1)
    found: dict[str, Any] = {}
    for i, tokens in enumerate(expected):
        found[f"step_logits_{i}"] = steps[: len(tokens), i]
        found[f"margin_{i}"] = best[: len(tokens), i, -1] - best[: len(tokens), i, -2]
    yield from compare_all(case, found)


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

        found = best_first(next_scores, prompt, stop=stop, width=setting["beam_width"], count=setting["top_k"])
        for k, (_, text) in enumerate(found):
            yield case.compare(f"seq_{i}_{k}", np.asarray(text), 0.0)
        ours, expected = np.asarray([score for score, _ in found]), case.expected[f"scores_{i}"]
        yield case.compare(f"scores_{i}", ours)
        if f"min_gap_{i}" not in case.expected:
            continue
        # By more than this, the scores would have to differ for other texts to come out.
        gap, error = float(case.expected[f"min_gap_{i}"]), float(np.max(np.abs(ours - expected)))
        yield Row(case.name, f"min_gap_{i}", error < gap, error, gap)


def best_first(
    next_scores: Callable[[list[int]], np.ndarray],
    prompt: Sequence[int],
    *,
    stop: int,
    width: int,
    count: int,
    branch: int = 10,
    limit: int = 200,
) -> list[tuple[float, list[int]]]:
    """MLMI's search, which it calls a beam search (docs/originals/flamingo.md, section 14): for comparing with its numbers.

    Always the text with the best mean log-probability goes on, by each of its `width` best tokens; probabilities are among the
    `branch` best tokens only. Nothing bounds the length but `limit`, on the texts in all.

    Args:
      next_scores: a text to the scores float[V] of its next token.
      prompt: token ids.
      stop: id of the token that ends a text.
      width: continuations of a text.
      count: ended texts after which the search is over.
      branch: tokens among which probabilities are taken.
      limit: texts after which the search is over.

    Returns:
      (score, text with the prompt), the lower the better; the best that are left where none has ended.
    """

    def entry(total: float, text: list[int]) -> tuple[float, int, float, list[int]]:
        tokens = len(text) - len(prompt)
        return (-total / (tokens + 1e-6), next(number), total, text)

    number = itertools.count()
    queue, ended, texts = [entry(0.0, list(prompt))], [], 1
    while queue and texts <= limit:
        found = heapq.heappop(queue)
        _, _, total, text = found
        if text[-1] == stop and len(text) > len(prompt):
            ended.append(found)
            if len(ended) >= count:
                break
            continue
        scores = np.asarray(next_scores(text), np.float64)
        best = np.argsort(-scores, kind="stable")[:branch]
        logs = scores[best] - functools.reduce(np.logaddexp, scores[best])
        for token, log in list(zip(best, logs, strict=True))[:width]:
            heapq.heappush(queue, entry(total + float(log), [*text, int(token)]))
        texts += width - 1
    ended = ended or [heapq.heappop(queue) for _ in range(min(count, len(queue)))]
    return [(score, text) for score, _, _, text in sorted(ended)]
