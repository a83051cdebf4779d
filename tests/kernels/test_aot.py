"""Shipped kernel configurations compiled for GPUs that are not there: no spills, within shared memory, tensor cores.

`python -m benchmarks.aot` compiles all of them for all chips; this lane the ones of each table's own chip.
"""

import pytest
import torch

from aef.kernels.activation.backward import activate_backward
from aef.kernels.channel_norm.backward import merge_and_norm_backward, norm_backward
from aef.kernels.channel_norm.forward import merge_and_norm
from aef.kernels.temporal_pooling.backward import pool_backward
from aef.kernels.temporal_pooling.forward import pool
from aef.kernels.time_attention.backward import attend_backward
from aef.kernels.time_attention.forward import attend
from aef.kernels.tuning import table
from aef.kernels.vmf.backward import sample_backward
from benchmarks.aot import COMPILERS, compile_entry, meta, shipped
from benchmarks.dry_driver import dry_driver

pytestmark = pytest.mark.aot

CASES = [
    pytest.param(arch, entry, id=f"sm_{arch}-{name}-{entry.operator}-{number}")
    for arch, wanted in ((90, "nvidia-h"), (80, "default"))
    for number, (name, entry) in enumerate(shipped(arch))
    if name == wanted
]


@pytest.mark.parametrize(("arch", "entry"), CASES)
def test_every_shipped_configuration_compiles_without_spills(arch, entry):
    binaries = compile_entry(entry, arch)
    assert binaries
    assert [problem for binary in binaries for problem in binary.problems()] == []


@pytest.mark.parametrize(
    ("arch", "entry"),
    [
        pytest.param(arch, entry, id=f"sm_{arch}-{entry.operator}-{number}")
        for arch in (80, 90)
        for number, entry in enumerate(table("NVIDIA H200" if arch == 90 else "NVIDIA A100"))
        if entry.backend == "triton" and "float32" in entry.dtypes and entry.dtypes[0] != "float32"
    ][::3],  # every third: they share their kernels
)
def test_what_serves_fp32_too_fits_the_chip(arch, entry):
    """These tiles were made for two-byte types; a convolution may put a few registers on the stack."""
    for binary in compile_entry(entry, arch, "float32"):
        assert binary.stack <= 16
        assert [problem for problem in binary.problems() if "stack" not in problem] == []


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
