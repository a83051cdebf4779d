"""The index of a folder: made once, shared, and never truer than the files beside it."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from aef.config import DataConfig
from aef.data import chip_index, folder_scan
from aef.data import chips as chips_module
from aef.data.chip_file import read_entry
from aef.data.chip_index import FILE_NAME, ChipEntry, ChipIndex, IndexBuilder
from aef.data.chips import ChipError, ChipFolder, read_frame_times, write_chip
from aef.data.dataset import ChipDataset
from aef.sources import BUILT_IN, INPUTS

SOURCES = ("sentinel2", "glo30")


@pytest.fixture
def indexed(monkeypatch):
    """Folders of a few chips have an index too, which trusts files of any age."""
    for module in (folder_scan, chips_module):
        monkeypatch.setattr(module, "LEAST_CHIPS", 1)
    monkeypatch.setattr(folder_scan, "RACY_NS", -(10**18))


@pytest.fixture
def folder(tmp_path, make_chip, indexed) -> Path:
    for name in ("a", "b@2019", "b@2020", "c"):
        write_chip(tmp_path / "chips" / f"{name}.npz", make_chip(name, sources=SOURCES), BUILT_IN)
    return tmp_path / "chips"


@pytest.fixture(autouse=True)
def make_folder(tmp_path):
    (tmp_path / "chips").mkdir()


@pytest.fixture
def headers_read(monkeypatch) -> list[str]:
    """Names of the chips whose headers are read, as it happens."""
    names: list[str] = []

    def read(path: Path):
        names.append(path.name)
        return read_entry(path)

    monkeypatch.setattr(folder_scan, "read_entry", read)
    return names


def opened(path: Path) -> ChipFolder:
    """A folder whose index has been asked for."""
    found = ChipFolder(path, BUILT_IN)
    assert len(found.index) == len(found)
    return found


def told(folder: ChipFolder) -> tuple:
    """All that an index answers."""
    frames = [folder.frames(i, INPUTS) for i in range(len(folder))]
    return folder.places(), folder.sources(), frames, folder.digest(range(len(folder))), list(folder.files)


# --- what it says ----------------------------------------------------------------------------------------------------


def test_an_index_says_what_the_headers_say(folder):
    found = opened(folder)
    assert (folder / FILE_NAME).is_file()
    assert found.places() == [found.header(i)["place"] for i in range(4)] == ["a", "b", "b", "c"]
    assert list(found.index.ids) == ["a", "b@2019", "b@2020", "c"]
    assert found.known_places() == ["a", "b", "c"] and found.where(["b"]).tolist() == [1, 2]
    assert list(found.without(["b"])) == [0, 3] and list(found.without([])) == [0, 1, 2, 3]
    assert set(found.sources()) == set(SOURCES)
    assert found.holding(["landsat"]).tolist() == [False] * 4 and found.holding(["glo30", "landsat"]).all()
    times = read_frame_times(found.files[0], INPUTS)["sentinel2"]
    assert found.frames(0, INPUTS) == {"sentinel2": (len(times), int(times[-1] - times[0]) // 1000)}


def test_a_kept_index_tells_the_same_as_a_fresh_one_and_as_none(folder, headers_read, monkeypatch):
    fresh = told(opened(folder))
    assert headers_read == ["a.npz", "b@2019.npz", "b@2020.npz", "c.npz"]
    kept = told(opened(folder))
    assert kept == fresh and len(headers_read) == 4
    (folder / FILE_NAME).unlink()
    monkeypatch.setattr(folder_scan, "LEAST_CHIPS", 100)
    assert told(ChipFolder(folder, BUILT_IN)) == fresh
    assert not (folder / FILE_NAME).exists(), "a small folder stays as it is"


def test_the_file_is_laid_out_as_its_module_says(folder):
    index, content = opened(folder).index, (folder / FILE_NAME).read_bytes()
    magic = b"AEF index of chips, 2\n"
    crc, length = struct.unpack_from("<IQ", content, len(magic))
    start = len(magic) + 12 + length
    head = json.loads(content[len(magic) + 12 : start])
    assert content.startswith(magic) and start % 4096 == 0
    assert (head["token"], head["sources"], head["duplicate_ids"]) == (index.token, index.sources, None)

    def column(name: str) -> np.ndarray:
        offset, shape, dtype = head["columns"][name]
        return np.frombuffer(content, dtype, np.prod(shape, dtype=int), start + offset).reshape(shape)

    assert column("names").tobytes() == b"a.npz\0b@2019.npz\0b@2020.npz\0c.npz\0"
    assert column("name_ends").tolist() == [5, 16, 27, 33] and column("frames").tolist() == index.frames.tolist()
    checked = start + head["columns"]["checked"][0]
    assert checked % 4096 == 0 and checked + 8 * 4 == len(content)
    assert zlib.crc32(content[len(magic) + 4 : checked]) == crc


# --- what changes ----------------------------------------------------------------------------------------------------


def test_only_chips_that_are_new_or_other_are_read_again(folder, headers_read, make_chip):
    opened(folder)
    headers_read.clear()
    (folder / "a.npz").unlink()
    write_chip(folder / "b@2020.npz", make_chip("moved@2020", sources=("landsat",)), BUILT_IN)
    write_chip(folder / "aa.npz", make_chip("aa", sources=SOURCES), BUILT_IN)
    found = opened(folder)
    assert headers_read == ["aa.npz", "b@2020.npz"]
    assert found.places() == ["aa", "b", "moved", "c"] and "a" not in found.known_places()
    assert [path.name for path in found.files] == ["aa.npz", "b@2019.npz", "b@2020.npz", "c.npz"]
    assert set(found.sources()) == {*SOURCES, "landsat"}
    (folder / FILE_NAME).unlink()
    assert told(opened(folder)) == told(found)


def test_values_of_the_same_size_and_mtime_are_noticed(folder, make_chip, headers_read):
    path = folder / "a.npz"
    chip = make_chip("a", sources=SOURCES)
    write_chip(path, chip, BUILT_IN, compress=False)
    os.utime(path, (1e9, 1e9))
    before, size = opened(folder).digest(range(4)), path.stat().st_size
    chip.sources["sentinel2"].values[0, 0, 0, 0] += 1
    write_chip(path, chip, BUILT_IN, compress=False)
    os.utime(path, (1e9, 1e9))
    assert path.stat().st_size == size and opened(folder).digest(range(4)) != before


def test_a_chip_so_young_that_it_may_change_unseen_is_not_trusted(folder, headers_read, monkeypatch):
    monkeypatch.setattr(folder_scan, "RACY_NS", 10**12)
    opened(folder)
    opened(folder)
    assert len(headers_read) == 8
    monkeypatch.setattr(folder_scan, "RACY_NS", -(10**18))
    opened(folder)
    opened(folder)
    assert len(headers_read) == 12


def test_a_chip_that_could_not_be_read_is_tried_again_and_alone(folder, headers_read):
    whole = (folder / "b@2019.npz").read_bytes()
    (folder / "b@2019.npz").write_bytes(whole[:3000])
    found = opened(folder)
    assert found.places() == ["a", None, "b", "c"] and found.frames(1, INPUTS) == {}
    with pytest.raises(ChipError, match=r"b@2019\.npz: is damaged or not a chip"):
        found.sources()
    assert set(found.sources(skip_bad=True)) == set(SOURCES)
    written = (folder / FILE_NAME).stat().st_mtime_ns
    headers_read.clear()
    assert opened(folder).places() == ["a", None, "b", "c"] and headers_read == ["b@2019.npz"]
    assert (folder / FILE_NAME).stat().st_mtime_ns == written
    (folder / "b@2019.npz").write_bytes(whole)
    assert opened(folder).places() == ["a", "b", "b", "c"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty"])
def test_a_damaged_index_is_made_again(folder, headers_read, damage):
    fresh = told(opened(folder))
    path = folder / FILE_NAME
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[content.index(b"b@2019.npz") + 2] ^= 1
    path.write_bytes({"cut": content[:-4000], "flipped": content, "foreign": b"hello" * 100, "empty": b""}[damage])
    assert told(opened(folder)) == fresh and len(headers_read) == 8


def test_two_files_of_one_chip_are_found_where_one_was_known(folder):
    opened(folder)
    shutil.copy(folder / "a.npz", folder / "copy.npz")
    with pytest.raises(ChipError, match=r"two files hold the chip 'a', a\.npz and copy\.npz"):
        opened(folder).places()
    with pytest.raises(ChipError, match="two files hold"):
        opened(folder).without(["b"])


# --- who may not write, who shares -----------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_works_without(folder, headers_read, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    expected = told(opened(folder))
    (folder / FILE_NAME).unlink()
    monkeypatch.setattr(folder_scan.tempfile, "NamedTemporaryFile", refuse)
    monkeypatch.setattr(folder_scan.atomic, "writing", refuse)
    assert told(opened(folder)) == expected and not (folder / FILE_NAME).exists()


def test_a_full_disk_leaves_the_index_in_memory(folder, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert opened(folder).places() == ["a", "b", "b", "c"]
    assert sorted(os.listdir(folder)) == ["a.npz", "b@2019.npz", "b@2020.npz", "c.npz"]


def _report(folder: ChipFolder, answers) -> None:
    answers.put((folder.places(), folder.index.token, [path.name for path in folder.files]))


def test_a_process_gets_the_index_of_its_parent_even_if_the_folder_has_another(folder, make_chip):
    mine = opened(folder)
    write_chip(folder / "0.npz", make_chip("0", sources=SOURCES), BUILT_IN)
    assert opened(folder).index.token != mine.index.token
    start = multiprocessing.get_context("spawn")
    answers = start.Queue()
    process = start.Process(target=_report, args=(mine, answers))
    process.start()
    places, token, names = answers.get(timeout=60)
    process.join()
    assert (places, token) == (["a", "b", "b", "c"], mine.index.token) and "0.npz" not in names


class Starting:
    """A process that is being started, as far as pickling knows."""

    def duplicate_for_child(self, descriptor: int) -> int:
        return descriptor

    DupFd = duplicate_for_child


def test_nothing_of_a_chip_is_sent_to_a_process_that_can_map_the_index(folder, monkeypatch):
    found = opened(folder)
    dataset = ChipDataset(found, DataConfig(chip_px=16))
    assert b"b@2019" in pickle.dumps(dataset) and told(pickle.loads(pickle.dumps(found))) == told(found)
    found.places()
    monkeypatch.setattr(chip_index.context, "get_spawning_popen", Starting)
    assert b"b@2019" not in pickle.dumps(dataset)


def test_chips_in_sub_folders_are_found_and_names_stay_unambiguous(folder, make_chip):
    (folder / "x").mkdir()
    (folder / ".hidden").mkdir()
    shutil.move(folder / "c.npz", folder / "x" / "c.npz")
    shutil.copy(folder / "a.npz", folder / ".hidden" / "h.npz")
    (folder / "x" / "again").symlink_to(folder)
    found = opened(folder)
    assert [str(path.relative_to(folder)) for path in found.files] == ["a.npz", "b@2019.npz", "b@2020.npz", "x/c.npz"]
    assert list(found.files) == sorted(found.files) and found.places() == ["a", "b", "b", "c"]
    assert [chip.id for chip in found][-1] == "c"
    (folder / "y").mkdir()
    write_chip(folder / "y" / "c.npz", make_chip("d", sources=SOURCES), BUILT_IN)
    with pytest.raises(ChipError, match=r"two files have one name, x/c\.npz and y/c\.npz: rename one"):
        ChipFolder(folder, BUILT_IN)


# --- values that were checked ----------------------------------------------------------------------------------------


def test_values_are_checked_once_in_the_life_of_a_chip_and_of_the_rules(folder, make_chip, monkeypatch):
    first = opened(folder)
    first.read(0, ["sentinel2"], check_values=True)
    assert not first.checked(range(4)).any(), "a part of a chip is not the chip"
    first.read(0, check_values=True)
    first.read(1, [*SOURCES, "landsat"], check_values=True)
    first.read(2)
    assert opened(folder).checked(range(4)).tolist() == [True, True, False, False]
    dataset = ChipDataset(opened(folder), DataConfig(chip_px=16))
    assert dataset._checked.tolist() == [True, True, False, False]
    write_chip(folder / "a.npz", make_chip("a", sources=SOURCES), BUILT_IN)
    assert opened(folder).checked(range(4)).tolist() == [False, True, False, False]
    monkeypatch.setattr(chips_module, "RULES_VERSION", chips_module.RULES_VERSION + 1)
    assert not opened(folder).checked(range(4)).any()


# --- the pass --------------------------------------------------------------------------------------------------------


def test_a_pass_that_waits_for_the_disk_uses_threads_and_keeps_the_order(monkeypatch):
    items = list(range(5000))
    monkeypatch.setattr(folder_scan.time, "thread_time", lambda: 0.0)
    slow = folder_scan._map_in_order(lambda item: (time.sleep(0.001 if item < 64 else 0), item * 2)[1], items)
    assert list(slow) == [2 * item for item in items]
    assert list(folder_scan._map_in_order(lambda item: item, items[:10])) == items[:10]


def test_a_pass_that_is_killed_goes_on_where_it_was(folder, headers_read, monkeypatch):
    monkeypatch.setattr(folder_scan, "SAVE_S", -1.0)

    def killed(path):
        if path.name == "b@2020.npz":
            raise KeyboardInterrupt
        return read_entry(path)

    with monkeypatch.context() as patch:
        patch.setattr(folder_scan, "read_entry", killed)
        with pytest.raises(KeyboardInterrupt):
            opened(folder)
    assert ChipIndex.read(folder / FILE_NAME).sound.tolist() == [True, True, False, False]
    assert opened(folder).places() == ["a", "b", "b", "c"] and headers_read == ["b@2020.npz", "c.npz"]


def test_a_long_pass_says_how_far_it_is(folder, monkeypatch):
    said: list[str] = []
    ChipFolder(folder, BUILT_IN).build_index(said.append)
    assert said == []
    (folder / FILE_NAME).unlink()
    monkeypatch.setattr(folder_scan, "SAY_S", -1.0)
    ChipFolder(folder, BUILT_IN).build_index(said.append)
    assert [line.partition(": ")[2].partition(" headers")[0] for line in said] == [f"{n} of 4" for n in (1, 2, 3, 4)]


def test_an_index_of_names_that_are_no_text_and_ids_with_zeros():
    names = ["\udcff.npz", "é.npz"]
    builder = IndexBuilder(names)
    for row in range(2):
        builder.add(row, ChipEntry("i\0d", "pla\ud800ce", (), {}, bytes(16), True), np.ones(3, np.int64))
    found = ChipIndex(builder.to_bytes())
    assert list(found.names) == names == found.names[:] and found.ids[1] == "i\0d"
    assert list(found.places) == ["pla\ud800ce"] and found.duplicate_ids == (0, 1)
