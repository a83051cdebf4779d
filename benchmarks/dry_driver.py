"""Compile kernels for a GPU that is not there: a stand-in for Triton's driver, which launches nothing.

The project's own launch code runs unchanged on meta tensors; each kernel it would launch is compiled by Triton with the
specialisation of the real call, and what the binary needs is read with `cuobjdump`. This touches Triton's internals, as
`kernels.runtime` does, and holds for the versions named there. A process is either compiling or interpreting.
"""

import functools
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from aef.kernels.runtime import KERNELS

SHARED_LIMIT = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
"""Bytes of shared memory that one block may use, per compute capability."""


@dataclass(frozen=True)
class Binary:
    """What one compiled kernel needs: registers per thread, stack bytes (spills), shared bytes, and whether its matrix
    products are warp-group instructions ("wgmma"), Blackwell's ("tcgen05"), "mma", or none (""). Its machine code (SASS),
    and the grid and the arguments by name of its first launch."""

    kernel: str
    arch: int
    warps: int
    registers: int
    stack: int
    shared: int
    tensor_core: str
    code: str = field(default="", repr=False)
    grid: tuple[int, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def problems(self) -> list[str]:
        """Why this binary must not ship."""
        found = []
        if self.stack:
            found.append(f"{self.stack} bytes of stack")
        if self.shared > SHARED_LIMIT[self.arch]:
            found.append(f"{self.shared} bytes of shared memory, the limit is {SHARED_LIMIT[self.arch]}")
        if self.registers * self.warps * 32 > 65536:
            found.append(f"{self.registers} registers in {self.warps} warps exceed the register file")
        return found


class DryDriver(DriverBase):
    """Answers what Triton's compiler asks a driver, and keeps a `Binary` of everything that it is given to load."""

    def __init__(self, arch: int) -> None:
        self.arch, self.warps, self.binaries = arch, 0, []
        self.utils = SimpleNamespace(load_binary=self._load, get_device_properties=self._properties)

    def _properties(self, device: int) -> dict[str, int]:
        # The limit is reported by `Binary.problems`: a row in the table says more than an exception.
        return {"max_shared_mem": 1 << 30, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536}

    def _load(self, name: str, cubin: bytes, shared: int, device: int) -> tuple:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            usage = _cuobjdump("-res-usage", file.name)
            code = _cuobjdump("-sass", file.name)
        registers, stack = (int(re.search(rf"{word}:(\d+)", usage).group(1)) for word in ("REG", "STACK"))
        self.binaries.append(Binary(name, self.arch, self.warps, registers, stack, shared, _tensor_core(code), code))
        return object(), object(), registers, stack // 4, 1024

    def launcher_cls(self, source, metadata):
        self.warps = metadata.num_warps  # Triton asks for the launcher, then loads the binary
        own, names = len(self.binaries), source.fn.arg_names

        def launch(*arguments, **settings) -> None:
            if not self.binaries[own].grid:
                given = dict(zip(names, arguments[-len(names) :], strict=True))
                self.binaries[own] = replace(self.binaries[own], grid=arguments[:3], arguments=given)

        return launch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        # Triton keeps compiled kernels per device: each capability is one of its own.
        return self.arch

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def get_benchmarker(self):
        raise NotImplementedError("nothing is timed without a GPU")

    def map_python_to_cpp_type(self, kind: str) -> str:
        return "int64_t"

    @staticmethod
    def is_active() -> bool:
        return True


@contextmanager
def dry_driver(arch: int) -> Iterator[DryDriver]:
    """Compile for compute capability `arch` (80, 90, 100) inside the block."""
    driver, before = DryDriver(arch), triton.runtime.driver._active
    for kernel in KERNELS.values():
        kernel.jitted.device_caches.clear()  # else what was compiled before would not be loaded again
    triton.runtime.driver.set_active(driver)
    try:
        yield driver
    finally:
        # Not `reset_active`, which asks for a real GPU's driver.
        triton.runtime.driver._active = before


@functools.cache
def _program() -> str:
    return knobs.nvidia.cuobjdump.path


def _cuobjdump(option: str, path: str) -> str:
    return subprocess.run([_program(), option, path], capture_output=True, text=True, check=True).stdout


def _tensor_core(code: str) -> str:
    for word, name in (("HGMMA", "wgmma"), ("UTCHMMA", "tcgen05"), ("HMMA", "mma"), ("DMMA", "mma")):
        if word in code:
            return name
    return ""
