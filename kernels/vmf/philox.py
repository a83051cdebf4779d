"""Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in torch integer arithmetic."""

import torch
from torch import Tensor

MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
WORD = 0xFFFFFFFF


def philox4x32(key: tuple[int, int], c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> tuple[Tensor, ...]:
    """Four random 32-bit words for each counter (c0, c1, c2, c3); all words are held in int64, 0 ≤ word < 2³²."""
    k0, k1 = key
    for _ in range(ROUNDS):
        high_0, low_0 = _multiply(c0, MULTIPLIER_0)
        high_1, low_1 = _multiply(c2, MULTIPLIER_1)
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = (k0 + WEYL_0) & WORD, (k1 + WEYL_1) & WORD
    return c0, c1, c2, c3


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    # The 64-bit product is exact modulo 2⁶⁴ in int64; the shift is arithmetic, so the sign bits are masked away.
    product = word * multiplier
    return (product >> 32) & WORD, product & WORD


def unit_interval(word: Tensor) -> Tensor:
    """A 32-bit word as a uniform number in (0, 1): `(⌊word / 2⁹⌋ + ½) / 2²³`, exactly representable in fp32."""
    return ((word >> 9).to(torch.float64) + 0.5) * 2.0**-23
