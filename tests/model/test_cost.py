"""Parameters, operations and memory as the formulas say, against what is counted on the model itself."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from aef.config import LARGE, PRESETS, TINY
from aef.model import cost
from aef.model.stp import Encoder
from aef.sources import BUILT_IN, INPUTS
from aef.timecode import TIMECODE_WIDTH


def test_large_has_as_many_parameters_as_the_papers_480_million_allow():
    assert LARGE.model.blocks == 15
    assert (LARGE.model.precision_width, LARGE.model.time_width, LARGE.model.space_width) == (128, 512, 1024)
    count = cost.parameters(LARGE.model, BUILT_IN, INPUTS, tuple(BUILT_IN))
    assert 430e6 < count < 500e6
    assert count == 442_855_643


def test_counting_parameters_allocates_none(make_model):
    model = make_model()
    assert cost.parameters(model.config, BUILT_IN, INPUTS, tuple(BUILT_IN)) == sum(
        p.numel() for p in model.parameters()
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"side_px": 32, "pyramid_kernel": 2, "precision_convs": 3},
        {"side_px": 8, "pyramid_kernel": 2},
        {"pyramid_kernel": 4, "text_dim": 0, "mlp_ratio": 2},
    ],
)
def test_operations_are_those_that_torch_counts(make_model, make_batch, changes):
    side_px, changes = changes.get("side_px", 16), {k: v for k, v in changes.items() if k != "side_px"}
    model = make_model(period_bias=False, **changes)
    batch = make_batch(2, side_px=side_px, text_dim=model.config.text_dim, targets_per_source=2)
    with FlopCounterMode(display=False) as counter:
        model(batch)
    expected = cost.forward_flops(model.config, BUILT_IN, cost.Work.of(batch))
    assert counter.get_total_flops() == pytest.approx(expected, rel=2e-3)
    assert cost.step_flops(model.config, BUILT_IN, cost.Work.of(batch)) == 3 * expected


def test_a_frame_of_the_papers_model_takes_140_billion_operations_in_the_encoder():
    """15 blocks × (space 1.63 + time 1.67 + precision 2.42 + exchange 3.62 GFLOP) at 103 frames."""
    whole = cost.flops_per_frame(LARGE.model, BUILT_IN, INPUTS, side_px=128, segment_frames=103)
    assert whole == pytest.approx(15 * (1.63 + 1.67 + 2.42 + 3.62) * 1e9, rel=0.05)


def saved_bytes(encoder, *arguments):
    """Bytes that autograd holds between forward and backward, parameters apart."""
    own = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    held = {}

    def keep(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = encoder(*arguments)
    del states
    return sum(tensor.untyped_storage().nbytes() for address, tensor in held.items() if address not in own)


@pytest.mark.parametrize(("preset", "side_px"), [("tiny", 32), ("small", 32), ("small", 64)])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_activation_memory_is_what_autograd_keeps(preset, side_px, checkpointing):
    config = dataclasses.replace(PRESETS[preset].model, checkpointing=checkpointing, blocks=4)
    frames = 6
    states = torch.randn(frames, side_px // 2, side_px // 2, config.precision_width, requires_grad=True)
    offsets = torch.tensor([0, 4, frames], dtype=torch.int32)
    saved = saved_bytes(Encoder(config), states, torch.randn(frames, TIMECODE_WIDTH), offsets, 8) / frames
    predicted = cost.activation_bytes_per_frame(config, side_px)
    if checkpointing == "full":  # the block that backward recomputes is not alive yet
        one, two = (
            cost.activation_bytes_per_frame(dataclasses.replace(config, blocks=blocks, checkpointing="none"), side_px)
            for blocks in (1, 2)
        )
        predicted -= two - one
    assert saved == pytest.approx(predicted, rel=0.1)


def test_checkpointing_needs_less_memory_the_more_it_recomputes():
    kinds = [
        cost.activation_bytes_per_frame(dataclasses.replace(LARGE.model, checkpointing=kind), 128)
        for kind in ("full", "selective", "none")
    ]
    assert kinds == sorted(kinds) and kinds[0] < 0.3 * kinds[2]
    on_gpu = cost.activation_bytes_per_frame(LARGE.model, 128, on_gpu=True)
    assert kinds[1] < on_gpu < kinds[2]


def test_the_work_of_a_batch_counts_its_frames_and_summaries(make_batch):
    batch = make_batch(2, frames={"sentinel2": 4, "sentinel1": 2}, targets=("sentinel2",), targets_per_source=3)
    work = cost.Work.of(batch)
    assert work.frames == {"sentinel2": 12, "sentinel1": 6, "landsat": 1}  # teacher and half of it again; one dummy
    assert work.attended == 2 * (6**2 + 3**2)
    assert work.targets == {"sentinel2": 6}
    assert work.summaries == len(batch.periods) and work.side_px == TINY.data.chip_px


def test_the_documentations_sizes_are_those_of_the_presets():
    page = (Path(__file__).parents[2] / "docs" / "model.md").read_text(encoding="utf-8")
    for name, preset in PRESETS.items():
        model, side_px = preset.model, preset.data.chip_px
        (row,) = re.findall(rf"^\| {name} \| (.*) \|$", page, re.MULTILINE)
        parameters, side, gflop, megabytes = (float(cell.replace(",", "")) for cell in row.split(" | "))
        flops = cost.flops_per_frame(model, BUILT_IN, INPUTS, side_px, round(103 * preset.data.frame_budget))
        assert parameters == cost.parameters(model, BUILT_IN, INPUTS, tuple(BUILT_IN)) and side == side_px
        assert gflop * 1e9 == pytest.approx(flops, rel=0.01)
        assert megabytes * 1e6 == pytest.approx(cost.activation_bytes_per_frame(model, side_px), rel=0.01)
    for kernel in (2, 4):
        model = dataclasses.replace(LARGE.model, pyramid_kernel=kernel)
        assert f"{cost.parameters(model, BUILT_IN, INPUTS, tuple(BUILT_IN)) / 1e6:.0f}" in page
