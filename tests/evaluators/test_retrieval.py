"""Retrieval over a split: stub predict functions against loops over every pair, on one device and on several batches."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxvqa.best import Best
from jaxvqa.configs import common
from jaxvqa.errors import ConfigError, DivergedError
from jaxvqa.evaluate import headline
from jaxvqa.evaluators import evaluator, tables
from jaxvqa.metrics.score import as_row
from jaxvqa.tasks.predictions import Predict
from tests.evaluators.stubs import Task, context, state

IMAGE_KEY = 1000
"""A text's number is told from an image's by this: the stubs' states and tokens hold them."""


class Matching(Task):
    """A stub task that compares: its parameters are the features of images and texts, and a table of all match logits."""

    def __init__(self):
        super().__init__()
        self.steps, self.matched = [], 0

        def images(params, collections, batch):
            image = batch["image_number"]
            states = jnp.broadcast_to(image[:, None, None].astype(jnp.float32), (len(image), 3, 2))
            return {"image_states": states, "image_feature": params["images"][image]}

        def texts(params, collections, batch):
            return {"text_feature": params["texts"][batch["text"][:, 1]]}

        def match(params, collections, batch):
            assert batch["text"].shape == (*batch["text_mask"].shape[:2], 2)
            self.steps.append(batch["text"].shape)
            image = batch["image_states"][:, 0, 0].astype(jnp.int32)
            return {"match_logits": params["logits"][image[:, None], batch["text"][:, :, 1]]}

        self.predictions = {
            "image_features": Predict(images, ("image_number",)),
            "text_features": Predict(texts, ("text", "text_mask")),
            "match": Predict(match, ("image_states", "text", "text_mask")),
        }

    def transforms(self, *, train):
        assert not train
        return (lambda example: {"image_number": np.int32(example["image_id"] - IMAGE_KEY)},)

    def text_transforms(self, max_tokens=0):
        self.max_tokens = max_tokens

        def tokens(record):
            return {"text": np.asarray([2, record["place"]], np.int32), "text_mask": np.ones(2, np.int32)}

        return (tokens,)


def records(images, texts_of_image, captions=None):
    numbers = np.repeat(np.arange(images), texts_of_image)
    captions = captions or [f"text {i}" for i in range(len(numbers))]
    return [
        {"question_id": 10 * t, "image_id": IMAGE_KEY + int(i), "caption": captions[t]} for t, i in enumerate(numbers)
    ]


def outputs(images, texts, seed=0, width=8):
    rng = np.random.default_rng(seed)

    def unit(count):
        found = rng.normal(size=(count, width)).astype(np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    logits = rng.normal(size=(images, texts, 2)).astype(np.float32)
    return {"images": unit(images), "texts": unit(texts), "logits": logits}


def made(splits, workdir, task=None, **row):
    row = common.retrieval("val", every="1 epoch", **({"batch_size": 3} | row)).to_dict()
    return evaluator("retrieval")(context(task or Matching(), splits, workdir, **row))


def values(each, given):
    found = as_row(each.run(state(given)))
    assert all(name.startswith("val/") for name in found)
    return {name.removeprefix("val/"): value for name, value in found.items()}


def naive(given, own, k):
    """Recalls by loops as the original's: a matrix of -100, the best k of each row matched one by one, a reversed sort."""
    cosines = given["images"] @ given["texts"].T
    match = given["logits"][:, :, 1]
    rows = {}
    for name, similar, logits, right in (("txt", cosines, match, own), ("img", cosines.T, match.T, own.T)):
        scores = np.full(similar.shape, -100.0, np.float32)
        for i, row in enumerate(similar):
            for j in np.argsort(row)[::-1][:k]:
                scores[i, j] = logits[i, j] + row[j]
        ranks = []
        for i, row in enumerate(scores):
            order = np.argsort(row, kind="stable")[::-1]
            ranks.append(min(np.flatnonzero(order == j)[0] for j in np.flatnonzero(right[i])))
        rows |= {f"{name}_r{cut}": 100 * np.mean(np.asarray(ranks) < cut) for cut in (1, 5, 10)}
    return rows


def test_equal_to_a_naive_loop_of_200_images_and_1000_texts(tmp_path):
    given = outputs(200, 1000)
    given["logits"][:, :, 1] += 3 * np.repeat(np.eye(200, dtype=np.float32), 5, axis=1)
    task = Matching()
    each = made({"val": records(200, 5)}, tmp_path, task, k_test=32, batch_size=16, texts_per_step=24)
    found = values(each, given)
    own = np.repeat(np.eye(200, dtype=bool), 5, axis=1)
    for name, value in naive(given, own, 32).items():
        assert found[f"itm/{name}"] == pytest.approx(value), name
    contrast = dict(given, logits=0 * given["logits"])
    for name, value in naive(contrast, own, 200).items():
        if name.startswith("img"):
            assert found[f"itc/{name}"] == pytest.approx(value), name
    assert found["r_mean"] == found["itm/r_mean"] > found["itc/r_mean"] + 5
    assert found["r_mean/low"] < found["r_mean"] < found["r_mean/high"]
    assert task.steps == [(16, 24, 2)]  # one program


@pytest.mark.parametrize("batch", [(3, 2), (5, 7), (7, 1)])
def test_the_numbers_are_those_of_any_batch(batch, tmp_path):
    given, examples = outputs(7, 7, seed=3), {"val": records(7, 1)}
    whole = values(made(examples, tmp_path, k_test=4, batch_size=7, texts_per_step=7), given)
    size, beside = batch
    assert values(made(examples, tmp_path, k_test=4, batch_size=size, texts_per_step=beside), given) == whole
    own = np.eye(7, dtype=bool)
    for name, value in naive(given, own, 4).items():
        assert whole[f"itm/{name}"] == pytest.approx(value)


def test_a_pair_that_both_directions_want_is_matched_once(tmp_path, monkeypatch):
    given = outputs(30, 30, seed=1)
    each = made({"val": records(30, 1)}, tmp_path, k_test=6, negatives_among=0)
    wanted = []
    inside = each._pairs.match_logits
    monkeypatch.setattr(each._pairs, "match_logits", lambda s, f, w: wanted.append(w) or inside(s, f, w))
    values(each, given)
    cosines = given["images"] @ given["texts"].T
    best = {(i, t) for i in range(30) for t in np.argsort(-cosines[i])[:6]}
    best |= {(i, t) for t in range(30) for i in np.argsort(-cosines[:, t])[:6]}
    assert {(i, t) for i, t in zip(*np.nonzero(wanted[0]), strict=True)} == best
    assert 6 * 30 < len(best) < 2 * 6 * 30


def test_without_re_ranking_contrast_alone(tmp_path):
    given = outputs(6, 12)
    task = Matching()
    found = values(made({"val": records(6, 2)}, tmp_path, task, k_test=0, negatives_among=0), given)
    assert not [name for name in found if name.startswith(("itm", "matching"))]
    assert found["r_mean"] == found["itc/r_mean"]
    assert not task.steps


def test_matching_is_told_from_the_hardest_negatives_of_a_batch_of_examples(tmp_path):
    # 3 images of 2 texts, in batches of 4 examples: images 0, 0, 1, 1 and then 2, 2, which has no other image to choose.
    given = outputs(3, 6, seed=5)
    found = values(made({"val": records(3, 2)}, tmp_path, k_test=0, negatives_among=4), given)
    cosines = given["images"] @ given["texts"].T
    expected = [(t // 2, t, 1) for t in range(6)]
    for t in range(4):
        expected.append((1 - t // 2, t, 0))
        others = [2, 3] if t < 2 else [0, 1]
        expected.append((t // 2, max(others, key=lambda u: cosines[t // 2, u]), 0))
    logits = np.stack([given["logits"][i, t] for i, t, _ in expected]).astype(np.float64)
    labels = np.asarray([label for _, _, label in expected])
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    assert found["matching/loss"] == pytest.approx(losses.mean())
    assert found["matching/accuracy"] == pytest.approx(100 * np.mean(logits.argmax(1) == labels))
    assert found["matching/twins"] == 0


def test_negatives_that_say_what_is_true_are_counted(tmp_path):
    captions = ["A CT shows a mass.", "A CT reveals a mass.", "Normal.", "Normal."]
    wordings = ((r"reveals", "shows"),)
    given = outputs(4, 4, seed=2)
    given["texts"] = given["images"][[1, 0, 3, 2]]  # the hardest negative is the twin
    found = values(made({"val": records(4, 1, captions)}, tmp_path, k_test=0, wordings=wordings), given)
    assert found["matching/twins"] == 100
    assert found["controls/ceiling/txt_r1"] == found["controls/ceiling/img_r1"] == pytest.approx(50)
    found = values(made({"val": records(4, 1, captions)}, tmp_path, k_test=0), given)
    assert found["controls/ceiling/txt_r1"] == pytest.approx(75)  # only the last two are the same to the letter


def test_controls_a_perfect_model_is_at_chance_on_shuffled_pairs(tmp_path):
    given = outputs(40, 40, width=64)
    given["texts"] = given["images"]
    found = values(made({"val": records(40, 1)}, tmp_path, k_test=0, negatives_among=0), given)
    assert found["itc/txt_r1"] == found["itc/img_r1"] == 100
    assert found["controls/chance/txt_r1"] == pytest.approx(2.5)
    assert found["controls/shuffled/txt_r1"] < 15
    assert found["controls/ceiling/r_mean"] == 100


def test_one_to_one_each_example_has_an_image_of_its_own(tmp_path):
    class ByPlace(Matching):
        def transforms(self, *, train):
            return (lambda example: {"image_number": example["place"]},)

    examples = {"val": records(2, 2)}
    given = outputs(4, 4)
    given["texts"] = given["images"]
    found = values(made(examples, tmp_path, ByPlace(), k_test=2, one_to_one=True), given)
    assert found["controls/chance/img_r1"] == 25
    assert found["itc/img_r1"] == 100
    assert values(made(examples, tmp_path, k_test=2), given)["controls/chance/img_r1"] == 50


def test_texts_are_cut_as_the_row_says(tmp_path):
    task = Matching()
    row = common.retrieval("val", every="1 epoch", batch_size=3, k_test=2).to_dict()
    for asked, expected in ({"max_tokens": 35}, 35), ({"max_tokens": 0}, 0):
        evaluator("retrieval")(context(task, {"val": records(3, 1)}, tmp_path, **(row | asked)))
        assert task.max_tokens == expected
    del row["max_tokens"]  # a run of earlier days
    evaluator("retrieval")(context(task, {"val": records(3, 1)}, tmp_path, **row))
    assert task.max_tokens == 0


def test_predictions_say_what_was_found(tmp_path):
    given = outputs(3, 3)
    given["logits"][:, :, 1] = 10 * np.asarray([[1, 0, 2], [0, 2, 1], [2, 1, 0]])
    values(made({"val": records(3, 1)}, tmp_path, k_test=3), given)
    rows = [json.loads(line) for line in (tmp_path / "predictions/val_7.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [0, 10, 20]
    assert [row["text_rank"] for row in rows] == [1, 0, 2]
    assert [row["first_text"] for row in rows] == [20, 10, 0]
    assert [row["image_rank"] for row in rows] == [1, 0, 2]
    assert [row["first_image"] for row in rows] == [IMAGE_KEY + i for i in (2, 1, 0)]
    assert rows[1]["text"] == "text 1"


def test_mistakes_are_reported(tmp_path):
    with pytest.raises(
        ConfigError, match=r"evals.val.k_test is 8; the split 'val' has 4 images and 12 texts.*at most 4"
    ):
        made({"val": records(4, 3)}, tmp_path, k_test=8)
    made({"val": records(4, 3)}, tmp_path, k_test=4)
    task = Task()
    with pytest.raises(
        ConfigError, match=r"'retrieval', which compares images with texts; this task has no image_features"
    ):
        made({"val": records(4, 3)}, tmp_path, task, predict="given")
    given = outputs(4, 12)
    given["logits"][2, 7] = np.nan
    with pytest.raises(DivergedError, match=r"'match_logits' for 1 of 48 pairs, the first at the places \[31\]"):
        values(made({"val": records(4, 3)}, tmp_path, k_test=4), given)


@pytest.fixture(scope="module")
def row(tmp_path_factory):
    """What an evaluation of 4 images and 12 texts writes down."""
    each = made({"val": records(4, 3)}, tmp_path_factory.mktemp("run"), k_test=4)
    return as_row(each.run(state(outputs(4, 12))))


def test_the_best_state_is_found_by_a_recall(row):
    best = Best("val/r_mean", "max")
    best.check("val", row)
    assert best.add(7, row)
    with pytest.raises(ConfigError, match="val/r_main"):
        Best("val/r_main", "max").check("val", row)
    assert headline("val", row).startswith(f"val: r_mean {row['val/r_mean']:.2f} % (95 % interval")


def test_a_report_has_recalls_beside_their_controls_and_matching(row):
    config = common.base()
    config.evals = {"val": common.retrieval("val", every="1 epoch", batch_size=3)}
    found = {table.title: table for table in tables("val", config, row)}
    assert list(found) == [
        *("Retrieval (val): texts of an image", "Retrieval (val): images of a text", "Matching (val)"),
    ]
    for table in found.values():
        assert all(len(line) == len(table.head) for line in table.rows)
    lines = {line[0]: line[2:] for line in found["Retrieval (val): images of a text"].rows}
    assert list(lines) == ["itm", "itc", "ceiling", "shuffled", "chance"]
    assert lines["chance"] == ("25.0 %", "100.0 %", "100.0 %")
    assert lines["itm"][0].startswith(f"{row['val/itm/img_r1']:.1f} % (")
    assert [line[0] for line in found["Matching (val)"].rows] == ["accuracy", "loss", "twins"]
    config.evals.val.split = "test"
    config.evals.other = common.evaluation("val", every="1 epoch", batch_size=3)
    assert not list(tables("other", config, row))
