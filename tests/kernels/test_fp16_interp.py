"""The real kernels in fp16, once each: as near to fp32 as a small multiple of the reference in fp16.

Triton's interpreter computes fp16 by NumPy's, bf16 wrongly. vMF sampling is left out: the model draws in fp32.
"""

import pytest
import torch

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


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_kernel_in_fp16_is_as_near_as_its_reference(case, poisoned, monkeypatch):
    monkeypatch.setattr(timing, "REPEATS", 1)
    rung = timing.Rung("ours, triton", case.contenders["ours"], "triton")
    assert timing.check(case, torch.device("cpu"), rung, torch.float16) == (None, "")
