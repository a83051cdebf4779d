"""Tuned PyTorch path of the von Mises–Fisher sampler: Philox in cache-sized chunks, normals in fp32."""

import math

import numpy as np
import torch
from torch import Tensor

from .philox import MULTIPLIER_0, MULTIPLIER_1, ROUNDS, WEYL_0, WEYL_1, WORD
from .reference import look_up, versine_table

CHUNK = 1 << 14
"""Counters handled at a time: ten arrays of 8 bytes each stay in a core's second-level cache."""


def sample_vmf_eager(mean: Tensor, kappa: float, key: tuple[int, int], counter: Tensor) -> Tensor:
    """`mean` (N, D) unit vectors, `counter` (N,) int64 → (N, D); differentiable in `mean`, the noise held constant."""
    wide = mean.to(torch.promote_types(mean.dtype, torch.float32))
    versine, noise = torch.ops.aef.vmf_noise(kappa, *key, counter, mean.shape[1])
    versine, noise = versine.to(wide.dtype), noise.to(wide.dtype)
    tangent = noise - torch.linalg.vecdot(noise, wide)[:, None] * wide
    length = torch.linalg.vecdot(tangent, tangent).sqrt()[:, None]
    return ((1 - versine) * wide + (versine * (2 - versine)).sqrt() / length * tangent).to(mean.dtype)


def sample_vmf_gradient(gradient: Tensor, mean: Tensor, kappa: float, key: tuple[int, int], counter: Tensor) -> Tensor:
    """The gradient of `mean` from that of the sample, as `backward.py` states it."""
    wide = torch.promote_types(mean.dtype, torch.float32)
    versine, noise = (one.to(wide) for one in torch.ops.aef.vmf_noise(kappa, *key, counter, mean.shape[1]))
    direction, incoming = mean.to(wide), gradient.to(wide)
    along = torch.linalg.vecdot(noise, direction)[:, None]
    tangent = noise - along * direction
    length = torch.linalg.vecdot(tangent, tangent).sqrt()[:, None]
    unit = tangent / length
    e = incoming - torch.linalg.vecdot(unit, incoming)[:, None] * unit
    e = e * ((versine * (2 - versine)).sqrt() / length)
    found = (1 - versine) * incoming - torch.linalg.vecdot(e, direction)[:, None] * noise - along * e
    return found.to(mean.dtype)


def draw_noise_eager(kappa: float, key: tuple[int, int], counter: Tensor, dimension: int) -> tuple[Tensor, Tensor]:
    """The reference's `draw_noise` on a CPU: `1 − w` (N, 1) in fp64, the normals `g` (N, D) in fp32."""
    uniforms = torch.from_numpy(_uniforms(key, counter.numpy(), 1 + math.ceil(dimension / 4)))  # (4, N, blocks)
    versine = look_up(versine_table(float(kappa), dimension), uniforms[0, :, :1].double())
    u, v = uniforms[0::2, :, 1:], uniforms[1::2, :, 1:]  # (2, N, B): the two pairs of each block
    radius, angle = u.log().mul_(-2).sqrt_(), v * (2 * math.pi)
    normals = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)  # (2, N, B, 2)
    return versine, normals.permute(1, 2, 0, 3).flatten(1)[:, :dimension].contiguous()


def _uniforms(key: tuple[int, int], counter: np.ndarray, blocks: int) -> np.ndarray:
    """`unit_interval` of the four words of each (row, block): (4, N, blocks) in fp32, where it is exact."""
    counter, out = counter.view(np.uint64), np.empty((4, len(counter), blocks), np.float32)
    rows = max(1, CHUNK // blocks)
    for first in range(0, len(counter), rows):
        one = counter[first : first + rows, None]
        words = np.empty((4, len(one), blocks), np.uint64)
        words[0], words[1], words[2], words[3] = np.arange(blocks), one & _WORD, one >> _HALF, 0
        _philox_in_place(key, *words)
        words >>= np.uint64(9)
        out[:, first : first + rows] = words
    out += np.float32(0.5)
    out *= np.float32(2.0**-23)
    return out


_WORD, _HALF = np.uint64(WORD), np.uint64(32)


def _philox_in_place(key: tuple[int, int], c0: np.ndarray, c1: np.ndarray, c2: np.ndarray, c3: np.ndarray) -> None:
    """`philox4x32` on 32-bit words held in uint64, whose products are exact and whose shifts are logical."""
    k0, k1 = key
    product_0, product_1 = np.empty_like(c0), np.empty_like(c0)
    for _ in range(ROUNDS):
        np.multiply(c0, np.uint64(MULTIPLIER_0), out=product_0)
        np.multiply(c2, np.uint64(MULTIPLIER_1), out=product_1)
        for word, mixed, product, key_word in ((c0, c1, product_1, k0), (c2, c3, product_0, k1)):
            np.right_shift(product, _HALF, out=word)
            word ^= mixed
            word ^= np.uint64(key_word)
            np.bitwise_and(product, _WORD, out=mixed)
        k0, k1 = (k0 + WEYL_0) & WORD, (k1 + WEYL_1) & WORD
