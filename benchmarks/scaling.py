"""Predicted step time and cost of training on 1 to 512 GPUs: python -m benchmarks.scaling [--config large] [--measured FILE]

    step = operations / (MFU · peak) + max(0, bytes / link − overlap · backward)

Operations, memory and bytes come from `aef.model.cost` and `aef.training.planner`; the micro-batch is the largest that
is expected to fit; a batch beyond it is accumulated, with one more forward pass of the teachers whose partners are in
another pass, and, where there is a text head, of a share --text-share of the others. Everything else is an input of this
command and printed. Nothing here is a measurement unless --measured names one: a phases.json of `aef throughput` on such
a GPU, whose MFU then replaces the assumed one and whose step time is printed beside the prediction.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from aef.atomic import writing
from aef.config import Config, ConfigError
from aef.data.random_batch import frames_per_sample, sources_of
from aef.figure_file import new_figure, save_png
from aef.model.cost import BACKWARD_PER_FORWARD, Work, forward_flops, parameters
from aef.settings_file import load_config
from aef.sources import BUILT_IN, SourceError
from aef.training import planner

RESULTS = Path(__file__).parent / "results"
GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
BATCHES = (256, 512, 1024, 2048, 4096)
STAGES = ("zero1", "zero2", "zero3")
TEXT_SHARE = 1_200_099 / 5_145_244
"""Of the paper's training sites, those with a text (supplement, training sites). Both samples of a site count here, though
its texts may lie in one of them: more than it can be."""
SECONDS_PER_DAY = 86_400
SHARES = ("mfu", "overlap")
FREE = ("overlap", "price_per_gpu_hour")
"""Numbers of a machine that are at most 1, and those that may be 0."""


@dataclass(frozen=True)
class Machine:
    """What is assumed of the hardware; every field is an option of the command."""

    peak_tflops: float = 989.0
    mfu: float = 0.40
    memory_gb: float = 141.0
    gpus_per_node: int = 8
    link_gb_s: float = 450.0
    node_link_gb_s: float = 50.0
    overlap: float = 0.7
    price_per_gpu_hour: float = 4.0

    def bandwidth(self, gpus: int) -> float:
        """Bytes per second that one GPU moves in a collective: NVLink within a node, its network card beyond."""
        return 1e9 * (self.link_gb_s if gpus <= self.gpus_per_node else self.node_link_gb_s)


@dataclass(frozen=True)
class Prediction:
    gpus: int
    batch: int
    stage: str
    micro_batch: int
    accumulation: int
    memory_gb: float
    compute_s: float
    communication_s: float
    step_s: float
    samples_per_s: float
    efficiency: float
    days: float
    gpu_days: float
    cost: float


def sample_flops(config: Config) -> float:
    """Forward operations of one sample at full budgets, the student at what its drops leave on average."""
    inputs, targets = sources_of(config, BUILT_IN)
    teacher, student = frames_per_sample(config, BUILT_IN, inputs)
    budgets = {name: max(1, round(config.data.frame_budget * BUILT_IN[name].frame_budget)) for name in inputs}
    frames = {name: round(count * (1 + student / teacher)) for name, count in budgets.items()}
    decoded = len(targets) * config.data.targets_per_source
    periods = min(config.data.periods_per_sample or decoded, decoded)
    work = Work(
        side_px=config.data.chip_px,
        frames=frames,
        attended=round(teacher**2 + student**2),
        summaries=periods + 2,
        pairs=round((periods + 1) * teacher + student),
        targets=dict.fromkeys(targets, config.data.targets_per_source),
    )
    return float(forward_flops(config.model, BUILT_IN, work))


@lru_cache
def _parameters(config: Config) -> int:
    return parameters(config.model, BUILT_IN, *sources_of(config, BUILT_IN))


def largest_micro_batch(
    config: Config, stage: str, gpus: int, machine: Machine, share: int
) -> tuple[int, planner.CostPlan]:
    """The largest micro-batch whose predicted memory fits, and its plan; up to 16, then powers of two. One that asks for
    less ahead of the passes stands over larger ones that do not."""
    inputs, targets = sources_of(config, BUILT_IN)
    best: tuple[int, planner.CostPlan] | None = None
    sizes = sorted({min(size, share) for size in (*range(1, 17), 32, 64, 128)})
    for size in sizes:
        train = dataclasses.replace(config.train, global_batch=share * gpus, micro_batch=size)
        one = dataclasses.replace(config, train=train)
        found = planner.plan(
            one,
            BUILT_IN,
            inputs,
            targets,
            ranks=gpus,
            on_gpu=True,
            deepspeed_config=stage,
            parameters=_parameters(config),
        )
        fits = found.device_bytes <= machine.memory_gb * 1e9 * (1 - planner.RESERVED)
        if best is None or (fits and best[1].ahead >= found.ahead):
            best = (size, found)
    assert best is not None
    return best


def predict(
    config: Config, gpus: int, batch: int, stage: str, machine: Machine, flops: float, text_share: float
) -> Prediction:
    """One row. A plan that does not fit is kept: its memory says so."""
    share = batch // gpus
    micro, found = largest_micro_batch(config, stage, gpus, machine, share)
    again = found.ahead + text_share * found.ahead_texts
    forward_s = share * flops / (machine.mfu * machine.peak_tflops * 1e12)
    compute = forward_s * (1 + BACKWARD_PER_FORWARD + again)
    moved = sum(found.traffic.values()) / machine.bandwidth(gpus)
    step = compute + max(0.0, moved - machine.overlap * BACKWARD_PER_FORWARD * forward_s)
    days = config.train.steps * step / SECONDS_PER_DAY
    alone = batch * flops * (1 + BACKWARD_PER_FORWARD) / (machine.mfu * machine.peak_tflops * 1e12)
    return Prediction(
        gpus=gpus,
        batch=batch,
        stage=stage,
        micro_batch=micro,
        accumulation=found.accumulation,
        memory_gb=found.device_bytes / 1e9,
        compute_s=compute,
        communication_s=moved,
        step_s=step,
        samples_per_s=batch / step,
        efficiency=alone / gpus / step,
        days=days,
        gpu_days=days * gpus,
        cost=days * gpus * 24 * machine.price_per_gpu_hour,
    )


def predictions(config: Config, machine: Machine, text_share: float = TEXT_SHARE) -> Iterator[Prediction]:
    flops = sample_flops(config)
    for stage in STAGES:
        for batch in BATCHES:
            for gpus in (count for count in GPUS if count <= batch):
                yield predict(config, gpus, batch, stage, machine, flops, text_share)


def draw(rows: list[Prediction], path: Path, title: str, memory_gb: float) -> None:
    """Days of training and samples per second of each GPU, a line per batch at its fastest stage; memory, a line per stage."""
    figure = new_figure(13, 4)
    days, each, memory = figure.subplots(1, 3)
    # Later lines are thinner: where batches or stages agree, all of them are seen.
    for width, batch in zip((7, 5.5, 4, 2.5, 1.2), BATCHES, strict=True):
        line = [min(same, key=lambda row: row.step_s) for same in _by_gpus(rows, batch=batch)]
        gpus = [row.gpus for row in line]
        days.plot(gpus, [row.days for row in line], lw=width, label=f"batch {batch:,}")
        each.plot(gpus, [row.samples_per_s / row.gpus for row in line], lw=width)
    for width, stage in zip((6, 3.5, 1.5), STAGES, strict=True):
        line = [row for row in rows if row.stage == stage and row.batch == BATCHES[0]]
        memory.plot([row.gpus for row in line], [row.memory_gb for row in line], lw=width, label=stage)
    memory.axhline(memory_gb, color="0.4", lw=0.9, ls=":", label="of the GPU")
    days.set(yscale="log", title="days of training")
    each.set(title="samples / s and GPU", ylim=(0, 1.15 * max(row.samples_per_s / row.gpus for row in rows)))
    memory.set(title=f"GB of one GPU, batch {BATCHES[0]}", ylim=(0, 1.15 * memory_gb))
    for panel in (days, each, memory):
        panel.set(xscale="log", xlabel="GPUs")
        panel.set_xticks(GPUS, [str(count) for count in GPUS], fontsize=7)
        panel.xaxis.minorticks_off()
        panel.grid(alpha=0.3)
    days.legend(frameon=False, fontsize=7)
    memory.legend(frameon=False, fontsize=7, loc="lower left")
    figure.suptitle(title, fontsize=9)
    save_png(path, figure)


def _by_gpus(rows: list[Prediction], batch: int) -> list[list[Prediction]]:
    """Rows of one batch, those of the same number of GPUs together."""
    return [same for gpus in GPUS if (same := [row for row in rows if row.gpus == gpus and row.batch == batch])]


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("settings", nargs="*", metavar="key=value", help="settings over the preset")
    p.add_argument("--config", default="large", help="preset or YAML file")
    p.add_argument("--measured", type=Path, metavar="FILE", help="phases.json of `aef throughput` on one such GPU")
    p.add_argument("--out", type=Path, default=RESULTS, help="folder for scaling.csv and scaling.png")
    p.add_argument(
        "--text-share", type=float, default=TEXT_SHARE, help="samples with a text, of all (default: %(default).2f)"
    )
    for item in dataclasses.fields(Machine):
        kind = int if item.type == "int" else float
        p.add_argument(
            f"--{item.name.replace('_', '-')}", type=kind, default=item.default, help="(default: %(default)s)"
        )
    options = p.parse_intermixed_args(argv)
    if options.out.exists() and not options.out.is_dir():
        p.error(f"--out {options.out}: expected a folder, found a file")
    try:
        config = load_config(options.config, options.settings)
    except ConfigError as error:
        p.error(str(error))
    machine = Machine(**{item.name: getattr(options, item.name) for item in dataclasses.fields(Machine)})
    for name, value in dataclasses.asdict(machine).items():
        least, most = (0.0 if name in FREE else math.ulp(0.0)), (1.0 if name in SHARES else sys.float_info.max)
        if not least <= value <= most:  # NaN is neither
            expected = f"{'0 or more' if least == 0 else 'more than 0'}{', at most 1' if name in SHARES else ''}"
            p.error(f"--{name.replace('_', '-')}: expected {expected}, found {value:g}")
    if not 0 <= options.text_share <= 1:
        p.error(f"--text-share: expected 0 to 1, found {options.text_share:g}")
    basis = "assumed, not measured"
    if options.measured:
        try:
            machine, basis = _calibrated(machine, options.measured)
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            why = error.strerror if isinstance(error, OSError) else f"{type(error).__name__} {error}"
            p.error(
                f"--measured {options.measured}: expected the phases.json of `aef throughput`, with title, flops and step_s; "
                f"{why}"
            )
    try:
        rows = list(predictions(config, machine, options.text_share))
    except (ConfigError, SourceError) as error:
        p.error(str(error))
    inputs = ", ".join(f"{name} {value:g}" for name, value in dataclasses.asdict(machine).items())
    if config.model.text_dim:
        inputs += f", text_share {options.text_share:.3g}"
    print(
        f"{options.config}: {config.train.steps:,} steps, {3 * sample_flops(config) / 1e12:.1f} TFLOP a sample and step"
    )
    print(f"inputs (MFU {basis}): {inputs}")
    print(_table([row for row in rows if row.batch == BATCHES[0]]))
    options.out.mkdir(parents=True, exist_ok=True)
    with writing(options.out / "scaling.csv", "w") as stream:
        writer = csv.writer(stream)
        writer.writerow([f"# {options.config}; MFU {basis}; {inputs}"])
        writer.writerow([item.name for item in dataclasses.fields(Prediction)])
        writer.writerows([f"{v:.4g}" if isinstance(v, float) else v for v in dataclasses.astuple(row)] for row in rows)
    title = f"{options.config}: predicted; MFU {machine.mfu:.2f} {basis}; {machine.node_link_gb_s:g} GB/s between nodes"
    draw(rows, options.out / "scaling.png", title, machine.memory_gb)
    print(f"wrote {options.out / 'scaling.csv'} ({len(rows)} rows) and scaling.png")
    return 0


def _calibrated(machine: Machine, path: Path) -> tuple[Machine, str]:
    """The machine with the MFU that a profile measured, and the step that it predicts beside the measured one."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    reached = entries["flops"] / entries["step_s"]
    mfu = reached / (machine.peak_tflops * 1e12)
    assumed = entries["flops"] / (machine.mfu * machine.peak_tflops * 1e12)
    print(
        f"measured: {entries['title']}: step {entries['step_s']:.3f} s; with the assumed MFU {machine.mfu:.2f} {assumed:.3f} s"
    )
    return dataclasses.replace(machine, mfu=mfu), f"measured in {path.name}"


def _table(rows: list[Prediction]) -> str:
    lines = [
        f"{'stage':<6}{'GPUs':>5}{'batch':>6}{'micro':>6}{'acc.':>5}{'GB':>6}{'compute s':>10}{'comm. s':>9}{'step s':>8}"
        f"{'samples/s':>10}{'eff.':>6}{'days':>7}{'GPU-days':>9}{'cost':>10}"
    ]
    for r in rows:
        lines.append(
            f"{r.stage:<6}{r.gpus:>5}{r.batch:>6}{r.micro_batch:>6}{r.accumulation:>5}{r.memory_gb:>6.0f}{r.compute_s:>10.3f}"
            f"{r.communication_s:>9.3f}{r.step_s:>8.3f}{r.samples_per_s:>10.1f}{r.efficiency:>6.0%}{r.days:>7.1f}"
            f"{r.gpu_days:>9.0f}{r.cost:>10,.0f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
