"""One name in every room: a system's files, a tower's, a builder's reader and a module's tests lie where their names say."""

import re
from pathlib import Path

import pytest

from jaxvqa.models import MODELS

ROOT = Path(__file__).parent.parent
SYSTEMS = sorted({model.__module__.rpartition(".")[2] for model in MODELS.values()})

FAMILY = {"mevf": "cmsa", "mtpt": "cmsa"}
"""System -> the one whose paper, document and golden folder it shares."""

CONFIG = {"mevf": "cmsa", "blip": "blip_pretrain"}
"""System -> the config that has it as a variant, or is the first of its own."""

NO_KEYS = {"decoder", "regions"}
"""Modules of towers that have no keys of their own: what GPT-2, BERT and PaLM share, and a tower without parameters."""

MAKERS = {"easy_vqa", "phantom_vqa", "pubmed_figures"}
"""Builders that read no release: they draw their images, or read what their own command has gathered."""

ABOUT_SEVERAL = [
    "commands",
    "damage",
    "devices",
    "ema",
    "finite",
    "first_run",
    "install",
    "mirror",
    "notebook",
    "porting",
    "real_data",
    "resume",
    "walkthrough",
    "wheel",
    "ask/command",
    "convert/command",
    "ensembles/beside_members",
    "data/curriculum",
    "data/held_out",
    "data/support",
    "decoding/generation",
    "evaluators/answer_rules",
    "evaluators/texts",
    "golden/altered",
    "golden/command",
    "models/towers/transformer_towers",
    "tasks/evaluation",
    "tasks/few_shot",
    "tasks/losses",
    "tasks/word_vectors",
    "tfds_builders/user_files",
]
"""Tests of what several modules do together, or of a command."""


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_has_its_file_in_every_room(system):
    family = FAMILY.get(system, system)
    expected = [
        *(f"jaxvqa/{room}/{system}.py" for room in ("models", "convert", "golden")),
        *(f"tests/{room}/test_{system}.py" for room in ("models", "convert")),
        f"configs/{CONFIG.get(system, system)}.py",
        f"docs/originals/{family}.md",
        f"tests/golden/{family}",
    ]
    assert [file for file in expected if not (ROOT / file).exists()] == []


def test_configs_and_documents_are_of_systems():
    configs = {file.stem for file in (ROOT / "configs").glob("*.py")} - {"__init__", "common"}
    of_system = {name.removesuffix("_ensemble") for name in configs}
    of_system = {"blip" if name.startswith("blip_") else name for name in of_system}
    assert of_system == set(SYSTEMS) - {"mevf"}


def _names(folder):
    return {file.stem for file in (ROOT / folder).glob("*.py")} - {"__init__"}


def test_a_tower_has_its_keys_under_its_name():
    assert _names("jaxvqa/convert/towers") == _names("jaxvqa/models/towers") - NO_KEYS


def test_what_reads_a_data_sets_release_has_one_name():
    builders = {file.parent.name for file in (ROOT / "tfds_builders").glob("*/*_dataset_builder.py")}
    assert len(builders) > 5
    assert {name for name in builders if not (ROOT / "tfds_builders" / name / "release.py").exists()} == MAKERS


def test_tests_lie_as_what_they_test():
    """`tests/ROOM/test_NAME.py`, or `test_NAME_more.py`, is about `jaxvqa/ROOM/NAME.py` or the package of that name."""
    lost = []
    for file in (ROOT / "tests").rglob("test_*.py"):
        path = file.relative_to(ROOT / "tests").with_name(file.stem.removeprefix("test_"))
        if path.as_posix() in ABOUT_SEVERAL:
            continue
        folders = [ROOT / "jaxvqa" / path.parent, ROOT / path.parent]
        there = {inside.stem for folder in folders if folder.is_dir() for inside in folder.iterdir()}
        words = path.name.split("_")
        if not any("_".join(words[:count]) in there for count in range(1, len(words) + 1)):
            lost.append(file.relative_to(ROOT).as_posix())
    assert lost == []


def test_the_design_page_draws_the_tree():
    page = (ROOT / "docs" / "design.md").read_text().partition("## The rooms")[2].partition("## Contracts")[0]
    drawing = [line for line in page.splitlines() if line.startswith("      ")]
    drawn = {word for line in drawing for word in re.findall(r"\b\w+(?:\.py|/)", line)}
    there = {
        path.name + "/" * path.is_dir() for path in (ROOT / "jaxvqa").iterdir() if path.suffix == ".py" or path.is_dir()
    }
    there -= {"__init__.py", "__pycache__/"}
    assert there <= drawn
    assert {name for name in drawn if (name in there) or name.endswith(".py")} <= there | {"original.py"}
