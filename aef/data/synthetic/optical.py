"""Sentinel-2 and Landsat: reflectance of the fields seen through the air, their own pixels, clouds and their masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aef.clock import DAY_MS
from aef.data.chips import SourceSeries
from aef.data.synthetic import cover
from aef.data.synthetic.chance import smooth_fields, white
from aef.data.synthetic.clouds import Clouds, Spells, make_clouds
from aef.data.synthetic.grid import PIXEL_M, ground_side, sense
from aef.data.synthetic.landscape import Scene

SECOND_MS = 1000
DISPLACED_SHARE, DISPLACED_M = 0.3, 20.0
"""Share of frames with a registration error, and the largest one."""

CLOUD_LIGHT = np.array([0.46, 0.45, 0.46, 0.52, 0.40], np.float32)
HAZE = np.array([0.030, 0.018, 0.011, 0.004, 0.0], np.float32)
"""Light that one unit of haze adds, in `cover.SPECTRUM`'s order."""

HAZE_OF_FRAMES = (1.2, 0.6, 0.3)
"""How much of it a frame has: shape and scale of a gamma variable, and a factor on it."""

PAN = np.array([0.12, 0.48, 0.40, 0.0, 0.0], np.float32)
"""Landsat's panchromatic band as a mixture of the spectrum."""
CLOUD_TOP_K = 262.0
LAPSE_K_PER_M = 0.0065

PATCH_PX = 6
DIGITAL = 10_000
"""Sentinel-2's stored number of a reflectance of 1."""


@dataclass(frozen=True)
class OpticalBand:
    """``mixture`` (5,) of `cover.SPECTRUM`, or None for the thermal band; ``pixel_m`` of the sensor; ``name`` keys the noise."""

    name: str
    pixel_m: float
    mixture: tuple[float, ...] | None

    @property
    def infrared(self) -> bool:
        return self.mixture is None or any(self.mixture[3:])


def _pure(index: int, pixel_m: float) -> OpticalBand:
    return OpticalBand(cover.SPECTRUM[index], pixel_m, tuple(float(k == index) for k in range(5)))


SENTINEL2_BANDS = (*(_pure(k, 10) for k in range(4)), _pure(4, 20))
LANDSAT_BANDS = (
    *(_pure(k, 30) for k in range(5)),
    OpticalBand("pan", 15, tuple(PAN.tolist())),
    OpticalBand("thermal", 100, None),
)


@dataclass(frozen=True)
class Noise:
    """Standard deviations of what disturbs a logarithmic reflectance, per frame: of the whole frame, smooth within it,
    of a field in it (view angle against its rows, dew, work), of patches a few pixels wide (each for visible and
    infrared light, so that no ratio of bands is free of them), of a pixel."""

    frame: float = 0.025
    smooth: float = 0.015
    field: float = 0.008
    patch: float = 0.09
    pixel: float = 0.04


NOISE = Noise()


def field_spectra(scene: Scene, times_ms: np.ndarray) -> np.ndarray:
    """Reflectance of every field without its pixels' texture: (T, 5, F) float32. Bare ground darkens when it is wet."""
    canopy = scene.canopy(times_ms)
    moisture = scene.weather.at(scene.weather.soil_moisture, times_ms).astype(np.float32)[:, None, None]
    kind = canopy.cover
    bare, green = cover.table("bare")[kind], cover.table("green")[kind]  # (T, F, 5)
    dry = np.minimum(canopy.dry, 1 - canopy.green)[..., None]
    leaf = canopy.green[..., None]
    soil = bare * np.exp(scene.fields.soil) * (1 - 0.25 * moisture)
    mixed = soil * (1 - leaf - dry) + green * np.exp(scene.fields.leaf) * leaf + np.array(cover.STRAW, np.float32) * dry
    return np.moveaxis(mixed, -1, 1).astype(np.float32)


def ground_reflectance(scene: Scene, spectra: np.ndarray, mixture: tuple[float, ...]) -> np.ndarray:
    """The latent truth of one band on 10 m ground: spectra (T, 5, F) → (T, G, G)."""
    weights = np.array(mixture, np.float32)
    light = np.exp(scene.texture)
    ground = np.zeros((len(spectra), *scene.field.shape), np.float32)
    for texture, part in ((light[0], slice(0, 3)), (light[1], slice(3, 5))):
        if weights[part].any():
            ground += np.einsum("tbf,b->tf", spectra[:, part], weights[part])[:, scene.field] * texture
    return ground


def surface_kelvin(scene: Scene, times_ms: np.ndarray) -> np.ndarray:
    """Surface temperature on 10 m ground at mid-morning: air, plus what the sun adds to ground without leaves. (T, G, G)."""
    canopy = scene.canopy(times_ms)
    air = scene.weather.at(scene.weather.temperature, times_ms)[:, None]
    _, day = scene.weather.year_of(times_ms)
    sun = 0.55 + 0.45 * np.cos(2 * np.pi * (day - 172) / 365.2425)[:, None]
    heat = cover.table("thermal_k")[canopy.cover]
    warm = 273.15 + air + sun * (2 + heat + 8 * (1 - canopy.green) * (heat > 1))
    lapse = LAPSE_K_PER_M * (scene.elevation_m - scene.elevation_m.mean())
    return warm.astype(np.float32)[:, scene.field] - lapse.astype(np.float32)


def registration_m(rng: np.random.Generator, count: int) -> np.ndarray:
    """Displacements down and across, (count, 2): most frames have none, the rest up to `DISPLACED_M` in any direction."""
    angle = rng.uniform(0, 2 * np.pi, count)
    length = DISPLACED_M * np.sqrt(rng.uniform(0.16, 1, count))
    length[rng.random(count) >= DISPLACED_SHARE] = 0
    return np.stack([length * np.sin(angle), length * np.cos(angle)], 1)


def render(
    scene: Scene, times_ms: np.ndarray, bands: tuple[OpticalBand, ...], purpose: str, clouds: Clouds
) -> np.ndarray:
    """Some bands of a sensor's frames as it saw them: (T, C, px, px) float32, reflectance or kelvin.

    A band is the same whichever others are rendered.
    """
    rng = scene.stream(f"light/{purpose}")
    px, count, side = scene.px, len(times_ms), ground_side(scene.px)
    shifts = registration_m(rng, count)
    frame = NOISE.frame * rng.standard_normal((count, 1, 1)) + 0.25 * NOISE.frame * rng.standard_normal((count, 5, 1))
    field = NOISE.field * rng.standard_normal((count, 1, scene.fields.count))
    shape, scale, factor = HAZE_OF_FRAMES
    haze = factor * rng.gamma(shape, scale, (count, 1, 1))
    spectra = field_spectra(scene, times_ms) * np.exp(frame + field).astype(np.float32)
    spectra += (haze * HAZE[:, None]).astype(np.float32)
    veil = np.float32(NOISE.smooth) * smooth_fields(rng, count, side, 5)
    knots = side // PATCH_PX
    air = [np.exp(veil + np.float32(NOISE.patch) * smooth_fields(rng, count, side, knots)) for _ in range(2)]
    bright = rng.uniform(0.75, 1.25, (count, 1, 1)).astype(np.float32)
    light = bright + np.float32(0.06) * smooth_fields(rng, count, px, max(px // 5, 4))
    through = (1 - clouds.opacity) * (1 - clouds.shadow)
    cloud_light = clouds.opacity * light
    out = np.empty((count, len(bands), px, px), np.float32)
    for index, band in enumerate(bands):
        pixels = scene.stream(f"light/{purpose}/{band.name}")
        if band.mixture is None:
            kelvin = sense(surface_kelvin(scene, times_ms), px, band.pixel_m, shifts)
            kelvin += clouds.opacity * (CLOUD_TOP_K - kelvin) + white(pixels, kelvin.shape, 0.25)
            out[:, index] = kelvin
            continue
        image = sense(ground_reflectance(scene, spectra, band.mixture) * air[band.infrared], px, band.pixel_m, shifts)
        image *= through
        image *= 1 + white(pixels, image.shape, NOISE.pixel)
        image += cloud_light * np.float32(CLOUD_LIGHT @ np.array(band.mixture, np.float32))
        out[:, index] = np.maximum(image, 1e-3)
    return out


# --- Sentinel-2 ------------------------------------------------------------------------------------------------------


def sentinel2_times(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Acquisition times of 65 to 105 frames a year, and which of them repeat the frame before from a neighbouring tile."""
    rng = scene.stream("sentinel2 orbits")
    start, days = scene.weather.start_ms, scene.weather.days
    noon = (10.5 - scene.site.lon / 15) * 3_600_000
    offset, second = rng.integers(0, 5), rng.integers(2, 4)
    main = np.arange(offset, days, 5)
    beside = np.arange((offset + second) % 5, days, 5)
    # Fewer passes than this leave a pixel with less than 29 clear observations in the cloudiest places.
    wanted = round(rng.uniform(79, 101) * days / 365)
    # A place in one swath loses passes; one where two swaths overlap sees some of the other orbit too.
    passes = np.sort(
        np.concatenate(
            [rng.permutation(main)[: min(len(main), wanted)], rng.permutation(beside)[: max(0, wanted - len(main))]]
        )
    )
    minute = np.where(np.isin(passes, main), 0, 9) * 60_000 + rng.integers(-90_000, 90_000, len(passes))
    times = start + passes * DAY_MS + (noon + minute).astype(np.int64) // SECOND_MS * SECOND_MS
    repeated = rng.permutation(len(times))[: rng.integers(2, 4)]
    twins = times[repeated] + rng.integers(4, 25, len(repeated)) * SECOND_MS
    every = np.concatenate([times, twins])
    is_twin = np.concatenate([np.zeros(len(times), bool), np.ones(len(twins), bool)])
    order = np.argsort(every)
    keep = (every[order] >= start) & (every[order] < start + days * DAY_MS)
    return every[order][keep], is_twin[order][keep]


def repeat(clouds: Clouds, is_twin: np.ndarray) -> Clouds:
    """Clouds of single passes → of all frames, a twin under the same sky as the frame before it."""
    row = np.cumsum(~is_twin) - 1
    return Clouds(clouds.opacity[row], clouds.shadow[row], clouds.clear[row])


def sentinel2_sky(scene: Scene) -> tuple[np.ndarray, Clouds, np.ndarray]:
    """Times (T,) of all frames, their clouds, and the observed part of each, (T, 1, px, px) bool.

    Mostly clear frames follow each other within `LONGEST_SPELL_MS`.
    """
    times, is_twin = sentinel2_times(scene)
    clouds = repeat(make_clouds(scene, times[~is_twin], "sentinel2", no_long_spell=True), is_twin)
    return times, clouds, _swath(scene, times, clouds.clear)


def sentinel2(scene: Scene) -> SourceSeries:
    """Level-1C reflectance x 10000, uint16; some frames end at the swath's edge."""
    times, clouds, valid = sentinel2_sky(scene)
    values = render(scene, times, SENTINEL2_BANDS, "sentinel2", clouds)
    values *= DIGITAL
    values += 0.5
    stored = np.minimum(values, 27_999).astype(np.uint16)
    stored *= valid
    weight = np.where(clouds.clear & valid[:, 0], 255, 0).astype(np.uint8)
    return SourceSeries(values=stored, valid=valid, weight=weight[:, None], time_ms=times)


def _swath(scene: Scene, times_ms: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """Observed part of each frame, (T, 1, px, px): the whole but for a few that an oblique edge cuts, none of them a
    clear one that cannot be spared."""
    rng, count, px = scene.stream("sentinel2 swath"), len(times_ms), scene.px
    spells, mostly = Spells.of(scene, times_ms), clear.mean((1, 2)) > 0.5
    valid = np.ones((count, 1, px, px), bool)
    y, x = np.mgrid[:px, :px] / px
    for frame in np.flatnonzero(rng.random(count) < 0.03):
        seen = x + 0.2 * y > rng.uniform(0.1, 0.6)
        left = mostly.copy()
        left[frame] = (clear[frame] & seen).mean() > 0.5
        if spells.allow(left):
            valid[frame, 0], mostly = seen, left
    return valid


# --- Landsat ---------------------------------------------------------------------------------------------------------


def landsat_times(scene: Scene) -> np.ndarray:
    """Landsat 8 and 9 take turns every eight days; under two paths a place sees twice as many, and some are missing."""
    rng = scene.stream("landsat orbits")
    days = scene.weather.days
    passes = np.arange(rng.integers(0, 8), days, 8)
    if rng.random() < 0.35:
        passes = np.union1d(passes, np.arange((passes[0] + 7) % 8, days, 8))
    passes = passes[rng.random(len(passes)) > 0.12]
    hour = (10.2 - scene.site.lon / 15) * 3_600_000
    moment = hour + rng.integers(-120_000, 120_000, len(passes))
    times = scene.weather.start_ms + passes * DAY_MS + moment.astype(np.int64) // SECOND_MS * SECOND_MS
    return times[(times >= scene.weather.start_ms) & (times < scene.weather.start_ms + days * DAY_MS)]


def landsat(scene: Scene) -> SourceSeries:
    """Top-of-atmosphere reflectance and brightness temperature in kelvin, float32."""
    times = landsat_times(scene)
    clouds = make_clouds(scene, times, "landsat")
    values = render(scene, times, LANDSAT_BANDS, "landsat", clouds)
    valid = np.ones((len(times), 1, scene.px, scene.px), bool)
    weight = np.where(clouds.clear, 255, 0).astype(np.uint8)
    return SourceSeries(values=values, valid=valid, weight=weight[:, None], time_ms=times)


__all__ = ["PIXEL_M", "landsat", "sentinel2"]
