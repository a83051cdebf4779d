"""Few labels on unseen places against hand-made features, and whether the gain survives shuffled chips.

    aef prove --checkpoint RUN --data CHIPS --out results/proof

Probes of 10 and of all labels on the embedding of a year, on four of 91 days, on the series decoded from twelve of 30
days, and on every baseline (annual statistics, seasonal composites, harmonics, raw series), each per pixel and over a
3 x 3 window, split by field, on the same pixels. Then once more with frames shuffled in time and with pixels shuffled
across fields as the chips are embedded. Writes PATH.md and PATH.json. Places that the run trained on are refused.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from aef.launcher.command import add_device, as_typed, load_model, parser, require_number, run
from aef.progress import Progress


def main(argv: list[str] | None = None) -> int:
    given = _options().parse_args(argv)

    from aef.data.chips import ChipFolder
    from aef.data.on_demand import OnDemand
    from aef.evaluation.probes import MAX_SHOTS
    from aef.evaluation.proof import prove
    from aef.evaluation.tables import require_results, write_results
    from aef.settings_file import names_of

    try:
        shots = [None if word == "all" else int(word) for word in given.shots]
    except ValueError:
        raise ValueError(f"--shots: expected numbers or `all`, found {' '.join(given.shots)}") from None
    for count in shots:
        if count is not None:
            require_number("--shots", count, 1, MAX_SHOTS)
    require_number("--trials", given.trials, 1)
    require_number("--most-places", given.most_places, 0)
    require_number("--seed", given.seed, 0)
    if given.out:
        require_results(Path(given.out), "--out")
    model = load_model(__file__, given.checkpoint, given.device)
    folder = ChipFolder(given.data, model.registry)
    only = folder.require(names_of(given.only, "--only"), "--only: holds no")
    held_out = set(only or model.config.data.held_out_places) & set(folder.places())
    wanted = [place for place in dict.fromkeys(folder.places()) if not held_out or place in held_out]
    first = set(wanted[: given.most_places or None])
    chips = OnDemand([path for path, place in zip(folder.files, folder.places()) if place in first], model.read)
    with Progress("prove", unit="step") as progress:
        proofs = prove(
            model,
            chips,
            given.label,
            shots=shots,
            trials=given.trials,
            seed=given.seed,
            shuffles=not given.no_shuffles,
            progress=progress.reach,
        )
    command = as_typed(__file__, argv)
    text = "\n\n".join([f"Model {model.version}.\n\n```\n{command}\n```", *(proof.markdown() for proof in proofs)])
    print(text)
    if given.out:
        figures = {proof.label: proof.figures() for proof in proofs}
        write_results(Path(given.out), text, {"command": command, "model": model.version, "labels": figures})
    return 0


def _options() -> argparse.ArgumentParser:
    options = parser(__file__, __doc__)
    options.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder of a trained model")
    options.add_argument("--data", required=True, metavar="CHIPS", help="folder of chips with labels")
    options.add_argument("--out", metavar="PATH", help="write PATH.md and PATH.json")
    options.add_argument(
        "--only",
        nargs="*",
        default=[],
        metavar="PLACE",
        help="only these, @FILE: one a line of a file; default: the held-out ones, else all of the folder",
    )
    options.add_argument("--most-places", type=int, default=0, metavar="N", help="the first N of them; 0: all")
    options.add_argument(
        "--label", "--labels", action="extend", nargs="+", default=[], metavar="LABEL",
        help="labels of the chips; default: every one",
    )  # fmt: skip
    options.add_argument(
        "--shots", nargs="+", default=["10", "all"], metavar="N", help="labelled pixels per class, up to 300"
    )
    options.add_argument("--trials", type=int, default=10, help="splits of the fields")
    options.add_argument("--seed", type=int, default=0, help="of splits, drawn pixels and shuffles")
    options.add_argument("--no-shuffles", action="store_true", help="judge intact chips only, in a third of the time")
    add_device(options)
    return options


if __name__ == "__main__":
    raise SystemExit(run(main))
