"""Argument checks shared by every operator: cheap, without synchronisation, phrased for whoever passed the argument."""

from itertools import pairwise

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def match_shape(sizes: dict[str, int], name: str, tensor: Tensor, pattern: str) -> None:
    """Check `tensor` against a pattern such as `"F P 3 H D"` and bind its letters in `sizes`.

    A letter that is already bound must have the same size again; a number must match literally; a leading `...`
    accepts any leading dimensions. Raises `ValueError` naming the argument, the dimension, and both sizes.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name}: expected a tensor, found {type(tensor).__name__}")
    letters = pattern.split()
    found = tuple(tensor.shape)
    if letters[0] == "...":
        letters = letters[1:]
        if tensor.dim() < len(letters):
            raise ValueError(f"{name}: expected at least {len(letters)} dimensions ({pattern}), found shape {found}")
        found = found[len(found) - len(letters) :]
    if len(found) != len(letters):
        raise ValueError(f"{name}: expected {len(letters)} dimensions ({', '.join(letters)}), found shape {found}")
    for letter, size in zip(letters, found):
        expected = int(letter) if letter.isdigit() else sizes.setdefault(letter, size)
        if size != expected:
            raise ValueError(f"{name}: expected {letter} = {expected} in ({', '.join(letters)}), found shape {found}")


def check_float(name: str, tensor: Tensor, device: torch.device | None = None) -> None:
    """Require a floating-point tensor (fp64, fp32, bf16 or fp16), on `device` if one is given."""
    if tensor.dtype not in FLOAT_DTYPES:
        raise ValueError(f"{name}: expected a floating-point tensor, found {tensor.dtype}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name}: expected device {device}, found {tensor.device}")


def check_integer(name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    """Require an integer tensor of exactly `dtype` on `device`."""
    if tensor.dtype != dtype:
        raise ValueError(f"{name}: expected {dtype}, found {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{name}: expected device {device}, found {tensor.device}")


def segment_lengths(cu_frames: Tensor, frames: int, max_frames: int) -> list[int]:
    """Frames per segment as Python ints. Reads `cu_frames`, so only the CPU paths and the references call it.

    Raises `ValueError` when the offsets do not rise from 0 to `frames`, or a segment is longer than `max_frames`.
    """
    offsets = cu_frames.tolist()
    if offsets[0] != 0 or offsets[-1] != frames:
        raise ValueError(f"cu_frames: expected offsets from 0 to {frames} frames, found {offsets[0]} to {offsets[-1]}")
    lengths = [end - start for start, end in pairwise(offsets)]
    if lengths and min(lengths) < 0:
        raise ValueError(f"cu_frames: expected rising offsets, found a fall at segment {lengths.index(min(lengths))}")
    if lengths and max(lengths) > max_frames:
        raise ValueError(
            f"max_frames: expected at least {max(lengths)} (segment {lengths.index(max(lengths))}), found {max_frames}"
        )
    return lengths


def check_segments(cu_frames: Tensor, max_frames: int, device: torch.device) -> None:
    """Require int32 segment offsets on `device` and a positive Python int `max_frames`, without reading the offsets."""
    match_shape({}, "cu_frames", cu_frames, "S+1")
    check_integer("cu_frames", cu_frames, torch.int32, device)
    if cu_frames.shape[0] == 0:
        raise ValueError("cu_frames: expected at least the offset 0, found an empty tensor")
    if not isinstance(max_frames, int | torch.SymInt) or max_frames < 1:
        raise ValueError(f"max_frames: expected a positive Python int, found {max_frames!r}")


def nan_where_cut(cu_frames: Tensor, max_frames: int) -> Tensor:
    """0, or NaN where a segment is longer than `max_frames`: one number on the device, found without synchronisation.

    A path that lets the device read the offsets adds it to its per-frame table, so that a bound that would cut frames
    off shows in every output instead of giving plausible numbers.
    """
    cut = (cu_frames.diff() > max_frames).any()
    return torch.zeros((), device=cu_frames.device).masked_fill(cut, torch.nan)
