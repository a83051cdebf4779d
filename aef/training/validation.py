"""Validation in the loop: how good is the embedding on what training never sees?

* withheld dates (``data.withheld``): the model against the naive predictors, per source;
* held-out places (``data.held_out_places``): probes where their chips carry labels, few-shot, split by field, against the
  best hand-made features;
* health: norm, uniformity against its floor of 0.100, effective rank, and the probe for "was source X present?".

Everything is measured by `aef.evaluation.judgement`, as in the report, only with fewer places and trials.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from aef.data.chips import Chip, ChipError, ChipFolder
from aef.data.withheld import WithheldDates
from aef.evaluation.few_shot import judge_labels
from aef.evaluation.judgement import MAIN_PERIOD_DAYS, REFERENCE, judge_health, withheld_tasks
from aef.evaluation.probes import ProbeError
from aef.evaluation.reconstruction import WithheldTable, WithheldTask, model_table, naive_table
from aef.mapping.trained_model import TrainedModel
from aef.run import Run

TRIALS = 5

WITHHELD, PROBE = "withheld ", "probe "
"""Before the source, or the label, that a figure is of."""

OF, PER_LINEAR = ": ", " / linear"
"""Between what is measured and the rival that it is measured of, ``withheld sentinel2: linear interpolation``; and
behind the share of the linear interpolation's error, ``withheld sentinel2 / linear``."""

RIVALS = ("the pixel's temporal mean", "harmonic fit per pixel", REFERENCE, "mean of linear and harmonic")
"""Naive predictors beside the model."""

BEST = "best baseline"
"""The best of the hand-made features beside the embedding."""

MOST_CHIPS = 8
"""Places that one validation looks at: it must stay short beside the training that it interrupts."""


class Validation:
    """Everything that is measured every ``train.validate_every`` steps, on chips that are read once.

    Args:
        run: the run that is validated.
        data: its folder of chips.
    """

    def __init__(self, run: Run, data: Path) -> None:
        self.run, self.folder = run, ChipFolder(data, run.registry)
        self._naive: dict[str, WithheldTable] = {}
        self._best: dict[str, float] = {}

    def measure(self, model: nn.Module, step: int) -> dict[str, Any]:
        """Figures of the model as it stands, by name. Switches the model to eval and back."""
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                return self._measure(self._wrapped(model, step))
        finally:
            model.train(training)

    def _measure(self, model: TrainedModel) -> dict[str, Any]:
        figures: dict[str, float] = {}
        if self.dates is not None:
            for task in withheld_tasks(model, self.dated, *self.dates)[0]:
                figures.update(self._withheld(model, task))
        if self.run.config.data.held_out_places:
            for label in dict.fromkeys(name for chip in self.looked_at for name in chip.labels):
                figures.update(self._probes(model, label))
        figures.update(judge_health(model, self.looked_at))
        # Of a series that nothing varies in, or that hardly holds a frame, some are no numbers, which JSON does not know.
        return {name: round(value, 5) for name, value in figures.items() if math.isfinite(value)}

    def _withheld(self, model: TrainedModel, task: WithheldTask) -> dict[str, float]:
        """The model's error, its share of the linear interpolation's, and the errors of naive predictors."""
        source, name = task.source.name, WITHHELD + task.source.name
        if source not in self._naive:
            self._naive[source] = naive_table(task)
        naive = self._naive[source]
        error = model_table(task, model, period_days=[MAIN_PERIOD_DAYS]).mean(f"model, {MAIN_PERIOD_DAYS:g} d")
        linear = naive.mean(REFERENCE)
        ours = {name: error, name + PER_LINEAR: error / linear if linear else math.nan}
        return ours | {f"{name}{OF}{rival}": naive.mean(rival) for rival in RIVALS}

    def _probes(self, model: TrainedModel, label: str) -> dict[str, float]:
        """Balanced accuracy of the embedding, and of the best hand-made features, which are judged only once."""
        first = label not in self._best
        try:
            scores = judge_labels(model, self.looked_at, label, trials=TRIALS, baselines=first)
        except ProbeError:
            return {}
        if first:
            self._best[label] = scores.best
        return {PROBE + label: scores.ours, f"{PROBE}{label}{OF}{BEST}": self._best[label]}

    def _wrapped(self, model: nn.Module, step: int) -> TrainedModel:
        return TrainedModel(
            network=model,  # type: ignore[arg-type]  # an engine's wrapper answers like the module
            config=self.run.config,
            registry=self.run.registry,
            statistics=self.run.statistics,
            inputs=self.run.inputs,
            targets=self.run.targets,
            version=f"{self.run.config.preset}@{step}",
            device=next(model.parameters()).device,
        )

    @cached_property
    def dates(self) -> tuple[WithheldDates, WithheldDates] | None:
        """Dates that are hidden, and those of them that are judged in the loop."""
        data, subset = self.run.config.data, self.run.config.train.validate_set
        if data.withheld is None:
            return None
        return (
            WithheldDates.read(data.withheld, twin_ms=data.twin_ms),
            WithheldDates.read(data.withheld, subset, twin_ms=data.twin_ms),
        )

    @cached_property
    def dated(self) -> list[Chip]:
        """Chips of training places with judged dates."""
        assert self.dates is not None
        held_out = set(self.run.config.data.held_out_places)
        return self._read(set(self.dates[1].places) - held_out)

    @cached_property
    def looked_at(self) -> list[Chip]:
        """The held-out places; where there are none, a few of the training places (for health, not for probes)."""
        return self._read(set(self.run.config.data.held_out_places) or None)

    def _read(self, places: set[str] | None) -> list[Chip]:
        """The first few chips of some places (None: of any) that hold an input of the model."""
        names = tuple(dict.fromkeys((*self.run.inputs, *self.run.targets)))
        holding = np.flatnonzero(self.folder.holding(self.run.inputs))
        if places is not None:
            holding = np.intersect1d(holding, self.folder.where(places, or_unknown=True))
        chips: list[Chip] = []
        for index in holding.tolist():
            if len(chips) == MOST_CHIPS:
                break
            try:
                chips.append(self.folder.read(index, sources=names))
            except ChipError:
                if not self.run.config.data.skip_bad:
                    raise
        return chips
