"""Configs: Python files with `get_config(arg)`, changed field by field from the command line.

The package's own are modules of this one, wherever they lie: `from jaxvqa.configs import common, rwsan`.
"""

import ast
import contextlib
import importlib.util
import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_collections

from jaxvqa import models
from jaxvqa.errors import ConfigError, UserError, choose, first_line, nearest
from jaxvqa.inputs import expand_home, read_json

FOLDER = next(
    folder
    for folder in (Path(__file__).with_name("config_files"), Path(__file__).parents[1] / "configs")
    if folder.is_dir()
)
"""The package's own config files: inside the package where it was installed from a wheel, else in the checkout."""

__path__ = [str(FOLDER)]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


def load(argument: str) -> ml_collections.ConfigDict:
    """Loads "path/to/config.py", "path/to/config.py:arg" or "name:arg": the locked ConfigDict of its `get_config(arg)`.

    Args:
      argument: a file, or the name of one of the package's own configs, which are found from any folder: "rwsan". A file
        "configs/rwsan.py" that is not there is the package's own too.

    Raises:
      ConfigError: the file is missing or has no `get_config`, or it does not know `arg`.
    """
    path, _, arg = expand_home(argument).partition(":")
    module = _module(path)
    make = getattr(module, "get_config", None)
    if not callable(make):
        raise ConfigError(f"{path} has no function get_config(arg=None), which a config file must have.")
    with _faults_of(path, Path(module.__file__)):
        config = make(arg or None)
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(
            f"{path}: get_config returned {type(config).__name__}; expected an ml_collections.ConfigDict, as "
            "configs/common.py's base() makes."
        )
    return config.lock()


def describe(argument: str) -> str:
    """The docstring of a config file: its command, hardware, hours and expected score."""
    return (_module(expand_home(argument).partition(":")[0]).__doc__ or "").strip()


def names() -> list[str]:
    """The names of the package's own configs."""
    return sorted(file.stem for file in FOLDER.glob("[a-z]*.py") if file.stem != "common")


def _module(path: str) -> Any:
    file = _file(path)
    spec = importlib.util.spec_from_file_location(f"jaxvqa_config_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _faults_of(path, file):
        spec.loader.exec_module(module)
    return module


def _file(path: str) -> Path:
    """A path that ends in .py is that file where it is there; else the package's own config of that name."""
    file = Path(path)
    if file.suffix == ".py" and file.is_file():
        return file
    name = path.removeprefix("configs/").removesuffix(".py")
    if name in names():
        return FOLDER / f"{name}.py"
    kind = "is a folder, not a config file" if file.is_dir() else "is not there"
    if file.is_file():
        kind = "is a file whose name does not end in .py"
    raise ConfigError(
        f"--config: {path!r} {kind}. Give a Python file with get_config(arg), or the name of a config{choose(name, names())}"
    )


@contextlib.contextmanager
def _faults_of(path: str, file: Path) -> Iterator[None]:
    """Names the line of a config file that fails: it is the user's own program."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(str(file))
        ]
        line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
        where = f"{path}, line {line}" if line else path
        raise ConfigError(
            f"{where}: {type(error).__name__}: {first_line(error)}. Expected a Python file whose get_config(arg) returns a "
            "ConfigDict; put that line right."
        ) from error


def read(file: Path) -> ml_collections.ConfigDict:
    """The config of a work directory's config.json.

    Raises:
      DataError: the file is missing, cut off, or not a config.
    """
    return from_json(read_json(file, "the config of a run, as --mode=train writes it", {str: Any}))


def from_json(text: str | dict[str, Any]) -> ml_collections.ConfigDict:
    """The locked config that a checkpoint holds as JSON, which has no tuples: lists become tuples again."""
    tree = json.loads(text) if isinstance(text, str) else text

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tuples(item) for key, item in value.items()}
        return tuple(tuples(item) for item in value) if isinstance(value, list) else value

    return ml_collections.ConfigDict(tuples(tree)).lock()


def override(config: ml_collections.ConfigDict, changes: Sequence[tuple[str, str]]) -> None:
    """Sets fields of `config` in place.

    Args:
      config: the config to change.
      changes: (dotted name, text) pairs, such as ("optim.lr", "3e-4"). The text is read as the type that the field has.

    Raises:
      ConfigError: lists every unknown field (with the nearest names) and every text of a wrong type.
    """
    faults = []
    for name, text in changes:
        parent, _, leaf = name.rpartition(".")
        known = settable(config)
        if name not in known:
            inside = [other for other in known if other.startswith(name + ".")]
            hint = f" It is a group of fields: {', '.join(inside[:8])}." if inside else nearest(name, known)
            faults.append(f"--config.{name}: there is no such field.{hint}")
            continue
        node: Any = config
        for part in filter(None, parent.split(".")):
            node = node[part]
        try:
            text.encode()  # bytes that are not UTF-8 could not be saved
            value = _read(text, known[name])
        except (ValueError, SyntaxError, TypeError, OverflowError, RecursionError, MemoryError):
            faults.append(f"--config.{name}: expected {type(known[name]).__name__} (as {known[name]!r}), got {text!r}")
            continue
        with node.unlocked(), node.ignore_type():
            node[leaf] = value
    if faults:
        raise ConfigError("The config cannot be changed as asked:\n  " + "\n  ".join(faults))


def main_evaluation(config: ml_collections.ConfigDict) -> str:
    """The name of the evaluation that a run is judged by: `config.main_eval`, or the only one where that is empty.

    A config has its evaluations in the order of their names, so none of them is the first in any other sense.

    Raises:
      ConfigError: there is no evaluation of that name, or none is named of several.
    """
    name, evals = config.get("main_eval", ""), list(config.evals)
    if not name and len(evals) == 1:
        return evals[0]
    if name not in evals:
        raise ConfigError(
            f"config.main_eval, the evaluation that a run is judged by, is {name!r}{choose(name, evals)} "
            "Give it with --config.main_eval=NAME."
        )
    return name


def field_names(config: ml_collections.ConfigDict, prefix: str = "") -> list[str]:
    """The dotted names of all fields that hold a value."""
    names = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        names += field_names(value, name + ".") if isinstance(value, ml_collections.ConfigDict) else [name]
    return names


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Returns {"a.b": value} of nested dicts."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def settable(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """All fields by their dotted names, with their values; those that a model's towers take besides with their defaults."""
    fields = flatten(config.to_dict())
    towers = models.tower_fields(config.model) if "model" in config else {}
    return fields | {name: value for key, value in towers.items() if (name := f"model.{key}") not in fields}


def _read(text: str, present: Any) -> Any:
    if isinstance(present, bool):
        values = {"true": True, "1": True, "false": False, "0": False}
        return values[text.lower()] if text.lower() in values else ast.literal_eval("not a boolean")
    if isinstance(present, int):
        with contextlib.suppress(ValueError):
            return int(text)  # not by way of a float, which has 53 bits
        number = float(text)
        if number != int(number):
            raise ValueError(text)
        return int(number)
    if isinstance(present, float):
        return float(text)
    if isinstance(present, str):
        return text
    value = ast.literal_eval(text)
    if isinstance(present, tuple | list):
        if not isinstance(value, tuple | list):
            raise TypeError(text)
        return type(present)(value)
    return value
