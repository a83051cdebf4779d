"""A static catalogue, an API, and the whole way from either to chips; real files."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from aef.data.chips import ChipFolder
from aef.earthengine.download import ChipRules, Downloader
from aef.earthengine.errors import AccessError, RequestError, UnavailableError
from aef.earthengine.grid import ChipGrid
from aef.earthengine.manifest import Manifest, PlannedChip
from aef.launcher import download as command
from aef.sources import Registry
from aef.stac.fetch import TRIES, StacFetcher, available
from aef.stac.products import product_of
from aef.timecode import parse_period
from tests.stac.catalogue import (
    CHIP,
    KNOWN,
    LEFT,
    PX,
    TOP,
    Api,
    fetch,
    fetcher,
    inner,
    item,
    optical,
    static_catalog,
    write_raster,
)

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "bigearthnet_pairs"


def test_an_api_is_searched_with_place_and_period(tmp_path):
    values, paths = optical(tmp_path)
    made = [
        item("sentinel-2-l1c", n, w, paths, **{"s2:processing_baseline": "02.14"})
        for n, w in (("a", "2019-05-01T10:20:21"), ("b", "2021-05-01T10:20:21"))
    ]
    with Api(made, failures=2) as api:
        assert available(api.url) == ["sentinel2"]
        fetched = fetch(api.url, "sentinel2")
        assert fetched.products == [["a"]] and (fetched.series.values[0, 0] == inner(values["blue"])).all()
        query = api.searches[-1]
        assert (
            query["collections"] == ["sentinel-2-l1c"]
            and query["datetime"] == "2019-01-01T00:00:00.000Z/2019-12-31T23:59:59.999Z"
        )
        west, south, east, north = query["bbox"]
        assert west < CHIP.lon < east and south < CHIP.lat < north


def test_an_api_that_stays_away_is_given_up_and_one_that_refuses_is_not_asked_again(tmp_path):
    _, paths = optical(tmp_path)
    made = [item("sentinel-2-l1c", "a", "2019-05-01T10:20:21", paths, **{"s2:processing_baseline": "02.14"})]
    with Api(made, failures=99) as api, pytest.raises(UnavailableError, match="after 4 tries"):
        fetch(api.url, "sentinel2")
    with Api(made, failures=99, status=400) as api:
        with pytest.raises(RequestError, match="refused"):
            fetch(api.url, "sentinel2")
        assert len(api.searches) == 1


def test_a_missing_file_of_an_item_is_an_answer(tmp_path, capfd):
    _, paths = optical(tmp_path)
    catalog = static_catalog(
        tmp_path / "c", item("sentinel-2-l1c", "a", "2019-05-01T10:20:21", paths, **{"s2:processing_baseline": "02.14"})
    )
    paths["red"].unlink()
    with pytest.raises(RequestError, match=r"a: asset red: there is no file .*red0\.tif") as refusal:
        fetch(catalog, "sentinel2")
    assert not isinstance(refusal.value, UnavailableError) and capfd.readouterr().err == ""


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (410, 1), (503, TRIES)])
def test_an_asset_that_a_server_does_not_have_is_not_asked_for_again(tmp_path, status, tries):
    import rasterio.errors

    _, paths = optical(tmp_path)
    catalog = static_catalog(
        tmp_path / "c", item("sentinel-2-l1c", "a", "2019-05-01T10:20:21", paths, **{"s2:processing_baseline": "02.14"})
    )
    opened, asked = fetcher(catalog, "sentinel2"), []

    def refuse():
        asked.append(1)
        raise rasterio.errors.RasterioIOError(f"HTTP response code: {status}")

    with pytest.raises(RequestError, match=f"response code: {status}") as refusal:
        opened._patiently(refuse)
    assert len(asked) == tries and isinstance(refusal.value, UnavailableError) == (status == 503)


def test_the_command_says_which_file_is_missing(tmp_path, capsys):
    _, paths = optical(tmp_path)
    catalog = static_catalog(
        tmp_path / "c", item("sentinel-2-l1c", "a", "2019-05-01T10:20:21", paths, **{"s2:processing_baseline": "02.14"})
    )
    paths["red"].unlink()
    words = ["--from", "stac", "--catalog", catalog, "--place", f"{CHIP.lon},{CHIP.lat}", "--chip-px", str(PX)]
    words += ["--periods", "2019-01-01/2020-01-01", "--out", str(tmp_path / "chips"), "--sources", "sentinel2"]
    assert command.main(words) == 1
    printed = capsys.readouterr()
    assert "asset red: there is no file" in printed.out and "--retry-failed" in printed.err


def test_wrong_catalogues_are_named(tmp_path):
    with pytest.raises(AccessError, match="no such catalogue"):
        fetcher(tmp_path / "absent.json", "glo30")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(AccessError, match="is no STAC catalogue"):
        fetcher(tmp_path / "x.json", "glo30")
    with pytest.raises(AccessError, match="cannot be reached"):
        fetcher("http://127.0.0.1:1/", "glo30")
    _, paths = optical(tmp_path)
    catalog = static_catalog(tmp_path / "c", item("sentinel-2-l1c", "a", "2019-05-01T10:20:21", paths))
    with pytest.raises(ValueError, match=r"has no collection for source glo30 .*it offers sentinel-2-l1c"):
        fetcher(catalog, "glo30")
    with pytest.raises(ValueError, match="'grace' does not come from a STAC catalogue"):
        product_of("grace")


def test_command_writes_chips_that_no_other_provider_may_join(tmp_path, capsys):
    keys = [k for k, *_ in product_of("sentinel2_l2a").assets.values()]
    _, paths = optical(tmp_path, keys=keys)
    plane = np.full((PX + 8, PX + 8), 300, np.float32)
    dem = write_raster(tmp_path / "dem.tif", plane, left=LEFT - 40, top=TOP + 40)
    catalog = static_catalog(
        tmp_path / "c",
        item("sentinel-2-l2a", "a", "2019-05-01T10:20:21", paths, **{"s2:processing_baseline": "02.14"}),
        item("cop-dem-glo-30", "d", None, {"data": dem}),
    )
    words = [
        "--out",
        str(tmp_path / "chips"),
        "--place",
        f"{CHIP.lon},{CHIP.lat}",
        "--periods",
        "2019-01-01/2020-01-01",
        "--chip-px",
        "16",
    ]
    assert command.main(["--from", "stac", "--catalog", catalog, *words]) == 0
    assert "chips: 1 written" in capsys.readouterr().out
    assert command.main(["--from", "stac", "--catalog", catalog, *words]) == 0  # the same command again
    from aef.settings_file import registry_of

    (chip,) = ChipFolder(tmp_path / "chips", registry_of(tmp_path / "chips"))
    assert {n: s.collection for n, s in chip.sources.items()} == {
        "sentinel2_l2a": "stac:sentinel-2-l2a",
        "glo30": "stac:cop-dem-glo-30",
    }
    with pytest.raises(ValueError, match="was made with sources"):
        command.main(["--project", "p", "--sources", "sentinel2", *words])


def test_real_sentinel_2_and_sentinel_1_files(tmp_path):
    """Sentinel-2 L2A and Sentinel-1 of one place in Ireland, 17 June 2017, through a static catalogue."""
    if not DATA.exists():
        pytest.skip("the sample data (../shared/data/bigearthnet_pairs) are not here")
    import rasterio

    optical_files = {
        p.stem.rsplit("_", 1)[1]: p for p in (DATA / "s2-tiny" / "S2A_MSIL2A_20170617T113321_4_55").glob("*.tif")
    }
    radar = {
        p.stem.rsplit("_", 1)[1].lower(): p
        for p in (DATA / "s1-tiny" / "S1A_IW_GRDH_1SDV_20170617T064724_29UPU_4_55").glob("*.tif")
    }
    bands = {k: v for k, v in optical_files.items() if k in product_of("sentinel2_l2a").assets}
    catalog = static_catalog(
        tmp_path / "c",
        item(
            "sentinel-2-l2a",
            "s2",
            "2017-06-17T11:33:21",
            bands,
            platform="sentinel-2a",
            **{"s2:processing_baseline": "02.05"},
        ),
        item("sentinel-1-grd", "s1", "2017-06-17T06:47:24", radar, bands={"unit": "dB"}, platform="sentinel-1a"),
    )
    sources = Registry(dataclasses.replace(KNOWN[n]) for n in ("sentinel2_l2a", "sentinel1"))
    grid = ChipGrid("EPSG:32629", 604800 + 160, 5834040 - 80, 96)
    chip = PlannedChip("ireland_20170101", "ireland", *grid.centre_degrees, grid, parse_period("2017-01-01/2018-01-01"))
    with Manifest(tmp_path / "m.sqlite", {}) as manifest:
        manifest.plan([chip])
        (tmp_path / "chips").mkdir()
        Downloader(
            StacFetcher(catalog, sources, workers=2),
            manifest,
            tmp_path / "chips",
            ChipRules(sources, 96),
            provider="STAC",
        ).run()
        assert manifest.chip_counts() == {"written": 1}
    (made,) = ChipFolder(tmp_path / "chips", KNOWN)
    window = rasterio.windows.Window(16, 8, 96, 96)
    for name, paths, keys in (
        ("sentinel2_l2a", bands, ("B02", "B03", "B04", "B08")),
        ("sentinel1", radar, ("VV", "VH")),
    ):
        series = made.sources[name]
        for key in keys:
            with rasterio.open(paths[key if name == "sentinel2_l2a" else key.lower()]) as file:
                truth = file.read(1, window=window)
            channel = KNOWN[name].band_names.index(key)
            valid = np.broadcast_to(series.valid, series.values.shape)[0, channel]
            assert valid.mean() > 0.99 and np.allclose(series.values[0, channel][valid], truth[valid], atol=1e-4)
    with rasterio.open(bands["B11"]) as file:
        coarse = file.read(1)
    # Centres of 20 m cells lie between 10 m pixels: their mean is within the cell's neighbourhood.
    fine = made.sources["sentinel2_l2a"].values[0, KNOWN["sentinel2_l2a"].band_names.index("B11")].astype(float)
    means = fine.reshape(48, 2, 48, 2).mean((1, 3))
    assert np.corrcoef(means.ravel(), coarse[4:52, 8:56].ravel())[0, 1] > 0.98
    held = made.sources["sentinel1"].valid[0].any(axis=(1, 2))
    assert held.tolist() == [True, True, False, False, False]
