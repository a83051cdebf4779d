"""Rates of the download: requests against a stand-in of the service with 300 ms latency, and the manifest at five million sites.

Parts of `python -m benchmarks.data`: ``download`` and ``manifest``. The stand-in is a process of its own on loopback
(`tests/earthengine/standin`) that answers pixels without computing them, so that the client is what is measured. These rates
are wall-clock: waiting side by side is the point. The share of the possible requests counts waiting for the service's
latency only: 40 requests in flight of 0.3 s each are 133 a second. Chips go to a RAM disk where there is one (/dev/shm),
so that the disk is not what is measured.
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from aef.clock import parse_period

STANDIN = Path(__file__).resolve().parents[1] / "tests" / "earthengine" / "standin"
RAM_DISK = Path("/dev/shm")
IN_FLIGHT, LATENCY_S = 40, 0.3
YEAR = parse_period("2019-01-01/2020-01-01")
CASES = (("64 KiB answers", 38, 92, 1500), ("answers of a 128 px year", 128, 5, 24))
"""What is asked for: words, chip side, days between scenes, chips."""
FEW_SITES, SITES, TOUCHED = 50_000, 5_000_000, 2000
Rate = tuple[str, float, str]


@contextlib.contextmanager
def standin(folder: Path, gap_days: int) -> Iterator[str]:
    """A stand-in in a process of its own; yields its URL, leaves a key in the folder."""
    command = [sys.executable, str(STANDIN), "--canned", "--latency", str(LATENCY_S), "--gap-days", str(gap_days)]
    process = subprocess.Popen(
        [*command, "--key", str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.communicate()


def counters(url: str) -> dict:
    with urllib.request.urlopen(f"{url}/_counters") as answer:
        return json.load(answer)


def download() -> Iterator[Rate]:
    """Sentinel-2 of one place after the other: small answers (64 KiB), then a year of 128 px chips."""
    for what, px, gap_days, chips in CASES:
        with (
            tempfile.TemporaryDirectory(dir=RAM_DISK if RAM_DISK.is_dir() else None) as folder,
            standin(Path(folder), gap_days) as url,
        ):
            yield from _downloaded(Path(folder), url, what, px, chips)
    yield "download: peak memory of this process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB"


def _downloaded(folder: Path, url: str, what: str, px: int, chips: int) -> Iterator[Rate]:
    from aef.earthengine.download import ChipRules, Downloader
    from aef.earthengine.fetch import EarthEngineFetcher
    from aef.earthengine.manifest import Manifest
    from aef.earthengine.planning import PeriodRule, planned_chips
    from aef.earthengine.service import Service
    from aef.earthengine.sites import Lattice, in_box
    from aef.sources import BUILT_IN

    sources = BUILT_IN.select(["sentinel2"])
    sites = (site for site, _ in zip(in_box(6.5, 46.0, 8.5, 48.0, Lattice(px)), range(chips)))
    out = folder / "chips"
    out.mkdir()
    with Manifest(folder / "m.sqlite", {}) as manifest:
        manifest.plan(planned_chips(sites, PeriodRule((YEAR,)), px=px))
        with (
            Service("demo-project", endpoint=url, key_file=folder / "key.json", in_flight=IN_FLIGHT) as service,
            EarthEngineFetcher(service, sources) as fetcher,
        ):
            started, cpu = time.monotonic(), time.process_time()
            Downloader(fetcher, manifest, out, ChipRules(sources, px, compress=False), provider="stand-in").run()
            seconds, cpu = time.monotonic() - started, time.process_time() - cpu
        assert manifest.chip_counts() == {"written": chips}
    seen = counters(url)
    spent = seen["last_s"] - seen["first_s"]
    possible = IN_FLIGHT / LATENCY_S
    yield f"download: {what}, requests", seen["requests"] / spent, "requests/s"
    yield (
        f"download: {what}, share of the {possible:.0f} requests/s that the latency allows",
        seen["requests"] / spent / possible,
        "",
    )
    yield f"download: {what}, most at once", seen["peak"], "requests"
    yield f"download: {what}, pixels", service.bytes / 1e6 / seconds, "MB/s"
    yield f"download: {what}, chips written", chips / seconds, "chips/s"
    yield f"download: {what}, processor time of the client", cpu / seen["requests"] * 1e3, "ms/request"


def manifest() -> Iterator[Rate]:
    """Planning, going on and recording, on a manifest of five million sites; half of them are done."""
    from aef.earthengine.grid import ChipGrid
    from aef.earthengine.manifest import DONE, WRITTEN, Manifest, Outcome, PlannedChip

    grid = ChipGrid("EPSG:32632", 0, 0, 128)
    with tempfile.TemporaryDirectory() as folder, Manifest(Path(folder) / "m.sqlite", {}) as opened:
        for count in (FEW_SITES, SITES):
            done = opened.chip_counts().get("pending", 0) + opened.chip_counts().get("written", 0)
            sites = (
                PlannedChip(f"site{n:08d}_20190101", f"site{n:08d}", 8.5, 47.0, grid, YEAR) for n in range(done, count)
            )
            started = time.perf_counter()
            added = opened.plan(sites)
            yield f"manifest: planning up to {count:,} sites", added / (time.perf_counter() - started), "sites/s"
            opened._db.execute("UPDATE chips SET state = 'written' WHERE number % 2 = 0")
            started = time.perf_counter()
            chips = [chip for chip, _ in zip(opened.pending(128), range(TOUCHED))]
            yield (
                f"manifest: finding pending chips among {count:,}",
                TOUCHED / (time.perf_counter() - started),
                "chips/s",
            )
            started = time.perf_counter()
            for chip in chips:
                opened.items(chip)
                opened.record(chip, "sentinel2", Outcome(DONE, "", 70, 8, 10**7, "0" * 64))
                opened.finish(chip, WRITTEN, size=10**7, sha256="0" * 64)
            yield (
                f"manifest: looking up, recording and finishing among {count:,}",
                TOUCHED / (time.perf_counter() - started),
                "chips/s",
            )
    yield "manifest: peak memory of this process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB"
