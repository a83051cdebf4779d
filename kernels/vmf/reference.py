"""The specification of the von Mises–Fisher sampler in plain PyTorch. Frozen: every fast path is judged against it.

A sample around the mean direction μ on the unit sphere of ℝᴰ splits into its cosine w = ⟨z, μ⟩, whose density is
proportional to (1 − w²)^((D−3)/2) exp(κ w), and a uniform direction t of the tangent space at μ:

    z = w μ + √(1 − w²) t,      t = p / ‖p‖,      p = g − ⟨g, μ⟩ μ,      g ~ N(0, I)

w comes from one uniform number through its inverse distribution function, g from Box–Muller, and both from
Philox4x32-10 counted by (block, counter low, counter high, 0): block 0 gives the uniform of w, block 1 + j the normals
4j … 4j+3.
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor

from .philox import WORD, philox4x32, unit_interval

LOGIT_LIMIT = 16.7  # just beyond the logit of the smallest uniform number, 2⁻²⁴
LOGIT_STEPS = 4096


def sample_vmf_reference(mean: Tensor, kappa: float, key: tuple[int, int], counter: Tensor) -> Tensor:
    """`mean` (N, D) unit vectors, `counter` (N,) int64 → (N, D); differentiable in `mean`, w and g held constant."""
    wide = mean.to(torch.float64)
    versine, noise = draw_noise(kappa, key, counter, mean.shape[1])
    tangent = noise - (noise * wide).sum(dim=1, keepdim=True) * wide
    tangent = tangent / tangent.norm(dim=1, keepdim=True)
    return ((1 - versine) * wide + (versine * (2 - versine)).sqrt() * tangent).to(mean.dtype)


def draw_noise(kappa: float, key: tuple[int, int], counter: Tensor, dimension: int) -> tuple[Tensor, Tensor]:
    """The constants of each sample in fp64: `1 − w` (N, 1) and the normals `g` (N, D)."""
    blocks = torch.arange(1 + math.ceil(dimension / 4), device=counter.device)  # (B,)
    low, high = (counter & WORD)[:, None], ((counter >> 32) & WORD)[:, None]  # (N, 1)
    words = philox4x32(key, blocks + 0 * low, low + 0 * blocks, high + 0 * blocks, torch.zeros_like(blocks + low))
    u0, u1, u2, u3 = (unit_interval(word) for word in words)  # (N, B) each
    table = device_table(float(kappa), dimension, counter.device, torch.float64)
    normals = torch.stack([*_box_muller(u0[:, 1:], u1[:, 1:]), *_box_muller(u2[:, 1:], u3[:, 1:])], dim=2)
    return look_up(table, u0[:, :1]), normals.flatten(1)[:, :dimension]


def _box_muller(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    radius, angle = (-2 * u.log()).sqrt(), 2 * math.pi * v
    return radius * angle.cos(), radius * angle.sin()


def look_up(table: Tensor, u: Tensor) -> Tensor:
    """`1 − w` for uniform numbers `u`, linear between the entries of `versine_table`."""
    place = (torch.log(u / (1 - u)) + LOGIT_LIMIT) * (LOGIT_STEPS / (2 * LOGIT_LIMIT))
    left = place.floor().clamp(0, LOGIT_STEPS - 1)
    index = left.long()
    return torch.lerp(table[index], table[index + 1], place - left)


@torch.compiler.assume_constant_result  # a compiler cannot trace NumPy, and looks through caches
def device_table(kappa: float, dimension: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`versine_table` where it is read, made once: a copy from the host waits for the GPU, and no CUDA graph holds one."""
    return _device_table(kappa, dimension, device, dtype)


@functools.lru_cache(maxsize=16)
def _device_table(kappa: float, dimension: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return versine_table(kappa, dimension).to(device=device, dtype=dtype)


@functools.lru_cache(maxsize=16)
def versine_table(kappa: float, dimension: int) -> Tensor:
    """`1 − w` at `LOGIT_STEPS + 1` equally spaced logits of w's distribution function, in fp64 on the CPU.

    The logit keeps both tails: on a table that is uniform in probability, the last cell would spread its mass evenly
    over all that is left of [−1, 1]. `1 − w` rather than w keeps √(1 − w²) accurate in fp32 for a large κ.
    """
    versine = _versine_grid(kappa, dimension)
    log_density = _log_density(versine, kappa, dimension)
    below, above = _log_masses(versine, log_density)  # of a smaller, of a larger versine
    logits = np.linspace(-LOGIT_LIMIT, LOGIT_LIMIT, LOGIT_STEPS + 1)
    # The distribution function of w at w = 1 − v is the mass of the larger versines: its logit falls as v rises.
    logit_of_versine = above - below
    finite = np.isfinite(logit_of_versine)
    inverse = np.interp(logits, logit_of_versine[finite][::-1], versine[finite][::-1])
    return torch.from_numpy(inverse)


def _versine_grid(kappa: float, dimension: int) -> np.ndarray:
    # The angle θ with 1 − cos θ = 2 sin²(θ/2) is the natural coordinate: near its mode the density is about Gaussian
    # in θ.
    mode = _modal_angle(kappa, dimension)
    width = 1 / math.sqrt(kappa + dimension - 2)
    low, high = max(mode - 14 * width, 0.0), min(mode + 14 * width, math.pi)
    angles = np.linspace(low, high, 200_002)
    return 2 * np.sin(0.5 * (angles[1:] + angles[:-1]) / 2) ** 2  # midpoints: the density may be infinite at the poles


def _modal_angle(kappa: float, dimension: int) -> float:
    # d/dθ [(D − 2) log sin θ + κ cos θ] = 0  ⇔  κ sin²θ = (D − 2) cos θ
    degrees = dimension - 2
    cosine = 2 * kappa / (degrees + math.hypot(degrees, 2 * kappa)) if degrees or kappa else 0.0
    return math.acos(min(1.0, cosine))


def _log_density(versine: np.ndarray, kappa: float, dimension: int) -> np.ndarray:
    return (dimension - 3) / 2 * np.log(versine * (2 - versine)) - kappa * versine


def _log_masses(versine: np.ndarray, log_density: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    density = np.exp(log_density - log_density.max())
    cells = 0.5 * (density[1:] + density[:-1]) * np.diff(versine)
    with np.errstate(divide="ignore"):
        below = np.log(np.concatenate([[0.0], np.cumsum(cells)]))
        above = np.log(np.concatenate([np.cumsum(cells[::-1])[::-1], [0.0]]))
    return below, above
