"""One place to make chips of."""

from __future__ import annotations

from dataclasses import dataclass

from aef.clock import Period


class SiteError(ValueError):
    """A list of sites cannot be used; one line naming the file and the row."""


@dataclass(frozen=True)
class Site:
    """A place: its id, centre in degrees, and what its own file states: support periods, date ranges of its texts."""

    id: str
    lon: float
    lat: float
    periods: tuple[Period, ...] = ()
    texts: tuple[Period, ...] = ()

    def __post_init__(self) -> None:
        if not (-180 <= self.lon <= 180 and -80.5 <= self.lat <= 84):
            raise SiteError(
                f"site {self.id!r}: expected degrees with latitudes of -80.5 to 84 (the UTM zones), found lon {self.lon}, "
                f"lat {self.lat}"
            )


def at(lon: float, lat: float) -> Site:
    """One place, named by its coordinates."""
    return Site(f"{lat:+09.5f}{lon:+010.5f}", lon, lat)
