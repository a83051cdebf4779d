"""What a preset works on without any data: its sources, how many frames they give, and batches of random values.

For plans, profiles and benchmarks. Needs nothing but NumPy and PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aef.config import Config
from aef.data.batch import Batch
from aef.data.collate import Collator
from aef.data.sample import Frames, Sample, Target, Text
from aef.sources import Registry, Source
from aef.timecode import DAY_MS, SUPPORT_MS, Period

SUPPORT = Period(0, SUPPORT_MS)


def sources_of(config: Config, registry: Registry) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Encoded and decoded sources of a run without data: as set, else those that the registry enables."""
    enabled = [name for name, source in registry.items() if source.enabled]
    inputs = config.model.inputs or tuple(name for name in enabled if registry[name].role == "input")
    return tuple(inputs), config.model.targets or tuple(enabled)


def frames_per_sample(config: Config, registry: Registry, inputs: Sequence[str]) -> tuple[float, float]:
    """Expected frames of the teacher (its budgets, thinned by their spread) and of the student (after its drops)."""
    d = config.data
    drop, forecast, backcast = (odds / sum(d.student_strategies) for odds in d.student_strategies)
    teacher = student = 0.0
    for source in (registry[name] for name in inputs):
        frames = max(1, round(d.frame_budget * (1 - d.budget_spread / 2) * source.frame_budget))
        teacher += frames
        student += frames * (1 - source.source_drop) * (drop * (1 - source.frame_drop) + (forecast + backcast) / 2)
    return teacher, student


def random_batch(
    config: Config, registry: Registry, inputs: Sequence[str], targets: Sequence[str], samples: int, *, first: int = 0
) -> Batch:
    """``samples`` samples of random values, numbered from ``first``, with every source at its full frame budget and the
    student at what its drops leave on average; with a text head every fourth has a text, as 23 % of the paper's sites."""
    rng = np.random.default_rng(first)
    made = [_random_sample(config, registry, inputs, targets, first + number, rng) for number in range(samples)]
    collate = Collator(registry, inputs, targets, text_dim=config.model.text_dim, frame_bucket=config.data.frame_bucket)
    return collate(made)


def _random_sample(
    config: Config, registry: Registry, inputs: Sequence[str], targets: Sequence[str], number: int, rng
) -> Sample:
    side = config.data.chip_px
    full, kept = frames_per_sample(config, registry, inputs)
    teacher = {name: _random_frames(registry[name], config, rng) for name in inputs}
    share = kept / full
    student = {
        name: Frames(*(array[: max(1, round(share * len(array)))] for array in (f.values, f.valid, f.time_ms)))
        for name, f in teacher.items()
    }
    periods = [Period(0, (40 + 60 * k) * DAY_MS) for k in range(config.data.periods_per_sample or 64)]
    decoded = [name for name in targets for _ in range(config.data.targets_per_source)]
    wanted: dict[str, list[Target]] = {}
    for at, name in enumerate(decoded):
        wanted.setdefault(name, []).append(_random_target(registry[name], side, periods[at % len(periods)], rng))
    vector = rng.standard_normal(config.model.text_dim, np.float32)
    text = Text(vector, row=side // 2, col=side // 2, radius_px=0.0, period=periods[0], identity=number)
    return Sample(
        id=f"random{number}",
        place=f"random{number}",
        global_index=number,
        support=SUPPORT,
        side_px=side,
        teacher=teacher,
        student=student,
        targets=wanted,
        consistency_period=Period(0, 200 * DAY_MS),
        texts=(text,) if config.model.text_dim and number % 4 == 0 else (),
    )


def _random_frames(source: Source, config: Config, rng) -> Frames:
    side, count = config.data.chip_px, max(1, round(config.data.frame_budget * source.frame_budget))
    times = np.linspace(0, SUPPORT_MS - 1, count).astype(np.int64)
    return Frames(_random_values(source, (count, side, side), rng), np.ones((count, side, side, 1), np.bool_), times)


def _random_target(source: Source, side: int, period: Period, rng) -> Target:
    cells = 1 if source.grid == "native" else side
    return Target(
        values=_random_values(source, (cells, cells), rng),
        valid=np.ones((cells, cells, 1), np.bool_),
        weight=np.full((cells, cells, 1), 255, np.uint8),
        time_ms=period.start_ms,
        metadata=np.zeros(len(source.metadata), np.float32),
        period=period,
    )


def _random_values(source: Source, shape: tuple[int, ...], rng) -> np.ndarray:
    if source.classes:
        return rng.choice(np.array(source.classes), (*shape, 1))
    low = np.array([band.valid_min for band in source.bands], np.float32)
    high = np.array([band.valid_max for band in source.bands], np.float32)
    return low + (high - low) * rng.random((*shape, source.channels), np.float32)
