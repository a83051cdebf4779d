"""Predict what a model costs, then profile a real training step by phase.

    aef throughput --config large --dry-run --ranks 8 --device cuda     parameters, operations, memory, bytes on the wire
    aef throughput --config small --out profile                         table, picture, Chrome trace of a step

Without --data the step is over random frames at full budgets; with --data it is over chips, and loading counts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from aef.config import PRESETS, Config
from aef.launcher.command import add_device, parser, run
from aef.settings_file import load_config


def main(argv: list[str] | None = None) -> int:
    given = _options().parse_intermixed_args(argv)
    for name in ("ranks", "repeats"):
        if getattr(given, name) < 1:
            raise ValueError(f"--{name}: expected at least 1, found {getattr(given, name)}")
    config = load_config(given.config, given.settings)
    _predict(config, given)
    if not given.dry_run:
        _measure(config, given)
    return 0


def _options() -> argparse.ArgumentParser:
    options = parser(__file__, __doc__)
    options.add_argument(
        "settings", nargs="*", metavar="key=value", help="settings over the preset, like train.micro_batch=2"
    )
    options.add_argument("--config", default="small", metavar="NAME|FILE", help=f"{', '.join(PRESETS)}, or a YAML file")
    options.add_argument("--data", metavar="CHIPS", help="folder of chips; otherwise random frames")
    options.add_argument("--out", metavar="DIR", help="folder for phases.png, phases.json and trace.json")
    options.add_argument("--deepspeed-config", metavar="NAME|FILE", help="as for `aef train`")
    options.add_argument("--ranks", type=int, default=1, help="ranks to predict for")
    add_device(options, "where the predicted step runs; it need not be here")
    options.add_argument("--repeats", type=int, default=3, help="steps to time; the fastest counts")
    options.add_argument("--dry-run", action="store_true", help="predict only")
    return options


def _predict(config: Config, given) -> None:
    from aef.training.plan_report import describe_plan

    kind = given.device.partition(":")[0]
    if kind not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device: expected auto, cpu, cuda or cuda:N, found {given.device!r}")
    on_gpu = None if kind == "auto" else kind == "cuda"
    print(describe_plan(config, given.data, given.deepspeed_config, given.ranks, on_gpu))


def _measure(config: Config, given) -> None:
    from aef.training.bench import StepBench

    with tempfile.TemporaryDirectory() as scratch:
        bench = StepBench(config, given.data, Path(scratch), deepspeed_config=given.deepspeed_config)
        folder = Path(given.out) if given.out else None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        phases = bench.profile(trace=folder / "trace.json" if folder else None, repeats=given.repeats)
        print(phases.table())
        print("\n".join(bench.summary(phases)))
        if folder:
            _write(folder, phases, bench)
        bench.close()


def _write(folder: Path, phases, bench) -> None:
    from aef.atomic import writing
    from aef.figure_file import NO_MATPLOTLIB
    from aef.training.phases import write_picture

    with writing(folder / "phases.json", "w") as stream:
        about = {"title": bench.title, "step_s": phases.step_s, "flops": bench.flops()}
        json.dump({**about, "forward": phases.forward, "backward": phases.backward}, stream, indent=1)
    try:
        write_picture(phases, folder / "phases.png", bench.title)
    except ImportError:
        print(f"no picture: {NO_MATPLOTLIB}")
    print(f"wrote {', '.join(sorted(str(path) for path in folder.iterdir()))}")


if __name__ == "__main__":
    raise SystemExit(run(main))
