"""Time and space attention against every way in which PyTorch can compute them, copies and bookkeeping included."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from aef import kernels
from aef.data.batch import bucket_frames
from aef.kernels.space_attention.library import attend_products, attend_sdpa
from aef.kernels.space_attention.library import attend_varlen as attend_varlen_pixels
from aef.kernels.space_attention.reference import space_attention_reference
from aef.kernels.time_attention.library import attend_padded, attend_varlen, varlen_libraries, width_refusal
from aef.kernels.time_attention.reference import time_attention_reference
from benchmarks import roofline

from .case import SDPA, Arguments, Case, Contender, Decision, offsets, random_leaf

FLEX_TILE = 128
"""Tokens in which FlexAttention packs the short sequences of several pixels, and the tile of its masks. On Hopper the
only tile of its backward pass does not divide 64."""


def _libraries(attend: Contender, channels: int) -> tuple[dict[str, Contender], dict[str, str]]:
    """A rung for each variable-length attention that can be imported, and the one of them that dispatch takes as `flash`."""
    names = list(varlen_libraries())
    chosen = next((name for name in names if not width_refusal(name, channels)), None)
    return {name: partial(attend, library=name) for name in names}, {chosen: "flash"} if chosen else {}


def _forced(attend: Contender, backend: SDPBackend) -> Contender:
    def attend_by_it(*arguments):
        with sdpa_kernel([backend]):
            return attend(*arguments)

    return attend_by_it


def _grouped(lengths: list[int], products: bool = False) -> Contender:
    """SDPA over the segments of each length, which need no mask: the best that PyTorch has for teachers and students,
    where the host knows the lengths. The copies to and from its layout are part of the price."""
    groups = {length: [i for i, one in enumerate(lengths) if one == length] for length in dict.fromkeys(lengths)}

    def attend(qkv: Tensor, table: Tensor, cu_frames: Tensor, longest: int) -> Tensor:
        summed = qkv + table[:, None]
        if len(groups) == 1:
            whole = summed.unflatten(0, (len(lengths), -1)).permute(3, 0, 2, 4, 1, 5)  # (3, S, P, H, T, D)
            return _frame_major(_attend(whole, products)).flatten(0, 1)
        parts, out = summed.split(lengths), [summed] * len(lengths)
        for members in groups.values():
            stacked = torch.stack([parts[i].permute(2, 1, 3, 0, 4) for i in members], dim=1)
            for i, one in zip(members, _frame_major(_attend(stacked, products))):
                out[i] = one
        return torch.cat(out)

    return attend


def _attend(packed: Tensor, products: bool) -> Tensor:
    query, key, value = packed.flatten(1, 2)  # (S·P, H, T, D) each
    if products:
        out = (query @ key.mT * key.shape[-1] ** -0.5).softmax(dim=-1) @ value
    else:
        out = F.scaled_dot_product_attention(query, key, value)
    return out.unflatten(0, packed.shape[1:3])


def _frame_major(attended: Tensor) -> Tensor:
    return attended.permute(0, 3, 1, 2, 4)  # (S, P, H, T, D) → (S, T, P, H, D)


def _flex_packed(segments: int, length: int) -> Contender:
    """FlexAttention on packed pixels: G sequences of T frames in one of G·T tokens, block-diagonal by a mask."""

    def attend(qkv: Tensor, table: Tensor, cu_frames: Tensor, longest: int) -> Tensor:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        group = max(n for n in range(1, FLEX_TILE // length + 1) if segments * qkv.shape[1] % n == 0)

        def same_pixel(batch, head, query, key):
            return query // length == key // length

        summed = (qkv + table[:, None]).unflatten(0, (segments, length))
        packed = summed.permute(3, 0, 2, 1, 4, 5).flatten(1, 3).unflatten(1, (-1, group * length)).transpose(2, 3)
        tokens, device = group * length, str(qkv.device)
        mask = create_block_mask(same_pixel, None, None, tokens, tokens, device=device, BLOCK_SIZE=FLEX_TILE)
        out = flex_attention(*packed, block_mask=mask)
        return out.transpose(1, 2).flatten(0, 1).unflatten(0, (segments, -1, length)).transpose(1, 2).flatten(0, 1)

    return attend


def _flex_segments(qkv: Tensor, table: Tensor, cu_frames: Tensor, longest: int) -> Tensor:
    """FlexAttention over all frames of a pixel, each of which sees those of its segment."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    frames = qkv.shape[0]
    segment = torch.searchsorted(cu_frames[1:], torch.arange(frames, device=qkv.device), right=True)

    def same_segment(batch, head, query, key):
        return segment[query] == segment[key]

    mask = create_block_mask(same_segment, None, None, frames, frames, device=str(qkv.device))
    packed = (qkv + table[:, None]).permute(2, 1, 3, 0, 4)  # (3, P, H, F, D)
    return flex_attention(*packed, block_mask=mask).permute(2, 0, 1, 3)


def time_attention(lengths: list[int], pixels: int, heads: int, channels: int, value: int) -> Case:
    """Segments of `lengths` frames, under the bound that a batch of them has in training."""
    bound = bucket_frames(max(lengths))

    def make(device: torch.device, dtype: torch.dtype) -> Arguments:
        qkv = random_leaf(sum(lengths), pixels, 3, heads, channels, device=device, dtype=dtype)
        table = random_leaf(sum(lengths), 3, heads, channels, device=device, dtype=dtype)
        return qkv, table, offsets(lengths, device), bound

    equal = len(set(lengths)) == 1
    libraries, flash = _libraries(attend_varlen, channels)
    contenders: dict[str, Contender] = {
        "ours": kernels.time_attention,
        **libraries,
        "sdpa padded": attend_padded,
        "sdpa": _grouped(lengths),
        **{f"sdpa {name}": _forced(_grouped(lengths), backend) for name, backend in SDPA.items()},
        **{f"sdpa padded, {name}": _forced(attend_padded, SDPA[name]) for name in ("efficient", "cudnn")},
        "eager matmul": _grouped(lengths, products=True),
        "flex": _flex_packed(len(lengths), lengths[0]) if equal and 2 * lengths[0] <= FLEX_TILE else _flex_segments,
        "reference": time_attention_reference,
    }
    label = "+".join(map(str, lengths[:2] if len(set(lengths[:2])) == 2 else lengths[:1]))
    shape = f"T={label}, {len(lengths)} segments, {pixels}x{heads}x{channels}"
    work = roofline.time_attention(lengths, pixels, heads, channels)
    sizes = {"max_frames": bound, "channels": channels}
    decision = Decision("time_attention", sizes, stock={**flash, "sdpa padded": "torch"})
    compiled = ("sdpa", "eager matmul", "flex")
    return Case("time_attention", shape, make, contenders, work, decision, value, compiled, ("flex",))


def _flex_pixels(qkv: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(*qkv.permute(2, 0, 3, 1, 4)).transpose(1, 2)


def space_attention(frames: int, pixels: int, heads: int, channels: int, value: int) -> Case:
    """Every frame a sequence of `pixels`."""

    def make(device: torch.device, dtype: torch.dtype) -> Arguments:
        return (random_leaf(frames, pixels, 3, heads, channels, device=device, dtype=dtype),)

    libraries, flash = _libraries(attend_varlen_pixels, channels)
    contenders: dict[str, Contender] = {
        "ours": kernels.space_attention,
        **libraries,
        "sdpa": attend_sdpa,
        **{f"sdpa {name}": _forced(attend_sdpa, backend) for name, backend in SDPA.items()},
        "eager matmul": attend_products,
        "flex": _flex_pixels,
        "reference": space_attention_reference,
    }
    work, shape = roofline.space_attention(frames, pixels, heads, channels), f"{frames}x{pixels}x{heads}x{channels}"
    sizes = {"max_frames": pixels, "channels": channels}
    decision = Decision("space_attention", sizes, ("torch",), flash)
    compiled = ("sdpa", "eager matmul", "flex")
    return Case("space_attention", shape, make, contenders, work, decision, value, compiled, ("flex",))
