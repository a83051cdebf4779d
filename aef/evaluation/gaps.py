"""Where nothing was observed: inside a gap of 90 days, and up to six months beyond the support.

Only the synthetic Earth knows what was there. Its scenes are drawn for two years; a model and its rivals get the frames
of the first, for the gap without those of any source inside it, and are compared with the clear, noiseless view of the
scene (`aef.data.synthetic.truth.clear_view`). Crops rotate with the year, so that nobody can know all of the second.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aef.data.chips import Chip, SourceSeries
from aef.data.on_demand import OnDemand
from aef.data.synthetic.earth import SOURCES, Earth, is_synthetic, place_name, render_chip
from aef.data.synthetic.landscape import Scene
from aef.data.synthetic.truth import SENSORS, clear_view
from aef.evaluation.predictors import Predictor, harmonic, linear, persistence, temporal_mean
from aef.evaluation.proof import ProofError, require_unseen
from aef.evaluation.reconstruction import WithheldTable, l1
from aef.evaluation.series import ClearSeries, Scale, clear_series, to_scale
from aef.evaluation.tables import markdown_table, signed
from aef.mapping.support import observed_span
from aef.mapping.trained_model import TrainedModel
from aef.timecode import DAY_MS, Period

GAP_DAYS = 90
MARGIN_DAYS = 45
"""Least observed time on either side of a gap."""

PERIOD_DAYS = 30
"""Length of a valid period; inside a gap it is cut to the gap."""

GAP_STEP_DAYS = 10
BEYOND_DAYS = (15, 45, 75, 105, 135, 165)
"""Middles of the valid periods after the last frame, one a month: the last ends 180 days after it."""

PERSISTENCE, MODEL = "persistence (last clear observation)", "model"
RIVALS: dict[str, Callable[[ClearSeries], Predictor]] = {
    "the pixel's temporal mean": temporal_mean,
    PERSISTENCE: persistence,
    "linear interpolation": linear,
    "harmonic fit per pixel": harmonic,
}
INSIDE, BEYOND = f"inside the {GAP_DAYS}-day gap", "beyond the support, all months"


@dataclass(frozen=True)
class Question:
    """What was there at some times? ``chip`` holds what may be known; ``groups`` (T,) names the table of each time."""

    chip: Chip
    times_ms: np.ndarray
    periods: tuple[Period, ...]
    groups: tuple[str, ...]


@dataclass(frozen=True)
class GapResult:
    """Errors of a model and its rivals by group of times: inside the gap, each month beyond, all months beyond."""

    source: str
    places: int
    tables: dict[str, WithheldTable]

    def difference(self, group: str, rival: str) -> tuple[float, tuple[float, float]]:
        """Model minus rival (negative: the model is better), and its 95 % interval from resampling places."""
        table = self.tables[group]
        paired = np.array([table.place(MODEL, p) - table.place(rival, p) for p in table.errors[MODEL]])
        drawn = np.random.default_rng(0).integers(0, len(paired), (2000, len(paired)))
        low, high = np.quantile(paired[drawn].mean(axis=1), [0.025, 0.975])
        return float(paired.mean()), (float(low), float(high))

    def markdown(self) -> str:
        """A table of errors, then the differences with their intervals."""
        head = ["predictor", *self.tables]
        rows = [[n, *(f"{t.mean(n):.3f}" for t in self.tables.values())] for n in (*RIVALS, MODEL)]
        parts = [
            f"{self.source} at {self.places} synthetic places: L1 of z-scores against the clear truth, mean over times, then "
            "over places.",
            markdown_table(head, rows),
        ]
        for group in (INSIDE, BEYOND):
            against = [f"{rival}: {signed(*self.difference(group, rival))}" for rival in RIVALS]
            parts.append(f"Model minus, {group} (negative is better): " + "; ".join(against) + ".")
        return "\n\n".join(parts)

    def figures(self) -> dict[str, Any]:
        """Every number, for a JSON file."""

        def numbers(group: str) -> dict[str, Any]:
            differences = {name: self.difference(group, name) for name in RIVALS}
            return {
                name: {"difference": value, "interval": list(interval)}
                for name, (value, interval) in differences.items()
            }

        return {
            "source": self.source,
            "places": self.places,
            "l1": {group: {n: table.mean(n) for n in table.errors} for group, table in self.tables.items()},
            "model_minus": {group: numbers(group) for group in self.tables},
        }


def judge_gaps(
    model: TrainedModel,
    source: str = "sentinel2",
    *,
    places: int = 12,
    seed: int = 1,
    chip_px: int = 32,
    progress: Callable[[str], None] = lambda place: None,
) -> GapResult:
    """Ask a model and its rivals what an optical source would have seen where nothing was observed.

    Args:
        model: trained on a synthetic Earth of another seed.
        source: ``sentinel2`` or ``landsat``, decoded by the model.
        places, seed, chip_px: of the synthetic Earth that is judged.
        progress: called with each finished place.

    Raises:
        ProofError: the source has no truth or is not decoded, there are fewer than two places, they were training
            places, or no training place was synthetic.
        SyntheticError: the Earth cannot be made as asked.
    """
    if source not in SENSORS or source not in model.targets:
        raise ProofError(
            f"source {source}: expected one of {', '.join(SENSORS)}, of which the truth is known on a synthetic Earth, that "
            f"the model decodes; it decodes {', '.join(model.targets)}"
        )
    if places < 2:
        raise ProofError(f"expected at least two places, found {places}")
    _require_synthetic(model)
    names = tuple(dict.fromkeys(n for n in (*model.inputs, source) if n in SOURCES))
    earth = Earth(seed, chip_px, years=2, sources=names)
    require_unseen(model, (place_name(seed, place) for place in range(places)))

    def drawn(place: int) -> tuple[Scene, Chip]:
        scene = earth.scene(place)
        return scene, _first_year(scene, render_chip(scene, names))

    entry, scored = model.registry[source], model.scored(source)
    # A place is drawn again whenever it is asked for, so that many fill no memory.
    scale = Scale.of(OnDemand(range(places), lambda place: clear_series(drawn(place)[1], entry)))
    tables = {INSIDE: WithheldTable(), BEYOND: WithheldTable()}
    for number in range(places):
        scene, chip = drawn(number)
        for question in (_gap(chip, number, seed), _beyond(chip, model.inputs)):
            truth = scale.standardize(to_scale(entry, clear_view(scene, source, question.times_ms)))[:, scored]
            for name, guesses in _answers(model, source, question, scale):
                for group, guess, view in zip(question.groups, guesses, truth):
                    error = l1(guess[scored], view, np.ones(view.shape[1:], bool))
                    tables.setdefault(group, WithheldTable()).add(name, chip.place, error)
                    if group != INSIDE:
                        tables.setdefault(BEYOND, WithheldTable()).add(name, chip.place, error)
        progress(chip.place)
    return GapResult(source, places, tables)


def _require_synthetic(model: TrainedModel) -> None:
    # Sensors, noise and seasons of the synthetic Earth are its own: errors there say nothing about a model of the real one.
    trained = model.statistics.places
    if trained and not any(map(is_synthetic, trained)):
        raise ProofError(
            f"expected a run that trained on synthetic places, whose truth is known; this one trained on {trained[0]}"
            f"{' …' * (len(trained) > 1)}: train one on `aef synthesize`"
        )


def _answers(
    model: TrainedModel, source: str, question: Question, scale: Scale
) -> Iterator[tuple[str, Sequence[np.ndarray]]]:
    entry = model.registry[source]
    seen = scale.apply(clear_series(question.chip, entry))
    for name, build in RIVALS.items():
        predict = build(seen)
        yield name, [predict(int(time_ms)) for time_ms in question.times_ms]
    requests = list(zip(question.times_ms.tolist(), question.periods))
    decoded = model.reconstruct(question.chip, source, requests)
    yield MODEL, list(scale.standardize(to_scale(entry, decoded)))


def _gap(chip: Chip, number: int, seed: int) -> Question:
    """The chip without any frame of 90 days, drawn anew for each place."""
    start, end = chip.span_ms
    days = (end - start) // DAY_MS
    first = int(np.random.default_rng((seed, number)).integers(MARGIN_DAYS, days - GAP_DAYS - MARGIN_DAYS))
    gap = Period(start + first * DAY_MS, start + (first + GAP_DAYS) * DAY_MS)
    times = gap.start_ms + np.arange(GAP_STEP_DAYS // 2, GAP_DAYS, GAP_STEP_DAYS) * DAY_MS
    half = PERIOD_DAYS * DAY_MS // 2
    periods = [Period(max(int(t) - half, gap.start_ms), min(int(t) + half, gap.end_ms)) for t in times]
    return Question(_without(chip, gap), times, tuple(periods), (INSIDE,) * len(times))


def _beyond(chip: Chip, inputs: Sequence[str]) -> Question:
    """The whole chip, and times after the last frame that the model reads; nobody sees a later one."""
    end, half = observed_span(chip, inputs).end_ms, PERIOD_DAYS * DAY_MS // 2
    if chip.span_ms[1] >= end:
        chip = _without(chip, Period(end, chip.span_ms[1] + 1))
    times = end + np.array(BEYOND_DAYS, np.int64) * DAY_MS
    periods = [Period(int(t) - half, int(t) + half) for t in times]
    groups = [f"beyond, month {month}" for month in range(1, len(times) + 1)]
    return Question(chip, times, tuple(periods), tuple(groups))


def _first_year(scene: Scene, chip: Chip) -> Chip:
    year = Period(scene.weather.start_ms, int(scene.weather.year_starts[1]))
    return _without(chip, Period(year.end_ms, year.end_ms + 2 * year.length_ms))


def _without(chip: Chip, hidden: Period) -> Chip:
    """A chip without the frames that touch a period."""

    def rest(series: SourceSeries) -> SourceSeries:
        if series.time_ms is None:
            return series
        last = series.time_ms if series.time_end_ms is None else series.time_end_ms - 1
        keep = (last < hidden.start_ms) | (series.time_ms >= hidden.end_ms)
        fields = ("values", "valid", "weight", "time_ms", "time_end_ms", "metadata", "row", "col")
        arrays = {name: getattr(series, name) for name in fields}
        return dataclasses.replace(
            series,
            **{name: array[keep] for name, array in arrays.items() if array is not None and len(array) == len(keep)},
        )

    return dataclasses.replace(chip, sources={name: rest(series) for name, series in chip.sources.items()})
