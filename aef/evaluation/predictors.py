"""Naive predictors of a frame that nobody has seen: what a model has to beat.

Each takes the clear observations of a place without the withheld frames (standardised `ClearSeries`) and a time, and
gives (B, h, w) z-scores.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from aef.evaluation.series import ClearSeries
from aef.timecode import YEAR_MS

RIDGE = 0.01
Predictor = Callable[[int], np.ndarray]


def band_mean(series: ClearSeries) -> Predictor:
    """The band's mean over all clear pixels of all places: 0 on the standardised scale."""
    nothing = np.zeros(series.values.shape[1:], np.float32)
    return lambda time_ms: nothing


def place_mean(series: ClearSeries) -> Predictor:
    """The band's mean over the clear pixels of this place."""
    pixels = np.moveaxis(series.values, 1, -1)[series.clear]
    mean = pixels.mean(axis=0) if len(pixels) else np.zeros(series.values.shape[1], np.float32)
    field = np.broadcast_to(mean[:, None, None], series.values.shape[1:])
    return lambda time_ms: field


def temporal_mean(series: ClearSeries) -> Predictor:
    """The pixel's mean over its clear observations; 0 where it has none."""
    clear = series.clear[:, None]
    mean = (series.values * clear).sum(axis=0) / np.maximum(clear.sum(axis=0), 1)
    return lambda time_ms: mean


def harmonic_design(times_ms: np.ndarray, harmonics: int = 2) -> np.ndarray:
    """1, cos k φ, sin k φ of the annual phase φ: (T,) int64 → (T, 1 + 2 harmonics)."""
    phase = 2 * np.pi * (np.asarray(times_ms) % YEAR_MS) / YEAR_MS
    waves = [wave(k * phase) for k in range(1, harmonics + 1) for wave in (np.cos, np.sin)]
    return np.stack([np.ones_like(phase), *waves], axis=-1)


def harmonic_coefficients(series: ClearSeries, harmonics: int = 2) -> np.ndarray:
    """Least squares per pixel with a ridge of 0.01 x its observations: (h, w, 1 + 2 harmonics, B)."""
    design = harmonic_design(series.times_ms, harmonics)
    clear = series.clear.astype(np.float64)
    gram = np.einsum("ti,tj,thw->hwij", design, design, clear, optimize=True)
    moment = np.einsum("ti,tbhw,thw->hwib", design, series.values, clear, optimize=True)
    # A pixel without any clear observation gets the zero fit instead of a singular system.
    ridge = np.maximum(RIDGE * clear.sum(axis=0), 1e-9)
    return np.linalg.solve(gram + ridge[..., None, None] * np.eye(design.shape[1]), moment)


def harmonic(series: ClearSeries) -> Predictor:
    """Two annual harmonics, fitted to each pixel's clear observations."""
    coefficients = harmonic_coefficients(series)
    return lambda time_ms: np.einsum("i,hwib->bhw", harmonic_design(np.array(time_ms)), coefficients)


def linear(series: ClearSeries) -> Predictor:
    """Per pixel, linear in time between the clear observations before and after; the only one where there is but one."""

    def predict(time_ms: int) -> np.ndarray:
        count = len(series.times_ms)
        if not count:
            return np.zeros(series.values.shape[1:], np.float32)
        order = np.arange(count)[:, None, None]
        earlier = (series.times_ms < time_ms)[:, None, None]
        before = np.where(series.clear & earlier, order, -1).max(axis=0)
        after = np.where(series.clear & ~earlier, order, count).min(axis=0)
        left = np.where(before >= 0, before, np.where(after < count, after, 0))
        right = np.where(after < count, after, left)
        span = (series.times_ms[right] - series.times_ms[left]).astype(np.float64)
        share = np.where(span > 0, (time_ms - series.times_ms[left]) / np.maximum(span, 1), 0.0)
        rows, columns = np.indices(left.shape)
        value = series.values[left, :, rows, columns] * (1 - share)[..., None]
        value = value + series.values[right, :, rows, columns] * share[..., None]  # (h, w, B)
        seen = np.any(series.clear, axis=0)
        return np.moveaxis(np.where(seen[..., None], value, 0), -1, 0)

    return predict


def persistence(series: ClearSeries) -> Predictor:
    """The pixel's last clear observation before the time; its first one where there is none."""

    def predict(time_ms: int) -> np.ndarray:
        known = series.without(series.times_ms >= time_ms)
        first = linear(series)
        if not len(known.times_ms):
            return first(time_ms)
        # After the last observation the interpolation repeats it.
        return np.where(known.clear.any(axis=0), linear(known)(time_ms), first(time_ms))

    return predict


def mean_of_linear_and_harmonic(series: ClearSeries) -> Predictor:
    """The mean of the linear interpolation and the harmonic fit."""
    interpolated, fitted = linear(series), harmonic(series)
    return lambda time_ms: (interpolated(time_ms) + fitted(time_ms)) / 2


PREDICTORS: dict[str, Callable[[ClearSeries], Predictor]] = {
    "the band's clear mean": band_mean,
    "the place's clear mean": place_mean,
    "the pixel's temporal mean": temporal_mean,
    "harmonic fit per pixel": harmonic,
    "linear interpolation": linear,
    "mean of linear and harmonic": mean_of_linear_and_harmonic,
}
"""The naive predictors, weakest first."""
