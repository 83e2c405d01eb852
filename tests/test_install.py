"""Set-up: which Python `make` takes, what constraints/ pins, and that what is imported is declared."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.runs import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def python(file: Path, version: str = "", change: str = "pass", starts: bool = True) -> Path:
    """A Python that says that it has `version`, and is changed by the statement `change`; or one that does not start."""
    numbers = (*map(int, version.split(".")), 0) if version else ()
    first = f"import sys; sys.version_info = {numbers}; sys.executable = {str(file)!r}; {change}; exec(sys.argv[1])"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{first}" "$2"\n' if starts else "#!/bin/sh\nexit 127\n")
    file.chmod(0o755)
    return file


@pytest.fixture
def machine(tmp_path: Path):
    """Runs a script of launch/ on a machine with the Pythons under `tmp_path`: bin/ is on PATH, pyenv/ is pyenv's root."""
    for name in ("sh", "sed", "head", "sort", "tr", "dirname", "echo"):
        found = next(p for p in (Path("/bin", name), Path("/usr/bin", name)) if p.exists())
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).symlink_to(found)

    def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(tmp_path / "bin"), "PYENV_ROOT": str(tmp_path / "pyenv"), "HOME": str(tmp_path)}
        return subprocess.run([ROOT / "launch" / script, *arguments], env=environment, capture_output=True, text=True)

    return run


WITHOUT_VENV = "sys.modules['ensurepip'] = None"
PYPY = "sys.implementation.name = 'pypy'"
FREE_THREADED = "import sysconfig; sysconfig.get_config_vars()['Py_GIL_DISABLED'] = 1"


@pytest.mark.parametrize(
    ("pythons", "taken"),
    [
        ({"bin/python3": "3.11"}, "bin/python3"),
        ({"bin/python3": "3.11", "bin/python3.12": "3.12"}, "bin/python3.12"),
        ({"bin/python3": "3.12", "bin/python3.11": "3.11"}, "bin/python3"),
        ({"bin/python": "3.13"}, "bin/python"),
        ({"bin/python3": "3.11", "pyenv/versions/3.13.0/bin/python": "3.13"}, "pyenv/versions/3.13.0/bin/python"),
        ({"bin/python3.13": "3.13", "pyenv/versions/3.13.9/bin/python": "3.13"}, "bin/python3.13"),
        # A shim of pyenv's, whose version is not active.
        ({"bin/python3.13": None, "bin/python3": "3.11"}, "bin/python3"),
        (
            {"bin/python3.13": None, "pyenv/versions/3.13.0/bin/python": "3.13", "bin/python3": "3.11"},
            "pyenv/versions/3.13.0/bin/python",
        ),
        (
            {f"pyenv/versions/3.12.{patch}/bin/python": "3.12" for patch in (2, 10, 9)},
            "pyenv/versions/3.12.10/bin/python",
        ),
        ({"bin/python3.13": ("3.13", WITHOUT_VENV), "bin/python3": "3.12"}, "bin/python3"),
        ({"bin/python3.13": ("3.13", FREE_THREADED), "bin/python3": "3.12"}, "bin/python3"),
        ({"bin/python3": ("3.13", PYPY), "bin/python3.11": "3.11"}, "bin/python3.11"),
        ({"bin/python3": "3.99", "bin/python3.12": "3.12"}, "bin/python3.12"),  # too new for the constraints
        ({"bin/python3": "2.7", "bin/python3.11": "3.11"}, "bin/python3.11"),
    ],
)
def test_the_newest_python_that_works_is_taken(machine, tmp_path, pythons, taken):
    for file, what in pythons.items():
        python(tmp_path / file, *(what if isinstance(what, tuple) else [what or ""]), starts=what is not None)
    result = machine("find_python.sh")
    assert (result.stdout, result.stderr, result.returncode) == (f"{tmp_path / taken}\n", "", 0)


@pytest.mark.parametrize(
    ("asked", "taken"),
    [("3.11", "bin/python3"), ("3.12", "pyenv/versions/3.12.1/bin/python"), ("python3", "bin/python3")],
)
def test_a_python_that_is_asked_for(machine, tmp_path, asked, taken):
    python(tmp_path / "bin/python3", "3.11")
    python(tmp_path / "bin/python3.13", "3.13")
    python(tmp_path / "pyenv/versions/3.12.1/bin/python", "3.12")
    assert machine("find_python.sh", asked).stdout == f"{tmp_path / taken}\n"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            "",
            [
                "Python 3.13, 3.12, 3.11",
                "3.10 ",
                "3.12 no module ensurepip",
                "python3-venv",
                "pyenv/versions",
                "PYTHON=",
            ],
        ),
        ("3.10", ["No Python 3.10 that", "3.13, 3.12, 3.11"]),
        ("3.11", ["No Python 3.11 that", "3.12 no module ensurepip"]),
        ("python3.13", ["PYTHON=python3.13", "nothing that starts"]),
        ("python3", ["PYTHON=python3 ", "3.10 "]),
    ],
)
def test_a_machine_without_such_a_python(machine, tmp_path, asked, words):
    python(tmp_path / "bin/python3", "3.10")
    python(tmp_path / "bin/python", "3.12", WITHOUT_VENV)
    python(tmp_path / "bin/python3.13", starts=False)
    result = machine("find_python.sh", asked)
    assert (result.stdout, result.returncode) == ("", 2)
    assert all(word in result.stderr for word in words), result.stderr


def test_an_environment_keeps_its_python(machine, tmp_path):
    python(tmp_path / "venv/bin/python", "3.11")
    python(tmp_path / "bin/python3.13", "3.13")
    python(tmp_path / "bin/python3.11", "3.11")
    result = machine("make_venv.sh", str(tmp_path / "venv"))
    assert result.returncode == 0
    assert "has Python 3.11 and keeps it" in result.stdout
    assert "takes Python 3.13" in result.stdout
    assert machine("make_venv.sh", str(tmp_path / "venv"), "3.11").stdout == ""
    result = machine("make_venv.sh", str(tmp_path / "venv"), "3.13")
    assert result.returncode == 2
    assert "has Python 3.11, not PYTHON=3.13" in result.stderr


def test_an_environment_is_made_with_the_python_that_was_found(machine, tmp_path):
    file = python(tmp_path / "bin/python3.12", "3.12")
    (tmp_path / "bin/python3.12").write_text(
        file.read_text().replace("#!/bin/sh\n", f'#!/bin/sh\n[ "$1" = -m ] && echo "$@" >{tmp_path}/called && exit\n')
    )
    assert machine("make_venv.sh", str(tmp_path / "venv")).returncode == 0
    assert (tmp_path / "called").read_text() == f"-m venv {tmp_path / 'venv'}\n"


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / name).read_text().splitlines()
    requirements = [Requirement(line) for line in lines if not line.startswith("#")]
    found = [r for r in requirements if r.marker is None or r.marker.evaluate()]
    names = [canonicalize_name(r.name) for r in found]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"==[\w.]+", str(r.specifier)) for r in found)
    return {name: str(r.specifier) for name, r in zip(names, found, strict=True)}


def needed(extras: frozenset[str], name: str = "jaxvqa") -> set[str]:
    """All distributions that `jaxvqa[extras]` brings, as far as they are installed here."""
    found, todo = set(), [(name, extras)]
    while todo:
        name, extras = todo.pop()
        own = canonicalize_name(name)
        if (own, extras) in found:
            continue
        found.add((own, extras))
        try:
            requirements = (
                metadata.requires(own) or []
                if own != "jaxvqa"
                else PYPROJECT["project"]["dependencies"]
                + [r for e in extras for r in PYPROJECT["project"]["optional-dependencies"][e]]
            )
        except metadata.PackageNotFoundError:
            continue
        for text in requirements:
            requirement = Requirement(text)
            marks = [default_environment() | {"extra": extra} for extra in (extras or {""})]
            if requirement.marker is None or any(requirement.marker.evaluate(m) for m in marks):
                todo.append((requirement.name, frozenset(requirement.extras)))
    return {own for own, _ in found} - {"jaxvqa"}


def test_the_constraints_pin_all_that_the_tests_and_tools_need():
    pinned = pins("py311.txt" if sys.version_info[:2] == (3, 11) else "py312.txt")
    missing = needed(frozenset({"dev"})) - pinned.keys()
    assert not missing
    assert "torch" not in needed(frozenset({"dev"}))


@pytest.mark.parametrize("file", ["py311.txt", "py312.txt"])
def test_what_is_declared_allows_what_is_pinned(file):
    pinned = pins(file)
    project = PYPROJECT["project"]
    for text in [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]:
        requirement = Requirement(text)
        if pin := pinned.get(canonicalize_name(requirement.name)):
            assert requirement.specifier.contains(pin.removeprefix("==")), text


def test_gpu_wheels_are_pinned_for_this_jax():
    pinned = pins("cuda.txt")
    jax = pins("py311.txt" if sys.version_info[:2] == (3, 11) else "py312.txt")["jax"]
    assert {pinned[f"jax-cuda{n}-{part}"] for n in (12, 13) for part in ("plugin", "pjrt")} == {jax}


IMPORT_NAMES = {"PIL": "pillow", "absl": "absl-py", "orbax": "orbax-checkpoint"}
OURS = {"jaxvqa", "configs", "tfds_builders", "benchmarks", "launch", "tests"}


def imports(folder: str) -> dict[str, str]:
    """Distribution name -> a file that imports it, of all that is not of the standard library nor ours."""
    found = {}
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - OURS:
                found[canonicalize_name(IMPORT_NAMES.get(top, top))] = str(file.relative_to(ROOT))
    return found


@pytest.mark.parametrize("folder", ["jaxvqa", "configs", "tfds_builders", "launch", "benchmarks", "tests"])
def test_what_is_imported_is_declared(folder):
    project = PYPROJECT["project"]
    extras = {"benchmarks": ("oracle",), "tests": ("dicom", "oracle", "test")}.get(
        folder, ("beam", "dicom", "pubmed", "tf")
    )
    declared = project["dependencies"] + [r for e in extras for r in project["optional-dependencies"].get(e, ())]
    names = {canonicalize_name(Requirement(text).name) for text in declared}
    assert not {name: file for name, file in imports(folder).items() if name not in names}


def test_what_is_declared_is_imported():
    imported = {name for folder in OURS for name in imports(folder)}
    through_others = {"importlib-resources"}  # TFDS reads a builder's README through it
    names = {canonicalize_name(Requirement(text).name) for text in PYPROJECT["project"]["dependencies"]}
    assert names - imported == through_others
