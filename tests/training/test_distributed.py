"""Rank 0 works alone while the others wait, for as long as it lives."""

import threading

import pytest
import torch
import torch.distributed as dist

from aef.training import distributed
from aef.training.distributed import RankError, Ranks


def ranks(rank, timeout_s=10.0):
    return Ranks(rank, 2, 0, torch.device("cpu"), timeout_s)


@pytest.fixture
def store(monkeypatch):
    found = dist.HashStore()
    monkeypatch.setattr(distributed, "_store", lambda: found)
    return found


class Clock:
    """A clock that only waiting moves, with something to do at some of its seconds."""

    def __init__(self, monkeypatch, at):
        self.now, self._at = 0.0, at
        monkeypatch.setattr(distributed.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(distributed.time, "sleep", self._wait)

    def _wait(self, seconds):
        before, self.now = int(self.now), self.now + seconds
        for second in range(before + 1, int(self.now) + 1):
            self._at(second)


def test_work_of_rank_0_may_take_much_longer_than_the_time_out(store, monkeypatch):
    def at(second):
        if second % 3 == 0:
            store.add("turn/beats", 1)
        if second == 500:
            store.set("turn/done", "1")

    clock = Clock(monkeypatch, at)
    ranks(1)._await_first("turn")
    assert 500 <= clock.now < 502


def test_a_rank_0_that_stands_still_is_given_up_in_time(store, monkeypatch):
    clock = Clock(monkeypatch, lambda second: store.add("turn/beats", 1) if second < 100 else None)
    with pytest.raises(RankError, match="rank 1 has waited 10 s for rank 0, which stands still"):
        ranks(1)._await_first("turn")
    assert 110 <= clock.now < 115


def test_rank_0_beats_while_it_works_and_says_when_it_is_done(store, monkeypatch):
    monkeypatch.setattr(distributed, "BEAT_S", 0.001)
    with ranks(0)._beating("turn"):
        while store.add("turn/beats", 0) < 3:
            assert not store.check(["turn/done"])
    assert store.check(["turn/done"])
    assert not any(thread.name == "beats" for thread in threading.enumerate())


def test_what_rank_0_is_doing_is_said_on_one_rank_too(monkeypatch):
    monkeypatch.setattr(distributed, "BEAT_S", 0.001)
    monkeypatch.setattr(distributed, "SAID_EVERY", 2)
    said, heard = [], threading.Event()

    def say(line):
        said.append(line)
        heard.set()

    alone = Ranks(0, 1, 0, torch.device("cpu"), 10.0)
    assert alone.on_first(heard.wait, "opening the run", say) is True
    assert said[0] == "opening the run: 0 s so far"


def test_work_that_fails_is_done_too(store):
    with pytest.raises(OSError), ranks(0)._beating("turn"):
        raise OSError
    assert store.check(["turn/done"])


def test_one_line_of_a_lost_companion_is_not_wrapped_in_another():
    with pytest.raises(RankError, match=r"^rank 0: connection reset$"), ranks(1).watching():
        raise RankError("rank 0: connection reset")
