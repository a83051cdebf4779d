"""Triton at arm's length: the import guard, the interpreter flag, versions, and the launch of every kernel.

No other file touches Triton's internals. Without Triton the kernel files still import; `triton_problem` says what is
missing and the dispatcher falls back to PyTorch.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

INTERPRET = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
"""Kernels run in Triton's interpreter on CPU tensors. Read once: Triton itself reads it when it is imported."""

OLDEST, NEWEST = (3, 6), (3, 9)
"""Triton versions for which the kernels are written and proven."""

try:
    import triton
    import triton.language as tl

    _missing = None
except ImportError as error:  # macOS, Windows, or a bare PyTorch
    triton, tl = None, SimpleNamespace(constexpr=object)
    _missing = f"Triton cannot be imported ({error}); install triton to use the kernels"


def triton_problem() -> str | None:
    """Why Triton cannot be used at all, or None."""
    if _missing:
        return _missing
    version = _minor(triton.__version__)
    if not OLDEST <= version <= NEWEST:
        wanted = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
        return f"Triton {triton.__version__} is installed; the kernels are proven on {wanted}"
    if INTERPRET and version < (3, 7) and _minor(np.__version__) >= (2, 4):
        return f"the interpreter of Triton {triton.__version__} fails with NumPy 2.4 and newer; take Triton 3.7 or NumPy 2.3"
    return None


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


KERNELS: dict[str, Kernel] = {}
"""Every shipped kernel by name."""


class Kernel:
    """A jitted kernel that counts its launches; interpreted, also by the flags for which it was specialised."""

    def __init__(self, function: Callable) -> None:
        self.name, self.launches = function.__name__, 0
        self.flags: Counter[tuple[str, bool | str]] = Counter()
        self.jitted: Any = jit(function)  # Triton's type, which a machine without Triton does not have

    def launch(self, device: torch.device, grid: tuple[int, ...], *arguments: Any, **settings: Any) -> None:
        """Run on `device`'s current stream; a grid with an empty side launches nothing."""
        if 0 in grid:
            return
        self.launches += 1
        if INTERPRET:
            self.flags.update((name, value) for name, value in settings.items() if isinstance(value, bool | str))
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            self.jitted[grid](*arguments, **settings)


def kernel(function: Callable) -> Kernel:
    """Decorator of a shipped kernel: jits it and enters it in `KERNELS`."""
    if function.__name__ in KERNELS:
        raise ValueError(f"two kernels are named {function.__name__}")
    KERNELS[function.__name__] = Kernel(function)
    return KERNELS[function.__name__]


def jit(function: Callable) -> Callable:
    """Decorator of a function that kernels call."""
    return function if triton is None else triton.jit(function)


def compute_type(dtype: torch.dtype) -> Any:
    """The Triton type in which a kernel accumulates and takes softmaxes: fp64 for fp64, else fp32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def dot_type(dtype: torch.dtype) -> Any:
    """The Triton type of a matrix product's operands."""
    types = {"float64": "float64", "float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
    return getattr(tl, types[str(dtype).removeprefix("torch.")])


def dot_precision(dtype: torch.dtype) -> str:
    """How fp32 operands are multiplied: as PyTorch's own matrix products are set to be."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def power_of_two(size: int, least: int = 1) -> int:
    """The next power of two, at least `least` (a matrix product's sides are 16 or more)."""
    return max(least, 1 << (size - 1).bit_length())


@jit
def fold_rows(x, SPREAD: tl.constexpr):
    """Rows SPREAD apart added up: (ROWS, BLOCK) → (SPREAD, BLOCK). A loop that keeps this instead of the sum of all
    rows adds registers only; threads and warps meet once, behind the loop."""
    return tl.sum(tl.reshape(x, [x.shape[0] // SPREAD, SPREAD, x.shape[1]]), 0)


def row_spread(rows: int, block: int, warps: int, itemsize: int) -> int:
    """Rows of a tile that lie in different threads, where each thread loads 16 bytes of a row: `fold_rows`' SPREAD."""
    return min(rows, max(1, warps * 32 * 16 // (itemsize * block)))


def processors(tensor: Tensor) -> int:
    """Multiprocessors of the tensor's GPU, by which grids are sized; an H200's where kernels are only compiled, and few
    in the interpreter, whose programs run one after another."""
    if tensor.is_cuda:
        return torch.cuda.get_device_properties(tensor.device).multi_processor_count
    return 2 if INTERPRET else 132
