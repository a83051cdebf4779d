"""Implicit decoders: one per source, a pixel-wise MLP from an embedding to what the sensor would have seen at a time.

Paper section 3: two hidden layers of width 512 applied to every pixel of the L × L grid; the input is the sampled
embedding ⊕ sensor metadata ⊕ the sinusoidal code of the target time normalised to [0, 1) inside the summary period.

With `gated` (ours, off in `large`) metadata and time also multiply what the first layer makes of the embedding. What
was seen at time x is close to Σ_k w_k(x) · v_k, an interpolation between parts v_k of the embedding; a sum of the two
inputs has to learn that product from its hidden layers (docs/results/learning.md).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aef.sources import MetadataField, Source
from aef.timecode import UNIT_CODE_WIDTH, encode_unit

from .layers import Linear, LinearGelu, at_least_float, multiply


class Decoder(nn.Module):
    """Embedding, sensor metadata and time → the bands of one source (logits for a categorical one), pixel by pixel."""

    def __init__(self, source: Source, embedding_dim: int, width: int, *, gated: bool = False) -> None:
        super().__init__()
        self.metadata = source.metadata
        context = source.metadata_width + UNIT_CODE_WIDTH
        # The first layer acts on embedding ⊕ context; its context part is the same for all pixels of a target.
        self.embedding = Linear(embedding_dim, width, bias=False)
        self.context = Linear(context, width)
        self.gate = Linear(context, width) if gated else None
        self.hidden = LinearGelu(width, width)
        self.out = Linear(width, source.decoded_channels)

    def forward(self, embedding: Tensor, metadata: Tensor, position: Tensor, dtype: torch.dtype) -> Tensor:
        """Decode N targets.

        Args:
            embedding: (N, P, D), a sample or a mean direction per pixel.
            metadata: (N, M) in the registry's order, NaN where missing.
            position: (N,) the target's time inside its summary period, in [0, 1).
            dtype: type of the operands.

        Returns:
            (N, P, C) fp32, in standardised units.
        """
        context = torch.cat((encode_metadata(self.metadata, metadata), encode_unit(position)), dim=-1)
        # A unit vector's components are of order 1/√D; the layer wants inputs of order 1, like those of the context.
        scaled = embedding * math.sqrt(embedding.shape[-1])
        first = self.embedding(scaled.to(dtype))
        context = context.to(dtype)[:, None]
        if self.gate is not None:
            first = first * (1 + self.gate(context))
        first = first + self.context(context)
        out = multiply(self.hidden(F.gelu(first)), self.out.weight).to(at_least_float(dtype))
        # Added here, not by the product: as part of a flat buffer a bias of odd width is misaligned, and cuBLAS's
        # products with a bias do not look.
        assert self.out.bias is not None
        return out + self.out.bias.to(out.dtype)


def encode_metadata(fields: tuple[MetadataField, ...], values: Tensor) -> Tensor:
    """(N, M) → (N, Σ encoded widths): sine and cosine of an angle, a flag or value as it is, then "missing" as 0 or 1.

    A missing value is NaN and enters as 0.
    """
    columns = []
    for field, value in zip(fields, values.unbind(-1)):
        missing = value.isnan()
        if field.kind == "angle_deg":
            angle = torch.deg2rad(value)
            columns += [torch.where(missing, 0, angle.sin()), torch.where(missing, 0, angle.cos())]
        else:
            columns.append(torch.where(missing, 0, value))
        columns.append(missing.to(values.dtype))
    return torch.stack(columns, dim=-1) if columns else values.new_zeros(values.shape[0], 0)
