"""A run folder belongs to one training at a time, whoever and wherever that is, and to none that has ended."""

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aef.run import RunError
from aef.training import Trainer
from aef.training.run_lock import RunLock
from aef.training.signals import stopped_early

HOLDER = """
import sys
from pathlib import Path
from aef.training.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]), print)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path/run`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def lock(run, said=None, **options):
    return RunLock(run, print if said is None else said.append, **options)


def files(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_run_that_is_being_trained_is_refused_and_left_alone(resume, chips, tmp_path, make_config):
    run = tmp_path / "run"
    with Trainer(make_config(steps=3, checkpoint_every=2), chips, run, quiet=True) as trainer:
        steps = trainer.steps()
        while next(steps)["step"] < 3:
            pass
        (run / "checkpoints" / ".step-00000003.partial").mkdir()  # as if it were writing one
        before = files(run)
        words = f"{re.escape(str(run))}: is being trained by process {os.getpid()} on .* since 20.*Z, this one, .*: wait until"
        with pytest.raises(RunError, match=words):
            Trainer(make_config(steps=30), chips, run, resume=resume, quiet=True)
        assert files(run) == before and (run / "checkpoints" / ".step-00000003.partial").is_dir()
        assert not list(steps)
    assert not (run / ".lock").exists()
    with Trainer(make_config(steps=4, checkpoint_every=2), chips, run, resume="auto", quiet=True) as trainer:
        assert trainer.fit()


def test_a_run_that_cannot_be_opened_is_free_again(chips, tmp_path, make_config):
    run = tmp_path / "run"
    with Trainer(make_config(steps=1), chips, run, quiet=True) as trainer:
        assert trainer.fit()
    with pytest.raises(RunError, match="already holds a run"):
        Trainer(make_config(steps=1), chips, run, quiet=True)
    lock(run).release()


def test_the_lock_dies_with_its_process(tmp_path, holder):
    run = tmp_path / "run"
    with pytest.raises(RunError, match=f"is being trained by process {holder.pid} on "):
        lock(run)
    holder.kill()
    holder.wait()
    assert (run / ".lock").exists()
    lock(run).release()
    assert not (run / ".lock").exists()


def test_a_lock_of_another_machine_is_waited_for_a_while_and_said_once(tmp_path, holder, monkeypatch):
    said, run = [], tmp_path / "run"
    about = json.loads((run / ".lock").read_text())
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    with pytest.raises(RunError, match="is being trained by"):
        lock(run, said, wait_s=1.5)
    assert said == [
        f"{run}: waiting for process {holder.pid} on {about['host']} since {about['since']}, which may have gone"
    ]
    monkeypatch.setattr("time.sleep", lambda seconds: (holder.kill(), holder.wait()))  # the server has noticed
    lock(run, wait_s=60).release()


def test_a_folder_made_for_the_lock_alone_goes_with_it_and_one_that_was_there_stays(tmp_path):
    lock(tmp_path / "a" / "b").release()
    assert not (tmp_path / "a").exists()
    (tmp_path / "empty").mkdir()
    lock(tmp_path / "empty").release()
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    said, run = [], tmp_path / "run"
    monkeypatch.setattr(fcntl, "flock", refuse)
    held = lock(run, said)
    assert said == [f"{run}: no lock on this file system (No locks available): nothing keeps a second training out"]
    held.release()
    assert not run.exists()


def test_a_signal_that_ends_a_second_training_is_no_event_of_the_first(tmp_path, holder):
    stopped_early(tmp_path / "run", "SIGTERM")
    assert not (tmp_path / "run" / "events.jsonl").exists()
