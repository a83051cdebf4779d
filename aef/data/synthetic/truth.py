"""The clear truth of a scene at any time, observed or not: what interpolation and extrapolation are judged by."""

from __future__ import annotations

import math

import numpy as np

from aef.data.synthetic.grid import sense
from aef.data.synthetic.landscape import Scene
from aef.data.synthetic.optical import (
    HAZE,
    HAZE_OF_FRAMES,
    LANDSAT_BANDS,
    SENTINEL2_BANDS,
    field_spectra,
    ground_reflectance,
    surface_kelvin,
)

SENSORS = {"sentinel2": (SENTINEL2_BANDS, 10_000.0), "landsat": (LANDSAT_BANDS, 1.0)}
"""Bands of the optical sources, and the factor on reflectance with which they are stored."""


def clear_view(scene: Scene, source: str, times_ms: np.ndarray) -> np.ndarray:
    """What a sensor would see of a scene at some times, as its source stores it: (T, C, px, px) float32.

    A clear sky with the mean haze of all frames, no registration error and none of the sensor's noise: what is left is
    the ground. Raises KeyError for a source without optics.
    """
    bands, scale = SENSORS[source]
    spectra = field_spectra(scene, times_ms) + (math.prod(HAZE_OF_FRAMES) * HAZE[:, None]).astype(np.float32)
    views = []
    for band in bands:
        if band.mixture is None:
            views.append(sense(surface_kelvin(scene, times_ms), scene.px, band.pixel_m))
        else:
            views.append(scale * sense(ground_reflectance(scene, spectra, band.mixture), scene.px, band.pixel_m))
    return np.stack(views, 1).astype(np.float32)
