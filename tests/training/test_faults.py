"""Killed, dying and stalling processes: a run goes on exactly, or ends with one clear error in time."""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aef.training import Trainer
from aef.training.checkpoint import Checkpoints
from aef.training.log import read_log

SCRIPT = Path(__file__).with_name("faulty.py")
LAUNCHER = Path(__file__).parents[2] / "launcher" / "train.py"
LEARNT = ("step", "loss", "reconstruction", "uniformity", "consistency", "per_source", "grad_norm", "lr")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
    ENV.pop(name, None)
FAULTS = ("anywhere", "writing", "publishing", "rotating")


def launch(*arguments, **options):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def learnt(log):
    return [{name: record[name] for name in LEARNT} for record in log]


def checkpointed(run):
    path, _ = Checkpoints(run, keep=2).newest()
    return 0 if path is None else int(path.name.removeprefix("step-"))


def kill_once(run, chips, fault, at):
    """One killed process; nothing but the steps since the last checkpoint may be lost."""
    process = launch(run, chips, fault, at)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, text[-3000:]
    logged = max((record["step"] for record in read_log(run)), default=0)
    # The checkpoint of the last logged step itself may be the one that was being written.
    assert checkpointed(run) >= (logged - 1) // 3 * 3
    return logged


def finish(run, chips, config, uninterrupted):
    with Trainer(config, chips, run, resume="auto", quiet=True) as trainer:
        assert trainer.fit()
    assert learnt(read_log(run)) == learnt(uninterrupted)


def test_a_run_killed_three_times_ends_as_if_it_had_not_been(chips, tmp_path, make_config, uninterrupted):
    run = tmp_path / "run"
    kill_once(run, chips, "writing", 4)
    assert checkpointed(run) == 3
    kill_once(run, chips, "publishing", 5)
    assert checkpointed(run) == 3
    kill_once(run, chips, "anywhere", 7)
    finish(run, chips, make_config(), uninterrupted)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("trial", range(30))
def test_runs_killed_at_random_points_end_as_if_they_had_not_been(trial, chips, tmp_path, make_config, uninterrupted):
    draw = random.Random(trial)
    run, step = tmp_path / "run", 0
    for _ in range(2):
        fault = draw.choice(FAULTS)
        # A fault of a checkpoint needs one to come, a rotation two.
        last = {"anywhere": 8, "writing": 8, "publishing": 8, "rotating": 5}[fault]
        step = draw.randint(checkpointed(run) + 1, max(last, checkpointed(run) + 1))
        if step > 9:
            break
        kill_once(run, chips, fault, step)
    finish(run, chips, make_config(), uninterrupted)


def run_two(run, chips, fault, folder, timeout_s):
    processes = [launch(run, chips, fault, 4, folder / "store", rank, 2, timeout_s) for rank in range(2)]
    try:
        started = time.monotonic()
        text, _ = processes[0].communicate(timeout=240)
        return processes[0].returncode, text, time.monotonic() - started
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("fault", ["dies", "stalls"])
def test_a_rank_that_dies_or_stalls_ends_the_run_with_one_line_in_time(fault, chips, tmp_path):
    run = tmp_path / "run"
    code, text, _ = run_two(run, chips, fault, tmp_path, timeout_s=20)
    assert code == 1
    (line,) = [line for line in text.splitlines() if line.startswith("rank error")]
    assert "rank 0 lost its companions" in line and "--resume auto" in line
    assert checkpointed(run) == 3


def test_a_rank_whose_memory_is_full_says_so_and_ends_the_others(chips, tmp_path):
    run = tmp_path / "run"
    processes = [launch(run, chips, "full", 4, tmp_path / "store", rank, 2, 60) for rank in range(2)]
    try:
        first, last = (process.communicate(timeout=240)[0] for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert "rank error: rank 1: step 5: a pass of " in last and "CUDA out of memory. Tried to allocate 2 GiB" in last
    assert "lower train.micro_batch (1 now)" in last and "from the last checkpoint with --resume auto" in last
    assert "rank error: rank 0 lost its companions" in first
    assert [process.returncode for process in processes] == [1, 1] and checkpointed(run) == 3


@pytest.mark.parametrize("fault", ["validating", "validating3"])
def test_a_validation_that_fails_ends_all_ranks_with_a_checkpoint(fault, chips, tmp_path):
    run = tmp_path / "run"
    code, text, _ = run_two(run, chips, fault, tmp_path, timeout_s=60)
    assert code == 1, text[-3000:]
    assert "validation of step 4 failed" in text and "CUDA out of memory. Tried to allocate 2 GiB" in text
    assert checkpointed(run) == 4


def test_a_port_in_use_is_one_line(chips, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        env = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        env["MASTER_PORT"] = str(taken.getsockname()[1])
        command = [
            sys.executable,
            str(LAUNCHER),
            "--config",
            "tiny",
            "--data",
            str(chips),
            "--out",
            str(tmp_path / "r"),
        ]
        done = subprocess.run(command, env={**ENV, **env}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert re.search(
        r"aef train: error: the rendezvous port of 127\.0\.0\.1:\d+ is in use: choose another", done.stderr
    )
    assert not (tmp_path / "r").exists()


# --- the real command ------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


STEPS = 24
SETTINGS = (f"train.steps={STEPS}", "train.checkpoint_every=5", "train.figure_every=1000")


@pytest.fixture(scope="module", autouse=True)
def no_compiler(tmp_path_factory):
    """Every process here runs where nothing can be compiled: DeepSpeed must not need to build an operator."""
    folder = tmp_path_factory.mktemp("bin")
    for name in ("env", "sh", "bash", "hostname", "uname"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    ENV["PATH"] = str(folder)
    for name in ("CC", "CXX", "CUDA_HOME"):
        ENV.pop(name, None)
    assert not any(shutil.which(name, path=ENV["PATH"]) for name in ("c++", "g++", "clang++", "cc", "gcc", "nvcc"))


def deepspeed(chips, run, *arguments, ranks=2):
    """The `deepspeed` command as a user types it."""
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(ranks)]
    command += ["--master_port", str(free_port()), str(LAUNCHER), "--config", "tiny", "--data", str(chips)]
    command += ["--out", str(run), *SETTINGS, *arguments]
    return subprocess.Popen(
        command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=run.parent
    )


def ranks_of(process):
    """The training processes below a launcher, by rank."""
    import psutil

    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        line = " ".join(child.cmdline())
        if str(LAUNCHER) in line and (rank := re.search(r"--local_rank=(\d)", line)):
            found.setdefault(int(rank[1]), child)
    return found


def test_slurm_s_warning_leaves_a_checkpoint_and_exit_code_75(pristine_chips, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, str(LAUNCHER), "--config", "tiny", "--data", str(pristine_chips), "--out", str(run)]
    command += ["train.steps=100000", "train.checkpoint_every=100000", "train.figure_every=0"]
    process = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while len(read_log(run)) < 2 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
        text, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 75, text[-3000:]
    assert checkpointed(run) == read_log(run)[-1]["step"] >= 2


@pytest.fixture(scope="module")
def stopped(pristine_chips, tmp_path_factory):
    """A run on two ranks of which one was told to stop: its folder, exit code, output and seconds until it had ended."""
    run = tmp_path_factory.mktemp("deepspeed") / "run"
    process = deepspeed(pristine_chips, run)
    try:
        while len(read_log(run)) < 3 and process.poll() is None:
            time.sleep(0.02)
        asked = time.monotonic()
        ranks_of(process)[1].send_signal(signal.SIGTERM)
        text, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    return run, process.returncode, text, time.monotonic() - asked


def test_the_deepspeed_command_stops_all_ranks_with_a_checkpoint_when_one_is_told_to(stopped):
    run, code, text, _ = stopped
    assert code == 75, text[-3000:]
    last = read_log(run)[-1]["step"]
    assert 3 <= last < STEPS and checkpointed(run) == last
    assert "go on with the same command (`aef train`: with --resume auto)" in text


def test_the_deepspeed_command_goes_on_and_ends_as_one_rank_would(stopped, pristine_chips, tmp_path, make_config):
    run, _, _, _ = stopped
    process = deepspeed(pristine_chips, run, "--resume", "auto")
    text, _ = process.communicate(timeout=400)
    assert process.returncode == 0, text[-3000:]
    log = read_log(run)
    config = make_config(steps=STEPS, checkpoint_every=1000, figure_every=1000)
    with Trainer(config, pristine_chips, tmp_path / "one", quiet=True) as trainer:
        alone = list(trainer.steps())
    assert [record["step"] for record in log] == list(range(1, STEPS + 1))
    assert [record["loss"] for record in log] == pytest.approx([record["loss"] for record in alone], rel=1e-4)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_a_run_goes_on_with_another_number_of_ranks(stage, pristine_chips, tmp_path):
    run = tmp_path / "run"
    settings = ["--deepspeed-config", stage, "train.keep_checkpoints=9"]
    process = deepspeed(pristine_chips, run, *settings, ranks=2)
    text, _ = process.communicate(timeout=1500)
    assert process.returncode == 0, text[-3000:]
    whole = read_log(run)
    for checkpoint in Checkpoints(run, keep=9).all()[:-2]:
        shutil.rmtree(checkpoint)
    assert checkpointed(run) == 10
    process = deepspeed(pristine_chips, run, *settings, "--resume", "auto", ranks=1)
    text, _ = process.communicate(timeout=1500)
    assert process.returncode == 0, text[-3000:]
    assert "step-00000010 was written by 2 ranks: converting it" in text
    losses = [record["loss"] for record in read_log(run)]
    assert losses == pytest.approx([record["loss"] for record in whole], rel=1e-4)
