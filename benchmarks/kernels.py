"""Single operators on any device: python -m benchmarks.kernels [--only NAME …] [--device cpu] [--dtype float32]

Each case is an operator at the shapes of a preset; its contenders do the same work from the same arguments, layout copies
and bookkeeping included: ours, what PyTorch offers, and the naive reference. On a CPU the contenders take turns in a drawn order, the
figure is process CPU time in one thread, and a run in which a calibration product swings by more than 15 % is to be
discarded: exit status 1. --check compares ours with the references instead, in bf16 unless --dtype says otherwise, by the
rules of `benchmarks.gpu`; with --dtype float32 under TRITON_INTERPRET=1 the kernels too. The same cases serve `python -m benchmarks.gpu` and
`pytest benchmarks/test_kernels.py`.
"""

import argparse
import random
import statistics
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from aef.config import PRESETS
from aef.kernels.dispatch import requested
from benchmarks import block, decoding
from benchmarks.cases import cases, operators
from benchmarks.cases.case import Arguments, Case, Contender, as_outputs, cotangents_of, run
from benchmarks.gpu_tasks import verdict
from benchmarks.timing import UNAVAILABLE, Rung, check, rungs_of

LARGEST_SWING = 0.15


def time_on_cpu(case: Case, dtype: torch.dtype, repeats: int) -> dict[tuple[str, str], float]:
    """Median CPU seconds of each contender that runs, by turns: {(contender, "forward" | "both"): s}."""
    arguments = case.make(torch.device("cpu"), dtype)
    cotangents = cotangents_of(as_outputs(case.contenders["ours"](*arguments)))
    times: dict[tuple[str, str], list[float]] = {}
    plain = {name: one for name, one in case.contenders.items() if name not in case.only_compiled}
    usable = {name: one for name, one in plain.items() if runs(one, arguments, cotangents)}
    turns = [(name, mode) for name in usable for mode in ("forward", "both")]
    for number in range(repeats):
        # Whoever follows a backward pass pays for the memory that it gave back to the system: not always the same one.
        random.Random(number).shuffle(turns)
        for name, mode in turns:
            begin = time.process_time()
            run(usable[name], arguments, cotangents if mode == "both" else None)
            times.setdefault((name, mode), []).append(time.process_time() - begin)
    return {key: statistics.median(found) for key, found in times.items()}


def runs(contender: Contender, arguments: Arguments, cotangents: tuple[Tensor, ...] | None) -> bool:
    """Whether there is such a back end on this device."""
    try:
        run(contender, arguments, cotangents)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def check_on_cpu(only: Sequence[str] | None, dtype: torch.dtype) -> Iterator[tuple[str, str]]:
    """(what, verdict) of everything that `benchmarks.gpu` checks before it times it, at small shapes: ours as dispatch
    chooses and by each backend that runs here, kernels where Triton interprets (fp32); and the parts of the model."""
    device = torch.device("cpu")
    for case in (one for one in cases("small") if not only or one.operator in only):
        own = [rung for rung in rungs_of(case) if rung.name.startswith("ours")]
        for rung in (Rung("ours", case.contenders["ours"]), *own):
            found = verdict(*check(case, device, rung, dtype, repeats=1))
            if not found.startswith(UNAVAILABLE):
                yield f"{case.name} | {rung.name}", found
    if only or dtype != torch.bfloat16:
        return
    judged = [(part, block.check(part, device, side=8)) for part in block.MODULES]
    judged.append((decoding.PART, decoding.check(decoding.PART, device, config=PRESETS["small"])))
    for part, found in judged:
        yield from ((f"{part} | {name}", verdict(*said)) for name, *said in found if name == "ours")


def _calibrate() -> float:
    a = torch.randn(1024, 1024)
    times = []
    for _ in range(5):
        begin = time.process_time()
        a @ a
        times.append(time.process_time() - begin)
    return min(times)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"some of {', '.join(operators('small'))}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: runs benchmarks.gpu, in bf16")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="on a CPU (default: float32; of --check bfloat16)"
    )
    parser.add_argument("--repeats", type=int, help="on a CPU (default: 25)")
    parser.add_argument("--check", action="store_true", help="on a CPU: compare with the references instead of timing")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.only or ()) - set(operators("small")))
    if unknown:
        parser.error(f"--only: unknown operator {', '.join(unknown)}: expected some of {', '.join(operators('small'))}")
    if options.repeats is not None and options.repeats < 1:
        parser.error(f"--repeats: expected at least 1, found {options.repeats}")
    try:
        requested()
    except ValueError as error:
        parser.error(str(error))
    if options.device == "cuda":
        if options.dtype or options.repeats or options.check:
            parser.error(
                "--device cuda: benchmarks.gpu checks and times bf16 as often as it takes; leave out --dtype, --repeats, --check"
            )
        from benchmarks import gpu

        return gpu.main(["--only", *options.only] if options.only else [])
    torch.set_num_threads(1)
    if options.check:
        verdicts = []
        for what, said in check_on_cpu(options.only, getattr(torch, options.dtype or "bfloat16")):
            print(f"{what}: {said}", flush=True)
            verdicts.append(said)
        return int(any(said.startswith("FAILED") for said in verdicts))
    before = _calibrate()
    print(f"{'case':58s} {'contender':20s} {'forward ms':>11s} {'both ms':>9s}")
    for case in cases("small"):
        if options.only and case.operator not in options.only:
            continue
        times = time_on_cpu(case, getattr(torch, options.dtype or "float32"), options.repeats or 25)
        for name in dict.fromkeys(one for one, _ in times):
            print(f"{case.name:58s} {name:20s} {times[name, 'forward'] * 1e3:11.2f} {times[name, 'both'] * 1e3:9.2f}")
    swing = abs(_calibrate() / before - 1)
    print(
        f"one thread, process CPU time, torch {torch.__version__}; 1024³ product {before * 1e3:.1f} ms, swing {swing:.0%}"
    )
    if swing > LARGEST_SWING:
        print("the clock swung too far: discard this run")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
