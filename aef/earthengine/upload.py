"""The way back: JSON manifests that put exported COGs of embedding fields into an Earth Engine image collection.

Copy the COGs into a Cloud Storage bucket, write the manifests, and start each with
``earthengine upload image --manifest FILE.json``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aef.atomic import writing
from aef.clock import Period, parse_period

_NO_PROPERTY = ("AREA_OR_POINT", "long_name", "period")
"""Tags that say nothing of the image or have a place of their own in the manifest."""
_COLLECTION = re.compile(r"projects/[a-z][-a-z0-9.:]+/assets/[\w\-/]+")


def upload_manifest(
    cogs: Iterable[str | os.PathLike],
    *,
    bucket: str,
    collection: str,
    out: str | os.PathLike,
    period: Period | None = None,
    properties: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write one Earth Engine upload manifest per COG.

    Band names, no-data value, type, period and tags are read from each file, so what is uploaded is what was exported.
    Integer embeddings are codes on a square-law scale, whose mean means nothing: their pyramid samples; floats are
    averaged.

    Args:
        cogs: GeoTIFFs on this machine, as exported.
        bucket: where they were copied, ``gs://BUCKET[/FOLDER]``; file names stay.
        collection: the image collection, ``projects/PROJECT/assets/NAME``; each COG becomes an image of it.
        out: folder for the manifests.
        period: the valid period that the embeddings summarise, of files whose tags state none.
        properties: further image properties (strings or numbers); they win over those of the files' tags.

    Returns:
        Paths of the manifests, in the order of ``cogs``.

    Raises:
        ValueError: a name is not of the expected form, there is no COG, two would have the same name, or a file's
            period is unknown or another one than ``period``. No manifest is written then.
        FileNotFoundError: a COG does not exist.
    """
    if not bucket.startswith("gs://") or len(bucket) <= 5:
        raise ValueError(f"bucket: expected gs://BUCKET[/FOLDER], found {bucket!r}")
    if not _COLLECTION.fullmatch(collection):
        raise ValueError(f"collection: expected projects/PROJECT/assets/NAME, found {collection!r}")
    files = [Path(cog) for cog in cogs]
    if not files:
        raise ValueError("no COG was given: export an embedding field first (`aef embed`)")
    taken: dict[str, Path] = {}
    for file in files:
        other = taken.setdefault(_asset_name(file), file)
        if other is not file:
            raise ValueError(
                f"{other} and {file} have the same name in the collection, {_asset_name(file)}: rename one"
            )
    manifests = [_manifest(file, bucket, collection, period, properties or {}) for file in files]
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    return [_write(folder, manifest) for manifest in manifests]


def _asset_name(file: Path) -> str:
    """What Earth Engine allows of a file's name."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", file.stem)


def _manifest(
    file: Path, bucket: str, collection: str, period: Period | None, properties: Mapping[str, Any]
) -> dict[str, Any]:
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such COG")
    import rasterio

    with rasterio.open(file) as image:
        names = [name or f"A{band:02d}" for band, name in enumerate(image.descriptions)]
        integer, nodata, tags = image.dtypes[0].startswith(("int", "uint")), image.nodata, image.tags()
    stated = _period(file, tags, period)
    carried = {re.sub(r"\W", "_", name): value for name, value in tags.items() if name not in _NO_PROPERTY and value}
    manifest: dict[str, Any] = {
        "name": f"{collection}/{_asset_name(file)}",
        "tilesets": [{"id": "field", "sources": [{"uris": [f"{bucket.rstrip('/')}/{file.name}"]}]}],
        "bands": [{"id": name, "tilesetId": "field", "tilesetBandIndex": band} for band, name in enumerate(names)],
        "pyramidingPolicy": "SAMPLE" if integer else "MEAN",
        "startTime": _iso(stated.start_ms),
        "endTime": _iso(stated.end_ms),
        "properties": {**carried, **properties},
    }
    if nodata is not None:
        manifest["missingData"] = {"values": [nodata]}
    return manifest


def _period(file: Path, tags: Mapping[str, str], given: Period | None) -> Period:
    stated = parse_period(tags["period"]) if "period" in tags else given
    if stated is None:
        raise ValueError(f"{file}: its tags state no period: give period=")
    if given is not None and stated != given:
        raise ValueError(f"{file}: its tags state the period {stated}, period= says {given}: leave the argument out")
    return stated


def _iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _write(folder: Path, manifest: dict[str, Any]) -> Path:
    path = folder / f"{manifest['name'].rsplit('/', 1)[1]}.json"
    with writing(path, "w") as stream:
        stream.write(json.dumps(manifest, indent=2) + "\n")
    return path
