import json
from pathlib import Path

import pytest

from aef.training.log import Display, StepLog, duration, read_events, read_log

RECORD = {
    "step": 1,
    "loss": 0.5,
    "reconstruction": 0.4,
    "uniformity": None,
    "frames_per_s": 10.0,
    "data_wait": 0.25,
    "skipped": 1,
}


@pytest.fixture
def log(tmp_path):
    found = StepLog(tmp_path)
    for step in range(1, 8):
        found.write({"step": step, "loss": step / 3})
    found.validation(4, {"health": 1.0})
    found.validation(6, {"health": 2.0})
    return found


def test_a_resumed_run_cuts_its_log_back(log, tmp_path):
    assert log.cut_back(4) == 3
    assert [record["step"] for record in read_log(tmp_path)] == [1, 2, 3, 4]
    assert [json.loads(line)["step"] for line in log.validations.read_text().splitlines()] == [4]


def test_a_line_cut_short_by_a_kill_is_dropped(log, tmp_path):
    with open(log.path, "a") as stream:
        stream.write('{"step": 8, "lo')
    assert len(read_log(tmp_path)) == 7
    assert log.cut_back(7) == 1
    assert log.path.read_text().endswith("}\n")


def test_an_event_after_one_cut_short_stands_on_a_line_of_its_own(log, tmp_path):
    log.event("checkpoint", step=4)
    with open(log.events, "a") as stream:
        stream.write('{"time": "2026-')
    log.cut_back(2)
    log.event("resumed", step=2)
    assert [event["event"] for event in read_events(tmp_path)] == ["checkpoint", "resumed"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_reported_with_the_file(tmp_path):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        StepLog(tmp_path).write(RECORD)
    assert caught.value.filename == str(tmp_path / "log.jsonl")


def test_numbers_that_json_does_not_know_are_refused(log):
    with pytest.raises(ValueError):
        log.write({"step": 8, "loss": float("nan")})


def test_numbers_keep_all_their_digits(log, tmp_path):
    assert read_log(tmp_path)[0]["loss"] == 1 / 3


def test_progress_without_a_terminal_is_plain_lines(capsys):
    with Display(total=2) as display:
        display.step(RECORD, 0.1)
        display.step({**RECORD, "step": 2}, 0.1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 1/2  loss 0.5000  reconstruction 0.4000  10 frames/s  data wait 25%  0 s left  skipped 1"
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("seconds", "words"), [(41, "41 s"), (700, "12 min"), (3 * 3600 + 290, "3 h 05 min"), (100 * 3600, "4 d 4 h")]
)
def test_durations_read_well(seconds, words):
    assert duration(seconds) == words
