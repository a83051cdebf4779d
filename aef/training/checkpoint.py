"""Checkpoints that are whole or do not exist: written aside, hashed, listed in a manifest, renamed, rotated.

A run's folder holds ``checkpoints/step-00001000/`` with

* ``model.safetensors``   fp32 weights, the same from every ZeRO stage and number of ranks;
* ``state.json``          step, samples consumed, skipped steps, what wrote it;
* ``rng.json``            torch's generator state of each rank;
* ``restart/…``           DeepSpeed's own files: optimiser shards and parameters;
* ``manifest.json``       size and SHA-256 of all of these, written last.

DeepSpeed's restart files are pickles that DeepSpeed itself unpickles. They are therefore read only from the run's own
folder, and only after every file has passed the manifest. Everything else is safetensors or JSON.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from aef.atomic import writing
from aef.run import write_weights

if TYPE_CHECKING:
    from aef.data.chips import ChipFolder

    from .deepspeed_engine import Engine
    from .distributed import Ranks

FORMAT_VERSION = 2
"""2: restart files hold weights whose bytes are no multiple of 16 last."""
FOLDER, MANIFEST, STATE, WEIGHTS, RNG = "checkpoints", "manifest.json", "state.json", "model.safetensors", "rng.json"

GO_ON = "go on with the same command (`aef train`: with --resume auto)"
"""What to type after a run has stopped, whichever command trains."""

ASIDE = ".set-aside"
"""Behind the name of a checkpoint that was later than the one from which its run went on."""

_NAME = re.compile(r"step-(\d{8,})")


class CheckpointError(ValueError):
    """A checkpoint cannot be written, found or trusted; one line naming it and the reason."""


@dataclass(frozen=True)
class RunPosition:
    """Where a run stands: ``step`` updates applied, ``consumed`` samples drawn from the global order, ``skipped`` steps
    dropped as non-finite, ``in_a_row`` of them since the last applied one."""

    step: int = 0
    consumed: int = 0
    skipped: int = 0
    in_a_row: int = 0


@dataclass(frozen=True)
class ChipNames:
    """The training chips of a run, whose number and order fix every sample that it draws: a count and a digest."""

    count: int
    digest: str

    @classmethod
    def of(cls, folder: ChipFolder, indices: Iterable[int]) -> ChipNames:
        names = sorted(folder.files[index].stem for index in indices)
        return cls(len(names), hashlib.sha256("\n".join(names).encode()).hexdigest())


@dataclass(frozen=True)
class State:
    """``state.json``: the position, and what a resume must match.

    ``chips`` is None in checkpoints of earlier versions, which did not remember their training chips; ``bad_chips`` are
    the files that the run passed over (``data.skip_bad``), and does ever after."""

    position: RunPosition
    world_size: int
    stage: int
    precision: str
    global_batch: int
    seed: int
    chips: ChipNames | None = None
    bad_chips: tuple[str, ...] = ()
    format_version: int = FORMAT_VERSION

    def write(self, path: Path) -> None:
        with writing(path, "w") as stream:
            json.dump(dataclasses.asdict(self), stream, indent=1)

    @classmethod
    def read(cls, path: Path) -> State:
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            if entries["format_version"] > FORMAT_VERSION:
                raise CheckpointError(
                    f"{path}: expected format_version up to {FORMAT_VERSION}, found {entries['format_version']}: "
                    "update the software"
                )
            if entries["format_version"] < FORMAT_VERSION:
                raise CheckpointError(
                    f"{path}: its restart files hold the weights in the order of an earlier version (format_version "
                    f"{entries['format_version']}): go on with that version, or start a new run with --init-from "
                    f"{path.with_name(WEIGHTS)}"
                )
            chips = entries.get("chips")
            entries["chips"] = None if chips is None else ChipNames(**chips)
            entries["bad_chips"] = tuple(entries.get("bad_chips", ()))
            return cls(**{**entries, "position": RunPosition(**entries["position"])})
        except CheckpointError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: not a checkpoint's state ({error})") from error


class Checkpoints:
    """The checkpoints of one run: the newest ``keep``, and with ``every`` those of each multiple of so many steps. Only
    rank 0 calls its writing methods."""

    def __init__(self, run: Path, keep: int, every: int = 0) -> None:
        self.folder, self.keep, self.every = run / FOLDER, keep, every

    def all(self) -> list[Path]:
        """Every finished checkpoint folder, newest first, unverified."""
        if not self.folder.is_dir():
            return []
        whole = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
        return sorted(whole, key=_step_of, reverse=True)

    def newest(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that passes its manifest, and one line for each newer one that does not.

        Raises:
            CheckpointError: there are checkpoints, but none passes. Starting again from nothing is never silent.
        """
        refused: list[str] = []
        for path in self.all():
            reason = damage(path)
            if reason is None:
                return path, refused
            refused.append(f"{path}: {reason}")
        if refused:
            raise CheckpointError(
                f"no checkpoint of the run can be trusted ({'; '.join(refused)}): start again with another --out"
            )
        return None, []

    def trusted(self, path: Path) -> Path:
        """The checkpoint itself, if it passes its manifest. Raises CheckpointError."""
        if not path.is_dir():
            known = ", ".join(one.name for one in self.all()) or "none"
            raise CheckpointError(f"{path}: no such checkpoint; the run holds {known}")
        reason = damage(path)
        if reason is not None:
            raise CheckpointError(f"{path}: {reason}: it is not loaded")
        return path

    def begin(self, step: int) -> Path:
        """An empty folder that no reader takes for a checkpoint; leftovers of killed writers are removed."""
        self.clear_partial()
        partial = self.folder / f".step-{step:08d}.partial"
        partial.mkdir(parents=True)
        return partial

    def clear_partial(self) -> None:
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name.startswith(".step-"):
                    shutil.rmtree(path, ignore_errors=True)

    def commit(self, partial: Path, step: int, files: Mapping[str, Mapping[str, Any]]) -> Path:
        """Write the manifest, give the folder its name, drop the oldest beyond ``keep``."""
        with writing(partial / MANIFEST, "w") as stream:
            json.dump({"format_version": FORMAT_VERSION, "files": dict(sorted(files.items()))}, stream, indent=1)
        _sync(partial)
        final = self.folder / f"step-{step:08d}"
        if final.exists():
            self._remove(final)
        os.replace(partial, final)
        _sync(self.folder)
        for old in self.all()[self.keep :]:
            if not self.every or _step_of(old) % self.every:
                self._remove(old)
        return final

    def go_on_from(self, checkpoint: Path) -> list[Path]:
        """Make ``checkpoint`` the newest one again, and its weights the run's. Later ones, damaged or of a course that
        the run leaves, are set aside: they keep their content under a name that is no checkpoint's. Returns them."""
        aside = []
        for later in [path for path in self.all() if _step_of(path) > _step_of(checkpoint)]:
            target = later.with_name(later.name + ASIDE)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(later, target)
            aside.append(target)
        _put_weights(checkpoint / WEIGHTS, self.folder.parent / WEIGHTS)
        return aside

    def _remove(self, path: Path) -> None:
        # Renamed first: a removal that is cut short leaves no half checkpoint under a valid name.
        doomed = path.with_name(f".{path.name}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def write_checkpoint(checkpoints: Checkpoints, engine: Engine, state: State, ranks: Ranks) -> Path:
    """Write a checkpoint and put its weights into ``RUN/model.safetensors``. Collective.

    Raises:
        CheckpointError: on every rank, where any rank could not write; the partial folder is removed.
    """
    step = state.position.step

    def cannot(why: object) -> CheckpointError:
        return CheckpointError(
            f"the checkpoint of step {step} cannot be written to {checkpoints.folder} ({why}): free some space and {GO_ON}; "
            "earlier checkpoints are untouched"
        )

    def begin() -> str:
        try:
            return str(checkpoints.begin(step))
        except OSError as failure:
            raise cannot(failure) from failure

    partial = Path(ranks.on_first(begin))
    written, error = engine.save(partial)
    weights = engine.weights()
    generators = ranks.gather(torch.get_rng_state().tolist())
    files: dict[str, Any] = {}
    try:
        if error is not None:
            raise error
        if weights is not None:
            write_weights(partial / WEIGHTS, weights, step=step)
            state.write(partial / STATE)
            with writing(partial / RNG, "w") as stream:
                json.dump(generators, stream)
            written = [*written, partial / WEIGHTS, partial / STATE, partial / RNG]
        files = {str(path.relative_to(partial)): fingerprint(path) for path in written}
    except (OSError, RuntimeError) as failure:
        error = failure
    reports = ranks.gather([files, None if error is None else " ".join(str(error).split())[:200]])
    failures = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(reports) if text is not None]
    if failures:
        if ranks.is_first:
            checkpoints.clear_partial()
        raise cannot(failures[0])

    def publish() -> str:
        try:
            final = checkpoints.commit(
                partial, step, {name: entry for part, _ in reports for name, entry in part.items()}
            )
            _put_weights(final / WEIGHTS, checkpoints.folder.parent / WEIGHTS)
        except OSError as failure:
            checkpoints.clear_partial()
            raise cannot(failure) from failure
        return str(final)

    return Path(ranks.on_first(publish))


def require_same_model(checkpoint: Path, model: nn.Module) -> None:
    """Raises CheckpointError where the checkpoint's weights have other names or shapes than the model's."""
    from safetensors import safe_open

    with safe_open(checkpoint / WEIGHTS, "pt") as file:
        saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    own = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    differing = sorted(name for name in saved.keys() | own.keys() if saved.get(name) != own.get(name))
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"{checkpoint}: {len(differing)} weights differ from this software's model, first {name}: "
            f"{saved.get(name, 'absent')} there, {own.get(name, 'absent')} here: go on with the version that wrote it"
        )


def restore_generator(checkpoint: Path, rank: int) -> None:
    """torch's generator state of this rank, where the checkpoint has one."""
    states = json.loads((checkpoint / RNG).read_text(encoding="utf-8"))
    if rank < len(states):
        torch.set_rng_state(torch.tensor(states[rank], dtype=torch.uint8))


def _put_weights(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``, or a copy where links are not supported. Atomic."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        # A full disk leaves half a copy; and of two names of one file, replacing one by the other removes neither.
        temporary.unlink(missing_ok=True)


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, which is synced to disk first."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def damage(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None if every file is there and unchanged."""
    manifest = checkpoint / MANIFEST
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))
        version, files = entries["format_version"], dict(entries["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is missing or damaged"
    if version > FORMAT_VERSION:
        return f"expected format_version up to {FORMAT_VERSION}, found {version}"
    if not {STATE, WEIGHTS} <= set(files):
        return f"{MANIFEST} does not list {STATE} and {WEIGHTS}"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected.get("bytes"):
            return f"{name}: expected {expected.get('bytes')} bytes, found {path.stat().st_size}"
    for name, expected in files.items():
        if fingerprint(checkpoint / name)["sha256"] != expected.get("sha256"):
            return f"{name}: its checksum differs"
    return None


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
