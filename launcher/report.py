"""Write one HTML page about a run: inputs, reconstructions, embeddings, learning curve, tables against baselines.

    aef report --checkpoint RUN --data CHIPS --out report.html

The dates that the run withheld and the places that it held out are judged; the page needs no network.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from aef.launcher.command import add_device, as_typed, load_model, parser, require_number, run
from aef.progress import Progress


def main(argv: list[str] | None = None) -> int:
    given = _options().parse_args(argv)

    from aef.atomic import require_writable
    from aef.data.chips import ChipFolder
    from aef.data.on_demand import OnDemand
    from aef.data.withheld import WithheldDates
    from aef.evaluation.judgement import judge, own_dates
    from aef.evaluation.report import write_report
    from aef.training.log import read_log

    require_number("--most-places", given.most_places, 1)
    require_number("--trials", given.trials, 1)
    require_writable(given.out, "--out")
    commands = [as_typed(__file__, argv)]
    if given.commands:
        commands = Path(given.commands).read_text(encoding="utf-8").splitlines()
    model = load_model(__file__, given.checkpoint, given.device)
    log = read_log(Path(given.checkpoint))
    if not log:
        raise ValueError(f"{given.checkpoint}: its log.jsonl holds no step: nothing to report")
    data, folder = model.config.data, ChipFolder(given.data, model.registry)
    listed = own_dates(model)
    hidden = WithheldDates.read(listed, twin_ms=data.twin_ms) if listed else None
    held_out = set(data.held_out_places)
    places = folder.places()
    unseen = [folder.files[i] for i in folder.where(held_out)[: given.most_places]]
    others = [i for i, place in enumerate(places) if place not in held_out]
    dated = [i for i in others if hidden and places[i] in hidden.places]
    trained_on = [folder.files[i] for i in (dated or others)[: given.most_places]]
    with Progress("report", unit="step") as progress:
        judgement = judge(
            model,
            OnDemand(trained_on, model.read),
            withheld=hidden,
            judged=WithheldDates.read(listed, given.set, twin_ms=data.twin_ms) if listed else None,
            held_out=OnDemand(unseen, model.read),
            period_days=[30, 120, 365],
            trials=given.trials,
            progress=progress.reach,
        )
    chips = OnDemand([*unseen, *trained_on], model.read)
    path = write_report(Path(given.out), model, chips, log, judgement, commands)
    print(f"report: {path}")
    return 0


def _options() -> argparse.ArgumentParser:
    options = parser(__file__, __doc__)
    options.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder of a trained model")
    options.add_argument("--data", required=True, metavar="CHIPS", help="folder of chips")
    options.add_argument("--out", required=True, metavar="FILE", help="the page")
    options.add_argument("--set", metavar="WORD", help="judge only the withheld dates with this word in column `set`")
    options.add_argument("--most-places", type=int, default=24, metavar="N", help="judge the first N of either kind")
    options.add_argument("--trials", type=int, default=10, help="splits of the probes")
    options.add_argument(
        "--commands", metavar="FILE", help="text file of the commands that led here, shown on the page"
    )
    add_device(options)
    return options


if __name__ == "__main__":
    raise SystemExit(run(main))
