"""The real temporal-pooling kernels in Triton's interpreter against the reference."""

import pytest
import torch

from aef.kernels import temporal_pooling
from aef.kernels.temporal_pooling.backward import pool_backward
from aef.kernels.temporal_pooling.forward import make_plan, pool
from aef.kernels.temporal_pooling.reference import temporal_pooling_reference

pytestmark = pytest.mark.interp

CASES = {  # lengths, segment of each period, pixels, heads, channels
    "one frame": ([1], [0], 5, 1, 16),
    "many periods, an empty segment": ([13, 3, 0, 1], [0, 2, 0, 1, 3, 0], 9, 2, 16),
    "a segment without a period": ([7, 33], [1, 1], 4, 3, 48),
    "more queries than a tile": ([5, 2], [0] * 30 + [1] * 3, 2, 3, 16),
    "odd channels": ([6, 4], [1, 0, 1], 35, 1, 20),
    "just over a tile": ([65], [0, 0], 3, 1, 16),
    "more frames than a tile": ([103, 47], [0, 1, 0], 2, 2, 16),
}
BIAS = pytest.mark.parametrize("biased", [True, False], ids=["bias", "plain"])


def make_inputs(lengths, chosen, pixels, heads, channels, biased, dtype=torch.float32):
    torch.manual_seed(0)
    frames, pairs = sum(lengths), sum(lengths[segment] for segment in chosen)

    def random(*shape):  # the last dimension of a wider tensor, hence not contiguous
        return torch.randn(*shape, 2, dtype=dtype)[..., 0].requires_grad_()

    leaves = (
        random(frames, pixels, channels),
        random(frames, channels),
        random(len(chosen), heads, channels),
        random(pairs, heads) if biased else None,
    )
    cu_frames = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    return leaves, (torch.tensor(chosen, dtype=torch.int32), cu_frames, max(lengths))


@BIAS
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_reference(case, biased, shipped_tiles, triton_kernels, assert_agrees):
    leaves, rest = make_inputs(*CASES[case], biased)
    assert_agrees(temporal_pooling, temporal_pooling_reference, leaves, rest)


@BIAS
def test_small_tiles_loop_over_frames_and_queries(biased, poisoned):
    leaves, rest = make_inputs([40, 9, 33], [0, 2, 2, 1], 3, 5, 16, biased)
    out = temporal_pooling_reference(*leaves, *rest)
    cotangent = torch.randn_like(out)
    arguments = (*(None if leaf is None else leaf.detach() for leaf in leaves), *rest, {"queries": 16, "frames": 16})
    found = (pool(*arguments), *pool_backward(cotangent, *arguments))
    wanted = (out, *torch.autograd.grad(out, [leaf for leaf in leaves if leaf is not None], cotangent))
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=5e-5)


@BIAS
def test_gradcheck_holds_in_double_precision(biased, triton_kernels):
    leaves, rest = make_inputs([3, 0, 2], [0, 2, 0, 1], 2, 1, 4, biased, torch.float64)
    present = tuple(leaf for leaf in leaves if leaf is not None)

    def function(states, table, query, bias=None):
        return temporal_pooling(states, table, query, bias, *rest)

    assert torch.autograd.gradcheck(function, present, fast_mode=True)


def test_four_hundred_frames_beside_single_ones_agree_with_the_reference(triton_kernels, assert_agrees):
    leaves, rest = make_inputs([400, 1, 1], [0, 2, 1, 0], 1, 1, 16, True)
    assert_agrees(temporal_pooling, temporal_pooling_reference, leaves, rest)


def test_offsets_reach_beyond_two_to_the_31_elements():
    """The last frames of 4.3 GB that are never touched: only what is read is backed by memory."""
    frames, pixels, channels = 2**20 + 3, 128, 16
    states = torch.empty(frames, pixels, channels, dtype=torch.float16)
    assert states.numel() > 2**31
    torch.manual_seed(0)
    states[-2:] = torch.randn(2, pixels, channels)
    table = torch.zeros(1, channels, dtype=torch.float16).expand(frames, -1)
    query, segment = torch.randn(1, 1, channels), torch.zeros(1, dtype=torch.int32)
    cu_frames = torch.tensor([frames - 2, frames], dtype=torch.int32)
    found = pool(states, table, query, None, segment, cu_frames, 2, {"queries": 16, "frames": 16})
    last = (states[-2:].float(), table[-2:].float(), query, None, segment, torch.tensor([0, 2], dtype=torch.int32), 2)
    torch.testing.assert_close(found.float(), temporal_pooling_reference(*last), rtol=2e-3, atol=2e-3)


def test_periods_are_sorted_by_segment_on_the_device():
    torch.manual_seed(0)
    lengths, chosen = [4, 0, 7, 1], torch.randint(0, 4, (150,))
    (states, _, query, _), (segments, cu_frames, longest) = make_inputs(lengths, chosen.tolist(), 1, 1, 16, False)
    plan = make_plan(states, query, None, segments, cu_frames, longest, {})
    assert torch.equal(plan.order.long(), torch.argsort(chosen, stable=True))
    assert plan.first.tolist() == [0, *torch.bincount(chosen, minlength=4).cumsum(0).tolist()]
    pairs = torch.tensor(lengths)[chosen]
    assert torch.equal(plan.first_pair.long(), pairs.cumsum(0) - pairs)


def test_backward_repeats_bit_by_bit(triton_kernels):
    leaves, rest = make_inputs([9, 4], [0, 1, 0], 5, 2, 16, True)
    out = [temporal_pooling(*leaves, *rest) for _ in range(2)]
    first, second = (torch.autograd.grad(one, leaves, torch.ones_like(one)) for one in out)
    assert all(torch.equal(one, other) for one, other in zip(first, second))


def test_wrong_offsets_and_segments_never_lead_out_of_the_arrays():
    leaves, _ = make_inputs([7], [0, 0, 0], 3, 1, 16, False)
    states, table, query, _ = (None if leaf is None else leaf.detach() for leaf in leaves)
    segments = torch.tensor([-5, 1, 99], dtype=torch.int32)
    for offsets in ([0, 9, 4], [-3, 2, 99], [5, 1, 7]):
        arguments = (states, table, query, None, segments, torch.tensor(offsets, dtype=torch.int32), 8, {})
        pool_backward(torch.ones_like(pool(*arguments)), *arguments)
