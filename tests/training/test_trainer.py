"""One run in one process: what it leaves, exact resume, skipped steps, signals, and what it refuses."""

import dataclasses
import errno
import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import aef
from aef.config import ConfigError
from aef.data.chips import ChipError
from aef.run import RunError, input_and_target_names
from aef.settings_file import load_config
from aef.sources import BUILT_IN
from aef.training import Trainer, checkpoint
from aef.training.checkpoint import CheckpointError
from aef.training.loader import Loaded, StepLoader
from aef.training.log import read_log
from aef.training.trainer import TrainingError

FIELDS = [
    *("step", "loss", "reconstruction", "uniformity", "consistency", "text", "per_source", "grad_norm", "lr"),
    *("frames_per_s", "samples_per_s", "data_wait", "mfu", "memory_gb", "skipped"),
]
LEARNT = ("step", "loss", "reconstruction", "uniformity", "consistency", "text", "per_source", "grad_norm", "lr")


def learnt(log):
    """What does not depend on the clock."""
    return [{name: record[name] for name in LEARNT} for record in log]


def events(run, kind):
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def go_on(config, chips, run, **options):
    with Trainer(config, chips, run, resume="auto", quiet=True, **options) as trainer:
        return trainer.fit()


def stop_after(config, chips, run, steps, **options):
    """Train some steps and leave without a word, as a crash would."""
    with Trainer(config, chips, run, quiet=True, **options) as trainer:
        for record in trainer.steps():
            if record["step"] == steps:
                break


def test_a_sample_that_can_no_longer_be_read_costs_the_figure_not_the_run(
    chips, tmp_path, make_config, capsys, monkeypatch
):
    def gone(loader):
        raise ChipError("is damaged", file="a.npz")

    monkeypatch.setattr(StepLoader, "first_batch", gone)
    with Trainer(make_config(), chips, tmp_path / "run") as trainer:
        assert trainer.fit()
    assert "no figure of step 10: a.npz" in capsys.readouterr().err
    assert not (tmp_path / "run" / "figures").exists()


def test_a_figure_that_does_not_fit_into_memory_costs_the_figure_not_the_run(chips, tmp_path, configure, capsys):
    with Trainer(configure(figure_every=1), chips, tmp_path / "run") as trainer:
        forward = trainer.engine.model.forward

        def full_in_eval(batch):
            if not trainer.engine.model.training:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(batch)

        trainer.engine.model.forward = full_in_eval
        assert trainer.fit() and trainer.engine.model.training
    said = capsys.readouterr().err
    assert all(f"no figure of step {step}: OutOfMemoryError: CUDA out of memory" in said for step in (1, 2))


def test_a_run_leaves_everything_that_using_it_needs(chips, tmp_path, make_config):
    run = tmp_path / "run"
    rates = []
    with Trainer(make_config(), chips, run, quiet=True) as trainer:
        update = trainer.engine.step
        trainer.engine.step = lambda lr: rates.append(lr) or update(lr)
        assert trainer.fit()
    log = read_log(run)
    assert [record["lr"] for record in log] == rates
    assert [list(record) for record in log] == [FIELDS] * 10
    assert [record["step"] for record in log] == list(range(1, 11))
    assert log[0]["lr"] == pytest.approx(1e-3) and log[-1]["lr"] == 0
    assert all(record["mfu"] is None and record["text"] is None and 0 <= record["data_wait"] <= 1 for record in log)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000009", "step-00000010"]
    assert (run / "figures" / "step-00000010.png").stat().st_size > 10_000
    model = aef.load(run)
    assert model.version == "tiny@10" and model.inputs == ("sentinel2", "sentinel1", "landsat")
    saved = load_file(run / "model.safetensors")
    assert saved.keys() == model.network.state_dict().keys()


def test_a_run_goes_on_exactly_where_its_checkpoint_was(chips, tmp_path, make_config, uninterrupted):
    run = tmp_path / "run"
    stop_after(make_config(), chips, run, steps=8)
    assert [record["step"] for record in read_log(run)] == list(range(1, 9))
    assert go_on(make_config(), chips, run)
    assert learnt(read_log(run)) == learnt(uninterrupted)
    assert [event["step"] for event in events(run, "resumed")] == [6]


def test_a_damaged_checkpoint_is_passed_over(chips, tmp_path, make_config, uninterrupted):
    run = tmp_path / "run"
    stop_after(make_config(), chips, run, steps=7)
    file = run / "checkpoints" / "step-00000006" / "restart" / "mp_rank_00_model_states.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes(content)
    assert go_on(make_config(), chips, run)
    assert [event["step"] for event in events(run, "resumed")] == [3]
    assert learnt(read_log(run)) == learnt(uninterrupted)


def test_a_signal_ends_the_step_writes_a_checkpoint_and_the_run_goes_on(
    chips, tmp_path, make_config, uninterrupted, capsys
):
    run = tmp_path / "run"
    with Trainer(make_config(), chips, run) as trainer:
        for record in trainer.steps():
            if record["step"] == 4:
                os.kill(os.getpid(), signal.SIGUSR1)
    assert read_log(run)[-1]["step"] == 4 and (run / "checkpoints" / "step-00000004").is_dir()
    assert events(run, "stopped")[0]["signal"] == "SIGUSR1"
    # Also what `aef demo` and `aef leave_out` say, which have no --resume.
    words = "stopped at step 4: a checkpoint is written, go on with the same command (`aef train`: with --resume auto)"
    assert words in capsys.readouterr().err
    assert go_on(make_config(), chips, run)
    assert learnt(read_log(run)) == learnt(uninterrupted)


def poison(trainer, when):
    """Make the frames of some of the coming steps NaN."""
    make, count = trainer.loader.next, 0

    def poisoned():
        nonlocal count
        loaded, count = make(), count + 1
        if when(count):
            for block in loaded.batches[0].frames.values():
                block.values = torch.full_like(block.values, float("nan"))
        return loaded

    trainer.loader.next = poisoned


def test_a_step_that_is_not_finite_is_skipped_counted_and_named(chips, tmp_path, make_config):
    run = tmp_path / "run"
    with Trainer(make_config(), chips, run, quiet=True) as trainer:
        poison(trainer, lambda count: count == 3)
        before = trainer.engine.weights()
        records = []
        for record in trainer.steps():
            records.append(record)
    assert [record["step"] for record in records] == list(range(1, 11))
    assert [record["skipped"] for record in records] == [0, 0, *[1] * 8]
    (event,) = events(run, "skipped")
    assert event["step"] == 3 and event["chips"] and set(event["chips"]) <= {f"place{n}" for n in range(5)}
    assert trainer.position.consumed == 2 * 11
    after = load_file(run / "model.safetensors")
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_too_many_skipped_steps_in_a_row_stop_the_run(chips, tmp_path, make_config):
    with Trainer(make_config(max_skipped=2), chips, tmp_path / "run", quiet=True) as trainer:
        poison(trainer, lambda count: count in (2, 4, 5))
        with pytest.raises(TrainingError, match="2 steps in a row were not finite before step 3"):
            trainer.fit()


def test_a_full_disk_ends_the_run_with_one_line_and_leaves_nothing_half_written(chips, tmp_path, make_config):
    run = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Trainer(make_config(), chips, run, quiet=True) as trainer:
        try:
            for record in trainer.steps():
                if record["step"] == 4:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        except CheckpointError as error:
            message = str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "the checkpoint of step 6 cannot be written" in message and "free some space" in message
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000003"]
    assert go_on(make_config(), chips, run)


@pytest.mark.parametrize("method", ["mkdir", "_sync", "_put_weights"])
def test_a_disk_that_is_full_only_as_a_checkpoint_begins_or_ends_is_one_line_too(
    chips, tmp_path, make_config, monkeypatch, method
):
    run = tmp_path / "run"

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Trainer(make_config(steps=1), chips, run, quiet=True) as trainer:
        monkeypatch.setattr(Path if method == "mkdir" else checkpoint, method, full)
        with pytest.raises(CheckpointError, match=r"the checkpoint of step 0 cannot be written .*free some space"):
            trainer.save_checkpoint()
        monkeypatch.undo()
        assert not list(run.rglob("*.partial")) and not list(run.rglob("*.tmp"))
        trainer.save_checkpoint()


def test_a_chip_truncated_under_the_loader_is_one_line_that_names_it(chips, tmp_path, make_config):
    run = tmp_path / "run"
    config = make_config(steps=40)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, cache_chips=0))
    damaged = pytest.raises(TrainingError, match=r"place\d\.npz: is damaged or not a chip")
    with Trainer(config, chips, run, quiet=True) as trainer, damaged:
        for record in trainer.steps():
            if record["step"] == 4:
                for path in chips.glob("*.npz"):
                    path.write_bytes(path.read_bytes()[:5000])
    # Nothing that was learnt is lost.
    last = read_log(run)[-1]["step"]
    assert last >= 4 and (run / "checkpoints" / f"step-{last:08d}").is_dir()


def skipping(config, **data):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, skip_bad=True, **data))


def test_a_chip_that_is_passed_over_is_named_once_and_ever_after(chips, tmp_path, make_config, capsys):
    run = tmp_path / "run"
    (chips / "place1.npz").write_bytes((chips / "place1.npz").read_bytes()[:5000])
    with Trainer(skipping(make_config(), cache_chips=0), chips, run) as trainer:
        assert trainer.fit()
    (event,) = events(run, "bad_chip")
    assert event["chip"] == "place1.npz" and "place1.npz: is damaged or not a chip" in event["reason"]
    assert capsys.readouterr().err.count("passed over") == 1
    state = json.loads((run / "checkpoints" / "step-00000010" / "state.json").read_text())
    assert state["bad_chips"] == ["place1.npz"]
    with Trainer(skipping(make_config(steps=12)), chips, run, resume="auto", quiet=True) as trainer:
        assert trainer.loader.steps.chips.skipped == ["place1.npz"] and trainer.bad_chips.names == {"place1.npz"}
        assert trainer.fit()
    assert len(events(run, "bad_chip")) == 1


def test_more_bad_chips_than_a_run_may_do_without_end_it_with_one_line(chips, tmp_path, make_config):
    run = tmp_path / "run"
    for name in ("place1", "place3"):
        (chips / f"{name}.npz").write_bytes((chips / f"{name}.npz").read_bytes()[:5000])
    few = pytest.raises(TrainingError, match=r"^2 of 5 training chips are bad, more than data\.max_bad=0\.01 of them")
    with Trainer(skipping(make_config()), chips, run, quiet=True) as trainer, few:
        trainer.fit()
    assert {event["chip"] for event in events(run, "bad_chip")} == {"place1.npz", "place3.npz"}
    assert go_on(skipping(make_config(), max_bad=0.5), chips, run)


def test_a_killed_worker_is_replaced_without_losing_a_sample(chips, tmp_path, make_config, uninterrupted):
    config = make_config()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=1))
    with Trainer(config, chips, tmp_path / "run", quiet=True) as trainer:
        for record in trainer.steps():
            if record["step"] == 2:
                for worker in trainer.loader.processes():
                    os.kill(worker, signal.SIGKILL)
        assert trainer.loader.restarts == 1
    assert learnt(read_log(tmp_path / "run")) == learnt(uninterrupted)


@pytest.mark.parametrize(
    ("argument", "value", "error", "words"),
    [
        (
            "config",
            "tiny",
            TypeError,
            r"config: expected aef.config.Config, .*aef.settings_file.load_config.*found 'tiny'",
        ),
        ("data", None, TypeError, "data: expected a path, found None"),
        ("data", "", ValueError, "data: expected a path, found an empty one"),
        ("out", ["run"], TypeError, r"out: expected a path, found \['run'\]"),
        ("resume", True, TypeError, "resume: expected None, 'auto' or a folder of .*found True"),
        ("init_from", {}, TypeError, r"init_from: expected a path, found \{\}"),
        ("deepspeed_config", {}, TypeError, r"deepspeed_config: expected a path, found \{\}"),
    ],
)
def test_an_argument_of_another_kind_is_one_line_that_names_it(
    argument, value, error, words, chips, tmp_path, make_config
):
    given = {"config": make_config(), "data": chips, "out": tmp_path / "run", argument: value}
    with pytest.raises(error, match=words) as caught:
        Trainer(**given, quiet=True)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_a_script_that_loaders_processes_run_anew_is_told_what_it_lacks(tmp_path, make_config, monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(TrainingError, match=r'process came to train: .*below `if __name__ == "__main__":`'):
        Trainer(make_config(), tmp_path, tmp_path / "run", quiet=True)


def test_a_folder_that_holds_a_run_is_not_overwritten(chips, tmp_path, make_config):
    stop_after(make_config(), chips, tmp_path / "run", steps=1)
    with pytest.raises(RunError, match="already holds a run: go on with --resume auto"):
        Trainer(make_config(), chips, tmp_path / "run", quiet=True)
    other = make_config(peak_lr=0.5, checkpoint_every=5)
    with pytest.raises(ConfigError, match=r"a resumed run keeps its settings, but train.peak_lr 0.001 → 0.5: give"):
        Trainer(other, chips, tmp_path / "run", resume="auto", quiet=True)
    with pytest.raises(CheckpointError, match="only a run's own are read"):
        Trainer(make_config(), chips, tmp_path / "run", resume=str(tmp_path / "elsewhere"), quiet=True)
    with pytest.raises(RunError, match="holds no run"):
        Trainer(make_config(), chips, tmp_path / "none", resume="checkpoints/step-00000003", quiet=True)


def test_a_run_goes_on_with_the_settings_that_it_keeps_as_its_refusal_of_others_says(chips, tmp_path, make_config):
    run = tmp_path / "run"
    stop_after(make_config(peak_lr=5e-4, checkpoint_every=2), chips, run, steps=2)
    with pytest.raises(
        ConfigError, match=re.escape(f"--config {run / 'config.yaml'} reads back, or start another run")
    ):
        go_on(make_config(), chips, run)
    assert go_on(load_config(str(run / "config.yaml"), ["train.steps=3"]), chips, run)


def test_a_checkpoint_of_another_version_of_the_model_is_named(chips, tmp_path, make_config, monkeypatch):
    stop_after(make_config(), chips, tmp_path / "run", steps=3)
    from aef.training import trainer as trainer_module

    build = trainer_module.build_model

    def wider(run):
        model = build(run)
        model.summary.seed = torch.nn.Parameter(torch.zeros(7))
        return model

    monkeypatch.setattr(trainer_module, "build_model", wider)
    with pytest.raises(
        CheckpointError, match=r"1 weights differ from this software's model, first summary\.seed: \(\d+,\)"
    ):
        Trainer(make_config(), chips, tmp_path / "run", resume="auto", quiet=True)


def test_statistics_are_taken_where_they_are_absent_and_copied_into_the_run(chips, tmp_path, make_config, capsys):
    before = (chips / "stats.json").read_text()
    (chips / "stats.json").unlink()
    stop_after(make_config(), chips, tmp_path / "run", steps=1)
    entries, first = (json.loads(text) for text in ((chips / "stats.json").read_text(), before))
    assert entries["sources"] == first["sources"]
    assert json.loads((tmp_path / "run" / "stats.json").read_text()) == entries


def test_statistics_that_have_seen_a_held_out_place_are_not_used(chips, tmp_path, make_config):
    config = make_config()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, held_out_places=("place0",)))
    stop_after(config, chips, tmp_path / "run", steps=1)
    assert "place0" not in json.loads((tmp_path / "run" / "stats.json").read_text())["places"]
    assert "place0" in json.loads((chips / "stats.json").read_text())["places"]


def test_a_sources_setting_that_the_data_lack_is_refused(make_config):
    config = make_config()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, inputs=("landsat",)))
    with pytest.raises(RunError, match="the data hold no 'landsat'"):
        input_and_target_names(config, ["sentinel2"], BUILT_IN)


@pytest.mark.parametrize("name", ["palsar2", "glo30", "era5_land", "nlcd"])
def test_a_source_that_is_only_decoded_is_refused_as_an_input(make_config, name):
    config = make_config()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, inputs=("sentinel2", name)))
    with pytest.raises(RunError, match=f"model.inputs: {name} is only decoded; of those in the data sentinel2 can be"):
        input_and_target_names(config, ["sentinel2", name], BUILT_IN)


def test_an_error_of_the_loader_is_known_to_every_rank(chips, tmp_path, make_config):
    with Trainer(make_config(), chips, tmp_path / "run", quiet=True) as trainer:
        trainer.loader.next = lambda: Loaded(error="chips/place1.npz: source landsat: is damaged")
        with pytest.raises(TrainingError, match=r"^chips/place1\.npz: source landsat: is damaged$"):
            trainer.fit()


OPENING = """
import signal
from aef.launcher import train
from aef.training import trainer as trainer_module

def open_for_long(*arguments):
    print("opening", flush=True)
    signal.pause()

trainer_module.open_run = open_for_long
train.main(["--data", "chips", "--out", "run"])
"""


@pytest.mark.parametrize("asked", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_while_the_run_opens_puts_the_job_back_into_its_queue(asked, tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        env.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-c", OPENING],
        env=env,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "opening\n"
        process.send_signal(asked)
        _, said = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 75
    assert said.splitlines()[-1] == f"aef train: stopped by {asked.name} between steps: go on with --resume auto"
    (event,) = events(tmp_path / "run", "stopped")
    assert event["signal"] == asked.name and event["step"] == 0
