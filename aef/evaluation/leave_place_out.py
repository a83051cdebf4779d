"""Real labels at a place that the encoder never saw: probes fitted and tested inside the place, beside every baseline.

The embedding is judged over the year of the label as in `aef.evaluation.embedding_features`. Few fields give wide
intervals: the table says how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aef.data.chips import Chip
from aef.data.on_demand import select
from aef.evaluation.baselines import baseline_fields
from aef.evaluation.embedding_features import OURS, decoded_source, feature_sets
from aef.evaluation.few_shot import ProbeResult, compare, shots_name, year_of
from aef.evaluation.labels import labelled_pixels
from aef.evaluation.probes import bootstrap
from aef.evaluation.proof import SHOTS
from aef.evaluation.tables import markdown_table, signed
from aef.mapping.trained_model import TrainedModel
from aef.timecode import Period


@dataclass(frozen=True)
class Task:
    """A label raster and the classes that count; none: all that have `min_units` fields at the place."""

    label: str
    classes: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Task:
        """``land_cover`` or ``land_cover=11,13,60``. Raises ValueError."""
        label, _, codes = text.partition("=")
        try:
            classes = tuple(int(code) for code in codes.split(",")) if codes else ()
        except ValueError:
            raise ValueError(f"expected LABEL or LABEL=CODE,CODE,…, found {text!r}") from None
        return cls(label, classes)


@dataclass(frozen=True)
class PlaceResult:
    """One label at one place: fields by class, and scores by shots."""

    place: str
    model: str
    label: str
    fields: dict[str, int]
    results: dict[int | None, ProbeResult]

    def markdown(self) -> str:
        """A table of scores, then the differences to the best baseline with their intervals."""
        counts = ", ".join(f"{name} {count}" for name, count in self.fields.items())
        head = ["features", *(f"{shots_name(s)}{what}" for s in self.results for what in ("", ", 95 % interval"))]
        first = next(iter(self.results.values()))
        rows = []
        for name in sorted(first.scores, key=lambda features: (features not in OURS, -first.accuracy(features))):
            row = [name]
            for result in self.results.values():
                low, high = bootstrap(result.scores[name][1])
                row += [f"{result.accuracy(name):.3f}", f"{low:.2f} to {high:.2f}"]
            rows.append(row)
        lines = []
        for shots, result in self.results.items():
            best = result.best_baseline
            assert best is not None
            differences = [
                f"{name} {signed(result.accuracy(name) - result.best, result.interval_to(best, name))}"
                for name in OURS
                if name in result.scores
            ]
            lines.append(f"{shots_name(shots)}, minus the best baseline ({best}): {'; '.join(differences)}.")
        title = (
            f"### {self.place}: {self.label}\n\nFields: {counts}. Encoder {self.model}, trained on the other places."
        )
        return "\n\n".join([title, markdown_table(head, rows), *lines])

    def figures(self) -> dict[str, Any]:
        """Every number, for a JSON file."""
        return {
            "place": self.place,
            "model": self.model,
            "label": self.label,
            "fields": self.fields,
            "shots": {
                shots_name(shots): {
                    "balanced_accuracy": {name: result.accuracy(name) for name in result.scores},
                    "best_baseline": result.best_baseline,
                    "difference": {
                        name: {
                            "difference": result.accuracy(name) - result.best,
                            "interval": list(result.interval_to(result.best_baseline, name)),
                        }
                        for name in OURS
                        if name in result.scores
                    },
                }
                for shots, result in self.results.items()
            },
        }


def judge_place(
    model: TrainedModel,
    chips: Sequence[Chip],
    task: Task,
    *,
    shots: Sequence[int | None] = SHOTS,
    trials: int = 20,
    seed: int = 0,
    min_units: int = 3,
) -> PlaceResult:
    """Probes inside one place that the model never saw.

    Args:
        model: trained on other places.
        chips: of the place; those without the label have no part in it.
        task: label and classes.
        shots: labelled pixels per class; None: all, up to 300.
        trials: splits of the fields.
        seed: of the splits.
        min_units: classes with fewer fields at the place are left out.

    Raises:
        ProbeError: fewer than two classes have so many fields here.
    """
    chips = select(chips, lambda chip: task.label in chip.labels)
    pixels = labelled_pixels(chips, task.label, classes=task.classes, min_units=min_units)
    source = decoded_source(model, chips)

    def year(chip: Chip) -> Period:
        return year_of(model, chip, task.label)

    ours = pixels.gather(feature_sets(model, chip, [year(chip)], source)[year(chip)] for chip in chips)
    baselines = pixels.gather(baseline_fields(chips, model.registry, year))
    first = chips[0]
    legend = first.labels[task.label].legend
    codes = pixels.labelled.classes.tolist()
    return PlaceResult(
        place=first.place,
        model=model.version,
        label=task.label,
        fields={str(legend.get(code, code)): len(pixels.labelled.units_of(code)) for code in codes},
        results={
            count: compare(ours, baselines, pixels.labelled, task.label, shots=count, trials=trials, seed=seed)
            for count in shots
        },
    )


def tasks_of(chips: Sequence[Chip]) -> list[Task]:
    """Every label that some chip carries."""
    return [Task(name) for name in dict.fromkeys(name for chip in chips for name in chip.labels)]
