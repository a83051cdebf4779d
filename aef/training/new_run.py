"""A new run: its description, from the settings and a folder of chips."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from aef.atomic import writing
from aef.config import Config, ConfigError
from aef.data.chips import ChipFolder
from aef.data.dataset import read_withheld
from aef.data.ground import describe_shared_ground
from aef.data.random_batch import sources_of
from aef.data.statistics import FILE_NAME, SAMPLE, Statistics, TakenOver
from aef.data.withheld import WithheldDates
from aef.run import TEXT_TOWER, WITHHELD, Run, input_and_target_names
from aef.settings_file import registry_of
from aef.sources import BUILT_IN, Registry
from aef.text.cache import FOLDER, VectorCache, find_vectors
from aef.text.tower import TowerError, TowerIdentity

from .initial import Initial
from .log import Say
from .planner import filler


def create_run(config: Config, data: Path, out: Path, say: Say, ranks: int = 1, initial: Initial | None = None) -> Run:
    """Describe a new run from its chips and write the description, with the text tower whose vectors it learns from and
    a copy of the dates that it withholds."""
    run = describe_run(config, data, out, say, initial)
    filler(run.config, run.registry, run.inputs, ranks)  # too much of it is said before anything is written
    if config.data.withheld is not None:
        keep_list(config.data.withheld, out)
    run.write()
    if (tower := _tower(run.config, data)) is not None:
        with writing(out / TEXT_TOWER, "w") as stream:
            stream.write(tower.to_json())
    return run


def find_sources(config: Config, data: str | Path | None) -> tuple[Registry, tuple[tuple[str, ...], tuple[str, ...]]]:
    """The registry, and what a run encodes and decodes: by the headers of a folder of chips, or without one by the
    registry alone."""
    if data is None:
        registry = registry_of(files=config.data.sources_file) if config.data.sources_file else BUILT_IN
        return registry, sources_of(config, registry)
    folder = ChipFolder(data, registry_of(data, files=config.data.sources_file))
    return folder.registry, _sources_of(config, folder)


def require_beginning(initial: Initial, config: Config, data: Path) -> str:
    """What a run over ``data`` would begin with, in one line. Reads headers, no pixels. Raises RunError where it could not."""
    registry, (inputs, targets) = find_sources(config, data)
    return _require_beginning(initial, _with_text(config, data), data, registry, inputs, targets)


def _require_beginning(
    initial: Initial, config: Config, data: Path, registry: Registry, inputs: tuple[str, ...], targets: tuple[str, ...]
) -> str:
    scales = Statistics.identity(registry, dict.fromkeys((*inputs, *targets)))  # shapes do not depend on them
    return initial.require_fitting(Run(Path(), config, registry, scales, inputs, targets), _tower(config, data))


def _with_text(config: Config, data: Path) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, text_dim=_text_dim(config, data)))


def _tower(config: Config, data: Path) -> TowerIdentity | None:
    vectors = find_vectors(data) if config.model.text_dim else None
    return None if vectors is None else vectors.identity


def _sources_of(config: Config, folder: ChipFolder) -> tuple[tuple[str, ...], tuple[str, ...]]:
    inputs, targets = input_and_target_names(config, folder.sources(skip_bad=config.data.skip_bad), folder.registry)
    return tuple(inputs), tuple(targets)


def describe_run(config: Config, data: Path, out: Path, say: Say, initial: Initial | None = None) -> Run:
    """Sources, statistics and settings of a run over ``data`` that begins with ``initial`` weights, once these are found to
    fit. Statistics are theirs; else ``CHIPS/stats.json``, or taken where that is absent."""
    registry = registry_of(data, files=config.data.sources_file)
    folder = ChipFolder(data, registry)
    folder.build_index(say)
    inputs, targets = _sources_of(config, folder)
    require_choices_of(config, folder)
    config = _with_text(config, data)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, inputs=inputs, targets=targets))
    if initial is not None:
        _require_beginning(initial, config, data, registry, inputs, targets)
    withheld = read_withheld(folder, config.data)
    if withheld is not None and (idle := withheld.describe_unmatched(folder)):
        say(f"{config.data.withheld}: {idle}")
    seen = describe_shared_ground(folder, config.data.held_out_places, () if withheld is None else withheld.places)
    if seen is not None:
        say(f"{data}: {seen}")
    if initial is None or initial.run is None or config.data.statistics == "given":
        statistics = _statistics(config, folder, say)
    else:
        places = set(folder.known_places()) - set(config.data.held_out_places)
        sources = [registry[name] for name in dict.fromkeys((*inputs, *targets))]
        statistics = initial.statistics(sources, places, lambda: _statistics(config, folder, say))
    for name in dict.fromkeys((*inputs, *targets)):
        if not registry[name].classes:
            found = statistics.require(registry[name])
            if statistics.weighting != "identity" and not any(found.count):
                say(
                    f"{name}: no pixel of it is {statistics.weighting} in any chip of the statistics: its values stay unscaled and "
                    "nothing of it is scored; look at its validity and cloud weights (`aef show`)"
                )
    return Run(out, config, registry, statistics, inputs, targets)


def require_choices(config: Config, data: Path) -> None:
    """Refuse what sampling or the first validation would stumble over: places that cannot be held out, dates that
    cannot be withheld or judged, bands that no source has. Raises ChipError, ConfigError, WithheldError,
    FileNotFoundError."""
    require_choices_of(config, ChipFolder(data, registry_of(data, files=config.data.sources_file)))


def require_choices_of(config: Config, folder: ChipFolder) -> None:
    """As `require_choices`, of a folder that is open."""
    require_names(config, folder.registry)
    folder.without(config.data.held_out_places)
    read_withheld(folder, config.data)
    if config.train.validate_set is not None:
        if config.data.withheld is None:
            raise ConfigError(
                f"train.validate_set: expected none without data.withheld, whose rows it picks, found "
                f"{config.train.validate_set!r}"
            )
        WithheldDates.read(config.data.withheld, config.train.validate_set)


def require_names(config: Config, registry: Registry) -> None:
    """Refuse names of bands that no source has, and weights of unknown sources. Raises ConfigError."""
    known_sources = f"known sources are {', '.join(registry)}"
    for name in config.objective.weights_by_source():
        if name not in registry:
            raise ConfigError(f"objective.source_weights: found {name!r}; {known_sources}")
    known = {f"{source.name}.{band.name}" for source in registry.values() for band in source.bands}
    for name in config.objective.unscored_bands:
        if name not in known:
            source = name.partition(".")[0]
            bands = ", ".join(sorted(one for one in known if one.startswith(f"{source}.")))
            raise ConfigError(
                f"objective.unscored_bands: expected SOURCE.BAND, found {name!r}; "
                + (f"of {source} there are {bands}" if bands else known_sources)
            )


def keep_list(listed: str, out: Path) -> None:
    """Copy the list of withheld dates into the run, which reads only its own from then on. Atomic."""
    content = Path(listed).read_bytes()
    out.mkdir(parents=True, exist_ok=True)
    with writing(out / WITHHELD) as stream:
        stream.write(content)


def _text_dim(config: Config, data: Path) -> int:
    """Width of the text vectors that lie beside the chips; 0, and no text head, where there are none."""
    vectors = find_vectors(data)
    asked, width = config.model.text_dim, 0 if vectors is None else vectors.dim
    if asked not in (0, width):
        raise ConfigError(f"model.text_dim: the text vectors in {data / FOLDER} are {width} wide, found {asked}")
    return width


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
    held_out = set(config.data.held_out_places)
    if weighting == "given":
        return Statistics.read(path).also_of(set(folder.known_places()) - held_out)
    places = set(folder.known_places()) - held_out if held_out else None
    withheld = read_withheld(folder, config.data)
    over = TakenOver.of(folder, places, withheld)
    absent = not path.exists()
    if absent:
        say(f"{path} is absent: taking statistics over the training places")
    else:
        statistics = Statistics.read(path)
        why = _unfit(statistics, held_out, weighting, over)
        if why is None and statistics.taken_over is not None:
            return statistics
        if why is None:
            return statistics.also_of(set(folder.known_places()) - held_out)
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


def _unfit(statistics: Statistics, held_out: set[str], weighting: str, over: TakenOver) -> str | None:
    """Why statistics do not serve a run over ``over``, or None. Those of unknown origin are trusted."""
    # Names of very many places are read only where some are asked for.
    seen = sorted(held_out.intersection(statistics.places)) if held_out else []
    if seen:
        return f"of {', '.join(seen)} too, held out here"
    if statistics.weighting not in (weighting, "identity"):
        return f"over {statistics.weighting} pixels"
    if statistics.taken_over is not None and not statistics.taken_over.is_of_this_form:
        return "of an earlier version, which remembered its chips in another way (`aef stats` takes them again for all runs)"
    if statistics.taken_over is not None and not statistics.taken_over.fits(over):
        return (
            f"of other chips, values or withheld dates ({statistics.taken_over.chips} chips, here {over.chips}; `aef stats` takes "
            "them again for all runs, data.statistics=given uses them on purpose)"
        )
    return None
