"""The manifest: resuming, settings, constant cost, export."""

import errno
import time
from dataclasses import replace

import pytest

from aef.earthengine.grid import ChipGrid
from aef.earthengine.manifest import (
    DONE,
    EMPTY,
    FAILED,
    INCOMPLETE,
    PENDING,
    WRITTEN,
    Manifest,
    ManifestError,
    Outcome,
    PlannedChip,
    manifest_path,
)
from aef.timecode import parse_period

SETTINGS = {"sources": {"sentinel2": ["COPERNICUS/S2_HARMONIZED"]}, "chip_px": 128}
PERIOD = parse_period("2019-01-01/2020-01-01")


def chips(count):
    for n in range(count):
        yield PlannedChip(
            f"site{n:07d}_20190101",
            f"site{n:07d}",
            n % 360 - 180.0,
            0.0,
            ChipGrid("EPSG:32631", 10 * n, 0, 128),
            PERIOD,
        )


@pytest.fixture
def manifest(tmp_path):
    with Manifest(tmp_path / "m.sqlite", SETTINGS) as opened:
        yield opened


def test_pending_chips_come_back_as_they_were_planned(manifest):
    assert manifest.plan(chips(150)) == 150
    assert manifest.plan(chips(160)) == 10  # the same ones again, and ten more
    found = list(manifest.pending(128, batch=7))
    assert [(c.id, c.grid, c.period, c.lon) for c in found] == [(c.id, c.grid, c.period, c.lon) for c in chips(160)]


def test_what_is_recorded_is_not_pending_any_more(manifest):
    manifest.plan(chips(3))
    first, second, third = manifest.pending(128)
    manifest.record(first, "sentinel2", Outcome(DONE, "", 5, 2, 100, "ab"))
    manifest.finish(first, WRITTEN, size=10, sha256="cd")
    manifest.record(second, "sentinel2", Outcome(EMPTY, "no image", requests=1))
    assert [c.id for c in manifest.pending(128)] == [second.id, third.id]
    assert manifest.items(first)["sentinel2"] == Outcome(DONE, "", 5, 2, 100, "ab")
    assert manifest.items(second)["sentinel2"].reason == "no image" and manifest.items(third) == {}
    assert manifest.chip_counts() == {"written": 1, "pending": 2} and manifest.left() == 2
    assert list(manifest.checksums()) == [(first.id, "cd")]


def test_missing_answers_are_taken_up_again_and_refusals_only_when_asked(manifest):
    manifest.plan(chips(2))
    lacking, refused = manifest.pending(128)
    manifest.record(lacking, "sentinel2", Outcome(PENDING, "no answer"))
    manifest.record(refused, "sentinel2", Outcome(FAILED, "permission denied"))
    for chip in (lacking, refused):
        manifest.finish(chip, INCOMPLETE, reason="…")
    assert manifest.failures() == [(refused.id, "sentinel2", "permission denied")]
    assert manifest.reopen() == 1
    assert [c.id for c in manifest.pending(128)] == [lacking.id] and manifest.items(lacking) == {}
    assert manifest.reopen(failed=True) == 1
    assert manifest.items(refused) == {} and manifest.left() == 2


def test_items_of_chips_that_were_under_way_are_taken_up_again_too(manifest):
    manifest.plan(chips(3))
    lacking, refused, untouched = manifest.pending(128)
    manifest.record(lacking, "grace", Outcome(EMPTY, "no image"))
    manifest.record(lacking, "sentinel2", Outcome(PENDING, "no answer"))
    manifest.record(refused, "sentinel2", Outcome(FAILED, "permission denied"))
    assert manifest.reopen() == 0
    assert set(manifest.items(lacking)) == {"grace"} and set(manifest.items(refused)) == {"sentinel2"}
    manifest.reopen(failed=True)
    assert manifest.items(refused) == {} == manifest.items(untouched) and manifest.left() == 3


def test_a_folder_keeps_its_settings(tmp_path):
    path = tmp_path / "m.sqlite"
    Manifest(path, SETTINGS).close()
    Manifest(path, SETTINGS).close()
    with pytest.raises(ManifestError, match="chip_px = 128, now 64: keep to it, or choose another --out"):
        Manifest(path, {**SETTINGS, "chip_px": 64})


def test_a_second_writer_is_kept_out(tmp_path):
    with Manifest(tmp_path / "m.sqlite", SETTINGS):
        with pytest.raises(ManifestError, match="another download is writing here"):
            Manifest(tmp_path / "m.sqlite", SETTINGS)
        Manifest(tmp_path / "m.sqlite", read_only=True).close()


def test_damaged_newer_and_absent_manifests_are_named(tmp_path):
    (tmp_path / "m.sqlite").write_bytes(b"no database at all, but long enough to be one" * 100)
    with pytest.raises(ManifestError, match=r"m\.sqlite: is damaged"):
        Manifest(tmp_path / "m.sqlite", SETTINGS)
    with pytest.raises(FileNotFoundError, match="nothing was downloaded"):
        Manifest(tmp_path / "absent.sqlite", read_only=True)
    with Manifest(tmp_path / "n.sqlite", SETTINGS) as manifest:
        manifest.remember("format_version", 99)
    with pytest.raises(ManifestError, match="update the software"):
        Manifest(tmp_path / "n.sqlite", SETTINGS)


def test_a_full_disk_is_no_damage(tmp_path):
    with Manifest(tmp_path / "m.sqlite", SETTINGS) as manifest:
        pages = manifest._db.execute("PRAGMA page_count").fetchone()[0]
    said = pytest.raises(OSError, match="no space left on the disk: free some")
    with said as caught, Manifest(tmp_path / "m.sqlite", SETTINGS) as manifest:
        manifest._db.execute(f"PRAGMA max_page_count = {pages + 1}")
        manifest.plan(chips(1000))
    assert caught.value.errno == errno.ENOSPC
    (tmp_path / "n.sqlite").mkdir()
    with pytest.raises(OSError, match=r"cannot be read or written now \(unable to open database file\)"):
        Manifest(tmp_path / "n.sqlite", SETTINGS)


def test_export_lists_every_chip_and_source(manifest, tmp_path):
    import pyarrow.parquet

    manifest.plan(chips(50))
    first, second, *_ = manifest.pending(128)
    manifest.record(first, "sentinel2", Outcome(DONE, "", 5, 2, 100, "ab"))
    manifest.finish(first, WRITTEN, size=10, sha256="cd")
    manifest.record(second, "grace", Outcome(FAILED, "refused"))
    assert manifest.export(tmp_path / "m.parquet", ["sentinel2", "grace"], batch=7) == 100
    rows = pyarrow.parquet.read_table(tmp_path / "m.parquet").to_pylist()
    by_key = {(r["chip"], r["source"]): r for r in rows}
    assert by_key[first.id, "sentinel2"]["state"] == "done" and by_key[first.id, "sentinel2"]["chip_sha256"] == "cd"
    assert by_key[first.id, "grace"]["state"] == "pending" and by_key[second.id, "grace"]["reason"] == "refused"
    assert len(by_key) == 100 and not list(tmp_path.glob(".*"))


def test_going_on_costs_the_same_whatever_is_already_done(tmp_path):
    """The next pending chip is found through the index: the plan of the query says so, whatever the machine's speed."""
    with Manifest(tmp_path / "m.sqlite", SETTINGS) as manifest:
        manifest.plan(chips(2000))
        query = "SELECT number FROM chips WHERE state = 'pending' AND number > ? ORDER BY number LIMIT ?"
        plan = " ".join(row[3] for row in manifest._db.execute(f"EXPLAIN QUERY PLAN {query}", (0, 64)))
        assert "pending_chips" in plan and "SCAN" not in plan
        items = " ".join(
            row[3] for row in manifest._db.execute("EXPLAIN QUERY PLAN SELECT * FROM items WHERE chip = 5")
        )
        assert "SEARCH" in items and "SCAN" not in items


def test_a_clock_that_jumps_changes_nothing(manifest, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: -1e9)
    manifest.plan(chips(5))
    for chip in manifest.pending(128):
        manifest.record(chip, "sentinel2", Outcome(DONE))
        manifest.finish(chip, WRITTEN)
    assert manifest.left() == 0


def test_hosts_that_share_a_folder_have_a_manifest_each(tmp_path):
    assert manifest_path(tmp_path).name == "manifest.sqlite"
    assert manifest_path(tmp_path, (2, 8)).name == "manifest-2-of-8.sqlite"


def chip_at(name, left=0, start="2019-01-01", end="2020-01-01", site=None):
    period = parse_period(f"{start}/{end}")
    grid = ChipGrid("EPSG:32631", left, 0, 128)
    return PlannedChip(f"{name}_{start}", site or name, 8.54, 47.37, grid, period, stated=True)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (chip_at("a", left=10), "chip a_2019-01-01 is asked for twice"),
        (chip_at("a", end="2019-06-01"), "chip a_2019-01-01 is asked for twice"),
        (chip_at("a", start="2019-06-01", end="2020-06-01"), "site a is asked for twice, and their periods share days"),
        (chip_at("a", left=10, start="2020-01-01", end="2021-01-01"), "site a is asked for twice, and they lie apart"),
    ],
)
@pytest.mark.parametrize("batch", [1, 5000])
def test_one_id_for_two_places_or_shared_days_is_refused_with_both(manifest, second, words, batch):
    wanted = [chip_at("a"), chip_at("b", left=50), second]
    with pytest.raises(ManifestError, match=words) as refusal:
        manifest.plan(wanted, batch=batch)
    assert str(refusal.value).count("8.54000,47.37000 in ") == 2 and str(second.period) in str(refusal.value)
    assert manifest.left() == 0  # nothing of a list that is refused stays behind
    assert manifest.plan(wanted[:2]) == 2


def test_equal_rows_and_periods_side_by_side_are_one_site(manifest):
    years = [chip_at("a"), chip_at("a", start="2020-01-01", end="2021-01-01"), chip_at("a_2")]
    assert manifest.plan([*years, *years]) == 3
    assert manifest.plan(years) == 0
    with pytest.raises(ManifestError, match="asked for twice"):  # by an earlier run
        manifest.plan([chip_at("a", left=10)])


@pytest.mark.parametrize("stated", [False, True])
def test_a_later_list_that_gives_an_id_to_another_place_is_refused(manifest, stated):
    later = {"start": "2020-01-01", "end": "2021-01-01"}
    manifest.plan([chip_at("1"), chip_at("2", left=50)])
    with pytest.raises(ManifestError, match="site 1 is asked for twice, and they lie apart"):
        manifest.plan([replace(chip_at("1", left=90, **later), stated=stated), chip_at("3", left=70, **later)])
    assert manifest.left() == 2
    assert manifest.plan([chip_at("1", **later), chip_at("3", left=70, **later)]) == 2


def test_a_list_that_breaks_off_plans_nothing(manifest):
    def broken():
        yield from chips(20)
        raise ValueError("row 21")

    with pytest.raises(ValueError, match="row 21"):
        manifest.plan(broken(), batch=7)
    assert manifest.left() == 0 and manifest.plan(chips(2)) == 2


def test_reasons_of_items_that_lack_an_answer_are_known(manifest):
    manifest.plan(chips(2))
    lacking, refused = manifest.pending(128)
    manifest.record(lacking, "sentinel2", Outcome(PENDING, "no answer after 4 tries"))
    manifest.record(refused, "sentinel2", Outcome(FAILED, "permission denied"))
    for chip in (lacking, refused):
        manifest.finish(chip, INCOMPLETE, reason="…")
    assert manifest.unanswered() == [(lacking.id, "sentinel2", "no answer after 4 tries")]
    assert manifest.failures() == [(refused.id, "sentinel2", "permission denied")]
