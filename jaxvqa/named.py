"""What a name stands for: a row of one of the package's tables, or the place of a user's own thing, "package.module:Name"."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from jaxvqa.errors import ConfigError, UserError, choose, first_line, nearest

OWN = "One of your own is named by its place, package.module:Name."


@dataclass(frozen=True)
class Named:
    """The things of one kind, by name.

    Attributes:
      kind: what they are, for messages: "a task".
      table: name -> the thing itself, or where it is, as "module:Name".
      expected: what a thing of a user's own has to be, in words.
      fits: whether it is that.
      default: what is meant where no `:Name` stands behind a module; empty where it has to.
      error: what is raised.
    """

    kind: str
    table: Mapping[str, Any]
    expected: str
    fits: Callable[[Any], bool]
    default: str = ""
    error: type[UserError] = ConfigError

    def get(self, name: Any, field: str) -> Any:
        """The thing of that name.

        Args:
          name: a name of the table, or "package.module:Name".
          field: what holds the name, for the message.

        Raises:
          UserError: `error`; there is none, or the module cannot be imported, lacks the name, or has something else there.
        """
        if isinstance(name, str) and name in self.table:
            found = self.table[name]
            return found if not isinstance(found, str) else pkgutil.resolve_name(found)
        if not self.is_own(name):
            raise self.error(f"{field} is {name!r}{choose(name, self.table)} {OWN}")
        module, attribute = _parts(name, self.default)
        wrong = f"{field} is {name!r}; expected {self.kind} of your own there, {self.expected}, but"
        try:
            found = importlib.import_module(module)
        except Exception as error:  # it is the user's own program
            why = f"{type(error).__name__}: {first_line(error).rstrip('.')}"
            raise self.error(
                f"{wrong} {module!r} cannot be imported: {why}. Put that right; the folder that a package lies in is the "
                "one where the command is typed, or stands in PYTHONPATH."
            ) from error
        if not hasattr(found, attribute):
            known = [each for each in vars(found) if not each.startswith("_")]
            raise self.error(f"{wrong} {module} has no {attribute!r}.{nearest(attribute, known)}")
        found = getattr(found, attribute)
        if not self.fits(found):
            is_a = f"the class {found.__name__}" if isinstance(found, type) else f"of the type {type(found).__name__}"
            raise self.error(f"{wrong} it is {is_a}.")
        return found

    def fault(self, name: Any) -> str:
        """What is wrong with a name, in words that follow the field's; empty for nothing."""
        try:
            self.get(name, "")
        except UserError as error:
            return str(error)
        return ""

    def module(self, name: Any) -> ModuleType | None:
        """The module that a name says; None for an unknown one, and where the table has no modules."""
        place = self.table.get(name, name) if isinstance(name, str) else None
        if not isinstance(place, str) or self.fault(name):
            return None
        return importlib.import_module(_parts(place)[0])

    def is_own(self, name: Any) -> bool:
        """Whether a name is the place of something in a user's own package."""
        return isinstance(name, str) and name not in self.table and (":" in name or bool(self.default and "." in name))


def _parts(place: str, default: str = "") -> tuple[str, str]:
    module, _, attribute = place.partition(":")
    return module, attribute or default
