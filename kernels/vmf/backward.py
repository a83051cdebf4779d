"""The von Mises–Fisher sampler, backward: the noise is drawn again, so that nothing but the arguments is kept.

With s = √(1 − w²), t = p / ‖p‖, p = g − ⟨g, μ⟩ μ and the incoming gradient dz:

    e = (dz − ⟨t, dz⟩ t) s / ‖p‖,    dμ = w dz − ⟨e, μ⟩ g − ⟨g, μ⟩ e
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..runtime import kernel, tl
from .forward import draw_noise, plan, tangent_of


@kernel
def sample_vmf_backward(
    gradient, mean, counter, table, d_mean, rows, seed, epoch,
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
    incoming = tl.load(gradient + place, mask=inside, other=0.0).to(ACC)
    noise, tangent, length, along = tangent_of(direction, noise, inside)
    unit = tangent / length[:, None]
    sine = tl.sqrt(versine * (2 - versine))
    e = (incoming - tl.sum(unit * incoming, 1)[:, None] * unit) * (sine / length)[:, None]
    result = (1 - versine)[:, None] * incoming - tl.sum(e * direction, 1)[:, None] * noise - along[:, None] * e
    tl.store(d_mean + place, result.to(d_mean.dtype.element_ty), mask=inside)


def sample_backward(
    gradient: Tensor, mean: Tensor, kappa: float, key: tuple[int, int], counter: Tensor, config: Mapping[str, Any]
) -> Tensor:
    """Launch the backward kernel: `gradient` (N, D) of the sample → gradient of `mean`."""
    gradient, mean = gradient.contiguous(), mean.contiguous()
    d_mean = torch.empty_like(mean)
    grid, arguments, settings = plan(mean, kappa, key, counter, config)
    sample_vmf_backward.launch(mean.device, grid, gradient, mean, *arguments[:2], d_mean, *arguments[2:], **settings)
    return d_mean
