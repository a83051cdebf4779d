"""The convolutions as operators: torch's own checks, fakes, compilation, dispatch, and the library paths."""

import pytest
import torch

from aef import kernels
from aef.kernels import dispatch, tuning
from aef.kernels.exchange.op import exchange_down_operator, exchange_up_norm_operator, exchange_up_operator
from aef.kernels.implicit_gemm import FRAME_BUCKETS, convolution_sizes
from aef.kernels.precision_conv.library import conv3x3_by_passes
from aef.kernels.precision_conv.op import conv3x3_of_gelu_operator, conv3x3_of_norm_operator, conv3x3_operator
from aef.kernels.precision_conv.reference import conv3x3_reference

HOPPER = "NVIDIA H200"


def random(*shape):
    return torch.randn(*shape, requires_grad=True)


def conv_inputs():
    return random(1, 3, 4, 5), random(6, 3, 3, 5), random(6), random(1, 3, 4, 6)


def up_inputs():
    return random(1, 2, 3, 5), random(5, 3, 3, 4), random(4), random(1, 4, 6, 4)


OPERATORS = {
    "conv3x3": (conv3x3_operator, lambda: (*conv_inputs(), None, True, True)),
    # The gradient goes to the GELU's input, so its output takes none.
    "conv3x3 of a GELU": (
        conv3x3_operator,
        lambda: (torch.randn(1, 3, 4, 5), *conv_inputs()[1:3], None, random(1, 3, 4, 5), False, False),
    ),
    "bare of a GELU": (
        conv3x3_of_gelu_operator,
        lambda: (torch.randn(1, 3, 4, 5), random(6, 3, 3, 5), random(1, 3, 4, 5), random(5)),
    ),
    "bare of a norm": (
        conv3x3_of_norm_operator,
        lambda: (random(1, 3, 4, 5), torch.randn(1, 3, 4, 5), *torch.randn(2, 5), random(6, 3, 3, 5)),
    ),
    "down": (exchange_down_operator, lambda: (random(1, 4, 6, 5), random(4, 3, 3, 5), random(4))),
    "up": (exchange_up_operator, lambda: up_inputs()),
    "up with the norm": (exchange_up_norm_operator, lambda: (*up_inputs(), random(4), random(4))),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_pass_torchs_own_checks(name, assert_operator_is_sound):
    torch.manual_seed(0)
    operator, arguments = OPERATORS[name]
    assert_operator_is_sound(operator, arguments())


def test_operators_agree_with_the_public_functions():
    torch.manual_seed(0)
    x, weight, bias, residual = conv_inputs()
    found, before = conv3x3_operator(x, weight, bias, residual, None, True, True)
    wanted = kernels.conv3x3(x, weight, bias, True, residual)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(before, conv3x3_reference(x, weight, bias))
    cotangent = torch.randn_like(wanted)
    leaves = (x, weight, bias, residual)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, cotangent), torch.autograd.grad(wanted, leaves, cotangent)
    )


def test_the_merge_with_its_norm_agrees_as_an_operator_with_the_public_function():
    torch.manual_seed(0)
    leaves = (*up_inputs(), random(4), random(4))
    found, wanted = exchange_up_norm_operator(*leaves), kernels.exchange_up_norm(*leaves)
    cotangents = [torch.randn_like(one) for one in wanted]
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, cotangents), torch.autograd.grad(wanted, leaves, cotangents)
    )


def test_fakes_give_the_shapes_and_strides_of_the_result():
    for operator, arguments in OPERATORS.values():
        real = arguments()
        outs, fakes = (
            operator(*(one.to(device) if isinstance(one, torch.Tensor) else one for one in real))
            for device in ("cpu", "meta")
        )
        outs, fakes = ((one,) if isinstance(one, torch.Tensor) else one for one in (outs, fakes))
        for out, fake in zip(outs, fakes):
            assert (out.shape, out.stride(), out.dtype) == (fake.shape, fake.stride(), fake.dtype)


@pytest.mark.parametrize("name", OPERATORS)
def test_fake_gradients_have_the_shape_and_strides_of_the_real_ones(name, assert_backward_has_its_fakes_layout):
    torch.manual_seed(0)
    operator, arguments = OPERATORS[name]
    assert assert_backward_has_its_fakes_layout(operator, arguments())


def test_a_chain_compiles_into_one_graph():
    torch.manual_seed(0)
    x, first, bias, _ = conv_inputs()
    last = random(5, 3, 3, 6)

    def chain(x, first, bias, last):
        inner = kernels.conv3x3_gelu(x, first, bias)
        y = conv3x3_operator(inner.value, last, bias[:5], x, inner.before, False, False)[0]
        return kernels.exchange_down(y[:, :2], first, bias)

    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager", dynamic=False)
    wanted, found = (one(x, first, bias, last) for one in (chain, compiled))
    torch.testing.assert_close(found, wanted)
    leaves = (x, first, bias, last)
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), leaves), torch.autograd.grad(wanted.sum(), leaves), rtol=1e-5, atol=1e-5
    )


# --- operands that backward makes again ------------------------------------------------------------------------------


def chain_leaves():
    torch.manual_seed(0)
    state, scale, shift = random(2, 5, 4, 8), random(8), random(8)
    return state, scale, shift, random(6, 3, 3, 8), random(6), random(8, 3, 3, 6), random(8)


def remade_chain(state, scale, shift, first, first_bias, last, last_bias):
    """A precision operator that keeps neither LN(x) nor the GELU's output."""
    normal = kernels.Normalized(kernels.channel_norm(state, scale, shift), state, scale, shift)
    inner = kernels.conv3x3_gelu(normal, first, first_bias, remake=True)
    return kernels.conv3x3(inner, last, last_bias, residual=state)


def kept_chain(state, scale, shift, first, first_bias, last, last_bias):
    inner = conv3x3_reference(kernels.channel_norm(state, scale, shift), first, first_bias, True)
    return conv3x3_reference(inner, last, last_bias, False, state)


def test_what_backward_makes_again_changes_nothing_but_what_is_kept():
    leaves = chain_leaves()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        found = remade_chain(*leaves)
    wanted = kept_chain(*leaves)
    torch.testing.assert_close(found, wanted)
    cotangent = torch.randn_like(wanted)
    for one, other in zip(
        torch.autograd.grad(found, leaves, cotangent), torch.autograd.grad(wanted, leaves, cotangent), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    state, scale, shift, first, first_bias, *_ = leaves
    normal = kernels.channel_norm(state, scale, shift)
    inner = kernels.conv3x3(normal, first, first_bias, True)
    for operand in (normal, inner):
        assert not any(one.shape == operand.shape and torch.allclose(one, operand) for one in kept)


def test_a_middle_of_a_remade_chain_may_be_used_elsewhere():
    state, _, _, first, bias, last, _ = leaves = chain_leaves()

    def chain(convolve):
        inner = kernels.conv3x3_gelu(state, first, bias, remake=convolve)
        value = inner.value if convolve else conv3x3_reference(state, first, bias, True)
        out = kernels.conv3x3(inner, last, leaves[6]) if convolve else conv3x3_reference(value, last, leaves[6])
        return out.sum() + value.square().sum()

    wanted = [state, first, bias, last]
    for one, other in zip(torch.autograd.grad(chain(True), wanted), torch.autograd.grad(chain(False), wanted)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_remade_chain_compiles_into_one_graph():
    leaves = chain_leaves()
    torch.compiler.reset()
    compiled = torch.compile(remade_chain, fullgraph=True, backend="aot_eager", dynamic=False)
    found, wanted = compiled(*leaves), remade_chain(*leaves)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), leaves), torch.autograd.grad(wanted.sum(), leaves), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("gelu", [False, True], ids=["linear", "gelu"])
@pytest.mark.parametrize("merged", [False, True], ids=["plain", "residual"])
def test_the_bare_convolution_with_point_wise_passes_is_the_same_function(gelu, merged):
    """What runs around cuDNN, here around the CPU's convolution."""
    torch.manual_seed(0)
    x, weight, bias, residual = conv_inputs()
    arguments = (x, weight, bias, gelu, residual if merged else None)
    leaves = (x, weight, bias, residual) if merged else (x, weight, bias)
    found, wanted = conv3x3_by_passes(*arguments), conv3x3_reference(*arguments)
    torch.testing.assert_close(found, wanted)
    assert found.is_contiguous()
    cotangent = torch.randn_like(wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, cotangent), torch.autograd.grad(wanted, leaves, cotangent)
    )


@pytest.mark.parametrize("gpu", [HOPPER, "NVIDIA A100-SXM4-80GB"])
@pytest.mark.parametrize(
    ("operator", "size", "winner"),
    [
        ("conv3x3", 3, "torch"),
        ("exchange_down", 3, "torch"),
        ("exchange_up", 3, "torch"),
        ("exchange_up", 4, "torch"),
        ("exchange_up_norm", 3, "torch"),
        ("exchange_up_norm", 2, "triton"),
        ("exchange_down", 2, "triton"),
        ("exchange_up", 2, "triton"),
    ],
)
def test_unmeasured_choices_say_that_they_are_predicted(gpu, operator, size, winner):
    sizes = convolution_sizes((64, 64, 64), 128, 128, size)
    entries = [entry for entry in tuning.table(gpu) if entry.matches(operator, "bfloat16", sizes)]
    entries = [entry for entry in entries if entry.basis == "predicted"]  # what was measured comes before
    assert entries[0].backend == winner
    assert size == 4 or any(entry.backend == "triton" and entry.config for entry in entries)


def test_dispatch_says_why_a_kernel_did_not_run():
    def decide(sizes, request="triton"):
        case = dispatch.Case(torch.device("cpu"), torch.float32, sizes)
        return dispatch.decide(request, "exchange_up", case).reason

    wide = dispatch.Case(torch.device("cpu"), torch.float32, convolution_sizes((1, 8, 8), 16, 192, 3))
    assert "192 channels of a pixel exceed a tile" in dispatch.decide("triton", "exchange_up_norm", wide).reason
    assert "4×4 stay with the library" in decide(convolution_sizes((1, 8, 8), 16, 16, 4))
    assert "pixels or more" in decide(convolution_sizes((2**20, 64, 64), 16, 16, 3))
    assert "its tuned path is the fastest" in decide(convolution_sizes((1, 8, 8), 16, 16, 3), "auto")


def test_frames_are_told_apart_by_buckets():
    frames = [1, 32, 33, 150, 512, 513, 10_000]
    found = [convolution_sizes((one, 8, 8), 16, 16, 3)["frames"] for one in frames]
    assert found == [32, 32, 64, 256, 512, FRAME_BUCKETS[-1] + 1, FRAME_BUCKETS[-1] + 1]


def test_a_pre_activation_of_another_shape_is_refused():
    x, weight, bias, _ = conv_inputs()
    with pytest.raises(ValueError, match="before: expected torch"):
        kernels.conv3x3(kernels.Activated(x, x[:, :2]), weight, bias)
