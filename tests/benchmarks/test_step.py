"""What `python -m benchmarks.step` sets against each other."""

import importlib.util

import pytest

from aef.settings_file import load_config
from benchmarks import step


def test_the_engines_step_leaves_no_folder_behind(tmp_path, monkeypatch):
    from aef.training import bench

    class NoStep:
        def __init__(self, config, data, scratch):
            assert not list(scratch.iterdir())
            raise ConnectionError

    monkeypatch.setattr(step.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(bench, "StepBench", NoStep)
    with pytest.raises(ConnectionError):
        step.engine_step(load_config("tiny"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", ["presets", "public-small"])
def test_where_there_is_no_deepspeed_the_bare_step_is_measured_and_it_is_said_once(case, monkeypatch, capsys):
    step.own_contenders.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    measured = []

    def measure(title, contenders, rounds):
        measured.append(list(contenders))
        return {"results": {"bare": {}}, "discarded": False}

    monkeypatch.setattr(step, "measure", measure)
    assert step.main(["--case", case, "--preset", "tiny", "small", "--dtype", "float32", "bfloat16"]) == 0
    assert measured == [["bare"], ["bare"]]
    assert capsys.readouterr().out.count("deepspeed is not installed") == 1
    step.own_contenders.cache_clear()
