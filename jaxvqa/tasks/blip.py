"""What BLIP's tasks have in common: images by their pixels or regions, word pieces, and calls of the model that drop apart."""

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxvqa import models
from jaxvqa.data import image_text, images, tokenizers
from jaxvqa.data.blip_text import ADDED, CaptionTokenizer
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.transforms import RegionsAsImage, Transform, boxes_of
from jaxvqa.errors import ConfigError
from jaxvqa.precision import widened
from jaxvqa.state import fold
from jaxvqa.tasks import Assets, Task
from jaxvqa.tasks.predictions import grid_boxes
from jaxvqa.types import Collections, Params


class BlipTask(Task):
    """A task of one of BLIP's models.

    Attributes:
      model: the network.
      tokenizer: BERT's word pieces with BLIP's two special tokens.
      smooth: see `jaxvqa.tasks.Explains`.
    """

    model: Any
    tokenizer: CaptionTokenizer
    unknown: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, config: ml_collections.ConfigDict, assets: Assets):
        """Reads the options.

        Args:
          config: the whole config.
          assets: `tokenizer` (see `Tokenizer.asset`).

        Raises:
          ConfigError: texts have no room for the two tokens that begin and end them.
        """
        if config.data.max_tokens < 2:
            raise ConfigError(
                f"config.data.max_tokens is {config.data.max_tokens}; expected at least 2, for the tokens that begin and end a "
                "text."
            )
        self.assets, self._data = assets, config.data
        self.tokenizer = CaptionTokenizer(assets["tokenizer"])
        self.model = models.build(config.model.to_dict(), dtype=config.dtype, vocab_size=len(self.tokenizer))
        self._regions = self.model.vision == "region-vit"
        self.smooth = not self._regions
        self.reads = "regions" if self._regions and not images.region_steps(config.data) else "pixels"

    @staticmethod
    def make_assets(config: ml_collections.ConfigDict, data: DataSet) -> Assets:
        """Reads the tokenizer that the config names, or trains one on the captions; raises as `image_text.tokenizer_of`."""
        return {"tokenizer": image_text.tokenizer_of(data)}

    @staticmethod
    def stand_in_assets(config: ml_collections.ConfigDict) -> Assets:
        """Assets of the size `config.compile.vocab_size`, without any data."""
        return {"tokenizer": tokenizers.stand_in(config.compile.vocab_size, (*tokenizers.BERT_SPECIAL, *ADDED))}

    def see(self, *, train: bool) -> Sequence[Transform]:
        """From a raw example to its `image`; pixels are changed at random in training."""
        data = self._data
        if self._regions:
            return (
                *images.region_steps(data),
                RegionsAsImage(data.max_regions, data.region_width),
            )
        return image_text.image_steps(data, train=train)

    def init_image(self, rows: int) -> np.ndarray:
        """All-zero images: uint8[B, S, S, 3], or of regions float16[B, R, 1, F + 4]."""
        data = self._data
        if self._regions:
            return np.zeros((rows, data.max_regions, 1, data.region_width + 4), np.float16)
        return np.zeros((rows, data.image_size, data.image_size, 3), np.uint8)

    def pixels(self, image: Array) -> Float[Array, "B H W C"]:
        """What the model sees of a batch's images."""
        if self._regions:
            return widened(image)
        return images.normalised(image, self._data.mean, self._data.std)

    def boxes(self, example: Mapping[str, Any], output: Mapping[str, np.ndarray]) -> Float[np.ndarray, "R 4"]:
        """The regions' boxes, or the cells of the grid that the maps lie on, row by row, in the image's own pixels."""
        if self._regions:
            return boxes_of(example, images.region_steps(self._data))[: self._data.max_regions]
        return grid_boxes(example, round(output["region_attention"].shape[-1] ** 0.5))

    def words(self, example: Mapping[str, Any], output: Mapping[str, np.ndarray]) -> list[str]:
        """The word pieces whose token ids are the output `words` int[T], up to the end of the text."""
        ends = (self.tokenizer.end, self.tokenizer.padding)
        ids = itertools.takewhile(lambda i: i not in ends, output["words"].tolist())
        return [self.tokenizer.token(i) for i in ids]

    def caller(self, params: Params, collections: Collections, key: Key[Array, ""] | None, *, train: bool) -> "Caller":
        """What calls methods of the model with these variables."""
        return Caller(self.model, params, statistics_of(collections), key, train=train)


class Caller:
    """Calls methods of a model; what each call drops does not depend on the others.

    Attributes:
      statistics: `batch_stats` after the calls so far, which change them in training; empty for a model without.
    """

    def __init__(self, model: Any, params: Params, statistics: Collections, key: Key[Array, ""] | None, *, train: bool):
        """Args: as of `BlipTask.caller`."""
        self.statistics = dict(statistics)
        self._model, self._params, self._key, self._train = model, params, key, train

    def __call__(self, method: str = "__call__", *, place: str = "", **inputs: Any) -> Any:
        """Calls a method; `place` tells two calls of the same one apart."""
        variables = {"params": self._params, **self.statistics}
        if method == "remember":  # no dropout
            return self._model.apply(variables, method=method, **inputs)
        rngs = {"dropout": fold(cast(Any, self._key), method + place)} if self._train else {}
        mutable = list(self.statistics) if self._train else []
        found, changed = self._model.apply(
            variables, method=method, train=self._train, rngs=rngs, mutable=mutable, **inputs
        )
        self.statistics |= changed
        return found


def statistics_of(collections: Collections) -> dict[str, Any]:
    """The running statistics among a state's collections, where the image encoder has any."""
    return {name: tree for name, tree in collections.items() if name == "batch_stats"}


def begun(text: Int[Array, "*batch T"], token: int) -> Int[Array, "*batch T"]:
    """Texts whose first token is this one, which says what they are read for."""
    return text.at[..., 0].set(token)


def empty_texts(shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and masks of texts for an all-zero batch."""
    return np.zeros(shape, np.int32), np.ones(shape, np.bool_)


def as_jax(batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """The arrays of a batch."""
    return {name: jnp.asarray(array) for name, array in batch.items()}
