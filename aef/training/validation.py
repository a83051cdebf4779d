"""Validation in the loop: how good is the embedding on what training never sees?

* withheld dates (``data.withheld``): the model against the naive predictors, per source and band;
* held-out places (``data.held_out_places``): probes where their chips carry labels, few-shot, split by field;
* health: norm, uniformity against its floor of 0.100, effective rank, and the probe for "was source X present?".

Every figure is measured by `aef.evaluation`, whose naive predictors reproduce published tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from aef.data.chips import Chip, ChipFolder, read_chip
from aef.data.withheld import WithheldDates
from aef.evaluation.diagnostics import source_presence, spread
from aef.evaluation.labels import label_period, labelled_pixels
from aef.evaluation.probes import ProbeError, better, probe
from aef.evaluation.reconstruction import WithheldTask, model_table, naive_table
from aef.mapping.field import observed_span
from aef.mapping.trained import TrainedModel
from aef.run import Run
from aef.timecode import Period

PERIOD_DAYS = 120.0
SHOTS, TRIALS = 10, 5
MOST_CHIPS = 8
"""Places that one validation looks at: it must stay short beside the training it interrupts."""

BEST_NAIVE = "linear interpolation"


class Validation:
    """Everything that is measured every ``train.validate_every`` steps, on chips read once.

    Args:
        run: the run that is validated.
        data: its folder of chips.
    """

    def __init__(self, run: Run, data: Path) -> None:
        self.run, self.folder = run, ChipFolder(data, run.registry)

    def measure(self, model: nn.Module, step: int) -> dict[str, Any]:
        """Figures of the model as it stands; None for what the data do not allow. Switches the model to eval and back."""
        training = model.training
        model.eval()
        try:
            trained = self._wrap(model, step)
            figures: dict[str, Any] = {"step": step}
            for task in self._tasks:
                table = model_table(task, trained, period_days=[PERIOD_DAYS])
                (error,) = (table.mean(name) for name in table.errors)
                naive = self._naive[task.source.name]
                figures[f"withheld/{task.source.name}"] = round(error, 5)
                figures[f"withheld/{task.source.name} / linear"] = round(error / naive[BEST_NAIVE], 4)
            figures.update(self._probes(trained))
            figures.update(self._health(trained))
            return figures
        finally:
            model.train(training)

    def _wrap(self, model: nn.Module, step: int) -> TrainedModel:
        device = next(model.parameters()).device
        return TrainedModel(
            model=model,  # type: ignore[arg-type]
            config=self.run.config,
            registry=self.run.registry,
            statistics=self.run.statistics,
            inputs=self.run.inputs,
            targets=self.run.targets,
            version=f"{self.run.config.preset}@{step}",
            device=device,
        )

    # --- withheld dates ----------------------------------------------------------------------------------------------

    @cached_property
    def _tasks(self) -> list[WithheldTask]:
        listed = self.run.config.data.withheld
        if listed is None:
            return []
        hidden = WithheldDates.read(listed)
        judged = WithheldDates.read(listed, self.run.config.train.validate_set)
        chips = [chip for chip in self._read() if chip.place in judged.places]
        tasks = []
        for name in self.run.targets:
            source = self.run.registry[name]
            if name not in self.run.inputs or source.grid != "chip":
                continue
            holding = [chip for chip in chips if name in chip.sources]
            # A product coarser than the grid is judged on its own pixels.
            cell_px = max(1, round(source.native_resolution_m / 10))
            task = WithheldTask(holding, source, hidden, judged, cell_px=cell_px if cell_px in (1, 2, 4) else 1)
            if holding and self._judges(task):
                tasks.append(task)
        return tasks

    @staticmethod
    def _judges(task: WithheldTask) -> bool:
        """Whether every place has a judged frame of this source."""
        try:
            return all(len(task.frames(series)[1]) for series in task.observations()[0])
        except ValueError:
            return False

    @cached_property
    def _naive(self) -> dict[str, Mapping[str, float]]:
        tables = {task.source.name: naive_table(task) for task in self._tasks}
        return {name: {row: table.mean(row) for row in table.errors} for name, table in tables.items()}

    # --- labels and health -------------------------------------------------------------------------------------------

    @cached_property
    def _looked_at(self) -> list[Chip]:
        """The held-out places; where there are none, a few of the training places (for health, not for probes)."""
        held_out = set(self.run.config.data.held_out_places)
        chips = self._read(held_out) if held_out else self._read()
        return chips[:MOST_CHIPS]

    def _read(self, places: set[str] | None = None) -> list[Chip]:
        chips = []
        names = dict.fromkeys((*self.run.inputs, *self.run.targets))
        for path, header in zip(self.folder.files, map(self.folder.header, range(len(self.folder)))):
            if places is None or header["place"] in places:
                chips.append(read_chip(path, self.run.registry, sources=names))
            if places is None and len(chips) >= MOST_CHIPS:
                break
        return [chip for chip in chips if any(name in chip.sources for name in self.run.inputs)]

    def _period(self, chip: Chip) -> Period:
        span = observed_span(chip, self.run.inputs)
        return label_period(chip, next(iter(chip.labels), ""), span)

    @torch.no_grad()
    def _fields(self, trained: TrainedModel, chips: Sequence[Chip]) -> list[np.ndarray]:
        return [trained.embed_array(chip, [self._period(chip)])[0][0] for chip in chips]

    def _probes(self, trained: TrainedModel) -> dict[str, float | None]:
        if not self.run.config.data.held_out_places:
            return {}
        fields = self._fields(trained, self._looked_at)
        figures: dict[str, float | None] = {}
        for name in dict.fromkeys(label for chip in self._looked_at for label in chip.labels):
            try:
                pixels = labelled_pixels(self._looked_at, name)
                scores = probe({"embedding": pixels.gather(fields)}, pixels.labelled, shots=SHOTS, trials=TRIALS)
            except ProbeError:
                figures[f"probe/{name}"] = None
                continue
            figures[f"probe/{name}"] = round(better(scores["embedding"])[1].balanced_accuracy, 4)
        return figures

    def _health(self, trained: TrainedModel) -> dict[str, float | None]:
        chips = self._looked_at
        figures = spread(self._fields(trained, chips))
        presence = source_presence(trained, chips, self._period)
        figures.update({f"presence/{name}": accuracy for name, accuracy in presence.items()})
        return {name: round(value, 4) if math.isfinite(value) else None for name, value in figures.items()}
