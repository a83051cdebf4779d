"""The plan of a run in words: what `aef train --dry-run` and `aef throughput` print."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from aef.config import Config
from aef.model import cost
from aef.sources import Registry

from . import planner
from .new_run import find_sources
from .planner import CostPlan

CARDS_GB = {"24 GB": 24, "40 GB": 40, "80 GB": 80, "H200": 141}
WAYS: tuple[Literal["none", "selective", "full"], ...] = ("none", "selective", "full")


def cost_lines(plan: CostPlan) -> list[str]:
    """The three figures that scripts read, one per line as ``name: value``."""
    names = ("parameters", "flops_per_frame", "activation_bytes_per_frame")
    return [f"{name}: {getattr(plan, name)}" for name in names]


def describe(plan: CostPlan) -> list[str]:
    """The plan in words: memory of one rank by kind, and bytes on the wire."""
    ranks = f"{plan.ranks} rank{'s' * (plan.ranks > 1)}"
    batch = f"{ranks} x {plan.accumulation} x {plan.micro_batch} samples"
    parts = ("weights", "gradients", "optimizer", "buckets", "activations", "fields", "samples", "host")
    lines = [
        f"per step: {batch}, {plan.frames_per_sample:.0f} frames a sample (teacher and student), ZeRO stage {plan.stage}, "
        f"{plan.precision}",
        f"expected memory of one rank in {plan.precision}: {format_gb(plan.device_bytes)}",
        *(f"  {part}: {format_gb(getattr(plan, part))}" for part in parts if getattr(plan, part)),
    ]
    if plan.filler:
        lines.append(plan.filler)
    lines.append(
        f"samples that wait in host memory, per rank: {format_gb(plan.loader)}, {format_gb(plan.shared)} of it in /dev/shm"
        + f"; of the {plan.ranks} ranks: {format_gb(plan.ranks * plan.loader)}" * (plan.ranks > 1)
    )
    if plan.ahead:
        lines.append(
            f"ahead of the passes, for uniformity: {plan.ahead / 3:.0%} more operations than without accumulation"
        )
    if plan.ahead_texts:
        lines.append(
            f"ahead of the passes, for texts: {plan.ahead_texts / 3:.0%} more operations, had every sample one"
        )
    lines += [f"sent per rank and step, {kind}: {format_gb(value)}" for kind, value in plan.traffic.items()]
    return lines


def what_fits(
    config: Config, registry: Registry, inputs: Sequence[str], targets: Sequence[str], *, ranks: int, choice: str | None
) -> list[str]:
    """For each card and way of checkpointing, the largest micro-batch that is expected to fit."""
    lines = []
    count = cost.parameters(config.model, registry, inputs, targets)
    for card, gigabytes in CARDS_GB.items():
        sizes = {}
        for way in WAYS:
            model = dataclasses.replace(config.model, checkpointing=way)
            train = dataclasses.replace(config.train, micro_batch=1, global_batch=ranks)
            data = dataclasses.replace(config.data, frame_bucket=0)  # what fits is asked sample by sample
            one = dataclasses.replace(config, model=model, data=data, train=train)
            fitted = planner.plan(
                one, registry, inputs, targets, ranks=ranks, on_gpu=True, deepspeed_config=choice, parameters=count
            )
            room = gigabytes * 1e9 * (1 - planner.RESERVED) - fitted.model_bytes
            sizes[way] = max(0, int(room // (fitted.activations + fitted.samples)))
        words = [f"{size} with checkpointing {way}" for way, size in sizes.items() if size]
        too_large = [way for way, size in sizes.items() if not size]
        on_card = f"on {card} in {fitted.precision}"
        line = f"fits {on_card}: micro-batch {', '.join(words)}" if words else f"does not fit {on_card}"
        lines.append(line + (f"; does not fit with {' or '.join(too_large)}" if words and too_large else ""))
    return lines


def describe_plan(
    config: Config, data: str | None, deepspeed_config: str | None, ranks: int, on_gpu: bool | None = None
) -> str:
    """What `aef train --dry-run` prints below the settings, and `aef throughput` first. With ``data``, its own sources count;
    ``on_gpu`` None: whatever is here."""
    import torch

    registry, (inputs, targets) = find_sources(config, data)
    on_gpu = torch.cuda.is_available() if on_gpu is None else on_gpu

    def planned(on_gpu: bool) -> CostPlan:
        return planner.plan(
            config, registry, inputs, targets, ranks=ranks, on_gpu=on_gpu, deepspeed_config=deepspeed_config
        )

    here = planned(on_gpu)
    lines = [*cost_lines(here), f"{', '.join(inputs)} → {', '.join(targets)}", *describe(here)]
    if not on_gpu:
        # A dry run stands on a login node, the run on a GPU: what fits there is of another precision, and so of other size.
        there = planned(True)
        lines.append(
            f"this is for a CPU; expected memory of one rank on a GPU, in {there.precision}: {format_gb(there.device_bytes)}"
        )
    lines += what_fits(config, registry, inputs, targets, ranks=ranks, choice=deepspeed_config)
    return "\n".join(lines)


def format_gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
