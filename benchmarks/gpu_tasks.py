"""What one process measures for `python -m benchmarks.gpu`: a task at a time from standard input, events as JSON to standard
output.

A kernel that reads outside its memory breaks the CUDA context of its process for good. So the tasks run in a process of
their own, which says so and ends; the next task gets a new one, and no more than one result is lost.
"""

import dataclasses
import datetime
import functools
import gc
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from aef.kernels import tuning
from benchmarks import roofline
from benchmarks.block import RUNGS, block_rungs
from benchmarks.kernels import Case, Contender, cases
from benchmarks.timing import MODES, Timing, calls_of, check, input_sets, ladder, time_calls

MICRO_BATCHES = {"large": (1, 2, 4, 5, 6), "base": (1, 4, 8), "small": (24, 96), "tiny": (2,)}
"""Samples of a step, by preset, in the order in which presets are timed."""
STEPS = 8
Event = dict[str, Any]
"""{"row": …}, {"unrun": text}, {"verdict": [case, text]}, and at a task's end {"done": whether the process can go on}."""


@dataclass(frozen=True)
class Task:
    """check: is this case right; time: its contenders; block, questions, steps (of one preset). Those that a compiler has to
    make first, for minutes, are tasks of their own. `seconds` are left when it begins."""

    kind: str
    name: str = ""
    compiled: bool = False
    seconds: float = float("inf")

    def __str__(self) -> str:
        return " ".join((self.kind, *filter(None, (self.name, "compiled" if self.compiled else ""))))


@dataclass(frozen=True)
class Row:
    """One measurement. `floor_share` is floor / median: above 1 the floor is wrong."""

    operator: str
    shape: str
    contender: str
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
    torch: str
    triton: str
    cudnn: int
    commit: str
    date: str
    note: str = ""


def identity_of(device: torch.device, commit: str) -> dict[str, Any]:
    """What every row says of where it was measured."""
    import triton

    return {
        "gpu": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cudnn": torch.backends.cudnn.version() or 0,
        "commit": commit,
        "date": str(datetime.date.today()),
    }


def make_row(
    operator: str, shape: str, contender: str, mode: str, timing: Timing, work: roofline.Work, identity: dict
) -> Row:
    """A row of the sheet, rates taken from the graph's time where there is one."""
    seconds, limits = (timing.graph or timing.median) * 1e-6, limits_of(identity["gpu"])
    share = None if limits is None else work.floor_s(limits) / seconds
    return Row(
        *(operator, shape, contender, mode, "bfloat16"),
        *(timing.median, timing.low, timing.high, timing.graph),
        *(work.flops / seconds / 1e12, work.bytes / seconds / 1e9, share, timing.peak_mb),
        **identity,
    )


def limits_of(gpu: str) -> roofline.Gpu | None:
    return next((limits for name, limits in roofline.GPUS.items() if name in tuning.slug(gpu)), None)


def perform(task: Task, device: torch.device, identity: dict[str, Any]) -> Iterator[Event]:
    """The events of one task; whatever goes wrong in it is one of them."""
    deadline = time.monotonic() + task.seconds
    try:
        yield from _KINDS[task.kind](task, device, identity, deadline)
    except Exception as error:  # a measurement that cannot be made is a result, not the end of the run
        yield {"unrun": f"{task}: {describe(error)}"}
    yield {"done": _usable()}


def describe(error: BaseException) -> str:
    """An exception in one short line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:140]}"


def _usable() -> bool:
    """Free what the task held; False where the CUDA context is broken."""
    gc.collect()
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def _check(task: Task, device: torch.device, identity: dict, deadline: float) -> Iterator[Event]:
    try:
        failed = check(case_named(task.name), device)
    except Exception as error:
        failed = describe(error)
    yield {"verdict": [task.name, f"FAILED: {failed}" if failed else "passed"]}


def measured(wanted: Iterable[tuple[str, Callable[[], Row]]], deadline: float) -> Iterator[Event]:
    """Rows of measurements, made one after another; each that fails, or that nothing is left for, is named instead."""
    broken = False
    for label, measure in wanted:
        if broken or time.monotonic() > deadline:
            yield {"unrun": f"{label}: {'the CUDA context is broken' if broken else 'out of time'}"}
            continue
        try:
            yield {"row": asdict(measure())}
        except Exception as error:  # of compilers, libraries and drivers, which have no common kind
            failed = describe(error)
        else:
            continue
        yield {"unrun": f"{label}: {failed}"}
        broken = not _usable()  # not before the error is gone, which holds on to what the measurement made


def _time(task: Task, device: torch.device, identity: dict, deadline: float) -> Iterator[Event]:
    """All contenders of a case in all modes, as far as the time goes."""
    case = case_named(task.name)
    sets = input_sets(case, device)

    def row(name: str, contender: Contender, capturable: bool, mode: str) -> Row:
        timing = time_calls(calls_of(contender, sets, mode), capturable)
        return make_row(case.operator, case.shape, name, mode, timing, case.work[mode], identity)

    contenders = [one[:3] for one in ladder(case) if one[3] == task.compiled]
    wanted = (
        (f"{case.name} | {name} | {mode}", functools.partial(row, name, contender, capturable, mode))
        for name, contender, capturable in contenders
        for mode in MODES
    )
    yield from measured(wanted, deadline)


def _block(task: Task, device: torch.device, identity: dict, deadline: float) -> Iterator[Event]:
    def row(shape: str, name: str, make: Callable[[], Callable[[], object]], work: roofline.Work) -> Row:
        return make_row("block", shape, name, "both", time_calls([make()]), work, identity)

    names = [name for name, way in RUNGS.items() if (way.compiled is not None) == task.compiled]
    rungs = block_rungs(device, torch.bfloat16, names=names)
    yield from measured(((f"block {one[0]} | {one[1]}", functools.partial(row, *one)) for one in rungs), deadline)


def _questions(task: Task, device: torch.device, identity: dict, deadline: float) -> Iterator[Event]:
    def row(operator: str, shape: str, calls: list[Callable[[], object]], work: roofline.Work) -> Row:
        return make_row(operator, shape, "stock", "forward", time_calls(calls), work, identity)

    wanted = ((f"{one[0]} {one[1]}", functools.partial(row, *one)) for one in questions(device))
    yield from measured(wanted, deadline)


def _steps(task: Task, device: torch.device, identity: dict, deadline: float) -> Iterator[Event]:
    """A preset's plain step with ever more samples, until they no longer fit: bf16 weights, fp32 masters."""
    step, full = preset_step(task.name), False

    def row(samples: int, shape: str) -> Row:
        nonlocal full
        if full:
            raise torch.OutOfMemoryError("fewer samples did not fit")
        try:
            return step_row(step, samples, shape, identity)
        except torch.OutOfMemoryError:
            full = True
            raise

    shapes = {one: f"{task.name}, {one} sample{'s' * (one > 1)}" for one in MICRO_BATCHES[task.name]}
    wanted = ((f"step {shape}", functools.partial(row, samples, shape)) for samples, shape in shapes.items())
    yield from measured(wanted, deadline)


def step_row(step: Any, samples: int, shape: str, identity: dict) -> Row:
    """A step of so many samples."""
    step.draw(samples)
    launches, host_ms = count_launches(step)
    timing = time_calls([step], capturable=False, calls_timed=STEPS)
    shares, limits = phase_shares(step), limits_of(identity["gpu"])
    about, seconds = step.about, timing.median * 1e-6
    work = roofline.Work(about["gflop"] * 1e9, 0.0)
    row = make_row("step", f"{shape}: {about['frames']} frames", "plain", "both", timing, work, identity)
    peak = "" if limits is None else f"{work.flops / seconds / limits.matrix:.0%} of the matrix peak, "
    note = (
        f"{samples / seconds:.2f} samples/s, {timing.peak_mb / about['frames']:.1f} MB a frame at the peak, {peak}"
        + ", ".join(f"{phase} {share:.0%}" for phase, share in shares.items())
        + f", {launches} launches issued in {host_ms:.1f} ms"
    )
    return dataclasses.replace(row, note=note)


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


_KINDS = {"check": _check, "time": _time, "block": _block, "questions": _questions, "steps": _steps}


def case_named(name: str) -> Case:
    return next(case for case in cases("large") if case.name == name)


# --- open questions and whole steps ----------------------------------------------------------------------------------


def questions(device: torch.device) -> Iterator[tuple[str, str, list[Callable[[], object]], roofline.Work]]:
    """Rates that plans rest on: cuDNN's bare convolution, matrix products of few rows, copies, reads from L2."""

    def random(*shape):
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    weight = random(128, 128, 3, 3).to(memory_format=torch.channels_last)
    for frames in (32, 64, 128, 256):
        sets = [random(frames, 128, 64, 64).to(memory_format=torch.channels_last) for _ in range(4)]
        work = roofline.conv3x3(frames, 64, 128)["forward"]
        yield "cudnn conv3x3", f"{frames}x64x64x128", [lambda x=x: F.conv2d(x, weight, padding=1) for x in sets], work
    for rows, width in ((2048, 1024), (4096, 1024), (8192, 512), (16384, 512)):
        sets, right = [random(rows, width) for _ in range(16)], random(width, 3 * width)
        work = roofline.Work(6.0 * rows * width**2, 2.0 * (4 * rows * width + 3 * width**2))
        yield "gemm", f"{rows}x{width}x{3 * width}", [lambda x=x, right=right: x @ right for x in sets], work
    large = [torch.empty(1 << 29, device=device, dtype=torch.bfloat16) for _ in range(3)]
    yield (
        "copy",
        "1 GiB",
        [lambda: large[0].copy_(large[1]), lambda: large[1].copy_(large[2])],
        roofline.Work(0, 2.0**31),
    )
    resident = torch.ones(8 << 20, device=device, dtype=torch.bfloat16)
    yield "read from L2", "16 MiB", [resident.sum], roofline.Work(0, 2.0**24)


def preset_step(preset: str) -> Any:
    """A preset's plain step with bf16 weights."""
    from aef.config import PRESETS as SETTINGS
    from benchmarks.step import PlainStep

    config = SETTINGS[preset]
    model = dataclasses.replace(config.model, compute_dtype="bfloat16")
    train = dataclasses.replace(config.train, micro_batch=1)
    return PlainStep(dataclasses.replace(config, model=model, train=train), "cuda", torch.bfloat16)


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


# --- the process -----------------------------------------------------------------------------------------------------


def main() -> int:
    """Perform the tasks of standard input, one a line, until a task breaks the process or there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not mix with the answers
    device = torch.device("cuda", torch.cuda.current_device())
    torch._functorch.config.donated_buffer = False  # a compiled backward is repeated on one graph
    torch.backends.cudnn.benchmark = True
    identity = identity_of(device, sys.argv[1])
    for line in sys.stdin:
        for event in perform(Task(**json.loads(line)), device, identity):
            print(json.dumps(event), file=answers, flush=True)
        if not event["done"]:
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
