"""What benchmarks.gpu would time: every case runs, ours agrees with its reference, and a block's rungs are one block."""

import pytest
import torch

from aef.config import PRESETS
from benchmarks.block import RUNGS, block_rungs
from benchmarks.kernels import cases, leaves

ISSUE_ROWS = {"time_attention", "temporal_pooling", "channel_norm", "bias_gelu", "bias_residual", "sample_vmf"} | {
    "precision_operator",
    "exchange_down",
    "exchange_up",
    "space_attention",
}
NEW = [case for case in cases("small") if case.operator in ("precision_operator", "exchange_down", "exchange_up")]


@pytest.mark.parametrize("size", ["small", "large"])
def test_every_operator_has_a_row(size):
    assert {case.operator for case in cases(size)} == ISSUE_ROWS


@pytest.mark.parametrize("case", NEW, ids=lambda case: case.name)
def test_ours_agrees_with_the_reference_of_its_row(case):
    torch.manual_seed(0)
    arguments = case.make(torch.device("cpu"), torch.float32)
    ours, reference = (case.contenders[name](*arguments) for name in ("ours", "reference"))
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)
    cotangent = torch.randn_like(reference)
    found, wanted = (torch.autograd.grad(one, leaves(arguments), cotangent) for one in (ours, reference))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert set(case.work) == {"forward", "backward", "both"}


def test_the_rungs_of_a_block_are_forward_and_backward_of_the_models_own():
    rungs = block_rungs(torch.device("cpu"), torch.float32, config=PRESETS["tiny"].model, side=8, samples=(1,))
    shapes = {}
    for shape, name, call, work in rungs:
        assert shape == "64 frames"
        assert work.flops > 0
        if RUNGS[name][1] is None:  # compiling is the GPU run's
            shapes[name] = [tuple(one.shape) for one in call()]
    assert set(shapes) == {"tuned eager", "ours"}
    assert shapes["tuned eager"] == shapes["ours"]
