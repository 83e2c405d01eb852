"""The type checker of the import hook: beartype, asked once for each function definition.

The hook checks functions within functions too, and decorates them each time they are defined. Tracing a deep network defines
the same few thousands of times, and beartype writes code for each: a fifth of the time of a trace.
"""

from collections.abc import Callable
from typing import Any

from beartype import beartype

_checked: dict[Any, Callable[..., Any]] = {}


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype's checks of a function without a body, which is what jaxtyping asks about: only its annotations matter."""
    hints = function.__annotations__
    if all(hint is Any for hint in hints.values()):
        return function
    definition = (function.__module__, function.__qualname__, function.__code__, *hints.items())
    if definition not in _checked:
        _checked[definition] = beartype(function)
    return _checked[definition]
