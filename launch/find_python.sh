#!/bin/sh
# Prints the path of the Python to make a virtual environment with: the newest here of the versions that constraints/ pins,
# from PATH or else from pyenv's.    find_python.sh [VERSION or COMMAND]    for that version, or for that command only
known="3.13 3.12 3.11"

case ${1:-} in
    "" | *[!0-9.]*) versions=$known command=${1:-} ;;
    *) versions=$1 command= ;;
esac

candidates() {
    if [ -n "$command" ]; then
        printf '%s\n' "$command"
        return
    fi
    for version in $versions; do printf '%s\n' "python$version"; done
    printf '%s\n' python3 python
    for version in $versions; do
        for path in "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do printf '%s\n' "$path"; done | sort -rV
    done
}

# Prints "VERSION yes PATH" or "VERSION no REASON"; nothing for what does not start, as a shim of pyenv's whose version is off.
# Debian's Python makes no virtual environment until python3-venv is installed; the packages are built for CPython.
look_at() {
    "$1" -c '
import sys
version = "%d.%d" % sys.version_info[:2]
missing = []
for module in ("bz2", "ctypes", "ensurepip", "ssl", "venv", "zlib"):
    try:
        __import__(module)
    except ImportError:
        missing.append(module)
if missing:
    print(version + " no module " + ", ".join(missing) + " in " + sys.executable + " (Debian: apt install python3-venv)")
elif sys.implementation.name != "cpython" or __import__("sysconfig").get_config_var("Py_GIL_DISABLED"):
    print(version + " no wheels of the packages for " + sys.executable + ": not CPython with its lock")
else:
    print(version + " yes " + sys.executable)
' 2>/dev/null </dev/null
}

found=$(candidates | while IFS= read -r candidate; do look_at "$candidate"; done)
for version in $versions; do
    case " $known " in *" $version "*) ;; *) continue ;; esac
    path=$(printf '%s\n' "$found" | sed -n "s/^$version yes //p" | head -n 1)
    [ -n "$path" ] && printf '%s\n' "$path" && exit
done

{
    echo "jaxvqa needs Python $(echo "$known" | sed 's/ /, /g'): the versions that constraints/ pins."
    if [ -n "$command" ]; then
        echo "PYTHON=$command is not one that can be used:"
    else
        echo "No Python $(echo "$versions" | sed 's/ /, /g') that can be used is on PATH or in ${PYENV_ROOT:-$HOME/.pyenv}/versions; there is:"
    fi
    printf '%s\n' "${found:-nothing that starts}" | sed 's/ yes / /; s/^/  /' | sort -u
    echo "Install one ('apt install python3.13 python3.13-venv', 'pyenv install 3.13') or name it: make PYTHON=/path/to/python"
} >&2
exit 2
