"""The whole path in minutes: synthesise chips (or take yours), train `small`, write a report with pictures.

    aef demo --out demo                  # a synthetic Earth
    aef demo --out demo --data CHIPS     # your chips

It only strings other commands together and prints each of them. Some places are held out to judge few-shot probes; every
fifth clear date of the first input source is withheld to judge reconstructions.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from pathlib import Path

from aef.launcher.command import parser, run

STEPS = 400
"""Sized to about 150 s of training on two idle cores."""


def main(argv: list[str] | None = None) -> int:
    given = _options().parse_args(argv)

    out = Path(given.out)
    chips = Path(given.data) if given.data else out / "chips"
    out.mkdir(parents=True, exist_ok=True)
    session = _Session(out / "commands.txt")
    learning = []
    if not given.data:
        session.call("synthesize", "--out", chips, "--places", given.places, "--seed", given.seed, "--overwrite")
        # Its chips carry captions: the model learns words too, by a text tower that needs no download.
        session.call("text", "--encode", chips, "--tower", "tiny")
        # A caption holds for the year. Over drawn periods a text and its place know each other by the period they
        # share; texts of one crop over one period differ by their words alone (docs/results/text.md).
        learning += ["data.text_period=support", "data.texts_per_sample=4", "objective.text_weight=0.01"]
        # A crop must be large enough to hold several captions; the rest keeps a step of such crops as short.
        learning += ["data.chip_px=16", "train.global_batch=6", "train.micro_batch=6", "data.crops_per_chip=1"]
        learning += ["data.frame_budget=0.4", "data.budget_spread=0.5", "model.decoder_width=128"]
        learning += ["train.weight_decay=0.01"]
    held_out, dates = _hold_out(chips, out / "withheld.csv", given.unseen)
    settings = [] if any(s.startswith("train.steps=") for s in given.settings) else [f"train.steps={STEPS}"]
    if held_out:
        # Quoted, as a place may be called 001.
        settings.append(f"data.held_out_places={json.dumps(held_out, ensure_ascii=False)}")
    if dates:
        settings.append(f"data.withheld={out / 'withheld.csv'}")
    settings += [*learning, f"train.seed={given.seed}", *given.settings]
    session.call("train", "--config", "small", "--data", chips, "--out", out / "run", "--resume", "auto", *settings)
    session.call(
        "report", "--checkpoint", out / "run", "--data", chips, "--out", out / "report.html",
        "--commands", session.path,
    )  # fmt: skip
    print(f"open {out / 'report.html'} in a browser")
    if not given.data:
        aef = "aef" if shutil.which("aef") else sys.argv[0]  # `make demo` runs it in an environment that is not active
        # Land covers are found by their word after so few steps, single crops are not (docs/results/text.md).
        print(f'try: {aef} search --checkpoint {out / "run"} --data {chips} --text "water" --out {out / "search"}')
    return 0


def _options() -> argparse.ArgumentParser:
    options = parser(__file__, __doc__)
    options.add_argument("settings", nargs="*", metavar="key=value", help="training settings over `small`")
    options.add_argument("--out", default="demo", metavar="DIR", help="folder for chips, run and report")
    options.add_argument("--data", metavar="CHIPS", help="folder of chips; default: a synthetic Earth")
    options.add_argument("--places", type=int, default=48, metavar="N", help="places of the synthetic Earth")
    options.add_argument(
        "--unseen", type=int, default=12, metavar="N", help="places that training does not read, at most a third"
    )
    options.add_argument("--seed", type=int, default=0, help="of the synthetic Earth and the training")
    return options


class _Session:
    """Calls commands, says them as a user would type them, and keeps them for the report."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_text("", encoding="utf-8")

    def call(self, name: str, *arguments: object) -> None:
        from importlib import import_module

        words = [str(argument) for argument in arguments]
        line = shlex.join(["aef", name, *words])
        print(f"$ {line}", flush=True)
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        code = import_module(f"aef.launcher.{name}").main(words)
        if code:
            raise SystemExit(code)


def _hold_out(chips: Path, path: Path, most: int) -> tuple[list[str], int]:
    """The last third of the places, at most `most`; and a list of withheld dates at the others."""
    from aef.data.chips import ChipFolder
    from aef.evaluation.reconstruction import choose_dates, write_dates
    from aef.settings_file import registry_of

    folder = ChipFolder(chips, registry_of(chips))
    places = list(dict.fromkeys(place for place in folder.places() if place))
    held_out = places[len(places) - min(most, len(places) // 3) :] if len(places) >= 3 else []
    kept = [index for index, place in enumerate(folder.places()) if place not in held_out]
    dates = choose_dates((folder.read(index) for index in kept[:4]), folder.registry)
    return held_out, write_dates(path, dates)


if __name__ == "__main__":
    raise SystemExit(run(main))
