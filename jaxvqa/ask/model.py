"""A trained or converted run as an object that answers questions about images of a user's own.

An image goes the way of the run's evaluation: the same reading of files, the same transforms and text, the same predict
function, so that an image of a built data set has the answer and the probability that an evaluation of it has.
"""

import functools
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvqa import configs
from jaxvqa.ask.given import Given, Question, encoded
from jaxvqa.data import pictures
from jaxvqa.data.few_shot import ShowExamples
from jaxvqa.data.prompts import asked_and_true
from jaxvqa.data.transforms import Example, Transform
from jaxvqa.data.views import Images
from jaxvqa.errors import ConfigError, DataError, UserError, choose
from jaxvqa.evaluators.context import Context, check_numbers, on_host, predict_all, predicted
from jaxvqa.evaluators.few_shot import image_vectors, with_examples
from jaxvqa.explain.attention import explanation_of
from jaxvqa.explain.explanation import Explanation
from jaxvqa.inputs import user_path
from jaxvqa.runs import BATCH_SIZE, Run
from jaxvqa.tasks import Asks
from jaxvqa.tasks.predictions import Predict, Prediction
from jaxvqa.types import Config


@dataclass(frozen=True)
class Answer:
    """What is answered.

    Attributes:
      image: the image's path; "the image" where there is none.
      question: as it was asked; empty for none.
      answers: the best answers with their probabilities, best first; empty where there is no answer.
      seconds: how long it took; of several at once, the mean.
      examples: the questions and answers that stood before it, in the order of the prompt (`config.data.shots`).
    """

    image: str
    question: str
    answers: tuple[tuple[str, float], ...]
    seconds: float
    examples: tuple[tuple[str, str], ...] = ()

    @property
    def answer(self) -> str:
        """The best answer; empty without one."""
        return self.answers[0][0] if self.answers else ""

    @property
    def probability(self) -> float:
        """That of the best answer; 0 without one."""
        return self.answers[0][1] if self.answers else 0.0

    def __str__(self) -> str:
        return self.answer


def load(folder: str | Path, predict: str = "") -> "Model":
    """Opens a run to ask; `jaxvqa.load`.

    Args:
      folder: its work directory.
      predict: how it answers, one of its task's predict functions; empty: as its main evaluation does.

    Raises:
      CheckpointError: there is no run, or none that is trained.
      ConfigError: the run answers nothing, or not so.
    """
    return Model(Run.open(user_path(str(folder))), predict)


class Model:
    """A run that answers. Each number of examples at once is compiled when it first comes: one, and `answer_many`'s.

    Attributes:
      run: the run.
    """

    def __init__(self, run: Run, predict: str = ""):
        """Reads the run's newest checkpoint; arguments and errors as of `load`."""
        if run.members:
            raise ConfigError(f"{run.folder} is an ensemble of runs. Ask one of them: {', '.join(run.members)}.")
        run.step  # noqa: B018  (a run without a checkpoint is named before anything else is read of it)
        if not isinstance(run.task, Asks):
            raise ConfigError(
                f"{run.folder} is a run of the task {run.config.task!r}, which answers nothing about an image."
            )
        self.run, self.task = run, run.task
        self._name = predict or _of_evaluation(run.final, run.task.predictions)
        known = [name for name, one in run.task.predictions.items() if gives_answers(one)]
        if self._name not in known:
            raise ConfigError(
                f"{run.folder} has no predict function {self._name!r} that answers{choose(self._name, known)}"
            )
        one = run.task.predictions[self._name]
        self._predict = one.listed or one
        self._own_transforms = run.task.transforms(train=False)
        run.state  # noqa: B018  (read now, not at the first question)

    # --- what is asked ----------------------------------------------------------------------------------------------------

    def answer(self, image: Given, question: str = "", regions: str | Path = "") -> Answer:
        """Answers one question about one image.

        Args:
          image: a path, an encoded file, a Pillow image or an array (`jaxvqa.ask.given.encoded`).
          question: the question; none for models that describe or classify the image alone.
          regions: for models that read regions, the file with those of the image (`--regions` of `python -m jaxvqa.ask`).

        Raises:
          DataError: the image, the question or the regions cannot be used; lists all faults.
        """
        start = time.perf_counter()
        asked = Question(image, question, regions)
        example = self._example(asked, 0)
        transforms = self._transforms(_Examples([example]))
        prediction = self._one(self._predict, example, transforms)
        before = _before(transforms, example)
        return Answer(asked.name, question, prediction.answers, time.perf_counter() - start, before)

    def caption(self, image: Given, regions: str | Path = "") -> str:
        """Describes an image, with a model of captions; arguments and errors as of `answer`.

        Raises:
          ConfigError: the model answers questions.
        """
        if self.task.asks != "description":
            raise ConfigError(f"{self.run.folder} is not a run of captions; ask it with answer(image, question).")
        return self.answer(image, regions=regions).answer

    def answer_many(
        self, questions: Iterable[Question | tuple[Given, str]], *, batch_size: int = BATCH_SIZE
    ) -> list[Answer]:
        """Answers many questions in batches, in their order. All are looked at before the first is answered.

        Args:
          questions: pairs of an image and a question, or `jaxvqa.ask.given.Question`.
          batch_size: how many are answered at once.

        Raises:
          DataError: something cannot be used; lists all faults.
        """
        start = time.perf_counter()
        asked = [one if isinstance(one, Question) else Question(*one) for one in questions]
        source = self.checked(asked)
        if not asked:
            return []
        transforms = self._transforms(source)
        with jax.set_mesh(self.run.mesh):
            outputs = predict_all(
                self._predict,
                self.run.state,
                source,
                transforms,
                batch_size=batch_size,
                mesh=self.run.mesh,
                what="answering",
            )
        rows = (dict(zip(outputs, map(np.asarray, row), strict=True)) for row in zip(*outputs.values(), strict=True))
        predictions = [self._predict.prediction(row) for row in rows]
        seconds = (time.perf_counter() - start) / len(asked)
        return [
            Answer(q.name, q.question, p.answers, seconds, _before(transforms, {"question_id": i, "image_id": image}))
            for i, (q, p, image) in enumerate(zip(asked, predictions, source.ids, strict=True))
        ]

    def explain(self, image: Given, question: str = "", regions: str | Path = "") -> Explanation:
        """What the model looked at; `jaxvqa.explain.overlay.figure` draws it. Arguments and errors as of `answer`.

        The question is asked alone, without the examples of `config.data.shots`.
        """
        example = self._example(Question(image, question, regions), 0)
        prediction = self._one(self.task.predictions["explain"], example, self._own_transforms)
        return explanation_of(example, prediction, self.task, blind=self.run.blind)

    # --- raw examples ------------------------------------------------------------------------------------------------------

    def checked(self, asked: Sequence[Question]) -> "_Examples":
        """The raw examples of questions, each of which was made once; they are made again when they are read.

        Raises:
          DataError: lists all faults.
        """
        faults, ids = [], []
        for i, one in enumerate(asked):
            try:
                ids.append(self._example(one, i)["image_id"])
            except UserError as error:
                faults.append(str(error))
        if faults:
            raise DataError("\n".join(dict.fromkeys(faults)))
        return _Examples(asked, self._example, ids)

    def _example(self, asked: Question, number: int) -> Example:
        """A raw example as a data set has it, with a question id and without answers.

        Raises:
          DataError: lists all faults.
        """
        faults: list[str] = []
        example: Example = {"answers": (), **self.task.unknown, "question_id": number}
        try:
            image = encoded(asked.image)
            facts = pictures.inspect(image)
            # Images are kept decoded by their id: equal ones are one image.
            image_id = int.from_bytes(hashlib.sha256(image).digest()[:7], "big")
            example |= {"image": image, "image_id": image_id, "image_w": facts.width, "image_h": facts.height}
        except DataError as error:
            faults.append(f"{asked.name} {error}")
        except UserError as error:
            faults.append(str(error))
        question = asked.question.strip()
        if self.task.asks == "question" and not question:
            faults.append(f"{asked.name}: the question is missing; this model answers questions")
        if self.task.asks == "description" and question:
            faults.append(
                f"{asked.name}: {question!r} cannot be asked; this model describes an image, and reads no question"
            )
        elif question:
            example["question"] = asked.question
        try:
            example |= self._regions(asked)
        except UserError as error:
            faults.append(f"{asked.regions or asked.name}: {error}")
        if faults:
            raise DataError("\n".join(f"{asked.where}: {fault}" if asked.where else fault for fault in faults))
        return example

    def _regions(self, asked: Question) -> dict[str, np.ndarray]:
        if self.task.reads != "regions":
            if asked.regions:
                raise DataError("this model reads no files of regions; leave it out")
            return {}
        if not asked.regions:
            raise DataError(
                "this model reads regions, which a detector has found, and not pixels. Give a file with them "
                "(--regions=FILE.npz), or train with config.data.regions = 'shapes', which proposes them from the image alone"
            )
        from tfds_builders.vqa_v2.region_files import read_region_file  # only here: it is a builder's

        data = self.run.final.data
        width = self.run.assets.get("region_width", data.region_width)
        file = user_path(str(asked.regions))
        if not file.is_file():
            raise DataError("there is no such file")
        features, boxes, _, _ = read_region_file(file, max_regions=data.max_regions, width=width)
        return {"features": features, "boxes": boxes}

    # --- predictions -------------------------------------------------------------------------------------------------------

    def _transforms(self, source: "_Examples") -> Sequence[Transform]:
        """Those of evaluation, with the examples that stand before prompts where the config has any."""
        shots = self._predict.shots
        if shots is None:
            return self._own_transforms
        with jax.set_mesh(self.run.mesh):
            vectors = self._vectors_of_examples if shots.by == "image" else None
            return with_examples(self._context, shots, source.images, vectors)(self.run.state) or ()

    @functools.cached_property
    def _context(self) -> Context:
        row = Config({"split": "", "batch_size": BATCH_SIZE, "predict": self._name})
        return Context("asked", row, self.run.task, self.run.data.split, self.run.mesh, self.run.folder)

    @functools.cached_property
    def _vectors_of_examples(self) -> np.ndarray:
        """Kept, so that the second question need not wait for the images of a whole split."""
        assert self._predict.shots is not None
        images = self.run.data.split(self._predict.shots.split).images
        return image_vectors(self._context, self.run.state, images)

    def _one(self, predict: Predict, example: Example, transforms: Sequence[Transform]) -> Prediction:
        with jax.set_mesh(self.run.mesh):
            ((_, found),) = predicted(
                predict, self.run.state, _Examples([example]), transforms, batch_size=1, mesh=self.run.mesh
            )
            outputs = on_host(found)
        check_numbers(outputs, "answers", "asked for")
        return predict.prediction({name: np.asarray(value[0]) for name, value in outputs.items()})


class _Examples:
    """Raw examples by position, as `jaxvqa.data.data_set.Split` has them; made of what was given when they are read.

    Attributes:
      ids: the image of each.
    """

    def __init__(
        self,
        given: Sequence[Any],
        make: Callable[[Any, int], Example] = lambda example, _: example,
        ids: Sequence[int] | None = None,
    ):
        self._given, self._make = given, make
        self.ids = [example["image_id"] for example in given] if ids is None else ids

    def __len__(self) -> int:
        return len(self._given)

    def read(self, indices: Sequence[int]) -> list[Example]:
        """The examples at these positions."""
        return [self._make(self._given[int(i)], int(i)) for i in indices]

    @property
    def images(self) -> Images:
        """The images, each once."""
        return Images(self.read, np.asarray(self.ids, np.int64))


def _before(transforms: Sequence[Transform], example: Example) -> tuple[tuple[str, str], ...]:
    """The questions and answers that these transforms put before an example's prompt."""
    shown = [one.support(example) for one in transforms if isinstance(one, ShowExamples)]
    return tuple(asked_and_true(shot) for shots in shown for shot in shots)


def gives_answers(predict: Predict) -> bool:
    """Whether a predict function answers, where others measure or compare."""
    return bool(predict.choices) or predict.text is not None


def _of_evaluation(config: Config, predictions: Any) -> str:
    """The predict function of the main evaluation, if that answers; else `answers`."""
    if config.get("evals"):
        try:
            name = config.evals[configs.main_evaluation(config)].predict
            if name in predictions and gives_answers(predictions[name]):
                return name
        except ConfigError:
            pass
    return "answers"
