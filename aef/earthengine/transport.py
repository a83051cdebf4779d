"""What is on the wire: how many requests at once, through which connections, and what the last answer's status was."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httplib2
import requests

from aef.earthengine.patience import Patience


class Gate:
    """Lets at most ``limit`` requests through at once; halves its width when told that this was too many and widens
    again by one for every ``limit`` answers. ``peak`` is the most that ever were inside."""

    def __init__(self, limit: int) -> None:
        self.limit, self.width, self.inside, self.peak, self._answers = limit, limit, 0, 0, 0
        self._condition = threading.Condition()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """A request's place inside, for the length of a block; waits until there is one."""
        with self._condition:
            self._condition.wait_for(lambda: self.inside < self.width)
            self.inside += 1
            self.peak = max(self.peak, self.inside)
        try:
            yield
        finally:
            with self._condition:
                self.inside -= 1
                self._condition.notify()

    def narrow(self) -> None:
        """The service said that this was too many: let half as many through."""
        with self._condition:
            self.width, self._answers = max(1, self.width // 2), 0

    def answered(self) -> None:
        """The service answered: after as many answers as the gate is wide, let one more through."""
        with self._condition:
            self._answers += 1
            if self.width < self.limit and self._answers >= self.width:
                self.width, self._answers = self.width + 1, 0
                self._condition.notify_all()


class Transport:
    """The HTTP side of the client: a connection pool as wide as the gate, time limits, and the last answer's status.

    ``admitted`` is entered around what is on the wire and nothing else, so that no turn is taken while a graph is
    written out or an answer is decoded. The client translates an error answer to its message alone; the status and
    Retry-After that decide what to do next are kept per thread.
    """

    def __init__(
        self, connections: int, patience: Patience, admitted: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._admitted = admitted
        self._surroundings: dict[str, Any] = {}
        self._session = requests.Session()
        # The client adds its own token; without this every request would look for a .netrc file.
        self._session.auth = lambda request: request
        adapter = requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=connections, max_retries=0)
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)
        self._timeout = (patience.connect_s, patience.answer_s)
        self._last = threading.local()

    @property
    def status(self) -> int | None:
        """HTTP status of this thread's last answer; None where none came."""
        return getattr(self._last, "status", None)

    @property
    def retry_after_s(self) -> float | None:
        """Seconds that the last answer asked to wait; None where it did not say."""
        text = getattr(self._last, "retry_after", None)
        return float(text) if text and re.fullmatch(r"\d{1,5}(\.\d+)?", text) else None

    def forget(self) -> None:
        """Before a request, so that an earlier answer is not taken for its own."""
        self._last.status = self._last.retry_after = None

    def request(self, uri, method="GET", body=None, headers=None, redirections=None, connection_type=None):
        """As `httplib2.Http.request`, which the client expects. Raises TimeoutError and ConnectionError."""
        prepared = self._session.prepare_request(requests.Request(method, uri, headers=headers, data=body))
        try:
            with self._admitted():
                answer = self._session.send(prepared, timeout=self._timeout, **self._surrounding(uri))
        except requests.exceptions.Timeout as error:
            raise TimeoutError(str(error)) from error
        except requests.exceptions.RequestException as error:
            raise ConnectionError(str(error)) from error
        self._last.status, self._last.retry_after = answer.status_code, answer.headers.get("Retry-After")
        return httplib2.Response({**answer.headers, "status": answer.status_code}), answer.content

    def _surrounding(self, uri: str) -> dict[str, Any]:
        """Proxies and certificates that the environment names for a host: looked up once, not for every request."""
        host = uri.split("/", 3)[2]
        if host not in self._surroundings:
            self._surroundings[host] = self._session.merge_environment_settings(uri, {}, None, None, None)
        return self._surroundings[host]
