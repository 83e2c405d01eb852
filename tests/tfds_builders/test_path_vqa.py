"""PathVQA on made files: what is read of its pickles, counts, and what is refused."""

import functools
import os
import pickle

import pytest

from jaxvqa.errors import DataError
from tests.data_set_files import built, jpeg, path_vqa, put


@pytest.fixture
def make(tmp_path):
    """Builds a config and returns its records by split."""
    return functools.partial(built, "path_vqa", tmp_path)


@pytest.mark.parametrize("protocol", [2, 4])
def test_questions_and_images_of_the_released_splits(make, tmp_path, protocol):
    folder = tmp_path / "manual/pvqa"
    path_vqa(folder)
    rows = [
        {"image": "train_0000", "question": "is it malignant?", "answer": "no"},
        {"image": "train_0007", "question": "what is shown?", "answer": "liver tissue "},
    ]
    put(folder / "qas/train/train_qa.pkl", pickle.dumps(rows, protocol))
    put(folder / "images/train/train_0007.jpg", jpeg(7))
    put(folder / "images/train/train_0008.jpg", jpeg(8))  # without a question
    questions, images = (make(part, partial=True) for part in ("questions", "images"))
    closed, opened = questions["train"]
    assert (closed["open_closed"], closed["answer_type"], closed["image_name"]) == (
        "closed", "yes/no", "train/train_0000.jpg",
    )  # fmt: skip
    assert (opened["open_closed"], opened["answers"], opened["question_id"]) == ("open", ["liver tissue"], 1)
    assert {split: len(of) for split, of in questions.items()} == {"train": 2, "val": 1, "test": 1}
    assert {split: [i["image_id"] for i in of] for split, of in images.items()} == {
        "train": [0, 1],
        "val": [2],
        "test": [3],
    }
    assert images["train"][1]["image"] == jpeg(7)


def test_other_counts_and_missing_files_are_refused_by_name(make, tmp_path):
    path_vqa(tmp_path / "manual")
    with pytest.raises(DataError, match="split val: 1 records, expected 6279 as in the official release"):
        make("questions")
    (tmp_path / "manual/qas/val/val_qa.pkl").unlink()
    (tmp_path / "manual/images/test/test_0000.jpg").unlink()
    with pytest.raises(DataError, match=r"qas/val/val_qa\.pkl"):
        make("questions")
    assert list(make("questions", partial=True)) == ["train"]


class Runs:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_pickle",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps([{"image": "a", "question": "b", "answer": "c"}])[:-9], ["cannot be read"]),
        (pickle.dumps({"image": 3}), ["holds a dict"]),
        (pickle.dumps([Runs(), {"image": "a", "answer": ""}]), ["entry 0", "no question", "answer is"]),
        (b"", ["cannot be read"]),
    ],
)
def test_what_a_pickle_may_hold(make, tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    path_vqa(tmp_path / "manual")
    put(tmp_path / "manual/qas/train/train_qa.pkl", content)
    with pytest.raises(DataError) as caught:
        make("questions")
    assert [word for word in [*words, "train_qa.pkl"] if word not in str(caught.value)] == []
    assert not (tmp_path / "made_by_a_pickle").exists()
