"""Train a model on a folder of chips.

Works the same under `deepspeed launcher/train.py …`, `torchrun … launcher/train.py …` and plain `python
launcher/train.py …` (docs/training.md says what to type on one CPU, one GPU, eight GPUs and a Slurm cluster). Settings
are section.key=value, like train.steps=2000 or data.chip_px=64; `aef train --config small --list-settings` lists them
all.

Exit code 0: trained to the last step; 75: a signal asked to stop, a checkpoint is written (or the run had not begun to
learn yet), go on with --resume auto.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path

if __package__ in (None, ""):
    # Run as a file from a bare checkout; `aef` must be found, and this folder must not hide modules.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from aef.config import PRESETS, Config
from aef.launcher.command import FAILED, parser, run
from aef.settings_file import dump_config, load_config
from aef.training.signals import STOPPED


def main(argv: list[str] | None = None) -> int:
    options = _options()
    given = options.parse_intermixed_args(argv)
    config = load_config(given.config, given.settings)
    if given.list_settings:
        print(_settings(config))
        return 0
    if given.dry_run:
        return _dry_run(config, given)
    for name in ("data", "out"):
        if getattr(given, name) is None:
            options.error(f"--{name} is required")
    return _train(config, given)


def _options() -> argparse.ArgumentParser:
    options = parser(__file__, __doc__)
    options.add_argument(
        "settings", nargs="*", metavar="key=value", help="settings over the preset, like train.steps=2000"
    )
    options.add_argument("--config", default="small", metavar="NAME|FILE", help=f"{', '.join(PRESETS)}, or a YAML file")
    options.add_argument("--data", metavar="CHIPS", help="folder of chips")
    options.add_argument("--out", metavar="RUN", help="run folder")
    options.add_argument(
        "--resume",
        metavar="auto|CHECKPOINT",
        help="auto: go on from the newest complete checkpoint of RUN, or start; or one of RUN/checkpoints, later ones of "
        "which are set aside",
    )
    options.add_argument(
        "--init-from", metavar="RUN|FILE", help="begin a new run with the weights and the statistics of another one"
    )
    options.add_argument(
        "--deepspeed-config",
        metavar="NAME|FILE",
        help="single, zero1, zero2, zero3, zero3_offload, or a JSON file; otherwise single on one CPU rank, else zero1",
    )
    options.add_argument(
        "--dry-run", action="store_true", help="print settings, parameters, operations and memory; do nothing"
    )
    options.add_argument(
        "--list-settings", action="store_true", help="list every setting with its value, unit and meaning"
    )
    options.add_argument(
        "--tensorboard", action="store_true", help="write RUN/tensorboard too, the numbers of log.jsonl"
    )
    options.add_argument("--quiet", action="store_true", help="no progress")
    options.add_argument("--local_rank", type=int, default=0, help="set by the deepspeed launcher")
    return options


def _train(config: Config, given) -> int:
    from aef.training.signals import StopsAtOnce, stopped_early

    with StopsAtOnce() as signals:
        try:
            return _run(config, given)
        except SystemExit as stop:
            if signals.received is None:
                raise
            print(f"aef train: stopped by {signals.received} between steps: go on with --resume auto", file=sys.stderr)
            if not int(os.environ.get("RANK", "0")):
                stopped_early(Path(given.out), signals.received)
            sys.stderr.flush()
            # In order it would wait for companions, who may be at work for long.
            os._exit(int(stop.code or STOPPED))


def _run(config: Config, given) -> int:
    from aef.training import Trainer
    from aef.training.distributed import RankError
    from aef.training.trainer import TrainingError

    try:
        with Trainer(
            config,
            given.data,
            given.out,
            resume=given.resume,
            init_from=given.init_from,
            deepspeed_config=given.deepspeed_config,
            tensorboard=given.tensorboard,
            quiet=given.quiet,
        ) as trainer:
            done = trainer.fit()
            trainer.ranks.barrier()
        return 0 if done else STOPPED
    except RankError as error:
        print(f"aef train: error: {error}", file=sys.stderr, flush=True)
        # A companion is gone: leaving the group in order would wait for it.
        os._exit(FAILED)
    except TrainingError:
        # Every rank knows; one says it.
        if int(os.environ.get("RANK", "0")):
            os._exit(FAILED)
        raise


def _dry_run(config: Config, given) -> int:
    from aef.training.initial import Initial
    from aef.training.new_run import require_beginning, require_choices
    from aef.training.plan_report import describe_plan

    initial = None if given.init_from is None else Initial.read(given.init_from)
    beginning = None
    if given.data:
        require_choices(config, Path(given.data))
        if initial is not None:
            beginning = require_beginning(initial, config, Path(given.data))
    print(dump_config(config).rstrip())
    if beginning:
        print(beginning)
    print(describe_plan(config, given.data, given.deepspeed_config, int(os.environ.get("WORLD_SIZE", "1"))))
    return 0


def _settings(config: Config) -> str:
    lines = []
    for section in ("model", "data", "objective", "train"):
        group = getattr(config, section)
        for item in dataclasses.fields(group):
            unit = f" {item.metadata['unit']}" if item.metadata["unit"] else ""
            value = getattr(group, item.name)
            lines.append(f"{section}.{item.name} = {value!r}{unit}: {item.metadata['description']}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(run(main))
