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
==== ====================== =====================================================================
"""

import difflib
from collections.abc import Iterable


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


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns ' Did you mean …?' with the names closest to `name`, or an empty string when none is close."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
