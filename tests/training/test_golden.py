"""The first 20 losses of `tiny` in fp32, pinned; and one small batch that is learnt by heart.

The batch is built here from sines, independent of sampler and generator. A change of these numbers is a change of the
model, the objective or the optimisation: update them only in a commit that says why.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch

from aef.config import PRESETS
from aef.data.collate import Collator
from aef.data.sample import Frames, Sample, Target
from aef.data.statistics import SourceStatistics, Statistics
from aef.data.transform import transform
from aef.model.aef import AEF
from aef.objective.objective import Objective
from aef.sources import BUILT_IN
from aef.timecode import DAY_MS, SUPPORT_MS, Period, parse_time
from aef.training.deepspeed_config import resolve
from aef.training.deepspeed_engine import Engine
from aef.training.distributed import start
from aef.training.schedule import learning_rate
from aef.training.step import take_step

SIDE = 16
START = parse_time("2018-03-01")
SUPPORT = Period(START, START + SUPPORT_MS)
INPUTS = {"sentinel2": (5, 1800, 900), "sentinel1": (3, -12, 4), "landsat": (2, 0.3, 0.1)}
TARGETS = {**INPUTS, "glo30": (1, 0.4, 0.3), "nlcd": (1, 0, 0)}

# fmt: off
GOLDEN = [
    0.963019, 0.916321, 0.865007, 0.820587, 0.778403, 0.742393, 0.711880, 0.686310, 0.663371, 0.641863,
    0.623098, 0.607152, 0.593481, 0.581812, 0.572051, 0.564081, 0.557714, 0.552929, 0.549699, 0.548042,
]
# fmt: on


def image(source, number, at):
    """(h, w, C) of sines around a level; another pattern for each sample, frame and band."""
    _, level, swing = TARGETS[source.name]
    y, x = np.meshgrid(np.arange(SIDE) / SIDE, np.arange(SIDE) / SIDE, indexing="ij")
    if source.classes:
        return np.array(source.classes)[((4 * x + 3 * y + number) % 5).astype(int)][..., None]
    season = math.sin(0.9 * at + number)
    bands = [
        np.sin(2 * math.pi * ((1 + number % 2) * x + 0.5 * y + 0.13 * band)) + 0.5 * season
        for band in range(source.channels)
    ]
    return (level + swing * np.stack(bands, -1)).astype(np.float32)


def build_samples():
    samples = []
    for number in range(2):
        teacher, targets = {}, {}
        for name, (count, *_) in TARGETS.items():
            source = BUILT_IN[name]
            if name in INPUTS:
                times = START + (np.arange(count) * 61 + 11 + 7 * number).astype(np.int64) * DAY_MS
                values = np.stack([image(source, number, at) for at in range(count)])
                teacher[name] = Frames(values, np.ones((count, SIDE, SIDE, 1), bool), times)
            time_ms = START + (150 + 20 * number) * DAY_MS
            targets[name] = [
                Target(
                    values=image(source, number, 2.5),
                    valid=np.ones((SIDE, SIDE, 1), bool),
                    weight=np.full((SIDE, SIDE, 1), 255, np.uint8),
                    time_ms=time_ms,
                    metadata=np.full(len(source.metadata), 30.0, np.float32),
                    period=Period(time_ms - 40 * DAY_MS, time_ms + 50 * DAY_MS),
                )
            ]
        samples.append(
            Sample(
                id=f"sample{number}",
                place=f"place{number}",
                global_index=number,
                support=SUPPORT,
                side_px=SIDE,
                teacher=teacher,
                student={name: Frames(f.values[1:], f.valid[1:], f.time_ms[1:]) for name, f in teacher.items()},
                targets=targets,
                consistency_period=Period(START + 60 * DAY_MS, START + 240 * DAY_MS),
            )
        )
    return samples


def statistics_of(samples):
    found = {}
    for name in TARGETS:
        source = BUILT_IN[name]
        if source.classes:
            continue
        images = np.stack([target.values for sample in samples for target in sample.targets[name]])
        y = transform(source, torch.from_numpy(images)).flatten(0, 2)
        found[name] = SourceStatistics(
            source.band_names,
            tuple(band.unit for band in source.bands),
            tuple(y.mean(0).tolist()),
            tuple(y.std(0).tolist()),
            (1,) * source.channels,
        )
    return Statistics(found, weighting="identity", date="2026-01-01")


@pytest.fixture
def make_step():
    """A step function over the batch, and a way to end it: model, objective and optimiser of `tiny`."""
    engines = []

    def make(steps, peak, warmup=2):
        samples = build_samples()
        statistics = statistics_of(samples)
        batch = Collator(BUILT_IN, list(INPUTS), list(TARGETS))(samples)
        config = PRESETS["tiny"]
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps, peak_lr=peak))
        torch.manual_seed(0)
        model = AEF(config.model, BUILT_IN, statistics, inputs=list(INPUTS), targets=list(TARGETS))
        ranks = start(60.0)
        engine = Engine(model, config, resolve(None, config, ranks=1, on_gpu=False, parameters=0), ranks)
        engines.append(engine)
        objective = Objective(config.objective, BUILT_IN, statistics, list(TARGETS), data=config.data)

        def step(number):
            lr = learning_rate(number, steps=steps, warmup=warmup, peak=peak)
            return take_step(engine, objective, [batch], lr).losses

        def evaluate():
            engine.model.eval()
            with torch.no_grad():
                return float(objective(engine.model(batch), batch).reconstruction)

        return step, evaluate

    yield make
    for engine in engines:
        engine.close()


def test_the_first_twenty_losses_of_tiny_are_pinned(make_step):
    step, _ = make_step(steps=20, peak=PRESETS["tiny"].train.peak_lr)
    assert [float(step(number).loss) for number in range(1, 21)] == pytest.approx(GOLDEN, rel=1e-3)


def test_one_small_batch_is_learnt_by_heart(make_step):
    step, evaluate = make_step(steps=150, peak=1e-2, warmup=10)
    # Evaluating leaves the model in eval mode: it is trained, as it is judged, decoding from the mean direction.
    first = evaluate()
    for number in range(1, 151):
        step(number)
    assert evaluate() < 0.15 * first
