"""Completion as a shell asks for it: the script is read by bash, and words are completed in it."""

import shlex
import shutil
import subprocess

import pytest

from jaxvqa import __main__ as jaxvqa_command
from jaxvqa import completion

BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def script():
    programs = {name: (module, given) for name, (module, given, _) in jaxvqa_command.COMMANDS.items()}
    return completion.script("bash", programs, jaxvqa_command.LOUDNESS)


@pytest.mark.skipif(BASH is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["tr"], {"train"}),
        (["re"], {"report"}),
        (["train", "--wor"], {"--workdir="}),
        (["train", "--qu"], {"--quiet"}),
        (["eval", "--mo"], set()),  # the command has it
        (["ask", "--ex"], {"--explain="}),
        (["data", "phantom"], {"phantom_vqa"}),
        (["data", "--overw"], {"--overwrite"}),
        (["train", "--config", "=", "rws"], {"rwsan"}),  # as bash cuts the line
        (["train", "--config", "="], {"rwsan", "cmsa", "blip_vqa"}),
        (["train", "--config=rws"], {"--config=rwsan"}),  # as zsh leaves it
        (["eval", "--workdir", "=", "ru"], {"runs"}),
        (["eval", "--workdir=ru"], {"--workdir=runs"}),
        (["ask", "sc"], {"scan.png"}),
    ],
)
def test_a_word_is_completed(script, tmp_path, words, found):
    (tmp_path / "runs").mkdir()
    (tmp_path / "scan.png").write_text("")
    typed = " ".join(map(shlex.quote, ["jaxvqa", *words]))
    asks = f"COMP_WORDS=({typed}) COMP_CWORD={len(words)}; _jaxvqa; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run([BASH, "--norc", "-c", script + asks], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
    given = set(done.stdout.split())
    assert given >= found if len(found) > 1 else given == found


def test_options_are_those_of_the_page():
    page = "  -h, --help  shows\n  --one X, or\n  --two=X\n  --three     that takes --four=4\n  -n N, --five N\n"
    assert completion.options_of(page) == ["--help", "--one=", "--two=", "--three", "--five="]


def test_the_command_prints_it(capsys, script):
    assert jaxvqa_command.main(["completion", "bash"]) == 0
    assert "complete -o filenames -F _jaxvqa jaxvqa" in capsys.readouterr().out
    assert jaxvqa_command.main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("autoload -U +X bashcompinit")
    for words, message in (([], "Give one shell: bash or zsh"), (["fish"], "'fish' is not a known shell: choose bash")):
        assert jaxvqa_command.main(["completion", *words]) == 2
        assert message in capsys.readouterr().err
