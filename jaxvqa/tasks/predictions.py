"""Predict functions as values, and what they give for one example."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxvqa.data.few_shot import Shots
from jaxvqa.types import Arrays, Batch, Collections, Params

SHOWN = 5
"""How many of the best answers an explanation lists."""


@dataclass(frozen=True)
class Prediction:
    """What is predicted for one example.

    Attributes:
      answers: texts with their probabilities, best first; empty where there is no answer.
      votes: the answers of the models of an ensemble, empty texts for none; empty for a single model.
      outputs: what the predict function gives for the example, by name.
    """

    answers: tuple[tuple[str, float], ...]
    votes: tuple[str, ...] = ()
    outputs: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def unanswered(self) -> bool:
        """Whether there is no answer."""
        return not self.answers

    @property
    def answer(self) -> str:
        """The best answer; empty without one."""
        return "" if self.unanswered else self.answers[0][0]

    @property
    def probability(self) -> float:
        """That of the best answer; 0 without one."""
        return 0.0 if self.unanswered else self.answers[0][1]


@dataclass(frozen=True, eq=False)
class Predict:
    """A predict function and what its callers need to know of it.

    Attributes:
      function: makes named arrays of a batch, whose first axis is the batch's.
      keys: the entries of a batch that it reads: only these need to be on the devices.
      choices: the answers that its output `answer` counts from 0; empty for a function that writes texts, or gives no answers.
      text: one example's output to the text that was written; None for a function that writes none.
      shots: the examples that stand before its prompts; None for none.
      listed: the same with several answers, best first; None if it gives all that there are.
    """

    function: Callable[[Params, Collections, Batch], Arrays]
    keys: tuple[str, ...]
    choices: Sequence[str] = ()
    text: Callable[[Mapping[str, np.ndarray]], str] | None = None
    shots: Shots | None = None
    listed: "Predict | None" = None

    @functools.cached_property
    def jitted(self) -> Callable[[Params, Collections, Batch], Arrays]:
        """The function, compiled once for all that call it."""
        return jax.jit(self.function)

    def blank(self, *keys: str) -> "Predict":
        """The same where these entries are zeros, as black images are: how far the model needs to look."""

        def function(params: Params, collections: Collections, batch: Batch) -> Arrays:
            return self.function(params, collections, {**batch, **{key: jnp.zeros_like(batch[key]) for key in keys}})

        return replace(self, function=function, listed=None)

    def first(self) -> "Predict":
        """The same with the best answer alone, and without attention maps."""

        def function(params: Params, collections: Collections, batch: Batch) -> Arrays:
            found = self.function(params, collections, batch)
            return {
                name: value[:, :1] if name in ("answer", "probability") else value
                for name, value in found.items()
                if not name.endswith("_attention")
            }

        return replace(self, function=function, listed=self)

    def prediction(self, output: Mapping[str, np.ndarray]) -> Prediction:
        """What the function says of one example: its `text`, or the `answer` int[K] with their `probability`, -1 for none."""
        if self.text:
            return Prediction(((self.text(output), float(np.exp(output["score"]))),), outputs=output)
        pairs = zip(output["answer"], output["probability"], strict=True)
        answers = tuple((self.choices[int(answer)], float(p)) for answer, p in pairs if answer >= 0)
        return Prediction(answers, outputs=output)


def best_answers(scores: Float[Array, "B A"], count: int = SHOWN) -> Arrays:
    """The `count` best answers, or all: `answer` int32[B, K], best first, and their scores as `probability` float32[B, K].

    Ties go to the first answer, as in the originals; top_k keeps that order.
    """
    probability, answer = jax.lax.top_k(scores, min(count, scores.shape[-1]))
    return {"answer": answer, "probability": probability}


def grid_boxes(example: Mapping[str, Any], cells: int) -> Float[np.ndarray, "R 4"]:
    """The boxes of `cells` by `cells` equal cells of an example's image, row by row: x1, y1, x2, y2 in its own pixels."""
    rows, columns = np.meshgrid(np.arange(cells), np.arange(cells), indexing="ij")
    corners = np.stack([columns, rows, columns + 1, rows + 1], axis=-1).reshape(-1, 4) / cells
    width, height = int(example["image_w"]), int(example["image_h"])
    return (corners * [width, height, width, height]).astype(np.float32)
