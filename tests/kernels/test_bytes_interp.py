"""The real point-wise kernels move the bytes that their floors count: what tiles load and store, counted as they run."""

import pytest
import torch

from aef.kernels import runtime
from benchmarks import roofline
from benchmarks.cases.case import as_outputs, cotangents_of, leaves
from benchmarks.cases.pointwise import point_wise

pytestmark = pytest.mark.interp

ROWS, CHANNELS, WITHIN = 700, 48, 0.15


@pytest.fixture
def moved(monkeypatch):
    """Bytes that unmasked elements of loads and stores have moved; a call empties the count."""
    from triton.runtime import interpreter

    count = [0]
    builder = interpreter.InterpreterBuilder

    def counting(name):
        original = getattr(builder, name)

        def access(self, pointers, *arguments):
            mask = arguments[0] if name == "create_masked_load" else arguments[1]
            count[0] += int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8
            return original(self, pointers, *arguments)

        monkeypatch.setattr(builder, name, access)

    counting("create_masked_load")
    counting("create_masked_store")

    def take():
        found, count[0] = count[0], 0
        return found

    return take


@pytest.mark.parametrize("operator", ["channel_norm", "residual_norm", "bias_gelu", "bias_residual"])
def test_point_wise_kernels_move_the_bytes_of_the_plan(operator, triton_kernels, moved):
    assert runtime.INTERPRET
    case = point_wise(operator, ROWS, CHANNELS, 1)
    plan = getattr(roofline, operator)(ROWS, CHANNELS, itemsize=4)
    arguments = case.make(torch.device("cpu"), torch.float32)
    outputs = as_outputs(case.contenders["ours"](*arguments))
    assert moved() == pytest.approx(plan["forward"].bytes, rel=WITHIN)
    if operator != "bias_residual":  # whose backward is a sum of PyTorch's
        torch.autograd.grad(outputs, leaves(arguments), cotangents_of(outputs))
        assert moved() == pytest.approx(plan["backward"].bytes, rel=WITHIN)
