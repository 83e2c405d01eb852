"""SYSU-HCP's golden cases of everything but the networks: losses, schedule, votes, reading, images.

docs/originals/sysu_hcp.md, section 14.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image

from jaxvqa import losses, optim
from jaxvqa.data import images, med_text
from jaxvqa.ensembles import voting
from jaxvqa.ensembles.masks import allowed_classes, modalities_in, modality_of, read_masks
from jaxvqa.errors import DataError
from jaxvqa.golden import weights
from jaxvqa.golden.cases import LIMIT, Case, Results, Row
from jaxvqa.golden.parts import compare_all

# --- losses ------------------------------------------------------------------------------------------------------------------

_PER_EXAMPLE: dict[str, losses.ExampleLoss] = {
    "cross_entropy": losses.cross_entropy,
    "superloss": losses.superloss_of_nll,
    "label_smoothing": losses.label_smoothing,
    "label_smoothing_superloss": losses.label_smoothing_superloss,
}


def _batch(spec: dict[str, Any], i: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and targets of one of the batches."""
    shape, seed = [spec["logits_i"]["B"], spec["logits_i"]["classes"]], spec["logits_i"]["seed"]
    logits = weights.make_input({"seed": seed + i, "shape": shape, "scale": spec["logits_i"]["scale"][i]})
    targets = weights.make_input({"seed": seed + 10 + i, "shape": shape[:1], "kind": "int", "high": shape[1]})
    logits[0, targets[0]] += 12
    logits[1] = 0.25
    logits[2, targets[2]] += 6
    return logits, targets


LOSS_SECTIONS = ("inputs", "mixup", "schedule", "poly", "resume", "warmup_unused")


def _losses(case: Case) -> Iterator[Row]:
    yield from case.unknown(case.manifest, LOSS_SECTIONS)
    if "inputs" in case.manifest:
        yield from _of_batches(case)
    if "schedule" in case.manifest:
        yield from _schedule(case, case.manifest)
    if "warmup_unused" in case.manifest:
        yield Row(case.name, "warmup_unused", None, note="accepted and never used by the original; not here")


def _of_batches(case: Case) -> Iterator[Row]:
    case.need_arrays()
    spec = case.manifest["inputs"]
    classes = spec["logits_i"]["classes"]
    batches = [_batch(spec, i) for i in range(len(spec["logits_i"]["scale"]))]
    given = [
        (f"batch {i}", [logits[:, :4].tolist(), targets.tolist()], [case.arrays[f"in_{k}"].tolist() for k in names])
        for i, (logits, targets) in enumerate(batches)
        for names in [(f"logits_{i}_first", f"targets_{i}")]
        if all(f"in_{k}" in case.arrays for k in names)
    ]
    yield case.counted("the inputs", given)
    ours: dict[str, Any] = {"tau": np.asarray([np.log(classes)], np.float32)}
    for i, (logits, targets) in enumerate(batches):
        found = _losses_of_batch(jnp.asarray(logits), jnp.asarray(targets, jnp.int32))
        ours |= {f"{name}_{i}": value for name, value in found.items()}
    if "in_sample_losses" in case.arrays:
        each = jnp.asarray(case.arrays["in_sample_losses"])
        ours |= {"sample_sigma": _confidence(each, classes), "sample_superloss": losses.superloss(each, classes)}
    yield from compare_all(case, ours)
    if "mixup" in case.manifest:
        yield from _mixup(case, batches)


def _confidence(each: jax.Array, classes: int) -> jax.Array:
    """SuperLoss's sigma, which is the gradient with respect to each loss."""
    return jax.grad(lambda each: losses.superloss(each, classes).sum())(each)


@jax.jit  # one program for all batches: compiling takes longer than all else
def _losses_of_batch(logits: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
    """Everything that the case has of a batch, by its name there."""
    nll = losses.cross_entropy(logits, targets)
    ours = {"nll": nll, "sigma": _confidence(nll, logits.shape[-1])}
    for name, reduce in [*((name, jnp.mean) for name in _PER_EXAMPLE), ("label_smoothing_sum", jnp.sum)]:
        each = _PER_EXAMPLE[name.removesuffix("_sum")]
        value, gradient = jax.value_and_grad(lambda z, r=reduce, e=each: r(e(z, targets)))(logits)
        ours |= {name: value[None], f"{name}_grad": gradient[:, :8]}
        ours[f"{name}_grad_norm"] = jnp.linalg.norm(gradient, axis=-1)
    return ours


def _mixup(case: Case, batches: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[Row]:
    spec = case.manifest["mixup"]
    mixup = losses.Mixup(jnp.float32(spec["lam"]), jnp.asarray(spec["permutation"], jnp.int32))
    pictures = weights.make_input(spec["image"])
    number = {name: int(spec.get(name, default).rpartition("_")[2]) for name, default in _MIXED.items()}
    logits = jnp.asarray(batches[number["prediction"]][0])
    targets = jnp.asarray(batches[number["targets"]][1], jnp.int32)
    # Ours are [B, H, W, C]; mixing looks at the first axis only.
    mixed = mixup.images(jnp.asarray(pictures).transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for name, partners in (("targets_a", targets), ("targets_b", targets[mixup.partner])):
        if name in case.expected:
            yield case.compare(name, partners, 0.0)
    names = {
        "cross_entropy": (False, False),
        "label_smoothing": (True, False),
        "label_smoothing_superloss": (True, True),
    }
    ours = {
        f"mixup_{name}": np.asarray(mixup.loss(losses.LOSSES[flags], logits, targets).mean())[None]
        for name, flags in names.items()
    }
    yield from compare_all(case, {"mixed": mixed} | ours)


_MIXED = {"prediction": "logits_1", "targets": "targets_0"}
"""What mixup's losses are of -> the batch, where the file does not say."""


# --- schedule ----------------------------------------------------------------------------------------------------------------


def _rules(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The rate and the rule of each epoch as our optimiser has them, with one step an epoch and gradients of 1."""
    epochs, block = spec["epochs"], spec["update_lr_every"]
    config = ml_collections.ConfigDict(
        {
            "name": "sgd",
            "lr": spec["base_lr"],
            "momentum": 0.9,
            "nesterov": True,
            "restart_epochs": tuple(range(block, epochs, block)),
            "clip_norm": 0.0,
            "decay": (),
            "coupled_decay": (),
            "lr_scale": (),
            "freeze": (),
            "schedule": {"name": "epochs", "table": optim.sysu_table(epochs, block)},
        }
    )
    rate = optim.make_schedule(config, data_size=1, batch_size=1, total_steps=epochs)
    rates = np.asarray(jax.vmap(rate)(jnp.arange(epochs)))
    one = jnp.ones(())
    optimizer = optim.make_optimizer(config, one, steps_per_epoch=1)
    state = optimizer.init(one)
    update = jax.jit(lambda state, step: optimizer.update(one, state, one, step=step))
    rows = []
    for epoch in range(epochs):
        direction, state = update(state, epoch)
        buffer = float(jax.tree.leaves(state)[0])
        fresh, nesterov = buffer == 1.0, float(direction) != buffer
        rows.append({"epoch": epoch, "lr": float(rates[epoch]), "nesterov": nesterov, "momentum_buffer_fresh": fresh})
    return rows


def _schedule(case: Case, content: Mapping[str, Any]) -> Iterator[Row]:
    spec = content["schedule"]
    base, epochs, power = spec["base_lr"], spec["epochs"], spec.get("power", 0.9)
    ours = _rules(spec)

    def single(rate: float) -> float:
        return float(np.float32(rate))

    def by_epoch() -> Results:
        for expected in spec["rows"]:
            given = expected | ({"lr": single(expected["lr"])} if "lr" in expected else {})
            yield f"epoch {given['epoch']}", {name: ours[given["epoch"]].get(name) for name in given}, given

    def plain() -> Results:
        for epoch, expected in enumerate(content.get("poly", ())):
            yield f"epoch {epoch}", round(base * optim.polynomial(epoch, epochs, power), 15), round(expected, 15)
        if "after_last_epoch" in spec:
            yield "after the last", base * optim.polynomial(epochs - 1, epochs, power), spec["after_last_epoch"]

    # The original forgets where it was unless its checkpoint closes a block; ours goes on as if it had not stopped.
    same: list[tuple[str, Any, Any]] = []
    other: list[tuple[str, Any, Any]] = []
    for resumed in content.get("resume", ()):
        epoch = resumed["first_epoch"]
        rate, nesterov = base * optim.polynomial(epochs - 1, epochs, power), False
        if epoch < epochs:
            rate, nesterov = ours[epoch]["lr"], ours[epoch]["nesterov"]
        result = (f"from epoch {epoch}", (single(rate), nesterov), (single(resumed["lr"]), resumed["nesterov"]))
        (same if (resumed["checkpoint_epoch"] + 1) % spec["update_lr_every"] == 0 else other).append(result)
    differ = sum(theirs != mine for _, mine, theirs in other)
    if "rows" in spec:
        yield case.counted("schedule", by_epoch())
    if "poly" in content or "after_last_epoch" in spec:
        yield case.counted("poly", plain())
    if "resume" in content:
        yield case.counted("resume at the end of a block", same)
        note = f"ours resumes exactly; the original differs in {differ} of {len(other)}"
        yield Row(case.name, "resume within a block", None, note=note)


# --- votes -------------------------------------------------------------------------------------------------------------------


def _ensemble(case: Case) -> Iterator[Row]:
    content = case.manifest
    diseases = med_text.DiseaseList.from_file(
        case.beside_by_content("the original's list of diseases", lambda held: _names_of(held, int, str))
    )
    masks = read_masks(case.beside_by_content("its masks", lambda held: _names_of(held, list)), len(diseases))
    table = allowed_classes(masks, len(diseases))

    def results(asked: dict[str, Any]) -> Results:
        noise = weights.make_input({"seed": asked["seed"], "shape": [len(content["models"]), len(diseases)]})
        logits = noise * np.float32(asked["scale"]) + np.float32(asked["offset"])
        for model, i, value in asked["set"]:
            logits[model, i] = value
        allowed = np.broadcast_to(table[modality_of(asked["question"], masks)], logits.shape)
        own = {reading: rule(logits, allowed) for reading, rule in voting.READINGS.items()}
        votes = {reading: int(voting.vote(classes[:, None])[0]) for reading, classes in own.items()}
        ours: dict[str, Any] = {"modalities_found": modalities_in(asked["question"], masks)}
        ours["argmax"] = logits.argmax(-1).tolist()
        for reading, classes in own.items():
            ours[reading] = [None if i < 0 else i for i in classes.tolist()]
            ours[f"ensemble_{reading}"] = None if votes[reading] < 0 else votes[reading]
        # What the script's loop holds: where it stops, the rank of the allowed class instead of the class.
        ranks = (-logits).argsort(-1, stable=True).tolist()
        ours["rank_bug"] = [
            order.index(allowed_one) if stops < 0 else order[0]
            for order, allowed_one, stops in zip(ranks, own["intended"], own["as_written"], strict=True)
        ]
        ours["answer_intended"] = diseases.answers[votes["intended"]]
        yield from ((name, value, asked[name]) for name, value in ours.items() if name in asked)

    for i, asked in enumerate(content["cases"]):
        yield case.counted(f"{i}: {asked.get('question')}", results(asked))


def _names_of(content: Any, *kinds: type) -> bool:
    """Whether it is a map from names to values of these kinds."""
    return isinstance(content, dict) and bool(content) and all(type(value) in kinds for value in content.values())


# --- reading -----------------------------------------------------------------------------------------------------------------


READING_SECTIONS = ("files", "train", "Med_LT_train", "val", "test", "disease2id", "id2disease", "bad_lines")


def _reading(case: Case) -> Iterator[Row]:
    content = case.manifest
    files = content.get("files", {})
    # Lists of a training split, whatever their names are.
    splits = [split for split in content if f"data/train/{split}.txt" in files]
    yield from case.unknown(content, {*READING_SECTIONS, *splits})

    def lists() -> Results:
        for split in splits:
            yield split, _class_list(files[f"data/train/{split}.txt"], split), content[split]
        if "val" in content:
            # Two files, line by line of the same images.
            labels = _class_list(files["data/val/val.txt"], "val.txt")
            rows = med_text.parse_rows(files["data/val/label.txt"], med_text.PAIRS, "label.txt")
            if [image for image, _ in labels] != [row["image"] for row in rows]:
                raise DataError("val.txt and label.txt are not of the same images in the same order")
            ours = [[*both, row["question"]] for both, row in zip(labels, rows, strict=True)]
            yield "val", ours, content["val"]
        if "test" in content:
            questions = files["data/test2021/Task1-VQA-2021-TestSet-Questions.txt"]
            asked = med_text.parse_rows(questions, med_text.QUESTIONS, "test")
            yield "test", [list(row.values()) for row in asked], content["test"]

    def classes() -> Results:
        rows = med_text.parse_rows(files["data/train/label.txt"], med_text.PAIRS, "label.txt")
        diseases = med_text.DiseaseList.build(row["answer"] for row in rows)
        ours = {"disease2id": diseases.index, "id2disease": {str(i): d for i, d in enumerate(diseases.answers)}}
        yield from ((what, value, content[what]) for what, value in ours.items() if what in content)

    def refused() -> Results:
        for line in content["bad_lines"]:
            try:
                ours = str(_class_list(line, "a list"))
            except DataError:
                ours = "refused"
            yield repr(line), ours, "refused"

    if {*splits, "val", "test"} & content.keys():
        yield case.counted("files", lists())
    if {"disease2id", "id2disease"} & content.keys():
        yield case.counted("classes", classes())
    if "bad_lines" in content:
        yield case.counted("bad", refused())


def _class_list(text: str, source: str) -> list[list[str]]:
    """The image and the class id of each line `image id` of one of the authors' lists.

    Raises:
      DataError: a line is not a name, one blank and a number.
    """
    pairs = [line.strip().partition(" ")[::2] for line in text.split("\n") if line.strip()]
    if wrong := [pair for pair in pairs if not (pair[0] and pair[1].isdecimal())]:
        raise DataError(f"{source}: expected lines of an image, one blank and a class id, got {wrong[0]}.")
    return [list(pair) for pair in pairs]


# --- images ----------------------------------------------------------------------------------------------------------------


PICTURE_OPTIONS = (
    "images",
    "test_size",
    "train_input_size",
    "python_random_seeds",
    "mean",
    "std",
    "formula",
    "outputs",
)


def _preprocess(case: Case) -> Iterator[Row]:
    case.need_arrays()
    spec = case.manifest
    yield from case.unknown(spec, PICTURE_OPTIONS)
    constants = spec.get("mean", images.IMAGENET_MEAN), spec.get("std", images.IMAGENET_STD)
    room = 8
    for k, image in enumerate(spec["images"]):
        picture = _synthetic(**image)
        ours: dict[str, Any] = {}
        if "test_size" in spec:
            test = images.resized(picture, spec["test_size"], 3)
            ours |= {f"resized_{k}": test, f"test_{k}": _prepared(test, *constants)}
        for seed in spec.get("python_random_seeds", ()):
            size = spec["train_input_size"]
            larger = images.resized(picture, size + room, 3)
            # The original draws from Python's generator; ours from the example's own, by the same distributions.
            draw = random.Random(seed)
            left, top = draw.randint(0, room), draw.randint(0, room)
            cut = images.cropped_and_flipped(larger, size, left, top, draw.random() < 0.5)
            ours[f"train_{k}_{seed}"] = _prepared(cut, *constants)
        for name in ours.keys() & case.expected.keys():
            yield case.compare(name, ours[name], 0.0 if name.startswith("resized") else LIMIT)


def _synthetic(seed: int, height: int, width: int) -> Image.Image:
    """The case's image: noise in red, a ramp down in green and to the right in blue."""
    noise = weights.make_input({"seed": seed, "shape": [height, width, 3], "kind": "int", "high": 256})
    rows, columns = np.indices((height, width))
    channels = [noise[..., 0], rows * 255 // (height - 1), columns * 255 // (width - 1)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def _prepared(picture: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """What the case has of an image: normalised, channels first, every third row and column."""
    pictures = images.normalised(jnp.asarray(picture)[None], tuple(mean), tuple(std))
    return np.asarray(pictures[0]).transpose(2, 0, 1)[:, ::3, ::3]


RUNNERS: Sequence[tuple[Callable[[Mapping[str, Any]], bool], Callable[[Case], Iterator[Row]]]] = (
    (lambda content: isinstance(content.get("inputs"), dict) and "logits_i" in content["inputs"], _losses),
    (lambda content: isinstance(content.get("schedule"), dict) and "update_lr_every" in content["schedule"], _losses),
    (lambda content: {"models", "cases"} <= content.keys(), _ensemble),
    (lambda content: "images" in content and bool({"test_size", "train_input_size"} & content.keys()), _preprocess),
    (lambda content: isinstance(content.get("files"), dict) or "bad_lines" in content, _reading),
)
"""What recognises a file of cases by its content -> what runs it."""
