"""How probable the true texts of a split are: the loss that early stopping watches, and the perplexity of the answers."""

from collections.abc import Callable, Iterator
from pathlib import Path

import ml_collections
from jax.sharding import Mesh

from jaxvqa.data import pipeline
from jaxvqa.data.sources import VqaSource
from jaxvqa.evaluators.predicting import predict_all, predict_function
from jaxvqa.metrics.text import perplexity
from jaxvqa.state import TrainState
from jaxvqa.tasks import Task


class LikelihoodEvaluator:
    """Adds up what the predict function `likelihood` gives over a split (`jaxvqa.tasks.text_generation`)."""

    writes_predictions = False

    def __init__(
        self,
        name: str,
        config: ml_collections.ConfigDict,
        *,
        task: Task,
        open_source: Callable[[str], VqaSource],
        mesh: Mesh,
        workdir: Path,
        readers: pipeline.Readers,
    ):
        """Args: the evaluator's name and its row of `config.evals` (`split`, `batch_size`, `predict`), and what it reads."""
        self.name, self._task, self._mesh = name, task, mesh
        self._source, self._batch_size, self._readers = open_source(config.split), config.batch_size, readers
        self._predict = predict_function(name, config, task, mesh)

    def run(self, state: TrainState) -> Iterator[tuple[str, float]]:
        """Yields `loss`, a mean by words, to which that of the classes is added as in training.

        Further `perplexity` and `word_accuracy` (percent) of the answers' words given the prompt, `class_accuracy` (percent).
        """
        found = predict_all(
            self._predict,
            state,
            task=self._task,
            source=self._source,
            batch_size=self._batch_size,
            mesh=self._mesh,
            readers=self._readers,
            what=f"evaluating {self.name}",
        )
        sums = {name: float(values.sum(dtype="float64")) for name, values in found.items()}
        loss = sums["loss"] / sums["loss_words"] if "loss" in sums else 0.0
        if sums.get("class_known"):
            loss += sums["class_loss"] / sums["class_known"]
            yield f"{self.name}/loss", loss
            yield f"{self.name}/class_accuracy", 100 * sums["class_right"] / sums["class_known"]
        else:
            yield f"{self.name}/loss", loss
        if sums.get("words"):
            yield f"{self.name}/perplexity", perplexity(sums["nll"], sums["words"])
            yield f"{self.name}/word_accuracy", 100 * sums["right"] / sums["words"]
