"""A user's labels on fields: points and areas from files, and the pixels that they take."""

import numpy as np
import pytest
from rasterio.warp import transform as warp

from aef.data.chips import Chip
from aef.mapping.files import as_data_array
from aef.mapping.labels import LabelError, LabelledArea, read_labels, sample
from aef.mapping.made_by import MadeBy
from tests.mapping.labelled_fields import CRS, LEFT, SIDE, TOP, YEAR, box, degrees, field, geojson, points


def test_a_point_takes_the_pixel_that_holds_it(tmp_path):
    path = points(tmp_path / "labels.csv", [(3, 2, "water", 0), (11, 11, "wood", 0), (0, 0, "water", 7)])
    one = field()
    found = sample([one], read_labels(path, "cover"))
    assert found.classes == ("water", "wood") and found.codes.tolist() == [0, 1] and found.missed == 1
    assert np.array_equal(found.vectors, one.values[:, [3, 11], [2, 11]].T)


def test_an_area_takes_the_pixels_whose_centre_it_holds_and_a_narrow_one_what_it_touches(tmp_path):
    narrow = box((2, 2.3), (8.1, 8.4))
    path = geojson(tmp_path / "labels.geojson", [(box((1, 4), (0, 2)), "water"), (narrow, "wood")])
    one = field()
    found = sample([one], read_labels(path, "cover"))
    expected = [one.values[:, row, col] for row in (1, 2, 3) for col in (0, 1)] + [one.values[:, 2, 8]]
    assert np.array_equal(found.vectors, np.stack(expected)) and found.areas.tolist() == [0] * 6 + [1]
    fewer = sample([one], read_labels(path, "cover"), most=4)
    assert fewer.areas.tolist() == [0] * 4 + [1]
    assert {tuple(row) for row in fewer.vectors} <= {tuple(row) for row in found.vectors}


def test_pixels_without_a_vector_are_no_samples(tmp_path):
    path = geojson(tmp_path / "labels.geojson", [(box((0, 2), (0, 1)), "water"), (box((0, 1), (9, 10)), "wood")])
    one = field()
    one.values[:, 0, 0] = np.nan
    assert sample([one], read_labels(path, "cover")).areas.tolist() == [0, 1]
    one.values[:] = np.nan
    with pytest.raises(LabelError, match="at least two classes on the fields, found no label of 2 there"):
        sample([one], read_labels(path, "cover"))


def test_labels_of_one_square_of_ground_belong_together(tmp_path):
    places = [(0, 0, "water", 0), (0, 3, "water", 0), (0, 6, "wood", 0), (0, 6, "wood", 1)]
    areas = read_labels(points(tmp_path / "labels.csv", places), "cover")
    fields = [field(number) for number in range(2)]
    assert sample(fields, areas, block_m=50).blocks.tolist() == [0, 0, 1, 2]
    assert sample(fields, areas, block_m=500).blocks.tolist() == [0, 0, 0, 1]


def elsewhere(crs, lon, lat):
    """A field whose middle lies at a position."""
    (x,), (y,) = warp("EPSG:4326", crs, [lon], [lat])
    left, top = round(x / 10 - SIDE / 2) * 10.0, round(y / 10 + SIDE / 2) * 10.0
    there = Chip("there", crs, (10.0, 0.0, left, 0.0, -10.0, top), SIDE, SIDE, lon, lat, {})
    vectors = field().values[None]
    return as_data_array(vectors, there, [YEAR], [{"sources": "sentinel2"}], MadeBy("v"), single=True)


def at(lon, lat, label):
    return LabelledArea({"type": "Point", "coordinates": [lon, lat]}, label)


def test_labels_on_either_side_of_the_180th_meridian_lie_on_the_field_that_spans_it():
    taken = sample([elsewhere("EPSG:32760", 180.0, -17.0)], [at(179.9998, -17, "water"), at(-179.9998, -17, "wood")])
    assert taken.missed == 0 and taken.vectors.argmax(axis=1).tolist() == [0, 1]


def rectangle(west, south, east, north):
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}


def test_of_a_label_that_spans_the_world_a_field_takes_what_lies_on_it():
    lon, lat = degrees(6, 6)  # where the pixels of row and column 6 have their middle
    south = rectangle(-180, -90, 180, lat)
    north = {"type": "MultiPolygon", "coordinates": [rectangle(-180, lat, 93, 90)["coordinates"]]}
    for one in (field(), field()[:, ::-1]):
        taken = sample([one], [LabelledArea(south, "south"), LabelledArea(north, "north")], most=SIDE * SIDE)
        rows = np.bincount(taken.areas, minlength=2) / SIDE
        assert taken.missed == 0 and abs(rows - [SIDE - 6, 6]).max() <= 1 and rows.sum() == SIDE
    holed = rectangle(-180, -90, 180, 90)
    holed["coordinates"].append(rectangle(lon, -80, 170, 80)["coordinates"][0])
    points = {"type": "MultiPoint", "coordinates": [[93.0, 0.0], [-87.0, 0.0], [lon, lat]]}
    taken = sample([field()], [LabelledArea(holed, "west"), LabelledArea(points, "point")], most=SIDE * SIDE)
    assert abs(np.bincount(taken.areas) / SIDE - [6, 1 / SIDE]).max() <= 1
    across = [LabelledArea(rectangle(-180, -90, -170, 90), "east"), LabelledArea(rectangle(0, -90, 180, 90), "west")]
    taken = sample([elsewhere("EPSG:32760", 180.0, -17.0)], across, most=SIDE * SIDE)
    assert abs(np.bincount(taken.areas) / SIDE - [6, 6]).max() <= 1


def test_labels_lie_on_a_field_that_was_thinned_where_its_coordinates_say():
    taken = sample([field()[:, 1::2, 1::2]], [at(*degrees(1, 1), "water"), at(*degrees(11, 11), "wood")])
    assert taken.missed == 0 and taken.codes.tolist() == taken.vectors.argmax(axis=1).tolist()


def test_a_label_on_fields_of_two_zones_is_never_on_both_sides_of_a_split():
    fields = [elsewhere("EPSG:32631", 6.0, 50.0), elsewhere("EPSG:32632", 6.0, 50.0)]
    taken = sample(fields, [at(5.9998, 50, "water"), at(6.0002, 50, "wood")], block_m=10)
    assert taken.areas.tolist() == [0, 1, 0, 1] and taken.blocks.tolist() == [0, 1, 0, 1]


def test_a_geopackage_in_metres_is_read_like_geojson_in_degrees(tmp_path):
    pyogrio = pytest.importorskip("pyogrio", reason="pyogrio, of the extra `vector`, is not installed")
    shapely = pytest.importorskip("shapely")
    shapes = [shapely.box(LEFT, TOP - 40, LEFT + 20, TOP - 10), shapely.Point(LEFT + 85, TOP - 25)]
    path = tmp_path / "labels.gpkg"
    pyogrio.raw.write(
        path, shapely.to_wkb(shapes), [np.array(["water", "wood"], object)], ["Cover"], crs=CRS, geometry_type="Unknown"
    )
    one = field()
    found = sample([one], read_labels(path, "Cover"))
    expected = [one.values[:, row, col] for row in (1, 2, 3) for col in (0, 1)] + [one.values[:, 2, 8]]
    assert np.array_equal(found.vectors, np.stack(expected)) and found.codes.tolist() == [0] * 6 + [1]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "lon,lat,cover\n4,50,a\n4,fifty,b\n", "row 2: expected decimal degrees, found '4', 'fifty'"),
        ("a.csv", "lon,lat,cover\n4,50,a\n500000,5600000,b\n", r"row 2: expected degrees, found \(500000"),
        ("a.csv", "lon,lat,kind\n4,50,a\n", "row 1: expected a column 'cover', found lon, lat, kind"),
        ("a.csv", "easting,lat,cover\n4,50,a\n", "expected columns lon and lat, found easting, lat, cover"),
        ("a.csv", "lon,lat,cover\n4,50,a\n4,51,\n4,51,a\n", "expected 2 to 254 classes in 'cover', found 1"),
        ("a.geojson", '{"type"', "is no GeoJSON"),
        (
            "a.geojson",
            '{"type": "FeatureCollection", "features": [{"properties": {"cover": 1}, "geometry": null}]}',
            "row 1: its geometry is missing or broken",
        ),
        ("a.xlsx", "", "expected one of .csv, .geojson, .json, .gpkg, .shp, .fgb, .zip, found .xlsx"),
    ],
)
def test_labels_that_cannot_be_read_are_refused_by_row(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(LabelError, match=words):
        read_labels(tmp_path / name, "cover")
