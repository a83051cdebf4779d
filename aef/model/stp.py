"""The Space-Time-Precision encoder (paper section 2): three operators per block at three resolutions, at the same time.

==========  ==========  =====================================================================
path        resolution  operator
==========  ==========  =====================================================================
precision   L/2         3×3 convolutions
time        L/8         self-attention along time at each pixel, conditioned on the timecode
space       L/16        ViT-like self-attention over each frame
==========  ==========  =====================================================================

Frames are packed: only the time operator mixes them, and only within a segment. All three operators of a block read the
states that the last block's exchange left; the exchange then passes every state to every operator (`pyramid.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aef import kernels
from aef.config import ModelConfig
from aef.timecode import TIMECODE_WIDTH

from .layers import ChannelNorm, Conv3x3, Conv3x3Gelu, Linear, LinearResidual, ResidualMlp, remake_operands
from .pyramid import Ascent, Descent, Exchange, States, level_widths

POSITION_OCTAVES = 6
COMPILED: dict[str, Any] = {"dynamic": False}
GRAPHED: dict[str, Any] = COMPILED | {"mode": "reduce-overhead"}
COMPILED_LENGTHS = 64
"""Lengths for which blocks are compiled before they run as they are."""
COMPILED_KINDS = 3
"""Graphs of a length: the first block is given no norm of its precision state, the last one writes none."""


class PrecisionOperator(nn.Module):
    """x + conv(GELU(conv(LN(x)))) over (F, H, W, C), LayerNorm over the channels of each pixel.

    `normal` is LN(x) where it is known already: the merge that made x writes it with this operator's own norm.
    """

    def __init__(self, width: int, convs: int, *, gain: float) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.inner = nn.ModuleList(Conv3x3Gelu(width, width) for _ in range(convs - 1))
        self.last = Conv3x3(width, width, gain=gain)

    def forward(self, x: Tensor, normal: Tensor | None = None) -> Tensor:
        return self.norm(x, then=self._of_norm) if normal is None else self._of_norm(x, normal)

    def _of_norm(self, x: Tensor, normal: Tensor | kernels.Normalized) -> Tensor:
        y = normal
        for conv in self.inner:
            y = conv(y)
        return self.last(y, residual=x)


class TimeOperator(nn.Module):
    """Pre-norm transformer layer along time, at each pixel of (F, H, W, C) apart.

    The timecode is added after the norm and never enters the residual: (LN(x) + t) W = LN(x) W + t W, so that its share
    of queries, keys and values is one row per frame.
    """

    def __init__(self, width: int, head_width: int, mlp_ratio: int, *, gain: float) -> None:
        super().__init__()
        self.heads, self.head_width = width // head_width, head_width
        self.norm = ChannelNorm(width)
        self.time = Linear(TIMECODE_WIDTH, width)
        # No bias: that of the keys would cancel in the softmax, and the norm's bias serves the other two.
        self.qkv = Linear(width, 3 * width, bias=False)
        self.out = LinearResidual(width, width, gain=gain)
        self.mlp = ResidualMlp(width, mlp_ratio, gain=gain)

    def forward(self, x: Tensor, timecode: Tensor, cu_frames: Tensor, max_frames: int) -> Tensor:
        frames, height, width, channels = x.shape
        x = x.reshape(frames, height * width, channels)  # (F, P, C)
        split = (3, self.heads, self.head_width)
        qkv = self.norm(x, then=self._project).unflatten(-1, split)  # (F, P, 3, H, D)
        table = self.qkv(self.time(timecode)).unflatten(-1, split)  # (F, 3, H, D)
        attended = kernels.time_attention(qkv, table, cu_frames, max_frames)
        x = self.mlp(x, partial(self.out, attended.flatten(-2)))
        return x.view(frames, height, width, channels)

    def _project(self, state: Tensor, normal: Tensor | kernels.Normalized) -> Tensor:
        return self.qkv(normal)


class SpaceOperator(nn.Module):
    """Pre-norm transformer layer over the pixels of each frame of (F, H, W, C)."""

    def __init__(self, width: int, head_width: int, mlp_ratio: int, *, gain: float) -> None:
        super().__init__()
        self.heads, self.head_width = width // head_width, head_width
        self.norm = ChannelNorm(width)
        self.qkv = Linear(width, 3 * width, bias=False)
        self.out = LinearResidual(width, width, gain=gain)
        self.mlp = ResidualMlp(width, mlp_ratio, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        frames, height, width, channels = x.shape
        x = x.reshape(frames, height * width, channels)  # (F, N, C)
        qkv = self.norm(x, then=self._project).unflatten(-1, (3, self.heads, self.head_width))
        x = self.mlp(x, partial(self.out, kernels.space_attention(qkv).flatten(-2)))
        return x.view(frames, height, width, channels)

    def _project(self, state: Tensor, normal: Tensor | kernels.Normalized) -> Tensor:
        return self.qkv(normal)


class Position(nn.Module):
    """Where a cell lies in the crop, added to the space path's first state.

    Sines and cosines of the cell's offset from the crop's centre, at wavelengths of 2 to 64 cells, through a learned
    projection: defined for every side length, the same for the same offset whatever the side.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = Linear(4 * POSITION_OCTAVES, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(position_code(x.shape[1], x.shape[2], x))


def position_code(height: int, width: int, like: Tensor) -> Tensor:
    """(height, width, 4 · POSITION_OCTAVES) in `like`'s type and on its device."""
    turns = 0.5 ** torch.arange(1, POSITION_OCTAVES + 1, device=like.device)
    axes = [torch.arange(n, device=like.device) - (n - 1) / 2 for n in (height, width)]
    angles = [2 * math.pi * axis[:, None] * turns for axis in axes]  # (n, octaves)
    rows, columns = (torch.cat((angle.sin(), angle.cos()), dim=-1) for angle in angles)
    code = torch.cat((rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)), dim=-1)
    return code.to(like.dtype)


class Block(nn.Module):
    """One Space-Time-Precision block: the three operators on the same states, then the exchange."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # Residual branches start small enough that the sum over all blocks keeps the scale of the states.
        gain = (2 * config.blocks) ** -0.5
        widths = level_widths(config.precision_width, config.time_width, config.space_width)
        self.precision = PrecisionOperator(config.precision_width, config.precision_convs, gain=gain)
        self.time = TimeOperator(config.time_width, config.head_width, config.mlp_ratio, gain=gain)
        self.space = SpaceOperator(config.space_width, config.head_width, config.mlp_ratio, gain=gain)
        self.exchange = Exchange(widths, config.pyramid_kernel)

    def forward(
        self,
        precision: Tensor,
        time: Tensor,
        space: Tensor,
        normal: Tensor | None,
        timecode: Tensor,
        cu_frames: Tensor,
        max_frames: int,
        reader: ChannelNorm | None = None,
    ) -> States:
        """`reader`: the norm with which the next block reads the precision state, to be written with it."""
        operated = States(
            self.precision(precision, normal),
            self.time(time, timecode, cu_frames, max_frames),
            self.space(space),
        )
        return self.exchange(operated, reader)


class Encoder(nn.Module):
    """Space-Time-Precision blocks between the first descent and the last ascent of the pyramid."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = level_widths(config.precision_width, config.time_width, config.space_width)
        self.descent = Descent(widths, config.pyramid_kernel)
        self.position = Position(config.space_width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.ascent = Ascent(widths, config.pyramid_kernel)
        self.checkpointing, self.graphs = config.checkpointing, config.cuda_graphs
        if self.checkpointing == "selective":
            remake_operands(self.blocks)
        self.compiled = config.compile or self.graphs
        if self.compiled:
            # Once per length, which Inductor cannot take for a variable (it fails to order strides of 32·F·P): with
            # `data.frame_bucket` lengths are few, but more than torch's limit of recompilations.
            graphs = COMPILED_LENGTHS * COMPILED_KINDS
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, graphs)
            for block in self.blocks:
                block.compile(**(GRAPHED if self.graphs else COMPILED))

    def forward(self, precision: Tensor, timecode: Tensor, cu_frames: Tensor, max_frames: int) -> Tensor:
        """Project, exchange, repeat.

        Args:
            precision: (F, L/2, L/2, C_P), the projected frames.
            timecode: (F, TIMECODE_WIDTH) of each frame.
            cu_frames, max_frames: the segments within which frames see each other.

        Returns:
            (F, L/2, L/2, C_P): one map per frame, like the input.
        """
        if self.graphs and torch.is_grad_enabled():
            torch.compiler.cudagraph_mark_step_begin()  # what the last step's graphs wrote may be overwritten
        states = self.descent(precision)
        states = states._replace(space=self.position(states.space))
        timecode = timecode.to(precision.dtype)
        # A merge writes the next block's norm where backward keeps that anyway. Where it is recomputed, or nothing is
        # kept, the block that reads it makes it, and it lives no longer than there.
        keeping = self.checkpointing == "none" and torch.is_grad_enabled()
        readers = [block.precision.norm if keeping else None for block in self.blocks[1:]]
        for block, reader in zip(self.blocks, [*readers, None]):
            run = self._remembering(block)
            states = run(*states, timecode, cu_frames, max_frames, reader)
        return self.ascent(states)

    def _remembering(self, block: nn.Module) -> Callable[..., States]:
        """The block, with as much recomputation in backward as `model.checkpointing` asks for."""
        if not torch.is_grad_enabled():
            # Compiled for the lengths of training; maps and evaluation have others, each for a few calls.
            return block.forward if self.compiled else block
        return partial(checkpoint, block, use_reentrant=False) if self.checkpointing == "full" else block
