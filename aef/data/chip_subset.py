"""Which chips stand for all of a folder, where reading every pixel would take days."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aef.data.chips import ChipFolder

SHARE_OF_A_SOURCE = 20
"""A source that few chips hold is read from at least one chip for this many drawn."""

Part = tuple[int, tuple[str, ...] | None]
"""A chip of the folder and its sources to read; None: all of them."""


def draw_chips(folder: ChipFolder, indices: Sequence[int], count: int, seed: int) -> list[Part]:
    """``count`` of some chips at random, spread over places: none gives a second chip before each has given one.

    Of a source that too few of them hold, further chips that hold it are added, for that source alone: the others are
    judged by the random draw.
    """
    order = np.asarray(indices)[np.random.default_rng(seed).permutation(len(indices))]
    place = folder.index.place[order]
    together = np.argsort(place, kind="stable")
    turn = np.empty(len(order), np.int64)  # how many chips of its place come before it
    turn[together] = np.arange(len(order)) - np.searchsorted(place[together], place[together])
    order = order[np.argsort(turn, kind="stable")]
    drawn, others = order[:count], order[count:]
    further: dict[int, list[str]] = {}
    for column, name in enumerate(folder.index.sources):
        held = folder.index.present[:, column]
        missing = max(1, count // SHARE_OF_A_SOURCE) - int(held[drawn].sum())
        for index in others[held[others]][: max(0, missing)].tolist():
            further.setdefault(index, []).append(name)
    return [
        *((index, None) for index in sorted(drawn.tolist())),
        *((index, tuple(names)) for index, names in sorted(further.items())),
    ]
