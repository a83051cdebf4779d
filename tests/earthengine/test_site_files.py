"""Sites and areas from tables, GeoJSON and vector files; what cannot be read is named."""

import sys
import zipfile

import numpy as np
import pytest

from aef.earthengine.sites import (
    Lattice,
    SiteError,
    at,
    in_strata,
    read_sites,
)
from aef.timecode import parse_period
from tests.earthengine.areas import polygon, write_geojson


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
