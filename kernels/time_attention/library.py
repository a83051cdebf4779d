"""Time attention through PyTorch's and flash-attn's kernels, on any device, without reading the offsets on the host."""

import functools
import importlib
import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import nan_where_cut
from ..dispatch import Case

log = logging.getLogger("aef.kernels")
FLASH_3 = "flash_attn_interface"
LIBRARIES = (
    (FLASH_3, FLASH_3, "flash_attn_varlen_func"),
    ("flash_attn", "flash_attn", "flash_attn_varlen_func"),
    ("torch varlen_attn", "torch.nn.attention.varlen", "varlen_attn"),
)
"""Name, module and function of flash-attn 3, of flash-attn 2 and of PyTorch's own FlashAttention-2: the first that
takes a case runs it."""
NO_LIBRARY = (
    "no variable-length attention: flash-attn cannot be imported, and torch.nn.attention.varlen came with PyTorch 2.10"
)
Attend = Callable[..., Tensor]
SEQUENCES = 65_535
"""Most sequences in one call: several of these libraries keep them on a grid axis of 16 bits."""


def attend_padded(qkv: Tensor, table: Tensor, cu_frames: Tensor, max_frames: int) -> Tensor:
    """`scaled_dot_product_attention` over segments padded to `max_frames`; differentiable, no synchronisation."""
    pixels, segments = qkv.shape[1], cu_frames.shape[0] - 1
    summed = _with_table(qkv, table, cu_frames, max_frames)
    if not summed.numel():
        return summed.sum(dim=2)
    starts, lengths = cu_frames[:-1].long(), cu_frames.diff().long()
    step = torch.arange(max_frames, device=qkv.device)
    rows = (starts[:, None] + step).clamp(max=qkv.shape[0] - 1)  # (S, T)
    # The first key is always seen: an empty segment, which nobody reads, must not turn gradients into NaN.
    seen = (step < lengths[:, None]) | (step == 0)
    mask = seen.repeat_interleave(pixels, dim=0)[:, None, None]  # (S·P, 1, 1, T)
    heads_first = summed[rows].permute(3, 0, 2, 4, 1, 5).flatten(1, 2)  # (3, S·P, H, T, D)
    parts = [
        F.scaled_dot_product_attention(query, key, value, attn_mask=one_mask)
        for (query, key, value), one_mask in zip(heads_first.split(SEQUENCES, dim=1), mask.split(SEQUENCES))
    ]
    padded = torch.cat(parts).unflatten(0, (segments, pixels)).permute(0, 3, 1, 2, 4)  # (S, T, P, H, D)
    segment, step = _place(cu_frames, qkv.shape[0])
    return padded[segment, step.clamp(0, max_frames - 1)]


def attend_varlen(qkv: Tensor, table: Tensor, cu_frames: Tensor, max_frames: int, library: str = "") -> Tensor:
    """A library's variable-length attention over one sequence per segment and pixel; differentiable. `library`: a name
    of `varlen_libraries`, or the one that `varlen_library` chooses.

    These libraries want a sequence's tokens side by side: one gather before, one after, and the sequences' offsets.
    """
    frames, pixels = qkv.shape[:2]
    attend = varlen_libraries()[library] if library else varlen_library(qkv.shape[-1])[1]
    summed = _with_table(qkv, table, cu_frames, max_frames).flatten(0, 1)
    segment, step = _place(cu_frames, frames)
    starts, lengths = cu_frames[:-1].long(), cu_frames.diff().long()
    pixel = torch.arange(pixels, device=qkv.device)
    token = (starts[segment] * pixels + step)[:, None] + pixel * lengths[segment][:, None]  # (F, P): its new place
    order = torch.empty(frames * pixels, dtype=torch.int64, device=qkv.device)
    order[token.flatten()] = torch.arange(frames * pixels, device=qkv.device)
    offsets = (starts[:, None] * pixels + pixel * lengths[:, None]).flatten()
    offsets = F.pad(offsets, (0, 1), value=frames * pixels).int()
    query, key, value = summed[order].unbind(1)
    attended = attend(query, key, value, offsets, offsets, max_frames, max_frames)
    return attended[token.flatten()].unflatten(0, (frames, pixels))


def varlen_refusal(case: Case) -> str | None:
    """Why no library's variable-length attention can run here, or None."""
    names, channels = list(varlen_libraries()), case.sizes["channels"]
    if not names:
        return NO_LIBRARY
    if case.device.type != "cuda":
        return f"the tensors are on a {case.device.type} device; {', '.join(names)} needs a GPU"
    if case.dtype not in (torch.bfloat16, torch.float16):
        return f"{', '.join(names)} takes bf16 and fp16, found {case.dtype}"
    refusals = [width_refusal(name, channels) for name in names]
    if all(refusals):
        return "; ".join(filter(None, refusals))
    if case.sizes["many"]:
        return f"there are more than {SEQUENCES} sequences (segments x pixels)"
    return None


def width_refusal(library: str, channels: int) -> str | None:
    """Why a library cannot take heads of so many channels, or None."""
    widest = 192 if library == FLASH_3 else 256  # flash-attn 3 refuses to repeat backward bit by bit beyond 192
    if channels % 8 or channels > widest:
        return f"{library} takes head widths that are multiples of 8 up to {widest}, found {channels}"
    return None


def varlen_library(channels: int) -> tuple[str, Attend]:
    """The first of LIBRARIES that can be imported and takes heads of so many channels. Raises `NotImplementedError`
    where there is none; the dispatcher refuses that before."""
    name = _choose_library(channels)
    attend = _imported[name] if name else None
    if attend is None:
        raise NotImplementedError(NO_LIBRARY)
    return name, attend


def varlen_libraries() -> dict[str, Attend]:
    """Those of LIBRARIES that can be imported, by name.

    Each takes queries, keys, values, their offsets twice and their longest length twice, and gives the output.
    flash-attn's backward is asked to repeat bit by bit; PyTorch's does under `torch.use_deterministic_algorithms`.
    """
    return {name: attend for name, attend in _imports().items() if attend is not None}


_imported: dict[str, Attend | None] = {}


@torch.compiler.assume_constant_result  # a compiled block cannot trace an import
def _choose_library(channels: int) -> str:
    """A name, or "" where no library takes it."""
    names = list(varlen_libraries())
    return next((name for name in names if not width_refusal(name, channels)), "")


def _imports() -> dict[str, Attend | None]:
    for name, module, attribute in LIBRARIES:
        if name not in _imported:  # once: a failed import would be tried again at every call
            _imported[name] = _import_function(module, attribute)
    return _imported


def _import_function(module: str, attribute: str) -> Attend | None:
    try:
        function = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # built for another PyTorch or CUDA, or without what it needs: the next library may work
        absent = isinstance(error, ModuleNotFoundError) and error.name and module.startswith(error.name)
        if not absent:
            log.warning("%s is installed and cannot be imported: %s: %s", module, type(error).__name__, error)
        return None
    if function is None:
        return None
    options = {"deterministic": True} if "deterministic" in inspect.signature(function).parameters else {}
    return functools.partial(_output_alone, function, options)


def _output_alone(function: Callable, options: dict[str, Any], *arguments: Any) -> Tensor:
    found = function(*arguments, **options)
    # flash-attn 3 gave the logarithm of the softmax's sum beside the output until the middle of 2025.
    return found[0] if isinstance(found, tuple) else found


def _with_table(qkv: Tensor, table: Tensor, cu_frames: Tensor, max_frames: int) -> Tensor:
    """Queries, keys and values with the table added: NaN where `max_frames` would cut a segment."""
    table = table.to(qkv.dtype) + nan_where_cut(cu_frames, max_frames).to(qkv.dtype)
    return qkv + table[:, None]


def _place(cu_frames: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Segment and step of every packed frame."""
    frame = torch.arange(frames, device=cu_frames.device)
    segment = torch.searchsorted(cu_frames[1:], frame, right=True).clamp(max=cu_frames.shape[0] - 2)
    return segment, frame - cu_frames[segment]
