"""The specification of the pyramid exchange in plain PyTorch. Frozen: every fast path is judged against it."""

import torch.nn.functional as F
from torch import Tensor

from ..channel_norm.reference import channel_norm_reference

DOWN_PADDING = {2: 0, 3: 1, 4: 1}
UP_PADDING = {2: (0, 0), 3: (1, 1), 4: (1, 0)}  # kernel size → (padding, output padding)


def exchange_down_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Stride-2 convolution: `x` (F, H, W, I), `weight` (O, k, k, I), `bias` (O,) → (F, H/2, W/2, O)."""
    image, kernel = x.permute(0, 3, 1, 2), weight.to(x.dtype).permute(0, 3, 1, 2)
    padding = DOWN_PADDING[weight.shape[1]]
    return F.conv2d(image, kernel, bias.to(x.dtype), stride=2, padding=padding).permute(0, 2, 3, 1)


def exchange_up_add_reference(x: Tensor, weight: Tensor, bias: Tensor, into: Tensor | None) -> Tensor:
    """`into` (None: 0) + stride-2 transposed convolution of `x`.

    `x` (F, h, w, I), `weight` (I, k, k, O), `bias` (O,), `into` (F, 2h, 2w, O) → like `into`.
    """
    image, kernel = x.permute(0, 3, 1, 2), weight.to(x.dtype).permute(0, 3, 1, 2)
    padding, output_padding = UP_PADDING[weight.shape[1]]
    up = F.conv_transpose2d(image, kernel, bias.to(x.dtype), stride=2, padding=padding, output_padding=output_padding)
    up = up.permute(0, 2, 3, 1)
    return up if into is None else into + up


def exchange_up_norm_reference(
    x: Tensor, weight: Tensor, bias: Tensor, into: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """`state = exchange_up_add(x, weight, bias, into)` and `channel_norm(state, scale, shift)`."""
    state = exchange_up_add_reference(x, weight, bias, into)
    return state, channel_norm_reference(state, scale, shift)
