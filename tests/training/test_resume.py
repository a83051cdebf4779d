"""What a run remembers when it goes on, and what it refuses then."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest
import torch

import aef
from aef.config import ConfigError
from aef.data.withheld import WithheldError
from aef.run import WEIGHTS, Run, RunError, read_weights
from aef.training import Trainer
from aef.training.checkpoint import CheckpointError, Checkpoints, fingerprint
from aef.training.log import read_events, read_log
from aef.training.new_run import create_run
from aef.training.open_run import open_run


def withheld_by(trainer):
    return trainer.loader.steps.chips.sampler.withheld.dates()


def test_a_run_keeps_the_dates_that_it_withholds_whatever_becomes_of_the_list(
    chips, tmp_path, configure, listed, monkeypatch, capsys, train
):
    config, run = configure({"withheld": "dates.csv"}, validate_set="tune"), tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    given = listed.read_text()
    first = withheld_by(train(config, chips, run, steps=1))
    assert (run / "withheld.csv").read_text() == given
    listed.write_text(given.replace("place1,2018-04-01", "place2,2019-01-01"))
    again = train(config, chips, run, resume="auto", steps=2)
    assert withheld_by(again) == first
    assert f"dates.csv is not what it was when the run began: the run keeps its copy, {run / 'withheld.csv'}" in (
        capsys.readouterr().err
    )
    assert again.observer.validation.dates[0].dates() == first and len(again.observer.validation.dates[1]) == 1
    listed.unlink()
    monkeypatch.chdir("/")
    assert withheld_by(train(config, chips, run, resume="auto")) == first
    # Who judges the run asks its settings, which name the copy; the file keeps what the user typed.
    assert aef.load(run).config.data.withheld == str(run / "withheld.csv")
    assert "withheld: dates.csv" in (run / "config.yaml").read_text()


def test_a_run_may_be_resumed_with_its_list_under_another_name_but_not_with_another_list(
    chips, tmp_path, configure, listed, train
):
    run, other = tmp_path / "run", tmp_path / "other.csv"
    train(configure({"withheld": str(listed)}), chips, run, steps=1)
    other.write_text(listed.read_text() + "place3,2018-05-01,report\n")
    for given in (str(other), None):
        with pytest.raises(ConfigError, match=r"a resumed run keeps its settings, but data\.withheld"):
            train(configure({"withheld": given}), chips, run, resume="auto")
    listed.rename(other)
    train(configure({"withheld": str(other)}), chips, run, resume="auto")


def test_a_run_from_before_lists_were_kept_takes_its_copy_when_it_is_resumed(chips, tmp_path, configure, listed, train):
    config, run = configure({"withheld": str(listed)}), tmp_path / "run"
    train(config, chips, run, steps=1)
    (run / "withheld.csv").unlink()
    assert Run.read(run).config.data == config.data
    train(config, chips, run, resume="auto")
    assert (run / "withheld.csv").read_text() == listed.read_text()


def test_a_set_that_the_list_lacks_is_refused_when_a_run_is_resumed(chips, tmp_path, configure, listed, train):
    run, data = tmp_path / "run", {"withheld": str(listed)}
    train(configure(data, validate_set="tune"), chips, run, steps=1)
    with pytest.raises(WithheldError, match="no row has 'tuna'"):
        Trainer(configure(data, validate_set="tuna"), chips, run, resume="auto", quiet=True)


def test_a_run_is_not_resumed_on_other_chips(chips, tmp_path, configure, train):
    run = tmp_path / "run"
    train(configure(), chips, run, steps=1)
    log = (run / "log.jsonl").read_text()
    shutil.copy(chips / "place0.npz", chips / "place5.npz")
    with pytest.raises(
        CheckpointError, match=r"the run trains on 5 chips, .*/chips holds 6 of other names: give it its"
    ):
        train(configure(), chips, run, resume="auto")
    (chips / "place1.npz").unlink()
    with pytest.raises(CheckpointError, match=r"the run trains on 5 chips, .*/chips holds 5 of other names"):
        train(configure(), chips, run, resume="auto")
    assert (run / "log.jsonl").read_text() == log
    (chips / "place5.npz").rename(chips / "place1.npz")
    train(configure(), chips.rename(tmp_path / "moved"), run, resume="auto")


def test_a_run_is_not_resumed_where_filler_would_be_too_much_of_the_smaller_micro_batches(chips, tmp_path, configure):
    config, run = configure({"frame_bucket": 5}, global_batch=8, micro_batch=8), tmp_path / "run"
    fewer = dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch=4))
    create_run(config, chips, run, print)
    before = (run / "config.yaml").read_bytes()

    def resume(config, ranks):
        world = SimpleNamespace(size=ranks, device=torch.device("cpu"), on_first=lambda action, what, say: action())
        return open_run(config, chips, run, "auto", None, world, print)

    words = r"data\.frame_bucket: 4 filler frames beside .* a larger train\.micro_batch"
    for refused, ranks in ((config, 2), (fewer, 1)):
        with pytest.raises(ConfigError, match=words):
            resume(refused, ranks)
    assert (run / "config.yaml").read_bytes() == before
    opened = resume(config, 1)
    assert opened.position.step == 0
    opened.release()


def test_a_run_whose_checkpoints_are_from_an_earlier_version_goes_on(chips, tmp_path, configure, train):
    run = tmp_path / "run"
    train(configure(), chips, run, steps=1)
    (checkpoint,) = Checkpoints(run, keep=2).all()
    entries = json.loads((checkpoint / "state.json").read_text())
    assert entries.pop("chips")["count"] == 5
    (checkpoint / "state.json").write_text(json.dumps(entries))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["state.json"] = fingerprint(checkpoint / "state.json")
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert train(configure(), chips, run, resume="auto").position.step == 2


def test_a_trained_run_without_checkpoints_is_not_started_again(chips, tmp_path, configure, train):
    run = tmp_path / "run"
    train(configure(), chips, run)
    shutil.rmtree(run / "checkpoints")
    before = {name: (run / name).read_bytes() for name in ("log.jsonl", "model.safetensors")}
    words = rf"checkpoints/ is empty, .* up to step 2: it cannot go on; .* --init-from {run / 'model.safetensors'}"
    with pytest.raises(RunError, match=words):
        train(configure(), chips, run, resume="auto")
    assert {name: (run / name).read_bytes() for name in before} == before
    (run / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"start a new one with another --out$"):
        train(configure(), chips, run, resume="auto")


def test_a_run_that_goes_back_to_an_earlier_checkpoint_stays_on_its_new_course(chips, tmp_path, configure, train):
    run = tmp_path / "run"
    kept = {"steps": 6, "keep_checkpoints": 1, "keep_every": 2}
    train(configure(**kept, checkpoint_every=2), chips, run)
    again = configure(**kept)
    train(again, chips, run, resume=str(run / "checkpoints" / "step-00000002"), steps=3)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step-00000002",
        "step-00000003",
        "step-00000004.set-aside",
        "step-00000006.set-aside",
    ]
    assert read_weights(run / WEIGHTS).step == 3
    train(again, chips, run, resume="auto", steps=4)
    assert [record["step"] for record in read_log(run)] == [1, 2, 3, 4]
    assert [event["step"] for event in read_events(run) if event["event"] == "resumed"] == [2, 3]


def test_a_run_that_goes_on_has_the_weights_of_its_checkpoint(chips, tmp_path, configure, train):
    # They are published after the checkpoint: a crash in between, or a full disk, leaves those of the one before.
    run = tmp_path / "run"
    train(configure(), chips, run)
    (run / WEIGHTS).unlink()
    shutil.copyfile(run / "checkpoints" / "step-00000001" / WEIGHTS, run / WEIGHTS)
    for _ in range(2):
        train(configure(), chips, run, resume="auto")
        assert read_weights(run / WEIGHTS).step == 2 and not list(run.glob("*.tmp"))


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(chips, tmp_path, configure, train):
    run, config = tmp_path / "run", configure(checkpoint_every=100)
    train(config, chips, run, steps=1)
    assert train(config, chips, run, resume="auto").position.step == 2
