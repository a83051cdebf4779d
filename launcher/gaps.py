"""What a model knows where nothing was observed: inside a 90-day gap, and up to six months beyond the support.

    aef gaps --checkpoint RUN --out results/gaps

Judged on places of a synthetic Earth that the run never saw, rendered here, because only there the truth is known;
against persistence (the last clear observation), linear interpolation and a harmonic fit. Writes PATH.md and PATH.json.
A run that trained on no place of the synthetic Earth is refused: that world is foreign to it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from aef.launcher.command import add_device, as_typed, load_model, parser, run
from aef.progress import Progress


def main(argv: list[str] | None = None) -> int:
    given = _options().parse_args(argv)

    from aef.evaluation.gaps import judge_gaps
    from aef.evaluation.tables import require_results, write_results

    if given.out:
        require_results(Path(given.out), "--out")
    model = load_model(__file__, given.checkpoint, given.device)
    with Progress("gaps", total=given.places, unit="place") as progress:
        result = judge_gaps(
            model,
            given.source,
            places=given.places,
            seed=given.seed,
            chip_px=given.chip_px,
            progress=lambda place: progress.advance(note=place),
        )
    command = as_typed(__file__, argv)
    text = f"Model {model.version}.\n\n```\n{command}\n```\n\n{result.markdown()}"
    print(text)
    if given.out:
        write_results(Path(given.out), text, {"command": command, "model": model.version, **result.figures()})
    return 0


def _options() -> argparse.ArgumentParser:
    options = parser(__file__, __doc__)
    options.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder, trained on synthetic places")
    options.add_argument("--out", metavar="PATH", help="write PATH.md and PATH.json")
    options.add_argument("--source", default="sentinel2", help="optical source that is predicted")
    options.add_argument("--places", type=int, default=12, metavar="N", help="synthetic places")
    options.add_argument("--seed", type=int, default=1, help="of the synthetic Earth; not that of the training places")
    options.add_argument("--chip-px", type=int, default=32, metavar="PX", help="side of a place in pixels of 10 m")
    add_device(options)
    return options


if __name__ == "__main__":
    raise SystemExit(run(main))
