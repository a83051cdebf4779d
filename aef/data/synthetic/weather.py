"""Daily weather of a place: what drives the season, the clouds, the wetness of the soil, ERA5-Land and GRACE."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from aef.clock import DAY_MS
from aef.data.synthetic.chance import red_noise, stream

SPIN_UP_DAYS = 120
"""Days before the chip's span in which the soil and the water storage forget how they started."""

SPRING_BASE_C, SPRING_SUM = 5.0, 170.0
"""Spring has come when this many degree-days above the base have accumulated since the first of January."""


@dataclass(frozen=True)
class Weather:
    """Daily truth from ``start_ms`` on, after the spin-up. Temperatures in °C, rain in mm, all (days,) float64.

    ``cloudiness`` is a score without unit: the cloudiest days get the most cloud. ``storage_cm`` is the water stored in
    the ground against its mean. ``spring_day`` (years,) is the day of each year at which `SPRING_SUM` is reached.
    """

    start_ms: int
    temperature: np.ndarray
    dewpoint: np.ndarray
    pressure_pa: np.ndarray
    rain_mm: np.ndarray
    soil_moisture: np.ndarray
    cloudiness: np.ndarray
    storage_cm: np.ndarray
    year_starts: np.ndarray
    spring_day: np.ndarray

    @property
    def days(self) -> int:
        return len(self.temperature)

    def at(self, series: np.ndarray, times_ms: np.ndarray) -> np.ndarray:
        """A daily series on the days of some times."""
        return series[np.clip((times_ms - self.start_ms) // DAY_MS, 0, self.days - 1)]

    def year_of(self, times_ms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which year of the span a time lies in, and the fractional day of that year, counted from 0."""
        year = np.searchsorted(self.year_starts, times_ms, side="right") - 1
        year = np.clip(year, 0, len(self.spring_day) - 1)
        return year, (times_ms - self.year_starts[year]) / DAY_MS


def new_year_ms(year: int) -> int:
    return int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * 1000


def make_weather(
    seed: int, place: int, first_year: int, years: int, elevation_m: float, draw: int = 0
) -> tuple[Weather, float]:
    """Weather of whole calendar years, and the latitude that its climate belongs to.

    Temperature is an annual wave plus spells of weeks and of days; rain falls in wet spells, more in the cooler half of
    the year; the soil is a leaking bucket; storage is the long sum of rain less evaporation.
    """
    rng = stream(seed, place, "weather", draw)
    start_ms, end_ms = new_year_ms(first_year), new_year_ms(first_year + years)
    days = (end_ms - start_ms) // DAY_MS + SPIN_UP_DAYS
    doy = np.arange(days) - SPIN_UP_DAYS
    season = 2 * np.pi * doy / 365.2425
    mean_c, swing_c = rng.normal(10.2, 0.45), rng.normal(9.5, 0.35)
    spells = 1.6 * red_noise(rng, days, 30) + 2.4 * red_noise(rng, days, 3)
    wetness = 0.6 * red_noise(rng, days, 12) + 0.8 * red_noise(rng, days, 2)
    temperature = mean_c - swing_c * np.cos(season - 2 * np.pi * 20 / 365.2425) + spells
    temperature -= np.maximum(wetness, 0) * 0.8 * np.cos(season + np.pi)
    rain = np.maximum(wetness + 0.15 * np.cos(season) - 0.55, 0) * rng.uniform(5, 8) * rng.exponential(1, days)
    moisture = _bucket(rain, 0.05 + 0.003 * np.maximum(temperature, 0))
    evaporation = 0.25 * np.maximum(temperature, 0) * (0.4 + 0.6 * moisture)
    storage = np.cumsum(rain - evaporation) / 10
    storage -= np.linspace(storage[0], storage[-1], days)
    keep = slice(SPIN_UP_DAYS, None)
    temperature = temperature[keep]
    year_starts = np.array([new_year_ms(first_year + k) for k in range(years)], np.int64)
    pressure = 101_325 * np.exp(-elevation_m / 8400) * (1 - 0.008 * wetness[keep] * 0.9)
    weather = Weather(
        start_ms=start_ms,
        temperature=temperature,
        dewpoint=temperature - 2 - 7 * (1 - moisture[keep]) - np.maximum(-wetness[keep], 0),
        pressure_pa=pressure,
        rain_mm=rain[keep],
        soil_moisture=moisture[keep],
        cloudiness=wetness[keep],
        storage_cm=storage[keep] - storage[keep].mean(),
        year_starts=year_starts,
        spring_day=spring_days(temperature, (year_starts - start_ms) // DAY_MS),
    )
    latitude = float(np.clip(47.5 - (mean_c - 10.2) / 0.55 + rng.normal(0, 0.8), 36, 58))
    return weather, latitude


def spring_days(temperature: np.ndarray, year_starts: np.ndarray) -> np.ndarray:
    """The fractional day of each year at which the degree-days above `SPRING_BASE_C` reach `SPRING_SUM`."""
    found = []
    for start, end in zip(year_starts, [*year_starts[1:], len(temperature)]):
        total = np.cumsum(np.maximum(temperature[start:end] - SPRING_BASE_C, 0))
        day = int(np.searchsorted(total, SPRING_SUM))
        day = min(day, len(total) - 1)
        before = total[day - 1] if day else 0.0
        found.append(day + (SPRING_SUM - before) / max(total[day] - before, 1e-9))
    return np.array(found)


def _bucket(rain_mm: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Relative moisture of the top soil, 0 to 1."""
    level, levels = 0.5, np.empty(len(rain_mm))
    for day in range(len(rain_mm)):
        level = min(level * (1 - loss[day]) + 0.03 * rain_mm[day], 1.0)
        levels[day] = level
    return levels
