"""Chips on disk: whole or not at all, read back unchanged, and every damage named in one line."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import resource
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from aef.data.chips import Chip, ChipError, ChipFolder, read_chip, read_chip_header, read_frame_times, write_chip
from aef.data.contract import ARRAYS
from aef.data.statistics import Statistics
from aef.sources import BUILT_IN

SAMPLES = Path(__file__).parent / "samples"


def equal(one, other) -> bool:
    """Deep equality of dataclasses, containers and arrays, types of arrays included."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if dataclasses.is_dataclass(one):
        return all(equal(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def refused(action, *words: str, error=ChipError) -> str:
    """The message of the error that an action raises: one line that holds all the words."""
    with pytest.raises(error) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


@pytest.fixture
def path(tmp_path, make_chip) -> Path:
    return write_chip(tmp_path / "place.npz", make_chip("place"), BUILT_IN)


# --- round trip ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [True, False])
def test_a_chip_with_all_nine_sources_is_read_back_unchanged(tmp_path, make_chip, compress):
    chip = make_chip("place")
    back = read_chip(write_chip(tmp_path / "c.npz", chip, BUILT_IN, compress=compress), BUILT_IN, check_values=True)
    assert set(back.sources) == set(BUILT_IN)
    assert equal(back, chip)


def test_only_the_wanted_sources_are_read(path):
    assert set(read_chip(path, BUILT_IN, sources=["landsat", "glo30"]).sources) == {"landsat", "glo30"}
    assert read_chip(path, BUILT_IN, sources=["unheard_of"]).sources == {}


def test_header_and_times_are_read_without_pixels(path, make_chip):
    header = read_chip_header(path)
    assert header["place"] == "place" and header["sources"]["sentinel2"]["bands"] == list(
        BUILT_IN["sentinel2"].band_names
    )
    times = read_frame_times(path, ["sentinel2", "glo30"])
    assert list(times) == ["sentinel2"]
    assert np.array_equal(times["sentinel2"], make_chip("place").sources["sentinel2"].time_ms)


def test_an_interval_is_represented_by_its_middle_and_an_acquisition_by_itself(make_chip):
    chip = make_chip("place")
    era = chip.sources["era5_land"]
    assert np.array_equal(era.moment_ms - era.time_ms, era.time_end_ms - era.moment_ms)
    assert np.array_equal(chip.sources["sentinel2"].moment_ms, chip.sources["sentinel2"].time_ms)
    assert chip.sources["glo30"].moment_ms is None


def test_samples_of_every_format_version_keep_loading():
    chip = read_chip(SAMPLES / "chip_v1.npz", BUILT_IN, check_values=True)
    assert chip.synthetic and set(chip.sources) == set(BUILT_IN)
    assert chip.sources["sentinel2"].values.dtype == np.uint16
    assert chip.sources["gedi"].values.shape[1] == 101
    assert chip.labels["crop"].legend == {1: "maize", 2: "grass"} and chip.texts[0].text == "a meadow"
    statistics = Statistics.read(SAMPLES / "stats_v1.json")
    assert all(statistics.require(source) for source in BUILT_IN.values() if not source.classes)


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_missing_chip_is_said_to_be_missing(tmp_path):
    refused(lambda: read_chip(tmp_path / "none.npz", BUILT_IN), "none.npz: no such chip", error=FileNotFoundError)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_chip_is_refused_by_name(path, share):
    os.truncate(path, int(share * path.stat().st_size))
    refused(lambda: read_chip(path, BUILT_IN), str(path), "make it again")


def test_any_flipped_bit_is_noticed_or_harmless(path):
    original, reference = path.read_bytes(), read_chip(path, BUILT_IN)
    rng = np.random.default_rng(0)
    # Everywhere, and densely where the archive describes itself.
    positions = np.concatenate(
        [rng.integers(0, len(original), 120), rng.integers(len(original) - 3000, len(original), 80)]
    )
    noticed = 0
    for position, bit in zip(positions, rng.integers(0, 8, len(positions))):
        flipped = bytearray(original)
        flipped[position] ^= 1 << bit
        path.write_bytes(flipped)
        try:
            assert equal(read_chip(path, BUILT_IN), reference)
        except ChipError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            noticed += 1
    assert noticed > 100


def rewrite(path: Path, change) -> None:
    """Change members of a chip's archive by hand."""
    with np.load(path) as archive:
        members = {name: archive[name] for name in archive}
    change(members)
    np.savez(path, **members)


def edit_header(path: Path, change) -> None:
    def edit(members):
        header = json.loads(bytes(members["header"]).decode())
        change(header)
        members["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)

    rewrite(path, edit)


def test_a_newer_format_asks_for_newer_software(path):
    edit_header(path, lambda header: header.update(format_version=2))
    refused(lambda: read_chip(path, BUILT_IN), str(path), "format_version", "found 2", "update the software")


@pytest.mark.parametrize("version", [None, 0, "1", 1.5, True - 2])
def test_a_format_version_that_never_was_is_refused(path, version):
    edit_header(path, lambda header: header.update(format_version=version))
    refused(lambda: read_chip(path, BUILT_IN), "format_version")


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.pop("sources"),
        lambda h: h.update(sources=[1, 2]),
        lambda h: h.update(height="tall"),
        lambda h: h.update(transform=None),
        lambda h: h.update(transform=["a"] * 6),
        lambda h: h.update(id=7),
        lambda h: h.update(crs=""),
        lambda h: h.update(lon=None),
        lambda h: h.update(texts=[{"x": 1}]),
        lambda h: h["labels"]["crop"].update(legend={"one": "maize"}),
        lambda h: h["sources"]["landsat"].update(bands=5),
        lambda h: h["sources"]["landsat"].update(surprise=1),
        lambda h: h["sources"]["era5_land"].update(transform=["a"] * 6),
    ],
)
def test_a_header_of_other_types_is_one_named_line(path, change):
    edit_header(path, change)
    refused(lambda: read_chip(path, BUILT_IN), str(path))


def test_a_missing_member_is_named_with_its_source(path):
    rewrite(path, lambda members: members.pop("sentinel2/valid"))
    refused(lambda: read_chip(path, BUILT_IN), str(path), "source sentinel2", "field valid", "missing")


def test_nothing_is_ever_unpickled(path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("a chip was unpickled",)

    rewrite(path, lambda members: members.update({"sentinel2/values": np.array([Trap()], dtype=object)}))
    refused(lambda: read_chip(path, BUILT_IN), str(path), "make it again")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_another_file_with_a_chips_name_is_refused(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    refused(lambda: read_chip(tmp_path / "x.npz", BUILT_IN), "x.npz")


def test_an_archive_without_header_is_no_chip(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    refused(lambda: read_chip(tmp_path / "x.npz", BUILT_IN), "x.npz", "header")


# --- writing ---------------------------------------------------------------------------------------------------------


def test_a_chip_that_breaks_the_contract_is_not_written(tmp_path, make_chip):
    chip = make_chip("place")
    chip.sources["landsat"].time_ms[1] = chip.sources["landsat"].time_ms[0]
    refused(lambda: write_chip(tmp_path / "c.npz", chip, BUILT_IN), "c.npz", "source landsat", "field time_ms")
    assert list(tmp_path.iterdir()) == []


def test_attributes_that_json_cannot_hold_are_refused(tmp_path, make_chip):
    chip = make_chip("place")
    chip.attributes["when"] = object()
    refused(lambda: write_chip(tmp_path / "c.npz", chip, BUILT_IN), "c.npz", "attributes")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_chip_and_no_rest(path, make_chip, monkeypatch, call):
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    refused(lambda: write_chip(path, make_chip("other"), BUILT_IN), str(path), "No space left", error=OSError)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_chip_and_no_rest(path, make_chip):
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        refused(lambda: write_chip(path, make_chip("other"), BUILT_IN), str(path), error=OSError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_chip_is_a_zip_of_plain_arrays(path):
    with zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
    assert "header" in names
    assert {name.rpartition("/")[2] for name in names if "/" in name} <= {*ARRAYS, "fields"}


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_gives_its_chips_in_sorted_order(tmp_path, make_chip):
    for name in ("b", "a", "c@2020"):
        write_chip(tmp_path / f"{name}.npz", make_chip(name, sources=("sentinel2",)), BUILT_IN)
    (tmp_path / ".d.npz.tmp").write_bytes(b"left over")
    folder = ChipFolder(tmp_path, BUILT_IN)
    assert [chip.id for chip in folder] == ["a", "b", "c@2020"]
    assert folder.places() == ["a", "b", "c"]
    assert isinstance(folder.read(0), Chip)


def test_an_empty_or_missing_folder_is_refused(tmp_path):
    refused(lambda: ChipFolder(tmp_path, BUILT_IN), str(tmp_path), "holds no chip")
    refused(lambda: ChipFolder(tmp_path / "none", BUILT_IN), "no such folder", error=FileNotFoundError)
    (tmp_path / "a.npz").write_bytes(b"")
    refused(lambda: ChipFolder(tmp_path / "a.npz", BUILT_IN), "found a file", error=NotADirectoryError)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_archive_is_refused_in_our_words(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ChipError) as refusal:
        read_chip(tmp_path / "a.npz", BUILT_IN)
    assert refusal.value.reason == "is damaged or not a chip (not a whole .npz archive): make it again"


def test_a_folder_in_place_of_a_chip_is_refused(tmp_path):
    refused(lambda: read_chip(tmp_path, BUILT_IN), str(tmp_path), "a folder, not one file")


def test_two_files_of_one_chip_are_refused_where_chips_are_listed(tmp_path, make_chip):
    write_chip(tmp_path / "a.npz", make_chip("a", sources=("sentinel2",)), BUILT_IN)
    shutil.copy(tmp_path / "a.npz", tmp_path / "a copy.npz")
    line = refused(lambda: ChipFolder(tmp_path, BUILT_IN).places(), "two files hold the chip 'a'", "remove one of them")
    assert "a.npz" in line and "a copy.npz" in line


def test_the_place_of_an_unreadable_chip_is_unknown(tmp_path, make_chip):
    write_chip(tmp_path / "a.npz", make_chip("a", sources=("sentinel2",)), BUILT_IN)
    (tmp_path / "b.npz").write_bytes(b"damaged")
    assert ChipFolder(tmp_path, BUILT_IN).places() == ["a", None]
