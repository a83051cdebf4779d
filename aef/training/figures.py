"""The periodic figure of a run: what went in, what was wanted, what came out, and the embedding as colours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from aef.clock import DAY_MS, format_date
from aef.data.batch import Batch
from aef.data.rendering import MISSING
from aef.data.standardizer import Standardizer
from aef.figure_file import NO_MATPLOTLIB, new_figure, save_png
from aef.mapping.picture import pca_rgb
from aef.model.aef import Output
from aef.run import Run
from aef.sources import Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
        return f"no figure: {NO_MATPLOTLIB}"
    axes = figure.subplots(len(rows), width, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for axis in line[len(row) :]:
            axis.set_axis_off()
        for axis, (title, picture) in zip(line, row, strict=False):
            _show(axis, picture)
            axis.set_title(title, fontsize=7)
    side = batch.side_px
    figure.suptitle(f"a crop of {side} × {side} px of {batch.sample_ids[0]}, step {step}", fontsize=9)
    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)
    save_png(folder / f"step-{step:08d}.png", figure)
    return None


def _show(axis: Axes, picture: np.ndarray) -> None:
    """A picture in a thin frame, without which a white one could not be told from the page; grey where it is NaN."""
    from matplotlib import colormaps

    unseen = colormaps["viridis"].with_extremes(bad=str(MISSING))
    axis.imshow(picture, vmin=0, vmax=1, interpolation="nearest", cmap=unseen)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(color="0.6", linewidth=0.5)


Picture = tuple[str, np.ndarray]


def _input_row(run: Run, batch: Batch, name: str) -> list[Picture]:
    """Frames of one source that the teacher of the first sample sees, spread over its support, the clearest of each part."""
    block, source = batch.frames[name], run.registry[name]
    own = ((block.position >= 0) & (block.position < batch.cu_frames[1])).nonzero()[:, 0]
    if not len(own):
        return []
    times = batch.frame_time_ms[block.position[own]].tolist()
    if source.classes:
        shades = _class_shades(source, block.values[own], block.valid[own])
        seen = shades.isfinite()[..., None]
        frames = clearest_frames(source, torch.zeros_like(shades)[..., None], seen)
        return [(f"{name}, input\n{format_date(times[i])}", shades[i].numpy()) for i in frames]
    standardize = Standardizer(source, run.statistics, run.config.objective.clip_sigma)
    z = standardize(block.values[own], block.valid[own])
    seen = block.valid[own].expand(z.shape)
    return [
        (f"{name}, input\n{format_date(times[i])}", _picture(source, z[i], seen[i]))
        for i in clearest_frames(source, z, seen)
    ]


def _class_shades(source: Source, codes: Tensor, valid: Tensor) -> Tensor:
    """Stored codes (…, 1) as shades of 0 to 1 in the order of the classes (…); NaN where not observed or of no class."""
    matches = codes.long() == torch.tensor(source.classes)
    shade = matches.float().argmax(-1) / max(len(source.classes) - 1, 1)
    return shade.where(matches.any(-1) & valid[..., 0], torch.nan)


def clearest_frames(source: Source, z: Tensor, seen: Tensor) -> list[int]:
    """Of z-scores (T, h, w, C) the numbers of at most `FRAMES_SHOWN` frames: of as many equal parts of the series the
    frame with most pixels that are observed and neither black nor white as drawn, as clouds are."""
    bands = _shown_bands(source, seen)
    clear = (seen[..., bands] & (z[..., bands].abs() < STRETCH_SIGMA)).all(-1).sum((1, 2))
    parts = torch.tensor_split(torch.arange(len(z)), min(FRAMES_SHOWN, len(z)))
    return [int(part[clear[part].argmax()]) for part in parts]


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
        target = _class_shades(source, _expand(block.values[item], side), valid)
        guess = _class_shades(source, torch.tensor(source.classes)[predicted.argmax(-1, keepdim=True)], valid)
        wrong = (target != guess).float()
        shown = [image.where(target.isfinite(), torch.nan).numpy() for image in (target, guess, wrong)]
        return _titled(name, block.time_ms[item], shown, "wrong class")
    standardize = Standardizer(source, run.statistics, run.config.objective.clip_sigma)
    target = _expand(standardize(block.values[item], block.valid[item]), side)
    wide = valid.expand(target.shape)
    scored = wide & torch.tensor(source.scored(run.config.objective.unscored_bands))
    error = (target - predicted).abs().where(scored, torch.nan).nanmean(-1).numpy() / STRETCH_SIGMA
    pictures = [_picture(source, target, wide), _picture(source, predicted, torch.ones_like(wide)), error]
    return _titled(name, block.time_ms[item], pictures, "mean |error|")


def _titled(name: str, time_ms: Tensor, pictures: list[np.ndarray], last: str) -> list[Picture]:
    titles = [f"{name}, target\n{format_date(int(time_ms))}", f"{name}\nreconstruction", f"{name}\n{last}"]
    return list(zip(titles, pictures, strict=True))


def _picture(source: Source, z: Tensor, valid: Tensor) -> np.ndarray:
    """z-scores (h, w, C) as true colour (h, w, 3) where the bands allow it, else the first observed band (h, w); grey
    or NaN where not observed."""
    bands = _shown_bands(source, valid)
    scaled = (z[..., bands] / (2 * STRETCH_SIGMA) + 0.5).clamp(0, 1)
    seen = valid[..., bands].all(-1, keepdim=True)
    if len(bands) == 1:
        return scaled.where(seen, torch.nan)[..., 0].numpy()
    return scaled.where(seen, MISSING).numpy()


def _shown_bands(source: Source, valid: Tensor) -> list[int]:
    """Red, green and blue where the source has them, else its first band that was observed anywhere in ``valid`` (…, C)."""
    names = {band: number for number, band in enumerate(source.band_names)}
    for bands in TRUE_COLOUR:
        if all(band in names for band in bands):
            return [names[band] for band in bands]
    observed = valid.flatten(0, -2).any(0).nonzero()[:, 0]
    return [int(observed[0]) if len(observed) else 0]


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
