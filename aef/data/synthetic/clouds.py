"""Clouds over a place on the dates of a sensor, and a mask that misses some of them.

The cloudiest days of the weather get the most cloud. How many frames are clear, broken or overcast is fixed per place
within the range that was measured on real series; where the cloud lies in a frame is a rough random field.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aef.clock import DAY_MS
from aef.data.synthetic.chance import enlarge, rough_fields, smooth_fields
from aef.data.synthetic.landscape import Scene

CLOUDY = 0.08
"""Opacity from which a pixel is cloud in truth."""
SHADOWED = 0.25
LONGEST_SPELL_MS = 90 * DAY_MS
"""Two frames of Sentinel-2 that are mostly clear follow each other within this."""
SURELY_CLEAR = 0.25
"""A frame with less cover than this is more than half clear: at most as much again lies in shadow."""


@dataclass(frozen=True)
class Clouds:
    """Of T frames on the chip's grid: ``opacity`` and ``shadow`` (T, px, px) float32, 0 to 1, ``clear`` (T, px, px)
    what the sensor's imperfect mask calls clear."""

    opacity: np.ndarray
    shadow: np.ndarray
    clear: np.ndarray


def cover_of_rank(rank: np.ndarray, mostly_clear: float, overcast: float) -> np.ndarray:
    """Cloud cover by a frame's place among all frames, 0 the clearest, 1 the cloudiest: none, broken, everywhere."""
    return np.interp(rank, [0, 0.62 * mostly_clear, mostly_clear, 1 - overcast, 1], [0, 0, 0.5, 0.93, 0.96]) * (
        rank < 1 - overcast
    ) + (rank >= 1 - overcast)


def dark_season(rng: np.random.Generator, year_starts_ms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One spell a year without a clear frame, mostly outside summer: starts and ends in epoch ms, (years,) each."""
    years = len(year_starts_ms)
    winter = rng.random(years) < 0.6
    start_day = np.where(winter, rng.choice((18, 265), years) + rng.uniform(0, 20, years), rng.uniform(60, 260, years))
    starts = year_starts_ms + (start_day * DAY_MS).astype(np.int64)
    return starts, starts + (rng.uniform(36, 50, years) * DAY_MS).astype(np.int64)


@dataclass(frozen=True)
class Spells:
    """Times between clear frames of a sensor, none of which may be longer than `LONGEST_SPELL_MS`.

    ``first_ms`` and ``last_ms`` count as clear: the ends of the span, or moments so far from the first and the last
    dark season that a clear frame must lie on its other side.
    """

    times_ms: np.ndarray
    dark: np.ndarray
    first_ms: int
    last_ms: int

    @classmethod
    def of(cls, scene: Scene, times_ms: np.ndarray) -> Spells:
        weather = scene.weather
        starts, ends = dark_season(scene.stream("dark season"), weather.year_starts)
        dark = np.any((times_ms[:, None] >= starts) & (times_ms[:, None] < ends), axis=1)
        first = min(weather.start_ms, int(starts[0]) - LONGEST_SPELL_MS)
        last = max(weather.start_ms + weather.days * DAY_MS, int(ends[-1]) + LONGEST_SPELL_MS)
        return cls(times_ms, dark, first, last)

    def longest(self, clear: np.ndarray) -> tuple[int, int]:
        """Start and end of the longest one, given which frames are clear, (T,) bool."""
        moments = np.concatenate([[self.first_ms], self.times_ms[clear], [self.last_ms]])
        at = int(np.argmax(np.diff(moments)))
        return int(moments[at]), int(moments[at + 1])

    def allow(self, clear: np.ndarray) -> bool:
        """Whether no spell is too long, given which frames are clear."""
        start, end = self.longest(clear)
        return end - start <= LONGEST_SPELL_MS

    def shorten(self, share: np.ndarray) -> np.ndarray:
        """Cover of the frames, (T,), after the exchanges that keep every spell short enough: the middle of a spell that
        is too long, outside the dark season, for the frame whose neighbours are nearest in time."""
        share = share.copy()
        while not self.allow(clear := share < SURELY_CLEAR):
            start, end = self.longest(clear)
            within = np.flatnonzero(~self.dark & (self.times_ms > start) & (self.times_ms < end))
            gained = within[np.argmin(np.abs(self.times_ms[within] - (start + end) // 2))]
            given = np.flatnonzero(clear)
            moments = np.concatenate([[self.first_ms], self.times_ms[given], [self.last_ms]])
            lost = given[np.argmin(moments[2:] - moments[:-2])]
            share[[gained, lost]] = share[[lost, gained]]
        return share


def frame_cover(
    scene: Scene, times_ms: np.ndarray, rng: np.random.Generator, *, no_long_spell: bool = False
) -> np.ndarray:
    """Share of each frame that is under cloud, (T,): the cloudiest days get the most, a dark season nothing else.

    Args:
        no_long_spell: keep clear frames within `LONGEST_SPELL_MS` of each other; needs frames every few days.
    """
    weather, count = scene.weather, len(times_ms)
    score = weather.at(weather.cloudiness, times_ms) + 0.5 * rng.standard_normal(count)
    spells = Spells.of(scene, times_ms)
    score += 9 * spells.dark
    rank = (np.argsort(np.argsort(score)) + rng.random()) / count
    share = cover_of_rank(rank, rng.uniform(0.39, 0.43), rng.uniform(0.445, 0.47))
    return spells.shorten(share) if no_long_spell else share


def make_clouds(scene: Scene, times_ms: np.ndarray, purpose: str, *, no_long_spell: bool = False) -> Clouds:
    """Clouds, their shadows and the mask for a sensor's frames; ``no_long_spell`` as `frame_cover` has it."""
    rng = scene.stream(f"clouds/{purpose}")
    px, count = scene.px, len(times_ms)
    share = frame_cover(scene, times_ms, rng, no_long_spell=no_long_spell)
    opacity = np.zeros((count, px, px), np.float32)
    broken = np.flatnonzero((share > 0.01) & (share < 1))
    opacity[broken] = _broken(rng, share[broken], px)
    full = np.flatnonzero(share >= 1)
    thickness = 2.2 + rng.exponential(1.5, (len(full), 1, 1)) + 0.5 * smooth_fields(rng, len(full), px, 5)
    # Thick enough that what the mask misses lies at the edges of broken cloud, not under an overcast sky.
    opacity[full] = 1 - np.exp(-np.maximum(thickness, 1.8))
    # A few frames under thin cirrus, which masks tend to miss.
    veiled = _veiled(rng, share, Spells.of(scene, times_ms) if no_long_spell else None)
    veil = np.abs(0.16 + 0.09 * smooth_fields(rng, len(veiled), px, 5))
    opacity[veiled] = np.maximum(opacity[veiled], veil)
    shadow = np.zeros_like(opacity)
    shadow[broken] = _shadows(rng, opacity[broken])
    seen = _detected(rng, opacity, rng.uniform(0.055, 0.085))
    return Clouds(opacity, shadow, ~seen & (shadow < SHADOWED))


def _veiled(rng: np.random.Generator, share: np.ndarray, spells: Spells | None) -> np.ndarray:
    """Clear frames that cirrus covers, by number; with ``spells``, only such as may be lost."""
    drawn = rng.permutation(np.flatnonzero(share <= 0.01))
    wanted = max(1, round(0.03 * len(share)))
    if spells is None:
        return drawn[:wanted]
    clear = share < SURELY_CLEAR
    veiled: list[int] = []
    for frame in drawn.tolist():
        left = clear & (np.arange(len(clear)) != frame)
        if len(veiled) < wanted and spells.allow(left):
            clear = left
            veiled.append(frame)
    return np.array(veiled, np.int64)


def _broken(rng: np.random.Generator, share: np.ndarray, px: int) -> np.ndarray:
    """Opacity of broken cloud that covers a given share of each frame: (n, px, px)."""
    field = enlarge(rough_fields(rng, len(share), max(px // 2, 4), slope=1.5), px)
    flat = np.sort(field.reshape(len(share), -1), axis=1)
    level = flat[np.arange(len(share)), np.minimum(((1 - share) * flat.shape[1]).astype(int), flat.shape[1] - 1)]
    return 1 - np.exp(-5 * np.maximum(field - level[:, None, None], 0))


def _shadows(rng: np.random.Generator, opacity: np.ndarray) -> np.ndarray:
    """What each frame's cloud takes of the sunlight beside it: the cloud moved to the north-west, as far as it is high."""
    shadow = np.zeros_like(opacity)
    for frame, height_px in enumerate(rng.integers(3, 11, len(opacity))):
        down, across = max(int(height_px * 0.9), 1), max(int(height_px * 0.4), 1)
        shadow[frame, :-down, :-across] = opacity[frame, down:, across:]
    return 0.6 * shadow * (1 - opacity)


def _detected(rng: np.random.Generator, opacity: np.ndarray, missed: float) -> np.ndarray:
    """Where the mask sees cloud: all but the share ``missed`` of the cloudy pixels, the thinnest for the most part."""
    evidence = opacity + 0.06 * smooth_fields(rng, len(opacity), opacity.shape[1], max(opacity.shape[1] // 6, 3))
    cloudy = opacity > CLOUDY
    values = evidence[cloudy]
    if not values.size:
        return cloudy
    level = np.partition(values, int(missed * values.size))[int(missed * values.size)]
    return cloudy & (evidence >= level)
