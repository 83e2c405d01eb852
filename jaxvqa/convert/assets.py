"""What a work directory needs besides the weights: vocabulary and answers, checked against the checkpoint's sizes."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from jaxvqa.convert.original import Checkpoint, System
from jaxvqa.data.data_set import DataSet
from jaxvqa.errors import CheckpointError, DataError
from jaxvqa.inputs import read_json
from jaxvqa.tasks import task_class
from jaxvqa.tasks.image_classification import mask_assets


def make(
    arguments: argparse.Namespace, system: System, config: ml_collections.ConfigDict, checkpoint: Checkpoint
) -> dict[str, Any]:
    """Makes them from the files given or the built data set of the config."""
    if system.assets:
        return system.assets(arguments, config, checkpoint)
    model, assets = checkpoint.config, dict(system.settings(checkpoint).get("assets", {}))
    if arguments.answers:
        assets["answers"] = list(system.answers.from_file(arguments.answers).answers)
    if arguments.masks:
        assets["masks"] = mask_assets(arguments.masks, model["num_answers"])
    if arguments.vocabulary:
        assets["vocabulary"] = list(system.vocabulary(_read_vocabulary(arguments.vocabulary)).tokens)
    elif arguments.questions:
        assets["vocabulary"] = list(system.vocabulary.build(_read_questions(arguments.questions)).tokens)
    if not system.answers or not system.counts.keys() <= assets.keys():
        try:
            made = task_class(config.task).make_assets(config, DataSet(config.data))
        except DataError as error:
            if not system.answers:
                raise
            raise DataError(
                f"{error}\nOr give what the checkpoint does not hold as files: --answers (the original's answer_dict.json), "
                "and --questions (the question files) or --vocabulary."
            ) from error
        assets = made | assets
    given = {"vocabulary": arguments.vocabulary or arguments.questions, "answers": arguments.answers}
    faults = [
        f"the checkpoint has {model[size]} {what}, {given.get(what) or config.data.examples} gives {len(assets[what])}"
        for what, size in system.counts.items()
        if len(assets[what]) != model[size]
    ]
    if faults:
        raise CheckpointError(
            "Words, answers and classes are numbered by their place in lists, and these are not the checkpoint's lists: "
            + "; ".join(faults)
            + ". The vocabulary depends on which question files were read, and in which order."
        )
    return assets


def _read_vocabulary(path: Path) -> tuple[str, ...]:
    content = read_json(path, "a vocabulary: a list of words, or a map from word to number", ([str], {str: int}))
    return tuple(sorted(content, key=content.__getitem__) if isinstance(content, dict) else content)


def _read_questions(paths: Sequence[Path]) -> list[str]:
    form = {"questions": [{"question": str}]}
    files = [read_json(path, "a VQA v2 question file", form) for path in paths]
    return [entry["question"] for file in files for entry in file["questions"]]
