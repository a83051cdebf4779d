"""CPU cost of a training step, one thread: python -m benchmarks.step [--preset NAME …] [--case public-small --public SRC]

For each preset a bare step (forward, objective, backward, torch's Adam) and the same step through the engine: frames/s
of process CPU time, peak memory, parameters and operations. Each contender is a process of its own; they take turns, so
that a clock that swings hits all of them, and a matrix product before and after says whether it swung too far.

Case public-small: the widths of github.com/Brayden-Zhang/alphaearth-foundations (64/256/512, 6 blocks, 16 frames of 64
px, one source, teacher and student), side by side with that implementation's own step where --public names its `src`
folder: in fp32, as its training runs, and for our bf16 also under torch's bf16 autocast, which it does not use by
itself.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from aef.config import Config

RESULTS = Path(__file__).parent / "results"
LARGEST_SWING = 0.15
CALIBRATION = 1024
# What fits a CPU benchmark; frames/s are of these crops and budgets, not of the whole preset.
REDUCED = {"base": ("data.chip_px=64", "data.frame_budget=0.1"), "large": ("data.chip_px=32", "data.frame_budget=0.05")}
PUBLIC_SMALL = (
    "model.blocks=6",
    "model.precision_width=64",
    "model.time_width=256",
    "model.space_width=512",
    "model.head_width=64",
    "model.summary_heads=8",
    "model.summary_width=64",
    "model.decoder_width=256",
    "model.inputs=[sentinel2]",
    "model.targets=[sentinel2]",
    "model.period_bias=false",
    "data.chip_px=64",
    f"data.frame_budget={16 / 65}",
    "data.targets_per_source=1",
    "train.global_batch=1",
    "train.micro_batch=1",
)


# --- contenders: each runs in a process of its own -------------------------------------------------------------------


class PlainStep:
    """Forward, objective, backward and Adam of a preset without an engine, on random values: call it for one step.

    Weights of another type than fp32 have fp32 masters, as in an engine. `about` says what a step works on.
    """

    def __init__(self, config: Config, device: str = "cpu", weights: torch.dtype | None = None) -> None:
        import torch

        from aef.data.random_batch import sources_of
        from aef.data.statistics import Statistics
        from aef.model.aef import AEF
        from aef.objective.objective import Objective
        from aef.sources import BUILT_IN

        self.config, self.device = config, device
        self.inputs, self.targets = sources_of(config, BUILT_IN)
        found = Statistics.identity(BUILT_IN, dict.fromkeys((*self.inputs, *self.targets)))
        torch.manual_seed(0)
        model = AEF(config.model, BUILT_IN, found, inputs=self.inputs, targets=self.targets)
        self.model = model.to(weights).to(device)
        self.objective = Objective(config.objective, BUILT_IN, found, self.targets, data=config.data)
        self.parameters = list(self.model.parameters())
        wide = weights in (None, torch.float32)
        self.masters = self.parameters if wide else [one.detach().float().requires_grad_() for one in self.parameters]
        self.adam = torch.optim.Adam(self.masters, lr=1e-6, fused=True)
        self.draw(config.train.micro_batch)

    def draw(self, samples: int) -> None:
        """Go on with a batch of so many samples."""
        from aef.data.random_batch import random_batch
        from aef.sources import BUILT_IN

        batch = random_batch(self.config, BUILT_IN, self.inputs, self.targets, samples)
        self.batch, self.about = batch.to(self.device), _describe(self.config, batch, self.model)

    def __call__(self, mark: Callable[[str], None] = lambda phase: None) -> None:
        """One step; `mark` is called at the end of each phase."""
        coupling = self.objective.couple(self.batch)
        output = self.model(self.batch)
        mark("forward")
        total = self.objective(output, self.batch, coupling=coupling).total
        del output
        mark("objective")
        total.backward()
        mark("backward")
        self.update()
        mark("optimizer")

    def update(self) -> None:
        """Adam on the masters, and the weights after them."""
        import torch

        if self.masters is not self.parameters:
            for master, parameter in zip(self.masters, self.parameters, strict=True):
                assert parameter.grad is not None
                master.grad = parameter.grad.float()
        self.adam.step()
        if self.masters is not self.parameters:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, self.masters)
        for one in (*self.masters, *self.parameters):
            one.grad = None


def bare_step(config: Config) -> tuple[Callable[[], None], dict[str, Any]]:
    """A plain step on a CPU; like an engine, it keeps the memory that a step freed."""
    from aef.training.devices import keep_freed_memory

    keep_freed_memory()
    step = PlainStep(config)
    return step, step.about


def engine_step(config) -> tuple[Callable[[], None], dict]:
    """The same step through DeepSpeed and `aef.training`."""
    from aef.training.bench import StepBench

    with tempfile.TemporaryDirectory() as scratch:
        bench = StepBench(config, None, Path(scratch))
    bench.step()
    return bench.step, _describe(config, bench.batches[0], bench.engine.model)


def public_step(source: str, bf16: bool) -> tuple[Callable[[], None], dict]:
    """One step of the public implementation, as its own training loop takes it; `bf16` puts it under torch's autocast."""
    import torch

    sys.path.insert(0, source)
    from alphaearth.architecture.aef_module import AlphaEarthFoundations
    from alphaearth.loss_function import AEFLoss

    torch.manual_seed(0)
    model, loss_of = AlphaEarthFoundations(), AEFLoss()
    adam = torch.optim.Adam(model.parameters(), lr=1e-6)
    frames = torch.rand(1, 16, 64, 64, 5)
    times = torch.linspace(0, 3.1e10, 16)[None]
    periods = [(0.0, 3.1e10)]

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = model({"sentinel2": frames}, {"sentinel2": times}, periods)
            predicted = {name: found[:, 0] for name, found in out["reconstructions"].items()}
            loss = loss_of(
                {
                    **{key: out[key] for key in ("embeddings", "teacher_embeddings", "student_embeddings")},
                    "image_embeddings": out["image_embeddings"],
                    "predictions": predicted,
                    "targets": {"sentinel2": frames[:, 8]},
                    "masks": {name: torch.ones_like(found[..., :1]) for name, found in predicted.items()},
                }
            )["total"]
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()

    return step, {"frames": 16, "parameters": sum(p.numel() for p in model.parameters())}


def _describe(config, batch, model) -> dict:
    from aef.model.cost import Work, step_flops
    from aef.sources import BUILT_IN

    lengths = batch.cu_frames.diff().tolist()
    return {
        "frames": batch.total_frames,
        "teacher_frames": sum(lengths[: 2 * batch.samples : 2]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "gflop": step_flops(config.model, BUILT_IN, Work.of(batch)) / 1e9,
        "side_px": batch.side_px,
    }


def work(contender: str, preset: str, settings: list[str], public: str | None) -> None:
    """A contender's process: a step for each line on standard input, its CPU time on standard output."""
    import torch

    from aef.settings_file import load_config
    from aef.training.devices import peak_memory_gb

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not mix with the answers
    config = load_config(preset, settings)
    started = peak_memory_gb(torch.device("cpu"))
    if contender == "public":
        step, about = public_step(public or "", config.model.compute_dtype == "bfloat16")
    else:
        step, about = {"bare": bare_step, "engine": engine_step}[contender](config)
    step()
    print(json.dumps(about), file=answers, flush=True)
    for _ in sys.stdin:
        before = time.process_time()
        step()
        spent = time.process_time() - before
        peak = peak_memory_gb(torch.device("cpu"))
        print(json.dumps({"cpu_s": spent, "peak_gb": peak, "own_gb": peak - started}), file=answers, flush=True)


# --- the contest -----------------------------------------------------------------------------------------------------


def calibrate() -> float:
    """GFLOP/s of an fp32 matrix product on one thread, process CPU time, best of three."""
    import torch

    torch.set_num_threads(1)
    a = torch.rand(CALIBRATION, CALIBRATION)
    spent = []
    for _ in range(3):
        before = time.process_time()
        for _ in range(4):
            a @ a
        spent.append(time.process_time() - before)
    return 8 * CALIBRATION**3 / min(spent) / 1e9


def contest(contenders: dict[str, list[str]], rounds: int) -> dict[str, dict]:
    """Run contenders turn by turn. Returns each one's description and medians."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    processes = {}
    results: dict[str, dict] = {}
    try:
        for name, arguments in contenders.items():
            command = [sys.executable, "-m", "benchmarks.step", "--worker", *arguments]
            processes[name] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=RESULTS.parents[1]
            )
            results[name] = {**_read(processes[name], name), "runs": []}
        for _ in range(rounds):
            for name, process in processes.items():
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
                results[name]["runs"].append(_read(process, name))
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    for found in results.values():
        runs = found.pop("runs")
        found["cpu_s"] = statistics.median(run["cpu_s"] for run in runs)
        found["peak_gb"] = max(run["peak_gb"] for run in runs)
        found["own_gb"] = max(run["own_gb"] for run in runs)
    return results


def _read(process: subprocess.Popen, name: str) -> dict:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"benchmarks.step: error: the process of {name!r} ended; its own message is above")
    return json.loads(line)


def measure(title: str, contenders: dict[str, list[str]], rounds: int) -> dict:
    before = calibrate()
    results = contest(contenders, rounds)
    after = calibrate()
    swing = abs(after / before - 1)
    unit = 2 * CALIBRATION**3 / before / 1e9
    print(f"{title}: calibration {before:.1f} → {after:.1f} GFLOP/s, one thread, process CPU time")
    for name, found in results.items():
        frames = found.get("teacher_frames", found["frames"])
        print(
            f"  {name}: {found['cpu_s']:.3f} s a step, {found['frames'] / found['cpu_s']:.2f} frames/s "
            f"({frames} teacher frames: {frames / found['cpu_s']:.2f}/s), {found['parameters'] / 1e6:.2f} M parameters"
            + (f", {found['gflop']:.1f} GFLOP" if "gflop" in found else "")
            + f", peak {found['peak_gb']:.2f} GB ({found['own_gb']:.2f} after start-up), "
            f"{found['cpu_s'] / unit:.0f} calibration products"
        )
    discarded = swing > LARGEST_SWING
    if discarded:
        print(f"  DISCARDED: the calibrations differ by {swing:.0%}; run it again on a quieter machine")
    return {"title": title, "calibration": [before, after], "discarded": discarded, "results": results}


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--preset", nargs="*", default=["tiny", "small", "base", "large"], help="presets to measure")
    p.add_argument("--case", choices=("presets", "public-small"), default="presets")
    p.add_argument("--public", metavar="SRC", help="`src` folder of a checkout of the public implementation")
    p.add_argument("--public-commit", default="", help="its commit, for the record")
    p.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"], help="for public-small")
    p.add_argument("--rounds", type=int, default=5, help="steps of each contender")
    p.add_argument("--out", type=Path, help="JSON file for the results")
    p.add_argument("--worker", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = p.parse_args(argv)
    if options.worker:
        contender, preset, public, *settings = options.worker
        work(contender, preset, settings, None if public == "-" else public)
        return 0
    reports = _public_small(options) if options.case == "public-small" else _presets(options)
    if options.out:
        about = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
        options.out.write_text(json.dumps({**about, "reports": reports}, indent=1))
    return int(any(report["discarded"] for report in reports))


@cache
def own_contenders() -> tuple[str, ...]:
    """What of ours can be measured here; a bare checkout has no engine, which is said once."""
    if importlib.util.find_spec("deepspeed") is not None:
        return "bare", "engine"
    print("deepspeed is not installed: the bare step only")
    return ("bare",)


def _presets(options: argparse.Namespace) -> list[dict]:
    reports = []
    for preset in options.preset:
        settings = list(REDUCED.get(preset, ()))
        settings += ["model.compute_dtype=float32"]
        settings += ["train.global_batch=1", "train.micro_batch=1"] if preset in REDUCED else []
        names = own_contenders() if preset != "large" else ("bare",)
        title = f"{preset}, fp32" + (f" ({', '.join(settings)})" if preset in REDUCED else "")
        reports.append(measure(title, {name: [name, preset, "-", *settings] for name in names}, options.rounds))
    return reports


def _public_small(options: argparse.Namespace) -> list[dict]:
    reports = []
    for dtype in options.dtype:
        settings = [*PUBLIC_SMALL, f"model.compute_dtype={dtype}"]
        contenders = {name: [name, "small", "-", *settings] for name in own_contenders()}
        if options.public:  # settings: the last one given for a name holds
            public = ["public", "small", options.public, *settings]
            contenders["public"] = [*public, "model.compute_dtype=float32"]
            if dtype == "bfloat16":
                contenders["public under autocast"] = public
        title = f"public-small, {dtype}"
        report = measure(f"{title}, public commit {options.public_commit or 'not named'}", contenders, options.rounds)
        results = report["results"]
        ours = results["bare"]
        report["ratios"] = {}
        for name in (name for name in results if name.startswith("public")):
            theirs = results[name]
            ratio = (ours["teacher_frames"] / ours["cpu_s"]) / (theirs["frames"] / theirs["cpu_s"])
            print(f"  ratio of frames/s, bare to {name}: {ratio:.2f}")
            report["ratios"][name] = ratio
        if not options.public:
            print("  ratio UNMEASURED: --public names no checkout")
        reports.append(report)
    return reports


if __name__ == "__main__":
    raise SystemExit(main())
