"""A question of a run's own evaluation as files that it can be asked about, such as a user has them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxvqa import configs
from jaxvqa.data import pictures
from jaxvqa.errors import os_errors
from jaxvqa.runs import Run
from jaxvqa.tasks import Asks


@dataclass(frozen=True)
class Sample:
    """What can be asked.

    Attributes:
      image: the image's file.
      question: the text; empty for a model that describes or classifies the image alone.
      regions: the file of the image's regions; None for a model that reads none.
      answers: those of the annotators.
    """

    image: Path
    question: str
    regions: Path | None
    answers: tuple[str, ...]

    def words(self, workdir: Path) -> list[str]:
        """The arguments of `python -m jaxvqa.ask` that ask a run."""
        regions = [f"--regions={self.regions}"] if self.regions else []
        return [f"--workdir={workdir}", str(self.image), *filter(None, [self.question]), *regions]


def write(run: Run, folder: Path) -> Sample:
    """Writes image and regions of the first example that the run is judged by, bit for bit, into a folder.

    Args:
      run: a run on a data set with images.
      folder: where to, made if it is not there.

    Raises:
      DataError: the data set is not built.
      StorageError: the folder cannot be written.
    """
    task, split = run.task, run.final.evals[configs.main_evaluation(run.final)].split
    assert isinstance(task, Asks)
    (example,) = run.data.split(split).read([0])
    image = folder / f"image.{pictures.inspect(example['image']).kind.lower()}"
    regions = folder / "regions.npz" if task.reads == "regions" else None
    with os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        image.write_bytes(example["image"])
        if regions:
            np.savez(regions, x=example["features"].T, bbox=example["boxes"])
    question = example["question"] if task.asks == "question" else ""
    return Sample(image, question, regions, tuple(dict.fromkeys(example.get("answers", ()))))
