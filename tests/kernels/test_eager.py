"""The tuned PyTorch paths of a CPU against the references: outputs and every gradient, at the shapes of the presets."""

import pytest
import torch
import torch.nn.functional as F

from aef import kernels
from aef.kernels.activation.reference import bias_gelu_reference, bias_residual_reference
from aef.kernels.channel_norm.reference import channel_norm_reference
from aef.kernels.temporal_pooling.reference import temporal_pooling_reference
from aef.kernels.time_attention.reference import time_attention_reference
from aef.kernels.vmf.reference import sample_vmf_reference

# Rounding of the references themselves, as relative error of the norm.
ROUNDING = {torch.float32: 3e-6, torch.bfloat16: 2e-2}
DTYPES = pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
RAGGED = [62, 29, 60, 31, 0, 22, 61, 40, 1]  # the small preset's teachers and students, an empty one, one frame


def offsets(lengths):
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)


def random(*shape, dtype, scale=1.0):
    return (torch.randn(*shape, dtype=torch.float64) * scale).to(dtype).requires_grad_()


def relative_error(found, wanted):
    return ((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30)).item()


def assert_as_near_as_the_reference(function, reference, leaves, rest, dtype, factor=2):
    """Both run in `dtype`; the exact answer is the reference in fp64. Parameters stay fp32, as in training."""
    wide = [None if leaf is None else leaf.detach().double().requires_grad_() for leaf in leaves]
    exact = reference(*wide, *rest)
    cotangent = torch.randn_like(exact)
    outputs = {}
    for name, one in (("found", function), ("plain", reference)):
        out = one(*leaves, *rest)
        assert out.dtype == dtype
        present = [leaf for leaf in leaves if leaf is not None]
        outputs[name] = (out, *torch.autograd.grad(out, present, cotangent.to(dtype)))
    wanted = (exact, *torch.autograd.grad(exact, [leaf for leaf in wide if leaf is not None], cotangent))
    for found, plain, truth in zip(outputs["found"], outputs["plain"], wanted):
        assert found.dtype == plain.dtype
        assert found.shape == plain.shape
        assert relative_error(found, truth) <= factor * relative_error(plain, truth) + ROUNDING[dtype] / 10
        assert relative_error(found, truth) <= ROUNDING[dtype]


@DTYPES
@pytest.mark.parametrize(
    ("lengths", "pixels", "heads", "channels"),
    [
        (RAGGED, 4, 2, 32),
        ([10, 5, 11, 4], 4, 2, 16),
        ([16, 7], 64, 4, 64),
        ([103, 47], 16, 2, 64),
        ([5, 5, 5], 3, 1, 8),
    ],
)
def test_time_attention_is_as_near_as_the_reference(lengths, pixels, heads, channels, dtype):
    torch.manual_seed(0)
    qkv = random(sum(lengths), pixels, 3, heads, channels, dtype=dtype)
    table = random(sum(lengths), 3, heads, channels, dtype=torch.float32)
    rest = (offsets(lengths), max(lengths))
    assert_as_near_as_the_reference(kernels.time_attention, time_attention_reference, (qkv, table), rest, dtype)


@DTYPES
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize(
    ("lengths", "chosen", "pixels", "heads", "channels"),
    [
        (RAGGED, [0, 0, 0, 1, 2, 2, 4, 8, 7, 0], 64, 4, 48),
        ([10, 5], [0, 1, 0, 0], 64, 2, 16),
        ([103, 47], [0] * 12 + [1], 16, 8, 96),
    ],
)
def test_temporal_pooling_is_as_near_as_the_reference(lengths, chosen, pixels, heads, channels, with_bias, dtype):
    torch.manual_seed(0)
    pairs = sum(lengths[segment] for segment in chosen)
    leaves = (
        random(sum(lengths), pixels, channels, dtype=dtype),
        random(sum(lengths), channels, dtype=torch.float32),
        random(len(chosen), heads, channels, dtype=torch.float32, scale=channels**-0.5),
        random(pairs, heads, dtype=torch.float32) if with_bias else None,
    )
    rest = (torch.tensor(chosen, dtype=torch.int32), offsets(lengths), max(lengths))
    assert_as_near_as_the_reference(kernels.temporal_pooling, temporal_pooling_reference, leaves, rest, dtype)


@DTYPES
@pytest.mark.parametrize("channels", [16, 48, 1024])
def test_point_wise_operators_are_as_near_as_the_references(channels, dtype):
    torch.manual_seed(0)
    x, residual = random(7, 5, channels, dtype=dtype), random(7, 5, channels, dtype=dtype)
    weight, bias = random(channels, dtype=torch.float32), random(channels, dtype=torch.float32)
    for function, reference, leaves in (
        (kernels.channel_norm, channel_norm_reference, (x, weight, bias)),
        (kernels.bias_gelu, bias_gelu_reference, (x, bias)),
        (kernels.bias_residual, bias_residual_reference, (x, bias, residual)),
    ):
        # These references compute in fp32 and round once; PyTorch's own bf16 operators round at each step.
        assert_as_near_as_the_reference(function, reference, leaves, (), dtype, factor=5)


def test_a_half_precision_norm_sums_the_gradients_of_its_parameters_in_fp32():
    torch.manual_seed(0)
    leaves = (random(20_000, 64, dtype=torch.bfloat16), *(random(64, dtype=torch.float32) for _ in range(2)))
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    cotangent = torch.randn(20_000, 64).bfloat16()
    found = torch.autograd.grad(kernels.channel_norm(*leaves), leaves, cotangent)
    wanted = torch.autograd.grad(channel_norm_reference(*wide), wide, cotangent.double())
    for one, other in zip(found[1:], wanted[1:]):
        assert relative_error(one, other) < 1e-4


@pytest.mark.parametrize(("kappa", "dimension"), [(8000.0, 64), (5.0, 64), (0.5, 3), (100.0, 13)])
def test_sample_vmf_draws_the_reference_sample(kappa, dimension):
    generator = torch.Generator().manual_seed(0)
    mean = F.normalize(torch.randn(3000, dimension, generator=generator), dim=1).requires_grad_()
    counter = torch.randint(-(2**63), 2**63 - 1, (3000,), generator=generator)
    key = (2**32 - 1, 2**31)
    found, wanted = (f(mean, kappa, key, counter) for f in (kernels.sample_vmf, sample_vmf_reference))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    cotangent = torch.randn_like(wanted)
    gradients = (torch.autograd.grad(out, mean, cotangent)[0] for out in (found, wanted))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=3e-5)  # ill-conditioned where the tangent is short


@pytest.mark.parametrize("side", [2, 3])
def test_no_frames_go_up_and_down_the_pyramid(side):
    fine, coarse = random(0, 4, 4, 8, dtype=torch.float32), random(0, 2, 2, 6, dtype=torch.float32)
    down, up = random(6, side, side, 8, dtype=torch.float32), random(6, side, side, 8, dtype=torch.float32)
    bias, scale = random(6, dtype=torch.float32), random(8, dtype=torch.float32)
    outputs = (
        kernels.exchange_down(fine, down, bias),
        kernels.exchange_up_add(coarse, up, scale),
        kernels.exchange_up_add(coarse, up, scale, fine),
        *kernels.exchange_up_norm(coarse, up, scale, fine, scale, scale),
    )
    assert [out.shape for out in outputs] == [(0, 2, 2, 6), *[(0, 4, 4, 8)] * 4]
    for gradient in torch.autograd.grad(sum(out.sum() for out in outputs), (down, up, bias, scale)):
        assert not gradient.any()


def test_no_pixels_pool_to_nothing_with_zero_gradients():
    states, table = random(5, 0, 16, dtype=torch.float32), random(5, 16, dtype=torch.float32)
    query, bias = random(2, 3, 16, dtype=torch.float32), random(10, 3, dtype=torch.float32)
    period_segment = torch.zeros(2, dtype=torch.int32)
    out = kernels.temporal_pooling(states, table, query, bias, period_segment, offsets([5]), 5)
    assert out.shape == (2, 0, 3, 16)
    for gradient in torch.autograd.grad(out.sum(), (table, query, bias)):
        assert not gradient.any()


def test_products_that_make_their_input_again_take_one_row_without_leading_dimensions():
    x, bias, scale, weight = (random(*size, dtype=torch.float64) for size in ((16,), (16,), (16,), (5, 16)))

    def products(x):
        normal = kernels.Normalized(kernels.channel_norm(x, scale, bias), x, scale, bias)
        return kernels.gelu_linear(x, bias, weight, remake=True) + kernels.norm_linear(normal, weight)

    one, wanted = products(x), products(x[None])[0]
    torch.testing.assert_close(one, wanted)
    leaves = (x, bias, scale, weight)
    for found, other in zip(torch.autograd.grad(one.sum(), leaves), torch.autograd.grad(wanted.sum(), leaves)):
        torch.testing.assert_close(found, other)
