"""Opening a run: a new one from a folder of chips, or an existing one to go on with.

Rank 0 looks, decides and writes; the others read what it wrote.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from aef.atomic import writing
from aef.config import Config, ConfigError
from aef.data.chips import ChipFolder
from aef.data.dataset import read_withheld
from aef.data.statistics import FILE_NAME, SAMPLE, Statistics, TakenOver
from aef.data.withheld import WithheldDates
from aef.run import (
    DESCRIPTION,
    SETTINGS,
    TEXT_TOWER,
    WEIGHTS,
    WITHHELD,
    Run,
    RunError,
    input_and_target_names,
    with_own_list,
)
from aef.settings_file import load_config, registry_of
from aef.sources import Registry
from aef.text.cache import FOLDER, VectorCache, find_vectors
from aef.text.tower import TowerError, TowerIdentity

from .checkpoint import RESTART, STATE, CheckpointError, Checkpoints, ChipNames, Position, State, restore_generator
from .deepspeed_config import precision_of, read_configuration, resolve, stage_of
from .deepspeed_engine import Engine
from .distributed import Ranks
from .log import Say, StepLog, read_events
from .planner import filler
from .run_lock import RunLock

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
"""Settings that a resumed run may change; all others would silently make it another run. A new ``train.steps`` stretches
the rest of the schedule, which is said."""

UNIVERSAL = ".universal"


@dataclass
class Opening:
    """A run ready to train: its description, where it stands, what to restore (None: it starts), and on rank 0 the lock
    that keeps other trainings out until `release`."""

    run: Run
    position: Position
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
    config: Config, data: Path, out: Path, resume: str | None, deepspeed_config: str | None, ranks: Ranks, say: Say
) -> Opening:
    """Open ``out``: new, or with ``resume`` where it stands. Collective.

    Raises:
        RunError: the folder holds a run and ``resume`` is None, or holds none and a checkpoint was named; another training
            is at work in it.
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
            return _reopen(config, data, out, resume, State(Position(), ranks.size, stage, precision, 0, 0), say)
        if resume not in (None, "auto"):
            raise RunError(f"--resume {resume}: {out} holds no run")
        create_run(config, data, out, say, ranks.size)
        return [None, None]

    try:
        checkpoint, universal = (
            None if path is None else Path(path) for path in ranks.on_first(decide, "opening the run", say)
        )
        run = Run.read(out)
        lock = locks[0] if locks else None
        if checkpoint is None:
            return Opening(run, Position(), lock=lock)
        state = State.read(checkpoint / STATE)
        return Opening(run, state.position, checkpoint, universal, state.bad_chips, lock)
    except BaseException:
        for lock in locks:
            lock.release()
        raise


# --- a new run -------------------------------------------------------------------------------------------------------


def create_run(config: Config, data: Path, out: Path, say: Say, ranks: int = 1) -> Run:
    """Describe a new run from its chips and write the description, with the text tower whose vectors it learns from and
    a copy of the dates that it withholds."""
    run = describe_run(config, data, out, say)
    filler(run.config, run.registry, run.inputs, ranks)  # too much of it is said before anything is written
    if config.data.withheld is not None:
        _keep_list(config.data.withheld, out)
    run.write()
    vectors = find_vectors(data) if run.config.model.text_dim else None
    if vectors is not None:
        with writing(out / TEXT_TOWER, "w") as stream:
            stream.write(vectors.identity.to_json())
    return run


def find_sources(config: Config, data: Path) -> tuple[Registry, tuple[tuple[str, ...], tuple[str, ...]]]:
    """The registry of a folder of chips, and what a run over it encodes and decodes, from its headers."""
    folder = ChipFolder(data, registry_of(data, files=config.data.sources_file))
    return folder.registry, _sources_of(config, folder)


def _sources_of(config: Config, folder: ChipFolder) -> tuple[tuple[str, ...], tuple[str, ...]]:
    inputs, targets = input_and_target_names(config, folder.sources(skip_bad=config.data.skip_bad), folder.registry)
    return tuple(inputs), tuple(targets)


def describe_run(config: Config, data: Path, out: Path, say: Say) -> Run:
    """Sources, statistics and settings of a run over ``data``; statistics are taken where ``CHIPS/stats.json`` is absent."""
    registry = registry_of(data, files=config.data.sources_file)
    folder = ChipFolder(data, registry)
    folder.survey(say)
    inputs, targets = _sources_of(config, folder)
    _require_choices(config, folder)
    statistics = _statistics(config, folder, say)
    for name in dict.fromkeys((*inputs, *targets)):
        if not registry[name].classes:
            statistics.require(registry[name])
    model = dataclasses.replace(config.model, inputs=inputs, targets=targets, text_dim=_text_dim(config, data))
    return Run(out, dataclasses.replace(config, model=model), registry, statistics, inputs, targets)


def require_choices(config: Config, data: Path) -> None:
    """Refuse what sampling or the first validation would stumble over: places that cannot be held out, dates that cannot
    be withheld or judged. Raises ChipError, ConfigError, WithheldError, FileNotFoundError."""
    _require_choices(config, ChipFolder(data, registry_of(data, files=config.data.sources_file)))


def _require_choices(config: Config, folder: ChipFolder) -> None:
    """Before anything is written: see `require_choices`."""
    folder.without(config.data.held_out_places)
    read_withheld(folder, config.data)
    if config.train.validate_set is not None:
        if config.data.withheld is None:
            raise ConfigError(
                f"train.validate_set: expected none without data.withheld, whose rows it picks, found "
                f"{config.train.validate_set!r}"
            )
        WithheldDates.read(config.data.withheld, config.train.validate_set)


def _keep_list(listed: str, out: Path) -> None:
    """Copy the list of withheld dates into the run, which reads only its own from then on. Atomic."""
    content = Path(listed).read_bytes()
    out.mkdir(parents=True, exist_ok=True)
    with writing(out / WITHHELD) as stream:
        stream.write(content)


def _text_dim(config: Config, data: Path) -> int:
    """Width of the text vectors that lie beside the chips; 0, and no text head, where there are none."""
    vectors = find_vectors(data)
    wanted, found = config.model.text_dim, 0 if vectors is None else vectors.dim
    if wanted not in (0, found):
        raise ConfigError(f"model.text_dim: the text vectors in {data / FOLDER} are {found} wide, found {wanted}")
    return found


def text_vectors(run: Run, data: Path) -> VectorCache | None:
    """Vectors of the chips' texts, by the tower with which the run began. Raises TowerError where they are not there."""
    if not run.config.model.text_dim:
        return None
    identity = TowerIdentity.read(run.path / TEXT_TOWER)
    vectors = find_vectors(data, identity)
    if vectors is None:
        raise TowerError(
            f"{data}: holds no text vectors of {identity.name}, from which this run learns: `aef text --encode`"
        )
    return vectors


def _statistics(config: Config, folder: ChipFolder, say: Say) -> Statistics:
    """``CHIPS/stats.json`` where it fits this run, else statistics of the training places."""
    path, weighting = folder.path / FILE_NAME, config.data.statistics
    if weighting == "given":
        return Statistics.read(path)
    held_out = set(config.data.held_out_places)
    places = set(folder.known_places()) - held_out if held_out else None
    withheld = read_withheld(folder, config.data)
    over = TakenOver.of(folder, places, withheld)
    absent = not path.exists()
    if absent:
        say(f"{path} is absent: taking statistics over the training places")
    else:
        found = Statistics.read(path)
        why = _unfit(found, held_out, weighting, over)
        if why is None:
            return found
        say(f"{path}: its statistics are {why}: this run takes its own")
    if over.chips > SAMPLE:
        say(f"they are taken over {SAMPLE:,} of {over.chips:,} chips, drawn at random: `aef stats` takes more")
    taken = Statistics.of_chips(
        folder,
        folder.registry,
        weighting=weighting,
        places=places,
        withheld=withheld,
        skip_bad=config.data.skip_bad,
        sample=SAMPLE,
        workers=max(1, config.data.workers),
    )
    if absent:
        try:
            taken.write(path)
        except OSError as error:
            say(f"{path}: cannot be written ({error.strerror}); the statistics are kept in the run only")
    return taken


def _unfit(found: Statistics, held_out: set[str], weighting: str, over: TakenOver) -> str | None:
    """Why statistics do not serve a run over ``over``, or None. Those of unknown origin are trusted."""
    # Names of very many places are read only where some are asked for.
    seen = sorted(held_out.intersection(found.places)) if held_out else []
    if seen:
        return f"of {', '.join(seen)} too, held out here"
    if found.weighting not in (weighting, "identity"):
        return f"over {found.weighting} pixels"
    if found.taken_over is not None and not found.taken_over.is_of_this_form:
        return "of an earlier version, which remembered its chips in another way (`aef stats` takes them again for all runs)"
    if found.taken_over is not None and not found.taken_over.fits(over):
        return (
            f"of other chips, values or withheld dates ({found.taken_over.chips} chips, here {over.chips}; `aef stats` takes "
            "them again for all runs, data.statistics=given uses them on purpose)"
        )
    return None


# --- an existing run -------------------------------------------------------------------------------------------------


def _reopen(config: Config, data: Path, out: Path, resume: str | None, now: State, say: Say) -> list[str | None]:
    """Choose the checkpoint, refuse what cannot be continued, cut the log back. Rank 0 only."""
    if resume is None:
        raise RunError(f"{out} already holds a run: go on with --resume auto, or choose another --out")
    run = Run.read(out)
    stored = load_config(str(out / SETTINGS))
    config = _same_list(stored, config, out, say)
    _refuse_changes(stored, config, out)
    # Another number of ranks, or train.micro_batch, has other micro-batches, of which filler is another share.
    filler(config, run.registry, run.inputs, now.world_size)
    folder = ChipFolder(data, run.registry)
    folder.survey(say)
    _require_choices(with_own_list(config, out), folder)
    if config.data.withheld is not None and not (out / WITHHELD).exists():
        _keep_list(config.data.withheld, out)
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
        say(f"going on from {checkpoint.name}" + (f"; {dropped} later log lines dropped" if dropped else ""))
    return [str(path) if path is not None else None for path in (checkpoint, universal)]


def _choose(checkpoints: Checkpoints, resume: str, say: Say) -> Path | None:
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
    """Raises CheckpointError where the folder's training chips are not those that the run has learnt from: another number
    or order of chips gives other samples from here on, and what was held out may have been seen."""
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
