"""The way back: JSON manifests that put exported COGs of embedding fields into an Earth Engine image collection.

Copy the COGs into a Cloud Storage bucket, write the manifests, and start each with
``earthengine upload image --manifest FILE.json``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aef.clock import Period

_COLLECTION = re.compile(r"projects/[a-z][-a-z0-9.:]+/assets/[\w\-/]+")


def upload_manifest(
    cogs: Iterable[str | os.PathLike],
    *,
    bucket: str,
    collection: str,
    period: Period,
    out: str | os.PathLike,
    properties: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write one Earth Engine upload manifest per COG.

    Band names, no-data value and type are read from each file, so what is uploaded is what was exported. Integer
    embeddings are codes on a square-law scale, whose mean means nothing: their pyramid samples; floats are averaged.

    Args:
        cogs: GeoTIFFs on this machine, as exported.
        bucket: where they were copied, ``gs://BUCKET[/FOLDER]``; file names stay.
        collection: the image collection, ``projects/PROJECT/assets/NAME``; each COG becomes an image of it.
        period: the valid period that the embeddings summarise.
        out: folder for the manifests.
        properties: further image properties (strings or numbers).

    Returns:
        Paths of the manifests, in the order of ``cogs``.

    Raises:
        ValueError: a name is not of the expected form, there is no COG, or two have the same name.
        FileNotFoundError: a COG does not exist.
    """
    if not bucket.startswith("gs://") or len(bucket) <= 5:
        raise ValueError(f"bucket: expected gs://BUCKET[/FOLDER], found {bucket!r}")
    if not _COLLECTION.fullmatch(collection):
        raise ValueError(f"collection: expected projects/PROJECT/assets/NAME, found {collection!r}")
    files = [Path(cog) for cog in cogs]
    if not files:
        raise ValueError("no COG was given: export an embedding field first (`aef embed`)")
    if len({file.stem for file in files}) != len(files):
        raise ValueError("two COGs have the same name and would overwrite each other in the collection")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    return [_write(folder, _manifest(file, bucket, collection, period, properties or {})) for file in files]


def _manifest(
    file: Path, bucket: str, collection: str, period: Period, properties: Mapping[str, Any]
) -> dict[str, Any]:
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such COG")
    import rasterio

    with rasterio.open(file) as image:
        names = [name or f"A{band:02d}" for band, name in enumerate(image.descriptions)]
        integer, nodata, tags = image.dtypes[0].startswith(("int", "uint")), image.nodata, image.tags()
    licence = {"licence": tags["licence"]} if "licence" in tags else {}
    manifest: dict[str, Any] = {
        "name": f"{collection}/{re.sub(r'[^A-Za-z0-9_-]', '_', file.stem)}",
        "tilesets": [{"id": "field", "sources": [{"uris": [f"{bucket.rstrip('/')}/{file.name}"]}]}],
        "bands": [{"id": name, "tilesetId": "field", "tilesetBandIndex": band} for band, name in enumerate(names)],
        "pyramidingPolicy": "SAMPLE" if integer else "MEAN",
        "startTime": _iso(period.start_ms),
        "endTime": _iso(period.end_ms),
        "properties": {**licence, **properties},
    }
    if nodata is not None:
        manifest["missingData"] = {"values": [nodata]}
    return manifest


def _iso(time_ms: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _write(folder: Path, manifest: dict[str, Any]) -> Path:
    path = folder / f"{manifest['name'].rsplit('/', 1)[1]}.json"
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path
