"""The reference of the 3×3 convolution against nine shifted matrix products, written independently."""

import pytest
import torch
import torch.nn.functional as F

from aef.kernels import conv3x3
from aef.kernels.precision_conv.reference import conv3x3_reference


def make_inputs(frames=2, height=5, width=7, channels=6, out=4, dtype=torch.float64):
    torch.manual_seed(0)
    x = torch.randn(frames, height, width, channels, dtype=dtype).requires_grad_()
    weight = torch.randn(out, 3, 3, channels, dtype=dtype).requires_grad_()
    bias = torch.randn(out, dtype=dtype).requires_grad_()
    return x, weight, bias, torch.randn(frames, height, width, out, dtype=dtype).requires_grad_()


def shifted_products(x, weight, bias):
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    height, width = x.shape[1:3]
    taps = [(i, j) for i in range(3) for j in range(3)]
    return bias + sum(padded[:, i : i + height, j : j + width] @ weight[:, i, j].T for i, j in taps)


@pytest.mark.parametrize("function", [conv3x3_reference, conv3x3])
@pytest.mark.parametrize("gelu", [False, True], ids=["linear", "gelu"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("sides", [(5, 7), (1, 1), (2, 1)], ids=str)
def test_equals_shifted_products_forward_and_backward(function, gelu, with_residual, sides):
    x, weight, bias, residual = make_inputs(height=sides[0], width=sides[1])
    leaves = (x, weight, bias, residual) if with_residual else (x, weight, bias)
    out = function(x, weight, bias, gelu, residual if with_residual else None)
    expected = shifted_products(x, weight, bias)
    expected = F.gelu(expected) if gelu else expected
    expected = expected + residual if with_residual else expected
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn_like(out)
    for one, other in zip(
        torch.autograd.grad(out, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent)
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_the_weight_view_is_channels_last_and_the_result_contiguous():
    x, weight, bias, _ = make_inputs()
    assert weight.permute(0, 3, 1, 2).is_contiguous(memory_format=torch.channels_last)
    assert conv3x3(x, weight, bias).is_contiguous()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": torch.zeros(4, 3, 3, 5)}, "weight: expected I = 6"),
        ({"weight": torch.zeros(4, 6, 3, 3)}, "weight: expected 3 = 3 in|weight: expected 3"),
        ({"bias": torch.zeros(3)}, "bias: expected O = 4"),
        ({"residual": torch.zeros(2, 5, 7, 4)}, "residual: expected torch.float64"),
        ({"x": torch.zeros(5, 7, 6)}, "x: expected 4 dimensions"),
    ],
)
def test_bad_input_is_refused_with_a_clear_line(change, words):
    x, weight, bias, residual = make_inputs()
    with pytest.raises(ValueError, match=words):
        conv3x3(**{"x": x, "weight": weight, "bias": bias, "residual": residual} | change)
