"""A trained model in ten lines of Python: `aef.load(RUN)`, then `embed` and `reconstruct`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from aef.config import Config
from aef.data.chips import Chip, read_chip
from aef.data.collate import Batch, Collator, Sample, Target
from aef.data.standardizer import Standardizer
from aef.data.statistics import Statistics
from aef.mapping.field import (
    EmbeddingError,
    MadeBy,
    Window,
    cut_frames,
    group_by_support,
    observed_span,
    warn_of_long,
    windows,
)
from aef.model.aef import AEF
from aef.run import WEIGHTS, Run, build_model, load_state, read_weights
from aef.sources import Registry
from aef.timecode import DAY_MS, Period, format_time, parse_period

if TYPE_CHECKING:
    import xarray

PeriodLike = str | tuple[str, str] | Period
One = TypeVar("One", bound=PeriodLike)
"""What a list of periods holds."""

FRAME_PIXELS = 2**19
"""Frames x pixels encoded at once: about 0.3 GB at the width of `small`; a single window may exceed it."""


@dataclass
class TrainedModel:
    """A model with everything that it needs to read chips: settings, source entries and statistics of its run.

    `weights` is the SHA-256 of its weights, where they come from a file.

    Example::

        model = aef.load("RUN")
        field = model.embed("chips/place.npz", ("2018-01-01", "2019-01-01"))    # xarray.DataArray (band, y, x)
        field.to_netcdf("place.nc")
    """

    model: AEF
    config: Config
    registry: Registry
    statistics: Statistics
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    version: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    weights: str = ""

    # --- embedding ---------------------------------------------------------------------------------------------------

    def embed(
        self,
        chip: Chip | str | os.PathLike,
        period: PeriodLike | list[One],
        *,
        leave_out: Sequence[str] = (),
    ) -> xarray.DataArray:
        """The embedding field of a chip over one valid period, or over several at once.

        Args:
            chip: a chip or the file of one.
            period: ("2018-01-01", "2019-01-01"), "2018-01-01/2019-01-01" or a `Period`; or a list of them, which one
                pass of the encoder serves where they fit into one support of a year.
            leave_out: input sources to ignore.

        Returns:
            (band, y, x) float32, or (period, band, y, x) for a list: unit vectors, with coordinates of pixel centres,
            CRS, and as attributes the periods, the sources used, the model's version and the hash of its weights.

        Raises:
            EmbeddingError: the chip holds no input of the model, or a period lies more than six months outside.
            ValueError: a period that is none, or does not end after it starts.

        Warns:
            LongPeriodWarning: a period is far longer than the supports that the model learnt from.
        """
        from aef.mapping.files import as_data_array

        chip = self._open(chip)
        single = not isinstance(period, list)
        periods = [_period(one) for one in period] if isinstance(period, list) else [_period(period)]
        if not periods:
            raise EmbeddingError(f"chip {chip.id}: expected at least one period, found an empty list")
        for one in periods:
            warn_of_long(one, self.support_ms)
        vectors, used = self.embed_array(chip, periods, leave_out=leave_out)
        return as_data_array(vectors, chip, periods, used, self.made_by(leave_out), single=single)

    @property
    def support_ms(self) -> int:
        """Length of the support periods that the model learnt from."""
        return round(self.config.data.support_days * DAY_MS)

    def made_by(self, leave_out: Sequence[str] = ()) -> MadeBy:
        """What its fields' files say that they were made by. Raises EmbeddingError for sources that it does not encode."""
        left = set(self.inputs) - set(self._inputs(leave_out))
        return MadeBy(self.version, self.weights, tuple(name for name in self.inputs if name in left))

    def supports(
        self, chip: Chip, periods: Sequence[Period], leave_out: Sequence[str] = ()
    ) -> dict[Period, list[Period]]:
        """The supports whose frames embed these periods, with the periods of each. Raises EmbeddingError as `embed` does."""
        return group_by_support(periods, observed_span(chip, self._inputs(leave_out)), self.support_ms, chip.id)

    def embed_array(
        self,
        chip: Chip,
        periods: Sequence[Period],
        *,
        leave_out: Sequence[str] = (),
        without_ms: Mapping[str, Sequence[int]] | None = None,
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """`embed` without coordinates: (period, band, y, x) float32, and the sources that were encoded."""
        out = np.zeros((len(periods), self.config.model.embedding_dim, chip.height, chip.width), np.float32)
        used: set[str] = set()
        inputs = self._inputs(leave_out)
        for support, group in self.supports(chip, periods, leave_out).items():
            for batch, places in self._batches(chip, support, inputs, without_ms or {}, periods=tuple(group)):
                used.update(name for name, block in batch.frames.items() if (block.position >= 0).any())
                with torch.inference_mode():
                    mean = self.model.embed(batch.to(self.device)).float().cpu().numpy()  # (Q, h, w, D)
                rows = _rows(batch)
                for sample, (vertical, horizontal) in enumerate(places):
                    for period in group:
                        picture = np.moveaxis(mean[rows[period, sample]], -1, 0)
                        _keep(out[periods.index(period)], picture, vertical, horizontal)
        for repeated, period in enumerate(periods):
            out[repeated] = out[periods.index(period)]
        return out, tuple(name for name in self.inputs if name in used)

    # --- reconstruction ----------------------------------------------------------------------------------------------

    def reconstruct(
        self,
        chip: Chip,
        source: str,
        requests: Sequence[tuple[int, Period]],
        *,
        leave_out: Sequence[str] = (),
        without_ms: Mapping[str, Sequence[int]] | None = None,
        standardized: bool = False,
    ) -> np.ndarray:
        """Decode a source at given times, each from the mean direction over its own valid period.

        Args:
            chip: where.
            source: one of the model's decoded sources.
            requests: (time_ms, valid period that contains it) pairs.
            leave_out: input sources to ignore.
            without_ms: per source, frames that the encoder must not see.
            standardized: give z-scores (logits of a categorical source) rather than the source's stored units.

        Returns:
            (request, channel, y, x) float32 on the chip's 10 m grid.

        Raises:
            EmbeddingError: the source is not decoded by this model, or a time lies outside its period.
        """
        if source not in self.targets:
            raise EmbeddingError(f"source {source}: this model decodes {', '.join(self.targets)}")
        for time_ms, period in requests:
            if not period.contains(time_ms):
                raise EmbeddingError(f"source {source}: {format_time(time_ms)} lies outside its period {period}")
        entry = self.registry[source]
        out = np.zeros((len(requests), entry.decoded_channels, chip.height, chip.width), np.float32)
        inputs = self._inputs(leave_out)
        span = observed_span(chip, inputs)
        groups = group_requests([period for _, period in requests], span, self.support_ms, chip.id)
        for support, indices in groups.items():
            wanted = [self._target(chip, source, *requests[i]) for i in indices]
            for batch, places in self._batches(chip, support, inputs, without_ms or {}, targets={source: wanted}):
                with torch.inference_mode():
                    decoded = self.model(batch.to(self.device)).reconstructions[source]  # (N, h, w, C)
                    if not standardized and not entry.classes:
                        decoded = Standardizer(entry, self.statistics, self.config.objective.clip_sigma).invert(decoded)
                pictures = np.moveaxis(decoded.float().cpu().numpy(), -1, 1)
                for item, picture in enumerate(pictures):
                    sample, number = divmod(item, len(indices))
                    _keep(out[indices[number]], picture, *places[sample])
        return out

    def _target(self, chip: Chip, source: str, time_ms: int, period: Period) -> Target:
        entry, series = self.registry[source], chip.sources.get(source)
        metadata = np.full(len(entry.metadata), np.nan, np.float32)
        if series is not None and series.metadata is not None and series.time_ms is not None:
            known = np.flatnonzero(series.time_ms == time_ms)
            metadata = series.metadata[known[0]] if len(known) else metadata
        nothing = np.zeros((1, 1, entry.channels), np.float32)
        return Target(
            values=nothing,
            valid=np.zeros((1, 1, 1), bool),
            weight=np.zeros((1, 1, 1), np.uint8),
            time_ms=time_ms,
            metadata=metadata,
            period=period,
        )

    # --- batches -----------------------------------------------------------------------------------------------------

    def read(self, path: str | os.PathLike) -> Chip:
        """A chip with what the model knows of it: other sources of the file are left alone. Raises ChipError."""
        return read_chip(path, self.registry, sources=(*self.inputs, *self.targets))

    def _open(self, chip: Chip | str | os.PathLike) -> Chip:
        return chip if isinstance(chip, Chip) else self.read(chip)

    def _inputs(self, leave_out: Sequence[str]) -> tuple[str, ...]:
        for name in leave_out:
            if name not in self.inputs:
                raise EmbeddingError(f"cannot leave out {name!r}: the model encodes {', '.join(self.inputs)}")
        return tuple(name for name in self.inputs if name not in leave_out)

    def _batches(
        self,
        chip: Chip,
        support: Period,
        inputs: Sequence[str],
        without_ms: Mapping[str, Sequence[int]],
        periods: tuple[Period, ...] = (),
        targets: dict[str, list[Target]] | None = None,
    ):
        """Windows of the chip as batches of one view, with their places."""
        side = self.config.data.chip_px
        collate = Collator(self.registry, self.inputs, self.targets, text_dim=self.config.model.text_dim, views=1)
        places = list(product(windows(chip.height, side), windows(chip.width, side)))
        frames = sum(
            int(((t >= support.start_ms) & (t < support.end_ms)).sum())
            for t in (chip.sources[name].time_ms for name in inputs if name in chip.sources)
            if t is not None
        )
        at_once = max(1, FRAME_PIXELS // max(frames * side * side, 1))
        for first in range(0, len(places), at_once):
            group = places[first : first + at_once]
            samples = [
                Sample(
                    id=chip.id,
                    place=chip.place,
                    global_index=number,
                    support=support,
                    side_px=side,
                    teacher=self._frames(chip, support, inputs, without_ms, *place),
                    targets=targets or {},
                    consistency_period=periods[0] if periods else None,
                    periods=periods,
                )
                for number, place in enumerate(group)
            ]
            yield collate(samples), group

    def _frames(self, chip: Chip, support: Period, inputs, without_ms, vertical: Window, horizontal: Window):
        side = self.config.data.chip_px
        rows, columns = (slice(w.origin, w.origin + side) for w in (vertical, horizontal))
        found = {
            name: cut_frames(chip.sources[name], support, rows, columns, side, without_ms.get(name, ()))
            for name in inputs
            if name in chip.sources
        }
        return {name: frames for name, frames in found.items() if frames is not None}


def group_requests(periods: Sequence[Period], span: Period, length_ms: int, chip_id: str) -> dict[Period, list[int]]:
    """Indices of periods by the support that embeds them, supports moved to whole tenths so that few are needed.

    Neighbouring periods share a support: it stays within a twentieth of its length of being centred.
    """
    step = max(length_ms // 10, 1)
    groups: dict[Period, list[int]] = {}
    for index, period in enumerate(periods):
        (support,) = group_by_support([period], span, length_ms, chip_id)
        start = span.start_ms + round((support.start_ms - span.start_ms) / step) * step
        start = min(max(start, span.start_ms), max(span.end_ms - support.length_ms, span.start_ms))
        groups.setdefault(Period(start, start + support.length_ms), []).append(index)
    return groups


def _rows(batch: Batch) -> dict[tuple[Period, int], int]:
    pairs = zip(batch.periods.tolist(), batch.period_segment.tolist())
    return {(Period(*period), segment): row for row, (period, segment) in enumerate(pairs)}


def _keep(out: np.ndarray, picture: np.ndarray, vertical: Window, horizontal: Window) -> None:
    """Write the kept part of a window's picture (C, h, w) into a whole one (C, H, W)."""
    rows, columns = (slice(w.start, w.stop) for w in (vertical, horizontal))
    inner_rows, inner_columns = (slice(w.start - w.origin, w.stop - w.origin) for w in (vertical, horizontal))
    out[:, rows, columns] = picture[:, inner_rows, inner_columns]


def _period(value: PeriodLike) -> Period:
    if isinstance(value, Period):
        if value.length_ms <= 0:
            raise EmbeddingError(f"the period {value} must end after it starts")
        return value
    if isinstance(value, str) or (isinstance(value, tuple) and all(isinstance(date, str) for date in value)):
        return parse_period(value)
    raise EmbeddingError(f'expected a period like ("2018-01-01", "2019-01-01"), found {value!r}')


def load(path: str | os.PathLike, *, device: str | torch.device = "cpu") -> TrainedModel:
    """The trained model of a run folder, ready to embed.

    Raises:
        RunError: the folder is missing, foreign, partial or of a newer version of this software.
    """
    run = Run.read(path)
    weights = read_weights(run.path / WEIGHTS)
    model = build_model(run)
    load_state(model, weights.state, run.path / WEIGHTS)
    model.eval().to(device)
    return TrainedModel(
        model=model,
        config=run.config,
        registry=run.registry,
        statistics=run.statistics,
        inputs=run.inputs,
        targets=run.targets,
        version=f"{run.config.preset}@{weights.step}",
        weights=weights.sha256,
        device=torch.device(device),
    )
