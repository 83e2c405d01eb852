"""Converts checkpoints of the original systems to work directories and back.

    python -m jaxvqa.convert --system=rwsan --from=epoch16.pkl --to=runs/rwsan --answers=answer_dict.json --questions Q.json …
    python -m jaxvqa.convert --system=rwsan --from=runs/rwsan --to=epoch16.pkl

What a checkpoint of the original does not hold comes from elsewhere: heads, passes and dropout from --config; the answers
from the original's `data/answer_dict.json`; the vocabulary from the question files, in the order in which the original read
them (train, val, test, Visual Genome), or from the built data set of the config. Their sizes have to fit the checkpoint.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from jaxvqa import configs
from jaxvqa.convert import workdir
from jaxvqa.data import sources
from jaxvqa.data.answers import AnswerList
from jaxvqa.data.text import Vocabulary
from jaxvqa.errors import CheckpointError, DataError, UserError
from jaxvqa.tasks.answer_classification import AnswerClassification

SYSTEMS = {"rwsan": "jaxvqa.convert.rwsan"}
"""System -> the module with its `load` and `save`."""

CONFIGS = {"rwsan": "configs/rwsan.py:vqa_v2"}
"""System -> the config of its published checkpoints."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = _parse(argv)
    try:
        (_to_folder if arguments.to_folder else _to_file)(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jaxvqa.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--system", required=True, choices=SYSTEMS)
    parser.add_argument("--from", required=True, dest="source", type=Path, metavar="FILE|DIR")
    parser.add_argument("--to", required=True, dest="target", type=Path, metavar="DIR|FILE")
    parser.add_argument("--config", help="config file, with `:variant`; the published one by default")
    parser.add_argument("--answers", type=Path, help="the original's answer_dict.json, or a JSON list of answers")
    words = parser.add_mutually_exclusive_group()
    words.add_argument("--vocabulary", type=Path, help="a JSON list of all words, or of the original's word -> number")
    words.add_argument("--questions", type=Path, nargs="+", help="VQA v2 question files, in the original's order")
    arguments = parser.parse_args(argv)
    arguments.to_folder = not arguments.source.is_dir()
    return arguments


def _to_folder(arguments: argparse.Namespace) -> None:
    system = importlib.import_module(SYSTEMS[arguments.system])
    config = configs.load(arguments.config or CONFIGS[arguments.system])
    # Sizes of the config yield to the checkpoint's own, so that one config serves checkpoints of any size.
    unsized = {name: value for name, value in config.model.items() if name not in system.SIZES}
    converted = system.load(arguments.source, unsized)
    with config.unlocked():
        config.model.update({k: v for k, v in converted.sizes.items() if k in config.model})
    assets = _assets(arguments, config, converted.sizes)
    notes = {"file": arguments.source.name, "lr_base": converted.lr_base}
    step = workdir.write(arguments.target, config, converted.params, converted.adam, assets, notes)
    print(converted.report)
    optimiser = "with the state of Adam" if converted.adam else "without an optimiser's state"
    print(
        f"{arguments.target}: step {step}, {optimiser}, {len(assets['vocabulary'])} words, {len(assets['answers'])} answers"
    )


def _to_file(arguments: argparse.Namespace) -> None:
    system = importlib.import_module(SYSTEMS[arguments.system])
    contents = workdir.read(arguments.source)
    name = contents.config.model.name
    if name != arguments.system:
        raise CheckpointError(f"{arguments.source} holds a model {name!r}, not {arguments.system!r}.")
    lr_base = (contents.meta.get("converted") or {}).get("lr_base") or contents.config.optim.lr
    system.save(arguments.target, contents.params, contents.adam, lr_base)
    optimiser = "with the state of Adam" if contents.adam else "without an optimiser's state"
    print(f"{arguments.target}: written, {optimiser}")


def _assets(arguments: argparse.Namespace, config: ml_collections.ConfigDict, sizes: dict[str, int]) -> dict[str, Any]:
    """Vocabulary and answers, from the files given or the built data set, checked against the checkpoint's sizes."""
    assets: dict[str, Any] = {"region_width": sizes["region_width"]}
    if arguments.answers:
        assets["answers"] = list(AnswerList.from_file(arguments.answers).answers)
    if arguments.vocabulary:
        assets["vocabulary"] = list(_read_vocabulary(arguments.vocabulary).tokens)
    elif arguments.questions:
        assets["vocabulary"] = list(Vocabulary.build(_read_questions(arguments.questions)).tokens)
    if not {"answers", "vocabulary"} <= assets.keys():
        try:
            made = AnswerClassification.make_assets(config, lambda split: sources.open_vqa(config.data, split))
        except DataError as error:
            raise DataError(
                f"{error}\nOr give what the checkpoint does not hold as files: --answers (the original's answer_dict.json), "
                "and --questions (the question files) or --vocabulary."
            ) from error
        assets = made | assets
    faults = [
        f"the checkpoint has {sizes[size]} {what}, {source} gives {len(assets[what])}"
        for what, size, source in (
            ("vocabulary", "vocab_size", arguments.vocabulary or arguments.questions or config.data.questions),
            ("answers", "num_answers", arguments.answers or config.data.questions),
        )
        if len(assets[what]) != sizes[size]
    ]
    if faults:
        raise CheckpointError(
            "Words and answers are numbered by their place in lists, and these are not the checkpoint's lists: "
            + "; ".join(faults)
            + ". The vocabulary depends on which question files were read, and in which order."
        )
    return assets


def _read_vocabulary(path: Path) -> Vocabulary:
    content = _read_json(path)
    if isinstance(content, dict):
        content = sorted(content, key=content.__getitem__)
    if not isinstance(content, list) or not all(isinstance(word, str) for word in content):
        raise DataError(f"{path} is no vocabulary: expected a JSON list of words, or a map from word to number.")
    return Vocabulary(tuple(content))


def _read_questions(paths: Sequence[Path]) -> list[str]:
    questions = []
    for path in paths:
        try:
            questions += [entry["question"] for entry in _read_json(path)["questions"]]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path} is no VQA v2 question file: expected `questions`, each with `question`."
            ) from error
    return questions


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is no JSON file: {error}.") from error


if __name__ == "__main__":
    sys.exit(main())
