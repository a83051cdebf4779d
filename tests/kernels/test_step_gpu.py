"""Two training steps of `tiny` on a GPU give the losses that are pinned on the CPU, whatever runs its operators.

Each operator's own outputs and gradients are checked there by `python -m benchmarks.gpu`, at full size, before it times any.
"""

import pytest
import torch

from tests.kernels.two_steps import LOSSES, TwoSteps

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("request_", ["auto", "torch", "triton", "flash"])
def test_two_steps_on_a_gpu_give_the_pinned_losses(request_, monkeypatch):
    monkeypatch.setenv("AEF_KERNELS", request_)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # fp32 is what was pinned
    assert TwoSteps(monkeypatch, "cuda")()[0] == pytest.approx(LOSSES, rel=1e-3)
