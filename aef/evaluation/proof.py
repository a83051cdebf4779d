"""Are few labels enough on places that training never saw, and is that for the right reason?

The gain is the balanced accuracy of one of the embedding's feature sets (`aef.evaluation.embedding_features`; without a
name, one vector for the year) minus that of the best hand-made one. It must shrink when the chips are destroyed as they
are embedded, without retraining: frames that trade their dates leave no season, pixels that move away from their
neighbours (their labels with them) leave no field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from aef.data.chips import Chip
from aef.data.on_demand import OnDemand
from aef.evaluation.baselines import baseline_fields
from aef.evaluation.embedding_features import EMBEDDING, OURS, decoded_source, feature_sets
from aef.evaluation.few_shot import ProbeResult, compare, shots_name, year_of
from aef.evaluation.labels import labelled_pixels
from aef.evaluation.probes import bootstrap
from aef.evaluation.shuffles import pixel_order, put_back, shuffle_pixels, shuffle_time
from aef.evaluation.stages import Progress, Stages
from aef.evaluation.tables import markdown_table, signed
from aef.mapping.trained_model import TrainedModel
from aef.timecode import Period

SHOTS = (10, None)
MOST_PIXELS = 8_000
"""Labelled pixels that are probed at most; neighbours within a field add time, not certainty."""

INTACT, TIME, PIXELS = "as observed", "frames shuffled in time", "pixels shuffled across fields"


Tables = dict[str, np.ndarray]
"""Features (N, D) of the labelled pixels by name."""


class ProofError(ValueError):
    """There is nothing that could be proven; one line."""


@dataclass(frozen=True)
class Condition:
    """What happens to a chip before it is embedded, and how its fields come back onto the chip's pixels."""

    name: str
    change: Callable[[Chip, int], Chip]
    restore: Callable[[np.ndarray, int], np.ndarray]

    def restored(self, fields: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
        """Fields (D, h, w) by name, each on the chip's pixels."""
        return {name: self.restore(field, seed) for name, field in fields.items()}


CONDITIONS = (
    Condition(INTACT, lambda chip, seed: chip, lambda field, seed: field),
    Condition(TIME, shuffle_time, lambda field, seed: field),
    Condition(
        PIXELS, shuffle_pixels, lambda field, seed: put_back(field, pixel_order(field.shape[1], field.shape[2], seed))
    ),
)


@dataclass(frozen=True)
class Gain:
    """The lead of one of the embedding's feature sets over one baseline, with its 95 % interval over units."""

    baseline: str
    difference: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Proof:
    """Scores of one label by shots and condition; pixels, splits and shots are the same in all of them."""

    label: str
    places: int
    pixels: int
    results: dict[int | None, dict[str, ProbeResult]]

    def gain(self, shots: int | None, name: str = EMBEDDING) -> Gain:
        """The embedding minus the best baseline, on chips as they were observed."""
        return self._against(shots, name, INTACT, INTACT)

    def shuffled(self, shots: int | None, condition: str, name: str = EMBEDDING) -> tuple[Gain, Gain]:
        """What the embedding of shuffled chips leads by: over the best baseline of intact chips, and over that of the
        same shuffled chips."""
        return self._against(shots, name, condition, INTACT), self._against(shots, name, condition, condition)

    def removed(self, shots: int | None, condition: str, name: str = EMBEDDING) -> float | None:
        """Share of the gain that a shuffle removes, against the intact baseline; None where the gain's interval does
        not lie above 0: a share of a gain that may be none says nothing."""
        gain = self.gain(shots, name)
        if gain.interval[0] <= 0:
            return None
        return 1 - self.shuffled(shots, condition, name)[0].difference / gain.difference

    def _against(self, shots: int | None, name: str, condition: str, reference: str) -> Gain:
        ours, theirs = self.results[shots][condition], self.results[shots][reference]
        baseline = theirs.best_baseline
        assert baseline is not None
        scores, rival = ours.scores[name][1], theirs.scores[baseline][1]
        return Gain(baseline, scores.balanced_accuracy - rival.balanced_accuracy, bootstrap(scores, rival))

    def names(self, shots: int | None) -> list[str]:
        """The embedding's feature sets that were judged."""
        return [name for name in OURS if name in self.results[shots][INTACT].scores]

    @property
    def conditions(self) -> list[str]:
        """What was done to the chips, first nothing."""
        return list(next(iter(self.results.values())))

    def markdown(self) -> str:
        """A table per number of shots, each with its gains in words."""
        first = next(iter(next(iter(self.results.values())).values()))
        parts = [
            f"## {self.label}\n\n{first.classes} classes, {first.units} fields at {self.places} places that "
            f"training never read, {self.pixels} labelled pixels; split by field, {first.trials} splits; balanced "
            "accuracy of the better of ridge and kNN-3."
        ]
        for shots, by_condition in self.results.items():
            intact = by_condition[INTACT]
            head = [f"{shots_name(shots)}: features", "95 % interval", *self.conditions]
            rows = []
            for name, _, interval, _ in intact.rows()[1]:
                rows.append([name, interval, *(f"{by_condition[c].accuracy(name):.3f}" for c in self.conditions)])
            parts += [markdown_table(head, rows), *self._sentences(shots)]
        return "\n\n".join(parts)

    def _sentences(self, shots: int | None) -> list[str]:
        best = self.gain(shots).baseline
        lines = []
        for name in self.names(shots):
            gain = self.gain(shots, name)
            parts = [
                f"{name[0].upper()}{name[1:]} - best baseline ({best}): **{signed(gain.difference, gain.interval)}**"
            ]
            for condition in self.conditions[1:]:
                intact, same = self.shuffled(shots, condition, name)
                share = self.removed(shots, condition, name)
                words = "no gain to remove" if share is None else f"removes {share:.0%} of the gain"
                parts.append(
                    f"{condition}: {words}, {signed(intact.difference, intact.interval)} to that baseline, "
                    f"{signed(same.difference, same.interval)} to the best of shuffled chips ({same.baseline})"
                )
            lines.append("; ".join(parts) + ".")
        return lines

    def figures(self) -> dict[str, Any]:
        """Every number, for a JSON file."""
        first = next(iter(next(iter(self.results.values())).values()))
        return {
            "classes": first.classes,
            "units": first.units,
            "unit": "field",
            "places": self.places,
            "pixels": self.pixels,
            "trials": first.trials,
            "shots": {shots_name(shots): self._figures(shots) for shots in self.results},
        }

    def _figures(self, shots: int | None) -> dict[str, Any]:
        def numbers(gain: Gain) -> dict[str, Any]:
            return {"baseline": gain.baseline, "difference": gain.difference, "interval": list(gain.interval)}

        return {
            "balanced_accuracy": {
                condition: {name: result.accuracy(name) for name in result.scores}
                for condition, result in self.results[shots].items()
            },
            "gains": {
                name: {
                    **numbers(self.gain(shots, name)),
                    "shuffles": {
                        condition: {
                            "removed": self.removed(shots, condition, name),
                            "to_intact_baseline": numbers(self.shuffled(shots, condition, name)[0]),
                            "to_shuffled_baseline": numbers(self.shuffled(shots, condition, name)[1]),
                        }
                        for condition in self.conditions[1:]
                    },
                }
                for name in self.names(shots)
            },
        }


def require_unseen(model: TrainedModel, places: Iterable[str]) -> None:
    """Raises ProofError naming the first places that the model's statistics, hence its training, were taken over."""
    seen = sorted(set(places) & set(model.statistics.places))
    if seen:
        raise ProofError(
            f"{len(seen)} places were training places of the run ({', '.join(seen[:3])}{' …' if len(seen) > 3 else ''}): "
            "choose others, or hold them out (data.held_out_places)"
        )


def prove(
    model: TrainedModel,
    chips: Sequence[Chip],
    labels: Sequence[str] = (),
    *,
    shots: Sequence[int | None] = SHOTS,
    trials: int = 10,
    seed: int = 0,
    shuffles: bool = True,
    most_pixels: int = MOST_PIXELS,
    progress: Progress = lambda done, total, stage: None,
) -> list[Proof]:
    """Probe the embeddings of unseen places and every baseline, on intact and on shuffled chips.

    Args:
        model: a trained model.
        chips: places that it never saw; those without any of the labels have no part in it. They are gone through several
            times and one is in memory at a time, where the sequence holds none itself (`aef.data.on_demand`).
        labels: rasters to judge; empty: every one that a chip carries.
        shots: labelled pixels per class; None: all, up to 300.
        trials: splits of the units.
        seed: of the splits, of the pixels drawn and of the shuffles.
        shuffles: judge shuffled chips too; each chip is embedded three times instead of once.
        most_pixels: labelled pixels that are probed.
        progress: hears of one stage after the other.

    Raises:
        ProofError: a place was seen in training, or no chip carries a label.
        ProbeError: a label without two classes of two units each.
    """
    stages = Stages(progress)
    carried = [(chip.place, list(chip.labels)) for chip in chips]
    require_unseen(model, (place for place, _ in carried))
    names = list(labels) or list(dict.fromkeys(name for _, of_chip in carried for name in of_chip))
    if not names:
        raise ProofError("no chip carries a label: nothing can be probed")
    kept = [number for number, (_, of_chip) in enumerate(carried) if not set(of_chip).isdisjoint(names)]
    places, chips = [carried[number][0] for number in kept], OnDemand(kept, chips.__getitem__)
    pixels = {name: labelled_pixels(chips, name).drawn(most_pixels, seed) for name in names}
    years = _years(model, chips, names)
    results: dict[str, dict[int | None, dict[str, ProbeResult]]] = {n: {s: {} for s in shots} for n in names}
    for condition in CONDITIONS if shuffles else CONDITIONS[:1]:
        changed = OnDemand(range(len(chips)), partial(_changed, condition, chips, seed))
        ours: dict[str, Tables] = {name: {} for name in names}
        stages.begin(f"embeddings, {condition.name}", len(chips))
        for number, name, sets in _embedded(model, changed, years, stages):
            pixels[name].fill(ours[name], number, condition.restored(sets, seed + number))
        theirs: dict[str, Tables] = {name: {} for name in names}
        for sharing in _sharing(years):
            of_label = years[sharing[0]]
            stages.begin(f"baselines for {', '.join(sharing)}, {condition.name}", len(of_label))
            fields = baseline_fields(
                _some(changed, of_label), model.registry, partial(year_of, model, label=sharing[0])
            )
            for number, of_chip in zip(of_label, stages.each(fields)):
                restored = condition.restored(of_chip, seed + number)
                for name in sharing:
                    pixels[name].fill(theirs[name], number, restored)
        stages.begin(f"probes, {condition.name}", trials * len(shots) * len(names))
        for name in names:
            given = ours[name], theirs[name], pixels[name].labelled, name
            for count in shots:
                results[name][count][condition.name] = compare(
                    *given, shots=count, trials=trials, seed=seed, on_trial=stages.step
                )
    return [
        Proof(name, len({places[number] for number in years[name]}), len(pixels[name].chip), results[name])
        for name in names
    ]


def _changed(condition: Condition, chips: Sequence[Chip], seed: int, number: int) -> Chip:
    return condition.change(chips[number], seed + number)


def _some(chips: Sequence[Chip], numbers: Iterable[int]) -> Sequence[Chip]:
    # A sensor that some chip without the label lacks is no less a baseline of the others.
    return OnDemand(list(numbers), chips.__getitem__)


def _years(model: TrainedModel, chips: Sequence[Chip], names: Sequence[str]) -> dict[str, dict[int, Period]]:
    """Per label the year of every chip that carries it, by the chip's number."""
    years: dict[str, dict[int, Period]] = {name: {} for name in names}
    for number, chip in enumerate(chips):
        for name in set(names) & chip.labels.keys():
            years[name][number] = year_of(model, chip, name)
    return years


def _sharing(years: Mapping[str, Mapping[int, Period]]) -> list[list[str]]:
    """Labels that are of the same years of the same chips, and so share their baselines."""
    groups: dict[tuple, list[str]] = {}
    for name, of_label in years.items():
        groups.setdefault(tuple(of_label.items()), []).append(name)
    return list(groups.values())


def _embedded(
    model: TrainedModel, chips: Sequence[Chip], years: Mapping[str, Mapping[int, Period]], stages: Stages
) -> Iterator[tuple[int, str, dict[str, np.ndarray]]]:
    """The feature sets of every chip for each label that it carries: number of the chip, label, field by name."""
    source = {name: decoded_source(model, _some(chips, of_label)) for name, of_label in years.items()}
    for number, chip in enumerate(chips):
        year = {name: of_label[number] for name, of_label in years.items() if number in of_label}
        for decoded in dict.fromkeys(source[name] for name in year):
            mine = [name for name in year if source[name] == decoded]
            sets = feature_sets(model, chip, [year[name] for name in mine], decoded)
            for name in mine:
                yield number, name, sets[year[name]]
        stages.step()
