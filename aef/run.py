"""The run folder: what training leaves behind, and all that using a trained model needs.

==================== ==================================================================================================
file                 content
==================== ==================================================================================================
config.yaml          the resolved settings
config.json          format and software version, preset, encoded and decoded sources
sources.yaml         the registry entries of those sources
stats.json           the normalisation statistics that the model was trained with (stats.places.gz: their places, if many)
model.safetensors    fp32 weights, with the step they are from and their SHA-256
text_tower.json      which text tower's vectors it learnt from: name, weights, hash (runs with a text head)
withheld.csv         the dates that no sample saw, as they were when the run began (runs with ``data.withheld``)
log.jsonl, figures/, checkpoints/   written and read by `aef.training` only
==================== ==================================================================================================

Everything here is YAML, JSON or safetensors: nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aef import __version__
from aef.atomic import writing
from aef.config import Config
from aef.path import as_path
from aef.settings_file import SOURCES_FILE, dump_config, read_resolved, read_sources, write_sources
from aef.sources import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from aef.data.statistics import Statistics

FORMAT_VERSION = 1
SETTINGS, DESCRIPTION, STATISTICS, WEIGHTS = "config.yaml", "config.json", "stats.json", "model.safetensors"
TEXT_TOWER, WITHHELD = "text_tower.json", "withheld.csv"


class RunError(ValueError):
    """A run folder is missing, foreign, partial or newer; one line naming the file and what to do."""


@dataclass(frozen=True)
class Run:
    """The description of a run: everything but its weights."""

    path: Path
    config: Config
    registry: Registry
    statistics: Statistics
    inputs: tuple[str, ...]
    targets: tuple[str, ...]

    def write(self) -> None:
        """Write the description into the run folder, each file atomically."""
        self.path.mkdir(parents=True, exist_ok=True)
        entries = {
            "format_version": FORMAT_VERSION,
            "software_version": __version__,
            "preset": self.config.preset,
            "inputs": list(self.inputs),
            "targets": list(self.targets),
        }
        with writing(self.path / SETTINGS, "w") as stream:
            stream.write(dump_config(self.config))
        names = dict.fromkeys((*self.inputs, *self.targets))
        write_sources(self.path / SOURCES_FILE, [self.registry[name] for name in names])
        self.statistics.write(self.path / STATISTICS)
        with writing(self.path / DESCRIPTION, "w") as stream:
            json.dump(entries, stream, indent=1)

    @classmethod
    def read(cls, path: str | os.PathLike) -> Run:
        """Read a description. ``config.data.withheld`` is the run's own copy of the list, where it holds one: the file
        that the settings name may have changed since, or lie elsewhere.

        Raises:
            RunError: not a run folder, one of a newer format, or a partial one.
        """
        from aef.data.statistics import Statistics

        path = as_path(path, "run")
        entries = _description(path)
        for name in (SETTINGS, SOURCES_FILE, STATISTICS):
            if not (path / name).is_file():
                raise RunError(f"{path / name}: is missing: the run is partial, train it again or copy it whole")
        try:
            return cls(
                path,
                with_own_list(read_resolved(path / SETTINGS), path),
                Registry(read_sources(path / SOURCES_FILE)),
                Statistics.read(path / STATISTICS),
                tuple(entries["inputs"]),
                tuple(entries["targets"]),
            )
        except (KeyError, TypeError) as error:
            raise RunError(f"{path / DESCRIPTION}: not the description of a run ({error})") from error
        except ValueError as error:
            # Settings, sources and statistics have errors of their own, which name the file.
            raise RunError(f"{path}: damaged, or of another version of this software: {error}") from error


def with_own_list(config: Config, run: Path) -> Config:
    """The settings with ``data.withheld`` as the run's own copy of the list, where there is one."""
    if config.data.withheld is None or not (run / WITHHELD).is_file():
        return config
    return replace(config, data=replace(config.data, withheld=str(run / WITHHELD)))


def _description(path: Path) -> Mapping[str, Any]:
    file = path / DESCRIPTION
    if path.is_file():
        raise RunError(f"{path}: expected a run folder, found a file: give the folder that `aef train --out` made")
    if not path.is_dir():
        raise RunError(f"{path}: no such run folder")
    if not file.is_file():
        raise RunError(f"{path}: not a run folder: it holds no {DESCRIPTION}; `aef train --out RUN` makes one")
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        version = entries["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file}: not the description of a run ({type(error).__name__})") from error
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise RunError(f"{file}: expected format_version up to {FORMAT_VERSION}, found {version}: update the software")
    return entries


class Weights(NamedTuple):
    """Weights as they were read, the step they are from, and their SHA-256 (`digest`)."""

    state: dict[str, Tensor]
    step: int
    sha256: str


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of weights by name: of what a model is made of, whatever else its file says."""
    import torch

    sha256 = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def write_weights(path: str | os.PathLike, state: Mapping[str, Tensor], *, step: int) -> Path:
    """Write fp32 weights with the step they are from and their SHA-256, atomically.

    The hash lies in the file, so that no crash leaves it beside other weights.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    from safetensors.torch import save

    path = Path(path)
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}
    metadata = {"format_version": str(FORMAT_VERSION), "step": str(step), "sha256": digest(tensors)}
    with writing(path) as stream:
        stream.write(save(tensors, metadata=metadata))
    return path


def read_weights(path: str | os.PathLike) -> Weights:
    """Weights that are as they were written. Older files, which state no hash, are taken as they are.

    Raises:
        RunError: the file is missing, damaged or of a newer format.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if path.is_dir():
        raise RunError(f"{path}: expected a file of weights, like {path / WEIGHTS}, found a folder")
    if not path.is_file():
        raise RunError(f"{path}: is missing: the run has not written its weights yet")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{path}: is damaged ({error}): take an earlier checkpoint") from error
    if int(metadata.get("format_version", FORMAT_VERSION)) > FORMAT_VERSION:
        raise RunError(f"{path}: of a newer format: update the software")
    sha256 = digest(state)
    if metadata.get("sha256", sha256) != sha256:
        raise RunError(
            f"{path}: is damaged (its weights have another SHA-256 than was written): take an earlier checkpoint"
        )
    return Weights(state, int(metadata.get("step", 0)), sha256)


def load_state(module: Any, state: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """Load weights into a module. Raises RunError as `require_fitting` does."""
    require_fitting(module, state, path)
    module.load_state_dict(state)


def require_fitting(module: Any, state: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """Raises RunError naming the first few weights that a module would miss, or not know, or have of another shape."""
    expected = module.state_dict()
    missing, foreign = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = [name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape]
    for what, names in (("lacks", missing), ("holds foreign", foreign), ("holds other shapes of", sorted(shapes))):
        if names:
            raise RunError(f"{path}: {what} {', '.join(names[:3])}{' …' if len(names) > 3 else ''}: of another model")


def build_model(run: Run):
    """The untrained network that a run describes."""
    from aef.model.aef import AEF

    return AEF(
        run.config.model,
        run.registry,
        run.statistics,
        inputs=run.inputs,
        targets=run.targets,
        clip_sigma=run.config.objective.clip_sigma,
    )


def input_and_target_names(config: Config, found: Sequence[str], registry: Registry) -> tuple[tuple[str, ...], ...]:
    """What a run encodes and decodes: as its settings say, or every source found in the data, in the registry's order.

    Raises:
        RunError: no input source is left, or a setting names a source that the data lack, or would encode one that is
            only decoded.
    """
    order = [name for name in registry if name in set(found)]
    for name in (*config.model.inputs, *config.model.targets):
        if name not in order:
            raise RunError(f"model.inputs, model.targets: the data hold no {name!r}; they hold {', '.join(order)}")
    encodable = tuple(name for name in order if registry[name].role == "input")
    for name in config.model.inputs:
        if name not in encodable:
            raise RunError(
                f"model.inputs: {name} is only decoded; of those in the data {', '.join(encodable) or 'none'} can be encoded: "
                "name one of them, or give it an entry with role: input and a frame_budget"
            )
    inputs = config.model.inputs or encodable
    if not inputs:
        raise RunError(f"no input source in the data: they hold {', '.join(order) or 'nothing'}")
    return tuple(inputs), config.model.targets or tuple(order)
