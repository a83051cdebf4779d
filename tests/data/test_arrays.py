"""Chips from arrays in memory: the same as from a file, and what is refused."""

import dataclasses

import numpy as np
import pytest
import xarray
from rasterio.transform import Affine

from aef.data.arrays import SuspiciousValuesWarning, chip_from_xarray
from aef.data.chips import ChipError, read_chip, write_chip
from aef.sources import BUILT_IN

SOURCES = ("sentinel2", "sentinel1", "glo30")


def cube_of(chip, name, *, dtype=np.float32):
    """The series of a source as a notebook holds it: NaN where nothing was observed."""
    series, source = chip.sources[name], BUILT_IN[name]
    values = np.where(series.valid, series.values, np.nan).astype(dtype)
    a, _, x, _, e, y = chip.transform
    coords = {
        "band": list(source.band_names),
        "y": y + e * (np.arange(chip.height) + 0.5),
        "x": x + a * (np.arange(chip.width) + 0.5),
    }
    if series.time_ms is None:
        return xarray.DataArray(values[0], dims=("band", "y", "x"), coords=coords).rio.write_crs(chip.crs)
    times = series.time_ms.astype("datetime64[ms]").astype("datetime64[ns]")
    cube = xarray.DataArray(values, dims=("time", "band", "y", "x"), coords={"time": times, **coords})
    return cube.rio.write_crs(chip.crs)


@pytest.fixture
def chip(make_chip):
    """One whose reflectances are those of land."""
    made = make_chip("here", sources=SOURCES)
    made.sources["sentinel2"].values = made.sources["sentinel2"].values // 5
    return made


def same(found, expected):
    assert (found.crs, found.height, found.width) == (expected.crs, expected.height, expected.width)
    assert found.transform == pytest.approx(expected.transform)
    assert list(found.sources) == list(expected.sources)
    for name, series in expected.sources.items():
        one = found.sources[name]
        valid = np.broadcast_to(series.valid, series.values.shape)
        assert np.array_equal(np.broadcast_to(one.valid, valid.shape), valid)
        assert np.array_equal(one.values[valid], series.values[valid].astype(one.values.dtype))
        assert (series.time_ms is None and one.time_ms is None) or np.array_equal(one.time_ms, series.time_ms)


def test_a_chip_of_cubes_is_the_one_that_they_were_taken_from_and_can_be_stored(chip, tmp_path):
    made = chip_from_xarray({name: cube_of(chip, name) for name in SOURCES}, BUILT_IN, id="here")
    same(made, chip)
    assert made.place == "here"
    write_chip(tmp_path / "here.npz", made, BUILT_IN)
    same(read_chip(tmp_path / "here.npz", BUILT_IN, check_values=True), chip)


def test_the_order_of_axes_times_rows_and_bands_does_not_matter(chip):
    cube = cube_of(chip, "sentinel2", dtype=np.float64)
    turned = cube.transpose("x", "band", "time", "y").isel(
        time=slice(None, None, -1), y=slice(None, None, -1), band=slice(None, None, -1)
    )
    made = chip_from_xarray({"sentinel2": turned}, BUILT_IN)
    same(made, dataclasses.replace(chip, sources={"sentinel2": chip.sources["sentinel2"]}))
    assert made.sources["sentinel2"].values.dtype == np.float32


def test_what_a_cube_lacks_was_not_observed(chip):
    whole = cube_of(chip, "sentinel1")
    made = chip_from_xarray({"sentinel1": whole.sel(band=["VH", "VV"])}, BUILT_IN).sources["sentinel1"]
    names = BUILT_IN["sentinel1"].band_names
    seen = [names[band] for band in range(len(names)) if made.valid[:, band].any()]
    assert set(seen) <= {"VV", "VH"} and "VV" in seen
    stored = cube_of(chip, "sentinel2").fillna(65535).astype(np.uint16).rio.write_nodata(65535)
    made = chip_from_xarray({"sentinel2": stored}, BUILT_IN)
    assert made.sources["sentinel2"].values.dtype == np.uint16
    same(made, dataclasses.replace(chip, sources={"sentinel2": chip.sources["sentinel2"]}))


def test_intervals_end_where_the_cube_says(chip):
    own = dict(BUILT_IN, sentinel2=dataclasses.replace(BUILT_IN["sentinel2"], time="interval"))
    cube = cube_of(chip, "sentinel2")
    ends = cube.time + np.timedelta64(5, "D")
    made = chip_from_xarray({"sentinel2": cube.assign_coords(time_end=("time", ends.values))}, own)
    series = made.sources["sentinel2"]
    assert set(series.time_end_ms - series.time_ms) == {5 * 86_400_000}
    with pytest.raises(ChipError, match="source sentinel2: field time_end_ms: is missing"):
        chip_from_xarray({"sentinel2": cube}, own)


REFUSED = {
    "expected pixels of 10 m, found 20 x 20: `aef ingest`": lambda c: c.isel(
        x=slice(None, None, 2), y=slice(None, None, 2)
    ),
    "states no CRS: give crs=": lambda c: c.drop_vars("spatial_ref"),
    "expected dimensions time, band, y, x with coordinates, found time, band, y, x without band": lambda c: c.drop_vars(
        "band"
    ),
    "expected dimensions time, band, y, x with coordinates, found band, y, x": lambda c: c.isel(time=0),
    "once at most, found B2, B3, B4, B8, SCL": lambda c: c.assign_coords(band=["B2", "B3", "B4", "B8", "SCL"]),
    "expected times as NumPy's datetime64 without NaT, found int64": lambda c: c.assign_coords(
        time=np.arange(c.sizes["time"])
    ),
    "field time_ms: expected strictly increasing times": lambda c: c.assign_coords(
        time=c.time.values[[0, *range(len(c.time) - 1)]]
    ),
    "sentinel2: expected band medians of .*wrong unit or scale": lambda c: c / 10_000,
    "found bool": lambda c: c > 0,
    "y lies on the edges of pixels by the cube's own transform, expected centres": lambda c: c.rio.write_transform(
        Affine(10, 0, float(c.x[0]) - 5, 0, -10, float(c.y[0]))
    ),
    r"field crs: expected pixels of 10 m on the ground, found 6.\d+ x 6.\d+ m in EPSG:3857: `aef ingest`": lambda c: (
        c.assign_coords(x=590_005 + 10 * np.arange(c.sizes["x"]), y=6_560_005 - 10 * np.arange(c.sizes["y"]))
        .drop_vars("spatial_ref")
        .rio.write_crs("EPSG:3857")
    ),
    "field crs: expected a projection in metres such as a UTM zone, found EPSG:4326": lambda c: c.drop_vars(
        "spatial_ref"
    ).rio.write_crs("EPSG:4326"),
    "expected an xarray.DataArray, found ndarray": lambda c: c.values,
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_does_not_fit_is_one_line_that_says_why(chip, words):
    with pytest.raises(ChipError, match=words):
        chip_from_xarray({"sentinel2": REFUSED[words](cube_of(chip, "sentinel2"))}, BUILT_IN)


def test_coordinates_of_corners_are_refused_as_a_catalogue_reader_gives_them(chip):
    """As stackstac does: upper left corners, and the transform of the whole grid as a tuple among the attributes."""
    cube = cube_of(chip, "sentinel2")
    corners = cube.assign_coords(x=cube.x - 5, y=cube.y + 5)
    corners.attrs["transform"] = (10.0, 0.0, float(cube.x[0]) - 5, 0.0, -10.0, float(cube.y[0]) + 5)
    for part in (corners, corners[..., 1:, 2:]):
        with pytest.raises(ChipError, match=r"x lies on the edges of pixels .* \(stackstac: xy_coords='center'\)"):
            chip_from_xarray({"sentinel2": part}, BUILT_IN)
    cube.attrs["transform"] = corners.attrs["transform"]
    assert chip_from_xarray({"sentinel2": cube[..., 1:, 2:]}, BUILT_IN).width == chip.width - 2
    # Left over from pixels of 5 m, of which these are the means.
    cube.attrs["transform"] = (5.0, 0.0, float(cube.x[0]) - 5, 0.0, -5.0, float(cube.y[0]) + 5)
    assert chip_from_xarray({"sentinel2": cube}, BUILT_IN).width == chip.width


def test_values_that_look_like_swapped_bands_are_warned_of(chip):
    cube = cube_of(chip, "sentinel1")
    low, high = cube.sel(band="VH") - 1, cube.sel(band="VV")
    cube.loc[{"band": "VV"}], cube.loc[{"band": "VH"}] = np.minimum(low, high) - 3, np.maximum(low, high)
    with pytest.warns(SuspiciousValuesWarning, match="sentinel1 VV: median .* dB: expected VV above VH: bands swapped"):
        chip_from_xarray({"sentinel1": cube}, BUILT_IN)


def test_sources_lie_on_one_grid(chip):
    cubes = {name: cube_of(chip, name) for name in ("sentinel2", "sentinel1")}
    for other in (
        cubes["sentinel1"].isel(x=slice(1, None)),
        cubes["sentinel1"].assign_coords(x=cubes["sentinel1"].x + 5),
    ):
        with pytest.raises(
            ChipError, match="source sentinel1: expected the grid of sentinel2, found another: `aef ingest`"
        ):
            chip_from_xarray({**cubes, "sentinel1": other}, BUILT_IN)
    with pytest.raises(ChipError, match="field sources: expected a cube of one source at least"):
        chip_from_xarray({}, BUILT_IN)
    with pytest.raises(ChipError, match="unknown source: known are"):
        chip_from_xarray({"s2": cubes["sentinel2"]}, BUILT_IN)
    with pytest.raises(ChipError, match=r"is not stored on the chip's grid \(native\): `aef ingest`"):
        chip_from_xarray({"era5_land": cubes["sentinel2"]}, BUILT_IN)
