"""The periodic figure of a run: what went in, what was wanted, what came out, and the embedding as colours."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from aef.clock import DAY_MS, format_date
from aef.data.batch import Batch
from aef.data.standardizer import Standardizer
from aef.figure_file import MISSING, new_figure, save_png
from aef.mapping.picture import pca_rgb
from aef.model.aef import Output
from aef.run import Run
from aef.sources import Source

FOLDER = "figures"
FRAMES_SHOWN = 6
STRETCH_SIGMA = 2.5
TRUE_COLOUR = (("B4", "B3", "B2"), ("B04", "B03", "B02"), ("red", "green", "blue"))


def write_figure(run: Run, batch: Batch, output: Output, step: int) -> str | None:
    """Draw the first sample of a batch into ``RUN/figures/step-….png``; returns what to tell the user if it cannot."""
    batch, output = _on_cpu(batch), _on_cpu(output)
    rows = [_input_row(run, batch, name) for name in run.inputs]
    rows = [row for row in rows if row]
    rows.append(_embedding_row(batch, output))
    targets = [row for name in run.targets if (row := _target_row(run, batch, output, name))]
    rows += [[picture for row in targets[at : at + 2] for picture in row] for at in range(0, len(targets), 2)]
    width = max(map(len, rows))
    try:
        figure = new_figure(2.1 * width, 2.25 * len(rows))
    except ImportError:
        return f"no figure: {MISSING}"
    axes = figure.subplots(len(rows), width, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for place in line:
            place.set_axis_off()
        for place, (title, picture) in zip(line, row, strict=False):
            place.imshow(picture, vmin=0, vmax=1, interpolation="nearest", cmap="viridis")
            place.set_title(title, fontsize=7)
    figure.suptitle(f"{batch.sample_ids[0]}, step {step}", fontsize=9)
    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)
    save_png(folder / f"step-{step:08d}.png", figure)
    return None


Picture = tuple[str, np.ndarray]


def _input_row(run: Run, batch: Batch, name: str) -> list[Picture]:
    """Frames of one source that the teacher of the first sample sees, spread over its support."""
    block, source = batch.frames[name], run.registry[name]
    own = ((block.position >= 0) & (block.position < batch.cu_frames[1])).nonzero()[:, 0]
    if not len(own):
        return []
    shown = own[torch.linspace(0, len(own) - 1, min(FRAMES_SHOWN, len(own))).round().long()]
    standardize = Standardizer(source, run.statistics, run.config.objective.clip_sigma)
    z = standardize(block.values[shown], block.valid[shown])
    times = batch.frame_time_ms[block.position[shown]].tolist()
    seen = block.valid[shown].expand(z.shape)
    return [
        (f"{name}, input\n{format_date(time_ms)}", _picture(source, z[i], seen[i])) for i, time_ms in enumerate(times)
    ]


def _embedding_row(batch: Batch, output: Output) -> list[Picture]:
    """Embedding fields of the first sample: teacher and student over their shared period, then others of the teacher."""
    teacher, student = int(batch.teacher_row[0]), int(batch.student_row[0])
    others = [row for row in (batch.period_segment == 0).nonzero()[:, 0].tolist() if row != teacher]
    rows = [teacher, student, *others[: FRAMES_SHOWN - 2]]
    colours = pca_rgb([output.mean[row].permute(2, 0, 1).numpy() for row in rows])
    names = ["embedding, teacher", "embedding, student", *["embedding, teacher"] * len(others)]
    days = [(batch.periods[row, 1] - batch.periods[row, 0]).item() / DAY_MS for row in rows]
    starts = [format_date(int(batch.periods[row, 0])) for row in rows]
    return [(f"{n}\n{s} + {d:.0f} d", c) for n, s, d, c in zip(names, starts, days, colours, strict=False)]


def _target_row(run: Run, batch: Batch, output: Output, name: str) -> list[Picture]:
    """Target, reconstruction and error of the first sample's first target of a source."""
    block, source = batch.targets[name], run.registry[name]
    own = ((block.sample == 0) & (block.item_weight > 0)).nonzero()[:, 0]
    if not len(own):
        return []
    item = int(own[0])
    side = batch.side_px
    predicted = output.reconstructions[name][item]
    valid = _expand(block.valid[item], side)
    if source.classes:
        codes = torch.tensor(source.classes)
        target = (_expand(block.values[item], side).long() == codes).float().argmax(-1, keepdim=True)
        predicted = predicted.argmax(-1, keepdim=True)
        top = max(len(source.classes) - 1, 1)
        shown = [np.where(valid[..., 0], image[..., 0] / top, np.nan) for image in (target, predicted)]
        wrong = ((target != predicted) & valid[..., :1]).float()[..., 0].numpy()
        return _titled(name, block.time_ms[item], [*shown, wrong], "wrong class")
    standardize = Standardizer(source, run.statistics, run.config.objective.clip_sigma)
    target = _expand(standardize(block.values[item], block.valid[item]), side)
    wide = valid.expand(target.shape)
    error = (target - predicted).abs().where(wide, torch.nan).nanmean(-1).numpy() / STRETCH_SIGMA
    pictures = [_picture(source, target, wide), _picture(source, predicted, torch.ones_like(wide)), error]
    return _titled(name, block.time_ms[item], pictures, "mean |error|")


def _titled(name: str, time_ms: Tensor, pictures: list[np.ndarray], last: str) -> list[Picture]:
    titles = [f"{name}, target\n{format_date(int(time_ms))}", f"{name}\nreconstruction", f"{name}\n{last}"]
    return list(zip(titles, pictures, strict=True))


def _picture(source: Source, z: Tensor, valid: Tensor) -> np.ndarray:
    """z-scores (h, w, C) as true colour where the bands allow it, else the first band; NaN or white where not observed."""
    scaled = (z / (2 * STRETCH_SIGMA) + 0.5).clamp(0, 1)
    names = {band: at for at, band in enumerate(source.band_names)}
    for bands in TRUE_COLOUR:
        if all(band in names for band in bands):
            chosen = [names[band] for band in bands]
            return torch.where(valid[..., chosen], scaled[..., chosen], 1.0).numpy()
    observed = valid.any(tuple(range(valid.ndim - 1))).nonzero()[:, 0]
    band = int(observed[0]) if len(observed) else 0
    return scaled[..., band].where(valid[..., band], torch.nan).numpy()


def _expand(cells: Tensor, side_px: int) -> Tensor:
    """(g, g, C) cells → (side, side, C) pixels."""
    index = torch.arange(side_px) * cells.shape[0] // side_px
    return cells[index][:, index]


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Output):
        return Output(
            value.mean.float().cpu(),
            {name: item.float().cpu() for name, item in value.reconstructions.items()},
            value.text.float().cpu(),
            value.logit_scale.float().cpu(),
        )
    return value.to("cpu")
