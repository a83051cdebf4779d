"""Few labels, few-shot probes: embeddings beside hand-made features, on the same splits, shots and pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aef.data.chips import Chip
from aef.data.on_demand import select
from aef.evaluation.baselines import baseline_fields
from aef.evaluation.embedding_features import EMBEDDING
from aef.evaluation.labels import label_period, labelled_pixels, year_around
from aef.evaluation.probes import Labelled, Scores, Table, better, bootstrap, probe
from aef.evaluation.stages import Stages
from aef.mapping.support import count_frames, observed_span
from aef.mapping.trained_model import TrainedModel
from aef.timecode import Period

KINDS = ("ridge", "kNN-3")
"""Features are judged by the better of these."""
MOST_PIXELS = 100_000
"""Labelled pixels that are probed at most: their features are all in memory, 3.3 kB a pixel for 15 bands of three sensors."""
COLUMNS = 16
"""Columns of a table whose scale is taken at a time."""


def shots_name(shots: int | None) -> str:
    """``10-shot``, or ``all`` labels of the training units."""
    return "all" if shots is None else f"{shots}-shot"


@dataclass(frozen=True)
class ProbeResult:
    """Few-shot scores of the embedding and of every baseline on one label.

    Attributes:
        scores: per feature set, the better probe and its scores.
    """

    label: str
    shots: int | None
    trials: int
    classes: int
    units: int
    scores: dict[str, tuple[str, Scores]]

    def accuracy(self, name: str) -> float:
        """Balanced accuracy of a feature set."""
        return self.scores[name][1].balanced_accuracy

    @property
    def ours(self) -> float:
        """Balanced accuracy of the embedding, one vector for the year."""
        return self.accuracy(EMBEDDING)

    @property
    def best_baseline(self) -> str | None:
        """Name of the best hand-made feature set; None where none was judged."""
        return max((name for name in self.scores if not name.startswith(EMBEDDING)), key=self.accuracy, default=None)

    @property
    def best(self) -> float:
        """Balanced accuracy of the best hand-made feature set; NaN where none was judged."""
        return self.accuracy(self.best_baseline) if self.best_baseline else math.nan

    @property
    def difference(self) -> float | None:
        """The embedding minus the best hand-made feature set; None where none was judged."""
        return None if self.best_baseline is None else self.ours - self.best

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the paired difference to the best baseline. Raises ValueError where there is none."""
        return self.interval_to(self.best_baseline)

    def interval_to(self, baseline: str | None, name: str = EMBEDDING) -> tuple[float, float]:
        """95 % interval of the paired difference of two feature sets. Raises ValueError without a baseline."""
        if baseline is None:
            raise ValueError("no baseline was judged")
        return bootstrap(self.scores[name][1], self.scores[baseline][1])

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows of a printed table, best first."""
        head = ["features", "balanced accuracy", "95 % interval", "better probe"]
        body = []
        for name in sorted(self.scores, key=lambda features: -self.accuracy(features)):
            kind, scores = self.scores[name]
            low, high = bootstrap(scores)
            body.append([name, f"{scores.balanced_accuracy:.3f}", f"{low:.3f} to {high:.3f}", kind])
        return head, body


def year_of(model: TrainedModel, chip: Chip, label: str = "") -> Period:
    """The year over which a chip is embedded for its labels, or the middle year of its observations.

    Where the observations leave that year out, it is the year around the frame nearest to it.
    """
    span = observed_span(chip, model.inputs)
    year = label_period(chip, label or next(iter(chip.labels), ""), span)
    if count_frames(chip, year, model.inputs):
        return year
    moments = [chip.sources[name].moment_ms for name in model.inputs if name in chip.sources]
    every = np.concatenate([moment for moment in moments if moment is not None])
    nearest = int(every[np.abs(every - (year.start_ms + year.end_ms) // 2).argmin()])
    return year_around(nearest, span)


def compare(
    ours: Mapping[str, np.ndarray],
    baselines: Mapping[str, np.ndarray],
    labelled: Labelled,
    label: str,
    *,
    shots: int | None = 10,
    trials: int = 20,
    seed: int = 0,
    on_trial: Callable[[], None] = lambda: None,
) -> ProbeResult:
    """Probe feature sets, tables (N, D) by name, on the same splits and shots; each by its better probe.

    Equal pixels and an equal seed give equal splits, so that results of several calls are paired too.

    Raises:
        ProbeError: a class lies in one unit.
    """
    tables: dict[str, Table] = {**ours, **{name: UnitVariance(table) for name, table in baselines.items()}}
    results = probe(tables, labelled, shots=shots, trials=trials, seed=seed, kinds=KINDS, on_trial=on_trial)
    return ProbeResult(
        label=label,
        shots=shots,
        trials=trials,
        classes=len(labelled.classes),
        units=len(np.unique(labelled.units)),
        scores={name: better(of_kind, KINDS) for name, of_kind in results.items()},
    )


def judge_labels(
    model: TrainedModel,
    chips: Sequence[Chip],
    label: str,
    *,
    shots: int | None = 10,
    trials: int = 20,
    baselines: bool = True,
    most_pixels: int = MOST_PIXELS,
    stages: Stages | None = None,
) -> ProbeResult:
    """Embed chips over the year of a label and compare with every baseline; chips without the label have no part in it.

    Chips are gone through several times, and of their fields the labelled pixels are kept, at most `most_pixels`.

    Raises:
        ProbeError: the chips do not carry the label with two classes of two units each.
    """
    stages = stages or Stages()
    # A sensor that some chip without the label lacks is no less a baseline of the others.
    chips = select(chips, lambda chip: label in chip.labels)
    pixels = labelled_pixels(chips, label).drawn(most_pixels)

    def year(chip: Chip) -> Period:
        return year_of(model, chip, label)

    def embedded() -> Iterator[dict[str, np.ndarray]]:
        for chip in chips:
            yield {EMBEDDING: model.embed_array(chip, [year(chip)])[0]}

    others = {}
    if baselines:
        stages.begin(f"label {label}, baselines", len(chips))
        others = pixels.gather(stages.each(baseline_fields(chips, model.registry, year)))
    stages.begin(f"label {label}, embeddings", len(chips))
    ours = pixels.gather(stages.each(embedded()))
    stages.begin(f"label {label}, probes", trials)
    return compare(ours, others, pixels.labelled, label, shots=shots, trials=trials, on_trial=stages.step)


class UnitVariance:
    """A table (N, D) whose rows are given as float64 with columns of unit variance: hand-made features have all kinds of
    units; vectors of the embedding have one and stay as they are."""

    def __init__(self, table: np.ndarray) -> None:
        self._table = table
        # A few columns at a time: the whole as float64 would take twice the table's memory again.
        parts = np.array_split(table, max(1, table.shape[1] // COLUMNS), axis=1)
        wide = [(part.mean(axis=0), part.std(axis=0)) for part in (one.astype(np.float64) for one in parts)]
        self._mean, deviation = (np.concatenate(numbers) for numbers in zip(*wide))
        self._deviation = np.where(deviation > 0, deviation, 1)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return (self._table[rows].astype(np.float64) - self._mean) / self._deviation
