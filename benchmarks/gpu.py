"""Kernels on a GPU: python -m benchmarks.gpu [--only NAMES] [--budget-s S] [--out DIR] [--commit SHA]

Runs from a bare checkout with torch, Triton and NumPy. Correctness first (`benchmarks/timing.py` says how): an operator
that fails is not timed. Then timings, the most valuable rows first: each row is written as it is measured, rows that the
budget left out are listed. Results: DIR/DATE-COMMIT.csv and .md, by default in benchmarks/results/GPU. Without a GPU it says
so, writes nothing, and exits 0.
"""

import argparse
import csv
import dataclasses
import datetime
import gc
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F

from aef.kernels import tuning
from benchmarks import roofline
from benchmarks.kernels import Case, cases, operators
from benchmarks.timing import MODES, Timing, calls_of, check, input_sets, ladder, time_calls

RESULTS = Path(__file__).parent / "results"
PRESETS = ("large", "base", "small", "tiny")


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


class Sheet:
    """The CSV and Markdown files of one run: every row is on disk as soon as it is known."""

    def __init__(self, folder: Path, commit: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{datetime.date.today()}-{commit[:10]}"
        self.csv_path, self.text_path = folder / f"{stem}.csv", folder / f"{stem}.md"
        self.rows: list[Row] = []
        with self.csv_path.open("w", newline="", encoding="utf-8") as file:
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
            lines += [f"{r.gpu}, torch {r.torch}, Triton {r.triton}, cuDNN {r.cudnn}, commit {r.commit}, {r.date}", ""]
        lines += [
            "## Correctness",
            "",
            *(f"- {name}: {verdict}" for name, verdict in verdicts.items()),
            "",
            "## Timings",
            "",
        ]
        lines += [
            "| operator | shape | contender | mode | µs (20–80 %) | graph µs | TFLOP/s | GB/s | share of floor | MB | note |"
        ]
        lines += ["| " + "--- | " * 11]
        for r in self.rows:
            graph = "–" if r.graph_us is None else f"{r.graph_us:.1f}"
            share = "–" if r.floor_share is None else f"{r.floor_share:.0%}"
            lines.append(
                f"| {r.operator} | {r.shape} | {r.contender} | {r.mode} | {r.median_us:.1f} ({r.q20_us:.1f}–{r.q80_us:.1f}) "
                f"| {graph} | {r.tflops:.1f} | {r.gbytes_s:.0f} | {share} | {r.peak_mb:.0f} | {r.note} |"
            )
        lines += ["", "## Not run", "", *(f"- {name}" for name in unrun or ["nothing: every row was run"])]
        self.text_path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def time_case(case: Case, device: torch.device, sheet: Sheet, identity: dict, deadline: float) -> list[str]:
    """Time all contenders of a case in all modes; what the deadline left out."""
    limits = _limits(identity["gpu"])
    sets, unrun = input_sets(case, device), []
    for name, contender, capturable in ladder(case):
        for mode in MODES:
            if time.monotonic() > deadline:
                unrun.append(f"{case.name} | {name} | {mode}: out of time")
                continue
            try:
                timing = time_calls(calls_of(contender, sets, mode), capturable)
            except (RuntimeError, NotImplementedError, ValueError) as error:
                unrun.append(f"{case.name} | {name} | {mode}: {str(error).splitlines()[0][:120]}")
                torch.cuda.empty_cache()
                continue
            sheet.add(make_row(case.operator, case.shape, name, mode, timing, case.work[mode], limits, identity))
    return unrun


def make_row(
    operator: str, shape: str, contender: str, mode: str, timing: Timing, work: roofline.Work, limits, identity: dict
) -> Row:
    """A row of the sheet, rates taken from the graph's time where there is one."""
    seconds = (timing.graph or timing.median) * 1e-6
    share = None if limits is None else work.floor_s(limits) / seconds
    return Row(
        *(operator, shape, contender, mode, "bfloat16"),
        *(timing.median, timing.low, timing.high, timing.graph),
        *(work.flops / seconds / 1e12, work.bytes / seconds / 1e9, share, timing.peak_mb),
        **identity,
    )


def _limits(gpu: str) -> roofline.Gpu | None:
    return next((limits for name, limits in roofline.GPUS.items() if name in tuning.slug(gpu)), None)


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


def preset_steps() -> Iterator[tuple[str, Callable[[], tuple[Callable[[], object], dict]]]]:
    """(preset, function that builds its plain step): forward, objective, backward and Adam of one micro-batch."""
    from aef.config import PRESETS as SETTINGS
    from benchmarks.step import bare_step

    for preset in PRESETS:
        model = dataclasses.replace(SETTINGS[preset].model, compute_dtype="bfloat16")
        config = dataclasses.replace(SETTINGS[preset], model=model)
        yield preset, lambda config=config: bare_step(config, "cuda")


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


# --- the run ---------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help=f"some of {', '.join(operators('large'))}, questions, block, steps"
    )
    parser.add_argument("--budget-s", type=float, default=1200.0, help="seconds after which no new row is begun")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results/GPU)")
    parser.add_argument("--commit", help="commit of the checkout, where git cannot tell")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("no GPU: nothing was measured and nothing is written")
        return 0
    import triton

    device, deadline = torch.device("cuda", torch.cuda.current_device()), time.monotonic() + options.budget_s
    torch._functorch.config.donated_buffer = False  # a compiled backward is repeated on one graph
    torch.backends.cudnn.benchmark = True
    identity = {
        "gpu": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cudnn": torch.backends.cudnn.version() or 0,
        "commit": options.commit or _commit(),
        "date": str(datetime.date.today()),
    }
    sheet = Sheet(options.out or RESULTS / tuning.slug(identity["gpu"]), identity["commit"])
    wanted = [one for one in cases("large") if options.only is None or one.operator in options.only]
    verdicts, unrun = check_all(wanted, device, deadline), []
    sheet.close(verdicts, ["the timings"])
    for case in sorted(wanted, key=lambda one: -one.value):
        if verdicts[case.name] != "passed":
            unrun.append(f"{case.name}: not timed, {verdicts[case.name]}")
            continue
        unrun += time_case(case, device, sheet, identity, deadline)
        sheet.close(verdicts, unrun)
        _clean()
    if options.only is None or "block" in options.only:
        unrun += _time_blocks(sheet, identity, deadline)
    if options.only is None or "questions" in options.only:
        unrun += _time_questions(device, sheet, identity, deadline)
    if options.only is None or "steps" in options.only:
        unrun += _time_steps(sheet, identity, deadline)
    sheet.close(verdicts, unrun)
    print(f"{len(sheet.rows)} rows in {sheet.csv_path} and {sheet.text_path}")
    return int(any(verdict.startswith("FAILED") for verdict in verdicts.values()))


def check_all(wanted: list[Case], device: torch.device, deadline: float) -> dict[str, str]:
    """ "passed", "FAILED: why" or "not checked" for each case."""
    verdicts = {}
    for case in wanted:
        if time.monotonic() > deadline:
            verdicts[case.name] = "not checked: out of time"
            continue
        try:
            failed = check(case, device)
        except Exception as error:  # a kernel that does not even run is a verdict, not the end of the run
            failed = f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"
        verdicts[case.name] = f"FAILED: {failed}" if failed else "passed"
        print(f"{case.name}: {verdicts[case.name]}", flush=True)
        _clean()
    return verdicts


def _time_questions(device: torch.device, sheet: Sheet, identity: dict, deadline: float) -> list[str]:
    unrun, limits = [], _limits(identity["gpu"])
    for operator, shape, calls, work in questions(device):
        if time.monotonic() > deadline:
            unrun.append(f"{operator} {shape}: out of time")
            continue
        sheet.add(make_row(operator, shape, "stock", "forward", time_calls(calls), work, limits, identity))
    return unrun


def _time_blocks(sheet: Sheet, identity: dict, deadline: float) -> list[str]:
    unrun, limits = [], _limits(identity["gpu"])
    try:
        from benchmarks.block import block_rungs

        for shape, name, call, work in block_rungs(torch.device("cuda"), torch.bfloat16):
            if time.monotonic() > deadline:
                unrun.append(f"block {shape} | {name}: out of time")
                continue
            try:
                timing = time_calls([call])
            except (RuntimeError, NotImplementedError) as error:
                unrun.append(f"block {shape} | {name}: {str(error).splitlines()[0][:120]}")
                _clean()
                continue
            sheet.add(make_row("block", shape, name, "both", timing, work, limits, identity))
            _clean()
    except (RuntimeError, ImportError) as error:
        unrun.append(f"block: {str(error).splitlines()[0][:120]}")
    return unrun


def _time_steps(sheet: Sheet, identity: dict, deadline: float) -> list[str]:
    unrun, limits = [], _limits(identity["gpu"])
    for preset, build in preset_steps():
        if time.monotonic() > deadline:
            unrun.append(f"step {preset}: out of time")
            continue
        try:
            step, about = build()
            launches, host_ms = count_launches(step)
            timing = time_calls([step], capturable=False)
        except (RuntimeError, ImportError) as error:
            unrun.append(f"step {preset}: {str(error).splitlines()[0][:120]}")
            _clean()
            continue
        shape = f"{preset}: {about['frames']} frames of {about['side_px']} px"
        work = roofline.Work(about["gflop"] * 1e9, 0.0)
        row = make_row("step", shape, "plain", "both", timing, work, limits, identity)
        note = f"{launches} launches, issued in {host_ms:.1f} ms, {about['parameters']} parameters"
        sheet.add(dataclasses.replace(row, note=note))
        del step
        _clean()
    return unrun


def _clean() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def _commit() -> str:
    try:
        folder = Path(__file__).parents[1]
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True)
        return found.stdout.strip()[:10] + ("-dirty" if dirty.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
