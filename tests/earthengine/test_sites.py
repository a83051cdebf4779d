"""Sites from boxes, random land and strata; periods; parts."""

import math

import numpy as np
import pytest
from pyproj import Geod

from aef.earthengine.grid import ChipGrid, utm_crs
from aef.earthengine.land import is_land
from aef.earthengine.planning import PeriodRule, planned_chips
from aef.earthengine.sites import (
    Lattice,
    Site,
    SiteError,
    at,
    choose_periods,
    draw_periods,
    in_box,
    in_strata,
    on_random_land,
    parse_periods,
)
from aef.timecode import DAY_MS, parse_period
from tests.earthengine.areas import polygon, write_geojson

GEOD = Geod(ellps="WGS84")


def nearest_m(sites):
    """Smallest distance between any two sites, metres."""
    lon, lat = np.array([s.lon for s in sites]), np.array([s.lat for s in sites])
    least = math.inf
    for i in range(len(sites) - 1):
        near = np.flatnonzero(abs(lat[i + 1 :] - lat[i]) < 0.05) + i + 1
        if near.size:
            _, _, d = GEOD.inv(np.full(near.size, lon[i]), np.full(near.size, lat[i]), lon[near], lat[near])
            least = min(least, d.min())
    return least


def test_random_land_is_on_land_spaced_and_repeatable():
    sites = list(on_random_land(400, Lattice(), seed=3))
    assert sites == list(on_random_land(400, Lattice(), seed=3)) != list(on_random_land(400, Lattice(), seed=4))
    assert len({s.id for s in sites}) == 400 and nearest_m(sites) >= 1280 * 0.999
    assert all(is_land(s.lon, s.lat) for s in sites)
    assert np.mean([abs(s.lat) < 30 for s in sites]) < 0.65  # by area, not by degree


def test_a_box_is_covered_without_gaps_or_overlaps():
    sites = list(in_box(8.4, 47.0, 8.6, 47.1, Lattice()))
    height, width = 0.1 * 111_200 / 1280, 0.2 * 111_320 * math.cos(math.radians(47.05)) / 1280
    assert abs(len(sites) - height * width) < 2 * (height + width)
    assert nearest_m(sites) == pytest.approx(1280, rel=2e-3)


def test_no_two_chips_overlap_at_a_zone_border():
    from shapely import Polygon
    from shapely.strtree import STRtree

    sites = list(in_box(5.9, 46.0, 6.1, 46.05, Lattice()))
    shapes = []
    for site in sites:
        grid = ChipGrid.around(site.lon, site.lat, 128)
        left, bottom, right, top = grid.bounds
        from aef.earthengine.grid import to_degrees

        shapes.append(
            Polygon(zip(*to_degrees(grid.crs).transform([left, right, right, left], [bottom, bottom, top, top])))
        )
    assert {utm_crs(s.lon, s.lat) for s in sites} == {"EPSG:32631", "EPSG:32632"}
    tree = STRtree(shapes)
    for number, shape in enumerate(shapes):
        overlaps = [shapes[k].intersection(shape).area / shape.area for k in tree.query(shape) if k != number]
        assert max(overlaps, default=0) < 0.02


def test_strata_get_their_quotas(tmp_path):
    path = write_geojson(
        tmp_path / "s.geojson",
        polygon(10, 48, 12, 49, eco=1),
        polygon(20, 48, 22, 49, eco=2, quota=7),
        polygon(13, 48, 14, 49, eco=1),
        polygon(30, 10, 30.05, 10.05, eco=3),
    )
    sites = list(in_strata(path, 30, Lattice(), seed=1, field="eco"))
    inside = [
        sum(w <= s.lon <= e and so <= s.lat <= n for s in sites)
        for w, so, e, n in ((10, 48, 14, 49), (20, 48, 22, 49), (30, 10, 30.05, 10.05))
    ]
    assert inside[:2] == [30, 7] and 8 <= inside[2] < 25  # the third is too small for its quota
    assert nearest_m(sites) >= 1280 * 0.999
    assert sites == list(in_strata(path, 30, Lattice(), seed=1, field="eco"))


def test_a_stratum_scattered_over_the_earth_gets_its_quota(tmp_path):
    corners = ((-80, 10), (145, -16), (40, -10), (8, 47))
    path = write_geojson(tmp_path / "s.geojson", *(polygon(x, y, x + 0.1, y + 0.1, eco=1) for x, y in corners))
    sites = list(in_strata(path, 40, Lattice(), seed=1, field="eco", offshore=True))
    each = [sum(x <= s.lon <= x + 0.1 and y <= s.lat <= y + 0.1 for s in sites) for x, y in corners]
    assert sum(each) == 40 and min(each) >= 3


def test_a_quota_that_is_none_is_that_of_the_command_and_another_is_named(tmp_path):
    path = write_geojson(tmp_path / "s.geojson", polygon(10, 48, 12, 49, quota=None))
    assert len(list(in_strata(path, 3, Lattice(), seed=1))) == 3
    for quota in ("many", -1):
        path = write_geojson(tmp_path / "s.geojson", polygon(10, 48, 12, 49, quota=quota))
        with pytest.raises(SiteError, match=f"feature 0: quota: expected a number of sites, found {quota!r}"):
            list(in_strata(path, 3, Lattice(), seed=1))


def test_strata_at_sea_give_sites_only_offshore(tmp_path):
    path = write_geojson(tmp_path / "s.geojson", polygon(-150, 0, -149, 1))
    assert list(in_strata(path, 3, Lattice(), seed=1)) == []
    assert len(list(in_strata(path, 3, Lattice(), seed=1, offshore=True))) == 3


def test_wrong_strata_are_named(tmp_path):
    path = write_geojson(tmp_path / "s.geojson", polygon(10, 48, 12, 49, eco=1))
    with pytest.raises(SiteError, match="no property 'biome'"):
        list(in_strata(path, 3, Lattice(), seed=1, field="biome"))
    path = write_geojson(tmp_path / "s.geojson", polygon(461420, 5217040, 470000, 5230000))
    with pytest.raises(SiteError, match="stratum 0: expected degrees, found 461420,"):
        list(in_strata(path, 3, Lattice(), seed=1))


def test_a_box_across_180_degrees_is_refused_with_what_to_do():
    with pytest.raises(SiteError, match="it takes two, one on each side"):
        list(in_box(179, -17, -179, -16, Lattice()))


def test_drawn_periods_do_not_overlap_and_are_repeatable():
    within = parse_period("2017-01-01/2023-01-01")
    starts = set()
    for n in range(200):
        one, other = draw_periods(f"s{n}", within, 2, seed=0)
        assert within.start_ms <= one.start_ms and one.end_ms <= other.start_ms and other.end_ms <= within.end_ms
        assert one.length_ms == other.length_ms == 365 * DAY_MS
        assert (one, other) == draw_periods(f"s{n}", within, 2, seed=0)
        starts.add(one.start_ms)
    assert len(starts) > 100  # not aligned to the calendar
    with pytest.raises(ValueError, match="too short"):
        draw_periods("s", parse_period("2017-01-01/2018-06-01"), 2, seed=0)


def test_periods_are_chosen_for_the_texts_of_a_site():
    within = parse_period("2017-01-01/2021-01-01")
    texts = [parse_period("2018-05-01/2018-05-10"), parse_period("2020-02-01/2020-02-03")]
    pair = choose_periods("s", within, texts, seed=0)
    assert all(sum(p.start_ms <= t.start_ms and t.end_ms <= p.end_ms for p in pair) == 1 for t in texts)
    site = Site("s", 8.5, 47.1, texts=tuple(texts))
    assert PeriodRule((within,), drawn=2).of(site) == pair


def test_given_periods_must_not_overlap():
    assert len(parse_periods("2019-01-01/2020-01-01,2017-01-01/2018-01-01")) == 2
    with pytest.raises(ValueError, match="overlap"):
        parse_periods("2017-01-01/2018-01-01,2017-06-01/2018-06-01")


def test_every_site_and_period_is_a_chip_of_the_same_place():
    rule = PeriodRule(parse_periods("2017-01-01/2018-01-01,2019-01-01/2020-01-01"))
    chips = list(planned_chips([at(8.5, 47.1)], rule))
    assert [c.id for c in chips] == ["+47.10000+008.50000_20170101", "+47.10000+008.50000_20190101"]
    assert len({c.site for c in chips}) == 1 and chips[0].grid == chips[1].grid
    own = Site("x", 8.5, 47.1, (parse_period("2020-01-01/2020-06-01"),))
    assert [c.id for c in planned_chips([own], rule)] == ["x_20200101"]
    with pytest.raises(ValueError, match="add --periods"):
        list(planned_chips([at(8, 47)], PeriodRule()))


def test_parts_share_the_sites_among_them():
    sites, rule = list(on_random_land(90, Lattice(), seed=0)), PeriodRule(parse_periods("2017-01-01/2018-01-01"))
    shares = [{c.id for c in planned_chips(sites, rule, part=(i, 3))} for i in (1, 2, 3)]
    assert sum(map(len, shares)) == len(set().union(*shares)) == 90 and min(map(len, shares)) > 10
