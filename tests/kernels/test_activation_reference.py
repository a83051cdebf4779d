"""The references of the point-wise epilogues against `torch.nn.functional`."""

import pytest
import torch
import torch.nn.functional as F

from aef.kernels import bias_gelu, bias_residual
from aef.kernels.activation.reference import bias_gelu_reference, bias_residual_reference


def make_inputs(shape=(4, 3, 16), dtype=torch.float64):
    torch.manual_seed(0)
    x, residual = (3 * torch.randn(shape, dtype=dtype).requires_grad_() for _ in range(2))
    return x, torch.randn(shape[-1], dtype=dtype).requires_grad_(), residual


def assert_same_with_gradients(out, expected, leaves):
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-14)
    cotangent = torch.randn_like(out)
    for one, other in zip(
        torch.autograd.grad(out, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent)
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("function", [bias_gelu_reference, bias_gelu])
def test_bias_gelu_equals_the_exact_gelu(function):
    x, bias, _ = make_inputs()
    assert_same_with_gradients(function(x, bias), F.gelu(x + bias), (x, bias))


@pytest.mark.parametrize("function", [bias_residual_reference, bias_residual])
def test_bias_residual_equals_the_sum(function):
    x, bias, residual = make_inputs()
    assert_same_with_gradients(function(x, bias, residual), x + bias + residual, (x, bias, residual))


def test_parameters_may_be_wider_than_the_activations():
    x, bias, residual = make_inputs()
    half = x.bfloat16()
    assert bias_gelu(half, bias.float()).dtype == torch.bfloat16
    assert bias_residual(half, bias.float(), residual.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, b, r: bias_gelu(x, b[1:]), "bias: expected C = 16"),
        (lambda x, b, r: bias_gelu(x.long(), b), "x: expected a floating-point tensor"),
        (lambda x, b, r: bias_residual(x, b, r[1:]), "residual: expected torch.float64 of shape"),
        (lambda x, b, r: bias_residual(x, b, r.float()), "found torch.float32 of shape"),
        (lambda x, b, r: bias_residual(x, b, None), "residual: expected a tensor, found NoneType"),
    ],
)
def test_bad_input_is_refused_with_a_clear_line(call, words):
    with pytest.raises(ValueError, match=words):
        call(*make_inputs())
