"""The real time-attention kernels in Triton's interpreter against the reference."""

import pytest
import torch

from aef.kernels import runtime, time_attention
from aef.kernels.time_attention.backward import attend_backward
from aef.kernels.time_attention.forward import attend
from aef.kernels.time_attention.reference import time_attention_reference

pytestmark = pytest.mark.interp

CASES = {  # lengths, pixels, heads, channels
    "one frame": ([1], 35, 1, 16),
    "three frames, odd pixels": ([3], 35, 2, 16),
    "thirteen, a single frame, none": ([13, 1, 0], 35, 1, 16),
    "just over half a tile": ([33, 7], 5, 1, 48),
    "just over a tile": ([65], 3, 1, 16),
    "teacher and student of the paper": ([103, 47], 2, 1, 16),
    "all lengths at once, filler last": ([2, 70, 0, 16, 5], 3, 2, 16),
    "no multiple of anything": ([5, 6], 7, 3, 20),
}


def make_inputs(lengths, pixels, heads, channels, dtype=torch.float32):
    torch.manual_seed(0)
    frames = sum(lengths)
    # Neither is contiguous: the last dimension of a wider tensor.
    qkv = torch.randn(frames, pixels, 3, heads, channels, 2, dtype=dtype)[..., 0].requires_grad_()
    table = torch.randn(frames, 3, heads, channels, 2, dtype=dtype)[..., 1].requires_grad_()
    return qkv, table, torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32), max(lengths)


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_reference(case, shipped_tiles, triton_kernels, assert_agrees):
    qkv, table, *rest = make_inputs(*CASES[case])
    assert_agrees(time_attention, time_attention_reference, (qkv, table), rest)


@pytest.mark.parametrize(
    ("rows", "lengths", "pixels", "heads"), [(16, [33, 5, 16], 3, 2), (32, [33, 5, 16], 3, 2), (128, [400, 1, 1], 1, 1)]
)
def test_tiles_loop_over_blocks_of_frames(rows, lengths, pixels, heads, poisoned):
    qkv, table, cu_frames, max_frames = make_inputs(lengths, pixels, heads, 16)
    out = time_attention_reference(qkv, table, cu_frames, max_frames)
    cotangent = torch.randn_like(out)
    arguments, config = (qkv.detach(), table.detach(), cu_frames, max_frames), {"rows": rows}
    found = (attend(*arguments, config), *attend_backward(cotangent, *arguments, config))
    for one, other in zip(found, (out, *torch.autograd.grad(out, (qkv, table), cotangent))):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("lengths", [[3, 0, 2], [20]], ids=str)
def test_gradcheck_holds_in_double_precision(lengths, triton_kernels, monkeypatch):
    qkv, table, *rest = make_inputs(lengths, 2, 1, 4, torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: time_attention(a, b, *rest), (qkv, table), fast_mode=True)


def test_backward_repeats_bit_by_bit(triton_kernels):
    qkv, table, *rest = make_inputs([9, 4], 5, 2, 16)
    cotangent = torch.randn(13, 5, 2, 16)
    first, second = (torch.autograd.grad(time_attention(qkv, table, *rest), (qkv, table), cotangent) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second))


@pytest.mark.parametrize("offsets", [[0, 9, 4], [-3, 2, 99], [5, 1, 7]], ids=str)
def test_wrong_offsets_never_lead_out_of_the_arrays(offsets):
    # A GPU's offsets are not read by the host: the kernels clamp them. The interpreter would fault on a wild address.
    qkv, table, _, _ = make_inputs([7], 3, 1, 16)
    cu_frames = torch.tensor(offsets, dtype=torch.int32)
    out = attend(qkv.detach(), table.detach(), cu_frames, 8, {})
    attend_backward(torch.ones_like(out), qkv.detach(), table.detach(), cu_frames, 8, {})


def test_a_segment_beyond_max_frames_shows_as_nan():
    qkv, table, cu_frames, _ = make_inputs([9], 3, 1, 16)
    assert attend(qkv.detach(), table.detach(), cu_frames, 4, {})[:4].isnan().all()


def test_offsets_reach_beyond_two_to_the_31_elements():
    """The last frames of 4.3 GB that are never touched: only what is read and written is backed by memory."""
    frames, pixels, heads, channels = 2**20 + 3, 32, 4, 8
    qkv = torch.empty(frames, pixels, 3, heads, channels, dtype=torch.float16)
    table = torch.zeros(1, 3, heads, channels, dtype=torch.float16).expand(frames, -1, -1, -1)
    assert qkv.numel() > 2**31
    torch.manual_seed(0)
    qkv[-2:] = torch.randn(2, pixels, 3, heads, channels)
    cu_frames = torch.tensor([frames - 2, frames], dtype=torch.int32)
    found = attend(qkv, table, cu_frames, 2, {"rows": 16})[-2:]
    wanted = time_attention_reference(qkv[-2:].float(), table[-2:].float(), torch.tensor([0, 2], dtype=torch.int32), 2)
    torch.testing.assert_close(found.float(), wanted, rtol=2e-3, atol=2e-3)


def test_every_kernel_was_launched(triton_kernels):
    before = {name: one.launches for name, one in runtime.KERNELS.items()}
    for length in (5, 70):
        qkv, table, *rest = make_inputs([length], 1, 1, 16)
        time_attention(qkv, table, *rest).sum().backward()
    names = [name for name in runtime.KERNELS if name.startswith("time_attention")]
    assert all(runtime.KERNELS[name].launches > before[name] for name in names)
