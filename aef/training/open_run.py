"""Opening a run: a new one from a folder of chips, or an existing one to go on with.

Rank 0 looks, decides and writes; the others read what it wrote.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from aef.config import Config
from aef.run import DESCRIPTION, Run, RunError

from .checkpoint import STATE, RunPosition, State, restore_generator
from .deepspeed_config import precision_of, read_configuration, resolve, stage_of
from .deepspeed_engine import Engine
from .distributed import Ranks
from .initial import Initial
from .log import Say
from .new_run import create_run
from .resume import reopen
from .run_lock import RunLock


@dataclass
class Opening:
    """A run ready to train: its description, where it stands, what to restore (None: it starts), and on rank 0 the lock
    that keeps other trainings out until `release`."""

    run: Run
    position: RunPosition
    checkpoint: Path | None = None
    universal: Path | None = None
    bad_chips: tuple[str, ...] = ()
    lock: RunLock | None = None

    def release(self) -> None:
        """Let other trainings into the run's folder."""
        if self.lock is not None:
            self.lock.release()

    def restore(self, engine: Engine, ranks: Ranks) -> None:
        """Load weights, moments and generator states into the engine. Collective; the manifest has passed."""
        assert self.checkpoint is not None
        engine.restore(self.universal or self.checkpoint)
        restore_generator(self.checkpoint, ranks.rank)
        ranks.barrier()
        if self.universal is not None and ranks.is_first:
            shutil.rmtree(self.universal, ignore_errors=True)


def open_run(
    config: Config,
    data: Path,
    out: Path,
    resume: str | os.PathLike | None,
    deepspeed_config: str | os.PathLike | None,
    ranks: Ranks,
    say: Say,
    initial: Initial | None = None,
) -> Opening:
    """Open ``out``: new, with ``initial`` weights if they fit, or with ``resume`` where it stands. Collective.

    Raises:
        RunError: the folder holds a run and ``resume`` is None, or holds none and a checkpoint was named; another
            training is at work in it; ``initial`` does not fit.
        ConfigError: a resumed run would change a setting that it may not.
        CheckpointError: no checkpoint can be trusted, or it cannot be loaded by these ranks at this stage.
    """
    stage = stage_of(read_configuration(deepspeed_config, ranks.size, ranks.device.type == "cuda"))
    precision = precision_of(
        resolve(deepspeed_config, config, ranks=ranks.size, on_gpu=ranks.device.type == "cuda", parameters=0)
    )

    locks: list[RunLock] = []  # one, on rank 0

    def decide() -> list[str | None]:
        locks.append(RunLock(out, say))
        if (out / DESCRIPTION).exists():
            return reopen(config, data, out, resume, State(RunPosition(), ranks.size, stage, precision, 0, 0), say)
        if resume not in (None, "auto"):
            raise RunError(f"--resume {resume}: {out} holds no run")
        create_run(config, data, out, say, ranks.size, initial)
        return [None, None]

    try:
        checkpoint, universal = (
            None if path is None else Path(path) for path in ranks.on_first(decide, "opening the run", say)
        )
        run = Run.read(out)
        lock = locks[0] if locks else None
        if checkpoint is None:
            return Opening(run, RunPosition(), lock=lock)
        state = State.read(checkpoint / STATE)
        return Opening(run, state.position, checkpoint, universal, state.bad_chips, lock)
    except BaseException:
        for lock in locks:
            lock.release()
        raise
