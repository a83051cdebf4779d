"""Local STAC catalogues over small rasters (static ones on disk, and a tiny API on loopback), and a chip fetched from one."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pystac_client", reason="pystac-client is not installed (extra [stac])")
pytest.importorskip("odc.stac", reason="odc-stac is not installed (extra [stac])")

import pystac
import rasterio
from pyproj import Transformer
from rasterio.transform import from_origin

from aef.earthengine.grid import ChipGrid
from aef.earthengine.manifest import PlannedChip
from aef.launcher.download import FURTHER_SOURCES
from aef.settings_file import read_sources
from aef.sources import BUILT_IN, Registry
from aef.stac.fetch import StacFetcher
from aef.timecode import parse_period

CRS, LEFT, TOP = "EPSG:32632", 461_420, 5_217_040
PX = 16
GRID = ChipGrid(CRS, LEFT, TOP, PX)
CHIP = PlannedChip("here_20190101", "here", *GRID.centre_degrees, GRID, parse_period("2019-01-01/2020-01-01"), 1)
KNOWN = BUILT_IN.extended(read_sources(FURTHER_SOURCES))


def write_raster(path: Path, values: np.ndarray, *, left=LEFT, top=TOP, step=10.0, crs=CRS, nodata=None) -> Path:
    profile = {
        "driver": "GTiff",
        "height": values.shape[0],
        "width": values.shape[1],
        "count": 1,
        "dtype": values.dtype,
    }
    with rasterio.open(
        path, "w", crs=crs, transform=from_origin(left, top, step, step), nodata=nodata, **profile
    ) as file:
        file.write(values, 1)
    return path


def item(
    collection: str, name: str, when: str | None, assets: dict[str, Path], *, bands=None, **properties
) -> pystac.Item:
    """An item over rasters; ``bands`` is the raster:bands entry of every asset."""
    with rasterio.open(next(iter(assets.values()))) as file:
        bounds, crs = file.bounds, file.crs.to_string()
    lons, lats = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(
        [bounds.left, bounds.right, bounds.left, bounds.right], [bounds.bottom, bounds.bottom, bounds.top, bounds.top]
    )
    box = [min(lons), min(lats), max(lons), max(lats)]
    ring = [[box[0], box[1]], [box[2], box[1]], [box[2], box[3]], [box[0], box[3]], [box[0], box[1]]]
    moment = datetime.fromisoformat(when).replace(tzinfo=UTC) if when else datetime(2015, 1, 1, tzinfo=UTC)
    made = pystac.Item(name, {"type": "Polygon", "coordinates": [ring]}, box, moment, properties, collection=collection)
    for key, path in assets.items():
        extra = {"raster:bands": [bands]} if bands else {}
        made.add_asset(
            key, pystac.Asset(str(path), media_type=pystac.MediaType.GEOTIFF, roles=["data"], extra_fields=extra)
        )
    return made


def static_catalog(folder: Path, *items: pystac.Item) -> str:
    """Write a static catalogue; returns the path of its catalog.json."""
    catalog = pystac.Catalog("local", "a local catalogue")
    by_collection: dict[str, list[pystac.Item]] = {}
    for one in items:
        by_collection.setdefault(one.collection_id, []).append(one)
    for name, members in by_collection.items():
        extent = pystac.Extent(pystac.SpatialExtent([[-180, -90, 180, 90]]), pystac.TemporalExtent([[None, None]]))
        collection = pystac.Collection(name, name, extent)
        catalog.add_child(collection)
        collection.add_items(members)
    catalog.normalize_hrefs(str(folder))
    catalog.save(pystac.CatalogType.ABSOLUTE_PUBLISHED)
    return str(folder / "catalog.json")


class Api(ThreadingHTTPServer):
    """A STAC API with item search over given items, which fails its first ``failures`` searches with 503."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, items: list[pystac.Item], failures: int = 0, status: int = 503) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.items, self.failures, self.status, self.searches = items, failures, status, []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Api:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Api

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        url, names = self.server.url, sorted({i.collection_id for i in self.server.items})
        conforms = [f"https://api.stacspec.org/v1.0.0/{part}" for part in ("core", "item-search", "collections")]
        links = [
            {"rel": "self", "href": f"{url}/", "type": "application/json"},
            {"rel": "root", "href": f"{url}/", "type": "application/json"},
            {"rel": "search", "href": f"{url}/search", "type": "application/geo+json", "method": "POST"},
            {"rel": "data", "href": f"{url}/collections", "type": "application/json"},
        ]
        root = {
            "type": "Catalog",
            "id": "api",
            "stac_version": "1.0.0",
            "description": "d",
            "conformsTo": conforms,
            "links": links,
        }
        extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
        collections = [
            {
                "type": "Collection",
                "id": name,
                "stac_version": "1.0.0",
                "description": "d",
                "license": "other",
                "extent": extent,
                "links": [],
            }
            for name in names
        ]
        self._answer({"collections": collections, "links": []} if self.path.startswith("/collections") else root)

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.searches.append(query)
        if self.server.failures > 0:
            self.server.failures -= 1
            self._answer({"description": "not now"}, self.server.status)
            return
        start, _, end = query.get("datetime", "..").partition("/")
        found = [
            i.to_dict(transform_hrefs=False)
            for i in self.server.items
            if i.collection_id in query["collections"]
            and (not end or start <= i.datetime.strftime("%Y-%m-%dT%H:%M:%SZ") <= end)
        ]
        self._answer({"type": "FeatureCollection", "features": found, "links": []})

    def _answer(self, body: dict, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def fetcher(catalog, *names):
    return StacFetcher(str(catalog), Registry(KNOWN[name] for name in names), workers=2, longest_s=0.01)


def fetch(catalog, name, chip=CHIP):
    return fetcher(catalog, name).fetch(chip, KNOWN[name])


def optical(folder, seed=0, keys=("blue", "green", "red", "nir", "swir16"), low=1200, **where):
    """Rasters of 10 m, two pixels wider than the chip on every side."""
    rng = np.random.default_rng(seed)
    side = PX + 4
    rasters = {}
    for key in keys:
        values = rng.integers(low, 6000, (side, side)).astype(np.uint16)
        rasters[key] = (
            values,
            write_raster(folder / f"{key}{seed}.tif", values, left=LEFT - 20, top=TOP + 20, **where),
        )
    return {k: v for k, (v, _) in rasters.items()}, {k: p for k, (_, p) in rasters.items()}


def inner(values):
    return values[2:-2, 2:-2].astype(int)
