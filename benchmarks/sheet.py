"""The results of `python -m benchmarks.gpu`: rows, and the CSV and Markdown files that hold them."""

import csv
import datetime
import importlib.metadata
import itertools
import re
import subprocess
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from aef.kernels import tuning
from benchmarks import roofline
from benchmarks.timing import Timing

FLASH_ATTN = ("flash_attn_3", "flash_attn")
"""Packages of the third generation and of the second."""


@dataclass(frozen=True)
class Row:
    """One measurement. `backend` is the one of dispatch that ran, where a contender is one; `floor_share` is floor /
    median: above 1 the floor is wrong."""

    operator: str
    shape: str
    contender: str
    backend: str
    mode: str
    dtype: str
    median_us: float
    q20_us: float
    q80_us: float
    graph_us: float | None
    tflops: float
    gbytes_s: float
    floor_share: float | None
    peak_mb: float
    gpu: str
    driver: str
    cuda: str
    torch: str
    triton: str
    cudnn: int
    flash_attn: str
    commit: str
    date: str
    note: str = ""

    @property
    def us(self) -> float:
        """Of a graph, where there is one: what the GPU takes without the host's gaps."""
        return self.graph_us or self.median_us


def identity_of(device: torch.device, commit: str) -> dict[str, Any]:
    """What every row says of where it was measured."""
    import triton

    return {
        "gpu": torch.cuda.get_device_name(device),
        "driver": _driver(),
        "cuda": torch.version.cuda or "",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cudnn": torch.backends.cudnn.version() or 0,
        "flash_attn": ", ".join(filter(None, map(_version, FLASH_ATTN))) or "none",
        "commit": commit,
        "date": str(datetime.date.today()),
    }


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return ""


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def make_row(
    operator: str,
    shape: str,
    contender: str,
    mode: str,
    timing: Timing,
    work: roofline.Work,
    identity: dict,
    *,
    backend: str = "",
    dtype: torch.dtype = torch.bfloat16,
    note: str = "",
) -> Row:
    """A row of the sheet, rates taken from the graph's time where there is one."""
    seconds, limits = (timing.graph or timing.median) * 1e-6, limits_of(identity["gpu"])
    share = None if limits is None else work.floor_s(limits) / seconds
    return Row(
        *(operator, shape, contender, backend, mode, str(dtype).removeprefix("torch.")),
        *(timing.median, timing.low, timing.high, timing.graph),
        *(work.flops / seconds / 1e12, work.bytes / seconds / 1e9, share, timing.peak_mb),
        **identity,
        note=note,
    )


def limits_of(gpu: str) -> roofline.Gpu | None:
    """What the roofline knows of a GPU."""
    known = roofline.GPUS.items()
    return next((limits for name, limits in known if re.search(rf"{name}\b", tuning.slug(gpu))), None)


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file. Raises `ValueError` where it is not one of these."""
    with path.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    names = [one.name for one in fields(Row)]
    if not found or list(found[0]) != names:
        raise ValueError(f"{path}: expected rows of {', '.join(names)}")
    numbers = {"median_us", "q20_us", "q80_us", "graph_us", "tflops", "gbytes_s", "floor_share", "peak_mb"}
    return [Row(**{k: (float(v) if v else None) if k in numbers else v for k, v in one.items()}) for one in found]  # type: ignore[arg-type]


class Sheet:
    """The CSV and Markdown files of one run: every row is on disk as soon as it is known. A further run of the same day
    and commit has files of its own, "-2" and so on: what was measured is never overwritten."""

    def __init__(self, folder: Path, commit: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        dirty = "-dirty" if commit.endswith("-dirty") else ""
        stem = f"{datetime.date.today()}-{commit.removesuffix('-dirty')[:10]}{dirty}"
        stems = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        stem = next(one for one in stems if not list(folder.glob(f"{one}.*")))
        self.csv_path, self.text_path = folder / f"{stem}.csv", folder / f"{stem}.md"
        self.rows: list[Row] = []
        with self.csv_path.open("x", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([one.name for one in fields(Row)])

    def add(self, row: Row) -> None:
        self.rows.append(row)
        with self.csv_path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, [one.name for one in fields(Row)]).writerow(asdict(row))
        graph = "" if row.graph_us is None else f", graph {row.graph_us:.1f}"
        print(f"{row.operator} {row.shape} | {row.contender} | {row.mode}: {row.median_us:.1f} µs{graph}", flush=True)

    def close(self, verdicts: dict[str, str], unrun: list[str]) -> None:
        """Write the Markdown: verdicts of correctness, all rows, and what was not run."""
        lines = ["# Kernels on a GPU", ""]
        if self.rows:
            r = self.rows[0]
            lines += [
                f"{r.gpu}, driver {r.driver}, CUDA {r.cuda}, torch {r.torch}, Triton {r.triton}, cuDNN {r.cudnn}, "
                f"flash-attn {r.flash_attn}, commit {r.commit}, {r.date}",
                "",
            ]
        lines += ["## Correctness", "", *(f"- {name}: {verdict}" for name, verdict in verdicts.items()), ""]
        lines += ["## Timings", ""]
        lines += [
            "| operator | shape | contender | backend | mode | µs (20–80 %) | graph µs | TFLOP/s | GB/s | share of floor "
            "| MB | note |",
            "| " + "--- | " * 12,
        ]
        for r in self.rows:
            graph = "–" if r.graph_us is None else f"{r.graph_us:.1f}"
            share = "–" if r.floor_share is None else f"{r.floor_share:.0%}"
            lines.append(
                f"| {r.operator} | {r.shape} | {r.contender} | {r.backend or '–'} | {r.mode} "
                f"| {r.median_us:.1f} ({r.q20_us:.1f}–{r.q80_us:.1f}) "
                f"| {graph} | {r.tflops:.1f} | {r.gbytes_s:.0f} | {share} | {r.peak_mb:.0f} | {r.note} |"
            )
        lines += ["", "## Not run", "", *(f"- {name}" for name in unrun or ["nothing: every row was run"])]
        self.text_path.write_text("\n".join(lines) + "\n", encoding="utf-8")
