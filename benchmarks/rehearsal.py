"""What would happen on a GPU, on one that is not there: python -m benchmarks.rehearsal [steps|gpu] [--write FILE]

`standin_gpu.py` says what its tensors are: shapes without data. Nothing is timed.

steps  Two training steps of each preset in bf16 for an H200, with every way of recomputation, by PyTorch's kernels
       (`AEF_KERNELS=torch`, "tuned eager") and by what the H200's table chooses. Where the host waits for the GPU within
       the second step, and the bytes of tensors alive: kept per frame between forward and backward, and at the peak.
       And where it waits within a step of two passes whose partners and texts meet ahead of them.
gpu    `python -m benchmarks.gpu` from end to end: every case, contender and mode, the blocks, the steps, and the files. Only
       the values are not compared, and what torch.compile would make is left out.

Exit status 1 where a step waits or a row would not run.
"""

import argparse
import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch

from aef.config import PRESETS, Config
from aef.data.batch import Batch
from aef.model.aef import Output
from benchmarks import gpu, gpu_tasks, standin_gpu, timing
from benchmarks import steps as step_rows
from benchmarks.block import kernels_from
from benchmarks.sheet import Sheet, identity_of
from benchmarks.step import PlainStep

BACKENDS = {"torch": "tuned eager", "auto": "ours"}
RECOMPUTED = ("none", "selective", "full")
PARTS = ("steps", "gpu")


@dataclass(frozen=True)
class Found:
    """A preset's step with one way of recomputation and one choice of kernels. Bytes; waits by line of the project."""

    preset: str
    checkpointing: str
    backend: str
    frames: int
    kept: int
    peak: int
    planned: int
    waits: dict[str, int]

    @property
    def kept_per_frame(self) -> float:
        return self.kept / self.frames


def steps(preset: str) -> Iterator[Found]:
    """Two steps each, of one micro-batch; memory and waits are the second's, when every table and moment exists."""
    for checkpointing in RECOMPUTED:
        model = dataclasses.replace(PRESETS[preset].model, compute_dtype="bfloat16", checkpointing=checkpointing)
        config = dataclasses.replace(PRESETS[preset], model=model)
        for backend in BACKENDS:
            with standin_gpu.standin_gpu() as device, kernels_from(backend), _without_initial_weights():
                step = PlainStep(config, "cuda", torch.bfloat16)  # as the engine holds them on a GPU
                step()
                kept, peak = _bytes(step, device)
                frames, waits = step.batch.total_frames, dict(device.waits)
                yield Found(preset, checkpointing, backend, frames, kept, peak, _planned(config), waits)


class _Passes:
    """The engine of an accumulated step around a plain one. What the host waits for before the first pass is no wait
    between two kernels."""

    micro_batches = (3, 2)
    device = torch.device("cuda", 0)

    def __init__(self, step: PlainStep, gpu: standin_gpu.StandInGpu) -> None:
        self.plain, self.gpu, self.begun = step, gpu, False

    def moved(self, batch: Batch) -> Batch:
        return batch.to(self.device, non_blocking=True)

    def __call__(self, batch: Batch) -> Output:
        if not self.begun:
            self.gpu.waits.clear()
        self.begun = True
        return self.plain.model(batch)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self, lr: float) -> float:
        self.plain.update()
        return 0.0


def waits_of_passes(preset: str) -> dict[str, int]:
    """Waits, by line of the project, within a step of five samples in two passes, two of them with a text."""
    from aef.data.random_batch import random_batch
    from aef.sources import BUILT_IN
    from aef.training.step import take_step

    whole = PRESETS[preset]
    config = dataclasses.replace(
        whole,
        model=dataclasses.replace(whole.model, compute_dtype="bfloat16", text_dim=8),
        objective=dataclasses.replace(whole.objective, partner_chips=0),
    )
    with standin_gpu.standin_gpu() as device, kernels_from("auto"), _without_initial_weights():
        plain = PlainStep(config, "cuda", torch.bfloat16)
        batches = [
            random_batch(config, BUILT_IN, plain.inputs, plain.targets, samples, first=first)
            for first, samples in ((0, 3), (3, 2))
        ]
        for _ in range(2):  # tables are made in the first
            take_step(_Passes(plain, device), plain.objective, batches, lr=0.0)  # type: ignore[arg-type]
        return dict(device.waits)


def _bytes(step: PlainStep, device: standin_gpu.StandInGpu) -> tuple[int, int]:
    """What a step keeps between forward and backward, and its peak."""
    before, alive = device.allocated, {}
    device.waits.clear()
    device.reset_peak()
    step(lambda phase: alive.update({phase: device.allocated - before}))
    return alive["objective"], device.peak - before


def _planned(config: Config) -> int:
    from aef.data.random_batch import sources_of
    from aef.sources import BUILT_IN
    from aef.training.planner import plan

    return round(plan(config, BUILT_IN, *sources_of(config, BUILT_IN), ranks=1, on_gpu=True).activations)


@contextlib.contextmanager
def _without_initial_weights() -> Iterator[None]:
    """Weights are drawn on the host, for nothing here."""
    with mock.patch.object(torch.nn.init, "trunc_normal_", lambda tensor, **settings: tensor):
        yield


def report(found: list[Found]) -> str:
    """Markdown: memory by preset and way, ours beside tuned eager."""
    lines = [
        "# Memory of a training step, counted without a GPU",
        "",
        f"PyTorch {torch.__version__}, bf16, kernels as an H200's table chooses them, by `python -m benchmarks.rehearsal "
        "steps`. Bytes of tensors alive, as the program makes and drops them, one micro-batch; what an operator allocates "
        "inside itself and an allocator's rounding are not in it. Kept: between forward and backward, per frame (teacher "
        "and student), by encoder, summaries, decoders and losses together; planned: what `aef throughput --dry-run` "
        "expects of ours. Peak: above weights and moments.",
        "",
        "| preset | recomputed | frames | kept a frame, tuned eager | ours | of tuned eager, none | of the same | planned | peak, tuned eager | ours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    by = {(one.preset, one.checkpointing, one.backend): one for one in found}
    for preset in dict.fromkeys(one.preset for one in found):
        whole = by[preset, "none", "torch"].kept_per_frame
        for way in RECOMPUTED:
            eager, ours = by[preset, way, "torch"], by[preset, way, "auto"]
            lines.append(
                f"| {preset} | {way} | {ours.frames} | {_megabytes(eager.kept_per_frame)} | "
                f"{_megabytes(ours.kept_per_frame)} | {ours.kept_per_frame / whole:.0%} | "
                f"{ours.kept / eager.kept:.0%} | {_megabytes(ours.planned / ours.frames)} | {eager.peak / 1e9:.2f} GB | "
                f"{ours.peak / 1e9:.2f} GB |"
            )
    return "\n".join(lines) + "\n"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def rehearse_gpu(only: list[str] | None) -> tuple[int, list[str]]:
    """Run `benchmarks.gpu` without values, times and compilers: how many rows there were, and what would not run."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(standin_gpu.standin_gpu())
        stack.enter_context(_without_initial_weights())
        stack.enter_context(mock.patch.object(timing, "CALLS", 1))
        stack.enter_context(mock.patch.object(timing, "REPEATS", 1))
        stack.enter_context(mock.patch.object(timing, "MOST_SETS", 2))
        stack.enter_context(mock.patch.object(step_rows, "STEPS", 1))
        stack.enter_context(mock.patch.dict(gpu.MOST_S, dict.fromkeys(gpu.MOST_S, float("inf"))))
        stack.enter_context(mock.patch.object(timing, "_error", lambda found, wanted: 0.0))
        stack.enter_context(mock.patch.object(torch, "equal", lambda one, other: one.shape == other.shape))
        stack.enter_context(mock.patch.object(step_rows, "count_launches", lambda call: (call(), (0, 0.0))[1]))
        sheet = Sheet(Path(stack.enter_context(tempfile.TemporaryDirectory())), "rehearsal")
        device = torch.device("cuda", 0)
        identity = identity_of(device, "rehearsal")

        def perform(task: gpu_tasks.Task) -> Iterator[gpu_tasks.Event]:
            timing.failed_captures.clear()  # as in a process of its own
            return iter(()) if task.compiled else gpu_tasks.perform(task, device, identity)

        gpu.run(sheet, perform, only, float("inf"))
        failed = sheet.text_path.read_text(encoding="utf-8").split("## Not run")[1].strip().splitlines()
    return len(sheet.rows), [line for line in failed if "every row was run" not in line]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("both", *PARTS), default="both", help="default: both")
    parser.add_argument("--preset", nargs="+", default=list(PRESETS), choices=list(PRESETS), help="of `steps`")
    parser.add_argument("--only", nargs="+", help="of `gpu`: as its own --only")
    parser.add_argument("--write", type=Path, help="Markdown file for the memory of `steps`")
    arguments = sys.argv[1:] if argv is None else argv
    options = parser.parse_args(arguments)
    parts = PARTS if options.what == "both" else (options.what,)
    problem = standin_gpu.problem()
    if problem:
        print(f"no rehearsal: {problem}")
        return 0
    if not standin_gpu.loaded():
        return standin_gpu.restart("benchmarks.rehearsal", arguments)
    os.environ.pop("LD_PRELOAD")  # for this process only, not for its own
    failed = False
    if "steps" in parts:
        found = []
        for preset in options.preset:
            for one in steps(preset):
                found.append(one)
                failed |= bool(one.waits)
                print(
                    f"{preset}, recomputing {one.checkpointing}, {BACKENDS[one.backend]}: "
                    f"{_megabytes(one.kept_per_frame)} a frame, peak {one.peak / 1e9:.2f} GB, "
                    f"waits {one.waits or 'nowhere'}",
                    flush=True,
                )
            waits = waits_of_passes(preset)
            failed |= bool(waits)
            print(f"{preset}, two passes of a step: waits {waits or 'nowhere'}", flush=True)
        if options.write:
            options.write.write_text(report(found), encoding="utf-8")
    if "gpu" in parts:
        rows, unrun = rehearse_gpu(options.only)
        failed |= bool(unrun)
        print(f"benchmarks.gpu: {rows} rows would run", *unrun, sep="\n")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
