"""Each task's loss against its definition in NumPy, with settings that are not the defaults, on outputs that are given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import lambertw

from jaxvqa import configs
from jaxvqa.tasks import task_without_data

RANDOM = np.random.default_rng(7)


class Given:
    """A model whose outputs are its parameters, and which notes what it is asked."""

    def __init__(self, output, **fields):
        self._output, self.asked = output, {}
        self.__dict__.update(fields)

    def apply(self, variables, **asked):
        self.asked = asked
        result = self._output(variables["params"])
        return (result, {}) if "mutable" in asked else result


def made(config, output=lambda p: (p["logits"], p), **changes):
    """A task whose model gives what its parameters say."""
    config = configs.load(config).copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    task = task_without_data(config)
    task.model = Given(output)
    return task


def evaluated(task, params, batch, *, train=True, collections=None, epoch=0.0, key=0):
    """Loss, metrics as numbers, gradients and collections of one call."""
    rngs = {name: jax.random.key(key) for name in task.streams} if train else {}

    @jax.jit
    def step(params, collections, batch, rngs, epoch):
        def loss(params):
            value, rest = task.loss(params, collections, batch, rngs, train=train, epoch=epoch)
            # What the model was asked leaves the traced function as its results do.
            return value, (rest, {name: x for name, x in task.model.asked.items() if isinstance(x, jax.Array)})

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, ((metrics, after), asked)), gradients = step(params, collections or {}, batch, rngs, epoch)
    task.model.asked |= asked
    return float(value), {name: tuple(map(float, m)) for name, m in metrics.items()}, gradients, after


def near(*values):
    return tuple(pytest.approx(value, rel=1e-5, abs=1e-6) for value in values)


def normal(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def softplus(x):
    return np.logaddexp(0, x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def bce(logits, scores):
    return (softplus(logits) - scores * logits).sum(-1)


def log_softmax(x):
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def nll(logits, targets):
    return -np.take_along_axis(log_softmax(logits), targets[..., None], -1)[..., 0]


def smoothed(logits, targets, amount):
    return (1 - amount) * nll(logits, targets) - amount * log_softmax(logits).mean(-1)


# --- RWSAN -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_answer_classification(dtype):
    task = made("configs/rwsan.py:small")
    logits, scores = normal(3, 5), RANDOM.choice([0, 0.3, 0.9, 1], (3, 5)).astype(np.float32)
    logits = np.asarray(jnp.asarray(logits, dtype), np.float32)
    mask = np.float32([1, 0, 1])
    batch = {"regions": normal(3, 2, 4), "question": np.ones((3, 4), np.int32), "answer_scores": scores, "mask": mask}
    value, metrics, gradients, _ = evaluated(task, {"logits": jnp.asarray(logits, dtype)}, batch)
    total, chosen = (bce(logits, scores) * mask).sum(), scores[np.arange(3), logits.argmax(-1)]
    assert (value, *metrics["loss"], *metrics["accuracy"]) == near(total, total, 2, (chosen * mask).sum(), 2)
    expected = (sigmoid(logits) - scores) * mask[:, None]
    np.testing.assert_allclose(gradients["logits"].astype(jnp.float32), expected, rtol=1e-2, atol=1e-2)
    assert task.model.asked["train"]
    np.testing.assert_array_equal(task.model.asked["question"], batch["question"])


# --- CMSA and MEVF ---------------------------------------------------------------------------------------------------------


def radiology_batch(**more):
    return {
        "question": np.ones((3, 4), np.int32),
        "image": RANDOM.integers(0, 256, (3, 2, 2, 3), np.uint8),
        "answer_scores": RANDOM.choice([0, 1], (3, 5)).astype(np.float32),
        "organ": np.int32([2, 0, 1]),
        "mask": np.float32([1, 1, 0]),
    } | more


@pytest.mark.parametrize("train", [True, False])
def test_radiology_vqa(train):
    task = made("configs/cmsa.py:small,ban", loss__organ=0.3, loss__reconstruction=0.7)
    grey = RANDOM.integers(0, 256, (3, 4, 4, 1), np.uint8)
    batch = radiology_batch(image_84=grey[:, :2, :2], image_128=grey)
    params = {"logits": normal(3, 5), "organ_logits": normal(3, 3), "reconstruction": normal(3, 4, 4, 1)}
    value, metrics, gradients, _ = evaluated(task, params, batch, train=train)
    mask = batch["mask"]
    answers = (bce(params["logits"], batch["answer_scores"]) * mask).sum()
    organ = (nll(params["organ_logits"], batch["organ"]) * mask).sum()
    # The mean over the batch, beside sums over it (docs/originals/sysu_hcp.md, section 13, quirk 21).
    error = (np.square(params["reconstruction"] - grey / 255).mean((1, 2, 3)) * mask).sum() / 2
    assert metrics["answer_loss"] == near(answers, 2)
    assert metrics["organ_loss"] == near(organ, 2)
    assert metrics["reconstruction_error"] == near(error, 1)
    total = answers + 0.3 * organ + 0.7 * error
    assert (value, *metrics["loss"]) == near(total, total, 2)
    right = (params["organ_logits"].argmax(-1) == batch["organ"]) * mask
    chosen = batch["answer_scores"][np.arange(3), params["logits"].argmax(-1)] * mask
    assert metrics["organ_accuracy"] == near(right.sum(), 2)
    assert metrics["accuracy"] == near(chosen.sum(), 2)
    expected = 0.3 * (np.exp(log_softmax(params["organ_logits"])) - np.eye(3)[batch["organ"]]) * mask[:, None]
    np.testing.assert_allclose(gradients["organ_logits"], expected, rtol=1e-5, atol=1e-6)


def test_weights_that_follow_the_losses():
    task = made("configs/cmsa.py:small", loss__organ=0.3, loss__dynamic=True)
    history = {"last": jnp.zeros(2), "before": jnp.zeros(2), "steps": jnp.zeros((), jnp.int32)}
    collections, kept = {"losses": history}, []
    for step in range(4):
        batch, params = radiology_batch(), {"logits": normal(3, 5), "organ_logits": normal(3, 3)}
        answers = (bce(params["logits"], batch["answer_scores"]) * batch["mask"]).sum()
        organ = (nll(params["organ_logits"], batch["organ"]) * batch["mask"]).sum()
        weights = np.ones(2)
        if step >= 2:
            ratio = np.exp(kept[-1] / (kept[-2] + 1e-8) / 2)
            weights = 2 * ratio / ratio.sum()
        total = weights @ [answers, organ]
        value, metrics, _, collections = evaluated(task, params, batch, collections=collections)
        assert (value, *metrics["loss"]) == near(total, total, 2)
        kept.append(np.asarray([total, organ]))  # the weighted sum stands for the answers': the original's slip
    # An evaluation weighs by the config, and changes nothing.
    value, _, _, after = evaluated(task, params, batch, collections=collections, train=False)
    assert value == near(answers + 0.3 * organ)[0]
    jax.tree.map(np.testing.assert_array_equal, after, collections)


# --- CMSA's pre-training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("organ", "target", "shape"), [("abdomen", "segmentation", (2, 2)), ("brain", "label", ())])
def test_multi_task_pretraining(organ, target, shape):
    weights = {"loss__image": 0.6, "loss__compatibility": 1.7}
    task = made(f"configs/mtpt.py:{organ},small", lambda p: ((p["image"], p["fits"]), p), **weights)
    params = {"image": normal(3, *shape, 4), "fits": normal(3, 2)}
    wanted, fits = RANDOM.integers(0, 4, (3, *shape)), np.int32([1, 0, 1])
    mask = np.float32([0, 1, 1])
    batch = {"image": np.zeros((3, 2, 2, 3), np.uint8), "question": np.ones((3, 4), np.int32), "fits": fits}
    batch |= {target: wanted.astype(np.int32)[..., None] if shape else wanted.astype(np.int32), "mask": mask}
    value, metrics, gradients, _ = evaluated(task, params, batch)

    def total(of_each):
        return (of_each.reshape(3, -1).mean(-1) * mask).sum()

    image, fit = total(nll(params["image"], wanted)), total(nll(params["fits"], fits))
    assert metrics["image_loss"] == near(image, 2)
    assert metrics["compatibility_loss"] == near(fit, 2)
    assert (value, *metrics["loss"]) == near(0.6 * image + 1.7 * fit, 0.6 * image + 1.7 * fit, 2)
    assert metrics["accuracy"] == near(total(params["image"].argmax(-1) == wanted), 2)
    assert metrics["compatibility"] == near(total(params["fits"].argmax(-1) == fits), 2)
    expected = 1.7 * (np.exp(log_softmax(params["fits"])) - np.eye(2)[fits]) * mask[:, None]
    np.testing.assert_allclose(gradients["fits"], expected, rtol=1e-5, atol=1e-6)


# --- SYSU-HCP --------------------------------------------------------------------------------------------------------------


def superloss(each, classes, strength=0.25):
    y = 0.5 * np.maximum(-2 / np.e, (each - np.log(classes)) / strength)
    sigma = np.exp(-np.where(y < -1 / np.e + 1e-12, -1, lambertw(y).real))
    return (each - np.log(classes)) * sigma + strength * np.log(sigma) ** 2


def class_loss(logits, targets, *, smooth, confident, amount):
    right = nll(logits, targets)
    right = superloss(right, logits.shape[-1]) if confident else right
    return (1 - amount) * right - amount * log_softmax(logits).mean(-1) if smooth else right


@pytest.mark.parametrize("confident", [False, True])
@pytest.mark.parametrize("smooth", [False, True])
def test_image_classification(smooth, confident):
    flags = {"loss__mixup": False, "loss__label_smooth": smooth, "loss__superloss": confident, "loss__smoothing": 0.3}
    task = made("configs/sysu_hcp.py:small", loss__flags="each", **flags)
    logits, targets = 2 * normal(5, 6), np.int32([3, -1, 0, 5, 2])
    mask = np.float32([1, 1, 1, 1, 0])
    batch = {"image": np.zeros((5, 2, 2, 3), np.uint8), "answer_class": targets, "mask": mask}
    value, metrics, _, _ = evaluated(task, {"logits": logits}, batch)
    counted = np.asarray([0, 2, 3])
    each = class_loss(logits, np.maximum(targets, 0), smooth=smooth, confident=confident, amount=0.3)[counted]
    assert (value, *metrics["loss"]) == near(each.sum(), each.sum(), 3)
    assert metrics["accuracy"] == near((logits.argmax(-1) == targets)[counted].sum(), 3)


def test_labels_are_mixed_where_images_are():
    changes = {"loss__mixup_alpha": 1.5, "loss__mixup_off_epoch": 2, "loss__smoothing": 0.3, "loss__flags": "original"}
    task = made("configs/sysu_hcp.py:small,mixup,smoothing,superloss", **changes)
    logits, targets = 2 * normal(4, 6), np.int32([3, -1, 0, 5])
    batch = {"image": RANDOM.integers(0, 256, (4, 2, 2, 3), np.uint8), "answer_class": targets}
    batch["mask"] = np.ones(4, np.float32)
    mean, spread = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    image = (batch["image"] / 255 - mean) / spread
    params = {"logits": logits}
    each = class_loss(logits[:, None], np.maximum(targets, 0)[None], smooth=True, confident=True, amount=0.3)
    each *= targets >= 0  # of example i for the class of example j
    found = set()
    for key in range(3):
        value, metrics, _, _ = evaluated(task, params, batch, epoch=1.99, key=key)
        # What was drawn is read off the images that the model got.
        seen = np.asarray(task.model.asked["image"], np.float64)
        share, partner = drawn(image, seen)
        total = (share * np.diag(each) + (1 - share) * each[np.arange(4), partner]).sum()
        assert (value, *metrics["loss"]) == near(total, total, 3)
        found.add(round(share, 4))
    assert len(found) == 3
    for train, epoch in ((True, 2.0), (False, 0.0)):  # from that epoch on, and in evaluation, nothing is mixed
        value, _, _, _ = evaluated(task, params, batch, train=train, epoch=epoch)
        assert value == near(np.diag(each).sum())[0]
        np.testing.assert_allclose(task.model.asked["image"], image, rtol=1e-5, atol=1e-5)


def drawn(image, seen):
    """The share and the partners that make what was seen of the images."""
    flat, mixed = image.reshape(4, -1), seen.reshape(4, -1)
    best = (np.inf, 1.0, None)
    for share in {mixed_share(flat, mixed, i, j) for i in range(4) for j in range(4) if i != j}:
        every = share * flat[:, None] + (1 - share) * flat[None]
        distance = np.abs(every - mixed[:, None]).max(-1)
        best = min(best, (distance.min(1).max(), share, distance.argmin(1).tolist()))
    assert best[0] < 1e-4
    return best[1], np.asarray(best[2])


def mixed_share(flat, mixed, i, j):
    way = flat[i] - flat[j]
    return float((mixed[i] - flat[j]) @ way / (way @ way))


# --- Flamingo --------------------------------------------------------------------------------------------------------------


TEXTS = {"text_mask": np.asarray([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], bool)}
TEXTS |= {"answer_start": np.int32([3, 2, 4]), "question_end": np.int32([2, 1, 3])}
TEXTS |= {"image": np.zeros((3, 2, 2, 3), np.uint8), "mask": np.float32([1, 1, 0])}


def text_case(config="small", **changes):
    task = made(f"configs/flamingo.py:{config}", data__examples_per_image=1, **changes)
    words = len(task.tokenizer)
    batch = TEXTS | {"text": RANDOM.integers(0, words, (3, 6)).astype(np.int32), "answer_class": np.int32([2, -1, 0])}
    following = np.concatenate([batch["text"][:, 1:], np.full((3, 1), task.tokenizer.padding)], axis=1)
    return task, batch, normal(3, 6, words), following


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_text_generation(prompt, shared):
    compat = {"model__compat": "shared_loss_mask"} if shared else {}
    task, batch, logits, following = text_case(loss__prompt=prompt, loss__text_smoothing=0.2, **compat)
    value, metrics, _, _ = evaluated(task, {"logits": logits}, batch)
    learnt = batch["text_mask"] & (prompt | (np.arange(6) >= batch["answer_start"][:, None] - 1))
    each = smoothed(logits.astype(np.float64), following, 0.2)
    weight = np.broadcast_to(learnt.mean(0), learnt.shape) if shared else learnt
    total, count = (each * weight)[:2].sum(), learnt[:2].sum()
    assert (value, *metrics["loss"], *metrics["text_loss"]) == near(total, total, count, total, count)
    answers = np.asarray([[0, 0, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0]], bool)
    assert metrics["accuracy"] == near((logits.argmax(-1) == following)[:2][answers].sum(), 4)
    # Where padded positions count, the original masks none of them.
    assert ("text_mask" in task.model.asked) is not shared


@pytest.mark.parametrize("text", [True, False])
def test_text_and_classes(text):
    settings = {"loss__text": text, "loss__text_smoothing": 0.2, "loss__class_smoothing": 0.4, "loss__prompt": True}
    task, batch, logits, following = text_case("classify,small", **settings)
    params = {"logits": logits, "class_logits": normal(3, len(task.answers))}
    params["cross_0"] = {"attention_gate": np.float32([0.5])}
    value, metrics, _, _ = evaluated(task, params, batch)
    classes = smoothed(params["class_logits"], np.int32([2, 0, 0]), 0.4)[0]
    assert metrics["class_loss"] == near(classes, 1)
    assert metrics["accuracy"] == near(float(params["class_logits"][0].argmax() == 2), 1)
    assert metrics["gate/cross_0/attention"] == near(np.tanh(0.5), 1)
    if not text:
        assert (value, *metrics["loss"]) == near(classes, classes, 1)
        assert "text_loss" not in metrics
        return
    each, learnt = smoothed(logits.astype(np.float64), following, 0.2), batch["text_mask"][:2]
    mean = each[:2][learnt].mean() + classes  # a mean over words and one over examples, of two examples
    assert (value, *metrics["loss"]) == near(2 * mean, 2 * mean, 2)
    assert metrics["text_loss"] == near(each[:2][learnt].sum(), learnt.sum())
