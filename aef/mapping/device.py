"""Where a trained model runs."""

from __future__ import annotations

import torch

from aef.run import RunError


def find_device(device: str | torch.device) -> torch.device:
    """The device of a name, "auto" among them. Raises RunError for one that this machine does not have."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        named = torch.device(device)
    except (RuntimeError, TypeError):
        named = None
    if named is None or named.type not in ("cpu", "cuda"):  # mps lacks the double precision of times
        raise RunError(f"device {device!r}: expected auto, cpu, cuda or cuda:N")
    if named.type == "cuda" and (named.index or 0) >= torch.cuda.device_count():
        why = "this PyTorch is built without CUDA" if not torch.backends.cuda.is_built() else "it has no such GPU"
        raise RunError(f"device {device}: this machine cannot use it ({why}): `--device cpu`, or see `aef doctor`")
    return named
