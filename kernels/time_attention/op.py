"""The public function of time-axial attention."""

import torch
from torch import Tensor

from .. import dispatch
from ..arguments import check_float, check_segments, match_shape, segment_lengths
from .backward import attend_backward
from .eager import EagerTimeAttention, attention_backward, attention_forward
from .forward import attend
from .library import SEQUENCES, attend_padded, attend_varlen, varlen_refusal

WIDEST_HEAD = 64
"""Beyond it backward does not fit the registers of any tile that is shipped (536 bytes of stack on sm_80 at 128)."""


def check_arguments(qkv: Tensor, table: Tensor, cu_frames: Tensor, max_frames: int) -> None:
    """Refuse what no backend can compute, with one line that says what to change."""
    sizes: dict[str, int] = {}
    match_shape(sizes, "qkv", qkv, "F P 3 H D")
    match_shape(sizes, "table", table, "F 3 H D")
    check_float("qkv", qkv)
    check_float("table", table, qkv.device)
    check_segments(cu_frames, max_frames, qkv.device)


def time_attention(qkv: Tensor, table: Tensor, cu_frames: Tensor, max_frames: int) -> Tensor:
    """Time-axial attention over packed frames (Brown et al. 2025, the "time" operator of an STP block).

        q, k, v = qkv[f, p] + table[f]
        out[f, p, h] = Σ_g softmax_g(⟨q[f,p,h], k[g,p,h]⟩ / √D) v[g,p,h],   g over the frames of f's segment

    The timecode enters only through `table`: it is added after the pre-norm, `(LN(x) + t_f) W = LN(x) W + t_f W`, so
    its part of q, k and v is one row per frame and never enters the residual.

    Args:
        qkv: (F, P, 3, H, D): F packed frames, P pixels, query/key/value, H heads of D channels. fp64, fp32, bf16 or
            fp16.
        table: (F, 3, H, D), the timecode's part of q, k and v; any floating dtype, cast to `qkv`'s.
        cu_frames: (S + 1,) int32 offsets of the S segments, rising from 0 to F. An optional filler segment is just the
            last one.
        max_frames: upper bound of a segment's length, a Python int (bucketed, so that compiled graphs are reused).

    Returns:
        (F, P, H, D) in `qkv`'s dtype. Differentiable in `qkv` and `table`.

    Raises:
        ValueError: wrong rank, shape, dtype or device; on a CPU also offsets that do not rise from 0 to F, and a
            segment longer than `max_frames`. On a GPU the offsets are not read by the host: kernels clamp them, so
            they never read out of range, and a segment longer than `max_frames` shows as NaN.
    """
    check_arguments(qkv, table, cu_frames, max_frames)
    backend = dispatch.backend("time_attention", qkv, **_sizes(qkv, cu_frames, max_frames))
    if backend == "flash":
        return attend_varlen(qkv, table, cu_frames, max_frames)
    if backend == "torch" and qkv.device.type == "cuda":
        return attend_padded(qkv, table, cu_frames, max_frames)
    if backend == "torch" and qkv.device.type == "cpu" and not torch.compiler.is_compiling():
        return EagerTimeAttention.apply(qkv, table, segment_lengths(cu_frames, qkv.shape[0], max_frames))
    return time_attention_operator(qkv, table, cu_frames, max_frames)


def _sizes(qkv: Tensor, cu_frames: Tensor, max_frames: int) -> dict[str, int]:
    _, pixels, _, heads, channels = qkv.shape
    many = int((cu_frames.shape[0] - 1) * pixels > SEQUENCES)
    return {"max_frames": max_frames, "pixels": pixels, "heads": heads, "channels": channels, "many": many}


def _triton_refusal(case: dispatch.Case) -> str | None:
    sizes = case.sizes
    if sizes["channels"] > WIDEST_HEAD:
        return f"heads of {sizes['channels']} channels exceed the kernel's tile of {WIDEST_HEAD}"
    if sizes["max_frames"] * sizes["pixels"] * 3 * sizes["heads"] * sizes["channels"] >= 2**31:
        return f"a segment of {sizes['max_frames']} frames holds 2^31 elements or more"
    return dispatch.triton_refusal(case)


dispatch.register("time_attention", triton=_triton_refusal, flash=varlen_refusal)


@torch.library.custom_op("aef::time_attention", mutates_args=())
def time_attention_operator(qkv: Tensor, table: Tensor, cu_frames: Tensor, max_frames: int) -> Tensor:
    """`time_attention` as one opaque operator; only its arguments are kept for backward."""
    chosen = dispatch.choose("time_attention", qkv, **_sizes(qkv, cu_frames, max_frames))
    if chosen.backend == "triton":
        return attend(qkv, table, cu_frames, max_frames, chosen.config.get("forward", {}))
    return attention_forward(qkv, table, segment_lengths(cu_frames, qkv.shape[0], max_frames))[0]


@time_attention_operator.register_fake
def _(qkv: Tensor, table: Tensor, cu_frames: Tensor, max_frames: int) -> Tensor:
    check_arguments(qkv, table, cu_frames, max_frames)
    frames, pixels, _, heads, channels = qkv.shape
    return qkv.new_empty(frames, pixels, heads, channels)


@torch.library.custom_op("aef::time_attention_backward", mutates_args=())
def time_attention_backward(
    gradient: Tensor, qkv: Tensor, table: Tensor, cu_frames: Tensor, max_frames: int
) -> tuple[Tensor, Tensor]:
    """Gradients of `qkv` and `table`; the attention weights are recomputed."""
    chosen = dispatch.choose("time_attention", qkv, **_sizes(qkv, cu_frames, max_frames))
    if chosen.backend == "triton":
        return attend_backward(gradient, qkv, table, cu_frames, max_frames, chosen.config.get("backward", {}))
    _, attended = attention_forward(qkv, table, segment_lengths(cu_frames, qkv.shape[0], max_frames))
    d_qkv, d_table = attention_backward(gradient, attended)
    return d_qkv, d_table.to(table.dtype)


@time_attention_backward.register_fake
def _(gradient: Tensor, qkv: Tensor, table: Tensor, cu_frames: Tensor, max_frames: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format), table.new_empty(table.shape)


def _save(ctx, inputs, output) -> None:
    qkv, table, cu_frames, ctx.max_frames = inputs
    ctx.save_for_backward(qkv, table, cu_frames)


def _backward(ctx, gradient: Tensor):
    return *time_attention_backward(gradient, *ctx.saved_tensors, ctx.max_frames), None, None


time_attention_operator.register_autograd(_backward, setup_context=_save)
