"""Shell completion of `jaxvqa`: a script that a shell reads at its start.

    eval "$(jaxvqa completion bash)"          in ~/.bashrc
    eval "$(jaxvqa completion zsh)"           in ~/.zshrc, after compinit

It completes commands, their options as `--help` has them, names of configs and data sets, and files.
"""

import contextlib
import importlib
import io
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from jaxvqa import configs
from jaxvqa.errors import ConfigError, choose, run_command
from tfds_builders import build

SHELLS = {"bash": "", "zsh": "autoload -U +X bashcompinit && bashcompinit\n"}
"""Shell -> what makes it read the script."""

_OPTION = re.compile(r"^ +(?:-\w(?: \S+)?, )?(--[\w-]+)([= ]\S)?", re.MULTILINE)

_SCRIPT = r"""_jaxvqa() {{
    local at=$COMP_CWORD word option=
    word=${{COMP_WORDS[at]}}
    COMPREPLY=()
    if [[ $word == = ]]; then
        option=${{COMP_WORDS[at-1]}} word=
    elif (( at > 1 )) && [[ ${{COMP_WORDS[at-1]}} == = ]]; then
        option=${{COMP_WORDS[at-2]}}
    elif [[ $word == --*=* ]]; then
        option=${{word%%=*}}
    fi
    local before=
    [[ $word == --*=* ]] && before=$option= word=${{word#*=}}
    local words=
    if [[ $option == --config && ${{COMP_WORDS[1]}} != data ]]; then
        words={configs}
    elif [[ -z $option ]] && (( at == 1 )); then
        words={commands}
    elif [[ -z $option ]]; then
        case ${{COMP_WORDS[1]}} in
{options}
        esac
    fi
    COMPREPLY=($(compgen -P "$before" -W "$words" -- "$word"))
    [[ ${{#COMPREPLY[@]}} -gt 0 ]] || COMPREPLY=($(compgen -P "$before" -f -- "$word"))
    [[ ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace 2>/dev/null
    return 0
}}
complete -o filenames -F _jaxvqa jaxvqa
"""


def options_of(page: str) -> list[str]:
    """The options that a page of `--help` lists, each with "=" where it takes a value."""
    return list(dict.fromkeys(name + "=" * bool(value) for name, value in _OPTION.findall(page)))


def script(shell: str, commands: Mapping[str, tuple[str, Sequence[str]]], more: Iterable[str]) -> str:
    """The script for a shell.

    Args:
      shell: one of `SHELLS`.
      commands: command -> (the module with its function `main`, options that come before those that are typed).
      more: options that every command takes.

    Raises:
      ConfigError: for another shell.
    """
    if shell not in SHELLS:
        raise ConfigError(f"jaxvqa completion {shell}: {shell!r} is not a known shell{choose(shell, SHELLS)}")
    rows = []
    for command, (module, given) in commands.items():
        taken = {option.partition("=")[0] for option in given}
        found = [option for option in options_of(_help(module)) if option.rstrip("=") not in taken]
        words = [*found, "--help", *more, *(build.builder_names() if command == "data" else ())]
        rows.append(f"            {command}) words={shlex.quote(' '.join(dict.fromkeys(words)))} ;;")
    names = shlex.quote(" ".join(configs.names()))
    firsts = shlex.quote(" ".join([*commands, "completion", "--help", "--version"]))
    return SHELLS[shell] + _SCRIPT.format(configs=names, commands=firsts, options="\n".join(rows))


def _help(module: str) -> str:
    page = io.StringIO()
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):  # argparse ends with its page
        importlib.import_module(module).main(["--help"])
    return page.getvalue()


def main(argv: Sequence[str]) -> int:
    """Prints the script for the shell that is named; returns the exit code."""
    return run_command("jaxvqa completion", lambda: _run(argv))


def _run(argv: Sequence[str]) -> None:
    from jaxvqa.__main__ import COMMANDS, LOUDNESS

    if len(argv) != 1 or argv[0] in ("-h", "--help"):
        print(__doc__.strip())
        if argv not in (["-h"], ["--help"]):
            raise ConfigError(f"Give one shell: {' or '.join(SHELLS)}.")
        return
    programs = {name: (module, given) for name, (module, given, _) in COMMANDS.items() if name != "completion"}
    print(script(argv[0], programs, LOUDNESS), end="")
