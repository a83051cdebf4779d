"""Whole training steps of `tiny` through the real kernels, interpreted: PyTorch's losses, and every kernel launched."""

import dataclasses
import re
from pathlib import Path

import pytest

from aef.kernels import dispatch, runtime, tuning
from tests.kernels.two_steps import LOSSES, TwoSteps

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
# Every flag of every kernel takes both values in these steps, and a merge each of its kinds, but for these.
NEVER = {
    # One kernel where a sequence lies in one tile, two where it does not.
    ("time_attention_backward", "SINGLE", False),
    ("time_attention_backward_query", "SINGLE", True),
    ("time_attention_backward_key", "SINGLE", True),
    # `tiny` has no biases; test_temporal_pooling_interp.py has them.
    *((f"temporal_pooling_{name}", "BIAS", True) for name in ("forward", "backward_query", "backward_state")),
}
MERGES = {"", "add", "slope"}


def entries(tiles):
    return [
        tuning.Entry(operator, "triton", "predicted", "for the interpreter", config=config)
        for operator, config in tiles.items()
    ]


@pytest.fixture
def interpreted(monkeypatch):
    """What `TwoSteps` calls before each step: other tiles, and in the second a bound that makes kernels loop."""

    def before(step, batch):
        tiles = entries(TILES) if step == 0 else entries(TILES | SMALL_TILES)
        monkeypatch.setattr(tuning, "table", lambda gpu: tiles)
        monkeypatch.setattr(dispatch, "_choices", {})
        return dataclasses.replace(batch, max_frames=batch.max_frames if step == 0 else 24)

    return before


def test_two_steps_give_the_pinned_losses_and_launch_every_kernel_with_every_flag(interpreted, monkeypatch):
    two_steps = TwoSteps(monkeypatch)
    monkeypatch.setenv("AEF_KERNELS", "torch")
    wanted, names = two_steps()
    assert wanted == pytest.approx(LOSSES, rel=1e-3)
    assert wanted[1] < wanted[0]
    monkeypatch.setenv("AEF_KERNELS", "triton")
    before = {name: one.launches for name, one in runtime.KERNELS.items()}
    for one in runtime.KERNELS.values():
        one.flags.clear()
    found, same_names = two_steps(interpreted)
    assert found == pytest.approx(wanted, rel=2e-4)
    assert names == same_names  # a checkpoint does not know which kernels ran
    launches = {name: one.launches - before[name] for name, one in runtime.KERNELS.items()}
    print("\n".join(f"{name}: {count} launches" for name, count in sorted(launches.items())))
    retired = retirements(DOCUMENT.read_text(encoding="utf-8"))
    idle = [name for name, count in launches.items() if not count and name not in retired]
    assert idle == [], f"shipped, but never launched: {idle}"
    flags = {(name, flag, value) for name, one in runtime.KERNELS.items() for flag, value in one.flags}
    both = {(name, flag, value) for name, flag, given in flags if isinstance(given, bool) for value in (True, False)}
    merges = {("implicit_gemm", "MERGE", kind) for kind in MERGES}
    assert (both | merges) - flags == NEVER


def retirements(text):
    """Kernels that the document retires: `name`, and in the same line the number that a measurement gave."""
    lines = text.partition("## Retired")[2].splitlines()
    return {name for line in lines for name in re.findall(r"`(\w+)`", line) if re.search(r"\d", line.replace(name, ""))}


def test_a_kernel_is_retired_by_a_measurement_only():
    assert retirements("## Retired\n`one2` is slower\n`other`: 31 µs where cuDNN takes 24\n") == {"other"}
