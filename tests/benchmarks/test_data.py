"""The data benchmark prints what it measures and writes only where it should."""

from __future__ import annotations

import json

import pytest

from benchmarks import data


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in (("CHIP_PX", 16), ("CHIPS", 1), ("SAMPLES", 1)):
        monkeypatch.setattr(data, name, value)
    monkeypatch.setattr(data, "core_gflops", lambda: 1.0)


def test_every_rate_is_printed_with_its_unit_and_written_on_request(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "RESULTS", tmp_path)
    assert data.main(["sampler", "statistics", "generator", "--out", str(tmp_path / "data.json")]) == 0
    printed = capsys.readouterr().out
    rates = json.loads((tmp_path / "data.json").read_text())
    assert all(rate["rate"] > 0 and f"{rate['name']}: " in printed and rate["unit"] in printed for rate in rates)
    assert {rate["unit"] for rate in rates} == {"samples/s", "chips/s", "GFLOP/s"}


def test_nothing_is_written_outside_the_results(tmp_path, capsys):
    with pytest.raises(SystemExit):
        data.main(["statistics", "--out", str(tmp_path / "elsewhere.json")])
    assert "expected a file under" in capsys.readouterr().err


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        data.main(["smapler"])
    assert "unknown part smapler" in capsys.readouterr().err
