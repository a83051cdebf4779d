"""Everything that is said about a trained model's quality: withheld dates, few labels, health. One place, so that the
validation in the training loop, the report and the recorded tables measure the same things."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aef.data.chips import PIXEL_M, Chip, ChipFolder
from aef.data.on_demand import OnDemand
from aef.data.withheld import WithheldDates
from aef.evaluation.diagnostics import source_presence, spread
from aef.evaluation.few_shot import ProbeResult, judge_labels, shots_name, year_of
from aef.evaluation.probes import ProbeError
from aef.evaluation.reconstruction import WithheldTable, WithheldTask, add_model, add_naive
from aef.evaluation.series import NothingClearError
from aef.evaluation.stages import Progress, Stages
from aef.evaluation.tables import markdown_table, signed
from aef.mapping.trained_model import TrainedModel
from aef.run import WITHHELD
from aef.sources import Source
from aef.timecode import format_time

REFERENCE = "linear interpolation"
"""The naive predictor that model errors are divided by."""

PERIOD_DAYS = (8.0, 30.0, 120.0, 365.0)
MAIN_PERIOD_DAYS = 120.0
MOST_COLUMNS = 12
"""Places that have a column each in a printed table; of more only figures have each (`Judgement.figures`)."""
HEALTH_PLACES = 6
"""Places on which health is judged: each is embedded once more per input source."""


class JudgementError(ValueError):
    """What is asked for cannot be judged: unknown, or seen in training. One line."""


@dataclass(frozen=True)
class WithheldResult:
    """Errors on the withheld dates of one source, naive predictors and model rows in one table."""

    source: str
    table: WithheldTable

    @property
    def places(self) -> list[str]:
        """The places that have withheld dates."""
        return list(self.table.errors[REFERENCE])

    @property
    def dates(self) -> int:
        """Withheld dates of all places."""
        return sum(map(len, self.table.errors[REFERENCE].values()))

    @property
    def ratio(self) -> float:
        """The model's mean error, decoded from valid periods of 120 days, over that of the linear interpolation."""
        return self.table.mean(f"model, {MAIN_PERIOD_DAYS:g} d") / self.table.mean(REFERENCE)

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows of a printed table: a column per place, or the least and the greatest, with their places, of more than twelve."""
        few = len(self.places) <= MOST_COLUMNS
        head = ["predictor", "mean", *(self.places if few else ("least", "greatest"))]
        body = []
        for name in self.table.errors:
            errors = [(self.table.place(name, place), place) for place in self.places]
            of_places = [f"{error:.3f}" for error, _ in errors]
            extremes = [f"{error:.3f} ({place})" for error, place in (min(errors), max(errors))]
            body.append([name, f"{self.table.mean(name):.3f}", *(of_places if few else extremes)])
        return head, body


@dataclass(frozen=True)
class Judgement:
    """What is known about a model's quality, and in ``not_judged`` what is not, each with its reason."""

    withheld: list[WithheldResult] = field(default_factory=list)
    probes: list[ProbeResult] = field(default_factory=list)
    health: dict[str, float] = field(default_factory=dict)
    not_judged: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """Every table, one after the other."""
        parts = []
        for result in self.withheld:
            title = f"Withheld dates of {result.source}, {result.dates} in all"
            if len(result.places) > MOST_COLUMNS:
                title += f" at {len(result.places)} places"
            parts += [title, markdown_table(*result.rows())]
        for probes in self.probes:
            parts += [
                f"{probes.label}: {shots_name(probes.shots)}, {probes.classes} classes, {probes.units} fields",
                markdown_table(*probes.rows()),
            ]
            if probes.difference is not None:
                parts.append(f"embedding - best baseline: {signed(probes.difference, probes.interval)}")
        if self.health:
            parts.append(
                markdown_table(["health", "value"], [[name, f"{value:.3f}"] for name, value in self.health.items()])
            )
        if self.not_judged:
            parts.append("Not judged:\n\n" + "\n".join(f"- {line}" for line in self.not_judged))
        return "\n\n".join(parts)

    def figures(self) -> dict[str, Any]:
        """Every number, for a JSON file."""
        return {
            "withheld": {
                result.source: {
                    name: {"mean": result.table.mean(name), **{p: result.table.place(name, p) for p in result.places}}
                    for name in result.table.errors
                }
                for result in self.withheld
            },
            "probes": {
                probes.label: {name: scores.balanced_accuracy for name, (_, scores) in probes.scores.items()}
                for probes in self.probes
            },
            "health": self.health,
            "not_judged": self.not_judged,
        }


def mean_of_runs(figures: Sequence[Mapping[str, Any]]) -> str:
    """Errors on withheld dates over several runs' `Judgement.figures`: mean, least, most, and mean over linear's.

    Raises ValueError where the runs were not judged on the same predictors of the same sources.
    """
    judged = [{source: list(table) for source, table in of_run["withheld"].items()} for of_run in figures]
    if any(predictors != judged[0] for predictors in judged):
        raise ValueError(
            "runs to be averaged must decode the same sources with withheld dates, found "
            + "; ".join(", ".join(sources) or "none" for sources in judged)
        )
    parts = []
    for source, first in figures[0]["withheld"].items():
        linear, rows = first[REFERENCE]["mean"], []
        for name in first:
            errors = [of_run["withheld"][source][name]["mean"] for of_run in figures]
            mean = sum(errors) / len(errors)
            rows.append([name, *(f"{value:.3f}" for value in (mean, min(errors), max(errors), mean / linear))])
        head = ["predictor", "mean", "least", "most", f"mean / {REFERENCE}"]
        parts += [f"Withheld dates of {source}", markdown_table(head, rows)]
    return "\n\n".join(parts)


# --- withheld dates --------------------------------------------------------------------------------------------------


def withheld_tasks(
    model: TrainedModel, chips: Sequence[Chip], hidden: WithheldDates, judged: WithheldDates
) -> tuple[list[WithheldTask], list[str]]:
    """One task per decoded source that the list asks for at places that `chips` hold, and reasons why there are not more.

    A product coarser than the chip's grid is judged on its own pixels (20 m: 2 x 2), where the sides allow it; so are
    the bands of a product whose judged bands were all brought to the chip's grid from pixels of 20 m.
    """
    tasks, reasons = [], []
    listed = judged.dates()
    held = {n: (chip.place, set(chip.sources)) for n, chip in enumerate(chips) if chip.place in judged.places}
    for name in model.targets:
        holding = {n: place for n, (place, sources) in held.items() if name in sources}
        asked = any((place, source) in listed for place in holding.values() for source in (name, ""))
        if model.registry[name].time != "instant" or not asked:
            continue
        try:
            tasks.append(_task(model, OnDemand(list(holding), chips.__getitem__), name, hidden, judged))
        except JudgementError as reason:
            reasons.append(str(reason))
    return tasks, reasons


def _task(
    model: TrainedModel, holding: Sequence[Chip], name: str, hidden: WithheldDates, judged: WithheldDates
) -> WithheldTask:
    """The task of one decoded source. Raises JudgementError where it lacks judged frames at one of the places."""
    if name not in model.inputs:
        raise JudgementError(f"withheld dates of {name}, because only sources that the model encodes are judged")
    source = model.registry[name]
    scored = tuple(itertools.compress(source.band_names, model.scored(name)))
    bands = tuple(band for band in _observed_bands(holding, name, source.band_names) if band in scored)
    if not bands:
        places = _few(chip.place for chip in holding)
        raise JudgementError(
            f"withheld dates of {name}, because no band that training scored is observed at all of {places}"
        )
    task = WithheldTask(holding, source, hidden, judged, bands=bands, cell_px=_cell_px(holding, source, bands))
    try:
        _ = task.scale  # taken now: a source that nobody saw clear is not judged
    except NothingClearError as error:
        raise JudgementError(f"withheld dates of {name}, because there is {error}") from None
    # A place may have several chips, say of two years, of which one holds all its dates.
    dates: Counter[str] = Counter()
    for chip in holding:
        dates[chip.place] += len(task.frames(task.observed(chip))[1])
    if empty := [place for place, count in dates.items() if not count]:
        raise JudgementError(
            f"withheld dates of {name}, because the list names no frame of it, to the second, with a clear pixel at "
            f"{_few(empty)}"
        )
    return task


def _few(names: Iterable[str]) -> str:
    """The first three of some names."""
    known = sorted(set(names))
    return ", ".join(known[:3]) + " …" * (len(known) > 3)


def _observed_bands(chips: Sequence[Chip], name: str, bands: tuple[str, ...]) -> tuple[str, ...]:
    """Bands that every chip observes somewhere: a polarisation or resolution that a place lacks judges nobody."""
    seen = np.ones(len(bands), bool)
    for chip in chips:
        seen &= np.broadcast_to(chip.sources[name].valid.any(axis=(0, 2, 3)), len(bands))
    return tuple(band for band, everywhere in zip(bands, seen) if everywhere)


def _cell_px(chips: Sequence[Chip], source: Source, bands: Sequence[str]) -> int:
    """Pixels of the chip's grid along a pixel of the product: of its native resolution, or 2 where the values say so."""
    native = round(source.native_resolution_m / PIXEL_M)
    if native > 1 and all(c.height % native == 0 and c.width % native == 0 for c in chips):
        return native
    index = [source.band_names.index(band) for band in bands]
    return 2 if all(_repeats(chip.sources[source.name].values[:, index], 2) for chip in chips) else 1


def _repeats(values: np.ndarray, cell: int) -> bool:
    """Whether (T, B, H, W) values are the same within every cell of cell × cell pixels; NaN is one value."""
    height, width = values.shape[2:]
    if height % cell or width % cell:
        return False
    blocks = np.nan_to_num(values).reshape(*values.shape[:2], height // cell, cell, width // cell, cell)
    return bool((blocks == blocks[:, :, :, :1, :, :1]).all())


def judge_withheld(
    model: TrainedModel,
    task: WithheldTask,
    *,
    period_days: Sequence[float] = PERIOD_DAYS,
    on_place: Callable[[], None] = lambda: None,
) -> WithheldResult:
    """Naive predictors first, then the model, on the same pixels of the same frames."""
    naive, ours = WithheldTable(), WithheldTable()
    for chip in task.chips:
        series = task.scale.apply(task.observed(chip))
        add_naive(naive, task, series)
        add_model(ours, task, model, chip, series, period_days)
        on_place()
    return WithheldResult(task.source.name, WithheldTable({**naive.errors, **ours.errors}))


# --- health ----------------------------------------------------------------------------------------------------------


def judge_health(
    model: TrainedModel,
    chips: Sequence[Chip],
    *,
    most_places: int | None = None,
    stages: Stages | None = None,
) -> dict[str, float]:
    """Norm, uniformity, effective rank, variance between places, and the balanced accuracy of "was source X among the
    inputs?" per source, within places where too few count to split by place
    (`aef.evaluation.diagnostics.presence_split`). Of a place with several chips, say of two years, the first is taken:
    the same ground twice would look like a collapse."""
    first: dict[str, int] = {}
    for index, place in enumerate(chip.place for chip in chips):
        first.setdefault(place, index)
        if len(first) == most_places:
            break
    chips, stages = OnDemand(list(first.values()), chips.__getitem__), stages or Stages()
    stages.begin("health", len(chips) * (1 + len(model.inputs)))
    fields = list(stages.each(model.embed_array(chip, [year_of(model, chip)])[0] for chip in chips))
    presence = source_presence(model, chips, fields, lambda chip: year_of(model, chip), on_chip=stages.step)
    figures = spread(fields)
    figures.update({f"presence of {name}": accuracy for name, accuracy in presence.items()})
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def judge(
    model: TrainedModel,
    chips: Sequence[Chip],
    *,
    withheld: WithheldDates | None = None,
    judged: WithheldDates | None = None,
    held_out: Sequence[Chip] = (),
    period_days: Sequence[float] = PERIOD_DAYS,
    shots: int = 10,
    trials: int = 20,
    health_places: int = HEALTH_PLACES,
    progress: Progress = lambda done, total, what: None,
) -> Judgement:
    """All of it, as far as the data allow: dates withheld at `chips`, labels of the `held_out` places, health of
    either; what the data do not allow is in ``not_judged`` with its reason. Chips are gone through several times and
    one is in memory at a time, where `chips` and `held_out` hold none themselves (`aef.data.on_demand`). ``progress``
    hears of one stage after the other, each with steps of its own (`aef.evaluation.stages`)."""
    tasks, missing = _all_withheld(model, chips, withheld, judged or withheld)
    names = list(dict.fromkeys(name for chip in held_out for name in chip.labels))
    stages, results, probes = Stages(progress), [], []
    for task in tasks:
        stages.begin(f"withheld dates of {task.source.name}", len(task.chips))
        results.append(judge_withheld(model, task, period_days=period_days, on_place=stages.step))
    if not held_out:
        missing.append("labels, because no chip is of a place that the run held out (data.held_out_places)")
    elif not names:
        missing.append(f"labels, because {_few(chip.place for chip in held_out)} carry none")
    for label in names:
        try:
            probes.append(judge_labels(model, held_out, label, shots=shots, trials=trials, stages=stages))
        except ProbeError as error:
            missing.append(f"{error}")
    health = judge_health(model, held_out or chips, most_places=health_places, stages=stages)
    return Judgement(withheld=results, probes=probes, health=health, not_judged=missing)


def _all_withheld(
    model: TrainedModel,
    chips: Sequence[Chip],
    hidden: WithheldDates | None,
    judged: WithheldDates | None,
) -> tuple[list[WithheldTask], list[str]]:
    """One task by source, and reasons where there are none."""
    if hidden is None or judged is None:
        return [], ["withheld dates, because the run withheld none (data.withheld)"]
    if not judged.places & {chip.place for chip in chips}:
        return [], [
            f"withheld dates, because no chip is of a place of the list ({_few(judged.places)}) and not held out"
        ]
    tasks, reasons = withheld_tasks(model, chips, hidden, judged)
    if not tasks and not reasons:
        reasons = ["withheld dates, because the list names none of the sources that the model decodes"]
    return tasks, reasons


# --- what is to be read ---------------------------------------------------------------------------------------------


def chips_to_judge(
    folder: ChipFolder, held_out: Collection[str], judged: WithheldDates | None, health_places: int = HEALTH_PLACES
) -> tuple[list[int], list[int]]:
    """The chips of a folder that `judge` looks at: those of the dates' places, and those of the held-out places.

    Where none is held out, a chip of each of the first few other places is among the former, for health. All others stay
    unread.
    """
    unseen = folder.where(held_out)
    others = np.setdiff1d(np.arange(len(folder)), unseen)
    wanted = np.isin(others, folder.where(judged.places)) if judged is not None else np.zeros(len(others), np.bool_)
    if not len(unseen):
        places = folder.places()
        first: dict[str | None, int] = {}
        for row, index in enumerate(others.tolist()):
            first.setdefault(places[index], row)
        wanted[list(first.values())[:health_places]] = True
    return others[wanted].tolist(), unseen.tolist()


# --- what the run has not seen ---------------------------------------------------------------------------------------


def own_dates(model: TrainedModel) -> Path | None:
    """The list of dates that a model's run withheld; None where it withheld none.

    Raises JudgementError where the list is gone: nobody can tell then what the run has seen.
    """
    listed = model.config.data.withheld
    if listed and not Path(listed).is_file():
        raise JudgementError(
            f"the list of dates that the run withheld, {listed}, is not there: put it back, or copy it to {WITHHELD} in the "
            "run folder"
        )
    return Path(listed) if listed else None


def require_unseen_dates(model: TrainedModel, chips: Sequence[Chip], judged: WithheldDates, own: Path | None) -> None:
    """Raises JudgementError naming the first frames of `judged` that the run could train on.

    Those are frames of its training places that its `own` list does not withhold.
    """
    twin_ms = model.config.data.twin_ms
    withheld = WithheldDates({}) if own is None else WithheldDates.read(own, twin_ms=twin_ms)
    exact, seen = WithheldDates(judged.dates(), twin_ms=2000), []
    trained_on = frozenset(model.statistics.places)
    for chip in chips:
        for name in model.inputs if chip.place in trained_on else ():
            times = chip.sources[name].time_ms if name in chip.sources else None
            if times is not None:
                free = exact.frames(chip.place, name, times) & ~withheld.frames(chip.place, name, times)
                seen += [f"{chip.place} {name} {format_time(int(t))}" for t in times[free]]
    if seen:
        raise JudgementError(
            f"{len(seen)} frames of the list were free for the run to train on ({', '.join(seen[:2])}{' …' * (len(seen) > 2)}): "
            "judge dates that it withheld, or train with this list (data.withheld)"
        )
