"""From a sequence of frames to one embedding field per valid period.

Paper section 2: after the blocks, time-axial attention pooling with a single query derived from the sinusoidal code of
the valid period [t_s, t_e) summarises the sequence at every pixel; the map is upsampled from L/2 to L with a learned
kernel, and its unit vectors are the mean directions of the bottleneck. Any number of periods is pooled from one pass of
the encoder.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from aef import kernels
from aef.config import ModelConfig
from aef.data.batch import Batch
from aef.timecode import DAY_MS, PERIOD_CODE_WIDTH, TIMECODE_WIDTH, encode_period

from .layers import ChannelNorm, Linear, LinearGelu, ResidualMlp, Up, at_least_float, new_weight

UPSAMPLING_KERNEL = 4
RESIDUAL_GAIN = 0.1
NORM_EPS = 1e-8


class Summary(nn.Module):
    """Multi-head attention pooling over time, per pixel, with one query per valid period.

    Query: learned vector + MLP(code(t_s) ⊕ code(t_e)). Keys and values: LN(state) + timecode. The query is the same at
    every pixel, so the key projection is absorbed into it; value and output projection are one matrix, applied to what
    all heads pooled. The states are then read once for all periods and heads. The query is also the residual stream, so
    that a period without a frame is summarised by what the model knows of the period alone; it enters small, because at
    the start it is one vector for all pixels and would drown what tells them apart (docs/results/learning.md).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        states, width = config.precision_width, config.summary_width
        self.heads = config.summary_heads
        self.norm = ChannelNorm(states)
        self.time = Linear(TIMECODE_WIDTH, states)
        self.seed = new_weight(width, fan_in=1)
        self.period_hidden = LinearGelu(PERIOD_CODE_WIDTH, width)
        self.period = Linear(width, width)
        self.to_query = Linear(width, width)
        self.key = new_weight(self.heads, width // self.heads, states, fan_in=states)
        self.out = Linear(self.heads * states, width)
        self.residual = Linear(width, width, gain=RESIDUAL_GAIN)
        self.mlp = ResidualMlp(width, config.mlp_ratio)
        self.bias = PeriodBias(self.heads) if config.period_bias else None

    def forward(self, states: Tensor, timecode: Tensor, batch: Batch) -> Tensor:
        """states (F, h, w, C), timecode (F, TIMECODE_WIDTH) → (Q, h, w, W), the summaries of `batch.periods`."""
        frames, height, width, channels = states.shape
        normal = self.norm(states).reshape(frames, height * width, channels)
        token = self._tokens(batch)  # (Q, C)
        pooled = kernels.temporal_pooling(
            normal,
            self.time(timecode),
            self._absorb(token),
            None if self.bias is None else self.bias(batch),
            batch.period_segment,
            batch.cu_frames,
            batch.max_frames,
        )  # (Q, P, H, C)
        summary = self.residual(token).to(pooled.dtype)[:, None] + self.out(pooled.flatten(-2))  # (Q, P, W)
        return self.mlp(summary).unflatten(1, (height, width))

    def _tokens(self, batch: Batch) -> Tensor:
        start = batch.support_start_ms[batch.period_segment.long()]
        code = encode_period(batch.periods, start).to(at_least_float(self.seed.dtype))
        return self.seed.to(code.dtype) + self.period(self.period_hidden(code))

    def _absorb(self, token: Tensor) -> Tensor:
        """(Q, W) → (Q, H, C): ⟨W_q token, W_k x⟩ / √D = ⟨W_kᵀ W_q token / √D, x⟩ per head."""
        query = self.to_query(token).unflatten(-1, self.key.shape[:2])  # (Q, H, D)
        return torch.einsum("qhd,hdc->qhc", query, self.key.to(query.dtype)) / math.sqrt(query.shape[-1])


class PeriodBias(nn.Module):
    """What the pooling logits gain by where a frame lies relative to the valid period; one row per (period, frame).

        −exp(s_h) · |t − (t_s + c_h L)| / √((a L)² + (8 d)²)  +  MLP(relative position)

    L is the period's length; heads start with their centres c_h spread over −0.05…1.05, so that each looks at its own
    part of the period and the softmax interpolates between the frames near it. a is half the distance between two
    centres: with wider kernels than that, heads smooth a year away that their number could resolve
    (docs/results/learning.md). Not in the paper (docs/fidelity.md).
    """

    HIDDEN = 32
    REACH = 0.05

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.zeros(heads))
        first, last = -self.REACH, 1 + self.REACH
        self.centre = nn.Parameter(torch.linspace(first, last, heads) if heads > 1 else torch.full((1,), 0.5))
        self.width = (last - first) / max(heads - 1, 1) / 2
        self.hidden = LinearGelu(4, self.HIDDEN)
        self.out = Linear(self.HIDDEN, heads, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, batch: Batch) -> Tensor:
        """(pairs, H) in the parameters' type, fp32 at least: each period's frames, period by period."""
        row, frame = pair_rows(batch)
        dtype = at_least_float(self.sharpness.dtype)
        start, end = (batch.periods[row] - batch.frame_time_ms[frame, None]).to(dtype).div(DAY_MS).unbind(-1)
        length = end - start  # days, like the rest
        width = torch.sqrt((self.width * length) ** 2 + 8.0**2)
        offset = (-start[:, None] - self.centre.to(dtype) * length[:, None]) / width[:, None]
        within = -start / length
        outside = (within - within.clamp(0, 1)) * length / width
        features = torch.stack((within.clamp(-1, 2), outside.clamp(-8, 8), length / 365, width / 30), dim=-1)
        return self.out(self.hidden(features)) - self.sharpness.to(dtype).exp() * offset.abs()


def pair_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """Of every (period, frame of its segment): the period's row and the frame's place in the sequence, (pairs,) each."""
    offsets = batch.cu_frames.long()
    segment = batch.period_segment.long()
    lengths = (offsets[1:] - offsets[:-1])[segment]  # (Q,)
    row = torch.repeat_interleave(lengths, output_size=batch.pairs)
    first = lengths.cumsum(0) - lengths
    place = torch.arange(batch.pairs, device=row.device) - first[row]
    return row, offsets[segment][row] + place


class Head(nn.Module):
    """Summaries at L/2 → mean directions at L: upsampling with a learned kernel, unit length in fp32."""

    def __init__(self, width: int, embedding_dim: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.up = Up(width, embedding_dim, UPSAMPLING_KERNEL, flat=True)

    def forward(self, summary: Tensor) -> Tensor:
        """(Q, L/2, L/2, C) → (Q, L, L, D), unit vectors."""
        return unit(self.up(self.norm(summary)))


def unit(x: Tensor) -> Tensor:
    """x / ‖x‖ over the last dimension, in fp32 at least; a zero vector stays zero and has a finite gradient."""
    wide = x.to(at_least_float(x.dtype))
    return wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + NORM_EPS)
