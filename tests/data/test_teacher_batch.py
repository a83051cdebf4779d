"""What passes need of each other: the same embeddings as in the micro-batches that hold them, from less."""

import dataclasses

import pytest
import torch

from aef.config import PRESETS
from aef.data import teacher_batch
from aef.data.sample import Frames
from aef.data.statistics import Statistics
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


def teacher_batches(micro_batches, chosen, count):
    return list(teacher_batch.teacher_batches(micro_batches, chosen, count, torch.device("cpu")))


CHOSEN = [[0], [1], [1], [1]]
"""The samples with texts, and one without."""


def embedded(model, batches, chosen):
    """Fields of chosen samples, vectors of their texts and places, and identities, in order."""
    fields, pairs, identities = [], [], []
    for batch, rows in zip(batches, chosen, strict=True):
        texts = [
            row
            for row, (identity, sample) in enumerate(zip(batch.text.identity, batch.text.sample.tolist()))
            if identity is not None and sample in rows
        ]
        with torch.no_grad():
            output = model(batch)
            pairs.append(torch.cat(text_pairs(output, batch, torch.tensor(texts, dtype=torch.int64)), 1))
        fields.append(output.mean[batch.teacher_row[rows]])
        identities += [batch.text.identity[row] for row in texts]
    return torch.cat(fields), torch.cat(pairs), identities


@pytest.mark.parametrize(("count", "sizes"), [(1, [4]), (3, [2, 1, 1]), (5, [1, 1, 1, 1, 1])])
def test_embeddings_are_those_of_the_micro_batches_that_hold_them(micro_batches, model, count, sizes):
    fields, pairs, identities = embedded(model, micro_batches, CHOSEN)
    batches = teacher_batches(micro_batches, CHOSEN, count)
    assert [batch.samples for batch in batches] == sizes
    real = batches[:4]
    found = embedded(model, real, [range(batch.samples) for batch in real])
    torch.testing.assert_close(found[0], fields, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], pairs, rtol=1e-4, atol=1e-5)
    assert found[2] == identities == [0, 70, 3, 5]


def test_they_hold_teachers_two_kinds_of_summaries_and_no_target(micro_batches):
    (batch,) = teacher_batches(micro_batches, CHOSEN, 1)
    assert batch.sample_ids == ["place0/2019", "place2/2019", "place3/2019", "place5/2019"]
    lengths = [10, 10, 10, 7]
    assert batch.cu_frames.diff().tolist() == lengths and batch.frame_segment.bincount().tolist() == lengths
    assert batch.period_segment.tolist() == [0, 1, 2, 3, 0, 2, 3] and batch.pairs == 37 + 27
    assert batch.text.period_row.tolist() == [4, 4, 5, 6] and batch.text.sample.tolist() == [0, 0, 2, 3]
    assert all(block.item_weight.tolist() == [0.0] for block in batch.targets.values())
    assert len(batch.frames["sentinel1"].position) == 9


def test_a_rank_with_fewer_samples_runs_along_without_their_texts(micro_batches, model):
    first, last = teacher_batches(micro_batches[:1], [[0]], 2)
    assert first.text.identity == [0, 70]
    assert last.samples == 1 and last.text.identity == [None]
    assert model(last).mean.isfinite().all()


def test_a_source_without_a_frame_is_a_dummy(micro_batches, model):
    batch = teacher_batches(micro_batches[3:], [[1]], 1)[0]
    assert batch.frames["sentinel1"].position.tolist() == [-1] and not batch.frames["sentinel1"].valid.any()
    assert model(batch).text.isfinite().all()


def test_padded_micro_batches_give_teachers_without_filler(make_samples, pack):
    padded = pack(make_samples(2, targets=TARGETS), inputs=INPUTS, targets=TARGETS, frame_bucket=16)
    assert padded.total_frames == 32 and len(padded.cu_frames) == 6
    (batch,) = teacher_batches([padded], [[0, 1]], 1)
    assert batch.cu_frames.tolist() == [0, 10, 20] and batch.total_frames == 20


def test_samples_without_any_frame_run_on_one_of_filler(make_samples, pack, model):
    (sample,) = make_samples(1, targets=TARGETS, text_dim=TEXT_DIM)
    sample.teacher, sample.student = {}, {}
    (batch,) = teacher_batches([pack([sample], **OPTIONS)], [[0]], 1)
    assert batch.cu_frames.tolist() == [0, 0, 1] and model(batch).mean.isfinite().all()


def test_a_text_of_the_shared_period_is_pooled_with_it(make_samples, pack):
    (sample,) = make_samples(1, targets=TARGETS, text_dim=TEXT_DIM)
    sample.texts = (*sample.texts, dataclasses.replace(sample.texts[0], period=sample.consistency_period))
    (batch,) = teacher_batches([pack([sample], **OPTIONS)], [[0]], 1)
    assert batch.text.period_row.tolist() == [1, 0] and batch.pairs == 2 * 10
