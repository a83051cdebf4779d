"""The public function of the von Mises–Fisher sampler."""

import math

import torch
from torch import Tensor

from .. import dispatch
from ..arguments import check_float, check_integer, match_shape
from .backward import sample_backward
from .eager import draw_noise_eager, sample_vmf_eager, sample_vmf_gradient
from .forward import sample
from .philox import WORD
from .reference import draw_noise

WIDEST_MEAN = 256


def check_arguments(mean: Tensor, kappa: float, key: tuple[int, int], counter: Tensor) -> None:
    """Refuse what no backend can compute, with one line that says what to change."""
    sizes: dict[str, int] = {}
    match_shape(sizes, "mean", mean, "N D")
    match_shape(sizes, "counter", counter, "N")
    check_float("mean", mean)
    check_integer("counter", counter, torch.int64, mean.device)
    if sizes["D"] < 3:
        raise ValueError(f"mean: expected at least 3 dimensions, found shape {tuple(mean.shape)}")
    if not (math.isfinite(kappa) and kappa > 0):
        raise ValueError(f"kappa: expected a positive finite concentration, found {kappa!r}")
    if len(key) != 2 or not all(isinstance(word, int) and 0 <= word <= WORD for word in key):
        raise ValueError(f"key: expected (seed, epoch), two ints in 0..2³²−1, found {key!r}")


def sample_vmf(mean: Tensor, kappa: float, key: tuple[int, int], counter: Tensor) -> Tensor:
    """One sample of vMF(mean, kappa) per row: the bottleneck's noise (Brown et al. 2025; κ = 8000 there).

        z = w μ + √(1 − w²) t,   w ∝ (1 − w²)^((D−3)/2) exp(κ w),   t = p / ‖p‖,   p = g − ⟨g, μ⟩ μ,   g ~ N(0, I)

    The noise is a pure function of `key` and `counter` (Philox4x32-10), so a sample depends on neither the device, the
    batch it is drawn in, nor the number of ranks. Gradients flow to `mean` with w and g held constant
    (reparameterisation).

    Args:
        mean: (N, D) unit vectors (D = 64 in AEF); not normalised again. fp64, fp32, bf16 or fp16.
        kappa: concentration, > 0.
        key: (seed, epoch), two ints in 0..2³²−1.
        counter: (N,) int64, one number per (sample, pixel); rows with equal counters share their noise.

    Returns:
        (N, D) in `mean`'s dtype.

    Raises:
        ValueError: wrong rank, shape, dtype or device; a non-positive `kappa`; a `key` out of range.
    """
    check_arguments(mean, kappa, key, counter)
    if dispatch.backend("sample_vmf", mean, channels=mean.shape[1]) == "torch":
        return sample_vmf_eager(mean, kappa, key, counter)
    return sample_vmf_operator(mean, kappa, *key, counter)


def _triton_refusal(case: dispatch.Case) -> str | None:
    if case.sizes["channels"] > WIDEST_MEAN:
        return f"{case.sizes['channels']} dimensions exceed the kernel's tile of {WIDEST_MEAN}"
    return dispatch.triton_refusal(case)


dispatch.register("sample_vmf", triton=_triton_refusal)


@torch.library.custom_op("aef::sample_vmf", mutates_args=())
def sample_vmf_operator(mean: Tensor, kappa: float, seed: int, epoch: int, counter: Tensor) -> Tensor:
    """`sample_vmf` as one opaque operator; the noise is drawn again in backward."""
    chosen = dispatch.choose("sample_vmf", mean, channels=mean.shape[1])
    if chosen.backend == "triton":
        return sample(mean, kappa, (seed, epoch), counter, chosen.config)
    return sample_vmf_eager(mean, kappa, (seed, epoch), counter)


@sample_vmf_operator.register_fake
def _(mean: Tensor, kappa: float, seed: int, epoch: int, counter: Tensor) -> Tensor:
    check_arguments(mean, kappa, (seed, epoch), counter)
    return mean.new_empty(mean.shape)


@torch.library.custom_op("aef::sample_vmf_backward", mutates_args=())
def sample_vmf_backward(gradient: Tensor, mean: Tensor, kappa: float, seed: int, epoch: int, counter: Tensor) -> Tensor:
    """The gradient of `mean`, w and g held constant."""
    chosen = dispatch.choose("sample_vmf", mean, channels=mean.shape[1])
    if chosen.backend == "triton":
        return sample_backward(gradient, mean, kappa, (seed, epoch), counter, chosen.config)
    return sample_vmf_gradient(gradient, mean, kappa, (seed, epoch), counter)


@sample_vmf_backward.register_fake
def _(gradient: Tensor, mean: Tensor, kappa: float, seed: int, epoch: int, counter: Tensor) -> Tensor:
    return mean.new_empty(mean.shape)


def _save(ctx, inputs, output) -> None:
    mean, ctx.kappa, ctx.seed, ctx.epoch, counter = inputs
    ctx.save_for_backward(mean, counter)


def _backward(ctx, gradient: Tensor):
    mean, counter = ctx.saved_tensors
    return sample_vmf_backward(gradient, mean, ctx.kappa, ctx.seed, ctx.epoch, counter), None, None, None, None


sample_vmf_operator.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op("aef::vmf_noise", mutates_args=())
def vmf_noise(kappa: float, seed: int, epoch: int, counter: Tensor, dimension: int) -> tuple[Tensor, Tensor]:
    """The constants of each sample: `1 − w` (N, 1) in fp64 and the normals (N, dimension) in fp32."""
    versine, noise = draw_noise(kappa, (seed, epoch), counter, dimension)
    return versine, noise.float()


@vmf_noise.register_kernel("cpu")
def _(kappa: float, seed: int, epoch: int, counter: Tensor, dimension: int) -> tuple[Tensor, Tensor]:
    return draw_noise_eager(kappa, (seed, epoch), counter, dimension)


@vmf_noise.register_fake
def _(kappa: float, seed: int, epoch: int, counter: Tensor, dimension: int) -> tuple[Tensor, Tensor]:
    rows = counter.shape[0]
    return counter.new_empty(rows, 1, dtype=torch.float64), counter.new_empty(rows, dimension, dtype=torch.float32)
