"""Written answers, captions and reports over a split: exact match, BLEU, and the nearest answer by its states."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np

from jaxvqa.data.prompts import asked_and_true
from jaxvqa.evaluators.vqa import VqaEvaluator
from jaxvqa.metrics import text
from jaxvqa.metrics.bootstrap import percentages


class GenerationEvaluator(VqaEvaluator):
    """Writes to each prompt of a split exactly once, and scores what was written.

    Yields in percent, with intervals: of answers `accuracy` by the data set's rule, and `exact`, the share that is the
    annotated answer to the letter, both by group too; `bleu`, the mean of BLEU-1. Of captions `bleu` too, and `bleu_1` to
    `bleu_4` of all texts together, `rouge_l`, and `cider`, from 0 to 10. Where the predict function is `embeddings`, `nearest`
    is the share of texts whose mean state is nearest to that of their own answer, or of one that contains it or is contained
    (Flamingo spec, section 15).
    """

    def __init__(self, name: str, config: ml_collections.ConfigDict, **options: Any):
        """Args: as for `VqaEvaluator`."""
        super().__init__(name, config, **options)
        self._captions = len(self.source) > 0 and "question" not in self.source.question(0)

    def _chosen(self, output: Mapping[str, np.ndarray]) -> tuple[str, float]:
        return self._task.answers_of(output)[0] if "words" in output else super()._chosen(output)

    def _row(self, question: Mapping[str, Any], output: Mapping[str, np.ndarray]) -> dict[str, Any]:
        row = super()._row(question, output)
        if "annotators" not in row:
            return row
        if self._captions:
            del row["accuracy"]  # no two people describe a picture alike
            return row | {"bleu": round(text.bleu1(row["answer"], row["annotators"]), 6)}
        truth = question["multiple_choice_answer"]
        return row | {
            "truth": truth,
            "exact": text.exact_match(row["answer"], truth),
            "bleu": round(text.bleu1(row["answer"], [truth]), 6),
        }

    def score(self, step: int, outputs: Mapping[str, np.ndarray]) -> Iterator[tuple[str, float]]:
        """Yields the measures, and writes the predictions; arguments as in `VqaEvaluator.score`."""
        yield from super().score(step, outputs)
        if "written" in outputs:
            answers = [asked_and_true(record)[1] for record in self.source.all_questions()]
            known, table = text.embeddings_by_answer(outputs["true"], answers)
            pairs = zip(text.nearest_answers(outputs["written"], table), answers, strict=True)
            near = [text.contains(known[found], answer) for found, answer in pairs]
            images = [int(record["image_id"]) for record in self.source.all_questions()]
            yield from percentages(f"{self.name}/nearest", near, images)

    def _measures(self, scored: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
        if self._captions:
            yield from self._mean("bleu", scored)
            yield from self._of_captions(scored)
            return
        yield from super()._measures(scored)
        for measure in ("exact", "bleu"):
            yield from self._mean(measure, scored)
        for group in self.groups:
            members = defaultdict(list)
            for row in scored:
                if row.get(group):
                    members[row[group]].append(row["exact"])
            for member in sorted(members):
                yield f"{self.name}/exact/{group}/{member}", 100 * float(np.mean(members[member]))

    def _of_captions(self, rows: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
        written, true = [row["answer"] for row in rows], [row["annotators"] for row in rows]
        for order, value in enumerate(text.corpus_bleu(written, true), start=1):
            yield f"{self.name}/bleu_{order}", 100 * value
        pairs = zip(written, true, strict=True)
        yield f"{self.name}/rouge_l", 100 * float(np.mean([text.rouge_l(ours, theirs) for ours, theirs in pairs]))
        yield f"{self.name}/cider", float(np.mean(text.cider(written, true)))

    def _mean(self, measure: str, rows: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
        images = [row["image_id"] for row in rows]
        yield from percentages(f"{self.name}/{measure}", [row[measure] for row in rows], images)
