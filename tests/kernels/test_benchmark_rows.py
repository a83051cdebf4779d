"""What benchmarks.gpu would time: every case runs, ours agrees with its reference, and a block's rungs are one block."""

import pytest
import torch

from aef.config import PRESETS
from aef.model.pyramid import level_widths
from aef.model.stp import Block
from benchmarks.block import RUNGS, TwoStreams, _arguments, block_rungs
from benchmarks.kernels import as_outputs, cases, cotangents_of, leaves

ISSUE_ROWS = {"time_attention", "temporal_pooling", "channel_norm", "bias_gelu", "bias_residual", "sample_vmf"} | {
    "precision_operator",
    "exchange_down",
    "exchange_up",
    "exchange_up_norm",
    "residual_norm",
    "space_attention",
    "gelu_linear",
}
NEWEST = ("precision_operator", "gelu_linear", "residual_norm", "exchange_down", "exchange_up", "exchange_up_norm")
NEW = [case for case in cases("small") if case.operator in NEWEST]


@pytest.mark.parametrize("size", ["small", "large"])
def test_every_operator_has_a_row(size):
    assert {case.operator for case in cases(size)} == ISSUE_ROWS


@pytest.mark.parametrize("case", NEW, ids=lambda case: case.name)
def test_ours_agrees_with_the_reference_of_its_row(case):
    torch.manual_seed(0)
    arguments = case.make(torch.device("cpu"), torch.float32)
    ours, reference = (as_outputs(case.contenders[name](*arguments)) for name in ("ours", "reference"))
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)
    cotangents = cotangents_of(reference)
    found, wanted = (torch.autograd.grad(one, leaves(arguments), cotangents) for one in (ours, reference))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert set(case.work) == {"forward", "backward", "both"}


def test_the_rungs_of_a_block_are_forward_and_backward_of_the_models_own():
    rungs = block_rungs(torch.device("cpu"), torch.float32, config=PRESETS["tiny"].model, side=8, samples=(1,))
    shapes = {}
    for shape, name, make, work in rungs:
        assert shape == "64 frames"
        assert work.flops > 0
        if RUNGS[name].compiled is None:  # compiling is the GPU run's
            shapes[name] = [tuple(one.shape) for one in make()()]
    assert set(shapes) == {"tuned eager", "ours", "ours, two streams"}
    assert shapes["tuned eager"] == shapes["ours"] == shapes["ours, two streams"]


def test_two_streams_compute_what_one_does():
    block = Block(PRESETS["tiny"].model)
    widths = level_widths(16, 32, 32)
    arguments = _arguments([4, 2], 8, widths, torch.device("cpu"), torch.float32)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    reader = block.precision.norm
    found = TwoStreams(block, torch.device("cpu"))(*arguments, reader)
    torch.testing.assert_close(list(found), list(block(*arguments, reader)))
