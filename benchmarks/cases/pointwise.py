"""LayerNorm, GELU and residual passes, and the von Mises–Fisher sampler."""

import torch
import torch.nn.functional as F
from torch import Tensor

from aef import kernels
from aef.kernels.activation.reference import bias_gelu_reference, bias_residual_reference, gelu_linear_reference
from aef.kernels.channel_norm.reference import EPS, channel_norm_reference, residual_norm_reference
from aef.kernels.vmf.eager import sample_vmf_eager
from aef.kernels.vmf.reference import sample_vmf_reference
from benchmarks import roofline

from .case import Arguments, Case, Contender, Decision, eager_norm, random_leaf


def with_norm(state: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A state and its LayerNorm, by PyTorch."""
    return state, eager_norm(state, weight, bias, EPS)


def with_channel_norm(state: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A state and its LayerNorm, by our operator."""
    return state, kernels.channel_norm(state, weight, bias)


CONTENDERS: dict[str, dict[str, Contender]] = {
    "channel_norm": {
        "ours": kernels.channel_norm,
        "eager": lambda x, weight, bias: eager_norm(x, weight, bias, EPS),
        "reference": channel_norm_reference,
    },
    "residual_norm": {
        "ours": kernels.residual_norm,
        "two operators": lambda x, added, residual, weight, bias: with_channel_norm(
            kernels.bias_residual(x, added, residual), weight, bias
        ),
        "eager": lambda x, added, residual, weight, bias: with_norm(x + added + residual, weight, bias),
        "reference": residual_norm_reference,
    },
    "bias_gelu": {
        "ours": kernels.bias_gelu,
        "eager": lambda x, bias: F.gelu(x + bias),
        "reference": bias_gelu_reference,
    },
    "gelu_linear": {
        "ours": kernels.gelu_linear,
        "eager": lambda x, bias, weight: F.linear(F.gelu(x + bias), weight),
        "reference": gelu_linear_reference,
    },
    "bias_residual": {
        "ours": kernels.bias_residual,
        "eager": lambda x, bias, residual: x + bias + residual,
        "reference": bias_residual_reference,
    },
}


def point_wise(operator: str, rows: int, channels: int, value: int) -> Case:
    """One of CONTENDERS over (rows, channels)."""

    def make(device: torch.device, dtype: torch.dtype) -> Arguments:
        x, residual = (random_leaf(rows, channels, device=device, dtype=dtype) for _ in range(2))
        weight, bias, added = (random_leaf(channels, device=device, dtype=dtype) for _ in range(3))
        product = random_leaf(-(-channels // 4), channels, device=device, dtype=dtype, scale=channels**-0.5)
        return {
            "channel_norm": (x, weight, bias),
            "residual_norm": (x, added, residual, weight, bias),
            "bias_gelu": (x, bias),
            "gelu_linear": (x, bias, product),
            "bias_residual": (x, bias, residual),
        }[operator]

    work = getattr(roofline, operator)(rows, channels)
    deciding = "bias_gelu" if operator == "gelu_linear" else operator
    same = "two operators" if operator == "residual_norm" else "eager"
    decision = Decision(deciding, {"channels": channels}, stock={same: "torch"})
    return Case(operator, f"{rows}x{channels}", make, CONTENDERS[operator], work, decision, value)


def sampling(rows: int, value: int) -> Case:
    """Samples of the paper's 64 dimensions, in fp32 as the model draws them."""

    def make(device: torch.device, dtype: torch.dtype) -> Arguments:
        mean = F.normalize(torch.randn(rows, 64, device=device), dim=1).requires_grad_()
        return mean, 8000.0, (0, 0), torch.arange(rows, device=device)

    contenders = {"ours": kernels.sample_vmf, "eager": sample_vmf_eager, "reference": sample_vmf_reference}
    decision = Decision("sample_vmf", {"channels": 64}, stock={"eager": "torch"})
    work = roofline.sample_vmf(rows, 64)
    return Case("sample_vmf", f"{rows}x64", make, contenders, work, decision, value, ("reference",))
