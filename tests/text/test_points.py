"""Text points: written in parts, taken up again, joined whole; and into the chips that hold them."""

import json
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rasterio.warp import transform as warp

from aef.config import DataConfig
from aef.data.chips import Chip, SourceSeries, TextPoint, read_chip, write_chip
from aef.data.sampling import Sampler
from aef.sources import BUILT_IN
from aef.text import points as module
from aef.text.attach import _assign, _Footprint, _index, attach_points
from aef.text.coordinates import coordinate_fault
from aef.text.points import GeoText, TextError, open_points, write_points
from aef.timecode import DAY_MS, parse_time

START = parse_time("2019-01-01")


def text(number, lon=4.5, lat=50.25, **changes):
    fields = {
        "lon": lon,
        "lat": lat,
        "uncertainty_m": 30.0,
        "time_ms": START,
        "time_end_ms": START + DAY_MS,
        "text": f"text {number}",
        "source": f"gbif:{number}",
        "licence": "CC0 1.0",
        "title": "",
        "taxon": f"f|g|{number % 3}",
    }
    return GeoText(**{**fields, **changes})


class Numbers:
    """A corpus of numbers; every third is dropped; it breaks where it is told to."""

    name = "numbers"

    def __init__(self, path, count=20, breaks_at=None, step=1):
        self.path, self.count, self.breaks_at, self.step = path, count, breaks_at, step
        self.seen = []

    def files(self):
        return [self.path]

    def settings(self):
        return {"step": str(self.step)}

    def read(self, start, counts, earlier):
        self.earlier = [taxon for table in earlier for taxon in table.column("taxon").to_pylist()]
        for number in range(start, self.count):
            if number == self.breaks_at:
                raise TextError("the file breaks off")
            self.seen.append(number)
            counts["items"] += 1
            if number % 3 == 2:
                counts["third"] += 1
            else:
                counts["kept"] += 1
                yield number + 1, text(number)


@pytest.fixture
def corpus_file(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("beginning")
    return path


def written(path):
    return pq.read_table(path).column("source").to_pylist()


def test_an_interrupted_run_goes_on_and_ends_as_an_uninterrupted_one(tmp_path, corpus_file, monkeypatch):
    monkeypatch.setattr(module, "PART_POINTS", 4)
    whole = write_points(tmp_path / "whole.parquet", [Numbers(corpus_file)])
    broken = Numbers(corpus_file, breaks_at=13)
    with pytest.raises(TextError, match="breaks off"):
        write_points(tmp_path / "again.parquet", [broken])
    assert not (tmp_path / "again.parquet").exists()
    corpus_file.write_text("beginning")
    second = Numbers(corpus_file)
    counts = write_points(tmp_path / "again.parquet", [second])
    assert second.seen[0] == 13 and len(second.earlier) == 9
    assert written(tmp_path / "again.parquet") == written(tmp_path / "whole.parquet")
    assert counts == whole == {"numbers": {"items": 20, "kept": 14, "third": 6}}
    assert not (tmp_path / "again.parquet.partial").exists()


def test_a_killed_run_goes_on_after_its_last_part(tmp_path, corpus_file, monkeypatch):
    monkeypatch.setattr(module, "PART_POINTS", 4)
    corpus = Numbers(corpus_file)

    def killed(name, counts):
        if counts["items"] == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_points(tmp_path / "out.parquet", [corpus], on_progress=killed)
    again = Numbers(corpus_file)
    counts = write_points(tmp_path / "out.parquet", [again])
    assert again.seen[0] == 11 and counts["numbers"]["items"] == 20
    assert written(tmp_path / "out.parquet") == [f"gbif:{n}" for n in range(20) if n % 3 != 2]


def test_two_processes_do_not_write_one_file(tmp_path, corpus_file, monkeypatch):
    monkeypatch.setattr(module, "PART_POINTS", 4)
    refused = []

    def meanwhile(name, counts):
        if counts["items"] == 11:
            with pytest.raises(TextError, match="another process is writing it"):
                write_points(tmp_path / "out.parquet", [Numbers(corpus_file)])
            refused.append(counts["items"])

    write_points(tmp_path / "out.parquet", [Numbers(corpus_file)], on_progress=meanwhile)
    assert refused == [11] and len(written(tmp_path / "out.parquet")) == 14
    assert not (tmp_path / "out.parquet.partial").exists()


def test_work_in_progress_of_other_files_or_settings_is_not_continued(tmp_path, corpus_file):
    with pytest.raises(TextError):
        write_points(tmp_path / "out.parquet", [Numbers(corpus_file, breaks_at=5)])
    with pytest.raises(TextError, match="was begun with other files or settings"):
        write_points(tmp_path / "out.parquet", [Numbers(corpus_file, step=2)])
    corpus_file.write_text("other")
    with pytest.raises(TextError, match="was begun with other files or settings"):
        write_points(tmp_path / "out.parquet", [Numbers(corpus_file)])
    (tmp_path / "out.parquet.partial" / "state.json").write_text("{")
    with pytest.raises(TextError, match=r"state.json: damaged"):
        write_points(tmp_path / "out.parquet", [Numbers(corpus_file)])


def test_the_file_says_what_was_dropped_and_why(tmp_path, corpus_file):
    write_points(tmp_path / "out.parquet", [Numbers(corpus_file)])
    file = open_points(tmp_path / "out.parquet")
    about = json.loads(file.schema_arrow.metadata[b"aef_text"])
    assert about["format_version"] == 1 and about["counts"] == {"numbers": {"items": 20, "kept": 14, "third": 6}}


def test_other_files_are_no_text_points(tmp_path):
    (tmp_path / "noise.parquet").write_bytes(b"noise")
    with pytest.raises(TextError, match="not a Parquet file"):
        open_points(tmp_path / "noise.parquet")
    pq.write_table(module.pa.table({"lon": [1.0]}), tmp_path / "other.parquet")
    with pytest.raises(TextError, match="not text points: lacks the column lat"):
        open_points(tmp_path / "other.parquet")


@pytest.mark.parametrize(
    ("lon", "lat", "fault"),
    [
        (180, 90, None),
        (-180, -90, None),
        (180.1, 0, "coordinates_out_of_range"),
        (10, 90.1, "coordinates_swapped"),
        (100, 91, "coordinates_out_of_range"),
        (0, 0, "coordinates_zero"),
        (float("nan"), 0, "coordinates_out_of_range"),
    ],
)
def test_coordinates_that_cannot_be_used_say_why(lon, lat, fault):
    assert coordinate_fault(lon, lat) == fault


# --- into chips ------------------------------------------------------------------------------------------------------

CRS = "EPSG:32631"
CORNER = (500_000.0, 5_600_000.0)


def chip(name="a", shift_px=0, side=32, crs=CRS):
    x, y = CORNER[0] + shift_px * 10, CORNER[1]
    (lon,), (lat,) = warp(crs, "EPSG:4326", [x + side * 5], [y - side * 5])
    times = START + np.arange(6) * 20 * DAY_MS
    values = np.random.default_rng(0).integers(100, 3000, (6, 5, side, side)).astype(np.uint16)
    series = SourceSeries(values, np.ones((6, 1, side, side), bool), times, bands=BUILT_IN["sentinel2"].band_names)
    return Chip(name, crs, (10.0, 0.0, x, 0.0, -10.0, y), side, side, lon, lat, {"sentinel2": series})


def at_pixel(number, row, col, **changes):
    """A text at the centre of a pixel of chip ``a``."""
    (lon,), (lat,) = warp(CRS, "EPSG:4326", [CORNER[0] + col * 10 + 5], [CORNER[1] - row * 10 - 5])
    return text(number, lon, lat, **changes)


@pytest.fixture
def chips(tmp_path):
    folder = tmp_path / "chips"
    folder.mkdir()
    for one in (chip("a"), chip("b", shift_px=500)):
        write_chip(folder / f"{one.id}.npz", one, BUILT_IN)
    return folder


def points_file(path, texts):
    pq.write_table(module.pa.Table.from_pylist([vars(one) for one in texts], module.SCHEMA), path)
    return path


def test_each_chip_gets_the_texts_that_lie_on_it(tmp_path, chips):
    texts = [
        at_pixel(1, 0, 0),
        at_pixel(2, 31, 31),
        at_pixel(3, 32, 0),
        at_pixel(4, 0, -1),
        at_pixel(5, 3, 510),
        text(6, -70, 10),
    ]
    counts = attach_points(points_file(tmp_path / "p.parquet", texts), chips, BUILT_IN)
    a, b = (read_chip(chips / f"{name}.npz", BUILT_IN).texts for name in "ab")
    assert [t.source for t in a] == ["gbif:1", "gbif:2"] and [t.source for t in b] == ["gbif:5"]
    assert counts == {"chips": 2, "points": 6, "on_no_chip": 3, "texts": 3, "chips_with_texts": 2}
    assert (a[1].x, a[1].y) == pytest.approx((CORNER[0] + 315, CORNER[1] - 315), abs=1e-3)
    assert (a[0].text, a[0].uncertainty_m, a[0].licence, a[0].time_ms) == ("text 1", 30.0, "CC0 1.0", START)


def chip_around(lon, lat, crs, side=32):
    """Its footprint alone: a position is the corner in the middle of the chip."""
    (x,), (y,) = warp("EPSG:4326", crs, [lon], [lat])
    return _Footprint(Path("a.npz"), crs, (10.0, 0.0, x - side * 5, 0.0, -10.0, y + side * 5), side, side)


@pytest.mark.parametrize("crs", ["EPSG:32660", "EPSG:32601"])
def test_the_antimeridian_runs_through_a_chip(tmp_path, crs):
    """Longitudes 180 and −180 are one, and only the cells that the chip touches are its."""
    footprint = chip_around(180.0, 51.05, crs)
    lons = (180.0, -180.0, 179.999, -179.999, 179.99, 0.0)
    found, total, lost = _assign(
        points_file(tmp_path / "p.parquet", [text(i, lon, 51.05) for i, lon in enumerate(lons)]), [footprint]
    )
    assert [one.source for one in found[0]] == [f"gbif:{i}" for i in range(4)] and (total, lost) == (6, 2)
    assert len(_index([footprint])) == 2


@pytest.mark.parametrize(("crs", "pole"), [("EPSG:3413", 90.0), ("EPSG:3031", -90.0)])
def test_a_chip_holds_a_pole(tmp_path, crs, pole):
    near = pole * (1 - 1e-6)
    texts = [text(0, 0.0, pole), *(text(1 + i, lon, near) for i, lon in enumerate((-100.0, -10.0, 80.0, 170.0)))]
    found, _, lost = _assign(points_file(tmp_path / "p.parquet", texts), [chip_around(0.0, pole, crs)])
    assert len(found[0]) == 5 and lost == 0


def test_texts_that_lie_on_no_chip_are_never_read(tmp_path, chips, monkeypatch):
    """Of the parts of a large file only positions; memory holds the texts of one part."""
    path, read = tmp_path / "p.parquet", []
    with pq.ParquetWriter(path, module.SCHEMA) as writer:
        for one in (text(1, -70, 10), at_pixel(2, 3, 3), text(3, 100, 10)):
            writer.write_table(module.pa.Table.from_pylist([vars(one)], module.SCHEMA))
    whole = pq.ParquetFile.read_row_group

    def spy(file, group, columns):
        read.append((group, "text" in columns))
        return whole(file, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("the file was read whole"))
    assert attach_points(path, chips, BUILT_IN)["texts"] == 1
    assert read == [(0, False), (1, False), (1, True), (2, False)]


def test_text_points_that_are_damaged_inside_are_named(tmp_path, chips):
    path = points_file(tmp_path / "p.parquet", [at_pixel(i, 3, 3) for i in range(500)])
    noise = bytearray(path.read_bytes())
    noise[4:4000] = bytes(3996)
    path.write_bytes(noise)
    with pytest.raises(TextError, match=r"p\.parquet: damaged"):
        attach_points(path, chips, BUILT_IN)
    assert not read_chip(chips / "a.npz", BUILT_IN).texts


@pytest.mark.parametrize("compress", [True, False])
def test_a_chip_that_gets_texts_stays_as_compressed_as_it_was(tmp_path, chips, compress):
    write_chip(chips / "a.npz", chip("a"), BUILT_IN, compress=compress)
    attach_points(points_file(tmp_path / "p.parquet", [at_pixel(0, 3, 5)]), chips, BUILT_IN)
    assert read_chip(chips / "a.npz", BUILT_IN).texts
    with zipfile.ZipFile(chips / "a.npz") as archive:
        assert {entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()} == {compress}


def test_attaching_again_replaces_what_was_attached_and_leaves_other_texts_alone(tmp_path, chips):
    own = TextPoint(CORNER[0], CORNER[1] - 5, 0.0, START, START + DAY_MS, "rendered", "synthetic", "CC0 1.0")
    path = chips / "a.npz"
    write_chip(path, replace(read_chip(path, BUILT_IN), texts=[own]), BUILT_IN)
    for number in (1, 1, 2):
        attach_points(points_file(tmp_path / "p.parquet", [at_pixel(number, 4, 4)]), chips, BUILT_IN)
        assert [t.source for t in read_chip(path, BUILT_IN).texts] == ["synthetic", f"gbif:{number}"]
    before = path.stat().st_mtime_ns
    attach_points(tmp_path / "p.parquet", chips, BUILT_IN)
    assert path.stat().st_mtime_ns == before


def test_position_and_period_reach_the_right_pixel_of_the_sample(tmp_path, chips):
    """One odd pixel: the text's row and column must find it in whatever crop is drawn."""
    odd = read_chip(chips / "a.npz", BUILT_IN)
    odd.sources["sentinel2"].values[:, 0, 21, 9] = 9999
    write_chip(chips / "a.npz", odd, BUILT_IN)
    attach_points(points_file(tmp_path / "p.parquet", [at_pixel(1, 21, 9, uncertainty_m=25.0)]), chips, BUILT_IN)
    found = Counter()
    sampler = Sampler(DataConfig(chip_px=16), BUILT_IN, text=lambda _: np.ones(4, np.float32))
    for epoch in range(40):
        sample = sampler.draw(read_chip(chips / "a.npz", BUILT_IN), seed=0, epoch=epoch, global_index=0)
        values = sample.teacher["sentinel2"].values[0, :, :, 0]
        found[bool(sample.texts)] += 1
        assert len(sample.texts) == (values == 9999).any()
        for text in sample.texts:
            assert values[text.row, text.col] == 9999 and text.radius_px == 2.5
            period = text.period
            assert period.length_ms > 4 * DAY_MS
            assert period.start_ms < sample.support.end_ms and period.end_ms > sample.support.start_ms
    assert found[True] and found[False]
