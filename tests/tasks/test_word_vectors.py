"""Word tables start from the vectors of `config.data.word_vectors`, which is read when the task is made and never again."""

import jax
import numpy as np
import pytest

from jaxvqa import configs
from jaxvqa.data.data_set import DataSet
from jaxvqa.tasks import make_task, task_with_assets


@pytest.mark.parametrize("system", ["rwsan", pytest.param("cmsa", marks=pytest.mark.slow)])
def test_rows_are_the_words_own_vectors(phantoms, tmp_path, system):
    file = tmp_path / "glove.txt"
    config = configs.load(f"configs/{system}.py:small")
    width = 8
    changes = {"dir": phantoms, "examples": "phantom_vqa/tiny_questions", "images": "phantom_vqa/tiny_images"}
    changes |= {"answers.min_count": 1, "limit": 40, "word_vectors": file}
    changed = [("model.embed_width", str(width)), *((f"data.{name}", str(value)) for name, value in changes.items())]
    configs.override(config, changed)
    words = ["lung", "the", "is", "what", "PAD"]
    file.write_text("".join(f"{w} {' '.join(str(i + j / 10) for j in range(width))}\n" for i, w in enumerate(words, 1)))
    task = make_task(config, DataSet(config.data))
    file.unlink()
    tables = jax.jit(lambda key: task.init(key)["params"]["embed"])(jax.random.key(0))
    first = np.asarray(tables["embedding" if system == "rwsan" else "table_0"])
    expected = np.zeros_like(first)
    for i, word in enumerate(words, 1):
        if word in task.vocabulary.index:
            expected[task.vocabulary.index[word]] = i + np.arange(width) / 10
    assert np.count_nonzero(expected.any(axis=1)) >= 3
    np.testing.assert_allclose(first, expected, rtol=1e-6)
    if system == "cmsa":  # a word's second vector mixes those of the words beside it; the padding has none
        second = np.asarray(tables["table_1"])
        assert np.abs(second).max() <= np.abs(first).max() + 1e-6
        assert not second[-1].any()
        row = task.vocabulary.index["the"]
        assert second[row].any()
        assert not np.allclose(second[row], first[row])
    # A run that goes on has its tables in the checkpoint.
    again = task_with_assets(config, task.assets).init(jax.random.key(0))["params"]["embed"]
    assert {name: table.shape for name, table in again.items()} == {name: table.shape for name, table in tables.items()}
