"""Places whose near infrared varies as it does in real series: fields are sown again until a place does.

What a place of few fields shows depends on which covers fall on its large ones. Three standard deviations of the
logarithmic near infrared were measured on real places (docs/synthetic.md); how large they will be is told from the
latent scene, before anything is rendered.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from aef.data.synthetic import cover, optical
from aef.data.synthetic.clouds import frame_cover
from aef.data.synthetic.grid import inside
from aef.data.synthetic.landscape import TEXTURE, Scene, make_scene, sow

NEAR_INFRARED = 3
"""Its index in `cover.SPECTRUM`."""

LIKE_REAL = np.array([(0.16, 0.23), (0.20, 0.24), (0.11, 0.16)])
"""Between pixels, within a pixel over time, and of scene means: least and most of real places."""

RENDERED = np.array([0.80, 1.29, 1.07])
"""What is seen over what the scene lets expect, measured: pixels on borders mix, missed cloud and shadow add."""

SCATTER = np.array([0.04, 0.05, 0.06])
"""Relative deviation of what is seen from that."""

ATTEMPTS = 24


def lifelike_scene(seed: int, place: int, *, px: int, first_year: int, years: int) -> Scene:
    """The first sowing of a place of which each spread is expected inside `LIKE_REAL` by its scatter, or the nearest."""
    low, high = LIKE_REAL[:, 0] * (1 + SCATTER), LIKE_REAL[:, 1] * (1 - SCATTER)
    bare = make_scene(seed, place, px=px, first_year=first_year, years=years)
    frames = last_year(bare)
    nearest, least = bare, np.inf
    for sowing in range(ATTEMPTS):
        scene = replace(bare, fields=sow(seed, place, bare.fields.count, years, bare.seams, sowing)) if sowing else bare
        spread = expected_spread(scene, *frames)
        outside = float((np.maximum(low - spread, spread - high).clip(0) / LIKE_REAL.mean(1)).sum())
        if outside < least:
            nearest, least = scene, outside
        if not outside:
            break
    return nearest


def last_year(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Times of the last year's Sentinel-2 frames without twins, and their clear shares as weights that sum to 1: (T,) each."""
    times, is_twin = optical.sentinel2_times(scene)
    times = times[~is_twin]
    clear = 1 - frame_cover(scene, times, scene.stream("clouds/sentinel2"))
    last = times >= scene.weather.year_starts[-1]
    return times[last], clear[last] / clear[last].sum()


def expected_spread(scene: Scene, times_ms: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """Standard deviations of the log near infrared that clear Sentinel-2 pixels on land will show, (3,): between the pixels'
    means, within a pixel over time, of mostly clear frames' means."""
    log = np.log(optical.field_spectra(scene, times_ms)[:, NEAR_INFRARED])  # (T, F)
    land = scene.fields.cover[-1] != cover.WATER - 1
    area = np.bincount(inside(scene.field).ravel(), minlength=scene.fields.count) * land
    area = area / max(area.sum(), 1)
    mean = clear @ log
    between = area @ np.square(mean - area @ mean) + TEXTURE**2
    noise = optical.NOISE
    single = noise.frame**2 + noise.smooth**2 + noise.field**2 + noise.patch**2 + noise.pixel**2
    within = area @ np.sqrt(clear @ np.square(log - mean) + single)
    scene_wide = (log @ area)[clear > 0.5 * clear.max()].var() + noise.frame**2
    return RENDERED * np.array([np.sqrt(between), within, np.sqrt(scene_wide)])
