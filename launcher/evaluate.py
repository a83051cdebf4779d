"""Judge a trained model: withheld dates against naive predictors, few labels against hand-made features, health.

    aef evaluate --checkpoint RUN --data CHIPS --withheld dates.csv --set report

Several runs (seeds) are judged one after the other, and then on average: error, least and most of the runs, and the
mean error over that of linear interpolation. Withheld dates are those of the run unless --withheld names a list; --set
takes the rows of its column `set`. Labels are judged on --only (default: the places that the run held out). Dates and
places that a run trained on are refused; what cannot be judged is listed with its reason. Tables go to standard output,
and to --out as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from aef.launcher.command import add_device, load_model, parser, require_number, run
from aef.progress import Progress

MOST_DAYS = 730
"""A year's frames, and six months to either side: what a model may be asked about (`aef.mapping.support`)."""


def main(argv: list[str] | None = None) -> int:
    given = _options().parse_args(argv)

    from aef.atomic import require_writable, writing
    from aef.evaluation.judgement import mean_of_runs
    from aef.evaluation.probes import MAX_SHOTS

    require_number("--shots", given.shots, 1, MAX_SHOTS)
    require_number("--trials", given.trials, 1)
    require_number("--health-places", given.health_places, 1)
    given.period_days = _days(given.period_days)
    if given.out:
        require_writable(given.out, "--out")
    runs = {}
    for path in given.checkpoint:
        version, judgement = _judge(path, given)
        if len(given.checkpoint) > 1:
            print(f"## {Path(path).name}\n")
        print(judgement.markdown(), flush=True)
        runs[path] = {"model": version, **judgement.figures()}
    if given.out:
        with writing(Path(given.out), "w") as stream:
            json.dump({"runs": runs} if len(runs) > 1 else runs[given.checkpoint[0]], stream, indent=1)
    if len(runs) > 1:
        print(f"\n## Mean of {len(runs)} runs\n\n{mean_of_runs(list(runs.values()))}")
    return 0


def _options() -> argparse.ArgumentParser:
    options = parser(__file__, __doc__)
    options.add_argument(
        "--checkpoint",
        required=True,
        nargs="+",
        metavar="RUN",
        help="run folders of trained models, say of other seeds",
    )
    options.add_argument("--data", required=True, metavar="CHIPS", help="folder of chips")
    options.add_argument(
        "--withheld", metavar="CSV", help="dates that the model has not seen; default: those of its run"
    )
    options.add_argument("--set", metavar="WORD", help="judge only the rows of the list with this word in column `set`")
    options.add_argument(
        "--period-days",
        "--periods",
        default="8,30,120,365",
        metavar="DAYS",
        help="lengths of the valid period around a date",
    )
    options.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="PLACE",
        help="places whose labels are judged; @FILE: one a line of a file",
    )
    options.add_argument("--shots", type=int, default=10, help="labelled pixels per class, at most 300")
    options.add_argument("--trials", type=int, default=20, help="splits of the fields")
    options.add_argument("--health-places", type=int, default=12, help="places on which health is judged, at most")
    options.add_argument("--out", metavar="FILE", help="write the figures here as JSON")
    add_device(options)
    return options


def _days(text: str) -> list[float]:
    """Lengths of valid periods. Raises ValueError naming the option."""
    try:
        days = [float(word) for word in text.split(",")]
    except ValueError:
        days = []
    if not days or not all(0 < one <= MOST_DAYS for one in days):
        raise ValueError(f"--period-days: expected days above 0 and up to {MOST_DAYS}, like 8,30,120, found {text!r}")
    return days


def _judge(path: str, given):
    """The version of a run's model, and what is said of it. Raises ValueError for places and dates that it cannot judge."""
    from aef.data.chips import ChipFolder
    from aef.data.on_demand import OnDemand
    from aef.data.withheld import WithheldDates
    from aef.evaluation.judgement import JudgementError, chips_to_judge, judge, own_dates, require_unseen_dates
    from aef.evaluation.proof import require_unseen
    from aef.settings_file import names_of

    model = load_model(__file__, path, given.device)
    folder = ChipFolder(given.data, model.registry)
    own = own_dates(model)
    listed = given.withheld or own
    twin_ms = model.config.data.twin_ms
    hidden = WithheldDates.read(listed, twin_ms=twin_ms) if listed else None
    judged = WithheldDates.read(listed, given.set, twin_ms=twin_ms) if listed else None
    if given.set and not listed:
        raise JudgementError(f"--set {given.set}: {path} withheld no dates: name a list by --withheld")
    if given.withheld and judged and not judged.places & set(folder.places()):
        known = ", ".join(sorted(filter(None, folder.places()))[:3])
        raise JudgementError(f"--withheld {listed}: names no place of {folder.path}, which holds {known} …")
    if judged and (idle := judged.describe_unmatched(folder)):
        print(f"aef evaluate: {listed}: {idle}", file=sys.stderr)
    only = folder.require(names_of(given.only, "--only"), "--only: holds no")
    held_out = set(only or model.config.data.held_out_places)
    wanted = chips_to_judge(folder, held_out, judged, given.health_places)
    seen, unseen = (OnDemand(indices, lambda index: model.read(folder.files[index])) for indices in wanted)
    if only:
        require_unseen(model, only)
    if judged:
        require_unseen_dates(model, seen, judged, own)
    with Progress(f"evaluate {Path(path).name}", unit="step") as progress:
        return model.version, judge(
            model,
            seen,
            withheld=hidden,
            judged=judged,
            held_out=unseen,
            period_days=given.period_days,
            shots=given.shots,
            trials=given.trials,
            health_places=given.health_places,
            progress=progress.reach,
        )


if __name__ == "__main__":
    raise SystemExit(run(main))
