"""What people read before they wait: the line that was said before something was compiled, restored or read."""

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping

import jax
import pytest

from jaxvqa import checkpoints, logs
from jaxvqa.data.data_set import DataSet

COMPILED = "/jax/core/compile/backend_compile_duration"
LONG = (
    (checkpoints.Checkpoints, "restore"),
    (checkpoints.Checkpoints, "restore_model"),
    (DataSet, "split"),
)
"""Methods that may take long besides what is compiled."""

Noted = list[tuple[str, str]]
"""(what was compiled or called, the line before it), in order."""


class Listener(logging.Handler):
    """Keeps the last line."""

    def __init__(self) -> None:
        super().__init__()
        self.line = "nothing"
        self.noted: Noted = []

    def emit(self, record: logging.LogRecord) -> None:
        self.line = record.getMessage()

    def note(self, event: str, *_: object, **named: object) -> None:
        if event == COMPILED:
            self.noted.append((str(named["fun_name"]), self.line))


@contextlib.contextmanager
def heard() -> Iterator[Noted]:
    """Listens to what runs inside, by the program's commands or without."""
    listener, setup, level = Listener(), logs.setup, logs.log.level
    logs.log.addHandler(listener)
    logs.log.setLevel(logging.INFO)
    jax.monitoring.register_event_duration_secs_listener(listener.note)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "setup", lambda: (setup(), logs.log.addHandler(listener)))
        for kind, name in LONG:
            method = getattr(kind, name)

            def noting(*args, method=method, name=name, **options):
                listener.noted.append((name, listener.line))
                return method(*args, **options)

            patch.setattr(kind, name, noting)
        try:
            yield listener.noted
        finally:
            jax.monitoring.unregister_event_duration_listener(listener.note)
            logs.log.removeHandler(listener)
            logs.log.setLevel(level)


def assert_lines_before(noted: Noted, lines: Mapping[str, str]) -> None:
    """Each pattern of `lines` was compiled or called, and the first time behind a line of its pattern."""
    for what, line in lines.items():
        before = [last for name, last in noted if re.fullmatch(what, name)]
        assert before, f"{what} is not among {noted}"
        assert re.fullmatch(line, before[0]), f"{what} came after {before[0]!r}"
