"""Rates of the data path on one core: python -m benchmarks.data [PART ...] [--out benchmarks/results/data.json]

Parts: sampler, statistics, generator, ingest, corpora, download, manifest. Rates are items per second of this process's
CPU time, all of its threads together, so that other work on the machine does not count; a matrix product timed before
and after says how fast a core was. Ingest converts the sample data (../shared/data beside the checkout) and is left out
where that is absent.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from aef import atomic

Rate = tuple[str, float, str]

CHIP_PX = 64
CHIPS = 8
SAMPLES = 48
SAMPLE_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RESULTS = Path(__file__).resolve().parent / "results"
INGESTED = ("worldcereal_patches", "worldcereal_monthly", "snowgalileo_8day")


class Stopwatch:
    """CPU seconds of this process inside the block."""

    def __enter__(self) -> Stopwatch:
        self._started = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.process_time() - self._started


def core_gflops() -> float:
    """Billions of operations a second of a 512 x 512 float32 matrix product: the speed of the core just now."""
    a = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)
    a @ a
    with Stopwatch() as watch:
        for _ in range(20):
            a @ a
    return 20 * 2 * 512**3 / watch.seconds / 1e9


def sampler() -> Iterator[Rate]:
    """Samples of uncompressed synthetic chips with the paper's frame budget, read from disk each time and from memory."""
    from aef.config import DataConfig
    from aef.data.chips import ChipFolder
    from aef.data.collate import Collator
    from aef.data.dataset import ChipDataset, Draw
    from aef.data.synthetic import Earth, write_earth
    from aef.sources import BUILT_IN, INPUTS

    with tempfile.TemporaryDirectory() as folder:
        for _ in write_earth(Earth(chip_px=CHIP_PX), folder, CHIPS):
            pass
        chips = ChipFolder(folder, BUILT_IN)
        collate = Collator(BUILT_IN, INPUTS, tuple(BUILT_IN))
        for where, cached in (("disk", 0), ("memory", CHIPS)):
            dataset = ChipDataset(chips, DataConfig(chip_px=CHIP_PX, cache_chips=cached))
            # The first read of a chip checks every value; it is timed on its own.
            with Stopwatch() as first:
                for i in range(CHIPS):
                    dataset[i]
            with Stopwatch() as watch:
                samples = [dataset[Draw(i % CHIPS, i // CHIPS, i)] for i in range(SAMPLES)]
            frames = sum(len(f.time_ms) for sample in samples for f in sample.teacher.values()) / SAMPLES
            yield (
                f"sampler: {frames:.0f} frames of {CHIP_PX} px, chips from {where}",
                SAMPLES / watch.seconds,
                "samples/s",
            )
            if where == "disk":
                yield "sampler: the same, first read with every value checked", CHIPS / first.seconds, "samples/s"
        with Stopwatch() as watch:
            for sample in samples:
                collate([sample])
        yield "collator: batches of one such sample, two views", SAMPLES / watch.seconds, "samples/s"


def statistics() -> Iterator[Rate]:
    """Normalisation statistics over synthetic chips in memory."""
    from aef.data.statistics import Statistics
    from aef.data.synthetic import generate
    from aef.sources import BUILT_IN

    chips = [generate(place, chip_px=CHIP_PX) for place in range(2)]
    with Stopwatch() as watch:
        Statistics.of_chips(chips, BUILT_IN)
    yield f"statistics: chips of {CHIP_PX} px and a year, nine sources", len(chips) / watch.seconds, "chips/s"


def generator() -> Iterator[Rate]:
    """The synthetic Earth, with and without writing."""
    from aef.data.synthetic import Earth, generate, write_earth

    generate(0, chip_px=CHIP_PX)
    with Stopwatch() as watch:
        for place in range(CHIPS):
            generate(place, chip_px=CHIP_PX)
    yield f"generator: chips of {CHIP_PX} px and a year, nine sources", CHIPS / watch.seconds, "chips/s"
    for compress, how in ((False, "uncompressed"), (True, "compressed")):
        with tempfile.TemporaryDirectory() as folder, Stopwatch() as watch:
            for _ in write_earth(Earth(chip_px=CHIP_PX), folder, CHIPS, compress=compress):
                pass
        yield f"generator: the same, written {how}", CHIPS / watch.seconds, "chips/s"


def ingest() -> Iterator[Rate]:
    """Recipes over the folders of the sample data that hold whole time series."""
    from aef.data.chips import read_chip_header
    from aef.data.ingest.convert import convert
    from aef.data.ingest.recipe import read_recipe
    from aef.launcher.ingest import find_recipe

    for name in INGESTED:
        source = SAMPLE_DATA / name
        if not source.is_dir():
            continue
        with tempfile.TemporaryDirectory() as folder:
            with Stopwatch() as watch:
                for _ in convert(read_recipe(find_recipe(name)), source, Path(folder)):
                    pass
            chips = list(Path(folder).glob("*.npz"))
            pixels = sum(header["height"] * header["width"] for header in map(read_chip_header, chips))
        yield (
            f"ingest: {name}, {len(chips)} chips of {pixels / len(chips):.0f} px on average",
            len(chips) / watch.seconds,
            "chips/s",
        )


def corpora() -> Iterator[Rate]:
    """Text corpora (benchmarks/corpora.py)."""
    from benchmarks.corpora import corpora as measured

    yield from measured()


def download() -> Iterator[Rate]:
    """Requests against a stand-in of Earth Engine (benchmarks/download.py); wall-clock, since waiting is the point."""
    from benchmarks.download import download as measured

    yield from measured()


def manifest() -> Iterator[Rate]:
    """The download's manifest at five million sites (benchmarks/download.py); wall-clock."""
    from benchmarks.download import manifest as measured

    yield from measured()


PARTS: dict[str, Callable[[], Iterator[Rate]]] = {
    part.__name__: part for part in (sampler, statistics, generator, ingest, corpora, download, manifest)
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; otherwise all")
    parser.add_argument("--out", metavar="FILE", help=f"also write the rates as JSON, under {RESULTS.name}/")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {', '.join(unknown)}: expected some of {', '.join(PARTS)}")
    out = Path(options.out).resolve() if options.out else None
    if out is not None and RESULTS not in out.parents:
        parser.error(f"--out: expected a file under {RESULTS}, found {out}")

    rates: list[Rate] = [("core before", core_gflops(), "GFLOP/s")]
    _show(rates[0])
    for part in options.parts or PARTS:
        for rate in PARTS[part]():
            rates.append(rate)
            _show(rate)
    rates.append(("core after", core_gflops(), "GFLOP/s"))
    _show(rates[-1])
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic.writing(out, "w") as stream:
            json.dump([dict(zip(("name", "rate", "unit"), rate)) for rate in rates], stream, indent=1)
    return 0


def _show(rate: Rate) -> None:
    name, value, unit = rate
    print(f"{name}: {value:.4g} {unit}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
