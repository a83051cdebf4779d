"""Embedding fields as files: what is written is what is read, with its place on the Earth."""

import resource
from contextlib import contextmanager

import numpy as np
import pytest
import rasterio

from aef.data.chips import Chip
from aef.mapping.field import MadeBy
from aef.mapping.files import DamagedFieldError, as_data_array, read_field, write_field
from aef.mapping.picture import pca_rgb, similarity
from aef.timecode import parse_period

YEAR = parse_period("2018-01-01/2019-01-01")
SMALL = MadeBy("small@20", "0" * 64)


def a_field(side=(5, 7), single=True, periods=(YEAR,), made_by=SMALL):
    chip = Chip("c", "EPSG:32631", (10.0, 0, 500_000, 0, -10.0, 5_700_000), *side, 3.0, 51.0, {})
    x = np.random.default_rng(1).normal(size=(len(periods), 64, *side)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return as_data_array(x, chip, list(periods), ["sentinel2"], made_by, single=single)


def test_coordinates_are_pixel_centres_and_provenance_travels():
    field = a_field()
    assert field.dims == ("band", "y", "x") and field.band.values[3] == "A03"
    assert float(field.x[0]) == 500_005 and float(field.y[0]) == 5_699_995
    assert field.rio.crs.to_epsg() == 32631
    assert field.attrs["period"] == "2018-01-01/2019-01-01" and field.attrs["sources"] == "sentinel2"


@pytest.mark.parametrize(
    ("form", "suffix", "error"), [("int8", ".tif", 0.006), ("float", ".tif", 0), ("netcdf", ".nc", 0)]
)
def test_a_file_gives_the_field_back(tmp_path, form, suffix, error):
    field = a_field()
    path = write_field(tmp_path / f"f{suffix}", field, form)
    back = read_field(path)
    assert np.abs(back.values - field.values).max() <= error
    assert np.array_equal(back.x, field.x) and np.array_equal(back.y, field.y)  # a relative tolerance would be 57 m
    assert back.rio.crs == field.rio.crs and back.attrs["model_version"] == "small@20"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_int8_file_is_the_published_code_with_no_data(tmp_path):
    field = a_field()
    field.values[:, 0, 0] = np.nan
    with rasterio.open(write_field(tmp_path / "f.tif", field)) as file:
        assert file.dtypes == ("int8",) * 64 and file.nodata == -128
        assert (file.read()[:, 0, 0] == -128).all()
        assert file.descriptions[0] == "A00" and file.tags()["period"] == "2018-01-01/2019-01-01"
    assert np.isnan(read_field(tmp_path / "f.tif").values[:, 0, 0]).all()


def test_a_field_of_several_periods_is_not_written_as_one(tmp_path):
    later = parse_period("2019-01-01/2020-01-01")
    field = a_field(single=False, periods=(YEAR, later))
    assert field.dims == ("period", "band", "y", "x")
    with pytest.raises(ValueError, match="select a period"):
        write_field(tmp_path / "f.tif", field)
    assert not list(tmp_path.iterdir())


FORMATS = [("int8", ".tif"), ("float", ".tif"), ("netcdf", ".nc")]


@contextmanager
def files_end_at(count):
    """No file grows beyond `count` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("form", "suffix"), FORMATS)
@pytest.mark.parametrize("room", [0, 1000])
def test_a_full_disk_is_an_error_and_leaves_the_old_field(tmp_path, form, suffix, room):
    path = write_field(tmp_path / f"f{suffix}", a_field(), form)
    before = path.read_bytes()
    with pytest.raises(OSError, match=f"f{suffix}"), files_end_at(room):
        write_field(path, a_field(side=(9, 9)), form)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("form", "suffix"), FORMATS)
@pytest.mark.parametrize("share", [0, 0.1, 0.5])
def test_a_file_that_is_cut_short_is_damaged(tmp_path, form, suffix, share):
    path = write_field(tmp_path / f"f{suffix}", a_field(side=(16, 16)), form)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DamagedFieldError, match=r"f\.\w+: is damaged or not an embedding field .*: make it again"):
        read_field(path)


@pytest.mark.parametrize(("name", "form"), [("y.nc", "int8"), ("y.nc", "float"), ("y.tif", "netcdf"), ("y", "int8")])
def test_a_name_of_another_format_is_refused(tmp_path, name, form):
    with pytest.raises(ValueError, match=rf"{name}: expected a name that ends in \.\w+ for the format {form}"):
        write_field(tmp_path / name, a_field(), form)
    assert not list(tmp_path.iterdir())


def test_what_is_not_a_field_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such embedding field"):
        read_field(tmp_path / "f.tif")
    with pytest.raises(ValueError, match="unknown format"):
        write_field(tmp_path / "f.jpg", a_field(), "jpeg")


def test_colours_are_shared_by_all_fields_and_missing_pixels_are_white():
    one, two = a_field().values, a_field().values.copy()
    two[:, 0, 0] = np.nan
    first, second = pca_rgb([one, two])
    assert first.shape == (5, 7, 3) and first.min() >= 0 and first.max() <= 1
    assert np.allclose(first[1:], second[1:]) and (second[0, 0] == 1).all()


def test_a_constant_field_has_a_picture():
    (picture,) = pca_rgb([np.broadcast_to(np.eye(64, dtype=np.float32)[0][:, None, None], (64, 3, 3))])
    assert np.isfinite(picture).all()


def test_similarity_to_a_pixel_is_one_at_that_pixel():
    field = a_field().values
    cosine = similarity(field, field[:, 2, 3])
    assert cosine[2, 3] == pytest.approx(1, abs=1e-6) and np.abs(cosine).max() <= 1 + 1e-6
