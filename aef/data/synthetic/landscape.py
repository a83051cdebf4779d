"""The latent scene of a place: fields, what grows on them in each year, relief, and how a field's state moves in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aef.data.synthetic import cover
from aef.data.synthetic.chance import rough_fields, stream
from aef.data.synthetic.cover import COVERS
from aef.data.synthetic.grid import PIXEL_M, Site, ground_side, inside
from aef.data.synthetic.weather import Weather, make_weather

FIELD_PX = 64 * 64 / 24.5
"""Mean area of a field."""
LARGEST = 2.3
"""Parcels above this multiple of the mean are divided; what the chip's edge cuts off makes up for the rest."""
LEAST_FIELD_PX = 12
"""Slivers below this, cut off by the chip's edge or a road, are not counted or labelled as fields."""
UNKNOWN_SHARE = 0.08
TEXTURE, TEXTURE_PX = 0.20, 6
"""Standard deviation of the logarithmic reflectance within a field, and the longest wave of it: shorter than a field,
so that a mean over the field is worth more than one over a few pixels."""
SOIL_BRIGHTNESS, SOIL_COLOUR = 0.08, 0.02
LEAF_BRIGHTNESS, LEAF_COLOUR = 0.06, 0.015
PEAK_SPREAD, RADAR_SPREAD_DB = 0.03, 0.3
"""Standard deviations of a field against its cover: logarithmic reflectance, relative green cover, backscatter."""
GREEN_UP_DAYS, DRY_DOWN_DAYS = 7.0, 6.0


@dataclass(frozen=True)
class Fields:
    """Properties of the F fields of a place, roads, rivers and hedges among them. Y years.

    ``cover`` (Y, F) index into `COVERS`; ``start``, ``length``, ``peak`` (Y, F) days after the place's spring, days,
    and green cover; ``cuts`` (Y, F, 3) days of mowing; ``soil`` (F, 5) and ``leaf`` (F, 5) log factors of the spectra;
    ``vv_db``, ``vh_db``, ``height`` (F,) of a field against its cover.
    """

    cover: np.ndarray
    start: np.ndarray
    length: np.ndarray
    peak: np.ndarray
    cuts: np.ndarray
    soil: np.ndarray
    leaf: np.ndarray
    vv_db: np.ndarray
    vh_db: np.ndarray
    height: np.ndarray

    @property
    def count(self) -> int:
        return self.cover.shape[1]


@dataclass(frozen=True)
class Canopy:
    """State of every field at T times: green and dry cover, 0 to 1, and the row of `COVERS`, all (T, F)."""

    green: np.ndarray
    dry: np.ndarray
    cover: np.ndarray


@dataclass(frozen=True)
class Scene:
    """Everything that all sources see. Ground arrays are (G, G) with a margin around the chip.

    ``field`` numbers the fields from 0; ``labelled`` (G, G) is the field number + 1, 0 on roads, rivers, hedges and
    slivers; ``seams`` cover codes of the last fields, the narrow ones; ``unknown`` (F,) fields whose class nobody has
    recorded; ``texture`` (2, G, G) log reflectance of visible and infrared light against the field's; ``elevation_m``.
    """

    seed: int
    place: int
    draw: int
    site: Site
    weather: Weather
    fields: Fields
    field: np.ndarray
    labelled: np.ndarray
    seams: tuple[int, ...]
    unknown: np.ndarray
    texture: np.ndarray
    elevation_m: np.ndarray

    @property
    def px(self) -> int:
        return self.site.px

    def stream(self, purpose: str) -> np.random.Generator:
        return stream(self.seed, self.place, purpose, self.draw)

    def canopy(self, times_ms: np.ndarray) -> Canopy:
        """Green and dry cover of every field: two logistic steps a year, an autumn sowing, and cuts of meadows."""
        year, day = self.weather.year_of(times_ms)
        f = self.fields
        kind = f.cover[year]  # (T, F)
        day = day[:, None].astype(np.float32)
        start = self.weather.spring_day.astype(np.float32)[year][:, None] + f.start[year]
        end = start + f.length[year]
        winter = cover.table("winter")
        before, after = winter[kind], winter[f.cover[np.minimum(year + 1, len(f.cover) - 1)]]
        peak = f.peak[year]
        up, down = _step((day - start) / GREEN_UP_DAYS), _step((day - end) / DRY_DOWN_DAYS)
        stubble = np.where(cover.table("crop")[kind] > 0, np.minimum(before, 0.05), before)
        sown = _step((day - 315) / 6)
        green = before + (peak - before) * up - (peak - stubble) * down + (after - stubble) * sown
        dry = cover.table("dry")[kind] * peak * (_step((day - end) / 4) - _step((day - end - 24) / 3))
        since = day[..., None] - f.cuts[year]
        cut = np.where(since >= 0, 0.55 * np.exp(-np.maximum(since, 0) / 16), 0).max(-1)
        return Canopy(np.clip(green * (1 - cut), 0, 1), np.clip(dry, 0, 1), kind)

    def labels(self, year: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Crop map, land-cover map (both uint8, 0 unknown) and field ids (int32, 0 none), each (px, px)."""
        codes = self.fields.cover[year] + 1
        crops = np.where(np.isin(codes, cover.CROPS), codes, cover.UNKNOWN)
        covers = np.where(np.isin(codes, cover.CROPS), cover.CROPLAND, codes)
        ids = inside(self.labelled)
        known = (ids > 0) & ~inside(self.unknown[self.field])
        number = inside(self.field)
        return (
            np.where(known, crops[number], cover.UNKNOWN).astype(np.uint8),
            np.where(known, covers[number], cover.UNKNOWN).astype(np.uint8),
            ids.astype(np.int32),
        )

    def latents(self, year: int) -> np.ndarray:
        """What a field's season is made of, (F, 4): start and length in days, the place's spring, peak green cover."""
        spring = np.full(self.fields.count, self.weather.spring_day[year])
        f = self.fields
        return np.stack([spring + f.start[year], f.length[year], spring, f.peak[year]], 1)


def _step(x: np.ndarray) -> np.ndarray:
    """Logistic step."""
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))


def make_scene(seed: int, place: int, *, px: int, first_year: int, years: int, draw: int = 0) -> Scene:
    """Draw the latent scene of a place; nothing in it depends on which sources are rendered."""
    rng = stream(seed, place, "place", draw)
    hills = rng.choice([4.0, 15.0, 40.0], p=[0.5, 0.3, 0.2])
    base_m = 3 * hills + rng.uniform(0, 350)
    weather, latitude = make_weather(seed, place, first_year, years, base_m, draw)
    zone = int(rng.choice((12, 13, 14, 15, 16, 17, 18, 31, 32, 33, 34, 35, 36, 37)))
    side = ground_side(px)
    field, seams = _parcels(stream(seed, place, "parcels", draw), side)
    relief = rough_fields(stream(seed, place, "relief", draw), 1, side, slope=2.4)[0]
    texture = rough_fields(stream(seed, place, "texture", draw), 2, side, slope=0.7, longest=TEXTURE_PX / side)
    texture[1] = 0.6 * texture[0] + 0.8 * texture[1]
    count = int(field.max()) + 1
    return Scene(
        seed=seed,
        place=place,
        draw=draw,
        site=Site(zone, latitude, px),
        weather=weather,
        fields=sow(seed, place, count, years, seams.kinds, draw=draw),
        field=field,
        labelled=_number_fields(field, seams),
        seams=seams.kinds,
        unknown=np.asarray(stream(seed, place, "unknown", draw).random(count) < UNKNOWN_SHARE),
        texture=texture * np.float32(TEXTURE),
        elevation_m=(base_m + hills * relief).astype(np.float32),
    )


def sow(
    seed: int, place: int, count: int, years: int, seams: tuple[int, ...], sowing: int = 0, draw: int = 0
) -> Fields:
    """What grows on a place's fields; ``sowing`` numbers the attempts within one draw of the place."""
    kinds = _assign_covers(stream(seed, place, f"covers/{sowing}", draw), count, years, seams)
    return _draw_fields(stream(seed, place, f"fields/{sowing}", draw), kinds)


# --- parcels ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seams:
    """Narrow things between fields: ``first`` is the number of the first of them, ``kinds`` their cover codes."""

    first: int
    kinds: tuple[int, ...]


def _parcels(rng: np.random.Generator, side: int) -> tuple[np.ndarray, Seams]:
    """Fields as a block of land is divided: ever the largest parcel, across its longer side. (G, G) int32 numbers."""
    field = _divide(rng, side)
    _, field = np.unique(field, return_inverse=True)
    field = field.reshape(side, side).astype(np.int32)
    seams = Seams(int(field.max()) + 1, ())
    return _draw_seams(rng, field, seams)


def _divide(rng: np.random.Generator, side: int) -> np.ndarray:
    angle = rng.uniform(0, np.pi / 2)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    bend = rough_fields(rng, 2, side, slope=2.0) * 1.2
    u = np.cos(angle) * x + np.sin(angle) * y + bend[0]
    v = -np.sin(angle) * x + np.cos(angle) * y + bend[1]
    reach = float(max(np.abs(u).max(), np.abs(v).max())) + 1
    boxes = [(-reach, -reach, reach, reach)]
    while max((b[2] - b[0]) * (b[3] - b[1]) for b in boxes) > LARGEST * FIELD_PX:
        boxes.sort(key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))
        u0, v0, u1, v1 = boxes.pop()
        share = rng.uniform(0.36, 0.64)
        if (u1 - u0) * rng.uniform(0.7, 1.4) > v1 - v0:
            cut = u0 + share * (u1 - u0)
            boxes += [(u0, v0, cut, v1), (cut, v0, u1, v1)]
        else:
            cut = v0 + share * (v1 - v0)
            boxes += [(u0, v0, u1, cut), (u0, cut, u1, v1)]
    field = np.zeros((side, side), np.int32)
    for number, (u0, v0, u1, v1) in enumerate(boxes):
        field[(u >= u0) & (u < u1) & (v >= v0) & (v < v1)] = number
    return field


def _draw_seams(rng: np.random.Generator, field: np.ndarray, seams: Seams) -> tuple[np.ndarray, Seams]:
    """A road in most places, a stream in some, hedges along some field borders."""
    side = len(field)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    kinds: list[int] = []
    border = np.zeros(field.shape, bool)
    border[:-1] |= field[:-1] != field[1:]
    border[:, :-1] |= field[:, :-1] != field[:, 1:]
    hedged = rng.random(field.max() + 1) < 0.25
    out = field.copy()
    kinds.append(cover.HEDGE)
    out[border & hedged[field]] = seams.first
    for chance, kind, width in ((0.7, cover.BUILT_UP, 0.6), (0.3, cover.WATER, 1.3)):
        angle, offset, phase = rng.uniform(0, np.pi), rng.uniform(0.25, 0.75) * side, rng.uniform(0, 6)
        bend = 4 if kind == cover.WATER else 1
        if rng.random() < chance:
            along = np.cos(angle) * (x - side / 2) + np.sin(angle) * (y - side / 2)
            across = -np.sin(angle) * (x - side / 2) + np.cos(angle) * (y - side / 2) + side / 2 - offset
            out[np.abs(across + bend * np.sin(along / 12 + phase)) < width] = seams.first + len(kinds)
            kinds.append(kind)
    return out, Seams(seams.first, tuple(kinds))


def _number_fields(field: np.ndarray, seams: Seams) -> np.ndarray:
    sizes = np.bincount(inside(field).ravel(), minlength=seams.first + len(seams.kinds))
    counted = (sizes >= LEAST_FIELD_PX) & (np.arange(len(sizes)) < seams.first)
    return np.where(counted[field], field + 1, 0).astype(np.int32)


# --- what grows on them ----------------------------------------------------------------------------------------------


def _assign_covers(rng: np.random.Generator, count: int, years: int, seams: tuple[int, ...]) -> np.ndarray:
    """Cover of every field in every year, (Y, F) index: places have their own mixture, crops rotate, the rest stays."""
    shares = np.array([one.share for one in COVERS])
    mixture = rng.dirichlet(14 * len(COVERS) * shares / shares.sum())
    # Drawn one by one from what the place still lacks, so that few fields already show its mixture.
    kinds = rng.permutation(np.searchsorted(np.cumsum(mixture), (np.arange(count) + rng.random()) / count))
    kinds = np.minimum(kinds, len(COVERS) - 1)
    crops = np.array(cover.CROPS) - 1
    rows = np.tile(kinds, (years, 1))
    for year in range(1, years):
        rows[year] = np.where(np.isin(kinds, crops), rng.choice(crops, count), kinds)
    if seams:
        rows[:, -len(seams) :] = np.array(seams) - 1
    return rows


def _draw_fields(rng: np.random.Generator, kinds: np.ndarray) -> Fields:
    years, count = kinds.shape
    start, length = cover.table("start_day"), cover.table("length_days")
    jitter = _normal(rng, 1, 3, years, count)
    # Common brightness first, then colour: a field of one crop may look like another's.
    soil = _normal(rng, SOIL_BRIGHTNESS, count, 1) + _normal(rng, SOIL_COLOUR, count, 5)
    leaf = _normal(rng, LEAF_BRIGHTNESS, count, 1) + _normal(rng, LEAF_COLOUR, count, 5)
    mown = np.sort(rng.uniform(130, 275, (years, count, 3)), -1)
    cuts = np.where(cover.table("cuts")[kinds][..., None] > 0, mown, 999)
    peak = cover.table("peak")[kinds]
    return Fields(
        cover=kinds,
        start=start[kinds] + np.float32(cover.START_JITTER_DAYS) * jitter[0],
        length=length[kinds] + np.float32(cover.LENGTH_JITTER_DAYS) * jitter[1],
        peak=np.clip(peak * (1 + PEAK_SPREAD * jitter[2]), 0, 0.98),
        cuts=cuts.astype(np.float32),
        soil=soil,
        leaf=leaf,
        vv_db=_normal(rng, RADAR_SPREAD_DB, count),
        vh_db=_normal(rng, RADAR_SPREAD_DB, count),
        height=np.asarray(rng.uniform(0.6, 1.3, count), np.float32),
    )


def _normal(rng: np.random.Generator, deviation: float, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(deviation)


def slopes(elevation_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rise per metre to the east and to the north of a field on 10 m cells, north up."""
    down, across = np.gradient(elevation_m, PIXEL_M)
    return across, -down
