"""phantom_vqa: contract, determinism, and that pictures, and nothing else, answer the questions."""

import collections
import dataclasses
import hashlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from jaxvqa.configs.common import PHANTOM_WORDINGS
from PIL import Image

from jaxvqa.data.data_set import Split
from jaxvqa.data.records import Records
from jaxvqa.data.region_features import FEATURE_WIDTH, region_features
from jaxvqa.metrics import retrieval
from tfds_builders.build import build
from tfds_builders.phantom_vqa.pairs import FAMILIES, SENTENCES_PER_PAIR, make_sentences, shown
from tfds_builders.phantom_vqa.phantom_vqa_dataset_builder import Builder
from tfds_builders.phantom_vqa.questions import ANNOTATORS, QUESTION_TYPES, TEMPLATES, make_questions
from tfds_builders.phantom_vqa.render import ORGANS, SIZE, render
from tfds_builders.phantom_vqa.scenes import ABNORMALITIES, LARGE_RADIUS, SIDE_MARGIN, SMALL_RADIUS, caption, make_scene

TINY = {"train": 48, "val": 16, "test": 16}
VERSION = str(Builder.VERSION)

# What the records of a version are: the SHA-256 of all that is text or a whole number, and of each array of a split its
# random projection, which any other change moves, and a last bit of another machine does not.
RECORDS = {
    "1.1.0": (
        "08abf067c9a0178b",
        {
            "train": [123.08, 0.3, 0.09, 2.74, -42.62, -63.43],
            "val": [-54.88, 0.33, -0.19, -1.27, 27.33, -79.57],
            "test": [46.05, -2.22, -0.25, -1.91, 42.71, -118.7],
        },
    ),
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    for config in ("tiny_questions", "tiny_images", "tiny_captions", "tiny_pairs"):
        build("phantom_vqa", config, data_dir=folder)
    return folder


@pytest.fixture(scope="module")
def images(data_dir):
    builder = Builder(data_dir=data_dir, config="tiny_images", file_format="array_record")
    skip = {name: tfds.decode.SkipDecoding() for name in ("image", "organ_map", "lesion_map")}
    return {split: list(builder.as_data_source(split, decoders=skip)) for split in TINY}


@pytest.fixture(scope="module")
def questions(data_dir):
    builder = tfds.builder_from_directory(Path(data_dir) / "phantom_vqa" / "tiny_questions" / VERSION)
    return {split: list(builder.as_data_source(split)) for split in TINY}


@pytest.fixture(scope="module")
def captions(data_dir):
    builder = tfds.builder_from_directory(Path(data_dir) / "phantom_vqa" / "tiny_captions" / VERSION)
    return {split: list(builder.as_data_source(split)) for split in TINY}


@pytest.fixture(scope="module")
def many():
    """Questions of 1,500 images as the builder writes them, without building."""
    return [question for image_id in range(1500) for question in make_questions(image_id)]


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def names(builder_config, feature):
    return Builder(data_dir="unused", config=builder_config).info.features[feature].names


def accuracy(prediction, answers):
    """VQA accuracy of one prediction: the mean over annotators of min(1, agreeing others / 3)."""
    agree = sum(answer == prediction for answer in answers)
    leave_one_out = [min(1.0, (agree - (answer == prediction)) / 3) for answer in answers]
    return sum(leave_one_out) / len(answers)


# The records


def test_counts_and_contract_features(images, questions):
    assert {split: len(records) for split, records in images.items()} == TINY
    assert {split: len(records) for split, records in questions.items()} == {s: 10 * n for s, n in TINY.items()}
    record = questions["train"][0]
    assert set(record) == {
        *("question_id", "image_id", "question", "answers", "multiple_choice_answer", "question_type", "answer_type"),
        *("open_closed", "template_id"),
    }
    for record in [r for records in questions.values() for r in records]:
        assert len(record["answers"]) == ANNOTATORS
        assert record["answer_type"] in (b"yes/no", b"number", b"other")
        assert record["open_closed"] in (b"open", b"closed")
        assert (record["answer_type"] == b"yes/no") <= (record["open_closed"] == b"closed")
        assert record["question_type"].decode() in QUESTION_TYPES
    for record in [r for records in images.values() for r in records]:
        regions = len(record["boxes"])
        assert 4 <= regions <= 15
        assert record["features"].shape == (regions, FEATURE_WIDTH)
        assert record["features"].dtype == np.float16
        assert record["boxes"].shape == (regions, 4)
        assert record["boxes"].dtype == np.float32
        assert (record["image_w"], record["image_h"]) == (SIZE, SIZE)
        assert pixels(record["image"]).shape == (SIZE, SIZE)
        assert pixels(record["image"]).dtype == np.uint8


def test_image_ids_of_the_metadata_are_in_record_order(data_dir, images):
    builder = tfds.builder_from_directory(Path(data_dir) / "phantom_vqa" / "tiny_images" / VERSION)
    stated = dict(builder.info.metadata)["image_ids"]
    assert stated == {split: [record["image_id"] for record in records] for split, records in images.items()}
    every = [image_id for ids in stated.values() for image_id in ids]
    assert len(set(every)) == len(every) == sum(TINY.values())


def test_splits_share_no_image_and_ids_are_unique(images, questions):
    by_split = {split: {record["image_id"] for record in records} for split, records in questions.items()}
    assert by_split == {split: {record["image_id"] for record in records} for split, records in images.items()}
    ids = [record["question_id"] for records in questions.values() for record in records]
    assert len(set(ids)) == len(ids)
    for records in questions.values():
        assert [r["question_id"] for r in records] == sorted(r["question_id"] for r in records)


def test_captions_are_those_of_the_images(captions, images):
    stated = {split: [(r["image_id"], r["caption"]) for r in records] for split, records in images.items()}
    assert {s: [(r["image_id"], r["caption"]) for r in records] for s, records in captions.items()} == stated
    for record in [r for records in captions.values() for r in records]:
        assert set(record) == {"question_id", "image_id", "caption"}
        assert record["question_id"] == record["image_id"]


def test_captions_join_their_pictures(data_dir):
    records = [Records(f"phantom_vqa/tiny_{part}", "test", folder=str(data_dir)) for part in ("captions", "images")]
    source = Split(records[0], [records[1]])
    example = source[3]
    assert example["caption"] == caption(make_scene(3603))
    assert pixels(example["image"]).shape == (SIZE, SIZE)


def test_boxes_are_inside_and_features_are_never_zero(images):
    for record in images["train"]:
        for boxes in (record["boxes"], record["lesion_boxes"]):
            assert (boxes >= 0).all()
            assert (boxes <= SIZE).all()
            assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()
        features = record["features"]
        assert np.isfinite(features).all()
        assert (features >= 0).all()
        assert (np.abs(features).sum(axis=1) > 1).all()


def test_features_come_from_the_stored_picture_and_boxes(images):
    record = images["val"][3]
    np.testing.assert_array_equal(record["features"], region_features(pixels(record["image"]), record["boxes"]))


def test_labels_agree_with_the_maps(images):
    kinds = names("tiny_images", "abnormality")
    assert tuple(kinds) == ABNORMALITIES
    for record in images["train"]:
        lesions = record["lesion_kinds"]
        assert kinds[record["abnormality"]].encode() == (lesions[0] if lesions else b"normal")
        assert len(set(lesions)) <= 1
        lesion_map, organ_map = pixels(record["lesion_map"]), pixels(record["organ_map"])
        assert set(np.unique(lesion_map)) - {0} == set(range(1, len(lesions) + 1))
        assert organ_map.max() < len(ORGANS)
        for i, (x1, y1, x2, y2) in enumerate(record["lesion_boxes"].astype(int)):
            ys, xs = np.nonzero(lesion_map == i + 1)
            # What later lesions or edges cover may shrink a region, never push it out of its box.
            assert x1 <= xs.min() <= xs.max() < x2
            assert y1 <= ys.min() <= ys.max() < y2
        assert len(record["lesion_sizes"]) == len(record["lesion_organs"]) == len(record["lesion_places"])
        assert record["caption"].decode().count(".") in (1, 2)


def test_every_lesion_has_a_region(images):
    for record in images["train"]:
        for box in record["lesion_boxes"]:
            corner = np.maximum(record["boxes"][:, :2], box[:2])
            extent = np.clip(np.minimum(record["boxes"][:, 2:], box[2:]) - corner, 0, None)
            met = extent.prod(axis=1)
            areas = [(b[..., 2:] - b[..., :2]).prod(axis=-1) for b in (record["boxes"], box)]
            assert (met / (areas[0] + areas[1] - met)).max() > 0.3


def test_pairs_join_two_neighbours_and_are_as_often_true_as_false(data_dir):
    images = [Records("phantom_vqa/tiny_images", split, folder=str(data_dir)) for split in TINY]
    for split, count in TINY.items():
        source = Split(Records("phantom_vqa/tiny_pairs", split, folder=str(data_dir)), images)
        records = list(source.all_records())
        assert len(records) == len({r["question_id"] for r in records}) == count // 2 * SENTENCES_PER_PAIR
        assert all(r["image_id"] % 2 == 0 and r["second_image_id"] == r["image_id"] + 1 for r in records)
        assert sum(r["multiple_choice_answer"] == "true" for r in records) == len(records) / 2
    first, second = source[8], source[8]["second"]
    assert (first["image_id"], second["image_id"]) == (3602, 3603)
    assert second["image"] == source.read_images([3603])[0]["image"]


# Determinism


def test_two_builds_are_equal_byte_for_byte(data_dir, tmp_path):
    build("phantom_vqa", "tiny_images", data_dir=tmp_path)
    first, second = (Path(d) / "phantom_vqa" / "tiny_images" / VERSION for d in (data_dir, tmp_path))
    for file in sorted(first.iterdir()):
        if "array_record" in file.name or file.name in ("features.json", "metadata.json"):
            assert file.read_bytes() == (second / file.name).read_bytes(), file.name


def test_images_do_not_depend_on_order_or_process(images):
    """Image 47 alone, in a process of its own with another hash seed, is the one built after 47 others."""
    record = images["train"][47]
    code = (
        "import hashlib; from tfds_builders.phantom_vqa.records import image_record as r;"
        "from tfds_builders.phantom_vqa.questions import make_questions as q; x = r(47);"
        "print(hashlib.sha256(x['image'] + x['features'].tobytes()).hexdigest(), '|'.join(i.text for i in q(47)))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    digest, _, texts = done.stdout.strip().partition(" ")
    assert digest == hashlib.sha256(record["image"] + record["features"].tobytes()).hexdigest()
    assert texts == "|".join(question.text for question in make_questions(47))


def test_tiny_is_a_part_of_the_full_set(questions):
    assert questions["val"][0]["image_id"] == 3200
    first = make_questions(3200)[0]
    assert questions["val"][0]["question"].decode() == first.text
    assert tuple(a.decode() for a in questions["val"][0]["answers"]) == first.answers
    assert questions["val"][0]["multiple_choice_answer"].decode() == first.multiple_choice_answer


def projection(arrays):
    """The sum of all values times random signs, over the root of their number."""
    values = np.concatenate([np.asarray(array, np.float64).ravel() for array in arrays])
    words = np.random.PCG64(16).random_raw((len(values) + 63) // 64).astype("<u8")
    signs = np.unpackbits(words.view(np.uint8), count=len(values)) * 2.0 - 1.0
    return float(values @ signs / np.sqrt(len(values)))


def test_the_version_is_raised_when_records_change(images, questions, captions):
    arrays = ("image", "organ_map", "lesion_map", "features", "boxes", "lesion_boxes")
    exact = [
        [
            sorted((name, np.asarray(value).tolist()) for name, value in record.items() if name not in arrays)
            for record in records
        ]
        for part in (questions, captions, images)
        for records in part.values()
    ]
    digest = hashlib.sha256(repr(exact).encode()).hexdigest()[:16]
    found = {
        split: [
            round(projection(pixels(r[name]) if name in arrays[:3] else r[name] for r in records), 2) for name in arrays
        ]
        for split, records in images.items()
    }
    way = "Raise VERSION of phantom_vqa, say in RELEASE_NOTES what changed, and put what was found here into RECORDS."
    assert VERSION in RECORDS, f"{way} {digest} {found}"
    expected_digest, expected = RECORDS[VERSION]
    assert digest == expected_digest, f"{way} {digest} {found}"
    for split, values in expected.items():
        assert found[split] == pytest.approx(values, abs=0.05), f"{way} {digest} {found}"
    assert found.keys() == expected.keys()


# The sentences about two images


def true_of(text, facts, lesions):
    """Whether a sentence is true, read from its words."""
    has = [lambda fact, i=i: fact in facts[i] for i in (0, 1)]
    sides = {"left": 0, "right": 1}
    if found := re.fullmatch(r"there are (more|fewer) lesions in the (\w+) image than in the (\w+) image", text):
        one, other = (lesions[sides[found[i]]] for i in (2, 3))
        return one > other if found[1] == "more" else one < other
    if found := re.fullmatch(r"the (\w+) image shows (.*) and the (\w+) image does not", text):
        return has[sides[found[1]]](found[2]) and not has[sides[found[3]]](found[2])
    if found := re.fullmatch(r"the (\w+) image shows (.*)", text):
        return has[sides[found[1]]](found[2])
    if found := re.fullmatch(r"both images show (.*)", text):
        return has[0](found[1]) and has[1](found[1])
    (fact,) = re.fullmatch(r"only one of the images shows (.*)", text).groups()
    return has[0](fact) != has[1](fact)


def test_sentences_say_what_is_true_also_when_both_change_place():
    swap = {"left": "right", "right": "left"}
    families = collections.Counter()
    for image_id in range(0, 600, 2):
        scenes = [make_scene(image_id + i) for i in (0, 1)]
        facts, lesions = [shown(scene) for scene in scenes], [len(scene.lesions) for scene in scenes]
        sentences = make_sentences(image_id)
        assert len({s.text for s in sentences}) == SENTENCES_PER_PAIR
        for sentence in sentences:
            families[sentence.family] += 1
            truth = sentence.truth == "true"
            assert true_of(sentence.text, facts, lesions) == truth, sentence
            swapped = " ".join(swap.get(word, word) for word in sentence.text.split(" "))
            assert true_of(swapped, facts[::-1], lesions[::-1]) == truth, sentence
    assert set(families) == set(FAMILIES)
    assert min(families.values()) > 100


def test_what_an_image_shows_is_in_its_scene():
    for image_id in range(200):
        scene = make_scene(image_id)
        words = " ".join(shown(scene))
        for word in (scene.view.body_part, scene.view.plane, scene.modality):
            assert word in words
        assert (scene.abnormality in words) == bool(scene.lesions)
        assert ("a large lesion" in words) == any(lesion.size == "large" for lesion in scene.lesions)
        assert ("no lesion" in words) == (not scene.lesions)


# The questions


def test_every_family_is_asked_and_no_image_is_asked_twice(many):
    assert {question.question_type for question in many} == set(QUESTION_TYPES)
    assert {q.template_id for q in many} == set(range(sum(len(texts) for _, _, texts in TEMPLATES)))
    by_image = collections.defaultdict(list)
    for question in many:
        by_image[question.image_id].append(question.text)
    assert all(len(texts) == len(set(texts)) == 10 for texts in by_image.values())
    assert all(question.text.endswith("?") for question in many)


def test_the_question_alone_does_not_answer(many):
    """The best answer for each question text stays under half; the right answer is nearly always accepted."""
    train, held_out = many[: len(many) * 4 // 5], many[len(many) * 4 // 5 :]
    scores = collections.defaultdict(collections.Counter)
    for question in train:
        for answer in set(question.answers):
            scores[question.text][answer] += accuracy(answer, question.answers)
    guess = {text: answers.most_common(1)[0][0] for text, answers in scores.items()}
    blind = np.mean([accuracy(guess.get(q.text, "yes"), q.answers) for q in held_out])
    assert 0.3 < blind < 0.47
    ceiling = np.mean([accuracy(q.truth, q.answers) for q in held_out])
    assert 0.96 < ceiling <= 1.0
    assert 0.02 < np.mean([len(set(q.answers)) == 1 for q in many]) < 0.8


def test_yes_and_no_are_about_as_common_in_each_family(many):
    families = collections.defaultdict(list)
    for question in many:
        if question.truth in ("yes", "no"):
            families[question.template_id].append(question.truth == "yes")
    for template_id, answers in families.items():
        if len(answers) > 100:
            assert 0.3 < np.mean(answers) < 0.7, template_id


def test_answers_agree_with_the_scene(many):
    scenes = {image_id: make_scene(image_id) for image_id in {question.image_id for question in many}}
    for question in many:
        scene = scenes[question.image_id]
        large = [lesion for lesion in scene.lesions if lesion.size == "large"]
        named = [kind for kind in ABNORMALITIES if kind in question.text]
        if question.question_type == "count":
            asked_kind = named[0] if named and named != ["normal"] else None
            if "abnormalities" in question.text or asked_kind in (None, scene.abnormality):
                assert question.truth == str(len(scene.lesions)), question
            else:
                assert question.truth == "0", question
        elif question.question_type == "modality" and not question.closed:
            assert question.truth == scene.modality
        elif question.question_type == "plane" and not question.closed:
            assert question.truth == scene.view.plane
        elif question.question_type == "abnormality":
            assert question.truth == scene.abnormality
        elif question.question_type == "position":
            target = large[0] if large else scene.lesions[0]
            assert len(large) == 1 or len(scene.lesions) == 1
            assert question.truth in (scene.place(target), scene.side(target))
            assert question.truth.split()[0] in ("left", "right", "anterior", "posterior")
        elif question.question_type == "size":
            if question.truth in ("yes", "no"):
                asked_large = "small" not in question.text
                assert (question.truth == "yes") == (asked_large == bool(large))
            else:
                assert question.truth == ("large" if large else "small")
        elif question.question_type == "presence" and "normal" in question.text.split("abnormal")[0]:
            assert question.truth == ("no" if scene.lesions else "yes")


def test_sides_follow_the_radiological_convention():
    """The patient's left is on the right of the picture, in lesions and in organs."""
    seen = 0
    for image_id in range(300):
        scene = make_scene(image_id)
        if (scene.view.body_part, scene.view.plane) != ("chest", "frontal"):
            continue
        picture = render(scene)
        heart = np.nonzero(picture.organ_map == ORGANS.index("heart"))[1].mean()
        right = np.nonzero(picture.organ_map == ORGANS.index("right lung"))[1].mean()
        left = np.nonzero(picture.organ_map == ORGANS.index("left lung"))[1].mean()
        assert right < heart < left
        for lesion, (x1, _, x2, _) in zip(scene.lesions, picture.lesion_boxes, strict=True):
            nearer_left = abs((x1 + x2) / 2 - left) < abs((x1 + x2) / 2 - right)
            assert scene.side(lesion) == ("left" if nearer_left else "right")
            seen += 1
    assert seen > 20


# What makes answers decidable from the picture


def test_sizes_have_a_gap_and_sides_a_margin():
    assert LARGE_RADIUS[0] > 1.5 * SMALL_RADIUS[1]
    for image_id in range(400):
        scene = make_scene(image_id)
        for lesion in scene.lesions:
            assert abs(lesion.x) > SIDE_MARGIN
            assert abs(lesion.y - scene.view.middle) > SIDE_MARGIN
            low, high = LARGE_RADIUS if lesion.size == "large" else SMALL_RADIUS
            assert low <= lesion.radius <= high
        assert sum(lesion.size == "large" for lesion in scene.lesions) <= 1
        assert len(scene.lesions) <= 4


def test_lesions_stand_out_from_the_same_picture_without_them():
    """Each lesion changes the grey values of its own pixels, and of none farther off than its halo."""
    for image_id in range(150):
        scene = make_scene(image_id)
        picture = render(scene)
        without = render(dataclasses.replace(scene, lesions=()))
        change = np.abs(picture.image.astype(int) - without.image)
        near = np.zeros_like(change, bool)
        for i, (x1, y1, x2, y2) in enumerate(picture.lesion_boxes.astype(int)):
            inside = change[picture.lesion_map == i + 1]
            assert inside.size >= 9, (image_id, scene.lesions[i])
            assert np.percentile(inside, 75) > 15, (image_id, scene.modality, scene.lesions[i])
            near[max(y1 - 10, 0) : y2 + 10, max(x1 - 10, 0) : x2 + 10] = True
        assert change[~near].max(initial=0) <= 1, image_id
        np.testing.assert_array_equal(picture.organ_map, without.organ_map)


# Region features


def test_region_features_see_pixels_and_place():
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (60, 90), dtype=np.uint8)
    boxes = np.array([[x, y, x + 22.5, y + 20] for y in (0, 20, 40) for x in (0, 22.5, 45, 67.5)], np.float32)
    features = region_features(image, boxes)
    assert (features.shape, features.dtype) == ((12, FEATURE_WIDTH), np.float16)
    # A region's features do not depend on what other regions are asked for, and grey in colour is grey.
    np.testing.assert_array_equal(region_features(image, boxes[5:6])[0], features[5])
    np.testing.assert_array_equal(region_features(np.repeat(image[..., None], 3, axis=2), boxes), features)
    # The same pixels elsewhere, and other pixels at the same place, give other features.
    flat = np.full((60, 90), 128, np.uint8)
    assert np.abs(np.diff(region_features(flat, boxes).astype(np.float32), axis=0)).sum(axis=1).min() > 1
    assert np.abs(region_features(flat, boxes) - features).sum(axis=1).min() > 1
    # A black picture is no padding.
    assert (region_features(np.zeros((60, 90), np.uint8), boxes).max(axis=1) > 0).all()


def test_region_features_average_by_area():
    """A picture enlarged by a whole number keeps its features: cells are exact area means."""
    image = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    boxes = np.array([[3, 5, 20, 31], [0, 0, 40, 40]], np.float32)
    large = image.repeat(3, axis=0).repeat(3, axis=1)
    # Beside rounding of the sums, one step of float16 at most.
    np.testing.assert_allclose(
        region_features(large, boxes * 3).astype(np.float32), region_features(image, boxes), rtol=2**-10, atol=1e-3
    )


@pytest.mark.parametrize(
    ("image", "boxes", "message"),
    [
        (np.zeros((8, 8), np.float32), [[0, 0, 4, 4]], "expected uint8"),
        (np.zeros((8, 8, 4), np.uint8), [[0, 0, 4, 4]], "expected uint8"),
        (np.zeros((8, 8), np.uint8), [[0, 0, 9, 4]], "outside the 8 x 8"),
        (np.zeros((8, 8), np.uint8), [[4, 0, 4, 4]], "empty or outside"),
        (np.zeros((8, 8), np.uint8), [[0, 0, np.nan, 4]], "empty or outside"),
    ],
)
def test_region_features_refuse_what_is_no_region(image, boxes, message):
    with pytest.raises(ValueError, match=message):
        region_features(image, np.array(boxes, np.float32))


def facts(scene):
    """All that a caption says of a scene, in whatever words."""
    view, lesions, target = scene.view, scene.lesions, scene.target
    organs = tuple(sorted({lesion.organ for lesion in lesions}))
    largest = (scene.place(target), target.size if len(lesions) == 1 else "") if target else ()
    return scene.modality, view.plane, view.body_part, scene.abnormality, len(lesions), organs, largest


@pytest.mark.parametrize(("first", "expected"), [(3200, 68.5), (3600, 70.75)])
def test_captions_of_the_same_facts_read_the_same_by_the_configs_wordings(first, expected):
    scenes = [make_scene(i) for i in range(first, first + 400)]
    captions = [caption(scene) for scene in scenes]
    for regex, replacement in PHANTOM_WORDINGS:
        captions = [re.sub(regex, replacement, text) for text in captions]
    of_facts = dict(zip(map(facts, scenes), captions, strict=True))
    assert [of_facts[facts(scene)] for scene in scenes] == captions
    assert len(set(captions)) == len(of_facts)
    assert retrieval.ceiling(np.eye(400, dtype=bool), captions)["txt_r1"] == pytest.approx(expected)
