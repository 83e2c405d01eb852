"""What a model gets to see in evaluation: the same images each time, whole, by the configured mean and deviation."""

import copy

import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import configs
from jaxvqa.data.data_set import DataSet
from jaxvqa.tasks import make_task
from jaxvqa.tasks.predictions import Predict, best_answers

CASES = {
    "configs/cmsa.py:small": {"data.augment.crop": 8, "data.augment.brightness": 0.5},
    "configs/sysu_hcp.py:small": {"data.augment.crop_and_flip": 8, "data.eval_size": 40},
    "configs/flamingo.py:small": {"data.augment.flip": True, "data.augment.colour": 0.5},
}
"""Config -> augmentation of every kind that it can do without turning, which takes longer."""


def task_and_example(phantoms, name, changes):
    config = configs.load(name)
    changes = changes | {
        "data.dir": phantoms,
        "data.examples": "phantom_vqa/tiny_questions",
        "data.images": "phantom_vqa/tiny_images",
        "data.answers.min_count": 1,
        "data.limit": 16,
    }
    configs.override(config, [(key, str(value)) for key, value in changes.items()])
    data = DataSet(config.data)
    return config, make_task(config, data), data.split("train")[0]


def seen(task, example, *, train):
    """The image of a batch in as many steps as it takes to see a draw of every kind."""
    images = []
    for step in range(8):
        made = example | {"draw": (0, step, 0)}
        for transform in task.transforms(train=train):
            made = transform(made)
        images.append(made["image"])
    return images


@pytest.mark.parametrize("name", CASES)
def test_images_are_altered_in_training_alone(phantoms, name):
    config, task, example = task_and_example(phantoms, name, CASES[name])
    evaluated, trained = (seen(task, example, train=train) for train in (False, True))
    assert all(np.array_equal(image, evaluated[0]) for image in evaluated)
    assert len({image.tobytes() for image in trained}) > 2
    # As an evaluation without any augmentation sees it, at its own size.
    off = {key: False if value is True else 0 for key, value in CASES[name].items() if "augment" in key}
    _, plain, _ = task_and_example(phantoms, name, CASES[name] | off)
    np.testing.assert_array_equal(evaluated[0], seen(plain, example, train=False)[0])
    size = config.data.get("eval_size") or config.data.image_size
    assert evaluated[0].shape == (size, size, 3)
    assert trained[0].shape == (config.data.image_size, config.data.image_size, 3)


class Shown:
    """A model that gives back the image that it is shown."""

    def apply(self, variables, *, image, method):
        return None, {"image_vector": image.reshape(len(image), 1, -1)}


def test_the_configured_mean_and_deviation_are_used(phantoms):
    mean, std = (0.1, 0.2, 0.4), (0.5, 0.25, 0.125)
    _, task, _ = task_and_example(phantoms, "configs/flamingo.py:small", {"data.mean": mean, "data.std": std})
    shown = copy.copy(task)
    shown.model = Shown()
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    vectors = shown._predict_vectors({}, {}, {"image": jnp.asarray(image)})["vector"]
    expected = (image / 255 - np.asarray(mean)) / np.asarray(std)
    np.testing.assert_allclose(vectors, expected.reshape(2, -1), rtol=1e-5, atol=1e-6)


# --- predictions as values -----------------------------------------------------------------------------------------------


def test_what_an_output_says():
    closed = Predict(lambda *_: {}, (), choices=("yes", "no", "left"))
    found = closed.prediction({"answer": np.int32([2, 0]), "probability": np.float32([0.5, 0.25])})
    assert found.answers == (("left", 0.5), ("yes", 0.25))
    assert (found.answer, found.probability, found.unanswered) == ("left", 0.5, False)
    none = closed.prediction({"answer": np.int32([-1]), "probability": np.float32([0])})
    assert (none.answer, none.probability, none.unanswered) == ("", 0, True)
    written = Predict(lambda *_: {}, (), text=lambda output: "".join(map(str, output["words"])))
    found = written.prediction({"words": np.zeros(0, np.int32), "score": np.asarray(np.log(0.125))})
    assert (found.answer, found.unanswered) == ("", False)  # an empty text is an answer
    assert found.probability == pytest.approx(0.125)


def test_the_best_answers_of_equals_are_the_first():
    scores = jnp.asarray([[0.1, 0.4, 0.4, 0.1], [0.3, 0.2, 0.2, 0.3]])
    found = best_answers(scores, 3)
    assert found["answer"].tolist() == [[1, 2, 0], [0, 3, 1]]
    np.testing.assert_allclose(found["probability"], [[0.4, 0.4, 0.1], [0.3, 0.3, 0.2]])
    assert best_answers(scores, 9)["answer"].shape == (2, 4)


def test_the_first_answer_alone_and_black_images():
    def both(params, collections, batch):
        found = best_answers(batch["scores"] + batch["image"], 3)
        return found | {"region_attention": batch["image"], "organ_right": batch["image"][:, 0]}

    batch = {"scores": jnp.asarray([[0.1, 0.4, 0.2]]), "image": jnp.asarray([[1.0, 0.0, 0.0]])}
    predict = Predict(both, ("scores", "image"))
    first = predict.first()
    assert first.keys == predict.keys
    found = first.function({}, {}, batch)
    assert found.keys() == {"answer", "probability", "organ_right"}
    assert found["answer"].tolist() == [[0]]
    assert first.blank("image").function({}, {}, batch)["answer"].tolist() == [[1]]
