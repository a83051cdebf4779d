"""Convolutions as implicit matrix products, NHWC: the kernels beneath `conv3x3` and the pyramid exchange.

A row of the product is an output pixel, a column an output channel; the contraction runs over taps and input channels.
Rows of the left operand are gathered from the image tile by tile, taps beyond the border as zeros, so that no patch
matrix exists. With a k×k kernel, stride S and padding P,

    plain        y[f, r, c] = Σ_ij W[:, i, j, :] x[f, rS + i − P, cS + j − P]          W (N, k, k, K)
    transposed   y[f, rS + i − P, cS + j − P] += W[:, i, j, :]ᵀ x[f, r, c]              W (K, k, k, N)

Each is the other's data gradient, with the same weight where it lies. A transposed output of stride 2 has four phases
(even or odd row, even or odd column), each a plain product over the taps that reach it: of 3×3 taps 1, 2, 2 and 4.
What surrounds a convolution happens on the accumulator: bias, GELU, the residual or the state into which a pyramid step
merges and, where a tile holds all channels of its pixels, the LayerNorm of that state; the slope of a GELU in backward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from . import dispatch
from .activation.forward import gelu, gelu_slope
from .channel_norm.forward import normalize
from .channel_norm.reference import EPS
from .runtime import compute_type, dot_precision, dot_type, jit, kernel, power_of_two, processors, tl

PADDING = {2: 0, 3: 1}
"""Padding of each kernel size that the kernels take."""
PRODUCT = {"rows": 128, "outputs": 128, "inputs": 32, "num_warps": 8, "num_stages": 3}
WEIGHT = {"rows": 32, "outputs": 128, "inputs": 128, "num_warps": 8, "num_stages": 3}
PROGRAMS_PER_PROCESSOR = 3
MOST_PIXELS = 2**31 - 1024
FRAME_BUCKETS = (32, 64, 128, 256, 512)
"""Upper bounds by which tables tell numbers of frames apart: packed batches differ in theirs from step to step."""


@jit
def places(pixel, channel, CHANNELS: tl.constexpr):
    """Offsets of channels of pixels, which are counted over all frames: 64 bits, since pixels have 32."""
    return pixel.to(tl.int64)[:, None] * CHANNELS + channel[None, :]


@kernel
def implicit_gemm(
    x, weight, bias, other, scale, shift, out, second, rows, height, width, x_height, x_width,
    K: tl.constexpr, N: tl.constexpr, SIDE: tl.constexpr, PAD: tl.constexpr, STRIDE: tl.constexpr,
    TRANSPOSED: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr, KEEP: tl.constexpr, MERGE: tl.constexpr,
    NORM: tl.constexpr, EPSILON: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    columns = tl.cdiv(N, BLOCK_N)
    row = tl.program_id(0) // columns * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = row < rows
    line = row // width  # of all frames
    frame = line // height
    r, c = line - frame * height, row - line * width
    first_i, first_j, count_i, count_j = 0, 0, SIDE, SIDE
    pixel = row
    if TRANSPOSED:
        phase = STRIDE * STRIDE - 1 - tl.program_id(1)  # the phase of most taps first
        phase_r, phase_c = phase // STRIDE, phase % STRIDE
        first_i, first_j = (phase_r + PAD) % STRIDE, (phase_c + PAD) % STRIDE
        count_i, count_j = tl.cdiv(SIDE - first_i, STRIDE), tl.cdiv(SIDE - first_j, STRIDE)
        y, z = r + (phase_r + PAD) // STRIDE, c + (phase_c + PAD) // STRIDE
        pixel = (line * STRIDE + phase_r) * (width * STRIDE) + c * STRIDE + phase_c
    else:
        y, z = r * STRIDE - PAD, c * STRIDE - PAD
    # What a tap and a block of channels change is a scalar: it is added to pointers that stay as they are.
    k = tl.arange(0, BLOCK_K)
    images = x + places((frame * x_height + y) * x_width + z, k, K)
    weights = (
        weight
        + k[:, None] * (SIDE * SIDE * N if TRANSPOSED else 1)
        + n[None, :] * (1 if TRANSPOSED else SIDE * SIDE * K)
    )
    factor = tl.cdiv(65536, count_j)  # tap // count_j = tap * factor >> 16, without a division in the loop
    blocks: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    total = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    # One flat loop, so that loads are pipelined across taps as well.
    for step in range(0, count_i * count_j * blocks):
        tap = step // blocks
        begin = step % blocks * BLOCK_K
        i = tap * factor >> 16
        j = tap - i * count_j
        if TRANSPOSED:
            place = ((first_i + STRIDE * i) * SIDE + first_j + STRIDE * j) * N + begin * (SIDE * SIDE * N)
            i, j = -i, -j
        else:
            place = (i * SIDE + j) * K + begin
        real = k < K - begin
        taken = tl.load(weights + place, mask=real[:, None] & (n < N)[None, :], other=0.0)
        # Below zero is beyond the last, too, read as unsigned.
        inside = valid & ((y + i).to(tl.uint32) < x_height) & ((z + j).to(tl.uint32) < x_width)
        pixels = tl.load(images + ((i * x_width + j) * K + begin), mask=inside[:, None] & real[None, :], other=0.0)
        total = tl.dot(pixels.to(DOT), taken.to(DOT), total, input_precision=PRECISION, out_dtype=ACC)
    if BIAS:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(ACC)[None, :]
    place = places(pixel, n, N)
    inside = valid[:, None] & (n < N)[None, :]
    if KEEP:
        tl.store(second + place, total.to(second.dtype.element_ty), mask=inside)
    if GELU:
        total = gelu(total)
    if MERGE == "add":
        total += tl.load(other + place, mask=inside, other=0.0).to(ACC)
    if MERGE == "slope":
        total *= gelu_slope(tl.load(other + place, mask=inside, other=0.0).to(ACC))
    rounded = total.to(out.dtype.element_ty)
    tl.store(out + place, rounded, mask=inside)
    if NORM:
        # Of the state as it was stored: backward takes its statistics from there. Columns beyond N are zero.
        normal, _ = normalize(rounded.to(ACC), N, BLOCK_N, EPSILON)
        normal *= tl.load(scale + n, mask=n < N, other=0.0).to(ACC)[None, :]
        normal += tl.load(shift + n, mask=n < N, other=0.0).to(ACC)[None, :]
        tl.store(second + place, normal.to(second.dtype.element_ty), mask=inside)


@kernel
def implicit_gemm_weight(
    coarse, fine, partial, bias_partial, rows, chunk,
    height: tl.constexpr, width: tl.constexpr, fine_height: tl.constexpr, fine_width: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, SIDE: tl.constexpr, PAD: tl.constexpr, STRIDE: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_R: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tap and tile (A, B) of a chunk's rows: Σ coarse[f, r, c] ⊗ fine[f, rS + i − P, cS + j − P]."""
    tap = tl.program_id(0) % (SIDE * SIDE)
    tile = tl.program_id(0) // (SIDE * SIDE)
    a = tile // tl.cdiv(B, BLOCK_B) * BLOCK_A + tl.arange(0, BLOCK_A)
    b = tile % tl.cdiv(B, BLOCK_B) * BLOCK_B + tl.arange(0, BLOCK_B)
    first = tl.program_id(1) * chunk
    last = tl.minimum(first + chunk, rows)
    i, j = tap // SIDE - PAD, tap % SIDE - PAD
    total = tl.zeros([BLOCK_A, BLOCK_B], ACC)
    for start in range(first, last, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        real = row < last
        own = tl.load(coarse + places(row, a, A), mask=real[:, None] & (a < A)[None, :], other=0.0)
        line = row // width  # of all frames
        frame = line // height
        y, z = (line - frame * height) * STRIDE + i, (row - line * width) * STRIDE + j
        # Below zero is beyond the last, too, read as unsigned.
        inside = real & (y.to(tl.uint32) < fine_height) & (z.to(tl.uint32) < fine_width)
        # The frame's term is zero to the compiler where a fine image is as high as its coarse one.
        pixel = (frame * (fine_height - STRIDE * height) + line * STRIDE + i) * fine_width + z
        met = tl.load(fine + places(pixel, b, B), mask=inside[:, None] & (b < B)[None, :], other=0.0)
        total = tl.dot(tl.trans(own.to(DOT)), met.to(DOT), total, input_precision=PRECISION, out_dtype=ACC)
    part = tl.program_id(1).to(tl.int64)
    place = ((part * A + a) * (SIDE * SIDE) + tap)[:, None] * B + b[None, :]
    tl.store(partial + place, total, mask=(a < A)[:, None] & (b < B)[None, :])
    if BIAS:  # noqa: SIM102
        # Few programs read their rows once more: a sum inside the loop above would hold up every tile's product.
        if (tap == 0) & (tile % tl.cdiv(B, BLOCK_B) == 0):
            sums = tl.zeros([BLOCK_A], ACC)
            for start in range(first, last, BLOCK_R):
                row = start + tl.arange(0, BLOCK_R)
                mask = (row < last)[:, None] & (a < A)[None, :]
                own = tl.load(coarse + places(row, a, A), mask=mask, other=0.0)
                sums += tl.sum(own.to(ACC), 0)
            tl.store(bias_partial + part * A + a, sums, mask=a < A)


def convolve(
    x: Tensor,
    weight: Tensor,
    config: Mapping[str, Any],
    *,
    stride: int = 1,
    transposed: bool = False,
    bias: Tensor | None = None,
    gelu: bool = False,
    keep: bool = False,
    merge: str = "",
    other: Tensor | None = None,
    norm: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Launch the product: `x` (F, h, w, K) and `weight` as in the module's formulas → (out, second), each (F, ·, ·, N).

    `out` = epilogue(convolution + bias): GELU if `gelu`; then `merge` "add" adds `other`, "slope" multiplies by
    GELU′(other). `second` is what went into the GELU if `keep`, LN(out) for `norm` = (scale, shift), which takes a tile
    as wide as N, else empty.
    """
    config = PRODUCT | dict(config)
    x, weight = x.contiguous(), weight.to(x.dtype).contiguous()
    bias, other = (None if one is None else one.contiguous() for one in (bias, other))
    frames, x_height, x_width, inputs = x.shape
    side, outputs = weight.shape[1], weight.shape[3] if transposed else weight.shape[0]
    height, width = (x_height, x_width) if transposed else (x_height // stride, x_width // stride)
    step = stride if transposed else 1
    out = torch.empty(frames, height * step, width * step, outputs, dtype=x.dtype, device=x.device)
    scale, shift = (None, None) if norm is None else (one.contiguous() for one in norm)
    second = torch.empty_like(out) if keep or norm is not None else out.new_empty(0)
    if out.numel():
        rows, whole = frames * height * width, power_of_two(outputs, 16)
        block_n = min(config["outputs"], whole) if norm is None else whole
        implicit_gemm.launch(
            x.device,
            (math.ceil(rows / config["rows"]) * math.ceil(outputs / block_n), step**2),
            *(x, weight, bias, other, scale, shift, out, second if second.numel() else None),
            *(rows, height, width, x_height, x_width),
            K=inputs,
            N=outputs,
            SIDE=side,
            PAD=PADDING[side],
            STRIDE=stride,
            TRANSPOSED=transposed,
            BIAS=bias is not None,
            GELU=gelu,
            KEEP=keep,
            MERGE=merge,
            NORM=norm is not None,
            EPSILON=EPS,
            BLOCK_M=config["rows"],
            BLOCK_N=block_n,
            BLOCK_K=min(config["inputs"], power_of_two(inputs, 16)),
            **_types(x, config),
        )
    return out, second


@overload
def convolution_weight_gradient(
    coarse: Tensor, fine: Tensor, side: int, stride: int, config: Mapping[str, Any], *, bias: Literal[True]
) -> tuple[Tensor, Tensor]: ...
@overload
def convolution_weight_gradient(
    coarse: Tensor, fine: Tensor, side: int, stride: int, config: Mapping[str, Any], *, bias: Literal[False]
) -> tuple[Tensor, None]: ...
def convolution_weight_gradient(
    coarse: Tensor, fine: Tensor, side: int, stride: int, config: Mapping[str, Any], *, bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Launch the weight gradient: `coarse` (F, h, w, A), `fine` (F, hS, wS, B) → (A, k, k, B), and Σ coarse (A,).

    Plain convolutions pass (gradient, x), transposed ones (x, gradient). Rows are split into chunks whose fp32 partial
    sums are added in one fixed order: no atomics, so the gradient repeats bit by bit.
    """
    config = WEIGHT | dict(config)
    coarse, fine = coarse.contiguous(), fine.contiguous()
    (frames, height, width, a), b = coarse.shape, fine.shape[3]
    wide = torch.promote_types(coarse.dtype, torch.float32)
    rows = frames * height * width
    block_a, block_b = min(config["outputs"], power_of_two(a, 16)), min(config["inputs"], power_of_two(b, 16))
    tiles = math.ceil(a / block_a) * math.ceil(b / block_b) * side**2
    steps = max(1, math.ceil(rows / config["rows"]))
    chunks = min(steps, math.ceil(PROGRAMS_PER_PROCESSOR * processors(coarse) / tiles))
    chunk = math.ceil(steps / chunks) * config["rows"]
    chunks = max(1, math.ceil(rows / chunk))
    partial = torch.empty(chunks, a, side, side, b, dtype=wide, device=coarse.device)
    bias_partial = torch.empty(chunks, a, dtype=wide, device=coarse.device) if bias else None
    implicit_gemm_weight.launch(
        coarse.device,
        (tiles, chunks),
        *(coarse, fine, partial, bias_partial, rows, chunk, height, width, *fine.shape[1:3]),
        A=a,
        B=b,
        SIDE=side,
        PAD=PADDING[side],
        STRIDE=stride,
        BIAS=bias,
        BLOCK_A=block_a,
        BLOCK_B=block_b,
        BLOCK_R=config["rows"],
        **_types(coarse, config),
    )
    return partial.sum(dim=0), None if bias_partial is None else bias_partial.sum(dim=0)


def _types(x: Tensor, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "DOT": dot_type(x.dtype),
        "ACC": compute_type(x.dtype),
        "PRECISION": dot_precision(x.dtype),
        "num_warps": config["num_warps"],
        "num_stages": config["num_stages"],
    }


def convolution_sizes(image: Sequence[int], inputs: int, outputs: int, side: int) -> dict[str, int]:
    """What tables tell convolutions apart by: frames (the bucket's upper bound), channels, kernel size.

    `image` is the shape (F, H, W, …) of the finer of input and output, whose pixels the kernels count in 32 bits.
    """
    frames = FRAME_BUCKETS[-1] + 1
    for bucket in reversed(FRAME_BUCKETS):
        if image[0] <= bucket:
            frames = bucket
    beyond = image[0] * image[1] * image[2] >= MOST_PIXELS
    return {"frames": frames, "inputs": inputs, "outputs": outputs, "kernel": side, "beyond": int(beyond)}


def convolution_refusal(case: dispatch.Case) -> str | None:
    """Why the kernels cannot run this case, or None."""
    if case.sizes["kernel"] not in PADDING:
        return f"steps of {case.sizes['kernel']}×{case.sizes['kernel']} stay with the library"
    if case.sizes["beyond"]:
        return f"the batch has {MOST_PIXELS} pixels or more, which the kernels count in 32 bits"
    return dispatch.triton_refusal(case)
