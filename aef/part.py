"""The K-th of N parts of a list of work, for one of N processes that know nothing of one another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple


class Part(NamedTuple):
    """Part ``number`` of ``total``, counted from 1."""

    number: int
    total: int

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


WHOLE = Part(1, 1)
"""All of the work."""


def parse_part(text: str) -> Part:
    """``K/N`` with 1 ≤ K ≤ N. Raises ValueError."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"--part: expected K/N with K from 1 to N, like 2/8, found {text!r}")
    return Part(int(number), int(count))


def part_of_rank(environment: Mapping[str, str] = os.environ) -> Part:
    """The part of a rank that torchrun started: RANK + 1 of WORLD_SIZE. Raises ValueError where the two are not set."""
    rank, size = (environment.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        found = f"RANK={rank or '(not set)'} and WORLD_SIZE={size or '(not set)'}"
        raise ValueError(f"--part auto: expected the environment of torchrun, found {found}: give --part K/N")
    return Part(int(rank) + 1, int(size))


def is_a_rank_of_several(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun, or who sets what it sets, started more processes than this one."""
    return "RANK" in environment and environment.get("WORLD_SIZE", "1") not in ("", "1")
