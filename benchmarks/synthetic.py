"""What there is to learn on the synthetic Earth: python -m benchmarks.synthetic [PART ...] [--places N] [--seed S]

Parts: properties, withheld, probes. Prints the tables of docs/synthetic.md: measured properties of the test places, the
naive predictors of withheld dates, and hand-made features under few-shot probes with what the truth itself would reach.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from aef.data.chips import Chip
from aef.data.synthetic import Earth
from aef.data.synthetic.cover import WATER
from aef.data.synthetic.earth import render_chip
from aef.data.synthetic.grid import inside
from aef.data.synthetic.landscape import Scene
from aef.timecode import DAY_MS, Period

TEST_SEED = 1
INPUTS = ("sentinel2", "sentinel1", "landsat")
SHOTS = (10, None)
PIXELS = 40_000
"""Labelled pixels that are probed at most; drawn once for all features."""

Places = list[tuple[Scene, Chip]]


def properties(places: Places) -> Iterator[str]:
    """Mean and range over places of what the generator promises."""
    yield "| property of a place | mean | least | most |\n| --- | --- | --- | --- |"
    rows = [_measure(scene, chip) for scene, chip in places]
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        yield f"| {name} | {values.mean():.3g} | {values.min():.3g} | {values.max():.3g} |"


def _measure(scene: Scene, chip: Chip) -> dict[str, float]:
    s2, s1 = chip.sources["sentinel2"], chip.sources["sentinel1"]
    assert s2.weight is not None and s2.time_ms is not None
    clear = s2.weight[:, 0] > 0
    share = clear.mean((1, 2))
    land = inside(scene.fields.cover[-1][scene.field]) != WATER - 1
    log = np.where(clear, np.log(s2.values[:, 3].astype(np.float32) + 1), np.nan)[:, land]
    same = inside(scene.field)[:, 1:] == inside(scene.field)[:, :-1]
    speckle = (s1.values[:, 0, :, 1:] - s1.values[:, 0, :, :-1])[:, same].std(1) / np.sqrt(2)
    mostly = share > 0.5
    return {
        "Sentinel-2 frames": s2.frames,
        "share more than half clear": float(mostly.mean()),
        "share less than 5 % clear": float((share < 0.05).mean()),
        "share partly clear (5-95 %)": float(((share > 0.05) & (share < 0.95)).mean()),
        "clear observations a pixel": float(clear.sum(0).mean()),
        "longest gap between clear frames, days": float(np.diff(s2.time_ms[mostly]).max() / DAY_MS),
        "Sentinel-1 frames": s1.frames,
        "speckle, dB": float(np.median(speckle)),
        "share of single-polarised Sentinel-1": float((~s1.valid[:, 1].any((1, 2))).mean()),
        "Landsat frames": chip.sources["landsat"].frames,
        "fields": len(np.setdiff1d(np.unique(chip.labels["crop"].fields), 0)),
        "B8 log s.d. between pixels": float(np.nanstd(np.nanmean(log, 0))),
        "B8 log s.d. within a pixel": float(np.nanmean(np.nanstd(log, 0))),
        "B8 log s.d. of scene means": float(np.std([np.nanmean(frame) for frame in log[mostly]])),
        "spring, day of year": float(scene.weather.spring_day[-1]),
    }


def withheld(places: Places) -> Iterator[str]:
    """Naive predictors on every fifth mostly clear Sentinel-2 date."""
    from aef.data.withheld import WithheldDates
    from aef.evaluation.reconstruction import WithheldTask, choose_dates, naive_table
    from aef.sources import BUILT_IN

    chips = [chip for _, chip in places]
    dates: dict[tuple[str, str], list[int]] = {}
    for place, source, time_ms in choose_dates(chips, BUILT_IN):
        dates.setdefault((place, source), []).append(time_ms)
    listed = WithheldDates(dates)
    table = naive_table(WithheldTask(chips, BUILT_IN["sentinel2"], listed, listed))
    yield f"{sum(map(len, dates.values()))} withheld dates of Sentinel-2 at {len(chips)} places"
    yield "| predictor | L1 | s.d. over places |\n| --- | --- | --- |"
    for name, errors in table.errors.items():
        spread = np.std([table.place(name, place) for place in errors])
        yield f"| {name} | {table.mean(name):.3f} | {spread:.3f} |"


def probes(places: Places) -> Iterator[str]:
    """Hand-made features, better of ridge and kNN-3, split by field, for both labels."""
    from aef.evaluation.baselines import baseline_fields
    from aef.evaluation.labels import labelled_pixels
    from aef.evaluation.probes import Labelled, Scores, better, bootstrap, probe
    from aef.sources import BUILT_IN

    chips = [chip for _, chip in places]
    for label in ("crop", "land_cover"):
        pixels = labelled_pixels(chips, label)
        chosen = np.sort(np.random.default_rng(0).permutation(len(pixels.chip))[:PIXELS])
        labelled = Labelled(pixels.labelled.labels[chosen], pixels.labelled.units[chosen])
        features = pixels.gather(baseline_fields(chips, BUILT_IN, _year))
        tables = {name: _unit_variance(table[chosen]) for name, table in features.items()}
        for name in ("harmonic", "raw series"):
            tables[f"{name}, averaged over the true field"] = _field_means(tables[name], labelled.units)
        truth = pixels.gather({"true season and weather": _latent_field(scene)} for scene, _ in places)
        tables |= {name: _unit_variance(table[chosen]) for name, table in truth.items()}
        results: dict[int | None, dict[str, Scores]] = {}
        for shots in SHOTS:
            found = probe(tables, labelled, shots=shots, trials=10, kinds=("ridge", "kNN-3"))
            results[shots] = {name: better(scores)[1] for name, scores in found.items()}
        units, classes = len(np.unique(labelled.units)), len(labelled.classes)
        yield f"\n{label}: {classes} classes, {units} fields at {len(chips)} places; balanced accuracy [95 % interval]"
        yield "| features | dimensions | 10-shot | all |\n| --- | --- | --- | --- |"
        for name, table in tables.items():
            cells = [_cell(results[shots][name], bootstrap) for shots in SHOTS]
            yield f"| {name} | {table.shape[1]} | {' | '.join(cells)} |"


def _year(chip: Chip) -> Period:
    label = chip.labels["crop"]
    assert label.valid_start_ms is not None and label.valid_end_ms is not None
    return Period(label.valid_start_ms, label.valid_end_ms)


def _cell(scores, interval: Callable) -> str:
    low, high = interval(scores)
    return f"{scores.balanced_accuracy:.2f} [{low:.2f}, {high:.2f}]"


def _unit_variance(table: np.ndarray) -> np.ndarray:
    table = table.astype(np.float64)
    return (table - table.mean(0)) / (table.std(0) + 1e-9)


def _field_means(table: np.ndarray, units: np.ndarray) -> np.ndarray:
    _, number = np.unique(units, return_inverse=True)
    count = np.bincount(number)
    means = [np.bincount(number, column) / count for column in table.T]
    return np.stack(means, 1)[number]


def _latent_field(scene: Scene) -> np.ndarray:
    """The true latents of each pixel's field, (4, px, px)."""
    latents = scene.latents(len(scene.weather.year_starts) - 1)
    return np.moveaxis(latents[inside(scene.field)], -1, 0)


PARTS: dict[str, Callable[[Places], Iterator[str]]] = {
    "properties": properties,
    "withheld": withheld,
    "probes": probes,
}


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    p.add_argument("--places", type=int, default=24, metavar="N", help="test places")
    p.add_argument("--seed", type=int, default=TEST_SEED, help="of the Earth")
    options = p.parse_args(argv)
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        p.error(f"unknown part {', '.join(sorted(unknown))}: expected some of {', '.join(PARTS)}")
    earth = Earth(options.seed)
    scenes = [earth.scene(place) for place in range(options.places)]
    places = [(scene, render_chip(scene, INPUTS)) for scene in scenes]
    for part in options.parts:
        for line in PARTS[part](places):
            print(line, flush=True)
        print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
