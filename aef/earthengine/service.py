"""One door to the Earth Engine service: the official client, within its limits, with our own patience.

The client's own retries are switched off; every request passes the gate (at most ``in_flight`` at once), is retried with
exponential backoff and jitter where another try can help, fails at once where it cannot, and pauses the whole run where
the project's compute allowance is spent. Nothing here logs or stores a credential.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import ee
import google.auth.exceptions
import httplib2
import numpy as np
import requests

from aef.earthengine.errors import (
    AccessError,
    EarthEngineError,
    QuotaError,
    RequestError,
    TooLargeError,
    UnavailableError,
)
from aef.earthengine.npy import read_npy

MAX_IN_FLIGHT = 40
"""Concurrent requests that the service grants a project by default, on either endpoint."""

ENDPOINTS = {"high-volume": ee.data.HIGH_VOLUME_API_BASE_URL, "standard": "https://earthengine.googleapis.com"}
WORKLOAD_TAG = "aef-download"
_SCOPES = ["https://www.googleapis.com/auth/earthengine", "https://www.googleapis.com/auth/cloud-platform"]


@dataclass(frozen=True)
class Patience:
    """Backoff between tries and pauses of the whole run, in seconds."""

    tries: int = 8
    first_s: float = 1.0
    longest_s: float = 60.0
    quota_pause_s: float = 900.0
    quota_pauses: int = 4
    connect_s: float = 15.0
    answer_s: float = 330.0

    def wait_s(self, attempt: int, asked_s: float | None, jitter: float) -> float:
        """Seconds before try ``attempt`` + 1: doubling, times a jitter of 0.5 to 1.5; at least what the service asked for."""
        backoff = min(self.longest_s, self.first_s * 2**attempt) * (0.5 + jitter)
        return max(backoff, asked_s or 0.0)


class Gate:
    """Lets at most ``limit`` requests through at once; halves its width when told that this was too many and widens again
    by one for every ``limit`` answers. ``peak`` is the most that ever were inside."""

    def __init__(self, limit: int) -> None:
        self.limit, self.width, self.inside, self.peak, self._answers = limit, limit, 0, 0, 0
        self._condition = threading.Condition()

    @contextmanager
    def entered(self):
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
        with self._condition:
            self.width, self._answers = max(1, self.width // 2), 0

    def answered(self) -> None:
        with self._condition:
            self._answers += 1
            if self.width < self.limit and self._answers >= self.width:
                self.width, self._answers = self.width + 1, 0
                self._condition.notify_all()


class _Transport:
    """The HTTP side of the client: a connection pool as wide as the gate, time limits, and the last answer's status.

    ``admitted`` is entered around what is on the wire and nothing else, so that no place is taken while a graph is written
    out or an answer is decoded. The client translates an error answer to its message alone; the status and Retry-After
    that decide what to do next are kept per thread.
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
        return getattr(self._last, "status", None)

    @property
    def retry_after_s(self) -> float | None:
        text = getattr(self._last, "retry_after", None)
        return float(text) if text and re.fullmatch(r"\d{1,5}(\.\d+)?", text) else None

    def forget(self) -> None:
        self._last.status = self._last.retry_after = None

    def request(self, uri, method="GET", body=None, headers=None, redirections=None, connection_type=None):
        """As `httplib2.Http.request`, which the client expects."""
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


class Service:
    """A connected project. Use as a context manager; safe to share between threads. The client library knows one connection
    at a time: opening another ends the use of the one before.

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
        self._transport = _Transport(in_flight + 8, self.patience, self._admitted)
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
            raise _connecting(error, project) from None

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
            verdict = judge(failure, status)
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
        reason = _one_line(failure)
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
                f"the project's Earth Engine quota is spent ({_one_line(error)[:120]}); pausing "
                f"{self.patience.quota_pause_s / 60:.0f} min ({self._pauses} of {self.patience.quota_pauses})"
            )


# --- what an error means ---------------------------------------------------------------------------------------------

_TOO_LARGE = re.compile(
    r"memory limit|out of memory|timed out|too many pixels|total request size|too large|deadline", re.I
)
_TOO_MANY_ELEMENTS = re.compile(r"accumulating over \d+ elements", re.I)
_ALLOWANCE = re.compile(r"(EECU|compute.?time|month|daily|per day|noncommercial|non-commercial)", re.I)
_PROJECT = re.compile(
    r"not registered|not signed up|has not been used in project|required permission to use project|serviceusage|"
    r"project .*(not found|deleted|disabled|billing)|caller does not have permission",
    re.I,
)
_SECRET = re.compile(
    r"ya29\.[\w\-.]+|1//[\w\-]+|Bearer\s+\S+|-----BEGIN[^-]+-----.*?-----END[^-]+-----|AIza[\w\-]{10,}", re.S
)


def judge(failure: Exception, status: int | None) -> Exception | None:
    """What a failed request means: an exception to raise, or None where another try may help.

    Only an answer of the service can be a refusal: 400, 404 and other 4xx fail at once (memory and time limits as
    `TooLargeError`, which is answered by asking for less), 401 and a refused refresh end the run, 403 ends it where the
    project is meant and fails the request where a data set is, 429 pauses the run where an allowance is spent and backs
    off otherwise; 408, 5xx, resets, time-outs and damaged answers back off. Where the client gave up without any
    answer, the run ends and nothing is recorded.
    """
    text = _one_line(failure)
    if isinstance(failure, google.auth.exceptions.RefreshError) and failure.retryable:
        return None
    if isinstance(failure, google.auth.exceptions.RefreshError) or status == 401:
        return AccessError(
            "the credentials have expired or were revoked: run `earthengine authenticate` (or renew the service account "
            "key), then run the same command again; what is done is not fetched twice"
        )
    if isinstance(failure, google.auth.exceptions.TransportError | ConnectionError | TimeoutError):
        return None
    if isinstance(failure, MemoryError):
        return TooLargeError("this machine ran out of memory while it decoded an answer")
    if status == 429:
        return QuotaError(f"quota exhausted: {text}") if _ALLOWANCE.search(text) else None
    if status == 403:
        if _PROJECT.search(text):
            return AccessError(f"the project may not use Earth Engine ({text}): register it or ask for access")
        return RequestError(f"permission denied ({text})")
    if status is not None and (status >= 500 or status == 408):
        return None
    if status is not None and status >= 400:
        if _TOO_LARGE.search(text) or _TOO_MANY_ELEMENTS.search(text) or status == 413:
            return TooLargeError(text)
        return RequestError(text)
    if isinstance(failure, ee.EEException):
        return EarthEngineError(
            f"the Earth Engine client failed without an answer of the service ({text}): run the same command again; what "
            "is done is not fetched twice"
        )
    if isinstance(failure, ValueError | EOFError | OSError | TypeError | KeyError):
        return None  # a truncated or garbled body: it is no array, or no JSON (which the client hands on as text)
    return failure


def _one_line(error: object) -> str:
    return _SECRET.sub("[credential]", " ".join(str(error).split()))[:300] or type(error).__name__


def _connecting(error: Exception, project: str | None) -> AccessError:
    text = _one_line(error)
    if "authorize access" in text or isinstance(error, google.auth.exceptions.DefaultCredentialsError):
        return AccessError(
            "no Earth Engine credentials on this machine: run `earthengine authenticate` once, then try again"
        )
    if isinstance(error, google.auth.exceptions.RefreshError):
        return AccessError(
            "the stored Earth Engine credentials are no longer accepted: run `earthengine authenticate` again"
        )
    if "no project found" in text.lower() or ("project" in text.lower() and not project):
        return AccessError("no Cloud project was given: add --project with one that is registered for Earth Engine")
    if isinstance(error, ConnectionError | TimeoutError | google.auth.exceptions.TransportError):
        return AccessError(f"Earth Engine cannot be reached ({text}): check the network or proxy")
    if isinstance(error, FileNotFoundError):
        return AccessError(f"{error.filename}: no such service account key")
    if isinstance(error, ee.EEException):
        return AccessError(f"the project {project!r} may not use Earth Engine ({text}): register it or ask for access")
    return AccessError(text)


def _service_account(key_file: str | Path):
    from google.oauth2 import service_account

    try:
        return service_account.Credentials.from_service_account_file(str(key_file), scopes=_SCOPES)
    except ValueError:
        # The library's message may quote the file.
        raise AccessError(f"{key_file}: is not a service account key (JSON)") from None
