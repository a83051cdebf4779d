"""The folder as a dataset: one global order, bad chips counted, places held out, nothing that depends on workers."""

from __future__ import annotations

import dataclasses
import errno
import os
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from aef.config import ConfigError, DataConfig
from aef.data import AEFNPZDataset
from aef.data.chips import ChipError, ChipFolder, write_chip
from aef.data.dataset import ChipDataset, Draw, GlobalOrder, StorageError
from aef.settings_file import write_sources
from aef.sources import BUILT_IN
from aef.timecode import format_time

CONFIG = DataConfig(chip_px=16, cache_chips=2)
NAMES = ("a", "b@2019", "b@2020", "c", "d")


@pytest.fixture
def folder(tmp_path, make_chip) -> ChipFolder:
    for name in NAMES:
        write_chip(
            tmp_path / f"{name}.npz", make_chip(name, sources=("sentinel2", "landsat")), BUILT_IN, compress=False
        )
    return ChipFolder(tmp_path, BUILT_IN)


def dataset(folder: ChipFolder, **settings) -> ChipDataset:
    return ChipDataset(folder, dataclasses.replace(CONFIG, **settings))


def same_batch(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
    if dataclasses.is_dataclass(one):
        return all(same_batch(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_batch(one[key], other[key]) for key in one)
    return one == other


# --- order -----------------------------------------------------------------------------------------------------------


def test_every_epoch_is_another_permutation_of_all_chips():
    order = GlobalOrder(7, seed=3)
    epochs = [[order.draw(7 * epoch + i) for i in range(7)] for epoch in range(4)]
    for number, epoch in enumerate(epochs):
        assert sorted(draw.chip for draw in epoch) == list(range(7))
        assert {draw.epoch for draw in epoch} == {number}
        assert [draw.global_index for draw in epoch] == list(range(7 * number, 7 * number + 7))
    assert len({tuple(draw.chip for draw in epoch) for epoch in epochs}) > 1


def test_a_chip_that_was_read_gives_the_samples_of_several_epochs_in_a_row():
    one, several = GlobalOrder(5, seed=3), GlobalOrder(5, seed=3, crops=4)
    draws = [several.draw(i) for i in range(40)]
    for first in range(0, 40, 4):
        assert len({draw.chip for draw in draws[first : first + 4]}) == 1
    assert [draw.chip for draw in draws[:20:4]] == [one.draw(i).chip for i in range(5)]
    assert {(draw.chip, draw.epoch) for draw in draws} == {(chip, epoch) for chip in range(5) for epoch in range(8)}
    assert [draw.global_index for draw in draws] == list(range(40))


def test_the_order_is_keyed_by_the_seed_and_by_nothing_else():
    forwards = [GlobalOrder(50, seed=1).draw(i) for i in range(200)]
    order = GlobalOrder(50, seed=1)
    assert [order.draw(i) for i in reversed(range(200))][::-1] == forwards
    assert [GlobalOrder(50, seed=2).draw(i) for i in range(50)] != forwards[:50]


# --- samples ---------------------------------------------------------------------------------------------------------


def test_a_sample_does_not_depend_on_what_was_read_before(folder):
    wanted = Draw(3, 2, 13)
    one = dataset(folder)[wanted]
    busy = dataset(folder)
    for i in (0, 4, 3, 1, 2):
        busy[Draw(i, 0, i)]
    again = busy[wanted]
    assert one.id == again.id == "c" and one.global_index == 13
    assert one.support == again.support and one.consistency_period == again.consistency_period
    assert np.array_equal(one.teacher["sentinel2"].values, again.teacher["sentinel2"].values)


def test_batches_do_not_depend_on_the_number_of_workers(folder):
    def batches(workers: int) -> list:
        data = AEFNPZDataset(folder.path, chip_px=16)
        data.epoch = 1
        return list(DataLoader(data, batch_size=2, collate_fn=data.collate, num_workers=workers))

    here = batches(0)
    assert len(here) == 3
    for workers in (1, 2):
        assert all(map(same_batch, here, batches(workers)))


def test_a_plain_index_draws_within_the_current_epoch(folder):
    data = dataset(folder)
    assert data[1].epoch == 0 and data[-1].id == "d"
    data.epoch = 4
    assert data[1].epoch == 4 and data[1].consistency_period != dataset(folder)[1].consistency_period
    with pytest.raises(IndexError):
        data[5]


def test_only_the_wanted_sources_are_read(folder):
    data = ChipDataset(folder, CONFIG, inputs=("landsat",), targets=("landsat",))
    assert set(data.chip(0).sources) == {"landsat"}


def test_few_decoded_chips_are_kept_in_memory_and_none_is_sent_to_a_worker(folder):
    data = dataset(folder)
    first = data.chip(0)
    assert data.chip(0) is first
    data.chip(1), data.chip(2)
    assert data.chip(0) is not first
    assert len(data._cache) == 2
    assert len(pickle.loads(pickle.dumps(data))._cache) == 0
    uncached = dataset(folder, cache_chips=0)
    assert uncached.chip(0) is not uncached.chip(0)


# --- bad chips -------------------------------------------------------------------------------------------------------


def spoil(folder: ChipFolder, *names: str) -> None:
    for name in names:
        os.truncate(folder.path / f"{name}.npz", 2000)


def test_a_bad_chip_stops_the_run_by_name(folder):
    spoil(folder, "c")
    with pytest.raises(ChipError, match=r"c\.npz: is damaged") as caught:
        list(dataset(folder))
    assert "\n" not in str(caught.value)


def test_a_skipped_chip_is_counted_and_the_next_good_one_stands_in(folder):
    spoil(folder, "c")
    data = dataset(folder, skip_bad=True)
    assert [data[i].id for i in range(5)] == ["a", "b@2019", "b@2020", "d", "d"]
    assert data.skipped == ["c.npz"]


def test_a_chip_with_wrong_values_is_bad_when_it_is_first_read(folder):
    path = folder.path / "c.npz"
    with np.load(path) as archive:
        members = {name: archive[name].copy() for name in archive}
    members["landsat/values"][:, 6] = 0
    np.savez(path, **members)
    with pytest.raises(ChipError, match=r"c\.npz: source landsat: field values: band B10"):
        dataset(folder)[3]


def test_a_chip_that_vanished_is_skipped_too(folder):
    data = dataset(folder, skip_bad=True)
    os.unlink(folder.path / "a.npz")
    assert data[0].id == "b@2019" and data.skipped == ["a.npz"]


def failing(monkeypatch, error, times):
    """Let reading fail so many times."""
    load, left = np.load, [times]

    def fail(path, **options):
        if left[0]:
            left[0] -= 1
            raise error
        return load(path, **options)

    monkeypatch.setattr(np, "load", fail)
    monkeypatch.setattr(ChipDataset, "WAITS_S", (0.0,) * 5)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O"), OSError(errno.EMFILE, "open"), MemoryError("4 GiB")])
def test_storage_that_fails_for_a_moment_costs_no_chip(folder, monkeypatch, error):
    data = dataset(folder, skip_bad=True)
    failing(monkeypatch, error, 5)
    assert data[0].id == "a" and not data.skipped and not data.take_found()


def test_storage_that_stays_away_is_said_and_no_chip_is_blamed(folder, monkeypatch):
    data = dataset(folder, skip_bad=True)
    failing(monkeypatch, OSError(errno.ESTALE, os.strerror(errno.ESTALE)), 100)
    with pytest.raises(
        StorageError, match=r"a\.npz: cannot be read, tried 6 times in 0 s \(Stale file handle\): the chip may"
    ):
        data[0]
    assert not data.skipped


def test_damage_that_asks_for_any_amount_of_memory_is_damage(folder, monkeypatch):
    spoil(folder, "a")
    data = dataset(folder, skip_bad=True)
    failing(monkeypatch, MemoryError("4 EiB"), 1)
    assert data[0].id == "b@2019" and data.skipped == ["a.npz"]


def test_bad_chips_are_told_once_and_can_be_known_beforehand(folder):
    spoil(folder, "c")
    data = dataset(folder, skip_bad=True)
    data[3], data[3]
    ((name, reason),) = data.take_found()
    assert name == "c.npz" and "c.npz: is damaged" in reason and not data.take_found()
    data = dataset(folder, skip_bad=True, held_out_places=("b",))
    data.ban(["c.npz", "b@2019.npz", "no such chip.npz"])
    assert data.skipped == ["c.npz"] and data[1].id == "d" and not data.take_found()


def test_a_folder_of_bad_chips_only_is_an_error_even_if_skipped(folder):
    spoil(folder, *NAMES)
    with pytest.raises(ChipError, match="no chip is left: all 5 were skipped"):
        dataset(folder, skip_bad=True)[0]


def many(folder, count: int, make_chip) -> ChipFolder:
    """A folder of tiny chips, one of them cut."""
    chip = make_chip("tiny", side=1, sources=("sentinel2",), frames={"sentinel2": 2})
    first = write_chip(folder / "00000.npz", chip, BUILT_IN, compress=False)
    content = first.read_bytes()
    for i in range(1, count):
        (folder / f"{i:05}.npz").write_bytes(content)
    (folder / f"{count * 2 // 3:05}.npz").write_bytes(content[:400])
    return ChipFolder(folder, BUILT_IN)


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.long)])
def test_one_bad_chip_of_many_is_named_or_counted(tmp_path, make_chip, count):
    folder = many(tmp_path, count, make_chip)
    bad = f"{count * 2 // 3:05}.npz"
    data = dataset(folder, cache_chips=0)
    with pytest.raises(ChipError, match=bad):
        for i in range(count):
            data[i]
    data = dataset(folder, cache_chips=0, skip_bad=True)
    for i in range(count):
        data[i]
    assert data.skipped == [bad]


# --- places and dates ------------------------------------------------------------------------------------------------


def test_held_out_places_are_never_read(folder):
    data = dataset(folder, held_out_places=("b", "d"))
    assert [data[i].id for i in range(len(data))] == ["a", "c"]


def test_a_held_out_place_that_is_not_there_is_an_error(folder):
    with pytest.raises(ChipError, match="cannot hold out nowhere: known are a, b, c, d"):
        dataset(folder, held_out_places=("nowhere",))
    with pytest.raises(ChipError, match="no chip is left"):
        dataset(folder, held_out_places=("a", "b", "c", "d"))


def test_withheld_dates_are_read_from_the_settings(folder, tmp_path, make_chip):
    times = make_chip("a", sources=("sentinel2",)).sources["sentinel2"].time_ms
    (tmp_path / "w.csv").write_text(f"place,time_utc\na,{format_time(int(times[3]))}\n")
    data = dataset(folder, withheld=str(tmp_path / "w.csv"))
    for epoch in range(8):
        sample = data[Draw(0, epoch, 0)]
        assert int(times[3]) not in sample.teacher["sentinel2"].time_ms
        assert int(times[3]) not in [target.time_ms for target in sample.targets["sentinel2"]]


def test_a_list_that_names_an_unknown_source_withholds_nothing_and_is_an_error(folder, tmp_path):
    place = folder.known_places()[0]
    (tmp_path / "w.csv").write_text(f"place,source,time_utc\n{place},Sentinel-2,2019-02-01T10:00:00Z\n")
    with pytest.raises(ConfigError, match=r"w\.csv names the unknown source Sentinel-2, .*known are .*sentinel2"):
        dataset(folder, withheld=str(tmp_path / "w.csv"))


def test_a_list_of_withheld_dates_for_other_places_is_an_error(folder, tmp_path):
    (tmp_path / "w.csv").write_text("place,time_utc\nelsewhere,2019-05-01\n")
    with pytest.raises(ConfigError, match=r"data\.withheld: .*w\.csv names no place"):
        dataset(folder, withheld=str(tmp_path / "w.csv"))


# --- the public dataset ----------------------------------------------------------------------------------------------


def test_a_folder_is_a_plain_dataset_in_two_lines(folder):
    data = AEFNPZDataset(folder.path, chip_px=16)
    (batch, *_) = DataLoader(data, batch_size=2, collate_fn=data.collate)
    assert batch.samples == 2 and batch.side_px == 16


def test_the_public_dataset_knows_the_sources_that_its_folder_carries_and_takes_those_that_chips_hold(
    tmp_path, make_chip
):
    own = dataclasses.replace(BUILT_IN["sentinel2"], name="mine")
    chip = make_chip("a", sources=("sentinel2", "landsat"))
    chip.sources = {"mine": chip.sources["sentinel2"], "landsat": chip.sources["landsat"]}
    write_chip(tmp_path / "a.npz", chip, BUILT_IN.extended([own]))
    write_sources(tmp_path / "sources.yaml", [own])
    data = AEFNPZDataset(tmp_path, chip_px=16)
    (batch,) = DataLoader(data, batch_size=1, collate_fn=data.collate)
    assert set(batch.frames) == {"mine", "landsat"} == set(batch.targets)
    assert data[0].teacher["mine"].values.shape[0] > 0


def test_a_wrong_setting_of_the_public_dataset_is_named(folder):
    with pytest.raises(ConfigError, match="chip_pixels"):
        AEFNPZDataset(folder.path, chip_pixels=16)
    with pytest.raises(ConfigError, match=r"data\.chip_px"):
        AEFNPZDataset(folder.path, chip_px=18)
