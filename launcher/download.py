"""Download chips from Earth Engine (or, with --from stac, from a STAC catalogue).

Sites come from a file, a box, a place, random land or strata; every site and support period becomes one chip with the
sources at the paper's preprocessing. Kill it at any moment and start the same command again: nothing done is fetched
twice. docs/download.md tells what each source holds, what it costs and what every message means.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from aef.launcher.command import add_compression, numbers, parser, require_number, run, with_western_longitudes
from aef.progress import Progress

FURTHER_SOURCES = Path(__file__).resolve().parent / "configs" / "sources" / "further.yaml"
STAC_WORKERS = 16
"""Items read at once from a catalogue; each opens several files."""


def _options() -> argparse.ArgumentParser:
    options = parser(__file__, __doc__)
    options.add_argument(
        "--from", dest="provider", choices=("earthengine", "stac"), default="earthengine", help="where from"
    )
    options.add_argument(
        "--out", "--output_dir", required=True, metavar="CHIPS", help="folder for the chips and the manifest"
    )

    where = options.add_argument_group("sites, one of").add_mutually_exclusive_group()
    where.add_argument(
        "--sites",
        metavar="FILE",
        help=".csv, .geojson, .parquet, .gpkg, .shp with lon, lat or geometries, optionally id, start, end",
    )
    where.add_argument("--place", metavar="LON,LAT", help="one place")
    where.add_argument("--bbox", metavar="WEST,SOUTH,EAST,NORTH", help="every 1.28 km cell of a box (degrees)")
    where.add_argument("--random-land", "--samples", type=int, metavar="N", help="N sites on land, uniform by area")
    where.add_argument("--strata", metavar="POLYGONS", help="GeoJSON: sites drawn from each stratum")

    sites = options.add_argument_group("choosing sites and periods")
    sites.add_argument(
        "--per-stratum", type=int, default=100, metavar="N", help="sites per stratum; a feature's `quota` wins"
    )
    sites.add_argument(
        "--stratum-field", metavar="NAME", help="property that names a stratum; otherwise each feature is one"
    )
    sites.add_argument("--offshore", action="store_true", help="keep strata's sites without land (reefs, tidal flats)")
    sites.add_argument("--periods", metavar="START/END[,START/END]", help="support periods, ISO dates")
    sites.add_argument(
        "--draw-periods", type=int, default=0, metavar="N", help="draw N periods of 365 d within --periods"
    )
    sites.add_argument("--seed", type=int, default=0, metavar="N", help="of random sites and drawn periods")
    sites.add_argument("--part", metavar="K/N", help="only the K-th of N parts of the sites, for one of N hosts")

    what = options.add_argument_group("sources")
    what.add_argument(
        "--sources", nargs="+", metavar="NAME", help="sources to fetch; otherwise all that are on by default"
    )
    what.add_argument("--sources-file", nargs="*", default=[], metavar="YAML", help="files with further source entries")
    what.add_argument("--successors", action="store_true", help="replace deprecated collections by their successors")
    what.add_argument(
        "--require", nargs="*", default=[], metavar="NAME", help="drop chips that lack one of these sources"
    )
    what.add_argument("--accept-failed", action="store_true", help="write chips although a source was refused")
    what.add_argument("--chip-px", type=int, default=128, metavar="PX", help="side of a chip, 10 m pixels")
    what.add_argument(
        "--overlap-px",
        type=int,
        default=0,
        metavar="N",
        help="pixels that neighbouring chips of --bbox share, for maps without seams: each is so much larger, its cell is not",
    )
    add_compression(what, default=True)

    ee = options.add_argument_group("Earth Engine")
    ee.add_argument("--project", "--project_id", metavar="P", help="Cloud project that is registered for Earth Engine")
    ee.add_argument("--key-file", metavar="JSON", help="service account key; otherwise your own credentials")
    ee.add_argument("--endpoint", default="high-volume", metavar="NAME|URL", help="high-volume or standard")
    ee.add_argument(
        "--workers", type=int, default=40, metavar="N", help="most requests at once (the service grants 40)"
    )
    ee.add_argument("--patience", type=float, default=60.0, metavar="S", help="longest wait between two tries, seconds")

    stac = options.add_argument_group("STAC")
    stac.add_argument("--catalog", metavar="URL|FILE", help="a STAC API, or a static catalogue")

    instead = options.add_argument_group("instead of downloading").add_mutually_exclusive_group()
    instead.add_argument(
        "--estimate", action="store_true", help="requests, bytes, hours and compute share, without asking anyone"
    )
    instead.add_argument("--dry-run", action="store_true", help="list what would be fetched, without asking anyone")
    instead.add_argument("--export", metavar="FILE.parquet", help="write the manifest as Parquet")
    instead.add_argument("--verify", action="store_true", help="compare every chip with its recorded checksum")
    options.add_argument("--retry-failed", action="store_true", help="take up chips again whose sources were refused")
    return options


def main(argv: list[str] | None = None) -> int:
    given = _options().parse_args(with_western_longitudes(argv, "--place", "--bbox"))
    from aef.earthengine import manifest as m
    from aef.part import parse_part

    part = parse_part(given.part) if given.part else None
    if given.export or given.verify:
        with m.Manifest(m.manifest_path(given.out, part), read_only=True) as manifest:
            return export(given, manifest) if given.export else verify(given, manifest)
    chips = planned(given)  # first: a slip of the pen in sites or periods is said before anything about collections
    sources = stac_sources(given) if given.provider == "stac" else earth_engine_sources(given)
    if given.estimate:
        return estimate(given, sources, chips)
    if given.dry_run:
        return dry_run(given, sources, chips)
    return download(given, sources, chips, part)


def say(text: str) -> None:
    print(f"aef download: {text}", file=sys.stderr)


# --- what and where --------------------------------------------------------------------------------------------------


def earth_engine_sources(given: argparse.Namespace):
    """The registry of what is fetched, with the collections that are read. Says which of them are deprecated."""
    from aef.earthengine.recipes import deprecated, in_use
    from aef.settings_file import registry_of
    from aef.sources import VERSION_2_1, Registry

    known = registry_of(given.out, files=given.sources_file).extended(VERSION_2_1.values())
    names = wanted(given, [name for name, source in known.items() if source.enabled])
    chosen = Registry(in_use(known[name], successors=given.successors) for name in names)
    for warning in deprecated(c for source in chosen.values() for c in source.collections):
        say(f"warning: {warning}")
    return chosen


def stac_sources(given: argparse.Namespace):
    """The registry of what a catalogue gives, under collection ids of its own."""
    from aef.settings_file import registry_of
    from aef.sources import Registry
    from aef.stac.fetch import available
    from aef.stac.products import PREFIX, product_of

    if not given.catalog:
        raise ValueError("--from stac needs --catalog URL (or the path of a static catalog.json)")
    if given.estimate:
        raise ValueError("--estimate is about Earth Engine's allowance; a catalogue has none: use --dry-run")
    # Not the entries that the folder carries: those of an earlier call name the catalogue's collections.
    known = registry_of(files=[FURTHER_SOURCES, *given.sources_file])
    names = wanted(given, given.sources or available(given.catalog))
    ids = {name: tuple(f"{PREFIX}{c}" for c in product_of(name).collections) for name in names}
    return Registry(dataclasses.replace(known[name], collections=ids[name]) for name in names)


def wanted(given: argparse.Namespace, default: list[str]) -> list[str]:
    names = given.sources or default
    for name in given.require:
        if name not in names:
            raise ValueError(f"--require {name}: is not among the sources to fetch ({', '.join(names)})")
    return names


def sites(given: argparse.Namespace) -> Iterator:
    """Sites in a fixed order, one after the other. Raises ValueError where no kind of site was asked for."""
    from aef.earthengine import sites as s

    require_number("--chip-px", given.chip_px, 1)
    require_number("--overlap-px", given.overlap_px, 0, given.chip_px)
    if given.overlap_px % 2:
        raise ValueError(f"--overlap-px: expected an even number, half of it for each side, found {given.overlap_px}")
    if given.overlap_px and not given.bbox:
        raise ValueError("--overlap-px: only the cells of --bbox have neighbours")
    if given.overlap_px and given.chip_px * 10 < s.SPACING_M:
        raise ValueError(f"--overlap-px: chips of --chip-px {given.chip_px} lie apart: expected 128 or more")
    require_number("--workers", given.workers, 1)
    require_number("--seed", given.seed, 0)
    if given.random_land is not None:
        require_number("--random-land", given.random_land, 1)
    lattice = s.Lattice(given.chip_px)
    if given.sites:
        return s.read_sites(given.sites)
    if given.place:
        lon, lat = numbers(given.place, 2, "--place LON,LAT")
        return iter([s.at(lon, lat)])
    if given.bbox:
        west, south, east, north = numbers(given.bbox, 4, "--bbox WEST,SOUTH,EAST,NORTH")
        return s.in_box(west, south, east, north, lattice)
    if given.random_land:
        return s.on_random_land(given.random_land, lattice, seed=given.seed)
    if given.strata:
        return s.in_strata(
            given.strata,
            given.per_stratum,
            lattice,
            seed=given.seed,
            field=given.stratum_field,
            offshore=given.offshore,
        )
    raise ValueError("no sites: give one of --sites, --place, --bbox, --random-land or --strata")


def planned(given: argparse.Namespace) -> Iterator:
    """The chips of all sites, or of this host's part of them."""
    from aef.earthengine.planning import PeriodRule, planned_chips
    from aef.earthengine.sites import parse_periods
    from aef.part import parse_part

    periods = parse_periods(given.periods) if given.periods else ()
    for period in periods:
        if period.start_ms > time.time() * 1000:
            say(f"warning: the period {period} lies in the future: no images are there yet")
    require_number("--draw-periods", given.draw_periods, 0)
    if given.draw_periods and len(periods) > 1:
        raise ValueError(f"--draw-periods: expected one range in --periods, found {len(periods)} periods")
    rule = PeriodRule(periods, given.draw_periods, seed=given.seed)
    part = parse_part(given.part) if given.part else None
    return planned_chips(sites(given), rule, px=side_px(given), part=part)


def side_px(given: argparse.Namespace) -> int:
    """Side of the chips that are written."""
    return given.chip_px + given.overlap_px


# --- instead of downloading ------------------------------------------------------------------------------------------


def estimate(given: argparse.Namespace, sources, chips: Iterator) -> int:
    from aef.earthengine.estimate import estimate as estimated

    print("\n".join(estimated(chips, list(sources.values()), in_flight=given.workers).lines()))
    return 0


def dry_run(given: argparse.Namespace, sources, chips: Iterator) -> int:
    from aef.earthengine.manifest import NAME, Manifest

    shown = 5
    # Planned as a download would, so that what it refuses is refused here, and equal rows count once.
    with tempfile.TemporaryDirectory() as folder, Manifest(Path(folder) / NAME) as manifest:
        count = manifest.plan(chips)
        for chip in itertools.islice(manifest.pending(side_px(given), batch=shown), shown):
            left, bottom, right, top = chip.grid.bounds
            print(f"{chip.id}: {chip.grid.crs} {left:.0f} {bottom:.0f} {right:.0f} {top:.0f}, {chip.period}")
    some = f", {shown} of them above," if count > shown else ""
    print(f"{count:,} chips of {side_px(given)} px{some} would go to {given.out}, from:")
    for name, source in sources.items():
        print(f"  {name}: {', '.join(source.collections)}")
    return 0


def export(given: argparse.Namespace, manifest) -> int:
    names = list((manifest.setting("sources") or {}).keys())
    print(f"wrote {manifest.export(given.export, names):,} rows to {given.export}")
    return 0


def verify(given: argparse.Namespace, manifest) -> int:
    from aef.earthengine.download import verify as verified

    broken = verified(given.out, manifest)
    for name in broken:
        print(f"{name}: missing or changed since it was written")
    print(f"{manifest.chip_counts().get('written', 0) - len(broken):,} chips as written, {len(broken):,} not")
    return 1 if broken else 0


# --- downloading -----------------------------------------------------------------------------------------------------


def download(given: argparse.Namespace, sources, chips: Iterator, part: tuple[int, int] | None) -> int:
    from aef.earthengine import manifest as m
    from aef.earthengine.download import ChipRules, Downloader

    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    settings = {"sources": {name: list(s.collections) for name, s in sources.items()}, "chip_px": side_px(given)}
    rules = ChipRules(sources, side_px(given), tuple(given.require), given.accept_failed, given.compress)
    with m.Manifest(m.manifest_path(out, part), settings) as manifest:
        fill(manifest, given, chips)
        carry_entries(out, sources)
        reopened = manifest.reopen(failed=given.retry_failed or given.accept_failed)
        if reopened:
            say(f"{reopened:,} incomplete chips are taken up again")
        left = manifest.left()
        if left:
            opened = stac if given.provider == "stac" else earth_engine
            with (
                opened(given, sources) as (fetcher, provider, note),
                Progress("download", total=left * len(sources), unit="item") as progress,
            ):
                Downloader(
                    fetcher, manifest, out, rules, provider=provider, on_item=lambda *_: progress.advance(note=note())
                ).run()
        return report(manifest, out, sources)


@contextlib.contextmanager
def earth_engine(given: argparse.Namespace, sources):
    """A connected project: its fetcher, its name and a note for the progress bar."""
    from aef.earthengine.fetch import EarthEngineFetcher
    from aef.earthengine.patience import Patience
    from aef.earthengine.service import Service

    patience = Patience(longest_s=given.patience, first_s=min(1.0, given.patience))
    with (
        Service(
            given.project,
            endpoint=given.endpoint,
            key_file=given.key_file,
            in_flight=given.workers,
            patience=patience,
            say=say,
        ) as service,
        EarthEngineFetcher(service, sources) as fetcher,
    ):
        yield fetcher, "Google Earth Engine", lambda: f"{service.requests:,} requests, {service.bytes / 1e6:,.0f} MB"
        say(f"{service.requests:,} requests, {service.retries:,} tried again, {service.bytes / 1e6:,.1f} MB of pixels")


@contextlib.contextmanager
def stac(given: argparse.Namespace, sources):
    """A catalogue: its fetcher, its name and no note."""
    from aef.stac.fetch import StacFetcher

    workers = min(given.workers, STAC_WORKERS)
    fetcher = StacFetcher(given.catalog, sources, workers=workers, longest_s=given.patience)
    yield fetcher, f"STAC: {given.catalog}", lambda: ""


def fill(manifest, given: argparse.Namespace, chips: Iterator) -> None:
    """Plan the chips once; a run that is started again with the same words goes straight on."""
    words = {
        name: getattr(given, name)
        for name in (
            "sites",
            "place",
            "bbox",
            "random_land",
            "strata",
            "per_stratum",
            "stratum_field",
            "offshore",
            "periods",
        )
    }
    words |= {name: getattr(given, name) for name in ("draw_periods", "seed", "part")}
    if given.overlap_px:  # cells of another size may give chips of the same one
        words["overlap_px"] = given.overlap_px
    for name in ("sites", "strata"):
        if words[name]:
            status = Path(words[name]).stat()
            words[name] = [str(words[name]), status.st_size, status.st_mtime_ns]
    if manifest.setting("planned") != words:
        added = manifest.plan(chips)
        manifest.remember("planned", words)
        say(f"{added:,} chips planned")


def carry_entries(out: Path, sources) -> None:
    """Source entries that are not built in travel with the chips, so that every command can read them."""
    from aef.settings_file import SOURCES_FILE, read_sources, write_sources
    from aef.sources import BUILT_IN

    own = {name: source for name, source in sources.items() if name not in BUILT_IN}
    path = out / SOURCES_FILE
    held = {source.name: source for source in read_sources(path)} if path.exists() else {}
    if own.keys() - held.keys():
        write_sources(path, {**own, **held}.values())


def report(manifest, out: Path, sources) -> int:
    """The closing table; returns 0 only when every planned chip is settled."""
    from aef.data.plausibility import survey, table

    chips, items = manifest.chip_counts(), manifest.item_counts()
    print(f"{'source':<14}{'done':>10}{'empty':>10}{'failed':>10}{'pending':>10}")
    total = sum(chips.values())
    for name in sources:
        done, empty, failed = (items.get((name, state), 0) for state in ("done", "empty", "failed"))
        print(f"{name:<14}{done:>10,}{empty:>10,}{failed:>10,}{total - done - empty - failed:>10,}")
    print("chips: " + ", ".join(f"{count:,} {state}" for state, count in sorted(chips.items())))
    for chip, source, reason in (*manifest.failures(), *manifest.unanswered()):
        print(f"  {chip}: {source}: {reason}")
    if chips.get("written"):
        print("\n".join(["", *table(survey(out, sources))]))
    unsettled = chips.get("incomplete", 0) + chips.get("pending", 0)
    if unsettled:
        say(
            f"{unsettled:,} chips are incomplete: run the same command again, with --retry-failed for those that were refused"
        )
    return 1 if unsettled else 0


if __name__ == "__main__":
    raise SystemExit(run(main))
