"""The parts of the model that `python -m benchmarks.gpu` times whole: which module has whose rungs and checks."""

from collections.abc import Iterator
from types import ModuleType

import torch

from benchmarks import block, decoding

_HOMES: dict[str, ModuleType] = {**dict.fromkeys(block.MODULES, block), decoding.PART: decoding}
CHECKED: dict[str, tuple[str, ...]] = {**block.CHECKED, decoding.PART: decoding.CHECKED}
"""Of each part, the rungs that are compared with tuned eager before any is timed."""
_RUNGS = {"block": tuple(block.RUNGS), "exchange": block.EXCHANGE_RUNGS, decoding.PART: tuple(decoding.RUNGS)}


def check(part: str, device: torch.device) -> Iterator[tuple[str, str | None, str]]:
    """(rung, what is wrong or None, a remark) of each rung that is checked, at the paper's sizes."""
    return _HOMES[part].check(part, device)


def rungs(part: str, device: torch.device, *, compiled: bool, without: tuple[str, ...] = ()) -> Iterator[block.Rung]:
    """The rungs of a part in bf16 at the paper's sizes: those that a compiler makes, or the others."""
    home = _HOMES[part]
    names = [one for one in _RUNGS[part] if (home.RUNGS[one].compiled is not None) == compiled and one not in without]
    return home.rungs(part, device, torch.bfloat16, names=names)
