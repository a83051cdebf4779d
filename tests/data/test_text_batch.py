"""Texts ahead of accumulated passes: the same vectors as in the micro-batches that hold them, from less."""

import dataclasses

import pytest
import torch

from aef.config import PRESETS
from aef.data.sample import Frames
from aef.data.statistics import Statistics
from aef.data.text_batch import text_batches
from aef.model.aef import AEF
from aef.objective.objective import text_pairs
from aef.sources import BUILT_IN

INPUTS, TARGETS, TEXT_DIM = ("sentinel2", "sentinel1", "landsat"), ("sentinel2", "nlcd"), 4
OPTIONS = {"inputs": INPUTS, "targets": TARGETS, "text_dim": TEXT_DIM}


@pytest.fixture
def micro_batches(make_samples, pack):
    """Three of two samples; the first of them holds two texts, then no text, then one without radar."""
    samples = make_samples(6, targets=TARGETS, text_dim=TEXT_DIM)
    first, second = samples[0].texts[0], samples[3].texts[0]
    samples[0].texts = (first, dataclasses.replace(second, period=first.period, identity=70))
    samples[1].texts = samples[2].texts = samples[4].texts = ()
    del samples[5].teacher["sentinel1"], samples[5].student["sentinel1"]
    frames = samples[3].teacher["landsat"]
    samples[3].teacher["landsat"] = Frames(frames.values, frames.valid[..., :1], frames.time_ms)
    parts = [pack(samples[i : i + 2], **OPTIONS) for i in (0, 2, 4)]
    return [parts[0], pack(samples[1:3], **OPTIONS), *parts[1:]]


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = dataclasses.replace(PRESETS["tiny"].model, text_dim=TEXT_DIM)
    statistics = Statistics.identity(BUILT_IN, (*INPUTS, *TARGETS))
    return AEF(config, BUILT_IN, statistics, inputs=INPUTS, targets=TARGETS).train()


def pairs_of(model, batches):
    """Vectors of texts and places, and identities, of all texts in order."""
    found, identities = [], []
    for batch in batches:
        rows = [row for row, identity in enumerate(batch.text.identity) if identity is not None]
        with torch.no_grad():
            found.append(torch.cat(text_pairs(model(batch), batch, torch.tensor(rows, dtype=torch.int64)), 1))
        identities += [batch.text.identity[row] for row in rows]
    return torch.cat(found), identities


@pytest.mark.parametrize(("count", "bucket", "sizes"), [(1, 0, [3]), (2, 16, [1, 2]), (4, 0, [1, 1, 1, 1])])
def test_texts_have_the_vectors_of_the_micro_batches_that_hold_them(micro_batches, model, count, bucket, sizes):
    expected, identities = pairs_of(model, micro_batches)
    batches = text_batches(micro_batches, count, frame_bucket=bucket)
    found, same = pairs_of(model, batches)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert same == identities == [0, 70, 3, 5]
    assert [batch.samples for batch in batches] == sizes
    assert all(batch.total_frames % (bucket or 1) == 0 for batch in batches)


def test_they_hold_teachers_a_summary_of_each_period_and_no_target(micro_batches):
    (batch,) = text_batches(micro_batches, 1)
    assert batch.sample_ids == ["place0/2019", "place3/2019", "place5/2019"]
    assert batch.cu_frames.diff().tolist() == [10, 10, 7] and batch.frame_segment.bincount().tolist() == [10, 10, 7]
    assert batch.period_segment.tolist() == [0, 1, 2] and batch.pairs == 27
    assert batch.text.period_row.tolist() == [0, 0, 1, 2] and batch.text.sample.tolist() == [0, 0, 1, 2]
    assert all(block.item_weight.tolist() == [0.0] for block in batch.targets.values())
    assert len(batch.frames["sentinel1"].position) == 6


def test_a_rank_with_fewer_texts_runs_along_with_a_sample_that_holds_none(micro_batches, model):
    silent = micro_batches[1]
    *_, last = text_batches([silent], 2)
    assert last.samples == 1 and last.text.identity == [None]
    assert model(last).mean.isfinite().all()


def test_a_source_without_a_frame_is_a_dummy(micro_batches, model):
    batch = text_batches(micro_batches[3:], 1)[0]
    assert batch.frames["sentinel1"].position.tolist() == [-1] and not batch.frames["sentinel1"].valid.any()
    assert model(batch).text.isfinite().all()
