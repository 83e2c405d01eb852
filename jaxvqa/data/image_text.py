"""Images with their captions, as BLIP reads them in training and evaluation (docs/originals/blip.md, sections 2 and 13)."""

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import ml_collections
import numpy as np

from jaxvqa.data import images, tokenizers
from jaxvqa.data.augment import RandomAugment
from jaxvqa.data.blip_text import ADDED, CaptionTokenizer, pre_caption, pre_question, without_tags
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.transforms import Example, Transform
from jaxvqa.errors import DataError


def tokenizer_of(data: DataSet) -> dict[str, Any]:
    """The asset of the tokenizer that `config.data.tokenizer` names, or of one trained on the captions of the data.

    Texts are those of `config.data.vocabulary_parts` and `vocabulary_splits`: captions, or questions and their answers, cleaned
    as the model reads them.

    Raises:
      DataError: the tokenizer cannot be read.
    """
    config = data.config
    if config.tokenizer:
        return tokenizers.load(config.tokenizer, ADDED)
    return tokenizers.train_word_pieces(_texts(data), config.vocab_size, ADDED)


def _texts(data: DataSet) -> Iterator[str]:
    config = data.config
    # Of named parts all, so that every run has the same tokens.
    others = {"images": "", "positives_by": ""} | ({"question_types": ()} if config.vocabulary_parts else {})
    for part in config.vocabulary_parts or (config.examples,):
        alone = data.changed(examples=part, **others)
        for split in config.vocabulary_splits.split("+"):
            for record in alone.split(split).all_records():
                if "caption" in record:
                    caption = without_tags(record["caption"]) if config.strip_tags else record["caption"]
                    yield pre_caption(caption, config.max_words)
                else:
                    yield pre_question(record["question"])
                    yield from dict.fromkeys(record["answers"])


def image_steps(data: ml_collections.ConfigDict, *, train: bool) -> tuple[Transform, ...]:
    """From an encoded image to `image` uint8[S, S, 3]; with random changes in training.

    Args:
      data: `config.data`: `image_size`, `cache_mib`, and `augment` with `scale` (the least share of the image's area that a
        training image is cropped from), `flip`, and `operations`, `level`, `sound` of `RandomAugment`.
      train: whether the changes are made.
    """
    if not train:
        return (images.DecodeImage({"image": (data.image_size, 3)}, bicubic=True, cache_mib=data.cache_mib),)
    augment = data.augment
    return (
        images.ResizedCrop(data.image_size, (augment.scale, 1.0), flip=augment.flip, cache_mib=data.cache_mib),
        RandomAugment(augment.operations, augment.level, sound=augment.sound),
    )


@dataclass(frozen=True)
class WriteCaption:
    """`caption` str -> `text` int32[T], filled up with padding, and `text_mask` bool[T]; the first id is [CLS].

    Attributes:
      tokenizer: the tokenizer.
      max_tokens: T.
      max_words: the caption is cleaned, and cut to that many words (`jaxvqa.data.blip_text.pre_caption`).
      strip_tags: leave out HTML tags, which the original keeps.
    """

    tokenizer: CaptionTokenizer = field(repr=False)
    max_tokens: int
    max_words: int
    _: KW_ONLY
    strip_tags: bool = False

    def __call__(self, example: Example) -> Example:
        """Adds the text."""
        caption = without_tags(example["caption"]) if self.strip_tags else example["caption"]
        text, mask = self.tokenizer.padded(pre_caption(caption, self.max_words), self.max_tokens)
        return example | {"text": text, "text_mask": mask}


@dataclass(frozen=True)
class ImageText:
    """An example with an image and a caption -> the entries of a batch that contrast and matching read.

    They are those of the image, `text` int32[T], `text_mask` bool[T], `image_id` int32 and `id` int64. `image_id` is the number
    by which the split counts images (`jaxvqa.data.data_set.Split`): texts of the same number are positives of each other.

    Attributes:
      see: makes the image's entries: `image_steps` for pixels, `jaxvqa.data.transforms.PadRegions` for regions.
      write: makes the text.
      visual: the image's entries: `image`, or `regions` and `boxes`.
      numbered: whether there is an `image_id`, which only training needs.
    """

    see: Sequence[Transform]
    write: WriteCaption
    visual: Sequence[str] = ("image",)
    _: KW_ONLY
    numbered: bool = True

    def __call__(self, example: Example) -> Example:
        """Makes the entries, and drops all others.

        Raises:
          DataError: the split does not number its images.
        """
        for transform in self.see:
            example = transform(example)
        example = self.write(example)
        kept = {name: example[name] for name in (*self.visual, "text", "text_mask")}
        if self.numbered:
            if "image_number" not in example:
                raise DataError(
                    f"Image {example.get('image_id')} has no number in its split: set config.data.positives_by to 'image_id', "
                    "or to 'figure_id' where panels of one figure are positives of each other."
                )
            kept["image_id"] = np.int32(example["image_number"])
        return kept | {"id": np.int64(example["question_id"])}
