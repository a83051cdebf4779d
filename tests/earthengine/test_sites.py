"""Sites from files, boxes, random land and strata; snapped grids; periods; parts."""

import json
import math
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod

from aef.earthengine.grid import ChipGrid, NativeGrid, utm_crs
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
    read_sites,
)
from aef.timecode import DAY_MS, parse_period

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


# --- grids -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.floats(-179.9, 179.9), st.floats(-80, 83.9), st.sampled_from((16, 128)))
def test_a_chip_is_snapped_to_ten_metres_in_the_zone_of_its_centre(lon, lat, px):
    grid = ChipGrid.around(lon, lat, px)
    assert grid.crs == utm_crs(lon, lat) and grid.left % 10 == 0 and grid.top % 10 == 0
    found = grid.centre_degrees
    _, _, off = GEOD.inv(lon, lat, *found)
    assert off < 7.2  # half a pixel's diagonal


@pytest.mark.parametrize(
    ("lon", "lat", "crs"),
    [(8.5, 47, "EPSG:32632"), (-180, -1, "EPSG:32701"), (179.99, 1, "EPSG:32660"), (6, 0, "EPSG:32632")],
)
def test_a_point_lies_in_its_utm_zone(lon, lat, crs):
    assert utm_crs(lon, lat) == crs


def test_native_cells_surround_the_chip():
    grid = ChipGrid.around(8.5, 47.1, 128)
    affine, height, width, (row, col) = NativeGrid(0.1, -180.05, 90.05).under(grid)
    lons, lats = grid.outline_degrees()
    assert affine[2] + 0.05 <= lons.min() and affine[2] + 0.1 * (width - 0.5) >= lons.max()
    assert affine[5] - 0.05 >= lats.max() and affine[5] - 0.1 * (height - 0.5) <= lats.min()
    assert math.isclose(affine[2], -180.05 + 0.1 * col) and math.isclose(affine[5], 90.05 - 0.1 * row)


# --- land ------------------------------------------------------------------------------------------------------------


def test_land_mask_knows_continents_seas_and_islands():
    land = {
        "Iowa": (-93.5, 42),
        "Zurich": (8.54, 47.37),
        "Manaus": (-60, -3.1),
        "Oahu": (-157.95, 21.45),
        "Svalbard": (16, 78.5),
        "Madagascar": (47, -19),
        "Tasmania": (146.5, -42),
    }
    sea = {
        "Atlantic": (-35, 30),
        "Pacific": (-150, 0),
        "Indian Ocean": (80, -20),
        "North Sea": (3, 56),
        "Gulf of Mexico": (-90, 25.5),
    }
    assert all(is_land(*p) for p in land.values()), [n for n, p in land.items() if not is_land(*p)]
    assert not any(is_land(*p) for p in sea.values()), [n for n, p in sea.items() if is_land(*p)]


def test_the_share_of_land_is_that_of_the_earth():
    rng = np.random.default_rng(0)
    lat = np.degrees(np.arcsin(rng.uniform(-1, 1, 100_000)))
    share = is_land(rng.uniform(-180, 180, 100_000), lat).mean()
    assert 0.285 < share < 0.32  # 29 % and the cells that coasts touch


# --- sampling --------------------------------------------------------------------------------------------------------


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


def polygon(west, south, east, north, **properties):
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Feature", "properties": properties, "geometry": {"type": "Polygon", "coordinates": [ring]}}


def write_geojson(path, *features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


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


# --- files -----------------------------------------------------------------------------------------------------------


def test_csv_with_ids_and_periods(tmp_path):
    path = tmp_path / "sites.csv"
    path.write_text(
        "Site,Longitude,Latitude,start,end,texts\nfield 1,8.5,47.1,2018-01-01,2019-01-01,\n"
        "b,-93.5,42,1546300800000,1577836800000,2019-02-01/2019-02-03;2020-01-01/2020-02-01\n"
    )
    one, other = read_sites(path)
    assert other.texts == (parse_period("2019-02-01/2019-02-03"), parse_period("2020-01-01/2020-02-01"))
    assert (one.id, one.lon, one.lat, one.periods) == ("field_1", 8.5, 47.1, (parse_period("2018-01-01/2019-01-01"),))
    assert other.periods == (parse_period("2019-01-01/2020-01-01"),)


def test_a_table_of_coordinates_alone(tmp_path):
    """The released training coordinates are such a table: x and y in degrees."""
    path = tmp_path / "coordinates.csv"
    path.write_text("x,y\n8.5,47.1\n-93.5,-42\n")
    assert [s.id for s in read_sites(path)] == ["+47.10000+008.50000", "-42.00000-093.50000"]


def test_parquet_streams_and_geoparquet_geometry_counts(tmp_path):
    import pyarrow
    import pyarrow.parquet
    import shapely

    wkb = [shapely.to_wkb(shapely.Point(8.5, 47.1)), shapely.to_wkb(shapely.box(9, 47, 10, 48))]
    pyarrow.parquet.write_table(pyarrow.table({"id": ["a", "b"], "geometry": wkb}), tmp_path / "g.parquet")
    assert [(s.id, s.lon, s.lat) for s in read_sites(tmp_path / "g.parquet")] == [("a", 8.5, 47.1), ("b", 9.5, 47.5)]
    pyarrow.parquet.write_table(pyarrow.table({"lon": [1.0], "lat": [2.0]}), tmp_path / "p.parquet")
    assert [s.id for s in read_sites(tmp_path / "p.parquet")] == ["+02.00000+001.00000"]


def test_geojson_points_and_areas(tmp_path):
    point = {"type": "Feature", "id": 7, "properties": {}, "geometry": {"type": "Point", "coordinates": [8.5, 47.1]}}
    path = write_geojson(tmp_path / "s.geojson", point, polygon(9, 47, 10, 48, id="area"))
    assert [(s.id, s.lon, s.lat) for s in read_sites(path)] == [("7", 8.5, 47.1), ("area", 9.5, 47.5)]


@pytest.mark.parametrize("split", [False, True])
def test_an_area_on_both_sides_of_180_degrees_lies_there(tmp_path, split):
    def outline(west, east):
        return [[[west, 10], [east, 10], [east, 10.1], [west, 10.1], [west, 10]]]

    west, east = outline(179.7, 180), outline(-180, -179.9)
    whole = {"type": "MultiPolygon", "coordinates": [west, east]} if split else None
    whole = whole or {"type": "Polygon", "coordinates": outline(179.7, -179.9)}
    path = write_geojson(tmp_path / "s.geojson", {"type": "Feature", "properties": {}, "geometry": whole})
    (site,) = read_sites(path)
    assert (site.lon, site.lat) == pytest.approx((179.9, 10.05))


def test_a_date_of_eight_digits_is_one_in_every_kind_of_file(tmp_path):
    import pyarrow
    import pyarrow.parquet

    row = {"lon": [8.5], "lat": [47.1], "start": [20190301], "end": [20200229]}
    pyarrow.parquet.write_table(pyarrow.table(row), tmp_path / "p.parquet")
    (tmp_path / "p.csv").write_text("lon,lat,start,end\n8.5,47.1,20190301,20200229\n")
    for name in ("p.parquet", "p.csv"):
        assert [site.periods for site in read_sites(tmp_path / name)] == [(parse_period("2019-03-01/2020-02-29"),)]


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    path = write_geojson(tmp_path / "s.geojson", polygon(9, 47, 10, 48, id="area"))
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert [site.id for site in read_sites(path)] == ["area"]


def test_an_id_never_hides_its_chip(tmp_path):
    (tmp_path / "s.csv").write_text("id,lon,lat\n.a,8.5,47.1\n..,9.5,47.1\n")
    assert [site.id for site in read_sites(tmp_path / "s.csv")] == ["_a", "_."]


def test_a_blank_id_is_none(tmp_path):
    (tmp_path / "s.csv").write_text("id,lon,lat\n  ,8.5,47.1\n")
    assert [site.id for site in read_sites(tmp_path / "s.csv")] == [at(8.5, 47.1).id]


def test_a_table_in_another_encoding_is_named(tmp_path):
    (tmp_path / "s.csv").write_bytes("id,lon,lat\nMünchen,11,48\n".encode("latin-1"))
    with pytest.raises(SiteError, match=r"s\.csv: is no table in UTF-8"):
        list(read_sites(tmp_path / "s.csv"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "lon,lat\n8.5,95\n", "row 1: .*latitudes"),
        ("a.csv", "lon,lat\n8.5,east\n", "row 1: latitude: expected decimal degrees, found 'east'"),
        ("a.csv", "east,north\n8.5,47\n", "expected columns lon and lat"),
        ("a.csv", "lon,lat,start\n8.5,47,2018-01-01\n", "both its start and its end"),
        (
            "a.csv",
            "lon,lat,start,end\n8.5,47,1551398400,1582934400\n",
            "epoch milliseconds, found 1551398400, .*seconds",
        ),
        (
            "a.csv",
            f"id,lon,lat\na,8,47\n{'b' * 192},9,47\n",
            "row 2: its id names files: expected at most 191 bytes, found 192",
        ),
        ("a.csv", "lon,lat\n", "holds no site"),
        ("a.txt", "lon,lat\n", "expected a .csv"),
        ("a.geojson", "{", "no GeoJSON"),
        ("a.parquet", "x", "no Parquet"),
    ],
)
def test_wrong_files_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(SiteError, match=message):
        list(read_sites(tmp_path / name))
    with pytest.raises(FileNotFoundError):
        list(read_sites(tmp_path / "absent.csv"))


@pytest.mark.parametrize(
    ("geometry", "words"),
    [
        (None, "row 2: has no geometry"),
        ({"type": "Polygon", "coordinates": []}, "row 2: has no geometry"),
        ({"type": "Blob", "coordinates": [1, 2]}, "row 2: its geometry cannot be read"),
        ({"type": "Point", "coordinates": [None, 2]}, "row 2: "),
    ],
)
def test_a_feature_without_a_usable_geometry_is_named_by_its_row(tmp_path, geometry, words):
    fine = {"type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates": [8.5, 47.1]}}
    path = write_geojson(tmp_path / "s.geojson", fine, fine | {"geometry": geometry})
    with pytest.raises(SiteError, match=rf"s\.geojson: {words}"):
        list(read_sites(path))
    with pytest.raises(SiteError, match=r"s\.geojson: row 1: is no feature"):
        list(read_sites(write_geojson(tmp_path / "s.geojson", None)))


def test_a_stratum_without_geometry_is_named(tmp_path):
    path = write_geojson(tmp_path / "s.geojson", {"type": "Feature", "properties": {}, "geometry": None})
    with pytest.raises(SiteError, match="feature 0: has no geometry"):
        list(in_strata(path, 1, Lattice(), seed=0))


def test_a_box_across_180_degrees_is_refused_with_what_to_do():
    with pytest.raises(SiteError, match="it takes two, one on each side"):
        list(in_box(179, -17, -179, -16, Lattice()))


# --- vector files, read by pyogrio


def write_vector(path, points, crs="EPSG:2056", layer=None, **columns):
    import pyogrio
    import shapely

    shapes = np.array([None if point is None else shapely.to_wkb(point) for point in points], object)
    pyogrio.raw.write(
        path,
        shapes,
        [np.array(values) for values in columns.values()],
        list(columns),
        crs=crs,
        geometry_type="Unknown" if path.suffix == ".gpkg" else "Point",
        layer=layer,
        append=path.exists(),
    )
    return path


BERN = (2_600_000.0, 1_200_000.0)  # the origin of the Swiss grid: 7.43863 degrees east, 46.95108 north


@pytest.mark.parametrize("name", ["s.gpkg", "s.shp", "s.fgb", "s.zip"])
def test_vector_files_are_read_in_their_own_projection(tmp_path, name):
    pytest.importorskip("pyogrio", reason="pyogrio is not installed (extra [vector])")
    import shapely

    path = tmp_path / ("s.shp" if name == "s.zip" else name)
    fields = {"id": ["Feld 1", "Feld 2"], "start": ["2019-01-01", None], "end": ["2020-01-01", None], "lon": [1.0, 2.0]}
    x, y = BERN
    area = shapely.box(x - 500, y - 500, x + 500, y + 500) if name == "s.gpkg" else shapely.Point(x, y)
    write_vector(
        path,
        [shapely.Point(x, y), area],
        **{k: np.array(v, object if k != "lon" else float) for k, v in fields.items()},
    )
    if name == "s.zip":
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for part in tmp_path.glob("s.*"):
                if part.suffix != ".zip":
                    archive.write(part, part.name)
    one, two = sorted(read_sites(tmp_path / name), key=lambda site: site.id)
    assert (one.id, two.id) == ("Feld_1", "Feld_2") and two.periods == ()
    assert one.periods == (parse_period("2019-01-01/2020-01-01"),)
    for site in (one, two):  # the geometry counts, not a column of that name
        assert abs(site.lon - 7.43863) < 1e-4 and abs(site.lat - 46.95108) < 1e-4


def test_vector_files_that_cannot_be_used_are_named(tmp_path):
    pytest.importorskip("pyogrio", reason="pyogrio is not installed (extra [vector])")
    import shapely

    here = shapely.Point(*BERN)
    with pytest.raises(SiteError, match="row 2: has no geometry"):
        list(read_sites(write_vector(tmp_path / "null.gpkg", [here, None], id=["a", "b"])))
    write_vector(tmp_path / "two.gpkg", [here], layer="fields", id=["a"])
    with pytest.raises(SiteError, match=r"expected one layer with geometries, found fields, roads.*ogr2ogr"):
        list(read_sites(write_vector(tmp_path / "two.gpkg", [here], layer="roads", id=["a"])))
    write_vector(tmp_path / "bare.shp", [here], id=["a"])
    (tmp_path / "bare.prj").unlink()
    with pytest.raises(SiteError, match="states no coordinate reference system"):
        list(read_sites(tmp_path / "bare.shp"))
    (tmp_path / "no.gpkg").write_text("x")
    with pytest.raises(SiteError, match=r"no\.gpkg: cannot be read"):
        list(read_sites(tmp_path / "no.gpkg"))


def test_without_pyogrio_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyogrio", None)
    (tmp_path / "s.gpkg").write_text("x")
    with pytest.raises(SiteError, match=r"pip install 'aef-engine\[vector\]'.*ogr2ogr -t_srs EPSG:4326"):
        list(read_sites(tmp_path / "s.gpkg"))


# --- periods, chips, parts -------------------------------------------------------------------------------------------


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
