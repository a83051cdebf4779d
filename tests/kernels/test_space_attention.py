"""Space attention: the reference against loops, every path against the reference, and what dispatch chooses."""

import math

import pytest
import torch

from aef import kernels
from aef.kernels import dispatch, runtime
from aef.kernels.space_attention import library
from aef.kernels.space_attention.reference import space_attention_reference
from aef.kernels.time_attention.reference import time_attention_reference

PATHS = {"public": kernels.space_attention, "sdpa": library.attend_sdpa, "products": library.attend_products}


def make_qkv(*, frames=3, pixels=5, heads=2, channels=8, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(frames, pixels, 3, heads, channels, dtype=torch.float64).to(dtype).requires_grad_()


def relative_error(found, wanted):
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()


def results(function, qkv, cotangent):
    out = function(qkv)
    return out, *torch.autograd.grad(out, qkv, cotangent.to(out.dtype))


def test_the_reference_is_attention_over_the_pixels_of_one_frame():
    qkv = make_qkv(dtype=torch.float64).detach()
    for frame, head, pixel in ((0, 0, 0), (1, 1, 4), (2, 0, 3)):
        query, key, value = qkv[frame, :, :, head].unbind(1)  # (N, D) each
        weights = torch.tensor([math.exp(query[pixel] @ one / math.sqrt(8)) for one in key], dtype=torch.float64)
        wanted = (weights / weights.sum()) @ value
        torch.testing.assert_close(space_attention_reference(qkv)[frame, pixel, head], wanted)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pixels", [1, 16, 65])
def test_every_path_is_as_near_as_the_reference(path, dtype, pixels):
    qkv = make_qkv(pixels=pixels, dtype=dtype)
    exact = make_qkv(pixels=pixels, dtype=dtype).detach().double().requires_grad_()
    cotangent = torch.randn(3, pixels, 2, 8)
    wanted = results(space_attention_reference, exact, cotangent)
    plain = results(space_attention_reference, qkv, cotangent)
    found = results(PATHS[path], qkv, cotangent)
    for one, other, truth in zip(found, plain, wanted, strict=True):
        assert (one.shape, one.dtype) == (other.shape, dtype)
        assert relative_error(one, truth) <= 2 * relative_error(other, truth) + 1e-6


def test_a_library_gets_one_sequence_per_frame(monkeypatch):
    def attend(query, key, value, cu_query, cu_key, longest_query, longest_key):
        assert cu_query.tolist() == cu_key.tolist() == [0, 5, 10, 15]
        assert (cu_query.dtype, longest_query, longest_key) == (torch.int32, 5, 5)
        qkv = torch.stack([query, key, value], dim=1)[:, None]
        return time_attention_reference(qkv, torch.zeros_like(qkv[:, 0]), cu_query, longest_query)[:, 0]

    monkeypatch.setattr(library, "varlen_library", lambda channels: ("stand-in", attend))
    qkv = make_qkv()
    cotangent = torch.randn(3, 5, 2, 8)
    for one, other in zip(
        results(library.attend_varlen, qkv, cotangent), results(space_attention_reference, qkv, cotangent), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_flash_takes_it_where_a_library_can_run_and_says_why_not_elsewhere(monkeypatch):
    monkeypatch.setattr(runtime, "INTERPRET", False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H200")
    sizes = {"max_frames": 64, "channels": 64, "many": 0}
    on_gpu = dispatch.Case(torch.device("cuda", 0), torch.bfloat16, sizes)
    assert dispatch.decide("flash", "space_attention", on_gpu).backend == "flash"
    assert "predicted" in dispatch.decide("auto", "space_attention", on_gpu).reason
    on_cpu = dispatch.Case(torch.device("cpu"), torch.bfloat16, sizes)
    assert "needs a GPU" in dispatch.decide("flash", "space_attention", on_cpu).reason


@pytest.mark.parametrize(
    ("qkv", "message"),
    [
        (torch.zeros(2, 4, 3, 16), "qkv: expected 5 dimensions"),
        (torch.zeros(2, 4, 2, 1, 16), "qkv: expected 3 = 3"),
        (torch.zeros(2, 4, 3, 1, 16, dtype=torch.int64), "qkv: expected a floating-point tensor"),
    ],
)
def test_bad_arguments_are_named(qkv, message):
    with pytest.raises(ValueError, match=message):
        kernels.space_attention(qkv)


def test_no_frame_is_no_work():
    assert kernels.space_attention(torch.zeros(0, 4, 3, 2, 16)).shape == (0, 4, 2, 16)


def test_compiles_into_one_graph():
    torch.compiler.reset()
    qkv = make_qkv()
    compiled = torch.compile(kernels.space_attention, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(qkv), kernels.space_attention(qkv))
