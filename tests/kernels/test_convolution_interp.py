"""The real convolution kernels in Triton's interpreter: the precision operator's 3×3, and the pyramid exchange."""

import pytest
import torch

from aef.kernels import (
    Normalized,
    channel_norm,
    conv3x3,
    conv3x3_gelu,
    exchange_down,
    exchange_up_add,
    exchange_up_norm,
    implicit_gemm,
)
from aef.kernels.channel_norm.reference import channel_norm_reference
from aef.kernels.exchange.reference import (
    exchange_down_reference,
    exchange_up_add_reference,
    exchange_up_norm_reference,
)
from aef.kernels.implicit_gemm import places
from aef.kernels.precision_conv.reference import conv3x3_reference
from aef.kernels.runtime import KERNELS, jit, tl

pytestmark = pytest.mark.interp

SMALL = {"rows": 32, "outputs": 16, "inputs": 16, "num_warps": 1, "num_stages": 1}
KERNEL_SIZES = pytest.mark.parametrize("size", [2, 3])


def random(*shape, dtype=torch.float32):
    """The last dimension of a wider tensor, hence not contiguous."""
    return torch.randn(*shape, 2, dtype=dtype)[..., 0].requires_grad_()


def make_leaves(frames, sides, inputs, outputs, dtype=torch.float32):
    torch.manual_seed(0)
    x, residual = (random(frames, *sides, channels, dtype=dtype) for channels in (inputs, outputs))
    return x, random(outputs, 3, 3, inputs, dtype=dtype), random(outputs, dtype=dtype), residual


def launches():
    return sum(KERNELS[name].launches for name in ("implicit_gemm", "implicit_gemm_weight"))


@pytest.mark.parametrize("gelu", [False, True], ids=["linear", "gelu"])
@pytest.mark.parametrize(
    ("frames", "sides", "inputs", "outputs"), [(2, (5, 7), 16, 48), (1, (1, 1), 48, 16), (0, (4, 4), 16, 16)], ids=str
)
def test_conv3x3_agrees_with_the_reference(frames, sides, inputs, outputs, gelu, triton_kernels, assert_agrees):
    x, weight, bias, residual = make_leaves(frames, sides, inputs, outputs)
    before = launches()
    assert_agrees(
        lambda *leaves: conv3x3(*leaves[:3], gelu, leaves[3]),
        lambda *leaves: conv3x3_reference(*leaves[:3], gelu, leaves[3]),
        (x, weight, bias, residual),
    )
    assert launches() > before or not frames


def test_padded_taps_contribute_nothing(triton_kernels):
    """A normalised state is not 0 at the border, and what lies beyond is: counts of taps inside, 9, 6 and 4."""
    counts = conv3x3(torch.ones(2, 3, 4, 16), torch.ones(16, 3, 3, 16) / 16, torch.zeros(16))[..., 0]
    expected = torch.tensor([[4.0, 6, 6, 4], [6, 9, 9, 6], [4, 6, 6, 4]])
    torch.testing.assert_close(counts, expected.expand(2, -1, -1))


def test_a_chain_of_convolutions_gives_its_gradient_before_the_gelu(triton_kernels, assert_agrees):
    x, first, bias, _ = make_leaves(1, (5, 3), 16, 20)
    residual = random(1, 5, 3, 16)

    def chain(x, first, bias, last, residual):
        inner = conv3x3_gelu(x, first, bias)
        assert inner.before is not None
        return conv3x3(inner, last, x.new_ones(16), residual=residual)

    def reference(x, first, bias, last, residual):
        return conv3x3_reference(conv3x3_reference(x, first, bias, True), last, x.new_ones(16), False, residual)

    assert_agrees(chain, reference, (x, first, bias, random(16, 3, 3, 20), residual))


def test_bare_convolutions_make_their_operands_again(triton_kernels, assert_agrees):
    x, first, bias, _ = make_leaves(1, (5, 3), 16, 16)

    def chain(x, scale, shift, first, bias, last):
        normal = Normalized(channel_norm(x, scale, shift), x, scale, shift)
        return conv3x3(conv3x3_gelu(normal, first, bias), last, bias)

    def reference(x, scale, shift, first, bias, last):
        inner = conv3x3_reference(channel_norm_reference(x, scale, shift), first, bias, True)
        return conv3x3_reference(inner, last, bias)

    before = launches()
    assert_agrees(chain, reference, (x, random(16), random(16), first, bias, random(16, 3, 3, 16)))
    assert launches() > before


def test_a_chain_whose_middle_is_also_used_elsewhere_adds_both_gradients(triton_kernels, assert_agrees):
    x, first, bias, _ = make_leaves(1, (2, 3), 16, 16)

    def chain(x, first, bias, last):
        inner = conv3x3_gelu(x, first, bias)
        return conv3x3(inner, last, bias) + 2 * inner.value

    def reference(x, first, bias, last):
        inner = conv3x3_reference(x, first, bias, True)
        return conv3x3_reference(inner, last, bias) + 2 * inner

    assert_agrees(chain, reference, (x, first, bias, random(16, 3, 3, 16)))


@KERNEL_SIZES
def test_exchange_down_agrees_with_the_reference(size, triton_kernels, assert_agrees):
    torch.manual_seed(0)
    leaves = (random(2, 6, 4, 16), random(48, size, size, 16), random(48))
    assert_agrees(exchange_down, exchange_down_reference, leaves)


@KERNEL_SIZES
@pytest.mark.parametrize("merged", [True, False], ids=["merged", "alone"])
def test_exchange_up_agrees_with_the_reference(size, merged, triton_kernels, assert_agrees):
    torch.manual_seed(0)
    into = random(1, 6, 10, 16) if merged else None
    leaves = (random(1, 3, 5, 48), random(48, size, size, 16), random(16), into)
    before = launches()
    assert_agrees(exchange_up_add, exchange_up_add_reference, leaves)
    assert launches() > before


@KERNEL_SIZES
@pytest.mark.parametrize("fine", [16, 20, 48])
def test_a_merge_writes_the_norm_of_its_state(size, fine, triton_kernels, assert_agrees):
    torch.manual_seed(0)
    leaves = (random(2, 3, 5, 20), random(20, size, size, fine), random(fine), random(2, 6, 10, fine))
    norms = KERNELS["channel_norm_forward"].launches
    before = launches()
    assert_agrees(exchange_up_norm, exchange_up_norm_reference, (*leaves, random(fine), random(fine)))
    assert launches() > before
    assert KERNELS["channel_norm_forward"].launches == norms  # on the accumulator, not in a pass of its own


def test_the_norm_of_a_large_mean_keeps_its_digits(triton_kernels, assert_agrees):
    torch.manual_seed(0)
    into = (random(1, 4, 4, 16).detach() + 100).requires_grad_()
    leaves = (random(1, 2, 2, 16), random(16, 3, 3, 16), random(16), into, random(16), random(16))
    assert_agrees(exchange_up_norm, exchange_up_norm_reference, leaves, tolerance=1e-4)


def test_small_tiles_walk_over_rows_channels_and_chunks(poisoned, monkeypatch):
    """Many tiles in every direction, and a weight gradient of several partial sums."""
    monkeypatch.setattr(implicit_gemm, "processors", lambda tensor: 12)
    x, weight, bias, residual = (leaf.detach() for leaf in make_leaves(1, (5, 8), 20, 20))
    leaves = [one.clone().requires_grad_() for one in (x, weight, bias)]
    out = conv3x3_reference(*leaves, False, residual)
    d_x, d_weight, d_bias = torch.autograd.grad(out, leaves, residual)
    found, _ = implicit_gemm.convolve(x, weight, SMALL, bias=bias, merge="add", other=residual)
    torch.testing.assert_close(found, out, rtol=1e-5, atol=5e-5)
    found, _ = implicit_gemm.convolve(residual, weight, SMALL, transposed=True)
    torch.testing.assert_close(found, d_x, rtol=1e-5, atol=5e-5)
    one = SMALL | {"outputs": 32, "inputs": 32, "rows": 16}
    first = implicit_gemm.convolution_weight_gradient(residual, x, 3, 1, one, bias=True)
    torch.testing.assert_close(first, (d_weight, d_bias), rtol=1e-5, atol=5e-5)
    second = implicit_gemm.convolution_weight_gradient(residual, x, 3, 1, one, bias=True)
    assert all(torch.equal(*pair) for pair in zip(first, second))


def test_gradcheck_holds_in_double_precision(triton_kernels):
    x, weight, bias, residual = make_leaves(1, (2, 3), 3, 2, torch.float64)
    assert torch.autograd.gradcheck(
        lambda *leaves: conv3x3(*leaves[:3], True, leaves[3]), (x, weight, bias, residual), fast_mode=True
    )
    down = (random(1, 2, 4, 3, dtype=torch.float64), weight.detach().requires_grad_(), bias)
    assert torch.autograd.gradcheck(exchange_down, down, fast_mode=True)
    up = (random(1, 1, 2, 2, dtype=torch.float64), weight, random(3, dtype=torch.float64), down[0])
    assert torch.autograd.gradcheck(exchange_up_add, up, fast_mode=True)
    norm = (random(3, dtype=torch.float64), random(3, dtype=torch.float64))
    assert torch.autograd.gradcheck(exchange_up_norm, (*up, *norm), fast_mode=True)


def test_gradcheck_holds_in_double_precision_for_what_is_made_again(triton_kernels):
    """`conv3x3_of_gelu` and `conv3x3_of_norm`, which keep neither a GELU's output nor a norm's."""
    x, first, bias, _ = make_leaves(1, (2, 3), 3, 2, torch.float64)
    scale, shift, last = (
        random(3, dtype=torch.float64),
        random(3, dtype=torch.float64),
        random(2, 3, 3, 2, dtype=torch.float64),
    )

    def chain(x, scale, shift, first, bias, last):
        normal = Normalized(channel_norm(x, scale, shift), x, scale, shift)
        return conv3x3(conv3x3_gelu(normal, first, bias), last, bias)

    assert torch.autograd.gradcheck(chain, (x, scale, shift, first, bias, last), fast_mode=True)


@jit
def read_row(image, out, frame, pixels, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    """The first row of pixels of one frame, as `implicit_gemm` reads them."""
    column, channel = tl.arange(0, ROWS), tl.arange(0, CHANNELS)
    found = tl.load(image + places(frame * pixels + column, channel, CHANNELS))
    tl.store(out + column[:, None] * CHANNELS + channel[None, :], found.to(tl.float32))


def test_pixels_are_found_beyond_two_to_the_31_elements():
    """The last frame of 4.3 GB that are never touched: a whole convolution would walk through all of them."""
    image = torch.empty(2**17 + 1, 32, 32, 16, dtype=torch.float16)
    assert image.numel() > 2**31
    torch.manual_seed(0)
    image[-1, 0] = torch.randn(32, 16)
    out = torch.full((32, 16), torch.nan)
    read_row[(1,)](image, out, image.shape[0] - 1, 32 * 32, CHANNELS=16, ROWS=32)
    assert torch.equal(out, image[-1, 0].float())


def test_4x4_steps_stay_with_the_library(triton_kernels):
    before = launches()
    exchange_down(torch.randn(1, 4, 4, 16), torch.randn(16, 4, 4, 16), torch.zeros(16))
    assert launches() == before
