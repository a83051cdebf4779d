"""A trained model in ten lines of Python: `aef.load(RUN)`, then `embed` and `reconstruct`."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from aef.config import Config
from aef.data.batch import Batch
from aef.data.chips import Chip, read_chip
from aef.data.collate import Collator
from aef.data.contract_check import validate
from aef.data.sample import Target
from aef.data.standardizer import Standardizer
from aef.data.statistics import Statistics
from aef.mapping.device import find_device
from aef.mapping.errors import EmbeddingError
from aef.mapping.made_by import MadeBy
from aef.mapping.passes import Pass
from aef.mapping.support import (
    PeriodLike,
    RequestLike,
    as_period,
    as_periods,
    as_requests,
    group_requests,
    observed_span,
    require_support,
    support_at,
    warn_of_long,
    warn_of_sparse,
)
from aef.mapping.windows import Window, keep_inner, window_batches, windows_along
from aef.memory import return_free_memory
from aef.model.aef import AEF
from aef.one_line import one_line
from aef.run import WEIGHTS, Run, build_model, load_state, read_weights
from aef.sources import Registry
from aef.timecode import DAY_MS, Period, format_time

if TYPE_CHECKING:
    import xarray


@dataclass
class TrainedModel:
    """A network with everything that it needs to read chips: settings, source entries and statistics of its run.

    `version` is preset and step; `weights` the SHA-256 of its weights, where they come from a file.

    Example::

        model = aef.load("RUN")
        field = model.embed("chips/place.npz", ("2018-01-01", "2019-01-01"))    # xarray.DataArray (band, y, x)
        field.to_netcdf("place.nc")
    """

    network: AEF
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
        period: PeriodLike | Sequence[PeriodLike],
        *,
        leave_out: Sequence[str] = (),
        support: PeriodLike | None = None,
        inpaint: bool = False,
    ) -> xarray.DataArray:
        """The embedding field of a chip over one valid period, or over several at once.

        Args:
            chip: a chip or the file of one.
            period: ("2018-01-01", "2019-01-01"), "2018-01-01/2019-01-01", two dates or a `Period`; or a list of them.
                The months of a calendar year share their support, and one pass of the encoder serves them.
            leave_out: input sources to ignore.
            support: the frames to embed from, for every period; None: `aef.mapping.support` says which.
            inpaint: give pixels that no frame of the support observed the vector that the model infers from their
                surroundings, instead of NaN.

        Returns:
            (band, y, x) float32, or (period, band, y, x) for a list: unit vectors, with coordinates of pixel centres,
            CRS, and as attributes (of a list: as coordinates) the period, its support, the sources and numbers of
            frames used; the model's version and the hash of its weights.

        Raises:
            FileNotFoundError: there is no such chip.
            ChipError: the chip cannot be read, or breaks its contract (`aef.data.contract`).
            EmbeddingError: no frame lies in the support, or the period lies more than six months outside.
            ValueError: a period that is none, or does not end after it starts.

        Warns:
            LongPeriodWarning: a period is far longer than the supports that the model learnt from.
            UnobservedPeriodWarning: a period reaches more than six months beyond the observations.
            SparseSupportWarning: another support holds more than twice the frames.
        """
        from aef.mapping.files import as_data_array

        chip = self.open(chip)
        periods, single = as_periods(period)
        named = None if support is None else as_period(support)
        passes = self.passes(chip, periods, leave_out=leave_out, support=named)
        self.warn(chip, passes, leave_out, named=named is not None)
        vectors = self._collect(chip, passes, periods)
        serving = [next(pass_ for pass_ in passes if period in pass_.periods) for period in periods]
        if not inpaint:
            for field_, pass_ in zip(vectors, serving):
                field_[:, ~pass_.observed] = np.nan
        about = [pass_.about(period) for pass_, period in zip(serving, periods)]
        return as_data_array(vectors, chip, periods, about, self.made_by(leave_out, inpaint), single=single)

    def embed_array(
        self,
        chip: Chip,
        periods: Sequence[Period],
        *,
        leave_out: Sequence[str] = (),
        without_ms: Mapping[str, Sequence[int]] | None = None,
        support: Period | None = None,
    ) -> np.ndarray:
        """`embed` with `inpaint` and without coordinates: (period, band, y, x) float32.

        Args:
            without_ms: per source, frames that the encoder must not see.
        """
        passes = self.passes(chip, periods, leave_out=leave_out, without_ms=without_ms, support=support)
        return self._collect(chip, passes, periods, without_ms)

    def _collect(
        self,
        chip: Chip,
        passes: Sequence[Pass],
        periods: Sequence[Period],
        without_ms: Mapping[str, Sequence[int]] | None = None,
    ) -> np.ndarray:
        """(period, band, y, x) of all passes."""
        out = np.zeros((len(periods), self.config.model.embedding_dim, chip.height, chip.width), np.float32)
        for pass_ in passes:
            for rows, vectors in self.strips(chip, pass_, without_ms=without_ms):
                for index, period in enumerate(periods):
                    if period in pass_.periods:
                        out[index, :, rows] = vectors[pass_.periods.index(period)]
        return out

    # --- the steps of `embed`, for `aef.mapping.embed_files`, which holds a strip at a time ----------------------------

    @property
    def support_ms(self) -> int:
        """Length of the support periods that the model learnt from."""
        return round(self.config.data.support_days * DAY_MS)

    def made_by(self, leave_out: Sequence[str] = (), inpaint: bool = False) -> MadeBy:
        """What its fields' files say that they were made by. Raises EmbeddingError for sources that it does not encode."""
        left = set(self.inputs) - set(self.inputs_without(leave_out))
        return MadeBy(self.version, self.weights, tuple(name for name in self.inputs if name in left), inpaint)

    def passes(
        self,
        chip: Chip,
        periods: Sequence[Period],
        *,
        leave_out: Sequence[str] = (),
        without_ms: Mapping[str, Sequence[int]] | None = None,
        support: Period | None = None,
    ) -> list[Pass]:
        """The passes of the encoder that embed these periods: one per support. Raises EmbeddingError as `embed` does."""
        if not periods:
            raise EmbeddingError(f"chip {chip.id}: expected at least one period, found an empty list")
        inputs = self.inputs_without(leave_out)
        span = observed_span(chip, inputs)
        if support is not None:
            require_support(support, periods)
            warn_of_long(support, self.support_ms)
        groups: dict[Period, list[Period]] = {}
        for period in dict.fromkeys(periods):
            its_support = support or support_at(period, span, self.support_ms, chip.id)
            groups.setdefault(its_support, []).append(period)
        return [Pass.of(chip, shared, served, inputs, without_ms) for shared, served in groups.items()]

    def warn(self, chip: Chip, passes: Sequence[Pass], leave_out: Sequence[str] = (), *, named: bool = False) -> None:
        """Warn of periods far longer than those of training, and of sparse supports unless they were `named`."""
        for period in (period for pass_ in passes for period in pass_.periods):
            warn_of_long(period, self.support_ms)
        if not named:
            for pass_ in passes:
                warn_of_sparse(chip, pass_.support, pass_.periods, self.inputs_without(leave_out), self.support_ms)

    def strips(
        self,
        chip: Chip,
        pass_: Pass,
        *,
        without_ms: Mapping[str, Sequence[int]] | None = None,
        on_windows: Callable[[int, int], None] = lambda done, total: None,
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """The fields of one pass from north to south, a row of windows at a time: a large chip's need not fit in memory.

        Args:
            on_windows: called with the number of windows that are done, and of all.

        Yields:
            rows of the chip, and (period, band, rows, x) float32, in the order of the pass's periods.
        """
        across = windows_along(chip.width, self.config.data.chip_px)
        total = len(across) * len(windows_along(chip.height, self.config.data.chip_px))
        shape = (len(pass_.periods), self.config.model.embedding_dim)
        done, strip = 0, np.zeros(0, np.float32)
        for batch, seen in self._batches(chip, pass_.support, pass_.sources, without_ms, periods=pass_.periods):
            with torch.inference_mode():
                mean = self.network.embed(batch.to(self.device)).float().cpu().numpy()  # (Q, h, w, D)
            rows = _rows(batch)
            for sample, (vertical, horizontal) in enumerate(seen):
                if horizontal == across[0]:
                    strip = np.zeros((*shape, vertical.stop - vertical.start, chip.width), np.float32)
                within = Window(vertical.origin - vertical.start, 0, vertical.stop - vertical.start)
                for number, period in enumerate(pass_.periods):
                    keep_inner(strip[number], np.moveaxis(mean[rows[period, sample]], -1, 0), within, horizontal)
                done += 1
                if horizontal == across[-1]:
                    yield slice(vertical.start, vertical.stop), strip
            on_windows(done, total)

    # --- training through it -----------------------------------------------------------------------------------------

    def embed_windows(
        self, chip: Chip | str | os.PathLike, period: PeriodLike, *, support: PeriodLike | None = None
    ) -> Iterator[tuple[list[tuple[Window, Window]], Tensor]]:
        """The field of a chip over one period window by window, through which gradients reach `network`.

        For losses of your own: per batch a loss over the vectors, ``backward``, a step (docs/training.md, "Train through
        the model"). Without a loss take `embed`.

        Yields:
            of each window of a batch, its place along y and x: it gives the pixels ``[y.chip, x.chip]`` of the chip, which
            are its own ``[y.inner, x.inner]``; and their vectors (windows, h, w, D) float32, on `device`.

        Raises, warns:
            as `embed` does.
        """
        chip = self.open(chip)
        named = None if support is None else as_period(support)
        passes = self.passes(chip, [as_period(period)], support=named)
        self.warn(chip, passes, named=named is not None)
        (pass_,) = passes
        for batch, seen in self._batches(chip, pass_.support, pass_.sources, None, periods=pass_.periods):
            mean, rows = self.network.embed(batch.to(self.device)), _rows(batch)
            yield seen, mean[[rows[pass_.periods[0], sample] for sample in range(len(seen))]]

    # --- reconstruction ----------------------------------------------------------------------------------------------

    def reconstruct(
        self,
        chip: Chip | str | os.PathLike,
        source: str,
        requests: RequestLike | Sequence[RequestLike],
        *,
        leave_out: Sequence[str] = (),
        without_ms: Mapping[str, Sequence[int]] | None = None,
        standardized: bool = False,
        support: PeriodLike | None = None,
    ) -> np.ndarray:
        """Decode a source at given times, each from the mean direction over its own valid period.

        Args:
            chip: a chip or the file of one.
            source: one of the model's decoded sources.
            requests: (time, valid period that holds it), or a list of them: a time is a date or epoch milliseconds, a
                period as for `embed`.
            leave_out: input sources to ignore.
            without_ms: per source, frames that the encoder must not see.
            standardized: give z-scores (logits of a categorical source) rather than the source's stored units.
            support: the frames to decode from, for every request; None: a year of observations around each period.

        Returns:
            (request, channel, y, x) float32 on the chip's 10 m grid, (channel, y, x) of one request that is in no list.
            Bands that training did not score are NaN.

        Raises:
            ChipError: as `embed`.
            EmbeddingError: the source is not decoded by this model, a time lies outside its period, or a named support
                holds no frame.
            ValueError: a time or a period that is none.
        """
        if source not in self.targets:
            raise EmbeddingError(f"source {source}: this model decodes {', '.join(self.targets)}")
        chip = self.open(chip)
        asked, single = as_requests(requests)
        for time_ms, period in asked:
            if not period.contains(time_ms):
                raise EmbeddingError(f"source {source}: {format_time(time_ms)} lies outside its period {period}")
        entry = self.registry[source]
        out = np.zeros((len(asked), entry.decoded_channels, chip.height, chip.width), np.float32)
        inputs = self.inputs_without(leave_out)
        periods = [period for _, period in asked]
        if support is None or not asked:
            groups = group_requests(periods, observed_span(chip, inputs), self.support_ms, chip.id)
        else:
            named = as_period(support)
            require_support(named, periods)
            Pass.of(chip, named, periods, inputs, without_ms)  # refuses a support without a frame
            groups = {named: list(range(len(asked)))}
        for frames_of, indices in groups.items():
            wanted = [self._target(chip, source, *asked[i]) for i in indices]
            for batch, seen in self._batches(chip, frames_of, inputs, without_ms, targets={source: wanted}):
                with torch.inference_mode():
                    decoded = self.network(batch.to(self.device)).reconstructions[source]  # (N, h, w, C)
                    if not standardized and not entry.classes:
                        decoded = Standardizer(entry, self.statistics, self.config.objective.clip_sigma).invert(decoded)
                pictures = np.moveaxis(decoded.float().cpu().numpy(), -1, 1)
                for item, picture in enumerate(pictures):
                    sample, number = divmod(item, len(indices))
                    keep_inner(out[indices[number]], picture, *seen[sample])
        out[:, ~self.scored(source)] = np.nan
        return out[0] if single else out

    def scored(self, source: str) -> np.ndarray:
        """Which channels of a decoded source training scored, (C,) bool: only those mean something when decoded."""
        entry = self.registry[source]
        if entry.classes:
            return np.ones(entry.decoded_channels, np.bool_)
        return np.array(entry.scored(self.config.objective.unscored_bands))

    def _target(self, chip: Chip, source: str, time_ms: int, period: Period) -> Target:
        """What asks the decoder for a time, with the metadata of the frame if the chip holds it; its values are never read."""
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

    # --- what the network reads --------------------------------------------------------------------------------------

    def read(self, path: str | os.PathLike) -> Chip:
        """A chip with what the model knows of it: other sources of the file are left alone. Raises ChipError."""
        return read_chip(path, self.registry, sources=(*self.inputs, *self.targets))

    def open(self, chip: Chip | str | os.PathLike) -> Chip:
        """A chip whose structure is as it must be, or one read from its file. Raises ChipError, TypeError."""
        if not isinstance(chip, Chip):
            if not isinstance(chip, str | os.PathLike):
                raise TypeError(f"chip: expected a Chip or the file of one, found {one_line(repr(chip), 60)}")
            return self.read(chip)
        known = {name: series for name, series in chip.sources.items() if name in (*self.inputs, *self.targets)}
        if known:  # else it is said what the model encodes
            validate(replace(chip, sources=known, labels={}), self.registry, file=f"chip {chip.id}", values=False)
        return chip

    def inputs_without(self, leave_out: Sequence[str]) -> tuple[str, ...]:
        """The sources that it encodes but for some. Raises EmbeddingError for one that it does not encode."""
        left = (leave_out,) if isinstance(leave_out, str) else leave_out
        if not isinstance(left, Collection):
            raise EmbeddingError(f"leave_out: expected names of sources, found {leave_out!r}")
        for name in left:
            if name not in self.inputs:
                raise EmbeddingError(f"cannot leave out {name!r}: the model encodes {', '.join(self.inputs)}")
        if not set(self.inputs) - set(left):
            raise EmbeddingError(
                f"cannot leave out every input of the model ({', '.join(self.inputs)}): none would be left"
            )
        return tuple(name for name in self.inputs if name not in left)

    def _batches(
        self,
        chip: Chip,
        support: Period,
        inputs: Sequence[str],
        without_ms: Mapping[str, Sequence[int]] | None,
        **asked,
    ) -> Iterator[tuple[Batch, list[tuple[Window, Window]]]]:
        """`window_batches` for this model, which is `asked` for periods or targets."""
        collate = Collator(self.registry, self.inputs, self.targets, text_dim=self.config.model.text_dim, views=1)
        side = self.config.data.chip_px
        yield from window_batches(collate, chip, support, inputs, side, without_ms=without_ms or {}, **asked)
        return_free_memory()


def _rows(batch: Batch) -> dict[tuple[Period, int], int]:
    """Where the field of a valid period and sample lies in a batch's output."""
    pairs = zip(batch.periods.tolist(), batch.period_segment.tolist())
    return {(Period(*period), segment): row for row, (period, segment) in enumerate(pairs)}


def load(path: str | os.PathLike, *, device: str | torch.device = "cpu") -> TrainedModel:
    """The trained model of a run folder, ready to embed.

    Args:
        device: "cpu", "cuda", "cuda:1", or "auto": a GPU where there is one.

    Raises:
        RunError: the folder is missing, foreign, partial or of a newer version of this software; there is no such device.
    """
    device = find_device(device)
    run = Run.read(path)
    weights = read_weights(run.path / WEIGHTS)
    network = build_model(run)
    load_state(network, weights.state, run.path / WEIGHTS)
    network.eval().to(device)
    return TrainedModel(
        network=network,
        config=run.config,
        registry=run.registry,
        statistics=run.statistics,
        inputs=run.inputs,
        targets=run.targets,
        version=f"{run.config.preset}@{weights.step}",
        weights=weights.sha256,
        device=device,
    )
