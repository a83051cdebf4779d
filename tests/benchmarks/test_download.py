"""The download's benchmark runs on small numbers."""

import pytest

from benchmarks import download as benchmark

pytest.importorskip("ee", reason="earthengine-api is not installed (extra [ee])")


def test_requests_are_counted_by_the_stand_in(monkeypatch):
    monkeypatch.setattr(benchmark, "CASES", (("few", 16, 120, 3),))
    monkeypatch.setattr(benchmark, "LATENCY_S", 0.01)
    rates = {name: value for name, value, _ in benchmark.download()}
    assert rates["download: few, most at once"] >= 1 and rates["download: few, chips written"] > 0
    assert rates["download: few, requests"] > 0 and rates["download: peak memory of this process"] > 10


def test_manifest_rates_are_taken_at_two_sizes(monkeypatch):
    monkeypatch.setattr(benchmark, "FEW_SITES", 60)
    monkeypatch.setattr(benchmark, "SITES", 300)
    monkeypatch.setattr(benchmark, "TOUCHED", 20)
    names = [name for name, value, _ in benchmark.manifest() if value > 0]
    assert sum("among 60" in name for name in names) == sum("among 300" in name for name in names) == 2
