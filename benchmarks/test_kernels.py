"""Single operators under pytest-benchmark: pytest benchmarks/test_kernels.py [--benchmark-compare …]"""

import pytest
import torch

from benchmarks.cases import cases
from benchmarks.cases.case import as_outputs, cotangents_of, leaves, run

CASES = {case.name: case for case in cases("small")}


@pytest.mark.parametrize("mode", ["forward", "both"])
@pytest.mark.parametrize("contender", ["reference", "ours"])
@pytest.mark.parametrize("name", CASES)
def test_operator(benchmark, name, contender, mode):
    case = CASES[name]
    arguments = case.make(torch.device("cpu"), torch.float32)
    cotangents = cotangents_of(as_outputs(case.contenders[contender](*arguments))) if mode == "both" else None
    assert leaves(arguments)
    benchmark.group = f"{name}, {mode}"
    benchmark(run, case.contenders[contender], arguments, cotangents)
