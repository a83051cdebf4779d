"""A connected Earth Engine project: the official client, within the service's limits, with our own patience.

The client's own retries are switched off; every request passes the gate (at most ``in_flight`` at once), is retried
with exponential backoff and jitter where another try can help, fails at once where it cannot, and pauses the whole run
where the project's compute allowance is spent. Nothing here logs or stores a credential.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import ee
import google.auth.exceptions
import numpy as np

from aef.earthengine.errors import (
    AccessError,
    EarthEngineError,
    QuotaError,
    RequestError,
    UnavailableError,
)
from aef.earthengine.failures import classify_failure, connection_failure, shown
from aef.earthengine.npy import read_npy
from aef.earthengine.patience import Patience
from aef.earthengine.transport import Gate, Transport

MAX_IN_FLIGHT = 40
"""Concurrent requests that the service grants a project by default, on either endpoint."""

ENDPOINTS = {"high-volume": ee.data.HIGH_VOLUME_API_BASE_URL, "standard": "https://earthengine.googleapis.com"}
WORKLOAD_TAG = "aef-download"
_SCOPES = ["https://www.googleapis.com/auth/earthengine", "https://www.googleapis.com/auth/cloud-platform"]


class Service:
    """A connected project. Use as a context manager; safe to share between threads. The client library knows one
    connection at a time: opening another ends the use of the one before.

    Args:
        project: Cloud project that is registered for Earth Engine.
        endpoint: ``high-volume``, ``standard`` or a URL.
        key_file: service account key (JSON); None uses what ``earthengine authenticate`` or gcloud left.
        in_flight: most requests at once.
        patience: waits and time limits.
        say: where the user is told of pauses.

    Raises:
        AccessError: no credentials, no project, no permission or no network; one sentence and what to do.
    """

    _connected: ClassVar[Service | None] = None

    def __init__(
        self,
        project: str | None,
        *,
        endpoint: str = "high-volume",
        key_file: str | Path | None = None,
        in_flight: int = MAX_IN_FLIGHT,
        patience: Patience | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        if not 1 <= in_flight <= MAX_IN_FLIGHT:
            raise EarthEngineError(
                f"workers: the service allows 1 to {MAX_IN_FLIGHT} requests at once, found {in_flight}"
            )
        self.patience, self.gate, self._say = patience or Patience(), Gate(in_flight), say
        self.requests = self.retries = self.bytes = 0
        self._counts, self._stopped, self._pauses = threading.Lock(), threading.Event(), 0
        self._pause_lock, self._paused_until = threading.Lock(), 0.0
        self._last_success = self._last_answer = time.monotonic()
        self._transport = Transport(in_flight + 8, self.patience, self._admitted)
        self._connect(project, ENDPOINTS.get(endpoint, endpoint), key_file)

    def _connect(self, project: str | None, url: str, key_file: str | Path | None) -> None:
        if not re.match(r"https?://", url):
            raise AccessError(f"endpoint: expected {', '.join(ENDPOINTS)} or a URL, found {url!r}")
        Service._connected = self
        ee.data.setMaxRetries(0)
        try:
            credentials: Any = "persistent" if key_file is None else _service_account(key_file)
            ee.Initialize(credentials, project=project, url=url.rstrip("/"), http_transport=self._transport)
            ee.data.setWorkloadTag(WORKLOAD_TAG)
        except (ee.EEException, google.auth.exceptions.GoogleAuthError, OSError, ValueError) as error:
            raise connection_failure(error, project) from None

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if Service._connected is self:
            Service._connected = None
            ee.Reset()

    def stop(self) -> None:
        """Wake every waiting request and let it give up."""
        self._stopped.set()

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        with self.gate.entered():
            if self._stopped.is_set():
                raise UnavailableError("the run was stopped")
            yield

    # --- requests ----------------------------------------------------------------------------------------------------

    def value(self, graph: ee.ComputedObject) -> Any:
        """The value of a graph (`computeValue`), retried. Raises as `pixels` does."""
        return self._patiently(lambda: ee.data.computeValue(graph))

    def pixels(
        self, image: ee.Image, grid: Mapping[str, Any], names: Sequence[str], dtypes: Sequence[str]
    ) -> np.ndarray:
        """Pixels of an image on a grid (`computePixels`) as a structured array with the fields ``names``, in any order.

        Raises:
            TooLargeError: memory or time ran out on the service: ask for less at once.
            RequestError: refused for good.
            UnavailableError: no answer in spite of every try.
            AccessError, QuotaError: the run has to end.
        """
        body = {"expression": image, "fileFormat": "NPY", "grid": grid}
        shape = (grid["dimensions"]["height"], grid["dimensions"]["width"])

        def ask() -> np.ndarray:
            answer = read_npy(ee.data.computePixels(body))
            if answer.shape != shape or set(answer.dtype.names or ()) != set(names):
                raise RequestError(
                    f"the service answered {answer.shape} pixels with the bands {', '.join(answer.dtype.names or ())[:80]}; "
                    f"asked were {shape} with {', '.join(names)[:80]}"
                )
            for name, dtype in zip(names, dtypes):
                if not np.can_cast(answer.dtype[name], dtype, "same_kind"):
                    raise RequestError(f"band {name} came as {answer.dtype[name]}, expected {dtype}")
            with self._counts:
                self.bytes += answer.nbytes
            return answer

        return self._patiently(ask)

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        attempt, since = 0, 0.0
        while True:
            self._wait_while_paused()
            if self._stopped.is_set():
                raise UnavailableError("the run was stopped")
            if Service._connected is not self:
                raise EarthEngineError("this connection to Earth Engine was closed, or another was opened since")
            since = since or time.monotonic()
            self._transport.forget()
            with self._counts:
                self.requests += 1
            try:
                answer = ask()
            except (RequestError, EarthEngineError):
                raise
            except Exception as error:
                failure, status, asked_s = error, self._transport.status, self._transport.retry_after_s
                if status is not None:
                    self._last_answer = time.monotonic()
            else:
                self._last_success = self._last_answer = time.monotonic()
                self.gate.answered()
                return answer
            verdict = classify_failure(failure, status)
            if isinstance(verdict, QuotaError):
                self._pause(verdict)
                continue
            if verdict is not None:
                raise verdict
            if status == 429:
                self.gate.narrow()
            attempt += 1
            if attempt >= self.patience.tries:
                raise self._gave_up(failure, since)
            with self._counts:
                self.retries += 1
            self._stopped.wait(self.patience.wait_s(attempt - 1, asked_s, random.random()))

    def _gave_up(self, failure: Exception, since: float) -> Exception:
        """After the last try: the network is gone where nobody heard from the service since the first one."""
        reason = shown(failure)
        if self._last_answer < since:
            silent_s = time.monotonic() - self._last_answer
            return AccessError(
                f"no answer from Earth Engine for {silent_s:.0f} s ({reason}): check the network, then run the same "
                "command again; what is done is not fetched twice"
            )
        return UnavailableError(f"no answer after {self.patience.tries} tries ({reason})")

    def _wait_while_paused(self) -> None:
        while (left := self._paused_until - time.monotonic()) > 0 and not self._stopped.wait(left):
            pass

    def _pause(self, error: QuotaError) -> None:
        """The quota guard: one pause for all threads; after a few in a row without success the run ends."""
        with self._pause_lock:
            now = time.monotonic()
            if now < self._paused_until:
                return
            if self._last_success > self._paused_until:
                self._pauses = 0
            if self._pauses >= self.patience.quota_pauses:
                raise error
            self._pauses += 1
            self._paused_until = now + self.patience.quota_pause_s
            self._say(
                f"the project's Earth Engine quota is spent ({shown(error)[:120]}); pausing "
                f"{self.patience.quota_pause_s / 60:.0f} min ({self._pauses} of {self.patience.quota_pauses})"
            )


def _service_account(key_file: str | Path):
    from google.oauth2 import service_account

    try:
        return service_account.Credentials.from_service_account_file(str(key_file), scopes=_SCOPES)
    except ValueError:
        # The library's message may quote the file.
        raise AccessError(f"{key_file}: is not a service account key (JSON)") from None
