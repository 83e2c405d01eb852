"""Converts checkpoints of the original systems to work directories and back; docs/checkpoints.md has a command for each.

    python -m jaxvqa.convert --system=rwsan --from=epoch16.pkl --to=runs/rwsan --answers=answer_dict.json --questions Q.json …
    python -m jaxvqa.convert --system=rwsan --from=runs/rwsan --to=epoch16.pkl
    python -m jaxvqa.convert --system=backbone --from=resnet34.pth --to=runs/resnet34

What a checkpoint of the original does not hold comes from elsewhere: options that leave no trace, such as dropout, the number
of heads or SYSU-HCP's backbone, from --config; the answers from --answers (the original's `answer_dict.json`, a JSON list, or
one of its maps); the vocabulary from --vocabulary or the question files, in the order in which the original read them (train,
val, test, Visual Genome), or from --tokenizer; or all of them from the built data set of the config. Their sizes have to fit
the checkpoint.

CMSA's pre-training (`mtpt`) is three files of one epoch, `backbone_…`, `a_decoder_…` (b for brain, c for chest) and `cmsa_…`:
the first is named, the others lie beside it. The systems `backbone`, `maml`, `autoencoder`, `sysu_hcp_tower`, `gpt2`, `bert`
and `clip_vision` are parts of a model: the folder serves `config.init_from`.

BLIP's checkpoints are files of the original, or folders as `save_pretrained` of Hugging Face's library writes them: what is
read says by its keys which; a `--to` without a file's ending is written as such a folder.
"""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from jaxvqa import checkpoints, configs, logs, models
from jaxvqa.convert import assets, pretrained, recognise, workdir
from jaxvqa.convert.adam import Optimizer
from jaxvqa.convert.files import TORCH_SUFFIXES, TorchFile
from jaxvqa.convert.original import Checkpoint
from jaxvqa.convert.systems import SYSTEMS
from jaxvqa.convert.towers import clip, gpt2
from jaxvqa.data import tokenizers
from jaxvqa.errors import CheckpointError, ConfigError, run_command
from jaxvqa.inputs import expand_home, user_path
from jaxvqa.logs import log


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""

    def command() -> None:
        arguments = _parse(argv)
        logs.setup()
        log.info("converting %s to %s …", arguments.source, arguments.target)
        with logs.Progress("converting", 3, words="reading") as progress:
            lines = (_to_folder if arguments.to_folder else _to_file)(arguments, progress)
        print("\n".join(lines))  # not beside a bar, which would take it to its own stream

    return run_command("jaxvqa.convert", command)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jaxvqa.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--system", required=True, choices=SYSTEMS)
    parser.add_argument("--from", required=True, dest="source", type=user_path, metavar="FILE|DIR")
    parser.add_argument("--to", required=True, dest="target", type=user_path, metavar="DIR|FILE")
    parser.add_argument("--config", help="config file, with `:variant`; the published one by default")
    parser.add_argument("--answers", type=user_path, help="the original's answer_dict.json, or a JSON list of answers")
    parser.add_argument(
        "--tokenizer",
        default="",
        type=expand_home,
        help="Flamingo, BLIP: a folder of GPT-2's or BERT's tokenizer, or a hub's name; gpt2, bert: to cut a padded vocabulary",
    )
    parser.add_argument(
        "--weights", default="", help="the file's entry to take, where it holds several models' weights"
    )
    parser.add_argument("--prefix", default="", help="what stands before every key of the file, to be taken off")
    parser.add_argument("--activation", choices=clip.ACTIVATIONS, help="clip_vision: of a file that does not tell it")
    parser.add_argument(
        "--lm_head",
        choices=gpt2.LM_HEADS,
        help="gpt2: what the output's table is, where the file has another one there than for the words that it reads",
    )
    parser.add_argument(
        "--masks", type=user_path, help="SYSU-HCP's modelmask.json: the classes that each modality allows"
    )
    words = parser.add_mutually_exclusive_group()
    words.add_argument(
        "--vocabulary", type=user_path, help="a JSON list of all words, or of the original's word -> number"
    )
    words.add_argument("--questions", type=user_path, nargs="+", help="VQA v2 question files, in the original's order")
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = parser.parse_args(given)
    kept = [
        w for i, w in enumerate(given) if not (w == "--to" or w.startswith("--to=") or given[max(i - 1, 0)] == "--to")
    ]
    arguments.command = shlex.join(["python", "-m", "jaxvqa.convert", *kept])
    source, system = arguments.source, SYSTEMS[arguments.system]
    folders = system.folder or system.original.read is pretrained.read  # whose checkpoints may be folders
    arguments.to_folder = not source.is_dir() or bool(folders and not (source / checkpoints.FOLDER).is_dir())
    return arguments


_OF_SYSTEMS = ("tokenizer", "activation", "lm_head", "answers", "masks", "vocabulary", "questions")
_OF_READING = ("config", "weights", "prefix")


def _check_options(arguments: argparse.Namespace, uses: Sequence[str], what: str, *, all_of_them: bool = False) -> None:
    """Refuses options that nothing would read.

    Raises:
      ConfigError: names all of them, and those that `what` has a use for.
    """
    options = (*_OF_SYSTEMS, *(_OF_READING if all_of_them else ()))
    faults = [f"--{name} is not for {what}" for name in options if getattr(arguments, name) and name not in uses]
    if faults:
        takes = f", which takes {' and '.join(f'--{name}' for name in uses)}" if uses else ""
        raise ConfigError(f"{'; '.join(faults)}{takes}.")


def _to_folder(arguments: argparse.Namespace, progress: logs.Progress) -> list[str]:
    system = SYSTEMS[arguments.system]
    config = configs.load(arguments.config or system.config)
    _check_options(arguments, system.uses, repr(arguments.system))
    original = system.folder.original if system.folder and arguments.source.exists() else system.original
    content = original.open(arguments.source, arguments.weights, arguments.prefix)
    progress.update(1, "by the table", line=True)
    if isinstance(content, TorchFile):
        recognise.check(content, arguments.system, config.model.to_dict())
        if not (system.folder and system.folder.holds(content.tensors)):
            original = system.original
    checkpoint = original.load(content, _given(arguments, config.model.to_dict(), content))
    said = system.settings(checkpoint) if system.part is None else {}
    # Fields that the config leaves to the model's defaults are set where the checkpoint differs from them.
    defaults = {f.name: f.default for f in dataclasses.fields(models.model_class(config.model.name))}
    own = {k: v for k, v in said.get("model", {}).items() if k in defaults and k not in system.counts.values()}
    with config.unlocked():
        config.model.update({k: v for k, v in own.items() if k in config.model or v != defaults[k]})
        config.data.update(said.get("data", {}))
        most = said.get("most", {}).items()
        config.data.update({k: min(config.data[k], limit) for k, limit in most if k in config.data})
        config.optim.update(said.get("optim", {}))
        if "loss" in said:
            config.loss.update(said["loss"])
        if system.part is not None:  # tables over all parameters of a model fit none of its parts
            config.optim.update(dict.fromkeys(("decay", "coupled_decay", "lr_scale", "freeze"), ()))
    made = assets.make(arguments, system, config, checkpoint) if system.part is None else {}
    variables = dict(checkpoint.variables)
    for name in reversed((system.part or "").split("/") if system.part else []):
        variables = {collection: {name: tree} for collection, tree in variables.items()}
    notes = {"file": arguments.source.name, "system": arguments.system, **checkpoint.entries}
    progress.update(2, "writing", line=True)
    step = workdir.write(arguments.target, config, variables, checkpoint.adam, made, notes, arguments.command)
    lines = [str(checkpoint.report), *(f"{arguments.source}: {note}" for note in checkpoint.notes)]
    if system.part is not None:
        return [*lines, f"{arguments.target}: a part of a model, for config.init_from"]
    optimiser = "with the state of its optimiser" if checkpoint.adam else "without an optimiser's state"
    words = {"vocabulary": "words", "class_names": "classes"}
    counts = ", ".join(f"{len(made[name])} {words.get(name, name)}" for name in system.counts)
    return [*lines, f"{arguments.target}: step {step}, {optimiser}, {counts}"]


def _given(arguments: argparse.Namespace, model: dict[str, Any], content: Any) -> dict[str, Any]:
    """What is given of a module: of a part its options, else the config without the sizes that yield to the checkpoint's."""
    system = SYSTEMS[arguments.system]
    if system.original.module is not models.build:
        fields = {name: getattr(arguments, name) for name in ("activation", "lm_head") if getattr(arguments, name)}
        return fields | ({"vocab_size": tokenizers.size(arguments.tokenizer)} if arguments.tokenizer else {})
    if system.original.decides:
        return model
    inferred = system.original.infer(content, model)
    return {name: value for name, value in model.items() if name not in inferred or name in ("name", "task")}


def _to_file(arguments: argparse.Namespace, progress: logs.Progress) -> list[str]:
    system = SYSTEMS[arguments.system]
    _check_options(arguments, (), f"writing {arguments.target}", all_of_them=True)
    if system.part is not None:
        raise CheckpointError(f"{arguments.system!r} is a part of a model, which is only read.")
    contents = workdir.read(arguments.source)
    progress.update(1, "by the table, and writing", line=True)
    model = contents.config.model.to_dict()
    if model["name"] != (system.model or arguments.system):
        raise CheckpointError(f"{arguments.source} holds a model {model['name']!r}, not {arguments.system!r}.")
    noted = contents.meta.get("converted") or {}
    steps = contents.adam.step if contents.adam else 0
    seen = noted.get("batches") or 0
    entries = {**noted, "batches": seen if isinstance(seen, dict) else max(seen, steps)}
    entries |= system.of_run(contents, noted)
    if system.folder and arguments.target.suffix not in (".safetensors", *TORCH_SUFFIXES):
        system.folder.save(arguments.target, contents)
        return [f"{arguments.target}: written, a folder as `save_pretrained` writes it"]
    # What only training knows, such as the history of a loss, has no place in a file.
    variables = {name: contents.collections.get(name, {}) for name in system.collections} | {"params": contents.params}
    config = {**model, **system.written}
    written = system.original.save(arguments.target, Checkpoint(variables, config, entries, contents.adam))
    files = [f"{arguments.target.parent}: {', '.join(path.name for path in written)}"] if len(written) > 1 else []
    kept = contents.adam and any(isinstance(entry, Optimizer) for entry in system.original.entries.values())
    optimiser = "with the state of its optimiser" if kept else "without an optimiser's state"
    return [*files, f"{arguments.target}: written, {optimiser}"]


if __name__ == "__main__":
    sys.exit(main())
