"""Temporal pooling against one chain of products or one SDPA for all queries of a segment."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from aef import kernels
from aef.data.batch import bucket_frames
from aef.kernels.temporal_pooling.library import pool_padded
from aef.kernels.temporal_pooling.reference import temporal_pooling_reference
from benchmarks import roofline

from .case import SDPA, Arguments, Case, Contender, Decision, offsets, random_leaf

Part = tuple[Tensor, Tensor, Tensor | None]


def _parts(lengths: list[int], periods: list[int], arguments: tuple) -> Iterator[Part]:
    """Of each segment: states with the timecode (T, P, C), queries (q, H, C), biases (q, H, T). Periods are in the
    order of their segments."""
    states, table, query, bias = arguments[:4]
    segments = (states + table[:, None]).split(lengths)
    biases = [None] * len(lengths)
    if bias is not None:
        pairs = bias.split([length * count for length, count in zip(lengths, periods)])
        biases = [one.unflatten(0, (count, -1)).transpose(1, 2) for one, count in zip(pairs, periods)]
    yield from zip(segments, query.to(states.dtype).split(periods), biases)


def _products(lengths: list[int], periods: list[int]) -> Contender:
    def pool(*arguments) -> Tensor:
        pooled = []
        for x, query, bias in _parts(lengths, periods, arguments):
            logits = torch.einsum("tpc,qhc->pqht", x, query)
            logits = logits if bias is None else logits + bias.to(logits.dtype)
            pooled.append(torch.einsum("pqht,tpc->qphc", logits.softmax(dim=-1), x))
        return torch.cat(pooled)

    return pool


def _sdpa(lengths: list[int], periods: list[int], backend: SDPBackend | None = None) -> Contender:
    def pool(*arguments) -> Tensor:
        pooled = []
        for x, query, bias in _parts(lengths, periods, arguments):
            keys = x.transpose(0, 1)[:, None]  # (P, 1, T, C)
            queries = query.flatten(0, 1).expand(keys.shape[0], 1, -1, -1)
            mask = None if bias is None else bias.to(x.dtype).flatten(0, 1).expand(keys.shape[0], 1, -1, -1)
            with contextlib.nullcontext() if backend is None else sdpa_kernel([backend]):
                one = F.scaled_dot_product_attention(queries, keys, keys, attn_mask=mask, scale=1.0)
            pooled.append(one[:, 0].unflatten(1, query.shape[:2]).permute(1, 0, 2, 3))
        return torch.cat(pooled)

    return pool


def temporal_pooling(
    lengths: list[int], periods: list[int], pixels: int, heads: int, channels: int, value: int, *, biased: bool = False
) -> Case:
    """`periods[s]` summaries of segment s, under the bound that a batch of such segments has in training."""
    bound = bucket_frames(max(lengths))
    chosen = [segment for segment, count in enumerate(periods) for _ in range(count)]
    pairs = sum(length * count for length, count in zip(lengths, periods))

    def make(device: torch.device, dtype: torch.dtype) -> Arguments:
        return (
            random_leaf(sum(lengths), pixels, channels, device=device, dtype=dtype),
            random_leaf(sum(lengths), channels, device=device, dtype=dtype),
            random_leaf(len(chosen), heads, channels, device=device, dtype=dtype, scale=channels**-0.5),
            random_leaf(pairs, heads, device=device, dtype=dtype) if biased else None,
            torch.tensor(chosen, dtype=torch.int32, device=device),
            offsets(lengths, device),
            bound,
        )

    # SDPA's flash back end takes no bias.
    forced = {name: backend for name, backend in SDPA.items() if not (biased and name == "flash")}
    contenders: dict[str, Contender] = {
        "ours": kernels.temporal_pooling,
        "matmul chain": _products(lengths, periods),
        "sdpa": _sdpa(lengths, periods),
        **{f"sdpa {name}": _sdpa(lengths, periods, backend) for name, backend in forced.items()},
        "per period, padded": pool_padded,
        "reference": temporal_pooling_reference,
    }
    shape = f"T={'+'.join(map(str, lengths))}, {'+'.join(map(str, periods))} periods, {pixels}x{heads}x{channels}"
    work = roofline.temporal_pooling(lengths, periods, pixels, heads, channels)
    sizes = {"max_frames": bound, "channels": channels, "biased": int(biased)}
    decision = Decision("temporal_pooling", sizes, stock={"per period, padded": "torch"})
    shape += ", biased" * biased
    return Case("temporal_pooling", shape, make, contenders, work, decision, value, ("matmul chain", "sdpa"))
