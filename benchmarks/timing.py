"""Is a case right, and how long does it take: what `python -m benchmarks.gpu` asks of every contender.

Correctness at full shapes, and in fp32 at cheap ones: an output's error against a run in fp32 (fp64 where the case is
in fp32) is at most twice, a gradient's at most three times that of the naive reference in the case's type; 20 repeats
are bit equal where our kernels compute, and where a library does it is said whether they are. Timing: inputs rotate
over sets that together exceed four times the L2 cache; median and 20/80 % quantiles of single calls, and beside it the
mean of a CUDA graph of one call per set, which hides launches.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.cases.case import Arguments, Case, Contender, as_outputs, cotangents_of, leaves, run

OUTPUT_FACTOR, GRADIENT_FACTOR, FLOOR, REPEATS = 2.0, 3.0, 1e-5, 20
CALLS, FEWEST_CALLS, ENOUGH_MS = 60, 8, 250.0
"""Calls that are timed: the fewer, the longer one takes."""
WARM_S = 0.03
"""Of calls before the first that counts: an idle GPU's clock is a sixth of what it is under load."""
L2_MULTIPLE, MOST_SETS = 4, 64
UNAVAILABLE = "not available: "
MODES = ("forward", "backward", "both")


@dataclass(frozen=True)
class Rung:
    """A contender as it is run: by which backend of dispatch ("": none, or what dispatch chooses), whether a CUDA graph
    may be captured of it, and whether a compiler has to make it first."""

    name: str
    call: Contender
    backend: str = ""
    capturable: bool = True
    compiled: bool = False


def rungs_of(case: Case) -> Iterator[Rung]:
    """The rungs of a case: ours by every backend first, then stock ones, then what a user's compiler makes of those."""
    decision = case.decision
    for backend in decision.backends:
        yield Rung(f"ours, {backend}", case.contenders["ours"], backend)
    for name, contender in case.contenders.items():
        if name != "ours" and name not in case.only_compiled:
            yield Rung(name, contender, decision.stock.get(name, ""), name != "reference")
    for label, settings in (("compiled", {}), ("max-autotune", {"mode": "max-autotune-no-cudagraphs"})):
        for name in case.compiled:
            torch.compiler.reset()  # cases share the code of a contender, and there is a limit to its recompilations
            whole = name not in case.only_compiled  # FlexAttention makes its mask outside of the graph
            made = torch.compile(case.contenders[name], dynamic=False, fullgraph=whole, **settings)
            yield Rung(f"{label} {name}", made, "", True, True)


# --- correctness -----------------------------------------------------------------------------------------------------


def check(
    case: Case, device: torch.device, rung: Rung, dtype: torch.dtype = torch.bfloat16, repeats: int = REPEATS
) -> tuple[str | None, str]:
    """Why the rung must not be timed, or None; and a remark. fp32 is fp32, without TF32, for every rung."""
    torch.manual_seed(0)
    arguments = case.make(device, dtype)
    reference = case.contenders["reference"]
    with exact_products():
        wide = tuple(_widen(one) for one in arguments)
        exact = as_outputs(reference(*wide))
        cotangents = cotangents_of(exact)
        wanted = (*exact, *torch.autograd.grad(exact, leaves(wide), cotangents))
    with exact_products() if dtype == torch.float32 else contextlib.nullcontext():
        plain = results(reference, arguments, cotangents)
        with case.by(rung.backend):
            found = results(rung.call, arguments, cotangents)
            chosen = case.table_choice(rung.backend) if rung.backend else None
            if chosen and chosen.backend != rung.backend:
                return UNAVAILABLE + chosen.reason, ""
            wrong, margin = compare(wanted, plain, found, len(exact))
            if wrong:
                return wrong, ""
            wrong, remark = _repeats(rung, arguments, cotangents, found, repeats)
            return wrong, "; ".join(filter(None, (margin, remark)))


def _repeats(
    rung: Rung, arguments: Arguments, cotangents: tuple[Tensor, ...], found: tuple[Tensor, ...], count: int
) -> tuple[str | None, str]:
    """Whether repeats give what was found to the bit: a fault of our kernels, a remark on a library."""
    repeats = (results(rung.call, arguments, cotangents) for _ in range(count))
    if all(torch.equal(one, other) for again in repeats for one, other in zip(again, found)):
        return None, ""
    said = f"{count} repeats are not bit equal"
    return (said, "") if rung.backend == "triton" else (None, f"{said}, by a library")


def compare(
    wanted: Sequence[Tensor], plain: Sequence[Tensor], found: Sequence[Tensor], outputs: int
) -> tuple[str | None, str]:
    """Whether `found`, first `outputs` outputs and then gradients, is further from `wanted` than a multiple of `plain`;
    or else a remark on how much of its bound the worst of them takes."""
    worst, where = 0.0, "nothing"
    for index, (truth, eager, fast) in enumerate(zip(wanted, plain, found, strict=True)):
        gradient = index - outputs
        name, factor = (f"output {index}", OUTPUT_FACTOR) if gradient < 0 else (f"gradient {gradient}", GRADIENT_FACTOR)
        allowed, error = factor * _error(eager, truth) + FLOOR, _error(fast, truth)
        if not error <= allowed:  # also where it is not a number
            return f"{name}: error {error:.2e} exceeds {allowed:.2e}, {factor:g} times plain PyTorch's in this type", ""
        if error >= worst * allowed:
            worst, where = error / allowed, name
    return None, f"{worst:.0%} of the bound ({where})"


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """fp32 convolutions and matrix products without TF32, whose error is that of bf16, and without a search for the
    fastest."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _widen(argument):
    if not isinstance(argument, Tensor) or not argument.is_floating_point():
        return argument
    wide = torch.float64 if argument.dtype == torch.float32 else torch.float32
    return argument.detach().to(wide).requires_grad_(argument.requires_grad)


def results(contender: Contender, arguments: Arguments, cotangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Outputs and gradients."""
    out = as_outputs(contender(*arguments))
    given = [one.to(other.dtype) for one, other in zip(cotangents, out)]
    return (*(one.detach() for one in out), *torch.autograd.grad(out, leaves(arguments), given))


def _error(found: Tensor, wanted: Tensor) -> float:
    difference = found.to(wanted.dtype) - wanted
    return (difference.norm() / wanted.norm().clamp(min=1e-30)).item()


# --- timing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Microseconds of single calls, of calls in a graph, and peak memory above the inputs."""

    median: float
    low: float
    high: float
    graph: float | None
    peak_mb: float


def time_calls(calls: list[Callable[[], object]], capturable: bool = True, calls_timed: int | None = None) -> Timing:
    """Time one call after another, each on another set of inputs; so many in all (default: by how long one takes)."""
    begun, turns = time.perf_counter(), itertools.cycle(calls)
    while True:
        for _ in calls[:3]:
            next(turns)()
        torch.cuda.synchronize()
        if time.perf_counter() - begun > WARM_S:
            break
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    count = calls_timed or _calls_worth(_times(calls, 3))
    times = sorted(_times(calls, count))
    peak = (torch.cuda.max_memory_allocated() - before) / 1e6
    low, median, high = (times[int(share * (len(times) - 1))] for share in (0.2, 0.5, 0.8))
    return Timing(median, low, high, _time_graph(calls) if capturable else None, peak)


def _times(calls: list[Callable[[], object]], count: int) -> list[float]:
    """Microseconds of `count` calls."""
    pairs = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(count)]
    for (begin, end), call in zip(pairs, itertools.cycle(calls)):
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) * 1e3 for begin, end in pairs]


def _calls_worth(first: list[float]) -> int:
    median = sorted(first)[len(first) // 2]
    return CALLS if not median > 0 else min(CALLS, max(FEWEST_CALLS, int(ENOUGH_MS * 1e3 / median)))


failed_captures: list[str] = []
"""What went wrong in captures of this process. One that fails leaves PyTorch's random numbers and its allocator in the
middle of it: the process must end."""


def _time_graph(calls: list[Callable[[], object]]) -> float | None:
    """Mean µs per call of a CUDA graph of all calls; None where it cannot be captured (`failed_captures`).

    Captured on the current stream, which must be the one on which forward passes ran: autograd runs backward passes
    there too, and the default stream, where both would run otherwise, cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    for call in calls:
        call()
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            for call in calls:
                call()
    except RuntimeError as error:
        failed_captures.append(str(error).splitlines()[0][:140])
        return None
    times = sorted(_times([graph.replay], 1 + _calls_worth(_times([graph.replay], 3)) // 4))
    return times[len(times) // 2] / len(calls)


def sets_beyond_cache(make: Callable[[], Arguments], device: torch.device) -> list[Arguments]:
    """Enough sets of inputs that one after another they miss the L2 cache."""
    first = make()
    size = sum(one.numel() * one.element_size() for one in first if isinstance(one, Tensor))
    cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 50_000_000)
    count = min(MOST_SETS, max(2, -(-L2_MULTIPLE * cache // max(size, 1)) + 1))
    return [first, *(make() for _ in range(count - 1))]


def input_sets(case: Case, device: torch.device) -> list[Arguments]:
    """Sets of a case's inputs that exceed the cache together."""
    return sets_beyond_cache(lambda: case.make(device, torch.bfloat16), device)


def calls_of(case: Case, rung: Rung, sets: list[Arguments], mode: str) -> list[Callable[[], object]]:
    """One call per set of inputs, in one of MODES; every set has gradients of the outputs of its own."""
    with case.by(rung.backend):
        like = as_outputs(rung.call(*sets[0]))
        given = [cotangents_of(like) if mode != "forward" else None for _ in sets]
        if mode == "backward":
            outs = [as_outputs(rung.call(*one)) for one in sets]
            return [_by(case, rung, _backward, o, leaves(x), g) for o, x, g in zip(outs, sets, given)]
    return [_by(case, rung, run, rung.call, one, g) for one, g in zip(sets, given)]


def _by(case: Case, rung: Rung, function: Callable, *arguments) -> Callable[[], object]:
    def call() -> object:
        with case.by(rung.backend):  # backward asks for the backend as well
            return function(*arguments)

    return call


def _backward(outputs: tuple[Tensor, ...], inputs: list[Tensor], cotangents: tuple[Tensor, ...]) -> object:
    return torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True)
