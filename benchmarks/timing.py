"""Is a case right, and how long does it take: what `python -m benchmarks.gpu` asks of every contender.

Correctness at full shapes in bf16: an output's error against fp32 is at most twice, a gradient's at most three times that of
the naive reference in bf16, and 20 repeats are bit equal. Timing: inputs rotate over sets that together exceed four times
the L2 cache; median and 20/80 % quantiles of single calls, and beside it the mean of a CUDA graph of one call per set,
which hides launches.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.kernels import Arguments, Case, Contender, as_outputs, cotangents_of, leaves, run

OUTPUT_FACTOR, GRADIENT_FACTOR, REPEATS = 2.0, 3.0, 20
CALLS = 60
L2_MULTIPLE = 4
MODES = ("forward", "backward", "both")


# --- correctness -----------------------------------------------------------------------------------------------------


def check(case: Case, device: torch.device) -> str | None:
    """Why the case's kernel must not be timed, or None."""
    torch.manual_seed(0)
    arguments = case.make(device, torch.bfloat16)
    wide = tuple(_widen(one) for one in arguments)
    ours, reference = case.contenders["ours"], case.contenders["reference"]
    exact = as_outputs(reference(*wide))
    cotangents = cotangents_of(exact)
    wanted = (*exact, *torch.autograd.grad(exact, leaves(wide), cotangents))
    plain, found = (_results(one, arguments, cotangents) for one in (reference, ours))
    for index, (truth, eager, fast) in enumerate(zip(wanted, plain, found)):
        gradient = index - len(exact)
        name, factor = (f"output {index}", OUTPUT_FACTOR) if gradient < 0 else (f"gradient {gradient}", GRADIENT_FACTOR)
        allowed, error = factor * _error(eager, truth) + 1e-6, _error(fast, truth)
        if not error <= allowed:  # also where it is not a number
            return f"{name}: error {error:.2e} exceeds {allowed:.2e}, {factor:g} times the reference's in bf16"
    for _ in range(REPEATS):
        again = _results(ours, arguments, cotangents)
        if not all(torch.equal(one, other) for one, other in zip(again, found)):
            return f"{REPEATS} repeats are not bit equal"
    return None


def _widen(argument):
    if not isinstance(argument, Tensor) or not argument.is_floating_point():
        return argument
    return argument.detach().float().requires_grad_(argument.requires_grad)


def _results(contender: Contender, arguments: Arguments, cotangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    out = as_outputs(contender(*arguments))
    given = [one.to(other.dtype) for one, other in zip(cotangents, out)]
    return (*(one.detach() for one in out), *torch.autograd.grad(out, leaves(arguments), given))


def _error(found: Tensor, wanted: Tensor) -> float:
    return ((found.float() - wanted.float()).norm() / wanted.float().norm().clamp(min=1e-30)).item()


# --- timing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Microseconds of single calls, of calls in a graph, and peak memory above the inputs."""

    median: float
    low: float
    high: float
    graph: float | None
    peak_mb: float


def time_calls(calls: list[Callable[[], object]], capturable: bool = True) -> Timing:
    """Time one call after another, each on another set of inputs."""
    for call in calls[:3] * 2:
        call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(CALLS)]
    for (begin, end), call in zip(pairs, itertools.cycle(calls)):
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    peak = (torch.cuda.max_memory_allocated() - before) / 1e6
    times = sorted(begin.elapsed_time(end) * 1e3 for begin, end in pairs)
    low, median, high = (times[int(share * (len(times) - 1))] for share in (0.2, 0.5, 0.8))
    return Timing(median, low, high, _time_graph(calls) if capturable else None, peak)


def _time_graph(calls: list[Callable[[], object]]) -> float | None:
    """Mean µs per call of a CUDA graph of all calls; None where it cannot be captured."""
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    try:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls:
                call()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    times = []
    for _ in range(12):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return sorted(times)[len(times) // 2]


def input_sets(case: Case, device: torch.device) -> list[Arguments]:
    """Enough sets of inputs that one after another they miss the L2 cache."""
    first = case.make(device, torch.bfloat16)
    size = sum(one.numel() * one.element_size() for one in first if isinstance(one, Tensor))
    cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 50_000_000)
    count = min(16, max(2, -(-L2_MULTIPLE * cache // max(size, 1)) + 1))
    return [first, *(case.make(device, torch.bfloat16) for _ in range(count - 1))]


def calls_of(contender: Contender, sets: list[Arguments], mode: str) -> list[Callable[[], object]]:
    """One call per set of inputs, in one of MODES."""
    cotangents = cotangents_of(as_outputs(contender(*sets[0])))
    if mode == "backward":
        outs = [(as_outputs(contender(*one)), leaves(one)) for one in sets]
        return [lambda o=o, x=x: torch.autograd.grad(o, x, cotangents, retain_graph=True) for o, x in outs]
    given = cotangents if mode == "both" else None
    return [lambda one=one: run(contender, one, given) for one in sets]


def ladder(case: Case) -> Iterator[tuple[str, Contender, bool, bool]]:
    """(name, contender, whether a graph may be captured, whether a compiler makes it first): the plain ones, and those that
    a user's compiler would give."""
    for name, contender in case.contenders.items():
        if name == "flex compiled":
            yield name, torch.compile(contender, dynamic=False), True, True
        else:
            yield name, contender, name != "reference", False
    eager = next(
        (one for one in ("eager matmul", "eager", "matmul chain", "sdpa padded") if one in case.contenders), None
    )
    if eager:
        yield f"compiled {eager}", torch.compile(case.contenders[eager], dynamic=False, fullgraph=True), True, True
        tuned = torch.compile(case.contenders[eager], dynamic=False, mode="max-autotune-no-cudagraphs")
        yield f"max-autotune {eager}", tuned, True, True
