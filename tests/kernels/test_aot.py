"""Shipped kernel configurations compiled for GPUs that are not there: no spills, within shared memory, tensor cores.

`python -m benchmarks.aot` writes the table of what they need.
"""

from pathlib import Path

import pytest
import torch

from aef.kernels.activation.backward import activate_backward
from aef.kernels.channel_norm.backward import merge_and_norm_backward, norm_backward
from aef.kernels.channel_norm.forward import merge_and_norm
from aef.kernels.runtime import KERNELS
from aef.kernels.temporal_pooling.backward import pool_backward
from aef.kernels.temporal_pooling.forward import pool
from aef.kernels.time_attention.backward import attend_backward
from aef.kernels.time_attention.forward import attend
from aef.kernels.tuning import table
from aef.kernels.vmf.backward import sample_backward
from benchmarks.aot import COMPILERS, compile_entry, meta, shipped
from benchmarks.aot import table as published
from benchmarks.dry_driver import Binary, dry_driver

pytestmark = pytest.mark.aot

TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "aot.md"
QUICK = ("time_attention", "conv3x3")
NOTHING = Binary("", 0, 0, 0, 0, 0, "")
FIXED = ("time_attention", "temporal_pooling", "conv3x3", "exchange")
"""Operators with fp32 tiles of their own; the others' entries serve every type."""
WITHOUT_PRODUCT = {"temporal_pooling_plan"}


def at_most(entry, frames):
    """Whether an entry speaks of segments up to so many frames, or of none."""
    return entry.sizes.get("max_frames", (1, frames))[1] == frames


CASES = [
    pytest.param(arch, name, entry, id=f"sm_{arch}-{name}-{entry.operator}-{number}")
    for arch in (90, 80)
    for number, (name, entry) in enumerate(shipped(arch))
]


@pytest.mark.parametrize(("arch", "name", "entry"), CASES)
def test_every_shipped_configuration_compiles_without_spills(arch, name, entry):
    binaries = compile_entry(entry, arch)
    assert binaries
    assert [problem for binary in binaries for problem in binary.problems()] == []
    if name.startswith("nvidia-h"):  # whose entries are all products
        others = [one for one in binaries if one.tensor_core != "wgmma"]
        assert {one.kernel for one in others} <= WITHOUT_PRODUCT


@pytest.mark.parametrize(
    ("arch", "entry"),
    [
        pytest.param(arch, entry, id=f"sm_{arch}-{entry.operator}")
        for arch in (80, 90)
        for _, entry in shipped(arch)
        if "float32" in entry.dtypes and entry.dtypes[0] != "float32"
    ],
)
def test_what_serves_fp32_too_compiles_without_spills(arch, entry):
    assert not entry.operator.startswith(FIXED)
    assert [problem for binary in compile_entry(entry, arch, "float32") for problem in binary.problems()] == []


@pytest.mark.parametrize(
    ("arch", "entry"),
    [
        pytest.param(
            arch,
            entry,
            id=f"sm_{arch}-{name}-{entry.operator}-{number}",
            # The same tiles as in bf16: two products in every run, all in the long one.
            marks=[] if name == "nvidia-h" and entry.operator in QUICK and at_most(entry, 64) else pytest.mark.long,
        )
        for arch in (80, 90)
        for number, (name, entry) in enumerate(shipped(arch))
        if "float16" in entry.dtypes
    ],
)
def test_fp16_compiles_as_bf16_does(arch, entry):
    assert [problem for binary in compile_entry(entry, arch, "float16") for problem in binary.problems()] == []


def test_the_published_table_has_every_kernel_and_every_configuration():
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TABLE.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if len(row) == 10 and row[0] not in ("table", "---")]
    assert {row[1] for row in rows} == set(KERNELS)
    found = {(name, dtype, sizes, arch) for name, _, dtype, sizes, arch, *_ in rows}
    for arch in (80, 90):
        for name, entry in shipped(arch):
            sizes = (
                [line for line in published([(name, entry, NOTHING)], [arch]).splitlines()][-1].split("|")[4].strip()
            )
            assert (name, entry.dtypes[0], sizes, str(arch)) in found, (name, entry.operator, sizes, arch)


@pytest.mark.parametrize("frames", [16, 32, 64, 103])
def test_hopper_multiplies_packed_tiles_with_warp_groups(frames):
    sizes = {"max_frames": frames, "channels": 64}
    entry = next(one for one in table("NVIDIA H200") if one.matches("time_attention", "bfloat16", sizes))
    with dry_driver(90) as driver:
        qkv, cu_frames = meta(3 * frames, 256, 3, 8, 64), meta(4, dtype=torch.int32)
        attend(qkv, meta(3 * frames, 3, 8, 64), cu_frames, frames, entry.config["forward"])
    assert all(binary.tensor_core == "wgmma" for binary in driver.binaries)


def test_every_operator_with_tile_settings_is_compiled():
    assert {entry.operator for arch in (80, 90) for _, entry in shipped(arch)} == set(COMPILERS)


def test_sizes_of_one_which_the_compiler_takes_for_constants_compile_too():
    with dry_driver(90) as driver:
        cu_frames = meta(2, dtype=torch.int32)
        attend(meta(1, 1, 3, 1, 16), meta(1, 3, 1, 16), cu_frames, 1, {})
        attend_backward(meta(1, 1, 1, 16), meta(1, 1, 3, 1, 16), meta(1, 3, 1, 16), cu_frames, 1, {"rows": 16})
        pooled = (meta(1, 1, 16), meta(1, 16), meta(1, 1, 16), meta(1, 1), meta(1, dtype=torch.int32), cu_frames, 1)
        pool_backward(meta(1, 1, 1, 16), *pooled, {})
        pool(*pooled, {})
        norm_backward(meta(1, 16), meta(1, 16), meta(16), meta(16), {})
        merge_and_norm(meta(1, 16), meta(16), meta(1, 16), meta(16), meta(16), {})
        merge_and_norm_backward(meta(1, 16), meta(1, 16), meta(1, 16), meta(16), {})
        activate_backward(meta(1, 1), meta(1, 1), meta(1), {})
        sample_backward(meta(1, 64), meta(1, 64), 20.0, (1, 1), meta(1, dtype=torch.int64), {})
    assert len(driver.binaries) == 11
