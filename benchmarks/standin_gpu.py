"""A GPU that is not there, for CPU builds of PyTorch: tensors on "cuda" have a shape, a type, a device, and no data.

The project's own code runs on it unchanged, forward and backward, as it would on an H200 with the H200's table of
kernels; kernels and PyTorch's operators only say what shape they return. That shows what a machine without a GPU
otherwise cannot:

- a tensor left on the CPU, or an operator that the GPU's path lacks: an error;
- the host waiting for the GPU to read a value: listed in `StandInGpu.waits`;
- the bytes of all tensors alive, as the program makes and drops them: `StandInGpu.allocated` and `.peak`. What an operator
  allocates inside itself, and the rounding of a real allocator, are not in it.

The library of `standin_gpu.cpp` must be in a process before PyTorch is: `restart` runs a module again with it.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

SOURCE = Path(__file__).with_suffix(".cpp")
LOADED = "AEF_STANDIN_GPU"
H200 = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=150_000_000_000,
    L2_cache_size=60 << 20,
)
ROOT = Path(__file__).parents[1]


def problem() -> str | None:
    """Why no stand-in can be had here, or None."""
    if torch.version.cuda or torch.version.hip:
        return "this PyTorch is built for GPUs; the stand-in is for CPU builds"
    if sys.platform != "linux" or not shutil.which("g++"):
        return "it needs Linux and g++"
    return None


def restart(module: str, arguments: Sequence[str]) -> int:
    """Run `python -m module arguments` with the stand-in's library loaded before PyTorch; its exit status."""
    libraries = Path(torch.__file__).parent / "lib"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "standin_gpu.so"
        flags = ["-std=c++20", "-shared", "-fPIC", f"-I{libraries.parent / 'include'}", f"-L{libraries}"]
        links = ["-lc10", "-ltorch_cpu", f"-Wl,-rpath,{libraries}"]
        subprocess.run(["g++", *flags, str(SOURCE), "-o", str(library), *links], check=True)
        env = {**os.environ, "LD_PRELOAD": str(library), LOADED: "1"}
        return subprocess.run([sys.executable, "-m", module, *arguments], env=env, cwd=ROOT).returncode


def loaded() -> bool:
    """Whether this process has the stand-in's library."""
    return os.environ.get(LOADED) == "1"


class StandInGpu(TorchDispatchMode):
    """Makes every tensor that is created on or moved to "cuda" one without data, and keeps account of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes = FakeTensorMode(allow_non_fake_inputs=True)
        self.values = (
            WeakTensorKeyDictionary()
        )  # of integers that were copied to the GPU, so that they can be read back
        self.waits: Counter[str] = Counter()
        self.alive: dict[int, int] = {}
        self.allocated = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if not any(isinstance(one, FakeTensor) for one in given) and _on_gpu(kwargs.get("device")):
            if given and not kwargs.get("non_blocking"):
                self._wait()  # PyTorch copies from the host and waits for the stream
            args, kwargs = tree_map(self._without_data, (args, kwargs))
            with self.shapes:
                made = func(*args, **kwargs)
            if len(given) == 1 and not given[0].is_floating_point():
                self.values[made] = given[0]
        else:
            made = func(*args, **kwargs)
            if any(_on_gpu(one.device) for one in given) and self._crosses(func, given, made):
                self._wait()
        for one in tree_leaves(made):
            if isinstance(one, Tensor) and _on_gpu(one.device):
                self._account(one)
        return made

    @staticmethod
    def _crosses(func, given: list[Tensor], made: Any) -> bool:
        """Whether an operator on the GPU's tensors returns one of the host's, or takes its indices from there."""
        indexing = func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)
        held = [*(given if indexing else ()), *(one for one in tree_leaves(made) if isinstance(one, Tensor))]
        return any(not _on_gpu(one.device) for one in held)

    def _without_data(self, one: Any) -> Any:
        return self.shapes.from_tensor(one) if isinstance(one, Tensor) else one

    def _account(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.alive:
            self.alive[storage._cdata] = storage.nbytes()
            self.allocated += storage.nbytes()
            self.peak = max(self.peak, self.allocated)
            weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, storage: int) -> None:
        self.allocated -= self.alive.pop(storage)

    def _wait(self) -> None:
        """Remember the innermost line of the project that made the host wait."""
        lines = [frame for frame in traceback.extract_stack() if frame.filename.startswith(str(ROOT))]
        own = [frame for frame in lines if not frame.filename.startswith((sys.prefix, __file__))]
        place = own[-1] if own else lines[-1]
        self.waits[f"{Path(place.filename).relative_to(ROOT)}:{place.lineno}"] += 1

    def read(self, tensor: FakeTensor) -> list:
        """`tolist` of integers whose values are known; of others there are none, as PyTorch's error says."""
        if tensor not in self.values:
            return [one.item() for one in tensor]
        self._wait()
        return self.values[tensor].tolist()

    @contextlib.contextmanager
    def capture(self, *arguments: Any, **settings: Any) -> Iterator[None]:
        """`torch.cuda.graph`, which cannot hold what makes the host wait: there, CUDA refuses."""
        before = self.waits.copy()
        yield
        if waited := self.waits - before:
            raise RuntimeError(f"operation not permitted when stream is capturing: {', '.join(waited)} waits")

    def reset_peak(self) -> None:
        self.peak = self.allocated


class _Literals(TorchFunctionMode):
    """`torch.tensor(…, device="cuda")` copies where no mode sees it: make it a literal and a copy."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor and _on_gpu(kwargs.get("device")):
            return func(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        return func(*args, **kwargs)


def _on_gpu(device: torch.device | str | None) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class _Event:
    """An event between which no time passes that anybody knows."""

    def __init__(self, **settings: Any) -> None: ...
    def record(self, *stream: Any) -> None: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, other: "_Event") -> float:
        return float("nan")


class _Stream:
    def __init__(self, *arguments: Any, **settings: Any) -> None: ...
    def wait_stream(self, other: "_Stream") -> None: ...


class _Graph:
    def replay(self) -> None: ...


@contextlib.contextmanager
def _nothing(*arguments: Any, **settings: Any) -> Iterator[None]:
    yield


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **settings: Any) -> Tensor:
    """`scaled_dot_product_attention` by the backend that a GPU would take: a CPU build asks no GPU and takes products."""
    if attn_mask is None and query.dtype in (torch.bfloat16, torch.float16):
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
    bias = None
    if attn_mask is not None:
        bias = attn_mask
        if attn_mask.dtype == torch.bool:
            bias = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
        bias = bias.expand(*query.shape[:3], key.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, True)[0]


@contextlib.contextmanager
def standin_gpu() -> Iterator[StandInGpu]:
    """Within the block `torch.cuda` speaks of one H200. Raises `RuntimeError` in a process without the library."""
    if not loaded():
        raise RuntimeError("the stand-in's library is not loaded: start the process with `restart`")
    gpu = StandInGpu()
    answers = {
        **{"is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0},
        **{"get_device_name": lambda *device: H200.name, "get_device_properties": lambda *device: H200},
        **{"get_device_capability": lambda *device: (H200.major, H200.minor), "is_bf16_supported": lambda *which: True},
        **{"memory_allocated": lambda *device: gpu.allocated, "max_memory_allocated": lambda *device: gpu.peak},
        **{"reset_peak_memory_stats": lambda *device: gpu.reset_peak(), "empty_cache": lambda: None},
        **{"synchronize": lambda *device: None, "Event": _Event, "Stream": _Stream, "CUDAGraph": _Graph},
        **{
            "_lazy_init": lambda: None,
            "current_stream": lambda *device: _Stream(),
            "stream": _nothing,
            "graph": gpu.capture,
            "device": _nothing,
        },
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", _attention))
        stack.enter_context(mock.patch.object(FakeTensor, "tolist", lambda tensor: gpu.read(tensor)))
        stack.enter_context(mock.patch.object(Tensor, "record_stream", lambda tensor, stream: None))
        stack.enter_context(_Literals())
        stack.enter_context(gpu)
        yield gpu
