"""Fused operators of the STP encoder, each beside its plain PyTorch reference. Imported as `aef.kernels`.

Never import top-level `kernels`: the operators would register twice.

Each folder holds one operator:

============= =========================================================================================================
file          what it holds
============= =========================================================================================================
reference.py  the specification in plain PyTorch, frozen: what every path is tested against, forward and every gradient
forward.py    Triton kernels and the functions that launch them (convolutions: `implicit_gemm.py` beside the folders)
backward.py   the same for the gradients
eager.py      tuned plain PyTorch, above all for CPUs
library.py    the operator by kernels of others: cuDNN, oneDNN, PyTorch's SDPA and matrix products, flash-attn
op.py         the public functions: checks, choice of a path, registration with its fakes and gradients
============= =========================================================================================================

An operator has only those that it needs. Start with `reference.py`, then `op.py`.
"""

from .activation.op import bias_gelu, bias_residual, gelu_linear
from .channel_norm.op import Normalized, channel_norm, norm_linear, residual_norm
from .exchange.op import exchange_down, exchange_up_add, exchange_up_norm
from .precision_conv.op import Activated, conv3x3, conv3x3_gelu
from .space_attention.op import space_attention
from .temporal_pooling.op import temporal_pooling
from .time_attention.op import time_attention
from .vmf.op import sample_vmf

__all__ = [
    "Activated",
    "Normalized",
    "bias_gelu",
    "bias_residual",
    "channel_norm",
    "conv3x3",
    "conv3x3_gelu",
    "exchange_down",
    "exchange_up_add",
    "exchange_up_norm",
    "gelu_linear",
    "norm_linear",
    "residual_norm",
    "sample_vmf",
    "space_attention",
    "temporal_pooling",
    "time_attention",
]
