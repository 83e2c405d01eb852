"""Errors that a user can act on.

Each carries the exit code of the program, so that a scheduler can tell "do not try again" from "start me again":

==== ====================== =====================================================================
code error                  meaning
==== ====================== =====================================================================
0    (none)                 done
1    any other exception    a bug in the program; the traceback is printed
2    `UserError` and kin    the config, data, checkpoint or command is wrong; a retry changes nothing
3    `DivergedError`        the loss or a gradient is not finite; the last good checkpoint is kept
74   `StorageError`         the disk is full or not writable (EX_IOERR); free space, then start again
75   `PreemptedError`       stopped by a signal after saving (EX_TEMPFAIL); start again to go on
75   `WaitError`            another process of the job did not come in time; start again
==== ====================== =====================================================================
"""

import contextlib
import difflib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path


class UserError(Exception):
    """Something the user gave is wrong: says what, what was expected, what came and the way out."""

    exit_code = 2


class ConfigError(UserError):
    """A config field, flag or combination of them is wrong."""


class DataError(UserError):
    """A data set is missing, incomplete or corrupt."""


class CheckpointError(UserError):
    """A checkpoint is missing, corrupt, or belongs to another model, vocabulary or config."""


class DivergedError(UserError):
    """Training produced a number that is not finite."""

    exit_code = 3


class StorageError(UserError):
    """Writing failed: the disk is full or not writable."""

    exit_code = 74


class PreemptedError(UserError):
    """The run was asked to stop, and saved its state first."""

    exit_code = 75


class WaitError(UserError):
    """Another process of the job did not come to a place where all have to be."""

    exit_code = 75


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns ' Did you mean …?' with the names closest to `name`, or an empty string when none is close."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def choose(value: object, known: Iterable[object]) -> str:
    """Returns what follows a value that is not among the known ones: ": choose A, B or C. Did you mean 'B'?"."""
    *first, last = [str(name) for name in known] or [""]
    if not last:
        return ", and there are none."
    hint = nearest(value, [*first, last]) if isinstance(value, str) else ""
    return f": choose {', '.join(first) + ' or ' if first else ''}{last}.{hint}"


CHECKOUT = Path(__file__).parents[1]
"""The folder of the checkout; of a wheel, that in which packages are installed."""


def install(extra: str) -> str:
    """The command that installs an extra, in the folder of the checkout; from any, if jaxvqa was installed from a wheel."""
    if not (CHECKOUT / "pyproject.toml").is_file():
        return f"python -m pip install 'jaxvqa[{extra}]'"
    pins = "" if extra in ("beam", "tf") else f"-c constraints/py31{'1' if sys.version_info < (3, 12) else '2'}.txt "
    pins += (
        "-c constraints/cuda.txt " if extra.startswith("cuda") else ""
    )  # Beam and TensorFlow refuse the pinned versions
    return f"python -m pip install {pins}-e '.[{extra}]'"


# --- the operating system's errors ---------------------------------------------------------------------------------------

_FREE = "Free space, then start the same command again; what was complete is kept."
_RIGHTS = "Give yourself the right to it (chmod, chown), or give another path."
_WAIT = "Put it right, then start the same command again."
STORAGE = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EFBIG: "Raise the limit (ulimit -f), or give a path on another file system.",
    errno.EROFS: "Give a path on another file system, or mount this one for writing.",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EIO: _WAIT,
    errno.ESTALE: _WAIT,
    errno.ETIMEDOUT: _WAIT,
}
"""The way out of errors of a disk: exit code 74."""
PLACES = {
    errno.ENOENT: "Check the path.",
    errno.EEXIST: "Give another path, or move away what is there.",
    errno.ENOTDIR: "Give another path, or move away what is there.",
    errno.EISDIR: "Give the path of a file.",
    errno.ENOTEMPTY: "Give another path, or empty the folder.",
    errno.ENAMETOOLONG: "Give a shorter name.",
    errno.ELOOP: "Mend the links.",
    errno.EMFILE: "Raise the limit (ulimit -n).",
}
"""The way out where a path is not what it should be: exit code 2."""
_WORDS = {os.strerror(number): number for number in STORAGE} | {"Not enough disk space": errno.ENOSPC}


def from_os_error(
    error: OSError, *, path: str | os.PathLike[str] = "", expected: str = "", kind: type[UserError] = UserError
) -> UserError:
    """Returns the operating system's error as one that a user can act on: the path, what was expected, what came, the way out.

    Args:
      error: what was raised.
      path: what was opened, for errors that name no path.
      expected: what should have been there: "the answer list".
      kind: the class of the result, unless the disk is at fault, which makes it a `StorageError`.
    """
    named = [os.fspath(name) for name in (error.filename, error.filename2) if isinstance(name, str | os.PathLike)]
    where = " -> ".join(named) or os.fspath(path)
    number = _number(error)
    came = _found_at(Path(where)) if number in (errno.ENOENT, errno.EEXIST, errno.ENOTDIR) else ""
    parts = [
        f"{where}:" if where else "",
        f"{came or error.strerror or first_line(error)}.",
        f"Expected {expected}." if expected else "",
        (STORAGE | PLACES).get(number, ""),
    ]
    return (StorageError if number in STORAGE else kind)(" ".join(filter(None, parts)))


def _number(error: BaseException) -> int:
    """The system's number of an error, 0 if it has none; C++ libraries and TFDS only pass the system's words on."""
    number = error.errno if isinstance(error, OSError) else None
    return number or next((number for words, number in _WORDS.items() if words in str(error)), 0)


def _found_at(path: Path) -> str:
    """What stands in the way at `path` or above it, if something does."""
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            if place.is_symlink() and not place.exists():
                return f"{place} is a symbolic link to {place.readlink()}, which does not exist"
            if place.is_file():
                return f"a folder was expected, and {place} is a file"
    return ""


@contextlib.contextmanager
def os_errors(path: str | os.PathLike[str], expected: str = "") -> Iterator[None]:
    """Turns errors of reading from or writing to `path` into a `UserError` or `StorageError`; `expected` as above.

    Also those of libraries in C++, which report a full disk by a ValueError or RuntimeError.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError):
            raise from_os_error(error, path=path, expected=expected) from error
        if not _number(error):
            raise
        raise from_os_error(OSError(first_line(error)), path=path, expected=expected) from error


def run_command(prog: str, function: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit code. What a user can act on is one message on stderr; a bug is raised.

    Args:
      prog: the command's name, which the message begins with.
      function: the command; returns its exit code, None for 0.
    """
    try:
        return function() or 0
    except UserError as error:
        message, code = str(error), error.exit_code
    except BrokenPipeError:
        # Whoever reads the output has enough, as in `… | head`. Python's own flush at the end must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        known = from_os_error(error)
        message, code = str(known), known.exit_code
    except KeyboardInterrupt:
        message, code = "interrupted", 128 + signal.SIGINT
    print(f"{prog}: {message}", file=sys.stderr)
    return code


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type's name."""
    return (str(error).splitlines() or [type(error).__name__])[0]
