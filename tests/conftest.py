"""Fixtures that every room shares: random samples and packed batches with a little structure to learn.

A place is a smooth random landscape whose seasons differ from pixel to pixel; every source sees it through its own
random mixing matrix. Values are stored so that their transform lies within ± 6 and is mostly of order 1, hence
`Statistics.identity` fits them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from aef.data.batch import Batch
from aef.data.collate import Collator
from aef.data.sample import Frames, Sample, Target, Text
from aef.sources import BUILT_IN, Registry, Source
from aef.timecode import DAY_MS, SUPPORT_MS, Period, parse_time

# The same examples on every run and machine: a suite that fails must fail again. Search wider with a larger
# `max_examples` and `derandomize=False`. The kernels' tests need no hypothesis, and run on GPU machines without it.
with contextlib.suppress(ModuleNotFoundError):
    import hypothesis

    hypothesis.settings.register_profile("repeatable", derandomize=True, database=None)
    hypothesis.settings.load_profile("repeatable")

SUPPORT = Period(parse_time("2019-03-11"), parse_time("2019-03-11") + SUPPORT_MS)
FRAMES = {"sentinel2": 5, "sentinel1": 3, "landsat": 2}
LATENT = 4


class _Place:
    """A landscape: LATENT smooth maps, each with its own amplitude and phase of the season."""

    def __init__(self, rng: np.random.Generator, side_px: int) -> None:
        y, x = np.meshgrid(*[np.linspace(0, 1, side_px)] * 2, indexing="ij")
        wave = rng.uniform(0.5, 2.5, (LATENT, 2, 1, 1))
        self.maps = np.sin(2 * np.pi * (wave[:, 0] * y + wave[:, 1] * x + rng.uniform(0, 1, (LATENT, 1, 1))))
        self.phase = rng.uniform(0, 1, LATENT)

    def at(self, time_ms: int) -> np.ndarray:
        """The landscape at one time, (h, w, LATENT)."""
        year = (time_ms - SUPPORT.start_ms) / SUPPORT_MS
        season = 0.6 + 0.4 * np.cos(2 * np.pi * (year - self.phase))
        return (self.maps * season[:, None, None]).transpose(1, 2, 0)


def _observe(source: Source, place: _Place, time_ms: int, rng: np.random.Generator, side_px: int) -> np.ndarray:
    """One frame as it would be stored, (side, side, C) float32; a side below the crop's is an average over cells."""
    view = np.random.default_rng(sum(source.name.encode())).normal(size=(LATENT, source.channels))
    latent = place.at(time_ms)
    cell = latent.shape[0] // side_px
    latent = latent.reshape(side_px, cell, side_px, cell, LATENT).mean((1, 3))
    z = latent @ view + 0.1 * rng.normal(size=(side_px, side_px, source.channels))
    if source.classes:
        index = np.clip(np.round(z[..., :1] * 2 + 4), 0, len(source.classes) - 1).astype(int)
        return np.asarray(source.classes)[index].astype(np.float32)
    return np.stack([_store(band.transform, z[..., i]) for i, band in enumerate(source.bands)], -1).astype(np.float32)


def _store(transform, z: np.ndarray) -> np.ndarray:
    if transform.kind == "log":  # a logarithm of reflectance lies in 0…1
        return np.expm1(10 * np.clip(0.6 + 0.15 * z, 0.05, 1)) / transform.scale
    if transform.kind == "db":
        return 10 ** ((z - transform.offset) / transform.scale)
    return (z - transform.offset) / transform.scale


def _frames(source: Source, place: _Place, times: np.ndarray, rng: np.random.Generator, side_px: int) -> Frames:
    values = np.stack([_observe(source, place, int(t), rng, side_px) for t in times])
    valid = rng.random(values.shape) > 0.1
    return Frames(values, valid, times)


def _times(rng: np.random.Generator, count: int) -> np.ndarray:
    days = np.sort(rng.choice(365 * 24, size=count, replace=False))
    return SUPPORT.start_ms + days.astype(np.int64) * (DAY_MS // 24)


def _period_around(rng: np.random.Generator, time_ms: int) -> Period:
    before, after = rng.integers(5, 120, 2)
    return Period(time_ms - int(before) * DAY_MS, time_ms + int(after) * DAY_MS)


def _target(source: Source, place: _Place, rng: np.random.Generator, side_px: int) -> Target:
    time_ms = int(_times(rng, 1)[0])
    side = 1 if source.grid == "native" else side_px
    density = 0.1 if source.grid == "points" else 0.9
    valid = rng.random((side, side, 1)) < density
    valid[0, 0] = True
    metadata = rng.uniform(-180, 180, len(source.metadata)).astype(np.float32)
    if len(metadata) and rng.random() < 0.3:
        metadata[0] = np.nan
    return Target(
        values=_observe(source, place, time_ms, rng, side),
        valid=valid,
        weight=rng.integers(1, 256, (side, side, 1)).astype(np.uint8),
        time_ms=time_ms,
        metadata=metadata,
        period=_period_around(rng, time_ms),
    )


def build_samples(
    count: int = 2,
    *,
    side_px: int = 16,
    frames: Mapping[str, int] = FRAMES,
    targets: Sequence[str] = tuple(BUILT_IN),
    targets_per_source: int = 1,
    text_dim: int = 0,
    seed: int = 0,
    registry: Registry = BUILT_IN,
) -> list[Sample]:
    """`count` samples of as many places. The student keeps every other frame of each source."""
    samples = []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        place = _Place(rng, side_px)
        teacher = {
            name: _frames(registry[name], place, _times(rng, number), rng, side_px)
            for name, number in frames.items()
            if number
        }
        student = {name: Frames(f.values[::2], f.valid[::2], f.time_ms[::2]) for name, f in teacher.items()}
        texts: tuple[Text, ...] = ()
        if text_dim:
            row, col = rng.integers(0, side_px, 2)
            vector = rng.normal(size=text_dim).astype(np.float32)
            period = _period_around(rng, SUPPORT.start_ms + SUPPORT_MS // 2)
            texts = (Text(vector, int(row), int(col), 1.0, period, index),)
        samples.append(
            Sample(
                id=f"place{index}/2019",
                place=f"place{index}",
                global_index=index,
                support=SUPPORT,
                side_px=side_px,
                teacher=teacher,
                student=student,
                targets={
                    name: [_target(registry[name], place, rng, side_px) for _ in range(targets_per_source)]
                    for name in targets
                },
                consistency_period=_period_around(rng, SUPPORT.start_ms + SUPPORT_MS // 3),
                texts=texts,
            )
        )
    return samples


def collate(
    samples: Sequence[Sample],
    *,
    inputs: Sequence[str] = tuple(FRAMES),
    targets: Sequence[str] = tuple(BUILT_IN),
    registry: Registry = BUILT_IN,
    **options,
) -> Batch:
    """Pack samples; `options` are those of `Collator` (text_dim, key, frame_bucket, views)."""
    return Collator(registry, inputs, targets, **options)(samples)


@pytest.fixture
def make_samples():
    """`make_samples(count=2, side_px=16, frames={...}, targets=(...), targets_per_source=1, text_dim=0, seed=0)`."""
    return build_samples


@pytest.fixture
def pack():
    """`pack(samples, inputs=(...), targets=(...), text_dim=1, key=(0, 0), frame_bucket=0, views=2)` → `Batch`."""
    return collate


@pytest.fixture
def make_batch():
    """`make_batch(count, **build_samples options, **Collator options)` → `Batch`: both of the above in one."""

    def build(count: int = 2, *, inputs=tuple(FRAMES), targets=tuple(BUILT_IN), text_dim=0, registry=BUILT_IN, **rest):
        sampling = {key: rest.pop(key) for key in ("side_px", "frames", "targets_per_source", "seed") if key in rest}
        samples = build_samples(count, targets=targets, text_dim=text_dim, registry=registry, **sampling)
        return collate(samples, inputs=inputs, targets=targets, text_dim=text_dim, registry=registry, **rest)

    return build


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The run folder of an untrained `tiny` model at step 7: Sentinel-2 and -1 in, elevation out as well."""
    import torch

    from aef.config import TINY
    from aef.data.statistics import Statistics
    from aef.run import Run, build_model, write_weights

    inputs = ("sentinel2", "sentinel1")
    targets = (*inputs, "glo30")
    folder = tmp_path_factory.mktemp("tiny_run")
    run = Run(folder, TINY, BUILT_IN, Statistics.identity(BUILT_IN, targets), inputs, targets)
    run.write()
    torch.manual_seed(0)
    write_weights(folder / "model.safetensors", build_model(run).state_dict(), step=7)
    return folder
