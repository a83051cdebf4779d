"""Every setting of the engine: typed, with its unit and reason. Presets are plain Python.

Settings files and dotted overrides (``train.steps=100``) are read by `aef.settings_file`; this module, the model and
the kernels import no settings library. Where the paper (Brown et al. 2025) states a value, `large` has it; presets
`tiny`, `small` and `base` are ours.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type or impossible; one line naming it."""


def setting(default: Any, description: str, unit: str = "", *, least: float = 0, most: float = math.inf) -> Any:
    """A dataclass field that documents itself (`aef train --list-settings` prints it) and knows the limits of its numbers."""
    return field(default=default, metadata={"description": description, "unit": unit, "least": least, "most": most})


WIDEST = 65_536
"""Of a layer: what is wider is a slip of the hand, and would end for want of memory."""


def require_type(value: Any, hint: Any, name: str) -> None:
    """Refuse a value that is not of the type of a setting; an int passes for a float. Raises ConfigError naming it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return
        require_type(value, next(a for a in arguments if a is not type(None)), name)
    elif origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):  # 2.0 is no 2
            raise ConfigError(f"{name}: expected one of {', '.join(map(str, arguments))}, found {value!r}")
    elif origin is tuple:
        if not isinstance(value, tuple):
            raise ConfigError(f"{name}: expected a tuple, found {value!r}")
        for item in value:
            require_type(item, arguments[0], name)
    elif type(value) not in ((int, float) if hint is float else (hint,)):  # NumPy's numbers cannot be written as YAML
        raise ConfigError(f"{name}: expected {hint.__name__}, found {value!r}")


@dataclass(frozen=True)
class ModelConfig:
    """The network (paper section 2 and S2)."""

    inputs: tuple[str, ...] = setting((), "sources that are encoded; empty: every input source found in the data")
    targets: tuple[str, ...] = setting((), "sources that are decoded; empty: every source found in the data")
    blocks: int = setting(15, "Space-Time-Precision blocks", least=1, most=1000)
    precision_width: int = setting(
        128, "width of the precision path, at half resolution", "channels", least=1, most=WIDEST
    )
    time_width: int = setting(
        512, "width of the time path, at an eighth of the resolution", "channels", least=1, most=WIDEST
    )
    space_width: int = setting(
        1024, "width of the space path, at a sixteenth of the resolution", "channels", least=1, most=WIDEST
    )
    head_width: int = setting(64, "width of one attention head", "channels", least=1, most=WIDEST)
    mlp_ratio: int = setting(4, "hidden width of a transformer MLP / its width", least=1, most=1000)
    precision_convs: int = setting(2, "3x3 convolutions in the precision operator", least=1, most=1000)
    pyramid_kernel: Literal[2, 3, 4] = setting(3, "kernel of the exchange's stride-2 resampling, both ways", "px")
    summary_heads: int = setting(8, "heads of the temporal attention pooling", least=1, most=WIDEST)
    summary_width: int = setting(
        128, "width of a summary, between pooling and embedding", "channels", least=1, most=WIDEST
    )
    period_bias: bool = setting(False, "learned pooling bias for where a frame lies relative to the valid period")
    embedding_dim: int = setting(64, "dimension of the embedding: points on the unit sphere", least=3, most=WIDEST)
    kappa: float = setting(8000.0, "fixed concentration of the von Mises-Fisher bottleneck")
    decoder_width: int = setting(512, "width of the two hidden layers of an implicit decoder", least=1, most=WIDEST)
    decoder_gate: bool = setting(False, "metadata and time also multiply a decoder's first layer (paper: no)")
    text_dim: int = setting(0, "width of the frozen text tower's vectors; 0: no text head", most=WIDEST)
    text_width: int = setting(512, "width of the two hidden layers of the text head", least=1, most=WIDEST)
    compute_dtype: Literal["float32", "bfloat16"] = setting("float32", "type to which our modules cast matmul operands")
    checkpointing: Literal["none", "selective", "full"] = setting(
        "none", "recompute activations of each block in backward"
    )
    compile: bool = setting(False, "torch.compile each STP block")
    cuda_graphs: bool = setting(False, "compile each STP block and replay it from CUDA graphs, one per padded length")


@dataclass(frozen=True)
class DataConfig:
    """From chips to samples (paper S1-S2.2; `docs/data.md` explains every choice)."""

    sources_file: tuple[str, ...] = setting((), "YAML files with further source entries")
    chip_px: int = setting(128, "side of the training crop, a multiple of 4", "px", most=8192)
    frame_budget: float = setting(1.0, "multiplies every source's frame budget (paper: 65, 17 and 21 frames)")
    budget_spread: float = setting(
        0.0, "a sample's frame budget is drawn from [1 - this, 1] times the budget", least=0.0
    )
    time_jitter_days: float = setting(
        0.0,
        "all times of a sample move together by up to this: few places are known by their dates",
        "days",
        least=0.0,
        most=3660,
    )
    targets_per_source: int = setting(1, "frames decoded per source and sample (paper: 1)", least=1, most=1000)
    periods_per_sample: int = setting(
        0, "valid periods shared by all targets; 0: one of its own per target (paper)", most=1000
    )
    support_days: float = setting(365.0, "length of the support period", "days")
    period_min_days: float = setting(4.0, "shortest valid period (paper: more than 4)", "days")
    period_uniform: float = setting(0.5, "share of periods with a length uniform in (min, support]")
    period_log_uniform: float = setting(
        0.25, "share of periods with a log-uniform length; the rest is the whole support"
    )
    period_beyond_days: float = setting(0.0, "how far a period may reach beyond the support, at most 183", "days")
    target_by_clear_weight: bool = setting(True, "draw target frames in proportion to their clear weight")
    twin_minutes: float = setting(
        60.0, "frames of a source this close to its target leave the input with it", "min", most=527_040
    )
    crops_per_chip: int = setting(
        1, "samples in a row of a chip that was read: small crops cost less than reading", least=1, most=65_536
    )
    crop_jitter: bool = setting(True, "random crop position; otherwise the centre")
    line_gap: bool = setting(True, "Sentinel-1 line gap (sources that declare it)")
    texts_per_sample: int = setting(
        1, "texts of a crop that are aligned at most (paper: 1); they share a valid period", least=1, most=1000
    )
    text_period: Literal["random", "support"] = setting(
        "random", "valid period of a sample's texts: drawn (paper), or the whole support"
    )
    student_strategies: tuple[float, ...] = setting((1.0, 1.0, 1.0), "odds of frame drop, forecast, backcast")
    teacher_frame_drop: bool = setting(False, "v2.1: the teacher loses frames as the student does")
    regrid_offset: bool = setting(False, "v2.1: random grid offset before re-gridding")
    statistics: Literal["clear", "valid", "given"] = setting(
        "clear", "pixels over which statistics are taken; given: CHIPS/stats.json as it is, whatever it was taken over"
    )
    withheld: str | None = setting(None, "CSV of dates (place, time_utc) that no sample may see, their twins included")
    held_out_places: tuple[str, ...] = setting((), "places that training never reads; @FILE: one a line of a file")
    workers: int = setting(0, "loader processes per rank; 0: in the training process", most=1000)
    cache_chips: int = setting(16, "decoded chips kept in memory per worker")
    skip_bad: bool = setting(False, "count and skip chips that break the contract instead of stopping")
    max_bad: float = setting(
        0.01, "share of the training chips that skip_bad may pass over (one always) before the run stops"
    )
    frame_bucket: int = setting(0, "pad the packed frames of a batch to a multiple of this; 0: never", "frames")

    @property
    def twin_ms(self) -> int:
        return round(self.twin_minutes * 60_000)


@dataclass(frozen=True)
class ObjectiveConfig:
    """Eq. 3 and its four weights (paper section 4.1, S2.3)."""

    reconstruction_weight: float = setting(1.0, "a: reconstruction")
    uniformity_weight: float = setting(0.05, "b: batch uniformity (0.005 was best in the paper's sweep)")
    consistency_weight: float = setting(0.02, "c: teacher/student consistency")
    text_weight: float = setting(0.001, "d: text contrastive")
    uniformity: Literal["pairs", "channels"] = setting("pairs", "reading of the uniformity sum: R1 pairs, R2 channels")
    partner_chips: int = setting(
        0, "uniformity rotates so many chips in a row among themselves, 2 or more; 0: the whole batch", "chips"
    )
    normalize_by_present: bool = setting(True, "1/|M| counts the sources present in a row; False: all decoded sources")
    clip_sigma: float = setting(6.0, "values beyond this many standard deviations are clipped", "s.d.", most=1e6)
    unscored_bands: tuple[str, ...] = setting(
        (), "SOURCE.BAND: decoded, but not part of its source's error (paper: none)"
    )
    source_weights: tuple[str, ...] = setting(
        (), "SOURCE=WEIGHT: a source's w_i in place of that of its entry (v2.1: nlcd=0.25)"
    )

    def weights_by_source(self) -> dict[str, float]:
        """What `source_weights` says. Raises ConfigError for an entry that states no weight, or a source's second."""
        found: dict[str, float] = {}
        for entry in self.source_weights:
            name, _, text = entry.partition("=")
            try:
                weight = float(text)
            except ValueError:
                weight = math.nan
            if not (0 <= weight < math.inf) or name in found:
                raise ConfigError(
                    f"objective.source_weights: expected SOURCE=WEIGHT with a weight of at least 0, each source once, found {entry!r}"
                )
            found[name] = weight
        return found

    def ring(self, data: DataConfig) -> int:
        """Samples of a ring of uniformity partners: all crops of its chips; 0: the whole batch is one."""
        return self.partner_chips * data.crops_per_chip


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation and the run (paper section 5, S3)."""

    steps: int = setting(100_000, "optimiser steps", least=1)
    global_batch: int = setting(256, "samples per optimiser step, over all ranks", least=1, most=1_048_576)
    micro_batch: int = setting(1, "samples per forward pass and rank", least=1)
    peak_lr: float = setting(1e-4, "learning rate at the end of the warm-up")
    warmup_steps: int = setting(1000, "steps of linear warm-up from 0; at most a tenth of the run")
    betas: tuple[float, ...] = setting((0.9, 0.999), "Adam's decay rates")
    eps: float = setting(1e-8, "Adam's epsilon")
    weight_decay: float = setting(0.0, "decoupled weight decay; the paper's Adam has none")
    clip_norm: float = setting(1.0, "gradient norm at which it is clipped; 0: never")
    seed: int = setting(0, "keys every random draw, with the epoch and the sample id")
    checkpoint_every: int = setting(1000, "steps between checkpoints", least=1)
    keep_checkpoints: int = setting(2, "complete checkpoints kept", least=1)
    keep_every: int = setting(0, "keep every checkpoint of a multiple of so many steps beside the newest; 0: none")
    figure_every: int = setting(1000, "steps between figures; 0: only at the end")
    validate_every: int = setting(0, "steps between validations; 0: never")
    validate_set: str | None = setting(None, "rows of data.withheld that validation judges (column `set`); none: all")
    max_skipped: int = setting(10, "non-finite steps in a row after which the run stops")
    timeout_s: float = setting(
        600.0, "how long a rank waits for the others before the run ends with an error", "s", least=1, most=2_592_000
    )


CUSTOM = "custom"
"""Preset of settings that started from none of the named choices: from the defaults, which are the paper's."""


@dataclass(frozen=True)
class Config:
    """All settings of a run. Defaults are the paper's where it states a number; the named choices are in `PRESETS`.

    Attributes:
        preset: the named choice that the settings started from; `load_config` says it, and versions of models name it.
    """

    preset: str = CUSTOM
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig = TrainConfig()

    def validate(self) -> None:
        """Refuse settings that cannot work together. Raises ConfigError naming the setting."""

        def require(holds: bool, name: str, expected: str, found: Any) -> None:
            if not holds:
                raise ConfigError(f"{name}: expected {expected}, found {found!r}")

        require_type(self.preset, str, "preset")
        for section, kind in SECTIONS.items():
            require(type(getattr(self, section)) is kind, section, kind.__name__, getattr(self, section))
            for item in dataclasses.fields(kind):
                name, value = f"{section}.{item.name}", getattr(getattr(self, section), item.name)
                require_type(value, hints_of(kind)[item.name], name)
                least, most = item.metadata["least"], item.metadata["most"]
                limits = f"a finite number of at least {least:g}"
                limits += f" and at most {most:,.15g}" if most < math.inf else ""
                for number in value if isinstance(value, tuple) else (value,):
                    holds = isinstance(number, str | None) or (math.isfinite(number) and least <= number <= most)
                    require(holds, name, limits, value)
        require(self.preset in (CUSTOM, *PRESETS), "preset", f"{CUSTOM}, {', '.join(PRESETS)}", self.preset)
        m, d, t = self.model, self.data, self.train
        require(d.chip_px > 0 and d.chip_px % 4 == 0, "data.chip_px", "a positive multiple of 4", d.chip_px)
        for name in ("inputs", "targets"):
            names = getattr(m, name)
            require(len(set(names)) == len(names), f"model.{name}", "each source once", names)
        for name in ("time_width", "space_width"):
            width = getattr(m, name)
            require(
                width > 0 and width % m.head_width == 0,
                f"model.{name}",
                f"a multiple of head_width {m.head_width}",
                width,
            )
        require(
            m.summary_width % m.summary_heads == 0,
            "model.summary_width",
            "a multiple of summary_heads",
            m.summary_width,
        )
        require(m.kappa > 0, "model.kappa", "a positive number", m.kappa)
        require(d.frame_budget > 0, "data.frame_budget", "a positive number", d.frame_budget)
        require(0 <= d.period_beyond_days <= 183, "data.period_beyond_days", "0 to 183", d.period_beyond_days)
        require(d.support_days <= 3660, "data.support_days", "at most ten years", d.support_days)
        require(
            d.support_days > d.period_min_days >= 0.001,
            "data.period_min_days",
            "0.001 to less than support_days",
            d.period_min_days,
        )
        shares = (d.period_uniform, d.period_log_uniform)
        require(min(shares) >= 0 and sum(shares) <= 1, "data.period_uniform", "shares of at most 1 in sum", shares)
        require(d.budget_spread < 1, "data.budget_spread", "0 to less than 1", d.budget_spread)
        odds = d.student_strategies
        require(len(odds) == 3 and min(odds) >= 0 and sum(odds) > 0, "data.student_strategies", "three odds", odds)
        require(len(t.betas) == 2 and max(t.betas) < 1, "train.betas", "two numbers below 1", t.betas)
        require(t.peak_lr > 0, "train.peak_lr", "a positive number", t.peak_lr)
        require(self.objective.clip_sigma > 0, "objective.clip_sigma", "a positive number", self.objective.clip_sigma)
        self.objective.weights_by_source()
        chips = self.objective.partner_chips
        require(chips != 1, "objective.partner_chips", "0, or at least 2 to have a partner", chips)
        # A parameter without a gradient, as of a source that no sample holds, would be updated by 0 / 0.
        require(t.eps > 0, "train.eps", "a positive number", t.eps)
        require(t.seed < 2**32, "train.seed", "less than 2³²", t.seed)

    @property
    def warmup_steps(self) -> int:
        """The paper's 1,000 steps, scaled down with short runs to a tenth of them."""
        return max(1, min(self.train.warmup_steps, self.train.steps // 10))


SECTIONS = {"model": ModelConfig, "data": DataConfig, "objective": ObjectiveConfig, "train": TrainConfig}


@functools.cache
def hints_of(section: type) -> dict[str, Any]:
    """The types of a section's settings by name."""
    return typing.get_type_hints(section)


LARGE = Config(preset="large", data=DataConfig(cache_chips=0, skip_bad=True))
"""The paper: 15 blocks, 128/512/1024, batch 256, 100,000 steps, 128 px. Of millions of chips none is met again while it
is kept, and some are bad."""

XLARGE = Config(
    preset="xlarge",
    model=dataclasses.replace(LARGE.model, blocks=24, time_width=768, space_width=1280),
)
"""1.2 billion parameters, to shard over GPUs. Not in the paper, whose variant of about a billion has no stated widths."""

ANGLES = ("sentinel1.angle", "palsar2.LIN")
"""Angles of incidence tell the orbits that see a place, not its ground; what is decoded must be in the embedding, and on
the synthetic Earth they took half of its variance (docs/results/learning.md). The paper lists them as decoded bands."""

BASE = Config(
    preset="base",
    model=ModelConfig(
        blocks=8, precision_width=96, time_width=256, space_width=512, compute_dtype="bfloat16", period_bias=True
    ),
    data=DataConfig(targets_per_source=2),
    objective=ObjectiveConfig(partner_chips=4, unscored_bands=ANGLES),
    train=TrainConfig(steps=50_000, global_batch=32, micro_batch=4, peak_lr=3e-4),
)
"""Half the paper's blocks and, but for the precision path, half its widths, for one GPU. Four chips in a row are partners
of each other, so that passes of an accumulated step need nothing of each other. Not in the paper."""

SMALL = Config(
    preset="small",
    model=ModelConfig(
        blocks=2,
        precision_width=32,
        time_width=64,
        space_width=64,
        head_width=32,
        summary_heads=16,
        summary_width=96,
        decoder_gate=True,
        pyramid_kernel=2,
        period_bias=True,
    ),
    data=DataConfig(
        chip_px=4,
        crops_per_chip=4,
        frame_budget=0.65,
        budget_spread=0.3,
        time_jitter_days=20.0,
        targets_per_source=3,
        periods_per_sample=4,
        period_beyond_days=183.0,
    ),
    objective=ObjectiveConfig(unscored_bands=ANGLES),
    train=TrainConfig(
        steps=3000,
        global_batch=24,
        micro_batch=24,
        peak_lr=2e-3,
        warmup_steps=300,
        weight_decay=0.05,
        checkpoint_every=500,
        figure_every=1000,
    ),
)
"""Learns in minutes on two CPU cores; docs/results/learning.md says what decided each setting. Not in the paper."""

TINY = Config(
    preset="tiny",
    model=ModelConfig(
        blocks=2,
        precision_width=16,
        time_width=32,
        space_width=32,
        head_width=16,
        decoder_width=32,
        summary_heads=2,
        summary_width=32,
        text_width=32,
    ),
    data=DataConfig(chip_px=16, frame_budget=0.1),
    train=TrainConfig(
        steps=20, global_batch=2, micro_batch=2, peak_lr=1e-3, warmup_steps=2, checkpoint_every=10, figure_every=0
    ),
)
"""As little as runs every part, for tests. Not in the paper."""

PRESETS = {config.preset: config for config in (TINY, SMALL, BASE, LARGE, XLARGE)}
