"""Few labels on unseen places against hand-made features, and whether the gain survives shuffled chips.

    aef prove --checkpoint RUN --data CHIPS --out results/proof

Probes of 10 and of all labels on the embedding of a year, on four of 91 days, on the series decoded from twelve of 30
days, and on every baseline (annual statistics, seasonal composites, harmonics, raw series), each per pixel and over a
3 x 3 window, split by field, on the same pixels. Then once more with frames shuffled in time and with pixels shuffled
across fields as the chips are embedded. Writes PATH.md and PATH.json. Places that the run trained on are refused.
"""

from __future__ import annotations

from pathlib import Path

from aef.launcher.command import add_device, as_typed, load_model, parser, require_number, run
from aef.progress import Progress


def main(argv: list[str] | None = None) -> int:
    options = parser(__file__, __doc__)
    options.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder of a trained model")
    options.add_argument("--data", required=True, metavar="CHIPS", help="folder of chips with labels")
    options.add_argument("--out", metavar="PATH", help="write PATH.md and PATH.json")
    options.add_argument(
        "--only", nargs="*", metavar="PLACE", help="only these; default: the held-out ones, else all of the folder"
    )
    options.add_argument("--most-places", type=int, default=0, metavar="N", help="the first N of them; 0: all")
    options.add_argument(
        "--label", "--labels", action="extend", nargs="+", default=[], metavar="LABEL",
        help="labels of the chips; default: every one",
    )  # fmt: skip
    options.add_argument(
        "--shots", nargs="*", default=["10", "all"], metavar="N", help="labelled pixels per class, up to 300"
    )
    options.add_argument("--trials", type=int, default=10, help="splits of the fields")
    options.add_argument("--seed", type=int, default=0, help="of splits, drawn pixels and shuffles")
    options.add_argument("--no-shuffles", action="store_true", help="judge intact chips only, in a third of the time")
    add_device(options)
    arguments = options.parse_args(argv)

    from aef.data.chips import ChipFolder
    from aef.evaluation.probes import MAX_SHOTS
    from aef.evaluation.proof import CONDITIONS, prove
    from aef.evaluation.tables import require_results, write_results

    try:
        shots = [None if word == "all" else int(word) for word in arguments.shots]
    except ValueError:
        raise ValueError(f"--shots: expected numbers or `all`, found {' '.join(arguments.shots)}") from None
    for count in shots:
        if count is not None:
            require_number("--shots", count, 1, MAX_SHOTS)
    require_number("--trials", arguments.trials, 1)
    require_number("--most-places", arguments.most_places, 0)
    if arguments.out:
        require_results(Path(arguments.out), "--out")
    model = load_model(__file__, arguments.checkpoint, arguments.device)
    folder = ChipFolder(arguments.data, model.registry)
    folder.require(arguments.only or (), "--only: holds no")
    held_out = set(arguments.only or model.config.data.held_out_places) & set(folder.places())
    files = [path for path, place in zip(folder.files, folder.places()) if not held_out or place in held_out]
    chips = [model.read(path) for path in files[: arguments.most_places or None]]
    count = len(chips) * (1 if arguments.no_shuffles else len(CONDITIONS))
    with Progress("embed", total=count, unit="chip") as progress:
        proofs = prove(
            model,
            chips,
            arguments.label,
            shots=shots,
            trials=arguments.trials,
            seed=arguments.seed,
            shuffles=not arguments.no_shuffles,
            progress=lambda condition: progress.advance(note=condition),
        )
    command = as_typed(__file__, argv)
    text = "\n\n".join([f"Model {model.version}.\n\n```\n{command}\n```", *(proof.markdown() for proof in proofs)])
    print(text)
    if arguments.out:
        figures = {proof.label: proof.figures() for proof in proofs}
        write_results(Path(arguments.out), text, {"command": command, "model": model.version, "labels": figures})
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
