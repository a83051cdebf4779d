"""Whole training steps of the presets on a GPU, without data and without an engine: rows of `benchmarks.gpu --only steps`.

bf16 weights, fp32 masters. There is no loader, so nothing of a step is waiting for data; `aef throughput --data` runs the engine's.
"""

import dataclasses
import gc
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from aef.config import PRESETS
from benchmarks import roofline
from benchmarks.block import kernels_from, without_zeros
from benchmarks.sheet import Row, limits_of, make_row
from benchmarks.step import PlainStep
from benchmarks.timing import time_calls

STEPS = 6
BUCKET = 8
"""Frames to which a batch is padded for CUDA graphs: filler may be a twentieth of it (`data.frame_bucket`)."""


@dataclass(frozen=True)
class Way:
    """How a contender steps: the value of `AEF_KERNELS`, what is made again in backward, what compiles the blocks."""

    kernels: str = "auto"
    checkpointing: str = "none"
    compiler: str = ""


CONTENDERS = {
    "ours": Way(),
    "tuned eager": Way("torch"),
    "ours, selective": Way(checkpointing="selective"),
    "ours, compiled": Way(compiler="compile"),
    "ours, CUDA graphs": Way(compiler="cuda_graphs"),
}
PLAN: dict[str, tuple[tuple[str, tuple[int, ...]], ...]] = {
    "large": (
        ("ours", (2,)),
        ("tuned eager", (2,)),
        ("ours", (4, 5)),
        ("ours, selective", (2, 5, 6)),
        ("ours, CUDA graphs", (2,)),
        ("ours, compiled", (2,)),
    ),
    "base": (("ours", (4, 8)), ("tuned eager", (4,)), ("ours, CUDA graphs", (4,))),
    "small": (("ours", (24, 96)), ("tuned eager", (24,))),
    "tiny": (("ours", (2,)), ("tuned eager", (2,))),
}
"""Samples of a step, by preset and contender: all at one number, then more until they no longer fit."""


class Steps:
    """A preset's steps, one at a time: the model is made anew only where the next contender is another module."""

    def __init__(self, preset: str, identity: dict[str, Any]) -> None:
        self.preset, self.identity = preset, identity
        self.step: PlainStep | None = None
        self.made: tuple[str, str] | None = None
        self.full: dict[str, int] = {}

    def rows(self, compiled: bool, without: tuple[str, ...] = ()) -> Iterator[tuple[str, Callable[[], Row]]]:
        """(label, what measures it) of every contender but those `without`."""
        for name, counts in PLAN[self.preset]:
            if name in without or bool(CONTENDERS[name].compiler) != compiled:
                continue
            for samples in counts:
                yield self.label(name, samples), partial(self.row, name, samples)

    def label(self, name: str, samples: int) -> str:
        """What is measured, in words."""
        return f"step {self.preset}, {samples} sample{'s' * (samples > 1)} | {name}"

    def row(self, name: str, samples: int) -> Row:
        """A step of so many samples. Raises where fewer did not fit."""
        if samples >= self.full.get(name, samples + 1):
            raise torch.OutOfMemoryError(f"{self.full[name]} samples did not fit")
        way = CONTENDERS[name]
        try:
            with kernels_from(way.kernels):
                return self._measure(name, self._made(way), samples)
        except torch.OutOfMemoryError:
            self.full[name] = samples
            raise

    def _made(self, way: Way) -> PlainStep:
        if self.step is None or self.made != (way.checkpointing, way.compiler):
            self.step = None
            torch.compiler.reset()  # compiled blocks outlive their model, and CUDA graphs the memory of its activations
            gc.collect()
            torch.cuda.empty_cache()
            self.step, self.made = preset_step(self.preset, way), (way.checkpointing, way.compiler)
        return self.step

    def _measure(self, name: str, step: PlainStep, samples: int) -> Row:
        step.draw(samples)
        step()
        timing = time_calls([step], capturable=False, calls_timed=STEPS)
        shares, limits = phase_shares(step), limits_of(self.identity["gpu"])
        launches, host_ms = count_launches(step)  # last: the profiler stays attached
        about, seconds = step.about, timing.median * 1e-6
        work = roofline.Work(about["gflop"] * 1e9, 0.0)
        peak = "" if limits is None else f"{work.flops / seconds / limits.matrix:.0%} of the matrix peak, "
        note = (
            f"{samples / seconds:.2f} samples/s, {timing.peak_mb / about['frames']:.1f} MB a frame at the peak, {peak}"
            + ", ".join(f"{phase} {share:.0%}" for phase, share in shares.items())
            + f", {launches} launches issued in {host_ms:.1f} ms, no loader: no wait for data"
        )
        shape = f"{self.preset}, {samples} sample{'s' * (samples > 1)}: {about['frames']} frames"
        return make_row("step", shape, name, "both", timing, work, self.identity, note=note)


def preset_step(preset: str, way: Way = CONTENDERS["ours"]) -> PlainStep:
    """A preset's plain step with bf16 weights, none of them zero."""
    config = PRESETS[preset]
    settings = {"compute_dtype": "bfloat16", "checkpointing": way.checkpointing}
    settings |= {way.compiler: True} if way.compiler else {}
    bucket = BUCKET if way.compiler == "cuda_graphs" else config.data.frame_bucket
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **settings),
        data=dataclasses.replace(config.data, frame_bucket=bucket),
        train=dataclasses.replace(config.train, micro_batch=1),
    )
    step = PlainStep(config, "cuda", torch.bfloat16)
    without_zeros(step.model)
    with torch.no_grad():
        torch._foreach_copy_(step.masters, step.parameters)
    return step


def phase_shares(step: Callable[..., object]) -> dict[str, float]:
    """Which part of a step's time on the device each phase takes."""
    events = [("", torch.cuda.Event(enable_timing=True))]
    events[0][1].record()

    def mark(phase: str) -> None:
        events.append((phase, torch.cuda.Event(enable_timing=True)))
        events[-1][1].record()

    step(mark)
    torch.cuda.synchronize()
    whole = events[0][1].elapsed_time(events[-1][1])
    return {after[0]: before[1].elapsed_time(after[1]) / whole for before, after in itertools.pairwise(events)}


def count_launches(call: Callable[[], object]) -> tuple[int, float]:
    """Kernels that one call launches, and the host's milliseconds to issue them."""
    call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    host_ms = (time.perf_counter() - begin) * 1e3
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return sum(1 for one in profile.events() if one.device_type == torch.autograd.DeviceType.CUDA), host_ms
