"""Sources that are no images of one day: elevation, footprints of heights, monthly weather and water, a yearly map."""

from __future__ import annotations

import numpy as np

from aef.clock import DAY_MS
from aef.data.chips import SourceSeries
from aef.data.synthetic import cover
from aef.data.synthetic.grid import Site, inside, sense
from aef.data.synthetic.landscape import Scene, slopes
from aef.data.synthetic.weather import new_year_ms

ERA5_STEP_DEG, GRACE_STEP_DEG = 0.1, 0.5
TRACK_STEP_PX, TRACKS_A_YEAR = 6.0, 2.5


# --- elevation -------------------------------------------------------------------------------------------------------


def glo30(scene: Scene) -> SourceSeries:
    """Elevation, and sine and cosine of slope and aspect, of 30 m pixels: (1, 5, px, px) float32."""
    px = scene.px
    elevation = sense(scene.elevation_m[None], px, 30)[0]
    # Slopes of the product, not of the ground: derived after resampling, as a user would (paper S1).
    east, north = slopes(_padded(scene))
    east, north = inside(east), inside(north)
    slope = np.arctan(np.hypot(east, north))
    aspect = np.arctan2(-east, -north)
    bands = (elevation, np.sin(slope), np.cos(slope), np.sin(aspect), np.cos(aspect))
    values = np.stack(bands).astype(np.float32)[None]
    return SourceSeries(values=values, valid=np.ones((1, 1, px, px), bool))


def _padded(scene: Scene) -> np.ndarray:
    """The 30 m elevation on the ground's grid: averaged over three by three cells."""
    field = scene.elevation_m
    padded = np.pad(field, 1, mode="edge")
    side = len(field)
    return np.mean([padded[i : i + side, j : j + side] for i in range(3) for j in range(3)], axis=0)


# --- footprints ------------------------------------------------------------------------------------------------------


def gedi(scene: Scene) -> SourceSeries:
    """Relative heights rh0 to rh100 of footprints 60 m apart along tracks, by month: (N, 101) float32 in metres."""
    rng = scene.stream("gedi")
    px, weather = scene.px, scene.weather
    tracks = max(1, rng.poisson(TRACKS_A_YEAR * len(weather.year_starts)))
    row, col, time = [], [], []
    for _ in range(tracks):
        angle = np.radians(rng.choice((-1, 1)) * rng.uniform(38, 52))
        offset, phase = rng.uniform(-0.45, 0.45) * px, rng.uniform(0, TRACK_STEP_PX)
        along = np.arange(-px, px, TRACK_STEP_PX) + phase
        r = np.floor(px / 2 + along * np.cos(angle) - offset * np.sin(angle)).astype(int)
        c = np.floor(px / 2 + along * np.sin(angle) + offset * np.cos(angle)).astype(int)
        good = (r >= 0) & (r < px) & (c >= 0) & (c < px) & (rng.random(len(r)) < 0.75)
        row.append(r[good])
        col.append(c[good])
        time.append(np.full(good.sum(), weather.start_ms + int(rng.uniform(0, weather.days)) * DAY_MS))
    rows, cols, times = np.concatenate(row), np.concatenate(col), np.concatenate(time)
    order = np.argsort(times, kind="stable")
    rows, cols, times = rows[order], cols[order], times[order]
    values = _relative_heights(scene, rng, rows, cols, times)
    starts, ends = _months(scene)
    month = np.searchsorted(starts, times, side="right") - 1
    return SourceSeries(
        values=values,
        valid=np.ones((len(values), 1), bool),
        time_ms=starts[month],
        time_end_ms=ends[month],
        row=rows.astype(np.int32),
        col=cols.astype(np.int32),
    )


def _relative_heights(
    scene: Scene, rng: np.random.Generator, rows: np.ndarray, cols: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """Energy returns from the ground, as wide as it is steep, and from the canopy, as high and dense as it stands."""
    number = inside(scene.field)[rows, cols]
    canopy = scene.canopy(times)
    pick = (np.arange(len(rows)), number)
    kind, leaf = canopy.cover[pick], canopy.green[pick]
    height = cover.table("height_m")[kind] * scene.fields.height[number] * np.exp(0.12 * rng.standard_normal(len(rows)))
    tall = height > 3
    height = np.where(tall, height, height * np.maximum(leaf, 0.1))
    steep = np.hypot(*(inside(s)[rows, cols] for s in slopes(scene.elevation_m)))
    spread = 1.2 + 12.5 * steep
    density = np.where(tall, 0.35 + 0.45 * leaf, 0.05)
    share = np.linspace(0, 1, 101)[None]
    # Quantiles of a mixture: the lowest part of the energy comes from the ground, the rest climbs through the crown.
    ground = np.clip(share / np.maximum(1 - density[:, None], 1e-3), 0, 1)
    crown = np.clip((share - (1 - density[:, None])) / density[:, None], 0, 1)
    level = spread[:, None] * (1.6 * ground - 0.8) + np.maximum(height[:, None] - 0.8 * spread[:, None], 0) * crown**0.6
    noise = 0.15 * rng.standard_normal((len(rows), 1))
    return np.clip(level + noise, -200, 200).astype(np.float32)


# --- monthly products on their own grids -----------------------------------------------------------------------------


def _months(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of the calendar months of the span, epoch ms."""
    edges = []
    for start in scene.weather.year_starts:
        first = start.astype("datetime64[ms]").astype("datetime64[M]")
        edges += [(first + k).astype("datetime64[ms]").astype(np.int64) for k in range(12)]
    ends = [*edges[1:], scene.weather.start_ms + scene.weather.days * DAY_MS]
    return np.array(edges, np.int64), np.array(ends, np.int64)


def _cells_around(site: Site, step_deg: float) -> tuple[tuple[float, ...], np.ndarray, np.ndarray]:
    """Four cells whose centres surround the place: affine in degrees, and each centre's offset from it in cells, (2, 2)."""
    west = (np.floor(site.lon / step_deg - 0.5)) * step_deg
    north = (np.floor(site.lat / step_deg - 0.5) + 2) * step_deg
    lon = west + step_deg * (np.arange(2) + 0.5)
    lat = north - step_deg * (np.arange(2) + 0.5)
    east, up = np.meshgrid((lon - site.lon) / step_deg, (lat - site.lat) / step_deg)
    return (step_deg, 0.0, round(west, 9), 0.0, -step_deg, round(north, 9)), east, up


def era5_land(scene: Scene) -> SourceSeries:
    """Monthly mean, minimum and maximum of the daily weather: (12 Y, 12, 2, 2) float32, ERA5-Land's order and units.

    The field around the place is a plane through the place's own value, so that interpolation returns the daily truth.
    """
    rng = scene.stream("era5_land")
    weather = scene.weather
    transform, east, up = _cells_around(scene.site, ERA5_STEP_DEG)
    starts, ends = _months(scene)
    kelvin, dew = weather.temperature + 273.15, weather.dewpoint + 273.15
    rain = weather.rain_mm / 1000
    values = np.empty((len(starts), 12, 2, 2), np.float32)
    tilt = rng.normal(0, (0.3, 0.3, 150.0), (2, 3))
    plane = tilt[0][:, None, None] * east + tilt[1][:, None, None] * up  # (3, 2, 2)
    wetter = 1 + rng.normal(0, 0.02) * east + rng.normal(0, 0.02) * up
    for month, (start, end) in enumerate(zip(starts, ends)):
        days = slice((start - weather.start_ms) // DAY_MS, (end - weather.start_ms) // DAY_MS)
        values[month, 0:3] = np.array([f(rain[days]) for f in (np.sum, np.min, np.max)])[:, None, None] * wetter
        for first, series, one in ((3, kelvin, plane[0]), (6, dew, plane[1]), (9, weather.pressure_pa, plane[2])):
            level = np.array([f(series[days]) for f in (np.mean, np.min, np.max)])
            values[month, first : first + 3] = level[:, None, None] + one
    return SourceSeries(
        values=values,
        valid=np.ones((len(starts), 1, 2, 2), bool),
        time_ms=starts,
        time_end_ms=ends,
        transform=transform,
        crs="EPSG:4326",
    )


def grace(scene: Scene) -> SourceSeries:
    """Monthly anomaly of stored water in cm on 0.5 degree cells, (M, 1, 2, 2) float32; some months were never measured."""
    rng = scene.stream("grace")
    weather = scene.weather
    transform, east, up = _cells_around(scene.site, GRACE_STEP_DEG)
    starts, ends = _months(scene)
    tilt = rng.normal(0, 1.0) * east + rng.normal(0, 1.0) * up
    days = [slice((a - weather.start_ms) // DAY_MS, (b - weather.start_ms) // DAY_MS) for a, b in zip(starts, ends)]
    level = np.array([weather.storage_cm[one].mean() for one in days])
    kept = rng.random(len(starts)) > 0.1
    kept[0] = True
    values = (level[:, None, None, None] + tilt).astype(np.float32)[kept]
    return SourceSeries(
        values=np.clip(values, -999, 999),
        valid=np.ones(values.shape, bool),
        time_ms=starts[kept],
        time_end_ms=ends[kept],
        transform=transform,
        crs="EPSG:4326",
    )


# --- a yearly map ----------------------------------------------------------------------------------------------------


def nlcd(scene: Scene) -> SourceSeries | None:
    """Land cover of 30 m pixels by the class of their centre, uint8; only in America, as the product. None elsewhere."""
    if not scene.site.american:
        return None
    rng = scene.stream("nlcd")
    px = scene.px
    kinds = scene.fields.cover[len(scene.fields.cover) - 1]
    code = np.array([rng.choice(cover.COVERS[kind].nlcd) for kind in kinds], np.uint8)
    centre = (np.arange(px) // 3) * 3 + 1
    centre = np.minimum(centre, px - 1)
    values = code[inside(scene.field)][centre][:, centre]
    last = int(scene.weather.year_starts[-1].astype("datetime64[ms]").astype("datetime64[Y]").astype(int)) + 1970
    # As the paper takes the releases: that of 2021 for 2021, that of 2019 for all other years.
    year = 2021 if last == 2021 else 2019
    return SourceSeries(
        values=values[None, None],
        valid=np.ones((1, 1, px, px), bool),
        time_ms=np.array([new_year_ms(year)], np.int64),
        time_end_ms=np.array([new_year_ms(year + 1)], np.int64),
    )
