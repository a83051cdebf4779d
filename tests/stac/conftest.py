"""Tries at a catalogue follow each other at once."""

import pytest


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr("aef.stac.fetch.random.random", lambda: -0.5)
