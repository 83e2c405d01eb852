"""Few-shot prompts and given answers, from the data to what is predicted."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa import configs, paths, sharding
from jaxvqa.data.batches import LoadBatch
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.few_shot import Support
from jaxvqa.data.order import EvalOrder
from jaxvqa.errors import ConfigError, DataError
from jaxvqa.evaluate import make_evaluators
from jaxvqa.metrics.score import as_row
from jaxvqa.state import TrainState
from jaxvqa.tasks import make_task, task_with_assets

SHOTS = 2
CHANGES = {
    "data.examples": "phantom_vqa/tiny_questions",
    "data.images": "phantom_vqa/tiny_images",
    "data.limit": 48,
    "data.shots": SHOTS,
    "data.max_prompt": 120,
    "data.augment.flip": True,  # in training alone
    "evals": {"val": {"type": "vqa", "split": "val", "every": "1 steps", "batch_size": 24, "predict": "ranked"}},
    "generate.max_new_tokens": 4,
}
CANDIDATES = ["yes", "no", "liver", "the left side"]


def small_config(phantoms, **changes):
    config = configs.load("configs/flamingo.py:small")
    everything = CHANGES | {name.replace("__", "."): value for name, value in changes.items()}
    with config.unlocked():
        config.evals = everything.pop("evals")
    configs.override(config, [(n, str(v)) for n, v in ({"data.dir": phantoms} | everything).items()])
    return config


@pytest.fixture(scope="module")
def candidates(tmp_path_factory):
    path = tmp_path_factory.mktemp("candidates") / "answers.json"
    path.write_text(json.dumps(CANDIDATES))
    return path


@pytest.fixture(scope="module")
def ready(phantoms, candidates):
    """The config, the task, and variables with open gates, and large enough that pictures tell."""
    config = small_config(phantoms, data__candidates=candidates)
    task = make_task(config, DataSet(config.data))
    flat = paths.flatten(jax.jit(task.init)(jax.random.key(0))).items()
    flat = {p: 0.7 + x if p.endswith("_gate") else 5 * x if p.endswith("kernel") else x for p, x in flat}
    return config, task, paths.nest(flat)


def batch_of(config, task, split="val"):
    """The support of a split, and a batch of it with examples."""
    source = DataSet(config.data).split(split)
    shots = task.predictions["answers"].shots
    support = Support.of(DataSet(config.data).split(shots.split), shots)
    load = LoadBatch(source, EvalOrder(len(source), 24), shots.transforms(support), 0, 1)
    return source, support, load(0)


def predicted(task, name, variables, made):
    """What a predict function makes of the entries that it reads."""
    predict = task.predictions[name]
    return predict.jitted(variables["params"], {}, {key: made[key] for key in predict.keys})


@pytest.fixture(scope="module")
def batch(ready):
    return batch_of(*ready[:2])


def test_the_pictures_are_those_of_the_text(ready, batch):
    config, task, _ = ready
    source, support, made = batch
    size = config.data.image_size
    assert made["image"].shape == (24, SHOTS + 1, size, size, 3)
    assert made["prompt"].shape == (24, 120)
    picture = task.transforms(train=False)[0]
    for row, example in enumerate(source.read(range(24))):
        shown = [*support(example), example]
        text = task.tokenizer._tokenizer.decode(
            made["prompt"][row][made["prompt_mask"][row]].tolist(), skip_special_tokens=False
        )
        asked = [part.partition("<EOQ>")[0].strip() for part in text.split("<image> question:")[1:]]
        assert asked == [shot["question"] for shot in shown]
        answers = [part.partition("<EOC>")[0].strip() for part in text.split("answer:")[1:]]
        assert answers == [*(shot["multiple_choice_answer"] for shot in shown[:-1]), ""]
        for place, shot in enumerate(shown):
            np.testing.assert_array_equal(made["image"][row, place], picture(shot)["image"])
        assert int(example["image_id"]) not in {int(shot["image_id"]) for shot in shown[:-1]}


def test_training_and_what_reads_whole_texts_have_no_examples(ready):
    config, task, _ = ready
    assert {name for name, predict in task.predictions.items() if predict.shots} == {
        *("answers", "answers_blank", "embeddings", "ranked", "ranked_blank")
    }
    assert task.init_batch(2)["image"].ndim == 4
    example = DataSet(config.data).split("train").read([0])[0] | {"draw": (0, 0, 0)}
    for transform in task.transforms(train=True):
        example = transform(example)
    assert example["image"].ndim == 3


@pytest.fixture(scope="module")
def uncached(ready):
    """The scores of each next word of a text, without a cache: (text, pictures) -> [B, T, V]."""
    _, task, variables = ready

    @jax.jit
    def scores(text, mask, pictures):
        pictures = task._image({"image": pictures})
        return task.model.apply(variables, text=text, text_mask=mask, image=pictures)[0]

    return scores


def test_answers_are_the_best_words_after_the_examples(ready, batch, uncached):
    _, task, variables = ready
    made = batch[2]
    found = predicted(task, "answers", variables, made)
    text, mask = behind(made, np.asarray(found["tokens"]))
    best = np.asarray(jnp.argmax(uncached(text, mask, made["image"]), axis=-1))
    for row, (start, length) in enumerate(zip(made["prompt_mask"].sum(-1), found["length"], strict=True)):
        words = [*np.asarray(found["tokens"])[row, :length].tolist(), task.tokenizer.end][:4]
        assert best[row, start - 1 : start - 1 + len(words)].tolist() == words
    # Other pictures before it, other scores of what is asked.
    start = made["prompt_mask"].sum(-1)
    other = uncached(text, mask, np.concatenate([made["image"][:, 1::-1], made["image"][:, 2:]], axis=1))
    assert jnp.abs(other - uncached(text, mask, made["image"]))[np.arange(24), start - 1].max() > 1e-4


def behind(made, words):
    """Prompts with words behind them, and masks: 8 more places."""
    text = np.pad(made["prompt"], ((0, 0), (0, 8)))
    mask = np.pad(made["prompt_mask"], ((0, 0), (0, 8)))
    for row, start in enumerate(made["prompt_mask"].sum(-1)):
        text[row, start : start + words.shape[1]] = words[row]
        mask[row, start : start + words.shape[1]] = True
    return text, mask


def test_given_answers_are_ranked_by_their_likelihood(ready, batch, uncached):
    """By the mean over their words, which is a length_penalty of 1; the best of them, with their shares."""
    _, task, variables = ready
    made = batch[2]
    found = predicted(task, "ranked", variables, made)
    means = []
    for answer in CANDIDATES:
        words = np.array(task.tokenizer.fill(" {answer} <EOC>", {"answer": answer}))
        text, mask = behind(made, np.tile(words[:8], (24, 1)))
        logs = np.asarray(jax.nn.log_softmax(uncached(text, mask, made["image"])))
        first = made["prompt_mask"].sum(-1) - 1
        places = first[:, None] + np.arange(len(words))
        means.append(np.mean(logs[np.arange(24)[:, None], places, words], axis=1))
    shares = np.asarray(jax.nn.softmax(np.stack(means, axis=1), axis=1))
    order = np.argsort(-shares, axis=1)
    np.testing.assert_array_equal(found["answer"], order)
    np.testing.assert_allclose(found["probability"], np.take_along_axis(shares, order, axis=1), atol=1e-5)


def test_an_evaluation_by_image_finds_the_twin(ready, tmp_path):
    """Over the support's own split: the examples are the pictures that are most similar, the asked one aside."""
    config, task, variables = ready
    with config.copy_and_resolve_references().unlocked() as changed:
        changed.data.shots_by = "image"
        changed.evals.val.split = "train"
    task = task_with_assets(changed, task.assets)
    mesh = sharding.make_mesh(changed.mesh, jax.devices()[:1])
    state = TrainState(step=jnp.asarray(3), params=variables["params"], collections={}, opt_state=(), ema=None)
    with jax.set_mesh(mesh):
        evaluator = make_evaluators(changed, task, DataSet(changed.data), mesh, tmp_path)["val"]
        values = as_row(evaluator.run(state))
        steps = evaluator._transforms(state)
    rows = [json.loads(line) for line in (tmp_path / "predictions/val_3.jsonl").read_text().splitlines()]
    assert len(rows) == 48
    assert {row["answer"] for row in rows} <= set(CANDIDATES)
    assert 0 <= values["val/accuracy"] <= 100
    support, pictures = steps[-4].support, steps[-4].support.images
    raw = np.stack([task.transforms(train=False)[0](e)["image"] for e in pictures.read(range(len(pictures)))])
    vectors = np.asarray(predicted(task, "image_vectors", variables, {"image": raw})["vector"])
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for question in DataSet(changed.data).split("train").read([0, 20, 47]):
        shown = [int(shot["image_id"]) for shot in support(question)]
        me = pictures.ids.tolist().index(int(question["image_id"]))
        cosine = vectors @ vectors[me]
        cosine[me] = -1
        assert shown == pictures.ids[np.argsort(cosine)[-SHOTS:]].tolist()


def test_what_does_not_go_together_is_reported_at_once(ready, phantoms, tmp_path):
    _, task, _ = ready

    def fails(kind=ConfigError, **changes):
        with pytest.raises(kind) as caught:
            task_with_assets(small_config(phantoms, **changes), task.assets)
        return str(caught.value)

    several = fails(
        data__shots=7, data__shots_by="image", data__blind=True, data__max_prompt=40, model__media_numbered=True
    )
    for part in (
        "a prompt has 8 images; model.media, a size of the checkpoint, allows 4",
        "media_numbered=false",
        "no images to compare",
        "config.data.max_prompt is 40",
    ):
        assert part in several
    assert "shots_by is 'picture'" in fails(data__shots_by="picture")
    assert "expected 0 or more" in fails(data__shots=-1)
    config = small_config(phantoms, data__classify=True)
    with config.unlocked():
        config.model.language = "bert"
    with pytest.raises(ConfigError, match="this model writes nothing, and has no prompts"):
        task_with_assets(config, task.assets)
    assert "config.data.candidates" in fails(DataError, data__candidates=tmp_path / "none.json")
    (tmp_path / "map.json").write_text('{"yes": 0}')
    assert "expected a list, got" in fails(DataError, data__candidates=tmp_path / "map.json")


def test_media_that_are_not_numbered_may_be_many_and_change_places(ready):
    """All have the first one's vector: a medium's latents do not depend on its place."""
    _, task, variables = ready
    pictures = jax.random.normal(jax.random.key(0), (1, 5, 32, 32, 3))
    see = jax.jit(lambda x: task.model.apply(variables, image=x, method="see")[0])
    latents = see(pictures)
    np.testing.assert_allclose(see(pictures[:, ::-1]), latents[:, ::-1], atol=1e-5)
    alone, _ = task.model.apply(variables, image=pictures[:, 0], method="see")
    np.testing.assert_allclose(alone[:, 0], latents[:, 0], atol=1e-5)
