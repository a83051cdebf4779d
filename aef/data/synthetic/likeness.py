"""Places whose near infrared varies as it does in real series: fields are sown again until a place does.

What a place of few fields shows depends on which covers fall on its large ones. Three standard deviations of the
logarithmic near infrared were measured on real places (docs/synthetic.md). How large they will be is told from the
latent scene first, which is quick; a sowing that promises well is looked at as Sentinel-2 will see it.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import numpy as np

from aef.data.synthetic import cover, optical
from aef.data.synthetic.clouds import Clouds, frame_cover
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

ROUNDING = 1e-4
"""Relative, more than what the rounding of stored values changes."""

SOWINGS, LOOKS = 24, 3
"""Most sowings of one draw of a place, and most that are rendered."""


def lifelike_scene(seed: int, place: int, *, px: int, first_year: int, years: int) -> Scene:
    """The first scene of a place of which every spread is seen inside `LIKE_REAL`.

    A sowing is looked at if each spread is expected inside by its scatter. Some weather and parcels suit no sowing:
    then the whole place is drawn again.
    """
    for draw in count():
        bare = make_scene(seed, place, px=px, first_year=first_year, years=years, draw=draw)
        frames, sky, looks = last_year(bare), optical.sentinel2_sky(bare), 0
        for sowing in range(SOWINGS):
            fields = sow(seed, place, bare.fields.count, years, bare.seams, sowing, draw) if sowing else bare.fields
            scene = replace(bare, fields=fields)
            if outside(expected_spread(scene, *frames), SCATTER):
                continue
            if not outside(seen_spread(scene, *sky), ROUNDING):
                return scene
            looks += 1
            if looks == LOOKS:
                break
    raise AssertionError  # the loop has no end


def outside(spread: np.ndarray, margin: np.ndarray | float) -> bool:
    """Whether any of the three lies outside `LIKE_REAL`, narrowed by a relative margin."""
    low, high = LIKE_REAL[:, 0] * (1 + margin), LIKE_REAL[:, 1] * (1 - margin)
    return bool(((spread < low) | (spread > high)).any())


def last_year(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Times of the last year's Sentinel-2 frames without twins, and their clear shares as weights that sum to 1: (T,) each."""
    times, is_twin = optical.sentinel2_times(scene)
    times = times[~is_twin]
    clear = 1 - frame_cover(scene, times, scene.stream("clouds/sentinel2"), no_long_spell=True)
    last = times >= scene.weather.year_starts[-1]
    return times[last], clear[last] / clear[last].sum()


def expected_spread(scene: Scene, times_ms: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """Standard deviations of the log near infrared that clear Sentinel-2 pixels on land will show, (3,): between the
    pixels' means, within a pixel over time, of mostly clear frames' means."""
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


def seen_spread(scene: Scene, times_ms: np.ndarray, clouds: Clouds, valid: np.ndarray) -> np.ndarray:
    """The same three as the last year's Sentinel-2 frames show them, (3,).

    Args:
        times_ms, clouds, valid: `optical.sentinel2_sky` of the scene, which does not depend on what is sown.
    """
    last = times_ms >= scene.weather.year_starts[-1]
    light = optical.render(scene, times_ms, optical.SENTINEL2_BANDS[NEAR_INFRARED:][:1], "sentinel2", clouds)[last, 0]
    clear = (clouds.clear & valid[:, 0])[last]
    return spreads(
        np.log(optical.DIGITAL * light + 1), clear, inside(scene.fields.cover[-1][scene.field]) != cover.WATER - 1
    )


def spreads(log: np.ndarray, clear: np.ndarray, land: np.ndarray) -> np.ndarray:
    """Standard deviations of log near infrared (T, px, px) over clear pixels (T, px, px) on land (px, px), (3,):
    between the pixels' means, within a pixel over time (mean over pixels), of the means of mostly clear frames."""
    mostly = clear.mean((1, 2)) > 0.5
    log, clear = log[:, land], clear[:, land]
    counted = clear.any(0)
    log, clear = np.where(clear, log, 0)[:, counted].astype(np.float64), clear[:, counted]
    mean = log.sum(0) / clear.sum(0)
    within = np.sqrt((np.square(log - mean) * clear).sum(0) / clear.sum(0))
    frames = log[mostly].sum(1) / np.maximum(clear[mostly].sum(1), 1)
    return np.array([mean.std(), within.mean(), frames[clear[mostly].any(1)].std()])
