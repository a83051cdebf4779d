"""The real kernels in fp16 and bf16, once each: as near to fp32 as a small multiple of the reference in that type.

Triton's interpreter computes fp16 by NumPy's, and bf16 by the integers that hold its bits: `exact_bf16` mends what the
kernels use of it. vMF sampling is left out: the model draws in fp32.
"""

import numpy as np
import pytest
import torch

from aef.kernels import dispatch
from benchmarks import timing
from benchmarks.cases import POINT_WISE
from benchmarks.cases.attention import time_attention
from benchmarks.cases.convolutions import exchange, precision_operator
from benchmarks.cases.pointwise import point_wise
from benchmarks.cases.pooling import temporal_pooling

pytestmark = pytest.mark.interp

CASES = [
    time_attention([5, 3], 3, 2, 16, 1),
    temporal_pooling([5, 3], [2, 1], 3, 2, 16, 1),
    temporal_pooling([5, 3], [2, 1], 3, 2, 16, 1, biased=True),
    *(point_wise(operator, 6, 16, 1) for operator in (*POINT_WISE, "gelu_linear")),
    precision_operator(1, 4, 16, 1),
    *(exchange(operator, 1, 4, 16, 16, 3, 1) for operator in ("exchange_down", "exchange_up", "exchange_up_norm")),
]


@pytest.fixture
def exact_bf16(monkeypatch):
    """bf16 in the interpreter as a GPU has it: sums, products and casts in fp32, rounded to the nearest even."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    cast, binary, dot = builder.cast_impl, builder.binary_op, builder.create_dot

    def widened(one):
        if one.dtype.scalar != tl.bfloat16:
            return one
        return handle((one.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def rounded(one):
        wide = torch.from_numpy(np.array(one.data, np.float32))  # a copy, contiguous
        return handle(wide.bfloat16().view(torch.int16).numpy().view(np.uint16), tl.bfloat16)

    def cast_exactly(self, source, to, rounding=None):
        narrow = to.scalar == tl.bfloat16 and source.dtype.scalar != tl.bfloat16
        return rounded(source) if narrow else cast(self, widened(source), to)

    def by_fp32(self, left, right, operation):
        found = binary(self, widened(left), widened(right), operation)
        return rounded(found) if left.dtype.scalar == tl.bfloat16 else found

    monkeypatch.setattr(builder, "cast_impl", cast_exactly)
    monkeypatch.setattr(builder, "create_fp_to_fp", cast_exactly)
    monkeypatch.setattr(builder, "binary_op", by_fp32)
    monkeypatch.setattr(builder, "create_dot", lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest))
    for operator, refusals in dispatch._refusals.items():
        if "triton" in refusals:
            monkeypatch.setitem(dispatch._refusals, operator, refusals | {"triton": lambda case: None})
    monkeypatch.setattr(dispatch, "_choices", {})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_kernel_in_half_precision_is_as_near_as_its_reference(case, dtype, poisoned, exact_bf16):
    rung = timing.Rung("ours, triton", case.contenders["ours"], "triton")
    assert timing.check(case, torch.device("cpu"), rung, dtype, repeats=1)[0] is None
