"""From chips to a rank's micro-batches: who gets what, by which way, and what becomes of workers and of storage that fails."""

import contextlib
import dataclasses
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from aef.data.chips import ChipFolder
from aef.objective.uniformity import partners, rings
from aef.training import workers
from aef.training.distributed import Ranks
from aef.training.loader import Loaded, StepDataset, StepLoader
from aef.training.new_run import describe_run
from aef.training.sharing import share
from aef.training.transport import ALIGNED_BYTES, Packed

SCRIPT = Path(__file__).with_name("loading.py")


@pytest.fixture
def make_run(pristine_chips, tmp_path, make_config):
    """`make_run(data={...}, **train)` → a run over the five chips, unwritten."""

    def make(data=(), partner_chips=0, **train):
        config = make_config(**train)
        objective = dataclasses.replace(config.objective, partner_chips=partner_chips)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, **dict(data)), objective=objective)
        return describe_run(config, pristine_chips, tmp_path / "run", print)

    return make


def tensors(batch):
    """Every tensor of a micro-batch, by its path."""
    found = {}

    def walk(value, path):
        if isinstance(value, torch.Tensor):
            found[path] = value
        elif dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                walk(getattr(value, field.name), f"{path}.{field.name}")
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{path}[{key}]")

    walk(batch, "")
    return found


def same(found, expected):
    found, expected = tensors(found), tensors(expected)
    assert found.keys() == expected.keys()
    return all(found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name]) for name in found)


# --- who gets what ---------------------------------------------------------------------------------------------------


def test_samples_are_spread_so_that_costs_are_about_equal():
    costs = [5.0, 1.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0]
    bins = share(costs, [4, 4])
    assert sorted(item for items in bins for item in items) == list(range(8))
    assert [sum(costs[item] for item in items) for items in bins] == [8.0, 8.0]
    assert share(costs, [3, 3, 2]) == share(costs, [3, 3, 2])
    assert [len(items) for items in share(costs, [3, 3, 2])] == [3, 3, 2]
    assert share([1.0] * 4, [4]) == [[0, 1, 2, 3]]


def test_a_group_stays_together_while_a_bin_has_room():
    groups = [0, 0, 1, 1, 2, 2, 3, 3]
    bins = share([1.0] * 8, [4, 4], groups)
    assert sorted(item for items in bins for item in items) == list(range(8))
    assert all(len({groups[item] for item in items}) == 2 for items in bins)
    # Three groups of four in two bins of six: one of them is divided, and no other.
    groups = [item // 4 for item in range(12)]
    bins = share([1.0] * 12, [6, 6], groups)
    assert [len(items) for items in bins] == [6, 6]
    assert sum(len({groups[item] for item in items}) for items in bins) == 4


@pytest.mark.parametrize(("micro", "crops", "size"), [(1, 1, 2), (2, 4, 2), (4, 4, 2), (3, 2, 1), (5, 4, 4)])
def test_the_ranks_share_out_a_batch_and_each_chip_goes_to_one(micro, crops, size, make_run, pristine_chips):
    run = make_run({"crops_per_chip": crops}, global_batch=32, micro_batch=micro)
    ranks = [StepDataset(run, pristine_chips, rank, size) for rank in range(size)]
    for steps in ranks:
        steps.costs = [3.0, 1.0, 2.0, 5.0, 4.0]
    for step in (0, 3):
        draws = [ranks[0].order.draw(32 * step + place) for place in range(32)]
        plans = [steps.plan(draws) for steps in ranks]
        assert all(len(plan) == steps.units for plan, steps in zip(plans, ranks, strict=True))
        places = [[place for unit in plan for part in unit for place in part] for plan in plans]
        assert sorted(place for own in places for place in own) == list(range(32))
        assert {len(own) for own in places} == {32 // size}
        assert all(len(part) <= micro for plan in plans for unit in plan for part in unit)
        for own in places:
            assert len({place // crops for place in own}) == 32 // size // crops


@pytest.mark.parametrize(("micro", "crops", "size"), [(2, 1, 2), (4, 1, 2), (8, 4, 2), (4, 2, 1)])
def test_partners_are_in_one_micro_batch(micro, crops, size, make_run, pristine_chips):
    run = make_run({"crops_per_chip": crops}, partner_chips=2, global_batch=32, micro_batch=micro)
    ranks = [StepDataset(run, pristine_chips, rank, size) for rank in range(size)]
    assert len(set(map(ranks[0].chips.place, range(5)))) == 5
    for steps in ranks:
        steps.costs = [3.0, 1.0, 2.0, 5.0, 4.0]
    looked_at = 0
    for step in range(8):
        draws = [ranks[0].order.draw(32 * step + place) for place in range(32)]
        places = [ranks[0].chips.place(draw.chip) for draw in draws]
        parts = [part for steps in ranks for unit in steps.plan(draws) for part in unit]
        assert sorted(place for part in parts for place in part) == list(range(32))
        assert {len(part) for part in parts} == {micro}
        if {len(ring) for ring in rings(range(32), places, 2 * crops)} > {2 * crops}:
            continue  # of five chips one may follow itself
        looked_at += 1
        found = partners(range(32), places, 2 * crops)
        assert all(found[place] in part for part in parts for place in part)
    assert looked_at


@pytest.mark.parametrize(("micro", "crops", "size"), [(4, 1, 2), (8, 2, 1)])
def test_of_a_batch_that_is_rotated_whole_a_micro_batch_holds_samples_in_a_row(
    micro, crops, size, make_run, pristine_chips
):
    run = make_run({"crops_per_chip": crops}, global_batch=32, micro_batch=micro)
    ranks = [StepDataset(run, pristine_chips, rank, size) for rank in range(size)]
    for steps in ranks:
        steps.costs = [3.0, 1.0, 2.0, 5.0, 4.0]
    draws = [ranks[0].order.draw(place) for place in range(32)]
    parts = [part for steps in ranks for unit in steps.plan(draws) for part in unit]
    assert sorted(parts) == [list(range(first, first + micro)) for first in range(0, 32, micro)]


@pytest.mark.parametrize("micro", [1, 8])
def test_a_chip_is_read_once_for_all_of_its_crops_on_any_number_of_ranks(micro, make_run, pristine_chips, monkeypatch):
    run = make_run({"crops_per_chip": 4, "cache_chips": 0}, global_batch=16, micro_batch=micro)
    reads, read = [], ChipFolder.read
    monkeypatch.setattr(
        ChipFolder, "read", lambda self, index, *a, **o: (reads.append(index), read(self, index, *a, **o))[1]
    )
    for rank in range(2):
        loaded = StepDataset(run, pristine_chips, rank, 2).step(0)
        assert sum(batch.samples for batch in loaded.batches) == 8
    assert len(reads) == 4 and len(set(reads)) == 4


# --- on the way ------------------------------------------------------------------------------------------------------


def test_micro_batches_travel_as_one_block(make_run, pristine_chips):
    loaded = StepDataset(make_run(global_batch=4, micro_batch=2), pristine_chips, 0, 1).step(0)
    assert len(loaded.batches) == 2
    packed = loaded.pack()
    assert packed.packed.block.is_shared() and not packed.batches
    assert not tensors(packed.packed.outlines[0])  # nothing else that would travel by itself
    found = packed.unpack(pin=False)
    assert all(map(same, found.batches, loaded.batches))
    assert [batch.sample_ids for batch in found.batches] == [batch.sample_ids for batch in loaded.batches]
    for tensor in tensors(found.batches[1]).values():
        assert tensor.storage_offset() * tensor.element_size() % ALIGNED_BYTES == 0 and tensor.is_contiguous()
    assert pickle.loads(pickle.dumps(packed.packed.outlines[0])).sample_ids == loaded.batches[0].sample_ids


def test_a_micro_batch_without_a_frame_travels_too():
    empty = torch.zeros(0, 3, dtype=torch.float64)
    from aef.data.batch import FrameBlock

    block = FrameBlock(empty, torch.zeros(0, dtype=torch.bool), torch.arange(5))
    (found,) = Packed.of([block]).batches()
    assert same(found, block)


def test_an_error_of_one_unit_is_the_steps_and_bad_chips_of_all_are_kept():
    units = [Loaded(skipped=[("a.npz", "is cut")]), Loaded(error="b.npz: is damaged"), Loaded(error="c.npz")]
    joined = Loaded.joined(units)
    assert joined.error == "b.npz: is damaged" and joined.skipped == [("a.npz", "is cut")] and not joined.batches


# --- workers ---------------------------------------------------------------------------------------------------------


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def killed_rank(pristine_chips, tmp_path_factory):
    """Output of a rank that was killed while its loader worked, read until the last process that holds its end has gone."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(pristine_chips), "256"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        text, _ = process.communicate(timeout=240)
        return text
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.timeout(300)
def test_steps_of_many_micro_batches_need_few_open_files(killed_rank):
    assert killed_rank.splitlines()[:3] == ["step 32 None"] * 3, killed_rank[-3000:]


@pytest.mark.timeout(300)
def test_workers_end_with_their_rank(killed_rank):
    (line,) = [line for line in killed_rank.splitlines() if line.startswith("workers")]
    pids = [int(word) for word in line.split()[1:]]
    # That their output has ended says it already; a zombie, which nobody reaps in some containers, holds no file.
    assert len(pids) == 2
    for pid in pids:
        status = Path(f"/proc/{pid}/status")
        assert not alive(pid) or "State:\tZ" in status.read_text()


def test_a_process_opens_as_many_files_as_it_may(monkeypatch):
    limits = {"now": (1024, 4096)}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, found: limits.update(now=found))
    assert workers.fits_open_files(3000) is None and limits["now"] == (4096, 4096)
    assert "need about 5064 open files, 4096 are allowed: raise `ulimit -n`" in workers.fits_open_files(5000)


def test_samples_that_never_come_end_the_run_with_one_line(make_run, pristine_chips, monkeypatch):
    answers = threading.Event()
    monkeypatch.setattr(StepDataset, "__getitem__", lambda self, number: answers.wait() and Loaded())
    loader = StepLoader(make_run(), pristine_chips, Ranks(0, 1, 0, torch.device("cpu"), 0.2), 0)
    try:
        assert loader.next().error.startswith("no samples came within 0.1 s, half of train.timeout_s: the file system")
    finally:
        answers.set()
        loader.close()
    assert not loader._thread.is_alive()
