"""The images and texts of a split as a model compares them: a feature of each, and match logits of chosen pairs.

What it costs. Let an image's states cost A (its encoder), a text's feature B, and a pair C: one pass of the image-grounded
encoder over a text's tokens, with cross-attention to the image's states, whose keys and values are projected once for `P` texts
beside the image (cost V). With I images, T texts and k candidates a query,

    cost = 2 I A + T B + n C + (n / P) V,    n = pairs of the union,  max(I, T) k <= n <= (I + T) k.

The second I A is that of making the states again instead of keeping them: COCO's 5,000 x 577 x 768 would take 8.9 GB in
float32. Next to n C it is small: with k = 256, COCO's 5,000 images and 25,010 texts have at most 7.7 million pairs, 1,500 an
image.
The original scores the two directions apart, (I + T) k pairs, and projects keys and values for each pair.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from jaxvqa import logs
from jaxvqa.data.batches import Source
from jaxvqa.data.data_set import Split
from jaxvqa.data.transforms import Example
from jaxvqa.errors import ConfigError
from jaxvqa.evaluators.context import Context, check_numbers, on_host, predicted
from jaxvqa.metrics import retrieval
from jaxvqa.sharding import batch_sharding
from jaxvqa.state import TrainState
from jaxvqa.tasks import Matches
from jaxvqa.types import Arrays, Batch, Collections, Params

NAMES = ("image_features", "text_features", "match")
"""The predict functions that compare images with texts (`jaxvqa.tasks.Matches`)."""

TEXT_KEYS = ("text", "text_mask")

_AHEAD = 2  # steps that are computed while the host prepares the next


@dataclass(frozen=True)
class Features:
    """What a state makes of a split.

    Attributes:
      images: float32[I, E], of length 1.
      texts: float32[T, E], of length 1.
      tokens: the texts as the model reads them: `text` int32[T, L] and `text_mask` [T, L].
    """

    images: Float[np.ndarray, "I E"]
    texts: Float[np.ndarray, "T E"]
    tokens: dict[str, Shaped[np.ndarray, "T L"]]

    def cosines(self) -> Float[np.ndarray, "I T"]:
        """The similarity of each image and text, without a temperature."""
        return self.images @ self.texts.T


@dataclass(frozen=True, eq=False)
class _Records:
    """The examples' own records, without images."""

    split: Split

    def __len__(self) -> int:
        return len(self.split)

    def read(self, indices: Sequence[int]) -> list[Example]:
        return self.split.read_records(indices)


@dataclass(frozen=True, eq=False)
class _Reordered:
    """Some of a source's examples in another order."""

    source: Source
    order: Int[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.order)

    def read(self, indices: Sequence[int]) -> list[Example]:
        return self.source.read([int(self.order[i]) for i in indices])


class Pairs:
    """The images and texts of an evaluation's split.

    Each example's text is one of its own, as in the original, even where another has the same words; an image is one for all
    of its examples, or one for each where the row of `config.evals` says `one_to_one`.

    Attributes:
      images: the images, in the order of their ids, or of the examples.
      image_ids: int64[I], theirs.
      image_of_text: int64[T], the place of each text's image.
      words: the texts.
      own: bool[I, T], which belong together.
    """

    def __init__(self, context: Context):
        """Args: what the evaluation works with.

        Raises:
          ConfigError: the task does not compare images with texts.
        """
        task, source = context.task, context.source
        missing = [name for name in NAMES if name not in task.predictions]
        if missing or not isinstance(task, Matches):
            raise ConfigError(
                f"config.evals.{context.name}.type is {context.config.get('type')!r}, which compares images with texts; this "
                f"task has no {', '.join(missing) or 'text_transforms'}. Take a task that does, such as image_text."
            )
        self._context, self._text_transforms = context, task.text_transforms(context.config.get("max_tokens", 0))
        self._image, text, self._match = (task.predictions[name] for name in NAMES)

        def with_tokens(params: Params, collections: Collections, batch: Batch) -> Arrays:
            return text.function(params, collections, batch) | {name: batch[name] for name in TEXT_KEYS}

        self._text = replace(text, function=with_tokens, keys=tuple(dict.fromkeys((*text.keys, *TEXT_KEYS))))
        if context.config.get("one_to_one", False):
            self.images: Source = source
            self.image_ids, self.image_of_text = source.image_ids, np.arange(len(source))
        else:
            self.images, self.image_ids = source.images, source.images.ids
            self.image_of_text = np.searchsorted(self.image_ids, source.image_ids)
        self.words = [r["caption"] if "caption" in r else r["question"] for r in source.all_records()]
        places = np.stack([self.image_of_text, np.arange(len(source))], axis=1)
        self.own = retrieval.relation((len(self.images), len(source)), places)

    def features(self, state: TrainState) -> Features:
        """Features of all images and texts, `batch_size` at a time.

        Raises:
          DivergedError: one of them is a NaN.
        """
        context = self._context
        what = f"{{}} of {context.name}"
        of_images = context.outputs(
            state, predict=self._image, source=self.images, names=("image_feature",), what=what.format("images")
        )
        of_texts = context.outputs(
            state,
            predict=self._text,
            source=_Records(context.source),
            transforms=self._text_transforms,
            what=what.format("texts"),
        )
        tokens = {name: of_texts[name] for name in TEXT_KEYS}
        return Features(of_images["image_feature"], of_texts["text_feature"], tokens)

    def match_logits(
        self, state: TrainState, features: Features, wanted: Bool[np.ndarray, "I T"]
    ) -> Float[np.ndarray, "P 2"]:
        """The match logits of the wanted pairs, in the order of `np.nonzero(wanted)`.

        The images are taken `batch_size` at a time, those with many pairs first, so that the images of a batch have about as
        many; beside each are `texts_per_step` texts, until all of its pairs are done. The rest of a step is filled up, so
        that there is one compiled program.

        Raises:
          DivergedError: a logit is a NaN.
        """
        context, (_, texts) = self._context, np.nonzero(wanted)
        logits = np.empty((len(texts), 2), np.float32)
        steps = self._steps(wanted)
        total = sum(-(-most // self._beside) for most in steps)
        with logs.Progress(f"matching pairs of {context.name}", total) as progress:
            waiting: list[tuple[np.ndarray, Arrays]] = []
            for done, step in enumerate(self._matched(state, features, wanted, texts), start=1):
                waiting.append(step)
                if len(waiting) > _AHEAD:
                    _take(logits, *waiting.pop(0))
                progress.update(done)
            for step in waiting:
                _take(logits, *step)
        check_numbers({"match_logits": logits}, "pairs", "of the pairs that are matched")
        return logits

    @property
    def _beside(self) -> int:
        return self._context.config.texts_per_step

    def _steps(self, wanted: Bool[np.ndarray, "I T"]) -> list[int]:
        """The most pairs of an image in each batch."""
        counts = np.sort(wanted.sum(axis=1))[::-1]
        return counts[counts > 0][:: self._context.config.batch_size].tolist()

    def _matched(
        self, state: TrainState, features: Features, wanted: Bool[np.ndarray, "I T"], texts: Int[np.ndarray, " P"]
    ) -> Iterator[tuple[np.ndarray, Arrays]]:
        """Yields the places int64[B, P] of a step's pairs, -1 for padding, and their `match_logits`, on the devices."""
        context, counts = self._context, wanted.sum(axis=1)
        first = np.cumsum(counts) - counts
        order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        batches = predicted(
            self._image,
            state,
            _Reordered(self.images, order),
            context.task.transforms(train=False),
            batch_size=context.config.batch_size,
            mesh=context.mesh,
            readers=context.readers,
        )
        for places, found in batches:
            images = order[places]
            many = np.where(places >= 0, counts[images], 0)
            for start in range(0, int(many.max()), self._beside):
                beside = start + np.arange(self._beside)
                here = np.where(beside < many[:, None], first[images][:, None] + beside, -1)
                batch = {name: self._on_devices(ids[texts[here]]) for name, ids in features.tokens.items()}
                batch |= {name: found[name] for name in self._match.keys if name in found}
                yield here, self._match.jitted(*state.eval_variables, batch)

    def _on_devices(self, array: np.ndarray) -> jax.Array:
        mine = np.split(array, jax.process_count())[jax.process_index()]
        return jax.make_array_from_process_local_data(batch_sharding(self._context.mesh), mine)


def _take(logits: np.ndarray, places: np.ndarray, found: Arrays) -> None:
    real = places >= 0
    logits[places[real]] = on_host({"match_logits": found["match_logits"]})["match_logits"][real]
