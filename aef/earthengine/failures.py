"""What a failure of the service or of its client means: try again, ask for less, give the item up, or end the run."""

from __future__ import annotations

import re

import ee
import google.auth.exceptions

from aef.earthengine.errors import AccessError, EarthEngineError, QuotaError, RequestError, TooLargeError
from aef.one_line import one_line

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


def classify_failure(failure: Exception, status: int | None) -> Exception | None:
    """What a failed request means: an exception to raise, or None where another try may help.

    Only an answer of the service can be a refusal: 400, 404 and other 4xx fail at once (memory and time limits as
    `TooLargeError`, which is answered by asking for less), 401 and a refused refresh end the run, 403 ends it where the
    project is meant and fails the request where a data set is, 429 pauses the run where an allowance is spent and backs
    off otherwise; 408, 5xx, resets, time-outs and damaged answers back off. Where the client gave up without any
    answer, the run ends and nothing is recorded.
    """
    text = shown(failure)
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


def shown(error: object) -> str:
    """The message of an error in one line, without credentials."""
    return _SECRET.sub("[credential]", one_line(error, most=None))[:300]


def connection_failure(error: Exception, project: str | None) -> AccessError:
    """Why a project could not be connected to (`ee.Initialize`), and what to do."""
    text = shown(error)
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
