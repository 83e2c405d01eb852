"""Retrieval over a split: images find their texts and texts their images, by contrast alone and re-ranked by matching.

docs/originals/blip.md, section 6. What it costs: `jaxvqa.evaluators.pairs`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxvqa.errors import ConfigError
from jaxvqa.evaluators.context import Context, Row
from jaxvqa.evaluators.pairs import Pairs
from jaxvqa.logs import log
from jaxvqa.metrics import retrieval
from jaxvqa.metrics.retrieval import Summary
from jaxvqa.metrics.score import Score, Scores
from jaxvqa.report.tables import Table, Values, cell
from jaxvqa.state import TrainState
from jaxvqa.types import Config

SEED = 0
"""Of the shuffled pairs."""


@dataclass(frozen=True)
class Labelled:
    """Pairs to be told apart: int64[P] places of images and texts, and bool[P] whether they belong together."""

    images: Int[np.ndarray, " P"]
    texts: Int[np.ndarray, " P"]
    right: Bool[np.ndarray, " P"]


class RetrievalEvaluator:
    """Scores every image with every text by the cosine of their features, and the best of these by matching.

    The row of `config.evals` has

    - `k_test`: of each image the texts of highest cosine, and of each text the images, that are matched; 0: none.
      A pair's score is the match logit plus the cosine, in both directions the same, so that a pair is matched once.
    - `texts_per_step`: how many texts stand beside each of `batch_size` images in a step of matching.
    - `negatives_among`: in batches of so many examples, in their order, each text is told from the image of highest cosine
      that is not its own, and each image from such a text; 0: none are.
    - `one_to_one`: each example is an image and a text of its own, even where images are the same.
    - `max_tokens`: texts are cut to that many tokens; 0: as in training.
    - `wordings`: rows (regex, replacement); texts that read the same after all of them are interchangeable.
    """

    def __init__(self, context: Context):
        """Args: what the evaluation works with.

        Raises:
          ConfigError: the task does not compare images with texts, or there are fewer candidates than `k_test`.
        """
        self._context, self._pairs, row = context, Pairs(context), context.config
        images, texts = self._pairs.own.shape
        if row.k_test > min(images, texts):
            raise ConfigError(
                f"config.evals.{context.name}.k_test is {row.k_test}; the split {row.split!r} has {images} images and {texts} "
                f"texts to choose from. Set it to at most {min(images, texts)}."
            )
        keys = self._pairs.words
        for regex, replacement in row.wordings:
            keys = [re.sub(regex, replacement, key) for key in keys]
        self._keys = keys
        own = self._pairs.own
        self._controls = {"ceiling": retrieval.ceiling(own, keys), "chance": retrieval.chance(own)}

    def run(self, state: TrainState) -> Scores:
        """Yields recalls in percent under the original's names, with intervals over images, and median ranks.

        `r_mean` is the best method's; `itm/…` are re-ranked, `itc/…` by contrast alone. `matching/loss` and
        `matching/accuracy` are of pairs and their hardest negatives; `matching/twins` is the share of the negatives, in
        percent, whose text is interchangeable with one of the image's own.
        `controls/ceiling/…` is what a perfect reader of facts can expect, who cannot tell interchangeable texts apart;
        `controls/chance/…` what random scores can; `controls/shuffled/…` what this state has where every image has the texts
        of another. Writes `predictions/NAME_STEP.jsonl`, a line a text.
        """
        pairs, row = self._pairs, self._context.config
        own, features = pairs.own, pairs.features(state)
        log.info("ranking %d images and %d texts of %s by contrast …", *own.shape, self._context.name)
        cosines = features.cosines()
        labelled = self._labelled(cosines)
        of_images = _best(cosines, row.k_test)
        of_texts = _best(cosines.T, row.k_test).T
        wanted = of_images | of_texts
        wanted[labelled.images, labelled.texts] = True
        scores, back = cosines, cosines.T
        found = {"itc": retrieval.summarise(cosines, own, images=pairs.image_ids)}
        if wanted.any():
            logits = pairs.match_logits(state, features, wanted)
            log.info("ranking those of %s that were matched …", self._context.name)
            if row.k_test:
                matched = np.full(own.shape, retrieval.FILL, np.float32)
                matched[wanted] = logits[:, 1] + cosines[wanted]
                scores = np.where(of_images, matched, retrieval.FILL)
                back = np.where(of_texts, matched, retrieval.FILL).T
                found = {"itm": retrieval.summarise(scores, own, back, pairs.image_ids), **found}
        summary = next(iter(found.values()))
        self._context.write(int(state.step), self._rows(scores, back, summary))
        yield from ((f"{self._context.name}/{name}", score) for name, score in self._scores(found))
        if len(labelled.images):
            order = np.flatnonzero(wanted)
            mine = logits[np.searchsorted(order, labelled.images * own.shape[1] + labelled.texts)]
            yield from ((f"{self._context.name}/matching/{n}", score) for n, score in self._matching(labelled, mine))
        shuffled = own[np.random.default_rng(SEED).permutation(len(own))]
        controls = self._controls | {"shuffled": retrieval.summarise(scores, shuffled, back).recalls()}
        for control, recalls in controls.items():
            for name, value in recalls.items():
                yield f"{self._context.name}/controls/{control}/{name}", Score(value, n=len(own))

    @staticmethod
    def _scores(found: dict[str, Summary]) -> Scores:
        by_method = {method: summary.scores() for method, summary in found.items()}
        yield "r_mean", next(iter(by_method.values()))["r_mean"]
        for method, scores in by_method.items():
            yield from ((f"{method}/{name}", score) for name, score in scores.items())

    def _labelled(self, cosines: Float[np.ndarray, "I T"]) -> Labelled:
        """The examples' pairs, and for each text and image of a batch of examples the hardest that is not its own."""
        pairs, count = self._pairs, self._context.config.negatives_among
        found: list[tuple[int, int, bool]] = []
        for start in range(0, len(pairs.words) if count else 0, max(count, 1)):
            texts = np.arange(start, min(start + count, len(pairs.words)))
            images = pairs.image_of_text[texts]
            block = np.ix_(images, texts)
            others = np.where(pairs.own[block], -np.inf, cosines[block])
            found += [(i, t, True) for i, t in zip(images, texts, strict=True)]
            for hardest, axis in ((others.argmax(axis=0), 0), (others.argmax(axis=1), 1)):
                any_other = np.isfinite(others.max(axis=axis))
                picked = (images[hardest], texts) if axis == 0 else (images, texts[hardest])
                found += [(i, t, False) for i, t, ok in zip(*picked, any_other, strict=True) if ok]
        images, texts, right = np.asarray(found, np.int64).reshape(-1, 3).T
        return Labelled(images, texts, right.astype(bool))

    def _matching(self, labelled: Labelled, logits: Float[np.ndarray, "P 2"]) -> Scores:
        right, images = labelled.right, labelled.images
        logits = logits.astype(np.float64)
        of_label = np.where(right, logits[:, 1], logits[:, 0])
        yield "loss", Score(float(np.mean(np.logaddexp(logits[:, 0], logits[:, 1]) - of_label)), n=len(right))
        yield "accuracy", Score.mean((logits[:, 1] > logits[:, 0]) == right, self._pairs.image_ids[images])
        said = {(int(i), key) for i, key in zip(self._pairs.image_of_text, self._keys, strict=True)}
        wrong = zip(images[~right].tolist(), labelled.texts[~right].tolist(), strict=True)
        twins = [(image, self._keys[text]) in said for image, text in wrong]
        if twins:
            yield "twins", Score(100 * float(np.mean(twins)), n=len(twins))

    def _rows(self, scores: np.ndarray, back: np.ndarray, summary: Summary) -> Iterator[Row]:
        """A line for each text: ranks count from 0."""
        pairs = self._pairs
        ids = [int(record["question_id"]) for record in self._context.source.all_records()]
        first_texts, first_images = _first(scores), _first(back)
        for text, (image, words) in enumerate(zip(pairs.image_of_text, pairs.words, strict=True)):
            yield {
                "id": ids[text],
                "image_id": int(pairs.image_ids[image]),
                "text": words,
                "text_rank": int(summary.of_images[image]),
                "image_rank": int(summary.of_texts[text]),
                "first_text": ids[first_texts[image]],
                "first_image": int(pairs.image_ids[first_images[text]]),
            }


def _best(scores: Float[np.ndarray, "R C"], count: int) -> Bool[np.ndarray, "R C"]:
    return retrieval.candidates(scores, count) if count else np.zeros(scores.shape, bool)


def _first(scores: Float[np.ndarray, "R C"]) -> Int[np.ndarray, " R"]:
    """The column of rank 0 of each row."""
    return scores.shape[1] - 1 - scores[:, ::-1].argmax(axis=1)


# --- in a report ---------------------------------------------------------------------------------------------------------

ROWS = {
    "itm": "re-ranked by matching",
    "itc": "by contrast alone",
    "controls/ceiling": "expected of who knows all facts, where several texts say the same",
    "controls/shuffled": "this model, where every image has the texts of another",
    "controls/chance": "expected of random scores",
}
"""Rows of the report's table -> what they are."""


def tables(name: str, config: Config, values: Values) -> Iterator[Table]:
    """Recalls of each evaluation of retrieval over the same split, beside its controls; and matching."""
    evals = config["evals"]
    for other, row in evals.items():
        if row.get("type") != "retrieval" or row.get("split") != evals[name].get("split"):
            continue
        for way, words in (("txt", "texts of an image"), ("img", "images of a text")):
            measures = [f"{way}_r{k}" for k in retrieval.CUTS]
            found = (
                (method, said, [cell(values, f"{other}/{method}/{m}") for m in measures])
                for method, said in ROWS.items()
            )
            rows = [(method.rpartition("/")[2], said, *cells) for method, said, cells in found if set(cells) != {"–"}]
            if rows:
                head = ("", "what it is", *(f"R@{k}" for k in retrieval.CUTS))
                yield Table(f"Retrieval ({other}): {words}", head, rows)
        if f"{other}/matching/loss" in values:
            yield Table(f"Matching ({other})", ("", "what it is", "value"), _matching_rows(other, values))


def _matching_rows(name: str, values: Values) -> Sequence[Sequence[str]]:
    always_no = "pairs and their hardest negatives told apart; 66.7 % for whoever says no to all"
    rows = [
        ("accuracy", always_no, cell(values, f"{name}/matching/accuracy")),
        ("loss", "cross-entropy of the same", f"{values[f'{name}/matching/loss']:.3g}"),
    ]
    if f"{name}/matching/twins" in values:
        words = "negatives whose text says what one of the image's own says"
        rows.append(("twins", words, cell(values, f"{name}/matching/twins")))
    return rows
