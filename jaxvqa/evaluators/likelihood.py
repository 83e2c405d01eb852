"""How probable the true texts of a split are: the loss that early stopping watches, and the perplexity of the answers."""

from dataclasses import dataclass

from jaxvqa.evaluators.context import Context
from jaxvqa.metrics.score import Score, Scores
from jaxvqa.metrics.text import perplexity
from jaxvqa.state import TrainState


@dataclass(frozen=True)
class LikelihoodEvaluator:
    """Adds up what the predict function `likelihood` gives over a split (`jaxvqa.tasks.text_generation`)."""

    context: Context

    def run(self, state: TrainState) -> Scores:
        """Yields `loss`, a mean over tokens, to which that of the classes is added as in training.

        Further `perplexity` and `word_accuracy` (percent) of the answers' tokens given the prompt, `class_accuracy` (percent).
        """
        found = self.context.outputs(state)
        sums = {name: float(values.sum(dtype="float64")) for name, values in found.items()}
        tokens, classes = int(sums.get("words", 0)), int(sums.get("class_known", 0))
        parts = (("loss", "loss_words"), ("class_loss", "class_known"))
        loss = sum((sums[total] / sums[n] for total, n in parts if sums.get(n)), 0.0)
        scores = {"loss": Score(loss, n=len(self.context.source))}
        if classes:
            scores["class_accuracy"] = Score(100 * sums["class_right"] / classes, n=classes)
        if tokens:
            scores["perplexity"] = Score(perplexity(sums["nll"], tokens), n=tokens)
            scores["word_accuracy"] = Score(100 * sums["right"] / tokens, n=tokens)
        yield from ((f"{self.context.name}/{name}", score) for name, score in scores.items())
