"""What became of the rasters: a line per band of a chip, and what no input used."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from aef.data.chips import Chip
from aef.data.source_summary import clear_share
from aef.timecode import format_time


@dataclass(frozen=True)
class BandLine:
    """One band of one chip: share of pixels observed and their range; NaN where nothing was."""

    source: str
    band: str
    unit: str
    valid: float
    minimum: float
    median: float
    maximum: float


@dataclass
class Report:
    """All that a user needs to see after a place was converted."""

    place: str
    file: str
    shape: tuple[int, int]
    bands: list[BandLine] = field(default_factory=list)
    frames: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    suspicions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The table, one band a line."""
        lines = [f"{self.place} -> {self.file}, {self.shape[0]} x {self.shape[1]} px"]
        lines += [f"  note: {text}" for text in self.notes]
        width = max((len(line.band) for line in self.bands), default=4)
        for source, frames in self.frames.items():
            lines.append(f"  {source}: {frames}")
            lines.append(f"    {'band':{width}}  valid %  {'minimum':>10} {'median':>10} {'maximum':>10}  unit")
            for line in self.bands:
                if line.source != source:
                    continue
                numbers = " ".join(_number(x) for x in (line.minimum, line.median, line.maximum))
                lines.append(
                    f"    {line.band:{width}}  {line.valid:7.1%}  {numbers}  {line.unit}".replace("%  ", "   ", 1)
                )
        lines += [f"  SUSPICIOUS: {text}" for text in self.suspicions]
        lines += [f"  unused: {text}" for text in self.unused]
        return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:10.5g}" if np.isfinite(value) else f"{'-':>10}"


def band_lines(chip: Chip) -> list[BandLine]:
    """Every band of every source of a chip; one band in memory at a time."""
    lines = []
    for name, series in chip.sources.items():
        for index, band in enumerate(series.bands):
            mask = series.valid[:, min(index, series.valid.shape[1] - 1)]
            observed = series.values[:, index][mask]
            numbers = (
                (float(observed.min()), float(np.median(observed)), float(observed.max()))
                if observed.size
                else (np.nan, np.nan, np.nan)
            )
            unit = series.units[index] if series.units else ""
            lines.append(BandLine(name, band, unit, float(mask.mean()) if mask.size else 0.0, *numbers))
    return lines


def frame_line(chip: Chip, source: str, dropped: int, twins: int) -> str:
    """Frames, their span, and what was left out."""
    series = chip.sources[source]
    if series.time_ms is None:
        return "static"
    last = series.time_ms if series.time_end_ms is None else series.time_end_ms
    text = f"{series.frames} frames, {format_time(int(series.time_ms[0]))} to {format_time(int(last[-1]))}"
    if dropped:
        text += f", {dropped} without any observation left out"
    if twins:
        text += f", {twins} twins"
    clear = clear_share(series)
    return text + (", no cloud rule" if clear is None else f", {clear:.0%} clear")
