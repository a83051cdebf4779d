"""What can go wrong between here and Earth Engine, sorted by what to do about it."""

from __future__ import annotations


class EarthEngineError(ValueError):
    """Ends the run with one clear sentence; what is done stays done, and the same command goes on from there."""


class AccessError(EarthEngineError):
    """Credentials, project, permission or network: no request can succeed until the user acts."""


class QuotaError(EarthEngineError):
    """The project's compute allowance is spent and the pauses did not help."""


class RequestError(ValueError):
    """One request failed for good; its item is recorded as failed and the run goes on."""


class TooLargeError(RequestError):
    """The service ran out of memory or time for this request: ask for less at once."""


class UnavailableError(RequestError):
    """The service did not answer in spite of every retry; another run may succeed."""
