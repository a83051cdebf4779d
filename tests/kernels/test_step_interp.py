"""Whole training steps of `tiny` through the real kernels, interpreted: PyTorch's losses, and every kernel launched."""

import dataclasses
from pathlib import Path

import pytest
import torch

from aef.config import PRESETS
from aef.data.collate import Collator
from aef.kernels import dispatch, runtime, tuning
from aef.model.aef import AEF
from aef.objective.objective import Objective
from aef.sources import BUILT_IN
from tests.training import test_golden as golden

pytestmark = pytest.mark.interp
DOCUMENT = Path(__file__).parents[2] / "docs" / "kernels.md"
# The interpreter's price is the number of programs: wide tiles where none of the kernels' paths depends on them.
WIDE = {"elements": 1 << 18}
GEMM = {"forward": {"rows": 1024}, "data": {"rows": 1024}, "weight": {"rows": 512}}
TILES = {
    **dict.fromkeys(("channel_norm", "residual_norm", "bias_gelu", "bias_residual"), WIDE),
    **dict.fromkeys(("conv3x3", "exchange_down", "exchange_up", "exchange_up_norm"), GEMM),
    "sample_vmf": {"rows": 1024},
}
# Segments of more than 16 frames would take minutes. A bound of 24 over tiles of 16 runs the kernels made for them.
SMALL = {way: {"rows": 16, "queries": 16, "frames": 16} for way in ("forward", "backward")}
SMALL_TILES = {"time_attention": SMALL, "temporal_pooling": SMALL}
INPUTS = {"sentinel2": (3, 1800, 900), "sentinel1": (2, -12, 4), "landsat": (2, 0.3, 0.1)}


@pytest.fixture
def two_losses(monkeypatch):
    """`two_losses(backend)`: the first two losses on one 32-px sample, and the parameters' shapes by name."""
    monkeypatch.setattr(golden, "SIDE", 32)
    monkeypatch.setattr(golden, "INPUTS", INPUTS)
    sample = golden.build_samples()[:1]
    statistics = golden.statistics_of(sample)
    inputs, targets = list(INPUTS), list(golden.TARGETS)
    batch = Collator(BUILT_IN, inputs, targets)(sample)
    entries = [
        tuning.Entry(operator, "triton", "predicted", "for the interpreter", config=config)
        for operator, config in TILES.items()
    ]
    small = [
        tuning.Entry(operator, "triton", "predicted", "for the interpreter", config=config)
        for operator, config in SMALL_TILES.items()
    ]

    def run(backend):
        monkeypatch.setenv("AEF_KERNELS", backend)
        torch.manual_seed(0)
        config = PRESETS["tiny"]
        model = AEF(config.model, BUILT_IN, statistics, inputs=inputs, targets=targets)
        objective = Objective(config.objective, BUILT_IN, statistics, targets, data=config.data)
        optimiser, losses = torch.optim.Adam(model.parameters(), lr=1e-3), []
        for max_frames, tiles in ((batch.max_frames, entries), (24, entries + small)):
            monkeypatch.setattr(tuning, "table", lambda gpu, tiles=tiles: tiles)
            monkeypatch.setattr(dispatch, "_choices", {})
            bounded = dataclasses.replace(batch, max_frames=max_frames)
            loss = objective(model(bounded), bounded).total
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        return losses, {name: one.shape for name, one in model.state_dict().items()}

    return run


def test_two_steps_give_the_losses_of_pytorch_and_launch_every_kernel(two_losses):
    wanted, names = two_losses("torch")
    before = {name: one.launches for name, one in runtime.KERNELS.items()}
    found, same_names = two_losses("triton")
    assert found == pytest.approx(wanted, rel=2e-4)
    assert wanted[1] < wanted[0]
    assert names == same_names  # a checkpoint does not know which kernels ran
    launches = {name: one.launches - before[name] for name, one in runtime.KERNELS.items()}
    print("\n".join(f"{name}: {count} launches" for name, count in sorted(launches.items())))
    retired = DOCUMENT.read_text(encoding="utf-8").partition("## Retired")[2]
    idle = [name for name, count in launches.items() if not count and f"`{name}`" not in retired]
    assert idle == [], f"shipped, but never launched: {idle}"
