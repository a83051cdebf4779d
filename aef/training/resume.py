"""An existing run that goes on: the checkpoint to go on from, and what is refused before anything is changed.

Rank 0 alone does all of this.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

from aef.config import Config, ConfigError
from aef.data.chips import ChipFolder
from aef.run import SETTINGS, WEIGHTS, WITHHELD, Run, RunError, with_own_list
from aef.settings_file import read_resolved

from .checkpoint import STATE, CheckpointError, Checkpoints, ChipNames, State
from .deepspeed_engine import RESTART
from .log import Say, StepLog, read_events
from .new_run import keep_list, require_choices_of
from .planner import filler

MAY_CHANGE = {
    "data": {"workers", "cache_chips", "skip_bad", "max_bad"},
    "model": {"checkpointing", "compile", "cuda_graphs"},
    "train": {
        "steps",
        "micro_batch",
        "checkpoint_every",
        "keep_checkpoints",
        "keep_every",
        "figure_every",
        "validate_every",
        "validate_set",
        "max_skipped",
        "timeout_s",
    },
}
"""Settings that a resumed run may change; all others would silently make it another run. A new ``train.steps``
stretches the rest of the schedule, which is said."""

UNIVERSAL = ".universal"


def reopen(
    config: Config, data: Path, out: Path, resume: str | os.PathLike | None, now: State, say: Say
) -> list[str | None]:
    """Choose the checkpoint, refuse what cannot be continued, cut the log back. Rank 0 only."""
    if resume is None:
        raise RunError(f"{out} already holds a run: go on with --resume auto, or choose another --out")
    run = Run.read(out)
    stored = read_resolved(out / SETTINGS)
    config = _same_list(stored, config, out, say)
    _refuse_changes(stored, config, out)
    # Another number of ranks, or train.micro_batch, has other micro-batches, of which filler is another share.
    filler(config, run.registry, run.inputs, now.world_size)
    folder = ChipFolder(data, run.registry)
    folder.build_index(say)
    require_choices_of(with_own_list(config, out), folder)
    if config.data.withheld is not None and not (out / WITHHELD).exists():
        keep_list(config.data.withheld, out)
    checkpoints = Checkpoints(out, config.train.keep_checkpoints)
    checkpoints.clear_partial()
    checkpoint = _choose(checkpoints, resume, say)
    step, universal = 0, None
    if checkpoint is not None:
        state = State.read(checkpoint / STATE)
        step = state.position.step
        _require_same_chips(state, folder, config, checkpoint)
        if _needs_universal(state, now, checkpoint):
            universal = _convert(checkpoint, state, say)
    else:
        _require_untrained(out)
        say(f"{out} holds no checkpoint yet: starting at step 0")
    text_dim = run.config.model.text_dim
    model = dataclasses.replace(config.model, inputs=run.inputs, targets=run.targets, text_dim=text_dim)
    dataclasses.replace(run, config=dataclasses.replace(config, model=model)).write()
    dropped = StepLog(out).cut_back(step)
    if checkpoint is not None:
        for aside in checkpoints.go_on_from(checkpoint):
            say(f"set aside, as it is later: {aside}")
        say(f"going on from {checkpoint.name}" + (f"; {dropped} later log lines dropped" if dropped else ""))
    return [str(path) if path is not None else None for path in (checkpoint, universal)]


def _choose(checkpoints: Checkpoints, resume: str | os.PathLike, say: Say) -> Path | None:
    if resume == "auto":
        checkpoint, refused = checkpoints.newest()
        for line in refused:
            say(f"not used: {line}")
        return checkpoint
    path = Path(resume)
    if path.resolve().parent != checkpoints.folder.resolve():
        raise CheckpointError(
            f"--resume {path}: expected auto or a folder of {checkpoints.folder}: restart files are unpickled, so only a "
            "run's own are read; take --init-from model.safetensors for weights of another run"
        )
    return checkpoints.trusted(path)


def _same_list(stored: Config, now: Config, out: Path, say: Say) -> Config:
    """The settings with the list of withheld dates as the run calls it, where the list named now holds the run's dates."""
    given, own = now.data.withheld, out / WITHHELD
    if given is None or stored.data.withheld is None or not own.exists():
        return now
    same = Path(given).is_file() and Path(given).read_bytes() == own.read_bytes()
    if given == stored.data.withheld and not same:
        say(f"{given} is not what it was when the run began: the run keeps its copy, {own}")
    if not same:
        return now
    return dataclasses.replace(now, data=dataclasses.replace(now.data, withheld=stored.data.withheld))


def _refuse_changes(stored: Config, now: Config, out: Path) -> None:
    changed = []
    for section in ("model", "data", "objective", "train"):
        before, after = getattr(stored, section), getattr(now, section)
        for item in dataclasses.fields(before):
            a, b = getattr(before, item.name), getattr(after, item.name)
            if section == "model" and item.name in ("inputs", "targets", "text_dim") and not b:
                continue
            if a != b and item.name not in MAY_CHANGE.get(section, ()):
                changed.append(f"{section}.{item.name} {a!r} → {b!r}")
    if changed:
        raise ConfigError(
            f"a resumed run keeps its settings, but {'; '.join(changed)}: give those that it began with, which --config "
            f"{out / SETTINGS} reads back, or start another run with a new --out (--init-from)"
        )


def _require_same_chips(state: State, folder: ChipFolder, config: Config, checkpoint: Path) -> None:
    """Raises CheckpointError where the folder's training chips are not those that the run has learnt from: another
    number or order of chips gives other samples from here on, and what was held out may have been seen."""
    now = ChipNames.of(folder, folder.without(config.data.held_out_places))
    if state.chips not in (None, now):
        raise CheckpointError(
            f"{checkpoint}: the run trains on {state.chips.count} chips, {folder.path} holds {now.count} of other names: give "
            "it its own chips again, or start a new run on these with --init-from model.safetensors"
        )


def _require_untrained(out: Path) -> None:
    """Raises RunError where checkpoints have been written and are gone: starting again would overwrite what they left.

    A run that was killed before its first one has nothing to lose.
    """
    weights = out / WEIGHTS
    written = [event["step"] for event in read_events(out) if event.get("event") == "checkpoint"]
    if written or weights.exists():
        raise RunError(
            f"{out}: checkpoints/ is empty, though the run has written some{f', up to step {max(written)}' if written else ''}: "
            f"it cannot go on; start a new one with another --out{f' and --init-from {weights}' if weights.exists() else ''}"
        )


def _needs_universal(state: State, now: State, checkpoint: Path) -> bool:
    """Whether DeepSpeed must convert the checkpoint first. Raises CheckpointError where it cannot."""

    def refuse(why: str) -> CheckpointError:
        return CheckpointError(
            f"{checkpoint}: written by {state.world_size} ranks at ZeRO stage {state.stage} in {state.precision}, and {why}: "
            "use the same, or start a new run with --init-from model.safetensors"
        )

    if state.precision != now.precision:
        raise refuse(f"this run would go on in {now.precision}")
    if state.stage == now.stage == 0:
        return False
    if state.stage != now.stage and not {state.stage, now.stage} <= {1, 2}:
        raise refuse(f"DeepSpeed cannot go on at stage {now.stage}")
    return state.world_size != now.world_size


def _convert(checkpoint: Path, state: State, say: Say) -> Path:
    """DeepSpeed's universal form of a checkpoint, in a folder that is removed once it is loaded."""
    say(f"{checkpoint.name} was written by {state.world_size} ranks: converting it")
    target = checkpoint.parent / UNIVERSAL
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(checkpoint / RESTART), "--output_folder", str(target / RESTART)]
    command += ["--inject_missing_state"] if state.stage in (1, 2) else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise CheckpointError(f"{checkpoint}: DeepSpeed cannot convert it for another number of ranks: {''.join(last)}")
    return target
