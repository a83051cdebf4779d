"""The reference of temporal pooling against loops over periods, pixels and heads, written independently."""

import pytest
import torch

from aef.kernels import temporal_pooling
from aef.kernels.temporal_pooling.reference import temporal_pooling_reference


def make_inputs(lengths, chosen, with_bias, pixels=3, heads=2, channels=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(lengths) + 17 * len(chosen))
    frames, pairs = sum(lengths), sum(lengths[segment] for segment in chosen)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    states, table, query = (
        random(frames, pixels, channels),
        random(frames, channels),
        random(len(chosen), heads, channels),
    )
    bias = random(pairs, heads) if with_bias else None
    cu_frames = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    return states, table, query, bias, torch.tensor(chosen, dtype=torch.int32), cu_frames, max([1, *lengths])


def pool_by_loops(states, table, query, bias, period_segment, cu_frames, max_frames):
    periods, heads, channels = query.shape
    pixels, pair = states.shape[1], 0
    out = []
    for row in range(periods):
        start, end = cu_frames[period_segment[row]], cu_frames[period_segment[row] + 1]
        for pixel in range(pixels):
            for head in range(heads):
                x = [states[f, pixel] + table[f] for f in range(start, end)]
                extra = [0.0 if bias is None else bias[pair + i, head] for i in range(len(x))]
                scale = [torch.exp(torch.dot(query[row, head], one) + more) for one, more in zip(x, extra)]
                total = sum(scale)
                out.append(sum(s / total * one for s, one in zip(scale, x)) if x else torch.zeros(channels).double())
        pair += end - start
    return torch.stack(out).view(periods, pixels, heads, channels)


CASES = [([4], [0]), ([1], [0, 0]), ([3, 1, 5], [2, 0, 2, 1]), ([3, 0, 2], [1, 0, 2, 1])]


@pytest.mark.parametrize("function", [temporal_pooling_reference, temporal_pooling])
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(("lengths", "chosen"), CASES, ids=str)
def test_equals_loops_forward_and_backward(function, lengths, chosen, with_bias):
    arguments = make_inputs(lengths, chosen, with_bias)
    out, expected = function(*arguments), pool_by_loops(*arguments)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    leaves = [one for one in arguments[:4] if one is not None]
    cotangent = torch.randn_like(out)
    for one, other in zip(
        torch.autograd.grad(out, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent)
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_an_empty_segment_pools_to_zeros_with_zero_gradients():
    arguments = make_inputs([0, 0], [0, 1, 1], True)
    out = temporal_pooling(*arguments)
    assert out.shape == (3, 3, 2, 5)
    assert not out.any()
    for gradient, leaf in zip(torch.autograd.grad(out.sum(), arguments[:4]), arguments):
        assert gradient.shape == leaf.shape
        assert not gradient.any()


def test_large_logits_stay_finite():
    states, table, query, _, *rest = make_inputs([3, 2], [0, 1], False)
    out = temporal_pooling(states, table, query * 1e5, None, *rest)
    assert out.isfinite().all()


def test_logits_of_bfloat16_operands_are_not_rounded():
    """Weights and result are, each by up to half of bf16's spacing: less in the mean over many values."""
    states, table, query, _, *rest = make_inputs([103], [0, 0], False, pixels=16, channels=128, dtype=torch.float32)
    rounded = [one.detach().bfloat16() for one in (states, 0 * table, query)]
    expected = temporal_pooling_reference(*(one.double() for one in rounded), None, *rest)
    error = (temporal_pooling(*rounded, None, *rest).double() - expected).norm() / expected.norm()
    assert error < 2**-8


def test_no_period_gives_an_empty_result():
    assert temporal_pooling(*make_inputs([3], [], False)).shape == (0, 3, 2, 5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"query": torch.zeros(2, 2, 4)}, "query: expected C = 5"),
        ({"bias": torch.zeros(6, 2)}, "bias: expected 7 rows"),
        ({"bias": torch.zeros(7, 3)}, "bias: expected H = 2"),
        ({"period_segment": torch.tensor([0, 2], dtype=torch.int32)}, "expected a segment in 0..1, found 2"),
        ({"period_segment": torch.tensor([0, 1])}, "period_segment: expected torch.int32"),
        ({"max_frames": 3}, "max_frames: expected at least 4"),
    ],
)
def test_bad_input_is_refused_with_a_clear_line(change, words):
    names = ("states", "table", "query", "bias", "period_segment", "cu_frames", "max_frames")
    arguments = dict(zip(names, make_inputs([3, 4], [0, 1], True)))
    with pytest.raises(ValueError, match=words):
        temporal_pooling(**arguments | change)
