"""From a chip to the files of its fields, a row of windows at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from rasterio.transform import Affine

from aef.data.chips import Chip
from aef.mapping.files import Format, chip_tags, write_field, writing_strips
from aef.mapping.trained_model import TrainedModel
from aef.timecode import Period


def embed_to_files(
    model: TrainedModel,
    chip: Chip | str | os.PathLike,
    paths: Mapping[Period, Path],
    form: Format = "int8",
    *,
    leave_out: Sequence[str] = (),
    support: Period | None = None,
    inpaint: bool = False,
    on_windows: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """`TrainedModel.embed` into one file per valid period, atomically.

    A GeoTIFF needs 64 bytes a pixel and period in memory (float: 256), not the field; NetCDF is made whole.

    Args:
        paths: the file of each period; folders are made.
        on_windows: called with the number of windows of a pass that are done, and of all.

    Raises:
        EmbeddingError: as `TrainedModel.embed` does.
        OSError: the disk is full or the folder cannot be written; files of the same support are not written then.
    """
    chip = model.open(chip)
    passes = model.passes(chip, list(paths), leave_out=leave_out, support=support)
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    if form == "netcdf":
        options = {"leave_out": leave_out, "support": support, "inpaint": inpaint}
        fields = model.embed(chip, list(paths), **options)  # type: ignore[arg-type]
        for number, path in enumerate(paths.values()):
            write_field(path, fields.isel(period=number), form)
        return
    model.warn(chip, passes, leave_out, named=support is not None)
    width = model.config.model.embedding_dim
    grid = {"crs": chip.crs, "transform": Affine(*chip.transform), "bands": [f"A{band:02d}" for band in range(width)]}
    shape, made_by = (width, chip.height, chip.width), chip_tags(chip, model.made_by(leave_out, inpaint))
    for pass_ in passes:
        with ExitStack() as files:
            writers = []
            for period in pass_.periods:
                tags = {**made_by, "period": str(period), **pass_.about(period)}
                writers.append(
                    files.enter_context(writing_strips(paths[period], form, shape=shape, tags=tags, **grid))  # type: ignore[arg-type]
                )
            for rows, vectors in model.strips(chip, pass_, on_windows=on_windows):
                for write, field in zip(writers, vectors):
                    if not inpaint:
                        field[:, ~pass_.observed[rows]] = np.nan
                    write(rows.start, field)
