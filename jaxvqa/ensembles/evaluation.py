"""Answers that several runs give as an ensemble, as SYSU-HCP's eight networks do (docs/originals/sysu_hcp.md, section 6).

An ensemble is not a model or a task: nothing in it is trained, saved or sharded, so the loop knows nothing of it. Its config
names work directories. One after another, each run is opened as for any evaluation, and its evaluators predict logits instead
of answers: the memory is that of one run. `voting` makes answers of the logits of all, and the same evaluators score and write
these, as they do a single run's.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from jaxvqa import fields, logs, sharding
from jaxvqa.data.med_text import repaired
from jaxvqa.ensembles import voting
from jaxvqa.ensembles.masks import Masks, allowed_classes, modality_of, read_masks
from jaxvqa.errors import CheckpointError, ConfigError
from jaxvqa.evaluate import for_split, make_evaluators
from jaxvqa.evaluators.answers import AnswersEvaluator
from jaxvqa.logs import log
from jaxvqa.metrics.score import Score, Scores, as_row, share
from jaxvqa.report.numbers import percent, points
from jaxvqa.report.tables import Table, Values, cell
from jaxvqa.runs import Run
from jaxvqa.tasks.predictions import Prediction
from jaxvqa.types import Config

SAME = ("examples", "images", "question_types", "limit")
"""Fields of `config.data` that say which questions are answered: the members' have to be the same."""

WHERE = ("dir", "image_splits", "cache_mib", "held_out", "train_split")
"""Fields that say how they are read: the report reads them as the first member does."""

_SHOWN = 3


@dataclass(frozen=True)
class Member:
    """A run that votes.

    Attributes:
      name: what it is called in metrics.
      run: its work directory; its config has the ensemble's data and evaluations.
    """

    name: str
    run: Run

    @property
    def answers(self) -> Sequence[str]:
        """Its classes."""
        return self.run.task.assets["answers"]


def evaluate(config: Config, workdir: Path, split: str = "", command: str = "") -> dict[str, float]:
    """Evaluates the members of `config.members` together: on all splits that the first evaluates, or just on `split`.

    Returns:
      All values by name: those of the evaluators and of `_beside_members`. They are a row of WORKDIR/metrics.jsonl too.

    Raises:
      ConfigError: members that cannot answer together, or options that are not known; all of it in one message.
    """
    asked, config = config, fields.final(config)
    mesh = sharding.make_mesh(config.mesh)
    members = _open_members(config, mesh)
    first, file = members[0], config.data.mask_file
    masks = read_masks(file, len(first.answers)) if file else {}
    asked = asked.copy_and_resolve_references()
    with asked.unlocked():
        asked.evals, asked.main_eval = first.run.final.evals, first.run.final.main_eval
        data = first.run.final.data
        asked.data.update({field: data[field] for field in (*SAME, *WHERE) if field in data})
    Run.start(workdir, asked, command)
    results: dict[str, float] = {}
    with jax.set_mesh(mesh):
        logits = []
        with logs.Progress("member", len(members)) as progress:
            for member in progress.each(members):
                log.info("%s predicts …", member.run.folder)
                state, evals = member.run.restore(), _evaluators(member, first, split, workdir)
                logits.append({name: evaluator.outputs(state)["logits"] for name, evaluator in evals.items()})
                del state, evals  # before the next one's is restored
        for name, evaluator in _evaluators(first, first, split, workdir).items():
            results |= as_row(_vote(evaluator, np.stack([found[name] for found in logits]), members, masks, config))
    writer = logs.MetricWriter(workdir, 0)
    writer.write(0, results)
    writer.close()
    return results


# --- members -----------------------------------------------------------------------------------------------------------


def _open_members(config: Config, mesh: Mesh) -> list[Member]:
    folders = [folder for folder in config.members.split(",") if folder]
    names = [Path(folder).name for folder in folders]
    if len(set(names)) < len(names):
        names = [folder.strip("/").replace("/", "-") for folder in folders]
    faults = []
    if config.vote == "mean_probabilities" and config.reading == "as_written":
        faults.append(
            "config.reading = 'as_written' is how the original votes, by majority; it has no mean_probabilities"
        )
    if not folders:
        faults.append(
            "config.members is empty: give the work directories of trained or converted runs, joined by commas"
        )
    faults += [f"{folder}: given twice" for folder in dict.fromkeys(folders) if folders.count(folder) > 1]
    members: list[Member] = []
    for folder, name in zip(folders, names, strict=True):
        try:
            members.append(Member(name, _open(folder, config, mesh)))
        except (CheckpointError, ConfigError) as error:
            faults.append(str(error))
        else:
            faults += _differences(members[-1], members[0])
    if faults:
        raise ConfigError("These runs cannot be an ensemble:\n  " + "\n  ".join(faults))
    return members


def _open(folder: str, ensemble: Config, mesh: Mesh) -> Run:
    config = Run.open(folder).config
    with config.unlocked():
        config.data.update({field: value for field, value in ensemble.data.items() if value})
        given = {"predict": "logits_flip" if ensemble.flip else "logits", "repair_names": ensemble.repair_names}
        if ensemble.batch_size:
            given["batch_size"] = ensemble.batch_size
        main = config.evals[config.main_eval or min(config.evals)]
        # By their splits, each once: where several evaluations are of one, the main one's row stays.
        rows = [row.to_dict() | given for row in (*config.evals.values(), main)]
        config.evals = Config({row["split"]: row for row in rows})
        config.main_eval = main.split
    run = Run(folder, config, mesh)
    if "logits" not in run.task.predictions:
        raise ConfigError(f"{folder}: its task, {config.task}, gives no logits to vote with")
    return run


def _differences(member: Member, first: Member) -> list[str]:
    here, there = member.run.folder, first.run.folder
    faults = [
        f"{here}: config.data.{field} is {theirs!r}, that of {there} is {ours!r}; give --config.data.{field}"
        for field in SAME
        if (theirs := member.run.config.data.get(field)) != (ours := first.run.config.data.get(field))
    ]
    if other := _other_classes(first.answers, member.answers):
        faults.append(f"{here}: its classes are not those of {there}: {other}")
    return faults


def _other_classes(first: Sequence[str], other: Sequence[str]) -> str:
    """What differs between two lists of answers, if anything; names that were garbled are those that were not."""
    pairs = enumerate(itertools.zip_longest(first, other))
    places = [i for i, (a, b) in pairs if a is None or b is None or repaired(a) != repaired(b)]
    if not places:
        return ""
    lines = [f"{i} is {_at(other, i)}, not {_at(first, i)}" for i in places[:_SHOWN]]
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    order = " (the same ones in another order)" if sorted(first) == sorted(other) else ""
    return f"{len(other)} and {len(first)}{order}; {', '.join(lines)}{more}"


def _at(answers: Sequence[str], place: int) -> str:
    return repr(answers[place]) if place < len(answers) else "none"


def _evaluators(member: Member, first: Member, split: str, workdir: Path) -> dict[str, Any]:
    """The evaluators of the first member, for the answers of another."""
    config = member.run.final.copy_and_resolve_references()
    with config.unlocked():
        config.evals, config.main_eval = first.run.final.evals, first.run.final.main_eval
    return make_evaluators(for_split(config, split), member.run.task, member.run.data, member.run.mesh, workdir)


# --- votes -------------------------------------------------------------------------------------------------------------


def _vote(
    evaluator: Any,
    logits: Float[np.ndarray, "M N A"],
    members: Sequence[Member],
    masks: Masks,
    config: Config,
) -> Scores:
    """Scores and writes the answers of all, and yields how they compare with each member's own."""
    places = [modality_of(question["question"], masks) for question in evaluator.source.all_records()]
    allowed = allowed_classes(masks, logits.shape[-1])[places]
    own = voting.READINGS[config.reading](logits, np.broadcast_to(allowed, logits.shape))
    given = voting.vote(own) if config.vote == "majority" else voting.mean_vote(logits, allowed)
    choices = evaluator.predict.choices
    alone = [_predictions(rows[None], of, choices) for rows, of in zip(logits, own, strict=True)]
    together = [
        replace(prediction, votes=tuple(vote.answer for vote in votes))
        for prediction, *votes in zip(_predictions(logits, given, choices), *alone, strict=True)
    ]
    yield from evaluator.score(0, together)
    beside = beside_members(evaluator, together, {m.name: own for m, own in zip(members, alone, strict=True)})
    yield from ((f"{evaluator.name}/{name}", score) for name, score in beside)


def _predictions(
    logits: Float[np.ndarray, "M N A"], classes: Int[np.ndarray, " N"], choices: Sequence[str]
) -> list[Prediction]:
    """What evaluators score: the answer of each class, -1 for none, with its mean probability over these models."""
    probabilities = voting.mean_probabilities(logits)
    return [
        Prediction(() if i < 0 else ((choices[i], float(row[i])),))
        for i, row in zip(classes, probabilities, strict=True)
    ]


def beside_members(
    evaluator: AnswersEvaluator, together: Sequence[Prediction], alone: Mapping[str, Sequence[Prediction]]
) -> Scores:
    """How the ensemble's answers compare with those of each member, by its name; in percent:

    `agreement`: the members' votes for the answer that was given. `members/MEMBER/accuracy` and, where there is one,
    `…/bleu`: each member's own. `over_best_member`, with its paired interval: how much higher the accuracy is than that of the
    member which is best on this very split.
    """
    if agreed := [vote == p.answer for p in together if not p.unanswered for vote in p.votes]:
        yield "agreement", Score(share(agreed), n=len(agreed))
    ours, *theirs = ([row for row in evaluator.rows(of) if "accuracy" in row] for of in (together, *alone.values()))
    if not ours:
        return
    for name, rows in zip(alone, theirs, strict=True):
        for measure in ("accuracy", "bleu"):
            if measure in rows[0]:
                yield f"members/{name}/{measure}", Score(share([row[measure] for row in rows]), n=len(rows))
    whole, *parts = ([row["accuracy"] for row in rows] for rows in (ours, *theirs))
    gains = np.subtract(whole, max(parts, key=np.mean))
    yield "over_best_member", Score.mean(gains, [row["image_id"] for row in ours], paired=True)


def member_table(name: str, values: Values) -> Iterator[Table]:
    """For the report: an ensemble beside each of its members alone, the best first."""
    over = f"{name}/over_best_member"
    if over not in values:
        return
    prefix, measures = f"{name}/members/", [m for m in ("accuracy", "bleu") if f"{name}/{m}" in values]
    members = {key.removeprefix(prefix).rpartition("/")[0] for key in values if key.startswith(prefix)}
    low, high = (points(values[f"{over}/{end}"]) for end in ("low", "high"))
    gain = f"{points(values[over])} points over the best ({low} to {high}, paired)"
    rows = [("ensemble", gain, *(cell(values, f"{name}/{m}") for m in measures))]
    for member in sorted(members, key=lambda member: -values[f"{prefix}{member}/accuracy"]):
        rows.append((member, "", *(percent(values[f"{prefix}{member}/{m}"]) for m in measures)))
    agreement = values.get(f"{name}/agreement")
    words = "" if agreement is None else f"{percent(agreement)} of all votes are for the answer"
    yield Table("Beside its members", ("", words, *measures), rows)
