"""Say what is installed, which device is used, which kernels would run, and what is missing for which command.

Nothing is changed and nothing is downloaded; a missing or broken package is reported, never a crash. Exit code 1 where
the model itself cannot run.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator

import aef
from aef.__main__ import commands
from aef.launcher.command import FAILED, parser, run
from aef.memory import memory_bytes

PACKAGES = {
    # import name: (distribution, extra that brings it)
    "torch": ("torch", ""),
    "triton": ("triton", ""),
    "numpy": ("numpy", ""),
    "safetensors": ("safetensors", ""),
    "yaml": ("pyyaml", ""),
    "rich": ("rich", ""),
    "deepspeed": ("deepspeed", "deepspeed"),
    "rasterio": ("rasterio", "geo"),
    "xarray": ("xarray", "geo"),
    "rioxarray": ("rioxarray", "geo"),
    "netCDF4": ("netCDF4", "geo"),
    "zarr": ("zarr", "geo"),
    "pyarrow": ("pyarrow", "geo"),
    "pyproj": ("pyproj", "geo"),
    "shapely": ("shapely", "geo"),
    "ee": ("earthengine-api", "ee"),
    "pystac_client": ("pystac-client", "stac"),
    "odc.stac": ("odc-stac", "stac"),
    "pyogrio": ("pyogrio", "vector"),
    "open_clip": ("open_clip_torch", "text"),
    "mwparserfromhell": ("mwparserfromhell", "text"),
    "dwca": ("python-dwca-reader", "text"),
    "sklearn": ("scikit-learn", "eval"),
    "matplotlib": ("matplotlib", "eval"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "flash_attn": ("flash-attn", "flash"),
}
CORE = ("torch", "numpy", "safetensors", "yaml", "rich")
FIELDS = ("rasterio", "xarray", "rioxarray", "netCDF4")
"""What reads and writes fields of every format."""
NEEDS = {
    # command: (needed, needed for a part of it: what)
    "classify": (
        (*FIELDS, "pyproj", "shapely", "sklearn"),
        {"matplotlib": "picture", "pyogrio": "labels from vector files"},
    ),
    "demo": (
        ("deepspeed", "matplotlib", "sklearn"),
        dict.fromkeys(("rasterio", "pyarrow", "open_clip"), "synthetic Earth"),
    ),
    "download": (
        ("pyproj",),
        {
            "ee": "Earth Engine",
            "pystac_client": "STAC",
            "odc.stac": "STAC",
            "pyarrow": "Parquet",
            "shapely": "areas",
            "pyogrio": "sites from vector files",
        },
    ),
    "embed": (FIELDS, {"matplotlib": "quicklooks"}),
    "evaluate": (("sklearn",), {}),
    "ingest": (("rasterio", "xarray"), {"netCDF4": "NetCDF", "zarr": "Zarr"}),
    "gaps": (("sklearn",), {}),
    "leave-out": (("deepspeed", "sklearn"), {}),
    "mosaic": (FIELDS, {"matplotlib": "quicklook"}),
    "prove": (("sklearn",), {}),
    "report": (("matplotlib", "sklearn"), {}),
    "search": ((*FIELDS, "pyproj"), {"open_clip": "search by words", "matplotlib": "picture"}),
    "show": (("matplotlib",), {}),
    "text": (("rasterio", "pyarrow", "mwparserfromhell", "dwca"), {"open_clip": "encoding"}),
    "throughput": (("deepspeed",), {"matplotlib": "picture"}),
    "train": (
        ("deepspeed",),
        {"matplotlib": "figures", "sklearn": "validation", "tensorboard": "--tensorboard"},
    ),
}


MODEL = ("demo", "embed", "evaluate", "gaps", "leave-out", "prove", "report", "search", "throughput", "train")
"""Commands that run the model."""


def main(argv: list[str] | None = None) -> int:
    parser(__file__, __doc__).parse_args(argv)
    _show("software", software())
    _show("device", device())
    chosen, problem = kernels()
    _show("kernels", [problem] if problem else chosen)
    _show("commands", missing(MODEL if problem else ()))
    return FAILED if problem else 0


def _show(title: str, lines: Iterable[str]) -> None:
    print(title)
    for line in lines:
        print(f"  {line}")


def is_installed(module: str) -> bool:
    """Whether a package can be found, without importing more than its parent."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def software() -> Iterator[str]:
    yield f"aef {aef.__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}"
    for module, (distribution, extra) in PACKAGES.items():
        if is_installed(module):
            try:
                version = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                version = "(version not known)"
            yield f"{distribution} {version}"
        else:
            how = f"pip install 'aef-engine[{extra}]'" if extra != "flash" else "optional; see docs/kernels.md"
            yield f"{distribution}: not installed ({how if extra else 'part of the core: reinstall aef-engine'})"


def device() -> Iterator[str]:
    yield f"{os.cpu_count()} CPU cores, {_memory()} of memory, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}"
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    yield f"C++ compiler: {compiler or 'none; training does not need one'}"
    try:
        import torch
    except Exception as error:
        yield f"torch cannot be imported: {_first_line(error)}"
        return
    if not torch.cuda.is_available():
        build = "a CPU build of torch" if torch.version.cuda is None else "no GPU is visible to torch"
        yield f"{build}: training and embedding run on the CPU"
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        yield f"GPU {index}: {found.name}, capability {found.major}.{found.minor}, {found.total_memory / 1e9:.0f} GB"


def kernels() -> tuple[list[str], str | None]:
    """What every operator of a small training step would run on, as the dispatcher itself says; or why none can run."""
    heard: list[str] = []
    try:
        import torch

        from aef.kernels.dispatch import afresh, requested

        requested()
        listener = logging.Handler()
        listener.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
        log = logging.getLogger("aef.kernels")
        log.addHandler(listener)
        log.setLevel(logging.INFO)
        with afresh():
            for name in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
                _small_step(torch.device(name))
        log.removeHandler(listener)
    except Exception as error:
        return [], f"the model cannot run: {type(error).__name__}: {_first_line(error)}"
    # The dispatcher says each choice once per case: sizes and types of the tensors, which its lines do not name.
    lines = [f"{line} ({count} cases)" if count > 1 else line for line, count in Counter(heard).items()]
    return lines or ["every operator runs in plain PyTorch"], None


def _small_step(device) -> None:
    """Forward and backward of one small random batch."""
    import numpy as np
    import torch

    from aef.config import PRESETS
    from aef.data.collate import Collator
    from aef.data.sample import Frames, Sample
    from aef.data.statistics import Statistics
    from aef.model.aef import AEF
    from aef.sources import BUILT_IN
    from aef.timecode import DAY_MS, SUPPORT_MS, Period

    source, side, start = BUILT_IN["sentinel2"], 16, 0
    frames = Frames(
        np.full((3, side, side, source.channels), 1000.0, np.float32),
        np.ones((3, side, side, 1), np.bool_),
        np.array([10, 50, 90], np.int64) * DAY_MS,
    )
    support = Period(start, start + SUPPORT_MS)
    views = {source.name: frames}
    sample = Sample("small", "small", 0, support, side, views, views, consistency_period=support)
    batch = Collator(BUILT_IN, [source.name], [source.name])([sample]).to(device)
    config = PRESETS["base"].model if device.type == "cuda" else PRESETS["tiny"].model
    statistics = Statistics.identity(BUILT_IN, [source.name])
    model = AEF(config, BUILT_IN, statistics, inputs=[source.name], targets=[source.name]).to(device)
    output = model(batch)
    (output.mean.sum() + sum(torch.sum(found) for found in output.reconstructions.values())).backward()


def missing(broken: Iterable[str] = ()) -> Iterator[str]:
    """For each command what it lacks, and how to get it. ``broken`` are those that run a model which cannot run."""
    for command in commands():
        needed, partly = NEEDS.get(command, ((), {}))
        lacking = [module for module in (*CORE, *needed) if not is_installed(module)]
        parts = {module: what for module, what in partly.items() if not is_installed(module)}
        words = ["not ready: the model cannot run, see kernels"] if command in broken else []
        words += [f"needs {', '.join(_name(module) for module in lacking)}"] if lacking else []
        words += [f"without {_name(module)} no {what}" for module, what in parts.items()]
        extras = sorted({extra for module in (*lacking, *parts) if (extra := PACKAGES[module][1])})
        how = f" (pip install 'aef-engine[{','.join(extras)}]')" if extras else ""
        yield f"aef {command}: " + ("; ".join(words) + how if words else "ready")


def _name(module: str) -> str:
    return PACKAGES[module][0]


def _memory() -> str:
    there = memory_bytes()
    return "an unknown amount" if there is None else f"{there / 1e9:.0f} GB"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


if __name__ == "__main__":
    sys.exit(run(main))
