"""The public functions of the pyramid exchange."""

from torch import Tensor

from ..arguments import check_float, match_shape
from .eager import down_by_product, up_by_product
from .reference import DOWN_PADDING, exchange_down_reference, exchange_up_add_reference


def _check_tensors(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        check_float(name, tensor, x.device)
    if weight.shape[1] not in DOWN_PADDING or weight.shape[1] != weight.shape[2]:
        raise ValueError(f"weight: expected a kernel of 2×2, 3×3 or 4×4, found shape {tuple(weight.shape)}")


def check_down_arguments(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Refuse what no backend can compute, with one line that says what to change."""
    sizes: dict[str, int] = {}
    match_shape(sizes, "x", x, "F H W I")
    match_shape(sizes, "weight", weight, "O k k I")
    match_shape(sizes, "bias", bias, "O")
    _check_tensors(x, weight, bias)
    if sizes["H"] % 2 or sizes["W"] % 2:
        raise ValueError(f"x: expected even side lengths to halve, found shape {tuple(x.shape)}")


def check_up_arguments(x: Tensor, weight: Tensor, bias: Tensor, into: Tensor | None) -> None:
    """Refuse what no backend can compute, with one line that says what to change."""
    sizes: dict[str, int] = {}
    match_shape(sizes, "x", x, "F h w I")
    match_shape(sizes, "weight", weight, "I k k O")
    match_shape(sizes, "bias", bias, "O")
    _check_tensors(x, weight, bias)
    if into is None:
        return
    match_shape(sizes, "into", into, "F 2h 2w O")
    check_float("into", into, x.device)
    if sizes["2h"] != 2 * sizes["h"] or sizes["2w"] != 2 * sizes["w"]:
        raise ValueError(f"into: expected twice the sides of x {tuple(x.shape)}, found shape {tuple(into.shape)}")
    if into.dtype != x.dtype:
        raise ValueError(f"into: expected {x.dtype} like x, found {into.dtype}")


def exchange_down(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One learned step down the pyramid: a stride-2 convolution with a 2×2 (padding 0), 3×3 or 4×4 (padding 1) kernel.

    `x` (F, H, W, I) with even H and W; `weight` (O, k, k, I), contiguous OHWI like `conv3x3`'s; `bias` (O,) →
    (F, H/2, W/2, O) in `x`'s dtype. Parameters of any floating dtype, cast to `x`'s.

    Raises:
        ValueError: wrong rank, shape, kernel size, dtype or device; an odd side.
    """
    check_down_arguments(x, weight, bias)
    if weight.shape[1] == 2:
        return down_by_product(x, weight, bias)
    return exchange_down_reference(x, weight, bias)


def exchange_up_add(x: Tensor, weight: Tensor, bias: Tensor, into: Tensor | None = None) -> Tensor:
    """One learned step up the pyramid, merged: `into + transposed_conv(x)`, stride 2.

    Kernels: 2×2, 3×3 (padding 1, output padding 1) or 4×4 (padding 1), each of which doubles the sides exactly.

    Args:
        x: (F, h, w, I), the coarse state.
        weight: (I, k, k, O), stored contiguous in this order (input channels, rows, columns, output channels); its
            permuted view (I, O, k, k) is exactly the channels-last weight of `F.conv_transpose2d`. Tap (i, j) of input
            pixel (y, x) lands on output pixel (2y + i − padding, 2x + j − padding).
        bias: (O,).
        into: (F, 2h, 2w, O), the fine state, in `x`'s dtype; not modified. None where a level holds no state of its
            own (the quarter resolution): the transposed convolution alone.

    Returns:
        (F, 2h, 2w, O) in `x`'s dtype.

    Raises:
        ValueError: wrong rank, shape, kernel size, dtype or device; sides of `into` that are not twice those of `x`.
    """
    check_up_arguments(x, weight, bias, into)
    if weight.shape[1] == 2:
        return up_by_product(x, weight, bias, into)
    return exchange_up_add_reference(x, weight, bias, into)
