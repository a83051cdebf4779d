"""Packing: one sequence of frames, nothing padded, everything findable again."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from aef.data.batch import bucket_frames
from aef.data.collate import Collator
from aef.data.sample import Frames, Sample
from aef.hashing import stable_hash
from aef.sources import BUILT_IN, INPUTS
from aef.timecode import DAY_MS, Period, parse_time

START = parse_time("2020-02-29")
SUPPORT = Period(START, START + 365 * DAY_MS)


def empty_sample(name: str = "empty", side: int = 16) -> Sample:
    return Sample(name, name, 0, SUPPORT, side, teacher={})


@pytest.fixture
def samples(make_samples):
    """Three samples of different lengths; the second has lost a source, its student another one."""
    found = make_samples(3, text_dim=8, targets_per_source=2)
    del found[1].teacher["landsat"], found[1].student["sentinel1"], found[1].student["landsat"]
    found[2].texts = ()
    return found


# --- frames ----------------------------------------------------------------------------------------------------------


def packed_naively(samples) -> tuple[list[list[tuple]], list[int]]:
    """Segment by segment, a plain loop: (time, source, values, valid) of each frame in order of time."""
    segments = []
    for sample in samples:
        for view in (sample.teacher, sample.student):
            frames = [
                (int(time), name, values, valid)
                for name in INPUTS
                if name in view
                for time, values, valid in zip(view[name].time_ms, view[name].values, view[name].valid)
            ]
            segments.append(sorted(frames, key=lambda frame: frame[0]))
    return segments, [len(segment) for segment in segments]


def test_packed_frames_equal_a_naive_loop_over_samples(samples, pack):
    batch = pack(samples)
    segments, lengths = packed_naively(samples)
    flat = [frame for segment in segments for frame in segment]
    assert batch.cu_frames.tolist() == [0, *np.cumsum(lengths)] and batch.cu_frames.dtype == torch.int32
    assert batch.total_frames == len(flat)
    assert batch.frame_time_ms.tolist() == [frame[0] for frame in flat] and batch.frame_time_ms.dtype == torch.int64
    assert batch.frame_segment.tolist() == [i for i, length in enumerate(lengths) for _ in range(length)]
    seen = np.zeros(len(flat), bool)
    for name, block in batch.frames.items():
        for row, position in enumerate(block.position.tolist()):
            _, source, values, valid = flat[position]
            assert source == name and not seen[position]
            assert np.array_equal(block.values[row].numpy(), values, equal_nan=True)
            assert np.array_equal(block.valid[row].numpy(), valid)
            seen[position] = True
    assert seen.all()


def test_every_segment_has_its_samples_support(samples, pack):
    for i, sample in enumerate(samples):
        sample.support = Period(START + i, START + i + 365 * DAY_MS)
    assert pack(samples).support_start_ms.tolist() == [START, START, START + 1, START + 1, START + 2, START + 2]


def test_embedding_batches_have_one_view(samples, pack):
    batch = pack(samples, views=1)
    assert len(batch.cu_frames) == 4
    assert batch.total_frames == sum(len(f.time_ms) for s in samples for f in s.teacher.values())
    assert torch.equal(batch.teacher_row, batch.student_row)


def test_frames_of_equal_time_keep_the_order_of_the_inputs(make_samples, pack):
    (sample,) = make_samples(1, frames={"sentinel2": 2, "sentinel1": 2, "landsat": 2})
    for frames in (*sample.teacher.values(), *sample.student.values()):
        frames.time_ms = SUPPORT.start_ms + np.arange(len(frames.time_ms), dtype=np.int64)
    batch = pack([sample])
    assert {name: block.position.tolist()[:2] for name, block in batch.frames.items()} == {
        "sentinel2": [0, 3],
        "sentinel1": [1, 4],
        "landsat": [2, 5],
    }


def test_an_absent_source_runs_on_one_dummy_that_no_sample_reads(make_samples, pack):
    batch = pack(make_samples(2, frames={"sentinel2": 3}))
    for name in ("sentinel1", "landsat"):
        block = batch.frames[name]
        assert block.position.tolist() == [-1] and not block.valid.any()
        assert block.values.shape == (1, 16, 16, BUILT_IN[name].channels)


def test_a_batch_without_any_frame_has_one_filler_frame(pack):
    batch = pack([empty_sample(), empty_sample("b")])
    assert batch.cu_frames.tolist() == [0, 0, 0, 0, 0, 1] and batch.total_frames == 1
    assert batch.consistency_weight.tolist() == [0, 0]


def test_an_empty_view_is_an_empty_segment(make_samples, pack):
    one, other = make_samples(2)
    one.student = {}
    batch = pack([one, other])
    offsets = batch.cu_frames.tolist()
    assert offsets[1] == offsets[2] < offsets[3]


@pytest.mark.parametrize("bucket", [1, 8, 100])
def test_filler_fills_a_bucket_as_the_last_segment(samples, pack, bucket):
    plain, filled = pack(samples), pack(samples, frame_bucket=bucket)
    assert filled.total_frames % bucket == 0 and filled.total_frames - plain.total_frames < bucket
    assert len(filled.cu_frames) == len(plain.cu_frames) + 1
    assert torch.equal(filled.cu_frames[:-1], plain.cu_frames)
    assert torch.equal(filled.frame_time_ms[: plain.total_frames], plain.frame_time_ms)
    assert (filled.frame_segment[plain.total_frames :] == 6).all()
    for name, block in filled.frames.items():
        assert torch.equal(block.position, plain.frames[name].position)


def test_a_sample_at_another_time_takes_its_texts_and_further_periods_along(make_samples):
    (sample,) = make_samples(1, text_dim=8)
    sample.periods = (SUPPORT,)
    moved = sample.moved(DAY_MS)
    for one, other in (
        (sample.texts[0].period, moved.texts[0].period),
        (sample.periods[0], moved.periods[0]),
        (sample.consistency_period, moved.consistency_period),
    ):
        assert other == Period(one.start_ms + DAY_MS, one.end_ms + DAY_MS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_frames": 2}, r"max_frames: expected at least \d+, found 2"),
        ({"cu_frames": torch.tensor([0, 9, 4, 10], dtype=torch.int32)}, "cu_frames: expected offsets rising from 0"),
        ({"cu_frames": torch.tensor([0, 3], dtype=torch.int32)}, r"cu_frames: expected .*, found \[0, 3\]"),
    ],
)
def test_offsets_that_a_gpu_would_not_question_are_refused_on_the_host(samples, pack, changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(pack(samples), **changes)


def test_the_longest_segment_is_rounded_up_to_few_values():
    bounds = [bucket_frames(n) for n in range(1, 400)]
    assert all(bound >= n for n, bound in enumerate(bounds, 1))
    assert sorted(set(bounds)) == [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]


def test_masks_per_band_and_for_all_bands_live_in_one_batch(make_samples, pack):
    one, other = make_samples(2)
    narrow = other.teacher["sentinel2"]
    narrow.valid = narrow.valid[..., :1]
    other.student = {}
    other.targets["sentinel2"][0].valid = one.targets["sentinel2"][0].valid.repeat(5, axis=-1)
    batch = pack([one, other])
    assert batch.frames["sentinel2"].valid.shape[-1] == 5
    assert batch.targets["sentinel2"].valid.shape[-1] == 5
    rows = batch.frames["sentinel2"].position >= batch.cu_frames[2]
    assert (batch.frames["sentinel2"].valid[rows].numpy() == narrow.valid).all()


# --- periods and targets ---------------------------------------------------------------------------------------------


def test_every_target_finds_its_period_its_sample_and_a_slot_of_its_own(samples, pack):
    batch = pack(samples)
    for name, block in batch.targets.items():
        wanted = [(i, target) for i, sample in enumerate(samples) for target in sample.targets[name]]
        assert block.sample.tolist() == [i for i, _ in wanted]
        assert block.time_ms.tolist() == [target.time_ms for _, target in wanted]
        for row, (i, target) in enumerate(wanted):
            period_row = int(block.period_row[row])
            assert tuple(batch.periods[period_row].tolist()) == target.period
            assert int(batch.period_segment[period_row]) == 2 * i
            assert np.array_equal(block.values[row].numpy(), target.values)
            assert np.array_equal(block.weight[row].numpy(), target.weight)
    for i in range(3):
        slots = torch.cat([block.slot[block.sample == i] for block in batch.targets.values()])
        assert sorted(slots.tolist()) == list(range(18))


def test_equal_periods_of_a_segment_are_pooled_once(make_samples, pack):
    (sample,) = make_samples(1, targets=("sentinel2", "landsat"))
    for targets in sample.targets.values():
        targets[0].period = SUPPORT
    sample.consistency_period = SUPPORT
    batch = pack([sample], targets=("sentinel2", "landsat"))
    assert batch.periods.tolist() == [list(SUPPORT), list(SUPPORT)]
    assert batch.period_segment.tolist() == [0, 1]
    assert batch.teacher_row.tolist() == [0] and batch.student_row.tolist() == [1]


def test_teacher_and_student_summarise_the_same_period(samples, pack):
    batch = pack(samples)
    for i, sample in enumerate(samples):
        for rows, segment in ((batch.teacher_row, 2 * i), (batch.student_row, 2 * i + 1)):
            row = int(rows[i])
            assert tuple(batch.periods[row].tolist()) == sample.consistency_period
            assert int(batch.period_segment[row]) == segment


def test_further_periods_of_a_sample_are_summarised(make_samples, pack):
    (sample,) = make_samples(1)
    sample.periods = (Period(1, 2), Period(3, 4))
    rows = pack([sample]).periods.tolist()
    assert [1, 2] in rows and [3, 4] in rows


def test_pairs_count_the_frames_under_every_period(samples, pack):
    batch = pack(samples)
    lengths = batch.cu_frames.diff()
    assert batch.pairs == sum(int(lengths[segment]) for segment in batch.period_segment)


def test_a_source_without_target_has_one_dummy_of_weight_zero(make_samples, pack):
    batch = pack(make_samples(2, targets=("sentinel2",)))
    for name, block in batch.targets.items():
        if name != "sentinel2":
            assert block.item_weight.tolist() == [0] and not block.valid.any()
            assert block.values.shape[-1] == BUILT_IN[name].channels
            assert 0 <= int(block.period_row) < len(batch.periods)


# --- texts, identities -----------------------------------------------------------------------------------------------


def test_texts_follow_their_samples_and_none_is_one_dummy(samples, pack):
    batch = pack(samples, text_dim=8)
    assert batch.text.sample.tolist() == [0, 1] and batch.text.identity == [
        one.texts[0].identity for one in samples[:2]
    ]
    for row, sample in enumerate(samples[:2]):
        assert np.array_equal(batch.text.vector[row].numpy(), sample.texts[0].vector)
        assert tuple(batch.periods[int(batch.text.period_row[row])].tolist()) == sample.texts[0].period
    second = dataclasses.replace(samples[0].texts[0], row=3)
    samples[0].texts = (samples[0].texts[0], second)
    both = pack(samples, text_dim=8).text
    assert both.sample.tolist() == [0, 0, 1] and both.pixel[1].tolist() == [3, second.col]
    assert both.period_row[0] == both.period_row[1]
    for sample in samples:
        sample.texts = ()
    empty = pack(samples, text_dim=8).text
    assert empty.vector.shape == (1, 8) and empty.identity == [None]


def test_a_sample_keeps_its_hash_and_another_epoch_has_another(samples, pack):
    batch = pack(samples)
    assert batch.sample_hash.tolist() == [sample.hash for sample in samples]
    assert torch.equal(pack(samples[1:]).sample_hash, batch.sample_hash[1:])
    assert dataclasses.replace(samples[0], epoch=1).hash != samples[0].hash
    assert int(batch.sample_hash.min()) >= 0 and int(batch.sample_hash.max()) < 2**40


def test_hashes_are_the_same_on_every_machine():
    assert stable_hash("somewhere") == 589962273643
    assert stable_hash("somewhere", 62) >> 22 == stable_hash("somewhere")


# --- refusals, moving ------------------------------------------------------------------------------------------------


def test_what_cannot_be_packed_is_one_named_line(make_samples, pack):
    with pytest.raises(ValueError, match="empty list"):
        pack([])
    small, large = make_samples(1)[0], make_samples(1, side_px=32)[0]
    with pytest.raises(ValueError, match=r"share a side length, found \[16, 32\] px"):
        pack([small, large])
    frames = small.teacher["sentinel2"]
    small.teacher["sentinel2"] = Frames(frames.values, frames.valid, frames.time_ms.astype(np.float32))
    with pytest.raises(ValueError, match="sentinel2: time_ms must be int64 milliseconds, found float32"):
        pack([small])
    small.teacher["sentinel2"] = Frames(frames.values[..., :4], frames.valid, frames.time_ms)
    with pytest.raises(ValueError, match="sentinel2: expected frames of"):
        pack([small])


def test_a_batch_moves_with_all_its_tensors(samples, pack):
    moved = pack(samples).to("meta")
    tensors = [moved.frame_time_ms, moved.frames["sentinel2"].values, moved.targets["nlcd"].slot, moved.text.vector]
    assert all(tensor.device.type == "meta" for tensor in tensors)


def test_a_collator_travels_to_workers():
    collate = pickle.loads(pickle.dumps(Collator(BUILT_IN, INPUTS, ("nlcd",), text_dim=8)))
    assert collate([empty_sample()]).text.vector.shape == (1, 8)
