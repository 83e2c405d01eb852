"""Converts checkpoints of the original systems to work directories and back.

    python -m jaxvqa.convert --system=rwsan --from=epoch16.pkl --to=runs/rwsan --answers=answer_dict.json --questions Q.json …
    python -m jaxvqa.convert --system=cmsa --from=model_epoch79.pth --to=runs/cmsa
    python -m jaxvqa.convert --system=rwsan --from=runs/rwsan --to=epoch16.pkl
    python -m jaxvqa.convert --system=backbone --from=resnet34.pth --to=runs/resnet34
    python -m jaxvqa.convert --system=mtpt --from=models/backbone_epoch-49.pth --to=runs/abdomen
    python -m jaxvqa.convert --system=flamingo --from=epoch=36.ckpt --to=runs/flamingo --tokeniser=gpt2 --answers=classes.json
    python -m jaxvqa.convert --system=gpt2 --from=DIR --to=runs/gpt2
    python -m jaxvqa.convert --system=sysu_hcp --from=vgg16_epoch-49.pth --to=runs/vgg16 --answers=disease2id.json \\
        --config=configs/sysu_hcp.py:vqa_med_2021,vgg16

What a checkpoint of the original does not hold comes from elsewhere: options that leave no trace, such as dropout or the
number of heads, from --config; the answers from --answers (the original's `answer_dict.json`, a JSON list, or one of its
maps); the vocabulary from --vocabulary or the question files, in the order in which the original read them (train, val,
test, Visual Genome); or both from the built data set of the config. Their sizes have to fit the checkpoint.

CMSA's pre-training (`mtpt`) is three files of one epoch, `backbone_…`, `a_decoder_…` (b for brain, c for chest) and `cmsa_…`;
the first is named, the others lie beside it. Brain and chest need --config=configs/mtpt.py:brain,real (or chest,real).
Questions and names of classes come from the built data set of the config.

A file of SYSU-HCP does not tell which network it holds: --config does. With --masks (the original's `modelmask.json`) its
predictions may be masked by the modality that a question names. `sysu_hcp_tower` reads a network with any number of classes,
such as torchvision's, for `config.init_from.model` of configs/sysu_hcp.py.

A file of MLMI's Flamingo needs --tokeniser (GPT-2's or BERT's folder) and, if it has a class head, --answers (the classes in
their order). One of 2022 tells its sizes; for a later one --config does. The systems `gpt2`, `bert` and `clip_vision` read a
language or image tower from a folder as `save_pretrained` writes it, from a file, or by a hub's name, for `config.init_from`
of configs/flamingo.py.

The systems `backbone` (CMSA's pre-trained branches, or torchvision's residual networks), `maml` and `autoencoder` (what
MEVF published) are parts of a model: the folder serves `config.init_from` of configs/cmsa.py.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_collections

from jaxvqa import checkpoints, configs, logs, models
from jaxvqa.convert import cmsa, files, flamingo, mevf, mtpt, recognise, rwsan, sysu_hcp, towers, workdir
from jaxvqa.convert.adam import AdamState
from jaxvqa.data import tokenisers
from jaxvqa.data.answers import AnswerList
from jaxvqa.data.data_set import DataSet
from jaxvqa.data.med_text import DiseaseList
from jaxvqa.data.rad_text import RadAnswerList, RadVocabulary
from jaxvqa.data.text import Vocabulary
from jaxvqa.data.tokenisers import Tokeniser
from jaxvqa.errors import CheckpointError, ConfigError, DataError, run_command
from jaxvqa.inputs import expand_home, read_json, user_path
from jaxvqa.logs import log
from jaxvqa.tasks import task_class
from jaxvqa.tasks.image_classification import mask_assets


@dataclass(frozen=True)
class Loaded:
    """A checkpoint as every system's `load` gives it.

    Attributes:
      variables: `params` and the other collections.
      model: fields of the config's model that the checkpoint tells.
      data: fields of `config.data` that it tells.
      optim: fields of `config.optim` that it tells.
      assets: entries of the assets that it tells.
      adam: the optimiser's state, or None.
      notes: what to keep beside the config.
      report: what was used.
      told: what a user should know of how it was read, besides what the file's own reading tells.
    """

    variables: Mapping[str, Any]
    report: Any
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    optim: Mapping[str, Any] = field(default_factory=dict)
    assets: Mapping[str, Any] = field(default_factory=dict)
    adam: AdamState | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    told: tuple[str, ...] = ()


def _read_file(path: Path, options: argparse.Namespace) -> files.TorchFile:
    return files.read(path, weights=options.weights, prefix=options.prefix)


@dataclass(frozen=True)
class System:
    """How a system's checkpoints are read and written.

    Attributes:
      config: the config of its published checkpoints.
      load: (what `read` gave, the config's model without sizes) -> Loaded.
      save: (file, contents of a work directory); None for parts of a model.
      sizes: fields of the model that a checkpoint tells, which yield to it.
      vocabulary: the class of its vocabulary, None for one that reads no questions.
      answers: the class of its answer list; None for one without.
      counts: entry of the assets -> field of the model with its length, which is in the data and not in the config.
      optimiser: whether its files have a place for the optimiser's state.
      folders: whether its checkpoints may be folders, or a hub's names.
      read: reads its file or files, by the arguments.
      options: those of the arguments `activation`, `lm_head` and `tokeniser` that it has a use for.
      assets: makes the assets from (arguments, config, Loaded), where files are not enough said of by the fields above.
    """

    config: str
    load: Callable[[Any, dict[str, Any]], Loaded]
    save: Callable[[Path, workdir.Contents], None] | None = None
    sizes: tuple[str, ...] = ()
    vocabulary: Any = None
    answers: type[AnswerList] | None = None
    counts: Mapping[str, str] = field(default_factory=lambda: {"vocabulary": "vocab_size", "answers": "num_answers"})
    optimiser: bool = True
    folders: bool = False
    read: Callable[[Path, argparse.Namespace], Any] = _read_file
    options: tuple[str, ...] = ()
    assets: Callable[[argparse.Namespace, ml_collections.ConfigDict, Loaded], dict[str, Any]] | None = None


def _load_rwsan(path: files.Source, model: dict[str, Any]) -> Loaded:
    found = rwsan.load(path, model)
    assets = {"region_width": found.sizes["region_width"]}
    notes = {"lr_base": found.lr_base}
    return Loaded({"params": found.params}, found.report, found.sizes, assets=assets, adam=found.adam, notes=notes)


def _save_rwsan(path: Path, contents: workdir.Contents) -> None:
    lr_base = (contents.meta.get("converted") or {}).get("lr_base") or contents.config.optim.lr
    rwsan.save(path, contents.params, contents.adam, lr_base)


def _load_cmsa(path: files.Source, model: dict[str, Any]) -> Loaded:
    found = cmsa.load(path, model)
    return _loaded(found, {"image_size": found.sizes["image_size"][0]})


def _loaded(found: cmsa.Converted, data: dict[str, Any]) -> Loaded:
    """What CMSA's layout of a file tells of any of its models."""
    optim = {"lr_scale": cmsa.LR_SCALE} if found.sizes.get("self_attention") else {}
    notes = {"epoch": found.epoch, "batches": found.batches}
    return Loaded(found.variables, found.report, found.sizes, data, optim, adam=found.adamax, notes=notes)


def _save_cmsa(path: Path, contents: workdir.Contents) -> None:
    """Writes CMSA, BAN or SAN. The file has no place for the history of `config.loss.dynamic`."""
    notes = contents.meta.get("converted") or {}
    variables = {"params": contents.params, "batch_stats": contents.collections.get("batch_stats", {})}
    batches = max(notes.get("batches") or 0, contents.adam.step if contents.adam else 0)
    table = {"cmsa": cmsa.KEYS, **mevf.KEYS}[contents.config.model.name]
    cmsa.save(path, variables, contents.adam, notes.get("epoch") or 0, batches, table)


def _load_mevf(path: files.Source, model: dict[str, Any]) -> Loaded:
    found = mevf.load(path, model)
    data = {"image_size": found.sizes["image"][0], "autoencoder_size": found.sizes["image_128"][0]}
    if found.sizes.get("image_width") == 1024:
        del found.sizes["image_width"]  # the model's own, which configs leave out
    return _loaded(found, data)


def _read_mtpt(path: Path, options: argparse.Namespace) -> dict[str, files.TorchFile]:
    return {part: _read_file(file, options) for part, file in mtpt.files_of(path).items()}


def _load_mtpt(parts: Mapping[str, files.TorchFile], model: dict[str, Any]) -> Loaded:
    found = mtpt.load(parts, {name: value for name, value in model.items() if name != "task"})
    if found.sizes["task"] != model.get("task", found.sizes["task"]):
        organ = {14: "abdomen", 3: "brain", 2: "chest"}.get(found.sizes["classes"], "ORGAN")
        raise CheckpointError(
            f"{parts['decoder'].path} is a decoder with model.task = {found.sizes['task']!r} and "
            f"{found.sizes['classes']} classes, the config has {model['task']!r}: "
            f"give --config=configs/mtpt.py:{organ},real."
        )
    report = "\n".join(f"{part}:\n{report}" for part, report in found.reports.items())
    return Loaded(found.variables, report, found.sizes, notes={"batches": found.batches})


def _save_mtpt(path: Path, contents: workdir.Contents) -> None:
    noted = (contents.meta.get("converted") or {}).get("batches") or {}
    steps = contents.adam.step if contents.adam else 0
    by_task = "abdomen" if contents.config.model.task == "segment" else "brain"
    organ = next((organ for organ in mtpt.DECODERS if organ in contents.config.data.examples), by_task)
    paths = mtpt.files_of(path, organ)
    variables = {"params": contents.params, **contents.collections}
    mtpt.save(paths, variables, {part: max(noted.get(part, 0), steps) for part in paths})
    print(f"{path.parent}: {', '.join(path.name for path in paths.values())}")


def _load_sysu(path: files.Source, model: dict[str, Any]) -> Loaded:
    found = sysu_hcp.load(path, model)
    notes = {"epoch": found.epoch, "run_id": found.run_id, "batches": found.batches}
    return Loaded(found.variables, found.report, found.sizes, assets={"masks": []}, notes=notes)


def _save_sysu(path: Path, contents: workdir.Contents) -> None:
    notes = contents.meta.get("converted") or {}
    numbers: dict[str, Any] = {name: notes.get(name) or 0 for name in ("epoch", "run_id", "batches")}
    variables = {"params": contents.params, "batch_stats": contents.collections["batch_stats"]}
    sysu_hcp.save(path, variables, contents.config.model.backbone, **numbers)


def _load_tower(path: files.Source, model: dict[str, Any]) -> Loaded:
    found = sysu_hcp.load(path, model)
    return Loaded(found.variables, found.report)


def _load_flamingo(path: files.Source, model: dict[str, Any]) -> Loaded:
    options = flamingo.options_of(path)
    found = flamingo.load(path, None if options else model)
    # Which vocabulary and classes a model has follows from the assets.
    own = {name: value for name, value in found.config.items() if name not in flamingo.FROM_ASSETS}
    notes = {"hyper_parameters": options, **{name: found.config[name] for name in flamingo.FROM_ASSETS}}
    return Loaded(
        {"params": found.params}, found.report, own, {"classify": found.config["num_answers"] > 0}, notes=notes
    )


def _save_flamingo(path: Path, contents: workdir.Contents) -> None:
    options = (contents.meta.get("converted") or {}).get("hyper_parameters")
    step = contents.meta["data"]["step"]
    extra = {"epoch": 0, "global_step": step, "hyper_parameters": options} if options else None
    sizes = {"vocab_size": len(contents.params["language"]["embed"]["embedding"])}
    config = contents.config.model.to_dict() | sizes
    flamingo.save(path, contents.params, {"language": "gpt2", "language_sizes": {}} | config, extra=extra)


def _flamingo_assets(
    arguments: argparse.Namespace, config: ml_collections.ConfigDict, loaded: Loaded
) -> dict[str, Any]:
    """Tokeniser and classes, checked against the checkpoint's vocabulary and class head."""
    sizes = loaded.notes
    with config.unlocked():
        config.data.tokeniser = arguments.tokeniser or config.data.tokeniser
        config.data.answers.file = str(arguments.answers or config.data.answers.file)
        if not sizes["num_answers"]:  # nothing to evaluate of a class head that is not there
            for name in [name for name, row in config.evals.items() if row.predict.startswith("classes")]:
                del config.evals[name]
    try:
        made = task_class(config.task).make_assets(config, DataSet(config.data))
    except DataError as error:
        raise DataError(
            f"{error}\nOr give what the checkpoint does not hold as files: --tokeniser (a folder), and --answers (the classes)."
        ) from error
    # The vocabulary of MIMIC-CXR's checkpoint ends before the mark of a question's end.
    tokeniser = Tokeniser(made["tokeniser"]).cut(sizes["vocab_size"])
    if towers.is_padded(sizes["vocab_size"], len(tokeniser)):
        print(f"{arguments.source}: {sizes['vocab_size']} rows of words, of which the first {len(tokeniser)} are taken")
        language = loaded.variables["params"]["language"]
        for place, name in (("embed", "embedding"), ("readout", "table")):
            if name in language.get(place, {}):
                language[place][name] = language[place][name][: len(tokeniser)]
        sizes = {**sizes, "vocab_size": len(tokeniser)}
    faults = [
        f"the checkpoint has {theirs} {what}, {given} gives {ours}"
        for what, theirs, ours, given in (
            ("words", sizes["vocab_size"], len(tokeniser), config.data.tokeniser or "training one on the data"),
            ("as the number of <image>", sizes["image_token"], tokeniser.image, config.data.tokeniser or "that"),
            ("classes", sizes["num_answers"], len(made["answers"]), config.data.answers.file or config.data.examples),
        )
        if theirs != ours
    ]
    if faults:
        raise CheckpointError(
            "Words and classes are numbered by their place in lists, and these are not the checkpoint's lists: "
            + "; ".join(faults)
        )
    return made | {"tokeniser": tokeniser.asset}


def _read_tower(path: Path, options: argparse.Namespace) -> tuple[towers.Source, dict[str, Any]]:
    """The files of a tower, and fields that options give."""
    found = towers.read(
        path if path.exists() else towers.from_hub(str(path)), weights=options.weights, prefix=options.prefix
    )
    given = {"activation": options.activation, "lm_head": options.lm_head}
    fields: dict[str, Any] = {name: value for name, value in given.items() if value}
    if options.tokeniser:
        fields["vocab_size"] = tokenisers.size(options.tokeniser)
    return found, fields


def _tower(kind: str, prefix: str) -> Callable[[tuple[towers.Source, dict[str, Any]], dict[str, Any]], Loaded]:
    """Reads a language or image tower, and puts it where the whole model has it."""

    def load(read: tuple[towers.Source, dict[str, Any]]) -> tuple[dict[str, Any], Any, tuple[str, ...]]:
        found = towers.load(kind, read[0], **read[1])
        return {"params": found.params}, found.report, found.notes

    return _part(load, prefix)


def _part(load: Callable[[Any], tuple[Any, ...]], prefix: str) -> Callable[[Any, dict[str, Any]], Loaded]:
    """Reads a part of a model, and puts it under the path at which `config.init_from` looks for it."""

    def read(source: Any, model: dict[str, Any]) -> Loaded:
        variables, report, *told = load(source)
        for name in reversed(prefix.split("/")):
            variables = {collection: {name: tree} for collection, tree in variables.items()}
        return Loaded(variables, report, told=told[0] if told else ())

    return read


_RAD: dict[str, Any] = {"vocabulary": RadVocabulary, "answers": RadAnswerList}

SYSTEMS = {
    "rwsan": System(
        "configs/rwsan.py:vqa_v2",
        _load_rwsan,
        _save_rwsan,
        rwsan.SIZES,
        Vocabulary,
        AnswerList,
    ),
    "cmsa": System("configs/cmsa.py:vqa_rad", _load_cmsa, _save_cmsa, cmsa.SIZES, **_RAD),
    "ban": System("configs/cmsa.py:vqa_rad,ban", _load_mevf, _save_cmsa, mevf.SIZES, **_RAD),
    "san": System("configs/cmsa.py:vqa_rad,san", _load_mevf, _save_cmsa, mevf.SIZES, **_RAD),
    "mtpt": System(
        "configs/mtpt.py:abdomen,real",
        _load_mtpt,
        _save_mtpt,
        tuple(name for name in mtpt.SIZES if name != "task"),
        RadVocabulary,
        counts={"vocabulary": "vocab_size", "class_names": "classes"},
        optimiser=False,
        read=_read_mtpt,
    ),
    "sysu_hcp": System(
        "configs/sysu_hcp.py:vqa_med_2021",
        _load_sysu,
        _save_sysu,
        sysu_hcp.SIZES,
        answers=DiseaseList,
        counts={"answers": "num_answers"},
        optimiser=False,
    ),
    "sysu_hcp_tower": System("configs/sysu_hcp.py:vqa_med_2021", _load_tower, sizes=sysu_hcp.SIZES),
    "flamingo": System(
        "configs/flamingo.py:vqa_rad,mlmi",
        _load_flamingo,
        _save_flamingo,
        flamingo.SIZES,
        counts={},
        optimiser=False,
        options=("tokeniser",),
        assets=_flamingo_assets,
    ),
    "gpt2": System(
        "configs/flamingo.py:vqa_rad",
        _tower("gpt2", "language"),
        folders=True,
        read=_read_tower,
        options=("lm_head", "tokeniser"),
    ),
    "bert": System(
        "configs/flamingo.py:vqa_rad",
        _tower("bert", "language"),
        folders=True,
        read=_read_tower,
        options=("tokeniser",),
    ),
    "clip_vision": System(
        "configs/flamingo.py:vqa_rad",
        _tower("clip_vision", "vision"),
        folders=True,
        read=_read_tower,
        options=("activation",),
    ),
    "backbone": System("configs/mtpt.py:abdomen,real", _part(mtpt.load_backbone, "backbone")),
    "maml": System("configs/cmsa.py:vqa_rad,ban", _part(mevf.load_maml, "image/maml"), read=lambda path, _: path),
    "autoencoder": System("configs/cmsa.py:vqa_rad,ban", _part(mevf.load_autoencoder, "image/autoencoder")),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""

    def command() -> None:
        arguments = _parse(argv)
        logs.setup()
        log.info("converting %s to %s …", arguments.source, arguments.target)
        (_to_folder if arguments.to_folder else _to_file)(arguments)

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
        "--tokeniser",
        default="",
        type=expand_home,
        help="Flamingo: the folder of GPT-2's or BERT's tokeniser, or a hub's name; gpt2, bert: to cut a padded vocabulary",
    )
    parser.add_argument(
        "--weights", default="", help="the file's entry to take, where it holds several models' weights"
    )
    parser.add_argument("--prefix", default="", help="what stands before every key of the file, to be taken off")
    parser.add_argument(
        "--activation", choices=towers.CLIP_ACTIVATIONS, help="clip_vision: of a file that does not tell it"
    )
    parser.add_argument(
        "--lm_head",
        choices=towers.LM_HEADS,
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
    arguments = parser.parse_args(argv)
    source, system = arguments.source, SYSTEMS[arguments.system]
    arguments.to_folder = not (source.is_dir() and (not system.folders or (source / checkpoints.FOLDER).is_dir()))
    return arguments


def _to_folder(arguments: argparse.Namespace) -> None:
    system = SYSTEMS[arguments.system]
    config = configs.load(arguments.config or system.config)
    # Sizes of the config yield to the checkpoint's own, so that one config serves checkpoints of any size.
    unsized = {name: value for name, value in config.model.to_dict().items() if name not in system.sizes}
    for name in ("activation", "lm_head", "tokeniser"):
        if getattr(arguments, name) and name not in system.options:
            raise ConfigError(f"--{name} is not for {arguments.system!r}.")
    content = system.read(arguments.source, arguments)
    if isinstance(content, files.TorchFile):
        recognise.check(content, arguments.system, config.model.to_dict())
    loaded = system.load(content, unsized)
    # Fields that the config leaves to the model's defaults are set where the checkpoint differs from them.
    defaults = {f.name: f.default for f in dataclasses.fields(models.MODELS[config.model.name])}
    told = {k: v for k, v in loaded.model.items() if k in defaults and k not in system.counts.values()}
    with config.unlocked():
        config.model.update({k: v for k, v in told.items() if k in config.model or v != defaults[k]})
        config.data.update(dict(loaded.data))
        config.optim.update(dict(loaded.optim))
        if not system.save:  # tables over all parameters of a model fit none of its parts
            config.optim.update(dict.fromkeys(("decay", "coupled_decay", "lr_scale", "freeze"), ()))
    assets = _assets(arguments, system, config, loaded) if system.save else {}
    notes = {"file": arguments.source.name, "system": arguments.system} | dict(loaded.notes)
    step = workdir.write(arguments.target, config, loaded.variables, loaded.adam, assets, notes)
    print(loaded.report)
    read = content.values() if isinstance(content, dict) else [content]
    for file in read:
        for note in file.notes if isinstance(file, files.TorchFile) else ():
            print(f"{file.path}: {note}")
    for note in loaded.told:
        print(f"{arguments.source}: {note}")
    if not assets:
        print(f"{arguments.target}: a part of a model, for config.init_from")
        return
    optimiser = "with the state of its optimiser" if loaded.adam else "without an optimiser's state"
    words = {"vocabulary": "words", "class_names": "classes"}
    counts = ", ".join(f"{len(assets[name])} {words.get(name, name)}" for name in system.counts)
    print(f"{arguments.target}: step {step}, {optimiser}, {counts}")


def _to_file(arguments: argparse.Namespace) -> None:
    system = SYSTEMS[arguments.system]
    if system.save is None:
        raise CheckpointError(f"{arguments.system!r} is a part of a model, which is only read.")
    contents = workdir.read(arguments.source)
    name = contents.config.model.name
    if name != arguments.system:
        raise CheckpointError(f"{arguments.source} holds a model {name!r}, not {arguments.system!r}.")
    system.save(arguments.target, contents)
    with_state = contents.adam and system.optimiser
    optimiser = "with the state of its optimiser" if with_state else "without an optimiser's state"
    print(f"{arguments.target}: written, {optimiser}")


def _assets(
    arguments: argparse.Namespace, system: System, config: ml_collections.ConfigDict, loaded: Loaded
) -> dict[str, Any]:
    """Vocabulary and answers, from the files given or the built data set, checked against the checkpoint's sizes."""
    if system.assets:
        return system.assets(arguments, config, loaded)
    assets: dict[str, Any] = dict(loaded.assets)
    if (arguments.vocabulary or arguments.questions) and not system.vocabulary:
        raise ConfigError(f"--vocabulary and --questions are not for {arguments.system!r}, which reads no questions.")
    if arguments.answers:
        if not system.answers:
            raise ConfigError(f"--answers is not for {arguments.system!r}, which answers no questions.")
        assets["answers"] = list(system.answers.from_file(arguments.answers).answers)
    if arguments.masks:
        if "masks" not in assets:
            raise ConfigError(f"--masks is not for {arguments.system!r}, whose answers are not masked by the question.")
        assets["masks"] = mask_assets(arguments.masks, loaded.model["num_answers"])
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
        f"the checkpoint has {loaded.model[size]} {what}, {given.get(what) or config.data.examples} gives {len(assets[what])}"
        for what, size in system.counts.items()
        if len(assets[what]) != loaded.model[size]
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


if __name__ == "__main__":
    sys.exit(main())
