"""From sites and periods to planned chips: one chip per site and support period, on its snapped grid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from aef.clock import Period, format_date
from aef.earthengine.grid import ChipGrid
from aef.earthengine.manifest import PlannedChip
from aef.earthengine.sites import Site, choose_periods, draw_periods
from aef.hashing import stable_hash


@dataclass(frozen=True)
class PeriodRule:
    """Which support periods a site gets: those of its own file, else the given ones, else ``drawn`` at random.

    With ``drawn`` > 0 the single given period is the range in which that many periods of ``days`` are placed; two of
    them are placed so that they tell the site's texts apart, where it has any.
    """

    periods: tuple[Period, ...] = ()
    drawn: int = 0
    days: int = 365
    seed: int = 0

    def of(self, site: Site) -> tuple[Period, ...]:
        """Raises ValueError where there is no period, or the range is too short."""
        if site.periods:
            return site.periods
        if not self.periods:
            raise ValueError(f"site {site.id} states no period of its own: add --periods START/END")
        if not self.drawn:
            return self.periods
        if site.texts and self.drawn == 2:
            return choose_periods(site.id, self.periods[0], site.texts, seed=self.seed, length_days=self.days)
        return draw_periods(site.id, self.periods[0], self.drawn, seed=self.seed, length_days=self.days)


def planned_chips(
    sites: Iterable[Site], rule: PeriodRule, *, px: int = 128, part: tuple[int, int] | None = None
) -> Iterator[PlannedChip]:
    """Chips of all sites, or of those that fall to a part (by their id, so that every host agrees)."""
    for site in sites:
        if part and stable_hash(site.id) % part[1] != part[0] - 1:
            continue
        grid = ChipGrid.around(site.lon, site.lat, px)
        for period in rule.of(site):
            day = format_date(period.start_ms).replace("-", "")
            yield PlannedChip(f"{site.id}_{day}", site.id, site.lon, site.lat, grid, period, stated=bool(site.periods))
