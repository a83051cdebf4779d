"""The real point-wise, normalisation and sampling kernels in Triton's interpreter against the references."""

import pytest
import torch
import torch.nn.functional as F

from aef.kernels import (
    Normalized,
    bias_gelu,
    bias_residual,
    channel_norm,
    gelu_linear,
    norm_linear,
    residual_norm,
    sample_vmf,
)
from aef.kernels.activation.reference import bias_gelu_reference, bias_residual_reference, gelu_linear_reference
from aef.kernels.channel_norm.reference import channel_norm_reference, residual_norm_reference
from aef.kernels.vmf.reference import sample_vmf_reference

pytestmark = pytest.mark.interp

OPERATORS = {
    "channel_norm": (channel_norm, channel_norm_reference, lambda x, a, b: (x, a, b)),
    "residual_norm": (residual_norm, residual_norm_reference, lambda x, a, b: (x, a, x.flip(0) + 1, b, a - b)),
    "bias_gelu": (bias_gelu, bias_gelu_reference, lambda x, a, b: (x, a)),
    "gelu_linear": (gelu_linear, gelu_linear_reference, lambda x, a, b: (x, a, x.new_ones(3, 1) * b)),
    "bias_residual": (bias_residual, bias_residual_reference, lambda x, a, b: (x, a, x.flip(0) + 1)),
}
EACH = pytest.mark.parametrize("name", OPERATORS)


def make_leaves(name, shape, dtype=torch.float32):
    torch.manual_seed(0)
    x, a, b = (torch.randn(*one, 2, dtype=dtype)[..., 0] for one in (shape, shape[-1:], shape[-1:]))
    return tuple(leaf.detach().requires_grad_() for leaf in OPERATORS[name][2](x, a, b))


@EACH
@pytest.mark.parametrize("shape", [(1, 16), (5, 7, 48), (300, 48), (35, 20), (3, 300), (0, 16)], ids=str)
def test_agrees_with_the_reference(name, shape, triton_kernels, assert_agrees):
    function, reference, _ = OPERATORS[name]
    assert_agrees(function, reference, make_leaves(name, shape))


@EACH
def test_gradcheck_holds_in_double_precision(name, triton_kernels):
    assert torch.autograd.gradcheck(OPERATORS[name][0], make_leaves(name, (3, 5), torch.float64), fast_mode=True)


def test_gradcheck_holds_in_double_precision_for_a_product_that_makes_its_norm_again(triton_kernels):
    x, scale, shift = make_leaves("channel_norm", (3, 5), torch.float64)
    weight = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)

    def product(x, scale, shift, weight):
        return norm_linear(Normalized(channel_norm(x, scale, shift), x, scale, shift), weight)

    assert torch.autograd.gradcheck(product, (x, scale, shift, weight), fast_mode=True)


def test_the_fitted_gaussian_keeps_the_digits_of_fp32(triton_kernels):
    z = torch.linspace(-9, 9, 2001)[:, None].requires_grad_()
    wide = z.detach().double().requires_grad_()
    found, wanted = bias_gelu(z, torch.zeros(1)), bias_gelu_reference(wide, torch.zeros(1).double())
    slopes = [torch.autograd.grad(one.sum(), leaf)[0].double() for one, leaf in ((found, z), (wanted, wide))]
    assert (found - wanted).abs().max() < 1e-6 and (slopes[0] - slopes[1]).abs().max() < 1e-6
    tail = (wide > -5) & (wide < 0)  # where what is left is small, it still has its digits
    assert ((found - wanted) / wanted)[tail].abs().max() < 1e-5


def test_layer_norm_of_a_large_mean_keeps_its_digits(triton_kernels, assert_agrees):
    x, a, b = make_leaves("channel_norm", (9, 48))
    assert_agrees(channel_norm, channel_norm_reference, ((x.detach() + 100).requires_grad_(), a, b), tolerance=1e-4)


@pytest.mark.parametrize(("kappa", "dimension"), [(8000.0, 64), (5.0, 64), (100.0, 13)])
def test_sample_vmf_draws_the_reference_sample(kappa, dimension, triton_kernels):
    generator = torch.Generator().manual_seed(0)
    mean = F.normalize(torch.randn(70, dimension, generator=generator), dim=1).requires_grad_()
    counter = torch.randint(-(2**63), 2**63 - 1, (70,), generator=generator)
    for key in ((0, 1), (2**32 - 1, 2**31)):
        found, wanted = (f(mean, kappa, key, counter) for f in (sample_vmf, sample_vmf_reference))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        cotangent = torch.randn_like(wanted)
        gradients = (torch.autograd.grad(out, mean, cotangent)[0] for out in (found, wanted))
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=3e-5)


def test_gradcheck_of_sample_vmf_holds_in_double_precision(triton_kernels):
    mean = F.normalize(torch.randn(3, 8, dtype=torch.float64), dim=1).requires_grad_()
    counter = torch.tensor([0, 5, 2**33])
    assert torch.autograd.gradcheck(lambda one: sample_vmf(one, 20.0, (7, 3), counter), (mean,), fast_mode=True)
