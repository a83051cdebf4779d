"""`aef prove`, `aef gaps`, `aef leave-out`: tables by one command, and what they refuse."""

import dataclasses
import json
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import yaml

import aef
from aef.data.chips import read_chip, write_chip
from aef.data.contract import ARRAYS
from aef.data.withheld import WithheldDates
from aef.evaluation.reconstruction import choose_dates, write_dates
from aef.launcher import evaluate, gaps, leave_out, prove, report, synthesize, train, withhold
from aef.launcher.command import as_typed, run
from aef.sources import BUILT_IN
from aef.timecode import DAY_MS

CHIP = "synthetic_0_00000.npz"
SETTINGS = ["train.steps=2", "train.figure_every=0", "train.global_batch=2", "train.micro_batch=2"]


def call(command, *arguments):
    return run(command.main, list(map(str, arguments)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Chips of three places, and a `tiny` run that never saw the last one."""
    path = tmp_path_factory.mktemp("judging")
    sources = ["--sources", "sentinel2", "sentinel1"]
    assert call(synthesize, "--out", path / "chips", "--places", 3, "--chip-px", 48, *sources) == 0
    held_out = "data.held_out_places=[synthetic_0_00002]"
    options = ["--config", "tiny", "--data", path / "chips", "--out", path / "run", "--quiet"]
    assert call(train, *options, *SETTINGS, held_out) == 0
    return path


def figures_of(stem: Path):
    text, content = stem.with_suffix(".md").read_text(), json.loads(stem.with_suffix(".json").read_text())
    assert content["command"] in text
    return text, content


def test_a_proof_is_one_command(folder, tmp_path, capsys):
    options = ["--checkpoint", folder / "run", "--data", folder / "chips", "--label", "land_cover"]
    options += ["--shots", 3, "--trials", 2]
    assert call(prove, *options, "--out", tmp_path / "proof") == 0
    text, content = figures_of(tmp_path / "proof")
    numbers = content["labels"]["land_cover"]["shots"]["3-shot"]
    assert content["labels"]["land_cover"]["places"] == 1  # the held-out place, not the folder
    assert set(numbers["balanced_accuracy"]["frames shuffled in time"]) == set(
        numbers["balanced_accuracy"]["as observed"]
    )
    assert {"embedding", "embedding, 4 of 91 d", "embedding, 12 of 30 d, decoded"} <= set(numbers["gains"])
    assert all(f"{gain['difference']:+.3f}" in text for gain in numbers["gains"].values())
    assert text.rstrip() in capsys.readouterr().out
    assert call(prove, *options, "--only", "synthetic_0_00000") == 1
    assert "1 places were training places of the run (synthetic_0_00000)" in capsys.readouterr().err
    assert call(prove, *options, "--only", "atlantis") == 1 and "holds no atlantis" in capsys.readouterr().err
    (tmp_path / "places.txt").write_text("synthetic_0_00002\natlantis\n")
    assert call(prove, *options, "--only", f"@{tmp_path / 'places.txt'}") == 1
    assert "--only: holds no atlantis: known are" in capsys.readouterr().err
    assert call(prove, *options[:4], "--shots", "many") == 1 and "numbers or `all`" in capsys.readouterr().err
    assert call(prove, *options[:4], "--shots", 0) == 1 and "--shots: expected 1 to 300" in capsys.readouterr().err


def test_the_first_places_come_with_all_of_their_chips(folder, tmp_path, monkeypatch):
    chip = read_chip(folder / "chips" / "synthetic_0_00002.npz", BUILT_IN)
    for number, place in enumerate(["p", "p", "q"]):
        write_chip(tmp_path / f"{number}.npz", dataclasses.replace(chip, id=str(number), place=place), BUILT_IN)
    asked = []
    monkeypatch.setattr("aef.evaluation.proof.prove", lambda model, chips, *more, **settings: asked.extend(chips) or [])
    assert call(prove, "--checkpoint", folder / "run", "--data", tmp_path, "--most-places", 1) == 0
    assert [chip.id for chip in asked] == ["0", "1"]


@pytest.fixture
def several(folder, tmp_path):
    """Four chips of places that the run never saw, two of each."""
    chip = read_chip(folder / "chips" / "synthetic_0_00002.npz", BUILT_IN)
    for number, place in enumerate("ppqq"):
        path = tmp_path / "several" / f"{number}.npz"
        path.parent.mkdir(exist_ok=True)
        write_chip(path, dataclasses.replace(chip, id=str(number), place=place), BUILT_IN)
    return tmp_path / "several"


class Walk:
    """Stands for what judges chips, and counts how many of them are in memory at once as it goes through them."""

    def __init__(self):
        self.seen, self.most = 0, 0

    def __call__(self, model, chips, *more, **settings):
        return self.count(chips)

    def __iter__(self):  # as a list of proofs that is empty
        return iter(())

    def markdown(self):
        return ""

    def figures(self):
        return {}

    def count(self, chips):
        alive = []
        for chip in chips:
            alive.append(weakref.ref(chip))
            self.most = max(self.most, sum(one() is not None for one in alive))
        self.seen += len(alive)
        return self


@pytest.mark.parametrize(
    ("command", "judge"), [(evaluate, "judgement.judge"), (report, "judgement.judge"), (prove, "proof.prove")]
)
def test_commands_hold_one_chip_however_many_there_are(command, judge, folder, several, tmp_path, monkeypatch):
    walk, written = Walk(), Walk()
    if command is evaluate:
        monkeypatch.setattr("aef.evaluation.judgement.chips_to_judge", lambda *asked: ([0, 1, 2, 3], []))
    monkeypatch.setattr(f"aef.evaluation.{judge}", walk)
    monkeypatch.setattr("aef.evaluation.report.write_report", lambda path, model, chips, *more: written.count(chips))
    options = ["--checkpoint", folder / "run", "--data", several, "--out", tmp_path / "out"]
    assert call(command, *options) == 0
    assert (walk.seen, walk.most) == (4, 1) and (command is not report or (written.seen, written.most) == (4, 1))


def test_leaving_out_holds_one_chip_of_a_place(folder, several, tmp_path, monkeypatch):
    feasible, judged = Walk(), Walk()
    # First, as this imports the module: it must not be one that keeps the other's stand-in.
    monkeypatch.setattr("aef.evaluation.leave_place_out.judge_place", judged)
    monkeypatch.setattr("aef.evaluation.labels.labelled_pixels", lambda chips, *more, **asked: feasible.count(chips))
    monkeypatch.setattr(leave_out, "_train", lambda *given: True)
    monkeypatch.setattr(leave_out, "load_model", lambda module, path, device: aef.load(folder / "run"))
    for path in several.iterdir():
        write_chip(
            path, dataclasses.replace(read_chip(path, BUILT_IN), place="q" if path.stem == "3" else "p"), BUILT_IN
        )
    options = ["--data", several, "--out", tmp_path / "out", "--only", "p", "--label", "crop"]
    assert call(leave_out, *options) == 0
    assert (feasible.seen, feasible.most) == (judged.seen, judged.most) == (3, 1)


def test_an_evaluation_says_what_it_did_not_judge_and_refuses_what_was_seen(folder, tmp_path, capsys):
    options = ["--checkpoint", folder / "run", "--data", folder / "chips", "--trials", 1]
    assert call(evaluate, *options, "--out", tmp_path / "new" / "figures.json") == 0
    text, progress = capsys.readouterr()
    assert "evaluate run, health: 3/3 steps" in progress  # a place embedded with all, and without either source
    assert "crop: 10-shot" in text and "- withheld dates, because the run withheld none (data.withheld)" in text
    assert json.loads((tmp_path / "new" / "figures.json").read_text())["not_judged"]
    dates = tmp_path / "dates.csv"
    rows = choose_dates([read_chip(folder / "chips" / "synthetic_0_00000.npz", BUILT_IN)], BUILT_IN)
    write_dates(dates, rows)
    (tmp_path / "elsewhere.csv").write_text("place,time_utc\natlantis,2019-06-01\n")
    (tmp_path / "places.txt").write_text("lemuria\n")
    for given, words in {
        ("--withheld", dates): f"{len(rows)} frames of the list were free for the run to train on",
        ("--withheld", tmp_path / "elsewhere.csv"): "names no place of",
        ("--withheld", tmp_path / "none.csv"): "--withheld " + str(tmp_path / "none.csv") + ": no such file",
        ("--only", "synthetic_0_00000"): "1 places were training places of the run",
        ("--only", "atlantis"): "--only: holds no atlantis: known are synthetic_0_00000",
        ("--only", f"@{tmp_path / 'places.txt'}"): "--only: holds no lemuria: known are synthetic_0_00000",
        ("--set", "report"): "withheld no dates",
        ("--trials", 0): "--trials: expected 1 or more, found 0",
        ("--shots", 100000): "--shots: expected 1 to 300",
        ("--health-places", 0): "--health-places: expected 1 or more",
        ("--period-days", "abc"): "--period-days: expected days above 0",
        ("--periods", "8,0"): "found '8,0'",
        ("--out", dates / "figures.json"): "cannot be written",
    }.items():
        assert call(evaluate, *options, *given) == 1
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error


@pytest.mark.parametrize("command", [gaps, prove, report])
def test_a_table_that_cannot_be_written_is_refused_before_the_work(command, folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    options = ["--checkpoint", tmp_path / "absent"] + ["--data", folder / "chips"] * (command is not gaps)
    assert call(command, *options, "--out", tmp_path / "file" / "table") == 1
    assert "a file stands where its folder should be" in capsys.readouterr().err  # not: there is no such run


@pytest.mark.parametrize(
    ("command", "given", "words"),
    [
        (report, ["--most-places", 0], "--most-places: expected 1 or more, found 0"),
        (report, ["--trials", 0], "--trials: expected 1 or more, found 0"),
        (report, ["--commands", "none.txt"], "--commands none.txt: no such file"),
        (prove, ["--seed", -1], "--seed: expected 0 or more, found -1"),
        (leave_out, ["--trials", 0], "--trials: expected 1 or more, found 0"),
        (leave_out, ["--seed", -1], "--seed: expected 0 or more, found -1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_before_the_work(command, given, words, folder, tmp_path, capsys):
    options = ["--data", folder / "chips", "--out", tmp_path / "out"]
    options += ["--checkpoint", folder / "run"] * (command is not leave_out)
    assert call(command, *options, *given) == 1
    assert words in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_proof_without_shots_is_refused():
    with pytest.raises(SystemExit):
        prove.main(["--checkpoint", "run", "--data", "chips", "--shots"])


def test_a_report_of_places_that_the_list_of_dates_does_not_name_is_written(folder, tmp_path, monkeypatch):
    """Chips of another area have no withheld date, and none of them need be held out."""
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "dates.csv").write_text("place,time_utc\natlantis,2019-06-01\n")
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    settings["data"] |= {"held_out_places": [], "withheld": str(tmp_path / "dates.csv")}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    asked = []
    monkeypatch.setattr("aef.evaluation.judgement.judge", lambda model, chips, **settings: asked.extend(chips))
    monkeypatch.setattr("aef.evaluation.report.write_report", lambda path, *more: path)
    options = ["--checkpoint", tmp_path / "run", "--data", folder / "chips", "--out", tmp_path / "new" / "report.html"]
    assert call(report, *options, "--most-places", 1) == 0
    assert [chip.place for chip in asked] == ["synthetic_0_00000"]


def test_gaps_are_one_command(folder, tmp_path, capsys):
    options = ["--checkpoint", folder / "run", "--places", 2, "--chip-px", 16]
    assert call(gaps, *options, "--out", tmp_path / "gaps") == 0
    text, content = figures_of(tmp_path / "gaps")
    assert content["l1"]["inside the 90-day gap"]["model"] > 0 and "persistence" in text
    assert call(gaps, *options, "--seed", 0) == 1
    assert "were training places" in capsys.readouterr().err


def test_a_place_is_left_out_and_judged_by_a_run_that_never_saw_it(folder, tmp_path, capsys):
    out, place = tmp_path / "places", "synthetic_0_00001"
    options = [
        "--data",
        folder / "chips",
        "--out",
        out,
        "--config",
        "tiny",
        "--steps",
        2,
        "--trials",
        1,
        "--least-fields",
        2,
    ]
    options += ["--only", place, "--label", "land_cover", "--label", "crop=99,98", *SETTINGS[1:]]
    assert call(leave_out, *options) == 0
    text, content = figures_of(out / "table")
    (result,) = content["results"]
    assert (result["place"], result["model"]) == (place, "tiny@2") and min(result["fields"].values()) >= 2
    scores = result["shots"]["10-shot"]["balanced_accuracy"]
    assert {"embedding", "embedding, 4 of 91 d", "harmonic", "harmonic, 3×3"} <= set(scores)
    assert f"{scores['embedding, 4 of 91 d']:.3f}" in text
    assert content["not_judged"] == [f"{place}: label 'crop': fewer than two classes have 2 fields each"]
    assert json.loads((out / place / "stats.json").read_text())["places"] == ["synthetic_0_00000", "synthetic_0_00002"]
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/model.safetensors")}
    assert call(leave_out, *options) == 0  # a finished place is not trained again
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*/model.safetensors")}
    assert figures_of(out / "table")[1]["results"] == content["results"]


def test_a_place_whose_labels_cannot_be_judged_is_not_trained(folder, tmp_path, capsys):
    options = ["--data", folder / "chips", "--out", tmp_path / "out", "--label", "crop=99,98"]
    assert call(leave_out, *options, "--only", "synthetic_0_00000") == 0
    text, content = figures_of(tmp_path / "out" / "table")
    assert content["results"] == [] and "'crop': fewer than two classes have 3 fields each" in text
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--label", "crop=a,b"], "expected LABEL or LABEL=CODE,CODE"),
        (["--label", "soil"], "no chosen place carries the label soil"),
        (["--only", "atlantis"], "holds no atlantis"),
        (["--least-fields", "1"], "expected at least 2"),
    ],
)
def test_what_cannot_be_left_out_is_refused_before_training(folder, tmp_path, capsys, arguments, words):
    assert call(leave_out, "--data", folder / "chips", "--out", tmp_path / "out", *arguments) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_three_minute_run_repeated_from_its_command_gives_the_same_figures(tmp_path):
    """docs/evaluation.md, "The same figures again": every reported metric to 1e-3."""
    chips = tmp_path / "chips"
    assert call(synthesize, "--out", chips, "--places", 16, "--chip-px", 32) == 0
    reported = []
    for name in ("first", "again"):
        out = tmp_path / name
        settings = ["train.steps=500", "train.seed=3", "data.held_out_places=[synthetic_0_00014,synthetic_0_00015]"]
        again_from_its_command("train", "--config", "small", "--data", chips, "--out", out, "--quiet", *settings)
        again_from_its_command(
            "evaluate", "--checkpoint", out, "--data", chips, "--trials", 5, "--out", out / "figures.json"
        )
        last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
        terms = {key: last[key] for key in ("loss", "reconstruction", "uniformity", "consistency", "per_source")}
        reported.append(dict(numbers({**json.loads((out / "figures.json").read_text()), "log": terms})))
    first, again = reported
    assert first.keys() == again.keys() and len(first) > 20
    apart = {name: (first[name], again[name]) for name in first if abs(first[name] - again[name]) > 1e-3}
    assert not apart


def again_from_its_command(*words):
    """In a process of its own: in one process sums of the second run round otherwise, as its arrays lie elsewhere in memory."""
    subprocess.run([sys.executable, "-m", "aef", *map(str, words)], check=True, timeout=1500, capture_output=True)


def numbers(entries, before=""):
    for name, value in entries.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{before}{name}/")
        elif isinstance(value, int | float):
            yield before + name, value


def test_dates_are_chosen_at_the_places_that_are_trained_on(folder, tmp_path, capsys):
    options = ["--data", folder / "chips", "--out", tmp_path / "dates.csv"]
    assert call(withhold, *options, "--held-out", "synthetic_0_00002", "--most-places", 5) == 0
    said = capsys.readouterr().out
    assert " frames of 2 places: " in said and " (sentinel2 " in said and "sentinel1" not in said
    radar = ["--data", folder / "chips", "--out", tmp_path / "radar.csv", "--source", "sentinel1"]
    assert call(withhold, *radar) == 0 and " (sentinel1 " in capsys.readouterr().out
    assert WithheldDates.read(tmp_path / "radar.csv").sources == {"sentinel1"}
    dates = WithheldDates.read(tmp_path / "dates.csv")
    assert dates.places == {"synthetic_0_00000", "synthetic_0_00001"}
    (listed,) = (times for (place, _), times in dates.dates().items() if place == "synthetic_0_00000")
    chip = read_chip(folder / "chips" / "synthetic_0_00000.npz", BUILT_IN)
    assert [(chip.place, "sentinel2", time_ms) for time_ms in listed] == choose_dates([chip], BUILT_IN)
    held_out = {"synthetic_0_00002", "synthetic_0_00001"}
    assert call(withhold, *options[:3], tmp_path / "fewer.csv", "--most-places", 1, "--held-out", *held_out) == 0
    assert WithheldDates.read(tmp_path / "fewer.csv").places == {"synthetic_0_00000"}
    for given, words in {
        ("--out", tmp_path / "o.csv", "--source", "glo30"): "--source glo30: expected an input source, found a target",
        ("--out", tmp_path / "o.csv", "--source", "nope"): "unknown source 'nope'",
        ("--every", 1): "--every: expected 2 or more, found 1",
        ("--most-places", 0): "--most-places: expected 1 or more, found 0",
        ("--held-out", "atlantis", "--out", tmp_path / "other.csv"): "cannot hold out atlantis",
        (): "dates.csv: is there already",
    }.items():
        assert call(withhold, *options, *given) == 1
        assert words in capsys.readouterr().err
        assert WithheldDates.read(tmp_path / "dates.csv").dates() == dates.dates()


@pytest.mark.parametrize("command", [evaluate, report])
def test_dates_are_hidden_with_the_twins_that_the_run_hid(command, folder, tmp_path, monkeypatch):
    run_folder = tmp_path / "run"
    shutil.copytree(folder / "run", run_folder)
    write_dates(tmp_path / "dates.csv", choose_dates([read_chip(folder / "chips" / CHIP, BUILT_IN)], BUILT_IN))
    settings = yaml.safe_load((run_folder / "config.yaml").read_text())
    settings["data"] |= {"twin_minutes": 1440.0, "withheld": str(tmp_path / "dates.csv")}
    (run_folder / "config.yaml").write_text(yaml.safe_dump(settings))

    def judge(*arguments, withheld, judged=None, **settings):
        asked.append((withheld.twin_ms, judged and judged.twin_ms))
        raise ValueError("asked")

    asked = []
    monkeypatch.setattr("aef.evaluation.judgement.judge", judge)
    assert call(command, "--checkpoint", run_folder, "--data", folder / "chips", "--out", tmp_path / "out") == 1
    assert asked == [(DAY_MS, DAY_MS)]


def test_chips_of_one_place_do_not_withhold_it_together(folder):
    chip = read_chip(folder / "chips" / "synthetic_0_00000.npz", BUILT_IN)
    series = chip.sources["sentinel2"]
    arrays = {key: array[1:] for key in ARRAYS if (array := getattr(series, key)) is not None}
    later = dataclasses.replace(series, **arrays)
    neighbour = dataclasses.replace(chip, id="neighbour", sources={"sentinel2": later})
    assert choose_dates([chip, neighbour], BUILT_IN) == choose_dates([chip], BUILT_IN)


def test_a_record_holds_the_options_of_a_script_as_well(monkeypatch):
    monkeypatch.setattr("sys.argv", ["launcher/gaps.py", "--checkpoint", "my run"])
    assert as_typed("launcher/gaps.py", None) == "aef gaps --checkpoint 'my run'"
    assert as_typed("launcher/gaps.py", ["--places", "3"]) == "aef gaps --places 3"
