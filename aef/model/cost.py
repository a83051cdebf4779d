"""What a model costs: parameters, floating-point operations and activation memory, from its settings alone.

A multiply-add counts as two operations; only matrix products, convolutions and attention are counted, as is usual for
model FLOPs utilisation. Recomputation under checkpointing is not model work and is not counted either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from aef.config import ModelConfig
from aef.data.batch import Batch
from aef.data.statistics import Statistics
from aef.sources import Registry
from aef.timecode import PERIOD_CODE_WIDTH, TIMECODE_WIDTH, UNIT_CODE_WIDTH

from .aef import AEF
from .projectors import KERNEL as PROJECTOR_KERNEL
from .pyramid import level_widths
from .summary import UPSAMPLING_KERNEL

BACKWARD_PER_FORWARD = 2
"""Backward computes a product for the operand and one for the weight of each product of the forward pass."""


def parameters(config: ModelConfig, registry: Registry, inputs: Sequence[str], targets: Sequence[str]) -> int:
    """Number of parameters, text head included. Allocates nothing. Raises SourceError for an unknown source."""
    with torch.device("meta"):
        model = AEF(config, registry, Statistics.identity(registry, inputs), inputs=inputs, targets=targets)
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True)
class Work:
    """What one forward pass processes.

    frames: by input source, dummies included; attended: Σ over segments of their frames squared; pairs: Σ over
    summaries of the frames that they pool; targets: by target source, dummies included.
    """

    side_px: int
    frames: Mapping[str, int]
    attended: int
    summaries: int
    pairs: int
    targets: Mapping[str, int]
    texts: int = 1

    @classmethod
    def of(cls, batch: Batch) -> Work:
        """The work of a batch; reads its offsets, so a batch still on the host is cheaper."""
        return cls(
            side_px=batch.side_px,
            frames={name: len(block.position) for name, block in batch.frames.items()},
            attended=int(batch.cu_frames.diff().long().square().sum()),
            summaries=len(batch.periods),
            pairs=batch.pairs,
            targets={name: len(block.time_ms) for name, block in batch.targets.items()},
            texts=len(batch.text.period_row),
        )


def flops_per_frame(
    config: ModelConfig, registry: Registry, inputs: Sequence[str], side_px: int, segment_frames: int
) -> int:
    """Forward operations of one frame: projector (mean over `inputs` by their frame budget) and encoder.

    Args:
        side_px: side of the crop.
        segment_frames: frames that attend to each other.
    """
    budget = {name: registry[name].frame_budget for name in inputs}
    projector = sum(n * _projector(config, registry[name].decoded_channels, side_px) for name, n in budget.items())
    return round(projector / max(1, sum(budget.values()))) + _encoder(config, side_px, segment_frames)


def forward_flops(config: ModelConfig, registry: Registry, work: Work) -> int:
    """Operations of one forward pass."""
    side, width, dim = work.side_px, config.precision_width, config.embedding_dim
    half = _pixels(side, 2)
    frames = sum(work.frames.values())
    projectors = sum(n * _projector(config, registry[name].decoded_channels, side) for name, n in work.frames.items())
    attention = config.blocks * 4 * _pixels(side, 8) * work.attended * config.time_width
    encoder = frames * _encoder(config, side, 0) + attention
    pooling = 4 * half * config.summary_heads * width * work.pairs + 2 * frames * TIMECODE_WIDTH * width
    summaries = work.summaries * _summary(config, side)
    decoders = sum(
        n * _decoder(config, registry[name].metadata_width, registry[name].decoded_channels, side)
        for name, n in work.targets.items()
    )
    hidden = config.text_width
    text = 2 * hidden * (config.text_dim + PERIOD_CODE_WIDTH + hidden + dim) * work.texts if config.text_dim else 0
    return projectors + encoder + pooling + summaries + decoders + text


def step_flops(config: ModelConfig, registry: Registry, work: Work) -> int:
    """Operations of one forward and backward pass."""
    return (1 + BACKWARD_PER_FORWARD) * forward_flops(config, registry, work)


def activation_bytes_per_frame(config: ModelConfig, side_px: int, *, on_gpu: bool = False) -> int:
    """Memory that the encoder needs per frame between forward and backward, with `config.checkpointing` as it is.

    With A = pixels × width elements, the state of a path in one frame, a block keeps (10 + 2 r) A of the time and of
    the space path (norms, qkv, attention, hidden layer before and after GELU; MLP ratio r) and (2 + 2 n) A of the
    precision path (n convolutions, and the quarter level). A GPU's kernels make a GELU's output again in backward,
    selective checkpointing makes the norms again too, on any device: (10 + r) A and (3 + n) A, then (8 + r) A and (2 +
    n) A. Full checkpointing keeps the states between blocks, and needs one block in full while it recomputes it. The
    first and the last resampling add one precision state, two where 2×2 windows are gathered.
    """
    element = torch.finfo(getattr(torch, config.compute_dtype)).bits // 8
    precision = _pixels(side_px, 2) * config.precision_width
    transformers = _pixels(side_px, 8) * config.time_width + _pixels(side_px, 16) * config.space_width
    ratio, convs = config.mlp_ratio, config.precision_convs
    gelus = (0, 0) if on_gpu else (ratio, convs - 1)  # outputs kept: of the MLPs, of the precision path
    block = (10 + ratio + gelus[0]) * transformers + (3 + convs + gelus[1]) * precision
    chains = (2 if config.pyramid_kernel == 2 else 1) * precision
    kept = {
        "none": config.blocks * block,
        "selective": config.blocks * ((8 + ratio) * transformers + (2 + convs) * precision),
        "full": config.blocks * (transformers + precision) + block,
    }
    return element * (kept[config.checkpointing] + chains)


def _pixels(side_px: int, by: int) -> int:
    """Pixels of a level at 1/`by` of a crop's side, odd sides rounded up on the way."""
    return (-(-side_px // by)) ** 2


def _projector(config: ModelConfig, channels: int, side_px: int) -> int:
    inputs = 2 * channels  # z-scores and validity
    taps = PROJECTOR_KERNEL**2 * inputs + 9 * config.precision_width
    return 2 * _pixels(side_px, 2) * taps * config.precision_width


def _encoder(config: ModelConfig, side_px: int, segment_frames: int) -> int:
    """Operations of one frame in all blocks, the first descent and the last ascent."""
    half, eighth, sixteenth = (_pixels(side_px, by) for by in (2, 8, 16))
    layer = 4 + 2 * config.mlp_ratio
    precision = config.precision_convs * 18 * config.precision_width**2 * half
    time = 2 * eighth * layer * config.time_width**2 + 4 * eighth * segment_frames * config.time_width
    table = 2 * config.time_width * (TIMECODE_WIDTH + 3 * config.time_width)
    space = 2 * sixteenth * layer * config.space_width**2 + 4 * sixteenth**2 * config.space_width
    exchange = _resampling(config, side_px)  # one chain down and one up
    return config.blocks * (precision + time + table + space + exchange) + exchange


def _resampling(config: ModelConfig, side_px: int) -> int:
    """Operations of one chain down and one up, each of three resamplings; from one pixel to one, of a single tap."""
    widths = level_widths(config.precision_width, config.time_width, config.space_width)
    pixels = [_pixels(side_px, by) for by in (2, 4, 8, 16)]
    products = sum(
        coarse * (1 if fine == 1 else config.pyramid_kernel**2) * into * out
        for fine, coarse, into, out in zip(pixels, pixels[1:], widths, widths[1:])
    )
    return 2 * 2 * products


def _summary(config: ModelConfig, side_px: int) -> int:
    """Operations of one summary after pooling, up to its unit vectors."""
    states, width, dim = config.precision_width, config.summary_width, config.embedding_dim
    half = _pixels(side_px, 2)
    query = 2 * width * (PERIOD_CODE_WIDTH + 3 * width + states)
    pixels = half * width * (2 * config.summary_heads * states + 4 * config.mlp_ratio * width)
    return query + pixels + 2 * half * UPSAMPLING_KERNEL**2 * width * dim


def _decoder(config: ModelConfig, metadata: int, channels: int, side_px: int) -> int:
    width, dim = config.decoder_width, config.embedding_dim
    pixels = 2 * side_px**2 * width * (dim + width + channels)
    layers = 2 if config.decoder_gate else 1  # of the context, one row per target
    return pixels + 2 * layers * width * (metadata + UNIT_CODE_WIDTH)
