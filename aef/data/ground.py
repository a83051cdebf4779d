"""Chips of two places that show the same ground: what is kept from training at one is seen at the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from aef.data.chips import ChipError, ChipFolder
from aef.data.contract import METRES_PER_DEGREE

MOST_CHIPS = 20_000
"""Headers that are read for it, a matter of seconds; sites of larger corpora are drawn apart (docs/download.md)."""

LEAST_SHARE = 0.05
"""Of the side: less is the difference between two UTM zones, in which neighbours were laid out."""


class _Ground(NamedTuple):
    """Where chips lie, (N,) each: centres in degrees, half sides in metres. ``rows`` are their places in the folder."""

    rows: np.ndarray
    lon: np.ndarray
    lat: np.ndarray
    half_x: np.ndarray
    half_y: np.ndarray


def describe_shared_ground(folder: ChipFolder, held_out: Iterable[str], withheld: Iterable[str]) -> str | None:
    """One line on training chips that show ground of places which are held out, or withheld on some dates; or None.

    Compares outlines; synthetic chips lie nowhere. Folders of more than `MOST_CHIPS` are not looked at.
    """
    held_out, withheld = set(held_out), set(withheld)
    if not held_out | withheld or len(folder) > MOST_CHIPS:
        return None
    places, ground = folder.places(), _read(folder)
    unseen = np.array([places[row] in held_out for row in ground.rows], np.bool_)
    for kept, word in ((held_out, "held out"), (withheld - held_out, "withheld on some dates")):
        own = np.array([places[row] in kept for row in ground.rows], np.bool_)
        pairs = [
            (row, int(ground.rows[at]))
            for at in np.flatnonzero(own).tolist()
            for row in ground.rows[_meets(ground, at) & ~own & ~unseen].tolist()
        ]
        if pairs:
            seen, hidden = pairs[0]
            return (
                f"{len({row for row, _ in pairs})} training chips show ground of {len({places[at] for _, at in pairs})} places that "
                f"are {word}, so that it is seen there: the first is {folder.files[seen].name} of place {places[seen]}, over "
                f"{folder.files[hidden].name} of {places[hidden]}; let chips of one ground share their place, or keep both from training"
            )
    return None


def _read(folder: ChipFolder) -> _Ground:
    found = []
    for row in range(len(folder)):
        try:
            header = folder.header(row)
        except ChipError:
            continue  # whoever reads the chip says what is wrong with it
        if not header["synthetic"]:
            sides = np.abs(np.array(header["transform"])[[0, 4]]) * (header["width"], header["height"]) / 2
            found.append((row, header["lon"], header["lat"], *sides))
    columns = np.array(found, np.float64).reshape(-1, 5).T
    return _Ground(columns[0].astype(np.int64), *columns[1:])


def _meets(ground: _Ground, at: int) -> np.ndarray:
    """Which chips share more than a rim with one of them, (N,) bool; by a tangent plane, which is exact enough for that."""
    north = np.abs(ground.lat - ground.lat[at]) * METRES_PER_DEGREE
    turn = np.abs((ground.lon - ground.lon[at] + 180) % 360 - 180)
    east = turn * METRES_PER_DEGREE * np.cos(np.radians(ground.lat[at]))
    met = np.ones(len(ground.rows), np.bool_)
    for apart, half in ((east, ground.half_x), (north, ground.half_y)):
        met &= half + half[at] - apart > LEAST_SHARE * 2 * np.minimum(half, half[at])
    return met
