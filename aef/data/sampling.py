"""From a chip to one training sample: support, crop, targets, periods, frame budget, student (paper sections S1-S2.3).

The order is the paper's (S2.1-S2.3): targets are drawn from the full support and leave the input with
their twins, then the input is thinned to its frame budget, then the student loses sources and frames. Every choice is a
setting of `DataConfig` or an entry of the source registry; `docs/data.md` gives the reasons.

Randomness is keyed by (seed, epoch, sample id): a sample does not depend on the worker, the rank or its companions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from aef.config import DataConfig
from aef.data.chips import PIXEL_M, Chip, ChipError, SourceSeries
from aef.data.contract import grid_position
from aef.data.crop import Crop, cut_native, cut_points, points_inside
from aef.data.periods import PeriodLaw, TargetTime, draw_shared, draw_support, overlap
from aef.data.sample import Frames, Sample, Target, Text
from aef.data.withheld import WithheldDates, near
from aef.hashing import stable_hash
from aef.sources import Registry, Source
from aef.timecode import DAY_MS, Period

LINE_GAP_PX = (0.5, 2.0)
"""Width of the Sentinel-1 line gap (paper S1)."""

TextVectors = Callable[[str], np.ndarray | None]
"""A text → the frozen tower's vector (D,), or None where it was never encoded."""

DROP, FORECAST, BACKCAST = range(3)


@dataclass
class _Candidates:
    """Frames of one source that a sample may use: their indices in the series, their times and how clear they are."""

    source: Source
    series: SourceSeries
    index: np.ndarray
    moment_ms: np.ndarray
    clear: np.ndarray

    def without(self, removed: np.ndarray) -> _Candidates:
        keep = ~removed
        return _Candidates(self.source, self.series, self.index[keep], self.moment_ms[keep], self.clear[keep])


@dataclass
class _Chosen:
    """A frame drawn as a target. ``held_in`` says that it had to stay in the input."""

    candidates: _Candidates
    at: int
    time: TargetTime
    held_in: bool = False


class Sampler:
    """Draws samples from chips.

    Args:
        config: every choice.
        registry: sources of the chips.
        inputs, targets: names to encode and to decode; by default the registry's input sources, and all.
        withheld: dates that no sample may contain.
        text: vectors of the frozen text tower; without it samples carry no text.
    """

    def __init__(
        self,
        config: DataConfig,
        registry: Registry,
        *,
        inputs: Iterable[str] | None = None,
        targets: Iterable[str] | None = None,
        withheld: WithheldDates | None = None,
        text: TextVectors | None = None,
    ) -> None:
        by_role = [name for name, source in registry.items() if source.role == "input"]
        self.config, self.registry, self.withheld, self.text = config, registry, withheld, text
        self.inputs = tuple(by_role if inputs is None else inputs)
        self.targets = tuple(registry if targets is None else targets)
        self.law = PeriodLaw.of(config)
        self._twin_ms = config.twin_ms

    def draw(self, chip: Chip, *, seed: int, epoch: int, global_index: int) -> Sample:
        """One sample of a chip.

        Raises:
            ChipError: the chip holds no frame of an input source, apart from withheld ones.
        """
        rng = np.random.default_rng([seed, epoch, stable_hash(chip.id, 64)])
        support = self._draw_support(rng, chip)
        crop = Crop.draw(rng, chip.height, chip.width, self.config.chip_px, self.config.crop_jitter)
        names = dict.fromkeys((*self.inputs, *self.targets))
        found = {name: self._candidates(chip, name, support, crop) for name in names if name in chip.sources}
        chosen = self._draw_targets(rng, found, support)
        remaining = self._remove_targets(rng, found, chosen)
        teacher, student, period, weight = self._draw_views(rng, remaining, support, crop)
        targets = self._cut_targets(rng, chip, chosen, support, crop)
        sample = Sample(
            id=chip.id,
            place=chip.place,
            global_index=global_index,
            epoch=epoch,
            support=support,
            side_px=crop.side_px,
            teacher=teacher,
            student=student,
            targets=targets,
            consistency_period=period,
            consistency_weight=weight,
            texts=self._draw_texts(rng, chip, support, crop),
        )
        return self._jitter(rng, sample)

    def _jitter(self, rng: np.random.Generator, sample: Sample) -> Sample:
        """All times of a sample moved together, so that its dates alone do not tell the place."""
        if not self.config.time_jitter_days:
            return sample
        return sample.moved(round(rng.uniform(-1, 1) * self.config.time_jitter_days * DAY_MS))

    # --- what there is -----------------------------------------------------------------------------------------------

    def _usable(self, chip: Chip, name: str, moment_ms: np.ndarray) -> np.ndarray:
        if self.withheld is None or self.registry[name].time != "instant":
            return np.ones(len(moment_ms), np.bool_)
        return ~self.withheld.frames(chip.place, name, moment_ms)

    def _draw_support(self, rng: np.random.Generator, chip: Chip) -> Period:
        times = []
        for name in self.inputs:
            series = chip.sources.get(name)
            moments = series.moment_ms if series is not None else None
            if moments is not None:
                times.append(moments[self._usable(chip, name, moments)])
        joined = np.sort(np.concatenate(times)) if times else np.zeros(0, np.int64)
        if not len(joined):
            raise ChipError(
                f"holds no frame of an input source ({', '.join(self.inputs)}), apart from withheld dates", file=chip.id
            )
        return draw_support(rng, joined, round(self.config.support_days * DAY_MS))

    def _candidates(self, chip: Chip, name: str, support: Period, crop: Crop) -> _Candidates:
        """The frames of a source that show anything of the crop within the support."""
        source, series = self.registry[name], chip.sources[name]
        moments = np.zeros(1, np.int64) if series.moment_ms is None else series.moment_ms
        wanted = self._usable(chip, name, moments)
        if source.time != "static" and not _is_map(source):
            wanted &= (moments >= support.start_ms) & (moments < support.end_ms)
        index = np.flatnonzero(wanted)
        # Looking at one run of frames, not at single ones, keeps the masks views.
        run = slice(int(index[0]), int(index[-1]) + 1) if len(index) else slice(0, 0)
        observed, clear = _clear(source, series, run, crop)
        index = index[observed[index - run.start]]
        return _Candidates(source, series, index, moments[index], clear[index - run.start])

    # --- targets -----------------------------------------------------------------------------------------------------

    def _draw_targets(
        self, rng: np.random.Generator, found: dict[str, _Candidates], support: Period
    ) -> dict[str, list[_Chosen]]:
        chosen = {}
        for name in self.targets:
            if name not in found:
                continue
            candidates = found[name]
            drawn = self._draw_frames(rng, candidates, support)
            chosen[name] = [_Chosen(candidates, at, _target_time(rng, candidates, at, support)) for at in drawn]
        return chosen

    def _draw_frames(self, rng: np.random.Generator, candidates: _Candidates, support: Period) -> list[int]:
        """Positions among the candidates of up to ``targets_per_source`` frames, none the twin of another."""
        odds = candidates.clear if self.config.target_by_clear_weight else (candidates.clear > 0).astype(np.float64)
        if _is_map(candidates.source):
            mapped = np.flatnonzero(odds)
            middle = (support.start_ms + support.end_ms) // 2
            nearest = np.argsort(np.abs(candidates.moment_ms[mapped] - middle), kind="stable")[:1]
            return [int(at) for at in mapped[nearest]]
        odds = odds.copy()
        drawn: list[int] = []
        wanted = self.config.targets_per_source
        if candidates.source.name in self.inputs:
            # Further targets may not take more than half of what there is to see of the source.
            wanted = min(wanted, max(1, len(odds) // 2))
        while len(drawn) < wanted and odds.sum() > 0:
            at = int(rng.choice(len(odds), p=odds / odds.sum()))
            drawn.append(at)
            odds[near(candidates.moment_ms, candidates.moment_ms[at : at + 1], self._twin_ms)] = 0
        return drawn

    def _remove_targets(
        self, rng: np.random.Generator, found: dict[str, _Candidates], chosen: dict[str, list[_Chosen]]
    ) -> dict[str, _Candidates]:
        """The input without its targets and their twins; a target that would empty it stays, and says so.

        Sources take turns in random order: where two hold a frame each, either is decoded from the other.
        """
        removed = {name: np.zeros(len(found[name].index), np.bool_) for name in self.inputs if name in found}
        left = sum(len(mask) for mask in removed.values())
        for name in rng.permutation(list(removed)).tolist():
            mask = removed[name]
            for target in chosen.get(name, ()):
                moments = found[name].moment_ms
                twins = near(moments, moments[target.at : target.at + 1], self._twin_ms) & ~mask
                target.held_in = int(twins.sum()) == left
                if not target.held_in:
                    mask |= twins
                    left -= int(twins.sum())
        return {name: found[name].without(mask) for name, mask in removed.items() if not mask.all()}

    def _cut_targets(
        self, rng: np.random.Generator, chip: Chip, chosen: dict[str, list[_Chosen]], support: Period, crop: Crop
    ) -> dict[str, list[Target]]:
        flat = [target for targets in chosen.values() for target in targets]
        times = [target.time for target in flat]
        periods = draw_shared(rng, self.law, support, times, self.config.periods_per_sample)
        cut: dict[str, list[Target]] = {}
        for target, period in zip(flat, periods):
            cut.setdefault(target.candidates.source.name, []).append(self._cut_target(chip, target, period, crop))
        return cut

    def _cut_target(self, chip: Chip, target: _Chosen, period: Period, crop: Crop) -> Target:
        source, series = target.candidates.source, target.candidates.series
        frame = int(target.candidates.index[target.at])
        weight = None
        if source.grid == "points":
            values, valid = cut_points(series, self._footprints(target, crop), crop)
        elif source.grid == "native":
            values, valid = cut_native(chip, source, series, frame, crop)
        else:
            take = slice(frame, frame + 1)
            values, valid = crop.cut(series.values, take)[0], crop.cut(series.valid, take)[0]
            weight = crop.cut(series.weight, take)[0] if series.weight is not None else None
        return Target(
            values=values,
            valid=valid,
            weight=np.full((*values.shape[:2], 1), 255, np.uint8) if weight is None else weight,
            time_ms=target.time.time_ms,
            metadata=_metadata(source, series, frame),
            period=period,
            item_weight=0.0 if target.held_in else 1.0,
        )

    def _footprints(self, target: _Chosen, crop: Crop) -> np.ndarray:
        """All footprints of the crop that belong to the same pass or month as the drawn one."""
        candidates = target.candidates
        together = near(candidates.moment_ms, candidates.moment_ms[target.at : target.at + 1], self._twin_ms)
        points = candidates.index[together]
        return points[points_inside(candidates.series, crop)[points]]

    # --- views -------------------------------------------------------------------------------------------------------

    def _draw_views(
        self, rng: np.random.Generator, remaining: dict[str, _Candidates], support: Period, crop: Crop
    ) -> tuple[dict[str, Frames], dict[str, Frames], Period, float]:
        """Teacher, student, the period that both summarise, and its weight: 0 where the student lost everything."""
        gap = _draw_line_gap(rng, crop.side_px) if self.config.line_gap else None
        share = self.config.frame_budget * (1 - self.config.budget_spread * rng.random())
        full = {name: self._cut_frames(rng, candidates, crop, gap, share) for name, candidates in remaining.items()}
        teacher = full
        if self.config.teacher_frame_drop:
            kept = {name: _take(frames, self._drop(rng, name, frames)) for name, frames in full.items()}
            teacher = {name: frames for name, frames in kept.items() if len(frames.time_ms)} or full
        odds = np.array(self.config.student_strategies)
        strategy = int(rng.choice(3, p=odds / odds.sum()))
        middle = (support.start_ms + support.end_ms) // 2
        student = {}
        for name, frames in full.items():
            if rng.random() < self.registry[name].source_drop:
                continue
            if strategy == DROP:
                keep = self._drop(rng, name, frames)
            else:
                keep = (frames.time_ms < middle) == (strategy == FORECAST)
            if keep.any():
                student[name] = _take(frames, keep)
        if strategy == DROP:
            period = self.law.draw_within(rng, support)
        else:
            half = (middle, support.end_ms) if strategy == FORECAST else (support.start_ms, middle)
            period = self.law.draw_within(rng, Period(*half), beyond=False)
        return teacher, student, period, float(bool(student))

    def _drop(self, rng: np.random.Generator, name: str, frames: Frames) -> np.ndarray:
        """Which frames survive: each is lost on its own with the source's ``frame_drop``."""
        return rng.random(len(frames.time_ms)) >= self.registry[name].frame_drop

    def _cut_frames(
        self, rng: np.random.Generator, candidates: _Candidates, crop: Crop, gap: np.ndarray | None, share: float
    ) -> Frames:
        budget = max(1, round(share * candidates.source.frame_budget))
        count = len(candidates.index)
        kept = np.sort(rng.choice(count, budget, replace=False)) if count > budget else np.arange(count)
        index = candidates.index[kept]
        values, valid = crop.cut(candidates.series.values, index), crop.cut(candidates.series.valid, index)
        if gap is not None and candidates.source.line_gap:
            valid = valid & ~gap[:, :, None]
        return Frames(values, valid, candidates.moment_ms[kept])

    # --- text --------------------------------------------------------------------------------------------------------

    def _draw_texts(self, rng: np.random.Generator, chip: Chip, support: Period, crop: Crop) -> tuple[Text, ...]:
        """Some of the texts that lie in the crop and hold within the support, over one period of their own."""
        if self.text is None or not chip.texts:
            return ()
        found = []
        for point in chip.texts:
            down, right = grid_position(chip.transform, point.x, point.y)
            row, col = int(np.floor(down)) - crop.row, int(np.floor(right)) - crop.col
            inside = 0 <= row < crop.side_px and 0 <= col < crop.side_px
            if inside and point.time_ms < support.end_ms and point.time_end_ms > support.start_ms:
                vector = self.text(point.text)
                if vector is not None:
                    found.append((point, row, col, vector))
        drawn = [found.pop(int(rng.integers(len(found)))) for _ in range(min(self.config.texts_per_sample, len(found)))]
        if not drawn:
            return ()
        period = support if self.config.text_period == "support" else self.law.draw_within(rng, support)
        return tuple(
            Text(
                vector=vector,
                row=row,
                col=col,
                radius_px=point.uncertainty_m / PIXEL_M,
                period=period,
                identity=stable_hash(point.text),
            )
            for point, row, col, vector in drawn
        )


def _is_map(source: Source) -> bool:
    """An interval source of which no overlap is asked stands for the support whatever its year: the nearest is used."""
    return source.time == "interval" and source.min_overlap == 0


def _target_time(rng: np.random.Generator, candidates: _Candidates, at: int, support: Period) -> TargetTime:
    """The time at which a target is decoded: its own, any for a static one, clamped to the support for a map."""
    source, series = candidates.source, candidates.series
    if source.time == "static":
        return TargetTime(int(rng.integers(support.start_ms, support.end_ms)))
    time_ms = int(candidates.moment_ms[at])
    if _is_map(source):
        return TargetTime(min(max(time_ms, support.start_ms), support.end_ms - 1))
    if source.time == "instant" or series.time_end_ms is None or series.time_ms is None:
        return TargetTime(time_ms)
    frame = candidates.index[at]
    interval = Period(int(series.time_ms[frame]), int(series.time_end_ms[frame]))
    # An interval on the rim of the support can be covered only as far as the support does.
    wanted = min(round(source.min_overlap * interval.length_ms), overlap(interval, support))
    return TargetTime(time_ms, interval, wanted)


def _metadata(source: Source, series: SourceSeries, frame: int) -> np.ndarray:
    if series.metadata is None:
        return np.full(len(source.metadata), np.nan, np.float32)
    return series.metadata[frame]


def _clear(source: Source, series: SourceSeries, frames: slice, crop: Crop) -> tuple[np.ndarray, np.ndarray]:
    """Whether each frame shows anything of the crop, (T,) bool, and its mean loss weight over the crop, (T,) in 0…1."""
    if source.grid == "points":
        inside = points_inside(series, crop)[frames] & series.valid[frames].any(axis=1)
        return inside, inside.astype(np.float64)
    if source.grid == "native":
        observed = np.asarray(series.valid[frames].any(axis=(1, 2, 3)))
        return observed, observed.astype(np.float64)
    (rows, cols), _ = crop.slices(*series.valid.shape[2:])
    bands = series.valid[frames, :, rows, cols]
    pixels = bands[:, 0] if bands.shape[1] == 1 else np.logical_or.reduce(bands, axis=1)
    observed = np.asarray(pixels.any(axis=(1, 2)))
    area = crop.side_px**2
    if series.weight is None:
        return observed, np.asarray(np.count_nonzero(pixels, axis=(1, 2)) / area)
    weight = series.weight[frames, 0, rows, cols] * pixels
    return observed, weight.sum(axis=(1, 2), dtype=np.int64) / (255 * area)


def _draw_line_gap(rng: np.random.Generator, side_px: int) -> np.ndarray:
    """A line of random position, angle and width across the crop, (side, side) bool.

    A line narrower than a pixel still hides the pixels nearest to it.
    """
    angle, width = rng.uniform(0, np.pi), max(rng.uniform(*LINE_GAP_PX), 1.0)
    y, x = rng.uniform(0, side_px, 2)
    centre = np.arange(side_px) + 0.5
    distance = (centre[None, :] - x) * np.cos(angle) + (centre[:, None] - y) * np.sin(angle)
    return np.abs(distance) <= width / 2


def _take(frames: Frames, keep: np.ndarray) -> Frames:
    """Some of the frames: a view where they follow each other."""
    index = np.flatnonzero(keep)
    run = len(index) and index[-1] - index[0] + 1 == len(index)
    at = slice(int(index[0]), int(index[-1]) + 1) if run else index
    return Frames(frames.values[at], frames.valid[at], frames.time_ms[at])
