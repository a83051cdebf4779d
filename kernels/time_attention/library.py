"""Time attention through PyTorch's and flash-attn's kernels, on any device, without reading the offsets on the host."""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import nan_where_cut
from ..dispatch import Case

FLASH_3, NO_LIBRARY = "flash_attn_interface", "no variable-length attention"
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


def attend_varlen(qkv: Tensor, table: Tensor, cu_frames: Tensor, max_frames: int) -> Tensor:
    """A library's variable-length attention over one sequence per segment and pixel; differentiable.

    These libraries want a sequence's tokens side by side: one gather before, one after, and the sequences' offsets.
    """
    frames, pixels = qkv.shape[:2]
    _, attend = varlen_library()
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
    name, attend = varlen_library()
    channels, sequences = case.sizes["channels"], case.sizes["segments"] * case.sizes["pixels"]
    widest = 192 if name == FLASH_3 else 256  # flash-attn 3 refuses to repeat backward bit by bit beyond 192
    if attend is no_library:
        return f"{name}: flash-attn cannot be imported, and torch.nn.attention.varlen came with PyTorch 2.10"
    if case.device.type != "cuda":
        return f"the tensors are on a {case.device.type} device; {name} needs a GPU"
    if case.dtype not in (torch.bfloat16, torch.float16):
        return f"{name} takes bf16 and fp16, found {case.dtype}"
    if channels % 8 or channels > widest:
        return f"{name} takes head widths that are multiples of 8 up to {widest}, found {channels}"
    if sequences > SEQUENCES:
        return f"{sequences} sequences (segments x pixels) exceed {SEQUENCES}"
    return None


def varlen_library() -> tuple[str, Callable[..., Tensor]]:
    """The first of flash-attn 3, flash-attn 2 and PyTorch's own FlashAttention-2 that can be imported.

    The function takes queries, keys, values, their offsets twice and their longest length twice, and gives the output.
    flash-attn's backward is asked to repeat bit by bit; PyTorch's does under `torch.use_deterministic_algorithms`.
    """
    name = _import_library()
    return name, _imported[name]


_imported: dict[str, Callable[..., Tensor]] = {}


@torch.compiler.assume_constant_result  # a compiled block cannot trace an import
def _import_library() -> str:
    if _imported:  # one, found once: a failed import would be tried again at every call
        return next(iter(_imported))
    for name, module, attribute in (
        (FLASH_3, FLASH_3, "flash_attn_varlen_func"),
        ("flash_attn", "flash_attn", "flash_attn_varlen_func"),
        ("torch varlen_attn", "torch.nn.attention.varlen", "varlen_attn"),
    ):
        try:
            function = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError):
            continue
        options = {"deterministic": True} if "deterministic" in inspect.signature(function).parameters else {}
        _imported[name] = functools.partial(_output_alone, function, options)
        return name
    _imported[NO_LIBRARY] = no_library
    return NO_LIBRARY


def no_library(*arguments: Any) -> Tensor:
    """What `varlen_library` gives where there is none; the dispatcher refuses it before."""
    raise NotImplementedError("neither flash-attn nor torch.nn.attention.varlen can be imported")


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
