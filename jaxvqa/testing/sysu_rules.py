"""SYSU-HCP's golden cases of everything but the networks: losses, schedule, votes, reading, pictures (spec section 14)."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image

from jaxvqa import losses, optim, voting
from jaxvqa.data import images, med_text
from jaxvqa.errors import DataError
from jaxvqa.testing import weights
from jaxvqa.testing.golden import Case, Row, counted

Results = Iterator[tuple[str, Any, Any]]  # (label, ours, expected)

LIMIT = 2e-6
"""Largest relative difference of losses, gradients and pictures; the case's numbers and ours are both float32."""


def run_file(path: Path) -> list[Row]:
    """Runs one of the case files that this module knows, with the files beside it."""
    return _RUNNERS[path.name](path)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _case(path: Path) -> Case:
    """The arrays beside a case file, in the form that compares them."""
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
        arrays = dict(stored)
    expected = {name.removeprefix("out_"): array for name, array in arrays.items() if name.startswith("out_")}
    return Case(path.name, _read(path), {}, expected, arrays)


def _unknown(case: Case, compared: set[str]) -> list[Row]:
    """A miss for each array that was not compared."""
    names = sorted(case.expected.keys() - compared)
    return [Row(case.name, name, False, note="the runner does not know this output") for name in names]


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


def _losses(path: Path) -> list[Row]:
    case = _case(path)
    spec = case.manifest
    classes = spec["inputs"]["logits_i"]["classes"]
    batches = [_batch(spec["inputs"], i) for i in range(len(spec["inputs"]["logits_i"]["scale"]))]
    given = [
        (f"batch {i}", [logits[:, :4].tolist(), targets.tolist()], [case.arrays[f"in_{k}"].tolist() for k in names])
        for i, (logits, targets) in enumerate(batches)
        for names in [(f"logits_{i}_first", f"targets_{i}")]
    ]
    rows = [
        counted(case.name, "the inputs", given),
        case.compare("tau", np.asarray([np.log(classes)], np.float32), LIMIT),
    ]
    for i, (logits, targets) in enumerate(batches):
        ours = _losses_of_batch(jnp.asarray(logits), jnp.asarray(targets, jnp.int32))
        rows += [case.compare(f"{name}_{i}", value, LIMIT) for name, value in ours.items()]
    each = jnp.asarray(case.arrays["in_sample_losses"])
    rows.append(case.compare("sample_sigma", losses.superloss_confidence(each, classes), LIMIT))
    rows.append(case.compare("sample_superloss", losses.superloss(each, classes), LIMIT))
    rows += _mixup(case, batches)
    return rows + _schedule(case.name, spec) + _unknown(case, {row.output for row in rows} | {"targets_a", "targets_b"})


@jax.jit  # one program for all batches: compiling takes longer than all else
def _losses_of_batch(logits: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
    """Everything that the case has of a batch, by its name there."""
    nll = losses.cross_entropy(logits, targets)
    ours = {"nll": nll, "sigma": losses.superloss_confidence(nll, logits.shape[-1])}
    for name, reduce in [*((name, jnp.mean) for name in _PER_EXAMPLE), ("label_smoothing_sum", jnp.sum)]:
        each = _PER_EXAMPLE[name.removesuffix("_sum")]
        value, gradient = jax.value_and_grad(lambda z, r=reduce, e=each: r(e(z, targets)))(logits)
        ours |= {name: value[None], f"{name}_grad": gradient[:, :8]}
        ours[f"{name}_grad_norm"] = jnp.linalg.norm(gradient, axis=-1)
    return ours


def _mixup(case: Case, batches: list[tuple[np.ndarray, np.ndarray]]) -> list[Row]:
    spec = case.manifest["mixup"]
    mixup = losses.Mixup(jnp.float32(spec["lam"]), jnp.asarray(spec["permutation"], jnp.int32))
    pictures = weights.make_input(spec["image"])
    logits, targets = jnp.asarray(batches[1][0]), jnp.asarray(batches[0][1], jnp.int32)
    # Ours are [B, H, W, C]; mixing looks at the first axis only.
    mixed = mixup.images(jnp.asarray(pictures).transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    partners = [targets.tolist(), targets[mixup.partner].tolist()]
    expected = [case.expected["targets_a"].tolist(), case.expected["targets_b"].tolist()]
    rows = [case.compare("mixed", mixed, LIMIT), counted(case.name, "mixed targets", [("both", partners, expected)])]
    names = {
        "cross_entropy": (False, False),
        "label_smoothing": (True, False),
        "label_smoothing_superloss": (True, True),
    }
    for name, flags in names.items():
        value = mixup.loss(losses.LOSSES[flags], logits, targets).mean()
        rows.append(case.compare(f"mixup_{name}", np.asarray(value)[None], LIMIT))
    return rows


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


def _schedule(name: str, content: dict[str, Any]) -> list[Row]:
    spec = content["schedule"]
    base, epochs = spec["base_lr"], spec["epochs"]
    ours = _rules(spec)

    def single(rate: float) -> float:
        return float(np.float32(rate))

    def by_epoch() -> Results:
        for row, expected in zip(ours, spec["rows"], strict=True):
            yield f"epoch {row['epoch']}", row, expected | {"lr": single(expected["lr"])}

    def plain() -> Results:
        for epoch, expected in enumerate(content["poly"]):
            yield f"epoch {epoch}", round(base * optim.polynomial(epoch, epochs), 15), round(expected, 15)
        yield "after the last", base * optim.polynomial(epochs - 1, epochs), spec["after_last_epoch"]

    # The original forgets where it was unless its checkpoint closes a block; ours goes on as if it had not stopped.
    same: list[tuple[str, Any, Any]] = []
    other: list[tuple[str, Any, Any]] = []
    for case in content["resume"]:
        epoch = case["first_epoch"]
        rate, nesterov = base * optim.polynomial(epochs - 1, epochs), False
        if epoch < epochs:
            rate, nesterov = ours[epoch]["lr"], ours[epoch]["nesterov"]
        result = (f"from epoch {epoch}", (single(rate), nesterov), (single(case["lr"]), case["nesterov"]))
        (same if (case["checkpoint_epoch"] + 1) % spec["update_lr_every"] == 0 else other).append(result)
    differ = sum(theirs != mine for _, mine, theirs in other)
    return [
        counted(name, "schedule", by_epoch()),
        counted(name, "poly", plain()),
        counted(name, "resume at the end of a block", same),
        Row(
            name,
            "resume within a block",
            None,
            note=f"ours resumes exactly; the original differs in {differ} of {len(other)}",
        ),
        Row(name, "warmup_unused", None, note="accepted and never used by the original; not here"),
    ]


# --- votes -------------------------------------------------------------------------------------------------------------------


def _ensemble(path: Path) -> list[Row]:
    content = _read(path)
    diseases = med_text.DiseaseList.from_file(path.with_name("disease2id.json"))
    masks = voting.read_masks(path.with_name("modelmask.json"), len(diseases))

    def results(case: dict[str, Any]) -> Results:
        noise = weights.make_input({"seed": case["seed"], "shape": [len(content["models"]), len(diseases)]})
        logits = noise * np.float32(case["scale"]) + np.float32(case["offset"])
        for model, i, value in case["set"]:
            logits[model, i] = value
        question, allowed = case["question"], voting.allowed_classes(case["question"], masks)
        yield "modalities", voting.modalities_in(question, masks), case["modalities_found"]
        yield "best", logits.argmax(-1).tolist(), case["argmax"]
        for reading in voting.READINGS:
            yield reading, [voting.predict(row, allowed, reading) for row in logits], case[reading]
            vote = voting.vote(logits, question, masks, reading)
            yield f"vote, {reading}", vote, case[f"ensemble_{reading}"]
        ranks = [voting.first_allowed_rank(row, allowed) for row in logits]
        kept = [int(row.argmax()) if rank is None else rank for row, rank in zip(logits, ranks, strict=True)]
        yield "what the script's loop holds", kept, case["rank_bug"]
        yield "answer", diseases.answers[case["ensemble_intended"]], case["answer_intended"]

    return [counted(path.name, f"{i}: {case['question']}", results(case)) for i, case in enumerate(content["cases"])]


# --- reading -----------------------------------------------------------------------------------------------------------------


def _reading(path: Path) -> list[Row]:
    content = _read(path)
    files, name = content["files"], path.name

    def lists() -> Results:
        for split in ("train", "Med_LT_train"):
            pairs = med_text.parse_class_list(files[f"data/train/{split}.txt"], split)
            yield split, [[image, str(label)] for image, label in pairs], content[split]
        rows = med_text.parse_validation(files["data/val/val.txt"], files["data/val/label.txt"])
        yield "val", [[image, str(label), question] for image, label, question in rows], content["val"]
        questions = files["data/test2021/Task1-VQA-2021-TestSet-Questions.txt"]
        yield (
            "test",
            [list(r.values()) for r in med_text.parse_rows(questions, med_text.QUESTIONS, "test")],
            content["test"],
        )

    def classes() -> Results:
        rows = med_text.parse_rows(files["data/train/label.txt"], med_text.PAIRS, "label.txt")
        diseases = med_text.DiseaseList.build(row["answer"] for row in rows)
        yield "ids", diseases.index, content["disease2id"]
        yield "names", {str(i): disease for i, disease in enumerate(diseases.answers)}, content["id2disease"]

    def refused() -> Results:
        for line in content["bad_lines"]:
            try:
                ours = str(med_text.parse_class_list(line, "a list"))
            except DataError:
                ours = "refused"
            yield repr(line), ours, "refused"

    return [
        counted(name, what, results()) for what, results in (("files", lists), ("classes", classes), ("bad", refused))
    ]


# --- pictures ----------------------------------------------------------------------------------------------------------------


def _preprocess(path: Path) -> list[Row]:
    case = _case(path)
    spec, rows = case.manifest, []
    room = 8
    for k, image in enumerate(spec["images"]):
        picture = _synthetic(**image)
        test = images.resized(picture, spec["test_size"], 3)
        rows.append(
            counted(case.name, f"resized_{k}", [("pixels", test.tolist(), case.expected[f"resized_{k}"].tolist())])
        )
        rows.append(case.compare(f"test_{k}", _prepared(test), LIMIT))
        size = spec["train_input_size"]
        larger = images.resized(picture, size + room, 3)
        for seed in spec["python_random_seeds"]:
            # The original draws from Python's generator; ours from the example's own, by the same distributions.
            draw = random.Random(seed)
            left, top = draw.randint(0, room), draw.randint(0, room)
            cut = images.cropped_and_flipped(larger, size, left, top, draw.random() < 0.5)
            rows.append(case.compare(f"train_{k}_{seed}", _prepared(cut), LIMIT))
    return rows + _unknown(case, {row.output for row in rows})


def _synthetic(seed: int, height: int, width: int) -> Image.Image:
    """The case's picture: noise in red, a ramp down in green and to the right in blue."""
    noise = weights.make_input({"seed": seed, "shape": [height, width, 3], "kind": "int", "high": 256})
    rows, columns = np.indices((height, width))
    channels = [noise[..., 0], rows * 255 // (height - 1), columns * 255 // (width - 1)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def _prepared(picture: np.ndarray) -> np.ndarray:
    """What the case has of a picture: normalised, channels first, every third row and column."""
    return np.asarray(images.normalised(jnp.asarray(picture)[None])[0]).transpose(2, 0, 1)[:, ::3, ::3]


_RUNNERS: dict[str, Callable[[Path], list[Row]]] = {
    "losses.json": _losses,
    "ensemble_cases.json": _ensemble,
    "reading.json": _reading,
    "preprocess.json": _preprocess,
}
