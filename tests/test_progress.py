"""What is said of long work."""

import pytest

from aef import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_time_left_is_that_of_the_stage_whatever_the_one_before_took(clock, capsys):
    with progress.Progress("evaluate run", unit="step") as shown:
        for seconds, *reached in (
            (0, 0, 4, "dates"),
            (20, 2, 4, "dates"),
            (900, 4, 4, "dates"),
            (0, 0, 10, "label crop"),
            (30, 3, 10, "label crop"),
        ):
            clock[0] += seconds
            shown.reach(*reached)
    assert capsys.readouterr().err.splitlines() == [
        "evaluate run, dates: 2/4 steps, 0.1/s, 20 s left",
        "evaluate run, dates: 4/4 steps, 0.00435/s",
        "evaluate run, label crop: 3/10 steps, 0.1/s, 70 s left",
        "evaluate run, label crop: 3/10 steps, 0.1/s, 70 s left",
    ]


def test_items_are_counted_with_a_note(clock, capsys):
    shown = progress.Progress("ingest", total=2, unit="chip")
    clock[0] += 10
    shown.advance(note="belgium")
    assert capsys.readouterr().err == "ingest: 1/2 chips, 0.1/s, 10 s left belgium\n"
