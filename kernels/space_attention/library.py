"""Space attention through PyTorch's and flash-attn's kernels, and by plain products on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..row_softmax import row_softmax
from ..time_attention.library import varlen_libraries, varlen_library


def attend_sdpa(qkv: Tensor) -> Tensor:
    """`scaled_dot_product_attention` on strided views: no copy into its layout."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (F, H, N, D) each
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def attend_varlen(qkv: Tensor, library: str = "") -> Tensor:
    """A library's variable-length attention, every frame a sequence: tokens lie as these libraries want them.
    `library`: a name of `varlen_libraries`, or the one that `varlen_library` chooses."""
    frames, pixels = qkv.shape[:2]
    attend = varlen_libraries()[library] if library else varlen_library(qkv.shape[-1])[1]
    query, key, value = qkv.flatten(0, 1).unbind(1)  # (F·N, H, D) each
    offsets = torch.arange(frames + 1, device=qkv.device, dtype=torch.int32) * pixels
    return attend(query, key, value, offsets, offsets, pixels, pixels).unflatten(0, (frames, pixels))


def attend_products(qkv: Tensor) -> Tensor:
    """Batched products over head-major copies, the scale in the queries' copy."""
    frames, pixels, _, heads, channels = qkv.shape
    query, key, value = qkv.permute(2, 0, 3, 1, 4).reshape(3, frames * heads, pixels, channels)
    weights = row_softmax(torch.bmm(query * channels**-0.5, key.mT))
    return torch.bmm(weights, value).view(frames, heads, pixels, channels).transpose(1, 2)
