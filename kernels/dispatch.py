"""Which backend runs an operator, and why not the others.

`AEF_KERNELS` asks for one: `auto` (default: the GPU's table, PyTorch on a CPU), `triton`, `torch`, or `flash`
(flash-attn or PyTorch's `varlen_attn`; attention only). What cannot run falls back to PyTorch; each choice and its
reason are logged once. Checkpoints never depend on the choice.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import runtime, tuning

log = logging.getLogger("aef.kernels")
REQUESTS = ("auto", "torch", "triton", "flash")
OLDEST_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Case:
    """What a choice depends on: where the tensors are, their dtype, and the sizes by which tables tell cases apart.

    Sizes take few values, whatever the batch: a training would otherwise decide, keep and log nearly every step anew.
    """

    device: torch.device
    dtype: torch.dtype
    sizes: Mapping[str, int]


Refusal = Callable[[Case], str | None]
"""Answers None when a backend can run the case, else the condition that failed."""


@dataclass(frozen=True)
class Choice:
    """The backend, the reason for it and against the others, and the settings of its tiles."""

    backend: str
    reason: str
    config: Mapping[str, Any] = field(default_factory=dict)


_refusals: dict[str, dict[str, Refusal]] = {}
_choices: dict[tuple, Choice] = {}
_preferred: dict[str, str] = {}


def register(operator: str, **refusals: Refusal) -> None:
    """Enter an operator's backends beside "torch", each with what says whether it can run."""
    _refusals[operator] = refusals


def requested() -> str:
    """`AEF_KERNELS`, checked; an empty value is `auto`. Raises `ValueError` for an unknown word."""
    request = os.environ.get("AEF_KERNELS") or "auto"
    if request not in REQUESTS:
        raise ValueError(f"AEF_KERNELS: expected one of {', '.join(REQUESTS)}, found {request!r}")
    return request


@contextlib.contextmanager
def preferring(operator: str, backend: str) -> Iterator[None]:
    """Within the block, backward included, `operator` runs as `AEF_KERNELS=backend` would have it and all others as
    they are set: how a benchmark compares the ways of one operator."""
    _preferred[operator] = backend
    try:
        yield
    finally:
        del _preferred[operator]


@contextlib.contextmanager
def afresh() -> Iterator[None]:
    """Within the block every case is decided and logged as if this process had run none before."""
    known = dict(_choices)
    _choices.clear()
    try:
        yield
    finally:
        _choices.update(known)


def asked() -> list[tuple]:
    """What was asked for in this process, each once: (request, operator, device, dtype, sizes)."""
    return list(_choices)


def choose(operator: str, tensor: Tensor, **sizes: int) -> Choice:
    """The backend for `operator` on `tensor`'s device and dtype at `sizes`, decided and logged once per case."""
    return _remember(operator, tensor.device, tensor.dtype, tuple(sizes.items()))


def backend(operator: str, tensor: Tensor, **sizes: int) -> str:
    """`choose(...).backend`, also where `torch.compile` traces: there the answer is a constant of the graph."""
    if torch.compiler.is_compiling():
        return _backend(operator, str(tensor.device), str(tensor.dtype), tuple(sizes.items()))
    return choose(operator, tensor, **sizes).backend


@torch.compiler.assume_constant_result
def _backend(operator: str, device: str, dtype: str, sizes: tuple[tuple[str, int], ...]) -> str:
    return _remember(operator, torch.device(device), getattr(torch, dtype.removeprefix("torch.")), sizes).backend


def _remember(operator: str, device: torch.device, dtype: torch.dtype, sizes: tuple[tuple[str, int], ...]) -> Choice:
    key = (_preferred.get(operator) or requested(), operator, device, dtype, sizes)
    if key not in _choices:
        _choices[key] = decide(key[0], operator, Case(device, dtype, dict(sizes)))
        log.info("%s on %s: %s", operator, device, _choices[key].reason)
    return _choices[key]


def decide(request: str, operator: str, case: Case) -> Choice:
    """The backend that `request` (a word of `AEF_KERNELS`) gives this case, and why not the others."""
    refusals = _refusals[operator]
    if request == "torch":
        return Choice("torch", "PyTorch, as AEF_KERNELS=torch asks")
    entries = [e for e in tuning.table(_gpu(case)) if e.matches(operator, _table_dtype(case), case.sizes)]
    if request in refusals:
        failed = refusals[request](case)
        if failed:
            return Choice("torch", f"PyTorch, not {request}: {failed}")
        config = next((entry.config for entry in entries if entry.backend == request), {})
        return Choice(request, f"{request}, as AEF_KERNELS={request} asks", config)
    if case.device.type != "cuda":
        return Choice("torch", f"PyTorch: on a {case.device.type} device its tuned path is the fastest")
    refused: list[str] = []
    for entry in entries:
        failed = refusals[entry.backend](case) if entry.backend in refusals else None
        if failed is None:
            reason = "; ".join([f"{entry.backend} ({entry.basis}: {entry.why})", *refused])
            return Choice(entry.backend, reason, entry.config)
        refused.append(f"not {entry.backend}: {failed}")
    return Choice("torch", "; ".join(["PyTorch", *(refused or ["no table entry speaks of these sizes"])]))


def triton_refusal(case: Case) -> str | None:
    """Why no Triton kernel can run this case, or None. Operators add their own conditions."""
    problem = runtime.triton_problem()
    if problem:
        return problem
    if runtime.INTERPRET:
        if case.device.type != "cpu":
            return f"TRITON_INTERPRET=1 runs kernels on CPU tensors, found {case.device}"
        if case.dtype == torch.bfloat16:
            return "Triton's interpreter computes bf16 wrongly, without an error"
        return None
    if case.device.type != "cuda":
        return f"the tensors are on a {case.device.type} device; Triton kernels need an NVIDIA GPU"
    if torch.version.hip:
        return "this is an AMD GPU; the kernels are proven on NVIDIA's only"
    capability = torch.cuda.get_device_capability(case.device)
    if capability < OLDEST_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}; bf16 tensor cores came with 8.0"
    if case.dtype == torch.float64:
        return "fp64 has no tensor-core path; kernels take bf16, fp16 and fp32"
    return None


def _gpu(case: Case) -> str:
    return torch.cuda.get_device_name(case.device) if case.device.type == "cuda" else "default"


def _table_dtype(case: Case) -> str:
    # fp64 runs only in the interpreter, where fp32's tiles serve as well.
    return "float32" if case.dtype == torch.float64 else str(case.dtype).removeprefix("torch.")
