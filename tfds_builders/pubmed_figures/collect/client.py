"""Asks public services as they want to be asked: slowly, with a name, and again after a while when they are busy."""

import dataclasses
import email.utils
import json
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from jaxvqa.errors import DataError, UserError, install

RATE, RATE_WITH_KEY = 3.0, 10.0
"""Requests a second that the E-utilities allow without and with a key."""

BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Answers after which a request is made again."""
CLOSED = (401, 403)
"""Answers after which nothing more is asked: it is not the article that is refused, but whoever asks."""


class MissingError(DataError):
    """The service does not have it, or will not give it: a retry changes nothing."""


class ServiceError(UserError):
    """A service did not answer as it should, however often it was asked: start again later."""

    exit_code = 75


@dataclasses.dataclass
class Client:
    """Requests with a rate, retries and limits.

    Attributes:
      rate: Requests a second at the most, retries counted, for all hosts together.
      retries: How often a request is made again.
      timeout: Seconds without an answer.
      longest_wait: Seconds to wait at the most before a retry, whatever a service asks for.
      agent: What the services are told of who asks.
      sleep, clock: For tests.
    """

    rate: float = RATE
    retries: int = 5
    timeout: float = 60.0
    longest_wait: float = 120.0
    agent: str = "jaxvqa"
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        try:
            import requests
        except ImportError:
            raise DataError(f"Fetching needs the package requests: {install('pubmed')}") from None
        self._session = requests.Session()
        self._session.headers["User-Agent"] = self.agent
        self._turn, self._next = threading.Lock(), 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def get(self, url: str, params: Mapping[str, str] | None = None, *, most_bytes: int = 10_000_000) -> bytes:
        """Returns what is at an address.

        Args:
          url: The address.
          params: The query.
          most_bytes: A longer answer is not read to its end.

        Raises:
          MissingError: It is not there, or longer than `most_bytes`.
          ServiceError: The service stays busy, cannot be reached, or cuts its answers.
        """
        import requests

        why = ""
        for attempt in range(self.retries + 1):
            self._wait_for_turn()
            wait = min(self.longest_wait, 2.0**attempt)
            try:
                with self._session.get(url, params=params, timeout=self.timeout, stream=True) as answer:
                    if answer.status_code == 200:
                        return self._body(answer, url, most_bytes)
                    why = f"HTTP {answer.status_code}"
                    if answer.status_code in CLOSED:
                        raise ServiceError(
                            f"{_shown(url)}: {why}: the service does not let this machine in. Try again later."
                        )
                    if answer.status_code not in BUSY:
                        raise MissingError(f"{_shown(url)}: {why}")
                    wait = min(self.longest_wait, max(wait, _retry_after(answer.headers.get("Retry-After", ""))))
            except requests.RequestException as error:
                why = f"{type(error).__name__}: {str(error)[:200]}"
            if attempt < self.retries:
                self.sleep(wait)
        raise ServiceError(
            f"{_shown(url)}: {why}, {self.retries + 1} times. Start the same command again later: it goes on."
        )

    def get_json(self, url: str, params: Mapping[str, str] | None = None) -> Any:
        """Returns the JSON at an address.

        Raises:
          ServiceError: The answer is not JSON, or as in `get`.
        """
        data = self.get(url, params)
        try:
            return json.loads(data)
        except ValueError:
            raise ServiceError(f"{_shown(url)}: the answer is not JSON: {data[:80]!r}. Is the address right?") from None

    def _body(self, answer: Any, url: str, most_bytes: int) -> bytes:
        length = answer.headers.get("Content-Length", "")
        if length.isdigit() and int(length) > most_bytes:
            raise MissingError(f"{_shown(url)}: {int(length):,} bytes, more than {most_bytes:,}")
        parts, size = [], 0
        for part in answer.iter_content(1 << 16):
            parts.append(part)
            size += len(part)
            if size > most_bytes:
                raise MissingError(f"{_shown(url)}: more than {most_bytes:,} bytes")
        return b"".join(parts)

    def _wait_for_turn(self) -> None:
        with self._turn:
            now = self.clock()
            if now < self._next:
                self.sleep(self._next - now)
            self._next = max(now, self._next) + 1 / self.rate


def _retry_after(value: str) -> float:
    """Returns seconds from a Retry-After header: a number, or a date."""
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def _shown(url: str) -> str:
    """An address without its query, which may hold a key."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"
