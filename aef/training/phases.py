"""Where a training step spends its time: a profile by phase, from the operators that ran, forward and backward.

Each module's forward pass is a named range; an operator of the backward pass belongs to the phase whose forward
operator made it (autograd numbers both alike). On a GPU the time is that of the kernels, on a CPU that of the calls.
"""

from __future__ import annotations

import bisect
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from aef.figure_file import new_figure, save_png

PREFIX = "phase "
MODULES = {
    "Projectors": "projectors",
    "PrecisionOperator": "precision",
    "TimeOperator": "time",
    "SpaceOperator": "space",
    "Position": "space",
    "Descent": "exchange",
    "Exchange": "exchange",
    "Ascent": "exchange",
    "Summary": "summary",
    "Head": "summary",
    "Bottleneck": "bottleneck",
    "Decoder": "decoders",
    "TextHead": "text",
}
"""Phase of each module of the model by its class; a nested one takes its time from the one around it."""

ORDER = ("load", *dict.fromkeys(MODULES.values()), "objective", "optimizer", "communication", "other")
COMMUNICATION = ("gloo:", "nccl:", "c10d::", "record_param_comms")
BACKWARD = "autograd::engine::evaluate_function: "


def phase(name: str) -> record_function:
    """What runs within counts as the phase ``name``."""
    return record_function(PREFIX + name)


@dataclass
class Phases:
    """Seconds of one step by phase, forward and backward; ``step_s`` is the wall clock without the profiler."""

    forward: dict[str, float] = field(default_factory=dict)
    backward: dict[str, float] = field(default_factory=dict)
    step_s: float = 0.0
    profiled_s: float = 0.0

    def names(self) -> list[str]:
        return [name for name in ORDER if self.forward.get(name, 0) + self.backward.get(name, 0) > 0]

    def table(self) -> str:
        """Milliseconds and shares, one phase a line."""
        total = sum(self.forward.values()) + sum(self.backward.values())
        lines = [f"{'phase':<14}{'forward':>11}{'backward':>11}{'share':>8}"]
        for name in self.names():
            ahead, back = self.forward.get(name, 0.0), self.backward.get(name, 0.0)
            lines.append(f"{name:<14}{1e3 * ahead:>8.1f} ms{1e3 * back:>8.1f} ms{(ahead + back) / total:>8.1%}")
        lines.append(
            f"{'sum':<14}{1e3 * total:>8.1f} ms, step {1e3 * self.step_s:.1f} ms ({1e3 * self.profiled_s:.1f} profiled)"
        )
        return "\n".join(lines)


@contextmanager
def named_phases(model: nn.Module) -> Iterator[None]:
    """Within the block every known module's forward pass is a named range of the profiler."""
    handles, open_ranges = [], []

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, *_: Any) -> None:
            opened = phase(name)
            opened.__enter__()
            open_ranges.append(opened)

        return hook

    def leave(module: nn.Module, *_: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    for module in model.modules():
        name = MODULES.get(type(module).__name__)
        if name:
            handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def profile_step(
    model: nn.Module, step: Callable[[], None], device: torch.device, *, trace: Path | None = None, repeats: int = 3
) -> Phases:
    """Run ``step`` unprofiled ``repeats`` times (after one to warm up), then once under the profiler.

    ``step`` may name phases of its own with `phase`. With ``trace`` a Chrome trace is written.
    """
    # Kineto announces its start and stop on standard error, above every other level; it reads this at the first profile.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    step()
    times = [_timed(step, device) for _ in range(repeats)]
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with named_phases(model), profile(activities=activities) as profiler:
        profiled_s = _timed(step, device)
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    phases = _by_phase(profiler.events(), on_gpu=device.type == "cuda")
    phases.step_s, phases.profiled_s = min(times), profiled_s
    return phases


def _timed(step: Callable[[], None], device: torch.device) -> float:
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _by_phase(events: Any, *, on_gpu: bool) -> Phases:
    ranges = sorted(
        (event.time_range.start, event.time_range.end, event.name.removeprefix(PREFIX))
        for event in events
        if event.name.startswith(PREFIX) and event.device_type == torch.autograd.DeviceType.CPU
    )
    starts = [start for start, _, _ in ranges]

    def phase_at(moment: float) -> str | None:
        """The innermost named range around a moment."""
        for index in range(bisect.bisect_right(starts, moment) - 1, -1, -1):
            if ranges[index][1] >= moment:
                return ranges[index][2]
        return None

    own = [e for e in events if e.device_type == torch.autograd.DeviceType.CPU and not e.name.startswith(PREFIX)]
    phase_of = {
        event.sequence_nr: name
        for event in own
        if event.sequence_nr >= 0 and not _in_backward(event) and (name := phase_at(event.time_range.start))
    }
    phases = Phases()
    for event in own:
        spent = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
        if event.name.startswith(COMMUNICATION):
            _add(phases.forward, "communication", spent)
        elif node := _in_backward(event):
            _add(phases.backward, phase_of.get(node.sequence_nr, "other"), spent)
        else:
            _add(phases.forward, phase_at(event.time_range.start) or "other", spent)
    if not on_gpu:
        # What the interpreter does between operators belongs to the phase around it.
        for event in events:
            if event.name.startswith(PREFIX):
                _add(phases.forward, event.name.removeprefix(PREFIX), event.self_cpu_time_total / 1e6)
    return phases


def _in_backward(event: Any) -> Any:
    """The autograd node under which an operator ran, or None in the forward pass."""
    while event is not None:
        if event.name.startswith(BACKWARD):
            return event
        event = event.cpu_parent
    return None


def _add(into: dict[str, float], name: str, seconds: float) -> None:
    into[name] = into.get(name, 0.0) + seconds


def write_picture(phases: Phases, path: Path, title: str) -> None:
    """One bar per phase, forward and backward stacked. Raises ModuleNotFoundError without matplotlib."""
    names = phases.names()[::-1]
    ahead = [1e3 * phases.forward.get(name, 0.0) for name in names]
    back = [1e3 * phases.backward.get(name, 0.0) for name in names]
    figure = new_figure(7, 0.6 + 0.32 * len(names))
    axes = figure.subplots()
    axes.barh(names, ahead, label="forward", color="#3b6fb6")
    axes.barh(names, back, left=ahead, label="backward", color="#d98032")
    axes.set_xlabel("ms per step")
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    save_png(path, figure, dpi=130)
