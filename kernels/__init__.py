"""Fused operators of the STP encoder, each beside its plain PyTorch reference. Imported as `aef.kernels`.

Never import top-level `kernels`: the operators would register twice.

Each folder holds one operator: `reference.py` is its specification in plain PyTorch, `op.py` the public function.
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
