"""The whole path by its commands: chips, training, report, then fields and tables from the run."""

import json

import numpy as np
import pytest

from aef.launcher import demo, embed, evaluate
from aef.launcher.command import run
from aef.mapping.files import read_field
from aef.settings_file import load_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A demo of two steps, on chips of 48 px: its pictures and tables take most of its time."""
    path, call = tmp_path_factory.mktemp("demo"), demo._Session.call

    def of_small_chips(session, name, *words):
        call(session, name, *words, *(("--chip-px", "48") if name == "synthesize" else ()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo._Session, "call", of_small_chips)
        assert run(demo.main, ["--out", str(path), "--places", "3", "--unseen", "1", "train.steps=2"]) == 0
    return path


def test_the_demo_leaves_chips_a_run_and_one_page(folder):
    assert len(list((folder / "chips").glob("*.npz"))) == 3
    page = (folder / "report.html").read_text()
    assert "a synthetic Earth (rendered, not observed)" in page and page.count("data:image/png;base64,") >= 4
    assert "aef synthesize" in page and "aef train --config small" in page
    assert "data.text_period=support data.texts_per_sample=4" in (folder / "commands.txt").read_text()
    assert json.loads((folder / "run" / "text_tower.json").read_text())["name"] == "tiny"
    assert (folder / "withheld.csv").read_text().startswith("place,source,time_utc\n")


def test_places_may_be_called_by_numbers(tmp_path, monkeypatch):
    calls = {}
    monkeypatch.setattr(demo, "_hold_out", lambda *_: (["001", "no", "a, b", "é"], 0))
    monkeypatch.setattr(demo._Session, "call", lambda self, name, *words: calls.update({name: words}))
    assert run(demo.main, ["--out", str(tmp_path / "demo"), "--data", str(tmp_path)]) == 0
    (setting,) = (word for word in calls["train"] if str(word).startswith("data.held_out_places="))
    assert load_config("small", [setting]).data.held_out_places == ("001", "no", "a, b", "é")


@pytest.mark.long
def test_a_second_demo_goes_on_instead_of_starting_again(folder, capsys):
    before = (folder / "run" / "log.jsonl").read_text()
    assert run(demo.main, ["--out", str(folder), "--places", "3", "--unseen", "1", "train.steps=2"]) == 0
    assert (folder / "run" / "log.jsonl").read_text() == before


def test_a_folder_of_chips_becomes_a_folder_of_fields(folder, tmp_path, capsys):
    chips, out = folder / "chips", tmp_path / "fields"
    options = ["--checkpoint", str(folder / "run"), "--data", str(next(chips.glob("*.npz"))), "--out", str(out)]
    options += ["--period", "2019-01-01/2019-07-01", "--period", "2019-07-01/2020-01-01"]
    if run(embed.main, [*options, "--dry-run"]) != 0:
        pytest.fail("a dry run failed")
    assert not out.exists()
    assert run(embed.main, options) == 0
    fields = sorted(out.glob("*.tif"))
    assert len(fields) == 2 and len(list(out.glob("*.png"))) == 2
    one = read_field(fields[0])
    assert one.shape[0] == 64 and np.allclose(np.linalg.norm(one.values, axis=0), 1, atol=0.02)
    assert one.attrs["period"] == "2019-01-01/2019-07-01"
    assert run(embed.main, options) == 0 and "0 fields written" in capsys.readouterr().out


@pytest.mark.long
def test_tables_of_a_run_are_printed_and_kept(folder, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    options = ["--checkpoint", str(folder / "run"), "--data", str(folder / "chips"), "--out", str(figures)]
    assert run(evaluate.main, [*options, "--period-days", "120", "--trials", "2"]) == 0
    assert "linear interpolation" in capsys.readouterr().out
    assert "model, 120 d" in json.loads(figures.read_text())["withheld"]["sentinel2"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--checkpoint", "nowhere", "--data", "x", "--out", "y", "--period", "2019-01-01/2020-01-01"], "no such run"),
        (["--checkpoint", "nowhere", "--data", "x", "--out", "y", "--period", "2020-01-01/2019-01-01"], "end after"),
    ],
)
def test_bad_input_is_one_line_and_a_failure(options, reason, capsys):
    assert run(embed.main, options) == 1
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
