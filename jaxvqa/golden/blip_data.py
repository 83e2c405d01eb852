"""BLIP's golden cases without a network: operations on images, texts, tokens, learning rates.

docs/originals/blip.md, sections 1, 2, 13 and 14.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image

from jaxvqa import configs, optim
from jaxvqa.data import augment, blip_text, images, tokenizers
from jaxvqa.errors import DataError
from jaxvqa.golden import weights
from jaxvqa.golden.cases import Case, Results, Row, Skipped
from jaxvqa.golden.runner import Check, Sections
from jaxvqa.losses import contrast
from jaxvqa.models.towers.vit import drop_paths, resized_positions

# --- images ------------------------------------------------------------------------------------------------------------------

GREY_LEVELS, SHARE = 3, 0.25
"""By how many grey levels, and in which share of the values, a warp may differ: releases of OpenCV differ among themselves."""

POSITIONS = "position_interpolation"

LEVELS = "level_to_first_argument_magnitude"


def _images(case: Case) -> Iterator[Row]:
    parts = {"cases": _operation, "eval_transform": _evaluated, "resized_crop": _cropped, POSITIONS: _positions}
    yield from case.unknown(case.manifest, (*parts, LEVELS, "sign"))
    for name, rows in parts.items():
        content = case.manifest.get(name) or ()
        for entry in [content] if isinstance(content, Mapping) else content:
            try:
                yield from rows(case, entry)
            except Exception as error:  # whatever one entry lacks, the others go on
                yield case.failed(f"{name}: {entry}"[:60], error)
    if LEVELS in case.manifest:
        yield case.counted(LEVELS, _levels(case.manifest[LEVELS]))


def _operation(case: Case, entry: Mapping[str, Any]) -> Iterator[Row]:
    yield from case.unknown(entry, ("key", "op", "args", "input"), "cases")
    name, arguments = entry["op"], list(entry.get("args", ()))
    number = [float(value) for value in arguments[:1]]
    image = _array(case, entry["input"])
    output = _output(case, entry["key"])

    def ours() -> np.ndarray:
        return augment.OPERATIONS[name](image, *number, *arguments[1:])

    between = name in augment.WARPS and not (name.startswith("Translate") and number[0].is_integer())
    yield case.attempt(output, partial(_warped, case, output, ours)) if between else case.compare(output, ours)


def _warped(case: Case, output: str, ours: Callable[[], np.ndarray]) -> Row:
    found, expected = ours(), case.expected[output]
    if found.shape != expected.shape:
        return Row(case.name, output, False, note=f"shape {list(found.shape)}, expected {list(expected.shape)}")
    difference = np.abs(found.astype(np.int64) - expected)
    most, share = int(difference.max(initial=0)), float(np.mean(difference > 0))
    note = f"{most} grey levels at most, in {share:.0%} of the values"
    return Row(case.name, output, most <= GREY_LEVELS and share <= SHARE, note=note)


def _evaluated(case: Case, entry: Mapping[str, Any]) -> Iterator[Row]:
    yield from case.unknown(entry, ("in", "out", "uint8_before_normalising"), "eval_transform")
    image = Image.fromarray(_array(case, entry["in"]))
    for key in _names(entry.get("out")):
        output = _output(case, key)
        size = case.expected[output].shape[-1]
        yield case.compare(output, lambda size=size: _prepared(images.resized(image, size, 3, bicubic=True)))
    for key in _names(entry.get("uint8_before_normalising")):
        output = _output(case, key)
        size = case.expected[output].shape[1]
        yield case.compare(output, lambda size=size: images.resized(image, size, 3, bicubic=True))


BOX = "top,left,height,width"


def _cropped(case: Case, entry: Mapping[str, Any]) -> Iterator[Row]:
    yield from case.unknown(entry, ("in", BOX, "size", "out", "then_flip_and_normalise"), "resized_crop")
    image = Image.fromarray(_array(case, entry.get("in") or case.manifest["eval_transform"]["in"]))
    top, left, height, width = entry[BOX]
    sizes = set(np.ravel(entry["size"]).tolist())
    if len(sizes) > 1:
        raise ValueError(f"size {entry['size']}: expected a square")
    part = partial(images.part_resized, image, (left, top, width, height), sizes.pop())
    for key in _names(entry.get("out")):
        yield case.compare(_output(case, key), part)
    for key in _names(entry.get("then_flip_and_normalise")):
        yield case.compare(_output(case, key), lambda: _prepared(part(flip=True)))


def _prepared(image: np.ndarray) -> np.ndarray:
    found = images.normalised(jnp.asarray(image)[None], images.CLIP_MEAN, images.CLIP_STD)
    return np.moveaxis(np.asarray(found[0]), -1, 0)


def _positions(case: Case, entry: Mapping[str, Any]) -> Iterator[Row]:
    yield from case.unknown(entry, ("in", "from_grid", "to_grid", "out"), POSITIONS)
    tokens = 1 + entry["to_grid"] ** 2
    position = jnp.asarray(_array(case, entry["in"])[0])
    yield case.compare(_output(case, entry["out"]), lambda: resized_positions(position, tokens)[None])


def _levels(table: Mapping[str, Any]) -> Results:
    for name, expected in table.items():
        if name == "levels":
            continue
        if name not in augment.OPERATIONS:
            yield name, "not an operation here", expected
        for level, size in zip(table["levels"], expected, strict=True):
            ours = augment.argument(name, float(level))
            yield f"{name} at {level}", *_alike(ours, size)


def _names(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _array(case: Case, source: Any) -> np.ndarray:
    """An input: the name of an array beside the case, or its recipe."""
    if isinstance(source, Mapping):
        return weights.make_input(source)
    case.need_arrays()
    return case.arrays[source]


def _output(case: Case, key: str) -> str:
    """The result's name without `out_`; one that is stored under another name is found too."""
    case.need_arrays()
    name = key.removeprefix("out_")
    case.expected.setdefault(name, case.arrays[key])
    return name


def _alike(ours: float | None, expected: Any) -> tuple[Any, Any]:
    """Both as they are, or the expected one twice where they differ by no more than the last digits of a double."""
    if ours is not None and expected is not None and np.isclose(ours, expected, rtol=1e-9, atol=1e-12):
        return expected, expected
    return ours, expected


def _is_about_images(content: Mapping[str, Any]) -> bool:
    entries = content.get("cases")
    operations = isinstance(entries, list) and any(isinstance(entry, dict) and "op" in entry for entry in entries)
    return operations or bool({"eval_transform", "resized_crop", POSITIONS, LEVELS} & content.keys())


RUNNERS: Sequence[tuple[Callable[[Mapping[str, Any]], bool], Callable[[Case], Iterator[Row]]]] = (
    (_is_about_images, _images),
)
"""What tells a file of cases by its content -> what runs it."""

# --- texts -------------------------------------------------------------------------------------------------------------------


def _cleaned(clean: Callable[..., str], cases: list[dict[str, Any]]) -> Results:
    for case in cases:
        words = {"max_words": case["max_words"]} if "max_words" in case else {}
        yield f"{case['in']!r} {words}", clean(case["in"], **words), case["out"]


def _image_ids(cases: list[dict[str, Any]]) -> Results:
    for case in cases:
        yield case["in"], blip_text.coco_image_id(case["in"]), case["out"]


def _annotated(annotation: Mapping[str, Any]) -> tuple[list[str], list[float]]:
    return blip_text.weighted_answers(annotation["answer"])


def _answer_weights(cases: list[dict[str, Any]]) -> Results:
    for case in cases:
        annotation = case["annotation"]
        answers, shares = _annotated(annotation)
        if "question" in case:
            yield "question", blip_text.pre_question(annotation["question"]), case["question"]
        if "answers" in case:
            yield "answers", answers, case["answers"]
        if "weights" in case:
            yield "weights", np.round(shares, 6).tolist(), np.round(case["weights"], 6).tolist()


def _collated(content: dict[str, Any], case: Case) -> Results:
    rows = case.manifest.get("vqa_answer_weights")
    if not rows:
        raise Skipped("needs the section vqa_answer_weights, whose questions are the batch")
    found = [_annotated(row["annotation"]) for row in rows]
    ours = {
        "answers": [answer for answers, _ in found for answer in answers],
        "weights": np.round([share for _, shares in found for share in shares], 6).tolist(),
        "n": [len(answers) for answers, _ in found],
    }
    for name in ours.keys() & content.keys():
        expected = np.round(content[name], 6).tolist() if name == "weights" else content[name]
        yield name, ours[name], expected


# Tokens.

VOCABULARY = "JAXVQA_BERT_VOCAB"
"""The environment variable that names BERT's `vocab.txt`, which nobody may pass on here."""

SPECIAL = {
    "pad": "[PAD]",
    "unk": "[UNK]",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
    "dec": blip_text.DECODE,
    "enc": blip_text.ENCODE,
}


def tokenizer_of(case: Case) -> blip_text.CaptionTokenizer:
    """That of the vocabulary which the environment names, or else of one beside the case with its special tokens' ids."""
    stated = case.manifest.get("tokenizer") or case.manifest.get("options", {}).get("special_ids", {})
    ids = {SPECIAL[name]: stated[name] for name in SPECIAL.keys() & stated.keys()}
    if VOCABULARY in os.environ:
        path = Path(os.environ[VOCABULARY])
        if not path.exists():  # which would be taken for a name on a hub
            raise FileNotFoundError(f"{VOCABULARY} is {path}, which is not there; expected BERT's vocab.txt")
        return _read(path)
    for file in sorted(case.folder.glob("*.txt")) if ids else ():
        try:
            found = _read(file)
        except DataError:  # another text
            continue
        if all(found.token_id(token) == number for token, number in ids.items()):
            return found
    raise Skipped(f"needs BERT's vocabulary: set {VOCABULARY} to the path of its vocab.txt")


def _read(file: Path) -> blip_text.CaptionTokenizer:
    return blip_text.CaptionTokenizer(tokenizers.load(file, blip_text.ADDED))


def _tokens(content: dict[str, Any], case: Case) -> Results:
    tokenizer = tokenizer_of(case)
    for name, token in SPECIAL.items():
        if name in content:
            yield token, tokenizer.token_id(token), content[name]
    for row in content.get("cases", ()):
        yield row["in"], tokenizer.whole(row["in"], spelt=True), row["ids"]
        if "decoded_skip_special" in row:
            yield f"{row['in']!r} and back", tokenizer.decode(row["ids"]), row["decoded_skip_special"]
    for row in content.get("padded", ()):
        ids, mask = tokenizer.padded(row["in"], row["max_length"], spelt=True)
        yield f"{row['in']!r} of {row['max_length']}", ids.tolist(), row["ids"]
        if "mask" in row:
            yield f"{row['in']!r}, its mask", mask.astype(int).tolist(), row["mask"]


def _prompt(content: dict[str, Any], case: Case) -> Results:
    ids = tokenizer_of(case).whole(content["text"])
    if "ids" in content:
        yield "ids", ids, content["ids"]
    if "prompt_length" in content:
        yield "length", len(ids) - 1, content["prompt_length"]


def _captions(cases: list[dict[str, Any]], case: Case) -> Results:
    tokenizer = tokenizer_of(case)
    prompt = case.manifest.get("prompt", {}).get("text", blip_text.PROMPT)
    for row in cases:
        yield str(row["ids"]), tokenizer.decode(row["ids"])[len(prompt) :], row["out"]


# --- learning rates ----------------------------------------------------------------------------------------------------------


Cases = list[dict[str, Any]]


def _scheduled(
    cases: Cases, schedule_of: Callable[[Mapping[str, Any]], dict[str, Any]], at: str, *, by_step: bool = False
) -> Results:
    """The rates of cases, those of one schedule together.

    Args:
      cases: the cases.
      schedule_of: a case -> `config.optim.schedule`.
      at: which field of a case says the epoch, or the step.
      by_step: whether it is the step; all steps are of epoch 0 then, and otherwise an epoch is a step.
    """
    made: dict[str, Any] = {}
    for case in cases:
        schedule = {"warmup": "0 steps", "warmup_from": 0.0} | schedule_of(case)
        key = str((case["init_lr"], schedule, case.get("max_epoch")))
        if key not in made:
            config = ml_collections.ConfigDict({"lr": float(case["init_lr"]), "schedule": schedule})
            length = case.get("max_epoch", 1 + max(other[at] for other in cases))
            size = length if by_step else 1
            made[key] = optim.make_schedule(config, data_size=size, batch_size=1, total_steps=length)
        label = f"{at} {case[at]}" + (f" of {case['max_epoch']}" if "max_epoch" in case else "")
        yield label, *_near(float(made[key](case[at])), case["lr"])


def _near(ours: float, expected: Any) -> tuple[Any, Any]:
    """The expected rate twice where ours, which is float32, is the same."""
    return (expected if np.isclose(ours, expected, rtol=1e-6, atol=0) else ours), expected


def _cosine(cases: Cases) -> Results:
    return _scheduled(cases, lambda case: {"name": "cosine_per_epoch", "floor": float(case["min_lr"])}, "epoch")


def _decayed(cases: Cases) -> Results:
    def schedule(case: Mapping[str, Any]) -> dict[str, Any]:
        floor, rate = float(case["min_lr"]), float(case["decay"])
        return {"name": "decay_per_epoch", "floor": floor, "decay_rate": rate}

    return _scheduled(cases, schedule, "epoch")


def _warmed_up(cases: Cases) -> Results:
    def schedule(case: Mapping[str, Any]) -> dict[str, Any]:
        warmup = {"warmup": f"{case['warmup_steps']} steps", "warmup_from": float(case["warmup_lr"])}
        return {"name": "decay_per_epoch", "floor": 0.0, "decay_rate": 1.0} | warmup

    return _scheduled(cases, schedule, "step", by_step=True)


def _soft_shares(system: str, cases: list[dict[str, Any]]) -> Results:
    options = configs.load(f"configs/{system}.py").loss
    for case in cases:
        epoch, step, count = case["epoch"], case["step"], case["steps_per_epoch"]
        ours = contrast.soft_share(options.alpha, options.alpha_epochs, epoch + step / count)
        yield f"step {step} of {count} in epoch {epoch}", *_near(float(ours), case["alpha"])


def _drop_paths(cases: list[dict[str, Any]]) -> Results:
    for case in cases:
        ours = drop_paths(float(case["rate"]), case["depth"])
        pairs = [_near(*pair) for pair in zip(ours, case["per_block"], strict=True)]
        yield f"{case['rate']} over {case['depth']}", [a for a, _ in pairs], [b for _, b in pairs]


_OF_SHARES = ("epoch", "step", "steps_per_epoch", "alpha")

SECTIONS: Sections = {
    "pre_caption": (Check.of(partial(_cleaned, blip_text.pre_caption), "in", "max_words", "out"),),
    "pre_question": (Check.of(partial(_cleaned, blip_text.pre_question), "in", "max_words", "out"),),
    "vis_pre_caption": (Check.of(partial(_cleaned, blip_text.vis_pre_caption), "in", "max_words", "out"),),
    "coco_image_id": (Check.of(_image_ids, "in", "out"),),
    "vqa_answer_weights": (Check.of(_answer_weights, "annotation", "question", "answers", "weights"),),
    "vqa_collate": (Check.of(_collated, "answers", "weights", "n", of_case=True),),
    "tokenizer": (Check.of(_tokens, *SPECIAL, "vocabulary", "cases", "padded", of_case=True),),
    "prompt": (Check.of(_prompt, "text", "ids", "prompt_length", of_case=True),),
    "caption_postprocess_cases": (Check.of(_captions, "ids", "out", of_case=True),),
    "cosine": (Check.of(_cosine, "epoch", "max_epoch", "init_lr", "min_lr", "lr"),),
    "step": (Check.of(_decayed, "epoch", "init_lr", "min_lr", "decay", "lr"),),
    "alpha_pretrain": (Check.of(partial(_soft_shares, "blip_pretrain"), *_OF_SHARES),),
    "alpha_retrieval": (Check.of(partial(_soft_shares, "blip_retrieval"), *_OF_SHARES),),
    "drop_path": (Check.of(_drop_paths, "rate", "depth", "per_block"),),
    "warmup": (Check.of(_warmed_up, "step", "warmup_steps", "warmup_lr", "init_lr", "lr"),),
}
