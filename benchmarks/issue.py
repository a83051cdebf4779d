"""What the binaries for an H200 issue, against the bytes they move, without a GPU.

    python -m benchmarks.issue [--only OPERATOR …] [--write benchmarks/results/issue.md]

Every kernel that an H200 is given in bf16 (vMF: fp32) is compiled as by `benchmarks.aot`, and its machine code is counted
loop by loop. Times out of the counts are bounds of a multiprocessor with nothing to wait for: the largest one says what
limits the kernel at best, and none is a measurement. A kernel whose loops are not those of its source, or are run as
often as its data say, is counted only.
"""

import argparse
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import triton
from torch import Tensor

from aef.kernels import tuning
from benchmarks.aot import compile_entry, shipped
from benchmarks.dry_driver import Binary
from benchmarks.roofline import GPUS

ARCH, TABLE = 90, "nvidia-h"
PROCESSORS, CLOCK = 132, 1.75e9
"""An H200's multiprocessors and their clock under load, in Hz."""
BYTES = GPUS["h200"].copy / PROCESSORS / CLOCK
"""Of memory, a multiprocessor and cycle."""
SCHEDULERS, LANES = 4, 32
MUFU_LANES = 16
"""Results of exponentials, logarithms, roots and reciprocals a multiprocessor and cycle, as the CUDA guide gives them."""
TENSOR_FLOPS = 4096
"""Dense bf16 operations of the tensor cores a multiprocessor and cycle: the datasheet's 989 TFLOP/s at 1.83 GHz."""
WIDE = 16
"""Bytes of the widest load and store of a thread."""
COVERED = 0.95
"""Share of the bytes to be moved that wide loads and stores must cover: else a main stream is narrow, and flagged."""

INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);", re.MULTILINE)
CLASSES = {
    **dict.fromkeys(("LDS", "STS", "LDSM", "STSM"), "shared"),
    **dict.fromkeys(("SHFL", "REDUX"), "shuffles"),
    **{"MUFU": "MUFU", "BAR": "barriers", "HGMMA": "HGMMA"},
}
GLOBAL = {"LDG": "loads", "LDGSTS": "loads", "STG": "stores"}
WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


Counts = Counter[Any]
"""Instructions by kind: "instructions" in all, the values of `CLASSES`, "flops" of a warp group's products, and ("loads" |
"stores", bytes a thread) of global memory."""


def loops(code: str) -> list[Counts]:
    """Instructions a warp issues once outside of all loops, then in one iteration of each loop, by address and without
    the loops inside it. Both sides of a branch are counted; slow paths behind the last exit, which calls lead to, are not.
    """
    instructions = [(int(at, 16), name, rest) for at, name, rest in INSTRUCTION.findall(code)]
    spans: dict[int, int] = {}  # a backward branch closes a loop, the last one to a place ends it
    for at, name, rest in instructions:
        target = re.search(r"0x([0-9a-f]+)\s*$", rest) if name == "BRA" else None
        if target and int(target[1], 16) < at:
            spans[int(target[1], 16)] = at
    end = max(spans.values(), default=0)
    end = max(at for at, name, _ in instructions if name == "EXIT" or at == end)
    begins = sorted(spans)
    counts: list[Counts] = [Counter() for _ in (0, *begins)]
    for at, name, _ in instructions:
        if at <= end and name != "NOP":
            inside = [number for number, begin in enumerate(begins, 1) if begin <= at <= spans[begin]]
            counts[max(inside, default=0)].update(_count(name))
    return counts


def _count(name: str) -> dict[Any, int]:
    word, *modifiers = name.split(".")
    found: dict[Any, int] = {"instructions": 1}
    if word in CLASSES:
        found[CLASSES[word]] = 1
    if word in GLOBAL:
        found[GLOBAL[word], next((WIDTHS[one] for one in modifiers if one in WIDTHS), 4)] = 1
    if word == "HGMMA":
        found["flops"] = 2 * math.prod(map(int, modifiers[0].split("x")))
    return found


@dataclass(frozen=True)
class Runs:
    """Of one launch: what a tile is, the number of tiles, and how often each loop of the source runs, in its order."""

    tile: str
    tiles: float
    loops: tuple[float, ...] = ()


def attention_runs(a: SimpleNamespace, grid: tuple[int, ...]) -> Runs:
    """Loops over tiles, heads and, where a segment is longer than a tile, blocks of frames (the query side twice)."""
    blocks, segments = -(-a.max_frames // a.ROWS), a.cu_frames.shape[0] - 1
    tiles = segments * -(-a.pixels // max(1, a.ROWS // a.max_frames)) * blocks
    inner = () if a.SINGLE else (tiles * a.heads * blocks,)
    tile = f"{min(a.ROWS, a.max_frames)} of {a.max_frames} frames, a head"
    return Runs(tile, tiles * a.heads, (tiles * grid[2], tiles * a.heads, *inner))


def attention_query_runs(a: SimpleNamespace, grid: tuple[int, ...]) -> Runs:
    runs = attention_runs(a, grid)
    return Runs(runs.tile, runs.tiles, (*runs.loops, runs.loops[-1]))


def _pooling(a: SimpleNamespace) -> tuple[str, int, int, int]:
    segments, periods = a.cu_frames.shape[0] - 1, a.query.shape[0]
    queries = periods * a.heads / segments
    tile = f"{a.max_frames} frames of a pixel, {queries:g} queries"
    return tile, segments * a.pixels, math.ceil(queries / a.BLOCK_Q), -(-a.max_frames // a.BLOCK_T)


def pooling_runs(a: SimpleNamespace, grid: tuple[int, ...]) -> Runs:
    """Loops over blocks of queries, pixels and blocks of frames."""
    tile, tiles, blocks, steps = _pooling(a)
    return Runs(
        tile, tiles, (math.prod(grid) * blocks, tiles * blocks, *(() if a.SINGLE else (tiles * blocks * steps,)))
    )


def pooling_query_runs(a: SimpleNamespace, grid: tuple[int, ...]) -> Runs:
    """As `pooling_runs`, then blocks of frames and pixels once more."""
    tile, tiles, blocks, steps = _pooling(a)
    again = () if a.SINGLE else (math.prod(grid) * blocks * steps, tiles * blocks * steps)
    return Runs(tile, tiles, (*pooling_runs(a, grid).loops, *again))


def pooling_state_runs(a: SimpleNamespace, grid: tuple[int, ...]) -> Runs:
    """Loops over pixels and blocks of queries; a program has one block of frames."""
    tile, tiles, blocks, steps = _pooling(a)
    return Runs(tile, tiles, (tiles * steps, tiles * steps * blocks))


def row_runs(a: SimpleNamespace, grid: tuple[int, ...]) -> Runs:
    """A program's loop over tiles of rows."""
    tiles = -(-a.rows // a.ROWS) * grid[1]
    return Runs(f"{a.ROWS} × {a.BLOCK} channels", tiles, (tiles,))


def program_runs(a: SimpleNamespace, grid: tuple[int, ...]) -> Runs:
    """A tile of rows a program."""
    width = a.BLOCK if hasattr(a, "BLOCK") else a.WIDTH
    return Runs(f"{a.ROWS} × {width} channels", math.prod(grid))


def product_runs(a: SimpleNamespace, grid: tuple[int, ...]) -> Runs:
    """One loop over taps and blocks of input channels; the phases of a transposed step share the taps."""
    steps = a.SIDE**2 * -(-a.K // a.BLOCK_K)
    tile = f"{a.BLOCK_M} × {a.BLOCK_N}, {a.SIDE}×{a.SIDE}, {a.K} → {a.N}"
    return Runs(tile, math.prod(grid), (grid[0] * steps,))


def weight_runs(a: SimpleNamespace, grid: tuple[int, ...]) -> Runs:
    """One loop over blocks of rows, and for one tap and column of tiles another one for the bias."""
    steps = -(-a.rows // a.BLOCK_R)
    tile = f"{a.BLOCK_R} rows of {a.BLOCK_A} × {a.BLOCK_B}, {a.SIDE}×{a.SIDE}"
    return Runs(tile, grid[0] * steps, (grid[0] * steps, *((-(-a.A // a.BLOCK_A) * steps,) if a.BIAS else ())))


RUNS: dict[str, Callable[[SimpleNamespace, tuple[int, ...]], Runs]] = {
    "time_attention_forward": attention_runs,
    "time_attention_backward": attention_runs,
    "time_attention_backward_query": attention_query_runs,
    "time_attention_backward_key": attention_runs,
    "temporal_pooling_forward": pooling_runs,
    "temporal_pooling_backward_query": pooling_query_runs,
    "temporal_pooling_backward_state": pooling_state_runs,
    "channel_norm_forward": program_runs,
    "channel_norm_backward": row_runs,
    "bias_gelu_forward": program_runs,
    "bias_gelu_backward": row_runs,
    "bias_residual_forward": program_runs,
    "sample_vmf_forward": program_runs,
    "sample_vmf_backward": program_runs,
    "implicit_gemm": product_runs,
    "implicit_gemm_weight": weight_runs,
}
"""How often the loops of each kernel run. `temporal_pooling_plan`, one program beside the others, is counted only."""


@dataclass(frozen=True)
class Estimate:
    """Cycles of a multiprocessor for a tile; the bytes that loads and stores ask for, for each byte that must cross memory:
    all, and those in pieces of 16 bytes a thread."""

    tile: str
    memory: float
    issue: float
    mufu: float
    tensor: float
    asked: float
    wide: float

    def limit(self) -> str:
        """What takes longest."""
        cycles = {"memory": self.memory, "instructions": self.issue, "MUFU": self.mufu, "products": self.tensor}
        return max(cycles, key=lambda one: cycles[one])


def estimate(binary: Binary, counts: list[Counts]) -> Estimate | None:
    """The times of a tile, or None where the loops found are not those of the source (all unrolled is fine)."""
    if binary.kernel not in RUNS:
        return None
    runs = RUNS[binary.kernel](SimpleNamespace(**binary.arguments), binary.grid)
    if len(counts) - 1 not in (0, len(runs.loops)):
        return None
    executed: Counts = Counter()  # by a warp of each program, of the whole launch
    for times, one in zip((math.prod(binary.grid), *runs.loops), counts):
        executed.update({key: times * value for key, value in one.items()})
    tensors = [one for one in binary.arguments.values() if isinstance(one, Tensor)]
    moved = sum(one.numel() * one.element_size() for one in tensors)
    warps = binary.warps / runs.tiles
    pieces = {key: key[1] * value for key, value in executed.items() if isinstance(key, tuple)}
    threads = binary.warps * LANES
    return Estimate(
        tile=runs.tile,
        memory=moved / runs.tiles / BYTES,
        issue=executed["instructions"] * warps / SCHEDULERS,
        mufu=executed["MUFU"] * warps * LANES / MUFU_LANES,
        tensor=executed["flops"] * warps / 4 / TENSOR_FLOPS,  # four warps issue a product together
        asked=sum(pieces.values()) * threads / moved,
        wide=sum(value for key, value in pieces.items() if key[1] == WIDE) * threads / moved,
    )


def h200() -> Iterator[tuple[str, tuning.Entry]]:
    """The Triton entries that serve an H200 in bf16: those of its table, the default's for operators it does not name."""
    entries = list(shipped(ARCH))
    named = {entry.operator for name, entry in entries if name == TABLE}
    for name, entry in entries:
        if name == TABLE or (entry.operator not in named and "bfloat16" in entry.dtypes):
            yield name, entry


def flags(binary: Binary) -> str:
    """What a kernel was specialised for, in words."""
    given = binary.arguments
    return ", ".join(
        [*(name.lower() for name, value in given.items() if value is True), *filter(None, [given.get("MERGE")])]
    )


def report(rows: list[tuple[str, Binary]]) -> str:
    """The Markdown tables: times of a tile, and what a warp issues in one iteration of each loop."""
    lines = [
        "# What the binaries for an H200 issue, against the bytes they move",
        "",
        f"Triton {triton.__version__}, by `python -m benchmarks.issue`. Counted in machine code, nothing is measured. Cycles of a",
        f"multiprocessor for a tile: every tensor of the launch once at {BYTES:.1f} bytes a cycle ({GPUS['h200'].copy / 1e12} TB/s,",
        f"{PROCESSORS} multiprocessors, {CLOCK / 1e9} GHz); {SCHEDULERS} instructions a cycle; {MUFU_LANES} results of special functions (MUFU)",
        f"a cycle; products at {TENSOR_FLOPS:,} operations a cycle. Asked: bytes that loads and stores name, padding and repeats",
        f"included, for each byte that must be moved: what L1 and L2 serve. Narrow: the share of those in pieces below {WIDE} bytes a",
        "thread, in bold where the others do not cover what must be moved. A binary is listed once, where it comes first.",
        "",
        "| operator | kernel | tile | warps | registers | memory | instructions | MUFU | products | largest | asked | narrow |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    inner = [
        "",
        "## Instructions of a warp in one iteration of each loop",
        "",
        "Loops by address, without those inside them. Global loads and stores by bytes a thread.",
        "",
        "| operator | kernel | loop | instructions | HGMMA | MUFU | shared memory | shuffles | barriers | loads | stores |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    first: dict[str, tuple[str, Binary]] = {}
    for operator, binary in rows:
        first.setdefault(binary.code, (operator, binary))
    for operator, binary in first.values():
        counts = loops(binary.code)
        found, kernel = estimate(binary, counts), f"{binary.kernel} ({flags(binary)})".removesuffix(" ()")
        cells = ["–"] * 7
        if found:
            narrow = f"{1 - found.wide / found.asked:.0%}"
            cycles = (found.memory, found.issue, found.mufu, found.tensor)
            cells = [*(f"{one:,.0f}" for one in cycles), found.limit(), f"{found.asked:.1f}"]
            cells.append(narrow if found.wide >= COVERED else f"**{narrow}**")
        tile = found.tile if found else "counted only"
        lines.append(f"| {operator} | {kernel} | {tile} | {binary.warps} | {binary.registers} | {' | '.join(cells)} |")
        for number, one in enumerate(counts):
            wide = [
                " + ".join(f"{one[way, width]} × {width}" for width in (16, 8, 4, 2, 1) if one[way, width]) or "–"
                for way in ("loads", "stores")
            ]
            plain = [one[key] for key in ("instructions", "HGMMA", "MUFU", "shared", "shuffles", "barriers")]
            inner.append(f"| {operator} | {kernel} | {number or 'outside'} | {' | '.join(map(str, [*plain, *wide]))} |")
    return "\n".join([*lines, *inner]) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted({entry.operator for _, entry in h200()}), help="operators")
    parser.add_argument("--write", type=Path, help="Markdown file to write")
    arguments = parser.parse_args(argv)
    rows = []
    for _, entry in h200():
        if not arguments.only or entry.operator in arguments.only:
            rows += [(entry.operator, binary) for binary in compile_entry(entry, ARCH)]
    text = report(rows)
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
