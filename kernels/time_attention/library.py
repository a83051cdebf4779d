"""Time attention through PyTorch's and flash-attn's kernels, on any device, without reading the offsets on the host."""

import functools
import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import Case

SEQUENCES = 65_535
"""Most sequences in one call: several of these libraries keep them on a grid axis of 16 bits."""


def attend_padded(qkv: Tensor, table: Tensor, cu_frames: Tensor, max_frames: int) -> Tensor:
    """`scaled_dot_product_attention` over segments padded to `max_frames`; differentiable, no synchronisation."""
    pixels, segments = qkv.shape[1], cu_frames.shape[0] - 1
    summed = qkv + table[:, None].to(qkv.dtype)
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
    summed = (qkv + table[:, None].to(qkv.dtype)).flatten(0, 1)
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
    name, _ = varlen_library()
    channels, sequences = case.sizes["channels"], case.sizes["segments"] * case.sizes["pixels"]
    if case.device.type != "cuda":
        return f"the tensors are on a {case.device.type} device; {name} needs a GPU"
    if case.dtype not in (torch.bfloat16, torch.float16):
        return f"{name} takes bf16 and fp16, found {case.dtype}"
    if channels % 8 or channels > 256:
        return f"{name} takes head widths that are multiples of 8 up to 256, found {channels}"
    if sequences > SEQUENCES:
        return f"{sequences} sequences (segments x pixels) exceed {SEQUENCES}"
    return None


@functools.cache
def varlen_library() -> tuple[str, Callable]:
    """The first of flash-attn 3, flash-attn 2 and PyTorch's own FlashAttention-2 that can be imported."""
    for name, attribute in (
        ("flash_attn_interface", "flash_attn_varlen_func"),
        ("flash_attn", "flash_attn_varlen_func"),
    ):
        try:
            return name, getattr(importlib.import_module(name), attribute)
        except (ImportError, AttributeError):
            continue
    return "torch varlen_attn", importlib.import_module("torch.nn.attention.varlen").varlen_attn


def _place(cu_frames: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Segment and step of every packed frame."""
    frame = torch.arange(frames, device=cu_frames.device)
    segment = torch.searchsorted(cu_frames[1:], frame, right=True).clamp(max=cu_frames.shape[0] - 2)
    return segment, frame - cu_frames[segment]
