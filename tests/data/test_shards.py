"""Shards: many chips in one file, read as if each lay in a folder of its own."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from aef.data import shard_writer, shards
from aef.data.chip_file import read_entry
from aef.data.chips import (
    ChipError,
    ChipFolder,
    read_chip,
    read_chip_header,
    read_frame_times,
    require_free,
    write_chip,
)
from aef.data.dataset import storage_fault
from aef.data.shard_writer import pack, plan_shards
from aef.data.shards import ShardError
from aef.data.statistics import Statistics
from aef.sources import BUILT_IN
from aef.text.attach import attach_points

SOURCES = ("sentinel2", "glo30")
NAMES = ("a.npz", "b@2019.npz", "deep/b@2020.npz", "é ü.npz")


@pytest.fixture
def chips(tmp_path, make_chip) -> Path:
    folder = tmp_path / "chips"
    (folder / "deep").mkdir(parents=True)
    for name in NAMES:
        write_chip(folder / name, make_chip(Path(name).stem, sources=SOURCES), BUILT_IN)
    return folder


def opened(path: Path) -> ChipFolder:
    return ChipFolder(path, BUILT_IN)


def packed(folder: Path, out: Path, *, per_shard: int = 2, **options) -> list[Path]:
    """Pack so that a shard holds ``per_shard`` chips."""
    largest = max(path.stat().st_size for path in folder.rglob("*.npz"))
    return pack(opened(folder), out, round((per_shard + 0.5) * largest), **options)


@pytest.fixture
def store(chips, tmp_path) -> Path:
    packed(chips, tmp_path / "packed")
    return tmp_path / "packed"


# --- reading ---------------------------------------------------------------------------------------------------------


def test_packed_chips_are_those_of_the_folder_in_its_order(chips, store):
    before, after = opened(chips), opened(store)
    assert [shards.unpacked_name(name) for name in after.files.names] == list(before.files.names) == sorted(NAMES)
    assert after.digest(range(4)) == before.digest(range(4))
    assert after.places() == before.places()
    for old, new in zip(before, after, strict=True):
        assert old.id == new.id
        assert np.array_equal(old.sources["sentinel2"].values, new.sources["sentinel2"].values)


def test_a_packed_chip_has_a_path_like_any_other(chips, store):
    path = store / "00000.chips.zip" / "a.npz"
    assert read_chip(path, BUILT_IN, check_values=True).id == read_chip_header(path)["id"] == "a"
    assert np.array_equal(
        read_frame_times(path, SOURCES)["sentinel2"], read_frame_times(chips / "a.npz", SOURCES)["sentinel2"]
    )
    assert read_entry(path) == read_entry(chips / "a.npz")
    with pytest.raises(FileNotFoundError, match=r"00000.chips.zip/none.npz: no such chip"):
        read_chip(path.with_name("none.npz"), BUILT_IN)


def test_any_unzip_brings_the_folder_back_byte_for_byte(chips, store, tmp_path):
    for shard in sorted(store.glob("*.chips.zip")):
        subprocess.run([sys.executable, "-m", "zipfile", "-e", shard, tmp_path / "back"], check=True)
    assert sorted(p.relative_to(tmp_path / "back").as_posix() for p in tmp_path.glob("back/**/*.npz")) == sorted(NAMES)
    assert all((tmp_path / "back" / name).read_bytes() == (chips / name).read_bytes() for name in NAMES)


def test_shards_of_another_tool_are_read_where_their_chips_are_only_stored(chips, tmp_path, make_chip):
    """Comments, extra fields, other members and a ZIP64 directory are lawful."""
    with zipfile.ZipFile(tmp_path / "mine.chips.zip", "w") as archive:
        archive.comment = b"made elsewhere"
        archive.writestr("README", "text")
        with archive.open("a.npz", "w", force_zip64=True) as member:
            member.write((chips / "a.npz").read_bytes())
    shutil.rmtree(chips)
    assert [chip.id for chip in opened(tmp_path)] == ["a"]
    with zipfile.ZipFile(tmp_path / "mine.chips.zip", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b.npz", b"0" * 1000)
    with pytest.raises(ShardError, match=r"mine.chips.zip: b.npz is compressed or encrypted: expected a shard"):
        opened(tmp_path)


def test_packed_and_plain_chips_lie_side_by_side(store, make_chip):
    write_chip(store / "z.npz", make_chip("z", sources=SOURCES), BUILT_IN)
    assert [chip.id for chip in opened(store)] == ["a", "b@2019", "b@2020", "é ü", "z"]
    write_chip(store / "a.npz", make_chip("a", sources=SOURCES), BUILT_IN)
    with pytest.raises(ChipError, match=r"two files have one name, 00000.chips.zip/a.npz and a.npz"):
        opened(store)


def test_another_process_reads_the_same_packed_chips(store):
    folder = opened(store)
    assert folder.index.ids[0] == "a"
    copy = pickle.loads(pickle.dumps(folder))
    assert [chip.id for chip in copy] == [chip.id for chip in folder]


def test_a_folder_named_like_a_shard_is_a_folder(store, tmp_path):
    shard = store / "00000.chips.zip"
    with zipfile.ZipFile(shard) as archive:
        archive.extractall(tmp_path / "content")
    shard.unlink()
    (tmp_path / "content").rename(shard)
    assert [chip.id for chip in opened(store)] == ["a", "b@2019", "b@2020", "é ü"]


def test_the_index_of_packed_chips_follows_their_shards(store, monkeypatch, make_chip, tmp_path):
    from aef.data import chips as chips_module
    from aef.data import folder_scan

    for module in (folder_scan, chips_module):
        monkeypatch.setattr(module, "LEAST_CHIPS", 1)
    monkeypatch.setattr(folder_scan, "RACY_NS", -(10**18))
    seen: list[str] = []
    monkeypatch.setattr(folder_scan, "read_entry", lambda path: (seen.append(path.name), read_entry(path))[1])
    assert len(opened(store).index) == 4 and len(seen) == 4
    assert len(opened(store).index) == 4 and len(seen) == 4, "nothing changed: nothing is read"
    other = tmp_path / "others"
    other.mkdir()
    write_chip(other / "y.npz", make_chip("y", sources=SOURCES), BUILT_IN)
    packed(other, tmp_path / "more", per_shard=1)
    os.replace(tmp_path / "more" / "00000.chips.zip", store / "00001.chips.zip")
    del seen[:]
    assert list(opened(store).index.ids) == ["a", "b@2019", "y"]
    assert seen == ["y.npz"]


# --- what can be wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [True, False])
def test_a_shard_cut_short_is_refused_with_its_name(chips, tmp_path, make_chip, compress):
    """Also where it ends with its last chip: that is a whole archive in itself."""
    write_chip(chips / "é ü.npz", make_chip("é ü", sources=SOURCES), BUILT_IN, compress=compress)
    (shard,) = packed(chips, tmp_path / "packed", per_shard=10)
    content = shard.read_bytes()
    end = shards.directory(shard)["é ü.npz"]
    last = len(content) - content[::-1].index(b"\6\5KP", 22)  # the end of the last chip's directory
    assert content[last - 4 : last] == b"PK\5\6" and last > end.offset + end.size
    for cut in (0, 10, len(content) // 2, last + 18, last + 19, last + 40, len(content) - 10, len(content) - 1):
        shard.write_bytes(content[:cut])
        with pytest.raises(ShardError, match=r"00000.chips.zip: is damaged .*: pack or copy it again"):
            opened(tmp_path / "packed")


def test_a_flipped_bit_in_a_shard_is_that_chips_damage(store):
    shard = store / "00000.chips.zip"
    content = bytearray(shard.read_bytes())
    content[len(content) // 4] ^= 1
    shard.write_bytes(content)
    folder = opened(store)
    with pytest.raises(ChipError, match=r"00000.chips.zip/a.npz: is damaged or not a chip") as refusal:
        folder.read(0, check_values=True)
    assert storage_fault(refusal.value, folder.files[0]) is None
    assert folder.read(1).id == "b@2019"


def test_a_shard_whose_chips_moved_is_no_chip(store):
    shard = store / "00000.chips.zip"
    assert shards.list_chips(shard)[0] == "a.npz"
    content = shard.read_bytes()
    shard.write_bytes(b"XXXX" + content[4:])
    with pytest.raises(ChipError, match=r"no chip where a.npz should be"):
        read_chip(shard / "a.npz", BUILT_IN)


def test_packed_chips_are_only_read(store, make_chip, tmp_path):
    with pytest.raises(ChipError, match="lies in a shard, which is only read: write it before packing"):
        write_chip(store / "00000.chips.zip" / "a.npz", make_chip("a", sources=SOURCES), BUILT_IN)
    with pytest.raises(ChipError, match="attach texts before packing"):
        attach_points(tmp_path / "points.parquet", store, BUILT_IN)
    with pytest.raises(ChipError, match=r"1 of 2 chips are there already \(a.npz\)"):
        require_free(store, ("a", "new"))


# --- packing ---------------------------------------------------------------------------------------------------------


def test_shards_hold_whole_chips_up_to_their_size(chips, tmp_path):
    folder = opened(chips)
    sizes = [path.stat().st_size for path in folder.files]

    def counts(most: int) -> list[int]:
        return [len(shard.names) for shard in plan_shards(folder, tmp_path / "packed", most)]

    assert counts(1) == [1, 1, 1, 1]
    assert counts(sizes[0] + sizes[1]) == [2, 2] if sizes[2] + sizes[3] <= sizes[0] + sizes[1] else [2, 1, 1]
    assert counts(sizes[0] + sizes[1] - 1)[0] == 1
    assert counts(sum(sizes)) == [4]


def test_packing_again_writes_nothing_and_the_same_bytes(chips, store, tmp_path):
    content = {path.name: path.read_bytes() for path in store.iterdir()}
    assert packed(chips, store) == []
    assert {path.name: path.read_bytes() for path in store.iterdir()} == content
    packed(chips, tmp_path / "twice")
    assert (tmp_path / "twice" / "00001.chips.zip").read_bytes() == content["00001.chips.zip"]


def test_an_interrupted_packing_goes_on(chips, tmp_path):
    out, done = tmp_path / "packed", []

    def stop() -> None:
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed(chips, out, on_chip=stop)
    assert [path.name for path in out.iterdir()] == ["00000.chips.zip"], "no part of a shard is left behind"
    assert [path.name for path in packed(chips, out)] == ["00001.chips.zip"]
    assert len(opened(out)) == 4


def test_what_a_killed_packing_left_is_removed(chips, tmp_path):
    out = tmp_path / "packed"
    out.mkdir()
    gone = subprocess.Popen(["true"])
    gone.wait()
    half, live = (out / f".00000.chips.zip.{pid}.tmp" for pid in (gone.pid, os.getppid()))
    half.touch(), live.touch()
    packed(chips, out)
    assert not half.exists() and live.exists()


def test_a_damaged_shard_is_written_again_without_asking(chips, store):
    shard = store / "00001.chips.zip"
    content = shard.read_bytes()
    shard.write_bytes(content[:100])
    assert packed(chips, store) == [shard]
    assert shard.read_bytes() == content


def test_shards_of_other_chips_are_replaced_only_when_asked(chips, store, make_chip):
    write_chip(chips / "a.npz", make_chip("a", side=20, sources=SOURCES), BUILT_IN)
    before = {path.name: path.read_bytes() for path in store.iterdir()}
    with pytest.raises(ShardError, match=r"chips.zip: holds other chips than it would now.*--overwrite"):
        packed(chips, store)
    assert {path.name: path.read_bytes() for path in store.iterdir()} == before
    packed(chips, store, per_shard=10, overwrite=True)
    assert [path.name for path in sorted(store.iterdir())] == ["00000.chips.zip"]
    assert opened(store).digest(range(4)) == opened(chips).digest(range(4))


def test_chips_of_their_own_files_are_never_mixed_in(chips, tmp_path, make_chip):
    (tmp_path / "other").mkdir()
    write_chip(tmp_path / "other" / "mine.npz", make_chip("mine", sources=SOURCES), BUILT_IN)
    with pytest.raises(ShardError, match=r"holds chips that are not packed \(mine.npz\)"):
        packed(chips, tmp_path / "other", overwrite=True)
    for out in (chips, chips / "packed", tmp_path):
        with pytest.raises(ShardError, match="chips would be found twice"):
            packed(chips, out)
    assert opened(tmp_path / "other").read(0).id == "mine"


def test_a_chip_that_cannot_be_read_is_not_packed(chips, tmp_path):
    (chips / "a.npz").write_bytes(b"damaged")
    with pytest.raises(ChipError, match=r"a.npz: is damaged or not a chip"):
        packed(chips, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_a_chip_that_changes_meanwhile_is_noticed(chips, tmp_path, make_chip):
    changed = []

    def change() -> None:
        if not changed:
            changed.append(write_chip(chips / "é ü.npz", make_chip("é ü", side=20, sources=SOURCES), BUILT_IN))

    with pytest.raises(ShardError, match=r"what was packed is not what .* holds"):
        packed(chips, tmp_path / "packed", on_chip=change)


def test_a_disk_without_room_is_noticed_before_anything_is_written(chips, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shard_writer.shutil, "disk_usage", lambda path: usage(10, 0, 10))
    with pytest.raises(ShardError, match=r"GB are to be written, 0.0 GB are free: make room"):
        packed(chips, tmp_path / "packed")
    assert list((tmp_path / "packed").iterdir()) == []


def test_statistics_of_a_folder_hold_for_its_packed_copy(chips, tmp_path):
    folder = opened(chips)
    before = Statistics.of_chips(folder, BUILT_IN)
    before.write(chips / "stats.json")
    packed(chips, tmp_path / "packed")
    assert (tmp_path / "packed" / "stats.json").read_bytes() == (chips / "stats.json").read_bytes()
    assert Statistics.of_chips(opened(tmp_path / "packed"), BUILT_IN).taken_over == before.taken_over
