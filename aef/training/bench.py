"""One real training step outside a run, over random frames or over chips: what profiles and benchmarks repeat."""

from __future__ import annotations

from pathlib import Path

import torch

from aef.config import Config
from aef.data.batch import Batch
from aef.data.random_batch import random_batch
from aef.data.statistics import Statistics
from aef.model.aef import AEF
from aef.model.cost import Work, step_flops
from aef.objective.objective import Objective
from aef.run import Run

from . import planner
from .deepspeed_config import resolve
from .deepspeed_engine import Engine
from .devices import peak_flops, peak_memory_gb
from .distributed import start
from .loader import StepDataset
from .new_run import describe_run, find_sources
from .phases import Phases, phase, profile_step
from .step import take_step


class StepBench:
    """Model, objective, optimiser and one global batch.

    Args:
        config: all settings; ``train.global_batch`` samples a step, in passes of ``train.micro_batch``.
        data: folder of chips, then loading is part of a step; None: the same random batch every time.
        scratch: an empty folder for the description of the run.
        deepspeed_config: as for `Trainer`.
    """

    def __init__(
        self, config: Config, data: str | None, scratch: Path, *, deepspeed_config: str | None = None, say=print
    ) -> None:
        self.ranks = start(config.train.timeout_s)
        self.device = self.ranks.device
        self._started_gb = peak_memory_gb(self.device)
        registry, (inputs, targets) = find_sources(config, data)
        self.steps: StepDataset | None = None
        statistics = Statistics.identity(registry, dict.fromkeys((*inputs, *targets)))
        if data is not None:
            run: Run = describe_run(config, Path(data), scratch, say)
            run.write()
            config, statistics = run.config, run.statistics
            self.steps = StepDataset(run, Path(data), self.ranks.rank, self.ranks.size)
        self.config, self.registry, self.inputs, self.targets = config, registry, inputs, targets
        self._deepspeed_config = deepspeed_config
        torch.manual_seed(config.train.seed)
        model = AEF(config.model, registry, statistics, inputs=inputs, targets=targets)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        configuration = resolve(
            deepspeed_config,
            config,
            ranks=self.ranks.size,
            on_gpu=self.device.type == "cuda",
            parameters=self.parameters,
        )
        self.engine = Engine(model, config, configuration, self.ranks)
        self.objective = Objective(config.objective, registry, statistics, targets, data=config.data)
        self._number = 0
        self._random: list[Batch] = []
        if self.steps is None:
            micro, count = self.engine.micro_batches
            own = range(self.ranks.rank * count, (self.ranks.rank + 1) * count)
            self._random = [
                self._ready(random_batch(config, registry, inputs, targets, micro, first=part * micro)) for part in own
            ]

    @property
    def title(self) -> str:
        what = f"{self.config.preset}, {self.config.data.chip_px} px, batch {self.config.train.global_batch}"
        return f"{what}, {self.engine.precision}, {self.device.type}"

    def load(self) -> list[Batch]:
        if self.steps is None:
            return self._random
        with phase("load"):
            loaded = self.steps.step(self._number)
        if loaded.error:
            raise ValueError(loaded.error)
        self._number += 1
        return [self._ready(batch) for batch in loaded.batches]

    def _ready(self, batch: Batch) -> Batch:
        """As a loader gives it: a GPU fetches it from page-locked memory."""
        return batch.pin_memory() if self.device.type == "cuda" else batch

    def step(self) -> None:
        """One whole step: load, forward, objective, backward, update."""
        self.batches = self.load()
        take_step(self.engine, self.objective, self.batches, lr=1e-6)

    def profile(self, *, trace: Path | None, repeats: int) -> Phases:
        return profile_step(self.engine.model, self.step, self.device, trace=trace, repeats=repeats)

    def flops(self) -> int:
        """Operations of the last step, without recomputation."""
        return sum(step_flops(self.config.model, self.registry, Work.of(batch)) for batch in self.batches)

    def summary(self, phases: Phases) -> list[str]:
        """Throughput, share of the peak, and predicted beside measured memory."""
        frames, flops = sum(batch.total_frames for batch in self.batches), self.flops()
        peak = peak_flops(self.device, self.engine.precision)
        plan = planner.plan(
            self.config,
            self.registry,
            self.inputs,
            self.targets,
            ranks=self.ranks.size,
            on_gpu=self.device.type == "cuda",
            deepspeed_config=self._deepspeed_config,
        )
        measured = peak_memory_gb(self.device)
        return [
            f"frames_per_s: {frames / phases.step_s:.1f}",
            f"samples_per_s: {sum(batch.samples for batch in self.batches) / phases.step_s:.3f}",
            f"gflop_per_s: {flops / phases.step_s / 1e9:.1f}"
            + (f" ({flops / phases.step_s / peak:.1%} of the datasheet peak)" if peak else ""),
            f"peak_memory_gb: {measured:.2f}, of which {measured - self._started_gb:.2f} after start-up; "
            f"predicted {plan.device_bytes / 1e9:.2f}",
        ]

    def close(self) -> None:
        self.engine.close()
