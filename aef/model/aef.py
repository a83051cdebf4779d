"""AlphaEarth Foundations, the network (Brown et al. 2025, arXiv:2507.22291). Start here.

    frames of every source ─ projectors ─► L/2 ─ Space-Time-Precision blocks ─► one map per frame at L/2
                                                                                       │  one query per valid period
    bands ◄─ decoder per source ◄─ vMF sample ◄─ unit vectors at L ◄─ upsampling ◄─ attention pooling over time

Shapes: F packed frames, S segments (a sample's teacher, then its student), Q valid periods, N targets of a source, L the
crop's side in pixels of 10 m, D = 64. Memory is NHWC throughout. Teacher and student are segments of one forward pass.

Every module runs at every step, in the same order, whatever the batch holds (ZeRO needs it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aef.config import ModelConfig
from aef.data.batch import Batch
from aef.data.statistics import Statistics
from aef.sources import Registry
from aef.timecode import encode_time, position_in_period

from .bottleneck import Bottleneck
from .decoders import Decoder
from .layers import at_least_float
from .projectors import Projectors
from .stp import Encoder
from .summary import Head, Summary
from .text import INITIAL_LOGIT_SCALE, TextHead


@dataclass
class Output:
    """What the objective reads.

    mean (Q, L, L, D) fp32 unit vectors, one embedding field per row of `Batch.periods`; reconstructions by source
    (N, L, L, decoded channels) fp32, in standardised units (logits of a categorical source), on the crop's 10 m grid
    even for coarse sources; text (K, D) fp32 unit vectors; logit_scale (1,), the logarithm of 1 / temperature.
    """

    mean: Tensor
    reconstructions: dict[str, Tensor]
    text: Tensor
    logit_scale: Tensor


class AEF(nn.Module):
    """Projectors, encoder, summary, bottleneck, decoders and text head.

    Args:
        config: sizes (`aef.config`).
        registry: entries of all sources named below.
        statistics: normalisation of the input sources.
        inputs, targets: sources that are encoded and decoded.
        clip_sigma: z-scores are clipped at this many standard deviations.

    Raises:
        SourceError: an unknown source.
        StatisticsError: an input source has no statistics, or those of other bands.
        ValueError: no input source.
    """

    def __init__(
        self,
        config: ModelConfig,
        registry: Registry,
        statistics: Statistics,
        *,
        inputs: Sequence[str],
        targets: Sequence[str],
        clip_sigma: float = 6.0,
    ) -> None:
        super().__init__()
        if not inputs:
            raise ValueError("inputs: expected at least one source to encode, found none")
        self.config = config
        width, dim = config.precision_width, config.embedding_dim
        self.projectors = Projectors(registry, inputs, statistics, width, clip_sigma)
        self.encoder = Encoder(config)
        self.summary = Summary(config)
        self.head = Head(config.summary_width, dim)
        self.bottleneck = Bottleneck(config.kappa)
        self.decoders = nn.ModuleDict(
            {name: Decoder(registry[name], dim, config.decoder_width, gated=config.decoder_gate) for name in targets}
        )
        self.text_head = TextHead(config) if config.text_dim else None

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type of the operands of products and of the states between blocks.

        `model.compute_dtype` while parameters are fp32; an engine that casts the parameters has decided for itself.
        """
        own = self.summary.seed.dtype
        return getattr(torch, self.config.compute_dtype) if own == torch.float32 else own

    def forward(self, batch: Batch) -> Output:
        """Embed every period of the batch and decode its targets: from a sample in training, from the mean in eval."""
        mean = self.embed(batch)
        text, logit_scale = self._embed_text(batch)
        return Output(mean, self._decode(mean, batch), text, logit_scale)

    def embed(self, batch: Batch) -> Tensor:
        """(Q, L, L, D) fp32: the mean directions of every row of `batch.periods`; nothing is decoded."""
        dtype = self.compute_dtype
        start = batch.support_start_ms[segment_of_frames(batch)]
        timecode = encode_time(batch.frame_time_ms, start).to(at_least_float(dtype))
        states = self.projectors(batch.frames, batch.total_frames, dtype)
        states = self.encoder(states, timecode, batch.cu_frames, batch.max_frames)
        return self.head(self.summary(states, timecode, batch))

    def _decode(self, mean: Tensor, batch: Batch) -> dict[str, Tensor]:
        pixels = mean.flatten(1, 2)  # (Q, P, D)
        blocks = {name: batch.targets[name] for name in self.decoders}
        if not blocks:
            return {}
        # One draw for all sources: fewer, larger operations.
        row, sample, slot = (
            torch.cat([getattr(block, field) for block in blocks.values()])
            for field in ("period_row", "sample", "slot")
        )
        drawn = self.bottleneck(pixels[row], batch.sample_hash[sample], slot, batch.key)
        drawn = drawn.split([block.time_ms.shape[0] for block in blocks.values()])
        reconstructions = {}
        for (name, block), embedding in zip(blocks.items(), drawn):
            position = position_in_period(block.time_ms, batch.periods[block.period_row])
            decoded = self.decoders[name](embedding, block.metadata, position, self.compute_dtype)
            reconstructions[name] = decoded.unflatten(1, mean.shape[1:3])
        return reconstructions

    def _embed_text(self, batch: Batch) -> tuple[Tensor, Tensor]:
        text = batch.text
        if self.text_head is None:
            absent = torch.zeros(text.vector.shape[0], self.config.embedding_dim, device=text.vector.device)
            return absent, torch.full((1,), INITIAL_LOGIT_SCALE, device=text.vector.device)
        return self.text_head(text.vector, batch.periods[text.period_row], self.compute_dtype)


def segment_of_frames(batch: Batch) -> Tensor:
    """(F,) rows of `support_start_ms`; filler frames, the last segment, borrow that of the last sample."""
    return batch.frame_segment.clamp(max=batch.support_start_ms.shape[0] - 1)
