"""The shipped Slurm scripts, with stand-ins for Slurm's and the launchers' commands: they end, and requeue only what a
signal stopped."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "launcher" / "configs" / "slurm"
STOPPED, OTHER = '{"event": "stopped", "step": 5}', '{"event": "resumed", "step": 5}'
RANK = """
import signal, sys
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
open(sys.argv[1], "w").write("ready")
signal.pause()
"""


@pytest.fixture
def place(tmp_path):
    """A folder with a run, and stand-ins for `srun`, `scontrol` and `deepspeed` that come first on the path."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "run").mkdir()
    stand_in(tmp_path, "scontrol", 'echo "$@" >> requeued')
    return tmp_path


def stand_in(place, name, text):
    path = place / "bin" / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def submit(place, script, **options):
    env = {**os.environ, "PATH": f"{place / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2"}
    env["SLURM_JOB_NODELIST"], env["SLURM_CPUS_PER_TASK"] = "a,b", "96"
    return subprocess.Popen(["bash", str(SCRIPTS / script), "chips", "run"], env=env, cwd=place, **options)


def ends_with(place, script):
    """Exit code of a job, and whether it was put back into the queue."""
    process = submit(place, script)
    try:
        code = process.wait(timeout=20)
    finally:
        process.kill()
    calls = place / "requeued"
    return code, calls.exists() and "requeue 7" in calls.read_text()


# 247: what `deepspeed` leaves with where a rank was killed; 255 - 9 + 1.
@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (75, True), (137, False), (247, False)])
def test_a_job_on_one_node_ends_with_the_code_of_its_run(place, code, again):
    stand_in(place, "deepspeed", f"exit {code}")
    assert ends_with(place, "one_node.sh") == (code, again)


@pytest.mark.skipif(shutil.which("pgrep") is None, reason="the script hands signals on with pgrep")
def test_the_signal_goes_to_a_rank_and_the_job_back_into_the_queue(place):
    os.mkfifo(place / "ready")
    (place / "rank.py").write_text(RANK)
    # The runner's child is a launcher, whose child is the rank: their exit code is handed up.
    stand_in(place, "launcher", f"{sys.executable} rank.py ready & wait $!")
    stand_in(place, "deepspeed", "launcher & wait $!")
    process = submit(place, "one_node.sh")
    try:
        assert (place / "ready").read_text() == "ready"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=20) == 75
    finally:
        process.kill()
    assert "requeue 7" in (place / "requeued").read_text()


@pytest.mark.parametrize(
    ("before", "job", "code", "again"),
    [
        ("", f"echo '{STOPPED}' >> run/events.jsonl; exit 1", 1, True),
        (STOPPED, "exit 1", 1, False),  # fails before it says anything
        (STOPPED, f"echo '{OTHER}' >> run/events.jsonl; exit 1", 1, False),
        (f"{STOPPED}\n{OTHER}", f"echo '{STOPPED}' >> run/events.jsonl; exit 1", 1, True),
        ("", "exit 0", 0, False),
    ],
)
def test_a_job_on_several_nodes_is_requeued_only_by_its_own_stop(place, before, job, code, again):
    if before:
        (place / "run" / "events.jsonl").write_text(before + "\n")
    stand_in(place, "srun", job)
    assert ends_with(place, "several_nodes.sh") == (code, again)


def test_ranks_on_several_nodes_have_their_cpus_and_the_time_to_write_a_checkpoint(place):
    stand_in(place, "srun", 'echo "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT $@" > called')
    assert ends_with(place, "several_nodes.sh") == (0, False)
    script = (SCRIPTS / "several_nodes.sh").read_text()
    warned_s = int(re.search(r"--signal=USR1@(\d+)", script)[1])
    given_s, *words = (place / "called").read_text().split()
    assert 30 < int(given_s) < warned_s
    assert words[:3] == ["--cpus-per-task", "96", "torchrun"]
