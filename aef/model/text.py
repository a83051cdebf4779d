"""The text head: a frozen language model's vector and a valid period → the embedding space.

Paper section 2 and 4.5: text is aligned with the embedding of its place and period by a contrastive loss; an MLP maps
the language model's vector, together with the period, to a direction. The language model itself is not part of the
network (`aef/text/`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from aef.config import ModelConfig
from aef.timecode import PERIOD_CODE_WIDTH, encode_period

from .layers import Linear, LinearGelu, at_least_float
from .summary import unit

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
LARGEST_LOGIT_SCALE = math.log(100)


class TextHead(nn.Module):
    """Text vector ⊕ period code → a unit vector, by an MLP of two hidden layers; and the loss's learnt temperature."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.text_width
        self.first = LinearGelu(config.text_dim + PERIOD_CODE_WIDTH, width)
        self.second = LinearGelu(width, width)
        self.out = Linear(width, config.embedding_dim)
        self.logit_scale = nn.Parameter(torch.full((1,), INITIAL_LOGIT_SCALE))

    def forward(self, vector: Tensor, periods: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """vector (K, text_dim), valid periods (K, 2) int64 → unit vectors (K, D) and logit scale (1,), fp32.

        A period's code is relative to its own start: it says length and season. The start of the support belongs to
        the frames, not to the words; told of it, the head matches places by it (docs/results/text.md).
        """
        x = torch.cat((vector, encode_period(periods, periods[:, 0])), dim=-1).to(dtype)
        scale = self.logit_scale.to(at_least_float(self.logit_scale.dtype))
        return unit(self.out(self.second(self.first(x)))), clip_scale(scale)


def clip_scale(scale: Tensor) -> Tensor:
    """min(scale, ln 100). Beyond the limit only gradients that lead back pass, so that it is no trap."""
    passing = scale + 0.0
    if passing.requires_grad:
        beyond = scale.detach() > LARGEST_LOGIT_SCALE
        passing.register_hook(lambda gradient: torch.where(beyond & (gradient < 0), 0.0, gradient))
    return passing + (scale.clamp(max=LARGEST_LOGIT_SCALE) - scale).detach()
