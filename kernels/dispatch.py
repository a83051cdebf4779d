"""Which backend runs an operator, and why not the others.

`AEF_KERNELS` asks for one: `auto` (default: the GPU's table, PyTorch on a CPU), `triton`, `torch`, or `flash`
(flash-attn or PyTorch's `varlen_attn`; attention only). What cannot run falls back to PyTorch; each choice and its
reason are logged once. Checkpoints never depend on the choice.
"""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import runtime, tuning

log = logging.getLogger("aef.kernels")
REQUESTS = ("auto", "torch", "triton", "flash")
OLDEST_CAPABILITY = (8, 0)

CanRun = Callable[[], str | None]
"""Answers None when a backend can run, else the condition that failed."""


@dataclass(frozen=True)
class Choice:
    """The backend, the reason for it and against the others, and the settings of its tiles."""

    backend: str
    reason: str
    config: Mapping[str, Any] = field(default_factory=dict)


_choices: dict[tuple, Choice] = {}


def requested() -> str:
    """`AEF_KERNELS`, checked. Raises `ValueError` for an unknown word."""
    request = os.environ.get("AEF_KERNELS", "auto")
    if request not in REQUESTS:
        raise ValueError(f"AEF_KERNELS: expected one of {', '.join(REQUESTS)}, found {request!r}")
    return request


def choose(operator: str, tensor: Tensor, sizes: Mapping[str, int], can_run: Mapping[str, CanRun]) -> Choice:
    """The backend for `operator` on `tensor`'s device and dtype at `sizes`.

    Args:
        operator: its name in the tables.
        tensor: the argument that sets device and dtype.
        sizes: the sizes by which tables tell cases apart.
        can_run: for each backend beside "torch", in order of liking, whether it can run and if not, why not.
    """
    key = (requested(), operator, tensor.device, tensor.dtype, *sizes.items())
    if key not in _choices:
        _choices[key] = _choose(key[0], operator, tensor, sizes, can_run)
        if not torch.compiler.is_compiling():
            log.info("%s on %s: %s", operator, tensor.device, _choices[key].reason)
    return _choices[key]


def _choose(
    request: str, operator: str, tensor: Tensor, sizes: Mapping[str, int], can_run: Mapping[str, CanRun]
) -> Choice:
    if request == "torch":
        return Choice("torch", "PyTorch, as AEF_KERNELS=torch asks")
    entries = [e for e in tuning.table(_gpu(tensor)) if e.matches(operator, _table_dtype(tensor), sizes)]
    if request in can_run:
        failed = can_run[request]()
        if failed:
            return Choice("torch", f"PyTorch, not {request}: {failed}")
        config = next((entry.config for entry in entries if entry.backend == request), {})
        return Choice(request, f"{request}, as AEF_KERNELS={request} asks", config)
    if not tensor.is_cuda:
        return Choice("torch", f"PyTorch: the tensors are on {tensor.device.type}, where its tuned path is the fastest")
    refused = []
    for entry in entries:
        failed = can_run[entry.backend]() if entry.backend in can_run else None
        if failed is None:
            return Choice(
                entry.backend, "; ".join([f"{entry.backend} ({entry.basis}: {entry.why})", *refused]), entry.config
            )
        refused.append(f"not {entry.backend}: {failed}")
    return Choice("torch", "; ".join(["PyTorch", *(refused or ["no table entry speaks of these sizes"])]))


def triton_refusal(tensor: Tensor) -> str | None:
    """Why no Triton kernel can run on this tensor, or None. Operators add their own conditions."""
    problem = runtime.triton_problem()
    if problem:
        return problem
    if runtime.INTERPRET:
        if tensor.device.type != "cpu":
            return f"TRITON_INTERPRET=1 runs kernels on CPU tensors, found {tensor.device}"
        if tensor.dtype == torch.bfloat16:
            return "Triton's interpreter computes bf16 wrongly, without an error"
        return None
    if tensor.device.type != "cuda":
        return f"the tensors are on {tensor.device.type}; Triton kernels need an NVIDIA GPU (or TRITON_INTERPRET=1)"
    if torch.version.hip:
        return "this is an AMD GPU; the kernels are proven on NVIDIA's only"
    capability = torch.cuda.get_device_capability(tensor.device)
    if capability < OLDEST_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}; bf16 tensor cores came with 8.0"
    if tensor.dtype == torch.float64:
        return "fp64 has no tensor-core path; kernels take bf16, fp16 and fp32"
    return None


def _gpu(tensor: Tensor) -> str:
    return torch.cuda.get_device_name(tensor.device) if tensor.is_cuda else "default"


def _table_dtype(tensor: Tensor) -> str:
    # fp64 runs only in the interpreter, where fp32's tiles serve as well.
    return "float32" if tensor.dtype == torch.float64 else str(tensor.dtype).removeprefix("torch.")
