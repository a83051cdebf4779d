"""The references of the pyramid exchange against gathers and scatters of single taps, written independently."""

import pytest
import torch
import torch.nn.functional as F

from aef.kernels import exchange_down, exchange_up_add, exchange_up_norm
from aef.kernels.exchange.eager import up_norm_by_passes
from aef.kernels.exchange.reference import (
    exchange_down_reference,
    exchange_up_add_reference,
    exchange_up_norm_reference,
)

SIZES = pytest.mark.parametrize("size", [2, 3, 4])


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def down_by_taps(x, weight, bias, size):
    before = 0 if size == 2 else 1
    padded = F.pad(x, (0, 0, before, size, before, size))
    height, width = x.shape[1] // 2, x.shape[2] // 2
    taps = [(i, j) for i in range(size) for j in range(size)]
    return bias + sum(padded[:, i : i + 2 * height : 2, j : j + 2 * width : 2] @ weight[:, i, j].T for i, j in taps)


def up_by_taps(x, weight, bias, into, size):
    """Each input pixel writes a size × size patch; what falls outside is cut off."""
    before = 0 if size == 2 else 1
    frames, height, width, _ = x.shape
    canvas = torch.zeros(frames, 2 * height + size, 2 * width + size, weight.shape[3], dtype=x.dtype)
    for i in range(size):
        for j in range(size):
            patch = torch.zeros_like(canvas)
            patch[:, i : i + 2 * height : 2, j : j + 2 * width : 2] = x @ weight[:, i, j]
            canvas = canvas + patch
    return into + bias + canvas[:, before : before + 2 * height, before : before + 2 * width]


def assert_same_with_gradients(out, expected, leaves):
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn_like(out)
    for one, other in zip(
        torch.autograd.grad(out, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent)
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@SIZES
@pytest.mark.parametrize("function", [exchange_down_reference, exchange_down])
@pytest.mark.parametrize("sides", [(6, 4), (2, 2)], ids=str)
def test_down_equals_strided_taps(function, sides, size):
    torch.manual_seed(0)
    x, weight, bias = random(3, *sides, 5), random(4, size, size, 5), random(4)
    out = function(x, weight, bias)
    assert out.shape == (3, sides[0] // 2, sides[1] // 2, 4)
    assert_same_with_gradients(out, down_by_taps(x, weight, bias, size), (x, weight, bias))


@SIZES
@pytest.mark.parametrize("function", [exchange_up_add_reference, exchange_up_add])
@pytest.mark.parametrize("sides", [(3, 5), (1, 1)], ids=str)
def test_up_equals_scattered_taps(function, sides, size):
    torch.manual_seed(0)
    x, weight, bias = random(3, *sides, 5), random(5, size, size, 4), random(4)
    into = random(3, 2 * sides[0], 2 * sides[1], 4)
    out = function(x, weight, bias, into)
    assert_same_with_gradients(out, up_by_taps(x, weight, bias, into, size), (x, weight, bias, into))


@SIZES
@pytest.mark.parametrize("function", [exchange_up_norm_reference, exchange_up_norm, up_norm_by_passes])
def test_a_merge_gives_its_state_and_the_norm_of_it(function, size):
    """Also by the passes that run around cuDNN, here around the CPU's convolution."""
    torch.manual_seed(0)
    x, weight, bias = random(2, 3, 5, 5), random(5, size, size, 4), random(4)
    into, scale, shift = random(2, 6, 10, 4), random(4), random(4)
    leaves = (x, weight, bias, into, scale, shift)
    found, state = function(*leaves), up_by_taps(x, weight, bias, into, size)
    expected = (state, F.layer_norm(state, (4,), scale, shift, eps=1e-6))
    cotangents = [torch.randn_like(state) for _ in range(2)]
    gradients = (torch.autograd.grad(outputs, leaves, cotangents) for outputs in (found, expected))
    for one, other in zip((*found, *next(gradients)), (*expected, *next(gradients)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_up_is_the_adjoint_of_down():
    torch.manual_seed(0)
    fine, coarse, weight = random(2, 6, 4, 3), random(2, 3, 2, 5), random(5, 3, 3, 3)
    down = exchange_down(fine, weight, torch.zeros(5).double())
    up = exchange_up_add(coarse, weight, torch.zeros(3).double(), torch.zeros_like(fine))
    torch.testing.assert_close((down * coarse).sum(), (up * fine).sum())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: exchange_down(random(1, 3, 4, 5), random(4, 2, 2, 5), random(4)), "expected even side lengths"),
        (lambda: exchange_down(random(1, 4, 4, 5), random(4, 5, 5, 5), random(4)), "kernel of 2×2, 3×3 or 4×4"),
        (lambda: exchange_down(random(1, 4, 4, 5), random(4, 3, 3, 6), random(4)), "weight: expected I = 5"),
        (
            lambda: exchange_up_add(random(1, 2, 2, 5), random(5, 3, 3, 4), random(4), random(1, 4, 5, 4)),
            "expected twice the sides",
        ),
        (
            lambda: exchange_up_add(random(1, 2, 2, 5), random(5, 3, 3, 4), random(4), random(1, 4, 4, 4).float()),
            "into: expected torch.float64",
        ),
        (
            lambda: exchange_up_norm(random(1, 2, 2, 5), random(5, 3, 3, 4), random(4), None, random(4), random(4)),
            "into: expected a state to merge into",
        ),
        (
            lambda: exchange_up_norm(
                random(1, 2, 2, 5), random(5, 3, 3, 4), random(4), random(1, 4, 4, 4), random(5), random(4)
            ),
            "weight: expected C = 4",
        ),
    ],
)
def test_bad_input_is_refused_with_a_clear_line(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_without_a_fine_state_the_step_up_is_the_transposed_convolution_alone():
    x, weight, bias = torch.randn(2, 3, 3, 4), torch.randn(4, 3, 3, 5), torch.randn(5)
    alone = exchange_up_add(x, weight, bias)
    into = torch.randn(2, 6, 6, 5)
    torch.testing.assert_close(exchange_up_add(x, weight, bias, into), into + alone)
