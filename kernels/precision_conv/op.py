"""The public function of the precision path's 3×3 convolution."""

from torch import Tensor

from ..arguments import check_float, match_shape
from .reference import conv3x3_reference


def check_arguments(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> None:
    """Refuse what no backend can compute, with one line that says what to change."""
    sizes: dict[str, int] = {}
    match_shape(sizes, "x", x, "F H W I")
    match_shape(sizes, "weight", weight, "O 3 3 I")
    match_shape(sizes, "bias", bias, "O")
    check_float("x", x)
    check_float("weight", weight, x.device)
    check_float("bias", bias, x.device)
    if residual is not None:
        match_shape(sizes, "residual", residual, "F H W O")
        check_float("residual", residual, x.device)
        if residual.dtype != x.dtype:
            raise ValueError(f"residual: expected {x.dtype} like x, found {residual.dtype}")


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False, residual: Tensor | None = None) -> Tensor:
    """3×3 convolution of the precision operator with its point-wise epilogue, NHWC throughout.

        y = conv(x, weight) + bias;   y = GELU(y) if gelu;   y = y + residual if a residual is given

    Stride 1 and zero padding 1: the side lengths stay, and taps beyond the border contribute 0.

    Args:
        x: (F, H, W, I), fp64, fp32, bf16 or fp16.
        weight: (O, 3, 3, I), stored contiguous in this order (OHWI), so that optimisers may flatten it; its permuted
            view is exactly the channels-last weight of `F.conv2d`. Any floating dtype, cast to `x`'s.
        bias: (O,), cast to `x`'s dtype.
        gelu: apply the exact GELU after the bias.
        residual: (F, H, W, O) in `x`'s dtype, added last.

    Returns:
        (F, H, W, O) in `x`'s dtype.

    Raises:
        ValueError: wrong rank, shape, dtype or device.
    """
    check_arguments(x, weight, bias, residual)
    return conv3x3_reference(x, weight, bias, gelu, residual)
