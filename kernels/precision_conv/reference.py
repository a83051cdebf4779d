"""The specification of the 3×3 convolution in plain PyTorch. Frozen: every fast path is judged against it."""

import torch.nn.functional as F
from torch import Tensor


def conv3x3_reference(
    x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False, residual: Tensor | None = None
) -> Tensor:
    """`conv(x) + bias`, then optionally GELU, then optionally `+ residual`; stride 1, zero padding 1.

    `x` (F, H, W, I), `weight` (O, 3, 3, I), `bias` (O,) → (F, H, W, O). The permuted views below *are* channels-last.
    """
    image, kernel = x.permute(0, 3, 1, 2), weight.to(x.dtype).permute(0, 3, 1, 2)
    y = F.conv2d(image, kernel, bias.to(x.dtype), padding=1).permute(0, 2, 3, 1)  # (F, H, W, O)
    if gelu:
        y = F.gelu(y)
    return y if residual is None else y + residual
