"""Predict what a model costs, then profile a real training step by phase.

    aef throughput --config large --dry-run --ranks 8 --device gpu      parameters, operations, memory, bytes on the wire
    aef throughput --config small --out profile                         table, picture, Chrome trace of a step

Without --data the step is over random frames at full budgets; with --data it is over chips, and loading counts.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from aef.config import PRESETS, Config
from aef.launcher.command import parser, run
from aef.settings_file import load_config


def main(argv: list[str] | None = None) -> int:
    p = parser(__file__, __doc__)
    p.add_argument(
        "settings", nargs="*", metavar="key=value", help="settings over the preset, like train.micro_batch=2"
    )
    p.add_argument("--config", default="small", metavar="NAME|FILE", help=f"{', '.join(PRESETS)}, or a YAML file")
    p.add_argument("--data", metavar="CHIPS", help="folder of chips; otherwise random frames")
    p.add_argument("--out", metavar="DIR", help="folder for phases.png, phases.json and trace.json")
    p.add_argument("--deepspeed-config", metavar="NAME|FILE", help="as for `aef train`")
    p.add_argument("--ranks", type=int, default=1, help="ranks to predict for")
    p.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="device to predict for")
    p.add_argument("--repeats", type=int, default=3, help="steps to time; the fastest counts")
    p.add_argument("--dry-run", action="store_true", help="predict only")
    options = p.parse_intermixed_args(argv)
    for name in ("ranks", "repeats"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}: expected at least 1, found {getattr(options, name)}")
    config = load_config(options.config, options.settings)
    _predict(config, options)
    if not options.dry_run:
        _measure(config, options)
    return 0


def _predict(config: Config, options) -> None:
    from aef.training.plan_report import describe_plan

    on_gpu = None if options.device == "auto" else options.device == "gpu"
    print(describe_plan(config, options.data, options.deepspeed_config, options.ranks, on_gpu))


def _measure(config: Config, options) -> None:
    from aef.training.bench import StepBench

    with tempfile.TemporaryDirectory() as scratch:
        bench = StepBench(config, options.data, Path(scratch), deepspeed_config=options.deepspeed_config)
        folder = Path(options.out) if options.out else None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        phases = bench.profile(trace=folder / "trace.json" if folder else None, repeats=options.repeats)
        print(phases.table())
        print("\n".join(bench.summary(phases)))
        if folder:
            _write(folder, phases, bench)
        bench.close()


def _write(folder: Path, phases, bench) -> None:
    from aef.atomic import writing
    from aef.training.phases import write_picture

    with writing(folder / "phases.json", "w") as stream:
        about = {"title": bench.title, "step_s": phases.step_s, "flops": bench.flops()}
        json.dump({**about, "forward": phases.forward, "backward": phases.backward}, stream, indent=1)
    try:
        write_picture(phases, folder / "phases.png", bench.title)
    except ImportError:
        print("no picture: matplotlib is not installed (pip install 'aef-engine[eval]')")
    print(f"wrote {', '.join(sorted(str(path) for path in folder.iterdir()))}")


if __name__ == "__main__":
    raise SystemExit(run(main))
