"""What benchmarks.gpu would time: every case runs, ours agrees with its reference, and a block's rungs are one block."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from aef.config import PRESETS
from benchmarks import block, decoding, roofline, timing
from benchmarks import kernels as benchmark
from benchmarks.cases import cases
from benchmarks.cases.case import as_outputs, cotangents_of, leaves

ISSUE_ROWS = {"time_attention", "temporal_pooling", "channel_norm", "bias_gelu", "bias_residual", "sample_vmf"} | {
    "precision_operator",
    "exchange_down",
    "exchange_up",
    "exchange_up_norm",
    "residual_norm",
    "space_attention",
    "gelu_linear",
    "conv3x3",
}
NEWEST = (
    "precision_operator",
    "conv3x3",
    "gelu_linear",
    "residual_norm",
    "exchange_down",
    "exchange_up",
    "exchange_up_norm",
)
NEW = [case for case in cases("small") if case.operator in NEWEST]


@pytest.mark.parametrize("size", ["small", "large"])
def test_every_operator_has_a_row(size):
    assert {case.operator for case in cases(size)} == ISSUE_ROWS


@pytest.mark.parametrize("case", NEW, ids=lambda case: case.name)
def test_ours_agrees_with_the_reference_of_its_row(case):
    torch.manual_seed(0)
    arguments = case.make(torch.device("cpu"), torch.float32)
    ours, reference = (as_outputs(case.contenders[name](*arguments)) for name in ("ours", "reference"))
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)
    cotangents = cotangents_of(reference)
    found, wanted = (torch.autograd.grad(one, leaves(arguments), cotangents) for one in (ours, reference))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert set(case.work) == {"forward", "backward", "both"}


TINY = PRESETS["tiny"].model
CPU = torch.device("cpu")


@pytest.mark.parametrize("part", block.MODULES)
def test_the_rungs_of_a_block_are_forward_and_backward_of_the_models_own(part, monkeypatch):
    monkeypatch.setattr(block, "LENGTHS", (4, 2))
    plain = [name for name, way in block.RUNGS.items() if way.compiled is None and not way.sdpa]
    names = [name for name in plain if part == "block" or name in block.EXCHANGE_RUNGS]
    shapes = {}
    for shape, name, make, work in block.rungs(
        part, CPU, torch.float32, config=TINY, side=8, samples=(1,), names=names
    ):
        assert shape == "6 frames"
        assert work.flops > 0
        shapes[name] = [tuple(one.shape) for one in make()()]
    assert set(shapes) == set(names)
    assert all(one == shapes["tuned eager"] for one in shapes.values())


@pytest.mark.parametrize("part", block.MODULES)
def test_a_block_is_checked_against_tuned_eager_before_it_is_timed(part, monkeypatch):
    monkeypatch.setattr(block, "LENGTHS", (4, 2))
    found = {name: (wrong, remark) for name, wrong, remark in block.check(part, CPU, config=TINY, side=8)}
    assert found.keys() == set(block.CHECKED[part])
    assert all(wrong is None and "of the bound (" in remark and ";" not in remark for wrong, remark in found.values())
    monkeypatch.setattr(timing, "_error", lambda found, wanted: float("nan"))
    assert all("output 0: error nan" in wrong for _, wrong, _ in block.check(part, CPU, config=TINY, side=8))


def test_a_block_that_a_compiler_made_runs():
    arguments = block._arguments(TINY, [4, 2], 8, CPU, torch.float32)
    made = block._make("block", block.Way("torch", {"backend": "eager"}), TINY, arguments)
    assert [one.shape for one in made()[:4]] == [one.shape for one in arguments[:4]]


def test_two_streams_compute_what_one_does():
    module = block.without_zeros(block.BlockInChain(TINY))
    arguments = block._arguments(TINY, [4, 2], 8, CPU, torch.float32)
    found = block.TwoStreams(module.block, CPU)(*arguments)
    torch.testing.assert_close(list(found), list(module(*arguments)))
    assert all((one != 0).all() for one in module.parameters())


TINY_DECODERS = dataclasses.replace(PRESETS["tiny"], data=dataclasses.replace(PRESETS["tiny"].data, chip_px=16))


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_the_rungs_of_the_decoders_are_forward_and_backward_of_predictions_and_losses(monkeypatch):
    monkeypatch.setitem(decoding.RUNGS, "compiled", block.Way("torch", {"backend": "eager"}))
    names, shapes = ("ours", "tuned eager", "compiled"), {}
    for shape, name, make, _ in decoding.rungs(
        "decoders", CPU, torch.float32, config=TINY_DECODERS, samples=(2,), names=names
    ):
        assert shape == "18 targets"
        shapes[name] = [tuple(one.shape) for one in make()()]
    assert set(shapes) == set(names) and all(one == shapes["ours"] for one in shapes.values())
    assert shapes["ours"][0] == (2, 16, 16, 5) and shapes["ours"][9] == (9, 2, 256, TINY.embedding_dim)


def test_the_decoders_are_checked_against_tuned_eager_before_they_are_timed(monkeypatch):
    ((name, wrong, remark),) = decoding.check("decoders", CPU, config=TINY_DECODERS)
    assert (name, wrong) == ("ours", None) and "of the bound (output " in remark
    monkeypatch.setattr(timing, "_error", lambda found, wanted: float("nan"))
    ((_, wrong, _),) = decoding.check("decoders", CPU, config=TINY_DECODERS)
    assert "output 0: error nan" in wrong


def test_the_floor_of_the_decoders_counts_their_products():
    module = decoding.DecodersWithLosses(TINY_DECODERS)
    embeddings, targets = decoding._arguments(module, 1, CPU)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        module(embeddings.detach(), targets, torch.float32)
    bands = [one.decoded_channels for one in module.sources]
    floor = roofline.decoders(bands, module.side**2, module.dim, TINY.decoder_width)
    assert counted.get_total_flops() == pytest.approx(floor["forward"].flops, rel=0.02)
    assert floor["both"].flops == 3 * floor["forward"].flops


def test_the_documents_ladder_of_a_block_has_every_rung_with_a_prediction():
    text = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")
    rows = [
        line.split("|")[1:-1] for line in text.split("## The block")[1].split("\n## ")[0].splitlines() if "|" in line
    ]
    named = [name.strip() for row in rows[2:] for name in row[0].replace("…", "tuned eager, sdpa").split(";")]
    assert sorted(named) == sorted(block.RUNGS)
    assert all(row[2].strip() for row in rows)


@pytest.mark.parametrize("repeats", ["0", "-1"])
def test_a_benchmark_without_a_run_is_refused(repeats, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--repeats", repeats])
    assert f"--repeats: expected at least 1, found {repeats}" in capsys.readouterr().err


def test_a_benchmark_refuses_an_unknown_backend_before_it_measures(monkeypatch, capsys):
    monkeypatch.setenv("AEF_KERNELS", "cuda")
    with pytest.raises(SystemExit):
        benchmark.main(["--only", "bias_gelu"])
    assert "AEF_KERNELS: expected one of auto, torch, triton, flash, found 'cuda'" in capsys.readouterr().err
