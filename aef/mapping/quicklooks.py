"""Pictures beside the files of embedding fields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from aef.atomic import writing
from aef.mapping.files import preview
from aef.mapping.picture import Colours

COLOURED = 2**18
"""Vectors, evenly over all fields, from which the colours are taken: a large folder's do not fit in memory."""


def write_quicklooks(paths: Sequence[Path]) -> None:
    """One PNG beside each field, with colours shared by all of them.

    Raises:
        ImportError: Matplotlib is not installed.
        ValueError: no pixel of them has a vector.
    """
    import matplotlib.image

    side = max(8, math.isqrt(COLOURED // len(paths)))
    sample = paths[:: max(1, len(paths) * side**2 // COLOURED)]
    colours = Colours.of([preview(path, side) for path in sample])
    for path in paths:
        picture = colours.picture(preview(path))
        scale = max(1, 512 // max(picture.shape[:2]))
        with writing(path.with_suffix(".png")) as stream:
            matplotlib.image.imsave(stream, picture.repeat(scale, 0).repeat(scale, 1), format="png")  # type: ignore[arg-type]
