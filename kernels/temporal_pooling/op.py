"""The public function of temporal pooling."""

import torch
from torch import Tensor

from .. import dispatch
from ..arguments import check_float, check_integer, check_segments, match_shape, segment_lengths
from .backward import pool_backward
from .eager import EagerTemporalPooling, pooling_backward, pooling_forward
from .forward import pool
from .library import pool_padded
from .reference import period_segment_list, split_bias

WIDEST_STATE = 256


def check_arguments(
    states: Tensor,
    table: Tensor,
    query: Tensor,
    bias: Tensor | None,
    period_segment: Tensor,
    cu_frames: Tensor,
    max_frames: int,
) -> None:
    """Refuse what no backend can compute, with one line that says what to change."""
    sizes: dict[str, int] = {}
    match_shape(sizes, "states", states, "F P C")
    match_shape(sizes, "table", table, "F C")
    match_shape(sizes, "query", query, "Q H C")
    match_shape(sizes, "period_segment", period_segment, "Q")
    check_float("states", states)
    check_float("table", table, states.device)
    check_float("query", query, states.device)
    if bias is not None:
        match_shape(sizes, "bias", bias, "pairs H")
        check_float("bias", bias, states.device)
    check_integer("period_segment", period_segment, torch.int32, states.device)
    check_segments(cu_frames, max_frames, states.device)


def temporal_pooling(
    states: Tensor,
    table: Tensor,
    query: Tensor,
    bias: Tensor | None,
    period_segment: Tensor,
    cu_frames: Tensor,
    max_frames: int,
) -> Tensor:
    """Attention pooling over time for many valid periods at once (Brown et al. 2025, "time-axial attention pooling").

        x[f, p] = states[f, p] + table[f]
        w[q, h, p, f] = softmax_f(⟨query[q, h], x[f, p]⟩ + bias[pair(q, f), h]),   f over segment period_segment[q]
        out[q, p, h] = Σ_f w[q, h, p, f] x[f, p]

    Keys and values are the states themselves. The query depends on the period and not on the pixel, so the caller
    absorbs the key projection (and 1/√d) into `query`, and applies the value projection to the output; one read of the
    states then serves every period and head.

    Args:
        states: (F, P, C), the packed frames' states at P pixels. fp64, fp32, bf16 or fp16.
        table: (F, C), the timecode of each frame; any floating dtype, cast to `states`'.
        query: (Q, H, C), one per period and head, any scale folded in; cast to `states`' dtype.
        bias: (pairs, H) added to the logits, or None. Pairs enumerate each period's frames, period by period.
        period_segment: (Q,) int32, the segment that each period pools.
        cu_frames: (S + 1,) int32 offsets of the segments, rising from 0 to F.
        max_frames: upper bound of a segment's length, a Python int.

    Returns:
        (Q, P, H, C) in `states`' dtype. An empty segment pools to zeros, with zero gradients. Differentiable in
        `states`, `table`, `query` and `bias`.

    Raises:
        ValueError: wrong rank, shape, dtype or device; on a CPU also offsets or segments out of range, a `bias` of the
            wrong number of rows, and a segment longer than `max_frames`; on a GPU, whose offsets the host does not
            read, that shows as NaN.
    """
    check_arguments(states, table, query, bias, period_segment, cu_frames, max_frames)
    backend = dispatch.backend("temporal_pooling", states, **_sizes(states, query, bias, max_frames))
    if backend == "torch" and states.device.type == "cuda":
        return pool_padded(states, table, query, bias, period_segment, cu_frames, max_frames)
    if backend == "torch" and states.device.type == "cpu" and not torch.compiler.is_compiling():
        plan = _host_plan(states, bias, period_segment, cu_frames, max_frames)
        return EagerTemporalPooling.apply(states, table, query, bias, *plan)
    return temporal_pooling_operator(states, table, query, bias, period_segment, cu_frames, max_frames)


def _sizes(states: Tensor, query: Tensor, bias: Tensor | None, max_frames: int) -> dict[str, int]:
    (_, pixels, channels), (periods, heads, _) = states.shape, query.shape
    sizes = {"max_frames": max_frames, "pixels": pixels, "channels": channels, "biased": int(bias is not None)}
    return sizes | {"beyond": int(periods * pixels * heads >= 2**31)}


def _triton_refusal(case: dispatch.Case) -> str | None:
    sizes = case.sizes
    if sizes["channels"] > WIDEST_STATE:
        return f"states of {sizes['channels']} channels exceed the kernel's tile of {WIDEST_STATE}"
    if sizes["max_frames"] * sizes["pixels"] * sizes["channels"] >= 2**31:
        return f"a segment of {sizes['max_frames']} frames holds 2^31 elements or more"
    if sizes["beyond"]:
        return "the periods of all pixels and heads are 2^31 rows or more"
    return dispatch.triton_refusal(case)


dispatch.register("temporal_pooling", triton=_triton_refusal)


def _host_plan(
    states: Tensor, bias: Tensor | None, period_segment: Tensor, cu_frames: Tensor, max_frames: int
) -> tuple[list[int], list[int]]:
    """Each period's segment and each segment's frames, read by the host and checked."""
    lengths = segment_lengths(cu_frames, states.shape[0], max_frames)
    chosen = period_segment_list(period_segment, len(lengths))
    split_bias(bias, [lengths[segment] for segment in chosen])
    return chosen, lengths


@torch.library.custom_op("aef::temporal_pooling", mutates_args=())
def temporal_pooling_operator(
    states: Tensor,
    table: Tensor,
    query: Tensor,
    bias: Tensor | None,
    period_segment: Tensor,
    cu_frames: Tensor,
    max_frames: int,
) -> Tensor:
    """`temporal_pooling` as one opaque operator; only its arguments are kept for backward."""
    chosen = dispatch.choose("temporal_pooling", states, **_sizes(states, query, bias, max_frames))
    if chosen.backend == "triton":
        config = chosen.config.get("forward", {})
        return pool(states, table, query, bias, period_segment, cu_frames, max_frames, config)
    plan = _host_plan(states, bias, period_segment, cu_frames, max_frames)
    return pooling_forward(states, table, query, bias, *plan)[0]


@temporal_pooling_operator.register_fake
def _(
    states: Tensor,
    table: Tensor,
    query: Tensor,
    bias: Tensor | None,
    period_segment: Tensor,
    cu_frames: Tensor,
    max_frames: int,
) -> Tensor:
    check_arguments(states, table, query, bias, period_segment, cu_frames, max_frames)
    periods, heads, channels = query.shape
    return states.new_empty(periods, states.shape[1], heads, channels)


@torch.library.custom_op("aef::temporal_pooling_backward", mutates_args=())
def temporal_pooling_backward(
    gradient: Tensor,
    states: Tensor,
    table: Tensor,
    query: Tensor,
    bias: Tensor | None,
    period_segment: Tensor,
    cu_frames: Tensor,
    max_frames: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `states`, `table`, `query` and `bias` (empty where there is none); weights are recomputed."""
    chosen = dispatch.choose("temporal_pooling", states, **_sizes(states, query, bias, max_frames))
    if chosen.backend == "triton":
        arguments = (states, table, query, bias, period_segment, cu_frames, max_frames)
        d_states, d_table, d_query, d_bias = pool_backward(gradient, *arguments, chosen.config.get("backward", {}))
    else:
        plan = _host_plan(states, bias, period_segment, cu_frames, max_frames)
        _, pooled = pooling_forward(states, table, query, bias, *plan)
        d_states, d_table, d_query, d_bias = pooling_backward(gradient, states, query, bias, pooled)
    d_bias = query.new_empty(0) if bias is None or d_bias is None else d_bias.to(bias.dtype)
    return d_states, d_table.to(table.dtype), d_query.to(query.dtype), d_bias


@temporal_pooling_backward.register_fake
def _(
    gradient: Tensor,
    states: Tensor,
    table: Tensor,
    query: Tensor,
    bias: Tensor | None,
    period_segment: Tensor,
    cu_frames: Tensor,
    max_frames: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_bias = query.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return states.new_empty(states.shape), table.new_empty(table.shape), query.new_empty(query.shape), d_bias


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.max_frames = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, gradient: Tensor):
    d_states, d_table, d_query, d_bias = temporal_pooling_backward(gradient, *ctx.saved_tensors, ctx.max_frames)
    return d_states, d_table, d_query, None if ctx.saved_tensors[3] is None else d_bias, None, None, None


temporal_pooling_operator.register_autograd(_backward, setup_context=_save)
