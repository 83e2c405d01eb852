"""Examples before a prompt: which ones, in which order, and how they are cut to its length."""

import numpy as np
import pytest

from jaxvqa.data import tokenizers
from jaxvqa.data.few_shot import Shots, ShowExamples, Support, most_similar
from jaxvqa.data.prompts import SPECIAL, TEMPLATES, PromptTokenizer, WriteText
from jaxvqa.data.views import Images
from jaxvqa.errors import ConfigError

IMAGES = (7, 3, 7, 5, 9, 3, 11)


class Questions:
    """A source of questions about pictures, whose ids they show."""

    def __init__(self, images=IMAGES):
        self._records = [
            {"question_id": i, "image_id": image, "question": f"what is {i}?", "multiple_choice_answer": f"it is {i}"}
            for i, image in enumerate(images)
        ]

    def __len__(self):
        return len(self._records)

    @property
    def images(self):
        return Images(self.read, np.asarray([record["image_id"] for record in self._records]))

    def read(self, indices):
        return [dict(self._records[i]) for i in indices]


def shots(count, seed=0, by="seed"):
    return Shots(count, by, "train", seed, lambda support: ())


def chosen(support, **asked):
    return [(shot["question_id"], shot["image_id"]) for shot in support(asked)]


def test_pictures_are_read_once_each():
    pictures = Questions().images
    assert pictures.ids.tolist() == [3, 5, 7, 9, 11]
    assert [p.tolist() for p in pictures.examples] == [[1, 5], [3], [0, 2], [4], [6]]
    assert [record["question_id"] for record in pictures.read(range(5))] == [1, 3, 0, 4, 6]


def test_draws_follow_seed_and_question_and_never_show_the_asked_picture():
    support = Support.of(Questions(), shots(4))
    drawn = {(q, image): chosen(support, question_id=q, image_id=image) for q in range(40) for image in (3, 5, 7, 9)}
    for (_, image), examples in drawn.items():
        assert {i for _, i in examples} == {3, 5, 7, 9, 11} - {image}
        assert all(IMAGES[q] == i for q, i in examples)
    assert {q for examples in drawn.values() for q, _ in examples} == set(range(7))
    again = Support.of(Questions(), shots(4))
    assert all(chosen(again, question_id=q, image_id=i) == examples for (q, i), examples in drawn.items())
    other = Support.of(Questions(), shots(4, seed=1))
    assert sum(chosen(other, question_id=q, image_id=i) != examples for (q, i), examples in drawn.items()) > 100
    # A picture that is none of the split's leaves all of it to draw from.
    assert len({tuple(chosen(support, question_id=q, image_id=99)) for q in range(40)}) > 20
    with pytest.raises(ConfigError, match=r"data.shots is 5, which takes 6 images.* has 5"):
        Support.of(Questions(), shots(5))


def test_the_most_similar_picture_stands_nearest_to_the_question():
    asked, others = Questions((1, 3)).images, Questions().images
    #   1 looks like 9, a little like 5 and 11; 3 like 11, its own picture aside
    vectors = np.array([[1, 0, 0], [2, 1, 0.1], [0, 1, 0], [9, 0, 0], [0.1, 2, 3]], np.float32)
    found = most_similar(asked, np.array([[3, 0, 0.1], [0, 1, 1]], np.float32), others, vectors, 2)
    assert {i: others.ids[list(row)].tolist() for i, row in found.items()} == {1: [3, 9], 3: [7, 11]}
    support = Support(Questions(), shots(2, by="image"), others, found)
    assert [image for _, image in chosen(support, question_id=0, image_id=1)] == [3, 9]
    assert [image for _, image in chosen(support, question_id=0, image_id=3)] == [7, 11]


def test_similar_in_chunks_as_one_by_one():
    rng = np.random.default_rng(0)
    asked, others = Questions(range(300)).images, Questions(range(200, 290)).images
    mine, theirs = rng.standard_normal((300, 4), np.float32), rng.standard_normal((90, 4), np.float32)
    found = most_similar(asked, mine, others, theirs, 3)
    for image in (0, 210, 280, 299):
        cosine = theirs @ mine[image] / np.linalg.norm(theirs, axis=1)
        best = [i for i in np.argsort(cosine) if others.ids[i] != image]
        assert list(found[image]) == best[-3:]


def test_no_image_is_an_example_for_itself():
    """Not even where the same split is asked: nothing is as similar to an image as itself, and its twin comes next."""
    images = Questions(range(6)).images
    vectors = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
    found = most_similar(images, vectors, images, vectors, 1)
    assert {image: int(images.ids[row[0]]) for image, row in found.items()} == {0: 3, 1: 4, 2: 5, 3: 0, 4: 1, 5: 2}


def test_pictures_stand_in_the_order_of_the_text():
    def see(example):
        return example | {"image": np.full((2, 2, 3), example["image_id"], np.uint8), "drawn": example["draw"]}

    support = Support.of(Questions(), shots(3))
    asked = see({"question_id": 4, "image_id": 9, "draw": (0, 1, 2)})
    shown = ShowExamples(support, [see])(asked)
    assert shown["image"][:, 0, 0, 0].tolist() == [*(shot["image_id"] for shot in shown["shots"]), 9]
    assert shown["image"].shape == (4, 2, 2, 3)


# --- the text ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return PromptTokenizer(tokenizers.train(["question: what is it? answer: it is. Output:"] * 9, 300, SPECIAL))


def written(tokenizer, examples, room, template="vqa"):
    asked = {"question_id": 8, "question": "what is left?", "multiple_choice_answer": "nothing", "caption": "a bone"}
    if template == "caption":
        del asked["question"]
    example = WriteText(tokenizer, TEMPLATES[template], 64, room)(asked | {"shots": examples})
    words = example["prompt"][example["prompt_mask"]].tolist()
    return tokenizer._tokenizer.decode(words, skip_special_tokens=False)


def test_examples_stand_before_the_question_as_in_training(tokenizer):
    first, second = Questions().read([0, 1])
    assert written(tokenizer, [first, second], 200) == (
        "<|endoftext|> <image> question: what is 0? <EOQ> answer: it is 0 <EOC> "
        "<image> question: what is 1? <EOQ> answer: it is 1 <EOC> "
        "<image> question: what is left? <EOQ> answer:"
    )
    captions = [{"caption": "a lung"}, {"caption": "a heart"}]
    assert written(tokenizer, captions, 200, "caption") == (
        "<|endoftext|> <image> Output: a lung <EOC> <image> Output: a heart <EOC> <image> Output:"
    )


def test_the_longest_questions_of_examples_are_cut_until_all_fits(tokenizer):
    long, short = Questions().read([0, 1])
    long["question"] = "what is it what is it what is it what is it?"
    whole = len(tokenizer.fill(written(tokenizer, [long, short], 400), {}))
    fewer = written(tokenizer, [long, short], whole - 6)
    assert len(tokenizer.fill(fewer, {})) == whole - 6
    assert fewer.endswith("what is 1? <EOQ> answer: it is 1 <EOC> <image> question: what is left? <EOQ> answer:")
    assert fewer.startswith("<|endoftext|> <image> question: what is it what")
    assert "it? <EOQ>" not in fewer
    write = WriteText(tokenizer, TEMPLATES["vqa"], 64, 0)
    least = [write.least(k) for k in range(3)]
    assert least[1] - least[0] == least[2] - least[1] > least[0] > 6
    with pytest.raises(ConfigError, match=r"Question 8 with 2 examples takes \d+ tokens.*max_prompt is 30"):
        written(tokenizer, [long, short], 30)


def test_long_captions_are_cut_before_their_end_mark(tokenizer):
    captions = [{"caption": "it is what it is what it is what it is"}, {"caption": "it"}]
    fewer = written(tokenizer, captions, 26, "caption")
    assert len(tokenizer.fill(fewer, {})) == 26
    assert fewer.endswith(" <EOC> <image> Output: it <EOC> <image> Output:")
