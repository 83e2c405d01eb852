"""BLIP's golden cases of captions, answers, and two images: losses, gradients, ranking, and what is written.

docs/originals/blip.md, sections 7, 8 and 10.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvqa.convert import blip
from jaxvqa.convert.original import Checkpoint
from jaxvqa.data.images import CLIP_MEAN, CLIP_STD
from jaxvqa.decoding import rules
from jaxvqa.decoding.loop import Generator
from jaxvqa.golden.blip import Silent, found_model, load, summaries, tokenizer_with
from jaxvqa.golden.blip_data import tokenizer_of
from jaxvqa.golden.cases import Case, Row, Skipped
from jaxvqa.golden.parts import compare_all
from jaxvqa.golden.training import Precision, Run, Training, config_of, pixels, train
from jaxvqa.losses import cross_entropy
from jaxvqa.tasks.image_captioning import search_of


def run(case: Case) -> Iterator[Row]:
    """Runs one case in float32, and its gradients in float64 too."""
    with jax.default_matmul_precision("highest"):
        yield from MODELS[case.manifest["model"]](case)


def _written(case: Case, found: Checkpoint, name: str, batch: Mapping[str, Any], **changes: Any) -> Training:
    """Captions, or answers, in the program's terms: the loss's gradients, without a step."""
    options, model = case.manifest["options"], dict(found.config)
    for field in ("queue", "positives"):
        model.pop(field, None)
    model = {"name": "blip", **model}
    config = config_of(
        name,
        model,
        {"name": "AdamW"},
        batch_size=len(case.inputs["image"]),
        data__image_size=case.inputs["image"].shape[-1],
        **changes,
    )
    config.compile.vocab_size = model["vocab_size"]
    assets = {"tokenizer": tokenizer_with(options["special_ids"], model["vocab_size"]), "answers": ["word5"]}
    names = case.manifest.get("names_of_out_grad_norms", ())
    zero = [key for key in names if key.endswith("self.key.bias")]
    given = {"image": pixels(case.inputs["image"], CLIP_MEAN, CLIP_STD), **batch}
    written = blip.layout(model).write
    return Training(config, given, found.variables, written, names, zero, assets=assets, recorder=Silent)


def _search(options: Mapping[str, Any], output: str, prompt: int) -> Any:
    """The search of an output such as `generate_beam3_rp11`: three beams, a penalty of 1.1."""
    match = re.fullmatch(r"generate_beam(\d+)(?:_rp(\d)(\d+))?", output)
    assert match is not None
    penalty = float(f"{match[2]}.{match[3]}") if match[2] else 1.0
    limits = {"max_length": 30, "min_length": 10} | dict(options.get("generate", {}))
    settings = {"beams": int(match[1]), "repetition_penalty": penalty, "sample": False}
    settings |= {name: limits[name] for name in ("max_length", "min_length")}
    special = options["special_ids"]
    return search_of(settings, end=special["sep"], padding=special["pad"], prompt=prompt)


def _as_ids(case: Case, output: str, prompt: np.ndarray, found: Any) -> np.ndarray:
    """What was written as the original returns it: behind the prompt, with the end where there is room for it."""
    special, limits = case.manifest["options"]["special_ids"], case.manifest["options"].get("generate", {})
    most, rows = limits.get("max_length", 30), []
    for begin, tokens, length in zip(prompt, np.asarray(found.tokens), np.asarray(found.lengths), strict=True):
        ids = [*begin, *tokens[:length]]
        rows.append(ids + [special["sep"]] * (len(ids) < most))
    width = case.expected[output].shape[1]
    return np.asarray([(ids + [special["pad"]] * width)[:width] for ids in rows])


def _generated(case: Case, model: Any, params: Any, prompt: np.ndarray, **inputs: Any) -> dict[str, Any]:
    """The ids of every search that the case holds, and the scores of its texts."""
    ours: dict[str, Any] = {}
    for output in case.expected:
        if re.fullmatch(r"generate_beam\d+(_rp\d+)?", output):
            generator = Generator(model, _search(case.manifest["options"], output, prompt.shape[1]), buckets=())
            found = generator({"params": params}, list(prompt), **inputs)
            ours |= {output: _as_ids(case, output, prompt, found), f"{output}_score": found.scores}
    return ours


def _captions(case: Case) -> Iterator[Row]:
    row, found = load(case)
    yield row
    options, given = case.manifest["options"], case.inputs
    text, count = given["input_ids"], options["prompt_length"]
    smoothing = {"loss__smoothing": options.get("label_smoothing", 0.1)}

    def training() -> Training:
        batch = {"text": text, "text_mask": given["attention_mask"].astype(bool)}
        changes = {"data__max_tokens": text.shape[1], "data__prompt": "", **smoothing}
        return _written(case, found, "blip_caption", batch, **changes)

    def of_run(run: Run) -> Run:
        task: Any = run.task
        task._prompt = np.asarray(text[0, :count])
        return run

    run = of_run(Run(training(), Precision(case, np.float32)))
    task, params = run.task, run.start.params
    each, tokens, logits = jax.jit(
        lambda params: task.of_captions(task.caller(params, {}, None, train=False), run.batch)
    )(params)
    image = jnp.asarray(np.moveaxis(given["image"], 1, -1))
    embeds, _, _ = task.model.apply({"params": params}, image, method="see")
    ours = {"logits": logits, "loss": each.sum() / tokens.sum(), "image_embeds": embeds}
    ours |= _generated(case, found_model(found), params, np.asarray(text[:, :count]), image=image)
    if "sample_logits" in given:
        ours["sample_probabilities"] = _sampling(options, given)
    yield from compare_all(case, ours | summaries(case, ours))
    if "grad_norms" in case.expected:

        def named(run: Any) -> dict[str, Any]:
            return {"grad_norms": ("gradients", run.norms(of_run(run).follow([0.0])[0].gradients))}

        alone = dataclasses.replace(case, expected={"grad_norms": case.expected["grad_norms"]})
        yield from train(alone, training, named)


def _sampling(options: Mapping[str, Any], given: Mapping[str, np.ndarray]) -> Any:
    """The distribution that a token is drawn from, behind a context."""
    special = options["special_ids"]
    stated = {"min_length": 10, "top_p": 0.9} | dict(options.get("sample", {}))
    settings = {"beams": 1, "repetition_penalty": 1.0, "max_length": 100, "sample": True} | stated
    search = search_of(settings, end=special["sep"], padding=special["pad"], prompt=1)
    context = jnp.asarray(given["sample_context"], jnp.int32)
    nothing = jnp.zeros((len(context), 1), jnp.int32)
    written = rules.Written(context, jnp.ones(context.shape, bool), nothing, jnp.zeros((), jnp.int32))
    return jax.nn.softmax(rules.apply(search.limits.rules, jnp.asarray(given["sample_logits"]), written), axis=-1)


def _answers(case: Case) -> Iterator[Row]:
    row, found = load(case, blip.VQA)
    yield row
    options, given = case.manifest["options"], case.inputs
    question, question_mask = given["question_ids"], given["question_mask"].astype(bool)
    counts, weights = given["n"].astype(int), given["weights"]
    answers = given.get("answer_ids")
    special = options["special_ids"]
    mask = np.ones((0, 0), bool)
    if answers is not None:
        mask = given["answer_mask"].astype(bool)
    else:
        try:
            answers, mask = _answers_of(case)
        except Skipped as reason:
            trained = [name for name in case.expected if name == "loss" or name.startswith("train_decoder_logits")]
            yield from (case.failed(name, reason) for name in trained)
    batch: dict[str, Any] = {"question": question, "question_mask": question_mask}
    width = 2 if answers is None else answers.shape[1]
    most = int(counts.max())
    text = np.full((len(question), most, width), special["pad"], np.int64)
    there, weight = np.zeros(text.shape, bool), np.zeros(text.shape[:2], np.float32)
    if answers is not None:
        for i, (start, count) in enumerate(zip(np.cumsum(counts) - counts, counts, strict=True)):
            rows = slice(start, start + count)
            text[i, :count], there[i, :count], weight[i, :count] = answers[rows], mask[rows], weights[rows]
    there[..., 0] = True
    batch |= {"text": text, "text_mask": there, "weight": weight}
    changes = {"data__max_tokens": question.shape[1], "loss__smoothing": options.get("label_smoothing", 0.1)}
    changes |= {"data__max_answers": most, "data__max_answer_tokens": width}

    def training() -> Training:
        return _written(case, found, "blip_vqa", batch, **changes)

    run = Run(training(), Precision(case, np.float32))
    task: Any = run.task
    params, image = run.start.params, jnp.asarray(np.moveaxis(given["image"], 1, -1))

    @jax.jit
    def forward(params: Any, batch: Any) -> Any:
        _, (metrics, _) = type(task).loss(task, params, {}, batch, {}, train=False)
        flat = [batch[name].reshape(-1, width) for name in ("text", "text_mask")]
        asked = {"question": batch["question"], "question_mask": batch["question_mask"]}
        logits, out = task.model.apply({"params": params}, image=image, text=flat[0], text_mask=flat[1], **asked)
        return metrics["loss"], logits, out["question_states"]

    (total, images), logits, states = forward(params, run.batch)
    ours: dict[str, Any] = {"question_states": states}
    if answers is not None:
        kept = np.concatenate([np.arange(count) + i * most for i, count in enumerate(counts)])
        ours |= {"train_decoder_logits": np.asarray(logits)[kept], "loss": total / images}
    if "candidate_ids" in given:
        candidates = given["candidate_ids"].astype(np.int32), given["candidate_mask"].astype(bool)
        ranked = jax.jit(lambda params, batch: task.rank(params, {}, batch, candidates, options["k_test"]))(
            params, run.batch
        )
        ours |= {"first_token_prob": ranked.first, "topk_ids": ranked.kept, "topk_loss": ranked.loss}
        ours["rank_answer"] = ranked.best
    vision = found_model(found)
    if any(name.startswith("image_embeds") for name in case.expected):
        ours["image_embeds"] = vision.apply(
            {"params": params}, method=lambda model: model.vision_tower(image)[1]["tokens"]
        )
    prompt = np.full((len(question), 1), special["dec"])
    asked = {"question": jnp.asarray(question, jnp.int32), "question_mask": jnp.asarray(question_mask)}
    ours |= _generated(case, vision, params, prompt, image=image, attend_padding=jnp.asarray(True), **asked)
    yield from compare_all(case, ours | summaries(case, ours))
    if "grad_norms" in case.expected:

        def named(run: Any) -> dict[str, Any]:
            return {"grad_norms": ("gradients", run.norms(run.follow([0.0])[0].gradients))}

        alone = dataclasses.replace(case, expected={"grad_norms": case.expected["grad_norms"]})
        yield from train(alone, training, named)


def _answers_of(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The token ids of a case's answers, which it may state as texts alone; raises `Skipped` without the vocabulary."""
    inputs, given = case.manifest["inputs"], case.inputs
    texts, known = list(inputs["answers"]), list(inputs.get("candidates", ()))
    if set(texts) <= set(known):
        places = [known.index(text) for text in texts]
        return given["candidate_ids"][places], given["candidate_mask"][places].astype(bool)
    tokenizer = tokenizer_of(case)
    rows = [[tokenizer.decode_begin, *tokenizer.whole(text)[1:]] for text in texts]
    ids = np.full((len(rows), max(map(len, rows))), tokenizer.padding)
    for row, own in zip(ids, rows, strict=True):
        row[: len(own)] = own
    return ids, np.arange(ids.shape[1])[None] < np.asarray([len(own) for own in rows])[:, None]


def _two_images(case: Case) -> Iterator[Row]:
    row, found = load(case, blip.NLVR)
    yield row
    first, second = np.split(np.moveaxis(case.inputs["image"], 1, -1), 2)
    text = jnp.asarray(case.inputs["input_ids"], jnp.int32).at[:, 0].set(case.manifest["options"]["special_ids"]["enc"])
    mask = jnp.asarray(case.inputs["attention_mask"], bool)
    params = jax.tree.map(jnp.asarray, found.params)
    image = jnp.asarray(np.stack([first, second], axis=1))
    logits, _ = jax.jit(found_model(found).apply)({"params": params}, image=image, text=text, text_mask=mask)
    targets = jnp.asarray(case.inputs["targets"], jnp.int32)
    yield from compare_all(case, {"logits": logits, "loss": cross_entropy(logits, targets).mean()})


MODELS: Mapping[str, Callable[[Case], Iterator[Row]]] = {
    "BLIP_Decoder": _captions,
    "BLIP_VQA": _answers,
    "BLIP_NLVR": _two_images,
}
"""A manifest's `model` -> what runs it."""
