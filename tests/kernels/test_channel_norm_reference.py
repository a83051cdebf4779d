"""The references of the channel LayerNorm, alone and behind a residual branch, against `F.layer_norm`."""

import pytest
import torch
import torch.nn.functional as F

from aef.kernels import Normalized, channel_norm, conv3x3, norm_linear, residual_norm
from aef.kernels.channel_norm.reference import channel_norm_reference, residual_norm_reference


@pytest.mark.parametrize("function", [channel_norm_reference, channel_norm])
@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 7, 48), (1,), (0, 8)], ids=str)
def test_equals_layer_norm_forward_and_backward(function, shape):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64).requires_grad_()
    weight, bias = (torch.randn(shape[-1], dtype=torch.float64).requires_grad_() for _ in range(2))
    out = function(x, weight, bias)
    expected = F.layer_norm(x, shape[-1:], weight, bias, eps=1e-6)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn_like(out)
    leaves = (x, weight, bias)
    for one, other in zip(
        torch.autograd.grad(out, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent)
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("function", [residual_norm_reference, residual_norm])
def test_behind_a_residual_branch_both_the_state_and_its_norm_are_given(function):
    torch.manual_seed(0)
    x, residual = (torch.randn(2, 7, 16, dtype=torch.float64).requires_grad_() for _ in range(2))
    bias, scale, shift = (torch.randn(16, dtype=torch.float64).requires_grad_() for _ in range(3))
    leaves = (x, bias, residual, scale, shift)
    found, state = function(*leaves), x + bias + residual
    expected = (state, F.layer_norm(state, (16,), scale, shift, eps=1e-6))
    cotangents = [torch.randn_like(state) for _ in range(2)]
    gradients = (torch.autograd.grad(outputs, leaves, cotangents) for outputs in (found, expected))
    for one, other in zip((*found, *next(gradients)), (*expected, *next(gradients)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_statistics_of_half_precision_input_are_kept_in_fp32():
    x = torch.full((1, 512), 100.0, dtype=torch.bfloat16)
    x[0, ::2] = 100.5
    out = channel_norm(x, torch.ones(512), torch.zeros(512))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out[0, :2].float(), torch.tensor([1.0, -1.0]), rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.zeros(2, 8), torch.ones(7), torch.zeros(8)), "weight: expected C = 8"),
        ((torch.zeros(2, 8, dtype=torch.int32), torch.ones(8), torch.zeros(8)), "x: expected a floating-point"),
        ((torch.zeros(()), torch.ones(8), torch.zeros(8)), "x: expected at least 1 dimensions"),
        ((torch.zeros(2, 0), torch.ones(0), torch.zeros(0)), "x: expected at least one channel"),
    ],
)
def test_bad_input_is_refused_with_a_clear_line(arguments, words):
    with pytest.raises(ValueError, match=words):
        channel_norm(*arguments)


def test_a_norm_of_another_width_than_the_state_is_refused():
    x, bias = torch.zeros(2, 8), torch.zeros(8)
    with pytest.raises(ValueError, match="weight: expected C = 8"):
        residual_norm(x, bias, x, torch.ones(7), bias)
    with pytest.raises(ValueError, match="residual: expected"):
        residual_norm(x, bias, x[:1], bias, bias)
    with pytest.raises(ValueError, match="residual: expected a tensor, found NoneType"):
        residual_norm(x, bias, None, bias, bias)


def test_a_product_of_something_else_than_the_norm_of_the_state_is_refused():
    x, bias, weight = torch.zeros(2, 4, 4, 8), torch.zeros(8), torch.zeros(8, 8)
    with pytest.raises(ValueError, match="x: expected a Normalized, found Tensor"):
        norm_linear(x, weight)
    for product in (
        lambda normal: norm_linear(normal, weight),
        lambda normal: conv3x3(normal, weight[:, None, None].expand(8, 3, 3, 8), bias),
    ):
        with pytest.raises(ValueError, match=r"x\.value: expected shape \(1, 4, 4, 8\) like x\.state"):
            product(Normalized(x, x[:1], bias, bias))
