"""The reference of time attention against a dense masked attention over all frames, written independently."""

import math

import pytest
import torch

from aef.kernels import time_attention
from aef.kernels.time_attention.reference import time_attention_reference

LENGTHS = [[5], [1], [3, 1, 4], [0, 2, 0], [2, 2, 7]]


def dense_masked_attention(qkv, table, lengths):
    """All frames attend to all frames; a mask keeps those of the same segment."""
    frames = qkv.shape[0]
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    same = owner[:, None] == owner[None, :]
    out = torch.empty(frames, *qkv.shape[1:2], *qkv.shape[3:], dtype=qkv.dtype)
    rows = []
    for pixel in range(qkv.shape[1]):
        heads = []
        for head in range(qkv.shape[3]):
            q, k, v = (qkv[:, pixel, i, head] + table[:, i, head] for i in range(3))
            scores = torch.einsum("fd,gd->fg", q, k) / math.sqrt(q.shape[-1])
            heads.append(torch.softmax(scores.masked_fill(~same, -math.inf), dim=1) @ v)
        rows.append(torch.stack(heads, dim=1))
    stacked = torch.stack(rows, dim=1)
    assert stacked.shape == out.shape
    return stacked


def make_inputs(lengths, pixels=3, heads=2, channels=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(lengths) + 17 * len(lengths))
    frames = sum(lengths)
    qkv = torch.randn(frames, pixels, 3, heads, channels, generator=generator, dtype=dtype).requires_grad_()
    table = torch.randn(frames, 3, heads, channels, generator=generator, dtype=dtype).requires_grad_()
    cu_frames = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    return qkv, table, cu_frames


@pytest.mark.parametrize("function", [time_attention_reference, time_attention])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_equals_dense_masked_attention_forward_and_backward(function, lengths):
    qkv, table, cu_frames = make_inputs(lengths)
    out = function(qkv, table, cu_frames, max(lengths))
    expected = dense_masked_attention(qkv, table, lengths)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn_like(out)
    found = torch.autograd.grad(out, (qkv, table), cotangent)
    wanted = torch.autograd.grad(expected, (qkv, table), cotangent)
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_the_filler_segment_changes_no_other_segment():
    qkv, table, cu_frames = make_inputs([3, 4, 2])
    whole = time_attention(qkv, table, cu_frames, 4)
    without = time_attention(qkv[:7], table[:7], cu_frames[:3], 4)
    torch.testing.assert_close(whole[:7], without, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_near_double(dtype):
    qkv, table, cu_frames = make_inputs([4, 6], channels=16)
    expected = time_attention(qkv, table, cu_frames, 6)
    out = time_attention(qkv.to(dtype), table.float(), cu_frames, 6)
    assert out.dtype == dtype
    error = (out.double() - expected).norm() / expected.norm()
    assert error < {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]


def test_no_frames_give_an_empty_result():
    qkv, table, cu_frames = make_inputs([])
    assert time_attention(qkv, table, cu_frames, 1).shape == (0, 3, 2, 5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a | {"qkv": a["qkv"][0]}, "qkv: expected 5 dimensions"),
        (lambda a: a | {"table": a["table"][1:]}, "table: expected F = 7"),
        (lambda a: a | {"qkv": a["qkv"].long()}, "qkv: expected a floating-point tensor"),
        (lambda a: a | {"cu_frames": a["cu_frames"].long()}, "cu_frames: expected torch.int32"),
        (lambda a: a | {"table": a["table"].to("meta")}, "table: expected device cpu"),
        (lambda a: a | {"cu_frames": a["cu_frames"][:-1]}, "expected offsets from 0 to 7"),
        (lambda a: a | {"cu_frames": torch.tensor([0, 8, 7], dtype=torch.int32)}, "expected rising offsets"),
        (lambda a: a | {"max_frames": 3}, "max_frames: expected at least 4"),
        (lambda a: a | {"max_frames": 4.0}, "max_frames: expected a positive Python int"),
    ],
)
def test_bad_input_is_refused_with_a_clear_line(change, words):
    qkv, table, cu_frames = make_inputs([3, 4])
    arguments = change({"qkv": qkv, "table": table, "cu_frames": cu_frames, "max_frames": 4})
    with pytest.raises(ValueError, match=words):
        time_attention(**arguments)
