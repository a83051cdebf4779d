"""Embedding fields as files: what is written is what is read, with its place on the Earth."""

import resource
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import rasterio
import xarray
from rasterio.transform import Affine

from aef.data.chips import Chip
from aef.mapping.files import (
    DamagedFieldError,
    NotUnitWarning,
    as_data_array,
    is_there,
    preview,
    read_field,
    read_tags,
    write_field,
    write_geotiff,
    writing_strips,
)
from aef.mapping.made_by import MadeBy
from aef.mapping.picture import pca_rgb, similarity
from aef.mapping.quantize import quantize
from aef.timecode import parse_period

YEAR = parse_period("2018-01-01/2019-01-01")
SMALL = MadeBy("small@20", "0" * 64)


def a_field(side=(5, 7), single=True, periods=(YEAR,), made_by=SMALL):
    chip = Chip("c", "EPSG:32631", (10.0, 0, 500_000, 0, -10.0, 5_700_000), *side, 3.0, 51.0, {})
    x = np.random.default_rng(1).normal(size=(len(periods), 64, *side)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return as_data_array(x, chip, list(periods), [{"sources": "sentinel2"}] * len(periods), made_by, single=single)


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
    attributes = dict(field.attrs)
    path = write_field(tmp_path / f"f{suffix}", field, form)
    back = read_field(path)
    assert field.attrs == attributes
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


@pytest.mark.parametrize(("form", "suffix"), [("int8", ".tif"), ("float", ".tif"), ("netcdf", ".nc")])
def test_a_field_selected_from_several_is_the_one_that_was_made_alone(tmp_path, form, suffix):
    later = parse_period("2019-01-01/2020-01-01")
    fields = a_field(single=False, periods=(YEAR, later))
    fields = fields.assign_coords(support=("period", [str(YEAR), str(later)]), frames=("period", [5, 7]))
    for drop in (False, True):
        one = fields.sel(period=str(later), drop=drop)
        tags = read_tags(write_field(tmp_path / f"f{suffix}", one, form))[1]
        assert (tags.get("period"), tags.get("frames")) == ((None, None) if drop else (str(later), "7"))
    attributes = {"period": str(later), "sources": "sentinel2", "support": str(later), "frames": 7}
    alone = fields.isel(period=1, drop=True).assign_attrs(attributes)
    selected = write_field(tmp_path / f"f{suffix}", fields.isel(period=1), form)
    made_alone = write_field(tmp_path / f"g{suffix}", alone, form)
    if form == "netcdf":  # whose files hold the second in which they were made
        assert xarray.load_dataset(selected).identical(xarray.load_dataset(made_alone))
    else:
        assert selected.read_bytes() == made_alone.read_bytes()
    back = read_field(selected)
    assert back.attrs["period"] == str(later) and "vectors" not in back.attrs and set(back.coords) >= {"x", "y", "band"}
    assert write_field(tmp_path / "again.nc", back, "netcdf").is_file()


@pytest.mark.parametrize(("form", "suffix"), [("int8", ".tif"), ("float", ".tif"), ("netcdf", ".nc")])
def test_a_coarser_or_cropped_field_lies_where_its_coordinates_say(tmp_path, form, suffix):
    field = a_field(side=(6, 8))
    field.values[:] = field.values[:, :1, :1]  # so that means have length 1
    whole = (500_000, 5_699_940, 500_080, 5_700_000)
    for changed, bounds, pixel in (
        (field.coarsen(y=2, x=2).mean(), whole, 20),
        (field[:, 2:, 3:], (500_030, 5_699_940, 500_080, 5_699_980), 10),
        (field[:, 2:3, 3:], (500_030, 5_699_970, 500_080, 5_699_980), 10),
        (field[:, ::-1], whole, 10),
        (field[:, 2:3, ::2], (499_995, 5_699_970, 500_075, 5_699_980), 20),
        (field[:, ::2, 3:4], (500_030, 5_699_945, 500_040, 5_700_005), 10),
    ):
        written = read_field(write_field(tmp_path / f"f{suffix}", changed, form))
        left, low, right, high = written.rio.bounds()
        assert (left, min(low, high), right, max(low, high)) == pytest.approx(bounds)
        assert abs(written.rio.transform().a) == pixel
        assert np.allclose(written.y, changed.y) and np.allclose(written.x, changed.x)


def test_codes_of_what_is_no_unit_vector_are_warned_of(tmp_path):
    field = a_field(side=(6, 8))
    with pytest.warns(
        NotUnitWarning, match=r"f\.tif: expected unit vectors of all bands, found lengths .* normalise them"
    ):
        write_field(tmp_path / "f.tif", field.coarsen(y=2, x=2).mean())
    with pytest.warns(NotUnitWarning):
        write_field(tmp_path / "f.tif", field[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotUnitWarning)
        write_field(tmp_path / "f.tif", field)
        write_field(tmp_path / "f.tif", field[:2], "float")


@pytest.mark.parametrize("form", ["int8", "float"])
def test_a_geotiff_is_cloud_optimised(tmp_path, form):
    field = a_field(side=(30, 270))
    with rasterio.open(write_field(tmp_path / "f.tif", field, form)) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and file.compression.name == "zstd"
        assert file.block_shapes[0] == (256, 256) and file.overviews(1)
        assert file.descriptions == tuple(f"A{band:02d}" for band in range(64))
        assert (np.isnan(file.nodata) if form == "float" else file.nodata) in (True, -128)
        level = file.overviews(1)[0]
        coarse = file.read(out_shape=(64, -(-30 // level), -(-270 // level)))
        # Each pixel of an overview is one of the field's, not a mix of codes.
        whole = {vector.tobytes() for vector in np.moveaxis(file.read(), 0, -1).reshape(-1, 64)}
        assert all(vector.tobytes() in whole for vector in np.moveaxis(coarse, 0, -1).reshape(-1, 64)[::9])


def test_a_field_written_in_strips_is_the_one_written_at_once(tmp_path):
    field = a_field(side=(20, 9))
    field.values[:, 4:7, 2] = np.nan
    once = write_field(tmp_path / "once.tif", field)
    grid = {"shape": field.shape, "crs": field.rio.crs, "transform": field.rio.transform(), "bands": field.band.values}
    with writing_strips(tmp_path / "strips.tif", "int8", tags=field.attrs, **grid) as write:
        for first in (0, 7, 14):
            write(first, field.values[:, first : first + 7])
    assert (tmp_path / "strips.tif").read_bytes() == once.read_bytes()
    with (
        pytest.raises(RuntimeError, match="interrupted"),
        writing_strips(tmp_path / "half.tif", "int8", tags={}, **grid) as write,
    ):
        write(0, field.values[:, :7])
        raise RuntimeError("interrupted")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["once.tif", "strips.tif"]


@pytest.mark.parametrize(("form", "suffix"), [("int8", ".tif"), ("float", ".tif"), ("netcdf", ".nc")])
def test_holes_are_not_damage_but_blocks_that_were_never_written_are(tmp_path, form, suffix):
    field = a_field()
    field.values[:, 1:3] = np.nan
    path = write_field(tmp_path / f"f{suffix}", field, form)
    assert is_there(path, form, SMALL)
    if form != "netcdf":
        with rasterio.open(path) as file:
            profile, tags = file.profile, file.tags()
        with rasterio.open(path, "w", **{**profile, "sparse_ok": True}) as file:
            file.update_tags(**tags)
        assert not is_there(path, form, SMALL)


@pytest.mark.parametrize(("form", "suffix"), [("int8", ".tif"), ("float", ".tif"), ("netcdf", ".nc")])
def test_a_preview_holds_every_nth_vector(tmp_path, form, suffix):
    field = a_field(side=(30, 41))
    field.values[:, :9, :9] = np.nan
    found = preview(write_field(tmp_path / f"f{suffix}", field, form), most_px=21)
    assert found.shape == (64, 15, 21) and np.isnan(found[:, 0, 0]).all()
    assert np.allclose(np.linalg.norm(found[:, 6:, 6:], axis=0), 1, atol=0.02)


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


def published(path, field, dtype, nodata):
    """A file as the published product has them: no tags, and the first row is the southernmost."""
    values = field.values[:, ::-1].astype(np.float64)
    values = quantize(values) if dtype == "int8" else np.where(np.isnan(values), nodata, values)
    affine = Affine(10, 0, 500_000, 0, 10, 5_700_000 - 10 * values.shape[1])
    shape = dict(zip(("count", "height", "width"), values.shape))
    with rasterio.open(
        path, "w", driver="GTiff", crs="EPSG:32631", transform=affine, nodata=nodata, dtype=dtype, **shape
    ) as file:
        file.write(values.astype(dtype))
    return path


@pytest.mark.parametrize(("dtype", "nodata", "error"), [("int8", -128, 0.006), ("float64", -1e6, 1e-7)])
def test_a_published_file_lies_with_north_up_where_ours_does(tmp_path, dtype, nodata, error):
    field = a_field()
    field.values[:, 0, 0] = np.nan
    back = read_field(published(tmp_path / "f.tif", field, dtype, nodata))
    assert back.dtype == np.float32 and back.rio.transform() == field.rio.transform()
    assert np.array_equal(back.x, field.x) and np.array_equal(back.y, field.y) and back.band.values[3] == "A03"
    assert np.allclose(back.values, field.values, rtol=0, atol=error, equal_nan=True)
    assert read_tags(tmp_path / "f.tif")[0] == ("int8" if dtype == "int8" else "float")


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
    write_geotiff(tmp_path / "map.tif", a_field().values[:1], a_field(), bands=["cosine similarity"])
    for read in (read_field, read_tags):
        with pytest.raises(ValueError, match=r"map.tif: expected a band per component, found one band: not an embed"):
            read(tmp_path / "map.tif")


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
