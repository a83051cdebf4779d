"""Compile every shipped kernel configuration without a GPU and write down what the binaries need.

    python -m benchmarks.aot [--arch 80 90 100] [--write benchmarks/results/aot.md]

Each row is one kernel of one table entry, launched through the project's own host code on meta tensors of paper-size
shapes. A row with a stack (spills) or more shared memory than the chip has fails the command.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

import torch
import triton
from torch import Tensor

from aef.kernels import tuning
from aef.kernels.activation.backward import activate_backward
from aef.kernels.activation.forward import activate, add_residual
from aef.kernels.channel_norm.backward import merge_and_norm_backward, norm_backward
from aef.kernels.channel_norm.forward import merge_and_norm, norm
from aef.kernels.implicit_gemm import convolution_weight_gradient, convolve
from aef.kernels.temporal_pooling.backward import pool_backward
from aef.kernels.temporal_pooling.forward import pool
from aef.kernels.time_attention.backward import attend_backward
from aef.kernels.time_attention.forward import attend
from aef.kernels.vmf.backward import sample_backward
from aef.kernels.vmf.forward import sample
from benchmarks.dry_driver import Binary, dry_driver

ARCHS = (80, 90, 100)
LONGEST = 160
"""Frames for entries without an upper bound: more than any tile, so that their loops run."""


_dtype: ContextVar[torch.dtype] = ContextVar("dtype", default=torch.bfloat16)
"""Of the states while an entry is compiled."""


def meta(*shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor without data, as it would be on the GPU."""
    return torch.empty(*shape, dtype=dtype or _dtype.get(), device="meta")


def compile_time_attention(entry: tuning.Entry) -> None:
    """2 samples of 256 pixels, 8 heads, at the entry's longest segments and widest heads."""
    longest, channels = min(entry.sizes["max_frames"][1], LONGEST), entry.sizes["channels"][1]
    frames, cu_frames = 4 * longest, meta(5, dtype=torch.int32)
    arguments = (meta(frames, 256, 3, 8, channels), meta(frames, 3, 8, channels), cu_frames, longest)
    attend(*arguments, entry.config["forward"])
    attend_backward(meta(frames, 256, 8, channels), *arguments, entry.config["backward"])


def compile_temporal_pooling(entry: tuning.Entry) -> None:
    """4 segments of 4096 pixels, ten periods each, 8 heads, one tile of frames and several."""
    channels, biased = entry.sizes["channels"][1], entry.sizes["biased"][1]
    for config in (entry.config["forward"], entry.config["backward"]):
        for longest in (config["frames"], min(entry.sizes["max_frames"][1], LONGEST)):
            frames, periods, cu_frames = 4 * longest, 40, meta(5, dtype=torch.int32)
            arguments = (
                *(meta(frames, 4096, channels), meta(frames, channels), meta(periods, 8, channels)),
                meta(periods * longest, 8, dtype=torch.float32) if biased else None,
                *(meta(periods, dtype=torch.int32), cu_frames, longest),
            )
            if config is entry.config["forward"]:
                pool(*arguments, config)
            else:
                pool_backward(meta(periods, 4096, 8, channels), *arguments, config)


def compile_conv3x3(entry: tuning.Entry) -> None:
    """64 frames of 64² pixels and 128 channels, with every epilogue."""
    x, weight, bias = meta(64, 64, 64, 128), meta(128, 3, 3, 128), meta(128)
    convolve(x, weight, entry.config["forward"], bias=bias, gelu=True, keep=True)
    convolve(x, weight, entry.config["forward"], bias=bias, merge="add", other=x)
    convolve(x, weight, entry.config["data"], transposed=True, merge="slope", other=x)
    convolution_weight_gradient(x, x, 3, 1, entry.config["weight"], bias=True)


def compile_exchange(entry: tuning.Entry) -> None:
    """A step between 64² pixels of 128 channels and 32² of 256, each kernel size, forward and backward."""
    fine, coarse, upwards = meta(64, 64, 64, 128), meta(64, 32, 32, 256), entry.operator == "exchange_up"
    forward, data, weighing = (entry.config[name] for name in ("forward", "data", "weight"))
    for side in range(entry.sizes["kernel"][0], entry.sizes["kernel"][1] + 1):
        weight = meta(256, side, side, 128)
        if upwards:
            convolve(coarse, weight, forward, stride=2, transposed=True, bias=meta(128), merge="add", other=fine)
            convolve(fine, weight, data, stride=2)
        else:
            convolve(fine, weight, forward, stride=2, bias=meta(256))
            convolve(coarse, weight, data, stride=2, transposed=True)
        convolution_weight_gradient(coarse, fine, side, 2, weighing, bias=not upwards)


def compile_exchange_up_norm(entry: tuning.Entry) -> None:
    """As `compile_exchange`, upwards with the norm; its backward has one pass more, which `residual_norm` compiles."""
    fine, coarse, vector = meta(64, 64, 64, 128), meta(64, 32, 32, 256), meta(128)
    epilogue = {"bias": vector, "merge": "add", "other": fine, "norm": (vector, vector)}
    for side in range(entry.sizes["kernel"][0], entry.sizes["kernel"][1] + 1):
        convolve(coarse, meta(256, side, side, 128), entry.config["forward"], stride=2, transposed=True, **epilogue)
        convolve(fine, meta(256, side, side, 128), entry.config["data"], stride=2)
        convolution_weight_gradient(coarse, fine, side, 2, entry.config["weight"], bias=False)


def compile_channel_norm(entry: tuning.Entry) -> None:
    """32 frames: the precision path's 64² pixels, and the widest rows of 8²."""
    for rows, channels in ((32 * 64**2, 128), (32 * 8**2, entry.sizes["channels"][1])):
        x, weight = meta(rows, channels), meta(channels, dtype=torch.float32)
        norm(x, weight, weight, entry.config)
        norm_backward(x, x, weight, weight, entry.config)


def compile_residual_norm(entry: tuning.Entry) -> None:
    """As `compile_channel_norm`: behind the finest merge, and the widest rows."""
    for rows, channels in ((32 * 64**2, 128), (32 * 8**2, entry.sizes["channels"][1])):
        x, vector = meta(rows, channels), meta(channels, dtype=torch.float32)
        merge_and_norm(x, vector, x, vector, vector, entry.config)
        merge_and_norm_backward(x, x, x, vector, entry.config)


def compile_bias_gelu(entry: tuning.Entry) -> None:
    """The hidden layer of the time path's MLP, 32 frames."""
    x, bias = meta(8192, 2048), meta(2048, dtype=torch.float32)
    activate(x, bias, entry.config)
    activate_backward(x, x, bias, entry.config)
    activate_backward(x, x, bias, entry.config, keep=True)


def compile_bias_residual(entry: tuning.Entry) -> None:
    """The time path's projections; their backward has no kernel."""
    x = meta(8192, 512)
    add_residual(x, meta(512, dtype=torch.float32), x, entry.config)


def compile_sample_vmf(entry: tuning.Entry) -> None:
    """The paper's 64 dimensions, in fp32 as the model samples."""
    mean, counter = meta(16384, 64, dtype=torch.float32), meta(16384, dtype=torch.int64)
    sample(mean, 8000.0, (1, 2), counter, entry.config)
    sample_backward(mean, mean, 8000.0, (1, 2), counter, entry.config)


COMPILERS: dict[str, Callable[[tuning.Entry], None]] = {
    "time_attention": compile_time_attention,
    "temporal_pooling": compile_temporal_pooling,
    "channel_norm": compile_channel_norm,
    "residual_norm": compile_residual_norm,
    "bias_gelu": compile_bias_gelu,
    "bias_residual": compile_bias_residual,
    "sample_vmf": compile_sample_vmf,
    "conv3x3": compile_conv3x3,
    "exchange_down": compile_exchange,
    "exchange_up": compile_exchange,
    "exchange_up_norm": compile_exchange_up_norm,
}
"""For each operator with tile settings: launch its kernels, forward and backward, at an entry's settings."""


CHIPS = {"nvidia-h": (90,), "": ARCHS}
"""The capabilities of the GPUs that a table is for, by how its file name begins."""


def shipped(arch: int) -> Iterator[tuple[str, tuning.Entry]]:
    """(file name, entry) of every Triton entry that a GPU of this capability could be given."""
    for path in sorted(tuning.FOLDER.glob("*.json")):
        chips = next(chips for prefix, chips in CHIPS.items() if path.stem.startswith(prefix))
        if arch in chips:
            yield from ((path.stem, entry) for entry in tuning.read(path) if entry.backend == "triton")


def compile_entry(entry: tuning.Entry, arch: int, dtype: str = "") -> list[Binary]:
    """The binaries that this entry's settings give on this capability, by default for the first of its types."""
    before = _dtype.set(getattr(torch, dtype or entry.dtypes[0]))
    try:
        with dry_driver(arch) as driver:
            COMPILERS[entry.operator](entry)
    finally:
        _dtype.reset(before)
    return driver.binaries


def table(rows: list[tuple[str, tuning.Entry, Binary]], archs: list[int]) -> str:
    """The Markdown table of compiled kernels."""
    lines = [
        "# Every shipped kernel configuration, compiled without a GPU",
        "",
        f"Triton {triton.__version__}, by `python -m benchmarks.aot --arch {' '.join(map(str, archs))}`. "
        "Registers per thread; stack above 0 would be spills; shared memory in KiB.",
        "",
        "| table | kernel | type | sizes | sm | warps | registers | stack | shared | matrix products |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, entry, b in rows:
        sizes = ", ".join(f"{key} {low}–{high if high < 10**6 else '…'}" for key, (low, high) in entry.sizes.items())
        lines.append(
            f"| {name} | {b.kernel} | {entry.dtypes[0]} | {sizes} | {b.arch} | {b.warps} | {b.registers} | {b.stack} "
            f"| {b.shared / 1024:.0f} | {b.tensor_core or '–'} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHS), help="compute capabilities x 10")
    parser.add_argument("--write", type=Path, help="Markdown file to write")
    arguments = parser.parse_args(argv)
    rows, failed = [], False
    for arch in arguments.arch:
        for name, entry in shipped(arch):
            for binary in compile_entry(entry, arch):
                rows.append((name, entry, binary))
                for problem in binary.problems():
                    failed = True
                    print(f"{name}: {binary.kernel} on sm_{arch}: {problem}", file=sys.stderr)
            print(f"sm_{arch} {name} {entry.operator}: compiled", flush=True)
    if arguments.write and not failed:
        arguments.write.parent.mkdir(parents=True, exist_ok=True)
        arguments.write.write_text(table(rows, arguments.arch), encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
