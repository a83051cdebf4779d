"""Weights of an earlier run that a new one begins with, and what is known of that run.

What belongs to one source alone, its projector and its decoder, and the text head may be missing on either side: the new
run's part then begins untrained, the earlier one's is left out. All else must be the same network.

Where the weights lie in a run's folder, that run's statistics come with them, because a network knows its sources by
their z-scores only; its places count as seen; and a network of the same shapes that computes something else is refused.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aef.config import Config, ModelConfig
from aef.data.statistics import Statistics
from aef.data.withheld import WithheldDates
from aef.model.aef import AEF
from aef.run import DESCRIPTION, TEXT_TOWER, WEIGHTS, Run, RunError, Weights, build_model, read_weights, require_fitting
from aef.sources import Source
from aef.text.tower import TowerIdentity

from .checkpoint import FOLDER

MAY_DIFFER = {
    *("inputs", "targets", "text_dim", "text_width", "kappa"),
    *("compute_dtype", "checkpointing", "compile", "cuda_graphs"),
}
"""Settings of the network with which the same weights still compute the same embeddings."""

_OF_ONE_SOURCE = ("projectors.sources.", "decoders.")
_TEXT_HEAD = "text_head"


@dataclass(frozen=True)
class Initial:
    """Weights to begin with.

    Attributes:
        path: their file.
        weights: as they were read.
        run: the run in whose folder they lie; None where they lie elsewhere, and nothing else is known of them.
    """

    path: Path
    weights: Weights
    run: Run | None

    @classmethod
    def read(cls, path: str | os.PathLike) -> Initial:
        """Of a run's folder, of one of its checkpoints, or of a file.

        Raises:
            RunError: there are none, or they or their run are damaged or of a newer format.
        """
        file = Path(path)
        if file.is_dir():
            file = file / WEIGHTS
        weights = read_weights(file)
        of_checkpoint = file.absolute().parent.parent.name == FOLDER
        folder = file.absolute().parents[2] if of_checkpoint else file.parent
        return cls(file, weights, Run.read(folder) if (folder / DESCRIPTION).is_file() else None)

    def require_fitting(self, new: Run, tower: TowerIdentity | None) -> str:
        """What a new run begins with, in one line (`describe`); ``tower`` encoded its texts. Takes no memory.

        Raises:
            RunError: it cannot begin with the weights, or keeps from training what they have seen.
        """
        if self.run is not None:
            _require_same_network(self.path, self.run, new)
            _require_unseen(self.path, self.run, new.config)
        with torch.device("meta"):
            model = build_model(new)
            self.state_for(model, tower)
        return self.describe(model, tower)

    def state_for(self, model: AEF, tower: TowerIdentity | None) -> dict[str, Tensor]:
        """All weights of a network: these, and its own in parts that begin untrained. Raises RunError as above."""
        own = model.state_dict()
        untrained, left_out = self.differing_parts(own, tower)
        kept = {name: value for name, value in self.weights.state.items() if part_of(name) not in left_out}
        state = {name: value for name, value in own.items() if part_of(name) in untrained} | kept
        require_fitting(model, state, self.path)
        return state

    def differing_parts(self, names: Iterable[str], tower: TowerIdentity | None) -> tuple[set[str], set[str]]:
        """Parts of a network, which has weights of these names, that begin untrained, and parts that are left out."""
        new, old = _parts(names), _parts(self.weights.state)
        other_words = {_TEXT_HEAD} if self._heard_another(tower) else set()
        return (new - old) | (new & other_words), (old - new) | (old & other_words)

    def _heard_another(self, tower: TowerIdentity | None) -> bool:
        """Whether the text head learned from the vectors of a tower that is known and not this one."""
        file = None if self.run is None else self.run.path / TEXT_TOWER
        return (
            tower is not None
            and file is not None
            and file.is_file()
            and not tower.agrees_with(TowerIdentity.read(file))
        )

    def describe(self, model: AEF, tower: TowerIdentity | None) -> str:
        """One line on what a run begins with."""
        untrained, left_out = self.differing_parts(model.state_dict(), tower)
        line = f"begins with {self.path}, step {self.weights.step}"
        for what, parts in (("untrained yet", untrained), ("left out", left_out)):
            line += f"; {what}: {', '.join(sorted(parts))}" if parts else ""
        return line if self.run is not None else f"{line}; with the chips' statistics: its own are not beside it"

    def statistics(self, sources: Sequence[Source], places: Iterable[str], own: Callable[[], Statistics]) -> Statistics:
        """Those with which the weights learned; of sources and bands that they never saw, from ``own``, which is called
        only where there are any. ``places`` are the new run's: they and the earlier one's count as seen."""
        assert self.run is not None
        earlier = self.run.statistics
        if earlier.weighting != "identity" and any(earlier.lacks(source) for source in sources):
            earlier = earlier.completed_by(own(), sources)
        return earlier.also_of(set(places))


def part_of(name: str) -> str | None:
    """The part of a network that an earlier run may lack and to which a weight belongs; None: what every run has."""
    for prefix in _OF_ONE_SOURCE:
        if name.startswith(prefix):
            return prefix + name.removeprefix(prefix).partition(".")[0]
    return _TEXT_HEAD if name.startswith(f"{_TEXT_HEAD}.") else None


def _parts(names: Iterable[str]) -> set[str]:
    return {part for part in map(part_of, names) if part is not None}


def _require_same_network(path: Path, earlier: Run, new: Run) -> None:
    """Raises RunError where settings or entries differ that give the same weights another meaning."""
    before, now = earlier.config.model, new.config.model
    names = [item.name for item in dataclasses.fields(now) if item.name not in MAY_DIFFER]
    other = [name for name in names if getattr(before, name) != getattr(now, name)]
    if other:
        of_preset = f" (--config {earlier.config.preset})" if earlier.config.preset != new.config.preset else ""
        raise RunError(
            f"{path}: of another model: expected {_settings(before, other)}{of_preset}, found {_settings(now, other)}"
        )
    encoded, decoded = ({*a} & {*b} for a, b in ((earlier.inputs, new.inputs), (earlier.targets, new.targets)))
    for name in sorted(encoded | decoded):
        then, here = (_meaning(run.registry[name], name in decoded) for run in (earlier, new))
        if differing := [what for what in here if then[what] != here[what]]:
            what = differing[0]
            expected, found = (_only(*pair) for pair in ((then[what], here[what]), (here[what], then[what])))
            raise RunError(
                f"{path}: source {name} was another one: of its {what} expected {expected}, found {found}: give yours another "
                "name, and its part begins untrained"
            )


def _only(these: Sequence[str], others: Sequence[str]) -> str:
    """What the others lack; all, where there is no such thing, as in another order."""
    return ", ".join([item for item in these if item not in others] or these) or "none"


def _settings(model: ModelConfig, names: Iterable[str]) -> str:
    return " ".join(f"model.{name}={getattr(model, name)}" for name in names)


def _meaning(source: Source, decoded: bool) -> dict[str, list[str]]:
    """What a projector or a decoder took values of a source for."""
    return {
        "bands": [f"{band.name} in {band.unit or 1}" for band in source.bands],
        "transforms": [f"{one.kind} {one.scale:g} {one.offset:g}" for one in (band.transform for band in source.bands)],
        "classes": [str(code) for code in source.classes],
        "metadata": [f"{field.name} ({field.kind})" for field in source.metadata] if decoded else [],
    }


def _require_unseen(path: Path, earlier: Run, config: Config) -> None:
    """Raises RunError where a run would hold out places, or withhold dates, that the weights have learned from."""
    if not (config.data.held_out_places or config.data.withheld):
        return  # names of very many places are read only where some are asked for
    trained_on = set(earlier.statistics.places)
    if seen := sorted(trained_on.intersection(config.data.held_out_places)):
        raise RunError(
            f"data.held_out_places: the weights of {path} have learned from {', '.join(seen[:5])}: hold out places that they have "
            "not seen"
        )
    if config.data.withheld is None:
        return
    own = earlier.config.data.withheld
    hidden = WithheldDates({}) if own is None else WithheldDates.read(own, twin_ms=earlier.config.data.twin_ms)
    free = 0
    for (place, source), times in WithheldDates.read(config.data.withheld).dates().items():
        if place in trained_on:
            free += int((~hidden.frames(place, source, np.array(times, np.int64))).sum())
    if free:
        raise RunError(
            f"data.withheld: {free} dates of {config.data.withheld} at places that the weights of {path} have learned from were not "
            "withheld from them: withhold dates that they have not seen, at best with the list with which they were trained"
        )
