"""Leave one place out: train on all other places, probe inside it, ours beside every baseline.

    aef leave-out --data CHIPS --out results/places --label land_cover=11,13,60 --label crop_type=1200,5100,9120

For every place with labels one run in OUT/PLACE, of --steps steps of `small` (or --config), then one table per place
and label in OUT/table.md and OUT/table.json: the embedding of the year, four of 91 days, the series decoded from twelve
of 30 days, every hand-made feature set, paired differences, numbers of fields. A run that is finished is not trained
again, one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from aef.launcher.command import add_device, as_typed, load_model, parser, require_number, run
from aef.training.signals import STOPPED

STEPS = 1500
"""Six minutes of one idle core at the 0.23 s that a step over real chips with three imaging sources took."""


def main(argv: list[str] | None = None) -> int:
    given = _options().parse_intermixed_args(argv)

    if given.least_fields < 2:
        raise ValueError(
            f"--least-fields: expected at least 2, one to train and one to test, found {given.least_fields}"
        )
    require_number("--trials", given.trials, 1)
    require_number("--seed", given.seed, 0)

    from aef.data.chips import ChipFolder
    from aef.evaluation.leave_place_out import Task
    from aef.evaluation.tables import write_results
    from aef.mapping.device import find_device
    from aef.settings_file import load_config, registry_of

    find_device(given.device)  # before anything is trained
    config = load_config(given.config, [f"train.steps={given.steps}", *given.settings])
    tasks = [Task.parse(text) for text in given.label]
    folder = ChipFolder(given.data, registry_of(given.data))
    places = _labelled_places(folder, given.only, {task.label for task in tasks})
    out, found, skipped = Path(given.out), [], []
    for number, place in enumerate(places, 1):
        feasible, reasons = _feasible(folder, place, tasks, given.least_fields)
        skipped += reasons
        print(f"place {number} of {len(places)}: {place}{'' if feasible else ', no label can be judged'}", flush=True)
        if not feasible:
            continue
        if not _train(config, given.data, out / place, place):
            return STOPPED
        found += _judge(out / place, folder, place, feasible, given)
    command = as_typed(__file__, argv)
    parts = [f"```\n{command}\n```", *(result.markdown() for result in found)]
    if skipped:
        parts.append("Not judged:\n\n" + "\n".join(f"- {line}" for line in skipped))
    text = "\n\n".join(parts)
    print(text)
    figures = {"command": command, "results": [result.figures() for result in found], "not_judged": skipped}
    write_results(out / "table", text, figures)
    return 0


def _options() -> argparse.ArgumentParser:
    options = parser(__file__, __doc__)
    options.add_argument("settings", nargs="*", metavar="key=value", help="training settings over the preset")
    options.add_argument("--data", required=True, metavar="CHIPS", help="folder of chips, some of them with labels")
    options.add_argument("--out", required=True, metavar="DIR", help="folder for one run per place, and the table")
    options.add_argument("--config", default="small", metavar="NAME|FILE", help="preset or YAML file")
    options.add_argument("--steps", type=int, default=STEPS, help="training steps per place")
    options.add_argument(
        "--label", action="append", default=[], metavar="LABEL[=CODE,…]", help="label and classes; default: every label"
    )
    options.add_argument("--only", nargs="*", metavar="PLACE", help="only these; default: every place with labels")
    options.add_argument("--least-fields", type=int, default=3, help="classes with fewer at a place are left out")
    options.add_argument("--trials", type=int, default=20, help="splits of the fields")
    options.add_argument("--seed", type=int, default=0, help="of the splits")
    add_device(options)
    return options


def _labelled_places(folder, wanted: list[str] | None, labels: set[str]) -> list[str]:
    """Places with labels, in the folder's order. Raises ValueError where nothing can be left out or judged."""
    places = [place for place in dict.fromkeys(folder.places()) if place]
    if len(places) < 2:
        raise ValueError(f"{folder.path}: expected chips of at least two places, found {len(places)}")
    folder.require(wanted or (), "--only: holds no")
    known: dict[str, set[str]] = {place: set() for place in places}
    for index, place in enumerate(folder.places()):
        if place:
            known[place] |= set(folder.header(index)["labels"])
    chosen = [p for p in places if (not wanted or p in wanted) and (known[p] & labels if labels else known[p])]
    if not chosen:
        raise ValueError(f"{folder.path}: no chosen place carries the label {', '.join(sorted(labels)) or '(any)'}")
    return chosen


def _feasible(folder, place: str, tasks, least_fields: int):
    """Labels that can be judged at a place, and why others cannot: known before anything is trained."""
    from aef.data.on_demand import OnDemand
    from aef.evaluation.labels import labelled_pixels
    from aef.evaluation.leave_place_out import tasks_of
    from aef.evaluation.probes import ProbeError

    chips = OnDemand([index for index, one in enumerate(folder.places()) if one == place], folder.read)
    feasible, reasons = [], []
    for task in tasks or tasks_of(chips):
        try:
            labelled_pixels(chips, task.label, classes=task.classes, min_units=least_fields)
            feasible.append(task)
        except ProbeError as error:
            reasons.append(f"{place}: {error}")
    return feasible, reasons


def _train(config, data: str, out: Path, place: str) -> bool:
    """Train, or go on, without the place; whether it got to the last step."""
    from aef.training import Trainer

    held_out = tuple(dict.fromkeys((*config.data.held_out_places, place)))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, held_out_places=held_out))
    with Trainer(config, data, out, resume="auto") as trainer:
        return trainer.position.step >= config.train.steps or trainer.fit()


def _judge(out: Path, folder, place: str, tasks, given):
    """Results of every label at a place."""
    from aef.data.on_demand import OnDemand
    from aef.evaluation.leave_place_out import judge_place

    model = load_model(__file__, str(out), given.device)
    chips = OnDemand([path for path, one in zip(folder.files, folder.places()) if one == place], model.read)
    splits = {"trials": given.trials, "seed": given.seed, "min_units": given.least_fields}
    return [judge_place(model, chips, task, **splits) for task in tasks]


if __name__ == "__main__":
    raise SystemExit(run(main))
