"""The whole way: sites → chips, killed and interrupted by faults, a full disk and a clock that jumps."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import IOWA
from standin.server import TOKEN_PREFIX, Faults
from standin.world import World

from aef.data.chips import ChipError, ChipFolder, read_chip
from aef.earthengine import download as d
from aef.earthengine.download import PARTS, ChipRules, Downloader, verify
from aef.earthengine.errors import AccessError, EarthEngineError
from aef.earthengine.fetch import EarthEngineFetcher
from aef.earthengine.manifest import PENDING, Manifest, Outcome, manifest_path
from aef.earthengine.planning import PeriodRule, planned_chips
from aef.earthengine.recipes import in_use
from aef.earthengine.sites import Lattice, at, in_box, parse_periods
from aef.sources import BUILT_IN, Registry

NINE = Registry(in_use(source) for source in BUILT_IN.values())
RULE = PeriodRule(parse_periods("2019-03-01/2020-02-29"))


def sites(count):
    """Half of them where land cover is mapped, half where it is not."""
    here = [s for s, _ in zip(in_box(-93.7, 41.9, -93.2, 42.3, Lattice()), range(count - count // 2))]
    return here + [s for s, _ in zip(in_box(8.4, 47.0, 8.9, 47.4, Lattice()), range(count // 2))]


def settings(px):
    return {"sources": {name: list(s.collections) for name, s in NINE.items()}, "chip_px": px}


def run(service, out, places, *, px=16, rules=None, on_item=lambda *a: None):
    """One download into a folder; returns the manifest's counts."""
    out.mkdir(exist_ok=True)
    with Manifest(manifest_path(out), settings(px)) as manifest:
        manifest.plan(planned_chips(places, RULE, px=px))
        manifest.reopen()
        fetch_pending(service, manifest, out, rules or ChipRules(NINE, px), on_item)
        return manifest.chip_counts(), manifest.item_counts()


def fetch_pending(service, manifest, out, rules, on_item=lambda *a: None):
    with EarthEngineFetcher(service, rules.sources) as fetcher:
        Downloader(fetcher, manifest, out, rules, provider="Google Earth Engine", on_item=on_item).run()


def contents(out):
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.npz"))}


# --- one chip --------------------------------------------------------------------------------------------------------


def test_nine_sources_become_one_chip(standin, connect, tmp_path):
    counts, items = run(connect(standin()), tmp_path / "chips", [at(*IOWA)])
    assert counts == {"written": 1} and all(items[name, "done"] == 1 for name in NINE)
    (chip,) = ChipFolder(tmp_path / "chips", NINE)
    assert list(chip.sources) == list(NINE)
    assert chip.place == at(*IOWA).id and abs(chip.lon - IOWA[0]) < 1e-3 and chip.crs == "EPSG:32615"
    for name, series in chip.sources.items():
        source = NINE[name]
        assert series.bands == source.band_names and series.units == source.units and series.licence == source.licence
        assert series.native_resolution_m == source.native_resolution_m
        assert set(series.collection.split(", ")) <= set(source.collections)
        products = chip.attributes["products"][name]
        assert source.grid == "points" or len(products) == series.frames
    assert not (tmp_path / "chips" / PARTS).exists()


def test_a_source_without_images_is_empty_and_the_chip_is_written_without_it(standin, connect, tmp_path):
    _, items = run(connect(standin()), tmp_path / "chips", [at(8.5, 47.1)])
    assert items["nlcd", "empty"] == 1
    assert "nlcd" not in next(iter(ChipFolder(tmp_path / "chips", NINE))).sources


def test_required_sources_that_are_absent_drop_the_chip(standin, connect, tmp_path):
    counts, _ = run(
        connect(standin()), tmp_path / "chips", [at(8.5, 47.1)], rules=ChipRules(NINE, 16, required=("nlcd",))
    )
    assert counts == {"dropped": 1} and not contents(tmp_path / "chips")


def test_a_refused_source_holds_its_chip_back_until_it_is_accepted(standin, connect, tmp_path):
    server, out = standin(faults=Faults(denied="PALSAR-2")), tmp_path / "chips"
    service = connect(server)
    counts, items = run(service, out, [at(*IOWA)])
    assert counts == {"incomplete": 1} and items["palsar2", "failed"] == 1 and not contents(out)
    before = server.counters.requests
    with Manifest(manifest_path(out), settings(16)) as manifest:
        assert "permission denied" in manifest.failures()[0][2]
        manifest.reopen(failed=True)
        fetch_pending(service, manifest, out, ChipRules(NINE, 16, accept_failed=True))
        assert manifest.chip_counts() == {"written": 1}
    assert server.counters.requests == before + 1  # what was done is not fetched again
    assert "palsar2" not in next(iter(ChipFolder(out, NINE))).sources


def test_a_source_that_is_only_ever_refused_ends_the_run(standin, connect, tmp_path, monkeypatch):
    monkeypatch.setattr(d, "REFUSED_AT_FIRST", 3)
    server = standin(World(missing=("JAXA/ALOS/PALSAR-2/Level2_2/ScanSAR",)))
    with pytest.raises(EarthEngineError, match=r"source palsar2: the first 3 items were all refused .*not found"):
        run(connect(server), tmp_path / "chips", sites(6))


# --- wrong values ----------------------------------------------------------------------------------------------------


class Wrong(World):
    """A service whose images are wrong in one way."""

    def __init__(self, collection, change, bands=None):
        super().__init__()
        self.wrong, self.change, self.changed = collection, change, bands

    def _band(self, collection, index, band):
        raster = super()._band(collection, index, band)
        if collection == self.wrong and (self.changed is None or band in self.changed):
            import dataclasses

            return dataclasses.replace(
                raster, values=self.change(raster.values.astype(float)).astype(raster.values.dtype)
            )
        return raster


@pytest.mark.parametrize(
    ("source", "collection", "change", "bands", "message"),
    [
        (
            "era5_land",
            "ECMWF/ERA5_LAND/MONTHLY_AGGR",
            lambda v: v - 273.15,
            ["temperature_2m"],
            "temperature_2m: expected 180 to 340 K",
        ),
        ("landsat", "LANDSAT/LC08/C02/T1_TOA", lambda v: v * 1e4, ["B5"], "B5: expected 0 to 2.8"),
        ("landsat", "LANDSAT/LC08/C02/T1_TOA", lambda v: v * 0 + 0.3, ["B10"], "B10: expected 150 to 373 K"),
        ("sentinel2", "COPERNICUS/S2_HARMONIZED", lambda v: v * 0, None, "exactly 0 in all bands"),
        ("glo30", "COPERNICUS/DEM/GLO30", lambda v: v * 0 - 32767, None, "expected -500 to 9000 m"),
        ("grace", "NASA/GRACE/MASS_GRIDS_V03/MASCON_CRI", lambda v: v * 1000, None, "lwe_thickness"),
        ("gedi", "LARSE/GEDI/GEDI02_A_002_MONTHLY", lambda v: v * 100, [f"rh{i}" for i in range(101)], "-213 to 213 m"),
    ],
)
def test_shifted_scaled_swapped_and_masked_as_zero_are_refused(
    standin, fetch, tmp_path, source, collection, change, bands, message
):
    from aef.data.chips import Chip, write_chip
    from aef.earthengine.grid import ChipGrid

    with pytest.raises(ChipError, match=message):
        fetched = fetch(standin(Wrong(collection, change, bands)), source, px=64 if source == "gedi" else 16)
        grid = ChipGrid.around(*IOWA, 16)
        chip = Chip("a", grid.crs, grid.affine, 16, 16, *IOWA, {source: fetched.series})
        write_chip(tmp_path / "a.npz", chip, NINE)


def changed(data, change):
    """An NPY body with its array changed."""
    stream = io.BytesIO()
    np.save(stream, change(np.load(io.BytesIO(data))))
    return stream.getvalue()


def reversed_bands(array):
    names = array.dtype.names[::-1]
    turned = np.empty(array.shape, [(name, array.dtype[name]) for name in names])
    for name in names:
        turned[name] = array[name]
    return turned


def test_bands_that_come_in_another_order_or_type_are_not_mixed_up(standin, connect, fetch, monkeypatch):
    import ee

    server, real = standin(), ee.data.computePixels
    clean = fetch(server, "sentinel2", px=16)
    monkeypatch.setattr(ee.data, "computePixels", lambda body: changed(real(body), reversed_bands))
    assert (fetch(server, "sentinel2", px=16).series.values == clean.series.values).all()
    monkeypatch.setattr(
        ee.data,
        "computePixels",
        lambda body: changed(real(body), lambda a: a.astype([(n, "f8") for n in a.dtype.names])),
    )
    from aef.earthengine.errors import RequestError

    with pytest.raises(RequestError, match="came as float64, expected uint16"):
        fetch(server, "sentinel2", px=16)


# --- interruptions ---------------------------------------------------------------------------------------------------


def test_a_full_disk_ends_the_run_and_nothing_is_lost(standin, connect, tmp_path, monkeypatch):
    out, places, server = tmp_path / "chips", sites(3), standin()
    real, written = d.write_chip, []

    def full(path, *args, **options):
        if len(written) >= 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return real(path, *args, **options)

    monkeypatch.setattr(d, "write_chip", full)
    with pytest.raises(OSError, match="no space left on the disk: free some, then run the same command again"):
        run(connect(server), out, places)
    assert not list(out.rglob("*.tmp"))
    for path in out.glob("*.npz"):
        read_chip(path, NINE)
    monkeypatch.undo()
    run(connect(server), out, places)
    run(connect(standin()), tmp_path / "clean", places)
    assert contents(out) == contents(tmp_path / "clean")


def test_a_clock_jump_changes_no_chip(standin, connect, tmp_path, monkeypatch):
    places = sites(2)
    run(connect(standin()), tmp_path / "one", places)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    run(connect(standin(faults=Faults(rate=0.3))), tmp_path / "two", places)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_losing_the_network_mid_run_ends_it_and_the_next_run_goes_on(standin, connect, tmp_path):
    out, places, server = tmp_path / "chips", sites(4), standin()
    seen = []

    def cut(chip, source, state):
        seen.append(source)
        if len(seen) == 12:
            server.faults = Faults(down=True)

    # Two at once, so that most items have not begun when the network goes: nobody hears anything while they try.
    with pytest.raises(AccessError, match="run the same command again"):
        run(connect(server, in_flight=2), out, places, on_item=cut)
    assert list((out / PARTS).glob("*.npz"))
    server.faults = Faults()
    counts, items = run(connect(server), out, places)
    assert counts == {"written": 4}, items
    assert not fetched_twice(server)


@pytest.mark.parametrize("reopened", [True, False])
def test_an_item_without_an_answer_in_a_chip_that_was_under_way_is_asked_again(standin, connect, tmp_path, reopened):
    """As after a run that ended when some items had given up while others of their chip were still out."""
    out, sources = tmp_path / "chips", NINE.select(["landsat", "glo30"])
    out.mkdir()
    with Manifest(manifest_path(out), settings(16)) as manifest:
        manifest.plan(planned_chips([at(*IOWA)], RULE, px=16))
        (chip,) = manifest.pending(16)
        manifest.record(chip, "landsat", Outcome(PENDING, "no answer after 4 tries"))
        if reopened:
            manifest.reopen()
        fetch_pending(connect(standin()), manifest, out, ChipRules(sources, 16))
        assert manifest.chip_counts() == {"written": 1}
    (made,) = ChipFolder(out, NINE)
    assert set(made.sources) == {"landsat", "glo30"}


def test_parts_that_were_not_recorded_are_adopted(standin, connect, tmp_path):
    out, server = tmp_path / "chips", standin()
    service = connect(server)
    run(service, out, [at(*IOWA)], rules=ChipRules(NINE, 16))
    whole = contents(out)
    # As after a kill between the part's rename and its record: the part is there, the manifest knows nothing.
    chip = read_chip(next(out.glob("*.npz")), NINE)
    part = d.Chip(**{**chip.__dict__, "sources": {"landsat": chip.sources["landsat"]}})
    part.attributes = {**chip.attributes, "products": {"landsat": chip.attributes["products"]["landsat"]}}
    (out / PARTS).mkdir()
    d.write_chip(out / PARTS / f"{chip.id}.landsat.npz", part, NINE, compress=False)
    for path in out.glob("manifest*"):
        path.unlink()
    next(out.glob("*.npz")).unlink()
    before = dict(server.counters.pixels)
    counts, _ = run(service, out, [at(*IOWA)])
    again = sum(server.counters.pixels.values()) - sum(before.values())
    first = sum(before.values())
    assert counts == {"written": 1} and contents(out) == whole and again < first


def test_a_damaged_part_is_fetched_again(standin, connect, tmp_path):
    out, server = tmp_path / "chips", standin(faults=Faults(denied="PALSAR-2"))
    service = connect(server)
    run(service, out, [at(*IOWA)])
    part = next((out / PARTS).glob("*.landsat.npz"))
    part.write_bytes(part.read_bytes()[:-100])
    server.faults = Faults()
    with Manifest(manifest_path(out), settings(16)) as manifest:
        manifest.reopen(failed=True)
        fetch_pending(service, manifest, out, ChipRules(NINE, 16))
        assert manifest.chip_counts() == {"incomplete": 1}
        manifest.reopen()
        fetch_pending(service, manifest, out, ChipRules(NINE, 16))
        assert manifest.chip_counts() == {"written": 1} and verify(out, manifest) == []


def test_leftovers_of_a_killed_run_are_removed_and_other_hosts_files_are_not(standin, connect, tmp_path):
    out, service = tmp_path / "chips", connect(standin())
    run(service, out, sites(2))
    mine, foreign = out / f".{next(out.glob('*.npz')).name}.77.tmp", out / ".elsewhere_20190301.npz.78.tmp"
    shares = out / f"{PARTS}-2-of-8" / ".elsewhere_20190301.glo30.npz.79.tmp"
    shares.parent.mkdir()
    for path in (mine, foreign, shares):
        path.write_bytes(b"half")
    run(service, out, sites(3))
    assert not mine.exists() and foreign.exists() and shares.exists()


def test_verify_finds_what_was_changed(standin, connect, tmp_path):
    out = tmp_path / "chips"
    run(connect(standin()), out, sites(3))
    one, other, _ = sorted(out.glob("*.npz"))
    one.write_bytes(one.read_bytes() + b"x")
    other.unlink()
    with Manifest(manifest_path(out), settings(16)) as manifest:
        assert sorted(verify(out, manifest)) == sorted((one.stem, other.stem))


def test_never_more_requests_than_allowed(standin, connect, tmp_path):
    server = standin(faults=Faults(rate=0.2, latency_s=0.01))
    run(connect(server, in_flight=5), tmp_path / "chips", sites(6))
    assert 1 < server.counters.peak <= 5


# --- kills -----------------------------------------------------------------------------------------------------------


class Program:
    """`aef download` as a process of its own."""

    def __init__(self, server, out, places_file, **options):
        command = [sys.executable, "-m", "aef", "download", "--project", "demo-project", "--key-file", str(server.key)]
        command += ["--endpoint", server.url, "--sites", str(places_file), "--periods", "2019-03-01/2020-02-29"]
        command += ["--chip-px", str(options.get("px", 16)), "--out", str(out), "--patience", "0.05", "--workers", "8"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
        )

    def kill_when(self, reached, timeout=3600):
        """SIGKILL as soon as a condition holds."""
        deadline = time.monotonic() + timeout
        while not reached() and self.process.poll() is None:
            assert time.monotonic() < deadline
            threading.Event().wait(0.002)
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def finish(self, timeout=3600):
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err


def write_sites(path, places):
    path.write_text("id,lon,lat\n" + "".join(f"{s.id},{s.lon!r},{s.lat!r}\n" for s in places))
    return path


def fetched_twice(server):
    return {key: count for key, count in server.counters.pixels.items() if count > 1}


@pytest.mark.parametrize(
    ("count", "px"), [(30, 16), pytest.param(200, 128, marks=(pytest.mark.long, pytest.mark.timeout(7200)))]
)
def test_faults_and_three_kills_give_the_same_chips(standin, connect, tmp_path, count, px):
    places = sites(count)
    world = World(kept=65536)
    run(connect(standin(world), in_flight=16), tmp_path / "clean", places, px=px)
    server, out = standin(world, faults=Faults(rate=0.1)), tmp_path / "chips"
    file = write_sites(tmp_path / "sites.csv", places)
    for share in (0.05, 0.3, 0.6):
        Program(server, out, file, px=px).kill_when(lambda share=share: len(list(out.glob("*.npz"))) >= share * count)
        for path in out.glob("*.npz"):  # nothing half-written is ever seen
            read_chip(path, NINE)
    code, printed, said = Program(server, out, file, px=px).finish()
    assert code == 0, said
    assert f"chips: {count} written" in printed and "SUSPICIOUS" not in printed
    assert contents(out) == contents(tmp_path / "clean") and len(contents(out)) == count
    with Manifest(manifest_path(out), read_only=True) as manifest:
        assert verify(out, manifest) == []
    assert not (out / PARTS).exists() and not list(out.rglob("*.tmp"))
    # Only what was under way at a kill is asked for again: of three kills 3 × 8 items each, one request for pixels each.
    assert sum(count - 1 for count in fetched_twice(server).values()) <= 3 * 3 * 8
    secrets = json.loads(server.key.read_text())["private_key"].splitlines()[1:-1]
    for path in [*out.rglob("*")]:
        if path.is_file():
            text = path.read_bytes()
            # All of a token's beginning: of four bytes compressed pixels hold any some day.
            assert TOKEN_PREFIX.encode() not in text and not any(line.encode() in text for line in secrets[:3])
    assert "ya29" not in printed + said and secrets[0] not in printed + said
    train_on(out, tmp_path / "run", px)


def train_on(chips, out, px):
    """Ten training steps on what was downloaded."""
    command = [sys.executable, "-m", "aef", "train", "--config", "tiny", "--data", str(chips), "--out", str(out)]
    command += ["train.steps=10", "train.global_batch=2", "train.micro_batch=2", "data.chip_px=16"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines() if '"loss"' in line]
    assert len(losses) == 10 and np.isfinite(losses).all()
