"""The specification of space attention in plain PyTorch. Frozen: every fast path is judged against it."""

from torch import Tensor


def space_attention_reference(qkv: Tensor) -> Tensor:
    """`out[f, n, h] = Σ_m softmax_m(⟨q[f,n,h], k[f,m,h]⟩ / √D) v[f,m,h]`: (F, N, 3, H, D) → (F, N, H, D)."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (F, H, N, D) each
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return (scores.softmax(dim=-1) @ value).transpose(1, 2)
