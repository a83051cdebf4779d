"""The training loop, top to bottom: batch → forward → objective → backward → step → log.

Example::

    from aef.config import PRESETS
    from aef.training import Trainer

    with Trainer(PRESETS["small"], data="chips", out="run") as trainer:
        for record in trainer.steps():        # or trainer.fit()
            print(record["step"], record["loss"])
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from traceback import clear_frames
from types import TracebackType
from typing import Any

import torch

from aef.config import Config
from aef.data.batch import Batch
from aef.kernels.dispatch import requested
from aef.model.aef import AEF
from aef.model.cost import Work, step_flops
from aef.objective.objective import Objective
from aef.one_line import one_line
from aef.path import as_path
from aef.run import DESCRIPTION, TEXT_TOWER, Run, build_model
from aef.text.tower import TowerIdentity

from .bad_chips import BadChips
from .checkpoint import (
    GO_ON,
    CheckpointError,
    Checkpoints,
    ChipNames,
    RunPosition,
    State,
    require_same_model,
    write_checkpoint,
)
from .deepspeed_config import resolve
from .deepspeed_engine import Engine
from .devices import peak_flops, peak_memory_gb
from .distributed import RankError, Ranks, start
from .initial import Initial
from .loader import GUARD, StepLoader
from .log import Display, StepLog
from .observer import Observer, ValidationError
from .open_run import Opening, open_run
from .planner import filler, goes_ahead
from .schedule import learning_rate
from .signals import StopSignals
from .step import Step, take_step


class TrainingError(ValueError):
    """The run cannot go on; one line that every rank knows."""


class Trainer:
    """One training run in a folder.

    Args:
        config: all settings.
        data: folder of chips.
        out: run folder; see `aef.run` for what it will hold.
        resume: ``"auto"`` goes on from the newest complete checkpoint of ``out`` (and starts where there is none); a
            path from that one; None refuses a folder that already holds a run.
        init_from: a run, or a file of weights, that a new run begins with (`Initial`).
        deepspeed_config: a shipped configuration by name, or a JSON file; None: stage 0 on one CPU rank, else ZeRO-1.
        tensorboard: write the numbers of the log as TensorBoard events too, in ``RUN/tensorboard``.
        quiet: no progress.

    Raises:
        ConfigError, ChipError, StatisticsError, RunError, CheckpointError: bad input, one line each.
        TypeError: an argument of another kind.
        TrainingError: the script is run once more by a loader's process.
        ModuleNotFoundError: DeepSpeed is not installed, or what TensorBoard or validation needs where they are wanted.
    """

    def __init__(
        self,
        config: Config,
        data: str | os.PathLike,
        out: str | os.PathLike,
        *,
        resume: str | os.PathLike | None = None,
        init_from: str | os.PathLike | None = None,
        deepspeed_config: str | os.PathLike | None = None,
        tensorboard: bool = False,
        quiet: bool = False,
    ) -> None:
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise TrainingError(f"a loader's process came to train: {GUARD}")
        if not isinstance(config, Config):
            found = one_line(repr(config), 60)
            raise TypeError(
                "config: expected aef.config.Config, like aef.config.PRESETS['small'] or "
                f"aef.settings_file.load_config('small', ['train.steps=100']), found {found}"
            )
        config.validate()
        data, out = as_path(data, "data"), as_path(out, "out")
        if not isinstance(resume, str | os.PathLike | None):
            raise TypeError(f"resume: expected None, 'auto' or a folder of {out / 'checkpoints'}, found {resume!r}")
        init_from = None if init_from is None else as_path(init_from, "init_from")
        requested()  # a wrong AEF_KERNELS is said before anything is written
        # So are weights that cannot be read or do not fit; a resumed run no longer needs them.
        resumes = resume is not None and (out / DESCRIPTION).exists()
        initial = Initial.read(init_from) if init_from is not None and not resumes else None
        if config.train.validate_every:
            import_module(".validation", __package__)  # what it lacks is said now, not when it is due
        self.ranks: Ranks = start(config.train.timeout_s)
        self.display = Display(config.train.steps, quiet=quiet or not self.ranks.is_first)
        with self.ranks.watching(), ExitStack() as undone:
            # What is not installed is said before the folder is taken.
            import_module("deepspeed")
            if tensorboard and self.ranks.is_first:
                import_module("torch.utils.tensorboard")
            opened: Opening = open_run(
                config, data, out, resume, deepspeed_config, self.ranks, self.display.say, initial
            )
            self._release = opened.release
            undone.callback(self._release)
            self.run: Run = opened.run
            self.config, self.data = self.run.config, data
            self.position = opened.position
            self.log = StepLog(self.run.path, tensorboard=tensorboard and self.ranks.is_first)
            self.checkpoints = Checkpoints(
                self.run.path, self.config.train.keep_checkpoints, self.config.train.keep_every
            )

            model = self._build_model(opened)
            if opened.checkpoint is None and init_from is not None:
                # A run that was killed before its first checkpoint is resumed from its beginning.
                initial = initial or Initial.read(init_from)
                self._begin_with(initial, model)
            self.parameters = sum(parameter.numel() for parameter in model.parameters())
            self.engine = self._build_engine(model, opened, deepspeed_config)
            self.objective = Objective(
                self.config.objective, self.run.registry, self.run.statistics, self.run.targets, data=self.config.data
            )
            if opened.checkpoint is not None:
                opened.restore(self.engine, self.ranks)
            self._open_loader(opened)
            first = self.loader.first_batch
            self.observer = Observer(self.run, data, self.engine, self.ranks, self.log, self.display.say, first)
            self._saved_step = self.position.step if opened.checkpoint is not None else -1
            self._announce(opened)
            undone.pop_all()

    def _build_model(self, opened: Opening) -> AEF:
        torch.manual_seed(self.config.train.seed)
        model = build_model(self.run)
        if opened.checkpoint is not None:
            require_same_model(opened.checkpoint, model)
        return model

    def _begin_with(self, initial: Initial, model: AEF) -> None:
        tower = TowerIdentity.read(self.run.path / TEXT_TOWER) if self.run.config.model.text_dim else None
        model.load_state_dict(initial.state_for(model, tower))
        self.display.say(initial.describe(model, tower))
        if self.ranks.is_first:
            self.log.event("begun_with", weights=initial.weights.sha256, step=initial.weights.step)

    def _build_engine(self, model: AEF, opened: Opening, deepspeed_config: str | os.PathLike | None) -> Engine:
        configuration = resolve(
            deepspeed_config,
            self.config,
            ranks=self.ranks.size,
            on_gpu=self.ranks.device.type == "cuda",
            parameters=self.parameters,
            universal=opened.universal is not None,
        )
        return Engine(model, self.config, configuration, self.ranks)

    def _open_loader(self, opened: Opening) -> None:
        self.loader = StepLoader(self.run, self.data, self.ranks, self.position.consumed, self.display.say)
        chips = self.loader.steps.chips
        chips.ban(opened.bad_chips)
        self.bad_chips = BadChips(len(chips), self.config.data.max_bad, opened.bad_chips)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def fit(self) -> bool:
        """Train to the last step. Returns whether it got there; False: a signal asked to stop, a checkpoint is written."""
        for _ in self.steps():
            pass
        return self.position.step >= self.config.train.steps

    def steps(self) -> Iterator[dict[str, Any]]:
        """Train, yielding each applied step's log record.

        Raises:
            TrainingError: a chip breaks the contract, too many steps in a row were not finite, or a lone rank's GPU is full.
            RankError: another rank died or stalled, or this one's GPU is full.
            CheckpointError: a checkpoint could not be written.
        """
        with StopSignals() as signals, self.display, self.ranks.watching():
            while self.position.step < self.config.train.steps:
                started = time.perf_counter()
                batches, shared = self._load(signals)
                if shared.stops:
                    self._stop(signals.received)
                    return
                step = self._take_step(batches)
                if step.grad_norm is None:
                    self._skip(step.suspects, [name for batch in batches for name in batch.sample_ids])
                    continue
                self._advance()
                record = self._record(step, shared, time.perf_counter() - started)
                self._write_what_is_due()
                yield record
            self._finish()

    def _take_step(self, batches: Sequence[Batch]) -> Step:
        try:
            return take_step(self.engine, self.objective, batches, self._learning_rate())
        except torch.OutOfMemoryError as error:
            clear_frames(error.__traceback__)  # a checkpoint needs some of what they hold
            frames = max(batch.total_frames for batch in batches)
            why = (
                f"step {self.position.step + 1}: a pass of {frames} frames does not fit ({one_line(error, 120)}): lower "
                f"train.micro_batch ({self.engine.micro_batches[0]} now), or set model.checkpointing=selective or full"
            )
            if self.ranks.size > 1:
                # The others wait for this one in the middle of the step.
                raise RankError(
                    f"rank {self.ranks.rank}: {why}, from the last checkpoint with --resume auto"
                ) from error
            raise self._ended(why) from error

    def _learning_rate(self) -> float:
        t = self.config.train
        return learning_rate(self.position.step + 1, steps=t.steps, warmup=self.config.warmup_steps, peak=t.peak_lr)

    def _load(self, signals: StopSignals) -> tuple[list[Batch], _Shared]:
        """This rank's micro-batches of the next global batch, and what ranks must agree on."""
        before = time.perf_counter()
        loaded = self.loader.next()
        waited = time.perf_counter() - before
        shared = _Shared(
            errors=loaded.error is not None,
            bad_chips=len(loaded.skipped),
            stops=signals.received is not None,
            frames=sum(batch.total_frames for batch in loaded.batches),
            waited_s=waited / self.ranks.size,
            flops=self._flops(loaded.batches),
        ).over(self.ranks)
        if shared.bad_chips:
            self._pass_over(loaded.skipped)
        if shared.errors:
            messages = self.ranks.gather(loaded.error)
            rank, message = next((rank, text) for rank, text in enumerate(messages) if text is not None)
            raise self._ended(message if self.ranks.size == 1 else f"rank {rank}: {message}")
        return loaded.batches, shared

    def _flops(self, batches: Sequence[Batch]) -> float:
        """Operations of a step over some batches; 0 where the device's peak is not known and nobody would read them."""
        if not peak_flops(self.ranks.device, self.engine.precision):
            return 0.0
        return sum(step_flops(self.config.model, self.run.registry, Work.of(batch)) for batch in batches)

    def _pass_over(self, own: Sequence[tuple[str, str]]) -> None:
        """Name chips that some rank has found bad, and leave them out on all. Collective."""
        new = self.bad_chips.add(own, self.ranks)
        self.loader.steps.chips.ban(new)
        if self.ranks.is_first:
            for name, reason in new.items():
                self.log.event("bad_chip", step=self.position.step + 1, chip=name, reason=reason)
                self.display.say(f"passed over: {reason}")
        if new and (why := self.bad_chips.too_many):
            raise self._ended(why)

    def _ended(self, why: str) -> TrainingError:
        """The error that ends the run early, with a checkpoint of the steps so far. Collective."""
        if self.position.step and not self.engine.updating:
            try:
                if self._saved_step != self.position.step:
                    self.save_checkpoint()
                why += f"; a checkpoint is written, {GO_ON}"
            except CheckpointError as error:
                why += f"; {error}"
        return TrainingError(why)

    def _advance(self) -> None:
        p = self.position
        self.position = RunPosition(p.step + 1, p.consumed + self.config.train.global_batch, p.skipped, 0)

    def _skip(self, suspects: list[str], all_samples: list[str]) -> None:
        """Count a step that was not finite, name its chips (all of them where none stands out), stop after too many."""
        p, limit = self.position, self.config.train.max_skipped
        self.position = RunPosition(p.step, p.consumed + self.config.train.global_batch, p.skipped + 1, p.in_a_row + 1)
        known = self.ranks.gather([suspects, all_samples])
        names = sorted({name for of_rank, _ in known for name in of_rank} or {n for _, own in known for n in own})
        if self.ranks.is_first:
            self.log.event("skipped", step=p.step + 1, in_a_row=p.in_a_row + 1, chips=names)
            self.display.say(f"step {p.step + 1} skipped: loss or gradient not finite, chips {', '.join(names[:5])}")
        if self.position.in_a_row >= limit:
            raise TrainingError(
                f"{limit} steps in a row were not finite before step {p.step + 1}, last with chips {', '.join(names[:5])}: "
                "look at them with `aef show`, or lower train.peak_lr"
            )

    def _record(self, step: Step, shared: _Shared, step_s: float) -> dict[str, Any]:
        """Write and show this step's line of log.jsonl."""
        if not self.ranks.is_first:
            return {"step": self.position.step, **step.losses.record()}
        peak = peak_flops(self.ranks.device, self.engine.precision)
        record = {
            "step": self.position.step,
            **step.losses.record(),
            "grad_norm": step.grad_norm,
            "lr": step.lr,
            "frames_per_s": round(shared.frames / step_s, 2),
            "samples_per_s": round(self.config.train.global_batch / step_s, 3),
            "data_wait": round(min(shared.waited_s / step_s, 1.0), 4),
            "mfu": round(shared.flops / (step_s * peak * self.ranks.size), 4) if peak else None,
            "memory_gb": round(peak_memory_gb(self.ranks.device), 3),
            "skipped": self.position.skipped,
        }
        self.log.write(record)
        self.display.step(record, step_s)
        return record

    # --- what is kept ------------------------------------------------------------------------------------------------

    def _write_what_is_due(self) -> None:
        """Checkpoint, figure and validation, where this step is due for them."""
        t, step = self.config.train, self.position.step
        if step % t.checkpoint_every == 0:
            self.save_checkpoint()
        if t.figure_every and step % t.figure_every == 0 and step < t.steps:
            self.observer.draw_figure(step)
        if t.validate_every and step % t.validate_every == 0:
            self.validate()

    def save_checkpoint(self) -> Path:
        """Write a checkpoint of the current step and ``RUN/model.safetensors``. Collective.

        Raises:
            CheckpointError: on every rank, where any of them could not write; nothing half-written stays.
        """
        state = State(
            position=self.position,
            world_size=self.ranks.size,
            stage=self.engine.stage,
            precision=self.engine.precision,
            global_batch=self.config.train.global_batch,
            seed=self.config.train.seed,
            chips=self._chip_names,
            bad_chips=tuple(sorted(self.bad_chips.names)),
        )
        path = write_checkpoint(self.checkpoints, self.engine, state, self.ranks)
        if self.ranks.is_first:
            self.log.event("checkpoint", step=self.position.step, path=path.name)
        self._saved_step = self.position.step
        return path

    @cached_property
    def _chip_names(self) -> ChipNames:
        chips = self.loader.steps.chips
        return ChipNames.of(chips.folder, chips.index)

    def validate(self) -> dict[str, Any]:
        """Measure the model on what it never sees, log it in ``validation.jsonl`` and draw all of them so far as
        ``RUN/figures/validation.png``. Collective.

        Raises:
            TrainingError: on every rank, where it failed; a checkpoint of the steps so far is written.
        """
        try:
            return self.observer.validate(self.position.step)
        except ValidationError as error:
            raise self._ended(str(error)) from error.__cause__

    def _stop(self, received: str | None) -> None:
        if self._saved_step != self.position.step:
            self.save_checkpoint()
        if self.ranks.is_first:
            self.log.event("stopped", step=self.position.step, signal=received)
            self.display.say(f"stopped at step {self.position.step}: a checkpoint is written, {GO_ON}")

    def _finish(self) -> None:
        if self._saved_step != self.position.step:
            self.save_checkpoint()
        self.observer.draw_figure(self.position.step)

    def _announce(self, opened: Opening) -> None:
        t, ranks = self.config.train, self.ranks
        micro, count = self.engine.micro_batches
        words = [
            f"{self.parameters:,} parameters",
            f"{', '.join(self.run.inputs)} → {', '.join(self.run.targets)}",
            f"{ranks.size} rank{'s' * (ranks.size > 1)} on {ranks.device.type}, ZeRO stage {self.engine.stage}, "
            f"{self.engine.precision}",
            f"batch {t.global_batch}" + (f" = {ranks.size} x {count} x {micro}" if count > 1 else ""),
            f"learning rate 0 → {t.peak_lr:g} over {self.config.warmup_steps} steps → 0 at step {t.steps}",
        ]
        ahead = goes_ahead(self.config, ranks.size)
        padding = filler(self.config, self.run.registry, self.run.inputs, ranks.size)
        words += [line for line in (ahead, padding) if line]
        if opened.checkpoint and opened.position.step >= t.steps:
            words.append(f"already at step {opened.position.step}, nothing is left of train.steps={t.steps}")
        self.display.say("\n".join(words))
        if ranks.is_first:
            self.log.event("resumed" if opened.checkpoint else "started", step=self.position.step, ranks=ranks.size)

    def close(self) -> None:
        """Stop the loader, let DeepSpeed go and other trainings into the run's folder. The process group stays, for the
        next trainer of this process."""
        with ExitStack() as last:
            last.callback(self._release)
            self.loader.close()
            self.engine.close()
            self.log.close()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Shared:
    """What the ranks add up before a step: how many of them have an error, found bad chips and want to stop; frames;
    seconds of waiting for data, each rank's share of the mean; operations."""

    errors: float
    bad_chips: float
    stops: float
    frames: float
    waited_s: float
    flops: float

    def over(self, ranks: Ranks) -> _Shared:
        """The sums over all ranks. Collective."""
        values = torch.tensor(dataclasses.astuple(self), dtype=torch.float64, device=ranks.device)
        return _Shared(*ranks.sum(values).tolist())
