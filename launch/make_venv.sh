#!/bin/sh
# Makes the virtual environment unless it is there; an environment keeps its Python, so that is said where another would be
# taken now.    make_venv.sh VENV [VERSION or COMMAND]
venv=$1 asked=${2:-}
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

if [ ! -e "$venv/bin/python" ]; then
    python=$("$(dirname "$0")/find_python.sh" "$asked") || exit
    echo "$python -m venv $venv"
    "$python" -m venv "$venv"
elif [ -n "$asked" ]; then
    python=$("$(dirname "$0")/find_python.sh" "$asked") || exit
    [ "$(version "$venv/bin/python")" = "$(version "$python")" ] && exit
    echo "$venv has Python $(version "$venv/bin/python"), not PYTHON=$asked: 'make clean' first, or give VENV=.venv-other" >&2
    exit 2
elif python=$("$(dirname "$0")/find_python.sh" 2>/dev/null); then
    [ "$(version "$venv/bin/python")" = "$(version "$python")" ] && exit
    echo "$venv has Python $(version "$venv/bin/python") and keeps it; 'make clean' first takes Python $(version "$python")"
fi
