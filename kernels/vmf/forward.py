"""The von Mises–Fisher sampler in one pass: random words, cosine, normals, projection and sum never leave registers.

`program (rows)`: a tile of rows; block j of a row's counter gives the normals of its channels 4j … 4j+3.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..runtime import compute_type, jit, kernel, power_of_two, tl
from .reference import LOGIT_LIMIT, LOGIT_STEPS, device_table

DEFAULTS = {"rows": 16, "num_warps": 4}


@jit
def uniform(word, ACC: tl.constexpr):
    """A 32-bit word as a number in (0, 1), exact in fp32: `(⌊word / 2⁹⌋ + ½) / 2²³`."""
    return ((word >> 9).to(ACC) + 0.5) * 1.1920928955078125e-07


@jit
def turn(v):
    """cos 2πv and sin 2πv for v in (0, 1), to 2·10⁻⁹.

    By quarter turns and series: the library's functions carry a reduction of huge angles, whose table lies on the stack.
    """
    quarters = 4 * v
    nearest = tl.floor(quarters + 0.5)
    x = (quarters - nearest) * 1.5707963267948966
    y = x * x
    sine = x * (1 - y / 6 * (1 - y / 20 * (1 - y / 42 * (1 - y / 72))))
    cosine = 1 - y / 2 * (1 - y / 12 * (1 - y / 30 * (1 - y / 56 * (1 - y / 90))))
    odd = (nearest == 1) | (nearest == 3)
    c = tl.where(odd, sine, cosine)
    s = tl.where(odd, cosine, sine)
    return tl.where((nearest == 1) | (nearest == 2), -c, c), tl.where((nearest == 2) | (nearest == 3), -s, s)


@jit
def box_muller(u, v):
    """Two normals from two uniform numbers."""
    radius = tl.sqrt(-2 * tl.log(u))
    cosine, sine = turn(v)
    return radius * cosine, radius * sine


@jit
def draw_noise(table, seed, epoch, counter, ROWS: tl.constexpr, GROUPS: tl.constexpr, ACC: tl.constexpr, LIMIT: tl.constexpr, STEPS: tl.constexpr):  # fmt: skip
    """`1 − w` (ROWS,) and the normals (ROWS, 4 · GROUPS) of each counter, as the reference draws them."""
    # The two key words make up Triton's 64-bit seed, low word first. (An argument of 1 is a constant to the compiler:
    # it has no type to convert, so it is added to a typed zero.)
    zero = (tl.program_id(0) * 0).to(tl.uint64)
    key = ((zero + epoch) << 32) | (zero + seed)
    low = (counter & 0xFFFFFFFF).to(tl.uint32)
    high = ((counter >> 32) & 0xFFFFFFFF).to(tl.uint32)
    nought = tl.zeros([ROWS], tl.uint32)
    word, _, _, _ = tl.philox(key, nought, low, high, nought)
    u = uniform(word, ACC)
    place = (tl.log(u / (1 - u)) + LIMIT) * (STEPS / (2 * LIMIT))
    left = tl.minimum(tl.maximum(tl.floor(place), 0.0), STEPS - 1.0)
    index = left.to(tl.int32)
    lower, upper = tl.load(table + index).to(ACC), tl.load(table + index + 1).to(ACC)
    versine = lower + (upper - lower) * (place - left)
    group = (1 + tl.arange(0, GROUPS)).to(tl.uint32)[None, :] + nought[:, None]
    naught = tl.zeros([ROWS, GROUPS], tl.uint32)
    a, b, c, d = tl.philox(key, group, low[:, None] + naught, high[:, None] + naught, naught)
    n0, n1 = box_muller(uniform(a, ACC), uniform(b, ACC))
    n2, n3 = box_muller(uniform(c, ACC), uniform(d, ACC))
    normals = tl.join(tl.join(n0, n2), tl.join(n1, n3))  # (ROWS, GROUPS, pair, member)
    return versine, tl.reshape(normals, [ROWS, 4 * GROUPS])


@jit
def tangent_of(mean, noise, inside):
    """The noise's part in the tangent space, its length, and its component along the mean."""
    noise = tl.where(inside, noise, 0.0)
    along = tl.sum(noise * mean, 1)
    tangent = noise - along[:, None] * mean
    length = tl.sqrt(tl.sum(tangent * tangent, 1))
    return noise, tangent, tl.where(length == 0, 1.0, length), along  # rows beyond the last have none


@kernel
def sample_vmf_forward(
    mean, counter, table, out, rows, seed, epoch,
    WIDTH: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr,
    LIMIT: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, 4 * GROUPS)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    versine, noise = draw_noise(
        table, seed, epoch, tl.load(counter + row, mask=row < rows, other=0), ROWS, GROUPS, ACC, LIMIT, STEPS
    )
    place = row[:, None] * WIDTH + column[None, :]
    direction = tl.load(mean + place, mask=inside, other=0.0).to(ACC)
    _, tangent, length, _ = tangent_of(direction, noise, inside)
    sine = tl.sqrt(versine * (2 - versine))
    sample = (1 - versine)[:, None] * direction + (sine / length)[:, None] * tangent
    tl.store(out + place, sample.to(out.dtype.element_ty), mask=inside)


def sample(mean: Tensor, kappa: float, key: tuple[int, int], counter: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Launch the forward kernel: `mean` (N, D), `counter` (N,) → (N, D)."""
    mean = mean.contiguous()
    out = torch.empty_like(mean)
    grid, arguments, settings = plan(mean, kappa, key, counter, config)
    sample_vmf_forward.launch(mean.device, grid, mean, *arguments[:2], out, *arguments[2:], **settings)
    return out


def plan(
    mean: Tensor, kappa: float, key: tuple[int, int], counter: Tensor, config: Mapping[str, Any]
) -> tuple[tuple[int], tuple, dict[str, Any]]:
    """Grid, (counter, table, rows, seed, epoch) and settings that forward and backward share."""
    config = DEFAULTS | dict(config)
    rows, width = mean.shape
    wide = torch.promote_types(mean.dtype, torch.float32)
    table = device_table(float(kappa), width, mean.device, wide)
    settings = {
        "WIDTH": width,
        "GROUPS": power_of_two(-(-width // 4)),
        "ROWS": config["rows"],
        "ACC": compute_type(mean.dtype),
        "LIMIT": LOGIT_LIMIT,
        "STEPS": LOGIT_STEPS,
        "num_warps": config["num_warps"],
    }
    return (-(-rows // config["rows"]),), (counter.contiguous(), table, rows, *key), settings
