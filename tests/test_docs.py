"""The commands in README and docs name modules, configs, fields, options and data sets that exist; the snippet runs."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from jaxvqa import configs
from tfds_builders import build

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "launch/README.md")), *(ROOT / "docs").rglob("*.md")]
)
COMMANDS = sorted(
    {
        (page.name, command.strip().partition("   ")[0])
        for page in PAGES
        for line in page.read_text().splitlines()
        for command in re.findall(r"(?:^    |`)(python -m [^`#]+|make [a-z-]+)", line)
    }
)


def test_there_are_commands():
    assert len(COMMANDS) > 20


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_command_names_what_exists(page, command):
    words = shlex.split(command.replace("…", ""))
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
        return
    module = words[2]
    assert importlib.util.find_spec(module) is not None
    config = configs.load("configs/rwsan.py")
    for word in words[3:]:
        name, _, value = word.partition("=")
        if name == "--config" and value.startswith("configs/"):
            config = configs.load(value)
        elif name.startswith("--config."):
            configs.override(config, [(name.removeprefix("--config."), value)])
        elif name.startswith("--"):
            found = importlib.util.find_spec(
                f"{module}.__main__" if (ROOT / module.replace(".", "/")).is_dir() else module
            )
            source = Path(found.origin).read_text()
            option = name.removeprefix("--")
            assert f"--{option}" in source or f'"{option}"' in source, f"{module} has no option {name}"
    if module == "tfds_builders.build" and words[3:]:
        assert words[3] in build.builder_names() or words[3].startswith("mypackage.")  # which test_porting.py writes


SOURCES = [
    *(
        file
        for room in ("jaxvqa", "configs", "tests", "tfds_builders", "benchmarks")
        for file in (ROOT / room).rglob("*.py")
    ),
    *(page for page in PAGES if page.name != "adding_a_system.md"),  # whose example is of no system
]
CITATION = re.compile(r"docs/originals/(\w+)\.md(?:#[\w-]+)?(?:,? sections? (\d[\d.]*(?:(?:, | and | to )\d[\d.]*)*))?")


def _without_line_breaks(file):
    return re.sub(r"\s*\n\s*(?:# )?", " ", file.read_text())


def _citations():
    """(file, document, section) of each citation of an original's document, wherever its lines break."""
    for file in SOURCES:
        text = _without_line_breaks(file)
        for document, sections in CITATION.findall(text):
            for section in re.findall(r"\d+(?:\.\d+)*", sections) or [""]:
                yield file.relative_to(ROOT).as_posix(), document, section


def test_cited_sections_of_the_originals_exist():
    pages = {page.stem: page.read_text() for page in (ROOT / "docs/originals").glob("*.md")}
    sections = {name: {"", *re.findall(r"^#+ (\d+(?:\.\d+)*)", text, re.MULTILINE)} for name, text in pages.items()}
    cited = list(_citations())
    assert len(cited) > 100
    assert [(file, name, section) for file, name, section in cited if section not in sections.get(name, ())] == []


def test_no_citation_leaves_out_its_document():
    loose = re.compile(r"\b[Ss]pec,? (?:sections?|quirks?)\b|\b(?:RWSAN|CMSA|SYSU|Flamingo|BLIP)(?:'s)?,? spec\b")
    texts = {file: _without_line_breaks(file) for file in SOURCES if file != Path(__file__)}
    assert [(str(file), found) for file, text in texts.items() if (found := loose.findall(text))] == []


def test_files_that_pages_link_to_exist():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.slow
def test_readme_snippet_runs(capsys):
    snippet = re.search(r"```python\n(import jax, .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert snippet is not None
    # The published size compiles for long; the same lines at a small size show that they run.
    code = snippet[1].replace(
        "vocab_size=20572, num_answers=3129", "vocab_size=40, num_answers=9, width=32, fused_width=16"
    )
    exec(compile(code.replace("(1, 100, 2048)", "(1, 100, 20)"), "README.md", "exec"), {})
    assert "(1, 9) (1, 100)" in capsys.readouterr().out
