"""What machine code issues, counted loop by loop: a recorded text, and passes that no instruction may slow down."""

import dataclasses
from pathlib import Path

import pytest
import torch

from aef.kernels.runtime import KERNELS
from aef.kernels.time_attention.forward import attend
from benchmarks.aot import LONGEST, compile_entry, meta
from benchmarks.dry_driver import Binary, dry_driver
from benchmarks.issue import BYTES, COVERED, RUNS, TENSOR_FLOPS, estimate, h200, loops, report

TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "issue.md"
CODE = """
	code for sm_90a
		Function : channel_norm_backward
        /*0000*/                   LDC R1, c[0x0][0x28] ;                              /* 0x00000a00ff017b82 */
                                                                                       /* 0x000e220000000800 */
        /*0010*/               @P0 LDG.E R5, desc[UR10][R2.64] ;                       /* 0x0000000a02050981 */
        /*0020*/              @!P1 EXIT ;                                              /* 0x000000000000194d */
        /*0030*/                   LDGSTS.E.BYPASS.128 [R99], desc[UR14][R90.64], !P4 ; /* 0x000000005a637fae */
        /*0040*/               @P2 LDG.E.128 R8, desc[UR10][R4.64] ;                   /* 0x0000000a04082981 */
        /*0050*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ;     /* 0x01e0000004187df0 */
        /*0060*/                   MUFU.RSQ R7, R6 ;                                   /* 0x0000000600077308 */
        /*0068*/                   NOP ;                                               /* 0x0000000000007918 */
        /*0070*/              @!P3 BRA 0x90 ;                                          /* 0x0000000000100947 */
        /*0080*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;                       /* 0x0000000000007b1d */
        /*0090*/               @P4 BRA 0x40 ;                                          /* 0xfffffffc00e84947 */
        /*00a0*/                   SHFL.BFLY PT, R9, R8, 0x10, 0x1f ;                  /* 0x0e001f0008097f89 */
        /*00b0*/                   STS.128 [R3], R8 ;                                  /* 0x0000000803007388 */
        /*00c0*/              @UP0 UIADD3 UR4, UR4, 0x1, URZ ;                         /* 0x0000000104040890 */
        /*00d0*/               @P5 STG.E.U16 desc[UR10][R2.64], R9 ;                   /* 0x0000000902005986 */
        /*00e0*/                   BRA 0x30 ;                                          /* 0xfffffffc00507947 */
        /*00f0*/                   MUFU.RCP R7, R6 ;                                   /* 0x0000000600077308 */
        /*0100*/                   RET.REL.NODEC R2 0x0 ;                              /* 0xfffffffc02007950 */
        /*0110*/                   BRA 0x110;                                          /* 0xfffffffc00fc7947 */
        /*0120*/                   NOP;                                                /* 0x0000000000007918 */
"""


def binary(kernel="channel_norm_backward", code=CODE, **changed):
    """A program of four warps with two loops, of which the launch has 10: 128 tiles of 2 rows and 64 channels."""
    arguments = {"x": meta(255, 64), "d_x": meta(255, 64), "weight": None, "rows": 255, "ROWS": 2, "BLOCK": 64}
    made = Binary(kernel, 90, 4, 32, 0, 0, "wgmma", code, (10, 1, 1), arguments)
    return dataclasses.replace(made, **changed)


def test_instructions_are_counted_in_the_loop_that_they_are_in():
    outside, outer, inner = loops(CODE)
    assert outside == {"instructions": 3, ("loads", 4): 1}
    assert outer == {"instructions": 6, ("loads", 16): 1, "shuffles": 1, "shared": 1, ("stores", 2): 1}
    assert inner == {
        "instructions": 6,
        ("loads", 16): 1,
        "HGMMA": 1,
        "flops": 2 * 64 * 128 * 16,
        "MUFU": 1,
        "barriers": 1,
    }


def test_a_tile_is_its_share_of_all_that_the_launch_issues_and_moves(monkeypatch):
    runs = RUNS["channel_norm_backward"]
    monkeypatch.setitem(
        RUNS, "channel_norm_backward", lambda *given: dataclasses.replace(runs(*given), loops=(128, 256))
    )
    found = estimate(binary(), loops(CODE))
    assert found.tile == "2 × 64 channels"
    assert found.memory == pytest.approx(2 * 255 * 64 * 2 / 128 / BYTES)
    assert found.issue == pytest.approx(10 / 128 * 3 + 6 + 2 * 6)  # four warps, four schedulers
    assert found.mufu == pytest.approx(2 * 4 * 32 / 16)
    assert found.tensor == pytest.approx(2 * 2 * 64 * 128 * 16 / 4096)
    assert found.limit() == "products"
    moved, threads = 2 * 255 * 64 * 2, 4 * 32
    assert found.asked == pytest.approx(threads * (10 * 4 + 128 * (16 + 2) + 256 * 16) / moved)
    assert found.wide == pytest.approx(threads * (128 * 16 + 256 * 16) / moved)


def test_what_has_other_loops_than_its_source_is_counted_only():
    assert estimate(binary(), loops(CODE)) is None  # a norm's backward has one loop
    assert estimate(binary("temporal_pooling_plan"), loops(CODE)) is None
    text = report([("channel_norm", binary())] * 2)
    assert text.count("| channel_norm | channel_norm_backward | counted only | 4 | 32 | – |") == 1
    assert "| channel_norm | channel_norm_backward | 2 | 6 | 1 | 1 | 0 | 0 | 1 | 1 × 16 | – |" in text


def test_every_kernel_is_in_the_published_table():
    rows = [line.split("|")[2].split()[0] for line in TABLE.read_text(encoding="utf-8").splitlines() if "| " in line]
    assert set(rows) - {"kernel", "---"} == set(KERNELS)


def test_the_documents_figures_are_those_that_the_command_printed():
    text = (TABLE.parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")
    section = text.split("## Read from the compiled code")[1].split("\n## ")[0]
    shown = [line for line in section.splitlines() if line.startswith("|")]
    assert len(shown) > 10 and set(shown) <= set(TABLE.read_text(encoding="utf-8").splitlines())


@pytest.mark.aot
@pytest.mark.parametrize("operator", ["channel_norm", "bias_gelu"])
def test_passes_wait_for_memory_alone(operator):
    (entry,) = (entry for _, entry in h200() if entry.operator == operator)
    for one in compile_entry(entry, 90):
        outside, *inner = loops(one.code)
        found = estimate(one, [outside, *inner])
        assert (one.kernel, found.limit()) == (one.kernel, "memory")
        assert found.wide > COVERED and found.asked < 1.6
        narrow = one.arguments.get("WIDTH", 128) == 128  # wider rows meet in shared memory
        assert not narrow or all(counts["barriers"] == 0 for counts in inner), one.kernel


@pytest.mark.aot
def test_pooling_of_one_tile_of_frames_waits_for_memory():
    (entry,) = (one for _, one in h200() if one.operator == "temporal_pooling" and one.sizes["biased"] == [1, 1])
    singles = [one for one in compile_entry(entry, 90) if one.arguments.get("SINGLE")]
    assert {(one.kernel, estimate(one, loops(one.code)).limit()) for one in singles} == {
        ("temporal_pooling_forward", "memory"),
        ("temporal_pooling_backward_query", "memory"),
        ("temporal_pooling_backward_state", "memory"),
    }


@pytest.mark.aot
def test_a_convolution_issues_less_than_its_products_take():
    (entry,) = (one for _, one in h200() if one.operator == "conv3x3")
    found = [estimate(one, loops(one.code)) for one in compile_entry(entry, 90)]
    assert [one.limit() for one in found] == ["products"] * 4


@pytest.mark.aot
def test_warp_groups_share_the_scores_of_attention():
    for entry in (one for _, one in h200() if one.operator == "time_attention"):
        longest, rows = min(entry.sizes["max_frames"][1], LONGEST), entry.config["forward"]["rows"]
        with dry_driver(90) as driver:
            qkv, table, cu_frames = meta(longest, 256, 3, 8, 64), meta(longest, 3, 8, 64), meta(2, dtype=torch.int32)
            attend(qkv, table, cu_frames, longest, entry.config["forward"])
        (one,) = driver.binaries
        keys = -(-longest // rows) * rows
        assert estimate(one, loops(one.code)).tensor == 2 * 2 * rows * keys * 64 / TENSOR_FLOPS
