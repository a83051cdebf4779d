"""The implicit decoders of a preset with their losses, forward + backward: `python -m benchmarks.gpu --only decoders`.

One target of every source a sample, from the drawn embeddings to the errors f_i: what one kernel would have to replace
if the decoders were fused with their losses. Decoders and losses are the model's and the objective's own; targets
arrive standardised. "tuned eager" is PyTorch's best path (`AEF_KERNELS=torch`), then what torch.compile makes of it;
"ours" is what the model runs, plain and compiled. The floor is `roofline.decoders`: no hidden layer crosses memory.
"""

import copy
import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aef.config import PRESETS, Config
from aef.data.random_batch import sources_of
from aef.model.decoders import Decoder
from aef.objective.grid import expand_cells
from aef.objective.reconstruction import reconstruction_error
from aef.sources import BUILT_IN, Source
from benchmarks import roofline
from benchmarks.block import Rung, Way, kernels_from, without_zeros
from benchmarks.timing import compare, exact_products

PART = "decoders"
RUNGS = {
    "ours": Way("auto"),
    "tuned eager": Way("torch"),
    "max-autotune": Way("torch", {"mode": "max-autotune-no-cudagraphs"}),
    "compiled": Way("torch", {}),
    "ours compiled": Way("auto", {}),
}
CHECKED = ("ours",)
"""Rungs that are compared with tuned eager before any is timed."""
APART = 0.5
"""Of targets from predictions: the error of the right shift is well below that of all others, and no cell's is near 0,
where rounding would turn a gradient around."""


class Target(NamedTuple):
    """N targets of one source: metadata (N, M), position (N,), values and weight (N, g, g, C and 1)."""

    metadata: Tensor
    position: Tensor
    values: Tensor
    weight: Tensor


class DecodersWithLosses(nn.Module):
    """Embeddings (S, N, P, D) of N samples for S sources → errors (S, N), and the predictions of each source."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        model, (_, names) = config.model, sources_of(config, BUILT_IN)
        self.sources: tuple[Source, ...] = tuple(BUILT_IN[name] for name in names)
        self.side, self.dim = config.data.chip_px, model.embedding_dim
        self.decoders = nn.ModuleList(
            Decoder(one, model.embedding_dim, model.decoder_width, gated=model.decoder_gate) for one in self.sources
        )

    def decode(self, embeddings: Tensor, targets: Sequence[Target], dtype: torch.dtype) -> list[Tensor]:
        """(N, L, L, C) of each source."""
        square = (self.side, self.side)
        return [
            decoder(one, target.metadata, target.position, dtype).unflatten(1, square)
            for decoder, one, target in zip(self.decoders, embeddings.unbind(), targets)
        ]

    def forward(self, embeddings: Tensor, targets: Sequence[Target], dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        decoded, errors = self.decode(embeddings, targets, dtype), []
        for source, found, target in zip(self.sources, decoded, targets):
            values, weight = (expand_cells(one, self.side) for one in (target.values, target.weight))
            errors.append(reconstruction_error(source, found, values, weight)[0])
        return torch.stack(errors), decoded


def rungs(
    part: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    config: Config = PRESETS["large"],
    samples: tuple[int, ...] = (1, 4),
    names: Sequence[str] = tuple(RUNGS),
) -> Iterator[Rung]:
    """(shape, rung, what makes its call, work) of the decoders with their losses, for each number of samples."""
    module = without_zeros(DecodersWithLosses(config))
    for count in samples:
        given = _arguments(copy.deepcopy(module).to(device), count, device)
        sources, width = module.sources, config.model.decoder_width
        channels = [one.decoded_channels for one in sources] * count
        work = roofline.decoders(channels, module.side**2, module.dim, width)["both"]
        for name in names:
            yield f"{len(channels)} targets", name, partial(_make, module, RUNGS[name], given, dtype), work


def check(
    part: str, device: torch.device, *, config: Config = PRESETS["large"]
) -> Iterator[tuple[str, str | None, str]]:
    """(rung, what is wrong or None, a remark) of each of CHECKED: predictions and gradients against fp32, no further
    than a multiple of tuned eager in bf16."""
    torch.manual_seed(0)
    module = without_zeros(DecodersWithLosses(config))
    low = copy.deepcopy(module).to(torch.bfloat16).to(device)
    module = module.to(device)
    given = _arguments(module, 1, device)
    with exact_products():
        wanted = _results(module, "torch", given, torch.float32)
    plain = _results(low, "torch", given, torch.bfloat16)
    for name in CHECKED:
        found = _results(low, RUNGS[name].kernels, given, torch.bfloat16)
        yield name, *compare(wanted, plain, found, len(module.sources))


def _make(module: DecodersWithLosses, way: Way, given: tuple, dtype: torch.dtype) -> Callable[[], object]:
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
    own = copy.deepcopy(module).to(dtype).to(given[0].device)
    runs = own if way.compiled is None else torch.compile(own, dynamic=False, **way.compiled)
    return partial(_results, own, way.kernels, given, dtype, runs)


def _results(
    module: nn.Module, backend: str, given: tuple, dtype: torch.dtype, runs: Callable | None = None
) -> tuple[Tensor, ...]:
    """Predictions, and the gradients of the embeddings and of all parameters from the sum of all errors."""
    embeddings, targets = given
    with kernels_from(backend):
        errors, decoded = (module if runs is None else runs)(embeddings, targets, dtype)
        gradients = torch.autograd.grad(errors.sum(), [embeddings, *module.parameters()])
    return (*(one.detach() for one in decoded), *gradients)


def _arguments(module: DecodersWithLosses, samples: int, device: torch.device) -> tuple[Tensor, list[Target]]:
    """Random unit vectors, and targets like what the decoders make of them, one pixel aside."""
    pixels, dim = module.side**2, module.dim
    embeddings = nn.functional.normalize(torch.randn(len(module.sources), samples, pixels, dim, device=device), dim=-1)
    targets = []
    for decoder, one in zip(module.decoders, embeddings):
        metadata = torch.randn(samples, len(decoder.metadata), device=device)
        targets.append(Target(metadata, torch.rand(samples, device=device), one, one))
    with torch.no_grad(), exact_products(), kernels_from("torch"):
        decoded = module.decode(embeddings, targets, torch.float32)
    made = [_target(*of_one) for of_one in zip(module.sources, targets, decoded)]
    return embeddings.requires_grad_(), made


def _target(source: Source, target: Target, decoded: Tensor) -> Target:
    """What a sensor could have seen where this was decoded."""
    moved = decoded.roll((1, -1), dims=(1, 2))
    if source.classes:
        values = nn.functional.one_hot(moved.argmax(-1), moved.shape[-1]).to(moved.dtype)
    else:
        values = moved + APART + 0.1 * torch.randn_like(moved)
    if source.grid == "native":
        values = values[:, :1, :1]
    return target._replace(values=values, weight=torch.rand_like(values[..., :1]))
