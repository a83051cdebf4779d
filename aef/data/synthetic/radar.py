"""Sentinel-1 and PALSAR-2: backscatter of soil and canopy under two orbits, with the relief's tilt and speckle."""

from __future__ import annotations

import numpy as np

from aef.clock import DAY_MS
from aef.data.chips import SourceSeries
from aef.data.synthetic import cover
from aef.data.synthetic.chance import log_gamma_speckle_db
from aef.data.synthetic.grid import sense
from aef.data.synthetic.landscape import Scene, slopes

INCLINATION_DEG = 98.18
ASCENDING_DEG, DESCENDING_DEG = 349.0, 191.0
REFERENCE_DEG = 38.0
DB_PER_DEGREE = -0.13
LOOKS = 6
"""Equivalent number of looks; speckle of 1.85 dB."""
SINGLE_SHARE = 0.14
FLOOR_DB, CEILING_DB = -30.0, 10.0
KEPT = 0.93
PALSAR_PIXEL_M = 25.0
PALSAR_LOOKS = 12


def backscatter_db(scene: Scene, times_ms: np.ndarray) -> np.ndarray:
    """VV and VH of every field at 38 degrees: (T, 2, F) float32. Wet soil is brighter until leaves cover it."""
    canopy = scene.canopy(times_ms)
    kind = canopy.cover
    leaf = np.minimum(canopy.green + 0.6 * canopy.dry, 1)
    wet = scene.weather.at(scene.weather.soil_moisture, times_ms).astype(np.float32)[:, None]
    soil = 3.0 * (wet - 0.4) * (1 - 0.75 * leaf) * (kind != cover.WATER - 1)
    f = scene.fields
    vv = cover.table("vv_db")[kind] + cover.table("vv_canopy_db")[kind] * leaf + soil + f.vv_db
    vh = cover.table("vh_db")[kind] + cover.table("vh_canopy_db")[kind] * leaf + 0.6 * soil + f.vh_db
    return np.stack([vv, vh], 1).astype(np.float32)


def local_angle_deg(scene: Scene, angle_deg: float, ascending: bool) -> np.ndarray:
    """Incidence on the tilted ground, (G, G): a right-looking radar sees slopes that face it more steeply."""
    east, north = slopes(scene.elevation_m)
    # Ascending passes look east, descending ones west, both a little off the row direction.
    heading = np.radians(ASCENDING_DEG if ascending else DESCENDING_DEG)
    toward = -(east * np.cos(heading) - north * np.sin(heading))
    return np.clip(angle_deg + np.degrees(np.arctan(toward)), 5, 85).astype(np.float32)


SENTINEL1_CYCLES = ((6, 6), (6, 12), (12, 12), (12, 12), (12, 24))
PALSAR2_CYCLES = ((28, 42), (42, 28), (28, 28))


def orbits(scene: Scene, purpose: str, cycles: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, np.ndarray]:
    """Times of both orbits and which of them ascend. Each orbit has its own repeat cycle and hour; some passes fail."""
    rng = scene.stream(f"{purpose} orbits")
    times, ascending = [], []
    pair = cycles[rng.integers(len(cycles))]
    for rises, hour, repeat in zip((True, False), (17.8, 5.6), rng.permutation(pair)):
        passes = np.arange(rng.integers(0, repeat), scene.weather.days, repeat)
        passes = passes[rng.random(len(passes)) < KEPT]
        moment = ((hour - scene.site.lon / 15) % 24 * 3600 + rng.uniform(-20, 20, len(passes))) * 1000
        times.append(scene.weather.start_ms + passes * DAY_MS + moment.astype(np.int64))
        ascending.append(np.full(len(passes), rises))
    every = np.concatenate(times)
    order = np.argsort(every)
    return every[order], np.concatenate(ascending)[order]


def sentinel1(scene: Scene) -> SourceSeries:
    """Backscatter in decibels and the angle of incidence, float32; HH and HV are never acquired over land like this."""
    times, ascending = orbits(scene, "sentinel1", SENTINEL1_CYCLES)
    rng = scene.stream("sentinel1")
    count, px = len(times), scene.px
    near = rng.uniform(31, 37)
    angles = np.array([near + rng.uniform(4, 8), near])[rng.permutation(2)]
    ground = backscatter_db(scene, times)[:, :, scene.field]
    values = np.zeros((count, 5, px, px), np.float32)
    valid = np.zeros((count, 5, px, px), bool)
    ramp = np.linspace(-0.02, 0.02, px, dtype=np.float32)
    for rises, angle in zip((True, False), angles):
        mine = ascending == rises
        tilt = DB_PER_DEGREE * (local_angle_deg(scene, angle, rises) - REFERENCE_DEG)
        for band in range(2):
            values[mine, band] = sense(ground[mine, band] + tilt, px, 10)
        values[mine, 4] = angle + (ramp if rises else -ramp)
    values[:, :2] += log_gamma_speckle_db(rng, (count, 2, px, px), LOOKS)
    valid[:, :2] = (values[:, :2] >= FLOOR_DB) & (values[:, :2] <= CEILING_DB)
    valid[:, 4] = True
    valid[rng.random(count) < SINGLE_SHARE, 1] = False
    values[~valid] = 0
    metadata = np.stack([np.where(ascending, ASCENDING_DEG, DESCENDING_DEG), np.full(count, INCLINATION_DEG)], 1)
    metadata += rng.uniform(-0.3, 0.3, metadata.shape) * (1, 0)
    return SourceSeries(values=values, valid=valid, time_ms=times, metadata=metadata.astype(np.float32))


def palsar2(scene: Scene) -> SourceSeries:
    """ScanSAR digital numbers (gamma nought = 20 log10 DN - 83 dB) and the local angle in 0.01 degree, uint16."""
    times, ascending = orbits(scene, "palsar2", PALSAR2_CYCLES)
    rng = scene.stream("palsar2")
    count, px = len(times), scene.px
    angles = rng.uniform(30, 42, 2)
    c_band = backscatter_db(scene, times)
    tall = cover.table("height_m")[scene.canopy(times).cover] * scene.fields.height
    # L-band sees through crops, and into wood: soil shows under leaves, trunks return strongly.
    hh = c_band[:, 0] - 2.5 + 2.5 * np.minimum(tall / 20, 1)
    hv = c_band[:, 1] - 4.0 + 6.5 * np.minimum(tall / 20, 1)
    ground = np.stack([hh, hv], 1).astype(np.float32)[:, :, scene.field]
    values = np.zeros((count, 3, px, px), np.float32)
    for rises, angle in zip((True, False), angles):
        mine = ascending == rises
        local = local_angle_deg(scene, angle, rises)
        power = 10 ** ((ground[mine] + 0.6 * DB_PER_DEGREE * (local - REFERENCE_DEG)) / 10)
        for band in range(2):
            values[mine, band] = sense(power[:, band], px, PALSAR_PIXEL_M)
        values[mine, 2] = 100 * sense(local[None], px, PALSAR_PIXEL_M)
    decibel = 10 * np.log10(np.maximum(values[:, :2], 1e-6)) + log_gamma_speckle_db(
        rng, (count, 2, px, px), PALSAR_LOOKS
    )
    values[:, :2] = np.clip(10 ** ((decibel + 83) / 20), 1, 65_535)
    valid = np.ones(values.shape, bool)
    valid[rng.random(count) < 0.06, 1] = False
    stored = np.round(values).astype(np.uint16)
    stored[~valid] = 0
    metadata = np.stack([ascending, np.ones(count)], 1).astype(np.float32)
    return SourceSeries(values=stored, valid=valid, time_ms=times, metadata=metadata)
