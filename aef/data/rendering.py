"""Frames as pictures: which bands to show of a source, and a stretch that several pictures share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aef.sources import Source

BAND_CHOICES = (
    ("B4", "B3", "B2"),
    ("B04", "B03", "B02"),
    ("B11", "B8A", "B05"),
    ("B6", "B5", "B4"),
    ("VV", "VH", "VV"),
    ("HH", "HV", "HH"),
)
"""Three bands as red, green and blue: true colour where there is one, else what looks most like it."""

MISSING = 0.85
"""Grey of a pixel that was not observed."""


def shown_bands(source: Source) -> tuple[str, ...]:
    """One or three bands of a source that make a picture of it."""
    names = source.band_names
    for choice in BAND_CHOICES:
        if set(choice) <= set(names):
            return choice
    return names[:3] if len(names) >= 3 and source.grid == "chip" and source.time != "static" else names[:1]


@dataclass(frozen=True)
class Rendering:
    """How a source is drawn: its shown bands, and the values that become black and white (or the classes' colours)."""

    source: Source
    bands: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(
        cls,
        source: Source,
        frames: Sequence[np.ndarray],
        valid: Sequence[np.ndarray],
        *,
        bands: tuple[str, ...] = (),
        percentiles: tuple[float, float] = (2, 98),
    ) -> Rendering:
        """The stretch between two percentiles of the valid pixels of some frames (C, h, w); ``bands`` () the usual ones."""
        bands = bands or shown_bands(source)
        index = _index(source, bands)
        pixels = [
            np.where(np.broadcast_to(mask, frame.shape), frame, np.nan)[index].reshape(len(index), -1)
            for frame, mask in zip(frames, valid)
        ]
        every = np.concatenate(pixels, axis=1).astype(np.float64)
        every = np.where(np.isfinite(every).any(axis=1, keepdims=True), every, 0)
        low, high = np.nanpercentile(every, percentiles, axis=1)
        return cls(source, bands, low, np.where(high > low, high, low + 1))

    def draw(self, frame: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
        """(C, h, w) → (h, w, 3) in [0, 1]; what is not valid is light grey."""
        if self.source.classes:
            return _draw_classes(self.source, frame, valid)
        index = _index(self.source, self.bands)
        with np.errstate(invalid="ignore"):
            scaled = (frame[index] - self.low[:, None, None]) / (self.high - self.low)[:, None, None]
        picture = np.moveaxis(np.clip(scaled, 0, 1), 0, -1)
        picture = np.broadcast_to(picture, (*picture.shape[:2], 3)).copy()
        seen = np.isfinite(picture).all(axis=-1)
        if valid is not None:
            seen &= np.broadcast_to(valid, frame.shape)[index].all(axis=0)
        picture[~seen] = MISSING
        return picture


def _index(source: Source, bands: Sequence[str]) -> list[int]:
    return [source.band_names.index(name) for name in bands]


def _draw_classes(source: Source, frame: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """Codes (1, h, w), or logits (classes, h, w), in one colour per class."""
    codes = np.asarray(source.classes)
    if frame.shape[0] == len(codes) and len(codes) > 1:
        number = frame.argmax(axis=0)
        known = np.ones(number.shape, bool)
    else:
        matches = frame[0][..., None] == codes
        number, known = matches.argmax(axis=-1), matches.any(axis=-1)
    picture = class_colours(len(codes))[number]
    if valid is not None:
        known = known & np.broadcast_to(valid, frame.shape)[0]
    picture[~known] = MISSING
    return picture


def class_colours(count: int) -> np.ndarray:
    """`count` well separated colours (count, 3): hues by the golden ratio, in two lightnesses."""
    import colorsys

    hues = (0.08 + 0.618034 * np.arange(count)) % 1
    return np.array([colorsys.hls_to_rgb(hue, 0.42 if i % 2 else 0.6, 0.55) for i, hue in enumerate(hues)])
