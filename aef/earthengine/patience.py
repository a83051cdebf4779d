"""How long to wait for an answer, and between one try and the next."""

from __future__ import annotations

from dataclasses import dataclass


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
        """Seconds before try ``attempt`` + 1: doubling, times a jitter of 0.5 to 1.5; at least ``asked_s``."""
        backoff = min(self.longest_s, self.first_s * 2**attempt) * (0.5 + jitter)
        return max(backoff, asked_s or 0.0)
