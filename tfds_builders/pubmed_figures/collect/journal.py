"""What became of each article and figure, in one SQLite file: a run that was killed goes on where it was."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jaxvqa.errors import DataError

STATES = ("found", "fetched", "split", "refused")
"""In the order in which an article or figure goes through them; what is refused stays so, with its reason."""


class Journal:
    """Articles ("PMC123") and figures ("PMC123/fig1") with their state.

    Args:
      path: The file; made if it is not there.

    Raises:
      DataError: The file is not a journal.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, timeout=10)
        try:
            # What was written survives a process that is killed, without waiting for the disk each time.
            self._database.execute("pragma journal_mode = wal")
            self._database.execute("pragma synchronous = normal")
            self._database.execute(
                "create table if not exists items "
                "(number integer primary key autoincrement, id text unique, state text, why text, data text)"
            )
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise DataError(f"{path} is not a journal ({error}). Move it away to start again.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def put(self, name: str, state: str, why: str = "", **data: Any) -> None:
        """Writes an item's state at once, adding to what is known of it.

        Args:
          name: The article, or article and figure with a slash between them.
          state: One of `STATES`.
          why: Of what is refused, the reason.
          data: Anything that JSON holds.
        """
        if state not in STATES:
            raise ValueError(f"state {state!r} is not one of {', '.join(STATES)}")
        with self._database:
            row = self._database.execute("select data from items where id = ?", (name,)).fetchone()
            known = json.loads(row[0]) if row else {}
            self._database.execute(
                "insert into items (id, state, why, data) values (?, ?, ?, ?) "
                "on conflict (id) do update set state = excluded.state, why = excluded.why, data = excluded.data",
                (name, state, why, json.dumps(known | data, ensure_ascii=False)),
            )

    def get(self, name: str) -> dict[str, Any] | None:
        """Returns an item's data with `id`, `state` and `why`; None if it is not known."""
        row = self._database.execute("select id, state, why, data from items where id = ?", (name,)).fetchone()
        return _item(row) if row else None

    def items(self, *states: str, figures: bool) -> Iterator[dict[str, Any]]:
        """Yields articles or figures, first come first.

        Args:
          states: Those of these states; none for all.
          figures: Whether figures or articles.
        """
        rows = self._database.execute("select id, state, why, data from items order by number").fetchall()
        for row in rows:
            if ("/" in row[0]) == figures and (not states or row[1] in states):
                yield _item(row)

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns {"articles": {state: number}, "figures": {…}}."""
        counts: dict[str, dict[str, int]] = {"articles": {}, "figures": {}}
        for name, state in self._database.execute("select id, state from items"):
            kind = counts["figures" if "/" in name else "articles"]
            kind[state] = kind.get(state, 0) + 1
        return counts


def _item(row: tuple[str, str, str, str]) -> dict[str, Any]:
    return {**json.loads(row[3]), "id": row[0], "state": row[1], "why": row[2]}
