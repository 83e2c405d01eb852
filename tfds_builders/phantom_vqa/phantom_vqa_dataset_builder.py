"""phantom_vqa: generated radiology phantoms with questions."""

import dataclasses
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxvqa.data.region_features import FEATURE_WIDTH
from tfds_builders.phantom_vqa.pairs import SENTENCES_PER_PAIR, make_sentences
from tfds_builders.phantom_vqa.questions import QUESTIONS_PER_IMAGE, make_questions
from tfds_builders.phantom_vqa.records import image_record
from tfds_builders.phantom_vqa.render import ORGANS
from tfds_builders.phantom_vqa.scenes import ABNORMALITIES, BODY_PARTS, MODALITIES, PLANES, caption, make_scene

_FIRST_IDS = {"train": 0, "val": 3200, "test": 3600}
_FULL = {"train": 3200, "val": 400, "test": 400}
_LEAST_FOR_WORKERS = 500  # images; fewer are rendered sooner than processes start
_TINY = {"train": 48, "val": 16, "test": 16}  # the first images of each full split


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
    """Which part of the data set, and how many images of each split it covers."""

    part: str = "questions"
    images: dict[str, int] = dataclasses.field(default_factory=dict)


class Builder(tfds.core.GeneratorBasedBuilder):
    """Builder of phantom_vqa; README.md beside it describes the data."""

    VERSION = tfds.core.Version("1.1.0")  # a test fails when records change and this does not
    RELEASE_NOTES = {  # noqa: RUF012
        "1.0.0": "First release, whose pictures, regions and features changed before 1.1.0.",
        "1.1.0": "Regions as a detector gives them, features of 320 values, captions apart from the pictures.",
    }
    BUILDER_CONFIGS = [  # noqa: RUF012
        Config(name="questions", description="Questions and answers.", part="questions", images=_FULL),
        Config(name="images", description="Pictures, regions, masks, captions.", part="images", images=_FULL),
        Config(name="captions", description="Captions, without the pictures.", part="captions", images=_FULL),
        Config(name="pairs", description="Sentences about two images.", part="pairs", images=_FULL),
        Config(name="tiny_questions", description="A few, for tests.", part="questions", images=_TINY),
        Config(name="tiny_images", description="A few, for tests.", part="images", images=_TINY),
        Config(name="tiny_captions", description="A few, for tests.", part="captions", images=_TINY),
        Config(name="tiny_pairs", description="A few, for tests.", part="pairs", images=_TINY),
    ]
    DEFAULT_CONFIGS = ("questions", "images", "captions", "pairs")
    EXPECTED_COUNTS = {  # noqa: RUF012
        "questions": {split: count * QUESTIONS_PER_IMAGE for split, count in _FULL.items()},
        "images": _FULL,
        "captions": _FULL,
        "pairs": {split: count // 2 * SENTENCES_PER_PAIR for split, count in _FULL.items()},
        "tiny_questions": {split: count * QUESTIONS_PER_IMAGE for split, count in _TINY.items()},
        "tiny_images": _TINY,
        "tiny_captions": _TINY,
        "tiny_pairs": {split: count // 2 * SENTENCES_PER_PAIR for split, count in _TINY.items()},
    }

    # Processes that render; the build command sets it. More than one needs a main module that spawned processes can
    # import, which only the command can promise.
    workers = 1

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        if self.builder_config.part == "questions":
            columns: dict[str, Any] = {
                "question_id": np.int64,
                "image_id": np.int64,
                "question": features.Text(),
                "answers": features.Sequence(features.Text()),
                "multiple_choice_answer": features.Text(),
                "question_type": features.Text(),
                "answer_type": features.Text(),
                "open_closed": features.Text(),
                "template_id": np.int32,
            }
            metadata = None
        elif self.builder_config.part == "captions":
            columns = {"question_id": np.int64, "image_id": np.int64, "caption": features.Text()}
            metadata = None
        elif self.builder_config.part == "pairs":
            text = features.Text()
            columns = {
                **dict.fromkeys(("question_id", "image_id", "second_image_id"), np.int64),
                **dict.fromkeys(("question", "multiple_choice_answer", "question_type"), text),
                "answers": features.Sequence(text),
            }
            metadata = None
        else:
            box_list = features.Tensor(shape=(None, 4), dtype=np.float32, encoding="bytes")
            grey_png = features.Image(shape=(None, None, 1), dtype=np.uint8, encoding_format="png")
            columns = {
                "image_id": np.int64,
                "image": grey_png,
                "image_w": np.int32,
                "image_h": np.int32,
                "boxes": box_list,
                "features": features.Tensor(shape=(None, FEATURE_WIDTH), dtype=np.float16, encoding="bytes"),
                "organ_map": grey_png,
                "lesion_map": grey_png,
                "lesion_boxes": box_list,
                "lesion_kinds": features.Sequence(features.Text()),
                "lesion_sizes": features.Sequence(features.Text()),
                "lesion_organs": features.Sequence(features.Text()),
                "lesion_places": features.Sequence(features.Text()),
                "modality": features.ClassLabel(names=MODALITIES),
                "plane": features.ClassLabel(names=PLANES),
                "organ": features.ClassLabel(names=BODY_PARTS),
                "abnormality": features.ClassLabel(names=ABNORMALITIES),
                "caption": features.Text(),
            }
            ids = {split: list(self._image_ids(split)) for split in self.builder_config.images}
            metadata = tfds.core.MetadataDict(image_ids=ids, organ_map_names=list(ORGANS))
        return self.dataset_info_from_configs(
            features=features.FeaturesDict(columns), metadata=metadata, disable_shuffling=True
        )

    def _image_ids(self, split: str) -> range:
        return range(_FIRST_IDS[split], _FIRST_IDS[split] + self.builder_config.images[split])

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in self.builder_config.images}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        if self.builder_config.part == "images":
            yield from self._image_examples(self._image_ids(split))
            return
        if self.builder_config.part == "captions":
            for image_id in self._image_ids(split):
                text = caption(make_scene(image_id))
                yield image_id, {"question_id": image_id, "image_id": image_id, "caption": text}
            return
        if self.builder_config.part == "pairs":
            for image_id in self._image_ids(split)[::2]:
                for sentence in make_sentences(image_id):
                    yield (
                        sentence.sentence_id,
                        {
                            "question_id": sentence.sentence_id,
                            "image_id": image_id,
                            "second_image_id": image_id + 1,
                            "question": sentence.text,
                            "answers": [sentence.truth],
                            "multiple_choice_answer": sentence.truth,
                            "question_type": sentence.family,
                        },
                    )
            return
        for image_id in self._image_ids(split):
            for question in make_questions(image_id):
                yield (
                    question.question_id,
                    {
                        "question_id": question.question_id,
                        "image_id": question.image_id,
                        "question": question.text,
                        "answers": list(question.answers),
                        "multiple_choice_answer": question.multiple_choice_answer,
                        "question_type": question.question_type,
                        "answer_type": question.answer_type,
                        "open_closed": "closed" if question.closed else "open",
                        "template_id": question.template_id,
                    },
                )

    def _image_examples(self, image_ids: range) -> Iterator[tuple[int, dict[str, Any]]]:
        if self.workers < 2 or len(image_ids) < _LEAST_FOR_WORKERS:
            yield from ((image_id, image_record(image_id)) for image_id in image_ids)
            return
        # Spawned, because forking a process that has threads (JAX's, say) can hang.
        with ProcessPoolExecutor(self.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from zip(image_ids, pool.map(image_record, image_ids, chunksize=16), strict=True)
