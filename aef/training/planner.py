"""What a run will need, before it starts: memory per rank, operations, bytes that travel, and what would fit.

Predictions come from settings alone (`aef.model.cost`); `launcher/throughput.py` prints what was measured beside them.
All sizes are decimal: 1 GB = 1e9 bytes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aef.config import Config, ConfigError
from aef.data.random_batch import frames_per_sample
from aef.model import cost
from aef.model.summary import UPSAMPLING_KERNEL
from aef.sources import Registry

from .deepspeed_config import (
    asking_ahead,
    gradient_bytes,
    micro_batches,
    precision_of,
    resolve,
    row_of_a_pass,
    stage_of,
    teachers_ahead,
)
from .workers import STEPS_AHEAD, UNITS_AHEAD

RESERVED = 0.1
"""Share of a GPU's memory left to its runtime, kernels' workspaces and fragmentation."""

MOST_FILLER = 0.05
"""Share of filler among a micro-batch's frames, at most: they cost what frames cost, and nobody reads them."""

AHEAD_FIELDS = 6
"""Fields on the device for each that is taken ahead of accumulated passes, before these: it, what travels, the partner, and
gradients. One of them, the field's gradient, stays until the last pass."""

PROJECTOR_STATES, FIELD_STATES, DECODER_STATES = 5, 5, 4
"""Tensors that autograd keeps of a frame's projection (at L/2), of an embedding field (at L) and of a decoded target,
in units of their width: counted with saved-tensor hooks (tests/training/test_planner.py)."""


@dataclass(frozen=True)
class CostPlan:
    """Predicted needs of one rank.

    ``ahead``: the share of one more forward pass that accumulated passes need ahead of them (`aef.training.ahead`) for
    uniformity, and ``ahead_texts`` that they need for texts had every sample one. ``weights``, ``gradients``,
    ``optimizer``, ``buckets``, ``activations``, ``fields`` (from ahead, beside or beyond the activations) and ``samples`` (a
    pass's, which a GPU holds while it runs) in bytes on the device; ``host`` in bytes of optimiser state kept in host
    memory; ``loader`` in bytes of samples that wait there, ``shared`` of them in shared memory; ``traffic`` in bytes sent
    per step by kind.
    """

    parameters: int
    flops_per_frame: int
    activation_bytes_per_frame: int
    frames_per_sample: float
    filler: str
    micro_batch: int
    accumulation: int
    ahead: float
    ahead_texts: float
    stage: int
    precision: str
    ranks: int
    weights: float
    gradients: float
    optimizer: float
    buckets: float
    activations: float
    fields: float
    samples: float
    host: float
    loader: float
    shared: float
    traffic: dict[str, float]

    @property
    def device_bytes(self) -> float:
        return self.model_bytes + self.activations + self.fields + self.samples

    @property
    def model_bytes(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.buckets


def plan(
    config: Config,
    registry: Registry,
    inputs: Sequence[str],
    targets: Sequence[str],
    *,
    ranks: int = 1,
    on_gpu: bool = False,
    deepspeed_config: str | None = None,
    parameters: int | None = None,
) -> CostPlan:
    """Predict; ``parameters`` spares counting them again. Raises ConfigError as `resolve` does."""
    m, d = config.model, config.data
    count = cost.parameters(m, registry, inputs, targets) if parameters is None else parameters
    settings = resolve(deepspeed_config, config, ranks=ranks, on_gpu=on_gpu, parameters=count)
    stage, precision = stage_of(settings), precision_of(settings)
    micro, accumulation = micro_batches(config, ranks)
    if precision == "bfloat16":
        m = dataclasses.replace(m, compute_dtype="bfloat16")
    teacher, student = frames_per_sample(config, registry, inputs)
    frames = teacher + student
    per_frame = cost.activation_bytes_per_frame(m, d.chip_px, on_gpu=on_gpu)
    fields, decoded = _fields_per_sample(config, registry, targets)
    element = 2 if m.compute_dtype == "bfloat16" else 4
    half, whole = (d.chip_px // 2) ** 2 * m.precision_width, d.chip_px**2
    per_sample = (
        frames * (per_frame + element * PROJECTOR_STATES * half)
        + fields
        * (
            element
            * (d.chip_px // 2) ** 2
            * ((6 + 2 * m.mlp_ratio) * m.summary_width + m.summary_heads * m.precision_width)
            + 4 * FIELD_STATES * whole * m.embedding_dim
        )
        + decoded
        * whole
        * (element * (DECODER_STATES + m.decoder_gate) * m.decoder_width + 4 * DECODER_STATES * m.embedding_dim)
    )
    ahead, most_ahead = teachers_ahead(config, ranks), _embedded_ahead(config, ranks)
    # The last upsampling keeps its taps as it used them, without the grid that the parameter has.
    taps = element * UPSAMPLING_KERNEL**2 * m.summary_width * m.embedding_dim
    activations = micro * per_sample + taps
    share = config.train.global_batch // ranks
    kept = most_ahead * share * 4 * whole * m.embedding_dim
    states = _states(count, stage, precision, ranks, settings)
    sample = sample_bytes(config, registry, inputs, targets)
    loader, shared = _loader(config, sample, ranks, on_gpu)
    return CostPlan(
        parameters=count,
        flops_per_frame=cost.flops_per_frame(m, registry, inputs, d.chip_px, round(teacher)),
        activation_bytes_per_frame=per_frame,
        frames_per_sample=frames,
        filler=filler(config, registry, inputs, ranks),
        micro_batch=micro,
        accumulation=accumulation,
        ahead=ahead * teacher / frames,
        ahead_texts=(most_ahead - ahead) * teacher / frames,
        stage=stage,
        precision=precision,
        ranks=ranks,
        **states,
        activations=activations,
        fields=max(kept, AHEAD_FIELDS * kept - activations),
        samples=micro * sample if on_gpu else 0.0,
        loader=loader,
        shared=shared,
        traffic=_traffic(config, count, settings, ranks),
    )


def goes_ahead(config: Config, ranks: int) -> str:
    """What is embedded ahead of accumulated passes, in words; empty where nothing is."""
    share = teachers_ahead(config, ranks)
    found = [f"{share:.0%} of the teachers"] if share else []
    if _embedded_ahead(config, ranks) > share:
        found.append("the teachers of samples with a text")
    return f"ahead of the passes: {' and '.join(found)}" if found else ""


def _embedded_ahead(config: Config, ranks: int) -> float:
    """Share of the teachers that go ahead, had every sample a text where there is a text head."""
    _, accumulation = micro_batches(config, ranks)
    return 1.0 if config.model.text_dim and accumulation > 1 else teachers_ahead(config, ranks)


def filler(config: Config, registry: Registry, inputs: Sequence[str], ranks: int) -> str:
    """Most filler frames of a micro-batch under `data.frame_bucket`, and their share, in words; empty without it.

    Raises:
        ConfigError: they can be more than a twentieth of the frames planned; says the largest bucket that fits.
    """
    bucket = config.data.frame_bucket
    if not bucket:
        return ""
    micro, _ = micro_batches(config, ranks)
    frames = micro * sum(frames_per_sample(config, registry, inputs))
    share = (bucket - 1) / (bucket - 1 + frames)
    if share > MOST_FILLER:
        largest = 1 + int(frames * MOST_FILLER / (1 - MOST_FILLER))
        raise ConfigError(
            f"data.frame_bucket: {bucket - 1} filler frames beside {frames:.0f} of a micro-batch would be {share:.1%} of "
            f"its work: expected at most {MOST_FILLER:.0%}, {f'a bucket up to {largest}' if largest > 1 else '0'} here, "
            "or a larger train.micro_batch"
        )
    return f"filler: at most {bucket - 1} beside {frames:.0f} frames of a micro-batch, {share:.1%}"


def sample_bytes(config: Config, registry: Registry, inputs: Sequence[str], targets: Sequence[str]) -> float:
    """Of a packed sample, were all its values float32 with one mask for all bands: the frames of both views, and targets."""
    frames = sum(
        sum(frames_per_sample(config, registry, [name])) * (4 * registry[name].channels + 1) for name in inputs
    )
    gridded = [registry[name].channels for name in targets if registry[name].grid != "native"]
    decoded = config.data.targets_per_source * sum(4 * channels + 2 for channels in gridded)
    return config.data.chip_px**2 * (frames + decoded)


def _loader(config: Config, sample: float, ranks: int, on_gpu: bool) -> tuple[float, float]:
    """Bytes of samples that one rank and its workers hold in host memory, and those of them in shared memory.

    Each worker makes a unit of a step while others of its wait. On a GPU a rank's steps wait page-locked; on a CPU they
    are the workers' own blocks. One waits, one is put together, one is at work.
    """
    workers, share = config.data.workers, config.train.global_batch // ranks
    micro, _ = micro_batches(config, ranks)
    unit = min(share, -(-config.data.crops_per_chip // micro) * micro)
    steps = (STEPS_AHEAD + 2) * share
    waiting = UNITS_AHEAD * workers * unit
    shared = (waiting if on_gpu else waiting + steps) if workers else 0
    return sample * (workers * unit + waiting + steps), sample * shared


def _fields_per_sample(config: Config, registry: Registry, targets: Sequence[str]) -> tuple[float, float]:
    """Embedding fields and decoded targets of a sample: the two consistency summaries and one per period."""
    decoded = len(targets) * config.data.targets_per_source
    periods = min(config.data.periods_per_sample or decoded, decoded)
    return 2.0 + periods, float(decoded)


def _travelling(config: Config, ranks: int) -> float:
    """Share of the samples whose uniformity partner's field may be another rank's."""
    _, accumulation = micro_batches(config, ranks)
    if accumulation > 1:
        return asking_ahead(config, ranks)
    return 0.0 if row_of_a_pass(config, ranks) else 1.0


def _states(count: int, stage: int, precision: str, ranks: int, settings: dict[str, Any]) -> dict[str, float]:
    """Bytes of weights, gradients and optimiser state of one rank at a stage (docs/training.md has the table).

    DeepSpeed keeps fp32 master weights from stage 1 up, also for fp32 models, and gradients summed in fp32.
    """
    element = 2 if precision == "bfloat16" else 4
    shard = ranks if stage >= 1 else 1
    weights = element * count / (ranks if stage == 3 else 1)
    gradients = (4.0 if element == 4 else 6.0) * count / (ranks if stage >= 2 else 1)
    optimizer = (8.0 if stage == 0 else 12.0) * count / shard
    zero = settings["zero_optimization"]
    device = (zero.get("offload_optimizer") or {}).get("device", "none")
    buckets = 0.0
    if stage >= 1 and ranks > 1:
        doubled = 2 if zero.get("overlap_comm") else 1
        buckets = float(doubled * gradient_bytes(settings) * zero.get("reduce_bucket_size", 5 * 10**8))
    if stage == 3 and ranks > 1:
        # Gathered parameters of the modules at work and of those prefetched.
        buckets += element * min(count, zero.get("stage3_prefetch_bucket_size", 0) + count / 10)
    offloaded = device != "none"
    return {
        "weights": weights,
        "gradients": gradients,
        "optimizer": 0.0 if offloaded else optimizer,
        "host": optimizer if offloaded else 0.0,
        "buckets": buckets,
    }


def _traffic(config: Config, count: int, settings: dict[str, Any], ranks: int) -> dict[str, float]:
    """Bytes that one rank sends per optimiser step.

    DeepSpeed 0.19 reduces gradients to all ranks at stages 0 to 2 (there and back), at stage 3 to their owners only;
    from stage 2 up in every micro-batch.
    """
    if ranks == 1:
        return {}
    stage, element = stage_of(settings), 2 if precision_of(settings) == "bfloat16" else 4
    _, accumulation = micro_batches(config, ranks)
    away = (ranks - 1) / ranks
    reductions = {0: 2, 1: 2, 2: 2 * accumulation, 3: accumulation}[stage]
    ahead = _embedded_ahead(config, ranks)
    gathers = {0: 0, 1: 1, 2: 1, 3: 2 * accumulation + math.ceil(ahead * accumulation)}[stage]
    share = config.train.global_batch // ranks
    field = 4 * config.data.chip_px**2 * config.model.embedding_dim
    traffic = {
        "gradients": reductions * gradient_bytes(settings) * count * away,
        "weights": gathers * element * count * away,
        # A partner's field where it is in another pass, or rank, and its gradient on the way back.
        "uniformity partners": 2.0 * share * field * _travelling(config, ranks),
    }
    if config.model.text_dim:
        traffic["text vectors"] = 4.0 * share * 2 * config.model.embedding_dim * ranks * 2
    return {kind: size for kind, size in traffic.items() if size}
