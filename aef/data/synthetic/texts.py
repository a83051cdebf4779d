"""Short texts about a place: what grows in a field, how its season ran, what the land looks like."""

from __future__ import annotations

import numpy as np

from aef.clock import SUPPORT_MS
from aef.data.chips import TextPoint
from aef.data.synthetic.cover import COVERS
from aef.data.synthetic.grid import PIXEL_M, inside
from aef.data.synthetic.landscape import Scene

LICENCE = "CC0-1.0"
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")  # fmt: skip


def texts(scene: Scene) -> list[TextPoint]:
    """One text about the land and one about every field, each true of its year."""
    rng = scene.stream("texts")
    found = []
    left, top = scene.site.left_top
    ids = inside(scene.labelled)
    numbers = np.setdiff1d(np.unique(ids), 0) - 1
    for year, start in enumerate(scene.weather.year_starts):
        span = (int(start), int(start) + SUPPORT_MS)
        middle = scene.px * PIXEL_M / 2
        found.append(
            TextPoint(left + middle, top - middle, middle, *span, _about_land(scene, year), "synthetic", LICENCE)
        )
        for number in rng.permutation(numbers):
            rows, cols = np.nonzero(ids == number + 1)
            at = int(np.argmin(np.hypot(rows - rows.mean(), cols - cols.mean())))
            x, y = left + PIXEL_M * (cols[at] + 0.5), top - PIXEL_M * (rows[at] + 0.5)
            reach = PIXEL_M * np.sqrt(len(rows) / np.pi) / 2
            text = _about_field(scene, year, int(number), rng)
            found.append(TextPoint(float(x), float(y), float(reach), *span, text, "synthetic", LICENCE))
    return found


def _about_land(scene: Scene, year: int) -> str:
    elevation = inside(scene.elevation_m)
    range_m = float(elevation.max() - elevation.min())
    relief = "Flat" if range_m < 20 else "Rolling" if range_m < 80 else "Hilly"
    kinds = np.bincount(scene.fields.cover[year][inside(scene.field)].ravel(), minlength=len(COVERS))
    main, second = (COVERS[k].name for k in np.argsort(-kinds)[:2])
    spring = _date(scene.weather.spring_day[year])
    return f"{relief} land at {elevation.mean():.0f} m with {main} and {second}; spring came in {spring}"


def _about_field(scene: Scene, year: int, number: int, rng: np.random.Generator) -> str:
    kind = COVERS[scene.fields.cover[year, number]]
    if not kind.crop:
        return str(rng.choice((kind.name, f"a patch of {kind.name}", f"{kind.name} beside fields")))
    start = scene.weather.spring_day[year] + scene.fields.start[year, number]
    end = start + scene.fields.length[year, number]
    sentences = (
        f"a field of {kind.name}",
        f"{kind.name}, green from {_date(start)} to {_date(end)}",
        f"{kind.name} harvested in {_date(end + 20)}",
    )
    return str(rng.choice(sentences))


def _date(day: float) -> str:
    part = ("early", "mid", "late")[min(int(day % 30.44 / 10.2), 2)]
    return f"{part} {MONTHS[int(day // 30.44) % 12]}"
